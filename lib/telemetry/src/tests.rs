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
            max_attempts: 5,
            exit_code: Some(1),
            signal: None,
            timed_out: false,
            stopped: false,
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

/// A sink whose server accepts and never answers.
fn slow(listener: &std::net::TcpListener) -> Config {
    let url = format!("http://{}", listener.local_addr().unwrap());
    let influx = InfluxConfig {
        url,
        bucket: "b".into(),
        ..InfluxConfig::default()
    };
    Config {
        influx: vec![influx],
        ..Config::default()
    }
}

#[test]
fn a_server_that_never_answers_delays_the_exit_by_a_second_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = slow(&listener);
    let telemetry = Telemetry::start(&config, dir.path()).unwrap();
    telemetry.record(&record(0));
    // The request has begun.
    let (_connection, _) = listener.accept().unwrap();
    let asked = Instant::now();
    telemetry.finish();
    assert!(
        asked.elapsed() < config.flush_on_exit,
        "{:?}",
        asked.elapsed()
    );
}

#[test]
fn what_one_sink_did_not_take_comes_at_the_next_start_and_the_others_do_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, out) = (dir.path().join("spool"), dir.path().join("out.jsonl"));
    let late = dir.path().join("not/there/yet.jsonl");
    let sink = |path: &Path| JsonlConfig {
        path: path.to_owned(),
    };
    let config = Config {
        jsonl: vec![sink(&out), sink(&late)],
        ..Config::default()
    };

    let telemetry = Telemetry::start(&config, &spool).unwrap();
    for number in 0..10 {
        telemetry.record(&record(number));
    }
    telemetry.finish();
    assert_eq!(numbers(&out), (0..10).collect::<Vec<_>>());

    fs_err::create_dir_all(late.parent().unwrap()).unwrap();
    let telemetry = Telemetry::start(&config, &spool).unwrap();
    assert!(telemetry.stats().pending_bytes > 0 || !numbers(&late).is_empty());
    telemetry.record(&record(10));
    telemetry.finish();
    assert_eq!(numbers(&out), (0..=10).collect::<Vec<_>>());
    assert_eq!(numbers(&late), (0..=10).collect::<Vec<_>>());
}

#[test]
fn statistics_name_each_sink_and_what_is_wrong_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good"), dir.path().join("no/dir"));
    let sink = |path: &Path| JsonlConfig {
        path: path.to_owned(),
    };
    let config = Config {
        jsonl: vec![sink(&good), sink(&bad)],
        ..Config::default()
    };
    let telemetry = Telemetry::start(&config, &dir.path().join("spool")).unwrap();
    telemetry.record(&record(0));
    let stats = loop {
        let stats = telemetry.stats();
        if stats.sinks[0].delivered == 1 && stats.sinks[1].failing_for.is_some() {
            break stats;
        }
        std::thread::yield_now();
    };
    assert_eq!(stats.sinks[0].last_error, None);
    assert_eq!(stats.sinks[1].name, format!("jsonl {}", bad.display()));
    assert!(
        stats.sinks[1]
            .last_error
            .as_ref()
            .unwrap()
            .contains("No such file")
    );
    assert!(stats.pending_bytes > 0);
    assert!(
        serde_json::to_string(&stats)
            .unwrap()
            .contains("\"failing_for\":\"")
    );
}

#[tokio::test]
async fn it_starts_and_ends_inside_of_another_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let telemetry = Telemetry::start(&jsonl(&out), &dir.path().join("spool")).unwrap();
    telemetry.record(&record(3));
    telemetry.finish();
    assert_eq!(numbers(&out), [3]);
}

#[test]
fn a_second_start_on_the_same_spool_is_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (out, spool) = (dir.path().join("out"), dir.path().join("spool"));
    let _first = Telemetry::start(&jsonl(&out), &spool).unwrap();
    let error = Telemetry::start(&jsonl(&out), &spool).unwrap_err();
    assert!(crate::sink::causes(&error).contains("in use by another process"));
}
