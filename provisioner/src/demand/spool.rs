//! The spool of this machine: its job files, counted without disturbing those who take them.
//!
//! `runner take-job` moves a job from `pending/` to `running/` and holds a lock on it as long as it
//! lives. Here files are opened for reading and nothing is locked, moved or made. `pending/` is read
//! first: a job that is claimed in between is then seen twice, and counted once, as running.
//!
//! What a taker would reject (others may write it, it is no job) is not counted: no host can help it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, fcntl_getlk};
use serde::Deserialize;

use super::settings::SpoolSettings;
use super::{DemandSource, Observation, SourceError, WaitingJob, Work};

/// Longest job file, and the longest name in it, as `runner` takes them.
const MAX_JOB_BYTES: u64 = 1 << 20;
const MAX_NAME_BYTES: usize = 1024;
/// Longest id: the name of the file without `.json`.
const MAX_ID_BYTES: usize = 100;
/// Group or others may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// A directory of jobs.
#[derive(Debug)]
pub struct Spool {
    settings: SpoolSettings,
}

/// As much of a job file as is needed to know that a taker takes it.
#[derive(Deserialize)]
struct Job {
    name: String,
    command: Vec<String>,
}

/// A job file.
struct Found {
    name: String,
    /// When it was last written: when it was submitted, because a rename does not change it.
    written: Timestamp,
    /// When it was last renamed: when it was claimed.
    renamed: Timestamp,
    /// Whether a living taker has it.
    locked: bool,
}

impl Spool {
    pub(super) fn new(settings: SpoolSettings) -> Self {
        Self { settings }
    }
}

impl DemandSource for Spool {
    async fn observe(&self, now: Timestamp) -> Result<Observation, SourceError> {
        let directory = self.settings.directory.clone();
        let jobs = tokio::task::spawn_blocking(move || jobs(&directory)).await;
        let failed =
            |error: String| SourceError::Unavailable(format!("the spool cannot be read: {error}"));
        let jobs = jobs
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?;
        Ok(Observation::new(now, Work::Jobs(jobs)))
    }
}

fn jobs(directory: &Path) -> io::Result<Vec<WaitingJob>> {
    let owner = fs_err::metadata(directory)?.uid();
    let mut pending = found_in(&directory.join("pending"), owner)?;
    let running = found_in(&directory.join("running"), owner)?;
    let mut jobs = Vec::new();
    for (id, job) in running {
        pending.remove(&id);
        let started = directory.join("running").join(format!("{id}.started"));
        if job.locked {
            jobs.push(WaitingJob {
                name: job.name,
                since: job.renamed,
                running: true,
            });
        } else if !started.exists() {
            // Its taker died before it began: the next one runs it.
            jobs.push(WaitingJob {
                name: job.name,
                since: job.written,
                running: false,
            });
        }
        // One that began and whose taker died is over: it is never run again.
    }
    jobs.extend(pending.into_values().map(|job| WaitingJob {
        name: job.name,
        since: job.written,
        running: false,
    }));
    Ok(jobs)
}

/// The jobs of a directory, by id.
fn found_in(directory: &Path, owner: u32) -> io::Result<BTreeMap<String, Found>> {
    let mut found = BTreeMap::new();
    for entry in fs_err::read_dir(directory)? {
        let name = entry?.file_name();
        let Some(id) = id_of(&name) else { continue };
        if let Some(job) = read(&directory.join(&name), owner)? {
            found.insert(id.to_owned(), job);
        }
    }
    Ok(found)
}

/// The id in the name of a job file. A hidden one is still being written.
fn id_of(name: &OsStr) -> Option<&str> {
    let id = std::str::from_utf8(name.as_bytes()).ok()?;
    let id = id.strip_suffix(".json")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_id =
        (1..=MAX_ID_BYTES).contains(&id.len()) && !id.starts_with('.') && id.bytes().all(plain);
    is_id.then_some(id)
}

/// The job in a file; none if it is gone meanwhile, or is none that a taker would take.
fn read(path: &Path, owner: u32) -> io::Result<Option<Found>> {
    // Should it have become a link or a FIFO meanwhile: neither follow nor wait.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(descriptor) => fs_err::File::from_parts(descriptor.into(), path),
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let metadata = file.metadata()?;
    let is_safe = metadata.is_file()
        && (metadata.uid() == 0 || metadata.uid() == owner)
        && metadata.mode() & WRITABLE_BY_OTHERS == 0
        && metadata.len() <= MAX_JOB_BYTES;
    if !is_safe {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    (&file).take(MAX_JOB_BYTES).read_to_end(&mut bytes)?;
    let Ok(job) = serde_json::from_slice::<Job>(&bytes) else {
        return Ok(None);
    };
    let is_job = !job.command.is_empty()
        && !job.name.trim().is_empty()
        && job.name.len() <= MAX_NAME_BYTES
        && !job.name.chars().any(char::is_control);
    if !is_job {
        return Ok(None);
    }
    let at = |seconds| Timestamp::from_second(seconds).unwrap_or_default();
    Ok(Some(Found {
        name: job.name,
        written: at(metadata.mtime()),
        renamed: at(metadata.ctime()),
        // Asks who holds the lock, and takes none.
        locked: fcntl_getlk(&file, &Flock::from(FlockType::ReadLock))?.is_some(),
    }))
}

#[cfg(test)]
mod tests;
