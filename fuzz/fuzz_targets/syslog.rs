//! Any record as a syslog line, read back by a strict reader.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use farm_events::{Event, Outcome};
use farm_fuzz::record::AnyRecord;
use farm_fuzz::syslog::{parse, words};
use farm_telemetry::syslog::{Facility, SD_ID, Speaker, format_5424, format_local};
use libfuzzer_sys::fuzz_target;

#[derive(Debug)]
struct Input {
    record: AnyRecord,
    app_name: String,
    process_id: u32,
    longest: usize,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self {
            process_id: u.arbitrary()?,
            // From what RFC 5424 demands of every receiver to what TCP is given.
            longest: u.int_in_range(480..=8000)?,
            app_name: u.arbitrary()?,
            record: u.arbitrary()?,
        })
    }
}

fuzz_target!(|input: Input| {
    let Input {
        record: AnyRecord(record),
        app_name,
        process_id,
        longest,
    } = input;
    let speaker = Speaker {
        facility: Facility::Local7,
        app_name,
        process_id,
    };

    let line = format_5424(&record, &speaker, longest);
    check_characters(&line, longest);
    let frame = parse(&line).unwrap_or_else(|error| panic!("{error}\nin {line:?}"));
    assert_eq!(frame.process_id, process_id.to_string());
    assert_eq!(frame.priority / 8, 23);
    assert!(frame.text.starts_with(&frame.message_id), "{line:?}");
    let is_retry =
        matches!(&record.event, Event::TaskFinished(task) if task.outcome == Outcome::Retry);
    let name = if is_retry {
        "RETRY".into()
    } else {
        record.event.name().to_uppercase()
    };
    assert_eq!(frame.message_id, name);
    if is_retry {
        assert!(
            frame.text.starts_with("RETRY task="),
            "not to be found by grep: {line:?}"
        );
    }
    // What is cut ends at a character of at most four bytes, of which the last one fitted.
    let is_whole = line.len() + 3 < longest;
    if is_whole {
        let (_, pairs) = words(&frame.text).unwrap_or_else(|error| panic!("{error}\nin {line:?}"));
        if let Some((id, parameters)) = frame.data {
            assert_eq!(id, SD_ID);
            assert_eq!(parameters, pairs, "structured data and text differ");
        }
    }

    let local = format_local(&record, &speaker, longest);
    check_characters(&local, longest);
    assert!(
        local.ends_with(&format!(" time={}", record.time)),
        "{local:?}"
    );
});

fn check_characters(line: &str, longest: usize) {
    assert!(
        line.len() <= longest,
        "{} bytes, expected at most {longest}",
        line.len()
    );
    assert!(!line.contains(char::is_control), "{line:?}");
}
