//! The provisioner dies after every single step of a pass, and the next one finishes what it began:
//! everything that was decided is launched exactly once, and nothing is left that nobody knows.
//!
//! Here a crash is a future that is never polled again, so that every step is hit exactly. The same
//! with `kill -9` on the real program, a real store and EC2's protocol is a story.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test: the clock is the real one, and what fails shall fail"
)]

mod cloud;
mod fuse;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use provisioner::cloud::{CapacityType, InstanceState, OfferingKey, Sighting, UserData};
use provisioner::config::{self, Config};
use provisioner::demand::PoolDemand;
use provisioner::hosts::{Hosts, Said};
use provisioner::ids::{ImageName, InstanceId, InstanceType, PoolName, Region};
use provisioner::observe::Asked;
use provisioner::pass::{Centre, Demand, Welcome};
use provisioner::store::sqlite;
use provisioner::store::{HistoryQuery, Missing, Store, StoreError};
use provisioner::world::HostActivity;

use cloud::MemoryCloud;
use fuse::{Fuse, Fused};

const CONFIG: &str = r#"
[images.base]
directory = "/images/base"

[pools.build]
image = "base"
types = { small = 1.0 }
max = 20
idle_timeout = "0s"
surplus_delay = "0s"
"#;

fn config() -> Config {
    config::from_sources(vec![farm_config::Source {
        path: "provisioner.toml".into(),
        text: CONFIG.into(),
    }])
    .unwrap()
}

fn pool() -> PoolName {
    PoolName::parse("build").unwrap()
}

/// So many jobs wait.
#[derive(Debug)]
struct Waiting(u32);

impl Demand for Waiting {
    async fn observe(&mut self, config: &Config, now: Timestamp) -> Asked {
        let demand = PoolDemand {
            pending: self.0,
            as_of: Some(now),
            ..PoolDemand::default()
        };
        Asked {
            pools: config
                .pools
                .keys()
                .map(|pool| (pool.clone(), demand.clone()))
                .collect(),
            remarks: Vec::new(),
        }
    }
}

#[derive(Debug)]
struct Nothing;

impl Welcome for Nothing {
    fn user_data(&self, _: &Config, _: &PoolName, _: &ImageName, _: Timestamp) -> UserData {
        UserData { json: "{}".into() }
    }
}

type Fleet<S> = Centre<Fused<MemoryCloud>, Fused<S>, Waiting, Nothing>;

/// A provisioner as it is after its start: it knows what the store knows, and no more.
async fn provisioner(
    directory: &Path,
    cloud: &MemoryCloud,
    pending: u32,
    fuse: &Arc<Fuse>,
) -> Fleet<impl Store + use<>> {
    Centre {
        config: config(),
        cloud: Fused {
            inner: cloud.clone(),
            fuse: Arc::clone(fuse),
        },
        store: Arc::new(Fused {
            inner: sqlite::open(directory, Missing::Make).await.unwrap(),
            fuse: Arc::clone(fuse),
        }),
        hosts: Arc::new(Hosts::default()),
        demand: Waiting(pending),
        welcome: Nothing,
        listening_since: Timestamp::now(),
        clock: Timestamp::now,
    }
}

/// Leads and makes one pass.
async fn pass<S: Store>(centre: &mut Fleet<S>) -> Result<(), StoreError> {
    let term = centre.store.lead().await?.expect("nobody else leads");
    centre.pass(term, 7).await?;
    Ok(())
}

/// Whether the pass came to its end before the fuse blew; if not, it is gone, with all it held.
async fn pass_until_crash<S: Store>(mut centre: Fleet<S>, fuse: &Fuse) -> bool {
    tokio::select! {
        ended = pass(&mut centre) => {
            ended.unwrap();
            true
        }
        () = fuse.blown() => false,
    }
}

/// Passes of provisioners that do not crash.
async fn passes(directory: &Path, cloud: &MemoryCloud, pending: u32, count: u32) {
    let endless = Fuse::new(i64::MAX);
    for _ in 0..count {
        let mut centre = provisioner(directory, cloud, pending, &endless).await;
        pass(&mut centre).await.unwrap();
    }
}

async fn store_and_cloud_agree(directory: &Path, cloud: &MemoryCloud) {
    let store = sqlite::open(directory, Missing::Refuse).await.unwrap();
    let stored = store.stored(Timestamp::now()).await.unwrap();
    let known: BTreeSet<InstanceId> = stored
        .instances
        .into_iter()
        .map(|record| record.id)
        .collect();
    let alive: BTreeSet<InstanceId> = cloud
        .alive()
        .into_iter()
        .map(|sighting| sighting.id)
        .collect();
    assert_eq!(known, alive, "store and cloud differ");
    assert_eq!(stored.intents, [], "a launch is still open");
}

#[tokio::test]
async fn whatever_step_of_a_launch_it_dies_at_everything_is_launched_exactly_once() {
    const WANTED: usize = 5;
    let mut steps = 0;
    loop {
        let directory = tempfile::tempdir().unwrap();
        let cloud = MemoryCloud::new(Timestamp::now);
        let fuse = Fuse::new(steps);
        let centre = provisioner(directory.path(), &cloud, 5, &fuse).await;
        let ended = pass_until_crash(centre, &fuse).await;
        let before = cloud.ever().len();
        assert!(
            before == 0 || before == WANTED,
            "{before} after step {steps}"
        );

        passes(directory.path(), &cloud, 5, 2).await;
        assert_eq!(cloud.ever().len(), WANTED, "after a crash at step {steps}");
        store_and_cloud_agree(directory.path(), &cloud).await;
        if ended {
            break;
        }
        steps += 1;
    }
    assert!(
        steps >= 20,
        "a pass that launches has more steps than {steps}"
    );
}

/// A farm of five hosts that are idle, were told to quit, and have confirmed.
async fn fenced_farm(directory: &Path, cloud: &MemoryCloud) {
    passes(directory, cloud, 5, 1).await;
    let endless = Fuse::new(i64::MAX);
    let mut centre = provisioner(directory, cloud, 0, &endless).await;
    pass(&mut centre).await.unwrap();
    let ids: Vec<InstanceId> = cloud.alive().into_iter().map(|seen| seen.id).collect();
    for id in &ids {
        centre.hosts.registered(id, Timestamp::now());
    }
    // Not all leave at once: the budget lets half of a pool go.
    for _ in 0..10 {
        for id in &ids {
            let told = centre.hosts.get(id).map(|host| host.assignment);
            let activity = match told {
                Some(provisioner::world::Assignment::Quit { .. }) => HostActivity::Fenced,
                _ => HostActivity::Idle,
            };
            say(&centre.hosts, id, activity);
        }
        if fenced(&centre.hosts, &ids) > 0 {
            break;
        }
        pass(&mut centre).await.unwrap();
    }
    assert!(fenced(&centre.hosts, &ids) > 0, "no host was told to quit");
    // The store learns what they said when a pass begins; this one is then free to crash.
    let (views, _) = centre.hosts.take_news();
    centre
        .store
        .commit(None, vec![provisioner::store::Change::Heard(views)])
        .await
        .unwrap();
}

fn fenced(hosts: &Hosts, ids: &[InstanceId]) -> usize {
    let is_fenced = |id: &&InstanceId| {
        let view = hosts.get(id).and_then(|host| host.view);
        view.is_some_and(|view| view.activity == HostActivity::Fenced)
    };
    ids.iter().filter(is_fenced).count()
}

fn say(hosts: &Hosts, id: &InstanceId, activity: HostActivity) {
    let now = Timestamp::now();
    let said = Said {
        activity,
        since: now,
        job: None,
        runs: 1,
        interruption_at: None,
        lost_job: None,
    };
    hosts.heard(id, said, now);
}

#[tokio::test]
async fn whatever_step_of_an_ending_it_dies_at_only_those_that_confirmed_are_ended() {
    let mut steps = 0;
    loop {
        let directory = tempfile::tempdir().unwrap();
        let cloud = MemoryCloud::new(Timestamp::now);
        fenced_farm(directory.path(), &cloud).await;
        let store = sqlite::open(directory.path(), Missing::Refuse)
            .await
            .unwrap();
        let confirmed: BTreeSet<InstanceId> = store
            .stored(Timestamp::now())
            .await
            .unwrap()
            .instances
            .into_iter()
            .filter(|record| {
                let host = record.host.as_ref();
                host.is_some_and(|host| host.activity == HostActivity::Fenced)
            })
            .map(|record| record.id)
            .collect();
        drop(store);

        let fuse = Fuse::new(steps);
        let centre = provisioner(directory.path(), &cloud, 0, &fuse).await;
        let ended = pass_until_crash(centre, &fuse).await;
        passes(directory.path(), &cloud, 0, 3).await;

        let over: BTreeSet<InstanceId> = cloud
            .ever()
            .into_iter()
            .filter(|sighting| sighting.state == InstanceState::Terminated)
            .map(|sighting| sighting.id)
            .collect();
        assert_eq!(over, confirmed, "after a crash at step {steps}");
        store_and_cloud_agree(directory.path(), &cloud).await;
        if ended {
            break;
        }
        steps += 1;
    }
    assert!(steps > 10, "a pass that ends has more steps than {steps}");
}

#[tokio::test]
async fn what_carries_an_intent_of_ours_and_is_not_in_the_store_is_adopted_and_not_ended() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = MemoryCloud::new(Timestamp::now);
    passes(directory.path(), &cloud, 2, 1).await;
    let first = cloud.alive().remove(0);
    cloud.place(Sighting {
        id: InstanceId::parse("i-forgotten").unwrap(),
        ..first
    });
    passes(directory.path(), &cloud, 2, 2).await;
    assert_eq!(cloud.alive().len(), 3);
    store_and_cloud_agree(directory.path(), &cloud).await;
}

#[tokio::test]
async fn what_has_no_intent_is_somebody_elses_and_stays() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = MemoryCloud::new(Timestamp::now);
    cloud.place(Sighting {
        id: InstanceId::parse("i-golden").unwrap(),
        offering: OfferingKey {
            region: Region::parse("local").unwrap(),
            zone: cloud::zone(),
            instance_type: InstanceType::parse("small").unwrap(),
            capacity_type: CapacityType::OnDemand,
        },
        state: InstanceState::Running,
        state_reason: None,
        interrupted: false,
        launched_at: Timestamp::UNIX_EPOCH,
        intent: None,
        pool: Some(pool()),
        image: None,
        image_id: None,
        hold: None,
        private_address: None,
    });
    passes(directory.path(), &cloud, 0, 5).await;
    assert_eq!(cloud.alive().len(), 1);
    let store = sqlite::open(directory.path(), Missing::Refuse)
        .await
        .unwrap();
    let history = store
        .history(&HistoryQuery {
            limit: 100,
            ..HistoryQuery::default()
        })
        .await
        .unwrap();
    assert_eq!(history, [], "nothing was done to it");
}
