//! The local spool of jobs: every job is run once or called interrupted, whoever is killed when.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proptest::prelude::*;
use runner::reboot::JobResult;
use runner::spool::{Claim, JobsConfig, Outcome, Place, Spool, Started, TakeArgs, take_job};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use tempfile::TempDir;

fn clock() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

/// A spool of its own, with jobs that say in a file that they ran.
struct Farm {
    directory: TempDir,
    config: JobsConfig,
}

impl Farm {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = JobsConfig {
            spool: Some(directory.path().join("spool")),
            timeout: Duration::from_secs(60),
            // Long enough that a test that waits for it fails by its own limit.
            grace_period: Duration::from_secs(60),
            wait: Duration::from_millis(1),
            ..JobsConfig::default()
        };
        let farm = Self { directory, config };
        farm.spool();
        farm
    }

    fn spool(&self) -> Spool {
        Spool::open(self.config.spool.as_ref().unwrap()).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("spool").join(name)
    }

    /// Submits as the documentation says: write beside, then rename.
    fn submit_text(&self, file: &str, text: impl AsRef<[u8]>) {
        let new = self.path(&format!("pending/.{file}"));
        fs_err::write(&new, text).unwrap();
        fs_err::rename(new, self.path(&format!("pending/{file}"))).unwrap();
    }

    fn submit(&self, id: &str, command: &[&str]) {
        let job = json!({ "name": format!("job {id}"), "command": command });
        self.submit_text(&format!("{id}.json"), job.to_string());
    }

    /// Submits a job that appends its id to the file `ran`.
    fn submit_marked(&self, id: &str, and_then: &str) {
        let ran = self.directory.path().join("ran");
        let line = format!("echo {id} >> '{}'; {and_then}", ran.display());
        self.submit(id, &["sh", "-c", &line]);
    }

    /// How often each job ran.
    fn ran(&self) -> BTreeMap<String, usize> {
        let text = fs_err::read_to_string(self.directory.path().join("ran")).unwrap_or_default();
        let mut ran = BTreeMap::new();
        for line in text.lines() {
            *ran.entry(line.to_owned()).or_default() += 1;
        }
        ran
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let mut names: Vec<_> = fs_err::read_dir(self.path(directory))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn outcome(&self, id: &str) -> Outcome {
        let bytes = fs_err::read(self.path(&format!("results/{id}.json"))).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    fn log(&self, id: &str) -> String {
        fs_err::read_to_string(self.path(&format!("results/{id}.log"))).unwrap()
    }

    /// Takes one job in this process.
    fn take(&self) -> Answer {
        let report = self.directory.path().join("report");
        fs_err::write(&report, "").unwrap();
        let place = Place {
            host: "tst-1",
            report: Some(&report),
            clock,
        };
        let mut err = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let code = runtime.block_on(take_job(
            &TakeArgs::default(),
            &self.config,
            &place,
            &mut err,
        ));
        let place = self.directory.path().display().to_string();
        Answer {
            code,
            err: String::from_utf8(err).unwrap().replace(&place, "/farm"),
            report: fs_err::read_to_string(report).unwrap(),
        }
    }

    /// Starts a taker in a process of its own.
    fn start_taker(&self, wait: &str) -> Taker {
        let child = Command::new(env!("CARGO_BIN_EXE_runner"))
            .args(["take-job", "--wait", wait, "--spool"])
            .arg(self.config.spool.as_ref().unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Taker(child)
    }
}

#[derive(Debug)]
struct Answer {
    code: u8,
    err: String,
    report: String,
}

/// A taker in a process of its own.
struct Taker(Child);

impl Taker {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }

    /// Waits for the end of the process, at most so long.
    fn ends_within(&mut self, limit: Duration) -> bool {
        let pid = rustix::process::Pid::from_raw(self.0.id().try_into().unwrap()).unwrap();
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let limit = Timespec::try_from(limit).unwrap();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).unwrap() == 1
    }

    #[track_caller]
    fn end(mut self) -> ExitStatus {
        assert!(
            self.ends_within(Duration::from_secs(30)),
            "the taker does not end"
        );
        self.0.wait().unwrap()
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        // It ended in any test that passes.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Waits until a file has something in it, by inotify.
#[track_caller]
fn wait_for_content(path: &Path) {
    use rustix::fs::inotify;
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    let events =
        inotify::WatchFlags::CREATE | inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&changes, path.parent().unwrap(), events).unwrap();
    let limit = Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    while fs_err::metadata(path).map_or(0, |metadata| metadata.len()) == 0 {
        let ready = poll(&mut [PollFd::new(&changes, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ready, 1, "`{}` stays empty", path.display());
        rustix::io::read(&changes, &mut [0; 4096]).unwrap();
    }
}

#[test]
fn a_job_is_run_and_reported() {
    let farm = Farm::new();
    farm.submit("j1", &["sh", "-c", "echo out; echo err >&2"]);
    let answer = farm.take();
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert_eq!(
        answer.report,
        "taken.name=job j1\ntaken.id=j1\njob.name=job j1\njob.result=success\njob.id=j1\n"
    );
    assert_eq!(farm.log("j1"), "out\nerr\n");
    let text = fs_err::read_to_string(farm.path("results/j1.json")).unwrap();
    insta::assert_snapshot!(text);
    assert_eq!(farm.names("pending"), Vec::<String>::new());
    assert_eq!(farm.names("running"), Vec::<String>::new());
    assert_eq!(farm.names("done"), ["j1.json"]);
}

#[test]
fn a_job_that_fails_is_a_failure_and_the_taker_is_not() {
    let farm = Farm::new();
    farm.submit("j1", &["sh", "-c", "exit 7"]);
    farm.submit("j2", &["sh", "-c", "kill -SEGV $$"]);
    assert_eq!(farm.take().code, 0);
    assert_eq!(
        farm.take().report,
        "taken.name=job j2\ntaken.id=j2\njob.name=job j2\njob.result=failure\njob.id=j2\n"
    );
    let (j1, j2) = (farm.outcome("j1"), farm.outcome("j2"));
    assert_eq!(
        (j1.result, j1.exit_code, j1.signal),
        (JobResult::Failure, Some(7), None)
    );
    assert_eq!(
        (j2.result, j2.exit_code, j2.signal),
        (JobResult::Failure, None, Some(11))
    );
}

#[test]
fn a_job_whose_program_is_not_there_is_an_exception() {
    let farm = Farm::new();
    farm.submit("j1", &["no-such-program"]);
    farm.submit("j2", &["/etc/passwd"]);
    for id in ["j1", "j2"] {
        assert_eq!(farm.take().code, 0);
        let outcome = farm.outcome(id);
        assert_eq!(
            (outcome.result, outcome.exit_code),
            (JobResult::Exception, None)
        );
        assert!(
            outcome
                .error
                .unwrap()
                .starts_with("cannot be started: no program")
        );
    }
}

#[test]
fn a_job_gets_its_words_and_variables_as_they_are_and_nothing_else() {
    let farm = Farm::new();
    let odd = "it's \"$HOME\" `x` \\ \n é *";
    let job = json!({
        "name": "odd", "command": ["sh", "-c", "printf '%s|' \"$@\" \"$ODD\"; env", "sh", odd, ""],
        "env": { "ODD": odd, "PATH": "/usr/bin:/bin" },
    });
    farm.submit_text("j1.json", job.to_string());
    assert_eq!(farm.take().code, 0);
    let log = farm.log("j1");
    let rest = log.strip_prefix(&format!("{odd}||{odd}|")).unwrap();
    let names: std::collections::BTreeSet<_> = rest
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .collect();
    let expected = [
        "FARMHAND_JOB_ID",
        "FARMHAND_JOB_NAME",
        "HOME",
        "LANG",
        "LOGNAME",
        "ODD",
        "OLDPWD",
        "PATH",
        "PWD",
        "SHELL",
        "USER",
        "_",
    ];
    let strange: Vec<_> = names
        .iter()
        .filter(|name| !expected.contains(name))
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(rest.contains("FARMHAND_JOB_ID=j1\n") && rest.contains("\nPATH=/usr/bin:/bin\n"));
}

#[test]
fn a_job_reads_nothing_and_leads_its_process_group() {
    let farm = Farm::new();
    farm.submit(
        "j1",
        &[
            "sh",
            "-c",
            "readlink /proc/self/fd/0; cut -d' ' -f1,5 /proc/$$/stat; umask",
        ],
    );
    assert_eq!(farm.take().code, 0);
    let log = farm.log("j1");
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines[0], "/dev/null");
    let (pid, group) = lines[1].split_once(' ').unwrap();
    assert_eq!(pid, group);
    assert_eq!(lines[2], "0022");
}

#[test]
fn the_job_submitted_first_is_taken_first_and_names_break_a_tie() {
    let farm = Farm::new();
    for id in ["c", "a", "b"] {
        farm.submit(id, &["true"]);
        let age = if id == "c" { 100 } else { 50 };
        let file = fs_err::File::open(farm.path(&format!("pending/{id}.json"))).unwrap();
        let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age);
        file.set_modified(time).unwrap();
    }
    let order: Vec<_> = (0..3)
        .map(|_| farm.take().report.lines().last().unwrap().to_owned())
        .collect();
    assert_eq!(order, ["job.id=c", "job.id=a", "job.id=b"]);
}

#[test]
fn without_a_job_in_time_nothing_is_reported() {
    let answer = Farm::new().take();
    assert_eq!(
        (answer.code, answer.report.as_str(), answer.err.as_str()),
        (0, "", "")
    );
}

#[test]
fn a_job_that_runs_too_long_is_ended_with_its_group() {
    let mut farm = Farm::new();
    farm.config.timeout = Duration::from_millis(300);
    farm.config.grace_period = Duration::from_millis(300);
    // Neither the job nor its child hears SIGTERM.
    farm.submit(
        "j1",
        &["sh", "-c", "trap '' TERM; sleep 3600 & echo $!; wait"],
    );
    assert_eq!(farm.take().code, 0);
    let outcome = farm.outcome("j1");
    assert_eq!(
        (outcome.result, outcome.timed_out, outcome.signal),
        (JobResult::Failure, true, Some(9))
    );
    assert_is_gone(&farm.log("j1"));
}

#[test]
fn a_job_that_ends_when_it_is_asked_timed_out_all_the_same() {
    let mut farm = Farm::new();
    farm.config.timeout = Duration::from_millis(300);
    farm.submit(
        "j1",
        &[
            "sh",
            "-c",
            "trap 'exit 0' TERM; while :; do sleep 0.01; done",
        ],
    );
    assert_eq!(farm.take().code, 0);
    let outcome = farm.outcome("j1");
    assert_eq!(
        (outcome.result, outcome.timed_out, outcome.exit_code),
        (JobResult::Failure, true, Some(0))
    );
}

/// Whether the process of this pid ended; a zombie has.
#[track_caller]
fn assert_is_gone(pid: &str) {
    let stat = fs_err::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .map_or("", |(_, fields)| fields.trim_start());
    assert!(
        state.is_empty() || state.starts_with('Z') || state.starts_with('X'),
        "{stat}"
    );
}

#[test]
fn what_a_job_leaves_in_its_group_is_ended_with_it() {
    let farm = Farm::new();
    farm.submit("j1", &["sh", "-c", "sleep 3600 & echo $!"]);
    assert_eq!(farm.take().code, 0);
    assert_eq!(farm.outcome("j1").result, JobResult::Success);
    assert_is_gone(&farm.log("j1"));
}

#[test]
fn a_process_that_left_the_group_and_writes_for_ever_delays_nothing() {
    let farm = Farm::new();
    let pid_file = farm.directory.path().join("pid");
    let job = json!({
        "name": "leak", "command": ["sh", "-c", "setsid sh -c 'echo $$ > \"$PID_FILE\"; exec yes' & while ! [ -s \"$PID_FILE\" ]; do :; done"],
        "env": { "PID_FILE": pid_file },
    });
    farm.submit_text("j1.json", job.to_string());
    assert_eq!(farm.take().code, 0);
    let outcome = farm.outcome("j1");
    let pid: i32 = fs_err::read_to_string(pid_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    // SIGPIPE ends it, now that nobody reads.
    assert_eq!(outcome.result, JobResult::Success);
    wait_until_gone(pid);
}

/// Waits for the end of a process that is no child of ours.
#[track_caller]
fn wait_until_gone(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    let limit = Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    assert_eq!(
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).unwrap(),
        1
    );
}

#[test]
fn output_beyond_the_bound_is_counted_and_dropped() {
    let farm = Farm::new();
    farm.submit("j1", &["sh", "-c", "head -c 70000000 /dev/zero"]);
    assert_eq!(farm.take().code, 0);
    let outcome = farm.outcome("j1");
    assert_eq!(outcome.result, JobResult::Success);
    assert_eq!(outcome.output_bytes, 70_000_000);
    assert_eq!(outcome.output_dropped, 70_000_000 - (64 << 20));
    assert_eq!(
        fs_err::metadata(farm.path("results/j1.log")).unwrap().len(),
        64 << 20
    );
}

#[test]
fn hostile_files_are_rejected_with_a_reason_and_hold_up_nothing() {
    let farm = Farm::new();
    let pending = |name: &str| farm.path(&format!("pending/{name}"));
    let good = r#"{"name":"x","command":["true"]}"#;
    farm.submit_text("01-text.json", "hello");
    fs_err::os::unix::fs::symlink("/etc/passwd", pending("02-link.json")).unwrap();
    fs_err::create_dir(pending("03-directory.json")).unwrap();
    nix::unistd::mkfifo(&pending("04-fifo.json"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    farm.submit_text("05-long.json", vec![b' '; (1 << 20) + 1]);
    farm.submit_text("06-empty.json", r#"{"name":"x","command":[]}"#);
    farm.submit_text("07-nul.json", r#"{"name":"x","command":["a\u0000"]}"#);
    farm.submit_text("08-mode.json", good);
    fs_err::set_permissions(
        pending("08-mode.json"),
        std::fs::Permissions::from_mode(0o666),
    )
    .unwrap();
    farm.submit_text("09 blank.json", good);
    farm.submit_text(&format!("10{}.json", "x".repeat(240)), good);
    farm.submit_text("11-used.json", good);
    fs_err::write(farm.path("results/11-used.json"), "{}").unwrap();
    drop(std::os::unix::net::UnixListener::bind(pending("12-socket.json")).unwrap());
    let is_root = nix::unistd::geteuid().is_root();
    if is_root {
        farm.submit_text("13-owner.json", good);
        std::os::unix::fs::chown(pending("13-owner.json"), Some(65_534), None).unwrap();
    }
    // An hour younger than the rest, so that it comes last.
    farm.submit("good", &["true"]);
    let hour = std::time::SystemTime::now_plus_an_hour();
    fs_err::File::open(pending("good.json"))
        .unwrap()
        .set_modified(hour)
        .unwrap();
    let answer = farm.take();
    assert_eq!(
        answer.report,
        "taken.name=job good\ntaken.id=good\njob.name=job good\njob.result=success\njob.id=good\n"
    );
    assert_eq!(farm.names("pending"), Vec::<String>::new());
    let mut reasons: Vec<_> = farm
        .names("rejected")
        .into_iter()
        .filter(|name| name.ends_with(".reason"))
        .map(|name| {
            let reason = fs_err::read_to_string(farm.path(&format!("rejected/{name}"))).unwrap();
            format!("{name}: {}", reason.trim_end())
        })
        .collect();
    assert_eq!(reasons.len(), if is_root { 13 } else { 12 });
    // Depends on who runs the test.
    reasons.truncate(12);
    insta::assert_snapshot!(reasons.join("\n"));
}

/// A time without asking the clock: newer than anything this test wrote.
trait NowPlusAnHour {
    fn now_plus_an_hour() -> Self;
}

impl NowPlusAnHour for std::time::SystemTime {
    fn now_plus_an_hour() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.metadata().unwrap().modified().unwrap() + Duration::from_secs(3600)
    }
}

#[test]
fn a_file_rejected_twice_keeps_both() {
    let farm = Farm::new();
    for _ in 0..2 {
        farm.submit_text("bad.json", "");
        assert_eq!(farm.take().code, 0);
    }
    assert_eq!(
        farm.names("rejected"),
        [
            "bad.json",
            "bad.json.1",
            "bad.json.1.reason",
            "bad.json.reason"
        ]
    );
}

#[test]
fn a_hidden_file_is_somebody_still_writing() {
    let farm = Farm::new();
    fs_err::write(farm.path("pending/.j1.json"), "{").unwrap();
    fs_err::write(farm.path("pending/notes.txt"), "").unwrap();
    assert_eq!(farm.take().report, "");
    assert_eq!(farm.names("pending"), [".j1.json", "notes.txt"]);
}

#[test]
fn a_spool_that_others_may_write_is_refused_with_78() {
    for name in ["", "pending", "running", "results"] {
        let farm = Farm::new();
        let path = farm.path(name);
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        let answer = farm.take();
        assert_eq!(answer.code, 78, "{name}: {}", answer.err);
        assert!(
            answer.err.contains("may be written by others"),
            "{}",
            answer.err
        );
    }
}

#[test]
fn what_cannot_be_a_spool_is_said_with_what_to_type() {
    let mut farm = Farm::new();
    farm.config.spool = Some("/nonexistent/spool".into());
    let nowhere = farm.take();
    farm.config.spool = None;
    let unset = farm.take();
    farm.config.spool = Some(farm.path(""));
    farm.config.user = Some("no-such-user".into());
    let nobody = farm.take();
    assert_eq!((nowhere.code, unset.code, nobody.code), (78, 78, 78));
    insta::assert_snapshot!(format!("{}{}{}", nowhere.err, unset.err, nobody.err));
}

#[test]
fn a_job_runs_as_the_job_user_or_not_at_all() {
    let mut farm = Farm::new();
    farm.config.user = Some("nobody".into());
    farm.submit("j1", &["sh", "-c", "id -u; id -g; id -G; echo $USER"]);
    let answer = farm.take();
    if nix::unistd::geteuid().is_root() {
        assert_eq!(answer.code, 0, "{}", answer.err);
        assert_eq!(farm.log("j1"), "65534\n65534\n65534\nnobody\n");
        assert_eq!(
            fs_err::metadata(farm.path("results/j1.log")).unwrap().uid(),
            0
        );
    } else {
        assert_eq!(answer.code, 78);
        assert!(
            answer.err.contains("only root can run jobs as `nobody`"),
            "{}",
            answer.err
        );
        assert_eq!(farm.names("pending"), ["j1.json"]);
    }
}

#[test]
fn a_taker_that_waits_takes_a_job_as_soon_as_it_comes() {
    let farm = Farm::new();
    let mut taker = farm.start_taker("0s");
    assert!(!taker.ends_within(Duration::from_millis(200)));
    farm.submit_marked("j1", "true");
    assert!(taker.end().success());
    assert_eq!(farm.outcome("j1").result, JobResult::Success);
}

#[test]
fn a_taker_that_waits_leaves_on_sighup_with_nothing_done() {
    let farm = Farm::new();
    let taker = farm.start_taker("0s");
    wait_until_it_waits(&taker);
    taker.signal(Signal::SIGHUP);
    assert!(taker.end().success());
    farm.submit_marked("j1", "true");
    assert_eq!(farm.names("pending"), ["j1.json"]);
}

/// Until the taker listens to signals: an inotify descriptor is what it opens after that.
fn wait_until_it_waits(taker: &Taker) {
    let fds = format!("/proc/{}/fd", taker.0.id());
    let waits = || {
        fs_err::read_dir(&fds).unwrap().flatten().any(|fd| {
            std::fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().contains("inotify"))
        })
    };
    while !waits() {
        std::thread::yield_now();
    }
}

#[test]
fn a_job_is_finished_on_sighup() {
    let farm = Farm::new();
    let go = farm.directory.path().join("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    farm.submit_marked("j1", &format!("cat '{}'", go.display()));
    let taker = farm.start_taker("0s");
    wait_for_content(&farm.directory.path().join("ran"));
    taker.signal(Signal::SIGHUP);
    fs_err::write(&go, "gone on\n").unwrap();
    assert!(taker.end().success());
    assert_eq!(farm.outcome("j1").result, JobResult::Success);
    assert_eq!(farm.log("j1"), "gone on\n");
}

#[test]
fn a_job_is_interrupted_on_sigterm() {
    let farm = Farm::new();
    farm.submit_marked("j1", "sleep 3600");
    let taker = farm.start_taker("0s");
    wait_for_content(&farm.directory.path().join("ran"));
    taker.signal(Signal::SIGTERM);
    assert_eq!(taker.end().code(), Some(1));
    let outcome = farm.outcome("j1");
    assert_eq!(
        (outcome.result, outcome.signal),
        (JobResult::Interrupted, Some(15))
    );
    assert_eq!(farm.names("done"), ["j1.json"]);
}

#[test]
fn the_job_of_a_killed_taker_is_ended_and_called_interrupted() {
    let farm = Farm::new();
    let pid_file = farm.directory.path().join("pid");
    farm.submit(
        "j1",
        &[
            "sh",
            "-c",
            &format!("echo $$ > '{}'; exec sleep 3600", pid_file.display()),
        ],
    );
    let taker = farm.start_taker("0s");
    wait_for_content(&pid_file);
    taker.signal(Signal::SIGKILL);
    taker.end();
    let pid = fs_err::read_to_string(&pid_file).unwrap();
    assert!(Path::new(&format!("/proc/{}", pid.trim())).exists());
    let answer = farm.take();
    assert_eq!(
        answer.report,
        "job.name=job j1\njob.result=interrupted\njob.id=j1\n"
    );
    assert_eq!(answer.code, 0);
    assert_is_gone(&pid);
    assert_eq!(farm.names("done"), ["j1.json"]);
}

#[test]
fn the_job_of_a_living_taker_is_left_alone() {
    let farm = Farm::new();
    let go = farm.directory.path().join("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    farm.submit_marked("j1", &format!("cat '{}'", go.display()));
    let taker = farm.start_taker("0s");
    wait_for_content(&farm.directory.path().join("ran"));
    assert_eq!(farm.take().report, "");
    assert_eq!(farm.names("running"), ["j1.json", "j1.started"]);
    fs_err::write(&go, "").unwrap();
    assert!(taker.end().success());
    assert_eq!(farm.outcome("j1").result, JobResult::Success);
}

/// The steps of a job's way, which a taker makes one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Claim,
    MarkStarted,
    WriteResult,
    Finish,
}

const STEPS: [Step; 4] = [
    Step::Claim,
    Step::MarkStarted,
    Step::WriteResult,
    Step::Finish,
];

/// Makes the steps up to `last` and dies: its lock goes with the claim.
fn die_after(farm: &Farm, last: Step) {
    let spool = farm.spool();
    let claim = spool.claim(&mut Vec::new()).unwrap().unwrap();
    let outcome = |claim: &Claim| Outcome {
        id: claim.id().into(),
        name: claim.job().name.clone(),
        result: JobResult::Success,
        exit_code: Some(0),
        signal: None,
        timed_out: false,
        error: None,
        started: None,
        finished: clock(),
        host: "tst-1".into(),
        output_bytes: 0,
        output_dropped: 0,
    };
    if last >= Step::MarkStarted {
        // A process that ended: pid 1 never is a job's.
        let started = Started {
            at: clock(),
            boot_id: String::new(),
            pid: 1,
            start_ticks: 0,
        };
        claim.mark_started(&started).unwrap();
    }
    if last >= Step::WriteResult {
        claim.write_result(&outcome(&claim)).unwrap();
    }
    if last >= Step::Finish {
        claim.finish().unwrap();
    }
}

#[test]
fn a_taker_that_dies_after_any_step_loses_nothing_and_repeats_nothing() {
    for last in STEPS {
        let farm = Farm::new();
        farm.submit_marked("j1", "true");
        die_after(&farm, last);
        let answer = farm.take();
        let (result, runs) = match last {
            Step::Claim => ("success", 1),
            Step::MarkStarted => ("interrupted", 0),
            Step::WriteResult | Step::Finish => ("success", 0),
        };
        assert_eq!(farm.outcome("j1").result.as_str(), result, "{last:?}");
        assert_eq!(farm.ran().get("j1").copied().unwrap_or(0), runs, "{last:?}");
        // Whoever died before the last step may not have reported.
        let is_reported = !answer.report.is_empty();
        assert_eq!(is_reported, last != Step::Finish, "{last:?}");
        assert_eq!(farm.names("done"), ["j1.json"], "{last:?}");
        assert_eq!(farm.names("running"), Vec::<String>::new(), "{last:?}");
        assert_eq!(farm.take().report, "", "{last:?}");
    }
}

#[test]
fn a_taker_that_dies_within_a_step_leaves_nothing_that_misleads() {
    // What a killed process can leave besides whole steps: the new file of a write.
    for name in [".j1.started.new", ".j1.json.new"] {
        let farm = Farm::new();
        farm.submit_marked("j1", "true");
        die_after(&farm, Step::Claim);
        fs_err::write(farm.path(&format!("running/{name}")), "{\"at\":").unwrap();
        fs_err::write(farm.path(&format!("results/{name}")), "{\"id\":").unwrap();
        farm.take();
        assert_eq!(farm.outcome("j1").result, JobResult::Success);
        assert_eq!(farm.ran()["j1"], 1);
    }
}

#[test]
fn a_taker_that_dies_between_the_move_and_the_removal_leaves_no_marker_for_ever() {
    let farm = Farm::new();
    farm.submit_marked("j1", "true");
    die_after(&farm, Step::Finish);
    fs_err::write(farm.path("running/j1.started"), "{}").unwrap();
    assert_eq!(farm.take().report, "");
    assert_eq!(farm.names("running"), Vec::<String>::new());
}

#[test]
fn damaged_files_of_ours_mean_interrupted_and_never_a_second_run() {
    for name in ["running/j1.started", "results/j1.json"] {
        let farm = Farm::new();
        farm.submit_marked("j1", "true");
        die_after(&farm, Step::Claim);
        fs_err::write(farm.path(name), "{").unwrap();
        assert_eq!(farm.take().code, 0);
        assert_eq!(farm.outcome("j1").result, JobResult::Interrupted, "{name}");
        assert!(farm.ran().is_empty(), "{name}");
    }
}

#[test]
fn two_claims_are_never_of_the_same_job() {
    let farm = Farm::new();
    for number in 0..200 {
        farm.submit(&format!("j{number}"), &["true"]);
    }
    let spool = farm.spool();
    let ids: Vec<String> = std::thread::scope(|scope| {
        let claimers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut claims = Vec::new();
                    while let Some(claim) = spool.claim(&mut Vec::new()).unwrap() {
                        claims.push(claim);
                    }
                    claims
                })
            })
            .collect();
        let claims: Vec<Claim> = claimers
            .into_iter()
            .flat_map(|claimer| claimer.join().unwrap())
            .collect();
        claims.iter().map(|claim| claim.id().to_owned()).collect()
    });
    let unique: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len());
    assert_eq!(ids.len(), 200);
}

/// 200 jobs, two takers at a time, each killed with SIGKILL at a moment of chance.
#[test]
fn two_hundred_jobs_survive_takers_that_are_killed_at_any_time() {
    const JOBS: usize = 200;
    let farm = Farm::new();
    for number in 0..JOBS {
        farm.submit_marked(&format!("j{number}"), "true");
    }
    let (mut kills, mut rounds) = (0, 0);
    let mut chance = proptest::test_runner::TestRunner::deterministic();
    while farm.names("pending").len() + farm.names("running").len() > 0 {
        rounds += 1;
        assert!(rounds < 20 * JOBS, "the jobs do not come to an end");
        let mut takers = [farm.start_taker("1ms"), farm.start_taker("1ms")];
        for taker in &mut takers {
            // A taker needs some 20 ms for a job.
            let strategy = 0_u64..30_000;
            let tree = strategy.new_tree(&mut chance).unwrap();
            let limit = Duration::from_micros(proptest::strategy::ValueTree::current(&tree));
            if !taker.ends_within(limit) {
                taker.signal(Signal::SIGKILL);
                kills += 1;
            }
        }
    }
    let ran = farm.ran();
    let mut interrupted = 0;
    for number in 0..JOBS {
        let id = format!("j{number}");
        let runs = ran.get(&id).copied().unwrap_or(0);
        match farm.outcome(&id).result {
            JobResult::Success => assert_eq!(runs, 1, "{id}"),
            JobResult::Interrupted => {
                assert!(runs <= 1, "{id}");
                interrupted += 1;
            }
            other => panic!("{id} ended with {other}"),
        }
    }
    assert_eq!(farm.names("done").len(), JOBS);
    // It proves nothing unless takers died, and died while a job ran.
    assert!(kills >= 50, "{kills} takers killed");
    assert!(
        interrupted > 0 && interrupted < JOBS,
        "{interrupted} interrupted"
    );
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{kills} takers killed, {interrupted} of {JOBS} jobs interrupted"
    )
    .unwrap();
}
