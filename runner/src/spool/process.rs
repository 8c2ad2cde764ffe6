//! The processes of a job: who it runs as, how it is started, how its group ends.
//!
//! A job must never run without somebody knowing its process, and a process cannot be known before
//! it exists. So a job is started behind a gate: a shell that already runs as the job user, in the
//! job's process group, and waits on a pipe for the one compound command that is the job. If the
//! taker dies before it has written down the process and then the whole command, the shell reads an
//! end of file in the middle of the command, which is a syntax error, and runs nothing.

use std::fmt::Write as _;
use std::io::{self, PipeReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Pid, Uid, User, getegid, geteuid};
use rustix::process::PidfdFlags;

use super::job::Job;
use super::store::Started;

/// Where programs are looked up, unless the job says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who a job runs as.
#[derive(Clone, Debug)]
pub(super) struct JobUser {
    name: String,
    uid: Uid,
    gid: Gid,
    home: PathBuf,
    shell: PathBuf,
    /// Program that changes to the user, if the running user is another one.
    setpriv: Option<PathBuf>,
}

impl JobUser {
    /// The user `name`, or the running user.
    ///
    /// # Errors
    /// Why jobs cannot run as this user.
    pub(super) fn find(name: Option<&str>) -> Result<Self, String> {
        let running = geteuid();
        let Some(name) = name else {
            let user = User::from_uid(running).ok().flatten();
            return Ok(user.map_or_else(
                || Self {
                    name: running.to_string(),
                    uid: running,
                    gid: getegid(),
                    home: "/".into(),
                    shell: "/bin/sh".into(),
                    setpriv: None,
                },
                |user| Self::from_entry(user, None),
            ));
        };
        let user = User::from_name(name)
            .map_err(|errno| format!("user `{name}` cannot be looked up: {errno}"))?
            .ok_or_else(|| {
                format!("user `{name}` does not exist: expected a user of this host; type `adduser --system {name}`")
            })?;
        if user.uid == running {
            return Ok(Self::from_entry(user, None));
        }
        if !running.is_root() {
            return Err(format!(
                "only root can run jobs as `{name}`, this is uid {running}: start it as root or leave the key out"
            ));
        }
        let setpriv = find_program("setpriv", PATH, Path::new("/")).ok_or(
            "`setpriv` is not in the PATH: expected util-linux; type `apt-get install util-linux`",
        )?;
        Ok(Self::from_entry(user, Some(setpriv)))
    }

    fn from_entry(user: User, setpriv: Option<PathBuf>) -> Self {
        Self {
            name: user.name,
            uid: user.uid,
            gid: user.gid,
            home: user.dir,
            shell: user.shell,
            setpriv,
        }
    }

    /// Where a job begins: the user's home, or `/` if there is none.
    fn directory(&self) -> &Path {
        if self.home.is_dir() {
            &self.home
        } else {
            Path::new("/")
        }
    }

    /// A shell as this user.
    fn shell(&self) -> Command {
        match &self.setpriv {
            None => Command::new("/bin/sh"),
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command
                    .args(["--reuid", &self.uid.to_string()])
                    .args(["--regid", &self.gid.to_string(), "--init-groups"])
                    .args(["--", "/bin/sh"]);
                command
            }
        }
    }
}

/// A job that is ready to run and waits for its command.
#[derive(Debug)]
pub(super) struct Gated {
    /// Its first process, which leads its process group.
    pub(super) child: Child,
    /// Where it waits for its command.
    pub(super) gate: ChildStdin,
    /// What it writes.
    pub(super) output: PipeReader,
    /// What it is to be told: see [`script`].
    pub(super) script: String,
}

/// Starts the gate of a job.
///
/// # Errors
/// Why the job cannot be run.
pub(super) fn start_gated(id: &str, job: &Job, user: &JobUser) -> io::Result<Gated> {
    let path = job.env.get("PATH").map_or(PATH, String::as_str);
    let program = job.command.first().map_or("", String::as_str);
    if find_program(program, path, user.directory()).is_none() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("no program `{program}` in `{path}`"),
        ));
    }
    let (output, writer) = io::pipe()?;
    let mut command = user.shell();
    command
        .env_clear()
        .env("PATH", PATH)
        .env("LANG", "C.UTF-8")
        .env("HOME", &user.home)
        .env("USER", &user.name)
        .env("LOGNAME", &user.name)
        .env("SHELL", &user.shell)
        .env("FARMHAND_JOB_ID", id)
        .env("FARMHAND_JOB_NAME", &job.name)
        .current_dir(user.directory())
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command.spawn()?;
    let gate = child
        .stdin
        .take()
        .expect("standard input was made a pipe above");
    Ok(Gated {
        child,
        gate,
        output,
        script: script(job),
    })
}

/// The job as one compound command of a shell. The braces are the gate: a part of it is no command.
/// Variables are set here, behind the change of user, and never stand in anybody's arguments.
fn script(job: &Job) -> String {
    let mut script = String::from("{\numask 022\n");
    let mut line = |words: std::fmt::Arguments<'_>| {
        script.write_fmt(words).expect("a String takes any text");
    };
    for (name, value) in &job.env {
        line(format_args!("export {name}={}\n", quoted(value)));
    }
    line(format_args!("exec"));
    for argument in &job.command {
        line(format_args!(" {}", quoted(argument)));
    }
    line(format_args!(" </dev/null\n}}\n"));
    script
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The file that `execvp` would run.
fn find_program(name: &str, path: &str, directory: &Path) -> Option<PathBuf> {
    let is_program = |file: &PathBuf| {
        file.metadata()
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(directory.join(name)).filter(is_program);
    }
    path.split(':')
        .map(|folder| directory.join(folder).join(name))
        .find(is_program)
}

/// What identifies the process `pid` on this host.
///
/// # Errors
/// If there is no such process.
pub(super) fn identify(pid: u32, now: jiff::Timestamp) -> io::Result<Started> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    Ok(Started {
        at: now,
        boot_id: boot_id()?,
        pid,
        start_ticks: start_ticks(pid)?,
    })
}

fn boot_id() -> io::Result<String> {
    Ok(fs_err::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// When `pid` started, in clock ticks since boot: field 22 of `proc(5)`.
fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program, in parentheses, may have any character in it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields
        .split_ascii_whitespace()
        .nth(19)
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| io::Error::other(format!("`/proc/{pid}/stat` has no start time")))
}

/// A process group of ours. Only [`Group::of_unreaped`] and [`Group::of_recorded`] make one: both
/// know that the number means that group and no later one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group(Pid);

impl Group {
    /// The group that `child` leads. Its number stays its own until the child is reaped.
    pub(super) fn of_unreaped(child: &Child) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        Ok(Self(Pid::from_raw(pid)))
    }

    /// The group of a job of a dead taker, with a descriptor of its leader, if the leader still is
    /// the process that was recorded.
    pub(super) fn of_recorded(started: &Started) -> Option<(Self, std::os::fd::OwnedFd)> {
        if started.pid <= 1 || boot_id().ok()? != started.boot_id {
            return None;
        }
        let pid = rustix::process::Pid::from_raw(started.pid)?;
        let leader = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // After the open: the descriptor cannot come to mean another process.
        (start_ticks(started.pid).ok()? == started.start_ticks)
            .then(|| (Self(Pid::from_raw(started.pid)), leader))
    }

    /// Asks the group to end; a stopped process wakes up to hear it.
    pub(super) fn terminate(self) {
        self.signal(Signal::SIGTERM);
        self.signal(Signal::SIGCONT);
    }

    /// Ends the group.
    pub(super) fn kill(self) {
        self.signal(Signal::SIGKILL);
    }

    fn signal(self, signal: Signal) {
        // An empty group is what we want. A process that may not be signalled (it changed its user)
        // is a leftover for the sweep, which runs as root.
        killpg(self.0, signal).unwrap_or(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(command: &[&str]) -> Job {
        Job {
            name: "x".into(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            env: [("A".to_owned(), "it's $HOME".to_owned())].into(),
        }
    }

    #[test]
    fn the_script_is_one_compound_command() {
        insta::assert_snapshot!(script(&job(&["echo", "a b", "it's", "", "$HOME\n"])));
    }

    #[test]
    fn no_part_of_the_script_runs_anything() {
        let directory = tempfile::tempdir().unwrap();
        let mark = directory.path().join("ran");
        let script = script(&job(&["touch", mark.to_str().unwrap(), "/dev/null"]));
        let whole = script.trim_end().len();
        for length in 0..=whole {
            let mut shell = Command::new("/bin/sh")
                .stdin(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut gate = shell.stdin.take().unwrap();
            io::Write::write_all(&mut gate, &script.as_bytes()[..length]).unwrap();
            drop(gate);
            shell.wait().unwrap();
            assert_eq!(mark.exists(), length == whole, "{length} bytes of {whole}");
        }
    }

    #[test]
    fn a_process_of_another_start_time_or_boot_is_not_ours() {
        let mut child = Command::new("sleep")
            .arg("60")
            .process_group(0)
            .spawn()
            .unwrap();
        let started = identify(child.id(), jiff::Timestamp::UNIX_EPOCH).unwrap();
        let later = Started {
            start_ticks: started.start_ticks + 1,
            ..started.clone()
        };
        let before = Started {
            boot_id: "another".into(),
            ..started.clone()
        };
        let init = Started {
            pid: 1,
            ..started.clone()
        };
        let group = Group::of_recorded(&started).map(|(group, _)| group);
        assert!(Group::of_recorded(&later).is_none());
        assert!(Group::of_recorded(&before).is_none());
        assert!(Group::of_recorded(&init).is_none());
        group.unwrap().kill();
        assert!(!child.wait().unwrap().success());
        assert!(Group::of_recorded(&started).is_none());
    }

    #[test]
    fn a_user_that_does_not_exist_is_named() {
        let error = JobUser::find(Some("no-such-user")).unwrap_err();
        assert!(
            error.starts_with("user `no-such-user` does not exist"),
            "{error}"
        );
    }
}
