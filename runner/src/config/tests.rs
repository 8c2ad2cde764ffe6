use std::path::PathBuf;
use std::time::Duration;

use super::*;

fn source(name: &str, text: &str) -> Source {
    Source {
        path: PathBuf::from(name),
        text: text.into(),
    }
}

fn faults(texts: &[(&str, &str)]) -> String {
    let sources = texts
        .iter()
        .map(|(name, text)| source(name, text))
        .collect();
    let faults = from_sources(sources).expect_err("this configuration is wrong");
    faults
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

fn config(texts: &[(&str, &str)]) -> Config {
    from_sources(
        texts
            .iter()
            .map(|(name, text)| source(name, text))
            .collect(),
    )
    .unwrap_or_else(|faults| panic!("{faults:?}"))
}

#[test]
fn nothing_set_is_a_working_configuration() {
    let config = config(&[]);
    assert_eq!(config.runner.max_attempts.get(), 5);
    assert_eq!(config.runner.grace_period, Duration::from_secs(10));
}

#[test]
fn every_fault_of_every_file_is_reported_at_once_with_its_line() {
    let main = r#"stray = 1

[runner]
timeuot = "5m"
max_attempts = 0
grace_period = 10

[runner.backoff]
initial = "soon"

[tasks.update]
may_halt = "yes"
drain_signal = "PLEASE"

[env]
NUMBER = 5
"#;
    let drop_in = "[tasks]\nbuild = true\n";
    insta::assert_snapshot!(faults(&[
        ("runner.toml", main),
        ("runner.d/50-site.toml", drop_in)
    ]));
}

#[test]
fn a_syntax_error_has_its_line() {
    insta::assert_snapshot!(faults(&[(
        "runner.toml",
        "[runner]\ntimeout = 5m\nstate_dir = \"/x\n"
    )]));
}

#[test]
fn contradictions_are_reported_at_the_key_that_was_set_last() {
    let main = r#"[runner.backoff]
initial = "10m"
max = "1m"

[tasks.update]
requires = ["hg.tools_repo", "hg.share"]
user = ""

[hg]
share = ""
"#;
    insta::assert_snapshot!(faults(&[("runner.toml", main)]));
}

#[test]
fn a_control_character_in_a_key_cannot_forge_a_line() {
    let said = faults(&[(
        "runner.toml",
        "[runner]\n\"x\\nerror: all is well\\u001b[2J\" = 1\n",
    )]);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!said.contains(char::is_control), "{said:?}");
}

#[test]
fn later_files_override_single_keys() {
    let config = config(&[
        (
            "runner.toml",
            "[runner]\ntimeout = \"5m\"\nmax_attempts = 3\n[tasks.a]\nmay_halt = true\n",
        ),
        (
            "runner.d/1.toml",
            "[runner]\nmax_attempts = 7\n[tasks.a]\ntimeout = \"1s\"\n",
        ),
    ]);
    assert_eq!(config.runner.timeout, Duration::from_secs(300));
    assert_eq!(config.runner.max_attempts.get(), 7);
    assert!(config.tasks["a"].may_halt);
    assert_eq!(config.tasks["a"].timeout, Some(Duration::from_secs(1)));
}

#[test]
fn any_other_table_belongs_to_the_tasks() {
    let config = config(&[(
        "runner.toml",
        "[hg]\ntools_repo = \"https://x\"\n[telemtry]\nx = 1\n",
    )]);
    assert_eq!(
        config.value("hg.tools_repo").map(plain_text).as_deref(),
        Some("https://x")
    );
    assert_eq!(config.value("hg.gone"), None);
    assert_eq!(config.value("hg.tools_repo.deeper"), None);
    assert_eq!(config.likely_typos(), [("telemtry", "telemetry")]);
}

#[test]
fn values_are_printed_as_a_script_wants_them() {
    let config = config(&[(
        "runner.toml",
        "[a]\ntext = \"x y\"\nnumber = 5\nyes = true\nlist = [\"one\", \"two\"]\nday = 2026-11-20\n",
    )]);
    let printed = |key| config.value(key).map(plain_text).unwrap_or_default();
    assert_eq!(printed("a.text"), "x y");
    assert_eq!(printed("a.number"), "5");
    assert_eq!(printed("a.yes"), "true");
    assert_eq!(printed("a.list"), "one\ntwo");
    assert_eq!(printed("a.day"), "2026-11-20");
}

#[test]
fn a_command_line_is_text_or_a_list() {
    let hook = |text: &str| {
        config(&[("runner.toml", &format!("[runner]\ntask_hook = {text}\n"))])
            .runner
            .task_hook
            .unwrap()
    };
    assert_eq!(hook("\"runner record\""), hook("[\"runner\", \"record\"]"));
    assert_eq!(hook("[\"/a b\"]").program, "/a b");
    assert!(faults(&[("r", "[runner]\ntask_hook = \" \"\n")]).contains("expected a program"));
}
