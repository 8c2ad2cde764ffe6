//! InfluxDB, or what speaks its write protocol.
//!
//! A batch is one request. Only status 204 means "taken": a captive portal that answers 200 with a
//! page is not a database. 400, 413 and 422 speak of the lines: the batch is halved until the bad
//! lines are found, which are counted and left out. Everything else is tried again later.
//!
//! The v2 path goes through `influxdb2`. That client does not show response headers, so after 429
//! or 503 the next tries of the same request are made by our own client, which can obey
//! `Retry-After`.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use farm_config::secret::{self, Secret};
use farm_events::Record;
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER};
use tracing::{info, warn};

use super::{Delivery, Failure, Sink, causes};
use crate::config::{InfluxApi, InfluxConfig};
use crate::line;

/// Most bytes read of an answer. InfluxDB says what is wrong in far less.
const LONGEST_ANSWER: usize = 4 << 10;
/// Most bytes of an answer that go into the log.
const LONGEST_QUOTE: usize = 200;
/// Most steps of a request through `influxdb2`, which reads answers of any length: each step takes
/// at most a few hundred kilobytes, and an honest exchange has about ten.
const MOST_STEPS: u32 = 128;
/// Longest time to make a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections are closed before servers and firewalls do it unseen.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Writes line protocol.
#[derive(Debug)]
pub(crate) struct Influx {
    config: InfluxConfig,
    /// As read from `token_file`; none before the first request, or without such a file.
    secret: Option<Secret>,
    http: reqwest::Client,
    v2: Option<influxdb2::Client>,
    /// Whether the last answer was 429 or 503.
    overloaded: bool,
}

/// What a request came to.
#[derive(Debug)]
enum Answer {
    Taken,
    /// The server finds fault with the lines.
    BadLines(String),
    /// The server does not accept the token.
    Unauthorized(String),
    /// Nothing for now.
    Failed(Failure),
}

impl Influx {
    pub(crate) fn new(config: InfluxConfig) -> Result<Self, reqwest::Error> {
        let http = http(&config).build()?;
        Ok(Self {
            config,
            secret: None,
            http,
            v2: None,
            overloaded: false,
        })
    }

    /// Reads the token again. Returns whether it is another one than before.
    fn renew_secret(&mut self) -> Result<bool, Failure> {
        let Some(path) = &self.config.token_file else {
            return Ok(false);
        };
        let secret = Some(secret::read(path).map_err(|error| Failure::from(causes(&error)))?);
        let is_new = secret != self.secret;
        if is_new {
            self.secret = secret;
            self.v2 = None;
        }
        Ok(is_new)
    }

    /// Sends `lines`; with another token, if the first is refused and the file has a new one.
    async fn send(&mut self, lines: &[String]) -> Answer {
        if self.secret.is_none()
            && let Err(failure) = self.renew_secret()
        {
            return Answer::Failed(failure);
        }
        let answer = self.request(lines).await;
        let Answer::Unauthorized(message) = answer else {
            return answer;
        };
        match self.renew_secret() {
            Ok(true) => {
                info!(
                    url = self.config.url,
                    "token refused, trying the new one in the token file"
                );
                match self.request(lines).await {
                    Answer::Unauthorized(message) => Answer::Failed(message.into()),
                    answer => answer,
                }
            }
            Ok(false) => Answer::Failed(message.into()),
            Err(failure) => Answer::Failed(failure),
        }
    }

    async fn request(&mut self, lines: &[String]) -> Answer {
        let body = lines.join("\n");
        let (answer, status) = match self.config.api {
            InfluxApi::V2 if !self.overloaded => self.write_by_client(body).await,
            InfluxApi::V1 | InfluxApi::V2 => self.write_by_ourselves(body).await,
        };
        self.overloaded = status.is_some_and(is_overload);
        answer
    }

    async fn write_by_client(&mut self, body: String) -> (Answer, Option<StatusCode>) {
        let client = match &mut self.v2 {
            Some(client) => client,
            none => {
                let token = self.secret.as_ref().map_or("", Secret::expose);
                let client = influxdb2::ClientBuilder::with_builder(
                    http(&self.config),
                    self.config.url.as_str(),
                    self.config.org.as_str(),
                    token,
                )
                .build();
                match client {
                    Ok(client) => none.insert(client),
                    Err(error) => return (Answer::Failed(causes(&error).into()), None),
                }
            }
        };
        let request = client.write_line_protocol(&self.config.org, &self.config.bucket, body);
        match in_steps(MOST_STEPS, request).await {
            None => {
                let message = "the answer does not end: is this a database?".to_owned();
                (Answer::Failed(message.into()), None)
            }
            Some(Ok(())) => (Answer::Taken, Some(StatusCode::NO_CONTENT)),
            Some(Err(influxdb2::RequestError::Http { status, text })) => {
                (self.judge(status, &text, None), Some(status))
            }
            Some(Err(influxdb2::RequestError::ReqwestProcessing { source })) => {
                (Answer::Failed(causes(&source.without_url()).into()), None)
            }
            Some(Err(
                error @ (influxdb2::RequestError::Serializing { .. }
                | influxdb2::RequestError::Deserializing { .. }),
            )) => (Answer::Failed(causes(&error).into()), None),
        }
    }

    async fn write_by_ourselves(&self, body: String) -> (Answer, Option<StatusCode>) {
        match self.exchange(body).await {
            Ok((status, text, retry_after)) => {
                (self.judge(status, &text, retry_after), Some(status))
            }
            Err(error) => (Answer::Failed(causes(&error.without_url()).into()), None),
        }
    }

    async fn exchange(
        &self,
        body: String,
    ) -> Result<(StatusCode, String, Option<Duration>), reqwest::Error> {
        let url = self.config.url.trim_end_matches('/');
        let request = match self.config.api {
            InfluxApi::V1 => {
                let request = self
                    .http
                    .post(format!("{url}/write"))
                    .query(&[("db", self.config.database.as_str()), ("precision", "ns")]);
                match &self.secret {
                    Some(secret) => request.basic_auth(&self.config.user, Some(secret.expose())),
                    None => request,
                }
            }
            InfluxApi::V2 => {
                let request = self.http.post(format!("{url}/api/v2/write")).query(&[
                    ("bucket", self.config.bucket.as_str()),
                    ("org", &self.config.org),
                    ("precision", "ns"),
                ]);
                match self.secret.as_ref().and_then(authorization) {
                    Some(header) => request.header(AUTHORIZATION, header),
                    None => request,
                }
            }
        };
        let mut response = request.body(body).send().await?;
        let (status, retry_after) = (response.status(), retry_after(&response));
        let mut text = Vec::new();
        while text.len() < LONGEST_ANSWER
            && let Some(chunk) = response.chunk().await?
        {
            text.extend_from_slice(&chunk[..chunk.len().min(LONGEST_ANSWER - text.len())]);
        }
        Ok((
            status,
            String::from_utf8_lossy(&text).into_owned(),
            retry_after,
        ))
    }

    fn judge(&self, status: StatusCode, text: &str, retry_after: Option<Duration>) -> Answer {
        let message = format!("HTTP {}: {}", status.as_u16(), self.quote(text));
        match status.as_u16() {
            204 => Answer::Taken,
            // A page comes from something in between, which knows nothing of our lines.
            400 | 413 | 422 if !text.trim_start().starts_with('<') => Answer::BadLines(message),
            401 | 403 => Answer::Unauthorized(message),
            300..=399 => Answer::Failed(
                format!(
                    "HTTP {}: redirects are not followed, check `url`",
                    status.as_u16()
                )
                .into(),
            ),
            _ => Answer::Failed(Failure {
                message,
                retry_after,
            }),
        }
    }

    /// What the server said, fit for a log line.
    fn quote(&self, text: &str) -> String {
        let end = text.floor_char_boundary(LONGEST_ANSWER);
        let text = match &self.secret {
            Some(secret) => secret.redact(&text[..end]),
            None => text[..end].to_owned(),
        };
        let words =
            text.split(|character: char| character.is_whitespace() || character.is_control());
        let mut line = words
            .filter(|word| !word.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        line.truncate(line.floor_char_boundary(LONGEST_QUOTE));
        if line.is_empty() {
            "no explanation".to_owned()
        } else {
            line
        }
    }
}

impl Sink for Influx {
    async fn deliver(&mut self, records: &[Record]) -> Delivery {
        let lines: Vec<String> = records.iter().map(line::to_line).collect();
        let mut delivery = Delivery::default();
        // Pieces still to send, the first on top.
        let mut pieces = vec![lines.as_slice()];
        while let Some(piece) = pieces.pop() {
            match self.send(piece).await {
                Answer::Taken => delivery.settled += piece.len(),
                Answer::BadLines(message) => match piece {
                    [line] => {
                        warn!(
                            url = self.config.url,
                            message, line, "line refused, going on without it"
                        );
                        delivery.settled += 1;
                        delivery.rejected += 1;
                    }
                    _ => {
                        let (first, second) = piece.split_at(piece.len() / 2);
                        pieces.extend([second, first]);
                    }
                },
                Answer::Unauthorized(message) => {
                    delivery.failure = Some(message.into());
                    return delivery;
                }
                Answer::Failed(failure) => {
                    delivery.failure = Some(failure);
                    return delivery;
                }
            }
        }
        delivery
    }
}

fn is_overload(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    )
}

/// Neither redirects nor proxies of the environment: the token goes to `url` and nowhere else.
fn http(config: &InfluxConfig) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .timeout(config.timeout)
        .connect_timeout(config.timeout.min(CONNECT_TIMEOUT))
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(1)
}

fn authorization(secret: &Secret) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("Token {}", secret.expose())).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// `Retry-After` in seconds. Its other form, a date, would need the server's clock to be right.
fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let seconds = response
        .headers()
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

/// What `future` gives, unless it goes on for more than `most` steps.
async fn in_steps<F: Future>(most: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut steps = 0;
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if steps >= most => Poll::Ready(None),
        Poll::Pending => {
            steps += 1;
            Poll::Pending
        }
    })
    .await
}

#[cfg(test)]
mod tests;
