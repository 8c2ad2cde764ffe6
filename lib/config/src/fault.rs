//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong with the configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// File.
    pub path: PathBuf,
    /// Line, from 1, if the fault has one.
    pub line: Option<usize>,
    /// What is wrong, what was expected, what to do; on one line.
    pub message: String,
}

impl Fault {
    /// A fault of a whole file.
    #[must_use]
    pub fn of_file(path: &Path, message: impl Into<String>) -> Self {
        Self::at(path, None, message)
    }

    pub(crate) fn at(path: &Path, line: Option<usize>, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            // TOML writes any character by an escape; none may break the line it is said in.
            message: message.into().replace(char::is_control, "\u{fffd}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path.display(), self.message),
            None => write!(f, "{}: {}", self.path.display(), self.message),
        }
    }
}

/// What is wrong with a key that is well-formed by itself: it contradicts another one, or names
/// what is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFault {
    /// Path of the key to point at, such as `pools.build.max` or `rules[2].pool` (from 0).
    pub key: String,
    /// What is wrong, what was expected.
    pub message: String,
}

impl KeyFault {
    /// The fault of the key at `key`.
    #[must_use]
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            message: message.into(),
        }
    }
}
