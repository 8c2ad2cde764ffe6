//! A cloud: what it sells, what runs there for us, and how to launch and to end it.
//!
//! [`Cloud`] is the only way the rest of the program meets a cloud. A cloud does what it is asked and
//! says exactly what came of it; it decides nothing. Three rules make launches happen exactly once:
//!
//! - A [`LaunchRequest`] has an [`IntentId`] of its own. The cloud derives its idempotency token from
//!   it, so the same request sent again launches nothing again and gets the same answer.
//! - Every instance carries the intent, pool, image and owner as tags from the moment it exists.
//! - [`LaunchError`] tells apart what surely launched nothing from what may have launched something.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{ImageId, ImageName, InstanceId, InstanceType, IntentId, PoolName, Region, Zone};
use crate::money::Money;

pub mod any;
pub mod budget;
pub mod local;

#[cfg(feature = "ec2")]
pub mod ec2;

/// How capacity is paid for.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum CapacityType {
    /// Cheap; the cloud may take it back with two minutes' notice.
    #[default]
    Spot,
    /// At list price, for as long as we want.
    OnDemand,
}

impl fmt::Display for CapacityType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Spot => "spot",
            Self::OnDemand => "on_demand",
        })
    }
}

/// What identifies one thing a cloud sells.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OfferingKey {
    /// Region.
    pub region: Region,
    /// Zone of the region.
    pub zone: Zone,
    /// Kind of machine.
    pub instance_type: InstanceType,
    /// How it is paid for.
    pub capacity_type: CapacityType,
}

/// One thing a cloud sells, at its price now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offering {
    /// What it is.
    #[serde(flatten)]
    pub key: OfferingKey,
    /// Price per hour of one instance.
    pub price: Money,
    /// When the price was that.
    pub as_of: Timestamp,
}

/// State of an instance, as the cloud says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Starting.
    Pending,
    /// Up.
    Running,
    /// On its way to stopped or terminated.
    Stopping,
    /// Stopped: costs storage, runs nothing.
    Stopped,
    /// Gone for ever.
    Terminated,
}

/// One instance of our fleet, as seen in the cloud.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// The instance.
    pub id: InstanceId,
    /// What it is.
    #[serde(flatten)]
    pub offering: OfferingKey,
    /// Its state.
    pub state: InstanceState,
    /// Why it is in that state, in the cloud's words, if it says.
    pub state_reason: Option<String>,
    /// Whether the cloud took it back.
    pub interrupted: bool,
    /// When it was launched.
    pub launched_at: Timestamp,
    /// Tag `farmhand:intent`. An instance with our owner tag and without this one is not ours to end.
    pub intent: Option<IntentId>,
    /// Tag `farmhand:pool`.
    pub pool: Option<PoolName>,
    /// Tag `farmhand:image`.
    pub image: Option<ImageName>,
    /// Image as the region calls it.
    pub image_id: Option<ImageId>,
    /// Tag `farmhand:hold`: who holds it, set by hand in the cloud. Such an instance is never ended.
    pub hold: Option<String>,
    /// Address within the cloud's network.
    pub private_address: Option<std::net::IpAddr>,
}

/// How a cloud chooses among the choices of a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allocation {
    /// The fewest interruptions at a good price.
    #[default]
    PriceCapacityOptimized,
    /// The fewest interruptions; for long jobs.
    CapacityOptimized,
    /// The lowest price, and the most interruptions.
    LowestPrice,
}

/// One offering a launch may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Kind of machine.
    pub instance_type: InstanceType,
    /// Zone.
    pub zone: Zone,
    /// Price per hour when the plan was made: the bill is reserved by the dearest choice.
    pub price: Money,
}

/// One decision to launch, in full: what is stored before the call and sent again after a crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchRequest {
    /// The decision. Source of the idempotency token and of the tag `farmhand:intent`.
    pub intent: IntentId,
    /// Pool the hosts will serve.
    pub pool: PoolName,
    /// Image as people call it.
    pub image: ImageName,
    /// Image in this region.
    pub image_id: ImageId,
    /// Region. One request never spans two, nor two images: the cloud chooses among choices by
    /// price and capacity, and would undo the image split.
    pub region: Region,
    /// How the capacity is paid for.
    pub capacity_type: CapacityType,
    /// Instances wanted, at least 1. Fewer may come.
    pub count: u32,
    /// What to choose from, best first; never empty.
    pub choices: Vec<Choice>,
    /// How to choose.
    pub allocation: Allocation,
}

impl LaunchRequest {
    /// The most this launch can cost per hour.
    #[must_use]
    pub fn reserved(&self) -> Money {
        let dearest = self.choices.iter().map(|choice| choice.price).max();
        dearest.unwrap_or_default().times(self.count)
    }
}

/// What is handed to a host through its metadata service. The join token is readable by every job on
/// the host; it is good for one registration of each instance of this pool and image, no more.
#[derive(Clone, PartialEq, Eq)]
pub struct UserData {
    /// The JSON, at most 16 KiB.
    pub json: String,
}

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserData(…)")
    }
}

/// One instance a launch brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchedInstance {
    /// The instance.
    pub id: InstanceId,
    /// Kind of machine it became.
    pub instance_type: InstanceType,
    /// Zone it is in.
    pub zone: Zone,
}

/// Why there was less than asked for. The names are stable: they stand in events, in the history and
/// in dashboards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShortReason {
    /// The cloud has none left of this type in this zone.
    NoCapacity,
    /// The cloud took an instance back, and so will have none for others for a while.
    Interrupted,
    /// The account's quota is used up.
    Quota,
    /// The subnet has no address left.
    NoAddress,
    /// The type is not sold there, or not with this image.
    Unsupported,
    /// The price rose over the ceiling.
    Price,
    /// The image is not there, or may not be used.
    Image,
    /// Subnet, security group, key, profile or template is not there or does not fit.
    Settings,
    /// The credentials are wrong or lack a right.
    NotAllowed,
    /// Too many calls.
    Throttled,
    /// The cloud failed.
    CloudFault,
    /// Anything else; the message says what.
    Other,
}

impl fmt::Display for ShortReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NoCapacity => "no_capacity",
            Self::Interrupted => "interrupted",
            Self::Quota => "quota",
            Self::NoAddress => "no_address",
            Self::Unsupported => "unsupported",
            Self::Price => "price",
            Self::Image => "image",
            Self::Settings => "settings",
            Self::NotAllowed => "not_allowed",
            Self::Throttled => "throttled",
            Self::CloudFault => "cloud_fault",
            Self::Other => "other",
        })
    }
}

/// What a launch did not get, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortfall {
    /// Offering the cloud could not give; `None` if the reason is not about one.
    pub offering: Option<OfferingKey>,
    /// Why.
    pub reason: ShortReason,
    /// In the cloud's words.
    pub message: String,
}

/// What came of a launch the cloud answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launched {
    /// What runs now; possibly fewer than asked for, possibly none.
    pub instances: Vec<LaunchedInstance>,
    /// Why there are not more.
    pub shortfalls: Vec<Shortfall>,
}

/// A launch that brought no answer to build on; by what the caller can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// Nothing was launched, and the same request may be sent later.
    #[error("throttled by the cloud: {message}")]
    Throttled {
        /// Wait at least this long.
        retry_after: Duration,
        /// In the cloud's words.
        message: String,
    },
    /// Nothing was launched, and this request never will be.
    #[error("refused by the cloud ({reason}): {message}")]
    Refused {
        /// Why.
        reason: ShortReason,
        /// In the cloud's words, and what to correct.
        message: String,
    },
    /// Perhaps launched: the answer was lost. Send the same request again.
    #[error("the cloud's answer was lost: {message}")]
    Unknown {
        /// What happened.
        message: String,
    },
    /// The token was used with other parameters: what it launched is to be found by its tag.
    #[error("the cloud knows this launch with other parameters: {message}")]
    Mismatch {
        /// In the cloud's words.
        message: String,
    },
}

/// A call other than a launch that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloudError {
    /// Too many calls, or the region is in trouble: later.
    #[error("the cloud is not answering now: {message}")]
    Unavailable {
        /// In the cloud's words.
        message: String,
    },
    /// A person must correct something.
    #[error("refused by the cloud ({reason}): {message}")]
    Refused {
        /// Why.
        reason: ShortReason,
        /// In the cloud's words, and what to correct.
        message: String,
    },
}

/// Why one instance was not terminated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TerminateError {
    /// There is no such instance (any more): as good as terminated.
    #[error("the cloud does not know this instance")]
    Unknown,
    /// It is protected, or otherwise not to be ended by us.
    #[error("the cloud refuses to end this instance: {0}")]
    Refused(String),
    /// Not answered, or throttled: later.
    #[error("not terminated now: {0}")]
    Unavailable(String),
}

/// What `provisioner check` found out about one thing, with the pool or region it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at: `pool linux64 in us-east-1`.
    pub subject: String,
    /// Whether it is all right, and if not what is wrong and what to do.
    pub fault: Option<String>,
}

/// A cloud. See the module for what every implementation keeps.
pub trait Cloud: Send + Sync {
    /// All instances in `region` with our owner tag, in any state the cloud still shows; golden and
    /// foreign ones too, if they carry it.
    fn instances(
        &self,
        region: &Region,
    ) -> impl Future<Output = Result<Vec<Sighting>, CloudError>> + Send;

    /// What `region` sells of `types`, with prices not older than the cloud's own cache time.
    fn offerings(
        &self,
        region: &Region,
        types: &BTreeSet<InstanceType>,
    ) -> impl Future<Output = Result<Vec<Offering>, CloudError>> + Send;

    /// Launches what `request` says, once.
    fn launch(
        &self,
        request: &LaunchRequest,
        user_data: &UserData,
    ) -> impl Future<Output = Result<Launched, LaunchError>> + Send;

    /// Ends instances; one answer for each id. One that cannot be ended hinders no other.
    fn terminate(
        &self,
        region: &Region,
        ids: &[InstanceId],
    ) -> impl Future<Output = BTreeMap<InstanceId, Result<(), TerminateError>>> + Send;

    /// Whether credentials, rights, images, subnets and the like of the configuration are usable,
    /// without changing anything.
    fn check(&self) -> impl Future<Output = Vec<Finding>> + Send;
}
