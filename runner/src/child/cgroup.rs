//! The cgroup (v2) that the children of one `runner` live in, so that one write ends them all.
//!
//! A child is moved into it right after its start. What it may have forked in the microseconds
//! before is still found as a descendant; the cgroup makes the end of a fork storm atomic.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

/// A cgroup directory of ours, removed when dropped.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup `name` below `parent`.
    ///
    /// # Errors
    /// If it cannot be made there, or the kernel is older than 5.14 (`cgroup.kill`).
    pub fn create(parent: &Path, name: &str) -> io::Result<Self> {
        let directory = parent.join(name);
        match fs_err::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let cgroup = Self { directory };
        fs_err::metadata(cgroup.directory.join("cgroup.kill"))?;
        Ok(cgroup)
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Moves a child into it.
    pub(super) fn add(&self, pid: Pid) {
        let pid = pid.as_raw_nonzero().to_string();
        // A child that has ended already cannot be moved, and need not be.
        fs_err::write(self.directory.join("cgroup.procs"), pid).ok();
    }

    /// SIGKILL to everything in it, atomically with respect to fork.
    pub fn kill(&self) {
        // What could not be killed this way is killed one by one.
        fs_err::write(self.directory.join("cgroup.kill"), "1").ok();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Only a process that cannot be killed keeps it; the init system removes it at our end.
        fs_err::remove_dir(&self.directory).ok();
    }
}

/// The cgroup v2 directory this process lives in, if cgroup v2 is mounted.
#[must_use]
pub fn own_directory() -> Option<PathBuf> {
    let memberships = fs_err::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs_err::read_to_string("/proc/self/mountinfo").ok()?;
    directory_of(&memberships, &mounts)
}

/// The cgroup v2 directory of a process, from the texts of its `/proc/PID/cgroup` and
/// `/proc/PID/mountinfo` (proc(5), cgroups(7)). Public for fuzzing: it touches no file.
#[must_use]
pub fn directory_of(memberships: &str, mounts: &str) -> Option<PathBuf> {
    let path = memberships
        .lines()
        .find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        if file_system.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = if root == "/" {
            path
        } else {
            path.strip_prefix(root)?
        };
        Some(Path::new(point).join(below.trim_start_matches('/')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "24 1 0:21 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
        25 1 0:22 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_own_directory_is_below_the_mount_of_version_2() {
        assert_eq!(
            directory_of("3:cpu:/x\n0::/system.slice/runner.service\n", HYBRID),
            Some("/sys/fs/cgroup/unified/system.slice/runner.service".into())
        );
        assert_eq!(
            directory_of("0::/\n", HYBRID),
            Some("/sys/fs/cgroup/unified/".into())
        );
    }

    #[test]
    fn without_version_2_there_is_none() {
        assert_eq!(directory_of("3:cpu:/x\n", HYBRID), None);
        assert_eq!(
            directory_of("0::/\n", "24 1 0:21 / /c rw - cgroup cgroup rw,cpu\n"),
            None
        );
    }

    #[test]
    fn a_mount_of_a_part_shows_what_is_below_that_part() {
        let mounts = "25 1 0:22 /part /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            directory_of("0::/part/a\n", mounts),
            Some("/sys/fs/cgroup/a".into())
        );
        assert_eq!(directory_of("0::/other\n", mounts), None);
    }
}
