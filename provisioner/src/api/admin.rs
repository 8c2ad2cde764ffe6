//! What people ask and order: the fleet as the newest pass saw it, the history, holds, maintenance.
//!
//! Nothing here changes what a host is told: orders go to the store, and the next pass obeys them.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::Api;
use super::answer::{Refusal, no_such_route, streamed};
use super::body::{Fields, words};
use super::host::bearer;
use super::serve::Peer;
use crate::ids::{InstanceId, PassId, PoolName};
use crate::money::Money;
use crate::store::{Action, ActionVerb, Change, HistoryQuery, Pass, Store};
use crate::view;
use crate::world::{Hold, Order};

/// Longest name of a person, in characters.
const LONGEST_NAME: usize = 100;
/// Longest reason.
const LONGEST_REASON: usize = 500;
/// Rows of a list, unless more are asked for.
const ROWS: u32 = 100;
/// Rows of a list at most.
const MOST_ROWS: u32 = 10_000;
/// Longest hold with an end: whoever wants a longer one wants one without.
const LONGEST_HOLD: Duration = Duration::from_hours(24 * 366);
/// When a provisioner that has just started is asked again.
const SOON: Duration = Duration::from_secs(5);

/// The newest pass, for as long as somebody is being shown it.
#[derive(Debug, Default)]
pub(super) struct Newest(Mutex<Option<(PassId, Weak<Pass>)>>);

/// Lets pass who has the admin token. Without one there are no such calls.
pub(super) async fn admit<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let Some(admin) = &api.admin else {
        return no_such_route().await.into_response();
    };
    match bearer(request.headers()) {
        Ok(token) if admin.is(token) => next.run(request).await,
        Ok(_) => {
            warn!(%peer, "an admin call with a wrong token is refused");
            Refusal::new(StatusCode::UNAUTHORIZED, "this is not the admin token").into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

#[derive(Serialize)]
struct Pools {
    pass: PassId,
    at: Timestamp,
    maintenance: Option<Order>,
    bill: Money,
    faults: Vec<String>,
    pools: Vec<view::PoolRow>,
}

/// `GET /v1/pools`.
pub(super) async fn pools<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
) -> Result<Json<impl Serialize>, Refusal> {
    let pass = newest(&api).await?;
    let stopped = pass.faults.iter();
    Ok(Json(Pools {
        pass: pass.id,
        at: pass.at,
        maintenance: pass.world.maintenance.fleet.clone(),
        bill: pass.plan.bill,
        faults: stopped.chain(&pass.plan.faults).cloned().collect(),
        pools: view::pools(&pass),
    }))
}

#[derive(Serialize)]
struct Instances {
    pass: PassId,
    at: Timestamp,
    instances: Vec<view::InstanceRow>,
}

/// `GET /v1/instances`.
pub(super) async fn instances<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
) -> Result<Response, Refusal> {
    // Before there is a place, so that those who wait share it.
    let pass = newest(&api).await?;
    let place = api.writers.place().await;
    let instances = move || Instances {
        pass: pass.id,
        at: pass.at,
        instances: view::instances(&pass.world),
    };
    Ok(streamed(instances, place))
}

#[derive(Serialize)]
struct Images {
    pass: PassId,
    at: Timestamp,
    images: Vec<view::ImageRow>,
}

/// `GET /v1/images`.
pub(super) async fn images<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
) -> Result<Json<impl Serialize>, Refusal> {
    let pass = newest(&api).await?;
    Ok(Json(Images {
        pass: pass.id,
        at: pass.at,
        images: view::images(&pass.world, &api.config),
    }))
}

/// The newest pass in full: read once, however many look at the same time, and not kept: at a hundred
/// thousand instances it has tens of megabytes.
async fn newest<S: Store>(api: &Api<S>) -> Result<Arc<Pass>, Refusal> {
    let none = || Refusal::later("no pass was made yet", SOON);
    let id = api.newest_pass().await?.ok_or_else(none)?.id;
    let mut kept = api.newest.0.lock().await;
    if let Some((kept_id, pass)) = &*kept
        && *kept_id == id
        && let Some(pass) = pass.upgrade()
    {
        return Ok(pass);
    }
    let _place = api.at_store().await;
    let found = api.store.pass(id).await;
    let pass = found
        .map_err(|error| api.store_fault(&error))?
        .ok_or_else(none)?;
    let pass = Arc::new(pass);
    *kept = Some((id, Arc::downgrade(&pass)));
    Ok(pass)
}

type Asked = Result<Query<BTreeMap<String, String>>, QueryRejection>;

/// What stands behind the question mark.
struct Parameters(BTreeMap<String, String>);

impl Parameters {
    fn of(asked: Asked, known: &[&str]) -> Result<Self, Refusal> {
        let Ok(Query(parameters)) = asked else {
            return Err(Refusal::bad("the query is not written as `name=value&…`"));
        };
        if parameters.keys().all(|name| known.contains(&name.as_str())) {
            Ok(Self(parameters))
        } else {
            Err(Refusal::bad(format!(
                "the query has something this call does not know: expected {}",
                words(known)
            )))
        }
    }

    fn parsed<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, Refusal> {
        let parse = |text: &String| {
            text.parse()
                .map_err(|_| Refusal::bad(format!("`{name}` is wrong: expected {expected}")))
        };
        self.0.get(name).map(parse).transpose()
    }

    fn limit(&self) -> Result<u32, Refusal> {
        let expected = format!("a number from 1 to {MOST_ROWS}");
        match self.parsed("limit", &expected)? {
            None => Ok(ROWS),
            Some(limit) if (1..=MOST_ROWS).contains(&limit) => Ok(limit),
            Some(_) => Err(Refusal::bad(format!(
                "`limit` is wrong: expected {expected}"
            ))),
        }
    }
}

#[derive(Serialize)]
struct Passes {
    passes: Vec<view::PassRow>,
}

/// `GET /v1/passes`.
pub(super) async fn passes<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
    asked: Asked,
) -> Result<Json<impl Serialize>, Refusal> {
    let limit = Parameters::of(asked, &["limit"])?.limit()?;
    let _place = api.at_store().await;
    let passes = api.store.passes(limit).await;
    let passes = passes.map_err(|error| api.store_fault(&error))?;
    Ok(Json(Passes {
        passes: passes.into_iter().map(Into::into).collect(),
    }))
}

/// `GET /v1/passes/{pass}`: as `provisioner plan --replay` reads it.
pub(super) async fn pass<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
    path: Result<Path<u64>, PathRejection>,
) -> Result<Response, Refusal> {
    let none = || {
        Refusal::new(
            StatusCode::NOT_FOUND,
            "there is no such pass, or it is no longer kept",
        )
    };
    let Path(number) = path.map_err(|_| none())?;
    let writer = api.writers.place().await;
    let _place = api.at_store().await;
    let found = api.store.pass(PassId(number)).await;
    let pass = found
        .map_err(|error| api.store_fault(&error))?
        .ok_or_else(none)?;
    Ok(streamed(move || pass, writer))
}

#[derive(Serialize)]
struct History {
    history: Vec<view::HistoryRow>,
}

/// `GET /v1/history`.
pub(super) async fn history<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
    asked: Asked,
) -> Result<Json<impl Serialize>, Refusal> {
    let asked = Parameters::of(asked, &["instance", "pool", "pass", "since", "limit"])?;
    let query = HistoryQuery {
        instance: asked.parsed("instance", "an instance id")?,
        pool: asked.parsed("pool", "the name of a pool")?,
        pass: asked.parsed("pass", "the number of a pass")?.map(PassId),
        since: asked.parsed("since", "RFC 3339, such as `2026-08-01T12:00:00Z`")?,
        limit: asked.limit()?,
    };
    let _place = api.at_store().await;
    let history = api.store.history(&query).await;
    let history = history.map_err(|error| api.store_fault(&error))?;
    Ok(Json(History {
        history: history.into_iter().map(Into::into).collect(),
    }))
}

/// `POST /v1/instances/{id}/hold`.
pub(super) async fn hold<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
    path: Result<Path<String>, PathRejection>,
    body: Body,
) -> Result<Json<impl Serialize>, Refusal> {
    let id = instance(path)?;
    let fields = Fields::of(body).await?;
    fields.only(&["owner", "reason", "expires_in"])?;
    let now = (api.clock)();
    let hold = Hold {
        owner: fields.text("owner", LONGEST_NAME)?.to_owned(),
        reason: fields.text("reason", LONGEST_REASON)?.to_owned(),
        expires: expiry(&fields, now)?,
    };
    let pool = known_pool(&api, &id).await?;
    let until = hold
        .expires
        .map_or_else(|| "until released".into(), |at| format!("until {at:.0}"));
    let action = Action {
        at: now,
        by: hold.owner.clone(),
        verb: ActionVerb::Held,
        instance: Some(id.clone()),
        intent: None,
        pool: Some(pool),
        pass: None,
        result: format!("held {until}: {}", hold.reason),
    };
    info!(instance_id = %id, by = hold.owner, reason = hold.reason, "an instance is held");
    let held = Change::Held {
        id,
        hold: Some(hold.clone()),
    };
    order(&api, held, action).await?;
    Ok(Json(hold))
}

/// When a hold that begins now ends; `None`: when it is released.
fn expiry(fields: &Fields, now: Timestamp) -> Result<Option<Timestamp>, Refusal> {
    if !fields.has("expires_in") {
        return Ok(None);
    }
    let expected =
        "a time from \"1s\" to \"366days\", such as \"4h\"; or no field, until it is released";
    fields
        .parsed("expires_in", expected, |text| {
            let time = humantime::parse_duration(text).ok()?;
            let fits = (Duration::from_secs(1)..=LONGEST_HOLD).contains(&time);
            let time = SignedDuration::try_from(time).ok().filter(|_| fits)?;
            now.checked_add(time).ok()
        })
        .map(Some)
}

/// `DELETE /v1/instances/{id}/hold`.
pub(super) async fn release<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
    path: Result<Path<String>, PathRejection>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let id = instance(path)?;
    let fields = Fields::of(body).await?;
    fields.only(&["by"])?;
    let by = fields.text("by", LONGEST_NAME)?.to_owned();
    let pool = known_pool(&api, &id).await?;
    info!(instance_id = %id, by, "an instance is released");
    let action = Action {
        at: (api.clock)(),
        by,
        verb: ActionVerb::Released,
        instance: Some(id.clone()),
        intent: None,
        pool: Some(pool),
        pass: None,
        result: "released".into(),
    };
    order(&api, Change::Held { id, hold: None }, action).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn no_such_instance() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "there is no such instance")
}

fn instance(path: Result<Path<String>, PathRejection>) -> Result<InstanceId, Refusal> {
    path.ok()
        .and_then(|Path(id)| InstanceId::parse(&id).ok())
        .ok_or_else(no_such_instance)
}

/// The pool of an instance the store knows.
async fn known_pool<S: Store>(api: &Api<S>, id: &InstanceId) -> Result<PoolName, Refusal> {
    let _place = api.at_store().await;
    let known = api.store.registration(id).await;
    known
        .map_err(|error| api.store_fault(&error))?
        .map(|known| known.record.pool)
        .ok_or_else(no_such_instance)
}

/// Writes an order down, with who gave it, and has the next pass obey it.
async fn order<S: Store>(api: &Api<S>, change: Change, action: Action) -> Result<(), Refusal> {
    let _place = api.at_store().await;
    let done = api
        .store
        .commit(None, vec![change, Change::Did(action)])
        .await;
    done.map_err(|error| api.store_fault(&error))?;
    api.hosts.wake();
    Ok(())
}

/// `PUT /v1/maintenance`.
pub(super) async fn maintain_fleet<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
    body: Body,
) -> Result<Json<Order>, Refusal> {
    maintain(&api, None, body).await
}

/// `PUT /v1/maintenance/{pool}`.
pub(super) async fn maintain_pool<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
    path: Result<Path<String>, PathRejection>,
    body: Body,
) -> Result<Json<Order>, Refusal> {
    let pool = pool(path)?;
    if !api.config.pools.contains_key(&pool) {
        return Err(no_such_pool());
    }
    maintain(&api, Some(pool), body).await
}

async fn maintain<S: Store>(
    api: &Api<S>,
    pool: Option<PoolName>,
    body: Body,
) -> Result<Json<Order>, Refusal> {
    let fields = Fields::of(body).await?;
    fields.only(&["by", "reason"])?;
    let given = Order {
        by: fields.text("by", LONGEST_NAME)?.to_owned(),
        reason: fields.text("reason", LONGEST_REASON)?.to_owned(),
        at: (api.clock)(),
    };
    info!(
        pool = pool.as_ref().map(PoolName::as_str),
        by = given.by,
        reason = given.reason,
        "maintenance begins"
    );
    let action = Action {
        at: given.at,
        by: given.by.clone(),
        verb: ActionVerb::Maintained,
        instance: None,
        intent: None,
        pool: pool.clone(),
        pass: None,
        result: format!(
            "maintenance of {} began: {}",
            called(pool.as_ref()),
            given.reason
        ),
    };
    let maintained = Change::Maintained {
        pool,
        order: Some(given.clone()),
    };
    order(api, maintained, action).await?;
    Ok(Json(given))
}

/// `DELETE /v1/maintenance`.
pub(super) async fn resume_fleet<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    resume(&api, None, body).await
}

/// `DELETE /v1/maintenance/{pool}`: of any pool, as one that is no longer configured may have an order.
pub(super) async fn resume_pool<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
    path: Result<Path<String>, PathRejection>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    resume(&api, Some(pool(path)?), body).await
}

async fn resume<S: Store>(
    api: &Api<S>,
    pool: Option<PoolName>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let fields = Fields::of(body).await?;
    fields.only(&["by", "reason"])?;
    let by = fields.text("by", LONGEST_NAME)?.to_owned();
    let reason = if fields.has("reason") {
        format!(": {}", fields.text("reason", LONGEST_REASON)?)
    } else {
        String::new()
    };
    info!(
        pool = pool.as_ref().map(PoolName::as_str),
        by, "maintenance ends"
    );
    let action = Action {
        at: (api.clock)(),
        by,
        verb: ActionVerb::Maintained,
        instance: None,
        intent: None,
        pool: pool.clone(),
        pass: None,
        result: format!("maintenance of {} ended{reason}", called(pool.as_ref())),
    };
    order(api, Change::Maintained { pool, order: None }, action).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn called(pool: Option<&PoolName>) -> String {
    pool.map_or_else(|| "the fleet".into(), |pool| format!("pool {pool}"))
}

fn no_such_pool() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "there is no such pool")
}

fn pool(path: Result<Path<String>, PathRejection>) -> Result<PoolName, Refusal> {
    path.ok()
        .and_then(|Path(name)| PoolName::parse(&name).ok())
        .ok_or_else(no_such_pool)
}

/// `POST /v1/wake`: the next pass begins now.
pub(super) async fn wake<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
) -> Result<StatusCode, Refusal> {
    if !api.leads() {
        return Err(Refusal::later("another provisioner leads", SOON));
    }
    api.hosts.wake();
    Ok(StatusCode::ACCEPTED)
}
