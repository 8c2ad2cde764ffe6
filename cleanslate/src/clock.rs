//! Time that only goes forward, for deadlines and durations.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since some fixed moment; unmoved when the wall clock is set.
#[must_use]
pub fn monotonic() -> Duration {
    // Both parts are never negative for this clock.
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}
