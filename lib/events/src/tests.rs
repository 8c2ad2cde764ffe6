use std::path::Path;

use super::*;

fn record() -> Record {
    Record {
        time: "2026-11-20T03:00:00.000000007Z"
            .parse()
            .expect("a timestamp"),
        identity: Identity {
            host: "bld-1".into(),
            pool: "linux".into(),
            ..Identity::default()
        },
        event: TaskFinished {
            task: "10-update_repo".into(),
            outcome: Outcome::Retry,
            run_id: "r-1".into(),
            attempt: 2,
            max_attempts: 5,
            exit_code: Some(1),
            signal: None,
            timed_out: false,
            stopped: false,
            duration_ms: 1500,
            delay_ms: Some(30_000),
            output_bytes: 12,
            leftovers: 0,
            error: None,
        }
        .into(),
    }
}

#[test]
fn a_record_is_one_flat_json_object() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&record()).unwrap());
}

#[test]
fn a_record_survives_json() {
    let text = serde_json::to_string(&record()).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record());
}

#[test]
fn columns_that_are_not_known_are_left_out() {
    let record = record();
    let names: Vec<_> = record
        .event
        .columns()
        .into_iter()
        .map(|column| column.name)
        .collect();
    assert!(names.contains(&"exit_code"));
    assert!(!names.contains(&"signal"));
    assert!(!names.contains(&"error"));
}

#[test]
fn the_tags_of_an_identity_skip_what_is_not_known() {
    let tags: Vec<_> = record()
        .identity
        .tags()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(tags, ["host=bld-1", "pool=linux"]);
}

#[test]
fn the_reference_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/events.md");
    #[expect(
        clippy::disallowed_methods,
        reason = "a switch for whoever runs this test"
    )]
    if std::env::var("UPDATE_DOCS").is_ok() {
        std::fs::write(&path, reference_page()).unwrap();
    }
    #[expect(clippy::disallowed_methods, reason = "this crate does without fs_err")]
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        page == reference_page(),
        "docs/events.md is out of date: run `UPDATE_DOCS=1 cargo test -p farm-events`"
    );
}
