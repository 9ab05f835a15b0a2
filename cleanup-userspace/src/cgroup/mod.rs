//! Control groups: which hierarchies are mounted, who sits where, and the only
//! code of this project that removes a cgroup or ends what is in it.

mod fence;
mod hierarchy;
mod kill;
mod root;

pub use fence::{Busy, Removal, RunCgroup, docker_child};
pub use hierarchy::{Hierarchies, Hierarchy, Membership, Mode, membership};
pub use kill::{KillError, kill_docker, kill_own, kill_own_with};
pub use root::{CgroupsRoot, InvalidRoot};
