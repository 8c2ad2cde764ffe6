//! Processes for unit tests.

use crate::process::{Exe, Pid, Process, ProcessId, Uids};
use crate::snapshot::{Place, Snapshot};
use crate::users::Users;

/// The user whose processes the samples are.
pub(crate) const USER: u32 = 1000;

/// The process of that number that started at ten times its number.
pub(crate) fn id(pid: u32) -> ProcessId {
    ProcessId {
        pid: Pid(pid),
        start_time: u64::from(pid) * 10,
    }
}

/// A sleeping orphan of [`USER`] in the root cgroup.
pub(crate) fn process(pid: u32) -> Process {
    Process {
        id: id(pid),
        parent: Some(id(1)),
        uids: Uids::all(USER),
        state: 'S',
        threads: 1,
        kernel_thread: false,
        comm: "sleep".into(),
        exe: Some(Exe {
            path: "/usr/bin/sleep".into(),
            dev: 8,
            inode: 77,
        }),
        argv: vec!["sleep".into(), "1000".into()],
        cgroup: Some("/".into()),
    }
}

/// What `gone` is after its supervisor started it again.
pub(crate) fn restarted(gone: &Process, pid: u32) -> Process {
    Process {
        id: id(pid),
        ..gone.clone()
    }
}

/// Where the sample snapshot was taken.
pub(crate) fn place() -> Place {
    Place {
        boot_id: "0b7c1e6a-58b1-4c1a-9a53-0d4a5b1f2c3d".into(),
        pid_namespace: Some(4_026_531_836),
        time_namespace: Some(4_026_531_834),
    }
}

/// A snapshot of `processes`.
pub(crate) fn snapshot(processes: Vec<Process>) -> Snapshot {
    Snapshot::new(
        place(),
        jiff::Timestamp::UNIX_EPOCH,
        "6.18.0".into(),
        Users::from_iter([USER]),
        4711,
        true,
        Some("/system.slice/runner.service".into()),
        processes,
    )
}
