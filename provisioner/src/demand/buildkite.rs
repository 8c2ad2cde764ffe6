//! Buildkite: the counts of its queues, by the agent API.
//!
//! One request a pass: `GET /v3/metrics`, as "Metrics API" of the Buildkite documentation describes
//! it. `scheduled` jobs wait for an agent; `waiting` ones wait for other jobs and count for nothing.
//! The server says in a header how often it may be asked, and is not asked more often.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::Instant;

use super::settings::BuildkiteSettings;
use super::web::{self, Ask, Web};
use super::{Count, DemandSource, Observation, SourceError, Work};

/// Seconds until the server wants to be asked again.
const POLL_DURATION: &str = "buildkite-agent-metrics-poll-duration";
/// Longest such time that is obeyed; an answer is too old before that.
const LONGEST_POLL: Duration = Duration::from_secs(60 * 60);

/// A cluster (or organization) of Buildkite: what the agent token stands for.
#[derive(Debug)]
pub struct Buildkite {
    web: Web,
    settings: BuildkiteSettings,
    /// The last answer, and until when it is to do.
    last: Mutex<Option<(Instant, Observation)>>,
}

#[derive(Deserialize)]
struct Metrics {
    jobs: Jobs,
    organization: Organization,
}

#[derive(Deserialize)]
struct Jobs {
    queues: BTreeMap<String, Queue>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct Queue {
    scheduled: u32,
    running: u32,
}

#[derive(Deserialize)]
struct Organization {
    slug: String,
}

impl Buildkite {
    pub(super) fn new(settings: BuildkiteSettings) -> Result<Self, String> {
        Ok(Self {
            web: Web::new(&settings.url, settings.timeout)?,
            settings,
            last: Mutex::default(),
        })
    }

    /// The last answer, if the server does not want to be asked yet.
    fn remembered(&self) -> Option<Observation> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, observation) = last.as_ref()?;
        (Instant::now() < *until).then(|| observation.clone())
    }

    fn counted(&self, mut queues: BTreeMap<String, Queue>, as_of: Timestamp) -> Observation {
        let mut counts = BTreeMap::<_, Count>::new();
        for (queue, pool) in &self.settings.queues {
            // A queue without agents and jobs is not in the answer.
            let queue = queues.remove(queue).unwrap_or_default();
            let count = counts.entry(pool.clone()).or_default();
            count.pending = count.pending.saturating_add(queue.scheduled);
            count.running = count.running.saturating_add(queue.running);
        }
        let mut observation = Observation::new(as_of, Work::Counts(counts));
        let unassigned = queues
            .into_iter()
            .filter(|(_, queue)| queue.scheduled > 0)
            .map(|(name, queue)| (name, queue.scheduled));
        observation.unassigned = unassigned.collect();
        observation
    }
}

impl DemandSource for Buildkite {
    async fn observe(&self, now: Timestamp) -> Result<Observation, SourceError> {
        if let Some(remembered) = self.remembered() {
            return Ok(remembered);
        }
        let secret = web::token(self.settings.token_file.as_deref())?;
        let ask = Ask {
            path: "/v3/metrics",
            authorization: web::authorization("Token", secret.as_ref()),
            secret: secret.as_ref(),
            ..Ask::default()
        };
        let reply = self.web.get(ask).await?;
        let metrics: Metrics = reply.json("Buildkite")?;
        if metrics.organization.slug.is_empty() {
            let message = "it names no organization: expected that of the agent token";
            return Err(SourceError::NotUnderstood(message.into()));
        }
        let observation = self.counted(metrics.jobs.queues, reply.as_of(now));
        let wait = reply.header(POLL_DURATION);
        let wait = wait.and_then(|seconds| seconds.trim().parse().ok());
        let wait = wait.map_or(Duration::ZERO, Duration::from_secs);
        let until = Instant::now() + wait.min(LONGEST_POLL);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some((until, observation.clone()));
        Ok(observation)
    }
}

#[cfg(test)]
mod tests;
