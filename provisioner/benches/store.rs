//! What the embedded store costs: one durable commit, and a farm of 100,000 instances.
//!
//! `cargo bench -p provisioner --no-default-features --features store-suite --bench store`. Commits
//! are compared with the least that durability can cost, `fdatasync(2)` of the same bytes in the same
//! directory, in turns; the farm with one of a tenth, so that what grows faster than the farm shows.
//! The directory is below the target directory: `/tmp` may be memory, where syncing costs nothing.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints its result, and panics if it cannot measure"
)]

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use provisioner::ids::{InstanceId, PassId};
use provisioner::store::suite::{action, pass, record, view};
use provisioner::store::{Change, InstanceRecord, Missing, Pass, SqliteStore, Store, sqlite};
use provisioner::world::{HostView, Instance};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use tempfile::TempDir;
use tokio::time::Instant;

/// Commits of one entry each: enough for a median.
const COMMITS: usize = 300;
/// Instances of the large farm; the small one has a tenth.
const LARGE: usize = 100_000;
const SMALL: usize = LARGE / 10;
/// First argument of this program as the reader of a farm.
const READ: &str = "read";

fn directory() -> TempDir {
    TempDir::with_prefix_in("store-", env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, verb, directory, count] = arguments.as_slice()
        && verb == READ
    {
        let count = count.parse().unwrap();
        runtime.block_on(read(Path::new(directory), count));
        return;
    }
    runtime.block_on(commits());
    let small = runtime.block_on(farm(SMALL));
    let large = runtime.block_on(farm(LARGE));
    report(&small, &large);
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// A commit of one entry of the history, in both modes, beside the floor.
async fn commits() {
    let directory = directory();
    let store = sqlite::open(directory.path(), Missing::Make).await.unwrap();
    let mut full = raw(directory.path(), SqliteSynchronous::Full).await;
    let mut normal = raw(directory.path(), SqliteSynchronous::Normal).await;
    let mut file = fs_err::File::create(directory.path().join("floor")).unwrap();
    // A page of the log with its header, as one entry writes at least.
    let page = [7; 4_096 + 24];
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..COMMITS {
        let begun = Instant::now();
        file.write_all(&page).unwrap();
        file.sync_data().unwrap();
        times[0].push(begun.elapsed());

        let begun = Instant::now();
        insert(&mut full).await;
        times[1].push(begun.elapsed());

        let begun = Instant::now();
        insert(&mut normal).await;
        times[2].push(begun.elapsed());

        let begun = Instant::now();
        let did = vec![Change::Did(action("i-1", 1))];
        store.commit(None, did).await.unwrap();
        times[3].push(begun.elapsed());
    }
    let names = [
        "write and fdatasync",
        "SQLite, synchronous = FULL",
        "SQLite, synchronous = NORMAL",
        "the store, one entry",
    ];
    let times = times.map(median);
    for (name, time) in names.into_iter().zip(times) {
        let ratio = time.as_secs_f64() / times[0].as_secs_f64();
        println!(
            "{name:<30} {:>9.0} µs {ratio:>6.2} ×",
            time.as_secs_f64() * 1e6
        );
    }
}

async fn raw(directory: &Path, synchronous: SqliteSynchronous) -> sqlx::SqliteConnection {
    let name = format!("{synchronous:?}.sqlite");
    let options = SqliteConnectOptions::new()
        .filename(directory.join(name))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous);
    let mut connection = options.connect().await.unwrap();
    let table = "CREATE TABLE entries (entry INTEGER PRIMARY KEY, text TEXT NOT NULL)";
    sqlx::query(table).execute(&mut connection).await.unwrap();
    connection
}

async fn insert(connection: &mut sqlx::SqliteConnection) {
    let insert = sqlx::query("INSERT INTO entries (text) VALUES ($1)").bind("an entry");
    insert.execute(connection).await.unwrap();
}

/// Names of what is measured of a farm, in order: times in ms, then memory in KiB.
const TIMES: [&str; 6] = [
    "all enter in one commit",
    "all hosts heard, first time",
    "all hosts heard again",
    "stored()",
    "a pass with all of them, written",
    "and read",
];
const SIZES: [&str; 4] = [
    "what stored() gives",
    "beyond it, while it is read",
    "beyond the pass, while it is written",
    "the pass as JSON",
];

/// What a farm of one size took.
#[derive(Default)]
struct Farm {
    milliseconds: Vec<u64>,
    kib: Vec<u64>,
}

fn ids(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("i-{number:017x}"))
}

/// Makes a farm here, and reads it in a process of its own, whose memory nothing has used before.
async fn farm(count: usize) -> Farm {
    let directory = directory();
    let store = sqlite::open(directory.path(), Missing::Make).await.unwrap();
    let records: Vec<InstanceRecord> = ids(count).map(|id| record(&id)).collect();
    let views: Vec<(InstanceId, HostView)> = records
        .iter()
        .map(|record| (record.id.clone(), view()))
        .collect();
    let seen = records.into_iter().map(Box::new);
    let mut farm = Farm::default();
    for changes in [
        seen.map(Change::InstanceSeen).collect(),
        vec![Change::Heard(views.clone())],
        vec![Change::Heard(views)],
    ] {
        farm.milliseconds.push(took(&store, changes).await);
    }
    let reader = std::process::Command::new(std::env::current_exe().unwrap())
        .arg(READ)
        .arg(directory.path())
        .arg(count.to_string())
        .output()
        .unwrap();
    assert!(reader.status.success(), "{reader:?}");
    let figures = String::from_utf8(reader.stdout).unwrap();
    let mut figures = figures
        .split_whitespace()
        .map(|figure| figure.parse::<u64>().unwrap());
    farm.milliseconds.extend(figures.by_ref().take(3));
    farm.kib.extend(figures);
    farm
}

/// The other process: prints three times and four sizes.
async fn read(directory: &Path, count: usize) {
    let store = sqlite::open(directory, Missing::Refuse).await.unwrap();
    let before = resident("VmRSS");
    let begun = Instant::now();
    let stored = store.stored(Timestamp::UNIX_EPOCH).await.unwrap();
    let stored_took = milliseconds(begun);
    assert_eq!(stored.instances.len(), count);
    let after = resident("VmRSS");
    let beyond = resident("VmHWM") - after;

    let pass = Arc::new(large_pass(stored.instances));
    forget_peak();
    let made = resident("VmRSS");
    let changes = vec![Change::Passed {
        pass: Arc::clone(&pass),
        kept: 10,
    }];
    let passed = took(&store, changes).await;
    let passed_beyond = resident("VmHWM") - made;
    let begun = Instant::now();
    let kept = store.pass(PassId(1)).await.unwrap().unwrap();
    let unpacked = milliseconds(begun);
    assert_eq!(kept, *pass);
    let json = serde_json::to_vec(&*pass).unwrap().len() / 1_024;
    println!(
        "{stored_took} {passed} {unpacked} {} {beyond} {passed_beyond} {json}",
        after - before
    );
}

fn milliseconds(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap()
}

async fn took(store: &SqliteStore, changes: Vec<Change>) -> u64 {
    let begun = Instant::now();
    store.commit(None, changes).await.unwrap();
    milliseconds(begun)
}

/// A pass whose World has these instances.
fn large_pass(records: Vec<InstanceRecord>) -> Pass {
    let mut pass = pass(1);
    let one = pass.world.instances.pop().unwrap();
    let instance = |record: InstanceRecord| Instance {
        id: record.id,
        host: record.host,
        ..one.clone()
    };
    pass.world.instances = records.into_iter().map(instance).collect();
    pass
}

/// A figure of this process in KiB.
fn resident(field: &str) -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// From here on the peak counts anew.
fn forget_peak() {
    fs_err::write("/proc/self/clear_refs", "5").unwrap();
}

fn report(small: &Farm, large: &Farm) {
    println!("\n{:<38} {SMALL:>8} {LARGE:>8}   growth", "instances");
    let rows = |names: &[&str], unit: &str, small: &[u64], large: &[u64]| {
        for ((name, small), large) in names.iter().zip(small).zip(large) {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds and KiB are few")]
            let growth = *large as f64 / (*small).max(1) as f64;
            println!("{name:<38} {small:>8} {large:>8} {unit:<3} {growth:>5.1} ×");
        }
    };
    rows(&TIMES, "ms", &small.milliseconds, &large.milliseconds);
    println!("memory");
    rows(&SIZES, "KiB", &small.kib, &large.kib);
}
