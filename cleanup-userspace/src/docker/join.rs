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
///
/// `is_run` tells whether an id is that of a run, not of a container within one;
/// it is asked only of ids that would otherwise be taken for the latter.
pub fn exact_key(
    container: &ContainerInfo,
    run: &RunScope<'_>,
    is_run: impl Fn(ContainerId) -> bool,
) -> Option<JoinKey> {
    if container.agents_own {
        return None;
    }
    // The cgroup decides, whatever the labels say.
    for root in run.all_roots {
        match run_of_cgroup_parent(container, root) {
            Some(named) if named == run.container && root == run.cgroups_root => {
                return Some(JoinKey::CgroupParent);
            }
            Some(named)
                if root == run.cgroups_root
                    && is_nested(container, run, named)
                    && !is_run(named) => {}
            Some(_) => return None,
            None => {}
        }
    }
    // Files in two sandboxes name nobody.
    if files_of(container)
        .filter_map(sandbox_named_by)
        .any(|named| named != run.container)
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

/// Whether `named`, the id in the container's `CgroupParent`, is that of a
/// container within the run: dce-go takes the last part of its working directory
/// for the run's id, and started in a nested container names a cgroup that no
/// agent knows. All compose files have to lie in the directory of exactly this
/// nested container, `<sandbox>/containers/<id>`.
fn is_nested(container: &ContainerInfo, run: &RunScope<'_>, named: ContainerId) -> bool {
    let mut files = files_of(container).peekable();
    files.peek().is_some()
        && files.all(|file| {
            let mut sandboxes = run.sandboxes.iter();
            sandboxes.any(|sandbox| nested_named_by(file, sandbox) == Some(named))
        })
}

/// The innermost nested container in whose directory a path lies:
/// `<sandbox>/containers/<id>`, and again `containers/<id>` for one within it.
fn nested_named_by(path: &str, sandbox: &Path) -> Option<ContainerId> {
    if !lies_in(path, sandbox) {
        return None;
    }
    let mut parts = Path::new(path).strip_prefix(sandbox).ok()?.iter();
    let mut innermost = None;
    while parts.next().is_some_and(|part| part == "containers") {
        let Some(id) = parts.next() else { break };
        innermost = Some(id);
    }
    innermost?.to_str()?.parse().ok()
}

/// The places that compose's labels name.
fn files_of(container: &ContainerInfo) -> impl Iterator<Item = &str> {
    [WORKING_DIR, CONFIG_FILES]
        .iter()
        .filter_map(|label| container.labels.get(*label))
        .flat_map(|value| value.split(','))
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
        || files_of(container).any(|path| sandbox_named_by(path).is_some());
    let joined = !container.agents_own
        && container.labels.get(EXECUTOR_ID) == Some(&evidence.executor_id)
        && !names_a_run
        && container.created >= evidence.started
        && container.created <= evidence.until
        && !evidence.other_run
        && !evidence.several_agents;
    joined.then_some(JoinKey::Label)
}

/// Which runs a container can be joined to by [`exact_key`]: a hint that costs nothing
/// to look up, so that a death is not compared with every container of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Candidate {
    /// Only to these: its cgroup or its files name them. Often none.
    Of(Vec<ContainerId>),
    /// To any: its files lie somewhere that names no run, which may be where a sandbox
    /// really is.
    OfAny,
}

pub fn candidate(container: &ContainerInfo) -> Candidate {
    let mut named: Vec<_> = files_of(container).filter_map(sandbox_named_by).collect();
    if named.is_empty() && files_of(container).next().is_some() {
        return Candidate::OfAny;
    }
    // Whatever the agents' roots are.
    let parents = Path::new(&container.cgroup_parent).components();
    named.extend(parents.filter_map(|part| part.as_os_str().to_str()?.parse::<ContainerId>().ok()));
    named.sort();
    named.dedup();
    Candidate::Of(named)
}

/// The runs that a container's own keys name: at most a few, usually one. A hint
/// where to look; [`exact_key`] decides.
pub fn named_runs(container: &ContainerInfo, roots: &[CgroupsRoot]) -> Vec<ContainerId> {
    let by_parent = roots
        .iter()
        .filter_map(|root| run_of_cgroup_parent(container, root));
    let by_files = files_of(container).filter_map(sandbox_named_by);
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
    const CHILD: &str = "0c41d2e6-6f0a-4b9a-8a53-7d2f0e5b1c9d";

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
        key_beside(container, &[])
    }

    /// [`key`], with these ids known to be runs.
    fn key_beside(container: &ContainerInfo, runs: &[&str]) -> Option<JoinKey> {
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
            |id| runs.contains(&id.as_str()),
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
    fn candidates_are_those_whose_keys_name_the_run_or_a_place_without_a_name() {
        let of = |ids: &[&str]| Candidate::Of(ids.iter().map(|id| id.parse().unwrap()).collect());
        assert_eq!(candidate(&parented(&format!("/a/b/{RUN}/x"))), of(&[RUN]));
        assert_eq!(candidate(&parented("")), of(&[]));
        let both = ContainerInfo {
            cgroup_parent: format!("/mesos/{OTHER}"),
            ..labelled(&[(WORKING_DIR, sandbox(RUN))])
        };
        assert_eq!(candidate(&both), of(&[OTHER, RUN]));
        let elsewhere = labelled(&[(WORKING_DIR, "/resolved".to_owned())]);
        assert_eq!(candidate(&elsewhere), Candidate::OfAny);
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

    /// dce-go in the nested container `CHILD` of the run.
    fn of_nested(parent: &str, working_dir: &str, files: &str) -> ContainerInfo {
        ContainerInfo {
            cgroup_parent: parent.to_owned(),
            ..labelled(&[
                (WORKING_DIR, working_dir.to_owned()),
                (CONFIG_FILES, files.to_owned()),
            ])
        }
    }

    #[test]
    fn a_parent_named_after_a_nested_container_is_the_runs() {
        let here = format!("{}/containers/{CHILD}", sandbox(RUN));
        let parent = format!("/mesos/{CHILD}");
        let file = format!("{here}/poddata/a.yml");
        let pod = of_nested(&parent, &here, &file);
        assert_eq!(key(&pod), Some(JoinKey::WorkingDir));
        assert_eq!(named_runs(&pod, &[CgroupsRoot::default()]).len(), 2);
        // A nested container of a nested container; the sandbox's other name.
        for deep in [
            format!("{}/containers/{OTHER}/containers/{CHILD}/p", sandbox(RUN)),
            format!("/resolved/containers/{CHILD}"),
        ] {
            assert_eq!(
                key(&of_nested(&parent, &deep, &deep)),
                Some(JoinKey::WorkingDir)
            );
        }
        // Known to be a run of its own: whatever the labels say.
        assert_eq!(key_beside(&pod, &[CHILD]), None);
        let elsewhere = format!("{}/containers/{CHILD}", sandbox(OTHER));
        for (parent, dir, file) in [
            // Another nested container, another run's, and not a nested one.
            (
                &parent,
                &format!("{}/containers/{OTHER}", sandbox(RUN)),
                &file,
            ),
            (&parent, &elsewhere, &elsewhere),
            (&parent, &here, &elsewhere),
            (&parent, &sandbox(RUN), &file),
            (&parent, &format!("{}/x/{CHILD}", sandbox(RUN)), &file),
            (
                &parent,
                &format!("{here}/containers"),
                &format!("{here}/../x"),
            ),
            // The parent is the outer one of two.
            (&parent, &format!("{here}/containers/{OTHER}"), &file),
            // Another agent's root, another run's cgroup.
            (&format!("/second/{CHILD}"), &here, &file),
            (&format!("/mesos/{OTHER}"), &here, &file),
        ] {
            assert_eq!(
                key(&of_nested(parent, dir, file)),
                None,
                "{parent} {dir} {file}"
            );
        }
        // No compose files at all.
        assert_eq!(key(&parented(&parent)), None);
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

        /// A parent that names another run joins only by files in the directory of
        /// a nested container of that very id.
        #[test]
        fn another_runs_cgroup_never_joins(path in "(/containers|/poddata|/[.]{2}|/0c41d2e6-6f0a-4b9a-8a53-7d2f0e5b1c9d|/11111111-2222-3333-4444-555555555555|/x){0,6}") {
            let path = format!("{}{path}", sandbox(RUN));
            let joined = key(&of_nested(&format!("/mesos/{CHILD}"), &path, &path)).is_some();
            let mut innermost = None;
            let mut rest = path.strip_prefix(&sandbox(RUN)).unwrap();
            while let Some(inner) = rest.strip_prefix("/containers/") {
                let (id, after) = inner.split_once('/').unwrap_or((inner, ""));
                innermost = Some(id);
                rest = &inner[inner.len() - after.len() - usize::from(inner.contains('/'))..];
            }
            prop_assert_eq!(joined, innermost == Some(CHILD) && !path.contains(".."));
        }

        /// Whatever joins a container to a run, it is among that run's candidates.
        #[test]
        fn what_joins_was_a_candidate(
            parent in "(/mesos|/second|/other)?(/857fd7a0-df05-458b-bd72-f5c280790aa0|/0c41d2e6-6f0a-4b9a-8a53-7d2f0e5b1c9d|/x|/[.]{2}){0,3}",
            dir in "(/w/slaves/S/frameworks/F/executors/E/runs/857fd7a0-df05-458b-bd72-f5c280790aa0|/w/runs/11111111-2222-3333-4444-555555555555|/resolved|/elsewhere|)(/containers/0c41d2e6-6f0a-4b9a-8a53-7d2f0e5b1c9d|/x|/runs){0,2}",
            file in "(|/resolved/a.yml|/w/slaves/S/frameworks/F/executors/E/runs/857fd7a0-df05-458b-bd72-f5c280790aa0/a.yml|/etc/a.yml)",
        ) {
            let container = ContainerInfo {
                cgroup_parent: parent,
                ..labelled(&[(WORKING_DIR, dir), (CONFIG_FILES, file)])
            };
            if key(&container).is_some() {
                let may_be = match candidate(&container) {
                    Candidate::Of(runs) => runs.contains(&RUN.parse().unwrap()),
                    Candidate::OfAny => true,
                };
                prop_assert!(may_be, "{:?}", container);
            }
        }

        #[test]
        fn only_this_runs_cgroup_joins(parent in "[a-f0-9/.-]{0,60}") {
            prop_assert_eq!(key(&parented(&format!("/mesos/{parent}"))), None);
        }
    }
}
