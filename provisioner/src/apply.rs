//! Doing what a checked plan says: decision to the store, call to the cloud, result to the store.
//!
//! This is the only writer of the fleet. Each step is written down before the cloud hears of it, so
//! that a crash at any point leaves either nothing, or a decision that the next pass finishes:
//!
//! | crash | what the next leader finds | what it does |
//! |---|---|---|
//! | before the intent is written | nothing | plans anew |
//! | after that, before or after the call | an open intent | sends the same request again; the cloud launches nothing twice |
//! | after the answer is written | records | goes on |
//! | after a termination is written, before or after the call | a record with `ended_at` | ends it again, which ending twice allows |
//!
//! Terminations go first, launches follow. Before every call it is asked whether we still lead, and
//! before a termination whether the host has spoken since the plan was made.

use std::collections::BTreeMap;

use farm_events::{Identity, InstanceEnded, InstanceLaunched, LaunchFell, Record};
use futures_util::future::join_all;
use jiff::Timestamp;
use tracing::{info, warn};

use crate::cloud::{
    Cloud, LaunchError, LaunchRequest, Launched, LaunchedInstance, OfferingKey, ShortReason,
    Shortfall, TerminateError, UserData,
};
use crate::hosts::Hosts;
use crate::ids::{InstanceId, IntentId, PassId, PoolName, Region};
use crate::money::Money;
use crate::plan::{Plan, Termination};
use crate::shortage;
use crate::store::{Action, ActionVerb, Answer, Change, InstanceRecord, Store, StoreError, Term};
use crate::world::{
    Assignment, HostActivity, Instance, Intent, LeaveReason, Shortage, ShortageKey, Sight, World,
    elapsed,
};

/// The name under which the history knows us.
pub const SELF: &str = "provisioner";

/// Wait before a launch whose answer was lost is sent again. The cloud has its answer by then.
const AFTER_LOST_ANSWER: std::time::Duration = std::time::Duration::from_secs(5);

/// Looks for what a launch with a mismatched token brought, a pass apart. Tags become visible within
/// seconds, and five passes are minutes.
const LOOKS: u32 = 5;

/// What a pass works with.
#[derive(Debug)]
pub struct Applier<'a, C, S, U> {
    /// The cloud.
    pub cloud: &'a C,
    /// The store.
    pub store: &'a S,
    /// The hosts, to be told.
    pub hosts: &'a Hosts,
    /// What a host is handed that is launched by this request, decided at this time.
    pub user_data: U,
    /// The term we lead under.
    pub term: Term,
    /// Reads the clock.
    pub clock: fn() -> Timestamp,
}

/// What a pass did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// Instances launched, by pool.
    pub launched: BTreeMap<PoolName, u32>,
    /// Instances whose end the cloud accepted.
    pub terminated: u32,
    /// Launches that stay open, to be sent again.
    pub open: u32,
    /// What the cloud refused, one sentence each.
    pub faults: Vec<String>,
    /// What happened, to be counted.
    pub records: Vec<Record>,
}

impl Applied {
    fn merge(&mut self, other: Self) {
        for (pool, count) in other.launched {
            *self.launched.entry(pool).or_default() += count;
        }
        self.terminated += other.terminated;
        self.open += other.open;
        self.faults.extend(other.faults);
        self.records.extend(other.records);
    }
}

/// What became of one launch.
struct Sent {
    request: LaunchRequest,
    result: Result<Launched, LaunchError>,
}

impl<C, S, U> Applier<'_, C, S, U>
where
    C: Cloud,
    S: Store,
    U: Fn(&LaunchRequest, Timestamp) -> UserData,
{
    /// Applies `plan`, made from `world` and found free of faults.
    ///
    /// # Errors
    /// If the store fails or another provisioner leads: what was decided by then is in the store and
    /// finished by the next pass.
    pub async fn apply(&self, world: &World, plan: &Plan) -> Result<Applied, StoreError> {
        let mut applied = Applied::default();
        self.decide(world, plan, &mut applied).await?;
        self.terminate(world, plan, &mut applied).await?;
        self.launch(world, plan, &mut applied).await?;
        Ok(applied)
    }

    /// All that the plan changes without the cloud, its decisions included, in one transaction.
    async fn decide(
        &self,
        world: &World,
        plan: &Plan,
        applied: &mut Applied,
    ) -> Result<(), StoreError> {
        let now = (self.clock)();
        let by_id = index(world);
        let mut changes = Vec::new();
        let action = |verb, id: &InstanceId, result: String| {
            let instance = by_id.get(id);
            Change::Did(Action {
                at: now,
                by: SELF.into(),
                verb,
                instance: Some(id.clone()),
                intent: instance.and_then(|instance| instance.intent.clone()),
                pool: instance.and_then(|instance| instance.pool.clone()),
                pass: Some(plan.pass),
                result,
            })
        };
        for id in &plan.adoptions {
            if let Some(record) = by_id.get(id).and_then(|instance| adopted(instance)) {
                changes.push(Change::InstanceSeen(Box::new(record)));
                changes.push(action(
                    ActionVerb::Adopted,
                    id,
                    "its tags are ours and the store did not know it".into(),
                ));
            }
        }
        for loss in &plan.losses {
            changes.push(Change::InstanceGone {
                id: loss.id.clone(),
                at: now,
                interrupted: loss.interrupted,
            });
            let decided = by_id
                .get(&loss.id)
                .is_some_and(|instance| instance.ended_at.is_some());
            let verb = match (decided, loss.interrupted) {
                (true, _) => ActionVerb::Gone,
                (false, true) => ActionVerb::Interrupted,
                (false, false) => ActionVerb::Lost,
            };
            changes.push(action(verb, &loss.id, loss.message.clone()));
            if let Some(instance) = by_id.get(&loss.id)
                && instance.ended_at.is_none()
            {
                let reason = if loss.interrupted {
                    "interrupted"
                } else {
                    "lost"
                };
                applied
                    .records
                    .push(ended(instance, reason, plan.pass, now));
            }
            if loss.interrupted
                && let Some(instance) = by_id.get(&loss.id)
            {
                let key = ShortageKey::Offering(instance.offering.clone());
                let before = remembered(world, &key);
                changes.push(Change::Short(shortage::interrupted(
                    before,
                    instance.offering.clone(),
                    now,
                )));
            }
        }
        for suspicion in &plan.suspicions {
            changes.push(Change::Suspected {
                id: suspicion.id.clone(),
                since: suspicion.suspected.then_some(now),
            });
            changes.push(action(
                ActionVerb::Suspected,
                &suspicion.id,
                suspicion.message.clone(),
            ));
        }
        for reassignment in &plan.assignments {
            changes.push(Change::Assigned {
                id: reassignment.id.clone(),
                assignment: reassignment.assignment.clone(),
            });
            changes.push(action(
                ActionVerb::Assigned,
                &reassignment.id,
                told(&reassignment.assignment),
            ));
        }
        for (pool, memory) in &plan.memory {
            if world.memory.get(pool) != Some(memory) {
                changes.push(Change::Remembered {
                    pool: pool.clone(),
                    memory: memory.clone(),
                });
            }
        }
        for request in &plan.launches {
            changes.push(Change::IntentOpened(Intent {
                request: request.clone(),
                pass: plan.pass,
                made_at: world.now,
                attempts: 0,
                not_before: None,
            }));
            changes.push(Change::Did(decided(request, plan.pass, now)));
        }
        self.store.commit(Some(self.term), changes).await?;
        for reassignment in &plan.assignments {
            self.hosts
                .assign(&reassignment.id, reassignment.assignment.clone());
        }
        Ok(())
    }

    async fn terminate(
        &self,
        world: &World,
        plan: &Plan,
        applied: &mut Applied,
    ) -> Result<(), StoreError> {
        let by_id = index(world);
        let ending: Vec<&Termination> = plan
            .terminations
            .iter()
            .filter(|termination| self.still_right(termination, by_id.get(&termination.id)))
            .collect();
        if ending.is_empty() {
            return Ok(());
        }
        let now = (self.clock)();
        let decisions = ending.iter().flat_map(|termination| {
            let Termination { id, reason, .. } = termination;
            let action = action_on(
                ActionVerb::EndDecided,
                by_id.get(id).copied(),
                id,
                plan.pass,
                now,
                reason_text(*reason).to_owned(),
            );
            [
                Change::Ended {
                    id: id.clone(),
                    at: now,
                    reason: *reason,
                },
                Change::Did(action),
            ]
        });
        self.store
            .commit(Some(self.term), decisions.collect())
            .await?;
        let mut by_region: BTreeMap<&Region, Vec<InstanceId>> = BTreeMap::new();
        for termination in &ending {
            by_region
                .entry(&termination.region)
                .or_default()
                .push(termination.id.clone());
        }
        let reasons: BTreeMap<&InstanceId, LeaveReason> = ending
            .iter()
            .map(|termination| (&termination.id, termination.reason))
            .collect();
        self.lead().await?;
        let calls = by_region
            .iter()
            .map(|(region, ids)| self.cloud.terminate(region, ids));
        let answers = join_all(calls).await;
        let now = (self.clock)();
        let mut changes = Vec::new();
        for (id, answer) in answers.into_iter().flatten() {
            let (verb, result) = match answer {
                Ok(()) => (ActionVerb::Terminated, "the cloud ends it".to_owned()),
                Err(TerminateError::Unknown) => (
                    ActionVerb::Terminated,
                    "the cloud does not know it any more".to_owned(),
                ),
                Err(error) => (ActionVerb::EndFailed, error.to_string()),
            };
            let instance = by_id.get(&id).copied();
            if verb == ActionVerb::Terminated {
                applied.terminated += 1;
                // One that is ended again was counted the first time.
                if let Some(instance) = instance.filter(|instance| instance.ended_at.is_none())
                    && let Some(reason) = reasons.get(&id)
                {
                    let record = ended(instance, &reason.to_string(), plan.pass, now);
                    applied.records.push(record);
                }
            } else {
                warn!(instance_id = %id, error = result, "an instance could not be ended");
                applied.faults.push(format!("instance `{id}`: {result}"));
            }
            changes.push(Change::Did(action_on(
                verb, instance, &id, plan.pass, now, result,
            )));
        }
        self.store.commit(Some(self.term), changes).await
    }

    /// Whether what the termination rests on still holds: between plan and call a host may have
    /// spoken, and one that spoke is neither silent nor unregistered.
    fn still_right(&self, termination: &Termination, instance: Option<&&Instance>) -> bool {
        let view = self.hosts.get(&termination.id).and_then(|host| host.view);
        let known = instance.and_then(|instance| instance.host.as_ref());
        match termination.reason {
            LeaveReason::NeverStarted | LeaveReason::NeverRegistered => view.is_none(),
            LeaveReason::Silent | LeaveReason::Stray => {
                view.map(|view| view.heard_at) == known.map(|view| view.heard_at)
            }
            LeaveReason::Idle
            | LeaveReason::Drifted
            | LeaveReason::OverTarget
            | LeaveReason::Maintenance
            | LeaveReason::PoolRemoved
            | LeaveReason::UsedUp
            | LeaveReason::Asked => {
                view.is_some_and(|view| view.activity == HostActivity::Fenced)
                    || instance.is_some_and(|instance| instance.ended_at.is_some())
            }
        }
    }

    async fn launch(
        &self,
        world: &World,
        plan: &Plan,
        applied: &mut Applied,
    ) -> Result<(), StoreError> {
        let replays = world
            .intents
            .iter()
            .filter(|intent| plan.replays.contains(&intent.request.intent))
            .map(|intent| (&intent.request, intent.made_at));
        let launches = plan.launches.iter().map(|request| (request, world.now));
        let mut by_region: BTreeMap<&Region, Vec<_>> = BTreeMap::new();
        for (request, decided_at) in replays.chain(launches) {
            by_region
                .entry(&request.region)
                .or_default()
                .push((request, decided_at));
        }
        if by_region.is_empty() {
            return Ok(());
        }
        // Regions at the same time; within one, one after another, as its token bucket lets them.
        let regions = by_region
            .into_values()
            .map(|requests| self.launch_in_region(world, plan.pass, requests));
        for outcome in join_all(regions).await {
            applied.merge(outcome?);
        }
        Ok(())
    }

    async fn launch_in_region(
        &self,
        world: &World,
        pass: PassId,
        requests: Vec<(&LaunchRequest, Timestamp)>,
    ) -> Result<Applied, StoreError> {
        let mut applied = Applied::default();
        for (request, decided_at) in requests {
            self.lead().await?;
            let user_data = (self.user_data)(request, decided_at);
            let result = match self.cloud.launch(request, &user_data).await {
                Err(LaunchError::Mismatch { message }) => {
                    self.launched_before(request, message).await
                }
                result => result,
            };
            let sent = Sent {
                request: request.clone(),
                result,
            };
            self.record_launch(world, pass, &sent, &mut applied).await?;
        }
        Ok(applied)
    }

    /// The cloud knows the token with other parameters, so it did launch: what it launched carries
    /// the intent as a tag. As long as nothing is to be seen, the launch stays open.
    async fn launched_before(
        &self,
        request: &LaunchRequest,
        message: String,
    ) -> Result<Launched, LaunchError> {
        let seen = self.cloud.instances(&request.region).await;
        let instances: Vec<LaunchedInstance> = seen
            .unwrap_or_default()
            .into_iter()
            .filter(|sighting| sighting.intent.as_ref() == Some(&request.intent))
            .map(|sighting| LaunchedInstance {
                id: sighting.id,
                instance_type: sighting.offering.instance_type,
                zone: sighting.offering.zone,
            })
            .collect();
        if instances.is_empty() {
            return Err(LaunchError::Mismatch { message });
        }
        Ok(Launched {
            instances,
            shortfalls: Vec::new(),
        })
    }

    async fn record_launch(
        &self,
        world: &World,
        pass: PassId,
        sent: &Sent,
        applied: &mut Applied,
    ) -> Result<(), StoreError> {
        let now = (self.clock)();
        let request = &sent.request;
        let mut changes = Vec::new();
        let act = |verb, instance: Option<InstanceId>, result: String| {
            Change::Did(Action {
                at: now,
                by: SELF.into(),
                verb,
                instance,
                intent: Some(request.intent.clone()),
                pool: Some(request.pool.clone()),
                pass: Some(pass),
                result,
            })
        };
        let answer = match &sent.result {
            Ok(launched) => {
                let records = records(request, launched, now);
                for record in &records {
                    changes.push(act(
                        ActionVerb::Launched,
                        Some(record.id.clone()),
                        format!(
                            "{} in {} at {} per hour",
                            record.offering.instance_type, record.offering.zone, record.price
                        ),
                    ));
                }
                if !launched.shortfalls.is_empty() {
                    let fell = fell(request, launched);
                    warn!(pool = %request.pool, region = %request.region, image = %request.image, error = fell, "a launch brought less than wanted");
                    changes.push(act(ActionVerb::LaunchFell, None, fell));
                }
                changes.extend(learnt(world, request, launched, now));
                let news = records
                    .iter()
                    .map(|record| self::launched(record, pass, now));
                applied.records.extend(news);
                let fell = launched.shortfalls.iter();
                applied
                    .records
                    .extend(fell.map(|shortfall| fell_short(request, shortfall, now)));
                let count = u32::try_from(records.len()).unwrap_or(u32::MAX);
                *applied.launched.entry(request.pool.clone()).or_default() += count;
                if count > 0 {
                    info!(pool = %request.pool, region = %request.region, image = %request.image, count, wanted = request.count, "launched");
                }
                Answer::Launched {
                    launched: launched.clone(),
                    records,
                }
            }
            Err(error) => {
                let message = error.to_string();
                warn!(pool = %request.pool, region = %request.region, error = message, "a launch failed");
                changes.push(act(ActionVerb::LaunchFell, None, message.clone()));
                if let LaunchError::Refused { reason, message } = error {
                    let shortfall = Shortfall {
                        offering: None,
                        reason: *reason,
                        message: message.clone(),
                    };
                    changes.extend(short(world, request, &shortfall, now));
                    applied.records.push(fell_short(request, &shortfall, now));
                    applied.faults.push(format!(
                        "pool `{}` in {}: {message}",
                        request.pool, request.region
                    ));
                }
                let attempts = attempts(world, &request.intent);
                answer_to(error, message, attempts, now)
            }
        };
        if let Answer::Again { .. } = &answer {
            applied.open += 1;
        }
        changes.push(Change::IntentAnswered {
            id: request.intent.clone(),
            answer,
        });
        self.store.commit(Some(self.term), changes).await
    }

    async fn lead(&self) -> Result<(), StoreError> {
        if self.store.leads(self.term).await? {
            Ok(())
        } else {
            Err(StoreError::Deposed)
        }
    }
}

fn attempts(world: &World, intent: &IntentId) -> u32 {
    let open = world
        .intents
        .iter()
        .find(|open| open.request.intent == *intent);
    open.map_or(0, |open| open.attempts)
}

fn answer_to(error: &LaunchError, message: String, attempts: u32, now: Timestamp) -> Answer {
    let again = |message, wait| Answer::Again {
        message,
        not_before: now.saturating_add(wait).unwrap_or(now),
    };
    match error {
        LaunchError::Throttled { retry_after, .. } => again(message, *retry_after),
        LaunchError::Unknown { .. } => again(message, AFTER_LOST_ANSWER),
        LaunchError::Mismatch { .. } if attempts < LOOKS => again(message, AFTER_LOST_ANSWER),
        // Nothing carries its tag: what it launched has ended since.
        LaunchError::Mismatch { .. } | LaunchError::Refused { .. } => Answer::Failed(message),
    }
}

fn index(world: &World) -> BTreeMap<&InstanceId, &Instance> {
    world
        .instances
        .iter()
        .map(|instance| (&instance.id, instance))
        .collect()
}

fn remembered<'w>(world: &'w World, key: &ShortageKey) -> Option<&'w Shortage> {
    world.shortages.iter().find(|shortage| shortage.key == *key)
}

fn adopted(instance: &Instance) -> Option<InstanceRecord> {
    debug_assert_eq!(instance.sight, Sight::CloudOnly, "{}", instance.id);
    Some(InstanceRecord {
        id: instance.id.clone(),
        offering: instance.offering.clone(),
        intent: Some(instance.intent.clone()?),
        pool: instance.pool.clone()?,
        image: instance.image.clone()?,
        image_id: instance.image_id.clone(),
        price: instance.price,
        launched_at: instance.launched_at,
        private_address: None,
        host: None,
        assignment: Assignment::GoOn,
        hold: None,
        suspected_at: None,
        ended_at: None,
    })
}

fn records(request: &LaunchRequest, launched: &Launched, now: Timestamp) -> Vec<InstanceRecord> {
    launched
        .instances
        .iter()
        .map(|instance| InstanceRecord {
            id: instance.id.clone(),
            offering: OfferingKey {
                region: request.region.clone(),
                zone: instance.zone.clone(),
                instance_type: instance.instance_type.clone(),
                capacity_type: request.capacity_type,
            },
            intent: Some(request.intent.clone()),
            pool: request.pool.clone(),
            image: request.image.clone(),
            image_id: Some(request.image_id.clone()),
            price: price(request, instance),
            launched_at: now,
            private_address: None,
            host: None,
            assignment: Assignment::GoOn,
            hold: None,
            suspected_at: None,
            ended_at: None,
        })
        .collect()
}

/// The price planned with; the dearest choice if the cloud chose something else.
fn price(request: &LaunchRequest, instance: &LaunchedInstance) -> Money {
    let same = request.choices.iter().find(|choice| {
        choice.instance_type == instance.instance_type && choice.zone == instance.zone
    });
    let dearest = || request.choices.iter().map(|choice| choice.price).max();
    same.map(|choice| choice.price)
        .or_else(dearest)
        .unwrap_or_default()
}

/// What the answer says about capacity: where there is none, and where there is again.
fn learnt(
    world: &World,
    request: &LaunchRequest,
    launched: &Launched,
    now: Timestamp,
) -> Vec<Change> {
    let mut changes: Vec<Change> = launched
        .shortfalls
        .iter()
        .flat_map(|shortfall| short(world, request, shortfall, now))
        .collect();
    let supplied = launched.instances.iter().map(|instance| {
        ShortageKey::Offering(OfferingKey {
            region: request.region.clone(),
            zone: instance.zone.clone(),
            instance_type: instance.instance_type.clone(),
            capacity_type: request.capacity_type,
        })
    });
    let pool = (!launched.instances.is_empty()).then(|| ShortageKey::Pool {
        pool: request.pool.clone(),
        region: request.region.clone(),
    });
    let over_quota = launched
        .shortfalls
        .iter()
        .any(|shortfall| shortfall.reason == ShortReason::Quota);
    let quota = (!launched.instances.is_empty() && !over_quota).then(|| ShortageKey::Quota {
        region: request.region.clone(),
        capacity_type: request.capacity_type,
    });
    let mut again: Vec<ShortageKey> = supplied.chain(pool).chain(quota).collect();
    again.sort();
    again.dedup();
    // An offering that fell short in the same answer is short: it gave what it had.
    let fell: Vec<ShortageKey> = launched
        .shortfalls
        .iter()
        .filter_map(|shortfall| shortage::key(request, shortfall))
        .collect();
    changes.extend(
        again
            .into_iter()
            .filter(|key| !fell.contains(key) && remembered(world, key).is_some())
            .map(Change::Supplied),
    );
    changes
}

fn short(
    world: &World,
    request: &LaunchRequest,
    shortfall: &Shortfall,
    now: Timestamp,
) -> Option<Change> {
    let key = shortage::key(request, shortfall)?;
    let before = remembered(world, &key);
    let found = shortage::found(
        before,
        key.clone(),
        shortfall.reason,
        &shortfall.message,
        now,
    );
    Some(Change::Short(found))
}

fn fell(request: &LaunchRequest, launched: &Launched) -> String {
    let reasons: Vec<String> = launched
        .shortfalls
        .iter()
        .map(|shortfall| match &shortfall.offering {
            Some(offering) => format!(
                "{} in {}: {}",
                offering.instance_type, offering.zone, shortfall.message
            ),
            None => shortfall.message.clone(),
        })
        .collect();
    format!(
        "{} of {} launched: {}",
        launched.instances.len(),
        request.count,
        reasons.join("; ")
    )
}

fn decided(request: &LaunchRequest, pass: PassId, now: Timestamp) -> Action {
    Action {
        at: now,
        by: SELF.into(),
        verb: ActionVerb::LaunchDecided,
        instance: None,
        intent: Some(IntentId::clone(&request.intent)),
        pool: Some(request.pool.clone()),
        pass: Some(pass),
        result: format!(
            "{} × {} in {}, at most {} per hour",
            request.count,
            request.image,
            request.region,
            request.reserved()
        ),
    }
}

fn launched(record: &InstanceRecord, pass: PassId, now: Timestamp) -> Record {
    let event = InstanceLaunched {
        zone: record.offering.zone.to_string(),
        instance_type: record.offering.instance_type.to_string(),
        capacity_type: record.offering.capacity_type.to_string(),
        price: record.price.dollars(),
        intent: record
            .intent
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        pass: pass.0,
    };
    Record {
        time: now,
        identity: Identity {
            host: String::new(),
            pool: record.pool.to_string(),
            image: record.image.to_string(),
            region: record.offering.region.to_string(),
            instance_id: record.id.to_string(),
        },
        event: event.into(),
    }
}

fn fell_short(request: &LaunchRequest, shortfall: &Shortfall, now: Timestamp) -> Record {
    let offering = shortfall.offering.as_ref();
    let event = LaunchFell {
        reason: shortfall.reason.to_string(),
        zone: offering.map(|offering| offering.zone.to_string()),
        instance_type: offering.map(|offering| offering.instance_type.to_string()),
        message: shortfall.message.clone(),
        intent: request.intent.to_string(),
    };
    Record {
        time: now,
        identity: Identity {
            pool: request.pool.to_string(),
            image: request.image.to_string(),
            region: request.region.to_string(),
            ..Identity::default()
        },
        event: event.into(),
    }
}

fn ended(instance: &Instance, reason: &str, pass: PassId, now: Timestamp) -> Record {
    let lived = elapsed(instance.launched_at, now);
    let event = InstanceEnded {
        reason: reason.to_owned(),
        instance_type: instance.offering.instance_type.to_string(),
        lived_ms: u64::try_from(lived.as_millis()).unwrap_or(u64::MAX),
        pass: pass.0,
    };
    let name = |name: Option<String>| name.unwrap_or_default();
    Record {
        time: now,
        identity: Identity {
            host: String::new(),
            pool: name(instance.pool.as_ref().map(ToString::to_string)),
            image: name(instance.image.as_ref().map(ToString::to_string)),
            region: instance.offering.region.to_string(),
            instance_id: instance.id.to_string(),
        },
        event: event.into(),
    }
}

fn action_on(
    verb: ActionVerb,
    instance: Option<&Instance>,
    id: &InstanceId,
    pass: PassId,
    now: Timestamp,
    result: String,
) -> Action {
    Action {
        at: now,
        by: SELF.into(),
        verb,
        instance: Some(id.clone()),
        intent: instance.and_then(|instance| instance.intent.clone()),
        pool: instance.and_then(|instance| instance.pool.clone()),
        pass: Some(pass),
        result,
    }
}

pub(crate) fn told(assignment: &Assignment) -> String {
    match assignment {
        Assignment::GoOn => "go on".into(),
        Assignment::Drain { reason, .. } => format!("drain: {}", reason_text(*reason)),
        Assignment::Quit { reason, .. } => format!("quit: {}", reason_text(*reason)),
    }
}

/// Why a host leaves, in words.
#[must_use]
pub const fn reason_text(reason: LeaveReason) -> &'static str {
    match reason {
        LeaveReason::Idle => "it has been idle for longer than its pool keeps hosts",
        LeaveReason::Drifted => "its image is no longer wanted",
        LeaveReason::OverTarget => "its pool has more hosts than it needs",
        LeaveReason::Maintenance => "somebody ordered maintenance",
        LeaveReason::PoolRemoved => "its pool is no longer configured",
        LeaveReason::UsedUp => "it has made as many runs as a host of its pool makes",
        LeaveReason::NeverStarted => "it was launched and never came up",
        LeaveReason::NeverRegistered => "it came up and its host never registered",
        LeaveReason::Silent => "its host has not been heard of for too long",
        LeaveReason::Stray => "no decision of ours launched it",
        LeaveReason::Asked => "somebody asked for it",
    }
}
