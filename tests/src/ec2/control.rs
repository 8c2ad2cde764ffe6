//! The control interface: the methods of [`Ec2`] as JSON, for tests in other processes and for hands.
//!
//! `POST /_control` takes one command or a list of them, each an object with one key:
//!
//! ```json
//! [{"set_capacity": {"zone": "us-east-1a", "instance_type": "c5.large", "capacity_type": "spot", "free": 0}},
//!  {"fault": {"action": "CreateFleet", "point": "after", "effect": "drop"}},
//!  {"advance": {"by": "2m"}}]
//! ```
//!
//! The answer is the list of what they returned, or `{"error": "…"}` with 400: then the commands before
//! the wrong one have been done. `GET /_control` shows the [`state`].

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::clock::Clock;
use super::fault::Fault;
use super::instance::{CapacityType, later};
use super::machine::{Ec2, Outage};
use super::settings::{ImageSetting, Timing};

/// One command. Fields are those of the methods of [`Ec2`] they call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Puts the clock forward.
    Advance {
        /// By so much.
        #[serde(with = "humantime_serde")]
        by: Duration,
    },
    /// Adds a fault point.
    Fault(Fault),
    /// Removes those that have not struck.
    ClearFaults {},
    /// Lets calls go on that a fault holds.
    Release {},
    /// [`Ec2::set_outage`].
    SetOutage {
        /// Region.
        region: String,
        /// `null` ends it.
        outage: Option<Outage>,
    },
    /// [`Ec2::set_permission`].
    SetPermission {
        /// Action.
        action: String,
        /// May it be called?
        allowed: bool,
    },
    /// [`Ec2::set_credentials`].
    SetCredentials {
        /// Are they good?
        good: bool,
    },
    /// [`Ec2::set_clock_check`].
    SetClockCheck {
        /// Seconds the clock of the service is ahead; `null` checks nothing.
        ahead_seconds: Option<i64>,
    },
    /// [`Ec2::set_throttle`].
    SetThrottle {
        /// Factor; 0 is off.
        scale: f64,
    },
    /// Replaces [`Timing`].
    SetTiming(Timing),
    /// [`Ec2::set_capacity`].
    SetCapacity {
        /// Zone.
        zone: String,
        /// Type.
        instance_type: String,
        /// `spot` or `on-demand`.
        capacity_type: CapacityType,
        /// Machines.
        free: u32,
    },
    /// [`Ec2::set_price`].
    SetPrice {
        /// Zone.
        zone: String,
        /// Type.
        instance_type: String,
        /// Dollars per hour.
        price: f64,
    },
    /// [`Ec2::set_quota`].
    SetQuota {
        /// Region.
        region: String,
        /// `spot` or `on-demand`.
        capacity_type: CapacityType,
        /// vCPUs.
        vcpus: u32,
    },
    /// [`Ec2::set_addresses`].
    SetAddresses {
        /// Region.
        region: String,
        /// Subnet.
        subnet: String,
        /// Addresses; `null` removes the subnet.
        free: Option<u32>,
    },
    /// [`Ec2::register_image`].
    RegisterImage {
        /// Region.
        region: String,
        /// Image.
        image: ImageSetting,
    },
    /// [`Ec2::deregister_image`].
    DeregisterImage {
        /// Region.
        region: String,
        /// Image.
        id: String,
    },
    /// [`Ec2::interrupt`].
    Interrupt {
        /// Instance.
        id: String,
        /// Until the notice.
        #[serde(default, with = "humantime_serde")]
        after: Duration,
    },
    /// [`Ec2::spot_notice`]: returns `{"action":"terminate","time":…}` as the instance metadata does, or
    /// `null`.
    SpotNotice {
        /// Instance.
        id: String,
    },
    /// [`Ec2::set_protection`].
    SetProtection {
        /// Instance.
        id: String,
        /// Protected?
        protected: bool,
    },
    /// [`Ec2::set_impaired`].
    SetImpaired {
        /// Instance.
        id: String,
        /// Impaired?
        impaired: bool,
    },
    /// [`Ec2::add_foreign_instance`]: returns its id.
    AddForeignInstance {
        /// Region.
        region: String,
        /// Tags.
        #[serde(default)]
        tags: BTreeMap<String, String>,
    },
}

/// Does a command and returns what it returns. `release` is called for [`Command::Release`], and for an
/// outage that ends or changes.
///
/// # Errors
///
/// A sentence that says what is wrong.
pub(super) fn apply(
    ec2: &mut Ec2,
    clock: &mut Clock,
    release: impl FnOnce(),
    command: Command,
) -> Result<Value, String> {
    let now = clock.now();
    match command {
        Command::Advance { by } => clock.advance(by),
        Command::Fault(fault) => ec2.add_fault(fault),
        Command::ClearFaults {} => ec2.clear_faults(),
        Command::Release {} => release(),
        Command::SetOutage { region, outage } => {
            ec2.set_outage(&region, outage);
            release();
        }
        Command::SetPermission { action, allowed } => ec2.set_permission(&action, allowed),
        Command::SetCredentials { good } => ec2.set_credentials(good),
        Command::SetClockCheck { ahead_seconds } => {
            ec2.set_clock_check(ahead_seconds.map(SignedDuration::from_secs));
        }
        Command::SetThrottle { scale } => ec2.set_throttle(scale),
        Command::SetTiming(timing) => *ec2.timing_mut() = timing,
        Command::SetCapacity {
            zone,
            instance_type,
            capacity_type,
            free,
        } => {
            ec2.set_capacity(now, &zone, &instance_type, capacity_type, free)?;
        }
        Command::SetPrice {
            zone,
            instance_type,
            price,
        } => {
            ec2.set_price(now, &zone, &instance_type, price)?;
        }
        Command::SetQuota {
            region,
            capacity_type,
            vcpus,
        } => {
            ec2.set_quota(now, &region, capacity_type, vcpus)?;
        }
        Command::SetAddresses {
            region,
            subnet,
            free,
        } => {
            ec2.set_addresses(now, &region, &subnet, free)?;
        }
        Command::RegisterImage { region, image } => ec2.register_image(now, &region, image)?,
        Command::DeregisterImage { region, id } => ec2.deregister_image(now, &region, &id)?,
        Command::Interrupt { id, after } => ec2.interrupt(&id, later(now, after))?,
        Command::SpotNotice { id } => {
            let notice = ec2.spot_notice(now, &id);
            let shown = |notice: super::SpotNotice| json!({"action": "terminate", "time": notice.time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
            return Ok(notice.map_or(Value::Null, shown));
        }
        Command::SetProtection { id, protected } => ec2.set_protection(&id, protected)?,
        Command::SetImpaired { id, impaired } => ec2.set_impaired(&id, impaired)?,
        Command::AddForeignInstance { region, tags } => {
            return ec2
                .add_foreign_instance(now, &region, tags)
                .map(Value::from);
        }
    }
    Ok(Value::Null)
}

/// All there is to see: the time, every instance ever launched with its state, calls by region and
/// action, client tokens, and the fault points that have not struck.
#[must_use]
pub(super) fn state(ec2: &mut Ec2, now: Timestamp) -> Value {
    ec2.settle(now);
    let timing = ec2.settings().timing;
    let instances: Vec<Value> = ec2
        .instances()
        .map(|instance| {
            let mut shown = json!(instance);
            shown["state"] = json!(instance.state(now, &timing));
            shown
        })
        .collect();
    let calls: Vec<Value> = ec2
        .calls()
        .iter()
        .map(|((region, action), calls)| {
            json!({"region": region, "action": action, "count": calls.count, "errors": calls.errors})
        })
        .collect();
    let tokens: Vec<Value> = ec2
        .tokens()
        .into_iter()
        .map(|(region, action, token, instances)| {
            json!({"region": region, "action": action, "token": token, "instances": instances})
        })
        .collect();
    json!({
        "now": now,
        "instances": instances,
        "calls": calls,
        "tokens": tokens,
        "faults": ec2.waiting_faults(),
    })
}
