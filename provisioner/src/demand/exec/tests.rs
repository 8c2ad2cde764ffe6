use std::path::Path;

use super::*;

fn noon() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

fn shell(script: &str) -> ExecSettings {
    ExecSettings {
        command: ["sh", "-c", script].map(ToOwned::to_owned).to_vec(),
        ..ExecSettings::default()
    }
}

async fn observed(settings: ExecSettings) -> Result<Observation, SourceError> {
    Exec::new(settings).observe(noon()).await
}

async fn printed(json: &str, pools: &[&str]) -> Result<Observation, SourceError> {
    let settings = ExecSettings {
        command: ["printf", "%s", json].map(ToOwned::to_owned).to_vec(),
        pools: pools
            .iter()
            .map(|it| PoolName::parse(it).unwrap())
            .collect(),
        ..ExecSettings::default()
    };
    observed(settings).await
}

#[tokio::test]
async fn jobs_are_names_with_times() {
    let json = r#"{"jobs": [
        {"name": "linux build", "since": "2026-05-01T11:59:00Z"},
        {"name": "windows build", "since": 1777636740, "running": true}
    ]}"#;
    let observation = printed(json, &[]).await.unwrap();
    let since = "2026-05-01T11:59:00Z".parse().unwrap();
    let job = |name: &str, running| WaitingJob {
        name: name.into(),
        since,
        running,
    };
    assert_eq!(
        observation,
        Observation::new(
            noon(),
            Work::Jobs(vec![job("linux build", false), job("windows build", true)])
        )
    );
}

#[tokio::test]
async fn counts_are_for_the_pools_of_the_setting() {
    let json = r#"{
        "as_of": "2026-05-01T11:59:30Z",
        "pools": {"linux": {"pending": 3, "running": 2, "oldest_age": "5m"}, "mac": {"pending": 0}}
    }"#;
    let observation = printed(json, &["linux", "mac"]).await.unwrap();
    let count = |pending, running, oldest_age| Count {
        pending,
        running,
        oldest_age,
    };
    let counts = [
        ("linux", count(3, 2, Some(Duration::from_secs(300)))),
        ("mac", count(0, 0, None)),
    ];
    let counts = counts.map(|(pool, count)| (PoolName::parse(pool).unwrap(), count));
    assert_eq!(observation.work, Work::Counts(counts.into()));
    assert_eq!(observation.as_of.to_string(), "2026-05-01T11:59:30Z");
}

#[tokio::test]
async fn what_is_no_answer_is_said_and_is_no_zero() {
    let mut said = Vec::new();
    for (json, pools) in [
        ("", &[][..]),
        ("hello", &[]),
        ("{}", &[]),
        (r#"{"jobs": [], "pools": {}}"#, &[]),
        (r#"{"jobs": [], "jbos": []}"#, &[]),
        (r#"{"jobs": [{"name": "x"}]}"#, &[]),
        (r#"{"jobs": [{"name": "x", "since": "noon"}]}"#, &[]),
        (
            r#"{"jobs": [{"name": "x", "since": 1, "pending": true}]}"#,
            &[],
        ),
        (r#"{"jobs": []}"#, &["linux"]),
        (r#"{"pools": {"linux": {"pending": 1}}}"#, &[]),
        (r#"{"pools": {"linxu": {"pending": 1}}}"#, &["linux"]),
        (r#"{"pools": {}}"#, &["linux"]),
        (r#"{"pools": {"linux": {"pending": -1}}}"#, &["linux"]),
        (r#"{"pools": {"linux": {}}}"#, &["linux"]),
    ] {
        let error = printed(json, pools).await.unwrap_err();
        assert!(
            matches!(error, SourceError::NotUnderstood(_)),
            "{json}: {error:?}"
        );
        said.push(format!("{json:60} {error}"));
    }
    insta::assert_snapshot!(said.join("\n"));
}

#[tokio::test]
async fn no_job_is_an_empty_answer() {
    let observation = printed(r#"{"jobs": []}"#, &[]).await.unwrap();
    assert_eq!(observation.work, Work::Jobs(vec![]));
}

#[tokio::test]
async fn a_program_that_fails_says_why() {
    let error = observed(shell("echo no route >&2; echo '{\"jobs\": []}'; exit 3"))
        .await
        .unwrap_err();
    assert_eq!(
        error,
        SourceError::Unavailable("`sh` failed (exit status: 3): no route".into())
    );
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let settings = ExecSettings {
        command: vec!["/no/such/program".into()],
        ..ExecSettings::default()
    };
    let message = observed(settings).await.unwrap_err().to_string();
    assert_eq!(
        message,
        "`/no/such/program` cannot be started: No such file or directory (os error 2)"
    );
}

#[tokio::test]
async fn there_is_no_shell_and_a_clean_environment() {
    let json = r#"{"jobs": [{"name": "$HOME `id` *", "since": 1}]}"#;
    let observation = printed(json, &[]).await.unwrap();
    let Work::Jobs(jobs) = observation.work else {
        panic!("{observation:?}");
    };
    assert_eq!(jobs[0].name, "$HOME `id` *");

    let script = r#"printf '{"jobs": [{"name": "%s", "since": 1}]}' "$(env | grep -v -e ^PWD -e ^_ -e ^SHLVL -e ^OLDPWD | sort | tr '\n' ' ')""#;
    let observation = observed(shell(script)).await.unwrap();
    let Work::Jobs(jobs) = observation.work else {
        panic!("{observation:?}");
    };
    assert_eq!(jobs[0].name, format!("LANG=C.UTF-8 PATH={PATH} "));
}

#[tokio::test]
async fn output_without_end_is_not_kept() {
    let error = observed(shell(&format!("head -c {} /dev/zero", LONGEST_ANSWER + 1)))
        .await
        .unwrap_err();
    assert_eq!(
        error,
        SourceError::NotUnderstood("`sh` prints more than 33554432 bytes".into())
    );
}

#[tokio::test]
async fn complaints_without_end_stop_nobody() {
    let script = r#"head -c 1000000 /dev/zero >&2; echo '{"jobs": []}'"#;
    assert!(observed(shell(script)).await.is_ok());
}

/// Whether a process is there and not a zombie.
fn lives(pid: &str) -> bool {
    let status = fs_err::read_to_string(Path::new("/proc").join(pid).join("stat"));
    status.is_ok_and(|status| !status.contains(") Z "))
}

/// The process whose id `script` wrote to the file `$1`, once it is written.
async fn written(file: &Path) -> String {
    loop {
        if let Ok(pid) = fs_err::read_to_string(file)
            && pid.ends_with('\n')
        {
            return pid.trim().to_owned();
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Ends when the process has.
async fn gone(pid: &str) {
    while lives(pid) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_program_that_runs_too_long_ends_with_its_group() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    // It takes SIGTERM for a hint, and has a child that holds its output open.
    let script = format!(
        "trap '' TERM; sleep 600 & echo $! > {}; wait; wait",
        file.display()
    );
    let settings = ExecSettings {
        timeout: Duration::from_millis(500),
        ..shell(&script)
    };
    let error = observed(settings).await.unwrap_err();
    assert_eq!(
        error,
        SourceError::Unavailable("`sh` ran longer than 500ms, and was ended".into())
    );
    gone(&written(&file).await).await;
}

#[tokio::test]
async fn what_a_program_leaves_behind_neither_delays_nor_survives() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = format!(
        "sleep 600 & echo $! > {}; echo '{{\"jobs\": []}}'",
        file.display()
    );
    assert!(observed(shell(&script)).await.is_ok());
    gone(&written(&file).await).await;
}

#[tokio::test]
async fn a_program_that_is_no_longer_waited_for_ends_with_its_group() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}; wait", file.display());
    let asked = tokio::spawn(observed(shell(&script)));
    let pid = written(&file).await;
    assert!(lives(&pid));
    asked.abort();
    gone(&pid).await;
}
