//! What a task is: its names, its place by number, and the settings that apply to it.

use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::config::{CommandLine, Config, RunnerSettings, SignalName, TaskSettings, When};

/// File name of a task, with what its parts mean: `10-update_repo.py` is number 10, short name `update_repo`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TaskName {
    file: OsString,
    /// Length of the number at the start, and where the short name starts and ends; all in bytes.
    digits: usize,
    short: (usize, usize),
}

impl TaskName {
    /// The name of the task in the file called `file`.
    #[must_use]
    pub fn parse(file: &OsStr) -> Self {
        let bytes = file.as_encoded_bytes();
        let digits = bytes
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        let start = match bytes.get(digits) {
            Some(b'-') if digits > 0 && digits + 1 < bytes.len() => digits + 1,
            _ => 0,
        };
        let end = bytes
            .iter()
            .rposition(|byte| *byte == b'.')
            .filter(|dot| *dot > start)
            .unwrap_or(bytes.len());
        let numbered = start > 0 || digits == bytes.len();
        Self {
            file: file.to_owned(),
            digits: if numbered { digits } else { 0 },
            short: (start, end),
        }
    }

    /// The file name.
    #[must_use]
    pub fn file(&self) -> &OsStr {
        &self.file
    }

    /// The file name as text; what is not UTF-8 is replaced by `�`.
    #[must_use]
    pub fn full(&self) -> String {
        self.file.to_string_lossy().into_owned()
    }

    /// The file name without its number and its extension.
    #[must_use]
    pub fn short(&self) -> String {
        let (start, end) = self.short;
        String::from_utf8_lossy(&self.file.as_encoded_bytes()[start..end]).into_owned()
    }

    /// Whether `name` is the full or the short name of this task.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.full() == name || self.short() == name
    }

    /// The number without leading zeros; tasks without a number come last.
    fn number(&self) -> Option<&[u8]> {
        let digits = &self.file.as_encoded_bytes()[..self.digits];
        let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
        (!digits.is_empty()).then_some(&digits[zeros..])
    }
}

/// By number (2 before 10, none last), then by the bytes of the name.
impl Ord for TaskName {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_number = match (self.number(), other.number()) {
            // Numbers of any length: the longer one is larger, equally long ones compare as text.
            (Some(a), Some(b)) => a.len().cmp(&b.len()).then_with(|| a.cmp(b)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        };
        by_number.then_with(|| self.file.cmp(&other.file))
    }
}

impl PartialOrd for TaskName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full())
    }
}

/// A task with everything that is needed to run it.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its name.
    pub name: TaskName,
    /// The executable.
    pub path: PathBuf,
    /// Longest an attempt may run; `None` is no limit.
    pub timeout: Option<Duration>,
    /// From SIGTERM to SIGKILL.
    pub grace_period: Duration,
    /// Attempts in one run.
    pub max_attempts: NonZeroU32,
    /// Waits between attempts.
    pub backoff: Backoff,
    /// User to run as, if not the running one.
    pub user: Option<String>,
    /// Environment over the common one.
    pub env: Vec<(String, String)>,
    /// What runs the file, if it is not executed itself.
    pub interpreter: Option<CommandLine>,
    /// Names of tasks that must come before.
    pub depends_on: Vec<String>,
    /// Whether its exit code 2 halts.
    pub may_halt: bool,
    /// Whether the run goes on when all attempts failed.
    pub continue_on_failure: bool,
    /// In which runs it takes part.
    pub when: When,
    /// Resource it shares with other hosts.
    pub shared_resource: Option<String>,
    /// Signal that tells it to take no further job.
    pub drain_signal: Option<SignalName>,
}

/// Attempts that outlast a ten-minute outage of what all hosts share: with the default waits no host
/// of 2,000 needs more than 16 (`tests/herd.rs`). A host that gives up would halt, and come back to
/// the same outage.
const SHARED_ATTEMPTS: NonZeroU32 = NonZeroU32::new(20).expect("20 is not zero");

fn default_attempts(runner: &RunnerSettings, own: &TaskSettings) -> NonZeroU32 {
    match own.shared_resource {
        Some(_) => runner.max_attempts.max(SHARED_ATTEMPTS),
        None => runner.max_attempts,
    }
}

impl Task {
    /// The task in the file `path`, with its own settings over those of `[runner]`.
    #[must_use]
    pub fn new(name: TaskName, path: PathBuf, config: &Config, own: &TaskSettings) -> Self {
        let runner = &config.runner;
        let timeout = own.timeout.unwrap_or(runner.timeout);
        let env = config.env.iter().chain(&own.env);
        Self {
            name,
            path,
            timeout: (!timeout.is_zero()).then_some(timeout),
            grace_period: own.grace_period.unwrap_or(runner.grace_period),
            max_attempts: own
                .max_attempts
                .unwrap_or_else(|| default_attempts(runner, own)),
            backoff: Backoff::new(own.backoff, runner.backoff),
            user: own.user.clone(),
            env: env
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            interpreter: own.interpreter.clone(),
            depends_on: own.depends_on.clone(),
            may_halt: own.may_halt,
            continue_on_failure: own.continue_on_failure,
            when: own.when,
            shared_resource: own.shared_resource.clone(),
            drain_signal: own.drain_signal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(file: &str) -> TaskName {
        TaskName::parse(OsStr::new(file))
    }

    #[test]
    fn the_short_name_has_no_number_and_no_extension() {
        for (file, short) in [
            ("3-buildbot.py", "buildbot"),
            ("buildbot.py", "buildbot"),
            ("buildbot", "buildbot"),
            ("0-check-ami.py", "check-ami"),
            ("10-update_repo", "update_repo"),
            ("a.b.c", "a.b"),
            ("7", "7"),
            ("7-", "7-"),
            ("7.py", "7"),
            ("-x", "-x"),
            ("2fa", "2fa"),
            ("1-.sh", ".sh"),
        ] {
            assert_eq!(name(file).short(), short, "{file}");
        }
    }

    #[test]
    fn tasks_are_ordered_by_number_then_by_name() {
        let mut names = [
            "z",
            "100-a",
            "99-b",
            "2-x",
            "10-x",
            "a",
            "0",
            "9",
            "02-a",
            "2fa",
            "99999999999999999999999999-z",
        ]
        .map(name);
        names.sort();
        let sorted: Vec<_> = names.iter().map(TaskName::full).collect();
        assert_eq!(
            sorted,
            [
                "0",
                "02-a",
                "2-x",
                "9",
                "10-x",
                "99-b",
                "100-a",
                "99999999999999999999999999-z",
                "2fa",
                "a",
                "z"
            ]
        );
    }

    #[test]
    fn a_task_of_a_shared_resource_has_attempts_for_an_outage() {
        let config = Config::default();
        let attempts = |max_attempts, shared_resource: Option<&str>| {
            let own = TaskSettings {
                max_attempts,
                shared_resource: shared_resource.map(Into::into),
                ..TaskSettings::default()
            };
            let task = Task::new(name("1-a"), "/1-a".into(), &config, &own);
            task.max_attempts.get()
        };
        assert_eq!(attempts(None, None), 5);
        assert_eq!(attempts(None, Some("hg")), 20);
        assert_eq!(attempts(NonZeroU32::new(2), Some("hg")), 2);
    }

    #[test]
    fn a_name_that_is_not_utf8_is_still_a_name() {
        use std::os::unix::ffi::OsStrExt as _;
        let name = TaskName::parse(OsStr::from_bytes(b"5-\xff\n\"'.sh"));
        assert_eq!(name.short(), "\u{fffd}\n\"'");
    }
}
