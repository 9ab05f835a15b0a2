//! What a Mesos containerizer keeps in `<runtime_dir>/containers/<container>`
//! while it owns the container (src/slave/containerizer/mesos/paths.hpp).
//!
//! The directory is made before the launcher helper starts and removed in the
//! last step of a successful destroy: it is the agent's word that it is done.
//! Nothing is ever created or changed here (the agent aborts on foreign entries).

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::ContainerId;

/// `<runtime_dir>/containers` of one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir(PathBuf);

impl RuntimeDir {
    pub fn new(runtime_dir: &Path) -> Self {
        Self(runtime_dir.join("containers"))
    }

    /// The directory that holds one directory for each container.
    pub fn containers(&self) -> &Path {
        &self.0
    }

    pub fn container(&self, container: ContainerId) -> PathBuf {
        self.0.join(container.as_str())
    }

    /// Whether the agent still owns the container. A directory that is unreadable,
    /// or not there at all, is an error, never an absence: no agent removes more
    /// than one container's.
    pub fn owns(&self, container: ContainerId) -> io::Result<bool> {
        if self.container(container).try_exists()? {
            return Ok(true);
        }
        if self.0.try_exists()? {
            return Ok(false);
        }
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{} does not exist", self.0.display()),
        ))
    }

    /// The launcher helper's PID; `None` if the agent has not written it (yet).
    pub fn helper_pid(&self, container: ContainerId) -> Option<u32> {
        let text = fs::read_to_string(self.container(container).join("pid")).ok()?;
        text.trim().parse().ok().filter(|pid| *pid > 1)
    }

    /// The containers the agent owns now; none if there is no such directory.
    pub fn list(&self) -> io::Result<Vec<ContainerId>> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(io::Error::new(
                    error.kind(),
                    format!("cannot read {}: {error}", self.0.display()),
                ));
            }
        };
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_containers_and_reads_pids() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::new(dir.path());
        assert_eq!(runtime.list().unwrap(), vec![]);
        let nobody = "00000000-df05-458b-bd72-f5c280790aa0".parse().unwrap();
        assert!(runtime.owns(nobody).is_err(), "nothing can be told");
        let id: ContainerId = "857fd7a0-df05-458b-bd72-f5c280790aa0".parse().unwrap();
        fs::create_dir_all(runtime.container(id)).unwrap();
        fs::create_dir_all(dir.path().join("containers/not-an-id")).unwrap();
        assert_eq!(runtime.list().unwrap(), vec![id]);
        assert!(runtime.owns(id).unwrap());
        assert!(!runtime.owns(nobody).unwrap());
        assert_eq!(runtime.helper_pid(id), None);
        for (text, pid) in [
            ("1234", Some(1234)),
            ("1234\n", Some(1234)),
            ("garbage", None),
            ("-1", None),
            ("0", None),
            ("1", None),
        ] {
            fs::write(runtime.container(id).join("pid"), text).unwrap();
            assert_eq!(runtime.helper_pid(id), pid, "{text:?}");
        }
    }
}
