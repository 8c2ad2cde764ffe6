//! Which of the choices of a launch it gets, and why not more. Decisions only.

use std::collections::BTreeMap;

use crate::cloud::{Allocation, LaunchRequest, OfferingKey, ShortReason, Shortfall};
use crate::money::Money;

/// What is left of one offering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stock {
    /// Price per hour now.
    pub(super) price: Money,
    /// Instances that can still be had.
    pub(super) free: u32,
}

/// What is left of everything a launch may use.
#[derive(Clone, Debug, Default)]
pub(super) struct Shelf {
    /// Offerings there are.
    pub(super) stock: BTreeMap<OfferingKey, Stock>,
    /// Instances the account may still have of this capacity type in this region.
    pub(super) quota: Option<u32>,
}

/// One instance a launch gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pick {
    /// What it is.
    pub(super) offering: OfferingKey,
    /// At which price per hour.
    pub(super) price: Money,
}

/// Gives out instances one by one, by the rule of `request.allocation`:
///
/// - `lowest-price`: the cheapest that is left;
/// - `capacity-optimized`: the one of which most is left;
/// - `price-capacity-optimized`: the cheapest of those of which at least half as much is left as of
///   the one of which most is.
///
/// What is equal is taken in the order of the request. An offering dearer than the dearest choice was
/// when the plan was made is not taken: nobody reserved the money.
pub(super) fn choose(request: &LaunchRequest, shelf: &Shelf) -> (Vec<Pick>, Vec<Shortfall>) {
    let mut left = Left::new(request, shelf);
    let allowed = shelf.quota.unwrap_or(u32::MAX).min(request.count);
    let picks: Vec<Pick> = (0..allowed)
        .map_while(|_| left.take(request.allocation))
        .collect();
    let mut shortfalls = left.refused;
    if picks.len() < request.count as usize {
        if picks.len() == allowed as usize {
            shortfalls.push(quota_shortfall(request, shelf.quota));
        } else {
            let exhausted = left
                .choices
                .into_iter()
                .map(|(offering, _)| no_capacity(offering));
            shortfalls.extend(exhausted);
        }
    } else {
        // What was not needed is no lack.
        shortfalls.clear();
    }
    (picks, shortfalls)
}

struct Left {
    /// What may be taken, in the order of the request.
    choices: Vec<(OfferingKey, Stock)>,
    refused: Vec<Shortfall>,
}

impl Left {
    fn new(request: &LaunchRequest, shelf: &Shelf) -> Self {
        let ceiling = request.choices.iter().map(|choice| choice.price).max();
        let ceiling = ceiling.unwrap_or_default();
        let mut left = Self {
            choices: Vec::new(),
            refused: Vec::new(),
        };
        for choice in &request.choices {
            let offering = OfferingKey {
                region: request.region.clone(),
                zone: choice.zone.clone(),
                instance_type: choice.instance_type.clone(),
                capacity_type: request.capacity_type,
            };
            if left.choices.iter().any(|(known, _)| *known == offering) {
                continue;
            }
            match shelf.stock.get(&offering) {
                None => left.refused.push(unsupported(offering)),
                Some(stock) if stock.price > ceiling => {
                    left.refused.push(too_dear(offering, stock.price, ceiling));
                }
                Some(stock) => left.choices.push((offering, *stock)),
            }
        }
        left
    }

    fn take(&mut self, allocation: Allocation) -> Option<Pick> {
        let most = self.choices.iter().map(|(_, stock)| stock.free).max()?;
        let is_eligible = |stock: &Stock| {
            stock.free > 0
                && match allocation {
                    Allocation::LowestPrice => true,
                    Allocation::CapacityOptimized => stock.free == most,
                    Allocation::PriceCapacityOptimized => stock.free >= most.div_ceil(2),
                }
        };
        let (offering, stock) = self
            .choices
            .iter_mut()
            .filter(|(_, stock)| is_eligible(stock))
            .min_by_key(|(_, stock)| match allocation {
                Allocation::CapacityOptimized => Money::ZERO,
                Allocation::LowestPrice | Allocation::PriceCapacityOptimized => stock.price,
            })?;
        stock.free -= 1;
        Some(Pick {
            offering: offering.clone(),
            price: stock.price,
        })
    }
}

fn no_capacity(offering: OfferingKey) -> Shortfall {
    let message = format!(
        "no {} capacity is left for {} in {}",
        offering.capacity_type, offering.instance_type, offering.zone
    );
    Shortfall {
        offering: Some(offering),
        reason: ShortReason::NoCapacity,
        message,
    }
}

fn unsupported(offering: OfferingKey) -> Shortfall {
    let message = format!(
        "{} is not sold as {} in {}",
        offering.instance_type, offering.capacity_type, offering.zone
    );
    Shortfall {
        offering: Some(offering),
        reason: ShortReason::Unsupported,
        message,
    }
}

fn too_dear(offering: OfferingKey, price: Money, ceiling: Money) -> Shortfall {
    let message = format!(
        "{} in {} costs {price} per hour now: expected at most {ceiling}",
        offering.instance_type, offering.zone
    );
    Shortfall {
        offering: Some(offering),
        reason: ShortReason::Price,
        message,
    }
}

fn quota_shortfall(request: &LaunchRequest, left: Option<u32>) -> Shortfall {
    let message = format!(
        "the account's quota of {} instances in {} leaves {}",
        request.capacity_type,
        request.region,
        left.unwrap_or_default()
    );
    Shortfall {
        offering: None,
        reason: ShortReason::Quota,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::{CapacityType, Choice};
    use crate::ids::{ImageId, ImageName, InstanceType, IntentId, PoolName, Region, Zone};

    fn key(zone: &str) -> OfferingKey {
        OfferingKey {
            region: Region::parse("local").unwrap(),
            zone: Zone::parse(zone).unwrap(),
            instance_type: InstanceType::parse("small").unwrap(),
            capacity_type: CapacityType::Spot,
        }
    }

    fn shelf(stock: &[(&str, i64, u32)]) -> Shelf {
        let stock = stock.iter().map(|&(zone, price, free)| {
            let price = Money::from_micros(price);
            (key(zone), Stock { price, free })
        });
        Shelf {
            stock: stock.collect(),
            quota: None,
        }
    }

    fn request(count: u32, allocation: Allocation, zones: &[(&str, i64)]) -> LaunchRequest {
        let choices = zones.iter().map(|&(zone, price)| Choice {
            instance_type: InstanceType::parse("small").unwrap(),
            zone: Zone::parse(zone).unwrap(),
            price: Money::from_micros(price),
        });
        LaunchRequest {
            intent: IntentId::parse("s-1-0").unwrap(),
            pool: PoolName::parse("linux64").unwrap(),
            image: ImageName::parse("base").unwrap(),
            image_id: ImageId::parse("/image").unwrap(),
            region: Region::parse("local").unwrap(),
            capacity_type: CapacityType::Spot,
            count,
            choices: choices.collect(),
            allocation,
        }
    }

    fn zones(picks: &[Pick]) -> String {
        picks
            .iter()
            .map(|pick| pick.offering.zone.as_str())
            .collect()
    }

    fn reasons(shortfalls: &[Shortfall]) -> Vec<ShortReason> {
        shortfalls
            .iter()
            .map(|shortfall| shortfall.reason)
            .collect()
    }

    const BOTH: [(&str, i64); 2] = [("a", 200), ("b", 100)];

    #[test]
    fn the_lowest_price_is_used_up_first() {
        let shelf = shelf(&[("a", 200, 9), ("b", 100, 2)]);
        let (picks, shortfalls) = choose(&request(4, Allocation::LowestPrice, &BOTH), &shelf);
        assert_eq!(zones(&picks), "bbaa");
        assert_eq!(shortfalls, []);
    }

    #[test]
    fn the_most_capacity_is_taken_whatever_it_costs() {
        let shelf = shelf(&[("a", 200, 5), ("b", 100, 3)]);
        let (picks, _) = choose(&request(4, Allocation::CapacityOptimized, &BOTH), &shelf);
        assert_eq!(zones(&picks), "aaab");
    }

    #[test]
    fn a_cheap_offering_is_left_when_little_of_it_is_left() {
        let shelf = shelf(&[("a", 200, 8), ("b", 100, 5)]);
        let (picks, _) = choose(
            &request(4, Allocation::PriceCapacityOptimized, &BOTH),
            &shelf,
        );
        assert_eq!(zones(&picks), "bbaa");
    }

    #[test]
    fn what_is_exhausted_is_named_and_the_rest_is_given() {
        let shelf = shelf(&[("a", 200, 1), ("b", 100, 0)]);
        let (picks, shortfalls) = choose(&request(3, Allocation::LowestPrice, &BOTH), &shelf);
        assert_eq!(zones(&picks), "a");
        assert_eq!(
            reasons(&shortfalls),
            [ShortReason::NoCapacity, ShortReason::NoCapacity]
        );
        assert_eq!(shortfalls[1].offering, Some(key("b")));
    }

    #[test]
    fn the_quota_is_about_no_offering() {
        let mut shelf = shelf(&[("a", 200, 9), ("b", 100, 9)]);
        shelf.quota = Some(2);
        let (picks, shortfalls) = choose(&request(3, Allocation::LowestPrice, &BOTH), &shelf);
        assert_eq!(picks.len(), 2);
        assert_eq!(reasons(&shortfalls), [ShortReason::Quota]);
        assert_eq!(shortfalls[0].offering, None);
        let (picks, shortfalls) = choose(&request(2, Allocation::LowestPrice, &BOTH), &shelf);
        assert_eq!((picks.len(), shortfalls.len()), (2, 0));
    }

    #[test]
    fn a_price_that_rose_over_what_was_reserved_is_not_paid() {
        let shelf = shelf(&[("a", 201, 9), ("b", 200, 1)]);
        let (picks, shortfalls) = choose(&request(2, Allocation::LowestPrice, &BOTH), &shelf);
        assert_eq!(zones(&picks), "b");
        assert_eq!(
            reasons(&shortfalls),
            [ShortReason::Price, ShortReason::NoCapacity]
        );
    }

    #[test]
    fn what_is_not_sold_there_is_said_only_if_it_was_needed() {
        let shelf = shelf(&[("a", 100, 2)]);
        let wanted = [("a", 100), ("z", 100)];
        let (_, shortfalls) = choose(&request(3, Allocation::LowestPrice, &wanted), &shelf);
        assert_eq!(
            reasons(&shortfalls),
            [ShortReason::Unsupported, ShortReason::NoCapacity]
        );
        let (_, shortfalls) = choose(&request(2, Allocation::LowestPrice, &wanted), &shelf);
        assert_eq!(shortfalls, []);
    }
}
