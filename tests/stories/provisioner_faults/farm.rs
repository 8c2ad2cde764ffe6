//! A farm of one test: the fake EC2, a configuration, a source of demand that is a file, and the
//! `provisioner` that is started, killed and asked.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use farm_tests::ec2::{
    Effect, FakeEc2, Fault, Instance, Point, Settings, State, Timing, image_id, subnet_id,
};
use farm_tests::process::Process;
use farm_tests::services::Postgres;
use farm_tests::unique::Port;
use farm_tests::{programs, wait};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const EAST: &str = "us-east-1";
pub(crate) const WEST: &str = "us-west-2";

/// For what takes milliseconds on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// One pool that may use both regions. Its hosts leave as soon as nobody needs them, and have half a
/// day to register: who is not a host in a test is never late.
pub(crate) const BUILD: &str = r#"
[pools.build]
image = "stable"
types = { "c5.large" = 1.0 }
idle_timeout = "0s"
surplus_delay = "0s"
launch_timeout = "12h"
registration_timeout = "12h"
"#;

pub(crate) struct Farm {
    pub(crate) fake: FakeEc2,
    directory: TempDir,
    /// `sqlite`, or the address of a server.
    store: String,
    name: String,
    port: Port,
}

/// How one provisioner of a farm is configured.
#[derive(Clone, Copy)]
pub(crate) struct Setting<'a> {
    /// Its name: that of its files.
    pub(crate) name: &'a str,
    /// Where it listens.
    pub(crate) port: &'a Port,
    /// Time from pass to pass.
    pub(crate) interval: &'a str,
    /// Pools, and whatever else is a table of its own.
    pub(crate) tables: &'a str,
}

/// Passes are made as fast as a test wants to see what they do.
pub(crate) const INTERVAL: &str = "100ms";

impl Farm {
    /// A farm with the embedded store, and the pool [`BUILD`].
    pub(crate) fn new() -> Self {
        Self::with_store("sqlite", "farm")
    }

    /// The same with a schema of its own on `server`.
    pub(crate) fn on(server: &Postgres, name: &str) -> Self {
        Self::with_store(&server.socket_url(), name)
    }

    fn with_store(store: &str, name: &str) -> Self {
        let settings = Settings {
            timing: Timing::immediate(),
            ..Settings::default()
        };
        let farm = Self {
            fake: FakeEc2::start(settings),
            directory: TempDir::with_prefix("farm-provisioner-").expect("a temporary directory"),
            store: store.to_owned(),
            name: name.to_owned(),
            port: Port::reserve(),
        };
        let keys = "[default]\naws_access_key_id = AKIATEST\naws_secret_access_key = none\n";
        fs_err::write(farm.path("keys"), keys).expect("our own directory");
        let secret = farm.path("secret");
        fs_err::write(&secret, "0123456789abcdef".repeat(4)).expect("our own directory");
        let for_us = std::fs::Permissions::from_mode(0o600);
        fs_err::set_permissions(secret, for_us).expect("our own directory");
        farm.set(BUILD);
        farm.wait_for_jobs(&[("build", 0)]);
        farm
    }

    /// The address of its API.
    pub(crate) fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Configures the farm with these tables.
    pub(crate) fn set(&self, tables: &str) {
        self.configure(Setting {
            name: "main",
            port: &self.port,
            interval: INTERVAL,
            tables,
        });
    }

    /// Configures a provisioner, which shares store and secret with the others of the farm.
    pub(crate) fn configure(&self, setting: Setting<'_>) {
        let Setting {
            name,
            port,
            interval,
            tables,
        } = setting;
        let (fleet, store, url) = (&self.name, &self.store, self.fake.url());
        let (state, secret) = (self.path(&format!("{name}.state")), self.path("secret"));
        let (keys, events) = (self.path("keys"), self.path("events.jsonl"));
        let (jobs, port) = (self.path("jobs.json"), port.number());
        let pools: Vec<&str> = tables
            .lines()
            .filter_map(|line| line.strip_prefix("[pools.")?.strip_suffix(']'))
            .collect();
        let mut config = format!(
            r#"[provisioner]
fleet = {fleet:?}
cloud = "ec2"
interval = {interval:?}
state_dir = {state:?}
store = {store:?}
secret_file = {secret:?}
listen = "127.0.0.1:{port}"
check_address = false
[ec2]
endpoint = {url:?}
credentials_file = {keys:?}
timeout = "2s"
[limits]
max_leaving = 100.0
[sources.queue]
kind = "exec"
command = ["/bin/cat", {jobs:?}]
pools = {pools:?}
[[telemetry.jsonl]]
path = {events:?}
{tables}"#
        );
        for (region, zones) in [(EAST, "ab"), (WEST, "ab")] {
            let subnets: Vec<String> = zones
                .chars()
                .map(|zone| subnet_id(&format!("{region}{zone}")))
                .collect();
            config.push_str(&format!("[regions.{region}]\nsubnets = {subnets:?}\n"));
        }
        config.push_str("[images.stable.ids]\n");
        for region in [EAST, WEST] {
            config.push_str(&format!("{region} = {:?}\n", image_id(region, "stable")));
        }
        let path = self.path(&format!("{name}.toml"));
        fs_err::write(path, config).expect("our own directory");
    }

    /// So many jobs wait.
    pub(crate) fn wait_for_jobs(&self, pending: &[(&str, u32)]) {
        let pools: BTreeMap<&str, Value> = pending
            .iter()
            .map(|(pool, pending)| (*pool, json!({ "pending": pending })))
            .collect();
        self.source_says(&json!({ "pools": pools }).to_string());
    }

    /// What the source of demand prints from now on.
    pub(crate) fn source_says(&self, text: &str) {
        let (new, path) = (self.path("jobs.new"), self.path("jobs.json"));
        fs_err::write(&new, text).expect("our own directory");
        fs_err::rename(new, path).expect("our own directory");
    }

    /// The source of demand fails from now on.
    pub(crate) fn break_source(&self) {
        fs_err::remove_file(self.path("jobs.json")).expect("it was there");
    }

    /// Starts `provisioner run`.
    pub(crate) fn start(&self) -> Process {
        self.start_named("main", &[])
    }

    pub(crate) fn start_named(&self, name: &str, more: &[&str]) -> Process {
        let config = self.path(&format!("{name}.toml"));
        let mut arguments = vec!["--config", config.to_str().expect("our own name"), "run"];
        arguments.extend(more);
        let program = programs::ours("provisioner");
        Process::start(&program, arguments, self.directory.path(), &self.log(name))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.log"))
    }

    /// A new provisioner makes so many passes.
    pub(crate) fn passes(&self, count: u32) {
        let count = count.to_string();
        let mut provisioner = self.start_named("main", &["--passes", &count]);
        let status = provisioner.ended(4 * SOON);
        assert!(status.success(), "{status}");
    }

    /// Lines of the log of `name` that contain `text`.
    pub(crate) fn said_by(&self, name: &str, text: &str) -> Vec<String> {
        let log = fs_err::read_to_string(self.log(name)).unwrap_or_default();
        let lines = log.lines().filter(|line| line.contains(text));
        lines.map(str::to_owned).collect()
    }

    pub(crate) fn said(&self, text: &str) -> Vec<String> {
        self.said_by("main", text)
    }

    /// Waits until the log has `count` lines that contain `text`.
    pub(crate) fn wait_until_said(&self, text: &str, count: usize) {
        wait::until(&format!("`{text}` in the log"), 2 * SOON, || {
            let said = self.said(text).len();
            (said >= count)
                .then_some(())
                .ok_or_else(|| format!("{said} of {count}"))
        });
    }

    /// The answer of a verb, as JSON.
    pub(crate) fn ask(&self, verb: &[&str]) -> Value {
        let done = Command::new(programs::ours("provisioner"))
            .arg("--config")
            .arg(self.path("main.toml"))
            .args(["--format", "json"])
            .args(verb)
            .stdin(Stdio::null())
            .output()
            .expect("it is built");
        let words = String::from_utf8_lossy(&done.stderr);
        serde_json::from_slice(&done.stdout)
            .unwrap_or_else(|error| panic!("`{}`: {error}: {words}", verb.join(" ")))
    }

    /// Instances as `ps` shows them, by id with their row; those that are gone are left out.
    pub(crate) fn ps(&self) -> BTreeMap<String, Value> {
        rows(&self.ask(&["ps"]))
            .iter()
            .filter(|row| row["phase"] != "gone")
            .map(|row| (text(&row["instance_id"]), row.clone()))
            .collect()
    }

    /// The history, newest first, as (what, result).
    pub(crate) fn history(&self) -> Vec<(String, String)> {
        rows(&self.ask(&["history", "--limit", "1000"]))
            .iter()
            .map(|action| (text(&action["verb"]), text(&action["result"])))
            .collect()
    }

    /// Results of entries of the history.
    pub(crate) fn did(&self, verb: &str) -> Vec<String> {
        let done = self.history().into_iter();
        done.filter(|(what, _)| what == verb)
            .map(|(_, result)| result)
            .collect()
    }

    /// The row of a pool.
    pub(crate) fn pool(&self, name: &str) -> Value {
        let pools = self.ask(&["pools"]);
        let row = rows(&pools).iter().find(|row| row["pool"] == name).cloned();
        row.unwrap_or_else(|| panic!("no pool `{name}`: {pools}"))
    }

    /// Instances that the cloud runs, by its own books.
    pub(crate) fn alive(&self) -> Vec<Instance> {
        let alive = |instance: &Instance, now, timing: &Timing| {
            matches!(
                instance.state(now, timing),
                Some(State::Pending | State::Running)
            )
        };
        self.fake.with(|ec2, now| {
            ec2.settle(now);
            let timing = ec2.settings().timing;
            let instances = ec2.instances();
            instances
                .filter(|instance| alive(instance, now, &timing))
                .cloned()
                .collect()
        })
    }

    pub(crate) fn alive_ids(&self) -> BTreeSet<String> {
        self.alive().into_iter().map(|one| one.id).collect()
    }

    /// Waits until so many run.
    pub(crate) fn wait_until_alive(&self, count: usize) {
        wait::until("the instances wanted", 2 * SOON, || {
            let alive = self.alive().len();
            (alive == count)
                .then_some(())
                .ok_or_else(|| format!("{alive} of {count} run"))
        });
    }

    /// The next `times` calls of `action` meet `effect`.
    pub(crate) fn strike(&self, action: &str, point: Point, effect: Effect, times: u32) {
        let fault = Fault {
            action: action.to_owned(),
            region: None,
            times,
            point,
            effect,
        };
        self.fake.with(|ec2, _| ec2.add_fault(fault));
    }

    pub(crate) fn strike_with(&self, action: &str, code: &str, status: u16, times: u32) {
        let code = code.to_owned();
        self.strike(action, Point::Before, Effect::Error { code, status }, times);
    }

    pub(crate) fn clear_faults(&self) {
        self.fake.with(|ec2, _| ec2.clear_faults());
    }

    /// Error answers of EC2 with `code`, whatever was asked.
    pub(crate) fn errors(&self, code: &str) -> u64 {
        self.fake.with(|ec2, _| {
            let calls = ec2.calls().values();
            calls.filter_map(|calls| calls.errors.get(code)).sum()
        })
    }

    /// All calls of EC2.
    pub(crate) fn calls(&self) -> u64 {
        self.fake
            .with(|ec2, _| ec2.calls().values().map(|calls| calls.count).sum())
    }

    /// The cloud's books say that every decision was carried out at most once, and store and cloud
    /// know the same instances; nothing is open and a pass would do nothing.
    #[track_caller]
    pub(crate) fn assert_in_order(&self, launched: usize) {
        let ever = self.fake.instances();
        assert_eq!(ever.len(), launched, "instances launched");
        let mut decisions: BTreeMap<&str, Vec<&Instance>> = BTreeMap::new();
        for instance in &ever {
            let intent = instance.tags.get("farmhand:intent");
            let intent = intent.unwrap_or_else(|| panic!("{} has no intent", instance.id));
            decisions.entry(intent).or_default().push(instance);
        }
        let mut fleets = BTreeSet::new();
        for (intent, instances) in &decisions {
            let of: BTreeSet<_> = instances
                .iter()
                .map(|one| (&one.region, one.fleet.as_ref(), one.request_token.as_ref()))
                .collect();
            assert_eq!(of.len(), 1, "decision {intent} was carried out by {of:?}");
            let is_new = of.into_iter().all(|fleet| fleets.insert(fleet));
            assert!(is_new, "decision {intent} shares its fleet with another");
        }
        let known: BTreeSet<String> = self.ps().into_keys().collect();
        assert_eq!(known, self.alive_ids(), "store and cloud differ");
        let next = self.ask(&["plan"]);
        assert_eq!(next["world"]["intents"], json!([]), "a launch is open");
        let idle = [
            "replays",
            "launches",
            "terminations",
            "adoptions",
            "losses",
            "suspicions",
        ];
        for what in idle {
            assert_eq!(next["plan"][what], json!([]), "{what} in a pass at rest");
        }
    }
}

pub(crate) fn rows(value: &Value) -> &Vec<Value> {
    value
        .as_array()
        .unwrap_or_else(|| panic!("no list: {value}"))
}

pub(crate) fn text(value: &Value) -> String {
    let text = value.as_str().map(str::to_owned);
    text.unwrap_or_else(|| panic!("no text: {value}"))
}

/// Ends it as a power cut would.
pub(crate) fn kill_at_once(mut process: Process) {
    assert_eq!(process.try_wait(), None, "it ended before it was killed");
    kill(process.pid(), Signal::SIGKILL).expect("it is our child");
    process.ended(SOON);
}

/// Ends a provisioner that is well, in its own way.
pub(crate) fn stop(mut process: Process) {
    let status = process.stop();
    assert!(status.success(), "{status}");
}
