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

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::primitives::DateTime;
    use aws_sdk_ec2::types::builders::InstanceBuilder;

    use super::*;

    fn instance() -> InstanceBuilder {
        let placement = types::Placement::builder()
            .availability_zone("r-1a")
            .build();
        let state = types::InstanceState::builder().name(types::InstanceStateName::Running);
        types::Instance::builder()
            .instance_id("i-1")
            .instance_type(types::InstanceType::from("a.large"))
            .placement(placement)
            .state(state.build())
            .launch_time(DateTime::from_secs(1_700_000_000))
    }

    fn seen(instance: InstanceBuilder) -> Sighting {
        sighting(&Region::parse("r-1").unwrap(), &instance.build()).unwrap()
    }

    #[test]
    fn an_instance_is_what_ec2_says_and_belongs_to_whom_its_tags_say() {
        let bare = seen(instance());
        assert_eq!((bare.intent, bare.pool, bare.hold), (None, None, None));
        assert_eq!(bare.offering.capacity_type, CapacityType::OnDemand);
        let tagged = instance()
            .tags(tags::tag(tags::INTENT, "s-1-1"))
            .tags(tags::tag(tags::POOL, "no pool of ours"))
            .tags(tags::tag(tags::HOLD, ""))
            .instance_lifecycle(types::InstanceLifecycleType::Spot);
        let tagged = seen(tagged);
        assert_eq!(
            tagged.intent.map(|intent| intent.to_string()).as_deref(),
            Some("s-1-1")
        );
        assert_eq!(tagged.pool, None);
        assert_eq!(tagged.hold.as_deref(), Some(""));
        assert_eq!(tagged.offering.capacity_type, CapacityType::Spot);
    }

    #[test]
    fn an_interruption_is_told_from_an_end_we_asked_for() {
        for (code, interrupted) in [
            ("Server.SpotInstanceTermination", true),
            ("Server.SpotInstanceShutdown", true),
            ("Client.UserInitiatedShutdown", false),
            ("Server.InsufficientInstanceCapacity", false),
        ] {
            let reason = types::StateReason::builder().code(code).build();
            let seen = seen(instance().state_reason(reason));
            assert_eq!(seen.interrupted, interrupted, "{code}");
            assert_eq!(seen.state_reason.as_deref(), Some(code));
        }
    }

    #[test]
    fn a_state_nobody_knows_is_on_its_way_out_and_still_costs() {
        let table = [
            ("pending", InstanceState::Pending),
            ("running", InstanceState::Running),
            ("shutting-down", InstanceState::Stopping),
            ("stopping", InstanceState::Stopping),
            ("stopped", InstanceState::Stopped),
            ("terminated", InstanceState::Terminated),
            ("brand-new", InstanceState::Stopping),
        ];
        for (name, expected) in table {
            assert_eq!(
                state(&types::InstanceStateName::from(name)),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn an_instance_without_what_every_instance_has_is_none() {
        let region = Region::parse("r-1").unwrap();
        let whole = instance().build();
        assert!(sighting(&region, &whole).is_some());
        for spoil in [
            (|one| one.set_instance_id(None)) as fn(InstanceBuilder) -> InstanceBuilder,
            |one| one.set_placement(None),
            |one| one.set_state(None),
            |one| one.set_launch_time(None),
            |one| one.set_instance_type(None),
        ] {
            assert_eq!(sighting(&region, &spoil(instance()).build()), None);
        }
    }
}
