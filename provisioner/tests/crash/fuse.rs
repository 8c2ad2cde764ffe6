//! A crash at an exact step: after so many steps the provisioner gets no further, for ever.
//!
//! Every call of the store and the cloud is two steps, before and after: blown before, the call was
//! never made; blown after, it was made and its answer lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;
use provisioner::cloud::{
    Cloud, CloudError, Finding, LaunchError, LaunchRequest, Launched, Offering, Sighting,
    TerminateError, UserData,
};
use provisioner::ids::{InstanceId, InstanceType, PassId, Region};
use provisioner::store::{
    Action, Change, HistoryQuery, Pass, PassSummary, Registration, Store, StoreError, Stored, Term,
};
use tokio::sync::Notify;

/// How many steps are left.
#[derive(Debug)]
pub(crate) struct Fuse {
    left: AtomicI64,
    blown: Notify,
}

impl Fuse {
    pub(crate) fn new(steps: i64) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicI64::new(steps),
            blown: Notify::new(),
        })
    }

    async fn burn(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.blown.notify_one();
            std::future::pending::<()>().await;
        }
    }

    pub(crate) async fn blown(&self) {
        self.blown.notified().await;
    }
}

/// A cloud or a store behind a fuse.
#[derive(Debug)]
pub(crate) struct Fused<T> {
    pub(crate) inner: T,
    pub(crate) fuse: Arc<Fuse>,
}

impl<T> Fused<T> {
    async fn step<R>(&self, call: impl Future<Output = R>) -> R {
        self.fuse.burn().await;
        let answer = call.await;
        self.fuse.burn().await;
        answer
    }
}

impl<C: Cloud> Cloud for Fused<C> {
    async fn instances(&self, region: &Region) -> Result<Vec<Sighting>, CloudError> {
        self.step(self.inner.instances(region)).await
    }

    async fn offerings(
        &self,
        region: &Region,
        types: &BTreeSet<InstanceType>,
    ) -> Result<Vec<Offering>, CloudError> {
        self.step(self.inner.offerings(region, types)).await
    }

    async fn launch(
        &self,
        request: &LaunchRequest,
        user_data: &UserData,
    ) -> Result<Launched, LaunchError> {
        self.step(self.inner.launch(request, user_data)).await
    }

    async fn terminate(
        &self,
        region: &Region,
        ids: &[InstanceId],
    ) -> BTreeMap<InstanceId, Result<(), TerminateError>> {
        self.step(self.inner.terminate(region, ids)).await
    }

    async fn check(&self) -> Vec<Finding> {
        self.step(self.inner.check()).await
    }
}

impl<S: Store> Store for Fused<S> {
    async fn lead(&self) -> Result<Option<Term>, StoreError> {
        self.step(self.inner.lead()).await
    }

    async fn leads(&self, term: Term) -> Result<bool, StoreError> {
        self.step(self.inner.leads(term)).await
    }

    async fn begin_pass(&self, term: Term) -> Result<PassId, StoreError> {
        self.step(self.inner.begin_pass(term)).await
    }

    async fn stored(&self, now: Timestamp) -> Result<Stored, StoreError> {
        self.step(self.inner.stored(now)).await
    }

    async fn commit(&self, term: Option<Term>, changes: Vec<Change>) -> Result<(), StoreError> {
        self.step(self.inner.commit(term, changes)).await
    }

    async fn registration(&self, id: &InstanceId) -> Result<Option<Registration>, StoreError> {
        self.step(self.inner.registration(id)).await
    }

    async fn register(
        &self,
        id: &InstanceId,
        key: &str,
        now: Timestamp,
    ) -> Result<Option<String>, StoreError> {
        self.step(self.inner.register(id, key, now)).await
    }

    async fn passes(&self, limit: u32) -> Result<Vec<PassSummary>, StoreError> {
        self.step(self.inner.passes(limit)).await
    }

    async fn pass(&self, id: PassId) -> Result<Option<Pass>, StoreError> {
        self.step(self.inner.pass(id)).await
    }

    async fn history(&self, query: &HistoryQuery) -> Result<Vec<Action>, StoreError> {
        self.step(self.inner.history(query)).await
    }
}
