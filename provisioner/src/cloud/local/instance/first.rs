//! The first process of an instance: makes its surroundings, starts `runner`, and outlasts all others.
//!
//! Its standard input is the socket to the supervisor, line by line. It says `ready`, `ended HOW` of
//! `runner`, or `fault WHAT`; the supervisor says `stop`. The end of the socket is the end of the
//! supervisor, and then of everything here.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal as Nix;
use rustix::process::{Pid, Signal, WaitStatus};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::signal::unix::{SignalKind, signal};

use super::descendants::{self, Children};
use super::filesystem;
use crate::cloud::local::disk::{Meta, Place};
use crate::exit::Exit;

/// The environment of `runner`, which makes that of its tasks itself.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variable by which a host without a network of its own is told where its metadata service is.
const METADATA_VARIABLE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";

pub(super) fn run(place: &Place) -> Exit {
    let socket = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => UnixStream::from(socket),
        Err(_) => return Exit::Usage,
    };
    match live(place, &socket) {
        Ok(()) => Exit::Done,
        Err(error) => {
            say(&socket, &format!("fault {error}"));
            Exit::Failed
        }
    }
}

fn live(place: &Place, socket: &UnixStream) -> io::Result<()> {
    let meta = place.meta()?.ok_or(io::ErrorKind::NotFound)?;
    let address = place.metadata_address();
    // Held until the end of this process: somebody of the instance lives.
    let _lock = place.claim_first()?;
    if meta.run.isolated {
        // The supervisor may have died before this; then the socket has ended, and says so below.
        nix::sys::prctl::set_pdeathsig(Nix::SIGKILL)?;
        filesystem::settle(place, &meta)?;
    } else {
        nix::sys::prctl::set_child_subreaper(true)?;
    }
    super::runtime()?.block_on(watch(place, &meta, address.as_deref(), socket))
}

async fn watch(
    place: &Place,
    meta: &Meta,
    metadata_address: Option<&str>,
    socket: &UnixStream,
) -> io::Result<()> {
    let mut child_ended = signal(SignalKind::child())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let reading = socket.try_clone()?;
    reading.set_nonblocking(true)?;
    let mut orders = BufReader::new(tokio::net::UnixStream::from_std(reading)?).lines();
    let runner = start(place, meta, metadata_address)?;
    say(socket, "ready");
    loop {
        tokio::select! {
            _ = child_ended.recv() => {
                let mut how = None;
                let left = descendants::reap(|pid, status| {
                    if pid == runner {
                        how = Some(status);
                    }
                });
                if let Some(status) = how {
                    say(socket, &format!("ended {}", describe(status)));
                    break;
                }
                debug_assert_ne!(left, Children::None, "`runner` is a child until it is reaped");
            }
            order = orders.next_line() => match order {
                Ok(Some(order)) if order == "stop" => ask(runner),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            },
            _ = terminate.recv() => ask(runner),
        }
    }
    if !meta.run.isolated {
        let stuck = descendants::end(&mut child_ended).await;
        if stuck > 0 {
            return Err(io::Error::other(format!(
                "{stuck} processes cannot be killed"
            )));
        }
    }
    // In namespaces the end of process 1 is the end of every other.
    Ok(())
}

fn start(place: &Place, meta: &Meta, metadata_address: Option<&str>) -> io::Result<Pid> {
    let host = place.host();
    let log = fs_err::OpenOptions::new()
        .create(true)
        .append(true)
        .open(host.join("runner.log"))?
        .into_parts()
        .0;
    let mut command = Command::new(&meta.run.runner);
    command
        .args(["run", "--config"])
        .arg(host.join("runner.toml"))
        .env_clear()
        .env("PATH", PATH)
        .envs(metadata_address.map(|address| (METADATA_VARIABLE, address)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let child = command.spawn().map_err(|error| {
        let program = meta.run.runner.display();
        io::Error::new(error.kind(), format!("cannot start `{program}`: {error}"))
    })?;
    // Dropping the handle neither ends nor reaps it: the loop above does.
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("the kernel gave a pid that is none"))
}

fn ask(runner: Pid) {
    // It is our child, and not reaped, or the loop would have ended.
    rustix::process::kill_process(runner, Signal::TERM).ok();
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("with exit code {code}"),
        (None, Some(signal)) => format!("by signal {signal}"),
        (None, None) => "somehow".to_owned(),
    }
}

fn say(mut socket: &UnixStream, line: &str) {
    let line = line.replace(char::is_control, "\u{fffd}");
    // Who is not there any more need not be told.
    writeln!(socket, "{line}").ok();
}
