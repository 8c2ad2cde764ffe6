//! The embedded store, which can be made to fail and to take its time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use jiff::Timestamp;
use tokio::sync::watch;

use crate::ids::{InstanceId, PassId};
use crate::store::{
    Action, Change, HistoryQuery, Pass, PassSummary, Registration, SqliteStore, Store, StoreError,
    Stored, Term,
};

#[derive(Debug)]
pub(super) struct Moody {
    store: SqliteStore,
    pub(super) fails: AtomicBool,
    /// While this is not so, registrations are not found and not missed.
    pub(super) answers: watch::Sender<bool>,
    /// Calls that were begun.
    pub(super) asked: AtomicUsize,
}

impl Moody {
    pub(super) fn new(store: SqliteStore) -> Self {
        Self {
            store,
            fails: AtomicBool::new(false),
            answers: watch::Sender::new(true),
            asked: AtomicUsize::new(0),
        }
    }

    fn ask(&self) -> Result<&SqliteStore, StoreError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.fails.load(Ordering::Relaxed) {
            let message = "no space left at /var/lib/inner-secret-place";
            return Err(StoreError::Unavailable(message.into()));
        }
        Ok(&self.store)
    }
}

impl Store for Moody {
    async fn lead(&self) -> Result<Option<Term>, StoreError> {
        self.ask()?.lead().await
    }

    async fn leads(&self, term: Term) -> Result<bool, StoreError> {
        self.ask()?.leads(term).await
    }

    async fn begin_pass(&self, term: Term) -> Result<PassId, StoreError> {
        self.ask()?.begin_pass(term).await
    }

    async fn stored(&self, now: Timestamp) -> Result<Stored, StoreError> {
        self.ask()?.stored(now).await
    }

    async fn commit(&self, term: Option<Term>, changes: Vec<Change>) -> Result<(), StoreError> {
        self.ask()?.commit(term, changes).await
    }

    async fn registration(&self, id: &InstanceId) -> Result<Option<Registration>, StoreError> {
        let store = self.ask()?;
        let mut answers = self.answers.subscribe();
        answers.wait_for(|answers| *answers).await.unwrap();
        store.registration(id).await
    }

    async fn register(
        &self,
        id: &InstanceId,
        key: &str,
        now: Timestamp,
    ) -> Result<Option<String>, StoreError> {
        self.ask()?.register(id, key, now).await
    }

    async fn passes(&self, limit: u32) -> Result<Vec<PassSummary>, StoreError> {
        self.ask()?.passes(limit).await
    }

    async fn pass(&self, id: PassId) -> Result<Option<Pass>, StoreError> {
        self.ask()?.pass(id).await
    }

    async fn history(&self, query: &HistoryQuery) -> Result<Vec<Action>, StoreError> {
        self.ask()?.history(query).await
    }
}
