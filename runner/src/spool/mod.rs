//! The local spool of jobs: claim one, run it, write its result.
