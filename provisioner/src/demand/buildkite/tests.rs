use std::os::unix::fs::PermissionsExt as _;

use super::super::stub::{Asked, Given, Stub};
use super::*;
use crate::ids::PoolName;

/// As "Metrics API" of the documentation shows it, with three queues.
const ANSWER: &str = r#"{
    "agents": {"idle": 1, "busy": 3, "total": 4, "queues": {"default": {"idle": 1, "busy": 3, "total": 4}}},
    "jobs": {
        "scheduled": 12, "running": 3, "waiting": 50, "total": 65,
        "queues": {
            "default": {"scheduled": 5, "running": 3, "waiting": 50, "total": 58},
            "deploy": {"scheduled": 7, "running": 0, "waiting": 0, "total": 7},
            "quiet": {"scheduled": 0, "running": 0, "waiting": 0, "total": 0}
        }
    },
    "organization": {"slug": "farm"}
}"#;

fn noon() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

struct Farm {
    stub: Stub,
    buildkite: Buildkite,
    _token: tempfile::TempDir,
}

async fn farm(answer: impl Fn(&Asked) -> Given + Send + Sync + 'static, queues: &[&str]) -> Farm {
    let token = tempfile::tempdir().unwrap();
    let token_file = token.path().join("token");
    fs_err::write(&token_file, "s3cr3t-t0k3n").unwrap();
    fs_err::set_permissions(&token_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let stub = Stub::start(answer).await;
    let pool = PoolName::parse("linux").unwrap();
    let settings = BuildkiteSettings {
        url: stub.url().into(),
        queues: queues
            .iter()
            .map(|queue| ((*queue).to_owned(), pool.clone()))
            .collect(),
        token_file: Some(token_file),
        ..BuildkiteSettings::default()
    };
    Farm {
        buildkite: Buildkite::new(settings).unwrap(),
        stub,
        _token: token,
    }
}

fn linux(observation: &Observation) -> (u32, u32) {
    let Work::Counts(counts) = &observation.work else {
        panic!("{observation:?}");
    };
    let count = counts[&PoolName::parse("linux").unwrap()];
    (count.pending, count.running)
}

#[tokio::test]
async fn scheduled_jobs_wait_for_hosts_and_waiting_ones_for_other_jobs() {
    let farm = farm(|_| Given::json(ANSWER).at(noon()), &["default"]).await;
    let observation = farm.buildkite.observe(noon()).await.unwrap();
    assert_eq!(linux(&observation), (5, 3));
    assert_eq!(observation.as_of, noon());
    assert_eq!(farm.stub.paths(), ["/v3/metrics"]);
    let asked = &farm.stub.asked()[0];
    assert_eq!(asked.header("authorization"), Some("Token s3cr3t-t0k3n"));
}

#[tokio::test]
async fn queues_of_one_pool_add_up() {
    let farm = farm(|_| Given::json(ANSWER), &["default", "deploy"]).await;
    let observation = farm.buildkite.observe(noon()).await.unwrap();
    assert_eq!(linux(&observation), (12, 3));
    assert!(observation.unassigned.is_empty());
}

#[tokio::test]
async fn jobs_of_a_queue_that_no_pool_has_are_reported() {
    let farm = farm(|_| Given::json(ANSWER), &["default"]).await;
    let observation = farm.buildkite.observe(noon()).await.unwrap();
    assert_eq!(observation.unassigned, [("deploy".to_owned(), 7)].into());
}

#[tokio::test]
async fn a_queue_that_is_not_mentioned_has_no_job() {
    let farm = farm(|_| Given::json(ANSWER), &["nothing-there"]).await;
    let observation = farm.buildkite.observe(noon()).await.unwrap();
    assert_eq!(linux(&observation), (0, 0));
}

#[tokio::test]
async fn an_answer_without_organization_is_not_understood() {
    let answer = ANSWER.replace("\"farm\"", "\"\"");
    let farm = farm(move |_| Given::json(answer.clone()), &["default"]).await;
    let error = farm.buildkite.observe(noon()).await.unwrap_err();
    assert!(matches!(error, SourceError::NotUnderstood(_)), "{error}");
}

#[tokio::test]
async fn the_server_is_not_asked_more_often_than_it_wants() {
    let answer =
        |_: &Asked| Given::json(ANSWER).header("Buildkite-Agent-Metrics-Poll-Duration", "60");
    let farm = farm(answer, &["default"]).await;
    let first = farm.buildkite.observe(noon()).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(59)).await;
    let later = noon() + jiff::SignedDuration::from_secs(59);
    let second = farm.buildkite.observe(later).await.unwrap();
    assert_eq!(first, second, "with the time of the first");
    assert_eq!(farm.stub.paths().len(), 1);
    tokio::time::advance(Duration::from_secs(1)).await;
    tokio::time::resume();
    farm.buildkite.observe(later).await.unwrap();
    assert_eq!(farm.stub.paths().len(), 2);
}

#[tokio::test]
async fn a_server_that_does_not_care_is_asked_each_time() {
    for header in ["0", "", "soon", "-1"] {
        let answer = move |_: &Asked| {
            Given::json(ANSWER).header("Buildkite-Agent-Metrics-Poll-Duration", header)
        };
        let farm = farm(answer, &["default"]).await;
        for _ in 0..2 {
            farm.buildkite.observe(noon()).await.unwrap();
        }
        assert_eq!(farm.stub.paths().len(), 2, "{header:?}");
    }
}
