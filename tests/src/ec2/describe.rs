//! The calls that only look, and `TerminateInstances`, which looks first.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::error::ApiError;
use super::filter::Filters;
use super::instance::{Instance, State, later, moment, write_tags};
use super::page::Page;
use super::params::Params;
use super::price::PRODUCTS;
use super::region::{Market, Scope, not_found};
use super::settings::Timing;
use super::tags;
use super::throttle;
use super::xml::Xml;

/// Ids of one `TerminateInstances`, and items of a page of most calls (EC2 API Reference).
const IDS_LIMIT: usize = 1000;
/// "DescribeInstanceStatus: Constraints: Maximum 100 explicitly specified instance IDs" (EC2 API
/// Reference).
const STATUS_IDS_LIMIT: usize = 100;
/// "Up to the past 90 days" (`DescribeSpotPriceHistory`, EC2 API Reference).
const HISTORY: SignedDuration = SignedDuration::from_hours(90 * 24);
/// `DescribeInstances`. `MaxResults` counts instances; "you cannot specify this parameter and the
/// instance IDs parameter in the same call" (EC2 API Reference).
pub(super) fn instances(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let known = [
        "availability-zone",
        "client-token",
        "image-id",
        "instance-id",
        "instance-lifecycle",
        "instance-state-name",
        "instance-type",
        "subnet-id",
        "tag:",
        "tag-key",
    ];
    let filters = Filters::of(params, &known)?;
    let ids = params.list("InstanceId");
    if !ids.is_empty() && params.has("MaxResults") {
        let message = "The parameter instancesSet cannot be used with the parameter maxResults";
        return Err(ApiError::invalid_combination(message));
    }
    let asked = asked(scope, &ids)?;
    let (now, timing) = (scope.now, &scope.settings.timing);
    let page = Page::of(params, 5..=IDS_LIMIT)?;
    let found = visible(scope, &asked, page).filter(|(_, (instance, state))| {
        filters.pass(|name| match name {
            "availability-zone" => vec![instance.zone.clone()],
            "client-token" => vec![instance.client_token.clone()],
            "image-id" => vec![instance.image.clone()],
            "instance-id" => vec![instance.id.clone()],
            "instance-lifecycle" => match instance.capacity_type {
                super::CapacityType::Spot => vec!["spot".to_owned()],
                super::CapacityType::OnDemand => Vec::new(),
            },
            "instance-state-name" => vec![state.name().to_owned()],
            "instance-type" => vec![instance.instance_type.clone()],
            "subnet-id" => vec![instance.subnet.clone()],
            other => tags::filter_values(instance.visible_tags(now, timing), other),
        })
    });
    let (shown, next) = page.cut_numbered(found);
    let mut reservations: Vec<(&str, Vec<(&Instance, State)>)> = Vec::new();
    for (instance, state) in shown {
        match reservations.last_mut() {
            Some((id, members)) if *id == instance.reservation => members.push((instance, state)),
            _ => reservations.push((&instance.reservation, vec![(instance, state)])),
        }
    }
    let mut xml = Xml::default();
    xml.set("reservationSet", reservations, |xml, (id, members)| {
        xml.text("reservationId", id)
            .text("ownerId", scope.account)
            .within("groupSet", |_| {})
            .set("instancesSet", members, |xml, (instance, state)| {
                instance.write(xml, state, now, timing);
            });
    });
    xml.optional("nextToken", next);
    Ok(xml)
}

/// The numbers of the instances a request names; all of them must be known, or the call fails.
fn asked(scope: &Scope<'_>, ids: &[String]) -> Result<BTreeSet<u64>, ApiError> {
    let mut asked = BTreeSet::new();
    let mut unknown = Vec::new();
    for id in ids {
        match scope.region.find(id, scope.now, scope.settings) {
            Ok((number, _)) => {
                asked.insert(number);
            }
            Err(error) if error.code == "InvalidInstanceID.NotFound" => unknown.push(id.as_str()),
            Err(error) => return Err(error),
        }
    }
    if unknown.is_empty() {
        Ok(asked)
    } else {
        Err(not_found(unknown))
    }
}

/// The instances calls see, from the first of the page on.
fn visible<'a>(
    scope: &'a Scope<'_>,
    asked: &'a BTreeSet<u64>,
    page: Page,
) -> impl Iterator<Item = (u64, (&'a Instance, State))> {
    let (now, timing) = (scope.now, &scope.settings.timing);
    scope
        .region
        .instances
        .range(page.first_number()..)
        .filter(|(number, _)| asked.is_empty() || asked.contains(number))
        .filter_map(move |(number, instance)| {
            let state = instance.visible_state(now, timing)?;
            Some((*number, (instance, state)))
        })
}

/// `DescribeInstanceStatus`: "by default, only running instances are described".
pub(super) fn instance_status(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let ids = params.list("InstanceId");
    if ids.len() > STATUS_IDS_LIMIT {
        let message = format!("The maximum number of instance IDs is {STATUS_IDS_LIMIT}");
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    if !ids.is_empty() && params.has("MaxResults") {
        let message = "The parameter instancesSet cannot be used with the parameter maxResults";
        return Err(ApiError::invalid_combination(message));
    }
    let known = ["instance-state-name", "instance-status.status"];
    let filters = Filters::of(params, &known)?;
    let all = params.flag("IncludeAllInstances")?;
    let asked = asked(scope, &ids)?;
    let (now, timing) = (scope.now, &scope.settings.timing);
    let page = Page::of(params, 5..=IDS_LIMIT)?;
    let found = visible(scope, &asked, page)
        .filter(|(_, (_, state))| all || *state == State::Running)
        .map(|(number, (instance, state))| {
            (
                number,
                (instance, state, Health::of(instance, state, now, timing)),
            )
        })
        .filter(|(_, (_, state, health))| {
            filters.pass(|name| match name {
                "instance-state-name" => vec![state.name().to_owned()],
                _ => vec![health.name().to_owned()],
            })
        });
    let (shown, next) = page.cut_numbered(found);
    let mut xml = Xml::default();
    xml.set(
        "instanceStatusSet",
        shown,
        |xml, (instance, state, health)| {
            xml.text("instanceId", &instance.id)
                .text("availabilityZone", &instance.zone);
            state.write(xml, "instanceState");
            for check in ["systemStatus", "instanceStatus"] {
                xml.within(check, |xml| {
                    xml.text("status", health.name()).set(
                        "details",
                        health.detail(),
                        |xml, detail| {
                            xml.text("name", "reachability").text("status", detail);
                        },
                    );
                });
            }
        },
    );
    xml.optional("nextToken", next);
    Ok(xml)
}

/// What the status checks of an instance say.
#[derive(Clone, Copy)]
enum Health {
    Initializing,
    Ok,
    Impaired,
    NotApplicable,
}

impl Health {
    fn of(instance: &Instance, state: State, now: Timestamp, timing: &Timing) -> Self {
        let checked_at = later(instance.launched_at, timing.initializing_for);
        match state {
            State::Running if instance.impaired => Self::Impaired,
            State::Running if now < checked_at => Self::Initializing,
            State::Running => Self::Ok,
            State::Pending | State::ShuttingDown | State::Terminated => Self::NotApplicable,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Initializing => "initializing",
            Self::Ok => "ok",
            Self::Impaired => "impaired",
            Self::NotApplicable => "not-applicable",
        }
    }

    /// What was not checked has no detail.
    const fn detail(self) -> Option<&'static str> {
        match self {
            Self::Initializing => Some("initializing"),
            Self::Ok => Some("passed"),
            Self::Impaired => Some("failed"),
            Self::NotApplicable => None,
        }
    }
}

/// `TerminateInstances`: "If you specify an invalid instance ID, the request fails … no instances are
/// terminated"; ending one twice is a success. "If you terminate multiple instances across multiple
/// Availability Zones, and one or more of the specified instances are enabled for termination
/// protection, the request fails": the instances in the zone of the protected one stay, "the specified
/// instances that are in different Availability Zones … are successfully terminated" (EC2 API
/// Reference).
pub(super) fn terminate(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let ids = params.list("InstanceId");
    if ids.is_empty() {
        return Err(ApiError::missing_parameter("InstanceId"));
    }
    if ids.len() > IDS_LIMIT {
        let message = format!("The maximum number of instances per call is {IDS_LIMIT}");
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    let asked = asked(scope, &ids)?;
    let (now, settings) = (scope.now, scope.settings);
    let region = &mut *scope.region;
    let (size, name) = (throttle::TERMINATED_INSTANCES, "terminated instances");
    let count = u32::try_from(asked.len()).unwrap_or(u32::MAX);
    if !region
        .buckets
        .take(name, size, settings.throttle, now, count)
    {
        return Err(ApiError::request_limit_exceeded());
    }
    let protected: Vec<_> = asked
        .iter()
        .map(|number| &region.instances[number])
        .filter(|instance| instance.protected && !instance.is_ending(now))
        .collect();
    let refusal = protected.first().map(|instance| {
        let message = format!(
            "The instance '{}' may not be terminated. Modify its 'disableApiTermination' instance attribute and try again.",
            instance.id
        );
        ApiError::client("OperationNotPermitted", message)
    });
    let spared: BTreeSet<String> = protected
        .iter()
        .map(|instance| instance.zone.clone())
        .collect();
    let mut changes = Vec::new();
    for number in asked {
        let before = region.instances[&number].state(now, &settings.timing);
        if !spared.contains(&region.instances[&number].zone) {
            region.terminate(settings, now, number);
        }
        let instance = &region.instances[&number];
        let after = instance.state(now, &settings.timing);
        changes.push((instance.id.clone(), before, after));
    }
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    let mut xml = Xml::default();
    xml.set("instancesSet", changes, |xml, (id, before, after)| {
        xml.text("instanceId", id);
        after
            .unwrap_or(State::Terminated)
            .write(xml, "currentState");
        before
            .unwrap_or(State::Terminated)
            .write(xml, "previousState");
    });
    Ok(xml)
}

/// `DescribeSpotPriceHistory`: the changes from `StartTime` to `EndTime` and "the last price change
/// before the start time", the newest first.
pub(super) fn spot_price_history(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let known = ["availability-zone", "instance-type", "product-description"];
    let filters = Filters::of(params, &known)?;
    let time = |name: &str| {
        params
            .get(name)
            .map(|text| {
                let expected = "Expected a time such as 2026-01-01T00:00:00Z.";
                text.parse::<Timestamp>()
                    .map_err(|_| ApiError::invalid_value(text, name, expected))
            })
            .transpose()
    };
    let oldest = scope.now - HISTORY;
    let start = time("StartTime")?
        .unwrap_or(oldest)
        .max(oldest)
        .min(scope.now);
    let end = time("EndTime")?.unwrap_or(scope.now).min(scope.now);
    let types = params.list("InstanceType");
    let zone = params.get("AvailabilityZone");
    // Within a VPC and outside have been the same price since 2013, and the same rows.
    let products: Vec<String> = params
        .list("ProductDescription")
        .iter()
        .map(|product| product.trim_end_matches(" (Amazon VPC)").to_owned())
        .collect();
    let market = Market {
        settings: scope.settings,
    };
    let mut rows = Vec::new();
    for (instance_type, zone) in offered(scope)
        .filter(|(kind, _)| types.is_empty() || types.contains(kind))
        .filter(|(_, offered)| zone.is_none_or(|zone| zone == *offered))
    {
        for (product, factor) in PRODUCTS {
            let is_asked = products.is_empty() || products.iter().any(|asked| asked == product);
            let passes = filters.pass(|name| match name {
                "availability-zone" => vec![zone.clone()],
                "instance-type" => vec![instance_type.clone()],
                _ => vec![product.to_owned()],
            });
            if is_asked && passes {
                let walk = scope.region.spot_price(&market, instance_type, zone);
                let changes = walk.changes(start, end.max(start)).into_iter();
                rows.extend(changes.map(|change| {
                    (
                        change.since,
                        instance_type,
                        zone,
                        product,
                        change.price * factor,
                    )
                }));
            }
        }
    }
    rows.sort_by(|left, right| {
        let place = |row: &(Timestamp, &String, &String, &'static str, f64)| {
            (row.1.clone(), row.2.clone(), row.3)
        };
        right
            .0
            .cmp(&left.0)
            .then_with(|| place(left).cmp(&place(right)))
    });
    let page = Page::of(params, 1..=IDS_LIMIT)?.at_most(IDS_LIMIT);
    let (shown, next) = page.cut(rows.into_iter());
    let mut xml = Xml::default();
    xml.set(
        "spotPriceHistorySet",
        shown,
        |xml, (since, kind, zone, product, price)| {
            xml.text("instanceType", kind)
                .text("productDescription", product)
                .text("spotPrice", format!("{price:.6}"))
                .text("timestamp", moment(since))
                .text("availabilityZone", zone);
        },
    );
    // EC2 has the element in the last answer too, empty.
    xml.text("nextToken", next.unwrap_or_default());
    Ok(xml)
}

/// Every (type, zone) the region offers.
fn offered<'a>(scope: &'a Scope<'_>) -> impl Iterator<Item = (&'a String, &'a String)> {
    let not_offered = &scope.setting.not_offered;
    let zones = &scope.setting.zones;
    scope
        .settings
        .instance_types
        .keys()
        .flat_map(move |kind| zones.iter().map(move |zone| (kind, zone)))
        .filter(|(kind, zone)| !not_offered.contains(&((*kind).clone(), (*zone).clone())))
}

/// `DescribeInstanceTypeOfferings`, by region (the default) or by zone.
pub(super) fn offerings(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let filters = Filters::of(params, &["instance-type", "location"])?;
    let (location_type, all): (&str, BTreeSet<(&str, &str)>) = match params.get("LocationType") {
        None | Some("region") => {
            let regions = offered(scope).map(|(kind, _)| (kind.as_str(), scope.name));
            ("region", regions.collect())
        }
        Some("availability-zone") => {
            let zones = offered(scope).map(|(kind, zone)| (kind.as_str(), zone.as_str()));
            ("availability-zone", zones.collect())
        }
        Some(other) => {
            let expected = "Expected region or availability-zone.";
            return Err(ApiError::invalid_value(other, "LocationType", expected));
        }
    };
    let found = all.into_iter().filter(|(kind, location)| {
        filters.pass(|name| match name {
            "instance-type" => vec![(*kind).to_owned()],
            _ => vec![(*location).to_owned()],
        })
    });
    let (shown, next) = Page::of(params, 5..=IDS_LIMIT)?
        .at_most(IDS_LIMIT)
        .cut(found);
    let mut xml = Xml::default();
    xml.set("instanceTypeOfferingSet", shown, |xml, (kind, location)| {
        xml.text("instanceType", kind)
            .text("locationType", location_type)
            .text("location", location);
    });
    xml.optional("nextToken", next);
    Ok(xml)
}

/// `DescribeImages`: an image asked for by id must exist.
pub(super) fn images(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let filters = Filters::of(params, &["image-id", "name", "state", "tag:", "tag-key"])?;
    let ids = params.list("ImageId");
    let images = &scope.region.images;
    if let Some(unknown) = ids.iter().find(|id| !images.contains_key(*id)) {
        return Err(unknown_image(unknown));
    }
    let owners = params.list("Owner");
    let is_ours = owners.is_empty()
        || owners
            .iter()
            .any(|owner| owner == "self" || owner == scope.account);
    let found = images.values().filter(|image| {
        is_ours
            && (ids.is_empty() || ids.contains(&image.id))
            && filters.pass(|name| match name {
                "image-id" => vec![image.id.clone()],
                "name" => vec![image.name.clone()],
                "state" => vec!["available".to_owned()],
                other => tags::filter_values(Some(&image.tags), other),
            })
    });
    let (shown, next) = Page::of(params, 1..=IDS_LIMIT)?.cut(found);
    let mut xml = Xml::default();
    xml.set("imagesSet", shown, |xml, image| {
        xml.text("imageId", &image.id)
            .text("imageLocation", format!("{}/{}", scope.account, image.name))
            .text("imageState", "available")
            .text("imageOwnerId", scope.account)
            .text("isPublic", false)
            .text("architecture", "x86_64")
            .text("imageType", "machine")
            .text("name", &image.name)
            .text("rootDeviceType", "ebs")
            .text("rootDeviceName", "/dev/xvda")
            .text("virtualizationType", "hvm");
        write_tags(xml, Some(&image.tags));
        xml.text("hypervisor", "xen");
    });
    xml.optional("nextToken", next);
    Ok(xml)
}

/// `DescribeSubnets`: `AvailableIpAddressCount` is what is free now.
pub(super) fn subnets(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let filters = Filters::of(
        params,
        &["availability-zone", "subnet-id", "vpc-id", "state"],
    )?;
    let ids = params.list("SubnetId");
    let subnets = &scope.region.subnets;
    if let Some(unknown) = ids.iter().find(|id| !subnets.contains_key(*id)) {
        let message = format!("The subnet ID '{unknown}' does not exist");
        return Err(ApiError::client("InvalidSubnetID.NotFound", message));
    }
    let vpc = vpc(scope.name);
    let found = subnets.iter().filter(|(id, subnet)| {
        (ids.is_empty() || ids.contains(id))
            && filters.pass(|name| match name {
                "availability-zone" => vec![subnet.zone.clone()],
                "subnet-id" => vec![(*id).clone()],
                "vpc-id" => vec![vpc.clone()],
                _ => vec!["available".to_owned()],
            })
    });
    let (shown, next) = Page::of(params, 5..=IDS_LIMIT)?.cut(found);
    let mut xml = Xml::default();
    xml.set("subnetSet", shown, |xml, (id, subnet)| {
        xml.text("subnetId", id)
            .text("state", "available")
            .text("vpcId", &vpc)
            .text("cidrBlock", &subnet.cidr)
            .text("availableIpAddressCount", subnet.free)
            .text("availabilityZone", &subnet.zone)
            .text("defaultForAz", true)
            .text("mapPublicIpOnLaunch", true)
            .text("ownerId", scope.account);
    });
    xml.optional("nextToken", next);
    Ok(xml)
}

/// `DescribeSecurityGroups`, without their rules.
pub(super) fn security_groups(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let filters = Filters::of(params, &["group-id", "group-name", "vpc-id"])?;
    let (ids, names) = (params.list("GroupId"), params.list("GroupName"));
    let groups = &scope.setting.security_groups;
    if let Some(unknown) = ids
        .iter()
        .find(|id| !groups.values().any(|known| known == *id))
    {
        return Err(unknown_group(unknown));
    }
    if let Some(unknown) = names.iter().find(|name| !groups.contains_key(*name)) {
        return Err(unknown_group(unknown));
    }
    let vpc = vpc(scope.name);
    let found = groups.iter().filter(|(name, id)| {
        (ids.is_empty() || ids.contains(id))
            && (names.is_empty() || names.contains(name))
            && filters.pass(|filter| match filter {
                "group-id" => vec![(*id).clone()],
                "group-name" => vec![(*name).clone()],
                _ => vec![vpc.clone()],
            })
    });
    let (shown, next) = Page::of(params, 5..=IDS_LIMIT)?.cut(found);
    let mut xml = Xml::default();
    xml.set("securityGroupInfo", shown, |xml, (name, id)| {
        xml.text("ownerId", scope.account)
            .text("groupId", id)
            .text("groupName", name)
            .text("groupDescription", format!("{name} VPC security group"))
            .text("vpcId", &vpc);
    });
    xml.optional("nextToken", next);
    Ok(xml)
}

/// `DescribeAvailabilityZones`.
pub(super) fn zones(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let filters = Filters::of(params, &["zone-name", "state", "region-name"])?;
    let names = params.list("ZoneName");
    let zones = &scope.setting.zones;
    if let Some(unknown) = names.iter().find(|name| !zones.contains(name)) {
        let message = format!("Invalid availability zone: [{unknown}]");
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    let found = zones.iter().filter(|zone| {
        (names.is_empty() || names.contains(zone))
            && filters.pass(|name| match name {
                "zone-name" => vec![(*zone).clone()],
                "state" => vec!["available".to_owned()],
                _ => vec![scope.name.to_owned()],
            })
    });
    let mut xml = Xml::default();
    xml.set("availabilityZoneInfo", found, |xml, zone| {
        xml.text("zoneName", zone)
            .text("zoneState", "available")
            .text("regionName", scope.name)
            .within("messageSet", |_| {})
            .text("zoneType", "availability-zone")
            .text("optInStatus", "opt-in-not-required");
    });
    Ok(xml)
}

/// `DescribeRegions`: those of the settings, all enabled.
pub(super) fn regions(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
    let filters = Filters::of(params, &["region-name"])?;
    let names = params.list("RegionName");
    let regions = &scope.settings.regions;
    if let Some(unknown) = names.iter().find(|name| !regions.contains_key(*name)) {
        let message = format!("Invalid region: [{unknown}]");
        return Err(ApiError::client("InvalidParameterValue", message));
    }
    let found = regions.keys().filter(|region| {
        (names.is_empty() || names.contains(region)) && filters.pass(|_| vec![(*region).clone()])
    });
    let mut xml = Xml::default();
    xml.set("regionInfo", found, |xml, region| {
        xml.text("regionName", region)
            .text("regionEndpoint", format!("ec2.{region}.amazonaws.com"))
            .text("optInStatus", "opt-in-not-required");
    });
    Ok(xml)
}

fn vpc(region: &str) -> String {
    super::ids::named("vpc", region)
}

pub(super) fn unknown_image(id: &str) -> ApiError {
    let message = format!("The image id '[{id}]' does not exist");
    ApiError::client("InvalidAMIID.NotFound", message)
}

pub(super) fn unknown_group(id: &str) -> ApiError {
    let message = format!("The security group '{id}' does not exist");
    ApiError::client("InvalidGroup.NotFound", message)
}
