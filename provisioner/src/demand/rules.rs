//! Which job belongs to which pool: the first rule that matches its name.
//!
//! Rules are patterns with look-ahead, so they are matched by an engine that goes back, with a limit
//! (see `docs/decisions/reboot-patterns-backtrack.md`). A rule that reaches it has neither matched
//! nor not matched: the job is undecided, and every pool it may belong to is held. Unlike the
//! patterns of the reboot lists a rule tells `Linux` from `linux`: names of jobs do, and a farm has
//! both. `(?i)` at the beginning of a pattern takes either.
//!
//! Beside the pools there is a [`RuleReport`]: jobs no rule knows, rules that match nothing, rules
//! whose jobs others take. The originals had a typo in their rules for a year and nobody was told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use fancy_regex::{Regex, RegexBuilder};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::RuleSettings;
use crate::ids::{PoolName, SourceName};

/// Longest name that is weighed; the longest of the originals has 98 bytes.
const MAX_NAME_BYTES: usize = 1024;
/// How often one match may go back. A look-ahead behind a leading `.*` is quadratic: about a million
/// for the longest name. A catastrophic pattern exceeds any limit.
const BACKTRACK_LIMIT: usize = 2_000_000;
/// Largest compiled pattern, in bytes; about a thousand times what a rule needs.
const MAX_COMPILED_BYTES: usize = 1 << 20;
/// Longest pattern. It bounds the time to compile it.
const MAX_PATTERN_BYTES: usize = 4096;
/// Names a pattern may fail on in one pass; then it is not tried again until the next. Each costs a
/// tenth of a second.
const MOST_FAILURES: u32 = 3;
/// Different names weighed against all rules in one pass, to find shadowed ones; further ones are
/// weighed until the first match only.
const MOST_NAMES_COMPARED: usize = 5_000;
/// Unmatched names a report has at most, those of most jobs first.
const MOST_UNMATCHED: usize = 20;
/// Shortest literal text of a pattern for which a near one is looked for.
const SHORTEST_LITERAL: usize = 4;

/// The rules, compiled.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    settings: RuleSettings,
    regex: Regex,
}

impl Rule {
    fn is_about(&self, source: &SourceName) -> bool {
        let own = self.settings.source.as_ref();
        own.is_none_or(|own| own == source)
    }
}

/// Where a job belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Belongs {
    /// To this pool.
    To(PoolName),
    /// To none, because a rule without pool says so.
    Nowhere,
    /// No rule matches its name.
    Unmatched,
    /// A rule cannot be weighed. It belongs to one of these pools, or to none.
    Undecided(BTreeSet<PoolName>, String),
}

/// A rule, for people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleName {
    /// Its place in the file, from 1.
    pub number: usize,
    /// Its pattern.
    pub pattern: String,
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} `{}`", self.number, printable(&self.pattern))
    }
}

/// What is to be told about the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleReport {
    /// Jobs of this pass that no rule matches.
    pub unmatched_jobs: u32,
    /// Different names among them.
    pub unmatched_names: u32,
    /// Some of these names, those of most jobs first.
    pub unmatched: Vec<UnmatchedName>,
    /// Rules that have matched no job.
    pub unused: Vec<UnusedRule>,
    /// Rules that never get a job, because others before them do.
    pub shadowed: Vec<ShadowedRule>,
    /// Rules that could not be weighed in this pass.
    pub unweighable: Vec<UnweighableRule>,
}

/// A name that no rule matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmatchedName {
    /// Where it came from.
    pub source: SourceName,
    /// The name; of a very long one the beginning.
    pub name: String,
    /// Jobs that are called so.
    pub jobs: u32,
}

/// A rule that has matched no job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnusedRule {
    /// Which.
    pub rule: RuleName,
    /// Since when jobs were looked at.
    pub since: Timestamp,
    /// Its pattern with one word changed, which would match a job that was seen.
    pub meant: Option<String>,
}

/// A rule whose jobs others take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowedRule {
    /// Which.
    pub rule: RuleName,
    /// Who takes them.
    pub by: RuleName,
    /// How it is known.
    pub how: Shadow,
}

/// How a rule is known to be shadowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shadow {
    /// The same pattern stands before it.
    Same,
    /// A pattern that matches everything stands before it.
    CatchAll,
    /// All jobs it matched so far were taken by rules before it.
    Observed,
}

/// A rule that reached the limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnweighableRule {
    /// Which.
    pub rule: RuleName,
    /// What happened, for a person.
    pub message: String,
}

impl RuleReport {
    /// The report as sentences, one for each finding; empty if all is well.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        let mut said = Vec::new();
        for unweighable in &self.unweighable {
            said.push(unweighable.message.clone());
        }
        for unmatched in &self.unmatched {
            let jobs = plural(unmatched.jobs, "job");
            said.push(format!(
                "no rule matches `{}` of source `{}` ({jobs}): it is nobody's demand; add a rule, without `pool` if that is right",
                printable(&unmatched.name),
                unmatched.source,
            ));
        }
        let shown = u32::try_from(self.unmatched.len()).unwrap_or(u32::MAX);
        if self.unmatched_names > shown {
            let more = plural(self.unmatched_names - shown, "other name");
            said.push(format!("no rule matches {more}"));
        }
        for unused in &self.unused {
            let meant = unused.meant.as_ref().map_or_else(String::new, |meant| {
                format!("; was `{}` meant?", printable(meant))
            });
            let since = unused.since.strftime("%Y-%m-%d %H:%M UTC");
            said.push(format!(
                "{} has matched no job since {since}{meant}",
                unused.rule
            ));
        }
        for shadowed in &self.shadowed {
            let how = match shadowed.how {
                Shadow::Same => "the same pattern stands before it",
                Shadow::CatchAll => "a pattern that matches everything stands before it",
                Shadow::Observed => "each job it matched was taken by a rule before it",
            };
            said.push(format!(
                "{} gets no job: {how}, {}",
                shadowed.rule, shadowed.by
            ));
        }
        said
    }
}

/// What is remembered of the rules from pass to pass. It begins anew when a rule changes, because
/// which rule gets a job depends on all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleMemory {
    rules: Vec<RuleSettings>,
    since: Option<Timestamp>,
    uses: Vec<RuleUse>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct RuleUse {
    /// It has matched a job.
    matched: bool,
    /// It has got a job.
    won: bool,
    /// The rule that last took a job it matched.
    taken_by: Option<usize>,
    /// What is likely meant, as long as it has matched none.
    meant: Option<String>,
}

impl Rules {
    /// Compiles the rules.
    ///
    /// # Errors
    /// Each pattern that is none: the index of its rule, from 0, and what is wrong.
    pub fn compile(settings: &[RuleSettings]) -> Result<Self, Vec<(usize, String)>> {
        let mut rules = Vec::new();
        let mut faults = Vec::new();
        for (index, settings) in settings.iter().enumerate() {
            match compile(&settings.job) {
                Ok(regex) => rules.push(Rule {
                    settings: settings.clone(),
                    regex,
                }),
                Err(message) => faults.push((index, message)),
            }
        }
        if faults.is_empty() {
            Ok(Self { rules })
        } else {
            Err(faults)
        }
    }

    /// Pools to which a rule that is about `source` alone sends jobs.
    pub(super) fn own_pools(&self, source: &SourceName) -> BTreeSet<PoolName> {
        self.pools(|rule| rule.settings.source.as_ref() == Some(source))
    }

    /// Pools to which any rule may send jobs of `source`.
    pub(super) fn reachable_pools(&self, source: &SourceName) -> BTreeSet<PoolName> {
        self.pools(|rule| rule.is_about(source))
    }

    fn pools(&self, of: impl Fn(&Rule) -> bool) -> BTreeSet<PoolName> {
        let rules = self.rules.iter().filter(|rule| of(rule));
        rules
            .filter_map(|rule| rule.settings.pool.clone())
            .collect()
    }

    fn name_of(&self, index: usize) -> RuleName {
        RuleName {
            number: index + 1,
            pattern: self.rules[index].settings.job.clone(),
        }
    }

    /// Rules that cannot get a job, whatever jobs there are, as far as that can be told from the
    /// patterns: an equal one stands before it, or one that matches everything.
    #[must_use]
    pub fn surely_shadowed(&self) -> Vec<ShadowedRule> {
        let shadowed = self.rules.iter().enumerate().filter_map(|(index, rule)| {
            let (by, how) = self.rules[..index]
                .iter()
                .enumerate()
                .filter(|(_, earlier)| {
                    earlier.settings.source.is_none()
                        || earlier.settings.source == rule.settings.source
                })
                .find_map(|(by, earlier)| {
                    if matches_everything(&earlier.settings.job) {
                        Some((by, Shadow::CatchAll))
                    } else if earlier.settings.job == rule.settings.job {
                        Some((by, Shadow::Same))
                    } else {
                        None
                    }
                })?;
            Some(ShadowedRule {
                rule: self.name_of(index),
                by: self.name_of(by),
                how,
            })
        });
        shadowed.collect()
    }
}

/// Whether a pattern is one of the usual ways to write "anything". Names are not empty.
fn matches_everything(pattern: &str) -> bool {
    let pattern = pattern.strip_prefix("(?s)").unwrap_or(pattern);
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    let pattern = pattern.strip_suffix('$').unwrap_or(pattern);
    ["", ".", ".*", ".*?", ".+", ".+?", "(.*)", "(.+)"].contains(&pattern)
}

fn compile(pattern: &str) -> Result<Regex, String> {
    if pattern.trim().is_empty() {
        return Err("is empty: expected a regular expression such as `^linux64-.*-build$`".into());
    }
    if pattern.len() > MAX_PATTERN_BYTES {
        let length = pattern.len();
        return Err(format!(
            "has {length} bytes: expected at most {MAX_PATTERN_BYTES}"
        ));
    }
    RegexBuilder::new(pattern)
        .backtrack_limit(BACKTRACK_LIMIT)
        .delegate_size_limit(MAX_COMPILED_BYTES)
        .build()
        .map_err(|error| {
            let message = format!("is `{pattern}`, which is no pattern: {error}");
            printable(&message.replace('\n', " "))
        })
}

/// The text without control characters: it comes from a file that can write any, or from a job, and
/// must not forge a line.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

fn plural(count: u32, thing: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{s}")
}

/// The jobs of one pass, weighed name by name.
pub(super) struct Weighing<'a> {
    rules: &'a Rules,
    verdicts: HashMap<(SourceName, String), (Verdict, u32)>,
    /// How often each rule could not be weighed, and what was said the first time.
    failures: BTreeMap<usize, (u32, String)>,
}

#[derive(Clone, Debug)]
struct Verdict {
    belongs: Belongs,
    won: Option<usize>,
    also: Vec<usize>,
}

/// What a rule says of a name.
enum Weight {
    Matches,
    Differs,
    Unknown,
}

impl<'a> Weighing<'a> {
    pub(super) fn new(rules: &'a Rules) -> Self {
        Self {
            rules,
            verdicts: HashMap::new(),
            failures: BTreeMap::new(),
        }
    }

    /// Where a job belongs.
    pub(super) fn belongs(&mut self, source: &SourceName, name: &str) -> Belongs {
        let key = (source.clone(), name.to_owned());
        if let Some((verdict, jobs)) = self.verdicts.get_mut(&key) {
            *jobs = jobs.saturating_add(1);
            return verdict.belongs.clone();
        }
        let verdict = self.weigh(source, name);
        let belongs = verdict.belongs.clone();
        self.verdicts.insert(key, (verdict, 1));
        belongs
    }

    /// Jobs a source itself could not assign to a pool.
    pub(super) fn unassigned(&mut self, source: &SourceName, name: &str, jobs: u32) {
        let verdict = Verdict {
            belongs: Belongs::Unmatched,
            won: None,
            also: Vec::new(),
        };
        let key = (source.clone(), name.to_owned());
        self.verdicts.insert(key, (verdict, jobs));
    }

    fn weigh(&mut self, source: &SourceName, name: &str) -> Verdict {
        let mut verdict = Verdict {
            belongs: Belongs::Unmatched,
            won: None,
            also: Vec::new(),
        };
        // Whoever names a job could otherwise hold every pool: it is left to the report.
        if name.len() > MAX_NAME_BYTES {
            return verdict;
        }
        let compare = self.verdicts.len() < MOST_NAMES_COMPARED;
        let rules = self.rules;
        let mut undecided: Option<(BTreeSet<PoolName>, String)> = None;
        for (index, rule) in rules.rules.iter().enumerate() {
            if !rule.is_about(source) {
                continue;
            }
            match self.try_rule(index, rule, name) {
                Weight::Differs => {}
                Weight::Matches if verdict.won.is_some() => verdict.also.push(index),
                Weight::Matches => {
                    verdict.won = Some(index);
                    verdict.belongs = match (&mut undecided, &rule.settings.pool) {
                        (Some((pools, reason)), pool) => {
                            pools.extend(pool.clone());
                            Belongs::Undecided(std::mem::take(pools), std::mem::take(reason))
                        }
                        (None, Some(pool)) => Belongs::To(pool.clone()),
                        (None, None) => Belongs::Nowhere,
                    };
                    if !compare {
                        return verdict;
                    }
                }
                Weight::Unknown if verdict.won.is_some() => {}
                Weight::Unknown => {
                    let reason = || self.failures[&index].1.clone();
                    let (pools, _) = undecided.get_or_insert_with(|| (BTreeSet::new(), reason()));
                    pools.extend(rule.settings.pool.clone());
                }
            }
        }
        if let (None, Some((pools, reason))) = (verdict.won, undecided) {
            verdict.belongs = Belongs::Undecided(pools, reason);
        }
        verdict
    }

    fn try_rule(&mut self, index: usize, rule: &Rule, name: &str) -> Weight {
        if let Some((failures, _)) = self.failures.get(&index)
            && *failures >= MOST_FAILURES
        {
            return Weight::Unknown;
        }
        match rule.regex.is_match(name) {
            Ok(true) => Weight::Matches,
            Ok(false) => Weight::Differs,
            Err(_) => {
                let message = || {
                    let beginning: String = name.chars().take(100).collect();
                    format!(
                        "{} goes back more than {BACKTRACK_LIMIT} times on a name that begins with `{}`: expected a pattern without nested repetition",
                        self.rules.name_of(index),
                        printable(&beginning)
                    )
                };
                let failure = self.failures.entry(index);
                failure.or_insert_with(|| (0, message())).0 += 1;
                Weight::Unknown
            }
        }
    }

    /// The report of this pass, and what is to be remembered for the next.
    pub(super) fn report(self, previous: &RuleMemory, now: Timestamp) -> (RuleReport, RuleMemory) {
        let memory = self.remember(previous, now);
        let mut report = RuleReport {
            shadowed: self.rules.surely_shadowed(),
            ..RuleReport::default()
        };
        let known: BTreeSet<usize> = report.shadowed.iter().map(|it| it.rule.number).collect();
        for (index, used) in memory.uses.iter().enumerate() {
            let rule = self.rules.name_of(index);
            match (used.matched, used.won, used.taken_by) {
                _ if known.contains(&rule.number) => {}
                (false, _, _) => report.unused.extend(memory.since.map(|since| UnusedRule {
                    rule,
                    since,
                    meant: used.meant.clone(),
                })),
                (true, false, Some(by)) => report.shadowed.push(ShadowedRule {
                    rule,
                    by: self.rules.name_of(by),
                    how: Shadow::Observed,
                }),
                (true, _, _) => {}
            }
        }
        report.shadowed.sort_by_key(|it| it.rule.number);
        for (index, (_, message)) in &self.failures {
            report.unweighable.push(UnweighableRule {
                rule: self.rules.name_of(*index),
                message: message.clone(),
            });
        }
        self.report_unmatched(&mut report);
        (report, memory)
    }

    fn report_unmatched(self, report: &mut RuleReport) {
        let mut unmatched: Vec<UnmatchedName> = self
            .verdicts
            .into_iter()
            .filter(|(_, (verdict, _))| verdict.belongs == Belongs::Unmatched)
            .map(|((source, name), (_, jobs))| UnmatchedName { source, name, jobs })
            .collect();
        unmatched.sort_by(|a, b| {
            let most_first = b.jobs.cmp(&a.jobs);
            most_first
                .then_with(|| a.source.cmp(&b.source))
                .then_with(|| a.name.cmp(&b.name))
        });
        report.unmatched_names = u32::try_from(unmatched.len()).unwrap_or(u32::MAX);
        report.unmatched_jobs = unmatched
            .iter()
            .fold(0, |sum, name| sum.saturating_add(name.jobs));
        unmatched.truncate(MOST_UNMATCHED);
        for unmatched in &mut unmatched {
            let end = unmatched.name.floor_char_boundary(MAX_NAME_BYTES);
            unmatched.name.truncate(end);
        }
        report.unmatched = unmatched;
    }

    fn remember(&self, previous: &RuleMemory, now: Timestamp) -> RuleMemory {
        let settings = self.rules.rules.iter().map(|rule| &rule.settings);
        let mut memory = if settings.clone().eq(&previous.rules) {
            previous.clone()
        } else {
            RuleMemory {
                rules: settings.cloned().collect(),
                since: None,
                uses: vec![RuleUse::default(); self.rules.rules.len()],
            }
        };
        if !self.verdicts.is_empty() {
            memory.since.get_or_insert(now);
        }
        for (verdict, _) in self.verdicts.values() {
            let Some(won) = verdict.won else { continue };
            memory.uses[won].matched = true;
            memory.uses[won].won = true;
            for &index in &verdict.also {
                memory.uses[index].matched = true;
                // The smallest, so that the order of a hash table does not show.
                let by = memory.uses[index].taken_by.map_or(won, |by| by.min(won));
                memory.uses[index].taken_by = Some(by);
            }
        }
        let words = self.words();
        for (rule, used) in self.rules.rules.iter().zip(&mut memory.uses) {
            if used.matched {
                used.meant = None;
            } else if used.meant.is_none() {
                used.meant = self.likely_meant(rule, &words);
            }
        }
        memory
    }

    /// The words of all names.
    fn words(&self) -> BTreeSet<&str> {
        let names = self.verdicts.keys().map(|(_, name)| name.as_str());
        names
            .take(MOST_NAMES_COMPARED)
            .filter(|name| name.len() <= MAX_NAME_BYTES)
            .flat_map(words)
            .collect()
    }

    /// The pattern of `rule` with one of its words replaced by a similar one of a name, if it then
    /// matches that name.
    fn likely_meant(&self, rule: &Rule, known: &BTreeSet<&str>) -> Option<String> {
        let pattern = &rule.settings.job;
        let unescaped = without_escapes(pattern);
        let unknown = words(&unescaped).filter(|word| !known.contains(word));
        let mut candidates: Vec<(usize, &str, String)> = unknown
            .flat_map(|word| {
                let most = if word.len() < 10 { 1 } else { 2 };
                known
                    .iter()
                    .filter(move |near| near.len().abs_diff(word.len()) <= most)
                    .map(move |near| (strsim::osa_distance(word, near), *near, word))
                    .filter(move |(distance, _, _)| *distance <= most)
                    .map(|(distance, near, word)| (distance, near, pattern.replacen(word, near, 1)))
            })
            .collect();
        candidates.sort();
        candidates
            .into_iter()
            .find(|(_, near, meant)| {
                let Ok(regex) = compile(meant) else {
                    return false;
                };
                self.verdicts.keys().any(|(source, name)| {
                    rule.is_about(source)
                        && name.contains(near)
                        && regex.is_match(name).unwrap_or(false)
                })
            })
            .map(|(_, _, meant)| meant)
    }
}

/// The words of a text that are long enough to be mistyped.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !character.is_ascii_alphanumeric() && character != '-')
        .map(|word| word.trim_matches('-'))
        .filter(|word| word.len() >= SHORTEST_LITERAL)
}

/// A pattern with `\S` and the like blanked, which would otherwise look like letters of a word.
fn without_escapes(pattern: &str) -> String {
    let mut escaped = false;
    let blank = pattern.chars().map(|character| {
        let is_escape = !escaped && character == '\\';
        let blank = escaped || is_escape;
        escaped = is_escape;
        if blank { ' ' } else { character }
    });
    blank.collect()
}

#[cfg(test)]
mod tests;
