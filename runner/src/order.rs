//! The order of the tasks: by number and name, except where one depends on another.

use std::collections::BTreeSet;

use crate::task::{Task, TaskName};

/// Why tasks have no order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderFault {
    /// A task depends on one that is not there.
    #[error("task `{task}` depends on `{missing}`, but there is no such task (tasks: {known})")]
    Missing {
        /// Who depends.
        task: String,
        /// On what.
        missing: String,
        /// Those that are there.
        known: String,
    },
    /// A task depends on a short name that several tasks have.
    #[error(
        "task `{task}` depends on `{name}`, which could mean {candidates}: expected a full name"
    )]
    Ambiguous {
        /// Who depends.
        task: String,
        /// On what.
        name: String,
        /// The tasks it could mean.
        candidates: String,
    },
    /// Tasks depend on each other in a circle.
    #[error("tasks depend on each other in a circle: {}", .path.join(" -> "))]
    Cycle {
        /// Each task depends on the next; the first is the last.
        path: Vec<String>,
    },
}

/// Sorts the tasks: each comes after what it depends on, and else by number and name.
///
/// Of the tasks whose dependencies are all placed, the one that comes first by name is placed
/// next (Kahn's algorithm with an ordered front), so the order is a function of the set of tasks.
///
/// # Errors
/// Every dependency that names no task or several, or else one circle.
pub fn sort(mut tasks: Vec<Task>) -> Result<Vec<Task>, Vec<OrderFault>> {
    tasks.sort_by(|a, b| a.name.cmp(&b.name));
    let dependencies = resolve(&tasks)?;
    let mut waits_for: Vec<usize> = dependencies.iter().map(BTreeSet::len).collect();
    let mut front: BTreeSet<usize> = (0..tasks.len())
        .filter(|index| waits_for[*index] == 0)
        .collect();
    let mut placed = Vec::with_capacity(tasks.len());
    while let Some(next) = front.pop_first() {
        placed.push(next);
        for (index, needed) in dependencies.iter().enumerate() {
            if needed.contains(&next) {
                waits_for[index] -= 1;
                if waits_for[index] == 0 {
                    front.insert(index);
                }
            }
        }
    }
    if placed.len() < tasks.len() {
        return Err(vec![circle(&tasks, &dependencies, &placed)]);
    }
    let mut slots: Vec<Option<Task>> = tasks.into_iter().map(Some).collect();
    Ok(placed
        .into_iter()
        .filter_map(|index| slots[index].take())
        .collect())
}

fn resolve(tasks: &[Task]) -> Result<Vec<BTreeSet<usize>>, Vec<OrderFault>> {
    let mut faults = Vec::new();
    let mut dependencies = vec![BTreeSet::new(); tasks.len()];
    for (index, task) in tasks.iter().enumerate() {
        for name in &task.depends_on {
            match find(tasks, name) {
                Ok(needed) => {
                    dependencies[index].insert(needed);
                }
                Err(candidates) if candidates.is_empty() => faults.push(OrderFault::Missing {
                    task: task.name.full(),
                    missing: name.clone(),
                    known: tasks
                        .iter()
                        .map(|task| task.name.full())
                        .collect::<Vec<_>>()
                        .join(", "),
                }),
                Err(candidates) => faults.push(OrderFault::Ambiguous {
                    task: task.name.full(),
                    name: name.clone(),
                    candidates: candidates
                        .into_iter()
                        .map(|index| format!("`{}`", tasks[index].name))
                        .collect::<Vec<_>>()
                        .join(" or "),
                }),
            }
        }
    }
    if faults.is_empty() {
        Ok(dependencies)
    } else {
        Err(faults)
    }
}

/// The one task called `name`; full names go before short names. Several files have the same full
/// name if they differ only in what is not UTF-8.
fn find(tasks: &[Task], name: &str) -> Result<usize, Vec<usize>> {
    let called = |of: fn(&TaskName) -> String| -> Vec<usize> {
        (0..tasks.len())
            .filter(|index| of(&tasks[*index].name) == name)
            .collect()
    };
    let mut candidates = called(TaskName::full);
    if candidates.is_empty() {
        candidates = called(TaskName::short);
    }
    match candidates.as_slice() {
        [one] => Ok(*one),
        _ => Err(candidates),
    }
}

/// A circle among the tasks that were not placed: each of them waits for another of them.
fn circle(tasks: &[Task], dependencies: &[BTreeSet<usize>], placed: &[usize]) -> OrderFault {
    let unplaced: BTreeSet<usize> = (0..tasks.len())
        .filter(|index| !placed.contains(index))
        .collect();
    let mut path: Vec<usize> = unplaced.first().copied().into_iter().collect();
    while let Some(next) = path.last().and_then(|last| {
        dependencies[*last]
            .iter()
            .find(|needed| unplaced.contains(needed))
    }) {
        if let Some(start) = path.iter().position(|seen| seen == next) {
            path.drain(..start);
            path.push(*next);
            break;
        }
        path.push(*next);
    }
    OrderFault::Cycle {
        path: path
            .into_iter()
            .map(|index| tasks[index].name.full())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsStr;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{Config, TaskSettings};

    fn task(name: &str, depends_on: &[&str]) -> Task {
        let own = TaskSettings {
            depends_on: depends_on.iter().map(ToString::to_string).collect(),
            ..TaskSettings::default()
        };
        let name = TaskName::parse(OsStr::new(name));
        Task::new(name, "/nowhere".into(), &Config::default(), &own)
    }

    fn names(tasks: &[Task]) -> Vec<String> {
        tasks.iter().map(|task| task.name.full()).collect()
    }

    #[test]
    fn without_dependencies_the_order_is_by_number_and_name() {
        let sorted = sort(vec![task("z", &[]), task("10-b", &[]), task("2-c", &[])]).unwrap();
        assert_eq!(names(&sorted), ["2-c", "10-b", "z"]);
    }

    #[test]
    fn a_dependency_by_short_or_full_name_comes_first() {
        let sorted = sort(vec![
            task("1-a", &["c"]),
            task("2-b", &["3-c.py"]),
            task("3-c.py", &[]),
        ])
        .unwrap();
        assert_eq!(names(&sorted), ["3-c.py", "1-a", "2-b"]);
    }

    #[test]
    fn a_missing_dependency_is_named_at_both_ends() {
        let faults = sort(vec![task("1-a", &["gone"]), task("2-b", &["lost"])]).unwrap_err();
        let text: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "task `1-a` depends on `gone`, but there is no such task (tasks: 1-a, 2-b)",
                "task `2-b` depends on `lost`, but there is no such task (tasks: 1-a, 2-b)",
            ]
        );
    }

    #[test]
    fn a_short_name_of_two_tasks_is_no_dependency() {
        let faults = sort(vec![
            task("1-a", &["b"]),
            task("2-b", &[]),
            task("3-b", &[]),
        ])
        .unwrap_err();
        assert_eq!(
            faults[0].to_string(),
            "task `1-a` depends on `b`, which could mean `2-b` or `3-b`: expected a full name"
        );
    }

    #[test]
    fn a_name_that_is_shown_like_another_is_no_dependency() {
        use std::os::unix::ffi::OsStrExt as _;
        let raw = |bytes: &[u8]| {
            let name = TaskName::parse(OsStr::from_bytes(bytes));
            Task::new(
                name,
                "/nowhere".into(),
                &Config::default(),
                &TaskSettings::default(),
            )
        };
        let faults = sort(vec![
            task("1-a", &["2-\u{fffd}"]),
            raw(b"2-\xfe"),
            raw(b"2-\xff"),
        ])
        .unwrap_err();
        assert!(
            matches!(&faults[..], [OrderFault::Ambiguous { name, .. }] if name == "2-\u{fffd}")
        );
    }

    #[test]
    fn a_circle_is_shown_from_end_to_end() {
        let faults = sort(vec![
            task("0-first", &["1-a"]),
            task("1-a", &["2-b"]),
            task("2-b", &["3-c"]),
            task("3-c", &["1-a"]),
        ])
        .unwrap_err();
        assert_eq!(
            faults[0].to_string(),
            "tasks depend on each other in a circle: 1-a -> 2-b -> 3-c -> 1-a"
        );
    }

    #[test]
    fn a_task_that_depends_on_itself_is_a_circle() {
        let faults = sort(vec![task("1-a", &["a"])]).unwrap_err();
        assert_eq!(
            faults,
            [OrderFault::Cycle {
                path: vec!["1-a".into(), "1-a".into()]
            }]
        );
    }

    /// Edges point from a later to an earlier index, so there is no circle.
    fn acyclic() -> impl Strategy<Value = Vec<(u32, Vec<usize>)>> {
        prop::collection::vec(
            (
                0..50_u32,
                prop::collection::vec(any::<prop::sample::Index>(), 0..4),
            ),
            1..30,
        )
        .prop_map(|rows| {
            rows.into_iter()
                .enumerate()
                .map(|(position, (number, edges))| {
                    let edges = if position == 0 {
                        Vec::new()
                    } else {
                        edges.into_iter().map(|edge| edge.index(position)).collect()
                    };
                    (number, edges)
                })
                .collect()
        })
    }

    /// The reference: of all tasks whose dependencies are placed take the smallest, by brute force.
    fn reference(tasks: &[Task]) -> Vec<String> {
        let depends: BTreeMap<String, Vec<String>> = tasks
            .iter()
            .map(|task| (task.name.full(), task.depends_on.clone()))
            .collect();
        let mut left: Vec<&TaskName> = tasks.iter().map(|task| &task.name).collect();
        let mut placed: Vec<String> = Vec::new();
        while !left.is_empty() {
            let next = left
                .iter()
                .filter(|name| {
                    depends[&name.full()]
                        .iter()
                        .all(|needed| placed.contains(needed))
                })
                .min()
                .copied()
                .expect("an acyclic graph always has a next one");
            left.retain(|name| *name != next);
            placed.push(next.full());
        }
        placed
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_a_reference_sort(rows in acyclic(), rotate in 0..30_usize) {
            let name = |position: usize, number: u32| format!("{number}-t{position}");
            let mut tasks: Vec<Task> = rows.iter().enumerate().map(|(position, (number, edges))| {
                let edges: Vec<String> = edges.iter().map(|edge| name(*edge, rows[*edge].0)).collect();
                task(&name(position, *number), &edges.iter().map(String::as_str).collect::<Vec<_>>())
            }).collect();
            let expected = reference(&tasks);
            let by = rotate % tasks.len();
            tasks.rotate_left(by);
            prop_assert_eq!(names(&sort(tasks).unwrap()), expected);
        }
    }
}
