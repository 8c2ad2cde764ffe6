//! What `runner` remembers between its processes: one small JSON file, replaced atomically.
//!
//! `state.json` has a single writer, the process that holds the lock of the state directory;
//! verbs such as `reboot-decision` and `status` only read it. It is written before a task starts
//! and after it ended, without `fsync`: after a `kill -9` the page cache has it, and after a power
//! failure the boot id has changed and nothing in it refers to a living process any more.
//!
//! It changes places with the state before it, which the next state is written over. To put a new
//! file in the place of an old one costs more than a small task: ext4 sends the new one to the disk
//! at once. Written over, a file of unchanged size goes there when the kernel finds the time, in one
//! block, so that a power failure leaves this state or an earlier one.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use jiff::Timestamp;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Name of the file in the state directory.
const FILE: &str = "state.json";
/// The state before it, or one that a killed process did not finish.
const PREVIOUS: &str = ".state.json.previous";
/// The size of the file is a multiple of this, filled up with spaces: more than most states need.
const SIZE: usize = 1024;

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
    /// The cgroup of the process that works here. Still here when the next one starts: it was killed.
    pub cgroup: Option<PathBuf>,
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
            cgroup: None,
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
    /// Waiting because no job may be taken.
    Held,
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
            Self::Held => "held",
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
        let loaded = Self::load_once(directory)?;
        if loaded.damaged.is_none() {
            return Ok(loaded);
        }
        // Whoever opens the file and is then held up while two states are written reads a mixture.
        Self::load_once(directory)
    }

    fn load_once(directory: &Path) -> Result<Loaded, StateError> {
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
        // With the line break at its end.
        text.resize((text.len() + 1).next_multiple_of(SIZE) - 1, b' ');
        text.push(b'\n');
        swap_in(&directory.join(FILE), &directory.join(PREVIOUS), &text)?;
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

/// Gives `path` the content, and `previous` what was there.
///
/// # Errors
/// If the directory cannot be written; `path` is then as it was.
fn swap_in(path: &Path, previous: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = fs_err::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(previous)?;
    file.write_all(content)?;
    file.set_len(content.len() as u64)?;
    match rustix::fs::renameat_with(CWD, previous, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        // The first time there is nothing to change places with; some file systems never do.
        Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => fs_err::rename(previous, path),
        Err(errno) => Err(errno.into()),
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
    fn states_of_any_size_follow_each_other_whole() {
        let directory = tempfile::tempdir().unwrap();
        for length in [0, 5000, 10, SIZE, 700] {
            let state = State {
                boot_id: "b".repeat(length),
                ..State::default()
            };
            state.save(directory.path()).unwrap();
            assert_eq!(State::load(directory.path()).unwrap().state, state);
            let file = fs_err::read(directory.path().join(FILE)).unwrap();
            assert!(file.len().is_multiple_of(SIZE) && file.ends_with(b"\n"));
        }
    }

    #[test]
    fn a_state_that_was_not_finished_is_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let state = |runs| State {
            runs,
            ..State::default()
        };
        state(1).save(directory.path()).unwrap();
        // As a process that was killed while it wrote leaves it.
        fs_err::write(directory.path().join(PREVIOUS), "{\"runs\": 2, \"ver").unwrap();
        assert_eq!(State::load(directory.path()).unwrap().state, state(1));
        state(3).save(directory.path()).unwrap();
        assert_eq!(State::load(directory.path()).unwrap().state, state(3));
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
