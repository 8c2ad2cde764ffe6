//! The spot notice: that the cloud takes the instance back, when, and what follows. Decisions only.
//!
//! EC2 announces an interruption two minutes ahead, as best it can, at `spot/instance-action`. The
//! host takes no further job from then on. A job that runs goes on until `leave_before_end` before
//! the time of the notice, because most jobs end within it and one that is given up is made again
//! from its beginning. Rebalance recommendations are not looked at: they are a guess about a
//! whole kind of instances, and to act on one gives up a job that most often would have ended well.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Longest name of an action that is believed; EC2 knows `terminate`, `stop` and `hibernate`.
const MAX_ACTION: usize = 32;

/// An announced interruption.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// What will be done to the instance.
    pub action: String,
    /// When.
    pub time: Timestamp,
}

impl Notice {
    /// The notice in what the metadata service answered.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let notice: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if notice.action.is_empty()
            || notice.action.len() > MAX_ACTION
            || !notice.action.chars().all(is_word)
        {
            return Err("its action is no word".into());
        }
        Ok(notice)
    }
}

/// When a job that still runs is asked to end, and when it is killed, both from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave {
    /// SIGTERM.
    pub ask_in: Duration,
    /// SIGKILL. A quarter of the time is left to say which job was lost.
    pub kill_in: Duration,
}

/// What the notice leaves of time at `now`. One that came late leaves none.
#[must_use]
pub fn leave(notice: &Notice, leave_before_end: Duration, now: Timestamp) -> Leave {
    let until = |before: Duration| {
        let before = SignedDuration::try_from(before).unwrap_or(SignedDuration::MAX);
        let left = notice.time.duration_since(now).saturating_sub(before);
        Duration::try_from(left).unwrap_or_default()
    };
    Leave {
        ask_in: until(leave_before_end),
        kill_in: until(leave_before_end / 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice() -> Notice {
        Notice::parse(r#"{"action": "terminate", "time": "2026-11-20T08:22:00Z"}"#).unwrap()
    }

    fn at(now: &str) -> (u64, u64) {
        let leave = leave(&notice(), Duration::from_secs(20), now.parse().unwrap());
        (leave.ask_in.as_secs(), leave.kill_in.as_secs())
    }

    #[test]
    fn a_job_has_until_twenty_seconds_before_the_end_and_is_dead_before_it() {
        assert_eq!(at("2026-11-20T08:20:00Z"), (100, 115));
        assert_eq!(at("2026-11-20T08:21:39Z"), (1, 16));
        assert_eq!(at("2026-11-20T08:21:40Z"), (0, 15));
        assert_eq!(at("2026-11-20T08:21:55Z"), (0, 0));
    }

    #[test]
    fn a_notice_that_came_late_leaves_no_time() {
        assert_eq!(at("2026-11-20T08:21:58Z"), (0, 0));
        assert_eq!(at("2026-11-21T00:00:00Z"), (0, 0));
    }

    #[test]
    fn what_is_no_notice_is_refused() {
        for wrong in [
            "",
            "terminate",
            "{}",
            r#"{"action":"","time":"2026-11-20T08:22:00Z"}"#,
            r#"{"action":"a\nb","time":"2026-11-20T08:22:00Z"}"#,
            r#"{"action":"terminate","time":"soon"}"#,
        ] {
            assert!(Notice::parse(wrong).is_err(), "{wrong}");
        }
    }
}
