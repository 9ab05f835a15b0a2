//! Support of the end-to-end suites: everything around the daemon is real, and
//! everything is private to one test.
//!
//! A test starts with a [`scratch::Scratch`]. The Docker daemon, the Mesos agent
//! and whatever they start carry its name in their environment and sit beneath
//! its cgroups, so dropping it (or the next test, if this one was killed) finds
//! and removes them all. Tests may run in parallel, with others' Docker daemons
//! and agents on the same host.

pub mod bins;
pub mod bpf;
pub mod cache;
pub mod cgroups;
pub mod clean;
pub mod command;
pub mod docker;
pub mod docker_proxy;
pub mod guest;
pub mod hook;
pub mod host;
pub mod instructions;
pub mod log;
pub mod mesos;
pub mod mounts;
pub mod openmetrics;
pub mod process;
pub mod random;
pub mod reload;
pub mod scratch;
pub mod service;
pub mod wait;
pub mod watcher;
