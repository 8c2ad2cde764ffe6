//! Waits for a condition of another process, never for a time.

use std::fmt::Display;
use std::time::Duration;

/// How often a condition is looked at. Short against anything a story waits for, long against the
/// cost of a look (an HTTP request on loopback).
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks at a condition until it gives a value, and returns that.
///
/// # Panics
///
/// With `what` and the last reason, if the condition still has none after `limit`.
pub fn until<T, E: Display>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = now() + limit;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(reason) if now() >= deadline => {
                panic!("waited {limit:?} for {what}, in vain: {reason}")
            }
            Err(_) => pause(),
        }
    }
}

#[expect(
    clippy::disallowed_types,
    reason = "waits for other processes: a paused clock does not reach them"
)]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "no runtime here; the length of the pause decides nothing but how soon a change is seen"
)]
fn pause() {
    std::thread::sleep(INTERVAL);
}
