//! What the host remembers survives kills, and a disk that fails does not stop the host.

use std::path::PathBuf;

use rand::{RngExt as _, SeedableRng as _};

use crate::host::{Host, is_root};

/// How many runs the file tells of, if it is whole.
fn runs_in(state: &str) -> Option<u64> {
    serde_json::from_str::<serde_json::Value>(state).ok()?["runs"].as_u64()
}

/// The cgroups these states tell of that are still there.
fn cgroups_of(states: &[String]) -> Vec<PathBuf> {
    states
        .iter()
        .filter_map(|state| serde_json::from_str::<serde_json::Value>(state).ok())
        .filter_map(|state| Some(PathBuf::from(state["cgroup"].as_str()?)))
        .filter(|cgroup| cgroup.exists())
        .collect()
}

#[test]
fn state_is_whole_whenever_the_runner_is_killed() {
    let host = Host::new();
    for number in 1..=3 {
        host.task(format!("{number}-task"), "");
    }
    let mut rng = rand::rngs::StdRng::seed_from_u64(20_141_018);
    let (mut runs, mut kept) = (0, Vec::new());
    for _ in 0..100 {
        let mut running = host.start(&["run"]);
        // Killed somewhere within its first runs.
        let goal = runs + rng.random_range(1..4_u64);
        running.until("a run more", |host| {
            runs_in(&host.read("state/state.json")).is_some_and(|runs| runs >= goal)
        });
        running.kill();
        let whole = host.read("state/state.json");
        let now = runs_in(&whole).unwrap_or_else(|| panic!("not whole: {whole:?}"));
        assert!(now >= goal, "{now} runs after {goal}");
        kept.push(whole);
        runs = now;
    }
    host.run_once().assert_code(0);
    host.history();
    let files: Vec<_> = fs_err::read_dir(host.path("state"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(".new-"))
        .collect();
    assert!(files.is_empty(), "left by a kill: {files:?}");
    assert_eq!(cgroups_of(&kept), Vec::<PathBuf>::new(), "left by a kill");
    let reports = fs_err::read_dir(host.path("state/reports"))
        .unwrap()
        .count();
    assert_eq!(reports, 0, "left by a kill");
}

#[test]
fn a_damaged_state_is_reported_and_the_host_goes_on() {
    for damage in [
        "",
        "{\"runs\": 7",
        "null",
        "\u{0}\u{0}\u{0}",
        "{\"runs\": \"many\"}",
    ] {
        let host = Host::new();
        host.task("1-task", "");
        host.run_once().assert_code(0);
        host.write("state/state.json", damage);
        let ended = host.run_once();
        ended.assert_code(0);
        assert_eq!(
            ended.count("could not be understood"),
            1,
            "{damage:?}\n{}",
            ended.err
        );
        assert_eq!(host.state()["runs"], 1);
        assert_eq!(host.trace().len(), 2);
    }
}

#[test]
fn a_state_of_a_newer_version_is_refused_and_kept() {
    let host = Host::new();
    host.task("1-task", "");
    host.run_once().assert_code(0);
    let newer = "{\"version\": 2, \"runs\": 7}";
    host.write("state/state.json", newer);
    let ended = host.run_once();
    ended.assert_code(78);
    assert!(ended.err.contains("version 2"), "{}", ended.err);
    assert_eq!(host.read("state/state.json"), newer);
    assert_eq!(host.trace().len(), 1);
}

#[test]
fn a_torn_journal_line_costs_only_itself() {
    let host = Host::new();
    host.task("1-task", "");
    host.run_once().assert_code(0);
    let torn = format!("{}{{\"time\":\"2026-", host.read("state/history.jsonl"));
    host.write("state/history.jsonl", torn);
    host.run_once().assert_code(0);
    let shown = host.run(&["history", "--format", "json"]);
    shown.assert_code(0);
    let finished = shown
        .out
        .lines()
        .filter(|line| line.contains("task_finished"))
        .count();
    assert_eq!(finished, 2);
}

#[test]
fn state_and_journal_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let host = Host::new();
    host.task("1-task", "");
    host.run_once().assert_code(0);
    let mode = |name| {
        fs_err::metadata(host.path(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!(mode("state"), 0o700);
    assert_eq!(mode("state/state.json"), 0o600);
}

/// A host whose state directory is a small file system of its own, in a mount namespace. Its
/// first task does `damage` to it.
fn on_small_disk(damage: &str, before: &str) -> Option<Host> {
    if !is_root("mounting a small disk") {
        return None;
    }
    let host = Host::new();
    fs_err::create_dir(host.path("state")).unwrap();
    host.task("1-damage", damage);
    host.task(
        "2-next",
        "echo job.name=last >>\"$RUNNER_OUTPUT\"; echo output",
    );
    host.task(
        "3-last",
        "echo $RUNNER_RUNS_SINCE_BOOT >>\"$HERE/since-boot\"; cp \"$RUNNER_STATE_DIR/state.json\" \"$HERE/kept\" 2>/dev/null; true",
    );
    let state = host.path("state").display().to_string();
    let mount = format!("mount -t tmpfs -o size=256k,mode=700 none '{state}'\n{before}");
    let command = host.command_in_namespace(&mount, &["run", "-n", "2"]);
    let ended = host.start_command(command).wait();
    ended.assert_code(0);
    assert_eq!(
        host.trace(),
        [
            "1-damage", "2-next", "3-last", "1-damage", "2-next", "3-last"
        ]
    );
    // What is remembered in memory goes on.
    assert_eq!(host.lines("since-boot"), ["0", "1"]);
    assert!(
        ended.count("the state of this host cannot be written") <= 1,
        "{}",
        ended.err
    );
    assert!(
        ended.count("the history of this host cannot be written") <= 1,
        "{}",
        ended.err
    );
    Some(host)
}

/// Fills the disk to the last byte.
const FILL: &str = "head -c 10M /dev/zero >\"$RUNNER_STATE_DIR/fill\" 2>/dev/null; true";

#[test]
fn a_disk_that_becomes_full_does_not_stop_a_run() {
    let Some(host) = on_small_disk(FILL, "") else {
        return;
    };
    // The state before the last one is written over: that takes no room.
    assert_eq!(runs_in(&host.read("kept")), Some(2));
}

#[test]
fn a_disk_that_becomes_read_only_does_not_stop_a_run() {
    // A disk with files open for writing cannot be made read-only; another one over it can.
    let over = "mount -t tmpfs -o ro,mode=700 none \"$RUNNER_STATE_DIR\"";
    let Some(host) = on_small_disk(over, "") else {
        return;
    };
    let said = host.read("stderr");
    assert_eq!(
        said.matches("the state of this host cannot be written")
            .count(),
        1,
        "{said}"
    );
    assert!(said.contains("Read-only file system"), "{said}");
}

#[test]
fn a_disk_that_is_full_at_the_start_does_not_stop_a_run() {
    // A task may be there to make room: without a run it never would.
    on_small_disk("", "head -c 10M /dev/zero >state/fill 2>/dev/null || true");
}

/// A host with a sink, whose state directory is a small disk.
fn with_sink_on_small_disk(before: &str) {
    if !is_root("mounting a small disk") {
        return;
    }
    let host = Host::new();
    fs_err::create_dir(host.path("state")).unwrap();
    host.task("1-fill", FILL);
    host.task("2-next", "");
    host.set(&format!(
        "[telemetry]\nflush_on_exit = \"200ms\"\n[[telemetry.jsonl]]\npath = \"{}\"\n",
        host.path("events.jsonl").display()
    ));
    let state = host.path("state").display().to_string();
    let mount = format!("mount -t tmpfs -o size=512k,mode=700 none '{state}'\n{before}");
    let command = host.command_in_namespace(&mount, &["run", "-n", "3"]);
    host.start_command(command).wait().assert_code(0);
    assert_eq!(host.trace(), ["1-fill", "2-next"].repeat(3));
}

#[test]
fn a_telemetry_spool_on_a_disk_that_becomes_full_does_not_stop_a_run() {
    with_sink_on_small_disk("");
}

#[test]
fn a_telemetry_spool_on_a_disk_that_is_full_at_the_start_does_not_stop_a_run() {
    with_sink_on_small_disk("head -c 10M /dev/zero >state/fill 2>/dev/null || true");
}
