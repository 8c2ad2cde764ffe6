//! What people are shown of the fleet: the same rows for the HTTP API and for the command line.
//!
//! Rows are made from a pass as it is kept, and nothing else. Their names are stable: those of the
//! glossary and of the log. Times are RFC 3339 in UTC, money is in dollars, what is not known is
//! `null`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cloud::{CapacityType, InstanceState};
use crate::config::Config;
use crate::demand::{PoolDemand, SourceHold};
use crate::ids::{
    ImageId, ImageName, InstanceId, InstanceType, IntentId, PassId, PoolName, Region, Zone,
};
use crate::money::Money;
use crate::plan::{self, Blocked, PoolPlan};
use crate::store::{Action, ActionVerb, Pass, PassSummary};
use crate::world::{
    Assignment, Hold, HostActivity, HostView, ImageShare, Instance, LeaveReason, Order, Sight,
    World,
};

/// Where an instance is in its life, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The cloud starts it.
    Launching,
    /// It is up, and its host has not registered yet.
    Booting,
    /// Its host waits for a job.
    Idle,
    /// Its host has a job.
    Busy,
    /// Its host takes no further job; it may still have one.
    Draining,
    /// Its host has no job and takes none.
    Fenced,
    /// Its end was decided, or the cloud ends it.
    Ending,
    /// It is stopped: costs storage, runs nothing.
    Stopped,
    /// It is gone.
    Gone,
    /// It carries the fleet's owner tag and no intent: golden or foreign, never touched.
    Foreign,
}

/// The phase of `instance`.
#[must_use]
pub const fn phase(instance: &Instance) -> Phase {
    match (instance.state, &instance.host) {
        (InstanceState::Terminated, _) => Phase::Gone,
        _ if instance.intent.is_none() => Phase::Foreign,
        (InstanceState::Stopping, _) => Phase::Ending,
        _ if instance.ended_at.is_some() => Phase::Ending,
        (InstanceState::Stopped, _) => Phase::Stopped,
        (InstanceState::Pending, None) => Phase::Launching,
        (InstanceState::Running, None) => Phase::Booting,
        (InstanceState::Pending | InstanceState::Running, Some(host)) => match host.activity {
            HostActivity::Idle => Phase::Idle,
            HostActivity::Busy => Phase::Busy,
            HostActivity::Draining => Phase::Draining,
            HostActivity::Fenced => Phase::Fenced,
        },
    }
}

/// What a host is told, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// Work.
    GoOn,
    /// Take no further job, stay.
    Drain,
    /// Take no further job, be ended.
    Quit,
}

/// One instance: a row of `ps`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceRow {
    /// Its id.
    pub instance_id: InstanceId,
    /// Its pool; `None` for one without our tags.
    pub pool: Option<PoolName>,
    /// Its image.
    pub image: Option<ImageName>,
    /// Its image in its region.
    pub image_id: Option<ImageId>,
    /// Its region.
    pub region: Region,
    /// Its zone.
    pub zone: Zone,
    /// Kind of machine.
    pub instance_type: InstanceType,
    /// How it is paid for.
    pub capacity_type: CapacityType,
    /// Dollars per hour, as of launch.
    pub price: Money,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its state in the cloud.
    pub state: InstanceState,
    /// Who knows it.
    pub sight: Sight,
    /// Whether the cloud took it back.
    pub interrupted: bool,
    /// The decision that launched it.
    pub intent: Option<IntentId>,
    /// When it was launched.
    pub launched_at: Timestamp,
    /// When its host registered.
    pub registered_at: Option<Timestamp>,
    /// When its host was heard last.
    pub heard_at: Option<Timestamp>,
    /// Since when its host does what it does.
    pub since: Option<Timestamp>,
    /// The job its host has.
    pub job: Option<String>,
    /// Runs of its host.
    pub runs: Option<u64>,
    /// When the cloud will take it.
    pub interruption_at: Option<Timestamp>,
    /// What its host is told.
    pub assignment: Told,
    /// Why.
    pub reason: Option<LeaveReason>,
    /// Since when.
    pub assigned_at: Option<Timestamp>,
    /// Who keeps it; a hold that has expired is none.
    pub hold: Option<Hold>,
    /// When the sweep first found it not to belong.
    pub suspected_at: Option<Timestamp>,
    /// When its end was decided.
    pub ended_at: Option<Timestamp>,
}

/// The instances of `world`, by id.
#[must_use]
pub fn instances(world: &World) -> Vec<InstanceRow> {
    let row = |instance| instance_row(instance, world.now);
    world.instances.iter().map(row).collect()
}

/// One row of [`instances`].
#[must_use]
pub fn instance_row(instance: &Instance, now: Timestamp) -> InstanceRow {
    let host = instance.host.as_ref();
    let (assignment, left) = match &instance.assignment {
        Assignment::GoOn => (Told::GoOn, None),
        Assignment::Drain { reason, since } => (Told::Drain, Some((*reason, *since))),
        Assignment::Quit { reason, since } => (Told::Quit, Some((*reason, *since))),
    };
    InstanceRow {
        instance_id: instance.id.clone(),
        pool: instance.pool.clone(),
        image: instance.image.clone(),
        image_id: instance.image_id.clone(),
        region: instance.offering.region.clone(),
        zone: instance.offering.zone.clone(),
        instance_type: instance.offering.instance_type.clone(),
        capacity_type: instance.offering.capacity_type,
        price: instance.price,
        phase: phase(instance),
        state: instance.state,
        sight: instance.sight,
        interrupted: instance.interrupted,
        intent: instance.intent.clone(),
        launched_at: instance.launched_at,
        registered_at: host.map(|host| host.registered_at),
        heard_at: host.map(|host| host.heard_at),
        since: host.map(|host| host.since),
        job: host.and_then(|host| host.job.clone()),
        runs: host.map(|host| host.runs),
        interruption_at: host.and_then(|host| host.interruption_at),
        assignment,
        reason: left.map(|(reason, _)| reason),
        assigned_at: left.map(|(_, since)| since),
        hold: instance
            .hold
            .as_deref()
            .filter(|hold| hold.expires.is_none_or(|at| at > now))
            .cloned(),
        suspected_at: instance.suspected_at,
        ended_at: instance.ended_at,
    }
}

/// One pool: a row of `pools`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolRow {
    /// Its name.
    pub pool: PoolName,
    /// Jobs that wait; `None` if nobody asked for this pool in the pass.
    pub pending: Option<u32>,
    /// Jobs that run.
    pub running: Option<u32>,
    /// How long the oldest job waits; in JSON in milliseconds.
    #[serde(rename = "oldest_age_ms", with = "millis", default)]
    pub oldest_age: Option<Duration>,
    /// Oldest time any part of the demand is true for.
    pub as_of: Option<Timestamp>,
    /// Jobs left out because they are too young to count.
    pub too_young: u32,
    /// Jobs left out because they are too old to count.
    pub too_old: u32,
    /// Sources that cannot be relied on now.
    pub holds: Vec<SourceHold>,
    /// Hosts up and registered, and not leaving.
    pub existing: u32,
    /// Of these, with a job.
    pub busy: u32,
    /// Instances asked for and not yet registered.
    pub requested: u32,
    /// Instances on their way out.
    pub stopping: u32,
    /// Hosts wanted.
    pub target: u32,
    /// Instances the formula asks to launch, before limits.
    pub wanted: u32,
    /// Instances the pass launches.
    pub launching: u32,
    /// What made the launches fewer than wanted.
    pub blocked: Vec<Blocked>,
    /// Dollars per hour once the pass is done, at most.
    pub bill: Money,
    /// Dollars spent today (UTC).
    pub spent_today: Money,
    /// The order of maintenance that holds for it, of its own or of the fleet.
    pub maintenance: Option<Order>,
}

/// Durations for programs that draw them.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let millis = time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        millis.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let millis = Option::<u64>::deserialize(deserializer)?;
        Ok(millis.map(Duration::from_millis))
    }
}

/// The pools of `pass`, by name: those it planned for, those with demand, and those instances are of.
#[must_use]
pub fn pools(pass: &Pass) -> Vec<PoolRow> {
    let Pass { world, plan, .. } = pass;
    let of_instances = world
        .instances
        .iter()
        .filter(|instance| plan::counts(instance) && instance.intent.is_some())
        .filter_map(|instance| instance.pool.as_ref());
    let names: BTreeSet<&PoolName> = plan
        .pools
        .keys()
        .chain(world.demand.keys())
        .chain(of_instances)
        .collect();
    let row = |name: &PoolName| {
        let demand = world.demand.get(name);
        pool_row(name, demand, plan.pools.get(name), world)
    };
    names.into_iter().map(row).collect()
}

fn pool_row(
    name: &PoolName,
    demand: Option<&PoolDemand>,
    plan: Option<&PoolPlan>,
    world: &World,
) -> PoolRow {
    let none = PoolPlan::default();
    let plan = plan.unwrap_or(&none);
    PoolRow {
        pool: name.clone(),
        pending: demand.map(|demand| demand.pending),
        running: demand.map(|demand| demand.running),
        oldest_age: demand.and_then(|demand| demand.oldest_age),
        as_of: demand.and_then(|demand| demand.as_of),
        too_young: demand.map_or(0, |demand| demand.too_young),
        too_old: demand.map_or(0, |demand| demand.too_old),
        holds: demand.map_or_else(Vec::new, |demand| demand.holds.clone()),
        existing: plan.existing,
        busy: plan.busy,
        requested: plan.requested,
        stopping: plan.stopping,
        target: plan.target,
        wanted: plan.wanted,
        launching: plan.launching,
        blocked: plan.blocked.clone(),
        bill: plan.bill,
        spent_today: world.spent_today.get(name).copied().unwrap_or_default(),
        maintenance: world.maintenance.of(name).cloned(),
    }
}

/// One image: a row of `images`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageRow {
    /// Its name.
    pub image: ImageName,
    /// Its id in each region, as configured; empty if it is not configured any more.
    pub ids: BTreeMap<Region, ImageId>,
    /// The pools that launch it, or have instances of it, by name.
    pub pools: Vec<ImageInPool>,
}

/// An image in one pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageInPool {
    /// The pool.
    pub pool: PoolName,
    /// Percentage of the pool's launches that get the image; 0: its instances have drifted.
    pub percentage: f64,
    /// Instances of it, those that are ending included.
    pub instances: u32,
    /// Of these, with a host that registered.
    pub registered: u32,
    /// Of these, with a job.
    pub busy: u32,
}

/// The images that are configured or that instances of `world` have, by name.
#[must_use]
pub fn images(world: &World, config: &Config) -> Vec<ImageRow> {
    let mut counted = launched(world, config);
    for instance in &world.instances {
        let (Some(pool), Some(image)) = (&instance.pool, &instance.image) else {
            continue;
        };
        if instance.intent.is_none() || !plan::counts(instance) {
            continue;
        }
        let place = counted
            .entry(image.clone())
            .or_default()
            .entry(pool.clone())
            .or_insert_with(|| unlaunched(pool));
        place.instances += 1;
        if let Some(HostView { job, .. }) = &instance.host {
            place.registered += 1;
            place.busy += u32::from(job.is_some());
        }
    }
    let row = |(image, pools): (ImageName, BTreeMap<_, ImageInPool>)| ImageRow {
        ids: config
            .images
            .get(&image)
            .map_or_else(BTreeMap::new, |settings| settings.ids.clone()),
        image,
        pools: pools.into_values().collect(),
    };
    counted.into_iter().map(row).collect()
}

/// The images that are configured, with the pools that launch them and no instances yet.
fn launched(
    world: &World,
    config: &Config,
) -> BTreeMap<ImageName, BTreeMap<PoolName, ImageInPool>> {
    let mut images: BTreeMap<ImageName, BTreeMap<_, _>> = config
        .images
        .keys()
        .map(|image| (image.clone(), BTreeMap::new()))
        .collect();
    for (name, pool) in &config.pools {
        let own = pool.image.iter().map(|image| ImageShare {
            image: image.clone(),
            percentage: 100.0,
        });
        let shares = world
            .shares
            .get(name)
            .cloned()
            .unwrap_or_else(|| own.collect());
        for share in shares {
            let place = ImageInPool {
                percentage: share.percentage,
                ..unlaunched(name)
            };
            images
                .entry(share.image)
                .or_default()
                .insert(name.clone(), place);
        }
    }
    images
}

fn unlaunched(pool: &PoolName) -> ImageInPool {
    ImageInPool {
        pool: pool.clone(),
        percentage: 0.0,
        instances: 0,
        registered: 0,
        busy: 0,
    }
}

/// One pass in a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassRow {
    /// Its number.
    pub pass: PassId,
    /// When it began.
    pub at: Timestamp,
    /// Instances asked for by its launches.
    pub launches: u32,
    /// Instances ended.
    pub terminations: u32,
    /// Faults that stopped it.
    pub faults: u32,
}

impl From<PassSummary> for PassRow {
    fn from(summary: PassSummary) -> Self {
        let PassSummary {
            id,
            at,
            launches,
            terminations,
            faults,
        } = summary;
        Self {
            pass: id,
            at,
            launches,
            terminations,
            faults,
        }
    }
}

/// Something somebody did to something: a row of `history`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRow {
    /// When.
    pub at: Timestamp,
    /// Who: `provisioner`, an instance id, or a person's name.
    pub by: String,
    /// What.
    pub verb: ActionVerb,
    /// To which instance.
    pub instance_id: Option<InstanceId>,
    /// For which launch.
    pub intent: Option<IntentId>,
    /// In which pool.
    pub pool: Option<PoolName>,
    /// In which pass.
    pub pass: Option<PassId>,
    /// With what result, for a person.
    pub result: String,
}

impl From<Action> for HistoryRow {
    fn from(action: Action) -> Self {
        let Action {
            at,
            by,
            verb,
            instance,
            intent,
            pool,
            pass,
            result,
        } = action;
        Self {
            at,
            by,
            verb,
            instance_id: instance,
            intent,
            pool,
            pass,
            result,
        }
    }
}

#[cfg(test)]
mod tests;
