//! A build host made of namespaces, on which the real `runner` and `cleanslate` run.
//!
//! It shares the kernel, the loopback network and the file system with the machine, and has its own
//! processes, `/run`, host name, users and boot id. What a sweep or a reboot does to it ends at its
//! PID namespace. Each [`RunnerHost::boot`] is a new boot as far as programs can tell: no process is
//! left of the one before, `/run` is empty and the boot id is new; files stay. Not new are the
//! kernel and its uptime: a real reboot is for hosts with a kernel's view of their own.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::place::Place;
use crate::process::{Process, last_lines, show};
use crate::unique::UserId;
use crate::{programs, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The user its jobs run as.
pub const JOB_USER: &str = "farmjob";

/// The life of a host, as a program of process 1.
const HOST_SCRIPT: &str = include_str!("host.sh");

/// Whether this test may make hosts; says what is skipped if not.
#[must_use]
#[expect(
    clippy::print_stderr,
    reason = "the test harness captures it with the test"
)]
pub fn have_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: namespaced hosts need root; run `sudo tests/run` to see this test");
    }
    root
}

/// A host. Dropping it ends every process of it.
#[derive(Debug)]
pub struct RunnerHost {
    /// Its files; paths are the same within and without.
    pub place: Place,
    name: String,
    job_uid: UserId,
    /// Its cgroup (v2), where the machine lets us make one.
    cgroup: Option<PathBuf>,
    boots: u32,
    running: Option<Process>,
}

impl RunnerHost {
    /// A host with an empty tasks directory. Beside what every [`Place`] has there are `bin` with
    /// our programs, `home` of the job user, and, once booted, `buildbot`, the Python environment.
    ///
    /// # Panics
    ///
    /// If the programs are not built.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let place = Place::new("farm-host-");
        for part in ["bin", "buildbot", "home"] {
            place.make_directory(part);
        }
        for program in ["runner", "cleanslate"] {
            place.copy(&programs::ours(program), &format!("bin/{program}"));
        }
        let host = Self {
            cgroup: make_cgroup(place.directory()),
            place,
            name: name.to_owned(),
            job_uid: UserId::reserve(),
            boots: 0,
            running: None,
        };
        host.write_accounts();
        host
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Boots it: `etc/rc.local` in the background if there is one, and `runner run ARGUMENTS` with
    /// the configuration in `etc/runner.toml`.
    ///
    /// # Panics
    ///
    /// If it runs already, or this is not root.
    pub fn boot(&mut self, arguments: &[&str]) {
        assert!(self.running.is_none(), "the host runs already");
        assert!(
            nix::unistd::geteuid().is_root(),
            "namespaced hosts need root"
        );
        self.boots += 1;
        self.place
            .write("etc/boot_id", &format!("{}\n", boot_id(self.boots)));
        let script = self.place.path("host.sh");
        self.place.write("host.sh", HOST_SCRIPT);
        let configuration = self.place.path("etc/runner.toml");
        let environment = programs::python_environment();
        let mut command: Vec<&std::ffi::OsStr> = [
            "--pid",
            "--mount",
            "--uts",
            "--fork",
            "--mount-proc",
            "--kill-child=KILL",
            "--",
            "sh",
        ]
        .map(AsRef::as_ref)
        .to_vec();
        command.extend([script.as_ref(), self.place.directory().as_os_str()]);
        let cgroup = self.cgroup.as_deref().unwrap_or(Path::new(""));
        command.extend([
            self.name.as_ref(),
            environment.as_os_str(),
            cgroup.as_os_str(),
        ]);
        command.extend([
            "run".as_ref(),
            "--config".as_ref(),
            configuration.as_os_str(),
        ]);
        command.extend(arguments.iter().map(std::ffi::OsStr::new));
        self.running = Some(Process::start(
            &programs::installed("unshare"),
            command,
            self.place.directory(),
            &self.place.path("runner.log"),
        ));
    }

    /// Waits until `runner` has ended by itself, and with it every process of the host. Its exit
    /// status is `runner`'s.
    ///
    /// # Panics
    ///
    /// If it does not run, or does not end.
    pub fn ended(&mut self, limit: Duration) -> ExitStatus {
        let mut process = self.running.take().expect("the host runs");
        process.ended(limit)
    }

    /// Waits for something to become true while `runner` runs; its end is a failure.
    ///
    /// # Panics
    ///
    /// If `runner` ends or `limit` is over.
    pub fn while_running<T, E: std::fmt::Display>(
        &mut self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut() -> Result<T, E>,
    ) -> T {
        let process = self.running.as_mut().expect("the host runs");
        wait::until(what, limit, || {
            if let Some(status) = process.try_wait() {
                panic!("the host ended while waiting for {what}: {status}");
            }
            condition()
        })
    }

    /// Sends a signal to `runner` itself.
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn signal(&mut self, signal: Signal) {
        let program = self.place.path("bin/runner");
        let unshare = self.running.as_ref().expect("the host runs").pid();
        let runner = wait::until("`runner` to be there", Duration::from_secs(10), || {
            let init = *children(unshare).first().ok_or("the host has no process")?;
            let is_runner = |pid: &Pid| {
                fs_err::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program)
            };
            children(init)
                .into_iter()
                .find(is_runner)
                .ok_or("the host has no `runner`")
        });
        kill(runner, signal).expect("a process of a host of ours");
    }

    /// The last lines of what `runner` said.
    #[must_use]
    pub fn last_lines(&self) -> String {
        last_lines(&self.place.path("runner.log"))
    }

    /// The machine's accounts, and one for jobs.
    fn write_accounts(&self) {
        let uid = self.job_uid.number();
        let home = self.place.path("home");
        fs_err::os::unix::fs::chown(&home, Some(uid), Some(uid)).expect("this is root");
        for (file, line) in [
            (
                "passwd",
                format!("{JOB_USER}:x:{uid}:{uid}::{}:/bin/sh\n", home.display()),
            ),
            ("group", format!("{JOB_USER}:x:{uid}:\n")),
        ] {
            let machine = fs_err::read_to_string(Path::new("/etc").join(file));
            let machine = machine.expect("every machine has accounts");
            self.place.write(&format!("etc/{file}"), &(machine + &line));
        }
    }
}

impl Drop for RunnerHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show(&format!("`runner` on {}", self.name), &self.last_lines());
        }
        // Ends every process of it, without which its cgroup could not be removed.
        self.running = None;
        if let Some(cgroup) = &self.cgroup {
            remove_cgroup(cgroup);
        }
    }
}

/// Makes a cgroup for the host in `directory`; `None` where cgroup v2 is not mounted for writing.
fn make_cgroup(directory: &Path) -> Option<PathBuf> {
    let mounts = fs_err::read_to_string("/proc/self/mounts").ok()?;
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    let root = mounts.find_map(|mut fields| {
        let point = fields.nth(1)?;
        (fields.next()? == "cgroup2").then_some(point)
    })?;
    let cgroup = Path::new(root).join(directory.file_name()?);
    fs_err::create_dir(&cgroup).ok()?;
    Some(cgroup)
}

/// Removes a cgroup and those that `runner` made below it. The killed processes may take a moment
/// to leave it; what stays is an empty directory in the kernel's memory, no reason to fail a test.
fn remove_cgroup(cgroup: &Path) {
    for entry in fs_err::read_dir(cgroup).into_iter().flatten().flatten() {
        fs_err::remove_dir(entry.path()).ok();
    }
    fs_err::remove_dir(cgroup).ok();
}

/// Direct children of a process.
fn children(pid: Pid) -> Vec<Pid> {
    let children = fs_err::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    children
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|child| child.parse().ok())
        .map(Pid::from_raw)
        .collect()
}

/// A boot id in the kernel's form, different for each boot of each host.
fn boot_id(boot: u32) -> String {
    let machine = fs_err::read_to_string("/proc/sys/kernel/random/uuid");
    let random = machine.expect("Linux gives random ids");
    format!("{boot:08x}{}", &random.trim()[8..])
}
