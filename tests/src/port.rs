//! Loopback ports that no other test of this machine has.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Below the range the kernel takes for outgoing connections (from 32768), so that no connection
/// can sit on a port between its choice and the start of the service.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A port of 127.0.0.1 (TCP and UDP), reserved among all tests while this value lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// A name in the kernel's table of abstract sockets: the reservation, which ends with the process.
    _reservation: UnixListener,
}

impl Port {
    /// Reserves a port nobody listens on.
    ///
    /// # Panics
    ///
    /// If there is none, which means that something is wrong with this machine.
    #[must_use]
    pub fn reserve() -> Self {
        let count = u32::from(RANGE.end - RANGE.start);
        // Processes start looking at different places, so that they seldom meet.
        let start = std::process::id().wrapping_mul(97) % count;
        (0..count)
            .map(|step| (start + step) % count)
            .filter_map(|offset| u16::try_from(offset).ok())
            .find_map(|offset| Self::try_reserve(RANGE.start + offset))
            .expect("one of 12,000 ports is free")
    }

    /// The number to put into a configuration.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.number
    }

    fn try_reserve(number: u16) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(format!("farm-tests-port-{number}")).ok()?;
        let reservation = UnixListener::bind_addr(&name).ok()?;
        let free = std::net::TcpListener::bind(("127.0.0.1", number)).is_ok()
            && std::net::UdpSocket::bind(("127.0.0.1", number)).is_ok();
        free.then_some(Self {
            number,
            _reservation: reservation,
        })
    }
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
    fn a_port_somebody_listens_on_is_not_given_out() {
        let port = Port::reserve();
        let number = port.number();
        drop(port);
        let _listener = std::net::TcpListener::bind(("127.0.0.1", number)).unwrap();
        assert!(Port::try_reserve(number).is_none());
    }
}
