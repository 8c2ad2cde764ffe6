//! The main story: a host takes real builds from a real Buildbot master, is swept between them,
//! decides whether to reboot, and has every attempt in two databases and in syslog.
//!
//! The host runs the shipped tasks as they are. Added are a task that fails the first attempt of
//! every run, so that there is something to retry; a halt task that writes down in which run it
//! ran; and the hook, which keeps an account of attempts of its own.
//!
//! What differs from a machine: a reboot is the end of a PID namespace and a new one, with an empty
//! `/run` and a new boot id, on a kernel that goes on. The story of a full host reboots for real.

use std::collections::BTreeSet;
use std::time::Duration;

use farm_events::{Event, Outcome, Record, RunResult};
use farm_tests::host::{JOB_USER, RunnerHost, have_root};
use farm_tests::services::{Build, Buildbot, InfluxDb, Rsyslog, Settings, VictoriaMetrics};
use farm_tests::wait;
use serde_json::Value;

const HOST: &str = "bld-linux64-017";
const PASSWORD: &str = "correct horse";

/// The job on the reboot list, whose pattern is written in another case and matches in the middle.
const LISTED_JOB: &str = "release-Android-arm64";
const LISTED_PATTERN: &str = "android";

/// For one boot with a handful of builds of about three seconds each, on a machine that may compile
/// beside the test.
const BOOT_LIMIT: Duration = Duration::from_secs(150);

/// For what takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(30);

/// The jobs in the order in which the master hands them out. `leaky` and `delegating` are always
/// followed by a job that takes the port they left a process on. The host reboots after the last job
/// of the first two lines.
const JOBS: [&[&str]; 3] = [
    &["good", "leaky", "good", "delegating", "good", "failing"],
    &["leaky", "good", LISTED_JOB],
    &["delegating", "good"],
];

/// A daemon of the host that starts what jobs ask it to, as `atd` and container engines do: what it
/// starts is no descendant of the job.
const HOST_DAEMON: &str = r#"#!/bin/sh
exec 3<>"$0.pipe"
while read -r command <&3; do
    setsid setpriv --reuid=farmjob --regid=farmjob --init-groups sh -c "$command" 3>&- &
done
"#;

/// What every run does, in this order.
const RUN: [(&str, Outcome); 8] = [
    ("1-cleanslate", Outcome::Ok),
    ("10-free-space", Outcome::Ok),
    ("20-unreliable", Outcome::Retry),
    ("20-unreliable", Outcome::Ok),
    ("50-buildbot-worker", Outcome::Ok),
    ("51-spool-job", Outcome::Ok),
    ("90-cleanslate", Outcome::Ok),
    ("99-reboot-decision", Outcome::Ok),
];

struct Farm {
    master: Buildbot,
    influxdb: InfluxDb,
    victoria_metrics: VictoriaMetrics,
    rsyslog: Rsyslog,
    host: RunnerHost,
}

#[test]
fn a_host_takes_builds_is_swept_reboots_when_it_must_and_every_attempt_is_recorded() {
    if !have_root() {
        return;
    }
    let mut farm = Farm::new();

    // A host without a job waits for one, so nothing here is a race: what comes and goes does so
    // between two jobs, however long it takes.
    farm.host.boot(&[]);
    farm.build(&JOBS[0][..2]);
    farm.influxdb.stop();
    farm.build(&JOBS[0][2..4]);
    farm.victoria_metrics.stop();
    farm.master.submit(&JOBS[0][4..]);
    assert_eq!(
        farm.host.ended(BOOT_LIMIT).code(),
        Some(2),
        "the failure halts the host"
    );

    farm.host.boot(&[]);
    farm.build(&JOBS[1][..1]);
    farm.influxdb.start_again();
    farm.master.submit(&JOBS[1][1..]);
    assert_eq!(
        farm.host.ended(BOOT_LIMIT).code(),
        Some(2),
        "the listed job halts the host"
    );

    farm.victoria_metrics.start_again();
    farm.master.submit(JOBS[2]);
    farm.host.boot(&["--runs", "2"]);
    assert_eq!(
        farm.host.ended(BOOT_LIMIT).code(),
        Some(0),
        "nothing halts the host"
    );

    let all: Vec<&str> = JOBS.concat();
    let records = farm.records();
    farm.assert_builds_are_good_but_the_failing_one(&all);
    farm.assert_the_worker_said_when_the_last_build_began();
    assert_jobs_are_those_of_the_master(&records, &farm.master.finished().unwrap());
    assert_each_run_keeps_the_order(&records, all.len());
    assert_what_jobs_left_is_ended(&records, &all);
    assert_reboots_are_for_the_failure_and_the_listed_job_only(&records);
    farm.assert_the_halt_task_ran_in_those_runs(&records);
    assert_three_boots(&records);
    farm.assert_the_hook_saw_the_same_attempts(&records);
    farm.assert_no_attempt_is_lost(&records);
}

impl Farm {
    fn new() -> Self {
        let host = RunnerHost::new(HOST);
        let master = Buildbot::start(&Settings {
            worker: HOST.to_owned(),
            password: PASSWORD.to_owned(),
            listed_job: LISTED_JOB.to_owned(),
            host_daemon: host.place.path("etc/rc.local.pipe"),
        });
        let farm = Self {
            master,
            influxdb: InfluxDb::start(),
            victoria_metrics: VictoriaMetrics::start(),
            rsyslog: Rsyslog::start(),
            host,
        };
        farm.furnish_host();
        farm
    }

    fn furnish_host(&self) {
        let host = &self.host.place;
        host.write_executable("etc/rc.local", HOST_DAEMON);
        host.make_pipe("etc/rc.local.pipe");
        host.ship_tasks();
        host.write_executable(
            "tasks.d/20-unreliable",
            "#!/bin/sh\n[ \"$RUNNER_ATTEMPT\" -gt 1 ]\n",
        );
        let halts = host.path("halts");
        host.write_executable(
            "tasks.d/halt",
            &format!("#!/bin/sh\necho \"$RUNNER_RUN_ID\" >>{}\n", halts.display()),
        );
        let attempts = host.path("attempts.jsonl");
        host.write_executable(
            "bin/hook",
            &format!(
                "#!/bin/sh\nprintf '%s\\n' \"$1\" >>{}\n",
                attempts.display()
            ),
        );
        // The scripts of a virtual environment name its Python where it was made; on this host it is elsewhere.
        let buildbot = host.path("buildbot/bin");
        let buildbot = buildbot.display();
        host.write_executable(
            "bin/buildbot-worker",
            &format!("#!/bin/sh\nexec {buildbot}/python {buildbot}/buildbot-worker \"$@\"\n"),
        );
        host.write_secret("etc/buildbot.password", PASSWORD);
        host.write(
            "blacklists/jobs.toml",
            &format!("[[pattern]]\npattern = '{LISTED_PATTERN}'\nreason = \"emulators stay\"\nadded = 2026-01-01\n"),
        );
        host.write("etc/runner.toml", &self.configuration());
    }

    fn configuration(&self) -> String {
        let path = |path: &str| format!("{:?}", self.host.place.path(path));
        let rsyslog = self.rsyslog.address();
        format!(
            r#"{runner}task_hook = {hook}

[runner.backoff]
initial = "20ms"
max = "200ms"

[cleanslate]
users = ["{JOB_USER}"]
grace = "500ms"

[buildbot]
master = "127.0.0.1:{worker_port}"
password_file = {password_file}
directory = {worker}
user = "{JOB_USER}"
command = {command}

[tasks.buildbot-worker]
timeout = "0s"
drain_signal = "HUP"

[tasks.reboot-decision]
may_halt = true

[reboot]
blacklists = {blacklists}

[telemetry]
pool = "linux64"
flush_on_exit = "20s"

[[telemetry.influx]]
api = "v1"
url = "{influxdb}"
database = "{database}"

[[telemetry.influx]]
url = "{victoria_metrics}"
org = "farm"
bucket = "farm"

[[telemetry.syslog]]
address = "tcp://{rsyslog}"

[[telemetry.syslog]]
address = "unix://{socket}"

[[telemetry.jsonl]]
path = {events}
"#,
            runner = self.host.place.runner_table(),
            hook = path("bin/hook"),
            worker_port = self.master.worker_port(),
            password_file = path("etc/buildbot.password"),
            worker = path("worker"),
            command = path("bin/buildbot-worker"),
            blacklists = path("blacklists"),
            influxdb = self.influxdb.url(),
            database = self.influxdb.database(),
            victoria_metrics = self.victoria_metrics.url(),
            socket = self.rsyslog.socket().display(),
            events = path("events.jsonl"),
        )
    }

    /// Submits jobs and waits until the host that runs has built them.
    fn build(&mut self, jobs: &[&str]) {
        let master = &self.master;
        let before = master.finished().expect("the master is up").len();
        master.submit(jobs);
        self.host.while_running("the builds", BOOT_LIMIT, || {
            let finished = master.finished().map_err(|error| error.to_string())?;
            (finished.len() == before + jobs.len())
                .then_some(())
                .ok_or_else(|| format!("{finished:?}"))
        });
    }

    /// Every record the host made: its file of JSON lines, which is written without a network.
    /// Real workers name the builder when its build begins; the host keeps what the last one wrote.
    fn assert_the_worker_said_when_the_last_build_began(&self) {
        let output = self.host.place.read("state/output/50-buildbot-worker");
        assert!(output.contains("a build of `good` begins\n"), "{output}");
    }

    fn records(&self) -> Vec<Record> {
        self.host
            .place
            .read("events.jsonl")
            .lines()
            .map(|line| serde_json::from_str(line).expect("one record a line"))
            .collect()
    }

    fn assert_builds_are_good_but_the_failing_one(&self, all: &[&str]) {
        let expected: Vec<_> = all
            .iter()
            .map(|job| Build {
                job: (*job).to_owned(),
                results: if *job == "failing" { 2 } else { 0 },
            })
            .collect();
        // Each build began with taking the port, so the port was free each time.
        let finished = self.master.finished().expect("the master is up");
        assert_eq!(finished, expected);
        let pending = self.master.pending().expect("the master is up");
        assert_eq!(pending, 0);
        std::net::TcpListener::bind(("127.0.0.1", self.master.held_port()))
            .expect("the port is free at the end");
    }

    fn assert_the_halt_task_ran_in_those_runs(&self, records: &[Record]) {
        let halted = events(records, |event| match event {
            Event::RunFinished(run) if run.result == RunResult::Halted => Some(run.run_id.as_str()),
            _ => None,
        });
        let ran = self.host.place.read("halts");
        assert_eq!(ran.lines().collect::<Vec<_>>(), halted);
        assert_eq!(halted.len(), 2);
    }

    fn assert_the_hook_saw_the_same_attempts(&self, records: &[Record]) {
        let hooks: Vec<(String, u64, String)> = self
            .host
            .place
            .read("attempts.jsonl")
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("the hook gets JSON"))
            .filter(|hook| hook["result"] != "RUNNING")
            .map(|hook| {
                let text = |key: &str| hook[key].as_str().unwrap_or_default().to_owned();
                (
                    text("task"),
                    hook["try_num"].as_u64().unwrap_or(0),
                    text("result").to_lowercase(),
                )
            })
            .collect();
        let events: Vec<_> = attempts(records, 1)
            .into_iter()
            .map(|attempt| (attempt.task, attempt.attempt, attempt.outcome))
            .collect();
        assert_eq!(hooks, events);
    }

    fn assert_no_attempt_is_lost(&self, records: &[Record]) {
        let expected = |unit| BTreeSet::from_iter(attempts(records, unit));
        let count = records
            .iter()
            .filter(|record| matches!(record.event, Event::TaskFinished(_)))
            .count();
        assert_eq!(expected(1).len(), count, "attempts can be told apart");

        wait::until("every attempt in InfluxDB", SOON, || {
            same(&self.in_influxdb()?, &expected(1))
        });
        let counted = self.influxdb.count(&format!(
            r#"SELECT count("attempt") FROM "task_finished" WHERE "host"='{HOST}'"#
        ));
        assert_eq!(counted.expect("InfluxDB is up"), count as u64);

        wait::until("every attempt in VictoriaMetrics", SOON, || {
            same(&self.in_victoria_metrics()?, &expected(1_000_000))
        });
        wait::until("every attempt in rsyslog's file", SOON, || {
            same(&self.in_rsyslog("imtcp "), &expected(1_000))
        });
    }

    fn in_influxdb(&self) -> Result<BTreeSet<Attempt>, String> {
        let query = format!(
            r#"SELECT "attempt","task","outcome" FROM "task_finished" WHERE "host"='{HOST}' AND "pool"='linux64'"#
        );
        let rows = self
            .influxdb
            .rows(&query)
            .map_err(|error| error.to_string())?;
        let attempt = |row: Vec<Value>| Attempt {
            time: row[0].as_i64().unwrap_or_default(),
            attempt: row[1].as_u64().unwrap_or_default(),
            task: row[2].as_str().unwrap_or_default().to_owned(),
            outcome: row[3].as_str().unwrap_or_default().to_owned(),
        };
        Ok(rows.into_iter().map(attempt).collect())
    }

    fn in_victoria_metrics(&self) -> Result<BTreeSet<Attempt>, String> {
        let selector = format!(r#"task_finished_attempt{{host="{HOST}",pool="linux64"}}"#);
        let series = self
            .victoria_metrics
            .export(&selector)
            .map_err(|error| error.to_string())?;
        let label =
            |labels: &Value, name: &str| labels[name].as_str().unwrap_or_default().to_owned();
        Ok(series
            .iter()
            .flat_map(|series| {
                series
                    .times
                    .iter()
                    .zip(&series.values)
                    .map(|(time, value)| Attempt {
                        time: *time,
                        task: label(&series.labels, "task"),
                        // Every value is a float there; this one was a small whole number.
                        attempt: format!("{value}").parse().unwrap_or_default(),
                        outcome: label(&series.labels, "outcome"),
                    })
            })
            .collect())
    }

    fn in_rsyslog(&self, input: &str) -> BTreeSet<Attempt> {
        let lines = self.rsyslog.lines();
        lines
            .iter()
            .filter(|line| line.starts_with(input))
            .filter_map(|line| attempt_of_line(line))
            .collect()
    }
}

/// The end of an attempt, as far as every sink tells it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Attempt {
    /// In the unit of the sink.
    time: i64,
    task: String,
    attempt: u64,
    outcome: String,
}

/// The ends of attempts, with times in units of `unit` nanoseconds.
fn attempts(records: &[Record], unit: i128) -> Vec<Attempt> {
    let attempt = |record: &Record| match &record.event {
        Event::TaskFinished(finished) => Some(Attempt {
            time: i64::try_from(record.time.as_nanosecond() / unit).expect("before the year 2262"),
            task: finished.task.clone(),
            attempt: finished.attempt.into(),
            outcome: finished.outcome.to_string(),
        }),
        _ => None,
    };
    records.iter().filter_map(attempt).collect()
}

/// The attempt in `imtcp TIME HOST runner RETRY|TASK_FINISHED [DATA] RETRY|TASK_FINISHED key=value …`.
fn attempt_of_line(line: &str) -> Option<Attempt> {
    let time: jiff::Timestamp = line.split(' ').nth(1)?.parse().ok()?;
    let (_, text) = line.split_once("] ")?;
    let text = text.trim_start();
    let retry = text.starts_with("RETRY ");
    if !retry && !text.starts_with("TASK_FINISHED ") {
        return None;
    }
    let value = |key: &str| {
        text.split(' ')
            .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
    };
    Some(Attempt {
        time: time.as_microsecond(),
        task: value("task")?.to_owned(),
        attempt: value("attempt")?.parse().ok()?,
        outcome: if retry { "retry" } else { value("outcome")? }.to_owned(),
    })
}

fn same(found: &BTreeSet<Attempt>, expected: &BTreeSet<Attempt>) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let lost: Vec<_> = expected.difference(found).collect();
    let invented: Vec<_> = found.difference(expected).collect();
    Err(format!("lost {lost:#?}, invented {invented:#?}"))
}

/// Every event of one kind, in order.
fn events<'r, E>(records: &'r [Record], kind: impl Fn(&'r Event) -> Option<E>) -> Vec<E> {
    records
        .iter()
        .filter_map(|record| kind(&record.event))
        .collect()
}

fn assert_jobs_are_those_of_the_master(records: &[Record], finished: &[Build]) {
    let told = events(records, |event| match event {
        Event::JobFinished(job) => Some((job.job.as_str(), job.result.as_str(), job.task.as_str())),
        _ => None,
    });
    let built: Vec<_> = finished
        .iter()
        .map(|build| {
            let result = if build.results == 0 {
                "success"
            } else {
                "failure"
            };
            (build.job.as_str(), result, "50-buildbot-worker")
        })
        .collect();
    assert_eq!(told, built);
}

fn assert_each_run_keeps_the_order(records: &[Record], runs: usize) {
    let finished = events(records, |event| match event {
        Event::TaskFinished(finished) => Some((
            finished.run_id.as_str(),
            finished.task.as_str(),
            finished.outcome,
        )),
        _ => None,
    });
    let mut by_run: Vec<(&str, Vec<(&str, Outcome)>)> = Vec::new();
    for (run, task, outcome) in finished {
        match by_run.last_mut() {
            Some((last, tasks)) if *last == run => tasks.push((task, outcome)),
            _ => by_run.push((run, vec![(task, outcome)])),
        }
    }
    assert_eq!(by_run.len(), runs, "one job a run");
    let halting = [JOBS[0].len() - 1, JOBS[0].len() + JOBS[1].len() - 1];
    for (index, (_, tasks)) in by_run.iter().enumerate() {
        let mut expected = RUN.to_vec();
        if halting.contains(&index) {
            expected[RUN.len() - 1].1 = Outcome::Halt;
            expected.push(("halt", Outcome::Ok));
        }
        assert_eq!(*tasks, expected, "run {index}");
    }
}

/// What a job left behind is ended once: descendants of the worker by `runner`, before the task
/// counts as finished; everything else by the sweep.
fn assert_what_jobs_left_is_ended(records: &[Record], all: &[&str]) {
    let left_to_runner = events(records, |event| match event {
        Event::TaskFinished(task) if task.task == "50-buildbot-worker" => Some(task.leftovers),
        _ => None,
    });
    let sweeps = events(records, |event| match event {
        Event::SweepFinished(sweep) => Some(sweep),
        _ => None,
    });
    assert!(
        sweeps
            .iter()
            .all(|sweep| sweep.verdict == "clean" && sweep.survived == 0),
        "{sweeps:#?}"
    );
    let mut swept = Vec::new();
    let mut after_job = false;
    for record in records {
        match &record.event {
            Event::JobFinished(_) => after_job = true,
            Event::SweepFinished(sweep) if after_job => {
                swept.push(sweep.leftovers);
                after_job = false;
            }
            _ => {}
        }
    }
    let found: Vec<_> = all
        .iter()
        .zip(left_to_runner)
        .zip(swept)
        .map(|((job, runner), sweep)| (*job, runner, sweep))
        .collect();
    let expected: Vec<_> = all
        .iter()
        .map(|job| match *job {
            "leaky" => (*job, 1, 0),
            "delegating" => (*job, 0, 1),
            _ => (*job, 0, 0),
        })
        .collect();
    assert_eq!(
        found, expected,
        "job, processes ended by runner, processes ended by the sweep"
    );
}

fn assert_reboots_are_for_the_failure_and_the_listed_job_only(records: &[Record]) {
    let decided = events(records, |event| match event {
        Event::RebootDecided(decided) => Some((
            decided.job.as_deref().unwrap_or_default(),
            decided.decision.as_str(),
            decided.reason.as_deref(),
            decided.pattern.as_deref(),
        )),
        _ => None,
    });
    let expected: Vec<_> = JOBS
        .concat()
        .into_iter()
        .map(|job| match job {
            "failing" => (job, "reboot", Some("job_failed"), None),
            LISTED_JOB => (job, "reboot", Some("job_listed"), Some(LISTED_PATTERN)),
            _ => (job, "go_on", None, None),
        })
        .collect();
    assert_eq!(decided, expected);
}

fn assert_three_boots(records: &[Record]) {
    let boots = events(records, |event| match event {
        Event::HostBooted(booted) => Some(booted),
        _ => None,
    });
    let reasons: Vec<_> = boots
        .iter()
        .map(|boot| boot.halt_reason.as_deref())
        .collect();
    assert_eq!(reasons, [None, Some("job_failed"), Some("job_listed")]);
    let gaps: Vec<_> = boots.iter().map(|boot| boot.gap_ms.is_some()).collect();
    assert_eq!(gaps, [false, true, true]);
    for pair in boots.windows(2) {
        assert_eq!(pair[1].previous_boot_id.as_ref(), Some(&pair[0].boot_id));
        assert_ne!(pair[1].boot_id, pair[0].boot_id);
    }
}
