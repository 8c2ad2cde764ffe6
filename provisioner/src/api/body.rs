//! The body of a call: bounded in size, and read field by field, so that a fault names its
//! field and repeats nothing of what may be secret.

use std::future::poll_fn;
use std::pin::Pin;

use axum::body::{Body, HttpBody as _};
use axum::http::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::answer::Refusal;
use super::serve::TooSlow;

/// Longest body: a report has some hundred bytes.
pub(super) const LONGEST: usize = 64 << 10;
/// Longest name of a field that is shown back.
const SHOWN: usize = 40;

fn too_large() -> Refusal {
    Refusal::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body is too large: expected {LONGEST} bytes at most"),
    )
}

/// All of a body.
async fn collect(mut body: Body) -> Result<Vec<u8>, Refusal> {
    // What says that it is too large need not be read.
    if body.size_hint().lower() > LONGEST as u64 {
        return Err(too_large());
    }
    let mut read = Vec::new();
    while let Some(frame) = next_frame(&mut body).await {
        // Trailers say nothing here.
        let Ok(piece) = frame.map_err(incomplete)?.into_data() else {
            continue;
        };
        if read.len() + piece.len() > LONGEST {
            return Err(too_large());
        }
        read.extend_from_slice(&piece);
    }
    Ok(read)
}

fn incomplete(error: axum::Error) -> Refusal {
    error.into_inner().downcast::<TooSlow>().map_or_else(
        |_| Refusal::bad("the body did not arrive in full"),
        |slow| Refusal::new(StatusCode::REQUEST_TIMEOUT, slow.to_string()),
    )
}

/// The next piece of a body.
pub(super) async fn next_frame(body: &mut Body) -> Option<Result<Frame, axum::Error>> {
    poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}

type Frame = hyper::body::Frame<axum::body::Bytes>;

/// The fields of a JSON object.
#[derive(Debug)]
pub(super) struct Fields {
    object: Map<String, Value>,
    /// What stands before the names of its fields in messages.
    prefix: &'static str,
}

impl Fields {
    /// Those of a body.
    pub(super) async fn of(body: Body) -> Result<Self, Refusal> {
        Self::parse(&collect(body).await?)
    }

    pub(super) fn parse(text: &[u8]) -> Result<Self, Refusal> {
        match serde_json::from_slice(text) {
            Ok(Value::Object(object)) => Ok(Self { object, prefix: "" }),
            Ok(_) => Err(Refusal::bad("the body is no JSON object")),
            // What the parser says of any value names a place and repeats no text.
            Err(error) => Err(Refusal::bad(format!("the body is no JSON: {error}"))),
        }
    }

    /// Refuses fields that nobody reads: a misspelt one would else be silently left out.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Refusal> {
        let unknown = self
            .object
            .keys()
            .find(|key| !known.contains(&key.as_str()));
        unknown.map_or(Ok(()), |key| {
            let key: String = key
                .chars()
                .take(SHOWN)
                .flat_map(char::escape_debug)
                .collect();
            let known = words(known);
            Err(Refusal::bad(format!(
                "`{key}` is not a field of this call: expected {known}"
            )))
        })
    }

    fn wrong(&self, key: &str, expected: &str) -> Refusal {
        let prefix = self.prefix;
        let fault = match self.object.get(key) {
            None => "is missing",
            Some(_) => "is wrong",
        };
        Refusal::bad(format!("`{prefix}{key}` {fault}: expected {expected}"))
    }

    /// A text of 1 to `longest` characters without control characters.
    pub(super) fn text(&self, key: &str, longest: usize) -> Result<&str, Refusal> {
        let text = self.object.get(key).and_then(Value::as_str);
        text.filter(|text| {
            !text.is_empty() && text.chars().count() <= longest && !text.contains(char::is_control)
        })
        .ok_or_else(|| {
            self.wrong(
                key,
                &format!("text of 1 to {longest} characters, without control characters"),
            )
        })
    }

    /// A text that `parse` takes.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, Refusal> {
        let text = self.object.get(key).and_then(Value::as_str);
        text.and_then(parse)
            .ok_or_else(|| self.wrong(key, expected))
    }

    /// A moment.
    pub(super) fn time(&self, key: &str) -> Result<Timestamp, Refusal> {
        self.parsed(key, "RFC 3339, such as `2026-08-01T12:00:00Z`", |text| {
            text.parse().ok()
        })
    }

    /// A count.
    pub(super) fn count(&self, key: &str) -> Result<u64, Refusal> {
        let count = self.object.get(key).and_then(Value::as_u64);
        count.ok_or_else(|| self.wrong(key, "a whole number from 0"))
    }

    /// An object, or `null`; a field that is left out is `null`.
    pub(super) fn object(&self, key: &str, prefix: &'static str) -> Result<Option<Self>, Refusal> {
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Self {
                object: object.clone(),
                prefix,
            })),
            Some(_) => Err(self.wrong(key, "an object or null")),
        }
    }

    /// Whether a field is there and not `null`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(|value| !value.is_null())
    }
}

/// Words of a list, for a message.
pub(super) fn words(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}

/// `text` shortened to `longest` characters, without what could forge a line.
pub(super) fn tame(text: &str, longest: usize) -> String {
    text.chars()
        .take(longest)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
