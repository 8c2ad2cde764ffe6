//! Remembering where there was no capacity, for longer each time it is found again.

use std::time::Duration;

use jiff::Timestamp;

use crate::cloud::{LaunchRequest, OfferingKey, ShortReason, Shortfall};
use crate::world::{Shortage, ShortageKey};

/// The first window, and the longest one. Capacity that is short for a minute is short for three;
/// after half an hour one instance is a cheap question.
const FIRST: Duration = Duration::from_secs(3 * 60);
const LONGEST: Duration = Duration::from_secs(30 * 60);

/// What a shortfall is remembered for; `None` if it says nothing about the next try.
#[must_use]
pub fn key(request: &LaunchRequest, shortfall: &Shortfall) -> Option<ShortageKey> {
    let pool = || ShortageKey::Pool {
        pool: request.pool.clone(),
        region: request.region.clone(),
    };
    match shortfall.reason {
        ShortReason::NoCapacity
        | ShortReason::Interrupted
        | ShortReason::Unsupported
        | ShortReason::Price => Some(
            shortfall
                .offering
                .clone()
                .map_or_else(pool, ShortageKey::Offering),
        ),
        ShortReason::Quota => Some(ShortageKey::Quota {
            region: request.region.clone(),
            capacity_type: request.capacity_type,
        }),
        ShortReason::NoAddress => Some(match &shortfall.offering {
            Some(offering) => ShortageKey::Addresses {
                zone: offering.zone.clone(),
            },
            None => pool(),
        }),
        ShortReason::Image
        | ShortReason::Settings
        | ShortReason::NotAllowed
        | ShortReason::Other => Some(pool()),
        ShortReason::Throttled | ShortReason::CloudFault => None,
    }
}

/// The lack to remember from now on. Failures within one window count once: what grows the window is
/// that it failed again after it had ended.
#[must_use]
pub fn found(
    before: Option<&Shortage>,
    key: ShortageKey,
    reason: ShortReason,
    message: &str,
    now: Timestamp,
) -> Shortage {
    let failures = match before {
        Some(before) if now < before.until => before.failures,
        Some(before) => before.failures.saturating_add(1),
        None => 1,
    };
    Shortage {
        key,
        reason,
        message: message.to_owned(),
        failures,
        at: now,
        until: now.saturating_add(window(failures)).unwrap_or(now),
    }
}

/// How long nothing is tried after so many windows in a row failed.
#[must_use]
pub fn window(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    FIRST.saturating_mul(1 << doublings).min(LONGEST)
}

/// An interruption is a lack too: the cloud has just shown that it needs the capacity itself.
#[must_use]
pub fn interrupted(before: Option<&Shortage>, offering: OfferingKey, now: Timestamp) -> Shortage {
    found(
        before,
        ShortageKey::Offering(offering),
        ShortReason::Interrupted,
        "the cloud took an instance back",
        now,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::CapacityType;
    use crate::ids::{InstanceType, Region, Zone};

    fn offering() -> OfferingKey {
        OfferingKey {
            region: Region::parse("here").unwrap(),
            zone: Zone::parse("here-a").unwrap(),
            instance_type: InstanceType::parse("small").unwrap(),
            capacity_type: CapacityType::Spot,
        }
    }

    fn after(before: Option<&Shortage>, now: &str) -> Shortage {
        interrupted(before, offering(), now.parse().unwrap())
    }

    #[test]
    fn the_window_doubles_from_three_minutes_to_thirty() {
        let minutes: Vec<u64> = (1..=6)
            .map(|failures| window(failures).as_secs() / 60)
            .collect();
        assert_eq!(minutes, [3, 6, 12, 24, 30, 30]);
    }

    #[test]
    fn failures_within_one_window_count_once() {
        let first = after(None, "2026-01-01T00:00:00Z");
        let again = after(Some(&first), "2026-01-01T00:02:59Z");
        assert_eq!(again.failures, 1);
        let later = after(Some(&first), "2026-01-01T00:03:00Z");
        assert_eq!(later.failures, 2);
        assert_eq!(later.until, "2026-01-01T00:09:00Z".parse().unwrap());
    }
}
