//! A host of one test: tasks, configuration and state in a directory of its own, and the runner on it.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use farm_events::{Event, Record, TaskFinished};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::Instant;

/// The program under test.
pub(crate) const RUNNER: &str = env!("CARGO_BIN_EXE_runner");

/// How long anything may take that should happen at once. Far longer than it takes on an idle
/// machine, because the machine may be busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(25);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(3);

/// A host with a tasks directory and a configuration; its state directory is made by `runner`.
pub(crate) struct Host {
    directory: TempDir,
}

/// What a finished `runner` left.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// Its exit code; a signal is a failure of the test.
    #[track_caller]
    pub(crate) fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| panic!("ended by {:?}\n{}", self.status.signal(), self.err))
    }

    #[track_caller]
    pub(crate) fn assert_code(&self, expected: i32) -> &Self {
        assert_eq!(self.code(), expected, "{}\n{}", self.out, self.err);
        self
    }

    /// How many lines of standard error contain `text`.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.err.lines().filter(|line| line.contains(text)).count()
    }
}

impl Host {
    /// A host whose tasks have three attempts with hardly a wait between them.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let host = Self { directory };
        // Tasks with a user of their own must be able to reach their files.
        host.chmod("", 0o755);
        fs_err::create_dir(host.path("tasks.d")).unwrap();
        fs_err::create_dir(host.path("runner.d")).unwrap();
        fs_err::create_dir(host.path("blacklists")).unwrap();
        for list in ["hosts.toml", "jobs.toml"] {
            host.write(Path::new("blacklists").join(list), "");
        }
        let place = host.path("").display().to_string();
        let place = place.trim_end_matches('/');
        host.write(
            "runner.toml",
            format!(
                "[runner]\ntasks_dir = \"{place}/tasks.d\"\nstate_dir = \"{place}/state\"\n\
                 max_attempts = 3\ntimeout = \"60s\"\ngrace_period = \"20s\"\nhalt_wait = \"50ms\"\n\
                 [runner.backoff]\ninitial = \"1ms\"\nmax = \"2ms\"\n\
                 [reboot]\nblacklists = \"{place}/blacklists\"\n"
            ),
        );
        host
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        fs_err::write(self.path(name), content).unwrap();
    }

    /// The content of a file, or nothing if it is not there yet.
    pub(crate) fn read(&self, name: impl AsRef<Path>) -> String {
        match fs_err::read(self.path(name)) {
            Ok(content) => String::from_utf8_lossy(&content).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) fn lines(&self, name: impl AsRef<Path>) -> Vec<String> {
        self.read(name).lines().map(Into::into).collect()
    }

    pub(crate) fn exists(&self, name: impl AsRef<Path>) -> bool {
        self.path(name).exists()
    }

    pub(crate) fn chmod(&self, name: impl AsRef<Path>, mode: u32) {
        let permissions = std::fs::Permissions::from_mode(mode);
        fs_err::set_permissions(self.path(name), permissions).unwrap();
    }

    /// Settings over those of [`Host::new`].
    pub(crate) fn set(&self, toml: &str) {
        self.write("runner.d/50-test.toml", toml);
    }

    /// A task in shell that notes each of its attempts in the file `trace`. `$HERE` is the
    /// directory of the host.
    pub(crate) fn task(&self, name: impl AsRef<OsStr>, script: &str) {
        let script = format!("echo \"$RUNNER_TASK\" >>\"$HERE/trace\"\n{script}");
        self.script(Path::new("tasks.d").join(name.as_ref()), &script);
    }

    /// An executable file in shell.
    pub(crate) fn script(&self, name: impl AsRef<Path>, script: &str) {
        let here = self.directory.path().display();
        self.write(&name, format!("#!/bin/sh\nHERE='{here}'\n{script}\n"));
        self.chmod(name, 0o755);
    }

    /// Every attempt of every task so far, in order.
    pub(crate) fn trace(&self) -> Vec<String> {
        self.lines("trace")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(RUNNER);
        command.args(arguments);
        self.prepare(&mut command);
        command
    }

    /// A command that sets something up in shell before it becomes `runner run ARGUMENTS`, which is `"$@"`.
    pub(crate) fn command_in_shell(&self, before: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("{before}\nexec \"$@\""), "sh", RUNNER]);
        command.args(arguments);
        self.prepare(&mut command);
        command
    }

    /// As [`Host::command_in_shell`], in a mount and process namespace of its own.
    pub(crate) fn command_in_namespace(&self, before: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]);
        command.args([
            "/bin/sh",
            "-c",
            &format!("set -e\n{before}\nexec \"$@\""),
            "sh",
            RUNNER,
        ]);
        command.args(arguments);
        self.prepare(&mut command);
        command
    }

    /// As [`Host::command`], where no cgroup can be seen or made.
    pub(crate) fn command_without_cgroup(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        let hide = "mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"";
        command.args(["--mount", "/bin/sh", "-c", hide, "sh", RUNNER]);
        command.args(arguments);
        self.prepare(&mut command);
        command
    }

    fn prepare(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("RUNNER_CONFIG", self.path("runner.toml"))
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
    }

    /// Runs `runner ARGUMENTS` to its end.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.start(arguments).wait()
    }

    /// One run through the tasks.
    #[track_caller]
    pub(crate) fn run_once(&self) -> Ended {
        self.run(&["run", "-n", "1"])
    }

    #[track_caller]
    pub(crate) fn start(&self, arguments: &[&str]) -> Running<'_> {
        self.start_command(self.command(arguments))
    }

    #[track_caller]
    pub(crate) fn start_command(&self, mut command: Command) -> Running<'_> {
        let file = |name: &str| {
            fs_err::File::create(self.path(name))
                .unwrap()
                .into_parts()
                .0
        };
        let child = command
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .process_group(0)
            .spawn()
            .unwrap();
        Running {
            host: self,
            child: Some(child),
        }
    }

    /// Everything in the journal.
    pub(crate) fn history(&self) -> Vec<Event> {
        self.lines("state/history.jsonl")
            .iter()
            .filter(|line| !line.is_empty())
            .map(|line| {
                serde_json::from_str::<Record>(line)
                    .unwrap_or_else(|error| panic!("{error}: {line}"))
                    .event
            })
            .collect()
    }

    /// The ended attempts of `task`.
    pub(crate) fn attempts(&self, task: &str) -> Vec<TaskFinished> {
        self.history()
            .into_iter()
            .filter_map(|event| match event {
                Event::TaskFinished(finished) if finished.task == task => Some(finished),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn state(&self) -> serde_json::Value {
        serde_json::from_str(&self.read("state/state.json")).unwrap()
    }

    /// What `runner` is doing, from its state file.
    pub(crate) fn phase(&self) -> String {
        serde_json::from_str::<serde_json::Value>(&self.read("state/state.json"))
            .ok()
            .and_then(|state| Some(state["activity"]["phase"].as_str()?.to_owned()))
            .unwrap_or_default()
    }

    /// `text` without what differs from one test host to the next.
    pub(crate) fn anonymous(&self, text: &str) -> String {
        text.replace(&self.directory.path().display().to_string(), "/host")
    }
}

/// A `runner` at work. It is ended with the test.
pub(crate) struct Running<'h> {
    host: &'h Host,
    child: Option<Child>,
}

impl Running<'_> {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// What it said so far.
    pub(crate) fn said(&self) -> String {
        self.host.read("stderr")
    }

    /// Waits until `condition` holds, while it runs.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, mut condition: impl FnMut(&Host) -> bool) {
        let host = self.host;
        let deadline = Instant::now() + SOON;
        while !condition(host) {
            assert!(
                self.ended().is_none(),
                "ended before {what}\n{}",
                self.said()
            );
            assert!(
                Instant::now() < deadline,
                "waited in vain: {what}\n{}",
                self.said()
            );
            pause();
        }
    }

    #[track_caller]
    pub(crate) fn until_said(&mut self, text: &str) {
        self.until(text, |host| host.read("stderr").contains(text));
    }

    #[track_caller]
    pub(crate) fn until_file(&mut self, name: &str) {
        self.until(name, |host| host.exists(name));
    }

    /// Waits for a whole line in a file.
    #[track_caller]
    pub(crate) fn until_written(&mut self, name: &str) {
        self.until(name, |host| host.read(name).ends_with('\n'));
    }

    #[track_caller]
    pub(crate) fn until_phase(&mut self, phase: &str) {
        self.until(phase, |host| host.phase() == phase);
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().unwrap().try_wait().unwrap()
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(self) -> Ended {
        self.wait_for(SOON * 2)
    }

    #[track_caller]
    pub(crate) fn wait_for(mut self, limit: Duration) -> Ended {
        let deadline = Instant::now() + limit;
        let status = loop {
            match self.ended() {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "runs for ever\n{}", self.said()),
            }
            pause();
        };
        self.child = None;
        Ended {
            status,
            out: self.host.read("stdout"),
            err: self.host.read("stderr"),
        }
    }

    /// SIGKILL, as an out-of-memory killer would send it.
    pub(crate) fn kill(mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // The test failed: asked twice, `runner` ends its task at once; if not, the hard way.
        for _ in 0..2 {
            kill(
                Pid::from_raw(i32::try_from(child.id()).unwrap()),
                Signal::SIGTERM,
            )
            .ok();
        }
        let deadline = Instant::now() + Duration::from_secs(3);
        while child.try_wait().ok().flatten().is_none() && Instant::now() < deadline {
            pause();
        }
        child.kill().ok();
        child.wait().ok();
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        pause();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "no runtime here; the length of the pause decides nothing but how soon a change is seen"
)]
fn pause() {
    std::thread::sleep(LOOK);
}

/// Whether a process is there and not merely waiting to be reaped.
pub(crate) fn is_alive(pid: i32) -> bool {
    fs_err::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.trim_start().chars().next());
        !matches!(state, Some('Z' | 'X') | None)
    })
}

/// The pids in a file, one a line.
pub(crate) fn pids(host: &Host, name: &str) -> Vec<i32> {
    host.lines(name)
        .iter()
        .map(|line| line.trim().parse().unwrap())
        .collect()
}

/// Whether the test may use namespaces and other users; says why not.
pub(crate) fn is_root(what_for: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("left out: {what_for} needs root");
    }
    root
}

/// A file name from bytes.
pub(crate) fn name(bytes: &[u8]) -> OsString {
    use std::os::unix::ffi::OsStrExt as _;
    OsStr::from_bytes(bytes).to_owned()
}
