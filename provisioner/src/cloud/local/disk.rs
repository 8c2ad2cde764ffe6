//! What the local cloud keeps on disk: launches it accepted, and a directory for each instance.
//!
//! ```text
//! DIRECTORY/
//!   cloud.lock             held while something is launched, forgotten or marked
//!   launches/TOKEN.open    a launch that was accepted and is not yet carried out
//!   launches/TOKEN.json    a launch that was carried out; its answer is given again to who asks again
//!   INSTANCE_ID/
//!     meta.json            what was asked for; never changes
//!     user-data            what its metadata service hands out
//!     status.json          what its supervisor says; not there until one has started
//!     hold, interrupt      written by people
//!     lock                 locked by its supervisor as long as that lives
//!     first.lock           locked by its first process as long as that lives
//!     supervisor.log
//!     host/                all that the instance itself can write
//! ```
//!
//! Every file appears whole, by a rename; so does every directory of an instance. Nothing is synced:
//! a power cut that loses a file ends the instances too.
//!
//! Whether a supervisor lives is the kernel's word, by the lock it holds, and so is its process id.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err::os::unix::fs::OpenOptionsExt as _;
use jiff::Timestamp;
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::process::{Flock, FlockType, Pid, PidfdFlags, fcntl_getlk, pidfd_open};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::cloud::{CapacityType, LaunchRequest, Launched, OfferingKey};
use crate::ids::{ImageId, InstanceId, IntentId};
use crate::money::Money;

/// Name of the tag with the fleet that owns an instance; the others are below.
pub(super) const OWNER: &str = "farmhand:owner";
pub(super) const INTENT: &str = "farmhand:intent";
pub(super) const POOL: &str = "farmhand:pool";
pub(super) const IMAGE: &str = "farmhand:image";
pub(super) const HOLD: &str = "farmhand:hold";

/// Longest text of a file written by hand that is read.
const MAX_BY_HAND: usize = 200;

/// What an instance was launched as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    /// Its id.
    pub(super) id: InstanceId,
    /// What it is.
    #[serde(flatten)]
    pub(super) offering: OfferingKey,
    /// Price per hour when it was launched.
    pub(super) price: Money,
    /// When it was launched.
    pub(super) launched_at: Timestamp,
    /// Its image: a directory.
    pub(super) image_id: ImageId,
    /// Tags, as an instance of EC2 has them.
    pub(super) tags: BTreeMap<String, String>,
    /// How its processes are run.
    pub(super) run: RunSettings,
}

/// How the processes of an instance are run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunSettings {
    /// The `runner` program.
    pub(super) runner: PathBuf,
    /// Directory of the image.
    pub(super) image: PathBuf,
    /// Whether it gets namespaces of its own.
    pub(super) isolated: bool,
    /// TCP addresses of the machine that are reached from within its own network.
    pub(super) forward: Vec<std::net::SocketAddr>,
    /// What it may write besides its own directory.
    pub(super) writable: Vec<PathBuf>,
    /// What it must not see: other instances, and the provisioner's state.
    pub(super) hidden: Vec<PathBuf>,
    /// File with interruptions.
    pub(super) market: Option<PathBuf>,
    /// From the wish that it ends to its death.
    #[serde(with = "humantime_serde")]
    pub(super) grace_period: Duration,
}

impl Meta {
    /// The tag `name`, if it is there and not empty.
    pub(super) fn tag(&self, name: &str) -> Option<&str> {
        self.tags
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// Whether the cloud may take it back.
    #[must_use]
    pub(super) fn is_spot(&self) -> bool {
        self.offering.capacity_type == CapacityType::Spot
    }
}

/// How far an instance has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Its supervisor has started.
    Starting,
    /// `runner` has started.
    Running,
    /// It was asked to end.
    Stopping,
    /// Nothing of it is left.
    Ended,
}

/// What is known of an instance that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Status {
    /// How far it has come.
    pub(super) phase: Phase,
    /// Since when.
    pub(super) since: Timestamp,
    /// Why it is so.
    pub(super) reason: Option<String>,
    /// Whether the cloud took it back.
    pub(super) interrupted: bool,
}

/// A launch that was accepted: from here on it happens, whoever asked for it dies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Accepted {
    /// What was asked for.
    pub(super) request: LaunchRequest,
    /// The answer.
    pub(super) launched: Launched,
    /// The instances.
    pub(super) instances: Vec<Meta>,
    /// What is handed to them.
    pub(super) user_data: String,
}

/// Idempotency token of an intent: also a file name, and not longer than EC2 allows.
pub(super) fn token(intent: &IntentId) -> String {
    hex(&Sha256::digest(intent.as_str().as_bytes()))
}

/// Id of the instance `ordinal` of the launch `token`: the same whenever it is asked for.
pub(super) fn instance_id(token: &str, ordinal: usize) -> InstanceId {
    let digest = hex(&Sha256::digest(format!("{token} {ordinal}").as_bytes()));
    let id = format!("i-{}", &digest[..17]);
    InstanceId::parse(&id).expect("made of plain characters")
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string can be written");
        text
    })
}

/// The directory of the whole cloud.
#[derive(Clone, Debug)]
pub(super) struct Home {
    directory: PathBuf,
}

impl Home {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Takes the lock of the cloud, after whoever has it; makes what is missing.
    pub(super) fn lock(&self) -> io::Result<fs_err::File> {
        make_private(&self.directory.join("launches"))?;
        let file = open_private(&self.directory.join("cloud.lock"))?;
        file.lock()?;
        Ok(file)
    }

    /// Every instance not yet forgotten, in no order.
    pub(super) fn places(&self) -> io::Result<Vec<Place>> {
        let entries = match fs_err::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut places = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let id = name.to_str().filter(|name| name.starts_with("i-"));
            if let Some(Ok(id)) = id.map(InstanceId::parse) {
                places.push(self.place(&id));
            }
        }
        Ok(places)
    }

    /// Where the instance `id` is, or would be.
    pub(super) fn place(&self, id: &InstanceId) -> Place {
        // An id with a slash names a file that is not there, never one outside.
        Place::new(self.directory.join(id.as_str().replace('/', "_")))
    }

    /// The launch with this token, if it was accepted and is not yet carried out.
    pub(super) fn open_launch(&self, token: &str) -> io::Result<Option<Accepted>> {
        read_json(&self.open_path(token))
    }

    /// The launch with this token, if it was carried out.
    pub(super) fn done_launch(&self, token: &str) -> io::Result<Option<Accepted>> {
        read_json(&self.done_path(token))
    }

    /// Accepts a launch.
    pub(super) fn accept(&self, token: &str, launch: &Accepted) -> io::Result<()> {
        write_json(&self.open_path(token), launch)
    }

    /// Tokens of launches that were accepted and not carried out.
    pub(super) fn open_launches(&self) -> io::Result<Vec<String>> {
        let mut tokens = Vec::new();
        for entry in fs_err::read_dir(self.directory.join("launches"))? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "open")
            {
                tokens.extend(
                    path.file_stem()
                        .and_then(|stem| Some(stem.to_str()?.to_owned())),
                );
            }
        }
        Ok(tokens)
    }

    /// Notes that a launch was carried out.
    pub(super) fn close_launch(&self, token: &str) -> io::Result<()> {
        match fs_err::rename(self.open_path(token), self.done_path(token)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Forgets launches that were accepted before `before` and carried out.
    pub(super) fn forget_launches(&self, before: Timestamp) -> io::Result<()> {
        for entry in fs_err::read_dir(self.directory.join("launches"))? {
            let path = entry?.path();
            let written = Timestamp::try_from(fs_err::metadata(&path)?.modified()?);
            let is_done = path
                .extension()
                .is_some_and(|extension| extension == "json");
            if is_done && written.is_ok_and(|written| written < before) {
                fs_err::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// A directory in which an instance is put together before it appears.
    pub(super) fn stage(&self, id: &InstanceId) -> io::Result<Place> {
        let staged = Place::new(self.directory.join(format!(".new-{id}")));
        remove_all(staged.directory())?;
        make_private(&staged.host())?;
        Ok(staged)
    }

    fn open_path(&self, token: &str) -> PathBuf {
        self.directory
            .join("launches")
            .join(format!("{token}.open"))
    }

    fn done_path(&self, token: &str) -> PathBuf {
        self.directory
            .join("launches")
            .join(format!("{token}.json"))
    }
}

/// The directory of one instance.
#[derive(Clone, Debug)]
pub(super) struct Place {
    directory: PathBuf,
}

/// Who of an instance lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alive {
    /// Nobody: nothing of it runs.
    Nobody,
    /// Its supervisor.
    Supervisor(Pid),
    /// Its first process alone, which is ending the others.
    First,
}

impl Place {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// All that the instance itself can write.
    pub(super) fn host(&self) -> PathBuf {
        self.directory.join("host")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.directory.join("supervisor.log")
    }

    pub(super) fn meta(&self) -> io::Result<Option<Meta>> {
        read_json(&self.directory.join("meta.json"))
    }

    pub(super) fn write_meta(&self, meta: &Meta) -> io::Result<()> {
        write_json(&self.directory.join("meta.json"), meta)
    }

    pub(super) fn user_data(&self) -> io::Result<String> {
        fs_err::read_to_string(self.directory.join("user-data"))
    }

    pub(super) fn write_user_data(&self, text: &str) -> io::Result<()> {
        write_whole(&self.directory.join("user-data"), text.as_bytes())
    }

    /// Address of the metadata service, for an instance without a network of its own.
    pub(super) fn metadata_address(&self) -> Option<String> {
        fs_err::read_to_string(self.directory.join("metadata-address")).ok()
    }

    pub(super) fn write_metadata_address(&self, address: &str) -> io::Result<()> {
        write_whole(&self.directory.join("metadata-address"), address.as_bytes())
    }

    pub(super) fn status(&self) -> io::Result<Option<Status>> {
        read_json(&self.directory.join("status.json"))
    }

    pub(super) fn write_status(&self, status: &Status) -> io::Result<()> {
        write_json(&self.directory.join("status.json"), status)
    }

    /// Who holds it, as written by hand into the file `hold`.
    pub(super) fn hold(&self) -> Option<String> {
        by_hand(&self.directory.join("hold")).map(|text| match text.as_str() {
            "" => "somebody".to_owned(),
            _ => text,
        })
    }

    /// What was written by hand into the file `interrupt`.
    pub(super) fn interrupt(&self) -> Option<String> {
        by_hand(&self.directory.join("interrupt"))
    }

    /// Takes the supervisor's lock. It is held until this process ends or closes *any* descriptor of
    /// that file: it is opened here alone.
    ///
    /// # Errors
    /// `WouldBlock` if somebody has it.
    pub(super) fn claim(&self) -> io::Result<fs_err::File> {
        let file = open_private(&self.directory.join("lock"))?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::ACCESS) => Err(io::ErrorKind::WouldBlock.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes the first process's lock.
    pub(super) fn claim_first(&self) -> io::Result<fs_err::File> {
        let path = self.directory.join("first.lock");
        drop(open_private(&path)?);
        // A descriptor that may write would keep its mount from becoming read-only.
        let file = fs_err::File::open(path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    /// Who of it lives, as the kernel says.
    pub(super) fn alive(&self) -> io::Result<Alive> {
        if let Some(pid) = holder(&self.directory.join("lock"))? {
            return Ok(Alive::Supervisor(pid));
        }
        let first = match fs_err::File::open(self.directory.join("first.lock")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Alive::Nobody),
            Err(error) => return Err(error),
        };
        match flock(&first, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Alive::Nobody),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Alive::First),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The supervisor itself, whatever becomes of its process id.
    pub(super) fn supervisor(&self) -> io::Result<Option<rustix::fd::OwnedFd>> {
        let path = self.directory.join("lock");
        let Some(pid) = holder(&path)? else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // Had its process ended before it was held, nobody would have the lock now.
        Ok((holder(&path)? == Some(pid)).then_some(pidfd))
    }
}

/// The process that has the lock on the file `path`.
fn holder(path: &Path) -> io::Result<Option<Pid>> {
    let file = match fs_err::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // A lock to read conflicts with the one to write that is held, and needs no right to write.
    let held = fcntl_getlk(&file, &Flock::from(FlockType::ReadLock))?;
    Ok(held.and_then(|lock| lock.pid))
}

fn by_hand(path: &Path) -> Option<String> {
    let bytes = fs_err::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim().chars().take(MAX_BY_HAND);
    Some(
        text.map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect(),
    )
}

pub(super) fn make_private(directory: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(directory);
    made.map_err(|error| {
        let path = directory.display();
        io::Error::new(error.kind(), format!("cannot make `{path}`: {error}"))
    })
}

/// Removes a directory and all below it, if it is there.
pub(super) fn remove_all(directory: &Path) -> io::Result<()> {
    match fs_err::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn open_private(path: &Path) -> io::Result<fs_err::File> {
    fs_err::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let text = match fs_err::read(path) {
        Ok(text) => text,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let read = serde_json::from_slice(&text).map_err(|error| {
        let message = format!("`{}` cannot be understood: {error}", path.display());
        io::Error::new(io::ErrorKind::InvalidData, message)
    })?;
    Ok(Some(read))
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write_whole(path, &serde_json::to_vec_pretty(value)?)
}

/// Writes a file that is there whole or not at all, and that only its owner may read.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = fs_err::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(content)?;
    fs_err::rename(new, path)
}
