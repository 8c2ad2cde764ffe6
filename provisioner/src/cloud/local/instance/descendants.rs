//! Ends every process below this one, and none besides.

use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::time::{Instant, sleep_until};

/// How long killed processes may take to disappear. The kernel needs some 40 µs each; only a
/// process in uninterruptible sleep (dead disk or network file system) takes longer.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// Whether there are children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Children {
    /// None, and so no descendant either, if this process is a subreaper.
    None,
    /// Some.
    Some,
}

/// Reaps every child that has ended, and shows each to `ended`.
pub(super) fn reap(mut ended: impl FnMut(Pid, WaitStatus)) -> Children {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => ended(pid, status),
            Err(Errno::CHILD) => return Children::None,
            Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return Children::Some,
        }
    }
}

/// Kills and reaps until no child is left; what a killed one had started becomes a child. Returns
/// how many would not go. This process must be a subreaper, and reap its children nowhere else.
pub(super) async fn end(child_ended: &mut tokio::signal::unix::Signal) -> usize {
    let deadline = Instant::now() + STUCK_AFTER;
    loop {
        if reap(|_, _| {}) == Children::None {
            return 0;
        }
        let children = children();
        for child in &children {
            // It may have ended since; as our child it keeps its number until it is reaped.
            rustix::process::kill_process(*child, Signal::KILL).ok();
        }
        tokio::select! {
            _ = child_ended.recv() => {}
            () = sleep_until(deadline) => return children.len(),
        }
    }
}

/// All children of this process, of whatever thread, ended ones included.
fn children() -> Vec<Pid> {
    let threads = fs_err::read_dir("/proc/self/task").into_iter().flatten();
    let lists = threads
        .flatten()
        // A thread that ended meanwhile has left its children to another.
        .filter_map(|thread| fs_err::read_to_string(thread.path().join("children")).ok());
    let mut children = Vec::new();
    for list in lists {
        let pids = list.split_ascii_whitespace();
        children.extend(pids.filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw)));
    }
    children
}
