//! Which hosts are told to leave, to stay, or to drain.
//!
//! Nobody is ended at work: a host that is told to quit finishes its job, takes no other, confirms
//! that it is fenced, and is ended then. Reasons, in the order in which they are looked at:
//!
//! - its pool is no longer configured: all of its hosts, at once;
//! - maintenance: all hosts of the pool drain and stay; they are told to go on when it ends;
//! - `max_runs` reached (used up), or its image has no share any more (drifted). They are replaced: if
//!   the pool stands at its minimum, the launches are for as many more first, and only where there is
//!   no room for that does the pool go below, by one host at a time;
//! - more hosts than `max` (over target): at once, those without a job first;
//! - more than wanted for longer than `surplus_delay`: those idle for longer than `idle_timeout`.
//!
//! Among those with a common reason who has been idle longest goes first, then the dearest, then the
//! oldest; hosts with a job come last. At most `limits.max_leaving` percent of a pool's hosts are on
//! their way out for these reasons at once, rounded up; 0 means none. While a source holds the pool
//! nobody leaves but over `max`: what leaves could not be replaced.
//!
//! A host that was told to quit is never called back: on the host a quit is final, so that `fenced` can
//! be relied on. One that is fenced although it is told to go on was told to quit before, by a store
//! that is lost: it is told so again, and then ended.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use jiff::Timestamp;

use super::Reassignment;
use super::census::{Class, PoolCensus, held, number, ours};
use super::target::{Target, lasts};
use crate::ids::ImageName;
use crate::world::{
    Assignment, HostActivity, HostView, Instance, LeaveReason, PoolMemory, elapsed,
};

/// Images a pool wants hosts to have; `None` if it cannot be said.
pub(crate) type Wanted<'w> = Option<BTreeSet<&'w ImageName>>;

/// Whether the host of `instance` is to be replaced.
pub(crate) fn replaceable(
    instance: &Instance,
    pool: &PoolCensus<'_>,
    images: &Wanted<'_>,
) -> Option<LeaveReason> {
    let host = instance.host.as_ref()?;
    if pool.settings.max_runs.is_some_and(|max| host.runs >= max) {
        return Some(LeaveReason::UsedUp);
    }
    let image = instance.image.as_ref()?;
    let drifted = images
        .as_ref()
        .is_some_and(|images| !images.contains(image));
    drifted.then_some(LeaveReason::Drifted)
}

/// What is decided about the hosts of a pool.
#[derive(Debug)]
pub(crate) struct Leaving<'a, 'w> {
    pub(crate) pool: &'a PoolCensus<'w>,
    pub(crate) images: &'a Wanted<'w>,
    pub(crate) target: Target,
    pub(crate) memory: &'a PoolMemory,
    /// Whether anything is on its way up or out: the room for a replacement may come of itself.
    pub(crate) moving: bool,
    pub(crate) max_leaving: f64,
    pub(crate) now: Timestamp,
}

impl Leaving<'_, '_> {
    /// What changes for the hosts of the pool.
    pub(crate) fn decide(&self) -> Vec<Reassignment> {
        if self.pool.maintained {
            return self.drain();
        }
        let mut changes = self.resume();
        changes.extend(self.remind());
        changes.extend(self.quit());
        changes
    }

    fn told(&self, instance: &Instance) -> bool {
        ours(instance, self.now) && instance.ended_at.is_none()
    }

    fn drain(&self) -> Vec<Reassignment> {
        let members = self.pool.members.iter().map(|member| member.instance);
        members
            .filter(|instance| self.told(instance) && instance.assignment == Assignment::GoOn)
            .filter(|instance| instance.sight != crate::world::Sight::CloudOnly)
            .map(|instance| Reassignment {
                id: instance.id.clone(),
                assignment: Assignment::Drain {
                    reason: LeaveReason::Maintenance,
                    since: self.now,
                },
            })
            .collect()
    }

    fn resume(&self) -> Vec<Reassignment> {
        let drained = |instance: &&Instance| {
            matches!(
                instance.assignment,
                Assignment::Drain {
                    reason: LeaveReason::Maintenance,
                    ..
                }
            )
        };
        let members = self.pool.members.iter().map(|member| member.instance);
        members
            .filter(drained)
            .filter(|instance| self.told(instance))
            .map(|instance| Reassignment {
                id: instance.id.clone(),
                assignment: Assignment::GoOn,
            })
            .collect()
    }

    /// Hosts that are fenced by a quit nobody here remembers.
    fn remind(&self) -> impl Iterator<Item = Reassignment> {
        let members = self.pool.members.iter().map(|member| member.instance);
        let fenced = members.filter(|instance| fenced_unasked(instance) && self.told(instance));
        fenced.map(|instance| Reassignment {
            id: instance.id.clone(),
            assignment: Assignment::Quit {
                reason: LeaveReason::Asked,
                since: self.now,
            },
        })
    }

    fn quit(&self) -> Vec<Reassignment> {
        let settings = self.pool.settings;
        let mut hosts: Vec<(&Instance, &HostView)> = self
            .pool
            .of(Class::Existing)
            .map(|member| member.instance)
            .filter(|instance| {
                held(instance, self.now).is_none() && instance.assignment == Assignment::GoOn
            })
            .filter_map(|instance| Some((instance, instance.host.as_ref()?)))
            .collect();
        hosts.sort_by_key(|(instance, host)| order(instance, host));
        let mut existing = self.pool.count(Class::Existing);
        let mut budget = self.budget();
        let mut gone: BTreeSet<&crate::ids::InstanceId> = BTreeSet::new();
        let mut changes = Vec::new();
        let mut go = |instance: &Instance, reason| {
            changes.push(Reassignment {
                id: instance.id.clone(),
                assignment: Assignment::Quit {
                    reason,
                    since: self.now,
                },
            });
        };
        if !self.pool.source_hold {
            let spare = existing.saturating_sub(settings.min);
            let mut replacing = if spare == 0 && existing == settings.min && !self.moving {
                1
            } else {
                spare
            };
            for &(instance, _) in &hosts {
                let Some(reason) = replaceable(instance, self.pool, self.images) else {
                    continue;
                };
                if budget == 0 || replacing == 0 {
                    break;
                }
                go(instance, reason);
                gone.insert(&instance.id);
                budget -= 1;
                replacing -= 1;
                existing -= 1;
            }
        }
        let mut over = existing.saturating_sub(settings.max);
        for &(instance, _) in &hosts {
            if over == 0 || budget == 0 {
                break;
            }
            if gone.insert(&instance.id) {
                go(instance, LeaveReason::OverTarget);
                over -= 1;
                budget -= 1;
                existing -= 1;
            }
        }
        if lasts(self.memory.surplus_since, settings.surplus_delay, self.now) {
            let mut surplus = existing.saturating_sub(self.target.target.max(settings.min));
            for &(instance, host) in &hosts {
                if surplus == 0 || budget == 0 {
                    break;
                }
                let idle = host.activity == HostActivity::Idle
                    && host.job.is_none()
                    && elapsed(host.since, self.now) > settings.idle_timeout;
                if idle && gone.insert(&instance.id) {
                    go(instance, LeaveReason::Idle);
                    surplus -= 1;
                    budget -= 1;
                }
            }
        }
        changes
    }

    /// How many more may be told to leave in this pass.
    fn budget(&self) -> u32 {
        budget(self.pool, self.max_leaving)
    }
}

/// How many more hosts of `pool` may be told to leave, given those that are leaving already.
pub(crate) fn budget(pool: &PoolCensus<'_>, max_leaving: f64) -> u32 {
    let hosts = || {
        let members = pool.members.iter().map(|member| member.instance);
        members.filter(|instance| instance.host.is_some())
    };
    let leaving = hosts().filter(|instance| {
        matches!(instance.assignment, Assignment::Quit { .. }) || fenced_unasked(instance)
    });
    percentage(max_leaving, number(hosts().count())).saturating_sub(number(leaving.count()))
}

/// Fenced, by a quit that nobody here remembers.
fn fenced_unasked(instance: &Instance) -> bool {
    let host = instance.host.as_ref();
    host.is_some_and(|host| host.activity == HostActivity::Fenced)
        && instance.assignment == Assignment::GoOn
}

/// `percent` of `count`, rounded up.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a part of a u32"
)]
fn percentage(percent: f64, count: u32) -> u32 {
    (f64::from(count) * percent.clamp(0.0, 100.0) / 100.0 - 1e-9)
        .ceil()
        .max(0.0) as u32
}

/// Who goes first: idle for the longest, the dearest, the oldest; those with a job last.
fn order<'a>(
    instance: &'a Instance,
    host: &HostView,
) -> (
    bool,
    Timestamp,
    Reverse<crate::money::Money>,
    Timestamp,
    &'a crate::ids::InstanceId,
) {
    let working = host.activity != HostActivity::Idle || host.job.is_some();
    // Since when a job runs says nothing about when it ends.
    let since = if working { Timestamp::MAX } else { host.since };
    (
        working,
        since,
        Reverse(instance.price),
        instance.launched_at,
        &instance.id,
    )
}
