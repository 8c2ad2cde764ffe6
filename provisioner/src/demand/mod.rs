//! Demand: how many jobs wait and run, per pool, and how well we know it.
//!
//! A [`DemandSource`] asks one CI system; [`observe_all`] asks all of them at once. [`rules`] turns
//! job names into pools. [`resolve`] puts the answers of all sources together into one [`PoolDemand`]
//! for each pool, and says where they do not suffice: a source that fails or is stale holds the
//! decision and never reads as zero.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{PoolName, SourceName};

mod buildbot;
mod buildkite;
mod exec;
mod github;
mod http;
mod resolve;
pub mod rules;
pub mod settings;
mod source;
mod spool;
mod taskcluster;
mod web;

#[cfg(test)]
mod stub;

pub use buildbot::Buildbot;
pub use buildkite::Buildkite;
pub use exec::Exec;
pub use github::Github;
pub use http::Http;
pub use resolve::{Memory, Resolved, resolve};
pub use settings::faults;
pub use source::{Source, Sources, observe_all};
pub use spool::Spool;
pub use taskcluster::Taskcluster;

/// A job as a CI system shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingJob {
    /// Its name: what the rules look at (a Buildbot builder, a GitHub job with its labels, …).
    pub name: String,
    /// Since when it waits; when it started, if it runs.
    pub since: Timestamp,
    /// Whether it runs already.
    pub running: bool,
}

/// Numbers for one pool, from a source that counts for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Jobs that wait.
    pub pending: u32,
    /// Jobs that run.
    pub running: u32,
    /// How long the oldest has been waiting.
    #[serde(with = "humantime_serde::option", default)]
    pub oldest_age: Option<Duration>,
}

/// What a source answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Each job; the rules say where it belongs.
    Jobs(Vec<WaitingJob>),
    /// Numbers per pool.
    Counts(BTreeMap<PoolName, Count>),
}

/// An answer, and the time it is true for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// When it was so, by the source's own account where it gives one.
    pub as_of: Timestamp,
    /// What there is.
    pub work: Work,
    /// Jobs by the name of a queue that no setting assigns to a pool. They are reported.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unassigned: BTreeMap<String, u32>,
}

impl Observation {
    /// An answer that leaves nothing unassigned.
    #[must_use]
    pub fn new(as_of: Timestamp, work: Work) -> Self {
        Self {
            as_of,
            work,
            unassigned: BTreeMap::new(),
        }
    }
}

/// Why a source did not answer. The message names no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Not reached, too slow, or it answered with a failure of its own.
    #[error("{0}")]
    Unavailable(String),
    /// It wants other credentials or rights.
    #[error("{0}")]
    NotAllowed(String),
    /// It answered, but not with what such a source answers.
    #[error("{0}")]
    NotUnderstood(String),
}

/// A CI system, asked for what waits.
pub trait DemandSource: Send + Sync {
    /// Asks. Bounded in time and size.
    fn observe(
        &self,
        now: Timestamp,
    ) -> impl Future<Output = Result<Observation, SourceError>> + Send;
}

/// Demand of one pool, over all sources that feed it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolDemand {
    /// Jobs that wait, neither too young nor too old.
    pub pending: u32,
    /// Jobs that run.
    pub running: u32,
    /// How long the oldest has been waiting.
    #[serde(with = "humantime_serde::option", default)]
    pub oldest_age: Option<Duration>,
    /// Oldest time any part of this is true for; `None` if no source feeds the pool.
    pub as_of: Option<Timestamp>,
    /// Jobs left out because they are younger than `min_age`.
    pub too_young: u32,
    /// Jobs left out because they are older than `max_age`.
    pub too_old: u32,
    /// Why this must not be acted on, one entry for each source that failed or is stale. While there
    /// is one, the pool neither grows nor shrinks by demand.
    pub holds: Vec<SourceHold>,
}

/// A source that cannot be relied on now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceHold {
    /// Which.
    pub source: SourceName,
    /// Why, for a person.
    pub reason: String,
}

/// A time as people and programs write it: RFC 3339, or Unix seconds.
fn moment(value: &serde_json::Value) -> Option<Timestamp> {
    match value {
        serde_json::Value::String(text) => text.parse().ok(),
        serde_json::Value::Number(number) => {
            let seconds = number.as_f64()?;
            let since = jiff::SignedDuration::try_from_secs_f64(seconds).ok()?;
            Timestamp::UNIX_EPOCH.checked_add(since).ok()
        }
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Array(_)
        | serde_json::Value::Object(_) => None,
    }
}
