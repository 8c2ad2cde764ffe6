//! Sinks that are down, slow or broken change no result, and hold nobody up longer than configured.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::host::{Ended, Host, until};

/// `flush_on_exit` of these hosts.
const FLUSH: Duration = Duration::from_secs(2);

/// What a busy machine may add to the start, three tasks and the end of a runner.
const SLACK: Duration = Duration::from_secs(8);

/// What a database answers.
#[derive(Clone, Copy)]
enum Answer {
    Status(&'static str),
    Never,
}

/// A database on loopback that answers every request in the same way.
struct Database {
    port: u16,
    requests: Arc<AtomicUsize>,
    bodies: Arc<Mutex<String>>,
}

impl Database {
    fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(AtomicUsize::new(0));
        let bodies = Arc::new(Mutex::new(String::new()));
        let (counted, kept) = (Arc::clone(&requests), Arc::clone(&bodies));
        // Ends with the test.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (counted, kept) = (Arc::clone(&counted), Arc::clone(&kept));
                std::thread::spawn(move || serve(stream.unwrap(), answer, &counted, &kept));
            }
        });
        Self {
            port,
            requests,
            bodies,
        }
    }
}

fn serve(mut stream: TcpStream, answer: Answer, counted: &AtomicUsize, kept: &Mutex<String>) {
    let mut pending = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count) = stream.read(&mut chunk) {
        if count == 0 {
            return;
        }
        pending.extend_from_slice(&chunk[..count]);
        while let Some(length) = request_length(&pending) {
            let request = String::from_utf8_lossy(&pending[..length]).into_owned();
            pending.drain(..length);
            kept.lock().unwrap().push_str(&request);
            counted.fetch_add(1, Ordering::SeqCst);
            match answer {
                Answer::Never => continue,
                Answer::Status(status) => {
                    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// The length of the first whole request, if there is one.
fn request_length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
    let body: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(0, |length| length.trim().parse().unwrap());
    (bytes.len() >= head + body).then_some(head + body)
}

/// Three tasks, of which one fails once, with these sinks.
fn run_with(sinks: &str) -> (Host, Ended, Duration) {
    let host = Host::new();
    host.task("1-task", "");
    host.task("2-flaky", "test \"$RUNNER_ATTEMPT\" -eq 2");
    host.task("3-task", "");
    host.set(&format!("[telemetry]\nflush_on_exit = \"2s\"\n{sinks}"));
    let started = Instant::now();
    let ended = host.run_once();
    let took = started.elapsed();
    ended.assert_code(0);
    assert_eq!(host.trace(), ["1-task", "2-flaky", "2-flaky", "3-task"]);
    (host, ended, took)
}

fn influx(port: u16) -> String {
    format!(
        "[[telemetry.influx]]\nurl = \"http://127.0.0.1:{port}\"\norg = \"o\"\nbucket = \"b\"\n"
    )
}

/// A port that nobody listens on.
fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[test]
fn a_sink_that_works_has_every_attempt_when_the_runner_ends() {
    let database = Database::start(Answer::Status("204 No Content"));
    run_with(&influx(database.port));
    let bodies = database.bodies.lock().unwrap();
    let finished = bodies
        .lines()
        .filter(|line| line.starts_with("task_finished,"))
        .count();
    assert_eq!(finished, 4, "{bodies}");
    assert_eq!(
        bodies
            .lines()
            .filter(|line| line.starts_with("run_finished,"))
            .count(),
        1
    );
}

#[test]
fn a_sink_that_is_down_changes_no_result_and_is_not_waited_for() {
    let port = closed_port();
    let (_, _, took) = run_with(&influx(port));
    assert!(took < FLUSH + SLACK, "{took:?}");
}

#[test]
fn a_sink_that_never_answers_is_given_up_within_flush_on_exit() {
    let database = Database::start(Answer::Never);
    let (_, _, took) = run_with(&influx(database.port));
    assert!(took < FLUSH + SLACK, "{took:?}");
    assert!(database.requests.load(Ordering::SeqCst) >= 1);
}

#[test]
fn a_sink_that_answers_500_is_given_up_within_flush_on_exit() {
    let database = Database::start(Answer::Status("500 Internal Server Error"));
    let (_, ended, took) = run_with(&influx(database.port));
    assert!(took < FLUSH + SLACK, "{took:?}");
    assert!(ended.err.contains("500"), "{}", ended.err);
}

#[test]
fn a_file_that_cannot_be_written_changes_no_result() {
    let (_, _, took) = run_with("[[telemetry.jsonl]]\npath = \"/dev/full\"\n");
    assert!(took < FLUSH + SLACK, "{took:?}");
}

#[test]
fn a_syslog_that_is_down_changes_no_result() {
    let tcp = closed_port();
    let (_, _, took) = run_with(&format!(
        "[[telemetry.syslog]]\naddress = \"tcp://127.0.0.1:{tcp}\"\n\
         [[telemetry.syslog]]\naddress = \"udp://127.0.0.1:{tcp}\"\n\
         [[telemetry.syslog]]\naddress = \"unix:///nonexistent/log\"\n"
    ));
    assert!(took < FLUSH + SLACK, "{took:?}");
}

#[test]
fn what_a_dead_sink_missed_it_gets_from_the_next_runner_beside_a_living_one() {
    let port = closed_port();
    let host = Host::new();
    host.task("1-task", "");
    let events = host.path("events.jsonl").display().to_string();
    let sinks = |port: u16| {
        format!(
            "[telemetry]\nflush_on_exit = \"2s\"\n{}[[telemetry.jsonl]]\npath = \"{events}\"\n",
            influx(port)
        )
    };
    host.set(&sinks(port));
    host.run_once().assert_code(0);
    assert_eq!(
        host.read("events.jsonl").matches("task_finished").count(),
        1
    );
    // The database comes up where it was expected.
    let listener = TcpListener::bind(("127.0.0.1", port));
    let Ok(listener) = listener else {
        eprintln!("left out: somebody else took the port");
        return;
    };
    let (bodies, requests) = (
        Arc::new(Mutex::new(String::new())),
        Arc::new(AtomicUsize::new(0)),
    );
    let (kept, counted) = (Arc::clone(&bodies), Arc::clone(&requests));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            serve(
                stream.unwrap(),
                Answer::Status("204 No Content"),
                &counted,
                &kept,
            );
        }
    });
    host.run_once().assert_code(0);
    until("both attempts in the database", || {
        bodies.lock().unwrap().matches("task_finished,").count() == 2
    });
    assert_eq!(
        host.read("events.jsonl").matches("task_finished").count(),
        2
    );
}

#[test]
fn a_stop_at_once_does_not_wait_for_a_sink_longer_than_configured() {
    let database = Database::start(Answer::Never);
    let host = Host::new();
    host.task(
        "1-task",
        "trap '' TERM; : >\"$HERE/started\"; while :; do sleep 1000; done",
    );
    host.set(&format!(
        "[telemetry]\nflush_on_exit = \"2s\"\n{}",
        influx(database.port)
    ));
    let mut running = host.start(&["run"]);
    running.until_file("started");
    let asked = Instant::now();
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.until_said("asked to stop");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait().assert_code(0);
    assert!(asked.elapsed() < FLUSH + SLACK);
}
