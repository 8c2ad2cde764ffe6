use std::ops::Range;

use super::*;
use crate::tests::{number, record};

const LIMIT: u64 = 64 << 20;
const SMALL: u64 = 256 << 10;

fn names(sinks: &[&str]) -> Vec<String> {
    sinks.iter().map(|sink| (*sink).to_owned()).collect()
}

fn open(dir: &Path, limit: u64, sinks: &[&str]) -> Spool {
    Spool::open(dir, limit, &names(sinks)).unwrap()
}

fn fill(spool: &Spool, numbers: Range<u32>) {
    for number in numbers {
        spool.append(&record(number));
    }
}

/// Takes everything there is for sink `sink`.
fn drain(spool: &Spool, sink: usize) -> Vec<u32> {
    let mut numbers = Vec::new();
    while let Some(batch) = spool.next(sink) {
        numbers.extend(batch.records.iter().map(number));
        spool.take(sink, batch.after(batch.records.len()).unwrap());
    }
    numbers
}

fn dropped(spool: &Spool) -> u64 {
    spool.stats().2
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs_err::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    paths.sort();
    paths
}

fn disk_use(dir: &Path) -> u64 {
    segments(dir)
        .iter()
        .map(|path| fs_err::metadata(path).unwrap().len())
        .sum()
}

#[test]
fn each_sink_gets_everything_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), LIMIT, &["a", "b"]);
    fill(&spool, 0..5000);
    assert_eq!(drain(&spool, 0), (0..5000).collect::<Vec<_>>());
    assert_eq!(drain(&spool, 1), (0..5000).collect::<Vec<_>>());
    assert_eq!(spool.stats(), (0, 0, 0));
}

#[test]
fn a_restart_goes_on_where_each_sink_was() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), LIMIT, &["a", "b"]);
    fill(&spool, 0..10);
    drain(&spool, 0);
    let batch = spool.next(1).unwrap();
    spool.take(1, batch.after(3).unwrap());
    fill(&spool, 10..12);
    drop(spool);

    let spool = open(dir.path(), LIMIT, &["a", "b"]);
    fill(&spool, 12..13);
    assert_eq!(drain(&spool, 0), [10, 11, 12]);
    assert_eq!(drain(&spool, 1), (3..13).collect::<Vec<_>>());
}

#[test]
fn a_segment_cut_at_any_byte_loses_only_what_was_cut() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(&dir.path().join("whole"), LIMIT, &["a"]);
    fill(&spool, 0..4);
    drop(spool);
    let whole = fs_err::read(&segments(&dir.path().join("whole"))[0]).unwrap();

    for cut in 0..=whole.len() {
        let dir = dir.path().join(cut.to_string());
        fs_err::create_dir(&dir).unwrap();
        fs_err::write(segment_path(&dir, 1), &whole[..cut]).unwrap();
        let spool = open(&dir, LIMIT, &["a"]);
        fill(&spool, 100..102);

        let left = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
        let expected: Vec<u32> = (0..u32::try_from(left).unwrap())
            .chain([100, 101])
            .collect();
        assert_eq!(drain(&spool, 0), expected, "cut at byte {cut}");
        let is_torn = cut > 0 && whole[cut - 1] != b'\n';
        assert_eq!(dropped(&spool), u64::from(is_torn), "cut at byte {cut}");
    }
}

#[test]
fn a_torn_line_is_cut_off_and_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), LIMIT, &["a"]);
    fill(&spool, 0..2);
    drop(spool);
    let path = &segments(dir.path())[0];
    let whole = fs_err::read(path).unwrap();
    fs_err::write(path, &whole[..whole.len() - 1]).unwrap();
    for _ in 0..2 {
        let spool = open(dir.path(), LIMIT, &["a"]);
        assert_eq!(dropped(&spool), 1);
    }
    assert!(fs_err::read(path).unwrap().ends_with(b"\n"));
}

#[test]
fn a_damaged_line_is_skipped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), LIMIT, &["a"]);
    fill(&spool, 0..3);
    let path = &segments(dir.path())[0];
    let mut bytes = fs_err::read(path).unwrap();
    let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 20;
    bytes[second] ^= 0x80;
    fs_err::write(path, bytes).unwrap();

    let batch = spool.next(0).unwrap();
    assert_eq!(batch.damaged, 1);
    assert_eq!(batch.records.iter().map(number).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn a_file_without_line_breaks_does_not_stop_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), LIMIT, &["a"]);
    fill(&spool, 0..3000);
    let path = &segments(dir.path())[0];
    let size = usize::try_from(fs_err::metadata(path).unwrap().len()).unwrap();
    fs_err::write(path, vec![b'x'; size]).unwrap();
    fill(&spool, 3000..3001);
    assert_eq!(
        drain(&spool, 0).last(),
        None,
        "the good line ends the last damaged one"
    );
    fill(&spool, 3001..3002);
    assert_eq!(drain(&spool, 0), [3001]);
}

#[test]
fn over_the_limit_the_oldest_are_dropped_and_counted_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), SMALL, &["a"]);
    fill(&spool, 0..5000);
    assert!(disk_use(dir.path()) <= SMALL);
    let lost = dropped(&spool);
    assert!(lost > 0);
    drop(spool);

    let spool = open(dir.path(), SMALL, &["a"]);
    assert_eq!(spool.stats().1, 0, "none since this start");
    assert_eq!(dropped(&spool), lost);
    let left = drain(&spool, 0);
    assert_eq!(
        left,
        (u32::try_from(lost).unwrap()..5000).collect::<Vec<_>>()
    );
}

#[test]
fn what_every_sink_has_is_not_counted_when_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), SMALL, &["a", "b"]);
    for start in (0..20_000).step_by(500) {
        fill(&spool, start..start + 500);
        drain(&spool, 0);
        drain(&spool, 1);
    }
    assert_eq!(dropped(&spool), 0);
    assert!(segments(dir.path()).len() <= 2, "read segments are deleted");
}

#[test]
fn a_sink_that_reads_while_its_segment_is_dropped_goes_on_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), SMALL, &["a"]);
    fill(&spool, 0..10);
    let batch = spool.next(0).unwrap();
    fill(&spool, 10..5000);
    spool.take(0, batch.after(10).unwrap());
    let left = drain(&spool, 0);
    assert!(left.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    assert_eq!(left.last(), Some(&4999));
}

#[test]
fn of_a_dropped_segment_only_what_somebody_missed_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), SMALL, &["a", "b"]);
    fill(&spool, 0..10);
    spool.take(0, spool.next(0).unwrap().after(10).unwrap());
    spool.take(1, spool.next(1).unwrap().after(4).unwrap());
    fill(&spool, 10..5000);
    // Sink `b` is the furthest behind: what it gets now and had before is what was not dropped.
    let left = u64::try_from(drain(&spool, 1).len()).unwrap();
    assert_eq!(dropped(&spool), 5000 - 4 - left);
}

#[test]
fn a_new_sink_starts_with_the_oldest_record_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), LIMIT, &["a"]);
    fill(&spool, 0..3);
    drop(spool);
    let spool = open(dir.path(), LIMIT, &["a", "new"]);
    assert_eq!(drain(&spool, 1), [0, 1, 2]);
}

#[test]
fn a_sink_that_is_gone_holds_nothing_back() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), LIMIT, &["a", "gone"]);
    fill(&spool, 0..3);
    drain(&spool, 0);
    drop(spool);
    let spool = open(dir.path(), LIMIT, &["a"]);
    assert_eq!(
        segments(dir.path()).len(),
        1,
        "the old segment is deleted, the new one is empty"
    );
    assert!(drain(&spool, 0).is_empty());
    assert_eq!(cursor::list(dir.path()).unwrap().len(), 1);
}

#[test]
fn a_damaged_cursor_means_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), LIMIT, &["a"]);
    fill(&spool, 0..3);
    spool.take(0, spool.next(0).unwrap().after(2).unwrap());
    drop(spool);
    for damage in ["", "{", "{\"sink\":\"a\"}", "\u{fffd}"] {
        fs_err::write(cursor::path(dir.path(), "a"), damage).unwrap();
        let spool = open(dir.path(), LIMIT, &["a"]);
        let batch = spool.next(0).unwrap();
        assert_eq!(batch.records.len(), 3, "{damage:?}");
    }
}

#[test]
fn a_cursor_behind_the_end_of_its_segment_means_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), LIMIT, &["a"]);
    fill(&spool, 0..3);
    drain(&spool, 0);
    let path = segments(dir.path())[0].clone();
    drop(spool);
    // As after a power cut: the cursor reached the disk, the last records did not.
    let file = fs_err::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(10).unwrap();
    let spool = open(dir.path(), LIMIT, &["a"]);
    fill(&spool, 3..5);
    assert_eq!(drain(&spool, 0), [3, 4]);
}

#[test]
fn a_segment_that_vanished_is_counted_and_the_queue_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), LIMIT, &["a"]);
    fill(&spool, 0..3);
    fs_err::remove_file(&segments(dir.path())[0]).unwrap();
    assert!(drain(&spool, 0).is_empty());
    assert_eq!(dropped(&spool), 3);
    fill(&spool, 3..5);
    assert_eq!(drain(&spool, 0), [3, 4]);
}

#[test]
fn a_second_process_is_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path(), LIMIT, &["a"]);
    let second = Spool::open(dir.path(), LIMIT, &names(&["a"]));
    assert!(matches!(second, Err(OpenError::Busy(_))));
}

#[test]
fn strange_files_in_the_directory_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "x.seg",
        "12x.seg",
        ".seg",
        "99999999999999999999999.seg",
        "notes.txt",
    ] {
        fs_err::write(dir.path().join(name), b"hello\n").unwrap();
    }
    fs_err::create_dir(segment_path(dir.path(), 7)).unwrap();
    fs_err::write(dir.path().join("dropped"), b"many").unwrap();
    let spool = open(dir.path(), LIMIT, &["a"]);
    fill(&spool, 0..2);
    assert_eq!(drain(&spool, 0), [0, 1]);
}

#[test]
fn too_long_a_record_is_counted_and_the_queue_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path(), LIMIT, &["a"]);
    let mut long = record(0);
    long.identity.host = "x".repeat(LONGEST_LINE);
    spool.append(&long);
    fill(&spool, 1..2);
    assert_eq!(drain(&spool, 0), [1]);
    assert_eq!(dropped(&spool), 1);
}

/// Runs the test `name` of this file again, in a mount namespace of its own.
///
/// Without root the namespace comes with a user namespace, in which the user may mount too.
fn in_a_mount_namespace(name: &str) {
    let mut unshare = std::process::Command::new("unshare");
    if !nix::unistd::Uid::effective().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let output = unshare
        .args(["--mount", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare(1) of util-linux runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

const INSIDE: &str = "FARM_TELEMETRY_IN_NAMESPACE";

/// A file system of `size` in a directory that ends with the namespace.
fn mount_tmpfs(dir: &Path, size: &str) {
    let status = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
        .arg(dir)
        .status()
        .expect("mount(8) runs");
    assert!(status.success());
}

/// Fills the file system until it takes no more byte.
fn fill_disk(path: &Path) {
    let mut file = fs_err::File::create(path).unwrap();
    for size in [4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

#[test]
fn a_full_disk_keeps_the_newest_counts_the_rest_and_recovers() {
    if std::env::var_os(INSIDE).is_none() {
        return in_a_mount_namespace(
            "spool::tests::a_full_disk_keeps_the_newest_counts_the_rest_and_recovers",
        );
    }
    let dir = tempfile::tempdir().unwrap();
    mount_tmpfs(dir.path(), "1m");
    let spool_dir = dir.path().join("spool");
    let spool = open(&spool_dir, LIMIT, &["dead"]);
    // More than the disk takes: the limit is never reached, the end of the disk is.
    fill(&spool, 0..6000);
    let lost = u32::try_from(dropped(&spool)).unwrap();
    assert!(lost > 0, "a disk of 1 MiB cannot hold 6,000 records");

    // Space comes back: the next record goes to the disk, behind those kept in memory.
    mount_tmpfs_larger(dir.path(), "8m");
    fill(&spool, 6000..6001);
    assert!(spool.release());
    assert_eq!(dropped(&spool), u64::from(lost), "nothing more is lost");
    drop(spool);
    let spool = open(&spool_dir, LIMIT, &["dead"]);
    assert_eq!(dropped(&spool), u64::from(lost), "the count survives");
    let left = drain(&spool, 0);
    assert_eq!(
        left.len() + usize::try_from(lost).unwrap(),
        6001,
        "each is kept or counted"
    );
    assert!(left.windows(2).all(|pair| pair[0] < pair[1]), "in order");
    assert_eq!(left.last(), Some(&6000));
}

fn mount_tmpfs_larger(dir: &Path, size: &str) {
    let status = std::process::Command::new("mount")
        .args(["-o", &format!("remount,size={size}")])
        .arg(dir)
        .status()
        .expect("mount(8) runs");
    assert!(status.success());
}

#[test]
fn sinks_that_take_records_get_them_though_the_disk_is_full() {
    if std::env::var_os(INSIDE).is_none() {
        return in_a_mount_namespace(
            "spool::tests::sinks_that_take_records_get_them_though_the_disk_is_full",
        );
    }
    let dir = tempfile::tempdir().unwrap();
    mount_tmpfs(dir.path(), "1m");
    let spool = open(&dir.path().join("spool"), LIMIT, &["healthy"]);
    fill(&spool, 0..100);
    assert_eq!(drain(&spool, 0), (0..100).collect::<Vec<_>>());
    // A build fills the disk.
    fill_disk(&dir.path().join("object-file"));
    let mut taken = Vec::new();
    for start in (100..3000).step_by(50) {
        fill(&spool, start..start + 50);
        taken.extend(drain(&spool, 0));
        // Room comes only from what was read.
        spool.release();
        taken.extend(drain(&spool, 0));
    }
    assert_eq!(taken, (100..3000).collect::<Vec<_>>());
    assert_eq!(dropped(&spool), 0);
}
