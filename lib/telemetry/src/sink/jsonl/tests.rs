use super::*;
use crate::tests::{numbers, record};

async fn deliver(sink: &mut Jsonl, numbers: std::ops::Range<u32>) -> Delivery {
    sink.deliver(&numbers.map(record).collect::<Vec<_>>()).await
}

#[tokio::test]
async fn a_file_that_was_rotated_is_opened_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("out"), dir.path().join("out.1"));
    let mut sink = Jsonl::new(path.clone());
    assert_eq!(deliver(&mut sink, 0..2).await, Delivery::all(2));
    fs_err::rename(&path, &old).unwrap();
    deliver(&mut sink, 2..3).await;
    fs_err::remove_file(&path).unwrap();
    deliver(&mut sink, 3..4).await;
    assert_eq!(numbers(&old), [0, 1]);
    assert_eq!(numbers(&path), [3]);
}

#[tokio::test]
async fn a_line_cut_short_by_a_crash_does_not_spoil_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    fs_err::write(&path, "{\"time\":\"20").unwrap();
    deliver(&mut Jsonl::new(path.clone()), 0..1).await;
    let text = fs_err::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(serde_json::from_str::<Record>(lines[1]).is_ok());
}

#[tokio::test]
async fn what_is_not_a_file_fails_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [
        fifo,
        dir.path().to_owned(),
        "/dev/full".into(),
        dir.path().join("no/dir"),
    ] {
        let delivery = deliver(&mut Jsonl::new(path.clone()), 0..1).await;
        assert_eq!(delivery.settled, 0, "{}", path.display());
        assert!(delivery.failure.is_some(), "{}", path.display());
    }
}
