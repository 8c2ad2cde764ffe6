//! Where a snapshot lies: a file that only root can have written.
//!
//! Whoever could change the snapshot, or put another in its place, could have any process kept or
//! any recorded one killed. So every directory on the way must be root's and closed to writers
//! (sticky ones such as `/tmp` may be passed through), the last one without exception, no part may
//! be a symbolic link, and the file must be a regular one of root, mode 0600.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Largest snapshot that is read. 32,768 processes, the usual limit of a host, with an argument
/// list of 1 KiB each come to half of it.
const SIZE_LIMIT: u64 = 64 << 20;

/// Why a snapshot file is not touched.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such file, or its directory is missing.
    #[error("does not exist, expected a snapshot of this boot")]
    Missing,
    /// A directory on the path is not what it must be.
    #[error("{0}")]
    UnsafePath(String),
    /// The file is not what it must be.
    #[error("{0}")]
    UnsafeFile(String),
    /// The system refused.
    #[error("cannot be {what} ({reason})")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        reason: io::Error,
    },
}

/// What to do if the directory of the snapshot is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfMissing {
    /// Make it, for root alone.
    Create,
    /// Report [`StoreError::Missing`].
    Report,
}

/// The place of one snapshot file, its directories checked and held open.
#[derive(Debug)]
pub struct Store {
    dir: OwnedFd,
    name: OsString,
}

impl Store {
    /// Checks every directory of `path`, which must be absolute.
    ///
    /// # Errors
    /// If a directory is missing or could be changed by anyone but root.
    pub fn open(path: &Path, if_missing: IfMissing) -> Result<Self, StoreError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(StoreError::UnsafePath(
                "is not the path of a file, expected one".into(),
            ));
        };
        let dir = open_trusted(parent, if_missing)?;
        Ok(Self {
            dir,
            name: name.to_owned(),
        })
    }

    /// The text of the file.
    ///
    /// # Errors
    /// If it is missing, unsafe or cannot be read.
    pub fn read(&self) -> Result<Vec<u8>, StoreError> {
        let found = match rustix::fs::statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Err(StoreError::Missing),
            Err(errno) => return Err(io_error("looked at", errno)),
        };
        check_file(&found)?;
        // Not blocking, in case a pipe took its place just now.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, &self.name, flags, Mode::empty())
            .map_err(|errno| io_error("opened", errno))?;
        check_file(&rustix::fs::fstat(&file).map_err(|errno| io_error("looked at", errno))?)?;
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(to_file(file), SIZE_LIMIT), &mut text).map_err(
            |reason| StoreError::Io {
                what: "read",
                reason,
            },
        )?;
        Ok(text)
    }

    /// Puts `text` in place of the file, whole or not at all, also if the power fails.
    ///
    /// # Errors
    /// If it cannot be written; the file is then as before.
    pub fn write(&self, text: &[u8]) -> Result<(), StoreError> {
        let mut draft = OsString::from(".");
        draft.push(&self.name);
        draft.push(format!(".{}", rustix::process::getpid().as_raw_nonzero()));
        let written = self.write_draft(&draft, text);
        if written.is_err() {
            // What went wrong before is the better message.
            let _removed = rustix::fs::unlinkat(&self.dir, &draft, AtFlags::empty());
        }
        written
    }

    fn write_draft(&self, draft: &OsStr, text: &[u8]) -> Result<(), StoreError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Left behind if a writer of the same number was killed; only root can have made it.
        let _removed = rustix::fs::unlinkat(&self.dir, draft, AtFlags::empty());
        let file = rustix::fs::openat(&self.dir, draft, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| io_error("written", errno))?;
        let mut file = to_file(file);
        io::Write::write_all(&mut file, text)
            .and_then(|()| file.sync_all())
            .map_err(|reason| StoreError::Io {
                what: "written",
                reason,
            })?;
        rustix::fs::renameat(&self.dir, draft, &self.dir, &self.name)
            .map_err(|errno| io_error("replaced", errno))?;
        let dir = rustix::fs::openat(
            &self.dir,
            c".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        dir.and_then(|dir| rustix::fs::fsync(&dir))
            .map_err(|errno| io_error("synced", errno))
    }
}

#[expect(
    clippy::disallowed_types,
    reason = "fs_err cannot open relative to a directory; errors are given the path by the caller"
)]
fn to_file(fd: OwnedFd) -> std::fs::File {
    std::fs::File::from(fd)
}

/// Opens `path` step by step from the root directory, checking each.
fn open_trusted(path: &Path, if_missing: IfMissing) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut dir = rustix::fs::openat(CWD, c"/", flags, Mode::empty())
        .map_err(|errno| io_error("reached", errno))?;
    let mut walked = PathBuf::from("/");
    check_directory(&walked, dir.as_fd(), Last::from(path == walked))?;
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => continue,
            Component::Normal(_) => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(StoreError::UnsafePath(format!(
                    "has the part `{}`, expected a path without",
                    part.as_os_str().display()
                )));
            }
        }
        walked.push(part);
        let last = Last::from(path == walked);
        dir = match rustix::fs::openat(&dir, part.as_os_str(), flags, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT) if last == Last::Yes && if_missing == IfMissing::Create => {
                rustix::fs::mkdirat(&dir, part.as_os_str(), Mode::RWXU)
                    .and_then(|()| rustix::fs::openat(&dir, part.as_os_str(), flags, Mode::empty()))
                    .map_err(|errno| io_error("given a directory", errno))?
            }
            Err(Errno::NOENT) if if_missing == IfMissing::Create => {
                return Err(StoreError::UnsafePath(format!(
                    "cannot be made: directory `{walked}` does not exist; make it with \
                     `mkdir -m 0755 {walked}` as root",
                    walked = walked.display()
                )));
            }
            Err(Errno::NOENT) => return Err(StoreError::Missing),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(StoreError::UnsafePath(format!(
                    "is below `{}`, which is a file or a symbolic link, expected a directory",
                    walked.display()
                )));
            }
            Err(errno) => return Err(io_error("reached", errno)),
        };
        check_directory(&walked, dir.as_fd(), last)?;
    }
    Ok(dir)
}

/// Whether a directory holds the file itself, rather than another directory on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    Yes,
    No,
}

impl From<bool> for Last {
    fn from(last: bool) -> Self {
        if last { Self::Yes } else { Self::No }
    }
}

fn check_directory(
    path: &Path,
    dir: rustix::fd::BorrowedFd<'_>,
    last: Last,
) -> Result<(), StoreError> {
    let found = rustix::fs::fstat(dir).map_err(|errno| io_error("reached", errno))?;
    directory_fault(found.st_uid, found.st_mode, last).map_or(Ok(()), |fault| {
        Err(StoreError::UnsafePath(format!(
            "is in directory `{}`, which {fault}",
            path.display()
        )))
    })
}

/// What is wrong with a directory of this owner and mode.
fn directory_fault(owner: u32, mode: u32, last: Last) -> Option<String> {
    let mode = mode & 0o7777;
    let closed = mode & 0o022 == 0;
    // Others may add to a sticky directory, but not rename or remove what root has there.
    let passable = last == Last::No && mode & 0o1000 != 0;
    if owner != 0 {
        Some(format!("belongs to uid `{owner}`, expected root"))
    } else if !closed && !passable {
        Some(format!(
            "has mode `{mode:04o}`, expected none but root to write there"
        ))
    } else {
        None
    }
}

fn check_file(found: &Stat) -> Result<(), StoreError> {
    file_fault(
        FileType::from_raw_mode(found.st_mode),
        found.st_uid,
        found.st_mode,
        found.st_size,
    )
    .map_or(Ok(()), |fault| {
        Err(StoreError::UnsafeFile(format!(
            "{fault}, expected a regular file of root with mode `0600`"
        )))
    })
}

/// What is wrong with a snapshot file of this kind, owner, mode and size.
fn file_fault(kind: FileType, owner: u32, mode: u32, size: i64) -> Option<String> {
    let mode = mode & 0o7777;
    if kind == FileType::Symlink {
        Some("is a symbolic link".into())
    } else if kind != FileType::RegularFile {
        Some("is no regular file".into())
    } else if owner != 0 {
        Some(format!("belongs to uid `{owner}`"))
    } else if mode & 0o7177 != 0 {
        Some(format!("has mode `{mode:04o}`"))
    } else if !u64::try_from(size).is_ok_and(|size| size <= SIZE_LIMIT) {
        Some(format!("has {size} bytes, more than {SIZE_LIMIT}"))
    } else {
        None
    }
}

fn io_error(what: &'static str, errno: Errno) -> StoreError {
    StoreError::Io {
        what,
        reason: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_root_that_none_else_writes_is_trusted() {
        for mode in [0o700, 0o755, 0o711, 0o1755] {
            assert_eq!(
                directory_fault(0, 0o040_000 | mode, Last::Yes),
                None,
                "{mode:o}"
            );
        }
    }

    #[test]
    fn a_directory_of_another_user_is_not() {
        assert!(directory_fault(1000, 0o700, Last::Yes).is_some());
        assert!(directory_fault(1000, 0o1755, Last::No).is_some());
    }

    #[test]
    fn a_directory_that_group_or_others_write_is_not() {
        for mode in [0o720, 0o702, 0o777] {
            assert!(directory_fault(0, mode, Last::Yes).is_some(), "{mode:o}");
            assert!(directory_fault(0, mode, Last::No).is_some(), "{mode:o}");
        }
    }

    #[test]
    fn a_sticky_directory_may_be_passed_through_but_not_hold_the_file() {
        assert_eq!(directory_fault(0, 0o1777, Last::No), None);
        assert!(directory_fault(0, 0o1777, Last::Yes).is_some());
    }

    #[test]
    fn a_regular_file_of_root_alone_is_trusted() {
        assert_eq!(file_fault(FileType::RegularFile, 0, 0o100_600, 10), None);
        assert_eq!(file_fault(FileType::RegularFile, 0, 0o100_400, 0), None);
    }

    #[test]
    fn any_other_file_is_not() {
        let faults = [
            file_fault(FileType::Symlink, 0, 0o777, 10),
            file_fault(FileType::Fifo, 0, 0o600, 10),
            file_fault(FileType::RegularFile, 1000, 0o600, 10),
            file_fault(FileType::RegularFile, 0, 0o640, 10),
            file_fault(FileType::RegularFile, 0, 0o604, 10),
            file_fault(FileType::RegularFile, 0, 0o4600, 10),
            file_fault(FileType::RegularFile, 0, 0o600, (64 << 20) + 1),
        ];
        let faults: Vec<String> = faults.into_iter().map(Option::unwrap).collect();
        insta::assert_snapshot!(faults.join("\n"));
    }

    #[test]
    fn the_largest_snapshot_is_read() {
        assert_eq!(file_fault(FileType::RegularFile, 0, 0o600, 64 << 20), None);
    }
}
