//! The supervisor of an instance: boots it, serves it, and brings it to its end.

use std::io;
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::namespaces::{self, Booted};
use super::{descendants, metadata, relay};
use crate::cloud::local::disk::{Meta, Phase, Place, Status};
use crate::cloud::local::market::{Market, MarketFile, NOTICE};
use crate::exit::Exit;

/// How often the market and the files written by hand are looked at. A notice is two minutes long.
const LOOK: Duration = Duration::from_millis(500);

/// What is left when everything was killed has this long to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(35);

pub(super) fn run(place: &Place, clock: fn() -> Timestamp) -> Exit {
    // Held until this process ends: the instance lives.
    let _lock = match place.claim() {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Exit::Locked,
        Err(_) => return Exit::Failed,
    };
    let meta = match (place.meta(), place.status()) {
        // It lived before, or was ended before it began: an instance has one life.
        (_, Ok(Some(_))) => return Exit::Done,
        (Ok(Some(meta)), Ok(None)) => meta,
        (Ok(None) | Err(_), _) | (_, Err(_)) => return Exit::Failed,
    };
    let mut record = Record { place, clock };
    if record.phase(Phase::Starting, None, false).is_err() {
        return Exit::Failed;
    }
    let end = supervise(place, meta, clock, &mut record);
    let (reason, interrupted) = match end {
        Ok(end) => (end.reason, end.interrupted),
        Err(error) => (format!("the instance could not be started: {error}"), false),
    };
    match record.phase(Phase::Ended, Some(reason), interrupted) {
        Ok(()) => Exit::Done,
        Err(_) => Exit::Failed,
    }
}

/// Writes how far the instance has come.
struct Record<'p> {
    place: &'p Place,
    clock: fn() -> Timestamp,
}

impl Record<'_> {
    fn phase(&mut self, phase: Phase, reason: Option<String>, interrupted: bool) -> io::Result<()> {
        self.place.write_status(&Status {
            phase,
            since: (self.clock)(),
            reason,
            interrupted,
        })
    }
}

struct End {
    reason: String,
    interrupted: bool,
}

fn supervise(
    place: &Place,
    meta: Meta,
    clock: fn() -> Timestamp,
    record: &mut Record<'_>,
) -> io::Result<End> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let runtime = super::runtime()?;
    let end = runtime.block_on(async {
        let terminate = signal(SignalKind::terminate())?;
        let mut child_ended = signal(SignalKind::child())?;
        let end = Supervised::boot(place, meta, clock, terminate)?
            .watch(record)
            .await;
        // Without namespaces, and with a first process that died before the others.
        descendants::end(&mut child_ended).await;
        Ok(end)
    });
    // Relays of connections that somebody outside holds open end with it.
    runtime.shutdown_background();
    end
}

/// An instance that was booted.
struct Supervised<'p> {
    place: &'p Place,
    meta: Arc<Meta>,
    clock: fn() -> Timestamp,
    terminate: tokio::signal::unix::Signal,
    first: Arc<rustix::fd::OwnedFd>,
    ended: oneshot::Receiver<io::Result<ExitStatus>>,
    lines: tokio::io::Lines<BufReader<tokio::net::unix::OwnedReadHalf>>,
    /// Closed to say that everything must end.
    orders: Option<OwnedWriteHalf>,
    notice: watch::Sender<Option<Timestamp>>,
    /// Serve until they are dropped.
    _servers: JoinSet<()>,
    market: MarketFile,
    /// From when on the first process is killed.
    deadline: Option<Instant>,
    asked: bool,
    interrupted: bool,
    /// What the first process said about the end.
    said: Option<String>,
}

impl<'p> Supervised<'p> {
    fn boot(
        place: &'p Place,
        meta: Meta,
        clock: fn() -> Timestamp,
        terminate: tokio::signal::unix::Signal,
    ) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let Booted {
            metadata: metadata_listener,
            forwards,
            first,
            ended,
        } = namespaces::boot(place, &meta, theirs)?;
        ours.set_nonblocking(true)?;
        let (reading, orders) = tokio::net::UnixStream::from_std(ours)?.into_split();
        let meta = Arc::new(meta);
        let (notice, noticed) = watch::channel(None);
        let mut servers = JoinSet::new();
        let user_data = place.user_data()?;
        servers.spawn(metadata::serve(
            metadata_listener.try_into()?,
            Arc::clone(&meta),
            user_data,
            noticed,
        ));
        for (listener, address) in forwards {
            servers.spawn(relay::serve(listener.try_into()?, address));
        }
        Ok(Self {
            place,
            market: MarketFile::new(meta.run.market.as_deref()),
            meta,
            clock,
            terminate,
            first: Arc::new(first),
            ended,
            lines: BufReader::new(reading).lines(),
            orders: Some(orders),
            notice,
            _servers: servers,
            deadline: None,
            asked: false,
            interrupted: false,
            said: None,
        })
    }

    async fn watch(mut self, record: &mut Record<'_>) -> End {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_open = true;
        let status = loop {
            tokio::select! {
                status = &mut self.ended => break status,
                line = self.lines.next_line(), if is_open => match line {
                    Ok(Some(line)) => self.heard(&line, record),
                    Ok(None) | Err(_) => is_open = false,
                },
                _ = self.terminate.recv() => self.ask(record).await,
                () = at(self.deadline) => self.kill(),
                _ = looks.tick() => self.look(),
            }
        };
        // What it said last may still be on its way.
        while is_open && let Ok(Some(line)) = self.lines.next_line().await {
            self.heard(&line, record);
        }
        self.end(status.ok().and_then(Result::ok))
    }

    fn heard(&mut self, line: &str, record: &mut Record<'_>) {
        if line == "ready" {
            if !self.asked {
                // A status that cannot be written shows as an instance that does not come up.
                record.phase(Phase::Running, None, false).ok();
            }
        } else if self.said.is_none() {
            self.said = Some(match line.split_once(' ') {
                Some(("ended", how)) => format!("`runner` ended {how}"),
                Some(("fault", what)) => format!("the instance could not be started: {what}"),
                _ => line.to_owned(),
            });
        }
    }

    /// Asks `runner` to end, and bounds how long that takes.
    async fn ask(&mut self, record: &mut Record<'_>) {
        if self.asked {
            return;
        }
        self.asked = true;
        let reason = "ended as asked".to_owned();
        record.phase(Phase::Stopping, Some(reason), false).ok();
        self.deadline = Some(Instant::now() + self.meta.run.grace_period);
        if let Some(orders) = &mut self.orders {
            // Who does not listen any more has ended.
            orders.write_all(b"stop\n").await.ok();
        }
    }

    /// Ends everything at once.
    fn kill(&mut self) {
        let is_told = self.orders.take().is_none();
        if self.meta.run.isolated || is_told {
            // Process 1 of a PID namespace takes every other with it.
            pidfd_send_signal(&*self.first, Signal::KILL).ok();
        }
        // Without namespaces the first process, told by the end of the socket, kills the others.
        self.deadline = Some(Instant::now() + KILL_PATIENCE);
    }

    /// Looks whether the cloud takes the instance back.
    fn look(&mut self) {
        if self.interrupted || self.asked || !self.meta.is_spot() {
            return;
        }
        let now = (self.clock)();
        let noticed = *self.notice.borrow();
        let taken_at = noticed.or_else(|| self.interruption(now));
        let Some(taken_at) = taken_at else {
            return;
        };
        if noticed.is_none() {
            self.notice.send_replace(Some(taken_at));
        }
        if taken_at <= now {
            self.interrupted = true;
            self.kill();
        }
    }

    /// When it is taken back, if that is to be said already.
    fn interruption(&mut self, now: Timestamp) -> Option<Timestamp> {
        // A file with faults takes nothing back; `provisioner check` says what is wrong with it.
        let market = self.market.market().ok();
        let notice = market.map_or(NOTICE, Market::notice);
        let scheduled = market.and_then(|market| market.interruption(&self.meta));
        let begins = |at: Timestamp| before(at, notice) <= now;
        let scheduled = scheduled.filter(|at| begins(*at));
        let by_hand = self.place.interrupt().map(|text| {
            let notice = humantime::parse_duration(&text).unwrap_or(notice);
            after(now, notice)
        });
        scheduled.into_iter().chain(by_hand).min()
    }

    fn end(self, status: Option<ExitStatus>) -> End {
        let reason = if self.interrupted {
            "the cloud took the spot instance back".to_owned()
        } else if self.asked {
            "ended as asked".to_owned()
        } else {
            self.said.unwrap_or_else(|| match status {
                Some(status) => format!("its first process ended by itself: {status}"),
                None => "its first process ended".to_owned(),
            })
        };
        End {
            reason,
            interrupted: self.interrupted,
        }
    }
}

fn before(at: Timestamp, time: Duration) -> Timestamp {
    let time = jiff::SignedDuration::try_from(time).unwrap_or(jiff::SignedDuration::MAX);
    at.checked_sub(time).unwrap_or(Timestamp::MIN)
}

fn after(at: Timestamp, time: Duration) -> Timestamp {
    let time = jiff::SignedDuration::try_from(time).unwrap_or(jiff::SignedDuration::MAX);
    at.checked_add(time).unwrap_or(Timestamp::MAX)
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
