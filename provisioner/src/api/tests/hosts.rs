//! What hosts may do, and what they may not.

use super::*;
use crate::access::EPOCH;
use crate::store::ActionVerb;

#[tokio::test]
async fn a_host_registers_reports_and_is_told_to_work() {
    let farm = Farm::new().await;
    let token = farm.join("i-1").await;
    let answer = farm.report("i-1", &token, said("busy")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.body,
        json!({ "assignment": "go_on", "reason": null, "text": "work", "ask_again": "10s" })
    );
    // There is nothing to say until it asks again.
    assert_eq!(answer.headers["connection"], "close");
    let view = farm.api.hosts.get(&id("i-1")).unwrap().view.unwrap();
    assert_eq!(view.activity, HostActivity::Busy);
    assert_eq!((view.heard_at, view.runs), (noon(), 12));
    let asked = farm.get("/v1/hosts/i-1/assignment", &token).await;
    assert_eq!((asked.status, asked.body), (200, answer.body));
}

#[tokio::test]
async fn a_registration_is_in_the_history_once() {
    let farm = Farm::new().await;
    farm.join("i-1").await;
    farm.register("i-1", farm.join_token().expose(), KEY).await;
    let history = farm.history().await;
    assert_eq!(history.len(), 1, "{history:?}");
    assert_eq!(history[0].verb, ActionVerb::Registered);
    assert_eq!(history[0].by, "i-1");
    assert_eq!(history[0].instance, Some(id("i-1")));
    assert_eq!(history[0].result, "registered with runner 0.1.0");
}

#[tokio::test]
async fn a_host_that_is_up_before_the_store_knows_it_tries_again() {
    let farm = Farm::new().await;
    let join = farm.join_token();
    let early = farm.register("i-1", join.expose(), KEY).await;
    assert_eq!((early.status, early.retry_after()), (404, Some(5)));
    farm.launch(&["i-1"]).await;
    let later = farm.register("i-1", join.expose(), KEY).await;
    assert_eq!(later.status, 200);
}

#[tokio::test]
async fn a_join_token_that_is_not_for_this_instance_registers_nobody() {
    let farm = Farm::new().await;
    farm.launch(&["i-1"]).await;
    let old = noon() - jiff::SignedDuration::try_from(2 * EPOCH).unwrap();
    let previous = noon() - jiff::SignedDuration::try_from(EPOCH).unwrap();
    let other_farm = Access::new("farmhand", &[1; 32]);
    let pool = PoolName::parse("linux64").unwrap();
    let image = ImageName::parse("bullseye-7").unwrap();
    let cases = [
        ("none", 401, Token::clone(&farm.join_token()), ""),
        (
            "expired",
            401,
            farm.join_token_of("linux64", "bullseye-7", old),
            "x",
        ),
        (
            "of another pool",
            403,
            farm.join_token_of("win64", "bullseye-7", noon()),
            "x",
        ),
        (
            "of another image",
            403,
            farm.join_token_of("linux64", "bullseye-8", noon()),
            "x",
        ),
        (
            "of another farm",
            401,
            other_farm.join_token(&pool, &image, noon()),
            "x",
        ),
        (
            "of a host",
            401,
            farm.api.access.host_token(&id("i-1"), KEY),
            "x",
        ),
    ];
    for (what, status, token, sent) in cases {
        let token = if sent.is_empty() { "" } else { token.expose() };
        let answer = farm.register("i-1", token, KEY).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
    }
    for garbage in ["x", "fj1....", "fj1.0.a.b.c", ADMIN] {
        let answer = farm.register("i-1", garbage, KEY).await;
        assert_eq!(answer.status, 401, "{garbage}");
    }
    let known = farm
        .api
        .store
        .registration(&id("i-1"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(known.key, None);
    assert!(farm.api.hosts.get(&id("i-1")).is_none());
    // The other side: a token of the week before is still taken.
    let token = farm.join_token_of("linux64", "bullseye-7", previous);
    assert_eq!(farm.register("i-1", token.expose(), KEY).await.status, 200);
}

#[tokio::test]
async fn the_first_key_wins_and_gets_the_same_answer_for_ever() {
    let farm = Farm::new().await;
    let join = farm.join_token();
    let token = farm.join("i-1").await;
    let other = farm.register("i-1", join.expose(), OTHER_KEY).await;
    assert_eq!(other.status, 409);
    assert!(!other.body.to_string().contains(KEY), "{other:?}");
    let again = farm.register("i-1", join.expose(), KEY).await;
    assert_eq!(again.body["host_token"], json!(token));
    let answer = farm.report("i-1", &token, said("idle")).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn of_hosts_that_register_for_one_instance_at_once_one_wins() {
    let farm = Farm::new().await;
    farm.launch(&["i-1"]).await;
    let join = farm.join_token();
    let keys: Vec<String> = (0..8).map(|n| format!("{n:032x}")).collect();
    let tries = keys
        .iter()
        .map(|key| farm.register("i-1", join.expose(), key));
    let answers = futures_util::future::join_all(tries).await;
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409, 409, 409, 409, 409, 409, 409]);
    assert_eq!(farm.history().await.len(), 1);
}

#[tokio::test]
async fn a_lost_answer_to_a_registration_costs_nothing() {
    use tokio::io::AsyncWriteExt as _;
    let farm = Farm::new().await;
    farm.launch(&["i-1"]).await;
    let join = farm.join_token();
    let body = registration(KEY).to_string();
    let request = format!(
        "POST /v1/hosts/i-1/register HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
        join.expose(),
        body.len()
    );
    let mut stream = tokio::net::TcpStream::connect(farm.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    // It was done, and the host went away before it was told.
    timeout(PATIENCE, async {
        while farm.history().await.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    drop(stream);
    let answer = farm.register("i-1", join.expose(), KEY).await;
    assert_eq!(answer.status, 200);
    assert_eq!(farm.history().await.len(), 1);
}

#[tokio::test]
async fn an_instance_that_is_being_ended_registers_no_more() {
    let farm = Farm::new().await;
    farm.launch(&["i-1"]).await;
    let ended = Change::Ended {
        id: id("i-1"),
        at: noon(),
        reason: LeaveReason::NeverRegistered,
    };
    farm.api.store.commit(None, vec![ended]).await.unwrap();
    let answer = farm.register("i-1", farm.join_token().expose(), KEY).await;
    assert_eq!(answer.status, 403);
}

#[tokio::test]
async fn a_host_registers_only_from_the_address_of_its_instance() {
    let mut config = config();
    config.provisioner.check_address = Some(true);
    let farm = Farm::with(config, Limits::default()).await;
    let join = farm.join_token();
    let address: IpAddr = "127.0.0.2".parse().unwrap();
    farm.launch(&["i-1"]).await;
    let early = farm.register("i-1", join.expose(), KEY).await;
    assert_eq!((early.status, early.retry_after()), (503, Some(5)));
    assert!(farm.was_woken().await, "the next pass finds the address");
    farm.enter(InstanceRecord {
        private_address: Some(address),
        ..suite::record("i-1")
    })
    .await;
    let from_another = farm.register("i-1", join.expose(), KEY).await;
    assert_eq!(from_another.status, 403);
    let from_its_own = send(
        &client(Some(address)),
        farm.address,
        Method::POST,
        "/v1/hosts/i-1/register",
        join.expose(),
        Some(registration(KEY)),
    )
    .await;
    assert_eq!(from_its_own.status, 200);
}

#[test]
fn addresses_are_checked_on_ec2_and_not_on_the_local_cloud() {
    use crate::config::CloudKind;
    let mut settings = Config::default().provisioner;
    assert!(!settings.checks_address());
    settings.cloud = CloudKind::Ec2;
    assert!(settings.checks_address());
    settings.check_address = Some(false);
    assert!(!settings.checks_address());
}

#[tokio::test]
async fn a_host_speaks_for_no_other_on_any_route() {
    let farm = Farm::new().await;
    let mine = farm.join("i-1").await;
    farm.join("i-2").await;
    drop(farm.api.hosts.take_news());
    let before = farm.api.hosts.get(&id("i-2")).unwrap();
    for path in ["i-2", "i%2D2", "i-2%2F..%2Fi-1", "i-1%20", "I-1", "i-1%00"] {
        let report = farm.report(path, &mine, said("fenced")).await;
        assert_eq!(report.status, 403, "{path}: {report:?}");
        let asked = farm
            .get(&format!("/v1/hosts/{path}/assignment"), &mine)
            .await;
        assert_eq!(asked.status, 403, "{path}: {asked:?}");
        let registered = farm.register(path, &mine, KEY).await;
        assert_eq!(registered.status, 401, "{path}: {registered:?}");
    }
    assert_eq!(farm.api.hosts.get(&id("i-2")).unwrap(), before);
    assert!(farm.api.hosts.take_news().0.is_empty(), "nobody was heard");
    // An encoded name is the same name.
    assert_eq!(farm.report("i%2D1", &mine, said("idle")).await.status, 200);
}

#[tokio::test]
async fn no_other_token_speaks_for_a_host() {
    let farm = Farm::new().await;
    farm.join("i-1").await;
    let join = farm.join_token();
    let other_farm = Access::new("farmhand", &[1; 32]).host_token(&id("i-1"), KEY);
    for token in ["", "x", "fh1...", join.expose(), other_farm.expose(), ADMIN] {
        let report = farm.report("i-1", token, said("fenced")).await;
        assert_eq!(report.status, 401, "{report:?}");
        let asked = farm.get("/v1/hosts/i-1/assignment", token).await;
        assert_eq!(asked.status, 401, "{asked:?}");
    }
}

#[tokio::test]
async fn a_host_is_told_to_leave_and_why() {
    let farm = Farm::new().await;
    let token = farm.join("i-1").await;
    let drain = Assignment::Drain {
        reason: LeaveReason::Maintenance,
        since: noon(),
    };
    farm.api.hosts.assign(&id("i-1"), drain);
    let answer = farm.report("i-1", &token, said("busy")).await;
    assert_eq!(answer.body["assignment"], "drain");
    assert_eq!(answer.body["reason"], "maintenance");
    let quit = Assignment::Quit {
        reason: LeaveReason::OverTarget,
        since: noon(),
    };
    farm.api.hosts.assign(&id("i-1"), quit);
    let answer = farm.get("/v1/hosts/i-1/assignment", &token).await;
    assert_eq!(answer.body["assignment"], "quit");
    assert_eq!(answer.body["reason"], "over_target");
    let text = answer.body["text"].as_str().unwrap();
    assert!(
        text.contains("its pool has more hosts than it needs"),
        "{text}"
    );
}

#[tokio::test]
async fn a_fenced_report_wakes_the_loop_and_the_same_again_does_not() {
    let farm = Farm::new().await;
    let token = farm.join("i-1").await;
    farm.report("i-1", &token, said("draining")).await;
    farm.was_woken().await;
    farm.report("i-1", &token, said("fenced")).await;
    assert!(farm.was_woken().await);
    farm.report("i-1", &token, said("fenced")).await;
    assert!(!farm.was_woken().await);
}

#[tokio::test]
async fn a_spot_notice_and_a_lost_job_are_heard() {
    let farm = Farm::new().await;
    let token = farm.join("i-1").await;
    let mut report = said("draining");
    report["job"] = json!({ "name": "linux64-build", "id": "42" });
    report["spot_notice"] = json!({ "action": "terminate", "time": "2026-11-20T12:32:00Z" });
    assert_eq!(farm.report("i-1", &token, report.clone()).await.status, 200);
    report["lost_job"] = report["job"].take();
    assert_eq!(farm.report("i-1", &token, report.clone()).await.status, 200);
    assert_eq!(farm.report("i-1", &token, report).await.status, 200);
    let (views, actions) = farm.api.hosts.take_news();
    assert_eq!(
        views[0].1.interruption_at,
        Some("2026-11-20T12:32:00Z".parse().unwrap())
    );
    assert_eq!(actions.len(), 1, "it is lost once: {actions:?}");
    assert_eq!(actions[0].verb, ActionVerb::JobLost);
    assert!(actions[0].result.contains("linux64-build (42)"));
}

#[tokio::test]
async fn a_host_the_last_pass_did_not_know_speaks_all_the_same() {
    let farm = Farm::new().await;
    let token = farm.join("i-1").await;
    // As after a start, or when another led.
    farm.api.hosts.settle(&[], noon());
    assert_eq!(farm.report("i-1", &token, said("idle")).await.status, 200);
    farm.api.hosts.settle(&[], noon());
    let asked = farm.get("/v1/hosts/i-1/assignment", &token).await;
    assert_eq!(asked.status, 200);
    // And one the store does not know either does not.
    let stranger = farm.api.access.host_token(&id("i-9"), KEY);
    let answer = farm.report("i-9", stranger.expose(), said("idle")).await;
    assert_eq!((answer.status, answer.retry_after()), (404, Some(5)));
}

#[tokio::test]
async fn who_follows_sends_hosts_to_who_leads() {
    let farm = Farm::new().await;
    let token = farm.join("i-1").await;
    farm.leading.send_replace(false);
    let join = farm.join_token();
    let answers = [
        farm.register("i-1", join.expose(), KEY).await,
        farm.report("i-1", &token, said("idle")).await,
        farm.get("/v1/hosts/i-1/assignment", &token).await,
    ];
    for answer in answers {
        assert_eq!((answer.status, answer.retry_after()), (503, Some(5)));
    }
    farm.leading.send_replace(true);
    assert_eq!(farm.report("i-1", &token, said("idle")).await.status, 200);
}

#[tokio::test]
async fn a_mad_host_is_told_to_wait_and_harms_nobody() {
    let farm = Farm::new().await;
    let mad = farm.join("i-1").await;
    let calm = farm.join("i-2").await;
    let mut refused = 0;
    for _ in 0..100 {
        let answer = farm.report("i-1", &mad, said("idle")).await;
        if answer.status == 429 {
            assert_eq!(answer.retry_after(), Some(1));
            refused += 1;
        }
        // What it asks in another's name counts as its own.
        farm.report("i-2", &mad, said("idle")).await;
    }
    assert!(refused > 50, "{refused}");
    assert_eq!(farm.report("i-2", &calm, said("idle")).await.status, 200);
}

#[tokio::test]
async fn registrations_that_are_tried_too_often_reach_no_store() {
    let farm = Farm::new().await;
    let join = farm.join_token();
    let before = farm.api.store.asked.load(Ordering::Relaxed);
    let mut statuses = BTreeMap::<u16, usize>::new();
    for _ in 0..100 {
        let answer = farm.register("i-1", join.expose(), KEY).await;
        *statuses.entry(answer.status).or_default() += 1;
    }
    let asked = farm.api.store.asked.load(Ordering::Relaxed) - before;
    assert_eq!(asked, statuses[&404]);
    assert!(statuses[&429] >= 50, "{statuses:?}");
    assert!(asked >= 10, "{statuses:?}");
}

#[tokio::test]
async fn who_has_no_token_reaches_no_store() {
    let farm = Farm::new().await;
    farm.launch(&["i-1"]).await;
    let before = farm.api.store.asked.load(Ordering::Relaxed);
    for token in ["", "x"] {
        farm.register("i-1", token, KEY).await;
        farm.report("i-1", token, said("idle")).await;
        farm.get("/v1/hosts/i-1/assignment", token).await;
        farm.get("/v1/pools", token).await;
        farm.get("/v1/history", token).await;
    }
    assert_eq!(farm.api.store.asked.load(Ordering::Relaxed), before);
    assert_eq!(farm.api.hosts.count(), 0);
}

#[tokio::test]
async fn a_wrong_report_names_its_field_and_changes_nothing() {
    let farm = Farm::new().await;
    let token = farm.join("i-1").await;
    let before = farm.api.hosts.get(&id("i-1")).unwrap();
    let mut lines = Vec::new();
    let changes = [
        ("activity", Value::Null),
        ("activity", json!("sleeping")),
        ("since", json!("yesterday")),
        ("since", json!(1_700_000_000)),
        ("runs", json!(-1)),
        ("runs", json!("12")),
        ("boot_id", Value::Null),
        ("boot_id", json!(7)),
        ("job", json!("linux64-build")),
        ("job", json!({ "name": "linux64-build" })),
        ("lost_job", json!({ "id": 42, "name": "x" })),
        ("spot_notice", json!({ "action": "terminate" })),
        (
            "spot_notice",
            json!({ "action": "terminate", "time": "soon" }),
        ),
    ];
    for (field, value) in changes {
        let mut report = said("idle");
        report[field] = value;
        let answer = farm.report("i-1", &token, report).await;
        assert_eq!(answer.status, 400, "{field}: {answer:?}");
        lines.push(answer.error().to_owned());
        // The rate is not what is tested here.
        farm.api.forget_calls();
    }
    insta::assert_snapshot!(lines.join("\n"));
    assert_eq!(farm.api.hosts.get(&id("i-1")).unwrap(), before);
}

#[tokio::test]
async fn a_wrong_registration_names_its_field_and_repeats_no_key() {
    let farm = Farm::new().await;
    farm.launch(&["i-1"]).await;
    let join = farm.join_token();
    for key in ["", "short", &"g".repeat(32), &"0".repeat(33)] {
        let answer = farm.register("i-1", join.expose(), key).await;
        assert_eq!(answer.status, 400);
        assert_eq!(
            answer.error(),
            "`key` is wrong: expected 32 hexadecimal digits"
        );
    }
    let known = farm
        .api
        .store
        .registration(&id("i-1"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(known.key, None);
}

#[tokio::test]
async fn a_store_that_fails_is_a_matter_of_later_and_its_words_are_for_the_log() {
    let farm = Farm::new().await;
    let token = farm.join("i-1").await;
    farm.launch(&["i-2"]).await;
    farm.api.store.fails.store(true, Ordering::Relaxed);
    let answers = [
        farm.register("i-2", farm.join_token().expose(), KEY).await,
        farm.get("/v1/pools", ADMIN).await,
        farm.get("/v1/history", ADMIN).await,
        farm.get("/healthz", "").await,
    ];
    for answer in answers {
        assert_eq!((answer.status, answer.retry_after()), (503, Some(10)));
        assert_eq!(answer.error(), "the store cannot be used now");
    }
    // A host that is known needs no store.
    assert_eq!(farm.report("i-1", &token, said("idle")).await.status, 200);
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_wrong_methods_are_named() {
    let farm = Farm::new().await;
    let token = farm.join("i-1").await;
    for path in [
        "/",
        "/v1",
        "/v1/hosts",
        "/v1/hosts/i-1",
        "/v2/pools",
        "/v1/hosts/i-1/report/x",
    ] {
        let answer = farm.get(path, &token).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.error(), "there is nothing here");
    }
    for (method, path) in [
        (Method::GET, "/v1/hosts/i-1/report"),
        (Method::PUT, "/v1/hosts/i-1/register"),
        (Method::POST, "/v1/hosts/i-1/assignment"),
        (Method::POST, "/healthz"),
    ] {
        let answer = farm.send(method, path, &token, None).await;
        assert_eq!(answer.status, 405, "{path}");
        assert!(answer.headers.contains_key("allow"), "{answer:?}");
        assert!(!answer.error().is_empty());
    }
}
