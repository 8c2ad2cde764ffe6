use super::super::stub::{Asked, Given, Stub};
use super::*;

/// Two requests that wait and one that runs, as Buildbot 4.3 answers.
const ANSWER: &str = r#"{
    "buildrequests": [
        {"builderid": 1, "claimed": false, "claimed_at": null, "complete": false, "submitted_at": 1777636700},
        {"builderid": 2, "claimed": false, "claimed_at": null, "complete": false, "submitted_at": 1777636790},
        {"builderid": 1, "claimed": true, "claimed_at": 1777636795, "complete": false, "submitted_at": 1777636000}
    ],
    "meta": {"total": 3}
}"#;
const NAMES: &str = r#"{
    "builders": [{"builderid": 1, "name": "linux"}, {"builderid": 2, "name": "windows"}],
    "meta": {"total": 2}
}"#;

fn now() -> Timestamp {
    Timestamp::from_second(1_777_636_800).unwrap()
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

async fn master(requests: impl Into<String>) -> (Stub, Buildbot) {
    let requests = requests.into();
    let stub = Stub::start(move |asked| answer(asked, &requests)).await;
    let settings = BuildbotSettings {
        url: stub.url().into(),
        ..BuildbotSettings::default()
    };
    let buildbot = Buildbot::new(&settings).unwrap();
    (stub, buildbot)
}

fn answer(asked: &Asked, requests: &str) -> Given {
    if asked.path.starts_with("/api/v2/builders?") {
        Given::json(NAMES)
    } else {
        Given::json(requests).at(second(1_777_636_799))
    }
}

#[tokio::test]
async fn requests_wait_or_run() {
    let (stub, buildbot) = master(ANSWER).await;
    let observation = buildbot.observe(now()).await.unwrap();
    let job = |name: &str, since, running| WaitingJob {
        name: name.into(),
        since: second(since),
        running,
    };
    assert_eq!(
        observation.work,
        Work::Jobs(vec![
            job("linux", 1_777_636_700, false),
            job("windows", 1_777_636_790, false),
            job("linux", 1_777_636_795, true),
        ])
    );
    assert_eq!(
        observation.as_of,
        second(1_777_636_799),
        "the master's clock"
    );
    assert_eq!(stub.paths(), [REQUESTS, BUILDERS]);
    assert!(stub.asked().iter().all(|asked| asked.method == "GET"));
}

#[tokio::test]
async fn names_are_asked_for_once() {
    let (stub, buildbot) = master(ANSWER).await;
    for _ in 0..3 {
        buildbot.observe(now()).await.unwrap();
    }
    assert_eq!(stub.paths(), [REQUESTS, BUILDERS, REQUESTS, REQUESTS]);
}

#[tokio::test]
async fn a_builder_that_nobody_knows_is_asked_for_and_then_has_a_name_all_the_same() {
    let unknown = ANSWER.replace(r#""builderid": 2"#, r#""builderid": 9"#);
    let (stub, buildbot) = master(unknown).await;
    for _ in 0..2 {
        let observation = buildbot.observe(now()).await.unwrap();
        let Work::Jobs(jobs) = observation.work else {
            panic!("{observation:?}");
        };
        assert_eq!(jobs[1].name, "builder 9");
    }
    assert_eq!(stub.paths(), [REQUESTS, BUILDERS, REQUESTS, BUILDERS]);
}

#[tokio::test]
async fn no_request_is_an_empty_answer() {
    let (stub, buildbot) = master(r#"{"buildrequests": [], "meta": {"total": 0}}"#).await;
    for _ in 0..2 {
        let observation = buildbot.observe(now()).await.unwrap();
        assert_eq!(observation.work, Work::Jobs(vec![]));
    }
    assert_eq!(stub.paths(), [REQUESTS, BUILDERS, REQUESTS]);
}

#[tokio::test]
async fn a_list_that_is_cut_is_not_taken_for_all() {
    let cut = ANSWER.replace(r#""total": 3"#, r#""total": 300"#);
    let (_stub, buildbot) = master(cut).await;
    let error = buildbot.observe(now()).await.unwrap_err();
    assert_eq!(
        error,
        SourceError::NotUnderstood(
            "it shows 3 of 300 requests: expected all; is something in between that cuts lists?"
                .into()
        )
    );
}

#[tokio::test]
async fn a_request_at_no_time_is_not_understood() {
    let never = ANSWER.replace("1777636700", "999999999999999");
    let (_stub, buildbot) = master(never).await;
    let error = buildbot.observe(now()).await.unwrap_err();
    assert!(matches!(error, SourceError::NotUnderstood(_)), "{error}");
}
