//! The time of the fake: the machine's, or one that stands until it is put forward.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::instance::later;
use super::settings::ClockSetting;

/// What time it is there.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    setting: ClockSetting,
    ahead: Duration,
}

impl Clock {
    /// A clock as the settings want it.
    #[must_use]
    pub const fn new(setting: ClockSetting) -> Self {
        Self {
            setting,
            ahead: Duration::ZERO,
        }
    }

    /// The time there.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let base = match self.setting {
            ClockSetting::Real => wall_clock(),
            ClockSetting::Stepped(start) => start,
        };
        later(base, self.ahead)
    }

    /// Puts it forward.
    pub fn advance(&mut self, by: Duration) {
        self.ahead = self.ahead.saturating_add(by);
    }
}

/// The time of the machine, for what clients sign.
#[expect(
    clippy::disallowed_methods,
    reason = "the edge of the fake: everything behind it takes the time as an argument"
)]
pub(super) fn wall_clock() -> Timestamp {
    Timestamp::now()
}

/// The time a request was signed: `20260101T000000Z`.
pub(super) fn parse_amz_date(text: &str) -> Option<Timestamp> {
    let parsed = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?;
    Some(parsed.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

/// The date of an answer: `Thu, 01 Jan 2026 00:00:00 GMT`.
pub(super) fn http_date(ahead: SignedDuration) -> String {
    let time = wall_clock().saturating_add(ahead).unwrap_or(Timestamp::MAX);
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
