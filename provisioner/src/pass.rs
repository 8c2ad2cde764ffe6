//! One pass: observe, plan, check, apply.

use std::future::Future;
use std::sync::Arc;

use jiff::Timestamp;
use tracing::{debug, error, info};

use crate::apply::{Applied, Applier, SELF};
use crate::bill;
use crate::check::check;
use crate::cloud::{Cloud, LaunchRequest, UserData};
use crate::config::Config;
use crate::hosts::Hosts;
use crate::ids::{ImageName, PassId, PoolName};
use crate::observe::{self, Asked};
use crate::plan::plan;
use crate::store::{Action, ActionVerb, Change, Pass, Store, StoreError, Term};
use crate::world::World;

/// Where demand comes from, as a pass sees it.
pub trait Demand: Send {
    /// Demand at `now`.
    fn observe(&mut self, config: &Config, now: Timestamp) -> impl Future<Output = Asked> + Send;
}

/// What makes the user data of a launch.
pub trait Welcome: Send + Sync {
    /// What a host of this pool and image is handed, by a launch that was decided at `decided_at`:
    /// sent again, a launch must have the same parameters.
    fn user_data(
        &self,
        config: &Config,
        pool: &PoolName,
        image: &ImageName,
        decided_at: Timestamp,
    ) -> UserData;
}

impl Welcome for crate::access::Access {
    fn user_data(
        &self,
        config: &Config,
        pool: &PoolName,
        image: &ImageName,
        decided_at: Timestamp,
    ) -> UserData {
        self.user_data(config, pool, image, decided_at)
    }
}

/// Everything a pass works with.
#[derive(Debug)]
pub struct Centre<C, S, D, W> {
    /// What was configured.
    pub config: Config,
    /// The cloud.
    pub cloud: C,
    /// The store.
    pub store: Arc<S>,
    /// The hosts.
    pub hosts: Arc<Hosts>,
    /// Demand.
    pub demand: D,
    /// User data.
    pub welcome: W,
    /// Since when hosts can be heard.
    pub listening_since: Timestamp,
    /// Reads the clock.
    pub clock: fn() -> Timestamp,
}

/// How a pass went.
#[derive(Clone, Debug, PartialEq)]
pub struct PassReport {
    /// All of it, as kept.
    pub pass: Arc<Pass>,
    /// What was done; nothing if `check` found faults, or nothing was to be applied.
    pub applied: Applied,
}

impl<C: Cloud, S: Store, D: Demand, W: Welcome> Centre<C, S, D, W> {
    /// One whole pass, under `term`.
    ///
    /// # Errors
    /// If the store cannot be used, or another provisioner leads. Nothing is lost by that: the next
    /// pass finishes what was decided.
    pub async fn pass(&mut self, term: Term, seed: u64) -> Result<PassReport, StoreError> {
        let id = self.store.begin_pass(term).await?;
        let (world, mut changes) = self.observe(id, Some(term)).await?;
        let pass = Arc::new(self.decide(world, seed));
        changes.push(Change::Passed {
            pass: Arc::clone(&pass),
            kept: self.config.provisioner.passes_kept,
        });
        changes.push(Change::Forgotten {
            before: pass
                .at
                .saturating_sub(self.config.provisioner.history_kept)
                .unwrap_or(Timestamp::UNIX_EPOCH),
        });
        for fault in &pass.faults {
            error!(
                pass = id.0,
                fault, "the plan breaks a rule, and nothing of it is done"
            );
            changes.push(Change::Did(stopped(&pass, fault)));
        }
        self.store.commit(Some(term), changes).await?;
        let applied = if pass.faults.is_empty() {
            self.apply(term, &pass).await?
        } else {
            Applied::default()
        };
        say(&pass, &applied);
        Ok(PassReport { pass, applied })
    }

    /// What a pass would be now. Nothing is changed, and what hosts said stays with them.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn rehearse(&mut self, seed: u64) -> Result<Pass, StoreError> {
        let last = self.store.passes(1).await?;
        let id = PassId(last.first().map_or(1, |pass| pass.id.0 + 1));
        let (world, _) = self.observe(id, None).await?;
        Ok(self.decide(world, seed))
    }

    /// The World, and what is to be written because it was looked at.
    async fn observe(
        &mut self,
        id: PassId,
        term: Option<Term>,
    ) -> Result<(World, Vec<Change>), StoreError> {
        let now = (self.clock)();
        let looking = observe::look(&self.cloud, &self.config);
        let asking = self.demand.observe(&self.config, now);
        let (seen, demand) = tokio::join!(looking, asking);
        if let Some(term) = term {
            self.write_what_hosts_said(term).await?;
        }
        let now = (self.clock)();
        let mut stored = self.store.stored(now).await?;
        let booking = bill::book(&stored.instances, stored.booked_until, now);
        let mut changes = booking.enter(&mut stored, now);
        changes.extend(observe::addresses(&mut stored.instances, &seen));
        self.hosts.settle(&stored.instances, self.listening_since);
        let world = observe::world(id, now, &self.config, seen, stored, demand);
        Ok((world, changes))
    }

    async fn write_what_hosts_said(&self, term: Term) -> Result<(), StoreError> {
        let (views, actions) = self.hosts.take_news();
        if views.is_empty() && actions.is_empty() {
            return Ok(());
        }
        let mut changes: Vec<Change> = actions.iter().cloned().map(Change::Did).collect();
        changes.push(Change::Heard(views.clone()));
        let written = self.store.commit(Some(term), changes).await;
        if written.is_err() {
            self.hosts.return_news(&views, actions);
        }
        written
    }

    /// Plan and check. Pure, but for the time it takes: other work goes on beside it.
    fn decide(&self, world: World, seed: u64) -> Pass {
        let decide = || {
            let plan = plan(&world, &self.config, seed);
            let faults = check(&world, &self.config, &plan);
            (plan, faults)
        };
        let (plan, faults) = decide();
        Pass {
            id: world.pass,
            seed,
            at: world.now,
            config: serde_json::to_value(&self.config).unwrap_or_default(),
            world,
            plan,
            faults,
        }
    }

    async fn apply(&self, term: Term, pass: &Pass) -> Result<Applied, StoreError> {
        let applier = Applier {
            cloud: &self.cloud,
            store: self.store.as_ref(),
            hosts: &self.hosts,
            user_data: |request: &LaunchRequest, decided_at| {
                let LaunchRequest { pool, image, .. } = request;
                self.welcome
                    .user_data(&self.config, pool, image, decided_at)
            },
            term,
            clock: self.clock,
        };
        applier.apply(&pass.world, &pass.plan).await
    }
}

fn stopped(pass: &Pass, fault: &str) -> Action {
    Action {
        at: pass.at,
        by: SELF.into(),
        verb: ActionVerb::Stopped,
        instance: None,
        intent: None,
        pool: None,
        pass: Some(pass.id),
        result: fault.to_owned(),
    }
}

fn say(pass: &Pass, applied: &Applied) {
    let launched: u32 = applied.launched.values().sum();
    let terminated = applied.terminated;
    let bill = pass.plan.bill;
    if launched > 0 || terminated > 0 {
        info!(pass = pass.id.0, launched, terminated, %bill, "pass done");
    } else {
        debug!(pass = pass.id.0, %bill, "pass done, nothing changed");
    }
}
