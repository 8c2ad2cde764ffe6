//! `CreateFleet` of type `instant`: asks one place after another for machines, at once, and answers with
//! what it got and what each place said ("Configure an EC2 Fleet of type instant", EC2 User Guide).
//!
//! A fleet launches "by RunInstances on your behalf", so what is wrong with one override (no capacity,
//! a quota, an unknown image) is an entry of `Errors[]`, and the fleet goes on with the next one. What is
//! wrong with the request (an unknown template, no target) fails the call. Planning and launching are
//! two steps: a plan that misses `MinTargetCapacity` launches nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::allocate::{self, Offer, Strategy};
use super::error::ApiError;
use super::instance::{CapacityType, Instance};
use super::params::Params;
use super::region::{Pool, Scope};
use super::tags::{self, Tags};
use super::template;
use super::throttle;
use super::xml::Xml;

/// "Target capacity for all instances in a single fleet" ("Quotas for EC2 Fleet and Spot Fleet", EC2
/// User Guide).
const TARGET_LIMIT: u32 = 10_000;
/// Launch template configurations of a fleet (`CreateFleet`, EC2 API Reference: "Maximum number of 50
/// items").
const CONFIGS_LIMIT: usize = 50;

/// What was asked for.
#[derive(Debug)]
struct Target {
    spot: u32,
    on_demand: u32,
}

/// One override, completed by its template.
#[derive(Clone, Debug)]
struct Candidate {
    template: TemplateVersion,
    /// As sent: the answer repeats it.
    sent: Params,
    instance_type: String,
    image: String,
    zone: String,
    subnet: String,
    groups: Vec<String>,
    key_name: Option<String>,
    profile: Option<String>,
    user_data: Option<String>,
    protected: bool,
    tags: Tags,
    priority: Option<f64>,
    max_price: Option<f64>,
    /// What is wrong with it whatever the state of the market.
    fault: Option<ApiError>,
}

#[derive(Clone, Debug)]
struct TemplateVersion {
    id: String,
    number: u64,
}

/// Machines to launch of a candidate.
#[derive(Debug)]
struct Launch {
    candidate: usize,
    capacity_type: CapacityType,
    count: u32,
}

/// What a candidate said.
#[derive(Debug)]
struct Refusal {
    candidate: usize,
    capacity_type: CapacityType,
    error: ApiError,
}

#[derive(Debug, Default)]
struct Plan {
    launches: Vec<Launch>,
    refusals: Vec<Refusal>,
}

/// `CreateFleet`.
pub(super) fn create(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    if params.get("Type") != Some("instant") {
        let what = "fleets of another type than `instant`";
        return Err(ApiError::not_in_the_fake(what));
    }
    let target = target(params)?;
    let specified = tags::specified(
        params,
        "TagSpecification",
        &["fleet", "instance", "volume", "network-interface"],
    )?;
    let instance_tags = specified.get("instance").cloned().unwrap_or_default();
    scope.once("CreateFleet", params, |scope| {
        let candidates = candidates(scope, params, &instance_tags)?;
        check_pools(&candidates)?;
        let mut planner = Planner::new(scope, params, &candidates);
        planner.plan(CapacityType::OnDemand, target.on_demand)?;
        planner.plan(CapacityType::Spot, target.spot)?;
        let plan = planner.finish();
        let fleet = fleet_id(scope);
        let mut launched = Vec::new();
        let mut xml = Xml::default();
        xml.text("fleetId", &fleet);
        xml.set("errorSet", &plan.refusals, |xml, refusal| {
            write_place(xml, &candidates[refusal.candidate], refusal.capacity_type);
            xml.text("errorCode", &refusal.error.code)
                .text("errorMessage", &refusal.error.message);
        });
        xml.set("fleetInstanceSet", &plan.launches, |xml, launch| {
            let candidate = &candidates[launch.candidate];
            let numbers = start(scope, &fleet, params, candidate, launch);
            write_place(xml, candidate, launch.capacity_type);
            let ids = numbers
                .iter()
                .map(|number| &scope.region.instances[number].id);
            xml.texts("instanceIds", ids)
                .text("instanceType", &candidate.instance_type);
            launched.extend(numbers);
        });
        Ok((xml, launched))
    })
}

/// Ids of fleets are UUIDs behind `fleet-`.
fn fleet_id(scope: &mut Scope<'_>) -> String {
    format!("fleet-{}", scope.ids.request())
}

/// `TargetCapacitySpecification`: what neither `SpotTargetCapacity` nor `OnDemandTargetCapacity` takes
/// is of the default type, which is on demand unless given.
fn target(params: &Params) -> Result<Target, ApiError> {
    let given = params.under("TargetCapacitySpecification");
    let total: u32 = given.number("TotalTargetCapacity")?.ok_or_else(|| {
        ApiError::missing_parameter("TargetCapacitySpecification.TotalTargetCapacity")
    })?;
    if total == 0 || total > TARGET_LIMIT {
        let expected = format!("Expected from 1 to {TARGET_LIMIT}.");
        return Err(ApiError::invalid_value(
            &total.to_string(),
            "TotalTargetCapacity",
            &expected,
        ));
    }
    let mut spot: u32 = given.number("SpotTargetCapacity")?.unwrap_or(0);
    let mut on_demand: u32 = given.number("OnDemandTargetCapacity")?.unwrap_or(0);
    let Some(rest) = total.checked_sub(spot.saturating_add(on_demand)) else {
        let message = "The total target capacity must be at least the sum of On-Demand and Spot target capacity";
        return Err(ApiError::invalid_combination(message));
    };
    match given.get("DefaultTargetCapacityType") {
        Some("spot") => spot += rest,
        None | Some("on-demand") => on_demand += rest,
        Some(other) => {
            let expected = "Expected spot or on-demand.";
            return Err(ApiError::invalid_value(
                other,
                "DefaultTargetCapacityType",
                expected,
            ));
        }
    }
    Ok(Target { spot, on_demand })
}

fn candidates(
    scope: &Scope<'_>,
    params: &Params,
    instance_tags: &Tags,
) -> Result<Vec<Candidate>, ApiError> {
    let configs = params.structures("LaunchTemplateConfigs");
    if configs.is_empty() {
        return Err(ApiError::missing_parameter("LaunchTemplateConfigs"));
    }
    if configs.len() > CONFIGS_LIMIT {
        let message =
            format!("The maximum number of launch template configurations is {CONFIGS_LIMIT}");
        return Err(ApiError::client("InvalidFleetConfig", message));
    }
    let mut candidates = Vec::new();
    for config in configs {
        let specification = config.under("LaunchTemplateSpecification");
        let template = scope.region.templates.named(&specification)?;
        let (number, version) = template.version(specification.required("Version")?)?;
        let template = TemplateVersion {
            id: template.id.clone(),
            number,
        };
        let mut data = version.data.clone();
        if let Some(user_data) = specification.get("LaunchTemplateSpecificationUserData") {
            template::check_user_data(user_data)?;
            data.set("UserData", user_data);
        }
        let mut overrides = config.structures("Overrides");
        if overrides.is_empty() {
            overrides.push(Params::default());
        }
        for sent in overrides {
            candidates.push(candidate(scope, &template, &data, sent, instance_tags)?);
        }
    }
    Ok(candidates)
}

fn candidate(
    scope: &Scope<'_>,
    template: &TemplateVersion,
    data: &Params,
    sent: Params,
    instance_tags: &Tags,
) -> Result<Candidate, ApiError> {
    let either = |name: &str| sent.get(name).or_else(|| data.get(name)).map(str::to_owned);
    let interfaces = data.structures("NetworkInterface");
    let interface = interfaces.first();
    let subnet = sent
        .get("SubnetId")
        .or_else(|| interface.and_then(|interface| interface.get("SubnetId")));
    let zone = sent
        .get("AvailabilityZone")
        .or_else(|| data.get("Placement.AvailabilityZone"));
    let (zone, subnet, place_fault) = place(scope, subnet, zone);
    let mut groups = interface.map_or_else(Vec::new, |interface| interface.list("SecurityGroupId"));
    groups.extend(data.list("SecurityGroupId"));
    if groups.is_empty() {
        groups.extend(scope.setting.security_groups.get("default").cloned());
    }
    let tags = all_tags(template, data, instance_tags)?;
    let mut candidate = Candidate {
        template: template.clone(),
        instance_type: either("InstanceType").unwrap_or_default(),
        image: either("ImageId").unwrap_or_default(),
        zone,
        subnet,
        groups,
        key_name: data.get("KeyName").map(str::to_owned),
        profile: data
            .get("IamInstanceProfile.Arn")
            .or_else(|| data.get("IamInstanceProfile.Name"))
            .map(str::to_owned),
        user_data: data.get("UserData").map(str::to_owned),
        protected: data.flag("DisableApiTermination")?,
        tags,
        priority: sent.number("Priority")?,
        max_price: sent.number("MaxPrice")?,
        fault: place_fault,
        sent,
    };
    if candidate.fault.is_none() {
        candidate.fault = fault(scope, &candidate);
    }
    Ok(candidate)
}

/// Zone and subnet of a launch: the subnet decides; without one it is the default subnet of the zone, and
/// without a zone any (here the first).
fn place(
    scope: &Scope<'_>,
    subnet: Option<&str>,
    zone: Option<&str>,
) -> (String, String, Option<ApiError>) {
    let subnets = &scope.region.subnets;
    if let Some(id) = subnet {
        let Some(found) = subnets.get(id) else {
            let message = format!("The subnet ID '{id}' does not exist");
            let fault = ApiError::client("InvalidSubnetID.NotFound", message);
            return (
                zone.unwrap_or_default().to_owned(),
                id.to_owned(),
                Some(fault),
            );
        };
        let fault = zone.filter(|zone| *zone != found.zone).map(|zone| {
            let message = format!("The subnet '{id}' is not in the availability zone {zone}");
            ApiError::client("InvalidParameterValue", message)
        });
        return (found.zone.clone(), id.to_owned(), fault);
    }
    let default = subnets
        .iter()
        .find(|(_, subnet)| zone.is_none_or(|zone| subnet.zone == zone));
    match default {
        Some((id, subnet)) => (subnet.zone.clone(), id.clone(), None),
        None => {
            let zone = zone.unwrap_or_default();
            let message = format!("No default subnet for availability zone: '{zone}'.");
            let fault = ApiError::client("MissingInput", message);
            (zone.to_owned(), String::new(), Some(fault))
        }
    }
}

/// What is wrong with an override as such.
fn fault(scope: &Scope<'_>, candidate: &Candidate) -> Option<ApiError> {
    if scope.denied.contains("RunInstances") {
        return Some(ApiError::unauthorized("RunInstances"));
    }
    let (instance_type, zone) = (&candidate.instance_type, &candidate.zone);
    if instance_type.is_empty() {
        return Some(ApiError::missing_parameter("InstanceType"));
    }
    if !scope.settings.instance_types.contains_key(instance_type) {
        let message = format!("Invalid value '{instance_type}' for InstanceType.");
        return Some(ApiError::client("InvalidParameterValue", message));
    }
    if candidate.image.is_empty() {
        return Some(ApiError::missing_parameter("ImageId"));
    }
    if !scope.region.images.contains_key(&candidate.image) {
        return Some(super::describe::unknown_image(&candidate.image));
    }
    let known: BTreeSet<&String> = scope.setting.security_groups.values().collect();
    if let Some(group) = candidate.groups.iter().find(|group| !known.contains(group)) {
        return Some(super::describe::unknown_group(group));
    }
    let pair = (instance_type.clone(), zone.clone());
    scope.setting.not_offered.contains(&pair).then(|| {
        let message = format!(
            "Your requested instance type ({instance_type}) is not supported in your requested Availability Zone ({zone})."
        );
        ApiError::client("Unsupported", message)
    })
}

/// Tags of the template, over them those of the request, and EC2's own.
fn all_tags(
    template: &TemplateVersion,
    data: &Params,
    instance_tags: &Tags,
) -> Result<Tags, ApiError> {
    let kinds = [
        "instance",
        "volume",
        "network-interface",
        "spot-instances-request",
    ];
    let from_template = tags::specified(data, "TagSpecification", &kinds)?;
    let mut all = from_template.get("instance").cloned().unwrap_or_default();
    all.extend(instance_tags.clone());
    let number = template.number.to_string();
    all.insert("aws:ec2launchtemplate:id".to_owned(), template.id.clone());
    all.insert("aws:ec2launchtemplate:version".to_owned(), number);
    tags::check_count(&all)?;
    Ok(all)
}

/// Two overrides of a fleet may not be the same pool, and a zone is what counts: "the fleet
/// configuration contains duplicate instance pools" is also the answer to two subnets of one zone.
fn check_pools(candidates: &[Candidate]) -> Result<(), ApiError> {
    let mut pools = BTreeSet::new();
    for candidate in candidates {
        if !pools.insert((&candidate.instance_type, &candidate.zone)) {
            let message = "The fleet configuration contains duplicate instance pools.";
            return Err(ApiError::client("InvalidFleetConfig", message));
        }
    }
    Ok(())
}

/// Works out launches on copies of the counters.
#[derive(Debug)]
struct Planner<'a> {
    params: &'a Params,
    candidates: &'a [Candidate],
    offers: BTreeMap<CapacityType, Vec<Offer>>,
    vcpus_each: Vec<u32>,
    free_vcpus: BTreeMap<CapacityType, u32>,
    free_addresses: BTreeMap<String, u32>,
    /// Machines the token bucket still lets launch.
    tokens: f64,
    /// `MinTargetCapacity` cannot be reached.
    is_short: bool,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(scope: &mut Scope<'_>, params: &'a Params, candidates: &'a [Candidate]) -> Self {
        let (now, scale) = (scope.now, scope.settings.throttle);
        let (size, name) = (throttle::LAUNCHED_INSTANCES, "launched instances");
        let tokens = scope.region.buckets.available(name, size, scale, now);
        let kinds = [CapacityType::Spot, CapacityType::OnDemand];
        let offers = kinds.map(|capacity_type| {
            let offers = candidates
                .iter()
                .map(|candidate| offer(scope, candidate, capacity_type));
            (capacity_type, offers.collect())
        });
        let types = &scope.settings.instance_types;
        let region = &scope.region;
        Self {
            params,
            candidates,
            offers: offers.into(),
            vcpus_each: candidates
                .iter()
                .map(|candidate| {
                    types
                        .get(&candidate.instance_type)
                        .map_or(1, |kind| kind.vcpus)
                })
                .collect(),
            free_vcpus: kinds.map(|kind| (kind, region.free_vcpus(kind))).into(),
            free_addresses: region
                .subnets
                .iter()
                .map(|(id, subnet)| (id.clone(), subnet.free))
                .collect(),
            tokens,
            is_short: false,
            plan: Plan::default(),
        }
    }

    /// Plans `count` machines of one capacity type.
    fn plan(&mut self, capacity_type: CapacityType, count: u32) -> Result<(), ApiError> {
        if count == 0 {
            return Ok(());
        }
        let options = self.params.under(match capacity_type {
            CapacityType::Spot => "SpotOptions",
            CapacityType::OnDemand => "OnDemandOptions",
        });
        let strategy = strategy(capacity_type, &options)?;
        let least: u32 = options.number("MinTargetCapacity")?.unwrap_or(0);
        let mut money: f64 = options.number("MaxTotalPrice")?.unwrap_or(f64::INFINITY);
        let offers = self.offers[&capacity_type].clone();
        let order = allocate::order(strategy, &offers, count);
        let shares = allocate::shares(strategy, &order, &offers, count);
        let mut planned: BTreeMap<usize, u32> = BTreeMap::new();
        let mut refused = BTreeSet::new();
        let mut missing = count;
        // First each its share, then what is missing of whoever still has some, in order.
        let first = order.iter().zip(shares);
        let rest = order.iter().map(|index| (index, u32::MAX));
        for (place, (&index, share)) in first.chain(rest).enumerate() {
            let is_first = place < order.len();
            let wanted = if is_first { share } else { missing };
            if wanted == 0 || refused.contains(&index) {
                continue;
            }
            let (given, refusal) = self.ask(index, capacity_type, &offers, &planned, wanted, money);
            missing -= given;
            if given > 0 {
                *planned.entry(index).or_default() += given;
                money -= f64::from(given) * offers[index].price;
                self.take(index, capacity_type, given);
            }
            if let Some(error) = refusal {
                refused.insert(index);
                self.plan.refusals.push(Refusal {
                    candidate: index,
                    capacity_type,
                    error,
                });
            }
        }
        self.is_short |= count - missing < least;
        for index in order {
            if let Some(&count) = planned.get(&index) {
                self.plan.launches.push(Launch {
                    candidate: index,
                    capacity_type,
                    count,
                });
            }
        }
        Ok(())
    }

    /// "If this minimum target capacity isn't reached, no instances are launched" (`SpotOptionsRequest`,
    /// EC2 API Reference).
    fn finish(self) -> Plan {
        let mut plan = self.plan;
        if self.is_short {
            plan.launches.clear();
        }
        plan
    }

    /// How many of `wanted` an offer gives, and why not all.
    fn ask(
        &self,
        index: usize,
        capacity_type: CapacityType,
        offers: &[Offer],
        planned: &BTreeMap<usize, u32>,
        wanted: u32,
        money: f64,
    ) -> (u32, Option<ApiError>) {
        let candidate = &self.candidates[index];
        if let Some(fault) = &candidate.fault {
            return (0, Some(fault.clone()));
        }
        let price = offers[index].price;
        if let Some(max) = candidate.max_price
            && capacity_type == CapacityType::Spot
            && max < price
        {
            return (0, Some(max_price_too_low(max, price)));
        }
        let taken = planned.get(&index).copied().unwrap_or(0);
        let limits = [
            (whole(self.tokens), ApiError::request_limit_exceeded()),
            (
                self.free_vcpus[&capacity_type] / self.vcpus_each[index].max(1),
                quota_exceeded(capacity_type),
            ),
            (
                self.free_addresses
                    .get(&candidate.subnet)
                    .copied()
                    .unwrap_or(0),
                no_addresses(&candidate.subnet),
            ),
            (
                offers[index].free - taken,
                no_capacity(&candidate.instance_type, &candidate.zone),
            ),
            (
                whole(money / price),
                ApiError::client(
                    "MaxTotalPriceExceeded",
                    "The maximum total price of the fleet is reached.",
                ),
            ),
        ];
        // The first limit in this order that leaves least is the one the refusal names.
        let Some((given, error)) = limits.into_iter().min_by_key(|(limit, _)| *limit) else {
            return (wanted, None);
        };
        if given >= wanted {
            (wanted, None)
        } else {
            (given, Some(error))
        }
    }

    fn take(&mut self, index: usize, capacity_type: CapacityType, count: u32) {
        self.tokens -= f64::from(count);
        let vcpus = self.vcpus_each[index] * count;
        if let Some(free) = self.free_vcpus.get_mut(&capacity_type) {
            *free -= vcpus;
        }
        if let Some(free) = self.free_addresses.get_mut(&self.candidates[index].subnet) {
            *free -= count;
        }
    }
}

fn offer(scope: &Scope<'_>, candidate: &Candidate, capacity_type: CapacityType) -> Offer {
    let pool = Pool {
        instance_type: candidate.instance_type.clone(),
        zone: candidate.zone.clone(),
        capacity_type,
    };
    let types = &scope.settings.instance_types;
    let price = match capacity_type {
        CapacityType::Spot => {
            let walk =
                scope
                    .region
                    .spot_price(scope.settings, &candidate.instance_type, &candidate.zone);
            walk.at(scope.now)
        }
        CapacityType::OnDemand => types
            .get(&candidate.instance_type)
            .map_or(0.0, |kind| kind.on_demand),
    };
    Offer {
        free: if candidate.fault.is_some() {
            0
        } else {
            scope.region.free(scope.settings, &pool)
        },
        price,
        priority: candidate.priority,
    }
}

fn strategy(capacity_type: CapacityType, options: &Params) -> Result<Strategy, ApiError> {
    let pools = options.number("InstancePoolsToUseCount")?;
    let named = options.get("AllocationStrategy");
    let strategy = match (capacity_type, named) {
        // "Default: lowest-price" for both (`CreateFleet`, EC2 API Reference).
        (_, None | Some("lowest-price" | "lowestPrice")) => {
            return Ok(Strategy::LowestPrice {
                pools: pools.unwrap_or(1),
            });
        }
        (CapacityType::Spot, Some("price-capacity-optimized")) => Strategy::PriceCapacityOptimized,
        (CapacityType::Spot, Some("capacity-optimized")) => Strategy::CapacityOptimized,
        (CapacityType::Spot, Some("capacity-optimized-prioritized")) => {
            Strategy::CapacityOptimizedPrioritized
        }
        (CapacityType::Spot, Some("diversified")) => Strategy::Diversified,
        (CapacityType::OnDemand, Some("prioritized")) => Strategy::Prioritized,
        (_, Some(other)) => {
            let expected = format!(
                "Expected an allocation strategy for {} capacity.",
                capacity_type.name()
            );
            return Err(ApiError::invalid_value(
                other,
                "AllocationStrategy",
                &expected,
            ));
        }
    };
    if pools.is_some() {
        let message =
            "InstancePoolsToUseCount is valid only with the allocation strategy lowest-price";
        return Err(ApiError::invalid_combination(message));
    }
    Ok(strategy)
}

/// Launches, and returns the numbers of the instances.
fn start(
    scope: &mut Scope<'_>,
    fleet: &str,
    params: &Params,
    candidate: &Candidate,
    launch: &Launch,
) -> Vec<u64> {
    let (now, settings) = (scope.now, scope.settings);
    let reservation = scope.ids.next("r");
    let vcpus = settings.instance_types[&candidate.instance_type].vcpus;
    let mut tags = candidate.tags.clone();
    tags.insert("aws:ec2:fleet-id".to_owned(), fleet.to_owned());
    let region = &mut *scope.region;
    let (size, name) = (throttle::LAUNCHED_INSTANCES, "launched instances");
    let had_tokens = region
        .buckets
        .take(name, size, settings.throttle, now, launch.count);
    debug_assert!(
        had_tokens,
        "planning looked at the same bucket at the same moment"
    );
    let pool = Pool {
        instance_type: candidate.instance_type.clone(),
        zone: candidate.zone.clone(),
        capacity_type: launch.capacity_type,
    };
    let free = region.free(settings, &pool);
    region.set_free(pool, free - launch.count);
    *region.used_vcpus_mut(launch.capacity_type) += vcpus * launch.count;
    if let Some(subnet) = region.subnets.get_mut(&candidate.subnet) {
        subnet.free -= launch.count;
    }
    (0..launch.count)
        .map(|number| {
            let private_ip = region.next_address();
            region.add(Instance {
                id: scope.ids.next("i"),
                region: scope.name.to_owned(),
                reservation: reservation.clone(),
                fleet: Some(fleet.to_owned()),
                client_token: format!("{fleet}-{reservation}-{number}"),
                request_token: params.get("ClientToken").map(str::to_owned),
                image: candidate.image.clone(),
                instance_type: candidate.instance_type.clone(),
                zone: candidate.zone.clone(),
                subnet: candidate.subnet.clone(),
                capacity_type: launch.capacity_type,
                launched_at: now,
                tags: tags.clone(),
                user_data: candidate.user_data.clone(),
                protected: candidate.protected,
                impaired: false,
                end: None,
                spot_notice: None,
                private_ip,
                groups: candidate.groups.clone(),
                key_name: candidate.key_name.clone(),
                profile: candidate.profile.clone(),
                vcpus,
            })
        })
        .collect()
}

/// `launchTemplateAndOverrides` and `lifecycle`, the same in instances and in errors. Overrides are
/// repeated as they were sent.
fn write_place(xml: &mut Xml, candidate: &Candidate, capacity_type: CapacityType) {
    xml.within("launchTemplateAndOverrides", |xml| {
        xml.within("launchTemplateSpecification", |xml| {
            xml.text("launchTemplateId", &candidate.template.id)
                .text("version", candidate.template.number);
        });
        xml.within("overrides", |xml| {
            for (element, name) in [
                ("instanceType", "InstanceType"),
                ("maxPrice", "MaxPrice"),
                ("subnetId", "SubnetId"),
                ("availabilityZone", "AvailabilityZone"),
                ("priority", "Priority"),
                ("imageId", "ImageId"),
            ] {
                xml.optional(element, candidate.sent.get(name));
            }
        });
    });
    xml.text("lifecycle", capacity_type.name());
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the range of the type before"
)]
fn whole(number: f64) -> u32 {
    number.clamp(0.0, f64::from(u32::MAX)) as u32
}

fn no_capacity(instance_type: &str, zone: &str) -> ApiError {
    let message = format!(
        "We currently do not have sufficient {instance_type} capacity in the Availability Zone you requested ({zone}). Our system will be working on provisioning additional capacity."
    );
    // 500: "server error codes". Inside `Errors[]` the status is not seen.
    ApiError::new(500, "InsufficientInstanceCapacity", message)
}

fn quota_exceeded(capacity_type: CapacityType) -> ApiError {
    match capacity_type {
        CapacityType::Spot => ApiError::client(
            "MaxSpotInstanceCountExceeded",
            "Max spot instance count exceeded",
        ),
        CapacityType::OnDemand => ApiError::client(
            "VcpuLimitExceeded",
            "You have requested more vCPU capacity than your current vCPU limit allows for the instance bucket that the specified instance type belongs to.",
        ),
    }
}

fn no_addresses(subnet: &str) -> ApiError {
    let message = format!(
        "There are not enough free addresses in subnet '{subnet}' to satisfy the requested number of instances."
    );
    ApiError::client("InsufficientFreeAddressesInSubnet", message)
}

fn max_price_too_low(max: f64, price: f64) -> ApiError {
    let message = format!(
        "Your Spot request price of {max} is lower than the minimum required Spot request fulfillment price of {price:.4}."
    );
    ApiError::client("SpotMaxPriceTooLow", message)
}
