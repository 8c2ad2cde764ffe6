use super::super::stub::{Asked, Given, Stub};
use super::*;
use crate::ids::PoolName;

fn noon() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

fn queues(queues: &[(&str, &str)]) -> BTreeMap<String, PoolName> {
    let queues = queues.iter();
    queues
        .map(|(queue, pool)| ((*queue).to_owned(), PoolName::parse(pool).unwrap()))
        .collect()
}

fn settings(stub: &Stub, of: &[(&str, &str)]) -> TaskclusterSettings {
    TaskclusterSettings {
        url: stub.url().into(),
        queues: queues(of),
        ..TaskclusterSettings::default()
    }
}

/// One queue as `task-queue-counts-response.yml` has it.
fn counts(queue: &str, pending: u32, claimed: u32) -> String {
    let (provisioner, worker) = queue.split_once('/').unwrap();
    format!(
        r#"{{"provisionerId": "{provisioner}", "workerType": "{worker}", "taskQueueId": "{queue}", "pendingTasks": {pending}, "claimedTasks": {claimed}}}"#
    )
}

/// An error as the API library of Taskcluster writes it.
fn refused(status: u16, code: &str) -> Given {
    let body = format!(
        r#"{{"code": "{code}", "message": "Client ID static/farm does not have sufficient scopes", "requestInfo": {{}}}}"#
    );
    Given::status(status, body)
}

fn count(observation: &Observation, pool: &str) -> (u32, u32) {
    let Work::Counts(counts) = &observation.work else {
        panic!("{observation:?}");
    };
    let count = counts[&PoolName::parse(pool).unwrap()];
    (count.pending, count.running)
}

/// A service of three queues with the endpoints that are named.
fn service(asked: &Asked, endpoints: &[&str]) -> Given {
    let each = |queue: &str| match queue {
        "proj%2Fbig" => Some(("proj/big", 40, 9)),
        "proj%2Fsmall" => Some(("proj/small", 2, 1)),
        "other%2Fmac" => Some(("other/mac", 0, 0)),
        _ => None,
    };
    let Some(rest) = asked.path.strip_prefix("/api/queue/v1/") else {
        return Given::status(404, "{}");
    };
    if rest == "task-queues/counts" && endpoints.contains(&"batch") {
        assert_eq!(asked.method, "POST");
        let body: serde_json::Value = serde_json::from_str(&asked.body).unwrap();
        let wanted = body["taskQueueIds"].as_array().unwrap();
        let counts = wanted.iter().map(|queue| {
            let queue = escaped(queue.as_str().unwrap());
            let (queue, pending, claimed) = each(&queue).unwrap();
            counts(queue, pending, claimed)
        });
        let counts: Vec<_> = counts.rev().collect();
        return Given::json(format!(r#"{{"taskQueueCounts": [{}]}}"#, counts.join(",")));
    }
    let single = rest.strip_prefix("task-queues/");
    if let Some(queue) = single.and_then(|rest| rest.strip_suffix("/counts"))
        && endpoints.contains(&"each")
        && let Some((queue, pending, claimed)) = each(queue)
    {
        return Given::json(counts(queue, pending, claimed));
    }
    if let Some(queue) = rest.strip_prefix("pending/")
        && endpoints.contains(&"pending")
        && let Some((queue, pending, _)) = each(queue)
    {
        let (provisioner, worker) = queue.split_once('/').unwrap();
        return Given::json(format!(
            r#"{{"provisionerId": "{provisioner}", "workerType": "{worker}", "taskQueueId": "{queue}", "pendingTasks": {pending}}}"#
        ));
    }
    refused(
        if endpoints.contains(&"old") { 404 } else { 403 },
        "InsufficientScopes",
    )
}

const THREE: &[(&str, &str)] = &[
    ("proj/big", "linux"),
    ("proj/small", "linux"),
    ("other/mac", "mac"),
];

#[tokio::test]
async fn all_queues_are_counted_in_one_request() {
    let stub = Stub::start(|asked| service(asked, &["batch", "each", "pending"])).await;
    let taskcluster = Taskcluster::new(settings(&stub, THREE)).unwrap();
    let observation = taskcluster.observe(noon()).await.unwrap();
    assert_eq!(count(&observation, "linux"), (42, 10));
    assert_eq!(count(&observation, "mac"), (0, 0));
    assert_eq!(stub.paths(), ["/api/queue/v1/task-queues/counts"]);
    assert_eq!(stub.asked()[0].header("authorization"), None, "anonymous");
}

#[tokio::test]
async fn an_older_service_is_asked_queue_by_queue_and_that_is_remembered() {
    let stub = Stub::start(|asked| service(asked, &["each", "old"])).await;
    let taskcluster = Taskcluster::new(settings(&stub, THREE)).unwrap();
    for _ in 0..2 {
        let observation = taskcluster.observe(noon()).await.unwrap();
        assert_eq!(count(&observation, "linux"), (42, 10));
    }
    let each = [
        "/api/queue/v1/task-queues/other%2Fmac/counts",
        "/api/queue/v1/task-queues/proj%2Fbig/counts",
        "/api/queue/v1/task-queues/proj%2Fsmall/counts",
    ];
    let expected = [&["/api/queue/v1/task-queues/counts"][..], &each, &each].concat();
    assert_eq!(stub.paths(), expected);
}

#[tokio::test]
async fn without_the_scope_for_claimed_tasks_pending_ones_are_still_counted() {
    let stub = Stub::start(|asked| service(asked, &["pending"])).await;
    let taskcluster = Taskcluster::new(settings(&stub, THREE)).unwrap();
    for _ in 0..2 {
        let observation = taskcluster.observe(noon()).await.unwrap();
        assert_eq!(count(&observation, "linux"), (42, 0));
    }
    assert_eq!(stub.paths().len(), 5 + 3);
}

#[tokio::test]
async fn without_any_scope_it_is_not_allowed_and_tried_anew_the_next_time() {
    let stub = Stub::start(|asked| service(asked, &[])).await;
    let taskcluster = Taskcluster::new(settings(&stub, &[("a/b", "linux")])).unwrap();
    for pass in 1..=2 {
        let error = taskcluster.observe(noon()).await.unwrap_err();
        assert_eq!(
            error,
            SourceError::NotAllowed(
                "HTTP 403: Client ID static/farm does not have sufficient scopes".into()
            )
        );
        assert_eq!(stub.paths().len(), 3 * pass);
    }
}

#[tokio::test]
async fn a_queue_that_is_left_out_is_no_empty_queue() {
    let answer = format!(r#"{{"taskQueueCounts": [{}]}}"#, counts("proj/big", 1, 1));
    let stub = Stub::start(move |_| Given::json(answer.clone())).await;
    let taskcluster = Taskcluster::new(settings(&stub, THREE)).unwrap();
    let error = taskcluster.observe(noon()).await.unwrap_err();
    assert_eq!(
        error,
        SourceError::NotUnderstood(
            "it says nothing of the queue `other/mac`, for which it was asked".into()
        )
    );
}

#[tokio::test]
async fn more_queues_than_fit_are_asked_for_in_turn() {
    let stub = Stub::start(|asked| {
        let body: serde_json::Value = serde_json::from_str(&asked.body).unwrap();
        let wanted = body["taskQueueIds"].as_array().unwrap();
        assert!(wanted.len() <= MOST_QUEUES);
        let counts = wanted.iter().map(|it| counts(it.as_str().unwrap(), 1, 0));
        let counts: Vec<_> = counts.collect();
        Given::json(format!(r#"{{"taskQueueCounts": [{}]}}"#, counts.join(",")))
    })
    .await;
    let names: Vec<String> = (0..=MOST_QUEUES).map(|it| format!("a/{it}")).collect();
    let all: Vec<_> = names.iter().map(|name| (name.as_str(), "linux")).collect();
    let taskcluster = Taskcluster::new(settings(&stub, &all)).unwrap();
    let observation = taskcluster.observe(noon()).await.unwrap();
    assert_eq!(count(&observation, "linux"), (1001, 0));
    assert_eq!(stub.paths().len(), 2);
}

/// The example of the protocol's own description.
#[test]
fn the_signature_is_that_of_hawk() {
    let lines = [
        "hawk.1.header",
        "1353832234",
        "j4h3g2",
        "GET",
        "/resource/1?b=1&a=2",
        "example.com",
        "8000",
        "",
        "some-app-ext-data",
    ];
    assert_eq!(
        hawk_mac("werxhqb98rpaxn39848xrunpaw3489ruxnpa98w4rxn", &lines),
        "6R4rV5iE+NPoym+WwjeHzjAGXUtLNIxmo1vpMofpLAE="
    );
}

#[tokio::test]
async fn requests_are_signed_and_the_token_is_not_sent() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let token_file = directory.path().join("token");
    fs_err::write(&token_file, "s3cr3t-t0k3n").unwrap();
    fs_err::set_permissions(&token_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let stub = Stub::start(|asked| service(asked, &["pending"])).await;
    let taskcluster = Taskcluster::new(TaskclusterSettings {
        client_id: "project/farm".into(),
        token_file: Some(token_file),
        ..settings(&stub, &[("proj/big", "linux")])
    })
    .unwrap();
    taskcluster.observe(noon()).await.unwrap();
    let (host, port) = {
        let url = Url::parse(stub.url()).unwrap();
        (url.host_str().unwrap().to_owned(), url.port().unwrap())
    };
    let mut nonces = Vec::new();
    for asked in stub.asked() {
        let header = asked.header("authorization").unwrap();
        let field = |name: &str| {
            let (_, rest) = header.split_once(&format!("{name}=\"")).unwrap();
            rest.split_once('"').unwrap().0.to_owned()
        };
        assert!(header.starts_with("Hawk id=\"project/farm\", "), "{header}");
        let (ts, nonce) = (field("ts"), field("nonce"));
        assert_eq!(ts, noon().as_second().to_string());
        let lines = [
            "hawk.1.header",
            &ts,
            &nonce,
            &asked.method,
            &asked.path,
            &host,
            &port.to_string(),
            "",
            "",
        ];
        assert_eq!(field("mac"), hawk_mac("s3cr3t-t0k3n", &lines));
        nonces.push(nonce);
        assert!(!format!("{asked:?}").contains("s3cr3t"));
    }
    nonces.sort();
    nonces.dedup();
    assert_eq!(nonces.len(), 3, "no nonce twice");
}
