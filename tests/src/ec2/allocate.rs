//! Which offers a fleet takes machines from, and how many: the allocation strategies.
//!
//! EC2 says what each strategy aims at ("Use allocation strategies to determine how EC2 Fleet or Spot
//! Fleet fulfills Spot and On-Demand capacity", EC2 User Guide) and not how deep its pools are. Here
//! they are as deep as their free machines, which a test sets, so the choice can be predicted:
//!
//! - `price-capacity-optimized`: "identifies the pools with the highest capacity availability for the
//!   number of instances that are launching", then "the lowest priced of these pools". Here: offers
//!   that have the whole number free, the cheapest first; then the others, the deepest first.
//! - `capacity-optimized`: "from the pool with optimal capacity". Here: the deepest first.
//! - `capacity-optimized-prioritized`: capacity first, priorities "on a best-effort basis". Here:
//!   offers that have the whole number free, by priority; then the others, the deepest first.
//! - `lowest-price`: "from the lowest priced pool that has available capacity", spread over the
//!   `InstancePoolsToUseCount` cheapest.
//! - `diversified`: spread over all.
//! - on demand, `lowest-price` and `prioritized`: in that order, "if capacity isn't available, the
//!   next".
//!
//! Ties go to the offer named first.

use std::cmp::Reverse;

/// What a fleet may buy at one place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Offer {
    /// Machines that are free: how deep the pool is.
    pub(super) free: u32,
    /// Dollars per hour.
    pub(super) price: f64,
    /// Lower goes first; without priority last.
    pub(super) priority: Option<f64>,
}

/// How the fleet chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strategy {
    PriceCapacityOptimized,
    CapacityOptimized,
    CapacityOptimizedPrioritized,
    LowestPrice { pools: usize },
    Diversified,
    Prioritized,
}

/// The order to ask offers in, for `count` machines.
pub(super) fn order(strategy: Strategy, offers: &[Offer], count: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..offers.len()).collect();
    let is_deep = |offer: &Offer| offer.free >= count;
    order.sort_by(|&left, &right| {
        let (left, right) = (&offers[left], &offers[right]);
        let by_depth = Reverse(left.free).cmp(&Reverse(right.free));
        let by_price = left.price.total_cmp(&right.price);
        let rank = |offer: &Offer| offer.priority.unwrap_or(f64::INFINITY);
        let by_priority = rank(left).total_cmp(&rank(right));
        let deep_first = is_deep(right).cmp(&is_deep(left));
        let both_deep = is_deep(left) && is_deep(right);
        match strategy {
            Strategy::PriceCapacityOptimized if both_deep => by_price,
            Strategy::CapacityOptimizedPrioritized if both_deep => by_priority,
            Strategy::PriceCapacityOptimized | Strategy::CapacityOptimizedPrioritized => {
                deep_first.then(by_depth)
            }
            Strategy::CapacityOptimized => by_depth,
            Strategy::LowestPrice { .. } => by_price,
            Strategy::Diversified => std::cmp::Ordering::Equal,
            Strategy::Prioritized => by_priority,
        }
    });
    order
}

/// How many machines are first asked of each offer, in that order. What an offer cannot give is asked of
/// the next ones.
pub(super) fn shares(
    strategy: Strategy,
    order: &[usize],
    offers: &[Offer],
    count: u32,
) -> Vec<u32> {
    let width = match strategy {
        Strategy::LowestPrice { pools } => pools.max(1),
        Strategy::Diversified => order.len(),
        Strategy::PriceCapacityOptimized
        | Strategy::CapacityOptimized
        | Strategy::CapacityOptimizedPrioritized
        | Strategy::Prioritized => 1,
    };
    // "The pools that have available capacity": an empty one takes no part in the spread.
    let spread: Vec<usize> = (0..order.len())
        .filter(|&place| offers[order[place]].free > 0)
        .take(width)
        .collect();
    let mut shares = vec![0; order.len()];
    for (_, &place) in (0..count).zip(spread.iter().cycle()) {
        shares[place] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn offer(free: u32, price: f64) -> Offer {
        Offer {
            free,
            price,
            priority: None,
        }
    }

    const OFFERS: [Offer; 4] = [
        offer(3, 0.01),
        offer(50, 0.04),
        offer(20, 0.03),
        offer(5, 0.02),
    ];

    #[test]
    fn price_capacity_optimized_takes_the_cheapest_of_those_that_are_deep_enough() {
        assert_eq!(
            order(Strategy::PriceCapacityOptimized, &OFFERS, 10),
            [2, 1, 3, 0]
        );
        assert_eq!(
            order(Strategy::PriceCapacityOptimized, &OFFERS, 1),
            [0, 3, 2, 1]
        );
        assert_eq!(
            order(Strategy::PriceCapacityOptimized, &OFFERS, 99),
            [1, 2, 3, 0]
        );
    }

    #[test]
    fn capacity_optimized_takes_the_deepest() {
        assert_eq!(order(Strategy::CapacityOptimized, &OFFERS, 1), [1, 2, 3, 0]);
    }

    #[test]
    fn lowest_price_takes_the_cheapest_and_spreads_over_as_many_as_asked() {
        let strategy = Strategy::LowestPrice { pools: 2 };
        let order = order(strategy, &OFFERS, 5);
        assert_eq!(order, [0, 3, 2, 1]);
        assert_eq!(shares(strategy, &order, &OFFERS, 5), [3, 2, 0, 0]);
        let one = Strategy::LowestPrice { pools: 1 };
        assert_eq!(shares(one, &order, &OFFERS, 5), [5, 0, 0, 0]);
    }

    #[test]
    fn diversified_spreads_over_all_that_have_any() {
        let offers = [offer(9, 1.0), offer(0, 1.0), offer(9, 1.0)];
        let order = order(Strategy::Diversified, &offers, 5);
        assert_eq!(shares(Strategy::Diversified, &order, &offers, 5), [3, 0, 2]);
    }

    #[test]
    fn priorities_count_where_the_strategy_says_so() {
        let mut offers = OFFERS;
        offers[1].priority = Some(2.0);
        offers[2].priority = Some(1.0);
        assert_eq!(order(Strategy::Prioritized, &offers, 1), [2, 1, 0, 3]);
        let strategy = Strategy::CapacityOptimizedPrioritized;
        assert_eq!(order(strategy, &offers, 10), [2, 1, 3, 0]);
    }
}
