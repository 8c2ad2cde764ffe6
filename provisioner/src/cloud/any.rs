//! The configured cloud, whichever it is.

use std::collections::{BTreeMap, BTreeSet};

#[cfg(feature = "ec2")]
use jiff::Timestamp;

#[cfg(feature = "ec2")]
use super::ec2::Ec2;
use super::local::{LocalCloud, Surroundings};
use super::{
    Cloud, CloudError, Finding, LaunchError, LaunchRequest, Launched, Offering, Sighting,
    TerminateError, UserData,
};
use crate::config::Config;
use crate::ids::{InstanceId, InstanceType, Region};

/// One of the clouds there are.
#[derive(Debug)]
pub enum AnyCloud {
    /// Processes on this machine.
    Local(LocalCloud),
    /// Amazon EC2.
    #[cfg(feature = "ec2")]
    Ec2(Box<Ec2>),
}

impl AnyCloud {
    /// This machine, as `config` says.
    #[must_use]
    pub fn local(config: &Config, surroundings: Surroundings) -> Self {
        Self::Local(LocalCloud::new(config, surroundings))
    }

    /// EC2, as `config` says.
    #[cfg(feature = "ec2")]
    pub async fn ec2(config: &Config, clock: fn() -> Timestamp) -> Self {
        Self::Ec2(Box::new(Ec2::connect(config, clock).await))
    }
}

/// The same call on whichever cloud it is.
macro_rules! each {
    ($cloud:expr, $each:ident => $call:expr) => {
        match $cloud {
            AnyCloud::Local($each) => $call,
            #[cfg(feature = "ec2")]
            AnyCloud::Ec2($each) => $call,
        }
    };
}

impl Cloud for AnyCloud {
    async fn instances(&self, region: &Region) -> Result<Vec<Sighting>, CloudError> {
        each!(self, cloud => cloud.instances(region).await)
    }

    async fn offerings(
        &self,
        region: &Region,
        types: &BTreeSet<InstanceType>,
    ) -> Result<Vec<Offering>, CloudError> {
        each!(self, cloud => cloud.offerings(region, types).await)
    }

    async fn launch(
        &self,
        request: &LaunchRequest,
        user_data: &UserData,
    ) -> Result<Launched, LaunchError> {
        each!(self, cloud => cloud.launch(request, user_data).await)
    }

    async fn terminate(
        &self,
        region: &Region,
        ids: &[InstanceId],
    ) -> BTreeMap<InstanceId, Result<(), TerminateError>> {
        each!(self, cloud => cloud.terminate(region, ids).await)
    }

    async fn check(&self) -> Vec<Finding> {
        each!(self, cloud => cloud.check().await)
    }
}
