//! One reboot pattern (the first line) and one name (the rest): answered in bounded time, whatever
//! both are.
#![no_main]

use std::path::Path;
use std::time::Duration;

use farm_fuzz::{assert_message, processor_time};
use libfuzzer_sys::fuzz_target;
use runner::reboot::RebootList;

/// A match of a hostile pattern takes up to 30 ms in a release build; this one is instrumented and
/// hardly optimised. Unbounded would be hours.
const LONGEST: Duration = Duration::from_secs(3);

fuzz_target!(|text: &str| {
    let (pattern, name) = text.split_once('\n').unwrap_or((text, ""));
    let pattern = toml::Value::from(pattern);
    let list = format!("[[pattern]]\npattern = {pattern}\nreason = 'r'\nadded = '2026-11-20'\n");
    let (list, compiling) = processor_time(|| RebootList::parse(&list, Path::new("/jobs.toml")));
    assert!(compiling < LONGEST, "compiled in {compiling:?}: {pattern}");
    let Ok(list) = list else { return };
    let [entry] = &list.patterns[..] else {
        panic!("one pattern became {}", list.patterns.len());
    };
    let (found, matching) = processor_time(|| entry.is_match(name));
    assert!(matching < LONGEST, "matched in {matching:?}: {pattern}");
    match found {
        // In either case, and anywhere: what stands around a name cannot hide a plain word in it.
        Ok(found) if pattern.as_str().is_some_and(is_plain) => {
            let plain = pattern.as_str().unwrap_or_default().to_ascii_lowercase();
            assert_eq!(
                found,
                name.to_ascii_lowercase().contains(&plain),
                "{pattern} in {name:?}"
            );
        }
        Ok(_) => {}
        Err(unweighable) => assert_message(&unweighable.to_string()),
    }
});

/// Letters that are themselves in a regular expression, and whose only other case is ASCII
/// (`k` and `s` have more: the Kelvin sign and the long s).
fn is_plain(pattern: &str) -> bool {
    pattern
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() && !b"kKsS".contains(&byte))
}
