//! What every store promises, as functions that any store can be put through.
//!
//! SQLite's tests call them beside the code, PostgreSQL's in a story that starts a server. The story
//! is another crate and sees the library as it is built for everybody: therefore the feature
//! `store-suite`, which keeps this out of the product, and not a file that two crates include.

#![expect(
    clippy::unwrap_used,
    missing_docs,
    reason = "these are tests: each name is the promise, and a panic says that it is broken"
)]

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{
    Action, ActionVerb, Answer, Change, FORGOTTEN_AT_ONCE, HistoryQuery, InstanceRecord, Pass,
    PassSummary, Store, StoreError, Stored, Term,
};
use crate::cloud::{
    Allocation, CapacityType, Choice, InstanceState, LaunchRequest, Launched, LaunchedInstance,
    Offering, OfferingKey, ShortReason, Shortfall,
};
use crate::demand::{PoolDemand, SourceHold};
use crate::ids::{IntentId, PassId, PoolName};
use crate::money::Money;
use crate::plan::{Plan, Termination};
use crate::world::{
    Assignment, Hold, HostActivity, HostView, ImageShare, Instance, Intent, Interruptions,
    LeaveReason, Maintenance, Order, PoolMemory, RegionView, Shortage, ShortageKey, Sight, World,
};

/// A place where a store is, new and empty.
pub trait Fixture: Sync {
    /// The store.
    type Store: Store;

    /// Opens the store that is here once more, as another process does.
    fn open(&self) -> impl Future<Output = Self::Store> + Send;
}

/// Calls `$each!` with the names of all promises.
#[macro_export]
macro_rules! store_promises {
    ($each:ident) => {
        $each! {
            a_new_store_is_empty_and_has_an_id_for_ever,
            what_is_written_is_read_back_as_it_was,
            an_intent_is_open_until_it_is_answered,
            one_answer_given_twice_is_one_answer,
            an_intent_to_be_sent_again_counts_its_calls,
            another_request_under_the_id_of_an_intent_is_refused,
            instances_enter_even_if_nobody_remembers_the_decision,
            a_late_answer_brings_back_nobody,
            what_is_seen_completes_what_is_known_and_overwrites_no_decision,
            an_instance_that_comes_back_keeps_the_key_of_its_host,
            what_is_gone_or_unknown_is_left_alone,
            the_first_decision_to_end_an_instance_stands,
            an_assignment_is_read_back_until_it_is_to_go_on,
            an_interruption_counts_once_and_for_a_day,
            hours_are_forgotten_after_a_day,
            of_what_a_host_said_the_last_counts,
            no_host_can_keep_others_from_being_written,
            ten_thousand_hosts_are_one_commit,
            the_first_key_of_a_host_wins,
            a_suspect_without_a_record_is_remembered_until_it_is_cleared,
            holds_and_maintenance_need_no_leader,
            a_shortage_is_remembered_until_there_is_capacity,
            money_adds_up_by_day_and_pool,
            what_the_planner_remembers_is_replaced,
            passes_count_from_one_and_never_repeat,
            of_passes_the_last_are_kept_whole,
            the_history_is_found_by_what_is_asked_for,
            what_is_old_is_forgotten_and_nothing_else,
            forgetting_is_bounded,
            one_leads_at_a_time,
            a_deposed_leader_writes_nothing,
            a_commit_is_all_or_nothing,
            a_commit_that_is_given_up_is_all_or_nothing,
        }
    };
}

/// A Friday, in the middle of an hour, with the nanoseconds a clock gives.
fn noon() -> Timestamp {
    "2026-11-20T12:30:00.123456789Z"
        .parse()
        .expect("a timestamp")
}

fn minutes(count: i64) -> SignedDuration {
    SignedDuration::from_mins(count)
}

fn hours(count: i64) -> SignedDuration {
    SignedDuration::from_hours(count)
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a name")
}

fn offering(zone: &str) -> OfferingKey {
    OfferingKey {
        region: name("us-east-1"),
        zone: name(zone),
        instance_type: name("c6i.2xlarge"),
        capacity_type: CapacityType::Spot,
    }
}

/// An instance as it enters the store.
#[must_use]
pub fn record(id: &str) -> InstanceRecord {
    InstanceRecord {
        id: name(id),
        offering: offering("us-east-1a"),
        intent: Some(name("abcdefgh-1-0")),
        pool: name("linux64"),
        image: name("bullseye-7"),
        image_id: Some(name("ami-0123456789abcdef0")),
        price: Money::from_micros(123_457),
        launched_at: noon(),
        private_address: None,
        host: None,
        assignment: Assignment::GoOn,
        hold: None,
        suspected_at: None,
        ended_at: None,
    }
}

/// What a host says that has a job.
#[must_use]
pub fn view() -> HostView {
    HostView {
        registered_at: noon(),
        heard_at: noon() + minutes(1),
        activity: HostActivity::Busy,
        since: noon(),
        job: Some("linux64-debug #7".into()),
        runs: 12,
        interruption_at: Some(noon() + minutes(2)),
    }
}

fn hold() -> Hold {
    Hold {
        owner: "ops".into(),
        reason: "a look at the disk".into(),
        expires: Some(noon() + hours(4)),
    }
}

/// A launch of two.
#[must_use]
pub fn intent(id: &str) -> Intent {
    let choice = |zone: &str, micros: i64| Choice {
        instance_type: name("c6i.2xlarge"),
        zone: name(zone),
        price: Money::from_micros(micros),
    };
    Intent {
        request: LaunchRequest {
            intent: name(id),
            pool: name("linux64"),
            image: name("bullseye-7"),
            image_id: name("ami-0123456789abcdef0"),
            region: name("us-east-1"),
            capacity_type: CapacityType::OnDemand,
            count: 2,
            choices: vec![choice("us-east-1a", 123_457), choice("us-east-1b", 200_001)],
            allocation: Allocation::CapacityOptimized,
        },
        pass: PassId(1),
        made_at: noon(),
        attempts: 0,
        not_before: None,
    }
}

fn launched(ids: &[&str]) -> Answer {
    let instance = |id: &&str| LaunchedInstance {
        id: name(id),
        instance_type: name("c6i.2xlarge"),
        zone: name("us-east-1a"),
    };
    Answer::Launched {
        launched: Launched {
            instances: ids.iter().map(instance).collect(),
            shortfalls: vec![Shortfall {
                offering: Some(offering("us-east-1b")),
                reason: ShortReason::NoCapacity,
                message: "none left".into(),
            }],
        },
        records: ids.iter().map(|id| record(id)).collect(),
    }
}

/// An entry of the history.
#[must_use]
pub fn action(instance: &str, pass: u64) -> Action {
    Action {
        at: noon(),
        by: "provisioner".into(),
        verb: ActionVerb::Launched,
        instance: Some(name(instance)),
        intent: Some(name("abcdefgh-1-0")),
        pool: Some(name("linux64")),
        pass: Some(PassId(pass)),
        result: "it runs".into(),
    }
}

fn shortage(key: ShortageKey) -> Shortage {
    Shortage {
        key,
        reason: ShortReason::Quota,
        message: "you have requested more than your limit".into(),
        failures: 2,
        at: noon(),
        until: noon() + minutes(6),
    }
}

fn order() -> Order {
    Order {
        by: "ops".into(),
        reason: "the network is rebuilt".into(),
        at: noon(),
    }
}

/// A pass with something of everything in it.
#[must_use]
pub fn pass(id: u64) -> Pass {
    Pass {
        id: PassId(id),
        seed: u64::MAX - id,
        at: noon(),
        config: serde_json::json!({"pools": {"linux64": {"max": 10, "ratio": 1.1}}}),
        world: world(id),
        plan: Plan {
            pass: PassId(id),
            launches: vec![
                intent("abcdefgh-1-0").request,
                intent("abcdefgh-1-1").request,
            ],
            terminations: vec![Termination {
                id: name("i-1"),
                region: name("us-east-1"),
                reason: LeaveReason::Drifted,
            }],
            ..Plan::default()
        },
        faults: vec!["the fleet would cost too much".into()],
    }
}

fn world(id: u64) -> World {
    let pool: PoolName = name("linux64");
    World {
        pass: PassId(id),
        store: "abcdefgh".into(),
        now: noon(),
        demand: BTreeMap::from([(
            pool.clone(),
            PoolDemand {
                pending: 3,
                oldest_age: Some(Duration::from_millis(90_500)),
                as_of: Some(noon()),
                holds: vec![SourceHold {
                    source: name("buildbot"),
                    reason: "no answer".into(),
                }],
                ..PoolDemand::default()
            },
        )]),
        remarks: Vec::new(),
        instances: vec![Instance {
            id: name("i-1"),
            offering: offering("us-east-1a"),
            intent: None,
            pool: Some(pool.clone()),
            image: None,
            image_id: None,
            price: Money::from_micros(1),
            launched_at: noon(),
            sight: Sight::Both,
            state: InstanceState::Running,
            interrupted: false,
            host: Some(view()),
            assignment: Assignment::Quit {
                reason: LeaveReason::Idle,
                since: noon(),
            },
            hold: Some(Box::new(hold())),
            suspected_at: None,
            ended_at: None,
        }],
        intents: vec![intent("abcdefgh-1-0")],
        regions: BTreeMap::from([(
            name("us-east-1"),
            RegionView {
                observed: true,
                fault: None,
            },
        )]),
        offerings: vec![Offering {
            key: offering("us-east-1a"),
            price: Money::from_micros(99_999),
            as_of: noon(),
        }],
        shortages: vec![shortage(ShortageKey::Offering(offering("us-east-1b")))],
        interruptions: vec![Interruptions {
            key: offering("us-east-1a"),
            count: 1,
            instance_hours: 0.25,
        }],
        shares: BTreeMap::from([(
            pool.clone(),
            vec![ImageShare {
                image: name("bullseye-7"),
                percentage: 100.0,
            }],
        )]),
        maintenance: Maintenance::default(),
        spent_today: BTreeMap::from([(pool.clone(), Money::from_micros(7))]),
        memory: BTreeMap::from([(pool, PoolMemory::default())]),
    }
}

/// One of each kind of change, none of which takes another back: a store with a row in each table.
#[must_use]
pub fn one_of_each() -> Vec<Change> {
    let pool: PoolName = name("linux64");
    vec![
        Change::IntentOpened(intent("abcdefgh-1-0")),
        Change::IntentOpened(intent("abcdefgh-1-1")),
        answered("abcdefgh-1-0", launched(&["i-1", "i-2"])),
        seen("i-3"),
        gone("i-2", noon(), true),
        quit("i-1"),
        ended("i-1", noon()),
        suspected("i-3", Some(noon())),
        suspected("i-stray", Some(noon())),
        Change::Heard(vec![(name("i-1"), view())]),
        held("i-1", Some(hold())),
        Change::Maintained {
            pool: None,
            order: Some(order()),
        },
        Change::Maintained {
            pool: Some(pool.clone()),
            order: Some(order()),
        },
        Change::Short(shortage(ShortageKey::Offering(offering("us-east-1b")))),
        Change::Spent {
            pool: pool.clone(),
            day: "2026-11-20".parse().expect("a day"),
            amount: Money::from_micros(1_500_000),
        },
        Change::Booked {
            hours: vec![(offering("us-east-1a"), 1.25)],
            until: noon(),
        },
        Change::Remembered {
            pool,
            memory: PoolMemory {
                surplus_since: Some(noon()),
                ..PoolMemory::default()
            },
        },
        Change::Passed {
            pass: Arc::new(pass(1)),
            kept: 10,
        },
        Change::Did(action("i-1", 1)),
    ]
}

/// A store that leads.
struct Leading<S> {
    store: S,
    term: Term,
}

async fn leading<F: Fixture>(fixture: &F) -> Leading<F::Store> {
    let store = fixture.open().await;
    let term = store.lead().await.expect("the store answers");
    Leading {
        term: term.expect("nobody else leads"),
        store,
    }
}

impl<S: Store> Leading<S> {
    async fn write(&self, changes: Vec<Change>) {
        let written = self.store.commit(Some(self.term), changes).await;
        written.expect("the store takes it");
    }

    async fn stored(&self) -> Stored {
        self.stored_at(noon()).await
    }

    async fn stored_at(&self, now: Timestamp) -> Stored {
        self.store.stored(now).await.expect("the store answers")
    }

    /// The instance, if it is there.
    async fn instance(&self, id: &str) -> Option<InstanceRecord> {
        let stored = self.stored().await.instances;
        stored.into_iter().find(|record| record.id.as_str() == id)
    }

    async fn key(&self, id: &str) -> Option<String> {
        let found = self.store.registration(&name(id)).await;
        found.expect("the store answers")?.key
    }

    async fn register(&self, id: &str, key: &str) -> Option<String> {
        let registered = self.store.register(&name(id), key, noon()).await;
        registered.expect("the store answers")
    }

    async fn history(&self, query: HistoryQuery) -> Vec<Action> {
        self.store.history(&query).await.expect("the store answers")
    }
}

fn seen(id: &str) -> Change {
    Change::InstanceSeen(Box::new(record(id)))
}

fn gone(id: &str, at: Timestamp, interrupted: bool) -> Change {
    Change::InstanceGone {
        id: name(id),
        at,
        interrupted,
    }
}

fn answered(id: &str, answer: Answer) -> Change {
    Change::IntentAnswered {
        id: name(id),
        answer,
    }
}

fn held(id: &str, hold: Option<Hold>) -> Change {
    Change::Held { id: name(id), hold }
}

fn suspected(id: &str, since: Option<Timestamp>) -> Change {
    Change::Suspected {
        id: name(id),
        since,
    }
}

fn quit(id: &str) -> Change {
    Change::Assigned {
        id: name(id),
        assignment: Assignment::Quit {
            reason: LeaveReason::OverTarget,
            since: noon(),
        },
    }
}

fn ended(id: &str, at: Timestamp) -> Change {
    Change::Ended {
        id: name(id),
        at,
        reason: LeaveReason::OverTarget,
    }
}

fn all() -> HistoryQuery {
    HistoryQuery {
        limit: u32::MAX,
        ..HistoryQuery::default()
    }
}

pub async fn a_new_store_is_empty_and_has_an_id_for_ever<F: Fixture>(fixture: &F) {
    let first = leading(fixture).await;
    let stored = first.stored().await;
    assert_eq!(stored.id.len(), 8);
    assert!(stored.id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let empty = Stored {
        id: stored.id.clone(),
        instances: Vec::new(),
        suspects: BTreeMap::new(),
        intents: Vec::new(),
        shortages: Vec::new(),
        interruptions: Vec::new(),
        maintenance: Maintenance::default(),
        spent_today: BTreeMap::new(),
        memory: BTreeMap::new(),
        booked_until: None,
    };
    assert_eq!(stored, empty);
    assert_eq!(fixture.open().await.stored(noon()).await.unwrap(), empty);
}

pub async fn what_is_written_is_read_back_as_it_was<F: Fixture>(fixture: &F) {
    let full = InstanceRecord {
        private_address: Some("10.0.0.7".parse().unwrap()),
        host: Some(view()),
        assignment: Assignment::Drain {
            reason: LeaveReason::Maintenance,
            since: noon(),
        },
        hold: Some(Box::new(hold())),
        suspected_at: Some(noon()),
        ended_at: Some(noon() + minutes(1)),
        ..record("i-full")
    };
    let bare = InstanceRecord {
        intent: None,
        image_id: None,
        ..record("i-bare")
    };
    let open = Intent {
        attempts: 3,
        not_before: Some(noon() + minutes(3)),
        ..intent("abcdefgh-1-0")
    };
    let store = leading(fixture).await;
    store
        .write(vec![
            Change::InstanceSeen(Box::new(full.clone())),
            Change::InstanceSeen(Box::new(bare.clone())),
            Change::IntentOpened(open.clone()),
        ])
        .await;
    for stored in [
        store.stored().await,
        fixture.open().await.stored(noon()).await.unwrap(),
    ] {
        assert_eq!(stored.instances, [bare.clone(), full.clone()]);
        assert_eq!(stored.intents, std::slice::from_ref(&open));
    }
}

pub async fn an_intent_is_open_until_it_is_answered<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    let ids = ["abcdefgh-1-2", "abcdefgh-1-0", "abcdefgh-1-1"];
    let opened = ids.map(|id| Change::IntentOpened(intent(id)));
    store.write(opened.to_vec()).await;
    // Written again: the reply to the first commit was lost.
    store.write(opened.to_vec()).await;
    let open = |stored: Stored| -> Vec<IntentId> {
        let intents = stored.intents.into_iter();
        intents.map(|intent| intent.request.intent).collect()
    };
    assert_eq!(
        open(store.stored().await),
        ["abcdefgh-1-0", "abcdefgh-1-1", "abcdefgh-1-2"].map(name::<IntentId>)
    );
    store
        .write(vec![
            answered("abcdefgh-1-1", launched(&["i-1", "i-2"])),
            answered("abcdefgh-1-2", Answer::Failed("no such image".into())),
        ])
        .await;
    let stored = store.stored().await;
    assert_eq!(stored.instances, [record("i-1"), record("i-2")]);
    assert_eq!(open(stored), [name::<IntentId>("abcdefgh-1-0")]);
}

pub async fn one_answer_given_twice_is_one_answer<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    store
        .write(vec![Change::IntentOpened(intent("abcdefgh-1-0"))])
        .await;
    let answer = answered("abcdefgh-1-0", launched(&["i-1"]));
    store.write(vec![answer.clone()]).await;
    store.write(vec![quit("i-1")]).await;
    let before = store.stored().await;
    store.write(vec![answer]).await;
    // Nor does one that contradicts it.
    let late = Answer::Again {
        message: "lost".into(),
        not_before: noon(),
    };
    store.write(vec![answered("abcdefgh-1-0", late)]).await;
    assert_eq!(store.stored().await, before);
    assert_eq!(before.instances.len(), 1);
    assert_eq!(before.intents, []);
}

pub async fn an_intent_to_be_sent_again_counts_its_calls<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    store
        .write(vec![Change::IntentOpened(intent("abcdefgh-1-0"))])
        .await;
    for attempts in 1..=2 {
        let not_before = noon() + minutes(i64::from(attempts));
        let again = Answer::Again {
            message: "throttled".into(),
            not_before,
        };
        store.write(vec![answered("abcdefgh-1-0", again)]).await;
        let expected = Intent {
            attempts,
            not_before: Some(not_before),
            ..intent("abcdefgh-1-0")
        };
        assert_eq!(store.stored().await.intents, [expected]);
    }
}

pub async fn another_request_under_the_id_of_an_intent_is_refused<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    let first = intent("abcdefgh-1-0");
    store.write(vec![Change::IntentOpened(first.clone())]).await;
    let mut other = first.clone();
    other.request.count = 3;
    let refused = store
        .store
        .commit(Some(store.term), vec![Change::IntentOpened(other)])
        .await;
    let error = refused.unwrap_err();
    assert!(matches!(error, StoreError::Damaged(_)), "{error}");
    assert!(error.to_string().contains("`abcdefgh-1-0`"), "{error}");
    assert_eq!(store.stored().await.intents, [first]);
}

pub async fn instances_enter_even_if_nobody_remembers_the_decision<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    let answer = answered("unknown-1-0", launched(&["i-1"]));
    store.write(vec![answer]).await;
    assert_eq!(store.stored().await.instances, [record("i-1")]);
}

pub async fn a_late_answer_brings_back_nobody<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    let answer = answered("abcdefgh-1-0", launched(&["i-1"]));
    store
        .write(vec![answer.clone(), gone("i-1", noon(), false)])
        .await;
    store.write(vec![answer]).await;
    assert_eq!(store.stored().await.instances, []);
}

pub async fn what_is_seen_completes_what_is_known_and_overwrites_no_decision<F: Fixture>(
    fixture: &F,
) {
    let store = leading(fixture).await;
    let known = InstanceRecord {
        host: Some(view()),
        hold: Some(Box::new(hold())),
        suspected_at: Some(noon()),
        ended_at: Some(noon()),
        ..record("i-1")
    };
    let sighted = InstanceRecord {
        intent: None,
        image_id: None,
        private_address: Some("fd00::7".parse().unwrap()),
        offering: offering("us-east-1b"),
        ..record("i-1")
    };
    let expected = InstanceRecord {
        private_address: sighted.private_address,
        offering: sighted.offering.clone(),
        ..known.clone()
    };
    store
        .write(vec![
            Change::InstanceSeen(Box::new(known)),
            Change::InstanceSeen(Box::new(sighted)),
        ])
        .await;
    assert_eq!(store.instance("i-1").await, Some(expected.clone()));
    // The address stays known when it is not shown once.
    store.write(vec![seen("i-1")]).await;
    let expected = InstanceRecord {
        offering: record("i-1").offering,
        ..expected
    };
    assert_eq!(store.instance("i-1").await, Some(expected));
}

pub async fn an_instance_that_comes_back_keeps_the_key_of_its_host<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    store
        .write(vec![seen("i-1"), suspected("i-1", Some(noon()))])
        .await;
    store.register("i-1", "the key").await;
    store.write(vec![gone("i-1", noon(), false)]).await;
    assert_eq!(store.key("i-1").await, None);
    assert_eq!(store.register("i-1", "another").await, None);
    store.write(vec![seen("i-1")]).await;
    assert_eq!(store.key("i-1").await.as_deref(), Some("the key"));
    // It was seen to belong: the sweep begins anew.
    assert_eq!(store.instance("i-1").await.unwrap().suspected_at, None);
}

pub async fn what_is_gone_or_unknown_is_left_alone<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    store.write(vec![seen("i-gone"), seen("i-there")]).await;
    store.write(vec![gone("i-gone", noon(), false)]).await;
    let before = store.stored().await;
    for id in ["i-gone", "i-unknown"] {
        store
            .write(vec![
                quit(id),
                ended(id, noon()),
                held(id, Some(hold())),
                Change::Heard(vec![(name(id), view())]),
                gone(id, noon(), true),
            ])
            .await;
        assert_eq!(store.register(id, "key").await, None);
        assert_eq!(store.key(id).await, None);
    }
    assert_eq!(store.stored().await, before);
    assert_eq!(before.instances, [record("i-there")]);
}

pub async fn the_first_decision_to_end_an_instance_stands<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    store.write(vec![seen("i-1"), ended("i-1", noon())]).await;
    store.write(vec![ended("i-1", noon() + minutes(1))]).await;
    assert_eq!(store.instance("i-1").await.unwrap().ended_at, Some(noon()));
}

pub async fn an_assignment_is_read_back_until_it_is_to_go_on<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    store.write(vec![seen("i-1"), quit("i-1")]).await;
    assert_eq!(
        store.instance("i-1").await.unwrap().assignment,
        Assignment::Quit {
            reason: LeaveReason::OverTarget,
            since: noon()
        }
    );
    let go_on = Change::Assigned {
        id: name("i-1"),
        assignment: Assignment::GoOn,
    };
    store.write(vec![go_on]).await;
    assert_eq!(
        store.instance("i-1").await.unwrap().assignment,
        Assignment::GoOn
    );
}

pub async fn an_interruption_counts_once_and_for_a_day<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    store.write(["i-1", "i-2", "i-3"].map(seen).to_vec()).await;
    store
        .write(vec![
            gone("i-1", noon(), true),
            gone("i-1", noon(), true),
            gone("i-2", noon() + hours(1), true),
            gone("i-3", noon(), false),
        ])
        .await;
    let count = async |now: Timestamp| {
        let seen = store.stored_at(now).await.interruptions;
        seen.iter().map(|offering| offering.count).sum::<u32>()
    };
    assert_eq!(count(noon() + hours(1)).await, 2);
    // 12:30 is in the hour of 12:00, which leaves at 12:00 of the next day.
    assert_eq!(count(noon() + hours(23) + minutes(29)).await, 2);
    assert_eq!(count(noon() + hours(23) + minutes(30)).await, 1);
    assert_eq!(count(noon() + hours(24) + minutes(30)).await, 0);
}

pub async fn hours_are_forgotten_after_a_day<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    let booked = |zone: &str, hours: f64, until: Timestamp| Change::Booked {
        hours: vec![(offering(zone), hours)],
        until,
    };
    store
        .write(vec![
            booked("us-east-1b", 0.5, noon()),
            booked("us-east-1a", 0.25, noon()),
            booked("us-east-1a", 0.5, noon() + hours(2)),
        ])
        .await;
    let of = |zone: &str, hours: f64| Interruptions {
        key: offering(zone),
        count: 0,
        instance_hours: hours,
    };
    let stored = store.stored_at(noon() + hours(2)).await;
    assert_eq!(
        stored.interruptions,
        [of("us-east-1a", 0.75), of("us-east-1b", 0.5)]
    );
    assert_eq!(stored.booked_until, Some(noon() + hours(2)));
    let next_day = noon() + hours(24);
    assert_eq!(
        store.stored_at(next_day).await.interruptions,
        [of("us-east-1a", 0.5)]
    );
    // Booking forgets them for good.
    store.write(vec![booked("us-east-1a", 1.0, next_day)]).await;
    assert_eq!(
        store.stored_at(noon() + hours(2)).await.interruptions,
        [of("us-east-1a", 1.5)]
    );
}

pub async fn of_what_a_host_said_the_last_counts<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    store.write(vec![seen("i-1"), seen("i-2")]).await;
    let idle = HostView {
        activity: HostActivity::Idle,
        job: None,
        interruption_at: None,
        ..view()
    };
    let fenced = HostView {
        activity: HostActivity::Fenced,
        ..idle.clone()
    };
    store
        .write(vec![Change::Heard(vec![
            (name("i-1"), view()),
            (name("i-unknown"), view()),
            (name("i-2"), view()),
            (name("i-1"), idle.clone()),
        ])])
        .await;
    assert_eq!(store.instance("i-1").await.unwrap().host, Some(idle));
    assert_eq!(store.instance("i-2").await.unwrap().host, Some(view()));
    store
        .write(vec![Change::Heard(vec![(name("i-1"), fenced.clone())])])
        .await;
    assert_eq!(store.instance("i-1").await.unwrap().host, Some(fenced));
    assert_eq!(store.stored().await.instances.len(), 2);
}

pub async fn no_host_can_keep_others_from_being_written<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    store.write(vec![seen("i-1"), seen("i-2")]).await;
    let evil = HostView {
        heard_at: Timestamp::MAX,
        since: Timestamp::MIN,
        job: Some("null \0, quote ' \" \\ and \u{1f980}".into()),
        runs: u64::MAX,
        ..view()
    };
    store
        .write(vec![Change::Heard(vec![
            (name("i-1"), evil),
            (name("i-2"), view()),
        ])])
        .await;
    assert_eq!(store.instance("i-2").await.unwrap().host, Some(view()));
    let evil = store.instance("i-1").await.unwrap().host.unwrap();
    let job = evil.job.unwrap();
    assert_eq!(job, "null \u{fffd}, quote ' \" \\ and \u{1f980}");
    assert_eq!(evil.runs, u64::try_from(i64::MAX).unwrap());
    assert!(evil.since < noon() && noon() < evil.heard_at);
    // People type as well.
    let nul = "\0".to_owned();
    let order = Order {
        by: nul.clone(),
        reason: nul.clone(),
        at: noon(),
    };
    let hold = Hold {
        owner: nul.clone(),
        reason: nul,
        expires: None,
    };
    let maintained = Change::Maintained {
        pool: None,
        order: Some(order),
    };
    store
        .write(vec![maintained, held("i-1", Some(hold.clone()))])
        .await;
    assert_eq!(
        store.stored().await.maintenance.fleet.unwrap().by,
        "\u{fffd}"
    );
    assert_eq!(
        store.instance("i-1").await.unwrap().hold,
        Some(Box::new(hold))
    );
}

pub async fn ten_thousand_hosts_are_one_commit<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    // One more than two full statements.
    let ids: Vec<String> = (0..10_001).map(|number| format!("i-{number:05}")).collect();
    store.write(ids.iter().map(|id| seen(id)).collect()).await;
    let views = ids.iter().map(|id| (name(id), view())).collect();
    store.write(vec![Change::Heard(views)]).await;
    let stored = store.stored().await.instances;
    assert!(stored.iter().map(|record| record.id.as_str()).eq(&ids));
    assert!(stored.iter().all(|record| record.host == Some(view())));
}

pub async fn the_first_key_of_a_host_wins<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    store.write(vec![seen("i-1")]).await;
    assert_eq!(store.key("i-1").await, None);
    for key in ["first", "first", "second"] {
        assert_eq!(store.register("i-1", key).await.as_deref(), Some("first"));
    }
    assert_eq!(store.key("i-1").await.as_deref(), Some("first"));
    let idle = HostView {
        registered_at: noon(),
        heard_at: noon(),
        activity: HostActivity::Idle,
        since: noon(),
        job: None,
        runs: 0,
        interruption_at: None,
    };
    assert_eq!(store.instance("i-1").await.unwrap().host, Some(idle));
    // What it says later takes nothing of this back.
    store
        .write(vec![Change::Heard(vec![(name("i-1"), view())])])
        .await;
    assert_eq!(
        store.register("i-1", "third").await.as_deref(),
        Some("first")
    );
    assert_eq!(store.instance("i-1").await.unwrap().host, Some(view()));
}

pub async fn a_suspect_without_a_record_is_remembered_until_it_is_cleared<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    store
        .write(vec![
            seen("i-ours"),
            suspected("i-ours", Some(noon())),
            suspected("i-cleared", Some(noon())),
            suspected("i-adopted", Some(noon())),
            suspected("i-stray", Some(noon())),
        ])
        .await;
    let stored = store.stored().await;
    assert_eq!(stored.instances[0].suspected_at, Some(noon()));
    assert_eq!(stored.suspects.len(), 3);
    store
        .write(vec![
            suspected("i-ours", None),
            suspected("i-cleared", None),
            seen("i-adopted"),
        ])
        .await;
    let stored = store.stored().await;
    assert!(
        stored
            .instances
            .iter()
            .all(|record| record.suspected_at.is_none())
    );
    assert_eq!(stored.suspects, BTreeMap::from([(name("i-stray"), noon())]));
}

pub async fn holds_and_maintenance_need_no_leader<F: Fixture>(fixture: &F) {
    let leader = leading(fixture).await;
    leader.write(vec![seen("i-1")]).await;
    // Another process, by the hand of a person.
    let verb = fixture.open().await;
    let maintained = |pool: Option<&str>, order: Option<Order>| Change::Maintained {
        pool: pool.map(name),
        order,
    };
    let begun = vec![
        held("i-1", Some(hold())),
        maintained(None, Some(order())),
        maintained(Some("linux64"), Some(order())),
        Change::Did(action("i-1", 1)),
    ];
    verb.commit(None, begun).await.unwrap();
    let stored = leader.stored().await;
    assert_eq!(stored.instances[0].hold, Some(Box::new(hold())));
    assert_eq!(
        stored.maintenance,
        Maintenance {
            fleet: Some(order()),
            pools: BTreeMap::from([(name("linux64"), order())]),
        }
    );
    let over = vec![held("i-1", None), maintained(None, None)];
    verb.commit(None, over).await.unwrap();
    let stored = leader.stored().await;
    assert_eq!(stored.instances[0].hold, None);
    assert_eq!(stored.maintenance.fleet, None);
    assert_eq!(stored.maintenance.pools.len(), 1);
    assert!(leader.store.leads(leader.term).await.unwrap());
}

pub async fn a_shortage_is_remembered_until_there_is_capacity<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    let keys = [
        ShortageKey::Offering(offering("us-east-1a")),
        ShortageKey::Quota {
            region: name("us-east-1"),
            capacity_type: CapacityType::OnDemand,
        },
        ShortageKey::Addresses {
            zone: name("us-east-1b"),
        },
        ShortageKey::Pool {
            pool: name("linux64"),
            region: name("us-east-1"),
        },
    ];
    for key in &keys {
        store
            .write(vec![Change::Short(shortage(key.clone()))])
            .await;
    }
    let worse = Shortage {
        failures: 3,
        message: "still none".into(),
        ..shortage(keys[0].clone())
    };
    store.write(vec![Change::Short(worse.clone())]).await;
    let stored = store.stored().await.shortages;
    let expected: Vec<Shortage> = std::iter::once(worse)
        .chain(keys[1..].iter().cloned().map(shortage))
        .collect();
    assert_eq!(stored, expected);
    let supplied = keys.into_iter().map(Change::Supplied);
    store.write(supplied.collect()).await;
    assert_eq!(store.stored().await.shortages, []);
}

pub async fn money_adds_up_by_day_and_pool<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    let spent = |pool: &str, day: &str, micros: i64| Change::Spent {
        pool: name(pool),
        day: day.parse().unwrap(),
        amount: Money::from_micros(micros),
    };
    store
        .write(vec![
            spent("linux64", "2026-11-20", 1),
            spent("linux64", "2026-11-20", 2),
            spent("win64", "2026-11-20", 10),
            spent("linux64", "2026-11-21", 100),
        ])
        .await;
    let at = async |now: &str| {
        let spent = store.stored_at(now.parse().unwrap()).await.spent_today;
        let spent = spent.into_iter();
        spent
            .map(|(pool, amount)| (pool.to_string(), amount.micros()))
            .collect::<Vec<_>>()
    };
    let friday = [("linux64".to_owned(), 3), ("win64".to_owned(), 10)];
    assert_eq!(at("2026-11-20T00:00:00Z").await, friday);
    assert_eq!(at("2026-11-20T23:59:59.999Z").await, friday);
    assert_eq!(
        at("2026-11-21T00:00:00Z").await,
        [("linux64".to_owned(), 100)]
    );
    assert_eq!(at("2026-11-22T00:00:00Z").await, []);
}

pub async fn what_the_planner_remembers_is_replaced<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    let remembered = |since: Option<Timestamp>| {
        let memory = PoolMemory {
            surplus_since: since,
            ..PoolMemory::default()
        };
        (
            Change::Remembered {
                pool: name("linux64"),
                memory: memory.clone(),
            },
            BTreeMap::from([(name::<PoolName>("linux64"), memory)]),
        )
    };
    for since in [Some(noon()), None, Some(noon() + minutes(1))] {
        let (change, expected) = remembered(since);
        store.write(vec![change]).await;
        assert_eq!(store.stored().await.memory, expected);
    }
}

pub async fn passes_count_from_one_and_never_repeat<F: Fixture>(fixture: &F) {
    let first = leading(fixture).await;
    assert_eq!(first.store.begin_pass(first.term).await.unwrap(), PassId(1));
    assert_eq!(first.store.begin_pass(first.term).await.unwrap(), PassId(2));
    drop(first);
    let second = leading(fixture).await;
    assert_eq!(
        second.store.begin_pass(second.term).await.unwrap(),
        PassId(3)
    );
}

pub async fn of_passes_the_last_are_kept_whole<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    for id in 1..=5 {
        let pass = Arc::new(pass(id));
        store.write(vec![Change::Passed { pass, kept: 2 }]).await;
    }
    let summary = |id: u64| PassSummary {
        id: PassId(id),
        at: noon(),
        launches: 4,
        terminations: 1,
        faults: 1,
    };
    let passes = store.store.passes(10).await.unwrap();
    assert_eq!(passes, [summary(5), summary(4)]);
    assert_eq!(store.store.passes(1).await.unwrap(), [summary(5)]);
    for id in 4..=5 {
        let kept = store.store.pass(PassId(id)).await.unwrap();
        assert_eq!(kept, Some(pass(id)));
    }
    for id in [0, 3, 6] {
        assert_eq!(store.store.pass(PassId(id)).await.unwrap(), None);
    }
}

pub async fn the_history_is_found_by_what_is_asked_for<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    let actions = [
        action("i-1", 1),
        Action {
            pool: Some(name("win64")),
            ..action("i-2", 1)
        },
        Action {
            at: noon() + minutes(1),
            verb: ActionVerb::Terminated,
            ..action("i-1", 2)
        },
        Action {
            at: noon() + minutes(2),
            by: "ops".into(),
            verb: ActionVerb::Maintained,
            instance: None,
            intent: None,
            pool: None,
            pass: None,
            result: "on".into(),
        },
    ];
    store
        .write(actions.iter().cloned().map(Change::Did).collect())
        .await;
    let query = |instance: Option<&str>, pool: Option<&str>, pass: Option<u64>, since| {
        store.history(HistoryQuery {
            instance: instance.map(name),
            pool: pool.map(name),
            pass: pass.map(PassId),
            since,
            limit: 100,
        })
    };
    let those = |numbers: &[usize]| -> Vec<Action> {
        numbers
            .iter()
            .map(|&number| actions[number].clone())
            .collect()
    };
    assert_eq!(query(None, None, None, None).await, those(&[3, 2, 1, 0]));
    assert_eq!(query(Some("i-1"), None, None, None).await, those(&[2, 0]));
    assert_eq!(query(None, Some("win64"), None, None).await, those(&[1]));
    assert_eq!(query(None, None, Some(1), None).await, those(&[1, 0]));
    let soon = Some(noon() + minutes(1));
    assert_eq!(query(None, None, None, soon).await, those(&[3, 2]));
    assert_eq!(query(Some("i-1"), None, None, soon).await, those(&[2]));
    assert_eq!(
        query(Some("i-1"), Some("linux64"), Some(1), Some(noon())).await,
        those(&[0])
    );
    assert_eq!(query(Some("i-2"), Some("linux64"), None, None).await, []);
    let newest = HistoryQuery {
        limit: 2,
        ..HistoryQuery::default()
    };
    assert_eq!(store.history(newest).await, those(&[3, 2]));
}

pub async fn what_is_old_is_forgotten_and_nothing_else<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    let old = noon() - hours(1);
    let opened = |id: &str, at: Timestamp| {
        Change::IntentOpened(Intent {
            made_at: at,
            ..intent(id)
        })
    };
    let did = |at: Timestamp| {
        Change::Did(Action {
            at,
            ..action("i-1", 1)
        })
    };
    let answer = || Answer::Failed("no".into());
    store
        .write(vec![
            did(old),
            did(noon()),
            opened("old-answered-0", old),
            opened("old-open-0", old),
            opened("new-answered-0", noon()),
            answered("old-answered-0", answer()),
            answered("new-answered-0", answer()),
            seen("i-old"),
            seen("i-new"),
            seen("i-there"),
            gone("i-old", old, false),
            gone("i-new", noon(), false),
            suspected("i-suspect-old", Some(old)),
            suspected("i-suspect-new", Some(noon())),
            Change::Short(shortage(ShortageKey::Offering(offering("us-east-1a")))),
            Change::Short(Shortage {
                until: old,
                ..shortage(ShortageKey::Offering(offering("us-east-1b")))
            }),
            Change::Forgotten { before: noon() },
        ])
        .await;
    assert_eq!(store.history(all()).await, [action("i-1", 1)]);
    let stored = store.stored().await;
    assert_eq!(stored.instances, [record("i-there")]);
    assert_eq!(stored.shortages.len(), 1);
    assert_eq!(
        stored.suspects,
        BTreeMap::from([(name("i-suspect-new"), noon())])
    );
    let open: Vec<_> = stored
        .intents
        .iter()
        .map(|intent| &intent.request.intent)
        .collect();
    assert_eq!(open, [&name::<IntentId>("old-open-0")]);
    // What is remembered of the gone keeps late answers out; what is forgotten does not.
    let late = answered("x", launched(&["i-old", "i-new"]));
    store.write(vec![late]).await;
    assert!(store.instance("i-new").await.is_none());
    assert!(store.instance("i-old").await.is_some());
}

pub async fn forgetting_is_bounded<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    let surplus = 2;
    let count = usize::try_from(FORGOTTEN_AT_ONCE).unwrap() + surplus;
    let did = (0..count).map(|_| Change::Did(action("i-1", 1)));
    store.write(did.collect()).await;
    let before = noon() + minutes(1);
    store.write(vec![Change::Forgotten { before }]).await;
    assert_eq!(store.history(all()).await.len(), surplus);
    store.write(vec![Change::Forgotten { before }]).await;
    assert_eq!(store.history(all()).await.len(), 0);
}

pub async fn one_leads_at_a_time<F: Fixture>(fixture: &F) {
    let first = leading(fixture).await;
    assert_eq!(first.store.lead().await.unwrap(), Some(first.term));
    let second = fixture.open().await;
    assert_eq!(second.lead().await.unwrap(), None);
    assert!(first.store.leads(first.term).await.unwrap());
    assert!(!second.leads(first.term).await.unwrap());
    // It does not lead, but it can look.
    assert_eq!(second.stored(noon()).await.unwrap(), first.stored().await);
    drop(first.store);
    let term = led(&second).await;
    assert!(term > first.term);
    assert!(second.leads(term).await.unwrap());
    assert!(!second.leads(first.term).await.unwrap());
}

/// Leads as soon as the one that led is seen to be gone: a server hears of it in its own time.
async fn led<S: Store>(store: &S) -> Term {
    loop {
        if let Some(term) = store.lead().await.unwrap() {
            return term;
        }
        tokio::task::yield_now().await;
    }
}

pub async fn a_deposed_leader_writes_nothing<F: Fixture>(fixture: &F) {
    let first = leading(fixture).await;
    first.write(vec![seen("i-1")]).await;
    let deposed = first.term;
    drop(first);
    let second = fixture.open().await;
    let term = led(&second).await;
    let before = second.stored(noon()).await.unwrap();
    let changes = vec![Change::Did(action("i-1", 1)), quit("i-1")];
    let refused = second.commit(Some(deposed), changes.clone()).await;
    assert!(matches!(refused, Err(StoreError::Deposed)), "{refused:?}");
    let refused = second.begin_pass(deposed).await;
    assert!(matches!(refused, Err(StoreError::Deposed)), "{refused:?}");
    assert_eq!(second.stored(noon()).await.unwrap(), before);
    assert_eq!(second.history(&all()).await.unwrap(), []);
    // It hinders nobody.
    second.commit(Some(term), changes).await.unwrap();
    assert_eq!(second.begin_pass(term).await.unwrap(), PassId(1));
}

pub async fn a_commit_is_all_or_nothing<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    store
        .write(vec![Change::IntentOpened(intent("abcdefgh-1-0"))])
        .await;
    let before = store.stored().await;
    let mut other = intent("abcdefgh-1-0");
    other.request.count = 3;
    let changes = vec![
        seen("i-1"),
        Change::Did(action("i-1", 1)),
        Change::IntentOpened(other),
    ];
    let refused = store.store.commit(Some(store.term), changes).await;
    assert!(refused.is_err());
    assert_eq!(store.stored().await, before);
    assert_eq!(store.history(all()).await, []);
    store.write(vec![seen("i-1")]).await;
}

pub async fn a_commit_that_is_given_up_is_all_or_nothing<F: Fixture>(fixture: &F) {
    let store = leading(fixture).await;
    let mut whole = 0;
    let mut none = 0;
    for steps in 0..60_u32 {
        let ids = [0, 1, 2].map(|number| format!("i-{steps:02}-{number}"));
        let commit = store
            .store
            .commit(Some(store.term), ids.iter().map(|id| seen(id)).collect());
        // Dropped after so many looks at it, as a timeout or a shutdown does.
        let given_up = async {
            for _ in 0..steps {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            written = commit => written.unwrap(),
            () = given_up => {}
        }
        let stored = store.stored().await.instances;
        let prefix = format!("i-{steps:02}-");
        let there = stored
            .iter()
            .filter(|record| record.id.as_str().starts_with(&prefix));
        match there.count() {
            0 => none += 1,
            3 => whole += 1,
            some => panic!("{some} of 3 instances were written after {steps} steps"),
        }
    }
    assert!(
        none > 0,
        "no commit was given up in time: {whole} were written"
    );
    store.write(vec![seen("i-after")]).await;
    assert!(store.instance("i-after").await.is_some());
}
