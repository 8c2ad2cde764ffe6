//! Numbers that no other test of this machine has: loopback ports and user ids.

use std::ops::Range;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Below the range the kernel takes for outgoing connections (from 32768), so that no connection
/// can sit on a port between its choice and the start of the service.
const PORTS: Range<u32> = 20_000..32_000;

/// Above what Debian gives to people and services (up to 60000) and to `nobody` (65534), and below
/// the subordinate ids (from 100000).
const USER_IDS: Range<u32> = 70_000..82_000;

/// A number reserved among all tests while this value lives.
#[derive(Debug)]
struct Reservation {
    number: u32,
    /// A name in the kernel's table of abstract sockets, which the kernel takes back when the process ends.
    _name: UnixListener,
}

impl Reservation {
    /// The first number that nobody has reserved and that `is_free`.
    fn first(what: &str, range: Range<u32>, is_free: impl Fn(u32) -> bool) -> Self {
        let count = range.end - range.start;
        // Processes start looking at different places, so that they seldom meet.
        let start = std::process::id().wrapping_mul(97) % count;
        (0..count)
            .map(|step| range.start + (start + step) % count)
            .find_map(|number| {
                let reservation = Self::take(what, number)?;
                is_free(number).then_some(reservation)
            })
            .unwrap_or_else(|| panic!("no {what} of {count} is free"))
    }

    fn take(what: &str, number: u32) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(format!("farm-tests-{what}-{number}")).ok()?;
        let name = UnixListener::bind_addr(&name).ok()?;
        Some(Self {
            number,
            _name: name,
        })
    }
}

/// A port of 127.0.0.1, TCP and UDP.
#[derive(Debug)]
pub struct Port(Reservation);

impl Port {
    /// Reserves a port nobody listens on.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn reserve() -> Self {
        Self(Reservation::first("port", PORTS, |number| {
            is_free(port(number))
        }))
    }

    /// The number to put into a configuration.
    #[must_use]
    pub fn number(&self) -> u16 {
        port(self.0.number)
    }
}

/// A user id without account, for throw-away users. The kernel counts processes per user id in all
/// PID namespaces together, so two hosts with one user id would disturb each other.
#[derive(Debug)]
pub struct UserId(Reservation);

impl UserId {
    /// Reserves a user id.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn reserve() -> Self {
        Self(Reservation::first("uid", USER_IDS, |number| {
            let id = nix::unistd::Uid::from_raw(number);
            nix::unistd::User::from_uid(id).is_ok_and(|user| user.is_none())
        }))
    }

    /// The number.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.0.number
    }
}

fn port(number: u32) -> u16 {
    u16::try_from(number).expect("the range is one of ports")
}

fn is_free(port: u16) -> bool {
    std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
        && std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ports_are_never_the_same() {
        let ports: Vec<_> = (0..50).map(|_| Port::reserve()).collect();
        let mut numbers: Vec<_> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 50);
    }

    #[test]
    fn a_port_somebody_listens_on_is_not_free() {
        let port = Port::reserve().number();
        let _listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        assert!(!is_free(port));
    }
}
