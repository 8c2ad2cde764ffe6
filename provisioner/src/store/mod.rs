//! What must survive: decisions before they are acted on, instances, hosts, orders, history.
//!
//! Reading is by [`Store::stored`] and a few questions; writing is by [`Store::commit`], which takes
//! any number of [`Change`]s as one transaction. Only who leads may change the fleet: a commit names
//! the [`Term`] it was made under, and is refused when another provisioner has led since.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;

use jiff::Timestamp;
use jiff::civil::Date;
use rand::TryRng as _;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};

use crate::cloud::{LaunchError, Launched, OfferingKey, Sighting};
use crate::ids::{ImageId, ImageName, InstanceId, IntentId, PassId, PoolName};
use crate::money::Money;
use crate::plan::Plan;
use crate::world::{
    Assignment, Hold, HostView, Intent, Interruptions, LeaveReason, Maintenance, Order, PoolMemory,
    Shortage, ShortageKey, World,
};

mod any;
mod changes;
mod packed;
#[cfg(feature = "postgres")]
pub mod postgres;
mod rows;
pub mod sql;
pub mod sqlite;
#[cfg(any(test, feature = "store-suite"))]
pub mod suite;

pub use any::{AnyStore, open};
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;

/// Whether a store that is not there is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Made: by the provisioner itself.
    Make,
    /// Refused: by those who only look, or change what is there.
    Refuse,
}

/// A period in which one provisioner led. Larger is later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Term(pub u64);

/// An instance as the store knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its id.
    pub id: InstanceId,
    /// What it is.
    pub offering: OfferingKey,
    /// The decision that launched it.
    pub intent: Option<IntentId>,
    /// Its pool.
    pub pool: PoolName,
    /// Its image.
    pub image: ImageName,
    /// Its image in its region.
    pub image_id: Option<ImageId>,
    /// Price per hour, as of launch.
    pub price: Money,
    /// When it was launched.
    pub launched_at: Timestamp,
    /// Address within the cloud's network, once known.
    pub private_address: Option<IpAddr>,
    /// What its host says.
    pub host: Option<HostView>,
    /// What its host is told.
    pub assignment: Assignment,
    /// Who keeps it.
    pub hold: Option<Box<Hold>>,
    /// First look of the sweep.
    pub suspected_at: Option<Timestamp>,
    /// When its termination was decided.
    pub ended_at: Option<Timestamp>,
}

/// All that a pass needs of the store.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Prefix of intents: letters and digits, made when the store was made.
    pub id: String,
    /// Instances not yet known to be gone, by id.
    pub instances: Vec<InstanceRecord>,
    /// Instances the sweep suspects that are no records: nobody here launched them.
    pub suspects: BTreeMap<InstanceId, Timestamp>,
    /// Launches not yet answered, by id.
    pub intents: Vec<Intent>,
    /// Remembered lack of capacity.
    pub shortages: Vec<Shortage>,
    /// Interruptions and hours of the last 24 hours, by offering: the hour of the clock that `now` is
    /// in, and the 23 before it.
    pub interruptions: Vec<Interruptions>,
    /// Orders of people.
    pub maintenance: Maintenance,
    /// Money by pool, for the day of `now` (UTC).
    pub spent_today: BTreeMap<PoolName, Money>,
    /// What the planner remembers.
    pub memory: BTreeMap<PoolName, PoolMemory>,
    /// When money was last booked.
    pub booked_until: Option<Timestamp>,
}

/// What came of an intent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// The cloud answered.
    Launched {
        /// With this.
        launched: Launched,
        /// The instances, as they enter the store.
        records: Vec<InstanceRecord>,
    },
    /// Surely nothing was launched, and never will be.
    Failed(String),
    /// To be sent again.
    Again {
        /// Why.
        message: String,
        /// Not before.
        not_before: Timestamp,
    },
}

impl Answer {
    /// Whether `error` leaves the intent open.
    #[must_use]
    pub const fn stays_open(error: &LaunchError) -> bool {
        match error {
            LaunchError::Throttled { .. } | LaunchError::Unknown { .. } => true,
            LaunchError::Refused { .. } | LaunchError::Mismatch { .. } => false,
        }
    }
}

/// One thing that changes. What names an instance the store does not know, or knows to be gone,
/// changes nothing, unless it says otherwise here. The store adds no [`Change::Did`] of its own.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A launch was decided: written before the cloud is called. The same again changes nothing;
    /// another request under the same id is [`StoreError::Damaged`], because the cloud may have been
    /// called with the first.
    IntentOpened(Intent),
    /// The cloud was called for it. An intent that is closed stays as it is, so the same answer twice
    /// is one answer; but instances that were launched always enter the store, unless they were there.
    IntentAnswered {
        /// Which.
        id: IntentId,
        /// With what result.
        answer: Answer,
    },
    /// An instance of ours the store did not know, or knows better now (address). Of one it knows,
    /// host, assignment, hold and what the sweep and terminations wrote stay, and nothing that is
    /// known becomes unknown. One that was thought gone is back, with the key of its host, and is
    /// no longer suspected.
    InstanceSeen(Box<InstanceRecord>),
    /// It is gone. Counted as interrupted once, under its offering.
    InstanceGone {
        /// Which.
        id: InstanceId,
        /// When that was found.
        at: Timestamp,
        /// Whether the cloud took it back.
        interrupted: bool,
    },
    /// What its host is told.
    Assigned {
        /// Which.
        id: InstanceId,
        /// What.
        assignment: Assignment,
    },
    /// Its termination was decided: written before the cloud is called. The first decision stands.
    Ended {
        /// Which.
        id: InstanceId,
        /// When.
        at: Timestamp,
        /// Why.
        reason: LeaveReason,
    },
    /// The sweep suspects it, or cleared it. One that is no record is kept among the suspects.
    Suspected {
        /// Which.
        id: InstanceId,
        /// Since when; `None`: no longer.
        since: Option<Timestamp>,
    },
    /// What hosts said last; instances the store does not know are left out. Of one instance the
    /// last of the list counts.
    Heard(Vec<(InstanceId, HostView)>),
    /// A person keeps an instance, or lets it go.
    Held {
        /// Which.
        id: InstanceId,
        /// How; `None`: released.
        hold: Option<Hold>,
    },
    /// Maintenance of a pool, or of the fleet, begins or ends.
    Maintained {
        /// Which pool; `None`: all.
        pool: Option<PoolName>,
        /// The order; `None`: over.
        order: Option<Order>,
    },
    /// A lack of capacity to remember.
    Short(Shortage),
    /// There is capacity again.
    Supplied(ShortageKey),
    /// Money spent by a pool on a day (UTC): added to what is there.
    Spent {
        /// Which.
        pool: PoolName,
        /// When.
        day: Date,
        /// How much.
        amount: Money,
    },
    /// Instance hours of an offering since the last booking, and the time booked until. They count
    /// for the hour of the clock in which `until` is.
    Booked {
        /// Hours by offering.
        hours: Vec<(OfferingKey, f64)>,
        /// Until when.
        until: Timestamp,
    },
    /// What the planner remembers.
    Remembered {
        /// Of which pool.
        pool: PoolName,
        /// What.
        memory: PoolMemory,
    },
    /// A pass, kept with its World and plan; older ones than the last `kept` go.
    Passed {
        /// It.
        pass: std::sync::Arc<Pass>,
        /// How many are kept.
        kept: u32,
    },
    /// An entry of the history.
    Did(Action),
    /// What is older than `before` goes: history, money of past days, answered intents, instances
    /// that are gone, suspects, shortages that ended. At most [`FORGOTTEN_AT_ONCE`] rows of each, so that a
    /// year's worth does not lock the store; the next pass takes more.
    Forgotten {
        /// Older than this.
        before: Timestamp,
    },
}

/// Rows of one kind that [`Change::Forgotten`] removes at most: tens of milliseconds. A pass a minute
/// forgets 14 million a day, a hundred times what a farm of 10,000 instances writes.
pub const FORGOTTEN_AT_ONCE: u32 = 10_000;

/// One pass, as kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pass {
    /// Its number.
    pub id: PassId,
    /// Seed of all chance in it.
    pub seed: u64,
    /// When it began.
    pub at: Timestamp,
    /// The configuration it planned with, as JSON.
    pub config: serde_json::Value,
    /// What was observed.
    pub world: World,
    /// What was planned.
    pub plan: Plan,
    /// What `check` found wrong; the plan was not applied if there is anything.
    pub faults: Vec<String>,
}

/// A pass in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassSummary {
    /// Its number.
    pub id: PassId,
    /// When it began.
    pub at: Timestamp,
    /// Instances asked for by its launches.
    pub launches: u32,
    /// Instances ended.
    pub terminations: u32,
    /// Faults that stopped it.
    pub faults: u32,
}

/// Something somebody did to something: an entry of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// When.
    pub at: Timestamp,
    /// Who: `provisioner`, or a person's name.
    pub by: String,
    /// What was done. The names are stable.
    pub verb: ActionVerb,
    /// To which instance.
    pub instance: Option<InstanceId>,
    /// For which launch.
    pub intent: Option<IntentId>,
    /// In which pool.
    pub pool: Option<PoolName>,
    /// In which pass.
    pub pass: Option<PassId>,
    /// With what result, for a person.
    pub result: String,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionVerb {
    /// A launch was decided.
    LaunchDecided,
    /// The cloud launched an instance.
    Launched,
    /// A launch brought fewer than asked for, or nothing.
    LaunchFell,
    /// A host registered.
    Registered,
    /// A host was told to drain, to quit or to go on.
    Assigned,
    /// A termination was decided.
    EndDecided,
    /// The cloud ended it.
    Terminated,
    /// It could not be ended.
    EndFailed,
    /// It is gone, as was decided.
    Gone,
    /// It was gone, without us.
    Lost,
    /// The cloud took it back.
    Interrupted,
    /// A host lost its job with it.
    JobLost,
    /// An instance the store did not know was taken in.
    Adopted,
    /// The sweep suspected it, or cleared it.
    Suspected,
    /// A person keeps it.
    Held,
    /// A person lets it go.
    Released,
    /// Maintenance began or ended.
    Maintained,
    /// A pass was stopped by `check`.
    Stopped,
}

impl std::fmt::Display for ActionVerb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::LaunchDecided => "launch_decided",
            Self::Launched => "launched",
            Self::LaunchFell => "launch_fell",
            Self::Registered => "registered",
            Self::Assigned => "assigned",
            Self::EndDecided => "end_decided",
            Self::Terminated => "terminated",
            Self::EndFailed => "end_failed",
            Self::Gone => "gone",
            Self::Lost => "lost",
            Self::Interrupted => "interrupted",
            Self::JobLost => "job_lost",
            Self::Adopted => "adopted",
            Self::Suspected => "suspected",
            Self::Held => "held",
            Self::Released => "released",
            Self::Maintained => "maintained",
            Self::Stopped => "stopped",
        })
    }
}

/// Which entries of the history are wanted; all that match every field that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryQuery {
    /// Of this instance.
    pub instance: Option<InstanceId>,
    /// Of this pool.
    pub pool: Option<PoolName>,
    /// Of this pass.
    pub pass: Option<PassId>,
    /// Not older than this.
    pub since: Option<Timestamp>,
    /// The newest so many.
    pub limit: u32,
}

/// What a host may learn about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// The instance.
    pub record: InstanceRecord,
    /// The key its host registered with; `None` until it did.
    pub key: Option<String>,
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another provisioner leads: what was to be written is not, and nothing may be launched.
    #[error("another provisioner leads now")]
    Deposed,
    /// The database is locked, full, or away: later.
    #[error("the store cannot be used now: {0}")]
    Unavailable(String),
    /// A file or row is not what was written.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// The store was written by a newer version.
    #[error(
        "the store was written by a newer farmhand (schema {found}, this one knows {known}): use that one"
    )]
    TooNew {
        /// Version found.
        found: i64,
        /// Version known.
        known: i64,
    },
}

/// A store. All writes of the fleet go through one leader.
pub trait Store: Send + Sync {
    /// Tries to lead. `None` while another provisioner does; the same term again while this one does.
    fn lead(&self) -> impl Future<Output = Result<Option<Term>, StoreError>> + Send;

    /// Whether `term` still leads; asked before every call that launches or ends something.
    fn leads(&self, term: Term) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// The number of the next pass.
    fn begin_pass(&self, term: Term) -> impl Future<Output = Result<PassId, StoreError>> + Send;

    /// All that a pass needs; money of the day of `now`.
    fn stored(&self, now: Timestamp) -> impl Future<Output = Result<Stored, StoreError>> + Send;

    /// Writes all of `changes`, or none. With a `term`, only while it leads.
    fn commit(
        &self,
        term: Option<Term>,
        changes: Vec<Change>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The instance and how it registered; `None` if the store does not know it.
    fn registration(
        &self,
        id: &InstanceId,
    ) -> impl Future<Output = Result<Option<Registration>, StoreError>> + Send;

    /// Registers the host of `id` with `key`, once: the key that is registered afterwards, which is
    /// another one if it had one before. `None` if the store does not know the instance. A host that
    /// registered is idle since `now`, until it says more.
    fn register(
        &self,
        id: &InstanceId,
        key: &str,
        now: Timestamp,
    ) -> impl Future<Output = Result<Option<String>, StoreError>> + Send;

    /// The newest `limit` passes, newest first.
    fn passes(
        &self,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<PassSummary>, StoreError>> + Send;

    /// One pass in full; `None` if it is not (or no longer) kept.
    fn pass(&self, id: PassId) -> impl Future<Output = Result<Option<Pass>, StoreError>> + Send;

    /// The history, newest first.
    fn history(
        &self,
        query: &HistoryQuery,
    ) -> impl Future<Output = Result<Vec<Action>, StoreError>> + Send;
}

/// The first row of a store: `$1` is its id.
const NEW_STORE: &str = "INSERT INTO store (one, id, term, pass) VALUES (1, $1, 0, 0)";

/// Characters of a store's id: 40 random bits make two stores with one id as good as impossible, and
/// leave room in EC2's tokens of 64.
const ID_LENGTH: usize = 8;

/// The id of a new store.
fn new_id() -> String {
    const CHARACTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut random = [0; ID_LENGTH];
    SysRng
        .try_fill_bytes(&mut random)
        .expect("the system has random bytes as long as it runs");
    let character = |byte: u8| char::from(CHARACTERS[usize::from(byte) % CHARACTERS.len()]);
    random.into_iter().map(character).collect()
}

/// A record for an instance that was seen in the cloud, carries our tags and is not in the store.
#[must_use]
pub fn adopted(sighting: &Sighting, price: Money) -> Option<InstanceRecord> {
    Some(InstanceRecord {
        id: sighting.id.clone(),
        offering: sighting.offering.clone(),
        intent: Some(sighting.intent.clone()?),
        pool: sighting.pool.clone()?,
        image: sighting.image.clone()?,
        image_id: sighting.image_id.clone(),
        price,
        launched_at: sighting.launched_at,
        private_address: sighting.private_address,
        host: None,
        assignment: Assignment::GoOn,
        hold: None,
        suspected_at: None,
        ended_at: None,
    })
}
