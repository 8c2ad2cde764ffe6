//! A process as plain data: what `/proc` said about it at one moment.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Number of a process. The kernel gives it to another process as soon as this one is reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pid(pub u32);

impl Pid {
    /// The first process of the PID namespace, which adopts orphans.
    pub const INIT: Self = Self(1);
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One process and no other, within one boot: its number and when it started.
///
/// Two processes share it only if the kernel went through all its numbers within one clock tick
/// (10 ms); the fastest cycle measured took 1.8 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessId {
    /// Number of the process.
    pub pid: Pid,
    /// Start, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (started at tick {})", self.pid, self.start_time)
    }
}

/// The four user ids of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uids {
    /// Who started it.
    pub real: u32,
    /// Whose rights it has now.
    pub effective: u32,
    /// Whose rights it may take back.
    pub saved: u32,
    /// Whose rights it has on files.
    pub filesystem: u32,
}

impl Uids {
    /// All four the same.
    #[must_use]
    pub const fn all(uid: u32) -> Self {
        Self {
            real: uid,
            effective: uid,
            saved: uid,
            filesystem: uid,
        }
    }

    /// All four, in the order of `/proc/PID/status`.
    #[must_use]
    pub const fn each(self) -> [u32; 4] {
        [self.real, self.effective, self.saved, self.filesystem]
    }
}

/// Bytes that are nearly always text: a path, an argument, the name of a cgroup.
///
/// In JSON they are a string if they are UTF-8, else an array of numbers; nothing is lost.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub Vec<u8>);

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => serializer.collect_seq(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNumbers;

        impl<'de> Visitor<'de> for TextOrNumbers {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of bytes")
            }

            fn visit_str<E>(self, text: &str) -> Result<Bytes, E> {
                Ok(Bytes::from(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Bytes, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = numbers.next_element()? {
                    bytes.push(byte);
                }
                Ok(Bytes(bytes))
            }
        }

        deserializer.deserialize_any(TextOrNumbers)
    }
}

/// The program file a process runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exe {
    /// Path as the kernel tells it; ends in ` (deleted)` if the file is gone.
    pub path: Bytes,
    /// Device the file is on.
    pub dev: u64,
    /// Its number on that device: two files never share both while one of them runs.
    pub inode: u64,
}

/// A process at the moment its table entry was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Which process.
    pub id: ProcessId,
    /// Its parent, if that was still there to be asked when it started.
    pub parent: Option<ProcessId>,
    /// Its user ids.
    pub uids: Uids,
    /// State letter of proc(5): `R` running, `S` sleeping, `D` waiting for I/O, `T` stopped,
    /// `Z` zombie, …
    pub state: char,
    /// Threads, the first included.
    pub threads: u32,
    /// Runs in the kernel only; no signal ends it.
    pub kernel_thread: bool,
    /// Short name, at most 15 bytes; the process may choose it.
    pub comm: Bytes,
    /// Program file, if it could be read: zombies and kernel threads have none.
    pub exe: Option<Exe>,
    /// Arguments, at most [`ARGV_LIMIT`](crate::table::ARGV_LIMIT) bytes; the process may
    /// rewrite them, so nothing is decided by them.
    pub argv: Vec<Bytes>,
    /// Control group: that of the unified hierarchy, or systemd's own where the former is unused.
    pub cgroup: Option<Bytes>,
}

impl Process {
    /// Whether it has ended and only waits to be reaped.
    ///
    /// A zombie whose `threads` exceed 1 lost its first thread only; the others still run.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x') && self.threads <= 1
    }

    /// What a person calls it: the arguments, or the short name in brackets if there are none.
    #[must_use]
    pub fn command(&self) -> String {
        if self.argv.iter().all(|argument| argument.0.is_empty()) {
            return format!("[{}]", self.comm);
        }
        let arguments: Vec<String> = self.argv.iter().map(ToString::to_string).collect();
        arguments.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::process;
    use proptest::prelude::*;

    #[test]
    fn a_plain_zombie_is_dead() {
        let zombie = Process {
            state: 'Z',
            threads: 1,
            ..process(7)
        };
        assert!(zombie.is_dead());
    }

    #[test]
    fn a_zombie_with_a_live_thread_is_not_dead() {
        let leader = Process {
            state: 'Z',
            threads: 2,
            ..process(7)
        };
        assert!(!leader.is_dead());
    }

    #[test]
    fn a_stopped_process_is_not_dead() {
        let stopped = Process {
            state: 'T',
            ..process(7)
        };
        assert!(!stopped.is_dead());
    }

    #[test]
    fn a_process_without_arguments_is_called_by_its_short_name_in_brackets() {
        let nameless = Process {
            argv: vec![],
            comm: "make".into(),
            ..process(7)
        };
        assert_eq!(nameless.command(), "[make]");
    }

    #[test]
    fn a_process_that_blanked_its_arguments_is_called_by_its_short_name() {
        let blank = Process {
            argv: vec!["".into(), "".into()],
            comm: "x".into(),
            ..process(7)
        };
        assert_eq!(blank.command(), "[x]");
    }

    proptest! {
        #[test]
        fn any_bytes_survive_json(bytes: Vec<u8>) {
            let json = serde_json::to_vec(&Bytes(bytes.clone())).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Bytes>(&json).unwrap(), Bytes(bytes));
        }
    }
}
