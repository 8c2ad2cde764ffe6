//! What store, cloud and hosts disagree about, and what is ended without a host's confirmation.
//!
//! | seen by | and | then |
//! |---|---|---|
//! | store | the cloud says it is terminated | it is lost, at once |
//! | store only | younger than [`VISIBLE_AFTER`], or its host was heard lately | nothing: clouds show new instances late |
//! | store only | otherwise | suspected; in a later pass, [`SECOND_LOOK`] after, lost |
//! | cloud only | our intent, a configured pool, an image | adopted |
//! | cloud only | our intent, no such pool or image | suspected; in a later pass, [`SECOND_LOOK`] after, ended as a stray |
//! | cloud only | no intent | golden or foreign: never touched |
//! | both | suspected before | cleared |
//!
//! Ended without confirmation are, in this order while `limits.max_forced_terminations` lasts: what
//! never started, what never registered (neither can have had a job), strays, and what is silent (it
//! may still have one); within a kind what was launched first goes first. Nothing of it happens to
//! what is held, in a region that was not observed, or in a pool under maintenance: people who rewire
//! a network silence hosts.
//!
//! A termination that was decided and has not shown effect is repeated in every pass; it was counted
//! when it was decided. Ending twice is allowed, and the cloud may have refused the first time.

use std::collections::HashMap;
use std::time::Duration;

use super::census::{Census, PoolCensus, adoptable, observed, ours, overdue, silent};
use super::{Loss, Suspicion, Termination};
use crate::cloud::InstanceState;
use crate::config::{Config, PoolSettings};
use crate::ids::{InstanceId, PoolName};
use crate::world::{Assignment, HostActivity, Instance, LeaveReason, Sight, World, elapsed};

/// A cloud may show an instance this long after it answered that it launched it. EC2 needs seconds,
/// and a minute in bad hours.
pub(crate) const VISIBLE_AFTER: Duration = Duration::from_secs(300);

/// Time between the first and the second look, besides that they are in different passes: longer
/// than a call and the writing of its answer take, and than a cloud's lists lag behind.
pub(crate) const SECOND_LOOK: Duration = Duration::from_secs(120);

/// What the sweep found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) adoptions: Vec<InstanceId>,
    pub(crate) losses: Vec<Loss>,
    pub(crate) suspicions: Vec<Suspicion>,
    pub(crate) terminations: Vec<Termination>,
    /// Terminations that were left for later passes.
    pub(crate) put_off: u32,
}

/// See the module.
pub(crate) fn sweep(world: &World, config: &Config, census: &Census<'_>) -> Found {
    let removed = PoolSettings::default();
    let pools: HashMap<&PoolName, &PoolCensus<'_>> =
        census.pools.iter().map(|pool| (pool.name, pool)).collect();
    let mut found = Found::default();
    let mut forced: Vec<(LeaveReason, &Instance)> = Vec::new();
    for &instance in &census.instances {
        let pool = instance.pool.as_ref().and_then(|pool| pools.get(pool));
        let settings = pool.map_or(&removed, |pool| pool.settings);
        found.look(world, config, instance, settings);
        if !endable(world, instance) {
            continue;
        }
        if instance.ended_at.is_some() || confirmed(instance) {
            found.end(instance, ended_for(instance));
        } else if world.maintenance.fleet.is_none()
            && pool.is_none_or(|pool| !pool.maintained)
            && let Some(reason) = unconfirmed(world, config, instance, settings)
        {
            forced.push((reason, instance));
        }
    }
    forced.sort_by_key(|(reason, instance)| (urgency(*reason), instance.launched_at, &instance.id));
    let cap = usize::try_from(config.limits.max_forced_terminations).unwrap_or(usize::MAX);
    found.put_off = super::census::number(forced.len().saturating_sub(cap));
    for (reason, instance) in forced.into_iter().take(cap) {
        found.end(instance, reason);
    }
    found.terminations.sort_by(|a, b| a.id.cmp(&b.id));
    found
}

/// Whether `instance` may be ended at all in this pass.
fn endable(world: &World, instance: &Instance) -> bool {
    let there = match instance.state {
        InstanceState::Pending | InstanceState::Running | InstanceState::Stopped => true,
        InstanceState::Stopping | InstanceState::Terminated => false,
    };
    let seen = match instance.sight {
        Sight::Both | Sight::CloudOnly => true,
        Sight::StoreOnly | Sight::Unobserved => false,
    };
    there && seen && ours(instance, world.now) && observed(world, &instance.offering.region)
}

/// Whether the host confirmed, after it was told to quit, that nothing is lost by ending it.
fn confirmed(instance: &Instance) -> bool {
    let Assignment::Quit { since, .. } = instance.assignment else {
        return false;
    };
    let host = instance.host.as_ref();
    host.is_some_and(|host| {
        host.activity == HostActivity::Fenced && host.job.is_none() && host.heard_at >= since
    })
}

/// Why `instance` is ended without its host's word, if it is.
fn unconfirmed(
    world: &World,
    config: &Config,
    instance: &Instance,
    settings: &PoolSettings,
) -> Option<LeaveReason> {
    if instance.sight == Sight::CloudOnly {
        let stray = !adoptable(instance, config, world.now) && second_look(world, instance);
        return stray.then_some(LeaveReason::Stray);
    }
    overdue(instance, settings, world.now)
        .or_else(|| silent(instance, settings, world.now).then_some(LeaveReason::Silent))
}

fn second_look(world: &World, instance: &Instance) -> bool {
    let suspected = instance.suspected_at;
    suspected.is_some_and(|at| elapsed(at, world.now) >= SECOND_LOOK)
}

fn urgency(reason: LeaveReason) -> u8 {
    match reason {
        LeaveReason::NeverStarted => 0,
        LeaveReason::NeverRegistered => 1,
        LeaveReason::Stray => 2,
        LeaveReason::Silent => 3,
        LeaveReason::Idle
        | LeaveReason::Drifted
        | LeaveReason::OverTarget
        | LeaveReason::Maintenance
        | LeaveReason::PoolRemoved
        | LeaveReason::UsedUp
        | LeaveReason::Asked => 4,
    }
}

/// Why the end of `instance` was decided, as far as it still shows.
fn ended_for(instance: &Instance) -> LeaveReason {
    match (&instance.assignment, &instance.host, instance.state) {
        (Assignment::Quit { reason, .. }, ..) => *reason,
        (_, Some(_), _) => LeaveReason::Silent,
        (_, None, InstanceState::Pending) => LeaveReason::NeverStarted,
        (_, None, _) => LeaveReason::NeverRegistered,
    }
}

impl Found {
    fn end(&mut self, instance: &Instance, reason: LeaveReason) {
        self.terminations.push(Termination {
            id: instance.id.clone(),
            region: instance.offering.region.clone(),
            reason,
        });
    }

    fn suspect(&mut self, instance: &Instance, message: String) {
        self.suspicions.push(Suspicion {
            id: instance.id.clone(),
            suspected: true,
            message,
        });
    }

    fn clear(&mut self, instance: &Instance, message: &str) {
        if instance.suspected_at.is_some() {
            self.suspicions.push(Suspicion {
                id: instance.id.clone(),
                suspected: false,
                message: message.into(),
            });
        }
    }

    fn lose(&mut self, instance: &Instance, message: String) {
        let host = instance.host.as_ref();
        let warned = host.is_some_and(|host| host.interruption_at.is_some());
        self.losses.push(Loss {
            id: instance.id.clone(),
            // One that we ended ourselves was not taken.
            interrupted: instance.ended_at.is_none() && (instance.interrupted || warned),
            message,
        });
    }

    /// The table of the module, but for terminations.
    fn look(
        &mut self,
        world: &World,
        config: &Config,
        instance: &Instance,
        settings: &PoolSettings,
    ) {
        if !observed(world, &instance.offering.region) {
            return;
        }
        let terminated = instance.state == InstanceState::Terminated;
        match instance.sight {
            Sight::Both | Sight::StoreOnly if terminated => self.lose(instance, gone(instance)),
            Sight::Unobserved => {}
            Sight::StoreOnly => self.look_for(world, instance),
            Sight::CloudOnly => self.look_at(world, config, instance, settings),
            Sight::Both => {
                // Adopted when it was overdue, and given its time to register: see `overdue`.
                let awaited = instance.host.is_none()
                    && elapsed(instance.launched_at, world.now) > settings.registration_timeout;
                if !awaited {
                    self.clear(instance, "store and cloud both know it");
                }
            }
        }
    }

    /// The store knows it, and the cloud does not show it.
    fn look_for(&mut self, world: &World, instance: &Instance) {
        if !ours(instance, world.now) {
            return;
        }
        let heard = instance.host.as_ref();
        let alive = heard.is_some_and(|host| elapsed(host.heard_at, world.now) < SECOND_LOOK);
        if alive {
            self.clear(instance, "its host was heard");
        } else if second_look(world, instance) {
            self.lose(
                instance,
                format!(
                    "the cloud has not shown it since {}",
                    instance.suspected_at.unwrap_or(world.now)
                ),
            );
        } else if instance.suspected_at.is_none()
            && elapsed(instance.launched_at, world.now) >= VISIBLE_AFTER
        {
            self.suspect(instance, "the cloud does not show it".into());
        }
    }

    /// The cloud shows it, and the store does not know it.
    fn look_at(
        &mut self,
        world: &World,
        config: &Config,
        instance: &Instance,
        settings: &PoolSettings,
    ) {
        let ending = matches!(
            instance.state,
            InstanceState::Stopping | InstanceState::Terminated
        );
        if ending || !ours(instance, world.now) {
            return;
        }
        if adoptable(instance, config, world.now) {
            self.adoptions.push(instance.id.clone());
            if elapsed(instance.launched_at, world.now) > settings.registration_timeout {
                self.suspect(
                    instance,
                    format!(
                        "adopted without a host; it has {} to register",
                        humantime::format_duration(settings.registration_timeout)
                    ),
                );
            } else {
                self.clear(instance, "adopted");
            }
        } else if instance.suspected_at.is_none() {
            let pool = instance.pool.as_ref().map_or("no pool", PoolName::as_str);
            self.suspect(
                instance,
                format!(
                    "its tags are ours and name {pool}, and no such pool and image can have it"
                ),
            );
        }
    }
}

fn gone(instance: &Instance) -> String {
    match instance.ended_at {
        Some(at) => format!("terminated, as decided at {at}"),
        None if instance.interrupted => "the cloud took it back".into(),
        None => "the cloud says that it is terminated".into(),
    }
}
