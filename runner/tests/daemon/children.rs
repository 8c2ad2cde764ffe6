//! Everything a task starts is gone before anything else starts, however it tried to get away.

use std::process::Command;

use crate::host::{Host, RUNNER, is_alive, is_root, pids};

/// Shell that fails unless nothing holds the file `lock`, and then holds it in the way `how` says.
///
/// `flock` belongs to the open file, so every process that inherited descriptor 9 holds it: the
/// task itself sees whether anything of the attempt before it is left.
fn alone(how: &str) -> String {
    format!(
        "exec 9>\"$HERE/lock\"\n\
         flock --nonblock 9 || {{ echo \"attempt $RUNNER_ATTEMPT\" >>\"$HERE/overlap\"; exit 1; }}\n{how}"
    )
}

/// A process that ignores what can be ignored, notes its pid, and never ends by itself.
const STUBBORN: &str =
    "sh -c 'trap \"\" TERM HUP INT; echo $$ >>\"$0/pids\"; while :; do sleep 1000; done' \"$HERE\"";

fn assert_all_gone(host: &Host, expected: usize) {
    assert_eq!(host.read("overlap"), "");
    let pids = pids(host, "pids");
    assert_eq!(pids.len(), expected, "{pids:?}");
    let alive: Vec<_> = pids.into_iter().filter(|pid| is_alive(*pid)).collect();
    assert!(alive.is_empty(), "still alive: {alive:?}");
}

#[test]
fn a_task_that_ignores_sigterm_and_its_setsid_grandchild_are_gone_before_the_retry() {
    let host = Host::new();
    let script = alone(&format!(
        "setsid {STUBBORN} & setsid {STUBBORN} & exec {STUBBORN}"
    ));
    host.task("1-stubborn", &script);
    host.set("[tasks.stubborn]\ntimeout = \"300ms\"\ngrace_period = \"50ms\"\n");
    host.run_once().assert_code(1);
    assert_eq!(host.trace().len(), 3);
    assert_all_gone(&host, 9);
    assert!(host.attempts("1-stubborn").iter().all(|end| end.timed_out));
}

#[test]
fn a_double_fork_does_not_get_away() {
    let host = Host::new();
    // The middle process ends at once: its child has init as parent, or would, elsewhere.
    let script = alone(&format!(
        "( setsid sh -c '( {} ) & exit' & )\nwhile ! test -s \"$HERE/pids\"; do sleep 0.01; done\n\
         test $(wc -l <\"$HERE/pids\") -ge \"$RUNNER_ATTEMPT\"; exit 1",
        STUBBORN
            .replace('\'', "'\\''")
            .replace("$HERE", "'\"$HERE\"'")
    ));
    host.task("1-daemon", &script);
    host.run_once().assert_code(1);
    assert_eq!(host.trace().len(), 3);
    assert_eq!(host.read("overlap"), "");
    assert!(pids(&host, "pids").iter().all(|pid| !is_alive(*pid)));
    assert!(
        host.attempts("1-daemon")
            .iter()
            .any(|end| end.leftovers > 0)
    );
}

#[test]
fn what_a_task_that_ended_well_left_behind_is_gone_before_the_next_task() {
    let host = Host::new();
    host.task(
        "1-leaves",
        &alone(&format!(
            "setsid {STUBBORN} & {STUBBORN} &\n\
             while test $(cat \"$HERE/pids\" 2>/dev/null | wc -l) -lt 2; do sleep 0.01; done"
        )),
    );
    host.task("2-alone", &alone(""));
    host.run_once().assert_code(0);
    assert_all_gone(&host, 2);
    assert_eq!(host.trace(), ["1-leaves", "2-alone"]);
    assert!(host.attempts("1-leaves")[0].leftovers >= 2);
    assert_eq!(host.attempts("2-alone")[0].leftovers, 0);
}

#[test]
fn a_stopped_process_is_continued_so_that_it_can_end_itself() {
    let host = Host::new();
    // Both the task and a member of its group stop themselves; both clean up on SIGTERM.
    host.task(
        "1-stops",
        "sh -c 'trap \"echo member >>\\\"$0/cleaned\\\"; exit\" TERM; kill -STOP $$; while :; do sleep 0.01; done' \"$HERE\" &\n\
         trap 'echo task >>\"$HERE/cleaned\"; wait; exit 1' TERM\n\
         kill -STOP $$\n\
         while :; do sleep 0.01; done",
    );
    host.set("[runner]\nmax_attempts = 1\n[tasks.stops]\ntimeout = \"300ms\"\n");
    host.run_once().assert_code(1);
    let mut cleaned = host.lines("cleaned");
    cleaned.sort();
    assert_eq!(cleaned, ["member", "task"]);
    assert_eq!(host.attempts("1-stops")[0].exit_code, Some(1));
}

#[test]
fn twenty_attempts_never_overlap() {
    let host = Host::new();
    host.task(
        "1-greedy",
        &alone(&format!("setsid {STUBBORN} & {STUBBORN} & exit 1")),
    );
    host.set("[runner]\nmax_attempts = 20\n");
    host.run_once().assert_code(1);
    assert_eq!(host.trace().len(), 20);
    assert_eq!(host.read("overlap"), "");
    assert!(pids(&host, "pids").iter().all(|pid| !is_alive(*pid)));
}

/// Each process of a lineage forks the next and ends: no list of processes is ever complete.
fn storm(command: impl Fn(&Host, &[&str]) -> Command) {
    let host = Host::new();
    let hydra = "python3 -c 'import os\nwhile os.fork() == 0:\n    os.setsid()\nos._exit(0)'";
    let lineages = format!("for n in 1 2 3 4; do {hydra} & done; sleep 0.2; exit 1");
    host.task("1-hydra", &alone(&lineages));
    host.set("[runner]\nmax_attempts = 2\n");
    let ended = host
        .start_command(command(&host, &["run", "-n", "1"]))
        .wait();
    ended.assert_code(1);
    assert_eq!(host.trace().len(), 2);
    assert_eq!(host.read("overlap"), "");
    assert_eq!(
        ended.count("still there although they were killed"),
        0,
        "{}",
        ended.err
    );
}

#[test]
fn a_storm_of_forks_is_ended() {
    storm(Host::command);
}

#[test]
fn a_storm_of_forks_is_ended_without_a_cgroup_too() {
    if is_root("hiding the cgroups from a process") {
        storm(Host::command_without_cgroup);
    }
}

#[test]
fn the_cost_of_a_start_does_not_depend_on_the_memory_of_the_runner() {
    const STRACE: &str = "/usr/bin/strace";
    if !std::path::Path::new(STRACE).exists() {
        eprintln!("left out: strace is not installed");
        return;
    }
    let host = Host::new();
    host.script("tasks.d/1-plain", "");
    host.write("tasks.d/2-by-name", "");
    host.script("tasks.d/3-as-user", "");
    let user = if is_root("starting a task as another user") {
        "user = \"nobody\""
    } else {
        ""
    };
    host.set(&format!(
        "[tasks.by-name]\ninterpreter = \"sh\"\n[tasks.as-user]\n{user}\n"
    ));
    let mut command = Command::new(STRACE);
    // Without `-f`: only what `runner` itself calls counts.
    command
        .args(["-e", "trace=clone,clone3,fork,vfork", "-o"])
        .arg(host.path("strace"));
    command
        .args([RUNNER, "run", "-n", "1"])
        .env("RUNNER_CONFIG", host.path("runner.toml"));
    host.start_command(command).wait().assert_code(0);
    let starts: Vec<String> = host
        .lines("strace")
        .into_iter()
        .filter(|line| line.contains("clone") || line.contains("fork"))
        .filter(|line| !line.contains("CLONE_THREAD"))
        .collect();
    assert_eq!(starts.len(), 3, "{starts:#?}");
    // `posix_spawn` shares the memory until exec; `fork` would copy its page tables.
    assert!(
        starts
            .iter()
            .all(|line| line.contains("CLONE_VM|CLONE_VFORK")),
        "{starts:#?}"
    );
}
