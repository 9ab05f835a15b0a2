//! Which containers are a run's pod (architecture rule 4).
//!
//! A container is joined to a run by a key that names the *run*: the cgroup it
//! lies in, its `CgroupParent`, or the compose files it was made from. Only the
//! pods of Java executors carry no such key; they are joined by the label
//! `executorId` if everything else that is known agrees. Never by the name of a
//! compose project: the pods of one app share it.

use std::path::{Component, Path};

use super::ContainerInfo;
use crate::cgroup::CgroupsRoot;
use crate::mesos::ContainerId;

/// How a container was recognised as part of a pod, most trusted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinKey {
    /// Its cgroup is a directory of the run's cgroup.
    Cgroup,
    /// `HostConfig.CgroupParent` is the run's cgroup.
    CgroupParent,
    /// Compose's working directory lies in the run's sandbox.
    WorkingDir,
    /// A compose file of it lies in the run's sandbox.
    ConfigFiles,
    /// The label `executorId`, corroborated.
    Label,
}

/// What a run-exact key is compared with.
#[derive(Debug, Clone)]
pub struct RunScope<'a> {
    pub container: ContainerId,
    pub cgroups_root: &'a CgroupsRoot,
    /// The roots of all agents: a parent beneath any of them decides.
    pub all_roots: &'a [CgroupsRoot],
    /// The run's sandbox under every name it has; none known, only cgroups join.
    pub sandboxes: Vec<&'a Path>,
}

const WORKING_DIR: &str = "com.docker.compose.project.working_dir";
const CONFIG_FILES: &str = "com.docker.compose.project.config_files";
const EXECUTOR_ID: &str = "executorId";

/// The run-exact key that makes a container part of this run, if there is one.
pub fn exact_key(container: &ContainerInfo, run: &RunScope<'_>) -> Option<JoinKey> {
    if container.agents_own {
        return None;
    }
    // The cgroup decides, whatever the labels say.
    let mut parents = run
        .all_roots
        .iter()
        .filter_map(|root| Some((root, run_of_cgroup_parent(container, root)?)));
    if let Some((root, named)) = parents.next() {
        return (named == run.container && root == run.cgroups_root)
            .then_some(JoinKey::CgroupParent);
    }
    // Files in two sandboxes name nobody.
    if named_runs(container, run.all_roots)
        .iter()
        .any(|named| *named != run.container)
    {
        return None;
    }
    let here = |path: &str| run.sandboxes.iter().any(|sandbox| lies_in(path, sandbox));
    if container
        .labels
        .get(WORKING_DIR)
        .is_some_and(|dir| here(dir))
    {
        return Some(JoinKey::WorkingDir);
    }
    container
        .labels
        .get(CONFIG_FILES)?
        .split(',')
        .any(here)
        .then_some(JoinKey::ConfigFiles)
}

/// Everything that must be known for a join by label alone.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelEvidence {
    /// The dead run's executor id as a label can hold it.
    pub executor_id: String,
    /// When the executor started, and the end of the settle time after its
    /// death, in seconds since the epoch.
    pub started: f64,
    pub until: f64,
    /// Another run with this executor id lives, or ended in the last 10 minutes.
    pub other_run: bool,
    /// More than one agent is configured.
    pub several_agents: bool,
}

/// Whether a container without a run-exact key is part of the dead run.
pub fn label_key(
    container: &ContainerInfo,
    roots: &[CgroupsRoot],
    evidence: &LabelEvidence,
) -> Option<JoinKey> {
    let names_a_run = roots
        .iter()
        .any(|root| run_of_cgroup_parent(container, root).is_some())
        || [WORKING_DIR, CONFIG_FILES]
            .iter()
            .filter_map(|label| container.labels.get(*label))
            .flat_map(|value| value.split(','))
            .any(|path| sandbox_named_by(path).is_some());
    let joined = !container.agents_own
        && container.labels.get(EXECUTOR_ID) == Some(&evidence.executor_id)
        && !names_a_run
        && container.created >= evidence.started
        && container.created <= evidence.until
        && !evidence.other_run
        && !evidence.several_agents;
    joined.then_some(JoinKey::Label)
}

/// The runs that a container's own keys name: at most a few, usually one. A hint
/// where to look; [`exact_key`] decides.
pub fn named_runs(container: &ContainerInfo, roots: &[CgroupsRoot]) -> Vec<ContainerId> {
    let by_parent = roots
        .iter()
        .filter_map(|root| run_of_cgroup_parent(container, root));
    let by_files = [WORKING_DIR, CONFIG_FILES]
        .iter()
        .filter_map(|label| container.labels.get(*label))
        .flat_map(|value| value.split(','))
        .filter_map(sandbox_named_by);
    let mut runs: Vec<_> = by_parent.chain(by_files).collect();
    runs.sort();
    runs.dedup();
    runs
}

/// The run that a container's `CgroupParent` names: `/<root>/<uuid>` or deeper.
fn run_of_cgroup_parent(container: &ContainerInfo, root: &CgroupsRoot) -> Option<ContainerId> {
    let parent = Path::new(&container.cgroup_parent);
    if !is_plain(parent) {
        return None;
    }
    let below = parent
        .strip_prefix("/")
        .unwrap_or(parent)
        .strip_prefix(root.as_path())
        .ok()?;
    below
        .components()
        .next()?
        .as_os_str()
        .to_str()?
        .parse()
        .ok()
}

/// Whether a path is inside `sandbox` (or is it), read literally.
fn lies_in(path: &str, sandbox: &Path) -> bool {
    let path = Path::new(path);
    path.is_absolute() && is_plain(path) && path.starts_with(sandbox)
}

/// The run whose sandbox a path seems to lie in.
fn sandbox_named_by(path: &str) -> Option<ContainerId> {
    let parts: Vec<_> = Path::new(path)
        .components()
        .map(Component::as_os_str)
        .collect();
    parts
        .windows(2)
        .filter(|pair| pair[0] == "runs")
        .find_map(|pair| pair[1].to_str()?.parse().ok())
}

/// No `..` that would mean another place.
fn is_plain(path: &Path) -> bool {
    path.components()
        .all(|component| matches!(component, Component::RootDir | Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RUN: &str = "857fd7a0-df05-458b-bd72-f5c280790aa0";
    const OTHER: &str = "11111111-2222-3333-4444-555555555555";

    fn sandbox(id: &str) -> String {
        format!("/w/slaves/S/frameworks/F/executors/E/runs/{id}")
    }

    fn labelled(labels: &[(&str, String)]) -> ContainerInfo {
        ContainerInfo {
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone()))
                .collect(),
            created: 100.0,
            ..ContainerInfo::default()
        }
    }

    fn parented(parent: &str) -> ContainerInfo {
        ContainerInfo {
            cgroup_parent: parent.to_owned(),
            ..ContainerInfo::default()
        }
    }

    fn key(container: &ContainerInfo) -> Option<JoinKey> {
        let root = CgroupsRoot::default();
        let sandbox = sandbox(RUN);
        exact_key(
            container,
            &RunScope {
                container: RUN.parse().unwrap(),
                cgroups_root: &root,
                all_roots: &[
                    root.clone(),
                    CgroupsRoot::try_from(std::path::PathBuf::from("second")).unwrap(),
                ],
                sandboxes: vec![Path::new(&sandbox), Path::new("/resolved")],
            },
        )
    }

    #[test]
    fn a_cgroup_parent_names_the_run() {
        assert_eq!(
            key(&parented(&format!("/mesos/{RUN}"))),
            Some(JoinKey::CgroupParent)
        );
        assert_eq!(
            key(&parented(&format!("mesos/{RUN}"))),
            Some(JoinKey::CgroupParent)
        );
        assert_eq!(
            key(&parented(&format!("/mesos/{RUN}/sub"))),
            Some(JoinKey::CgroupParent)
        );
        for other in [
            String::new(),
            "/mesos".to_owned(),
            format!("/mesos/{OTHER}"),
            format!("/mesos/{RUN}x"),
            format!("/other/{RUN}"),
            format!("/mesos/{OTHER}/../{RUN}"),
            format!("/x/mesos/{RUN}"),
            "/mesos/sandbox".to_owned(),
        ] {
            assert_eq!(key(&parented(&other)), None, "{other}");
        }
    }

    #[test]
    fn compose_files_in_the_sandbox_name_the_run() {
        let here = sandbox(RUN);
        assert_eq!(
            key(&labelled(&[(WORKING_DIR, here.clone())])),
            Some(JoinKey::WorkingDir)
        );
        assert_eq!(
            key(&labelled(&[(WORKING_DIR, format!("{here}/app"))])),
            Some(JoinKey::WorkingDir)
        );
        let files = format!("/etc/x.yml,{here}/poddata/docker-compose.yml");
        assert_eq!(
            key(&labelled(&[(CONFIG_FILES, files)])),
            Some(JoinKey::ConfigFiles)
        );
        for elsewhere in [
            sandbox(OTHER),
            format!("{here}/../{OTHER}"),
            format!("{here}0"),
            "app".to_owned(),
            "/".to_owned(),
        ] {
            assert_eq!(
                key(&labelled(&[(WORKING_DIR, elsewhere.clone())])),
                None,
                "{elsewhere}"
            );
        }
    }

    #[test]
    fn a_sandbox_has_more_than_one_name() {
        assert_eq!(
            key(&labelled(&[(WORKING_DIR, "/resolved/app".to_owned())])),
            Some(JoinKey::WorkingDir)
        );
    }

    #[test]
    fn files_in_two_sandboxes_name_nobody() {
        let files = format!("{}/a.yml,{}/b.yml", sandbox(RUN), sandbox(OTHER));
        assert_eq!(key(&labelled(&[(CONFIG_FILES, files.clone())])), None);
        assert_eq!(
            key(&labelled(&[
                (WORKING_DIR, sandbox(OTHER)),
                (CONFIG_FILES, format!("{}/a.yml", sandbox(RUN)))
            ])),
            None
        );
    }

    #[test]
    fn a_parent_beneath_another_agents_root_decides_too() {
        let other = ContainerInfo {
            cgroup_parent: format!("/second/{RUN}"),
            ..labelled(&[(WORKING_DIR, sandbox(RUN))])
        };
        assert_eq!(key(&other), None);
    }

    #[test]
    fn the_cgroup_decides_over_a_forged_label() {
        let forged = ContainerInfo {
            cgroup_parent: format!("/mesos/{OTHER}"),
            ..labelled(&[(WORKING_DIR, sandbox(RUN))])
        };
        assert_eq!(key(&forged), None);
    }

    #[test]
    fn an_agents_own_container_is_nobodys_pod() {
        let own = ContainerInfo {
            agents_own: true,
            ..parented(&format!("/mesos/{RUN}"))
        };
        assert_eq!(key(&own), None);
    }

    fn evidence() -> LabelEvidence {
        LabelEvidence {
            executor_id: "web".to_owned(),
            started: 50.0,
            until: 150.0,
            other_run: false,
            several_agents: false,
        }
    }

    fn by_label(container: &ContainerInfo, evidence: &LabelEvidence) -> Option<JoinKey> {
        label_key(container, &[CgroupsRoot::default()], evidence)
    }

    #[test]
    fn a_label_joins_only_with_every_corroboration() {
        let container = labelled(&[(EXECUTOR_ID, "web".to_owned())]);
        assert_eq!(by_label(&container, &evidence()), Some(JoinKey::Label));
        for (what, missing) in [
            (
                "id",
                LabelEvidence {
                    executor_id: "we".to_owned(),
                    ..evidence()
                },
            ),
            (
                "started",
                LabelEvidence {
                    started: 101.0,
                    ..evidence()
                },
            ),
            (
                "ended",
                LabelEvidence {
                    until: 99.0,
                    ..evidence()
                },
            ),
            (
                "other run",
                LabelEvidence {
                    other_run: true,
                    ..evidence()
                },
            ),
            (
                "agents",
                LabelEvidence {
                    several_agents: true,
                    ..evidence()
                },
            ),
        ] {
            assert_eq!(by_label(&container, &missing), None, "{what}");
        }
        let id = (EXECUTOR_ID, "web".to_owned());
        for other in [
            ContainerInfo {
                cgroup_parent: format!("/mesos/{OTHER}"),
                ..container.clone()
            },
            ContainerInfo {
                agents_own: true,
                ..container.clone()
            },
            labelled(&[id.clone(), (WORKING_DIR, sandbox(OTHER))]),
            labelled(&[id, (CONFIG_FILES, format!("{}/a.yml", sandbox(OTHER)))]),
            labelled(&[]),
        ] {
            assert_eq!(by_label(&other, &evidence()), None, "{other:?}");
        }
    }

    proptest! {
        /// No text can be inside the sandbox without starting with it.
        #[test]
        fn outside_stays_outside(path in "/[a-z./-]{0,30}") {
            prop_assume!(!path.starts_with("/w/slaves/S/frameworks/F/executors/E/runs/"));
            prop_assert_eq!(key(&labelled(&[(WORKING_DIR, path)])), None);
        }

        #[test]
        fn only_this_runs_cgroup_joins(parent in "[a-f0-9/.-]{0,60}") {
            prop_assert_eq!(key(&parented(&format!("/mesos/{parent}"))), None);
        }
    }
}
