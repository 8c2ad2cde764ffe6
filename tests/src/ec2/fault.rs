//! Fault points: what happens to the next calls of an action instead of, or after, what it does.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What goes wrong with the next calls of an action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The action, `CreateFleet`, or `*` for any.
    pub action: String,
    /// Only in this region.
    #[serde(default)]
    pub region: Option<String>,
    /// How many calls it strikes.
    #[serde(default = "once")]
    pub times: u32,
    /// Before or after the call does its work.
    pub point: Point,
    /// What happens there.
    pub effect: Effect,
}

/// Where a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// Nothing has happened yet. An error or a dropped connection ends the call here; a delayed or
    /// held call goes on afterwards.
    Before,
    /// All of it has happened; only the answer is missing.
    After,
}

/// What a fault does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Effect {
    /// Answers with an error.
    Error {
        /// `InsufficientInstanceCapacity`.
        code: String,
        /// HTTP status.
        status: u16,
    },
    /// Closes the connection without an answer.
    Drop,
    /// Waits, in the time of the machine, even if the clock of the fake stands.
    Delay {
        /// For so long.
        #[serde(with = "humantime_serde")]
        by: Duration,
    },
    /// Waits until a control call says `release`, or the client leaves.
    Hold,
}

const fn once() -> u32 {
    1
}

/// The faults that wait for their call.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn waiting(&self) -> &[Fault] {
        &self.0
    }

    /// The fault that strikes this call: the one added first that fits it. It is used up by one.
    pub(super) fn strike(&mut self, region: &str, action: &str) -> Option<(Point, Effect)> {
        let fits = |fault: &Fault| {
            (fault.action == "*" || fault.action == action)
                && fault.region.as_deref().is_none_or(|only| only == region)
        };
        let place = self.0.iter().position(fits)?;
        let fault = &mut self.0[place];
        let strike = (fault.point, fault.effect.clone());
        fault.times = fault.times.saturating_sub(1);
        if fault.times == 0 {
            self.0.remove(place);
        }
        Some(strike)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_its_calls_as_often_as_asked_and_the_oldest_goes_first() {
        let mut faults = Faults::default();
        let fault: Fault = serde_json::from_str(
            r#"{"action":"CreateFleet","region":"us-east-1","times":2,"point":"before",
                "effect":{"error":{"code":"Unavailable","status":503}}}"#,
        )
        .unwrap();
        faults.add(fault);
        faults.add(Fault {
            action: "*".to_owned(),
            region: None,
            times: 1,
            point: Point::After,
            effect: Effect::Drop,
        });
        let mut strike =
            |region: &str, action: &str| faults.strike(region, action).map(|(point, _)| point);
        assert_eq!(strike("us-east-1", "CreateFleet"), Some(Point::Before));
        assert_eq!(strike("us-west-2", "CreateFleet"), Some(Point::After));
        assert_eq!(strike("us-west-2", "CreateFleet"), None);
        assert_eq!(strike("us-east-1", "CreateTags"), None);
        assert_eq!(strike("us-east-1", "CreateFleet"), Some(Point::Before));
        assert_eq!(strike("us-east-1", "CreateFleet"), None);
    }
}
