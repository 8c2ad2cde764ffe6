//! The shared store: PostgreSQL, for farms with several provisioners.
//!
//! Each fleet has a schema of its own, so farms can share a database. The leader holds a session
//! advisory lock on a connection that serves nothing else; the server takes the lock back when that
//! connection ends, however it ends. A new leader begins a new term, and every commit of the old one
//! is refused in its own transaction, whatever its process believes.

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use farm_config::secret::{self, Secret};
use sha2::{Digest as _, Sha256};
use sqlx::postgres::{PgConnectOptions, PgDatabaseError, PgRow};
use sqlx::{ConnectOptions as _, PgConnection, Postgres as Database};
use tokio::sync::Mutex;

use super::sql::{Backend, Connection as _, Fault, SqlStore, Value, only, speak_sql};
use super::{Missing, StoreError, Term, rows};

/// How long a server may take to answer a new connection, or whether we still lead: shorter than a
/// pass, long enough for a server that restarts.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a whole commit or question may take. A pass of 100,000 instances takes a few seconds.
const WORK_LIMIT: Duration = Duration::from_secs(90);

/// What every session asks of the server. A statement that waits gives up before we do. A client
/// that vanished without a word (its machine lost power) is noticed after 10 + 3 × 5 s, and its
/// lock is free.
const SESSION: [(&str, &str); 6] = [
    ("statement_timeout", "60s"),
    ("lock_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "60s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
];

/// Longest name of a schema that PostgreSQL takes, in bytes; it cuts longer ones, and two fleets
/// would be one.
const LONGEST_NAME: usize = 63;

/// Each brings a store of the version before it to its own, which is its place, from 1. Never change
/// one that was released; add the next.
const MIGRATIONS: &[&str] = &[include_str!("migrations/postgres/1.sql")];

/// A store on a server.
pub type PostgresStore = SqlStore<Postgres>;

speak_sql!(
    Database,
    PgConnection,
    PgRow,
    "INSERT INTO hosts \
     (instance, registered_at, heard_at, activity, since, job, runs, interruption_at) \
     SELECT i.id, (value ->> 1)::bigint, (value ->> 2)::bigint, value ->> 3, \
     (value ->> 4)::bigint, value ->> 5, (value ->> 6)::bigint, (value ->> 7)::bigint \
     FROM json_array_elements($1::json) AS value JOIN instances i ON i.id = value ->> 0 \
     WHERE i.gone_at IS NULL \
     ON CONFLICT (instance) DO UPDATE SET registered_at = excluded.registered_at, \
     heard_at = excluded.heard_at, activity = excluded.activity, since = excluded.since, \
     job = excluded.job, runs = excluded.runs, interruption_at = excluded.interruption_at"
);

/// The server, the schema of the fleet, and the connection that leads.
pub struct Postgres {
    /// With the password: never shown.
    options: PgConnectOptions,
    schema: String,
    lock_key: i64,
    /// Held while this store leads.
    lead: Mutex<Option<(PgConnection, Term)>>,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres")
            .field("server", &self.server())
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

/// Opens the store of `fleet` on the server that `url` names:
/// `postgres://USER@HOST:PORT/DATABASE`, or `postgres://USER@localhost/DATABASE?host=/run/postgresql`
/// for a Unix socket. The password, if the server wants one, is the line in `password_file`.
///
/// # Errors
/// If the server is not reached or refuses us, the store is not there and shall not be made, or it
/// is of a newer version.
pub async fn open(
    url: &str,
    password_file: Option<&Path>,
    fleet: &str,
    missing: Missing,
) -> Result<PostgresStore, StoreError> {
    let password = password_file.map(secret::read).transpose();
    let password = password.map_err(|error| {
        StoreError::Unavailable(format!("`provisioner.store_password_file`: {error}"))
    })?;
    let backend = Postgres {
        options: options(url, password.as_ref())?,
        schema: schema(fleet),
        lock_key: key("leader", fleet),
        lead: Mutex::new(None),
    };
    let opened = within(ANSWER_LIMIT, backend.open(missing, key("schema", fleet)));
    match opened.await {
        Ok(connection) => Ok(SqlStore::new(backend, connection)),
        Err(fault) => Err(backend.explain(fault)),
    }
}

fn options(url: &str, password: Option<&Secret>) -> Result<PgConnectOptions, StoreError> {
    // The error is not shown: it could repeat a password that should not be there.
    let options: PgConnectOptions = url.parse().map_err(|_| {
        StoreError::Unavailable(
            "`provisioner.store` is no address: expected `postgres://USER@HOST:PORT/DATABASE`"
                .into(),
        )
    })?;
    let options = options
        .application_name("farmhand provisioner")
        .options(SESSION)
        // What goes wrong is returned; statements would fill the log of an operator.
        .disable_statement_logging();
    Ok(match password {
        Some(password) => options.password(password.expose()),
        None => options,
    })
}

/// The schema of `fleet`: its name, where that is also a name for PostgreSQL without quotes;
/// otherwise what is left of it and a hash of it all, so that two fleets never share one.
fn schema(fleet: &str) -> String {
    let plain =
        |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
    let whole = format!("farmhand_{fleet}");
    if whole.len() <= LONGEST_NAME && whole.chars().all(plain) {
        return whole;
    }
    let kept: String = fleet
        .chars()
        .filter(|&letter| plain(letter))
        .take(32)
        .collect();
    format!("farmhand_{kept}_{:016x}", key("name", fleet))
}

/// A number for `what` of `fleet`, as good as unique among all.
fn key(what: &str, fleet: &str) -> i64 {
    let digest = Sha256::digest(format!("farmhand {what} of {fleet}"));
    let first = digest.first_chunk().expect("the digest has 32 bytes");
    i64::from_be_bytes(*first)
}

fn known() -> i64 {
    i64::try_from(MIGRATIONS.len()).expect("migrations are few")
}

/// The outcome of `work`, which is given up after `limit`: a server whose machine is gone sends no
/// reset, and the kernel waits for a quarter of an hour.
async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()).into()),
    }
}

impl Postgres {
    fn server(&self) -> String {
        let database = self.options.get_database().unwrap_or_default();
        match self.options.get_socket() {
            Some(socket) => format!("{}/{database}", socket.display()),
            None => {
                let host = self.options.get_host();
                format!("{host}:{}/{database}", self.options.get_port())
            }
        }
    }

    async fn open(&self, missing: Missing, making: i64) -> Result<PgConnection, Fault> {
        let mut connection = self.connect().await?;
        match (self.version(&mut connection).await?, missing) {
            (version, _) if version == known() => return Ok(connection),
            (0, Missing::Refuse) => return Err(self.not_there().into()),
            _ => {}
        }
        connection.run("BEGIN", Vec::new()).await?;
        // Until the end of the transaction no other makes or migrates it.
        let lock = connection.ask(
            "SELECT pg_advisory_xact_lock($1)",
            vec![making.into()],
            |_| Ok(()),
        );
        lock.await?;
        self.bring_up(&mut connection).await?;
        connection.run("COMMIT", Vec::new()).await?;
        // Without the lock of the leader, which a migration may have taken.
        self.connect().await
    }

    /// In a transaction: makes the schema, or brings it to our version.
    async fn bring_up(&self, connection: &mut PgConnection) -> Result<(), Fault> {
        let version = self.version(connection).await?;
        if version == known() {
            return Ok(());
        }
        if version == 0 {
            // Made of letters, digits and underscores.
            let make = format!(
                "CREATE SCHEMA IF NOT EXISTS {}; \
                 CREATE TABLE schema_version (version BIGINT NOT NULL)",
                self.schema
            );
            raw(connection, sqlx::AssertSqlSafe(make)).await?;
        } else if !try_lock(connection, self.lock_key).await? {
            // It would write what it knows into tables it does not.
            return Err(self.led_by_older(version).into());
        }
        let done = usize::try_from(version).unwrap_or_default();
        for migration in &MIGRATIONS[done.min(MIGRATIONS.len())..] {
            raw(connection, *migration).await?;
        }
        let known: Vec<Value<'_>> = vec![known().into()];
        if version == 0 {
            let id = vec![super::new_id().into()];
            connection.run(super::NEW_STORE, id).await?;
            let insert = "INSERT INTO schema_version (version) VALUES ($1)";
            connection.run(insert, known).await?;
        } else {
            let update = "UPDATE schema_version SET version = $1";
            connection.run(update, known).await?;
        }
        Ok(())
    }

    /// The version of the schema; 0: there is none.
    async fn version(&self, connection: &mut PgConnection) -> Result<i64, Fault> {
        let there = connection.ask(
            "SELECT COUNT(*) FROM information_schema.tables \
             WHERE table_schema = $1 AND table_name = 'schema_version'",
            vec![self.schema.as_str().into()],
            |row| rows::unsigned(row, 0),
        );
        if only(there.await?)? == 0 {
            return Ok(0);
        }
        let version = connection.ask("SELECT version FROM schema_version", Vec::new(), |row| {
            Ok(row.integer(0)?.unwrap_or_default())
        });
        let found = only(version.await?)?;
        if found > known() {
            return Err(StoreError::TooNew {
                found,
                known: known(),
            }
            .into());
        }
        Ok(found)
    }

    fn not_there(&self) -> StoreError {
        StoreError::Unavailable(format!(
            "`{}` has no schema `{}`: expected the store of a provisioner; start `provisioner run` \
             first, or name its configuration with `--config`",
            self.server(),
            self.schema
        ))
    }

    fn led_by_older(&self, version: i64) -> StoreError {
        StoreError::Unavailable(format!(
            "`{}` has schema {version}, this version needs {}, and a provisioner of an older version \
             leads: stop that one first",
            self.server(),
            known()
        ))
    }

    /// What a failure of the server means, and what to do.
    fn explain_code(&self, error: &PgDatabaseError) -> StoreError {
        let server = self.server();
        let code = error.code();
        // https://www.postgresql.org/docs/current/errcodes-appendix.html
        match (code.get(..2).unwrap_or_default(), code) {
            ("28", _) => StoreError::Unavailable(format!(
                "`{server}`: {}; see the user of `provisioner.store` and `provisioner.store_password_file`",
                error.message()
            )),
            (_, "42501") => StoreError::Unavailable(format!(
                "`{server}`: {}; expected an owner of the schema `{}`: the first start needs \
                 `GRANT CREATE ON DATABASE`",
                error.message(),
                self.schema
            )),
            (_, "25006") => StoreError::Unavailable(format!(
                "`{server}` is read-only, perhaps a standby: expected the primary"
            )),
            (_, "53100") => StoreError::Unavailable(format!(
                "no space is left on the server `{server}`: nothing was written; make space"
            )),
            // Connections, limits, operators, rollbacks (deadlocks among them), no such database.
            ("08" | "25" | "3D" | "40" | "53" | "55" | "57" | "58", _) => {
                StoreError::Unavailable(format!("`{server}`: {} ({code})", error.message()))
            }
            _ => StoreError::Damaged(format!(
                "`{server}`, schema `{}`: {} ({code})",
                self.schema,
                error.message()
            )),
        }
    }
}

async fn raw(
    connection: &mut PgConnection,
    statements: impl sqlx::SqlSafeStr,
) -> Result<(), Fault> {
    sqlx::raw_sql(statements).execute(connection).await?;
    Ok(())
}

async fn try_lock(connection: &mut PgConnection, key: i64) -> Result<bool, Fault> {
    let locked = connection.ask(
        "SELECT CASE WHEN pg_try_advisory_lock($1) THEN 1::bigint ELSE 0 END",
        vec![key.into()],
        |row| rows::unsigned(row, 0),
    );
    Ok(only(locked.await?)? == 1)
}

impl Backend for Postgres {
    type Connection = PgConnection;

    const BEGIN_WRITING: &'static str = "BEGIN";
    const BEGIN_READING: &'static str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    // Whoever wants to begin a term waits for this transaction, or this one for it.
    const CURRENT_TERM: &'static str = "SELECT term FROM store FOR UPDATE";

    async fn connect(&self) -> Result<PgConnection, Fault> {
        within(ANSWER_LIMIT, async {
            let options = self.options.clone();
            let options = options.options([("search_path", &self.schema)]);
            // Boxed: it is large, and part of everything that may have to connect anew.
            Ok(Box::pin(options.connect()).await?)
        })
        .await
    }

    fn explain(&self, fault: Fault) -> StoreError {
        let error = match fault {
            Fault::Told(error) => return error,
            Fault::Database(error) => error,
        };
        let answered = error.as_database_error();
        match answered.and_then(|error| error.try_downcast_ref::<PgDatabaseError>()) {
            Some(answered) => self.explain_code(answered),
            None => super::sql::explain_driver(&self.server(), &error),
        }
    }

    async fn lead(&self, _: &SqlStore<Self>) -> Result<Option<Term>, Fault> {
        within(ANSWER_LIMIT, async {
            let mut lead = self.lead.lock().await;
            if let Some((mut connection, term)) = lead.take()
                && current_term(&mut connection)
                    .await
                    .is_ok_and(|current| current == term)
            {
                *lead = Some((connection, term));
                return Ok(Some(term));
            }
            let mut connection = self.connect().await?;
            if !try_lock(&mut connection, self.lock_key).await? {
                return Ok(None);
            }
            let term = begin_term(&mut connection).await?;
            *lead = Some((connection, term));
            Ok(Some(term))
        })
        .await
    }

    /// A connection that is lost has lost the lock: that is an answer, not a fault.
    async fn holds_lead(&self) -> Result<bool, Fault> {
        let mut lead = self.lead.lock().await;
        // Out of its place, so that it is closed if we are given up here.
        let Some((mut connection, term)) = lead.take() else {
            return Ok(false);
        };
        let current = within(ANSWER_LIMIT, current_term(&mut connection)).await;
        if current.is_ok_and(|current| current == term) {
            *lead = Some((connection, term));
            return Ok(true);
        }
        Ok(false)
    }

    async fn bounded<T: Send>(
        &self,
        work: impl Future<Output = Result<T, Fault>> + Send,
    ) -> Result<T, Fault> {
        within(WORK_LIMIT, work).await
    }
}

async fn current_term(connection: &mut PgConnection) -> Result<Term, Fault> {
    let term = connection.ask("SELECT term FROM store", Vec::new(), |row| {
        rows::unsigned(row, 0)
    });
    Ok(Term(only(term.await?)?))
}

async fn begin_term(connection: &mut PgConnection) -> Result<Term, Fault> {
    let term = connection.ask(
        "UPDATE store SET term = term + 1 RETURNING term",
        Vec::new(),
        |row| rows::unsigned(row, 0),
    );
    Ok(Term(only(term.await?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fleet_has_a_schema_that_needs_no_quotes() {
        assert_eq!(schema("farmhand"), "farmhand_farmhand");
        assert_eq!(schema("bld_2"), "farmhand_bld_2");
        let odd = [
            "Bld-2",
            "bld-2",
            "bld2!",
            "bld2?",
            "",
            &"x".repeat(60),
            &"x".repeat(61),
        ];
        let names: std::collections::BTreeSet<String> = odd.into_iter().map(schema).collect();
        assert_eq!(names.len(), odd.len());
        for name in &names {
            let plain =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            assert!(
                name.len() <= LONGEST_NAME && name.bytes().all(plain),
                "{name}"
            );
        }
    }

    #[test]
    fn the_locks_of_two_fleets_differ() {
        assert_ne!(key("leader", "a"), key("leader", "b"));
        assert_ne!(key("leader", "a"), key("schema", "a"));
        // As long as farms run, whatever their version.
        assert_eq!(key("leader", "farmhand"), 999_046_065_087_308_896);
    }

    #[test]
    fn the_password_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        fs_err::write(&file, "hunter2\n").unwrap();
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs_err::set_permissions(&file, owner_only).unwrap();
        let password = secret::read(&file).unwrap();
        let url = "postgres://farm@db:5433/farm";
        let backend = Postgres {
            options: options(url, Some(&password)).unwrap(),
            schema: schema("farmhand"),
            lock_key: 0,
            lead: Mutex::new(None),
        };
        let shown = format!("{backend:?}");
        assert_eq!(
            shown,
            r#"Postgres { server: "db:5433/farm", schema: "farmhand_farmhand", .. }"#
        );
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named_and_the_password_is_not() {
        let url = "postgres://farm:hunter2@127.0.0.1:1/farm";
        let error = open(url, None, "farmhand", Missing::Make)
            .await
            .unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(matches!(error, StoreError::Unavailable(_)), "{text}");
        assert!(text.contains("`127.0.0.1:1/farm`"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
