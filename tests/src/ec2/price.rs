//! Spot prices: walks that follow from a seed, and prices a test sets.
//!
//! "Spot prices are set by Amazon EC2 and adjust gradually based on long-term trends in supply of and
//! demand for Spot Instance capacity" ("Spot Instances", EC2 User Guide). The price at each step is its
//! average times the exponential of a weighted sum of the last noises, so neighbours are alike, the
//! walk never runs away, and any moment can be computed without those before it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::ids::{mix, name_number};

/// Noises that still count. The weight of the one after them, `DECAY^24`, is half a percent.
const MEMORY: u64 = 24;
/// What a noise still weighs one step later.
const DECAY: f64 = 0.8;
/// Size of a noise: a step changes the price by up to 6 %, and the walk stays within ±30 % or so.
const NOISE: f64 = 0.06;

/// Products EC2 has prices for, and what they cost beside Linux.
pub(super) const PRODUCTS: [(&str, f64); 4] = [
    ("Linux/UNIX", 1.0),
    ("Red Hat Enterprise Linux", 1.35),
    ("SUSE Linux", 1.6),
    ("Windows", 1.9),
];

/// A price and when it began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) since: Timestamp,
    /// Dollars per hour.
    pub(super) price: f64,
}

/// Prices of one type in one zone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk<'a> {
    /// Names this walk among all that have the same seed.
    pub(super) key: u64,
    pub(super) average: f64,
    pub(super) step: Duration,
    /// Prices that were set, in the order of time: the first ends the walk.
    pub(super) pinned: &'a [Change],
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        seed: u64,
        instance_type: &str,
        zone: &str,
        average: f64,
        step: Duration,
        pinned: &'a [Change],
    ) -> Self {
        let key = mix(seed, name_number(&format!("{instance_type} {zone}")));
        Self {
            key,
            average,
            step,
            pinned,
        }
    }

    /// The price at a moment.
    pub(super) fn at(&self, now: Timestamp) -> f64 {
        let pinned = self.pinned.iter().rev().find(|change| change.since <= now);
        pinned.map_or_else(|| self.at_step(self.step_of(now)), |change| change.price)
    }

    /// Every change from `start` to `end`, the oldest first, and before them the one that was in force
    /// at `start`: "the last price change before the start time, which is the effective price as of the
    /// start time" (`DescribeSpotPriceHistory`, EC2 API Reference).
    pub(super) fn changes(&self, start: Timestamp, end: Timestamp) -> Vec<Change> {
        let walk_end = self
            .pinned
            .first()
            .map_or(Timestamp::MAX, |first| first.since);
        let steps = self.step_of(start)..=self.step_of(end);
        let walked = steps.map(|step| Change {
            since: self.begin_of(step),
            price: self.at_step(step),
        });
        let mut changes: Vec<Change> = walked
            .filter(|change| change.since < walk_end)
            .chain(self.pinned.iter().copied())
            .filter(|change| change.since <= end)
            .collect();
        let in_force = changes.iter().rposition(|change| change.since <= start);
        changes.drain(..in_force.unwrap_or(0));
        changes
    }

    fn at_step(&self, step: u64) -> f64 {
        let mut weight = NOISE;
        let mut logarithm = 0.0;
        for back in 0..MEMORY {
            logarithm += weight * noise(mix(self.key, step.wrapping_sub(back)));
            weight *= DECAY;
        }
        // EC2 shows six decimals, and what is shown is what is compared.
        (self.average * logarithm.exp() * 1e6).round() / 1e6
    }

    fn step_of(&self, moment: Timestamp) -> u64 {
        u64::try_from(moment.as_second()).unwrap_or(0) / self.step_seconds()
    }

    fn begin_of(&self, step: u64) -> Timestamp {
        i64::try_from(step * self.step_seconds())
            .ok()
            .and_then(|second| Timestamp::from_second(second).ok())
            .unwrap_or(Timestamp::MAX)
    }

    fn step_seconds(&self) -> u64 {
        self.step.as_secs().max(1)
    }
}

/// Prices that were set, by (type, zone).
pub(super) type Pinned = BTreeMap<(String, String), Vec<Change>>;

/// From -1 to 1.
#[expect(
    clippy::cast_precision_loss,
    reason = "53 bits are exactly what a double holds"
)]
fn noise(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn noon() -> Timestamp {
        "2026-01-01T12:00:00Z".parse().unwrap()
    }

    fn after(minutes: i64) -> Timestamp {
        noon() + SignedDuration::from_mins(minutes)
    }

    #[test]
    fn a_walk_repeats_with_its_seed_and_differs_between_zones() {
        let walk = |seed, zone| Walk::new(seed, "c5.large", zone, 0.04, HOUR, &[]).at(noon());
        assert!((walk(1, "a") - walk(1, "a")).abs() < f64::EPSILON);
        assert!((walk(1, "a") - walk(2, "a")).abs() > 0.0);
        assert!((walk(1, "a") - walk(1, "b")).abs() > 0.0);
    }

    #[test]
    fn a_walk_moves_a_little_at_each_step_and_never_far_from_its_average() {
        let walk = Walk::new(3, "c5.large", "a", 1.0, HOUR, &[]);
        let prices: Vec<f64> = (0..5000).map(|hour| walk.at(after(hour * 60))).collect();
        assert!(prices.iter().all(|price| (0.7..1.4).contains(price)));
        let steps: Vec<f64> = prices.windows(2).map(|pair| pair[1] / pair[0]).collect();
        assert!(steps.iter().all(|step| (0.85..1.18).contains(step)));
        assert!(steps.iter().any(|step| (step - 1.0).abs() > 0.01));
        assert!((walk.at(after(59)) - walk.at(after(0))).abs() < f64::EPSILON);
    }

    #[test]
    fn history_begins_with_the_price_in_force_at_its_start() {
        let walk = Walk::new(3, "c5.large", "a", 1.0, HOUR, &[]);
        let changes = walk.changes(after(30), after(150));
        let since: Vec<_> = changes.iter().map(|change| change.since).collect();
        assert_eq!(since, [after(0), after(60), after(120)]);
        assert!((changes[0].price - walk.at(after(30))).abs() < f64::EPSILON);
        assert_eq!(walk.changes(after(30), after(30)).len(), 1);
    }

    #[test]
    fn a_price_that_was_set_stays_until_the_next_is_set() {
        let pinned = [(90, 9.0), (200, 8.0)].map(|(minute, price)| Change {
            since: after(minute),
            price,
        });
        let walk = Walk::new(3, "c5.large", "a", 1.0, HOUR, &pinned);
        assert!(walk.at(after(89)) < 2.0);
        assert!((walk.at(after(90)) - 9.0).abs() < f64::EPSILON);
        assert!((walk.at(after(5000)) - 8.0).abs() < f64::EPSILON);
        let since = |start, end| -> Vec<_> {
            let changes = walk.changes(after(start), after(end));
            changes.iter().map(|change| change.since).collect()
        };
        assert_eq!(since(60, 300), [after(60), after(90), after(200)]);
        assert_eq!(since(130, 150), [after(90)]);
    }
}
