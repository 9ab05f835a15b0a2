//! What a Mesos agent leaves on its host, and what that says about an executor
//! and about the agent. Reads only: nothing here changes anything.

mod agent;
mod container_id;
mod discover;
mod runtime_dir;
mod sandbox;
mod watch;

pub use agent::{AgentSign, AgentState, AgentWatch};
pub use container_id::{ContainerId, NotAContainerId};
pub use discover::{AgentDirs, discover, running_agent};
pub use runtime_dir::RuntimeDir;
pub use sandbox::Identity;
pub use watch::{RuntimeChange, watch_runtime_dir};
