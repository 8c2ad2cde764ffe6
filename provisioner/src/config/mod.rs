//! The configuration: what may be written in `provisioner.toml`.
//!
//! Every key has a default that works; a file with one pool is a farm on the local cloud. All faults are reported at once, each with its line.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod load;

pub use load::{from_sources, load};

use crate::cloud::{Allocation, CapacityType};
use crate::ids::{ImageId, ImageName, InstanceType, PoolName, Region, SourceName};
use crate::money::Money;
use crate::world::Performance;

/// Where the configuration is looked for.
pub const DEFAULT_PATH: &str = "/etc/farmhand/provisioner.toml";

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The provisioner itself.
    pub provisioner: ProvisionerSettings,
    /// The local cloud.
    pub local: LocalSettings,
    /// Amazon EC2.
    pub ec2: Ec2Settings,
    /// Limits of the whole fleet.
    pub limits: FleetLimits,
    /// Regions, by name. A region that is not here is not used.
    pub regions: BTreeMap<Region, RegionSettings>,
    /// Images, by name.
    pub images: BTreeMap<ImageName, ImageSettings>,
    /// Pools, by name.
    pub pools: BTreeMap<PoolName, PoolSettings>,
    /// Sources of demand, by name.
    pub sources: BTreeMap<SourceName, SourceSettings>,
    /// Which job belongs to which pool: the first rule that matches its name.
    pub rules: Vec<RuleSettings>,
    /// When jobs count, and when an answer is too old.
    pub demand: DemandSettings,
    /// Where events go.
    pub telemetry: farm_telemetry::Config,
}

/// Which cloud the instances run in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloudKind {
    /// Processes on this machine.
    #[default]
    Local,
    /// Amazon EC2.
    Ec2,
}

/// `[provisioner]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProvisionerSettings {
    /// Name of the fleet; the owner tag of its instances. Two fleets in one account need two names.
    pub fleet: String,
    /// The cloud.
    pub cloud: CloudKind,
    /// Time from the begin of one pass to that of the next.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Directory of the embedded store, of the secret, and of the lock; root's alone.
    pub state_dir: PathBuf,
    /// `sqlite` for the embedded store, or `postgres://USER@HOST:PORT/DATABASE` (no password: that
    /// is in `store_password_file`).
    pub store: String,
    /// File with the password of PostgreSQL.
    pub store_password_file: Option<PathBuf>,
    /// Where the HTTP API listens.
    pub listen: SocketAddr,
    /// Address of the API as hosts reach it; empty: `http://` and `listen`.
    pub url: String,
    /// File with the token of admin calls. None: there are no admin calls by HTTP.
    pub admin_token_file: Option<PathBuf>,
    /// File with the secret that host tokens are made from; default: `state_dir`/secret, made at the
    /// first start. Several provisioners of one farm share one.
    pub secret_file: Option<PathBuf>,
    /// Whether a host may register only from the private address the cloud gave its instance;
    /// default: on EC2, and not on the local cloud. Behind a proxy all hosts have its address: off.
    pub check_address: Option<bool>,
    /// Passes whose World and plan are kept.
    pub passes_kept: u32,
    /// Longest time a history entry is kept.
    #[serde(with = "humantime_serde")]
    pub history_kept: Duration,
}

impl Default for ProvisionerSettings {
    fn default() -> Self {
        Self {
            fleet: "farmhand".into(),
            cloud: CloudKind::Local,
            interval: minutes(1),
            state_dir: "/var/lib/farmhand-provisioner".into(),
            store: "sqlite".into(),
            store_password_file: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 7077)),
            url: String::new(),
            admin_token_file: None,
            secret_file: None,
            check_address: None,
            passes_kept: 100,
            // A year: who launched what outlives the people who did it.
            history_kept: minutes(60 * 24 * 365),
        }
    }
}

impl ProvisionerSettings {
    /// Address of the API as hosts reach it, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> String {
        if self.url.is_empty() {
            format!("http://{}", self.listen)
        } else {
            self.url.trim_end_matches('/').to_owned()
        }
    }

    /// Whether a host may register only from the address of its instance.
    #[must_use]
    pub fn checks_address(&self) -> bool {
        self.check_address.unwrap_or(match self.cloud {
            CloudKind::Local => false,
            CloudKind::Ec2 => true,
        })
    }
}

/// `[local]`: the local cloud.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LocalSettings {
    /// Directory of its instances; empty: `local` in the `state_dir` of the provisioner.
    pub directory: Option<PathBuf>,
    /// File with zones, types, prices, capacity and interruptions; none: one zone `local-a` that
    /// sells 64 of each type at $0.01.
    pub market: Option<PathBuf>,
    /// The `runner` program; none: the one beside `provisioner`, then the one in `PATH`.
    pub runner: Option<PathBuf>,
    /// Configuration given to each runner in addition to what the cloud writes.
    pub runner_config: Option<PathBuf>,
    /// Whether instances get namespaces of their own: `auto` where the system allows it.
    pub isolation: Isolation,
    /// TCP addresses of this machine that an instance with a network of its own reaches at the same
    /// address; that of the provisioner is always among them.
    pub forward: Vec<SocketAddr>,
    /// Directories an instance with namespaces may write besides its own; all else is read-only.
    pub writable: Vec<PathBuf>,
    /// From the wish that an instance ends to its death.
    #[serde(with = "humantime_serde")]
    pub grace_period: Duration,
}

impl Default for LocalSettings {
    fn default() -> Self {
        Self {
            directory: None,
            market: None,
            runner: None,
            runner_config: None,
            isolation: Isolation::Auto,
            forward: Vec::new(),
            writable: Vec::new(),
            // More than `runner` takes to stop: the grace period of a task (10 s) and of its hook.
            grace_period: Duration::from_secs(60),
        }
    }
}

/// Whether instances of the local cloud get namespaces of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Where the system allows it, otherwise plain processes.
    #[default]
    Auto,
    /// PID, mount, network and UTS namespaces, or the launch fails.
    Namespaces,
    /// Plain processes.
    None,
}

/// `[ec2]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ec2Settings {
    /// Another endpoint than Amazon's, for tests and compatible clouds.
    pub endpoint: Option<String>,
    /// Named profile of the AWS configuration, which then is the only source of credentials; none,
    /// and no `credentials_file`: the default chain (environment, profile, role).
    pub profile: Option<String>,
    /// File with the keys of the profile, written as `~/.aws/credentials` is; none: that file.
    pub credentials_file: Option<PathBuf>,
    /// Product whose spot prices count, as EC2 calls it.
    pub product: String,
    /// How long a spot price may have been kept; they change a few times a day.
    #[serde(with = "humantime_serde")]
    pub prices_kept: Duration,
    /// Longest time EC2 may take for one answer; four times as long for a launch.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// List prices per hour, by type. What has none, here and in its region, is not launched on
    /// demand.
    pub on_demand_prices: BTreeMap<InstanceType, Money>,
}

impl Default for Ec2Settings {
    fn default() -> Self {
        Self {
            endpoint: None,
            profile: None,
            credentials_file: None,
            product: "Linux/UNIX".into(),
            prices_kept: minutes(5),
            timeout: Duration::from_secs(15),
            on_demand_prices: BTreeMap::new(),
        }
    }
}

/// `[limits]`: of the whole fleet. 0 means none may be; a key left out means no limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FleetLimits {
    /// Instances at once, those on their way in and out included.
    pub max_instances: Option<u32>,
    /// On-demand instances at once.
    pub max_on_demand: Option<u32>,
    /// Dollars per hour.
    pub max_per_hour: Option<Money>,
    /// Dollars per day (UTC).
    pub max_per_day: Option<Money>,
    /// Terminations in one pass that no host confirmed (strays, silent and dead ones).
    pub max_forced_terminations: u32,
    /// Percentage of a pool's hosts that may be on their way out at once for drift or surplus.
    pub max_leaving: f64,
}

impl Default for FleetLimits {
    fn default() -> Self {
        Self {
            max_instances: None,
            max_on_demand: None,
            max_per_hour: None,
            max_per_day: None,
            // A fault of ours that judges healthy machines dead ends ten of them, and is then seen.
            max_forced_terminations: 10,
            max_leaving: 50.0,
        }
    }
}

/// `[regions.NAME]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegionSettings {
    /// Preference: 2 makes its prices count half. 0: nothing is launched there.
    pub weight: f64,
    /// Instances at once in this region, over all its zones.
    pub max_instances: Option<u32>,
    /// Subnets, one for each zone (EC2).
    pub subnets: Vec<String>,
    /// Security groups of instances, by id (EC2); none: the default group of the VPC.
    pub security_groups: Vec<String>,
    /// List prices per hour where they differ from those of `[ec2]` (EC2).
    pub on_demand_prices: BTreeMap<InstanceType, Money>,
}

impl Default for RegionSettings {
    fn default() -> Self {
        Self {
            weight: 1.0,
            max_instances: None,
            subnets: Vec::new(),
            security_groups: Vec::new(),
            on_demand_prices: BTreeMap::new(),
        }
    }
}

/// `[images.NAME]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageSettings {
    /// Its id in each region where it is.
    pub ids: BTreeMap<Region, ImageId>,
    /// The local cloud: a directory with `tasks.d` and, if wanted, `runner.toml`.
    pub directory: Option<PathBuf>,
}

/// `[pools.NAME]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolSettings {
    /// The image of its hosts, as long as no rollout says otherwise.
    pub image: Option<ImageName>,
    /// Types of machines, each with the work it does compared to the others.
    pub types: Performance,
    /// Regions it may use; empty: all.
    pub regions: Vec<Region>,
    /// How its capacity is paid for.
    pub capacity_type: CapacityType,
    /// How the cloud chooses among the choices of a launch.
    pub allocation: Allocation,
    /// Hosts kept even without jobs.
    pub min: u32,
    /// Hosts at most; 0: none.
    pub max: u32,
    /// Instances launched in one pass at most.
    pub max_step: u32,
    /// Hosts launched per waiting job.
    pub ratio: f64,
    /// Dearest price per hour and unit of work.
    pub max_price: Option<Money>,
    /// Dollars per hour.
    pub max_per_hour: Option<Money>,
    /// Dollars per day (UTC).
    pub max_per_day: Option<Money>,
    /// On-demand instances allowed where spot has none; 0: never.
    pub on_demand_fallback: u32,
    /// A host idle for longer leaves, down to `min`.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Surplus must last this long before hosts leave for it.
    #[serde(with = "humantime_serde")]
    pub surplus_delay: Duration,
    /// From the launch to `running`.
    #[serde(with = "humantime_serde")]
    pub launch_timeout: Duration,
    /// From the launch to the registration of the host.
    #[serde(with = "humantime_serde")]
    pub registration_timeout: Duration,
    /// A registered host not heard of for longer is lost.
    #[serde(with = "humantime_serde")]
    pub silence_timeout: Duration,
    /// Runs after which a host leaves; none: no limit.
    pub max_runs: Option<u64>,
    /// Instance profile, by name or ARN (EC2).
    pub instance_profile: Option<String>,
    /// Key pair (EC2).
    pub key_name: Option<String>,
    /// Size of the root volume in GiB (EC2); none: that of the image.
    pub root_volume_gib: Option<u32>,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            image: None,
            types: BTreeMap::<InstanceType, f64>::new(),
            regions: Vec::new(),
            capacity_type: CapacityType::Spot,
            allocation: Allocation::PriceCapacityOptimized,
            min: 0,
            max: 10,
            max_step: 50,
            ratio: 1.0,
            max_price: None,
            max_per_hour: None,
            max_per_day: None,
            on_demand_fallback: 0,
            idle_timeout: minutes(10),
            surplus_delay: minutes(5),
            launch_timeout: minutes(5),
            registration_timeout: minutes(15),
            silence_timeout: minutes(10),
            max_runs: None,
            instance_profile: None,
            key_name: None,
            root_volume_gib: None,
        }
    }
}

/// `[demand]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DemandSettings {
    /// Younger jobs may be taken by a host that is there already.
    #[serde(with = "humantime_serde")]
    pub min_age: Duration,
    /// Older jobs are stuck, and no host will help them.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// An answer older than this holds the decision.
    #[serde(with = "humantime_serde")]
    pub stale_after: Duration,
}

impl Default for DemandSettings {
    fn default() -> Self {
        Self {
            min_age: Duration::from_secs(10),
            max_age: minutes(60 * 24),
            stale_after: minutes(3),
        }
    }
}

/// `[[rules]]`: which job belongs to which pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSettings {
    /// Regular expression, found anywhere in the job's name; look-ahead and look-behind are allowed.
    pub job: String,
    /// The pool of such jobs; none: they are left alone on purpose.
    #[serde(default)]
    pub pool: Option<PoolName>,
    /// Only jobs of this source; none: of any.
    #[serde(default)]
    pub source: Option<SourceName>,
}

/// `[sources.NAME]`: which system to ask, and how. `timeout` bounds every kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SourceSettings {
    /// Buildbot's REST API, version 2.
    Buildbot(BuildbotSettings),
    /// Taskcluster's queue.
    Taskcluster(TaskclusterSettings),
    /// GitHub Actions.
    Github(GithubSettings),
    /// Buildkite.
    Buildkite(BuildkiteSettings),
    /// Any JSON by HTTP.
    Http(HttpSettings),
    /// A program.
    Exec(ExecSettings),
    /// A directory of jobs on this machine, as `runner take-job` takes them.
    Spool(SpoolSettings),
}

pub use crate::demand::settings::{
    BuildbotSettings, BuildkiteSettings, ExecSettings, GithubSettings, HttpSettings, SpoolSettings,
    TaskclusterSettings,
};
