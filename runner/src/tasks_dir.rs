//! The tasks directory: which of its files are tasks, and whether they may be run.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;

use farm_config::trust;

use crate::config::{Config, TaskSettings, When};
use crate::order;
use crate::task::{Task, TaskName};

/// Endings of what editors and package managers leave beside a file.
const BACKUP_ENDINGS: [&str; 12] = [
    "~",
    ".bak",
    ".orig",
    ".rej",
    ".swp",
    ".dpkg-old",
    ".dpkg-dist",
    ".dpkg-new",
    ".dpkg-tmp",
    ".rpmsave",
    ".rpmnew",
    ".rpmorig",
];

/// The tasks of one run, in order.
#[derive(Clone, Debug)]
pub struct Tasks {
    /// Tasks in the order they run in.
    pub order: Vec<Task>,
    /// Tasks that run after it was decided to halt, in order.
    pub before_reboot: Vec<Task>,
    /// The halt task, if one is named and there.
    pub halt: Option<Task>,
    /// Entries that are no tasks, with the reason.
    pub skipped: Vec<(String, &'static str)>,
}

/// One thing that is wrong with the tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskFault(pub String);

impl fmt::Display for TaskFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads the directory anew.
///
/// # Errors
/// All faults at once; no task may run then.
pub fn read(directory: &Path, config: &Config) -> Result<Tasks, Vec<TaskFault>> {
    let (names, skipped) = list_files(directory).map_err(|fault| vec![fault])?;
    let mut faults = untrusted(directory, &names);
    faults.extend(unknown_settings(&names, config));
    let tasks: Vec<Task> = names
        .into_iter()
        .map(|name| {
            let path = directory.join(name.file());
            let own = settings(&name, config);
            Task::new(name, path, config, &own)
        })
        .collect();
    faults.extend(unknown_users(&tasks));

    let is_halt = |task: &Task| task.name.full() == config.runner.halt_task;
    let (halt, tasks): (Vec<_>, Vec<_>) = tasks.into_iter().partition(is_halt);
    let (before_reboot, tasks): (Vec<_>, Vec<_>) = tasks
        .into_iter()
        .partition(|task| task.when == When::BeforeReboot);
    match (order::sort(tasks), order::sort(before_reboot)) {
        (Ok(order), Ok(before_reboot)) if faults.is_empty() => Ok(Tasks {
            order,
            before_reboot,
            halt: halt.into_iter().next(),
            skipped,
        }),
        (order, before_reboot) => {
            for result in [order, before_reboot] {
                faults.extend(
                    result
                        .err()
                        .into_iter()
                        .flatten()
                        .map(|fault| TaskFault(fault.to_string())),
                );
            }
            Err(faults)
        }
    }
}

/// The names of the tasks in order, and the entries that are none with the reason.
type Listing = (Vec<TaskName>, Vec<(String, &'static str)>);

fn list_files(directory: &Path) -> Result<Listing, TaskFault> {
    if !directory.is_dir() {
        return Err(TaskFault(format!(
            "`{}` is no directory: expected the tasks there; name another with `runner run DIR` or `runner.tasks_dir`",
            directory.display()
        )));
    }
    let unreadable = |error: std::io::Error| TaskFault(error.to_string());
    let mut names = Vec::new();
    let mut skipped = Vec::new();
    for entry in fs_err::read_dir(directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let file = entry.file_name();
        match reason_to_skip(&file, &entry.path()) {
            Some(reason) => skipped.push((file.to_string_lossy().into_owned(), reason)),
            None => names.push(TaskName::parse(&file)),
        }
    }
    names.sort();
    skipped.sort();
    Ok((names, skipped))
}

/// What of the directory and its tasks somebody else could have written.
fn untrusted(directory: &Path, names: &[TaskName]) -> Vec<TaskFault> {
    let tasks = names
        .iter()
        .map(|name| trust::check_entry(&directory.join(name.file())));
    std::iter::once(trust::check(directory))
        .chain(tasks)
        .filter_map(|checked| Some(TaskFault(checked.err()?.to_string())))
        .collect()
}

/// The settings of a task: those under its full name, or else those under its short one.
fn settings(name: &TaskName, config: &Config) -> TaskSettings {
    config
        .tasks
        .get(&name.full())
        .or_else(|| config.tasks.get(&name.short()))
        .cloned()
        .unwrap_or_default()
}

/// Settings for a task that is not there, or that could mean several.
fn unknown_settings(names: &[TaskName], config: &Config) -> Vec<TaskFault> {
    config
        .tasks
        .keys()
        .filter_map(|key| {
            let matching: Vec<_> = names.iter().filter(|name| name.is(key)).collect();
            match matching.as_slice() {
                [] => Some(format!(
                    "`[tasks.{key}]` is for a task that is not there (tasks: {})",
                    list(names.iter().map(TaskName::full))
                )),
                [_] => None,
                [..] if matching.iter().any(|name| name.full() == *key) => None,
                several => Some(format!(
                    "`[tasks.{key}]` could mean {}: expected the full name of one, or a single such task",
                    list(several.iter().map(|name| format!("`{name}`")))
                )),
            }
        })
        .map(TaskFault)
        .collect()
}

fn unknown_users(tasks: &[Task]) -> Vec<TaskFault> {
    tasks
        .iter()
        .filter_map(|task| {
            let user = task.user.as_deref()?;
            match nix::unistd::User::from_name(user) {
                Ok(Some(_)) => None,
                Ok(None) => Some(TaskFault(format!(
                    "task `{}` is to run as user `{user}`, which this host does not have: type `useradd --system {user}`, or change `user`",
                    task.name
                ))),
                Err(error) => Some(TaskFault(format!(
                    "task `{}` is to run as user `{user}`, which could not be looked up: {error}",
                    task.name
                ))),
            }
        })
        .collect()
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    if items.is_empty() {
        "none".into()
    } else {
        items.join(", ")
    }
}

fn reason_to_skip(file: &OsStr, path: &Path) -> Option<&'static str> {
    let bytes = file.as_encoded_bytes();
    if bytes.starts_with(b".") {
        return Some("hidden");
    }
    if BACKUP_ENDINGS
        .iter()
        .any(|ending| bytes.ends_with(ending.as_bytes()))
        || (bytes.starts_with(b"#") && bytes.ends_with(b"#"))
    {
        return Some("left by an editor or a package manager");
    }
    if bytes == b"lib.sh" || bytes == b"__pycache__" || bytes.starts_with(b"README") {
        return Some("goes with the tasks, is none");
    }
    if path.is_dir() {
        return Some("a directory");
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn directory(files: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            let path = directory.path().join(file);
            fs_err::write(&path, "#!/bin/sh\n").unwrap();
            fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        directory
    }

    fn order_of(tasks: &Tasks) -> Vec<String> {
        tasks.order.iter().map(|task| task.name.full()).collect()
    }

    #[test]
    fn what_editors_and_packages_leave_is_no_task() {
        let directory = directory(&[
            "1-a",
            ".hidden",
            "1-a~",
            "#1-a#",
            "1-a.dpkg-old",
            "1-a.rpmsave",
            "lib.sh",
            "README.md",
        ]);
        fs_err::create_dir(directory.path().join("__pycache__")).unwrap();
        fs_err::create_dir(directory.path().join("2-sub")).unwrap();
        let tasks = read(directory.path(), &Config::default()).unwrap();
        assert_eq!(order_of(&tasks), ["1-a"]);
        assert_eq!(tasks.skipped.len(), 9);
    }

    #[test]
    fn the_halt_task_is_not_in_the_order() {
        let directory = directory(&["1-a", "halt"]);
        let tasks = read(directory.path(), &Config::default()).unwrap();
        assert_eq!(order_of(&tasks), ["1-a"]);
        assert_eq!(tasks.halt.unwrap().name.full(), "halt");
    }

    #[test]
    fn all_faults_are_found_at_once() {
        let directory = directory(&["1-a", "2-b", "3-b"]);
        fs_err::set_permissions(
            directory.path().join("1-a"),
            std::fs::Permissions::from_mode(0o777),
        )
        .unwrap();
        let mut config = Config::default();
        config.tasks.insert("gone".into(), TaskSettings::default());
        config.tasks.insert("b".into(), TaskSettings::default());
        config.tasks.insert(
            "a".into(),
            TaskSettings {
                user: Some("no-such-user-here".into()),
                depends_on: vec!["missing".into()],
                ..TaskSettings::default()
            },
        );
        let faults = read(directory.path(), &config).unwrap_err();
        let text = faults
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n");
        let text = text.replace(&directory.path().display().to_string(), "DIR");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_full_name_settles_which_of_two_is_meant() {
        let directory = directory(&["2-b", "3-b"]);
        let mut config = Config::default();
        config.tasks.insert(
            "3-b".into(),
            TaskSettings {
                may_halt: true,
                ..TaskSettings::default()
            },
        );
        let tasks = read(directory.path(), &config).unwrap();
        let may_halt: Vec<_> = tasks.order.iter().map(|task| task.may_halt).collect();
        assert_eq!(may_halt, [false, true]);
    }
}
