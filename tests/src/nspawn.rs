//! A full Debian host: its own init, journal, users and processes, above a real kernel.
//!
//! A container of systemd-nspawn whose root directory is a layer above a plain Debian
//! (`tests/setup-rootfs`): files stay from boot to boot, and nothing is written into the Debian. It
//! is the next best thing to a virtual machine: `shutdown -r` is the real one and ends the container
//! with a code of its own, on which [`DebianHost::power_on`] stands for the firmware. Every mount is
//! in a mount namespace and every process in a PID namespace of the host's, so that none outlives
//! the test, however that ends.
//!
//! Not its own are the kernel with its clocks, and there is no network but loopback.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{Process, show};
use crate::{programs, wait};

/// What nspawn exits with when its host rebooted itself: EXIT_FORCE_RESTART of systemd.
const REBOOTED: i32 = 133;

/// A boot takes less than a second here; on a machine busy with compiling it took three.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// Mounts the layers in a namespace of its own, and goes on with a program in it.
const WITH_ROOT: &str = r#"
set -eu
layers=$1 rootfs=$2
shift 2
mount -t overlay overlay \
    -o "lowerdir=$rootfs,upperdir=$layers/files,workdir=$layers/work" "$layers/root"
exec "$@"
"#;

/// Boots, in a cgroup of its own. The rest is as `systemd-nspawn@.service` has it, but for what
/// needs a machine with systemd.
const BOOT: &str = r#"
set -eu
echo 0 >"$1/cgroup.procs"
exec env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --quiet --boot \
    --register=no --keep-unit --private-network --console=pipe \
    --machine="$2" --directory="$3"
"#;

/// Whether full hosts can be made here. Says why if not.
///
/// # Panics
///
/// If this could be a machine that makes them but lacks a program.
#[must_use]
#[expect(
    clippy::print_stderr,
    reason = "the test harness captures it with the test"
)]
pub fn available() -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: full Debian hosts need root; run `sudo tests/run` to see this test");
        return false;
    }
    let needed = ["mmdebstrap", "systemd-nspawn"].map(programs::installed);
    needed.iter().all(|program| program.exists())
}

/// How a host went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WentDown {
    /// It rebooted, and waits to be powered on again.
    ToReboot,
    /// It powered itself off.
    PoweredOff,
    /// Neither: a fault of the container or of the test.
    Otherwise(ExitStatus),
}

/// A host, powered off at first. Dropping it ends every process of it.
pub struct DebianHost {
    name: String,
    rootfs: PathBuf,
    layers: TempDir,
    cgroup: Cgroup,
    running: Option<Process>,
}

impl DebianHost {
    /// A host nobody has touched yet. The first one on a machine takes half a minute and needs a
    /// Debian mirror; later ones take no time.
    ///
    /// # Panics
    ///
    /// If there is no Debian and none can be made, or the machine has no cgroup v2.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let made = Command::new(programs::repository("tests/setup-rootfs"))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .expect("tests/setup-rootfs is a program");
        assert!(
            made.status.success(),
            "no Debian to boot: see above, or run `tests/run`"
        );
        let rootfs = PathBuf::from(text(&made.stdout).trim_end());
        // Beside the Debian: an overlay's upper layer cannot be on every kind of file system.
        let layers = TempDir::with_prefix_in("host-", rootfs.parent().expect("it has a parent"))
            .expect("the cache can be written");
        for layer in ["files", "work", "root"] {
            fs_err::create_dir(layers.path().join(layer)).expect("a new directory");
        }
        let host = Self {
            name: name.to_owned(),
            rootfs,
            layers,
            cgroup: Cgroup::new(),
            running: None,
        };
        // Or nspawn takes that of the machine.
        host.while_off(
            "echo \"$2\" >\"$1/etc/hostname\"; mkdir -p \"$1/var/log/journal\"",
            &[name.as_ref()],
        );
        host
    }

    /// Runs a script of sh while the host is off, with its root directory as `$1` and `arguments`
    /// after it.
    ///
    /// # Panics
    ///
    /// If the host is on, or the script fails.
    pub fn while_off(&self, script: &str, arguments: &[&Path]) {
        assert!(self.running.is_none(), "`{}` is on", self.name);
        let done = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--"])
            .args(["sh", "-c", WITH_ROOT, "with-root"])
            .arg(self.layers.path())
            .arg(&self.rootfs)
            .args(["sh", "-euc", script, "while-off"])
            .arg(self.layers.path().join("root"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("unshare is a program");
        assert!(
            done.status.success(),
            "a script for `{}` failed: {}\n{}{}",
            self.name,
            done.status,
            text(&done.stdout),
            text(&done.stderr)
        );
    }

    /// Boots it, and returns when its init takes orders.
    ///
    /// # Panics
    ///
    /// If it is on already, or does not boot.
    pub fn power_on(&mut self) {
        assert!(self.running.is_none(), "`{}` is on", self.name);
        let layers = self.layers.path();
        let root = layers.join("root");
        let arguments: [&std::ffi::OsStr; 18] = [
            "--mount".as_ref(),
            "--pid".as_ref(),
            "--fork".as_ref(),
            "--mount-proc".as_ref(),
            "--kill-child=KILL".as_ref(),
            "--".as_ref(),
            "sh".as_ref(),
            "-c".as_ref(),
            WITH_ROOT.as_ref(),
            "with-root".as_ref(),
            layers.as_ref(),
            self.rootfs.as_ref(),
            "sh".as_ref(),
            "-c".as_ref(),
            BOOT.as_ref(),
            "boot".as_ref(),
            self.cgroup.directory.as_ref(),
            self.name.as_ref(),
        ];
        let process = Process::start(
            &programs::installed("unshare"),
            arguments.into_iter().chain([root.as_os_str()]),
            layers,
            &layers.join("console.log"),
        );
        self.running = Some(process);
        let Self {
            running, cgroup, ..
        } = self;
        let process = running.as_mut().expect("it was just started");
        process.ready(BOOT_LIMIT, || {
            let init = cgroup.init().ok_or("no init yet")?;
            let answer = inside(init, "systemctl show --property=Version --value");
            if answer.status.success() {
                Ok(())
            } else {
                Err("init takes no orders yet")
            }
        });
    }

    /// Runs a script of sh on the host, as root.
    ///
    /// # Panics
    ///
    /// If the host is off, or the script fails.
    pub fn run(&self, script: &str) {
        drop(self.shell(script));
    }

    /// Runs a script of sh on the host, as root, and gives its output.
    ///
    /// # Panics
    ///
    /// If the host is off, or the script fails.
    #[must_use]
    pub fn shell(&self, script: &str) -> String {
        let done = self.try_shell(script);
        assert!(
            done.status.success(),
            "`{script}` failed on `{}`: {}\n{}{}",
            self.name,
            done.status,
            text(&done.stdout),
            text(&done.stderr)
        );
        text(&done.stdout)
    }

    /// Runs a script of sh on the host, as root, and gives whatever came of it.
    ///
    /// # Panics
    ///
    /// If the host is off.
    #[must_use]
    pub fn try_shell(&self, script: &str) -> Output {
        let init = self
            .cgroup
            .init()
            .unwrap_or_else(|| panic!("`{}` is off", self.name));
        inside(init, script)
    }

    /// Waits until the host has gone down by itself.
    ///
    /// # Panics
    ///
    /// If it is still up after `limit`.
    pub fn went_down(&mut self, limit: Duration) -> WentDown {
        let process = self
            .running
            .as_mut()
            .unwrap_or_else(|| panic!("`{}` is off", self.name));
        let status = process.ended(limit);
        self.running = None;
        match status.code() {
            Some(REBOOTED) => WentDown::ToReboot,
            Some(0) => WentDown::PoweredOff,
            Some(_) | None => WentDown::Otherwise(status),
        }
    }

    /// Reads a file the host has written, whether it is on or off. One that is not there is empty.
    #[must_use]
    pub fn read(&self, path: &str) -> String {
        let written = self
            .layers
            .path()
            .join("files")
            .join(path.trim_start_matches('/'));
        text(&fs_err::read(written).unwrap_or_default())
    }

    /// What the journal has, of all boots.
    #[must_use]
    pub fn journal(&self) -> String {
        let journal = self.layers.path().join("files/var/log/journal");
        let done = Command::new("journalctl")
            .args([
                "--no-pager",
                "--quiet",
                "--output=short-precise",
                "--directory",
            ])
            .arg(journal)
            .output();
        done.map_or_else(|error| error.to_string(), |done| text(&done.stdout))
    }
}

impl Drop for DebianHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = self.journal();
            let from = journal.lines().count().saturating_sub(120);
            let last: Vec<_> = journal.lines().skip(from).collect();
            show(&format!("the journal of `{}`", self.name), &last.join("\n"));
        }
        // Before the cgroup, which would have to be empty, and the layers, which would be in use.
        drop(self.running.take());
        self.cgroup.remove();
    }
}

impl fmt::Debug for DebianHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebianHost")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn inside(init: u32, script: &str) -> Output {
    Command::new("nsenter")
        .args(["--target", &init.to_string()])
        .args([
            "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--",
        ])
        .args([
            "/usr/bin/env",
            "-i",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
            "LANG=C.UTF-8",
        ])
        .args(["sh", "-euc", script])
        .stdin(Stdio::null())
        .output()
        .expect("nsenter is a program")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The cgroup a host's processes are in.
struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mounts =
            fs_err::read_to_string("/proc/self/mounts").expect("the kernel knows its mounts");
        let root = mounts
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(' ').skip(1);
                fields.next().zip(fields.next())
            })
            .find_map(|(point, kind)| (kind == "cgroup2").then_some(point))
            .expect("cgroup v2 is mounted; full hosts need it");
        let own = fs_err::read_to_string("/proc/self/cgroup").expect("every process has cgroups");
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .unwrap_or_default();
        let name = format!(
            "farm-tests-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let directory = Path::new(root).join(own).join(name);
        fs_err::create_dir(&directory).expect("root may make cgroups");
        Self { directory }
    }

    /// Process id of the host's init, as the machine sees it.
    fn init(&self) -> Option<u32> {
        let processes =
            fs_err::read_to_string(self.directory.join("payload/init.scope/cgroup.procs")).ok()?;
        processes.lines().next()?.parse().ok()
    }

    fn remove(&self) {
        fs_err::write(self.directory.join("cgroup.kill"), "1").ok();
        wait::until(
            "the processes of the host to be gone",
            Duration::from_secs(30),
            || remove_below(&self.directory),
        );
    }
}

fn remove_below(directory: &Path) -> std::io::Result<()> {
    for entry in fs_err::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path())?;
        }
    }
    fs_err::remove_dir(directory)
}
