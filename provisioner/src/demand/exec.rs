//! A program that prints what waits.
//!
//! It is started without a shell, with a clean environment, in a process group of its own, and ends
//! with all of its group: when its first process ends, and at the latest after its `timeout`. What it
//! prints is in `docs/demand.md`.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::settings::ExecSettings;
use super::web::{LONGEST_ANSWER, one_line};
use super::{Count, DemandSource, Observation, SourceError, WaitingJob, Work, moment};
use crate::ids::PoolName;

/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most bytes kept of what it says about its troubles; the rest is read and dropped.
const LONGEST_COMPLAINT: u64 = 4 << 10;
/// Time between SIGTERM and SIGKILL. A program that only reads has nothing to tidy up.
const GRACE_PERIOD: Duration = Duration::from_secs(1);

/// A program that knows what waits.
#[derive(Debug)]
pub struct Exec {
    settings: ExecSettings,
}

/// What it prints.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Printed {
    #[serde(default)]
    as_of: Option<Value>,
    #[serde(default)]
    jobs: Option<Vec<PrintedJob>>,
    #[serde(default)]
    pools: Option<BTreeMap<String, PrintedCount>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PrintedJob {
    name: String,
    since: Value,
    #[serde(default)]
    running: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PrintedCount {
    pending: u32,
    #[serde(default)]
    running: u32,
    #[serde(with = "humantime_serde::option", default)]
    oldest_age: Option<Duration>,
}

impl Exec {
    pub(super) fn new(settings: ExecSettings) -> Self {
        Self { settings }
    }

    async fn output(&self) -> Result<Vec<u8>, SourceError> {
        let Some((program, arguments)) = self.settings.command.split_first() else {
            let message = "`command` is empty: expected a program and its arguments";
            return Err(SourceError::Unavailable(message.into()));
        };
        let mut running = Running::start(program, arguments)?;
        let Ok(answer) = timeout(self.settings.timeout, running.answer()).await else {
            running.end().await;
            let limit = humantime::format_duration(self.settings.timeout);
            let message = format!("`{program}` ran longer than {limit}, and was ended");
            return Err(SourceError::Unavailable(message));
        };
        let (status, output, complaint) = answer.map_err(|error| {
            SourceError::Unavailable(format!("`{program}` cannot be read: {error}"))
        })?;
        if output.len() > LONGEST_ANSWER {
            let message = format!("`{program}` prints more than {LONGEST_ANSWER} bytes");
            return Err(SourceError::NotUnderstood(message));
        }
        if !status.success() {
            let complaint = one_line(&String::from_utf8_lossy(&complaint));
            let message = format!("`{program}` failed ({status}): {complaint}");
            return Err(SourceError::Unavailable(message));
        }
        Ok(output)
    }

    fn understood(&self, output: &[u8], now: Timestamp) -> Result<Observation, SourceError> {
        let not_understood = SourceError::NotUnderstood;
        let printed: Printed = serde_json::from_slice(output).map_err(|error| {
            let error = one_line(&error.to_string());
            not_understood(format!("it prints something else than expected: {error}"))
        })?;
        let as_of = match &printed.as_of {
            None => now,
            Some(as_of) => time(as_of, "as_of")?,
        };
        let work = match (printed.jobs, printed.pools) {
            (Some(jobs), None) if self.settings.pools.is_empty() => jobs_of(jobs)?,
            (None, Some(counts)) => self.counts_of(counts)?,
            (Some(_), None) => {
                let message =
                    "it prints `jobs`, and its setting `pools` says that it counts for itself";
                return Err(not_understood(message.into()));
            }
            (Some(_), Some(_)) | (None, None) => {
                let message =
                    "it prints JSON without `jobs` and `pools`, or with both: expected one of them";
                return Err(not_understood(message.into()));
            }
        };
        Ok(Observation::new(as_of, work))
    }

    fn counts_of(&self, counts: BTreeMap<String, PrintedCount>) -> Result<Work, SourceError> {
        let known = &self.settings.pools;
        if let Some(unknown) = counts
            .keys()
            .find(|name| !known.iter().any(|pool| pool.as_str() == *name))
        {
            let unknown = one_line(unknown);
            return Err(SourceError::NotUnderstood(format!(
                "it prints a count for the pool `{unknown}`, which is not among its `pools`"
            )));
        }
        let count_of = |pool: &PoolName| {
            let Some(printed) = counts.get(pool.as_str()) else {
                return Err(SourceError::NotUnderstood(format!(
                    "it prints no count for the pool `{pool}`: expected one for each of its `pools`, 0 if nothing waits"
                )));
            };
            let count = Count {
                pending: printed.pending,
                running: printed.running,
                oldest_age: printed.oldest_age,
            };
            Ok((pool.clone(), count))
        };
        let counts = known.iter().map(count_of);
        Ok(Work::Counts(counts.collect::<Result<_, _>>()?))
    }
}

fn jobs_of(jobs: Vec<PrintedJob>) -> Result<Work, SourceError> {
    let jobs = jobs.into_iter().map(|job| {
        Ok(WaitingJob {
            since: time(&job.since, "since")?,
            name: job.name,
            running: job.running,
        })
    });
    Ok(Work::Jobs(jobs.collect::<Result<_, SourceError>>()?))
}

fn time(value: &Value, key: &str) -> Result<Timestamp, SourceError> {
    moment(value).ok_or_else(|| {
        let value = one_line(&value.to_string());
        SourceError::NotUnderstood(format!(
            "it prints `{value}` as `{key}`: expected a time, in RFC 3339 or Unix seconds"
        ))
    })
}

impl DemandSource for Exec {
    async fn observe(&self, now: Timestamp) -> Result<Observation, SourceError> {
        self.understood(&self.output().await?, now)
    }
}

/// A program that runs. Dropped, it is killed with its group.
struct Running {
    child: Child,
    /// Readable once the first process has ended; it is not reaped by that, so its id stays its own.
    ended: AsyncFd<OwnedFd>,
    /// The group, until its first process is reaped.
    group: Option<Pid>,
}

impl Running {
    fn start(program: &str, arguments: &[String]) -> Result<Self, SourceError> {
        let failed = |error: std::io::Error| {
            SourceError::Unavailable(format!("`{program}` cannot be started: {error}"))
        };
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("LANG", "C.UTF-8")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let watch = group
            .ok_or_else(|| std::io::Error::other("it has no process id"))
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?))
            .and_then(watched);
        match watch {
            Ok(ended) => Ok(Self {
                child,
                ended,
                group,
            }),
            Err(error) => {
                kill(group, Signal::KILL);
                // It is reaped by the runtime, or by a later try.
                child.start_kill().map_err(failed)?;
                Err(failed(error))
            }
        }
    }

    /// How it ended, what it printed, and what it complained about.
    async fn answer(&mut self) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        let output = self.child.stdout.take();
        let complaint = self.child.stderr.take();
        let longest = LONGEST_ANSWER as u64 + 1;
        let ((), output, complaint) = tokio::try_join!(
            async {
                self.ended.readable().await?.retain_ready();
                // Whatever it started must not keep its output open.
                kill(self.group, Signal::KILL);
                Ok(())
            },
            read(output, longest),
            read(complaint, LONGEST_COMPLAINT),
        )?;
        self.group = None;
        Ok((self.child.wait().await?, output, complaint))
    }

    /// Ends it and its group.
    async fn end(mut self) {
        kill(self.group, Signal::TERM);
        let in_time = timeout(GRACE_PERIOD, self.ended.readable()).await;
        kill(self.group, Signal::KILL);
        self.group = None;
        let reaped = self.child.wait().await;
        tracing::debug!(in_time = in_time.is_ok(), ?reaped, "program ended");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        kill(self.group, Signal::KILL);
    }
}

#[expect(
    deprecated,
    reason = "its replacement is unsafe for types whose descriptor may change; an owned one does not"
)]
fn watched(descriptor: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}

/// Signals a group whose first process has not been reaped, so that no other has its id.
fn kill(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group
        && let Err(error) = kill_process_group(group, signal)
    {
        tracing::debug!(%error, "no process of the group is left");
    }
}

/// The first `longest` bytes; further ones are read and dropped, so that the writer is not stopped.
async fn read(from: Option<impl AsyncRead + Unpin>, longest: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(mut from) = from else {
        return Ok(bytes);
    };
    (&mut from).take(longest).read_to_end(&mut bytes).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
