//! Reading and merging the files, and saying where each fault is.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{BackoffSettings, Config, DEFAULT_PATH, RunnerSettings, TaskSettings, is_empty};
use crate::trust;

/// Tables with a meaning for `runner` itself; every other table belongs to the tasks.
const OWN_TABLES: [&str; 6] = ["runner", "tasks", "env", "telemetry", "jobs", "reboot"];

/// How alike (Jaro-Winkler, 0 to 1) a foreign table's name must be to one of ours to ask whether
/// it was meant: `telemtry` is 0.98, `hg` and `buildbot` stay below 0.6 to all of them.
const LIKELY_TYPO: f64 = 0.85;

/// One thing that is wrong with the configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// File.
    pub path: PathBuf,
    /// Line, from 1, if the fault has one.
    pub line: Option<usize>,
    /// What is wrong, what was expected, what to do.
    pub message: String,
}

impl Fault {
    /// A fault of a whole file.
    #[must_use]
    pub fn of_file(path: &Path, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line: None,
            message: message.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path.display(), self.message),
            None => write!(f, "{}: {}", self.path.display(), self.message),
        }
    }
}

/// One file as read.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its path.
    pub path: PathBuf,
    /// Its content.
    pub text: String,
}

impl Source {
    fn fault(&self, span: Option<Range<usize>>, message: impl Into<String>) -> Fault {
        Fault {
            path: self.path.clone(),
            line: span.map(|span| self.line_at(span.start)),
            // TOML writes any character by an escape; none may break the line it is said in.
            message: message.into().replace(char::is_control, "\u{fffd}"),
        }
    }

    fn line_at(&self, offset: usize) -> usize {
        1 + self
            .text
            .bytes()
            .take(offset)
            .filter(|byte| *byte == b'\n')
            .count()
    }

    /// Line that sets `path`, or the deepest part of it that is there.
    fn line_of(&self, path: &str) -> Option<usize> {
        let (root, _) = DeTable::parse_recoverable(&self.text);
        let mut table = root.get_ref();
        let mut line = None;
        for wanted in path.split('.') {
            // `influx[0].url` is looked for at `influx`: a list has one line to point at.
            let wanted = wanted.split('[').next().unwrap_or(wanted);
            let Some((key, value)) = table
                .iter()
                .find(|(key, _)| key.get_ref().as_ref() == wanted)
            else {
                break;
            };
            line = Some(self.line_at(key.span().start));
            match value.get_ref() {
                DeValue::Table(inner) => table = inner,
                _ => break,
            }
        }
        line
    }
}

/// The configuration when nobody named a file: [`DEFAULT_PATH`] if it exists, else the defaults.
///
/// # Errors
/// All faults of the files, at once.
pub fn load_default() -> Result<Config, Vec<Fault>> {
    let path = Path::new(DEFAULT_PATH);
    if path.exists() {
        load(path)
    } else {
        from_sources(Vec::new())
    }
}

/// The configuration in `path` and in the `*.toml` files of the directory beside it that is named
/// like it with `.d` (`runner.d` for `runner.toml`), by name; later files override earlier ones key by key.
///
/// # Errors
/// All faults of all files, at once.
pub fn load(path: &Path) -> Result<Config, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut sources = Vec::new();
    let paths = match drop_ins(&path.with_extension("d")) {
        Ok(drop_ins) => std::iter::once(path.to_owned()).chain(drop_ins),
        Err(error) => {
            return Err(vec![Fault::of_file(
                &path.with_extension("d"),
                error.to_string(),
            )]);
        }
    };
    for path in paths {
        match read(&path) {
            Ok(source) => sources.push(source),
            Err(fault) => faults.push(fault),
        }
    }
    match from_sources(sources) {
        Ok(config) if faults.is_empty() => Ok(config),
        Ok(_) => Err(faults),
        Err(more) => {
            faults.extend(more);
            Err(faults)
        }
    }
}

fn drop_ins(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match fs_err::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden
            && path
                .extension()
                .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<Source, Fault> {
    let bytes = fs_err::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Fault::of_file(
            path,
            "no such file: expected a configuration in TOML; name another with `--config PATH`",
        ),
        _ => Fault::of_file(path, error.to_string()),
    })?;
    trust::check(path).map_err(|distrust| Fault::of_file(path, distrust.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = 1 + error
            .as_bytes()
            .iter()
            .take(at)
            .filter(|byte| **byte == b'\n')
            .count();
        Fault {
            path: path.to_owned(),
            line: Some(line),
            message: "not UTF-8: expected TOML".into(),
        }
    })?;
    Ok(Source {
        path: path.to_owned(),
        text,
    })
}

/// The configuration in these files. Public for tests and fuzzing: it touches no file.
///
/// # Errors
/// All faults of all files, at once.
pub fn from_sources(sources: Vec<Source>) -> Result<Config, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut table = toml::Table::new();
    for source in &sources {
        let (root, errors) = DeTable::parse_recoverable(&source.text);
        if errors.is_empty() {
            faults.extend(check_document(source, &root));
            match toml::Table::deserialize(toml::de::Deserializer::from(root)) {
                Ok(overlay) => merge(&mut table, overlay),
                Err(error) => faults.push(source.fault(error.span(), error.message())),
            }
        } else {
            faults.extend(
                errors
                    .iter()
                    .map(|error| source.fault(error.span(), error.message())),
            );
        }
    }
    if !faults.is_empty() {
        // By line within a file, whatever order the keys were looked at in.
        faults.sort_by_key(|fault| (position(&sources, &fault.path), fault.line));
        return Err(faults);
    }
    let last = sources
        .last()
        .map_or(PathBuf::from(DEFAULT_PATH), |source| source.path.clone());
    let config = typed(table, &sources)
        .map_err(|error| vec![Fault::of_file(&last, error.message().trim().to_owned())])?;
    let faults: Vec<_> = contradictions(&config)
        .into_iter()
        .map(|(path, message)| locate(&sources, &path, &last, message))
        .collect();
    if faults.is_empty() {
        Ok(config)
    } else {
        Err(faults)
    }
}

fn position(sources: &[Source], path: &Path) -> Option<usize> {
    sources.iter().position(|source| source.path == path)
}

fn typed(table: toml::Table, sources: &[Source]) -> Result<Config, toml::de::Error> {
    fn section<T: DeserializeOwned + Default>(
        table: &toml::Table,
        name: &str,
    ) -> Result<T, toml::de::Error> {
        table
            .get(name)
            .map_or_else(|| Ok(T::default()), |value| T::deserialize(value.clone()))
    }
    Ok(Config {
        runner: section(&table, "runner")?,
        tasks: section(&table, "tasks")?,
        env: section(&table, "env")?,
        telemetry: section(&table, "telemetry")?,
        jobs: section(&table, "jobs")?,
        reboot: section(&table, "reboot")?,
        files: sources.iter().map(|source| source.path.clone()).collect(),
        table,
    })
}

fn locate(sources: &[Source], path: &str, fallback: &Path, message: String) -> Fault {
    sources
        .iter()
        .rev()
        .find_map(|source| {
            let line = source.line_of(path)?;
            Some(Fault {
                path: source.path.clone(),
                line: Some(line),
                message: message.clone(),
            })
        })
        .unwrap_or_else(|| Fault::of_file(fallback, message.clone()))
}

fn merge(base: &mut toml::Table, overlay: toml::Table) {
    for (key, value) in overlay {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Every key of one file that does not fit, each on its own, so that all are found at once.
fn check_document(source: &Source, root: &Spanned<DeTable<'_>>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (key, value) in root.get_ref() {
        let name = key.get_ref().as_ref();
        let DeValue::Table(table) = value.get_ref() else {
            faults.push(source.fault(
                Some(key.span()),
                format!("key `{name}` stands outside of any table: expected it below a line such as `[runner]`"),
            ));
            continue;
        };
        faults.extend(match name {
            "runner" => check_keys::<RunnerSettings>(source, name, table),
            "tasks" => check_tasks(source, table),
            "env" => check_keys::<std::collections::BTreeMap<String, String>>(source, name, table),
            "telemetry" => check_keys::<farm_telemetry::Config>(source, name, table),
            "jobs" => check_keys::<crate::spool::JobsConfig>(source, name, table),
            "reboot" => check_keys::<crate::reboot::Policy>(source, name, table),
            _ => Vec::new(),
        });
    }
    faults
}

fn check_tasks(source: &Source, tasks: &DeTable<'_>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (name, settings) in tasks {
        match settings.get_ref() {
            DeValue::Table(table) => faults.extend(check_keys::<TaskSettings>(source, &format!("tasks.{}", name.get_ref()), table)),
            _ => faults.push(source.fault(
                Some(name.span()),
                format!(
                    "`tasks.{0}` is not a table: expected `[tasks.{0}]` with the settings of that task",
                    name.get_ref()
                ),
            )),
        }
    }
    faults
}

fn check_keys<T: DeserializeOwned>(
    source: &Source,
    section: &str,
    table: &DeTable<'_>,
) -> Vec<Fault> {
    single_keys(section, table)
        .into_iter()
        .filter_map(|SingleKey { path, at, table }| {
            let spanned = Spanned::new(at.clone(), table);
            let error = T::deserialize(toml::de::Deserializer::from(spanned)).err()?;
            let message = format!("`{path}`: {}", with_example(&one_line(error.message())));
            Some(source.fault(error.span().or(Some(at)), message))
        })
        .collect()
}

/// What the duration's parser expects is plain only to who knows it.
fn with_example(message: &str) -> String {
    if message.ends_with("expected a duration") {
        format!("{message} such as \"90s\" or \"10m\"")
    } else {
        message.to_owned()
    }
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// One key of a table, alone in a table like the one it came from.
struct SingleKey<'i> {
    path: String,
    at: Range<usize>,
    table: DeTable<'i>,
}

/// The table taken apart into tables of one key each, down through tables and lists of tables.
fn single_keys<'i>(section: &str, table: &DeTable<'i>) -> Vec<SingleKey<'i>> {
    let mut singles = Vec::new();
    for (key, value) in table {
        let path = format!("{section}.{}", key.get_ref());
        let parts: Vec<(DeValue<'i>, SingleKey<'i>)> = match value.get_ref() {
            DeValue::Table(inner) if !inner.is_empty() => single_keys(&path, inner)
                .into_iter()
                .map(|single| (DeValue::Table(single.table.clone()), single))
                .collect(),
            DeValue::Array(items) if is_list_of_tables(items) => items
                .iter()
                .enumerate()
                .filter_map(|(index, item)| Some((index, item.get_ref().as_table()?)))
                .flat_map(|(index, item)| single_keys(&format!("{path}[{index}]"), item))
                .map(|single| {
                    let item =
                        Spanned::new(single.at.clone(), DeValue::Table(single.table.clone()));
                    (DeValue::Array(std::iter::once(item).collect()), single)
                })
                .collect(),
            whole => {
                let single = SingleKey {
                    path,
                    at: key.span(),
                    table: DeTable::new(),
                };
                vec![(whole.clone(), single)]
            }
        };
        singles.extend(parts.into_iter().map(|(part, single)| {
            let mut table = DeTable::new();
            table.insert(key.clone(), Spanned::new(value.span(), part));
            SingleKey { table, ..single }
        }));
    }
    singles
}

fn is_list_of_tables(items: &toml::de::DeArray<'_>) -> bool {
    !items.is_empty()
        && items.iter().all(|item| {
            item.get_ref()
                .as_table()
                .is_some_and(|table| !table.is_empty())
        })
}

/// A key, and what is wrong with its value.
type KeyFault = (String, String);

/// What the types cannot check: keys that contradict each other, each with the key to point at.
fn contradictions(config: &Config) -> Vec<KeyFault> {
    let own = backoffs_that_fall(config)
        .chain(unmet_requirements(config))
        .chain(empty_names(config))
        .chain(impossible_variables(config));
    let telemetry = config
        .telemetry
        .validate()
        .into_iter()
        .map(|fault| (format!("telemetry.{}", fault.key), fault.to_string()));
    let jobs = config
        .jobs
        .validate()
        .into_iter()
        .map(|fault| (fault.key.to_owned(), fault.to_string()));
    own.chain(telemetry).chain(jobs).collect()
}

fn backoffs_that_fall(config: &Config) -> impl Iterator<Item = KeyFault> {
    let common = ("runner.backoff".to_owned(), config.runner.backoff);
    let of_tasks = config
        .tasks
        .iter()
        .map(|(name, task)| (format!("tasks.{name}.backoff"), task.backoff));
    std::iter::once(common)
        .chain(of_tasks)
        .filter_map(|(path, BackoffSettings { initial, max, .. })| {
            let (initial, max) = (initial?, max?);
            (initial > max).then(|| {
                let message = format!(
                    "`{path}.initial` ({}) is longer than `{path}.max` ({}): expected it to be at most that long",
                    humantime::format_duration(initial),
                    humantime::format_duration(max)
                );
                (format!("{path}.initial"), message)
            })
        })
}

fn unmet_requirements(config: &Config) -> impl Iterator<Item = KeyFault> {
    let required = config
        .tasks
        .iter()
        .flat_map(|(name, task)| task.requires.iter().map(move |path| (name, path)));
    required.filter_map(|(name, path)| {
        let state = match config.value(path) {
            None => "is not set",
            Some(value) if is_empty(value) => "is empty",
            Some(_) => return None,
        };
        let message =
            format!("task `{name}` requires `{path}`, which {state}: expected a value for it");
        Some((format!("tasks.{name}.requires"), message))
    })
}

fn empty_names(config: &Config) -> impl Iterator<Item = KeyFault> {
    let names = config.tasks.iter().flat_map(|(name, task)| {
        [
            (format!("tasks.{name}.user"), &task.user),
            (
                format!("tasks.{name}.shared_resource"),
                &task.shared_resource,
            ),
        ]
    });
    names
        .filter(|(_, value)| value.as_ref().is_some_and(|value| value.trim().is_empty()))
        .map(|(path, _)| {
            let message = format!("`{path}` is empty: expected a name, or no such key");
            (path, message)
        })
}

fn impossible_variables(config: &Config) -> impl Iterator<Item = KeyFault> {
    let common = config.env.keys().map(|name| (format!("env.{name}"), name));
    let of_tasks = config.tasks.iter().flat_map(|(task, settings)| {
        let path = move |name: &String| format!("tasks.{task}.env.{name}");
        settings.env.keys().map(move |name| (path(name), name))
    });
    common
        .chain(of_tasks)
        .filter(|(_, name)| name.is_empty() || name.contains(['=', '\0']))
        .map(|(path, name)| {
            let message = format!(
                "`{name}` cannot name an environment variable: expected a name without `=`"
            );
            (path, message)
        })
}

impl Config {
    /// Tables left to the tasks whose names look like one of ours, with the name that may be meant.
    #[must_use]
    pub fn likely_typos(&self) -> Vec<(&str, &'static str)> {
        self.table
            .keys()
            .filter(|name| !OWN_TABLES.contains(&name.as_str()))
            .filter_map(|name| {
                let own = OWN_TABLES
                    .into_iter()
                    .find(|own| strsim::jaro_winkler(own, name) >= LIKELY_TYPO)?;
                Some((name.as_str(), own))
            })
            .collect()
    }
}
