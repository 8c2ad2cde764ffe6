//! `check`: whether what is configured can be launched, without launching anything.
//!
//! Rights are tried with `DryRun`, which EC2 answers with `DryRunOperation` when it would have done it.
//! Each finding names the pool and region it is about, and what to correct; a fault of one region or
//! pool keeps no other from being looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::types;
use tokio::task::JoinSet;

use super::action::Action;
use super::fault::{self, Fault};
use super::market::{Sold, Subnets, filter};
use super::{Farm, RegionCloud, tags, template};
use crate::cloud::budget::Priority;
use crate::cloud::{CapacityType, Finding};
use crate::config::PoolSettings;
use crate::ids::{ImageId, ImageName, InstanceType, PoolName, Region};

const PRIORITY: Priority = Priority::Check;

/// All findings, regions in the order of their names.
pub(super) async fn findings(
    farm: &Arc<Farm>,
    regions: &BTreeMap<Region, Arc<RegionCloud>>,
) -> Vec<Finding> {
    let known = known_regions(regions).await;
    let mut looks = JoinSet::new();
    for (name, region) in regions {
        let (farm, region) = (Arc::clone(farm), Arc::clone(region));
        let unknown = known
            .as_ref()
            .filter(|known| !known.contains(name.as_str()));
        let unknown = unknown.map(|known| not_a_region(name, known));
        looks.spawn(async move {
            let mut look = Look::at(&farm, &region);
            match unknown {
                Some(fault) => look.region_fault(fault),
                None => look.region().await,
            }
            (region.caller.region.clone(), look.findings)
        });
    }
    let mut found: Vec<_> = looks.join_all().await;
    found.sort_by(|one, other| one.0.cmp(&other.0));
    let mut findings: Vec<Finding> = found
        .into_iter()
        .flat_map(|(_, findings)| findings)
        .collect();
    findings.extend(pools_without_region(farm, regions));
    findings
}

/// The regions the account may use, as the first that answers says; `None` if none does.
async fn known_regions(regions: &BTreeMap<Region, Arc<RegionCloud>>) -> Option<BTreeSet<String>> {
    for region in regions.values() {
        let send = |client: Client| client.describe_regions().send();
        let answer = region
            .caller
            .call(Action::DescribeRegions, PRIORITY, 0, send)
            .await;
        if let Ok(answer) = answer {
            let names = answer
                .regions()
                .iter()
                .filter_map(types::Region::region_name);
            return Some(names.map(str::to_owned).collect());
        }
    }
    None
}

fn not_a_region(name: &Region, known: &BTreeSet<String>) -> String {
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let alike = known
        .iter()
        .max_by(|one, other| {
            let likeness = |known: &str| strsim::jaro_winkler(name.as_str(), known);
            likeness(one).total_cmp(&likeness(other))
        })
        .map(|known| format!(" (did you mean `{known}`?)"));
    format!(
        "no region of this account is called `{name}`{}: expected one of {}",
        alike.unwrap_or_default(),
        known.join(", ")
    )
}

fn pools_without_region(farm: &Farm, regions: &BTreeMap<Region, Arc<RegionCloud>>) -> Vec<Finding> {
    let nowhere =
        |(_, pool): &(&PoolName, &PoolSettings)| !regions.keys().any(|region| uses(pool, region));
    let finding = |(name, pool): (&PoolName, &PoolSettings)| {
        let wanted: Vec<&str> = pool.regions.iter().map(Region::as_str).collect();
        Finding {
            subject: format!("pool {name}"),
            fault: Some(format!(
                "none of its regions `{}` is configured: add `[regions.NAME]` for one",
                wanted.join("`, `")
            )),
        }
    };
    farm.pools.iter().filter(nowhere).map(finding).collect()
}

fn uses(pool: &PoolSettings, region: &Region) -> bool {
    pool.max > 0 && (pool.regions.is_empty() || pool.regions.contains(region))
}

/// A look at one region.
struct Look<'a> {
    farm: &'a Farm,
    region: &'a RegionCloud,
    findings: Vec<Finding>,
}

impl<'a> Look<'a> {
    const fn at(farm: &'a Farm, region: &'a RegionCloud) -> Self {
        Self {
            farm,
            region,
            findings: Vec::new(),
        }
    }

    const fn name(&self) -> &'a Region {
        &self.region.caller.region
    }

    /// Those that may have hosts here.
    fn pools(&self) -> impl Iterator<Item = (&'a PoolName, &'a PoolSettings)> + use<'a> {
        let name = self.name();
        let launches = self.region.settings.weight > 0.0;
        let pools = self.farm.pools.iter();
        pools.filter(move |(_, pool)| launches && uses(pool, name))
    }

    /// About the region as a whole: its pools are named, because they are what suffers.
    fn about_region(&mut self, fault: Option<String>) {
        let pools: Vec<&str> = self.pools().map(|(name, _)| name.as_str()).collect();
        let pools = if pools.is_empty() {
            "no pool".to_owned()
        } else {
            pools.join(", ")
        };
        self.findings.push(Finding {
            subject: format!("region {} ({pools})", self.name()),
            fault,
        });
    }

    fn region_fault(&mut self, fault: String) {
        self.about_region(Some(fault));
    }

    fn about_pool(&mut self, pool: &PoolName, fault: Option<String>) {
        self.findings.push(Finding {
            subject: format!("pool {pool} in {}", self.name()),
            fault,
        });
    }

    async fn region(&mut self) {
        let subnets = match self.subnets().await {
            Ok(subnets) => subnets,
            // Without credentials nothing else needs to be tried.
            Err(fault) => return self.region_fault(explained(&fault)),
        };
        let before = self.findings.len();
        self.security_groups().await;
        self.rights().await;
        if self.findings.len() == before {
            self.about_region(None);
        }
        self.all_pools(&subnets).await;
    }

    async fn subnets(&mut self) -> Result<Subnets, Fault> {
        let wanted = &self.region.settings.subnets;
        let key = format!("`regions.{}.subnets`", self.name());
        if wanted.is_empty() {
            self.region_fault(format!(
                "there is no subnet in {key}: expected one for each zone"
            ));
            // The credentials are still to be tried.
            self.region.images(PRIORITY, &["ami-00000000"]).await?;
            return Ok(Subnets::default());
        }
        let found = Subnets::ask(&self.region.caller, PRIORITY, wanted).await?;
        let mut zones = BTreeMap::new();
        for id in wanted {
            let Some(zone) = found.zone_of(id) else {
                self.region_fault(format!("subnet `{id}` is not there: correct {key}"));
                continue;
            };
            if let Some(first) = zones.insert(zone.clone(), id) {
                self.region_fault(format!(
                    "subnets `{first}` and `{id}` are both in {zone}, and a launch takes one of a \
                     zone: only `{first}` is used; take the other out of {key}"
                ));
                zones.insert(zone.clone(), first);
            }
        }
        for subnet in found.found.iter().filter(|subnet| subnet.free == 0) {
            let fault = format!("subnet `{}` has no free address left", subnet.id);
            self.region_fault(fault);
        }
        Ok(found)
    }

    async fn security_groups(&mut self) {
        let wanted = &self.region.settings.security_groups;
        if wanted.is_empty() {
            return;
        }
        let action = Action::DescribeSecurityGroups;
        let send = |client: Client| {
            client
                .describe_security_groups()
                .filters(filter("group-id", wanted))
                .max_results(1000)
                .send()
        };
        match self.region.caller.call(action, PRIORITY, 0, send).await {
            Ok(answer) => {
                let found: BTreeSet<&str> = answer
                    .security_groups()
                    .iter()
                    .filter_map(types::SecurityGroup::group_id)
                    .collect();
                for id in wanted.iter().filter(|id| !found.contains(id.as_str())) {
                    let name = self.name();
                    self.region_fault(format!(
                        "security group `{id}` is not there: correct `regions.{name}.security_groups`"
                    ));
                }
            }
            Err(fault) => self.region_fault(explained(&fault)),
        }
    }

    /// The rights that are the same for all pools.
    async fn rights(&mut self) {
        let name = "farmhand-check";
        let data = types::RequestLaunchTemplateData::builder()
            .instance_initiated_shutdown_behavior(types::ShutdownBehavior::Terminate)
            .build();
        let tags = [tags::tag(tags::OWNER, &self.farm.fleet)];
        let tags = tags::specification(types::ResourceType::LaunchTemplate, &tags);
        let make = |client: Client| {
            client
                .create_launch_template()
                .dry_run(true)
                .launch_template_name(name)
                .launch_template_data(data.clone())
                .tag_specifications(tags.clone())
                .send()
        };
        let caller = &self.region.caller;
        let action = Action::CreateLaunchTemplate;
        let made = caller.call(action, PRIORITY, 0, make).await;
        self.tried(action, made.map(drop));
        self.fleet_right(name).await;
        self.terminate_right().await;
    }

    async fn fleet_right(&mut self, template: &str) {
        let specification = types::FleetLaunchTemplateSpecificationRequest::builder()
            .launch_template_name(template)
            .version("1")
            .build();
        let config = types::FleetLaunchTemplateConfigRequest::builder()
            .launch_template_specification(specification)
            .build();
        let target = types::TargetCapacitySpecificationRequest::builder()
            .total_target_capacity(1)
            .default_target_capacity_type(types::DefaultTargetCapacityType::Spot)
            .build();
        // Least rights are for fleets that carry our owner tag.
        let tags = [tags::tag(tags::OWNER, &self.farm.fleet)];
        let tags = tags::specification(types::ResourceType::Fleet, &tags);
        let send = |client: Client| {
            client
                .create_fleet()
                .dry_run(true)
                .r#type(types::FleetType::Instant)
                .tag_specifications(tags.clone())
                .launch_template_configs(config.clone())
                .target_capacity_specification(target.clone())
                .send()
        };
        let action = Action::CreateFleet;
        // A dry run launches nothing, so it takes nothing of the budget of instances.
        let tried = self.region.caller.call(action, PRIORITY, 0, send).await;
        self.tried(action, tried.map(drop));
    }

    /// The right to end instances may hold for ours only, so it is tried on one of ours, if there is
    /// one.
    async fn terminate_right(&mut self) {
        let owner = filter(&format!("tag:{}", tags::OWNER), &[&self.farm.fleet]);
        let look = |client: Client| {
            client
                .describe_instances()
                .filters(owner.clone())
                // The fewest EC2 allows.
                .max_results(5)
                .send()
        };
        let caller = &self.region.caller;
        let seen = caller
            .call(Action::DescribeInstances, PRIORITY, 0, look)
            .await;
        let seen = match seen {
            Ok(seen) => seen,
            Err(fault) => return self.tried(Action::DescribeInstances, Err(fault)),
        };
        let mut instances = seen
            .reservations()
            .iter()
            .flat_map(types::Reservation::instances);
        let Some(id) = instances.find_map(types::Instance::instance_id) else {
            return;
        };
        let end = |client: Client| {
            client
                .terminate_instances()
                .dry_run(true)
                .instance_ids(id)
                .send()
        };
        let action = Action::TerminateInstances;
        let tried = caller.call(action, PRIORITY, 0, end).await;
        self.tried(action, tried.map(drop));
    }

    fn tried(&mut self, action: Action, result: Result<(), Fault>) {
        if let Some(fault) = refused(action, result) {
            self.region_fault(fault);
        }
    }

    async fn all_pools(&mut self, subnets: &Subnets) {
        let types: BTreeSet<InstanceType> = self
            .pools()
            .flat_map(|(_, pool)| pool.types.keys().cloned())
            .collect();
        let sold = match self.region.sold(PRIORITY, &types).await {
            Ok(sold) => sold,
            Err(fault) => return self.region_fault(explained(&fault)),
        };
        let images = match self.images().await {
            Ok(images) => images,
            Err(fault) => return self.region_fault(explained(&fault)),
        };
        // Pools that differ in nothing a dry run sees share one.
        let mut tried: BTreeMap<String, Option<String>> = BTreeMap::new();
        for (name, pool) in self.pools() {
            let facts = Facts {
                subnets,
                sold: &sold,
                images: &images,
            };
            let faults = self.pool_faults(pool, &facts);
            for fault in &faults {
                self.about_pool(name, Some(fault.clone()));
            }
            let Some(trial) = Trial::of(self.farm, self.region, pool, &facts) else {
                continue;
            };
            let key = format!("{trial:?}");
            let result = match tried.get(&key) {
                Some(result) => result.clone(),
                None => self.dry_run(&trial).await,
            };
            if result.is_some() || faults.is_empty() {
                self.about_pool(name, result.clone());
            }
            tried.insert(key, result);
        }
    }

    /// The images of this region's pools, by id, with their state.
    async fn images(&self) -> Result<BTreeMap<String, types::ImageState>, Fault> {
        let ids: BTreeSet<&str> = self
            .pools()
            .filter_map(|(_, pool)| image_of(self.farm, pool, self.name()))
            .map(|(_, id)| id.as_str())
            .collect();
        if ids.is_empty() {
            return Ok(BTreeMap::new());
        }
        let ids: Vec<&str> = ids.into_iter().collect();
        let found = self.region.images(PRIORITY, &ids).await?;
        let state = |image: types::Image| Some((image.image_id?, image.state?));
        Ok(found.into_iter().filter_map(state).collect())
    }

    fn pool_faults(&self, pool: &PoolSettings, facts: &Facts<'_>) -> Vec<String> {
        let mut faults = Vec::new();
        faults.extend(self.image_fault(pool, facts));
        faults.extend(self.type_faults(pool, facts));
        faults.extend(self.address_fault(pool, facts));
        faults.extend(self.price_fault(pool));
        faults
    }

    fn image_fault(&self, pool: &PoolSettings, facts: &Facts<'_>) -> Option<String> {
        let region = self.name();
        let Some(image) = &pool.image else {
            return Some("it has no image: set `image`".to_owned());
        };
        let Some((_, id)) = image_of(self.farm, pool, region) else {
            return Some(format!(
                "image `{image}` has no id for {region}: set `images.{image}.ids.{region}`"
            ));
        };
        match facts.images.get(id.as_str()) {
            Some(types::ImageState::Available) => None,
            Some(state) => Some(format!(
                "image `{image}` (`{id}`) is {}: wait until it is available, or correct `images.{image}.ids.{region}`",
                state.as_str()
            )),
            None => Some(format!(
                "image `{image}` (`{id}`) is not there: correct `images.{image}.ids.{region}`, or share it with this account"
            )),
        }
    }

    fn type_faults(&self, pool: &PoolSettings, facts: &Facts<'_>) -> Vec<String> {
        if pool.types.is_empty() {
            return vec!["it has no instance types: set `types`".to_owned()];
        }
        let sold_here = |name: &&InstanceType| {
            let mut places = facts.sold.places.iter();
            places.any(|(sold, zone)| sold == *name && facts.subnets.of_zone(zone).is_some())
        };
        let unsold: Vec<&str> = pool
            .types
            .keys()
            .filter(|name| !sold_here(name))
            .map(InstanceType::as_str)
            .collect();
        if unsold.is_empty() {
            return Vec::new();
        }
        vec![format!(
            "`{}` is sold in no zone that has a subnet: take it out of `types`, or add a subnet",
            unsold.join("`, `")
        )]
    }

    fn address_fault(&self, pool: &PoolSettings, facts: &Facts<'_>) -> Option<String> {
        let free: u32 = facts.subnets.found.iter().map(|subnet| subnet.free).sum();
        let most = self
            .region
            .settings
            .max_instances
            .unwrap_or(pool.max)
            .min(pool.max);
        (!facts.subnets.found.is_empty() && free < most).then(|| {
            format!(
                "the subnets have {free} free addresses together, and the pool may have {most} hosts: \
                 use larger subnets, or lower `max`"
            )
        })
    }

    fn price_fault(&self, pool: &PoolSettings) -> Option<String> {
        if pool.capacity_type == CapacityType::Spot && pool.on_demand_fallback == 0 {
            return None;
        }
        let unpriced: Vec<&str> = pool
            .types
            .keys()
            .filter(|name| self.region.on_demand_price(self.farm, name).is_none())
            .map(InstanceType::as_str)
            .collect();
        (!unpriced.is_empty()).then(|| {
            format!(
                "`{}` has no list price, so it is never launched on demand: set `ec2.on_demand_prices`",
                unpriced.join("`, `")
            )
        })
    }

    async fn dry_run(&self, trial: &Trial) -> Option<String> {
        let action = Action::RunInstances;
        let send = |client: Client| trial.send(&client);
        let result = self.region.caller.call(action, PRIORITY, 0, send).await;
        refused(action, result.map(drop))
    }
}

/// What is known of the region when its pools are looked at.
struct Facts<'a> {
    subnets: &'a Subnets,
    sold: &'a Sold,
    images: &'a BTreeMap<String, types::ImageState>,
}

fn image_of<'a>(
    farm: &'a Farm,
    pool: &'a PoolSettings,
    region: &Region,
) -> Option<(&'a ImageName, &'a ImageId)> {
    let name = pool.image.as_ref()?;
    let id = farm.images.get(name)?.ids.get(region)?;
    Some((name, id))
}

/// One instance of a pool, as `RunInstances` would launch it: the only way to learn beforehand of a
/// missing key or profile, or of a right to tag or to pass a role.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trial {
    image: ImageId,
    instance_type: InstanceType,
    subnet: String,
    security_groups: Vec<String>,
    profile: Option<String>,
    key_name: Option<String>,
    capacity_type: CapacityType,
    owner: String,
}

impl Trial {
    /// `None` if something it needs is missing, which has a finding of its own.
    fn of(
        farm: &Farm,
        region: &RegionCloud,
        pool: &PoolSettings,
        facts: &Facts<'_>,
    ) -> Option<Self> {
        let (_, image) = image_of(farm, pool, &region.caller.region)?;
        facts.images.get(image.as_str())?;
        let mut places = facts.sold.places.iter();
        let (instance_type, zone) = places.find(|(name, zone)| {
            pool.types.contains_key(name) && facts.subnets.of_zone(zone).is_some()
        })?;
        Some(Self {
            image: image.clone(),
            instance_type: instance_type.clone(),
            subnet: facts.subnets.of_zone(zone)?.to_owned(),
            security_groups: region.settings.security_groups.clone(),
            profile: pool.instance_profile.clone(),
            key_name: pool.key_name.clone(),
            capacity_type: pool.capacity_type,
            owner: farm.fleet.clone(),
        })
    }

    fn send(
        &self,
        client: &Client,
    ) -> impl Future<
        Output = Result<
            aws_sdk_ec2::operation::run_instances::RunInstancesOutput,
            aws_sdk_ec2::error::SdkError<aws_sdk_ec2::operation::run_instances::RunInstancesError>,
        >,
    > + use<> {
        let tags = [tags::tag(tags::OWNER, &self.owner)];
        let kinds = [types::ResourceType::Instance, types::ResourceType::Volume];
        let tags = kinds.map(|kind| tags::specification(kind, &tags));
        let spot = types::InstanceMarketOptionsRequest::builder()
            .market_type(types::MarketType::Spot)
            .build();
        let groups = (!self.security_groups.is_empty()).then(|| self.security_groups.clone());
        client
            .run_instances()
            .dry_run(true)
            .min_count(1)
            .max_count(1)
            .image_id(self.image.as_str())
            .instance_type(types::InstanceType::from(self.instance_type.as_str()))
            .subnet_id(&self.subnet)
            .set_security_group_ids(groups)
            .set_iam_instance_profile(self.profile.as_deref().map(profile))
            .set_key_name(self.key_name.clone())
            .set_instance_market_options((self.capacity_type == CapacityType::Spot).then_some(spot))
            .set_tag_specifications(Some(tags.to_vec()))
            .send()
    }
}

fn profile(text: &str) -> types::IamInstanceProfileSpecification {
    let profile = types::IamInstanceProfileSpecification::builder();
    if text.starts_with("arn:") {
        profile.arn(text).build()
    } else {
        profile.name(text).build()
    }
}

/// What is wrong with a dry run; `None` if EC2 would have done it.
fn refused(action: Action, result: Result<(), Fault>) -> Option<String> {
    match result {
        Ok(()) => Some(format!(
            "{} did not know DryRun and may have done it: look what it made",
            action.name()
        )),
        Err(fault) if fault.code() == "DryRunOperation" => None,
        // The right is there: EC2 looks at it before it looks for the template.
        Err(fault) if fault.is_missing(template::MISSING) => None,
        Err(fault) => Some(format!(
            "{} would fail: {}",
            action.name(),
            explained(&fault)
        )),
    }
}

fn explained(fault: &Fault) -> String {
    let advice = match fault {
        Fault::Refused { reason, .. } => fault::advice(*reason),
        Fault::Throttled { .. } | Fault::Lost { .. } | Fault::Mismatch { .. } => {
            Some("try again, or look at the state of the region")
        }
    };
    match advice {
        Some(advice) => format!("{}; {advice}", fault::shown(fault.message())),
        None => fault::shown(fault.message()),
    }
}
