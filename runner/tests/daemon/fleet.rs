//! A host that is an instance: what it learns of itself, and what it does for its provisioner.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use farm_events::{Event, Record, RunResult};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::Instant;

use crate::cloud::{Farm, HOST_TOKEN, INSTANCE, JOIN_TOKEN, Mood};
use crate::host::{Host, Running, is_alive, is_root, pids};

/// What a busy machine may add to a few runs of nothing.
const SLACK: Duration = Duration::from_secs(15);

fn records(host: &Host) -> Vec<Record> {
    host.lines("state/history.jsonl")
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn results(host: &Host) -> Vec<RunResult> {
    host.history()
        .into_iter()
        .filter_map(|event| match event {
            Event::RunFinished(run) => Some(run.result),
            _ => None,
        })
        .collect()
}

fn fleet_file(host: &Host) -> Value {
    serde_json::from_str(&host.read("state/fleet.json")).unwrap_or_default()
}

fn end(running: Running<'_>) -> crate::host::Ended {
    running.signal(Signal::SIGTERM);
    let ended = running.wait();
    ended.assert_code(0);
    ended
}

// --- which instance this is ---

#[test]
fn an_instance_knows_itself_from_its_first_event_on() {
    let farm = Farm::new();
    farm.host.task("1-task", "");
    farm.host.run_once().assert_code(0);
    let records = records(&farm.host);
    assert!(records.len() >= 4);
    for record in records {
        let identity = record.identity;
        assert_eq!(identity.instance_id, INSTANCE);
        assert_eq!(identity.pool, "linux64");
        assert_eq!(identity.image, "linux64-7");
        assert_eq!(identity.region, "us-west-2");
    }
}

#[test]
fn what_is_configured_goes_before_what_the_cloud_says() {
    let farm = Farm::new();
    farm.host.task("1-task", "");
    farm.set("[telemetry]\npool = \"loaner\"\nregion = \"here\"\n");
    farm.host.run_once().assert_code(0);
    let identity = records(&farm.host).pop().unwrap().identity;
    assert_eq!(
        (identity.pool.as_str(), identity.region.as_str()),
        ("loaner", "here")
    );
    assert_eq!(identity.image, "linux64-7");
}

#[test]
fn the_environment_says_where_the_metadata_is_unless_the_configuration_does() {
    let farm = Farm::new();
    farm.host.task("1-task", "");
    farm.host.set("[fleet]\nmetadata = \"imds\"\n");
    let mut command = farm.host.command(&["run", "-n", "1"]);
    command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", farm.imds.url());
    farm.host.start_command(command).wait().assert_code(0);
    let identity = records(&farm.host).pop().unwrap().identity;
    assert_eq!(identity.instance_id, INSTANCE);
}

#[test]
fn switched_off_nobody_is_asked() {
    let farm = Farm::new();
    farm.host.task("1-task", "");
    farm.host.set("");
    let mut command = farm.host.command(&["run", "-n", "1"]);
    command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", farm.imds.url());
    farm.host.start_command(command).wait().assert_code(0);
    assert!(farm.imds.asked().is_empty());
    assert_eq!(farm.provisioner.requests(), 0);
    assert!(!farm.host.exists("state/fleet.json"));
}

#[test]
fn a_metadata_service_that_fails_is_said_once_and_stops_no_run() {
    for mood in [
        Mood::Never,
        Mood::HangUp,
        Mood::Endless,
        Mood::Garbage,
        Mood::Status(500),
        Mood::Status(401),
        Mood::Status(404),
        Mood::Lies,
    ] {
        let farm = Farm::new();
        farm.host.task("1-task", "");
        farm.set("request_timeout = \"200ms\"\n");
        farm.imds.feel(mood);
        let mut running = farm.host.start(&["run"]);
        running.until("three runs", |host| host.trace().len() > 3);
        running.until_said("does not say which instance this is");
        let asked = farm.imds.asked().len();
        running.until("another question", |_| farm.imds.asked().len() > asked);
        let ended = end(running);
        assert_eq!(ended.count("WARN"), 1, "{mood:?}\n{}", ended.err);
    }
}

#[test]
fn a_metadata_service_that_is_late_is_heard_all_the_same() {
    let farm = Farm::new();
    farm.host.task("1-task", "");
    farm.set("request_timeout = \"100ms\"\n");
    farm.imds.feel(Mood::Status(503));
    let mut running = farm.host.start(&["run"]);
    running.until("a run without a name", |host| {
        records(host)
            .iter()
            .any(|record| record.identity.instance_id.is_empty())
    });
    farm.imds.feel(Mood::Well);
    running.until("a run with one", |host| {
        records(host)
            .iter()
            .any(|record| record.identity.instance_id == INSTANCE)
    });
    running.until("a report", |_| !farm.provisioner.reports().is_empty());
    end(running);
}

#[test]
fn user_data_of_somebody_else_leaves_the_instance_its_name() {
    let farm = Farm::new();
    farm.host.task("1-task", "");
    farm.imds.set("user-data", "#!/bin/sh\necho my own\n");
    let ended = farm.host.run_once();
    ended.assert_code(0);
    assert_eq!(
        ended.count("the user data is not the provisioner's"),
        1,
        "{}",
        ended.err
    );
    let identity = records(&farm.host).pop().unwrap().identity;
    assert_eq!(
        (identity.instance_id.as_str(), identity.pool.as_str()),
        (INSTANCE, "")
    );
    assert_eq!(identity.image, "ami-0abc");
    assert_eq!(farm.provisioner.requests(), 0);
}

#[test]
fn a_session_token_that_is_no_longer_taken_is_fetched_anew() {
    let farm = Farm::new();
    farm.job_task("");
    let mut running = farm.host.start(&["run"]);
    running.until_written("waits");
    farm.imds.expire();
    farm.imds.notice(1000);
    running.until("the notice", |_| {
        !farm.provisioner.last_report()["spot_notice"].is_null()
    });
    assert_eq!(
        end(running).count("it is not known whether there is a spot notice"),
        0
    );
}

// --- registration ---

#[test]
fn a_host_registers_once_and_keeps_its_token_for_its_owner_alone() {
    let farm = Farm::new();
    farm.host.task("1-task", "");
    for _ in 0..2 {
        let before = farm.provisioner.reports().len();
        let mut running = farm.host.start(&["run"]);
        running.until("a report of this process", |_| {
            farm.provisioner.reports().len() > before
        });
        end(running);
    }
    assert_eq!(farm.provisioner.registrations().len(), 1);
    let file = farm.host.path("state/fleet.json");
    let mode = fs_err::metadata(file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fleet_file(&farm.host)["host_token"], HOST_TOKEN);
}

#[test]
fn a_lost_answer_to_a_registration_costs_nothing() {
    let farm = Farm::new();
    farm.host.task("1-task", "");
    farm.provisioner.lose_answers(3);
    let mut running = farm.host.start(&["run"]);
    running.until("a report", |_| !farm.provisioner.reports().is_empty());
    let keys: Vec<_> = farm
        .provisioner
        .registrations()
        .iter()
        .map(|registration| registration["key"].clone())
        .collect();
    assert_eq!(keys.len(), 4);
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    end(running);
}

#[test]
fn a_runner_that_is_killed_between_key_and_token_registers_with_the_same_key() {
    let farm = Farm::new();
    farm.host.task("1-task", "");
    farm.provisioner.lose_answers(1_000_000);
    let mut running = farm.host.start(&["run"]);
    running.until("a registration", |_| {
        !farm.provisioner.registrations().is_empty()
    });
    running.kill();
    let kept = fleet_file(&farm.host);
    assert_eq!(kept["key"], farm.provisioner.registrations()[0]["key"]);
    assert!(kept["host_token"].is_null());
    farm.provisioner.lose_answers(0);
    let mut running = farm.host.start(&["run"]);
    running.until("a report", |_| !farm.provisioner.reports().is_empty());
    end(running);
    assert_eq!(fleet_file(&farm.host)["key"], kept["key"]);
}

#[test]
fn a_host_started_from_the_image_of_another_makes_a_key_of_its_own() {
    let farm = Farm::new();
    farm.host.task("1-task", "");
    fs_err::create_dir(farm.host.path("state")).unwrap();
    farm.host.chmod("state", 0o700);
    farm.host.write(
        "state/fleet.json",
        format!(
            "{{\"instance_id\":\"i-other\",\"key\":\"{}\",\"host_token\":\"x\"}}",
            "0".repeat(32)
        ),
    );
    farm.host.write(
        "state/fence.json",
        "{\"instance_id\":\"i-other\",\"reason\":null,\"text\":\"\",\"at\":\"2026-11-20T08:00:00Z\"}",
    );
    let mut running = farm.host.start(&["run"]);
    running.until("a report", |_| !farm.provisioner.reports().is_empty());
    running.until("a run", |host| !host.trace().is_empty());
    end(running);
    let kept = fleet_file(&farm.host);
    assert_eq!(kept["instance_id"], INSTANCE);
    assert_ne!(kept["key"], "0".repeat(32));
    assert!(!farm.host.exists("state/fence.json"));
}

#[test]
fn a_token_that_is_not_taken_any_more_is_asked_for_with_the_same_key() {
    let farm = Farm::new();
    farm.host.task("1-task", "");
    let mut running = farm.host.start(&["run"]);
    running.until("a report", |_| !farm.provisioner.reports().is_empty());
    farm.provisioner.forget_tokens();
    running.until("a new token", |host| {
        fleet_file(host)["host_token"] != HOST_TOKEN
    });
    let reports = farm.provisioner.reports().len();
    running.until("a report with it", |_| {
        farm.provisioner.reports().len() > reports
    });
    end(running);
    assert_eq!(farm.provisioner.registrations().len(), 2);
}

#[test]
fn a_provisioner_that_refuses_the_host_is_said_once_and_seldom_asked() {
    for status in [401, 403, 409] {
        let farm = Farm::new();
        farm.host.task("1-task", "");
        farm.provisioner.feel(Mood::Status(status));
        let mut running = farm.host.start(&["run"]);
        running.until("three questions", |_| farm.provisioner.requests() >= 3);
        let ended = end(running);
        assert_eq!(ended.count("refuses this host"), 1, "{}", ended.err);
        assert!(
            ended
                .err
                .contains(&format!("it answered {status}: no [token]")),
            "{}",
            ended.err
        );
        assert!(farm.host.trace().len() > 1);
    }
}

// --- what delays nothing ---

#[test]
fn a_provisioner_that_fails_in_whatever_way_delays_nothing() {
    for mood in [
        Mood::Never,
        Mood::HangUp,
        Mood::Endless,
        Mood::Garbage,
        Mood::Status(500),
        Mood::Status(503),
        Mood::Status(302),
        Mood::Lies,
    ] {
        let farm = Farm::new();
        farm.host.task("1-task", "");
        // Waiting for one answer would take longer than all.
        farm.set("request_timeout = \"10m\"\nconnect_timeout = \"10m\"\n");
        farm.provisioner.feel(mood);
        let started = Instant::now();
        let mut running = farm.host.start(&["run"]);
        running.until("a question", |_| farm.provisioner.requests() > 0);
        running.until("ten runs", |host| host.trace().len() >= 10);
        let ended = end(running);
        assert!(
            started.elapsed() < SLACK,
            "{mood:?}: {:?}",
            started.elapsed()
        );
        assert!(ended.count("WARN") <= 1, "{mood:?}\n{}", ended.err);
        assert!(results(&farm.host).contains(&RunResult::Done));
    }
}

#[test]
fn a_provisioner_that_is_not_there_is_said_once_and_so_is_its_return() {
    let farm = Farm::new();
    farm.host.task("1-task", "");
    farm.provisioner.feel(Mood::HangUp);
    let mut running = farm.host.start(&["run"]);
    running.until("five questions", |_| farm.provisioner.requests() >= 5);
    farm.provisioner.feel(Mood::Well);
    running.until_said("the provisioner answers");
    let ended = end(running);
    assert_eq!(
        ended.count("the provisioner is not reached"),
        1,
        "{}",
        ended.err
    );
    assert_eq!(ended.count("the provisioner answers"), 1, "{}", ended.err);
}

// --- assignments ---

#[test]
fn an_idle_host_is_drained_and_works_again_when_that_is_taken_back() {
    let farm = Farm::new();
    farm.job_task("");
    let mut running = farm.host.start(&["run"]);
    running.until_written("waits");
    farm.until_activity(&mut running, "idle");
    farm.provisioner.assign("drain");
    running.until_phase("held");
    farm.until_activity(&mut running, "draining");
    assert_eq!(farm.host.lines("heard"), ["drained"]);
    // A run that was told to take no job is not weighed as one that found none.
    assert_eq!(farm.host.trace(), ["5-job"]);
    let asked = farm.provisioner.reports().len();
    running.until("it still asks", |_| {
        farm.provisioner.reports().len() > asked + 2
    });
    assert_eq!(farm.host.trace(), ["5-job"]);
    farm.provisioner.assign("go_on");
    running.until("it waits again", |host| host.lines("waits").len() == 2);
    farm.until_activity(&mut running, "idle");
    end(running);
    let told: Vec<_> = farm
        .host
        .history()
        .into_iter()
        .filter_map(|event| match event {
            Event::AssignmentChanged(change) => Some(change.assignment),
            _ => None,
        })
        .collect();
    assert_eq!(told, ["drain", "go_on"]);
}

#[test]
fn a_drain_that_is_taken_back_at_once_makes_no_run_without_a_job() {
    let farm = Farm::new();
    farm.host.task(
        "5-job",
        "trap 'echo heard >>\"$HERE/heard\"' HUP; echo waiting >>\"$HERE/waits\"\n\
         while ! test -e \"$HERE/let-go\"; do sleep 0.01; done",
    );
    farm.host.task("9-decide", "");
    farm.set("[tasks.5-job]\ndrain_signal = \"HUP\"\n");
    let mut running = farm.host.start(&["run"]);
    running.until_written("waits");
    farm.provisioner.assign("drain");
    running.until_written("heard");
    farm.until_activity(&mut running, "draining");
    farm.provisioner.assign("go_on");
    farm.until_activity(&mut running, "idle");
    farm.host.write("let-go", "");
    running.until("the next run", |host| host.lines("waits").len() >= 2);
    assert_eq!(results(&farm.host)[0], RunResult::Stopped);
    assert_eq!(farm.host.trace()[..2], ["5-job", "5-job"]);
    end(running);
}

#[test]
fn a_task_that_dies_of_its_drain_signal_halts_no_host() {
    let farm = Farm::new();
    farm.host
        .task("5-job", "echo waiting >>\"$HERE/waits\"; exec sleep 1000");
    farm.host.task("halt", "");
    farm.set("[tasks.5-job]\ndrain_signal = \"HUP\"\nmax_attempts = 1\n");
    let mut running = farm.host.start(&["run"]);
    running.until_written("waits");
    farm.provisioner.assign("drain");
    running.until_phase("held");
    assert_eq!(farm.host.attempts("5-job")[0].signal, Some(1));
    farm.provisioner.assign("go_on");
    running.until("it waits again", |host| host.lines("waits").len() == 2);
    end(running);
    assert_eq!(farm.host.trace(), ["5-job", "5-job"]);
}

#[test]
fn a_host_that_cannot_keep_its_fence_does_not_say_that_it_is_fenced() {
    if !is_root("mounting a small disk") {
        return;
    }
    let farm = Farm::new();
    fs_err::create_dir(farm.host.path("state")).unwrap();
    farm.host.task(
        "1-fill",
        "while ! test -e \"$HERE/fill\"; do sleep 0.01; done\n\
         head -c 10M /dev/zero >\"$RUNNER_STATE_DIR/full\" 2>/dev/null; true",
    );
    farm.job_task("");
    let state = farm.host.path("state").display().to_string();
    let mount = format!("mount -t tmpfs -o size=512k,mode=700 none '{state}'");
    let command = farm.host.command_in_namespace(&mount, &["run"]);
    let mut running = farm.host.start_command(command);
    farm.until_activity(&mut running, "idle");
    farm.host.write("fill", "");
    running.until_written("waits");
    farm.provisioner.assign("quit");
    running.until_said("the fence cannot be kept");
    running.until_written("heard");
    let reports = farm.provisioner.reports().len();
    running.until("some more reports", |_| {
        farm.provisioner.reports().len() > reports + 5
    });
    let said = |activity: &str| {
        let reports = farm.provisioner.reports();
        reports.iter().any(|report| report["activity"] == activity)
    };
    assert!(said("draining") && !said("fenced"));
    // The disk is seen from where its runner is.
    fs_err::remove_file(format!("/proc/{}/root{state}/full", running.pid())).unwrap();
    farm.until_activity(&mut running, "fenced");
    assert_eq!(
        running.said().matches("the fence cannot be kept").count(),
        1
    );
    running.kill();
}

#[test]
fn a_busy_host_finishes_its_job_before_it_is_fenced() {
    let farm = Farm::new();
    farm.job_task("");
    // A second task that takes jobs must not take one.
    farm.host.task("6-job", "echo taken >>\"$HERE/second\"");
    farm.job_task("[tasks.6-job]\ndrain_signal = \"HUP\"\n");
    farm.host.write("job", "");
    let mut running = farm.host.start(&["run"]);
    running.until_written("pids");
    farm.until_activity(&mut running, "busy");
    let report = farm.provisioner.last_report();
    assert_eq!(
        report["job"],
        serde_json::json!({ "name": "linux64", "id": "17" })
    );
    assert_eq!(report["runs"], 1);
    farm.provisioner.assign("quit");
    farm.until_activity(&mut running, "draining");
    running.until_written("heard");
    assert!(is_alive(pids(&farm.host, "pids")[0]));
    assert_eq!(farm.provisioner.last_report()["job"]["id"], "17");
    farm.host.write("end", "");
    farm.until_activity(&mut running, "fenced");
    assert!(farm.provisioner.last_report()["job"].is_null());
    assert_eq!(results(&farm.host), [RunResult::Done]);
    assert_eq!(farm.host.trace(), ["5-job", "9-decide"]);
    assert!(!farm.host.exists("second"));
    let fenced = farm.provisioner.reports().len();
    running.until("it still reports", |_| {
        farm.provisioner.reports().len() > fenced + 2
    });
    assert_eq!(farm.host.phase(), "held");
    end(running);
}

#[test]
fn a_fenced_host_stays_fenced_whatever_happens() {
    let farm = Farm::new();
    farm.job_task("");
    farm.provisioner.assign("quit");
    let mut running = farm.host.start(&["run"]);
    farm.until_activity(&mut running, "fenced");
    let runs = farm.host.trace();
    running.kill();

    // Nobody can be asked.
    farm.imds.feel(Mood::HangUp);
    farm.provisioner.feel(Mood::HangUp);
    farm.set("request_timeout = \"100ms\"\n[tasks.5-job]\ndrain_signal = \"HUP\"\n");
    let mut running = farm.host.start(&["run"]);
    running.until_phase("held");
    running.until_said("does not say which instance this is");
    farm.imds.feel(Mood::Well);
    running.until_said("the provisioner is not reached");
    assert_eq!(farm.host.phase(), "held");
    // It is taken back, which cannot be.
    farm.provisioner.assign("go_on");
    farm.provisioner.feel(Mood::Well);
    running.until_said("the provisioner takes back a quit");
    farm.until_activity(&mut running, "fenced");
    let ended = end(running);
    assert_eq!(ended.count("takes back a quit"), 1);
    assert_eq!(farm.host.trace(), runs);

    // A person takes it back.
    fs_err::remove_file(farm.host.path("state/fence.json")).unwrap();
    let mut running = farm.host.start(&["run"]);
    farm.until_activity(&mut running, "idle");
    running.until("it works", |host| host.trace().len() > runs.len());
    end(running);
}

#[test]
fn a_drain_lapses_when_the_provisioner_is_gone_for_long() {
    let farm = Farm::new();
    farm.job_task("drain_lapses_after = \"300ms\"");
    let mut running = farm.host.start(&["run"]);
    running.until_written("waits");
    farm.provisioner.assign("drain");
    running.until_phase("held");
    farm.provisioner.feel(Mood::HangUp);
    running.until("it works again", |host| host.lines("waits").len() == 2);
    assert_eq!(end(running).count("its drain lapses"), 1);
}

#[test]
fn a_held_host_can_be_stopped_and_drained() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR2] {
        let farm = Farm::new();
        farm.job_task("");
        farm.provisioner.assign("drain");
        let mut running = farm.host.start(&["run"]);
        running.until_phase("held");
        running.signal(signal);
        running.wait().assert_code(0);
        assert_eq!(farm.host.phase(), "stopped");
    }
}

#[test]
fn a_host_that_is_to_quit_still_reboots_if_it_decides_so() {
    let farm = Farm::new();
    farm.job_task("");
    farm.host.task("9-decide", "exit 2");
    farm.host.task("halt", "");
    farm.job_task("[tasks.9-decide]\nmay_halt = true\n");
    farm.host.task("9-decide", "exit 2");
    farm.host.write("job", "");
    let mut running = farm.host.start(&["run"]);
    running.until_written("pids");
    farm.provisioner.assign("quit");
    farm.until_activity(&mut running, "draining");
    farm.host.write("end", "");
    running.wait().assert_code(2);
    assert_eq!(farm.host.trace(), ["5-job", "9-decide", "halt"]);
    // It comes back, and is fenced at once.
    let mut running = farm.host.start(&["run"]);
    farm.until_activity(&mut running, "fenced");
    end(running);
    assert_eq!(farm.host.trace().len(), 3);
}

#[test]
fn a_job_of_the_local_spool_is_reported_while_it_runs() {
    let farm = Farm::new();
    let spool = farm.host.path("spool");
    fs_err::create_dir(&spool).unwrap();
    fs_err::create_dir(spool.join("pending")).unwrap();
    farm.host
        .task("51-spool-job", "exec $RUNNER_CONFIG_CMD take-job");
    farm.set(&format!(
        "[jobs]\nspool = \"{}\"\n[tasks.spool-job]\ndrain_signal = \"HUP\"\n",
        spool.display()
    ));
    let mut running = farm.host.start(&["run"]);
    farm.until_activity(&mut running, "idle");
    let wait = format!(
        "while ! test -e {}; do sleep 0.01; done",
        farm.host.path("end").display()
    );
    let job = serde_json::json!({ "name": "linux64 build", "command": ["sh", "-c", wait] });
    let unfinished = farm.host.path("j1.json");
    fs_err::write(&unfinished, job.to_string()).unwrap();
    fs_err::rename(unfinished, spool.join("pending/j1.json")).unwrap();
    farm.until_activity(&mut running, "busy");
    assert_eq!(
        farm.provisioner.last_report()["job"],
        serde_json::json!({ "name": "linux64 build", "id": "j1" })
    );
    farm.host.write("end", "");
    farm.until_activity(&mut running, "idle");
    end(running);
}

// --- what people see ---

#[test]
fn status_shows_instance_assignment_and_provisioner() {
    let farm = Farm::new();
    farm.job_task("");
    farm.provisioner.assign("drain");
    let mut running = farm.host.start(&["run"]);
    running.until_phase("held");
    farm.until_activity(&mut running, "draining");
    let said = |host: &Host| host.command(&["status"]).output().unwrap().stdout;
    running.until("it to be written down", |host| {
        String::from_utf8_lossy(&said(host)).contains("activity: draining")
    });
    let status = String::from_utf8(said(&farm.host)).unwrap();
    for line in [
        "instance: i-0123456789abcdef0 (spot, us-west-2a)",
        "assignment: drain (maintenance): the rack is moved",
        "provisioner: http://127.0.0.1:",
        ", answers since 20",
    ] {
        assert!(status.contains(line), "{line}\n{status}");
    }
    let json = farm
        .host
        .command(&["status", "--format", "json"])
        .output()
        .unwrap();
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["fleet"]["assignment"], "drain");
    assert_eq!(json["state"]["activity"]["phase"], "held");
    running.signal(Signal::SIGUSR1);
    running.until_said(r#"\"assignment\":\"drain\""#);
    farm.provisioner.feel(Mood::Status(500));
    running.until("the failure", |host| {
        String::from_utf8_lossy(&said(host)).contains("not reached since 20")
    });
    end(running);
}

#[test]
fn no_secret_shows_anywhere() {
    let farm = Farm::new();
    farm.job_task("");
    farm.host.task(
        "1-look",
        "env >>\"$HERE/env\"; cat /proc/$PPID/cmdline >>\"$HERE/cmdline\"",
    );
    farm.host.write("job", "");
    let mut running = farm.host.start(&["run", "-vv"]);
    running.until_written("pids");
    farm.until_activity(&mut running, "busy");
    farm.provisioner.feel(Mood::Status(500));
    running.until_said("the provisioner is not reached");
    farm.provisioner.feel(Mood::Status(401));
    running.until_said("refuses this host");
    running.signal(Signal::SIGUSR1);
    running.until_said("fleet: {");
    let status = farm
        .host
        .command(&["status", "--format", "json"])
        .output()
        .unwrap();
    let own = format!("/proc/{}", running.pid());
    let key = fleet_file(&farm.host)["key"].as_str().unwrap().to_owned();
    let mut places = vec![
        ("status", status.stdout),
        ("environ", fs_err::read(format!("{own}/environ")).unwrap()),
        ("cmdline", fs_err::read(format!("{own}/cmdline")).unwrap()),
    ];
    farm.host.write("end", "");
    end(running);
    for file in [
        "stderr",
        "stdout",
        "env",
        "cmdline",
        "state/state.json",
        "state/history.jsonl",
        "state/fleet-status.json",
    ] {
        places.push((file, farm.host.read(file).into_bytes()));
    }
    for (place, content) in places {
        let text = String::from_utf8_lossy(&content);
        assert!(place == "stdout" || !text.is_empty(), "{place}");
        for secret in [JOIN_TOKEN, HOST_TOKEN, key.as_str()] {
            assert!(!text.contains(secret), "{place} holds {secret}");
        }
    }
}

#[test]
fn a_configuration_of_a_fleet_that_cannot_be_is_refused() {
    let host = Host::new();
    host.task("1-task", "");
    host.set("[fleet]\nmetadata = \"cloud\"\nnotice_every = \"0s\"\nprovisioner = \"farm:8080\"\n");
    let ended = host.run_once();
    ended.assert_code(78);
    assert!(ended.err.contains("`fleet.metadata`"), "{}", ended.err);
    host.set("[fleet]\nmetadata = \"imds\"\nnotice_every = \"0s\"\nprovisioner = \"farm:8080\"\n");
    let ended = host.run_once();
    ended.assert_code(78);
    assert!(
        ended
            .err
            .contains("50-test.toml:3: `fleet.notice_every` is `0s`: expected more than zero"),
        "{}",
        ended.err
    );
    assert!(
        ended
            .err
            .contains("50-test.toml:4: `fleet.provisioner` is `farm:8080`"),
        "{}",
        ended.err
    );
}
