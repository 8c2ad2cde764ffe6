//! The embedded store: one SQLite file, led by whoever holds the lock beside it.
//!
//! `provisioner.sqlite` is in WAL mode, so readers wait for nobody; every commit is on the disk
//! before it counts (`docs/decisions/store-synchronous.md`). The leader holds `provisioner.lock`; the kernel takes
//! the lock back when the process ends, however it ends. The directory itself is locked while the
//! file is made or migrated.

use std::future::Future;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err::File;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::FlockOperation;
use sqlx::error::DatabaseError as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteError, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Sqlite as Database, SqliteConnection};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::sql::{Backend, Connection as _, Fault, SqlStore, only, speak_sql};
use super::{Missing, StoreError, Term};

/// The store's file in its directory.
pub const FILE: &str = "provisioner.sqlite";
/// The file the leader holds locked.
pub const LOCK: &str = "provisioner.lock";

/// How long a commit waits for another process: many times the longest commit, shorter than a pass.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a lock is tried again while a store is made or migrated, which takes milliseconds.
const LOCK_INTERVAL: Duration = Duration::from_millis(10);
/// The write-ahead log is cut to this after it was written back: a pass of 100,000 instances is 4 MB.
const LOG_BYTES: &str = "67108864";
/// In the file's header: `file` and the like then tell what it is. "frmp".
const APPLICATION_ID: i64 = 0x6672_6d70;
/// Rows on their way from SQLite's thread to ours: with sqlx's 50, each thread mostly waits for the
/// other.
const ROWS_AHEAD: usize = 2_000;

/// Each brings a store of the version before it to its own, which is its place, from 1. Never change
/// one that was released; add the next.
const MIGRATIONS: &[&str] = &[include_str!("migrations/sqlite/1.sql")];

/// A store in a file.
pub type SqliteStore = SqlStore<Sqlite>;

speak_sql!(
    Database,
    SqliteConnection,
    sqlx::sqlite::SqliteRow,
    "INSERT INTO hosts \
     (instance, registered_at, heard_at, activity, since, job, runs, interruption_at) \
     SELECT i.id, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, \
     value ->> 7 FROM json_each($1) JOIN instances i ON i.id = value ->> 0 \
     WHERE i.gone_at IS NULL \
     ON CONFLICT (instance) DO UPDATE SET registered_at = excluded.registered_at, \
     heard_at = excluded.heard_at, activity = excluded.activity, since = excluded.since, \
     job = excluded.job, runs = excluded.runs, interruption_at = excluded.interruption_at"
);

/// The file, and the lock beside it.
#[derive(Debug)]
pub struct Sqlite {
    directory: PathBuf,
    busy_timeout: Duration,
    migrations: &'static [&'static str],
    /// Held while this store leads.
    lead: Mutex<Option<(File, Term)>>,
}

/// Opens the store in `directory`.
///
/// # Errors
/// If it is not there and shall not be made, others may write the directory, the file is damaged, or
/// of a newer version.
pub async fn open(directory: &Path, missing: Missing) -> Result<SqliteStore, StoreError> {
    Sqlite::new(directory).into_store(missing).await
}

impl Sqlite {
    fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            busy_timeout: BUSY_TIMEOUT,
            migrations: MIGRATIONS,
            lead: Mutex::new(None),
        }
    }

    async fn into_store(self, missing: Missing) -> Result<SqliteStore, StoreError> {
        match self.open(missing).await {
            Ok(connection) => Ok(SqlStore::new(self, connection)),
            Err(fault) => Err(self.explain(fault)),
        }
    }

    /// The version of the schema that we write.
    fn known(&self) -> i64 {
        i64::try_from(self.migrations.len()).expect("migrations are few")
    }

    fn file(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    async fn open(&self, missing: Missing) -> Result<SqliteConnection, Fault> {
        match (self.file().exists(), missing) {
            (true, _) => {}
            (false, Missing::Make) => make_directory(&self.directory)?,
            (false, Missing::Refuse) => return Err(self.not_there()),
        }
        trust(&self.directory)?;
        if self.file().exists() {
            let mut connection = self.connect().await?;
            let version = self.version(&mut connection).await?;
            if version == self.known() && writes_ahead(&mut connection).await? {
                return Ok(connection);
            }
        }
        self.bring_up().await
    }

    fn not_there(&self) -> Fault {
        StoreError::Unavailable(format!(
            "`{}` is not there: expected the store of a provisioner; start `provisioner run` first, \
             or name its configuration with `--config`",
            self.file().display()
        ))
        .into()
    }

    /// Makes the file, or brings it to our version, while no other does.
    async fn bring_up(&self) -> Result<SqliteConnection, Fault> {
        let directory = File::open(&self.directory).map_err(|error| unusable(&error))?;
        self.lock(&directory).await?;
        make_file(&self.file())?;
        let mut connection = self.connect().await?;
        // Kept in the file from now on; a copy made by a backup has lost it.
        let write_ahead = "PRAGMA journal_mode = WAL";
        connection.run(write_ahead, Vec::new()).await?;
        let version = self.version(&mut connection).await?;
        if version == self.known() {
            return Ok(connection);
        }
        // An older provisioner that leads would write what it knows into tables it does not.
        let _lead = if version == 0 {
            None
        } else {
            let lead = self.try_lead()?;
            Some(lead.ok_or_else(|| self.led_by_older(version))?)
        };
        self.migrate(&mut connection, version).await?;
        Ok(connection)
    }

    fn led_by_older(&self, version: i64) -> StoreError {
        StoreError::Unavailable(format!(
            "`{}` has schema {version}, this version needs {}, and a provisioner of an older version \
             is running: stop that one first",
            self.file().display(),
            self.known()
        ))
    }

    /// The version of the schema; 0: an empty file.
    async fn version(&self, connection: &mut SqliteConnection) -> Result<i64, Fault> {
        // As of one moment: another process may be making the store.
        connection.run("BEGIN", Vec::new()).await?;
        let application = pragma(connection, "PRAGMA application_id").await?;
        let version = pragma(connection, "PRAGMA user_version").await?;
        let tables = pragma(connection, "SELECT COUNT(*) FROM sqlite_schema").await?;
        connection.run("COMMIT", Vec::new()).await?;
        if (application, version, tables) == (0, 0, 0) {
            return Ok(0);
        }
        if application != APPLICATION_ID || version < 1 {
            return Err(StoreError::Damaged(format!(
                "`{}` is an SQLite file of another program: expected a provisioner's; name another \
                 `provisioner.state_dir`",
                self.file().display()
            ))
            .into());
        }
        if version > self.known() {
            return Err(StoreError::TooNew {
                found: version,
                known: self.known(),
            }
            .into());
        }
        Ok(version)
    }

    /// From `version` to ours, all or nothing.
    async fn migrate(&self, connection: &mut SqliteConnection, version: i64) -> Result<(), Fault> {
        connection.run("BEGIN EXCLUSIVE", Vec::new()).await?;
        let done = usize::try_from(version).unwrap_or_default();
        for migration in &self.migrations[done.min(self.migrations.len())..] {
            sqlx::raw_sql(*migration).execute(&mut *connection).await?;
        }
        if version == 0 {
            connection
                .run(super::NEW_STORE, vec![super::new_id().into()])
                .await?;
        }
        // A pragma takes no parameters.
        let header = format!(
            "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {}",
            self.known()
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(header))
            .execute(&mut *connection)
            .await?;
        connection.run("COMMIT", Vec::new()).await?;
        Ok(())
    }

    async fn lock(&self, directory: &File) -> Result<(), StoreError> {
        let begun = Instant::now();
        while !try_lock(directory)? {
            if begun.elapsed() >= self.busy_timeout {
                return Err(StoreError::Unavailable(format!(
                    "`{}` has been locked by another process for {:?}",
                    self.directory.display(),
                    self.busy_timeout
                )));
            }
            tokio::time::sleep(LOCK_INTERVAL).await;
        }
        Ok(())
    }

    /// The lock of the leader, if nobody holds it.
    fn try_lead(&self) -> Result<Option<File>, StoreError> {
        let file = fs_err::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.directory.join(LOCK))
            .map_err(|error| unusable(&error))?;
        Ok(try_lock(&file)?.then_some(file))
    }
}

fn unusable(error: &io::Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

fn try_lock(file: &File) -> Result<bool, StoreError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(StoreError::Unavailable(format!(
            "cannot lock `{}`: {error}",
            file.path().display()
        ))),
    }
}

/// Makes the directory, for its owner alone. One that is there stays as it is.
fn make_directory(directory: &Path) -> Result<(), StoreError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| {
            StoreError::Unavailable(format!("cannot make `{}`: {error}", directory.display()))
        })
}

/// Refuses a directory in which others could replace the store.
fn trust(directory: &Path) -> Result<(), StoreError> {
    farm_config::trust::check(directory)
        .map_err(|distrust| StoreError::Unavailable(distrust.to_string()))
}

/// Makes an empty file for its owner alone; SQLite gives the same mode to the files beside it. One
/// that is there is not even opened: closing it would take SQLite's own locks away from this process.
fn make_file(path: &Path) -> Result<(), StoreError> {
    let mut options = fs_err::OpenOptions::new();
    match options.create_new(true).write(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(unusable(&error)),
    }
}

async fn writes_ahead(connection: &mut SqliteConnection) -> Result<bool, Fault> {
    let mode = connection.ask("PRAGMA journal_mode", Vec::new(), |row| {
        Ok(row.text(0)? == Some("wal"))
    });
    Ok(only(mode.await?)?)
}

async fn pragma(connection: &mut SqliteConnection, statement: &'static str) -> Result<i64, Fault> {
    let answer = connection.ask(statement, Vec::new(), |row| {
        Ok(row.integer(0)?.unwrap_or_default())
    });
    Ok(only(answer.await?)?)
}

impl Backend for Sqlite {
    type Connection = SqliteConnection;

    // Takes the lock now: one taken later, by the first write, cannot wait its turn.
    const BEGIN_WRITING: &'static str = "BEGIN IMMEDIATE";
    const BEGIN_READING: &'static str = "BEGIN DEFERRED";
    const CURRENT_TERM: &'static str = "SELECT term FROM store";

    async fn connect(&self) -> Result<SqliteConnection, Fault> {
        let options = SqliteConnectOptions::new()
            .filename(self.file())
            .busy_timeout(self.busy_timeout)
            .synchronous(SqliteSynchronous::Full)
            .pragma("journal_size_limit", LOG_BYTES)
            .row_buffer_size(ROWS_AHEAD)
            // What goes wrong is returned; statements would fill the log of an operator.
            .disable_statement_logging();
        Ok(options.connect().await?)
    }

    fn explain(&self, fault: Fault) -> StoreError {
        let error = match fault {
            Fault::Told(error) => return error,
            Fault::Database(error) => error,
        };
        let file = self.file();
        let file = file.display();
        let Some((kind, message)) = answer_of(&error) else {
            return super::sql::explain_driver(&file.to_string(), &error);
        };
        match kind {
            BUSY | LOCKED => StoreError::Unavailable(format!(
                "`{file}` has been locked by another process for {:?}",
                self.busy_timeout
            )),
            FULL => StoreError::Unavailable(format!(
                "no space is left for `{file}`: nothing was written; make space"
            )),
            CORRUPT | NOTADB => StoreError::Damaged(format!(
                "`{file}`: {message}; stop the provisioner, move the file and the two beside it \
                 away, and start again: instances are found by their tags, history and holds are not"
            )),
            PERM | NOMEM | READONLY | INTERRUPT | IOERR | CANTOPEN | PROTOCOL => {
                StoreError::Unavailable(format!("`{file}`: {message}"))
            }
            _ => StoreError::Damaged(format!("`{file}`: {message}")),
        }
    }

    async fn lead(&self, store: &SqlStore<Self>) -> Result<Option<Term>, Fault> {
        let mut lead = self.lead.lock().await;
        if let Some((_, term)) = &*lead {
            if store.last_term().await? == *term {
                return Ok(Some(*term));
            }
            // Somebody removed the file, and another provisioner locked the next.
            *lead = None;
        }
        let Some(file) = self.try_lead()? else {
            return Ok(None);
        };
        let term = store.begin_term().await?;
        *lead = Some((file, term));
        Ok(Some(term))
    }

    async fn holds_lead(&self) -> Result<bool, Fault> {
        Ok(self.lead.lock().await.is_some())
    }

    /// SQLite gives up by itself, after its busy timeout.
    async fn bounded<T: Send>(
        &self,
        work: impl Future<Output = Result<T, Fault>> + Send,
    ) -> Result<T, Fault> {
        work.await
    }
}

/// What SQLite answered, if it did: the kind of error, and its words.
fn answer_of(error: &sqlx::Error) -> Option<(i32, &str)> {
    let answer = error.as_database_error()?;
    let answer = answer.try_downcast_ref::<SqliteError>()?;
    let code: i32 = answer.code()?.parse().ok()?;
    // The lower byte is the kind, the others say more.
    Some((code & 0xff, answer.message()))
}

// https://www.sqlite.org/rescode.html
const PERM: i32 = 3;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const NOMEM: i32 = 7;
const READONLY: i32 = 8;
const INTERRUPT: i32 = 9;
const IOERR: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const PROTOCOL: i32 = 15;
const NOTADB: i32 = 26;

#[cfg(test)]
mod tests;
