//! The verbs besides `run`: data on standard output, words on standard error, the documented codes.

use farm_events::Record;

use crate::host::Host;

fn host() -> Host {
    let host = Host::new();
    for name in ["10-c", "2-b.py", "1-a"] {
        host.task(name, "");
    }
    host.task("halt", "");
    host.set(
        "[tasks.a]\ndepends_on = [\"b\"]\n\
         [site]\nname = \"two words\"\nport = 8080\nratio = 0.5\nproud = true\nday = 2026-11-20\n\
         repos = [\"one\", \"two\"]\nempty = \"\"\n[site.mirror]\nurl = \"https://m.example.org\"\n",
    );
    host
}

#[test]
fn order_is_printed_for_people_and_for_programs() {
    let host = host();
    let text = host.run(&["order"]);
    text.assert_code(0);
    assert_eq!(text.out, "2-b.py\n1-a\n10-c\n");
    let json = host.run(&["order", "--format", "json"]);
    assert_eq!(json.out, "{\"order\":[\"2-b.py\",\"1-a\",\"10-c\"]}\n");
    assert!(text.err.is_empty() && json.err.is_empty());
    // Looking changes nothing.
    assert!(!host.exists("state") && host.trace().is_empty());
}

#[test]
fn order_of_another_directory() {
    let host = host();
    fs_err::create_dir(host.path("other")).unwrap();
    host.script("other/5-x", "");
    host.set("");
    let order = host.run(&["order", "other"]);
    assert_eq!(order.out, "5-x\n", "{}", order.err);
    host.run(&["run", "-n", "1", "other"]).assert_code(0);
    assert_eq!(host.attempts("5-x").len(), 1);
}

#[test]
fn check_finds_nothing_on_a_good_host() {
    let host = host();
    let checked = host.run(&["check"]);
    checked.assert_code(0);
    assert_eq!(checked.out, "3 tasks, no fault\n");
    assert!(!host.exists("state"));
}

#[test]
fn check_finds_what_would_only_show_when_it_is_needed() {
    let host = host();
    host.chmod("tasks.d/2-b.py", 0o644);
    fs_err::remove_file(host.path("tasks.d/halt")).unwrap();
    let checked = host.run(&["check"]);
    checked.assert_code(78);
    assert_eq!(checked.out, "");
    insta::assert_snapshot!(host.anonymous(&checked.err));
}

#[test]
fn get_prints_a_value_as_a_script_wants_it() {
    let host = host();
    for (key, value) in [
        ("site.name", "two words\n"),
        ("site.port", "8080\n"),
        ("site.ratio", "0.5\n"),
        ("site.proud", "true\n"),
        ("site.day", "2026-11-20\n"),
        ("site.repos", "one\ntwo\n"),
        ("site.mirror", "url = \"https://m.example.org\"\n\n"),
        ("site.mirror.url", "https://m.example.org\n"),
        ("runner.max_attempts", "3\n"),
    ] {
        for arguments in [vec!["get", key], vec!["-g", key]] {
            let ended = host.run(&arguments);
            ended.assert_code(0);
            assert_eq!(ended.out, value, "{key}");
        }
    }
}

#[test]
fn get_of_a_value_that_is_missing_or_empty_is_78() {
    let host = host();
    let mut said = String::new();
    for key in [
        "site.gone",
        "gone.key",
        "gone",
        "site.name.deeper",
        "site.empty",
        "",
        ".",
    ] {
        for arguments in [vec!["get", key], vec!["-g", key]] {
            let ended = host.run(&arguments);
            ended.assert_code(78);
            assert_eq!(ended.out, "");
            if arguments[0] == "get" {
                said.push_str(&host.anonymous(&ended.err));
            }
        }
    }
    insta::assert_snapshot!(said);
}

#[test]
fn a_task_reads_the_configuration_as_the_originals_tasks_do() {
    let host = host();
    host.task("1-a", "$RUNNER_CONFIG_CMD -g site.name >\"$HERE/value\"; $RUNNER_CONFIG_CMD -g site.gone; echo $? >>\"$HERE/value\"");
    host.run_once().assert_code(0);
    assert_eq!(host.lines("value"), ["two words", "78"]);
}

#[test]
fn status_tells_whether_a_runner_works_and_at_what() {
    let host = host();
    host.task("10-c", "while ! test -e \"$HERE/go\"; do sleep 0.01; done; printf 'job.name=linux64\\njob.result=success\\n' >>\"$RUNNER_OUTPUT\"");
    let status = |format: &str| {
        let output = host
            .command(&["status", "--format", format])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap()
    };
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert!(
        status("text").starts_with("no runner works here\nruns: 0 since boot, 0 ever; jobs: 0\n")
    );
    assert_eq!(json(&status("json"))["running"], false);
    assert!(!host.exists("state"), "looking makes no state directory");

    let mut running = host.start(&["run", "-n", "1"]);
    running.until("the last task", |host| {
        host.trace().len() == 3 && host.phase() == "task"
    });
    let (text, data) = (status("text"), json(&status("json")));
    assert!(
        text.starts_with(&format!(
            "runner {}: task 10-c (attempt 1) since 20",
            running.pid()
        )),
        "{text}"
    );
    assert_eq!(data["running"], true);
    assert_eq!(data["pid"], running.pid());
    assert_eq!(data["state"]["activity"]["task"], "10-c");

    host.write("go", "");
    running.wait().assert_code(0);
    let (text, data) = (status("text"), json(&status("json")));
    assert!(
        text.contains(
            "no runner works here\nruns: 1 since boot, 1 ever; jobs: 1\njob: linux64 (success)\n"
        ),
        "{text}"
    );
    assert_eq!(data["running"], false);
    assert!(data["pid"].is_null());
    assert_eq!(data["state"]["job"]["name"], "linux64");
}

#[test]
fn status_tells_until_when_a_wait_lasts() {
    let host = host();
    host.task("2-b.py", "exit 1");
    host.set("[runner.backoff]\ninitial = \"1000h\"\nmax = \"1000h\"\n");
    let mut running = host.start(&["run", "-n", "1"]);
    running.until_phase("backoff");
    let status = host.command(&["status"]).output().unwrap();
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(
        text.contains("backoff 2-b.py (attempt 1) since ") && text.contains(", until 20"),
        "{text}"
    );
}

#[test]
fn history_shows_what_happened() {
    let host = host();
    host.task("10-c", "test \"$RUNNER_ATTEMPT\" -eq 2");
    host.run_once().assert_code(0);
    let json = host.run(&["history", "--format", "json"]);
    json.assert_code(0);
    let records: Vec<Record> = json
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let names: Vec<&str> = records.iter().map(|record| record.event.name()).collect();
    assert_eq!(
        names,
        [
            "host_booted",
            "task_finished",
            "task_finished",
            "task_finished",
            "task_finished",
            "run_finished"
        ]
    );

    let last = host.run(&["history", "-n", "1"]);
    assert!(
        last.out.contains("run_finished result=done"),
        "{}",
        last.out
    );
    assert_eq!(last.out.lines().count(), 1);
    let failed = host.run(&["history", "--failed"]);
    assert!(
        failed
            .out
            .contains(" 10-c attempt 1: retry (exit code 1) in "),
        "{}",
        failed.out
    );
    assert_eq!(failed.out.lines().count(), 1);
    assert_eq!(
        host.run(&["history", "--task", "10-c"]).out.lines().count(),
        2
    );
}

#[test]
fn history_of_a_host_without_one_is_empty() {
    let host = host();
    let ended = host.run(&["history"]);
    ended.assert_code(0);
    assert_eq!(ended.out, "");
    assert!(!host.exists("state"));
}

#[test]
fn history_prints_the_end_of_what_a_task_wrote() {
    let host = host();
    host.task("10-c", "echo to stdout; echo to stderr >&2");
    host.run_once().assert_code(0);
    let ended = host.run(&["history", "--output", "10-c"]);
    ended.assert_code(0);
    assert_eq!(ended.out, "to stdout\nto stderr\n");
    host.run(&["history", "--output", "1-a"]).assert_code(1);
    host.run(&["history", "--output", "../state.json"])
        .assert_code(64);
}

#[test]
fn record_keeps_what_a_hook_gets() {
    let host = host();
    host.run_once().assert_code(0);
    let json = r#"{"task":"1-a","try_num":1,"max_retries":5,"result":"RUNNING"}"#;
    host.run(&["record", json]).assert_code(0);
    let kept: serde_json::Value =
        serde_json::from_str(host.read("state/hook-records.jsonl").trim()).unwrap();
    assert_eq!(kept["task"], "1-a");
    assert_eq!(kept["result"], "RUNNING");
}

#[test]
fn completions_are_printed_for_every_shell_and_the_page_for_man() {
    let host = host();
    // They work on a host whose configuration is broken.
    host.set("[runner]\ntimeuot = 1\n");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let ended = host.run(&["completions", shell]);
        ended.assert_code(0);
        assert!(ended.out.contains("reboot-decision"), "{shell}");
    }
    let page = host.run(&["man"]);
    page.assert_code(0);
    assert!(page.out.contains(".TH runner 1"), "{}", page.out);
    assert!(page.out.contains("another runner holds the lock"));
}

#[test]
fn answers_into_a_closed_pipe_are_no_fault() {
    let host = host();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = host.command(&["order"]).stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
    let full = host
        .command_in_shell("exec >/dev/full", &["order"])
        .output()
        .unwrap();
    assert_eq!(full.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&full.stderr).contains("cannot print"));
}
