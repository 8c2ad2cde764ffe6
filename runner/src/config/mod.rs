//! The configuration: what may be set, what it means, and what it is when nobody set it.
//!
//! [`load()`] reads `runner.toml` and the files of `runner.d/` over it, checks every key, and
//! reports all faults at once with file and line. Tables that are not ours belong to the tasks,
//! which read them by `runner get SECTION.KEY`.

mod contradictions;
mod load;
mod values;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub use farm_config::{Fault, Source};
pub use load::{from_sources, load, load_default};
pub use values::{CommandLine, SignalName};

/// Where the configuration is looked for when nobody says.
pub const DEFAULT_PATH: &str = "/etc/farmhand/runner.toml";

/// The whole configuration of one host.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Table `[runner]`.
    pub runner: RunnerSettings,
    /// Tables `[tasks.NAME]`, by short or full name as written.
    pub tasks: BTreeMap<String, TaskSettings>,
    /// Table `[env]`: environment of every task.
    pub env: BTreeMap<String, String>,
    /// Table `[telemetry]`.
    pub telemetry: farm_telemetry::Config,
    /// Table `[jobs]`: the local job spool.
    pub jobs: crate::spool::JobsConfig,
    /// Table `[reboot]`: when the host must reboot.
    pub reboot: crate::reboot::Policy,
    /// Table `[fleet]`: the provisioner and the cloud's metadata.
    pub fleet: crate::fleet::FleetConfig,
    /// All tables, merged, for `runner get`.
    pub table: toml::Table,
    /// Files it was read from, in the order of reading.
    pub files: Vec<PathBuf>,
}

/// Table `[runner]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunnerSettings {
    /// Directory of the tasks.
    pub tasks_dir: PathBuf,
    /// Directory `runner` keeps its state, history and spool in; made if missing, for its owner only.
    pub state_dir: PathBuf,
    /// Longest an attempt may run before it is ended; `0s` is no limit.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// From SIGTERM to SIGKILL.
    #[serde(with = "humantime_serde")]
    pub grace_period: Duration,
    /// Attempts each task has in one run.
    pub max_attempts: NonZeroU32,
    /// File in `tasks_dir` that halts the host; it is not a task of the order. Empty: the host is never halted.
    pub halt_task: String,
    /// How long the machine may stay up after the halt task ended well.
    #[serde(with = "humantime_serde")]
    pub halt_wait: Duration,
    /// Program, with arguments, run before and after each task with one JSON object as last argument.
    pub task_hook: Option<CommandLine>,
    /// Longest the hook may run.
    #[serde(with = "humantime_serde")]
    pub hook_timeout: Duration,
    /// Waits between the attempts of a task.
    pub backoff: BackoffSettings,
}

impl Default for RunnerSettings {
    fn default() -> Self {
        Self {
            tasks_dir: "/etc/farmhand/tasks.d".into(),
            state_dir: "/var/lib/farmhand".into(),
            timeout: Duration::from_secs(600),
            grace_period: Duration::from_secs(10),
            max_attempts: NonZeroU32::new(5).expect("5 is not zero"),
            halt_task: "halt".into(),
            halt_wait: Duration::from_secs(10),
            task_hook: None,
            hook_timeout: Duration::from_secs(30),
            backoff: BackoffSettings::default(),
        }
    }
}

/// Table `[runner.backoff]`, or `backoff` of one task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackoffSettings {
    /// Upper end of the first wait.
    #[serde(with = "humantime_serde")]
    pub initial: Option<Duration>,
    /// Upper end that no wait exceeds.
    #[serde(with = "humantime_serde")]
    pub max: Option<Duration>,
    /// Makes the waits the same in every process; for tests.
    pub seed: Option<u64>,
}

/// In which runs a task takes part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// In every run.
    #[default]
    Always,
    /// In the first run that ends since the host booted.
    FirstRun,
    /// Not in the order: after it was decided to halt, before the halt task.
    BeforeReboot,
}

/// Table `[tasks.NAME]`. What is not set comes from `[runner]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskSettings {
    /// Longest an attempt may run; `0s` is no limit.
    #[serde(with = "humantime_serde")]
    pub timeout: Option<Duration>,
    /// From SIGTERM to SIGKILL.
    #[serde(with = "humantime_serde")]
    pub grace_period: Option<Duration>,
    /// Attempts in one run; without it at least 20 for a task with a `shared_resource`, so that it
    /// outlasts an outage.
    pub max_attempts: Option<NonZeroU32>,
    /// Waits between attempts.
    pub backoff: BackoffSettings,
    /// User to run as. What such a task reports of sweeps and reboots is not believed.
    pub user: Option<String>,
    /// Environment, over `[env]`.
    pub env: BTreeMap<String, String>,
    /// Program, with arguments, that runs the file; without it the file is executed.
    pub interpreter: Option<CommandLine>,
    /// Tasks that must come before, by short or full name.
    pub depends_on: Vec<String>,
    /// Whether its exit code 2 halts the host. Otherwise 2 is a failure: many programs return it on error.
    pub may_halt: bool,
    /// Whether the run goes on when all attempts failed.
    pub continue_on_failure: bool,
    /// In which runs it takes part.
    pub when: When,
    /// Keys `SECTION.KEY` of this configuration that must exist and not be empty.
    pub requires: Vec<String>,
    /// Resource that many hosts share and this task uses, such as a repository; named where it fails.
    pub shared_resource: Option<String>,
    /// Signal that tells the task to take no further job (sent when `runner` is drained).
    pub drain_signal: Option<SignalName>,
}

impl Config {
    /// The value of `SECTION.KEY`, or of any deeper path.
    #[must_use]
    pub fn value(&self, path: &str) -> Option<&toml::Value> {
        let mut keys = path.split('.');
        let mut value = self.table.get(keys.next()?)?;
        for key in keys {
            value = value.as_table()?.get(key)?;
        }
        Some(value)
    }
}

/// What `runner get` prints for a value: text as it is, lists one item a line, the rest as in TOML.
#[must_use]
pub fn plain_text(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(items) => items.iter().map(plain_text).collect::<Vec<_>>().join("\n"),
        toml::Value::Table(table) => table.to_string(),
        toml::Value::Integer(_)
        | toml::Value::Float(_)
        | toml::Value::Boolean(_)
        | toml::Value::Datetime(_) => value.to_string(),
    }
}

/// Whether a value says nothing: empty text, an empty list or an empty table.
#[must_use]
pub fn is_empty(value: &toml::Value) -> bool {
    match value {
        toml::Value::String(text) => text.trim().is_empty(),
        toml::Value::Array(items) => items.is_empty(),
        toml::Value::Table(table) => table.is_empty(),
        toml::Value::Integer(_)
        | toml::Value::Float(_)
        | toml::Value::Boolean(_)
        | toml::Value::Datetime(_) => false,
    }
}

#[cfg(test)]
mod tests;
