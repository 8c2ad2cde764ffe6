//! Whether a plan may be carried out: every rule that no plan may break, counted anew.
//!
//! This is written apart from the planner on purpose, and shares no counting with it: its own walk
//! over World and Plan, its own sums. A fault in the planner that launches too many, or ends what
//! works, would have to be made twice in different words to pass. Any fault stops the pass: nothing
//! of the plan is done, and a person is told.
//!
//! A limit that was broken before (somebody lowered it, a price rose) is no fault of a plan that
//! launches nothing under it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::cloud::{CapacityType, InstanceState, LaunchRequest, Offering};
use crate::config::{Config, PoolSettings};
use crate::ids::{ImageName, InstanceId, InstanceType, IntentId, PoolName, Region, Zone};
use crate::money::Money;
use crate::plan::{Plan, Reassignment, Termination};
use crate::world::{Assignment, HostActivity, Instance, LeaveReason, ShortageKey, Sight, World};

/// Most choices in one launch: the cloud refuses longer requests.
const MOST_CHOICES: usize = 60;

/// Least time between suspecting a stray and ending it.
const LEAST_SUSPICION: Duration = Duration::from_secs(60);

/// What no plan may break and this one does: one sentence for each, with pool, figures and key.
#[must_use]
pub fn check(world: &World, config: &Config, plan: &Plan) -> Vec<String> {
    let mut check = Check {
        world,
        config,
        plan,
        by_id: world.instances.iter().map(|i| (&i.id, i)).collect(),
        faults: Vec::new(),
    };
    check.counts();
    check.launches();
    check.shortages();
    check.replays();
    check.terminations();
    check.assignments();
    check.leaving();
    check.sightings();
    check.faults
}

struct Check<'a> {
    world: &'a World,
    config: &'a Config,
    plan: &'a Plan,
    by_id: HashMap<&'a InstanceId, &'a Instance>,
    faults: Vec<String>,
}

/// What is there, what is asked for, and what the plan adds, in one scope.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    there: u32,
    added: u32,
    hourly: Money,
    hourly_added: Money,
}

impl Sum {
    fn add(&mut self, count: u32, hourly: Money, by_plan: bool) {
        if by_plan {
            self.added += count;
            self.hourly_added += hourly;
        } else {
            self.there += count;
            self.hourly += hourly;
        }
    }
}

impl<'a> Check<'a> {
    fn fault(&mut self, text: String) {
        self.faults.push(text);
    }

    /// Numbers and money.
    fn counts(&mut self) {
        let mut fleet = Sum::default();
        let mut on_demand = Sum::default();
        let mut regions: BTreeMap<&Region, Sum> = BTreeMap::new();
        let mut pools: BTreeMap<&PoolName, Sum> = BTreeMap::new();
        let mut fallback: BTreeMap<&PoolName, Sum> = BTreeMap::new();
        let mut enter = |pool: Option<&'a PoolName>,
                         region: &'a Region,
                         capacity: CapacityType,
                         count: u32,
                         hourly: Money,
                         by_plan: bool| {
            fleet.add(count, hourly, by_plan);
            regions
                .entry(region)
                .or_default()
                .add(count, hourly, by_plan);
            if let Some(pool) = pool {
                pools.entry(pool).or_default().add(count, hourly, by_plan);
            }
            if capacity == CapacityType::OnDemand {
                on_demand.add(count, hourly, by_plan);
                if let Some(pool) = pool {
                    fallback
                        .entry(pool)
                        .or_default()
                        .add(count, hourly, by_plan);
                }
            }
        };
        let open = self.world.intents.iter();
        let mut arrived: HashMap<&IntentId, u32> =
            open.map(|intent| (&intent.request.intent, 0)).collect();
        for instance in &self.world.instances {
            if !arrived.is_empty()
                && let Some(intent) = &instance.intent
                && let Some(count) = arrived.get_mut(intent)
            {
                *count += 1;
            }
            if instance.state != InstanceState::Terminated {
                let offering = &instance.offering;
                let pool = instance.pool.as_ref().filter(|_| instance.intent.is_some());
                enter(
                    pool,
                    &offering.region,
                    offering.capacity_type,
                    1,
                    instance.price,
                    false,
                );
            }
        }
        let mut request = |request: &'a LaunchRequest, count: u32, by_plan| {
            let price = request.choices.iter().map(|choice| choice.price).max();
            let hourly = price.unwrap_or_default().times(count);
            let LaunchRequest {
                pool,
                region,
                capacity_type,
                ..
            } = request;
            enter(Some(pool), region, *capacity_type, count, hourly, by_plan);
        };
        for intent in &self.world.intents {
            let here = arrived[&intent.request.intent];
            request(
                &intent.request,
                intent.request.count.saturating_sub(here),
                false,
            );
        }
        for launch in &self.plan.launches {
            request(launch, launch.count, true);
        }

        let limits = &self.config.limits;
        self.number(
            "the fleet",
            "limits.max_instances",
            limits.max_instances,
            fleet,
        );
        self.number(
            "on-demand capacity",
            "limits.max_on_demand",
            limits.max_on_demand,
            on_demand,
        );
        let spent: Money = self.world.spent_today.values().copied().sum();
        let caps = (limits.max_per_hour, limits.max_per_day);
        self.money("the fleet", "limits", caps, fleet, spent);
        for (region, sum) in regions {
            let settings = self.config.regions.get(region);
            let max = settings.and_then(|settings| settings.max_instances);
            self.number(
                &format!("region {region}"),
                &format!("regions.{region}.max_instances"),
                max,
                sum,
            );
        }
        for (pool, sum) in pools {
            let Some(settings) = self.config.pools.get(pool) else {
                continue;
            };
            let name = format!("pool {pool}");
            self.number(&name, &format!("pools.{pool}.max"), Some(settings.max), sum);
            if sum.added > settings.max_step {
                self.fault(format!(
                    "{name} would launch {} instances at once, above pools.{pool}.max_step ({})",
                    sum.added, settings.max_step
                ));
            }
            let spent = self
                .world
                .spent_today
                .get(pool)
                .copied()
                .unwrap_or_default();
            let caps = (settings.max_per_hour, settings.max_per_day);
            self.money(&name, &format!("pools.{pool}"), caps, sum, spent);
            let on_demand = fallback.get(pool).copied().unwrap_or_default();
            if settings.capacity_type == CapacityType::Spot {
                self.number(
                    &format!("{name} on demand"),
                    &format!("pools.{pool}.on_demand_fallback"),
                    Some(settings.on_demand_fallback),
                    on_demand,
                );
            }
        }
    }

    fn number(&mut self, scope: &str, key: &str, max: Option<u32>, sum: Sum) {
        if let Some(max) = max
            && sum.added > 0
            && u64::from(sum.there) + u64::from(sum.added) > u64::from(max)
        {
            self.fault(format!(
                "{scope} would have {} instances ({} there or asked for, {} launched by this plan), above {key} ({max})",
                u64::from(sum.there) + u64::from(sum.added),
                sum.there,
                sum.added
            ));
        }
    }

    fn money(
        &mut self,
        scope: &str,
        keys: &str,
        (per_hour, per_day): (Option<Money>, Option<Money>),
        sum: Sum,
        spent: Money,
    ) {
        if sum.added == 0 {
            return;
        }
        let hourly = sum.hourly + sum.hourly_added;
        if let Some(max) = per_hour.filter(|max| hourly > *max) {
            self.fault(format!(
                "{scope} would cost {hourly} per hour ({} added by this plan), above {keys}.max_per_hour ({max})",
                sum.hourly_added
            ));
        }
        let today = spent + hourly.over(rest_of_day(self.world.now));
        if let Some(max) = per_day.filter(|max| today > *max) {
            self.fault(format!(
                "{scope} would cost {today} by midnight UTC ({spent} spent, {hourly} per hour), above {keys}.max_per_day ({max})"
            ));
        }
    }

    /// What each launch must be like.
    fn launches(&mut self) {
        let offerings: HashMap<(&Region, &Zone, &InstanceType, CapacityType), &Offering> = self
            .world
            .offerings
            .iter()
            .map(|offering| {
                let key = &offering.key;
                (
                    (
                        &key.region,
                        &key.zone,
                        &key.instance_type,
                        key.capacity_type,
                    ),
                    offering,
                )
            })
            .collect();
        let known: HashSet<&IntentId> = self
            .world
            .intents
            .iter()
            .map(|intent| &intent.request.intent)
            .collect();
        let mut fresh: HashSet<&IntentId> = HashSet::new();
        let mut prefix = format!("{}-{}-", self.world.store, self.world.pass);
        if self.plan.pass != self.world.pass {
            self.fault(format!(
                "the plan is for pass {} and the World for pass {}",
                self.plan.pass, self.world.pass
            ));
            prefix.clear();
        }
        let mut places: BTreeMap<(&PoolName, &ImageName, &Region, CapacityType), u32> =
            BTreeMap::new();
        for launch in &self.plan.launches {
            let name = format!("launch `{}` of pool {}", launch.intent, launch.pool);
            if !fresh.insert(&launch.intent) {
                self.fault(format!(
                    "{name} has the intent of another launch of this plan"
                ));
            }
            if known.contains(&launch.intent) {
                self.fault(format!("{name} has the intent of a launch that is open"));
            }
            if !launch.intent.as_str().starts_with(&prefix) {
                self.fault(format!(
                    "{name} has an intent that does not begin with `{prefix}`, so it may not be the first of its name"
                ));
            }
            if launch.count == 0 {
                self.fault(format!("{name} is for 0 instances"));
            }
            let place = (
                &launch.pool,
                &launch.image,
                &launch.region,
                launch.capacity_type,
            );
            *places.entry(place).or_default() += u32::from(launch.count > 1);
            if places[&place] > 1 {
                self.fault(format!(
                    "{name} is the second for several instances of image {} and {} capacity in {}",
                    launch.image, launch.capacity_type, launch.region
                ));
            }
            self.choices(&name, launch, &offerings);
            self.place(&name, launch);
        }
        self.used_before(&fresh);
    }

    fn used_before(&mut self, fresh: &HashSet<&IntentId>) {
        if fresh.is_empty() {
            return;
        }
        let mut used: Vec<String> = Vec::new();
        for instance in &self.world.instances {
            if let Some(intent) = instance.intent.as_ref().filter(|id| fresh.contains(id)) {
                used.push(format!(
                    "launch `{intent}` has the intent of instance {}, which exists",
                    instance.id
                ));
            }
        }
        self.faults.extend(used);
    }

    fn choices(
        &mut self,
        name: &str,
        launch: &LaunchRequest,
        offerings: &HashMap<(&Region, &Zone, &InstanceType, CapacityType), &Offering>,
    ) {
        if launch.choices.is_empty() || launch.choices.len() > MOST_CHOICES {
            self.fault(format!(
                "{name} has {} choices: expected 1 to {MOST_CHOICES}",
                launch.choices.len()
            ));
        }
        let mut seen: BTreeSet<(&Zone, &InstanceType)> = BTreeSet::new();
        for choice in &launch.choices {
            let what = format!("{} in {}", choice.instance_type, choice.zone);
            if !seen.insert((&choice.zone, &choice.instance_type)) {
                self.fault(format!("{name} has {what} among its choices twice"));
            }
            let key = (
                &launch.region,
                &choice.zone,
                &choice.instance_type,
                launch.capacity_type,
            );
            match offerings.get(&key) {
                None => self.fault(format!(
                    "{name} has {what} among its choices, which region {} does not sell as {}",
                    launch.region, launch.capacity_type
                )),
                Some(offering) if offering.price != choice.price => self.fault(format!(
                    "{name} reckons {what} at {}, and it costs {}",
                    choice.price, offering.price
                )),
                Some(_) => {}
            }
            let Some(pool) = self.config.pools.get(&launch.pool) else {
                continue;
            };
            let Some(performance) = pool.types.get(&choice.instance_type) else {
                self.fault(format!(
                    "{name} has {what} among its choices, which is none of pools.{}.types",
                    launch.pool
                ));
                continue;
            };
            if let Some(max) = pool.max_price
                && choice.price.dollars() > max.dollars() * performance * (1.0 + 1e-9)
            {
                self.fault(format!(
                    "{name} has {what} at {} among its choices, above pools.{}.max_price ({max}) for {performance} units of work",
                    choice.price, launch.pool
                ));
            }
        }
    }

    /// Where, as what, and whether at all.
    fn place(&mut self, name: &str, launch: &LaunchRequest) {
        let LaunchRequest {
            pool,
            image,
            region,
            ..
        } = launch;
        let Some(settings) = self.config.pools.get(pool) else {
            self.fault(format!("{name} is for a pool that is not configured"));
            return;
        };
        if let Some(order) = self.ordered(pool) {
            self.fault(format!("{name} is under maintenance ordered by {order}"));
        }
        let demand = self.world.demand.get(pool);
        if let Some(hold) = demand.and_then(|demand| demand.holds.first()) {
            self.fault(format!(
                "{name} is made while source {} holds the pool: {}",
                hold.source, hold.reason
            ));
        }
        if !self.observed(region) {
            self.fault(format!(
                "{name} is in region {region}, which was not observed"
            ));
        }
        match self.config.regions.get(region) {
            None => self.fault(format!(
                "{name} is in region {region}, which is not configured"
            )),
            Some(settings) if settings.weight > 0.0 => {}
            Some(_) => self.fault(format!(
                "{name} is in region {region}, and regions.{region}.weight is 0"
            )),
        }
        if !settings.regions.is_empty() && !settings.regions.contains(region) {
            self.fault(format!(
                "{name} is in region {region}, which is none of pools.{pool}.regions"
            ));
        }
        let id = self
            .config
            .images
            .get(image)
            .and_then(|image| image.ids.get(region));
        if id != Some(&launch.image_id) {
            self.fault(format!(
                "{name} has image id {}, and images.{image}.ids.{region} is {}",
                launch.image_id,
                id.map_or("not set", |id| id.as_str())
            ));
        }
        if !self.wants(pool, settings, image) {
            self.fault(format!(
                "{name} has image {image}, which has no share of the pool"
            ));
        }
        let fallback =
            launch.capacity_type == CapacityType::OnDemand && settings.on_demand_fallback > 0;
        if launch.capacity_type != settings.capacity_type && !fallback {
            self.fault(format!(
                "{name} is for {} capacity, and pools.{pool}.capacity_type is {}",
                launch.capacity_type, settings.capacity_type
            ));
        }
    }

    fn wants(&self, pool: &PoolName, settings: &PoolSettings, image: &ImageName) -> bool {
        match self.world.shares.get(pool) {
            Some(shares) if !shares.is_empty() => shares
                .iter()
                .any(|share| share.image == *image && share.percentage > 0.0),
            _ => settings.image.as_ref() == Some(image),
        }
    }

    fn ordered(&self, pool: &PoolName) -> Option<String> {
        let maintenance = &self.world.maintenance;
        let order = maintenance.fleet.as_ref();
        let order = order.or_else(|| maintenance.pools.get(pool))?;
        Some(order.by.clone())
    }

    fn observed(&self, region: &Region) -> bool {
        matches!(self.world.regions.get(region), Some(view) if view.observed)
    }

    /// Nothing where there is none, and one where there was none.
    fn shortages(&mut self) {
        let mut faults = Vec::new();
        for shortage in &self.world.shortages {
            let mut asked = 0_u32;
            for launch in &self.plan.launches {
                if concerns(&shortage.key, launch) {
                    asked += launch.count;
                    if self.world.now < shortage.until {
                        faults.push(format!(
                            "launch `{}` of pool {} asks where there is nothing until {} ({:?})",
                            launch.intent, launch.pool, shortage.until, shortage.key
                        ));
                    }
                }
            }
            if asked > 1 {
                faults.push(format!(
                    "{asked} instances are launched where one is to be tried first ({:?})",
                    shortage.key
                ));
            }
        }
        self.faults.extend(faults);
    }

    /// What is sent again.
    fn replays(&mut self) {
        let open: HashMap<&IntentId, _> = self
            .world
            .intents
            .iter()
            .map(|intent| (&intent.request.intent, intent))
            .collect();
        let mut seen = HashSet::new();
        for id in &self.plan.replays {
            if !seen.insert(id) {
                self.fault(format!("launch `{id}` is sent again twice"));
            }
            let Some(intent) = open.get(id) else {
                self.fault(format!("launch `{id}` is sent again and is not open"));
                continue;
            };
            let request = &intent.request;
            if let Some(time) = intent.not_before.filter(|time| self.world.now < *time) {
                self.fault(format!(
                    "launch `{id}` of pool {} is sent again before {time}",
                    request.pool
                ));
            }
            if !self.observed(&request.region) {
                self.fault(format!(
                    "launch `{id}` of pool {} is sent again in region {}, which was not observed",
                    request.pool, request.region
                ));
            }
            if let Some(by) = self.ordered(&request.pool) {
                self.fault(format!(
                    "launch `{id}` of pool {} is sent again under maintenance ordered by {by}",
                    request.pool
                ));
            }
        }
    }

    fn untouchable(&self, instance: &Instance) -> Option<String> {
        let hold = instance.hold.as_ref();
        let hold = hold.filter(|hold| match hold.expires {
            Some(expires) => self.world.now < expires,
            None => true,
        });
        if let Some(hold) = hold {
            return Some(format!("which {} holds ({})", hold.owner, hold.reason));
        }
        let golden = instance.intent.is_none();
        golden.then(|| "which is golden or foreign: it has no intent".into())
    }

    fn terminations(&mut self) {
        let mut forced = 0_u32;
        let mut seen = HashSet::new();
        for termination in &self.plan.terminations {
            let Termination { id, region, reason } = termination;
            let Some(&instance) = self.by_id.get(id) else {
                self.fault(format!(
                    "instance {id} is to be ended and is not in the World"
                ));
                continue;
            };
            let pool = instance.pool.as_ref().map_or("none", PoolName::as_str);
            let name = format!("instance {id} of pool {pool} is to be ended ({reason:?})");
            if !seen.insert(id) {
                self.fault(format!("{name} twice"));
            }
            if let Some(why) = self.untouchable(instance) {
                self.fault(format!("{name}, {why}"));
            }
            if instance.offering.region != *region {
                self.fault(format!(
                    "{name} in region {region}, and it is in {}",
                    instance.offering.region
                ));
            }
            if !self.observed(&instance.offering.region) {
                self.fault(format!(
                    "{name} in region {}, which was not observed",
                    instance.offering.region
                ));
            }
            if instance.state == InstanceState::Terminated {
                self.fault(format!("{name} and is terminated already"));
            }
            if instance.ended_at.is_some() {
                continue;
            }
            if let Some(why) = self.not_confirmed(instance, *reason) {
                self.fault(format!("{name}, {why}"));
            }
            if unasked(*reason) {
                forced += 1;
                let stopped = instance.pool.as_ref().and_then(|pool| self.ordered(pool));
                if let Some(by) = stopped {
                    self.fault(format!("{name} under maintenance ordered by {by}"));
                }
            }
        }
        let max = self.config.limits.max_forced_terminations;
        if forced > max {
            self.fault(format!(
                "{forced} instances are to be ended without their hosts' word, above limits.max_forced_terminations ({max})"
            ));
        }
    }

    /// What is missing for ending `instance` for `reason`.
    fn not_confirmed(&self, instance: &Instance, reason: LeaveReason) -> Option<String> {
        let now = self.world.now;
        let defaults = PoolSettings::default();
        let pool = instance.pool.as_ref();
        let configured = pool.and_then(|pool| self.config.pools.get(pool));
        let settings = configured.unwrap_or(&defaults);
        let age = since(instance.launched_at, now);
        match (reason, &instance.host) {
            (LeaveReason::NeverStarted | LeaveReason::NeverRegistered, Some(_)) => {
                Some("and its host has registered".into())
            }
            (LeaveReason::NeverStarted, None) if instance.state != InstanceState::Pending => {
                Some("and it has started".into())
            }
            (LeaveReason::NeverStarted, None) => (age <= settings.launch_timeout).then(|| {
                format!("{age:?} after its launch, within the launch_timeout of its pool")
            }),
            (LeaveReason::NeverRegistered, None) => {
                (age <= settings.registration_timeout).then(|| {
                    format!("{age:?} after its launch, within the registration_timeout of its pool")
                })
            }
            (LeaveReason::Silent, None) => Some("and it has no host that could be silent".into()),
            (LeaveReason::Silent, Some(host)) => {
                let silence = since(host.heard_at, now);
                (silence <= settings.silence_timeout).then(|| {
                    format!(
                        "{silence:?} after it was heard, within the silence_timeout of its pool"
                    )
                })
            }
            (LeaveReason::Stray, _) => {
                let belongs = instance.sight != Sight::CloudOnly
                    || (configured.is_some() && instance.image.is_some());
                let suspected = instance.suspected_at.map(|at| since(at, now));
                if belongs {
                    Some("and it is no stray".into())
                } else if suspected.is_none_or(|time| time < LEAST_SUSPICION) {
                    Some("and was not suspected before".into())
                } else {
                    None
                }
            }
            (
                LeaveReason::Idle
                | LeaveReason::Drifted
                | LeaveReason::OverTarget
                | LeaveReason::Maintenance
                | LeaveReason::PoolRemoved
                | LeaveReason::UsedUp
                | LeaveReason::Asked,
                host,
            ) => {
                let told = matches!(instance.assignment, Assignment::Quit { .. });
                match host {
                    _ if !told => Some("and was not told to quit".into()),
                    None => Some("and has no host that could have confirmed".into()),
                    Some(host) if host.activity != HostActivity::Fenced => {
                        Some(format!("and its host says it is {:?}", host.activity))
                    }
                    Some(host) => host
                        .job
                        .as_ref()
                        .map(|job| format!("and its host has job {job}")),
                }
            }
        }
    }

    fn assignments(&mut self) {
        let ended: HashSet<&InstanceId> =
            self.plan.terminations.iter().map(|end| &end.id).collect();
        let mut seen = HashSet::new();
        for Reassignment { id, assignment } in &self.plan.assignments {
            let Some(&instance) = self.by_id.get(id) else {
                self.fault(format!(
                    "instance {id} is told something and is not in the World"
                ));
                continue;
            };
            let pool = instance.pool.as_ref();
            let name = format!(
                "instance {id} of pool {}",
                pool.map_or("none", PoolName::as_str)
            );
            if !seen.insert(id) {
                self.fault(format!("{name} is told two things"));
            }
            if let Some(why) = self.untouchable(instance) {
                self.fault(format!("{name} is told something, {why}"));
            }
            let order = pool.and_then(|pool| self.ordered(pool));
            match assignment {
                Assignment::GoOn => {
                    if instance.ended_at.is_some() || ended.contains(id) {
                        self.fault(format!("{name} is told to go on, and is being ended"));
                    }
                    if let Some(by) = order {
                        self.fault(format!(
                            "{name} is told to go on under maintenance ordered by {by}"
                        ));
                    }
                }
                Assignment::Drain { reason, .. } => {
                    if *reason == LeaveReason::Maintenance && order.is_none() {
                        self.fault(format!(
                            "{name} is told to drain for maintenance that nobody ordered"
                        ));
                    }
                }
                Assignment::Quit { .. } => {}
            }
        }
    }

    /// How many of each pool are told to leave, beside those that do.
    fn leaving(&mut self) {
        let told: HashMap<&InstanceId, &Assignment> = self
            .plan
            .assignments
            .iter()
            .map(|change| (&change.id, &change.assignment))
            .collect();
        let mut pools: BTreeMap<&PoolName, Crowd> = BTreeMap::new();
        for instance in &self.world.instances {
            let (Some(host), Some(pool)) = (&instance.host, &instance.pool) else {
                continue;
            };
            if instance.state == InstanceState::Terminated || instance.intent.is_none() {
                continue;
            }
            let Some(settings) = self.config.pools.get(pool) else {
                continue;
            };
            let crowd = pools.entry(pool).or_default();
            crowd.hosts += 1;
            let change = told.get(&instance.id).copied();
            let after = change.unwrap_or(&instance.assignment);
            if matches!(after, Assignment::Quit { .. }) {
                crowd.leaving += 1;
            }
            let up = instance.ended_at.is_none()
                && matches!(
                    instance.state,
                    InstanceState::Pending | InstanceState::Running
                )
                && host.interruption_at.is_none()
                && since(host.heard_at, self.world.now) <= settings.silence_timeout;
            if up && *after == Assignment::GoOn {
                crowd.stay += 1;
            }
            if let Some(Assignment::Quit { reason, .. }) = change {
                match reason {
                    LeaveReason::UsedUp | LeaveReason::Drifted => crowd.replaced += 1,
                    LeaveReason::Idle => crowd.idle += 1,
                    LeaveReason::OverTarget => crowd.over += 1,
                    LeaveReason::Maintenance
                    | LeaveReason::PoolRemoved
                    | LeaveReason::NeverStarted
                    | LeaveReason::NeverRegistered
                    | LeaveReason::Silent
                    | LeaveReason::Stray
                    | LeaveReason::Asked => {}
                }
            }
        }
        for (pool, crowd) in pools {
            self.crowd(pool, crowd);
        }
    }

    fn crowd(&mut self, pool: &PoolName, crowd: Crowd) {
        let told = crowd.idle + crowd.over + crowd.replaced;
        let settings = &self.config.pools[pool];
        if told == 0 {
            return;
        }
        let percent = self.config.limits.max_leaving;
        // At most the percentage, or the one more that rounding up makes of it.
        let most = f64::from(crowd.hosts) * percent / 100.0;
        if f64::from(crowd.leaving) >= most + 1.0 - 1e-6 {
            self.fault(format!(
                "pool {pool} would have {} of {} hosts leaving ({told} told so by this plan), above limits.max_leaving ({percent} %)",
                crowd.leaving, crowd.hosts
            ));
        }
        let replaced_one = told == 1 && crowd.replaced == 1 && crowd.stay + 1 == settings.min;
        if crowd.stay < settings.min && !replaced_one {
            self.fault(format!(
                "pool {pool} would keep {} hosts, {told} told to leave by this plan, below pools.{pool}.min ({})",
                crowd.stay, settings.min
            ));
        }
        let demand = self.world.demand.get(pool);
        let held = demand.is_some_and(|demand| !demand.holds.is_empty());
        if held && crowd.idle + crowd.replaced > 0 {
            self.fault(format!(
                "pool {pool} tells {} hosts to leave while a source holds it",
                crowd.idle + crowd.replaced
            ));
        }
    }

    /// Adoptions, losses and suspicions.
    fn sightings(&mut self) {
        for id in &self.plan.adoptions {
            match self.by_id.get(id) {
                None => self.fault(format!("instance {id} is adopted and is not in the World")),
                Some(instance) if instance.sight != Sight::CloudOnly => {
                    self.fault(format!("instance {id} is adopted and the store knows it"));
                }
                Some(instance) => {
                    if let Some(why) = self.untouchable(instance) {
                        self.fault(format!("instance {id} is adopted, {why}"));
                    }
                }
            }
        }
        for loss in &self.plan.losses {
            let id = &loss.id;
            let Some(&instance) = self.by_id.get(id) else {
                self.fault(format!("instance {id} is lost and is not in the World"));
                continue;
            };
            if !self.observed(&instance.offering.region) {
                self.fault(format!(
                    "instance {id} is lost in region {}, which was not observed",
                    instance.offering.region
                ));
            }
            let seen = instance.sight == Sight::Both && instance.state != InstanceState::Terminated;
            if seen {
                self.fault(format!("instance {id} is lost, and the cloud shows it"));
            }
            let unsuspected = instance.sight == Sight::StoreOnly
                && instance.state != InstanceState::Terminated
                && instance.suspected_at.is_none();
            if unsuspected {
                self.fault(format!(
                    "instance {id} is lost and was not suspected before"
                ));
            }
        }
        for suspicion in &self.plan.suspicions {
            let instance = self.by_id.get(&suspicion.id);
            let why = instance.and_then(|instance| self.untouchable(instance));
            if let Some(why) = why.filter(|_| suspicion.suspected) {
                self.fault(format!("instance {} is suspected, {why}", suspicion.id));
            }
        }
    }
}

/// Hosts of a pool.
#[derive(Clone, Copy, Debug, Default)]
struct Crowd {
    hosts: u32,
    /// Told to quit, by this plan or before.
    leaving: u32,
    /// Up and told to go on.
    stay: u32,
    idle: u32,
    over: u32,
    replaced: u32,
}

/// Reasons that need no host to confirm.
fn unasked(reason: LeaveReason) -> bool {
    match reason {
        LeaveReason::NeverStarted
        | LeaveReason::NeverRegistered
        | LeaveReason::Silent
        | LeaveReason::Stray => true,
        LeaveReason::Idle
        | LeaveReason::Drifted
        | LeaveReason::OverTarget
        | LeaveReason::Maintenance
        | LeaveReason::PoolRemoved
        | LeaveReason::UsedUp
        | LeaveReason::Asked => false,
    }
}

/// Whether `launch` would draw on what `key` is about.
fn concerns(key: &ShortageKey, launch: &LaunchRequest) -> bool {
    match key {
        ShortageKey::Offering(offering) => {
            launch.region == offering.region
                && launch.capacity_type == offering.capacity_type
                && launch.choices.iter().any(|choice| {
                    choice.zone == offering.zone && choice.instance_type == offering.instance_type
                })
        }
        ShortageKey::Quota {
            region,
            capacity_type,
        } => launch.region == *region && launch.capacity_type == *capacity_type,
        ShortageKey::Addresses { zone } => launch.choices.iter().any(|choice| choice.zone == *zone),
        ShortageKey::Pool { pool, region } => launch.pool == *pool && launch.region == *region,
    }
}

/// Time between two moments; none if they are the other way round.
fn since(begin: Timestamp, end: Timestamp) -> Duration {
    let nanos = end.as_nanosecond() - begin.as_nanosecond();
    Duration::from_nanos(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX))
}

/// Time left of the day, in UTC.
fn rest_of_day(now: Timestamp) -> Duration {
    let today = now.to_zoned(TimeZone::UTC);
    let end = today.tomorrow().and_then(|day| day.start_of_day());
    end.map_or(Duration::from_secs(86_400), |end| {
        since(now, end.timestamp())
    })
}

#[cfg(test)]
mod tests;
