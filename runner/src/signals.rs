//! What people and the init system ask of a running `runner`, by signals.
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

    /// Whether to take no further job.
    #[must_use]
    pub fn drain(&self) -> bool {
        self.asked.borrow().drain
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

/// Starts to listen. `describe` is called for SIGUSR1 and says what is going on.
///
/// # Errors
/// If a signal cannot be listened to.
pub fn listen(describe: impl Fn() -> String + Send + 'static) -> io::Result<Requests> {
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
    Ok(requests)
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
