use proptest::prelude::*;

use super::*;
use crate::config::{PoolSettings, RuleSettings};
use crate::demand::Count;

const SETTINGS: &str = r#"
    [pools.linux]
    [pools.windows]
    [pools.mac]

    [sources.ci]
    kind = "buildbot"
    url = "http://ci"

    [sources.queue]
    kind = "http"
    url = "http://queue"
    pool = "mac"

    [sources.second]
    kind = "buildbot"
    url = "http://second"

    [[rules]]
    job = "linux"
    pool = "linux"
    [[rules]]
    job = "windows"
    pool = "windows"
    [[rules]]
    job = "mac"
    pool = "mac"
    source = "second"
"#;

fn noon() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    noon() - jiff::SignedDuration::from_secs(seconds)
}

fn name(text: &str) -> SourceName {
    SourceName::parse(text).unwrap()
}

fn pool(text: &str) -> PoolName {
    PoolName::parse(text).unwrap()
}

fn waiting(name: &str, age: i64) -> WaitingJob {
    WaitingJob {
        name: name.into(),
        since: ago(age),
        running: false,
    }
}

fn running(name: &str, age: i64) -> WaitingJob {
    WaitingJob {
        running: true,
        ..waiting(name, age)
    }
}

type Answer = Result<Observation, SourceError>;

fn jobs(jobs: Vec<WaitingJob>) -> Answer {
    jobs_at(noon(), jobs)
}

fn jobs_at(as_of: Timestamp, jobs: Vec<WaitingJob>) -> Answer {
    Ok(Observation::new(as_of, Work::Jobs(jobs)))
}

fn count(pending: u32, running: u32) -> Answer {
    let count = Count {
        pending,
        running,
        oldest_age: None,
    };
    let counts = [(pool("mac"), count)].into();
    Ok(Observation::new(noon(), Work::Counts(counts)))
}

fn down() -> Answer {
    Err(SourceError::Unavailable("connection refused".into()))
}

/// A farm with its memory, resolved again and again.
struct Farm {
    config: Config,
    rules: Rules,
    memory: Memory,
}

impl Farm {
    fn new() -> Self {
        let config: Config = toml::from_str(SETTINGS).unwrap();
        Self {
            rules: Rules::compile(&config.rules).unwrap(),
            config,
            memory: Memory::default(),
        }
    }

    /// Only the source `ci`.
    fn small() -> Self {
        let mut farm = Self::new();
        farm.config
            .sources
            .retain(|source, _| source.as_str() == "ci");
        farm
    }

    fn observe(&mut self, answers: Vec<(&str, Answer)>) -> BTreeMap<PoolName, PoolDemand> {
        self.observe_at(noon(), answers)
    }

    fn observe_at(
        &mut self,
        now: Timestamp,
        answers: Vec<(&str, Answer)>,
    ) -> BTreeMap<PoolName, PoolDemand> {
        let answers = answers.into_iter().map(|(source, it)| (name(source), it));
        let answers = answers.collect();
        let resolved = resolve(&answers, &self.memory, &self.rules, &self.config, now);
        self.memory = resolved.memory;
        resolved.demand
    }
}

fn held(demand: &BTreeMap<PoolName, PoolDemand>) -> Vec<&str> {
    let held = demand.iter().filter(|(_, demand)| !demand.holds.is_empty());
    held.map(|(pool, _)| pool.as_str()).collect()
}

fn reason<'a>(demand: &'a BTreeMap<PoolName, PoolDemand>, of: &str) -> &'a str {
    &demand[&pool(of)].holds[0].reason
}

#[test]
fn each_pool_gets_its_jobs_and_sources_add_up() {
    let mut farm = Farm::new();
    let demand = farm.observe(vec![
        (
            "ci",
            jobs(vec![
                waiting("linux a", 60),
                waiting("linux b", 120),
                running("windows", 5),
            ]),
        ),
        ("queue", count(4, 1)),
        (
            "second",
            jobs(vec![waiting("linux c", 30), waiting("mac", 40)]),
        ),
    ]);
    let linux = &demand[&pool("linux")];
    assert_eq!((linux.pending, linux.running), (3, 0));
    assert_eq!(linux.oldest_age, Some(Duration::from_secs(120)));
    assert_eq!(demand[&pool("windows")].running, 1);
    assert_eq!(
        (demand[&pool("mac")].pending, demand[&pool("mac")].running),
        (5, 1)
    );
    assert_eq!(held(&demand), Vec::<&str>::new());
}

#[test]
fn a_job_counts_from_min_age_to_max_age_both_included() {
    let day = 24 * 60 * 60;
    let table = [
        (0, "too young"),
        (9, "too young"),
        (10, "pending"),
        (11, "pending"),
        (day - 1, "pending"),
        (day, "pending"),
        (day + 1, "too old"),
    ];
    for (age, expected) in table {
        let demand = Farm::small().observe(vec![("ci", jobs(vec![waiting("linux", age)]))]);
        let linux = &demand[&pool("linux")];
        let counted = (linux.too_young, linux.pending, linux.too_old);
        let expected = match expected {
            "too young" => (1, 0, 0),
            "pending" => (0, 1, 0),
            _ => (0, 0, 1),
        };
        assert_eq!(counted, expected, "{age} s");
        assert_eq!(linux.oldest_age.is_some(), counted.1 == 1);
    }
}

#[test]
fn a_running_job_counts_at_any_age() {
    let old = 3 * 24 * 60 * 60;
    let answer = jobs(vec![running("linux", 1), running("linux", old)]);
    let demand = Farm::small().observe(vec![("ci", answer)]);
    let linux = &demand[&pool("linux")];
    assert_eq!((linux.running, linux.too_young, linux.too_old), (2, 0, 0));
}

#[test]
fn ages_are_told_by_the_clock_of_the_answer() {
    // Both clocks of the master are 25 s behind: its job of 12 s seems to be of 37 s.
    let answer = jobs_at(ago(25), vec![waiting("linux", 30)]);
    let demand = Farm::small().observe(vec![("ci", answer)]);
    assert_eq!(demand[&pool("linux")].too_young, 1);
}

#[test]
fn a_source_that_fails_holds_what_it_feeds_at_what_was_known() {
    let mut farm = Farm::new();
    let good = || {
        vec![
            ("ci", jobs(vec![waiting("linux", 60); 3])),
            ("queue", count(4, 1)),
            ("second", jobs(vec![waiting("windows", 30)])),
        ]
    };
    farm.observe(good());
    let mut answers = good();
    answers[0].1 = down();
    let demand = farm.observe(answers);
    assert_eq!(held(&demand), ["linux"]);
    assert_eq!(demand[&pool("linux")].pending, 3);
    assert_eq!(reason(&demand, "linux"), "connection refused");
    assert_eq!(demand[&pool("linux")].holds[0].source, name("ci"));
    let mut answers = good();
    answers[1].1 = down();
    let demand = farm.observe(answers);
    assert_eq!(held(&demand), ["mac"]);
    assert_eq!(demand[&pool("mac")].pending, 4);
}

#[test]
fn a_rule_that_names_the_source_holds_its_pool_even_before_it_ever_had_a_job() {
    let mut farm = Farm::new();
    let answers = |second| {
        vec![
            ("ci", jobs(vec![])),
            ("queue", count(0, 0)),
            ("second", second),
        ]
    };
    farm.observe(answers(jobs(vec![waiting("linux", 60)])));
    let demand = farm.observe(answers(down()));
    assert_eq!(held(&demand), ["linux", "mac"]);
}

#[test]
fn a_source_that_never_answered_holds_every_pool_its_jobs_could_go_to() {
    let mut farm = Farm::new();
    let demand = farm.observe(vec![
        ("ci", down()),
        ("queue", count(0, 0)),
        ("second", jobs(vec![])),
    ]);
    assert_eq!(held(&demand), ["linux", "windows"]);
    assert_eq!(demand[&pool("mac")].holds, []);
}

#[test]
fn a_source_that_was_not_asked_is_one_that_failed() {
    let demand = Farm::small().observe(vec![]);
    assert_eq!(held(&demand), ["linux", "windows"]);
    assert_eq!(reason(&demand, "linux"), "it was not asked");
}

#[test]
fn an_answer_may_be_as_old_as_stale_after_and_no_older() {
    for (age, stale) in [(179, false), (180, false), (181, true)] {
        let demand = Farm::small().observe(vec![("ci", jobs_at(ago(age), vec![]))]);
        assert_eq!(!held(&demand).is_empty(), stale, "{age} s");
    }
    let demand = Farm::small().observe(vec![("ci", jobs_at(ago(181), vec![]))]);
    assert_eq!(
        reason(&demand, "linux"),
        "its answer is 3m 1s old: more than `demand.stale_after`, 3m"
    );
}

#[test]
fn an_answer_from_the_future_is_a_lie_beyond_the_tolerance() {
    for (ahead, lie) in [(1, false), (30, false), (31, true)] {
        let demand = Farm::small().observe(vec![("ci", jobs_at(ago(-ahead), vec![]))]);
        assert_eq!(!held(&demand).is_empty(), lie, "{ahead} s");
    }
    let demand = Farm::small().observe(vec![("ci", jobs_at(ago(-3600), vec![]))]);
    assert_eq!(
        reason(&demand, "linux"),
        "its answer is from the future: its clock is 1h ahead of ours; set the clocks of both hosts by NTP"
    );
}

#[test]
fn as_of_is_never_in_the_future() {
    let demand = Farm::small().observe(vec![("ci", jobs_at(ago(-30), vec![]))]);
    assert_eq!(demand[&pool("linux")].as_of, Some(noon()));
}

#[test]
fn an_answer_older_than_the_one_before_is_not_taken() {
    for (back, held_back) in [(1, false), (30, false), (31, true)] {
        let mut farm = Farm::small();
        farm.observe(vec![("ci", jobs(vec![waiting("linux", 60)]))]);
        let demand = farm.observe(vec![(
            "ci",
            jobs_at(ago(back), vec![waiting("linux", 90); 2]),
        )]);
        assert_eq!(!held(&demand).is_empty(), held_back, "{back} s");
        let expected = if held_back { 1 } else { 2 };
        assert_eq!(demand[&pool("linux")].pending, expected);
    }
}

#[test]
fn a_job_that_begins_after_the_answer_shows_that_no_age_can_be_told() {
    for (ahead, lie) in [(0, false), (30, false), (31, true)] {
        let answer = jobs(vec![waiting("linux", 60), waiting("linux", -ahead)]);
        let demand = Farm::small().observe(vec![("ci", answer)]);
        assert_eq!(!held(&demand).is_empty(), lie, "{ahead} s");
    }
}

#[test]
fn ten_jobs_that_are_gone_at_once_are_believed_the_second_time() {
    for (jobs_before, doubted) in [(9, false), (10, true)] {
        let mut farm = Farm::small();
        farm.observe(vec![("ci", jobs(vec![waiting("linux", 60); jobs_before]))]);
        let first = farm.observe(vec![("ci", jobs(vec![]))]);
        assert_eq!(!held(&first).is_empty(), doubted, "{jobs_before} jobs");
        if doubted {
            assert_eq!(first[&pool("linux")].pending, 10);
        }
        let second = farm.observe(vec![("ci", jobs(vec![]))]);
        assert_eq!(held(&second), Vec::<&str>::new());
        assert_eq!(second[&pool("linux")].pending, 0);
    }
}

#[test]
fn jobs_that_all_run_now_are_no_sudden_end() {
    let mut farm = Farm::small();
    farm.observe(vec![("ci", jobs(vec![waiting("linux", 60); 20]))]);
    let demand = farm.observe(vec![("ci", jobs(vec![running("linux", 5)]))]);
    assert_eq!(held(&demand), Vec::<&str>::new());
    assert_eq!(demand[&pool("linux")].pending, 0);
}

#[test]
fn counts_can_end_suddenly_too() {
    let mut farm = Farm::new();
    let answers = |it| {
        vec![
            ("ci", jobs(vec![])),
            ("queue", it),
            ("second", jobs(vec![])),
        ]
    };
    farm.observe(answers(count(12, 0)));
    assert_eq!(held(&farm.observe(answers(count(0, 0)))), ["mac"]);
    assert_eq!(
        held(&farm.observe(answers(count(0, 0)))),
        Vec::<&str>::new()
    );
}

#[test]
fn a_pool_that_no_source_can_feed_has_no_time() {
    let mut farm = Farm::small();
    let settings = PoolSettings::default();
    farm.config.pools.insert(pool("unfed"), settings);
    let demand = farm.observe(vec![("ci", jobs(vec![]))]);
    assert_eq!(demand[&pool("unfed")], PoolDemand::default());
    assert_eq!(demand[&pool("windows")].as_of, Some(noon()));
}

#[test]
fn the_oldest_answer_is_the_time_of_a_pool() {
    let mut farm = Farm::new();
    let demand = farm.observe(vec![
        ("ci", jobs_at(ago(60), vec![])),
        ("queue", count(0, 0)),
        ("second", jobs_at(ago(90), vec![])),
    ]);
    assert_eq!(demand[&pool("linux")].as_of, Some(ago(90)));
}

#[test]
fn a_rule_that_cannot_be_weighed_holds_the_pools_its_job_may_belong_to() {
    let mut farm = Farm::small();
    let slow = RuleSettings {
        job: r"^(?=(a|a)*$)(a|aa)*\1?b$".into(),
        pool: Some(pool("windows")),
        source: None,
    };
    farm.config.rules.insert(0, slow);
    farm.rules = Rules::compile(&farm.config.rules).unwrap();
    let answer = jobs(vec![waiting(&"a".repeat(64), 60), waiting("linux", 60)]);
    let demand = farm.observe(vec![("ci", answer)]);
    assert_eq!(held(&demand), ["windows"]);
    assert_eq!(demand[&pool("linux")].pending, 1);
}

#[test]
fn memory_can_be_written_down() {
    let mut farm = Farm::small();
    farm.observe(vec![(
        "ci",
        jobs(vec![waiting("linux", 60), waiting("other", 60)]),
    )]);
    let written = serde_json::to_string(&farm.memory).unwrap();
    assert_eq!(
        serde_json::from_str::<Memory>(&written).unwrap(),
        farm.memory
    );
}

fn any_job() -> impl Strategy<Value = WaitingJob> {
    let names = prop::sample::select(vec!["linux", "windows", "mac", "unknown"]);
    (names, 0_i64..100_000, any::<bool>()).prop_map(|(name, age, running)| WaitingJob {
        running,
        ..waiting(name, age)
    })
}

fn any_answer() -> impl Strategy<Value = Answer> {
    let any_jobs = prop::collection::vec(any_job(), 0..20);
    prop_oneof![
        4 => (any_jobs, -60_i64..300).prop_map(|(jobs, age)| jobs_at(ago(age), jobs)),
        1 => Just(down()),
    ]
}

proptest! {
    #[test]
    fn the_order_of_jobs_does_not_matter(
        (first, second) in prop::collection::vec(any_job(), 0..30)
            .prop_flat_map(|jobs| (Just(jobs.clone()), Just(jobs).prop_shuffle()))
    ) {
        let first = Farm::small().observe(vec![("ci", jobs(first))]);
        let second = Farm::small().observe(vec![("ci", jobs(second))]);
        prop_assert_eq!(first, second);
    }

    #[test]
    fn what_several_sources_have_is_what_one_would_have(
        all in prop::collection::vec((any_job(), any::<bool>()), 0..30)
    ) {
        // `second` has a rule of its own for `mac`, so leave that out.
        let all: Vec<_> = all.into_iter().filter(|(job, _)| job.name != "mac").collect();
        let part = |of: bool| {
            let part = all.iter().filter(|(_, second)| *second == of);
            part.map(|(job, _)| job.clone()).collect()
        };
        let together = all.iter().map(|(job, _)| job.clone()).collect();
        let queue = || ("queue", count(0, 0));
        let one = Farm::new().observe(vec![
            ("ci", jobs(together)), ("second", jobs(vec![])), queue(),
        ]);
        let two = Farm::new().observe(vec![
            ("ci", jobs(part(false))), ("second", jobs(part(true))), queue(),
        ]);
        prop_assert_eq!(one, two);
    }

    #[test]
    fn a_failing_source_never_lowers_demand_unheld(
        before in prop::collection::vec(any_answer(), 1..5),
    ) {
        let mut farm = Farm::small();
        let mut last = None;
        for answer in before {
            last = Some(farm.observe(vec![("ci", answer)]));
        }
        let last = last.unwrap();
        let demand = farm.observe(vec![("ci", down())]);
        for (pool, demand) in demand {
            let known = &last[&pool];
            prop_assert!(demand.pending >= known.pending, "{}", pool);
            prop_assert!(demand.running >= known.running, "{}", pool);
            prop_assert!(known.pending == 0 || !demand.holds.is_empty(), "{}", pool);
        }
    }

    #[test]
    fn an_answer_that_is_not_believed_changes_no_number(
        good in prop::collection::vec(any_job(), 0..20),
        lie in prop::collection::vec(any_job(), 0..20),
        age in prop_oneof![181_i64..100_000, -100_000_i64..-30],
    ) {
        let mut farm = Farm::small();
        let first = farm.observe(vec![("ci", jobs(good))]);
        let second = farm.observe(vec![("ci", jobs_at(ago(age), lie))]);
        for (pool, demand) in second {
            prop_assert_eq!(demand.pending, first[&pool].pending);
            prop_assert_eq!(demand.too_old, first[&pool].too_old);
        }
    }
}
