//! Finding the agents of this host when the configuration does not name them.
//!
//! Only root's own processes are believed: an agent's arguments and environment,
//! and the environment of its launcher helpers. Never an executor's environment,
//! which a framework's user controls.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::agent::base_name;
use crate::cgroup::CgroupsRoot;
use crate::process;

/// Where one agent keeps its things, as paths that this process can open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentDirs {
    pub work_dir: PathBuf,
    pub runtime_dir: PathBuf,
    pub cgroups_root: CgroupsRoot,
}

/// `--runtime_dir` of an agent that runs as root and was not told (src/slave/flags.cpp).
const DEFAULT_RUNTIME_DIR: &str = "/var/run/mesos";

/// Names of agent binaries: since 1.0, and before.
const AGENT_NAMES: [&[u8]; 4] = [
    b"mesos-agent",
    b"mesos-slave",
    b"lt-mesos-agent",
    b"lt-mesos-slave",
];

/// The agents that run now, each with where it keeps its things.
pub fn discover() -> Vec<AgentDirs> {
    let mut found: Vec<AgentDirs> = Vec::new();
    for pid in process::all().filter(|pid| is_agent_process(*pid)) {
        let Some(work_dir) = agent_flag(pid, "work_dir") else {
            continue;
        };
        let runtime_dir = runtime_dir_of_a_helper(pid)
            .or_else(|| agent_flag(pid, "runtime_dir"))
            .unwrap_or_else(|| PathBuf::from(DEFAULT_RUNTIME_DIR));
        let cgroups_root = match agent_flag(pid, "cgroups_root").map(CgroupsRoot::try_from) {
            None => CgroupsRoot::default(),
            Some(Ok(root)) => root,
            Some(Err(error)) => {
                tracing::warn!(pid, %error, "agent skipped");
                continue;
            }
        };
        let dirs = AgentDirs {
            work_dir: as_we_see_it(pid, &work_dir),
            runtime_dir: as_we_see_it(pid, &runtime_dir),
            cgroups_root,
        };
        if !found.contains(&dirs) {
            found.push(dirs);
        }
    }
    found
}

/// Whether a process is called like a Mesos agent.
pub(super) fn is_agent_process(pid: u32) -> bool {
    let named = |name: &OsStr| AGENT_NAMES.contains(&base_name(name));
    process::arguments(pid).is_ok_and(|arguments| arguments.first().is_some_and(|name| named(name)))
        || fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| named(exe.as_os_str()))
}

/// A flag of an agent: `--name=value`, `--name value`, or `MESOS_NAME` in its
/// environment, in that order of precedence (as stout's flags do).
pub(super) fn agent_flag(pid: u32, name: &str) -> Option<PathBuf> {
    let arguments = process::arguments(pid).unwrap_or_default();
    flag_in_arguments(&arguments, name)
        .or_else(|| {
            let variable = format!("MESOS_{}", name.to_uppercase());
            process::environ(pid).ok()?.remove(OsStr::new(&variable))
        })
        .map(PathBuf::from)
        // Flags may be given as file:// paths; those directories never are.
        .filter(|path| path.is_absolute() || name == "cgroups_root")
}

fn flag_in_arguments(arguments: &[OsString], name: &str) -> Option<OsString> {
    let dashed = format!("--{name}");
    let assigned = format!("--{name}=");
    arguments.iter().enumerate().find_map(|(at, argument)| {
        if argument == OsStr::new(&dashed) {
            return arguments.get(at + 1).cloned();
        }
        argument
            .as_bytes()
            .strip_prefix(assigned.as_bytes())
            .map(|value| OsString::from_vec(value.to_vec()))
    })
}

/// The runtime directory that an agent handed to one of its launcher helpers.
fn runtime_dir_of_a_helper(agent: u32) -> Option<PathBuf> {
    process::children(agent).into_iter().find_map(|child| {
        let given = process::environ(child)
            .ok()?
            .remove(OsStr::new("MESOS_CONTAINERIZER_RUNTIME_DIRECTORY"))?;
        // `<runtime_dir>/containers/<container id>`, deeper for nested ones.
        let path = PathBuf::from(given);
        let containers = path
            .ancestors()
            .filter(|a| a.ends_with("containers"))
            .last()?;
        containers.parent().map(Path::to_owned)
    })
}

/// A path of another process as this process can open it: the same when both
/// see one mount namespace, else through that process's root.
fn as_we_see_it(pid: u32, path: &Path) -> PathBuf {
    let namespace =
        |pid: &str| -> io::Result<PathBuf> { fs::read_link(format!("/proc/{pid}/ns/mnt")) };
    match (namespace("self"), namespace(&pid.to_string())) {
        (Ok(ours), Ok(theirs)) if ours == theirs => path.to_owned(),
        _ => {
            let through = PathBuf::from(format!("/proc/{pid}/root"))
                .join(path.strip_prefix("/").unwrap_or(path));
            // A volume at the same place on the host outlives the agent.
            if same_directory(&through, path) {
                path.to_owned()
            } else {
                through
            }
        }
    }
}

fn same_directory(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_as_stout_reads_them() {
        let arguments: Vec<OsString> = [
            "mesos-agent",
            "--master=zk",
            "--work_dir=/a=b",
            "--runtime_dir",
            "/r",
        ]
        .map(OsString::from)
        .to_vec();
        assert_eq!(
            flag_in_arguments(&arguments, "work_dir"),
            Some("/a=b".into())
        );
        assert_eq!(
            flag_in_arguments(&arguments, "runtime_dir"),
            Some("/r".into())
        );
        assert_eq!(flag_in_arguments(&arguments, "work"), None);
        assert_eq!(flag_in_arguments(&["--work_dir".into()], "work_dir"), None);
    }

    #[test]
    fn a_running_agent_is_found_by_its_flags() {
        // A process that is only called like an agent: what is read is real.
        let dir = tempfile::tempdir().unwrap();
        let agent = dir.path().join("mesos-agent");
        fs::copy("/bin/sleep", &agent).unwrap();
        let work_dir = dir.path().join("work");
        let mut child = std::process::Command::new(&agent)
            .arg("60")
            .env("MESOS_WORK_DIR", &work_dir)
            .env("MESOS_CGROUPS_ROOT", "my/mesos")
            .spawn()
            .unwrap();
        // exec is done when spawn returns.
        let found = discover()
            .into_iter()
            .find(|dirs| dirs.work_dir == work_dir);
        child.kill().unwrap();
        child.wait().unwrap();
        let found = found.expect("the agent");
        assert_eq!(found.runtime_dir, Path::new(DEFAULT_RUNTIME_DIR));
        assert_eq!(found.cgroups_root.as_path(), Path::new("my/mesos"));
    }
}
