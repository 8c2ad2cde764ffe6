//! What the fake region holds and how fast things happen there, with defaults that behave like EC2.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ids;

/// Where the fake begins. All of it but the clock can be changed later by the methods of
/// [`Ec2`](super::Ec2) or the control commands.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Everything random (ids, prices) follows from it.
    pub seed: u64,
    /// How its time passes.
    pub clock: ClockSetting,
    /// The account of every access key that `access_keys` does not name.
    pub account: String,
    /// Accounts by access key id. Empty: every key is good. Otherwise a key that is not here gets
    /// `AuthFailure`.
    pub access_keys: BTreeMap<String, String>,
    /// Regions by name. A request for another region gets `AuthFailure`, as from a region the account
    /// has not enabled.
    pub regions: BTreeMap<String, RegionSetting>,
    /// Instance types by name; every zone offers them but for `RegionSetting::not_offered`.
    pub instance_types: BTreeMap<String, InstanceTypeSetting>,
    /// Free machines per (type, zone, capacity type) at the beginning.
    pub capacity: u32,
    /// "All Standard Spot Instance Requests" quota per region, in vCPUs of pending and running
    /// instances. EC2's own default is 5 for a new account.
    pub spot_vcpus: u32,
    /// "Running On-Demand Standard instances" quota per region, in vCPUs.
    pub on_demand_vcpus: u32,
    /// How fast things happen.
    pub timing: Timing,
    /// Factor on all token buckets; 0 switches throttling off.
    pub throttle: f64,
}

/// How time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClockSetting {
    /// Like the clock of the machine. A control call can still put it forward.
    Real,
    /// It stands, from this moment, until a control call puts it forward.
    Stepped(Timestamp),
}

/// One region.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegionSetting {
    /// Names of the zones, as `us-east-1a`.
    pub zones: Vec<String>,
    /// Its subnets.
    pub subnets: Vec<SubnetSetting>,
    /// Its images.
    pub images: Vec<ImageSetting>,
    /// Its security groups, ids by name.
    pub security_groups: BTreeMap<String, String>,
    /// Types that a zone does not offer, as (`type`, `zone`).
    pub not_offered: Vec<(String, String)>,
}

/// One subnet.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubnetSetting {
    /// `subnet-…`.
    pub id: String,
    /// Its zone.
    pub zone: String,
    /// Its address range. EC2 keeps five addresses of it for itself.
    pub cidr: String,
    /// Addresses free at the beginning.
    pub addresses: u32,
}

/// One image.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSetting {
    /// `ami-…`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// One instance type.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceTypeSetting {
    /// What quotas count.
    pub vcpus: u32,
    /// Dollars per hour on demand, Linux.
    pub on_demand: f64,
    /// What spot costs on average, as a share of `on_demand`.
    pub spot_share: f64,
}

/// How fast things happen.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timing {
    /// How long a launched instance stays unknown to every other call ("Eventual consistency in the
    /// Amazon EC2 API", EC2 Developer Guide).
    #[serde(with = "humantime_serde")]
    pub visible_after: Duration,
    /// How long tags given at launch stay unseen, from the launch; at least `visible_after` to matter.
    #[serde(with = "humantime_serde")]
    pub tags_visible_after: Duration,
    /// `pending` until then.
    #[serde(with = "humantime_serde")]
    pub pending_for: Duration,
    /// How long from the launch status checks say `initializing` ("Status checks for Amazon EC2
    /// instances", EC2 User Guide: a minute or a few).
    #[serde(with = "humantime_serde")]
    pub initializing_for: Duration,
    /// `shutting-down` for so long.
    #[serde(with = "humantime_serde")]
    pub shutting_down_for: Duration,
    /// How long a terminated instance is still described: "after an instance is terminated, it remains
    /// visible for a short while", about an hour ("Terminate Amazon EC2 instances", EC2 User Guide).
    #[serde(with = "humantime_serde")]
    pub terminated_visible_for: Duration,
    /// From the interruption notice to the end ("Spot Instance interruption notices", EC2 User Guide).
    #[serde(with = "humantime_serde")]
    pub notice_for: Duration,
    /// How long a client token is remembered after the last of its instances ended, or after its call
    /// if it has none. "Ensuring idempotency in Amazon EC2 API requests" (EC2 Developer Guide) promises
    /// 24 hours after the end of the instance and no more, so here it is no more.
    #[serde(with = "humantime_serde")]
    pub token_memory: Duration,
    /// How long a spot price stays the same.
    #[serde(with = "humantime_serde")]
    pub price_step: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        const HOUR: u64 = 3600;
        Self {
            visible_after: Duration::from_secs(2),
            tags_visible_after: Duration::from_secs(2),
            pending_for: Duration::from_secs(10),
            initializing_for: Duration::from_secs(60),
            shutting_down_for: Duration::from_secs(30),
            terminated_visible_for: Duration::from_secs(HOUR),
            notice_for: Duration::from_secs(120),
            token_memory: Duration::from_secs(24 * HOUR),
            price_step: Duration::from_secs(HOUR),
        }
    }
}

impl Timing {
    /// All at once: for tests of something else.
    #[must_use]
    pub fn immediate() -> Self {
        Self {
            visible_after: Duration::ZERO,
            tags_visible_after: Duration::ZERO,
            pending_for: Duration::ZERO,
            initializing_for: Duration::ZERO,
            shutting_down_for: Duration::ZERO,
            ..Self::default()
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let regions = [
            ("us-east-1", "abcdef"),
            ("us-west-2", "abcd"),
            ("eu-central-1", "abc"),
        ];
        // Dollars per hour of the price list of us-east-1, Linux, at the time of writing.
        let instance_types = [
            ("c5.large", 2, 0.085),
            ("c5.xlarge", 4, 0.17),
            ("c5.2xlarge", 8, 0.34),
            ("c6i.2xlarge", 8, 0.34),
            ("m5.large", 2, 0.096),
            ("m5.xlarge", 4, 0.192),
            ("m5.2xlarge", 8, 0.384),
            ("r5.large", 2, 0.126),
        ];
        Self {
            seed: 1,
            clock: ClockSetting::Real,
            account: "123456789012".to_owned(),
            access_keys: BTreeMap::new(),
            regions: regions
                .into_iter()
                .map(|(name, zones)| (name.to_owned(), RegionSetting::with_zones(name, zones)))
                .collect(),
            instance_types: instance_types
                .into_iter()
                .map(|(name, vcpus, on_demand)| {
                    let setting = InstanceTypeSetting {
                        vcpus,
                        on_demand,
                        spot_share: 0.4,
                    };
                    (name.to_owned(), setting)
                })
                .collect(),
            capacity: 1000,
            spot_vcpus: 100_000,
            on_demand_vcpus: 100_000,
            timing: Timing::default(),
            throttle: 1.0,
        }
    }
}

impl Settings {
    /// The default with a clock that stands at midnight of 1 January 2026 until it is put forward.
    ///
    /// # Panics
    ///
    /// Never: the moment is a constant.
    #[must_use]
    pub fn stepped() -> Self {
        let start = "2026-01-01T00:00:00Z".parse().expect("a constant moment");
        Self {
            clock: ClockSetting::Stepped(start),
            ..Self::default()
        }
    }
}

impl RegionSetting {
    /// A region with a subnet in each zone, two images and one security group.
    fn with_zones(region: &str, letters: &str) -> Self {
        let zones: Vec<String> = letters
            .chars()
            .map(|letter| format!("{region}{letter}"))
            .collect();
        let subnets = zones
            .iter()
            .enumerate()
            .map(|(number, zone)| SubnetSetting {
                id: subnet_id(zone),
                zone: zone.clone(),
                cidr: format!("172.31.{}.0/20", number * 16),
                addresses: 4091,
            });
        let images = ["stable", "candidate"].map(|name| ImageSetting {
            id: image_id(region, name),
            name: name.to_owned(),
            tags: BTreeMap::new(),
        });
        let group = ids::named("sg", &format!("{region} default"));
        Self {
            subnets: subnets.collect(),
            zones,
            images: images.into(),
            security_groups: BTreeMap::from([("default".to_owned(), group)]),
            not_offered: Vec::new(),
        }
    }
}

/// The id of the subnet that the default settings put into a zone.
#[must_use]
pub fn subnet_id(zone: &str) -> String {
    ids::named("subnet", zone)
}

/// The id of an image of the default settings, `stable` or `candidate`: another one in each region.
#[must_use]
pub fn image_id(region: &str, name: &str) -> String {
    ids::named("ami", &format!("{region} {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_read_back_what_they_wrote_and_refuse_what_they_do_not_know() {
        let written = serde_json::to_string(&Settings::stepped()).unwrap();
        let read: Settings = serde_json::from_str(&written).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), written);
        let error = serde_json::from_str::<Settings>(r#"{"timing":{"pending":"1s"}}"#).unwrap_err();
        assert!(
            error.to_string().contains("unknown field `pending`"),
            "{error}"
        );
    }
}
