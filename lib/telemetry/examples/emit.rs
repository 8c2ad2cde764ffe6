//! Sends attempts of a made-up task through the sinks of a configuration file: to try a
//! configuration without a host.
//!
//! ```sh
//! cargo run -p farm-telemetry --example emit -- telemetry.toml /tmp/spool 100
//! ```

use std::path::Path;
use std::process::ExitCode;

use farm_events::{Outcome, Record, TaskFinished, TaskStarted};
use farm_telemetry::{Config, Telemetry, log};
use jiff::Timestamp;

#[expect(
    clippy::disallowed_methods,
    reason = "this is a main: the clock starts here"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

fn main() -> ExitCode {
    log::init(log::Format::Text, 1);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, spool, count] = arguments.as_slice() else {
        tracing::error!("expected three arguments: CONFIG SPOOL_DIR COUNT");
        return ExitCode::from(64);
    };
    match emit(Path::new(config), Path::new(spool), count) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(78)
        }
    }
}

fn emit(config: &Path, spool: &Path, count: &str) -> Result<(), Box<dyn std::error::Error>> {
    let config: Config = toml::from_str(&fs_err::read_to_string(config)?)?;
    let faults = config.validate();
    for fault in &faults {
        tracing::error!("{fault}");
    }
    if !faults.is_empty() {
        return Err("the configuration has faults".into());
    }
    let telemetry = Telemetry::start(&config, spool)?;
    for number in 1..=count.parse()? {
        for record in attempt(&config, number) {
            telemetry.record(&record);
        }
    }
    tracing::info!(target: "runner", stats = ?telemetry.stats(), "recorded");
    telemetry.finish();
    Ok(())
}

/// A start and a failed end.
fn attempt(config: &Config, number: u32) -> [Record; 2] {
    let (task, run_id) = ("10-update_repo".to_owned(), format!("emit-{number}"));
    let started = TaskStarted {
        task: task.clone(),
        run_id: run_id.clone(),
        attempt: 2,
        max_attempts: 5,
    };
    let finished = TaskFinished {
        task,
        outcome: Outcome::Retry,
        run_id,
        attempt: 2,
        max_attempts: 5,
        exit_code: Some(1),
        signal: None,
        timed_out: false,
        stopped: false,
        duration_ms: 1500,
        delay_ms: Some(12_300),
        output_bytes: 0,
        leftovers: 0,
        error: None,
    };
    [started.into(), finished.into()].map(|event| Record {
        time: now(),
        identity: config.identity(),
        event,
    })
}
