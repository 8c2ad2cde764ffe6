//! The API over TCP, with the embedded store behind it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::access::Token;
use crate::ids::{ImageName, PoolName};
use crate::store::sqlite;
use crate::store::{Action, Change, HistoryQuery, InstanceRecord, Missing, suite};
use crate::world::{Assignment, HostActivity, LeaveReason, Maintenance};

mod crowd;
mod hosts;
mod people;
mod slow;
mod store;

use store::Moody;

const KEY: &str = "00112233445566778899aabbccddeeff";
const OTHER_KEY: &str = "ffeeddccbbaa99887766554433221100";
const ADMIN: &str = "adm1n-t0ken";
const SECRET: [u8; 32] = [0x5a; 32];

/// Long enough for a machine that is busy with other things; whoever waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn noon() -> Timestamp {
    "2026-11-20T12:30:00Z".parse().unwrap()
}

fn id(text: &str) -> InstanceId {
    InstanceId::parse(text).unwrap()
}

/// A farm with an API, and a client of it.
struct Farm {
    api: Arc<Api<Moody>>,
    address: SocketAddr,
    leading: watch::Sender<bool>,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
    client: Client,
    _state_dir: tempfile::TempDir,
}

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Value,
}

impl Answer {
    fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or_default()
    }

    fn retry_after(&self) -> Option<u64> {
        self.headers.get("retry-after")?.parse().ok()
    }
}

fn config() -> Config {
    let text = r#"
[images.bullseye-7]
directory = "/images/bullseye-7"

[pools.linux64]
image = "bullseye-7"
types = { small = 1.0 }
"#;
    let source = farm_config::Source {
        path: "provisioner.toml".into(),
        text: text.into(),
    };
    crate::config::from_sources(vec![source]).unwrap()
}

fn client(from: Option<IpAddr>) -> Client {
    Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0)
        .timeout(PATIENCE)
        .local_address(from)
        .build()
        .unwrap()
}

impl Farm {
    async fn new() -> Self {
        Self::with(config(), Limits::default()).await
    }

    async fn with(config: Config, limits: Limits) -> Self {
        Self::built(config, limits, Some(Admin::new(ADMIN, [3; 32]))).await
    }

    async fn built(config: Config, limits: Limits, admin: Option<Admin>) -> Self {
        let state_dir = tempfile::tempdir().unwrap();
        let store = sqlite::open(state_dir.path(), Missing::Make).await.unwrap();
        let leading = watch::Sender::new(true);
        let api = Arc::new(Api::new(
            Arc::default(),
            Arc::new(Moody::new(store)),
            Access::new("farmhand", &SECRET),
            admin,
            Arc::new(config),
            noon,
            leading.subscribe(),
        ));
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let served = serve(router(Arc::clone(&api)), listener, limits, shutdown.clone());
        Self {
            api,
            address,
            leading,
            shutdown,
            served: tokio::spawn(served),
            client: client(None),
            _state_dir: state_dir,
        }
    }

    /// Instances enter the store, as the answer of a launch brings them.
    async fn launch(&self, ids: &[&str]) {
        for name in ids {
            self.enter(suite::record(name)).await;
        }
    }

    async fn enter(&self, record: InstanceRecord) {
        let seen = Change::InstanceSeen(Box::new(record));
        self.api.store.commit(None, vec![seen]).await.unwrap();
    }

    fn join_token(&self) -> Token {
        self.join_token_of("linux64", "bullseye-7", noon())
    }

    fn join_token_of(&self, pool: &str, image: &str, at: Timestamp) -> Token {
        let pool = PoolName::parse(pool).unwrap();
        let image = ImageName::parse(image).unwrap();
        self.api.access.join_token(&pool, &image, at)
    }

    async fn send(&self, method: Method, path: &str, token: &str, body: Option<Value>) -> Answer {
        send(&self.client, self.address, method, path, token, body).await
    }

    async fn get(&self, path: &str, token: &str) -> Answer {
        self.send(Method::GET, path, token, None).await
    }

    async fn register(&self, name: &str, token: &str, key: &str) -> Answer {
        let path = format!("/v1/hosts/{name}/register");
        self.send(Method::POST, &path, token, Some(registration(key)))
            .await
    }

    /// A host that is registered: its token.
    async fn join(&self, name: &str) -> String {
        self.launch(&[name]).await;
        let answer = self.register(name, self.join_token().expose(), KEY).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["host_token"].as_str().unwrap().to_owned()
    }

    async fn report(&self, name: &str, token: &str, report: Value) -> Answer {
        let path = format!("/v1/hosts/{name}/report");
        self.send(Method::POST, &path, token, Some(report)).await
    }

    async fn history(&self) -> Vec<Action> {
        let query = HistoryQuery {
            limit: 1000,
            ..HistoryQuery::default()
        };
        self.api.store.history(&query).await.unwrap()
    }

    /// Whether the loop was woken since the last look.
    async fn was_woken(&self) -> bool {
        // What was notified is ready at once.
        timeout(Duration::ZERO, self.api.hosts.news()).await.is_ok()
    }
}

async fn send(
    client: &Client,
    address: SocketAddr,
    method: Method,
    path: &str,
    token: &str,
    body: Option<Value>,
) -> Answer {
    let mut request = client.request(method, format!("http://{address}{path}"));
    if !token.is_empty() {
        request = request.bearer_auth(token);
    }
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let headers = response.headers().iter();
    let headers = headers
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    let body = response.bytes().await.unwrap();
    Answer {
        status,
        headers,
        body: if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).unwrap()
        },
    }
}

fn registration(key: &str) -> Value {
    json!({ "key": key, "boot_id": "b007", "runner": "0.1.0" })
}

fn said(activity: &str) -> Value {
    json!({
        "boot_id": "b007",
        "activity": activity,
        "since": "2026-11-20T12:29:00Z",
        "job": null,
        "runs": 12,
        "spot_notice": null,
        "lost_job": null,
    })
}
