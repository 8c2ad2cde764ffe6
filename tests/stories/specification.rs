//! SPECIFICATION.md names a test for each promise, and `docs/provisioner-faults.md` for each fault;
//! this one keeps those names true.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn every_test_that_the_specification_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut defined = BTreeSet::new();
    for directory in ["runner", "cleanslate", "provisioner", "lib", "tests"] {
        collect_functions(&root.join(directory), &mut defined);
    }
    for (document, least) in [("SPECIFICATION.md", 50), ("docs/provisioner-faults.md", 20)] {
        let text = fs_err::read_to_string(root.join(document)).unwrap();
        let named = named_tests(&text);
        assert!(
            named.len() >= least,
            "few names found in {document}: {named:?}"
        );
        let missing: Vec<_> = named.difference(&defined).collect();
        assert!(missing.is_empty(), "no such test: {missing:?}");
    }
}

/// What stands in backticks behind an arrow and looks like the name of a test.
fn named_tests(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| Some(line.split_once('→')?.1))
        .flat_map(|keepers| keepers.split('`').skip(1).step_by(2))
        .filter(|name| {
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        })
        .map(String::from)
        .collect()
}

fn collect_functions(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in fs_err::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs_err::read_to_string(&path).unwrap();
            let functions = text
                .lines()
                .filter_map(|line| line.trim_start().split_once("fn "));
            names
                .extend(functions.filter_map(|(_, rest)| Some(rest.split_once('(')?.0.to_owned())));
        }
    }
}
