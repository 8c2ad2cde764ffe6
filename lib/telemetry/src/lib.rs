//! Where events go: a spool on disk, and from there every configured sink.
//!
//! [`Telemetry::record`] appends a [`Record`] to the spool and returns. A thread of its own takes
//! records from there to each sink (InfluxDB, syslog, a file of JSON lines), in order, at least
//! once. No sink can slow down `record`: what it shares with the sending side is a lock that is
//! never held while a sink is spoken to. Without sinks `record` does nothing.
//!
//! - [`config`]: the table `[telemetry]` and its faults
//! - [`spool`]: the bounded queue on disk
//! - [`mod@line`], [`syslog`]: a record as text
//! - `sink`: the connections; `sender`: when to use them
//! - [`log`]: log lines on standard error

pub mod config;
pub mod line;
pub mod log;
mod sender;
mod sink;
pub mod spool;
pub mod syslog;

pub use config::{ByteSize, Config, Fault, InfluxApi, InfluxConfig, JsonlConfig, SyslogConfig};

use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use farm_events::Record;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

use sender::{Feeder, Status, Stop};
use sink::{Sink, influx::Influx, jsonl::Jsonl, syslog::Syslog};
use spool::Spool;

/// Time for the thread to notice that it must end, on top of `flush_on_exit`.
const EXIT_SLACK: Duration = Duration::from_millis(500);

/// Takes records and sees to it that every sink gets them.
#[derive(Debug)]
pub struct Telemetry {
    /// None without sinks.
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    spool: Arc<Spool>,
    sinks: Vec<(String, Arc<Status>)>,
    flush_on_exit: Duration,
    stop: watch::Sender<Option<Instant>>,
    /// Disconnected when the thread has ended.
    ended: mpsc::Receiver<()>,
}

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The spool directory cannot be used, or another process uses it.
    #[error("cannot open the spool")]
    Spool(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The configuration has faults that [`Config::validate`] names.
    #[error("cannot use the sink `{name}`")]
    Sink {
        /// The sink.
        name: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The system gives no thread or no event queue.
    #[error("cannot start the sending thread")]
    Thread(#[source] io::Error),
}

/// How telemetry is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Records dropped before every sink had them, since the start.
    pub dropped: u64,
    /// The same, since the spool was made.
    pub dropped_ever: u64,
    /// Bytes in the spool that some sink has not taken.
    pub pending_bytes: u64,
    /// Each sink, in the order of the configuration.
    pub sinks: Vec<SinkStats>,
}

/// How one sink is doing, since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SinkStats {
    /// Kind and target.
    pub name: String,
    /// Records it took.
    pub delivered: u64,
    /// Records it refused for ever.
    pub rejected: u64,
    /// Lines of the spool that were damaged and are skipped.
    pub damaged: u64,
    /// How long it has not taken records, if it does not.
    #[serde(with = "humantime_serde")]
    pub failing_for: Option<Duration>,
    /// Why, if so.
    pub last_error: Option<String>,
}

impl Drop for Active {
    /// Without `finish` nothing is waited for.
    fn drop(&mut self) {
        self.stop.send_if_modified(|stop| {
            let is_first = stop.is_none();
            stop.get_or_insert_with(Instant::now);
            is_first
        });
    }
}

impl Telemetry {
    /// Opens the spool in `spool_dir` and starts sending. Without sinks it does neither.
    ///
    /// # Errors
    ///
    /// When the spool cannot be opened or a sink cannot be made; a sink that does not answer, or a
    /// token file that cannot be read for now, is no error.
    pub fn start(config: &Config, spool_dir: &Path) -> Result<Self, StartError> {
        if !config.has_sinks() {
            return Ok(Self { active: None });
        }
        let sinks = sinks(config)?;
        let names: Vec<String> = sinks.iter().map(|(name, _)| name.clone()).collect();
        let spool = Spool::open(spool_dir, config.spool_limit.0, &names)
            .map_err(|error| StartError::Spool(error.into()))?;
        let spool = Arc::new(spool);
        let statuses: Vec<_> = names
            .into_iter()
            .map(|name| (name, Arc::default()))
            .collect();
        let (stop, stopped) = watch::channel(None);
        let (alive, ended) = mpsc::channel();
        let (ready, started) = mpsc::channel();

        let feeds: Vec<_> = sinks
            .into_iter()
            .zip(&statuses)
            .enumerate()
            .map(|(number, ((name, sink), (_, status)))| (number, name, sink, Arc::clone(status)))
            .collect();
        let shared = Arc::clone(&spool);
        std::thread::Builder::new()
            .name("telemetry".to_owned())
            .spawn(move || {
                // Made here, because a runtime must not be dropped inside another one.
                let runtime = match tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                {
                    Ok(runtime) => runtime,
                    Err(error) => return ready.send(Err(error)).unwrap_or_default(),
                };
                ready.send(Ok(())).unwrap_or_default();
                runtime.block_on(feed_all(feeds, shared, stopped));
                // Not waiting for a file system that hangs.
                runtime.shutdown_background();
                drop(alive);
            })
            .map_err(StartError::Thread)?;
        started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the thread ended at once")))
            .map_err(StartError::Thread)?;
        let active = Active {
            spool,
            sinks: statuses,
            flush_on_exit: config.flush_on_exit,
            stop,
            ended,
        };
        Ok(Self {
            active: Some(active),
        })
    }

    /// Takes a record. Never fails and never waits for a sink: what cannot be kept is counted.
    pub fn record(&self, record: &Record) {
        if let Some(active) = &self.active {
            active.spool.append(record);
        }
    }

    /// How it is doing.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Some(active) = &self.active else {
            return Stats::default();
        };
        let (pending_bytes, dropped, dropped_ever) = active.spool.stats();
        let sinks = active
            .sinks
            .iter()
            .map(|(name, status)| status.stats(name))
            .collect();
        Stats {
            dropped,
            dropped_ever,
            pending_bytes,
            sinks,
        }
    }

    /// Sends what is left, for at most `flush_on_exit`, to the sinks that still take records.
    ///
    /// A sink that failed at its last try, or has not answered for a second, is not waited for.
    /// Records that a sink has not taken stay in the spool for the next start.
    pub fn finish(self) {
        let Some(active) = self.active else { return };
        active
            .stop
            .send_replace(Some(Instant::now() + active.flush_on_exit));
        if active.ended.recv_timeout(active.flush_on_exit + EXIT_SLACK)
            == Err(mpsc::RecvTimeoutError::Timeout)
        {
            warn!("telemetry did not end in time, going on without it");
        }
        active.spool.close();
    }
}

enum AnySink {
    Influx(Box<Influx>),
    Syslog(Syslog),
    Jsonl(Jsonl),
}

/// Every sink of the configuration, with its name.
fn sinks(config: &Config) -> Result<Vec<(String, AnySink)>, StartError> {
    let mut sinks = Vec::new();
    for influx in &config.influx {
        let name = influx.target();
        match Influx::new(influx.clone()) {
            Ok(sink) => sinks.push((name, AnySink::Influx(Box::new(sink)))),
            Err(error) => {
                return Err(StartError::Sink {
                    name,
                    source: error.into(),
                });
            }
        }
    }
    for syslog in &config.syslog {
        let name = syslog.target();
        match Syslog::new(syslog) {
            Ok(sink) => sinks.push((name, AnySink::Syslog(sink))),
            Err(error) => {
                return Err(StartError::Sink {
                    name,
                    source: error.into(),
                });
            }
        }
    }
    for jsonl in &config.jsonl {
        sinks.push((
            jsonl.target(),
            AnySink::Jsonl(Jsonl::new(jsonl.path.clone())),
        ));
    }
    Ok(sinks)
}

async fn feed_all(
    feeds: Vec<(usize, String, AnySink, Arc<Status>)>,
    spool: Arc<Spool>,
    stop: Stop,
) {
    let mut tasks = JoinSet::new();
    for (number, name, sink, status) in feeds {
        let feed = Feed {
            number,
            name,
            spool: Arc::clone(&spool),
            status,
            stop: stop.clone(),
        };
        match sink {
            AnySink::Influx(sink) => feed.spawn(*sink, &mut tasks),
            AnySink::Syslog(sink) => feed.spawn(sink, &mut tasks),
            AnySink::Jsonl(sink) => feed.spawn(sink, &mut tasks),
        }
    }
    sender::run(tasks, spool, stop).await;
}

/// What a [`Feeder`] needs besides its sink.
struct Feed {
    number: usize,
    name: String,
    spool: Arc<Spool>,
    status: Arc<Status>,
    stop: Stop,
}

impl Feed {
    fn spawn<S: Sink + 'static>(self, sink: S, tasks: &mut JoinSet<()>) {
        let Self {
            number,
            name,
            spool,
            status,
            stop,
        } = self;
        tasks.spawn(
            Feeder {
                sink,
                number,
                name,
                spool,
                status,
            }
            .run(stop),
        );
    }
}

#[cfg(test)]
mod tests;
