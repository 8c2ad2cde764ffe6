//! Everything a plan is made from: plain data, gathered by `observe`, kept for the last passes.
//!
//! A [`World`] can be written down, read back and planned again; nothing in it refers to anything
//! outside. Where something could not be observed it says so, and keeps what was known before.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cloud::{InstanceState, LaunchRequest, Offering, OfferingKey, ShortReason};
use crate::demand::PoolDemand;
use crate::ids::{
    ImageId, ImageName, InstanceId, InstanceType, IntentId, PassId, PoolName, Region,
};
use crate::money::Money;

/// The farm at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct World {
    /// The pass this was gathered for.
    pub pass: PassId,
    /// Prefix of the ids of intents: differs for every store that ever was, so that no token of a
    /// forgotten store is used again.
    pub store: String,
    /// When it was gathered.
    pub now: Timestamp,
    /// Demand of every configured pool.
    pub demand: BTreeMap<PoolName, PoolDemand>,
    /// What a person should know of the rules: jobs that match none, rules that match none.
    #[serde(default)]
    pub remarks: Vec<String>,
    /// Instances of this fleet, by id.
    pub instances: Vec<Instance>,
    /// Launches that were decided and not yet answered, by id.
    pub intents: Vec<Intent>,
    /// What was learnt of each configured region.
    pub regions: BTreeMap<Region, RegionView>,
    /// What is for sale, by key.
    pub offerings: Vec<Offering>,
    /// Where there was no capacity.
    pub shortages: Vec<Shortage>,
    /// Interruptions seen per offering lately.
    pub interruptions: Vec<Interruptions>,
    /// Which share of its launches each pool gives to which image; absent: all to the pool's own.
    pub shares: BTreeMap<PoolName, Vec<ImageShare>>,
    /// Who stopped what.
    pub maintenance: Maintenance,
    /// Money spent today, by pool.
    pub spent_today: BTreeMap<PoolName, Money>,
    /// What the planner wants to remember of each pool.
    pub memory: BTreeMap<PoolName, PoolMemory>,
}

/// One region, as far as it could be observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionView {
    /// Whether its instances were listed in this pass. If not, those below are the store's, nothing
    /// is launched there and nothing is judged lost.
    pub observed: bool,
    /// What went wrong, for a person.
    pub fault: Option<String>,
}

/// How the store and the cloud agree about an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sight {
    /// Both know it.
    Both,
    /// The cloud has it and the store does not: to be adopted if its tags are ours, else a stray.
    CloudOnly,
    /// The store has it and the cloud does not show it: not yet visible, or gone.
    StoreOnly,
    /// The region could not be listed: what the store knows.
    Unobserved,
}

/// One instance, as store, cloud and host together show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// What it is.
    #[serde(flatten)]
    pub offering: OfferingKey,
    /// The decision that launched it; `None` for one that carries our owner tag and no intent: a
    /// golden or foreign machine, never touched.
    pub intent: Option<IntentId>,
    /// Its pool; may be one that is no longer configured.
    pub pool: Option<PoolName>,
    /// Its image.
    pub image: Option<ImageName>,
    /// Its image in its region.
    pub image_id: Option<ImageId>,
    /// Price per hour, as of launch.
    pub price: Money,
    /// When it was launched.
    pub launched_at: Timestamp,
    /// Who knows it.
    pub sight: Sight,
    /// Its state in the cloud, or the last one known.
    pub state: InstanceState,
    /// Whether the cloud took it back.
    pub interrupted: bool,
    /// What its host says; `None` until it registered.
    pub host: Option<HostView>,
    /// What its host is told.
    pub assignment: Assignment,
    /// Who keeps it from being ended.
    pub hold: Option<Box<Hold>>,
    /// When the sweep first found it not to belong; the pass after decides.
    pub suspected_at: Option<Timestamp>,
    /// When its termination was decided. From then on it is never given work again.
    pub ended_at: Option<Timestamp>,
}

/// What a host said last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostView {
    /// When it registered.
    pub registered_at: Timestamp,
    /// When it was heard last. Time in which no provisioner listened is not silence: it counts from
    /// the start of the listener, if that is later.
    pub heard_at: Timestamp,
    /// What it is doing.
    pub activity: HostActivity,
    /// Since when.
    pub since: Timestamp,
    /// The job it has.
    pub job: Option<String>,
    /// Runs it finished since it registered.
    pub runs: u64,
    /// When the cloud will take it, if it was told so.
    pub interruption_at: Option<Timestamp>,
}

/// What a host is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostActivity {
    /// Between jobs, and takes the next.
    Idle,
    /// Has a job.
    Busy,
    /// Takes no further job; may still have one.
    Draining,
    /// Has no job and takes none: the confirmation that nothing is lost by ending it.
    Fenced,
}

/// What a host is told between jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "assignment", rename_all = "snake_case")]
pub enum Assignment {
    /// Work.
    #[default]
    GoOn,
    /// Finish the job, take no other, stay.
    Drain {
        /// Why.
        reason: LeaveReason,
        /// Since when.
        since: Timestamp,
    },
    /// Finish the job, take no other, confirm; the instance is then ended.
    Quit {
        /// Why.
        reason: LeaveReason,
        /// Since when.
        since: Timestamp,
    },
}

/// Why a host is to leave, or an instance is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaveReason {
    /// Idle for longer than the pool keeps hosts.
    Idle,
    /// Its image is no longer wanted.
    Drifted,
    /// More hosts than the limit allows.
    OverTarget,
    /// Somebody ordered maintenance.
    Maintenance,
    /// Its pool is no longer configured.
    PoolRemoved,
    /// It has made as many runs as a host of its pool makes.
    UsedUp,
    /// It was launched and never came up.
    NeverStarted,
    /// It came up and never registered.
    NeverRegistered,
    /// It was not heard of for too long.
    Silent,
    /// The cloud has it and no decision of ours launched it for a pool there is.
    Stray,
    /// Somebody asked for it.
    Asked,
}

impl std::fmt::Display for LeaveReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Idle => "idle",
            Self::Drifted => "drifted",
            Self::OverTarget => "over_target",
            Self::Maintenance => "maintenance",
            Self::PoolRemoved => "pool_removed",
            Self::UsedUp => "used_up",
            Self::NeverStarted => "never_started",
            Self::NeverRegistered => "never_registered",
            Self::Silent => "silent",
            Self::Stray => "stray",
            Self::Asked => "asked",
        })
    }
}

/// A person keeps an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Who.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// Until when; `None` until released. A hold that has expired is none.
    pub expires: Option<Timestamp>,
}

/// A launch that was decided and not yet answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// What is launched, word for word.
    pub request: LaunchRequest,
    /// The pass that decided it.
    pub pass: PassId,
    /// When.
    pub made_at: Timestamp,
    /// Calls made for it.
    pub attempts: u32,
    /// Not to be sent again before this.
    pub not_before: Option<Timestamp>,
}

/// What a lack of capacity is remembered for. Quotas and addresses are not a matter of the type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum ShortageKey {
    /// This type, in this zone, paid for like this.
    Offering(OfferingKey),
    /// The account's quota for this kind of capacity in this region.
    Quota {
        /// Region.
        region: Region,
        /// How it is paid for.
        capacity_type: crate::cloud::CapacityType,
    },
    /// The subnet of this zone has no addresses.
    Addresses {
        /// Zone.
        zone: crate::ids::Zone,
    },
    /// A pool's image or settings are refused in a region: nothing of that pool is launched there.
    Pool {
        /// Pool.
        pool: PoolName,
        /// Region.
        region: Region,
    },
}

/// A lack of capacity that is remembered: 3 minutes, doubling to 30 with every window in which it
/// was found again; when it ends one instance is tried first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortage {
    /// Of what.
    pub key: ShortageKey,
    /// Why.
    pub reason: ShortReason,
    /// In the cloud's words.
    pub message: String,
    /// Windows in a row that failed, from 1.
    pub failures: u32,
    /// When it was last found.
    pub at: Timestamp,
    /// Nothing is tried before this; then one instance, until something was launched.
    pub until: Timestamp,
}

/// Interruptions of one offering.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interruptions {
    /// Which.
    pub key: OfferingKey,
    /// Instances taken back in the last 24 hours.
    pub count: u32,
    /// Hours its instances ran in the last 24 hours.
    pub instance_hours: f64,
}

/// One image of a pool and the share of launches it gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageShare {
    /// The image.
    pub image: ImageName,
    /// Percentage of launches, 0 to 100. The shares of a pool sum to 100.
    pub percentage: f64,
}

/// What was stopped by a person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maintenance {
    /// The whole fleet.
    pub fleet: Option<Order>,
    /// Single pools.
    pub pools: BTreeMap<PoolName, Order>,
}

impl Maintenance {
    /// The order that holds for `pool`.
    #[must_use]
    pub fn of(&self, pool: &PoolName) -> Option<&Order> {
        self.fleet.as_ref().or_else(|| self.pools.get(pool))
    }
}

/// Something a person ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Who.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// What the planner remembers of a pool from pass to pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolMemory {
    /// Since when the pool has had more hosts than it needs; hosts leave only after a while of it.
    pub surplus_since: Option<Timestamp>,
    /// Since when most of what the pool launched has not registered; until a host launched later
    /// does, the pool grows by single instances.
    pub repairing_since: Option<Timestamp>,
    /// When hosts of the pool were last told to go on again. For a moment they still say that they
    /// take no job.
    pub resumed_at: Option<Timestamp>,
}

/// How long an instance has been what it is; zero if the clock stepped back.
#[must_use]
pub fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

/// Kinds of machines, with how much work each does compared to the others.
pub type Performance = BTreeMap<InstanceType, f64>;
