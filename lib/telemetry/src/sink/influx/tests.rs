use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use std::io::Write as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::*;
use crate::tests::record;

/// A request as it came over the wire.
#[derive(Clone, Debug)]
struct Request {
    head: String,
    body: String,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn first_line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }
}

/// What a server does with a request.
#[derive(Clone)]
enum Reply {
    /// These bytes, and the connection stays open.
    Bytes(String),
    /// These bytes, then the connection ends.
    Cut(String),
    /// Nothing, ever.
    Silence,
    /// These bytes again and again.
    Endless(String),
}

fn status(status: &str, headers: &str, body: &str) -> Reply {
    let length = body.len();
    Reply::Bytes(format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    ))
}

fn taken() -> Reply {
    Reply::Bytes("HTTP/1.1 204 No Content\r\n\r\n".to_owned())
}

/// A server on a port of its own, whose answers are a function of the request and its number.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    sent: Arc<Mutex<usize>>,
}

impl Server {
    async fn start(reply: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (requests, sent) = (Arc::default(), Arc::default());
        let server = Self {
            url,
            requests: Arc::clone(&requests),
            sent: Arc::clone(&sent),
        };
        let reply = Arc::new(reply);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (requests, sent, reply) =
                    (Arc::clone(&requests), Arc::clone(&sent), Arc::clone(&reply));
                tokio::spawn(async move {
                    // The client may hang up at any time.
                    let _hung_up = serve(stream, &requests, &sent, &*reply).await;
                });
            }
        });
        server
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    requests: &Mutex<Vec<Request>>,
    sent: &Mutex<usize>,
    reply: &(impl Fn(usize, &Request) -> Reply + ?Sized),
) -> std::io::Result<()> {
    while let Some(request) = read_request(&mut stream).await? {
        let reply = {
            let mut requests = requests.lock().unwrap();
            requests.push(request.clone());
            reply(requests.len(), &request)
        };
        match reply {
            Reply::Bytes(bytes) => stream.write_all(bytes.as_bytes()).await?,
            Reply::Cut(bytes) => return stream.write_all(bytes.as_bytes()).await,
            Reply::Silence => std::future::pending().await,
            Reply::Endless(head) => {
                stream.write_all(head.as_bytes()).await?;
                let junk = vec![b'x'; 1 << 16];
                loop {
                    let wrote = stream.write(&junk).await?;
                    *sent.lock().unwrap() += wrote;
                }
            }
        }
    }
    Ok(())
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let mut request = Request {
                head: head.to_owned(),
                body: body.to_owned(),
            };
            let length = request
                .header("content-length")
                .and_then(|length| length.parse().ok());
            if request.body.len() >= length.unwrap_or(0) {
                request.body = body.to_owned();
                return Ok(Some(request));
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}

fn token_file(dir: &Path, token: &str) -> std::path::PathBuf {
    let path = dir.join("token");
    let _absent = fs_err::remove_file(&path);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .unwrap();
    writeln!(file, "{token}").unwrap();
    path
}

fn v2(url: &str) -> InfluxConfig {
    InfluxConfig {
        url: url.to_owned(),
        org: "the org".into(),
        bucket: "farm".into(),
        timeout: Duration::from_secs(2),
        ..InfluxConfig::default()
    }
}

fn v1(url: &str) -> InfluxConfig {
    InfluxConfig {
        url: url.to_owned(),
        api: InfluxApi::V1,
        database: "farm".into(),
        timeout: Duration::from_secs(2),
        ..InfluxConfig::default()
    }
}

fn both(url: &str) -> [InfluxConfig; 2] {
    [v1(url), v2(url)]
}

fn records(count: u32) -> Vec<Record> {
    (0..count).map(record).collect()
}

async fn deliver(config: &InfluxConfig, count: u32) -> Delivery {
    Influx::new(config.clone())
        .unwrap()
        .deliver(&records(count))
        .await
}

/// The message of a failure in which nothing was taken.
async fn failure(config: &InfluxConfig) -> String {
    let delivery = deliver(config, 3).await;
    assert_eq!((delivery.settled, delivery.rejected), (0, 0));
    delivery.failure.expect("a failure").message
}

#[tokio::test]
async fn the_v2_request_is_what_influxdb_documents() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| taken()).await;
    let config = InfluxConfig {
        token_file: Some(token_file(dir.path(), "s3cret")),
        ..v2(&server.url)
    };
    assert_eq!(deliver(&config, 2).await, Delivery::all(2));
    let [request] = &server.requests()[..] else {
        panic!("one request for one batch")
    };
    assert_eq!(
        request.first_line(),
        "POST /api/v2/write?bucket=farm&org=the+org&precision=ns HTTP/1.1"
    );
    assert_eq!(request.header("authorization"), Some("Token s3cret"));
    let lines = records(2)
        .iter()
        .map(line::to_line)
        .collect::<Vec<_>>()
        .join("\n");
    assert_eq!(request.body, lines);
}

#[tokio::test]
async fn the_v1_request_is_what_influxdb_documents() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| taken()).await;
    let config = InfluxConfig {
        user: "runner".into(),
        token_file: Some(token_file(dir.path(), "s3cret")),
        ..v1(&server.url)
    };
    assert_eq!(deliver(&config, 2).await, Delivery::all(2));
    let [request] = &server.requests()[..] else {
        panic!("one request for one batch")
    };
    assert_eq!(
        request.first_line(),
        "POST /write?db=farm&precision=ns HTTP/1.1"
    );
    // printf runner:s3cret | base64
    assert_eq!(
        request.header("authorization"),
        Some("Basic cnVubmVyOnMzY3JldA==")
    );
    let lines = records(2)
        .iter()
        .map(line::to_line)
        .collect::<Vec<_>>()
        .join("\n");
    assert_eq!(request.body, lines);
}

#[tokio::test]
async fn without_a_token_file_there_is_no_authorization() {
    let server = Server::start(|_, _| taken()).await;
    for config in both(&server.url) {
        deliver(&config, 1).await;
    }
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    for config in both(&url) {
        let message = failure(&config).await;
        assert!(message.contains("Connection refused"), "{message}");
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_left_after_the_timeout() {
    let server = Server::start(|_, _| Reply::Silence).await;
    for config in both(&server.url) {
        let config = InfluxConfig {
            timeout: Duration::from_millis(300),
            ..config
        };
        let begun = Instant::now();
        let message = failure(&config).await;
        assert!(message.contains("timed out"), "{message}");
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}

#[tokio::test]
async fn answers_that_are_not_204_are_not_taken() {
    let page = "<html><title>Sign in to the network</title></html>";
    for code in [
        "200 OK",
        "201 Created",
        "202 Accepted",
        "205 Reset Content",
        "500 No",
        "502 No",
        "404 No",
    ] {
        let server = Server::start(move |_, _| status(code, "", page)).await;
        for config in both(&server.url) {
            let message = failure(&config).await;
            assert!(message.contains(&code[..3]), "{code}: {message}");
        }
    }
}

#[tokio::test]
async fn a_400_with_a_page_is_not_the_database_speaking() {
    let page = "<html><center><h1>400 The plain HTTP request was sent to HTTPS port</h1>";
    let server = Server::start(move |_, _| status("400 Bad Request", "", page)).await;
    for config in both(&server.url) {
        assert!(failure(&config).await.contains("plain HTTP request"));
    }
}

#[tokio::test]
async fn bad_lines_are_found_counted_and_left_out() {
    // Refuses whatever batch holds number 3 or 7, as InfluxDB does with a field of another type.
    let server = Server::start(|_, request| {
        let bad = ["attempt=3i", "attempt=7i"]
            .iter()
            .any(|bad| request.body.contains(bad));
        if bad {
            status("400 Bad Request", "", r#"{"error":"field type conflict"}"#)
        } else {
            taken()
        }
    })
    .await;
    for config in both(&server.url) {
        server.requests.lock().unwrap().clear();
        let delivery = deliver(&config, 10).await;
        assert_eq!(
            delivery,
            Delivery {
                settled: 10,
                rejected: 2,
                failure: None
            }
        );
        let good: Vec<String> = server
            .requests()
            .iter()
            .filter(|request| !request.body.contains("attempt=3i"))
            .filter(|request| !request.body.contains("attempt=7i"))
            .flat_map(|request| request.body.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        let expected: Vec<String> = [0, 1, 2, 4, 5, 6, 8, 9]
            .map(|number| line::to_line(&record(number)))
            .to_vec();
        assert_eq!(good, expected, "the good ones once each, in order");
    }
}

#[tokio::test]
async fn what_was_taken_before_the_server_died_among_bad_lines_counts() {
    let server = Server::start(|number, _| match number {
        1 => status("400 Bad Request", "", "bad"),
        2 => taken(),
        _ => Reply::Cut(String::new()),
    })
    .await;
    let delivery = deliver(&v1(&server.url), 4).await;
    assert_eq!((delivery.settled, delivery.rejected), (2, 0));
    assert!(delivery.failure.is_some());
}

#[tokio::test]
async fn an_answer_cut_short_is_a_failure() {
    for cut in [
        "",
        "HTTP/1.1 2",
        "HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\nhalf",
    ] {
        let server = Server::start(move |_, _| Reply::Cut(cut.to_owned())).await;
        for config in both(&server.url) {
            failure(&config).await;
        }
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_the_token_goes_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let thief = Server::start(|_, _| taken()).await;
    for code in ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"] {
        let location = format!("Location: {}/api/v2/write\r\n", thief.url);
        let server = Server::start(move |_, _| status(code, &location, "")).await;
        for config in both(&server.url) {
            let config = InfluxConfig {
                user: if config.api == InfluxApi::V1 {
                    "runner".into()
                } else {
                    String::new()
                },
                token_file: Some(token_file(dir.path(), "s3cret")),
                ..config
            };
            let message = failure(&config).await;
            assert!(message.contains("redirects are not followed"), "{message}");
        }
    }
    assert!(thief.requests().is_empty());
}

#[tokio::test]
async fn a_token_that_was_changed_in_the_file_is_used_when_the_old_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, request| match request.header("authorization") {
        Some("Token new") => taken(),
        _ => status("401 Unauthorized", "", r#"{"code":"unauthorized"}"#),
    })
    .await;
    let path = token_file(dir.path(), "old");
    let config = InfluxConfig {
        token_file: Some(path),
        ..v2(&server.url)
    };
    let mut sink = Influx::new(config).unwrap();
    let refused = sink.deliver(&records(1)).await;
    assert_eq!(refused.settled, 0);
    assert_eq!(
        server.requests().len(),
        1,
        "the same token is not tried twice"
    );

    token_file(dir.path(), "new");
    assert_eq!(sink.deliver(&records(1)).await, Delivery::all(1));
}

#[tokio::test]
async fn a_token_file_that_is_missing_or_open_is_a_failure_until_it_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| taken()).await;
    let path = dir.path().join("token");
    let config = InfluxConfig {
        token_file: Some(path.clone()),
        ..v2(&server.url)
    };
    let mut sink = Influx::new(config).unwrap();
    assert!(sink.deliver(&records(1)).await.failure.is_some());
    fs_err::write(&path, "s3cret").unwrap();
    assert!(
        sink.deliver(&records(1)).await.failure.is_some(),
        "mode 0644"
    );
    assert!(
        server.requests().is_empty(),
        "nothing is sent without the token"
    );
    token_file(dir.path(), "s3cret");
    assert_eq!(sink.deliver(&records(1)).await, Delivery::all(1));
}

#[tokio::test]
async fn a_token_shows_in_no_message_and_no_debug_output() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, request| {
        let echo = format!("no access with {:?}\r\n", request.header("authorization"));
        status("500 No", "", &echo)
    })
    .await;
    for config in both(&server.url) {
        let config = InfluxConfig {
            user: if config.api == InfluxApi::V1 {
                "runner".into()
            } else {
                String::new()
            },
            token_file: Some(token_file(dir.path(), "s3cret")),
            ..config
        };
        let mut sink = Influx::new(config).unwrap();
        let delivery = sink.deliver(&records(1)).await;
        let shown = format!("{delivery:?} {sink:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }
    assert!(
        server
            .requests()
            .iter()
            .all(|request| !request.first_line().contains("s3cret"))
    );
}

#[tokio::test]
async fn retry_after_is_obeyed_by_v1_at_once_and_by_v2_from_the_second_answer_on() {
    let server =
        Server::start(|_, _| status("503 Busy", "Retry-After: 17\r\n", "overloaded")).await;
    let wait = |delivery: Delivery| delivery.failure.expect("a failure").retry_after;
    let seventeen = Some(Duration::from_secs(17));
    let mut sink = Influx::new(v1(&server.url)).unwrap();
    assert_eq!(wait(sink.deliver(&records(1)).await), seventeen);
    let mut sink = Influx::new(v2(&server.url)).unwrap();
    assert_eq!(
        wait(sink.deliver(&records(1)).await),
        None,
        "influxdb2 shows no headers"
    );
    assert_eq!(wait(sink.deliver(&records(1)).await), seventeen);
    let [_, first, second] = &server.requests()[..] else {
        panic!("three requests")
    };
    assert_eq!(first.first_line(), second.first_line());
    assert_eq!(first.body, second.body);
}

#[tokio::test]
async fn the_request_of_our_own_client_carries_the_same_token() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|number, _| match number {
        1 => status("429 Slow Down", "", ""),
        _ => taken(),
    })
    .await;
    let config = InfluxConfig {
        token_file: Some(token_file(dir.path(), "s3cret")),
        ..v2(&server.url)
    };
    let mut sink = Influx::new(config).unwrap();
    sink.deliver(&records(1)).await;
    assert_eq!(sink.deliver(&records(1)).await, Delivery::all(1));
    assert!(!sink.overloaded);
    for request in server.requests() {
        assert_eq!(request.header("authorization"), Some("Token s3cret"));
    }
}

#[tokio::test]
async fn an_answer_without_end_is_left_before_it_fills_the_memory() {
    let head = "HTTP/1.1 500 No\r\nContent-Length: 1000000000000\r\n\r\n";
    let server = Server::start(move |_, _| Reply::Endless(head.to_owned())).await;
    for config in both(&server.url) {
        *server.sent.lock().unwrap() = 0;
        let config = InfluxConfig {
            timeout: Duration::from_secs(30),
            ..config
        };
        let begun = Instant::now();
        failure(&config).await;
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "left before the timeout"
        );
        let sent = *server.sent.lock().unwrap();
        assert!(sent < 64 << 20, "{sent} bytes");
    }
}

#[tokio::test]
async fn an_explanation_is_one_short_line() {
    let body = format!("first\nsecond\x1b[31m\r\n{}", "x".repeat(10_000));
    let server = Server::start(move |_, _| status("500 No", "", &body)).await;
    for config in both(&server.url) {
        let message = failure(&config).await;
        assert!(
            message.starts_with("HTTP 500: first second [31m xxx"),
            "{message}"
        );
        assert!(message.len() < 250);
    }
}
