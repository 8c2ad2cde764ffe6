//! An instance as EC2 describes it, and as we keep it.

use aws_sdk_ec2::types;

use super::market::timestamp;
use super::tags;
use crate::cloud::{CapacityType, InstanceState, OfferingKey, Sighting};
use crate::ids::{ImageId, ImageName, InstanceId, InstanceType, IntentId, PoolName, Region, Zone};

/// Codes of a state reason that mean that the cloud took the instance back ("StateReason", EC2 API
/// Reference).
const INTERRUPTED: [&str; 2] = [
    "Server.SpotInstanceTermination",
    "Server.SpotInstanceShutdown",
];

/// What matters of `instance`; `None` if EC2 left out what every instance has.
pub(super) fn sighting(region: &Region, instance: &types::Instance) -> Option<Sighting> {
    let tag = |key: &str| {
        let mut tags = instance.tags().iter();
        let found = tags.find(|tag| tag.key() == Some(key));
        found.and_then(types::Tag::value)
    };
    let reason = instance.state_reason();
    let code = reason.and_then(types::StateReason::code);
    Some(Sighting {
        id: InstanceId::parse(instance.instance_id()?).ok()?,
        offering: OfferingKey {
            region: region.clone(),
            zone: Zone::parse(instance.placement()?.availability_zone()?).ok()?,
            instance_type: InstanceType::parse(instance.instance_type()?.as_str()).ok()?,
            capacity_type: capacity_type(instance.instance_lifecycle()),
        },
        state: state(instance.state()?.name()?),
        state_reason: reason
            .and_then(types::StateReason::message)
            .or(code)
            .filter(|text| !text.is_empty())
            .map(str::to_owned),
        interrupted: code.is_some_and(|code| INTERRUPTED.contains(&code)),
        launched_at: timestamp(instance.launch_time()?)?,
        intent: tag(tags::INTENT).and_then(|text| IntentId::parse(text).ok()),
        pool: tag(tags::POOL).and_then(|text| PoolName::parse(text).ok()),
        image: tag(tags::IMAGE).and_then(|text| ImageName::parse(text).ok()),
        image_id: instance
            .image_id()
            .and_then(|text| ImageId::parse(text).ok()),
        // Holding is the safe side: a tag without a value holds as well.
        hold: tag(tags::HOLD).map(str::to_owned),
        private_address: instance
            .private_ip_address()
            .and_then(|text| text.parse().ok()),
    })
}

fn capacity_type(lifecycle: Option<&types::InstanceLifecycleType>) -> CapacityType {
    if lifecycle == Some(&types::InstanceLifecycleType::Spot) {
        CapacityType::Spot
    } else {
        CapacityType::OnDemand
    }
}

fn state(name: &types::InstanceStateName) -> InstanceState {
    match name {
        types::InstanceStateName::Pending => InstanceState::Pending,
        types::InstanceStateName::Running => InstanceState::Running,
        types::InstanceStateName::Stopped => InstanceState::Stopped,
        types::InstanceStateName::Terminated => InstanceState::Terminated,
        // `shutting-down`, `stopping`, and what EC2 may invent: it still costs, and is on its way.
        types::InstanceStateName::ShuttingDown | types::InstanceStateName::Stopping | _ => {
            InstanceState::Stopping
        }
    }
}
