//! What the types cannot check: keys that contradict each other, and names of what is not there.

use farm_config::KeyFault;

use super::{BackoffSettings, Config, is_empty};

/// All that is found, each with the key to point at.
pub(super) fn contradictions(config: &Config) -> Vec<KeyFault> {
    let own = backoffs_that_fall(config)
        .chain(unmet_requirements(config))
        .chain(empty_names(config))
        .chain(impossible_variables(config));
    let telemetry = config
        .telemetry
        .validate()
        .into_iter()
        .map(|fault| KeyFault::new(format!("telemetry.{}", fault.key), fault.to_string()));
    let jobs = config
        .jobs
        .validate()
        .into_iter()
        .map(|fault| KeyFault::new(fault.key, fault.to_string()));
    let fleet = config.fleet.validate();
    own.chain(telemetry).chain(jobs).chain(fleet).collect()
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
                KeyFault::new(format!("{path}.initial"), message)
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
        Some(KeyFault::new(format!("tasks.{name}.requires"), message))
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
            KeyFault::new(path, message)
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
            KeyFault::new(path, message)
        })
}
