//! Whether the host must reboot, and why.
//!
//! [`decide`] weighs the facts of a run against two lists of patterns and a policy, and does nothing
//! else. The verb `reboot-decision` collects the facts, prints the answer and says it by its exit
//! code; `runner run` counts the reboots. The verb `blacklist` is how people look into the lists
//! and change them. Every rule, and what it was chosen over, is in `docs/reboot-decision.md`.

mod blacklist;
mod decision;
mod lists;
mod verb;

pub use blacklist::{
    AddArgs, BlacklistArgs, BlacklistVerb, ExpireArgs, ListArgs, TestArgs, run_blacklist,
};
pub use decision::{Cause, Facts, JobResult, Policy, RebootDecision, RebootReason, decide};
pub use lists::{Fault, ListName, Lists, RebootList, RebootPattern, Unweighable};
pub use verb::{DecisionArgs, Surroundings, run_decision};

/// Exit codes of the two verbs.
mod exit {
    /// Done; for `reboot-decision`: go on.
    pub(super) const DONE: u8 = 0;
    /// Failed; for `blacklist test`: no entry matches.
    pub(super) const FAILED: u8 = 1;
    /// Only for `reboot-decision`: halt the host.
    pub(super) const HALT: u8 = 2;
    /// A list or a pattern is invalid.
    pub(super) const CONFIGURATION: u8 = 78;
}

/// `--format` of the verbs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for a person.
    #[default]
    Text,
    /// One JSON value.
    Json,
}
