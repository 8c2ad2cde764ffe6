//! Starts the first process, in namespaces of its own if it is to have them.
//!
//! A thread enters new network, mount, host name and PID namespaces, makes the sockets that are
//! reached from within, and starts the first process, which is then process 1 of that PID namespace.
//! A socket stays in the network it was made in, whoever serves it; so no bridge, no pair of virtual
//! cards and no firewall rule is needed, and nothing but those sockets leads out.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::oneshot;

use super::{Part, loopback};
use crate::cloud::local::disk::{Meta, Place};

/// Where every instance of EC2 finds its metadata service.
const METADATA: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80);

/// A first process that was started.
pub(super) struct Booted {
    /// Where its metadata service is asked.
    pub(super) metadata: TcpListener,
    /// Where it reaches addresses of the machine, and which.
    pub(super) forwards: Vec<(TcpListener, SocketAddr)>,
    /// The process.
    pub(super) first: OwnedFd,
    /// How it ended.
    pub(super) ended: oneshot::Receiver<io::Result<ExitStatus>>,
}

/// Whether this process may make instances with namespaces of their own.
///
/// # Errors
/// Why not.
pub(in super::super) fn probe() -> io::Result<()> {
    let tried = thread::Builder::new().name("probe".into()).spawn(|| {
        enter()?;
        super::filesystem::make_private()?;
        loopback::up()
    })?;
    tried
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the probe failed")))
}

/// Leaves this thread in new namespaces; the processes it starts are in a new PID namespace.
fn enter() -> io::Result<()> {
    let flags = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID;
    Ok(unshare(flags)?)
}

/// Starts the first process; `socket` becomes its standard input.
///
/// # Errors
/// If it cannot be started.
pub(super) fn boot(place: &Place, meta: &Meta, socket: UnixStream) -> io::Result<Booted> {
    let (started, start) = std::sync::mpsc::channel();
    let (ended, end) = oneshot::channel();
    let (place, meta) = (place.clone(), meta.clone());
    // The kernel takes the first process for orphaned when this *thread* ends: it waits for it.
    thread::Builder::new().name("first".into()).spawn(move || {
        match start_first(&place, &meta, socket) {
            Ok((mut child, metadata, forwards, first)) => {
                let told = started.send(Ok((metadata, forwards, first)));
                let status = child.wait();
                // Nobody is left to tell when the supervisor gave up at once.
                drop((told, ended.send(status)));
            }
            Err(error) => drop(started.send(Err(error))),
        }
    })?;
    let (metadata, forwards, first) = start
        .recv()
        .map_err(|_| io::Error::other("the thread that starts it ended"))??;
    Ok(Booted {
        metadata,
        forwards,
        first,
        ended: end,
    })
}

type Started = (
    std::process::Child,
    TcpListener,
    Vec<(TcpListener, SocketAddr)>,
    OwnedFd,
);

fn start_first(place: &Place, meta: &Meta, socket: UnixStream) -> io::Result<Started> {
    let (metadata, forwards) = if meta.run.isolated {
        enter().map_err(|error| named("namespaces of its own", &error))?;
        nix::unistd::sethostname(meta.id.as_str())?;
        listen_inside(&meta.run.forward).map_err(|error| named("its network", &error))?
    } else {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = format!("http://{}", listener.local_addr()?);
        place.write_metadata_address(&address)?;
        (listener, Vec::new())
    };
    metadata.set_nonblocking(true)?;
    let child = Command::new("/proc/self/exe")
        // What this process was started with, whatever words that takes, and the part it is to play.
        .args(std::env::args_os().skip(1))
        .arg(Part::First.as_str())
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the kernel gave a pid that is none"))?;
    // It is our child and not reaped: the number is its own.
    let first = pidfd_open(pid, PidfdFlags::empty())?;
    Ok((child, metadata, forwards, first))
}

type Listeners = (TcpListener, Vec<(TcpListener, SocketAddr)>);

fn listen_inside(forward: &[SocketAddr]) -> io::Result<Listeners> {
    loopback::up()?;
    loopback::add(METADATA.ip())?;
    let metadata = TcpListener::bind(METADATA)?;
    let mut forwards = Vec::new();
    for address in forward {
        if !address.ip().is_loopback() {
            loopback::add(address.ip())?;
        }
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        forwards.push((listener, *address));
    }
    Ok((metadata, forwards))
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
