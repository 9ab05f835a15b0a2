//! Finding the agents of this host when the configuration does not name them.
//!
//! Only the agents' own words are believed: the environment and working directory
//! that they gave to a launcher helper, their arguments, their environment. Never
//! what an executor could have made up: its environment is a framework's user's.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::agent::base_name;
use super::{ContainerId, Identity};
use crate::cgroup::{CgroupsRoot, membership};
use crate::process::{self, Proc};

/// Where one agent keeps its things, as paths that this process can open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentDirs {
    pub work_dir: PathBuf,
    pub runtime_dir: PathBuf,
    pub cgroups_root: CgroupsRoot,
}

/// `--runtime_dir` of an agent that runs as root and was not told (src/slave/flags.cpp).
const DEFAULT_RUNTIME_DIR: &str = "/var/run/mesos";

/// How an agent tells a launcher helper about the container's directory.
const RUNTIME_DIRECTORY: &str = "MESOS_CONTAINERIZER_RUNTIME_DIRECTORY";

/// Names of agent binaries: since 1.0, and before.
const AGENT_NAMES: [&[u8]; 4] = [
    b"mesos-agent",
    b"mesos-slave",
    b"lt-mesos-agent",
    b"lt-mesos-slave",
];

/// The agents that run now, each with where it keeps its things: by their live
/// launcher helpers first, which show what is really in use, then by their flags.
pub fn discover() -> Vec<AgentDirs> {
    let mut found: Vec<AgentDirs> = Vec::new();
    let everybody = process::all().unwrap_or_default();
    let by_helpers = everybody.iter().copied().filter_map(dirs_of_helper);
    let by_flags = everybody
        .iter()
        .copied()
        .filter(|pid| is_agent_process(*pid))
        .filter_map(dirs_of_agent);
    for dirs in by_helpers.chain(by_flags) {
        if !found.iter().any(|known| known.work_dir == dirs.work_dir) {
            found.push(dirs);
        }
    }
    found
}

/// The running agent whose own flags name these very directories: it keeps its
/// containers in this runtime directory, and nowhere else.
///
/// An executor could start a process that looks the same: not outside of its own
/// cgroup, and not as the user who owns the agent's checkpoints unless it is that
/// user anyway.
pub fn running_agent(dirs: &AgentDirs) -> Option<Proc> {
    use std::os::unix::fs::MetadataExt as _;
    let owner = fs::metadata(dirs.work_dir.join("meta")).ok()?.uid();
    process::all().ok()?.into_iter().find_map(|pid| {
        let agent = Proc::of(pid)?;
        if !is_agent_process(pid) {
            return None;
        }
        let named = dirs_of_agent(pid)?;
        let ours = same_directory(&named.work_dir, &dirs.work_dir)
            && same_directory(&named.runtime_dir, &dirs.runtime_dir);
        let user = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
        (ours && user == owner && !in_a_run(pid) && agent.is_alive()).then_some(agent)
    })
}

/// Whether a process sits in a run's cgroup; if that cannot be seen, it may.
fn in_a_run(pid: u32) -> bool {
    let is_run = |part: &OsStr| {
        part.to_str()
            .is_some_and(|part| part.parse::<ContainerId>().is_ok())
    };
    membership(pid).is_none_or(|seat| seat.paths().any(|path| path.iter().any(is_run)))
}

/// What a living launcher helper shows of its agent: the runtime directory in
/// its environment, the sandbox as its working directory, the cgroups root in
/// its own cgroup.
///
/// An executor could start a process that looks the same. It would have itself,
/// or init, as its parent, and neither is an agent.
fn dirs_of_helper(pid: u32) -> Option<AgentDirs> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    // A sealed launcher is run from memory: `/memfd:mesos-containerizer (deleted)`.
    if !exe.to_string_lossy().contains("mesos-containerizer") {
        return None;
    }
    let mut env = process::environ(pid).ok()?;
    let runtime = PathBuf::from(env.remove(OsStr::new(RUNTIME_DIRECTORY))?);
    let container: ContainerId = runtime.file_name()?.to_str()?.parse().ok()?;
    let runtime_dir = runtime
        .parent()
        .filter(|dir| dir.ends_with("containers"))?
        .parent()?
        .to_owned();

    let agent = process::stat(pid).ok().flatten()?.ppid;
    let of_an_executor = |pid: u32| {
        process::environ(pid).map_or(true, |env| {
            env.contains_key(OsStr::new("MESOS_EXECUTOR_ID"))
                || env.contains_key(OsStr::new(RUNTIME_DIRECTORY))
        })
    };
    let beneath = |pid: u32| {
        membership(pid).and_then(|seat| seat.paths().find_map(|path| root_above(path, container)))
    };
    if agent <= 1 || of_an_executor(agent) || beneath(agent).is_some() {
        return None;
    }

    let sandbox = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    // <work_dir>/slaves/<S>/frameworks/<F>/executors/<E>/runs/<container>
    let work_dir = sandbox.ancestors().nth(8)?.to_owned();
    Identity::from_sandbox(&work_dir, &sandbox, container)?;
    let cgroups_root = beneath(pid)
        .or_else(|| {
            CgroupsRoot::try_from(PathBuf::from(env.remove(OsStr::new("MESOS_CGROUPS_ROOT"))?)).ok()
        })
        .unwrap_or_default();
    Some(AgentDirs {
        work_dir: as_we_see_it(agent, &work_dir),
        runtime_dir: as_we_see_it(agent, &runtime_dir),
        cgroups_root,
    })
}

/// `/a/mesos/<container>`, or a cgroup beneath it: `a/mesos`.
fn root_above(path: &Path, container: ContainerId) -> Option<CgroupsRoot> {
    let own = path.ancestors().find(|path| {
        path.file_name()
            .is_some_and(|name| name == container.as_str())
    })?;
    CgroupsRoot::try_from(own.parent()?.to_owned()).ok()
}

fn dirs_of_agent(pid: u32) -> Option<AgentDirs> {
    let work_dir = agent_flag(pid, "work_dir")?;
    let runtime_dir =
        agent_flag(pid, "runtime_dir").unwrap_or_else(|| PathBuf::from(DEFAULT_RUNTIME_DIR));
    let cgroups_root = match agent_flag(pid, "cgroups_root").map(CgroupsRoot::try_from) {
        None => CgroupsRoot::default(),
        Some(Ok(root)) => root,
        Some(Err(error)) => {
            tracing::warn!(pid, %error, "agent skipped");
            return None;
        }
    };
    Some(AgentDirs {
        work_dir: as_we_see_it(pid, &work_dir),
        runtime_dir: as_we_see_it(pid, &runtime_dir),
        cgroups_root,
    })
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

/// A path of another process as this process can open it: the same when both
/// see one mount namespace, else through that process's root.
fn as_we_see_it(pid: u32, path: &Path) -> PathBuf {
    let namespace =
        |pid: &str| -> io::Result<PathBuf> { fs::read_link(format!("/proc/{pid}/ns/mnt")) };
    if let (Ok(ours), Ok(theirs)) = (namespace("self"), namespace(&pid.to_string()))
        && ours == theirs
    {
        return path.to_owned();
    }
    let through =
        PathBuf::from(format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap_or(path));
    // A volume at the same place on the host outlives the agent.
    if same_directory(&through, path) {
        return path.to_owned();
    }
    tracing::warn!(
        pid,
        path = %path.display(),
        "this agent keeps its directories in a mount namespace of its own: they are seen through the agent's process, \
         until it is restarted; name them in [[agents]] as the host sees them"
    );
    through
}

/// Whether two paths lead to one directory.
pub(super) fn same_directory(a: &Path, b: &Path) -> bool {
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
    fn the_root_is_what_a_container_lies_beneath() {
        let id: ContainerId = "857fd7a0-df05-458b-bd72-f5c280790aa0".parse().unwrap();
        let root = |path: String| root_above(Path::new(&path), id).map(|root| root.to_string());
        assert_eq!(root(format!("/mesos/{id}")), Some("mesos".into()));
        assert_eq!(root(format!("/a/b/{id}/leaf")), Some("a/b".into()));
        assert_eq!(root(format!("/{id}")), None);
        assert_eq!(root("/mesos/other".into()), None);
    }

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
        // Known to be running, if it is this user's and names these directories.
        let default = Path::new(DEFAULT_RUNTIME_DIR);
        let dirs = |runtime_dir: &Path| AgentDirs {
            work_dir: work_dir.clone(),
            runtime_dir: runtime_dir.to_owned(),
            cgroups_root: CgroupsRoot::default(),
        };
        let without_checkpoints = running_agent(&dirs(default));
        fs::create_dir_all(work_dir.join("meta")).unwrap();
        let elsewhere = running_agent(&dirs(dir.path()));
        let running = default
            .exists()
            .then(|| running_agent(&dirs(default)).map(|agent| agent.pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((without_checkpoints, elsewhere), (None, None));
        // Only where the host has that directory can two paths be compared.
        if let Some(running) = running {
            assert_eq!(running, Some(child.id()));
        }
        assert_eq!(running_agent(&dirs(default)), None);
        let found = found.expect("the agent");
        assert_eq!(found.runtime_dir, Path::new(DEFAULT_RUNTIME_DIR));
        assert_eq!(found.cgroups_root.as_path(), Path::new("my/mesos"));
    }
}
