//! One run's cgroup in one hierarchy, and the fence around it.
//!
//! Every path that is opened, read or removed here lies beneath
//! `<mount>/<cgroups_root>/<container id>`: it is resolved by the kernel relative
//! to a descriptor, with symbolic links and `..` refused. There is no way to name
//! anything else through this type.

use std::ffi::{CString, OsStr};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, unlinkat,
};
use rustix::io::Errno;

use super::{CgroupsRoot, Hierarchy};
use crate::mesos::ContainerId;

/// How deep a run's tree may be before we refuse to walk it: Mesos allows 32
/// levels of nesting, each two directories.
const MAX_DEPTH: usize = 80;

/// The cgroup `<root>/<container id>` of one hierarchy.
#[derive(Debug)]
pub struct RunCgroup {
    /// `<mount>/<cgroups_root>`.
    root: OwnedFd,
    /// `<container id>` in it, as it was found: what is made anew under this name later is
    /// not seen through it.
    own: OwnedFd,
    container: ContainerId,
    hierarchy: Hierarchy,
    root_path: CgroupsRoot,
}

/// What became of a directory that was to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    Removed,
    /// Somebody else was faster: as good as removed.
    Gone,
    /// Something is still in it: try again later.
    Busy(Busy),
}

/// Why a directory cannot be removed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// EBUSY: a process or another cgroup is in it.
    Busy,
    /// ENOTEMPTY.
    NotEmpty,
}

impl Busy {
    pub const ALL: [Self; 2] = [Self::Busy, Self::NotEmpty];

    /// The errno.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "EBUSY",
            Self::NotEmpty => "ENOTEMPTY",
        }
    }
}

impl RunCgroup {
    /// `Ok(None)`: this hierarchy has no Mesos root, or no such container in it.
    pub fn open(
        hierarchy: &Hierarchy,
        root: &CgroupsRoot,
        container: ContainerId,
    ) -> io::Result<Option<Self>> {
        let root_fd = match open_beneath(
            hierarchy.mount_dir()?,
            root.as_path(),
            OFlags::RDONLY | OFlags::DIRECTORY,
        ) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let own = match open_beneath(
            root_fd.as_fd(),
            Path::new(container.as_str()),
            OFlags::RDONLY | OFlags::DIRECTORY,
        ) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NODEV) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(Some(Self {
            root: root_fd,
            own,
            container,
            hierarchy: hierarchy.clone(),
            root_path: root.clone(),
        }))
    }

    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// For people and for comparison with `/proc/PID/cgroup`; never opened.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(self.root_path.absolute(self.container.as_str()))
    }

    /// Names of the cgroups directly beneath the run's.
    pub fn children(&self) -> io::Result<Vec<String>> {
        self.subdirectories(Path::new(""))
    }

    /// Docker ids of the containers that lie beneath the run's cgroup.
    pub fn docker_ids(&self) -> io::Result<Vec<String>> {
        Ok(self
            .children()?
            .iter()
            .filter_map(|name| docker_child(name))
            .map(str::to_owned)
            .collect())
    }

    /// Every cgroup of the run, as paths relative to it, deepest first; the
    /// run's own (the empty path) last.
    pub fn tree(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        self.walk(Path::new(""), &mut found, &|_| true, 0)?;
        Ok(found)
    }

    /// As [`tree`](Self::tree), without what is Docker's.
    pub fn own_tree(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        self.walk(
            Path::new(""),
            &mut found,
            &|name| docker_child(name).is_none(),
            0,
        )?;
        Ok(found)
    }

    /// The run's own processes: those in its cgroup and beneath, but not in a
    /// Docker container's.
    pub fn own_procs(&self) -> io::Result<Vec<u32>> {
        self.procs_of(&self.own_tree()?)
    }

    /// The processes of Docker containers beneath the run's cgroup, except those
    /// of the containers whose ids are in `but`.
    pub fn docker_procs(&self, but: &[String]) -> io::Result<Vec<u32>> {
        let mut cgroups = Vec::new();
        for name in self.children()? {
            if docker_child(&name).is_some_and(|id| !but.iter().any(|other| other == id)) {
                self.walk(Path::new(&name), &mut cgroups, &|_| true, 1)?;
            }
        }
        self.procs_of(&cgroups)
    }

    /// Whether one Docker container has a cgroup beneath the run's.
    pub fn has_container(&self, id: &str) -> io::Result<bool> {
        for name in docker_names(id) {
            match self.open_dir(Path::new(&name)) {
                Ok(_) => return Ok(true),
                Err(Errno::NOENT | Errno::NODEV) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    /// The processes of one Docker container beneath the run's cgroup; none if it has no
    /// cgroup there.
    pub fn container_procs(&self, id: &str) -> io::Result<Vec<u32>> {
        let mut cgroups = Vec::new();
        // By its name, not by a list of the run's cgroups: that waits while one is removed.
        for name in docker_names(id) {
            self.walk(Path::new(&name), &mut cgroups, &|_| true, 1)?;
        }
        self.procs_of(&cgroups)
    }

    /// Whether one Docker container beneath the run's cgroup is frozen (paused).
    pub fn is_container_frozen(&self, id: &str) -> io::Result<bool> {
        let (file, thawed) = if self.hierarchy.unified {
            ("cgroup.freeze", "0")
        } else {
            ("freezer.state", "THAWED")
        };
        for name in docker_names(id) {
            match self.read(&Path::new(&name).join(file)) {
                Ok(state) => return Ok(state.trim() != thawed),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn procs_of(&self, cgroups: &[PathBuf]) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        for cgroup in cgroups {
            pids.extend(self.procs(cgroup)?);
        }
        Ok(pids)
    }

    /// The processes in one cgroup of the run; none if it does not exist.
    pub fn procs(&self, below: &Path) -> io::Result<Vec<u32>> {
        let text = match self.read(&below.join("cgroup.procs")) {
            Ok(text) => text,
            Err(error) if is_gone(&error) => return Ok(Vec::new()),
            // A threaded cgroup has no processes of its own to list.
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        // PID 0: a process of another namespace, or one that is just dying.
        Ok(text
            .lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid| *pid != 0)
            .collect())
    }

    /// Removes one cgroup of the run that must be empty.
    pub fn remove(&self, below: &Path) -> io::Result<Removal> {
        if !below
            .components()
            .all(|component| matches!(component, Component::Normal(_)))
        {
            return Err(Errno::XDEV.into());
        }
        let name = below
            .file_name()
            .unwrap_or_else(|| OsStr::new(self.container.as_str()));
        let removed = match below.parent() {
            // The run's own cgroup.
            None => unlinkat(&self.root, name, AtFlags::REMOVEDIR),
            Some(parent) if parent.as_os_str().is_empty() => {
                unlinkat(&self.own, name, AtFlags::REMOVEDIR)
            }
            Some(parent) => match self.open_dir(parent) {
                Ok(dir) => unlinkat(&dir, name, AtFlags::REMOVEDIR),
                Err(error) => Err(error),
            },
        };
        match removed {
            Ok(()) => Ok(Removal::Removed),
            Err(Errno::NOENT | Errno::NODEV) => Ok(Removal::Gone),
            Err(Errno::BUSY) => Ok(Removal::Busy(Busy::Busy)),
            Err(Errno::NOTEMPTY) => Ok(Removal::Busy(Busy::NotEmpty)),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a control file of the run.
    pub(super) fn read(&self, below: &Path) -> io::Result<String> {
        let fd = self.open_at(below, OFlags::RDONLY)?;
        let mut text = String::new();
        std::fs::File::from(fd).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Writes a control file of the run.
    pub(super) fn write(&self, below: &Path, value: &str) -> io::Result<()> {
        let fd = self.open_at(below, OFlags::WRONLY)?;
        rustix::io::write(&fd, value.as_bytes())?;
        Ok(())
    }

    fn open_dir(&self, below: &Path) -> Result<OwnedFd, Errno> {
        self.open_at(below, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Everything is opened relative to the run's own directory: a path that is
    /// not strictly beneath it cannot be expressed.
    fn open_at(&self, below: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        if below.as_os_str().is_empty() {
            return openat(&self.own, ".", flags | OFlags::CLOEXEC, Mode::empty());
        }
        open_beneath(self.own.as_fd(), below, flags)
    }

    fn subdirectories(&self, below: &Path) -> io::Result<Vec<String>> {
        let dir = match self.open_dir(below) {
            // A cgroup's subdirectories count as its links, beside its name and `.`
            // (kernfs_refresh_inode; before Linux 3.15 cgroup_create_file): to read the names
            // of all its files takes longer, and waits for whoever removes a cgroup.
            Ok(fd) if fstat(&fd)?.st_nlink == 2 => return Ok(Vec::new()),
            Ok(fd) => Dir::new(fd)?,
            Err(Errno::NOENT | Errno::NODEV) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut names = Vec::new();
        for entry in dir {
            let entry = match entry {
                Ok(entry) => entry,
                // Removed while we read it.
                Err(Errno::NOENT | Errno::NODEV) => break,
                Err(error) => return Err(error.into()),
            };
            if entry.file_type() == FileType::Directory
                && let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn walk(
        &self,
        below: &Path,
        found: &mut Vec<PathBuf>,
        into: &dyn Fn(&str) -> bool,
        depth: usize,
    ) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other(format!(
                "more than {MAX_DEPTH} levels of cgroups beneath {}",
                self.path().display()
            )));
        }
        for name in self.subdirectories(below)?.iter().filter(|name| into(name)) {
            self.walk(&below.join(name), found, into, depth + 1)?;
        }
        found.push(below.to_owned());
        Ok(())
    }
}

/// Whether the thing a file belonged to has vanished.
fn is_gone(error: &io::Error) -> bool {
    [Errno::NOENT, Errno::NODEV]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// What [`docker_child`] reads.
fn docker_names(id: &str) -> [String; 2] {
    [id.to_owned(), format!("docker-{id}.scope")]
}

/// The Docker id in the name of a cgroup that Docker makes for a container: the
/// id itself (cgroupfs driver) or `docker-<id>.scope` (systemd driver).
pub fn docker_child(name: &str) -> Option<&str> {
    let id = name
        .strip_prefix("docker-")
        .and_then(|n| n.strip_suffix(".scope"))
        .unwrap_or(name);
    (id.len() == 64
        && id
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
    .then_some(id)
}

/// Opens `path` relative to `dir` without ever leaving `dir` and without
/// following a symbolic link.
fn open_beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    match openat2(
        dir,
        &c_path,
        flags,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    ) {
        // Kernels before 5.6, or a seccomp filter that does not know the call.
        Err(Errno::NOSYS | Errno::PERM) => walk_beneath(dir, path, flags),
        other => other,
    }
}

/// [`open_beneath`] one component at a time.
fn walk_beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let names: Vec<&OsStr> = path
        .components()
        .map(|component| match component {
            Component::Normal(name) => Ok(name),
            _ => Err(Errno::XDEV),
        })
        .collect::<Result<_, _>>()?;
    let (last, parents) = names.split_last().ok_or(Errno::INVAL)?;
    let mut at: Option<OwnedFd> = None;
    for name in parents {
        let parent = at.as_ref().map_or(dir, AsFd::as_fd);
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        at = Some(openat(parent, *name, step, Mode::empty())?);
    }
    openat(
        at.as_ref().map_or(dir, AsFd::as_fd),
        *last,
        flags,
        Mode::empty(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    const ID: &str = "857fd7a0-df05-458b-bd72-f5c280790aa0";
    const DOCKER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// An ordinary directory tree stands in for cgroupfs: the rules about paths
    /// are the same.
    fn host() -> (tempfile::TempDir, Hierarchy) {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy::new(vec!["freezer".into()], dir.path().join("mnt"), false);
        fs::create_dir_all(hierarchy.mount.join("mesos").join(ID).join(DOCKER)).unwrap();
        fs::create_dir_all(hierarchy.mount.join("mesos").join(ID).join("mesos/child")).unwrap();
        fs::create_dir_all(hierarchy.mount.join("mesos/other")).unwrap();
        (dir, hierarchy)
    }

    fn open(hierarchy: &Hierarchy) -> Option<RunCgroup> {
        RunCgroup::open(hierarchy, &CgroupsRoot::default(), ID.parse().unwrap()).unwrap()
    }

    #[test]
    fn walks_deepest_first_and_tells_dockers_from_its_own() {
        let (_dir, hierarchy) = host();
        let run = open(&hierarchy).unwrap();
        assert_eq!(run.docker_ids().unwrap(), [DOCKER]);
        assert!(run.has_container(DOCKER).unwrap());
        assert!(!run.has_container(&DOCKER.replace('0', "1")).unwrap());
        let tree = run.tree().unwrap();
        assert_eq!(tree.len(), 4);
        assert_eq!(tree.last().unwrap(), Path::new(""));
        assert!(
            tree.iter().position(|p| p == Path::new("mesos/child"))
                < tree.iter().position(|p| p == Path::new("mesos"))
        );
        assert!(!run.own_tree().unwrap().contains(&PathBuf::from(DOCKER)));
    }

    #[test]
    fn removes_bottom_up_and_calls_gone_a_success() {
        let (_dir, hierarchy) = host();
        let run = open(&hierarchy).unwrap();
        let removal = run.remove(Path::new("")).unwrap();
        assert_eq!(removal, Removal::Busy(Busy::NotEmpty));
        for below in run.tree().unwrap() {
            assert_eq!(run.remove(&below).unwrap(), Removal::Removed, "{below:?}");
            assert_eq!(run.remove(&below).unwrap(), Removal::Gone, "{below:?}");
        }
        assert!(hierarchy.mount.join("mesos/other").exists());
        assert!(open(&hierarchy).is_none());
    }

    #[test]
    fn links_are_never_followed() {
        let (dir, hierarchy) = host();
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join("victim")).unwrap();
        let inside = hierarchy.mount.join("mesos").join(ID);
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        let run = open(&hierarchy).unwrap();
        assert!(!run.children().unwrap().contains(&"link".to_owned()));
        for escape in ["link/victim", "../other", "../../outside", "/etc", "link"] {
            assert!(run.remove(Path::new(escape)).is_err(), "{escape}");
        }
        assert!(outside.join("victim").exists() && hierarchy.mount.join("mesos/other").exists());

        // The root itself replaced by a link.
        fs::rename(hierarchy.mount.join("mesos"), dir.path().join("moved")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("moved"), hierarchy.mount.join("mesos"))
            .unwrap();
        assert!(RunCgroup::open(&hierarchy, &CgroupsRoot::default(), ID.parse().unwrap()).is_err());
    }

    #[test]
    fn the_fallback_keeps_the_same_fence() {
        let (dir, hierarchy) = host();
        let mount = hierarchy.mount_dir().unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        assert!(walk_beneath(mount, Path::new("mesos/other"), flags).is_ok());
        std::os::unix::fs::symlink(dir.path(), hierarchy.mount.join("mesos/link")).unwrap();
        for bad in [
            "mesos/link",
            "mesos/link/mnt",
            "..",
            "mesos/../mesos",
            "/etc",
        ] {
            assert!(walk_beneath(mount, Path::new(bad), flags).is_err(), "{bad}");
        }
    }

    #[test]
    fn docker_names() {
        assert_eq!(docker_child(DOCKER), Some(DOCKER));
        assert_eq!(
            docker_child(&format!("docker-{DOCKER}.scope")),
            Some(DOCKER)
        );
        for other in [
            "leaf",
            "mesos",
            ID,
            &DOCKER[1..],
            &format!("{DOCKER}.scope"),
            &format!("docker-{DOCKER}"),
            &DOCKER.to_uppercase(),
        ] {
            assert_eq!(docker_child(other), None, "{other}");
        }
    }

    proptest! {
        /// Whatever the name, nothing outside the run's directory disappears.
        #[test]
        fn no_path_leaves_the_fence(path in "(\\.\\./|\\./|/|mesos/|other|child|[a-z]){0,6}") {
            let (dir, hierarchy) = host();
            let run = open(&hierarchy).unwrap();
            let _ = run.remove(Path::new(&path));
            prop_assert!(hierarchy.mount.join("mesos/other").exists());
            prop_assert!(dir.path().exists());
        }
    }
}
