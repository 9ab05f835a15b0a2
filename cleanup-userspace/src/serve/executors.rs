//! `/v1/executors`: who lives, and with which containers.

use super::api;
use super::status::{name, path_text};
use crate::case::{Death, Host, Origin, joined, key_name, printable};
use crate::docker::{JoinKey, Listed};
use crate::registry::{Launcher, Run};

/// The live runs of the registry. Reads cgroups, and compares each run with each
/// container: not for the daemon's loop.
pub fn executors(host: &Host) -> api::Executors {
    // Copied: the keys are looked for without the lock.
    let runs: Vec<Run> = host.registry().iter().cloned().collect();
    let running = indexed(host);
    let mut executors: Vec<api::Executor> = runs
        .iter()
        .map(|run| executor(host, run, &running))
        .collect();
    executors.sort_by(|a, b| (&a.executor, &a.container).cmp(&(&b.executor, &b.container)));
    api::Executors { executors }
}

/// What runs, as Docker's events have told: no question.
pub(super) fn indexed(host: &Host) -> Vec<Listed> {
    let running = host.index.running().into_iter();
    running
        .map(|info| Listed {
            id: info.id.clone(),
            info: Some(info),
        })
        .collect()
}

fn executor(host: &Host, run: &Run, running: &[Listed]) -> api::Executor {
    let identity = run.identity.as_ref();
    // As if it died now: that decides what a label joins.
    let pod = joined(host, run, &Death::noticed(Origin::Scan), running);
    let mut pod: Vec<api::PodContainer> = pod
        .iter()
        .map(|(listed, key)| container(host, listed, *key))
        .collect();
    pod.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    api::Executor {
        container: run.container.to_string(),
        framework: name(identity, |identity| &identity.framework_id),
        executor: name(identity, |identity| &identity.executor_id),
        agent: path_text(&host.dirs(run.agent).work_dir),
        launcher: match run.launcher {
            Launcher::Linux => api::Launcher::Linux,
            Launcher::Posix => api::Launcher::Posix,
        },
        helper_pid: run.helper.map(|helper| helper.pid),
        executor_pid: run.executor.map(|executor| executor.pid),
        orphaned: run.orphaned,
        pod,
    }
}

pub(super) fn container(host: &Host, listed: &Listed, key: JoinKey) -> api::PodContainer {
    let info = listed.info.as_deref();
    let text = |of: Option<&String>| of.map_or_else(String::new, |text| printable(text.as_ref()));
    api::PodContainer {
        id: printable(listed.id.as_ref()),
        name: text(info.map(|info| &info.name)),
        image: text(info.map(|info| &info.image)),
        joined_by: key_name(key).to_owned(),
        kept: info.is_some_and(|info| host.keeps(info)),
    }
}
