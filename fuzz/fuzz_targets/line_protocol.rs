//! Any record as line protocol, read back by a strict reader.
#![no_main]

use farm_events::{Role, Value as Ours};
use farm_fuzz::line::{self, Value};
use farm_fuzz::record::AnyRecord;
use farm_telemetry::line::to_line;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|any: AnyRecord| {
    let AnyRecord(record) = any;
    let line = to_line(&record);
    let point = line::parse(&line).unwrap_or_else(|error| panic!("{error}\nin {line:?}"));
    assert_eq!(point.measurement, record.event.name());
    let columns = record.event.columns();
    let tags = record
        .identity
        .tags()
        .map(|(name, value)| (name.to_owned(), tag(value)));
    let own_tags = columns
        .iter()
        .filter(|column| column.role == Role::Tag)
        .map(|column| {
            let Ours::Text(value) = column.value else {
                panic!("a tag that is no text")
            };
            (column.name.to_owned(), tag(value))
        });
    assert_eq!(point.tags, tags.chain(own_tags).collect::<Vec<_>>());
    let fields = columns.iter().filter(|column| column.role == Role::Field);
    let fields = fields.map(|column| (column.name.to_owned(), field(column.value)));
    let n = ("n".to_owned(), Value::Integer(1));
    assert_eq!(
        point.fields,
        std::iter::once(n).chain(fields).collect::<Vec<_>>()
    );
    let exact = record.time.as_nanosecond();
    let bounded = exact.clamp(i64::MIN.into(), i64::MAX.into());
    assert_eq!(i128::from(point.time), bounded);
});

fn tag(value: &str) -> String {
    value.replace('\\', "/").replace(char::is_control, "_")
}

fn field(value: Ours<'_>) -> Value {
    match value {
        Ours::Text(text) => Value::Text(text.replace(char::is_control, " ")),
        Ours::Integer(number) => Value::Integer(number),
        Ours::Float(number) => Value::Float(number),
        Ours::Bool(yes) => Value::Bool(yes),
    }
}
