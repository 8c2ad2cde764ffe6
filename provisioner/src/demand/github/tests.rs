use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex as StdMutex};

use serde_json::{Value, json};

use super::super::stub::{Asked, Given, Stub};
use super::*;

fn noon() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

fn later(seconds: i64) -> Timestamp {
    noon() + jiff::SignedDuration::from_secs(seconds)
}

struct Farm {
    stub: Stub,
    github: Github,
    _token: tempfile::TempDir,
}

async fn farm(answer: impl Fn(&Asked) -> Given + Send + Sync + 'static) -> Farm {
    farm_with(answer, |_| {}).await
}

async fn farm_with(
    answer: impl Fn(&Asked) -> Given + Send + Sync + 'static,
    change: impl FnOnce(&mut GithubSettings),
) -> Farm {
    let token = tempfile::tempdir().unwrap();
    let token_file = token.path().join("token");
    fs_err::write(&token_file, "s3cr3t-t0k3n").unwrap();
    fs_err::set_permissions(&token_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let stub = Stub::start(answer).await;
    let mut settings = GithubSettings {
        url: stub.url().into(),
        repositories: vec!["octo/app".into()],
        token_file: Some(token_file),
        ..GithubSettings::default()
    };
    change(&mut settings);
    Farm {
        github: Github::new(settings).unwrap(),
        stub,
        _token: token,
    }
}

/// A run with the keys of the reference that matter here, and some that do not.
fn run(id: u64, status: &str) -> Value {
    json!({
        "id": id, "name": "CI", "status": status, "conclusion": null, "run_attempt": 1,
        "head_branch": "main", "event": "push", "workflow_id": 7,
        "created_at": "2026-05-01T11:50:00Z", "updated_at": "2026-05-01T11:50:00Z",
    })
}

fn job(id: u64, name: &str, status: &str, labels: &[&str]) -> Value {
    json!({
        "id": id, "run_id": 1, "name": name, "status": status, "conclusion": null,
        "created_at": "2026-05-01T11:55:00Z", "started_at": "2026-05-01T11:56:00Z",
        "completed_at": null, "labels": labels, "runner_id": null, "workflow_name": "CI",
        "steps": [],
    })
}

fn page(key: &str, rows: &[Value], asked: &Asked) -> Given {
    let number = |name: &str| -> usize {
        let (_, rest) = asked.path.split_once(&format!("{name}=")).unwrap();
        rest.split('&').next().unwrap().parse().unwrap()
    };
    let (size, page) = (number("per_page"), number("page"));
    assert!(size <= 100, "GitHub gives no more");
    // `page=` is also the end of `per_page=`: the last one counts.
    let page = asked
        .path
        .rsplit("&page=")
        .next()
        .map_or(page, |it| it.parse().unwrap());
    let rows_of_page: Vec<_> = rows.iter().skip((page - 1) * size).take(size).collect();
    Given::json(json!({ "total_count": rows.len(), key: rows_of_page }).to_string())
}

/// A repository with these queued runs, runs in progress, and the same jobs in each run.
fn repository(
    queued: Vec<Value>,
    active: Vec<Value>,
    jobs: Vec<Value>,
) -> impl Fn(&Asked) -> Given {
    move |asked| {
        if asked.path.contains("/jobs?filter=latest&") {
            page("jobs", &jobs, asked)
        } else if asked.path.contains("/actions/runs?status=queued&") {
            page("workflow_runs", &queued, asked)
        } else {
            assert!(
                asked.path.contains("/actions/runs?status=in_progress&"),
                "{asked:?}"
            );
            page("workflow_runs", &active, asked)
        }
    }
}

fn jobs(observation: Observation) -> Vec<WaitingJob> {
    match observation.work {
        Work::Jobs(jobs) => jobs,
        Work::Counts(counts) => panic!("{counts:?}"),
    }
}

#[tokio::test]
async fn queued_jobs_wait_and_jobs_in_progress_run() {
    let all = vec![
        job(
            1,
            "test (linux, 3)",
            "queued",
            &["self-hosted", "Linux", "x64"],
        ),
        job(2, "build", "in_progress", &["linux"]),
        job(3, "done", "completed", &["linux"]),
        job(4, "approval", "waiting", &["linux"]),
        job(5, "after", "pending", &["linux"]),
    ];
    let farm = farm(repository(vec![], vec![run(9, "in_progress")], all)).await;
    let observation = farm.github.observe(noon()).await.unwrap();
    let expected = [
        WaitingJob {
            name: "octo/app / CI / test (linux, 3) [linux,self-hosted,x64]".into(),
            since: "2026-05-01T11:55:00Z".parse().unwrap(),
            running: false,
        },
        WaitingJob {
            name: "octo/app / CI / build [linux]".into(),
            since: "2026-05-01T11:56:00Z".parse().unwrap(),
            running: true,
        },
    ];
    assert_eq!(jobs(observation), expected);
    assert_eq!(
        farm.stub.paths(),
        [
            "/repos/octo/app/actions/runs?status=queued&per_page=100&page=1",
            "/repos/octo/app/actions/runs?status=in_progress&per_page=100&page=1",
            "/repos/octo/app/actions/runs/9/jobs?filter=latest&per_page=100&page=1",
        ]
    );
    for asked in farm.stub.asked() {
        assert_eq!(asked.header("authorization"), Some("Bearer s3cr3t-t0k3n"));
        assert_eq!(asked.header("x-github-api-version"), Some(API_VERSION));
        assert!(
            asked.header("user-agent").is_some(),
            "GitHub refuses requests without"
        );
    }
}

#[tokio::test]
async fn lists_are_read_to_their_last_page() {
    for count in [0, 1, 99, 100, 101, 250] {
        let rows = (0..count).map(|id| job(id, "test", "queued", &["linux"]));
        let rows: Vec<_> = rows.collect();
        let expected = rows.len();
        let farm = farm(repository(vec![run(1, "queued")], vec![], rows)).await;
        let observation = farm.github.observe(noon()).await.unwrap();
        assert_eq!(jobs(observation).len(), expected);
        let pages = expected.div_ceil(100).max(1);
        assert_eq!(farm.stub.paths().len(), 2 + pages, "{count} jobs");
    }
}

#[tokio::test]
async fn a_run_that_starts_in_between_is_counted_once() {
    let both = vec![run(1, "queued")];
    let farm = farm(repository(
        both.clone(),
        both,
        vec![job(1, "test", "queued", &[])],
    ))
    .await;
    assert_eq!(jobs(farm.github.observe(noon()).await.unwrap()).len(), 1);
}

#[tokio::test]
async fn a_list_that_shows_nothing_of_what_it_counts_is_not_empty() {
    let farm = farm(|_| Given::json(r#"{"total_count": 5, "workflow_runs": []}"#)).await;
    let error = farm.github.observe(noon()).await.unwrap_err();
    assert_eq!(
        error,
        SourceError::NotUnderstood("GitHub says there are 5 runs, and shows 0".into())
    );
}

#[tokio::test]
async fn more_runs_than_it_shows_are_not_taken_for_all() {
    // GitHub shows 1,000 runs of a search at most.
    let shown: Vec<_> = (0..1000).map(|id| run(id, "queued")).collect();
    let answer = move |asked: &Asked| {
        let given = repository(shown.clone(), vec![], vec![])(asked);
        if asked.path.contains("page=11") {
            return Given::json(r#"{"total_count": 2000, "workflow_runs": []}"#);
        }
        let page = asked
            .path
            .rsplit('=')
            .next()
            .unwrap()
            .parse::<usize>()
            .unwrap();
        if asked.path.contains("status=queued") && page <= 10 {
            let rows: Vec<_> = (0..100).map(|id| run(id, "queued")).collect();
            return Given::json(json!({"total_count": 2000, "workflow_runs": rows}).to_string());
        }
        given
    };
    let farm = farm(answer).await;
    let error = farm.github.observe(noon()).await.unwrap_err();
    assert_eq!(
        error,
        SourceError::NotUnderstood("GitHub says there are 2000 runs, and shows 1000".into())
    );
}

#[tokio::test]
async fn more_requests_than_allowed_are_not_made() {
    let active: Vec<_> = (0..10).map(|id| run(id, "in_progress")).collect();
    let answer = repository(vec![], active, vec![]);
    let farm = farm_with(answer, |settings| {
        settings.max_requests = NonZeroU32::new(11).unwrap();
    })
    .await;
    let error = farm.github.observe(noon()).await.unwrap_err();
    assert!(
        error.to_string().contains("raise `max_requests`"),
        "{error}"
    );
    assert_eq!(farm.stub.paths().len(), 11);
}

#[tokio::test]
async fn what_has_not_changed_is_not_sent_again() {
    let status = Arc::new(StdMutex::new("queued"));
    let now = status.clone();
    let answer = move |asked: &Asked| {
        let status = *now.lock().unwrap();
        let rows = vec![job(1, "test", status, &["linux"])];
        let given = repository(vec![], vec![run(9, "in_progress")], rows)(asked);
        let is_jobs = asked.path.contains("/jobs?");
        let etag = if is_jobs {
            format!("W/\"{status}\"")
        } else {
            "\"runs\"".into()
        };
        if asked.header("if-none-match") == Some(&etag) {
            Given::status(304, "").header("etag", etag).at(later(60))
        } else {
            given.header("etag", etag)
        }
    };
    let farm = farm(answer).await;
    let first = jobs(farm.github.observe(noon()).await.unwrap());
    let second = farm.github.observe(later(60)).await.unwrap();
    assert_eq!(
        second.as_of,
        later(60),
        "an old page that is still true is new"
    );
    assert_eq!(jobs(second), first);
    *status.lock().unwrap() = "in_progress";
    let third = jobs(farm.github.observe(later(120)).await.unwrap());
    assert!(third[0].running);
    let conditional = farm.stub.asked().into_iter();
    let conditional = conditional.filter(|asked| asked.header("if-none-match").is_some());
    assert_eq!(conditional.count(), 6, "all but those of the first pass");
}

#[tokio::test]
async fn pages_of_runs_that_are_over_are_forgotten() {
    let id = Arc::new(StdMutex::new(1));
    let now = id.clone();
    let answer = move |asked: &Asked| {
        let active = vec![run(*now.lock().unwrap(), "in_progress")];
        let given = repository(vec![], active, vec![])(asked);
        given.header("etag", "\"x\"")
    };
    let farm = farm(answer).await;
    for run in 1..=5 {
        *id.lock().unwrap() = run;
        farm.github.observe(noon()).await.unwrap();
        assert_eq!(farm.github.known.lock().await.pages.len(), 3);
    }
}

#[tokio::test]
async fn after_a_refusal_nothing_is_asked_until_the_time_it_names() {
    let reset = later(1800).as_second().to_string();
    let used_up = |status| {
        Given::status(
            status,
            r#"{"message": "API rate limit exceeded for user ID 1."}"#,
        )
        .header("x-ratelimit-remaining", "0")
        .at(noon())
    };
    let secondary = Given::status(
        403,
        r#"{"message": "You have exceeded a secondary rate limit."}"#,
    );
    let table = [
        (
            used_up(403).header("x-ratelimit-reset", reset.clone()),
            1800,
        ),
        (used_up(429).header("x-ratelimit-reset", reset), 1800),
        (secondary.clone().header("retry-after", "90"), 90),
        (secondary, 60),
        (Given::status(429, ""), 60),
        (Given::status(429, "").header("retry-after", "999999"), 3600),
    ];
    for (given, wait) in table {
        let shown = format!("{given:?}");
        let farm = farm(move |_| given.clone()).await;
        let error = farm.github.observe(noon()).await.unwrap_err();
        assert!(
            matches!(error, SourceError::Unavailable(_)),
            "{shown}: {error:?}"
        );
        let until = format!("not asked again before {:.0}", later(wait));
        assert!(error.to_string().ends_with(&until), "{shown}: {error}");

        let error = farm.github.observe(later(wait - 1)).await.unwrap_err();
        assert!(matches!(error, SourceError::Unavailable(_)), "{shown}");
        assert_eq!(farm.stub.paths().len(), 1, "{shown}");
        farm.github.observe(later(wait)).await.unwrap_err();
        assert_eq!(farm.stub.paths().len(), 2, "{shown}");
    }
}

#[tokio::test]
async fn a_right_that_is_missing_is_no_rate_limit() {
    let answer = |_: &Asked| {
        Given::status(
            403,
            r#"{"message": "Resource not accessible by personal access token"}"#,
        )
        .header("x-ratelimit-remaining", "4999")
    };
    let farm = farm(answer).await;
    for _ in 0..2 {
        let error = farm.github.observe(noon()).await.unwrap_err();
        assert!(matches!(error, SourceError::NotAllowed(_)), "{error:?}");
    }
    assert_eq!(farm.stub.paths().len(), 2);
}

#[tokio::test]
async fn a_repository_that_is_not_there_is_not_understood() {
    let farm = farm(|_| Given::status(404, r#"{"message": "Not Found"}"#)).await;
    let error = farm.github.observe(noon()).await.unwrap_err();
    assert!(matches!(error, SourceError::NotUnderstood(_)), "{error:?}");
}

#[tokio::test]
async fn a_renamed_repository_is_found_by_its_redirect() {
    let answer = |asked: &Asked| {
        let old = "/repos/octo/app/actions/runs";
        match asked.path.strip_prefix(old) {
            Some(rest) => Given::status(301, "")
                .header("location", format!("/repositories/5/actions/runs{rest}")),
            None => repository(vec![], vec![], vec![])(asked),
        }
    };
    let farm = farm(answer).await;
    assert_eq!(jobs(farm.github.observe(noon()).await.unwrap()), []);
}
