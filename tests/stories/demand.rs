//! The demand of a real Buildbot master: what the provisioner counts is what the master's database
//! holds, and a master that is gone holds the decision.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use farm_tests::process::Process;
use farm_tests::services::{Buildbot, Settings};
use farm_tests::{programs, wait};
use jiff::Timestamp;
use provisioner::config::Config;
use provisioner::demand::rules::Rules;
use provisioner::demand::{Memory, PoolDemand, Resolved, Sources, observe_all, resolve};
use provisioner::ids::PoolName;

const WORKER: &str = "bld-linux64-001";
const PASSWORD: &str = "correct horse";

/// For a worker to connect and be given a build, on a machine that may compile beside the test.
const SOON: Duration = Duration::from_secs(60);

/// Requests by builder: those that wait, and those that are claimed.
type Counts = BTreeMap<String, (u32, u32)>;

/// A farm of one master and three pools, with one rule that has a typo.
struct Farm {
    config: Config,
    rules: Rules,
    sources: Sources,
    memory: Memory,
    runtime: tokio::runtime::Runtime,
}

impl Farm {
    fn new(master: &Buildbot) -> Self {
        let config: Config = toml::from_str(&format!(
            r#"
            [pools.linux]
            [pools.android]
            [pools.windows]

            [demand]
            min_age = "0s"

            [sources.master]
            kind = "buildbot"
            url = "{}"

            [[rules]]
            job = "^(good|failing|delegating)$"
            pool = "linux"
            [[rules]]
            job = "release-(?!linux)"
            pool = "android"
            [[rules]]
            job = "leakx"
            pool = "windows"
            "#,
            master.url()
        ))
        .expect("it is TOML");
        Self {
            rules: Rules::compile(&config.rules).expect("these are patterns"),
            sources: Sources::new(&config.sources).expect("the address is one"),
            memory: Memory::default(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime"),
            config,
        }
    }

    fn observe(&mut self) -> Resolved {
        let now = now();
        let answers = observe_all(&self.sources, now, Duration::from_secs(30));
        let answers = self.runtime.block_on(answers);
        let resolved = resolve(&answers, &self.memory, &self.rules, &self.config, now);
        self.memory = resolved.memory.clone();
        resolved
    }
}

#[expect(clippy::disallowed_methods, reason = "a story is its own main")]
fn now() -> Timestamp {
    Timestamp::now()
}

fn of<'a>(resolved: &'a Resolved, pool: &str) -> &'a PoolDemand {
    &resolved.demand[&PoolName::parse(pool).expect("a name")]
}

/// What the master's database holds, by SQL.
fn counts_by_sql(master: &Buildbot) -> Counts {
    const QUERY: &str = "
        SELECT b.name, sum(c.brid IS NULL), sum(c.brid IS NOT NULL)
        FROM buildrequests br JOIN builders b ON b.id = br.builderid
        LEFT JOIN buildrequest_claims c ON c.brid = br.id
        WHERE br.complete = 0 GROUP BY b.name";
    let program = format!(
        "import json, sqlite3, sys\nrows = sqlite3.connect(f'file:{{sys.argv[1]}}?mode=ro', uri=True).execute('''{QUERY}''')\nprint(json.dumps({{name: (waiting, claimed) for name, waiting, claimed in rows}}))"
    );
    let output = Command::new(programs::python_environment().join("bin/python"))
        .args(["-c", &program])
        .arg(master.database())
        .output()
        .expect("python runs");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

/// A worker that takes one build, and stays as long as the value.
fn worker(master: &Buildbot, directory: &std::path::Path) -> Process {
    let environment = programs::python_environment();
    let program = environment.join("bin/buildbot-worker");
    let output = Command::new(&program)
        .args(["create-worker", "--quiet", "worker"])
        .arg(format!("127.0.0.1:{}", master.worker_port()))
        .args([WORKER, PASSWORD])
        .current_dir(directory)
        .output()
        .expect("buildbot-worker is installed");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "create-worker: {complaints}");
    let log = directory.join("worker.log");
    Process::start(&program, ["start", "--nodaemon", "worker"], directory, &log)
}

#[test]
fn the_demand_of_a_real_master_is_what_its_database_holds_and_is_held_when_it_is_gone() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let master = Buildbot::start(&Settings {
        worker: WORKER.to_owned(),
        password: PASSWORD.to_owned(),
        listed_job: "release-android".to_owned(),
        host_daemon: pipe,
    });
    let mut farm = Farm::new(&master);

    let resolved = farm.observe();
    assert_eq!(
        *of(&resolved, "linux"),
        PoolDemand {
            as_of: of(&resolved, "linux").as_of,
            ..PoolDemand::default()
        }
    );
    assert!(
        of(&resolved, "linux").as_of.is_some(),
        "nothing waits, and that is known"
    );

    // `delegating` waits for somebody to read the pipe, which nobody does: it runs for good.
    let jobs = [
        "delegating",
        "good",
        "good",
        "failing",
        "release-android",
        "release-android",
        "leaky",
    ];
    master.submit(&jobs);
    let waiting = counts_by_sql(&master);
    assert_eq!(waiting.values().map(|(waiting, _)| waiting).sum::<u32>(), 7);
    let resolved = farm.observe();
    assert_counts(&resolved, &waiting);

    // What is too young by the default waits a moment longer.
    farm.config.demand.min_age = Duration::from_secs(3600);
    let resolved = farm.observe();
    assert_eq!(
        (
            of(&resolved, "linux").pending,
            of(&resolved, "linux").too_young
        ),
        (0, 4)
    );
    farm.config.demand.min_age = Duration::ZERO;

    let worker = worker(&master, directory.path());
    let claimed = wait::until("a build to be claimed", SOON, || {
        let counts = counts_by_sql(&master);
        match counts["delegating"] {
            (0, 1) => Ok(counts),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(claimed.values().map(|(_, claimed)| claimed).sum::<u32>(), 1);
    let resolved = farm.observe();
    assert_counts(&resolved, &claimed);
    assert_eq!(
        (
            of(&resolved, "linux").pending,
            of(&resolved, "linux").running
        ),
        (3, 1)
    );
    assert_eq!(of(&resolved, "android").pending, 2);
    assert_the_typo_is_told(&resolved);

    drop(worker);
    drop(master);
    let held = farm.observe();
    for pool in ["linux", "android"] {
        let (known, held) = (of(&resolved, pool), of(&held, pool));
        assert_eq!(
            (held.pending, held.running),
            (known.pending, known.running),
            "{pool}"
        );
        assert_eq!(held.holds.len(), 1, "{pool}");
        assert!(
            held.holds[0].reason.contains("Connection refused"),
            "{held:?}"
        );
    }
    assert_eq!(
        of(&held, "windows").holds,
        [],
        "it never had a job of this master"
    );
}

/// The pools have what their builders have.
fn assert_counts(resolved: &Resolved, counts: &Counts) {
    for (pool, builders) in [
        ("linux", &["good", "failing", "delegating"][..]),
        ("android", &["release-android"]),
        ("windows", &[]),
    ] {
        let (waiting, claimed) = builders
            .iter()
            .filter_map(|builder| counts.get(*builder))
            .fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
        let demand = of(resolved, pool);
        assert_eq!(
            (demand.pending, demand.running),
            (waiting, claimed),
            "{pool}"
        );
        assert_eq!(demand.holds, [], "{pool}");
    }
}

fn assert_the_typo_is_told(resolved: &Resolved) {
    let said = resolved.report.sentences();
    assert_eq!(said.len(), 2, "{said:?}");
    assert_eq!(
        said[0],
        "no rule matches `leaky` of source `master` (1 job): it is nobody's demand; add a rule, without `pool` if that is right"
    );
    let typo = &resolved.report.unused[0];
    assert_eq!(typo.rule.pattern, "leakx");
    assert_eq!(typo.meant.as_deref(), Some("leaky"));
}
