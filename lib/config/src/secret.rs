//! A token that never shows: read from a file only its owner may read, redacted in every output.

use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt as _;

use crate::trust::{self, Distrust};

/// Longest token taken, in bytes. InfluxDB's have 88; JSON web tokens have a few thousand.
const LONGEST: u64 = 16 << 10;

/// A token or password.
///
/// Comparing two takes longer the more alike they are: right to see whether the file changed, wrong
/// to judge what a stranger sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The token itself: for a request header and nothing else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// `text` without this secret, should a server have repeated it.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        text.replace(&self.0, "[token]")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret([redacted])")
    }
}

/// Why a token file is not used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It is not there, or the system refuses.
    #[error("{0}: expected a token file of mode 0600 that belongs to root or the running user")]
    Unreadable(std::io::Error),
    /// It is a directory, a pipe or a device.
    #[error("`{}` is not a file: expected a file that holds the token", .0.display())]
    NotAFile(PathBuf),
    /// Others may read or write it.
    #[error(
        "`{path}` may be read by others (mode {mode:04o}): run `chmod 600 {path}`",
        path = .path.display()
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else owns it.
    #[error(
        "`{path}` belongs to user {owner}: expected root or the running user; run `chown root {path}`",
        path = .path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Somebody else could put another file in its place.
    #[error(transparent)]
    Place(#[from] Distrust),
    /// More than any token has.
    #[error("`{}` is longer than {LONGEST} bytes: expected a file that holds the token", .0.display())]
    TooLong(PathBuf),
    /// What it holds cannot be one.
    #[error(
        "`{}` holds no token: expected one line of printable ASCII characters without space",
        .0.display()
    )]
    NoToken(PathBuf),
}

/// The token in `path`, if only root or the running user can have written it and read it, and put it there.
///
/// # Errors
/// Why it is not used.
pub fn read(path: &Path) -> Result<Secret, SecretError> {
    // Not blocking: the path could name a FIFO without writer.
    let file = fs_err::OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(SecretError::Unreadable)?;
    // Asked of the open file, so that what is checked is what is read.
    let metadata = file.metadata().map_err(SecretError::Unreadable)?;
    if !metadata.is_file() {
        return Err(SecretError::NotAFile(path.to_owned()));
    }
    let owner = metadata.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(SecretError::Owner {
            path: path.to_owned(),
            owner,
        });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SecretError::TooOpen {
            path: path.to_owned(),
            mode,
        });
    }
    // A program can be led to any file of its own, such as one of `/proc` whose content is known.
    trust::check(path)?;
    let mut text = String::new();
    match file.take(LONGEST + 1).read_to_string(&mut text) {
        Ok(_) if text.len() as u64 > LONGEST => Err(SecretError::TooLong(path.to_owned())),
        Ok(_) => parse(&text).ok_or_else(|| SecretError::NoToken(path.to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            Err(SecretError::NoToken(path.to_owned()))
        }
        Err(error) => Err(SecretError::Unreadable(error)),
    }
}

/// The token in `text`, which must be one word that fits into a header; space around it is dropped.
#[must_use]
pub fn parse(text: &str) -> Option<Secret> {
    let token = text.trim();
    let fits = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| Secret(token.to_owned()))
}

#[cfg(test)]
mod tests;
