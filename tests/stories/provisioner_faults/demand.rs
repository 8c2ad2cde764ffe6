//! A source of demand that is down, stale or lies: its pool stays as it is.

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::farm::{BUILD, Farm, rows, stop};
use crate::hosts::{Doing, Host, register_all};

const HELD: &str = "cannot be relied on";

#[expect(clippy::disallowed_methods, reason = "a story has the real clock")]
fn ago(time: SignedDuration) -> String {
    let then = Timestamp::now().checked_sub(time).expect("this century");
    then.to_string()
}

/// A farm whose two hosts are at work.
fn farm() -> Farm {
    let farm = Farm::new();
    farm.set(BUILD);
    farm.wait_for_jobs(&[("build", 2)]);
    farm.passes(2);
    farm.wait_until_alive(2);
    farm
}

/// While the source says what `spoil` makes it say, no host is told to leave although none has
/// anything to do, none is launched, and the log names pool and source once; when the source says that
/// nothing waits, the hosts leave.
fn holds(spoil: impl FnOnce(&Farm), because: &str) {
    let farm = farm();
    let provisioner = farm.start();
    let hosts = register_all(&farm);
    assert_eq!(told(&hosts, Doing::Busy), ["go_on", "go_on"]);
    // Two jobs wait and nobody is free: two more are launched.
    farm.wait_until_alive(4);

    spoil(&farm);
    farm.wait_until_said(HELD, 1);
    assert_eq!(told(&hosts, Doing::Idle), ["go_on", "go_on"]);
    let before = pass(&farm);
    farm_tests::wait::until("ten passes", crate::farm::SOON, || {
        let passes = pass(&farm) - before;
        (passes >= 10).then_some(()).ok_or(passes)
    });
    assert_eq!(told(&hosts, Doing::Idle), ["go_on", "go_on"]);
    assert_eq!(farm.fake.count("TerminateInstances"), 0);
    assert_eq!(farm.fake.instances().len(), 4);
    let said = farm.said(HELD);
    assert_eq!(said.len(), 1, "{said:?}");
    for word in ["queue", "build", because] {
        assert!(said[0].contains(word), "`{word}` is not in {said:?}");
    }
    let row = farm.pool("build");
    let holds = rows(&row["holds"]);
    assert_eq!(holds.len(), 1, "{row}");

    farm.wait_for_jobs(&[("build", 0)]);
    farm_tests::wait::until("the hosts to be told to leave", crate::farm::SOON, || {
        let told = told(&hosts, Doing::Idle);
        (told == ["quit", "quit"])
            .then_some(())
            .ok_or_else(|| told.join(" "))
    });
    assert_eq!(farm.said("is relied on again").len(), 1);
    stop(provisioner);
}

fn told(hosts: &[Host], doing: Doing) -> Vec<String> {
    hosts.iter().map(|host| host.report(doing)).collect()
}

/// The number of the last pass.
fn pass(farm: &Farm) -> i64 {
    let last = farm.ask(&["explain"]);
    last["id"]
        .as_i64()
        .unwrap_or_else(|| panic!("no number: {last}"))
}

#[test]
fn a_source_that_is_down_holds_its_pool() {
    holds(Farm::break_source, "No such file");
}

#[test]
fn a_source_that_is_stale_holds_its_pool() {
    let stale = |farm: &Farm| {
        let old = json!({"as_of": ago(SignedDuration::from_mins(10)), "pools": {"build": {"pending": 0}}});
        farm.source_says(&old.to_string());
    };
    holds(stale, "old");
}

#[test]
fn a_source_from_the_future_holds_its_pool() {
    let lie = |farm: &Farm| {
        let early = json!({"as_of": ago(SignedDuration::from_mins(-10)), "pools": {"build": {"pending": 9}}});
        farm.source_says(&early.to_string());
    };
    holds(lie, "ahead");
}

#[test]
fn a_source_that_says_what_cannot_be_holds_its_pool() {
    holds(
        |farm| farm.source_says(r#"{"pools":{"build":{"pending":-9}}}"#),
        "expected u32",
    );
}

#[test]
fn a_source_that_speaks_of_other_pools_holds_its_own() {
    holds(
        |farm| farm.source_says(r#"{"pools":{"others":{"pending":9}}}"#),
        "others",
    );
}
