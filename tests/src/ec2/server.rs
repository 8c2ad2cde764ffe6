//! The HTTP edge: one address for all regions, the region being that of the signature's credential
//! scope ("Elements of an AWS API request signature", IAM User Guide). Decides nothing; it only carries
//! out what fault points want of a connection.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::{Body, Bytes, to_bytes};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, DATE};
use axum::http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::clock::{self, Clock};
use super::control::{self, Command};
use super::error::ApiError;
use super::fault::{Effect, Point};
use super::machine::{Caller, Ec2, Outage};
use super::params::Params;
use super::settings::Settings;

/// Path of the control interface.
pub const CONTROL: &str = "/_control";

/// More than any request of ours: 1,000 ids are 40 KiB, user data 30.
const BODY_LIMIT: usize = 1 << 20;

/// The fake and what its connections share.
#[derive(Debug)]
pub struct Shared {
    state: Mutex<(Ec2, Clock)>,
    /// Counts releases; calls that are held wait for the next.
    released: watch::Sender<u64>,
}

/// Why a connection is closed without an answer.
#[derive(Debug)]
struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a fault point wants the connection closed")
    }
}

impl std::error::Error for Dropped {}

impl Shared {
    /// A fake in which nothing has happened yet.
    #[must_use]
    pub fn new(settings: Settings) -> Arc<Self> {
        let clock = Clock::new(settings.clock);
        Arc::new(Self {
            state: Mutex::new((Ec2::new(settings), clock)),
            released: watch::Sender::new(0),
        })
    }

    /// The fake and its clock, while no call is at work.
    pub fn lock(&self) -> MutexGuard<'_, (Ec2, Clock)> {
        // A test that failed while it held the lock must not make every later failure look like one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a control command.
    ///
    /// # Errors
    ///
    /// A sentence that says what is wrong.
    pub fn control(&self, command: Command) -> Result<Value, String> {
        let mut state = self.lock();
        let (ec2, clock) = &mut *state;
        let release = || self.released.send_modify(|count| *count += 1);
        control::apply(ec2, clock, release, command)
    }

    /// What strikes a call that has just arrived, and how it will learn of a release: of any after this
    /// moment, so none is missed between being struck and waiting.
    fn strike(&self, region: &str, action: &str) -> (Option<(Point, Effect)>, Releases) {
        let mut state = self.lock();
        let strike = state.0.strike(region, action);
        (strike, self.released.subscribe())
    }

    /// What an outage of the region does to a connection.
    async fn wait_out(&self, region: &str) -> Result<(), Dropped> {
        loop {
            let (outage, mut releases) = {
                let state = self.lock();
                (state.0.outage(region), self.released.subscribe())
            };
            match outage {
                None | Some(Outage::Unavailable) => return Ok(()),
                Some(Outage::Drop) => return Err(Dropped),
                Some(Outage::Hang) => release(&mut releases).await,
            }
        }
    }
}

/// Changes at every release.
type Releases = watch::Receiver<u64>;

async fn release(releases: &mut Releases) {
    // The sender lives as long as the fake, so this ends by a release alone.
    releases.changed().await.ok();
}

/// Answers connections until it is dropped.
///
/// # Errors
///
/// If the listener fails.
pub async fn serve(shared: Arc<Shared>, listener: TcpListener) -> std::io::Result<Infallible> {
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(serve_connection(Arc::clone(&shared), stream));
    }
}

async fn serve_connection(shared: Arc<Shared>, stream: TcpStream) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let shared = Arc::clone(&shared);
        async move {
            let (head, body) = request.into_parts();
            let body = to_bytes(Body::new(body), BODY_LIMIT).await;
            let body = body.map_err(|_| Dropped)?;
            if head.uri.path() == CONTROL {
                return Ok(answer_control(&shared, &head.method, &body));
            }
            answer_call(&shared, &head.headers, &body).await
        }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A client that leaves, or one that a fault point leaves: both are what tests do.
    connection.await.ok();
}

/// One call of EC2's API.
async fn answer_call(
    shared: &Shared,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response<Body>, Dropped> {
    let params = Params::parse(&String::from_utf8_lossy(body));
    let action = params.get("Action").unwrap_or_default().to_owned();
    let Some(caller) = caller(headers) else {
        return Ok(shared.lock().0.refuse(&ApiError::auth_failure()));
    };
    shared.wait_out(&caller.region).await?;
    let (strike, mut releases) = shared.strike(&caller.region, &action);
    match &strike {
        Some((Point::Before, Effect::Error { code, status })) => {
            let error = ApiError::new(*status, code, "a fault point of the fake EC2");
            return Ok(shared.lock().0.refuse(&error));
        }
        Some((Point::Before, effect)) => suffer(effect, &mut releases).await?,
        Some((Point::After, _)) | None => {}
    }
    let response = call(shared, &caller, &action, &params);
    match &strike {
        Some((Point::After, Effect::Error { code, status })) => {
            let error = ApiError::new(*status, code, "a fault point of the fake EC2");
            Ok(shared.lock().0.refuse(&error))
        }
        Some((Point::After, effect)) => suffer(effect, &mut releases).await.map(|()| response),
        Some((Point::Before, _)) | None => Ok(response),
    }
}

/// Does what is asked, at one moment.
fn call(shared: &Shared, caller: &Caller, action: &str, params: &Params) -> Response<Body> {
    let mut state = shared.lock();
    let (ec2, clock) = &mut *state;
    if ec2.outage(&caller.region) == Some(Outage::Unavailable) {
        return ec2.refuse(&ApiError::unavailable());
    }
    let answer = ec2
        .authenticate(clock::wall_clock(), caller)
        .and_then(|account| ec2.call(clock.now(), &caller.region, &account, params));
    match answer {
        Ok(xml) => {
            let id = ec2.request_id();
            respond(StatusCode::OK, ec2, xml.response(action, &id))
        }
        Err(error) => ec2.refuse(&error),
    }
}

/// What a fault does to a call apart from answering it.
async fn suffer(effect: &Effect, releases: &mut Releases) -> Result<(), Dropped> {
    match effect {
        Effect::Drop => Err(Dropped),
        Effect::Delay { by } => {
            tokio::time::sleep(*by).await;
            Ok(())
        }
        Effect::Hold => {
            release(releases).await;
            Ok(())
        }
        Effect::Error { .. } => Ok(()),
    }
}

impl Ec2 {
    fn refuse(&mut self, error: &ApiError) -> Response<Body> {
        let id = self.request_id();
        let status =
            StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        respond(status, self, error.body(&id))
    }
}

/// Clients correct their clock by the date of answers, so it is that of the service.
fn respond(status: StatusCode, ec2: &Ec2, body: String) -> Response<Body> {
    let response = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "text/xml;charset=UTF-8")
        .header(DATE, clock::http_date(ec2.clock_ahead()));
    response
        .body(Body::from(body))
        .expect("constant headers and a date are valid")
}

/// `AWS4-HMAC-SHA256 Credential=KEY/20260101/us-east-1/ec2/aws4_request, SignedHeaders=…, Signature=…`.
fn caller(headers: &HeaderMap) -> Option<Caller> {
    let authorization = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (_, rest) = authorization.split_once("Credential=")?;
    let mut scope = rest.split([',', ' ']).next()?.split('/');
    let (access_key, _date, region) = (scope.next()?, scope.next()?, scope.next()?);
    if (scope.next(), scope.next()) != (Some("ec2"), Some("aws4_request")) {
        return None;
    }
    let signed_at = headers
        .get("x-amz-date")
        .and_then(|value| clock::parse_amz_date(value.to_str().ok()?));
    Some(Caller {
        access_key: access_key.to_owned(),
        region: region.to_owned(),
        signed_at,
    })
}

fn answer_control(shared: &Shared, method: &Method, body: &Bytes) -> Response<Body> {
    let (status, answer) = if *method == Method::GET {
        let mut state = shared.lock();
        let (ec2, clock) = &mut *state;
        (StatusCode::OK, control::state(ec2, clock.now()))
    } else {
        match do_commands(shared, body) {
            Ok(answers) => (StatusCode::OK, answers),
            Err(error) => (StatusCode::BAD_REQUEST, json!({ "error": error })),
        }
    };
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(answer.to_string()))
        .expect("constant headers are valid")
}

fn do_commands(shared: &Shared, body: &Bytes) -> Result<Value, String> {
    let wrong = |error: serde_json::Error| format!("no control command: {error}");
    let given: Value = serde_json::from_slice(body).map_err(wrong)?;
    let Value::Array(commands) = given else {
        let command = serde_json::from_value(given).map_err(wrong)?;
        return shared.control(command);
    };
    let mut answers = Vec::new();
    for command in commands {
        let command = serde_json::from_value(command).map_err(wrong)?;
        answers.push(shared.control(command)?);
    }
    Ok(Value::Array(answers))
}

#[cfg(test)]
mod tests;
