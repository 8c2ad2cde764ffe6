use super::*;
use crate::store::suite;

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// An instance of ours, with a host that has a job.
fn instance(id: &str) -> Instance {
    let pass = suite::pass(1);
    Instance {
        id: name(id),
        intent: Some(name("abcdefgh-1-0")),
        image: Some(name("bullseye-7")),
        assignment: Assignment::GoOn,
        ..pass.world.instances[0].clone()
    }
}

#[test]
fn the_phase_of_an_instance_is_what_matters_most_of_it() {
    let busy = instance("i-1");
    let with = |activity| {
        let host = busy.host.clone().map(|host| HostView { activity, ..host });
        Instance {
            host,
            ..busy.clone()
        }
    };
    let in_state = |state| Instance {
        state,
        ..busy.clone()
    };
    let silent = |state| Instance {
        host: None,
        ..in_state(state)
    };
    let ended = Instance {
        ended_at: Some(busy.launched_at),
        ..busy.clone()
    };
    let foreign = Instance {
        intent: None,
        ..busy.clone()
    };
    let cases = [
        (silent(InstanceState::Pending), Phase::Launching),
        (silent(InstanceState::Running), Phase::Booting),
        (with(HostActivity::Idle), Phase::Idle),
        (with(HostActivity::Busy), Phase::Busy),
        (with(HostActivity::Draining), Phase::Draining),
        (with(HostActivity::Fenced), Phase::Fenced),
        // The host is heard before the cloud shows it as running.
        (in_state(InstanceState::Pending), Phase::Busy),
        (in_state(InstanceState::Stopping), Phase::Ending),
        (ended, Phase::Ending),
        (in_state(InstanceState::Stopped), Phase::Stopped),
        (in_state(InstanceState::Terminated), Phase::Gone),
        (foreign, Phase::Foreign),
    ];
    for (instance, expected) in cases {
        assert_eq!(phase(&instance), expected, "{instance:?}");
    }
}

#[test]
fn a_hold_that_has_expired_is_none() {
    let held = instance("i-1");
    let expires = held.hold.as_ref().unwrap().expires.unwrap();
    let second = jiff::SignedDuration::from_secs(1);
    assert!(instance_row(&held, expires - second).hold.is_some());
    assert!(instance_row(&held, expires).hold.is_none());
}

#[test]
fn rows_are_read_back_as_they_were_written() {
    let pass = suite::pass(1);
    let instances = instances(&pass.world);
    let text = serde_json::to_string(&instances).unwrap();
    assert_eq!(
        serde_json::from_str::<Vec<InstanceRow>>(&text).unwrap(),
        instances
    );
    let pools = pools(&pass);
    assert_eq!(pools[0].oldest_age, Some(Duration::from_millis(90_500)));
    let text = serde_json::to_string(&pools).unwrap();
    assert!(text.contains(r#""oldest_age_ms":90500"#), "{text}");
    assert_eq!(serde_json::from_str::<Vec<PoolRow>>(&text).unwrap(), pools);
}

#[test]
fn a_pool_is_shown_as_long_as_it_has_instances() {
    let mut pass = suite::pass(1);
    let removed = |state| Instance {
        pool: Some(name("removed")),
        state,
        ..instance("i-2")
    };
    let names = |pass: &Pass| -> Vec<String> {
        let rows = pools(pass);
        rows.iter().map(|row| row.pool.to_string()).collect()
    };
    pass.world.instances.push(removed(InstanceState::Running));
    assert_eq!(names(&pass), ["linux64", "removed"]);
    assert_eq!(pools(&pass)[1].pending, None, "nobody asked for it");
    pass.world.instances.pop();
    pass.world
        .instances
        .push(removed(InstanceState::Terminated));
    assert_eq!(names(&pass), ["linux64"]);
}

#[test]
fn an_image_is_shown_with_what_each_pool_has_and_wants_of_it() {
    let mut world = suite::pass(1).world;
    world.shares = BTreeMap::from([(
        name("linux64"),
        vec![
            ImageShare {
                image: name("stable"),
                percentage: 90.0,
            },
            ImageShare {
                image: name("candidate"),
                percentage: 10.0,
            },
        ],
    )]);
    let of_image = |id, image| Instance {
        image: Some(name(image)),
        ..instance(id)
    };
    let booting = Instance {
        host: None,
        ..of_image("i-2", "candidate")
    };
    let gone = Instance {
        state: InstanceState::Terminated,
        ..of_image("i-5", "stable")
    };
    let foreign = Instance {
        intent: None,
        ..of_image("i-6", "stable")
    };
    world.instances = vec![
        of_image("i-1", "stable"),
        booting,
        of_image("i-3", "older"),
        of_image("i-4", "stable"),
        gone,
        foreign,
    ];
    let mut config = Config::default();
    let pool = crate::config::PoolSettings {
        image: Some(name("stable")),
        ..Default::default()
    };
    config.pools.insert(name("linux64"), pool.clone());
    // One without a rollout launches its own image.
    config.pools.insert(name("win64"), pool);
    for image in ["stable", "candidate", "unused"] {
        config.images.insert(name(image), Default::default());
    }
    let shown: Vec<String> = images(&world, &config)
        .iter()
        .flat_map(|row| {
            let none = row.pools.is_empty().then(|| format!("{}: -", row.image));
            let pools = row.pools.iter().map(|place| {
                format!(
                    "{}: {} {}% instances {} registered {} busy {}",
                    row.image,
                    place.pool,
                    place.percentage,
                    place.instances,
                    place.registered,
                    place.busy
                )
            });
            pools.chain(none).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(
        shown,
        [
            "candidate: linux64 10% instances 1 registered 0 busy 0",
            "older: linux64 0% instances 1 registered 1 busy 1",
            "stable: linux64 90% instances 2 registered 2 busy 2",
            "stable: win64 100% instances 0 registered 0 busy 0",
            "unused: -",
        ]
    );
}
