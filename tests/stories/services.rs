//! The services themselves: what the other stories take for granted of them.

use std::io::Write as _;
use std::time::Duration;

use farm_tests::process::Process;
use farm_tests::services::{Build, Buildbot, InfluxDb, Rsyslog, Settings, VictoriaMetrics};
use farm_tests::{programs, wait};
use serde_json::Value;
use tempfile::TempDir;

/// For anything that is a matter of milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_worker_takes_one_build_leaves_its_name_and_result_and_ends() {
    let master = Buildbot::start(&Settings {
        worker: "bld-1".to_owned(),
        password: "pass".to_owned(),
        listed_job: "android-release".to_owned(),
        host_daemon: "/nonexistent".into(),
    });
    let host = TempDir::with_prefix("farm-worker-").unwrap();
    let environment = programs::python_environment();
    let program = environment.join("bin/buildbot-worker");
    let server = format!("127.0.0.1:{}", master.worker_port());
    let log = host.path().join("worker.log");
    let create = [
        "create-worker",
        "--allow-shutdown=signal",
        "worker",
        &server,
        "bld-1",
        "pass",
    ];
    let made = Process::start(&program, create, host.path(), &log).ended(SOON);
    assert!(made.success());

    master.submit(&["failing", "good", "android-release"]);
    for (done, (job, results)) in [("failing", 2), ("good", 0)].into_iter().enumerate() {
        let start = ["start", "--nodaemon", "worker"];
        let mut worker = Process::start(&program, start, host.path(), &log);
        assert!(worker.ended(SOON).success());
        let told = fs_err::read_to_string(host.path().join("worker/last_job.json")).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(
            (told["builder"].as_str(), told["results"].as_u64()),
            (Some(job), Some(results))
        );
        let finished = wait::until("the master to finish the build", SOON, || {
            let finished = master.finished().map_err(|error| error.to_string())?;
            (finished.len() > done)
                .then_some(finished)
                .ok_or("it is not finished".to_owned())
        });
        assert_eq!(
            finished[done..],
            [Build {
                job: job.to_owned(),
                results
            }]
        );
    }
    assert_eq!(
        master.pending().unwrap(),
        1,
        "no build was taken that was not asked for"
    );
}

#[test]
fn influxdb_keeps_what_was_written_while_it_is_down() {
    let mut database = InfluxDb::start();
    let write = format!(
        "{}/write?db={}&precision=ns",
        database.url(),
        database.database()
    );
    let body = "task_finished,host=a attempt=1i 1\ntask_finished,host=a attempt=2i 2\n";
    let client = reqwest::blocking::Client::new();
    let status = client.post(&write).body(body).send().unwrap().status();
    assert_eq!(status, 204);
    let count = r#"SELECT count("attempt") FROM "task_finished" WHERE "host"='a'"#;
    assert_eq!(database.count(count).unwrap(), 2);

    database.stop();
    assert!(database.count(count).is_err());
    assert!(client.post(&write).body(body).send().is_err());
    database.start_again();
    assert_eq!(database.count(count).unwrap(), 2);
    assert_eq!(database.count(&count.replace("'a'", "'b'")).unwrap(), 0);
}

#[test]
fn victoria_metrics_keeps_what_was_written_while_it_is_down() {
    let mut database = VictoriaMetrics::start();
    let now = std::process::Command::new("date")
        .arg("+%s")
        .output()
        .unwrap();
    let now: i64 = String::from_utf8_lossy(&now.stdout).trim().parse().unwrap();
    let body = format!(
        "task_finished,host=a attempt=1i {now}000000001\ntask_finished,host=a attempt=2i {now}002000000\n"
    );
    let write = format!(
        "{}/api/v2/write?org=o&bucket=b&precision=ns",
        database.url()
    );
    let client = reqwest::blocking::Client::new();
    assert_eq!(client.post(&write).body(body).send().unwrap().status(), 204);
    let samples = |database: &VictoriaMetrics| {
        let series = database
            .export(r#"task_finished_attempt{host="a"}"#)
            .map_err(|error| error.to_string())?;
        let times: Vec<_> = series.into_iter().flat_map(|series| series.times).collect();
        (times == [now * 1000, now * 1000 + 2])
            .then_some(())
            .ok_or(format!("{times:?}"))
    };
    wait::until("both samples", SOON, || samples(&database));

    database.stop();
    assert!(samples(&database).is_err());
    database.start_again();
    wait::until("both samples again", SOON, || samples(&database));
    assert!(
        (database
            .number("sum(count_over_time(task_finished_attempt[1h]))")
            .unwrap()
            - 2.0)
            .abs()
            < f64::EPSILON
    );
}

#[test]
fn rsyslog_writes_what_came_by_tcp_udp_and_its_socket() {
    let mut daemon = Rsyslog::start();
    let message =
        "<134>1 2026-01-01T00:00:00Z bld-1 runner 7 RETRY - RETRY task=10-update attempt=1";
    let send = |daemon: &Rsyslog| {
        let mut tcp = std::net::TcpStream::connect(daemon.address()).unwrap();
        write!(tcp, "{} {message}", message.len()).unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.send_to(message.as_bytes(), daemon.address()).unwrap();
        let local = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let text = b"<134>Jan  1 00:00:00 runner[7]: RETRY task=10-update attempt=1";
        local.send_to(text, daemon.socket()).unwrap();
    };
    let arrived = |daemon: &Rsyslog, each: usize| {
        let lines = daemon.lines();
        let complete = ["imtcp ", "imudp ", "imuxsock "].iter().all(|input| {
            let mut from_input = lines.iter().filter(|line| line.starts_with(input));
            from_input.clone().count() == each
                && from_input.all(|line| {
                    line.contains(" runner ") && line.contains("RETRY task=10-update attempt=1")
                })
        });
        complete.then_some(()).ok_or(lines.join("\n"))
    };
    send(&daemon);
    wait::until("one line of each", SOON, || arrived(&daemon, 1));
    daemon.stop();
    assert!(std::net::TcpStream::connect(daemon.address()).is_err());
    daemon.start_again();
    send(&daemon);
    wait::until("two lines of each", SOON, || arrived(&daemon, 2));
}
