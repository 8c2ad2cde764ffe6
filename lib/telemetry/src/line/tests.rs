use std::collections::BTreeMap;

use farm_events::{Event, Heartbeat, HookFailed, Identity, Outcome, RebootDecided, TaskFinished};
use proptest::prelude::*;

use super::*;
use crate::tests::record;

/// A line taken apart by the rules, and nothing but the rules, of the protocol.
#[derive(Debug, PartialEq)]
struct Point {
    measurement: String,
    tags: BTreeMap<String, String>,
    fields: BTreeMap<String, Field>,
    time: i64,
}

#[derive(Debug, PartialEq)]
enum Field {
    Integer(i64),
    Float(f64),
    Bool(bool),
    Text(String),
}

/// A strict parser: what any server might refuse, it refuses.
struct Parser<'a>(std::iter::Peekable<std::str::Chars<'a>>);

impl Parser<'_> {
    fn point(line: &str) -> Result<Point, String> {
        if line.chars().any(char::is_control) {
            return Err("control character".into());
        }
        let mut parser = Parser(line.chars().peekable());
        let (measurement, mut end) = parser.word(",= ")?;
        let mut tags = BTreeMap::new();
        while end == Some(',') {
            let (key, equals) = parser.word(",= ")?;
            if equals != Some('=') {
                return Err(format!("tag `{key}` without value"));
            }
            let (value, next) = parser.word(",= ")?;
            end = next;
            if tags.insert(key.clone(), value).is_some() {
                return Err(format!("tag `{key}` twice"));
            }
        }
        if end != Some(' ') {
            return Err(format!("expected a space before the fields, found {end:?}"));
        }
        let mut fields = BTreeMap::new();
        loop {
            let (key, equals) = parser.word(",= ")?;
            if equals != Some('=') {
                return Err(format!("field `{key}` without value"));
            }
            let (value, end) = parser.field()?;
            if fields.insert(key.clone(), value).is_some() {
                return Err(format!("field `{key}` twice"));
            }
            match end {
                Some(',') => {}
                Some(' ') => break,
                other => return Err(format!("unexpected {other:?} after a field")),
            }
        }
        let time: String = parser.0.collect();
        let time = time.parse().map_err(|_| format!("time `{time}`"))?;
        Ok(Point {
            measurement,
            tags,
            fields,
            time,
        })
    }

    /// A word up to one of `ends`, which a backslash makes part of it.
    fn word(&mut self, ends: &str) -> Result<(String, Option<char>), String> {
        let mut word = String::new();
        loop {
            match self.0.next() {
                Some('\\') => match self.0.next() {
                    Some(next) if ends.contains(next) => word.push(next),
                    other => return Err(format!("backslash before {other:?}")),
                },
                Some(end) if ends.contains(end) => return finish(word, Some(end)),
                Some(other) => word.push(other),
                None => return finish(word, None),
            }
        }
    }

    fn field(&mut self) -> Result<(Field, Option<char>), String> {
        if self.0.next_if_eq(&'"').is_some() {
            let mut text = String::new();
            loop {
                match self.0.next().ok_or("text does not end")? {
                    '"' => return Ok((Field::Text(text), self.0.next())),
                    '\\' => match self.0.next() {
                        Some(next @ ('"' | '\\')) => text.push(next),
                        other => return Err(format!("backslash before {other:?}")),
                    },
                    other => text.push(other),
                }
            }
        }
        let (word, end) = self.word(", ")?;
        let field = match (word.as_str(), word.strip_suffix('i')) {
            ("true", _) => Field::Bool(true),
            ("false", _) => Field::Bool(false),
            (_, Some(digits)) => Field::Integer(digits.parse().map_err(|_| word.clone())?),
            (_, None) => Field::Float(word.parse().map_err(|_| word.clone())?),
        };
        Ok((field, end))
    }
}

fn finish(word: String, end: Option<char>) -> Result<(String, Option<char>), String> {
    if word.is_empty() {
        Err("empty word".into())
    } else {
        Ok((word, end))
    }
}

/// What a reader gets back for a tag.
fn as_tag(text: &str) -> String {
    let replaced = text.replace('\\', "/");
    replaced
        .chars()
        .map(|character| {
            if character.is_control() {
                '_'
            } else {
                character
            }
        })
        .collect()
}

/// What a reader gets back for a text field.
fn as_text(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect()
}

/// Text with what is special in the protocol more often than by chance.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        r#"[a-z,= \\"\n\r\t]{0,12}"#,
        Just("ends in \\".to_owned()),
        Just(String::new()),
    ]
}

fn identity() -> impl Strategy<Value = Identity> {
    [hostile(), hostile(), hostile(), hostile(), hostile()].prop_map(
        |[host, pool, image, region, instance_id]| Identity {
            host,
            pool,
            image,
            region,
            instance_id,
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (
            hostile(),
            any::<Option<i32>>(),
            any::<u64>(),
            proptest::option::of(hostile())
        )
            .prop_map(|(task, exit_code, duration_ms, error)| {
                TaskFinished {
                    task,
                    outcome: Outcome::Retry,
                    run_id: "r".into(),
                    attempt: 1,
                    max_attempts: 5,
                    exit_code,
                    signal: None,
                    timed_out: true,
                    stopped: false,
                    duration_ms,
                    delay_ms: None,
                    output_bytes: 0,
                    leftovers: 0,
                    error,
                }
                .into()
            }),
        (hostile(), any::<f64>()).prop_map(|(phase, load_1m)| {
            Heartbeat {
                phase,
                task: None,
                runs_since_boot: 1,
                uptime_ms: 2,
                load_1m,
                memory_used_bytes: 3,
                spool_dropped: 4,
            }
            .into()
        }),
        (hostile(), hostile()).prop_map(|(task, error)| {
            HookFailed {
                task,
                error,
                run_id: String::new(),
            }
            .into()
        }),
        (
            hostile(),
            proptest::option::of(hostile()),
            proptest::option::of(hostile())
        )
            .prop_map(|(decision, reason, pattern)| {
                RebootDecided {
                    decision,
                    reason,
                    pattern,
                    job: None,
                    run_id: String::new(),
                }
                .into()
            }),
    ]
}

fn any_record() -> impl Strategy<Value = Record> {
    (identity(), event(), any::<i64>()).prop_map(|(identity, event, time)| Record {
        time: jiff::Timestamp::from_nanosecond(time.into()).expect("64 bits of nanoseconds fit"),
        identity,
        event,
    })
}

proptest! {
    #[test]
    fn every_line_reads_back_as_the_record(record in any_record()) {
        let line = to_line(&record);
        let point = Parser::point(&line).map_err(|error| {
            TestCaseError::fail(format!("{error} in {line:?}"))
        })?;
        prop_assert_eq!(point.measurement, record.event.name());
        prop_assert_eq!(i128::from(point.time), record.time.as_nanosecond());

        let columns = record.event.columns();
        let mut tags: BTreeMap<String, String> = record
            .identity
            .tags()
            .map(|(name, value)| (name.to_owned(), as_tag(value)))
            .collect();
        let mut fields = BTreeMap::from([("n".to_owned(), Field::Integer(1))]);
        for column in &columns {
            match (column.role, column.value) {
                (Role::Tag, Value::Text(text)) => {
                    tags.insert(column.name.into(), as_tag(text));
                }
                (Role::Tag, other) => panic!("no event has a tag like {other:?}"),
                (Role::Field, Value::Text(text)) => {
                    fields.insert(column.name.into(), Field::Text(as_text(text)));
                }
                (Role::Field, Value::Integer(number)) => {
                    fields.insert(column.name.into(), Field::Integer(number));
                }
                (Role::Field, Value::Float(number)) => {
                    fields.insert(column.name.into(), Field::Float(number));
                }
                (Role::Field, Value::Bool(yes)) => {
                    fields.insert(column.name.into(), Field::Bool(yes));
                }
            }
        }
        prop_assert_eq!(point.tags, tags);
        prop_assert_eq!(point.fields, fields);
    }
}

#[test]
fn a_record_is_one_line_with_nanoseconds_and_n() {
    insta::assert_snapshot!(to_line(&record(7)));
}

#[test]
fn an_event_without_any_text_still_has_a_field() {
    let event = HookFailed {
        task: String::new(),
        error: String::new(),
        run_id: String::new(),
    };
    let record = Record {
        event: event.into(),
        identity: Identity::default(),
        ..record(0)
    };
    assert_eq!(to_line(&record), "hook_failed n=1i 1795143600000000000");
}

#[test]
fn special_characters_of_tags_are_escaped_and_backslashes_replaced() {
    let identity = Identity {
        pool: "a b,c=d\\".into(),
        ..Identity::default()
    };
    let line = to_line(&Record {
        identity,
        ..record(0)
    });
    assert!(
        line.starts_with("task_finished,pool=a\\ b\\,c\\=d/,task="),
        "{line}"
    );
}

#[test]
fn the_reference_parser_refuses_what_servers_refuse() {
    for bad in [
        "",
        "m",
        "m n=1i",
        "m,t= n=1i 1",
        "m,t=a\\ n=1i 1",
        "m n=1x 1",
        "m n=\"a 1",
        "m n=1i,n=2i 1",
        "m,t=a,t=b n=1i 1",
        "m n=1i 1\n",
        "m n=1i one",
    ] {
        assert!(Parser::point(bad).is_err(), "{bad:?}");
    }
}
