//! A cloud in memory that keeps the promises of [`Cloud`]: a token launches once, tags are there from
//! the first moment, ending is idempotent. It outlives the provisioners that use it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use provisioner::cloud::{
    CapacityType, Cloud, CloudError, Finding, InstanceState, LaunchError, LaunchRequest, Launched,
    LaunchedInstance, Offering, OfferingKey, Sighting, TerminateError, UserData,
};
use provisioner::ids::{InstanceId, InstanceType, IntentId, Region, Zone};
use provisioner::money::Money;

#[derive(Debug, Default)]
struct Inner {
    instances: BTreeMap<InstanceId, Sighting>,
    answers: BTreeMap<IntentId, (LaunchRequest, Launched)>,
    /// Termination calls an instance got.
    ends: BTreeMap<InstanceId, u32>,
}

/// The cloud; clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct MemoryCloud {
    inner: Arc<Mutex<Inner>>,
    clock: fn() -> Timestamp,
}

impl MemoryCloud {
    pub(crate) fn new(clock: fn() -> Timestamp) -> Self {
        Self {
            inner: Arc::default(),
            clock,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All instances that were ever launched.
    pub(crate) fn ever(&self) -> Vec<Sighting> {
        self.inner().instances.values().cloned().collect()
    }

    pub(crate) fn alive(&self) -> Vec<Sighting> {
        let mut alive = self.ever();
        alive.retain(|sighting| sighting.state != InstanceState::Terminated);
        alive
    }

    /// An instance with our owner tag that no intent launched.
    pub(crate) fn place(&self, sighting: Sighting) {
        self.inner().instances.insert(sighting.id.clone(), sighting);
    }
}

impl Cloud for MemoryCloud {
    async fn instances(&self, region: &Region) -> Result<Vec<Sighting>, CloudError> {
        let mut sightings = self.ever();
        sightings.retain(|sighting| sighting.offering.region == *region);
        Ok(sightings)
    }

    async fn offerings(
        &self,
        region: &Region,
        types: &BTreeSet<InstanceType>,
    ) -> Result<Vec<Offering>, CloudError> {
        let zone = zone();
        let offering = |instance_type: &InstanceType| Offering {
            key: OfferingKey {
                region: region.clone(),
                zone: zone.clone(),
                instance_type: instance_type.clone(),
                capacity_type: CapacityType::Spot,
            },
            price: Money::from_micros(10_000),
            as_of: (self.clock)(),
        };
        Ok(types.iter().map(offering).collect())
    }

    async fn launch(&self, request: &LaunchRequest, _: &UserData) -> Result<Launched, LaunchError> {
        let mut inner = self.inner();
        if let Some((before, answer)) = inner.answers.get(&request.intent) {
            return if before == request {
                Ok(answer.clone())
            } else {
                Err(LaunchError::Mismatch {
                    message: "other parameters".into(),
                })
            };
        }
        let choice = &request.choices[0];
        let mut launched = Launched::default();
        for _ in 0..request.count {
            let number = inner.instances.len();
            let id = InstanceId::parse(&format!("i-{number:05}")).expect("is plain");
            let sighting = Sighting {
                id: id.clone(),
                offering: OfferingKey {
                    region: request.region.clone(),
                    zone: choice.zone.clone(),
                    instance_type: choice.instance_type.clone(),
                    capacity_type: request.capacity_type,
                },
                state: InstanceState::Running,
                state_reason: None,
                interrupted: false,
                launched_at: (self.clock)(),
                intent: Some(request.intent.clone()),
                pool: Some(request.pool.clone()),
                image: Some(request.image.clone()),
                image_id: Some(request.image_id.clone()),
                hold: None,
                private_address: None,
            };
            inner.instances.insert(id.clone(), sighting);
            launched.instances.push(LaunchedInstance {
                id,
                instance_type: choice.instance_type.clone(),
                zone: choice.zone.clone(),
            });
        }
        let answer = (request.clone(), launched.clone());
        inner.answers.insert(request.intent.clone(), answer);
        Ok(launched)
    }

    async fn terminate(
        &self,
        _: &Region,
        ids: &[InstanceId],
    ) -> BTreeMap<InstanceId, Result<(), TerminateError>> {
        let mut inner = self.inner();
        let mut answers = BTreeMap::new();
        for id in ids {
            *inner.ends.entry(id.clone()).or_default() += 1;
            let answer = match inner.instances.get_mut(id) {
                Some(sighting) => {
                    sighting.state = InstanceState::Terminated;
                    Ok(())
                }
                None => Err(TerminateError::Unknown),
            };
            answers.insert(id.clone(), answer);
        }
        answers
    }

    async fn check(&self) -> Vec<Finding> {
        Vec::new()
    }
}

pub(crate) fn zone() -> Zone {
    Zone::parse("local-a").expect("is plain")
}
