//! The thread that takes records from the spool to the sinks: one task per sink, each at its pace.
//!
//! A task sleeps until there is a record. After a small batch it rests for [`REST`], so that a busy
//! host sends a few batches a second and not one per record. A sink that fails is tried again after
//! a growing pause. At the end, a sink that takes records is waited for, one that does not is left:
//! its records stay in the spool.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, error, info, warn};

use crate::SinkStats;
use crate::sink::{Delivery, Failure, Sink};
use crate::spool::cursor::Position;
use crate::spool::{Batch, Spool};

/// Rest after a batch that was not full.
const REST: Duration = Duration::from_millis(100);
/// First pause after a failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause: a sink that is back gets its records within a minute.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Longest pause a server can ask for by `Retry-After`.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);
/// At exit, a delivery that lasts longer than this is not waited for: the sink is too slow, and
/// its records are safe in the spool.
const EXIT_PATIENCE: Duration = Duration::from_secs(1);
/// Pause between tries to write to a full disk.
const DISK_PAUSE: Duration = Duration::from_secs(1);

/// Set once, to the time at which everything must have ended.
pub(crate) type Stop = watch::Receiver<Option<Instant>>;

/// What is known of one sink; shared with whoever asks for statistics.
#[derive(Debug, Default)]
pub(crate) struct Status(Mutex<Known>);

#[derive(Clone, Debug, Default)]
struct Known {
    delivered: u64,
    rejected: u64,
    damaged: u64,
    failing: Option<(Instant, String)>,
}

impl Status {
    pub(crate) fn stats(&self, name: &str) -> SinkStats {
        let known = self.lock().clone();
        let (since, last_error) = known.failing.unzip();
        SinkStats {
            name: name.to_owned(),
            delivered: known.delivered,
            rejected: known.rejected,
            damaged: known.damaged,
            failing_for: since.map(|since| since.elapsed()),
            last_error,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Feeds one sink.
#[derive(Debug)]
pub(crate) struct Feeder<S> {
    pub(crate) sink: S,
    /// Number of the sink in the spool.
    pub(crate) number: usize,
    pub(crate) name: String,
    pub(crate) spool: Arc<Spool>,
    pub(crate) status: Arc<Status>,
}

impl<S: Sink> Feeder<S> {
    /// Until it is told to stop and has sent everything, or must not wait any longer.
    pub(crate) async fn run(mut self, mut stop: Stop) {
        let mut end = self.spool.watch();
        let mut failures: u32 = 0;
        while let Some(batch) = self.wait(&mut end, &mut stop).await {
            let patience = patience(stop.clone(), Instant::now());
            let delivery = tokio::select! {
                delivery = self.sink.deliver(&batch.records) => delivery,
                () = patience => return debug!(sink = self.name, "not waiting for the sink at exit"),
            };
            let pause = match self.settle(&batch, delivery) {
                None => {
                    failures = 0;
                    if batch.full { Duration::ZERO } else { REST }
                }
                Some(failure) => {
                    if stop.borrow().is_some() {
                        return;
                    }
                    failures = failures.saturating_add(1);
                    pause(failures, failure.retry_after, chance())
                }
            };
            let is_rest = failures == 0;
            tokio::select! {
                () = sleep(pause) => {}
                () = stopped(&mut stop) => if !is_rest { return },
            }
        }
    }

    /// The next batch with something in it, or none if nothing is left at the end.
    async fn wait(&self, end: &mut watch::Receiver<Position>, stop: &mut Stop) -> Option<Batch> {
        loop {
            // Marked as seen before looking, so that what comes in between is seen again.
            end.borrow_and_update();
            match self.spool.next(self.number) {
                Some(batch) if batch.records.is_empty() => {
                    self.settle(&batch, Delivery::default());
                }
                Some(batch) => return Some(batch),
                None if stop.borrow().is_some() => return None,
                None => tokio::select! {
                    changed = end.changed() => if changed.is_err() { return None },
                    () = stopped(stop) => {}
                },
            }
        }
    }

    /// Notes what became of a batch: in the spool, in the statistics and, when it changes, in the log.
    fn settle(&self, batch: &Batch, delivery: Delivery) -> Option<Failure> {
        if let Some(position) = batch.after(delivery.settled) {
            self.spool.take(self.number, position);
        }
        if batch.damaged > 0 {
            warn!(
                sink = self.name,
                lines = batch.damaged,
                "damaged lines in the spool skipped"
            );
        }
        let mut known = self.status.lock();
        known.delivered += delivery.settled as u64 - delivery.rejected;
        known.rejected += delivery.rejected;
        known.damaged += batch.damaged;
        match (&delivery.failure, known.failing.take()) {
            (None, None) => {}
            (None, Some((since, _))) => {
                info!(sink = self.name, after = ?since.elapsed(), "sink takes records again");
            }
            (Some(Failure { message, .. }), None) => {
                warn!(
                    sink = self.name,
                    error = message,
                    "sink takes no records, they wait in the spool"
                );
                known.failing = Some((Instant::now(), message.clone()));
            }
            (Some(Failure { message, .. }), Some((since, _))) => {
                debug!(
                    sink = self.name,
                    error = message,
                    "sink still takes no records"
                );
                known.failing = Some((since, message.clone()));
            }
        }
        delivery.failure
    }
}

/// Writes what waits in memory as soon as the disk takes it again.
pub(crate) async fn release_held(spool: Arc<Spool>) {
    loop {
        spool.holding.notified().await;
        warn!("disk takes no records, a few are kept in memory");
        while !spool.release() {
            sleep(DISK_PAUSE).await;
        }
        info!("disk takes records again");
    }
}

/// Runs `feeders` until they end, or until the time set in `stop`.
pub(crate) async fn run(mut feeders: tokio::task::JoinSet<()>, spool: Arc<Spool>, stop: Stop) {
    let release = tokio::spawn(release_held(spool));
    let all = async {
        while let Some(ended) = feeders.join_next().await {
            if let Err(error) = ended {
                error!(%error, "a sink stopped working, this is a bug");
            }
        }
    };
    tokio::select! {
        () = all => {}
        () = deadline(stop) => {}
    }
    release.abort();
}

/// Returns when stopping has begun.
async fn stopped(stop: &mut Stop) {
    // An error means that nobody is left who could stop us: that is a stop.
    let _closed = stop.wait_for(Option::is_some).await;
}

/// Returns when stopping must have ended.
async fn deadline(mut stop: Stop) {
    stopped(&mut stop).await;
    let deadline = *stop.borrow();
    if let Some(deadline) = deadline {
        sleep_until(deadline).await;
    }
}

/// Returns when a delivery begun at `begun` is not to be waited for any longer.
async fn patience(mut stop: Stop, begun: Instant) {
    stopped(&mut stop).await;
    sleep_until(begun + EXIT_PATIENCE).await;
}

/// Pause before the next try: doubling, by `chance` (0 to 1) between half of it and all.
fn pause(failures: u32, retry_after: Option<Duration>, chance: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let longest = (FIRST_PAUSE * 2u32.pow(doublings)).min(LONGEST_PAUSE);
    let pause = longest.mul_f64(0.5 + 0.5 * chance);
    pause.max(retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER))
}

/// A random number from 0 to 1: hosts that lost the same server must not come back at once.
fn chance() -> f64 {
    // The standard library seeds this from the kernel; nothing secret hangs on it.
    let random = RandomState::new().build_hasher().finish();
    f64::from(random.to_le_bytes()[0]) / 255.0
}

#[cfg(test)]
mod tests;
