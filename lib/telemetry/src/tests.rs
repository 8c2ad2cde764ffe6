use std::path::Path;

use farm_events::{Identity, Outcome, Record, TaskFinished};

use super::*;

/// Number `number` of a series of records that can be told apart.
pub(crate) fn record(number: u32) -> Record {
    let start: jiff::Timestamp = "2026-11-20T03:00:00Z".parse().expect("a timestamp");
    Record {
        time: start + Duration::from_micros(u64::from(number)),
        identity: Identity {
            host: "bld-1".into(),
            pool: "linux".into(),
            ..Identity::default()
        },
        event: TaskFinished {
            task: "10-update_repo".into(),
            outcome: Outcome::Retry,
            run_id: "r-1".into(),
            attempt: number,
            exit_code: Some(1),
            signal: None,
            timed_out: false,
            duration_ms: 1500,
            delay_ms: Some(12_300),
            output_bytes: 12,
            leftovers: 0,
            error: None,
        }
        .into(),
    }
}

/// The numbers of the records in a file of JSON lines.
pub(crate) fn numbers(path: &Path) -> Vec<u32> {
    let text = fs_err::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| {
            let record: Record = serde_json::from_str(line).expect("a record");
            number(&record)
        })
        .collect()
}

/// The number that [`record`] was given.
pub(crate) fn number(record: &Record) -> u32 {
    let farm_events::Event::TaskFinished(task) = &record.event else {
        panic!("not made by `record`: {record:?}");
    };
    task.attempt
}

fn jsonl(path: &Path) -> Config {
    Config {
        jsonl: vec![JsonlConfig { path: path.into() }],
        ..Config::default()
    }
}

#[test]
fn every_record_reaches_the_file_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("events.jsonl");
    let telemetry = Telemetry::start(&jsonl(&out), &dir.path().join("spool")).unwrap();
    for number in 0..1000 {
        telemetry.record(&record(number));
    }
    telemetry.finish();
    assert_eq!(numbers(&out), (0..1000).collect::<Vec<_>>());
}

#[test]
fn without_sinks_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    let telemetry = Telemetry::start(&Config::default(), &spool).unwrap();
    telemetry.record(&record(1));
    assert_eq!(telemetry.stats(), Stats::default());
    telemetry.finish();
    assert!(!spool.exists());
}
