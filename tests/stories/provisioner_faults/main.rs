//! The real `provisioner`, killed and starved: EC2, its own store, its sources of demand and its own
//! process fail in every way an operator will see, and each has one stated outcome
//! (`docs/provisioner-faults.md`).
//!
//! EC2 is the fake one, whose books say what was really launched and ended. Hosts are played by the
//! test, by the same calls that `runner` makes.

mod demand;
mod ec2;
mod farm;
mod hosts;
mod kills;
mod store;
mod two;
