//! Sandboxes: `<work_dir>/slaves/<agent>/frameworks/<framework>/executors/<executor>/runs/<container>`.
//!
//! The agent makes this directory for every run, checkpointing or not, and its
//! path names everything that identifies the run (src/slave/paths.hpp). Ids are
//! raw bytes: the master only forbids `/`, `\` and control characters.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use super::ContainerId;

/// Who a run is: read from the path of its sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub agent_id: OsString,
    pub framework_id: OsString,
    pub executor_id: OsString,
    pub container: ContainerId,
    pub sandbox: PathBuf,
    /// The same without links: what a program that asks for its working
    /// directory is told.
    pub resolved: PathBuf,
}

impl Identity {
    /// Takes a sandbox path apart. `None` unless it is exactly a top-level run's
    /// directory beneath `work_dir`, for the given container.
    pub fn from_sandbox(work_dir: &Path, sandbox: &Path, container: ContainerId) -> Option<Self> {
        let below: Vec<&OsStr> = sandbox
            .strip_prefix(work_dir)
            .ok()?
            .components()
            .map(|component| match component {
                Component::Normal(name) => Some(name),
                _ => None,
            })
            .collect::<Option<_>>()?;
        match below[..] {
            [
                slaves,
                agent_id,
                frameworks,
                framework_id,
                executors,
                executor_id,
                runs,
                run,
            ] if slaves == "slaves"
                && frameworks == "frameworks"
                && executors == "executors"
                && runs == "runs"
                && run == OsStr::new(container.as_str()) =>
            {
                Some(Self {
                    agent_id: agent_id.to_owned(),
                    framework_id: framework_id.to_owned(),
                    executor_id: executor_id.to_owned(),
                    container,
                    sandbox: sandbox.to_owned(),
                    resolved: sandbox.to_owned(),
                })
            }
            _ => None,
        }
    }

    /// The run of a sandbox that is there: a directory beneath `work_dir`, no link.
    pub fn of_directory(
        work_dir: &Path,
        sandbox: &Path,
        container: ContainerId,
    ) -> io::Result<Option<Self>> {
        let Some(identity) = Self::from_sandbox(work_dir, sandbox, container) else {
            return Ok(None);
        };
        // Never through a link: a framework writes beneath its sandbox.
        if !fs::symlink_metadata(sandbox).is_ok_and(|meta| meta.is_dir()) {
            return Ok(None);
        }
        let resolved = fs::canonicalize(sandbox)?;
        Ok(Some(Self {
            resolved,
            ..identity
        }))
    }

    /// Finds the run's sandbox by looking for its directory beneath every
    /// executor: costs one lookup for each executor the agent has known, not
    /// for each run. `Ok(None)`: no such run beneath this work directory.
    pub fn find(work_dir: &Path, container: ContainerId) -> io::Result<Option<Self>> {
        let mut found = None;
        each_executor(work_dir, &mut |executor| {
            let sandbox = executor.join("runs").join(container.as_str());
            found = Self::of_directory(work_dir, &sandbox, container)?;
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    /// Finds the sandboxes of all these runs in one walk, which reads the list of
    /// each executor's runs.
    pub fn find_all(
        work_dir: &Path,
        wanted: &HashSet<ContainerId>,
    ) -> io::Result<HashMap<ContainerId, Self>> {
        let mut found = HashMap::new();
        each_executor(work_dir, &mut |executor| {
            for sandbox in directories(&executor.join("runs"))? {
                let name = sandbox.file_name().and_then(OsStr::to_str);
                let Some(container) = name.and_then(|name| name.parse().ok()) else {
                    continue;
                };
                if wanted.contains(&container)
                    && let Some(identity) = Self::of_directory(work_dir, &sandbox, container)?
                {
                    found.insert(container, identity);
                }
            }
            Ok(found.len() < wanted.len())
        })?;
        Ok(found)
    }
}

/// Visits the directory of every executor that an agent of this work directory has
/// known, until `visit` says that it is enough.
fn each_executor(
    work_dir: &Path,
    visit: &mut dyn FnMut(&Path) -> io::Result<bool>,
) -> io::Result<()> {
    for agent in directories(&work_dir.join("slaves"))? {
        for framework in directories(&agent.join("frameworks"))? {
            for executor in directories(&framework.join("executors"))? {
                if !visit(&executor)? {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// The real directories in `path` (no links); none if it does not exist.
fn directories(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(io::Error::new(
                error.kind(),
                format!("cannot read {}: {error}", path.display()),
            ));
        }
    };
    Ok(entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "857fd7a0-df05-458b-bd72-f5c280790aa0";

    fn id() -> ContainerId {
        ID.parse().unwrap()
    }

    #[test]
    fn a_sandbox_names_its_run() {
        let path =
            format!("/var/lib/mesos/slaves/S1/frameworks/F-0001/executors/web.é *[/runs/{ID}");
        let identity =
            Identity::from_sandbox(Path::new("/var/lib/mesos"), Path::new(&path), id()).unwrap();
        assert_eq!(identity.framework_id, "F-0001");
        assert_eq!(identity.executor_id, "web.é *[");
        assert_eq!(identity.agent_id, "S1");
    }

    #[test]
    fn a_work_dir_behind_a_link_is_resolved() {
        let temp = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(temp.path()).unwrap().join("real");
        let run = format!("slaves/S/frameworks/F/executors/E/runs/{ID}");
        fs::create_dir_all(real.join(&run)).unwrap();
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let found = Identity::find(&link, id()).unwrap().unwrap();
        assert_eq!(found.sandbox, link.join(&run));
        assert_eq!(found.resolved, real.join(&run));
    }

    #[test]
    fn other_paths_are_no_sandboxes() {
        for path in [
            format!("/var/lib/mesos/slaves/S/frameworks/F/executors/E/runs/{ID}/containers/x"),
            format!("/var/lib/mesos/slaves/S/frameworks/F/executors/E/runs/../runs/{ID}"),
            format!("/var/lib/mesos/meta/slaves/S/frameworks/F/executors/E/runs/{ID}"),
            format!("/elsewhere/slaves/S/frameworks/F/executors/E/runs/{ID}"),
            "/var/lib/mesos/slaves/S/frameworks/F/executors/E/runs/latest".to_owned(),
            "/var/lib/mesos".to_owned(),
        ] {
            assert_eq!(
                Identity::from_sandbox(Path::new("/var/lib/mesos"), Path::new(&path), id()),
                None,
                "{path}"
            );
        }
    }

    #[test]
    fn finds_a_run_and_never_through_a_link() {
        let work = tempfile::tempdir().unwrap();
        let runs = work
            .path()
            .join("slaves/S/frameworks/F/executors/we*b/runs");
        fs::create_dir_all(runs.join(ID)).unwrap();
        let found = Identity::find(work.path(), id()).unwrap().unwrap();
        assert_eq!(found.executor_id, "we*b");

        fs::remove_dir(runs.join(ID)).unwrap();
        std::os::unix::fs::symlink("/tmp", runs.join(ID)).unwrap();
        assert_eq!(Identity::find(work.path(), id()).unwrap(), None);
        assert_eq!(
            Identity::find(&work.path().join("absent"), id()).unwrap(),
            None
        );
    }

    proptest! {
        #[test]
        fn any_executor_id_survives(executor in "[^/\\\\\\x00-\\x1f]{1,80}") {
            prop_assume!(executor != "." && executor != "..");
            let path = Path::new("/w/slaves/S/frameworks/F/executors").join(&executor).join("runs").join(ID);
            let identity = Identity::from_sandbox(Path::new("/w"), &path, id()).unwrap();
            prop_assert_eq!(identity.executor_id, OsString::from(executor));
        }
    }
}
