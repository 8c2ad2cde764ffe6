//! The report of a task. An odd first byte: the task is trusted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use runner::report::{HOST_KEYS, JOB_KEYS, Report};

fuzz_target!(|data: &[u8]| {
    let Some((first, content)) = data.split_first() else {
        return;
    };
    let trusted = first % 2 == 1;
    let report = Report::parse(content, trusted);
    for key in JOB_KEYS.into_iter().chain(HOST_KEYS) {
        let Some(value) = report.value(key) else {
            continue;
        };
        assert!(
            trusted || JOB_KEYS.contains(&key),
            "`{key}` of a task that is not trusted"
        );
        assert!(!value.contains(char::is_control), "{value:?}");
        assert!((1..=1024).contains(&value.chars().count()), "{value:?}");
        assert_eq!(value.trim(), value);
        let given = String::from_utf8_lossy(content);
        assert!(
            given
                .lines()
                .any(|line| line.starts_with(&format!("{key}="))),
            "`{key}` was not given"
        );
    }
    let _number: u32 = report.number("sweep.leftovers");
    let _number: u64 = report.number("sweep.duration_ms");
    for refused in &report.refused {
        assert!(!refused.contains(char::is_control), "{refused:?}");
    }
});
