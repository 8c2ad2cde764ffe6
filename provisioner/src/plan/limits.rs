//! Who gets how many instances when a limit or a cap does not allow all.
//!
//! Everything is granted one instance at a time, and each is taken from every room it needs before
//! the next is looked at: the fleet, its on-demand instances, the region, the money of fleet and pool
//! per hour and per day. So nothing overshoots within a pass, in whatever way limits overlap.
//!
//! Next is always the pool with the smallest `(granted + ½) / wanted`, by name where two are equal
//! (Sainte-Laguë's rule for seats in parliaments): under a common limit pools get shares in proportion
//! to what they want, whole numbers that add up, and the order in which pools were read plays no part.
//! An instance goes to the best slot that has room; when the best region is full the next one fills.
//!
//! Money is reserved by the dearest choice of the request. The day's cap counts what was spent since
//! midnight UTC, and all that runs and is asked for until the next.

use std::cmp::Ordering;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::time::Duration;

use jiff::Timestamp;

use super::Blocker;
use super::census::{Census, PoolCensus, on_demand, per_hour};
use super::offerings::Slot;
use crate::cloud::CapacityType;
use crate::config::Config;
use crate::ids::{ImageName, PoolName, Region};
use crate::money::Money;
use crate::world::{ShortageKey, World};

/// Why an instance was not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) by: Blocker,
    pub(crate) message: String,
}

/// A number that may not be exceeded.
#[derive(Clone, Debug)]
struct Room {
    key: String,
    max: Option<u32>,
    used: u32,
}

impl Room {
    fn full(&self, by: Blocker) -> Option<Refusal> {
        let max = self.max.filter(|max| self.used >= *max)?;
        Some(Refusal {
            by,
            message: format!(
                "{} is {max}: {} are there or asked for",
                self.key, self.used
            ),
        })
    }
}

/// Money that may not be exceeded.
#[derive(Clone, Debug)]
struct Purse {
    keys: String,
    max_per_hour: Option<Money>,
    max_per_day: Option<Money>,
    per_hour: Money,
    spent_today: Money,
}

impl Purse {
    fn refuses(&self, price: Money, until_midnight: Duration) -> Option<Refusal> {
        let per_hour = self.per_hour + price;
        if let Some(max) = self.max_per_hour.filter(|max| per_hour > *max) {
            return Some(Refusal {
                by: Blocker::MoneyPerHour,
                message: format!(
                    "{}.max_per_hour is {max}: {} runs or is asked for, one more is {price}",
                    self.keys, self.per_hour
                ),
            });
        }
        let today = self.spent_today + per_hour.over(until_midnight);
        let max = self.max_per_day.filter(|max| today > *max)?;
        Some(Refusal {
            by: Blocker::MoneyPerDay,
            message: format!(
                "{}.max_per_day is {max}: {} is spent, and {} per hour until midnight UTC with one more at {price} makes {today}",
                self.keys, self.spent_today, per_hour
            ),
        })
    }
}

/// A pool that wants instances.
#[derive(Debug)]
pub(crate) struct Seat<'w> {
    pub(crate) pool: &'w PoolName,
    pub(crate) wanted: u32,
    pub(crate) slots: Vec<Slot<'w>>,
    purse: Purse,
    /// On-demand instances of a spot pool.
    fallback: Option<Room>,
    /// Indices of slots, one for each instance granted.
    granted: Vec<usize>,
    /// Why there are not more.
    pub(crate) refusal: Option<Refusal>,
}

impl<'w> Seat<'w> {
    pub(crate) fn new(
        pool: &PoolCensus<'w>,
        world: &World,
        wanted: u32,
        slots: Vec<Slot<'w>>,
    ) -> Self {
        let settings = pool.settings;
        Self {
            pool: pool.name,
            wanted,
            slots,
            purse: Purse {
                keys: format!("pools.{}", pool.name),
                max_per_hour: settings.max_per_hour,
                max_per_day: settings.max_per_day,
                per_hour: per_hour(pool),
                spent_today: world
                    .spent_today
                    .get(pool.name)
                    .copied()
                    .unwrap_or_default(),
            },
            fallback: (settings.capacity_type == CapacityType::Spot).then(|| Room {
                key: format!("pools.{}.on_demand_fallback", pool.name),
                max: Some(settings.on_demand_fallback),
                used: on_demand(pool),
            }),
            granted: Vec::new(),
            refusal: None,
        }
    }

    pub(crate) fn granted(&self) -> u32 {
        super::census::number(self.granted.len())
    }
}

/// All rooms that pools share.
#[derive(Debug)]
pub(crate) struct Limits<'w> {
    fleet: Room,
    on_demand: Room,
    regions: HashMap<&'w Region, Room>,
    purse: Purse,
    until_midnight: Duration,
    trying: BTreeSet<ShortageKey>,
}

impl<'w> Limits<'w> {
    pub(crate) fn new(
        world: &World,
        config: &'w Config,
        census: &Census<'w>,
        trying: BTreeSet<ShortageKey>,
    ) -> Self {
        let limits = &config.limits;
        let regions = config.regions.iter().map(|(name, settings)| {
            let room = Room {
                key: format!("regions.{name}.max_instances"),
                max: settings.max_instances,
                used: census.totals.regions.get(name).copied().unwrap_or(0),
            };
            (name, room)
        });
        Self {
            fleet: Room {
                key: "limits.max_instances".into(),
                max: limits.max_instances,
                used: census.totals.fleet,
            },
            on_demand: Room {
                key: "limits.max_on_demand".into(),
                max: limits.max_on_demand,
                used: census.totals.on_demand,
            },
            regions: regions.collect(),
            purse: Purse {
                keys: "limits".into(),
                max_per_hour: limits.max_per_hour,
                max_per_day: limits.max_per_day,
                per_hour: census.totals.per_hour,
                spent_today: world.spent_today.values().copied().sum(),
            },
            until_midnight: until_midnight(world.now),
            trying,
        }
    }

    /// Why `seat` cannot have one more in its slot `at`; `None` if it can.
    fn refuses(&self, seat: &Seat<'_>, at: usize) -> Option<Refusal> {
        let slot = &seat.slots[at];
        let on_demand = slot.capacity_type == CapacityType::OnDemand;
        let on_demand_room = || {
            let fallback = seat.fallback.as_ref();
            fallback
                .and_then(|room| room.full(Blocker::OnDemandMax))
                .or_else(|| self.on_demand.full(Blocker::OnDemandMax))
        };
        let region = self.regions.get(slot.region);
        self.fleet
            .full(Blocker::FleetMax)
            .or_else(|| if on_demand { on_demand_room() } else { None })
            .or_else(|| seat.purse.refuses(slot.dearest, self.until_midnight))
            .or_else(|| self.purse.refuses(slot.dearest, self.until_midnight))
            .or_else(|| region.and_then(|room| room.full(Blocker::RegionMax)))
            .or_else(|| self.tried_already(slot))
    }

    fn tried_already(&self, slot: &Slot<'_>) -> Option<Refusal> {
        let tried = slot.probes.iter().any(|key| self.trying.contains(*key));
        tried.then(|| Refusal {
            by: Blocker::NoOffering,
            message: format!(
                "where capacity was short in {}, one instance is tried before more are asked for",
                slot.region
            ),
        })
    }

    /// Takes one instance for `seat` from the best slot that has room and, if one is named, `image`.
    fn take(&mut self, seat: &mut Seat<'_>, image: Option<&ImageName>) -> Result<usize, Refusal> {
        let mut first = None;
        for at in 0..seat.slots.len() {
            let slot = &seat.slots[at];
            if image.is_some_and(|image| !slot.images.contains(&image)) {
                continue;
            }
            match self.refuses(seat, at) {
                None => {
                    self.enter(seat, at);
                    return Ok(at);
                }
                // What refuses the best slot says most; that a trial is under way, least.
                Some(refusal) => match &first {
                    None => first = Some(refusal),
                    Some(known) if known.by == Blocker::NoOffering => first = Some(refusal),
                    Some(_) => {}
                },
            }
        }
        Err(first.unwrap_or_else(|| Refusal {
            by: Blocker::NoOffering,
            message: "no offering can be used: `explain` says why of each".into(),
        }))
    }

    fn enter(&mut self, seat: &mut Seat<'_>, at: usize) {
        let slot = &seat.slots[at];
        self.fleet.used += 1;
        if slot.capacity_type == CapacityType::OnDemand {
            self.on_demand.used += 1;
            if let Some(room) = &mut seat.fallback {
                room.used += 1;
            }
        }
        if let Some(room) = self.regions.get_mut(slot.region) {
            room.used += 1;
        }
        self.purse.per_hour += slot.dearest;
        seat.purse.per_hour += slot.dearest;
        self.trying
            .extend(slot.probes.iter().map(|key| (*key).clone()));
    }

    fn leave(&mut self, seat: &mut Seat<'_>, at: usize) {
        let slot = &seat.slots[at];
        self.fleet.used -= 1;
        if slot.capacity_type == CapacityType::OnDemand {
            self.on_demand.used -= 1;
            if let Some(room) = &mut seat.fallback {
                room.used -= 1;
            }
        }
        if let Some(room) = self.regions.get_mut(slot.region) {
            room.used -= 1;
        }
        self.purse.per_hour = self.purse.per_hour - slot.dearest;
        seat.purse.per_hour = seat.purse.per_hour - slot.dearest;
        for key in &slot.probes {
            self.trying.remove(*key);
        }
    }

    /// Grants what there is room for. See the module for who is next.
    pub(crate) fn grant(&mut self, seats: &mut [Seat<'w>]) {
        let mut queue: BinaryHeap<Next<'w>> = seats
            .iter()
            .enumerate()
            .filter(|(_, seat)| seat.wanted > 0)
            .map(|(at, seat)| Next {
                seat: at,
                pool: seat.pool,
                granted: 0,
                wanted: seat.wanted,
            })
            .collect();
        while let Some(next) = queue.pop() {
            let seat = &mut seats[next.seat];
            match self.take(seat, None) {
                Ok(slot) => {
                    seat.granted.push(slot);
                    let granted = next.granted + 1;
                    if granted < next.wanted {
                        queue.push(Next { granted, ..next });
                    }
                }
                // Rooms only fill up: there will be none later either.
                Err(refusal) => seat.refusal = Some(refusal),
            }
        }
    }

    /// Hands what `seat` was granted to images, `counts` of each, each to where it is. What only fits
    /// where its image is not is given back.
    pub(crate) fn place(
        &mut self,
        seat: &mut Seat<'w>,
        counts: &[(&'w ImageName, u32)],
    ) -> Vec<(&'w ImageName, usize)> {
        for slot in std::mem::take(&mut seat.granted) {
            self.leave(seat, slot);
        }
        let places = |image: &&ImageName| {
            let there = seat.slots.iter().filter(|slot| slot.images.contains(image));
            there.count()
        };
        let mut order: Vec<(usize, &ImageName, u32)> = counts
            .iter()
            .map(|(image, count)| (places(image), *image, *count))
            .collect();
        // Who has the fewest places chooses first.
        order.sort();
        let mut placed = Vec::new();
        for (_, image, count) in order {
            for _ in 0..count {
                match self.take(seat, Some(image)) {
                    Ok(slot) => {
                        seat.granted.push(slot);
                        placed.push((image, slot));
                    }
                    Err(refusal) => {
                        seat.refusal.get_or_insert(refusal);
                        break;
                    }
                }
            }
        }
        placed
    }
}

/// A pool in the queue. The greatest is next.
#[derive(Debug, PartialEq, Eq)]
struct Next<'w> {
    seat: usize,
    pool: &'w PoolName,
    granted: u32,
    wanted: u32,
}

impl Ord for Next<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let weight =
            |one: &Self, of: &Self| (2 * u64::from(one.granted) + 1) * u64::from(of.wanted);
        weight(other, self)
            .cmp(&weight(self, other))
            .then_with(|| other.pool.cmp(self.pool))
    }
}

impl PartialOrd for Next<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Time until the day ends in UTC.
pub(crate) fn until_midnight(now: Timestamp) -> Duration {
    const DAY: i64 = 86_400_000;
    let into_day = now.as_millisecond().rem_euclid(DAY);
    Duration::from_millis(u64::try_from(DAY - into_day).unwrap_or(0))
}
