//! A launch: the request as EC2 wants it, and its answer as we understand it.
//!
//! One `CreateFleet` of type `instant` brings the whole launch. Its allocation strategy is always said
//! (EC2's own default is the one with the most interruptions); no maximum price is, because a price
//! ceiling is a matter of the plan, which leaves out what is too dear when it chooses, and a maximum
//! price in a request only brings more interruptions.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::operation::create_fleet::CreateFleetOutput;
use aws_sdk_ec2::types;

use super::fault::{self, Fault};
use super::market::Subnets;
use super::template::Version;
use super::{tags, token};
use crate::cloud::{
    Allocation, CapacityType, Choice, LaunchRequest, Launched, LaunchedInstance, OfferingKey,
    ShortReason, Shortfall,
};
use crate::ids::{InstanceId, InstanceType, Zone};

/// Instances of one call: as many as the account's bucket of launched instances can ever hold. A
/// larger request would be throttled for ever.
const MOST_INSTANCES: u32 = 1000;

/// Overrides of one call. EC2 names no limit for `instant` fleets but refuses large bodies; ours are
/// sorted best first, and nobody needs the 301st.
const MOST_OVERRIDES: usize = 300;

/// A request, ready to be sent any number of times.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) token: String,
    pub(super) instances: u32,
    pub(super) target: types::TargetCapacitySpecificationRequest,
    pub(super) spot: Option<types::SpotOptionsRequest>,
    pub(super) on_demand: Option<types::OnDemandOptionsRequest>,
    pub(super) template: types::FleetLaunchTemplateConfigRequest,
    pub(super) tags: Vec<types::TagSpecification>,
    /// What is known to fall short before EC2 is asked.
    pub(super) shortfalls: Vec<Shortfall>,
}

impl Order {
    /// What `request` comes to, in the subnets there are.
    pub(super) fn of(
        fleet: &str,
        request: &LaunchRequest,
        version: &Version,
        subnets: &Subnets,
    ) -> Result<Self, Fault> {
        let mut shortfalls = Vec::new();
        let mut overrides = Vec::new();
        for choice in &request.choices {
            match subnets.of_zone(&choice.zone) {
                Some(subnet) => {
                    overrides.push(one_override(request, choice, subnet, overrides.len()))
                }
                None => shortfalls.push(Shortfall {
                    offering: Some(offering(request, &choice.instance_type, &choice.zone)),
                    reason: ShortReason::Settings,
                    message: format!("no subnet of `regions.{}` is in this zone", request.region),
                }),
            }
        }
        overrides.truncate(MOST_OVERRIDES);
        let instances = request.count.min(MOST_INSTANCES);
        if overrides.is_empty() || instances == 0 {
            return Err(Fault::refused(
                ShortReason::Settings,
                nothing_to_ask(request),
            ));
        }
        if instances < request.count {
            shortfalls.push(Shortfall {
                offering: None,
                reason: ShortReason::Throttled,
                message: format!("one launch brings at most {MOST_INSTANCES} instances"),
            });
        }
        Ok(Self {
            token: token::of_launch(&request.intent),
            instances,
            target: target(request.capacity_type, instances),
            spot: spot_options(request),
            on_demand: on_demand_options(request),
            template: template(version, overrides),
            tags: tag_specifications(fleet, request),
            shortfalls,
        })
    }
}

fn nothing_to_ask(request: &LaunchRequest) -> String {
    let zones: BTreeSet<&str> = request
        .choices
        .iter()
        .map(|choice| choice.zone.as_str())
        .collect();
    let zones: Vec<&str> = zones.into_iter().collect();
    format!(
        "nothing to ask for: {} instances in zones `{}`; expected at least one, and a subnet of \
         `regions.{}.subnets` in one of the zones",
        request.count,
        zones.join("`, `"),
        request.region
    )
}

fn offering(request: &LaunchRequest, instance_type: &InstanceType, zone: &Zone) -> OfferingKey {
    OfferingKey {
        region: request.region.clone(),
        zone: zone.clone(),
        instance_type: instance_type.clone(),
        capacity_type: request.capacity_type,
    }
}

/// Named in each override, the image is the one word by which two launches of a pool differ. `rank`
/// counts from 0, the best; EC2 regards it where the strategy is by priority.
fn one_override(
    request: &LaunchRequest,
    choice: &Choice,
    subnet: &str,
    rank: usize,
) -> types::FleetLaunchTemplateOverridesRequest {
    let rank = u32::try_from(rank).unwrap_or(u32::MAX);
    types::FleetLaunchTemplateOverridesRequest::builder()
        .instance_type(types::InstanceType::from(choice.instance_type.as_str()))
        .subnet_id(subnet)
        .image_id(request.image_id.as_str())
        .priority(f64::from(rank))
        .build()
}

fn target(
    capacity_type: CapacityType,
    instances: u32,
) -> types::TargetCapacitySpecificationRequest {
    types::TargetCapacitySpecificationRequest::builder()
        .total_target_capacity(i32::try_from(instances).unwrap_or(i32::MAX))
        .default_target_capacity_type(match capacity_type {
            CapacityType::Spot => types::DefaultTargetCapacityType::Spot,
            CapacityType::OnDemand => types::DefaultTargetCapacityType::OnDemand,
        })
        .build()
}

fn spot_options(request: &LaunchRequest) -> Option<types::SpotOptionsRequest> {
    let strategy = match request.allocation {
        Allocation::PriceCapacityOptimized => types::SpotAllocationStrategy::PriceCapacityOptimized,
        Allocation::CapacityOptimized => types::SpotAllocationStrategy::CapacityOptimized,
        Allocation::LowestPrice => types::SpotAllocationStrategy::LowestPrice,
    };
    let options = types::SpotOptionsRequest::builder().allocation_strategy(strategy);
    (request.capacity_type == CapacityType::Spot).then(|| options.build())
}

/// On demand the choices are taken in our order, which is by price per unit of work; `lowest-price`
/// is by price alone.
fn on_demand_options(request: &LaunchRequest) -> Option<types::OnDemandOptionsRequest> {
    let strategy = match request.allocation {
        Allocation::PriceCapacityOptimized | Allocation::CapacityOptimized => {
            types::FleetOnDemandAllocationStrategy::Prioritized
        }
        Allocation::LowestPrice => types::FleetOnDemandAllocationStrategy::LowestPrice,
    };
    let options = types::OnDemandOptionsRequest::builder().allocation_strategy(strategy);
    (request.capacity_type == CapacityType::OnDemand).then(|| options.build())
}

fn template(
    version: &Version,
    overrides: Vec<types::FleetLaunchTemplateOverridesRequest>,
) -> types::FleetLaunchTemplateConfigRequest {
    let specification = types::FleetLaunchTemplateSpecificationRequest::builder()
        .launch_template_name(&version.template)
        .version(version.number.to_string())
        .build();
    types::FleetLaunchTemplateConfigRequest::builder()
        .launch_template_specification(specification)
        .set_overrides(Some(overrides))
        .build()
}

fn tag_specifications(fleet: &str, request: &LaunchRequest) -> Vec<types::TagSpecification> {
    let tags = tags::of_launch(fleet, request);
    let kinds = [
        types::ResourceType::Fleet,
        types::ResourceType::Instance,
        types::ResourceType::Volume,
    ];
    kinds
        .into_iter()
        .map(|kind| tags::specification(kind, &tags))
        .collect()
}

/// Reads the answer to `request`.
///
/// # Errors
/// If it names an instance and not where it is: that is found by its tag.
pub(super) fn launched(
    request: &LaunchRequest,
    subnets: &Subnets,
    answer: &CreateFleetOutput,
) -> Result<Launched, Fault> {
    let mut launched = Launched::default();
    for group in answer.instances() {
        let place = Place::of(
            request,
            subnets,
            group.launch_template_and_overrides(),
            group.instance_type().map(types::InstanceType::as_str),
        );
        for id in group.instance_ids() {
            launched.instances.push(instance(id, place.as_ref())?);
        }
    }
    let mut seen = BTreeSet::new();
    for error in answer.errors() {
        let shortfall = shortfall(request, subnets, error);
        // EC2 repeats itself where several of its attempts failed in the same place.
        if seen.insert((shortfall.offering.clone(), shortfall.reason)) {
            launched.shortfalls.push(shortfall);
        }
    }
    Ok(launched)
}

fn instance(id: &str, place: Option<&Place>) -> Result<LaunchedInstance, Fault> {
    let known = InstanceId::parse(id).ok().zip(place);
    let Some((id, place)) = known else {
        let message = format!("EC2 launched `{id}` and did not say what or where");
        return Err(Fault::Mismatch { message });
    };
    Ok(LaunchedInstance {
        id,
        instance_type: place.instance_type.clone(),
        zone: place.zone.clone(),
    })
}

fn shortfall(
    request: &LaunchRequest,
    subnets: &Subnets,
    error: &types::CreateFleetError,
) -> Shortfall {
    let place = Place::of(
        request,
        subnets,
        error.launch_template_and_overrides(),
        None,
    );
    let (code, words) = (
        error.error_code().unwrap_or_default(),
        error.error_message().unwrap_or_default(),
    );
    let mut message = fault::shown(&fault::sentence(code, words));
    let reason = fault::reason(code, words).unwrap_or(ShortReason::Other);
    if let Some(advice) = fault::advice(reason) {
        message = format!("{message}; {advice}");
    }
    Shortfall {
        offering: place.map(|place| offering(request, &place.instance_type, &place.zone)),
        reason,
        message,
    }
}

/// Where an entry of the answer belongs.
struct Place {
    instance_type: InstanceType,
    zone: Zone,
}

impl Place {
    /// By the override that the entry repeats.
    fn of(
        request: &LaunchRequest,
        subnets: &Subnets,
        said: Option<&types::LaunchTemplateAndOverridesResponse>,
        instance_type: Option<&str>,
    ) -> Option<Self> {
        let overrides = said.and_then(types::LaunchTemplateAndOverridesResponse::overrides);
        let said_type = overrides.and_then(types::FleetLaunchTemplateOverrides::instance_type);
        let instance_type = instance_type.or(said_type.map(types::InstanceType::as_str));
        let subnet = overrides.and_then(types::FleetLaunchTemplateOverrides::subnet_id);
        let zone = overrides.and_then(types::FleetLaunchTemplateOverrides::availability_zone);
        let by_subnet = subnet.and_then(|subnet| subnets.zone_of(subnet));
        let by_zone = || zone.and_then(|zone| Zone::parse(zone).ok());
        let zone = by_subnet
            .cloned()
            .or_else(by_zone)
            .or_else(|| only_zone(request));
        Some(Self {
            instance_type: InstanceType::parse(instance_type?).ok()?,
            zone: zone?,
        })
    }
}

fn only_zone(request: &LaunchRequest) -> Option<Zone> {
    let zones: BTreeMap<&Zone, ()> = request
        .choices
        .iter()
        .map(|choice| (&choice.zone, ()))
        .collect();
    let mut zones = zones.into_keys();
    let first = zones.next().cloned();
    first.filter(|_| zones.next().is_none())
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::builders::FleetLaunchTemplateOverridesBuilder;

    use super::super::market::Subnet;
    use super::*;
    use crate::ids::PoolName;
    use crate::money::Money;

    fn zone(name: &str) -> Zone {
        Zone::parse(name).unwrap()
    }

    fn subnets() -> Subnets {
        let subnet = |id: &str, name| Subnet {
            id: id.to_owned(),
            zone: zone(name),
            free: 100,
        };
        Subnets {
            found: vec![subnet("subnet-a", "r-1a"), subnet("subnet-b", "r-1b")],
        }
    }

    fn request(places: &[(&str, &str)]) -> LaunchRequest {
        let choice = |(instance_type, name): &(&str, &str)| Choice {
            instance_type: InstanceType::parse(instance_type).unwrap(),
            zone: zone(name),
            price: Money::from_micros(10_000),
        };
        LaunchRequest {
            intent: "s-1-1".parse().unwrap(),
            pool: PoolName::parse("linux64").unwrap(),
            image: "stable".parse().unwrap(),
            image_id: "ami-1".parse().unwrap(),
            region: "r-1".parse().unwrap(),
            capacity_type: CapacityType::Spot,
            count: 7,
            choices: places.iter().map(choice).collect(),
            allocation: Allocation::default(),
        }
    }

    fn version() -> Version {
        Version {
            template: "farmhand.t".into(),
            number: 3,
        }
    }

    fn order(request: &LaunchRequest) -> Order {
        Order::of("farm", request, &version(), &subnets()).unwrap()
    }

    #[test]
    fn an_override_says_type_subnet_image_and_rank_and_no_price() {
        let order = order(&request(&[("a.large", "r-1b"), ("b.large", "r-1a")]));
        let shown: Vec<_> = order
            .template
            .overrides()
            .iter()
            .map(|one| {
                assert_eq!(one.image_id(), Some("ami-1"));
                assert_eq!(one.max_price(), None);
                let name = one.instance_type().map(types::InstanceType::as_str);
                (
                    name.unwrap(),
                    one.subnet_id().unwrap(),
                    one.priority().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [("a.large", "subnet-b", 0.0), ("b.large", "subnet-a", 1.0)]
        );
        let template = order.template.launch_template_specification().unwrap();
        assert_eq!(template.version(), Some("3"));
        assert_eq!(order.target.total_target_capacity(), Some(7));
    }

    #[test]
    fn the_strategy_is_always_said_and_only_that_of_the_capacity_type() {
        use types::{FleetOnDemandAllocationStrategy as OnDemand, SpotAllocationStrategy as Spot};
        let table = [
            (
                Allocation::PriceCapacityOptimized,
                Spot::PriceCapacityOptimized,
                OnDemand::Prioritized,
            ),
            (
                Allocation::CapacityOptimized,
                Spot::CapacityOptimized,
                OnDemand::Prioritized,
            ),
            (
                Allocation::LowestPrice,
                Spot::LowestPrice,
                OnDemand::LowestPrice,
            ),
        ];
        for (allocation, spot, on_demand) in table {
            let mut request = request(&[("a.large", "r-1a")]);
            request.allocation = allocation;
            let made = order(&request);
            let said = made
                .spot
                .as_ref()
                .and_then(types::SpotOptionsRequest::allocation_strategy);
            assert_eq!((said, made.on_demand), (Some(&spot), None));
            request.capacity_type = CapacityType::OnDemand;
            let made = order(&request);
            let said = made.on_demand.as_ref();
            let said = said.and_then(types::OnDemandOptionsRequest::allocation_strategy);
            assert_eq!((said, made.spot), (Some(&on_demand), None));
        }
    }

    #[test]
    fn fleet_instances_and_volumes_get_the_same_tags() {
        let order = order(&request(&[("a.large", "r-1a")]));
        let kinds: Vec<_> = order
            .tags
            .iter()
            .filter_map(|one| one.resource_type())
            .collect();
        use types::ResourceType::{Fleet, Instance, Volume};
        assert_eq!(kinds, [&Fleet, &Instance, &Volume]);
        assert!(
            order
                .tags
                .iter()
                .all(|one| one.tags() == order.tags[0].tags())
        );
        assert_eq!(order.tags[0].tags().len(), 5);
    }

    #[test]
    fn what_does_not_fit_into_one_call_falls_short() {
        let mut request = request(&[("a.large", "r-1a")]);
        request.count = 1001;
        let made = order(&request);
        assert_eq!((made.instances, made.shortfalls.len()), (1000, 1));
        assert_eq!(made.shortfalls[0].reason, ShortReason::Throttled);
        request.count = 1000;
        assert_eq!(order(&request).shortfalls, []);
        request.choices = vec![request.choices[0].clone(); MOST_OVERRIDES + 1];
        assert_eq!(order(&request).template.overrides().len(), MOST_OVERRIDES);
        request.count = 0;
        assert!(Order::of("farm", &request, &version(), &subnets()).is_err());
    }

    fn at(subnet: &str) -> types::LaunchTemplateAndOverridesResponse {
        let place = |place: FleetLaunchTemplateOverridesBuilder| place.subnet_id(subnet);
        let overrides = place(types::FleetLaunchTemplateOverrides::builder())
            .instance_type(types::InstanceType::from("a.large"))
            .build();
        types::LaunchTemplateAndOverridesResponse::builder()
            .overrides(overrides)
            .build()
    }

    fn error(subnet: &str, code: &str) -> types::CreateFleetError {
        types::CreateFleetError::builder()
            .launch_template_and_overrides(at(subnet))
            .error_code(code)
            .error_message("words")
            .build()
    }

    #[test]
    fn an_answer_is_read_by_the_overrides_it_repeats() {
        let group = types::CreateFleetInstance::builder()
            .launch_template_and_overrides(at("subnet-b"))
            .instance_type(types::InstanceType::from("a.large"))
            .instance_ids("i-1")
            .instance_ids("i-2")
            .build();
        let answer = CreateFleetOutput::builder()
            .instances(group)
            .errors(error("subnet-a", "InsufficientInstanceCapacity"))
            .errors(error("subnet-a", "InsufficientInstanceCapacity"))
            .errors(error("subnet-b", "MaxSpotInstanceCountExceeded"))
            .errors(error("subnet-b", "BrandNew"))
            .build();
        let request = request(&[("a.large", "r-1a"), ("a.large", "r-1b")]);
        let launched = launched(&request, &subnets(), &answer).unwrap();
        let ids: Vec<_> = launched
            .instances
            .iter()
            .map(|one| (one.id.as_str(), one.zone.as_str()))
            .collect();
        assert_eq!(ids, [("i-1", "r-1b"), ("i-2", "r-1b")]);
        let shown: Vec<_> = launched
            .shortfalls
            .iter()
            .map(|short| {
                (
                    short.offering.as_ref().unwrap().zone.as_str(),
                    short.reason,
                    &*short.message,
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (
                    "r-1a",
                    ShortReason::NoCapacity,
                    "InsufficientInstanceCapacity: words"
                ),
                (
                    "r-1b",
                    ShortReason::Quota,
                    "MaxSpotInstanceCountExceeded: words; ask AWS for a larger quota, or lower `max_instances`"
                ),
                ("r-1b", ShortReason::Other, "BrandNew: words"),
            ]
        );
    }

    #[test]
    fn an_instance_without_a_place_is_to_be_found_by_its_tag() {
        let group = types::CreateFleetInstance::builder()
            .instance_ids("i-1")
            .build();
        let answer = CreateFleetOutput::builder().instances(group).build();
        let request = request(&[("a.large", "r-1a"), ("a.large", "r-1b")]);
        let fault = launched(&request, &subnets(), &answer).unwrap_err();
        assert!(matches!(fault, Fault::Mismatch { .. }), "{fault:?}");
    }
}
