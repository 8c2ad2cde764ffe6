use std::path::Path;

use super::*;
use crate::tests::record;

fn sink(address: &str) -> Syslog {
    let config = SyslogConfig {
        address: address.to_owned(),
        ..SyslogConfig::default()
    };
    Syslog::new(&config).unwrap()
}

fn records(numbers: std::ops::Range<u32>) -> Vec<Record> {
    numbers.map(record).collect()
}

/// The attempt in a line: the number of the record.
fn attempt(line: &str) -> u32 {
    let (_, rest) = line.rsplit_once(" attempt=").expect("an attempt");
    rest.split(' ').next().unwrap().parse().expect("a number")
}

#[test]
fn addresses_say_how_and_where() {
    let parse = |text: &str| text.parse::<Address>();
    for good in [
        "udp://127.0.0.1:514",
        "tcp://[::1]:601",
        "udp://logs.example:514",
        "unix:///dev/log",
    ] {
        assert_eq!(parse(good).unwrap().to_string(), good);
    }
    for bad in [
        "",
        "udp://",
        "udp://host",
        "udp://:514",
        "udp://host:0",
        "udp://host:70000",
        "host:514",
        "unix://dev/log",
        "tls://host:6514",
        "udp://a b:514",
        "UDP://host:514",
    ] {
        let error = parse(bad).unwrap_err().to_string();
        assert!(error.contains("expected `udp://HOST:PORT`"), "{error}");
    }
}

#[tokio::test]
async fn udp_is_one_datagram_per_record() {
    let receiver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut sink = sink(&format!("udp://{}", receiver.local_addr().unwrap()));
    assert_eq!(sink.deliver(&records(0..3)).await, Delivery::all(3));
    for number in 0..3 {
        let mut bytes = [0; 2048];
        let length = receiver.recv(&mut bytes).await.unwrap();
        let line = std::str::from_utf8(&bytes[..length]).unwrap();
        assert!(line.starts_with("<28>1 2026-") && length < 1024, "{line}");
        assert_eq!(attempt(line), number);
    }
}

#[tokio::test]
async fn udp_without_listener_on_this_host_is_a_failure() {
    let receiver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = receiver.local_addr().unwrap();
    drop(receiver);
    let mut sink = sink(&format!("udp://{address}"));
    let delivery = sink.deliver(&records(0..3)).await;
    assert_eq!(delivery.settled, 0, "{delivery:?}");
    let receiver = UdpSocket::bind(address).await.unwrap();
    assert_eq!(sink.deliver(&records(0..3)).await, Delivery::all(3));
    assert!(receiver.recv(&mut [0; 2048]).await.unwrap() > 0);
}

/// The messages in a stream of counted octets.
fn unframe(mut bytes: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    while !bytes.is_empty() {
        let space = bytes
            .iter()
            .position(|byte| *byte == b' ')
            .expect("a length");
        let length: usize = std::str::from_utf8(&bytes[..space])
            .unwrap()
            .parse()
            .unwrap();
        let (line, rest) = bytes[space + 1..].split_at(length);
        lines.push(String::from_utf8(line.to_vec()).unwrap());
        bytes = rest;
    }
    lines
}

#[tokio::test]
async fn tcp_counts_octets() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut sink = sink(&format!("tcp://{}", listener.local_addr().unwrap()));
    assert_eq!(sink.deliver(&records(0..3)).await, Delivery::all(3));
    let (mut stream, _) = listener.accept().await.unwrap();
    assert_eq!(sink.deliver(&records(3..5)).await, Delivery::all(2));
    drop(sink);
    let mut bytes = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut bytes)
        .await
        .unwrap();
    let numbers: Vec<u32> = unframe(&bytes).iter().map(|line| attempt(line)).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn tcp_connects_again_and_repeats_what_the_receiver_may_not_have_read() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut sink = sink(&format!("tcp://{}", listener.local_addr().unwrap()));
    sink.deliver(&records(0..2)).await;
    let (first, _) = listener.accept().await.unwrap();
    first.readable().await.unwrap();
    // The receiver dies with the batch unread.
    drop(first);
    // Until our kernel knows: no condition is visible from outside but the socket itself.
    let Way::Tcp {
        connection: Some(stream),
        ..
    } = &sink.way
    else {
        panic!("connected")
    };
    stream.readable().await.unwrap();

    assert_eq!(sink.deliver(&records(2..4)).await, Delivery::all(2));
    let (mut second, _) = listener.accept().await.unwrap();
    drop(sink);
    let mut bytes = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut second, &mut bytes)
        .await
        .unwrap();
    let numbers: Vec<u32> = unframe(&bytes).iter().map(|line| attempt(line)).collect();
    assert_eq!(numbers, [0, 1, 2, 3]);
}

#[tokio::test]
async fn tcp_without_listener_is_a_failure() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let delivery = sink(&format!("tcp://{address}"))
        .deliver(&records(0..1))
        .await;
    assert_eq!(delivery.settled, 0);
    assert!(delivery.failure.unwrap().message.contains("refused"));
}

fn received(socket: &std::os::unix::net::UnixDatagram) -> String {
    let mut bytes = [0; 9000];
    let length = socket.recv(&mut bytes).unwrap();
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

fn local(path: &Path) -> Syslog {
    sink(&format!("unix://{}", path.display()))
}

#[tokio::test]
async fn the_local_socket_may_be_made_anew_between_two_records() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut sink = local(&path);
    let absent = sink.deliver(&records(0..1)).await;
    assert_eq!(absent.settled, 0, "{absent:?}");

    let receiver = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    assert_eq!(sink.deliver(&records(0..2)).await, Delivery::all(2));
    assert!(received(&receiver).starts_with("<28>runner["));
    assert_eq!(attempt(&received(&receiver)), 1);

    drop(receiver);
    fs_err::remove_file(&path).unwrap();
    let receiver = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    assert_eq!(sink.deliver(&records(2..3)).await, Delivery::all(1));
    assert_eq!(attempt(&received(&receiver)), 2);
}

#[tokio::test(start_paused = true)]
async fn a_local_receiver_that_does_not_read_is_left_after_the_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let receiver = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let mut sink = local(&path);
    // More than a receiver's queue holds (net.unix.max_dgram_qlen, 10 to 512).
    let delivery = sink.deliver(&records(0..2000)).await;
    let taken = delivery.settled;
    assert!(taken < 2000 && delivery.failure.is_some(), "{taken}");
    for number in 0..taken {
        assert_eq!(attempt(&received(&receiver)) as usize, number);
    }
    // The one that was given up may have been sent at the last moment; none is left out.
    let rest = u32::try_from(taken).unwrap();
    sink.deliver(&records(rest..rest + 1)).await;
    assert_eq!(attempt(&received(&receiver)), rest);
}

#[test]
fn the_reader_of_the_tests_goes_by_the_counts() {
    assert_eq!(unframe(b"2 ab3 cde"), ["ab", "cde"]);
    assert!(std::panic::catch_unwind(|| unframe(b"9 ab")).is_err());
}
