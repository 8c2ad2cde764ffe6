//! Each signal in each phase: what becomes of the task, the run and the exit code.

use std::time::Duration;

use farm_events::{Event, RunResult};
use nix::sys::signal::Signal::{self, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use tokio::time::Instant;

use crate::host::{Ended, Host, Running, is_alive, pids};

/// Signals that ask to stop: once with the grace period, the second time without.
const GRACEFULLY: [&[Signal]; 2] = [&[SIGTERM], &[SIGINT]];
const AT_ONCE: [&[Signal]; 3] = [&[SIGTERM, SIGTERM], &[SIGINT, SIGINT], &[SIGTERM, SIGINT]];

/// A second is nothing against the grace period and the waits below, which are of minutes and more.
const PROMPT: Duration = Duration::from_secs(15);

/// Waits for a file of this host.
const WAIT: &str = "while ! test -e \"$HERE/go\"; do sleep 0.01; done";

fn send(running: &mut Running<'_>, signals: &[Signal]) {
    for (index, signal) in signals.iter().enumerate() {
        running.signal(*signal);
        // Two equal signals that are pending at once are one.
        running.until("the signal to be heard", |host| {
            host.read("stderr").matches("asked to stop").count() > index
        });
    }
}

/// Sends signals that ask to stop; returns how it ended.
fn stop(mut running: Running<'_>, signals: &[Signal]) -> Ended {
    let started = Instant::now();
    for (index, signal) in signals.iter().enumerate() {
        running.signal(*signal);
        if index + 1 < signals.len() {
            // Two equal signals that are pending at once are one.
            running.until_said("asked to stop");
        }
    }
    let ended = running.wait();
    assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
    ended
}

fn last_result(host: &Host) -> Option<RunResult> {
    host.history()
        .into_iter()
        .rev()
        .find_map(|event| match event {
            Event::RunFinished(run) => Some(run.result),
            _ => None,
        })
}

// --- in a task ---

/// A task that ends itself in good order on SIGTERM, unless it is `stubborn`.
fn in_task(stubborn: bool) -> Host {
    let host = Host::new();
    let trap = if stubborn {
        "trap '' TERM"
    } else {
        "trap 'echo cleaned >>\"$HERE/cleaned\"; exit 0' TERM"
    };
    host.task(
        "1-task",
        &format!("{trap}; echo $$ >>\"$HERE/pids\"; {WAIT}"),
    );
    host.task("2-next", "");
    host.task("halt", "");
    host.set("[runner]\ntimeout = \"0s\"\ngrace_period = \"10m\"\n");
    host
}

#[test]
fn in_a_task_the_first_signal_to_stop_ends_it_gracefully() {
    for signals in GRACEFULLY {
        let host = in_task(false);
        let mut running = host.start(&["run"]);
        running.until_written("pids");
        stop(running, signals).assert_code(0);
        assert_eq!(host.read("cleaned"), "cleaned\n", "{signals:?}");
        assert_eq!(host.trace(), ["1-task"]);
        assert_eq!(last_result(&host), Some(RunResult::Stopped));
        assert_eq!(host.phase(), "stopped");
    }
}

#[test]
fn in_a_task_the_second_signal_to_stop_ends_it_at_once() {
    for signals in AT_ONCE {
        let host = in_task(true);
        let mut running = host.start(&["run"]);
        running.until_written("pids");
        stop(running, signals).assert_code(0);
        assert!(!is_alive(pids(&host, "pids")[0]), "{signals:?}");
        assert_eq!(host.attempts("1-task")[0].signal, Some(9));
        assert_eq!(host.trace(), ["1-task"]);
    }
}

#[test]
fn a_task_that_ignores_the_first_signal_to_stop_is_killed_after_its_grace() {
    let host = in_task(true);
    host.set("[runner]\ntimeout = \"0s\"\ngrace_period = \"100ms\"\n");
    let mut running = host.start(&["run"]);
    running.until_written("pids");
    stop(running, &[SIGTERM]).assert_code(0);
    assert_eq!(host.attempts("1-task")[0].signal, Some(9));
}

#[test]
fn a_task_that_was_ended_by_request_is_not_said_to_have_failed() {
    let host = in_task(false);
    let mut running = host.start(&["run"]);
    running.until_written("pids");
    let ended = stop(running, &[SIGTERM]);
    assert_eq!(ended.count("no attempt is left"), 0, "{}", ended.err);
    assert_eq!(ended.count("task was ended by request"), 1, "{}", ended.err);
    assert!(host.attempts("1-task")[0].stopped);
}

#[test]
fn in_a_task_sighup_changes_the_next_run_and_not_this_one() {
    let host = in_task(false);
    let mut running = host.start(&["run", "-n", "2"]);
    running.until_written("pids");
    host.task("2-next", "echo $COLOUR >>\"$HERE/seen\"");
    host.set("[env]\nCOLOUR = \"red\"\n");
    running.signal(SIGHUP);
    running.until_said("will read the configuration again");
    host.write("go", "");
    running.wait().assert_code(0);
    assert_eq!(host.lines("seen"), ["", "red"]);
}

#[test]
fn in_a_task_sigusr1_says_what_goes_on_and_changes_nothing() {
    let host = in_task(false);
    let mut running = host.start(&["run", "-n", "1"]);
    running.until_written("pids");
    running.signal(SIGUSR1);
    running.until_said(r#"\"phase\":\"task\",\"task\":\"1-task\""#);
    host.write("go", "");
    running.wait().assert_code(0);
    assert_eq!(host.trace(), ["1-task", "2-next"]);
}

#[test]
fn in_a_task_without_a_job_sigusr2_stops_after_the_task() {
    let host = in_task(false);
    let mut running = host.start(&["run"]);
    running.until_written("pids");
    running.signal(SIGUSR2);
    running.until_said("will stop after the current job");
    assert!(is_alive(pids(&host, "pids")[0]));
    host.write("go", "");
    running.wait().assert_code(0);
    assert_eq!(host.trace(), ["1-task"]);
}

#[test]
fn in_a_task_with_a_job_sigusr2_stops_after_the_run() {
    let host = in_task(false);
    host.task(
        "1-task",
        &format!("echo $$ >>\"$HERE/pids\"; {WAIT}; echo job.name=last >>\"$RUNNER_OUTPUT\""),
    );
    let mut running = host.start(&["run"]);
    running.until_written("pids");
    running.signal(SIGUSR2);
    running.until_said("will stop after the current job");
    host.write("go", "");
    running.wait().assert_code(0);
    assert_eq!(host.trace(), ["1-task", "2-next"]);
    assert_eq!(last_result(&host), Some(RunResult::Done));
}

// --- in the wait between two attempts ---

/// A host that waits for hours after a failed attempt.
fn in_backoff() -> Host {
    let host = Host::new();
    host.task("1-fails", "exit 1");
    host.task("halt", "");
    host.set("[runner.backoff]\ninitial = \"1000h\"\nmax = \"1000h\"\nseed = 1\n");
    host
}

#[test]
fn in_a_backoff_every_signal_to_stop_and_a_drain_stop_at_once() {
    let drain: &[Signal] = &[SIGUSR2];
    for signals in GRACEFULLY.into_iter().chain([drain]) {
        let host = in_backoff();
        let mut running = host.start(&["run"]);
        running.until_phase("backoff");
        stop(running, signals).assert_code(0);
        assert_eq!(host.trace(), ["1-fails"], "{signals:?}");
        assert_eq!(last_result(&host), Some(RunResult::Stopped));
    }
}

#[test]
fn in_a_backoff_a_second_signal_does_no_harm() {
    let host = in_backoff();
    let mut running = host.start(&["run"]);
    running.until_phase("backoff");
    // Both before it can react.
    running.signal(SIGTERM);
    running.signal(SIGINT);
    running.wait().assert_code(0);
    assert_eq!(host.trace(), ["1-fails"]);
}

#[test]
fn in_a_backoff_sighup_and_sigusr1_leave_the_wait_alone() {
    for (signal, said) in [
        (SIGHUP, "will read the configuration again"),
        (SIGUSR1, r#"\"phase\":\"backoff\",\"task\":\"1-fails\""#),
    ] {
        let host = in_backoff();
        let mut running = host.start(&["run"]);
        running.until_phase("backoff");
        running.signal(signal);
        running.until_said(said);
        assert_eq!(host.phase(), "backoff");
        stop(running, &[SIGTERM]).assert_code(0);
        assert_eq!(host.trace(), ["1-fails"]);
    }
}

// --- in the hook ---

/// A host whose hook waits, before and after each task.
fn in_hook() -> Host {
    let host = Host::new();
    host.task("1-task", "");
    host.task("2-next", "");
    host.script(
        "hook",
        &format!("echo $$ >>\"$HERE/pids\"; {WAIT}; echo \"$1\" >>\"$HERE/told\""),
    );
    host.set(&format!(
        "[runner]\ntask_hook = \"{}\"\nhook_timeout = \"10m\"\ngrace_period = \"10m\"\n",
        host.path("hook").display()
    ));
    host
}

#[test]
fn in_the_hook_the_first_signal_to_stop_lets_it_finish_and_starts_no_task() {
    for signals in GRACEFULLY {
        let host = in_hook();
        let mut running = host.start(&["run"]);
        running.until_written("pids");
        send(&mut running, signals);
        host.write("go", "");
        running.wait().assert_code(0);
        assert!(host.trace().is_empty(), "{signals:?}");
        assert_eq!(host.lines("told").len(), 1);
        assert_eq!(last_result(&host), Some(RunResult::Stopped));
    }
}

#[test]
fn in_the_hook_the_second_signal_to_stop_ends_it_at_once() {
    for signals in AT_ONCE {
        let host = in_hook();
        let mut running = host.start(&["run"]);
        running.until_written("pids");
        stop(running, signals).assert_code(0);
        assert!(
            host.trace().is_empty() && !host.exists("told"),
            "{signals:?}"
        );
        assert!(!is_alive(pids(&host, "pids")[0]));
    }
}

#[test]
fn the_hook_after_a_task_that_was_ended_by_request_still_says_how_it_ended() {
    let host = in_hook();
    host.script("hook", "sleep 0.1; echo \"$1\" >>\"$HERE/told\"");
    host.task("1-task", ": >\"$HERE/started\"; sleep 1000");
    let mut running = host.start(&["run"]);
    running.until_file("started");
    stop(running, &[SIGTERM]).assert_code(0);
    let told = host.lines("told");
    assert_eq!(told.len(), 2);
    assert!(told[1].contains("\"result\":\"EXIT\""), "{told:?}");
}

#[test]
fn in_the_hook_sighup_and_sigusr1_change_nothing() {
    for (signal, said) in [
        (SIGHUP, "will read the configuration again"),
        (SIGUSR1, r#"\"phase\":\"hook\",\"task\":\"1-task\""#),
    ] {
        let host = in_hook();
        let mut running = host.start(&["run", "-n", "1"]);
        running.until_written("pids");
        running.signal(signal);
        running.until_said(said);
        host.write("go", "");
        running.wait().assert_code(0);
        assert_eq!(host.trace(), ["1-task", "2-next"], "{signal}");
    }
}

#[test]
fn in_the_hook_sigusr2_lets_its_task_run_and_stops_before_the_next() {
    let host = in_hook();
    let mut running = host.start(&["run"]);
    running.until_written("pids");
    running.signal(SIGUSR2);
    running.until_said("will stop after the current job");
    host.write("go", "");
    running.wait().assert_code(0);
    assert_eq!(host.trace(), ["1-task"]);
}

// --- while the host is halted ---

/// A host whose halt task waits, as `shutdown` does.
fn in_halt(halt: &str) -> Host {
    let host = Host::new();
    host.task("1-asks", "exit 2");
    host.task("halt", halt);
    host.set(
        "[runner]\ngrace_period = \"10m\"\nhalt_wait = \"10m\"\n[tasks.asks]\nmay_halt = true\n",
    );
    host
}

#[test]
fn while_the_halt_task_runs_signals_to_stop_end_it_without_an_alarm() {
    for signals in GRACEFULLY {
        let host = in_halt(&format!("echo $$ >>\"$HERE/pids\"; {WAIT}"));
        let mut running = host.start(&["run"]);
        running.until_written("pids");
        let ended = stop(running, signals);
        ended.assert_code(2);
        assert_eq!(ended.count("ERROR"), 0, "{}", ended.err);
    }
    for signals in AT_ONCE {
        let host = in_halt(&format!("trap '' TERM; echo $$ >>\"$HERE/pids\"; {WAIT}"));
        let mut running = host.start(&["run"]);
        running.until_written("pids");
        let ended = stop(running, signals);
        ended.assert_code(2);
        assert_eq!(ended.count("ERROR"), 0, "{}", ended.err);
        assert!(!is_alive(pids(&host, "pids")[0]));
    }
}

#[test]
fn after_the_halt_task_a_signal_to_stop_is_the_machine_going_down() {
    for signals in GRACEFULLY {
        let host = in_halt("");
        let mut running = host.start(&["run"]);
        running.until_said("waiting for the machine to go down");
        let ended = stop(running, signals);
        ended.assert_code(2);
        assert_eq!(ended.count("ERROR"), 0, "{}", ended.err);
    }
}

#[test]
fn while_the_host_is_halted_sighup_sigusr1_and_sigusr2_change_nothing() {
    for (signal, said) in [
        (SIGHUP, "will read the configuration again"),
        (SIGUSR1, r#"\"phase\":\"halt\",\"task\":\"halt\""#),
        (SIGUSR2, "will stop after the current job"),
    ] {
        let host = in_halt(&format!("echo $$ >>\"$HERE/pids\"; {WAIT}"));
        host.write("runner.d/60-short.toml", "[runner]\nhalt_wait = \"10ms\"\n");
        let mut running = host.start(&["run"]);
        running.until_written("pids");
        running.signal(signal);
        running.until_said(said);
        assert!(is_alive(pids(&host, "pids")[0]));
        host.write("go", "");
        let ended = running.wait();
        ended.assert_code(2);
        assert_eq!(
            ended.count("the machine is still up"),
            1,
            "{signal}\n{}",
            ended.err
        );
        assert_eq!(host.trace(), ["1-asks", "halt"]);
    }
}

#[test]
fn a_signal_to_stop_before_the_halt_task_leaves_the_host_up() {
    let host = in_halt("");
    host.task("2-last-words", &format!("echo $$ >>\"$HERE/pids\"; {WAIT}"));
    host.set("[tasks.asks]\nmay_halt = true\n[tasks.last-words]\nwhen = \"before-reboot\"\n");
    let mut running = host.start(&["run"]);
    running.until_written("pids");
    // It did not halt, so it does not say so.
    stop(running, &[SIGTERM]).assert_code(0);
    assert_eq!(host.trace(), ["1-asks", "2-last-words"]);
    assert!(host.state()["halt"].is_null());
}

// --- reading the configuration again ---

#[test]
fn a_configuration_with_faults_is_reported_and_the_old_one_stays() {
    let host = in_task(false);
    host.task("2-next", "echo $COLOUR >>\"$HERE/seen\"");
    host.set("[env]\nCOLOUR = \"red\"\n");
    let mut running = host.start(&["run", "-n", "2"]);
    running.until_written("pids");
    host.set("[env]\nCOLOUR = \"blue\"\n[runner]\ntimeuot = \"5m\"\n");
    running.signal(SIGHUP);
    running.until_said("will read the configuration again");
    host.write("go", "");
    let ended = running.wait();
    ended.assert_code(0);
    assert_eq!(host.lines("seen"), ["red", "red"]);
    assert_eq!(ended.count("the old one stays"), 1);
    assert!(
        ended.err.contains("50-test.toml:4: ") && ended.err.contains("`timeuot`"),
        "{}",
        ended.err
    );
}

#[test]
fn the_next_run_takes_its_tasks_from_where_the_new_configuration_says() {
    let host = in_task(false);
    fs_err::create_dir(host.path("other.d")).unwrap();
    host.script("other.d/5-elsewhere", "echo elsewhere >>\"$HERE/trace\"");
    let mut running = host.start(&["run", "-n", "2"]);
    running.until_written("pids");
    let other = host.path("other.d").display().to_string();
    host.set(&format!(
        "[runner]\nstate_dir = \"/nonexistent/state\"\ntasks_dir = \"{other}\"\n"
    ));
    running.signal(SIGHUP);
    running.until_said("will read the configuration again");
    host.write("go", "");
    let ended = running.wait();
    ended.assert_code(0);
    assert_eq!(host.trace(), ["1-task", "2-next", "elsewhere"]);
    // The state stays where the lock is.
    assert_eq!(
        ended.count("`runner.state_dir` changes only when runner starts anew"),
        1
    );
    assert_eq!(host.state()["runs"], 2);
}
