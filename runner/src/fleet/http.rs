//! Requests that are bounded in time and size, to servers that may be slow or lie.

use std::time::Duration;

use farm_config::secret::Secret;
use reqwest::header::HeaderValue;
use reqwest::{Client, RequestBuilder, StatusCode};

use super::config::FleetConfig;

/// How long a connection may lie idle: longer than the usual time between two reports, so that a
/// host keeps one connection and not one for each.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// Longest text of a server that gets into a message, in characters.
const MAX_SHOWN: usize = 200;

/// The value of a header that holds a secret and shows it nowhere.
pub(super) fn sensitive(text: &str) -> HeaderValue {
    let mut header = HeaderValue::from_str(text).expect("a secret fits into a header");
    header.set_sensitive(true);
    header
}

/// `Authorization: Bearer …`.
pub(super) fn bearer(token: &Secret) -> HeaderValue {
    sensitive(&format!("Bearer {}", token.expose()))
}

/// A server's answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
}

/// What is said of an answer that is not the one hoped for. The body of a server may hold whatever
/// was sent to it, so it is shown without `secrets`.
pub(super) fn shown(body: &[u8], secrets: &[Secret]) -> String {
    let mut text = String::from_utf8_lossy(body).into_owned();
    for secret in secrets {
        text = secret.redact(&text);
    }
    text.chars()
        .take(MAX_SHOWN)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// A client for the servers of `config`. It follows no redirect and no proxy of the environment:
/// what it sends goes where it was told and nowhere else.
///
/// # Errors
/// If the system has no place for it.
pub(super) fn client(config: &FleetConfig) -> Result<Client, reqwest::Error> {
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .timeout(config.request_timeout)
        .connect_timeout(config.connect_timeout.min(config.request_timeout))
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(1)
        .build()
}

/// Sends a request and reads at most `limit` bytes of its answer.
///
/// # Errors
/// Why there is no answer, in words.
pub(super) async fn send(request: RequestBuilder, limit: usize) -> Result<Answer, String> {
    let mut response = request.send().await.map_err(|error| causes(&error))?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| causes(&error))? {
        if body.len() + chunk.len() > limit {
            return Err(format!("the answer is longer than {limit} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, body })
}

fn causes(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        // What reqwest says of it names the address and not the cause.
        return "no answer in time".into();
    }
    crate::host::chain(error)
}

#[cfg(test)]
mod tests {
    use farm_config::secret;

    use super::*;

    #[test]
    fn a_secret_shows_nowhere() {
        let secret = secret::parse("s3cr3t").unwrap();
        let all = format!("{:?} {:?}", bearer(&secret), sensitive(secret.expose()));
        assert!(!all.contains("s3cr3t"), "{all}");
        let shown = shown(b"no s3cr3t\nhere", std::slice::from_ref(&secret));
        assert_eq!(shown, "no [token]\u{fffd}here");
    }
}
