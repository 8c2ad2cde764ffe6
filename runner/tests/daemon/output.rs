//! What a task writes never holds anybody up, and is kept only at its end.

use std::time::Duration;

use tokio::time::Instant;

use crate::host::Host;

/// Longest a run of two tasks that do next to nothing may take on a busy machine. The background
/// processes below would hold it for ever.
const AT_ONCE: Duration = Duration::from_secs(10);

#[test]
fn a_silent_background_child_with_the_output_open_delays_nothing() {
    let host = Host::new();
    host.task("1-leaks", "sleep 1000 & setsid sleep 1000 & echo done");
    host.task("2-next", "");
    let started = Instant::now();
    host.run_once().assert_code(0);
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    assert_eq!(host.read("state/output/1-leaks"), "done\n");
}

#[test]
fn a_background_child_that_writes_for_ever_delays_nothing() {
    let host = Host::new();
    host.task("1-leaks", "yes & setsid yes & echo done; exit 0");
    host.task("2-next", "");
    let started = Instant::now();
    host.run_once().assert_code(0);
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    assert_eq!(host.trace(), ["1-leaks", "2-next"]);
}

#[test]
fn a_task_that_writes_for_ever_is_still_ended_by_its_timeout() {
    let host = Host::new();
    host.task("1-chatters", "exec yes");
    host.set("[runner]\nmax_attempts = 1\n[tasks.chatters]\ntimeout = \"200ms\"\n");
    let started = Instant::now();
    host.run_once().assert_code(1);
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    assert!(host.attempts("1-chatters")[0].timed_out);
}

#[test]
fn output_that_is_closed_early_is_not_the_end_of_the_task() {
    let host = Host::new();
    host.task(
        "1-quiet",
        "exec >/dev/null 2>&1; sleep 0.2; echo late >>\"$HERE/late\"",
    );
    host.run_once().assert_code(0);
    assert_eq!(host.read("late"), "late\n");
}

#[test]
fn a_gibibyte_of_output_takes_bounded_memory_and_keeps_its_end() {
    let host = Host::new();
    host.task(
        "1-floods",
        "head -c 1073741824 /dev/zero\necho\necho the end\n: >\"$HERE/flooded\"\n\
         while ! test -e \"$HERE/go\"; do sleep 0.01; done",
    );
    let mut running = host.start(&["run", "-n", "1"]);
    running.until_file("flooded");
    let status = fs_err::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    let peak: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .unwrap()
        .parse()
        .unwrap();
    host.write("go", "");
    running.wait().assert_code(0);
    assert!(peak <= 30_000, "{peak} kB at most were in memory");
    assert_eq!(host.attempts("1-floods")[0].output_bytes, 1_073_741_824 + 9);
    let kept = host.read("state/output/1-floods");
    assert!(kept.ends_with("\nthe end\n"));
    assert!(kept.len() <= 64 * 1024);
}

#[test]
fn the_last_lines_of_a_failed_task_are_shown_with_control_characters_made_visible() {
    let host = Host::new();
    host.task(
        "1-fails",
        "seq 1 20; printf 'red \\033[31m\\n\\377\\n'; exit 1",
    );
    host.set("[runner]\nmax_attempts = 1\n");
    let ended = host.run_once();
    ended.assert_code(1);
    assert_eq!(ended.count("| 12"), 0, "{}", ended.err);
    for line in ["| 13", "| 20", "| red \u{fffd}[31m", "| \u{fffd}"] {
        assert_eq!(ended.count(line), 1, "{line}\n{}", ended.err);
    }
}
