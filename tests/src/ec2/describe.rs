//! The calls that only look, apart from those about instances and templates: spot prices, images and
//! the network.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::error::ApiError;
use super::filter::Filters;
use super::instance::{moment, write_tags};
use super::page::Page;
use super::params::Params;
use super::price::PRODUCTS;
use super::region::Scope;
use super::tags;
use super::xml::Xml;

/// Items of a page of most calls (EC2 API Reference).
const ITEMS_LIMIT: usize = 1000;
/// "Up to the past 90 days" (`DescribeSpotPriceHistory`, EC2 API Reference).
const HISTORY: SignedDuration = SignedDuration::from_hours(90 * 24);

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
                let walk = scope.region.spot_price(scope.settings, instance_type, zone);
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
    let page = Page::of(params, 1..=ITEMS_LIMIT)?.at_most(ITEMS_LIMIT);
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
    let (shown, next) = Page::of(params, 5..=ITEMS_LIMIT)?
        .at_most(ITEMS_LIMIT)
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
    let (shown, next) = Page::of(params, 1..=ITEMS_LIMIT)?.cut(found);
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
    let (shown, next) = Page::of(params, 5..=ITEMS_LIMIT)?.cut(found);
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
    let (shown, next) = Page::of(params, 5..=ITEMS_LIMIT)?.cut(found);
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
