//! Each setting of a task has its effect, and on that task only.

use std::time::Duration;

use farm_events::Outcome;
use tokio::time::Instant;

use crate::host::{Host, is_root};

#[test]
fn timeout_ends_an_attempt_that_runs_longer() {
    let host = Host::new();
    host.task(
        "1-hangs",
        "test \"$RUNNER_ATTEMPT\" -gt 1 || exec sleep 1000",
    );
    host.task("2-other", "");
    host.set("[tasks.hangs]\ntimeout = \"100ms\"\n");
    host.run_once().assert_code(0);
    let attempts = host.attempts("1-hangs");
    assert!(attempts[0].timed_out && !attempts[1].timed_out);
    assert_eq!(attempts[0].outcome, Outcome::Retry);
    assert_eq!(attempts[0].signal, Some(15));
    assert!(attempts[0].duration_ms >= 100);
    assert_eq!(host.trace(), ["1-hangs", "1-hangs", "2-other"]);
}

#[test]
fn a_timeout_of_zero_is_none() {
    let host = Host::new();
    host.task("1-long", "sleep 0.5");
    host.set("[runner]\ntimeout = \"50ms\"\nmax_attempts = 1\n[tasks.long]\ntimeout = \"0s\"\n");
    host.run_once().assert_code(0);
}

#[test]
fn grace_period_is_the_time_from_sigterm_to_sigkill() {
    let host = Host::new();
    let ignores = "trap '' TERM; while :; do sleep 1000; done";
    host.task("1-short", ignores);
    host.task(
        "2-long",
        "trap 'sleep 0.3; echo cleaned >>\"$HERE/cleaned\"; exit 0' TERM; sleep 1000 & wait",
    );
    host.set(
        "[runner]\nmax_attempts = 1\ntimeout = \"50ms\"\n\
         [tasks.short]\ngrace_period = \"10ms\"\ncontinue_on_failure = true\n\
         [tasks.long]\ngrace_period = \"20s\"\ncontinue_on_failure = true\n",
    );
    let started = Instant::now();
    host.run_once().assert_code(0);
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "the long grace was waited for in full"
    );
    assert_eq!(host.attempts("1-short")[0].signal, Some(9));
    assert_eq!(host.read("cleaned"), "cleaned\n");
    // It ended well in its grace, but it was cut short: that is a failure.
    let long = &host.attempts("2-long")[0];
    assert_eq!(
        (long.exit_code, long.timed_out, long.outcome),
        (Some(0), true, Outcome::Retry)
    );
}

#[test]
fn max_attempts_of_one_task_leaves_the_others_theirs() {
    let host = Host::new();
    host.task("1-five", "test \"$RUNNER_ATTEMPT\" -eq 5");
    host.task("2-three", "exit 1");
    host.set("[tasks.five]\nmax_attempts = 5\n");
    host.run_once().assert_code(1);
    assert_eq!(host.attempts("1-five").len(), 5);
    assert_eq!(host.attempts("2-three").len(), 3);
}

#[test]
fn backoff_of_one_task_bounds_its_waits() {
    let host = Host::new();
    host.task("1-own", "test \"$RUNNER_ATTEMPT\" -eq 12");
    host.task("2-common", "test \"$RUNNER_ATTEMPT\" -eq 12");
    host.set(
        "[runner]\nmax_attempts = 12\n[runner.backoff]\ninitial = \"1ms\"\nmax = \"2ms\"\nseed = 7\n\
         [tasks.own.backoff]\ninitial = \"40ms\"\nmax = \"60ms\"\n",
    );
    host.run_once().assert_code(0);
    let longest = |task| {
        host.attempts(task)
            .iter()
            .filter_map(|end| end.delay_ms)
            .max()
            .unwrap()
    };
    assert!(longest("2-common") <= 2);
    assert!((3..=60).contains(&longest("1-own")), "{}", longest("1-own"));
}

#[test]
fn user_is_who_the_task_runs_as() {
    if !is_root("running as another user") {
        return;
    }
    let host = Host::new();
    host.script(
        "tasks.d/1-own",
        "id -un; id -Gn; grep CapEff /proc/self/status; echo $HOME $USER",
    );
    host.script("tasks.d/2-common", "id -un");
    host.set("[tasks.own]\nuser = \"nobody\"\n");
    host.run_once().assert_code(0);
    let output = |task| host.read(format!("state/output/{task}"));
    assert_eq!(
        output("1-own"),
        "nobody\nnogroup\nCapEff:\t0000000000000000\n/nonexistent nobody\n"
    );
    assert_eq!(output("2-common"), "root\n");
}

#[test]
fn a_task_with_a_user_reports_its_job_and_nothing_about_the_host() {
    if !is_root("running as another user") {
        return;
    }
    let host = Host::new();
    host.script(
        "tasks.d/1-job",
        "printf 'job.name=linux64\\njob.result=success\\nsweep.verdict=clean\\n' >>\"$RUNNER_OUTPUT\"",
    );
    host.set("[tasks.job]\nuser = \"nobody\"\n");
    host.run_once().assert_code(0);
    assert_eq!(host.state()["job"]["name"], "linux64");
    assert_eq!(host.state()["job"]["result"], "success");
    assert!(host.state()["sweep"].is_null());
}

#[test]
fn env_of_one_task_goes_over_the_common_one() {
    let host = Host::new();
    host.task("1-own", "echo $COLOUR $SHAPE >>\"$HERE/seen\"");
    host.task("2-common", "echo $COLOUR $SHAPE >>\"$HERE/seen\"");
    host.set("[env]\nCOLOUR = \"red\"\nSHAPE = \"round\"\n[tasks.own.env]\nCOLOUR = \"a b\"\n");
    host.run_once().assert_code(0);
    assert_eq!(host.lines("seen"), ["a b round", "red round"]);
}

#[test]
fn interpreter_runs_a_file_that_is_not_executable() {
    let host = Host::new();
    host.write("tasks.d/1-text", "printf '%s\\n' \"$0\" \"$@\" x");
    host.write("tasks.d/2-list", "printf '%s\\n' \"$-\" x");
    host.set(
        "[tasks.text]\ninterpreter = \"sh\"\n[tasks.list]\ninterpreter = [\"/bin/sh\", \"-f\"]\n",
    );
    host.run_once().assert_code(0);
    let text = host.path("tasks.d/1-text").display().to_string();
    assert_eq!(host.lines("state/output/1-text"), [text, "x".into()]);
    assert_eq!(host.lines("state/output/2-list"), ["f", "x"]);
}

#[test]
fn depends_on_goes_over_the_number() {
    let host = Host::new();
    for name in ["1-a", "2-b", "10-c.py"] {
        host.task(name, "");
    }
    host.set("[tasks.a]\ndepends_on = [\"c\", \"2-b\"]\n");
    host.run_once().assert_code(0);
    assert_eq!(host.trace(), ["2-b", "10-c.py", "1-a"]);
}

#[test]
fn may_halt_lets_exit_code_2_halt_the_host() {
    let host = Host::new();
    host.task("1-asks", "exit 2");
    host.task("2-never", "");
    host.task("halt", "");
    host.set("[tasks.asks]\nmay_halt = true\n");
    host.run_once().assert_code(2);
    assert_eq!(host.trace(), ["1-asks", "halt"]);
    assert_eq!(host.attempts("1-asks")[0].outcome, Outcome::Halt);
}

#[test]
fn without_may_halt_exit_code_2_is_a_failure_and_said_so() {
    let host = Host::new();
    host.task("1-ls", "ls /nonexistent");
    let ended = host.run_once();
    ended.assert_code(1);
    assert_eq!(host.attempts("1-ls").len(), 3);
    assert!(ended.err.contains("may_halt = true"), "{}", ended.err);
}

#[test]
fn continue_on_failure_goes_on_after_the_last_attempt() {
    let host = Host::new();
    host.task("1-optional", "exit 1");
    host.task("2-next", "");
    host.set("[tasks.optional]\ncontinue_on_failure = true\n");
    host.run_once().assert_code(0);
    assert_eq!(
        host.trace(),
        ["1-optional", "1-optional", "1-optional", "2-next"]
    );
}

#[test]
fn when_first_run_is_once_since_the_host_booted_over_all_processes() {
    let host = Host::new();
    host.task("1-once", "");
    host.task("2-always", "");
    host.set("[tasks.once]\nwhen = \"first-run\"\n[tasks.always]\nwhen = \"always\"\n");
    host.run(&["run", "-n", "2"]).assert_code(0);
    host.run_once().assert_code(0);
    assert_eq!(host.trace(), ["1-once", "2-always", "2-always", "2-always"]);
    // Another boot: the counters since boot begin anew, and so does the first run.
    let state = host.read("state/state.json");
    let boot_id = host.state()["boot_id"].as_str().unwrap().to_owned();
    host.write("state/state.json", state.replace(&boot_id, "another-boot"));
    host.run_once().assert_code(0);
    assert_eq!(host.trace()[4..], ["1-once", "2-always"]);
}

#[test]
fn when_before_reboot_is_not_in_the_order_but_before_the_halt_task() {
    let host = Host::new();
    host.task("0-last-words", "");
    host.task("1-task", "");
    host.task("halt", "");
    host.set("[tasks.last-words]\nwhen = \"before-reboot\"\n");
    host.run_once().assert_code(0);
    assert_eq!(host.trace(), ["1-task"]);
    host.run(&["run", "-n", "1", "--halt-after"]).assert_code(2);
    assert_eq!(host.trace()[1..], ["1-task", "0-last-words", "halt"]);
}

#[test]
fn requires_demands_a_value_before_anything_runs() {
    let host = Host::new();
    host.task(
        "1-update",
        "$RUNNER_CONFIG_CMD -g hg.tools_repo >\"$HERE/value\"",
    );
    host.set("[tasks.update]\nrequires = [\"hg.tools_repo\"]\n");
    host.run_once().assert_code(78);
    assert!(host.trace().is_empty() && !host.exists("state"));
    host.write(
        "runner.d/60-site.toml",
        "[hg]\ntools_repo = \"https://hg.example.org/tools\"\n",
    );
    host.run_once().assert_code(0);
    assert_eq!(host.read("value"), "https://hg.example.org/tools\n");
}

#[test]
fn shared_resource_is_named_where_its_task_fails() {
    let host = Host::new();
    host.task("1-clone", "test \"$RUNNER_ATTEMPT\" -gt 1");
    host.set("[tasks.clone]\nshared_resource = \"hg.example.org\"\n");
    let ended = host.run(&["run", "-n", "1", "--log-format", "json"]);
    ended.assert_code(0);
    let failed = ended
        .err
        .lines()
        .find(|line| line.contains("task failed, will retry"))
        .unwrap();
    let failed: serde_json::Value = serde_json::from_str(failed).unwrap();
    assert_eq!(failed["shared_resource"], "hg.example.org");
}

#[test]
fn drain_signal_tells_the_task_once_to_take_no_further_job() {
    let host = Host::new();
    host.task(
        "1-worker",
        "trap 'echo hup >>\"$HERE/told\"' HUP; : >\"$HERE/ready\"\n\
         while ! test -e \"$HERE/finish\"; do sleep 0.01; done; echo job.name=last >>\"$RUNNER_OUTPUT\"",
    );
    host.task("2-after-the-job", "");
    host.set("[tasks.worker]\ndrain_signal = \"HUP\"\n");
    let mut running = host.start(&["run"]);
    running.until_file("ready");
    running.signal(nix::sys::signal::Signal::SIGUSR2);
    running.until_written("told");
    running.signal(nix::sys::signal::Signal::SIGUSR2);
    host.write("finish", "");
    running.wait().assert_code(0);
    assert_eq!(host.lines("told"), ["hup"]);
    // The run with the job is finished, and no other begins.
    assert_eq!(host.trace(), ["1-worker", "2-after-the-job"]);
}

#[test]
fn settings_under_the_full_name_go_before_those_under_the_short_name() {
    let host = Host::new();
    host.task("1-twin", "echo $WHO >>\"$HERE/who\"");
    host.task("2-twin", "echo $WHO >>\"$HERE/who\"");
    host.set("[tasks.1-twin.env]\nWHO = \"first\"\n[tasks.2-twin.env]\nWHO = \"second\"\n");
    host.run_once().assert_code(0);
    assert_eq!(host.lines("who"), ["first", "second"]);
}
