//! The local spool of jobs: `runner take-job` claims one, runs it and writes its result.
//!
//! A job is a file, and where the file lies says how far the job is:
//!
//! ```text
//! pending/ID.json                                   submitted
//! running/ID.json                                   claimed
//! running/ID.json + running/ID.started              started
//! running/ID.json + results/ID.json                 ended
//! done/ID.json    + results/ID.json, results/ID.log finished
//! ```
//!
//! Each arrow between two lines is one rename, so a taker that is killed leaves a job on one of the
//! lines, and the next taker goes on from there: what was claimed is run, what was started is ended
//! and called `interrupted`, what ended is reported and finished. A taker holds a lock on the file of
//! its job, which dies with it: that is how a living taker's job is told from a dead one's.
//!
//! What belongs in a job file, who may submit one, and every bound is in
//! `docs/decisions/spool-jobs-are-files.md`.

mod config;
mod job;
mod process;
mod store;
mod take;

pub use config::{ConfigFault, JobsConfig};
pub use job::{Job, Rejection};
pub use store::{Claim, Found, Outcome, Spool, SpoolError, Started};
pub(crate) use take::registered;
pub use take::{Place, TakeArgs, take_job};
