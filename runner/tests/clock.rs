//! Clock jumps do not touch timeouts: the whole daemon, with a clock that jumps a day at each reading.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use farm_events::{Event, TaskFinished};
use jiff::{SignedDuration, Timestamp};
use runner::config::{Source, from_sources};
use runner::daemon::{self, Options};
use runner::exit::Exit;
use runner::host::Surroundings;
use runner::view::View;

/// Forth one day, back two, forth three: no two readings agree.
fn jumping_clock() -> Timestamp {
    static READINGS: AtomicI64 = AtomicI64::new(0);
    let reading = READINGS.fetch_add(1, Ordering::Relaxed);
    let days = if reading % 2 == 0 { reading } else { -reading };
    Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * (20_000 + days))
}

fn task(directory: &Path, name: &str, script: &str) {
    let path = directory.join("tasks.d").join(name);
    fs_err::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn clock_jumps_touch_neither_timeouts_nor_waits() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    fs_err::create_dir(here.join("tasks.d")).unwrap();
    task(here, "1-within-its-timeout", "sleep 0.2");
    task(here, "2-beyond-its-timeout", "sleep 1000");
    task(here, "3-after-a-wait", "[ \"$RUNNER_ATTEMPT\" = 2 ]");
    let text = format!(
        "[runner]\ntasks_dir = \"{0}/tasks.d\"\nstate_dir = \"{0}/state\"\nhalt_task = \"\"\n\
         [runner.backoff]\ninitial = \"20ms\"\nmax = \"20ms\"\n\
         [tasks.within-its-timeout]\ntimeout = \"1h\"\n\
         [tasks.beyond-its-timeout]\ntimeout = \"300ms\"\nmax_attempts = 1\ncontinue_on_failure = true\n",
        here.display()
    );
    let config = from_sources(vec![Source {
        path: "runner.toml".into(),
        text,
    }])
    .unwrap();
    let surroundings = Surroundings {
        program: env!("CARGO_BIN_EXE_runner").into(),
        config_path: None,
        tasks_dir: None,
        boot_id: "a-boot".into(),
        nonce: 1,
        clock: jumping_clock,
        metadata_endpoint: None,
    };
    let options = Options {
        runs: Some(1),
        halt_after: false,
    };

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    let ran = daemon::run(config, options, surroundings, View::new(false));
    let exit = local.block_on(&runtime, ran).unwrap();

    assert_eq!(exit, Exit::Done);
    let attempts: Vec<TaskFinished> = runner::history::last(&here.join("state"), 100, |_| true)
        .unwrap()
        .into_iter()
        .filter_map(|record| match record.event {
            Event::TaskFinished(finished) => Some(finished),
            _ => None,
        })
        .collect();
    let ended: Vec<_> = attempts
        .iter()
        .map(|attempt| {
            (
                attempt.task.as_str(),
                attempt.attempt,
                attempt.timed_out,
                attempt.outcome.as_str(),
            )
        })
        .collect();
    assert_eq!(
        ended,
        [
            ("1-within-its-timeout", 1, false, "ok"),
            ("2-beyond-its-timeout", 1, true, "retry"),
            ("3-after-a-wait", 1, false, "retry"),
            ("3-after-a-wait", 2, false, "ok"),
        ]
    );
    // What is measured is elapsed time, too: none of it is off by a day.
    assert!(
        attempts.iter().all(|attempt| attempt.duration_ms < 60_000),
        "{attempts:?}"
    );
}
