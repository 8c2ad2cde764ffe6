//! EC2 throttles, is down, refuses, or is asked for what it does not have.

use std::time::Duration;

use farm_tests::ec2::{CapacityType, Outage, image_id, subnet_id};
use farm_tests::services::Postgres;
use farm_tests::wait;
use jiff::SignedDuration;

use crate::farm::{BUILD, EAST, Farm, SOON, WEST, rows, stop};
use crate::hosts::{fence_all, register_all};

/// The tables of pools like [`BUILD`], each with a line of its own.
fn pools(pools: &[(&str, &str)]) -> String {
    let table = |(name, line): &(&str, &str)| format!("{}{line}\n", BUILD.replace("build", name));
    pools.iter().map(table).collect()
}

fn only(region: &str) -> String {
    format!("regions = [{region:?}]")
}

#[test]
fn a_throttling_storm_makes_no_herd_of_calls_and_all_is_launched_once_when_it_is_over() {
    const STORM: Duration = Duration::from_secs(8);
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let farm = Farm::new();
    farm.set(&pools(&NAMES.map(|name| (name, ""))));
    farm.wait_for_jobs(&NAMES.map(|name| (name, 2)));
    farm.strike_with("*", "RequestLimitExceeded", 503, u32::MAX);
    let provisioner = farm.start();
    wait::until("the storm to begin", SOON, || {
        let calls = farm.calls();
        (calls > 0).then_some(()).ok_or("no call yet")
    });
    let calls = during(STORM, || farm.calls());
    assert_eq!(farm.errors("RequestLimitExceeded"), farm.calls());
    // In each region the four first calls are under way together. Then the refill of the bucket of
    // 20 calls a second is halved with each second of the storm, to a sixteenth: 10 + 5 + 2.5, and
    // 1.25 a second for the other five. Eighty passes would make 640 calls and twice as many retries.
    let most = 2.0 * (4.0 + 10.0 + 5.0 + 2.5 + 5.0 * 1.25);
    assert!(f64::from(calls) <= most, "{calls} calls, at most {most}");
    assert!(farm.fake.instances().is_empty());

    // It ends for those who look, and goes on for those who launch: decisions stay open meanwhile.
    farm.clear_faults();
    farm.strike_with("CreateFleet", "RequestLimitExceeded", 503, 4);
    farm.wait_until_alive(2 * NAMES.len());
    assert!(farm.errors("RequestLimitExceeded") > 0);
    wait::until("the answers to be in the store", SOON, || {
        let known = farm.ps().len();
        (known == 2 * NAMES.len()).then_some(()).ok_or(known)
    });
    stop(provisioner);
    farm.assert_in_order(2 * NAMES.len());
    // One for each pool, and those the storm struck.
    assert_eq!(farm.fake.count("CreateFleet"), 6 + 4);
}

/// How much `count` grew within `time`.
fn during(time: Duration, count: impl Fn() -> u64) -> u32 {
    let before = count();
    #[expect(
        clippy::disallowed_methods,
        reason = "a storm has a length: it is what is measured by"
    )]
    std::thread::sleep(time);
    u32::try_from(count() - before).expect("a few")
}

#[test]
fn a_region_that_is_down_loses_nothing_and_the_other_serves() {
    let server = Postgres::start();
    let farm = Farm::on(&server, "farm");
    farm.set(&pools(&[("east", &only(EAST)), ("any", "")]));
    farm.wait_for_jobs(&[("east", 2), ("any", 0)]);
    farm.passes(1);
    farm.wait_until_alive(2);
    // Old enough to be missed, if anybody believed that they are gone.
    let _hours = server
        .sql("UPDATE farmhand_farm.instances SET launched_at = launched_at - 7200000 RETURNING id");
    let mut launched = 2;
    for outage in [Outage::Unavailable, Outage::Drop, Outage::Hang] {
        farm.fake.with(|ec2, _| ec2.set_outage(EAST, Some(outage)));
        launched += 1;
        farm.wait_for_jobs(&[("east", 3), ("any", launched - 2)]);
        let before = farm.said("a region cannot be observed").len();
        farm.passes(3);
        let said = farm.said("a region cannot be observed");
        assert_eq!(said.len(), before + 1, "{outage:?}: {said:?}");
        for word in [EAST, "any, east"] {
            assert!(said[before].contains(word), "`{word}` is not in {said:?}");
        }
        let there: Vec<_> = farm.alive().into_iter().map(|one| one.region).collect();
        let west = there.iter().filter(|region| *region == WEST).count();
        assert_eq!(
            (there.len(), west),
            (launched as usize, launched as usize - 2)
        );
        farm.fake.control(farm_tests::ec2::Command::SetOutage {
            region: EAST.to_owned(),
            outage: None,
        });
    }
    for row in farm.ps().values() {
        assert!(row["suspected_at"].is_null(), "{row}");
    }
    for verb in ["lost", "suspected", "end_decided", "interrupted"] {
        assert_eq!(farm.did(verb), [""; 0], "{verb}");
    }

    // It is back, and what was waited for there is launched there.
    farm.passes(2);
    farm.assert_in_order(launched as usize + 1);
}

#[test]
fn one_bad_id_keeps_no_other_from_being_ended() {
    let farm = Farm::new();
    farm.set(&pools(&[("build", &only(EAST))]));
    farm.wait_for_jobs(&[("build", 5)]);
    farm.passes(1);
    farm.wait_until_alive(5);
    let protected = farm.alive_ids().pop_first().expect("there are five");
    let protect = |protected: &str, on| {
        farm.fake
            .with(|ec2, _| ec2.set_protection(protected, on))
            .expect("it is there");
    };
    protect(&protected, true);

    farm.wait_for_jobs(&[("build", 0)]);
    let provisioner = farm.start();
    let hosts = register_all(&farm);
    // And once EC2 does not even say which one is bad.
    farm.strike_with("TerminateInstances", "InvalidInstanceID.NotFound", 400, 1);
    fence_all(&hosts);
    farm.wait_until_alive(1);
    assert_eq!(farm.alive_ids().first(), Some(&protected));
    wait::until("the refusal in the history", SOON, || {
        let failed = farm.did("end_failed");
        let said = failed
            .iter()
            .any(|result| result.contains("refuses to end"));
        said.then_some(()).ok_or_else(|| failed.join("; "))
    });

    protect(&protected, false);
    farm.wait_until_alive(0);
    stop(provisioner);
    farm.passes(2);
    farm.assert_in_order(5);
}

#[test]
fn a_used_up_quota_is_called_quota_and_not_hammered() {
    let farm = Farm::new();
    farm.set(&pools(&[("build", &only(EAST)), ("other", &only(WEST))]));
    // Two machines of two vCPUs.
    farm.fake
        .with(|ec2, now| ec2.set_quota(now, EAST, CapacityType::Spot, 4))
        .expect("there is such a region");
    farm.wait_for_jobs(&[("build", 5), ("other", 1)]);
    farm.passes(30);

    assert_eq!(farm.alive().len(), 2 + 1);
    let calls = farm.fake.with(|ec2, _| {
        let key = (EAST.to_owned(), "CreateFleet".to_owned());
        ec2.calls()[&key].count
    });
    assert!(calls <= 2, "{calls} calls in 30 passes");
    let fell = farm.did("launch_fell");
    assert_eq!(fell.len() as u64, calls, "{fell:?}");
    for word in ["MaxSpotInstanceCountExceeded", "quota", "of 5 launched"] {
        assert!(
            fell[fell.len() - 1].contains(word),
            "`{word}` is not in {fell:?}"
        );
    }
    let pass = farm.ask(&["explain"]);
    let reasons: Vec<_> = rows(&pass["world"]["shortages"])
        .iter()
        .map(|short| short["reason"].clone())
        .collect();
    assert_eq!(reasons, ["quota"]);
    let blocked = farm.pool("build")["blocked"].to_string();
    assert!(blocked.contains("quota"), "{blocked}");
    let events = fs_err::read_to_string(farm.path("events.jsonl")).expect("events were written");
    let fell = events
        .lines()
        .filter(|line| line.contains("quota"))
        .collect::<Vec<_>>();
    // One for each zone that was tried.
    assert_eq!(fell.len() as u64, 2 * calls, "{fell:?}");
    farm.assert_in_order(3);
}

#[test]
fn a_clock_that_is_wrong_is_made_up_for_by_that_of_ec2() {
    let farm = Farm::new();
    for ahead in [-20, 20] {
        let ahead = SignedDuration::from_mins(ahead);
        farm.fake.with(|ec2, _| ec2.set_clock_check(Some(ahead)));
        let wanted = u32::try_from(farm.alive().len()).expect("a few") + 1;
        farm.wait_for_jobs(&[("build", wanted)]);
        farm.passes(3);
        assert_eq!(farm.alive().len(), wanted as usize, "{ahead:#}");
    }
    farm.fake.with(|ec2, _| ec2.set_clock_check(None));
    // Said by the first pass of each of the two, for each of the two regions.
    let said = farm.said("WARN");
    assert_eq!(said.len(), 4, "{said:?}");
    for word in ["RequestExpired", "the clock of this machine"] {
        assert!(said.iter().all(|line| line.contains(word)), "{said:?}");
    }
    farm.assert_in_order(2);
}

/// While EC2 answers every call with `code` nothing is launched, and each region is one line of the
/// log, with the pools it keeps waiting and `advice`; `check` says the same. Then all is launched.
fn refused_everywhere(code: &str, status: u16, advice: &str) {
    let farm = Farm::new();
    farm.set(&pools(&[("build", ""), ("west", &only(WEST))]));
    farm.wait_for_jobs(&[("build", 1), ("west", 1)]);
    farm.strike_with("*", code, status, u32::MAX);
    farm.passes(10);
    let said = farm.said("WARN");
    assert_eq!(said.len(), 2, "{said:?}");
    for (region, pools) in [(EAST, "\"build\""), (WEST, "\"build, west\"")] {
        let line = said.iter().find(|line| line.contains(region));
        let line = line.unwrap_or_else(|| panic!("{region} is not in {said:?}"));
        for word in [pools, code, advice] {
            assert!(line.contains(word), "`{word}` is not in {said:?}");
        }
    }
    let findings = farm.ask(&["check"]);
    let faults: Vec<_> = rows(&findings)
        .iter()
        .filter_map(|finding| finding["fault"].as_str())
        .collect();
    assert!(
        faults.iter().any(|fault| fault.contains(code)),
        "{findings}"
    );
    assert!(farm.fake.instances().is_empty());
    farm.clear_faults();
    farm.passes(2);
    farm.assert_in_order(2);
}

#[test]
fn a_clock_that_nothing_makes_up_for_is_one_clear_error() {
    refused_everywhere("RequestExpired", 400, "clock");
}

#[test]
fn wrong_credentials_are_one_clear_error() {
    refused_everywhere("AuthFailure", 401, "credentials");
}

/// One of three pools has a fault: the log has one warning, which names the pool and says `words`; the
/// others go on.
fn one_pool_is_wrong(tables: &str, spoil: impl FnOnce(&Farm), words: &[&str]) -> Farm {
    let farm = Farm::new();
    farm.set(tables);
    spoil(&farm);
    farm.wait_for_jobs(&[("good", 2), ("wrong", 2)]);
    farm.passes(10);
    let pools: Vec<_> = farm
        .alive()
        .iter()
        .map(|one| one.tags["farmhand:pool"].clone())
        .collect();
    assert_eq!(pools, ["good", "good"]);
    let said = farm.said("WARN");
    assert_eq!(said.len(), 1, "{said:?}");
    for word in words.iter().chain(&["wrong"]) {
        assert!(said[0].contains(word), "`{word}` is not in {said:?}");
    }
    let blocked = farm.pool("wrong")["blocked"].to_string();
    assert_ne!(blocked, "[]", "it does not say why it waits");
    assert_eq!(farm.pool("good")["blocked"].to_string(), "[]");
    farm.assert_in_order(2);
    farm
}

#[test]
fn an_unknown_region_is_one_error_that_names_the_pool_and_others_go_on() {
    let tables = pools(&[
        ("good", "regions = [\"us-east-1\", \"us-west-2\"]"),
        ("wrong", &only("us-east-9")),
    ]);
    let tables = format!(
        "{}\n[regions.us-east-9]\nsubnets = [\"subnet-1\"]\n[images.there.ids]\nus-east-9 = \"ami-1\"\n",
        tables.replacen(
            "[pools.wrong]\nimage = \"stable\"",
            "[pools.wrong]\nimage = \"there\"",
            1
        )
    );
    one_pool_is_wrong(&tables, |_| {}, &["us-east-9"]);
}

#[test]
fn an_image_that_was_deleted_is_one_error_that_names_the_pool_and_others_go_on() {
    let old = image_id(EAST, "candidate");
    let wrong = BUILD.replace("build", "wrong").replace("stable", "old");
    let tables = format!(
        "{}{wrong}{}\n[images.old.ids]\n{EAST} = {old:?}\n",
        pools(&[("good", "")]),
        only(EAST)
    );
    let delete = |farm: &Farm| {
        farm.fake
            .with(|ec2, now| ec2.deregister_image(now, EAST, &old))
            .expect("it is there");
    };
    one_pool_is_wrong(&tables, delete, &[&old, EAST]);
}

#[test]
fn a_missing_subnet_is_one_error_that_names_the_pool_and_others_go_on() {
    let tables = pools(&[("good", &only(EAST)), ("wrong", &only(WEST))]);
    let remove = |farm: &Farm| {
        for zone in ["a", "b"] {
            let subnet = subnet_id(&format!("{WEST}{zone}"));
            farm.fake
                .with(|ec2, now| ec2.set_addresses(now, WEST, &subnet, None))
                .expect("it is there");
        }
    };
    let farm = one_pool_is_wrong(&tables, remove, &["`provisioner check`"]);
    let findings = farm.ask(&["check"]).to_string();
    for zone in ["a", "b"] {
        let subnet = subnet_id(&format!("{WEST}{zone}"));
        assert!(findings.contains(&subnet), "{subnet} is not in {findings}");
    }
}
