//! What `Telemetry::record` costs the one who calls it, against the least a queue on disk can
//! cost: one `write(2)` of the same bytes, appended to a file of the same file system.
//!
//! `cargo bench -p farm-telemetry` prints each as a ratio against that write, in the same run.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use farm_events::{Identity, Outcome, Record, TaskFinished};
use farm_telemetry::{Config, InfluxConfig, JsonlConfig, Telemetry};
use tokio::time::Instant;

/// As many as 10,000 runs of five tasks give.
const RECORDS: u32 = 100_000;
/// Each is measured so often, in turns; the fastest counts: the others were disturbed.
const ROUNDS: u32 = 5;

fn record() -> Record {
    Record {
        time: "2026-11-20T03:00:00.123456789Z"
            .parse()
            .expect("a timestamp"),
        identity: Identity {
            host: "bld-linux64-spot-001".into(),
            pool: "bld-linux64".into(),
            image: "ami-0123456789abcdef0".into(),
            region: "us-east-1".into(),
            instance_id: "i-0123456789abcdef0".into(),
        },
        event: TaskFinished {
            task: "10-update_repo".into(),
            outcome: Outcome::Ok,
            run_id: "1795143600-1234".into(),
            attempt: 1,
            max_attempts: 5,
            exit_code: Some(0),
            signal: None,
            timed_out: false,
            stopped: false,
            duration_ms: 1500,
            delay_ms: None,
            output_bytes: 4096,
            leftovers: 0,
            error: None,
        }
        .into(),
    }
}

fn bare_writes(dir: &Path, bytes: &[u8]) -> Duration {
    let mut file = fs_err::OpenOptions::new()
        .append(true)
        .create(true)
        .open(dir.join("bare"))
        .expect("a file");
    let begun = Instant::now();
    for _ in 0..RECORDS {
        file.write_all(bytes).expect("a write");
    }
    begun.elapsed()
}

fn records(dir: &Path, config: &Config) -> Duration {
    let telemetry = Telemetry::start(config, &dir.join("spool")).expect("telemetry starts");
    let record = record();
    let begun = Instant::now();
    for _ in 0..RECORDS {
        telemetry.record(&record);
    }
    let took = begun.elapsed();
    telemetry.finish();
    took
}

/// A URL where nobody listens.
fn dead() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

fn main() {
    // The bytes of a line in a segment: checksum, space, JSON, line break.
    let mut bytes = b"00000000 ".to_vec();
    bytes.extend(serde_json::to_vec(&record()).expect("JSON"));
    bytes.push(b'\n');

    let mut best = [Duration::MAX; 4];
    for _ in 0..ROUNDS {
        let dir = tempfile::tempdir().expect("a directory");
        let influx = InfluxConfig {
            url: dead(),
            bucket: "b".into(),
            ..InfluxConfig::default()
        };
        let jsonl = JsonlConfig {
            path: dir.path().join("out.jsonl"),
        };
        let none = Config::default();
        let dead = Config {
            influx: vec![influx],
            ..Config::default()
        };
        let healthy = Config {
            jsonl: vec![jsonl],
            ..Config::default()
        };
        let took = [
            bare_writes(dir.path(), &bytes),
            records(&dir.path().join("none"), &none),
            records(&dir.path().join("dead"), &dead),
            records(&dir.path().join("healthy"), &healthy),
        ];
        for (best, took) in best.iter_mut().zip(took) {
            *best = (*best).min(took);
        }
    }

    let names = ["bare write(2)", "no sink", "dead sink", "JSON lines sink"];
    let mut out = std::io::stdout().lock();
    for (name, took) in names.into_iter().zip(best) {
        let each = took.as_secs_f64() * 1e6 / f64::from(RECORDS);
        let ratio = took.as_secs_f64() / best[0].as_secs_f64();
        writeln!(
            out,
            "{name:<16} {each:8.3} µs/record {ratio:6.2} × bare write"
        )
        .expect("standard output is open");
    }
}
