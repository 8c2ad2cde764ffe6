//! What may be written in `[sources.NAME]`, one struct for each kind, and what it may not contradict.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farm_config::KeyFault;
use serde::{Deserialize, Serialize};

use super::rules::Rules;
use super::web;
use crate::config::{Config, SourceSettings};
use crate::ids::{PoolName, SourceName};

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// `kind = "buildbot"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BuildbotSettings {
    /// Address of the master's web server: `http://HOST:PORT`.
    pub url: String,
    /// Longest wait for one answer.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for BuildbotSettings {
    fn default() -> Self {
        Self {
            url: String::new(),
            timeout: TIMEOUT,
        }
    }
}

/// `kind = "taskcluster"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskclusterSettings {
    /// Root URL of the deployment.
    pub url: String,
    /// Task queues and the pool each feeds: `"PROVISIONER/WORKER-TYPE" = "POOL"`.
    pub queues: BTreeMap<String, PoolName>,
    /// Client id; empty: anonymous.
    pub client_id: String,
    /// File with the client's access token.
    pub token_file: Option<PathBuf>,
    /// Longest wait for one answer.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for TaskclusterSettings {
    fn default() -> Self {
        Self {
            url: String::new(),
            queues: BTreeMap::new(),
            client_id: String::new(),
            token_file: None,
            timeout: TIMEOUT,
        }
    }
}

/// `kind = "github"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GithubSettings {
    /// Address of the API.
    pub url: String,
    /// Repositories, `OWNER/NAME`.
    pub repositories: Vec<String>,
    /// File with the token; none: only public repositories, and 60 requests an hour.
    pub token_file: Option<PathBuf>,
    /// Requests made in one pass at most; each active run takes one.
    pub max_requests: NonZeroU32,
    /// Longest wait for one answer.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for GithubSettings {
    fn default() -> Self {
        Self {
            url: "https://api.github.com".into(),
            repositories: Vec::new(),
            token_file: None,
            // GitHub allows 5,000 an hour; unchanged answers are free.
            max_requests: NonZeroU32::new(500).expect("500 is not zero"),
            timeout: TIMEOUT,
        }
    }
}

/// `kind = "buildkite"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BuildkiteSettings {
    /// Address of the agent API.
    pub url: String,
    /// Queues and the pool each feeds: `"QUEUE" = "POOL"`.
    pub queues: BTreeMap<String, PoolName>,
    /// File with the agent token.
    pub token_file: Option<PathBuf>,
    /// Longest wait for one answer.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for BuildkiteSettings {
    fn default() -> Self {
        Self {
            url: "https://agent.buildkite.com".into(),
            queues: BTreeMap::new(),
            token_file: None,
            timeout: TIMEOUT,
        }
    }
}

/// `kind = "http"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSettings {
    /// Address.
    pub url: String,
    /// The pool it feeds.
    pub pool: Option<PoolName>,
    /// JSON pointer (RFC 6901) to the number of waiting jobs, or to a list of them.
    pub pending: String,
    /// JSON pointer to the number of running jobs; empty: unknown, 0.
    pub running: String,
    /// JSON pointer to the time of the answer (RFC 3339 or Unix seconds); empty: when it came.
    pub as_of: String,
    /// File with a token, sent as `Authorization: Bearer`.
    pub token_file: Option<PathBuf>,
    /// Longest wait for one answer.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            url: String::new(),
            pool: None,
            pending: String::new(),
            running: String::new(),
            as_of: String::new(),
            token_file: None,
            timeout: TIMEOUT,
        }
    }
}

/// `kind = "exec"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExecSettings {
    /// Program and its arguments; no shell. It prints JSON: see the documentation of the sources.
    pub command: Vec<String>,
    /// Pools it counts for, if it prints `pools`; empty: it prints `jobs`, and the rules decide.
    pub pools: Vec<PoolName>,
    /// Longest run; then it is ended.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for ExecSettings {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            pools: Vec::new(),
            timeout: TIMEOUT,
        }
    }
}

/// `kind = "spool"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpoolSettings {
    /// The directory, as `[jobs] directory` of `runner` names it.
    pub directory: PathBuf,
    /// The pool it feeds; none: the rules decide by the jobs' names.
    pub pool: Option<PoolName>,
}

/// What the settings of sources and rules contradict, each with the key to point at.
#[must_use]
pub fn faults(config: &Config) -> Vec<KeyFault> {
    let mut found = Faults {
        config,
        faults: Vec::new(),
    };
    for (name, settings) in &config.sources {
        found.source(name, settings);
    }
    found.rules();
    found.ages();
    found.faults
}

struct Faults<'a> {
    config: &'a Config,
    faults: Vec<KeyFault>,
}

impl Faults<'_> {
    /// A fault of the key at `key`; `what` follows its name.
    fn add(&mut self, key: String, what: &str) {
        let message = format!("`{key}` {what}");
        self.faults.push(KeyFault::new(key, message));
    }

    fn source(&mut self, name: &SourceName, settings: &SourceSettings) {
        let key = |key: &str| format!("sources.{name}.{key}");
        match settings {
            SourceSettings::Buildbot(settings) => self.web(name, &settings.url, settings.timeout),
            SourceSettings::Taskcluster(settings) => {
                self.web(name, &settings.url, settings.timeout);
                self.queues(name, &settings.queues);
                for queue in settings.queues.keys() {
                    if queue.split('/').filter(|part| !part.is_empty()).count() != 2 {
                        let what = format!(
                            "names the queue `{queue}`: expected `PROVISIONER/WORKER-TYPE`"
                        );
                        self.add(key("queues"), &what);
                    }
                }
                if settings.client_id.is_empty() && settings.token_file.is_some() {
                    self.add(
                        key("client_id"),
                        "is empty, and there is a `token_file`: expected the client it belongs to",
                    );
                }
                if !settings.client_id.is_empty() && settings.token_file.is_none() {
                    self.add(key("token_file"), "is not set, and there is a `client_id`: expected the file with its access token");
                }
                self.token(key("token_file"), settings.token_file.as_deref());
            }
            SourceSettings::Github(settings) => {
                self.web(name, &settings.url, settings.timeout);
                if settings.repositories.is_empty() {
                    self.add(
                        key("repositories"),
                        "is empty: expected names such as `OWNER/NAME`",
                    );
                }
                for repository in &settings.repositories {
                    if !is_repository(repository) {
                        let what = format!("has `{repository}`: expected `OWNER/NAME`");
                        self.add(key("repositories"), &what);
                    }
                }
                self.token(key("token_file"), settings.token_file.as_deref());
            }
            SourceSettings::Buildkite(settings) => {
                self.web(name, &settings.url, settings.timeout);
                self.queues(name, &settings.queues);
                if settings.token_file.is_none() {
                    self.add(
                        key("token_file"),
                        "is not set: expected the file with an agent token",
                    );
                }
                self.token(key("token_file"), settings.token_file.as_deref());
            }
            SourceSettings::Http(settings) => {
                self.web(name, &settings.url, settings.timeout);
                match &settings.pool {
                    None => self.add(
                        key("pool"),
                        "is not set: expected the pool that the number is for",
                    ),
                    Some(pool) => self.pool(key("pool"), pool),
                }
                let pointers = [
                    ("pending", &settings.pending),
                    ("running", &settings.running),
                    ("as_of", &settings.as_of),
                ];
                for (pointer_key, pointer) in pointers {
                    if !pointer.is_empty() && !pointer.starts_with('/') {
                        let what = format!(
                            "is `{pointer}`: expected a JSON pointer such as `/queue/length`"
                        );
                        self.add(key(pointer_key), &what);
                    }
                }
                self.token(key("token_file"), settings.token_file.as_deref());
            }
            SourceSettings::Exec(settings) => {
                self.timeout(name, settings.timeout);
                match settings.command.first() {
                    Some(program) if !program.is_empty() => {}
                    Some(_) | None => {
                        self.add(
                            key("command"),
                            "is empty: expected a program and its arguments",
                        );
                    }
                }
                for pool in &settings.pools {
                    self.pool(key("pools"), pool);
                }
            }
            SourceSettings::Spool(settings) => {
                if !settings.directory.is_absolute() {
                    let what = format!(
                        "is `{}`: expected an absolute path, that of `jobs.spool` of the runners",
                        settings.directory.display()
                    );
                    self.add(key("directory"), &what);
                }
                if let Some(pool) = &settings.pool {
                    self.pool(key("pool"), pool);
                }
            }
        }
    }

    fn web(&mut self, name: &SourceName, url: &str, timeout: Duration) {
        if let Err(what) = web::base(url) {
            self.add(format!("sources.{name}.url"), &what);
        }
        self.timeout(name, timeout);
    }

    fn timeout(&mut self, name: &SourceName, timeout: Duration) {
        if timeout.is_zero() {
            self.add(
                format!("sources.{name}.timeout"),
                "is zero: expected a time such as \"20s\"",
            );
        }
    }

    fn queues(&mut self, name: &SourceName, queues: &BTreeMap<String, PoolName>) {
        let key = format!("sources.{name}.queues");
        if queues.is_empty() {
            self.add(
                key.clone(),
                "is empty: expected queues and the pool each feeds, `\"QUEUE\" = \"POOL\"`",
            );
        }
        for pool in queues.values() {
            self.pool(key.clone(), pool);
        }
    }

    fn token(&mut self, key: String, file: Option<&Path>) {
        if let Some(file) = file
            && !file.is_absolute()
        {
            let what = format!("is `{}`: expected an absolute path", file.display());
            self.add(key, &what);
        }
    }

    fn pool(&mut self, key: String, pool: &PoolName) {
        let pools = &self.config.pools;
        if !pools.contains_key(pool) {
            let names = pools.keys().map(PoolName::as_str);
            let what = format!(
                "names the pool `{pool}`, which {}",
                not_configured(pool.as_str(), names)
            );
            self.add(key, &what);
        }
    }

    fn rules(&mut self) {
        let rules = &self.config.rules;
        if let Err(faults) = Rules::compile(rules) {
            for (index, what) in faults {
                self.add(format!("rules[{index}].job"), &what);
            }
        }
        for (index, rule) in rules.iter().enumerate() {
            if let Some(pool) = &rule.pool {
                self.pool(format!("rules[{index}].pool"), pool);
            }
            let sources = &self.config.sources;
            if let Some(source) = &rule.source
                && !sources.contains_key(source)
            {
                let names = sources.keys().map(SourceName::as_str);
                let what = format!(
                    "names the source `{source}`, which {}",
                    not_configured(source.as_str(), names)
                );
                self.add(format!("rules[{index}].source"), &what);
            }
        }
    }

    fn ages(&mut self) {
        let demand = &self.config.demand;
        if demand.min_age >= demand.max_age {
            self.add(
                "demand.min_age".into(),
                "is not below `demand.max_age`: no job would count",
            );
        }
        if demand.stale_after.is_zero() {
            self.add(
                "demand.stale_after".into(),
                "is zero: every answer would be too old; expected a time such as \"3m\"",
            );
        }
    }
}

/// The rest of a sentence on a name that is not there.
fn not_configured<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let near = known
        .iter()
        .map(|known| (strsim::osa_distance(name, known), *known))
        .filter(|(distance, near)| *distance <= 1 + name.len() / 5 && *distance < near.len())
        .min();
    if let Some((_, near)) = near {
        return format!("is not configured; was `{near}` meant?");
    }
    if known.is_empty() {
        return "is not configured: none is".into();
    }
    format!(
        "is not configured: expected one of `{}`",
        known.join("`, `")
    )
}

/// `OWNER/NAME`, as GitHub allows them.
fn is_repository(text: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    text.split_once('/')
        .is_some_and(|(owner, name)| plain(owner) && plain(name))
}

#[cfg(test)]
mod tests;
