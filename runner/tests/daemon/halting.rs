//! Halting the host: whatever becomes of the halt task, it is bounded, said, and no next job starts.

use std::time::Duration;

use farm_events::Event;
use tokio::time::Instant;

use crate::host::{Ended, Host, is_alive, pids};

/// A task asks to halt in the first of many runs.
fn halts(halt: Option<&str>, settings: &str) -> (Host, Ended) {
    let host = Host::new();
    host.task("1-asks", "exit 2");
    host.task("2-job", "");
    if let Some(halt) = halt {
        host.task("halt", halt);
    }
    host.set(&format!(
        "[runner]\nhalt_wait = \"50ms\"\n[tasks.asks]\nmay_halt = true\n{settings}"
    ));
    let ended = host.run(&["run"]);
    ended.assert_code(2);
    assert!(!host.trace().contains(&"2-job".to_owned()));
    assert_eq!(
        host.trace().iter().filter(|task| *task == "1-asks").count(),
        1
    );
    (host, ended)
}

#[track_caller]
fn assert_said(ended: &Ended, text: &str) {
    assert_eq!(ended.count(text), 1, "{}", ended.err);
    assert_eq!(ended.count("ERROR"), 1, "{}", ended.err);
}

#[test]
fn a_halt_task_that_returns_while_the_machine_stays_up_is_reported() {
    let (host, ended) = halts(Some(""), "");
    assert_said(&ended, "the machine is still up; no job is taken");
    assert_eq!(host.trace(), ["1-asks", "halt"]);
    assert_eq!(host.state()["halt"]["reason"], "task `1-asks` asked for it");
}

#[test]
fn a_halt_task_that_fails_is_reported_and_not_repeated() {
    for script in ["exit 1", "exit 2", "exit 3", "kill -9 $$"] {
        let (host, ended) = halts(Some(script), "");
        assert_said(
            &ended,
            "the halt task failed: the host stays up and takes no job; halt it by hand",
        );
        assert_eq!(host.trace(), ["1-asks", "halt"], "{script}");
    }
}

#[test]
fn a_halt_task_that_hangs_is_ended_with_all_it_started() {
    let script =
        "trap '' TERM; setsid sleep 1000 & echo $! >>\"$HERE/pids\"; while :; do sleep 1000; done";
    let settings = "[tasks.halt]\ntimeout = \"100ms\"\ngrace_period = \"50ms\"\n";
    let (host, ended) = halts(Some(script), settings);
    assert_said(&ended, "the halt task failed");
    assert!(ended.err.contains("ran longer than its timeout"));
    assert!(pids(&host, "pids").into_iter().all(|pid| !is_alive(pid)));
}

#[test]
fn a_halt_task_without_a_timeout_is_bounded_all_the_same() {
    let settings = "[tasks.halt]\ntimeout = \"0s\"\ngrace_period = \"50ms\"\n";
    let started = Instant::now();
    let (_, ended) = halts(Some("trap '' TERM; while :; do sleep 1000; done"), settings);
    assert_said(&ended, "the halt task failed");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_halt_task_that_is_missing_is_reported() {
    let (host, ended) = halts(None, "");
    assert_said(&ended, "the halt task `halt` is not in");
    assert_eq!(host.trace(), ["1-asks"]);
}

#[test]
fn a_halt_task_that_cannot_be_started_is_reported() {
    let host = Host::new();
    host.task("1-asks", "exit 2");
    host.write("tasks.d/halt", "no program\n");
    host.set("[tasks.asks]\nmay_halt = true\n");
    let ended = host.run(&["run"]);
    ended.assert_code(2);
    assert_said(&ended, "the halt task failed");
}

#[test]
fn without_a_halt_task_by_configuration_the_runner_just_ends() {
    let host = Host::new();
    host.task("1-asks", "exit 2");
    host.task("halt", "");
    host.set("[runner]\nhalt_task = \"\"\nmax_attempts = 1\n[tasks.asks]\nmay_halt = true\n");
    // Nothing is special about a task called `halt` then.
    let ended = host.run(&["run"]);
    ended.assert_code(2);
    assert_eq!(ended.count("ERROR"), 0, "{}", ended.err);
    assert_eq!(host.trace(), ["1-asks"]);
}

#[test]
fn the_halt_task_has_the_name_that_is_configured() {
    let host = Host::new();
    host.task("1-asks", "exit 2");
    host.task("power-off.sh", "");
    host.set("[runner]\nhalt_task = \"power-off.sh\"\n[tasks.asks]\nmay_halt = true\n");
    host.run(&["run"]).assert_code(2);
    assert_eq!(host.trace(), ["1-asks", "power-off.sh"]);
}

#[test]
fn tasks_before_a_reboot_run_before_the_halt_task_and_cannot_prevent_it() {
    let host = Host::new();
    host.task("1-asks", "exit 2");
    host.task("5-fails", "exit 1");
    host.task("6-asks-too", "exit 2");
    host.task("7-exits", "exit 3");
    host.task("8-hangs", "exec sleep 1000");
    host.task("9-needs", "");
    host.task("halt", "");
    let before =
        |name: &str| format!("[tasks.{name}]\nwhen = \"before-reboot\"\nmax_attempts = 2\n");
    host.set(&format!(
        "[tasks.asks]\nmay_halt = true\n{}{}may_halt = true\n{}{}timeout = \"50ms\"\n{}depends_on = [\"hangs\"]\n",
        before("fails"), before("asks-too"), before("exits"), before("hangs"), before("needs")
    ));
    host.run(&["run"]).assert_code(2);
    assert_eq!(
        host.trace(),
        [
            "1-asks",
            "5-fails",
            "5-fails",
            "6-asks-too",
            "7-exits",
            "8-hangs",
            "8-hangs",
            "9-needs",
            "halt"
        ]
    );
}

#[test]
fn a_halt_after_the_last_run_needs_a_number_of_runs() {
    let host = Host::new();
    host.task("1-task", "");
    host.task("halt", "");
    host.run(&["run", "-H"]).assert_code(64);
    assert!(host.trace().is_empty());
    let ended = host.run(&["run", "-n", "2", "-H"]);
    ended.assert_code(2);
    assert_eq!(host.trace(), ["1-task", "1-task", "halt"]);
    assert_eq!(host.state()["halt"]["reason"], "2 runs are done");
}

#[test]
fn a_task_that_failed_for_good_halts_the_host_and_the_exit_code_says_so() {
    let host = Host::new();
    host.task("1-fails", "exit 1");
    host.task("halt", "");
    host.set("[runner]\nmax_attempts = 2\n");
    let ended = host.run(&["run"]);
    ended.assert_code(1);
    assert_eq!(host.trace(), ["1-fails", "1-fails", "halt"]);
    assert_eq!(
        host.state()["halt"]["reason"],
        "task `1-fails` failed at every attempt"
    );
}

#[test]
fn the_next_boot_knows_why_the_host_was_halted_and_for_how_long() {
    let (host, _) = halts(Some("echo $RUNNER_TASK"), "");
    let boot_id = host.state()["boot_id"].as_str().unwrap().to_owned();
    let state = host
        .read("state/state.json")
        .replace(&boot_id, "the-boot-before");
    host.write("state/state.json", state);
    host.run(&["run"]).assert_code(2);
    let booted: Vec<_> = host
        .history()
        .into_iter()
        .filter_map(|event| match event {
            Event::HostBooted(booted) => Some(booted),
            _ => None,
        })
        .collect();
    assert_eq!(booted.len(), 2);
    assert_eq!(
        (booted[0].gap_ms, &booted[0].previous_boot_id),
        (None, &None)
    );
    assert_eq!(
        booted[1].previous_boot_id.as_deref(),
        Some("the-boot-before")
    );
    assert_eq!(
        booted[1].halt_reason.as_deref(),
        Some("task `1-asks` asked for it")
    );
    assert!(booted[1].gap_ms.is_some());
}

#[test]
fn reboots_because_of_failures_stop_when_their_budget_is_spent() {
    let host = Host::new();
    host.task("1-fails", "exit 1");
    host.task("halt", "");
    host.set("[runner]\nmax_attempts = 1\n[reboot]\nbudget = 2\n");
    for boot in 1..=3 {
        let ended = host.run(&["run"]);
        ended.assert_code(1);
        assert_eq!(
            ended.count("rebooted too often"),
            usize::from(boot == 3),
            "{}",
            ended.err
        );
        // The machine comes up again, as after a reboot.
        let boot_id = host.state()["boot_id"].as_str().unwrap().to_owned();
        let state = host
            .read("state/state.json")
            .replace(&boot_id, &format!("boot-{boot}"));
        host.write("state/state.json", state);
    }
    assert_eq!(
        host.trace().iter().filter(|task| *task == "halt").count(),
        2
    );
    let held_back = host.history().into_iter().any(|event| {
        matches!(event, Event::RebootDecided(decided)
            if decided.decision == "go_on" && decided.reason.as_deref() == Some("budget_spent"))
    });
    assert!(held_back);
}
