//! The real binary against real processes, each test in a PID namespace of its own.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "the sandbox is test code too: it panics, and says what it skips"
)]

mod refusals;
mod sandbox;
mod sweep;
