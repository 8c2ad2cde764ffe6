//! One instance: what it was launched as, and what state it is in at any moment.
//!
//! Its states are a function of a few times, not a variable somebody has to keep up: `pending` →
//! `running` → `shutting-down` → `terminated` → gone ("Amazon EC2 instance state changes", EC2 User
//! Guide).

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::settings::Timing;
use super::tags::Tags;
use super::xml::Xml;

/// How capacity is bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CapacityType {
    /// Cheap, may be taken back.
    Spot,
    /// Dear, stays.
    OnDemand,
}

impl CapacityType {
    /// EC2's word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spot => "spot",
            Self::OnDemand => "on-demand",
        }
    }
}

/// State of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Being prepared.
    Pending,
    /// Up, and paid for.
    Running,
    /// On its way down.
    ShuttingDown,
    /// Ended, and still described for a while.
    Terminated,
}

impl State {
    /// EC2's word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
        }
    }

    /// EC2's number for it (`InstanceState`, EC2 API Reference).
    const fn code(self) -> u16 {
        match self {
            Self::Pending => 0,
            Self::Running => 16,
            Self::ShuttingDown => 32,
            Self::Terminated => 48,
        }
    }

    pub(super) fn write(self, xml: &mut Xml, name: &str) {
        xml.within(name, |xml| {
            xml.text("code", self.code()).text("name", self.name());
        });
    }
}

/// Why and when an instance ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct End {
    /// When it began to shut down.
    pub since: Timestamp,
    /// When it is `terminated`.
    pub terminated_at: Timestamp,
    /// `StateReason` (EC2 API Reference).
    pub code: &'static str,
    /// The same for people.
    pub message: &'static str,
    /// The same in the older element `reason`.
    pub reason: &'static str,
}

/// A spot interruption: what the instance metadata shows as `spot/instance-action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SpotNotice {
    /// When it can first be seen.
    pub from: Timestamp,
    /// When the instance ends.
    pub time: Timestamp,
}

/// An instance, from its launch for ever: the fake forgets none, EC2's answers do.
#[derive(Clone, Debug, Serialize)]
pub struct Instance {
    /// `i-…`.
    pub id: String,
    /// Where it was launched.
    pub region: String,
    /// The launch it belongs to.
    pub reservation: String,
    /// The fleet that launched it; none for one that was simply there.
    pub fleet: Option<String>,
    /// Not the token of the request: a fleet gives its instances tokens of its own.
    pub client_token: String,
    /// The token of the request that launched it.
    pub request_token: Option<String>,
    /// Its image.
    pub image: String,
    /// Its type.
    pub instance_type: String,
    /// Its zone.
    pub zone: String,
    /// Its subnet.
    pub subnet: String,
    /// How it was bought.
    pub capacity_type: CapacityType,
    /// When.
    pub launched_at: Timestamp,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// User data as it was sent: base64.
    pub user_data: Option<String>,
    /// `disableApiTermination`.
    pub protected: bool,
    /// Whether its status checks fail.
    pub impaired: bool,
    /// Why it ends, once that is certain.
    pub end: Option<End>,
    /// The interruption that was announced for it.
    pub spot_notice: Option<SpotNotice>,
    /// Its address.
    pub private_ip: String,
    /// Its security groups.
    pub groups: Vec<String>,
    /// Its SSH key.
    pub key_name: Option<String>,
    /// Its instance profile.
    pub profile: Option<String>,
    /// What it counts in quotas.
    pub vcpus: u32,
}

impl Instance {
    /// Its state, or nothing once EC2 has forgotten it.
    #[must_use]
    pub fn state(&self, now: Timestamp, timing: &Timing) -> Option<State> {
        match &self.end {
            Some(end) if now >= later(end.terminated_at, timing.terminated_visible_for) => None,
            Some(end) if now >= end.terminated_at => Some(State::Terminated),
            Some(end) if now >= end.since => Some(State::ShuttingDown),
            _ if now >= later(self.launched_at, timing.pending_for) => Some(State::Running),
            _ => Some(State::Pending),
        }
    }

    /// Its state as calls see it: nothing as well before the launch has spread.
    pub(super) fn visible_state(&self, now: Timestamp, timing: &Timing) -> Option<State> {
        let is_visible = now >= later(self.launched_at, timing.visible_after);
        is_visible.then(|| self.state(now, timing)).flatten()
    }

    /// Its tags as calls see them.
    pub(super) fn visible_tags(&self, now: Timestamp, timing: &Timing) -> Option<&Tags> {
        let are_visible = now >= later(self.launched_at, timing.tags_visible_after);
        are_visible.then_some(&self.tags)
    }

    /// Whether its end has begun.
    pub(super) fn is_ending(&self, now: Timestamp) -> bool {
        self.end.as_ref().is_some_and(|end| end.since <= now)
    }

    /// The content of an item of `instancesSet` (`Instance`, EC2 API Reference), without volumes and
    /// network interfaces.
    pub(super) fn write(&self, xml: &mut Xml, state: State, now: Timestamp, timing: &Timing) {
        let dns = format!("ip-{}.ec2.internal", self.private_ip.replace('.', "-"));
        let is_there = state != State::Terminated;
        xml.text("instanceId", &self.id)
            .text("imageId", &self.image);
        state.write(xml, "instanceState");
        xml.text("privateDnsName", if is_there { &dns } else { "" })
            .text("dnsName", "");
        let end = self.end.as_ref().filter(|end| end.since <= now);
        let reason = end.map_or(String::new(), |end| {
            format!(
                "{} ({})",
                end.reason,
                end.since.strftime("%Y-%m-%d %H:%M:%S GMT")
            )
        });
        xml.text("reason", reason)
            .optional("keyName", self.key_name.as_ref())
            .text("amiLaunchIndex", 0)
            .within("productCodes", |_| {})
            .text("instanceType", &self.instance_type)
            .text("launchTime", moment(self.launched_at))
            .within("placement", |xml| {
                xml.text("availabilityZone", &self.zone)
                    .text("groupName", "")
                    .text("tenancy", "default");
            })
            .within("monitoring", |xml| {
                xml.text("state", "disabled");
            });
        if is_there {
            xml.text("subnetId", &self.subnet)
                .text("privateIpAddress", &self.private_ip);
        }
        xml.set("groupSet", &self.groups, |xml, group| {
            xml.text("groupId", group);
        });
        if let Some(end) = end {
            xml.within("stateReason", |xml| {
                xml.text("code", end.code).text("message", end.message);
            });
        }
        xml.text("architecture", "x86_64")
            .text("rootDeviceType", "ebs")
            .text("rootDeviceName", "/dev/xvda")
            .text("virtualizationType", "hvm")
            .text("clientToken", &self.client_token);
        match self.capacity_type {
            CapacityType::Spot => {
                xml.text("instanceLifecycle", "spot");
            }
            // EC2 leaves the element out.
            CapacityType::OnDemand => {}
        }
        write_tags(xml, self.visible_tags(now, timing));
        xml.text("hypervisor", "xen").text("ebsOptimized", false);
        if let Some(profile) = &self.profile {
            xml.within("iamInstanceProfile", |xml| {
                xml.text("arn", profile);
            });
        }
    }
}

/// `tagSet`.
pub(super) fn write_tags(xml: &mut Xml, tags: Option<&Tags>) {
    xml.set("tagSet", tags.into_iter().flatten(), |xml, (key, value)| {
        xml.text("key", key).text("value", value);
    });
}

/// A moment as EC2 writes it.
pub(super) fn moment(time: Timestamp) -> impl std::fmt::Display {
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ")
}

/// A moment and a while; the end of time if that is beyond it.
pub(super) fn later(time: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by)
        .ok()
        .and_then(|by| time.checked_add(by).ok())
        .unwrap_or(Timestamp::MAX)
}
