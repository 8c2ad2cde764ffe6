//! Taskcluster: the counts of its task queues.
//!
//! The queue service has three ways to ask ("Queue Service, API" of the Taskcluster reference), and
//! which one works depends on its age and on our scopes. They are tried from the best:
//!
//! 1. `taskQueueCountsBatch`: `POST /task-queues/counts`, all queues in one request;
//! 2. `taskQueueCounts`: `GET /task-queues/QUEUE/counts`, for services that lack the first;
//! 3. `pendingTasks`: `GET /pending/QUEUE`, deprecated, without the tasks that run, and the only one
//!    that needs no more than `queue:pending-count:QUEUE`, which many services give to everybody.
//!
//! The first two also need `queue:claimed-count:QUEUE`. The service counts once in 20 seconds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use farm_config::secret::Secret;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use reqwest::header::HeaderValue;
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use sha2::Sha256;

use super::settings::TaskclusterSettings;
use super::web::{self, Ask, Reply, Web};
use super::{Count, DemandSource, Observation, SourceError, Work};

/// Path of the queue service below the root URL.
const QUEUE: &str = "/api/queue/v1";
/// Most queues in one request of `taskQueueCountsBatch`.
const MOST_QUEUES: usize = 1000;

/// A Taskcluster deployment.
#[derive(Debug)]
pub struct Taskcluster {
    web: Web,
    settings: TaskclusterSettings,
    /// The way that worked last, as a number: see [`Way`].
    way: AtomicU8,
    /// Requests made, so that no two have the same nonce.
    requests: AtomicU64,
}

/// How counts are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Batch,
    Each,
    PendingOnly,
}

impl Way {
    const fn next(self) -> Option<Self> {
        match self {
            Self::Batch => Some(Self::Each),
            Self::Each => Some(Self::PendingOnly),
            Self::PendingOnly => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Batch {
    task_queue_counts: Vec<QueueCounts>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct QueueCounts {
    task_queue_id: String,
    pending_tasks: u32,
    claimed_tasks: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pending {
    pending_tasks: u32,
}

/// What was learnt of the queues, and when it was so.
struct Counted {
    as_of: Timestamp,
    queues: BTreeMap<String, Count>,
}

impl Counted {
    fn add(&mut self, as_of: Timestamp, queue: String, pending: u32, running: u32) {
        self.as_of = self.as_of.min(as_of);
        let count = Count {
            pending,
            running,
            oldest_age: None,
        };
        self.queues.insert(queue, count);
    }
}

/// Why a way failed.
enum Failure {
    /// The service has no such endpoint, or our scopes do not allow it: another may do.
    OtherWay(SourceError),
    Final(SourceError),
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::Final(error)
    }
}

impl Taskcluster {
    pub(super) fn new(settings: TaskclusterSettings) -> Result<Self, String> {
        Ok(Self {
            web: Web::new(&settings.url, settings.timeout)?,
            settings,
            way: AtomicU8::new(0),
            requests: AtomicU64::new(0),
        })
    }

    async fn count(&self, way: Way, now: Timestamp) -> Result<Counted, Failure> {
        let mut counted = Counted {
            as_of: Timestamp::MAX,
            queues: BTreeMap::new(),
        };
        match way {
            Way::Batch => {
                let queues: Vec<&String> = self.settings.queues.keys().collect();
                for queues in queues.chunks(MOST_QUEUES) {
                    let body = serde_json::json!({ "taskQueueIds": queues }).to_string();
                    let path = format!("{QUEUE}/task-queues/counts");
                    let reply = self.ask(&path, Some(body), now).await?;
                    let batch: Batch = reply.json("Taskcluster")?;
                    for it in batch.task_queue_counts {
                        let as_of = reply.as_of(now);
                        counted.add(as_of, it.task_queue_id, it.pending_tasks, it.claimed_tasks);
                    }
                }
            }
            Way::Each => {
                for queue in self.settings.queues.keys() {
                    let path = format!("{QUEUE}/task-queues/{}/counts", escaped(queue));
                    let reply = self.ask(&path, None, now).await?;
                    let it: QueueCounts = reply.json("Taskcluster")?;
                    let as_of = reply.as_of(now);
                    counted.add(as_of, it.task_queue_id, it.pending_tasks, it.claimed_tasks);
                }
            }
            Way::PendingOnly => {
                for queue in self.settings.queues.keys() {
                    let path = format!("{QUEUE}/pending/{}", escaped(queue));
                    let reply = self.ask(&path, None, now).await?;
                    let it: Pending = reply.json("Taskcluster")?;
                    counted.add(reply.as_of(now), queue.clone(), it.pending_tasks, 0);
                }
            }
        }
        Ok(counted)
    }

    async fn ask(
        &self,
        path: &str,
        body: Option<String>,
        now: Timestamp,
    ) -> Result<Reply, Failure> {
        let secret = web::token(self.settings.token_file.as_deref())?;
        let method = if body.is_some() { "POST" } else { "GET" };
        let authorization = match &secret {
            Some(secret) => Some(self.hawk(method, &self.web.url(path)?, secret, now)?),
            None => None,
        };
        let ask = Ask {
            path,
            authorization,
            body,
            secret: secret.as_ref(),
            ..Ask::default()
        };
        let reply = self.web.ask(ask).await?;
        match reply.status {
            status if status.is_success() => Ok(reply),
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::FORBIDDEN => {
                Err(Failure::OtherWay(reply.failure()))
            }
            _ => Err(Failure::Final(reply.failure())),
        }
    }

    /// `Authorization` by Hawk 1.1: a signature of the request, so that the token stays here. The
    /// body is not signed; the service does not want it to be.
    fn hawk(
        &self,
        method: &str,
        url: &Url,
        secret: &Secret,
        now: Timestamp,
    ) -> Result<HeaderValue, SourceError> {
        let (id, seconds) = (&self.settings.client_id, now.as_second());
        // It need not be secret, only new.
        let count = self.requests.fetch_add(1, Ordering::Relaxed);
        let nonce = format!("{:x}-{count}", now.as_nanosecond());
        let resource = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let mac = hawk_mac(
            secret.expose(),
            &[
                "hawk.1.header",
                &seconds.to_string(),
                &nonce,
                method,
                &resource,
                &url.host_str().unwrap_or_default().to_lowercase(),
                &url.port_or_known_default().unwrap_or_default().to_string(),
                "",
                "",
            ],
        );
        let header = format!(r#"Hawk id="{id}", ts="{seconds}", nonce="{nonce}", mac="{mac}""#);
        HeaderValue::from_str(&header).map_err(|_| {
            let message = "`client_id` has characters that no header can have";
            SourceError::NotAllowed(message.into())
        })
    }

    fn understood(&self, mut counted: Counted) -> Result<Observation, SourceError> {
        let mut counts = BTreeMap::<_, Count>::new();
        for (queue, pool) in &self.settings.queues {
            let Some(it) = counted.queues.remove(queue) else {
                return Err(SourceError::NotUnderstood(format!(
                    "it says nothing of the queue `{queue}`, for which it was asked"
                )));
            };
            let count = counts.entry(pool.clone()).or_default();
            count.pending = count.pending.saturating_add(it.pending);
            count.running = count.running.saturating_add(it.running);
        }
        Ok(Observation::new(counted.as_of, Work::Counts(counts)))
    }
}

impl DemandSource for Taskcluster {
    async fn observe(&self, now: Timestamp) -> Result<Observation, SourceError> {
        let mut way = match self.way.load(Ordering::Relaxed) {
            0 => Way::Batch,
            1 => Way::Each,
            _ => Way::PendingOnly,
        };
        loop {
            let failed = match self.count(way, now).await {
                Ok(counted) => {
                    self.way.store(way as u8, Ordering::Relaxed);
                    return self.understood(counted);
                }
                Err(Failure::OtherWay(error)) => error,
                Err(Failure::Final(error)) => return Err(error),
            };
            let Some(next) = way.next() else {
                // Rights and services change: begin with the best one next time.
                self.way.store(0, Ordering::Relaxed);
                return Err(failed);
            };
            way = next;
        }
    }
}

/// The MAC of Hawk: HMAC-SHA-256 of the lines, each ended by a newline.
fn hawk_mac(key: &str, lines: &[&str]) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes a key of any length");
    for line in lines {
        mac.update(line.as_bytes());
        mac.update(b"\n");
    }
    BASE64_STANDARD.encode(mac.finalize().into_bytes())
}

/// A queue in a path: one segment, its `/` escaped, as the clients of Taskcluster send it.
fn escaped(queue: &str) -> String {
    let mut escaped = String::with_capacity(queue.len() + 2);
    for byte in queue.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
