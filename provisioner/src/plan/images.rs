//! How many of a pool's launches get which image.
//!
//! For two images this is `clamp(round(p/100 × (candidate + stable + n)) − candidate, 0, n)`: as many
//! candidates as bring their share of all hosts closest to what it shall be. For more images each has
//! a deficit, the hosts it should have once `n` more are there, less those it has; images with too
//! many get none, and what they have too many is taken from the others in equal parts, which for two
//! images is the clamp.
//!
//! Rounding is random, because a candidate with 5 % of ten hosts would otherwise get none for ever or
//! one at once. It is systematic sampling: with one uniform offset, image *i* gets the whole numbers
//! that its stretch of the running sum covers. Every image gets its part rounded down or up, the sum
//! is `n`, and the expectation is exact.
//!
//! Mozilla's `find_prev_latest_amis_needed` took the difference of the percentages for the percentage:
//! it converged to half the target, or, as it was called, to nothing; an empty fleet divided by zero.

use rand::{Rng, RngExt as _};

/// An image, the part of the hosts it shall have, and how many it has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Holding {
    /// Any scale: the shares of a pool are divided by their sum.
    pub(crate) share: f64,
    pub(crate) hosts: u32,
}

/// Sums of shares carry errors of some 10⁻¹⁴; what is this close to a whole number is that number,
/// so that an exact split is not left to chance.
const EXACT: f64 = 1e-9;

/// How many of `count` launches each image gets; nothing for anyone if no share is above zero.
pub(crate) fn split(holdings: &[Holding], count: u32, rng: &mut impl Rng) -> Vec<u32> {
    let parts = parts(holdings, count);
    if parts.iter().all(|part| *part <= 0.0) {
        return vec![0; holdings.len()];
    }
    let offset: f64 = rng.random();
    let mut sum = 0.0;
    let mut before = 0;
    let last = parts.iter().rposition(|part| *part > 0.0);
    let sampled = parts.iter().enumerate().map(|(at, part)| {
        sum = whole_if_close(sum + part);
        let until = if Some(at) >= last {
            count
        } else {
            covered(sum, offset).min(count)
        };
        let got = until - before;
        before = until;
        got
    });
    sampled.collect()
}

/// Whole numbers below `sum`, shifted by `offset`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a sum of parts of a u32"
)]
fn covered(sum: f64, offset: f64) -> u32 {
    (sum + offset).floor() as u32
}

fn whole_if_close(value: f64) -> f64 {
    if (value - value.round()).abs() < EXACT {
        value.round()
    } else {
        value
    }
}

/// What each image is to get, before rounding. Their sum is `count`.
fn parts(holdings: &[Holding], count: u32) -> Vec<f64> {
    let usable = |holding: &Holding| holding.share > 0.0 && holding.share.is_finite();
    let shares: f64 = holdings.iter().filter(|h| usable(h)).map(|h| h.share).sum();
    let total: f64 = holdings.iter().map(|h| f64::from(h.hosts)).sum::<f64>() + f64::from(count);
    let deficits: Vec<f64> = holdings
        .iter()
        .map(|holding| {
            if usable(holding) {
                holding.share / shares * total - f64::from(holding.hosts)
            } else {
                f64::NEG_INFINITY
            }
        })
        .collect();
    let level = level(&deficits, f64::from(count));
    let fill = |deficit: &f64| (deficit - level).max(0.0);
    deficits.iter().map(fill).map(whole_if_close).collect()
}

/// The level that leaves `count` of the deficits above it: taken from the largest down.
fn level(deficits: &[f64], count: f64) -> f64 {
    let mut sorted: Vec<f64> = deficits.iter().copied().filter(|d| d.is_finite()).collect();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let mut sum = 0.0;
    let mut level = 0.0;
    for (deficit, number) in sorted.iter().zip(1_u32..) {
        sum += deficit;
        let with_this = (sum - count) / f64::from(number);
        if with_this > *deficit {
            break;
        }
        level = with_this;
    }
    level
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    fn two(percentage: f64, candidate: u32, stable: u32) -> [Holding; 2] {
        [
            Holding {
                share: percentage,
                hosts: candidate,
            },
            Holding {
                share: 100.0 - percentage,
                hosts: stable,
            },
        ]
    }

    fn rng(seed: u64) -> StdRng {
        StdRng::seed_from_u64(seed)
    }

    /// What the formula of the original's documentation gives before rounding.
    fn expected(percentage: f64, candidate: u32, stable: u32, count: u32) -> f64 {
        let total = f64::from(candidate + stable + count);
        (percentage / 100.0 * total - f64::from(candidate)).clamp(0.0, f64::from(count))
    }

    #[test]
    fn the_eight_examples_of_the_original_hold() {
        // percentage, candidate, stable, launches → stable, candidate: its own doctests.
        let examples = [
            ((10.0, 0, 10, 1), (0, 1)),
            ((50.0, 0, 10, 5), (0, 5)),
            ((50.0, 10, 10, 10), (5, 5)),
            ((60.0, 60, 40, 10), (4, 6)),
            ((100.0, 10, 10, 40), (0, 40)),
            ((0.0, 10, 10, 40), (40, 0)),
            ((30.0, 0, 7, 3), (0, 3)),
            ((30.0, 7, 0, 3), (3, 0)),
        ];
        for ((percentage, candidate, stable, count), (to_stable, to_candidate)) in examples {
            for seed in 0..50 {
                let got = split(&two(percentage, candidate, stable), count, &mut rng(seed));
                assert_eq!(
                    got,
                    [to_candidate, to_stable],
                    "{percentage} % of {candidate}+{stable}+{count}"
                );
            }
        }
    }

    #[test]
    fn the_states_in_which_the_original_moved_away_are_met() {
        // It launched (10 old, 0 new), all old, and divided by zero.
        let split = |percentage, candidate, stable, count| {
            split(&two(percentage, candidate, stable), count, &mut rng(1))
        };
        assert_eq!(split(50.0, 40, 60, 10), [10, 0]);
        assert_eq!(split(75.0, 50, 50, 10), [10, 0]);
        assert_eq!(split(50.0, 0, 0, 10), [5, 5]);
        assert_eq!(split(25.0, 0, 100, 10), [10, 0]);
    }

    #[test]
    fn a_farm_partway_reaches_every_percentage() {
        for percentage in [5.0, 10.0, 25.0, 50.0, 75.0, 100.0] {
            let (mut candidate, mut stable) = (0, 100);
            for batch in 0..300 {
                let got = split(&two(percentage, candidate, stable), 10, &mut rng(batch));
                candidate += got[0];
                stable += got[1];
                // As many leave, in proportion.
                let leaving = 10 * candidate / (candidate + stable);
                candidate -= leaving;
                stable -= 10 - leaving;
            }
            let reached = 100.0 * f64::from(candidate) / f64::from(candidate + stable);
            assert!(
                (reached - percentage).abs() <= 2.0,
                "{percentage}: {reached}"
            );
        }
    }

    #[test]
    fn an_image_without_a_share_gets_nothing() {
        assert_eq!(split(&two(0.0, 0, 0), 7, &mut rng(1)), [0, 7]);
        let none = [Holding {
            share: 0.0,
            hosts: 3,
        }];
        assert_eq!(split(&none, 7, &mut rng(1)), [0]);
        assert_eq!(split(&[], 7, &mut rng(1)), [] as [u32; 0]);
    }

    fn holdings() -> impl Strategy<Value = Vec<Holding>> {
        let holding = (0_u32..=20, 0_u32..200).prop_map(|(share, hosts)| Holding {
            share: f64::from(share) * 5.0,
            hosts,
        });
        prop::collection::vec(holding, 1..6).prop_filter("a share above zero", |all| {
            all.iter().any(|h| h.share > 0.0)
        })
    }

    proptest! {
        #[test]
        fn all_launches_get_an_image_and_no_image_a_launch_too_many(
            holdings in holdings(), count in 0_u32..300, seed: u64,
        ) {
            let got = split(&holdings, count, &mut rng(seed));
            prop_assert_eq!(got.iter().sum::<u32>(), count);
            let parts = parts(&holdings, count);
            prop_assert!((parts.iter().sum::<f64>() - f64::from(count)).abs() < 1e-6);
            for ((got, part), holding) in got.iter().zip(&parts).zip(&holdings) {
                prop_assert!(f64::from(*got) >= part.floor() - 1e-6, "{} of {}", got, part);
                prop_assert!(f64::from(*got) <= part.ceil() + 1e-6, "{} of {}", got, part);
                prop_assert!(holding.share > 0.0 || *got == 0);
            }
        }

        #[test]
        fn for_two_images_it_is_the_clamp(
            percentage in 0_u32..=100, candidate in 0_u32..200, stable in 0_u32..200, count in 1_u32..100,
        ) {
            let percentage = f64::from(percentage);
            let parts = parts(&two(percentage, candidate, stable), count);
            let expected = expected(percentage, candidate, stable, count);
            prop_assert!((parts[0] - expected).abs() < 1e-6, "{} is not {}", parts[0], expected);
        }

        #[test]
        fn the_expectation_is_exact(holdings in holdings(), count in 1_u32..12) {
            let parts = parts(&holdings, count);
            let rounds = 4_000;
            let mut sums = vec![0_u64; holdings.len()];
            let mut rng = rng(7);
            for _ in 0..rounds {
                for (sum, got) in sums.iter_mut().zip(split(&holdings, count, &mut rng)) {
                    *sum += u64::from(got);
                }
            }
            for (sum, part) in sums.iter().zip(&parts) {
                let mean = *sum as f64 / f64::from(rounds);
                // Five standard deviations of a mean of 4,000 draws that vary by at most 1/2.
                prop_assert!((mean - part).abs() < 0.04, "mean {}, expected {}", mean, part);
            }
        }
    }
}
