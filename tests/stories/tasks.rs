//! The tasks as shipped, each alone: what they refuse, what they call, and with what they end.
//!
//! The configuration is read by the real `runner -g`. Its verbs that act, and the programs a task
//! calls, are stand-ins in `PATH` that write down how they were called.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use farm_tests::host::have_root;
use farm_tests::place::Place;
use farm_tests::{programs, wait};

/// Passes `-g` on to the real program, notes any other verb, and ends as `verb_code` says.
const RUNNER: &str = r#"#!/bin/sh
here=${0%/*}
case $1 in
-g) exec "$here/../real-runner" --config "$here/../runner.toml" "$@" ;;
*)
    printf '%s\n' "runner $*" >>"$here/../calls"
    exit "$(cat "$here/../verb_code" 2>/dev/null || echo 0)"
    ;;
esac
"#;

/// Notes how it was called, and ends as `NAME_code` says for its first argument or in general.
const STAND_IN: &str = r#"#!/bin/sh
here=${0%/*}
name=${0##*/}
printf '%s\n' "$name $*" >>"$here/../calls"
for code in "$here/../${name}_code.$1" "$here/../${name}_code"; do
    if [ -e "$code" ]; then exit "$(cat "$code")"; fi
done
"#;

/// One task with what it finds around it.
struct Bench {
    place: Place,
}

/// How a task ended.
struct Ended {
    code: Option<i32>,
    words: String,
    calls: String,
    reported: String,
}

impl Bench {
    fn new(configuration: &str) -> Self {
        let place = Place::new("tasks-");
        place.ship_tasks();
        place.make_directory("bin");
        place.write_executable("bin/runner", RUNNER);
        for name in ["cleanslate", "shutdown"] {
            place.write_executable(&format!("bin/{name}"), STAND_IN);
        }
        std::os::unix::fs::symlink(programs::ours("runner"), place.path("real-runner"))
            .expect("a new name");
        place.write("runner.toml", configuration);
        Self { place }
    }

    fn command(&self, task: &str) -> Command {
        let mut command = Command::new(self.place.path("tasks.d").join(task));
        let path = |path: &str| self.place.path(path);
        command
            .env_clear()
            .env(
                "PATH",
                format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", path("bin").display()),
            )
            .env("RUNNER_CONFIG_CMD", path("bin/runner"))
            .env("RUNNER_OUTPUT", path("output"))
            .env("RUNNER_TASK", task)
            .env("RUNNER_RUN_ID", "000001-cafe")
            .env("RUNNER_ATTEMPT", "1")
            .env("RUNNER_MAX_ATTEMPTS", "5")
            .env("RUNNER_RUNS_SINCE_BOOT", "1")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, task: &str) -> Ended {
        self.run_with(task, &[])
    }

    fn run_with(&self, task: &str, env: &[(&str, &str)]) -> Ended {
        self.place.write("calls", "");
        self.place.write("output", "");
        let done = self.command(task).envs(env.iter().copied()).output();
        self.ended(&done.expect("a task is a program"))
    }

    fn ended(&self, done: &Output) -> Ended {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended {
            code: done.status.code(),
            words: text(&done.stdout) + &text(&done.stderr),
            calls: self.place.read("calls"),
            reported: self.place.read("output"),
        }
    }

    /// A task of our own, of the words of `lib.sh`.
    fn script(&self, script: &str) -> Ended {
        let script = format!("#!/bin/sh\n. \"${{0%/*}}/lib.sh\"\n{script}\n");
        self.place.write_executable("tasks.d/60-own", &script);
        self.run("60-own")
    }
}

impl Ended {
    #[track_caller]
    fn failed(&self, because: &str) {
        assert_eq!(self.code, Some(1), "{}", self.words);
        assert!(
            self.words.contains(because),
            "`{because}` is not in: {}",
            self.words
        );
        assert_eq!(
            self.reported, "",
            "a task that failed has nothing to report"
        );
    }

    #[track_caller]
    fn skipped(&self) {
        assert_eq!(self.code, Some(0), "{}", self.words);
        assert!(self.words.starts_with("skipped: "), "{}", self.words);
        assert_eq!(self.words.lines().count(), 1, "{}", self.words);
        assert_eq!(self.calls, "");
    }
}

#[test]
fn every_shipped_task_is_a_program_that_a_shell_understands() {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(programs::repository("tasks.d")).expect("it is there") {
        let path = entry.expect("it can be read").path();
        let name = path
            .file_name()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        if name == "README.md" {
            continue;
        }
        let done = Command::new("sh")
            .arg("-n")
            .arg(&path)
            .output()
            .expect("there is a shell");
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        let mode = fs_err::metadata(&path).expect("it is there").mode();
        assert_eq!(
            mode & 0o111 != 0,
            name != "lib.sh",
            "mode of {name}: {mode:o}"
        );
        let text = fs_err::read_to_string(&path).expect("it can be read");
        let exits = text
            .lines()
            .filter(|line| line.contains("exit 2") || line.contains("exit 3"))
            .count();
        assert_eq!(
            exits > 0,
            name == "lib.sh",
            "only lib.sh halts and stops, not {name}"
        );
        names.push(name);
    }
    names.sort();
    assert_eq!(
        names,
        [
            "1-cleanslate",
            "10-free-space",
            "50-buildbot-worker",
            "51-spool-job",
            "90-cleanslate",
            "99-reboot-decision",
            "halt",
            "lib.sh"
        ]
    );
}

#[test]
fn a_required_value_is_there_and_not_empty_or_the_task_fails() {
    let bench = Bench::new(
        "[a]\nb = \"x y\"\nlist = [\"one\", \"two words\"]\nempty = \"\"\nblank = \" \"\nhole = [\"one\", \"\", \"two\"]\nend = [\"one\", \"\"]\nnone = []\n",
    );
    let value =
        |key: &str| bench.script(&format!("value=$(require {key})\nprintf '<%s>' \"$value\""));
    assert_eq!(value("a.b").words, "<x y>");
    assert_eq!(value("a.list").words, "<one\ntwo words>");
    for key in ["a.empty", "a.blank", "a.hole", "a.end", "a.none"] {
        value(key).failed("empty");
    }
    value("a.missing").failed("`a.missing` is not configured");
    value("missing.b").failed("`missing.b` is not configured");
}

#[test]
fn a_default_is_for_a_missing_key_and_never_for_an_empty_one() {
    let bench = Bench::new("[a]\nb = \"x\"\nempty = \"\"\n");
    let value = |key: &str| {
        bench.script(&format!(
            "value=$(config {key} default)\nprintf '<%s>' \"$value\""
        ))
    };
    assert_eq!(value("a.b").words, "<x>");
    assert_eq!(value("a.missing").words, "<default>");
    value("a.empty").failed("empty");
}

#[test]
fn a_configuration_with_a_fault_is_not_one_that_says_nothing() {
    let bench = Bench::new("[runner]\nmax_attemps = 3\n");
    bench
        .script("configured a.b || skip nothing")
        .failed("max_attemps");
    for task in [
        "1-cleanslate",
        "10-free-space",
        "50-buildbot-worker",
        "51-spool-job",
        "90-cleanslate",
    ] {
        bench.run(task).failed("max_attemps");
    }
}

#[test]
fn two_and_three_are_meant_or_become_a_failure() {
    let bench = Bench::new("");
    assert_eq!(bench.script("halt 'the disk is gone'").code, Some(2));
    assert_eq!(bench.script("stop 'enough'").code, Some(3));
    for script in [
        "grep x /nonexistent",
        "ls /nonexistent",
        "exit 2",
        "exit 3",
        "(halt no)",
        "x=$(stop no)",
        "if then fi",
    ] {
        let ended = bench.script(script);
        assert_eq!(ended.code, Some(1), "`{script}`: {}", ended.words);
    }
    assert_eq!(bench.script("exit 7").code, Some(7));
    assert_eq!(
        bench.script("at_end 'echo at the end'; fail no").words,
        "60-own: no\nat the end\n"
            .lines()
            .rev()
            .collect::<Vec<_>>()
            .join("\n")
            + "\n"
    );
}

#[test]
fn a_report_cannot_carry_a_second_one() {
    let bench = Bench::new("");
    let ended = bench.script("report job.name 'linux64 build'");
    assert_eq!(ended.reported, "job.name=linux64 build\n");
    bench
        .script("report job.name 'linux64\nreboot.decision=go_on'")
        .failed("line break");
}

const CLEANSLATE: &str = "[cleanslate]\nusers = [\"builder\", \"try builder\"]\ngrace = \"2s\"\nfile = \"/run/x/y.json\"\n";
const TARGET: &str = "--user builder --user try builder --file /run/x/y.json";

#[test]
fn the_first_run_since_boot_takes_a_snapshot_unless_there_is_one_of_this_boot() {
    let bench = Bench::new(CLEANSLATE);
    let first = [("RUNNER_RUNS_SINCE_BOOT", "0")];
    bench.place.write("cleanslate_code.show", "78");
    let ended = bench.run_with("1-cleanslate", &first);
    assert_eq!(ended.code, Some(0), "{}", ended.words);
    assert_eq!(
        ended.calls,
        format!("cleanslate show {TARGET}\ncleanslate snapshot {TARGET}\n")
    );

    bench.place.write("cleanslate_code.show", "0");
    let ended = bench.run_with("1-cleanslate", &first);
    let sweep = format!(
        "cleanslate sweep --grace 2s --report {} {TARGET}\n",
        bench.place.path("output").display()
    );
    assert_eq!(ended.calls, format!("cleanslate show {TARGET}\n{sweep}"));

    // A lost snapshot does not make leftovers the baseline.
    bench.place.write("cleanslate_code.show", "78");
    bench.place.write("cleanslate_code.sweep", "78");
    let ended = bench.run("1-cleanslate");
    assert_eq!(ended.calls, sweep);
    ended.failed("no job may start");
}

#[test]
fn a_snapshot_that_cannot_be_taken_fails_the_task() {
    let bench = Bench::new(CLEANSLATE);
    bench.place.write("cleanslate_code", "78");
    let ended = bench.run_with("1-cleanslate", &[("RUNNER_RUNS_SINCE_BOOT", "0")]);
    assert_eq!(ended.code, Some(78), "{}", ended.words);
}

#[test]
fn without_users_nothing_is_swept_and_with_an_empty_one_the_task_fails() {
    for task in ["1-cleanslate", "90-cleanslate"] {
        Bench::new("").run(task).skipped();
        for users in ["[]", "\"\"", "[\"\"]", "[\"builder\", \"\"]"] {
            let ended = Bench::new(&format!("[cleanslate]\nusers = {users}\n")).run(task);
            ended.failed("empty");
            assert_eq!(ended.calls, "", "nothing may be swept for {users}");
        }
        let ended = Bench::new("[cleanslate]\nusers = [\"builder\"]\nfile = \"\"\n").run(task);
        ended.failed("empty");
        assert_eq!(ended.calls, "");
    }
}

#[test]
fn a_host_that_stays_dirty_is_left_to_the_reboot_decision_after_the_last_attempt() {
    let bench = Bench::new(CLEANSLATE);
    assert_eq!(bench.run("90-cleanslate").code, Some(0));
    bench.place.write("cleanslate_code", "1");
    bench
        .run_with("90-cleanslate", &[("RUNNER_ATTEMPT", "4")])
        .failed("not clean");
    let ended = bench.run_with("90-cleanslate", &[("RUNNER_ATTEMPT", "5")]);
    assert_eq!(ended.code, Some(0), "{}", ended.words);
    assert_eq!(ended.reported, "sweep.verdict=dirty\n");
    // What cleanslate has said itself stands.
    bench.place.write_executable(
        "bin/cleanslate",
        "#!/bin/sh\necho sweep.verdict=baseline_damaged >>\"$RUNNER_OUTPUT\"\nexit 1\n",
    );
    let ended = bench.run_with("90-cleanslate", &[("RUNNER_ATTEMPT", "5")]);
    assert_eq!(ended.reported, "sweep.verdict=baseline_damaged\n");
}

#[test]
fn a_nearly_full_disk_takes_no_job() {
    Bench::new("").run("10-free-space").skipped();
    let run = |table: &str| Bench::new(&format!("[free_space]\n{table}")).run("10-free-space");
    let ended = run("directories = [\"/\", \"/tmp\"]\nminimum = \"1K\"\n");
    assert_eq!((ended.code, ended.words.as_str()), (Some(0), ""));
    run("directories = [\"/\"]\nminimum = \"1000000T\"\n").failed("`/` has ");
    run("directories = [\"/\"]\n").failed("`free_space.minimum` is not configured");
    run("directories = [\"/\", \"/nonexistent\"]\nminimum = \"1K\"\n")
        .failed("`/nonexistent` is not a directory");
    run("directories = [\"/\", \"\"]\nminimum = \"1K\"\n").failed("empty");
    for minimum in ["much", "-1", "0", "10 G"] {
        run(&format!("directories = [\"/\"]\nminimum = \"{minimum}\"\n"))
            .failed("`free_space.minimum`");
    }
}

#[test]
fn a_job_is_taken_from_the_spool_if_there_is_one() {
    Bench::new("").run("51-spool-job").skipped();
    let bench = Bench::new("[jobs]\nspool = \"/var/spool/farmhand\"\n");
    let ended = bench.run("51-spool-job");
    assert_eq!(
        (ended.code, ended.calls.as_str()),
        (Some(0), "runner take-job\n")
    );
    bench.place.write("verb_code", "1");
    assert_eq!(bench.run("51-spool-job").code, Some(1));
}

#[test]
fn only_a_decision_halts_and_a_broken_one_is_tried_again() {
    let bench = Bench::new("");
    for (decision, code) in [(0, 0), (2, 2), (1, 1), (3, 1), (64, 1), (78, 1)] {
        bench.place.write("verb_code", &decision.to_string());
        let ended = bench.run("99-reboot-decision");
        assert_eq!(
            ended.code,
            Some(code),
            "decision {decision}: {}",
            ended.words
        );
        assert_eq!(ended.calls, "runner reboot-decision\n");
    }
}

#[test]
fn the_halt_task_reboots_and_fails_if_that_fails() {
    let bench = Bench::new("");
    let ended = bench.run("halt");
    assert_eq!(ended.code, Some(0), "{}", ended.words);
    assert!(
        ended
            .calls
            .contains("shutdown -r now runner halts this host"),
        "{}",
        ended.calls
    );
    bench.place.write("shutdown_code", "4");
    assert_eq!(bench.run("halt").code, Some(4));
}

/// A Buildbot host whose worker is `script`, run by sh as the job user in the place of
/// `buildbot-worker start --nodaemon DIRECTORY`.
fn buildbot(script: &str) -> Bench {
    let bench = Bench::new("");
    let path = |path: &str| bench.place.path(path).display().to_string();
    bench.place.write(
        "runner.toml",
        &format!(
            "[buildbot]\nmaster = \"127.0.0.1:9989\"\nworker = \"w1\"\npassword_file = \"{}\"\ndirectory = \"{}\"\nuser = \"nobody\"\ncommand = \"{}\"\n",
            path("password"), path("worker"), path("bin/buildbot-worker")
        ),
    );
    bench.place.write_secret("password", "correct horse\n");
    bench.place.write_executable(
        "bin/buildbot-worker",
        &format!("#!/bin/sh\ncd \"$3/builds\"\n{script}\n"),
    );
    bench
}

#[test]
fn a_build_is_reported_by_name_result_number_and_page() {
    if !have_root() {
        return;
    }
    let results = [
        "success",
        "warnings",
        "failure",
        "skipped",
        "exception",
        "retry",
        "cancelled",
    ];
    for (code, result) in results.into_iter().enumerate() {
        let ended = buildbot(&format!(
            "echo '{{\"builder\": \"Linux64 böild\", \"number\": 17, \"results\": {code}, \"text\": \"x\", \"url\": \"http://b.example.org/#/builders/1\"}}' >last_job.json"
        ))
        .run("50-buildbot-worker");
        assert_eq!(ended.code, Some(0), "{}", ended.words);
        assert_eq!(
            ended.reported,
            format!(
                "job.name=Linux64 böild\njob.result={result}\njob.id=17\njob.url=http://b.example.org/#/builders/1\n"
            )
        );
    }
}

#[test]
fn a_build_that_begins_is_named_before_it_ends() {
    if !have_root() {
        return;
    }
    let bench = buildbot(
        "echo 'Linux64 böild' >&4; looks=0\n\
         until grep -q '^taken.name=Linux64 böild$' ../../output; do\n\
         looks=$((looks + 1)); [ $looks -lt 2000 ] || exit 5; sleep 0.01; done\n\
         echo '{\"builder\": \"Linux64 böild\", \"number\": 17, \"results\": 0}' >last_job.json",
    );
    let ended = bench.run("50-buildbot-worker");
    assert_eq!(ended.code, Some(0), "{}", ended.words);
    assert_eq!(
        ended.reported,
        "taken.name=Linux64 böild\njob.name=Linux64 böild\njob.result=success\njob.id=17\n"
    );
    // What is no name is cut down to one, and what never ends is not waited for.
    for (said, name) in [
        (
            "printf 'a\\nsweep.verdict=clean\\033[2J\\n' >&4",
            "asweep.verdict=clean[2J",
        ),
        ("yes x >&4 2>/dev/null || :", "xxx"),
    ] {
        let ended = buildbot(said).run("50-buildbot-worker");
        assert_eq!(ended.code, Some(0), "{}", ended.words);
        let taken = ended.reported.strip_prefix("taken.name=").expect("a name");
        assert_eq!(taken.lines().count(), 1, "{taken}");
        assert!(taken.starts_with(name) && taken.len() < 260, "{taken}");
    }
}

#[test]
fn a_forged_job_is_not_believed_and_does_not_take_a_second_one() {
    if !have_root() {
        return;
    }
    let json = |builder: &str, number: &str, results: &str, more: &str| {
        format!(
            "printf '%s' '{{\"builder\": {builder}, \"number\": {number}, \"results\": {results}{more}}}' >last_job.json"
        )
    };
    let long = format!("\"{}\"", "x".repeat(201));
    for forged in [
        "ln -s /etc/shadow last_job.json".to_owned(),
        "ln -s /proc/self/environ last_job.json".to_owned(),
        "mkfifo last_job.json".to_owned(),
        "mkdir -p last_job.json/deep".to_owned(),
        "head -c 5000 /dev/zero >last_job.json".to_owned(),
        "truncate -s 1T last_job.json".to_owned(),
        ": >last_job.json".to_owned(),
        "echo '[1, 2]' >last_job.json".to_owned(),
        "printf '\\377\\376' >last_job.json".to_owned(),
        "head -c 4000 /dev/zero | tr '\\0' '[' >last_job.json".to_owned(),
        json("\"a\\nreboot.decision=go_on\"", "1", "0", ""),
        json("\"a\\u2028b\"", "1", "0", ""),
        json("\" a\"", "1", "0", ""),
        json("\"\"", "1", "0", ""),
        json(&long, "1", "0", ""),
        json("7", "1", "0", ""),
        json("\"a\"", "-1", "0", ""),
        json("\"a\"", "true", "0", ""),
        json("\"a\"", "1.5", "0", ""),
        json("\"a\"", "1", "7", ""),
        json("\"a\"", "1", "-1", ""),
        json("\"a\"", "1", "null", ""),
        json("\"a\"", "1", "0", ", \"url\": \"javascript:alert(1)\""),
        json("\"a\"", "1", "0", ", \"url\": \"http://x y\""),
        json("\"a\"", "1", "0", ", \"url\": 5"),
    ] {
        let bench = buildbot(&forged);
        let ended = bench.run("50-buildbot-worker");
        assert_eq!(ended.code, Some(0), "`{forged}`: {}", ended.words);
        assert_eq!(ended.reported, "", "`{forged}` was believed");
        assert!(
            ended.words.contains("is not believed"),
            "`{forged}`: {}",
            ended.words
        );
        assert!(
            !bench.place.path("worker/builds/last_job.json").is_symlink(),
            "`{forged}` is still there"
        );
        assert!(
            !bench.place.path("worker/builds/last_job.json").exists(),
            "`{forged}` is still there"
        );
    }
}

#[test]
fn a_job_of_an_earlier_build_never_counts() {
    if !have_root() {
        return;
    }
    let bench = buildbot("test ! -e last_job.json");
    bench.place.make_directory("worker");
    bench.place.make_directory("worker/builds");
    bench.place.write(
        "worker/builds/last_job.json",
        "{\"builder\": \"old\", \"number\": 1, \"results\": 0}",
    );
    bench.place.write("worker/twistd.pid", "");
    let ended = bench.run("50-buildbot-worker");
    assert_eq!(
        (ended.code, ended.reported.as_str()),
        (Some(0), ""),
        "{}",
        ended.words
    );
    assert!(ended.words.contains("without a job"), "{}", ended.words);
    assert!(!bench.place.path("worker/twistd.pid").exists());
}

#[test]
fn the_password_is_an_open_file_and_nothing_else() {
    if !have_root() {
        return;
    }
    let bench = buildbot(
        r#"
exec >report
printf 'arguments %s\n' "$*"
printf 'password %s\n' "$(cat <&3)"
cat "${0%/*}/../password" || echo 'password file closed'
grep -r 'correct horse' "$3" --include=buildbot.tac || echo 'not in buildbot.tac'
env
id
(: >"$3/planted.py") 2>/dev/null || echo 'directory closed'
(: >>"$3/buildbot.tac") 2>/dev/null || echo 'buildbot.tac closed'
grep SigIgn /proc/$$/status
"#,
    );
    let ended = bench.run_with("50-buildbot-worker", &[("FROM_ENV_TABLE", "kept")]);
    assert_eq!(ended.code, Some(0), "{}", ended.words);
    let report = bench.place.read("worker/builds/report");
    assert!(report.contains("password correct horse\n"), "{report}");
    assert_eq!(report.matches("correct horse").count(), 1, "{report}");
    for closed in [
        "password file closed",
        "not in buildbot.tac",
        "directory closed",
        "buildbot.tac closed",
    ] {
        assert!(report.contains(closed), "{closed}: {report}");
    }
    assert!(
        report.contains("uid=65534(nobody)") && report.contains("groups=65534(nogroup)\n"),
        "{report}"
    );
    assert!(
        report.contains("FROM_ENV_TABLE=kept\n") && report.contains("USER=nobody\n"),
        "{report}"
    );
    let runner: Vec<_> = report
        .lines()
        .filter(|line| line.starts_with("RUNNER_"))
        .collect();
    assert_eq!(runner, ["RUNNER_RUN_ID=000001-cafe"]);
    let ignored = report
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .expect("the kernel tells");
    let ignored = u64::from_str_radix(ignored.trim(), 16).expect("a mask");
    // From 32 on they are the C library's.
    let mask = (1 << 31) - 1;
    assert_eq!(
        ignored & mask,
        0,
        "every process of a build would inherit it"
    );
    assert!(!ended.words.contains("correct horse"), "{}", ended.words);
}

#[test]
fn buildbot_tac_is_a_worker_that_python_understands() {
    if !have_root() {
        return;
    }
    let bench = buildbot(":");
    assert_eq!(bench.run("50-buildbot-worker").code, Some(0));
    let path = bench.place.path("worker/buildbot.tac");
    let tac = fs_err::read_to_string(&path).expect("the task wrote it");
    assert!(
        tac.contains("Application('buildbot-worker')"),
        "buildbot-worker looks for this text"
    );
    assert!(tac.contains("\"127.0.0.1\", 9989, \"w1\""), "{tac}");
    let parse = "import ast, sys; ast.parse(open(sys.argv[1]).read())";
    let done = Command::new("python3")
        .args(["-I", "-c", parse])
        .arg(&path)
        .status();
    assert!(done.expect("python3 is there").success());
    let left: Vec<_> = fs_err::read_dir(bench.place.path("worker"))
        .expect("it is there")
        .collect();
    assert_eq!(left.len(), 2, "buildbot.tac and builds: {left:?}");
}

#[test]
fn an_end_before_any_build_is_tried_again() {
    if !have_root() {
        return;
    }
    buildbot("exit 69")
        .run("50-buildbot-worker")
        .failed("no master at `127.0.0.1:9989`");
    buildbot("exit 1")
        .run("50-buildbot-worker")
        .failed("ended with 1 before a build");
    // Killed: perhaps in the middle of a build, so no second one before a sweep.
    let ended = buildbot("kill -KILL $$").run("50-buildbot-worker");
    assert_eq!(
        (ended.code, ended.reported.as_str()),
        (Some(0), ""),
        "{}",
        ended.words
    );
}

#[test]
fn a_signal_reaches_the_worker_and_its_end_is_waited_for() {
    if !have_root() {
        return;
    }
    for (signal, name) in [
        (nix::sys::signal::Signal::SIGHUP, "HUP"),
        (nix::sys::signal::Signal::SIGTERM, "TERM"),
    ] {
        let bench = buildbot(&format!(
            "trap 'echo got {name} >got; : >ended' {name}\n: >ready\nwhile ! test -e ended; do sleep 0.05; done\nwhile ! test -e go; do sleep 0.05; done"
        ));
        bench.place.write("output", "");
        let mut task = bench
            .command("50-buildbot-worker")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it is a program");
        let limit = Duration::from_secs(20);
        let there = |path: &str| {
            wait::until(path, limit, || {
                if bench.place.path(path).exists() {
                    Ok(())
                } else {
                    Err("not there")
                }
            })
        };
        there("worker/builds/ready");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(task.id()).expect("a pid fits"));
        nix::sys::signal::kill(pid, signal).expect("it is our child");
        there("worker/builds/got");
        assert!(
            task.try_wait().expect("it is our child").is_none(),
            "the worker still runs"
        );
        bench.place.write("worker/builds/go", "");
        let status = wait::until("the task", limit, || {
            task.try_wait().expect("it is our child").ok_or("it runs")
        });
        assert_eq!(status.code(), Some(0));
    }
}

#[test]
fn what_is_wrong_with_a_buildbot_host_is_said_before_anything_is_started() {
    if !have_root() {
        return;
    }
    Bench::new("").run("50-buildbot-worker").skipped();
    let changed = |key: &str, value: &str| {
        let bench = buildbot("echo started >&2");
        let lines: Vec<_> = bench
            .place
            .read("runner.toml")
            .lines()
            .map(|line| {
                if line.starts_with(&format!("{key} =")) {
                    value.to_owned()
                } else {
                    line.to_owned()
                }
            })
            .collect();
        let mut lines = lines.join("\n") + "\n";
        if !lines.contains(value) {
            lines += value;
        }
        bench.place.write("runner.toml", &lines);
        bench
    };
    for (key, value, because) in [
        (
            "password_file",
            "",
            "`buildbot.password_file` is not configured",
        ),
        ("directory", "", "`buildbot.directory` is not configured"),
        ("user", "", "`buildbot.user` is not configured"),
        ("command", "", "`buildbot.command` is not configured"),
        ("user", "user = \"\"", "empty"),
        ("directory", "directory = \"\"", "empty"),
        ("master", "master = \"localhost\"", "HOST:PORT"),
        ("master", "master = \"localhost:0\"", "HOST:PORT"),
        ("master", "master = \"a\\\", evil:1\"", "HOST:PORT"),
        ("worker", "worker = \"w\\\"1\"", "not a worker name"),
        ("attach_timeout", "attach_timeout = \"soon\"", "not a time"),
        ("attach_timeout", "attach_timeout = \"0s\"", "not a time"),
        ("attach_timeout", "attach_timeout = \"5\"", "not a time"),
        ("attach_timeout", "attach_timeout = \"s\"", "not a time"),
        ("user", "user = \"root\"", "is root"),
        ("user", "user = \"no-such-user\"", "no user"),
        (
            "command",
            "command = \"/nonexistent\"",
            "cannot be executed",
        ),
        (
            "password_file",
            "password_file = \"/nonexistent\"",
            "is not a file",
        ),
        (
            "directory",
            "directory = \"relative\"",
            "not an absolute path",
        ),
    ] {
        let ended = changed(key, value).run("50-buildbot-worker");
        ended.failed(because);
        assert!(
            !ended.words.contains("started"),
            "`{value}`: {}",
            ended.words
        );
    }
}

#[test]
fn what_a_job_could_have_changed_is_not_executed() {
    if !have_root() {
        return;
    }
    let mode = |path: &Path, mode: u32| {
        fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    let bench = buildbot("echo started >&2");
    mode(&bench.place.path("password"), 0o640);
    bench
        .run("50-buildbot-worker")
        .failed("is not root's alone");

    let bench = buildbot("echo started >&2");
    bench.place.make_directory("worker");
    mode(&bench.place.path("worker"), 0o1777);
    bench
        .run("50-buildbot-worker")
        .failed("is not root's alone to write");

    let bench = buildbot("echo started >&2");
    bench.place.make_directory("open");
    mode(&bench.place.path("open"), 0o777);
    let below = bench
        .place
        .read("runner.toml")
        .replace("/worker\"", "/open/worker\"");
    bench.place.write("runner.toml", &below);
    bench
        .run("50-buildbot-worker")
        .failed("is not safe from jobs");

    let bench = buildbot("echo started >&2");
    bench.place.make_directory("elsewhere");
    std::os::unix::fs::symlink(bench.place.path("elsewhere"), bench.place.path("worker"))
        .expect("a new name");
    bench.run("50-buildbot-worker").failed("through a link");
}
