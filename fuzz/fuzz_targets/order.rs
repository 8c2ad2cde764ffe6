//! Names of tasks, and their order.
#![no_main]

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use runner::config::{Config, TaskSettings};
use runner::order::{self, OrderFault};
use runner::task::{Task, TaskName};

/// A task: the bytes of its name, and what it depends on.
#[derive(Debug, Arbitrary)]
struct AnyTask {
    name: Vec<u8>,
    /// By position in the list: a dependency that is there, by its full or its short name.
    on: Vec<(u8, bool)>,
    /// By name: perhaps one that is not there.
    on_names: Vec<String>,
}

fuzz_target!(|any: Vec<AnyTask>| {
    let mut files = BTreeSet::new();
    // What a directory can hold: no name twice, none empty, none with a slash or NUL.
    let any: Vec<&AnyTask> = any
        .iter()
        .filter(|task| {
            !task.name.is_empty() && !task.name.iter().any(|byte| matches!(byte, 0 | b'/'))
        })
        .filter(|task| files.insert(task.name.clone()))
        .take(40)
        .collect();
    let names: Vec<TaskName> = any
        .iter()
        .map(|task| TaskName::parse(&OsString::from_vec(task.name.clone())))
        .collect();
    for name in &names {
        check_name(name, &names);
    }
    let tasks: Vec<Task> = any
        .iter()
        .zip(&names)
        .map(|(any, name)| task(any, name, &names))
        .collect();
    match order::sort(tasks.clone()) {
        Ok(sorted) => check_order(&tasks, &sorted),
        Err(faults) => check_faults(&tasks, &faults),
    }
});

fn task(any: &AnyTask, name: &TaskName, names: &[TaskName]) -> Task {
    let by_position = any.on.iter().map(|(position, short)| {
        let on = &names[usize::from(*position) % names.len()];
        if *short { on.short() } else { on.full() }
    });
    let depends_on = by_position.chain(any.on_names.iter().cloned()).collect();
    let own = TaskSettings {
        depends_on,
        ..TaskSettings::default()
    };
    Task::new(name.clone(), "/nowhere".into(), &Config::default(), &own)
}

fn check_name(name: &TaskName, names: &[TaskName]) {
    assert!(name.is(&name.full()) && name.is(&name.short()));
    assert!(name.full().contains(&name.short()));
    assert!(!name.short().is_empty());
    for a in names {
        assert_eq!(name.cmp(a), a.cmp(name).reverse());
        assert_eq!(name.cmp(a) == Ordering::Equal, name == a);
        for b in names {
            let sorted = name <= a && a <= b;
            assert!(
                !sorted || name <= b,
                "{name} <= {a} <= {b}, but not {name} <= {b}"
            );
        }
    }
}

/// The tasks that `name` can mean: those with that full name, or else those with that short name.
fn meant<'t>(tasks: &'t [Task], name: &str) -> Vec<&'t TaskName> {
    let all = |is: fn(&TaskName) -> String| -> Vec<&TaskName> {
        tasks
            .iter()
            .map(|task| &task.name)
            .filter(|task| is(task) == name)
            .collect()
    };
    let full = all(TaskName::full);
    if full.is_empty() {
        all(TaskName::short)
    } else {
        full
    }
}

fn check_order(tasks: &[Task], sorted: &[Task]) {
    let mut expected: Vec<&TaskName> = tasks.iter().map(|task| &task.name).collect();
    expected.sort();
    let mut found: Vec<&TaskName> = sorted.iter().map(|task| &task.name).collect();
    let at: BTreeMap<&TaskName, usize> = found
        .iter()
        .enumerate()
        .map(|(at, name)| (*name, at))
        .collect();
    for task in sorted {
        for name in &task.depends_on {
            let [needed] = meant(tasks, name)[..] else {
                panic!("`{name}` of `{}` does not mean exactly one task", task.name);
            };
            assert!(
                at[needed] < at[&task.name],
                "`{needed}` is not before `{}`",
                task.name
            );
        }
    }
    found.sort();
    assert_eq!(found, expected, "not a permutation");
    let mut backwards = tasks.to_vec();
    backwards.reverse();
    let again = order::sort(backwards).expect("it has an order");
    assert!(
        again.iter().zip(sorted).all(|(a, b)| a.name == b.name),
        "the order depends on the order of the directory"
    );
}

fn check_faults(tasks: &[Task], faults: &[OrderFault]) {
    assert!(!faults.is_empty());
    for fault in faults {
        match fault {
            OrderFault::Missing { missing, .. } => assert!(meant(tasks, missing).is_empty()),
            OrderFault::Ambiguous { name, .. } => assert!(meant(tasks, name).len() > 1),
            OrderFault::Cycle { path } => {
                assert!(path.len() > 1 && path.first() == path.last(), "{path:?}");
                for step in path.windows(2) {
                    let (from, to) = (&step[0], &step[1]);
                    let depends =
                        tasks
                            .iter()
                            .filter(|task| task.name.full() == *from)
                            .any(|task| {
                                let mut meant =
                                    task.depends_on.iter().flat_map(|name| meant(tasks, name));
                                meant.any(|name| name.full() == *to)
                            });
                    assert!(depends, "`{from}` does not depend on `{to}`");
                }
            }
        }
    }
}
