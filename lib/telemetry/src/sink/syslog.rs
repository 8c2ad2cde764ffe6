//! The ways to a syslog receiver: UDP, TCP with octet counting, and the local socket.
//!
//! Syslog has no answer, so "taken" is what the transport can tell. The local socket: the receiver
//! has it. TCP: our kernel has it; when a connection turns out to have ended, the last batch
//! written to it goes again, since the receiver may not have read it. UDP: it was sent, and nobody
//! has refused it so far.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use farm_events::Record;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket, UnixDatagram};
use tokio::time::timeout;

use super::{Delivery, Failure, Sink};
use crate::config::SyslogConfig;
use crate::syslog::{Speaker, format_5424, format_local};

/// Longest UDP message, below what every receiver must take in one piece (RFC 5426 advises 1,024
/// at the least, RFC 5424 says "should" of 2,048).
const LONGEST_UDP: usize = 1023;
/// Longest message by TCP or to `/dev/log`: rsyslog and journald take 8 KiB and more by default.
const LONGEST_STREAM: usize = 8000;
/// Longest time for one step: a lookup and connection, or writing a batch.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// UDP messages in one go, and the pause after them: 5,000 a second. The usual receive buffer of
/// 208 KiB holds about 250, and what does not fit is lost without a word.
const BURST: usize = 50;
const BURST_PAUSE: Duration = Duration::from_millis(10);

/// Where a receiver listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Udp(String),
    Tcp(String),
    Unix(PathBuf),
}

/// A text that is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a syslog address: expected `udp://HOST:PORT`, `tcp://HOST:PORT` or `unix:///dev/log`"
)]
pub(crate) struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = match text.split_once("://") {
            Some(("udp", host)) => is_host_and_port(host).then(|| Self::Udp(host.to_owned())),
            Some(("tcp", host)) => is_host_and_port(host).then(|| Self::Tcp(host.to_owned())),
            Some(("unix", path)) => path.starts_with('/').then(|| Self::Unix(path.into())),
            _ => None,
        };
        address.ok_or_else(|| AddressError(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(host) => write!(f, "udp://{host}"),
            Self::Tcp(host) => write!(f, "tcp://{host}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

fn is_host_and_port(text: &str) -> bool {
    if text.parse::<SocketAddr>().is_ok() {
        return true;
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !host.is_empty() && host.bytes().all(named) && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// Sends syslog lines.
#[derive(Debug)]
pub(crate) struct Syslog {
    speaker: Speaker,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Udp {
        host: String,
        socket: Option<UdpSocket>,
    },
    Tcp {
        host: String,
        connection: Option<TcpStream>,
        unread: Vec<u8>,
    },
    Unix {
        path: PathBuf,
        socket: Option<UnixDatagram>,
    },
}

impl Syslog {
    pub(crate) fn new(config: &SyslogConfig) -> Result<Self, AddressError> {
        let way = match config.address.parse()? {
            Address::Udp(host) => Way::Udp { host, socket: None },
            Address::Tcp(host) => Way::Tcp {
                host,
                connection: None,
                unread: Vec::new(),
            },
            Address::Unix(path) => Way::Unix { path, socket: None },
        };
        let speaker = Speaker {
            facility: config.facility,
            app_name: config.app_name.clone(),
            process_id: std::process::id(),
        };
        Ok(Self { speaker, way })
    }

    fn line(&self, record: &Record) -> String {
        match self.way {
            Way::Udp { .. } => format_5424(record, &self.speaker, LONGEST_UDP),
            Way::Tcp { .. } => format_5424(record, &self.speaker, LONGEST_STREAM),
            Way::Unix { .. } => format_local(record, &self.speaker, LONGEST_STREAM),
        }
    }
}

impl Sink for Syslog {
    async fn deliver(&mut self, records: &[Record]) -> Delivery {
        let lines: Vec<String> = records.iter().map(|record| self.line(record)).collect();
        match &mut self.way {
            Way::Udp { host, socket } => send_udp(host, socket, &lines).await,
            Way::Tcp {
                host,
                connection,
                unread,
            } => match send_tcp(host, connection, unread, &lines).await {
                Ok(()) => Delivery::all(lines.len()),
                Err(error) => {
                    *connection = None;
                    Delivery::failed(0, error)
                }
            },
            Way::Unix { path, socket } => send_unix(path, socket, &lines).await,
        }
    }
}

/// Within [`STEP_TIMEOUT`].
async fn step<T>(what: &str, future: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
    match timeout(STEP_TIMEOUT, future).await {
        Ok(result) => result.map_err(|error| format!("{what}: {error}").into()),
        Err(_) => Err(format!("{what}: not done within {STEP_TIMEOUT:?}").into()),
    }
}

async fn send_udp(host: &str, socket: &mut Option<UdpSocket>, lines: &[String]) -> Delivery {
    let connected = match socket {
        Some(connected) => connected,
        None => match step(host, connect_udp(host)).await {
            Ok(new) => socket.insert(new),
            Err(failure) => return Delivery::failed(0, failure),
        },
    };
    for (index, line) in lines.iter().enumerate() {
        let sent = step(host, async {
            connected.send(line.as_bytes()).await?;
            // A port without listener on this host is reported at once.
            connected.take_error()?.map_or(Ok(()), Err)
        });
        if let Err(failure) = sent.await {
            *socket = None;
            return Delivery::failed(index, failure);
        }
        if (index + 1).is_multiple_of(BURST) {
            tokio::time::sleep(BURST_PAUSE).await;
        }
    }
    Delivery::all(lines.len())
}

async fn connect_udp(host: &str) -> io::Result<UdpSocket> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host(host).await? {
        let any = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        match UdpSocket::bind(any).await {
            Ok(socket) => match socket.connect(address).await {
                Ok(()) => return Ok(socket),
                Err(error) => last = error,
            },
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn send_tcp(
    host: &str,
    connection: &mut Option<TcpStream>,
    unread: &mut Vec<u8>,
    lines: &[String],
) -> Result<(), Failure> {
    if connection.as_ref().is_some_and(has_ended) {
        *connection = None;
    }
    let mut framed = Vec::new();
    let stream = match connection {
        Some(stream) => stream,
        none => {
            let new = step(host, TcpStream::connect(host)).await?;
            // What the connection before may have swallowed.
            framed.append(&mut unread.clone());
            none.insert(new)
        }
    };
    let fresh = framed.len();
    for line in lines {
        framed.extend_from_slice(format!("{} {line}", line.len()).as_bytes());
    }
    step(host, stream.write_all(&framed)).await?;
    *unread = framed.split_off(fresh);
    Ok(())
}

/// Whether the receiver has closed or reset the connection. Receivers never send anything.
fn has_ended(stream: &TcpStream) -> bool {
    match stream.try_read(&mut [0; 64]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

async fn send_unix(
    path: &std::path::Path,
    socket: &mut Option<UnixDatagram>,
    lines: &[String],
) -> Delivery {
    let name = path.display().to_string();
    for (index, line) in lines.iter().enumerate() {
        let had_socket = socket.is_some();
        let mut sent = send_local(path, socket, line, &name).await;
        if sent.is_err() {
            *socket = None;
            // The receiver may have been restarted, with a new socket of the same name.
            if had_socket {
                sent = send_local(path, socket, line, &name).await;
            }
        }
        if let Err(failure) = sent {
            *socket = None;
            return Delivery::failed(index, failure);
        }
    }
    Delivery::all(lines.len())
}

async fn send_local(
    path: &std::path::Path,
    socket: &mut Option<UnixDatagram>,
    line: &str,
    name: &str,
) -> Result<(), Failure> {
    let connected = match socket {
        Some(socket) => socket,
        none => {
            let new = UnixDatagram::unbound()
                .and_then(|new| new.connect(path).map(|()| new))
                .map_err(|error| Failure::from(format!("{name}: {error}")))?;
            none.insert(new)
        }
    };
    step(name, connected.send(line.as_bytes()))
        .await
        .map(|_| ())
}

#[cfg(test)]
mod tests;
