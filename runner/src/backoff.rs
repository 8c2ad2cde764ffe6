//! How long to wait before the next attempt of a task that failed.
//!
//! Exponential backoff with full jitter: the wait after the n-th failure is uniform between zero
//! and `min(max, initial × 2ⁿ⁻¹)` (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture
//! Blog, 2015). Full jitter is what keeps a herd of hosts that failed in the same second from
//! coming back in the same second.

use std::time::Duration;

use rand::{Rng, RngExt as _};

use crate::config::BackoffSettings;

/// Simulated with 2,000 hosts whose shared repository is down for ten minutes, these two keep the
/// peak of requests below 80 a second (`tests/herd.rs`); with half of this one it would be 118.
const DEFAULT_INITIAL: Duration = Duration::from_secs(60);
const DEFAULT_MAX: Duration = Duration::from_secs(240);

/// The waits of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Upper end of the first wait.
    pub initial: Duration,
    /// Upper end that no wait exceeds.
    pub max: Duration,
}

impl Backoff {
    /// The settings of a task over those of all tasks over the defaults. Where only one end is
    /// set, the other follows so that `initial` is at most `max`.
    #[must_use]
    pub fn new(own: BackoffSettings, common: BackoffSettings) -> Self {
        let max = own.max.or(common.max);
        let initial = own.initial.or(common.initial).unwrap_or(DEFAULT_INITIAL);
        let max = max.unwrap_or(DEFAULT_MAX.max(initial));
        Self {
            initial: initial.min(max),
            max,
        }
    }

    /// The longest wait there can be after `failures` failures in a row, of which there is at least one.
    #[must_use]
    pub fn ceiling(&self, failures: u32) -> Duration {
        2_u32
            .checked_pow(failures.saturating_sub(1))
            .and_then(|factor| self.initial.checked_mul(factor))
            .map_or(self.max, |ceiling| ceiling.min(self.max))
    }

    /// The wait after `failures` failures in a row, to the millisecond.
    pub fn delay(&self, failures: u32, rng: &mut impl Rng) -> Duration {
        let ceiling = u64::try_from(self.ceiling(failures).as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(rng.random_range(0..=ceiling))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    const BACKOFF: Backoff = Backoff {
        initial: DEFAULT_INITIAL,
        max: DEFAULT_MAX,
    };

    #[test]
    fn the_ceiling_doubles_up_to_the_cap() {
        let seconds: Vec<_> = (1..=6)
            .map(|failures| BACKOFF.ceiling(failures).as_secs())
            .collect();
        assert_eq!(seconds, [60, 120, 240, 240, 240, 240]);
        assert_eq!(BACKOFF.ceiling(u32::MAX), DEFAULT_MAX);
    }

    #[test]
    fn one_end_alone_moves_the_other() {
        let seconds = |initial, max| BackoffSettings {
            initial,
            max,
            seed: None,
        };
        let second = Duration::from_secs;
        let none = BackoffSettings::default();
        assert_eq!(
            Backoff::new(seconds(Some(second(900)), None), none).max,
            second(900)
        );
        assert_eq!(
            Backoff::new(seconds(None, Some(second(1))), none).initial,
            second(1)
        );
        let common = seconds(Some(second(2)), Some(second(4)));
        assert_eq!(
            Backoff::new(none, common),
            Backoff {
                initial: second(2),
                max: second(4)
            }
        );
    }

    #[test]
    fn ten_thousand_waits_are_spread_evenly_over_the_whole_range() {
        let mut rng = StdRng::seed_from_u64(42);
        let mut tenths = [0_u32; 10];
        for _ in 0..10_000 {
            let wait = BACKOFF.delay(4, &mut rng);
            assert!(wait <= DEFAULT_MAX);
            let tenth = wait.as_millis() * 10 / (DEFAULT_MAX.as_millis() + 1);
            tenths[usize::try_from(tenth).unwrap()] += 1;
        }
        // 1,000 expected in each; five standard deviations of a binomial(10,000, 0.1) are 150.
        assert!(
            tenths.iter().all(|count| (850..=1150).contains(count)),
            "{tenths:?}"
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_waits() {
        let waits = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            (1..20)
                .map(|failures| BACKOFF.delay(failures, &mut rng))
                .collect::<Vec<_>>()
        };
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]
        #[test]
        fn no_wait_exceeds_its_ceiling_nor_the_cap(
            initial in 0..10_000_000_u64, max in 0..10_000_000_u64, failures: u32, seed: u64,
        ) {
            let backoff = Backoff {
                initial: Duration::from_millis(initial.min(max)),
                max: Duration::from_millis(max),
            };
            let wait = backoff.delay(failures, &mut StdRng::seed_from_u64(seed));
            prop_assert!(wait <= backoff.ceiling(failures));
            prop_assert!(backoff.ceiling(failures) <= backoff.max);
        }
    }
}
