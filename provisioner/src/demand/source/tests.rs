use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::Instant;

use super::super::stub::{Given, Stub};
use super::super::web::LONGEST_ANSWER;
use super::super::{WaitingJob, Work};
use super::*;

fn noon() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

/// A file with a token, and what holds it.
fn token_file() -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    fs_err::write(&path, "s3cr3t-t0k3n\n").unwrap();
    fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

/// A source of each kind that asks a web server.
fn web_sources(url: &str, timeout: &str) -> (tempfile::TempDir, Vec<(&'static str, Source)>) {
    let (directory, token) = token_file();
    let web = format!("url = '{url}'\ntimeout = '{timeout}'");
    let token = format!("token_file = '{token}'");
    let kinds = [
        ("buildbot", String::new()),
        ("http", format!("pool = 'linux'\npending = '/n'\n{token}")),
        (
            "buildkite",
            format!("queues = {{ default = 'linux' }}\n{token}"),
        ),
        (
            "taskcluster",
            format!("queues = {{ 'a/b' = 'linux' }}\nclient_id = 'farm'\n{token}"),
        ),
        ("github", format!("repositories = ['a/b']\n{token}")),
    ];
    let sources = kinds.into_iter().map(|(kind, more)| {
        let settings = format!("kind = '{kind}'\n{web}\n{more}");
        let settings: SourceSettings = toml::from_str(&settings).unwrap();
        (kind, Source::new(&settings).unwrap())
    });
    (directory, sources.collect())
}

/// What each of them says of a server that always answers the same.
async fn said_of(given: Given) -> Vec<(&'static str, SourceError)> {
    let stub = Stub::start(move |_| given.clone()).await;
    let (_directory, sources) = web_sources(stub.url(), "20s");
    let mut said = Vec::new();
    for (kind, source) in sources {
        said.push((kind, source.observe(noon()).await.unwrap_err()));
    }
    said
}

#[tokio::test]
async fn a_refused_token_is_not_allowed_and_never_repeated() {
    for status in [401, 403] {
        let given = Given::status(status, r#"{"message":"bad token s3cr3t-t0k3n"}"#);
        for (kind, error) in said_of(given).await {
            let SourceError::NotAllowed(message) = &error else {
                panic!("{kind}: {error:?}");
            };
            assert!(message.contains(&status.to_string()), "{kind}: {message}");
            let leaks = message.contains("s3cr3t");
            assert_eq!(leaks, kind == "buildbot", "{kind}: {message}");
        }
    }
}

#[tokio::test]
async fn a_server_that_fails_is_unavailable() {
    for status in [500, 502, 503] {
        for (kind, error) in said_of(Given::status(status, "<html>\nsorry</html>")).await {
            assert_eq!(
                error,
                SourceError::Unavailable(format!("HTTP {status}: <html> sorry</html>")),
                "{kind}"
            );
        }
    }
}

#[tokio::test]
async fn what_is_not_json_is_not_understood() {
    for body in [
        "",
        "<html>hello</html>",
        "{\"buildrequests\": [",
        "[]",
        "7",
        "{}",
    ] {
        for (kind, error) in said_of(Given::json(body)).await {
            assert!(
                matches!(error, SourceError::NotUnderstood(_)),
                "{kind} {body:?}: {error:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_no_answer() {
    for (kind, error) in said_of(Given::json("{}").cut_off()).await {
        assert!(
            matches!(error, SourceError::Unavailable(_)),
            "{kind}: {error:?}"
        );
    }
}

#[tokio::test]
async fn a_connection_that_breaks_off_is_tried_once_more_and_not_for_ever() {
    let stub = Stub::start(|_| Given::nothing()).await;
    let (_directory, sources) = web_sources(stub.url(), "20s");
    for (kind, source) in sources {
        let before = stub.paths().len();
        let error = source.observe(noon()).await.unwrap_err();
        assert!(
            matches!(error, SourceError::Unavailable(_)),
            "{kind}: {error:?}"
        );
        assert_eq!(stub.paths().len() - before, 2, "{kind}");
    }
    let first = AtomicUsize::new(0);
    let stub = Stub::start(move |_| match first.fetch_add(1, Ordering::Relaxed) {
        0 => Given::nothing(),
        _ => Given::json(r#"{"n": 3}"#),
    })
    .await;
    let (_directory, sources) = web_sources(stub.url(), "20s");
    let (_, http) = sources
        .into_iter()
        .find(|(kind, _)| *kind == "http")
        .unwrap();
    assert!(http.observe(noon()).await.is_ok());
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_not_read_to_its_end() {
    let long = format!("\"{}\"", "x".repeat(LONGEST_ANSWER));
    for (kind, error) in said_of(Given::json(long)).await {
        let SourceError::NotUnderstood(message) = &error else {
            panic!("{kind}: {error:?}");
        };
        assert!(
            message.contains("more than 33554432 bytes"),
            "{kind}: {message}"
        );
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_after_the_timeout() {
    let stub = Stub::start(|_| Given::never()).await;
    let (_directory, sources) = web_sources(stub.url(), "100ms");
    for (kind, source) in sources {
        let error = source.observe(noon()).await.unwrap_err();
        let SourceError::Unavailable(message) = &error else {
            panic!("{kind}: {error:?}");
        };
        assert!(message.ends_with("no answer in time"), "{kind}: {message}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let stub = Stub::start(|_| Given::never()).await;
    let url = stub.url().to_owned();
    drop(stub);
    // The port is closed once the stub's task is gone.
    while tokio::net::TcpStream::connect(url.trim_start_matches("http://"))
        .await
        .is_ok()
    {
        tokio::task::yield_now().await;
    }
    let (_directory, sources) = web_sources(&url, "20s");
    for (kind, source) in sources {
        let error = source.observe(noon()).await.unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, SourceError::Unavailable(_)), "{kind}");
        assert!(message.contains("Connection refused"), "{kind}: {message}");
    }
}

#[tokio::test]
async fn a_redirect_to_another_server_is_not_followed() {
    let elsewhere = Stub::start(|_| Given::json("{}")).await;
    let to = format!("{}/elsewhere", elsewhere.url());
    for (kind, error) in said_of(Given::status(302, "").header("location", to)).await {
        assert_eq!(
            error,
            SourceError::Unavailable(
                "HTTP 302: it sends us to 127.0.0.1, where we do not go; check `url`".into()
            ),
            "{kind}"
        );
    }
    assert_eq!(elsewhere.paths(), Vec::<String>::new());
}

#[tokio::test]
async fn a_redirect_on_the_same_server_is_followed_but_not_in_circles() {
    let hops = Arc::new(AtomicUsize::new(0));
    let counted = hops.clone();
    let stub = Stub::start(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Given::status(301, "").header("location", "/again")
    })
    .await;
    let (_directory, sources) = web_sources(stub.url(), "20s");
    for (kind, source) in sources {
        let before = hops.load(Ordering::Relaxed);
        let error = source.observe(noon()).await.unwrap_err();
        assert!(
            matches!(error, SourceError::Unavailable(_)),
            "{kind}: {error}"
        );
        assert_eq!(hops.load(Ordering::Relaxed) - before, 4, "{kind}");
    }
}

#[tokio::test]
async fn a_token_file_that_others_may_read_is_not_used() {
    let (_directory, sources) = web_sources("http://127.0.0.1:1", "20s");
    let path = _directory.path().join("token");
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    for (kind, source) in sources.into_iter().filter(|(kind, _)| *kind != "buildbot") {
        let error = source.observe(noon()).await.unwrap_err();
        assert!(
            matches!(error, SourceError::NotAllowed(_)),
            "{kind}: {error}"
        );
        assert!(error.to_string().contains("chmod 600"), "{kind}: {error}");
    }
}

/// A source of tests: it answers after a while, or panics.
struct Fake {
    after: Duration,
    panics: bool,
}

impl DemandSource for Fake {
    async fn observe(&self, now: Timestamp) -> Result<Observation, SourceError> {
        tokio::time::sleep(self.after).await;
        assert!(!self.panics, "as the test wants it");
        let job = WaitingJob {
            name: "linux".into(),
            since: now,
            running: false,
        };
        Ok(Observation::new(now, Work::Jobs(vec![job])))
    }
}

fn fakes(fakes: &[(&str, u64, bool)]) -> Sources<Fake> {
    let fakes = fakes.iter().map(|(name, after, panics)| {
        let fake = Fake {
            after: Duration::from_secs(*after),
            panics: *panics,
        };
        (SourceName::parse(name).unwrap(), fake)
    });
    fakes.collect()
}

#[tokio::test(start_paused = true)]
async fn sources_are_asked_at_the_same_time() {
    let sources = fakes(&[("a", 10, false), ("b", 10, false), ("c", 10, false)]);
    let start = Instant::now();
    let answers = observe_all(&sources, noon(), Duration::from_secs(30)).await;
    assert_eq!(start.elapsed(), Duration::from_secs(10));
    assert!(answers.values().all(Result::is_ok));
    assert_eq!(answers.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_slow_source_is_its_own_error_and_delays_no_other() {
    let sources = fakes(&[
        ("fast", 1, false),
        ("slow", 31, false),
        ("stuck", 9_999, false),
    ]);
    let start = Instant::now();
    let answers = observe_all(&sources, noon(), Duration::from_secs(30)).await;
    assert_eq!(start.elapsed(), Duration::from_secs(30));
    let said: Vec<_> = answers
        .iter()
        .map(|(name, answer)| {
            (
                name.as_str(),
                answer.as_ref().err().map(ToString::to_string),
            )
        })
        .collect();
    let late = || Some("no answer within 30s".to_owned());
    assert_eq!(said, [("fast", None), ("slow", late()), ("stuck", late())]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_panics_is_its_own_error() {
    let sources = fakes(&[("bad", 1, true), ("good", 2, false)]);
    let answers = observe_all(&sources, noon(), Duration::from_secs(30)).await;
    let bad = &answers[&SourceName::parse("bad").unwrap()];
    assert!(matches!(bad, Err(SourceError::Unavailable(_))));
    assert!(answers[&SourceName::parse("good").unwrap()].is_ok());
}
