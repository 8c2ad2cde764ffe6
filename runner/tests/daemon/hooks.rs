//! The external hook: what it is told, and that nothing it does changes a result.

use std::time::Duration;

use farm_events::Event;
use tokio::time::Instant;

use crate::host::Host;

fn with_hook(script: &str) -> Host {
    let host = Host::new();
    host.script("hook", script);
    set(&host, "");
    host
}

fn set(host: &Host, more: &str) {
    let hook = host.path("hook").display().to_string();
    host.set(&format!(
        "[runner]\ntask_hook = [\"{hook}\", \"--pool\", \"a b\"]\n{more}"
    ));
}

fn failures(host: &Host) -> Vec<(String, String)> {
    host.history()
        .into_iter()
        .filter_map(|event| match event {
            Event::HookFailed(failed) => Some((failed.task, failed.error)),
            _ => None,
        })
        .collect()
}

#[test]
fn the_hook_gets_the_json_of_the_original_before_and_after_each_attempt() {
    let host = with_hook("printf '%s\\n' \"$*\" >>\"$HERE/told\"");
    host.task("1-flaky", "test \"$RUNNER_ATTEMPT\" -eq 2");
    host.task("2-asks", "exit 2");
    host.task("halt", "");
    set(&host, "[tasks.asks]\nmay_halt = true\n");
    host.run_once().assert_code(2);
    let told = |task: &str, number: u32, result: &str| {
        format!(
            "--pool a b {{\"task\":\"{task}\",\"try_num\":{number},\"max_retries\":3,\"result\":\"{result}\"}}"
        )
    };
    assert_eq!(
        host.lines("told"),
        [
            told("1-flaky", 1, "RUNNING"),
            told("1-flaky", 1, "RETRY"),
            told("1-flaky", 2, "RUNNING"),
            told("1-flaky", 2, "OK"),
            told("2-asks", 1, "RUNNING"),
            told("2-asks", 1, "HALT"),
            told("halt", 1, "RUNNING"),
            told("halt", 1, "OK"),
        ]
    );
    assert!(failures(&host).is_empty());
}

#[test]
fn the_hook_is_told_of_an_exit_too() {
    let host = with_hook("echo \"$3\" >>\"$HERE/told\"");
    host.task("1-stops", "exit 3");
    host.run_once().assert_code(3);
    assert!(host.lines("told")[1].ends_with("\"result\":\"EXIT\"}"));
}

#[test]
fn a_hook_that_fails_changes_nothing_but_is_recorded() {
    for (script, error) in [
        ("exit 1", "exit code 1"),
        ("exit 2", "exit code 2"),
        ("exit 3", "exit code 3"),
        ("kill -9 $$", "signal 9 (SIGKILL)"),
    ] {
        let host = with_hook(script);
        host.task("1-task", "test \"$RUNNER_ATTEMPT\" -eq 2");
        host.run_once().assert_code(0);
        assert_eq!(host.trace(), ["1-task", "1-task"], "{script}");
        assert_eq!(
            failures(&host),
            vec![("1-task".to_owned(), error.to_owned()); 4]
        );
    }
}

#[test]
fn a_hook_that_is_not_there_changes_nothing_but_is_recorded() {
    let host = Host::new();
    host.task("1-task", "");
    host.set("[runner]\ntask_hook = \"/nonexistent/hook\"\n");
    let ended = host.run_once();
    ended.assert_code(0);
    let failures = failures(&host);
    assert_eq!(failures.len(), 2);
    assert!(failures[0].1.contains("/nonexistent/hook"), "{failures:?}");
    assert_eq!(ended.count("the hook failed"), 2);
}

#[test]
fn a_hook_that_hangs_is_ended_with_all_it_started() {
    let host = with_hook("trap '' TERM; setsid sleep 1000 & echo $! >>\"$HERE/pids\"; sleep 1000");
    host.task("1-task", "");
    set(&host, "hook_timeout = \"100ms\"\ngrace_period = \"50ms\"\n");
    let started = Instant::now();
    host.run_once().assert_code(0);
    assert!(started.elapsed() < Duration::from_secs(20));
    let longer = (
        "1-task".to_owned(),
        "ran longer than its timeout".to_owned(),
    );
    assert_eq!(failures(&host), [longer.clone(), longer]);
    assert!(
        crate::host::pids(&host, "pids")
            .into_iter()
            .all(|pid| !crate::host::is_alive(pid))
    );
}

#[test]
fn a_hook_that_prints_garbage_for_ever_is_ended_and_harms_nothing() {
    let host = with_hook("cat /dev/urandom");
    host.task("1-task", "echo fine");
    set(&host, "hook_timeout = \"100ms\"\n");
    let ended = host.run_once();
    ended.assert_code(0);
    assert_eq!(host.read("state/output/1-task"), "fine\n");
    assert_eq!(failures(&host).len(), 2);
    assert!(ended.err.len() < 10_000);
}

#[test]
fn a_hook_cannot_report_a_job_or_a_decision() {
    let host = with_hook("echo job.name=forged >>\"${RUNNER_OUTPUT:-$HERE/no-report-file}\"");
    host.task("1-task", "");
    host.run_once().assert_code(0);
    assert!(host.state()["job"].is_null());
    assert!(host.exists("no-report-file"));
}

#[test]
fn no_secret_stands_in_a_command_line() {
    let secret = "hunter2-token";
    let show = "for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$file; echo; done >>\"$HERE/argv\" 2>/dev/null";
    let host = with_hook(show);
    host.script("tasks.d/1-task", show);
    host.write("token", secret);
    host.chmod("token", 0o600);
    let token = host.path("token").display().to_string();
    set(
        &host,
        &format!(
            "[tasks.task.env]\nPASSWORD = \"{secret}\"\n[site]\npassword = \"{secret}\"\n\
             [telemetry]\nflush_on_exit = \"100ms\"\n\
             [[telemetry.influx]]\nurl = \"http://127.0.0.1:9\"\norg = \"o\"\nbucket = \"b\"\ntoken_file = \"{token}\"\n"
        ),
    );
    let ended = host.run(&["run", "-n", "1", "-vv"]);
    ended.assert_code(0);
    let argv = host.read("argv");
    assert!(
        argv.contains("RUNNING") && argv.contains(crate::host::RUNNER),
        "{argv}"
    );
    assert!(!argv.contains(secret));
    assert!(!ended.err.contains(secret) && !ended.out.contains(secret));
    for file in ["state/history.jsonl", "state/state.json"] {
        assert!(!host.read(file).contains(secret), "{file}");
    }
}

#[test]
fn the_shipped_hook_records_what_it_is_told() {
    let host = Host::new();
    host.task("1-task", "");
    host.set(&format!(
        "[runner]\ntask_hook = \"runner --config {} record\"\n",
        host.path("runner.toml").display()
    ));
    host.run_once().assert_code(0);
    let records = host.lines("state/hook-records.jsonl");
    let results: Vec<serde_json::Value> = records
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(results.len(), 2, "{}", host.read("stderr"));
    assert_eq!(results[0]["result"], "RUNNING");
    assert_eq!(results[1]["result"], "OK");
    assert!(results[0]["time"].is_string());
}
