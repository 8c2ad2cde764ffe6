//! The two lists of patterns: `hosts.toml` and `jobs.toml`.
//!
//! A list that is wrong is not used in part. [`Lists::load`] finds every fault of both files, so
//! that a person mends them in one go.

use std::fmt;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fancy_regex::{Regex, RegexBuilder};
use farm_config::trust;
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde::Serialize;
use toml_edit::{Document, Item, Table};

/// Longest list that is read. The longest list of the originals had 3 KB.
const MAX_LIST_BYTES: u64 = 1 << 20;
/// Longest name that is weighed. The longest job name of the originals has 98 characters. Together
/// with [`BACKTRACK_LIMIT`] it bounds the time of a match.
const MAX_NAME_BYTES: usize = 1024;
/// How often one match may go back. A look-ahead behind a leading `.*`, which is how people write, is
/// quadratic: about a million for the longest name. A catastrophic pattern exceeds any limit; this
/// one is reached within half a second by an unoptimised build, within a tenth by a release.
const BACKTRACK_LIMIT: usize = 2_000_000;
/// Largest compiled pattern, in bytes; about a thousand times what a list needs.
const MAX_COMPILED_BYTES: usize = 1 << 20;
/// Longest pattern. It bounds the time to compile it.
const MAX_PATTERN_BYTES: usize = 4096;

/// Which of the two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ListName {
    /// Patterns for names of hosts.
    Hosts,
    /// Patterns for names of jobs.
    Jobs,
}

impl ListName {
    /// Both lists, in the order in which they are weighed.
    pub const ALL: [Self; 2] = [Self::Hosts, Self::Jobs];

    /// The name as it is typed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hosts => "hosts",
            Self::Jobs => "jobs",
        }
    }

    /// Name of the list's file in the directory of the lists.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Hosts => "hosts.toml",
            Self::Jobs => "jobs.toml",
        }
    }
}

impl fmt::Display for ListName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is wrong with a list, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The list's file.
    pub file: PathBuf,
    /// Line of the file, from 1; none if it concerns the file as a whole.
    pub line: Option<usize>,
    /// What is wrong, and what was expected.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.message)
    }
}

/// An entry of a list: a match of its pattern forces a reboot.
#[derive(Clone, Debug)]
pub struct RebootPattern {
    regex: Regex,
    /// Why somebody added it.
    pub reason: String,
    /// When it was added.
    pub added: Date,
    /// First day (UTC) on which it no longer matches.
    pub expires: Option<Date>,
    /// Its file and the line it begins on.
    file: Arc<Path>,
    line: usize,
}

impl RebootPattern {
    /// The pattern as it is written in the list.
    #[must_use]
    pub fn pattern(&self) -> &str {
        self.regex.as_str()
    }

    /// The line of the file on which the entry begins, from 1.
    #[must_use]
    pub const fn line(&self) -> usize {
        self.line
    }

    /// Whether the entry is history at `now`. It matches until the end of the day before `expires`,
    /// in UTC as everywhere: so `runner blacklist expire`, which writes today, has effect at once.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| today(now) >= expires)
    }

    /// Whether the pattern is found anywhere in `name`, in either case. Expired or not.
    ///
    /// # Errors
    /// If that cannot be told in bounded time.
    pub fn is_match(&self, name: &str) -> Result<bool, Unweighable> {
        if name.len() > MAX_NAME_BYTES {
            return Err(self.unweighable(Obstacle::NameTooLong(name.len())));
        }
        self.regex.is_match(name).map_err(|_| {
            let beginning: String = name.chars().take(100).collect();
            self.unweighable(Obstacle::Backtracks(printable(&beginning)))
        })
    }

    fn unweighable(&self, obstacle: Obstacle) -> Unweighable {
        Unweighable {
            file: self.file.clone(),
            line: self.line,
            pattern: printable(self.pattern()),
            obstacle,
        }
    }
}

/// A pattern and a name that cannot be weighed in bounded time.
#[derive(Clone, Debug, thiserror::Error)]
#[error("`{pattern}` {obstacle}")]
pub struct Unweighable {
    file: Arc<Path>,
    line: usize,
    pattern: String,
    obstacle: Obstacle,
}

#[derive(Clone, Debug, thiserror::Error)]
enum Obstacle {
    #[error(
        "goes back more than {BACKTRACK_LIMIT} times on a name that begins with `{0}`: expected a pattern without nested repetition"
    )]
    Backtracks(String),
    #[error("is asked for a name of {0} bytes: expected at most {MAX_NAME_BYTES}")]
    NameTooLong(usize),
}

impl From<Unweighable> for Fault {
    fn from(unweighable: Unweighable) -> Self {
        Self {
            file: unweighable.file.to_path_buf(),
            line: Some(unweighable.line),
            message: unweighable.to_string(),
        }
    }
}

/// One list, in the order of its file.
#[derive(Clone, Debug, Default)]
pub struct RebootList {
    /// Its entries, expired ones included.
    pub patterns: Vec<RebootPattern>,
}

impl RebootList {
    /// The list that `text` spells; `file` is only for messages. Empty text is an empty list.
    ///
    /// # Errors
    /// Every fault of the text, in its order.
    pub fn parse(text: &str, file: &Path) -> Result<Self, Vec<Fault>> {
        Parser {
            text,
            file: file.into(),
            faults: Vec::new(),
        }
        .parse()
    }

    /// Reads and parses a list.
    ///
    /// # Errors
    /// Every fault; only one if the file cannot be read or others may write it.
    pub fn load(file: &Path) -> Result<Self, Vec<Fault>> {
        let text = read(file).map_err(|fault| vec![fault])?;
        Self::parse(&text, file)
    }

    /// The first entry in file order that is in force at `now` and matches `name`.
    ///
    /// # Errors
    /// If an entry in front of it cannot be weighed.
    pub fn first_match(
        &self,
        name: &str,
        now: Timestamp,
    ) -> Result<Option<&RebootPattern>, Unweighable> {
        for entry in self.patterns.iter().filter(|entry| !entry.is_expired(now)) {
            if entry.is_match(name)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

/// Both lists.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// Patterns for names of hosts.
    pub hosts: RebootList,
    /// Patterns for names of jobs.
    pub jobs: RebootList,
}

impl Lists {
    /// Reads both lists of a directory.
    ///
    /// # Errors
    /// Every fault of both files. A file that is missing is a fault: a list that vanished must not
    /// look like a list that somebody emptied.
    pub fn load(directory: &Path) -> Result<Self, Vec<Fault>> {
        let hosts = RebootList::load(&directory.join(ListName::Hosts.file_name()));
        let jobs = RebootList::load(&directory.join(ListName::Jobs.file_name()));
        match (hosts, jobs) {
            (Ok(hosts), Ok(jobs)) => Ok(Self { hosts, jobs }),
            (hosts, jobs) => {
                let faults = [hosts.err(), jobs.err()];
                Err(faults.into_iter().flatten().flatten().collect())
            }
        }
    }

    /// One of the two.
    #[must_use]
    pub const fn list(&self, name: ListName) -> &RebootList {
        match name {
            ListName::Hosts => &self.hosts,
            ListName::Jobs => &self.jobs,
        }
    }
}

/// The day of `now` in UTC.
pub(super) fn today(now: Timestamp) -> Date {
    now.to_zoned(TimeZone::UTC).date()
}

/// Compiles a pattern of a list.
///
/// # Errors
/// What is wrong with it, for a person.
pub(super) fn compile(pattern: &str) -> Result<Regex, String> {
    if pattern.trim().is_empty() {
        return Err("empty pattern: expected a regular expression such as `.*mochitest.*`".into());
    }
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(format!(
            "pattern of {} bytes: expected at most {MAX_PATTERN_BYTES}",
            pattern.len()
        ));
    }
    RegexBuilder::new(pattern)
        .case_insensitive(true)
        .backtrack_limit(BACKTRACK_LIMIT)
        .delegate_size_limit(MAX_COMPILED_BYTES)
        .build()
        .map_err(|error| {
            let message = format!("invalid pattern `{pattern}`: {error}");
            printable(&message.replace('\n', " "))
        })
}

/// The text without control characters. TOML writes any character by an escape, and a name comes
/// from a job: none may break the line it is said in.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// Text of a list's file, if nobody but root and the running user can have written it.
///
/// # Errors
/// Why it cannot be used.
pub(super) fn read(file: &Path) -> Result<String, Fault> {
    let fault = |message: String| Fault {
        file: file.to_owned(),
        line: None,
        message,
    };
    match fs_err::metadata(file) {
        Ok(metadata) if !metadata.is_file() => {
            return Err(fault("not a regular file: expected a list".into()));
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(fault(
                "does not exist: expected a list, an empty file if there is nothing to list".into(),
            ));
        }
        Err(error) => return Err(fault(error.to_string())),
    }
    trust::check(file).map_err(|distrust| fault(distrust.to_string()))?;
    let mut bytes = Vec::new();
    fs_err::File::open(file)
        .and_then(|opened| opened.take(MAX_LIST_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| fault(error.to_string()))?;
    if bytes.len() as u64 > MAX_LIST_BYTES {
        return Err(fault(format!(
            "too long: expected at most {MAX_LIST_BYTES} bytes"
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = line_of(error.as_bytes(), valid);
        Fault {
            line: Some(line),
            ..fault("not UTF-8: expected TOML".into())
        }
    })
}

/// Line of the byte `offset`, from 1.
fn line_of(text: &[u8], offset: usize) -> usize {
    let before = text.get(..offset).unwrap_or(text);
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// A parse in progress: it collects faults and goes on.
struct Parser<'a> {
    text: &'a str,
    file: Arc<Path>,
    faults: Vec<Fault>,
}

impl Parser<'_> {
    fn parse(mut self) -> Result<RebootList, Vec<Fault>> {
        let document = match Document::parse(self.text) {
            Ok(document) => document,
            Err(error) => {
                let message = error.message().trim().replace('\n', ": ");
                self.fault(error.span(), message);
                return Err(self.faults);
            }
        };
        let mut patterns = Vec::new();
        for (key, item) in document.as_table() {
            match (key, item) {
                ("pattern", Item::ArrayOfTables(tables)) => {
                    patterns.extend(tables.iter().filter_map(|table| self.entry(table)));
                }
                ("pattern", _) => self.fault(
                    span_of(document.as_table(), key),
                    "expected each entry to begin with a line `[[pattern]]`".into(),
                ),
                _ => self.fault(
                    span_of(document.as_table(), key),
                    format!("unknown key `{key}`: expected nothing but `[[pattern]]` entries"),
                ),
            }
        }
        if self.faults.is_empty() {
            Ok(RebootList { patterns })
        } else {
            // The document is walked key by key, a person reads it line by line.
            self.faults.sort_by_key(|fault| fault.line);
            Err(self.faults)
        }
    }

    /// The entry, if it has no fault.
    fn entry(&mut self, table: &Table) -> Option<RebootPattern> {
        for (key, _) in table {
            if !matches!(key, "pattern" | "reason" | "added" | "expires") {
                self.fault(
                    span_of(table, key),
                    format!(
                        "unknown key `{key}`: expected `pattern`, `reason`, `added` or `expires`"
                    ),
                );
            }
        }
        let regex = self.text(table, "pattern").and_then(|pattern| {
            compile(&pattern)
                .map_err(|message| self.fault(span_of(table, "pattern"), message))
                .ok()
        });
        let reason = self.text(table, "reason").and_then(|reason| {
            if reason.trim().is_empty() {
                let message = "empty reason: expected why a match must reboot".into();
                self.fault(span_of(table, "reason"), message);
                return None;
            }
            Some(reason)
        });
        let added = self
            .required(table, "added")
            .and_then(|item| self.date(table, "added", item));
        let expires = match table.get("expires") {
            None => Some(None),
            Some(item) => self.date(table, "expires", item).map(Some),
        };
        Some(RebootPattern {
            regex: regex?,
            reason: reason?,
            added: added?,
            expires: expires?,
            file: self.file.clone(),
            line: table
                .span()
                .map_or(1, |span| line_of(self.text.as_bytes(), span.start)),
        })
    }

    fn required<'t>(&mut self, table: &'t Table, key: &str) -> Option<&'t Item> {
        let item = table.get(key);
        if item.is_none() {
            self.fault(table.span(), format!("an entry without `{key}`"));
        }
        item
    }

    fn text(&mut self, table: &Table, key: &str) -> Option<String> {
        let item = self.required(table, key)?;
        let text = item.as_str().map(str::to_owned);
        if text.is_none() {
            let found = item.type_name();
            self.fault(
                span_of(table, key),
                format!("`{key}` is a value of type {found}: expected text in quotes"),
            );
        }
        text
    }

    fn date(&mut self, table: &Table, key: &str, item: &Item) -> Option<Date> {
        let text = match item.as_str() {
            Some(text) => text.to_owned(),
            None => item.to_string(),
        };
        let text = text.trim();
        // Exactly a day: jiff alone would also take a time behind it, and drop it.
        let date = (text.len() == "2026-11-20".len())
            .then(|| text.parse().ok())
            .flatten();
        if date.is_none() {
            self.fault(
                span_of(table, key),
                format!("`{key}` is `{text}`: expected a day such as 2026-11-20"),
            );
        }
        date
    }

    fn fault(&mut self, span: Option<Range<usize>>, message: String) {
        self.faults.push(Fault {
            file: self.file.to_path_buf(),
            line: span.map(|span| line_of(self.text.as_bytes(), span.start)),
            message: printable(&message),
        });
    }
}

/// Where a key of `table` is written.
fn span_of(table: &Table, key: &str) -> Option<Range<usize>> {
    table
        .key(key)
        .and_then(toml_edit::Key::span)
        .or_else(|| table.get(key).and_then(Item::span))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<RebootList, Vec<Fault>> {
        RebootList::parse(text, Path::new("jobs.toml"))
    }

    fn entry(pattern: &str) -> RebootPattern {
        let text =
            format!("[[pattern]]\npattern = '{pattern}'\nreason = \"r\"\nadded = 2026-01-01\n");
        parse(&text).unwrap().patterns.remove(0)
    }

    #[track_caller]
    fn faults(text: &str) -> String {
        let faults = parse(text).unwrap_err();
        faults.iter().map(|fault| format!("{fault}\n")).collect()
    }

    #[test]
    fn a_pattern_cannot_forge_a_line() {
        let text = "[[pattern]]\npattern = \"a\\u0007\\nb\"\nreason = 'r'\nadded = 2026-01-01\n";
        let list = RebootList::parse(text, Path::new("jobs.toml")).unwrap();
        let unweighable = list.patterns[0].unweighable(Obstacle::NameTooLong(2000));
        assert!(unweighable.to_string().contains('a'));
        assert!(!unweighable.to_string().contains(char::is_control));
        let refused = RebootList::parse(&text.replace("\"a", "\"(a"), Path::new("jobs.toml"));
        let said = refused.unwrap_err()[0].to_string();
        assert!(!said.contains(char::is_control), "{said:?}");
    }

    #[test]
    fn an_empty_text_is_an_empty_list() {
        assert!(parse("").unwrap().patterns.is_empty());
        assert!(parse("# nothing yet\n").unwrap().patterns.is_empty());
    }

    #[test]
    fn the_lists_as_shipped_are_valid_and_empty() {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../blacklists");
        for name in ListName::ALL {
            let file = shipped.join(name.file_name());
            let text = fs_err::read_to_string(&file).unwrap();
            assert!(RebootList::parse(&text, &file).unwrap().patterns.is_empty());
        }
    }

    #[test]
    fn the_example_in_the_shipped_lists_is_a_valid_entry() {
        for name in ListName::ALL {
            let file = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../blacklists")
                .join(name.file_name());
            let text = fs_err::read_to_string(&file).unwrap();
            let example: String = text
                .lines()
                .filter_map(|line| line.strip_prefix("#   "))
                .filter(|line| line.contains("[[") || line.contains(" = "))
                .map(|line| format!("{line}\n"))
                .collect();
            assert_eq!(parse(&example).unwrap().patterns.len(), 1, "{example}");
        }
    }

    #[test]
    fn a_pattern_matches_anywhere_and_in_either_case() {
        // Patterns of the originals, which were anchored and case-sensitive and missed these.
        for (pattern, name) in [
            (".*android.*", "Android 4.3 armv7 API 11+ opt test"),
            ("EMULATOR", "b2g emulator-kk debug"),
            ("mochitest", "Linux64 mochitest-1"),
            ("müller", "host-of-MÜLLER"),
        ] {
            assert!(entry(pattern).is_match(name).unwrap(), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_may_look_ahead() {
        let pattern = entry(r"^Linux (?!try)\S+ build");
        assert!(pattern.is_match("linux mozilla-central build").unwrap());
        assert!(!pattern.is_match("linux try build").unwrap());
    }

    #[test]
    fn a_pattern_as_people_write_it_can_be_weighed_for_the_longest_name() {
        let name = "a".repeat(MAX_NAME_BYTES);
        assert!(!entry(".*mochi(?!test-9).*").is_match(&name).unwrap());
    }

    #[test]
    fn an_entry_matches_until_the_day_before_it_expires() {
        let mut pattern = entry("x");
        pattern.expires = Some("2026-11-20".parse().unwrap());
        let list = RebootList {
            patterns: vec![pattern],
        };
        let matches = |now: &str| {
            list.first_match("x", now.parse().unwrap())
                .unwrap()
                .is_some()
        };
        assert!(matches("2026-11-19T23:59:59.999999999Z"));
        assert!(!matches("2026-11-20T00:00:00Z"));
        assert!(!matches("2027-01-01T00:00:00Z"));
    }

    #[test]
    fn the_first_entry_in_file_order_is_the_one() {
        let list = RebootList {
            patterns: ["b", "a+", "a"].map(entry).to_vec(),
        };
        let now = "2026-11-20T00:00:00Z".parse().unwrap();
        assert_eq!(
            list.first_match("aaa", now).unwrap().unwrap().pattern(),
            "a+"
        );
    }

    #[test]
    fn every_fault_of_a_list_is_said_with_its_line() {
        let text = r#"
title = "x"

[[pattern]]
pattern = "("
reason = " "
added = "yesterday"
expires = 2026-02-28T00:00:00Z
owner = "me"

[[pattern]]
pattern = 7

[[pattern]]
pattern = ""
reason = "r"
added = 2026-01-01
expires = 2026-02-30
"#;
        // There is no 30 February in TOML either, so the first reading says only that.
        insta::assert_snapshot!(format!(
            "{}---\n{}",
            faults(text),
            faults(&text.replace("expires = 2026-02-30\n", "expires = false\n"))
        ));
    }

    #[test]
    fn an_inline_array_is_refused_with_the_form_to_write() {
        let text = "pattern = [{ pattern = 'x', reason = 'r', added = 2026-01-01 }]\n";
        assert_eq!(
            faults(text),
            "jobs.toml:1: expected each entry to begin with a line `[[pattern]]`\n"
        );
    }

    #[test]
    fn a_day_may_be_written_in_quotes() {
        let text = "[[pattern]]\npattern = 'x'\nreason = 'r'\nadded = \"2026-01-01\"\n";
        assert_eq!(
            parse(text).unwrap().patterns[0].added.to_string(),
            "2026-01-01"
        );
    }

    #[test]
    fn a_name_that_is_too_long_is_not_guessed_at() {
        assert!(!entry("x").is_match(&"a".repeat(MAX_NAME_BYTES)).unwrap());
        let error = entry("x")
            .is_match(&"a".repeat(MAX_NAME_BYTES + 1))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "`x` is asked for a name of 1025 bytes: expected at most 1024"
        );
    }

    #[test]
    fn a_pattern_that_explodes_is_refused() {
        for pattern in ["(a{1000}){1000}", &"(".repeat(5000), &"(?=".repeat(1000)] {
            assert!(
                compile(pattern).is_err(),
                "{}",
                &pattern[..20.min(pattern.len())]
            );
        }
    }

    #[test]
    fn both_files_are_reported_at_once() {
        let directory = tempfile::tempdir().unwrap();
        fs_err::write(directory.path().join("hosts.toml"), "x = 1").unwrap();
        let faults = Lists::load(directory.path()).unwrap_err();
        assert_eq!(faults.len(), 2);
        assert!(faults[0].to_string().ends_with(
            "hosts.toml:1: unknown key `x`: expected nothing but `[[pattern]]` entries"
        ));
        assert!(
            faults[1].to_string().contains("jobs.toml: does not exist"),
            "{}",
            faults[1]
        );
    }

    #[test]
    fn a_list_others_may_write_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("jobs.toml");
        fs_err::write(&file, "").unwrap();
        for (mode, is_used) in [(0o644, true), (0o664, false), (0o646, false), (0o600, true)] {
            fs_err::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(RebootList::load(&file).is_ok(), is_used, "{mode:o}");
        }
        fs_err::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(RebootList::load(&file).is_err());
    }

    #[test]
    fn what_is_no_readable_text_is_a_fault_and_never_a_wait() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let missing = file("none/jobs.toml");
        assert!(
            RebootList::load(&missing).unwrap_err()[0]
                .message
                .starts_with("does not exist")
        );
        assert!(
            RebootList::load(directory.path()).unwrap_err()[0]
                .message
                .starts_with("not a regular file")
        );
        nix::unistd::mkfifo(&file("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(
            RebootList::load(&file("fifo")).unwrap_err()[0]
                .message
                .starts_with("not a regular file")
        );
        fs_err::write(file("binary"), b"# x\n\xff").unwrap();
        assert_eq!(
            RebootList::load(&file("binary")).unwrap_err()[0].line,
            Some(2)
        );
        let long = vec![b'#'; usize::try_from(MAX_LIST_BYTES).unwrap() + 1];
        fs_err::write(file("long"), long).unwrap();
        assert!(
            RebootList::load(&file("long")).unwrap_err()[0]
                .message
                .starts_with("too long")
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_list_or_has_faults_with_lines_inside_it(text in "(\\PC|[\\[\\]\n='\"# ]|pattern|reason|added|2026-01-01){0,60}") {
            if let Err(faults) = parse(&text) {
                prop_assert!(!faults.is_empty());
                for fault in faults {
                    prop_assert!(fault.line.unwrap() <= text.lines().count() + 1);
                }
            }
        }

        #[test]
        fn a_name_matches_its_own_escaped_text(before in "\\PC{0,20}", name in "[ -~]{1,30}", after in "\\PC{0,20}") {
            prop_assume!(!name.trim().is_empty());
            let regex = compile(&fancy_regex::escape(&name)).unwrap();
            let upper = name.to_ascii_uppercase();
            let longer = format!("{before}{upper}{after}");
            prop_assert!(regex.is_match(&longer).unwrap());
        }
    }
}
