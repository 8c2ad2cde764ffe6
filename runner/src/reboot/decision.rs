//! The decision itself: a pure function of facts, lists, policy and time.

use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::lists::{Fault, Lists};

/// The table `[reboot]` of `runner.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Directory of `hosts.toml` and `jobs.toml`.
    pub blacklists: PathBuf,
    /// Reboot when this many runs, the one in progress included, were made since the host booted.
    /// Without it there is no limit.
    pub max_runs: Option<NonZeroU64>,
    /// How many reboots an hour may have; what goes beyond is held back. 0 holds back every one.
    pub budget: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            blacklists: PathBuf::from("/etc/farmhand/blacklists"),
            max_runs: None,
            // A host that reboots after every job of a quarter of an hour stays within it, a host that
            // reboots as fast as it can (about every two minutes) reaches it within ten minutes.
            budget: 4,
        }
    }
}

/// What is weighed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Name of the host.
    pub host: String,
    /// Name of the job that this run took.
    pub job: Option<String>,
    /// How that job ended, in the CI system's words.
    pub last_result: Option<String>,
    /// What the last sweep found; `None` if nothing sweeps this host.
    pub sweep: Option<String>,
    /// Runs since the host booted, the one in progress included.
    pub runs_since_boot: u64,
    /// When the host was halted before; those of the last hour count.
    pub reboots: Vec<Timestamp>,
}

/// How a job ended, in the words a task may report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum JobResult {
    /// It did what it should.
    Success,
    /// It did what it should, and complained.
    Warnings,
    /// There was nothing to do.
    Skipped,
    /// It did not do what it should.
    Failure,
    /// It could not be carried out.
    Exception,
    /// It is to be made again.
    Retry,
    /// A person ended it.
    Cancelled,
    /// The host ended it.
    Interrupted,
}

impl JobResult {
    /// The result as it is reported.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Warnings => "warnings",
            Self::Skipped => "skipped",
            Self::Failure => "failure",
            Self::Exception => "exception",
            Self::Retry => "retry",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }

    /// Whether the host may be in a state that the next job should not meet. A cancelled or
    /// interrupted job was torn down in mid-work, and a retry says that something was wrong with
    /// where it ran: only an end that the job itself chose and called good is not a failure.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        match self {
            Self::Success | Self::Warnings | Self::Skipped => false,
            Self::Failure | Self::Exception | Self::Retry | Self::Cancelled | Self::Interrupted => {
                true
            }
        }
    }
}

impl fmt::Display for JobResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a host reboots, in order of precedence: the first that applies is the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RebootReason {
    /// The lists cannot be read, are invalid, or cannot be weighed in bounded time.
    ListInvalid,
    /// A pattern of `hosts.toml` matches the host.
    HostListed,
    /// A pattern of `jobs.toml` matches the job.
    JobListed,
    /// The job ended otherwise than with success, warnings or skipped.
    JobFailed,
    /// The run took no job.
    NoJobFound,
    /// The sweep left something, or found something missing.
    NotClean,
    /// The host made its `max_runs` runs.
    RunLimit,
}

impl RebootReason {
    /// Every reason, in order of precedence.
    pub const ALL: [Self; 7] = [
        Self::ListInvalid,
        Self::HostListed,
        Self::JobListed,
        Self::JobFailed,
        Self::NoJobFound,
        Self::NotClean,
        Self::RunLimit,
    ];

    /// The reason as it is written in events and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ListInvalid => "list_invalid",
            Self::HostListed => "host_listed",
            Self::JobListed => "job_listed",
            Self::JobFailed => "job_failed",
            Self::NoJobFound => "no_job_found",
            Self::NotClean => "not_clean",
            Self::RunLimit => "run_limit",
        }
    }
}

impl fmt::Display for RebootReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The reason to reboot with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Why.
    pub reason: RebootReason,
    /// The pattern that matched, as it is written in its list.
    pub pattern: Option<String>,
    /// For a person: what was found.
    pub explanation: String,
    /// What is wrong with the lists.
    pub faults: Vec<Fault>,
}

impl Cause {
    fn new(reason: RebootReason, explanation: impl Into<String>) -> Self {
        Self {
            reason,
            pattern: None,
            explanation: explanation.into(),
            faults: Vec::new(),
        }
    }

    fn invalid(faults: Vec<Fault>) -> Self {
        Self {
            faults,
            ..Self::new(
                RebootReason::ListInvalid,
                "the lists that say when to reboot cannot be used",
            )
        }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RebootDecision {
    /// Take the next job.
    GoOn,
    /// Halt the host.
    Reboot(Cause),
    /// There is a reason, but the host rebooted too often within the hour: take the next job.
    HeldBack(Cause),
}

impl RebootDecision {
    /// Why, in the word of events and JSON: a [`RebootReason`], `budget_spent`, or none.
    #[must_use]
    pub const fn reason(&self) -> Option<&'static str> {
        match self {
            Self::GoOn => None,
            Self::Reboot(cause) => Some(cause.reason.as_str()),
            Self::HeldBack(_) => Some("budget_spent"),
        }
    }

    /// What was found, whether or not it was held back.
    #[must_use]
    pub const fn cause(&self) -> Option<&Cause> {
        match self {
            Self::GoOn => None,
            Self::Reboot(cause) | Self::HeldBack(cause) => Some(cause),
        }
    }

    /// Whether the host is to be halted.
    #[must_use]
    pub const fn is_reboot(&self) -> bool {
        matches!(self, Self::Reboot(_))
    }
}

/// What to do after a run with these `facts`.
///
/// The first [`RebootReason`] that applies decides. A reason is held back when the host was halted
/// `policy.budget` times within the last hour: whatever the reason is, that many reboots did not
/// help, and a host that takes jobs serves better than one that boots for ever.
#[must_use]
pub fn decide(
    facts: &Facts,
    lists: Result<&Lists, &[Fault]>,
    policy: &Policy,
    now: Timestamp,
) -> RebootDecision {
    match cause(facts, lists, policy, now) {
        None => RebootDecision::GoOn,
        Some(cause) if budget_is_spent(facts, policy, now) => RebootDecision::HeldBack(cause),
        Some(cause) => RebootDecision::Reboot(cause),
    }
}

/// The first reason that applies.
fn cause(
    facts: &Facts,
    lists: Result<&Lists, &[Fault]>,
    policy: &Policy,
    now: Timestamp,
) -> Option<Cause> {
    match listed(facts, lists, now) {
        Ok(None) => {}
        Ok(Some(cause)) => return Some(cause),
        Err(faults) => return Some(Cause::invalid(faults)),
    }
    failed(facts)
        .or_else(|| no_job(facts))
        .or_else(|| not_clean(facts))
        .or_else(|| run_limit(facts, policy))
}

/// The host's entry, or else the job's. Both are weighed before either is believed, so that a
/// pattern that cannot be weighed is said even when the other list matches.
fn listed(
    facts: &Facts,
    lists: Result<&Lists, &[Fault]>,
    now: Timestamp,
) -> Result<Option<Cause>, Vec<Fault>> {
    let lists = lists.map_err(<[Fault]>::to_vec)?;
    let host = lists.hosts.first_match(&facts.host, now);
    let job = match &facts.job {
        Some(job) => lists.jobs.first_match(job, now),
        None => Ok(None),
    };
    let (host, job) = match (host, job) {
        (Ok(host), Ok(job)) => (host, job),
        (host, job) => {
            let faults = [host.err(), job.err()];
            return Err(faults.into_iter().flatten().map(Fault::from).collect());
        }
    };
    let listed = |reason, what: &str, name: &str, entry: &super::RebootPattern| Cause {
        pattern: Some(entry.pattern().to_owned()),
        ..Cause::new(
            reason,
            format!(
                "{what} `{name}` is listed by `{}` since {}: {}",
                entry.pattern(),
                entry.added,
                entry.reason
            ),
        )
    };
    let host = host.map(|entry| listed(RebootReason::HostListed, "host", &facts.host, entry));
    let job = || {
        let name = facts.job.as_deref().unwrap_or_default();
        job.map(|entry| listed(RebootReason::JobListed, "job", name, entry))
    };
    Ok(host.or_else(job))
}

fn failed(facts: &Facts) -> Option<Cause> {
    let result = facts.last_result.as_deref()?;
    // A word that nobody defined is no success.
    let is_failure =
        <JobResult as clap::ValueEnum>::from_str(result, true).map_or(true, JobResult::is_failure);
    let name = facts.job.as_deref().unwrap_or("without a name");
    is_failure.then(|| {
        Cause::new(
            RebootReason::JobFailed,
            format!("the last job, `{name}`, ended with `{result}`"),
        )
    })
}

fn no_job(facts: &Facts) -> Option<Cause> {
    facts
        .job
        .is_none()
        .then(|| Cause::new(RebootReason::NoJobFound, "this run took no job"))
}

fn not_clean(facts: &Facts) -> Option<Cause> {
    let verdict = facts.sweep.as_deref()?;
    // `unproven` is clean as far as anybody could see. It is what a kernel without the means of a
    // proof always answers: to reboot for it would be to reboot after every job.
    let is_clean = matches!(verdict, "clean" | "unproven");
    (!is_clean).then(|| {
        Cause::new(
            RebootReason::NotClean,
            format!("the sweep ended with `{verdict}`"),
        )
    })
}

fn run_limit(facts: &Facts, policy: &Policy) -> Option<Cause> {
    let limit = policy.max_runs?.get();
    (facts.runs_since_boot >= limit).then(|| {
        Cause::new(
            RebootReason::RunLimit,
            format!(
                "{} runs since the host booted, `reboot.max_runs` is {limit}",
                facts.runs_since_boot
            ),
        )
    })
}

fn budget_is_spent(facts: &Facts, policy: &Policy, now: Timestamp) -> bool {
    let recent = facts
        .reboots
        .iter()
        .filter(|at| is_within_an_hour(**at, now))
        .count();
    recent >= usize::try_from(policy.budget).unwrap_or(usize::MAX)
}

/// A reboot in the next hour is a clock that stepped back a little: it counts. One further in the
/// future was written by a clock that was wrong: it would hold back every reboot until then.
fn is_within_an_hour(at: Timestamp, now: Timestamp) -> bool {
    now.duration_since(at).as_secs().abs() < 3600
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::RebootList;
    use super::*;

    fn now() -> Timestamp {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    fn list(patterns: &[&str]) -> RebootList {
        let entries = patterns.iter().map(|pattern| {
            format!("[[pattern]]\npattern = '{pattern}'\nreason = \"r\"\nadded = 2026-01-01\n")
        });
        RebootList::parse(&entries.collect::<String>(), Path::new("list.toml")).unwrap()
    }

    fn lists(hosts: &[&str], jobs: &[&str]) -> Lists {
        Lists {
            hosts: list(hosts),
            jobs: list(jobs),
        }
    }

    /// A run that asks for nothing.
    fn good() -> Facts {
        Facts {
            host: "tst-linux64-spot-417".into(),
            job: Some("Linux64 mochitest-1".into()),
            last_result: Some("success".into()),
            sweep: Some("clean".into()),
            runs_since_boot: 1,
            reboots: Vec::new(),
        }
    }

    fn weigh(facts: &Facts, lists: &Lists) -> RebootDecision {
        decide(facts, Ok(lists), &Policy::default(), now())
    }

    fn reason(facts: &Facts, lists: &Lists) -> Option<&'static str> {
        weigh(facts, lists).reason()
    }

    #[test]
    fn a_good_run_on_empty_lists_goes_on() {
        assert_eq!(weigh(&good(), &Lists::default()), RebootDecision::GoOn);
    }

    #[test]
    fn a_listed_host_reboots_and_names_the_pattern() {
        let decision = weigh(&good(), &lists(&["windows", "LINUX64"], &[]));
        assert_eq!(decision.reason(), Some("host_listed"));
        assert_eq!(
            decision.cause().unwrap().pattern.as_deref(),
            Some("LINUX64")
        );
    }

    #[test]
    fn a_listed_job_reboots_and_names_the_pattern() {
        let decision = weigh(&good(), &lists(&[], &["talos", ".*MochiTest.*"]));
        assert_eq!(decision.reason(), Some("job_listed"));
        assert_eq!(
            decision.cause().unwrap().pattern.as_deref(),
            Some(".*MochiTest.*")
        );
    }

    #[test]
    fn a_job_pattern_does_not_look_at_the_host_nor_the_reverse() {
        let facts = good();
        assert_eq!(
            weigh(&facts, &lists(&["mochitest"], &["spot"])),
            RebootDecision::GoOn
        );
    }

    #[test]
    fn only_success_warnings_and_skipped_are_no_failure() {
        let table = [
            ("success", None),
            ("warnings", None),
            ("skipped", None),
            ("failure", Some("job_failed")),
            ("exception", Some("job_failed")),
            ("retry", Some("job_failed")),
            ("cancelled", Some("job_failed")),
            ("interrupted", Some("job_failed")),
            ("SUCCESS", None),
            ("a word nobody defined", Some("job_failed")),
            ("", Some("job_failed")),
        ];
        for (result, expected) in table {
            let facts = Facts {
                last_result: Some(result.into()),
                ..good()
            };
            assert_eq!(reason(&facts, &Lists::default()), expected, "{result}");
        }
    }

    #[test]
    fn a_run_without_a_job_reboots() {
        let facts = Facts {
            job: None,
            last_result: None,
            ..good()
        };
        assert_eq!(reason(&facts, &Lists::default()), Some("no_job_found"));
    }

    #[test]
    fn a_sweep_that_did_not_end_clean_reboots() {
        let table = [
            (None, None),
            (Some("clean"), None),
            (Some("unproven"), None),
            (Some("dirty"), Some("not_clean")),
            (Some("baseline_damaged"), Some("not_clean")),
            (Some("a word nobody defined"), Some("not_clean")),
        ];
        for (sweep, expected) in table {
            let facts = Facts {
                sweep: sweep.map(Into::into),
                ..good()
            };
            assert_eq!(reason(&facts, &Lists::default()), expected, "{sweep:?}");
        }
    }

    #[test]
    fn the_run_limit_is_the_run_that_reboots() {
        let policy = Policy {
            max_runs: NonZeroU64::new(30),
            ..Policy::default()
        };
        for (runs_since_boot, expected) in
            [(29, None), (30, Some("run_limit")), (31, Some("run_limit"))]
        {
            let facts = Facts {
                runs_since_boot,
                ..good()
            };
            let decision = decide(&facts, Ok(&Lists::default()), &policy, now());
            assert_eq!(decision.reason(), expected, "{runs_since_boot}");
        }
    }

    #[test]
    fn without_a_run_limit_no_count_reboots() {
        let facts = Facts {
            runs_since_boot: u64::MAX,
            ..good()
        };
        assert_eq!(weigh(&facts, &Lists::default()), RebootDecision::GoOn);
    }

    #[test]
    fn invalid_lists_reboot_and_say_what_is_wrong() {
        let fault = Fault {
            file: "jobs.toml".into(),
            line: Some(3),
            message: "wrong".into(),
        };
        let decision = decide(
            &good(),
            Err(std::slice::from_ref(&fault)),
            &Policy::default(),
            now(),
        );
        assert_eq!(decision.reason(), Some("list_invalid"));
        assert_eq!(decision.cause().unwrap().faults, [fault]);
    }

    #[test]
    fn a_pattern_that_never_ends_is_an_invalid_list_even_when_the_host_is_listed() {
        let facts = Facts {
            job: Some("a".repeat(200)),
            ..good()
        };
        let decision = weigh(&facts, &lists(&["linux64"], &[r"^(?=(a|a)*$)(a|a)*b\1$"]));
        assert_eq!(decision.reason(), Some("list_invalid"));
        let fault = decision.cause().unwrap().faults[0].to_string();
        assert!(fault.starts_with("list.toml:1: "), "{fault}");
        assert!(
            fault.contains("goes back more than 2000000 times"),
            "{fault}"
        );
    }

    #[test]
    fn the_first_reason_in_order_decides() {
        // Each step takes away the reason that decided before.
        let mut facts = Facts {
            last_result: Some("failure".into()),
            sweep: Some("dirty".into()),
            runs_since_boot: 30,
            ..good()
        };
        let policy = Policy {
            max_runs: NonZeroU64::new(30),
            ..Policy::default()
        };
        let both = lists(&["linux64"], &["mochitest"]);
        let answer = |facts: &Facts, lists: Result<&Lists, &[Fault]>| {
            decide(facts, lists, &policy, now()).reason().unwrap()
        };
        assert_eq!(answer(&facts, Err(&[])), "list_invalid");
        assert_eq!(answer(&facts, Ok(&both)), "host_listed");
        assert_eq!(
            answer(&facts, Ok(&lists(&[], &["mochitest"]))),
            "job_listed"
        );
        assert_eq!(answer(&facts, Ok(&Lists::default())), "job_failed");
        facts.last_result = None;
        facts.job = None;
        assert_eq!(answer(&facts, Ok(&Lists::default())), "no_job_found");
        facts.job = good().job;
        assert_eq!(answer(&facts, Ok(&Lists::default())), "not_clean");
        facts.sweep = None;
        assert_eq!(answer(&facts, Ok(&Lists::default())), "run_limit");
    }

    #[test]
    fn the_order_of_the_reasons_is_the_order_of_the_enum() {
        assert!(RebootReason::ALL.is_sorted());
        let names: Vec<_> = RebootReason::ALL
            .iter()
            .map(|reason| serde_json::to_value(reason).unwrap())
            .collect();
        assert_eq!(names, RebootReason::ALL.map(RebootReason::as_str));
    }

    fn minutes_ago(minutes: i64) -> Timestamp {
        now() - jiff::SignedDuration::from_mins(minutes)
    }

    #[test]
    fn a_spent_budget_holds_a_reboot_back_and_names_it() {
        let facts = Facts {
            last_result: Some("failure".into()),
            ..good()
        };
        let reboots = [1, 2, 3].map(minutes_ago).to_vec();
        let three = Facts {
            reboots,
            ..facts.clone()
        };
        assert!(weigh(&three, &Lists::default()).is_reboot());
        let reboots = [1, 2, 3, 4].map(minutes_ago).to_vec();
        let four = Facts { reboots, ..facts };
        let decision = weigh(&four, &Lists::default());
        assert!(!decision.is_reboot());
        assert_eq!(decision.reason(), Some("budget_spent"));
        assert_eq!(decision.cause().unwrap().reason, RebootReason::JobFailed);
    }

    #[test]
    fn a_spent_budget_is_not_named_when_nothing_asks_for_a_reboot() {
        let facts = Facts {
            reboots: vec![minutes_ago(1); 9],
            ..good()
        };
        assert_eq!(weigh(&facts, &Lists::default()), RebootDecision::GoOn);
    }

    #[test]
    fn a_reboot_counts_against_the_budget_for_one_hour() {
        let policy = Policy {
            budget: 1,
            ..Policy::default()
        };
        let second = jiff::SignedDuration::from_secs(1);
        let table = [
            (minutes_ago(60), true),
            (minutes_ago(60) + second, false),
            (minutes_ago(-60) - second, false),
            (minutes_ago(-60), true),
        ];
        for (at, reboots) in table {
            let facts = Facts {
                job: None,
                reboots: vec![at],
                ..good()
            };
            let decision = decide(&facts, Ok(&Lists::default()), &policy, now());
            assert_eq!(decision.is_reboot(), reboots, "{at}");
        }
    }

    #[test]
    fn a_budget_of_zero_holds_every_reboot_back() {
        let policy = Policy {
            budget: 0,
            ..Policy::default()
        };
        let decision = decide(&good(), Err(&[]), &policy, now());
        assert_eq!(decision.reason(), Some("budget_spent"));
    }

    #[test]
    fn a_limit_of_zero_runs_is_refused_and_not_taken_for_none() {
        let error = toml::from_str::<Policy>("max_runs = 0")
            .unwrap_err()
            .to_string();
        assert!(error.contains("expected a nonzero u64"), "{error}");
    }

    #[test]
    fn an_empty_table_is_the_default_policy() {
        assert_eq!(toml::from_str::<Policy>("").unwrap(), Policy::default());
    }

    proptest! {
        #[test]
        fn a_reboot_never_exceeds_the_budget(
            ages in prop::collection::vec(0i64..7200, 0..12),
            budget in 0u32..6,
            result in prop::option::of("success|failure|retry|odd"),
            job in prop::option::of("[a-z]{1,9}"),
            sweep in prop::option::of("clean|dirty|unproven"),
        ) {
            let reboots: Vec<_> = ages
                .iter()
                .map(|age| now() - jiff::SignedDuration::from_secs(*age))
                .collect();
            let facts = Facts { job, last_result: result, sweep, reboots, ..good() };
            let policy = Policy { budget, ..Policy::default() };
            let decision = decide(&facts, Ok(&Lists::default()), &policy, now());
            let recent = ages.iter().filter(|age| **age < 3600).count();
            prop_assert!(!decision.is_reboot() || recent < budget as usize);
            // The budget changes whether a reason is followed, never which one it is.
            let free = Policy { budget: u32::MAX, ..policy };
            let unlimited = decide(&facts, Ok(&Lists::default()), &free, now());
            prop_assert_eq!(
                decision.cause().map(|cause| cause.reason),
                unlimited.cause().map(|cause| cause.reason)
            );
        }
    }
}
