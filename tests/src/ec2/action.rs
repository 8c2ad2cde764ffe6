//! The actions the fake knows: for each its token bucket, the parameters it understands, and what it
//! does.
//!
//! A parameter that is not listed is refused instead of ignored: a test must not pass because the fake
//! overlooked half of a request.

use super::error::ApiError;
use super::params::Params;
use super::region::Scope;
use super::throttle::{self, Size};
use super::xml::Xml;
use super::{describe, fleet, instances, tags, template};

/// One action.
#[derive(Debug)]
pub(super) struct Action {
    pub(super) name: &'static str,
    pub(super) bucket: fn(&Params) -> Size,
    /// Names as requests have them, `#` for the numbers of lists, a last `*` for anything below.
    parameters: &'static [&'static str],
    pub(super) run: fn(&mut Scope<'_>, &Params) -> Result<Xml, ApiError>,
}

const FILTER: [&str; 2] = ["Filter.#.Name", "Filter.#.Value.#"];
const PAGE: [&str; 2] = ["MaxResults", "NextToken"];

const fn describe_bucket(_: &Params) -> Size {
    throttle::DESCRIBE
}

/// A call that asks for everything at once has the smaller bucket.
fn describe_all_bucket(params: &Params) -> Size {
    let is_bounded = ["Filter", "MaxResults", "InstanceId"]
        .iter()
        .any(|name| params.has(name));
    if is_bounded {
        throttle::DESCRIBE
    } else {
        throttle::DESCRIBE_ALL
    }
}

const fn mutate_bucket(_: &Params) -> Size {
    throttle::MUTATE
}

/// Every action, in the order of names.
pub(super) const ACTIONS: &[Action] = &[
    Action {
        name: "CreateFleet",
        bucket: mutate_bucket,
        parameters: &[
            "ClientToken",
            "Type",
            "SpotOptions.AllocationStrategy",
            "SpotOptions.InstancePoolsToUseCount",
            "SpotOptions.MinTargetCapacity",
            "SpotOptions.MaxTotalPrice",
            "OnDemandOptions.AllocationStrategy",
            "OnDemandOptions.MinTargetCapacity",
            "OnDemandOptions.MaxTotalPrice",
            "LaunchTemplateConfigs.#.LaunchTemplateSpecification.LaunchTemplateId",
            "LaunchTemplateConfigs.#.LaunchTemplateSpecification.LaunchTemplateName",
            "LaunchTemplateConfigs.#.LaunchTemplateSpecification.Version",
            "LaunchTemplateConfigs.#.LaunchTemplateSpecification.LaunchTemplateSpecificationUserData",
            "LaunchTemplateConfigs.#.Overrides.#.InstanceType",
            "LaunchTemplateConfigs.#.Overrides.#.SubnetId",
            "LaunchTemplateConfigs.#.Overrides.#.AvailabilityZone",
            "LaunchTemplateConfigs.#.Overrides.#.ImageId",
            "LaunchTemplateConfigs.#.Overrides.#.Priority",
            "LaunchTemplateConfigs.#.Overrides.#.MaxPrice",
            "TargetCapacitySpecification.TotalTargetCapacity",
            "TargetCapacitySpecification.SpotTargetCapacity",
            "TargetCapacitySpecification.OnDemandTargetCapacity",
            "TargetCapacitySpecification.DefaultTargetCapacityType",
            "TagSpecification.#.ResourceType",
            "TagSpecification.#.Tag.#.Key",
            "TagSpecification.#.Tag.#.Value",
        ],
        run: fleet::create,
    },
    Action {
        name: "CreateLaunchTemplate",
        bucket: mutate_bucket,
        parameters: &[
            "ClientToken",
            "LaunchTemplateName",
            "VersionDescription",
            "LaunchTemplateData.*",
            "TagSpecification.#.ResourceType",
            "TagSpecification.#.Tag.#.Key",
            "TagSpecification.#.Tag.#.Value",
        ],
        run: template::create,
    },
    Action {
        name: "CreateLaunchTemplateVersion",
        bucket: |_| throttle::TEMPLATE_VERSIONS,
        parameters: &[
            "ClientToken",
            "LaunchTemplateId",
            "LaunchTemplateName",
            "SourceVersion",
            "VersionDescription",
            "LaunchTemplateData.*",
        ],
        run: template::create_version,
    },
    Action {
        name: "CreateTags",
        bucket: |_| throttle::TAGS,
        parameters: &["ResourceId.#", "Tag.#.Key", "Tag.#.Value"],
        run: tags::create,
    },
    Action {
        name: "DeleteLaunchTemplate",
        bucket: mutate_bucket,
        parameters: &["LaunchTemplateId", "LaunchTemplateName"],
        run: template::delete,
    },
    Action {
        name: "DeleteTags",
        bucket: |_| throttle::TAGS,
        parameters: &["ResourceId.#", "Tag.#.Key", "Tag.#.Value"],
        run: tags::delete,
    },
    Action {
        name: "DescribeAvailabilityZones",
        bucket: describe_bucket,
        parameters: &["ZoneName.#", FILTER[0], FILTER[1]],
        run: describe::zones,
    },
    Action {
        name: "DescribeImages",
        bucket: describe_bucket,
        parameters: &[
            "ImageId.#",
            "Owner.#",
            FILTER[0],
            FILTER[1],
            PAGE[0],
            PAGE[1],
        ],
        run: describe::images,
    },
    Action {
        name: "DescribeInstanceStatus",
        bucket: describe_all_bucket,
        parameters: &[
            "InstanceId.#",
            "IncludeAllInstances",
            FILTER[0],
            FILTER[1],
            PAGE[0],
            PAGE[1],
        ],
        run: instances::status,
    },
    Action {
        name: "DescribeInstanceTypeOfferings",
        bucket: describe_bucket,
        parameters: &["LocationType", FILTER[0], FILTER[1], PAGE[0], PAGE[1]],
        run: describe::offerings,
    },
    Action {
        name: "DescribeInstances",
        bucket: describe_all_bucket,
        parameters: &["InstanceId.#", FILTER[0], FILTER[1], PAGE[0], PAGE[1]],
        run: instances::describe,
    },
    Action {
        name: "DescribeLaunchTemplateVersions",
        bucket: describe_bucket,
        parameters: &[
            "LaunchTemplateId",
            "LaunchTemplateName",
            "LaunchTemplateVersion.#",
            "MinVersion",
            "MaxVersion",
            PAGE[0],
            PAGE[1],
        ],
        run: template::describe_versions,
    },
    Action {
        name: "DescribeLaunchTemplates",
        bucket: describe_bucket,
        parameters: &[
            "LaunchTemplateId.#",
            "LaunchTemplateName.#",
            FILTER[0],
            FILTER[1],
            PAGE[0],
            PAGE[1],
        ],
        run: template::describe,
    },
    Action {
        name: "DescribeRegions",
        bucket: describe_bucket,
        parameters: &["RegionName.#", "AllRegions", FILTER[0], FILTER[1]],
        run: describe::regions,
    },
    Action {
        name: "DescribeSecurityGroups",
        bucket: describe_bucket,
        parameters: &[
            "GroupId.#",
            "GroupName.#",
            FILTER[0],
            FILTER[1],
            PAGE[0],
            PAGE[1],
        ],
        run: describe::security_groups,
    },
    Action {
        name: "DescribeSpotPriceHistory",
        bucket: describe_bucket,
        parameters: &[
            "StartTime",
            "EndTime",
            "InstanceType.#",
            "ProductDescription.#",
            "AvailabilityZone",
            FILTER[0],
            FILTER[1],
            PAGE[0],
            PAGE[1],
        ],
        run: describe::spot_price_history,
    },
    Action {
        name: "DescribeSubnets",
        bucket: describe_bucket,
        parameters: &["SubnetId.#", FILTER[0], FILTER[1], PAGE[0], PAGE[1]],
        run: describe::subnets,
    },
    Action {
        name: "ModifyLaunchTemplate",
        bucket: |_| throttle::TEMPLATE_VERSIONS,
        parameters: &[
            "ClientToken",
            "LaunchTemplateId",
            "LaunchTemplateName",
            "SetDefaultVersion",
        ],
        run: template::modify,
    },
    Action {
        name: "RunInstances",
        bucket: |_| throttle::RUN_INSTANCES,
        parameters: &["*"],
        run: |_, _| Err(ApiError::not_in_the_fake("RunInstances without DryRun")),
    },
    Action {
        name: "TerminateInstances",
        bucket: |_| throttle::TERMINATE_INSTANCES,
        parameters: &["InstanceId.#"],
        run: instances::terminate,
    },
];

impl Action {
    /// The action with a name.
    pub(super) fn named(name: &str) -> Result<&'static Self, ApiError> {
        ACTIONS
            .iter()
            .find(|action| action.name == name)
            .ok_or_else(|| ApiError::invalid_action(name))
    }

    /// Refuses parameters it does not understand.
    pub(super) fn check(&self, params: &Params) -> Result<(), ApiError> {
        let unknown = params
            .iter()
            .map(|(name, _)| name)
            .find(|name| !self.parameters.iter().any(|known| is_form_of(known, name)));
        unknown.map_or(Ok(()), |name| {
            let what = format!("the parameter `{name}` of {}", self.name);
            Err(ApiError::not_in_the_fake(&what))
        })
    }
}

fn is_form_of(known: &str, name: &str) -> bool {
    let mut segments = name.split('.');
    for part in known.split('.') {
        match (part, segments.next()) {
            ("*", Some(_)) => return true,
            ("#", Some(segment)) if segment.parse::<u32>().is_ok() => {}
            (part, Some(segment)) if part == segment => {}
            _ => return false,
        }
    }
    segments.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_known_by_their_form() {
        assert!(is_form_of("Filter.#.Value.#", "Filter.12.Value.3"));
        assert!(!is_form_of("Filter.#.Value.#", "Filter.12.Value"));
        assert!(!is_form_of("Filter.#.Name", "Filter.a.Name"));
        assert!(is_form_of(
            "LaunchTemplateData.*",
            "LaunchTemplateData.Placement.Tenancy"
        ));
        assert!(!is_form_of("LaunchTemplateData.*", "LaunchTemplateData"));
    }

    #[test]
    fn every_action_is_there_once() {
        assert!(ACTIONS.windows(2).all(|pair| pair[0].name < pair[1].name));
    }
}
