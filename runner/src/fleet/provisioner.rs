//! The provisioner, as a host speaks to it: register once, then report and be told what to do.

use std::cell::RefCell;

use farm_config::secret::{self, Secret};
use reqwest::{Client, StatusCode};
use serde::{Deserialize, Serialize};

use super::assignment::{Activity, Assignment};
use super::config::FleetConfig;
use super::http::{self, Answer};
use super::notice::Notice;
use super::{CurrentJob, imds::Instance};

/// Longest answer, in bytes; an assignment has a few hundred.
const MAX_ANSWER: usize = 64 << 10;

/// What a host reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Report {
    pub(super) boot_id: String,
    pub(super) activity: Activity,
    /// Since when, RFC 3339.
    pub(super) since: jiff::Timestamp,
    pub(super) job: Option<CurrentJob>,
    /// Runs of this host, ever.
    pub(super) runs: u64,
    pub(super) spot_notice: Option<Notice>,
    pub(super) lost_job: Option<CurrentJob>,
}

/// Why the provisioner did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// No answer, or none that makes sense: it may be better the next time.
    Unreachable(String),
    /// It does not take the token.
    TokenRefused(String),
    /// It does not want this host: only a person can change that.
    Unwanted(String),
}

impl Fault {
    /// What kind it is, in a word.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::TokenRefused(_) => "token_refused",
            Self::Unwanted(_) => "unwanted",
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(why) | Self::TokenRefused(why) | Self::Unwanted(why) => {
                f.write_str(why)
            }
        }
    }
}

#[derive(Serialize)]
struct Registration<'a> {
    key: &'a str,
    boot_id: &'a str,
    runner: &'static str,
}

#[derive(Deserialize)]
struct Registered {
    host_token: String,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// The provisioner at one address, for one instance.
#[derive(Debug)]
pub(super) struct Provisioner {
    http: Client,
    host: String,
    /// Everything it was ever sent that must not come back in a message.
    sent: RefCell<Vec<Secret>>,
}

impl Provisioner {
    /// The one at `base`, a checked address.
    ///
    /// # Errors
    /// If there can be no client.
    pub(super) fn new(
        config: &FleetConfig,
        base: &str,
        instance: &Instance,
    ) -> Result<Self, String> {
        Ok(Self {
            http: http::client(config).map_err(|error| error.to_string())?,
            // A plain word: nothing in it is to be escaped.
            host: format!("{base}/v1/hosts/{}", instance.id),
            sent: RefCell::default(),
        })
    }

    /// Registers with `key`, and gets the token that speaks for this host alone. The same key gets
    /// the same token, so that a lost answer costs nothing.
    ///
    /// # Errors
    /// Why it could not.
    pub(super) async fn register(
        &self,
        join_token: &Secret,
        key: &Secret,
        boot_id: &str,
    ) -> Result<Secret, Fault> {
        self.remember(key);
        let registration = Registration {
            key: key.expose(),
            boot_id,
            runner: env!("CARGO_PKG_VERSION"),
        };
        let answer = self.post("register", join_token, &registration).await?;
        let answer = self.accepted(answer)?;
        // What the parser says may repeat what it read.
        serde_json::from_slice::<Registered>(&answer)
            .ok()
            .and_then(|registered| secret::parse(&registered.host_token))
            .ok_or_else(|| Fault::Unreachable("it answered a registration without a token".into()))
    }

    /// Reports, and is told what to do.
    ///
    /// # Errors
    /// Why it could not.
    pub(super) async fn report(
        &self,
        host_token: &Secret,
        report: &Report,
    ) -> Result<Assignment, Fault> {
        let answer = self.post("report", host_token, report).await?;
        let answer = self.accepted(answer)?;
        serde_json::from_slice::<Assignment>(&answer)
            .map(Assignment::tamed)
            .map_err(|_| {
                let shown = http::shown(&answer, &self.sent.borrow());
                Fault::Unreachable(format!("it answered no assignment: `{shown}`"))
            })
    }

    async fn post(
        &self,
        verb: &str,
        token: &Secret,
        body: &impl Serialize,
    ) -> Result<Answer, Fault> {
        self.remember(token);
        let body = serde_json::to_vec(body).expect("text and numbers are always JSON");
        let request = self
            .http
            .post(format!("{}/{verb}", self.host))
            .header(reqwest::header::AUTHORIZATION, http::bearer(token))
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(body);
        http::send(request, MAX_ANSWER)
            .await
            .map_err(Fault::Unreachable)
    }

    fn remember(&self, secret: &Secret) {
        let mut sent = self.sent.borrow_mut();
        if !sent.contains(secret) {
            sent.push(secret.clone());
        }
    }

    /// The body of an answer that is 200.
    fn accepted(&self, answer: Answer) -> Result<Vec<u8>, Fault> {
        if answer.status == StatusCode::OK {
            return Ok(answer.body);
        }
        let secrets = self.sent.borrow();
        let said = serde_json::from_slice::<Refusal>(&answer.body).map_or_else(
            |_| http::shown(&answer.body, &secrets),
            |refusal| http::shown(refusal.error.as_bytes(), &secrets),
        );
        let why = format!("it answered {}: {said}", answer.status.as_u16());
        Err(match answer.status {
            StatusCode::UNAUTHORIZED => Fault::TokenRefused(why),
            StatusCode::FORBIDDEN | StatusCode::CONFLICT => Fault::Unwanted(why),
            // 404 too: a host may be up before the provisioner has heard that it was launched.
            _ => Fault::Unreachable(why),
        })
    }
}
