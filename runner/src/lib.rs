//! The per-host daemon: runs the executables of `tasks.d/` in order, over and over, so that the
//! host takes job after job without a reboot.
//!
//! # Theory of operation
//!
//! A *run* is one pass through the tasks. Each task has a number of *attempts*; what the end of an
//! attempt asks for is its *outcome* ([`step::outcome`]), and what follows from it is a *step*
//! ([`step::next`]). Both are pure. [`run`] walks through the tasks and does what the steps say,
//! [`daemon`] makes run after run, [`halt`] halts the host.
//!
//! Everything a task starts is gone before anything else starts ([`child`]). What must outlive the
//! process is in one small file ([`state`]), which also tells the next process what to end if this
//! one is killed ([`recover`]). What happened goes to a journal on disk and to the telemetry sinks
//! ([`journal`]).
//!
//! A host that is an instance of a cloud also reports to the provisioner and does what it is told,
//! beside the runs and never in their way ([`fleet`]).
//!
//! # Modules
//!
//! - deciding: [`task`], [`order`], [`backoff`], [`step`], [`report`], [`reboot`]
//! - reading: [`config`], [`tasks_dir`]
//! - doing: [`child`], [`host`], [`hook`], [`run`], [`halt`], [`daemon`], [`recover`], [`signals`], [`spool`],
//!   [`fleet`]
//! - remembering and telling: [`state`], [`history`], [`journal`], [`view`]
//! - the command line: [`cli`], [`verbs`], [`exit`]

pub mod backoff;
pub mod child;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod exit;
pub mod fleet;
pub mod halt;
pub mod history;
pub mod hook;
pub mod host;
pub mod journal;
pub mod order;
pub mod reboot;
pub mod recover;
pub mod report;
pub mod run;
pub mod signals;
pub mod spool;
pub mod state;
pub mod step;
pub mod task;
pub mod tasks_dir;
pub mod verbs;
pub mod view;
