//! What the provisioner wants of this host, and what of it is in force. Decisions only.
//!
//! The last answer is in force until the next. Where there is none:
//!
//! - `go_on` stays: a host that cannot reach its provisioner goes on with its work.
//! - `drain` stays for [`FleetConfig::drain_lapses_after`](super::FleetConfig) since the last answer,
//!   then lapses, and does not outlive the process: a provisioner that is gone must not stop a farm.
//! - `quit` stays for ever, whatever is answered later, over restarts and reboots: once the host said
//!   `fenced`, the end of its instance may be on its way, and a job taken now would die with it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Asking more often than this serves nobody, whatever the provisioner says.
const ASK_LEAST: Duration = Duration::from_secs(1);
/// A host that is not asked for longer than this would pass for dead.
const ASK_MOST: Duration = Duration::from_secs(600);
/// Longest sentence for a person that is kept, in characters.
const MAX_TEXT: usize = 300;

/// What the provisioner wants of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Work.
    #[default]
    GoOn,
    /// Finish the job, take no other, stay and keep asking.
    Drain,
    /// Finish the job, take no other, never again.
    Quit,
}

impl Order {
    /// The order as it is sent.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GoOn => "go_on",
            Self::Drain => "drain",
            Self::Quit => "quit",
        }
    }
}

/// An answer of the provisioner.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Assignment {
    /// What to do.
    #[serde(rename = "assignment")]
    pub order: Order,
    /// Why, in a word.
    #[serde(default)]
    pub reason: Option<String>,
    /// Why, in a sentence for a person.
    #[serde(default)]
    pub text: String,
    /// When to ask again.
    #[serde(default, with = "humantime_serde")]
    pub ask_again: Option<Duration>,
}

impl Assignment {
    /// The assignment without what could forge a line or fill a log.
    #[must_use]
    pub fn tamed(self) -> Self {
        Self {
            reason: self.reason.map(|reason| tame(&reason)),
            text: tame(&self.text),
            ..self
        }
    }
}

fn tame(text: &str) -> String {
    text.chars()
        .take(MAX_TEXT)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// When to ask again: as asked for, within bounds. A configuration that asks more often is a wish
/// to be asked that often.
#[must_use]
pub fn ask_again(asked: Option<Duration>, ask_every: Duration) -> Duration {
    asked
        .unwrap_or(ask_every)
        .clamp(ASK_LEAST.min(ask_every), ASK_MOST.max(ask_every))
}

/// What is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The order.
    pub order: Order,
    /// Why, in a word.
    pub reason: Option<String>,
    /// Why, in a sentence.
    pub text: String,
    /// When the provisioner answered last.
    confirmed: Option<Instant>,
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// There is a new order.
    New,
    /// The provisioner takes back a quit, which cannot be.
    Refused,
}

impl Standing {
    /// At the start. `fence` is the quit that an earlier process was given.
    #[must_use]
    pub fn new(fence: Option<(Option<String>, String)>) -> Self {
        let order = fence.as_ref().map_or(Order::GoOn, |_| Order::Quit);
        let (reason, text) = fence.unwrap_or_default();
        Self {
            order,
            reason,
            text,
            confirmed: None,
        }
    }

    /// Whether no job may be taken.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.order != Order::GoOn
    }

    /// The provisioner answered.
    pub fn answered(&mut self, assignment: &Assignment, now: Instant) -> Change {
        self.confirmed = Some(now);
        if self.order == Order::Quit {
            return if assignment.order == Order::Quit {
                Change::None
            } else {
                Change::Refused
            };
        }
        let is_new = self.order != assignment.order || self.reason != assignment.reason;
        self.order = assignment.order;
        self.reason.clone_from(&assignment.reason);
        self.text.clone_from(&assignment.text);
        if is_new { Change::New } else { Change::None }
    }

    /// When the order lapses if the provisioner does not answer until then.
    #[must_use]
    pub fn lapses_at(&self, drain_lapses_after: Duration) -> Option<Instant> {
        match self.order {
            Order::Drain => self.confirmed?.checked_add(drain_lapses_after),
            Order::GoOn | Order::Quit => None,
        }
    }

    /// Lets a drain lapse whose time is over. Returns whether it did.
    pub fn lapse(&mut self, now: Instant, drain_lapses_after: Duration) -> bool {
        let over = self
            .lapses_at(drain_lapses_after)
            .is_some_and(|at| at <= now);
        if over {
            *self = Self {
                confirmed: self.confirmed,
                ..Self::new(None)
            };
        }
        over
    }
}

/// What the host says it is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// No job: getting ready for one, or waiting for one.
    #[default]
    Idle,
    /// A job, from when it is taken until the host has been cleaned after it.
    Busy,
    /// As either, and no further job is taken.
    Draining,
    /// No job, and none will be taken: the instance may be ended.
    Fenced,
}

impl Activity {
    /// The activity as it is sent.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Fenced => "fenced",
        }
    }
}

/// What the activity follows from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether a run is in progress, or the host is being halted.
    pub is_running: bool,
    /// Whether it has a job.
    pub has_job: bool,
    /// Whether `runner` will stop: somebody drained it, or it halts the host.
    pub is_leaving: bool,
    /// Whether the cloud takes the instance back.
    pub is_noticed: bool,
    /// Whether the quit is on disk, so that a restart of `runner` takes no job either.
    pub is_fence_kept: bool,
}

/// What the host is doing. `fenced` is a promise, so it is said only when nothing can break it.
#[must_use]
pub fn activity(order: Order, facts: Facts) -> Activity {
    match order {
        Order::Quit if !facts.is_running && facts.is_fence_kept => Activity::Fenced,
        Order::Quit | Order::Drain => Activity::Draining,
        Order::GoOn if facts.is_leaving || facts.is_noticed => Activity::Draining,
        Order::GoOn if facts.has_job => Activity::Busy,
        Order::GoOn => Activity::Idle,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAPSE: Duration = Duration::from_secs(900);

    fn told(order: Order) -> Assignment {
        Assignment {
            order,
            reason: Some("maintenance".into()),
            text: "the rack is moved".into(),
            ask_again: None,
        }
    }

    fn standing(order: Order, now: Instant) -> Standing {
        let mut standing = Standing::new(None);
        standing.answered(&told(order), now);
        standing
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_may_be_taken_back_and_a_quit_may_not() {
        let now = Instant::now();
        let mut drained = standing(Order::Drain, now);
        assert!(drained.holds());
        assert_eq!(drained.answered(&told(Order::GoOn), now), Change::New);
        assert!(!drained.holds());
        let mut fenced = standing(Order::Quit, now);
        for order in [Order::GoOn, Order::Drain] {
            assert_eq!(fenced.answered(&told(order), now), Change::Refused);
            assert_eq!(fenced.order, Order::Quit);
        }
        assert_eq!(fenced.answered(&told(Order::Quit), now), Change::None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_lapses_when_the_provisioner_was_silent_for_so_long() {
        let start = Instant::now();
        let mut drained = standing(Order::Drain, start);
        assert!(!drained.lapse(start + LAPSE - Duration::from_millis(1), LAPSE));
        // An answer begins the time anew.
        let later = start + Duration::from_secs(600);
        drained.answered(&told(Order::Drain), later);
        assert!(!drained.lapse(start + LAPSE, LAPSE));
        assert!(drained.lapse(later + LAPSE, LAPSE));
        assert!(!drained.holds());
        assert!(!drained.lapse(later + LAPSE, LAPSE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_quit_never_lapses() {
        let now = Instant::now();
        let mut fenced = standing(Order::Quit, now);
        assert!(!fenced.lapse(now + Duration::from_secs(365 * 86_400), LAPSE));
        let mut of_a_process_before = Standing::new(Some((None, "over the target".into())));
        assert!(of_a_process_before.holds());
        assert!(!of_a_process_before.lapse(now + LAPSE * 100, LAPSE));
    }

    #[test]
    fn the_same_order_for_the_same_reason_is_no_change() {
        let now = Instant::now();
        let mut drained = standing(Order::Drain, now);
        assert_eq!(drained.answered(&told(Order::Drain), now), Change::None);
        let other = Assignment {
            reason: Some("drifted".into()),
            ..told(Order::Drain)
        };
        assert_eq!(drained.answered(&other, now), Change::New);
    }

    #[test]
    fn the_provisioner_cannot_make_a_host_ask_too_often_or_hardly_ever() {
        let every = Duration::from_secs(30);
        let again = |asked| ask_again(asked, every).as_millis();
        assert_eq!(again(None), 30_000);
        assert_eq!(again(Some(Duration::from_secs(45))), 45_000);
        assert_eq!(again(Some(Duration::ZERO)), 1000);
        assert_eq!(again(Some(Duration::MAX)), 600_000);
        let often = Duration::from_millis(50);
        assert_eq!(ask_again(Some(Duration::ZERO), often), often);
        let seldom = Duration::from_secs(3600);
        assert_eq!(ask_again(Some(Duration::MAX), seldom), seldom);
    }

    #[test]
    fn every_order_in_every_place_has_its_activity() {
        let mut table = String::new();
        for order in [Order::GoOn, Order::Drain, Order::Quit] {
            for bits in 0..32_u8 {
                let bit = |number: u8| bits & (1 << number) != 0;
                let facts = Facts {
                    is_running: bit(0),
                    has_job: bit(1),
                    is_leaving: bit(2),
                    is_noticed: bit(3),
                    is_fence_kept: bit(4),
                };
                let activity = activity(order, facts);
                let is_promise_kept =
                    order == Order::Quit && !facts.is_running && facts.is_fence_kept;
                assert_eq!(activity == Activity::Fenced, is_promise_kept, "{facts:?}");
                if order == Order::GoOn {
                    table.push_str(&format!(
                        "running={} job={} leaving={} noticed={} {}\n",
                        u8::from(facts.is_running),
                        u8::from(facts.has_job),
                        u8::from(facts.is_leaving),
                        u8::from(facts.is_noticed),
                        activity.as_str()
                    ));
                } else if activity != Activity::Fenced {
                    assert_eq!(activity, Activity::Draining, "{order:?} {facts:?}");
                }
            }
        }
        // The second half only differs in the fence, which nobody asked for.
        let half: Vec<&str> = table.lines().take(16).collect();
        assert_eq!(half, table.lines().skip(16).collect::<Vec<_>>());
        insta::assert_snapshot!(half.join("\n"));
    }

    #[test]
    fn an_answer_is_read_with_and_without_what_may_be_left_out() {
        let full = r#"{"assignment":"quit","reason":"idle","text":"idle for 20m","ask_again":"1m","more":1}"#;
        let read: Assignment = serde_json::from_str(full).unwrap();
        assert_eq!(read.order, Order::Quit);
        assert_eq!(read.ask_again, Some(Duration::from_secs(60)));
        let bare: Assignment = serde_json::from_str(r#"{"assignment":"go_on"}"#).unwrap();
        assert_eq!((bare.order, bare.ask_again), (Order::GoOn, None));
        for wrong in [
            "{}",
            "[]",
            r#"{"assignment":"explode"}"#,
            r#"{"assignment":"drain","ask_again":5}"#,
        ] {
            assert!(
                serde_json::from_str::<Assignment>(wrong).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_text_forges_no_line_and_fills_no_log() {
        let hostile = Assignment {
            text: format!("a\n2026 ERROR\x1b[2J{}", "x".repeat(10_000)),
            ..told(Order::Drain)
        };
        let text = hostile.tamed().text;
        assert_eq!(text.chars().count(), MAX_TEXT);
        assert!(!text.contains(char::is_control));
    }
}
