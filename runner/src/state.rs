//! What `runner` remembers between its processes: one small JSON file, replaced atomically.
//!
//! `state.json` has a single writer, the process that holds the lock of the state directory;
//! verbs such as `reboot-decision` and `status` only read it. It is written before a task starts
//! and after it ended, without `fsync`: after a `kill -9` the page cache has it, and after a power
//! failure the boot id has changed and nothing in it refers to a living process any more.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Name of the file in the state directory.
const FILE: &str = "state.json";

/// How the names of files begin that are being written.
pub(crate) const UNFINISHED: &str = ".new-";

/// Version this program writes; it refuses newer ones.
const VERSION: u32 = 1;

/// Everything remembered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Version of this layout.
    pub version: u32,
    /// Boot the counters "since boot" belong to.
    pub boot_id: String,
    /// Runs started on this host, ever. Makes run ids unique.
    pub runs: u64,
    /// Runs finished since the host booted.
    pub runs_since_boot: u64,
    /// Jobs finished on this host, ever.
    pub jobs: u64,
    /// The job of the current run, or of the last one if none is current.
    pub job: Option<Job>,
    /// What the last sweep found: `clean`, `unproven`, `dirty` or `baseline_damaged`.
    pub sweep: Option<String>,
    /// The halt that this boot or the one before ended in.
    pub halt: Option<Halt>,
    /// When `runner` halted the host; only the times of the last hour are kept.
    pub reboots: Vec<Timestamp>,
    /// How many reboots each reboot pattern caused, by the pattern's text.
    pub reboots_by_pattern: BTreeMap<String, u64>,
    /// Records that the telemetry spool dropped because it was full, ever.
    pub spool_dropped: u64,
    /// What `runner` is doing.
    pub activity: Activity,
    /// The attempt that runs now. Still here when the next process starts: that one was killed.
    pub attempt: Option<RunningAttempt>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: VERSION,
            boot_id: String::new(),
            runs: 0,
            runs_since_boot: 0,
            jobs: 0,
            job: None,
            sweep: None,
            halt: None,
            reboots: Vec::new(),
            reboots_by_pattern: BTreeMap::new(),
            spool_dropped: 0,
            activity: Activity::default(),
            attempt: None,
        }
    }
}

/// A job that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Name, as the CI system calls it.
    pub name: String,
    /// Result in the CI system's words.
    pub result: String,
    /// Run that took it.
    pub run_id: String,
}

/// A halt of the host that `runner` caused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// When the halt task started.
    pub at: Timestamp,
    /// Boot that it ended.
    pub boot_id: String,
    /// Why.
    pub reason: String,
}

/// What `runner` is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing: it does not run, or has not begun.
    #[default]
    Stopped,
    /// Between two runs.
    BetweenRuns,
    /// Running a task.
    Task,
    /// Running the hook around a task.
    Hook,
    /// Waiting before the next attempt of a task.
    Backoff,
    /// Halting the host.
    Halt,
}

impl Phase {
    /// The phase as in `state.json` and in heartbeats.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::BetweenRuns => "between_runs",
            Self::Task => "task",
            Self::Hook => "hook",
            Self::Backoff => "backoff",
            Self::Halt => "halt",
        }
    }
}

/// What `runner` is doing, since when, and with which task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Activity {
    /// What.
    pub phase: Phase,
    /// With which task.
    pub task: Option<String>,
    /// Which attempt of it.
    pub attempt: u32,
    /// Since when.
    pub since: Timestamp,
    /// Until when, while it waits.
    pub until: Option<Timestamp>,
}

/// Enough of an attempt to end it from another process, and to be sure that it is the one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningAttempt {
    /// Boot it runs in.
    pub boot_id: String,
    /// Run it belongs to. Every process of it has it as `RUNNER_RUN_ID` in its environment.
    pub run_id: String,
    /// Full name of the task.
    pub task: String,
    /// Which attempt.
    pub attempt: u32,
    /// How many the task has.
    #[serde(default)]
    pub max_attempts: u32,
    /// Its cgroup, if it has one.
    pub cgroup: Option<PathBuf>,
}

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be read or written.
    #[error("cannot keep the state of this host")]
    Io(#[from] std::io::Error),
    /// The file was written by a newer version.
    #[error(
        "`{path}` has version {found}, this runner knows up to {VERSION}: install the newer runner again, or move the file away"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// What was found in the state directory.
#[derive(Debug)]
pub struct Loaded {
    /// The state; the default if there was none.
    pub state: State,
    /// Where a file that could not be understood was moved to, and why.
    pub damaged: Option<(PathBuf, String)>,
}

impl State {
    /// The state in `directory`. A file that is not understood is left alone and counts as none.
    ///
    /// # Errors
    /// If the file exists and cannot be read, or was written by a newer version.
    pub fn load(directory: &Path) -> Result<Loaded, StateError> {
        let path = directory.join(FILE);
        let text = match fs_err::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Loaded {
                    state: Self::default(),
                    damaged: None,
                });
            }
            Err(error) => return Err(error.into()),
        };
        match serde_json::from_str::<Self>(&text) {
            Ok(state) if state.version > VERSION => Err(StateError::Newer {
                path,
                found: state.version,
            }),
            Ok(state) => Ok(Loaded {
                state,
                damaged: None,
            }),
            Err(error) => Ok(Loaded {
                state: Self::default(),
                damaged: Some((path, error.to_string())),
            }),
        }
    }

    /// Writes the state to `directory`, whole or not at all.
    ///
    /// # Errors
    /// If the directory cannot be written; the file is then as it was.
    pub fn save(&self, directory: &Path) -> Result<(), StateError> {
        let mut text = serde_json::to_vec(self).map_err(std::io::Error::other)?;
        text.push(b'\n');
        write_atomically(&directory.join(FILE), &text)?;
        Ok(())
    }

    /// The halts of the hour before `now`.
    #[must_use]
    pub fn reboots_within_an_hour(&self, now: Timestamp) -> Vec<Timestamp> {
        self.reboots
            .iter()
            .copied()
            .filter(|at| {
                let age = now.duration_since(*at).as_secs();
                // A little in the future is a clock that stepped back: it counts, which is the safe
                // side. More than that was written by a clock that was wrong, and would count for ever.
                age.abs() < 3600
            })
            .collect()
    }
}

/// Replaces `path` by a file with `content`, readable by its owner only.
///
/// # Errors
/// If the directory cannot be written; `path` is then as it was.
pub fn write_atomically(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(directory)?;
    file.write_all(content)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_the_default_state() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(
            State::load(directory.path()).unwrap().state,
            State::default()
        );
    }

    #[test]
    fn a_saved_state_is_loaded_again() {
        let directory = tempfile::tempdir().unwrap();
        let state = State {
            runs: 7,
            sweep: Some("clean".into()),
            ..State::default()
        };
        state.save(directory.path()).unwrap();
        assert_eq!(State::load(directory.path()).unwrap().state, state);
    }

    #[test]
    fn a_damaged_file_is_reported_and_counts_as_none() {
        let directory = tempfile::tempdir().unwrap();
        fs_err::write(directory.path().join(FILE), "{\"runs\": 7").unwrap();
        let loaded = State::load(directory.path()).unwrap();
        assert_eq!(loaded.state, State::default());
        assert!(loaded.damaged.is_some());
    }

    #[test]
    fn a_newer_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs_err::write(directory.path().join(FILE), "{\"version\": 2}").unwrap();
        assert!(matches!(
            State::load(directory.path()),
            Err(StateError::Newer { found: 2, .. })
        ));
    }

    #[test]
    fn a_reboot_counts_for_one_hour() {
        let now: Timestamp = "2026-11-20T03:00:00Z".parse().unwrap();
        let state = State {
            reboots: vec![
                "2026-11-20T02:00:00Z".parse().unwrap(),
                "2026-11-20T02:00:01Z".parse().unwrap(),
                "2026-11-20T03:59:59Z".parse().unwrap(),
                "2026-11-20T04:00:00Z".parse().unwrap(),
            ],
            ..State::default()
        };
        assert_eq!(state.reboots_within_an_hour(now).len(), 2);
    }
}
