//! What an instance with namespaces sees of the file system: everything, to read; its own, to write.
//!
//! In this order: every mount becomes read-only; `/run` and `/dev/shm` become empty, `/tmp` and
//! `/var/tmp` the instance's own; what is hidden becomes empty and what is kept is put back where it
//! was, outer directories first; `/proc` shows the instance's own processes and a boot id of its own.
//!
//! This keeps instances apart, and a job from damaging the machine by mistake. It is no jail: a job
//! that runs as root can undo it.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};

use crate::cloud::local::disk::{Meta, Place};

/// Directories that are empty at the start of every machine.
const FRESH: [(&str, &str); 2] = [("/run", "mode=755"), ("/dev/shm", "mode=1777")];
/// Directories for anybody's temporary files.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];

/// What becomes of a directory.
enum Fate {
    /// It becomes empty.
    Hidden,
    /// It stays, to read: it itself, whatever was mounted over its path before.
    Readable(OwnedFd),
    /// It stays, to read and to write.
    Writable(OwnedFd),
}

/// Keeps what is mounted here from being mounted outside.
pub(super) fn make_private() -> io::Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    Ok(mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?)
}

/// Makes the file system of this process that of the instance. It must be process 1 of namespaces of
/// its own.
pub(super) fn settle(place: &Place, meta: &Meta) -> io::Result<()> {
    if std::process::id() != 1 {
        return Err(io::Error::other(
            "this changes mounts, and is not process 1 of namespaces of its own",
        ));
    }
    rustix::process::chdir("/")?;
    make_private()?;
    let host = place.host();
    let own_tmp = host.join("tmp");
    fs_err::create_dir_all(&own_tmp)?;
    rustix::fs::chmod(&own_tmp, Mode::from_raw_mode(0o1777))?;
    let tmp = open(&own_tmp)?;
    let fates = fates(&host, meta)?;
    make_read_only()?;
    for (directory, options) in FRESH {
        if Path::new(directory).is_dir() {
            tmpfs(Path::new(directory), options)?;
        }
    }
    for directory in TEMPORARY {
        if Path::new(directory).is_dir() {
            bind(&tmp, Path::new(directory), true)?;
        }
    }
    let mut hidden = Vec::new();
    for (path, fate) in &fates {
        match fate {
            // What is below a directory that became empty is hidden already.
            Fate::Hidden if !path.is_dir() => {}
            Fate::Hidden => {
                tmpfs(path, "mode=755,size=1m")?;
                hidden.push(path);
            }
            Fate::Readable(itself) => put_back(itself, path, false)?,
            Fate::Writable(itself) => put_back(itself, path, true)?,
        }
    }
    for path in hidden {
        // Of two that are hidden in each other, the outer one alone may be there still.
        remount_if_there(path, MsFlags::MS_RDONLY)?;
    }
    proc()
}

/// What becomes of which directory, outer directories first.
fn fates(host: &Path, meta: &Meta) -> io::Result<Vec<(PathBuf, Fate)>> {
    let run = &meta.run;
    let mut fates: Vec<(PathBuf, Fate)> = Vec::new();
    fates.extend(run.hidden.iter().map(|path| (path.clone(), Fate::Hidden)));
    for path in run.runner.parent().into_iter().chain([run.image.as_path()]) {
        fates.push((path.to_owned(), Fate::Readable(open(path)?)));
    }
    for path in run.writable.iter().map(PathBuf::as_path).chain([host]) {
        fates.push((path.to_owned(), Fate::Writable(open(path)?)));
    }
    // The sort is stable: of one path, what is said last counts.
    fates.sort_by_key(|(path, _)| path.components().count());
    Ok(fates)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| {
        let error = io::Error::from(errno);
        io::Error::new(error.kind(), format!("`{}`: {error}", path.display()))
    })
}

/// Every mount that is there.
fn make_read_only() -> io::Result<()> {
    let mounts = fs_err::read_to_string("/proc/self/mountinfo")?;
    for (point, flags) in mounts.lines().filter_map(mount_point) {
        remount_if_there(&point, flags | MsFlags::MS_RDONLY)?;
    }
    Ok(())
}

/// Mount point and flags of a line of `mountinfo` (proc(5)).
fn mount_point(line: &str) -> Option<(PathBuf, MsFlags)> {
    let mut fields = line.split(' ').skip(4);
    let (point, options) = (fields.next()?, fields.next()?);
    let mut flags = MsFlags::empty();
    for option in options.split(',') {
        flags |= match option {
            "nosuid" => MsFlags::MS_NOSUID,
            "nodev" => MsFlags::MS_NODEV,
            "noexec" => MsFlags::MS_NOEXEC,
            _ => MsFlags::empty(),
        };
    }
    Some((unescape(point), flags))
}

/// The kernel writes blanks, line ends and backslashes as three octal digits.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let mut rest = text.as_bytes();
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| after.get(..3)).flatten();
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

fn put_back(itself: &OwnedFd, path: &Path, is_writable: bool) -> io::Result<()> {
    if !path.is_dir() {
        // Hidden by what was mounted above it.
        fs_err::create_dir_all(path)?;
    }
    bind(itself, path, is_writable)
}

fn bind(itself: &OwnedFd, path: &Path, is_writable: bool) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", itself.as_raw_fd());
    let flags = MsFlags::MS_BIND;
    mount(
        Some(source.as_str()),
        path,
        None::<&str>,
        flags,
        None::<&str>,
    )
    .map_err(|errno| named("mount", path, &errno.into()))?;
    let was = rustix::fs::fstatvfs(itself)?.f_flag;
    let mut flags = MsFlags::empty();
    for (has, flag) in [
        (StatVfsMountFlags::NOSUID, MsFlags::MS_NOSUID),
        (StatVfsMountFlags::NODEV, MsFlags::MS_NODEV),
        (StatVfsMountFlags::NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        if was.contains(has) {
            flags |= flag;
        }
    }
    if !is_writable {
        flags |= MsFlags::MS_RDONLY;
    }
    remount(path, flags).map_err(|errno| named("mount", path, &errno.into()))
}

fn tmpfs(path: &Path, options: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options))
        .map_err(|errno| named("mount", path, &errno.into()))
}

fn remount_if_there(path: &Path, flags: MsFlags) -> io::Result<()> {
    use nix::errno::Errno;
    match remount(path, flags) {
        // Something else is mounted over it or above it, and is what anybody would see.
        Err(Errno::ENOENT | Errno::EINVAL) => Ok(()),
        Err(errno) => Err(named("make read-only", path, &errno.into())),
        Ok(()) => Ok(()),
    }
}

fn remount(path: &Path, flags: MsFlags) -> nix::Result<()> {
    let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
}

/// Own processes, and a boot of its own.
fn proc() -> io::Result<()> {
    let uuid = fs_err::read_to_string("/proc/sys/kernel/random/uuid")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)?;
    let boot_id = "/run/boot_id";
    fs_err::write(boot_id, uuid)?;
    let over = "/proc/sys/kernel/random/boot_id";
    mount(
        Some(boot_id),
        over,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(())
}

fn named(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot {what} `{}`: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_keeps_its_restrictions() {
        let line =
            r"36 35 98:0 /mnt1 /mnt\0402 rw,nosuid,noexec,relatime master:1 - ext4 /dev/root rw";
        assert_eq!(
            mount_point(line),
            Some((
                PathBuf::from("/mnt 2"),
                MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC
            ))
        );
        assert_eq!(mount_point("36 35"), None);
    }

    #[test]
    fn only_whole_escapes_are_undone() {
        for (text, path) in [(r"/a\134b", r"/a\b"), (r"/a\04", r"/a\04"), ("/é", "/é")] {
            assert_eq!(unescape(text), PathBuf::from(path), "{text}");
        }
    }
}
