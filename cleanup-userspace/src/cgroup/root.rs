//! `--cgroups_root` of an agent, as a path that cannot leave its mount.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

/// A relative path of one or more normal components (`mesos`, `a/b/mesos`).
/// A leading slash is accepted, as agents accept it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct CgroupsRoot(PathBuf);

/// Why a path is no cgroups root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cgroups root {0:?} must name a cgroup below the mount point, without `.` or `..` (for instance \"mesos\")"
)]
pub struct InvalidRoot(PathBuf);

impl CgroupsRoot {
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// The path that a cgroup beneath the root has in `/proc/PID/cgroup` and in
    /// Docker's `HostConfig.CgroupParent`: `/mesos/<name>`.
    pub fn absolute(&self, name: &str) -> String {
        format!("/{}/{name}", self.0.display())
    }
}

impl Default for CgroupsRoot {
    fn default() -> Self {
        Self(PathBuf::from("mesos"))
    }
}

impl TryFrom<PathBuf> for CgroupsRoot {
    type Error = InvalidRoot;

    fn try_from(path: PathBuf) -> Result<Self, InvalidRoot> {
        let mut clean = PathBuf::new();
        // `components` swallows inner `.`: look at the text too.
        let dotted = path
            .as_os_str()
            .as_encoded_bytes()
            .split(|byte| *byte == b'/')
            .any(|part| part == b".");
        for component in path.components() {
            match component {
                Component::RootDir => {}
                Component::Normal(name)
                    if name.to_str().is_some_and(|n| !n.contains(char::is_control)) =>
                {
                    clean.push(name);
                }
                _ => return Err(InvalidRoot(path)),
            }
        }
        if clean.as_os_str().is_empty() || dotted {
            return Err(InvalidRoot(path));
        }
        Ok(Self(clean))
    }
}

impl fmt::Display for CgroupsRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn root(text: &str) -> Result<CgroupsRoot, InvalidRoot> {
        CgroupsRoot::try_from(PathBuf::from(text))
    }

    #[test]
    fn usual_roots() {
        assert_eq!(root("mesos"), Ok(CgroupsRoot::default()));
        assert_eq!(root("/mesos/"), Ok(CgroupsRoot::default()));
        assert_eq!(root("a/b/mesos").unwrap().as_path(), Path::new("a/b/mesos"));
        assert_eq!(root("mesos").unwrap().absolute("x"), "/mesos/x");
    }

    #[test]
    fn roots_that_could_mean_something_else() {
        for bad in [
            "",
            "/",
            ".",
            "..",
            "mesos/..",
            "../mesos",
            "a/../../b",
            "./mesos",
            "a/./b",
            "a\nb",
        ] {
            assert!(root(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_stays_beneath(text in "[a-z./ ]{0,20}") {
            if let Ok(root) = root(&text) {
                prop_assert!(root.as_path().components().all(|c| matches!(c, Component::Normal(_))));
                prop_assert!(root.as_path().components().count() > 0);
            }
        }
    }
}
