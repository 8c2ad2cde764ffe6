//! InfluxDB 1.6.7, written by its v1 path and asked in InfluxQL.

use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::{READY_LIMIT, client, get};
use crate::process::Process;
use crate::programs;
use crate::unique::Port;

/// The one database in it.
const DATABASE: &str = "farm";

/// A running (or stopped) `influxd` with an empty database.
#[derive(Debug)]
pub struct InfluxDb {
    process: Option<Process>,
    http: Port,
    /// For its back-up service, which cannot be switched off.
    _rpc: Port,
    directory: TempDir,
}

impl InfluxDb {
    /// Starts it and makes the database.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not become ready.
    #[must_use]
    pub fn start() -> Self {
        let directory = TempDir::with_prefix("farm-influxdb-").expect("a temporary directory");
        let (http, rpc) = (Port::reserve(), Port::reserve());
        let configuration = configuration(directory.path(), http.number(), rpc.number());
        fs_err::write(directory.path().join("influxd.conf"), configuration)
            .expect("a temporary directory can be written");
        let mut database = Self {
            process: None,
            http,
            _rpc: rpc,
            directory,
        };
        database.start_again();
        database.query_as_post(&format!("CREATE DATABASE {DATABASE}"));
        database
    }

    /// Address to write to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http.number())
    }

    /// Name of its database.
    #[must_use]
    pub const fn database(&self) -> &'static str {
        DATABASE
    }

    /// Ends it; the data stays.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop();
        }
    }

    /// Starts it with the port and data it had.
    ///
    /// # Panics
    ///
    /// If it does not become ready.
    pub fn start_again(&mut self) {
        let directory = self.directory.path();
        let mut process = Process::start(
            &programs::installed("influxd"),
            ["-config", "influxd.conf"],
            directory,
            &directory.join("influxd.log"),
        );
        process.ready(READY_LIMIT, || get(&format!("{}/ping", self.url()), &[]));
        self.process = Some(process);
    }

    /// The rows of the one series an InfluxQL query gives. The first column is the time, in
    /// nanoseconds since 1970.
    ///
    /// # Errors
    ///
    /// If the database is down.
    ///
    /// # Panics
    ///
    /// If the query is wrong.
    pub fn rows(&self, query: &str) -> reqwest::Result<Vec<Vec<Value>>> {
        let url = format!("{}/query", self.url());
        let answer: Value =
            get(&url, &[("db", DATABASE), ("q", query), ("epoch", "ns")])?.json()?;
        let result = &answer["results"][0];
        assert!(result["error"].is_null(), "`{query}`: {result}");
        let rows = result["series"][0]["values"].as_array();
        Ok(rows
            .into_iter()
            .flatten()
            .filter_map(|row| row.as_array().cloned())
            .collect())
    }

    /// The number an InfluxQL query such as `SELECT count(…)` gives; no series counts as zero.
    ///
    /// # Errors
    ///
    /// If the database is down.
    pub fn count(&self, query: &str) -> reqwest::Result<u64> {
        let rows = self.rows(query)?;
        Ok(rows
            .first()
            .and_then(|row| row.get(1))
            .and_then(Value::as_u64)
            .unwrap_or(0))
    }

    fn query_as_post(&self, query: &str) {
        let answer = client()
            .post(format!("{}/query", self.url()))
            .form(&[("q", query)])
            .timeout(Duration::from_secs(10))
            .send()
            .and_then(reqwest::blocking::Response::error_for_status);
        answer.unwrap_or_else(|error| panic!("`{query}`: {error}"));
    }
}

fn configuration(directory: &std::path::Path, http: u16, rpc: u16) -> String {
    let directory = directory.display();
    format!(
        r#"reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
dir = "{directory}/meta"
[data]
dir = "{directory}/data"
wal-dir = "{directory}/wal"
query-log-enabled = false
[monitor]
store-enabled = false
[http]
bind-address = "127.0.0.1:{http}"
log-enabled = false
"#
    )
}
