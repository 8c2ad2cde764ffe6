use std::fmt::Write as _;

use super::*;

/// Patterns and pools in the shape of a large farm's: 55 rules, 14 of them with look-ahead, and one
/// with a typo.
#[rustfmt::skip]
const FARM: &[(&str, &str)] = &[
    (r"^Android armv7 API 15\+ (?!try)\S+ build$", "build-android"),
    (r"^Android x86 \S+ build$", "build-android"),
    (r"^Android armv7 API \d+\+? try build$", "try-android"),
    (r"^Android 4\.3 .* (opt|debug) test", "test-emulator64"),
    (r"^Android 2\.3 .* (opt|debug) test", "test-emulator64-large"),
    (r"^Linux (?!try)\S+ build$", "build-linux32"),
    (r"^Linux (?!try)\S+ leak test build$", "build-linux32"),
    (r"^Linux (?!try)\S+ nightly$", "build-linux32"),
    (r"^Linux x86-64 (?!try)\S+ build$", "build-linux64"),
    (r"^Linux x86-64 (?!try)\S+ leak test build$", "build-linux64"),
    (r"^Linux x86-64 \S+ nightly$", "build-linux64"),
    (r"^Linux x86-64 (?!try)\S+ asan( debug)? build$", "build-linux64"),
    (r"^Linux x86-64 \S+ valgrind$", "build-linux64"),
    (r"^Linux (x86-64 )?try (leak test )?build$", "try-linux64"),
    (r"^Linux x86-64 try asan( debug)? build$", "try-linux64"),
    (r"^b2g_(?!try)\S+_flame(-kk)?(_eng)?_(dep|periodic|nightly)$", "build-linux64"),
    (r"^b2g_(?!try)\S+_emulator(-jb|-kk|-l)?(-debug)?_(dep|nightly)$", "build-linux64"),
    (r"^b2g_(?!try)\S+_(linux|macosx|win)\S*_gecko(_localizer)?( nightly)?$", "build-linux64"),
    (r"^b2g_try_\S+_dep$", "try-linux64"),
    (r"^b2g_\S+_try-linxu64-debug_gecko$", "try-linux64"),
    (r"^b2g_ubuntu64_vm \S+ .* test ", "test-linux64"),
    (r"^b2g_emulator_vm \S+ .* test ", "test-emulator64"),
    (r"^Ubuntu (ASAN )?VM 12\.04 x64 large \S+ ", "test-linux64-large"),
    (r"^Ubuntu VM 12\.04 x64 \S+ .* test (?!gl|media)", "test-linux64"),
    (r"^Ubuntu VM 12\.04 x64 \S+ .* test (gl|media)", "test-linux64-large"),
    (r"^Ubuntu ASAN VM 12\.04 x64 \S+ .* test ", "test-linux64"),
    (r"^Ubuntu VM 12\.04 \S+ .* test ", "test-linux32"),
    (r"^Windows 7 VM 32-bit \S+ .* test ", "test-w732"),
    (r"^Windows 7 VM-GFX 32-bit \S+ .* test ", "test-g-w732"),
    (r"^WINNT 6\.1 (?!x86-64)\S+ build$", "build-y-2008"),
    (r"^WINNT 6\.1 x86-64 \S+ build$", "build-y-2008"),
    (r"^WINNT 6\.1 \S+ (leak test|nightly)", "build-y-2008"),
    (r"^WINNT 5\.2 (?!try)\S+ (build|nightly)$", "build-b-2008"),
    (r"^WINNT 5\.2 try build$", "try-y-2008"),
    (r"^fuzzer-linux$", "build-linux32"),
    (r"^fuzzer-linux64$", "build-linux64"),
    (r"^fuzzer-win64$", "build-b-2008"),
    (r"^release-\S+-(linux|linux64)_(build|repack_\d+/\d+)$", "build-linux64"),
    (r"^release-\S+-win(32|64)_(build|repack_\d+/\d+)$", "build-b-2008"),
    (r"^release-\S+-(updates|push_to_mirrors|checksums|bouncer)", "build-linux64"),
    (r"^release-\S+-update_verify_", "build-linux64"),
    (r"^\S+-l10n-linux(64)? nightly$", "build-linux64"),
    (r"l10n nightly-\d+$", "build-linux64"),
    (r"_l10n_dep$", "build-linux64"),
    (r"xulrunner", "build-linux64"),
    (r"^nanojit-linux", "build-linux64"),
    (r"blocklist update$", "build-linux64"),
    (r"hsts preload update$", "build-linux64"),
    (r"periodic file update$", "build-linux64"),
    (r"^jetpack-\S+-ubuntu32", "test-linux32"),
    (r"^jetpack-\S+-ubuntu64", "test-linux64"),
    (r"-br-haz_\S+_dep$", "build-linux64"),
    (r"^linux64-(?!try)\S+-sm-", "build-linux64"),
    (r"mulet", "build-linux64"),
    (r"^graphene_", "build-linux64"),
];

fn rule(job: &str, pool: &str) -> RuleSettings {
    RuleSettings {
        job: job.into(),
        pool: Some(PoolName::parse(pool).unwrap()),
        source: None,
    }
}

fn rules(table: &[(&str, &str)]) -> Rules {
    let settings: Vec<_> = table.iter().map(|(job, pool)| rule(job, pool)).collect();
    Rules::compile(&settings).unwrap()
}

fn pool(name: &str) -> Belongs {
    Belongs::To(PoolName::parse(name).unwrap())
}

fn ci() -> SourceName {
    SourceName::parse("ci").unwrap()
}

fn noon() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

/// What the rules say of these names, and the report on them.
fn weigh(rules: &Rules, names: &[&str]) -> (Vec<Belongs>, RuleReport) {
    let mut weighing = Weighing::new(rules);
    let belongs = names.iter().map(|name| weighing.belongs(&ci(), name));
    let belongs = belongs.collect();
    (belongs, weighing.report(&RuleMemory::default(), noon()).0)
}

fn belongs(rules: &Rules, name: &str) -> Belongs {
    weigh(rules, &[name]).0.remove(0)
}

#[test]
fn the_farm_has_as_many_rules_as_it_says() {
    assert_eq!(FARM.len(), 55);
    let with_look_ahead = FARM.iter().filter(|(job, _)| job.contains("(?!"));
    assert_eq!(with_look_ahead.count(), 14);
}

#[test]
fn look_ahead_tells_try_from_the_rest() {
    let rules = rules(FARM);
    let said: String = [
        "Linux mozilla-central build",
        "Linux x86-64 mozilla-central build",
        "Linux x86-64 try build",
        "Linux try build",
        "Android armv7 API 15+ try build",
        "Android armv7 API 15+ mozilla-inbound build",
        "b2g_mozilla-central_flame-kk_nightly",
        "b2g_try_emulator-kk_dep",
        "Ubuntu VM 12.04 x64 mozilla-inbound debug test mochitest-1",
        "Ubuntu VM 12.04 x64 mozilla-inbound debug test gl",
        "WINNT 6.1 x86-64 try build",
        "Ubuntu VM 12.04 x64 large mozilla-inbound debug test mochitest-1",
        "Ubuntu VM 12.04 mozilla-inbound debug test mochitest-1",
        "linux64-br-haz_mozilla-central_dep",
        "release-mozilla-release-linux64_repack_3/6",
        "OS X 10.7 mozilla-central build",
    ]
    .iter()
    .fold(String::new(), |mut said, name| {
        writeln!(said, "{name:60} {:?}", belongs(&rules, name)).unwrap();
        said
    });
    insta::assert_snapshot!(said);
}

#[test]
fn the_first_rule_that_matches_wins() {
    let rules = rules(&[("linux", "first"), ("linux64", "second"), (".", "third")]);
    assert_eq!(belongs(&rules, "linux64 build"), pool("first"));
    assert_eq!(belongs(&rules, "win64 build"), pool("third"));
}

#[test]
fn a_rule_without_pool_leaves_a_job_alone_on_purpose() {
    let mut settings = vec![rule("^docs", "x"), rule(".", "linux")];
    settings[0].pool = None;
    let rules = Rules::compile(&settings).unwrap();
    let (belongs, report) = weigh(&rules, &["docs build"]);
    assert_eq!(belongs, [Belongs::Nowhere]);
    assert_eq!(report.unmatched_jobs, 0);
}

#[test]
fn a_rule_of_another_source_is_not_asked() {
    let mut settings = vec![rule(".", "other"), rule("build", "linux")];
    settings[0].source = Some(SourceName::parse("elsewhere").unwrap());
    let rules = Rules::compile(&settings).unwrap();
    assert_eq!(belongs(&rules, "build"), pool("linux"));
    assert_eq!(rules.surely_shadowed(), []);
}

#[test]
fn a_rule_is_found_anywhere_and_tells_upper_from_lower_case() {
    let rules = rules(&[("Linux", "a"), ("(?i)WINDOWS", "b")]);
    assert_eq!(belongs(&rules, "try Linux build"), pool("a"));
    assert_eq!(belongs(&rules, "try linux build"), Belongs::Unmatched);
    assert_eq!(belongs(&rules, "windows"), pool("b"));
}

#[test]
fn a_typo_is_reported_with_what_was_likely_meant() {
    let rules = rules(FARM);
    let names = [
        "b2g_mozilla-b2g37_try-linux64-debug_gecko",
        "Linux mozilla-central build",
    ];
    let (belongs, report) = weigh(&rules, &names);
    assert_eq!(belongs[0], Belongs::Unmatched);
    let typo = report
        .unused
        .iter()
        .find(|it| it.rule.number == 20)
        .unwrap();
    assert_eq!(
        typo.meant.as_deref(),
        Some(r"^b2g_\S+_try-linux64-debug_gecko$")
    );
    let said = report.sentences().join("\n");
    assert!(
        said.contains(
            r"rule 20 `^b2g_\S+_try-linxu64-debug_gecko$` has matched no job since 2026-05-01 12:00 UTC; was `^b2g_\S+_try-linux64-debug_gecko$` meant?"
        ),
        "{said}"
    );
}

#[test]
fn what_was_likely_meant_is_remembered_until_the_rule_matches() {
    let rules = rules(&[("try-linxu64", "try"), ("win", "win")]);
    let mut weighing = Weighing::new(&rules);
    weighing.belongs(&ci(), "try-linux64 build");
    let (_, memory) = weighing.report(&RuleMemory::default(), noon());

    let mut weighing = Weighing::new(&rules);
    weighing.belongs(&ci(), "win build");
    let (report, memory) = weighing.report(&memory, noon());
    assert_eq!(report.unused.len(), 1);
    assert_eq!(report.unused[0].meant.as_deref(), Some("try-linux64"));

    let mut weighing = Weighing::new(&rules);
    weighing.belongs(&ci(), "try-linxu64 build");
    let (report, memory) = weighing.report(&memory, noon());
    assert_eq!(report.unused, []);

    let (report, _) = Weighing::new(&rules).report(&memory, noon());
    assert_eq!(report.unused, [], "a rule that matched once is not unused");
}

#[test]
fn nothing_is_called_unused_before_there_was_a_job() {
    let rules = rules(FARM);
    let (report, _) = Weighing::new(&rules).report(&RuleMemory::default(), noon());
    assert_eq!(report, RuleReport::default());
}

#[test]
fn memory_begins_anew_when_a_rule_changes() {
    let old = rules(&[("a", "x"), ("b", "x")]);
    let mut weighing = Weighing::new(&old);
    weighing.belongs(&ci(), "a");
    weighing.belongs(&ci(), "b");
    let (_, memory) = weighing.report(&RuleMemory::default(), noon());
    let new = rules(&[("b", "x"), ("c", "x")]);
    let mut weighing = Weighing::new(&new);
    weighing.belongs(&ci(), "b");
    let (report, _) = weighing.report(&memory, noon());
    let unused: Vec<usize> = report.unused.iter().map(|it| it.rule.number).collect();
    assert_eq!(unused, [2]);
}

#[test]
fn equal_patterns_and_catch_alls_shadow_what_follows() {
    let rules = rules(&[
        ("linux", "a"),
        ("linux", "b"),
        (".*", "c"),
        ("win", "d"),
        ("^(.+)$", "e"),
    ]);
    let shadowed: Vec<_> = rules
        .surely_shadowed()
        .into_iter()
        .map(|it| (it.rule.number, it.by.number, it.how))
        .collect();
    assert_eq!(
        shadowed,
        [
            (2, 1, Shadow::Same),
            (4, 3, Shadow::CatchAll),
            (5, 3, Shadow::CatchAll)
        ]
    );
}

#[test]
fn a_rule_of_one_source_does_not_shadow_one_of_all() {
    let mut settings = vec![rule("linux", "a"), rule("linux", "b")];
    settings[0].source = Some(ci());
    assert_eq!(Rules::compile(&settings).unwrap().surely_shadowed(), []);
    settings.swap(0, 1);
    assert_eq!(
        Rules::compile(&settings).unwrap().surely_shadowed().len(),
        1
    );
}

#[test]
fn a_rule_whose_jobs_others_take_is_reported_until_it_gets_one() {
    let rules = rules(&[("linux", "a"), ("linux64", "b"), ("64", "c")]);
    let (_, report) = weigh(&rules, &["linux64 build", "win64 build"]);
    let shadowed: Vec<_> = report
        .shadowed
        .iter()
        .map(|it| (it.rule.number, it.by.number, it.how))
        .collect();
    assert_eq!(shadowed, [(2, 1, Shadow::Observed)]);
    assert_eq!(report.unused, []);
    assert_eq!(
        report.sentences(),
        [
            "rule 2 `linux64` gets no job: each job it matched was taken by a rule before it, rule 1 `linux`"
        ]
    );
}

#[test]
fn unmatched_names_are_counted_and_some_are_shown() {
    let rules = rules(&[("linux", "a")]);
    let mut weighing = Weighing::new(&rules);
    for number in 0..30 {
        for _ in 0..=number {
            weighing.belongs(&ci(), &format!("win-{number:02}"));
        }
    }
    let (report, _) = weighing.report(&RuleMemory::default(), noon());
    assert_eq!((report.unmatched_jobs, report.unmatched_names), (465, 30));
    assert_eq!(report.unmatched.len(), MOST_UNMATCHED);
    assert_eq!(report.unmatched[0].name, "win-29");
    assert_eq!(report.unmatched[0].jobs, 30);
    let said = report.sentences();
    assert_eq!(
        said[0],
        "no rule matches `win-29` of source `ci` (30 jobs): it is nobody's demand; add a rule, without `pool` if that is right"
    );
    assert!(said.contains(&"no rule matches 10 other names".to_owned()));
}

#[test]
fn a_name_forges_no_line_of_the_report() {
    let (_, report) = weigh(&rules(&[("linux", "a")]), &["x\nrule 1 is fine"]);
    assert!(!report.sentences().concat().contains('\n'));
}

#[test]
fn a_name_as_long_as_allowed_is_weighed_and_a_longer_one_reported() {
    let rules = rules(&[("a$", "a")]);
    let longest = "a".repeat(MAX_NAME_BYTES);
    assert_eq!(belongs(&rules, &longest), pool("a"));
    let (belongs, report) = weigh(&rules, &[&format!("{longest}a")]);
    assert_eq!(belongs, [Belongs::Unmatched]);
    assert_eq!(report.unmatched[0].name, longest);
}

/// Goes back 2^n times on n letters `a`.
const CATASTROPHIC: &str = r"^(?=(a|a)*$)(a|aa)*\1?b$";

#[test]
fn a_rule_that_goes_back_too_often_leaves_the_job_undecided() {
    let rules = rules(&[
        ("^b", "b"),
        (CATASTROPHIC, "slow"),
        ("^a", "a"),
        (".", "rest"),
    ]);
    let name = "a".repeat(64);
    let (belongs, report) = weigh(&rules, &["build", &name]);
    assert_eq!(belongs[0], pool("b"));
    let Belongs::Undecided(pools, reason) = &belongs[1] else {
        panic!("{belongs:?}");
    };
    let pools: Vec<_> = pools.iter().map(PoolName::as_str).collect();
    assert_eq!(pools, ["a", "slow"]);
    assert!(
        reason.starts_with("rule 2 `^(?=(a|a)*$)")
            && reason.contains("goes back more than 2000000"),
        "{reason}"
    );
    assert_eq!(report.unweighable[0].rule.number, 2);
}

#[test]
fn a_rule_that_goes_back_too_often_is_not_tried_for_ever() {
    let rules = rules(&[(CATASTROPHIC, "slow")]);
    let names: Vec<String> = (40..80).map(|length| "a".repeat(length)).collect();
    let mut weighing = Weighing::new(&rules);
    for name in &names {
        let belongs = weighing.belongs(&ci(), name);
        assert!(matches!(belongs, Belongs::Undecided(..)), "{belongs:?}");
    }
    assert_eq!(weighing.failures[&0].0, MOST_FAILURES);
}

#[test]
fn every_pattern_that_is_none_is_named_with_its_place() {
    let settings = [
        rule("linux", "a"),
        rule("(unclosed", "a"),
        rule(" ", "a"),
        rule(&"x".repeat(MAX_PATTERN_BYTES + 1), "a"),
        rule("bad\n(", "a"),
    ];
    let faults = Rules::compile(&settings).unwrap_err();
    let places: Vec<usize> = faults.iter().map(|(index, _)| *index).collect();
    assert_eq!(places, [1, 2, 3, 4]);
    assert!(faults.iter().all(|(_, message)| !message.contains('\n')));
    assert!(
        faults[0].1.contains("is `(unclosed`, which is no pattern"),
        "{}",
        faults[0].1
    );
}
