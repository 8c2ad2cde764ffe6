//! How much longer a run takes when the sinks of its events are dead, slow or lying.
//!
//! The same `runner` makes the same runs without sinks and with sinks of each kind, in turns, so
//! that whatever else the machine does falls on all of them alike. Printed is the median
//! of the ratios to the run without sinks of the same round, for tasks of 20 ms and, as the worst case there is, for tasks
//! that do nothing. `cargo bench -p farm-tests --bench sinks` builds `runner` by itself;
//! `-- --rounds 30` for a finer measure.

#![expect(clippy::print_stdout, reason = "prints its measurements")]
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use farm_events::{Event, Record};
use farm_tests::place::Place;
use farm_tests::process::Process;
use farm_tests::programs;
use farm_tests::unique::Port;

/// Promised: sinks change the time of a run of real tasks by at most this much.
const PROMISE: f64 = 1.01;

/// Tasks in a run.
const TASKS: usize = 10;

/// What stands at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sink {
    None,
    /// Nobody listens.
    Dead,
    /// Takes the request and never answers.
    Slow,
    /// Answers every request with 500.
    Failing,
    /// Answers that it stored what it threw away.
    Lying,
}

const SINKS: [Sink; 5] = [
    Sink::None,
    Sink::Dead,
    Sink::Slow,
    Sink::Failing,
    Sink::Lying,
];

fn main() -> ExitCode {
    let rounds = rounds(std::env::args());
    programs::build_for_benchmark("runner");
    println!(
        "runs of {TASKS} tasks, {rounds} rounds; median of the ratios to the run without sinks\n"
    );
    let mut kept = true;
    for (name, task, runs) in [
        ("tasks of 20 ms", "#!/bin/sh\nexec sleep 0.02\n", 10),
        ("empty tasks", "#!/bin/sh\n", 20),
    ] {
        let times = measure(task, runs, rounds);
        for (sink, own) in SINKS.iter().zip(&times) {
            let ratio = median(own.iter().zip(&times[0]).map(|(own, none)| own / none));
            let per_run = 1000.0 * median(own.iter().copied()) / f64::from(runs);
            println!("{name:>15}  {sink:<8?}  {per_run:>7.1} ms a run  ratio {ratio:.4}");
            kept &= name == "empty tasks" || ratio <= PROMISE;
        }
    }
    println!(
        "\npromise (at most {PROMISE} with tasks of 20 ms): {}",
        if kept { "kept" } else { "BROKEN" }
    );
    if kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// `--rounds N`; cargo adds arguments of its own, which mean nothing here.
fn rounds(arguments: impl Iterator<Item = String>) -> usize {
    let mut arguments = arguments
        .skip_while(|argument| argument != "--rounds")
        .skip(1);
    arguments
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(9)
}

/// The time of `runs` runs in seconds, for each sink in each round.
fn measure(task: &str, runs: u32, rounds: usize) -> [Vec<f64>; SINKS.len()] {
    let dead = Port::reserve();
    let ports = SINKS.map(|sink| sink.open(&dead));
    let mut times = SINKS.map(|_| Vec::new());
    for round in 0..rounds {
        for place in 0..SINKS.len() {
            // Nobody is always first.
            let index = (round + place) % SINKS.len();
            times[index].push(run(task, runs, ports[index]));
        }
    }
    times
}

/// Where a database and a syslog receiver are.
#[derive(Clone, Copy)]
struct Ports {
    database: u16,
    syslog: u16,
}

impl Sink {
    /// Starts what stands at the other end.
    fn open(self, dead: &Port) -> Option<Ports> {
        let (database, syslog) = match self {
            Self::None => return None,
            Self::Dead => (dead.number(), dead.number()),
            Self::Slow => (serve(std::mem::forget), serve(std::mem::forget)),
            Self::Failing => (
                serve(|client| answer(client, "500 Internal Server Error")),
                serve(drop),
            ),
            Self::Lying => (
                serve(|client| answer(client, "204 No Content")),
                serve(swallow),
            ),
        };
        Some(Ports { database, syslog })
    }
}

/// What the runs took, by the account `runner` keeps of them: its start and the time it spends on
/// sinks at its end, which is a setting, are no part of a run.
fn run(task: &str, runs: u32, ports: Option<Ports>) -> f64 {
    let place = Place::new("farmhand-bench-");
    for number in 0..TASKS {
        place.write_executable(&format!("tasks.d/{number}-task"), task);
    }
    let sinks = ports.map_or(String::new(), |ports| {
        format!(
            "[[telemetry.influx]]\nurl = \"http://127.0.0.1:{}\"\nbucket = \"b\"\n\
             [[telemetry.syslog]]\naddress = \"tcp://127.0.0.1:{}\"\n",
            ports.database, ports.syslog
        )
    });
    let table = place.runner_table();
    let configuration = format!("{table}[telemetry]\nflush_on_exit = \"0s\"\n{sinks}");
    place.write("etc/runner.toml", &configuration);
    let path = place.path("etc/runner.toml");
    let runs = runs.to_string();
    let arguments = [
        "run",
        "--runs",
        &runs,
        "--config",
        path.to_str().expect("ASCII"),
    ];
    let log = place.path("runner.log");
    let mut process = Process::start(
        &programs::ours("runner"),
        arguments,
        place.directory(),
        &log,
    );
    let status = process.wait();
    assert!(status.success(), "{status}: {}", process.last_lines());
    let durations: Vec<u64> = place
        .read("state/history.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect("one record a line"))
        .filter_map(|record: Record| match record.event {
            Event::RunFinished(run) => Some(run.duration_ms),
            _ => None,
        })
        .collect();
    assert_eq!(durations.len().to_string(), runs, "every run is on record");
    Duration::from_millis(durations.iter().sum()).as_secs_f64()
}

/// Serves every connection on a port of its own until the benchmark ends.
fn serve(each: fn(TcpStream)) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has ports");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || each(connection));
        }
    });
    port
}

/// Reads what comes and keeps nothing.
fn swallow(mut client: TcpStream) {
    // However it ends, there is nothing left to read.
    std::io::copy(&mut client, &mut std::io::sink()).ok();
}

/// Reads HTTP requests and answers each the same.
fn answer(client: TcpStream, status: &str) {
    let mut client = BufReader::new(client);
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
    while read_request(&mut client).is_ok() && client.get_mut().write_all(head.as_bytes()).is_ok() {
    }
}

/// Reads one request, whose body is of known length or in chunks.
fn read_request(client: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    let (mut length, mut chunked) = (0, false);
    loop {
        let line = read_line(client)?.to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(number) = line.strip_prefix("content-length:") {
            length = number.trim().parse().map_err(std::io::Error::other)?;
        }
        chunked |= line.starts_with("transfer-encoding:") && line.ends_with("chunked");
    }
    if !chunked {
        return client.read_exact(&mut vec![0; length]);
    }
    loop {
        let size = read_line(client)?;
        let size = usize::from_str_radix(&size, 16).map_err(std::io::Error::other)?;
        client.read_exact(&mut vec![0; size + 2])?;
        if size == 0 {
            return Ok(());
        }
    }
}

/// One line without its end; the end of the connection is an error.
fn read_line(client: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut line = String::new();
    if client.read_line(&mut line)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
