//! The processes that belong on the host, as recorded when no job had run yet.
//!
//! A snapshot is valid for one boot, one PID namespace and one set of users. Everything else is
//! refused, an empty or damaged file above all: taking that for "nothing recorded yet" would bless
//! whatever the last job left.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::key::{Group, ProcessKey};
use crate::process::{Bytes, Process};
use crate::users::Users;

/// Version of the format this program writes, and the only one it reads: a snapshot lives as long
/// as a boot, so there is no old one to convert.
pub const VERSION: u32 = 1;

/// Where process numbers and start times mean what they mean in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Kernel's id of the boot.
    pub boot_id: String,
    /// Number of the PID namespace: in another, the same numbers are other processes.
    pub pid_namespace: Option<u64>,
    /// Number of the time namespace: in another, the same start times are other moments.
    pub time_namespace: Option<u64>,
}

/// The recorded processes of some users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Version of the format.
    pub version: u32,
    /// Where it was taken.
    pub place: Place,
    /// When it was taken.
    pub taken_at: Timestamp,
    /// Release of the kernel.
    pub kernel: String,
    /// Whose processes were recorded.
    pub users: Users,
    /// Processes the kernel had started since boot.
    pub forks: u64,
    /// Whether no process was started while the table was read, so that none can be missing.
    pub settled: bool,
    /// Cgroup of the process that took it.
    pub taker_cgroup: Option<Bytes>,
    /// Every process of the users, by number.
    pub processes: Vec<Process>,
    /// How many of them have each key.
    pub groups: Vec<Group>,
}

/// What is wrong with a snapshot.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Nothing in it.
    #[error("is empty, expected a snapshot")]
    Empty,
    /// Its end is missing.
    #[error("is truncated at line {line}, column {column}, expected a whole snapshot")]
    Truncated {
        /// Line of the end.
        line: usize,
        /// Column of the end.
        column: usize,
    },
    /// Not a snapshot.
    #[error("is damaged: {0}; expected a snapshot written by `cleanslate snapshot`")]
    Damaged(String),
    /// Written by another version of this program.
    #[error("has format version `{0}`, expected `{VERSION}`")]
    Version(u64),
    /// Taken before the last boot.
    #[error("was taken in boot `{found}`, expected the running boot `{expected}`")]
    OtherBoot {
        /// Its boot.
        found: String,
        /// The running boot.
        expected: String,
    },
    /// Taken inside or outside a container.
    #[error("was taken in {kind} namespace `{found}`, expected `{expected}`, that of this process")]
    OtherNamespace {
        /// `PID` or `time`.
        kind: &'static str,
        /// Its namespace.
        found: String,
        /// This process's namespace.
        expected: String,
    },
    /// Taken of other users.
    #[error("is of users `{found}`, expected `{expected}` as named by `--user`")]
    OtherUsers {
        /// Its users.
        found: Users,
        /// The users asked for.
        expected: Users,
    },
}

impl SnapshotError {
    /// Whether it is certain that the snapshot says nothing about this boot, so that taking
    /// another in its place loses nothing.
    #[must_use]
    pub fn is_of_another_boot(&self) -> bool {
        match self {
            Self::OtherBoot { .. } => true,
            Self::Empty
            | Self::Truncated { .. }
            | Self::Damaged(_)
            | Self::Version(_)
            | Self::OtherNamespace { .. }
            | Self::OtherUsers { .. } => false,
        }
    }
}

impl Snapshot {
    /// A snapshot of `processes`, which are sorted and counted here. The dead are left out.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one fact of the header, named by its field"
    )]
    #[must_use]
    pub fn new(
        place: Place,
        taken_at: Timestamp,
        kernel: String,
        users: Users,
        forks: u64,
        settled: bool,
        taker_cgroup: Option<Bytes>,
        mut processes: Vec<Process>,
    ) -> Self {
        processes.retain(|process| !process.is_dead() && !process.kernel_thread);
        processes.sort_by_key(|process| process.id);
        let groups = ProcessKey::count(&processes);
        let version = VERSION;
        Self {
            version,
            place,
            taken_at,
            kernel,
            users,
            forks,
            settled,
            taker_cgroup,
            processes,
            groups,
        }
    }

    /// Reads a snapshot, and checks that its parts agree.
    ///
    /// # Errors
    /// If it is empty, cut, damaged or of another version. Never panics, whatever the bytes.
    pub fn parse(text: &[u8]) -> Result<Self, SnapshotError> {
        #[derive(Deserialize)]
        struct Header {
            version: u64,
        }

        if text.trim_ascii().is_empty() {
            return Err(SnapshotError::Empty);
        }
        let header: Header = serde_json::from_slice(text).map_err(|error| unreadable(&error))?;
        if header.version != u64::from(VERSION) {
            return Err(SnapshotError::Version(header.version));
        }
        let snapshot: Self = serde_json::from_slice(text).map_err(|error| unreadable(&error))?;
        if snapshot.groups != ProcessKey::count(&snapshot.processes) {
            return Err(SnapshotError::Damaged(
                "`groups` does not count `processes`".into(),
            ));
        }
        Ok(snapshot)
    }

    /// The text of the snapshot, as [`parse`](Self::parse) reads it.
    ///
    /// # Panics
    /// Never: every key is text and every value has a JSON form.
    #[must_use]
    pub fn to_text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("a snapshot is plain data");
        text.push(b'\n');
        text
    }

    /// Checks that the snapshot is of here, of now and of `users`.
    ///
    /// # Errors
    /// The first that differs: boot, namespaces, users.
    pub fn check(&self, place: &Place, users: &Users) -> Result<(), SnapshotError> {
        if self.place.boot_id != place.boot_id {
            return Err(SnapshotError::OtherBoot {
                found: self.place.boot_id.clone(),
                expected: place.boot_id.clone(),
            });
        }
        let namespaces = [
            ("PID", self.place.pid_namespace, place.pid_namespace),
            ("time", self.place.time_namespace, place.time_namespace),
        ];
        for (kind, found, expected) in namespaces {
            if found != expected {
                let name = |number: Option<u64>| number.map_or("none".into(), |n| n.to_string());
                let (found, expected) = (name(found), name(expected));
                return Err(SnapshotError::OtherNamespace {
                    kind,
                    found,
                    expected,
                });
            }
        }
        if self.users != *users {
            return Err(SnapshotError::OtherUsers {
                found: self.users.clone(),
                expected: users.clone(),
            });
        }
        Ok(())
    }
}

fn unreadable(error: &serde_json::Error) -> SnapshotError {
    if error.is_eof() {
        SnapshotError::Truncated {
            line: error.line(),
            column: error.column(),
        }
    } else {
        // It quotes what it found, which may be anything, and a line break would forge a line.
        SnapshotError::Damaged(error.to_string().replace(char::is_control, "\u{fffd}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{USER, place, process, snapshot};
    use proptest::prelude::*;

    fn sample() -> Snapshot {
        let hostile = Process {
            argv: vec![Bytes(vec![0xff, 0x00]), "\u{1b}[2J".into()],
            ..process(9)
        };
        snapshot(vec![hostile, process(7)])
    }

    fn users() -> Users {
        Users::from_iter([USER])
    }

    #[test]
    fn a_snapshot_is_read_back_as_it_was_written() {
        assert_eq!(Snapshot::parse(&sample().to_text()), Ok(sample()));
    }

    #[test]
    fn the_format_is_as_documented() {
        insta::assert_snapshot!(String::from_utf8(snapshot(vec![process(7)]).to_text()).unwrap());
    }

    #[test]
    fn processes_are_in_order_and_the_dead_are_left_out() {
        let dead = Process {
            state: 'Z',
            ..process(8)
        };
        let snapshot = snapshot(vec![process(9), dead, process(7)]);
        let pids: Vec<u32> = snapshot
            .processes
            .iter()
            .map(|process| process.id.pid.0)
            .collect();
        assert_eq!(pids, [7, 9]);
    }

    #[test]
    fn an_empty_file_is_refused() {
        assert_eq!(Snapshot::parse(b""), Err(SnapshotError::Empty));
        assert_eq!(Snapshot::parse(b" \n"), Err(SnapshotError::Empty));
    }

    #[test]
    fn every_cut_is_refused() {
        let text = sample().to_text();
        // The last two bytes are the closing brace and a line break; without the latter it is whole.
        for length in 1..text.len() - 1 {
            let cut = Snapshot::parse(&text[..length]);
            assert!(
                matches!(cut, Err(SnapshotError::Truncated { .. })),
                "{length}: {cut:?}"
            );
        }
        assert!(Snapshot::parse(&text[..text.len() - 1]).is_ok());
    }

    #[test]
    fn another_version_is_named_even_if_its_fields_are_unknown() {
        assert_eq!(
            Snapshot::parse(br#"{"version":2,"new":1}"#),
            Err(SnapshotError::Version(2))
        );
        assert_eq!(
            Snapshot::parse(br#"{"version":0}"#),
            Err(SnapshotError::Version(0))
        );
    }

    #[test]
    fn other_json_and_other_text_are_damaged() {
        for text in ["{}", "[]", "null", "hello", "\0\0\0\0"] {
            let parsed = Snapshot::parse(text.as_bytes());
            assert!(
                matches!(parsed, Err(SnapshotError::Damaged(_))),
                "{text:?}: {parsed:?}"
            );
        }
    }

    #[test]
    fn damage_is_told_on_one_line() {
        let error = Snapshot::parse(br#"{"version":1,"a\nb":1}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `a\u{fffd}b`"));
    }

    #[test]
    fn a_process_taken_out_by_hand_is_noticed() {
        let mut cut = sample();
        cut.processes.pop();
        assert!(matches!(
            Snapshot::parse(&cut.to_text()),
            Err(SnapshotError::Damaged(_))
        ));
    }

    #[test]
    fn a_snapshot_of_here_and_now_is_taken() {
        assert_eq!(sample().check(&place(), &users()), Ok(()));
    }

    #[test]
    fn a_snapshot_of_another_boot_is_refused() {
        let error = sample()
            .check(
                &Place {
                    boot_id: "later".into(),
                    ..place()
                },
                &users(),
            )
            .unwrap_err();
        assert!(error.is_of_another_boot());
    }

    #[test]
    fn a_snapshot_of_another_namespace_is_refused() {
        for elsewhere in [
            Place {
                pid_namespace: Some(1),
                ..place()
            },
            Place {
                time_namespace: None,
                ..place()
            },
        ] {
            let error = sample().check(&elsewhere, &users()).unwrap_err();
            assert!(matches!(error, SnapshotError::OtherNamespace { .. }));
            assert!(!error.is_of_another_boot());
        }
    }

    #[test]
    fn a_snapshot_of_fewer_or_more_users_is_refused() {
        for others in [Users::from_iter([USER, 1001]), Users::from_iter([1001])] {
            let error = sample().check(&place(), &others).unwrap_err();
            assert!(matches!(error, SnapshotError::OtherUsers { .. }));
        }
    }

    #[test]
    fn errors_say_what_was_found_and_what_was_expected() {
        let elsewhere = Place {
            boot_id: "b".into(),
            ..place()
        };
        let container = Place {
            pid_namespace: Some(1),
            ..place()
        };
        let errors = [
            Snapshot::parse(b"").unwrap_err(),
            Snapshot::parse(b"{\n").unwrap_err(),
            Snapshot::parse(b"{}").unwrap_err(),
            Snapshot::parse(br#"{"version":9}"#).unwrap_err(),
            sample().check(&elsewhere, &users()).unwrap_err(),
            sample().check(&container, &users()).unwrap_err(),
            sample()
                .check(&place(), &Users::from_iter([5, 6]))
                .unwrap_err(),
        ];
        insta::assert_snapshot!(errors.map(|error| error.to_string()).join("\n"));
    }

    proptest! {
        #[test]
        fn the_parser_is_total(text: Vec<u8>) {
            let _outcome = Snapshot::parse(&text);
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0_usize..2000, byte: u8) {
            let mut text = sample().to_text();
            let at = at % text.len();
            text[at] = byte;
            let _outcome = Snapshot::parse(&text);
        }
    }
}
