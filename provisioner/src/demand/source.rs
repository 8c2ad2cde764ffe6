//! The sources of a farm, made from its settings and asked at the same time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::buildbot::Buildbot;
use super::buildkite::Buildkite;
use super::exec::Exec;
use super::github::Github;
use super::http::Http;
use super::spool::Spool;
use super::taskcluster::Taskcluster;
use super::{DemandSource, Observation, SourceError};
use crate::config::SourceSettings;
use crate::ids::SourceName;

/// A source of any kind.
#[derive(Debug)]
pub enum Source {
    /// Buildbot.
    Buildbot(Buildbot),
    /// Taskcluster.
    Taskcluster(Taskcluster),
    /// GitHub Actions.
    Github(Github),
    /// Buildkite.
    Buildkite(Buildkite),
    /// JSON by HTTP.
    Http(Http),
    /// A program.
    Exec(Exec),
    /// A directory of jobs.
    Spool(Spool),
}

impl Source {
    /// The source with these settings. Nothing is asked and no token read before it is observed.
    ///
    /// # Errors
    /// What is wrong with its address.
    pub fn new(settings: &SourceSettings) -> Result<Self, String> {
        Ok(match settings.clone() {
            SourceSettings::Buildbot(settings) => Self::Buildbot(Buildbot::new(&settings)?),
            SourceSettings::Taskcluster(settings) => Self::Taskcluster(Taskcluster::new(settings)?),
            SourceSettings::Github(settings) => Self::Github(Github::new(settings)?),
            SourceSettings::Buildkite(settings) => Self::Buildkite(Buildkite::new(settings)?),
            SourceSettings::Http(settings) => Self::Http(Http::new(settings)?),
            SourceSettings::Exec(settings) => Self::Exec(Exec::new(settings)),
            SourceSettings::Spool(settings) => Self::Spool(Spool::new(settings)),
        })
    }
}

impl DemandSource for Source {
    async fn observe(&self, now: Timestamp) -> Result<Observation, SourceError> {
        match self {
            Self::Buildbot(source) => source.observe(now).await,
            Self::Taskcluster(source) => source.observe(now).await,
            Self::Github(source) => source.observe(now).await,
            Self::Buildkite(source) => source.observe(now).await,
            Self::Http(source) => source.observe(now).await,
            Self::Exec(source) => source.observe(now).await,
            Self::Spool(source) => source.observe(now).await,
        }
    }
}

/// All sources of a farm.
#[derive(Clone, Debug)]
pub struct Sources<S = Source>(BTreeMap<SourceName, Arc<S>>);

impl Sources<Source> {
    /// The sources with these settings.
    ///
    /// # Errors
    /// Each that cannot be made, and why.
    pub fn new(
        settings: &BTreeMap<SourceName, SourceSettings>,
    ) -> Result<Self, Vec<(SourceName, String)>> {
        let mut sources = BTreeMap::new();
        let mut faults = Vec::new();
        for (name, settings) in settings {
            match Source::new(settings) {
                Ok(source) => {
                    sources.insert(name.clone(), Arc::new(source));
                }
                Err(fault) => faults.push((name.clone(), fault)),
            }
        }
        if faults.is_empty() {
            Ok(Self(sources))
        } else {
            Err(faults)
        }
    }
}

impl<S> FromIterator<(SourceName, S)> for Sources<S> {
    fn from_iter<I: IntoIterator<Item = (SourceName, S)>>(sources: I) -> Self {
        let sources = sources.into_iter();
        Self(
            sources
                .map(|(name, source)| (name, Arc::new(source)))
                .collect(),
        )
    }
}

/// Asks all sources at the same time, and returns after `deadline` at the latest. Each has an entry
/// in what is returned; one that is slow or broken is its own error and delays no other.
pub async fn observe_all<S: DemandSource + 'static>(
    sources: &Sources<S>,
    now: Timestamp,
    deadline: Duration,
) -> BTreeMap<SourceName, Result<Observation, SourceError>> {
    // A task each, so that one that panics is one that fails. Dropped, the set ends them all.
    let mut asked = JoinSet::new();
    for (name, source) in &sources.0 {
        let (name, source) = (name.clone(), source.clone());
        asked.spawn(async move {
            let answer = timeout(deadline, source.observe(now)).await;
            let answer = answer.unwrap_or_else(|_| {
                let deadline = humantime::format_duration(deadline);
                Err(SourceError::Unavailable(format!(
                    "no answer within {deadline}"
                )))
            });
            (name, answer)
        });
    }
    let mut answers = BTreeMap::new();
    while let Some(finished) = asked.join_next().await {
        if let Ok((name, answer)) = finished {
            answers.insert(name, answer);
        }
    }
    for name in sources.0.keys() {
        answers.entry(name.clone()).or_insert_with(|| {
            let message = "asking it ended in a fault of this program; see the log";
            Err(SourceError::Unavailable(message.to_owned()))
        });
    }
    answers
}

#[cfg(test)]
mod tests;
