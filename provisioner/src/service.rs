//! The loop: lead, pass after pass, until somebody asks to stop.
//!
//! A pass begins every `interval`, or earlier when a host says something that should not wait (it is
//! fenced, it lost a job), but never sooner than a tenth of the interval after the last began. While
//! another provisioner leads, this one asks twice in an interval whether it still does.

use std::time::Duration;

use farm_events::{Identity, PassFinished, PoolPlanned, Record};
use farm_telemetry::Telemetry;
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use crate::cloud::Cloud;
use crate::pass::{Centre, Demand, PassReport, Welcome};
use crate::store::{Pass, Store, StoreError, Term};
use crate::troubles::{Told, troubles};

/// Longest wait after the store failed: an operator who mended it should not have to wait longer.
const LONGEST_STORE_WAIT: Duration = Duration::from_secs(30);

/// The loop.
#[derive(Debug)]
pub struct Service<C, S, D, W> {
    /// What a pass works with.
    pub centre: Centre<C, S, D, W>,
    /// Passes to make; `None`: for ever.
    pub passes: Option<u64>,
    /// Where events go.
    pub telemetry: Telemetry,
    /// Name of this machine, for events about no host.
    pub host: String,
    /// Chance.
    pub rng: StdRng,
    /// True when somebody asks to stop: after the pass.
    pub stop: watch::Receiver<bool>,
    /// Whether this provisioner leads, for those who answer hosts.
    pub leading: watch::Sender<bool>,
    /// What was said of troubles, so that each is said once.
    pub told: Told,
}

/// Why the loop ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to, or made its passes.
    Asked,
    /// The embedded store is another's.
    Locked,
}

impl<C: Cloud, S: Store, D: Demand, W: Welcome> Service<C, S, D, W> {
    /// Runs until asked to stop. With `may_follow` it waits while another leads; the embedded store
    /// has nothing to follow.
    ///
    /// # Errors
    /// If the store is damaged, or of a newer version: nothing a later try would mend.
    pub async fn run(&mut self, may_follow: bool) -> Result<Ended, StoreError> {
        let mut failures = 0;
        while !*self.stop.borrow() {
            match self.centre.store.lead().await {
                Ok(Some(term)) => {
                    info!(term = term.0, "this provisioner leads");
                    failures = 0;
                    self.leading.send_replace(true);
                    let ended = self.lead(term).await;
                    self.leading.send_replace(false);
                    match ended {
                        Ok(()) => return Ok(Ended::Asked),
                        Err(StoreError::Deposed) => warn!("another provisioner leads now"),
                        Err(error) => return Err(error),
                    }
                }
                Ok(None) if may_follow => self.wait(self.interval() / 2).await,
                Ok(None) => return Ok(Ended::Locked),
                Err(error @ (StoreError::Unavailable(_) | StoreError::Deposed)) => {
                    self.store_failed(&error, &mut failures).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Ended::Asked)
    }

    /// Pass after pass, while we lead.
    async fn lead(&mut self, term: Term) -> Result<(), StoreError> {
        let mut failures = 0;
        while !*self.stop.borrow() && self.passes != Some(0) {
            let began = Instant::now();
            let seed = self.rng.next_u64();
            match self.centre.pass(term, seed).await {
                Ok(report) => {
                    failures = 0;
                    let Pass {
                        id, world, plan, ..
                    } = report.pass.as_ref();
                    let troubles = troubles(world, plan, &self.centre.config);
                    self.told.tell(*id, &troubles);
                    self.record(&report, began.elapsed());
                }
                Err(error @ StoreError::Unavailable(_)) => {
                    self.store_failed(&error, &mut failures).await;
                }
                Err(error) => return Err(error),
            }
            if let Some(left) = &mut self.passes {
                *left -= 1;
            }
            if self.passes != Some(0) {
                self.wait_for_next(began).await;
            }
        }
        Ok(())
    }

    async fn wait_for_next(&mut self, began: Instant) {
        let interval = self.interval();
        let stop = self.stop.clone();
        tokio::select! {
            () = sleep_until(began + interval) => {}
            () = async {
                sleep_until(began + interval / 10).await;
                self.centre.hosts.news().await;
            } => {}
            () = asked(stop) => {}
        }
    }

    async fn wait(&self, time: Duration) {
        tokio::select! {
            () = sleep(time) => {}
            () = asked(self.stop.clone()) => {}
        }
    }

    async fn store_failed(&self, error: &StoreError, failures: &mut u32) {
        *failures += 1;
        let wait = Duration::from_secs(1 << (*failures).min(5)).min(LONGEST_STORE_WAIT);
        warn!(%error, ?wait, "the store cannot be used: nothing is launched or ended meanwhile");
        self.wait(wait).await;
    }

    fn interval(&self) -> Duration {
        self.centre.config.provisioner.interval
    }

    fn record(&self, report: &PassReport, duration: Duration) {
        for record in records(report, &self.host, duration) {
            self.telemetry.record(&record);
        }
    }
}

async fn asked(mut stop: watch::Receiver<bool>) {
    // An error means that nobody is left to ask: then nobody does.
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What a pass gives to be counted.
fn records(report: &PassReport, host: &str, duration: Duration) -> Vec<Record> {
    let pass = &report.pass;
    let plan = &pass.plan;
    let world = &pass.world;
    let pools = plan.pools.iter().map(|(name, pool)| {
        let demand = world.demand.get(name).cloned().unwrap_or_default();
        let spent_today = world.spent_today.get(name).copied().unwrap_or_default();
        let event = PoolPlanned {
            pending: demand.pending,
            running: demand.running,
            oldest_age_ms: demand.oldest_age.map(millis),
            existing: pool.existing,
            busy: pool.busy,
            requested: pool.requested,
            stopping: pool.stopping,
            target: pool.target,
            wanted: pool.wanted,
            launching: pool.launching,
            held: !demand.holds.is_empty(),
            bill: pool.bill.dollars(),
            spent_today: spent_today.dollars(),
            pass: pass.id.0,
        };
        let identity = Identity {
            host: host.to_owned(),
            pool: name.to_string(),
            ..Identity::default()
        };
        (identity, event.into())
    });
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let finished = PassFinished {
        pass: pass.id.0,
        duration_ms: millis(duration),
        instances: count(world.instances.len()),
        launched: report.applied.launched.values().sum(),
        terminated: report.applied.terminated,
        open: report.applied.open,
        faults: count(pass.faults.len()),
        bill: plan.bill.dollars(),
    };
    let identity = Identity {
        host: host.to_owned(),
        ..Identity::default()
    };
    let own = pools.chain(std::iter::once((identity, finished.into())));
    let own = own.map(|(identity, event)| Record {
        time: pass.at,
        identity,
        event,
    });
    report.applied.records.iter().cloned().chain(own).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
