//! What a Mesos containerizer keeps in `<runtime_dir>/containers/<container>`
//! while it owns the container (src/slave/containerizer/mesos/paths.hpp).
//!
//! The directory is made before the launcher helper starts and removed in the
//! last step of a successful destroy: it is the agent's word that it is done.
//! Nothing is ever created or changed here (the agent aborts on foreign entries).

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use prost::Message as _;

use super::ContainerId;

/// A task may come with much text; more than this is not looked at.
const LARGEST_CONFIG: u64 = 4 << 20;

/// `config`, as far as it matters here (include/mesos/slave/containerizer.proto,
/// the same from 1.5 to 1.11).
#[derive(Clone, PartialEq, prost::Message)]
struct ContainerConfig {
    /// A `string` there; ids may have any bytes.
    #[prost(bytes = "vec", optional, tag = "3")]
    directory: Option<Vec<u8>>,
}

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

    /// Whether the launcher helper has written down how its executor ended. It makes
    /// the file empty when it starts, and writes to it once it has reaped the
    /// executor, or could not start one (src/slave/containerizer/mesos/launch.cpp,
    /// since 1.1). What the executor had started may live on.
    pub fn has_status(&self, container: ContainerId) -> bool {
        fs::metadata(self.container(container).join("status"))
            .is_ok_and(|status| status.is_file() && status.len() > 0)
    }

    /// The sandbox of a container, as the agent wrote it down when it launched it:
    /// since Mesos 1.5, and by the path that the agent has for it.
    pub fn sandbox(&self, container: ContainerId) -> Option<PathBuf> {
        let mut bytes = Vec::new();
        let file = fs::File::open(self.container(container).join("config")).ok()?;
        file.take(LARGEST_CONFIG).read_to_end(&mut bytes).ok()?;
        // A record: its length in four bytes, then the message.
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
        let message = bytes.get(4..)?.get(..usize::try_from(length).ok()?)?;
        let directory = ContainerConfig::decode(message).ok()?.directory?;
        Some(PathBuf::from(OsString::from_vec(directory)))
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
        assert!(!runtime.has_status(id));
        for (text, written) in [("", false), ("9", true), ("256", true)] {
            fs::write(runtime.container(id).join("status"), text).unwrap();
            assert_eq!(runtime.has_status(id), written, "{text:?}");
        }
    }

    #[test]
    fn reads_the_sandbox_that_the_agent_wrote_down() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::new(dir.path());
        let id: ContainerId = "857fd7a0-df05-458b-bd72-f5c280790aa0".parse().unwrap();
        fs::create_dir_all(runtime.container(id)).unwrap();
        assert_eq!(runtime.sandbox(id), None);
        let message = ContainerConfig {
            directory: Some(b"/w/slaves/S/\xff".to_vec()),
        }
        .encode_to_vec();
        let mut record = u32::try_from(message.len()).unwrap().to_ne_bytes().to_vec();
        record.extend(message);
        for cut in 0..record.len() {
            fs::write(runtime.container(id).join("config"), &record[..cut]).unwrap();
            assert_eq!(runtime.sandbox(id), None, "{cut}");
        }
        fs::write(runtime.container(id).join("config"), &record).unwrap();
        let sandbox = runtime.sandbox(id).unwrap();
        assert_eq!(sandbox.as_os_str().as_encoded_bytes(), b"/w/slaves/S/\xff");
    }
}
