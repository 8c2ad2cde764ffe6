//! The metadata service of an instance: the part of EC2's, version 2, that `runner` and the SDKs of
//! AWS ask for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, put};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::cloud::CapacityType;
use crate::cloud::local::disk::Meta;

/// Header a token is sent in.
const TOKEN: &str = "x-aws-ec2-metadata-token";
/// Header with the life of a token that is asked for.
const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// As long as EC2's may live.
const LONGEST_TTL: u64 = 21_600;
/// Tokens that are valid at once; over it, the one that ends first goes. A host needs one.
const TOKENS: usize = 64;
/// Connections at once; more wait.
const CONNECTIONS: usize = 16;
/// Longest wait for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest life of a connection.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);

struct Service {
    meta: Arc<Meta>,
    user_data: String,
    notice: watch::Receiver<Option<Timestamp>>,
    tokens: Mutex<Tokens>,
}

struct Tokens {
    until: BTreeMap<String, Instant>,
    rng: StdRng,
}

/// Answers until dropped.
pub(super) async fn serve(
    listener: TcpListener,
    meta: Arc<Meta>,
    user_data: String,
    notice: watch::Receiver<Option<Timestamp>>,
) {
    let router = router(Arc::new(Service {
        meta,
        user_data,
        notice,
        tokens: Mutex::new(Tokens {
            until: BTreeMap::new(),
            rng: rand::make_rng(),
        }),
    }));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptor is left: wait until some are.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(16 << 10)
            .serve_connection(
                TokioIo::new(stream),
                TowerToHyperService::new(router.clone()),
            );
        tokio::spawn(async move {
            // Whoever breaks off a connection knows it; whoever keeps it for ever is cut off.
            tokio::time::timeout(CONNECTION_LIFE, connection).await.ok();
            drop(place);
        });
    }
}

fn router(service: Arc<Service>) -> Router {
    let with_token = Router::new()
        .route("/latest/user-data", get(user_data))
        .route("/latest/meta-data/{*item}", get(item))
        .route_layer(middleware::from_fn_with_state(
            Arc::clone(&service),
            needs_token,
        ));
    Router::new()
        .route("/latest/api/token", put(new_token))
        .merge(with_token)
        .with_state(service)
}

async fn new_token(State(service): State<Arc<Service>>, headers: HeaderMap) -> Response {
    let ttl = headers.get(TOKEN_TTL).and_then(|ttl| ttl.to_str().ok());
    let ttl = ttl.and_then(|ttl| ttl.parse().ok());
    let Some(ttl) = ttl.filter(|ttl| (1..=LONGEST_TTL).contains(ttl)) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    // A proxy that hands on what others ask for adds this; EC2 refuses it too.
    if headers.contains_key("x-forwarded-for") {
        return StatusCode::FORBIDDEN.into_response();
    }
    let token = service.tokens().make(Duration::from_secs(ttl));
    ([(TOKEN_TTL, ttl.to_string())], token).into_response()
}

async fn needs_token(
    State(service): State<Arc<Service>>,
    request: Request,
    next: Next,
) -> Response {
    let token = request.headers().get(TOKEN);
    let token = token.and_then(|token| token.to_str().ok());
    if token.is_some_and(|token| service.tokens().is_valid(token)) {
        next.run(request).await
    } else {
        StatusCode::UNAUTHORIZED.into_response()
    }
}

async fn user_data(State(service): State<Arc<Service>>) -> String {
    service.user_data.clone()
}

async fn item(State(service): State<Arc<Service>>, Path(item): Path<String>) -> Response {
    service.item(&item).map_or_else(
        || StatusCode::NOT_FOUND.into_response(),
        String::into_response,
    )
}

impl Service {
    fn tokens(&self) -> std::sync::MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn item(&self, item: &str) -> Option<String> {
        let offering = &self.meta.offering;
        let text = match item {
            "instance-id" => self.meta.id.to_string(),
            "instance-type" => offering.instance_type.to_string(),
            "ami-id" => plain_name(self.meta.image_id.as_str()).to_owned(),
            "placement/region" => offering.region.to_string(),
            "placement/availability-zone" => offering.zone.to_string(),
            "instance-life-cycle" => match offering.capacity_type {
                CapacityType::Spot => "spot".to_owned(),
                CapacityType::OnDemand => "on-demand".to_owned(),
            },
            "spot/instance-action" => {
                let at = (*self.notice.borrow())?;
                // In whole seconds, as EC2 writes it.
                let time = at.strftime("%Y-%m-%dT%H:%M:%SZ");
                format!(r#"{{"action":"terminate","time":"{time}"}}"#)
            }
            "spot/termination-time" => {
                let at = (*self.notice.borrow())?;
                at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
            }
            _ => return None,
        };
        Some(text)
    }
}

/// The image as one word, as hosts expect it: of an id that is a path, its last part.
fn plain_name(image_id: &str) -> &str {
    let name = image_id.rsplit('/').find(|part| !part.is_empty());
    name.unwrap_or("image")
}

impl Tokens {
    fn make(&mut self, ttl: Duration) -> String {
        let now = Instant::now();
        self.until.retain(|_, until| *until > now);
        if self.until.len() >= TOKENS
            && let Some(first) = self.until.iter().min_by_key(|(_, until)| **until)
        {
            let first = first.0.clone();
            self.until.remove(&first);
        }
        let token = format!("{:032x}", self.rng.random::<u128>());
        self.until.insert(token.clone(), now + ttl);
        token
    }

    fn is_valid(&self, token: &str) -> bool {
        let until = self.until.get(token);
        until.is_some_and(|until| *until > Instant::now())
    }
}
