//! What holds for every plan, and both sides of each boundary.

mod model;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use super::farm::{Farm, MINUTE, ago, any_farm, cents, farm, hold, key, name, order};
use super::{Blocker, Fate, Plan, plan};
use crate::check::check;
use crate::cloud::{CapacityType, InstanceState, ShortReason};
use crate::ids::{InstanceId, PoolName};
use crate::world::{
    Assignment, HostActivity, Interruptions, LeaveReason, PoolMemory, ShortageKey, Sight,
};

fn planned(farm: &Farm) -> Plan {
    let plan = plan(&farm.world, &farm.config, 1);
    let faults = check(&farm.world, &farm.config, &plan);
    assert_eq!(faults, [] as [String; 0], "{plan:#?}");
    plan
}

/// Instances launched, by region and capacity type and image.
fn launched(plan: &Plan) -> Vec<(String, u32)> {
    let launches = plan.launches.iter().map(|launch| {
        let place = format!(
            "{} {} {} {}",
            launch.pool, launch.image, launch.region, launch.capacity_type
        );
        (place, launch.count)
    });
    launches.collect()
}

fn launching(plan: &Plan) -> u32 {
    plan.launches.iter().map(|launch| launch.count).sum()
}

fn blocked(plan: &Plan, pool: &str) -> Vec<(Blocker, u32)> {
    let pool = &plan.pools[&name::<PoolName>(pool)];
    pool.blocked
        .iter()
        .map(|blocked| (blocked.by, blocked.count))
        .collect()
}

fn told(plan: &Plan) -> Vec<(&str, &'static str)> {
    let changes = plan.assignments.iter();
    changes
        .map(|change| {
            let what = match &change.assignment {
                Assignment::GoOn => "go on",
                Assignment::Drain { .. } => "drain",
                Assignment::Quit { reason, .. } => word(*reason),
            };
            (change.id.as_str(), what)
        })
        .collect()
}

fn word(reason: LeaveReason) -> &'static str {
    match reason {
        LeaveReason::Idle => "idle",
        LeaveReason::Drifted => "drifted",
        LeaveReason::OverTarget => "over target",
        LeaveReason::Maintenance => "maintenance",
        LeaveReason::PoolRemoved => "pool removed",
        LeaveReason::UsedUp => "used up",
        LeaveReason::NeverStarted => "never started",
        LeaveReason::NeverRegistered => "never registered",
        LeaveReason::Silent => "silent",
        LeaveReason::Stray => "stray",
        LeaveReason::Asked => "asked",
    }
}

fn ended(plan: &Plan) -> Vec<(&str, &'static str)> {
    let ends = plan.terminations.iter();
    ends.map(|end| (end.id.as_str(), word(end.reason)))
        .collect()
}

fn surplus_since(farm: &mut Farm, seconds: i64) {
    let memory = PoolMemory {
        surplus_since: Some(ago(seconds)),
        ..PoolMemory::default()
    };
    farm.world.memory.insert(name("build"), memory);
}

fn quit(reason: LeaveReason, seconds: i64) -> Assignment {
    Assignment::Quit {
        reason,
        since: ago(seconds),
    }
}

// How many.

#[test]
fn a_farm_without_jobs_does_nothing() {
    let plan = planned(&farm());
    assert!(plan.launches.is_empty() && plan.assignments.is_empty());
}

#[test]
fn jobs_that_wait_get_hosts_where_they_are_cheapest() {
    let mut farm = farm();
    farm.demand("build", 7, 0);
    let plan = planned(&farm);
    assert_eq!(launched(&plan), [("build stable east spot".into(), 7)]);
    let launch = &plan.launches[0];
    // All of the region within half as much again of the best: both types in both zones.
    assert_eq!(launch.choices.len(), 4);
    assert_eq!(launch.intent.as_str(), "s1-7-0");
    assert_eq!(launch.image_id.as_str(), "stable-east");
    // Reserved by the dearest.
    assert_eq!(plan.bill, cents(7 * 20));
}

#[test]
fn what_was_asked_for_is_not_asked_for_again() {
    let mut farm = farm();
    farm.demand("build", 7, 0);
    farm.intent("s1-6-0", 4);
    for id in ["i-1", "i-2"] {
        farm.booting(id, MINUTE);
    }
    assert_eq!(launching(&planned(&farm)), 1);
    // Two of the four are there already: only the others are still to come.
    for instance in &mut farm.world.instances {
        instance.intent = Some(name("s1-6-0"));
    }
    assert_eq!(launching(&planned(&farm)), 3);
}

#[test]
fn a_jump_is_launched_in_steps() {
    let mut farm = farm();
    farm.pool("build").max_step = 20;
    farm.demand("build", 50, 0);
    let plan = planned(&farm);
    assert_eq!(launching(&plan), 20);
    assert_eq!(blocked(&plan, "build"), [(Blocker::Step, 30)]);
}

#[test]
fn the_maximum_counts_what_stops_and_zero_is_none() {
    let mut farm = farm();
    farm.demand("build", 50, 0);
    farm.pool("build").max = 6;
    farm.booting("i-1", MINUTE);
    farm.host("i-2", 5).state = InstanceState::Stopping;
    let plan = planned(&farm);
    assert_eq!(launching(&plan), 4);
    assert_eq!(blocked(&plan, "build"), [(Blocker::PoolMax, 45)]);
    farm.pool("build").max = 0;
    assert_eq!(launching(&planned(&farm)), 0);
}

#[test]
fn a_source_that_failed_holds_the_pool_minimum_included() {
    let mut farm = farm();
    farm.pool("build").min = 2;
    farm.demand("build", 9, 0);
    farm.host("i-1", 60 * MINUTE);
    surplus_since(&mut farm, 60 * MINUTE);
    farm.hold_source("build");
    let plan = planned(&farm);
    assert_eq!(launching(&plan), 0);
    assert_eq!(blocked(&plan, "build"), [(Blocker::Source, 8)]);
    assert_eq!(told(&plan), []);
    let memory = &plan.memory[&name::<PoolName>("build")];
    assert_eq!(memory.surplus_since, None);
}

#[test]
fn a_pool_that_does_not_come_up_grows_one_by_one_until_a_host_registers() {
    let mut farm = farm();
    farm.demand("build", 50, 0);
    farm.config.limits.max_forced_terminations = 0;
    for id in ["i-1", "i-2", "i-3"] {
        farm.booting(id, 20 * MINUTE).state = InstanceState::Running;
    }
    assert_eq!(launching(&planned(&farm)), 50, "three are no pattern");
    farm.booting("i-4", 20 * MINUTE).state = InstanceState::Running;
    let plan = planned(&farm);
    assert_eq!(launching(&plan), 1);
    let memory = plan.memory[&name::<PoolName>("build")].clone();
    assert_eq!(memory.repairing_since, Some(farm.world.now));
    // The dead are gone, and it is remembered.
    farm.world.instances.clear();
    farm.world.memory.insert(
        name("build"),
        PoolMemory {
            repairing_since: Some(ago(10 * MINUTE)),
            ..PoolMemory::default()
        },
    );
    assert_eq!(launching(&planned(&farm)), 1);
    farm.host("i-5", 5).launched_at = ago(9 * MINUTE);
    assert_eq!(launching(&planned(&farm)), 49);
}

#[test]
fn half_of_what_was_launched_is_enough() {
    let mut farm = farm();
    farm.demand("build", 50, 0);
    farm.config.limits.max_forced_terminations = 0;
    for id in ["i-1", "i-2"] {
        farm.booting(id, 20 * MINUTE).state = InstanceState::Running;
    }
    for id in ["i-3", "i-4"] {
        farm.busy(id).launched_at = ago(20 * MINUTE);
    }
    assert_eq!(launching(&planned(&farm)), 50);
}

// Where.

#[test]
fn a_full_region_gives_way_to_the_next() {
    let mut farm = farm();
    farm.demand("build", 7, 0);
    let east = farm.config.regions.get_mut(&name("east")).unwrap();
    east.max_instances = Some(5);
    farm.host("i-1", 5);
    let plan = planned(&farm);
    assert_eq!(
        launched(&plan),
        [
            ("build stable east spot".into(), 4),
            ("build stable west spot".into(), 2)
        ]
    );
    let west = farm.config.regions.get_mut(&name("west")).unwrap();
    west.max_instances = Some(0);
    let plan = planned(&farm);
    assert_eq!(launching(&plan), 4);
    assert_eq!(blocked(&plan, "build"), [(Blocker::RegionMax, 2)]);
}

#[test]
fn a_region_of_twice_the_weight_may_cost_twice_as_much() {
    let mut farm = farm();
    farm.demand("build", 1, 0);
    let west = farm.config.regions.get_mut(&name("west")).unwrap();
    west.weight = 1.19;
    assert_eq!(launched(&planned(&farm))[0].0, "build stable east spot");
    farm.config.regions.get_mut(&name("west")).unwrap().weight = 1.21;
    assert_eq!(launched(&planned(&farm))[0].0, "build stable west spot");
    farm.config.regions.get_mut(&name("west")).unwrap().weight = 0.0;
    assert_eq!(launched(&planned(&farm))[0].0, "build stable east spot");
}

#[test]
fn nothing_is_launched_where_nothing_is_seen() {
    let mut farm = farm();
    farm.demand("build", 3, 0);
    farm.world.regions.get_mut(&name("east")).unwrap().observed = false;
    let plan = planned(&farm);
    assert_eq!(launched(&plan), [("build stable west spot".into(), 3)]);
    assert_eq!(plan.faults.len(), 1);
    farm.world.regions.get_mut(&name("west")).unwrap().observed = false;
    let plan = planned(&farm);
    assert_eq!(blocked(&plan, "build"), [(Blocker::Region, 3)]);
}

#[test]
fn a_price_above_the_ceiling_is_not_paid() {
    let mut farm = farm();
    farm.demand("build", 1, 0);
    farm.pool("build").max_price = Some(cents(10));
    assert_eq!(launching(&planned(&farm)), 1);
    farm.pool("build").max_price = Some(cents(9));
    let plan = planned(&farm);
    assert_eq!(blocked(&plan, "build"), [(Blocker::NoOffering, 1)]);
    let candidate = &plan.pools[&name::<PoolName>("build")].candidates[0];
    let Fate::Lost { why } = &candidate.fate else {
        panic!("{candidate:?}")
    };
    assert_eq!(
        why,
        "$0.1000 per hour and unit of work is above pools.build.max_price ($0.0900)"
    );
}

#[test]
fn an_offering_that_interrupts_is_worth_less() {
    let mut farm = farm();
    farm.demand("build", 1, 0);
    let interrupt = |farm: &mut Farm, count| {
        farm.world.interruptions.clear();
        for zone in ["a", "b"] {
            for instance_type in ["small", "big"] {
                farm.world.interruptions.push(Interruptions {
                    key: key("east", zone, instance_type, CapacityType::Spot),
                    count,
                    instance_hours: 76.0,
                });
            }
        }
    };
    // 33 in 100 hours lose 16.5 % of the work: 10 / 0.835 is below 12, and 34 lose 17 %.
    interrupt(&mut farm, 33);
    assert_eq!(launched(&planned(&farm))[0].0, "build stable east spot");
    interrupt(&mut farm, 34);
    assert_eq!(launched(&planned(&farm))[0].0, "build stable west spot");
}

#[test]
fn a_shortage_excludes_until_it_ends_and_then_one_is_tried() {
    let mut farm = farm();
    farm.demand("build", 9, 0);
    farm.pool("build").regions = vec![name("east")];
    for zone in ["a", "b"] {
        let east = key("east", zone, "small", CapacityType::Spot);
        let until = farm.world.now + jiff::SignedDuration::from_millis(1);
        farm.short(ShortageKey::Offering(east), ShortReason::NoCapacity, until);
    }
    let plan = planned(&farm);
    assert_eq!(launched(&plan), [("build stable east spot".into(), 9)]);
    assert!(
        plan.launches[0]
            .choices
            .iter()
            .all(|choice| choice.instance_type.as_str() == "big")
    );
    // It ended: both are half open, and big is as good, so that nothing is tried.
    for shortage in &mut farm.world.shortages {
        shortage.until = farm.world.now;
    }
    assert_eq!(planned(&farm).launches.len(), 1);
    // Cheaper than what is left: one is tried, the others are launched as before.
    farm.config
        .pools
        .get_mut(&name("build"))
        .unwrap()
        .types
        .insert(name("small"), 1.5);
    let plan = planned(&farm);
    let counts: Vec<(u32, usize)> = plan
        .launches
        .iter()
        .map(|launch| (launch.count, launch.choices.len()))
        .collect();
    assert_eq!(counts, [(1, 1), (8, 2)]);
}

#[test]
fn what_an_open_launch_tries_is_not_tried_by_another() {
    let mut farm = farm();
    farm.demand("build", 9, 0);
    farm.pool("build").types.remove(&name("big"));
    farm.pool("build").regions = vec![name("east")];
    let quota = ShortageKey::Quota {
        region: name("east"),
        capacity_type: CapacityType::Spot,
    };
    farm.short(quota, ShortReason::Quota, ago(1));
    assert_eq!(
        launched(&planned(&farm)),
        [("build stable east spot".into(), 1)]
    );
    farm.intent("s1-6-0", 1);
    let plan = planned(&farm);
    assert_eq!(launching(&plan), 0);
    assert_eq!(blocked(&plan, "build"), [(Blocker::NoOffering, 8)]);
}

#[test]
fn on_demand_is_a_fallback_for_lack_of_capacity_and_not_for_interruptions() {
    let mut farm = farm();
    farm.demand("build", 9, 0);
    farm.pool("build").on_demand_fallback = 4;
    assert_eq!(
        launched(&planned(&farm)),
        [("build stable east spot".into(), 9)]
    );
    let later = farm.world.now + jiff::SignedDuration::from_mins(3);
    for reason in [ShortReason::Interrupted, ShortReason::NoCapacity] {
        farm.world.shortages.clear();
        for region in ["east", "west"] {
            for zone in ["a", "b"] {
                for instance_type in ["small", "big"] {
                    let key = key(region, zone, instance_type, CapacityType::Spot);
                    farm.short(ShortageKey::Offering(key), reason, later);
                }
            }
        }
        let plan = planned(&farm);
        if reason == ShortReason::Interrupted {
            assert_eq!(blocked(&plan, "build"), [(Blocker::NoOffering, 9)]);
        } else {
            assert_eq!(launched(&plan), [("build stable east on_demand".into(), 4)]);
            assert_eq!(blocked(&plan, "build"), [(Blocker::OnDemandMax, 5)]);
        }
    }
    farm.config.limits.max_on_demand = Some(3);
    assert_eq!(launching(&planned(&farm)), 3);
    farm.config.limits.max_on_demand = Some(0);
    assert_eq!(launching(&planned(&farm)), 0);
}

// Limits.

#[test]
fn a_fleet_limit_is_shared_in_proportion_to_what_is_wanted() {
    let mut farm = farm();
    farm.add_pool("lint");
    farm.add_pool("test");
    farm.demand("build", 30, 0);
    farm.demand("lint", 10, 0);
    farm.demand("test", 20, 0);
    farm.config.limits.max_instances = Some(12);
    let plan = planned(&farm);
    assert_eq!(
        launched(&plan),
        [
            ("build stable east spot".into(), 6),
            ("lint stable east spot".into(), 2),
            ("test stable east spot".into(), 4)
        ]
    );
    assert_eq!(blocked(&plan, "build"), [(Blocker::FleetMax, 24)]);
    farm.config.limits.max_instances = Some(0);
    assert_eq!(launching(&planned(&farm)), 0);
}

#[test]
fn money_is_reserved_by_the_dearest_choice() {
    let mut farm = farm();
    farm.demand("build", 9, 0);
    farm.pool("build").max_per_hour = Some(cents(60));
    let plan = planned(&farm);
    assert_eq!((launching(&plan), plan.bill), (3, cents(60)));
    assert_eq!(blocked(&plan, "build"), [(Blocker::MoneyPerHour, 6)]);
    farm.pool("build").max_per_hour = None;
    farm.config.limits.max_per_hour = Some(cents(59));
    assert_eq!(launching(&planned(&farm)), 2);
}

#[test]
fn the_days_cap_counts_what_is_spent_and_what_runs_until_midnight() {
    let mut farm = farm();
    farm.demand("build", 9, 0);
    farm.busy("i-1");
    farm.world.spent_today.insert(name("build"), cents(100));
    // Twelve hours are left: one host at 10 cents, launches at 20.
    farm.pool("build").max_per_day = Some(cents(100 + 12 * (10 + 3 * 20)));
    assert_eq!(launching(&planned(&farm)), 3);
    farm.pool("build").max_per_day = Some(cents(100 + 12 * (10 + 3 * 20) - 1));
    let plan = planned(&farm);
    assert_eq!(launching(&plan), 2);
    assert_eq!(blocked(&plan, "build"), [(Blocker::MoneyPerDay, 7)]);
    // A minute before midnight the same money is enough for all of them.
    farm.world.now = "2026-03-01T23:59:00Z".parse().unwrap();
    farm.world.instances.clear();
    assert_eq!(launching(&planned(&farm)), 9);
}

// Images.

#[test]
fn launches_bring_images_to_their_shares() {
    let mut farm = farm();
    farm.demand("build", 10, 10);
    for number in 0..10 {
        farm.busy(&format!("i-{number}"));
    }
    farm.share("build", &[("stable", 75.0), ("candidate", 25.0)]);
    let plan = planned(&farm);
    assert_eq!(
        launched(&plan),
        [
            ("build candidate east spot".into(), 5),
            ("build stable east spot".into(), 5)
        ]
    );
}

#[test]
fn an_image_is_launched_where_it_is() {
    let mut farm = farm();
    farm.demand("build", 10, 0);
    farm.share("build", &[("stable", 50.0), ("candidate", 50.0)]);
    let candidate = farm.config.images.get_mut(&name("candidate")).unwrap();
    candidate.ids.remove(&name("east"));
    let plan = planned(&farm);
    assert_eq!(
        launched(&plan),
        [
            ("build stable east spot".into(), 5),
            ("build candidate west spot".into(), 5)
        ]
    );
    assert_eq!(
        plan.faults,
        [
            "pool `build`: image `candidate` has no id in east, so it is not launched there: set `images.candidate.ids`"
        ]
    );
    for image in ["stable", "candidate"] {
        farm.config
            .images
            .get_mut(&name(image))
            .unwrap()
            .ids
            .clear();
    }
    assert_eq!(blocked(&planned(&farm), "build"), [(Blocker::NoImage, 10)]);
}

// Who leaves.

#[test]
fn a_surplus_leaves_after_a_while_of_it_and_of_idleness() {
    let mut farm = farm();
    farm.config.limits.max_leaving = 100.0;
    farm.pool("build").min = 1;
    farm.host("i-1", 10 * MINUTE + 1);
    farm.host("i-2", 10 * MINUTE);
    farm.host("i-3", 20 * MINUTE);
    farm.busy("i-4");
    assert_eq!(
        told(&planned(&farm)),
        [],
        "the surplus was not there before"
    );
    surplus_since(&mut farm, 5 * MINUTE - 1);
    assert_eq!(told(&planned(&farm)), []);
    surplus_since(&mut farm, 5 * MINUTE);
    assert_eq!(told(&planned(&farm)), [("i-1", "idle"), ("i-3", "idle")]);
    farm.pool("build").min = 3;
    assert_eq!(told(&planned(&farm)), [("i-3", "idle")], "the idlest first");
    farm.pool("build").min = 1;
    farm.config.limits.max_leaving = 25.0;
    assert_eq!(told(&planned(&farm)), [("i-3", "idle")], "one in four");
    farm.config.limits.max_leaving = 0.0;
    assert_eq!(told(&planned(&farm)), [], "0 is none");
}

#[test]
fn hosts_over_the_maximum_leave_at_once_those_with_a_job_last() {
    let mut farm = farm();
    farm.config.limits.max_leaving = 100.0;
    farm.busy("i-1");
    farm.host("i-2", 1);
    farm.host("i-3", 2);
    farm.pool("build").max = 1;
    assert_eq!(
        told(&planned(&farm)),
        [("i-2", "over target"), ("i-3", "over target")]
    );
    farm.pool("build").max = 0;
    assert_eq!(told(&planned(&farm)).len(), 3);
}

#[test]
fn drifted_hosts_are_replaced_a_part_at_a_time() {
    let mut farm = farm();
    farm.demand("build", 0, 2);
    for id in ["i-1", "i-2"] {
        farm.busy(id);
    }
    for id in ["i-3", "i-4", "i-5"] {
        farm.host(id, 1);
    }
    farm.share("build", &[("candidate", 100.0), ("stable", 0.0)]);
    // Half of five, rounded up; idle ones first.
    assert_eq!(
        told(&planned(&farm)),
        [("i-3", "drifted"), ("i-4", "drifted"), ("i-5", "drifted")]
    );
    // At the minimum the replacements come first.
    farm.pool("build").min = 5;
    let plan = planned(&farm);
    assert_eq!(told(&plan), []);
    assert_eq!(launched(&plan), [("build candidate east spot".into(), 3)]);
    // Where there is no room for them, one host makes it.
    farm.pool("build").max = 5;
    let plan = planned(&farm);
    assert_eq!(told(&plan), [("i-3", "drifted")]);
    assert_eq!(launching(&plan), 0);
}

#[test]
fn a_host_that_is_used_up_leaves() {
    let mut farm = farm();
    farm.pool("build").max_runs = Some(4);
    farm.host("i-1", 1).host.as_mut().unwrap().runs = 4;
    farm.host("i-2", 1).host.as_mut().unwrap().runs = 3;
    assert_eq!(told(&planned(&farm)), [("i-1", "used up")]);
}

#[test]
fn maintenance_drains_and_its_end_resumes() {
    let mut farm = farm();
    farm.demand("build", 5, 1);
    farm.host("i-1", 1);
    farm.busy("i-2");
    farm.booting("i-3", MINUTE);
    farm.host("i-4", 1).hold = hold(None);
    farm.maintain("build");
    let plan = planned(&farm);
    assert_eq!(
        told(&plan),
        [("i-1", "drain"), ("i-2", "drain"), ("i-3", "drain")]
    );
    assert_eq!(blocked(&plan, "build"), [(Blocker::Maintenance, 2)]);
    for instance in &mut farm.world.instances[..3] {
        instance.assignment = Assignment::Drain {
            reason: LeaveReason::Maintenance,
            since: ago(MINUTE),
        };
        if let Some(host) = &mut instance.host {
            host.activity = HostActivity::Draining;
        }
    }
    farm.world.maintenance.pools.clear();
    let plan = planned(&farm);
    assert_eq!(
        told(&plan),
        [("i-1", "go on"), ("i-2", "go on"), ("i-3", "go on")]
    );
    // They count again at once: what is launched is what is missing beside them.
    assert_eq!(launching(&plan), 2);
    let memory = plan.memory[&name::<PoolName>("build")].clone();
    for instance in &mut farm.world.instances[..3] {
        instance.assignment = Assignment::GoOn;
    }
    farm.world.memory.insert(name("build"), memory);
    assert_eq!(launching(&planned(&farm)), 2, "they have not asked yet");
}

#[test]
fn hosts_of_a_pool_that_is_gone_leave() {
    let mut farm = farm();
    farm.busy("i-1").pool = Some(name("gone"));
    farm.host("i-2", 1).pool = Some(name("gone"));
    farm.world.instances[1].hold = hold(None);
    assert_eq!(told(&planned(&farm)), [("i-1", "pool removed")]);
}

#[test]
fn a_host_that_was_told_to_quit_is_not_called_back() {
    let mut farm = farm();
    farm.demand("build", 3, 0);
    for id in ["i-1", "i-2", "i-3"] {
        farm.host(id, 1).assignment = quit(LeaveReason::Idle, MINUTE);
    }
    farm.world.instances[0].host.as_mut().unwrap().activity = HostActivity::Fenced;
    let plan = planned(&farm);
    assert_eq!(told(&plan), []);
    assert_eq!(ended(&plan), [("i-1", "idle")]);
    assert_eq!(launching(&plan), 3);
}

#[test]
fn a_host_that_is_fenced_by_a_quit_nobody_remembers_is_told_so_again() {
    let mut farm = farm();
    farm.host("i-1", 1);
    farm.host("i-2", 1).host.as_mut().unwrap().activity = HostActivity::Fenced;
    assert_eq!(told(&planned(&farm)), [("i-2", "asked")]);
    assert_eq!(ended(&planned(&farm)), [], "it has not confirmed this quit");
}

// Who is ended.

#[test]
fn a_host_is_ended_when_it_has_confirmed() {
    let mut farm = farm();
    for (id, activity) in [
        ("i-1", HostActivity::Fenced),
        ("i-2", HostActivity::Draining),
        ("i-3", HostActivity::Busy),
        ("i-4", HostActivity::Idle),
    ] {
        let instance = farm.host(id, 1);
        instance.assignment = quit(LeaveReason::OverTarget, MINUTE);
        instance.host.as_mut().unwrap().activity = activity;
    }
    assert_eq!(ended(&planned(&farm)), [("i-1", "over target")]);
    // What it said before it was told is no confirmation.
    farm.world.instances[0].host.as_mut().unwrap().heard_at = ago(MINUTE + 1);
    assert_eq!(ended(&planned(&farm)), []);
}

#[test]
fn what_does_not_come_up_is_ended_after_its_timeouts() {
    let mut farm = farm();
    farm.booting("i-1", 5 * MINUTE);
    farm.booting("i-2", 5 * MINUTE + 1);
    farm.booting("i-3", 15 * MINUTE).state = InstanceState::Running;
    farm.booting("i-4", 15 * MINUTE + 1).state = InstanceState::Running;
    farm.host("i-5", 1).host.as_mut().unwrap().heard_at = ago(10 * MINUTE);
    farm.host("i-6", 1).host.as_mut().unwrap().heard_at = ago(10 * MINUTE + 1);
    let all = [
        ("i-2", "never started"),
        ("i-4", "never registered"),
        ("i-6", "silent"),
    ];
    assert_eq!(ended(&planned(&farm)), all);
    // What surely has no job goes first.
    farm.config.limits.max_forced_terminations = 2;
    assert_eq!(ended(&planned(&farm)), all[..2]);
    farm.config.limits.max_forced_terminations = 0;
    let plan = planned(&farm);
    assert_eq!(ended(&plan), []);
    assert_eq!(
        plan.faults,
        [
            "3 instances are to be ended and wait for later passes: `limits.max_forced_terminations` is 0"
        ]
    );
}

#[test]
fn nothing_is_judged_in_a_region_that_is_not_seen_nor_under_maintenance() {
    let mut farm = farm();
    farm.booting("i-1", 60 * MINUTE).sight = Sight::Unobserved;
    farm.host("i-2", 1).host.as_mut().unwrap().heard_at = ago(60 * MINUTE);
    farm.world.instances[1].sight = Sight::Unobserved;
    farm.world.regions.get_mut(&name("east")).unwrap().observed = false;
    let plan = planned(&farm);
    assert!(plan.terminations.is_empty() && plan.losses.is_empty() && plan.suspicions.is_empty());
    for instance in &mut farm.world.instances {
        instance.sight = Sight::Both;
    }
    farm.world.regions.get_mut(&name("east")).unwrap().observed = true;
    farm.maintain("build");
    assert_eq!(ended(&planned(&farm)), []);
    farm.world.maintenance.pools.clear();
    assert_eq!(ended(&planned(&farm)).len(), 2);
}

#[test]
fn a_termination_without_effect_is_repeated() {
    let mut farm = farm();
    farm.config.limits.max_forced_terminations = 0;
    farm.booting("i-1", 60 * MINUTE).ended_at = Some(ago(MINUTE));
    assert_eq!(ended(&planned(&farm)), [("i-1", "never started")]);
    farm.world.instances[0].state = InstanceState::Stopping;
    assert_eq!(ended(&planned(&farm)), []);
}

// The sweep.

fn suspected(plan: &Plan) -> Vec<(&str, bool)> {
    let suspicions = plan.suspicions.iter();
    suspicions
        .map(|suspicion| (suspicion.id.as_str(), suspicion.suspected))
        .collect()
}

fn lost(plan: &Plan) -> Vec<(&str, bool)> {
    let losses = plan.losses.iter();
    losses
        .map(|loss| (loss.id.as_str(), loss.interrupted))
        .collect()
}

#[test]
fn what_carries_our_tags_is_adopted_and_a_stray_is_ended_at_the_second_look() {
    let mut farm = farm();
    farm.booting("i-1", MINUTE);
    farm.booting("i-2", MINUTE).pool = Some(name("gone"));
    farm.booting("i-3", MINUTE).pool = None;
    farm.booting("i-4", MINUTE).intent = None;
    farm.booting("i-5", MINUTE).pool = Some(name("gone"));
    farm.booting("i-6", MINUTE);
    for instance in &mut farm.world.instances {
        instance.sight = Sight::CloudOnly;
    }
    for held in [4, 5] {
        farm.world.instances[held].hold =
            hold(Some(farm.world.now + jiff::SignedDuration::from_secs(1)));
    }
    let plan = planned(&farm);
    assert_eq!(plan.adoptions, [name::<InstanceId>("i-1")]);
    assert_eq!(suspected(&plan), [("i-2", true), ("i-3", true)]);
    assert_eq!(ended(&plan), []);
    for stray in [1, 2] {
        farm.world.instances[stray].suspected_at = Some(ago(119));
    }
    assert_eq!(ended(&planned(&farm)), []);
    farm.world.instances[1].suspected_at = Some(ago(120));
    assert_eq!(ended(&planned(&farm)), [("i-2", "stray")]);
    // A hold that has expired is none.
    for held in [4, 5] {
        farm.world.instances[held].hold = hold(Some(farm.world.now));
    }
    let plan = planned(&farm);
    assert_eq!(plan.adoptions.len(), 2);
    assert_eq!(suspected(&plan), [("i-5", true)]);
}

#[test]
fn what_is_adopted_late_gets_its_time_to_register() {
    let mut farm = farm();
    let instance = farm.booting("i-1", 60 * MINUTE);
    instance.state = InstanceState::Running;
    instance.sight = Sight::CloudOnly;
    let plan = planned(&farm);
    assert_eq!(plan.adoptions.len(), 1);
    assert_eq!(suspected(&plan), [("i-1", true)]);
    let instance = &mut farm.world.instances[0];
    instance.sight = Sight::Both;
    instance.suspected_at = Some(ago(15 * MINUTE));
    let plan = planned(&farm);
    assert_eq!((ended(&plan), suspected(&plan)), (vec![], vec![]));
    farm.world.instances[0].suspected_at = Some(ago(15 * MINUTE + 1));
    assert_eq!(ended(&planned(&farm)), [("i-1", "never registered")]);
}

#[test]
fn what_the_cloud_does_not_show_is_lost_at_the_second_look() {
    let mut farm = farm();
    farm.booting("i-1", 5 * MINUTE - 1);
    farm.booting("i-2", 5 * MINUTE);
    farm.booting("i-3", 60 * MINUTE).suspected_at = Some(ago(119));
    farm.booting("i-4", 60 * MINUTE).suspected_at = Some(ago(120));
    farm.host("i-5", 1).suspected_at = Some(ago(600));
    for instance in &mut farm.world.instances {
        instance.sight = Sight::StoreOnly;
    }
    farm.booting("i-6", MINUTE).suspected_at = Some(ago(600));
    let plan = planned(&farm);
    assert_eq!(lost(&plan), [("i-4", false)]);
    assert_eq!(
        suspected(&plan),
        [("i-2", true), ("i-5", false), ("i-6", false)]
    );
    assert_eq!(ended(&plan), []);
}

#[test]
fn what_the_cloud_says_is_over_is_lost_at_once() {
    let mut farm = farm();
    farm.host("i-1", 1);
    farm.host("i-2", 1).interrupted = true;
    farm.host("i-3", 1).host.as_mut().unwrap().interruption_at = Some(ago(30));
    let instance = farm.host("i-4", 1);
    instance.interrupted = true;
    instance.ended_at = Some(ago(30));
    for instance in &mut farm.world.instances {
        instance.state = InstanceState::Terminated;
    }
    let plan = planned(&farm);
    assert_eq!(
        lost(&plan),
        [("i-1", false), ("i-2", true), ("i-3", true), ("i-4", false)]
    );
}

#[test]
fn an_open_launch_is_sent_again_when_its_time_has_come() {
    let mut farm = farm();
    farm.intent("s1-6-0", 1);
    farm.intent("s1-6-1", 1).not_before = Some(farm.world.now);
    let soon = farm.world.now + jiff::SignedDuration::from_millis(1);
    farm.intent("s1-6-2", 1).not_before = Some(soon);
    let replays = |farm: &Farm| -> Vec<String> {
        let plan = planned(farm);
        plan.replays.iter().map(ToString::to_string).collect()
    };
    assert_eq!(replays(&farm), ["s1-6-0", "s1-6-1"]);
    farm.world.maintenance.fleet = Some(order());
    assert_eq!(replays(&farm), [] as [String; 0]);
    farm.world.maintenance.fleet = None;
    farm.world.regions.get_mut(&name("east")).unwrap().observed = false;
    assert_eq!(replays(&farm), [] as [String; 0]);
}

// What holds for every farm.

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn no_plan_breaks_a_rule(farm in any_farm(), seed: u64) {
        let plan = plan(&farm.world, &farm.config, seed);
        let faults = check(&farm.world, &farm.config, &plan);
        prop_assert!(faults.is_empty(), "{:#?}\n{:#?}", faults, plan);
    }

    #[test]
    fn a_plan_follows_from_world_configuration_and_seed_in_whatever_order(farm in any_farm(), seed: u64) {
        let first = plan(&farm.world, &farm.config, seed);
        let mut world = farm.world.clone();
        let mut rng = StdRng::seed_from_u64(seed);
        world.instances.shuffle(&mut rng);
        world.intents.shuffle(&mut rng);
        world.offerings.shuffle(&mut rng);
        world.shortages.shuffle(&mut rng);
        world.interruptions.shuffle(&mut rng);
        for shares in world.shares.values_mut() {
            shares.shuffle(&mut rng);
        }
        prop_assert_eq!(plan(&world, &farm.config, seed), first);
    }

    #[test]
    fn a_plan_survives_being_written_and_read(farm in any_farm()) {
        let plan = plan(&farm.world, &farm.config, 1);
        let text = serde_json::to_string(&plan).unwrap();
        prop_assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }
}
