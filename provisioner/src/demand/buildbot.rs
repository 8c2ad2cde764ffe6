//! Buildbot: its unfinished build requests, by REST.
//!
//! One request a pass: `/api/v2/buildrequests` with `complete=0`, as "Data API, buildrequest" of the
//! Buildbot manual describes it. A request that a master has claimed runs, any other waits. Names of
//! builders are asked for once and again when a request has an unknown one, or after a while, because
//! a builder can be renamed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::Instant;

use super::settings::BuildbotSettings;
use super::web::{Ask, Reply, Web};
use super::{DemandSource, Observation, SourceError, WaitingJob, Work};

/// Fields of a request that are needed; all of them would be four times as long. A field that is
/// filtered by must be among them.
const REQUESTS: &str = "/api/v2/buildrequests?complete=0&field=builderid&field=claimed&field=claimed_at&field=complete&field=submitted_at";
/// Names of all builders, also of those that are no longer configured: they may have requests.
const BUILDERS: &str = "/api/v2/builders?field=builderid&field=name";
/// Names of builders are asked for again after this.
const NAMES_KEPT: Duration = Duration::from_secs(10 * 60);

/// A Buildbot master.
#[derive(Debug)]
pub struct Buildbot {
    web: Web,
    /// Names by id, and when they were asked for.
    names: Mutex<Option<(Instant, HashMap<u64, String>)>>,
}

#[derive(Deserialize)]
struct Requests {
    buildrequests: Vec<Request>,
    meta: Meta,
}

#[derive(Deserialize)]
struct Request {
    builderid: u64,
    claimed: bool,
    claimed_at: Option<i64>,
    submitted_at: i64,
}

#[derive(Deserialize)]
struct Builders {
    builders: Vec<Builder>,
}

#[derive(Deserialize)]
struct Builder {
    builderid: u64,
    name: String,
}

#[derive(Deserialize)]
struct Meta {
    total: Option<usize>,
}

impl Buildbot {
    pub(super) fn new(settings: &BuildbotSettings) -> Result<Self, String> {
        Ok(Self {
            web: Web::new(&settings.url, settings.timeout)?,
            names: Mutex::default(),
        })
    }

    async fn ask(&self, path: &str) -> Result<Reply, SourceError> {
        let ask = Ask {
            path,
            ..Ask::default()
        };
        self.web.get(ask).await
    }

    /// Names of builders, from memory if it has all of `wanted`.
    async fn names(&self, wanted: &[Request]) -> Result<HashMap<u64, String>, SourceError> {
        if let Some(names) = self.known_names(wanted) {
            return Ok(names);
        }
        let answer: Builders = self.ask(BUILDERS).await?.json("Buildbot")?;
        let builders = answer.builders.into_iter();
        let names: HashMap<u64, String> = builders.map(|it| (it.builderid, it.name)).collect();
        let mut known = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((Instant::now(), names.clone()));
        Ok(names)
    }

    fn known_names(&self, wanted: &[Request]) -> Option<HashMap<u64, String>> {
        let known = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let (asked, names) = known.as_ref()?;
        let is_enough = asked.elapsed() < NAMES_KEPT
            && wanted.iter().all(|it| names.contains_key(&it.builderid));
        is_enough.then(|| names.clone())
    }
}

impl DemandSource for Buildbot {
    async fn observe(&self, now: Timestamp) -> Result<Observation, SourceError> {
        let reply = self.ask(REQUESTS).await?;
        let answer: Requests = reply.json("Buildbot")?;
        if answer
            .meta
            .total
            .is_some_and(|total| total > answer.buildrequests.len())
        {
            return Err(SourceError::NotUnderstood(format!(
                "it shows {} of {} requests: expected all; is something in between that cuts lists?",
                answer.buildrequests.len(),
                answer.meta.total.unwrap_or_default()
            )));
        }
        let names = self.names(&answer.buildrequests).await?;
        let jobs = answer.buildrequests.iter().map(|request| {
            let since = match request.claimed_at {
                Some(claimed_at) if request.claimed => claimed_at,
                Some(_) | None => request.submitted_at,
            };
            Ok(WaitingJob {
                name: names
                    .get(&request.builderid)
                    .cloned()
                    .unwrap_or_else(|| format!("builder {}", request.builderid)),
                since: Timestamp::from_second(since)
                    .map_err(|error| SourceError::NotUnderstood(format!("no time: {error}")))?,
                running: request.claimed,
            })
        });
        let jobs = jobs.collect::<Result<_, SourceError>>()?;
        Ok(Observation::new(reply.as_of(now), Work::Jobs(jobs)))
    }
}

#[cfg(test)]
mod tests;
