//! Who may speak: tokens made from the farm's secret, so that none has to be kept.
//!
//! - A **join token** stands in the user data of every instance of one pool and image, where each job
//!   on it can read it. It lets a host of that pool and image register, and nothing else.
//! - A **host token** is given at registration. It speaks for one instance, registered with one key.
//! - The **admin token** is a file of its own: see [`Admin`].
//!
//! Join and host tokens are HMAC-SHA256 over the name of the fleet and what the token is for, each
//! part preceded by its length and all by the kind of token, so that no token is ever taken for another.
//! Every provisioner with the same secret makes and takes the same tokens. Whoever changes the secret
//! cuts off all hosts there are.
//!
//! Join tokens rotate: time is cut into epochs of [`EPOCH`], and a token is taken in its epoch and in
//! the next one. An epoch is long because launch templates hold the token and are made anew with it;
//! that the next one counts is for hosts launched at the end of one. A host that registered keeps its
//! host token over restarts, and needs its join token no more.

use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use farm_config::secret::{self, Secret, SecretError};
use farm_config::trust::{self, Distrust};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use rand::TryRng as _;
use rand::rngs::SysRng;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::cloud::UserData;
use crate::config::{Config, ProvisionerSettings};
use crate::ids::{ImageName, InstanceId, PoolName};

/// How long join tokens stay the same: one new version of each launch template a week.
pub const EPOCH: Duration = Duration::from_hours(24 * 7);

/// How far the clocks of two provisioners may differ: the epoch that begins within this is taken too.
pub const CLOCK_SKEW: Duration = Duration::from_mins(5);

/// Length of the secret in bytes: that of the hash.
const SECRET_BYTES: usize = 32;
/// Bytes of the hash of a key that stand in a host token.
const KEY_DIGEST_BYTES: usize = 16;
/// Longest token looked at: two names of 128 characters, written in base 64, and a hash.
const LONGEST_TOKEN: usize = 512;
/// Most bytes EC2 takes as user data.
pub const USER_DATA_LIMIT: usize = 16 << 10;

const JOIN_VERSION: &str = "fj1";
const HOST_VERSION: &str = "fh1";

/// What keeps the provisioner from having the farm's secret.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The file is not used.
    #[error("the farm's secret is not used: {0}")]
    Secret(#[source] SecretError),
    /// The file of `provisioner.secret_file` is not there; only the default one is made.
    #[error(
        "`{path}` of `provisioner.secret_file` is not there: expected the secret that all provisioners of this farm share; copy that of another, or make the first by `(umask 077; openssl rand -hex 32 > {path})`",
        path = .0.display()
    )]
    Missing(PathBuf),
    /// It holds something else.
    #[error(
        "`{path}` holds no secret of farmhand: expected 64 hexadecimal digits, such as `openssl rand -hex 32` makes",
        path = .0.display()
    )]
    NoSecret(PathBuf),
    /// The directory cannot hold a secret.
    #[error("the farm's secret cannot be made: {0}")]
    Place(#[from] Distrust),
    /// It cannot be written.
    #[error("the farm's secret cannot be made: {0}")]
    NotMade(#[from] std::io::Error),
    /// The admin token is not used.
    #[error("`provisioner.admin_token_file`: {0}")]
    Admin(#[source] SecretError),
}

/// A token that is handed out. It shows nowhere but where it is asked for.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The token itself: for user data or an answer, and nothing else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token([redacted])")
    }
}

/// Why a token is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// Nothing this farm made for this use.
    #[error("the token is none of this farm's")]
    Unknown,
    /// A join token of an epoch that is over.
    #[error("the join token has expired")]
    Expired,
}

/// What a join token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joining {
    /// Its pool.
    pub pool: PoolName,
    /// Its image.
    pub image: ImageName,
}

/// Makes and verifies the tokens of one fleet.
#[derive(Clone)]
pub struct Access {
    fleet: String,
    /// Keyed with the secret; every token begins with a copy.
    keyed: Hmac<Sha256>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("fleet", &self.fleet)
            .finish_non_exhaustive()
    }
}

impl Access {
    /// With the secret of these settings, which is made if it is the default one and not there.
    /// Provisioners that start at the same time in one directory agree on one.
    ///
    /// # Errors
    /// If there is no secret that only root or the running user knows.
    pub fn open(settings: &ProvisionerSettings) -> Result<Self, AccessError> {
        let secret = match &settings.secret_file {
            Some(path) => secret::read(path).map_err(|error| missing(error, path))?,
            None => read_or_make(&settings.state_dir)?,
        };
        let path = || {
            settings
                .secret_file
                .clone()
                .unwrap_or_else(|| default_path(&settings.state_dir))
        };
        let bytes = parse_secret(&secret).ok_or_else(|| AccessError::NoSecret(path()))?;
        Ok(Self::new(&settings.fleet, &bytes))
    }

    /// With this secret. Public for tests: the secret of a farm is in a file.
    #[must_use]
    pub fn new(fleet: &str, secret: &[u8; SECRET_BYTES]) -> Self {
        Self {
            fleet: fleet.to_owned(),
            keyed: Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"),
        }
    }

    /// What is handed to hosts of `pool` and `image`: the same text until the epoch is over. A launch
    /// that is sent again wants the text it was sent with first: `now` is when it was decided.
    #[must_use]
    pub fn user_data(
        &self,
        config: &Config,
        pool: &PoolName,
        image: &ImageName,
        now: Timestamp,
    ) -> UserData {
        #[derive(Serialize)]
        struct Handed<'a> {
            farmhand: u32,
            pool: &'a PoolName,
            image: &'a ImageName,
            provisioner: String,
            join_token: &'a str,
        }
        let token = self.join_token(pool, image, now);
        let handed = Handed {
            farmhand: 1,
            pool,
            image,
            provisioner: config.provisioner.url(),
            join_token: token.expose(),
        };
        let json = serde_json::to_string(&handed).expect("names and numbers are always JSON");
        debug_assert!(json.len() <= USER_DATA_LIMIT, "the names are bounded");
        UserData { json }
    }

    /// Lets hosts of `pool` and `image` register, in the epoch of `now` and the next.
    #[must_use]
    pub fn join_token(&self, pool: &PoolName, image: &ImageName, now: Timestamp) -> Token {
        let epoch = epoch_of(now);
        let tag = self.join_mac(pool, image, epoch).finalize().into_bytes();
        let [pool, image, tag] = [pool.as_str().as_bytes(), image.as_str().as_bytes(), &tag]
            .map(|part| URL_SAFE_NO_PAD.encode(part));
        Token(format!("{JOIN_VERSION}.{epoch}.{pool}.{image}.{tag}"))
    }

    /// What `token` lets a host join.
    ///
    /// # Errors
    /// If it is no join token of this farm that counts at `now`.
    pub fn joining(&self, token: &str, now: Timestamp) -> Result<Joining, TokenFault> {
        let [version, epoch, pool, image, tag] = parts(token)?;
        if version != JOIN_VERSION {
            return Err(TokenFault::Unknown);
        }
        let epoch = epoch.parse().map_err(|_| TokenFault::Unknown)?;
        let pool = PoolName::parse(&text(pool)?).map_err(|_| TokenFault::Unknown)?;
        let image = ImageName::parse(&text(image)?).map_err(|_| TokenFault::Unknown)?;
        verify(self.join_mac(&pool, &image, epoch), tag)?;
        if counts_at(epoch, now) {
            Ok(Joining { pool, image })
        } else {
            Err(TokenFault::Expired)
        }
    }

    /// Speaks for `id`, whose host registered with `key`. The same for the same key, for ever.
    #[must_use]
    pub fn host_token(&self, id: &InstanceId, key: &str) -> Token {
        let digest = Sha256::digest(key);
        let digest = &digest[..KEY_DIGEST_BYTES];
        let tag = self.host_mac(id, digest).finalize().into_bytes();
        let [id, digest, tag] =
            [id.as_str().as_bytes(), digest, &tag].map(|part| URL_SAFE_NO_PAD.encode(part));
        Token(format!("{HOST_VERSION}.{id}.{digest}.{tag}"))
    }

    /// Whom `token` speaks for. Nothing is looked up: it was given to the host whose key was first.
    ///
    /// # Errors
    /// If it is no host token of this farm.
    pub fn speaker(&self, token: &str) -> Result<InstanceId, TokenFault> {
        let [version, id, digest, tag] = parts(token)?;
        if version != HOST_VERSION {
            return Err(TokenFault::Unknown);
        }
        let id = InstanceId::parse(&text(id)?).map_err(|_| TokenFault::Unknown)?;
        verify(self.host_mac(&id, &bytes(digest)?), tag)?;
        Ok(id)
    }

    /// Whether two keys are the same, in a time that does not tell how much of them is.
    #[must_use]
    pub fn is_same_key(&self, one: &str, other: &str) -> bool {
        let one = self.mac("farmhand key", &[one.as_bytes()]);
        let other = self.mac("farmhand key", &[other.as_bytes()]);
        one.verify(&other.finalize().into_bytes()).is_ok()
    }

    fn join_mac(&self, pool: &PoolName, image: &ImageName, epoch: u64) -> Hmac<Sha256> {
        self.mac(
            "farmhand join token 1",
            &[
                pool.as_str().as_bytes(),
                image.as_str().as_bytes(),
                &epoch.to_be_bytes(),
            ],
        )
    }

    fn host_mac(&self, id: &InstanceId, digest: &[u8]) -> Hmac<Sha256> {
        self.mac("farmhand host token 1", &[id.as_str().as_bytes(), digest])
    }

    /// The hash of `parts` under the secret, for one use and one fleet. No two lists of parts are
    /// the same bytes.
    fn mac(&self, usage: &str, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = self.keyed.clone();
        let all = [usage.as_bytes(), self.fleet.as_bytes()];
        for part in all.iter().chain(parts) {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

/// Verifies the token of admin calls.
#[derive(Clone)]
pub struct Admin {
    /// Keyed with bytes of this process; makes what is sent and what is expected of one length.
    keyed: Hmac<Sha256>,
    expected: [u8; SECRET_BYTES],
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Admin([redacted])")
    }
}

impl Admin {
    /// With the token of these settings; `None` if they name no file: there are then no admin calls.
    /// The file is read once: another token needs another start.
    ///
    /// # Errors
    /// If the file is named and not used.
    pub fn open(settings: &ProvisionerSettings) -> Result<Option<Self>, AccessError> {
        let Some(path) = &settings.admin_token_file else {
            return Ok(None);
        };
        let token = secret::read(path).map_err(AccessError::Admin)?;
        Ok(Some(Self::new(token.expose(), random()?)))
    }

    /// With this token and bytes nobody knows. Public for tests.
    #[must_use]
    pub fn new(token: &str, key: [u8; SECRET_BYTES]) -> Self {
        let keyed: Hmac<Sha256> =
            Hmac::new_from_slice(&key).expect("HMAC takes keys of any length");
        let mac = keyed.clone().chain_update(token);
        Self {
            expected: mac.finalize().into_bytes().into(),
            keyed,
        }
    }

    /// Whether `token` is it.
    #[must_use]
    pub fn is(&self, token: &str) -> bool {
        let sent = self.keyed.clone().chain_update(token);
        sent.verify_slice(&self.expected).is_ok()
    }
}

fn epoch_of(now: Timestamp) -> u64 {
    u64::try_from(now.as_second()).unwrap_or_default() / EPOCH.as_secs()
}

/// Whether a token of `epoch` counts at `now`: in its epoch and the next, and a little before.
fn counts_at(epoch: u64, now: Timestamp) -> bool {
    let now = u64::try_from(now.as_second()).unwrap_or_default();
    let begins = epoch.saturating_mul(EPOCH.as_secs());
    let ends = begins.saturating_add(2 * EPOCH.as_secs());
    begins <= now.saturating_add(CLOCK_SKEW.as_secs()) && now < ends
}

/// The parts of a token that has so many.
fn parts<const N: usize>(token: &str) -> Result<[&str; N], TokenFault> {
    if token.len() > LONGEST_TOKEN {
        return Err(TokenFault::Unknown);
    }
    let parts: Vec<&str> = token.splitn(N + 1, '.').collect();
    parts.try_into().map_err(|_| TokenFault::Unknown)
}

fn bytes(part: &str) -> Result<Vec<u8>, TokenFault> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| TokenFault::Unknown)
}

fn text(part: &str) -> Result<String, TokenFault> {
    String::from_utf8(bytes(part)?).map_err(|_| TokenFault::Unknown)
}

/// Compares in constant time.
fn verify(mac: Hmac<Sha256>, tag: &str) -> Result<(), TokenFault> {
    mac.verify_slice(&bytes(tag)?)
        .map_err(|_| TokenFault::Unknown)
}

fn default_path(state_dir: &Path) -> PathBuf {
    state_dir.join("secret")
}

fn missing(error: SecretError, path: &Path) -> AccessError {
    match error {
        SecretError::Unreadable(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            AccessError::Missing(path.to_owned())
        }
        other => AccessError::Secret(other),
    }
}

fn read_or_make(state_dir: &Path) -> Result<Secret, AccessError> {
    let path = default_path(state_dir);
    match secret::read(&path) {
        Err(SecretError::Unreadable(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            make(state_dir, &path)?;
            secret::read(&path).map_err(AccessError::Secret)
        }
        read => read.map_err(AccessError::Secret),
    }
}

/// Makes a secret at `path`, unless somebody else did in the meantime. It appears there in full, on
/// the disk and for its owner only, or not at all.
fn make(directory: &Path, path: &Path) -> Result<(), AccessError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    trust::check(directory)?;
    let digits: String = random()?.iter().map(|byte| format!("{byte:02x}")).collect();
    // Of mode 0600, as all temporary files are.
    let mut file = tempfile::Builder::new()
        .prefix(".secret-")
        .tempfile_in(directory)?;
    writeln!(file, "{digits}")?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => fs_err::File::open(directory)?.sync_all()?,
        Err(taken) if taken.error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(failed) => return Err(failed.error.into()),
    }
    Ok(())
}

/// Of the system, which nobody guesses.
fn random() -> Result<[u8; SECRET_BYTES], AccessError> {
    let mut bytes = [0; SECRET_BYTES];
    SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(std::io::Error::other)?;
    Ok(bytes)
}

/// The bytes of 64 hexadecimal digits.
fn parse_secret(secret: &Secret) -> Option<[u8; SECRET_BYTES]> {
    let digits = secret.expose().as_bytes();
    let mut bytes = [0; SECRET_BYTES];
    if digits.len() != 2 * SECRET_BYTES {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(nibble(pair[0])? << 4 | nibble(pair[1])?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
