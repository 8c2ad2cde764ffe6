//! What identifies a program, so that a restarted service is not taken for a leftover.
//!
//! A recorded process is recognised by number and start time ([`ProcessId`]). If it ended and its
//! supervisor started it again, both differ, and something else must tell the new process from
//! one that a job left behind and dressed up. Arguments and short name cannot: a process writes
//! its own. Two things together can:
//!
//! - the **key**: real and effective user, program file by device and inode, and cgroup;
//! - the **origin**: who started it. A job can run the same program as the same user, but the
//!   kernel decides whose child it is and in whose cgroup it lies.
//!
//! [`is_restart`] asks for both. What they cannot tell is listed in `docs/cleanslate.md`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::process::{Bytes, Exe, Pid, Process, ProcessId};

/// What identifies a program that runs as a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessKey {
    /// Real user.
    pub real_uid: u32,
    /// Effective user.
    pub effective_uid: u32,
    /// Program file.
    pub exe: Exe,
    /// Control group, if there are any.
    pub cgroup: Option<Bytes>,
}

impl ProcessKey {
    /// The key of `process`; none if its program file is not known.
    #[must_use]
    pub fn of(process: &Process) -> Option<Self> {
        Some(Self {
            real_uid: process.uids.real,
            effective_uid: process.uids.effective,
            exe: process.exe.clone()?,
            cgroup: process.cgroup.clone(),
        })
    }

    /// How many of `processes` have each key, in the order of the keys.
    #[must_use]
    pub fn count(processes: &[Process]) -> Vec<Group> {
        let mut counts = BTreeMap::new();
        for key in processes.iter().filter_map(Self::of) {
            *counts.entry(key).or_insert(0) += 1;
        }
        counts
            .into_iter()
            .map(|(key, count)| Group { key, count })
            .collect()
    }
}

/// How many processes had one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The key.
    pub key: ProcessKey,
    /// How many processes had it.
    pub count: u32,
}

/// The process that sweeps: what must never be swept, and which origin proves nothing.
#[derive(Clone, Debug, Default)]
pub struct Sweeper {
    /// The sweeper and every process above it, `runner` included, which starts the jobs too.
    pub line: BTreeSet<Pid>,
    /// Its cgroup. Jobs run in the same systemd unit.
    pub cgroup: Option<Bytes>,
}

/// Whether `candidate` is `gone`, a recorded process, started again by its supervisor.
///
/// The keys must be equal, and the origin must be one a job cannot give itself: the same living
/// parent as recorded, or the cgroup of a system service that is neither the sweeper's nor that
/// of whoever took the snapshot (`taker`).
#[must_use]
pub fn is_restart(
    gone: &Process,
    candidate: &Process,
    taker: Option<&Bytes>,
    sweeper: &Sweeper,
) -> bool {
    same_key(gone, candidate)
        && (same_supervisor(gone, candidate, sweeper) || in_service(candidate, taker, sweeper))
}

/// Whether both have a key and it is the same; compared in place, because this is asked for each
/// pair of a missing and an unknown process.
fn same_key(gone: &Process, candidate: &Process) -> bool {
    gone.exe.is_some()
        && gone.exe == candidate.exe
        && gone.uids.real == candidate.uids.real
        && gone.uids.effective == candidate.uids.effective
        && gone.cgroup == candidate.cgroup
}

/// Whether both are children of one process that cannot have adopted a job's.
///
/// Orphans go to init, or to a subreaper above the one that started them: to an ancestor of the
/// jobs, which `runner` and all above it are. Being a child of any other process needs that
/// process to fork.
fn same_supervisor(gone: &Process, candidate: &Process, sweeper: &Sweeper) -> bool {
    match (gone.parent, candidate.parent) {
        (
            Some(ProcessId {
                pid: Pid::INIT | Pid(0),
                ..
            }),
            _,
        ) => false,
        (Some(recorded), Some(parent)) => recorded == parent && !sweeper.line.contains(&parent.pid),
        (None, _) | (_, None) => false,
    }
}

/// Whether `candidate` lies in the cgroup of a system service in which no job runs.
fn in_service(candidate: &Process, taker: Option<&Bytes>, sweeper: &Sweeper) -> bool {
    let Some(unit) = candidate.cgroup.as_ref().and_then(service) else {
        return false;
    };
    let of_jobs = [taker, sweeper.cgroup.as_ref()];
    !of_jobs
        .into_iter()
        .flatten()
        .filter_map(service)
        .any(|jobs| jobs == unit)
}

/// The system service a cgroup belongs to: its path up to the first part that ends in `.service`.
///
/// Only root moves processes there. `user@UID.service` is no such service: systemd hands that
/// subtree to the user, who may start in it what he likes.
fn service(cgroup: &Bytes) -> Option<&[u8]> {
    let mut end = 0;
    for part in cgroup.0.split(|&byte| byte == b'/') {
        end += part.len();
        if part.ends_with(b".service") {
            return (!part.starts_with(b"user@")).then(|| &cgroup.0[..end]);
        }
        end += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Uids;
    use crate::sample::{id, process, restarted};

    fn in_cgroup(process: Process, cgroup: &str) -> Process {
        Process {
            cgroup: Some(cgroup.into()),
            ..process
        }
    }

    fn child_of(process: Process, parent: u32) -> Process {
        Process {
            parent: Some(id(parent)),
            ..process
        }
    }

    fn restart(gone: &Process, candidate: &Process) -> bool {
        let sweeper = Sweeper {
            line: [Pid(900), Pid(800), Pid(1)].into(),
            cgroup: Some("/system.slice/runner.service/task".into()),
        };
        is_restart(
            gone,
            candidate,
            Some(&"/system.slice/taker.service".into()),
            &sweeper,
        )
    }

    #[test]
    fn the_same_program_under_the_same_living_parent_is_a_restart() {
        let gone = child_of(process(50), 40);
        assert!(restart(&gone, &restarted(&gone, 70)));
    }

    #[test]
    fn a_restart_may_have_other_arguments() {
        let gone = child_of(process(50), 40);
        let again = Process {
            argv: vec!["svc: idle".into()],
            ..restarted(&gone, 70)
        };
        assert!(restart(&gone, &again));
    }

    #[test]
    fn a_parent_of_the_same_number_that_started_later_is_another() {
        let gone = child_of(process(50), 40);
        let mut again = restarted(&gone, 70);
        again.parent = Some(ProcessId {
            start_time: 1,
            ..id(40)
        });
        assert!(!restart(&gone, &again));
    }

    #[test]
    fn an_orphan_proves_nothing_though_the_recorded_process_was_one_too() {
        let gone = child_of(process(50), 1);
        assert!(!restart(&gone, &restarted(&gone, 70)));
    }

    #[test]
    fn a_child_of_runner_proves_nothing() {
        let gone = child_of(process(50), 800);
        assert!(!restart(&gone, &restarted(&gone, 70)));
    }

    #[test]
    fn the_same_program_in_the_cgroup_of_its_service_is_a_restart() {
        let gone = in_cgroup(process(50), "/system.slice/agent.service");
        assert!(restart(&gone, &restarted(&gone, 70)));
    }

    #[test]
    fn the_service_of_the_sweeper_proves_nothing() {
        let gone = in_cgroup(process(50), "/system.slice/runner.service/job");
        assert!(!restart(&gone, &restarted(&gone, 70)));
    }

    #[test]
    fn the_service_that_took_the_snapshot_proves_nothing() {
        let gone = in_cgroup(process(50), "/system.slice/taker.service");
        assert!(!restart(&gone, &restarted(&gone, 70)));
    }

    #[test]
    fn a_service_whose_name_only_begins_like_the_sweepers_is_another() {
        let gone = in_cgroup(process(50), "/system.slice/runner.service.d/x.service");
        assert!(restart(&gone, &restarted(&gone, 70)));
    }

    #[test]
    fn a_cgroup_the_user_manages_proves_nothing() {
        let path = "/user.slice/user-1000.slice/user@1000.service/app.slice/agent.service";
        let gone = in_cgroup(process(50), path);
        assert!(!restart(&gone, &restarted(&gone, 70)));
    }

    #[test]
    fn a_login_session_and_the_root_cgroup_prove_nothing() {
        for path in ["/user.slice/user-1000.slice/session-3.scope", "/"] {
            let gone = in_cgroup(process(50), path);
            assert!(!restart(&gone, &restarted(&gone, 70)), "{path}");
        }
    }

    #[test]
    fn another_program_file_user_or_cgroup_is_no_restart() {
        let gone = child_of(process(50), 40);
        let again = restarted(&gone, 70);
        let exe = again.exe.clone().unwrap();
        let others = [
            Process {
                exe: Some(Exe {
                    inode: exe.inode + 1,
                    ..exe.clone()
                }),
                ..again.clone()
            },
            Process {
                exe: Some(Exe {
                    dev: exe.dev + 1,
                    ..exe
                }),
                ..again.clone()
            },
            Process {
                exe: None,
                ..again.clone()
            },
            Process {
                uids: Uids {
                    real: 7,
                    ..again.uids
                },
                ..again.clone()
            },
            Process {
                uids: Uids {
                    effective: 7,
                    ..again.uids
                },
                ..again.clone()
            },
            Process {
                cgroup: None,
                ..again
            },
        ];
        for other in others {
            assert!(!restart(&gone, &other), "{other:?}");
        }
    }

    #[test]
    fn two_processes_without_a_program_file_have_no_common_key() {
        let gone = Process {
            exe: None,
            ..child_of(process(50), 40)
        };
        assert!(!restart(&gone, &restarted(&gone, 70)));
    }

    #[test]
    fn processes_are_counted_by_key_and_those_without_a_program_file_not_at_all() {
        let nameless = Process {
            exe: None,
            ..process(3)
        };
        let other = in_cgroup(process(4), "/x.service");
        let groups = ProcessKey::count(&[process(1), process(2), nameless, other]);
        let mut counts: Vec<u32> = groups.iter().map(|group| group.count).collect();
        counts.sort_unstable();
        assert_eq!(counts, [1, 2]);
    }
}
