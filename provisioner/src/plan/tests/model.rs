//! A farm that does what plans say, pass after pass: does it come to rest?

use jiff::SignedDuration;
use proptest::prelude::*;

use super::super::farm::{Farm, farm, name};
use super::super::{Plan, plan};
use crate::check::check;
use crate::cloud::InstanceState;
use crate::ids::PassId;
use crate::world::{Assignment, HostActivity, HostView, Instance, Sight};

/// Passes from the launch of an instance to the registration of its host.
const BOOT: i64 = 3;

/// Passes in which every farm comes to rest: `surplus_delay` and `idle_timeout` are 15 of them, a
/// pool of a hundred leaves or is replaced in seven halves, and each half waits for the next.
const REST: usize = 150;

/// A farm whose hosts take `jobs` jobs that never end, one pass a minute.
struct Model {
    farm: Farm,
    jobs: u32,
}

/// What a pass did to the fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Done {
    launched: usize,
    told: usize,
    ended: usize,
}

impl Model {
    fn new(mut farm: Farm, jobs: u32) -> Self {
        for instance in &mut farm.world.instances {
            instance.assignment = Assignment::GoOn;
        }
        let mut model = Self { farm, jobs };
        model.work();
        model
    }

    fn host(&self, activity: HostActivity) -> HostView {
        HostView {
            registered_at: self.farm.world.now,
            heard_at: self.farm.world.now,
            activity,
            since: self.farm.world.now,
            job: None,
            runs: 0,
            interruption_at: None,
        }
    }

    /// Hosts do as they are told, and take jobs if they may.
    fn work(&mut self) {
        let now = self.farm.world.now;
        let mut running = 0;
        for instance in &mut self.farm.world.instances {
            let Some(host) = &mut instance.host else {
                continue;
            };
            host.heard_at = now;
            let works = host.job.is_some();
            let activity = match (&instance.assignment, works) {
                (_, true) => HostActivity::Busy,
                (Assignment::GoOn, false) => HostActivity::Idle,
                (Assignment::Drain { .. }, false) => HostActivity::Draining,
                (Assignment::Quit { .. }, false) => HostActivity::Fenced,
            };
            if host.activity != activity {
                host.activity = activity;
                host.since = now;
            }
            running += u32::from(works);
        }
        for instance in &mut self.farm.world.instances {
            if let Some(host) = &mut instance.host
                && host.activity == HostActivity::Idle
                && running < self.jobs
            {
                host.activity = HostActivity::Busy;
                host.job = Some("for ever".into());
                host.since = now;
                running += 1;
            }
        }
        let pending = self.jobs.saturating_sub(running);
        self.farm.demand("build", pending, running);
    }

    /// Plans, checks, and does it.
    fn pass(&mut self, seed: u64) -> Done {
        let plan = plan(&self.farm.world, &self.farm.config, seed);
        let faults = check(&self.farm.world, &self.farm.config, &plan);
        assert_eq!(faults, [] as [String; 0], "{plan:#?}");
        self.apply(&plan);
        Done {
            launched: plan.launches.len(),
            told: plan.assignments.len(),
            ended: plan.terminations.len() + plan.losses.len(),
        }
    }

    fn apply(&mut self, plan: &Plan) {
        let world = &mut self.farm.world;
        for change in &plan.assignments {
            let mut all = world.instances.iter_mut();
            let instance = all.find(|instance| instance.id == change.id).unwrap();
            instance.assignment = change.assignment.clone();
        }
        let over = |instance: &Instance| {
            plan.terminations.iter().any(|end| end.id == instance.id)
                || plan.losses.iter().any(|loss| loss.id == instance.id)
        };
        world.instances.retain(|instance| !over(instance));
        world.memory = plan.memory.clone();
        for launch in &plan.launches {
            for number in 0..launch.count {
                let choice = &launch.choices[0];
                world.instances.push(Instance {
                    id: name(&format!("i-{}-{number:03}", launch.intent)),
                    offering: crate::cloud::OfferingKey {
                        region: launch.region.clone(),
                        zone: choice.zone.clone(),
                        instance_type: choice.instance_type.clone(),
                        capacity_type: launch.capacity_type,
                    },
                    intent: Some(launch.intent.clone()),
                    pool: Some(launch.pool.clone()),
                    image: Some(launch.image.clone()),
                    image_id: Some(launch.image_id.clone()),
                    price: choice.price,
                    launched_at: world.now,
                    sight: Sight::Both,
                    state: InstanceState::Pending,
                    interrupted: false,
                    host: None,
                    assignment: Assignment::GoOn,
                    hold: None,
                    suspected_at: None,
                    ended_at: None,
                });
            }
        }
        world.pass = PassId(world.pass.0 + 1);
        world.now += SignedDuration::from_mins(1);
        let booted = world.now - SignedDuration::from_mins(BOOT);
        let view = self.host(HostActivity::Idle);
        for instance in &mut self.farm.world.instances {
            if instance.host.is_none() && instance.launched_at <= booted {
                instance.state = InstanceState::Running;
                instance.host = Some(view.clone());
            }
        }
        self.work();
    }

    fn hosts(&self) -> u32 {
        u32::try_from(self.farm.world.instances.len()).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn with_constant_demand_a_farm_comes_to_rest(
        jobs in 0_u32..60, min in 0_u32..10, above in 0_u32..60, hosts in 0_u32..40,
        max_step in 1_u32..30, ratio in prop::sample::select(vec![0.5, 1.0, 2.0]),
        fleet in prop::option::of(0_u32..60), east in prop::option::of(0_u32..30),
        candidate in prop::option::of(0_u32..=10), leaving in 1_u32..=100, seed: u64,
    ) {
        let mut farm = farm();
        let pool = farm.pool("build");
        (pool.min, pool.max, pool.max_step, pool.ratio) = (min, min + above, max_step, ratio);
        farm.config.limits.max_instances = fleet;
        farm.config.limits.max_leaving = f64::from(leaving);
        farm.config.regions.get_mut(&name("east")).unwrap().max_instances = east;
        if let Some(tenths) = candidate {
            let percentage = f64::from(tenths) * 10.0;
            farm.share("build", &[("candidate", percentage), ("stable", 100.0 - percentage)]);
        }
        for number in 0..hosts {
            farm.host(&format!("i-{number:03}"), 1);
        }
        let mut model = Model::new(farm, jobs);
        for pass in 0..REST {
            model.pass(seed ^ pass as u64);
        }
        for pass in 0..20 {
            let done = model.pass(seed ^ pass);
            // Jobs never end, so who was told to leave at work stays on its way out.
            prop_assert_eq!(done, Done::default());
        }
        prop_assert!(model.hosts() <= (min + above).max(hosts));
        if fleet.is_none() && east.is_none() {
            prop_assert!(model.hosts() >= min, "{} hosts", model.hosts());
        }
    }

    #[test]
    fn the_pass_after_a_launch_launches_and_ends_nothing(jobs in 0_u32..=50, min in 0_u32..10, seed: u64) {
        let mut farm = farm();
        farm.pool("build").min = min;
        let mut model = Model::new(farm, jobs);
        let first = model.pass(seed);
        prop_assert_eq!(first.launched > 0, jobs > 0 || min > 0);
        for _ in 0..10 {
            prop_assert_eq!(model.pass(seed), Done::default());
        }
        prop_assert_eq!(model.hosts(), jobs.max(min).min(100));
    }
}

#[test]
fn a_rollback_replaces_every_host_and_then_rests() {
    let mut farm = farm();
    farm.pool("build").min = 8;
    farm.pool("build").max = 12;
    for number in 0..8 {
        farm.host(&format!("i-{number}"), 1).image = Some(name("candidate"));
    }
    let mut model = Model::new(farm, 0);
    let mut least = u32::MAX;
    for pass in 0..60 {
        model.pass(pass);
        let up =
            model.farm.world.instances.iter().filter(|instance| {
                instance.host.is_some() && instance.assignment == Assignment::GoOn
            });
        least = least.min(u32::try_from(up.count()).unwrap());
    }
    assert!(least >= 8, "never below the minimum: {least}");
    let images = model.farm.world.instances.iter();
    assert!(images.clone().count() == 8);
    assert!(
        images
            .clone()
            .all(|instance| instance.image == Some(name("stable")))
    );
    assert_eq!(model.pass(60), Done::default());
}
