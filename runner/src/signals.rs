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
