//! A reboot list, and names that are weighed against it.
#![no_main]

use std::path::Path;

use farm_fuzz::assert_message;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use runner::reboot::RebootList;

fuzz_target!(|text: &str| {
    let file = Path::new("/lists/jobs.toml");
    match RebootList::parse(text, file) {
        Ok(list) => check(&list, text),
        Err(faults) => {
            assert!(!faults.is_empty(), "refused without a fault");
            let lines = text.matches('\n').count() + 1;
            for fault in faults {
                assert_eq!(fault.file, file);
                assert!(
                    fault.line.is_none_or(|line| (1..=lines).contains(&line)),
                    "{fault}"
                );
                assert_message(&fault.message);
            }
        }
    }
});

fn check(list: &RebootList, text: &str) {
    let now: Timestamp = "2026-11-20T12:00:00Z".parse().expect("a time");
    for entry in &list.patterns {
        assert!(!entry.pattern().trim().is_empty() && !entry.reason.trim().is_empty());
        assert!(
            text.lines()
                .nth(entry.line() - 1)
                .is_some_and(|line| line.contains("[["))
        );
        assert!(!entry.is_expired(now) || entry.expires.is_some());
    }
    for name in [
        "",
        "Linux x86-64 mochitest-1",
        text.lines().next().unwrap_or_default(),
    ] {
        let Ok(first) = list.first_match(name, now) else {
            continue;
        };
        let expected = list.patterns.iter().find(|entry| {
            !entry.is_expired(now) && entry.is_match(name).expect("weighed a moment ago")
        });
        assert_eq!(
            first.map(|entry| entry.line()),
            expected.map(|entry| entry.line())
        );
    }
}
