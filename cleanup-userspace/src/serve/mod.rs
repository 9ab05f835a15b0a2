//! The control API: HTTP with JSON over a Unix socket in the run directory, for
//! root alone (docs/control-api.md). It tells, and takes one order: to clean up after
//! dead runs now.
//!
//! Answers are made from copies: the loop's word, the shared registry, a look at
//! the host. Nobody who asks can make the loop wait.

pub mod api;
mod clean;
pub mod client;
mod executors;
mod plan;
mod routes;
#[cfg(test)]
mod schema;
mod server;
mod snapshot;
mod socket;
mod status;
mod target;

pub use clean::{Way, cleanings, way_to_clean};
pub use client::ClientError;
pub use plan::{Known, Wanted, list, plans};
pub use server::{Inquiries, Server};
pub use snapshot::{CaseAtWork, Counts, DockerWord, Inquiry, Order, Ordered, ProbeState, Snapshot};
pub use socket::{SocketError, path_in};
pub use target::Target;
