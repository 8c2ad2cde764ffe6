//! Bad input: one clear message, the documented exit code, and nothing changed.

use std::process::Command;

use crate::host::{Ended, Host, RUNNER, is_root};

/// A host with three tasks.
fn host() -> Host {
    let host = Host::new();
    for name in ["1-checkout", "2-build", "3-clean"] {
        host.task(name, "");
    }
    host
}

/// Says no, and leaves everything as it was. Returns what it said, and for which exit code.
#[track_caller]
fn refused(host: &Host, arguments: &[&str], code: i32) -> String {
    let ended: Ended = host.run(arguments);
    ended.assert_code(code);
    assert_eq!(ended.out, "", "words belong on standard error");
    assert!(host.trace().is_empty(), "a task was run");
    assert!(!host.exists("state"), "the state directory was made");
    host.anonymous(&ended.err)
}

/// What `run` and `check` say of a host that is not fit to run.
#[track_caller]
fn unfit(host: &Host) -> String {
    let said = refused(host, &["run", "-n", "1"], 78);
    let checked = host.run(&["check"]);
    checked.assert_code(78);
    // `check` finds all that `run` finds.
    let checked = host.anonymous(&checked.err);
    for line in said.lines() {
        assert!(
            checked.contains(line),
            "`check` does not say: {line}\n{checked}"
        );
    }
    said
}

#[test]
fn every_wrong_flag_is_refused_with_64() {
    let host = host();
    let wrong: [&[&str]; 16] = [
        &[],
        &["--frobnicate"],
        &["run", "--frobnicate"],
        &["run", "-n", "0"],
        &["run", "-n", "-1"],
        &["run", "-n", "many"],
        &["run", "-n", "99999999999999999999"],
        &["run", "-n"],
        &["run", "-H"],
        &["run", "one", "two"],
        &["walk"],
        &["order", "--format", "xml"],
        &["history", "-n", "x"],
        &["--log-format", "yaml", "run"],
        &["completions", "csh"],
        &["-g", "a.b", "run"],
    ];
    let mut said = String::new();
    for arguments in wrong {
        said.push_str(&format!("$ runner {}\n", arguments.join(" ")));
        said.push_str(&refused(&host, arguments, 64));
        said.push('\n');
    }
    insta::assert_snapshot!(said);
}

#[test]
fn help_and_version_are_no_fault() {
    let host = host();
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["run", "--help"],
        &["help", "run"],
    ] {
        let ended = host.run(arguments);
        ended.assert_code(0);
        assert!(
            !ended.out.is_empty() && ended.err.is_empty(),
            "{arguments:?}"
        );
    }
}

#[test]
fn all_faults_of_all_files_are_said_at_once_with_file_and_line() {
    let host = host();
    host.write(
        "runner.d/50-site.toml",
        r#"[runner]
timeuot = "5m"
max_attempts = 0
grace_period = 10

[runner.backoff]
initial = "soon"

[tasks.build]
may_halt = "yes"
when = "sometimes"
drain_signal = "PLEASE"
depends_on = "checkout"
user = 1000

[env]
NUMBER = 5
"#,
    );
    host.write(
        "runner.d/60-more.toml",
        "stray = 1\n[telemetry]\nheartbeat = \"now\"\n[jobs]\nspol = \"/x\"\n",
    );
    insta::assert_snapshot!(unfit(&host));
}

#[test]
fn a_file_that_is_not_toml_is_refused_at_its_line() {
    let host = host();
    host.set("[runner]\ntimeout = 5m\n");
    insta::assert_snapshot!("no_toml", unfit(&host));
    host.write("runner.d/50-test.toml", b"[runner]\n# caf\xe9\n");
    insta::assert_snapshot!("no_utf8", unfit(&host));
}

#[test]
fn a_configuration_that_is_not_there_is_refused() {
    let host = host();
    insta::assert_snapshot!(refused(
        &host,
        &["run", "--config", "/nonexistent/runner.toml"],
        78
    ));
}

#[test]
fn a_configuration_that_is_a_directory_is_refused() {
    let host = host();
    let directory = host.path("tasks.d").display().to_string();
    insta::assert_snapshot!(refused(&host, &["run", "--config", &directory], 78));
}

#[test]
fn a_configuration_that_may_not_be_read_is_refused() {
    let host = host();
    host.chmod("runner.toml", 0);
    let mut command = Command::new("setpriv");
    if nix::unistd::geteuid().is_root() {
        // Root that may not pass over permissions.
        command.args(["--bounding-set=-all", "--inh-caps=-all"]);
    }
    command
        .args(["--", RUNNER, "run", "-n", "1"])
        .env("RUNNER_CONFIG", host.path("runner.toml"));
    let ended = host.start_command(command).wait();
    ended.assert_code(78);
    assert!(!host.exists("state") && host.trace().is_empty());
    insta::assert_snapshot!(host.anonymous(&ended.err));
}

#[test]
fn a_configuration_that_others_may_write_is_refused() {
    for file in ["runner.toml", "runner.d/50-test.toml"] {
        let host = host();
        host.set("");
        for mode in [0o664, 0o646] {
            host.chmod(file, mode);
            let said = unfit(&host);
            assert!(
                said.contains(&format!("type `chmod go-w /host/{file}`")),
                "{said}"
            );
        }
    }
}

#[test]
fn tasks_that_others_may_write_are_refused() {
    let host = host();
    host.chmod("tasks.d/2-build", 0o757);
    host.chmod("tasks.d/3-clean", 0o775);
    insta::assert_snapshot!(unfit(&host));
}

#[test]
fn a_tasks_directory_that_others_may_write_is_refused() {
    let host = host();
    for mode in [0o777, 0o775, 0o1777] {
        host.chmod("tasks.d", mode);
        let said = unfit(&host);
        assert!(
            said.contains("may be written by others") && said.contains("chmod go-w"),
            "{said}"
        );
    }
}

#[test]
fn a_task_of_another_user_is_refused() {
    if !is_root("giving a file to another user") {
        return;
    }
    let host = host();
    nix::unistd::chown(&host.path("tasks.d/2-build"), Some(65534.into()), None).unwrap();
    insta::assert_snapshot!(unfit(&host));
}

#[test]
fn a_link_to_a_task_that_others_may_write_is_refused() {
    let host = host();
    host.script("elsewhere", "");
    host.chmod("elsewhere", 0o777);
    fs_err::os::unix::fs::symlink(host.path("elsewhere"), host.path("tasks.d/4-link")).unwrap();
    assert!(unfit(&host).contains("`/host/elsewhere` may be written by others"));
}

#[test]
fn a_link_to_nothing_is_refused() {
    let host = host();
    fs_err::os::unix::fs::symlink("/nonexistent/task", host.path("tasks.d/4-link")).unwrap();
    insta::assert_snapshot!(unfit(&host));
}

#[test]
fn a_tasks_directory_that_is_none_is_refused() {
    let host = host();
    insta::assert_snapshot!(
        "missing_directory",
        refused(&host, &["run", "/nonexistent/tasks.d"], 78)
    );
    let file = host.path("tasks.d/1-checkout").display().to_string();
    assert!(refused(&host, &["run", &file], 78).contains("is no directory"));
}

#[test]
fn a_tasks_directory_without_tasks_is_refused() {
    let host = Host::new();
    insta::assert_snapshot!(refused(&host, &["run"], 78));
    host.task("README", "");
    host.task("halt", "");
    assert!(refused(&host, &["run"], 78).contains("has no tasks"));
    host.run(&["check"]).assert_code(78);
}

#[test]
fn a_dependency_that_is_not_there_is_named_at_both_ends() {
    let host = host();
    host.set("[tasks.build]\ndepends_on = [\"chekout\", \"clean\"]\n[tasks.clean]\ndepends_on = [\"gone\"]\n");
    insta::assert_snapshot!(unfit(&host));
}

#[test]
fn a_dependency_that_could_be_two_tasks_is_refused() {
    let host = host();
    host.task("4-build", "");
    host.set("[tasks.clean]\ndepends_on = [\"build\"]\n");
    insta::assert_snapshot!(unfit(&host));
}

#[test]
fn a_cycle_is_named_all_the_way_around() {
    let host = host();
    host.set(
        "[tasks.checkout]\ndepends_on = [\"clean\"]\n[tasks.build]\ndepends_on = [\"1-checkout\"]\n\
         [tasks.clean]\ndepends_on = [\"build\"]\n",
    );
    insta::assert_snapshot!(unfit(&host));
}

#[test]
fn a_task_that_depends_on_itself_is_refused() {
    let host = host();
    host.set("[tasks.build]\ndepends_on = [\"build\"]\n");
    assert!(unfit(&host).contains("2-build -> 2-build"));
}

#[test]
fn settings_for_a_task_that_is_not_there_are_refused() {
    let host = host();
    host.set("[tasks.bulid]\ntimeout = \"5m\"\n");
    insta::assert_snapshot!(unfit(&host));
}

#[test]
fn required_keys_that_are_missing_or_empty_are_all_said() {
    let host = host();
    host.set(
        "[tasks.checkout]\nrequires = [\"hg.tools_repo\", \"hg.share\", \"hg.list\", \"hg\", \"runner.timeout\"]\n\
         [hg]\nshare = \" \"\nlist = []\n",
    );
    insta::assert_snapshot!(unfit(&host));
}

#[test]
fn a_user_that_the_host_does_not_have_is_refused() {
    let host = host();
    host.set("[tasks.build]\nuser = \"no-such-user\"\n");
    insta::assert_snapshot!(unfit(&host));
}

#[test]
fn a_backoff_that_falls_is_refused() {
    let host = host();
    host.set("[tasks.build.backoff]\ninitial = \"10m\"\nmax = \"1m\"\n");
    insta::assert_snapshot!(unfit(&host));
}

#[test]
fn a_state_directory_that_cannot_be_made_is_refused() {
    let host = host();
    host.write("file", "");
    let inside = host.path("file/state").display().to_string();
    host.set(&format!("[runner]\nstate_dir = \"{inside}\"\n"));
    insta::assert_snapshot!(refused(&host, &["run"], 78));
}

#[test]
fn a_state_directory_that_others_may_write_is_refused() {
    let host = host();
    fs_err::create_dir(host.path("state")).unwrap();
    host.chmod("state", 0o777);
    let ended = host.run_once();
    ended.assert_code(78);
    assert!(
        ended.err.contains("may be written by others"),
        "{}",
        ended.err
    );
    assert!(host.trace().is_empty());
    assert_eq!(fs_err::read_dir(host.path("state")).unwrap().count(), 0);
}

#[test]
fn a_token_that_others_may_read_is_refused() {
    let host = host();
    host.write("token", "secret");
    host.chmod("token", 0o644);
    host.set(&format!(
        "[[telemetry.influx]]\nurl = \"http://127.0.0.1:9\"\norg = \"o\"\nbucket = \"b\"\ntoken_file = \"{}\"\n",
        host.path("token").display()
    ));
    let said = unfit(&host);
    assert!(!said.contains("secret"));
    insta::assert_snapshot!(said);
}

#[test]
fn a_table_that_is_nearly_ours_is_asked_about() {
    let host = host();
    host.set("[telemtry]\nheartbeat = \"1s\"\n");
    let ended = host.run_once();
    ended.assert_code(0);
    assert_eq!(ended.count("was `[telemetry]` meant?"), 1, "{}", ended.err);
}

#[test]
fn a_record_that_is_not_what_a_hook_gets_is_refused() {
    let host = host();
    for json in [
        "",
        "{",
        "[]",
        "{\"task\":\"1\"}",
        "{\"task\":\"1\",\"try_num\":1,\"max_retries\":1,\"result\":\"FINE\"}",
    ] {
        let said = refused(&host, &["record", json], 64);
        assert!(
            said.contains("the argument is not what a hook gets"),
            "{said}"
        );
    }
}
