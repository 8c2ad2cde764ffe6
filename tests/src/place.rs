//! The directory of one `runner`: its configuration, tasks, reboot lists and state.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::programs;

/// A private directory that is removed with this value. In it are `etc`, `tasks.d`, `blacklists`
/// with two empty lists, and `state` once `runner` has made it.
#[derive(Debug)]
pub struct Place {
    directory: TempDir,
}

impl Place {
    /// A new place; its directory's name starts with `prefix`.
    ///
    /// # Panics
    ///
    /// If there is no temporary directory that can be written.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        let directory = TempDir::with_prefix(prefix).expect("a temporary directory");
        // Job users go through it.
        set_mode(directory.path(), 0o755);
        let place = Self { directory };
        for part in ["etc", "tasks.d", "blacklists"] {
            place.make_directory(part);
        }
        place.write("blacklists/hosts.toml", "# No host is listed.\n");
        place.write("blacklists/jobs.toml", "# No job is listed.\n");
        place
    }

    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A path below it.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// Writes a file that belongs to root and that all may read.
    ///
    /// # Panics
    ///
    /// If it cannot be written.
    pub fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs_err::write(&path, content).expect("a temporary directory can be written");
        set_mode(&path, 0o644);
    }

    /// Writes a file that only root may read.
    ///
    /// # Panics
    ///
    /// If it cannot be written.
    pub fn write_secret(&self, path: &str, content: &str) {
        self.write(path, content);
        set_mode(&self.path(path), 0o600);
    }

    /// Reads a file; one that is not there is empty.
    #[must_use]
    pub fn read(&self, path: &str) -> String {
        fs_err::read_to_string(self.path(path)).unwrap_or_default()
    }

    /// Writes an executable: a task, the halt task, a hook, a program.
    ///
    /// # Panics
    ///
    /// If it cannot be written.
    pub fn write_executable(&self, path: &str, content: &str) {
        self.write(path, content);
        set_mode(&self.path(path), 0o755);
    }

    /// Makes a directory that belongs to root and that all may read.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    pub fn make_directory(&self, path: &str) {
        let path = self.path(path);
        fs_err::create_dir(&path).expect("a temporary directory can be written");
        set_mode(&path, 0o755);
    }

    /// Makes a named pipe that everybody may write to.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    pub fn make_pipe(&self, path: &str) {
        let path = self.path(path);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::empty())
            .expect("a temporary directory can be written");
        set_mode(&path, 0o622);
    }

    /// Copies a file with its permissions, except those to write that a lax umask gave to others.
    ///
    /// # Panics
    ///
    /// If it cannot be copied.
    pub fn copy(&self, from: &Path, to: &str) {
        let to = self.path(to);
        fs_err::copy(from, &to).expect("a temporary directory can be written");
        let metadata = fs_err::metadata(&to).expect("it is our own file");
        set_mode(&to, metadata.permissions().mode() & 0o755);
    }

    /// Copies the shipped `tasks.d`, as it is.
    ///
    /// # Panics
    ///
    /// If it cannot be copied.
    pub fn ship_tasks(&self) {
        let shipped = programs::repository("tasks.d");
        for entry in fs_err::read_dir(shipped).expect("the repository has tasks") {
            let entry = entry.expect("the repository can be read");
            let name = entry.file_name();
            self.copy(&entry.path(), &format!("tasks.d/{}", name.display()));
        }
    }

    /// The head of a `runner.toml`: where everything is, and a halt that is not waited for,
    /// because no machine goes down.
    #[must_use]
    pub fn runner_table(&self) -> String {
        format!(
            "[runner]\ntasks_dir = {:?}\nstate_dir = {:?}\nhalt_wait = \"0s\"\n",
            self.path("tasks.d"),
            self.path("state"),
        )
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .expect("it is our own file");
}
