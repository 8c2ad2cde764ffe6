//! What may be written in `[sources.NAME]`, one struct for each kind.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::PoolName;

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
    pub queues: std::collections::BTreeMap<String, PoolName>,
    /// File with `CLIENT_ID ACCESS_TOKEN`; none: anonymous.
    pub credentials_file: Option<PathBuf>,
    /// Longest wait for one answer.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for TaskclusterSettings {
    fn default() -> Self {
        Self {
            url: String::new(),
            queues: Default::default(),
            credentials_file: None,
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
    /// File with the token.
    pub token_file: Option<PathBuf>,
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
    /// Longest run; then it is ended.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for ExecSettings {
    fn default() -> Self {
        Self {
            command: Vec::new(),
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
