//! The process table, read from `/proc` and nowhere else.
//!
//! A first pass costs one directory listing and, per process, the reading of its user ids; the
//! owner of `/proc/PID` is the effective user only, and a setuid program that a job started has
//! another. Only a process of the wanted users is read in full. Later passes recognise the others
//! by one `fstatat` ([`Strangers`]): the shorter a pass, the sooner one is not disturbed.
//!
//! Everything about one process is read through one open `/proc/PID` directory. The kernel ties
//! that descriptor to the process and not to its number: once the process is reaped every read
//! fails, so facts of two processes are never mixed.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::process::getpid;

use crate::process::{Bytes, Exe, Pid, Process, ProcessId, Uids};
use crate::users::Users;

/// How much of a process's arguments is read: what `ps` showed before Linux 4.2, one page. They are
/// for people to read; a process may have megabytes of them, and thousands of processes may.
pub const ARGV_LIMIT: usize = 4096;

/// Bytes of `/proc/PID/stat`, `status` or `cgroup` that are read. The fields used stand within the
/// first page of each.
const ENTRY_LIMIT: usize = 8192;

/// `PF_KTHREAD` of the kernel's `include/linux/sched.h`, in field 9 of `/proc/PID/stat`.
const KERNEL_THREAD_FLAG: u64 = 0x0020_0000;

/// Magic number of procfs, from `statfs(2)`.
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// Why the process table cannot be trusted or read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// `/proc` is something else, or that of another PID namespace.
    #[error("{0}")]
    Unfit(String),
    /// A file of `/proc` could not be read.
    #[error("cannot read `/proc/{what}`")]
    Read {
        /// Path below `/proc`.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// How much is read of each process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Enough to recognise a recorded process and to name any other. Where the effective user
    /// shows that a process is wanted, its `uids` are that user four times: reading the others
    /// would be a quarter of the pass.
    Named,
    /// Also program file, cgroup and parent: enough to tell a restarted service.
    Full,
}

/// Processes that an earlier pass found to belong to none of its users.
///
/// They are recognised by the number and owner of their `/proc/PID` directory. The kernel numbers
/// such a directory anew for each process, so a number that passed to another process is read
/// again; so is one whose effective user changed. A stranger that changes its *real* user only is
/// not noticed until the next sweep.
#[derive(Debug, Default)]
pub struct Strangers(HashMap<Pid, (u64, u32)>);

/// The process table of this PID namespace.
#[derive(Debug)]
pub struct ProcTable {
    proc: OwnedFd,
}

impl ProcTable {
    /// Opens `/proc`.
    ///
    /// # Errors
    /// If it is not procfs, or if it shows another PID namespace: its numbers would then name
    /// other processes to `pidfd_open` than to a reader.
    pub fn open() -> Result<Self, TableError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::openat(CWD, c"/proc", flags, Mode::empty())
            .map_err(|errno| read_error("", errno))?;
        let magic = rustix::fs::fstatfs(&proc)
            .map_err(|errno| read_error("", errno))?
            .f_type;
        if u64::try_from(magic) != Ok(PROC_SUPER_MAGIC) {
            return Err(TableError::Unfit(
                "`/proc` is not a proc file system; mount it with `mount -t proc proc /proc`"
                    .into(),
            ));
        }
        let own = rustix::fs::readlinkat(&proc, c"self", Vec::new())
            .map_err(|errno| read_error("self", errno))?;
        let expected = getpid().to_string();
        if own.as_bytes() != expected.as_bytes() {
            return Err(TableError::Unfit(format!(
                "`/proc` shows another PID namespace: it calls this process `{}`, expected \
                 `{expected}`; mount this one's with `mount -t proc proc /proc`",
                own.to_string_lossy()
            )));
        }
        Ok(Self { proc })
    }

    /// Processes and threads started since boot, in all namespaces.
    ///
    /// The kernel counts under the same lock that makes a new process visible. A pass over the
    /// table during which the count stood still has therefore missed no process.
    ///
    /// # Errors
    /// If `/proc/stat` cannot be read or has no such count.
    pub fn forks(&self) -> Result<u64, TableError> {
        let mut text = Vec::new();
        // Its per-interrupt line grows with the machine; the count comes after it.
        read_at(self.proc.as_fd(), c"stat", usize::MAX, &mut text)
            .map_err(|errno| read_error("stat", errno))?;
        parse_forks(&text).ok_or_else(|| TableError::Read {
            what: "stat".into(),
            source: io::Error::new(io::ErrorKind::InvalidData, "it has no line `processes`"),
        })
    }

    /// Kernel's id of this boot.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn boot_id(&self) -> Result<String, TableError> {
        let what = "sys/kernel/random/boot_id";
        let mut text = Vec::new();
        read_at(
            self.proc.as_fd(),
            c"sys/kernel/random/boot_id",
            128,
            &mut text,
        )
        .map_err(|errno| read_error(what, errno))?;
        Ok(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// Number of this process's namespace of the given kind, `pid` or `time`; `None` where the
    /// kernel has no such kind.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn namespace(&self, kind: &str) -> Result<Option<u64>, TableError> {
        let what = format!("self/ns/{kind}");
        match rustix::fs::statat(&self.proc, what.as_str(), AtFlags::empty()) {
            Ok(stat) => Ok(Some(stat.st_ino)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(read_error(&what, errno)),
        }
    }

    /// Control group this process is in.
    #[must_use]
    pub fn own_cgroup(&self) -> Option<Bytes> {
        let mut text = Vec::new();
        read_at(self.proc.as_fd(), c"self/cgroup", ENTRY_LIMIT, &mut text).ok()?;
        parse_cgroup(&text)
    }

    /// This process and every process above it.
    ///
    /// # Errors
    /// If one of them cannot be read, except that it ended just now.
    pub fn own_line(&self) -> Result<BTreeSet<Pid>, TableError> {
        let mut line = BTreeSet::new();
        let mut pid = Pid(getpid().as_raw_nonzero().get().unsigned_abs());
        // A parent in an outer PID namespace is shown as 0.
        while pid.0 != 0 && line.insert(pid) {
            let Some(stat) = self.stat_of(pid)? else {
                break;
            };
            pid = stat.parent;
        }
        Ok(line)
    }

    /// All processes of `users`, the dead but not yet reaped included. `strangers` must be of
    /// earlier passes for the same users, or new.
    ///
    /// # Errors
    /// If the table cannot be listed or an entry cannot be read, except because it is gone.
    pub fn scan(
        &self,
        users: &Users,
        detail: Detail,
        strangers: &mut Strangers,
    ) -> Result<Vec<Process>, TableError> {
        // A second descriptor, because a listing moves its position.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let listed = rustix::fs::openat(&self.proc, c".", flags, Mode::empty())
            .map_err(|errno| read_error("", errno))?;
        let mut room = [MaybeUninit::<u8>::uninit(); 32 * 1024];
        let mut entries = RawDir::new(&listed, &mut room);
        let mut reader = Reader {
            table: self,
            strangers,
            starts: HashMap::new(),
            text: Vec::new(),
        };
        let mut found = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|errno| read_error("", errno))?;
            let Some(pid) = parse_pid(entry.file_name().to_bytes()) else {
                continue;
            };
            match reader.read(pid, entry.file_name(), users, detail) {
                Ok(process) => found.extend(process),
                Err(errno) if is_gone(errno) => {}
                Err(errno) => return Err(read_error(&pid.to_string(), errno)),
            }
        }
        Ok(found)
    }

    /// Which process has number `pid` now, if it belongs to one of `users`.
    ///
    /// # Errors
    /// If it exists but cannot be read.
    pub fn identify(&self, pid: Pid, users: &Users) -> Result<Option<ProcessId>, TableError> {
        match self.try_identify(pid, users) {
            Ok(id) => Ok(id),
            Err(errno) if is_gone(errno) => Ok(None),
            Err(errno) => Err(read_error(&pid.to_string(), errno)),
        }
    }

    /// The start is read after the owner: if it is the expected one, the process was there all the
    /// while, and the owner is its.
    fn try_identify(&self, pid: Pid, users: &Users) -> Result<Option<ProcessId>, Errno> {
        let proc = self.proc.as_fd();
        let mut text = Vec::new();
        let owner = rustix::fs::statat(proc, pid.to_string(), AtFlags::empty())?.st_uid;
        if !users.contains(owner) {
            read_at(proc, format!("{pid}/status"), ENTRY_LIMIT, &mut text)?;
            if !parse_uids(&text).is_some_and(|uids| users.own(uids)) {
                return Ok(None);
            }
        }
        read_at(proc, format!("{pid}/stat"), ENTRY_LIMIT, &mut text)?;
        let stat = parse_stat(&text).map_err(|_| Errno::INVAL)?;
        Ok(Some(ProcessId {
            pid,
            start_time: stat.start_time,
        }))
    }

    fn stat_of(&self, pid: Pid) -> Result<Option<Stat>, TableError> {
        let what = format!("{pid}/stat");
        let mut text = Vec::new();
        match read_at(self.proc.as_fd(), what.as_str(), ENTRY_LIMIT, &mut text) {
            Ok(()) => {}
            Err(errno) if is_gone(errno) => return Ok(None),
            Err(errno) => return Err(read_error(&what, errno)),
        }
        parse_stat(&text)
            .map(Some)
            .map_err(|error| TableError::Read {
                what,
                source: io::Error::new(io::ErrorKind::InvalidData, error),
            })
    }
}

/// One pass over the table.
struct Reader<'a> {
    table: &'a ProcTable,
    strangers: &'a mut Strangers,
    /// When parents started: most processes of a pass share a few.
    starts: HashMap<Pid, Option<u64>>,
    text: Vec<u8>,
}

impl Reader<'_> {
    fn read(
        &mut self,
        pid: Pid,
        name: &CStr,
        users: &Users,
        detail: Detail,
    ) -> Result<Option<Process>, Errno> {
        let proc = self.table.proc.as_fd();
        let entry = rustix::fs::statat(proc, name, AtFlags::empty())?;
        let mark = (entry.st_ino, entry.st_uid);
        if self.strangers.0.get(&pid) == Some(&mark) {
            return Ok(None);
        }
        let dir = open_entry(proc, name)?;
        let dir = dir.as_fd();
        let uids = if detail == Detail::Named && users.contains(entry.st_uid) {
            Uids::all(entry.st_uid)
        } else {
            read_uids(dir, &mut self.text)?
        };
        if !users.own(uids) {
            self.strangers.0.insert(pid, mark);
            return Ok(None);
        }
        read_at(dir, c"stat", ENTRY_LIMIT, &mut self.text)?;
        let stat = parse_stat(&self.text).map_err(|_| Errno::INVAL)?;
        read_at(dir, c"cmdline", ARGV_LIMIT, &mut self.text)?;
        let argv = parse_argv(&self.text);
        let (exe, cgroup, parent) = match detail {
            Detail::Named => (None, None, None),
            Detail::Full => (
                read_exe(dir),
                self.read_cgroup(dir),
                self.start_of(stat.parent).map(|start_time| ProcessId {
                    pid: stat.parent,
                    start_time,
                }),
            ),
        };
        Ok(Some(Process {
            id: ProcessId {
                pid,
                start_time: stat.start_time,
            },
            parent,
            uids,
            state: stat.state,
            threads: stat.threads,
            kernel_thread: stat.kernel_thread,
            comm: stat.comm,
            exe,
            argv,
            cgroup,
        }))
    }

    fn read_cgroup(&mut self, dir: BorrowedFd<'_>) -> Option<Bytes> {
        read_at(dir, c"cgroup", ENTRY_LIMIT, &mut self.text).ok()?;
        parse_cgroup(&self.text)
    }

    fn start_of(&mut self, pid: Pid) -> Option<u64> {
        *self.starts.entry(pid).or_insert_with(|| {
            self.table
                .stat_of(pid)
                .ok()
                .flatten()
                .map(|stat| stat.start_time)
        })
    }
}

/// What `/proc/PID/stat` says, as far as it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Short name; may hold any byte, parentheses and line breaks included.
    pub comm: Bytes,
    /// State letter.
    pub state: char,
    /// Parent's number, 0 if it has none in this namespace.
    pub parent: Pid,
    /// Runs in the kernel only.
    pub kernel_thread: bool,
    /// Threads, the first included.
    pub threads: u32,
    /// Start, in clock ticks since boot.
    pub start_time: u64,
}

/// What is wrong with a text that should have been `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatError {
    /// No name in parentheses.
    #[error("no short name in parentheses")]
    NoName,
    /// Field of proc(5) that is missing or is no such number.
    #[error("field {0} is missing or not a number")]
    Field(usize),
}

/// Reads `/proc/PID/stat`.
///
/// The name may contain `) R 1`, so the fields are counted from the *last* `)`.
///
/// # Errors
/// If the text is cut short or is something else. Never panics, whatever the bytes.
pub fn parse_stat(text: &[u8]) -> Result<Stat, StatError> {
    let open = text
        .iter()
        .position(|&byte| byte == b'(')
        .ok_or(StatError::NoName)?;
    let close = text
        .iter()
        .rposition(|&byte| byte == b')')
        .ok_or(StatError::NoName)?;
    let comm = text.get(open + 1..close).ok_or(StatError::NoName)?;
    let fields: Vec<&[u8]> = text[close + 1..]
        .split(u8::is_ascii_whitespace)
        .filter(|field| !field.is_empty())
        .collect();
    // The field after the name is number 3 of proc(5).
    let field = |number: usize| {
        fields
            .get(number - 3)
            .copied()
            .ok_or(StatError::Field(number))
    };
    let state = match field(3)? {
        [letter] if letter.is_ascii_alphabetic() => char::from(*letter),
        _ => return Err(StatError::Field(3)),
    };
    let flags: u64 = number(field(9)?).ok_or(StatError::Field(9))?;
    Ok(Stat {
        comm: Bytes(comm.to_vec()),
        state,
        parent: Pid(number(field(4)?).ok_or(StatError::Field(4))?),
        kernel_thread: flags & KERNEL_THREAD_FLAG != 0,
        threads: number(field(20)?).ok_or(StatError::Field(20))?,
        start_time: number(field(22)?).ok_or(StatError::Field(22))?,
    })
}

/// Reads the four user ids from `/proc/PID/status`. Line breaks in the name are escaped there.
pub fn parse_uids(text: &[u8]) -> Option<Uids> {
    let line = text
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(b"Uid:"))?;
    let mut ids = line
        .split(u8::is_ascii_whitespace)
        .filter(|field| !field.is_empty())
        .map(number::<u32>);
    let mut next = || ids.next().flatten();
    Some(Uids {
        real: next()?,
        effective: next()?,
        saved: next()?,
        filesystem: next()?,
    })
}

/// Reads `/proc/PID/cgroup`: the path in the unified hierarchy, or in systemd's own if the former
/// is not used.
pub fn parse_cgroup(text: &[u8]) -> Option<Bytes> {
    let lines = || text.split(|&byte| byte == b'\n');
    let unified = lines().find_map(|line| line.strip_prefix(b"0::"));
    let of_systemd = || {
        lines().find_map(|line| {
            let at = line
                .windows(14)
                .position(|part| part == b":name=systemd:")?;
            line.get(at + 14..)
        })
    };
    match unified {
        Some(path) if path != b"/" => Some(path),
        unified => of_systemd().or(unified),
    }
    .map(|path| Bytes(path.to_vec()))
}

/// Reads `/proc/PID/cmdline`: arguments that each end in a NUL, the last perhaps cut.
pub fn parse_argv(text: &[u8]) -> Vec<Bytes> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|&byte| byte == 0)
        .map(|argument| Bytes(argument.to_vec()))
        .collect()
}

/// Reads the count of `/proc/stat`.
pub fn parse_forks(text: &[u8]) -> Option<u64> {
    text.split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(b"processes "))
        .and_then(|count| number(count.trim_ascii()))
}

fn parse_pid(name: &[u8]) -> Option<Pid> {
    name.first().filter(|byte| byte.is_ascii_digit())?;
    number(name).map(Pid)
}

fn number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn open_entry<P: rustix::path::Arg>(proc: BorrowedFd<'_>, name: P) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(proc, name, flags, Mode::empty())
}

fn read_uids(dir: BorrowedFd<'_>, text: &mut Vec<u8>) -> Result<Uids, Errno> {
    read_at(dir, c"status", ENTRY_LIMIT, text)?;
    parse_uids(text).ok_or(Errno::INVAL)
}

fn read_exe(dir: BorrowedFd<'_>) -> Option<Exe> {
    let path = rustix::fs::readlinkat(dir, c"exe", Vec::new()).ok()?;
    let file = rustix::fs::statat(dir, c"exe", AtFlags::empty()).ok()?;
    Some(Exe {
        path: Bytes(path.into_bytes()),
        dev: file.st_dev,
        inode: file.st_ino,
    })
}

/// Reads a file into `text`, whole or up to `limit` bytes.
fn read_at<P: rustix::path::Arg>(
    dir: BorrowedFd<'_>,
    path: P,
    limit: usize,
    text: &mut Vec<u8>,
) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, path, flags, Mode::empty())?;
    text.clear();
    while text.len() < limit {
        text.reserve(ENTRY_LIMIT);
        let room = text.capacity() - text.len();
        let read = rustix::io::retry_on_intr(|| {
            rustix::io::read(&file, rustix::buffer::spare_capacity(text))
        })?;
        // The kernel makes each of these texts in one piece, so what does not fill the room ends it.
        if read < room {
            break;
        }
    }
    text.truncate(limit);
    Ok(())
}

/// Whether an entry of `/proc` could not be read because the process is gone.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::SRCH)
}

fn read_error(what: &str, errno: Errno) -> TableError {
    TableError::Read {
        what: what.to_owned(),
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAT: &str = "4711 (sleep) S 1 4711 4711 0 -1 4194304 117 0 0 0 0 0 0 0 20 0 1 0 \
                        890123 5644288 216 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0\n";

    #[test]
    fn stat_tells_name_state_parent_threads_and_start() {
        assert_eq!(
            parse_stat(STAT.as_bytes()),
            Ok(Stat {
                comm: "sleep".into(),
                state: 'S',
                parent: Pid(1),
                kernel_thread: false,
                threads: 1,
                start_time: 890_123,
            })
        );
    }

    #[test]
    fn a_name_that_imitates_the_fields_does_not_move_them() {
        let hostile = STAT.replace("(sleep)", "(x) R 1 (\n) Z 9 9)");
        let stat = parse_stat(hostile.as_bytes()).unwrap();
        assert_eq!((stat.state, stat.start_time), ('S', 890_123));
        assert_eq!(stat.comm, "x) R 1 (\n) Z 9 9".into());
    }

    #[test]
    fn the_kernel_thread_flag_is_seen() {
        let kernel = STAT.replace("4194304", "2129984");
        assert!(parse_stat(kernel.as_bytes()).unwrap().kernel_thread);
    }

    #[test]
    fn a_stat_cut_before_the_start_time_is_refused() {
        let cut = STAT.split("890123").next().unwrap();
        assert_eq!(parse_stat(cut.as_bytes()), Err(StatError::Field(22)));
    }

    #[test]
    fn a_stat_whose_parentheses_are_the_wrong_way_round_is_refused() {
        assert_eq!(parse_stat(b"1 )x( S"), Err(StatError::NoName));
        assert_eq!(parse_stat(b")("), Err(StatError::NoName));
        assert_eq!(parse_stat(b""), Err(StatError::NoName));
    }

    #[test]
    fn all_four_user_ids_are_read() {
        let text = b"Name:\tUid: 9 9 9 9\nState:\tS\nUid:\t1000\t0\t2\t3\nGid:\t1\t1\t1\t1\n";
        let uids = Uids {
            real: 1000,
            effective: 0,
            saved: 2,
            filesystem: 3,
        };
        assert_eq!(parse_uids(text), Some(uids));
    }

    #[test]
    fn a_status_with_three_user_ids_is_refused() {
        assert_eq!(parse_uids(b"Uid:\t1\t2\t3\n"), None);
    }

    #[test]
    fn the_unified_cgroup_is_preferred() {
        let text = b"1:name=systemd:/a.service\n0::/system.slice/b.service\n";
        assert_eq!(parse_cgroup(text), Some("/system.slice/b.service".into()));
    }

    #[test]
    fn the_cgroup_of_systemd_is_used_where_the_unified_one_is_the_root() {
        let text = b"9:name=systemd:/system.slice/b.service\n8:pids:/x\n0::/\n";
        assert_eq!(parse_cgroup(text), Some("/system.slice/b.service".into()));
    }

    #[test]
    fn a_host_without_systemd_is_in_the_root_cgroup() {
        assert_eq!(parse_cgroup(b"0::/\n"), Some("/".into()));
    }

    #[test]
    fn arguments_keep_their_bytes_and_their_empty_ones() {
        let argv = vec!["sh".into(), "".into(), Bytes(vec![0xff])];
        assert_eq!(parse_argv(b"sh\0\0\xff\0"), argv);
    }

    #[test]
    fn no_arguments_are_none_and_not_one_empty() {
        assert_eq!(parse_argv(b""), Vec::new());
    }

    #[test]
    fn the_fork_count_is_the_line_processes() {
        let text = b"cpu 1 2\nprocs_running 4\nprocesses 123456\n";
        assert_eq!(parse_forks(text), Some(123_456));
    }

    #[test]
    fn only_numbers_are_processes() {
        assert_eq!(parse_pid(b"12"), Some(Pid(12)));
        assert_eq!(parse_pid(b"self"), None);
        assert_eq!(parse_pid(b"+1"), None);
    }

    #[test]
    fn this_process_is_found_by_its_user_and_identified_the_same_way_twice() {
        let table = ProcTable::open().unwrap();
        let own = Pid(getpid().as_raw_nonzero().get().unsigned_abs());
        let users = Users::from_iter([rustix::process::getuid().as_raw()]);
        let scanned = table
            .scan(&users, Detail::Full, &mut Strangers::default())
            .unwrap();
        let this = scanned
            .iter()
            .find(|process| process.id.pid == own)
            .unwrap();
        assert_eq!(table.identify(own, &users).unwrap(), Some(this.id));
        assert!(this.exe.is_some() && this.parent.is_some() && !this.argv.is_empty());
        assert!(table.own_line().unwrap().contains(&own));
    }

    #[test]
    fn a_process_is_not_identified_for_another_user() {
        let table = ProcTable::open().unwrap();
        let own = Pid(getpid().as_raw_nonzero().get().unsigned_abs());
        let stranger = Users::from_iter([61_099]);
        assert_eq!(table.identify(own, &stranger).unwrap(), None);
        assert!(
            table
                .scan(&stranger, Detail::Named, &mut Strangers::default())
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn strangers_are_remembered_and_own_processes_found_in_every_pass() {
        let table = ProcTable::open().unwrap();
        let users = Users::from_iter([rustix::process::getuid().as_raw()]);
        let own = Pid(getpid().as_raw_nonzero().get().unsigned_abs());
        let mut strangers = Strangers::default();
        for _ in 0..2 {
            let found = table.scan(&users, Detail::Named, &mut strangers).unwrap();
            assert!(found.iter().any(|process| process.id.pid == own));
            assert!(!strangers.0.contains_key(&own));
        }
        let nobody = Users::from_iter([61_099]);
        let mut strangers = Strangers::default();
        assert!(
            table
                .scan(&nobody, Detail::Named, &mut strangers)
                .unwrap()
                .is_empty()
        );
        assert!(strangers.0.contains_key(&own));
    }

    #[test]
    fn the_fork_count_moves_when_a_process_is_started() {
        let table = ProcTable::open().unwrap();
        let before = table.forks().unwrap();
        std::process::Command::new("true").status().unwrap();
        assert!(table.forks().unwrap() > before);
    }

    proptest! {
        #[test]
        fn the_stat_parser_is_total(text: Vec<u8>) {
            let _outcome = parse_stat(&text);
        }

        #[test]
        fn the_stat_parser_is_total_on_damaged_lines(
            at in 0..STAT.len(), byte: u8, length in 0..STAT.len()
        ) {
            let mut text = STAT.as_bytes().to_vec();
            text[at] = byte;
            text.truncate(length);
            let _outcome = parse_stat(&text);
        }

        #[test]
        fn any_name_is_read_back_whole(comm in proptest::collection::vec(any::<u8>(), 0..16)) {
            let (head, tail) = STAT.split_once("sleep").unwrap();
            let text = [head.as_bytes(), &comm, tail.as_bytes()].concat();
            let stat = parse_stat(&text).unwrap();
            prop_assert_eq!(stat.comm, Bytes(comm));
            prop_assert_eq!(stat.start_time, 890_123);
        }
    }
}
