//! The store, written once for every database that speaks SQL.
//!
//! A [`Backend`] knows how to connect, how one provisioner leads, and what the database's errors mean.
//! All else is here and in the modules beside: the statements are the same for all. Two connections
//! are kept, one that writes and one that reads, so that a look at the fleet waits for no commit.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut};

use jiff::Timestamp;
use tokio::sync::{Mutex, MutexGuard};

use super::{
    Action, Change, HistoryQuery, Pass, PassSummary, Registration, Store, StoreError, Stored, Term,
};
use super::{changes, packed, rows};
use crate::ids::{InstanceId, PassId};

/// A value for a statement. The type stands with the null, because PostgreSQL asks for it.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// A whole number.
    Integer(Option<i64>),
    /// A number.
    Real(f64),
    /// Text.
    Text(Option<Cow<'a, str>>),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Integer(Some(number))
    }
}

impl From<u32> for Value<'_> {
    fn from(number: u32) -> Self {
        Self::Integer(Some(number.into()))
    }
}

impl From<u64> for Value<'_> {
    /// A number a host may send, such as its runs, is not worth failing for: the largest is kept.
    fn from(number: u64) -> Self {
        Self::Integer(Some(i64::try_from(number).unwrap_or(i64::MAX)))
    }
}

impl From<Timestamp> for Value<'_> {
    fn from(time: Timestamp) -> Self {
        Self::Integer(Some(nanoseconds(time)))
    }
}

impl From<Option<Timestamp>> for Value<'_> {
    fn from(time: Option<Timestamp>) -> Self {
        Self::Integer(time.map(nanoseconds))
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Some(Cow::Borrowed(text)))
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(text: Option<&'a str>) -> Self {
        Self::Text(text.map(Cow::Borrowed))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Text(Some(Cow::Owned(text)))
    }
}

impl From<Option<String>> for Value<'_> {
    fn from(text: Option<String>) -> Self {
        Self::Text(text.map(Cow::Owned))
    }
}

/// Nanoseconds since 1970: what a clock gives survives exactly. Times before 1678 and after 2262,
/// which only a host can claim, become the first and the last of these.
pub(super) fn nanoseconds(time: Timestamp) -> i64 {
    let nanoseconds = time.as_nanosecond();
    i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX })
}

/// A row of an answer; columns count from 0.
pub trait Row {
    /// A whole number.
    ///
    /// # Errors
    /// If there is something else in it.
    fn integer(&self, column: usize) -> Result<Option<i64>, sqlx::Error>;
    /// A number.
    ///
    /// # Errors
    /// If there is something else in it.
    fn real(&self, column: usize) -> Result<Option<f64>, sqlx::Error>;
    /// Text.
    ///
    /// # Errors
    /// If there is something else in it.
    fn text(&self, column: usize) -> Result<Option<&str>, sqlx::Error>;
    /// Bytes.
    ///
    /// # Errors
    /// If there is something else in it.
    fn bytes(&self, column: usize) -> Result<Option<&[u8]>, sqlx::Error>;
}

/// A connection that statements run on.
pub trait Connection: Send + 'static {
    /// Takes a JSON list of `[instance, registered_at, heard_at, activity, since, job, runs,
    /// interruption_at]`, each instance once: one statement for thousands of hosts.
    const HEARD: &'static str;

    /// Runs a statement: how many rows it changed.
    fn run(
        &mut self,
        statement: &'static str,
        values: Vec<Value<'_>>,
    ) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// Asks: what `read` makes of each row, as the rows come in.
    fn ask<T: Send + Unpin>(
        &mut self,
        statement: &'static str,
        values: Vec<Value<'_>>,
        read: fn(&dyn Row) -> Result<T, sqlx::Error>,
    ) -> impl Future<Output = Result<Vec<T>, sqlx::Error>> + Send;
}

/// Implements [`Row`] and [`Connection`] for a database of `sqlx`: the same words for each, but
/// other types.
macro_rules! speak_sql {
    ($database:ty, $connection:ty, $row:ty, $heard:literal) => {
        impl $crate::store::sql::Row for $row {
            fn integer(&self, column: usize) -> Result<Option<i64>, sqlx::Error> {
                sqlx::Row::try_get(self, column)
            }
            fn real(&self, column: usize) -> Result<Option<f64>, sqlx::Error> {
                sqlx::Row::try_get(self, column)
            }
            fn text(&self, column: usize) -> Result<Option<&str>, sqlx::Error> {
                sqlx::Row::try_get(self, column)
            }
            fn bytes(&self, column: usize) -> Result<Option<&[u8]>, sqlx::Error> {
                sqlx::Row::try_get(self, column)
            }
        }

        impl $crate::store::sql::Connection for $connection {
            const HEARD: &'static str = $heard;

            async fn run(
                &mut self,
                statement: &'static str,
                values: Vec<$crate::store::sql::Value<'_>>,
            ) -> Result<u64, sqlx::Error> {
                let done = bound(statement, values).execute(self).await?;
                Ok(done.rows_affected())
            }

            async fn ask<T: Send + Unpin>(
                &mut self,
                statement: &'static str,
                values: Vec<$crate::store::sql::Value<'_>>,
                read: fn(&dyn $crate::store::sql::Row) -> Result<T, sqlx::Error>,
            ) -> Result<Vec<T>, sqlx::Error> {
                let rows = bound(statement, values).try_map(move |row: $row| read(&row));
                rows.fetch_all(self).await
            }
        }

        fn bound(
            statement: &'static str,
            values: Vec<$crate::store::sql::Value<'_>>,
        ) -> sqlx::query::Query<'static, $database, <$database as sqlx::Database>::Arguments> {
            use $crate::store::sql::Value;
            values
                .into_iter()
                .fold(sqlx::query(statement), |query, value| match value {
                    Value::Integer(number) => query.bind(number),
                    Value::Real(number) => query.bind(number),
                    Value::Text(text) => query.bind(text.map(std::borrow::Cow::into_owned)),
                    Value::Bytes(bytes) => query.bind(bytes),
                })
        }
    };
}
pub(super) use speak_sql;

/// What goes wrong below the store: the database says something, or we do.
#[derive(Debug)]
pub enum Fault {
    /// The database; its [`Backend`] knows what it means.
    Database(sqlx::Error),
    /// We.
    Told(StoreError),
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Told(error)
    }
}

/// A database.
pub trait Backend: fmt::Debug + Send + Sync + Sized {
    /// Its connections.
    type Connection: Connection;

    /// Begins a transaction that will write; nobody else writes until it ends.
    const BEGIN_WRITING: &'static str;
    /// Begins a transaction whose reads all see the store at one moment.
    const BEGIN_READING: &'static str;
    /// The term that is current, kept as it is until the transaction ends.
    const CURRENT_TERM: &'static str;

    /// A new connection.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, Fault>> + Send;

    /// What a fault means, for those who call the store.
    fn explain(&self, fault: Fault) -> StoreError;

    /// Tries to lead.
    fn lead(
        &self,
        store: &SqlStore<Self>,
    ) -> impl Future<Output = Result<Option<Term>, Fault>> + Send;

    /// Whether what makes this store the leader is still there. The term is checked apart from it.
    fn holds_lead(&self) -> impl Future<Output = Result<bool, Fault>> + Send;

    /// `work`, given up where a database may never answer.
    fn bounded<T: Send>(
        &self,
        work: impl Future<Output = Result<T, Fault>> + Send,
    ) -> impl Future<Output = Result<T, Fault>> + Send;
}

/// A store in a database.
pub struct SqlStore<B: Backend> {
    backend: B,
    writer: Mutex<Option<B::Connection>>,
    reader: Mutex<Option<B::Connection>>,
}

impl<B: Backend> fmt::Debug for SqlStore<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SqlStore").field(&self.backend).finish()
    }
}

/// A connection in a transaction, taken out of its place. Only [`Transaction::commit`] puts it
/// back: after a fault, or when the caller is dropped in between, it is closed, and the database
/// forgets what was not committed. The next caller connects anew.
pub(super) struct Transaction<'a, C: Connection> {
    place: MutexGuard<'a, Option<C>>,
    connection: C,
}

impl<C: Connection> Transaction<'_, C> {
    pub(super) async fn commit(mut self) -> Result<(), Fault> {
        self.connection.run("COMMIT", Vec::new()).await?;
        *self.place = Some(self.connection);
        Ok(())
    }
}

impl<C: Connection> Deref for Transaction<'_, C> {
    type Target = C;
    fn deref(&self) -> &C {
        &self.connection
    }
}

impl<C: Connection> DerefMut for Transaction<'_, C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.connection
    }
}

impl<B: Backend> SqlStore<B> {
    pub(super) fn new(backend: B, connection: B::Connection) -> Self {
        Self {
            backend,
            writer: Mutex::new(Some(connection)),
            reader: Mutex::new(None),
        }
    }

    async fn begin<'a>(
        &self,
        place: &'a Mutex<Option<B::Connection>>,
        statement: &'static str,
    ) -> Result<Transaction<'a, B::Connection>, Fault> {
        let mut place = place.lock().await;
        let mut connection = match place.take() {
            Some(connection) => connection,
            None => self.backend.connect().await?,
        };
        connection.run(statement, Vec::new()).await?;
        Ok(Transaction { place, connection })
    }

    pub(super) async fn writing(&self) -> Result<Transaction<'_, B::Connection>, Fault> {
        self.begin(&self.writer, B::BEGIN_WRITING).await
    }

    pub(super) async fn reading(&self) -> Result<Transaction<'_, B::Connection>, Fault> {
        self.begin(&self.reader, B::BEGIN_READING).await
    }

    /// Begins a term.
    pub(super) async fn begin_term(&self) -> Result<Term, Fault> {
        let mut writing = self.writing().await?;
        let term = writing
            .ask(
                "UPDATE store SET term = term + 1 RETURNING term",
                Vec::new(),
                |row| rows::unsigned(row, 0),
            )
            .await?;
        writing.commit().await?;
        Ok(Term(only(term)?))
    }

    /// The term that began last.
    pub(super) async fn last_term(&self) -> Result<Term, Fault> {
        let mut reading = self.reading().await?;
        let term = reading
            .ask("SELECT term FROM store", Vec::new(), |row| {
                rows::unsigned(row, 0)
            })
            .await?;
        reading.commit().await?;
        Ok(Term(only(term)?))
    }

    /// Refuses, unless `term` is the last one; no other begins until the transaction ends.
    async fn require(
        writing: &mut Transaction<'_, B::Connection>,
        term: Term,
    ) -> Result<(), Fault> {
        let current = writing
            .ask(B::CURRENT_TERM, Vec::new(), |row| rows::unsigned(row, 0))
            .await?;
        if Term(only(current)?) == term {
            Ok(())
        } else {
            Err(StoreError::Deposed.into())
        }
    }

    async fn next_pass(&self, term: Term) -> Result<PassId, Fault> {
        let mut writing = self.writing().await?;
        Self::require(&mut writing, term).await?;
        let pass = writing
            .ask(
                "UPDATE store SET pass = pass + 1 RETURNING pass",
                Vec::new(),
                |row| rows::unsigned(row, 0),
            )
            .await?;
        writing.commit().await?;
        Ok(PassId(only(pass)?))
    }

    async fn write(&self, term: Option<Term>, changes: Vec<Change>) -> Result<(), Fault> {
        // Before the transaction: packing a pass takes long, and others wait for the store.
        let writes = changes::prepare(changes).await?;
        let mut writing = self.writing().await?;
        if let Some(term) = term {
            Self::require(&mut writing, term).await?;
        }
        for write in &writes {
            changes::apply(&mut *writing, write).await?;
        }
        writing.commit().await
    }

    async fn read_stored(&self, now: Timestamp) -> Result<Stored, Fault> {
        let mut reading = self.reading().await?;
        let stored = rows::stored(&mut *reading, now).await?;
        reading.commit().await?;
        Ok(stored)
    }

    async fn read_registration(&self, id: &InstanceId) -> Result<Option<Registration>, Fault> {
        let mut reading = self.reading().await?;
        let found = rows::registration(&mut *reading, id).await?;
        reading.commit().await?;
        Ok(found)
    }

    async fn write_registration(
        &self,
        id: &InstanceId,
        key: &str,
        now: Timestamp,
    ) -> Result<Option<String>, Fault> {
        let mut writing = self.writing().await?;
        let key = changes::register(&mut *writing, id, key, now).await?;
        writing.commit().await?;
        Ok(key)
    }

    async fn read_passes(&self, limit: u32) -> Result<Vec<PassSummary>, Fault> {
        let mut reading = self.reading().await?;
        let passes = rows::passes(&mut *reading, limit).await?;
        reading.commit().await?;
        Ok(passes)
    }

    async fn read_pass(&self, id: PassId) -> Result<Option<Pass>, Fault> {
        let mut reading = self.reading().await?;
        let body = rows::pass_body(&mut *reading, id).await?;
        reading.commit().await?;
        match body {
            Some(body) => Ok(Some(packed::unpack(id, body).await?)),
            None => Ok(None),
        }
    }

    async fn read_history(&self, query: &HistoryQuery) -> Result<Vec<Action>, Fault> {
        let mut reading = self.reading().await?;
        let actions = rows::history(&mut *reading, query).await?;
        reading.commit().await?;
        Ok(actions)
    }

    async fn is_leader(&self, term: Term) -> Result<bool, Fault> {
        Ok(self.backend.holds_lead().await? && self.last_term().await? == term)
    }

    async fn told<T: Send>(
        &self,
        work: impl Future<Output = Result<T, Fault>> + Send,
    ) -> Result<T, StoreError> {
        let done = self.backend.bounded(work).await;
        done.map_err(|fault| self.backend.explain(fault))
    }
}

/// The one row of a table that has one.
pub(super) fn only<T>(rows: Vec<T>) -> Result<T, StoreError> {
    rows.into_iter()
        .next()
        .ok_or_else(|| StoreError::Damaged("the table `store` is empty: expected one row".into()))
}

/// What an error of the driver means, which is none of the database: a row that is not what was
/// written, or a connection that broke.
pub(super) fn explain_driver(place: &str, error: &sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Decode(why) => StoreError::Damaged(format!("`{place}`: {why}")),
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::TypeNotFound { .. } => StoreError::Damaged(format!("`{place}`: {error}")),
        _ => StoreError::Unavailable(format!("`{place}`: {error}")),
    }
}

impl<B: Backend> Store for SqlStore<B> {
    async fn lead(&self) -> Result<Option<Term>, StoreError> {
        self.told(self.backend.lead(self)).await
    }

    async fn leads(&self, term: Term) -> Result<bool, StoreError> {
        self.told(self.is_leader(term)).await
    }

    async fn begin_pass(&self, term: Term) -> Result<PassId, StoreError> {
        self.told(self.next_pass(term)).await
    }

    async fn stored(&self, now: Timestamp) -> Result<Stored, StoreError> {
        self.told(self.read_stored(now)).await
    }

    async fn commit(&self, term: Option<Term>, changes: Vec<Change>) -> Result<(), StoreError> {
        self.told(self.write(term, changes)).await
    }

    async fn registration(&self, id: &InstanceId) -> Result<Option<Registration>, StoreError> {
        self.told(self.read_registration(id)).await
    }

    async fn register(
        &self,
        id: &InstanceId,
        key: &str,
        now: Timestamp,
    ) -> Result<Option<String>, StoreError> {
        self.told(self.write_registration(id, key, now)).await
    }

    async fn passes(&self, limit: u32) -> Result<Vec<PassSummary>, StoreError> {
        self.told(self.read_passes(limit)).await
    }

    async fn pass(&self, id: PassId) -> Result<Option<Pass>, StoreError> {
        self.told(self.read_pass(id)).await
    }

    async fn history(&self, query: &HistoryQuery) -> Result<Vec<Action>, StoreError> {
        self.told(self.read_history(query)).await
    }
}
