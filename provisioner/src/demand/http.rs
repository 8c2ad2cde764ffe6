//! Any JSON by HTTP: a pointer to the number of jobs that wait, for one pool.

use jiff::Timestamp;
use serde_json::Value;

use super::settings::HttpSettings;
use super::web::{self, Ask, Web};
use super::{Count, DemandSource, Observation, SourceError, Work, moment};

/// A web service that knows how many jobs wait.
#[derive(Debug)]
pub struct Http {
    web: Web,
    settings: HttpSettings,
}

impl Http {
    pub(super) fn new(settings: HttpSettings) -> Result<Self, String> {
        Ok(Self {
            web: Web::new(&settings.url, settings.timeout)?,
            settings,
        })
    }
}

impl DemandSource for Http {
    async fn observe(&self, now: Timestamp) -> Result<Observation, SourceError> {
        let settings = &self.settings;
        let Some(pool) = &settings.pool else {
            let message = "it has no `pool`: expected the one it feeds";
            return Err(SourceError::NotUnderstood(message.to_owned()));
        };
        let secret = web::token(settings.token_file.as_deref())?;
        let ask = Ask {
            authorization: web::authorization("Bearer", secret.as_ref()),
            secret: secret.as_ref(),
            ..Ask::default()
        };
        let reply = self.web.get(ask).await?;
        let answer: Value = reply.json("such a source")?;
        let as_of = if settings.as_of.is_empty() {
            reply.as_of(now)
        } else {
            let value = found(&answer, &settings.as_of, "as_of")?;
            moment(value).ok_or_else(|| {
                misfit(&settings.as_of, "as_of", "a time: RFC 3339 or Unix seconds")
            })?
        };
        let count = Count {
            pending: number(&answer, &settings.pending, "pending")?,
            running: if settings.running.is_empty() {
                0
            } else {
                number(&answer, &settings.running, "running")?
            },
            oldest_age: None,
        };
        let counts = [(pool.clone(), count)].into();
        Ok(Observation::new(as_of, Work::Counts(counts)))
    }
}

fn found<'a>(answer: &'a Value, pointer: &str, key: &str) -> Result<&'a Value, SourceError> {
    answer.pointer(pointer).ok_or_else(|| {
        SourceError::NotUnderstood(format!(
            "the answer has nothing at `{pointer}`, where `{key}` points"
        ))
    })
}

/// A number, or the length of a list.
fn number(answer: &Value, pointer: &str, key: &str) -> Result<u32, SourceError> {
    let value = found(answer, pointer, key)?;
    let number = match value {
        Value::Array(list) => u32::try_from(list.len()).ok(),
        Value::Number(number) => number.as_u64().and_then(|it| u32::try_from(it).ok()),
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Object(_) => None,
    };
    number.ok_or_else(|| misfit(pointer, key, "a number from 0, or a list"))
}

fn misfit(pointer: &str, key: &str, expected: &str) -> SourceError {
    SourceError::NotUnderstood(format!(
        "what is at `{pointer}`, where `{key}` points, is not {expected}"
    ))
}

#[cfg(test)]
mod tests;
