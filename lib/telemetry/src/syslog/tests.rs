use farm_events::{Heartbeat, HookFailed, Identity, RunFinished};
use proptest::prelude::*;

use super::*;
use crate::tests::record;

const LONG: usize = 8000;

fn speaker() -> Speaker {
    Speaker {
        facility: Facility::Daemon,
        app_name: "runner".into(),
        process_id: 99,
    }
}

fn retry(change: impl FnOnce(&mut TaskFinished)) -> Record {
    let mut record = record(2);
    if let Event::TaskFinished(task) = &mut record.event {
        change(task);
    }
    record
}

#[test]
fn a_retry_is_one_stable_line_with_the_same_keys_as_structured_data() {
    insta::assert_snapshot!(format_5424(&record(2), &speaker(), LONG), @r#"<28>1 2026-11-20T03:00:00.000002Z bld-1 runner 99 RETRY [farmhand@32473 task="10-update_repo" attempt="2" max_attempts="5" code="1" delay="12.3s"] RETRY task=10-update_repo attempt=2 max_attempts=5 code=1 delay=12.3s"#);
}

#[test]
fn the_local_form_has_no_header_of_its_own_and_ends_with_the_time() {
    insta::assert_snapshot!(format_local(&record(2), &speaker(), LONG), @"<28>runner[99]: RETRY task=10-update_repo attempt=2 max_attempts=5 code=1 delay=12.3s time=2026-11-20T03:00:00.000002Z");
}

#[test]
fn the_code_of_a_retry_says_how_the_attempt_ended() {
    let code = |change: fn(&mut TaskFinished)| {
        let line = format_local(&retry(change), &speaker(), LONG);
        line.split_once(" code=")
            .unwrap()
            .1
            .split_once(' ')
            .unwrap()
            .0
            .to_owned()
    };
    assert_eq!(code(|task| task.exit_code = Some(255)), "255");
    assert_eq!(
        code(|task| (task.exit_code, task.signal) = (None, Some(9))),
        "signal:9"
    );
    assert_eq!(
        code(|task| (task.exit_code, task.signal, task.timed_out) = (None, Some(15), true)),
        "timeout"
    );
    assert_eq!(
        code(|task| (task.exit_code, task.error) = (None, Some("no such file".into()))),
        "spawn"
    );
}

#[test]
fn the_delay_of_a_retry_is_rounded_to_tenths_and_none_after_the_last_attempt() {
    let delay = |delay_ms: Option<u64>| {
        let line = format_local(&retry(|task| task.delay_ms = delay_ms), &speaker(), LONG);
        line.split_once(" delay=")
            .unwrap()
            .1
            .split_once(' ')
            .unwrap()
            .0
            .to_owned()
    };
    assert_eq!(delay(Some(0)), "0.0s");
    assert_eq!(delay(Some(49)), "0.0s");
    assert_eq!(delay(Some(50)), "0.1s");
    assert_eq!(delay(Some(60_000)), "60.0s");
    assert_eq!(delay(Some(u64::MAX)), "18446744073709551.6s");
    assert_eq!(delay(None), "none");
}

#[test]
fn other_events_are_their_name_and_their_columns() {
    let heartbeat = Heartbeat {
        phase: "task".into(),
        task: Some("20 build".into()),
        runs_since_boot: 3,
        uptime_ms: 4,
        load_1m: 0.5,
        memory_used_bytes: 6,
        spool_dropped: 0,
    };
    let record = Record {
        event: heartbeat.into(),
        ..record(0)
    };
    insta::assert_snapshot!(format_local(&record, &speaker(), LONG), @r#"<30>runner[99]: HEARTBEAT phase=task task="20 build" runs_since_boot=3 uptime_ms=4 load_1m=0.5 memory_used_bytes=6 spool_dropped=0 time=2026-11-20T03:00:00Z"#);
}

#[test]
fn a_failed_run_is_an_error_and_a_good_one_is_not() {
    let run = |result| Record {
        event: RunFinished {
            result,
            run_id: "r-1".into(),
            task: None,
            runs_since_boot: 1,
            attempts: 1,
            duration_ms: 1,
        }
        .into(),
        ..record(0)
    };
    let line = |result| format_local(&run(result), &speaker(), LONG);
    assert!(line(RunResult::Failed).starts_with("<27>"));
    for result in [
        RunResult::Done,
        RunResult::Halted,
        RunResult::Exited,
        RunResult::Stopped,
    ] {
        assert!(line(result).starts_with("<30>"), "{result}");
    }
}

#[test]
fn a_line_break_in_a_task_name_cannot_forge_a_line() {
    let record = retry(|task| task.task = "a\n<0>1 - evil".into());
    let line = format_5424(&record, &speaker(), LONG);
    assert!(!line.contains('\n'));
    assert!(line.contains("task=\"a\u{fffd}<0>1 - evil\""), "{line}");
}

#[test]
fn what_is_too_long_is_cut_at_a_character_and_marked() {
    let hook = |error: String| Record {
        event: HookFailed {
            task: "10-a".into(),
            error,
            run_id: "r".into(),
        }
        .into(),
        ..record(0)
    };
    let line = format_5424(&hook("ü".repeat(2000)), &speaker(), 1023);
    assert!(line.len() <= 1023 && line.len() > 1000, "{}", line.len());
    assert!(line.ends_with("ü…"), "{line}");
    assert!(
        line.contains(" - HOOK_FAILED task=10-a error=ü"),
        "no room for both: {line}"
    );
}

#[test]
fn a_host_name_that_is_no_header_word_is_made_one() {
    let identity = Identity {
        host: "bld 1\nü".into(),
        ..Identity::default()
    };
    let line = format_5424(
        &Record {
            identity,
            ..record(0)
        },
        &speaker(),
        LONG,
    );
    assert!(line.contains("Z bld_1__ runner 99 "), "{line}");
    let nameless = Record {
        identity: Identity::default(),
        ..record(0)
    };
    assert!(format_5424(&nameless, &speaker(), LONG).contains("Z - runner 99 "));
}

/// The structured data of a line, by the grammar of RFC 5424; `None` if it breaks it.
fn structured_data(line: &str) -> Option<Vec<(String, String)>> {
    let mut header = line.splitn(7, ' ');
    let version = header.next()?.strip_prefix('<')?.split_once('>')?;
    version
        .0
        .parse::<u8>()
        .ok()
        .filter(|priority| *priority < 192)?;
    (version.1 == "1").then_some(())?;
    header.next()?.parse::<jiff::Timestamp>().ok()?;
    for longest in [255, 48, 128, 32] {
        let word = header.next()?;
        let fits = (1..=longest).contains(&word.len());
        (fits && word.bytes().all(|byte| byte.is_ascii_graphic())).then_some(())?;
    }
    let rest = header.next()?;
    if rest.starts_with("- ") {
        return Some(Vec::new());
    }
    let mut rest = rest.strip_prefix("[farmhand@32473")?.chars();
    let mut pairs = Vec::new();
    loop {
        match rest.next()? {
            ']' => return (rest.next()? == ' ').then_some(pairs),
            ' ' => {}
            _ => return None,
        }
        let key: String = rest.by_ref().take_while(|next| *next != '=').collect();
        (rest.next()? == '"').then_some(())?;
        let mut value = String::new();
        loop {
            match rest.next()? {
                '"' => break,
                ']' => return None,
                '\\' => value.push(rest.next().filter(|next| "\"\\]".contains(*next))?),
                other => value.push(other),
            }
        }
        pairs.push((key, value));
    }
}

proptest! {
    #[test]
    fn every_line_is_rfc_5424_in_its_bounds(
        task in r#"([a-z \]\\"=\n]|\PC|\x1b){0,300}"#,
        host in any::<String>(),
        longest in 600usize..2000,
    ) {
        let mut record = retry(|finished| finished.task = task.clone());
        record.identity.host = host;
        let line = format_5424(&record, &speaker(), longest);
        prop_assert!(line.len() <= longest);
        prop_assert!(!line.contains(char::is_control));
        let pairs = structured_data(&line);
        prop_assert!(pairs.is_some(), "{}", line);
        if let Some((key, value)) = pairs.unwrap_or_default().first() {
            prop_assert_eq!(key, "task");
            prop_assert_eq!(value, &task.replace(char::is_control, "\u{fffd}"));
        }
    }
}
