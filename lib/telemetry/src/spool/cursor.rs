//! How far a sink has come: one small file per sink, replaced as a whole.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A place in the spool, at the start of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Number of the segment file.
    pub(crate) segment: u64,
    /// Byte in it.
    pub(crate) offset: u64,
    /// Lines in it before `offset`.
    pub(crate) lines: u64,
}

/// What is kept of a sink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// The sink, in words: for whoever looks into the directory.
    pub(crate) sink: String,
    /// First line the sink has not taken.
    #[serde(flatten)]
    pub(crate) position: Position,
}

const SUFFIX: &str = "cursor";

/// File of the cursor of `sink`. The name is made of the sink's target: to change one sink, or the
/// order of all of them, does not move the others.
pub(super) fn path(dir: &Path, sink: &str) -> PathBuf {
    let word = |character: char| {
        if character.is_ascii_alphanumeric() || character == '.' {
            character
        } else {
            '-'
        }
    };
    // Long enough to recognise the target, short enough for a file name.
    let words: String = sink.chars().take(80).map(word).collect();
    dir.join(format!("{words}-{:016x}.{SUFFIX}", fnv1a(sink.as_bytes())))
}

/// A hash that stays the same in every version of this program.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The cursor in `path`; `None` if there is none.
pub(super) fn load(path: &Path) -> io::Result<Option<Cursor>> {
    match fs_err::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the cursor in `path`.
pub(super) fn save(path: &Path, cursor: &Cursor) -> io::Result<()> {
    let new = path.with_extension("new");
    fs_err::write(&new, serde_json::to_vec(cursor)?)?;
    fs_err::rename(&new, path)
}

/// All files of cursors in `dir`.
pub(super) fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs_err::read_dir(dir)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == SUFFIX)
        {
            paths.push(path);
        }
    }
    Ok(paths)
}
