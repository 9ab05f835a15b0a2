//! Cleans up after dead Mesos executors.
//!
//! A kernel exit event becomes a case; a case is planned by pure code, carried
//! out by small effects, and closed only when the host was seen clean. See
//! docs/design.md.

pub mod case;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod docker;
pub mod doctor;
pub mod inbox;
pub mod journal;
pub mod mesos;
pub mod metrics;
pub mod probe;
pub mod process;
pub mod reconcile;
pub mod registry;
pub mod remains;
pub mod run_dir;
pub mod serve;
