//! Which offerings a pool could use, best first, and why it cannot use the others.
//!
//! ```text
//! rate  = interruptions / (instance hours + 24)         per instance-hour, over the last 24 hours
//! lost  = min(0.9, rate × 0.5)                          hours of work lost per hour paid
//! score = price / (performance × (1 − lost)) / region weight
//! ```
//!
//! The score is dollars for one unit of work that is finished, weighted by the preference for the
//! region; lower is better. An interruption costs half an hour of work: half of a job of half an hour,
//! and as much again until a new host has taken the job up. The 24 hours in the denominator are what
//! an offering must have run for before one interruption says much about it: one in the first hour is
//! a rate of 1/25, not of 1.
//!
//! A price ceiling is on price / performance, before penalty and preference: it is about money.
//!
//! A remembered shortage excludes what it is about until its window ends. Then it is half open: one
//! instance is tried, alone in its request, by one pool, and only if it would be the best choice or
//! there is no other; it is closed when something was launched, which `apply` writes down.
//!
//! On-demand capacity is a fallback of a spot pool where no spot offering is usable for lack of
//! capacity or for its price. Interruptions alone never are a reason: they end, and a farm that flees
//! from them pays list price for all of its launches.

use std::collections::{BTreeSet, HashMap};

use super::Fate;
use super::census::observed;
use crate::cloud::{CapacityType, Choice, Offering, OfferingKey, ShortReason};
use crate::config::{Config, PoolSettings};
use crate::ids::{ImageName, InstanceType, PoolName, Region};
use crate::money::Money;
use crate::world::{Shortage, ShortageKey, World};

/// Instance hours that weigh as much as what was observed.
const PRIOR_HOURS: f64 = 24.0;

/// Hours of work that an interruption costs.
const LOST_PER_INTERRUPTION: f64 = 0.5;

/// No offering is written off: at this share of lost work it costs ten times as much.
const MOST_LOST: f64 = 0.9;

/// Choices of a launch cost at most this much more than the best of their region, per unit of work.
/// The cloud interrupts less where it may choose; and the bill is reserved by the dearest choice, so
/// that a wider choice lets fewer instances fit under a cap.
pub(crate) const CHOICE_FACTOR: f64 = 1.5;

/// Choices of one launch: Karpenter found that bodies with more than 60 are refused.
pub(crate) const MAX_CHOICES: usize = 60;

/// What the planner asks about offerings, looked up in constant time.
#[derive(Debug)]
pub(crate) struct Market<'w> {
    config: &'w Config,
    world: &'w World,
    /// By type, each by key.
    by_type: HashMap<&'w InstanceType, Vec<&'w Offering>>,
    shortages: HashMap<&'w ShortageKey, &'w Shortage>,
    /// Share of work lost to interruptions.
    lost: HashMap<&'w OfferingKey, f64>,
}

/// An offering, seen from one pool.
#[derive(Clone, Debug)]
pub(crate) struct Considered<'w> {
    pub(crate) offering: &'w Offering,
    pub(crate) score: f64,
    pub(crate) standing: Standing<'w>,
}

/// Whether an offering can be used.
#[derive(Clone, Debug)]
pub(crate) enum Standing<'w> {
    /// Yes.
    Usable,
    /// One instance may be tried: these shortages have ended and nothing was launched since.
    HalfOpen(Vec<&'w Shortage>),
    /// No.
    Lost {
        why: String,
        /// Whether this is a reason to fall back to on-demand capacity.
        falls_back: bool,
    },
}

/// Where and from what a pool could launch: becomes one request for each image.
#[derive(Clone, Debug)]
pub(crate) struct Slot<'w> {
    pub(crate) region: &'w Region,
    pub(crate) capacity_type: CapacityType,
    /// Best first.
    pub(crate) choices: Vec<Choice>,
    /// Price per hour of the dearest: what an instance is reserved for.
    pub(crate) dearest: Money,
    /// Best score.
    pub(crate) score: f64,
    /// What is being tried; then it is for one instance.
    pub(crate) probes: Vec<&'w ShortageKey>,
    /// Images of the pool that are there.
    pub(crate) images: Vec<&'w ImageName>,
}

/// All that a pool could use.
#[derive(Debug)]
pub(crate) struct Offers<'w> {
    /// Best first.
    pub(crate) considered: Vec<Considered<'w>>,
    /// Best first; on-demand fallback last.
    pub(crate) slots: Vec<Slot<'w>>,
}

impl<'w> Market<'w> {
    pub(crate) fn new(world: &'w World, config: &'w Config) -> Self {
        let mut by_type: HashMap<_, Vec<&Offering>> = HashMap::new();
        for offering in &world.offerings {
            by_type
                .entry(&offering.key.instance_type)
                .or_default()
                .push(offering);
        }
        for offerings in by_type.values_mut() {
            offerings.sort_by(|a, b| a.key.cmp(&b.key).then(a.price.cmp(&b.price)));
            offerings.dedup_by(|a, b| a.key == b.key);
        }
        let mut shortages: HashMap<&ShortageKey, &Shortage> = HashMap::new();
        for shortage in &world.shortages {
            let entry = shortages.entry(&shortage.key).or_insert(shortage);
            // Two memories of one thing: the longer holds, whatever order they came in.
            if (shortage.until, shortage.reason, &shortage.message)
                > (entry.until, entry.reason, &entry.message)
            {
                *entry = shortage;
            }
        }
        let mut lost: HashMap<&OfferingKey, f64> = HashMap::new();
        for seen in &world.interruptions {
            let share = lost_share(seen.count, seen.instance_hours);
            let entry = lost.entry(&seen.key).or_insert(share);
            *entry = entry.max(share);
        }
        Self {
            config,
            world,
            by_type,
            shortages,
            lost,
        }
    }

    /// All that `pool` could use to launch hosts with one of `images`.
    pub(crate) fn offers(
        &self,
        pool: &'w PoolName,
        settings: &'w PoolSettings,
        images: &[&'w ImageName],
    ) -> Offers<'w> {
        let regions = self.regions(pool, settings, images);
        let mut considered: Vec<Considered<'w>> = Vec::new();
        for (instance_type, &performance) in &settings.types {
            for &offering in self.by_type.get(instance_type).into_iter().flatten() {
                let Some(region) = regions.get(&offering.key.region) else {
                    continue;
                };
                let wanted = offering.key.capacity_type == settings.capacity_type
                    || (settings.capacity_type == CapacityType::Spot
                        && settings.on_demand_fallback > 0);
                if wanted {
                    considered.push(self.consider(pool, settings, offering, performance, region));
                }
            }
        }
        considered.sort_by(|a, b| {
            a.score
                .total_cmp(&b.score)
                .then_with(|| a.offering.key.cmp(&b.offering.key))
        });
        let slots = slots(settings, &considered, &regions);
        Offers { considered, slots }
    }

    /// Regions of the pool.
    fn regions(
        &self,
        pool: &'w PoolName,
        settings: &'w PoolSettings,
        images: &[&'w ImageName],
    ) -> HashMap<&'w Region, RegionStanding<'w>> {
        let allowed =
            |region: &Region| settings.regions.is_empty() || settings.regions.contains(region);
        let regions = self.config.regions.iter().filter(|(name, _)| allowed(name));
        regions
            .map(|(name, region)| {
                let images: Vec<&ImageName> = images
                    .iter()
                    .copied()
                    .filter(|image| {
                        let settings = self.config.images.get(*image);
                        settings.is_some_and(|settings| settings.ids.contains_key(name))
                    })
                    .collect();
                let lost = if region.weight.is_nan() || region.weight <= 0.0 {
                    Some(format!("regions.{name}.weight is 0"))
                } else if !observed(self.world, name) {
                    let view = self.world.regions.get(name);
                    let fault = view.and_then(|view| view.fault.as_deref());
                    Some(format!(
                        "region {name} could not be observed: {}",
                        fault.unwrap_or("it did not answer")
                    ))
                } else if images.is_empty() {
                    Some(format!("no image of pool {pool} has an id in {name}"))
                } else {
                    None
                };
                let weight = if region.weight > 0.0 {
                    region.weight
                } else {
                    1.0
                };
                let standing = RegionStanding {
                    name,
                    weight,
                    images,
                    lost,
                };
                (name, standing)
            })
            .collect()
    }

    fn consider(
        &self,
        pool: &'w PoolName,
        settings: &PoolSettings,
        offering: &'w Offering,
        performance: f64,
        region: &RegionStanding<'w>,
    ) -> Considered<'w> {
        // A performance that is no number is refused with the configuration; scores stay finite.
        let performance = if performance > 0.0 { performance } else { 1e-6 };
        let lost = self.lost.get(&offering.key).copied().unwrap_or(0.0);
        let unit_price = offering.price.dollars() / performance;
        Considered {
            offering,
            score: to_billionths(unit_price / (1.0 - lost) / region.weight),
            standing: self.standing(pool, settings, offering, unit_price, region),
        }
    }

    fn standing(
        &self,
        pool: &'w PoolName,
        settings: &PoolSettings,
        offering: &'w Offering,
        unit_price: f64,
        region: &RegionStanding<'w>,
    ) -> Standing<'w> {
        let lost = |why, falls_back| Standing::Lost { why, falls_back };
        if let Some(why) = &region.lost {
            return lost(why.clone(), false);
        }
        if let Some(ceiling) = settings.max_price
            && unit_price > ceiling.dollars()
        {
            let why = format!(
                "${unit_price:.4} per hour and unit of work is above pools.{pool}.max_price ({ceiling})"
            );
            return lost(why, true);
        }
        if self.shortages.is_empty() {
            return Standing::Usable;
        }
        let mut ended = Vec::new();
        for key in keys(pool, &offering.key) {
            let Some(&shortage) = self.shortages.get(&key) else {
                continue;
            };
            if self.world.now < shortage.until {
                let why = format!(
                    "{} until {} ({} in a row): {}",
                    reason(shortage.reason),
                    shortage.until.strftime("%H:%M:%SZ"),
                    shortage.failures,
                    shortage.message
                );
                return lost(why, shortage.reason != ShortReason::Interrupted);
            }
            ended.push(shortage);
        }
        if ended.is_empty() {
            Standing::Usable
        } else {
            Standing::HalfOpen(ended)
        }
    }
}

/// A region, seen from one pool.
#[derive(Debug)]
struct RegionStanding<'w> {
    name: &'w Region,
    weight: f64,
    images: Vec<&'w ImageName>,
    lost: Option<String>,
}

/// As exact as it stays when it is written as JSON and read back, so that a stored World is planned
/// again as it was.
fn to_billionths(score: f64) -> f64 {
    (score * 1e9).round() / 1e9
}

/// Share of paid work that interruptions cost. See the module.
fn lost_share(count: u32, instance_hours: f64) -> f64 {
    let rate = f64::from(count) / (instance_hours.max(0.0) + PRIOR_HOURS);
    (rate * LOST_PER_INTERRUPTION).clamp(0.0, MOST_LOST)
}

/// What a shortage that keeps `pool` from an offering can be about.
pub(crate) fn keys(pool: &PoolName, key: &OfferingKey) -> [ShortageKey; 4] {
    [
        ShortageKey::Pool {
            pool: pool.clone(),
            region: key.region.clone(),
        },
        ShortageKey::Quota {
            region: key.region.clone(),
            capacity_type: key.capacity_type,
        },
        ShortageKey::Addresses {
            zone: key.zone.clone(),
        },
        ShortageKey::Offering(key.clone()),
    ]
}

fn reason(reason: ShortReason) -> &'static str {
    match reason {
        ShortReason::NoCapacity => "no capacity",
        ShortReason::Interrupted => "interrupted",
        ShortReason::Quota => "quota used up",
        ShortReason::NoAddress => "no address left",
        ShortReason::Unsupported => "not supported",
        ShortReason::Price => "price too high",
        ShortReason::Image => "image refused",
        ShortReason::Settings => "settings refused",
        ShortReason::NotAllowed => "not allowed",
        ShortReason::Throttled => "throttled",
        ShortReason::CloudFault => "fault of the cloud",
        ShortReason::Other => "refused",
    }
}

fn slots<'w>(
    settings: &PoolSettings,
    considered: &[Considered<'w>],
    regions: &HashMap<&'w Region, RegionStanding<'w>>,
) -> Vec<Slot<'w>> {
    let own = capacity_slots(settings.capacity_type, considered, regions);
    let usable = own.iter().any(|slot| slot.probes.is_empty());
    if usable
        || settings.capacity_type == CapacityType::OnDemand
        || settings.on_demand_fallback == 0
    {
        return own;
    }
    let mut spot = considered
        .iter()
        .filter(|one| one.offering.key.capacity_type == CapacityType::Spot)
        .peekable();
    let none_sold = spot.peek().is_none();
    let short = spot.any(|one| match &one.standing {
        Standing::Usable => false,
        Standing::HalfOpen(ended) => ended
            .iter()
            .any(|shortage| shortage.reason != ShortReason::Interrupted),
        Standing::Lost { falls_back, .. } => *falls_back,
    });
    if none_sold || short {
        let fallback = capacity_slots(CapacityType::OnDemand, considered, regions);
        own.into_iter().chain(fallback).collect()
    } else {
        own
    }
}

/// Slots of one capacity type, best first: one for each region with something usable, and one for the
/// best of what is half open, if nothing usable is better.
fn capacity_slots<'w>(
    capacity_type: CapacityType,
    considered: &[Considered<'w>],
    regions: &HashMap<&'w Region, RegionStanding<'w>>,
) -> Vec<Slot<'w>> {
    let of_type = || {
        considered
            .iter()
            .filter(move |one| one.offering.key.capacity_type == capacity_type)
    };
    let mut slots: Vec<Slot<'w>> = Vec::new();
    let mut at: HashMap<&Region, usize> = HashMap::new();
    for one in of_type().filter(|one| matches!(one.standing, Standing::Usable)) {
        let region = &regions[&one.offering.key.region];
        let index = *at.entry(region.name).or_insert_with(|| {
            slots.push(slot(one, region, Vec::new()));
            slots.len() - 1
        });
        slots[index].admit(one);
    }
    let probe = of_type().find_map(|one| match &one.standing {
        Standing::HalfOpen(ended) => Some((one, ended)),
        Standing::Usable | Standing::Lost { .. } => None,
    });
    if let Some((best, ended)) = probe
        && slots.first().is_none_or(|slot| best.score < slot.score)
    {
        let probes: Vec<&ShortageKey> = ended.iter().map(|shortage| &shortage.key).collect();
        let region = &regions[&best.offering.key.region];
        let mut tried = slot(best, region, probes.clone());
        // What is tried may not be about the offering: a quota is tried with any of them.
        for one in of_type().filter(|one| one.offering.key.region == *region.name) {
            if let Standing::HalfOpen(ended) = &one.standing
                && ended
                    .iter()
                    .map(|shortage| &shortage.key)
                    .eq(probes.iter().copied())
            {
                tried.admit(one);
            }
        }
        slots.insert(0, tried);
    }
    slots
}

fn slot<'w>(
    best: &Considered<'w>,
    region: &RegionStanding<'w>,
    probes: Vec<&'w ShortageKey>,
) -> Slot<'w> {
    Slot {
        region: region.name,
        capacity_type: best.offering.key.capacity_type,
        choices: Vec::new(),
        dearest: Money::ZERO,
        score: best.score,
        probes,
        images: region.images.clone(),
    }
}

impl Slot<'_> {
    /// Adds a choice, if it is close enough to the best. They come best first.
    fn admit(&mut self, one: &Considered<'_>) {
        if self.choices.len() < MAX_CHOICES && one.score <= self.score * CHOICE_FACTOR {
            let Offering { key, price, .. } = one.offering;
            self.dearest = self.dearest.max(*price);
            self.choices.push(Choice {
                instance_type: key.instance_type.clone(),
                zone: key.zone.clone(),
                price: *price,
            });
        }
    }
}

/// Shortages that open intents are trying out now: no other launch does until they are answered.
pub(crate) fn tried<'w>(world: &'w World) -> BTreeSet<ShortageKey> {
    let ended: BTreeSet<&'w ShortageKey> = world
        .shortages
        .iter()
        .filter(|shortage| shortage.until <= world.now)
        .map(|shortage| &shortage.key)
        .collect();
    let mut tried = BTreeSet::new();
    if ended.is_empty() {
        return tried;
    }
    for intent in &world.intents {
        let request = &intent.request;
        for choice in &request.choices {
            let key = OfferingKey {
                region: request.region.clone(),
                zone: choice.zone.clone(),
                instance_type: choice.instance_type.clone(),
                capacity_type: request.capacity_type,
            };
            let keys = keys(&request.pool, &key).into_iter();
            tried.extend(keys.filter(|key| ended.contains(key)));
        }
    }
    tried
}

/// What became of an offering that was in no launch.
pub(crate) fn fate(one: &Considered<'_>, best: Option<&Slot<'_>>) -> Fate {
    match &one.standing {
        Standing::Lost { why, .. } => Fate::Lost { why: why.clone() },
        Standing::HalfOpen(ended) => {
            let names: Vec<String> = ended
                .iter()
                .map(|shortage| format!("{} until {}", reason(shortage.reason), shortage.until))
                .collect();
            Fate::Lost {
                why: format!(
                    "{}: one instance is tried first, where nothing better is to be had",
                    names.join(", ")
                ),
            }
        }
        Standing::Usable => {
            let dear = best.filter(|slot| one.score > slot.score * CHOICE_FACTOR);
            match dear {
                Some(slot) => Fate::Lost {
                    why: format!(
                        "its score {:.4} is more than {CHOICE_FACTOR} times {:.4}, the best in {}",
                        one.score, slot.score, slot.region
                    ),
                },
                None => Fate::Spare,
            }
        }
    }
}
