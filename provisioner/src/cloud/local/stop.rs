//! Ends instances: one, as the cloud is asked to, or all of a directory.
//!
//! A process is signalled only if the kernel says that it holds the lock of an instance's directory,
//! and only by a pidfd that was opened while it did.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::time::Instant;

use super::disk::{Alive, Home, Phase, Place, Status};

/// What a killed supervisor leaves is gone within this: the kernel does it.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// What came of ending everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Instances that were there.
    pub instances: usize,
    /// Of these, those that did not end by themselves and were killed.
    pub killed: usize,
    /// Of these, those that are still there.
    pub left: usize,
}

/// Asks the instance to end, or ends it before it began. The cloud's lock must be held.
pub(super) fn end_one(place: &Place, now: Timestamp) -> io::Result<()> {
    if let Some(supervisor) = place.supervisor()? {
        signal(&supervisor, Signal::TERM);
        return Ok(());
    }
    if place.status()?.is_some() {
        // It has ended, or its first process is ending what its supervisor left.
        return Ok(());
    }
    match place.claim() {
        Ok(_claim) => place.write_status(&Status {
            phase: Phase::Ended,
            since: now,
            reason: Some("ended before it had started".into()),
            interrupted: false,
        }),
        // Its supervisor came first.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => end_one(place, now),
        Err(error) => Err(error),
    }
}

/// Ends every instance of the local cloud in `directory` and waits until nothing of them is left.
/// Those that have not ended after `patience` are killed. Meanwhile nothing can be launched there.
///
/// # Errors
/// If the directory cannot be read or locked.
pub async fn stop_all(
    directory: &Path,
    patience: Duration,
    clock: fn() -> Timestamp,
) -> io::Result<Stopped> {
    let home = Home::new(directory.to_owned());
    if !directory.is_dir() {
        return Ok(Stopped::default());
    }
    let locking = home.clone();
    let _lock = tokio::task::spawn_blocking(move || locking.lock())
        .await
        .map_err(io::Error::other)??;
    for token in home.open_launches()? {
        home.close_launch(&token)?;
    }
    let mut waiting = Vec::new();
    for place in home.places()? {
        if place.alive()? != Alive::Nobody || place.status()?.is_none() {
            let supervisor = place.supervisor()?.map(Arc::new);
            end_one(&place, clock())?;
            waiting.push((place, supervisor));
        }
    }
    let mut stopped = Stopped {
        instances: waiting.len(),
        ..Stopped::default()
    };
    let deadline = Instant::now() + patience;
    for (place, supervisor) in waiting {
        let ended = match &supervisor {
            Some(supervisor) => {
                let ended = ended(supervisor, deadline).await;
                if !ended {
                    stopped.killed += 1;
                    signal(supervisor, Signal::KILL);
                }
                ended
            }
            None => false,
        };
        if !ended && !is_gone(&place).await? {
            stopped.left += 1;
        }
    }
    Ok(stopped)
}

/// Whether the process has ended by `deadline`.
async fn ended(process: &Arc<OwnedFd>, deadline: Instant) -> bool {
    let process = Arc::clone(process);
    let waited = tokio::task::spawn_blocking(move || {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or_default();
            // A pidfd can be read when its process has ended.
            match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => {}
                polled => return polled == Ok(1),
            }
        }
    });
    waited.await.unwrap_or(false)
}

/// Whether nothing of the instance lives, once its first process had time to end the rest.
async fn is_gone(place: &Place) -> io::Result<bool> {
    let deadline = Instant::now() + KILL_WAIT;
    loop {
        if place.alive()? == Alive::Nobody {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        // The end of a lock cannot be waited for.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn signal(process: &OwnedFd, signal: Signal) {
    // Who has ended meanwhile has done what was wanted.
    pidfd_send_signal(process, signal).ok();
}
