//! Who there is: one walk over instances and intents, sorted into pools and classes.
//!
//! An instance is in exactly one [`Class`], and each class has its place in the sums:
//!
//! - [`Class::Existing`] is capacity: a host that is up, heard of, and takes jobs.
//! - [`Class::Requested`] will be capacity: it boots, within its timeouts. Without it every pass
//!   until the first host registers would ask again for what was asked already. An open intent
//!   counts for what it asked, less the instances that carry its tag already.
//! - [`Class::Stopping`] is none and will be none, but it is there: it costs, and takes room under
//!   every limit, until the cloud says that it is gone. Taskcluster's `estimator.js` adds this class
//!   to what exists and takes it away again, so that it only matters against the maximum; that is
//!   what it does here. Forgetting it launched thousands of machines beside thousands that could not
//!   be deleted; counting it as capacity would leave jobs waiting for hosts that drain.
//!
//! What a host says decides, not what it was told: a held host that takes jobs is capacity.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;

use crate::cloud::{CapacityType, InstanceState, LaunchRequest};
use crate::config::{Config, PoolSettings};
use crate::ids::{IntentId, PoolName, Region};
use crate::money::Money;
use crate::world::{
    Assignment, Hold, HostActivity, Instance, Intent, LeaveReason, PoolMemory, Sight, World,
    elapsed,
};

/// How long hosts that were told to go on may still say that they take no job. They ask every 30
/// seconds; counting them out meanwhile would launch as many again when maintenance ends.
pub(crate) const RESUME_GRACE: Duration = Duration::from_secs(120);

/// What an instance is to its pool. See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Up and taking jobs.
    Existing,
    /// On its way up.
    Requested,
    /// On its way out, or never to come up.
    Stopping,
}

/// One instance, judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member<'w> {
    pub(crate) instance: &'w Instance,
    pub(crate) class: Class,
}

/// What is on its way for a pool without an instance to show yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenIntent<'w> {
    pub(crate) intent: &'w Intent,
    /// Instances it may still bring.
    pub(crate) missing: u32,
}

/// One configured pool and all that belongs to it.
#[derive(Debug)]
pub(crate) struct PoolCensus<'w> {
    pub(crate) name: &'w PoolName,
    pub(crate) settings: &'w PoolSettings,
    pub(crate) memory: PoolMemory,
    /// A person's order to do nothing.
    pub(crate) maintained: bool,
    /// A source that cannot be relied on.
    pub(crate) source_hold: bool,
    /// By id.
    pub(crate) members: Vec<Member<'w>>,
    pub(crate) intents: Vec<OpenIntent<'w>>,
}

/// Everything there is, by what limits count in.
#[derive(Debug, Default)]
pub(crate) struct Totals<'w> {
    pub(crate) fleet: u32,
    pub(crate) on_demand: u32,
    pub(crate) regions: HashMap<&'w Region, u32>,
    pub(crate) per_hour: Money,
}

/// The farm, sorted.
#[derive(Debug)]
pub(crate) struct Census<'w> {
    /// Configured pools, by name.
    pub(crate) pools: Vec<PoolCensus<'w>>,
    /// Instances of pools that are no longer configured, by id.
    pub(crate) removed: Vec<&'w Instance>,
    /// All instances, by id.
    pub(crate) instances: Vec<&'w Instance>,
    /// All open intents, by id.
    pub(crate) intents: Vec<OpenIntent<'w>>,
    pub(crate) totals: Totals<'w>,
}

/// Whether `region` was observed in this pass.
pub(crate) fn observed(world: &World, region: &Region) -> bool {
    world.regions.get(region).is_some_and(|view| view.observed)
}

/// The hold that keeps `instance`, unless it has expired.
pub(crate) fn held(instance: &Instance, now: Timestamp) -> Option<&Hold> {
    let hold = instance.hold.as_deref();
    hold.filter(|hold| hold.expires.is_none_or(|expires| now < expires))
}

/// Whether the sweep, timeouts and assignments may concern `instance` at all: neither golden, nor
/// foreign, nor held by a person.
pub(crate) fn ours(instance: &Instance, now: Timestamp) -> bool {
    instance.intent.is_some() && held(instance, now).is_none()
}

/// Since when an instance without a host has been waited for. One that was adopted when it was
/// overdue already (the store is new, or was lost) is waited for anew from its adoption: its host
/// registers as soon as it finds the provisioner that knows it.
fn awaited_since(instance: &Instance) -> Timestamp {
    instance
        .suspected_at
        .map_or(instance.launched_at, |adopted| {
            adopted.max(instance.launched_at)
        })
}

/// Why an instance without a host should have had one by now.
pub(crate) fn overdue(
    instance: &Instance,
    settings: &PoolSettings,
    now: Timestamp,
) -> Option<LeaveReason> {
    if instance.host.is_some() {
        return None;
    }
    let waited = elapsed(awaited_since(instance), now);
    if instance.state == InstanceState::Pending && waited > settings.launch_timeout {
        Some(LeaveReason::NeverStarted)
    } else if waited > settings.registration_timeout {
        Some(LeaveReason::NeverRegistered)
    } else {
        None
    }
}

/// Whether the host of `instance` has not been heard of for too long.
pub(crate) fn silent(instance: &Instance, settings: &PoolSettings, now: Timestamp) -> bool {
    let host = instance.host.as_ref();
    host.is_some_and(|host| elapsed(host.heard_at, now) > settings.silence_timeout)
}

impl PoolCensus<'_> {
    fn class(&self, instance: &Instance, now: Timestamp) -> Class {
        let leaving = instance.ended_at.is_some()
            || matches!(
                instance.state,
                InstanceState::Stopping | InstanceState::Stopped
            )
            || matches!(instance.assignment, Assignment::Quit { .. });
        let Some(host) = instance.host.as_ref().filter(|_| !leaving) else {
            let late = leaving || overdue(instance, self.settings, now).is_some();
            return if late {
                Class::Stopping
            } else {
                Class::Requested
            };
        };
        if host.interruption_at.is_some() || silent(instance, self.settings, now) {
            return Class::Stopping;
        }
        let takes_jobs = match host.activity {
            HostActivity::Idle | HostActivity::Busy => true,
            HostActivity::Draining | HostActivity::Fenced => false,
        };
        let told = match &instance.assignment {
            Assignment::GoOn => takes_jobs || self.resumed_lately(now),
            // Told to go on by this very pass, if the order is over and nobody holds it.
            Assignment::Drain { reason, .. } => {
                *reason == LeaveReason::Maintenance && !self.maintained && ours(instance, now)
            }
            Assignment::Quit { .. } => false,
        };
        if told {
            Class::Existing
        } else {
            Class::Stopping
        }
    }

    fn resumed_lately(&self, now: Timestamp) -> bool {
        let resumed_at = self.memory.resumed_at;
        resumed_at.is_some_and(|at| elapsed(at, now) <= RESUME_GRACE)
    }

    /// Members of one class.
    pub(crate) fn of(&self, class: Class) -> impl Iterator<Item = &Member<'_>> {
        self.members
            .iter()
            .filter(move |member| member.class == class)
    }

    pub(crate) fn count(&self, class: Class) -> u32 {
        number(self.of(class).count())
    }

    /// Instances that open intents may still bring.
    pub(crate) fn missing(&self) -> u32 {
        self.intents.iter().map(|open| open.missing).sum()
    }
}

/// A count of things in memory.
pub(crate) fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Walks over `world` once.
pub(crate) fn take<'w>(world: &'w World, config: &'w Config) -> Census<'w> {
    let mut pools: Vec<PoolCensus<'w>> = config
        .pools
        .iter()
        .map(|(name, settings)| PoolCensus {
            name,
            settings,
            memory: world.memory.get(name).cloned().unwrap_or_default(),
            maintained: world.maintenance.of(name).is_some(),
            source_hold: world
                .demand
                .get(name)
                .is_some_and(|demand| !demand.holds.is_empty()),
            members: Vec::new(),
            intents: Vec::new(),
        })
        .collect();
    let index: HashMap<&PoolName, usize> = config.pools.keys().zip(0..).collect();
    let mut instances: Vec<&Instance> = world.instances.iter().collect();
    instances.sort_by(|a, b| a.id.cmp(&b.id));
    let mut totals = Totals::default();
    let mut removed = Vec::new();
    let mut brought: HashMap<&IntentId, u32> = world
        .intents
        .iter()
        .map(|intent| (&intent.request.intent, 0))
        .collect();
    for &instance in &instances {
        if !brought.is_empty()
            && let Some(id) = &instance.intent
            && let Some(count) = brought.get_mut(id)
        {
            *count += 1;
        }
        if !super::counts(instance) {
            continue;
        }
        totals.add(
            &instance.offering.region,
            instance.offering.capacity_type,
            1,
            instance.price,
        );
        // A golden or foreign instance belongs to the fleet and to no pool.
        let (Some(_), Some(pool)) = (&instance.intent, &instance.pool) else {
            continue;
        };
        match index.get(pool) {
            Some(&at) => {
                let class = pools[at].class(instance, world.now);
                pools[at].members.push(Member { instance, class });
            }
            None => removed.push(instance),
        }
    }
    let mut intents: Vec<OpenIntent<'w>> = world
        .intents
        .iter()
        .map(|intent| OpenIntent {
            intent,
            missing: intent
                .request
                .count
                .saturating_sub(brought[&intent.request.intent]),
        })
        .collect();
    intents.sort_by(|a, b| a.intent.request.intent.cmp(&b.intent.request.intent));
    for &open in &intents {
        let request = &open.intent.request;
        totals.add(
            &request.region,
            request.capacity_type,
            open.missing,
            dearest(request).times(open.missing),
        );
        if let Some(&at) = index.get(&request.pool) {
            pools[at].intents.push(open);
        }
    }
    Census {
        pools,
        removed,
        instances,
        intents,
        totals,
    }
}

impl<'w> Totals<'w> {
    fn add(&mut self, region: &'w Region, capacity: CapacityType, count: u32, per_hour: Money) {
        self.fleet += count;
        if capacity == CapacityType::OnDemand {
            self.on_demand += count;
        }
        *self.regions.entry(region).or_default() += count;
        self.per_hour += per_hour;
    }
}

/// The dearest choice of a request, per instance.
pub(crate) fn dearest(request: &LaunchRequest) -> Money {
    let prices = request.choices.iter().map(|choice| choice.price);
    prices.max().unwrap_or_default()
}

/// What a pool costs per hour now, and what its open intents may add.
pub(crate) fn per_hour(pool: &PoolCensus<'_>) -> Money {
    let running: Money = pool
        .members
        .iter()
        .map(|member| member.instance.price)
        .sum();
    let asked: Money = pool
        .intents
        .iter()
        .map(|open| dearest(&open.intent.request).times(open.missing))
        .sum();
    running + asked
}

/// On-demand instances of a pool, those asked for included.
pub(crate) fn on_demand(pool: &PoolCensus<'_>) -> u32 {
    let is = |capacity| capacity == CapacityType::OnDemand;
    let running = pool
        .members
        .iter()
        .filter(|member| is(member.instance.offering.capacity_type));
    let asked = pool
        .intents
        .iter()
        .filter(|open| is(open.intent.request.capacity_type));
    number(running.count()) + asked.map(|open| open.missing).sum::<u32>()
}

/// The image of everything that is or will be a host of the pool, and how many of each.
pub(crate) fn images<'w>(pool: &PoolCensus<'w>) -> BTreeMap<&'w crate::ids::ImageName, u32> {
    let mut counts = BTreeMap::new();
    let members = pool
        .members
        .iter()
        .filter(|member| member.class != Class::Stopping);
    for member in members {
        if let Some(image) = &member.instance.image {
            *counts.entry(image).or_default() += 1;
        }
    }
    for open in &pool.intents {
        *counts.entry(&open.intent.request.image).or_default() += open.missing;
    }
    counts
}

/// Whether only the cloud knows `instance` and it is ours in every respect: it enters the store.
pub(crate) fn adoptable(instance: &Instance, config: &Config, now: Timestamp) -> bool {
    let pool = instance.pool.as_ref();
    instance.sight == Sight::CloudOnly
        && ours(instance, now)
        && instance.image.is_some()
        && pool.is_some_and(|pool| config.pools.contains_key(pool))
}
