//! The configuration: one or more files, separated by a line `---`.
#![no_main]

use std::path::{Path, PathBuf};

use farm_fuzz::assert_message;
use libfuzzer_sys::fuzz_target;
use runner::config::{self, Config, DEFAULT_PATH, Source};

fuzz_target!(|text: &str| {
    let sources: Vec<Source> = text
        .split("\n---\n")
        .enumerate()
        .map(|(number, text)| Source {
            path: format!("/{number}.toml").into(),
            text: text.into(),
        })
        .collect();
    match config::from_sources(sources.clone()) {
        Ok(config) => check(&config, &sources),
        Err(faults) => {
            assert!(!faults.is_empty(), "refused without a fault");
            for fault in &faults {
                assert_message(&fault.to_string());
                let Some(source) = sources.iter().find(|source| source.path == fault.path) else {
                    assert_eq!(fault.path, Path::new(DEFAULT_PATH), "{fault}");
                    continue;
                };
                let lines = source.text.matches('\n').count() + 1;
                assert!(
                    fault.line.is_none_or(|line| (1..=lines).contains(&line)),
                    "{fault}"
                );
            }
            let again = config::from_sources(sources).expect_err("refused a moment ago");
            assert_eq!(again, faults, "faults differ from one reading to the next");
        }
    }
});

fn check(config: &Config, sources: &[Source]) {
    let paths: Vec<PathBuf> = sources.iter().map(|source| source.path.clone()).collect();
    assert_eq!(config.files, paths);
    for (name, value) in &config.table {
        if !name.contains('.') {
            assert_eq!(config.value(name), Some(value));
        }
        // What `runner get` would print.
        let _text = config::plain_text(value);
    }
    for task in config.tasks.values() {
        if let (Some(initial), Some(max)) = (task.backoff.initial, task.backoff.max) {
            assert!(initial <= max);
        }
        for key in &task.requires {
            assert!(!config::is_empty(
                config.value(key).expect("required, so it is there")
            ));
        }
    }
    assert!(config.telemetry.validate().is_empty());
    // Written and read again, it says the same.
    let text = toml::to_string(&config.table).expect("read from TOML");
    let source = Source {
        path: "/again.toml".into(),
        text,
    };
    let again = config::from_sources(vec![source]).expect("it was accepted before");
    assert_eq!(again.table.to_string(), config.table.to_string());
}
