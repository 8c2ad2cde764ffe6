//! Looks for the spot notice, tells the runs of it, and has the job ended when its time comes.

use std::rc::Rc;
use std::time::Duration;

use farm_events::{Event, InterruptionNoticed};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::Doing;
use super::imds::Imds;
use super::notice::{self, Notice};
use crate::signals::Wishes;

/// Looks for the spot notice.
pub(super) struct NoticeWatch {
    pub(super) imds: Rc<Imds>,
    pub(super) every: Duration,
    pub(super) leave_before_end: Duration,
    pub(super) wishes: Wishes,
    pub(super) clock: fn() -> Timestamp,
    pub(super) tell: mpsc::UnboundedSender<(Timestamp, Event)>,
    pub(super) noticed: watch::Sender<Option<Notice>>,
    pub(super) doing: watch::Receiver<Doing>,
    /// When to end a job that still runs, and when to kill it.
    pub(super) leave: Option<(Instant, Instant)>,
    pub(super) is_failing: bool,
}

impl NoticeWatch {
    /// Never ends by itself.
    pub(super) async fn run(mut self) {
        let mut wait = Duration::ZERO;
        loop {
            let imds = Rc::clone(&self.imds);
            let look = async {
                sleep(wait).await;
                imds.notice().await
            };
            let leave_at = self.leave.map(|(leave_at, _)| leave_at);
            let found = tokio::select! {
                found = look => found,
                // However long the metadata service takes.
                () = at(leave_at) => {
                    self.end_the_job();
                    wait = self.every;
                    continue;
                }
            };
            wait = self.every;
            match found {
                Ok(notice) => self.note(notice),
                Err(error) if !self.is_failing => {
                    self.is_failing = true;
                    warn!(
                        error,
                        "it is not known whether there is a spot notice; it is looked for again"
                    );
                }
                Err(error) => debug!(error, "still no answer about a spot notice"),
            }
        }
    }

    fn note(&mut self, notice: Option<Notice>) {
        if self.is_failing {
            self.is_failing = false;
            info!("the spot notice is looked for again");
        }
        let before = self.noticed.borrow().clone();
        match (&before, &notice) {
            (None, None) => return,
            (Some(before), None) => {
                warn!("the spot notice was withdrawn: the host works again");
                self.tell_of(before, true);
                self.leave = None;
                self.wishes.interrupted(false, None);
            }
            (_, Some(new)) if before.as_ref() != Some(new) => {
                let (action, time) = (&new.action, new.time);
                warn!(action, %time, "spot notice: the cloud takes this instance back; no further job is taken");
                self.tell_of(new, false);
                self.wishes.interrupted(true, None);
                self.plan_leave(new);
            }
            // Again at each look, in case the clock was set.
            (_, Some(same)) if self.leave.is_some() => self.plan_leave(same),
            (_, Some(_)) => {}
        }
        self.noticed.send_replace(notice);
    }

    fn plan_leave(&mut self, notice: &Notice) {
        let leave = notice::leave(notice, self.leave_before_end, (self.clock)());
        let now = Instant::now();
        self.leave = Some((now + leave.ask_in, now + leave.kill_in));
    }

    /// The time has come: whatever runs is asked to end, and killed in time.
    fn end_the_job(&mut self) {
        if let Some((_, kill_at)) = self.leave.take() {
            info!("the time of the spot notice is near: what runs is ended");
            self.wishes.interrupted(true, Some(kill_at));
        }
    }

    fn tell_of(&self, notice: &Notice, withdrawn: bool) {
        let job = self.doing.borrow().job.clone();
        let event = InterruptionNoticed {
            action: notice.action.clone(),
            time_of_action: notice.time.to_string(),
            withdrawn,
            job: job.map(|job| job.name),
        };
        // Nobody listens once the runs are over.
        self.tell.send(((self.clock)(), event.into())).ok();
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
