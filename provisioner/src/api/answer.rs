//! What is answered: JSON always, and when refused a sentence that tells no secret.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::debug;

/// Why a call was not done. A refusal ends the connection: what follows on it is not trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    message: Cow<'static, str>,
    retry_after: Option<Duration>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            message: message.into(),
            retry_after: None,
        }
    }

    pub(super) fn bad(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Right, but not now.
    pub(super) fn later(message: impl Into<Cow<'static, str>>, after: Duration) -> Self {
        Self {
            retry_after: Some(after),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }

    /// One call too many.
    pub(super) fn too_many(wait: Duration) -> Self {
        Self {
            retry_after: Some(wait),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too many calls: expected none before `Retry-After`",
            )
        }
    }

    pub(super) fn after(self, wait: Duration) -> Self {
        Self {
            retry_after: Some(wait),
            ..self
        }
    }
}

#[derive(Serialize)]
struct Said<'a> {
    error: &'a str,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let said = Said {
            error: &self.message,
        };
        let mut response = (self.status, Json(said)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if let Some(wait) = self.retry_after {
            // Whole seconds, at least one: a wait of zero is no wait.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}

pub(super) async fn no_such_route() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "there is nothing here")
}

pub(super) async fn wrong_method() -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this is not done by that method",
    )
}

/// Size of a piece of a streamed answer; four may wait for a slow reader.
const PIECE: usize = 64 << 10;
const PIECES: usize = 4;

/// Large answers being written at the same time: each has a thread and what it writes about.
#[derive(Clone, Debug)]
pub(super) struct Writers(Arc<Semaphore>);

impl Writers {
    pub(super) fn new(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count)))
    }

    /// A place to write a large answer.
    pub(super) async fn place(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.0)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed")
    }
}

/// What `make` makes, as JSON, made and written beside the calls of others, piece by piece: the text
/// is never in memory as a whole. If the reader goes away or stands still, the connection ends, and
/// with it the writing.
pub(super) fn streamed<T: Serialize>(
    make: impl FnOnce() -> T + Send + 'static,
    place: OwnedSemaphorePermit,
) -> Response {
    let (pieces, mut written) = mpsc::channel::<Result<Bytes, io::Error>>(PIECES);
    tokio::task::spawn_blocking(move || {
        let _place = place;
        let mut writer = io::BufWriter::with_capacity(PIECE, Pieces(pieces));
        let done = serde_json::to_writer(&mut writer, &make())
            .map_err(io::Error::from)
            .and_then(|()| writer.flush());
        if let Err(error) = done {
            debug!(%error, "an answer was not written to its end");
            // Should somebody read still: he must not take the beginning for all of it. That nobody
            // does is the usual reason.
            writer.get_ref().0.blocking_send(Err(error)).ok();
        }
    });
    let stream = futures_util::stream::poll_fn(move |context| written.poll_recv(context));
    let mut response = Body::from_stream(stream).into_response();
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

struct Pieces(mpsc::Sender<Result<Bytes, io::Error>>);

impl Write for Pieces {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(piece)))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
