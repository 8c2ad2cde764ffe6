//! What happens on a build farm, as plain data.
//!
//! An [`Event`] is a fact in the past tense that somebody counts or graphs; a [`Record`] is an
//! event with the time it happened and the [`Identity`] of the host it happened on. Each event is
//! one struct, declared once in [`schema`] together with what every field means. From that single
//! declaration come the JSON form (serde), the tags and fields of a time series
//! ([`Event::columns`]) and the page `docs/events.md` ([`reference_page`]).
//!
//! This crate knows nothing of files, sockets or formats; `farm-telemetry` does.

mod outcome;
mod reference;
pub mod schema;

pub use outcome::{Outcome, RunResult};
pub use reference::reference_page;
pub use schema::*;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Who the host is. Empty text means "not known"; such a value is left out of every output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// Host name, without domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Pool the host belongs to: hosts of one kind that share a queue.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pool: String,
    /// Machine image the host was started from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// Cloud region.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// Instance id given by the cloud.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub instance_id: String,
}

impl Identity {
    /// Name and value of each part that is known, in a fixed order. All of them are tags.
    pub fn tags(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("host", self.host.as_str()),
            ("pool", &self.pool),
            ("image", &self.image),
            ("region", &self.region),
            ("instance_id", &self.instance_id),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
    }
}

/// An event, when it happened and on which host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When it happened (UTC, RFC 3339 with up to nanoseconds in JSON).
    pub time: Timestamp,
    /// Where it happened.
    #[serde(flatten)]
    pub identity: Identity,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Whether a column of a time series is indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Indexed, of few distinct values: databases group and filter by it.
    Tag,
    /// Not indexed: measured numbers and text of many distinct values.
    Field,
}

/// The value of one column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Text in UTF-8; may hold any character, line breaks included.
    Text(&'a str),
    /// A whole number.
    Integer(i64),
    /// A measured number.
    Float(f64),
    /// Yes or no.
    Bool(bool),
}

/// One column of an event: its name, whether it is indexed, and its value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Column<'a> {
    /// Name in every output.
    pub name: &'static str,
    /// Tag or field.
    pub role: Role,
    /// Value.
    pub value: Value<'a>,
}

/// A type that can stand in a column. `None` and empty text stand for "not known" and give no value.
pub trait ColumnValue {
    /// What `docs/events.md` calls the type.
    const TYPE: &'static str;
    /// The value, unless it is not known.
    fn value(&self) -> Option<Value<'_>>;
}

impl ColumnValue for String {
    const TYPE: &'static str = "text";
    fn value(&self) -> Option<Value<'_>> {
        (!self.is_empty()).then_some(Value::Text(self))
    }
}

impl ColumnValue for bool {
    const TYPE: &'static str = "true or false";
    fn value(&self) -> Option<Value<'_>> {
        Some(Value::Bool(*self))
    }
}

impl ColumnValue for f64 {
    const TYPE: &'static str = "number";
    fn value(&self) -> Option<Value<'_>> {
        self.is_finite().then_some(Value::Float(*self))
    }
}

impl ColumnValue for i32 {
    const TYPE: &'static str = "integer";
    fn value(&self) -> Option<Value<'_>> {
        Some(Value::Integer(i64::from(*self)))
    }
}

impl ColumnValue for u32 {
    const TYPE: &'static str = "integer ≥ 0";
    fn value(&self) -> Option<Value<'_>> {
        Some(Value::Integer(i64::from(*self)))
    }
}

impl ColumnValue for u64 {
    const TYPE: &'static str = "integer ≥ 0";
    fn value(&self) -> Option<Value<'_>> {
        // Line protocol has no larger integer; nothing counted here comes near it.
        Some(Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX)))
    }
}

impl<T: ColumnValue> ColumnValue for Option<T> {
    const TYPE: &'static str = T::TYPE;
    fn value(&self) -> Option<Value<'_>> {
        self.as_ref().and_then(ColumnValue::value)
    }
}

#[cfg(test)]
mod tests;
