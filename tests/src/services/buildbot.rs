//! A Buildbot master with SQLite, its REST interface, and the accounts of its workers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{READY_LIMIT, client, get};
use crate::process::Process;
use crate::programs;
use crate::unique::Port;

/// What differs between masters of one worker.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the one worker.
    pub worker: String,
    /// Its password.
    pub password: String,
    /// A builder beside `good`, `leaky`, `delegating` and `failing`: the job on the host's reboot list.
    pub listed_job: String,
    /// A pipe on the host: a daemon runs each line that `delegating` writes to it as a command.
    pub host_daemon: PathBuf,
}

/// What differs between masters of many workers.
#[derive(Clone, Debug)]
pub struct Pools {
    /// For each builder the names of its workers. Its builds succeed, a second after they began.
    pub workers: BTreeMap<String, Vec<String>>,
    /// A file on the hosts. Builds do not end before it is there.
    pub gate: PathBuf,
    /// The password of all of them.
    pub password: String,
}

/// A running master.
#[derive(Debug)]
pub struct Buildbot {
    process: Process,
    pb: Port,
    www: Port,
    held: Port,
    /// Builder ids by name, as its REST interface wants them.
    builders: Vec<(String, u64)>,
    directory: TempDir,
}

/// A build the master has finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// Name of its builder.
    pub job: String,
    /// Buildbot's code: 0 is success, 2 is failure.
    pub results: u64,
}

impl Buildbot {
    /// Makes a master of one worker and starts it.
    ///
    /// # Panics
    ///
    /// If Buildbot is not installed or the master does not become ready.
    #[must_use]
    pub fn start(settings: &Settings) -> Self {
        Self::start_with(json!({
            "worker": settings.worker,
            "password": settings.password,
            "listed_job": settings.listed_job,
            "host_daemon": settings.host_daemon,
            "pools": {},
        }))
    }

    /// Makes a master of many workers and starts it.
    ///
    /// # Panics
    ///
    /// If Buildbot is not installed or the master does not become ready.
    #[must_use]
    pub fn start_for(pools: &Pools) -> Self {
        Self::start_with(json!({
            "pools": pools.workers,
            "password": pools.password,
            "gate": pools.gate,
            "host_daemon": "",
        }))
    }

    fn start_with(mut settings: Value) -> Self {
        let directory = TempDir::with_prefix("farm-buildbot-").expect("a temporary directory");
        let (pb, www, held) = (Port::reserve(), Port::reserve(), Port::reserve());
        let log = directory.path().join("twistd.log");
        settings["pb_port"] = pb.number().into();
        settings["www_port"] = www.number().into();
        settings["held_port"] = held.number().into();
        write_master(directory.path(), &settings);
        let mut process = Process::start(
            &programs::python_environment().join("bin/buildbot"),
            ["start", "--nodaemon", "."],
            directory.path(),
            &log,
        );
        let builders = process.ready(READY_LIMIT, || builders(www.number()));
        Self {
            process,
            pb,
            www,
            held,
            builders,
            directory,
        }
    }

    /// Port for workers.
    #[must_use]
    pub fn worker_port(&self) -> u16 {
        self.pb.number()
    }

    /// Address of its web server.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.www.number())
    }

    /// Its database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.directory.path().join("state.sqlite")
    }

    /// The port that jobs of `leaky` and `delegating` leave a process on, and that every job begins with
    /// taking.
    #[must_use]
    pub fn held_port(&self) -> u16 {
        self.held.number()
    }

    /// Asks for one build of each job. The master hands them out in this order.
    ///
    /// # Panics
    ///
    /// If the master refuses.
    pub fn submit(&self, jobs: &[&str]) {
        for (position, job) in jobs.iter().enumerate() {
            let priority = jobs.len() - position;
            self.force(job, priority);
        }
    }

    /// Every finished build, the oldest first.
    ///
    /// # Errors
    ///
    /// If the master does not answer.
    pub fn finished(&self) -> reqwest::Result<Vec<Build>> {
        let url = format!("{}/builds", api(self.www.number()));
        let answer: Value = get(&url, &[("complete", "true"), ("order", "buildid")])?.json()?;
        let builds = answer["builds"].as_array().cloned().unwrap_or_default();
        Ok(builds.iter().map(|build| self.build(build)).collect())
    }

    /// How many builds wait for a worker.
    ///
    /// # Errors
    ///
    /// If the master does not answer.
    pub fn pending(&self) -> reqwest::Result<usize> {
        let url = format!("{}/buildrequests", api(self.www.number()));
        let answer: Value = get(&url, &[("complete", "false"), ("claimed", "false")])?.json()?;
        Ok(answer["buildrequests"].as_array().map_or(0, Vec::len))
    }

    /// The rows of a collection of its REST interface: `builds`, `buildrequests`, `workers`.
    ///
    /// # Errors
    ///
    /// If the master does not answer.
    pub fn rows(&self, collection: &str) -> reqwest::Result<Vec<Value>> {
        let url = format!("{}/{collection}", api(self.www.number()));
        let answer: Value = get(&url, &[])?.json()?;
        Ok(answer[collection].as_array().cloned().unwrap_or_default())
    }

    /// The last lines of its log.
    #[must_use]
    pub fn last_lines(&self) -> String {
        self.process.last_lines()
    }

    fn force(&self, job: &str, priority: usize) {
        let (_, builder) = self
            .builders
            .iter()
            .find(|(name, _)| name == job)
            .unwrap_or_else(|| panic!("no builder `{job}`"));
        let request = json!({
            "jsonrpc": "2.0",
            "id": 1,
            "method": "force",
            "params": { "builderid": builder, "reason": "story", "priority": priority },
        });
        let url = format!("{}/forceschedulers/force", api(self.www.number()));
        let answer: reqwest::Result<Value> = client()
            .post(url)
            .json(&request)
            .send()
            .and_then(reqwest::blocking::Response::json);
        let answer = answer.unwrap_or_else(|error| panic!("the master took no request: {error}"));
        assert!(answer["error"].is_null(), "the master refused: {answer}");
    }

    fn build(&self, build: &Value) -> Build {
        let id = build["builderid"].as_u64();
        let builder = self.builders.iter().find(|(_, known)| Some(*known) == id);
        Build {
            job: builder.map_or_else(String::new, |(name, _)| name.clone()),
            results: build["results"].as_u64().unwrap_or(u64::MAX),
        }
    }
}

fn api(port: u16) -> String {
    format!("http://127.0.0.1:{port}/api/v2")
}

/// The builders, once the master answers and has made them.
fn builders(port: u16) -> Result<Vec<(String, u64)>, String> {
    let url = format!("{}/builders", api(port));
    let answer: Value = get(&url, &[])
        .and_then(reqwest::blocking::Response::json)
        .map_err(|error| error.to_string())?;
    let builders: Vec<_> = answer["builders"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|row| Some((row["name"].as_str()?.to_owned(), row["builderid"].as_u64()?)))
        .collect();
    if builders.is_empty() {
        return Err("it has no builders yet".to_owned());
    }
    Ok(builders)
}

fn write_master(directory: &Path, settings: &Value) {
    let output = Command::new(programs::python_environment().join("bin/buildbot"))
        .args(["create-master", "--quiet"])
        .arg(directory)
        .output()
        .expect("buildbot is installed");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "create-master: {complaints}");
    fs_err::write(
        directory.join("master.cfg"),
        include_str!("../../buildbot/master.cfg"),
    )
    .expect("a temporary directory can be written");
    fs_err::write(directory.join("settings.json"), settings.to_string())
        .expect("a temporary directory can be written");
}
