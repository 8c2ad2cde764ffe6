//! The verb `runner reboot-decision`: where the facts come from, and how the answer is said.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::decision::{Facts, JobResult, Policy, RebootDecision, decide};
use super::lists::{Fault, Lists};
use super::{Format, exit};
use crate::state::{State, StateError};

/// Says whether this host must reboot: exit code 0 to go on, 2 to halt.
///
/// Without `--host`, `--job` and `--last-result` it weighs the current run. With any of them it
/// weighs what they say and nothing else: no `--job` is a run that took no job.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DecisionArgs {
    /// Weigh this host instead of the one it runs on.
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// Weigh a run that took this job.
    #[arg(long, value_name = "NAME")]
    pub job: Option<String>,
    /// Weigh a run whose job ended like this [default: success].
    #[arg(long, value_name = "RESULT", value_enum)]
    pub last_result: Option<JobResult>,
    /// Directory of `hosts.toml` and `jobs.toml` instead of `reboot.blacklists`.
    #[arg(long, value_name = "DIR")]
    pub blacklists: Option<PathBuf>,
    /// How to print the decision.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

impl DecisionArgs {
    /// The facts that the flags give, unless they give none.
    fn facts(&self, host: &str) -> Option<Facts> {
        if self.host.is_none() && self.job.is_none() && self.last_result.is_none() {
            return None;
        }
        Some(Facts {
            host: self.host.clone().unwrap_or_else(|| host.to_owned()),
            job: self.job.clone(),
            last_result: self.last_result.map(|result| result.as_str().to_owned()),
            ..Facts::default()
        })
    }
}

/// What a verb is told by its caller.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The table `[reboot]`.
    pub policy: &'a Policy,
    /// Directory of `state.json`.
    pub state_dir: &'a Path,
    /// Name of this host.
    pub host: &'a str,
    /// `$RUNNER_OUTPUT`, if a run asks.
    pub report: Option<&'a Path>,
    /// The time.
    pub now: Timestamp,
}

/// Carries out `runner reboot-decision` and returns its exit code: 0 go on, 2 halt, 1 if the facts
/// cannot be read or the answer cannot be said.
pub fn run_decision(
    args: &DecisionArgs,
    surroundings: &Surroundings<'_>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> u8 {
    match decide_and_say(args, surroundings, out, err) {
        Ok(true) => exit::HALT,
        Ok(false) => exit::DONE,
        Err(error) => {
            // Nobody is left to tell if standard error is closed.
            drop(writeln!(err, "error: {}", chain(&error)));
            exit::FAILED
        }
    }
}

fn decide_and_say(
    args: &DecisionArgs,
    surroundings: &Surroundings<'_>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Result<bool, StateError> {
    let facts = match args.facts(surroundings.host) {
        Some(facts) => facts,
        None => recorded_facts(surroundings, err)?,
    };
    let policy = surroundings.policy;
    let lists = Lists::load(args.blacklists.as_deref().unwrap_or(&policy.blacklists));
    let decision = decide(
        &facts,
        lists.as_ref().map_err(Vec::as_slice),
        policy,
        surroundings.now,
    );
    let faults = decision.cause().map_or(&[][..], |cause| &cause.faults);
    for fault in faults {
        writeln!(err, "{fault}")?;
    }
    match args.format {
        Format::Text => writeln!(out, "{}", sentence(&decision, policy))?,
        Format::Json => {
            serde_json::to_writer(&mut *out, &Answer::new(&decision, &facts))
                .map_err(io::Error::from)?;
            writeln!(out)?;
        }
    }
    if let Some(report) = surroundings.report {
        append_report(report, &decision, &facts)?;
    }
    Ok(decision.is_reboot())
}

/// The facts of the current run, from `state.json`.
fn recorded_facts(
    surroundings: &Surroundings<'_>,
    err: &mut impl Write,
) -> Result<Facts, StateError> {
    let loaded = State::load(surroundings.state_dir)?;
    if let Some((path, why)) = loaded.damaged {
        writeln!(
            err,
            "`{}` is damaged and counts as empty: {why}",
            path.display()
        )?;
    }
    let state = loaded.state;
    // While a run is in progress, the job of an earlier one is not its job.
    let run = state.attempt.map(|attempt| attempt.run_id);
    let job = state
        .job
        .filter(|job| run.as_ref().is_none_or(|run| *run == job.run_id));
    let (job, last_result) = job.map(|job| (job.name, job.result)).unzip();
    Ok(Facts {
        host: surroundings.host.to_owned(),
        job,
        last_result,
        sweep: state.sweep,
        // `runs_since_boot` counts finished runs; the run that asks is about to be one.
        runs_since_boot: state
            .runs_since_boot
            .saturating_add(u64::from(run.is_some())),
        reboots: state.reboots,
    })
}

/// The answer as one sentence.
fn sentence(decision: &RebootDecision, policy: &Policy) -> String {
    match decision {
        RebootDecision::GoOn => "go on: nothing asks for a reboot".into(),
        RebootDecision::Reboot(cause) => {
            format!("reboot ({}): {}", cause.reason, cause.explanation)
        }
        RebootDecision::HeldBack(cause) => format!(
            "go on (budget_spent): `reboot.budget` allows {} reboots within an hour, and this host had them; held back ({}): {}",
            policy.budget, cause.reason, cause.explanation
        ),
    }
}

/// The answer as JSON.
#[derive(Serialize)]
struct Answer<'a> {
    reboot: bool,
    reason: Option<&'a str>,
    pattern: Option<&'a str>,
    held_back: Option<&'a str>,
    host: &'a str,
    job: Option<&'a str>,
    faults: Vec<String>,
}

impl<'a> Answer<'a> {
    fn new(decision: &'a RebootDecision, facts: &'a Facts) -> Self {
        let cause = decision.cause();
        let held_back = match decision {
            RebootDecision::HeldBack(cause) => Some(cause.reason.as_str()),
            RebootDecision::GoOn | RebootDecision::Reboot(_) => None,
        };
        Self {
            reboot: decision.is_reboot(),
            reason: decision.reason(),
            pattern: cause.and_then(|cause| cause.pattern.as_deref()),
            held_back,
            host: &facts.host,
            job: facts.job.as_deref(),
            faults: cause
                .map_or(&[][..], |cause| &cause.faults)
                .iter()
                .map(Fault::to_string)
                .collect(),
        }
    }
}

/// Appends the lines that the run reads. What has no value has no line.
fn append_report(report: &Path, decision: &RebootDecision, facts: &Facts) -> io::Result<()> {
    let decided = if decision.is_reboot() {
        "reboot"
    } else {
        "go_on"
    };
    let lines = [
        ("reboot.decision", Some(decided)),
        ("reboot.reason", decision.reason()),
        (
            "reboot.pattern",
            decision.cause().and_then(|cause| cause.pattern.as_deref()),
        ),
        ("reboot.job", facts.job.as_deref()),
    ];
    let mut text = String::new();
    for (key, value) in lines {
        if let Some(value) = value {
            text.push_str(key);
            text.push('=');
            text.push_str(&value.replace(['\n', '\r', '\0'], " "));
            text.push('\n');
        }
    }
    fs_err::OpenOptions::new()
        .append(true)
        .create(true)
        .open(report)?
        .write_all(text.as_bytes())
}

/// The error and what caused it, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
