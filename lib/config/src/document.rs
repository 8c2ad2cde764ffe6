//! All files together: what they say, as types, and which line said it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::keys::one_line;
use crate::schema::sort;
use crate::{Fault, KeyFault, Schema, Source};

/// Files whose keys were checked one by one, merged.
#[derive(Clone, Debug)]
pub struct Document {
    schema: Schema,
    sources: Vec<Source>,
    table: toml::Table,
}

impl Document {
    pub(crate) fn new(schema: Schema, sources: Vec<Source>, table: toml::Table) -> Self {
        Self {
            schema,
            sources,
            table,
        }
    }

    /// All tables, merged, those of nobody in the [`Schema`] too.
    #[must_use]
    pub fn table(&self) -> &toml::Table {
        &self.table
    }

    /// The files, in the order of reading.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.sources
            .iter()
            .map(|source| source.path.clone())
            .collect()
    }

    /// What `make` makes of the tables.
    ///
    /// # Errors
    /// What the tables lack: keys without default that no file sets.
    pub fn typed<C>(&self, make: impl FnOnce(&mut Tables<'_>) -> C) -> Result<C, Vec<Fault>> {
        let mut tables = Tables {
            document: self,
            faults: Vec::new(),
        };
        let config = make(&mut tables);
        self.sorted(tables.faults).map(|()| config)
    }

    /// Nothing, if there is no fault that only the program can see.
    ///
    /// # Errors
    /// These faults, each with the file and line that sets its key.
    pub fn agree(&self, found: impl IntoIterator<Item = KeyFault>) -> Result<(), Vec<Fault>> {
        let faults = found
            .into_iter()
            .map(|KeyFault { key, message }| self.locate(&key, message))
            .collect();
        self.sorted(faults)
    }

    /// The fault at the line that sets the path `key`, or as much of it as is set; the last such
    /// line, because it is the one that counts.
    #[must_use]
    pub fn locate(&self, key: &str, message: impl Into<String>) -> Fault {
        let deepest = self
            .sources
            .iter()
            .filter_map(|source| source.find(key).map(|(depth, line)| (depth, line, source)))
            .max_by_key(|(depth, _, _)| *depth);
        match deepest {
            Some((_, line, source)) => Fault::at(&source.path, Some(line), message),
            None => Fault::of_file(self.last_file(), message),
        }
    }

    fn last_file(&self) -> &Path {
        match self.sources.last() {
            Some(source) => &source.path,
            None => Path::new(self.schema.default_path),
        }
    }

    fn sorted(&self, mut faults: Vec<Fault>) -> Result<(), Vec<Fault>> {
        if faults.is_empty() {
            return Ok(());
        }
        sort(&mut faults, &self.files());
        Err(faults)
    }
}

/// The tables of a [`Document`], to be made into types.
///
/// Faults are collected; what stands in for a value that has one is never seen by anybody.
#[derive(Debug)]
pub struct Tables<'d> {
    document: &'d Document,
    faults: Vec<Fault>,
}

impl Tables<'_> {
    /// `[name]`, or the default if no file has it.
    pub fn one<T: DeserializeOwned + Default>(&mut self, name: &str) -> T {
        self.value(name)
            .and_then(|value| self.read(name, value))
            .unwrap_or_default()
    }

    /// Each `[name.NAME]`.
    pub fn named<T: DeserializeOwned>(&mut self, name: &str) -> BTreeMap<String, T> {
        let Some(toml::Value::Table(table)) = self.value(name) else {
            return BTreeMap::new();
        };
        table
            .into_iter()
            .filter_map(|(key, value)| {
                let settings = self.read(&format!("{name}.{key}"), value)?;
                Some((key, settings))
            })
            .collect()
    }

    /// Each `[[name]]`, in order.
    pub fn list<T: DeserializeOwned>(&mut self, name: &str) -> Vec<T> {
        let Some(toml::Value::Array(items)) = self.value(name) else {
            return Vec::new();
        };
        items
            .into_iter()
            .enumerate()
            .filter_map(|(index, value)| self.read(&format!("{name}[{index}]"), value))
            .collect()
    }

    fn value(&self, name: &str) -> Option<toml::Value> {
        debug_assert!(
            self.document.schema.section(name).is_some(),
            "`{name}` is in no section of the schema"
        );
        self.document.table.get(name).cloned()
    }

    fn read<T: DeserializeOwned>(&mut self, path: &str, value: toml::Value) -> Option<T> {
        match T::deserialize(value) {
            Ok(read) => Some(read),
            Err(error) => {
                // With the key it is `in`: a merged value has no line of its own to show.
                let message = format!("`{path}`: {}", one_line(&error.to_string()));
                self.faults.push(self.document.locate(path, message));
                None
            }
        }
    }
}
