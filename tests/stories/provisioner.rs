//! The story of the centre: thirty builds wait at a real Buildbot master, the provisioner launches
//! hosts for them, the hosts take and finish them, and leave again. Then the same demand with EC2 by
//! moto, where nobody comes up.
//!
//! Hosts of the local cloud are real `runner` processes in namespaces of their own, with the shipped
//! task that takes a build. Their image has one task more: a master knows its workers by name, so a
//! host takes a name that is free for as long as it lives, and is called so from then on.
//!
//! What counts is what others keep: builds are those of the master's database, instances those of the
//! cloud, and how many there were at once is reckoned from the history, which has every moment; the
//! kept passes have one each second.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use farm_tests::host::have_root;
use farm_tests::place::Place;
use farm_tests::process::{Process, last_lines, show};
use farm_tests::services::{Buildbot, Moto, Pools};
use farm_tests::unique::Port;
use farm_tests::{programs, wait};
use jiff::Timestamp;
use provisioner::cloud::local::{Stopped, stop_all};
use provisioner::config;
use provisioner::ids::{InstanceId, PassId, PoolName};
use provisioner::plan::{Blocker, counts};
use provisioner::store::{Action, ActionVerb, AnyStore, Missing, Pass, Store as _};
use provisioner::view::{self, ImageRow, InstanceRow, Phase, PoolRow};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::runtime::Runtime;

/// Where an instance has Buildbot, and the program that starts a worker.
const WORKER_ENVIRONMENT: &str = "/run/buildbot-environment";
const WORKER_COMMAND: &str = "/run/buildbot-command";
/// Two builders, each with a pool of its name.
const BUILD: &str = "linux64-build";
const TEST: &str = "linux64-test";
const POOLS: [&str; 2] = [BUILD, TEST];

const MIN: usize = 1;
const MAX: usize = 4;
/// In EC2, where hosts cost nothing here and no build ends: more than builds ask for.
const MAX_IN_EC2: usize = 20;
const BUILDS_EACH: usize = 15;
/// Builds for fewer hosts than the maximum, and more than the minimum.
const FEW_EACH: usize = 3;
/// Those that wait while each host has one.
const WAITING: usize = BUILDS_EACH - MAX;

/// Names of workers of a pool. A host keeps its name for good, so these are also the most hosts that may
/// ever come.
const NAMES_EACH: usize = 12;

const PASSWORD: &str = "correct horse";

/// For what takes seconds on an idle machine.
const SOON: Duration = Duration::from_secs(90);

/// For thirty builds on eight hosts: four rounds of a few seconds, on a machine that may compile
/// beside the test.
const BUILDS_LIMIT: Duration = Duration::from_secs(300);

/// A host that has nothing to do leaves within this: `idle_timeout` (5 s), ten seconds until it asks,
/// and a few passes; the rest is for the machine.
const LEAVE_LIMIT: Duration = Duration::from_secs(120);

/// More than `runner` takes to end.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// What is in no history of a farm where nothing fails.
const TROUBLE: [ActionVerb; 6] = [
    ActionVerb::LaunchFell,
    ActionVerb::EndFailed,
    ActionVerb::Lost,
    ActionVerb::Interrupted,
    ActionVerb::JobLost,
    ActionVerb::Stopped,
];

#[test]
fn hosts_come_for_thirty_builds_finish_them_and_leave_down_to_the_minimum() {
    if !have_root() {
        return;
    }
    let mut farm = Farm::local();
    farm.start();
    for pool in POOLS {
        farm.until_hosts("the minimum", pool, SOON, |hosts| {
            hosts.len() == MIN && all(hosts, Phase::Idle)
        });
    }
    farm.assert_a_dry_run_says("0 waiting, 0 running");

    // Builds that have begun wait for the gate to open, so this is a state that stays.
    farm.submit(&POOLS, BUILDS_EACH);
    farm.until_it_is_as_large_as_it_may_be();
    farm.assert_people_are_told_what_there_is();
    let full = farm.hosts(BUILD);
    let held: Vec<&InstanceId> = full[..2].iter().map(|host| &host.instance_id).collect();
    for id in &held {
        farm.hold(id);
    }

    farm.open_the_gate();
    farm.until_finished(2 * BUILDS_EACH, BUILDS_LIMIT);
    farm.until_hosts("the minimum", TEST, LEAVE_LIMIT, |hosts| hosts.len() == MIN);
    let stayed = farm.until_hosts("those who are held", BUILD, LEAVE_LIMIT, |hosts| {
        hosts.len() == 2 && all(hosts, Phase::Idle)
    });
    let stayed: BTreeSet<&InstanceId> = stayed.iter().map(|host| &host.instance_id).collect();
    assert_eq!(stayed, held.iter().copied().collect());
    farm.pass_by(5);
    assert_eq!(
        farm.hosts(BUILD).len(),
        2,
        "one too many, and nobody may go"
    );

    farm.release(held[0]);
    let left = farm.until_hosts("the released one to go", BUILD, LEAVE_LIMIT, |hosts| {
        hosts.len() == MIN
    });
    assert_eq!(left[0].instance_id, *held[1]);
    farm.release(held[1]);

    let launched = farm.launches().len();
    farm.maintain();
    farm.assert_it_stands_still(2 * BUILDS_EACH);
    farm.resume();
    farm.until_finished(2 * BUILDS_EACH + 2, BUILDS_LIMIT);
    assert_eq!(farm.launches().len(), launched, "those who were there did");

    farm.assert_few_builds_bring_as_many_hosts(FEW_EACH);
    farm.until_finished(2 * (BUILDS_EACH + 1 + FEW_EACH), BUILDS_LIMIT);
    for pool in POOLS {
        farm.until_hosts("the minimum", pool, LEAVE_LIMIT, |hosts| hosts.len() == MIN);
    }

    farm.assert_each_build_was_finished_once_by_a_host_of_its_pool(BUILDS_EACH + 1 + FEW_EACH);
    farm.assert_history_has_each_launch_from_decision_to_end();
    for pool in POOLS {
        assert_eq!(farm.most_at_once(pool), MAX, "{pool}");
    }
    farm.assert_no_pass_went_beyond_the_limits();
    farm.assert_replays_are_what_was_planned();
    farm.end();
}

#[test]
fn the_same_demand_launches_in_ec2_once_and_one_at_a_time_when_nobody_comes_up() {
    let mut farm = Farm::ec2();
    farm.submit(&POOLS, BUILDS_EACH);
    farm.start();

    let launched = |farm: &Farm, expected: &dyn Fn(usize) -> bool| {
        let counts = POOLS.map(|pool| farm.in_moto(pool, &EVERY_STATE).len());
        if counts.into_iter().all(expected) {
            Ok(())
        } else {
            Err(format!("{counts:?}"))
        }
    };
    wait::until("the first launches", SOON, || {
        launched(&farm, &|count| count == BUILDS_EACH)
    });
    farm.pass_by(2);
    launched(&farm, &|count| count == BUILDS_EACH).expect("what boots is not asked for again");
    let boots = farm.launches();
    for pool in POOLS {
        farm.assert_moto_has_what_history_says(pool);
        let hosts = farm.hosts(pool);
        assert!(all(&hosts, Phase::Booting), "{hosts:?}");
    }

    // moto shows what has ended for ever, so this counts whatever was launched.
    wait::until("two probes in each pool", LEAVE_LIMIT, || {
        launched(&farm, &|count| count >= BUILDS_EACH + 2)
    });
    let ended: BTreeSet<InstanceId> = farm
        .history()
        .into_iter()
        .filter(|action| action.verb == ActionVerb::EndDecided)
        .map(|action| {
            assert_eq!(action.result, "it came up and its host never registered");
            action.instance.expect("it is about one")
        })
        .collect();
    for boot in &boots {
        let id = boot.instance.as_ref().expect("it is about one");
        assert!(ended.contains(id), "{id} boots still");
    }
    farm.stop();
    let gone: BTreeSet<String> = POOLS
        .iter()
        .flat_map(|pool| farm.in_moto(pool, &["terminated"]))
        .collect();
    for id in &ended {
        assert!(gone.contains(id.as_str()), "{id} runs still");
    }
    farm.assert_launches_were_all_at_once_and_then_single();
    for pool in POOLS {
        farm.assert_moto_has_what_history_says(pool);
    }
    farm.assert_no_pass_went_beyond_the_limits();
    for pool in POOLS {
        assert!(farm.most_at_once(pool) <= MAX_IN_EC2, "{pool}");
    }
}

/// A master, a provisioner, and what it launches.
struct Farm {
    master: Buildbot,
    moto: Option<Moto>,
    place: Place,
    port: Port,
    runtime: Runtime,
    store: Option<AnyStore>,
    provisioner: Option<Process>,
    /// Keys that open nothing, for EC2.
    keys: NamedTempFile,
}

impl Farm {
    fn new(moto: Option<Moto>) -> Self {
        let names = |pool: &&str| {
            let names = (1..=NAMES_EACH).map(|number| format!("{pool}-{number}"));
            ((*pool).to_owned(), names.collect())
        };
        let mut keys = NamedTempFile::with_prefix("farm-keys-").expect("a temporary file");
        keys.write_all(b"[default]\naws_access_key_id = AKIATEST\naws_secret_access_key = none\n")
            .expect("a temporary file can be written");
        let place = Place::new("farm-fleet-");
        Self {
            master: Buildbot::start_for(&Pools {
                workers: POOLS.iter().map(names).collect(),
                password: PASSWORD.to_owned(),
                gate: place.path("shared/gate"),
            }),
            moto,
            place,
            port: Port::reserve(),
            runtime: Runtime::new().expect("a runtime"),
            store: None,
            provisioner: None,
            keys,
        }
    }

    fn local() -> Self {
        let farm = Self::new(None);
        farm.furnish_image();
        let path = |path: &str| format!("{:?}", farm.place.path(path));
        farm.configure(&format!(
            r#"
            [local]
            isolation = "namespaces"
            forward = ["127.0.0.1:{master}"]
            writable = [{shared}]

            [images.worker]
            directory = {image}

            [pools.{BUILD}]
            [pools.{TEST}]
            "#,
            master = farm.master.worker_port(),
            shared = path("shared"),
            image = path("image"),
        ));
        farm
    }

    fn ec2() -> Self {
        const IMAGE: &str = "ami-0123456789abcdef0";
        let moto = Moto::start(&[(IMAGE.to_owned(), "worker".to_owned())]);
        let farm = Self::new(Some(moto));
        let answer = farm.ask_moto("Action=DescribeSubnets");
        farm.configure(&format!(
            r#"
            [ec2]
            endpoint = "{endpoint}"
            credentials_file = {keys:?}

            [limits]
            max_forced_terminations = 100

            [regions.us-east-1]
            subnets = {subnets:?}

            [images.worker]
            ids.us-east-1 = "{IMAGE}"

            [pools.{BUILD}]
            registration_timeout = "30s"
            [pools.{TEST}]
            registration_timeout = "30s"
            "#,
            endpoint = farm.moto().url(),
            keys = farm.keys.path(),
            subnets = elements(&answer, "subnetId"),
        ));
        farm
    }

    /// Writes the configuration: what both clouds share, over it `own`.
    fn configure(&self, own: &str) {
        let max = self.max();
        let (cloud, machine) = match self.moto {
            Some(_) => ("ec2", "c5.large"),
            None => ("local", "small"),
        };
        let mut shared = format!(
            r#"
            [provisioner]
            cloud = "{cloud}"
            interval = "1s"
            state_dir = {state:?}
            listen = "127.0.0.1:{port}"
            passes_kept = 100000

            [limits]
            max_leaving = 100.0

            [demand]
            min_age = "0s"

            [sources.master]
            kind = "buildbot"
            url = "{master}"
            "#,
            state = self.place.path("state"),
            port = self.port.number(),
            master = self.master.url(),
        );
        for pool in POOLS {
            shared += &format!(
                r#"
                [[rules]]
                job = '^{pool}$'
                pool = "{pool}"

                [pools.{pool}]
                image = "worker"
                types = {{ "{machine}" = 1.0 }}
                min = {MIN}
                max = {max}
                idle_timeout = "5s"
                surplus_delay = "3s"
                "#
            );
        }
        self.place.write("etc/provisioner.toml", &shared);
        self.place.make_directory("etc/provisioner.d");
        self.place.write("etc/provisioner.d/50-cloud.toml", own);
    }

    const fn max(&self) -> usize {
        match self.moto {
            Some(_) => MAX_IN_EC2,
            None => MAX,
        }
    }

    /// An image with the shipped task that takes a build, and one that gives the host its name.
    fn furnish_image(&self) {
        let place = &self.place;
        for directory in ["shared", "shared/names", "image", "image/tasks.d"] {
            place.make_directory(directory);
        }
        for task in ["lib.sh", "50-buildbot-worker"] {
            let shipped = programs::repository("tasks.d").join(task);
            place.copy(&shipped, &format!("image/tasks.d/{task}"));
        }
        place.write_executable(
            "image/tasks.d/20-host-name",
            &format!(
                r#"#!/bin/sh
# Makes Buildbot reachable for the job user, who may not look into the home directory it may lie in,
# and takes a name of this pool that nobody has; each once.
. "${{0%/*}}/lib.sh"
if [ ! -e {command} ]; then
    mkdir -- {environment}
    mount --bind {installed} {environment}
    printf '#!/bin/sh\nexec {environment}/bin/python {environment}/bin/buildbot-worker "$@"\n' >{command}
    chmod 755 {command}
fi
names={names}
pool=$(require telemetry.pool)
[ ! -d "$names/$(uname -n)" ] || exit 0
number=0
while [ "$number" -lt {NAMES_EACH} ]; do
    number=$((number + 1))
    name=$pool-$number
    if mkdir -- "$names/$name" 2>/dev/null; then
        uname -n >"$names/$name/instance"
        hostname "$name"
        exit 0
    fi
done
fail "no name of \`$pool\` is free"
"#,
                names = place.path("shared/names").display(),
                installed = programs::python_environment().display(),
                environment = WORKER_ENVIRONMENT,
                command = WORKER_COMMAND,
            ),
        );
        place.write_secret("image/buildbot.password", PASSWORD);
        place.write(
            "image/runner.toml",
            &format!(
                r#"
                [buildbot]
                master = "127.0.0.1:{port}"
                password_file = {password:?}
                directory = "/run/buildbot-worker"
                user = "nobody"
                command = {command:?}

                [tasks.buildbot-worker]
                timeout = "0s"
                drain_signal = "HUP"
                "#,
                port = self.master.worker_port(),
                password = place.path("image/buildbot.password"),
                command = WORKER_COMMAND,
            ),
        );
    }

    /// Starts the provisioner, and waits for its first pass.
    fn start(&mut self) {
        let configuration = self.configuration();
        let mut process = Process::start(
            &programs::ours("provisioner"),
            [
                "run".as_ref(),
                "--config".as_ref(),
                configuration.as_os_str(),
            ],
            self.place.directory(),
            &self.place.path("provisioner.log"),
        );
        let config = config::load(Some(&configuration)).expect("it has no fault");
        let runtime = &self.runtime;
        let store = process.ready(SOON, || {
            let store = provisioner::store::open(&config.provisioner, Missing::Refuse);
            let store = runtime.block_on(store).map_err(|error| error.to_string())?;
            let passes = runtime.block_on(store.passes(1)).unwrap_or_default();
            if passes.is_empty() {
                return Err("it has made no pass".to_owned());
            }
            Ok(store)
        });
        self.store = Some(store);
        self.provisioner = Some(process);
    }

    fn stop(&mut self) {
        let mut provisioner = self.provisioner.take().expect("it runs");
        assert_eq!(provisioner.stop().code(), Some(0));
    }

    fn configuration(&self) -> PathBuf {
        self.place.path("etc/provisioner.toml")
    }

    fn instances_directory(&self) -> PathBuf {
        self.place.path("state/local")
    }

    // ------------------------------------------------------------------------------ the provisioner

    /// What the command line answers, in text.
    fn say(&self, arguments: &[&str]) -> String {
        let output = Command::new(programs::ours("provisioner"))
            .arg("--config")
            .arg(self.configuration())
            .args(arguments)
            .output()
            .expect("it is built");
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "`provisioner {}`: {}: {complaints}",
            arguments.join(" "),
            output.status
        );
        String::from_utf8(output.stdout).expect("it is text")
    }

    /// The same, as JSON.
    fn answer<T: DeserializeOwned>(&self, arguments: &[&str]) -> T {
        let arguments = [&["--format", "json"], arguments].concat();
        let text = self.say(&arguments);
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("`provisioner {}`: {error}", arguments.join(" ")))
    }

    fn store(&self) -> &AnyStore {
        self.store.as_ref().expect("it was started")
    }

    fn pass(&self, id: PassId) -> Pass {
        let pass = self.runtime.block_on(self.store().pass(id));
        pass.expect("the store can be read").expect("all are kept")
    }

    fn last_pass_id(&self) -> PassId {
        let last = self.runtime.block_on(self.store().passes(1));
        last.expect("the store can be read")[0].id
    }

    /// All passes, the oldest first.
    fn passes(&self) -> Vec<Pass> {
        (1..=self.last_pass_id().0)
            .map(|id| self.pass(PassId(id)))
            .collect()
    }

    /// Waits for as many whole passes.
    fn pass_by(&mut self, count: u64) {
        let first = self.last_pass_id().0;
        self.until("passes to go by", SOON, |farm| {
            let now = farm.last_pass_id().0;
            (now > first + count)
                .then_some(())
                .ok_or_else(|| format!("pass {now}, and it was {first}"))
        });
    }

    /// The instances of a pool that are not gone, as of the last pass.
    fn hosts(&self, pool: &str) -> Vec<InstanceRow> {
        let world = self.pass(self.last_pass_id()).world;
        let mut rows = view::instances(&world);
        rows.retain(|row| {
            row.phase != Phase::Gone && row.pool.as_ref().is_some_and(|of| of.as_str() == pool)
        });
        rows
    }

    fn until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&Self) -> Result<T, String>,
    ) -> T {
        wait::until(what, limit, || {
            let provisioner = self.provisioner.as_mut().expect("it runs");
            if let Some(status) = provisioner.try_wait() {
                panic!("the provisioner ended while waiting for {what}: {status}");
            }
            condition(self)
        })
    }

    fn until_hosts(
        &mut self,
        what: &str,
        pool: &str,
        limit: Duration,
        condition: impl Fn(&[InstanceRow]) -> bool,
    ) -> Vec<InstanceRow> {
        self.until(&format!("{what} of {pool}"), limit, |farm| {
            let hosts = farm.hosts(pool);
            if condition(&hosts) {
                return Ok(hosts);
            }
            let short =
                |row: &InstanceRow| (row.instance_id.to_string(), row.phase, row.assignment);
            Err(format!("{:?}", hosts.iter().map(short).collect::<Vec<_>>()))
        })
    }

    fn hold(&self, id: &InstanceId) {
        let arguments = ["hold", id.as_str(), "--owner", "ops", "--reason", "a look"];
        let action: Action = self.answer(&arguments);
        assert_eq!(action.verb, ActionVerb::Held);
        let rows: Vec<InstanceRow> = self.answer(&["ps"]);
        let row = rows.iter().find(|row| row.instance_id == *id);
        let hold = row.and_then(|row| row.hold.as_ref()).expect("it is held");
        assert_eq!((&*hold.owner, &*hold.reason), ("ops", "a look"));
    }

    fn release(&self, id: &InstanceId) {
        let action: Action = self.answer(&["release", id.as_str(), "--by", "ops"]);
        assert_eq!((action.verb, &*action.by), (ActionVerb::Released, "ops"));
    }

    /// The history, the oldest first.
    fn history(&self) -> Vec<Action> {
        let mut history: Vec<Action> = self.answer(&["history", "--limit", "100000"]);
        history.reverse();
        history
    }

    fn launches(&self) -> Vec<Action> {
        let mut history = self.history();
        history.retain(|action| action.verb == ActionVerb::Launched);
        history
    }

    // ------------------------------------------------------------------------------------ the master

    fn submit(&self, builders: &[&str], each: usize) {
        self.master.submit(&builders.repeat(each));
    }

    /// Lets builds end.
    fn open_the_gate(&self) {
        self.place.write("shared/gate", "");
    }

    fn close_the_gate(&self) {
        fs_err::remove_file(self.place.path("shared/gate")).expect("it was open");
    }

    fn until_finished(&mut self, count: usize, limit: Duration) {
        self.until("the builds", limit, |farm| {
            let finished = farm.master.finished().map_err(|error| error.to_string())?;
            (finished.len() == count)
                .then_some(())
                .ok_or_else(|| format!("{} are finished", finished.len()))
        });
    }

    fn rows(&self, collection: &str) -> Vec<Value> {
        self.master.rows(collection).expect("the master is up")
    }

    // ----------------------------------------------------------------------------------------- moto

    fn moto(&self) -> &Moto {
        self.moto.as_ref().expect("this is a farm in EC2")
    }

    /// Asks moto without any code of the provisioner.
    fn ask_moto(&self, question: &str) -> String {
        let credential = "AWS4-HMAC-SHA256 Credential=t/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0";
        reqwest::blocking::Client::new()
            .post(self.moto().url())
            .header("Authorization", credential)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(format!("{question}&Version=2016-11-15"))
            .send()
            .and_then(reqwest::blocking::Response::error_for_status)
            .and_then(reqwest::blocking::Response::text)
            .expect("moto answers")
    }

    /// Instances with the tags of a pool that are in one of these states.
    fn in_moto(&self, pool: &str, states: &[&str]) -> BTreeSet<String> {
        let mut question = format!(
            "Action=DescribeInstances\
             &Filter.1.Name=tag:farmhand:owner&Filter.1.Value.1=farmhand\
             &Filter.2.Name=tag:farmhand:pool&Filter.2.Value.1={pool}\
             &Filter.3.Name=instance-state-name"
        );
        for (state, number) in states.iter().zip(1..) {
            question += &format!("&Filter.3.Value.{number}={state}");
        }
        let answer = self.ask_moto(&question);
        elements(&answer, "instanceId").into_iter().collect()
    }

    // ----------------------------------------------------------------------------------- assertions

    /// A dry run beside the provisioner that runs.
    fn assert_a_dry_run_says(&self, demand: &str) {
        let text = self.say(&["plan"]);
        for pool in POOLS {
            let head = format!("pool {pool}\n  demand    {demand}\n");
            assert!(text.contains(&head), "{text}");
        }
    }

    fn until_it_is_as_large_as_it_may_be(&mut self) {
        self.until("all hosts there may be, each with a build", SOON, |farm| {
            let pass = farm.pass(farm.last_pass_id());
            let rows = view::pools(&pass);
            let is_full = |row: &PoolRow| {
                // A request that a worker is just taking is neither waiting nor running.
                let demand = (row.pending, row.running);
                (row.existing, row.busy) == (count(MAX), count(MAX))
                    && demand == (Some(count(WAITING)), Some(count(MAX)))
            };
            // What the master says of a build is known a moment before its host says it.
            let told = POOLS.iter().all(|pool| all(&farm.hosts(pool), Phase::Busy));
            if rows.iter().all(is_full) && told {
                Ok(())
            } else {
                Err(format!("{rows:?}"))
            }
        });
    }

    /// Every verb that shows something, on the farm that is as large as it may be.
    fn assert_people_are_told_what_there_is(&self) {
        let planned: Pass = self.answer(&["plan"]);
        assert_eq!(planned.faults, [""; 0]);
        assert_eq!(planned.plan.launches, []);
        self.assert_a_dry_run_says(&format!("{WAITING} waiting, {MAX} running"));

        let pools: Vec<PoolRow> = self.answer(&["pools"]);
        let named: Vec<&str> = pools.iter().map(|row| row.pool.as_str()).collect();
        assert_eq!(named, POOLS);
        for row in &pools {
            let demand = (row.pending, row.running);
            assert_eq!(demand, (Some(count(WAITING)), Some(count(MAX))), "{row:?}");
            assert_eq!(
                (row.target, row.requested, row.stopping),
                (count(MAX), 0, 0),
                "{row:?}"
            );
            let blocked = row.blocked.iter().find(|one| one.by == Blocker::PoolMax);
            assert_eq!(
                blocked.map(|one| one.count),
                Some(count(WAITING)),
                "{row:?}"
            );
        }

        let images: Vec<ImageRow> = self.answer(&["images"]);
        assert_eq!(images.len(), 1);
        for (place, pool) in images[0].pools.iter().zip(POOLS) {
            assert_eq!((place.pool.as_str(), place.percentage), (pool, 100.0));
            let hosts = (place.instances, place.registered, place.busy);
            assert_eq!(hosts, (count(MAX), count(MAX), count(MAX)), "{pool}");
        }

        for pool in POOLS {
            let hosts: Vec<InstanceRow> = self.answer(&["ps", "--pool", pool]);
            assert_eq!(hosts.len(), MAX);
            for host in &hosts {
                assert_eq!((host.phase, host.job.as_deref()), (Phase::Busy, Some(pool)));
            }
        }
        assert_eq!(self.say(&["ps"]).lines().count(), 1 + POOLS.len() * MAX);

        let why = self.say(&["explain", BUILD]);
        assert!(why.contains(&format!("pool {BUILD}\n")), "{why}");
        assert!(!why.contains(&format!("pool {TEST}\n")), "{why}");
        assert!(
            why.contains(&format!("pools.{BUILD}.max is {MAX}")),
            "{why}"
        );
        let found = self.say(&["check"]);
        assert!(!found.contains("fault"), "{found}");
    }

    fn maintain(&mut self) {
        let order = ["maintenance", "on", "--reason", "new switch", "--by", "ops"];
        let action: Action = self.answer(&order);
        assert_eq!(action.verb, ActionVerb::Maintained);
        for pool in POOLS {
            self.until_hosts("drained hosts", pool, SOON, |hosts| {
                all(hosts, Phase::Draining)
            });
        }
    }

    /// Builds that come meanwhile wait: nobody takes them, and nobody is launched for them.
    fn assert_it_stands_still(&mut self, finished: usize) {
        self.submit(&POOLS, 1);
        self.pass_by(4);
        let pools: Vec<PoolRow> = self.answer(&["pools"]);
        for row in &pools {
            let order = row.maintenance.as_ref().expect("it is known");
            assert_eq!((&*order.by, &*order.reason), ("ops", "new switch"));
            assert_eq!((row.pending, row.launching), (Some(1), 0), "{row:?}");
        }
        let now = self.master.finished().expect("the master is up").len();
        assert_eq!(now, finished, "nobody takes a build");
        for pool in POOLS {
            let hosts = self.hosts(pool);
            assert!(
                hosts.len() == MIN && all(&hosts, Phase::Draining),
                "{hosts:?}"
            );
        }
    }

    /// Where no limit is near, the number is that of the formula: what boots is not asked for again.
    fn assert_few_builds_bring_as_many_hosts(&mut self, few: usize) {
        self.close_the_gate();
        let before = self.launches().len();
        self.submit(&POOLS, few);
        for pool in POOLS {
            self.until_hosts("a host for each build", pool, SOON, |hosts| {
                hosts.len() >= few && all(hosts, Phase::Busy)
            });
        }
        self.pass_by(2);
        for pool in POOLS {
            assert_eq!(self.hosts(pool).len(), few, "{pool}");
        }
        let launched = self.launches().len() - before;
        assert_eq!(launched, POOLS.len() * (few - MIN));
        self.open_the_gate();
    }

    fn resume(&self) {
        let _: Action = self.answer(&["maintenance", "off", "--by", "ops"]);
    }

    fn assert_each_build_was_finished_once_by_a_host_of_its_pool(&self, each: usize) {
        let requests = self.rows("buildrequests");
        assert_eq!(requests.len(), POOLS.len() * each);
        for request in &requests {
            assert_eq!(request["complete"], true, "{request}");
            assert_eq!(request["results"], 0, "{request}");
        }
        let builds = self.rows("builds");
        assert_eq!(builds.len(), requests.len(), "no build was begun again");
        let ids = |rows: &[Value], key: &str| -> BTreeSet<u64> {
            rows.iter().filter_map(|row| row[key].as_u64()).collect()
        };
        assert_eq!(
            ids(&builds, "buildrequestid"),
            ids(&requests, "buildrequestid")
        );
        let names: BTreeMap<u64, String> = self
            .rows("workers")
            .iter()
            .filter_map(|row| Some((row["workerid"].as_u64()?, row["name"].as_str()?.to_owned())))
            .collect();
        let launches = self.launches();
        let mut of_pools: BTreeMap<&str, usize> = BTreeMap::new();
        for build in &builds {
            assert_eq!(build["results"], 0, "{build}");
            let worker = &names[&build["workerid"].as_u64().expect("somebody built it")];
            let instance = self.place.read(&format!("shared/names/{worker}/instance"));
            let launch = launches.iter().find(|launch| {
                launch
                    .instance
                    .as_ref()
                    .is_some_and(|id| id.as_str() == instance.trim())
            });
            let launch = launch.unwrap_or_else(|| panic!("nobody launched `{worker}`"));
            let pool = launch.pool.as_ref().map_or("", PoolName::as_str);
            let pool = POOLS
                .into_iter()
                .find(|one| *one == pool)
                .expect("one of ours");
            assert!(worker.starts_with(pool), "{worker} is of {pool}");
            *of_pools.entry(pool).or_default() += 1;
        }
        assert_eq!(of_pools, POOLS.map(|pool| (pool, each)).into());
    }

    /// Every instance has one of each step, in order, and none has trouble.
    fn assert_history_has_each_launch_from_decision_to_end(&self) {
        let history = self.history();
        let trouble: Vec<&Action> = history
            .iter()
            .filter(|action| TROUBLE.contains(&action.verb))
            .collect();
        assert!(trouble.is_empty(), "{trouble:?}");
        let mut lives: BTreeMap<&InstanceId, Vec<ActionVerb>> = BTreeMap::new();
        for action in &history {
            if let Some(id) = &action.instance {
                lives.entry(id).or_default().push(action.verb);
            }
        }
        let decided: BTreeSet<_> = history
            .iter()
            .filter(|action| action.verb == ActionVerb::LaunchDecided)
            .map(|action| &action.intent)
            .collect();
        for launch in self.launches() {
            assert!(decided.contains(&launch.intent), "{launch:?}");
        }
        let now: BTreeSet<InstanceId> = POOLS
            .iter()
            .flat_map(|pool| self.hosts(pool))
            .map(|row| row.instance_id)
            .collect();
        let mut gone = 0;
        for (id, mut life) in lives.clone() {
            life.retain(|verb| {
                !matches!(
                    verb,
                    ActionVerb::Assigned | ActionVerb::Held | ActionVerb::Released
                )
            });
            let born = [ActionVerb::Launched, ActionVerb::Registered];
            let died = [
                ActionVerb::EndDecided,
                ActionVerb::Terminated,
                ActionVerb::Gone,
            ];
            if now.contains(id) {
                assert_eq!(life, born, "{id}");
            } else {
                assert_eq!(life, [&born[..], &died[..]].concat(), "{id}");
                gone += 1;
            }
        }
        assert_eq!(gone + now.len(), lives.len());
        // The cloud shows an instance for an hour after its end, so these are all there ever were.
        let on_disk: BTreeSet<String> = fs_err::read_dir(self.instances_directory())
            .expect("it is the cloud's")
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .filter(|name| name.starts_with("i-"))
            .collect();
        let launched: BTreeSet<String> = lives.keys().map(ToString::to_string).collect();
        assert_eq!(launched, on_disk);
    }

    /// All that moto ever launched for a pool is what the history has: it was done once.
    fn assert_moto_has_what_history_says(&self, pool: &str) {
        let launches = self.launches();
        let ours = launches
            .iter()
            .filter(|action| action.pool.as_ref().is_some_and(|of| of.as_str() == pool));
        let ids = ours.filter_map(|action| action.instance.as_ref().map(ToString::to_string));
        assert_eq!(self.in_moto(pool, &EVERY_STATE), ids.collect(), "{pool}");
    }

    /// The most instances of a pool that were there at once, by the history: from their launch until
    /// the cloud said that they are gone.
    fn most_at_once(&self, pool: &str) -> usize {
        let (mut now, mut most) = (0, 0);
        for action in self.history() {
            if action.pool.as_ref().is_none_or(|of| of.as_str() != pool) {
                continue;
            }
            match action.verb {
                ActionVerb::Launched => now += 1,
                ActionVerb::Gone | ActionVerb::Lost | ActionVerb::Interrupted => now -= 1,
                _ => {}
            }
            most = most.max(now);
        }
        most
    }

    /// No pass was stopped by `check`, and none had, or would have had, more instances than allowed.
    fn assert_no_pass_went_beyond_the_limits(&self) {
        let passes = self.passes();
        assert!(passes.len() > 10, "there were passes to look at");
        for pass in &passes {
            assert_eq!(pass.faults, [""; 0], "pass {}", pass.id);
            assert_eq!(pass.plan.faults, [""; 0], "pass {}", pass.id);
            for pool in POOLS {
                let ours = |of: &PoolName| of.as_str() == pool;
                let there = pass.world.instances.iter().filter(|instance| {
                    counts(instance) && instance.pool.as_ref().is_some_and(ours)
                });
                let launching = pass
                    .plan
                    .launches
                    .iter()
                    .filter(|launch| ours(&launch.pool));
                let launching: u32 = launching.map(|launch| launch.count).sum();
                let all = there.count() + usize::try_from(launching).expect("it is small");
                assert!(all <= self.max(), "pass {}: {all} of {pool}", pass.id);
            }
        }
    }

    /// Planning is a function of what is kept: each pass planned again is the same.
    fn assert_replays_are_what_was_planned(&self) {
        let launching = self
            .passes()
            .into_iter()
            .filter(|pass| !pass.plan.launches.is_empty());
        let mut replayed = 0;
        for pass in launching {
            let id = pass.id.to_string();
            let again: Pass = self.answer(&["plan", "--replay", &id, "--as-then"]);
            assert_eq!(again.plan, pass.plan, "pass {id}");
            replayed += 1;
        }
        assert!(replayed > 0, "something was launched");
    }

    fn assert_launches_were_all_at_once_and_then_single(&self) {
        for pool in POOLS {
            let mut counts = Vec::new();
            for pass in self.passes() {
                let plan = &pass.plan.pools[&PoolName::parse(pool).expect("a name")];
                if plan.launching == 0 {
                    continue;
                }
                if !counts.is_empty() {
                    let probing = plan.blocked.iter().any(|blocked| {
                        blocked.by == Blocker::Step && blocked.message.contains("one at a time")
                    });
                    assert!(probing, "pass {}: {:?}", pass.id, plan.blocked);
                }
                counts.push(usize::try_from(plan.launching).expect("it is small"));
            }
            let (first, probes) = counts.split_first().expect("something was launched");
            assert_eq!(*first, BUILDS_EACH, "{pool}: {counts:?}");
            assert!(probes.len() >= 2, "{pool}: {counts:?}");
            assert!(probes.iter().all(|count| *count == 1), "{pool}: {counts:?}");
        }
    }

    /// Ends the provisioner, which no instance minds, and then those, of which nothing is left.
    fn end(&mut self) {
        self.stop();
        let directory = self.instances_directory();
        let living = processes_of(&directory);
        assert!(
            living.len() >= POOLS.len() * MIN * 3,
            "supervisor, first process and `runner` of each: {living:?}"
        );
        let stopped = self
            .runtime
            .block_on(stop_all(&directory, STOP_PATIENCE, now));
        let expected = Stopped {
            instances: POOLS.len() * MIN,
            killed: 0,
            left: 0,
        };
        assert_eq!(stopped.expect("it is the cloud's directory"), expected);
        // The last of them ends a moment after its lock does.
        wait::until("nothing to be left", SOON, || {
            let left = processes_of(&directory);
            left.is_empty()
                .then_some(())
                .ok_or_else(|| format!("{left:?}"))
        });
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        self.provisioner = None;
        let directory = self.instances_directory();
        if std::thread::panicking() {
            for entry in fs_err::read_dir(&directory).into_iter().flatten().flatten() {
                let log = entry.path().join("host/runner.log");
                if log.exists() {
                    show(&log.display().to_string(), &last_lines(&log));
                }
            }
        }
        let stopped = self
            .runtime
            .block_on(stop_all(&directory, STOP_PATIENCE, now));
        if stopped.map_or(true, |stopped| stopped.left > 0) && !std::thread::panicking() {
            panic!("instances in `{}` are left", directory.display());
        }
    }
}

/// Those in which moto may show an instance.
const EVERY_STATE: [&str; 6] = [
    "pending",
    "running",
    "shutting-down",
    "stopping",
    "stopped",
    "terminated",
];

/// A count as rows have it.
fn count(number: usize) -> u32 {
    u32::try_from(number).expect("it is small")
}

fn all(hosts: &[InstanceRow], phase: Phase) -> bool {
    hosts.iter().all(|host| host.phase == phase)
}

/// What is between the tags of that name, in an answer of EC2.
fn elements(answer: &str, name: &str) -> Vec<String> {
    let tag = format!("<{name}>");
    let rest = answer.split(&*tag).skip(1);
    rest.filter_map(|rest| rest.split('<').next())
        .map(str::to_owned)
        .collect()
}

/// Every process that was started for an instance below `directory`, or that sees the mounts of one:
/// whatever lives in its namespaces does.
fn processes_of(directory: &Path) -> Vec<String> {
    let path = directory.to_string_lossy().into_owned();
    let read = |pid: &str, file: &str| {
        let content = fs_err::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&content).replace('\0', " ")
    };
    fs_err::read_dir("/proc")
        .expect("Linux has it")
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter_map(|pid| {
            let command = read(&pid, "cmdline");
            let its = command.contains(&path) || read(&pid, "mountinfo").contains(&path);
            its.then(|| format!("{pid}: {command}"))
        })
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "a story has the real clock")]
fn now() -> Timestamp {
    Timestamp::now()
}
