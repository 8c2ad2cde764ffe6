//! What hosts say: they register once, report, and are told what to do.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{AUTHORIZATION, CONNECTION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Api;
use super::answer::Refusal;
use super::body::{Fields, tame, words};
use super::serve::Peer;
use crate::access::{Joining, TokenFault};
use crate::apply::reason_text;
use crate::hosts::Said;
use crate::ids::InstanceId;
use crate::store::{Action, ActionVerb, Change, InstanceRecord, Registration, Store};
use crate::world::{Assignment, HostActivity, LeaveReason};

/// Hosts are not asked to come more often.
pub const ASK_LEAST: Duration = Duration::from_secs(10);
/// Questions a second that all hosts together are asked to make at most. One core answers
/// some thousands; the rest is for news, for people, and for the passes.
pub const ASKS_PER_SECOND: u32 = 200;

/// When a host that is not known yet, or not to this provisioner, tries again.
const SOON: Duration = Duration::from_secs(5);

/// Length of the key a host registers with, in hexadecimal digits: 16 bytes.
const KEY_DIGITS: usize = 32;
/// Longest text a host may send in a field.
const LONGEST_TEXT: usize = 200;

const ACTIVITIES: [(&str, HostActivity); 4] = [
    ("idle", HostActivity::Idle),
    ("busy", HostActivity::Busy),
    ("draining", HostActivity::Draining),
    ("fenced", HostActivity::Fenced),
];

/// When each of `hosts` is to ask again, so that all of them together ask [`ASKS_PER_SECOND`] times a
/// second: `max(10 s, hosts / 200 per s)`, in whole seconds, rounded up.
#[must_use]
pub fn ask_again(hosts: usize) -> Duration {
    let seconds = hosts.div_ceil(ASKS_PER_SECOND as usize) as u64;
    Duration::from_secs(seconds).max(ASK_LEAST)
}

/// `POST /v1/hosts/{id}/register`.
pub(super) async fn register<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
    Extension(Peer(peer)): Extension<Peer>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    leading(&api)?;
    let now = (api.clock)();
    let joining = api
        .access
        .joining(bearer(&headers)?, now)
        .map_err(refused)?;
    let id = named(path)?;
    api.registering
        .call((peer, &id), Instant::now())
        .map_err(Refusal::too_many)?;
    let fields = Fields::of(body).await?;
    let key = fields.parsed("key", "32 hexadecimal digits", parse_key)?;
    let boot_id = boot_id(&fields)?;
    let runner = fields.text("runner", LONGEST_TEXT)?.to_owned();

    let _place = api.at_store().await;
    let known = api.store.registration(&id).await;
    let known = known
        .map_err(|error| api.store_fault(&error))?
        .ok_or_else(not_known)?;
    may_join(&api, &joining, &known, peer)?;
    let first = api.store.register(&id, &key, now).await;
    let first = first
        .map_err(|error| api.store_fault(&error))?
        .ok_or_else(not_known)?;
    if !api.access.is_same_key(&first, &key) {
        warn!(
            instance_id = %id,
            peer = %peer,
            "a second host registers for an instance, with another key: it is refused; if the instance lost its state directory, end it"
        );
        return Err(Refusal::new(
            StatusCode::CONFLICT,
            "this instance is registered with another key",
        ));
    }
    api.hosts.admit(&known.record);
    api.hosts.registered(&id, now);
    if known.key.is_none() {
        let Joining { pool, image } = &joining;
        info!(instance_id = %id, %pool, %image, boot_id, runner, "a host registered");
        remember(&api, &known.record, &runner, now).await;
    }
    let token = api.access.host_token(&id, &key);
    Ok(Json(Registered {
        host_token: token.expose(),
    })
    .into_response())
}

#[derive(Serialize)]
struct Registered<'a> {
    host_token: &'a str,
}

/// Whether a host with this join token may register for the instance.
fn may_join<S: Store>(
    api: &Api<S>,
    joining: &Joining,
    known: &Registration,
    peer: std::net::IpAddr,
) -> Result<(), Refusal> {
    let record = &known.record;
    let instance_id = &record.id;
    if record.pool != joining.pool || record.image != joining.image {
        warn!(
            %instance_id,
            %peer,
            pool = %joining.pool,
            image = %joining.image,
            "a join token of another pool or image is refused"
        );
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "the join token is for another pool or image than this instance",
        ));
    }
    if record.ended_at.is_some() {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "this instance is being ended",
        ));
    }
    if !api.config.provisioner.checks_address() {
        return Ok(());
    }
    match record.private_address {
        Some(address) if address.to_canonical() == peer => Ok(()),
        Some(address) => {
            warn!(
                %instance_id,
                %peer,
                %address,
                "a registration from another address than the instance's is refused; behind a proxy, set `provisioner.check_address` to false"
            );
            Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "this is not the address of that instance",
            ))
        }
        None => {
            // The next pass asks the cloud for it.
            api.hosts.wake();
            Err(Refusal::later(
                "the address of this instance is not known yet",
                SOON,
            ))
        }
    }
}

/// Writes the registration into the history. It counts even if that fails.
async fn remember<S: Store>(api: &Api<S>, record: &InstanceRecord, runner: &str, now: Timestamp) {
    let action = Action {
        at: now,
        by: record.id.to_string(),
        verb: ActionVerb::Registered,
        instance: Some(record.id.clone()),
        intent: record.intent.clone(),
        pool: Some(record.pool.clone()),
        pass: None,
        result: format!("registered with runner {}", tame(runner, 40)),
    };
    if let Err(error) = api.store.commit(None, vec![Change::Did(action)]).await {
        warn!(
            instance_id = %record.id,
            %error,
            "the registration of a host is not in the history: the store did not take it"
        );
    }
}

/// `POST /v1/hosts/{id}/report`.
pub(super) async fn report<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let id = speaker(&api, path, &headers)?;
    let said = said(&Fields::of(body).await?)?;
    let now = (api.clock)();
    if let Some(assignment) = api.hosts.heard(&id, said.clone(), now) {
        return Ok(told(&api, &assignment));
    }
    admit(&api, &id).await?;
    let assignment = api.hosts.heard(&id, said, now).ok_or_else(not_known)?;
    Ok(told(&api, &assignment))
}

/// `GET /v1/hosts/{id}/assignment`.
pub(super) async fn assignment<S: Store + 'static>(
    State(api): State<Arc<Api<S>>>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let id = speaker(&api, path, &headers)?;
    if let Some(heard) = api.hosts.get(&id) {
        return Ok(told(&api, &heard.assignment));
    }
    admit(&api, &id).await?;
    let heard = api.hosts.get(&id).ok_or_else(not_known)?;
    Ok(told(&api, &heard.assignment))
}

/// The host that speaks, if it may, and speaks for itself.
fn speaker<S: Store>(
    api: &Api<S>,
    path: Result<Path<String>, PathRejection>,
    headers: &HeaderMap,
) -> Result<InstanceId, Refusal> {
    leading(api)?;
    let speaker = api.access.speaker(bearer(headers)?).map_err(refused)?;
    // Before all else: what a host asks in another's name counts as its own.
    api.talking.call(&speaker, Instant::now()).map_err(|wait| {
        debug!(instance_id = %speaker, "a host calls too often; it is told to wait");
        Refusal::too_many(wait)
    })?;
    if path.is_ok_and(|Path(id)| id == speaker.as_str()) {
        return Ok(speaker);
    }
    warn!(instance_id = %speaker, "a host speaks for another instance with its own token: it is refused");
    Err(Refusal::new(
        StatusCode::FORBIDDEN,
        "this token speaks for another instance",
    ))
}

/// Lets a host speak whom the store knows, and no pass of this provisioner yet.
async fn admit<S: Store>(api: &Api<S>, id: &InstanceId) -> Result<(), Refusal> {
    let _place = api.at_store().await;
    let known = api.store.registration(id).await;
    let known = known
        .map_err(|error| api.store_fault(&error))?
        .ok_or_else(not_known)?;
    api.hosts.admit(&known.record);
    Ok(())
}

/// Only who leads knows what hosts are to do.
fn leading<S: Store>(api: &Api<S>) -> Result<(), Refusal> {
    if api.leads() {
        Ok(())
    } else {
        Err(Refusal::later("another provisioner leads", SOON))
    }
}

/// The token of a call.
pub(super) fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let value = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    value
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| {
            Refusal::new(
                StatusCode::UNAUTHORIZED,
                "no token: expected `Authorization: Bearer TOKEN`",
            )
        })
}

fn refused(fault: TokenFault) -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, fault.to_string())
}

fn named(path: Result<Path<String>, PathRejection>) -> Result<InstanceId, Refusal> {
    path.ok()
        .and_then(|Path(id)| InstanceId::parse(&id).ok())
        .ok_or_else(not_known)
}

/// The answer of a launch may be written down a moment after its hosts are up.
fn not_known() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "this instance is not known, or not yet",
    )
    .after(SOON)
}

fn parse_key(text: &str) -> Option<String> {
    let is_key = text.len() == KEY_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_key.then(|| text.to_ascii_lowercase())
}

/// For the log. A host that cannot tell its own is as good as any.
fn boot_id(fields: &Fields) -> Result<String, Refusal> {
    fields.parsed("boot_id", "text", |text| Some(tame(text, LONGEST_TEXT)))
}

/// What a host says of itself.
fn said(fields: &Fields) -> Result<Said, Refusal> {
    boot_id(fields)?;
    let activity = fields.parsed(
        "activity",
        &format!("one of {}", words(&ACTIVITIES.map(|(word, _)| word))),
        |text| {
            ACTIVITIES
                .iter()
                .find_map(|(word, activity)| (*word == text).then_some(*activity))
        },
    )?;
    let job = fields.object("job", "job.")?;
    let lost_job = fields.object("lost_job", "lost_job.")?;
    let notice = fields.object("spot_notice", "spot_notice.")?;
    Ok(Said {
        activity,
        since: fields.time("since")?,
        job: job.as_ref().map(job_of).transpose()?,
        runs: fields.count("runs")?,
        interruption_at: notice.map(|notice| notice.time("time")).transpose()?,
        lost_job: lost_job.as_ref().map(job_of).transpose()?,
    })
}

/// A job, as people know it: `name (id)`. CI systems allow any name, so nothing is refused but what
/// could forge a line.
fn job_of(job: &Fields) -> Result<String, Refusal> {
    let part = |key| job.parsed(key, "text", |text| Some(tame(text, LONGEST_TEXT)));
    let name = part("name")?;
    let id = part("id")?;
    Ok(match (name.is_empty(), id.is_empty()) {
        (true, _) => id,
        (false, true) => name,
        (false, false) => format!("{name} ({id})"),
    })
}

#[derive(Serialize)]
struct Told {
    assignment: &'static str,
    reason: Option<LeaveReason>,
    text: String,
    #[serde(with = "humantime_serde")]
    ask_again: Duration,
}

/// The answer to a host. It ends the connection: there is nothing to say for a while.
fn told<S: Store>(api: &Api<S>, assignment: &Assignment) -> Response {
    let (word, reason) = match assignment {
        Assignment::GoOn => ("go_on", None),
        Assignment::Drain { reason, .. } => ("drain", Some(*reason)),
        Assignment::Quit { reason, .. } => ("quit", Some(*reason)),
    };
    let told = Told {
        assignment: word,
        reason,
        text: sentence(assignment),
        ask_again: ask_again(api.hosts.count()),
    };
    let mut response = Json(told).into_response();
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// What a person on the host reads.
fn sentence(assignment: &Assignment) -> String {
    match assignment {
        Assignment::GoOn => "work".into(),
        Assignment::Drain { reason, since } => format!(
            "this host takes no further job for now (since {since:.0}): {}",
            reason_text(*reason)
        ),
        Assignment::Quit { reason, since } => format!(
            "this host takes no further job and is ended (since {since:.0}): {}",
            reason_text(*reason)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_hosts_together_ask_so_many_times_a_second_at_most() {
        let cases = [
            (0, 10),
            (1, 10),
            (2_000, 10),
            (2_001, 11),
            (10_000, 50),
            (100_000, 500),
        ];
        for (hosts, seconds) in cases {
            assert_eq!(ask_again(hosts), Duration::from_secs(seconds), "{hosts}");
        }
    }

    #[test]
    fn every_assignment_and_reason_has_a_sentence() {
        let since: Timestamp = "2026-08-01T12:00:00.123Z".parse().unwrap();
        let reasons = [
            LeaveReason::Idle,
            LeaveReason::Drifted,
            LeaveReason::OverTarget,
            LeaveReason::Maintenance,
            LeaveReason::PoolRemoved,
            LeaveReason::UsedUp,
            LeaveReason::NeverStarted,
            LeaveReason::NeverRegistered,
            LeaveReason::Silent,
            LeaveReason::Stray,
            LeaveReason::Asked,
        ];
        let mut lines = vec![
            sentence(&Assignment::GoOn),
            sentence(&Assignment::Drain {
                reason: LeaveReason::Maintenance,
                since,
            }),
        ];
        lines.extend(reasons.map(|reason| sentence(&Assignment::Quit { reason, since })));
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_job_is_shown_by_name_and_id() {
        let fields = |text: &str| Fields::parse(text.as_bytes()).unwrap();
        for (text, shown) in [
            (
                r#"{"name":"linux64-build","id":"42"}"#,
                "linux64-build (42)",
            ),
            (r#"{"name":"linux64-build","id":""}"#, "linux64-build"),
            (r#"{"name":"","id":"42"}"#, "42"),
            (r#"{"name":"a\nb","id":""}"#, "a\u{fffd}b"),
        ] {
            assert_eq!(job_of(&fields(text)).unwrap(), shown);
        }
        assert!(job_of(&fields(r#"{"name":"x"}"#)).is_err());
    }
}
