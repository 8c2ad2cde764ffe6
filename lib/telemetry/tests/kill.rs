//! A process that records is killed again and again: every record whose `record` had returned
//! reaches the sink, in order, and only what was under way at a kill may come twice.
//!
//! The process is this test itself, started again with [`CHILD`] in its environment.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use farm_events::{HookFailed, Identity, Record};
use farm_telemetry::{Config, JsonlConfig, Telemetry};

/// First number to record, a space, and the directory.
const CHILD: &str = "FARM_TELEMETRY_KILL_CHILD";
const ROUNDS: u64 = 12;
/// Numbers of one round, most of which the child never comes to.
const SPAN: u64 = 1_000_000;

fn telemetry(dir: &Path) -> Telemetry {
    let config = Config {
        jsonl: vec![JsonlConfig {
            path: dir.join("out.jsonl"),
        }],
        ..Config::default()
    };
    Telemetry::start(&config, &dir.join("spool")).expect("telemetry starts")
}

fn record(number: u64) -> Record {
    Record {
        time: "2026-11-20T03:00:00Z".parse().expect("a timestamp"),
        identity: Identity::default(),
        event: HookFailed {
            task: "10-a".into(),
            error: number.to_string(),
            run_id: "r".into(),
        }
        .into(),
    }
}

/// Records number after number, and says so after each.
fn record_for_ever(first: u64, dir: &Path) {
    let telemetry = telemetry(dir);
    let mut out = std::io::stdout();
    for number in first..first + SPAN {
        telemetry.record(&record(number));
        writeln!(out, "recorded {number}").expect("the parent reads");
    }
}

/// Lets a child record, kills it after `most` records, and returns the numbers it confirmed.
fn kill_a_child(first: u64, most: u64, dir: &Path) -> std::ops::Range<u64> {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "no_record_is_lost_by_kill_9", "--nocapture"])
        .env(CHILD, format!("{first} {}", dir.display()))
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut end = first;
    for line in lines.by_ref().map_while(Result::ok) {
        // The first line shares its line with what the test harness says.
        if let Some((_, number)) = line.split_once("recorded ") {
            assert_eq!(number.parse(), Ok(end), "the child counts upwards");
            end += 1;
        }
        if end - first >= most {
            break;
        }
    }
    child.kill().expect("SIGKILL");
    child.wait().expect("the child ends");
    // What it had said before it died counts, too. The last line may be cut short.
    for line in lines.map_while(Result::ok) {
        if line == format!("recorded {end}") {
            end += 1;
        }
    }
    first..end
}

#[test]
fn no_record_is_lost_by_kill_9() {
    if let Some(child) = std::env::var_os(CHILD) {
        let child = child.into_string().expect("text");
        let (first, dir) = child.split_once(' ').expect("two words");
        return record_for_ever(first.parse().expect("a number"), Path::new(dir));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut recorded = Vec::new();
    for round in 0..ROUNDS {
        // Numbers that have nothing to do with the size of batches or segments.
        let most = 1 + (round * 7919) % 6151;
        recorded.extend(kill_a_child(round * SPAN, most, dir.path()));
    }
    telemetry(dir.path()).finish();

    let delivered = numbers(&dir.path().join("out.jsonl"));
    let ever: HashSet<_> = delivered.iter().collect();
    let missing: Vec<_> = recorded
        .iter()
        .filter(|number| !ever.contains(number))
        .collect();
    assert_eq!(missing, Vec::<&u64>::new(), "recorded, but not delivered");

    let mut seen = HashSet::new();
    let first_times: Vec<u64> = delivered
        .iter()
        .copied()
        .filter(|number| seen.insert(*number))
        .collect();
    assert!(first_times.is_sorted(), "in order");
    let steps_back = delivered
        .windows(2)
        .filter(|pair| pair[0] >= pair[1])
        .count() as u64;
    assert!(
        steps_back <= ROUNDS,
        "{steps_back} repetitions for {ROUNDS} kills"
    );
}

/// The numbers of the good lines; a kill in the middle of a write leaves half a line.
fn numbers(path: &Path) -> Vec<u64> {
    let text = fs_err::read_to_string(path).expect("lines");
    let mut halves = 0;
    let numbers = text
        .lines()
        .filter_map(|line| {
            let Ok(record) = serde_json::from_str::<Record>(line) else {
                halves += 1;
                return None;
            };
            match record.event {
                farm_events::Event::HookFailed(hook) => hook.error.parse().ok(),
                other => panic!("not recorded by this test: {other:?}"),
            }
        })
        .collect();
    assert!(
        halves <= ROUNDS,
        "{halves} damaged lines for {ROUNDS} kills"
    );
    numbers
}
