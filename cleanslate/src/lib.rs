//! Removes what a job left behind, so that a build host need not reboot.
//!
//! # Theory of operation
//!
//! `snapshot` records every process of the job users once per boot, before any job ran. After each
//! job, `sweep` compares the process table with that record and ends the difference. What decides
//! is always identity, never a name: a process is kept if it is the recorded one (number and start
//! time), or if it is a recorded service that its supervisor started again ([`key`]). Everything
//! else of these users is a [`Leftover`](sweep::Leftover).
//!
//! A process table can change while it is read and a process number can change hands between
//! reading and signalling, so nothing is believed once:
//!
//! ```text
//! look   read the table between two readings of the kernel's count of started processes  table
//! judge  baseline, restarted, leftover, dead, exempt: pure, from plain data              sweep, key
//! end    hold by pidfd, identify again, SIGTERM + SIGCONT, one shared grace, SIGKILL     kill
//! look   … until a pass finds nothing and the count did not move: clean; else unproven   sweep
//! ```
//!
//! Anything that makes the record doubtful (another boot, another PID namespace, other users, an
//! empty or cut file, a file someone else could have written) is refused before anything is
//! touched ([`snapshot`], [`store`]).
//!
//! What this cut cannot prove is written down in `docs/cleanslate.md`. The stages have their own
//! timing in the report, so that others can be put beside them.
//!
//! # Modules
//!
//! Data: [`process`], [`users`], [`snapshot`]. Decisions: [`key`], [`sweep`]. The outside world:
//! [`table`], [`kill`], [`store`], [`facts`], [`clock`]. What is said: [`report`]. Who calls whom:
//! [`command`], [`cli`], `main`.

pub mod cli;
pub mod clock;
pub mod command;
pub mod facts;
pub mod key;
pub mod kill;
pub mod process;
pub mod report;
pub mod snapshot;
pub mod store;
pub mod sweep;
pub mod table;
pub mod users;

#[cfg(test)]
mod sample;
