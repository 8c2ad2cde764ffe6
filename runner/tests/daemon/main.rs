//! The `runner` binary against real processes: what it promises to hosts, to tasks and to people.
//!
//! Every test has a [`host::Host`] of its own: a directory with tasks, a configuration and a state
//! directory that no other test sees. Waits are for conditions and have a deadline; how long
//! something takes is asserted only where the bound is the promise.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may panic, and says on standard error why it was left out"
)]

mod children;
mod cloud;
mod fleet;
mod halting;
mod hooks;
mod host;
mod interruptions;
mod life;
mod names;
mod outcomes;
mod output;
mod refusals;
mod retries;
mod settings;
mod signals;
mod sinks;
mod state;
mod template;
mod terminal;
mod verbs;
