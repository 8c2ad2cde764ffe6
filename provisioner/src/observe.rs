//! Gathering the [`World`]: store, cloud and demand, put together into plain data.
//!
//! The cloud is asked first and the store afterwards: what is launched in between is then known to
//! the store and not yet seen in the cloud, which waits, and never the other way round, which would
//! look like a stray. A region or a source that fails is in the World as such and delays no other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::time::timeout;

use crate::cloud::{Cloud, CloudError, InstanceState, Offering, Sighting};
use crate::config::Config;
use crate::demand::PoolDemand;
use crate::ids::{InstanceId, InstanceType, PassId, PoolName, Region};
use crate::money::Money;
use crate::store::{Change, InstanceRecord, Stored};
use crate::world::{Instance, RegionView, Sight, World};

/// Longest wait for one region. Ten thousand instances are ten pages; a page takes a second or two.
const REGION_PATIENCE: Duration = Duration::from_secs(60);

/// What the cloud showed.
#[derive(Debug, Default)]
pub struct Seen {
    /// Instances of each region that answered.
    pub sightings: BTreeMap<Region, Vec<Sighting>>,
    /// What is for sale.
    pub offerings: Vec<Offering>,
    /// Regions that did not answer, and why.
    pub faults: BTreeMap<Region, String>,
}

/// What the sources of demand say together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    /// Demand of every configured pool.
    pub pools: BTreeMap<PoolName, PoolDemand>,
    /// What a person should know of the rules: jobs that match none, rules that match none.
    pub remarks: Vec<String>,
}

/// Asks all regions of the configuration at the same time.
pub async fn look<C: Cloud>(cloud: &C, config: &Config) -> Seen {
    let regions = config.regions.keys().map(|region| async move {
        let types = types_in(config, region);
        let looked = timeout(REGION_PATIENCE, async {
            let instances = cloud.instances(region).await?;
            let offerings = if types.is_empty() {
                Vec::new()
            } else {
                cloud.offerings(region, &types).await?
            };
            Ok::<_, CloudError>((instances, offerings))
        });
        let answer = match looked.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", REGION_PATIENCE.as_secs())),
        };
        (region.clone(), answer)
    });
    let mut seen = Seen::default();
    for (region, answer) in join_all(regions).await {
        match answer {
            Ok((sightings, offerings)) => {
                seen.sightings.insert(region, sightings);
                seen.offerings.extend(offerings);
            }
            Err(fault) => {
                seen.faults.insert(region, fault);
            }
        }
    }
    seen
}

/// Addresses that the cloud shows and the store does not know yet, to be written: a host may register
/// only from the address of its instance.
#[must_use]
pub fn addresses(records: &mut [InstanceRecord], seen: &Seen) -> Vec<Change> {
    let sightings = seen.sightings.values().flatten();
    let addresses: HashMap<&InstanceId, _> = sightings
        .filter_map(|sighting| Some((&sighting.id, sighting.private_address?)))
        .collect();
    let unknown = records
        .iter_mut()
        .filter(|record| record.private_address.is_none());
    unknown
        .filter_map(|record| {
            record.private_address = Some(*addresses.get(&record.id)?);
            Some(Change::InstanceSeen(Box::new(record.clone())))
        })
        .collect()
}

/// Types of all pools that may use `region`.
fn types_in(config: &Config, region: &Region) -> BTreeSet<InstanceType> {
    config
        .pools
        .values()
        .filter(|pool| pool.regions.is_empty() || pool.regions.contains(region))
        .flat_map(|pool| pool.types.keys().cloned())
        .collect()
}

/// Puts together what was seen, stored and asked for.
#[must_use]
pub fn world(
    pass: PassId,
    now: Timestamp,
    config: &Config,
    seen: Seen,
    stored: Stored,
    asked: Asked,
) -> World {
    let Seen {
        sightings,
        mut offerings,
        faults,
    } = seen;
    offerings.sort_by(|a, b| a.key.cmp(&b.key));
    offerings.dedup_by(|a, b| a.key == b.key);
    let regions: BTreeMap<Region, RegionView> = config
        .regions
        .keys()
        .map(|region| {
            let view = RegionView {
                observed: sightings.contains_key(region),
                fault: faults.get(region).cloned(),
            };
            (region.clone(), view)
        })
        .collect();
    let instances = merge(stored.instances, &stored.suspects, sightings, &offerings);
    World {
        pass,
        store: stored.id,
        now,
        demand: asked.pools,
        remarks: asked.remarks,
        instances,
        intents: stored.intents,
        regions,
        offerings,
        shortages: stored.shortages,
        interruptions: stored.interruptions,
        shares: BTreeMap::new(),
        maintenance: stored.maintenance,
        spent_today: stored.spent_today,
        memory: stored.memory,
    }
}

/// One instance for each id that store or cloud know.
fn merge(
    records: Vec<InstanceRecord>,
    suspects: &BTreeMap<InstanceId, Timestamp>,
    sightings: BTreeMap<Region, Vec<Sighting>>,
    offerings: &[Offering],
) -> Vec<Instance> {
    let observed: BTreeSet<Region> = sightings.keys().cloned().collect();
    let mut by_id: HashMap<_, Sighting> = sightings
        .into_values()
        .flatten()
        .map(|sighting| (sighting.id.clone(), sighting))
        .collect();
    let mut instances = Vec::with_capacity(records.len().max(by_id.len()));
    for record in records {
        let sighting = by_id.remove(&record.id);
        let sight = match &sighting {
            Some(_) => Sight::Both,
            None if observed.contains(&record.offering.region) => Sight::StoreOnly,
            None => Sight::Unobserved,
        };
        instances.push(recorded(record, sighting, sight));
    }
    let unknown = by_id
        .into_values()
        // What is over is none of our business: we neither launched it nor will end it.
        .filter(|sighting| sighting.state != InstanceState::Terminated);
    instances.extend(unknown.map(|sighting| {
        let suspected_at = suspects.get(&sighting.id).copied();
        unrecorded(sighting, suspected_at, offerings)
    }));
    instances.sort_by(|a, b| a.id.cmp(&b.id));
    instances
}

fn recorded(record: InstanceRecord, sighting: Option<Sighting>, sight: Sight) -> Instance {
    let state = sighting.as_ref().map_or(
        if record.host.is_some() {
            InstanceState::Running
        } else {
            InstanceState::Pending
        },
        |sighting| sighting.state,
    );
    let hold_in_cloud = sighting.as_ref().and_then(|sighting| sighting.hold.clone());
    Instance {
        interrupted: sighting.is_some_and(|sighting| sighting.interrupted),
        id: record.id,
        offering: record.offering,
        intent: record.intent,
        pool: Some(record.pool),
        image: Some(record.image),
        image_id: record.image_id,
        price: record.price,
        launched_at: record.launched_at,
        sight,
        state,
        host: record.host,
        assignment: record.assignment,
        hold: record.hold.or_else(|| hold_in_cloud.map(held_by_tag)),
        suspected_at: record.suspected_at,
        ended_at: record.ended_at,
    }
}

fn unrecorded(
    sighting: Sighting,
    suspected_at: Option<Timestamp>,
    offerings: &[Offering],
) -> Instance {
    Instance {
        price: price_of(&sighting, offerings),
        id: sighting.id,
        offering: sighting.offering,
        intent: sighting.intent,
        pool: sighting.pool,
        image: sighting.image,
        image_id: sighting.image_id,
        launched_at: sighting.launched_at,
        sight: Sight::CloudOnly,
        state: sighting.state,
        interrupted: sighting.interrupted,
        host: None,
        assignment: crate::world::Assignment::GoOn,
        hold: sighting.hold.map(held_by_tag),
        suspected_at,
        ended_at: None,
    }
}

fn held_by_tag(owner: String) -> Box<crate::world::Hold> {
    Box::new(crate::world::Hold {
        owner,
        reason: "tag farmhand:hold in the cloud".into(),
        expires: None,
    })
}

fn price_of(sighting: &Sighting, offerings: &[Offering]) -> Money {
    offerings
        .binary_search_by(|offering| offering.key.cmp(&sighting.offering))
        .map_or(Money::ZERO, |index| offerings[index].price)
}
