//! The per-host daemon: runs the executables of `tasks.d/` in order, over and over.

pub mod reboot;
pub mod spool;
pub mod state;
