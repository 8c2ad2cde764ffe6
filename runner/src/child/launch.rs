//! What a child is started with: a template that is the same for each, whatever started `runner`.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Access, access};
use rustix::process::Pid;

/// Drops to another user and becomes the program; part of util-linux.
///
/// The standard library could set the user itself, but then starts children by `fork`, whose cost
/// grows with the memory of the daemon; an extra program keeps `posix_spawn`, which stays flat.
const SETPRIV: &str = "/usr/bin/setpriv";

/// A program to start.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The program: a path, or a name looked up in the `PATH` of `env`.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub directory: PathBuf,
    /// User to run as, if not the running one: name and primary group id.
    pub user: Option<(String, u32)>,
}

impl Launch {
    /// Starts it in a process group of its own, with no input, both outputs into `writer`.
    pub(super) fn spawn(&self, writer: io::PipeWriter) -> io::Result<Pid> {
        let child = self
            .command()?
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()?;
        // Dropping the handle neither ends nor reaps the child: the supervisor does both.
        i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("the kernel gave a pid that is none"))
    }

    fn command(&self) -> io::Result<Command> {
        let program = self.program_path()?;
        let Some((user, group)) = &self.user else {
            let mut command = Command::new(program);
            command.args(&self.arguments);
            return Ok(command);
        };
        let mut command = Command::new(SETPRIV);
        command
            .arg(format!("--reuid={user}"))
            .arg(format!("--regid={group}"))
            .args(["--init-groups", "--inh-caps=-all", "--"])
            .arg(program)
            .args(&self.arguments);
        Ok(command)
    }

    /// The program as a path. Looked up here because the standard library, to look it up in another
    /// `PATH` than its own, would start it by `fork`.
    fn program_path(&self) -> io::Result<PathBuf> {
        let program = Path::new(&self.program);
        if program.components().count() > 1 || program.is_absolute() {
            return Ok(program.to_owned());
        }
        let path = self.env.iter().find(|(name, _)| name == "PATH");
        path.into_iter()
            .flat_map(|(_, directories)| std::env::split_paths(directories))
            .map(|directory| directory.join(program))
            .find(|candidate| candidate.is_file() && access(candidate, Access::EXEC_OK).is_ok())
            .ok_or_else(|| {
                let program = program.display();
                let message = format!("no program `{program}` in the tasks' PATH");
                io::Error::new(io::ErrorKind::NotFound, message)
            })
    }
}

/// Closes what whoever started `runner` left open, so that no child inherits it. Call first in `main`.
pub fn close_inherited_descriptors() {
    let Ok(entries) = fs_err::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<i32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > 2)
        .collect();
    for descriptor in open {
        // The one that was listing the directory is closed by now.
        nix::unistd::close(descriptor).ok();
    }
}

/// Sets the umask that every child inherits, whatever it was.
pub fn standard_umask() {
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
}
