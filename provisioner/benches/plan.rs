//! How long planning and checking take as the farm grows, and how many calls a pass needs.
//!
//! `cargo bench -p provisioner --bench plan --no-default-features` (without the EC2 SDK, which
//! planning does not need). Two parts:
//!
//! - plan and check on one core, for farms of 1,000 to 100,000 instances. Pools grow with the
//!   instances (one for each 500); 2,000 offerings in all of them. What is compared is time for each
//!   instance: growth beyond the instances shows as a ratio above 1.
//! - EC2 calls of a pass that launches 100 instances, beside those `aws_watch_pending` of Mozilla's
//!   build-cloud-tools makes for the same World, counted from its source.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints its result, and panics if it cannot measure"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use provisioner::check::check;
use provisioner::cloud::{CapacityType, InstanceState, Offering, OfferingKey};
use provisioner::config::{Config, ImageSettings, PoolSettings, RegionSettings};
use provisioner::demand::PoolDemand;
use provisioner::ids::{ImageId, ImageName, Region};
use provisioner::money::Money;
use provisioner::plan::{Plan, plan};
use provisioner::world::{Assignment, HostActivity, HostView, ImageShare, Instance, Sight, World};
use tokio::time::Instant;

/// What plan and check may take together at the greatest size.
const TARGET: Duration = Duration::from_millis(250);

/// Farms, by instances.
const SIZES: [usize; 3] = [1_000, 10_000, 100_000];

/// Instances of each pool.
const POOL: usize = 500;

/// Rounds for each size; the median is reported.
const ROUNDS: usize = 9;

/// Fewer calls than the original makes, at least by this factor.
const FEWER: f64 = 20.0;

/// 10 regions of 4 zones sell 25 types as spot and on demand: 2,000 offerings.
const REGIONS: usize = 10;

const ZONES: usize = 4;
const TYPES: usize = 25;

/// The calls are counted in as many regions as Mozilla's farm had.
const OLD_REGIONS: usize = 3;

fn main() {
    speed();
    calls();
}

fn speed() {
    println!("plan and check on one core, median of {ROUNDS} rounds");
    println!("instances  pools  launches  plan        check       together    for each instance");
    let mut each = Vec::new();
    let mut slowest = Duration::ZERO;
    for size in SIZES {
        let (world, config) = farm(size, size / POOL, size / 20, REGIONS);
        let mut plans = Vec::new();
        let mut checks = Vec::new();
        let mut launches = 0;
        for seed in 0..ROUNDS as u64 {
            let begin = Instant::now();
            let planned = plan(black_box(&world), black_box(&config), seed);
            let middle = Instant::now();
            let faults = check(black_box(&world), black_box(&config), &planned);
            let end = Instant::now();
            assert_eq!(faults, [] as [String; 0]);
            launches = planned
                .launches
                .iter()
                .map(|launch| launch.count)
                .sum::<u32>();
            plans.push(middle - begin);
            checks.push(end - middle);
        }
        let (planning, checking) = (median(&mut plans), median(&mut checks));
        slowest = planning + checking;
        let nanos = slowest.as_nanos() as f64 / size as f64;
        println!(
            "{size:>9}  {:>5}  {launches:>8}  {planning:>10.3?}  {checking:>10.3?}  {slowest:>10.3?}  {nanos:>7.0} ns",
            size / POOL
        );
        each.push(nanos);
    }
    for (pair, sizes) in each.windows(2).zip(SIZES.windows(2)) {
        println!(
            "time for each instance, {} / {}: {:.2} (1 is linear)",
            sizes[1],
            sizes[0],
            pair[1] / pair[0]
        );
    }
    println!(
        "together / target at {} instances: {:.2} (target {} ms: {})",
        SIZES[SIZES.len() - 1],
        slowest.as_secs_f64() / TARGET.as_secs_f64(),
        TARGET.as_millis(),
        if slowest <= TARGET { "met" } else { "MISSED" }
    );
}

fn calls() {
    println!("\nEC2 calls of one pass");
    println!("instances  pools  launched  ours  aws_watch_pending  ratio");
    for (size, pools) in [(100, 1), (1_000, 2), (5_000, 10)] {
        let (world, config) = farm(size, pools, 100, OLD_REGIONS);
        let planned = plan(&world, &config, 1);
        let launched: u32 = planned.launches.iter().map(|launch| launch.count).sum();
        assert_eq!(launched, 100);
        let (ours, theirs) = (our_calls(&world, &planned), their_calls(&config, &planned));
        let ratio = f64::from(theirs) / f64::from(ours);
        println!(
            "{size:>9}  {pools:>5}  {launched:>8}  {ours:>4}  {theirs:>17}  {ratio:>5.1} (at least {FEWER}: {})",
            if ratio >= FEWER { "met" } else { "MISSED" }
        );
    }
}

/// Calls of our pass, prices fetched in it: in each region `DescribeInstances` for each 1,000
/// instances (the greatest page) and `DescribeSpotPriceHistory` for all types at once (a page of
/// 1,000 holds the present prices of a region), and one `CreateFleet` for each launch, tags and token
/// included. Ids of instances to end go into one `TerminateInstances` for each region. Subnets, what is
/// sold where, and launch templates are asked for or made once and kept; a provisioner that has just
/// started makes a few calls more for each region and template.
fn our_calls(world: &World, plan: &Plan) -> u32 {
    let mut instances: BTreeMap<&Region, usize> = BTreeMap::new();
    for instance in &world.instances {
        *instances.entry(&instance.offering.region).or_default() += 1;
    }
    let pages: usize = world
        .regions
        .keys()
        .map(|region| {
            instances
                .get(region)
                .copied()
                .unwrap_or(0)
                .div_ceil(1_000)
                .max(1)
        })
        .sum();
    let prices = world.regions.len();
    let ends: BTreeSet<&Region> = plan.terminations.iter().map(|end| &end.region).collect();
    count(pages + prices + plan.launches.len() + ends.len())
}

/// Calls that `aws_watch_pending` makes for the same launches, from its source (`request_spot_instances`
/// and what it calls, with its caches taken at their best):
///
/// - once for each region: all instances, and the active spot requests;
/// - for each pool with something to launch, in each region: the price history of each type
///   (`get_spot_choices`), the images (`get_spot_amis`), and the subnets (`get_all_subnets`);
/// - for each machine: `RequestSpotInstances` for one, and `CreateTags` three times (`moz-type`,
///   `Name`, `FQDN`).
///
/// Left out in its favour: retries of tagging while the request is not visible yet, and the script
/// that copies the tags from requests to instances afterwards.
fn their_calls(config: &Config, plan: &Plan) -> u32 {
    let pools: BTreeSet<_> = plan.launches.iter().map(|launch| &launch.pool).collect();
    let regions = config.regions.len();
    let by_region = 2 * regions;
    let by_pool: usize = pools
        .iter()
        .map(|pool| regions * (config.pools[*pool].types.len() + 2))
        .sum();
    let machines: u32 = plan.launches.iter().map(|launch| launch.count).sum();
    count(by_region + by_pool) + machines * (1 + 3)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap()
}

/// A farm of `size` instances in `pools` pools that want `wanted` more. Of twenty hosts sixteen work,
/// two are idle, one boots, and one has a retired image; two images share the launches.
fn farm(size: usize, pools: usize, wanted: usize, regions: usize) -> (World, Config) {
    let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
    let mut config = Config::default();
    for region in 0..regions {
        config.regions.insert(
            parsed(&format!("region-{region}")),
            RegionSettings::default(),
        );
    }
    for image in ["stable", "candidate", "retired"] {
        let ids = config.regions.keys().map(|region| {
            let id: ImageId = parsed(&format!("{image}-{region}"));
            (region.clone(), id)
        });
        let settings = ImageSettings {
            ids: ids.collect(),
            directory: None,
        };
        config.images.insert(parsed(image), settings);
    }
    let mut world: World = serde_json::from_value(serde_json::json!({
        "pass": 1, "store": "bench", "now": now, "demand": {}, "instances": [], "intents": [],
        "regions": {}, "offerings": [], "shortages": [], "interruptions": [], "shares": {},
        "maintenance": { "fleet": null, "pools": {} }, "spent_today": {}, "memory": {},
    }))
    .unwrap();
    for region in config.regions.keys() {
        let view = serde_json::json!({ "observed": true, "fault": null });
        let view = serde_json::from_value(view).unwrap();
        world.regions.insert(region.clone(), view);
    }
    world.offerings = offerings(regions, now);
    let each = size / pools;
    for pool in 0..pools {
        let name: provisioner::ids::PoolName = parsed(&format!("pool-{pool:03}"));
        let settings = PoolSettings {
            image: Some(parsed("stable")),
            types: (0..5)
                .map(|kind| {
                    (
                        parsed(&instance_type((pool + kind) % TYPES)),
                        1.0 + kind as f64,
                    )
                })
                .collect(),
            max: 100_000,
            max_step: 1_000,
            on_demand_fallback: 10,
            ..PoolSettings::default()
        };
        config.pools.insert(name.clone(), settings);
        let demand = PoolDemand {
            pending: count(each / 10 + each / 20 + wanted / pools),
            ..PoolDemand::default()
        };
        world.demand.insert(name.clone(), demand);
        let shares = [("stable", 90.0), ("candidate", 10.0)];
        let shares = shares.map(|(image, percentage)| ImageShare {
            image: parsed(image),
            percentage,
        });
        // A rollout in one pool of five.
        if pool.is_multiple_of(5) {
            world.shares.insert(name.clone(), shares.into());
        }
        for host in 0..each {
            world
                .instances
                .push(instance(pool, host, regions, &name, now));
        }
    }
    world.instances.sort_by(|a, b| a.id.cmp(&b.id));
    (world, config)
}

fn offerings(regions: usize, now: Timestamp) -> Vec<Offering> {
    let mut offerings = Vec::new();
    for region in 0..regions {
        for zone in 0..ZONES {
            for kind in 0..TYPES {
                for capacity_type in [CapacityType::Spot, CapacityType::OnDemand] {
                    let list = 40_000 * (kind + 5) + 1_000 * region + 100 * zone;
                    let price = match capacity_type {
                        CapacityType::Spot => list / 3,
                        CapacityType::OnDemand => list,
                    };
                    offerings.push(Offering {
                        key: key(region, zone, kind, capacity_type),
                        price: Money::from_micros(i64::try_from(price).unwrap()),
                        as_of: now,
                    });
                }
            }
        }
    }
    offerings
}

fn instance_type(kind: usize) -> String {
    format!("type{kind}.2xlarge")
}

fn key(region: usize, zone: usize, kind: usize, capacity_type: CapacityType) -> OfferingKey {
    OfferingKey {
        region: parsed(&format!("region-{region}")),
        zone: parsed(&format!("region-{region}{zone}")),
        instance_type: parsed(&instance_type(kind)),
        capacity_type,
    }
}

fn instance(
    pool: usize,
    host: usize,
    regions: usize,
    name: &provisioner::ids::PoolName,
    now: Timestamp,
) -> Instance {
    let boots = host.is_multiple_of(20);
    let idle = host % 20 <= 2;
    let image: ImageName = parsed(if host % 20 == 3 { "retired" } else { "stable" });
    let view = HostView {
        registered_at: now - SignedDuration::from_mins(50),
        heard_at: now - SignedDuration::from_secs(20),
        activity: if idle {
            HostActivity::Idle
        } else {
            HostActivity::Busy
        },
        since: now - SignedDuration::from_mins(5),
        job: (!idle).then(|| "job".into()),
        runs: 4,
        interruption_at: None,
    };
    Instance {
        id: parsed(&format!("i-{:017x}", host * 1_000 + pool)),
        offering: key(
            host % regions,
            host % ZONES,
            pool % TYPES,
            CapacityType::Spot,
        ),
        intent: Some(parsed("bench-0-0")),
        pool: Some(name.clone()),
        image: Some(image),
        image_id: None,
        price: Money::from_micros(100_000),
        launched_at: now - SignedDuration::from_mins(if boots { 1 } else { 60 }),
        sight: Sight::Both,
        state: if boots {
            InstanceState::Pending
        } else {
            InstanceState::Running
        },
        interrupted: false,
        host: (!boots).then_some(view),
        assignment: Assignment::GoOn,
        hold: None,
        suspected_at: None,
        ended_at: None,
    }
}

fn parsed<N: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> N {
    text.parse().unwrap()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
