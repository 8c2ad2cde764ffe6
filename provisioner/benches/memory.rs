//! What a provisioner needs in memory with 100,000 hosts.
//!
//! `cargo bench -p provisioner --bench memory --no-default-features` (without the EC2 SDK). One
//! process fills a store; another one opens it, lists five regions of a cloud that makes its answers
//! as it goes, and makes three passes with all hosts registered. Printed is the largest amount of
//! memory the second one ever had (`VmHWM`), for 1,000 and for 100,000 hosts.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark prints its result, and panics if it cannot measure"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use provisioner::cloud::{
    CapacityType, Cloud, CloudError, Finding, InstanceState, LaunchError, LaunchRequest, Launched,
    Offering, OfferingKey, Sighting, TerminateError, UserData,
};
use provisioner::config::{Config, ImageSettings, PoolSettings, RegionSettings};
use provisioner::demand::PoolDemand;
use provisioner::hosts::Hosts;
use provisioner::ids::{ImageName, InstanceId, InstanceType, PoolName, Region};
use provisioner::money::Money;
use provisioner::observe::Asked;
use provisioner::pass::{Centre, Demand, Welcome};
use provisioner::store::{Change, InstanceRecord, Missing, Store as _, sqlite};
use provisioner::world::{Assignment, HostActivity, HostView};

/// What was promised for 100,000 hosts.
const PROMISED_MB: f64 = 100.0;
const REGIONS: usize = 5;
const POOLS: usize = 200;
/// Written to the store at once.
const AT_ONCE: usize = 5_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "fill", directory, count] => fill(Path::new(directory), count.parse().unwrap()),
        [_, "passes", directory, count] => passes(Path::new(directory), count.parse().unwrap()),
        _ => {
            for count in [1_000, 100_000] {
                measure(count);
            }
        }
    }
}

fn measure(count: usize) {
    let directory = tempfile::tempdir().unwrap();
    let run = |what: &str| {
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new(program);
        command
            .arg(what)
            .arg(directory.path())
            .arg(count.to_string());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run("fill");
    let megabytes: f64 = run("passes").trim().parse().unwrap();
    println!(
        "{count:>7} hosts: {megabytes:.0} MB at most, promised {PROMISED_MB:.0}, ratio {:.2}",
        megabytes / PROMISED_MB
    );
}

#[tokio::main(flavor = "current_thread")]
async fn fill(directory: &Path, count: usize) {
    let store = sqlite::open(directory, Missing::Make).await.unwrap();
    let term = store.lead().await.unwrap();
    let now = Timestamp::now();
    for begin in (0..count).step_by(AT_ONCE) {
        let records = (begin..count.min(begin + AT_ONCE)).map(|number| record(number, now));
        let changes = records.map(|record| Change::InstanceSeen(Box::new(record)));
        store.commit(term, changes.collect()).await.unwrap();
    }
    let views = (0..count).map(|number| (id(number), view(number, now)));
    let heard = Change::Heard(views.collect());
    store.commit(term, vec![heard]).await.unwrap();
}

#[tokio::main]
async fn passes(directory: &Path, count: usize) {
    let mut centre = Centre {
        config: config(count),
        cloud: Endless(count),
        store: Arc::new(sqlite::open(directory, Missing::Refuse).await.unwrap()),
        hosts: Arc::new(Hosts::default()),
        demand: Steady,
        welcome: Nothing,
        listening_since: Timestamp::now(),
        clock: Timestamp::now,
    };
    let term = centre.store.lead().await.unwrap().unwrap();
    for seed in 0..3 {
        let report = centre.pass(term, seed).await.unwrap();
        assert_eq!(report.pass.world.instances.len(), count);
        assert_eq!(report.pass.faults, Vec::<String>::new());
    }
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib: f64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    println!("{:.1}", kib * 1024.0 / 1e6);
}

fn config(count: usize) -> Config {
    let mut config = Config::default();
    for region in 0..REGIONS {
        config.regions.insert(
            parsed(&format!("region-{region}")),
            RegionSettings::default(),
        );
    }
    let ids = config
        .regions
        .keys()
        .map(|region| (region.clone(), parsed("ami-stable")));
    let image = ImageSettings {
        ids: ids.collect(),
        directory: None,
    };
    config.images.insert(parsed("stable"), image);
    for pool in 0..POOLS {
        let settings = PoolSettings {
            image: Some(parsed("stable")),
            types: BTreeMap::from([(parsed("c6i.2xlarge"), 1.0)]),
            max: u32::try_from(count).unwrap(),
            ..PoolSettings::default()
        };
        config.pools.insert(pool_name(pool), settings);
    }
    config
}

fn record(number: usize, now: Timestamp) -> InstanceRecord {
    InstanceRecord {
        id: id(number),
        offering: offering(number % REGIONS),
        intent: Some(parsed(&format!("abcdefgh-{}-0", number / 100))),
        pool: pool_name(number % POOLS),
        image: parsed("stable"),
        image_id: Some(parsed("ami-stable")),
        price: Money::from_micros(100_000),
        launched_at: now - SignedDuration::from_hours(1),
        private_address: Some([10, 0, 0, 1].into()),
        host: None,
        assignment: Assignment::GoOn,
        hold: None,
        suspected_at: None,
        ended_at: None,
    }
}

fn view(number: usize, now: Timestamp) -> HostView {
    HostView {
        registered_at: now - SignedDuration::from_mins(55),
        heard_at: now,
        activity: HostActivity::Busy,
        since: now - SignedDuration::from_mins(5),
        job: Some(format!("linux64 test mochitest-{}", number % 10)),
        runs: 3,
        interruption_at: None,
    }
}

fn offering(region: usize) -> OfferingKey {
    OfferingKey {
        region: parsed(&format!("region-{region}")),
        zone: parsed(&format!("region-{region}a")),
        instance_type: parsed("c6i.2xlarge"),
        capacity_type: CapacityType::Spot,
    }
}

fn id(number: usize) -> InstanceId {
    parsed(&format!("i-{number:017x}"))
}

fn pool_name(pool: usize) -> PoolName {
    parsed(&format!("pool-{pool}"))
}

fn parsed<N: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> N {
    text.parse().unwrap()
}

/// So many instances, spread over the regions.
#[derive(Debug)]
struct Endless(usize);

impl Cloud for Endless {
    async fn instances(&self, region: &Region) -> Result<Vec<Sighting>, CloudError> {
        let now = Timestamp::now();
        let seen = (0..self.0).filter_map(|number| {
            let record = record(number, now);
            (record.offering.region == *region).then_some(Sighting {
                id: record.id,
                offering: record.offering,
                state: InstanceState::Running,
                state_reason: None,
                interrupted: false,
                launched_at: record.launched_at,
                intent: record.intent,
                pool: Some(record.pool),
                image: Some(record.image),
                image_id: record.image_id,
                hold: None,
                private_address: record.private_address,
            })
        });
        Ok(seen.collect())
    }

    async fn offerings(
        &self,
        region: &Region,
        _: &BTreeSet<InstanceType>,
    ) -> Result<Vec<Offering>, CloudError> {
        let number = (0..REGIONS).find(|number| offering(*number).region == *region);
        Ok(vec![Offering {
            key: offering(number.unwrap()),
            price: Money::from_micros(100_000),
            as_of: Timestamp::now(),
        }])
    }

    async fn launch(&self, _: &LaunchRequest, _: &UserData) -> Result<Launched, LaunchError> {
        panic!("nothing is wanted");
    }

    async fn terminate(
        &self,
        _: &Region,
        _: &[InstanceId],
    ) -> BTreeMap<InstanceId, Result<(), TerminateError>> {
        panic!("nothing ends");
    }

    async fn check(&self) -> Vec<Finding> {
        Vec::new()
    }
}

/// Every host has a job, and none waits.
#[derive(Debug)]
struct Steady;

impl Demand for Steady {
    async fn observe(&mut self, config: &Config, now: Timestamp) -> Asked {
        let demand = PoolDemand {
            as_of: Some(now),
            ..PoolDemand::default()
        };
        let pools = config.pools.keys();
        Asked {
            pools: pools.map(|pool| (pool.clone(), demand.clone())).collect(),
            remarks: Vec::new(),
        }
    }
}

#[derive(Debug)]
struct Nothing;

impl Welcome for Nothing {
    fn user_data(&self, _: &Config, _: &PoolName, _: &ImageName, _: Timestamp) -> UserData {
        UserData {
            json: String::new(),
        }
    }
}
