//! A program that a test started, and that ends with the test.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::{programs, wait};

/// How long a service may take to end after SIGTERM before the test calls it a failure. The slowest
/// (VictoriaMetrics, which writes its caches) takes one second on an idle machine.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Lines of a log that are shown when a test fails.
const SHOWN_LINES: usize = 25;

/// A running program in a process group of its own, with a log. Dropping it kills the group, and
/// the kernel does so if the test itself is killed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program. Its output is appended to `log`.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[must_use]
    pub fn start<A: AsRef<OsStr>>(
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
        directory: &Path,
        log: &Path,
    ) -> Self {
        let file = fs_err::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("the log can be written")
            .into_parts()
            .0;
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let child = Command::new(programs::installed("setpriv"))
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a descriptor is left"))
            .stderr(file)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start `{}`: {error}", program.display()));
        Self {
            name,
            child,
            log: log.to_path_buf(),
        }
    }

    /// Its process id.
    ///
    /// # Panics
    ///
    /// Never: Linux has no larger process ids.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits"))
    }

    /// How it ended, if it did.
    ///
    /// # Panics
    ///
    /// If the kernel denies that it is our child.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }

    /// Waits for it to become ready, and fails at once if it ends instead.
    ///
    /// # Panics
    ///
    /// If it ends, or is not ready in time.
    pub fn ready<T, E: std::fmt::Display>(
        &mut self,
        limit: Duration,
        mut condition: impl FnMut() -> Result<T, E>,
    ) -> T {
        let what = format!("`{}` to be ready", self.name);
        wait::until(&what, limit, || {
            if let Some(status) = self.try_wait() {
                panic!("`{}` ended before it was ready: {status}", self.name);
            }
            condition()
        })
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    ///
    /// If it is still there after `limit`.
    pub fn ended(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("`{}` to end", self.name);
        wait::until(&what, limit, || self.try_wait().ok_or("it still runs"))
    }

    /// Waits until it has ended by itself, without a limit and without the delay of looking now and
    /// then: for measurements.
    ///
    /// # Panics
    ///
    /// If the kernel denies that it is our child.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("it is our child")
    }

    /// Ends it in its own way, by SIGTERM, and waits until it is gone.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub fn stop(&mut self) -> ExitStatus {
        nix::sys::signal::kill(self.pid(), Signal::SIGTERM).expect("it is our child");
        self.ended(STOP_LIMIT)
    }

    /// The last lines it wrote.
    #[must_use]
    pub fn last_lines(&self) -> String {
        last_lines(&self.log)
    }
}

/// The last lines of a log, or nothing if there is none.
#[must_use]
pub fn last_lines(log: &Path) -> String {
    let text = fs_err::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show(&self.name, &self.last_lines());
        }
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // Not reaped yet, so the group is still its own.
            killpg(self.pid(), Signal::SIGKILL).ok();
            self.child.wait().ok();
        }
    }
}

/// Shows a log beside the message of a test that failed.
#[expect(
    clippy::print_stderr,
    reason = "the test harness captures it with the test"
)]
pub fn show(name: &str, text: &str) {
    eprintln!("--- last lines of {name}\n{text}\n---");
}
