//! A record as one line of InfluxDB's line protocol.
//!
//! `measurement,tag=value,… n=1i,field=value,… time_in_ns`. Measurement is the event's name, tags
//! are the identity and the tag columns, fields the rest. Besides the protocol's own rules a line
//! keeps what servers in the field need: no empty tag, no backslash in a tag (parsers disagree
//! about it), no line break in a string field (VictoriaMetrics drops such a line and answers 204).
//! The field `n` is always 1, so that every event can be counted.

use std::fmt::Write as _;

use farm_events::{Record, Role, Value};

/// The line, without line break at its end.
#[must_use]
pub fn to_line(record: &Record) -> String {
    let columns = record.event.columns();
    let mut line = String::with_capacity(512);
    push_name(&mut line, record.event.name());
    for (name, value) in record.identity.tags() {
        push_tag(&mut line, name, value);
    }
    for column in columns.iter().filter(|column| column.role == Role::Tag) {
        match column.value {
            Value::Text(text) => push_tag(&mut line, column.name, text),
            Value::Integer(number) => push_tag(&mut line, column.name, &number.to_string()),
            Value::Float(number) => push_tag(&mut line, column.name, &number.to_string()),
            Value::Bool(yes) => {
                push_tag(&mut line, column.name, if yes { "true" } else { "false" })
            }
        }
    }
    line.push_str(" n=1i");
    for column in columns.iter().filter(|column| column.role == Role::Field) {
        line.push(',');
        push_name(&mut line, column.name);
        line.push('=');
        push_value(&mut line, column.value);
    }
    push(&mut line, format_args!(" {}", nanoseconds(record)));
    line
}

/// Nanoseconds since 1970, as far as 64 bits go (from 1677 to 2262).
fn nanoseconds(record: &Record) -> i64 {
    let exact = record.time.as_nanosecond();
    i64::try_from(exact).unwrap_or(if exact < 0 { i64::MIN } else { i64::MAX })
}

fn push(line: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _infallible = line.write_fmt(text);
}

/// Measurement and keys are ours: plain words that need no escape.
fn push_name(line: &mut String, name: &'static str) {
    debug_assert!(
        name.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    );
    line.push_str(name);
}

fn push_tag(line: &mut String, name: &'static str, value: &str) {
    if value.is_empty() {
        return;
    }
    line.push(',');
    push_name(line, name);
    line.push('=');
    for character in value.chars() {
        match character {
            ',' | '=' | ' ' => {
                line.push('\\');
                line.push(character);
            }
            // A file name cannot hold a slash, so two tasks never become one by this.
            '\\' => line.push('/'),
            control if control.is_control() => line.push('_'),
            other => line.push(other),
        }
    }
}

fn push_value(line: &mut String, value: Value<'_>) {
    match value {
        Value::Integer(number) => push(line, format_args!("{number}i")),
        Value::Float(number) => push(line, format_args!("{number}")),
        Value::Bool(yes) => line.push_str(if yes { "true" } else { "false" }),
        Value::Text(text) => push_text(line, text),
    }
}

fn push_text(line: &mut String, text: &str) {
    line.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                line.push('\\');
                line.push(character);
            }
            control if control.is_control() => line.push(' '),
            other => line.push(other),
        }
    }
    line.push('"');
}

#[cfg(test)]
mod tests;
