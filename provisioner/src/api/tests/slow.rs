//! Slow, large and many: what no caller may do to the others.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use super::*;

const SHORT: Duration = Duration::from_millis(300);

/// What is read until the other side ends the connection; a reset ends it too.
async fn rest(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut read))
        .await
        .expect("the connection is ended")
        .ok();
    String::from_utf8_lossy(&read).into_owned()
}

async fn connect(farm: &Farm) -> TcpStream {
    TcpStream::connect(farm.address).await.unwrap()
}

/// From another address of this machine.
async fn connect_from(farm: &Farm, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::new(from.parse().unwrap(), 0))
        .unwrap();
    socket.connect(farm.address).await.unwrap()
}

/// With little room for what arrives.
async fn narrow(farm: &Farm) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(farm.address).await.unwrap()
}

fn head(token: &str, length: &str) -> String {
    format!(
        "POST /v1/hosts/i-1/report HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n{length}\r\n\r\n"
    )
}

#[tokio::test]
async fn a_slow_head_is_cut_off() {
    let limits = Limits {
        head: SHORT,
        ..Limits::default()
    };
    let farm = Farm::with(config(), limits).await;
    let begin = Instant::now();
    let mut slow = connect(&farm).await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n")
        .await
        .unwrap();
    // A line now and then does not help.
    let (mut read, mut write) = slow.split();
    let drip = async {
        while write.write_all(b"x-more: 1\r\n").await.is_ok() {
            tokio::time::sleep(SHORT / 6).await;
        }
    };
    let mut answer = Vec::new();
    let ended = async {
        tokio::select! {
            () = drip => {}
            ended = read.read_to_end(&mut answer) => { ended.ok(); }
        }
    };
    timeout(PATIENCE, ended).await.expect("it is cut off");
    assert!(begin.elapsed() >= SHORT);
    assert!(!String::from_utf8_lossy(&answer).contains("200"));
}

#[tokio::test]
async fn an_idle_connection_is_ended() {
    let limits = Limits {
        head: SHORT,
        ..Limits::default()
    };
    let farm = Farm::with(config(), limits).await;
    let mut idle = connect(&farm).await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let answer = rest(&mut idle).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test]
async fn a_slow_body_is_cut_off_with_408() {
    let limits = Limits {
        body: SHORT,
        ..Limits::default()
    };
    let farm = Farm::with(config(), limits).await;
    let token = farm.join("i-1").await;
    let mut slow = connect(&farm).await;
    slow.write_all(head(&token, "content-length: 300").as_bytes())
        .await
        .unwrap();
    slow.write_all(br#"{"boot_id":"#).await.unwrap();
    let answer = rest(&mut slow).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(
        answer.contains(r#"{"error":"the body did not arrive within 300ms"}"#),
        "{answer}"
    );
}

#[tokio::test]
async fn what_takes_too_long_here_is_a_matter_of_later() {
    let limits = Limits {
        request: SHORT,
        ..Limits::default()
    };
    let farm = Farm::with(config(), limits).await;
    farm.launch(&["i-1"]).await;
    farm.api.store.answers.send_replace(false);
    let answer = farm.register("i-1", farm.join_token().expose(), KEY).await;
    assert_eq!((answer.status, answer.retry_after()), (503, Some(10)));
    // And takes nobody's place for ever.
    farm.api.store.answers.send_replace(true);
    let answer = farm.register("i-1", farm.join_token().expose(), KEY).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_with_413() {
    let farm = Farm::new().await;
    let token = farm.join("i-1").await;
    let fits = |length: usize| {
        let mut report = said("idle").to_string();
        report.push_str(&" ".repeat(length - report.len()));
        report
    };
    for (length, status) in [(65_536, 200), (65_537, 413), (400_000, 413)] {
        let body = fits(length);
        let mut sized = connect(&farm).await;
        let head_of_it = head(
            &token,
            &format!("content-length: {length}\r\nconnection: close"),
        );
        sized.write_all(head_of_it.as_bytes()).await.unwrap();
        sized.write_all(body.as_bytes()).await.unwrap();
        let answer = rest(&mut sized).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{length}: {answer}"
        );
        // Without a length it is found while it is read.
        let mut chunked = connect(&farm).await;
        let head_of_it = head(&token, "transfer-encoding: chunked\r\nconnection: close");
        chunked.write_all(head_of_it.as_bytes()).await.unwrap();
        let body = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");
        chunked.write_all(body.as_bytes()).await.unwrap();
        let answer = rest(&mut chunked).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{length}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_body_without_end_is_ended() {
    let farm = Farm::new().await;
    let token = farm.join("i-1").await;
    let mut endless = connect(&farm).await;
    let head = head(&token, "transfer-encoding: chunked");
    endless.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let mut sent = 0;
    let sending = async {
        while endless.write_all(chunk.as_bytes()).await.is_ok() {
            sent += chunk.len();
        }
    };
    timeout(PATIENCE, sending)
        .await
        .expect("the connection is ended");
    // What the buffers of the system hold on both sides, and what is read and thrown away.
    assert!(sent < 32 << 20, "{sent}");
}

#[tokio::test]
async fn who_is_refused_before_his_body_is_read_still_gets_the_answer() {
    let farm = Farm::new().await;
    let body = " ".repeat(60_000);
    for _ in 0..50 {
        let mut stream = connect(&farm).await;
        let head = head("wrong", "content-length: 60000");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("no reset");
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    }
}

#[tokio::test]
async fn a_large_head_is_refused() {
    let farm = Farm::new().await;
    let mut large = connect(&farm).await;
    let head = format!(
        "GET /healthz HTTP/1.1\r\nx: {}\r\n\r\n",
        "x".repeat(64 << 10)
    );
    large.write_all(head.as_bytes()).await.ok();
    let answer = rest(&mut large).await;
    assert!(!answer.contains("200 OK"), "{answer}");
    assert_eq!(farm.get("/healthz", "").await.status, 200);
}

#[tokio::test]
async fn one_address_takes_not_all_connections() {
    let limits = Limits {
        connections: 8,
        connections_per_address: 4,
        ..Limits::default()
    };
    let farm = Farm::with(config(), limits).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = connect_from(&farm, "127.0.0.2").await;
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\n")
            .await
            .unwrap();
        held.push(stream);
    }
    let mut one_more = connect_from(&farm, "127.0.0.2").await;
    one_more
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .ok();
    assert_eq!(rest(&mut one_more).await, "");
    // Another address, and this machine's own, are as well as before.
    for from in ["127.0.0.3", "127.0.0.1"] {
        let other = client(Some(from.parse().unwrap()));
        let answer = send(&other, farm.address, Method::GET, "/healthz", "", None).await;
        assert_eq!(answer.status, 200, "{from}");
    }
    // Whoever lets one go may have another.
    drop(held);
    timeout(PATIENCE, async {
        loop {
            let mut again = connect_from(&farm, "127.0.0.2").await;
            let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            again.write_all(request).await.ok();
            if rest(&mut again).await.starts_with("HTTP/1.1 200") {
                break;
            }
        }
    })
    .await
    .expect("a place is free again");
}

#[tokio::test]
async fn when_all_connections_are_taken_the_next_waits_for_one() {
    let limits = Limits {
        connections: 2,
        head: SHORT,
        ..Limits::default()
    };
    let farm = Farm::with(config(), limits).await;
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut stream = connect(&farm).await;
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\n")
            .await
            .unwrap();
        slow.push(stream);
    }
    // The slow ones are cut off, and it is its turn.
    assert_eq!(farm.get("/healthz", "").await.status, 200);
}

#[tokio::test]
async fn a_reader_who_stands_still_is_cut_off() {
    let limits = Limits {
        write: SHORT,
        ..Limits::default()
    };
    let farm = Farm::with(config(), limits).await;
    let mut pass = suite::pass(1);
    // More than the buffers of the system take.
    pass.faults = vec!["x".repeat(1 << 20); 10];
    people::keep(&farm, pass).await;
    let mut still = narrow(&farm).await;
    let request =
        format!("GET /v1/passes/1 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN}\r\n\r\n");
    still.write_all(request.as_bytes()).await.unwrap();
    still.readable().await.unwrap();
    // The writers it could hold are free again when it is cut off: there are two.
    for _ in 0..3 {
        let mut other = narrow(&farm).await;
        other.write_all(request.as_bytes()).await.unwrap();
        other.readable().await.unwrap();
    }
    // The first gets what the buffers held, and never all of it.
    let answer = rest(&mut still).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"));
    assert!(answer.len() < 10 << 20, "{}", answer.len());
}

#[tokio::test]
async fn a_shutdown_answers_what_was_asked_and_takes_nothing_more() {
    let farm = Farm::new().await;
    farm.launch(&["i-1"]).await;
    farm.api.store.answers.send_replace(false);
    let before = farm.api.store.asked.load(Ordering::Relaxed);
    let join = farm.join_token();
    let asking = {
        let (client, address) = (farm.client.clone(), farm.address);
        let token = join.expose().to_owned();
        tokio::spawn(async move {
            let path = "/v1/hosts/i-1/register";
            send(
                &client,
                address,
                Method::POST,
                path,
                &token,
                Some(registration(KEY)),
            )
            .await
        })
    };
    let mut idle = connect(&farm).await;
    timeout(PATIENCE, async {
        while farm.api.store.asked.load(Ordering::Relaxed) == before {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it was asked");
    farm.shutdown.cancel();
    assert_eq!(
        rest(&mut idle).await,
        "",
        "an idle connection is ended at once"
    );
    timeout(PATIENCE, async {
        while TcpStream::connect(farm.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("nothing more is taken");
    assert!(!farm.served.is_finished());
    farm.api.store.answers.send_replace(true);
    let answer = asking.await.unwrap();
    assert_eq!(answer.status, 200);
    timeout(PATIENCE, farm.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_shutdown_waits_for_nobody_for_ever() {
    let limits = Limits {
        shutdown: SHORT,
        ..Limits::default()
    };
    let farm = Farm::with(config(), limits).await;
    let mut slow = connect(&farm).await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
    assert_eq!(farm.get("/healthz", "").await.status, 200);
    farm.shutdown.cancel();
    timeout(PATIENCE, farm.served).await.unwrap().unwrap();
}

#[test]
fn a_process_that_may_open_few_files_takes_few_connections() {
    let limits = Limits::of_this_process();
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let half = usize::try_from(files.unwrap_or(u64::MAX) / 2).unwrap_or(usize::MAX);
    assert!(limits.connections <= half.max(1));
    assert!(limits.connections <= Limits::default().connections);
    assert!(limits.connections_per_address <= limits.connections);
}
