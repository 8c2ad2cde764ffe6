//! What a person sees: a line for each task on a terminal, plain lines or JSON elsewhere.

use std::process::Command;

use crate::host::{Host, RUNNER};

fn host() -> Host {
    let host = Host::new();
    host.task("1-quick", "");
    host.task("2-flaky", "echo the reason; test \"$RUNNER_ATTEMPT\" -eq 2");
    host.task("3-slow", "sleep 0.5");
    host
}

#[test]
fn on_a_terminal_each_task_has_its_line() {
    let host = host();
    host.set("[tasks.flaky.backoff]\ninitial = \"900ms\"\nmax = \"900ms\"\nseed = 3\n[runner.backoff]\nseed = 3\n");
    let mut command = Command::new("script");
    // `script` runs it on a new terminal and copies what appears there.
    command.args([
        "--quiet",
        "--return",
        "--command",
        &format!("{RUNNER} run -n 1"),
        "/dev/null",
    ]);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("TERM", "xterm")
        .env("SHELL", "/bin/sh");
    command.env("RUNNER_CONFIG", host.path("runner.toml"));
    let ended = host.start_command(command).wait();
    ended.assert_code(0);
    let shown = &ended.out;
    for line in [
        "✔ 1-quick  0.",
        "✘ 2-flaky  0.",
        "exit code 1",
        "    the reason",
        "✔ 2-flaky  attempt 2/3  0.",
        "✔ 3-slow  0.",
        "── run 1 done after ",
    ] {
        assert!(shown.contains(line), "`{line}` is missing in\n{shown}");
    }
    // The moving line: who runs, and how long the wait is.
    assert!(shown.contains(" 3-slow  "), "{shown}");
    assert!(
        shown.contains("2-flaky  failed, next attempt in 0."),
        "{shown}"
    );
    assert!(
        !shown.contains("task started"),
        "log lines and the view say the same\n{shown}"
    );
}

#[test]
fn elsewhere_there_are_plain_lines_without_colours() {
    let host = host();
    let ended = host.run_once();
    ended.assert_code(0);
    assert_eq!(ended.out, "");
    assert!(!ended.err.contains('\x1b'), "{}", ended.err);
    assert_eq!(ended.count("task started"), 4);
    assert_eq!(ended.count("task ended well"), 3);
    assert_eq!(ended.count("task failed, will retry"), 1);
    assert_eq!(ended.count("| the reason"), 1);
    assert_eq!(ended.count("run ended"), 1);
}

#[test]
fn json_lines_all_parse_and_carry_the_fields() {
    let host = host();
    host.task(
        "2-flaky",
        "printf 'quote \" and \\n newline\\377\\033[1m\\n'; test \"$RUNNER_ATTEMPT\" -eq 2",
    );
    let ended = host.run(&["run", "-n", "1", "--log-format", "json"]);
    ended.assert_code(0);
    let lines: Vec<serde_json::Value> = ended
        .err
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let failed = lines
        .iter()
        .find(|line| line["message"] == "task failed, will retry")
        .unwrap();
    assert_eq!(failed["task"], "2-flaky");
    assert_eq!(failed["attempt"], 1);
    assert_eq!(failed["max_attempts"], 3);
    assert!(failed["delay_ms"].is_u64() && failed["duration_ms"].is_u64());
}

#[test]
fn words_that_nobody_can_read_any_more_stop_nothing() {
    let host = host();
    let command = host.command_in_shell("exec 2>/dev/full >/dev/full", &["run", "-n", "1"]);
    host.start_command(command).wait().assert_code(0);
    assert_eq!(host.trace().len(), 4);
}
