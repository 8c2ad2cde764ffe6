//! VictoriaMetrics, written by the v2 path of InfluxDB and asked in MetricsQL.

use serde_json::Value;
use tempfile::TempDir;

use super::{READY_LIMIT, get};
use crate::process::Process;
use crate::programs;
use crate::unique::Port;

/// A running (or stopped) `victoria-metrics`.
#[derive(Debug)]
pub struct VictoriaMetrics {
    process: Option<Process>,
    http: Port,
    directory: TempDir,
}

/// One series of an export: its labels, the metric's name as `__name__` among them, and the time of
/// each sample in milliseconds since 1970.
#[derive(Debug)]
pub struct Series {
    /// Labels.
    pub labels: Value,
    /// Times of the samples.
    pub times: Vec<i64>,
    /// Values of the samples.
    pub values: Vec<f64>,
}

impl VictoriaMetrics {
    /// Starts it, empty.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not become ready.
    #[must_use]
    pub fn start() -> Self {
        let mut database = Self {
            process: None,
            http: Port::reserve(),
            directory: TempDir::with_prefix("farm-victoria-").expect("a temporary directory"),
        };
        database.start_again();
        database
    }

    /// Address to write to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http.number())
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
            &programs::installed("victoria-metrics"),
            [
                "-storageDataPath=data".to_owned(),
                format!("-httpListenAddr=127.0.0.1:{}", self.http.number()),
                // What was written is found at once, not after 30 s.
                "-search.latencyOffset=0s".to_owned(),
                // Its share of this machine's memory would be most of it.
                "-memory.allowedBytes=256MB".to_owned(),
            ],
            directory,
            &directory.join("victoria-metrics.log"),
        );
        process.ready(READY_LIMIT, || get(&format!("{}/health", self.url()), &[]));
        self.process = Some(process);
    }

    /// Every sample of the series that match a selector such as `task_finished_attempt{host="a"}`.
    ///
    /// # Errors
    ///
    /// If the database is down.
    ///
    /// # Panics
    ///
    /// If the answer is not what the manual of the export says.
    pub fn export(&self, selector: &str) -> reqwest::Result<Vec<Series>> {
        self.make_searchable()?;
        let url = format!("{}/api/v1/export", self.url());
        let text = get(&url, &[("match[]", selector)])?.text()?;
        Ok(text.lines().map(series).collect())
    }

    /// The number a MetricsQL query gives now; no series counts as zero.
    ///
    /// # Errors
    ///
    /// If the database is down.
    ///
    /// # Panics
    ///
    /// If the query gives more than one series.
    pub fn number(&self, query: &str) -> reqwest::Result<f64> {
        self.make_searchable()?;
        let url = format!("{}/api/v1/query", self.url());
        let answer: Value = get(&url, &[("query", query)])?.json()?;
        let series = answer["data"]["result"].as_array();
        let series = series.map_or(&[][..], Vec::as_slice);
        assert!(series.len() <= 1, "`{query}` gives more than one series");
        Ok(series
            .first()
            .and_then(|series| series["value"][1].as_str())
            .and_then(|number| number.parse().ok())
            .unwrap_or(0.0))
    }

    /// Makes what was written so far visible to queries; by itself it takes up to ten seconds.
    fn make_searchable(&self) -> reqwest::Result<()> {
        get(&format!("{}/internal/force_flush", self.url()), &[]).map(drop)
    }
}

fn series(line: &str) -> Series {
    let line: Value = serde_json::from_str(line).expect("the export is JSON lines");
    let numbers = |key: &str| line[key].as_array().cloned().unwrap_or_default();
    Series {
        labels: line["metric"].clone(),
        times: numbers("timestamps")
            .iter()
            .filter_map(Value::as_i64)
            .collect(),
        values: numbers("values").iter().filter_map(Value::as_f64).collect(),
    }
}
