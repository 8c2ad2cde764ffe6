use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, fcntl_lock};

use super::*;

const JOB: &str = r#"{"name": "linux build", "command": ["make"], "env": {"A": "b"}}"#;

/// A spool as `runner` makes it.
struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["pending", "running", "results", "done", "rejected"] {
            fs_err::create_dir(directory.path().join(name)).unwrap();
        }
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs_err::write(self.path(name), text).unwrap();
        fs_err::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Name and whether it runs, of each job.
    fn jobs(&self) -> Vec<(String, bool)> {
        let jobs = jobs(self.0.path()).unwrap().into_iter();
        jobs.map(|job| (job.name, job.running)).collect()
    }
}

/// Locks a file as a taker does, in another process: a lock is no obstacle to its own.
fn taker(file: &Path) -> Taker {
    let mut child = std::process::Command::new("python3")
        .arg("-c")
        .arg("import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()")
        .arg(file)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut locked = [0];
    child
        .stdout
        .take()
        .unwrap()
        .read_exact(&mut locked)
        .unwrap();
    Taker(child)
}

struct Taker(std::process::Child);

impl Drop for Taker {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn submitted_jobs_wait_since_they_were_written() {
    let spool = Directory::new();
    spool.write("pending/.a.json", JOB);
    let submitted = fs_err::metadata(spool.path("pending/.a.json"))
        .unwrap()
        .mtime();
    fs_err::rename(spool.path("pending/.a.json"), spool.path("pending/a.json")).unwrap();
    let settings = SpoolSettings {
        directory: spool.0.path().to_owned(),
        pool: None,
    };
    let now = "2026-05-01T12:00:00Z".parse().unwrap();
    let observation = Spool::new(settings).observe(now).await.unwrap();
    let job = WaitingJob {
        name: "linux build".into(),
        since: Timestamp::from_second(submitted).unwrap(),
        running: false,
    };
    assert_eq!(observation, Observation::new(now, Work::Jobs(vec![job])));
}

#[test]
fn a_claimed_job_runs_as_long_as_its_taker_lives() {
    let spool = Directory::new();
    spool.write("running/a.json", JOB);
    spool.write("running/a.started", "{}");
    let taker = taker(&spool.path("running/a.json"));
    assert_eq!(spool.jobs(), [("linux build".to_owned(), true)]);
    drop(taker);
    assert_eq!(spool.jobs(), [], "it is never run a second time");
}

#[test]
fn a_claimed_job_that_never_began_waits_again_when_its_taker_dies() {
    let spool = Directory::new();
    spool.write("running/a.json", JOB);
    assert_eq!(spool.jobs(), [("linux build".to_owned(), false)]);
}

#[test]
fn a_job_that_is_claimed_in_between_counts_once_as_running() {
    let spool = Directory::new();
    spool.write("pending/a.json", JOB);
    spool.write("running/a.json", JOB);
    let _taker = taker(&spool.path("running/a.json"));
    assert_eq!(spool.jobs(), [("linux build".to_owned(), true)]);
}

#[test]
fn finished_jobs_do_not_count() {
    let spool = Directory::new();
    spool.write("results/a.json", JOB);
    spool.write("done/a.json", JOB);
    spool.write("rejected/b.json", JOB);
    assert_eq!(spool.jobs(), []);
}

#[test]
fn what_a_taker_would_reject_does_not_count() {
    let spool = Directory::new();
    for (name, text) in [
        ("hidden", ".a.json"),
        ("no job file", "a.txt"),
        ("no id", "a b.json"),
        (
            "an id that is too long",
            &format!("{}.json", "a".repeat(101)),
        ),
    ] {
        spool.write(&format!("pending/{text}"), JOB);
        assert_eq!(spool.jobs(), [], "{name}");
    }
    for (number, text) in [
        "",
        "[]",
        "{",
        r#"{"name": "x"}"#,
        r#"{"name": "x", "command": []}"#,
        r#"{"name": " ", "command": ["make"]}"#,
        r#"{"name": "a\nb", "command": ["make"]}"#,
        &format!(r#"{{"name": "{}", "command": ["make"]}}"#, "a".repeat(1025)),
    ]
    .into_iter()
    .enumerate()
    {
        spool.write(&format!("pending/{number}.json"), text);
        assert_eq!(spool.jobs(), [], "{text}");
    }
    std::os::unix::fs::symlink(
        spool.path("pending/a b.json"),
        spool.path("pending/link.json"),
    )
    .unwrap();
    fs_err::create_dir(spool.path("pending/directory.json")).unwrap();
    spool.write("pending/open.json", JOB);
    let open = std::fs::Permissions::from_mode(0o666);
    fs_err::set_permissions(spool.path("pending/open.json"), open).unwrap();
    assert_eq!(spool.jobs(), []);
}

#[test]
fn counting_neither_takes_a_lock_nor_changes_anything() {
    let spool = Directory::new();
    spool.write("pending/a.json", JOB);
    let listed = |spool: &Directory| {
        let entry = fs_err::metadata(spool.path("pending/a.json")).unwrap();
        let directory = fs_err::metadata(spool.path("pending")).unwrap();
        (entry.ctime_nsec(), entry.ino(), directory.mtime_nsec())
    };
    let before = listed(&spool);
    let held = fs_err::File::open(spool.path("pending/a.json")).unwrap();
    assert_eq!(spool.jobs().len(), 1);
    assert_eq!(listed(&spool), before);
    drop(held);
    // A taker that comes now gets it at once.
    let file = fs_err::OpenOptions::new()
        .write(true)
        .open(spool.path("pending/a.json"))
        .unwrap();
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[tokio::test]
async fn a_spool_that_is_not_there_is_unavailable() {
    let spool = Directory::new();
    fs_err::remove_dir(spool.path("pending")).unwrap();
    let settings = SpoolSettings {
        directory: spool.0.path().to_owned(),
        pool: None,
    };
    let now = "2026-05-01T12:00:00Z".parse().unwrap();
    let error = Spool::new(settings).observe(now).await.unwrap_err();
    assert!(matches!(error, SourceError::Unavailable(_)));
    assert!(error.to_string().contains("pending"), "{error}");
}
