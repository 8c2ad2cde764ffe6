//! The verb `runner take-job`: wait for one job, run it, say how it ended.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use fs_err::os::unix::fs::OpenOptionsExt as _;
use jiff::Timestamp;
use rustix::fs::inotify;
use rustix::process::PidfdFlags;
use tokio::io::AsyncWriteExt as _;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::config::JobsConfig;
use super::process::{Gated, Group, JobUser, identify, start_gated};
use super::store::{Claim, Found, Outcome, Spool, SpoolError, Started};
use crate::reboot::JobResult;

/// Most output of a job that is kept. A build log that people read has a few MiB.
const MAX_LOG_BYTES: u64 = 64 << 20;
/// Most output that is read after the job ended: what a pipe holds at most. A process that the job
/// left behind may write for ever.
const MAX_REST_BYTES: u64 = 1 << 20;
/// Exit code: a job was run, or none came.
const DONE: u8 = 0;
/// Exit code: it failed, or was asked to stop.
const FAILED: u8 = 1;
/// Exit code: the configuration does not allow to run jobs.
const CONFIGURATION: u8 = 78;

/// Takes one job from the spool, runs it and writes its result.
///
/// Exit code 0 if a job was run, whatever its result, and if none came in time. SIGHUP while it waits
/// ends the wait; SIGTERM ends the job, as `interrupted`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TakeArgs {
    /// Directory of the spool instead of `jobs.spool`.
    #[arg(long, value_name = "DIR")]
    pub spool: Option<PathBuf>,
    /// How long to wait for a job instead of `jobs.wait`, such as `90s`; `0s` is for ever.
    #[arg(long, value_name = "DURATION")]
    pub wait: Option<humantime::Duration>,
}

/// What `take-job` is told by its caller.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Name of this host.
    pub host: &'a str,
    /// `$RUNNER_OUTPUT`, if a run asks.
    pub report: Option<&'a Path>,
    /// The clock.
    pub clock: fn() -> Timestamp,
}

/// Why no job could be taken or finished.
#[derive(Debug, thiserror::Error)]
enum TakeError {
    #[error("{0}")]
    Configuration(String),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error("{0}")]
    Io(&'static str, #[source] io::Error),
}

impl TakeError {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Configuration(_)
            | Self::Spool(SpoolError::Distrusted(_) | SpoolError::Missing { .. }) => CONFIGURATION,
            Self::Spool(SpoolError::Io(_)) | Self::Io(..) => FAILED,
        }
    }
}

/// Carries out `runner take-job` and returns its exit code: 0 for a job or none, 1 if it failed or
/// was asked to stop, 78 if the configuration does not allow to run jobs.
pub async fn take_job(
    args: &TakeArgs,
    config: &JobsConfig,
    place: &Place<'_>,
    err: &mut impl Write,
) -> u8 {
    match Taker::new(args, config, place) {
        Ok(mut taker) => match taker.take(err).await {
            Ok(()) if taker.is_stopped => FAILED,
            Ok(()) => DONE,
            Err(error) => say(err, &error),
        },
        Err(error) => say(err, &error),
    }
}

fn say(err: &mut impl Write, error: &TakeError) -> u8 {
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
    // Nobody is left to tell if standard error is closed.
    drop(writeln!(err, "error: {text}"));
    error.exit_code()
}

/// What ends a wait for a job.
enum Waited {
    Changed,
    /// The time is over, or somebody asked to drain or to stop.
    Over,
}

/// One process that takes one job.
struct Taker<'a> {
    spool: Spool,
    user: JobUser,
    config: &'a JobsConfig,
    place: &'a Place<'a>,
    until: Option<Instant>,
    changes: AsyncFd<OwnedFd>,
    hangup: Signal,
    stop: Stop,
    is_stopped: bool,
}

/// SIGTERM or SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl<'a> Taker<'a> {
    fn new(
        args: &TakeArgs,
        config: &'a JobsConfig,
        place: &'a Place<'a>,
    ) -> Result<Self, TakeError> {
        // First of all: from here on a signal is a wish, and not the end.
        let listen =
            |kind| signal(kind).map_err(|error| TakeError::Io("cannot listen to signals", error));
        let hangup = listen(SignalKind::hangup())?;
        let terminate = listen(SignalKind::terminate())?;
        let interrupt = listen(SignalKind::interrupt())?;
        let directory = args.spool.as_ref().or(config.spool.as_ref()).ok_or_else(|| {
            TakeError::Configuration(
                "`jobs.spool` is not set: expected the directory of a spool; type `--spool DIR`".into(),
            )
        })?;
        let user = JobUser::find(config.user.as_deref())
            .map_err(|why| TakeError::Configuration(format!("`jobs.user`: {why}")))?;
        let spool = Spool::open(directory)?;
        let wait = args.wait.map_or(config.wait, Into::into);
        Ok(Self {
            changes: watch(&spool.pending())?,
            spool,
            user,
            config,
            place,
            until: after(wait),
            hangup,
            stop: Stop {
                terminate,
                interrupt,
            },
            is_stopped: false,
        })
    }

    /// Takes one job: what a dead taker left, or else the first that was submitted.
    async fn take(&mut self, err: &mut impl Write) -> Result<(), TakeError> {
        let Some(found) = self.find(err).await? else {
            return Ok(());
        };
        let (claim, outcome) = match found {
            Found::Ended(claim, outcome) => (claim, outcome),
            Found::Claimed(claim) => {
                self.report_taken(&claim, err);
                let outcome = self.run(&claim).await?;
                claim.write_result(&outcome)?;
                (claim, outcome)
            }
            Found::Started(claim, started) => {
                self.end_previous(started.as_ref()).await?;
                let outcome = Outcome {
                    started: started.map(|started| started.at),
                    ..self.outcome(&claim, JobResult::Interrupted, Some(TAKER_DIED.into()))
                };
                claim.write_result(&outcome)?;
                (claim, outcome)
            }
        };
        // The report before the last step: a taker that dies in between reports again.
        if let Some(report) = self.place.report {
            append_report(report, &outcome)
                .map_err(|error| TakeError::Io("cannot report the job", error))?;
        }
        claim.finish()?;
        note(
            err,
            format_args!(
                "job `{}` ({}): {}",
                outcome.name, outcome.id, outcome.result
            ),
        );
        Ok(())
    }

    /// Says which job begins. A host that does not know it until it ends is no reason to give it up.
    fn report_taken(&self, claim: &Claim, err: &mut impl Write) {
        let Some(report) = self.place.report else {
            return;
        };
        let lines = format!("taken.name={}\ntaken.id={}\n", claim.job().name, claim.id());
        if let Err(error) = append(report, &lines) {
            note(
                err,
                format_args!("the job cannot be reported before it ends: {error}"),
            );
        }
    }

    async fn find(&mut self, err: &mut impl Write) -> Result<Option<Found>, TakeError> {
        loop {
            let mut notes = Vec::new();
            let found = match self.spool.recover(&mut notes)? {
                Some(found) => Some(found),
                None => self.spool.claim(&mut notes)?.map(Found::Claimed),
            };
            for text in notes {
                note(err, format_args!("{text}"));
            }
            if found.is_some() {
                return Ok(found);
            }
            match self.wait().await? {
                Waited::Changed => {}
                Waited::Over => return Ok(None),
            }
        }
    }

    /// Waits until something was put into `pending/`.
    async fn wait(&mut self) -> Result<Waited, TakeError> {
        let failed = |error| TakeError::Io("cannot wait for a job", error);
        tokio::select! {
            biased;
            () = self.stop.recv() => {
                self.is_stopped = true;
                Ok(Waited::Over)
            }
            _ = self.hangup.recv() => Ok(Waited::Over),
            ready = self.changes.readable() => {
                let mut ready = ready.map_err(failed)?;
                let mut events = [0; 4096];
                // What the events say is of no interest: the directory is read again in any case.
                match ready.try_io(|changes| Ok(rustix::io::read(changes.as_fd(), &mut events)?)) {
                    Ok(Err(error)) => Err(failed(error)),
                    Ok(Ok(_)) | Err(_) => Ok(Waited::Changed),
                }
            }
            () = at(self.until) => Ok(Waited::Over),
        }
    }

    /// Runs the job of `claim` to its end.
    async fn run(&mut self, claim: &Claim) -> Result<Outcome, TakeError> {
        let gated = match start_gated(claim.id(), claim.job(), &self.user) {
            Ok(gated) => gated,
            Err(error) => {
                let why = format!("cannot be started: {error}");
                return Ok(self.outcome(claim, JobResult::Exception, Some(why)));
            }
        };
        let started = identify(gated.child.id(), (self.place.clock)())
            .map_err(|error| TakeError::Io("cannot identify the job's process", error))?;
        let log = open_log(&claim.log())
            .map_err(|error| TakeError::Io("cannot write the job's output", error))?;
        // Until here the gate closes with us and nothing has run: the claim stands.
        claim.mark_started(&started)?;
        let end = self
            .supervise(gated, log)
            .await
            .map_err(|error| TakeError::Io("cannot follow the job", error))?;
        Ok(self.judge(claim, &started, &end))
    }

    fn judge(&self, claim: &Claim, started: &Started, end: &End) -> Outcome {
        use std::os::unix::process::ExitStatusExt as _;
        let (result, error) = if !end.was_told {
            (
                JobResult::Exception,
                Some("ended before it was told what to run".into()),
            )
        } else if end.is_stopped {
            (JobResult::Interrupted, Some("asked to stop".into()))
        } else if end.status.success() && !end.timed_out {
            (JobResult::Success, None)
        } else {
            (JobResult::Failure, None)
        };
        Outcome {
            exit_code: end.status.code(),
            signal: end.status.signal(),
            timed_out: end.timed_out,
            started: Some(started.at),
            output_bytes: end.output_bytes,
            output_dropped: end.output_dropped,
            ..self.outcome(claim, result, error)
        }
    }

    fn outcome(&self, claim: &Claim, result: JobResult, error: Option<String>) -> Outcome {
        Outcome {
            id: claim.id().to_owned(),
            name: claim.job().name.clone(),
            result,
            exit_code: None,
            signal: None,
            timed_out: false,
            error,
            started: None,
            finished: (self.place.clock)(),
            host: self.place.host.to_owned(),
            output_bytes: 0,
            output_dropped: 0,
        }
    }

    /// Opens the gate, follows the job until its first process ended, and ends its group.
    async fn supervise(&mut self, gated: Gated, log: fs_err::File) -> io::Result<End> {
        let Gated {
            mut child,
            gate,
            output,
            script,
        } = gated;
        let group = Group::of_unreaped(&child)?;
        let mut output = Output::new(output, log)?;
        let leader = registered(pidfd(child.id())?)?;
        let mut gate = pipe::Sender::from_owned_fd(gate.into())?;
        let mut telling = pin!(async move { gate.write_all(script.as_bytes()).await.is_ok() });
        let mut told = None;
        let mut ending = Ending::default();
        let mut until = after(self.config.timeout);
        loop {
            tokio::select! {
                ready = leader.readable() => {
                    drop(ready?);
                    break;
                }
                was_told = &mut telling, if told.is_none() => told = Some(was_told),
                open = output.pump(), if output.is_open => output.is_open = open?,
                () = self.stop.recv() => {
                    self.is_stopped = true;
                    ending.is_stopped |= !ending.timed_out;
                    until = ending.escalate(group, self.config.grace_period);
                }
                () = at(until) => {
                    ending.timed_out |= !ending.is_stopped;
                    until = ending.escalate(group, self.config.grace_period);
                }
            }
        }
        // Not reaped yet, so the number of the group is still ours.
        group.kill();
        let status = child.wait()?;
        output.drain()?;
        // Nobody reads the pipe any more: all of the command went through it, or never will.
        let was_told = match told {
            Some(was_told) => was_told,
            None => telling.await,
        };
        Ok(End {
            status,
            was_told,
            timed_out: ending.timed_out,
            is_stopped: ending.is_stopped,
            output_bytes: output.bytes,
            output_dropped: output.bytes - output.kept,
        })
    }

    /// Ends what a dead taker's job left, if its first process still lives.
    async fn end_previous(&mut self, started: Option<&Started>) -> Result<(), TakeError> {
        let failed = |error| TakeError::Io("cannot end the previous job", error);
        let Some((group, leader)) = started.and_then(Group::of_recorded) else {
            return Ok(());
        };
        let leader = registered(leader).map_err(failed)?;
        group.terminate();
        tokio::select! {
            ready = leader.readable() => drop(ready.map_err(failed)?),
            () = tokio::time::sleep(self.config.grace_period) => {}
        }
        // Within the moment since the leader ended its number cannot have come round again.
        group.kill();
        drop(leader.readable().await.map_err(failed)?);
        Ok(())
    }
}

const TAKER_DIED: &str = "the process that ran the job died";

/// How a job's first process ended.
struct End {
    status: ExitStatus,
    /// Whether it was told all of its command.
    was_told: bool,
    timed_out: bool,
    is_stopped: bool,
    output_bytes: u64,
    output_dropped: u64,
}

/// How far the end of a job is.
#[derive(Default)]
struct Ending {
    is_asked: bool,
    timed_out: bool,
    is_stopped: bool,
}

impl Ending {
    /// Asks at first, kills the second time. Returns when to go on.
    fn escalate(&mut self, group: Group, grace_period: Duration) -> Option<Instant> {
        if self.is_asked {
            group.kill();
            return None;
        }
        self.is_asked = true;
        group.terminate();
        Some(Instant::now() + grace_period)
    }
}

/// The job's output on its way into the log.
struct Output {
    pipe: pipe::Receiver,
    log: fs_err::File,
    is_open: bool,
    bytes: u64,
    kept: u64,
    is_full: bool,
}

impl Output {
    fn new(pipe: io::PipeReader, log: fs_err::File) -> io::Result<Self> {
        Ok(Self {
            pipe: pipe::Receiver::from_owned_fd(pipe.into())?,
            log,
            is_open: true,
            bytes: 0,
            kept: 0,
            is_full: false,
        })
    }

    /// Takes what is there, once there is something. False at the end of the output.
    async fn pump(&mut self) -> io::Result<bool> {
        self.pipe.readable().await?;
        Ok(self.take()? != Some(0))
    }

    /// Takes what is there: its length, or nothing.
    fn take(&mut self) -> io::Result<Option<u64>> {
        let mut chunk = [0; 64 * 1024];
        let length = match self.pipe.try_read(&mut chunk) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        self.bytes += length as u64;
        self.keep(&chunk[..length]);
        Ok(Some(length as u64))
    }

    /// Writes what fits. A log that cannot be written is no reason to lose a job: what is not in it
    /// is counted.
    fn keep(&mut self, chunk: &[u8]) {
        let room = usize::try_from(MAX_LOG_BYTES - self.kept).unwrap_or(usize::MAX);
        let part = &chunk[..chunk.len().min(room)];
        if self.is_full || part.is_empty() {
            return;
        }
        match self.log.write_all(part) {
            Ok(()) => self.kept += part.len() as u64,
            Err(_) => self.is_full = true,
        }
    }

    /// Takes the rest, as far as it is there already.
    fn drain(&mut self) -> io::Result<()> {
        let end = self.bytes + MAX_REST_BYTES;
        while self.is_open && self.bytes < end {
            match self.take()? {
                Some(length) => self.is_open = length > 0,
                None => return Ok(()),
            }
        }
        Ok(())
    }
}

fn open_log(path: &Path) -> io::Result<fs_err::File> {
    fs_err::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("a child has a positive pid"))?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

#[expect(
    deprecated,
    reason = "its successor is unsafe, which is denied; what it asks for is what an OwnedFd promises: to stay open, and the same"
)]
pub(crate) fn registered(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}

/// Watches a directory for files that are moved or written into it.
fn watch(directory: &Path) -> Result<AsyncFd<OwnedFd>, TakeError> {
    let failed = |error: io::Error| {
        TakeError::Io(
            "cannot watch the spool (see `fs.inotify.max_user_instances` in inotify(7))",
            error,
        )
    };
    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
    let changes = inotify::init(flags).map_err(|errno| failed(errno.into()))?;
    let events = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CLOSE_WRITE;
    inotify::add_watch(&changes, directory, events).map_err(|errno| failed(errno.into()))?;
    registered(changes).map_err(failed)
}

/// When `duration` is over; never, if it is zero.
fn after(duration: Duration) -> Option<Instant> {
    if duration.is_zero() {
        None
    } else {
        Instant::now().checked_add(duration)
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn append_report(report: &Path, outcome: &Outcome) -> io::Result<()> {
    let lines = format!(
        "job.name={}\njob.result={}\njob.id={}\n",
        outcome.name, outcome.result, outcome.id
    );
    append(report, &lines)
}

/// Lines of a name and an id have no line break in them: the parser of job files and the rule for
/// ids see to it.
fn append(report: &Path, lines: &str) -> io::Result<()> {
    fs_err::OpenOptions::new()
        .append(true)
        .create(true)
        .open(report)?
        .write_all(lines.as_bytes())
}

fn note(err: &mut impl Write, text: std::fmt::Arguments<'_>) {
    // Nobody is left to tell if standard error is closed.
    drop(writeln!(err, "{text}"));
}
