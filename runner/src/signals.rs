//! What is asked of a running `runner`: by people and the init system, by signals; by the fleet, as
//! [`Wishes`].
//!
//! | signal | asks for |
//! |---|---|
//! | SIGTERM, SIGINT | end the current task gracefully and stop; the second time: at once |
//! | SIGUSR2 | drain: finish the job, then stop |
//! | SIGHUP | read the configuration again before the next run |
//! | SIGUSR1 | say what is going on |

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal as Nix;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

/// Whether and how to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Not asked for.
    #[default]
    No,
    /// With the grace period.
    Gracefully,
    /// Without.
    AtOnce,
}

#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    stop: Stop,
    drain: bool,
    /// The provisioner wants no further job to be taken.
    hold: bool,
    /// The cloud takes the instance back.
    interrupted: bool,
    /// What runs is to end now, and be dead by then.
    leave: Option<Instant>,
}

/// What has been asked so far.
#[derive(Clone, Debug)]
pub struct Requests {
    asked: watch::Receiver<Asked>,
    reload: Arc<AtomicBool>,
}

impl Requests {
    /// Whether to stop.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.asked.borrow().stop
    }

    /// Whether to take no further job, and then to stop.
    #[must_use]
    pub fn drain(&self) -> bool {
        self.asked.borrow().drain
    }

    /// Whether to take no further job for now, and to wait. This may be taken back.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let asked = self.asked.borrow();
        asked.hold || asked.interrupted
    }

    /// Whether to take no further job, for whatever reason.
    #[must_use]
    pub fn takes_no_job(&self) -> bool {
        self.drain() || self.is_held()
    }

    /// When what runs must be dead, if it is to end because the cloud takes the instance back.
    #[must_use]
    pub fn leave(&self) -> Option<Instant> {
        self.asked.borrow().leave
    }

    /// Whether no further task may start.
    #[must_use]
    pub fn ends_run(&self) -> bool {
        let asked = self.asked.borrow();
        asked.stop != Stop::No || asked.leave.is_some()
    }

    /// Returns when it is asked to stop.
    pub async fn stopped(&mut self) {
        while self.stop() == Stop::No {
            self.changed().await;
        }
    }

    /// Whether the configuration is to be read again; asking takes the request.
    #[must_use]
    pub fn take_reload(&self) -> bool {
        self.reload.swap(false, Ordering::Relaxed)
    }

    /// Returns when something new is asked.
    pub async fn changed(&mut self) {
        if self.asked.changed().await.is_err() {
            // Nobody can ask any more.
            std::future::pending::<()>().await;
        }
    }

    /// Requests that nobody ever makes.
    #[must_use]
    pub fn none() -> Self {
        let (_, asked) = watch::channel(Asked::default());
        Self {
            asked,
            reload: Arc::default(),
        }
    }
}

/// How the fleet asks.
#[derive(Clone, Debug)]
pub struct Wishes {
    sender: watch::Sender<Asked>,
}

impl Wishes {
    /// Asks to take no further job, or takes that back.
    pub fn hold(&self, hold: bool) {
        self.sender
            .send_if_modified(|asked| std::mem::replace(&mut asked.hold, hold) != hold);
    }

    /// Says whether the cloud takes the instance back, and from the moment on at which what runs is
    /// to end, when it must be dead.
    pub fn interrupted(&self, interrupted: bool, leave: Option<Instant>) {
        self.sender.send_modify(|asked| {
            asked.interrupted = interrupted;
            asked.leave = leave;
        });
    }
}

/// Starts to listen. `describe` is called for SIGUSR1 and says what is going on.
///
/// # Errors
/// If a signal cannot be listened to.
pub fn listen(describe: impl Fn() -> String + Send + 'static) -> io::Result<(Requests, Wishes)> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut user_1 = signal(SignalKind::user_defined1())?;
    let mut user_2 = signal(SignalKind::user_defined2())?;
    catch_ignored()?;
    let (sender, asked) = watch::channel(Asked::default());
    let reload = Arc::new(AtomicBool::new(false));
    let requests = Requests {
        asked,
        reload: Arc::clone(&reload),
    };
    let wishes = Wishes {
        sender: sender.clone(),
    };
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = received(&mut terminate) => stop_more(&sender),
                () = received(&mut interrupt) => stop_more(&sender),
                () = received(&mut user_2) => {
                    info!("will stop after the current job");
                    sender.send_modify(|asked| asked.drain = true);
                }
                () = received(&mut hang_up) => {
                    info!("will read the configuration again before the next run");
                    reload.store(true, Ordering::Relaxed);
                }
                () = received(&mut user_1) => info!(state = describe(), "state"),
            }
        }
    });
    Ok((requests, wishes))
}

/// Catches, and drops, the signals that whoever started `runner` ignored: what ignores a signal
/// passes that on to its children, what catches it does not. `nohup` ignores SIGHUP, a shell
/// SIGINT and SIGQUIT for what it starts in the background.
fn catch_ignored() -> io::Result<()> {
    let status = fs_err::read_to_string("/proc/self/status")?;
    for number in ignored(&status) {
        // What it would tell is dropped; the handler stays.
        drop(signal(SignalKind::from_raw(number))?);
    }
    Ok(())
}

/// The signals in the line `SigIgn` of `/proc/PID/status` (proc(5)) that a program can catch.
fn ignored(status: &str) -> Vec<i32> {
    // Faults end a process whatever it does; SIGPIPE is ignored by the standard library for itself
    // and reset in every child; 32 and 33 belong to the C library.
    let not_ours = [Nix::SIGILL, Nix::SIGFPE, Nix::SIGSEGV, Nix::SIGPIPE]
        .map(|signal| signal as i32)
        .into_iter()
        .chain([32, 33])
        .collect::<Vec<_>>();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default();
    (1..=64)
        .filter(|number| mask & (1 << (number - 1)) != 0 && !not_ours.contains(number))
        .collect()
}

async fn received(signal: &mut Signal) {
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

fn stop_more(sender: &watch::Sender<Asked>) {
    sender.send_modify(|asked| {
        asked.stop = match asked.stop {
            Stop::No => Stop::Gracefully,
            Stop::Gracefully | Stop::AtOnce => Stop::AtOnce,
        };
        info!(stop = ?asked.stop, "asked to stop");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        let status = "Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t8000000180001007\n";
        // Without 13, which is SIGPIPE, and 32 and 33.
        assert_eq!(ignored(status), [1, 2, 3, 64]);
        assert!(ignored("SigIgn:\t0000000000000000\n").is_empty());
        assert!(ignored("nonsense").is_empty());
    }
}
