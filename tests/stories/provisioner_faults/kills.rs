//! kill -9 at every step of apply: what was decided is launched exactly once, and after two passes of
//! the next provisioner nothing is left that only one side knows.
//!
//! Two farms, one on each store, live through the same rounds. In a round a farm grows from none to
//! three instances, from three to five, or loses all of them, and the provisioner that does it dies:
//! while EC2 holds one of its calls, before or after EC2 did what was asked, or at any moment. Farms
//! are not made anew, so each round begins with what the ones before left.

use std::time::Duration;

use farm_tests::ec2::{Effect, Point};
use farm_tests::process::Process;
use farm_tests::services::Postgres;
use farm_tests::wait;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

use crate::farm::{BUILD, Farm, SOON, kill_at_once, stop};
use crate::hosts::{Host, fence_all, leave, register_all};

/// When the provisioner dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// EC2 has the call and has done nothing.
    Before(&'static [&'static str]),
    /// EC2 has done what was asked, and its answer is on the way.
    After(&'static [&'static str]),
    /// As `After`, and whoever starts it anew has changed its configuration: the same decision then
    /// has other parameters.
    AfterAndChanged(&'static [&'static str]),
    /// Any: after so many calls, and a little.
    Any,
}

const FLEET: &[&str] = &["CreateFleet"];
const TEMPLATE: &[&str] = &["CreateLaunchTemplate", "CreateLaunchTemplateVersion"];
const TERMINATE: &[&str] = &["TerminateInstances"];
const LOOK: &[&str] = &["DescribeInstances"];

/// Moments of a farm that grows. A number that has no factor in common with the steps of a farm, so
/// that each moment meets each step.
const GROWING: [Moment; 7] = [
    Moment::Before(FLEET),
    Moment::After(FLEET),
    Moment::Any,
    Moment::Before(TEMPLATE),
    Moment::After(TEMPLATE),
    Moment::AfterAndChanged(FLEET),
    Moment::Before(LOOK),
];

/// Moments of a farm that shrinks.
const SHRINKING: [Moment; 5] = [
    Moment::Before(TERMINATE),
    Moment::After(TERMINATE),
    Moment::Any,
    Moment::After(LOOK),
    Moment::Any,
];

/// Instances wanted after each step of a farm.
const STEPS: [u32; 3] = [3, 5, 0];

struct Story {
    farm: Farm,
    chance: TestRunner,
    rounds: usize,
    grown: usize,
    shrunk: usize,
    wanted: u32,
    /// Instances that were to be launched so far.
    launched: usize,
    /// Changes with each launch, so that each needs a version of the template of its own.
    key: usize,
    /// Moments the provisioner died at with something begun.
    unfinished: usize,
}

impl Story {
    fn new(farm: Farm) -> Self {
        let story = Self {
            farm,
            chance: TestRunner::deterministic(),
            rounds: 0,
            grown: 0,
            shrunk: 0,
            wanted: 0,
            launched: 0,
            key: 0,
            unfinished: 0,
        };
        story.farm.set(&story.tables());
        story
    }

    fn tables(&self) -> String {
        format!("{BUILD}key_name = \"key-{}\"\n", self.key)
    }

    fn any(&mut self, limit: u64) -> u64 {
        let any = (0..limit).new_tree(&mut self.chance).expect("a range");
        any.current()
    }

    fn round(&mut self) {
        let wanted = STEPS[self.rounds % STEPS.len()];
        self.rounds += 1;
        if wanted > self.wanted {
            self.grow(wanted);
        } else {
            self.shrink();
        }
        self.wanted = wanted;
        self.farm.assert_in_order(self.launched);
        assert_eq!(
            self.farm.alive().len(),
            usize::try_from(wanted).expect("a few")
        );
    }

    fn grow(&mut self, wanted: u32) {
        let moment = GROWING[self.grown % GROWING.len()];
        self.grown += 1;
        self.key += 1;
        self.farm.set(&self.tables());
        // Every other launch is seen by other calls only after a while.
        self.show_late(
            self.grown.is_multiple_of(2) && !matches!(moment, Moment::AfterAndChanged(_)),
        );
        self.farm.wait_for_jobs(&[("build", wanted)]);
        let done = self.strike(moment);
        let before = self.farm.fake.instances().len();
        let provisioner = self.farm.start();
        self.die(provisioner, moment, done);
        let launched = self.farm.fake.instances().len();
        self.launched += usize::try_from(wanted - self.wanted).expect("a few");
        assert!(
            launched == before || launched == self.launched,
            "{launched} launched when it died, {moment:?}"
        );
        if let Moment::AfterAndChanged(_) = moment {
            self.key += 1;
            self.farm.set(&self.tables());
        }
        self.farm.passes(2);
    }

    fn shrink(&mut self) {
        let moment = SHRINKING[self.shrunk % SHRINKING.len()];
        self.shrunk += 1;
        self.farm.wait_for_jobs(&[("build", 0)]);
        let provisioner = self.farm.start();
        let hosts = register_all(&self.farm);
        if moment == Moment::Any {
            // Somewhere between the first word of a host and the end of the last.
            let calls = self.farm.calls() + self.any(20);
            self.shrink_until(&hosts, calls);
            kill_at_once(provisioner);
        } else {
            let done = self.strike(moment);
            if moment == Moment::Before(TERMINATE) || moment == Moment::After(TERMINATE) {
                fence_all(&hosts);
            }
            self.die(provisioner, moment, done);
        }
        self.finish(&hosts);
    }

    /// Hosts say what they have to say, until EC2 was called so often or all are gone.
    fn shrink_until(&self, hosts: &[Host], calls: u64) {
        wait::until("so many calls", SOON, || {
            let alive = self.farm.alive_ids();
            leave(hosts, &alive);
            let made = self.farm.calls();
            (made >= calls)
                .then_some(())
                .ok_or_else(|| format!("{made} of {calls}"))
        });
    }

    /// What was decided is finished by two passes. What was not even said needs the hosts again.
    fn finish(&mut self, hosts: &[Host]) {
        self.farm.passes(2);
        if self.farm.alive().is_empty() {
            return;
        }
        let ended = |farm: &Farm| {
            let ps = farm.ps();
            ps.values().filter(|row| !row["ended_at"].is_null()).count()
        };
        assert_eq!(ended(&self.farm), 0, "an end that was decided is not done");
        let provisioner = self.farm.start();
        wait::until("the rest to end", 2 * SOON, || {
            let alive = self.farm.alive_ids();
            leave(hosts, &alive);
            alive.is_empty().then_some(()).ok_or("some run")
        });
        stop(provisioner);
        self.farm.passes(2);
    }

    fn show_late(&self, late: bool) {
        let after = if late {
            Duration::from_secs(1)
        } else {
            Duration::ZERO
        };
        self.farm.fake.with(|ec2, _| {
            let timing = ec2.timing_mut();
            timing.visible_after = after;
            timing.tags_visible_after = 2 * after;
        });
    }

    /// EC2 will hold the call of `moment`. Returns how many such calls were done before.
    fn strike(&self, moment: Moment) -> u64 {
        let (point, actions) = match moment {
            Moment::Before(actions) => (Point::Before, actions),
            Moment::After(actions) | Moment::AfterAndChanged(actions) => (Point::After, actions),
            Moment::Any => return 0,
        };
        for action in actions {
            self.farm.strike(action, point, Effect::Hold, 1);
        }
        self.counts(actions)
    }

    /// The provisioner dies at `moment`.
    fn die(&mut self, mut provisioner: Process, moment: Moment, done: u64) {
        match moment {
            Moment::Before(actions) => self.wait_until_struck(&mut provisioner, actions),
            Moment::After(actions) | Moment::AfterAndChanged(actions) => {
                self.wait_until_struck(&mut provisioner, actions);
                // Struck on arrival; its work is done within the moment after, and then counted.
                wait::until("the call to be done", SOON, || {
                    (self.counts(actions) > done).then_some(()).ok_or("not yet")
                });
            }
            Moment::Any => {
                let calls = self.farm.calls() + self.any(14);
                let little = Duration::from_micros(self.any(20_000));
                wait::until("so many calls", SOON, || {
                    (self.farm.calls() >= calls).then_some(()).ok_or("not yet")
                });
                pause(little);
            }
        }
        kill_at_once(provisioner);
        self.farm.clear_faults();
        self.farm.fake.control(farm_tests::ec2::Command::Release {});
    }

    fn counts(&self, actions: &[&str]) -> u64 {
        actions
            .iter()
            .map(|action| self.farm.fake.count(action))
            .sum()
    }

    fn wait_until_struck(&mut self, provisioner: &mut Process, actions: &[&str]) {
        provisioner.ready(2 * SOON, || {
            let waiting = self.farm.fake.with(|ec2, _| ec2.waiting_faults().len());
            (waiting < actions.len())
                .then_some(())
                .ok_or_else(|| format!("none of {actions:?} was called"))
        });
        self.unfinished += 1;
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "chance is what is tested here: nothing is waited for"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn rounds(count: usize) {
    let server = Postgres::start();
    let mut stories = [
        Story::new(Farm::new()),
        Story::new(Farm::on(&server, "farm")),
    ];
    for number in 0..count {
        let story = &mut stories[number % 2];
        story.round();
    }
    let held: usize = stories.iter().map(|story| story.unfinished).sum();
    assert!(
        3 * held > count,
        "{held} of {count} died with a call under way"
    );
}

#[test]
fn whatever_kills_a_provisioner_all_is_launched_exactly_once_on_both_stores() {
    // Each farm lives through all moments of growing, and two thirds of those of shrinking.
    rounds(44);
}

#[test]
#[ignore = "minutes: cargo test -p farm-tests --all-features --test provisioner_faults -- --ignored"]
fn two_hundred_kills_launch_nothing_twice_and_lose_nothing() {
    rounds(200);
}
