//! The store that the configuration names.

use jiff::Timestamp;

#[cfg(feature = "postgres")]
use super::postgres;
use super::{
    Action, Change, HistoryQuery, Missing, Pass, PassSummary, Registration, Store, StoreError,
    Stored, Term, sqlite,
};
use crate::config::ProvisionerSettings;
use crate::ids::{InstanceId, PassId};

/// One of the stores there are.
#[derive(Debug)]
pub enum AnyStore {
    /// A file.
    Sqlite(Box<sqlite::SqliteStore>),
    /// A server.
    #[cfg(feature = "postgres")]
    Postgres(Box<postgres::PostgresStore>),
}

/// Opens the store that `settings` name. Only `provisioner run` makes one that is [`Missing`].
///
/// # Errors
/// See [`sqlite::open`] and `postgres::open`.
pub async fn open(
    settings: &ProvisionerSettings,
    missing: Missing,
) -> Result<AnyStore, StoreError> {
    if settings.store == "sqlite" {
        let store = sqlite::open(&settings.state_dir, missing).await?;
        return Ok(AnyStore::Sqlite(Box::new(store)));
    }
    #[cfg(feature = "postgres")]
    {
        let password = settings.store_password_file.as_deref();
        let store = postgres::open(&settings.store, password, &settings.fleet, missing).await?;
        Ok(AnyStore::Postgres(Box::new(store)))
    }
    #[cfg(not(feature = "postgres"))]
    Err(StoreError::Unavailable(
        "`provisioner.store` names PostgreSQL, which this program was built without: build it with \
         `--features postgres`"
            .into(),
    ))
}

/// Asks the store that it is.
macro_rules! each {
    ($any:ident, $store:ident => $ask:expr) => {
        match $any {
            AnyStore::Sqlite($store) => $ask.await,
            #[cfg(feature = "postgres")]
            AnyStore::Postgres($store) => $ask.await,
        }
    };
}

impl Store for AnyStore {
    async fn lead(&self) -> Result<Option<Term>, StoreError> {
        each!(self, store => store.lead())
    }

    async fn leads(&self, term: Term) -> Result<bool, StoreError> {
        each!(self, store => store.leads(term))
    }

    async fn begin_pass(&self, term: Term) -> Result<PassId, StoreError> {
        each!(self, store => store.begin_pass(term))
    }

    async fn stored(&self, now: Timestamp) -> Result<Stored, StoreError> {
        each!(self, store => store.stored(now))
    }

    async fn commit(&self, term: Option<Term>, changes: Vec<Change>) -> Result<(), StoreError> {
        each!(self, store => store.commit(term, changes))
    }

    async fn registration(&self, id: &InstanceId) -> Result<Option<Registration>, StoreError> {
        each!(self, store => store.registration(id))
    }

    async fn register(
        &self,
        id: &InstanceId,
        key: &str,
        now: Timestamp,
    ) -> Result<Option<String>, StoreError> {
        each!(self, store => store.register(id, key, now))
    }

    async fn passes(&self, limit: u32) -> Result<Vec<PassSummary>, StoreError> {
        each!(self, store => store.passes(limit))
    }

    async fn pass(&self, id: PassId) -> Result<Option<Pass>, StoreError> {
        each!(self, store => store.pass(id))
    }

    async fn history(&self, query: &HistoryQuery) -> Result<Vec<Action>, StoreError> {
        each!(self, store => store.history(query))
    }
}
