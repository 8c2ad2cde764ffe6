//! What people see and order.

use super::*;
use crate::store::{ActionVerb, Pass};

/// A pass is over, and kept.
pub(super) async fn keep(farm: &Farm, pass: Pass) {
    let passed = Change::Passed {
        pass: Arc::new(pass),
        kept: 100,
    };
    farm.api.store.commit(None, vec![passed]).await.unwrap();
}

const ALL: [(&str, &str); 14] = [
    ("GET", "/v1/pools"),
    ("GET", "/v1/instances"),
    ("GET", "/v1/images"),
    ("GET", "/v1/passes"),
    ("GET", "/v1/passes/1"),
    ("GET", "/v1/history"),
    ("POST", "/v1/instances/i-1/hold"),
    ("DELETE", "/v1/instances/i-1/hold"),
    ("PUT", "/v1/maintenance"),
    ("DELETE", "/v1/maintenance"),
    ("PUT", "/v1/maintenance/linux64"),
    ("DELETE", "/v1/maintenance/linux64"),
    ("POST", "/v1/wake"),
    ("PATCH", "/v1/pools"),
];

fn body_of(method: &Method, path: &str) -> Option<Value> {
    match method.as_str() {
        "GET" => None,
        _ if path.ends_with("hold") && method == Method::POST => {
            Some(json!({ "owner": "ada", "reason": "a look" }))
        }
        _ if path.ends_with("hold") => Some(json!({ "by": "ada" })),
        _ => Some(json!({ "by": "ada", "reason": "a look" })),
    }
}

#[tokio::test]
async fn every_admin_call_needs_the_admin_token() {
    let farm = Farm::new().await;
    let host = farm.join("i-1").await;
    keep(&farm, suite::pass(1)).await;
    let join = farm.join_token();
    for (method, path) in ALL {
        let method: Method = method.parse().unwrap();
        let body = body_of(&method, path);
        for token in ["", "x", &host, join.expose(), "adm1n-t0ken2", "adm1n-t0ke"] {
            let answer = farm.send(method.clone(), path, token, body.clone()).await;
            assert_eq!(answer.status, 401, "{method} {path} {token}");
        }
        let answer = farm.send(method.clone(), path, ADMIN, body).await;
        let expected = if method == Method::PATCH {
            405..406
        } else {
            200..300
        };
        assert!(
            expected.contains(&answer.status),
            "{method} {path}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn without_an_admin_token_there_are_no_admin_calls() {
    let farm = Farm::built(config(), Limits::default(), None).await;
    for (method, path) in ALL {
        let method: Method = method.parse().unwrap();
        let body = body_of(&method, path);
        for token in ["", ADMIN] {
            let answer = farm.send(method.clone(), path, token, body.clone()).await;
            assert_eq!(answer.status, 404, "{method} {path}");
            assert_eq!(answer.error(), "there is nothing here");
        }
    }
    assert_eq!(farm.get("/healthz", "").await.status, 200);
}

#[tokio::test]
async fn whoever_asks_is_told_whether_it_leads_and_how_old_the_last_pass_is() {
    let farm = Farm::new().await;
    let young = farm.get("/healthz", "").await;
    assert_eq!(young.body, json!({ "role": "leading", "last_pass": null }));
    let farm = Farm::new().await;
    let mut pass = suite::pass(7);
    pass.at = "2026-11-20T12:29:18Z".parse().unwrap();
    keep(&farm, pass).await;
    farm.leading.send_replace(false);
    let answer = farm.get("/healthz", "").await;
    assert_eq!(
        answer.body,
        json!({
            "role": "following",
            "last_pass": { "pass": 7, "at": "2026-11-20T12:29:18Z", "age_ms": 42_000 },
        })
    );
}

#[tokio::test]
async fn before_the_first_pass_the_fleet_is_not_known_yet() {
    let farm = Farm::new().await;
    for path in ["/v1/pools", "/v1/instances", "/v1/images"] {
        let answer = farm.get(path, ADMIN).await;
        assert_eq!(
            (answer.status, answer.retry_after()),
            (503, Some(5)),
            "{path}"
        );
    }
    assert_eq!(
        farm.get("/v1/passes", ADMIN).await.body,
        json!({ "passes": [] })
    );
    assert_eq!(farm.get("/v1/passes/1", ADMIN).await.status, 404);
    assert_eq!(farm.get("/v1/passes/one", ADMIN).await.status, 404);
}

#[tokio::test]
async fn the_fleet_is_shown_as_the_newest_pass_saw_it() {
    let farm = Farm::new().await;
    keep(&farm, suite::pass(1)).await;
    keep(&farm, suite::pass(2)).await;
    let mut shown = String::new();
    for path in ["/v1/pools", "/v1/instances", "/v1/images", "/v1/passes"] {
        let answer = farm.get(path, ADMIN).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.headers["content-type"], "application/json");
        shown += &format!("GET {path}\n{:#}\n\n", answer.body);
    }
    insta::assert_snapshot!(shown);
}

#[tokio::test]
async fn a_pass_is_given_as_it_was_kept() {
    let farm = Farm::new().await;
    let pass = suite::pass(3);
    keep(&farm, pass.clone()).await;
    let answer = farm.get("/v1/passes/3", ADMIN).await;
    let given: Pass = serde_json::from_value(answer.body).unwrap();
    assert_eq!(given, pass);
}

#[tokio::test]
async fn an_instance_is_held_and_released_by_name() {
    let farm = Farm::new().await;
    farm.launch(&["i-1"]).await;
    let hold = json!({ "owner": "ada", "reason": "a look at the disk", "expires_in": "4h" });
    let path = "/v1/instances/i-1/hold";
    let answer = farm.send(Method::POST, path, ADMIN, Some(hold)).await;
    assert_eq!(
        answer.body,
        json!({
            "owner": "ada",
            "reason": "a look at the disk",
            "expires": "2026-11-20T16:30:00Z",
        })
    );
    assert!(farm.was_woken().await);
    let held = farm.api.store.registration(&id("i-1")).await.unwrap();
    assert_eq!(held.unwrap().record.hold.unwrap().owner, "ada");
    let by = json!({ "by": "grace" });
    let answer = farm.send(Method::DELETE, path, ADMIN, Some(by)).await;
    assert_eq!(answer.status, 204);
    let free = farm.api.store.registration(&id("i-1")).await.unwrap();
    assert_eq!(free.unwrap().record.hold, None);
    let history = farm.history().await;
    let acts: Vec<_> = history
        .iter()
        .map(|act| (act.verb, act.by.as_str()))
        .collect();
    assert!(acts.contains(&(ActionVerb::Held, "ada")), "{history:?}");
    assert!(
        acts.contains(&(ActionVerb::Released, "grace")),
        "{history:?}"
    );
}

#[tokio::test]
async fn an_order_that_is_not_whole_changes_nothing() {
    let farm = Farm::new().await;
    farm.launch(&["i-1"]).await;
    let hold = "/v1/instances/i-1/hold";
    let cases = [
        (Method::POST, hold, json!({ "reason": "x" })),
        (Method::POST, hold, json!({ "owner": "ada" })),
        (
            Method::POST,
            hold,
            json!({ "owner": "ada", "reason": "x", "expires": "4h" }),
        ),
        (
            Method::POST,
            hold,
            json!({ "owner": "ada", "reason": "x", "expires_in": "0s" }),
        ),
        (
            Method::POST,
            hold,
            json!({ "owner": "ada", "reason": "x", "expires_in": "9y" }),
        ),
        (
            Method::POST,
            hold,
            json!({ "owner": "ada", "reason": "x", "expires_in": 4 }),
        ),
        (
            Method::POST,
            hold,
            json!({ "owner": "a\nb", "reason": "x" }),
        ),
        (Method::DELETE, hold, json!({})),
        (Method::PUT, "/v1/maintenance", json!({ "by": "ada" })),
        (Method::PUT, "/v1/maintenance", json!(["ada"])),
        (Method::DELETE, "/v1/maintenance", json!({ "reason": "x" })),
    ];
    let mut lines = Vec::new();
    for (method, path, body) in cases {
        let answer = farm.send(method.clone(), path, ADMIN, Some(body)).await;
        assert_eq!(answer.status, 400, "{method} {path}");
        lines.push(format!("{method} {path}: {}", answer.error()));
    }
    insta::assert_snapshot!(lines.join("\n"));
    assert!(farm.history().await.is_empty());
    let missing = json!({ "owner": "ada", "reason": "x" });
    for path in ["/v1/instances/i-9/hold", "/v1/instances/i%209/hold"] {
        let answer = farm
            .send(Method::POST, path, ADMIN, Some(missing.clone()))
            .await;
        assert_eq!(answer.status, 404, "{path}");
    }
    let order = json!({ "by": "ada", "reason": "x" });
    let path = "/v1/maintenance/win64";
    let answer = farm.send(Method::PUT, path, ADMIN, Some(order)).await;
    assert_eq!(answer.status, 404);
    assert!(!farm.was_woken().await);
}

#[tokio::test]
async fn maintenance_is_ordered_for_a_pool_or_the_fleet_and_ended() {
    let farm = Farm::new().await;
    let order = Some(json!({ "by": "ada", "reason": "the network is rebuilt" }));
    let maintenance = || async { farm.api.store.stored(noon()).await.unwrap().maintenance };
    for path in ["/v1/maintenance", "/v1/maintenance/linux64"] {
        let answer = farm.send(Method::PUT, path, ADMIN, order.clone()).await;
        assert_eq!(answer.body["at"], "2026-11-20T12:30:00Z");
    }
    let ordered = maintenance().await;
    assert_eq!(ordered.fleet.unwrap().by, "ada");
    assert_eq!(ordered.pools.len(), 1);
    for path in ["/v1/maintenance", "/v1/maintenance/linux64"] {
        let answer = farm.send(Method::DELETE, path, ADMIN, order.clone()).await;
        assert_eq!(answer.status, 204);
    }
    assert_eq!(maintenance().await, Maintenance::default());
    assert_eq!(farm.history().await.len(), 4);
}

#[tokio::test]
async fn the_history_is_found_by_what_is_asked_for() {
    let farm = Farm::new().await;
    farm.join("i-1").await;
    farm.join("i-2").await;
    let all = farm.get("/v1/history", ADMIN).await;
    assert_eq!(all.body["history"].as_array().unwrap().len(), 2);
    let one = farm
        .get(
            "/v1/history?instance=i-2&since=2026-11-20T12:30:00Z&limit=5",
            ADMIN,
        )
        .await;
    assert_eq!(
        one.body,
        json!({ "history": [{
            "at": "2026-11-20T12:30:00Z",
            "by": "i-2",
            "verb": "registered",
            "instance_id": "i-2",
            "intent": "abcdefgh-1-0",
            "pool": "linux64",
            "pass": null,
            "result": "registered with runner 0.1.0",
        }] })
    );
    for (query, error) in [
        (
            "limit=0",
            "`limit` is wrong: expected a number from 1 to 10000",
        ),
        (
            "limit=10001",
            "`limit` is wrong: expected a number from 1 to 10000",
        ),
        (
            "since=yesterday",
            "`since` is wrong: expected RFC 3339, such as `2026-08-01T12:00:00Z`",
        ),
        (
            "pool=two%20words",
            "`pool` is wrong: expected the name of a pool",
        ),
        (
            "host=i-1",
            "the query has something this call does not know: expected `instance`, `pool`, `pass`, `since`, `limit`",
        ),
    ] {
        let answer = farm.get(&format!("/v1/history?{query}"), ADMIN).await;
        assert_eq!((answer.status, answer.error()), (400, error));
    }
}

#[tokio::test]
async fn a_pass_is_made_at_once_if_somebody_wants_it() {
    let farm = Farm::new().await;
    assert!(!farm.was_woken().await);
    let answer = farm.send(Method::POST, "/v1/wake", ADMIN, None).await;
    assert_eq!(answer.status, 202);
    assert!(farm.was_woken().await);
    farm.leading.send_replace(false);
    let answer = farm.send(Method::POST, "/v1/wake", ADMIN, None).await;
    assert_eq!(answer.status, 503);
    assert!(!farm.was_woken().await);
}

#[tokio::test]
async fn many_who_look_at_once_share_one_look_at_the_store() {
    let farm = Farm::new().await;
    let mut pass = suite::pass(1);
    pass.world.instances = vec![pass.world.instances[0].clone(); 500];
    keep(&farm, pass).await;
    let before = farm.api.store.asked.load(Ordering::Relaxed);
    let looks = (0..20).map(|_| farm.get("/v1/instances", ADMIN));
    for answer in futures_util::future::join_all(looks).await {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body["instances"].as_array().unwrap().len(), 500);
    }
    let asked = farm.api.store.asked.load(Ordering::Relaxed) - before;
    // Which is the newest, and the pass itself; once more if the first was away before the last came.
    assert!(asked <= 6, "{asked}");
}
