//! Connections: how many there may be, how slow they may be, and how they end.
//!
//! The limits hold before anything is known of who calls. A head must arrive within its time, an
//! answer must be taken within its own, and one address has a share of the connections, so that
//! whoever opens many and says little keeps out nobody but himself.

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::header::EXPECT;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::answer::Refusal;
use super::body::next_frame;

/// Connections the system keeps for us until they are accepted: hosts of a whole fleet at once.
const BACKLOG: u32 = 4096;
/// Wait before accepting is tried again when the system has no place for a connection.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// What is read of a body that nobody wanted, so that the answer arrives: a connection that is closed
/// with unread bytes is reset, and the answer lost with it.
const DISCARDED: usize = 1 << 20;
/// For so long.
const DISCARDING: Duration = Duration::from_secs(2);

/// Limits of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// At once. A connection costs some 10 KiB.
    pub connections: usize,
    /// At once from one address; those from the address of this machine share all.
    pub connections_per_address: usize,
    /// From the begin of a connection, or the answer before, to the end of a head: also how long a
    /// connection may lie idle.
    pub head: Duration,
    /// Longest head in bytes.
    pub head_bytes: usize,
    /// From the begin of a body to its end.
    pub body: Duration,
    /// From the end of a head to the begin of its answer, the body included.
    pub request: Duration,
    /// A reader who takes nothing of an answer for so long is cut off.
    pub write: Duration,
    /// From the begin of the shutdown to its end, whoever is still there.
    pub shutdown: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Twenty seconds of all hosts' questions, were each as slow as it may be.
            connections: 4096,
            connections_per_address: 1024,
            head: Duration::from_secs(10),
            head_bytes: 16 << 10,
            body: Duration::from_secs(10),
            request: Duration::from_secs(20),
            write: Duration::from_secs(10),
            shutdown: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// The default, or fewer connections if this process may not open so many files: half of those are
    /// left for the store, the cloud and the sources of demand.
    #[must_use]
    pub fn of_this_process() -> Self {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let default = Self::default();
        let connections = usize::try_from(files / 2)
            .unwrap_or(usize::MAX)
            .clamp(1, default.connections);
        Self {
            connections,
            connections_per_address: default.connections_per_address.min(connections.div_ceil(2)),
            ..default
        }
    }
}

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// Listens at `address`.
///
/// # Errors
/// If the address is taken, or not of this machine.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A provisioner that starts anew must not wait for connections of the old one to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers calls at `listener` until `shutdown`; then takes no further connection, answers what was
/// asked, and returns.
pub async fn serve(
    router: Router,
    listener: TcpListener,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(limits.connections));
    let addresses = Arc::new(Addresses::default());
    let mut is_full_said = false;
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let (stream, peer, place) = match accepted {
            Ok(accepted) => accepted,
            // The caller is gone already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                if !std::mem::replace(&mut is_full_said, true) {
                    warn!(%error, "a connection cannot be accepted; it is tried again, and said once");
                }
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Some(share) = addresses.enter(&stream, peer, limits.connections_per_address) else {
            debug!(%peer, "too many connections from one address: one is closed");
            continue;
        };
        let connection = connection(&router, stream, peer, &limits);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%peer, %error, "a connection ended badly");
            }
            drop((place, share));
        });
    }
    drop(listener);
    if timeout(limits.shutdown, graceful.shutdown()).await.is_err() {
        warn!(
            limit = ?limits.shutdown,
            "calls were not answered in time when the HTTP API was shut down; they are dropped"
        );
    }
}

/// A connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, IpAddr, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places)
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    let (stream, peer) = listener.accept().await?;
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%peer, %error, "answers on a connection may be slow");
    }
    // A listener on IPv6 takes IPv4 too, and shows it so.
    Ok((stream, peer.ip().to_canonical(), place))
}

type Connection = http1::Connection<TokioIo<Patient>, Answerer>;

/// One connection: its limits, and what answers on it.
fn connection(router: &Router, stream: TcpStream, peer: IpAddr, limits: &Limits) -> Connection {
    let answerer = Answerer {
        service: TowerToHyperService::new(router.clone()),
        peer,
        body_limit: limits.body,
        limit: limits.request,
    };
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.head_bytes)
        .serve_connection(TokioIo::new(Patient::new(stream, limits.write)), answerer)
}

/// Answers the calls of one connection.
#[derive(Clone, Debug)]
struct Answerer {
    service: TowerToHyperService<Router>,
    peer: IpAddr,
    body_limit: Duration,
    limit: Duration,
}

impl Service<Request<Incoming>> for Answerer {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let answerer = self.clone();
        Box::pin(async move { Ok(answerer.answer(request).await) })
    }
}

impl Answerer {
    /// Answers one call, in time.
    async fn answer(&self, request: Request<Incoming>) -> Response {
        // Who asks first does not send what is refused.
        let asks_first = request.headers().contains_key(EXPECT);
        let (back, unread) = oneshot::channel();
        let mut request = request.map(|body| {
            Body::new(Lent {
                body: Some(Body::new(body)),
                back: Some(back),
                limit: self.body_limit,
                until: None,
            })
        });
        request.extensions_mut().insert(Peer(self.peer));
        let answered = timeout(self.limit, self.service.call(request)).await;
        let response = answered.unwrap_or_else(|_| {
            let refusal = Refusal::later("not answered in time", Duration::from_secs(10));
            Ok(refusal.into_response())
        });
        let response = response.unwrap_or_else(|never| match never {});
        if let Ok(body) = unread.await
            && !asks_first
            && response.status() != StatusCode::REQUEST_TIMEOUT
        {
            discard(body).await;
        }
        response
    }
}

/// Reads what is left of a body, within limits.
async fn discard(mut body: Body) {
    let read = async {
        let mut left = DISCARDED;
        while let Some(Ok(frame)) = next_frame(&mut body).await {
            let length = frame.data_ref().map_or(0, |data| data.len());
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Whoever is slower has no answer, and the next call on another connection.
    timeout(DISCARDING, read).await.ok();
}

/// That a body did not arrive in time.
#[derive(Debug, thiserror::Error)]
#[error("the body did not arrive within {0:?}")]
pub(super) struct TooSlow(pub(super) Duration);

/// A body that must arrive in time, and comes back when whoever has it lets it go.
struct Lent {
    body: Option<Body>,
    back: Option<oneshot::Sender<Body>>,
    limit: Duration,
    /// Runs from the first look at it.
    until: Option<Pin<Box<Sleep>>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(body), Some(back)) = (self.body.take(), self.back.take()) {
            // If nobody waits for it, the connection is gone.
            back.send(body).ok();
        }
    }
}

impl HttpBody for Lent {
    type Data = axum::body::Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let limit = self.limit;
        let until = self.until.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(until.as_mut().poll(context));
        Poll::Ready(Some(Err(TooSlow(limit).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

/// How many connections each address has.
#[derive(Debug, Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

/// The place of one connection among those of its address.
#[derive(Debug)]
struct Share {
    of: Arc<Addresses>,
    address: Option<IpAddr>,
}

impl Addresses {
    /// A place for a connection; `None` if its address has too many.
    fn enter(self: &Arc<Self>, stream: &TcpStream, peer: IpAddr, most: usize) -> Option<Share> {
        // Hosts of the local cloud, and a proxy on this machine, all come from its own address.
        let is_ours = stream
            .local_addr()
            .is_ok_and(|local| local.ip().to_canonical() == peer);
        let address = (!is_ours).then_some(peer);
        if let Some(address) = address {
            let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(address).or_default();
            if *count >= most {
                return None;
            }
            *count += 1;
        }
        Some(Share {
            of: Arc::clone(self),
            address,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some(address) = self.address else {
            return;
        };
        let mut counts = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&address);
            }
        }
    }
}

/// A stream whose reader may not stand still.
#[derive(Debug)]
struct Patient {
    stream: TcpStream,
    patience: Duration,
    /// Runs while something is to be written and cannot be.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        Self {
            stream,
            patience,
            stalled: None,
        }
    }

    /// `written`, or that it takes too long.
    fn in_time<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.in_time(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_shutdown(context);
        self.in_time(context, closed)
    }
}
