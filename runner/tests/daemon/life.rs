//! One runner at a time on a state directory, and what the next one does when it was killed.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use farm_events::{Event, Outcome};
use nix::sys::signal::Signal::SIGTERM;

use crate::host::{Host, SOON, is_alive, is_root, pids, until};

#[test]
fn a_second_runner_names_the_first_and_runs_nothing() {
    let host = Host::new();
    host.task(
        "1-task",
        "while ! test -e \"$HERE/go\"; do sleep 0.01; done",
    );
    let mut running = host.start(&["run", "-n", "1"]);
    running.until_phase("task");
    let second = host.command(&["run", "-n", "1"]).output().unwrap();
    assert_eq!(second.status.code(), Some(75));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(
        said.contains(&format!("another runner (pid {})", running.pid())),
        "{said}"
    );
    assert!(
        said.contains(&host.path("state/runner.lock").display().to_string()),
        "{said}"
    );
    host.write("go", "");
    running.wait().assert_code(0);
    assert_eq!(host.trace(), ["1-task"]);
}

#[test]
fn two_runners_with_state_directories_of_their_own_do_not_meet() {
    let one = Host::new();
    let other = Host::new();
    one.task(
        "1-task",
        "setsid sleep 1000 & while ! test -e \"$HERE/go\"; do sleep 0.01; done",
    );
    other.task("1-task", "setsid sleep 1000 & exit 0");
    let mut running = one.start(&["run", "-n", "1"]);
    running.until_phase("task");
    // Ends its own leftovers, and nobody else's.
    other.run(&["run", "-n", "5"]).assert_code(0);
    one.write("go", "");
    running.wait().assert_code(0);
    assert_eq!(one.attempts("1-task")[0].leftovers, 1);
}

#[test]
fn children_do_not_inherit_the_lock() {
    let host = Host::new();
    host.task("1-task", "exec ls -l /proc/self/fd");
    host.run_once().assert_code(0);
    let output = host.read("state/output/1-task");
    assert!(!output.contains("runner.lock"), "{output}");
}

/// A task that keeps two processes: one of its group, one in a session of its own.
const KEEPS: &str = "trap '' TERM\nsetsid sh -c 'trap \"\" TERM; echo $$ >>\"$0/pids\"; while :; do sleep 1000; done' \"$HERE\" &\n\
                     echo $$ >>\"$HERE/pids\"\nwhile :; do sleep 1000; done";

/// The next start after SIGKILL in the middle of a task. `command` starts `runner` on `host`.
fn killed_in_mid_task(command: impl Fn(&Host, &[&str]) -> Command) -> Host {
    let host = Host::new();
    host.task("1-before", "");
    host.task("2-keeps", KEEPS);
    let mut running = host.start_command(command(&host, &["run", "-n", "1"]));
    running.until("both processes", |host| host.lines("pids").len() == 2);
    running.until_phase("task");
    running.kill();
    let left = pids(&host, "pids");
    assert!(
        left.iter().all(|pid| is_alive(*pid)),
        "SIGKILL to the runner reaches its task"
    );

    // The task that runs next sees whether anything is left of the one before.
    host.task(
        "2-keeps",
        "for pid in $(cat \"$HERE/pids\"); do ! grep -q 'State:.[^Z]' /proc/$pid/status 2>/dev/null || echo $pid >>\"$HERE/overlap\"; done",
    );
    let ended = host
        .start_command(command(&host, &["run", "-n", "1"]))
        .wait();
    ended.assert_code(0);
    assert_eq!(host.read("overlap"), "");
    assert!(left.iter().all(|pid| !is_alive(*pid)));
    assert_eq!(
        ended.count("was killed in the middle of a task"),
        1,
        "{}",
        ended.err
    );
    host
}

fn assert_story_goes_on(host: &Host) {
    let attempts = host.attempts("2-keeps");
    assert_eq!(attempts.len(), 2);
    let (killed, after) = (&attempts[0], &attempts[1]);
    assert_eq!(
        killed.error.as_deref(),
        Some("runner was killed in the middle of this attempt")
    );
    assert_eq!((killed.outcome, killed.attempt), (Outcome::Retry, 1));
    assert!(killed.leftovers >= 2, "{}", killed.leftovers);
    assert_eq!((after.outcome, after.attempt), (Outcome::Ok, 1));
    assert_ne!(killed.run_id, after.run_id);
    // Each attempt that was started has an end.
    let (mut starts, mut ends) = (0, 0);
    for event in host.history() {
        match event {
            Event::TaskStarted(_) => starts += 1,
            Event::TaskFinished(_) => ends += 1,
            _ => {}
        }
    }
    assert_eq!(starts, ends);
    assert_eq!(host.state()["runs"], 2);
}

#[test]
fn after_sigkill_the_next_start_ends_what_the_task_left_running() {
    let host = killed_in_mid_task(Host::command);
    assert_story_goes_on(&host);
}

#[test]
fn after_sigkill_what_the_task_left_is_found_without_a_cgroup_too() {
    if !is_root("hiding the cgroups from a process") {
        return;
    }
    let host = killed_in_mid_task(Host::command_without_cgroup);
    assert_story_goes_on(&host);
}

#[test]
fn what_wiped_its_environment_is_found_by_its_cgroup() {
    let host = Host::new();
    host.task(
        "1-wipes",
        // `runner` moves a task into its cgroup right after its start, if it has one.
        "for n in $(seq 100); do grep -q runner-task /proc/self/cgroup && break; sleep 0.01; done\n\
         env -i setsid sleep 1000 & echo $! >\"$HERE/pids\"; while :; do sleep 1000; done",
    );
    let mut running = host.start(&["run", "-n", "1"]);
    running.until_written("pids");
    running.until_phase("task");
    let cgroup = host.state()["attempt"]["cgroup"]
        .as_str()
        .map(str::to_owned);
    running.kill();
    let Some(cgroup) = cgroup else {
        eprintln!("left out: this process can make no cgroup");
        for pid in pids(&host, "pids") {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), SIGTERM).unwrap();
        }
        host.task("1-wipes", "");
        host.run_once().assert_code(0);
        return;
    };
    host.task("1-wipes", "");
    host.run_once().assert_code(0);
    assert!(!is_alive(pids(&host, "pids")[0]));
    until("the cgroup of the killed runner to be removed", || {
        !std::path::Path::new(&cgroup).exists()
    });
}

#[test]
fn a_task_of_another_runner_with_the_same_names_is_left_alone() {
    let one = Host::new();
    one.task(
        "1-task",
        "echo $$ >\"$HERE/pids\"; while ! test -e \"$HERE/go\"; do sleep 0.01; done",
    );
    let mut running = one.start(&["run", "-n", "1"]);
    running.until_written("pids");
    running.until_phase("task");
    // Another host with the same state, but for the run id: that is what tells them apart.
    let other = Host::new();
    other.task("1-task", "");
    fs_err::create_dir(other.path("state")).unwrap();
    other.chmod("state", 0o700);
    let mut state = one.state();
    state["attempt"]["run_id"] = "000001-00000000".into();
    state["attempt"]["cgroup"] = serde_json::Value::Null;
    other.write("state/state.json", state.to_string());
    other.run_once().assert_code(0);
    assert!(is_alive(pids(&one, "pids")[0]));
    one.write("go", "");
    running.wait().assert_code(0);
}

#[test]
fn run_ids_differ_between_runs_processes_and_hosts() {
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let host = Host::new();
        host.task("1-task", "echo $RUNNER_RUN_ID >>\"$HERE/ids\"");
        host.run(&["run", "-n", "3"]).assert_code(0);
        host.run(&["run", "-n", "2"]).assert_code(0);
        ids.extend(host.lines("ids"));
    }
    assert_eq!(ids.len(), 15);
}

#[test]
fn systemd_is_told_when_it_is_ready_that_it_lives_and_when_it_stops() {
    let host = Host::new();
    host.task(
        "1-task",
        "echo started >>\"$HERE/started\"; while ! test -e \"$HERE/go\"; do sleep 0.01; done",
    );
    let socket = UnixDatagram::bind(host.path("notify")).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let told = || {
        let mut message = [0; 256];
        let length = socket.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let mut command = host.command(&["run", "-n", "1"]);
    command.env("NOTIFY_SOCKET", host.path("notify"));
    command.env("WATCHDOG_USEC", "200000");
    let running = host.start_command(command);
    let first = told();
    let ready = if first.starts_with("WATCHDOG") {
        told()
    } else {
        first
    };
    assert!(ready.starts_with("READY=1"), "{ready}");
    // While a task runs and nothing else happens.
    for _ in 0..5 {
        let alive = told();
        assert!(alive.starts_with("WATCHDOG=1"), "{alive}");
    }
    host.write("go", "");
    let stopping = std::iter::repeat_with(told).find(|told| !told.starts_with("WATCHDOG=1"));
    assert!(stopping.unwrap().starts_with("STOPPING=1"));
    running.wait().assert_code(0);
    assert_eq!(host.lines("started"), ["started"]);
}
