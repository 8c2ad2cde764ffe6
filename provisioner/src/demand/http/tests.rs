use super::super::stub::{Given, Stub};
use super::*;
use crate::ids::PoolName;

fn noon() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

fn settings(pointers: [&str; 3]) -> HttpSettings {
    let [pending, running, as_of] = pointers.map(ToOwned::to_owned);
    HttpSettings {
        pool: Some(PoolName::parse("linux").unwrap()),
        pending,
        running,
        as_of,
        ..HttpSettings::default()
    }
}

async fn observed(body: &str, pointers: [&str; 3]) -> Result<Observation, SourceError> {
    let body = body.to_owned();
    let stub = Stub::start(move |_| Given::json(body.clone())).await;
    let settings = HttpSettings {
        url: format!("{}/stats?queue=a", stub.url()),
        ..settings(pointers)
    };
    let observation = Http::new(settings).unwrap().observe(noon()).await;
    assert_eq!(stub.paths(), ["/stats?queue=a"], "the address as it is");
    observation
}

async fn counted(body: &str, pointers: [&str; 3]) -> Result<(u32, u32), String> {
    let observation = observed(body, pointers).await;
    let observation = observation.map_err(|error| error.to_string())?;
    let Work::Counts(counts) = observation.work else {
        panic!("{observation:?}");
    };
    let count = counts[&PoolName::parse("linux").unwrap()];
    Ok((count.pending, count.running))
}

#[tokio::test]
async fn numbers_and_lengths_of_lists_are_counts() {
    let body = r#"{"queue": {"length": 7, "jobs": [{}, {}]}, "busy": [1, 2, 3]}"#;
    let count = counted(body, ["/queue/length", "/busy", ""]).await;
    assert_eq!(count, Ok((7, 3)));
    assert_eq!(counted(body, ["/queue/jobs", "", ""]).await, Ok((2, 0)));
    assert_eq!(counted("5", ["", "", ""]).await, Ok((5, 0)));
    assert_eq!(counted("[]", ["", "", ""]).await, Ok((0, 0)));
}

#[tokio::test]
async fn a_pointer_to_nothing_or_to_something_else_is_no_zero() {
    for body in [
        "{}",
        r#"{"n": null}"#,
        r#"{"n": "7"}"#,
        r#"{"n": -1}"#,
        r#"{"n": 1.5}"#,
        r#"{"n": 4294967296}"#,
        r#"{"n": {"n": 1}}"#,
    ] {
        let error = counted(body, ["/n", "", ""]).await.unwrap_err();
        assert!(
            error.contains("`/n`, where `pending` points"),
            "{body}: {error}"
        );
    }
    let error = counted(r#"{"n": 1}"#, ["/n", "/busy", ""])
        .await
        .unwrap_err();
    assert_eq!(
        error,
        "the answer has nothing at `/busy`, where `running` points"
    );
}

#[tokio::test]
async fn the_time_is_that_of_the_answer_the_server_or_now() {
    let time = "2026-05-01T11:58:00Z".parse::<Timestamp>().unwrap();
    for at in [
        r#""2026-05-01T11:58:00Z""#,
        r#""2026-05-01T13:58:00+02:00""#,
        "1777636680",
        "1777636680.0",
    ] {
        let body = format!(r#"{{"n": 1, "at": {at}}}"#);
        let observation = observed(&body, ["/n", "", "/at"]).await.unwrap();
        assert_eq!(observation.as_of, time, "{at}");
    }
    // Milliseconds are a time in the far future, which no calendar has.
    for at in [r#""yesterday""#, "null", "1777636680000000"] {
        let body = format!(r#"{{"n": 1, "at": {at}}}"#);
        let error = observed(&body, ["/n", "", "/at"]).await.unwrap_err();
        assert!(matches!(error, SourceError::NotUnderstood(_)), "{at}");
    }
    let observation = observed("1", ["", "", ""]).await.unwrap();
    assert_eq!(observation.as_of, noon());

    let stub = Stub::start(move |_| Given::json("1").at(time)).await;
    let settings = HttpSettings {
        url: stub.url().into(),
        ..settings(["", "", ""])
    };
    let observation = Http::new(settings).unwrap().observe(noon()).await.unwrap();
    assert_eq!(observation.as_of, time);
}
