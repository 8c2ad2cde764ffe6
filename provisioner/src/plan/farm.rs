//! Farms for tests: a small one to change by hand, and random ones.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use crate::cloud::{
    Allocation, CapacityType, Choice, InstanceState, LaunchRequest, Offering, OfferingKey,
    ShortReason,
};
use crate::config::{Config, ImageSettings, PoolSettings, RegionSettings};
use crate::demand::{PoolDemand, SourceHold};
use crate::ids::{ImageId, ImageName, InstanceId, IntentId, PassId, PoolName, Region};
use crate::money::Money;
use crate::world::{
    Assignment, Hold, HostActivity, HostView, ImageShare, Instance, Intent, Interruptions,
    LeaveReason, Order, RegionView, Shortage, ShortageKey, Sight, World,
};

pub(crate) const MINUTE: i64 = 60;

pub(crate) fn name<N: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> N {
    text.parse().unwrap()
}

/// Noon of a day, and the farm's now.
pub(crate) fn noon() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

/// `seconds` before noon.
pub(crate) fn ago(seconds: i64) -> Timestamp {
    noon() - SignedDuration::from_secs(seconds)
}

pub(crate) fn cents(cents: i64) -> Money {
    Money::from_micros(cents * 10_000)
}

/// A World with its configuration.
#[derive(Clone, Debug)]
pub(crate) struct Farm {
    pub(crate) world: World,
    pub(crate) config: Config,
}

/// Two regions of two zones, two types, two images, and one pool `build` that wants nothing.
pub(crate) fn farm() -> Farm {
    let mut config = Config::default();
    for region in ["east", "west"] {
        config
            .regions
            .insert(name(region), RegionSettings::default());
    }
    for image in ["stable", "candidate"] {
        let ids = config.regions.keys().map(|region| {
            (
                region.clone(),
                name::<ImageId>(&format!("{image}-{region}")),
            )
        });
        let settings = ImageSettings {
            ids: ids.collect(),
            directory: None,
        };
        config.images.insert(name(image), settings);
    }
    let regions: BTreeMap<&Region, RegionView> = config
        .regions
        .keys()
        .map(|region| {
            let view = RegionView {
                observed: true,
                fault: None,
            };
            (region, view)
        })
        .collect();
    let world = serde_json::from_value(serde_json::json!({
        "pass": 7,
        "store": "s1",
        "now": noon(),
        "demand": {},
        "instances": [],
        "intents": [],
        "regions": regions,
        "offerings": [],
        "shortages": [],
        "interruptions": [],
        "shares": {},
        "maintenance": { "fleet": null, "pools": {} },
        "spent_today": {},
        "memory": {},
    }));
    let world = world.unwrap();
    let mut farm = Farm { world, config };
    farm.add_pool("build");
    // East is the cheaper one.
    for (region, price) in [("east", 10), ("west", 12)] {
        for zone in ["a", "b"] {
            farm.sell(region, zone, "small", CapacityType::Spot, cents(price));
            farm.sell(region, zone, "big", CapacityType::Spot, cents(2 * price));
            farm.sell(
                region,
                zone,
                "small",
                CapacityType::OnDemand,
                cents(4 * price),
            );
        }
    }
    farm
}

impl Farm {
    pub(crate) fn add_pool(&mut self, pool: &str) -> &mut PoolSettings {
        let settings = PoolSettings {
            image: Some(name("stable")),
            types: [(name("small"), 1.0), (name("big"), 2.0)].into(),
            max: 100,
            ..PoolSettings::default()
        };
        self.config.pools.insert(name(pool), settings);
        self.demand(pool, 0, 0);
        self.pool(pool)
    }

    pub(crate) fn pool(&mut self, pool: &str) -> &mut PoolSettings {
        self.config.pools.get_mut(pool_name(pool)).unwrap()
    }

    pub(crate) fn demand(&mut self, pool: &str, pending: u32, running: u32) {
        let demand = PoolDemand {
            pending,
            running,
            as_of: Some(self.world.now),
            ..PoolDemand::default()
        };
        self.world.demand.insert(name(pool), demand);
    }

    pub(crate) fn hold_source(&mut self, pool: &str) {
        let demand = self.world.demand.get_mut(pool_name(pool)).unwrap();
        demand.holds.push(SourceHold {
            source: name("buildbot"),
            reason: "no answer since 11:57".into(),
        });
    }

    pub(crate) fn sell(
        &mut self,
        region: &str,
        zone: &str,
        instance_type: &str,
        capacity_type: CapacityType,
        price: Money,
    ) {
        self.world.offerings.push(Offering {
            key: key(region, zone, instance_type, capacity_type),
            price,
            as_of: self.world.now,
        });
    }

    pub(crate) fn short(&mut self, key: ShortageKey, reason: ShortReason, until: Timestamp) {
        self.world.shortages.push(Shortage {
            key,
            reason,
            message: "none left".into(),
            failures: 1,
            at: until - SignedDuration::from_mins(3),
            until,
        });
    }

    /// A host of `build`, idle for `idle` seconds.
    pub(crate) fn host(&mut self, id: &str, idle: i64) -> &mut Instance {
        self.booting(id, 60 * MINUTE);
        let instance = self.world.instances.last_mut().unwrap();
        instance.state = InstanceState::Running;
        instance.host = Some(HostView {
            registered_at: ago(58 * MINUTE),
            heard_at: ago(10),
            activity: HostActivity::Idle,
            since: ago(idle),
            job: None,
            runs: 3,
            interruption_at: None,
        });
        instance
    }

    pub(crate) fn busy(&mut self, id: &str) -> &mut Instance {
        let instance = self.host(id, 5 * MINUTE);
        let host = instance.host.as_mut().unwrap();
        host.activity = HostActivity::Busy;
        host.job = Some("compile".into());
        instance
    }

    /// An instance of `build` whose host has not registered, `age` seconds after its launch.
    pub(crate) fn booting(&mut self, id: &str, age: i64) -> &mut Instance {
        self.world.instances.push(Instance {
            id: name(id),
            offering: key("east", "a", "small", CapacityType::Spot),
            intent: Some(name("s1-3-0")),
            pool: Some(name("build")),
            image: Some(name("stable")),
            image_id: Some(name("stable-east")),
            price: cents(10),
            launched_at: ago(age),
            sight: Sight::Both,
            state: InstanceState::Pending,
            interrupted: false,
            host: None,
            assignment: Assignment::GoOn,
            hold: None,
            suspected_at: None,
            ended_at: None,
        });
        self.world.instances.last_mut().unwrap()
    }

    pub(crate) fn intent(&mut self, id: &str, count: u32) -> &mut Intent {
        self.world.intents.push(Intent {
            request: LaunchRequest {
                intent: name(id),
                pool: name("build"),
                image: name("stable"),
                image_id: name("stable-east"),
                region: name("east"),
                capacity_type: CapacityType::Spot,
                count,
                choices: vec![Choice {
                    instance_type: name("small"),
                    zone: name("east-a"),
                    price: cents(10),
                }],
                allocation: Allocation::default(),
            },
            pass: PassId(6),
            made_at: ago(MINUTE),
            attempts: 1,
            not_before: None,
        });
        self.world.intents.last_mut().unwrap()
    }

    pub(crate) fn share(&mut self, pool: &str, shares: &[(&str, f64)]) {
        let shares = shares.iter().map(|(image, percentage)| ImageShare {
            image: name(image),
            percentage: *percentage,
        });
        self.world.shares.insert(name(pool), shares.collect());
    }

    pub(crate) fn maintain(&mut self, pool: &str) {
        self.world.maintenance.pools.insert(name(pool), order());
    }
}

/// Lookups by text without a name of its own.
fn pool_name(pool: &str) -> &'static PoolName {
    use std::sync::{LazyLock, Mutex};
    static NAMES: LazyLock<Mutex<BTreeMap<String, &'static PoolName>>> =
        LazyLock::new(Mutex::default);
    NAMES
        .lock()
        .unwrap()
        .entry(pool.into())
        .or_insert_with(|| Box::leak(Box::new(name(pool))))
}

pub(crate) fn order() -> Order {
    Order {
        by: "anna".into(),
        reason: "new switches".into(),
        at: ago(MINUTE),
    }
}

pub(crate) fn hold(expires: Option<Timestamp>) -> Option<Box<Hold>> {
    Some(Box::new(Hold {
        owner: "anna".into(),
        reason: "bug hunt".into(),
        expires,
    }))
}

pub(crate) fn key(
    region: &str,
    zone: &str,
    instance_type: &str,
    capacity_type: CapacityType,
) -> OfferingKey {
    OfferingKey {
        region: name(region),
        zone: name(&format!("{region}-{zone}")),
        instance_type: name(instance_type),
        capacity_type,
    }
}

// Random farms.

const REGIONS: [&str; 3] = ["east", "north", "west"];
const ZONES: [&str; 2] = ["a", "b"];
const TYPES: [&str; 3] = ["big", "medium", "small"];
const IMAGES: [&str; 3] = ["candidate", "older", "stable"];
const POOLS: [&str; 3] = ["build", "lint", "test"];
const CAPACITIES: [CapacityType; 2] = [CapacityType::Spot, CapacityType::OnDemand];

fn one_of<T: Clone + std::fmt::Debug + 'static>(all: &[T]) -> impl Strategy<Value = T> + use<T> {
    prop::sample::select(all.to_vec())
}

fn rarely<S: Strategy>(percent: u32, some: S) -> impl Strategy<Value = Option<S::Value>>
where
    S::Value: Clone,
{
    prop::option::weighted(f64::from(percent) / 100.0, some)
}

/// A time around noon, in whole seconds, on the boundaries of timeouts now and then.
fn past() -> impl Strategy<Value = Timestamp> {
    prop_oneof![
        3 => (0_i64..120 * MINUTE).prop_map(ago),
        1 => one_of(&[0, 120, 300, 301, 600, 601, 900, 901, -30]).prop_map(ago),
    ]
}

fn any_reason() -> impl Strategy<Value = LeaveReason> {
    one_of(&[
        LeaveReason::Idle,
        LeaveReason::Drifted,
        LeaveReason::OverTarget,
        LeaveReason::Maintenance,
        LeaveReason::PoolRemoved,
        LeaveReason::UsedUp,
        LeaveReason::Asked,
    ])
}

fn any_assignment() -> impl Strategy<Value = Assignment> {
    prop_oneof![
        6 => Just(Assignment::GoOn),
        1 => past().prop_map(|since| Assignment::Drain { reason: LeaveReason::Maintenance, since }),
        2 => (any_reason(), past()).prop_map(|(reason, since)| Assignment::Quit { reason, since }),
    ]
}

fn any_host() -> impl Strategy<Value = HostView> {
    (
        one_of(&[
            HostActivity::Idle,
            HostActivity::Idle,
            HostActivity::Busy,
            HostActivity::Draining,
            HostActivity::Fenced,
        ]),
        prop_oneof![4 => (0_i64..60).prop_map(ago), 1 => past()],
        past(),
        0_u64..30,
        rarely(3, past()),
    )
        .prop_map(
            |(activity, heard_at, since, runs, interruption_at)| HostView {
                registered_at: since,
                heard_at,
                activity,
                since,
                job: (activity == HostActivity::Busy).then(|| "job".into()),
                runs,
                interruption_at,
            },
        )
}

fn any_key() -> impl Strategy<Value = OfferingKey> {
    (
        one_of(&REGIONS),
        one_of(&ZONES),
        one_of(&TYPES),
        one_of(&CAPACITIES),
    )
        .prop_map(|(region, zone, instance_type, capacity)| {
            key(region, zone, instance_type, capacity)
        })
}

fn any_instance() -> impl Strategy<Value = Instance> {
    let belongs = (
        rarely(97, one_of(&["s1-3-0", "s1-4-1", "s1-6-0", "s1-6-1"])),
        rarely(97, one_of(&["build", "build", "lint", "test", "gone"])),
        rarely(97, one_of(&IMAGES)),
    );
    let state = prop_oneof![
        2 => Just(InstanceState::Pending),
        6 => Just(InstanceState::Running),
        1 => Just(InstanceState::Stopping),
        1 => Just(InstanceState::Stopped),
        1 => Just(InstanceState::Terminated),
    ];
    let sight = prop_oneof![
        8 => Just(Sight::Both),
        2 => Just(Sight::CloudOnly),
        2 => Just(Sight::StoreOnly),
    ];
    let marks = (
        rarely(
            5,
            prop_oneof![Just(None), past().prop_map(Some), Just(Some(ago(-3600)))],
        ),
        rarely(15, past()),
        rarely(5, past()),
    );
    (
        any_key(),
        belongs,
        (past(), sight, state),
        rarely(75, any_host()),
        any_assignment(),
        marks,
        1_i64..50,
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(
                offering,
                (intent, pool, image),
                (launched_at, sight, state),
                host,
                assignment,
                marks,
                price,
                interrupted,
            )| {
                let (held, suspected_at, ended_at) = marks;
                let stored = sight != Sight::CloudOnly;
                Instance {
                    // Numbered when all are known.
                    id: name("i-0"),
                    image_id: image.map(|image| name(&format!("{image}-{}", offering.region))),
                    offering,
                    intent: intent.map(name),
                    pool: pool.map(name),
                    image: image.map(name),
                    price: cents(price),
                    launched_at,
                    sight,
                    state,
                    interrupted,
                    host: host.filter(|_| stored),
                    assignment: if stored { assignment } else { Assignment::GoOn },
                    hold: held.and_then(hold),
                    suspected_at,
                    ended_at: ended_at.filter(|_| stored),
                }
            },
        )
}

fn any_settings() -> impl Strategy<Value = PoolSettings> {
    let numbers = (
        0_u32..6,
        0_u32..30,
        1_u32..20,
        one_of(&[0.5, 1.0, 1.0, 2.0]),
    );
    let money = (
        rarely(20, 5_i64..100),
        rarely(20, 10_i64..500),
        rarely(20, 100_i64..5000),
    );
    (
        numbers,
        money,
        one_of(&[
            CapacityType::Spot,
            CapacityType::Spot,
            CapacityType::OnDemand,
        ]),
        0_u32..4,
        prop::sample::subsequence(REGIONS.to_vec(), 0..=3),
        prop::sample::subsequence(TYPES.to_vec(), 1..=3),
        rarely(20, 10_u64..30),
        rarely(95, one_of(&IMAGES)),
    )
        .prop_map(
            |(
                (min, above, max_step, ratio),
                (price, hour, day),
                capacity_type,
                on_demand_fallback,
                regions,
                types,
                max_runs,
                image,
            )| {
                PoolSettings {
                    image: image.map(name),
                    types: types
                        .iter()
                        .zip([2.0, 1.5, 1.0])
                        .map(|(t, p)| (name(t), p))
                        .collect(),
                    regions: regions.into_iter().map(name).collect(),
                    capacity_type,
                    min,
                    max: min + above,
                    max_step,
                    ratio,
                    max_price: price.map(cents),
                    max_per_hour: hour.map(cents),
                    max_per_day: day.map(cents),
                    on_demand_fallback,
                    max_runs,
                    ..PoolSettings::default()
                }
            },
        )
}

fn any_demand() -> impl Strategy<Value = PoolDemand> {
    (0_u32..60, 0_u32..20, prop::bool::weighted(0.1)).prop_map(|(pending, running, held)| {
        let hold = SourceHold {
            source: name("buildbot"),
            reason: "stale".into(),
        };
        PoolDemand {
            pending,
            running,
            holds: held.then_some(hold).into_iter().collect(),
            ..PoolDemand::default()
        }
    })
}

fn any_shortage() -> impl Strategy<Value = Shortage> {
    let about = prop_oneof![
        4 => any_key().prop_map(ShortageKey::Offering),
        1 => (one_of(&REGIONS), one_of(&CAPACITIES)).prop_map(|(region, capacity_type)| {
            ShortageKey::Quota { region: name(region), capacity_type }
        }),
        1 => (one_of(&REGIONS), one_of(&ZONES)).prop_map(|(region, zone)| {
            ShortageKey::Addresses { zone: name(&format!("{region}-{zone}")) }
        }),
        1 => (one_of(&POOLS), one_of(&REGIONS)).prop_map(|(pool, region)| {
            ShortageKey::Pool { pool: name(pool), region: name(region) }
        }),
    ];
    let reason = one_of(&[
        ShortReason::NoCapacity,
        ShortReason::Interrupted,
        ShortReason::Quota,
    ]);
    (about, reason, -10_i64..10).prop_map(|(key, reason, minutes)| Shortage {
        key,
        reason,
        message: "none".into(),
        failures: 1,
        at: ago(10 * MINUTE),
        until: ago(-minutes * MINUTE),
    })
}

fn any_region() -> impl Strategy<Value = (RegionSettings, bool)> {
    (
        one_of(&[0.0, 1.0, 1.0, 2.0]),
        rarely(40, 0_u32..30),
        prop::bool::weighted(0.85),
    )
        .prop_map(|(weight, max_instances, observed)| {
            let settings = RegionSettings {
                weight,
                max_instances,
                ..RegionSettings::default()
            };
            (settings, observed)
        })
}

fn any_shares() -> impl Strategy<Value = Vec<ImageShare>> {
    prop::collection::vec((one_of(&IMAGES), 0_u32..=10), 1..4).prop_map(|shares| {
        shares
            .into_iter()
            .map(|(image, tenths)| ImageShare {
                image: name(image),
                percentage: f64::from(tenths) * 10.0,
            })
            .collect()
    })
}

fn any_intent() -> impl Strategy<Value = Intent> {
    (
        1_u32..8,
        one_of(&POOLS),
        prop::collection::vec(any_key(), 1..4),
        rarely(30, -5_i64..5),
    )
        .prop_map(|(count, pool, keys, not_before)| Intent {
            request: LaunchRequest {
                intent: name("s1-6-0"),
                pool: name(pool),
                image: name("stable"),
                image_id: name(&format!("stable-{}", keys[0].region)),
                region: keys[0].region.clone(),
                capacity_type: keys[0].capacity_type,
                count,
                choices: keys
                    .iter()
                    .map(|key| Choice {
                        instance_type: key.instance_type.clone(),
                        zone: name(&format!("{}-a", keys[0].region)),
                        price: cents(i64::from(count)),
                    })
                    .collect(),
                allocation: Allocation::default(),
            },
            pass: PassId(6),
            made_at: ago(MINUTE),
            attempts: 1,
            not_before: not_before.map(|minutes| ago(minutes * MINUTE)),
        })
}

/// Any farm: limits lower than what runs, regions down, hosts in every state, holds and orders.
pub(crate) fn any_farm() -> impl Strategy<Value = Farm> {
    let pools = (
        any_settings(),
        any_demand(),
        rarely(10, Just(())),
        rarely(40, any_shares()),
    );
    let caps = (
        rarely(40, 0_u32..60),
        rarely(40, 0_u32..10),
        rarely(30, 20_i64..900),
        rarely(30, 500_i64..9000),
        0_u32..5,
        one_of(&[0.0, 10.0, 50.0, 100.0]),
    );
    (
        prop::collection::vec(pools, 1..=3),
        prop::collection::vec(any_region(), 3),
        prop::collection::vec(any_instance(), 0..40),
        prop::collection::vec((any_key(), 1_i64..60), 0..40),
        prop::collection::vec(any_shortage(), 0..8),
        prop::collection::vec(any_intent(), 0..3),
        prop::collection::vec((any_key(), 0_u32..10, 0.0_f64..500.0), 0..6),
        caps,
        rarely(5, Just(())),
        prop::collection::vec(0_i64..2000, 3),
    )
        .prop_map(
            |(
                pools,
                regions,
                instances,
                offerings,
                shortages,
                intents,
                interruptions,
                caps,
                stopped,
                spent,
            )| {
                let mut farm = farm();
                farm.config.regions.clear();
                farm.config.pools.clear();
                farm.world.demand.clear();
                farm.world.offerings.clear();
                for (region, (settings, observed)) in REGIONS.iter().zip(regions) {
                    let view = RegionView {
                        observed,
                        fault: None,
                    };
                    farm.config.regions.insert(name(region), settings);
                    farm.world.regions.insert(name(region), view);
                }
                farm.config.images.clear();
                for image in IMAGES {
                    // The candidate is not in the north.
                    let regions = REGIONS
                        .iter()
                        .filter(|region| (image, **region) != ("candidate", "north"));
                    let ids = regions.map(|region| {
                        (
                            name::<Region>(region),
                            name::<ImageId>(&format!("{image}-{region}")),
                        )
                    });
                    let settings = ImageSettings {
                        ids: ids.collect(),
                        directory: None,
                    };
                    farm.config
                        .images
                        .insert(name::<ImageName>(image), settings);
                }
                for ((pool, (settings, demand, stopped, shares)), spent) in
                    POOLS.iter().zip(pools).zip(spent)
                {
                    farm.config.pools.insert(name(pool), settings);
                    farm.world.demand.insert(name(pool), demand);
                    farm.world.spent_today.insert(name(pool), cents(spent));
                    if stopped.is_some() {
                        farm.maintain(pool);
                    }
                    if let Some(shares) = shares {
                        farm.world.shares.insert(name(pool), shares);
                    }
                }
                for (index, mut instance) in instances.into_iter().enumerate() {
                    instance.id = name::<InstanceId>(&format!("i-{index:03}"));
                    if !farm.world.regions[&instance.offering.region].observed {
                        instance.sight = Sight::Unobserved;
                    }
                    farm.world.instances.push(instance);
                }
                for (key, price) in offerings {
                    let sold = farm.world.offerings.iter().any(|one| one.key == key);
                    if !sold {
                        farm.world.offerings.push(Offering {
                            key,
                            price: cents(price),
                            as_of: noon(),
                        });
                    }
                }
                farm.world.shortages = shortages;
                farm.world.shortages.sort_by(|a, b| a.key.cmp(&b.key));
                farm.world.shortages.dedup_by(|a, b| a.key == b.key);
                for (index, mut intent) in intents.into_iter().enumerate() {
                    intent.request.intent = name::<IntentId>(&format!("s1-6-{index}"));
                    farm.world.intents.push(intent);
                }
                let mut interruptions: Vec<Interruptions> = interruptions
                    .into_iter()
                    .map(|(key, count, instance_hours)| Interruptions {
                        key,
                        count,
                        instance_hours,
                    })
                    .collect();
                interruptions.sort_by(|a, b| a.key.cmp(&b.key));
                interruptions.dedup_by(|a, b| a.key == b.key);
                farm.world.interruptions = interruptions;
                let limits = &mut farm.config.limits;
                let (instances, on_demand, hour, day, forced, leaving) = caps;
                limits.max_instances = instances;
                limits.max_on_demand = on_demand;
                limits.max_per_hour = hour.map(cents);
                limits.max_per_day = day.map(cents);
                limits.max_forced_terminations = forced;
                limits.max_leaving = leaving;
                farm.world.maintenance.fleet = stopped.map(|()| order());
                farm.config.provisioner.interval = Duration::from_secs(60);
                farm
            },
        )
}
