//! How often somebody may call: so many a second for long, so many at once.
//!
//! One time says all about a caller: when his credit will be full again. Each call moves it one
//! interval on; a call that would move it further ahead than the burst has to wait.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Calls a second, for long.
    pub per_second: u32,
    /// Calls at once.
    pub burst: u32,
}

impl Rate {
    fn interval(self) -> Duration {
        Duration::from_secs(1) / self.per_second
    }

    /// When the credit of a caller is full again after a call at `now`, who before had it `full_at`;
    /// or how long he has to wait.
    fn call(self, full_at: Option<Instant>, now: Instant) -> Result<Instant, Duration> {
        let full_at = full_at.map_or(now, |at| at.max(now)) + self.interval();
        let ahead = full_at.duration_since(now);
        ahead
            .checked_sub(self.interval() * self.burst)
            .filter(|wait| !wait.is_zero())
            .map_or(Ok(full_at), Err)
    }
}

/// Below so many callers nothing is thrown away.
const LEAST_KEPT: usize = 1024;

/// One rate for each of many callers who are known. Whoever has his full credit is forgotten: what
/// is kept are the callers of the last seconds.
#[derive(Debug)]
pub struct Limiter<K> {
    rate: Rate,
    callers: Mutex<Callers<K>>,
}

#[derive(Debug)]
struct Callers<K> {
    full_at: HashMap<K, Instant>,
    /// Number of callers at which those with full credit are thrown away.
    tidy_at: usize,
}

impl<K: Clone + Eq + Hash> Limiter<K> {
    /// For callers who may call so often.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let callers = Callers {
            full_at: HashMap::new(),
            tidy_at: LEAST_KEPT,
        };
        Self {
            rate,
            callers: Mutex::new(callers),
        }
    }

    /// Counts a call.
    ///
    /// # Errors
    /// How long the caller has to wait, if it is one too many; it is then not counted.
    pub fn call(&self, caller: &K, now: Instant) -> Result<(), Duration> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.rate.call(callers.full_at.get(caller).copied(), now)?;
        if callers.full_at.len() >= callers.tidy_at {
            callers.full_at.retain(|_, full_at| *full_at > now);
            callers.tidy_at = LEAST_KEPT.max(2 * callers.full_at.len());
        }
        callers.full_at.insert(caller.clone(), next);
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn forget(&self) {
        self.callers.lock().unwrap().full_at.clear();
    }

    #[cfg(test)]
    fn kept(&self) -> usize {
        self.callers.lock().unwrap().full_at.len()
    }
}

/// One rate for each of any number of callers nobody knows, in memory that does not grow: they share
/// a table by a hash that they cannot foresee, so that two seldom share a place.
#[derive(Debug)]
pub struct Crowd {
    rate: Rate,
    hasher: RandomState,
    places: Mutex<Box<[Option<Instant>]>>,
}

impl Crowd {
    /// For callers who may call so often, in a table of so many places.
    #[must_use]
    pub fn new(rate: Rate, places: usize) -> Self {
        Self {
            rate,
            hasher: RandomState::new(),
            places: Mutex::new(vec![None; places.max(1)].into()),
        }
    }

    /// Counts a call.
    ///
    /// # Errors
    /// How long the caller has to wait, if it is one too many; it is then not counted.
    pub fn call(&self, caller: impl Hash, now: Instant) -> Result<(), Duration> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let count = places.len() as u64;
        let place = usize::try_from(self.hasher.hash_one(caller) % count)
            .expect("less than the length of a slice");
        places[place] = Some(self.rate.call(places[place], now)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_second: 5,
        burst: 20,
    };

    #[test]
    fn a_burst_passes_and_the_next_call_waits_for_its_interval() {
        let limiter = Limiter::new(RATE);
        let now = Instant::now();
        for call in 0..20 {
            assert_eq!(limiter.call(&"mad", now), Ok(()), "{call}");
        }
        assert_eq!(limiter.call(&"mad", now), Err(Duration::from_millis(200)));
        let soon = now + Duration::from_millis(199);
        assert_eq!(limiter.call(&"mad", soon), Err(Duration::from_millis(1)));
        let then = now + Duration::from_millis(200);
        assert_eq!(limiter.call(&"mad", then), Ok(()));
        assert!(limiter.call(&"mad", then).is_err());
    }

    #[test]
    fn a_caller_who_keeps_calling_gets_his_rate_and_no_more() {
        let limiter = Limiter::new(RATE);
        let now = Instant::now();
        let passed = (0..10_000)
            .filter(|ms| {
                let at = now + Duration::from_millis(*ms);
                limiter.call(&"mad", at).is_ok()
            })
            .count();
        // The burst, and five a second for ten seconds.
        assert!((69..=70).contains(&passed), "{passed}");
    }

    #[test]
    fn one_who_calls_too_much_takes_nothing_from_another() {
        let limiter = Limiter::new(RATE);
        let now = Instant::now();
        for _ in 0..1_000 {
            limiter.call(&"mad", now).ok();
        }
        assert_eq!(limiter.call(&"calm", now), Ok(()));
    }

    #[test]
    fn callers_with_full_credit_are_forgotten() {
        let limiter = Limiter::new(RATE);
        let start = Instant::now();
        for caller in 0..100_000_u32 {
            let at = start + Duration::from_millis(u64::from(caller) * 5);
            limiter.call(&caller, at).unwrap();
        }
        assert!(limiter.kept() <= LEAST_KEPT, "{}", limiter.kept());
        // And one who has not is not.
        let now = start + Duration::from_hours(1);
        for _ in 0..20 {
            limiter.call(&0, now).unwrap();
        }
        for caller in 1..=5_000 {
            limiter.call(&caller, now).unwrap();
        }
        assert!(limiter.call(&0, now).is_err());
    }

    #[test]
    fn a_crowd_has_its_rate_in_a_table_that_does_not_grow() {
        let crowd = Crowd::new(RATE, 64);
        let now = Instant::now();
        let passed = (0..10_000)
            .filter(|_| crowd.call("one", now).is_ok())
            .count();
        assert_eq!(passed, 20);
        let all = (0..100_000).filter(|n| crowd.call(n, now).is_ok()).count();
        assert_eq!(all, 63 * 20);
    }
}
