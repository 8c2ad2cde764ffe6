//! From the files to a [`Config`].

use std::collections::BTreeMap;
use std::path::Path;

use farm_config::{Document, Fault, OtherTables, Schema, Section, Source};

use super::contradictions::contradictions;
use super::{Config, DEFAULT_PATH, RunnerSettings, TaskSettings};

/// The tables with a meaning for `runner` itself; every other table belongs to the tasks.
const SCHEMA: Schema = Schema {
    default_path: DEFAULT_PATH,
    sections: &[
        Section::one::<RunnerSettings>("runner"),
        Section::named::<TaskSettings>("tasks", "task"),
        Section::one::<BTreeMap<String, String>>("env"),
        Section::one::<farm_telemetry::Config>("telemetry"),
        Section::one::<crate::spool::JobsConfig>("jobs"),
        Section::one::<crate::reboot::Policy>("reboot"),
        Section::one::<crate::fleet::FleetConfig>("fleet"),
    ],
    other_tables: OtherTables::Allowed,
};

/// The configuration when nobody named a file: [`DEFAULT_PATH`] if it exists, else the defaults.
///
/// # Errors
/// All faults of the files, at once.
pub fn load_default() -> Result<Config, Vec<Fault>> {
    config(&SCHEMA.load(None)?)
}

/// The configuration in `path` and in the `*.toml` files of the directory beside it that is named
/// like it with `.d` (`runner.d` for `runner.toml`), by name; later files override earlier ones key by key.
///
/// # Errors
/// All faults of all files, at once.
pub fn load(path: &Path) -> Result<Config, Vec<Fault>> {
    config(&SCHEMA.load(Some(path))?)
}

/// The configuration in these files. Public for tests and fuzzing: it touches no file.
///
/// # Errors
/// All faults of all files, at once.
pub fn from_sources(sources: Vec<Source>) -> Result<Config, Vec<Fault>> {
    config(&SCHEMA.read(sources)?)
}

fn config(document: &Document) -> Result<Config, Vec<Fault>> {
    let config = document.typed(|tables| Config {
        runner: tables.one("runner"),
        tasks: tables.named("tasks"),
        env: tables.one("env"),
        telemetry: tables.one("telemetry"),
        jobs: tables.one("jobs"),
        reboot: tables.one("reboot"),
        fleet: tables.one("fleet"),
        table: document.table().clone(),
        files: document.files(),
    })?;
    document.agree(contradictions(&config))?;
    Ok(config)
}

impl Config {
    /// Tables left to the tasks whose names look like one of ours, with the name that may be meant.
    #[must_use]
    pub fn likely_typos(&self) -> Vec<(&str, &'static str)> {
        self.table
            .keys()
            .filter_map(|name| Some((name.as_str(), SCHEMA.likely_meant(name)?)))
            .collect()
    }
}
