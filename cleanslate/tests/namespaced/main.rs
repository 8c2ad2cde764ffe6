//! The real binary against real processes, each test in a PID namespace of its own.

mod refusals;
mod sandbox;
mod sweep;
