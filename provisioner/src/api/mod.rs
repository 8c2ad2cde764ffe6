//! The HTTP API: hosts report and are told what to do, people look and give orders.
//!
//! [`router`] is what is answered, [`serve`] how connections are had. Nothing here decides anything
//! about the fleet: what hosts say goes to [`Hosts`], what people order to the store, and the loop
//! sees both in its next pass. See `docs/http-api.md` for each call.
//!
//! Against hosts that do harm, by fault or by will:
//!
//! - Every call needs a token, and a host's speaks for its own instance only.
//! - Heads, bodies, answers and connections have limits in size, number and time ([`Limits`]).
//! - A host that talks too much is told to wait ([`rate`]); nothing is remembered of who has no token.
//! - Hosts are told when to ask again, so that all of them together ask [`ASKS_PER_SECOND`] times.
//! - An answer after which a host has nothing to say for a while ends its connection: ten thousand
//!   hosts hold no connection while they wait.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post, put};
use jiff::Timestamp;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;
use tracing::warn;

use crate::access::{Access, Admin};
use crate::config::Config;
use crate::hosts::Hosts;
use crate::ids::InstanceId;
use crate::store::{PassSummary, Store, StoreError};
use crate::world::elapsed;

mod admin;
mod answer;
mod body;
mod host;
pub mod rate;
mod serve;

pub use answer::Refusal;
pub use host::{ASK_LEAST, ASKS_PER_SECOND, ask_again};
pub use serve::{Limits, Peer, listen, serve};

use rate::{Crowd, Limiter, Rate};

/// What one host may ask: five calls a second for long, twenty at once. It needs one in ten seconds,
/// and one for each job it takes or finishes.
const HOST_RATE: Rate = Rate {
    per_second: 5,
    burst: 20,
};
/// How often one instance may be registered from one address: a host does it once, and again when
/// the answer was lost or the instance is not known yet.
const REGISTER_RATE: Rate = Rate {
    per_second: 1,
    burst: 10,
};
/// Places of the table that counts registrations: memory does not grow with those who try.
const REGISTER_PLACES: usize = 4096;
/// Calls of the store at the same time: the loop must not wait for a place at its own store.
const STORE_CALLS: usize = 16;
/// Large answers at the same time: each holds a whole pass.
const WRITERS: usize = 2;
/// For so long the newest pass is not looked up again: `/healthz` needs no token.
const SUMMARY_KEPT: Duration = Duration::from_secs(1);
/// A store that fails is in the log so often, whatever the number of hosts that ask.
const FAULT_EVERY: Duration = Duration::from_secs(10);

/// All that the API knows.
#[derive(Debug)]
pub struct Api<S> {
    /// The hosts.
    pub hosts: Arc<Hosts>,
    /// The store.
    pub store: Arc<S>,
    /// Tokens of hosts.
    pub access: Access,
    /// Token of admin calls; `None`: there are none.
    pub admin: Option<Admin>,
    /// The configuration.
    pub config: Arc<Config>,
    /// The clock.
    pub clock: fn() -> Timestamp,
    /// Whether this provisioner leads: only then it knows what hosts are to do.
    pub leading: watch::Receiver<bool>,
    talking: Limiter<InstanceId>,
    registering: Crowd,
    store_calls: Semaphore,
    writers: answer::Writers,
    newest: admin::Newest,
    summary: tokio::sync::Mutex<Option<(Instant, Option<PassSummary>)>>,
    store_fault_said: Mutex<Option<Instant>>,
}

impl<S: Store> Api<S> {
    /// The API of these parts.
    #[must_use]
    pub fn new(
        hosts: Arc<Hosts>,
        store: Arc<S>,
        access: Access,
        admin: Option<Admin>,
        config: Arc<Config>,
        clock: fn() -> Timestamp,
        leading: watch::Receiver<bool>,
    ) -> Self {
        Self {
            hosts,
            store,
            access,
            admin,
            config,
            clock,
            leading,
            talking: Limiter::new(HOST_RATE),
            registering: Crowd::new(REGISTER_RATE, REGISTER_PLACES),
            store_calls: Semaphore::new(STORE_CALLS),
            writers: answer::Writers::new(WRITERS),
            newest: admin::Newest::default(),
            summary: tokio::sync::Mutex::default(),
            store_fault_said: Mutex::default(),
        }
    }

    /// Gives every host its full credit.
    #[cfg(test)]
    fn forget_calls(&self) {
        self.talking.forget();
    }

    fn leads(&self) -> bool {
        *self.leading.borrow()
    }

    /// A place at the store. First come, first served.
    async fn at_store(&self) -> SemaphorePermit<'_> {
        self.store_calls
            .acquire()
            .await
            .expect("the semaphore is never closed")
    }

    /// What is answered when the store failed: the details are for the log.
    fn store_fault(&self, error: &StoreError) -> Refusal {
        let now = Instant::now();
        let mut said = self
            .store_fault_said
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|at| now.duration_since(at) >= FAULT_EVERY) {
            *said = Some(now);
            warn!(%error, "the store failed a call of the HTTP API; it is told to come again");
        }
        Refusal::later("the store cannot be used now", Duration::from_secs(10))
    }

    /// The newest pass, as it was a second ago at most.
    async fn newest_pass(&self) -> Result<Option<PassSummary>, Refusal> {
        let mut kept = self.summary.lock().await;
        if let Some((at, summary)) = &*kept
            && at.elapsed() < SUMMARY_KEPT
        {
            return Ok(summary.clone());
        }
        let _place = self.at_store().await;
        let found = self.store.passes(1).await;
        let newest = found
            .map_err(|error| self.store_fault(&error))?
            .into_iter()
            .next();
        *kept = Some((Instant::now(), newest.clone()));
        Ok(newest)
    }
}

/// All calls.
pub fn router<S: Store + 'static>(api: Arc<Api<S>>) -> Router {
    let hosts = Router::new()
        .route("/v1/hosts/{id}/register", post(host::register::<S>))
        .route("/v1/hosts/{id}/report", post(host::report::<S>))
        .route("/v1/hosts/{id}/assignment", get(host::assignment::<S>));
    let people = Router::new()
        .route("/v1/pools", get(admin::pools::<S>))
        .route("/v1/instances", get(admin::instances::<S>))
        .route("/v1/images", get(admin::images::<S>))
        .route("/v1/passes", get(admin::passes::<S>))
        .route("/v1/passes/{pass}", get(admin::pass::<S>))
        .route("/v1/history", get(admin::history::<S>))
        .route(
            "/v1/instances/{id}/hold",
            post(admin::hold::<S>).delete(admin::release::<S>),
        )
        .route(
            "/v1/maintenance",
            put(admin::maintain_fleet::<S>).delete(admin::resume_fleet::<S>),
        )
        .route(
            "/v1/maintenance/{pool}",
            put(admin::maintain_pool::<S>).delete(admin::resume_pool::<S>),
        )
        .route("/v1/wake", post(admin::wake::<S>));
    // The token is asked for before it is told which methods there are.
    let people = people
        .method_not_allowed_fallback(answer::wrong_method)
        .route_layer(axum::middleware::from_fn_with_state(
            Arc::clone(&api),
            admin::admit::<S>,
        ));
    hosts
        .route("/healthz", get(health::<S>))
        .method_not_allowed_fallback(answer::wrong_method)
        .merge(people)
        .fallback(answer::no_such_route)
        .with_state(api)
}

/// Whether this provisioner lives: for load balancers and monitoring, without a token.
async fn health<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
) -> Result<axum::Json<serde_json::Value>, Refusal> {
    let newest = api.newest_pass().await?;
    let now = (api.clock)();
    let last_pass = newest.map(|pass| {
        serde_json::json!({
            "pass": pass.id,
            "at": pass.at,
            "age_ms": elapsed(pass.at, now).as_millis(),
        })
    });
    Ok(axum::Json(serde_json::json!({
        "role": if api.leads() { "leading" } else { "following" },
        "last_pass": last_pass,
    })))
}

#[cfg(test)]
mod tests;
