//! The calls about instances: describing them, asking for their health, ending them.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::error::ApiError;
use super::filter::Filters;
use super::instance::{CapacityType, Instance, State, later};
use super::page::Page;
use super::params::Params;
use super::region::{Scope, not_found};
use super::settings::Timing;
use super::tags;
use super::throttle;
use super::xml::Xml;

/// Ids of one `TerminateInstances`, and instances of a page (EC2 API Reference).
const IDS_LIMIT: usize = 1000;
/// "DescribeInstanceStatus: Constraints: Maximum 100 explicitly specified instance IDs" (EC2 API
/// Reference).
const STATUS_IDS_LIMIT: usize = 100;

/// `DescribeInstances`. `MaxResults` counts instances; "you cannot specify this parameter and the
/// instance IDs parameter in the same call" (EC2 API Reference).
pub(super) fn describe(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
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
                CapacityType::Spot => vec!["spot".to_owned()],
                CapacityType::OnDemand => Vec::new(),
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
pub(super) fn status(scope: &mut Scope<'_>, params: &Params) -> Result<Xml, ApiError> {
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
