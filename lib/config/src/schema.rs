//! Which tables a program has, and whether each file fits.

use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::source::files;
use crate::{Document, Fault, Source, keys};

/// How alike (Jaro-Winkler, 0 to 1) the name of an unknown table must be to a known one to ask
/// whether that was meant: `telemtry` and `telemetry` are 0.98; `hg` and `buildbot` stay below 0.6
/// to all tables of `runner`.
const LIKELY_TYPO: f64 = 0.85;

/// What the configuration of one program may say.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// Where the file is looked for when nobody says.
    pub default_path: &'static str,
    /// The tables of the program. A message that needs an example shows the first one.
    pub sections: &'static [Section],
    /// What to make of all other tables.
    pub other_tables: OtherTables,
}

/// What to make of a table that is not in the [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherTables {
    /// It belongs to somebody else, and is only merged.
    Allowed,
    /// It is a fault.
    Refused,
}

/// One table of a program, and the type of what stands in it.
///
/// The types say `#[serde(deny_unknown_fields)]`, so that a misspelt key is found, and mostly
/// `#[serde(default)]`. A key without default is required; that it is missing is reported for
/// `[pools.build]` as a whole when all files are merged, and only the first one of each table: a
/// program that would rather name all of them takes an `Option` and says so by
/// [`Document::agree`](crate::Document::agree).
#[derive(Clone, Copy, Debug)]
pub struct Section {
    name: &'static str,
    shape: Shape,
    tag: Option<&'static str>,
    check: fn(&Source, &str, &DeTable<'_>, Option<&str>) -> Vec<Fault>,
}

/// How a section is written.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// `[name]`
    One,
    /// `[name.NAME]`, each the settings of one thing that is called so.
    Named(&'static str),
    /// `[[name]]`
    List,
}

impl Section {
    /// `[name]`, a `T`.
    #[must_use]
    pub const fn one<T: DeserializeOwned>(name: &'static str) -> Self {
        Self::new::<T>(name, Shape::One)
    }

    /// Any number of `[name.NAME]`, a `T` each, with the settings of one `thing`: `pool` for `[pools.NAME]`.
    #[must_use]
    pub const fn named<T: DeserializeOwned>(name: &'static str, thing: &'static str) -> Self {
        Self::new::<T>(name, Shape::Named(thing))
    }

    /// Any number of `[[name]]`, a `T` each, in order. Of several files that have some, the last
    /// one's count.
    #[must_use]
    pub const fn list<T: DeserializeOwned>(name: &'static str) -> Self {
        Self::new::<T>(name, Shape::List)
    }

    /// The same, where the key `tag` says which form a table has: for `enum`s with
    /// `#[serde(tag = "…")]`, in the section itself or deeper. Other keys are judged beside it.
    #[must_use]
    pub const fn tagged(self, tag: &'static str) -> Self {
        Self {
            tag: Some(tag),
            ..self
        }
    }

    const fn new<T: DeserializeOwned>(name: &'static str, shape: Shape) -> Self {
        Self {
            name,
            shape,
            tag: None,
            check: keys::check::<T>,
        }
    }

    /// Its line as a person writes it.
    fn header(&self) -> String {
        let name = self.name;
        match self.shape {
            Shape::One => format!("[{name}]"),
            Shape::Named(_) => format!("[{name}.NAME]"),
            Shape::List => format!("[[{name}]]"),
        }
    }

    fn check_table(&self, source: &Source, key: &Key<'_>, table: &DeTable<'_>) -> Vec<Fault> {
        let name = self.name;
        match self.shape {
            Shape::One => (self.check)(source, name, table, self.tag),
            Shape::Named(thing) => table
                .iter()
                .flat_map(|(key, value)| self.check_named(source, thing, key, value))
                .collect(),
            Shape::List => {
                let message = format!(
                    "`{name}` is one table: expected a list of them, each below a line `[[{name}]]`"
                );
                vec![source.fault(Some(key.span()), message)]
            }
        }
    }

    fn check_named(
        &self,
        source: &Source,
        thing: &str,
        key: &Key<'_>,
        value: &Spanned<DeValue<'_>>,
    ) -> Vec<Fault> {
        let path = format!("{}.{}", self.name, key.get_ref());
        if let DeValue::Table(table) = value.get_ref() {
            return (self.check)(source, &path, table, self.tag);
        }
        let message = format!(
            "`{path}` is not a table: expected `[{path}]` with the settings of that {thing}"
        );
        vec![source.fault(Some(key.span()), message)]
    }

    fn check_list(&self, source: &Source, items: &toml::de::DeArray<'_>) -> Vec<Fault> {
        items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| Some((index, item.get_ref().as_table()?)))
            .flat_map(|(index, table)| {
                let path = format!("{}[{index}]", self.name);
                (self.check)(source, &path, table, self.tag)
            })
            .collect()
    }
}

type Key<'i> = Spanned<DeString<'i>>;

impl Schema {
    /// The configuration in `path` and in the `*.toml` files of the directory beside it that is
    /// named like it with `.d` (`runner.d` for `runner.toml`), by name; later files override
    /// earlier ones key by key. Without `path` that of `default_path`, if there is one, else
    /// nothing is set.
    ///
    /// # Errors
    /// All faults of all files, by file and line.
    pub fn load(&self, path: Option<&Path>) -> Result<Document, Vec<Fault>> {
        let default = Path::new(self.default_path);
        let paths = match path {
            Some(path) => files(path),
            None if default.exists() => files(default),
            None => Ok(Vec::new()),
        };
        let paths = paths.map_err(|fault| vec![fault])?;
        let (sources, faults): (Vec<_>, Vec<_>) = paths
            .iter()
            .map(|path| Source::read(path))
            .partition(Result::is_ok);
        let faults = faults.into_iter().filter_map(Result::err).collect();
        let sources = sources.into_iter().filter_map(Result::ok).collect();
        self.document(sources, faults, &paths)
    }

    /// The configuration in these files. It touches no file.
    ///
    /// # Errors
    /// All faults of all files, by file and line.
    pub fn read(&self, sources: Vec<Source>) -> Result<Document, Vec<Fault>> {
        let paths: Vec<_> = sources.iter().map(|source| source.path.clone()).collect();
        self.document(sources, Vec::new(), &paths)
    }

    fn document(
        &self,
        sources: Vec<Source>,
        mut faults: Vec<Fault>,
        paths: &[PathBuf],
    ) -> Result<Document, Vec<Fault>> {
        let mut merged = toml::Table::new();
        for source in &sources {
            match self.parse(source) {
                Ok(table) => merge(&mut merged, table),
                Err(found) => faults.extend(found),
            }
        }
        if faults.is_empty() {
            Ok(Document::new(*self, sources, merged))
        } else {
            sort(&mut faults, paths);
            Err(faults)
        }
    }

    fn parse(&self, source: &Source) -> Result<toml::Table, Vec<Fault>> {
        let (root, errors) = DeTable::parse_recoverable(&source.text);
        let mut faults: Vec<Fault> = errors
            .iter()
            .map(|error| source.fault(error.span(), error.message()))
            .collect();
        if faults.is_empty() {
            faults = self.check(source, root.get_ref());
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        toml::Table::deserialize(toml::de::Deserializer::from(root))
            .map_err(|error| vec![source.fault(error.span(), error.message())])
    }

    /// Every key of one file that does not fit, each on its own, so that all are found at once.
    fn check(&self, source: &Source, root: &DeTable<'_>) -> Vec<Fault> {
        root.iter()
            .flat_map(|(key, value)| {
                let section = self.section(key.get_ref());
                let is_list = section.is_some_and(|section| matches!(section.shape, Shape::List));
                match (section, value.get_ref()) {
                    (Some(section), DeValue::Table(table)) => {
                        section.check_table(source, key, table)
                    }
                    (Some(section), DeValue::Array(items))
                        if is_list && items.iter().all(|item| item.get_ref().is_table()) =>
                    {
                        section.check_list(source, items)
                    }
                    (None, DeValue::Table(_)) => self.check_other(source, key),
                    (None, DeValue::Array(items))
                        if self.other_tables == OtherTables::Refused
                            && keys::is_list_of_tables(items) =>
                    {
                        self.check_other(source, key)
                    }
                    _ => vec![self.outside(source, key)],
                }
            })
            .collect()
    }

    fn check_other(&self, source: &Source, key: &Key<'_>) -> Vec<Fault> {
        match self.other_tables {
            OtherTables::Allowed => Vec::new(),
            OtherTables::Refused => vec![source.fault(Some(key.span()), self.unknown(key))],
        }
    }

    fn outside(&self, source: &Source, key: &Key<'_>) -> Fault {
        let example = self.sections.first().map(Section::header);
        let message = format!(
            "key `{}` stands outside of any table: expected it below a line such as `{}`",
            key.get_ref(),
            example.unwrap_or_default()
        );
        source.fault(Some(key.span()), message)
    }

    fn unknown(&self, key: &Key<'_>) -> String {
        let name = key.get_ref();
        let known: Vec<String> = self
            .sections
            .iter()
            .map(|section| format!("`{}`", section.header()))
            .collect();
        let question = self
            .likely_meant(name)
            .map(|meant| format!("; was `[{meant}]` meant?"));
        format!(
            "unknown table `[{name}]`, expected {}{}",
            known.join(", "),
            question.unwrap_or_default()
        )
    }

    /// The section that somebody who wrote `name` may have meant; none if `name` is one.
    #[must_use]
    pub fn likely_meant(&self, name: &str) -> Option<&'static str> {
        if self.section(name).is_some() {
            return None;
        }
        self.sections
            .iter()
            .map(|section| (strsim::jaro_winkler(section.name, name), section.name))
            .filter(|(alike, _)| *alike >= LIKELY_TYPO)
            .max_by(|(one, _), (other, _)| one.total_cmp(other))
            .map(|(_, meant)| meant)
    }

    pub(crate) fn section(&self, name: &str) -> Option<&'static Section> {
        self.sections.iter().find(|section| section.name == name)
    }
}

/// By file in the order of reading and by line, whatever order the keys were looked at in.
pub(crate) fn sort(faults: &mut [Fault], paths: &[PathBuf]) {
    faults.sort_by_key(|fault| {
        let position = paths.iter().position(|path| *path == fault.path);
        (position, fault.line)
    });
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
