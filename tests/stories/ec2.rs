//! EC2 as the provisioner meets it: each story is a few calls of `Cloud`, and what the fake made of
//! them.
//!
//! The fake keeps the published limits, has capacity and quotas, remembers client tokens, and refuses
//! what it does not know. It was written by other hands than what is tested here; so was moto, which
//! the last stories use for the form of requests and answers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::time::Duration;

use farm_tests::ec2::{
    Effect, FakeEc2, Fault, Outage, Params, Point, Settings, SubnetSetting, Timing, image_id,
    subnet_id,
};
use farm_tests::services::Moto;
use jiff::{SignedDuration, Timestamp};
use provisioner::cloud::ec2::{Action, Ec2};
use provisioner::cloud::{
    Allocation, CapacityType, Choice, Cloud, CloudError, Finding, InstanceState, LaunchError,
    LaunchRequest, Launched, ShortReason, TerminateError, UserData,
};
use provisioner::config::{Config, ImageSettings, PoolSettings, RegionSettings};
use provisioner::ids::{ImageName, InstanceId, InstanceType, IntentId, Region};
use provisioner::money::Money;
use tempfile::NamedTempFile;

const EAST: &str = "us-east-1";
const WEST: &str = "us-west-2";
const LARGE: &str = "c5.large";

/// The fake, and what the provisioner knows of it.
struct Farm {
    fake: FakeEc2,
    config: Config,
    keys: NamedTempFile,
}

impl Farm {
    /// Two regions, an image that is in both, and one pool.
    fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings {
            timing: Timing::immediate(),
            ..Settings::default()
        };
        change(&mut settings);
        let fake = FakeEc2::start(settings);
        let keys = keys();
        let mut config = config(&fake.url(), &keys);
        config.images = images(image_id);
        for (region, zones) in [(EAST, "ab"), (WEST, "ab")] {
            let subnets = zones
                .chars()
                .map(|zone| subnet_id(&format!("{region}{zone}")));
            let settings = RegionSettings {
                subnets: subnets.collect(),
                ..RegionSettings::default()
            };
            config
                .regions
                .insert(region.parse().expect("a name"), settings);
        }
        Self { fake, config, keys }
    }

    /// A provisioner that starts now: it knows nothing but its configuration.
    async fn ec2(&self) -> Ec2 {
        assert!(self.keys.path().exists());
        Ec2::connect(&self.config, now).await
    }

    fn strike(&self, action: &str, point: Point, effect: Effect, times: u32) {
        self.fake.with(|ec2, _| {
            ec2.add_fault(Fault {
                action: action.to_owned(),
                region: None,
                times,
                point,
                effect,
            });
        });
    }

    fn capacity(&self, zone: &str, instance_type: &str, free: u32) {
        let spot = farm_tests::ec2::CapacityType::Spot;
        let set = |ec2: &mut farm_tests::ec2::Ec2, now| {
            ec2.set_capacity(now, zone, instance_type, spot, free)
        };
        self.fake.with(set).expect("zone and type exist");
    }

    fn pool(&mut self) -> &mut PoolSettings {
        self.config.pools.values_mut().next().expect("there is one")
    }

    /// How often EC2 said that it was asked too often.
    fn throttled(&self) -> u64 {
        self.fake.with(|ec2, _| {
            let calls = ec2.calls().values();
            calls
                .filter_map(|calls| calls.errors.get("RequestLimitExceeded"))
                .sum()
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "a story has the real clock")]
fn now() -> Timestamp {
    Timestamp::now()
}

/// Keys that open nothing, in a file as EC2's own tools have it.
fn keys() -> NamedTempFile {
    let mut keys = NamedTempFile::with_prefix("farm-keys-").expect("a temporary file");
    keys.write_all(b"[default]\naws_access_key_id = AKIATEST\naws_secret_access_key = none\n")
        .expect("a temporary file can be written");
    keys
}

fn config(url: &str, keys: &NamedTempFile) -> Config {
    let mut config = Config::default();
    config.provisioner.fleet = "farm".to_owned();
    config.ec2.endpoint = Some(url.to_owned());
    config.ec2.credentials_file = Some(keys.path().to_owned());
    let pool = PoolSettings {
        image: Some("stable".parse().expect("a name")),
        types: BTreeMap::from([(LARGE.parse().expect("a name"), 1.0)]),
        ..PoolSettings::default()
    };
    config
        .pools
        .insert("linux64".parse().expect("a name"), pool);
    config
}

fn images(id: impl Fn(&str, &str) -> String) -> BTreeMap<ImageName, ImageSettings> {
    let ids = [EAST, WEST].map(|region| {
        let id = id(region, "stable").parse().expect("a name");
        (region.parse().expect("a name"), id)
    });
    let image = ImageSettings {
        ids: ids.into(),
        ..ImageSettings::default()
    };
    BTreeMap::from([("stable".parse().expect("a name"), image)])
}

fn region(name: &str) -> Region {
    name.parse().expect("a name")
}

fn choice(instance_type: &str, zone: &str) -> Choice {
    Choice {
        instance_type: instance_type.parse().expect("a name"),
        zone: zone.parse().expect("a name"),
        price: Money::from_micros(40_000),
    }
}

/// A launch of `count` in zones a and b of the first region.
fn request(intent: &str, count: u32) -> LaunchRequest {
    LaunchRequest {
        intent: intent.parse().expect("a name"),
        pool: "linux64".parse().expect("a name"),
        image: "stable".parse().expect("a name"),
        image_id: image_id(EAST, "stable").parse().expect("a name"),
        region: region(EAST),
        capacity_type: CapacityType::Spot,
        count,
        choices: vec![choice(LARGE, "us-east-1a"), choice(LARGE, "us-east-1b")],
        allocation: Allocation::PriceCapacityOptimized,
    }
}

fn user_data() -> UserData {
    UserData {
        json: r#"{"farmhand":1,"pool":"linux64","join_token":"secret"}"#.to_owned(),
    }
}

fn ids(launched: &Launched) -> BTreeSet<&str> {
    launched
        .instances
        .iter()
        .map(|instance| instance.id.as_str())
        .collect()
}

async fn launch(ec2: &Ec2, request: &LaunchRequest) -> Launched {
    ec2.launch(request, &user_data()).await.expect("an answer")
}

fn reasons(launched: &Launched) -> BTreeSet<(Option<&str>, ShortReason)> {
    let zone = |key: &Option<provisioner::cloud::OfferingKey>| {
        key.as_ref().map(|key| key.zone.as_str().to_owned())
    };
    launched
        .shortfalls
        .iter()
        .map(|short| {
            (
                zone(&short.offering).map(|zone| &*zone.leak()),
                short.reason,
            )
        })
        .collect()
}

// Launching.

#[tokio::test]
async fn a_launch_is_one_call_and_its_instances_have_their_tags_from_the_start() {
    let mut farm = Farm::start(|_| {});
    farm.pool().key_name = Some("ops".to_owned());
    farm.pool().instance_profile = Some("host".to_owned());
    let ec2 = farm.ec2().await;

    let launched = launch(&ec2, &request("s-1-1", 3)).await;
    assert_eq!(
        (launched.instances.len(), &*launched.shortfalls),
        (3, &[][..])
    );
    assert_eq!(farm.fake.count("CreateFleet"), 1);

    let there = farm.fake.instances();
    assert_eq!(there.len(), 3);
    for instance in &there {
        let place = launched
            .instances
            .iter()
            .find(|one| one.id.as_str() == instance.id);
        let place = place.unwrap();
        assert_eq!(place.zone.as_str(), instance.zone);
        assert_eq!(place.instance_type.as_str(), instance.instance_type);
        assert_eq!(instance.image, image_id(EAST, "stable"));
        assert_eq!(instance.key_name.as_deref(), Some("ops"));
        let expected = [
            ("Name", "farm linux64"),
            ("farmhand:image", "stable"),
            ("farmhand:intent", "s-1-1"),
            ("farmhand:owner", "farm"),
            ("farmhand:pool", "linux64"),
        ];
        for (key, value) in expected {
            assert_eq!(
                instance.tags.get(key).map(String::as_str),
                Some(value),
                "{key}"
            );
        }
    }

    let seen = ec2.instances(&region(EAST)).await.unwrap();
    let seen_ids: BTreeSet<&str> = seen.iter().map(|sighting| sighting.id.as_str()).collect();
    assert_eq!(seen_ids, ids(&launched));
    let one = &seen[0];
    assert_eq!(one.intent, Some(IntentId::parse("s-1-1").unwrap()));
    assert_eq!(
        one.pool.as_ref().map(ToString::to_string).as_deref(),
        Some("linux64")
    );
    assert_eq!(
        one.image.as_ref().map(ToString::to_string).as_deref(),
        Some("stable")
    );
    assert_eq!(one.offering.capacity_type, CapacityType::Spot);
    assert_eq!(one.state, InstanceState::Running);
    assert!(one.private_address.is_some() && one.hold.is_none() && !one.interrupted);
    let age = now().duration_since(one.launched_at);
    assert!(age < SignedDuration::from_secs(60), "{age}");
    // Nobody else's, and no other region's.
    assert_eq!(ec2.instances(&region(WEST)).await.unwrap(), []);
}

#[tokio::test]
async fn a_hundred_instances_take_four_calls_the_first_time_and_one_after() {
    let farm = Farm::start(|_| {});
    let ec2 = farm.ec2().await;
    let calls = || {
        Action::ALL
            .iter()
            .map(|action| ec2.calls(*action))
            .sum::<u64>()
    };
    // Subnets, a look for the template, the template, the fleet.
    launch(&ec2, &request("s-1-1", 100)).await;
    assert_eq!(calls(), 4);
    launch(&ec2, &request("s-1-2", 100)).await;
    assert_eq!(calls(), 5);
    assert_eq!(farm.fake.instances().len(), 200);
}

#[tokio::test]
async fn the_same_intent_sent_twice_launches_once_also_after_a_restart() {
    let farm = Farm::start(|_| {});
    let first = launch(&farm.ec2().await, &request("s-1-1", 2)).await;
    let second = launch(&farm.ec2().await, &request("s-1-1", 2)).await;
    assert_eq!(ids(&first), ids(&second));
    assert_eq!(farm.fake.instances().len(), 2);
    let other = launch(&farm.ec2().await, &request("s-1-2", 2)).await;
    assert!(ids(&first).is_disjoint(&ids(&other)));
}

#[tokio::test]
async fn an_answer_lost_after_the_launch_is_unknown_and_the_same_request_finds_it() {
    let farm = Farm::start(|_| {});
    let ec2 = farm.ec2().await;
    let internal = Effect::Error {
        code: "InternalError".to_owned(),
        status: 500,
    };
    for (number, effect) in [Effect::Drop, internal].into_iter().enumerate() {
        farm.strike("CreateFleet", Point::After, effect, 1);
        let request = request(&format!("s-1-{number}"), 2);
        let error = ec2.launch(&request, &user_data()).await.unwrap_err();
        assert!(matches!(error, LaunchError::Unknown { .. }), "{error}");
        // It was launched, and nobody here knows.
        assert_eq!(farm.fake.instances().len(), 2 * (number + 1));
        let launched = launch(&farm.ec2().await, &request).await;
        assert_eq!(launched.instances.len(), 2);
        assert_eq!(farm.fake.instances().len(), 2 * (number + 1));
    }
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_unknown_after_the_timeout() {
    let mut farm = Farm::start(|_| {});
    farm.config.ec2.timeout = Duration::from_millis(250);
    let ec2 = farm.ec2().await;
    farm.strike("CreateFleet", Point::After, Effect::Hold, 1);
    let error = ec2
        .launch(&request("s-1-1", 1), &user_data())
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the cloud's answer was lost: CreateFleet in us-east-1 was not answered within 1s"
    );
    assert_eq!(launch(&ec2, &request("s-1-1", 1)).await.instances.len(), 1);
    assert_eq!(farm.fake.instances().len(), 1);
}

#[tokio::test]
async fn the_same_intent_with_other_parameters_is_a_mismatch_and_launches_nothing() {
    let farm = Farm::start(|_| {});
    let ec2 = farm.ec2().await;
    launch(&ec2, &request("s-1-1", 1)).await;
    let error = ec2
        .launch(&request("s-1-1", 2), &user_data())
        .await
        .unwrap_err();
    assert!(matches!(error, LaunchError::Mismatch { .. }), "{error}");
    assert_eq!(farm.fake.instances().len(), 1);
}

#[tokio::test]
async fn what_a_fleet_did_not_get_is_told_by_offering_and_reason() {
    let farm = Farm::start(|_| {});
    farm.capacity("us-east-1a", LARGE, 0);
    farm.capacity("us-east-1b", LARGE, 2);
    let launched = launch(&farm.ec2().await, &request("s-1-1", 5)).await;
    assert_eq!(launched.instances.len(), 2);
    assert!(
        launched
            .instances
            .iter()
            .all(|one| one.zone.as_str() == "us-east-1b")
    );
    let short = ShortReason::NoCapacity;
    assert_eq!(
        reasons(&launched),
        BTreeSet::from([(Some("us-east-1a"), short), (Some("us-east-1b"), short)])
    );
}

#[tokio::test]
async fn quotas_addresses_and_images_fall_short_for_their_own_reasons() {
    let spot = farm_tests::ec2::CapacityType::Spot;
    let launched = async |spoil: &dyn Fn(&mut farm_tests::ec2::Ec2, Timestamp)| {
        let farm = Farm::start(|_| {});
        let ec2 = farm.ec2().await;
        farm.fake.with(spoil);
        ec2.launch(&request("s-1-1", 2), &user_data())
            .await
            .unwrap()
    };
    let only = |launched: &Launched| {
        assert_eq!(launched.instances, []);
        let reasons: BTreeSet<_> = launched
            .shortfalls
            .iter()
            .map(|short| short.reason)
            .collect();
        assert_eq!(reasons.len(), 1, "{:?}", launched.shortfalls);
        reasons.into_iter().next().unwrap()
    };
    let quota = launched(&|ec2, now| ec2.set_quota(now, EAST, spot, 0).unwrap()).await;
    assert_eq!(only(&quota), ShortReason::Quota);
    let addresses = launched(&|ec2, now| {
        for zone in ["us-east-1a", "us-east-1b"] {
            ec2.set_addresses(now, EAST, &subnet_id(zone), Some(0))
                .unwrap();
        }
    });
    assert_eq!(only(&addresses.await), ShortReason::NoAddress);
    let image = launched(&|ec2, now| {
        ec2.deregister_image(now, EAST, &image_id(EAST, "stable"))
            .unwrap();
    });
    let image = image.await;
    assert_eq!(only(&image), ShortReason::Image);
    let said = &image.shortfalls[0].message;
    assert!(said.contains(&image_id(EAST, "stable")), "{said}");
    let right = launched(&|ec2, _| ec2.set_permission("RunInstances", false)).await;
    assert_eq!(only(&right), ShortReason::NotAllowed);
}

#[tokio::test]
async fn a_zone_without_a_subnet_falls_short_and_the_others_serve() {
    let farm = Farm::start(|_| {});
    let mut request = request("s-1-1", 2);
    request.choices = vec![choice(LARGE, "us-east-1f"), choice(LARGE, "us-east-1a")];
    let launched = launch(&farm.ec2().await, &request).await;
    assert_eq!(launched.instances.len(), 2);
    assert_eq!(
        reasons(&launched),
        BTreeSet::from([(Some("us-east-1f"), ShortReason::Settings)])
    );
    request.choices.pop();
    let error = farm
        .ec2()
        .await
        .launch(&request, &user_data())
        .await
        .unwrap_err();
    insta::assert_snapshot!(error);
}

#[tokio::test]
async fn on_demand_is_launched_on_demand_in_our_order() {
    let farm = Farm::start(|_| {});
    let mut request = request("s-1-1", 2);
    request.capacity_type = CapacityType::OnDemand;
    // The dearer one first: `lowest-price` would take the other.
    request.choices = vec![
        choice("r5.large", "us-east-1b"),
        choice(LARGE, "us-east-1a"),
    ];
    let ec2 = farm.ec2().await;
    let launched = launch(&ec2, &request).await;
    assert!(
        launched
            .instances
            .iter()
            .all(|one| one.instance_type.as_str() == "r5.large")
    );
    let seen = ec2.instances(&region(EAST)).await.unwrap();
    assert!(
        seen.iter()
            .all(|one| one.offering.capacity_type == CapacityType::OnDemand)
    );
}

// Templates.

#[tokio::test]
async fn a_template_is_made_once_and_a_version_for_each_content() {
    let farm = Farm::start(|_| {});
    let ec2 = farm.ec2().await;
    let made = || {
        (
            farm.fake.count("CreateLaunchTemplate"),
            farm.fake.count("CreateLaunchTemplateVersion"),
        )
    };
    launch(&ec2, &request("s-1-1", 1)).await;
    launch(&ec2, &request("s-1-2", 1)).await;
    assert_eq!(made(), (1, 0));
    // Asked for once, and then known.
    assert_eq!(farm.fake.count("DescribeLaunchTemplateVersions"), 1);
    let other = UserData {
        json: r#"{"farmhand":1,"pool":"linux64","join_token":"new"}"#.to_owned(),
    };
    ec2.launch(&request("s-1-3", 1), &other).await.unwrap();
    assert_eq!(made(), (1, 1));
    // After a restart both are found.
    let restarted = farm.ec2().await;
    launch(&restarted, &request("s-1-4", 1)).await;
    restarted
        .launch(&request("s-1-5", 1), &other)
        .await
        .unwrap();
    assert_eq!(made(), (1, 1));
    let data: Vec<_> = farm
        .fake
        .instances()
        .into_iter()
        .map(|one| one.user_data)
        .collect();
    assert_eq!(data[0], data[1]);
    assert_eq!((&data[3], &data[4]), (&data[0], &data[2]));
    assert_ne!(data[0], data[2]);
}

#[tokio::test]
async fn provisioners_that_race_for_a_template_make_one_version() {
    let farm = Farm::start(|_| {});
    let provisioners = [farm.ec2().await, farm.ec2().await, farm.ec2().await];
    let launches = provisioners.into_iter().enumerate().map(|(number, ec2)| {
        let request = request(&format!("s-{number}"), 1);
        tokio::spawn(async move { ec2.launch(&request, &user_data()).await })
    });
    for launch in launches.collect::<Vec<_>>() {
        launch.await.unwrap().unwrap();
    }
    let tokens = farm.fake.with(|ec2, _| ec2.tokens());
    let template: BTreeSet<_> = tokens
        .iter()
        .filter(|(_, action, ..)| action.starts_with("CreateLaunchTemplate"))
        .map(|(_, _, token, _)| token)
        .collect();
    assert_eq!(template.len(), 1, "{tokens:?}");
    assert_eq!(farm.fake.instances().len(), 3);
}

#[tokio::test]
async fn a_template_somebody_deleted_is_made_again() {
    let farm = Farm::start(|_| {});
    let ec2 = farm.ec2().await;
    launch(&ec2, &request("s-1-1", 1)).await;
    farm.fake.with(|ec2, now| {
        let account = ec2.settings().account.clone();
        let ask = |what: &str| Params::parse(&format!("Action={what}"));
        let all = ask("DescribeLaunchTemplates");
        let found = ec2.call(now, EAST, &account, &all).unwrap().document();
        let name = found.split("<launchTemplateName>").nth(1).unwrap();
        let mut delete = ask("DeleteLaunchTemplate");
        delete.set("LaunchTemplateName", name.split('<').next().unwrap());
        ec2.call(now, EAST, &account, &delete).unwrap();
    });
    // Surely nothing was launched, and the same request may be sent again.
    let error = ec2
        .launch(&request("s-1-2", 1), &user_data())
        .await
        .unwrap_err();
    assert!(matches!(error, LaunchError::Throttled { .. }), "{error}");
    launch(&ec2, &request("s-1-2", 1)).await;
    assert_eq!(farm.fake.count("CreateLaunchTemplate"), 2);
    assert_eq!(farm.fake.instances().len(), 2);
}

#[tokio::test]
async fn a_pool_with_a_root_volume_asks_the_image_for_its_name() {
    let mut farm = Farm::start(|_| {});
    farm.pool().root_volume_gib = Some(200);
    let ec2 = farm.ec2().await;
    launch(&ec2, &request("s-1-1", 1)).await;
    launch(&ec2, &request("s-1-2", 1)).await;
    assert_eq!(farm.fake.count("DescribeImages"), 1);
}

// Looking.

#[tokio::test]
async fn a_call_shows_a_thousand_instances() {
    let farm = Farm::start(|_| {});
    let ec2 = farm.ec2().await;
    let add = |count: usize| {
        farm.fake.with(|ec2, now| {
            for _ in 0..count {
                let tags = BTreeMap::from([("farmhand:owner".to_owned(), "farm".to_owned())]);
                ec2.add_foreign_instance(now, EAST, tags).unwrap();
            }
        });
    };
    for (there, calls) in [(0, 1), (1000, 1), (1001, 2), (2500, 3)] {
        add(there - farm.fake.instances().len());
        let before = farm.fake.count("DescribeInstances");
        let seen = ec2.instances(&region(EAST)).await.unwrap();
        assert_eq!(seen.len(), there);
        assert_eq!(
            farm.fake.count("DescribeInstances") - before,
            calls,
            "{there}"
        );
        // Golden machines: ours by owner, and by no intent.
        assert!(seen.iter().all(|one| one.intent.is_none()));
    }
    assert_eq!(
        ec2.calls(Action::DescribeInstances),
        farm.fake.count("DescribeInstances")
    );
}

#[tokio::test]
async fn an_instance_is_not_seen_before_ec2_shows_it_and_is_not_forgotten_by_that() {
    let farm = Farm::start(|settings| {
        settings.timing.visible_after = Duration::from_secs(20);
        settings.timing.tags_visible_after = Duration::from_secs(40);
    });
    let ec2 = farm.ec2().await;
    let launched = launch(&ec2, &request("s-1-1", 1)).await;
    let id = launched.instances[0].id.clone();
    assert_eq!(ec2.instances(&region(EAST)).await.unwrap(), []);
    // EC2 does not know it yet: that is `Unknown`, and no proof that it is gone.
    let ended = ec2
        .terminate(&region(EAST), std::slice::from_ref(&id))
        .await;
    assert_eq!(ended[&id], Err(TerminateError::Unknown));
    farm.fake.advance(Duration::from_secs(20));
    // There, but without the tags by which we look.
    assert_eq!(ec2.instances(&region(EAST)).await.unwrap(), []);
    farm.fake.advance(Duration::from_secs(20));
    assert_eq!(ec2.instances(&region(EAST)).await.unwrap()[0].id, id);
    assert_eq!(
        ec2.terminate(&region(EAST), std::slice::from_ref(&id))
            .await[&id],
        Ok(())
    );
}

#[tokio::test]
async fn an_interruption_a_hold_and_an_end_are_seen() {
    let farm = Farm::start(|settings| settings.timing.notice_for = Duration::ZERO);
    let ec2 = farm.ec2().await;
    let launched = launch(&ec2, &request("s-1-1", 3)).await;
    let [taken, ended, held] = [0, 1, 2].map(|number: usize| launched.instances[number].id.clone());
    farm.fake
        .with(|ec2, now| ec2.interrupt(taken.as_str(), now).unwrap());
    ec2.terminate(&region(EAST), std::slice::from_ref(&ended))
        .await[&ended]
        .clone()
        .unwrap();
    farm.fake.with(|ec2, now| {
        let hold = BTreeMap::from([
            ("farmhand:owner".to_owned(), "farm".to_owned()),
            ("farmhand:hold".to_owned(), "ops".to_owned()),
        ]);
        ec2.add_foreign_instance(now, EAST, hold).unwrap()
    });
    let seen = ec2.instances(&region(EAST)).await.unwrap();
    let by_id = |id: &InstanceId| seen.iter().find(|one| one.id == *id).unwrap();
    assert!(by_id(&taken).interrupted);
    assert_eq!(by_id(&taken).state, InstanceState::Terminated);
    assert!(!by_id(&ended).interrupted);
    assert_eq!(by_id(&ended).state, InstanceState::Terminated);
    assert_eq!(by_id(&held).state, InstanceState::Running);
    let holds: Vec<_> = seen.iter().filter_map(|one| one.hold.as_deref()).collect();
    assert_eq!(holds, ["ops"]);
}

#[tokio::test]
async fn offerings_are_those_of_zones_with_a_subnet_and_one_call_brings_all_prices() {
    let mut farm = Farm::start(|settings| {
        let east = settings.regions.get_mut(EAST).unwrap();
        east.not_offered
            .push(("r5.large".to_owned(), "us-east-1b".to_owned()));
    });
    let large: InstanceType = LARGE.parse().unwrap();
    let list = Money::from_dollars(0.085).unwrap();
    farm.config.ec2.on_demand_prices.insert(large.clone(), list);
    let ec2 = farm.ec2().await;
    farm.fake
        .with(|ec2, now| ec2.set_price(now, "us-east-1b", LARGE, 0.0321).unwrap());
    let types = BTreeSet::from([large.clone(), "r5.large".parse().unwrap()]);
    let offerings = ec2.offerings(&region(EAST), &types).await.unwrap();
    let shown: Vec<_> = offerings
        .iter()
        .map(|one| {
            let key = &one.key;
            (
                key.instance_type.as_str(),
                key.zone.as_str(),
                key.capacity_type,
            )
        })
        .collect();
    let (spot, on_demand) = (CapacityType::Spot, CapacityType::OnDemand);
    assert_eq!(
        shown,
        [
            (LARGE, "us-east-1a", spot),
            (LARGE, "us-east-1a", on_demand),
            (LARGE, "us-east-1b", spot),
            (LARGE, "us-east-1b", on_demand),
            ("r5.large", "us-east-1a", spot),
        ]
    );
    assert_eq!(offerings[2].price, Money::from_micros(32_100));
    assert_eq!(offerings[3].price, list);
    let asked = |action| farm.fake.count(action);
    let all = [
        "DescribeSpotPriceHistory",
        "DescribeInstanceTypeOfferings",
        "DescribeSubnets",
    ];
    assert_eq!(all.map(asked), [1, 1, 1]);
    // Kept: asked again, for all or for some, EC2 is left alone.
    ec2.offerings(&region(EAST), &types).await.unwrap();
    let only = ec2
        .offerings(&region(EAST), &BTreeSet::from([large]))
        .await
        .unwrap();
    assert_eq!(only.len(), 4);
    assert_eq!(all.map(asked), [1, 1, 1]);
    assert_eq!(
        ec2.offerings(&region(EAST), &BTreeSet::new())
            .await
            .unwrap(),
        []
    );
}

// Ending.

#[tokio::test]
async fn one_bad_id_or_a_protected_instance_hinders_no_other() {
    let farm = Farm::start(|_| {});
    let ec2 = farm.ec2().await;
    let launched = launch(&ec2, &request("s-1-1", 40)).await;
    let mut all: Vec<InstanceId> = launched
        .instances
        .iter()
        .map(|one| one.id.clone())
        .collect();
    let unknown = InstanceId::parse("i-00000000000000001").unwrap();
    all.insert(17, unknown.clone());
    let protected = all[3].clone();
    farm.fake
        .with(|ec2, _| ec2.set_protection(protected.as_str(), true).unwrap());
    let ended = ec2.terminate(&region(EAST), &all).await;
    assert_eq!(ended.len(), 41);
    assert_eq!(ended[&unknown], Err(TerminateError::Unknown));
    assert!(
        matches!(&ended[&protected], Err(TerminateError::Refused(_))),
        "{ended:?}"
    );
    assert_eq!(ended.values().filter(|result| result.is_ok()).count(), 39);
    // All, all but the unknown one, all but the protected one too.
    assert_eq!(farm.fake.count("TerminateInstances"), 3);
    let left: Vec<_> = farm
        .fake
        .instances()
        .into_iter()
        .filter(|one| one.end.is_none())
        .collect();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].id, protected.as_str());
}

#[tokio::test]
async fn ending_outlasts_throttling_and_a_lost_answer() {
    let farm = Farm::start(|_| {});
    let ec2 = farm.ec2().await;
    let launched = launch(&ec2, &request("s-1-1", 2)).await;
    let throttled = Effect::Error {
        code: "RequestLimitExceeded".to_owned(),
        status: 503,
    };
    farm.strike("TerminateInstances", Point::Before, throttled, 1);
    farm.strike("TerminateInstances", Point::After, Effect::Drop, 1);
    let all: Vec<InstanceId> = launched
        .instances
        .iter()
        .map(|one| one.id.clone())
        .collect();
    let first = ec2.terminate(&region(EAST), &all).await;
    assert!(
        first
            .values()
            .all(|result| matches!(result, Ok(()) | Err(TerminateError::Unavailable(_))))
    );
    let again = ec2.terminate(&region(EAST), &all).await;
    assert!(again.values().all(Result::is_ok), "{again:?}");
    assert!(farm.fake.count("TerminateInstances") <= 4);
}

// Limits.

#[tokio::test]
async fn more_calls_than_the_bucket_holds_wait_here_and_not_there() {
    let farm = Farm::start(|_| {});
    let ec2 = std::sync::Arc::new(farm.ec2().await);
    let begin = tokio::time::Instant::now();
    let looks: Vec<_> = (0..130)
        .map(|_| {
            let ec2 = std::sync::Arc::clone(&ec2);
            tokio::spawn(async move { ec2.instances(&region(EAST)).await })
        })
        .collect();
    for look in looks {
        assert_eq!(look.await.unwrap().unwrap(), []);
    }
    // 100 at once, 30 more at 20 per second.
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(1450), "{took:?}");
    // Calls do not arrive at the pace they were sent at: at the very limit a few may be refused, and
    // are sent again.
    assert!(farm.throttled() <= 6, "{}", farm.throttled());
    assert_eq!(farm.fake.count("DescribeInstances"), 130 + farm.throttled());
}

#[tokio::test]
async fn a_throttling_storm_slows_us_down_and_everything_is_done_in_the_end() {
    // Others use the account as well: a tenth of the published size is left to us.
    let farm = Farm::start(|settings| settings.throttle = 0.1);
    let ec2 = farm.ec2().await;
    let mut todo: Vec<_> = (0..8)
        .map(|number| request(&format!("s-{number}"), 1))
        .collect();
    let mut rounds = 0;
    while !todo.is_empty() {
        rounds += 1;
        let mut again = Vec::new();
        let mut wait = Duration::ZERO;
        for request in todo {
            match ec2.launch(&request, &user_data()).await {
                Ok(launched) => assert_eq!(launched.instances.len(), 1),
                Err(LaunchError::Throttled { retry_after, .. }) => {
                    wait = wait.max(retry_after);
                    again.push(request);
                }
                Err(other) => panic!("{other}"),
            }
        }
        todo = again;
        assert!(rounds <= 6, "{} are not done", todo.len());
        tokio::time::sleep(wait).await;
    }
    assert_eq!(farm.fake.instances().len(), 8);
    // Each refusal empties our own bucket, so that the next call waits for a new token instead of
    // being refused as well: there are fewer refusals than launches.
    assert!(farm.throttled() < 8, "{}", farm.throttled());
}

#[tokio::test]
async fn a_launch_that_our_own_budget_has_no_tokens_for_is_not_sent() {
    let farm = Farm::start(|_| {});
    let ec2 = farm.ec2().await;
    launch(&ec2, &request("s-1-1", 990)).await;
    let error = ec2
        .launch(&request("s-1-2", 200), &user_data())
        .await
        .unwrap_err();
    let LaunchError::Throttled { retry_after, .. } = &error else {
        panic!("{error}");
    };
    // 190 tokens are missing, and 2 come back per second.
    assert!(
        (90..=95).contains(&retry_after.as_secs()),
        "{retry_after:?}"
    );
    assert_eq!((farm.fake.count("CreateFleet"), farm.throttled()), (1, 0));
}

// Faults of whole regions and of settings.

#[tokio::test]
async fn a_region_that_hangs_delays_no_other() {
    let mut farm = Farm::start(|_| {});
    farm.config.ec2.timeout = Duration::from_secs(1);
    let ec2 = farm.ec2().await;
    for outage in [Outage::Hang, Outage::Drop, Outage::Unavailable] {
        farm.fake.with(|ec2, _| ec2.set_outage(EAST, Some(outage)));
        let (east, west) = (region(EAST), region(WEST));
        let begin = tokio::time::Instant::now();
        let (down, up) = tokio::join!(ec2.instances(&east), async {
            (ec2.instances(&west).await, begin.elapsed())
        });
        let error = down.unwrap_err();
        assert!(
            matches!(error, CloudError::Unavailable { .. }),
            "{outage:?}: {error}"
        );
        let (up, after) = up;
        assert_eq!(up, Ok(Vec::new()));
        assert!(after < Duration::from_secs(1), "{after:?}");
        // Two attempts of one second, and a pause.
        assert!(
            begin.elapsed() < Duration::from_secs(4),
            "{:?}",
            begin.elapsed()
        );
        let error = ec2
            .launch(&request("s-1-1", 1), &user_data())
            .await
            .unwrap_err();
        // Nothing was begun: it is to be sent again.
        assert!(
            matches!(error, LaunchError::Throttled { .. }),
            "{outage:?}: {error}"
        );
    }
    farm.fake.with(|ec2, _| ec2.set_outage(EAST, None));
    launch(&ec2, &request("s-1-1", 1)).await;
    assert_eq!(farm.fake.instances().len(), 1);
}

fn refusal(error: &LaunchError) -> (ShortReason, &str) {
    match error {
        LaunchError::Refused { reason, message } => (*reason, message),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn wrong_credentials_are_one_clear_refusal_of_each_call() {
    let farm = Farm::start(|_| {});
    let ec2 = farm.ec2().await;
    farm.fake.with(|ec2, _| ec2.set_credentials(false));
    let error = ec2
        .launch(&request("s-1-1", 1), &user_data())
        .await
        .unwrap_err();
    let (reason, message) = refusal(&error);
    assert_eq!(reason, ShortReason::NotAllowed);
    insta::assert_snapshot!(message);
    let error = ec2.instances(&region(EAST)).await.unwrap_err();
    assert!(
        matches!(
            error,
            CloudError::Refused {
                reason: ShortReason::NotAllowed,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn without_credentials_nothing_is_sent() {
    let mut farm = Farm::start(|_| {});
    let empty = NamedTempFile::with_prefix("farm-keys-").unwrap();
    farm.config.ec2.credentials_file = Some(empty.path().to_owned());
    farm.config.ec2.profile = Some("nobody".to_owned());
    let error = farm.ec2().await.instances(&region(EAST)).await.unwrap_err();
    assert!(
        matches!(
            error,
            CloudError::Refused {
                reason: ShortReason::NotAllowed,
                ..
            }
        ),
        "{error}"
    );
    let text = error.to_string();
    assert!(text.contains("nobody"), "{text}");
}

#[test]
fn the_environment_gives_endpoint_and_credentials_when_the_configuration_gives_none() {
    let farm = Farm::start(|settings| {
        let account = "123456789012".to_owned();
        settings.access_keys = BTreeMap::from([("AKIAENVIRONMENT".to_owned(), account)]);
    });
    let this = std::env::current_exe().unwrap();
    let status = std::process::Command::new(this)
        .args(["--exact", "in_an_environment_of_its_own", "--ignored"])
        .env_clear()
        .env("AWS_ENDPOINT_URL_EC2", farm.fake.url())
        .env("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
        .env("AWS_SECRET_ACCESS_KEY", "none")
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(farm.fake.count("DescribeInstances"), 1);
    assert_eq!(farm.fake.instances().len(), 0);
}

#[test]
#[ignore = "started by the story above, in the environment it needs"]
fn in_an_environment_of_its_own() {
    on_its_own(async {
        let mut config = Config::default();
        config
            .regions
            .insert(region(EAST), RegionSettings::default());
        let ec2 = Ec2::connect(&config, now).await;
        assert_eq!(ec2.instances(&region(EAST)).await, Ok(Vec::new()));
    });
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_named_as_a_possible_cause() {
    let farm = Farm::start(|_| {});
    let ahead = Some(SignedDuration::from_mins(20));
    farm.fake.with(|ec2, _| ec2.set_clock_check(ahead));
    let error = farm
        .ec2()
        .await
        .launch(&request("s-1-1", 1), &user_data())
        .await
        .unwrap_err();
    let (reason, message) = refusal(&error);
    assert_eq!(reason, ShortReason::NotAllowed);
    assert!(
        message.starts_with("RequestExpired") && message.contains("clock"),
        "{message}"
    );
}

#[tokio::test]
async fn neither_logs_nor_errors_show_a_secret() {
    let farm = Farm::start(|_| {});
    let ec2 = farm.ec2().await;
    let shown = format!("{ec2:?} {:?}", user_data());
    assert!(
        shown.contains("farm") && !shown.contains("AKIATEST"),
        "{shown}"
    );
    assert!(!shown.contains("secret"), "{shown}");
}

// `check`.

fn shown(findings: &[Finding]) -> String {
    let line = |finding: &Finding| {
        let verdict = finding.fault.as_deref().unwrap_or("all right");
        format!("{}: {verdict}", finding.subject)
    };
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_farm_that_can_launch_passes_its_check_and_nothing_is_launched() {
    let farm = Farm::start(|_| {});
    let ec2 = farm.ec2().await;
    insta::assert_snapshot!(shown(&ec2.check().await));
    assert!(farm.fake.instances().is_empty());
    assert_eq!(farm.fake.with(|ec2, _| ec2.tokens()).len(), 0);
}

#[tokio::test]
async fn every_fault_of_the_settings_is_found_at_once_and_names_its_pool() {
    let mut farm = Farm::start(|settings| {
        let east = settings.regions.get_mut(EAST).unwrap();
        // A second subnet in a zone, and a small one.
        east.subnets.push(SubnetSetting {
            id: "subnet-0000000000000002a".to_owned(),
            zone: "us-east-1a".to_owned(),
            cidr: "10.0.0.0/24".to_owned(),
            addresses: 0,
        });
    });
    let east = farm.config.regions.get_mut(&region(EAST)).unwrap();
    east.subnets.push("subnet-0000000000000002a".to_owned());
    east.subnets.push("subnet-00000000000000bad".to_owned());
    east.security_groups.push("sg-00000000000000bad".to_owned());
    farm.config
        .regions
        .insert(region("us-esat-1"), RegionSettings::default());
    let pool = farm.pool().clone();
    let mut odd = |name: &str, change: &dyn Fn(&mut PoolSettings)| {
        let mut pool = PoolSettings {
            regions: vec![region(EAST)],
            ..pool.clone()
        };
        change(&mut pool);
        farm.config.pools.insert(name.parse().unwrap(), pool);
    };
    odd("deleted-image", &|pool| {
        pool.image = Some("deleted".parse().unwrap())
    });
    odd("image-elsewhere", &|pool| {
        pool.image = Some("elsewhere".parse().unwrap())
    });
    odd("no-such-type", &|pool| {
        pool.types.insert("x9.huge".parse().unwrap(), 1.0);
    });
    odd("nowhere", &|pool| {
        pool.regions = vec!["eu-south-9".parse().unwrap()]
    });
    odd("huge", &|pool| pool.max = 100_000);
    odd("unpriced", &|pool| pool.on_demand_fallback = 5);
    let image = |ids: &[(&str, &str)]| ImageSettings {
        ids: ids
            .iter()
            .map(|(name, id)| (region(name), id.parse().unwrap()))
            .collect(),
        ..ImageSettings::default()
    };
    let images = &mut farm.config.images;
    images.insert(
        "deleted".parse().unwrap(),
        image(&[(EAST, "ami-00000000000000bad")]),
    );
    images.insert(
        "elsewhere".parse().unwrap(),
        image(&[(WEST, "ami-00000000000000bad")]),
    );
    let ec2 = farm.ec2().await;
    insta::assert_snapshot!(shown(&ec2.check().await));
}

#[tokio::test]
async fn a_missing_right_is_named_with_the_region_it_is_missing_in() {
    let farm = Farm::start(|_| {});
    let ec2 = farm.ec2().await;
    launch(&ec2, &request("s-1-1", 1)).await;
    let rights = [
        "CreateFleet",
        "CreateLaunchTemplate",
        "RunInstances",
        "TerminateInstances",
    ];
    for right in rights {
        farm.fake.with(|ec2, _| ec2.set_permission(right, false));
        let findings = ec2.check().await;
        let faults: Vec<_> = findings
            .iter()
            .filter(|finding| finding.subject.contains(EAST))
            .filter_map(|finding| finding.fault.as_deref())
            .collect();
        assert_eq!(faults.len(), 1, "{}", shown(&findings));
        assert!(
            faults[0].starts_with(&format!("{right} would fail: UnauthorizedOperation")),
            "{}",
            faults[0]
        );
        assert!(
            faults[0].contains("deploy/iam-policy.json"),
            "{}",
            faults[0]
        );
        farm.fake.with(|ec2, _| ec2.set_permission(right, true));
    }
    // A dry run ends nothing.
    assert!(farm.fake.instances()[0].end.is_none());
}

#[tokio::test]
async fn wrong_credentials_are_one_finding_for_each_region() {
    let farm = Farm::start(|_| {});
    farm.fake.with(|ec2, _| ec2.set_credentials(false));
    insta::assert_snapshot!(shown(&farm.ec2().await.check().await));
}

#[tokio::test]
async fn only_the_listed_actions_are_ever_called() {
    let farm = Farm::start(|_| {});
    let ec2 = farm.ec2().await;
    let launched = launch(&ec2, &request("s-1-1", 1)).await;
    ec2.offerings(&region(EAST), &BTreeSet::from([LARGE.parse().unwrap()]))
        .await
        .unwrap();
    ec2.check().await;
    ec2.terminate(&region(EAST), &[launched.instances[0].id.clone()])
        .await;
    let called = farm.fake.with(|ec2, _| {
        let calls = ec2.calls().keys();
        calls
            .map(|(_, action)| action.clone())
            .collect::<BTreeSet<_>>()
    });
    let listed: BTreeSet<_> = Action::ALL
        .iter()
        .map(|action| action.name().to_owned())
        .collect();
    assert!(called.is_subset(&listed), "{called:?}");
}

// The form of requests and answers, by moto. What it is known to do otherwise than EC2 (5.2), so that
// no story below is about it:
// - client tokens are not honoured;
// - a fleet puts everything into its first override, and never falls short;
// - spot prices are constant, of 2006, and of the product `Linux/UNIX (Amazon VPC)`;
// - a page holds whole reservations, and so may hold more instances than were asked for;
// - terminated instances stay visible for ever;
// - states change at once.

const MOTO_IMAGE: &str = "ami-0123456789abcdef0";

/// moto with one image, and the configuration of a farm in it.
fn moto() -> (Moto, Config, NamedTempFile) {
    let moto = Moto::start(&[(MOTO_IMAGE.to_owned(), "stable".to_owned())]);
    let keys = keys();
    let mut config = config(&moto.url(), &keys);
    config.images = images(|_, _| MOTO_IMAGE.to_owned());
    let settings = RegionSettings {
        subnets: subnets_of(&moto.url()),
        ..RegionSettings::default()
    };
    config.regions.insert(region(EAST), settings);
    (moto, config, keys)
}

/// The subnets that are there from the start, with ids nobody chose.
fn subnets_of(url: &str) -> Vec<String> {
    let credential = "AWS4-HMAC-SHA256 Credential=t/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0";
    let answer = reqwest::blocking::Client::new()
        .post(url)
        .header("Authorization", credential)
        .body("Action=DescribeSubnets&Version=2016-11-15")
        .send()
        .and_then(reqwest::blocking::Response::text)
        .expect("moto answers");
    let ids = answer.split("<subnetId>").skip(1);
    ids.filter_map(|rest| rest.split('<').next())
        .map(str::to_owned)
        .collect()
}

fn on_its_own<T>(story: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(story)
}

#[test]
fn moto_launches_lists_and_ends_what_we_ask_for() {
    let (_moto, config, _keys) = moto();
    on_its_own(async {
        let ec2 = Ec2::connect(&config, now).await;
        let mut request = request("s-1-1", 3);
        request.image_id = MOTO_IMAGE.parse().unwrap();
        let launched = launch(&ec2, &request).await;
        assert_eq!(
            (launched.instances.len(), &*launched.shortfalls),
            (3, &[][..])
        );
        let zones: BTreeSet<_> = launched
            .instances
            .iter()
            .map(|one| one.zone.as_str())
            .collect();
        assert_eq!(zones, BTreeSet::from(["us-east-1a"]));

        let seen = ec2.instances(&region(EAST)).await.unwrap();
        let seen_ids: BTreeSet<&str> = seen.iter().map(|one| one.id.as_str()).collect();
        assert_eq!(seen_ids, ids(&launched));
        for one in &seen {
            assert_eq!(
                one.intent.as_ref().map(ToString::to_string).as_deref(),
                Some("s-1-1")
            );
            assert_eq!(
                one.pool.as_ref().map(ToString::to_string).as_deref(),
                Some("linux64")
            );
            assert_eq!(
                one.image_id.as_ref().map(ToString::to_string).as_deref(),
                Some(MOTO_IMAGE)
            );
            assert_eq!(one.offering.capacity_type, CapacityType::Spot);
            assert_eq!(one.state, InstanceState::Running);
        }

        let mut all: Vec<InstanceId> = seen.into_iter().map(|one| one.id).collect();
        all.push("i-0000000000000dead".parse().unwrap());
        let ended = ec2.terminate(&region(EAST), &all).await;
        assert_eq!(ended[&all[3]], Err(TerminateError::Unknown));
        assert!(all[..3].iter().all(|id| ended[id] == Ok(())), "{ended:?}");
        assert_eq!(ec2.calls(Action::TerminateInstances), 2);
        let seen = ec2.instances(&region(EAST)).await.unwrap();
        assert!(
            seen.iter()
                .all(|one| one.state == InstanceState::Terminated)
        );
    });
}

#[test]
fn moto_keeps_a_version_of_our_template_for_each_content() {
    let (_moto, config, _keys) = moto();
    on_its_own(async {
        let mut calls = (0, 0);
        for (number, content) in ["one", "two", "one", "two"].into_iter().enumerate() {
            // Each time a provisioner that was just started.
            let ec2 = Ec2::connect(&config, now).await;
            let mut request = request(&format!("s-{number}"), 1);
            request.image_id = MOTO_IMAGE.parse().unwrap();
            let user_data = UserData {
                json: format!("{{\"token\":\"{content}\"}}"),
            };
            let launched = ec2.launch(&request, &user_data).await.unwrap();
            assert_eq!(launched.instances.len(), 1);
            calls.0 += ec2.calls(Action::CreateLaunchTemplate);
            calls.1 += ec2.calls(Action::CreateLaunchTemplateVersion);
        }
        assert_eq!(calls, (1, 1));
    });
}

#[test]
fn moto_pages_through_instances() {
    let (_moto, config, _keys) = moto();
    on_its_own(async {
        let ec2 = Ec2::connect(&config, now).await;
        let mut launched = BTreeSet::new();
        for number in 0..3 {
            let mut request = request(&format!("s-{number}"), 40);
            request.image_id = MOTO_IMAGE.parse().unwrap();
            let instances = launch(&ec2, &request).await.instances;
            launched.extend(instances.into_iter().map(|one| one.id));
        }
        let seen = ec2.instances(&region(EAST)).await.unwrap();
        let seen: BTreeSet<InstanceId> = seen.into_iter().map(|one| one.id).collect();
        assert_eq!(seen, launched);
        assert_eq!(ec2.calls(Action::DescribeInstances), 1);
    });
}

#[test]
fn moto_sells_types_in_zones_at_a_price() {
    let (_moto, config, _keys) = moto();
    on_its_own(async {
        let ec2 = Ec2::connect(&config, now).await;
        let types = BTreeSet::from([LARGE.parse().unwrap(), "m5.large".parse().unwrap()]);
        let offerings = ec2.offerings(&region(EAST), &types).await.unwrap();
        let sold: BTreeSet<_> = offerings
            .iter()
            .map(|one| one.key.instance_type.clone())
            .collect();
        assert_eq!(sold, types);
        assert!(
            offerings
                .iter()
                .all(|one| one.price == Money::from_micros(10))
        );
    });
}

#[test]
fn moto_passes_the_check_and_misses_what_is_missing() {
    let (_moto, mut config, _keys) = moto();
    on_its_own(async {
        let healthy = Ec2::connect(&config, now).await.check().await;
        assert!(
            healthy.iter().all(|finding| finding.fault.is_none()),
            "{}",
            shown(&healthy)
        );
        let east = config.regions.get_mut(&region(EAST)).unwrap();
        east.subnets.push("subnet-00000000000000bad".to_owned());
        east.security_groups.push("sg-00000000000000bad".to_owned());
        config
            .regions
            .insert(region("us-esat-1"), RegionSettings::default());
        let image = config.images.values_mut().next().unwrap();
        image
            .ids
            .insert(region(EAST), "ami-00000000000000bad".parse().unwrap());
        let ec2 = Ec2::connect(&config, now).await;
        let findings = ec2.check().await;
        let faults: Vec<_> = findings
            .iter()
            .filter_map(|one| one.fault.as_deref())
            .collect();
        for part in [
            "subnet-00000000000000bad",
            "sg-00000000000000bad",
            "ami-00000000000000bad",
            "us-esat-1",
        ] {
            let naming = faults.iter().filter(|fault| fault.contains(part)).count();
            assert_eq!(naming, 1, "{part}: {}", shown(&findings));
        }
        assert_eq!(faults.len(), 4, "{}", shown(&findings));
        assert_eq!(ec2.instances(&region(EAST)).await.unwrap(), []);
    });
}
