//! Two provisioners of one farm.

use std::net::TcpStream;
use std::time::Duration;

use farm_tests::ec2::{Command, Effect, Point};
use farm_tests::services::Postgres;
use farm_tests::unique::Port;
use farm_tests::wait;

use crate::farm::{BUILD, Farm, SOON, Setting, kill_at_once, stop};

const LEADS: &str = "this provisioner leads";

#[test]
fn when_the_leader_is_killed_the_other_leads_within_one_interval_and_nothing_is_launched_twice() {
    const WITHIN: Duration = Duration::from_secs(3);
    let server = Postgres::start();
    let farm = Farm::on(&server, "farm");
    let names = ["one", "other"];
    let ports = names.map(|_| Port::reserve());
    for (name, port) in names.into_iter().zip(&ports) {
        farm.configure(Setting {
            name,
            port,
            interval: "3s",
            tables: BUILD,
        });
    }
    let follow = |index: usize| {
        let mut provisioner = farm.start_named(names[index], &[]);
        let address = ("127.0.0.1", ports[index].number());
        provisioner.ready(SOON, || TcpStream::connect(address).map(drop));
        provisioner
    };
    let mut leader = follow(0);
    wait::until("the first to lead", SOON, || {
        let leads = farm.said_by(names[0], LEADS).len();
        (leads == 1).then_some(()).ok_or("it does not")
    });
    let mut wanted = 0;
    for turn in 0..4 {
        let heir = (turn + 1) % 2;
        let before = farm.said_by(names[heir], LEADS).len();
        let follower = follow(heir);
        // It dies with an answer of EC2 on the way to it: what was launched is in no store.
        farm.strike("CreateFleet", Point::After, Effect::Hold, 1);
        wanted += 2;
        farm.wait_for_jobs(&[("build", wanted)]);
        let count = usize::try_from(wanted).expect("a few");
        farm.wait_until_alive(count);
        assert_eq!(farm.said_by(names[heir], LEADS).len(), before, "both lead");
        kill_at_once(leader);
        wait::until("the other to lead", WITHIN, || {
            let leads = farm.said_by(names[heir], LEADS).len();
            (leads == before + 1).then_some(()).ok_or("it does not")
        });
        farm.clear_faults();
        farm.fake.control(Command::Release {});
        wait::until("what was launched to be known", SOON, || {
            let known = farm.ps().len();
            (known == count)
                .then_some(())
                .ok_or_else(|| format!("{known} of {count}"))
        });
        farm.assert_in_order(count);
        leader = follower;
    }
    stop(leader);
}

#[test]
fn a_second_provisioner_on_the_embedded_store_ends_with_75_and_the_first_goes_on() {
    let farm = Farm::new();
    let first = farm.start();
    farm.wait_until_said(LEADS, 1);

    // Typed twice: the same configuration, and so the same port.
    let mut second = farm.start();
    assert_eq!(second.ended(SOON).code(), Some(75));
    let refused = farm.said("another provisioner works in");
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].contains("main.state"), "{refused:?}");
    assert_eq!(farm.said(LEADS).len(), 1);

    farm.wait_for_jobs(&[("build", 2)]);
    farm.wait_until_alive(2);
    stop(first);
    farm.assert_in_order(2);
}
