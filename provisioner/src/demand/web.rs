//! Asking a web server, bounded in time and bytes, without telling a secret to anybody else.
//!
//! A request goes to the address of the settings and nowhere else: no proxy of the environment, and a
//! redirect is followed only on the same server. Errors name neither tokens nor queries.

use std::time::Duration;

use farm_config::secret::{self, Secret};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::header::{AUTHORIZATION, DATE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, StatusCode, Url};
use serde::de::DeserializeOwned;

use super::SourceError;

/// Most bytes read of an answer. A Buildbot request takes 110 bytes, so this is 300,000 of them.
pub(super) const LONGEST_ANSWER: usize = 32 << 20;
/// Most bytes of an answer that go into a message.
const LONGEST_QUOTE: usize = 200;
/// Longest time to make a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections are closed before servers and firewalls do it unseen. Longer than the usual
/// interval, so that each pass finds the connection of the one before.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// Redirects followed on the same server: a repository that was renamed is one.
const MOST_REDIRECTS: usize = 3;

/// A web server.
#[derive(Debug)]
pub(super) struct Web {
    client: Client,
    base: Url,
}

/// What is asked.
#[derive(Debug, Default)]
pub(super) struct Ask<'a> {
    /// Path and query, added to the base.
    pub(super) path: &'a str,
    /// Value of `Authorization`.
    pub(super) authorization: Option<HeaderValue>,
    /// Further headers.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// Sent as JSON by POST; none: GET.
    pub(super) body: Option<String>,
    /// Never to be in a message, should the server repeat it.
    pub(super) secret: Option<&'a Secret>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Vec<u8>,
    secret: Option<Secret>,
}

impl Web {
    /// The server at `url`, waiting for each answer as long as `timeout`.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub(super) fn new(url: &str, timeout: Duration) -> Result<Self, String> {
        let base = base(url)?;
        let origin = base.origin();
        let policy = Policy::custom(move |attempt| {
            if attempt.previous().len() <= MOST_REDIRECTS && attempt.url().origin() == origin {
                attempt.follow()
            } else {
                attempt.stop()
            }
        });
        let client = Client::builder()
            .redirect(policy)
            .no_proxy()
            .referer(false)
            .user_agent(concat!("farmhand-provisioner/", env!("CARGO_PKG_VERSION")))
            .timeout(timeout)
            .connect_timeout(timeout.min(CONNECT_TIMEOUT))
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(1)
            .build()
            .map_err(|error| causes(&error.without_url()))?;
        Ok(Self { client, base })
    }

    /// The address of `path` on this server; with an empty one the address of the settings, as it is.
    pub(super) fn url(&self, path: &str) -> Result<Url, SourceError> {
        if path.is_empty() {
            return Ok(self.base.clone());
        }
        let base = self.base.as_str().trim_end_matches('/');
        Url::parse(&format!("{base}{path}"))
            .map_err(|error| SourceError::NotUnderstood(format!("no address: {error}")))
    }

    /// Asks, and returns whatever the server answers.
    pub(super) async fn ask(&self, ask: Ask<'_>) -> Result<Reply, SourceError> {
        let method = if ask.body.is_some() {
            Method::POST
        } else {
            Method::GET
        };
        let mut request = self.client.request(method, self.url(ask.path)?);
        if let Some(mut authorization) = ask.authorization {
            authorization.set_sensitive(true);
            request = request.header(AUTHORIZATION, authorization);
        }
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        if let Some(body) = ask.body {
            request = request
                .header("content-type", "application/json")
                .body(body);
        }
        let unavailable = |error: reqwest::Error| {
            let what = if error.is_timeout() {
                "no answer in time".to_owned()
            } else {
                causes(&error.without_url())
            };
            SourceError::Unavailable(format!("{}: {what}", self.host()))
        };
        let again = request.try_clone();
        let mut answer = request.send().await;
        // A connection that was kept open may have been closed by the other side meanwhile, as by a
        // master that was restarted. A question without consequences is asked once more.
        if let (Err(error), Some(again)) = (&answer, again)
            && is_broken_off(error)
        {
            answer = again.send().await;
        }
        let mut response = answer.map_err(unavailable)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
            if body.len() + chunk.len() > LONGEST_ANSWER {
                let message = format!(
                    "{} answers with more than {LONGEST_ANSWER} bytes: expected less",
                    self.host()
                );
                return Err(SourceError::NotUnderstood(message));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Reply {
            status,
            headers,
            body,
            secret: ask.secret.cloned(),
        })
    }

    /// Asks, and takes nothing but success for an answer.
    pub(super) async fn get(&self, ask: Ask<'_>) -> Result<Reply, SourceError> {
        self.ask(ask).await?.successful()
    }

    /// Host and port, for messages.
    fn host(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        match self.base.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }
}

impl Reply {
    /// The reply, if it is one of success.
    pub(super) fn successful(self) -> Result<Self, SourceError> {
        if self.status.is_success() {
            return Ok(self);
        }
        Err(self.failure())
    }

    /// What a reply that is no success says.
    pub(super) fn failure(&self) -> SourceError {
        let status = self.status.as_u16();
        let message = format!("HTTP {status}: {}", self.quote());
        match status {
            401 | 403 => SourceError::NotAllowed(message),
            300..=399 => {
                let to = self.headers.get(LOCATION).map(HeaderValue::to_str);
                let to = to.and_then(Result::ok).map(Url::parse);
                let host = match &to {
                    Some(Ok(url)) => url.host_str().unwrap_or("another address"),
                    Some(Err(_)) | None => "another address",
                };
                SourceError::Unavailable(format!(
                    "HTTP {status}: it sends us to {host}, where we do not go; check `url`"
                ))
            }
            404 | 405 | 410 => {
                SourceError::NotUnderstood(format!("{message}; is `url` the right address?"))
            }
            _ => SourceError::Unavailable(message),
        }
    }

    /// When it was so, by the server's clock; `now` if it does not say.
    pub(super) fn as_of(&self, now: Timestamp) -> Timestamp {
        let date = self.headers.get(DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| rfc2822::parse(date).ok());
        date.map_or(now, |date| date.timestamp())
    }

    /// The body as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self, of: &str) -> Result<T, SourceError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let error = self.harmless(&error.to_string());
            SourceError::NotUnderstood(format!("not what {of} answers: {error}"))
        })
    }

    /// A header as text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What the server said, on one line. JSON that has a `message` says that.
    pub(super) fn quote(&self) -> String {
        let end = self.body.len().min(LONGEST_QUOTE * 20);
        let text = String::from_utf8_lossy(&self.body[..end]);
        let message = serde_json::from_str::<serde_json::Value>(&text).ok();
        let message = message.as_ref().and_then(|json| {
            let text = json.get("message").or_else(|| json.get("error"))?;
            text.as_str()
        });
        let line = self.harmless(message.unwrap_or(&text));
        if line.is_empty() {
            "no explanation".to_owned()
        } else {
            line
        }
    }

    fn harmless(&self, text: &str) -> String {
        match &self.secret {
            Some(secret) => one_line(&secret.redact(text)),
            None => one_line(text),
        }
    }
}

/// Whether a connection ended before anything came back on it.
fn is_broken_off(error: &reqwest::Error) -> bool {
    error.is_request() && !error.is_timeout() && !error.is_connect()
}

/// The address a source is asked at.
///
/// # Errors
/// What is wrong with it.
pub(super) fn base(url: &str) -> Result<Url, String> {
    if url.is_empty() {
        return Err("is empty: expected an address such as `http://ci.example:8010`".into());
    }
    let parsed = Url::parse(url).map_err(|error| {
        format!("is `{url}`, which is no address ({error}): expected `http://HOST:PORT`")
    })?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(
            "has a user or password in it: expected none, a token belongs into a file of its own"
                .into(),
        );
    }
    match parsed.scheme() {
        "http" => {}
        "https" if cfg!(feature = "tls") => {}
        "https" => {
            return Err(format!(
                "is `{url}`, and this program was built without TLS: build it with `--features tls`, or use `http://`"
            ));
        }
        _ => return Err(format!("is `{url}`: expected `http://` or `https://`")),
    }
    if parsed.host_str().is_none_or(str::is_empty) {
        return Err(format!("is `{url}`: expected a host after `://`"));
    }
    Ok(parsed)
}

/// The token in a file, read at each request so that a new one needs no restart.
pub(super) fn token(path: Option<&std::path::Path>) -> Result<Option<Secret>, SourceError> {
    let secret = path.map(secret::read).transpose();
    secret.map_err(|error| SourceError::NotAllowed(causes(&error)))
}

/// `Authorization: SCHEME TOKEN`.
pub(super) fn authorization(scheme: &str, secret: Option<&Secret>) -> Option<HeaderValue> {
    let secret = secret?;
    // A secret is printable ASCII.
    HeaderValue::from_str(&format!("{scheme} {}", secret.expose())).ok()
}

/// An error with its causes, on one line.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    one_line(&text)
}

/// A text that was said by somebody else, fit for a message: one line, and not a long one.
pub(super) fn one_line(text: &str) -> String {
    let words = text.split(|character: char| character.is_whitespace() || character.is_control());
    let mut line = words
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    line.truncate(line.floor_char_boundary(LONGEST_QUOTE));
    line
}
