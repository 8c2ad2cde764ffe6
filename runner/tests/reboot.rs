//! The verbs `reboot-decision` and `blacklist`: what they print, answer and change.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use clap::Parser as _;
use jiff::Timestamp;
use runner::reboot::{
    BlacklistArgs, DecisionArgs, Lists, Policy, Surroundings, run_blacklist, run_decision,
};
use runner::state::{Job, RunningAttempt, State};
use tempfile::TempDir;

const HOST: &str = "tst-linux64-spot-417";

/// A verb as it is typed.
#[derive(Debug, clap::Parser)]
enum Verb {
    RebootDecision(DecisionArgs),
    Blacklist(BlacklistArgs),
}

/// What a verb answered.
#[derive(Debug)]
struct Answer {
    code: u8,
    out: String,
    err: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

/// A host with lists and a state of its own.
struct Farm {
    directory: TempDir,
    policy: Policy,
}

impl Farm {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["blacklists", "state"] {
            fs_err::create_dir(directory.path().join(name)).unwrap();
        }
        let policy = Policy {
            blacklists: directory.path().join("blacklists"),
            ..Policy::default()
        };
        let farm = Self { directory, policy };
        farm.write("hosts.toml", "");
        farm.write("jobs.toml", "# jobs\n");
        farm
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, list: &str, text: &str) {
        fs_err::write(self.policy.blacklists.join(list), text).unwrap();
    }

    fn read(&self, list: &str) -> String {
        fs_err::read_to_string(self.policy.blacklists.join(list)).unwrap()
    }

    fn remember(&self, state: &State) {
        state.save(&self.path("state")).unwrap();
    }

    fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            policy: &self.policy,
            state_dir: Path::new(""),
            host: HOST,
            report: None,
            now: now(),
        }
    }

    fn run(&self, words: &[&str]) -> Answer {
        self.run_with(words, None)
    }

    fn run_with(&self, words: &[&str], report: Option<&Path>) -> Answer {
        let state_dir = self.path("state");
        let surroundings = Surroundings {
            state_dir: &state_dir,
            report,
            ..self.surroundings()
        };
        let verb = Verb::try_parse_from(["runner"].iter().chain(words)).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = match verb {
            Verb::RebootDecision(args) => run_decision(&args, &surroundings, &mut out, &mut err),
            Verb::Blacklist(args) => run_blacklist(&args, &surroundings, &mut out, &mut err),
        };
        // Paths of this test differ from run to run.
        let place = self.directory.path().display().to_string();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(&place, "/farm");
        Answer {
            code,
            out: text(out),
            err: text(err),
        }
    }
}

fn now() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

fn entry(pattern: &str) -> String {
    format!(
        "[[pattern]]\npattern = '{pattern}'\nreason = \"leaves the clipboard owned\"\nadded = 2015-01-16\n"
    )
}

fn job(result: &str) -> Job {
    Job {
        name: "Linux64 mochitest-1".into(),
        result: result.into(),
        run_id: "7".into(),
    }
}

fn attempt(run_id: &str) -> RunningAttempt {
    RunningAttempt {
        boot_id: "b".into(),
        run_id: run_id.into(),
        task: "99-reboot-decision".into(),
        attempt: 1,
        max_attempts: 5,
        cgroup: None,
    }
}

#[test]
fn a_good_job_goes_on_with_exit_code_0() {
    let farm = Farm::new();
    let answer = farm.run(&["reboot-decision", "--job", "x", "--last-result", "success"]);
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    assert_eq!(answer.out, "go on: nothing asks for a reboot\n");
}

#[test]
fn a_listed_job_halts_with_exit_code_2_and_names_the_pattern() {
    let farm = Farm::new();
    farm.write("jobs.toml", &entry(".*MochiTest.*"));
    let words = [
        "reboot-decision",
        "--job",
        "Linux64 mochitest-1",
        "--last-result",
        "success",
    ];
    let answer = farm.run(&[&words[..], &["--format", "json"]].concat());
    assert_eq!(answer.code, 2);
    let json = answer.json();
    assert_eq!(json["reboot"], true);
    assert_eq!(json["reason"], "job_listed");
    assert_eq!(json["pattern"], ".*MochiTest.*");
    insta::assert_snapshot!(farm.run(&words).out);
}

#[test]
fn flags_are_the_only_facts_and_no_job_is_no_job_found() {
    let farm = Farm::new();
    farm.remember(&State {
        job: Some(job("success")),
        ..State::default()
    });
    let reason = |words: &[&str]| {
        let words = [&["reboot-decision", "--format", "json"], words].concat();
        farm.run(&words).json()["reason"].clone()
    };
    assert_eq!(reason(&[]), serde_json::Value::Null);
    assert_eq!(reason(&["--host", "h"]), "no_job_found");
    assert_eq!(reason(&["--last-result", "success"]), "no_job_found");
    assert_eq!(reason(&["--last-result", "failure"]), "job_failed");
    assert_eq!(
        reason(&["--job", "j", "--last-result", "cancelled"]),
        "job_failed"
    );
    assert_eq!(reason(&["--job", "j"]), serde_json::Value::Null);
}

#[test]
fn another_directory_of_lists_can_be_weighed() {
    let farm = Farm::new();
    let other = tempfile::tempdir().unwrap();
    fs_err::write(other.path().join("hosts.toml"), entry("spot-4")).unwrap();
    fs_err::write(other.path().join("jobs.toml"), "").unwrap();
    let other = other.path().to_str().unwrap();
    let words = ["reboot-decision", "--job", "j", "--blacklists", other];
    assert_eq!(farm.run(&words).code, 2);
    assert_eq!(farm.run(&words[..3]).code, 0);
}

#[test]
fn lists_that_cannot_be_used_halt_and_say_every_fault() {
    let farm = Farm::new();
    farm.write("hosts.toml", "[[pattern]]\npattern = '('\nreason = ''\n");
    fs_err::remove_file(farm.policy.blacklists.join("jobs.toml")).unwrap();
    let answer = farm.run(&["reboot-decision", "--job", "j"]);
    assert_eq!(answer.code, 2);
    insta::assert_snapshot!(format!("{}---\n{}", answer.out, answer.err));
    let json = farm
        .run(&["reboot-decision", "--job", "j", "--format", "json"])
        .json();
    assert_eq!(json["reason"], "list_invalid");
    assert_eq!(json["faults"].as_array().unwrap().len(), 4);
    let missing = [
        "reboot-decision",
        "--job",
        "j",
        "--blacklists",
        "/nonexistent",
    ];
    assert_eq!(farm.run(&missing).code, 2);
}

#[test]
fn without_flags_the_state_gives_the_facts() {
    let farm = Farm::new();
    let reason = |state: &State| {
        farm.remember(state);
        farm.run(&["reboot-decision", "--format", "json"]).json()["reason"].clone()
    };
    let good = State {
        job: Some(job("success")),
        attempt: Some(attempt("7")),
        sweep: Some("clean".into()),
        ..State::default()
    };
    assert_eq!(reason(&good), serde_json::Value::Null);
    assert_eq!(
        reason(&State {
            job: Some(job("failure")),
            ..good.clone()
        }),
        "job_failed"
    );
    assert_eq!(
        reason(&State {
            sweep: Some("dirty".into()),
            ..good.clone()
        }),
        "not_clean"
    );
    assert_eq!(
        reason(&State {
            job: None,
            ..good.clone()
        }),
        "no_job_found"
    );
    // The job of run 7 is not the job of run 8.
    assert_eq!(
        reason(&State {
            attempt: Some(attempt("8")),
            ..good
        }),
        "no_job_found"
    );
}

#[test]
fn the_run_in_progress_counts_as_a_run() {
    let mut farm = Farm::new();
    farm.policy.max_runs = std::num::NonZeroU64::new(30);
    let mut state = State {
        job: Some(job("success")),
        attempt: Some(attempt("7")),
        runs_since_boot: 28,
        ..State::default()
    };
    farm.remember(&state);
    assert_eq!(farm.run(&["reboot-decision"]).code, 0);
    state.runs_since_boot = 29;
    farm.remember(&state);
    assert_eq!(farm.run(&["reboot-decision"]).code, 2);
}

#[test]
fn a_spent_budget_goes_on_and_names_what_it_holds_back() {
    let farm = Farm::new();
    let minute = jiff::SignedDuration::from_mins(1);
    farm.remember(&State {
        job: Some(job("failure")),
        reboots: vec![now() - minute; 4],
        ..State::default()
    });
    let report = farm.path("report");
    let answer = farm.run_with(&["reboot-decision"], Some(&report));
    assert_eq!(answer.code, 0);
    insta::assert_snapshot!(answer.out);
    let json = farm.run(&["reboot-decision", "--format", "json"]).json();
    assert_eq!(json["reboot"], false);
    assert_eq!(json["reason"], "budget_spent");
    assert_eq!(json["held_back"], "job_failed");
    assert_eq!(
        fs_err::read_to_string(report).unwrap(),
        "reboot.decision=go_on\nreboot.reason=budget_spent\nreboot.job=Linux64 mochitest-1\n"
    );
}

#[test]
fn the_report_has_one_line_per_value_whatever_the_job_is_called() {
    let farm = Farm::new();
    farm.write("jobs.toml", &entry("mochi"));
    let report = farm.path("report");
    fs_err::write(&report, "earlier=1\n").unwrap();
    let words = ["reboot-decision", "--job", "mochi\nreboot.decision=go_on"];
    assert_eq!(farm.run_with(&words, Some(&report)).code, 2);
    assert_eq!(
        fs_err::read_to_string(report).unwrap(),
        "earlier=1\nreboot.decision=reboot\nreboot.reason=job_listed\nreboot.pattern=mochi\nreboot.job=mochi reboot.decision=go_on\n"
    );
}

#[test]
fn the_state_is_not_written() {
    let farm = Farm::new();
    farm.remember(&State {
        job: Some(job("failure")),
        ..State::default()
    });
    let before = fs_err::read(farm.path("state/state.json")).unwrap();
    assert_eq!(farm.run(&["reboot-decision"]).code, 2);
    assert_eq!(fs_err::read(farm.path("state/state.json")).unwrap(), before);
}

#[test]
fn facts_that_cannot_be_read_are_an_error_and_no_decision() {
    let farm = Farm::new();
    fs_err::write(farm.path("state/state.json"), "{\"version\": 999}").unwrap();
    let answer = farm.run(&["reboot-decision"]);
    assert_eq!((answer.code, answer.out.as_str()), (1, ""));
    assert!(answer.err.contains("has version 999"), "{}", answer.err);
}

#[test]
fn blacklist_test_says_which_entry_matches_and_what_it_cost() {
    let farm = Farm::new();
    farm.write(
        "jobs.toml",
        &format!("# top\n\n{}{}", entry("talos"), entry("mochitest")),
    );
    farm.remember(&State {
        reboots_by_pattern: [("mochitest".to_owned(), 12)].into(),
        ..State::default()
    });
    let answer = farm.run(&["blacklist", "test", "Linux64 Mochitest-1"]);
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    insta::assert_snapshot!(answer.out);
    assert_eq!(farm.run(&["blacklist", "test", "reftest"]).code, 1);
    let words = [
        "blacklist",
        "test",
        "Linux64 Mochitest-1",
        "--list",
        "hosts",
    ];
    assert_eq!(farm.run(&words).code, 1);
}

#[test]
fn blacklist_list_shows_counts_and_marks_what_expired() {
    let farm = Farm::new();
    let expired = format!("{}expires = 2026-11-20\n", entry("talos"));
    let ends = format!("{}expires = 2026-11-21\n", entry("mochitest"));
    farm.write("jobs.toml", &format!("{expired}{ends}"));
    farm.write("hosts.toml", &entry("spot-4"));
    farm.remember(&State {
        reboots_by_pattern: [("mochitest".to_owned(), 12)].into(),
        ..State::default()
    });
    insta::assert_snapshot!(farm.run(&["blacklist", "list"]).out);
    let rows = farm
        .run(&["blacklist", "list", "--list", "jobs", "--format", "json"])
        .json();
    assert_eq!(rows[0]["expired"], true);
    assert_eq!(rows[1]["expired"], false);
    assert_eq!(rows[1]["reboots"], 12);
    assert_eq!(rows.as_array().unwrap().len(), 2);
}

#[test]
fn blacklist_add_keeps_comments_order_mode_and_owner() {
    let farm = Farm::new();
    let before = format!("# top\n\n{}# end", entry("talos"));
    farm.write("jobs.toml", &before);
    let file = farm.policy.blacklists.join("jobs.toml");
    fs_err::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let owner = |file: &Path| {
        let metadata = fs_err::metadata(file).unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&file, Some(0), Some(12)).unwrap();
    }
    let (uid, gid, mode) = owner(&file);
    let pattern = r#"^Linux (?!try)\S+ "debug"'s"#;
    let words = [
        "blacklist",
        "add",
        pattern,
        "--reason",
        "says \"no\"",
        "--list",
        "jobs",
    ];
    assert_eq!(
        farm.run(&[&words[..], &["--expires", "2026-11-21"]].concat())
            .code,
        0
    );
    let after = farm.read("jobs.toml");
    assert!(
        after.starts_with(&format!("{before}\n\n[[pattern]]\n")),
        "{after}"
    );
    assert_eq!(owner(&file), (uid, gid, mode));
    let lists = Lists::load(&farm.policy.blacklists).unwrap();
    let new = &lists.jobs.patterns[1];
    assert_eq!(new.pattern(), pattern);
    assert_eq!(new.reason, "says \"no\"");
    assert_eq!(new.added.to_string(), "2026-11-20");
    assert_eq!(new.expires.unwrap().to_string(), "2026-11-21");
}

#[test]
fn the_shipped_lists_can_be_added_to() {
    let farm = Farm::new();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../blacklists/jobs.toml");
    let text = fs_err::read_to_string(shipped).unwrap();
    farm.write("jobs.toml", &text);
    let words = ["blacklist", "add", "x", "--reason", "r", "--list", "jobs"];
    assert_eq!(farm.run(&words).code, 0);
    assert!(farm.read("jobs.toml").starts_with(&text));
}

#[test]
fn what_cannot_be_added_is_refused_with_78_and_changes_nothing() {
    let farm = Farm::new();
    farm.write("jobs.toml", &entry("talos"));
    let before = farm.read("jobs.toml");
    let add = |pattern: &str, more: &[&str]| {
        let words = ["blacklist", "add", pattern, "--list", "jobs"];
        let answer = farm.run(&[&words[..], more].concat());
        assert_eq!(answer.code, 78, "{}", answer.err);
        assert_eq!(farm.read("jobs.toml"), before);
        answer.err
    };
    let why = ["--reason", "r"];
    let said = [
        add("(", &why),
        add("", &why),
        add("talos", &why),
        add("x", &["--reason", " "]),
        add("x", &["--reason", "r", "--expires", "2026-11-20"]),
    ];
    insta::assert_snapshot!(said.concat());
}

#[test]
fn a_list_that_is_invalid_is_not_changed() {
    let farm = Farm::new();
    farm.write("jobs.toml", "[[pattern]]\n");
    let add = ["blacklist", "add", "x", "--reason", "r", "--list", "jobs"];
    assert_eq!(farm.run(&add).code, 78);
    assert_eq!(farm.read("jobs.toml"), "[[pattern]]\n");
    fs_err::remove_file(farm.policy.blacklists.join("jobs.toml")).unwrap();
    assert_eq!(farm.run(&add).code, 78);
    assert!(!farm.policy.blacklists.join("jobs.toml").exists());
    let nowhere = [&add[..], &["--blacklists", "/nonexistent"]].concat();
    assert_eq!(farm.run(&nowhere).code, 78);
}

#[test]
fn blacklist_expire_ends_an_entry_at_once_and_keeps_it() {
    let farm = Farm::new();
    let ends = format!(
        "{}expires = 2030-01-01 # after the move\n",
        entry("mochitest")
    );
    farm.write(
        "jobs.toml",
        &format!("# top\n{}\n{ends}# end\n", entry("talos")),
    );
    for pattern in ["talos", "mochitest"] {
        assert_eq!(farm.run(&["blacklist", "test", pattern]).code, 0);
        let words = ["blacklist", "expire", pattern, "--list", "jobs"];
        assert_eq!(farm.run(&words).code, 0);
        assert_eq!(farm.run(&["blacklist", "test", pattern]).code, 1);
        // A second time says that it is done.
        assert_eq!(farm.run(&words).code, 78);
    }
    insta::assert_snapshot!(farm.read("jobs.toml"));
    // It may come back, as an entry of its own.
    let add = [
        "blacklist",
        "add",
        "talos",
        "--reason",
        "again",
        "--list",
        "jobs",
    ];
    assert_eq!(farm.run(&add).code, 0);
    assert_eq!(farm.run(&["blacklist", "test", "talos"]).code, 0);
}

#[test]
fn a_pattern_that_is_not_there_cannot_expire() {
    let farm = Farm::new();
    let answer = farm.run(&["blacklist", "expire", "x", "--list", "hosts"]);
    assert_eq!(answer.code, 78);
    insta::assert_snapshot!(answer.err);
}

#[test]
fn twenty_editors_at_once_lose_nothing() {
    let farm = Farm::new();
    let editors: Vec<_> = (0..20)
        .map(|number| {
            Command::new(env!("CARGO_BIN_EXE_runner"))
                .args([
                    "blacklist",
                    "add",
                    &format!("editor-{number}"),
                    "--list",
                    "jobs",
                ])
                .args(["--reason", "r", "--blacklists"])
                .arg(&farm.policy.blacklists)
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut expected: Vec<_> = (0..20).map(|number| format!("editor-{number}")).collect();
    for mut editor in editors {
        assert!(editor.wait().unwrap().success());
    }
    let lists = Lists::load(&farm.policy.blacklists).unwrap();
    let mut found: Vec<_> = lists
        .jobs
        .patterns
        .iter()
        .map(|entry| entry.pattern().to_owned())
        .collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    assert!(farm.read("jobs.toml").starts_with("# jobs\n"));
    // No half-written file is left beside them.
    assert_eq!(
        fs_err::read_dir(&farm.policy.blacklists).unwrap().count(),
        2
    );
}
