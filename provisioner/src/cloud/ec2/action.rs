//! The calls we make of EC2: all of them, with what each costs and who is to wait for whom.

use std::time::Duration;

use crate::cloud::budget::{Bucket, Cost};

/// One action of the EC2 API that this program calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Launches.
    CreateFleet,
    /// Makes the template of a pool and image.
    CreateLaunchTemplate,
    /// Makes a version of it.
    CreateLaunchTemplateVersion,
    /// Finds out whether an image is there, and what its root volume is called.
    DescribeImages,
    /// Finds out which zone sells which type.
    DescribeInstanceTypeOfferings,
    /// Lists our instances.
    DescribeInstances,
    /// Finds a version by its description.
    DescribeLaunchTemplateVersions,
    /// `check` only: whether a region exists.
    DescribeRegions,
    /// `check` only: whether security groups exist.
    DescribeSecurityGroups,
    /// Finds out the spot prices.
    DescribeSpotPriceHistory,
    /// Finds out the zone of each subnet, and its free addresses.
    DescribeSubnets,
    /// `check` only, and with `DryRun`: whether a launch would be allowed in every detail.
    RunInstances,
    /// Ends instances.
    TerminateInstances,
}

impl Action {
    /// Every one.
    pub const ALL: [Self; 13] = [
        Self::CreateFleet,
        Self::CreateLaunchTemplate,
        Self::CreateLaunchTemplateVersion,
        Self::DescribeImages,
        Self::DescribeInstanceTypeOfferings,
        Self::DescribeInstances,
        Self::DescribeLaunchTemplateVersions,
        Self::DescribeRegions,
        Self::DescribeSecurityGroups,
        Self::DescribeSpotPriceHistory,
        Self::DescribeSubnets,
        Self::RunInstances,
        Self::TerminateInstances,
    ];

    /// As EC2 and IAM policies write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CreateFleet => "CreateFleet",
            Self::CreateLaunchTemplate => "CreateLaunchTemplate",
            Self::CreateLaunchTemplateVersion => "CreateLaunchTemplateVersion",
            Self::DescribeImages => "DescribeImages",
            Self::DescribeInstanceTypeOfferings => "DescribeInstanceTypeOfferings",
            Self::DescribeInstances => "DescribeInstances",
            Self::DescribeLaunchTemplateVersions => "DescribeLaunchTemplateVersions",
            Self::DescribeRegions => "DescribeRegions",
            Self::DescribeSecurityGroups => "DescribeSecurityGroups",
            Self::DescribeSpotPriceHistory => "DescribeSpotPriceHistory",
            Self::DescribeSubnets => "DescribeSubnets",
            Self::RunInstances => "RunInstances",
            Self::TerminateInstances => "TerminateInstances",
        }
    }

    /// What one call takes of our budget, if it launches or ends `instances`.
    #[must_use]
    pub const fn cost(self, instances: u32) -> Cost {
        match self {
            Self::CreateFleet => {
                Cost::request(Bucket::Mutate).with_instances(Bucket::LaunchedInstances, instances)
            }
            Self::CreateLaunchTemplate => Cost::request(Bucket::Mutate),
            Self::CreateLaunchTemplateVersion => Cost::request(Bucket::TemplateVersion),
            Self::DescribeImages
            | Self::DescribeInstanceTypeOfferings
            | Self::DescribeInstances
            | Self::DescribeLaunchTemplateVersions
            | Self::DescribeRegions
            | Self::DescribeSecurityGroups
            | Self::DescribeSpotPriceHistory
            | Self::DescribeSubnets => Cost::request(Bucket::Describe),
            Self::RunInstances => Cost::request(Bucket::Run),
            Self::TerminateInstances => {
                Cost::request(Bucket::Terminate).with_instances(Bucket::EndedInstances, instances)
            }
        }
    }

    /// How often it is tried within one call of ours. A launch is tried once: the plan has its own
    /// memory of what failed, and the same request is sent again by the next pass.
    #[must_use]
    pub const fn attempts(self) -> u32 {
        match self {
            Self::CreateFleet => 1,
            Self::CreateLaunchTemplate
            | Self::CreateLaunchTemplateVersion
            | Self::DescribeImages
            | Self::DescribeInstanceTypeOfferings
            | Self::DescribeInstances
            | Self::DescribeLaunchTemplateVersions
            | Self::DescribeRegions
            | Self::DescribeSecurityGroups
            | Self::DescribeSpotPriceHistory
            | Self::DescribeSubnets
            | Self::RunInstances
            | Self::TerminateInstances => 3,
        }
    }

    /// How long an answer may take, given the configured time for calls that only look. EC2 answers
    /// an `instant` fleet when all its instances are placed, which takes longer.
    #[must_use]
    pub const fn timeout(self, configured: Duration) -> Duration {
        match self {
            Self::CreateFleet => configured.saturating_mul(4),
            Self::CreateLaunchTemplate
            | Self::CreateLaunchTemplateVersion
            | Self::DescribeImages
            | Self::DescribeInstanceTypeOfferings
            | Self::DescribeInstances
            | Self::DescribeLaunchTemplateVersions
            | Self::DescribeRegions
            | Self::DescribeSecurityGroups
            | Self::DescribeSpotPriceHistory
            | Self::DescribeSubnets
            | Self::RunInstances
            | Self::TerminateInstances => configured,
        }
    }

    /// How long it may wait for our own budget. A launch that would wait longer is better decided
    /// again by the next pass; ending instances is worth a minute.
    #[must_use]
    pub const fn patience(self) -> Duration {
        Duration::from_secs(match self {
            Self::CreateFleet => 15,
            Self::CreateLaunchTemplate
            | Self::CreateLaunchTemplateVersion
            | Self::DescribeImages
            | Self::DescribeInstanceTypeOfferings
            | Self::DescribeInstances
            | Self::DescribeLaunchTemplateVersions
            | Self::DescribeSpotPriceHistory
            | Self::DescribeSubnets => 30,
            Self::TerminateInstances => 60,
            // A person waits, and a thousand pools are a thousand calls.
            Self::DescribeRegions | Self::DescribeSecurityGroups | Self::RunInstances => 600,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_list_of_actions_is_whole_and_sorted() {
        let names: Vec<&str> = Action::ALL.iter().map(|action| action.name()).collect();
        let sorted: BTreeSet<&str> = names.iter().copied().collect();
        assert!(names.iter().eq(&sorted), "{names:?}");
        for action in Action::ALL {
            assert_eq!(format!("{action:?}"), action.name());
        }
    }

    #[test]
    fn only_a_launch_is_never_tried_twice() {
        for action in Action::ALL {
            let once = action.attempts() == 1;
            assert_eq!(once, action == Action::CreateFleet, "{action:?}");
        }
    }

    /// What the policy grants, by service.
    fn granted(service: &str) -> Vec<String> {
        let policy = include_str!("../../../../deploy/iam-policy.json");
        let policy: serde_json::Value = serde_json::from_str(policy).unwrap();
        let statements = policy["Statement"].as_array().unwrap();
        assert!(
            statements
                .iter()
                .all(|statement| statement["Effect"] == "Allow")
        );
        let actions = statements
            .iter()
            .flat_map(|statement| match &statement["Action"] {
                serde_json::Value::Array(actions) => actions.clone(),
                one => vec![one.clone()],
            });
        let actions = actions.map(|action| action.as_str().unwrap().to_owned());
        let mut granted: Vec<String> = actions
            .filter_map(|action| Some(action.strip_prefix(service)?.strip_prefix(':')?.to_owned()))
            .collect();
        granted.sort();
        granted.dedup();
        granted
    }

    #[test]
    fn the_policy_grants_what_is_called_and_nothing_else() {
        // Tags given at creation need the right to tag as well.
        let mut called: Vec<&str> = Action::ALL.iter().map(|action| action.name()).collect();
        called.push("CreateTags");
        called.sort_unstable();
        assert_eq!(granted("ec2"), called);
        // A host's role is passed on, and the first fleet of an account makes two roles of AWS's.
        assert_eq!(granted("iam"), ["CreateServiceLinkedRole", "PassRole"]);
    }
}
