//! One [`PoolDemand`] for each pool, from what all sources answered.
//!
//! An answer counts only if it can be true: it has come, it is from now, it is not older than the one
//! before. Otherwise the source is held: each pool it feeds keeps what was known of it and says why,
//! and the planner leaves the pool alone. Other pools go on.
//!
//! Which pools a source feeds is in the settings where the settings say it, and in the rules that
//! name the source. Rules for any source say only where its jobs could go; there it counts what it
//! fed before, and until it answered once, every such pool.
//!
//! Ages are reckoned by the clock of the answer (`as_of`): if a master's clock is a little wrong, the
//! times of its jobs are wrong by as much.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::rules::{Belongs, RuleMemory, RuleReport, Rules, Weighing};
use super::{Observation, PoolDemand, SourceError, SourceHold, WaitingJob, Work};
use crate::config::{Config, DemandSettings, SourceSettings};
use crate::ids::{PoolName, SourceName};
use crate::world::elapsed;

/// How far the clock of a source may be ahead of ours, and one answer behind the one before.
/// Synchronised clocks differ by less than a second, and servers behind one address by a few.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);
/// An answer without any job is believed at once if there were fewer before. A queue can be emptied
/// by a person; but one that had ten jobs, none of them even running any more, is also what a
/// restarted or half-broken service shows. It has to say so twice.
const SUDDEN: u32 = 10;

/// What follows from one round of answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// Demand of every configured pool.
    pub demand: BTreeMap<PoolName, PoolDemand>,
    /// What is to be told about the rules.
    pub report: RuleReport,
    /// To be given to the next [`resolve`].
    pub memory: Memory,
}

/// What is remembered from pass to pass. If it is lost, more pools than necessary are held while a
/// source fails, and nothing worse.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    sources: BTreeMap<SourceName, SourceMemory>,
    rules: RuleMemory,
}

/// What is remembered of a source: its last answer that counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct SourceMemory {
    as_of: Timestamp,
    /// Pools it ever had a job for.
    fed: BTreeSet<PoolName>,
    shares: BTreeMap<PoolName, Share>,
    /// Jobs it had, wherever they belong.
    jobs: u32,
    /// It said once that there is no job any more.
    emptied: bool,
}

/// What a source contributes to a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Share {
    pending: u32,
    running: u32,
    #[serde(with = "humantime_serde::option", default)]
    oldest_age: Option<Duration>,
    too_young: u32,
    too_old: u32,
}

/// Demand of every pool, from the answers of one round.
#[must_use]
pub fn resolve(
    observations: &BTreeMap<SourceName, Result<Observation, SourceError>>,
    previous: &Memory,
    rules: &Rules,
    config: &Config,
    now: Timestamp,
) -> Resolved {
    let mut resolving = Resolving {
        rules,
        config,
        now,
        weighing: Weighing::new(rules),
        demand: config
            .pools
            .keys()
            .map(|pool| (pool.clone(), PoolDemand::default()))
            .collect(),
    };
    let not_asked = Err(SourceError::Unavailable("it was not asked".into()));
    let sources = config.sources.iter().map(|(name, settings)| {
        let answer = observations.get(name).unwrap_or(&not_asked);
        let before = previous.sources.get(name);
        (
            name.clone(),
            resolving.source(name, settings, answer, before),
        )
    });
    let sources = sources
        .filter_map(|(name, memory)| Some((name, memory?)))
        .collect();
    let (report, rules) = resolving.weighing.report(&previous.rules, now);
    Resolved {
        demand: resolving.demand,
        report,
        memory: Memory { sources, rules },
    }
}

struct Resolving<'a> {
    rules: &'a Rules,
    config: &'a Config,
    now: Timestamp,
    weighing: Weighing<'a>,
    demand: BTreeMap<PoolName, PoolDemand>,
}

impl Resolving<'_> {
    /// Adds what one source knows. Returns what is to be remembered of it.
    fn source(
        &mut self,
        name: &SourceName,
        settings: &SourceSettings,
        answer: &Result<Observation, SourceError>,
        before: Option<&SourceMemory>,
    ) -> Option<SourceMemory> {
        let observation = match answer {
            Ok(observation) => observation,
            Err(error) => {
                self.hold(name, settings, before, &error.to_string());
                return before.cloned();
            }
        };
        if let Some(doubt) = doubt(observation, before, &self.config.demand, self.now) {
            self.hold(name, settings, before, &doubt);
            return before.cloned();
        }
        let jobs = jobs_in(observation);
        if let Some(before) = before
            && jobs == 0
            && before.jobs >= SUDDEN
            && !before.emptied
        {
            let reason = format!(
                "its {} jobs are gone all at once, none waits and none runs: it is believed when it says so again",
                before.jobs
            );
            self.hold(name, settings, Some(before), &reason);
            return Some(SourceMemory {
                emptied: true,
                ..before.clone()
            });
        }
        let shares = self.shares(name, settings, observation);
        let as_of = observation.as_of.min(self.now);
        let mut fed: BTreeSet<PoolName> = shares.keys().cloned().collect();
        if let Some(before) = before {
            fed.extend(before.fed.iter().cloned());
        }
        fed.retain(|pool| self.config.pools.contains_key(pool));
        let mut reached = said_to_feed(settings);
        if answers_with_jobs(settings) {
            reached.extend(self.rules.reachable_pools(name));
        }
        for pool in reached.union(&fed) {
            self.add(pool, as_of, shares.get(pool));
        }
        Some(SourceMemory {
            as_of,
            fed,
            shares,
            jobs,
            emptied: false,
        })
    }

    /// Holds the pools that a source feeds, at what was last known.
    fn hold(
        &mut self,
        name: &SourceName,
        settings: &SourceSettings,
        before: Option<&SourceMemory>,
        reason: &str,
    ) {
        let mut fed = said_to_feed(settings);
        if answers_with_jobs(settings) {
            fed.extend(self.rules.own_pools(name));
            let reachable = self.rules.reachable_pools(name);
            match before {
                Some(before) => fed.extend(before.fed.intersection(&reachable).cloned()),
                None => fed.extend(reachable),
            }
        }
        for pool in &fed {
            if let Some(before) = before {
                self.add(pool, before.as_of, before.shares.get(pool));
            }
            self.hold_pool(name, pool, reason);
        }
    }

    fn hold_pool(&mut self, name: &SourceName, pool: &PoolName, reason: &str) {
        if let Some(demand) = self.demand.get_mut(pool)
            && !demand.holds.iter().any(|hold| hold.source == *name)
        {
            demand.holds.push(SourceHold {
                source: name.clone(),
                reason: reason.to_owned(),
            });
        }
    }

    fn add(&mut self, pool: &PoolName, as_of: Timestamp, share: Option<&Share>) {
        let Some(demand) = self.demand.get_mut(pool) else {
            return;
        };
        demand.as_of = Some(demand.as_of.map_or(as_of, |other| other.min(as_of)));
        let Some(share) = share else { return };
        demand.pending = demand.pending.saturating_add(share.pending);
        demand.running = demand.running.saturating_add(share.running);
        demand.oldest_age = demand.oldest_age.max(share.oldest_age);
        demand.too_young = demand.too_young.saturating_add(share.too_young);
        demand.too_old = demand.too_old.saturating_add(share.too_old);
    }

    /// What an answer contributes to each pool.
    fn shares(
        &mut self,
        name: &SourceName,
        settings: &SourceSettings,
        observation: &Observation,
    ) -> BTreeMap<PoolName, Share> {
        for (unassigned, jobs) in &observation.unassigned {
            self.weighing.unassigned(name, unassigned, *jobs);
        }
        let mut shares = BTreeMap::<PoolName, Share>::new();
        match &observation.work {
            Work::Counts(counts) => {
                for (pool, count) in counts {
                    let share = Share {
                        pending: count.pending,
                        running: count.running,
                        oldest_age: count.oldest_age,
                        ..Share::default()
                    };
                    shares.insert(pool.clone(), share);
                }
            }
            Work::Jobs(jobs) => {
                let only = only_pool(settings);
                for job in jobs {
                    let belongs = match only {
                        Some(pool) => Belongs::To(pool.clone()),
                        None => self.weighing.belongs(name, &job.name),
                    };
                    match belongs {
                        Belongs::To(pool) => {
                            let share = shares.entry(pool).or_default();
                            count(share, job, observation.as_of, &self.config.demand);
                        }
                        Belongs::Undecided(pools, reason) => {
                            for pool in &pools {
                                self.hold_pool(name, pool, &reason);
                            }
                        }
                        Belongs::Nowhere | Belongs::Unmatched => {}
                    }
                }
            }
        }
        shares
    }
}

/// Counts one job. A running one counts at any age: a host works on it.
fn count(share: &mut Share, job: &WaitingJob, as_of: Timestamp, settings: &DemandSettings) {
    let age = elapsed(job.since, as_of);
    let counter = if job.running {
        &mut share.running
    } else if age < settings.min_age {
        &mut share.too_young
    } else if age > settings.max_age {
        &mut share.too_old
    } else {
        share.oldest_age = share.oldest_age.max(Some(age));
        &mut share.pending
    };
    *counter = counter.saturating_add(1);
}

/// All jobs of an answer, wherever they belong.
fn jobs_in(observation: &Observation) -> u32 {
    let unassigned = observation.unassigned.values();
    let assigned = match &observation.work {
        Work::Jobs(jobs) => u32::try_from(jobs.len()).unwrap_or(u32::MAX),
        Work::Counts(counts) => counts.values().fold(0, |sum: u32, count| {
            sum.saturating_add(count.pending)
                .saturating_add(count.running)
        }),
    };
    unassigned.fold(assigned, |sum, jobs| sum.saturating_add(*jobs))
}

/// Why an answer cannot be relied on.
fn doubt(
    observation: &Observation,
    before: Option<&SourceMemory>,
    settings: &DemandSettings,
    now: Timestamp,
) -> Option<String> {
    let as_of = observation.as_of;
    let ahead = elapsed(now, as_of);
    if ahead > CLOCK_TOLERANCE {
        return Some(format!(
            "its answer is from the future: its clock is {} ahead of ours; set the clocks of both hosts by NTP",
            in_words(ahead)
        ));
    }
    let age = elapsed(as_of, now);
    if age > settings.stale_after {
        return Some(format!(
            "its answer is {} old: more than `demand.stale_after`, {}",
            in_words(age),
            in_words(settings.stale_after)
        ));
    }
    if let Some(before) = before {
        let back = elapsed(as_of, before.as_of);
        if back > CLOCK_TOLERANCE {
            return Some(format!(
                "its answer is {} older than the one before: is there a cache or a second server in between?",
                in_words(back)
            ));
        }
    }
    let Work::Jobs(jobs) = &observation.work else {
        return None;
    };
    let last = jobs.iter().max_by_key(|job| job.since)?;
    let ahead = elapsed(as_of, last.since);
    (ahead > CLOCK_TOLERANCE).then(|| {
        format!(
            "its newest job begins {} after its answer: its clocks differ, and no age can be told",
            in_words(ahead)
        )
    })
}

fn in_words(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs().max(1))).to_string()
}

/// The one pool all jobs of a source belong to.
fn only_pool(settings: &SourceSettings) -> Option<&PoolName> {
    match settings {
        SourceSettings::Spool(settings) => settings.pool.as_ref(),
        SourceSettings::Http(settings) => settings.pool.as_ref(),
        SourceSettings::Buildbot(_)
        | SourceSettings::Taskcluster(_)
        | SourceSettings::Github(_)
        | SourceSettings::Buildkite(_)
        | SourceSettings::Exec(_) => None,
    }
}

/// Pools that the settings of a source name.
fn said_to_feed(settings: &SourceSettings) -> BTreeSet<PoolName> {
    match settings {
        SourceSettings::Taskcluster(settings) => settings.queues.values().cloned().collect(),
        SourceSettings::Buildkite(settings) => settings.queues.values().cloned().collect(),
        SourceSettings::Exec(settings) => settings.pools.iter().cloned().collect(),
        SourceSettings::Http(_)
        | SourceSettings::Spool(_)
        | SourceSettings::Buildbot(_)
        | SourceSettings::Github(_) => only_pool(settings).into_iter().cloned().collect(),
    }
}

/// Whether the rules say where jobs of such a source belong.
fn answers_with_jobs(settings: &SourceSettings) -> bool {
    match settings {
        SourceSettings::Buildbot(_) | SourceSettings::Github(_) => true,
        SourceSettings::Exec(settings) => settings.pools.is_empty(),
        SourceSettings::Spool(settings) => settings.pool.is_none(),
        SourceSettings::Taskcluster(_) | SourceSettings::Buildkite(_) | SourceSettings::Http(_) => {
            false
        }
    }
}

#[cfg(test)]
mod tests;
