use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use tempfile::TempDir;

use super::super::suite::{self, Fixture};
use super::*;
use crate::ids::PassId;
use crate::money::Money;
use crate::store::{Change, HistoryQuery, Registration, Store, Stored};

/// A state directory.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::with_prefix("farm-store-").unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self) -> PathBuf {
        self.path().join(FILE)
    }

    /// Opens a store that waits no longer than a test wants to.
    async fn open_impatient(&self) -> SqliteStore {
        let backend = Sqlite {
            busy_timeout: Duration::from_millis(50),
            ..Sqlite::new(self.path())
        };
        backend.into_store(Missing::Make).await.unwrap()
    }

    /// Opens it as a version with these migrations does.
    async fn open_as(
        &self,
        migrations: &'static [&'static str],
    ) -> Result<SqliteStore, StoreError> {
        let backend = Sqlite {
            migrations,
            ..Sqlite::new(self.path())
        };
        backend.into_store(Missing::Make).await
    }

    async fn refused(&self) -> StoreError {
        open(self.path(), Missing::Make).await.unwrap_err()
    }

    /// A connection of another program.
    async fn connection(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.file());
        options.connect().await.unwrap()
    }
}

impl Fixture for Place {
    type Store = SqliteStore;
    async fn open(&self) -> SqliteStore {
        open(self.path(), Missing::Make).await.unwrap()
    }
}

macro_rules! keep {
    ($($promise:ident,)*) => {
        mod promises {
            $(
                #[tokio::test]
                async fn $promise() {
                    super::suite::$promise(&super::Place::new()).await;
                }
            )*
        }
    };
}
crate::store_promises!(keep);

fn did() -> Change {
    Change::Did(suite::action("i-1", 1))
}

fn all() -> HistoryQuery {
    HistoryQuery {
        limit: u32::MAX,
        ..HistoryQuery::default()
    }
}

async fn entries(store: &SqliteStore) -> usize {
    store.history(&all()).await.unwrap().len()
}

async fn stored(store: &SqliteStore) -> Stored {
    let noon = "2026-11-20T12:30:00Z".parse().unwrap();
    store.stored(noon).await.unwrap()
}

fn mode(path: &Path) -> u32 {
    fs_err::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn the_store_is_its_owners_alone() {
    let place = Place::new();
    let directory = place.path().join("state/of/the/provisioner");
    let store = open(&directory, Missing::Make).await.unwrap();
    store.lead().await.unwrap();
    store.commit(None, vec![did()]).await.unwrap();
    assert_eq!(mode(&directory), 0o700);
    let mut files: Vec<_> = fs_err::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_owned(), mode(&path)))
        .collect();
    files.sort();
    let expected = [
        LOCK,
        FILE,
        "provisioner.sqlite-shm",
        "provisioner.sqlite-wal",
    ];
    assert_eq!(files, expected.map(|name| (name.into(), 0o600)));
}

#[tokio::test]
async fn a_directory_that_others_may_write_is_refused() {
    let place = Place::new();
    set_mode(place.path(), 0o777);
    let error = place.refused().await;
    let text = error.to_string();
    assert!(matches!(error, StoreError::Unavailable(_)), "{text}");
    assert!(text.contains("chmod go-w"), "{text}");
    assert!(!place.file().exists());
}

#[tokio::test]
async fn every_commit_is_on_the_disk_before_it_counts() {
    let place = Place::new();
    let store = place.open().await;
    // The first connection and those that follow a fault, to write and to read.
    for _ in 0..2 {
        for mut connection in [
            store.writing().await.unwrap(),
            store.reading().await.unwrap(),
        ] {
            const FULL: i64 = 2;
            let synchronous = pragma(&mut connection, "PRAGMA synchronous").await.unwrap();
            assert_eq!(synchronous, FULL);
            assert!(writes_ahead(&mut connection).await.unwrap());
        }
    }
}

#[tokio::test]
async fn a_store_that_is_not_there_is_made_by_none_but_the_provisioner() {
    let place = Place::new();
    let directory = place.path().join("state");
    let error = open(&directory, Missing::Refuse).await.unwrap_err();
    assert!(error.to_string().contains("`provisioner run`"), "{error}");
    assert!(!directory.exists());
    open(&directory, Missing::Make).await.unwrap();
    open(&directory, Missing::Refuse).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_that_start_at_once_all_open_one_store_and_one_leads() {
    let place = Place::new();
    let opening: Vec<_> = (0..8)
        .map(|_| {
            let directory = place.path().to_owned();
            tokio::spawn(async move {
                let store = open(&directory, Missing::Make).await.unwrap();
                let term = store.lead().await.unwrap();
                (store, term)
            })
        })
        .collect();
    let mut stores = Vec::new();
    for opening in opening {
        stores.push(opening.await.unwrap());
    }
    assert_eq!(stores.iter().filter(|(_, term)| term.is_some()).count(), 1);
    let first = stored(&stores[0].0).await.id;
    for (store, _) in &stores {
        assert_eq!(stored(store).await.id, first);
    }
}

#[tokio::test]
async fn a_lock_that_somebody_removed_leaves_one_leader() {
    let place = Place::new();
    let first = place.open().await;
    let old = first.lead().await.unwrap().unwrap();
    fs_err::remove_file(place.path().join(LOCK)).unwrap();
    let second = place.open().await;
    let new = second.lead().await.unwrap().unwrap();
    assert!(!first.leads(old).await.unwrap());
    let refused = first.commit(Some(old), vec![did()]).await;
    assert!(matches!(refused, Err(StoreError::Deposed)));
    assert_eq!(first.lead().await.unwrap(), None);
    second.commit(Some(new), vec![did()]).await.unwrap();
    assert_eq!(entries(&second).await, 1);
}

#[tokio::test]
async fn a_store_locked_for_too_long_is_unavailable_and_nothing_is_written() {
    let place = Place::new();
    let store = place.open_impatient().await;
    let term = store.lead().await.unwrap().unwrap();
    store.commit(Some(term), vec![did()]).await.unwrap();
    let mut other = place.connection().await;
    other.run("BEGIN IMMEDIATE", vec![]).await.unwrap();

    let error = store
        .commit(Some(term), vec![did(), did()])
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("locked by another process for 50ms"),
        "{text}"
    );
    assert!(text.contains(&*place.file().to_string_lossy()), "{text}");
    // Those who look need not wait.
    assert_eq!(entries(&store).await, 1);
    assert!(store.leads(term).await.unwrap());

    other.run("COMMIT", vec![]).await.unwrap();
    store.commit(Some(term), vec![did(), did()]).await.unwrap();
    assert_eq!(entries(&store).await, 3);
}

#[tokio::test]
async fn a_store_that_may_not_grow_is_unavailable_keeps_what_it_has_and_recovers() {
    let place = Place::new();
    let store = place.open().await;
    store.commit(None, vec![did()]).await.unwrap();
    {
        // SQLite's own limit: it fails where a full disk does. It ends with this connection.
        let mut writing = store.writing().await.unwrap();
        let pages = pragma(&mut writing, "PRAGMA page_count").await.unwrap();
        let limit = format!("PRAGMA max_page_count = {}", pages + 2);
        sqlx::raw_sql(sqlx::AssertSqlSafe(limit))
            .execute(&mut *writing)
            .await
            .unwrap();
        writing.commit().await.unwrap();
    }
    let many: Vec<Change> = (0..1_000).map(|_| did()).collect();
    let error = store.commit(None, many.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains("no space is left"), "{error}");
    assert_eq!(entries(&store).await, 1);
    store.commit(None, many).await.unwrap();
    assert_eq!(entries(&store).await, 1_001);
}

/// Runs one of the ignored tests below in a process of its own.
fn this_test(name: &str) -> Vec<String> {
    let program = std::env::current_exe().unwrap();
    let name = format!("store::sqlite::tests::{name}");
    vec![
        program.to_string_lossy().into_owned(),
        "--exact".into(),
        name,
        "--ignored".into(),
        "--nocapture".into(),
    ]
}

#[test]
fn a_full_disk_makes_the_store_unavailable_and_loses_nothing() {
    if !nix::unistd::geteuid().is_root() {
        let why = "skipped: a small disk needs root; run `sudo tests/run` to see this test";
        writeln!(io::stderr(), "{why}").unwrap();
        return;
    }
    let place = Place::new();
    let script =
        r#"mount -t tmpfs -o size=4m,mode=0700 tmpfs . && cd "$PWD" && : > full && exec "$@""#;
    let done = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .args(this_test("on_a_small_disk"))
        .current_dir(place.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
#[ignore = "the other process of `a_full_disk_makes_the_store_unavailable_and_loses_nothing`"]
async fn on_a_small_disk() {
    if !Path::new("full").exists() {
        return;
    }
    fs_err::write("ballast", vec![1; 2 << 20]).unwrap();
    let store = open(&std::env::current_dir().unwrap(), Missing::Make)
        .await
        .unwrap();
    let term = store.lead().await.unwrap().unwrap();
    let some: Vec<Change> = (0..500).map(|_| did()).collect();
    let mut written = 0;
    let error = loop {
        match store.commit(Some(term), some.clone()).await {
            Ok(()) => written += some.len(),
            Err(error) => break error,
        }
    };
    assert!(written > 0);
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains("no space is left"), "{error}");
    assert_eq!(entries(&store).await, written);
    assert!(store.commit(Some(term), some.clone()).await.is_err());
    fs_err::remove_file("ballast").unwrap();
    store.commit(Some(term), some.clone()).await.unwrap();
    assert_eq!(entries(&store).await, written + some.len());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_damaged_and_says_what_to_do() {
    let place = Place::new();
    fs_err::write(place.file(), vec![b'x'; 8192]).unwrap();
    let error = place.refused().await;
    assert!(matches!(error, StoreError::Damaged(_)), "{error:?}");
    let text = error
        .to_string()
        .replace(&*place.path().to_string_lossy(), "[dir]");
    insta::assert_snapshot!(text);
    // It is left as it is, for those who want to look.
    assert_eq!(fs_err::read(place.file()).unwrap(), vec![b'x'; 8192]);
}

#[tokio::test]
async fn a_file_whose_pages_are_overwritten_is_damaged() {
    let place = Place::new();
    let store = place.open().await;
    let many: Vec<Change> = (0..1_000).map(|_| did()).collect();
    store.commit(None, many).await.unwrap();
    let mut connection = place.connection().await;
    connection
        .run("PRAGMA wal_checkpoint(TRUNCATE)", vec![])
        .await
        .unwrap();
    drop((store, connection));
    // The second half: what tables there are stands in the first pages.
    let length = fs_err::metadata(place.file()).unwrap().len();
    let mut file = fs_err::OpenOptions::new()
        .write(true)
        .open(place.file())
        .unwrap();
    io::Seek::seek(&mut file, io::SeekFrom::Start(length / 2)).unwrap();
    let rest = usize::try_from(length / 2).unwrap();
    file.write_all(&vec![0xa5; rest]).unwrap();
    drop(file);

    let store = open(place.path(), Missing::Make).await.unwrap();
    for _ in 0..2 {
        let error = store.history(&all()).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged(_)), "{error:?}");
        assert!(error.to_string().contains("move the file"), "{error}");
    }
}

#[tokio::test]
async fn a_row_that_is_not_what_was_written_is_named() {
    let place = Place::new();
    let store = place.open().await;
    let seen = Change::InstanceSeen(Box::new(suite::record("i-1")));
    store.commit(None, vec![seen]).await.unwrap();
    let mut connection = place.connection().await;
    let spoil = "UPDATE instances SET capacity_type = 'borrowed'";
    connection.run(spoil, vec![]).await.unwrap();
    let error = store.stored(Timestamp::UNIX_EPOCH).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged(_)), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("instance `i-1`: unknown variant `borrowed`"),
        "{text}"
    );
}

#[tokio::test]
async fn the_file_of_another_program_is_refused() {
    let place = Place::new();
    fs_err::write(place.file(), "").unwrap();
    let mut connection = place.connection().await;
    connection
        .run("CREATE TABLE bookmarks (url TEXT)", vec![])
        .await
        .unwrap();
    let error = place.refused().await;
    assert!(matches!(error, StoreError::Damaged(_)), "{error:?}");
    assert!(error.to_string().contains("of another program"), "{error}");
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused() {
    let place = Place::new();
    place.open().await;
    let mut connection = place.connection().await;
    connection
        .run("PRAGMA user_version = 99", vec![])
        .await
        .unwrap();
    for missing in [Missing::Make, Missing::Refuse] {
        let error = open(place.path(), missing).await.unwrap_err();
        assert!(
            matches!(error, StoreError::TooNew { found: 99, .. }),
            "{error:?}"
        );
    }
}

/// A version that comes after all there are.
const NEXT: &[&str] = &[
    include_str!("../migrations/sqlite/1.sql"),
    "ALTER TABLE store ADD COLUMN colour TEXT; UPDATE store SET colour = 'green'",
];
/// One whose second half cannot be done.
const BROKEN: &[&str] = &[
    include_str!("../migrations/sqlite/1.sql"),
    "ALTER TABLE store ADD COLUMN colour TEXT; UPDATE shop SET colour = 'green'",
];

#[tokio::test]
async fn an_older_store_is_brought_to_our_version_once_its_leader_is_gone() {
    let place = Place::new();
    let older = place.open_as(&NEXT[..1]).await.unwrap();
    older.commit(None, vec![did()]).await.unwrap();
    let before = stored(&older).await;
    let term = older.lead().await.unwrap().unwrap();
    let error = place.open_as(NEXT).await.unwrap_err();
    assert!(error.to_string().contains("stop that one first"), "{error}");
    older.commit(Some(term), vec![did()]).await.unwrap();
    drop(older);

    let newer = place.open_as(NEXT).await.unwrap();
    assert_eq!(stored(&newer).await, before);
    assert_eq!(entries(&newer).await, 2);
    let mut connection = place.connection().await;
    let colour = connection
        .ask("SELECT colour FROM store", vec![], |row| {
            Ok(row.text(0)?.map(str::to_owned))
        })
        .await
        .unwrap();
    assert_eq!(colour, [Some("green".to_owned())]);
    let error = place.open_as(&NEXT[..1]).await.unwrap_err();
    assert!(
        matches!(error, StoreError::TooNew { found: 2, known: 1 }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_migration_that_fails_changes_nothing() {
    let place = Place::new();
    let older = place.open_as(&NEXT[..1]).await.unwrap();
    older.commit(None, vec![did()]).await.unwrap();
    let before = stored(&older).await;
    drop(older);
    place.open_as(BROKEN).await.unwrap_err();
    let again = place.open_as(&NEXT[..1]).await.unwrap();
    assert_eq!(stored(&again).await, before);
    drop(again);
    place.open_as(NEXT).await.unwrap();
}

#[tokio::test]
async fn a_copy_made_by_a_backup_is_opened() {
    let place = Place::new();
    let store = place.open().await;
    store.commit(None, vec![did()]).await.unwrap();
    let copy = Place::new();
    let target = copy.file().to_string_lossy().into_owned();
    let mut connection = place.connection().await;
    connection
        .run("VACUUM INTO $1", vec![target.into()])
        .await
        .unwrap();
    let copied = copy.open().await;
    assert_eq!(entries(&copied).await, 1);
    assert_eq!(stored(&copied).await, stored(&store).await);
    assert!(writes_ahead(&mut copy.connection().await).await.unwrap());
}

/// Files as older versions wrote them, each with the version of its schema as its name.
fn old_files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// What outlives a version, as this one reads it. Passes are for the version that wrote them: a
/// hundred of them are an hour or two, and a World changes with what is planned.
async fn everything(store: &SqliteStore) -> String {
    let host = store.registration(&"i-1".parse().unwrap()).await.unwrap();
    let key = host.and_then(|Registration { key, .. }| key);
    let stored = stored(store).await;
    let history = store.history(&all()).await.unwrap();
    let passes = store.passes(10).await.unwrap();
    format!("{stored:#?}\nkey: {key:?}\nhistory: {history:#?}\npasses: {passes:#?}")
}

#[tokio::test]
async fn the_files_of_all_older_versions_are_read() {
    for version in 1..=MIGRATIONS.len() {
        let packed = old_files().join(format!("store-{version}.sqlite.gz"));
        let mut unpacked = Vec::new();
        GzDecoder::new(File::open(packed).unwrap())
            .read_to_end(&mut unpacked)
            .unwrap();
        let place = Place::new();
        fs_err::write(place.file(), unpacked).unwrap();
        let store = place.open().await;
        insta::assert_snapshot!(format!("store_{version}"), everything(&store).await);
        match store.pass(PassId(1)).await {
            Ok(pass) => assert_eq!(pass.unwrap().id, PassId(1)),
            Err(error) => assert!(error.to_string().contains("pass `1` cannot be read")),
        }
        // And written.
        let term = store.lead().await.unwrap();
        store.commit(term, vec![did()]).await.unwrap();
        assert_eq!(store.begin_pass(term.unwrap()).await.unwrap(), PassId(2));
    }
}

/// Run this once, when a version is released, and commit the file:
/// `cargo test -p provisioner --all-features make_an_old_file -- --ignored`.
#[tokio::test]
#[ignore = "makes a file of the present version, to be read by all later ones"]
async fn make_an_old_file() {
    let place = Place::new();
    let store = place.open().await;
    let term = store.lead().await.unwrap();
    store.begin_pass(term.unwrap()).await.unwrap();
    store.commit(term, suite::one_of_each()).await.unwrap();
    let host = "i-1".parse().unwrap();
    let noon = "2026-11-20T12:30:00Z".parse().unwrap();
    store.register(&host, "the key", noon).await.unwrap();
    let copy = Place::new();
    let target = copy.file().to_string_lossy().into_owned();
    let mut connection = place.connection().await;
    connection
        .run("VACUUM INTO $1", vec![target.into()])
        .await
        .unwrap();
    let name = format!("store-{}.sqlite.gz", MIGRATIONS.len());
    fs_err::create_dir_all(old_files()).unwrap();
    let file = File::create(old_files().join(name)).unwrap();
    let mut gzip = GzEncoder::new(file, Compression::best());
    gzip.write_all(&fs_err::read(copy.file()).unwrap()).unwrap();
    gzip.finish().unwrap();
}

/// How often a writing leader is killed.
const KILLS: u64 = 100;

fn start_writer(place: &Place) -> Child {
    let command = this_test("a_writer_to_be_killed");
    Command::new(&command[0])
        .args(&command[1..])
        .current_dir(place.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What the killed writer puts into each commit.
fn writing(term: Term, number: u64) -> Vec<Change> {
    let id = format!("t{}-{number}", term.0);
    let seen = |name: String| Change::InstanceSeen(Box::new(suite::record(&name)));
    vec![
        Change::IntentOpened(suite::intent(&id)),
        seen(format!("i-{id}-0")),
        did(),
        seen(format!("i-{id}-1")),
        Change::Spent {
            pool: "linux64".parse().unwrap(),
            day: "2026-11-20".parse().unwrap(),
            amount: Money::from_micros(1),
        },
        Change::Passed {
            pass: Arc::new(suite::pass(number)),
            kept: 3,
        },
    ]
}

#[tokio::test]
#[ignore = "the other process of `a_killed_leader_leaves_whole_commits_and_a_free_lead`"]
async fn a_writer_to_be_killed() {
    if !Path::new("victim").exists() {
        return;
    }
    let directory = std::env::current_dir().unwrap();
    let store = open(&directory, Missing::Make).await.unwrap();
    let term = store.lead().await.unwrap().unwrap();
    for number in 1.. {
        store
            .commit(Some(term), writing(term, number))
            .await
            .unwrap();
        writeln!(io::stdout(), "committed").unwrap();
    }
}

#[tokio::test]
async fn a_killed_leader_leaves_whole_commits_and_a_free_lead() {
    let place = Place::new();
    fs_err::write(place.path().join("victim"), "").unwrap();
    let mut acknowledged = 0;
    let mut last = Term(0);
    for round in 0..KILLS {
        let mut writer = start_writer(&place);
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let said = |line: &String| line.ends_with("committed");
        // Some are killed while they make the file or begin to lead, others after a few commits,
        // all of them anywhere within the next: a commit takes less than these microseconds.
        let commits = usize::try_from(round % 5).unwrap();
        let before = lines.by_ref().map(Result::unwrap).filter(said);
        acknowledged += before.take(commits).count();
        tokio::time::sleep(Duration::from_micros(round * 7_919 % 6_000)).await;
        writer.kill().unwrap();
        writer.wait().unwrap();
        acknowledged += lines.map_while(Result::ok).filter(said).count();

        let store = place.open().await;
        let term = store.lead().await.unwrap().expect("the kernel freed it");
        assert!(term > last, "round {round}");
        last = term;
        let written = entries(&store).await;
        assert!(written >= acknowledged, "round {round}: a commit was lost");
        let stored = stored(&store).await;
        let spent = stored.spent_today.values().map(|amount| amount.micros());
        assert_eq!(stored.intents.len(), written, "round {round}");
        assert_eq!(stored.instances.len(), 2 * written, "round {round}");
        assert_eq!(spent.sum::<i64>(), i64::try_from(written).unwrap());
    }
    assert!(acknowledged > 100, "{acknowledged} commits are no test");
}
