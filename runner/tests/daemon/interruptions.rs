//! The cloud takes the instance back while a job runs, or while none does.

use std::time::Duration;

use farm_events::{Event, InterruptionNoticed, JobFinished};
use jiff::Timestamp;
use nix::sys::signal::Signal;

use crate::cloud::{Farm, Mood, NOTICE, now};
use crate::host::{Host, Running, is_alive, pids};

fn jobs(host: &Host) -> Vec<JobFinished> {
    host.history()
        .into_iter()
        .filter_map(|event| match event {
            Event::JobFinished(job) => Some(job),
            _ => None,
        })
        .collect()
}

fn notices(host: &Host) -> Vec<InterruptionNoticed> {
    host.history()
        .into_iter()
        .filter_map(|event| match event {
            Event::InterruptionNoticed(notice) => Some(notice),
            _ => None,
        })
        .collect()
}

#[test]
fn a_job_that_ends_before_the_time_of_the_notice_is_not_lost() {
    let farm = Farm::new();
    farm.job_task("");
    farm.host.write("job", "");
    let mut running = farm.host.start(&["run"]);
    running.until_written("pids");
    farm.until_activity(&mut running, "busy");
    let time = farm.imds.notice(1000);
    running.until("the report of it", |_| {
        !farm.provisioner.last_report()["spot_notice"].is_null()
    });
    let report = farm.provisioner.last_report();
    assert_eq!(report["activity"], "draining");
    assert_eq!(report["spot_notice"]["action"], "terminate");
    assert_eq!(report["spot_notice"]["time"], time.to_string());
    assert!(is_alive(pids(&farm.host, "pids")[0]));
    farm.host.write("end", "");
    running.until_phase("held");
    // The run was finished, and there is no other.
    assert_eq!(farm.host.trace(), ["5-job", "9-decide"]);
    running.until("the job to be over", |_| {
        farm.provisioner.last_report()["job"].is_null()
    });
    running.signal(Signal::SIGTERM);
    running.wait().assert_code(0);
    let job = jobs(&farm.host).remove(0);
    assert_eq!((job.result.as_str(), job.interruption), ("success", None));
    assert!(
        farm.provisioner
            .reports()
            .iter()
            .all(|report| report["lost_job"].is_null())
    );
    let noticed = notices(&farm.host);
    assert_eq!(noticed.len(), 1);
    assert_eq!(noticed[0].job.as_deref(), Some("linux64"));
}

/// A job that does not end, and the notice that ends it; says how long before the end it was gone.
fn lose_a_job(extra: &str, trap: &str) -> (Farm, i64) {
    let farm = Farm::new();
    farm.job_task(extra);
    farm.host.task(
        "5-job",
        &format!(
            "trap : HUP; {trap}\necho taken.name=linux64 >>\"$RUNNER_OUTPUT\"\n\
             echo taken.id=17 >>\"$RUNNER_OUTPUT\"; echo $$ >>\"$HERE/pids\"\n\
             while :; do sleep 0.01; done"
        ),
    );
    let mut running = farm.host.start(&["run"]);
    running.until_written("pids");
    farm.until_activity(&mut running, "busy");
    let time = farm.imds.notice(6);
    running.until_said("the job is lost");
    let left = time.duration_since(now()).as_millis();
    assert!(!is_alive(pids(&farm.host, "pids")[0]));
    running.until("the report of it", |_| {
        let reports = farm.provisioner.reports();
        reports
            .iter()
            .any(|report| report["lost_job"]["id"] == "17")
    });
    running.until_phase("held");
    running.until("it is said once", |_| {
        farm.provisioner.last_report()["lost_job"].is_null()
    });
    running.signal(Signal::SIGTERM);
    let ended = running.wait();
    ended.assert_code(0);
    assert_eq!(farm.host.trace(), ["5-job"]);
    let job = jobs(&farm.host).remove(0);
    assert_eq!(
        (job.job.as_str(), job.result.as_str()),
        ("linux64", "interrupted")
    );
    assert_eq!(job.id.as_deref(), Some("17"));
    assert_eq!(job.interruption, Some(format!("terminate at {time}")));
    let attempt = farm.host.attempts("5-job").remove(0);
    assert!(attempt.stopped && !attempt.timed_out);
    (farm, i64::try_from(left).unwrap())
}

#[test]
fn a_job_that_does_not_end_is_lost_and_reported_before_the_end() {
    let (farm, left) = lose_a_job("leave_before_end = \"4s\"", "");
    assert!(left > 0 && left <= 4000, "{left} ms before the end");
    assert_eq!(farm.host.attempts("5-job")[0].signal, Some(15));
}

#[test]
fn a_job_that_ignores_sigterm_is_dead_before_the_end_whatever_its_grace_period() {
    // The grace period of this host is 20 s.
    let (farm, left) = lose_a_job("leave_before_end = \"4s\"", "trap '' TERM");
    assert!(left > 0 && left <= 1000, "{left} ms before the end");
    assert_eq!(farm.host.attempts("5-job")[0].signal, Some(9));
}

#[test]
fn a_notice_that_came_too_late_ends_the_job_at_once() {
    let farm = Farm::new();
    farm.job_task("");
    farm.host.write("job", "");
    let mut running = farm.host.start(&["run"]);
    running.until_written("pids");
    farm.until_activity(&mut running, "busy");
    farm.imds.notice(-5);
    running.until_said("the job is lost");
    running.until("the report of it", |_| {
        let reports = farm.provisioner.reports();
        reports
            .iter()
            .any(|report| report["lost_job"]["id"] == "17")
    });
    running.signal(Signal::SIGTERM);
    running.wait().assert_code(0);
}

#[test]
fn a_job_is_ended_in_time_although_the_metadata_service_hangs() {
    let farm = Farm::new();
    farm.job_task("leave_before_end = \"1s\"\nrequest_timeout = \"10m\"");
    farm.host.write("job", "");
    let mut running = farm.host.start(&["run"]);
    running.until_written("pids");
    farm.until_activity(&mut running, "busy");
    let time = farm.imds.notice(3);
    running.until_said("spot notice: the cloud takes this instance back");
    farm.imds.feel(Mood::Never);
    running.until_said("the job is lost");
    let left = time.duration_since(now());
    assert!(left.is_positive() && left.as_millis() <= 1000, "{left}");
    running.signal(Signal::SIGTERM);
    running.wait().assert_code(0);
}

#[test]
fn a_notice_without_a_job_ends_the_wait_for_one_and_loses_none() {
    let farm = Farm::new();
    farm.job_task("leave_before_end = \"1s\"");
    let mut running = farm.host.start(&["run"]);
    running.until_written("waits");
    farm.imds.notice(2);
    running.until_phase("held");
    running.until_said("the time of the spot notice is near");
    assert_eq!(farm.host.lines("heard"), ["drained"]);
    running.signal(Signal::SIGTERM);
    let ended = running.wait();
    ended.assert_code(0);
    assert_eq!(ended.count("lost"), 0, "{}", ended.err);
    assert!(jobs(&farm.host).is_empty());
    assert_eq!(farm.host.trace(), ["5-job"]);
}

#[test]
fn a_notice_that_is_withdrawn_lets_the_host_work_again() {
    let farm = Farm::new();
    farm.job_task("");
    let mut running = farm.host.start(&["run"]);
    running.until_written("waits");
    farm.imds.notice(1000);
    running.until_phase("held");
    farm.imds.remove(NOTICE);
    running.until_said("the spot notice was withdrawn");
    running.until("it waits again", |host| host.lines("waits").len() == 2);
    farm.until_activity(&mut running, "idle");
    running.signal(Signal::SIGTERM);
    running.wait().assert_code(0);
    let withdrawn: Vec<_> = notices(&farm.host)
        .iter()
        .map(|notice| notice.withdrawn)
        .collect();
    assert_eq!(withdrawn, [false, true]);
}

#[test]
fn a_metadata_service_that_fails_is_no_notice_and_no_withdrawal() {
    let farm = Farm::new();
    farm.job_task("request_timeout = \"1s\"");
    let mut running = farm.host.start(&["run"]);
    running.until_written("waits");
    farm.imds.notice(1000);
    running.until_phase("held");
    for mood in [Mood::Status(500), Mood::Lies, Mood::HangUp] {
        farm.imds.feel(mood);
        let asked = farm.imds.asked().len();
        running.until("three questions", |_| farm.imds.asked().len() > asked + 3);
        assert_eq!(farm.host.phase(), "held");
    }
    running.signal(Signal::SIGTERM);
    let ended = running.wait();
    ended.assert_code(0);
    assert_eq!(
        ended.count("it is not known whether there is a spot notice"),
        1,
        "{}",
        ended.err
    );
}

#[test]
fn on_demand_nobody_looks_for_a_notice_and_nobody_for_a_rebalance_recommendation() {
    for (life_cycle, looks) in [("on-demand", false), ("spot", true)] {
        let farm = Farm::with_life_cycle(life_cycle);
        farm.job_task("");
        let mut running = farm.host.start(&["run"]);
        running.until("five reports", |_| farm.provisioner.reports().len() >= 5);
        running.until("a few looks", |_| {
            !looks
                || farm
                    .imds
                    .asked()
                    .iter()
                    .filter(|path| path.ends_with(NOTICE))
                    .count()
                    >= 3
        });
        let asked = farm.imds.asked();
        assert_eq!(
            asked.iter().any(|path| path.ends_with(NOTICE)),
            looks,
            "{asked:?}"
        );
        assert!(!asked.iter().any(|path| path.contains("rebalance")));
        running.signal(Signal::SIGTERM);
        running.wait_for(Duration::from_secs(20)).assert_code(0);
    }
}

/// A busy host that is asked every hour, gets a notice under such circumstances, and has lost its job
/// two seconds after it.
fn dying(notice_under: impl FnOnce(&Farm, &mut Running<'_>) -> Timestamp) {
    let farm = Farm::new();
    farm.job_task("leave_before_end = \"6s\"");
    farm.host.write("job", "");
    farm.host.write(
        "runner.d/60-slow.toml",
        "[fleet]\nask_every = \"1h\"\nrequest_timeout = \"1h\"\n",
    );
    let mut runner = farm.host.start(&["run"]);
    runner.until_written("pids");
    farm.until_activity(&mut runner, "busy");
    let time = notice_under(&farm, &mut runner);
    runner.until("the report of it", |_| {
        let reports = farm.provisioner.reports();
        reports
            .iter()
            .any(|report| report["lost_job"]["id"] == "17")
    });
    let left = time.duration_since(now());
    assert!(left.is_positive(), "{left}");
    runner.signal(Signal::SIGTERM);
    runner.wait().assert_code(0);
}

#[test]
fn a_lost_job_is_said_in_time_although_the_last_report_hangs() {
    dying(|farm, runner| {
        farm.provisioner.feel(Mood::Never);
        let asked = farm.provisioner.requests();
        let time = farm.imds.notice(8);
        runner.until("a report that hangs", |_| {
            farm.provisioner.requests() > asked
        });
        farm.provisioner.feel(Mood::Well);
        runner.until_said("the job is lost");
        time
    });
}

#[test]
fn a_lost_job_is_said_in_time_although_saying_it_fails_at_first() {
    for mood in [Mood::Status(503), Mood::HangUp] {
        dying(|farm, runner| {
            farm.provisioner.feel(mood);
            let time = farm.imds.notice(8);
            runner.until_said("the job is lost");
            let asked = farm.provisioner.requests();
            runner.until("a report in vain", |_| farm.provisioner.requests() > asked);
            farm.provisioner.feel(Mood::Well);
            time
        });
    }
}
