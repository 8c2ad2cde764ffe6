//! What becomes of the events of a real `runner` when syslog and databases come and go.

use std::time::Duration;

use farm_tests::place::Place;
use farm_tests::process::Process;
use farm_tests::services::{InfluxDb, Rsyslog};
use farm_tests::{programs, wait};
use nix::sys::signal::{Signal, kill};

/// For what takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(30);

/// A place whose `runner` sends to the sinks written in `sinks`, gives up on a dead one at exit
/// almost at once, and waits next to nothing between attempts.
fn place(sinks: &str) -> Place {
    let place = Place::new("farm-telemetry-");
    let table = place.runner_table();
    place.write(
        "etc/runner.toml",
        &format!(
            "{table}max_attempts = 3\nhalt_task = \"\"\n\
             [runner.backoff]\ninitial = \"1ms\"\nmax = \"2ms\"\n\
             [telemetry]\nhost = \"bld-1\"\nflush_on_exit = \"10s\"\n{sinks}"
        ),
    );
    place
}

fn start(place: &Place, runs: &str) -> Process {
    let configuration = place.path("etc/runner.toml");
    let arguments = [
        "run",
        "--runs",
        runs,
        "--config",
        configuration.to_str().expect("ASCII"),
    ];
    Process::start(
        &programs::ours("runner"),
        arguments,
        place.directory(),
        &place.path("runner.log"),
    )
}

#[test]
fn a_retry_is_one_greppable_line_by_tcp_by_udp_and_on_the_local_socket() {
    let rsyslog = Rsyslog::start();
    let address = rsyslog.address();
    let place = place(&format!(
        "[[telemetry.syslog]]\naddress = \"tcp://{address}\"\n\
         [[telemetry.syslog]]\naddress = \"udp://{address}\"\n\
         [[telemetry.syslog]]\naddress = \"unix://{}\"\n",
        rsyslog.socket().display()
    ));
    place.write_executable(
        "tasks.d/10-update_repo",
        "#!/bin/sh\n[ \"$RUNNER_ATTEMPT\" -gt 2 ] || exit 7\n",
    );
    place.write_executable("tasks.d/20-killed", "#!/bin/sh\nkill -9 $$\n");
    let status = start(&place, "1").ended(SOON);
    assert_eq!(status.code(), Some(1), "a task used up its attempts");

    for input in ["imtcp", "imudp", "imuxsock"] {
        let lines = wait::until(&format!("the last line by {input}"), SOON, || {
            let lines: Vec<_> = rsyslog
                .lines()
                .into_iter()
                .filter(|line| line.starts_with(input))
                .collect();
            let complete = lines.iter().any(|line| line.contains("RUN_FINISHED "));
            complete.then_some(lines).ok_or("no RUN_FINISHED yet")
        });
        let retries: Vec<&str> = lines
            .iter()
            .filter_map(|line| Some(line.rsplit_once("RETRY task=")?.1))
            // The local form ends with the time; what a network line says of time is in its header.
            .map(|words| words.split(" time=").next().unwrap_or(words))
            .collect();
        let expected = [
            "10-update_repo attempt=1 max_attempts=3 code=7 delay=0.0s",
            "10-update_repo attempt=2 max_attempts=3 code=7 delay=0.0s",
            "20-killed attempt=1 max_attempts=3 code=signal:9 delay=0.0s",
            "20-killed attempt=2 max_attempts=3 code=signal:9 delay=0.0s",
            "20-killed attempt=3 max_attempts=3 code=signal:9 delay=none",
        ];
        assert_eq!(retries, expected, "{input}");
        assert!(
            lines.iter().all(|line| line.contains(" runner ")),
            "{input}: {lines:#?}"
        );
    }
    let by_tcp = rsyslog
        .lines()
        .into_iter()
        .find(|line| line.starts_with("imtcp") && line.contains("RETRY"));
    let by_tcp = by_tcp.expect("it was counted above");
    assert!(by_tcp.contains(" bld-1 runner RETRY ["), "{by_tcp}");
    assert!(
        by_tcp.contains(r#" task="10-update_repo" attempt="1""#),
        "{by_tcp}"
    );
}

#[test]
fn what_happened_while_syslog_was_down_arrives_when_it_is_back_and_in_order() {
    let mut rsyslog = Rsyslog::start();
    let place = place(&format!(
        "[[telemetry.syslog]]\naddress = \"tcp://{}\"\n",
        rsyslog.address()
    ));
    place.write_executable("tasks.d/10-fine", "#!/bin/sh\n");
    rsyslog.stop();
    assert!(start(&place, "2").ended(SOON).success());
    assert_eq!(rsyslog.lines(), Vec::<String>::new());
    rsyslog.start_again();
    assert!(start(&place, "1").ended(SOON).success());
    wait::until("three runs", SOON, || {
        let lines = rsyslog.lines();
        let runs: Vec<_> = lines
            .iter()
            .filter_map(|line| line.rsplit_once(" runs_since_boot=")?.1.split(' ').next())
            .collect();
        (runs == ["1", "2", "3"])
            .then_some(())
            .ok_or_else(|| lines.join("\n"))
    });
}

#[test]
fn a_runner_killed_while_the_database_was_down_loses_no_attempt() {
    let mut influxdb = InfluxDb::start();
    let place = place(&format!(
        "[[telemetry.influx]]\napi = \"v1\"\nurl = \"{}\"\ndatabase = \"{}\"\n",
        influxdb.url(),
        influxdb.database(),
    ));
    place.write_executable("tasks.d/10-fine", "#!/bin/sh\n");
    // The first time it stays until it is killed with its `runner`.
    let reached = place.path("reached");
    place.write_executable(
        "tasks.d/20-long",
        &format!(
            "#!/bin/sh\n[ ! -e {0} ] || exit 0\n: >{0}\nexec sleep 600\n",
            reached.display()
        ),
    );
    influxdb.stop();
    let mut runner = start(&place, "1");
    wait::until("the long task", SOON, || {
        reached.exists().then_some(()).ok_or("not reached")
    });
    kill(runner.pid(), Signal::SIGKILL).unwrap();
    runner.ended(SOON);

    influxdb.start_again();
    assert!(start(&place, "1").ended(SOON).success());
    let count = |measurement: &str, task: &str| {
        let query =
            format!(r#"SELECT count("attempt") FROM "{measurement}" WHERE "task"='{task}'"#);
        influxdb.count(&query).map_err(|error| error.to_string())
    };
    wait::until("what came before the kill and after it", SOON, || {
        let found = (
            count("task_finished", "10-fine")?,
            count("task_started", "20-long")?,
            count("task_finished", "20-long")?,
        );
        // The killed attempt started and did not finish by itself; how its end is told is the next runner's affair.
        let complete = found.0 == 2 && found.1 == 2 && found.2 >= 1;
        complete.then_some(()).ok_or_else(|| format!("{found:?}"))
    });
}
