//! The centre of a build farm: from pending jobs to launched instances, exactly once.
//!
//! One loop; every pass has the same four steps:
//!
//! ```text
//! observe   demand sources, cloud, prices, hosts, store   →  World   (plain data, kept for the last passes)
//! plan      plan(&World, &Config, now, rng)               →  Plan    (launches, terminations, assignments; each with its reason)
//! check     no plan breaks a limit, a money cap, a budget →  faults stop the pass (written apart from the planner)
//! apply     intent to the store → cloud → result to the store        (the only writer)
//! ```
//!
//! A launch is decided once, written down as an intent, and sent with a token made from it; after a
//! crash the same request is sent again and launches nothing twice. What has the intent's tag and is
//! in no store is adopted; what belongs to nobody is suspected in one pass and ended in a later one.
//! Hosts are never ended at work: they are asked to leave between jobs, confirm, and are ended then.
//!
//! Where to look: [`world`] what is known, [`plan`] what follows from it, [`cloud`], [`demand`] and
//! [`store`] the world outside, [`config`] what may be configured.

pub mod access;
pub mod api;
pub mod apply;
pub mod asking;
pub mod bill;
pub mod check;
pub mod cli;
pub mod cloud;
pub mod config;
pub mod demand;
pub mod exit;
pub mod explain;
pub mod hosts;
pub mod ids;
pub mod money;
pub mod observe;
pub mod pass;
pub mod plan;
pub mod service;
pub mod shortage;
pub mod store;
pub mod table;
pub mod troubles;
pub mod verbs;
pub mod view;
pub mod world;
