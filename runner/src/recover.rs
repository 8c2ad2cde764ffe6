//! Ends what an attempt left running when its `runner` was killed in the middle of it.
//!
//! The processes have init as their parent by then. They are known by the cgroup of the attempt
//! and by the run id in their environment, which no other run of any `runner` has; both are checked
//! again on an open pidfd before a signal is sent, so that a recycled pid is never hit. What wiped
//! its environment and ran without a cgroup is left to `cleanslate`.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::state::RunningAttempt;

/// How often the process table is read again for what was forked meanwhile. Three passes ended
/// every fork storm tried; a process in uninterruptible sleep is not worth more.
const PASSES: u32 = 10;

/// How long the killed processes of one pass may take to disappear.
const PATIENCE: Duration = Duration::from_secs(3);

/// What became of the processes of an attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// How many were killed.
    pub killed: usize,
    /// How many are still there.
    pub left: usize,
}

/// Kills every process of `attempt` and waits until they are gone.
#[must_use]
pub fn end_attempt(attempt: &RunningAttempt) -> Recovered {
    let mut killed = BTreeSet::new();
    for _ in 0..PASSES {
        // Before anything is killed, so that what is killed is counted.
        let found = processes_of(attempt);
        if let Some(cgroup) = &attempt.cgroup {
            // Gone with its processes, or never there.
            fs_err::write(cgroup.join("cgroup.kill"), "1").ok();
        }
        if found.is_empty() {
            remove(attempt.cgroup.as_deref());
            return Recovered {
                killed: killed.len(),
                left: 0,
            };
        }
        for (pid, pidfd) in &found {
            // It may have ended since.
            pidfd_send_signal(pidfd, Signal::KILL).ok();
            killed.insert(*pid);
        }
        for (_, pidfd) in &found {
            wait_for_end(pidfd);
        }
    }
    Recovered {
        killed: killed.len(),
        left: processes_of(attempt).len(),
    }
}

fn remove(cgroup: Option<&Path>) {
    if let Some(cgroup) = cgroup {
        // Another runner may have removed it already.
        fs_err::remove_dir(cgroup).ok();
    }
}

fn wait_for_end(pidfd: &OwnedFd) {
    let patience = Timespec::try_from(PATIENCE).expect("three seconds fit");
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    // Whether it ended is seen in the next pass.
    poll(&mut fds, Some(&patience)).ok();
}

/// The living processes of the attempt, each held by a pidfd that was open before it was checked.
fn processes_of(attempt: &RunningAttempt) -> Vec<(i32, OwnedFd)> {
    let Ok(entries) = fs_err::read_dir("/proc") else {
        return Vec::new();
    };
    let own = rustix::process::getpid();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .filter(|pid| *pid != own && !pid.is_init())
        .filter(|pid| belongs_to(*pid, attempt))
        .filter_map(|pid| {
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
            belongs_to(pid, attempt).then_some((pid.as_raw_nonzero().get(), pidfd))
        })
        .collect()
}

fn belongs_to(pid: Pid, attempt: &RunningAttempt) -> bool {
    let process = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    let cookie = format!("RUNNER_RUN_ID={}", attempt.run_id);
    let has_cookie = fs_err::read(process.join("environ")).is_ok_and(|environ| {
        environ
            .split(|byte| *byte == 0)
            .any(|entry| entry == cookie.as_bytes())
    });
    has_cookie || in_cgroup(pid, attempt)
}

fn in_cgroup(pid: Pid, attempt: &RunningAttempt) -> bool {
    attempt.cgroup.as_ref().is_some_and(|cgroup| {
        let pid = pid.as_raw_nonzero().to_string();
        fs_err::read_to_string(cgroup.join("cgroup.procs"))
            .is_ok_and(|procs| procs.lines().any(|line| line == pid))
    })
}
