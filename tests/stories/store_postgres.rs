//! PostgreSQL as the store: the same promises as the file's, and what only a server can do wrong.

use std::future::Future;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use farm_tests::services::Postgres;
use farm_tests::wait;
use jiff::Timestamp;
use provisioner::store::postgres::open;
use provisioner::store::suite::{self, Fixture};
use provisioner::store::{Change, HistoryQuery, Missing, PostgresStore, Store, StoreError, Term};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// For anything that is a matter of milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(30);

/// A fleet of its own on a server.
struct Fleet<'a> {
    server: &'a Postgres,
    name: String,
}

impl<'a> Fleet<'a> {
    fn new(server: &'a Postgres) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self {
            server,
            name: format!("fleet-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        }
    }

    async fn try_open(&self, missing: Missing) -> Result<PostgresStore, StoreError> {
        open(&self.server.socket_url(), None, &self.name, missing).await
    }
}

impl Fixture for Fleet<'_> {
    type Store = PostgresStore;
    async fn open(&self) -> PostgresStore {
        let store = self.try_open(Missing::Make).await;
        store.expect("the server takes another session")
    }
}

fn run<T>(story: impl Future<Output = T>) -> T {
    let runtime = Runtime::new().expect("threads can be started");
    runtime.block_on(story)
}

async fn lead(store: &PostgresStore) -> Term {
    let term = store.lead().await.expect("the server answers");
    term.expect("nobody else leads")
}

/// Leads as soon as the server has seen that the one before is gone.
async fn lead_soon(store: &PostgresStore) -> Term {
    let led = async {
        loop {
            if let Some(term) = store.lead().await.expect("the server answers") {
                return term;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, led).await.expect("it leads")
}

fn did() -> Vec<Change> {
    vec![Change::Did(suite::action("i-1", 1))]
}

async fn entries(store: &PostgresStore) -> usize {
    let query = HistoryQuery {
        limit: u32::MAX,
        ..HistoryQuery::default()
    };
    let history = store.history(&query).await;
    history.expect("the server answers").len()
}

fn password_file(directory: &TempDir, password: &str) -> PathBuf {
    let path = directory.path().join("password");
    fs_err::write(&path, password).expect("a temporary directory can be written");
    let owner_only = std::fs::Permissions::from_mode(0o600);
    fs_err::set_permissions(&path, owner_only).expect("it is our own file");
    path
}

/// One test with one server: a cluster takes longer to make than most promises take to keep.
#[test]
fn every_promise_of_the_store_is_kept() {
    let server = Postgres::start();
    macro_rules! keep {
        ($($promise:ident,)*) => {$({
            // A function each: unoptimised, one that has them all needs more than a thread's stack.
            fn $promise(server: &Postgres) {
                run(suite::$promise(&Fleet::new(server)));
            }
            $promise(&server);
        })*};
    }
    provisioner::store_promises!(keep);
}

#[test]
fn two_fleets_share_a_server_and_nothing_else() {
    let server = Postgres::start();
    run(async {
        let (one, other) = (Fleet::new(&server), Fleet::new(&server));
        let (one, other) = (one.open().await, other.open().await);
        let term = lead(&one).await;
        lead(&other).await;
        one.commit(Some(term), did()).await.unwrap();
        assert_eq!((entries(&one).await, entries(&other).await), (1, 0));
        let now = Timestamp::UNIX_EPOCH;
        let ids = (
            one.stored(now).await.unwrap().id,
            other.stored(now).await.unwrap().id,
        );
        assert_ne!(ids.0, ids.1);
    });
}

#[test]
fn the_password_comes_from_its_file_and_goes_nowhere_else() {
    let server = Postgres::start();
    let directory = TempDir::with_prefix("farm-password-").unwrap();
    run(async {
        let right = password_file(&directory, Postgres::PASSWORD);
        let store = open(&server.url(), Some(&right), "farmhand", Missing::Make).await;
        let store = store.unwrap();
        lead(&store).await;
        assert!(!format!("{store:?}").contains(Postgres::PASSWORD));

        let wrong = password_file(&directory, "hunter2");
        let error = open(&server.url(), Some(&wrong), "farmhand", Missing::Make).await;
        let error = error.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        assert!(
            error
                .to_string()
                .contains("`provisioner.store_password_file`"),
            "{error}"
        );
        assert!(!error.to_string().contains("hunter2"), "{error}");
    });
}

#[test]
fn a_store_that_is_not_there_is_made_by_none_but_the_provisioner() {
    let server = Postgres::start();
    run(async {
        let fleet = Fleet::new(&server);
        let error = fleet.try_open(Missing::Refuse).await.unwrap_err();
        assert!(error.to_string().contains("`provisioner run`"), "{error}");
        assert_eq!(
            server.sql("SELECT COUNT(*) FROM pg_namespace WHERE nspname LIKE 'farmhand%'"),
            "0"
        );
        fleet.open().await;
        fleet.try_open(Missing::Refuse).await.unwrap();
    });
}

#[test]
fn of_eight_that_start_at_once_all_open_one_store_and_one_leads() {
    let server = Postgres::start();
    run(async {
        let fleet = Fleet::new(&server);
        let url = server.socket_url();
        let opening: Vec<_> = (0..8)
            .map(|_| {
                let (url, name) = (url.clone(), fleet.name.clone());
                tokio::spawn(async move {
                    let store = open(&url, None, &name, Missing::Make).await.unwrap();
                    let term = store.lead().await.unwrap();
                    (store, term)
                })
            })
            .collect();
        let mut stores = Vec::new();
        for opening in opening {
            stores.push(opening.await.unwrap());
        }
        let leaders = stores.iter().filter(|(_, term)| term.is_some());
        assert_eq!(leaders.count(), 1);
        let mut ids = Vec::new();
        for (store, _) in &stores {
            ids.push(store.stored(Timestamp::UNIX_EPOCH).await.unwrap().id);
        }
        ids.dedup();
        assert_eq!(ids.len(), 1);
    });
}

#[test]
fn a_store_of_a_newer_version_is_refused() {
    let server = Postgres::start();
    run(async {
        let fleet = Fleet::new(&server);
        fleet.open().await;
        let schema = server.sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'farmhand%'");
        let newer = format!("UPDATE {schema}.schema_version SET version = 99 RETURNING version");
        assert_eq!(server.sql(&newer), "99");
        for missing in [Missing::Make, Missing::Refuse] {
            let error = fleet.try_open(missing).await.unwrap_err();
            assert!(
                matches!(error, StoreError::TooNew { found: 99, .. }),
                "{error}"
            );
        }
    });
}

/// Ends the sessions that hold an advisory lock: what a restart of the server, an operator or a
/// broken network does to a leader.
fn end_leaders(server: &Postgres) -> String {
    server.sql(
        "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_locks \
         WHERE locktype = 'advisory' AND granted",
    )
}

#[test]
fn a_leader_whose_connection_is_ended_is_deposed() {
    let server = Postgres::start();
    run(async {
        let fleet = Fleet::new(&server);
        let (first, second) = (fleet.open().await, fleet.open().await);
        let old = lead(&first).await;
        first.commit(Some(old), did()).await.unwrap();
        assert_eq!(second.lead().await.unwrap(), None);

        assert_eq!(end_leaders(&server), "1");
        let new = lead_soon(&second).await;
        assert!(new > old);
        // The first is asked before it launches anything, and its commits are refused even if not.
        assert!(!first.leads(old).await.unwrap());
        for _ in 0..2 {
            let refused = first.commit(Some(old), did()).await;
            assert!(matches!(refused, Err(StoreError::Deposed)), "{refused:?}");
        }
        assert_eq!(entries(&second).await, 1);
        second.commit(Some(new), did()).await.unwrap();
        assert_eq!(entries(&first).await, 2);

        // It stands by, and leads again in its turn.
        assert_eq!(first.lead().await.unwrap(), None);
        drop(second);
        let newest = lead_soon(&first).await;
        assert!(newest > new);
        assert!(first.leads(newest).await.unwrap());
    });
}

#[test]
fn a_leader_whose_connection_is_ended_begins_a_new_term_if_nobody_else_does() {
    let server = Postgres::start();
    run(async {
        let store = Fleet::new(&server).open().await;
        let old = lead(&store).await;
        end_leaders(&server);
        let new = lead_soon(&store).await;
        assert!(new > old);
        assert!(!store.leads(old).await.unwrap());
        assert!(store.leads(new).await.unwrap());
    });
}

#[test]
fn a_server_that_is_down_is_unavailable_and_comes_back() {
    let mut server = Postgres::start();
    let (url, name) = (server.socket_url(), "farmhand");
    let runtime = Runtime::new().unwrap();
    let store = runtime
        .block_on(open(&url, None, name, Missing::Make))
        .unwrap();
    let term = runtime.block_on(lead(&store));
    runtime.block_on(store.commit(Some(term), did())).unwrap();

    server.stop();
    runtime.block_on(async {
        let unavailable = |error: &StoreError| matches!(error, StoreError::Unavailable(_));
        // Twice: with the connection that broke, and with none.
        for _ in 0..2 {
            let error = store.commit(Some(term), did()).await.unwrap_err();
            assert!(unavailable(&error), "{error:?}");
            let error = store.stored(Timestamp::UNIX_EPOCH).await.unwrap_err();
            assert!(unavailable(&error), "{error:?}");
            let error = store.lead().await.unwrap_err();
            assert!(unavailable(&error), "{error:?}");
        }
        // What it led with is lost.
        assert!(!store.leads(term).await.unwrap());
    });

    server.start_again();
    runtime.block_on(async {
        let new = lead_soon(&store).await;
        assert!(new > term);
        store.commit(Some(new), did()).await.unwrap();
        assert_eq!(entries(&store).await, 2);
    });
}

/// How often a writing leader is killed.
const KILLS: usize = 30;

/// This program once more, writing as a leader until it is killed.
fn start_writer(directory: &TempDir) -> Child {
    Command::new(std::env::current_exe().expect("the kernel knows this program"))
        .args([
            "--exact",
            "a_writer_to_be_killed",
            "--ignored",
            "--nocapture",
        ])
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can be started once more")
}

/// Three entries in each commit; says so after each.
#[test]
#[ignore = "the other process of `a_killed_leader_leaves_whole_commits_and_a_free_lead`"]
fn a_writer_to_be_killed() {
    let Ok(url) = fs_err::read_to_string("url") else {
        return;
    };
    run(async {
        let store = open(&url, None, "farmhand", Missing::Make).await.unwrap();
        let term = lead_soon(&store).await;
        loop {
            let changes = [did(), did(), did()].concat();
            store.commit(Some(term), changes).await.unwrap();
            writeln!(std::io::stdout(), "committed").unwrap();
        }
    });
}

#[test]
fn a_killed_leader_leaves_whole_commits_and_a_free_lead() {
    let server = Postgres::start();
    let directory = TempDir::with_prefix("farm-killed-").unwrap();
    fs_err::write(directory.path().join("url"), server.socket_url()).unwrap();
    let runtime = Runtime::new().unwrap();
    let store = runtime
        .block_on(open(&server.socket_url(), None, "farmhand", Missing::Make))
        .unwrap();
    let mut acknowledged = 0;
    let mut last = Term(0);
    for round in 0..KILLS {
        let mut writer = start_writer(&directory);
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        // Another number of commits in each round, and the next one is under way.
        let committed = 1 + round % 7;
        let said = |line: &String| line.ends_with("committed");
        let before = lines.by_ref().map(Result::unwrap).filter(said);
        acknowledged += 3 * before.take(committed).count();
        writer.kill().unwrap();
        writer.wait().unwrap();
        acknowledged += 3 * lines.map_while(Result::ok).filter(said).count();
        let term = runtime.block_on(lead_soon(&store));
        assert!(term > last, "round {round}");
        last = term;
        let written = runtime.block_on(entries(&store));
        assert_eq!(written % 3, 0, "round {round}: a commit was cut");
        assert!(written >= acknowledged, "round {round}: a commit was lost");
        // Free for the next writer.
        assert_eq!(end_leaders(&server), "1");
        wait::until("the server to see it", SOON, || {
            let held = server.sql("SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory'");
            (held == "0").then_some(()).ok_or(held)
        });
    }
}
