//! What a task finds: the same environment, descriptors and signals, whatever started the runner.

use std::collections::BTreeMap;

use crate::host::{Host, RUNNER, is_root};

/// The environment a process was started with.
fn environment(host: &Host, file: &str) -> BTreeMap<String, String> {
    host.read(file)
        .split_terminator('\0')
        .map(|entry| {
            let (name, value) = entry.split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

#[test]
fn the_environment_is_exactly_the_documented_one() {
    let host = Host::new();
    // As it was at exec: a shell adds variables of its own.
    host.script("tasks.d/1-task", "cat /proc/$$/environ >\"$HERE/environ\"");
    host.set("[env]\nLC_TIME = \"C.UTF-8\"\n[tasks.task.env]\nCOLOUR = \"red\"\n");
    let mut command = host.command(&["run", "-n", "1"]);
    command
        .env("SECRET", "hunter2")
        .env("LD_LIBRARY_PATH", "/nonexistent")
        .env("HOME", "/elsewhere");
    command
        .env("LC_ALL", "tr_TR.UTF-8")
        .env("NOTIFY_SOCKET", "")
        .env("RUNNER_ATTEMPT", "99");
    host.start_command(command).wait().assert_code(0);
    let mut environment = environment(&host, "environ");
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
        .unwrap()
        .unwrap();
    let mut take = |name: &str| {
        environment
            .remove(name)
            .unwrap_or_else(|| panic!("no {name}"))
    };
    let beside = std::path::Path::new(RUNNER)
        .parent()
        .unwrap()
        .display()
        .to_string();
    assert_eq!(
        take("PATH"),
        format!("{beside}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    );
    assert_eq!(take("LANG"), "C.UTF-8");
    assert_eq!(take("HOME"), user.dir.display().to_string());
    assert_eq!(take("USER"), user.name);
    assert_eq!(take("LOGNAME"), user.name);
    assert_eq!(take("SHELL"), "/bin/sh");
    assert_eq!(take("LC_TIME"), "C.UTF-8");
    assert_eq!(take("COLOUR"), "red");
    let config = host.path("runner.toml").display().to_string();
    assert_eq!(
        take("RUNNER_CONFIG_CMD"),
        format!("{RUNNER} --config {config}")
    );
    assert!(take("RUNNER_OUTPUT").starts_with('/'));
    assert_eq!(take("RUNNER_TASK"), "1-task");
    assert_eq!(
        take("RUNNER_TASKS_DIR"),
        host.path("tasks.d").display().to_string()
    );
    assert!(take("RUNNER_RUN_ID").starts_with("000001-"));
    assert_eq!(take("RUNNER_ATTEMPT"), "1");
    assert_eq!(take("RUNNER_MAX_ATTEMPTS"), "3");
    assert_eq!(take("RUNNER_RUNS_SINCE_BOOT"), "0");
    assert_eq!(
        take("RUNNER_STATE_DIR"),
        host.path("state").display().to_string()
    );
    assert!(environment.is_empty(), "not documented: {environment:?}");
}

#[test]
fn the_environment_of_a_task_with_a_user_is_that_users() {
    if !is_root("running as another user") {
        return;
    }
    let host = Host::new();
    host.write("environ", "");
    host.chmod("environ", 0o666);
    host.script("tasks.d/1-task", "cat /proc/$$/environ >\"$HERE/environ\"");
    host.set("[tasks.task]\nuser = \"nobody\"\n");
    host.run_once().assert_code(0);
    let environment = environment(&host, "environ");
    assert_eq!(
        (environment["USER"].as_str(), environment["HOME"].as_str()),
        ("nobody", "/nonexistent")
    );
}

/// What a task writes that only looks at itself, if `before` is done before the runner starts.
fn looks(script: &str, before: &str) -> String {
    let host = Host::new();
    host.script("tasks.d/1-task", script);
    let command = host.command_in_shell(before, &["run", "-n", "1"]);
    host.start_command(command).wait().assert_code(0);
    host.anonymous(&host.read("state/output/1-task"))
}

#[test]
fn umask_and_working_directory_do_not_depend_on_who_started_the_runner() {
    assert_eq!(looks("umask; pwd", "umask 077; cd /tmp"), "0022\n/\n");
    assert_eq!(looks("umask; pwd", "umask 000"), "0022\n/\n");
}

#[test]
fn standard_input_is_empty() {
    let script = "readlink /proc/$$/fd/0; cat";
    assert_eq!(looks(script, "exec </etc/passwd"), "/dev/null\n");
}

#[test]
fn no_descriptor_is_inherited() {
    // `ls` itself holds the directory it lists.
    let before = "exec 5</etc/passwd 7>>/dev/null 9</etc/group";
    assert_eq!(looks("exec ls /proc/self/fd", before), "0\n1\n2\n3\n");
    // Nor are they missing: with all of them closed, files would take their places.
    let host = Host::new();
    host.script(
        "tasks.d/1-task",
        "ls -l /proc/self/fd | grep -o '[0-9] -> .*' >\"$HERE/fds\"",
    );
    let command = host.command_in_shell("exec <&- >&- 2>&-", &["run", "-n", "1"]);
    host.start_command(command).wait().assert_code(0);
    let fds = host.lines("fds");
    assert_eq!(fds[0], "0 -> /dev/null");
    assert!(fds[2].starts_with("2 -> pipe:"), "{fds:?}");
}

#[test]
fn signals_are_as_at_birth_even_under_nohup() {
    // `nohup` ignores SIGHUP, a shell's background job SIGINT and SIGQUIT; what ignores a signal
    // passes that on to what it starts.
    let before =
        "trap '' HUP INT QUIT PIPE TERM TSTP TTIN TTOU USR1 USR2 ALRM CHLD WINCH XFSZ 34 64";
    let status = looks("exec cat /proc/self/status", before);
    for line in ["SigBlk:", "SigIgn:", "SigCgt:"] {
        let mask = status
            .lines()
            .find_map(|found| found.strip_prefix(line))
            .unwrap();
        let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
        // Nobody can change 32 and 33, which belong to the C library.
        assert_eq!(mask & !0x1_8000_0000, 0, "{line} {status}");
    }
}

#[test]
fn a_runner_under_nohup_can_still_be_told_to_stop() {
    let host = Host::new();
    host.task("1-task", "exec sleep 1000");
    let command = host.command_in_shell("trap '' HUP INT QUIT TERM", &["run"]);
    let mut running = host.start_command(command);
    running.until_phase("task");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait().assert_code(0);
}

#[test]
fn limits_are_the_runners_in_every_task() {
    let host = Host::new();
    host.script("tasks.d/1-task", "ulimit -n; ulimit -n 10");
    host.script("tasks.d/2-task", "ulimit -n");
    let command = host.command_in_shell("ulimit -n 100", &["run", "-n", "2"]);
    host.start_command(command).wait().assert_code(0);
    assert_eq!(host.read("state/output/1-task"), "100\n");
    assert_eq!(host.read("state/output/2-task"), "100\n");
}

#[test]
fn each_task_leads_a_group_of_its_own() {
    let host = Host::new();
    host.script("tasks.d/1-task", "test $(ps -o pgid= -p $$) -eq $$");
    host.run_once().assert_code(0);
}
