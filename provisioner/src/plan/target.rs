//! How many hosts a pool should have, from how many jobs wait and who is there.
//!
//! ```text
//! idle   = existing − busy
//! grow   = ⌈max(0, pending − idle) × ratio⌉
//! target = clamp(existing + grow, min, max)                      while jobs wait for hosts
//!          clamp(busy + ⌈pending × max(1, ratio)⌉, min, max)     while hosts wait for jobs
//! wanted = max(0, max(min, existing + grow) − existing − requested)
//! room   = max − existing − requested − stopping
//! ```
//!
//! The first lines are those of Taskcluster's `services/worker-manager/src/estimator.js` (`simple`),
//! which subtracts `requested` at the end so that what boots is not asked for again. There `stopping`
//! is added to what exists before the maximum is applied and taken away afterwards: it never counts
//! as capacity, and it takes room. Here that is `room`. Unlike there, it does not satisfy `min`: a
//! pool whose hosts are all leaving would otherwise have none for as long as they take.
//!
//! `busy` is what hosts say or what the queue says, whichever is more, and never the sum: a job that
//! was taken a moment ago runs by the queue's account and its host still says idle, and one that just
//! ended the other way round. Jobs on hosts that are leaving run too, but make no host busy that
//! could take another.
//!
//! A source that cannot be relied on, and an order of maintenance, hold the pool: it launches nothing,
//! its minimum included. While it cannot be known whether jobs wait, hosts are of no use, and a pool
//! that stands still is a fault that people see.
//!
//! Mozilla's `reduce_by_freshness` subtracted what had been launched in the last 20 minutes and a
//! tenth of what was older, guessing at what boots and what is about to end its job. Both are known
//! now: instances that boot are `requested` until their host registers, and hosts say whether they
//! are idle. Nothing is left of it.

use std::time::Duration;

use jiff::Timestamp;

use super::census::{Class, PoolCensus, number};
use crate::config::PoolSettings;
use crate::demand::PoolDemand;
use crate::world::{HostActivity, PoolMemory, elapsed};

/// Launches of a pool in this many registration timeouts are looked at when it is judged whether
/// what it launches comes up: long enough that a batch is still there when the last of it is overdue.
const REPAIR_WINDOW: u32 = 4;

/// Below so many launches with a known end nothing is said about a pool: a single machine that fails
/// is no pattern. Karpenter's ring of outcomes has the same length.
const REPAIR_SAMPLE: u32 = 4;

/// What a pool's numbers are made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) pending: u32,
    /// Jobs that run, as the sources say.
    pub(crate) running: u32,
    pub(crate) existing: u32,
    /// Existing hosts that say they have a job.
    pub(crate) with_job: u32,
    /// Hosts on their way out that have a job.
    pub(crate) leaving_with_job: u32,
    pub(crate) requested: u32,
    pub(crate) stopping: u32,
}

/// What follows from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) busy: u32,
    /// Hosts wanted.
    pub(crate) target: u32,
    /// Instances to launch, before any limit.
    pub(crate) wanted: u32,
    /// Instances the pool's own maximum leaves room for.
    pub(crate) room: u32,
    /// Hosts there are beyond those wanted.
    pub(crate) surplus: u32,
}

impl Figures {
    pub(crate) fn of(pool: &PoolCensus<'_>, demand: &PoolDemand) -> Self {
        let with_job = |class| {
            let members = pool.of(class);
            let hosts = members.filter_map(|member| member.instance.host.as_ref());
            number(hosts.filter(|host| has_job(host)).count())
        };
        Self {
            pending: demand.pending,
            running: demand.running,
            existing: pool.count(Class::Existing),
            with_job: with_job(Class::Existing),
            leaving_with_job: with_job(Class::Stopping),
            requested: pool.count(Class::Requested).saturating_add(pool.missing()),
            stopping: pool.count(Class::Stopping),
        }
    }
}

fn has_job(host: &crate::world::HostView) -> bool {
    host.activity == HostActivity::Busy || host.job.is_some()
}

/// See the module. `surge` hosts are wanted above `min`, to replace as many that leave.
pub(crate) fn target(settings: &PoolSettings, figures: Figures, surge: u32) -> Target {
    let Figures {
        pending,
        running,
        existing,
        with_job,
        leaving_with_job,
        requested,
        stopping,
    } = figures;
    let busy = running
        .saturating_sub(leaving_with_job)
        .max(with_job)
        .min(existing);
    let idle = existing - busy;
    let grow = times(pending.saturating_sub(idle), settings.ratio);
    let needed = if pending >= idle {
        existing.saturating_add(grow)
    } else {
        // More hosts idle than jobs wait, but `ratio` may want several for each.
        let each = settings.ratio.max(1.0);
        busy.saturating_add(times(pending, each)).min(existing)
    };
    let floor = settings.min.saturating_add(surge);
    let wanted = existing
        .saturating_add(grow)
        .max(floor)
        .saturating_sub(existing)
        .saturating_sub(requested);
    let target = needed.max(floor).min(settings.max);
    let present = existing.saturating_add(requested).saturating_add(stopping);
    Target {
        busy,
        target,
        wanted,
        room: settings.max.saturating_sub(present),
        surplus: existing.saturating_sub(target),
    }
}

/// `count × ratio`, rounded up. A hair below a whole number is that number: 10 × 0.7 is 7.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, and is not negative"
)]
fn times(count: u32, ratio: f64) -> u32 {
    (f64::from(count) * ratio - 1e-9).ceil().max(0.0) as u32
}

/// Since when there has been a surplus. Not knowing the demand starts the time anew.
pub(crate) fn surplus_since(
    memory: &PoolMemory,
    surplus: u32,
    known: bool,
    now: Timestamp,
) -> Option<Timestamp> {
    (known && surplus > 0).then(|| memory.surplus_since.map_or(now, |since| since.min(now)))
}

/// Whether the surplus has lasted.
pub(crate) fn lasts(since: Option<Timestamp>, delay: Duration, now: Timestamp) -> bool {
    since.is_some_and(|since| elapsed(since, now) >= delay)
}

/// Since when the pool is under repair: less than half of what it launched lately has registered
/// within its timeouts. It ends when a host that was launched after its begin registers.
///
/// While it lasts a pass launches one instance at most, as Buildkite's scaler does since filling the
/// whole gap again and again cost its users money. It is the guard against an image that boots and
/// never takes a job until rollouts bring the breaker per image and pool, which will sit in the same
/// place: as a bound on what is asked for, before limits.
pub(crate) fn repairing_since(pool: &PoolCensus<'_>, now: Timestamp) -> Option<Timestamp> {
    if let Some(since) = pool.memory.repairing_since {
        let came_up = pool
            .members
            .iter()
            .any(|member| member.instance.host.is_some() && member.instance.launched_at >= since);
        return (!came_up).then_some(since);
    }
    let window = pool.settings.registration_timeout * REPAIR_WINDOW;
    let (mut registered, mut dead) = (0_u32, 0_u32);
    for member in &pool.members {
        if elapsed(member.instance.launched_at, now) > window {
            continue;
        }
        if member.instance.host.is_some() {
            registered += 1;
        } else if member.class == Class::Stopping {
            dead += 1;
        }
    }
    let known = registered + dead;
    (known >= REPAIR_SAMPLE && registered < known - registered).then_some(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(min: u32, max: u32, ratio: f64) -> PoolSettings {
        PoolSettings {
            min,
            max,
            ratio,
            ..PoolSettings::default()
        }
    }

    fn figures(pending: u32, existing: u32, with_job: u32) -> Figures {
        Figures {
            pending,
            running: with_job,
            existing,
            with_job,
            ..Figures::default()
        }
    }

    #[test]
    fn what_is_wanted_is_written_out() {
        // pending, existing, busy, requested, stopping, min, max, ratio → target, wanted, room, surplus
        let table = [
            ((0, 0, 0, 0, 0, 0, 10, 1.0), (0, 0, 10, 0)),
            ((5, 0, 0, 0, 0, 0, 10, 1.0), (5, 5, 10, 0)),
            // What is idle takes the jobs first.
            ((5, 3, 0, 0, 0, 0, 10, 1.0), (5, 2, 7, 0)),
            ((5, 3, 3, 0, 0, 0, 10, 1.0), (8, 5, 7, 0)),
            // What boots is not asked for again.
            ((5, 0, 0, 5, 0, 0, 10, 1.0), (5, 0, 5, 0)),
            ((5, 0, 0, 3, 0, 0, 10, 1.0), (5, 2, 7, 0)),
            // What stops is no capacity, satisfies no minimum, and takes room.
            ((5, 0, 0, 0, 8, 0, 10, 1.0), (5, 5, 2, 0)),
            ((0, 0, 0, 0, 8, 2, 10, 1.0), (2, 2, 2, 0)),
            // The maximum; 0 is none.
            ((50, 0, 0, 0, 0, 0, 10, 1.0), (10, 50, 10, 0)),
            ((50, 0, 0, 0, 0, 0, 0, 1.0), (0, 50, 0, 0)),
            ((0, 12, 12, 0, 0, 0, 10, 1.0), (10, 0, 0, 2)),
            // The minimum.
            ((0, 1, 0, 0, 0, 3, 10, 1.0), (3, 2, 9, 0)),
            ((0, 5, 0, 0, 0, 3, 10, 1.0), (3, 0, 5, 2)),
            // Surplus is what is idle and has no job waiting for it.
            ((2, 5, 1, 0, 0, 0, 10, 1.0), (3, 0, 5, 2)),
            ((4, 5, 1, 0, 0, 0, 10, 1.0), (5, 0, 5, 0)),
            // The ratio, rounded up.
            ((10, 0, 0, 0, 0, 0, 99, 0.5), (5, 5, 99, 0)),
            ((3, 0, 0, 0, 0, 0, 99, 0.5), (2, 2, 99, 0)),
            ((10, 0, 0, 0, 0, 0, 99, 0.7), (7, 7, 99, 0)),
            ((10, 20, 0, 0, 0, 0, 99, 2.0), (20, 0, 79, 0)),
            ((10, 25, 0, 0, 0, 0, 99, 2.0), (20, 0, 74, 5)),
        ];
        for (given, expected) in table {
            let (pending, existing, busy, requested, stopping, min, max, ratio) = given;
            let figures = Figures {
                requested,
                stopping,
                ..figures(pending, existing, busy)
            };
            let got = target(&settings(min, max, ratio), figures, 0);
            assert_eq!(
                (got.target, got.wanted, got.room, got.surplus),
                expected,
                "{given:?}"
            );
        }
    }

    #[test]
    fn a_job_is_counted_once_whoever_speaks_of_it() {
        let busy = |running, with_job, leaving_with_job| {
            let figures = Figures {
                running,
                leaving_with_job,
                ..figures(0, 10, with_job)
            };
            target(&settings(0, 99, 1.0), figures, 0).busy
        };
        assert_eq!(busy(4, 4, 0), 4, "both know all of them");
        assert_eq!(busy(6, 4, 0), 6, "taken a moment ago");
        assert_eq!(busy(2, 4, 0), 4, "ended a moment ago");
        assert_eq!(busy(6, 4, 2), 4, "two of them on hosts that leave");
        assert_eq!(busy(60, 4, 0), 10, "never more than there are hosts");
    }

    #[test]
    fn a_surplus_is_timed_from_its_begin_and_forgotten_with_its_end() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let began = at("2026-01-01T00:00:00Z");
        let memory = PoolMemory {
            surplus_since: Some(began),
            ..PoolMemory::default()
        };
        let now = at("2026-01-01T00:04:59Z");
        assert_eq!(surplus_since(&memory, 1, true, now), Some(began));
        assert_eq!(surplus_since(&memory, 0, true, now), None);
        assert_eq!(surplus_since(&memory, 1, false, now), None);
        let delay = Duration::from_secs(300);
        assert!(!lasts(Some(began), delay, now));
        assert!(lasts(Some(began), delay, at("2026-01-01T00:05:00Z")));
        // A clock that stepped back does not make the surplus older than it is.
        let earlier = at("2025-12-31T23:00:00Z");
        assert_eq!(surplus_since(&memory, 1, true, earlier), Some(earlier));
    }
}
