//! One pass of planning, from the World to the Plan.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::census::{self, Census, PoolCensus};
use super::images::{self, Holding};
use super::leave::{self, Leaving, Wanted};
use super::limits::{Limits, Refusal, Seat};
use super::offerings::{self, Considered, Market, Offers, Slot, Standing};
use super::sweep::{self, Found};
use super::target::{self, Figures, Target};
use super::{Blocked, Blocker, Candidate, Fate, Plan, PoolPlan, Reassignment, counts, intent_id};
use crate::cloud::LaunchRequest;
use crate::config::Config;
use crate::demand::PoolDemand;
use crate::ids::{ImageName, InstanceId, IntentId, PoolName};
use crate::money::Money;
use crate::world::{Assignment, Instance, LeaveReason, PoolMemory, World, elapsed};

/// Decides everything one pass does. See the module of plans.
#[must_use]
pub fn plan(world: &World, config: &Config, seed: u64) -> Plan {
    let census = census::take(world, config);
    let found = sweep::sweep(world, config, &census);
    let market = Market::new(world, config);
    let mut faults = faults(world, config, &census, &found);
    let mut pools: Vec<Pool<'_, '_>> = census
        .pools
        .iter()
        .map(|pool| Pool::new(world, config, &market, pool, &mut faults))
        .collect();
    let mut seats: Vec<Seat<'_>> = pools.iter_mut().map(|pool| pool.seat(world)).collect();
    let mut limits = Limits::new(world, config, &census, offerings::tried(world));
    limits.grant(&mut seats);
    let mut launches = Vec::new();
    for (pool, seat) in pools.iter_mut().zip(&mut seats) {
        let requests = pool.requests(config, &mut limits, seat, seed);
        pool.take_refusal(seat);
        launches.extend(requests);
    }
    for (ordinal, launch) in launches.iter_mut().enumerate() {
        launch.intent = intent_id(&world.store, world.pass, ordinal);
    }
    let mut plan = Plan {
        pass: world.pass,
        replays: replays(world, config, &census),
        assignments: removed_pools(world, &census),
        adoptions: found.adoptions,
        losses: found.losses,
        suspicions: found.suspicions,
        terminations: found.terminations,
        launches,
        faults,
        ..Plan::default()
    };
    let over = over(&plan);
    let mut next = 0;
    for pool in pools {
        let first = next;
        next += plan.launches[first..]
            .iter()
            .take_while(|launch| launch.pool == *pool.census.name)
            .count();
        pool.finish(world, config, &over, first..next, &mut plan);
    }
    plan.assignments.sort_by(|a, b| a.id.cmp(&b.id));
    plan.bill = bill(census.totals.per_hour, &census.instances, &over)
        + plan.launches.iter().map(LaunchRequest::reserved).sum();
    plan
}

/// One pool, while it is planned.
struct Pool<'c, 'w> {
    census: &'c PoolCensus<'w>,
    demand: PoolDemand,
    /// Images with a share, by name.
    shares: Vec<(&'w ImageName, f64)>,
    images: Wanted<'w>,
    figures: Figures,
    target: Target,
    repairing_since: Option<jiff::Timestamp>,
    offers: Offers<'w>,
    blocked: Vec<Blocked>,
    /// What is asked of the limits, after the pool's own bounds.
    asked: u32,
    launching: u32,
}

impl<'c, 'w> Pool<'c, 'w> {
    fn new(
        world: &'w World,
        config: &'w Config,
        market: &Market<'w>,
        census: &'c PoolCensus<'w>,
        faults: &mut Vec<String>,
    ) -> Self {
        let demand = world.demand.get(census.name).cloned().unwrap_or_default();
        let shares = shares(world, census, faults);
        let images: Wanted<'w> =
            (!shares.is_empty()).then(|| shares.iter().map(|(image, _)| *image).collect());
        let names: Vec<&ImageName> = shares.iter().map(|(image, _)| *image).collect();
        missing_images(config, census, &names, faults);
        let offers = market.offers(census.name, census.settings, &names);
        let figures = Figures::of(census, &demand);
        let mut pool = Self {
            demand,
            shares,
            images,
            figures,
            target: Target::default(),
            repairing_since: target::repairing_since(census, world.now),
            offers,
            blocked: Vec::new(),
            asked: 0,
            launching: 0,
            census,
        };
        pool.size(world, config);
        pool
    }

    /// How many hosts, and what is left to ask for.
    fn size(&mut self, world: &World, config: &Config) {
        let settings = self.census.settings;
        let surge = self.surge(config);
        self.target = target::target(settings, self.figures, surge);
        let mut left = self.target.wanted;
        for (bound, by, message) in self.bounds(world) {
            if left > bound {
                self.blocked.push(Blocked {
                    by,
                    count: left - bound,
                    message,
                });
                left = bound;
            }
        }
        self.asked = left;
    }

    /// Hosts above the minimum for as many that are to be replaced and may not leave before.
    fn surge(&self, config: &Config) -> u32 {
        let pool = self.census;
        if pool.source_hold || pool.maintained {
            return 0;
        }
        let spare = self.figures.existing.saturating_sub(pool.settings.min);
        let replaceable = pool
            .of(census::Class::Existing)
            .filter(|member| leave::replaceable(member.instance, pool, &self.images).is_some())
            .count();
        let stuck = census::number(replaceable).saturating_sub(spare);
        stuck.min(leave::budget(pool, config.limits.max_leaving))
    }

    /// What the pool itself bounds: at most how many, by what, in words.
    fn bounds(&self, world: &World) -> Vec<(u32, Blocker, String)> {
        let name = self.census.name;
        let settings = self.census.settings;
        let figures = self.figures;
        let mut bounds = Vec::new();
        if self.census.source_hold {
            let holds = self.demand.holds.iter();
            let reasons: Vec<String> = holds
                .map(|hold| format!("source {}: {}", hold.source, hold.reason))
                .collect();
            bounds.push((0, Blocker::Source, reasons.join("; ")));
        }
        if let Some(order) = world.maintenance.of(name) {
            let message = format!("maintenance by {}: {}", order.by, order.reason);
            bounds.push((0, Blocker::Maintenance, message));
        }
        let message = format!(
            "pools.{name}.max is {}: {} hosts, {} requested, {} stopping",
            settings.max, figures.existing, figures.requested, figures.stopping
        );
        bounds.push((self.target.room, Blocker::PoolMax, message));
        let message = format!(
            "pools.{name}.max_step is {}: the rest follows in later passes",
            settings.max_step
        );
        bounds.push((settings.max_step, Blocker::Step, message));
        if let Some(since) = self.repairing_since {
            let message = format!(
                "since {since} less than half of what pool {name} launched has registered: one at a time until a host does"
            );
            bounds.push((1, Blocker::Step, message));
        }
        bounds
    }

    /// Whether instances of the pool are on their way out that nobody holds.
    fn makes_room(&self, world: &World) -> bool {
        self.census
            .of(census::Class::Stopping)
            .any(|member| census::ours(member.instance, world.now))
    }

    fn seat(&mut self, world: &World) -> Seat<'w> {
        let slots: Vec<Slot<'w>> = if self.asked > 0 {
            self.offers.slots.clone()
        } else {
            Vec::new()
        };
        Seat::new(self.census, world, self.asked, slots)
    }

    /// Turns what was granted into requests, one for each slot and image.
    fn requests(
        &mut self,
        config: &Config,
        limits: &mut Limits<'w>,
        seat: &mut Seat<'w>,
        seed: u64,
    ) -> Vec<LaunchRequest> {
        let granted = seat.granted();
        if granted == 0 {
            return Vec::new();
        }
        let there: Vec<(&ImageName, f64)> = self
            .shares
            .iter()
            .copied()
            .filter(|(image, _)| seat.slots.iter().any(|slot| slot.images.contains(image)))
            .collect();
        let hosts = census::images(self.census);
        let holdings: Vec<Holding> = there
            .iter()
            .map(|(image, share)| Holding {
                share: *share,
                hosts: hosts.get(image).copied().unwrap_or(0),
            })
            .collect();
        let mut rng = StdRng::seed_from_u64(seed ^ spread(self.census.name));
        let counts = images::split(&holdings, granted, &mut rng);
        let counts: Vec<(&ImageName, u32)> =
            there.iter().map(|(image, _)| *image).zip(counts).collect();
        let mut placed: BTreeMap<(usize, &ImageName), u32> = BTreeMap::new();
        for (image, slot) in limits.place(seat, &counts) {
            *placed.entry((slot, image)).or_default() += 1;
        }
        self.launching = placed.values().sum();
        let request = |((slot, image), count): ((usize, &ImageName), u32)| {
            let slot = &seat.slots[slot];
            Some(LaunchRequest {
                // Numbered when all of them are known.
                intent: intent_id("unnumbered", crate::ids::PassId(0), 0),
                pool: self.census.name.clone(),
                image: image.clone(),
                image_id: config.images.get(image)?.ids.get(slot.region)?.clone(),
                region: slot.region.clone(),
                capacity_type: slot.capacity_type,
                count,
                choices: slot.choices.clone(),
                allocation: self.census.settings.allocation,
            })
        };
        placed.into_iter().filter_map(request).collect()
    }

    fn take_refusal(&mut self, seat: &Seat<'_>) {
        let short = self.asked - self.launching;
        if short == 0 {
            return;
        }
        let refusal = if seat.slots.is_empty() {
            self.nothing_to_launch()
        } else {
            seat.refusal
                .clone()
                .unwrap_or_else(|| self.nothing_to_launch())
        };
        self.blocked.push(Blocked {
            by: refusal.by,
            count: short,
            message: refusal.message,
        });
    }

    /// Why there is no slot.
    fn nothing_to_launch(&self) -> Refusal {
        let name = self.census.name;
        let (by, message) = if self.shares.is_empty() {
            (
                Blocker::NoImage,
                format!("pool {name} has no image: set pools.{name}.image"),
            )
        } else {
            match self.offers.considered.first() {
                None => (
                    Blocker::NoOffering,
                    format!(
                        "none of pools.{name}.types is sold in the zones the pool may use: `provisioner check` says what is missing"
                    ),
                ),
                Some(best) => {
                    let why = match &best.standing {
                        Standing::Lost { why, .. } => why.clone(),
                        Standing::HalfOpen(_) | Standing::Usable => {
                            "it is not to be had now".into()
                        }
                    };
                    let key = &best.offering.key;
                    (
                        blocker(&self.offers.considered),
                        format!(
                            "none of {} offerings can be used; the best, {} in {}: {why}",
                            self.offers.considered.len(),
                            key.instance_type,
                            key.zone
                        ),
                    )
                }
            }
        };
        Refusal { by, message }
    }

    /// Writes what was decided for the pool into the plan, of which `launches` are its own.
    fn finish(
        self,
        world: &World,
        config: &Config,
        over: &HashSet<InstanceId>,
        launches: Range<usize>,
        plan: &mut Plan,
    ) {
        let name = self.census.name;
        let known = !self.census.source_hold && !self.census.maintained;
        let old = &self.census.memory;
        let mut memory = PoolMemory {
            surplus_since: target::surplus_since(old, self.target.surplus, known, world.now),
            repairing_since: self.repairing_since,
            resumed_at: old
                .resumed_at
                .filter(|at| elapsed(*at, world.now) <= census::RESUME_GRACE),
        };
        let leaving = Leaving {
            pool: self.census,
            images: &self.images,
            target: self.target,
            memory: &memory,
            moving: self.figures.requested + self.launching > 0 || self.makes_room(world),
            max_leaving: config.limits.max_leaving,
            now: world.now,
        };
        let mut changes = leaving.decide();
        changes.retain(|change| !over.contains(&change.id));
        if changes
            .iter()
            .any(|change| change.assignment == Assignment::GoOn)
        {
            memory.resumed_at = Some(world.now);
        }
        plan.assignments.extend(changes);
        plan.memory.insert(name.clone(), memory);
        let launches = &plan.launches[launches];
        let members: Vec<&Instance> = self
            .census
            .members
            .iter()
            .map(|member| member.instance)
            .collect();
        let bill = bill(census::per_hour(self.census), &members, over)
            + launches.iter().map(LaunchRequest::reserved).sum();
        let pool = PoolPlan {
            pending: self.demand.pending,
            existing: self.figures.existing,
            busy: self.target.busy,
            requested: self.figures.requested,
            stopping: self.figures.stopping,
            target: self.target.target,
            wanted: self.target.wanted,
            launching: self.launching,
            candidates: candidates(&self.offers, launches),
            blocked: self.blocked,
            bill,
        };
        plan.pools.insert(name.clone(), pool);
    }
}

/// Images of a pool with the shares they shall have, by name; none if that cannot be said.
fn shares<'w>(
    world: &'w World,
    pool: &PoolCensus<'w>,
    faults: &mut Vec<String>,
) -> Vec<(&'w ImageName, f64)> {
    let Some(shares) = world.shares.get(pool.name).filter(|all| !all.is_empty()) else {
        if pool.settings.image.is_none() {
            faults.push(format!(
                "pool `{name}` has no image: set `pools.{name}.image`",
                name = pool.name
            ));
        }
        return pool
            .settings
            .image
            .iter()
            .map(|image| (image, 100.0))
            .collect();
    };
    let mut sums: BTreeMap<&ImageName, f64> = BTreeMap::new();
    for share in shares {
        if share.percentage > 0.0 && share.percentage.is_finite() {
            *sums.entry(&share.image).or_default() += share.percentage;
        }
    }
    if sums.is_empty() {
        faults.push(format!(
            "pool `{}` gives a share of its launches to no image: expected percentages that sum to 100",
            pool.name
        ));
    }
    sums.into_iter().collect()
}

/// Says where images of a pool are missing.
fn missing_images(
    config: &Config,
    pool: &PoolCensus<'_>,
    images: &[&ImageName],
    faults: &mut Vec<String>,
) {
    let allowed =
        |region| pool.settings.regions.is_empty() || pool.settings.regions.contains(region);
    for image in images {
        let ids = config.images.get(*image).map(|settings| &settings.ids);
        let missing: Vec<&str> = config
            .regions
            .iter()
            .filter(|(name, settings)| settings.weight > 0.0 && allowed(name))
            .map(|(name, _)| name)
            .filter(|name| ids.is_none_or(|ids| !ids.contains_key(*name)))
            .map(|name| name.as_str())
            .collect();
        if !missing.is_empty() {
            faults.push(format!(
                "pool `{}`: image `{image}` has no id in {}, so it is not launched there: set `images.{image}.ids`",
                pool.name,
                missing.join(", ")
            ));
        }
    }
}

/// What kept all offerings away.
fn blocker(considered: &[Considered<'_>]) -> Blocker {
    let says = |text: &str| {
        considered
            .iter()
            .all(|one| matches!(&one.standing, Standing::Lost { why, .. } if why.contains(text)))
    };
    if says("could not be observed") {
        Blocker::Region
    } else if says("has an id in") {
        Blocker::NoImage
    } else {
        Blocker::NoOffering
    }
}

/// Open launches to be sent again: those whose time has come, where it is known that the region
/// answers and nobody ordered that nothing is launched.
fn replays(world: &World, config: &Config, census: &Census<'_>) -> Vec<IntentId> {
    let due = |open: &&census::OpenIntent<'_>| {
        let request = &open.intent.request;
        open.intent.not_before.is_none_or(|time| time <= world.now)
            && census::observed(world, &request.region)
            && config.pools.contains_key(&request.pool)
            && world.maintenance.of(&request.pool).is_none()
    };
    let ids = census.intents.iter().filter(due);
    ids.map(|open| open.intent.request.intent.clone()).collect()
}

/// Hosts of pools that are no longer configured leave.
fn removed_pools(world: &World, census: &Census<'_>) -> Vec<Reassignment> {
    let stays = |instance: &&Instance| {
        census::ours(instance, world.now)
            && instance.ended_at.is_none()
            && instance.sight != crate::world::Sight::CloudOnly
            && !matches!(instance.assignment, Assignment::Quit { .. })
    };
    let leaving = census.removed.iter().copied().filter(stays);
    leaving
        .map(|instance| Reassignment {
            id: instance.id.clone(),
            assignment: Assignment::Quit {
                reason: LeaveReason::PoolRemoved,
                since: world.now,
            },
        })
        .collect()
}

/// Faults that concern no single pool.
fn faults(world: &World, config: &Config, census: &Census<'_>, found: &Found) -> Vec<String> {
    let mut faults = Vec::new();
    for region in config.regions.keys() {
        if !census::observed(world, region) {
            let view = world.regions.get(region);
            let fault = view.and_then(|view| view.fault.as_deref());
            faults.push(format!(
                "region `{region}` could not be observed ({}): nothing is launched, ended or judged there",
                fault.unwrap_or("it did not answer")
            ));
        }
    }
    let homeless = census
        .intents
        .iter()
        .map(|open| &open.intent.request)
        .filter(|request| !config.pools.contains_key(&request.pool));
    for request in homeless {
        faults.push(format!(
            "launch `{}` of pool `{}` is open and the pool is not configured: it is not sent again",
            request.intent, request.pool
        ));
    }
    if found.put_off > 0 {
        faults.push(format!(
            "{} instances are to be ended and wait for later passes: `limits.max_forced_terminations` is {}",
            found.put_off, config.limits.max_forced_terminations
        ));
    }
    faults
}

/// Offerings of a pool with what became of each.
fn candidates(offers: &Offers<'_>, launches: &[LaunchRequest]) -> Vec<Candidate> {
    let mut chosen = HashMap::new();
    for launch in launches {
        for choice in &launch.choices {
            chosen
                .entry((
                    &launch.region,
                    &choice.zone,
                    &choice.instance_type,
                    launch.capacity_type,
                ))
                .or_insert(&launch.intent);
        }
    }
    let mut best: HashMap<_, &Slot<'_>> = HashMap::new();
    for slot in offers.slots.iter().filter(|slot| slot.probes.is_empty()) {
        best.entry((slot.region, slot.capacity_type))
            .or_insert(slot);
    }
    let candidate = |one: &Considered<'_>| {
        let key = &one.offering.key;
        let launch = chosen.get(&(
            &key.region,
            &key.zone,
            &key.instance_type,
            key.capacity_type,
        ));
        let fate = match launch {
            Some(intent) => Fate::Chosen {
                intent: (*intent).clone(),
            },
            None => offerings::fate(one, best.get(&(&key.region, key.capacity_type)).copied()),
        };
        Candidate {
            key: key.clone(),
            price: one.offering.price,
            score: one.score,
            fate,
        }
    };
    offers.considered.iter().map(candidate).collect()
}

/// Instances that are over once the plan is done.
fn over(plan: &Plan) -> HashSet<InstanceId> {
    let ended = plan.terminations.iter().map(|end| &end.id);
    let lost = plan.losses.iter().map(|loss| &loss.id);
    ended.chain(lost).cloned().collect()
}

/// What `before` per hour becomes when those that are over are gone.
fn bill(before: Money, instances: &[&Instance], over: &HashSet<InstanceId>) -> Money {
    let saved: Money = instances
        .iter()
        .filter(|instance| counts(instance) && over.contains(&instance.id))
        .map(|instance| instance.price)
        .sum();
    before - saved
}

/// A number of its own for each name (FNV-1a), so that the chance of one pool does not depend on
/// which others there are.
fn spread(pool: &PoolName) -> u64 {
    pool.as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}
