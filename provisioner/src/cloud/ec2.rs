//! Amazon EC2. The only place that names its SDK.
//!
//! A launch is one `CreateFleet` of type `instant`, made from a launch template of ours, with a token
//! that follows from the intent; see `launch`, `template` and `token`. What EC2 answers is
//! understood in `fault`. Every call passes `call`, and with it the budget of its region.
//!
//! An `instant` fleet is nothing but the record of a launch: it is never deleted here, because that
//! would end its instances.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::retry::RetryConfig;
use aws_sdk_ec2::config::timeout::TimeoutConfig;
use aws_sdk_ec2::types;
use jiff::Timestamp;
use tracing::warn;

mod action;
mod call;
mod check;
mod fault;
mod kept;
mod launch;
mod market;
mod sight;
mod tags;
mod template;
mod terminate;
mod token;

pub use action::Action;

use self::call::{Caller, Calls};
use self::fault::Fault;
use self::kept::Kept;
use self::launch::Order;
use self::market::{Prices, Sold, Subnets, filter};
use self::template::{Content, RootVolume, Templates, Version};
use self::terminate::Ending;
use super::budget::{Budget, Priority};
use super::{
    Cloud, CloudError, Finding, LaunchError, LaunchRequest, Launched, Offering, ShortReason,
    Sighting, TerminateError, UserData,
};
use crate::config::{Config, Ec2Settings, ImageSettings, PoolSettings, RegionSettings};
use crate::ids::{ImageId, ImageName, InstanceId, InstanceType, PoolName, Region};
use crate::money::Money;

/// Zones of subnets never change, and types are rarely sold in new places.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a connection may take to come about. A region that is down costs this, not the whole
/// timeout of an answer.
const CONNECT: Duration = Duration::from_secs(5);

/// EC2, in the regions of a configuration.
pub struct Ec2 {
    farm: Arc<Farm>,
    regions: BTreeMap<Region, Arc<RegionCloud>>,
}

impl fmt::Debug for Ec2 {
    /// Names only: an SDK client shows more of its configuration than belongs into a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let regions: Vec<&Region> = self.regions.keys().collect();
        f.debug_struct("Ec2")
            .field("fleet", &self.farm.fleet)
            .field("regions", &regions)
            .finish_non_exhaustive()
    }
}

/// What all regions share.
struct Farm {
    fleet: String,
    settings: Ec2Settings,
    pools: BTreeMap<PoolName, PoolSettings>,
    images: BTreeMap<ImageName, ImageSettings>,
    clock: fn() -> Timestamp,
}

/// One region.
struct RegionCloud {
    caller: Caller,
    settings: RegionSettings,
    subnets: Kept<Subnets>,
    sold: Kept<Sold>,
    prices: Kept<Prices>,
    /// Device names of root volumes, by image. They never change.
    roots: Kept<BTreeMap<ImageId, String>>,
    templates: Templates,
}

impl Ec2 {
    /// EC2 as `config` says. Credentials come from the profile and file it names, or else from the
    /// default chain: environment, profile, web identity, container, instance role. Asks nothing yet;
    /// wrong credentials show at the first call.
    pub async fn connect(config: &Config, clock: fn() -> Timestamp) -> Self {
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build());
        if let Some(named) = named_credentials(&config.ec2) {
            loader = loader.credentials_provider(named);
        }
        // Each client gets its own; this one keeps the chain from asking for a default.
        if let Some(region) = config.regions.keys().next() {
            loader = loader.region(aws_config::Region::new(region.to_string()));
        }
        let sdk = loader.load().await;
        let farm = Farm {
            fleet: config.provisioner.fleet.clone(),
            settings: config.ec2.clone(),
            pools: config.pools.clone(),
            images: config.images.clone(),
            clock,
        };
        let region = |(name, settings): (&Region, &RegionSettings)| {
            let region = RegionCloud::new(&sdk, &farm.settings, name, settings);
            (name.clone(), Arc::new(region))
        };
        Self {
            regions: config.regions.iter().map(region).collect(),
            farm: Arc::new(farm),
        }
    }

    /// Calls of `action` made since the start, in all regions; for graphs and tests.
    #[must_use]
    pub fn calls(&self, action: Action) -> u64 {
        let counts = self
            .regions
            .values()
            .map(|region| region.caller.calls.of(action));
        counts.sum()
    }

    fn region(&self, name: &Region) -> Result<&RegionCloud, Fault> {
        let region = self.regions.get(name).map(Arc::as_ref);
        region.ok_or_else(|| {
            let message = format!("region `{name}` is not configured: add `[regions.{name}]`");
            Fault::refused(ShortReason::Settings, message)
        })
    }
}

/// The profile and file that the configuration names. Nothing else is asked for then: a key that
/// happens to be in the environment, or the role of the machine, is not what was meant.
#[expect(
    deprecated,
    reason = "the types live in another crate now, which nothing else here needs"
)]
fn named_credentials(settings: &Ec2Settings) -> Option<ProfileFileCredentialsProvider> {
    use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
    if settings.profile.is_none() && settings.credentials_file.is_none() {
        return None;
    }
    let mut files = ProfileFiles::builder().include_default_config_file(true);
    files = match &settings.credentials_file {
        Some(path) => files.with_file(ProfileFileKind::Credentials, path),
        None => files.include_default_credentials_file(true),
    };
    let mut provider = ProfileFileCredentialsProvider::builder().profile_files(files.build());
    if let Some(profile) = &settings.profile {
        provider = provider.profile_name(profile);
    }
    Some(provider.build())
}

/// Where credentials are looked for, for a person.
fn credentials_from(settings: &Ec2Settings) -> String {
    let file = settings.credentials_file.as_ref();
    match (&settings.profile, file.map(|path| path.display())) {
        (Some(profile), Some(path)) => format!("profile `{profile}` of `{path}`"),
        (Some(profile), None) => format!("profile `{profile}`"),
        (None, Some(path)) => format!("`{path}`"),
        (None, None) => {
            "the environment, the default profile, and the role of this machine".to_owned()
        }
    }
}

impl RegionCloud {
    fn new(
        sdk: &SdkConfig,
        settings: &Ec2Settings,
        name: &Region,
        region: &RegionSettings,
    ) -> Self {
        let mut config = aws_sdk_ec2::config::Builder::from(sdk)
            .region(aws_sdk_ec2::config::Region::new(name.to_string()));
        if let Some(endpoint) = &settings.endpoint {
            config = config.endpoint_url(endpoint);
        }
        Self {
            caller: Caller {
                client: Client::from_conf(config.build()),
                credentials: sdk.credentials_provider(),
                credentials_from: credentials_from(settings),
                region: name.clone(),
                timeout: settings.timeout,
                budget: Budget::default(),
                calls: Calls::default(),
            },
            settings: region.clone(),
            subnets: Kept::default(),
            sold: Kept::default(),
            prices: Kept::default(),
            roots: Kept::default(),
            templates: Templates::default(),
        }
    }

    async fn subnets(&self, priority: Priority) -> Result<Arc<Subnets>, Fault> {
        let wanted = &self.settings.subnets;
        // One that is missing may be made any moment.
        let serves = |subnets: &Subnets| subnets.found.len() == wanted.len();
        let ask = |_| Subnets::ask(&self.caller, priority, wanted);
        self.subnets.get(DAY, serves, ask).await
    }

    async fn sold(
        &self,
        priority: Priority,
        types: &BTreeSet<InstanceType>,
    ) -> Result<Arc<Sold>, Fault> {
        let serves = |sold: &Sold| types.is_subset(&sold.asked);
        let ask = |known: Option<Arc<Sold>>| async move {
            let known = known.map(|known| known.asked.clone()).unwrap_or_default();
            Sold::ask(&self.caller, priority, &(&known | types)).await
        };
        self.sold.get(DAY, serves, ask).await
    }

    async fn prices(
        &self,
        farm: &Farm,
        types: &BTreeSet<InstanceType>,
    ) -> Result<Arc<Prices>, Fault> {
        let serves = |prices: &Prices| types.is_subset(&prices.asked);
        let ask = |_| Prices::ask(&self.caller, types, &farm.settings.product, (farm.clock)());
        self.prices
            .get(farm.settings.prices_kept, serves, ask)
            .await
    }

    async fn offerings(
        &self,
        farm: &Farm,
        types: &BTreeSet<InstanceType>,
    ) -> Result<Vec<Offering>, Fault> {
        // Without a type EC2 would answer with all it has.
        if types.is_empty() {
            return Ok(Vec::new());
        }
        let (subnets, sold, prices) = tokio::join!(
            self.subnets(Priority::Observe),
            self.sold(Priority::Observe, types),
            self.prices(farm, types),
        );
        let (subnets, sold, prices) = (subnets?, sold?, prices?);
        let on_demand = |name: &InstanceType| self.on_demand_price(farm, name);
        let region = &self.caller.region;
        Ok(market::offerings(
            region, types, &subnets, &sold, &prices, on_demand,
        ))
    }

    fn on_demand_price(&self, farm: &Farm, name: &InstanceType) -> Option<Money> {
        let here = self.settings.on_demand_prices.get(name);
        here.or_else(|| farm.settings.on_demand_prices.get(name))
            .copied()
    }

    /// Pages of 1,000, the most EC2 gives; each is read and dropped before the next one is asked for.
    async fn instances(&self, farm: &Farm) -> Result<Vec<Sighting>, Fault> {
        let owner = filter(&format!("tag:{}", tags::OWNER), &[&farm.fleet]);
        let region = &self.caller.region;
        // By id: an instance may move from one page to the next while they are asked for.
        let mut seen = BTreeMap::new();
        let mut next: Option<String> = None;
        loop {
            let page = self
                .caller
                .call(Action::DescribeInstances, Priority::Observe, 0, |client| {
                    client
                        .describe_instances()
                        .filters(owner.clone())
                        .max_results(1000)
                        .set_next_token(next.clone())
                        .send()
                })
                .await?;
            let instances = page
                .reservations()
                .iter()
                .flat_map(types::Reservation::instances);
            for instance in instances {
                match sight::sighting(region, instance) {
                    Some(sighting) => drop(seen.insert(sighting.id.clone(), sighting)),
                    None => {
                        warn!(%region, id = instance.instance_id(), "an instance EC2 says too little about")
                    }
                }
            }
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(seen.into_values().collect());
            }
        }
    }

    async fn launch(
        &self,
        farm: &Farm,
        request: &LaunchRequest,
        user_data: &UserData,
    ) -> Result<Launched, Fault> {
        let pool = farm.pools.get(&request.pool).ok_or_else(|| {
            let message = format!("pool `{}` is no longer configured", request.pool);
            Fault::refused(ShortReason::Settings, message)
        })?;
        let subnets = self.subnets(Priority::Launch).await.map_err(not_begun)?;
        let version = self.version(farm, request, pool, user_data).await;
        let version = version.map_err(not_begun)?;
        let order = Order::of(&farm.fleet, request, &version, &subnets)?;
        let answer = match self.create_fleet(&order).await {
            Ok(answer) => answer,
            Err(fault) if fault.is_missing(template::MISSING) => {
                self.templates.lost(&version.template).await;
                return Err(template::vanished(&fault));
            }
            Err(fault) => {
                if fault.is_missing("InvalidSubnet") {
                    self.subnets.forget().await;
                }
                return Err(fault);
            }
        };
        let mut launched = launch::launched(request, &subnets, &answer)?;
        launched.shortfalls.extend(order.shortfalls);
        Ok(launched)
    }

    async fn create_fleet(
        &self,
        order: &Order,
    ) -> Result<aws_sdk_ec2::operation::create_fleet::CreateFleetOutput, Fault> {
        let action = Action::CreateFleet;
        let send = |client: Client| {
            client
                .create_fleet()
                .r#type(types::FleetType::Instant)
                .client_token(&order.token)
                .target_capacity_specification(order.target.clone())
                .set_spot_options(order.spot.clone())
                .set_on_demand_options(order.on_demand.clone())
                .launch_template_configs(order.template.clone())
                .set_tag_specifications(Some(order.tags.clone()))
                .send()
        };
        self.caller
            .call(action, Priority::Launch, order.instances, send)
            .await
    }

    async fn version(
        &self,
        farm: &Farm,
        request: &LaunchRequest,
        pool: &PoolSettings,
        user_data: &UserData,
    ) -> Result<Version, Fault> {
        let root = match pool.root_volume_gib {
            Some(gib) => Some(RootVolume {
                device: self.root_device(&request.image_id).await?,
                gib,
            }),
            None => None,
        };
        let content = Content::of(&self.settings, pool, root, user_data)?;
        let name = token::template_name(&farm.fleet, &request.pool, &request.image);
        let tags = tags::of_template(&farm.fleet, request);
        self.templates
            .version(&self.caller, &name, &content, &tags)
            .await
    }

    async fn root_device(&self, image: &ImageId) -> Result<String, Fault> {
        let serves = |roots: &BTreeMap<ImageId, String>| roots.contains_key(image);
        let ask = |known: Option<Arc<BTreeMap<ImageId, String>>>| async move {
            let mut roots = known.map(|known| (*known).clone()).unwrap_or_default();
            let images = self.images(Priority::Launch, &[image.as_str()]).await?;
            let device = images.first().and_then(types::Image::root_device_name);
            let missing =
                || Fault::refused(ShortReason::Image, format!("image `{image}` is not there"));
            roots.insert(image.clone(), device.ok_or_else(missing)?.to_owned());
            Ok(roots)
        };
        let roots = self.roots.get(DAY, serves, ask).await?;
        Ok(roots.get(image).cloned().unwrap_or_default())
    }

    /// Those of `ids` that exist. By a filter: an id that does not exist is no error then.
    async fn images(&self, priority: Priority, ids: &[&str]) -> Result<Vec<types::Image>, Fault> {
        let send = |client: Client| {
            client
                .describe_images()
                .filters(filter("image-id", ids))
                .send()
        };
        let found = self
            .caller
            .call(Action::DescribeImages, priority, 0, send)
            .await?;
        Ok(found.images.unwrap_or_default())
    }

    async fn terminate(
        &self,
        ids: &[InstanceId],
    ) -> BTreeMap<InstanceId, Result<(), TerminateError>> {
        let mut done = BTreeMap::new();
        for batch in ids.chunks(terminate::BATCH) {
            let mut ending = Ending::of(batch);
            while let Some(ids) = ending.next_call() {
                let result = self.terminate_some(&ids, ending.first_time()).await;
                ending.answered(ids, result);
            }
            done.extend(ending.done());
        }
        done
    }

    /// `counted` of the ids were not sent before: a failed call ended none, so none counts twice.
    async fn terminate_some(&self, ids: &[InstanceId], counted: u32) -> Result<(), Fault> {
        let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let send = |client: Client| {
            client
                .terminate_instances()
                .set_instance_ids(Some(names.clone()))
                .send()
        };
        let action = Action::TerminateInstances;
        let call = self.caller.call(action, Priority::Terminate, counted, send);
        call.await.map(drop)
    }
}

/// A fault before the launch itself was asked for: an answer that was lost is then no reason to
/// believe that anything was launched.
fn not_begun(fault: Fault) -> Fault {
    match fault {
        Fault::Lost { message } | Fault::Mismatch { message } => Fault::Throttled {
            retry_after: fault::LATER,
            message,
        },
        Fault::Throttled { .. } | Fault::Refused { .. } => fault,
    }
}

/// A refusal of a launch names the pool, and what a person does about it. Our own refusals say that
/// already.
fn explained(fault: Fault, request: &LaunchRequest) -> Fault {
    let Fault::Refused { reason, code, .. } = &fault else {
        return fault;
    };
    let LaunchRequest {
        pool,
        region,
        image,
        image_id,
        ..
    } = request;
    let about = match reason {
        ShortReason::Image => format!(" with image `{image}` (`{image_id}`)"),
        _ => String::new(),
    };
    let advice = fault::advice(*reason).filter(|_| !code.is_empty());
    let advice = advice.map_or(String::new(), |advice| format!(": {advice}"));
    fault.with(&format!("pool `{pool}` in {region}{about}{advice}"))
}

/// A refusal of a look says what a person does about it. Who looks adds the pools.
fn advised(fault: Fault) -> Fault {
    let Fault::Refused { reason, code, .. } = &fault else {
        return fault;
    };
    match fault::advice(*reason).filter(|_| !code.is_empty()) {
        Some(advice) => fault.with(advice),
        None => fault,
    }
}

impl Cloud for Ec2 {
    async fn instances(&self, region: &Region) -> Result<Vec<Sighting>, CloudError> {
        let seen = self.region(region)?.instances(&self.farm).await;
        Ok(seen.map_err(advised)?)
    }

    async fn offerings(
        &self,
        region: &Region,
        types: &BTreeSet<InstanceType>,
    ) -> Result<Vec<Offering>, CloudError> {
        let sold = self.region(region)?.offerings(&self.farm, types).await;
        Ok(sold.map_err(advised)?)
    }

    async fn launch(
        &self,
        request: &LaunchRequest,
        user_data: &UserData,
    ) -> Result<Launched, LaunchError> {
        let region = self.region(&request.region)?;
        let launched = region.launch(&self.farm, request, user_data).await;
        launched.map_err(|fault| explained(fault, request).into())
    }

    async fn terminate(
        &self,
        region: &Region,
        ids: &[InstanceId],
    ) -> BTreeMap<InstanceId, Result<(), TerminateError>> {
        match self.region(region) {
            Ok(region) => region.terminate(ids).await,
            Err(fault) => {
                let refused = || Err(TerminateError::Refused(fault.message().to_owned()));
                ids.iter().map(|id| (id.clone(), refused())).collect()
            }
        }
    }

    async fn check(&self) -> Vec<Finding> {
        check::findings(&self.farm, &self.regions).await
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    fn sources(directory: &Path) -> Vec<PathBuf> {
        let entries = fs_err::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let (directories, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
        let below = directories.iter().flat_map(|directory| sources(directory));
        files.into_iter().chain(below).collect()
    }

    #[test]
    fn nothing_else_names_the_sdk() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let ours = root.join("cloud/ec2");
        let naming = sources(&root).into_iter().filter(|path| {
            let text = fs_err::read(path).unwrap();
            let text = String::from_utf8_lossy(&text);
            let names = text.contains("aws_sdk") || text.contains("aws_config");
            names && !path.starts_with(&ours)
        });
        assert_eq!(naming.collect::<Vec<_>>(), [root.join("cloud/ec2.rs")]);
    }
}
