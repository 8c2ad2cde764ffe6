//! A plan without a fault is spoilt in one way after another, and each must be complained about.

use std::collections::BTreeSet;

use super::check;
use crate::cloud::{CapacityType, Choice, InstanceState, ShortReason};
use crate::plan::farm::{Farm, MINUTE, ago, cents, farm, hold, key, name, order};
use crate::plan::{Loss, Plan, Reassignment, Suspicion, Termination, plan};
use crate::world::{
    Assignment, HostActivity, Instance, LeaveReason, PoolMemory, ShortageKey, Sight,
};

/// A farm in which the plan launches 4, ends 3, calls nobody back, tells 1 to leave, sends 1 again,
/// adopts, suspects and loses.
fn busy_farm() -> Farm {
    let mut farm = farm();
    farm.add_pool("test");
    farm.demand("test", 4, 0);
    farm.pool("build").min = 2;
    farm.config.limits.max_leaving = 50.0;
    farm.host("i-idle", 30 * MINUTE);
    farm.host("i-new", 1);
    farm.busy("i-busy");
    let fenced = farm.host("i-fenced", 1);
    fenced.assignment = Assignment::Quit {
        reason: LeaveReason::Idle,
        since: ago(MINUTE),
    };
    fenced.host.as_mut().unwrap().activity = HostActivity::Fenced;
    farm.booting("i-boot", MINUTE);
    farm.booting("i-late", 20 * MINUTE).state = InstanceState::Running;
    farm.host("i-silent", 1).host.as_mut().unwrap().heard_at = ago(20 * MINUTE);
    farm.host("i-held", 1).hold = hold(None);
    farm.booting("i-golden", MINUTE).intent = None;
    farm.booting("i-ours", MINUTE).sight = Sight::CloudOnly;
    let stray = farm.booting("i-stray", 60 * MINUTE);
    stray.sight = Sight::CloudOnly;
    stray.pool = Some(name("gone"));
    farm.booting("i-hidden", 60 * MINUTE).sight = Sight::StoreOnly;
    farm.host("i-over", 1).state = InstanceState::Terminated;
    farm.intent("s1-6-0", 2);
    let memory = PoolMemory {
        surplus_since: Some(ago(10 * MINUTE)),
        ..PoolMemory::default()
    };
    farm.world.memory.insert(name("build"), memory);
    farm
}

fn instance<'f>(farm: &'f mut Farm, id: &str) -> &'f mut Instance {
    let mut all = farm.world.instances.iter_mut();
    all.find(|instance| instance.id.as_str() == id).unwrap()
}

fn end(plan: &mut Plan, id: &str, reason: LeaveReason) {
    plan.terminations.push(Termination {
        id: name(id),
        region: name("east"),
        reason,
    });
}

fn tell(plan: &mut Plan, id: &str, assignment: Assignment) {
    plan.assignments.push(Reassignment {
        id: name(id),
        assignment,
    });
}

fn leave(reason: LeaveReason) -> Assignment {
    Assignment::Quit {
        reason,
        since: ago(0),
    }
}

fn lose(plan: &mut Plan, id: &str) {
    plan.losses.push(Loss {
        id: name(id),
        interrupted: false,
        message: "gone".into(),
    });
}

#[test]
fn the_plan_that_is_spoilt_has_no_fault_and_does_a_bit_of_everything() {
    let farm = busy_farm();
    let plan = plan(&farm.world, &farm.config, 1);
    assert_eq!(check(&farm.world, &farm.config, &plan), [] as [String; 0]);
    let counts = [
        plan.launches.len(),
        plan.terminations.len(),
        plan.assignments.len(),
        plan.replays.len(),
        plan.adoptions.len(),
        plan.suspicions.len(),
        plan.losses.len(),
    ];
    assert_eq!(counts, [1, 3, 1, 1, 1, 2, 1], "{plan:#?}");
}

type Spoil = fn(&mut Farm, &mut Plan);

/// What is spoilt after the plan was made, and what is said.
const SPOILT: &[(Spoil, &str)] = &[
    // Limits.
    (
        |_, plan| plan.launches[0].count = 101,
        "pool test would have 101 instances (0 there or asked for, 101 launched by this plan), above pools.test.max (100)",
    ),
    (
        |farm, _| farm.pool("test").max = 3,
        "pool test would have 4 instances (0 there or asked for, 4 launched by this plan), above pools.test.max (3)",
    ),
    (
        |farm, _| farm.pool("test").max = 0,
        "above pools.test.max (0)",
    ),
    (
        |farm, _| farm.pool("test").max_step = 3,
        "pool test would launch 4 instances at once, above pools.test.max_step (3)",
    ),
    (
        |farm, _| farm.config.limits.max_instances = Some(17),
        "the fleet would have 18 instances (14 there or asked for, 4 launched by this plan), above limits.max_instances (17)",
    ),
    (
        |farm, _| farm.config.limits.max_instances = Some(0),
        "above limits.max_instances (0)",
    ),
    (
        |farm, _| {
            let east = farm.config.regions.get_mut(&name("east")).unwrap();
            east.max_instances = Some(17);
        },
        "region east would have 18 instances (14 there or asked for, 4 launched by this plan), above regions.east.max_instances (17)",
    ),
    (
        // A tag of an open launch that nobody carries: all of it is still to come.
        |farm, _| {
            farm.config.limits.max_instances = Some(18);
            farm.world.intents[0].request.count = 3;
        },
        "the fleet would have 19 instances",
    ),
    (
        |farm, plan| {
            farm.pool("test").capacity_type = CapacityType::OnDemand;
            on_demand(plan);
            farm.config.limits.max_on_demand = Some(3);
        },
        "on-demand capacity would have 4 instances (0 there or asked for, 4 launched by this plan), above limits.max_on_demand (3)",
    ),
    (
        |farm, plan| {
            farm.pool("test").on_demand_fallback = 3;
            on_demand(plan);
        },
        "pool test on demand would have 4 instances (0 there or asked for, 4 launched by this plan), above pools.test.on_demand_fallback (3)",
    ),
    // Money: 4 launches at 20 cents; the fleet has 12 instances at 10 cents and 2 asked for.
    (
        |farm, _| farm.pool("test").max_per_hour = Some(cents(79)),
        "pool test would cost $0.8000 per hour ($0.8000 added by this plan), above pools.test.max_per_hour ($0.7900)",
    ),
    (
        |farm, _| farm.config.limits.max_per_hour = Some(cents(219)),
        "the fleet would cost $2.2000 per hour ($0.8000 added by this plan), above limits.max_per_hour ($2.1900)",
    ),
    (
        |farm, _| {
            farm.world.spent_today.insert(name("test"), cents(100));
            farm.pool("test").max_per_day = Some(cents(100 + 12 * 80 - 1));
        },
        "pool test would cost $10.6000 by midnight UTC ($1.0000 spent, $0.8000 per hour), above pools.test.max_per_day ($10.5900)",
    ),
    (
        |farm, _| {
            farm.world.spent_today.insert(name("other"), cents(100));
            farm.config.limits.max_per_day = Some(cents(100 + 12 * 220 - 1));
        },
        "the fleet would cost $27.4000 by midnight UTC ($1.0000 spent, $2.2000 per hour), above limits.max_per_day ($27.3900)",
    ),
    // Launches.
    (
        |_, plan| plan.launches.push(plan.launches[0].clone()),
        "launch `s1-7-0` of pool test has the intent of another launch of this plan",
    ),
    (
        |_, plan| {
            let mut second = plan.launches[0].clone();
            second.intent = name("s1-7-1");
            plan.launches.push(second);
        },
        "launch `s1-7-1` of pool test is the second for several instances of image stable and spot capacity in east",
    ),
    (
        |farm, _| farm.world.intents[0].request.intent = name("s1-7-0"),
        "launch `s1-7-0` of pool test has the intent of a launch that is open",
    ),
    (
        |farm, _| instance(farm, "i-new").intent = Some(name("s1-7-0")),
        "launch `s1-7-0` has the intent of instance i-new, which exists",
    ),
    (
        |_, plan| plan.launches[0].intent = name("s2-7-0"),
        "launch `s2-7-0` of pool test has an intent that does not begin with `s1-7-`, so it may not be the first of its name",
    ),
    (
        |_, plan| plan.pass = crate::ids::PassId(8),
        "the plan is for pass 8 and the World for pass 7",
    ),
    (
        |_, plan| plan.launches[0].count = 0,
        "launch `s1-7-0` of pool test is for 0 instances",
    ),
    (
        |_, plan| plan.launches[0].choices.clear(),
        "launch `s1-7-0` of pool test has 0 choices: expected 1 to 60",
    ),
    (
        |_, plan| {
            let choice = plan.launches[0].choices[0].clone();
            plan.launches[0].choices.resize(61, choice);
        },
        "launch `s1-7-0` of pool test has 61 choices: expected 1 to 60",
    ),
    (
        |_, plan| {
            let choice = plan.launches[0].choices[0].clone();
            plan.launches[0].choices.push(choice);
        },
        "launch `s1-7-0` of pool test has big in east-a among its choices twice",
    ),
    (
        |_, plan| {
            plan.launches[0].choices.push(Choice {
                instance_type: name("big"),
                zone: name("west-a"),
                price: cents(24),
            });
        },
        "launch `s1-7-0` of pool test has big in west-a among its choices, which region east does not sell as spot",
    ),
    (
        |_, plan| plan.launches[0].choices[0].price = cents(1),
        "launch `s1-7-0` of pool test reckons big in east-a at $0.0100, and it costs $0.2000",
    ),
    (
        |farm, _| {
            farm.pool("test").types.remove(&name("big"));
        },
        "launch `s1-7-0` of pool test has big in east-a among its choices, which is none of pools.test.types",
    ),
    (
        |farm, _| farm.pool("test").max_price = Some(cents(9)),
        "launch `s1-7-0` of pool test has big in east-a at $0.2000 among its choices, above pools.test.max_price ($0.0900) for 2 units of work",
    ),
    (
        |_, plan| plan.launches[0].pool = name("gone"),
        "launch `s1-7-0` of pool gone is for a pool that is not configured",
    ),
    (
        |farm, _| farm.maintain("test"),
        "launch `s1-7-0` of pool test is under maintenance ordered by anna",
    ),
    (
        |farm, _| farm.world.maintenance.fleet = Some(order()),
        "launch `s1-7-0` of pool test is under maintenance ordered by anna",
    ),
    (
        |farm, _| farm.hold_source("test"),
        "launch `s1-7-0` of pool test is made while source buildbot holds the pool: no answer since 11:57",
    ),
    (
        |farm, _| {
            farm.world.regions.get_mut(&name("east")).unwrap().observed = false;
        },
        "launch `s1-7-0` of pool test is in region east, which was not observed",
    ),
    (
        |farm, _| {
            farm.config.regions.remove(&name("east"));
        },
        "launch `s1-7-0` of pool test is in region east, which is not configured",
    ),
    (
        |farm, _| farm.config.regions.get_mut(&name("east")).unwrap().weight = 0.0,
        "launch `s1-7-0` of pool test is in region east, and regions.east.weight is 0",
    ),
    (
        |farm, _| farm.pool("test").regions = vec![name("west")],
        "launch `s1-7-0` of pool test is in region east, which is none of pools.test.regions",
    ),
    (
        |_, plan| plan.launches[0].image_id = name("stable-west"),
        "launch `s1-7-0` of pool test has image id stable-west, and images.stable.ids.east is stable-east",
    ),
    (
        |farm, _| farm.share("test", &[("candidate", 100.0), ("stable", 0.0)]),
        "launch `s1-7-0` of pool test has image stable, which has no share of the pool",
    ),
    (
        |_, plan| on_demand(plan),
        "launch `s1-7-0` of pool test is for on_demand capacity, and pools.test.capacity_type is spot",
    ),
    (
        |farm, _| {
            let until = farm.world.now + jiff::SignedDuration::from_secs(1);
            let east = key("east", "a", "big", CapacityType::Spot);
            farm.short(ShortageKey::Offering(east), ShortReason::NoCapacity, until);
        },
        "launch `s1-7-0` of pool test asks where there is nothing until",
    ),
    (
        |farm, _| {
            let zone = ShortageKey::Addresses {
                zone: name("east-b"),
            };
            farm.short(zone, ShortReason::NoAddress, ago(0));
        },
        "4 instances are launched where one is to be tried first",
    ),
    (
        |farm, _| {
            let quota = ShortageKey::Quota {
                region: name("east"),
                capacity_type: CapacityType::Spot,
            };
            farm.short(quota, ShortReason::Quota, ago(0));
        },
        "4 instances are launched where one is to be tried first",
    ),
    (
        |farm, _| {
            let pool = ShortageKey::Pool {
                pool: name("test"),
                region: name("east"),
            };
            farm.short(pool, ShortReason::Image, ago(0));
        },
        "4 instances are launched where one is to be tried first",
    ),
    // What is sent again.
    (
        |_, plan| plan.replays.push(name("s1-6-0")),
        "launch `s1-6-0` is sent again twice",
    ),
    (
        |_, plan| plan.replays.push(name("s1-5-0")),
        "launch `s1-5-0` is sent again and is not open",
    ),
    (
        |farm, _| {
            let soon = farm.world.now + jiff::SignedDuration::from_millis(1);
            farm.world.intents[0].not_before = Some(soon);
        },
        "launch `s1-6-0` of pool build is sent again before",
    ),
    (
        |farm, _| {
            farm.world.regions.get_mut(&name("east")).unwrap().observed = false;
        },
        "launch `s1-6-0` of pool build is sent again in region east, which was not observed",
    ),
    (
        |farm, _| farm.maintain("build"),
        "launch `s1-6-0` of pool build is sent again under maintenance ordered by anna",
    ),
    // Terminations.
    (
        |_, plan| end(plan, "i-nobody", LeaveReason::Idle),
        "instance i-nobody is to be ended and is not in the World",
    ),
    (
        |_, plan| end(plan, "i-fenced", LeaveReason::Idle),
        "instance i-fenced of pool build is to be ended (Idle) twice",
    ),
    (
        |farm, _| instance(farm, "i-fenced").hold = hold(None),
        "instance i-fenced of pool build is to be ended (Idle), which anna holds (bug hunt)",
    ),
    (
        |farm, _| instance(farm, "i-late").intent = None,
        "instance i-late of pool build is to be ended (NeverRegistered), which is golden or foreign: it has no intent",
    ),
    (
        |_, plan| plan.terminations[0].region = name("west"),
        "in region west, and it is in east",
    ),
    (
        |farm, _| {
            farm.world.regions.get_mut(&name("east")).unwrap().observed = false;
        },
        "instance i-fenced of pool build is to be ended (Idle) in region east, which was not observed",
    ),
    (
        |_, plan| end(plan, "i-over", LeaveReason::Silent),
        "instance i-over of pool build is to be ended (Silent) and is terminated already",
    ),
    (
        |_, plan| end(plan, "i-busy", LeaveReason::Idle),
        "instance i-busy of pool build is to be ended (Idle), and was not told to quit",
    ),
    (
        |farm, _| {
            let host = instance(farm, "i-fenced").host.as_mut().unwrap();
            host.activity = HostActivity::Busy;
        },
        "instance i-fenced of pool build is to be ended (Idle), and its host says it is Busy",
    ),
    (
        |farm, _| {
            let host = instance(farm, "i-fenced").host.as_mut().unwrap();
            host.job = Some("compile".into());
        },
        "instance i-fenced of pool build is to be ended (Idle), and its host has job compile",
    ),
    (
        |farm, _| instance(farm, "i-fenced").host = None,
        "instance i-fenced of pool build is to be ended (Idle), and has no host that could have confirmed",
    ),
    (
        |_, plan| end(plan, "i-boot", LeaveReason::NeverStarted),
        "instance i-boot of pool build is to be ended (NeverStarted), 60s after its launch, within the launch_timeout of its pool",
    ),
    (
        |_, plan| end(plan, "i-boot", LeaveReason::NeverRegistered),
        "instance i-boot of pool build is to be ended (NeverRegistered), 60s after its launch, within the registration_timeout of its pool",
    ),
    (
        |_, plan| plan.terminations[1].reason = LeaveReason::NeverStarted,
        "instance i-late of pool build is to be ended (NeverStarted), and it has started",
    ),
    (
        |_, plan| end(plan, "i-busy", LeaveReason::NeverRegistered),
        "instance i-busy of pool build is to be ended (NeverRegistered), and its host has registered",
    ),
    (
        |_, plan| end(plan, "i-boot", LeaveReason::Silent),
        "instance i-boot of pool build is to be ended (Silent), and it has no host that could be silent",
    ),
    (
        |farm, _| {
            let host = instance(farm, "i-silent").host.as_mut().unwrap();
            host.heard_at = ago(10 * MINUTE);
        },
        "instance i-silent of pool build is to be ended (Silent), 600s after it was heard, within the silence_timeout of its pool",
    ),
    (
        |_, plan| end(plan, "i-busy", LeaveReason::Stray),
        "instance i-busy of pool build is to be ended (Stray), and it is no stray",
    ),
    (
        |_, plan| end(plan, "i-stray", LeaveReason::Stray),
        "instance i-stray of pool gone is to be ended (Stray), and was not suspected before",
    ),
    (
        |farm, _| farm.maintain("build"),
        "instance i-late of pool build is to be ended (NeverRegistered) under maintenance ordered by anna",
    ),
    (
        |farm, _| farm.config.limits.max_forced_terminations = 1,
        "2 instances are to be ended without their hosts' word, above limits.max_forced_terminations (1)",
    ),
    // Assignments.
    (
        |_, plan| tell(plan, "i-nobody", Assignment::GoOn),
        "instance i-nobody is told something and is not in the World",
    ),
    (
        |_, plan| tell(plan, "i-idle", leave(LeaveReason::Asked)),
        "instance i-idle of pool build is told two things",
    ),
    (
        |_, plan| tell(plan, "i-held", leave(LeaveReason::Asked)),
        "instance i-held of pool build is told something, which anna holds (bug hunt)",
    ),
    (
        |_, plan| tell(plan, "i-golden", leave(LeaveReason::Asked)),
        "instance i-golden of pool build is told something, which is golden or foreign: it has no intent",
    ),
    (
        |farm, plan| {
            instance(farm, "i-new").ended_at = Some(ago(5));
            tell(plan, "i-new", Assignment::GoOn);
        },
        "instance i-new of pool build is told to go on, and is being ended",
    ),
    (
        |_, plan| tell(plan, "i-fenced", Assignment::GoOn),
        "instance i-fenced of pool build is told to go on, and is being ended",
    ),
    (
        |farm, plan| {
            farm.maintain("build");
            tell(plan, "i-new", Assignment::GoOn);
        },
        "instance i-new of pool build is told to go on under maintenance ordered by anna",
    ),
    (
        |_, plan| {
            let drain = Assignment::Drain {
                reason: LeaveReason::Maintenance,
                since: ago(0),
            };
            tell(plan, "i-new", drain);
        },
        "instance i-new of pool build is told to drain for maintenance that nobody ordered",
    ),
    // Budgets.
    (
        |farm, _| farm.config.limits.max_leaving = 10.0,
        "pool build would have 2 of 6 hosts leaving (1 told so by this plan), above limits.max_leaving (10 %)",
    ),
    (
        |farm, _| farm.config.limits.max_leaving = 0.0,
        "above limits.max_leaving (0 %)",
    ),
    (
        |farm, _| farm.pool("build").min = 4,
        "pool build would keep 3 hosts, 1 told to leave by this plan, below pools.build.min (4)",
    ),
    (
        |farm, plan| {
            farm.pool("build").min = 5;
            plan.assignments[0].assignment = leave(LeaveReason::Drifted);
        },
        "pool build would keep 3 hosts, 1 told to leave by this plan, below pools.build.min (5)",
    ),
    (
        |farm, _| farm.hold_source("build"),
        "pool build tells 1 hosts to leave while a source holds it",
    ),
    // The sweep.
    (
        |_, plan| plan.adoptions.push(name("i-nobody")),
        "instance i-nobody is adopted and is not in the World",
    ),
    (
        |_, plan| plan.adoptions.push(name("i-new")),
        "instance i-new is adopted and the store knows it",
    ),
    (
        |farm, _| instance(farm, "i-ours").intent = None,
        "instance i-ours is adopted, which is golden or foreign: it has no intent",
    ),
    (
        |_, plan| lose(plan, "i-nobody"),
        "instance i-nobody is lost and is not in the World",
    ),
    (
        |_, plan| lose(plan, "i-new"),
        "instance i-new is lost, and the cloud shows it",
    ),
    (
        |_, plan| lose(plan, "i-hidden"),
        "instance i-hidden is lost and was not suspected before",
    ),
    (
        |farm, _| {
            farm.world.regions.get_mut(&name("east")).unwrap().observed = false;
        },
        "instance i-over is lost in region east, which was not observed",
    ),
    (
        |_, plan| {
            plan.suspicions.push(Suspicion {
                id: name("i-held"),
                suspected: true,
                message: "why not".into(),
            });
        },
        "instance i-held is suspected, which anna holds (bug hunt)",
    ),
];

/// Makes the launch one of on-demand capacity that is for sale.
fn on_demand(plan: &mut Plan) {
    let launch = &mut plan.launches[0];
    launch.capacity_type = CapacityType::OnDemand;
    launch.choices = vec![Choice {
        instance_type: name("small"),
        zone: name("east-a"),
        price: cents(40),
    }];
}

#[test]
fn each_way_to_spoil_a_plan_is_complained_about() {
    let mut silent = Vec::new();
    for (number, (spoil, expected)) in SPOILT.iter().enumerate() {
        let mut farm = busy_farm();
        let mut plan = plan(&farm.world, &farm.config, 1);
        spoil(&mut farm, &mut plan);
        let faults = check(&farm.world, &farm.config, &plan);
        if !faults.iter().any(|fault| fault.contains(expected)) {
            silent.push(format!("{number}: expected `{expected}`, got {faults:#?}"));
        }
    }
    assert!(silent.is_empty(), "{}", silent.join("\n"));
}

#[test]
fn every_kind_of_fault_there_is_has_been_provoked() {
    // Each `fault(` of the source speaks in words of its own; the table must bring up as many kinds
    // as there are calls, or one of them has never been seen.
    let kinds = include_str!("../check.rs")
        .matches("fault(format!(")
        .count();
    let provoked: BTreeSet<&str> = SPOILT.iter().map(|(_, expected)| *expected).collect();
    assert!(provoked.len() >= kinds, "{} of {kinds}", provoked.len());
}

#[test]
fn a_limit_that_was_broken_before_stops_no_plan_that_launches_nothing() {
    let mut farm = busy_farm();
    farm.demand("test", 0, 0);
    let plan = plan(&farm.world, &farm.config, 1);
    farm.config.limits.max_instances = Some(0);
    farm.config.limits.max_per_hour = Some(cents(0));
    assert_eq!(check(&farm.world, &farm.config, &plan), [] as [String; 0]);
}
