//! Ends processes that were judged leftovers, and nothing else.
//!
//! A process number may have passed to another process since it was judged. So each is first held
//! by a pidfd, then identified again: if the number still stands for a process of the same start,
//! that process lived all the while, and it is the one held. From then on only the pidfd is used.
//! A pidfd becomes readable when the last thread of its process has ended, which is also exact for
//! a process whose first thread ended before the others; nothing is polled.

use std::io;
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, Resource, Rlimit, Signal, pidfd_open, pidfd_send_signal};

use crate::clock;
use crate::process::ProcessId;
use crate::sweep::{Ended, Leftover, Manner};
use crate::table::{ProcTable, TableError};
use crate::users::Users;

/// How long SIGKILL may take. Freeing memory takes about a tenth of a second per gibibyte, and a
/// process that waits for a broken disk never ends; after this it has survived.
pub const KILL_WAIT: Duration = Duration::from_secs(5);

/// File descriptors kept for everything but pidfds; about ten are used.
const SPARE_DESCRIPTORS: u64 = 32;

/// Processes held at once though the limit leaves no room for them, so that a sweep gets on.
const LEAST_ROOM: usize = 8;

/// Why nothing could be ended.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// The process table could not be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The kernel did not let processes be held or waited for.
    #[error("cannot {what}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Ends `leftovers`. For each, how it ended; nothing if it was gone before it could be signalled,
/// if its number stands for another process now, or if it belongs to none of `users` any more.
///
/// If there are more of them than this process may have files open and it may not raise that limit,
/// the rest are left for another call, as if they had been gone.
///
/// # Errors
/// If processes cannot be held or waited for.
pub fn end(
    table: &ProcTable,
    users: &Users,
    leftovers: &[Leftover],
    manner: Manner,
) -> Result<Vec<Option<Ended>>, KillError> {
    let room = make_room(leftovers.len());
    let mut held = Held::new(leftovers.len())?;
    for (index, leftover) in leftovers.iter().enumerate().take(room) {
        if let Some(pidfd) = hold(table, users, leftover.id)? {
            match manner {
                Manner::Ask { .. } => {
                    signal(&pidfd, Signal::TERM);
                    // A stopped process acts on SIGTERM only once it is continued.
                    signal(&pidfd, Signal::CONT);
                }
                Manner::Kill => signal(&pidfd, Signal::KILL),
            }
            held.add(index, pidfd)?;
        }
    }
    match manner {
        Manner::Ask { grace } => {
            held.wait(grace, Ended::Terminated)?;
            held.pidfds
                .iter()
                .flatten()
                .for_each(|pidfd| signal(pidfd, Signal::KILL));
            held.wait(KILL_WAIT, Ended::Killed)?;
        }
        Manner::Kill => held.wait(KILL_WAIT, Ended::Killed)?,
    }
    Ok(held.fates())
}

/// A pidfd of the process `id`, if that is still there and still belongs to one of `users`.
fn hold(table: &ProcTable, users: &Users, id: ProcessId) -> Result<Option<OwnedFd>, KillError> {
    let Some(pid) = i32::try_from(id.pid.0)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    else {
        return Ok(None);
    };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(None),
        Err(errno) => return Err(kernel("open a pidfd (Linux 5.3 or later is needed)", errno)),
    };
    // Only now: the pidfd pins whatever process has the number at this moment.
    Ok((table.identify(id.pid, users)? == Some(id)).then_some(pidfd))
}

/// Sends a signal. What cannot be signalled, for whatever reason, shows by not ending.
fn signal(pidfd: &OwnedFd, signal: Signal) {
    if let Err(errno) = pidfd_send_signal(pidfd, signal)
        && errno != Errno::SRCH
    {
        tracing::warn!(error = %errno, ?signal, "a leftover could not be signalled");
    }
}

/// Lets this process have a file open per leftover; how many of them it may have.
///
/// The usual limit is 1,024. Root may raise it as far as the kernel's `fs.nr_open`, unless it
/// lacks the capability `CAP_SYS_RESOURCE`, as in many containers.
fn make_room(leftovers: usize) -> usize {
    let wanted = leftovers as u64 + SPARE_DESCRIPTORS;
    let now = rustix::process::getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= wanted);
    if enough(now.current) {
        return leftovers;
    }
    let hard = if enough(now.maximum) {
        now.maximum
    } else {
        Some(wanted)
    };
    let raised = Rlimit {
        current: Some(wanted),
        maximum: hard,
    };
    let soft = Rlimit {
        current: now.maximum,
        maximum: now.maximum,
    };
    let limit = match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => return leftovers,
        Err(_) => match rustix::process::setrlimit(Resource::Nofile, soft) {
            Ok(()) => now.maximum,
            Err(_) => now.current,
        },
    };
    let room = limit.unwrap_or(u64::MAX).saturating_sub(SPARE_DESCRIPTORS);
    usize::try_from(room).unwrap_or(usize::MAX).max(LEAST_ROOM)
}

/// Processes held by pidfds, until they have ended.
struct Held {
    epoll: OwnedFd,
    /// Of each process that is still there, by index.
    pidfds: Vec<Option<OwnedFd>>,
    ended: Vec<Option<Ended>>,
    left: usize,
}

impl Held {
    fn new(count: usize) -> Result<Self, KillError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| kernel("wait for processes", errno))?;
        Ok(Self {
            epoll,
            pidfds: std::iter::repeat_with(|| None).take(count).collect(),
            ended: vec![None; count],
            left: 0,
        })
    }

    fn add(&mut self, index: usize, pidfd: OwnedFd) -> Result<(), KillError> {
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &pidfd, data, epoll::EventFlags::IN)
            .map_err(|errno| kernel("wait for a process", errno))?;
        self.pidfds[index] = Some(pidfd);
        self.left += 1;
        Ok(())
    }

    /// Waits until all have ended, but no longer than `limit` for all of them together.
    fn wait(&mut self, limit: Duration, how: Ended) -> Result<(), KillError> {
        let deadline = clock::monotonic() + limit;
        let mut events = Vec::with_capacity(256);
        while self.left > 0 {
            let remaining = deadline.saturating_sub(clock::monotonic());
            let timeout = Timespec::try_from(remaining).ok();
            let room = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, room, timeout.as_ref()) {
                Ok(0) if remaining.is_zero() => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(kernel("wait for processes", errno)),
            }
            for event in events.drain(..) {
                let index = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
                // Closing the pidfd also takes it out of the epoll set.
                if let Some(pidfd) = self.pidfds.get_mut(index).and_then(Option::take) {
                    drop(pidfd);
                    self.ended[index] = Some(how);
                    self.left -= 1;
                }
            }
        }
        Ok(())
    }

    fn fates(self) -> Vec<Option<Ended>> {
        self.pidfds
            .iter()
            .zip(self.ended)
            .map(|(pidfd, ended)| {
                if pidfd.is_some() {
                    Some(Ended::Survived)
                } else {
                    ended
                }
            })
            .collect()
    }
}

fn kernel(what: &'static str, errno: Errno) -> KillError {
    KillError::Kernel {
        what,
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Pid;
    use std::process::{Child, Command};

    /// A child that runs until its standard input closes, and the users it belongs to.
    fn child() -> (Child, Users, ProcessId, ProcTable) {
        let child = Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let users = Users::from_iter([rustix::process::getuid().as_raw()]);
        let table = ProcTable::open().unwrap();
        let id = table.identify(Pid(child.id()), &users).unwrap().unwrap();
        (child, users, id, table)
    }

    fn dismiss(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn the_process_that_was_judged_is_held() {
        let (child, users, id, table) = child();
        assert!(hold(&table, &users, id).unwrap().is_some());
        dismiss(child);
    }

    #[test]
    fn a_number_that_passed_to_another_process_is_not_held() {
        let (child, users, id, table) = child();
        let earlier = ProcessId {
            start_time: id.start_time - 1,
            ..id
        };
        let later = ProcessId {
            start_time: id.start_time + 1,
            ..id
        };
        assert!(hold(&table, &users, earlier).unwrap().is_none());
        assert!(hold(&table, &users, later).unwrap().is_none());
        dismiss(child);
    }

    #[test]
    fn a_process_that_passed_to_another_user_is_not_held() {
        let (child, _, id, table) = child();
        assert!(
            hold(&table, &Users::from_iter([61_099]), id)
                .unwrap()
                .is_none()
        );
        dismiss(child);
    }

    #[test]
    fn a_process_that_is_gone_is_not_held() {
        let (child, users, id, table) = child();
        dismiss(child);
        assert!(hold(&table, &users, id).unwrap().is_none());
    }

    #[test]
    fn a_number_no_process_can_have_is_not_held() {
        let (child, users, id, table) = child();
        for pid in [0, u32::MAX] {
            assert!(
                hold(
                    &table,
                    &users,
                    ProcessId {
                        pid: Pid(pid),
                        ..id
                    }
                )
                .unwrap()
                .is_none()
            );
        }
        dismiss(child);
    }

    #[test]
    fn waiting_ends_with_the_last_process_and_not_with_the_limit() {
        let (child, users, id, table) = child();
        let mut held = Held::new(1).unwrap();
        held.add(0, hold(&table, &users, id).unwrap().unwrap())
            .unwrap();
        dismiss(child);
        // An hour: the test would time out if the wait did not end by event.
        held.wait(Duration::from_secs(3600), Ended::Terminated)
            .unwrap();
        assert_eq!(held.fates(), [Some(Ended::Terminated)]);
    }

    #[test]
    fn what_is_still_there_at_the_limit_has_survived() {
        let (child, users, id, table) = child();
        let mut held = Held::new(2).unwrap();
        held.add(1, hold(&table, &users, id).unwrap().unwrap())
            .unwrap();
        held.wait(Duration::from_millis(1), Ended::Killed).unwrap();
        assert_eq!(held.fates(), [None, Some(Ended::Survived)]);
        dismiss(child);
    }
}
