//! One child at a time, owned from its start until nothing it started is left.
//!
//! # How the end of everything is known
//!
//! `runner` is a *child subreaper*: a process whose parent dies becomes a child of `runner`,
//! whatever session, group or user it moved to. So as soon as `runner` has no child left, no
//! descendant is left either; [`Supervisor::run`] returns only then. No process table is searched.
//!
//! The first process is left unreaped until its process group was killed. Its pid, which is also
//! the number of the group, can therefore not be given to anybody else while signals are sent to it.
//!
//! # How it is ended
//!
//! On a timeout, a request to stop, or when the cloud takes the instance back: SIGTERM and SIGCONT to the process group and to adopted
//! children, then up to `grace_period`, then SIGKILL to the group, to every child, and to the
//! attempt's cgroup where cgroup v2 can be written. What is left when the first process ended by
//! itself gets SIGKILL at once: a task that wants to leave a service behind asks the init system.
//!
//! Ends are noticed by SIGCHLD, not by polling.

mod capture;
mod cgroup;
mod launch;

use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tracing::warn;

use crate::signals::{Requests, Stop};
use capture::Capture;

pub use capture::Output;
pub use cgroup::{Cgroup, directory_of, own_directory};
pub use launch::{Launch, close_inherited_descriptors, standard_umask};

/// How long killed processes may take to disappear. The kernel needs some 40 µs each; only a
/// process in uninterruptible sleep (dead disk or network file system) takes longer.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// How the first process of a child ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// It could not be started.
    NotStarted(String),
}

/// Why a child was ended before it ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It ran longer than its timeout.
    TimedOut,
    /// `runner` was asked to stop.
    Stopped,
    /// The cloud takes the instance back.
    Interrupted,
}

/// What is known of a child once nothing of it is left.
#[derive(Debug)]
pub struct Finished {
    /// How its first process ended.
    pub ending: Ending,
    /// Why it was ended early, if it was.
    pub cut: Option<Cut>,
    /// From start until nothing was left.
    pub duration: Duration,
    /// What it wrote.
    pub output: Output,
    /// Processes that were still there when the first one had ended.
    pub leftovers: u32,
    /// Processes that are still there although they were killed.
    pub stuck: Vec<i32>,
    /// Whether it was told to take no further job.
    pub drained: bool,
}

/// Bounds of one child.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest it may run.
    pub timeout: Option<Duration>,
    /// From SIGTERM to SIGKILL.
    pub grace_period: Duration,
    /// The request to stop that ends it. A hook is bounded by its timeout and ended by the second
    /// one only, so that it can say how the task ended that was ended by the first.
    pub ended_by: Stop,
    /// Signal to send when `runner` is drained.
    pub drain_signal: Option<nix::sys::signal::Signal>,
}

/// Starts children and ends them. There is one in a process, since it reaps every child.
#[derive(Debug)]
pub struct Supervisor {
    child_ended: tokio::signal::unix::Signal,
    cgroup: Option<Cgroup>,
}

impl Supervisor {
    /// Makes this process the subreaper of its descendants. With `cgroup`, children live in it.
    ///
    /// # Errors
    /// If the kernel refuses, or there is no runtime for signals.
    pub fn new(cgroup: Option<Cgroup>) -> std::io::Result<Self> {
        nix::sys::prctl::set_child_subreaper(true)?;
        Ok(Self {
            child_ended: signal(SignalKind::child())?,
            cgroup,
        })
    }

    /// The directory of the children's cgroup, if they have one.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Runs one child to its end, and everything it started.
    pub async fn run(
        &mut self,
        launch: &Launch,
        limits: Limits,
        requests: &mut Requests,
    ) -> Finished {
        let started = Instant::now();
        let (mut capture, pid) = match start(launch) {
            Ok(started) => started,
            Err(error) => {
                return Finished {
                    ending: Ending::NotStarted(why_not(launch, &error)),
                    cut: None,
                    duration: started.elapsed(),
                    output: Output::default(),
                    leftovers: 0,
                    stuck: Vec::new(),
                    drained: false,
                };
            }
        };
        if let Some(cgroup) = &self.cgroup {
            cgroup.add(pid);
        }
        let mut drained = false;
        let (status, cut) = self
            .watch(pid, limits, requests, &mut capture, &mut drained)
            .await;
        let (leftovers, stuck) = self.end_everything(pid).await;
        capture.drain();
        Finished {
            ending: status.map_or(Ending::Signalled(Signal::KILL.as_raw()), |status| {
                ending(&status)
            }),
            cut,
            duration: started.elapsed(),
            output: capture.into_output(),
            leftovers,
            stuck,
            drained,
        }
    }

    /// Returns when the first process has ended, or everything was told to and its grace is over.
    async fn watch(
        &mut self,
        pid: Pid,
        limits: Limits,
        requests: &mut Requests,
        capture: &mut Capture,
        drained: &mut bool,
    ) -> (Option<WaitIdStatus>, Option<Cut>) {
        let mut cut = None;
        let mut deadline = limits.timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let status = peek(pid);
            // Who was told to end has the whole grace period for all of its processes.
            if status.is_some() && (cut.is_none() || is_alone(pid)) {
                return (status, cut);
            }
            match requests.stop() {
                Stop::AtOnce => return (status, Some(cut.unwrap_or(Cut::Stopped))),
                Stop::Gracefully if cut.is_none() && limits.ended_by <= Stop::Gracefully => {
                    cut = Some(Cut::Stopped);
                    deadline = Some(Instant::now() + limits.grace_period);
                    terminate(pid);
                }
                Stop::Gracefully | Stop::No => {}
            }
            if let Some(dead_by) = requests.leave()
                && limits.ended_by <= Stop::Gracefully
            {
                if cut.is_none() {
                    cut = Some(Cut::Interrupted);
                    deadline = Some(Instant::now() + limits.grace_period);
                    terminate(pid);
                }
                deadline = deadline.map(|deadline| deadline.min(dead_by));
            }
            if requests.takes_no_job()
                && !*drained
                && let Some(signal) = limits.drain_signal
            {
                *drained = true;
                send_raw(pid, signal);
            }
            tokio::select! {
                biased;
                () = requests.changed() => {}
                _ = self.child_ended.recv() => {
                    if cut.is_some() || peek(pid).is_none() {
                        reap_adopted(pid);
                    }
                }
                () = at(deadline) => match cut {
                    Some(_) => return (peek(pid), cut),
                    None => {
                        cut = Some(Cut::TimedOut);
                        deadline = Some(Instant::now() + limits.grace_period);
                        terminate(pid);
                    }
                },
                () = capture.pump() => {}
            }
        }
    }

    /// Kills and reaps until no child is left. Returns how many were killed besides the first
    /// process, and those that would not go.
    async fn end_everything(&mut self, first: Pid) -> (u32, Vec<i32>) {
        // Once is enough: no process of the group can be forked past this signal, and after the
        // first process is reaped the number may be another's.
        rustix::process::kill_process_group(first, Signal::KILL).ok();
        let mut killed = 0;
        let deadline = Instant::now() + STUCK_AFTER;
        loop {
            if reap_all(first, &mut killed) == Children::None {
                return (killed, Vec::new());
            }
            if let Some(cgroup) = &self.cgroup {
                cgroup.kill();
            }
            for child in children().unwrap_or_default() {
                // It may have ended since; as our child it keeps its number until it is reaped.
                rustix::process::kill_process(child, Signal::KILL).ok();
            }
            tokio::select! {
                _ = self.child_ended.recv() => {}
                () = tokio::time::sleep_until(deadline) => {
                    let stuck: Vec<i32> = children()
                        .unwrap_or_else(|_| vec![first])
                        .into_iter()
                        .map(|pid| pid.as_raw_nonzero().get())
                        .collect();
                    warn!(?stuck, "processes are still there although they were killed");
                    return (killed, stuck);
                }
            }
        }
    }
}

fn start(launch: &Launch) -> std::io::Result<(Capture, Pid)> {
    let (capture, writer) = Capture::new()?;
    let pid = launch.spawn(writer)?;
    Ok((capture, pid))
}

fn why_not(launch: &Launch, error: &std::io::Error) -> String {
    let program = Path::new(&launch.program);
    let path = program.display();
    if error.kind() == std::io::ErrorKind::NotFound && program.is_file() {
        // The kernel means the interpreter, and people would look for the task.
        format!("the interpreter in the first line of `{path}`: {error}")
    } else {
        format!("`{path}`: {error}")
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// SIGTERM, and SIGCONT so that a stopped process can act on it.
fn terminate(pid: Pid) {
    let adopted = others(pid).unwrap_or_default();
    for signal in [Signal::TERM, Signal::CONT] {
        // Gone already is what is wanted.
        rustix::process::kill_process_group(pid, signal).ok();
        for child in &adopted {
            rustix::process::kill_process(*child, signal).ok();
        }
    }
}

fn send_raw(pid: Pid, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get());
    // Gone already is as good as told.
    nix::sys::signal::kill(pid, signal).ok();
}

/// How the first process ended, without reaping it.
fn peek(pid: Pid) -> Option<WaitIdStatus> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    rustix::process::waitid(WaitId::Pid(pid), options)
        .ok()
        .flatten()
}

fn reap(pid: Pid) {
    // Nothing else reaps children in this process, so it is there.
    rustix::process::waitid(
        WaitId::Pid(pid),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    )
    .ok();
}

/// Whether there are children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Children {
    None,
    Some,
}

/// Reaps every child that has ended, and counts those besides the first process that were killed.
/// That there is none left is the kernel's own word (`ECHILD`).
fn reap_all(first: Pid, killed: &mut u32) -> Children {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let by_us = status.terminating_signal() == Some(Signal::KILL.as_raw());
                *killed += u32::from(by_us && pid != first);
            }
            Err(Errno::CHILD) => return Children::None,
            Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return Children::Some,
        }
    }
}

/// Reaps ended children other than the first process.
fn reap_adopted(first: Pid) {
    for child in others(first).unwrap_or_default() {
        reap(child);
    }
}

/// Whether the first process is the only child. What cannot be looked up is taken for company.
fn is_alone(first: Pid) -> bool {
    others(first).is_ok_and(|others| others.is_empty())
}

/// Children besides the first process, ended ones included.
fn others(first: Pid) -> std::io::Result<Vec<Pid>> {
    let mut children = children()?;
    children.retain(|child| *child != first);
    Ok(children)
}

/// All children of this process, of whatever thread, ended ones included.
fn children() -> std::io::Result<Vec<Pid>> {
    let mut children = Vec::new();
    for thread in fs_err::read_dir("/proc/self/task")? {
        let list = fs_err::read_to_string(thread?.path().join("children"));
        // A thread that ended meanwhile has left its children to another.
        for pid in list.unwrap_or_default().split_ascii_whitespace() {
            children.extend(pid.parse().ok().and_then(Pid::from_raw));
        }
    }
    Ok(children)
}

fn ending(status: &WaitIdStatus) -> Ending {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ending::Exited(code),
        (None, Some(signal)) => Ending::Signalled(signal),
        (None, None) => Ending::Signalled(Signal::KILL.as_raw()),
    }
}
