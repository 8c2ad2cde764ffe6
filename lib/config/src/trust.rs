//! Whether a file may command what runs as root: nobody but root and the running user can change it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// Sticky bit: in such a directory only the owner of an entry can rename or remove it.
const STICKY: u32 = 0o1000;
/// Group or others may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Most links followed on one path, as in Linux: only a path that changes meanwhile has more.
const MOST_LINKS: usize = 40;

/// Why a path is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    /// It cannot be looked at.
    #[error(transparent)]
    Unreadable(#[from] std::io::Error),
    /// It is a link to a file that is not there.
    #[error(
        "`{path}` is a link to `{target}`, which is not there: expected a file; type `rm {path}`, or put the file there"
    )]
    Dangling {
        /// The link.
        path: PathBuf,
        /// What it names.
        target: PathBuf,
    },
    /// Somebody else owns it.
    #[error(
        "`{path}` belongs to uid {owner}: expected root or the running user (uid {running}); type `chown root {path}`"
    )]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs.
        running: u32,
    },
    /// It is a link that somebody else can change.
    #[error(
        "the link `{path}` belongs to uid {owner}: expected root or the running user (uid {running}); type `chown -h root {path}`"
    )]
    Link {
        /// The link.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs.
        running: u32,
    },
    /// Somebody else may write it.
    #[error(
        "`{path}` may be written by others (mode {mode:04o}): expected only its owner to; type `chmod go-w {path}`"
    )]
    Writable {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Checks `path`, behind any symbolic links, every directory above it, and above each of the links.
///
/// # Errors
/// If anybody but root or the running user could change what `path` names.
pub fn check(path: &Path) -> Result<(), Distrust> {
    let real = fs_err::canonicalize(path).map_err(|error| match fs_err::read_link(path) {
        Ok(target) if error.kind() == std::io::ErrorKind::NotFound => Distrust::Dangling {
            path: path.to_owned(),
            target,
        },
        Ok(_) | Err(_) => error.into(),
    })?;
    check_one(&real, false)?;
    for directory in real.ancestors().skip(1) {
        check_one(directory, true)?;
    }
    check_links(path)
}

/// Checks every link on the way to `path`: who can change one decides what `path` names.
fn check_links(path: &Path) -> Result<(), Distrust> {
    let mut place = PathBuf::new();
    let mut rest = std::path::absolute(path)?;
    let mut links = 0;
    loop {
        let mut steps = rest.components();
        let Some(step) = steps.next() else {
            return Ok(());
        };
        let after = steps.as_path().to_owned();
        if step == Component::ParentDir {
            place.pop();
            rest = after;
            continue;
        }
        let next = place.join(step);
        if fs_err::symlink_metadata(&next)?.is_symlink() {
            links += 1;
            if links > MOST_LINKS {
                return Err(std::io::Error::from(rustix::io::Errno::LOOP).into());
            }
            check_link(&place, &next)?;
            rest = fs_err::read_link(&next)?.join(after);
        } else {
            place = next;
            rest = after;
        }
    }
}

/// Checks one link and the directory it stands in, a path without links.
fn check_link(directory: &Path, link: &Path) -> Result<(), Distrust> {
    for directory in directory.ancestors() {
        check_one(directory, true)?;
    }
    // In a sticky directory everybody can make a link, and change his own.
    let is_shared = fs_err::metadata(directory)?.mode() & WRITABLE_BY_OTHERS != 0;
    let owner = fs_err::symlink_metadata(link)?.uid();
    let running = rustix::process::geteuid().as_raw();
    if is_shared && owner != 0 && owner != running {
        return Err(Distrust::Link {
            path: link.to_owned(),
            owner,
            running,
        });
    }
    Ok(())
}

/// Checks the entry `path` alone, for entries of a directory that was checked before.
///
/// # Errors
/// If anybody but root or the running user could change what `path` names.
pub fn check_entry(path: &Path) -> Result<(), Distrust> {
    if fs_err::symlink_metadata(path)?.is_symlink() {
        check(path)
    } else {
        check_one(path, false)
    }
}

fn check_one(path: &Path, is_ancestor: bool) -> Result<(), Distrust> {
    let metadata = fs_err::metadata(path)?;
    let running = rustix::process::geteuid().as_raw();
    let mode = metadata.mode() & 0o7777;
    if metadata.uid() != 0 && metadata.uid() != running {
        return Err(Distrust::Owner {
            path: path.to_owned(),
            owner: metadata.uid(),
            running,
        });
    }
    let sticky_ancestor = is_ancestor && mode & STICKY != 0;
    if mode & WRITABLE_BY_OTHERS != 0 && !sticky_ancestor {
        return Err(Distrust::Writable {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_only_its_owner_writes_is_trusted() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("task");
        fs_err::write(&file, "").unwrap();
        chmod(&file, 0o755);
        check(&file).unwrap();
    }

    #[test]
    fn a_file_others_may_write_is_not_trusted() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("task");
        fs_err::write(&file, "").unwrap();
        for mode in [0o775, 0o757] {
            chmod(&file, mode);
            assert!(
                matches!(check(&file), Err(Distrust::Writable { .. })),
                "{mode:o}"
            );
        }
    }

    #[test]
    fn a_file_below_a_directory_others_may_write_is_not_trusted() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("task");
        fs_err::write(&file, "").unwrap();
        chmod(&file, 0o755);
        chmod(directory.path(), 0o777);
        assert!(matches!(check(&file), Err(Distrust::Writable { .. })));
        chmod(directory.path(), 0o1777);
        check(&file).unwrap();
    }

    #[test]
    fn a_link_is_judged_by_what_it_names() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("task");
        let link = directory.path().join("link");
        fs_err::write(&file, "").unwrap();
        chmod(&file, 0o777);
        fs_err::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(matches!(check_entry(&link), Err(Distrust::Writable { .. })));
    }

    #[test]
    fn a_link_is_judged_by_where_it_stands() {
        let (open, closed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = closed.path().join("task");
        fs_err::write(&file, "").unwrap();
        chmod(&file, 0o755);
        // Relative and through two directories, as a link of a package may be.
        let target = Path::new("..")
            .join(closed.path().file_name().unwrap())
            .join("task");
        let link = open.path().join("link");
        fs_err::os::unix::fs::symlink(target, &link).unwrap();
        let second = closed.path().join("second");
        fs_err::os::unix::fs::symlink(&link, &second).unwrap();
        for path in [&link, &second] {
            chmod(open.path(), 0o755);
            check(path).unwrap();
            chmod(open.path(), 0o777);
            assert!(
                matches!(check(path), Err(Distrust::Writable { path, .. }) if path == open.path())
            );
            chmod(open.path(), 0o1777);
            check(path).unwrap();
        }
    }

    #[test]
    fn a_link_of_another_user_is_trusted_only_where_he_cannot_change_it() {
        if !rustix::process::geteuid().is_root() {
            // Only root can give a link away.
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("task"), directory.path().join("link"));
        fs_err::write(&file, "").unwrap();
        chmod(&file, 0o755);
        fs_err::os::unix::fs::symlink("task", &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(54_321), None).unwrap();
        chmod(directory.path(), 0o755);
        check(&link).unwrap();
        chmod(directory.path(), 0o1777);
        let distrust = check(&link).unwrap_err();
        assert!(matches!(distrust, Distrust::Link { owner: 54_321, .. }));
        assert!(distrust.to_string().contains("type `chown -h root "));
    }
}
