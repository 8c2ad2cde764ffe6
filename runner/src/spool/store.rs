//! The files of the spool: each function here is one step of a job's way, whole or not at all.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use farm_config::trust::{self, Distrust};
use fs_err::os::unix::fs::OpenOptionsExt as _;
use jiff::Timestamp;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::job::{Job, Rejection};
use crate::reboot::JobResult;

/// Longest job file that is read. A job is a command; what it works on comes from elsewhere.
const MAX_JOB_BYTES: u64 = 1 << 20;
/// Longest id. With every suffix of ours it stays below the 255 bytes of a file name.
const MAX_ID_BYTES: usize = 100;
/// Group or others may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

const PENDING: &str = "pending";
const RUNNING: &str = "running";
const RESULTS: &str = "results";
const DONE: &str = "done";
const REJECTED: &str = "rejected";

/// Why the spool cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// A file or directory of it cannot be read or written.
    #[error("the spool cannot be used")]
    Io(#[from] io::Error),
    /// It is not there and cannot be made.
    #[error("cannot make the spool `{path}` (type `mkdir -p {path}`)")]
    Missing {
        /// The spool.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others could put jobs into it.
    #[error("the spool is not safe")]
    Distrusted(#[from] Distrust),
}

/// A directory of jobs.
#[derive(Clone, Debug)]
pub struct Spool {
    directory: PathBuf,
}

/// The start of a job, as it is remembered from just before until its result is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// When.
    pub at: Timestamp,
    /// Boot it was started in.
    pub boot_id: String,
    /// First process of the job, which is also its process group.
    pub pid: i32,
    /// Start of that process in clock ticks since boot.
    pub start_ticks: u64,
}

/// How a job ended: the content of `results/ID.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The job's id: the name of its file.
    pub id: String,
    /// The job's name.
    pub name: String,
    /// `success`, `failure`, `exception` (it could not be run) or `interrupted`.
    pub result: JobResult,
    /// Exit code, if it exited by itself.
    pub exit_code: Option<i32>,
    /// Number of the signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Whether it was ended because it ran longer than `jobs.timeout`.
    pub timed_out: bool,
    /// Why it could not be run, or was interrupted.
    pub error: Option<String>,
    /// When it started, if it did.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Timestamp,
    /// Host it ran on.
    pub host: String,
    /// Bytes it wrote to standard output and standard error.
    pub output_bytes: u64,
    /// How many of them are not in `results/ID.log`.
    pub output_dropped: u64,
}

/// A job that belongs to this process, from its claim until it is finished or the process dies.
#[derive(Debug)]
pub struct Claim {
    spool: Spool,
    id: String,
    job: Job,
    /// Its lock is what makes the job ours, as long as this process lives.
    _file: fs_err::File,
}

/// A job that a taker left behind when it died.
#[derive(Debug)]
pub enum Found {
    /// Claimed and never started: it is to be run.
    Claimed(Claim),
    /// Started, and nobody knows how it went; perhaps not even what was started.
    Started(Claim, Option<Started>),
    /// Ended; the result is written and perhaps not yet reported.
    Ended(Claim, Outcome),
}

/// What became of one file of `pending/`.
enum Candidate {
    Claimed(Claim),
    /// Another taker has it, or somebody took it away.
    Gone,
    Rejected(Rejection),
}

impl Spool {
    /// The spool in `directory`, whose parent must exist.
    ///
    /// # Errors
    /// If it cannot be made, or if others than root and the running user may write it.
    pub fn open(directory: &Path) -> Result<Self, SpoolError> {
        make_directory(directory).map_err(|source| SpoolError::Missing {
            path: directory.to_owned(),
            source,
        })?;
        trust::check(directory)?;
        for name in [PENDING, RUNNING, RESULTS, DONE, REJECTED] {
            let path = directory.join(name);
            make_directory(&path)?;
            trust::check_entry(&path)?;
        }
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// The directory whose changes mean that there may be a job.
    #[must_use]
    pub fn pending(&self) -> PathBuf {
        self.directory.join(PENDING)
    }

    fn path(&self, directory: &str, id: &str, suffix: &str) -> PathBuf {
        self.directory.join(directory).join(format!("{id}{suffix}"))
    }

    /// Claims the job that was submitted first. What is no job is moved to `rejected/` on the way,
    /// and said in `notes`.
    ///
    /// # Errors
    /// If the spool cannot be read or written.
    pub fn claim(&self, notes: &mut Vec<String>) -> Result<Option<Claim>, SpoolError> {
        for name in job_files(&self.pending())? {
            match self.try_claim(&name)? {
                Candidate::Claimed(claim) => return Ok(Some(claim)),
                Candidate::Gone => {}
                Candidate::Rejected(rejection) => {
                    notes.push(self.reject(PENDING, &name, &rejection));
                }
            }
        }
        Ok(None)
    }

    fn try_claim(&self, name: &OsStr) -> Result<Candidate, SpoolError> {
        let Some(id) = id_of(name) else {
            return Ok(Candidate::Rejected(Rejection(format!(
                "the name is no id: expected at most {MAX_ID_BYTES} letters, digits, `.`, `_` and `-`, and `.json`"
            ))));
        };
        let path = self.pending().join(name);
        let (file, job) = match lock_and_read(&path)? {
            Read::Job(file, job) => (file, job),
            Read::Gone => return Ok(Candidate::Gone),
            Read::Rejected(rejection) => return Ok(Candidate::Rejected(rejection)),
        };
        let used = [(RESULTS, ".json"), (DONE, ".json")];
        if used
            .iter()
            .any(|(directory, suffix)| self.path(directory, id, suffix).exists())
        {
            let message = format!("`{id}` was a job before: expected an id that is used once");
            return Ok(Candidate::Rejected(Rejection(message)));
        }
        // What remains of an earlier job of this name, whose result somebody took away.
        remove_if_there(&self.path(RUNNING, id, ".started"))?;
        let running = self.path(RUNNING, id, ".json");
        match rustix::fs::renameat_with(CWD, &path, CWD, &running, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(Candidate::Gone),
            Err(Errno::EXIST) => {
                let message = format!("`{id}` is a running job: expected an id that is used once");
                return Ok(Candidate::Rejected(Rejection(message)));
            }
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        // After a power failure the start must not be known while the claim is forgotten.
        sync_directory(&self.directory.join(RUNNING))?;
        sync_directory(&self.pending())?;
        Ok(Candidate::Claimed(Claim {
            spool: self.clone(),
            id: id.to_owned(),
            job,
            _file: file,
        }))
    }

    /// One job that a dead taker left behind.
    ///
    /// # Errors
    /// If the spool cannot be read or written.
    pub fn recover(&self, notes: &mut Vec<String>) -> Result<Option<Found>, SpoolError> {
        let running = self.directory.join(RUNNING);
        self.forget_finished(&running)?;
        for name in job_files(&running)? {
            let Some(id) = id_of(&name) else { continue };
            let (file, job) = match lock_and_read(&running.join(&name))? {
                Read::Job(file, job) => (file, job),
                Read::Gone => continue,
                Read::Rejected(rejection) => {
                    notes.push(self.reject(RUNNING, &name, &rejection));
                    continue;
                }
            };
            let started = read_json(&self.path(RUNNING, id, ".started"))?;
            let outcome = read_json(&self.path(RESULTS, id, ".json"))?;
            let claim = Claim {
                spool: self.clone(),
                id: id.to_owned(),
                job,
                _file: file,
            };
            return Ok(Some(match (outcome, started) {
                (Some(Ok(outcome)), _) => Found::Ended(claim, outcome),
                (None, None) => Found::Claimed(claim),
                (_, Some(Ok(started))) => Found::Started(claim, Some(started)),
                // Whatever damaged our files, the job was started: it is not run again.
                (Some(Err(_)), None) | (_, Some(Err(_))) => Found::Started(claim, None),
            }));
        }
        Ok(None)
    }

    /// Removes what remains of a job whose taker died in the middle of the last step. A marker is
    /// written after its job file came and before it goes, so one without the other is of no use.
    fn forget_finished(&self, running: &Path) -> io::Result<()> {
        for entry in fs_err::read_dir(running)? {
            let marker = entry?.path();
            let is_marker = marker.extension() == Some(OsStr::new("started"));
            if is_marker && !marker.with_extension("json").exists() {
                remove_if_there(&marker)?;
            }
        }
        Ok(())
    }

    /// Moves a file to `rejected/`, with its reason beside it. Returns a note that says so.
    ///
    /// A file that cannot be moved stays; the jobs behind it are taken all the same.
    fn reject(&self, directory: &str, name: &OsStr, rejection: &Rejection) -> String {
        let shown = format!("{directory}/{}", name.to_string_lossy().escape_debug());
        match self.try_reject(&self.directory.join(directory).join(name), name, rejection) {
            Ok(to) => format!("rejected `{shown}`, it is now `{REJECTED}/{to}`: {rejection}"),
            Err(error) => {
                format!("`{shown}` cannot be moved to `{REJECTED}/` ({error}): {rejection}")
            }
        }
    }

    fn try_reject(&self, from: &Path, name: &OsStr, rejection: &Rejection) -> io::Result<String> {
        let base = harmless(name);
        for number in 0_u32.. {
            let to = if number == 0 {
                base.clone()
            } else {
                format!("{base}.{number}")
            };
            let reason = self.path(REJECTED, &to, ".reason");
            if reason.exists() || self.path(REJECTED, &to, "").symlink_metadata().is_ok() {
                continue;
            }
            write_durably(&reason, format!("{rejection}\n").as_bytes())?;
            let moved = rustix::fs::renameat_with(
                CWD,
                from,
                CWD,
                self.path(REJECTED, &to, ""),
                RenameFlags::NOREPLACE,
            );
            match moved {
                Ok(()) => return Ok(to),
                Err(Errno::EXIST) => {}
                Err(errno) => {
                    // It is no rejection if nothing was moved.
                    remove_if_there(&reason)?;
                    return Err(errno.into());
                }
            }
        }
        Err(io::Error::other("every name is taken"))
    }
}

impl Claim {
    /// The job's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The job.
    #[must_use]
    pub const fn job(&self) -> &Job {
        &self.job
    }

    /// Where the job's output goes.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.spool.path(RESULTS, &self.id, ".log")
    }

    /// Remembers that the job is about to run. From here on it is never run again.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn mark_started(&self, started: &Started) -> Result<(), SpoolError> {
        Ok(write_json(
            &self.spool.path(RUNNING, &self.id, ".started"),
            started,
        )?)
    }

    /// Writes the result.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_result(&self, outcome: &Outcome) -> Result<(), SpoolError> {
        Ok(write_json(
            &self.spool.path(RESULTS, &self.id, ".json"),
            outcome,
        )?)
    }

    /// Puts the job away.
    ///
    /// # Errors
    /// If it cannot be moved.
    pub fn finish(self) -> Result<(), SpoolError> {
        let from = self.spool.path(RUNNING, &self.id, ".json");
        fs_err::rename(from, self.spool.path(DONE, &self.id, ".json"))?;
        remove_if_there(&self.spool.path(RUNNING, &self.id, ".started"))?;
        Ok(())
    }
}

/// What was found behind a name.
enum Read {
    Job(fs_err::File, Job),
    Gone,
    Rejected(Rejection),
}

/// Locks and reads a job file that nobody else has locked.
fn lock_and_read(path: &Path) -> io::Result<Read> {
    let rejected = |message: String| Ok(Read::Rejected(Rejection(message)));
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Read::Gone),
        Err(error) => return Err(error),
    };
    if let Err(rejection) = check_file(&metadata) {
        return Ok(Read::Rejected(rejection));
    }
    // Should it have become a link or a FIFO meanwhile: neither follow nor wait.
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(descriptor) => fs_err::File::from_parts(descriptor.into(), path),
        Err(Errno::NOENT) => return Ok(Read::Gone),
        Err(errno @ (Errno::ACCESS | Errno::LOOP | Errno::NXIO)) => {
            return rejected(format!("cannot be opened: {errno}"));
        }
        Err(errno) => return Err(errno.into()),
    };
    // A lock of the process and not of the descriptor: a child that was forked and has not yet
    // executed its program does not hold it in the name of a dead parent.
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK | Errno::ACCESS) => return Ok(Read::Gone),
        Err(errno) => return Err(errno.into()),
    }
    // The lock is worth something only if the file is still the one that the name means.
    let locked = file.metadata()?;
    match path.symlink_metadata() {
        Ok(now) if (now.dev(), now.ino()) == (locked.dev(), locked.ino()) => {}
        Ok(_) => return Ok(Read::Gone),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Read::Gone),
        Err(error) => return Err(error),
    }
    if let Err(rejection) = check_file(&locked) {
        return Ok(Read::Rejected(rejection));
    }
    let mut bytes = Vec::new();
    (&file).take(MAX_JOB_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_JOB_BYTES {
        return rejected(too_long(bytes.len() as u64));
    }
    Ok(match Job::parse(&bytes) {
        Ok(job) => Read::Job(file, job),
        Err(rejection) => Read::Rejected(rejection),
    })
}

/// Whether only root or the running user can have written the job.
fn check_file(metadata: &std::fs::Metadata) -> Result<(), Rejection> {
    let running = nix::unistd::geteuid().as_raw();
    let rejected = |message: String| Err(Rejection(message));
    if !metadata.is_file() {
        return rejected("not a regular file: expected JSON in a file".into());
    }
    if metadata.uid() != 0 && metadata.uid() != running {
        return rejected(format!(
            "belongs to uid {}: expected root or the running user (uid {running})",
            metadata.uid()
        ));
    }
    if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        return rejected(format!(
            "may be written by others (mode {:04o}): expected only its owner to",
            metadata.mode() & 0o7777
        ));
    }
    if metadata.len() > MAX_JOB_BYTES {
        return rejected(too_long(metadata.len()));
    }
    Ok(())
}

fn too_long(length: u64) -> String {
    format!("too long ({length} bytes or more): expected at most {MAX_JOB_BYTES}")
}

/// The names of a directory that end in `.json`, the oldest first. A hidden name is a file that
/// somebody is still writing.
fn job_files(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut files: Vec<(SystemTime, OsString)> = Vec::new();
    for entry in fs_err::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_bytes().starts_with(b".") || !name.as_bytes().ends_with(b".json") {
            continue;
        }
        match entry.metadata().and_then(|metadata| metadata.modified()) {
            Ok(modified) => files.push((modified, name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(_, name)| name).collect())
}

/// The id in the name of a job file.
fn id_of(name: &OsStr) -> Option<&str> {
    let id = name.to_str()?.strip_suffix(".json")?;
    let is_id = (1..=MAX_ID_BYTES).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    is_id.then_some(id)
}

/// A name that any tool can show and that leaves room for our suffixes.
fn harmless(name: &OsStr) -> String {
    let name = name.to_string_lossy();
    name.chars()
        .take(MAX_ID_BYTES)
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}

fn make_directory(path: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What a file of ours says, or that it is damaged; `None` if there is none.
fn read_json<T: serde::de::DeserializeOwned>(
    path: &Path,
) -> io::Result<Option<serde_json::Result<T>>> {
    match fs_err::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(b'\n');
    write_durably(path, &bytes)
}

/// Makes or replaces a file, whole or not at all, and on the disk when this returns.
///
/// The new file is first written under a name that belongs to `path`: whoever may write `path` may
/// write that, and what a killed process left there is written over.
fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = directory.join(format!(".{name}.new"));
    let mut file = fs_err::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs_err::rename(&new, path)?;
    sync_directory(directory)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    fs_err::File::open(directory)?.sync_all()
}
