//! Docker: a narrow, deadlined client and the rules that say which containers
//! are a run's pod.

mod client;
mod container;
mod follow;
mod index;
mod join;
mod network;
mod operation;
mod shared;

pub use client::{Docker, DockerError, DockerFacts, Stopped};
pub use container::{ContainerInfo, ContainerState, PROJECT_LABEL, is_agents_own};
pub use follow::{DockerChange, Listed, Lists, follow_docker};
pub use index::Index;
pub use join::{
    Candidate, JoinKey, LabelEvidence, RunScope, candidate, exact_key, label_key, named_runs,
};
pub use network::ComposeNetwork;
pub use operation::Operation;
