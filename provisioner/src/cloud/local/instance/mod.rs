//! The processes of one instance: its supervisor, outside, and its first process, inside.
//!
//! ```text
//! provisioner local-instance DIRECTORY             the supervisor: holds the lock, serves metadata and
//!  │                                               forwards, knows when the cloud takes the instance
//!  └─ provisioner local-instance DIRECTORY first   process 1 of its namespaces: sets them up, starts
//!      │                                           `runner`, reaps whatever is left to it
//!      └─ runner run --config DIRECTORY/host/runner.toml
//! ```
//!
//! The supervisor does not depend on the provisioner that started it, nor the other way round. They
//! meet in the instance's directory and in SIGTERM, which asks the instance to end.
//!
//! # How nothing is left
//!
//! Both are connected by a socket. When the supervisor dies, however it dies, the socket ends and the
//! first process ends everything; in namespaces the kernel also kills it with its parent, and with it
//! every process of its PID namespace. Without namespaces both are *child subreapers*: a process whose
//! parent died is theirs, whatever session, group or user it moved to. They kill their own children,
//! which keep their numbers until they are reaped, and never search for others; none left is the
//! kernel's own word (`ECHILD`).

mod descendants;
mod filesystem;
mod first;
mod loopback;
mod metadata;
mod namespaces;
mod relay;
mod supervisor;

use std::path::PathBuf;

use jiff::Timestamp;

use super::disk::Place;
use crate::exit::Exit;

pub(super) use namespaces::probe;

/// What `local-instance` is called with.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Directory of the instance.
    pub directory: PathBuf,
    /// Which of its processes this is.
    #[arg(value_enum, default_value_t)]
    pub part: Part,
}

/// A process of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The one outside.
    #[default]
    Supervisor,
    /// Process 1 of its namespaces.
    First,
}

impl Part {
    /// As it is written on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::First => "first",
        }
    }
}

/// Is a process of an instance, from its start to its end. Must be called before the program has
/// started any thread.
#[must_use]
pub fn run(args: &Args, clock: fn() -> Timestamp) -> Exit {
    let place = Place::new(args.directory.clone());
    match args.part {
        Part::Supervisor => supervisor::run(&place, clock),
        Part::First => first::run(&place),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
