//! What to do, decided from a [`World`] and the configuration, and nothing else.
//!
//! [`plan`] is a function: the same World, configuration, time and seed give the same [`Plan`],
//! whatever order things were observed in. Every decision carries its reason, and every offering that
//! was not taken says why, so that `explain` only has to print.
//!
//! One module for each question: `census` who there is, `target` how many there should be,
//! `offerings` what could be bought, `limits` who gets how many of it, `images` what they boot,
//! `leave` who goes, `sweep` what store, cloud and hosts disagree about.

mod census;
mod images;
mod leave;
mod limits;
mod offerings;
mod pass;
mod sweep;
mod target;

#[cfg(test)]
pub(crate) mod farm;
#[cfg(test)]
mod tests;

pub use pass::plan;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cloud::{CapacityType, LaunchRequest, OfferingKey};
use crate::ids::{InstanceId, IntentId, PassId, PoolName, Region};
use crate::money::Money;
use crate::world::{Assignment, Instance, LeaveReason, PoolMemory};

#[cfg(doc)]
use crate::world::World;

/// What one pass does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The pass.
    pub pass: PassId,
    /// Launches decided before and not answered, to be sent again, word for word.
    pub replays: Vec<IntentId>,
    /// New launches.
    pub launches: Vec<LaunchRequest>,
    /// Instances to end now. None of them has a job.
    pub terminations: Vec<Termination>,
    /// What hosts are told from now on, where it changes.
    pub assignments: Vec<Reassignment>,
    /// Instances only the cloud knew that are ours: they enter the store.
    pub adoptions: Vec<InstanceId>,
    /// Instances only the store knew that are gone.
    pub losses: Vec<Loss>,
    /// First and second looks of the sweep: suspected from now on, or cleared.
    pub suspicions: Vec<Suspicion>,
    /// What is to be remembered of each pool.
    pub memory: BTreeMap<PoolName, PoolMemory>,
    /// How each pool's numbers came about.
    pub pools: BTreeMap<PoolName, PoolPlan>,
    /// What the fleet costs per hour once this plan is done, at most.
    pub bill: Money,
    /// Faults of single pools or regions that kept others from nothing.
    pub faults: Vec<String>,
}

/// An instance to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termination {
    /// Which.
    pub id: InstanceId,
    /// Where.
    pub region: Region,
    /// Why.
    pub reason: LeaveReason,
}

/// A host that is told something else than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reassignment {
    /// Which.
    pub id: InstanceId,
    /// What.
    pub assignment: Assignment,
}

/// An instance that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Which.
    pub id: InstanceId,
    /// Whether the cloud took it back.
    pub interrupted: bool,
    /// What happened, for a person.
    pub message: String,
}

/// A look of the sweep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspicion {
    /// Which.
    pub id: InstanceId,
    /// Whether it is suspected now, or cleared.
    pub suspected: bool,
    /// Why.
    pub message: String,
}

/// How the numbers of a pool came about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolPlan {
    /// Jobs that wait.
    pub pending: u32,
    /// Hosts up and registered, and not leaving.
    pub existing: u32,
    /// Of these, with a job.
    pub busy: u32,
    /// Instances asked for and not yet registered: intents and those that boot.
    pub requested: u32,
    /// Instances on their way out.
    pub stopping: u32,
    /// Hosts wanted.
    pub target: u32,
    /// Instances the formula asks to launch, before limits.
    pub wanted: u32,
    /// Instances this plan launches.
    pub launching: u32,
    /// What made the launches fewer than wanted, or holds the pool: each with its figure.
    pub blocked: Vec<Blocked>,
    /// What the pool costs per hour once this plan is done, at most.
    pub bill: Money,
    /// Offerings, best first, with what became of each.
    pub candidates: Vec<Candidate>,
}

/// What holds a pool back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// By what.
    pub by: Blocker,
    /// Instances it took away.
    pub count: u32,
    /// For a person, with the figures and the key to change: `limits.max_instances is 500`.
    pub message: String,
}

/// What can hold a pool back. The names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocker {
    /// A source of demand failed or is stale.
    Source,
    /// A person ordered maintenance.
    Maintenance,
    /// The pool's `max`.
    PoolMax,
    /// The pool's `max_step`.
    Step,
    /// The region's limit.
    RegionMax,
    /// The fleet's limit.
    FleetMax,
    /// The limit of on-demand instances.
    OnDemandMax,
    /// A cap on money per hour.
    MoneyPerHour,
    /// A cap on money per day.
    MoneyPerDay,
    /// No offering is left: prices, shortages.
    NoOffering,
    /// The image is not there in any region.
    NoImage,
    /// The region could not be observed.
    Region,
}

/// An offering a pool could use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Which.
    pub key: OfferingKey,
    /// Price per hour.
    pub price: Money,
    /// Dollars per hour and unit of work, weighted: lower is better. See `offerings` for the formula.
    pub score: f64,
    /// What became of it.
    pub fate: Fate,
}

/// What became of an offering.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fate", rename_all = "snake_case")]
pub enum Fate {
    /// Among the choices of a launch.
    Chosen {
        /// The launch.
        intent: IntentId,
    },
    /// Good, but not needed.
    Spare,
    /// Not usable, and why: with the figures.
    Lost {
        /// Why.
        why: String,
    },
}

/// Whether `instance` counts against limits: it exists, or will.
#[must_use]
pub fn counts(instance: &Instance) -> bool {
    !matches!(instance.state, crate::cloud::InstanceState::Terminated)
}

/// The id of the `ordinal`-th launch of a pass.
///
/// # Panics
/// Never: a store's prefix is made of letters and digits.
#[must_use]
pub fn intent_id(store: &str, pass: PassId, ordinal: usize) -> IntentId {
    IntentId::parse(&format!("{store}-{pass}-{ordinal}")).expect("made of plain characters")
}

/// The pools, regions and capacity types of launches: the unit all limits count in.
pub type Launches<'a> = BTreeMap<(&'a PoolName, &'a Region, CapacityType), u32>;

/// When a plan was made, for those who show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// When.
    pub at: Timestamp,
    /// What.
    pub plan: Plan,
}
