//! A PID namespace of its own for each test, with a `/run` of its own and users that do not exist.
//!
//! Nothing in it can reach a process outside: the namespace has no numbers for them. It ends, with
//! everything in it, when the [`Sandbox`] is dropped or the test process dies.
//!
//! Making a namespace needs root. Without root a test prints `SKIPPED` and passes, unless the
//! environment variable `FARMHAND_REQUIRE_ROOT` is set: then it fails. Continuous integration
//! sets it, so that a skipped test cannot pass for a run one.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

/// The user whose processes are swept.
pub(crate) const JOB: u32 = 61_001;

/// A user who is not swept.
pub(crate) const OTHER: u32 = 61_002;

/// Where the binary under test is.
const CLEANSLATE: &str = env!("CARGO_BIN_EXE_cleanslate");

/// Longest wait for something that takes milliseconds; reached only if it never comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// The first process ignores SIGCHLD, so that the kernel reaps orphans at once.
const INIT: &str = "mount -t tmpfs -o mode=0755 tmpfs /run && mkdir -m 1777 /run/ready && \
                    echo up && exec env --ignore-signal=CHLD sleep infinity";

/// A PID and mount namespace.
#[derive(Debug)]
pub(crate) struct Sandbox {
    unshare: Child,
}

impl Sandbox {
    /// A new one; `None` if the test is to be skipped.
    pub(crate) fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            assert!(
                std::env::var_os("FARMHAND_REQUIRE_ROOT").is_none(),
                "this test needs root, and FARMHAND_REQUIRE_ROOT is set"
            );
            eprintln!("SKIPPED: this test makes a PID namespace and needs root");
            return None;
        }
        let mut unshare = Command::new("unshare")
            .args(["--pid", "--mount", "--fork", "--mount-proc", "--kill-child"])
            .args(["sh", "-c", INIT])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare of util-linux starts");
        let mut line = String::new();
        BufReader::new(unshare.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "up\n", "the namespace could not be set up");
        Some(Self { unshare })
    }

    /// Path by which this test reaches a file of the sandbox.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.unshare.id()))
    }

    fn enter(&self) -> Command {
        let namespaces = format!("/proc/{}/ns", self.unshare.id());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--pid={namespaces}/pid_for_children"))
            .arg(format!("--mount={namespaces}/mnt"))
            .stdin(Stdio::null());
        command
    }

    /// Runs a shell script inside, as root, with the binary under test as `$CLEANSLATE`.
    pub(crate) fn sh(&self, script: &str) -> Output {
        self.enter()
            .args(["sh", "-c", script])
            .env("CLEANSLATE", CLEANSLATE)
            .output()
            .unwrap()
    }

    /// Runs a script that must succeed; what it printed.
    pub(crate) fn sh_ok(&self, script: &str) -> String {
        let output = self.sh(script);
        assert!(output.status.success(), "`{script}` failed: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs the binary under test inside, with `arguments` separated by blanks.
    pub(crate) fn cleanslate(&self, arguments: &str) -> Output {
        self.enter()
            .arg(CLEANSLATE)
            .args(arguments.split_whitespace())
            .output()
            .unwrap()
    }

    /// Takes the snapshot of [`JOB`].
    pub(crate) fn snapshot(&self) {
        let output = self.cleanslate(&format!("snapshot --user {JOB}"));
        assert!(output.status.success(), "{output:?}");
    }

    /// Sweeps [`JOB`] with these further arguments; the exit code and the JSON.
    pub(crate) fn sweep(&self, arguments: &str) -> Swept {
        let output = self.cleanslate(&format!("sweep --user {JOB} --format json {arguments}"));
        let json = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        Swept {
            code: output.status.code().unwrap(),
            json,
        }
    }

    /// Starts `script` in the background as `uid`, without a parent inside; returns its number
    /// once it has called `ready`.
    pub(crate) fn start(&self, uid: u32, script: &str) -> u32 {
        let pid = self.launch(uid, &format!("ready() {{ : > /run/ready/$$; }}; {script}"));
        self.wait_until(&format!("process {pid} is ready"), || {
            self.path(&format!("/run/ready/{pid}")).exists()
        });
        pid
    }

    /// Starts `sleep` in the background as `uid`; returns its number once it sleeps.
    pub(crate) fn sleeper(&self, uid: u32) -> u32 {
        let pid = self.launch(uid, "exec sleep 1000");
        self.wait_until("sleep runs", || self.comm(pid).as_deref() == Some("sleep"));
        pid
    }

    fn launch(&self, uid: u32, script: &str) -> u32 {
        let output = self
            .enter()
            .args(["sh", "-c", LAUNCHER, "launcher"])
            .args([&uid.to_string(), script])
            .output()
            .unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    /// Short name of a process inside, if it is alive.
    pub(crate) fn comm(&self, pid: u32) -> Option<String> {
        if !self.is_alive(pid) {
            return None;
        }
        let comm = fs_err::read_to_string(self.path(&format!("/proc/{pid}/comm"))).ok()?;
        Some(comm.trim().to_owned())
    }

    /// Whether a process inside runs: it exists, and a thread of it is no zombie.
    pub(crate) fn is_alive(&self, pid: u32) -> bool {
        let tasks = self.path(&format!("/proc/{pid}/task"));
        let Ok(tasks) = fs_err::read_dir(tasks) else {
            return false;
        };
        tasks.flatten().any(|task| {
            let status = fs_err::read_to_string(task.path().join("status")).unwrap_or_default();
            !status.is_empty() && !status.contains("State:\tZ") && !status.contains("State:\tX")
        })
    }

    /// Processes inside that have `uid` as real user and are alive.
    pub(crate) fn processes_of(&self, uid: u32) -> Vec<u32> {
        fs_err::read_dir(self.path("/proc"))
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|&pid| {
                let path = self.path(&format!("/proc/{pid}/status"));
                let status = fs_err::read_to_string(path).unwrap_or_default();
                status.contains(&format!("Uid:\t{uid}\t"))
            })
            .filter(|&pid| self.is_alive(pid))
            .collect()
    }

    /// The living child of a process inside whose short name is `comm`.
    pub(crate) fn child_of(&self, parent: u32, comm: &str) -> Option<u32> {
        let path = self.path(&format!("/proc/{parent}/task/{parent}/children"));
        let children = fs_err::read_to_string(path).ok()?;
        children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .find(|&pid| self.comm(pid).as_deref() == Some(comm))
    }

    /// Ends a process inside and waits until it is reaped.
    pub(crate) fn kill(&self, pid: u32) {
        self.sh_ok(&format!("kill -KILL {pid}"));
        self.wait_until("it is reaped", || {
            !self.path(&format!("/proc/{pid}")).exists()
        });
    }

    /// Waits for something another process does.
    #[expect(
        clippy::disallowed_methods,
        reason = "a test without a runtime waits for a process"
    )]
    pub(crate) fn wait_until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let step = Duration::from_millis(2);
        let mut waited = Duration::ZERO;
        while !done() {
            assert!(waited < PATIENCE, "waited in vain until {what}");
            std::thread::sleep(step);
            waited += step;
        }
    }

    /// Path of the snapshot, from outside.
    pub(crate) fn snapshot_file(&self) -> PathBuf {
        self.path("/run/farmhand/cleanslate.json")
    }
}

const LAUNCHER: &str = "setpriv --reuid $1 --regid $1 --clear-groups sh -c \"$2\" \
                        </dev/null >/dev/null 2>&1 & echo $!";

impl Drop for Sandbox {
    fn drop(&mut self) {
        // `--kill-child` takes the namespace's first process along, and that one all the others.
        let _ended = self.unshare.kill();
        let _reaped = self.unshare.wait();
    }
}

/// What a sweep answered.
#[derive(Debug)]
pub(crate) struct Swept {
    pub(crate) code: i32,
    pub(crate) json: Value,
}

impl Swept {
    pub(crate) fn verdict(&self) -> &str {
        self.json["verdict"].as_str().unwrap()
    }

    /// Asserts that nothing is left. Other processes of the machine may have kept the sweep from
    /// proving it.
    pub(crate) fn assert_clean(&self) {
        assert!(matches!(self.verdict(), "clean" | "unproven"), "{self:?}");
        assert_eq!(self.code, 0, "{self:?}");
    }

    /// How the leftover with this number ended.
    pub(crate) fn ended(&self, pid: u32) -> &str {
        let leftovers = self.json["leftovers"].as_array().unwrap();
        let found = leftovers.iter().find(|leftover| leftover["pid"] == pid);
        let found = found.unwrap_or_else(|| panic!("{pid} was not found: {self:?}"));
        found["ended"].as_str().unwrap_or("-")
    }

    pub(crate) fn leftovers(&self) -> usize {
        self.json["leftovers"].as_array().unwrap().len()
    }
}

/// Text a command printed for people.
pub(crate) fn words(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Content of a file, for comparing before and after.
pub(crate) fn content(path: &Path) -> Vec<u8> {
    fs_err::read(path).unwrap()
}
