//! Attempts are counted per task, and a run goes on at the task that failed.

use farm_events::{Event, Outcome, RunResult};

use crate::host::Host;

/// Six tasks; the k-th runs `script` instead.
fn six(k: usize, script: &str) -> Host {
    let host = Host::new();
    for number in 1..=6 {
        host.task(
            format!("{number}-task"),
            if number == k { script } else { "" },
        );
    }
    host.task("halt", "");
    host
}

fn names(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers
        .into_iter()
        .map(|number| format!("{number}-task"))
        .collect()
}

fn run_results(host: &Host) -> Vec<RunResult> {
    host.history()
        .into_iter()
        .filter_map(|event| match event {
            Event::RunFinished(run) => Some(run.result),
            _ => None,
        })
        .collect()
}

#[test]
fn a_task_that_always_fails_ends_the_run_wherever_it_stands() {
    for k in 1..=6 {
        let host = six(k, "exit 1");
        let ended = host.run(&["run", "-n", "5"]);
        ended.assert_code(1);
        let mut expected = names(1..k);
        expected.extend(names([k, k, k]));
        expected.push("halt".into());
        assert_eq!(host.trace(), expected, "task {k} of 6");
        assert_eq!(run_results(&host), [RunResult::Failed], "task {k} of 6");
        assert!(!ended.err.to_lowercase().contains("done"), "{}", ended.err);
        let numbers: Vec<_> = host
            .attempts(&format!("{k}-task"))
            .iter()
            .map(|attempt| attempt.attempt)
            .collect();
        assert_eq!(numbers, [1, 2, 3]);
    }
}

/// The original added the index of the failed task to the index it had started from, so that only
/// the first two tasks were ever tried again: the third was skipped and the run called a success.
#[test]
fn a_task_that_fails_once_is_tried_again_and_no_other_is() {
    for k in 1..=6 {
        let host = six(k, "test \"$RUNNER_ATTEMPT\" -gt 1");
        host.run_once().assert_code(0);
        let mut expected = names(1..=k);
        expected.extend(names(k..=6));
        assert_eq!(host.trace(), expected, "task {k} of 6");
        assert_eq!(run_results(&host), [RunResult::Done]);
    }
}

#[test]
fn every_task_has_all_its_attempts_whatever_the_others_used() {
    let host = Host::new();
    for number in 1..=6 {
        host.task(
            format!("{number}-task"),
            "test \"$RUNNER_ATTEMPT\" -eq \"$RUNNER_MAX_ATTEMPTS\"",
        );
    }
    host.run_once().assert_code(0);
    assert_eq!(
        host.trace(),
        names([1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6])
    );
}

#[test]
fn there_is_no_wait_after_the_last_attempt() {
    let host = Host::new();
    host.task("1-task", "exit 1");
    host.set(
        "[runner]\nmax_attempts = 1\n[runner.backoff]\ninitial = \"1000h\"\nmax = \"1000h\"\n",
    );
    host.run_once().assert_code(1);
    let attempts = host.attempts("1-task");
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0].delay_ms, None);
    assert_eq!(attempts[0].outcome, Outcome::Retry);
}

#[test]
fn the_same_seed_gives_the_same_waits_in_two_processes() {
    let delays = |seed: u32| {
        let host = Host::new();
        host.task("1-task", "exit 1");
        host.set(&format!(
            "[runner]\nmax_attempts = 8\n[runner.backoff]\nmax = \"9ms\"\nseed = {seed}\n"
        ));
        host.run_once().assert_code(1);
        let delays: Vec<_> = host
            .attempts("1-task")
            .iter()
            .filter_map(|attempt| attempt.delay_ms)
            .collect();
        assert_eq!(delays.len(), 7);
        delays
    };
    let [one, again, other] = [1, 1, 2].map(delays);
    assert_eq!(one, again);
    assert_ne!(one, other);
}

#[test]
fn the_next_run_begins_with_the_first_task_and_fresh_attempts() {
    let host = Host::new();
    host.task("1-first", "");
    host.task("2-flaky", "test \"$RUNNER_ATTEMPT\" -eq 3");
    host.run(&["run", "-n", "2"]).assert_code(0);
    let run = ["1-first", "2-flaky", "2-flaky", "2-flaky"];
    assert_eq!(host.trace(), [run, run].concat());
}

#[test]
fn each_run_has_the_tasks_that_are_in_the_directory_when_it_begins() {
    let host = Host::new();
    host.task(
        "1-swap",
        "cd \"$HERE\" && if test -e 3-new; then rm tasks.d/2-old; mv 3-new tasks.d; fi",
    );
    host.task("2-old", "");
    host.task("3-new", "");
    fs_err::rename(host.path("tasks.d/3-new"), host.path("3-new")).unwrap();
    host.set("[runner]\nmax_attempts = 1\n");
    // The first run had a task `2-old` when it began: that it is gone is a failure, not silence.
    host.run(&["run", "-n", "1"]).assert_code(1);
    assert!(host.attempts("2-old")[0].error.is_some());
    host.run(&["run", "-n", "2"]).assert_code(0);
    assert_eq!(
        host.trace(),
        ["1-swap", "1-swap", "3-new", "1-swap", "3-new"]
    );
}

#[test]
fn without_a_number_of_runs_it_goes_on_until_it_is_stopped() {
    let host = Host::new();
    host.task("1-task", "");
    let mut running = host.start(&["run"]);
    running.until("ten runs", |host| host.trace().len() >= 10);
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait().assert_code(0);
}
