//! What a real agent cannot be brought to on demand: the cgroup v2 layout, its
//! failure modes, and precise races. Docker, the kernel's events and the cgroups
//! are real; the agent is a stand-in (`cleanup_tests::mesos::standin`).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use cleanup_tests::docker::{Dockerd, IMAGE};
use cleanup_tests::host::ENFORCE;
use cleanup_tests::mesos::standin::{CgroupLayout, Destroy, StandInAgent, StandInRun};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::wait;
use cleanup_tests::watcher::Watcher;

const SOON: Duration = Duration::from_secs(60);

const OBEDIENT: &str = "trap 'exit 0' TERM; sleep 86400 & wait $!";
const IGNORING_TERM: &str = "trap '' TERM; exec sleep 86400";

const STUCK: &str = "the agent has not finished its destroy of a dead container: its cgroups stay until it does, \
                     is restarted, or is gone";

/// Dropped from top to bottom.
struct Bed {
    watcher: Watcher,
    agent: StandInAgent,
    docker: Dockerd,
    scratch: Scratch,
}

impl Bed {
    fn start(name: &str, options: &str) -> Result<Self> {
        Self::with_layout(name, CgroupLayout::V1, options)
    }

    fn with_layout(name: &str, layout: CgroupLayout, options: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let docker = Dockerd::start(&scratch)?;
        docker.import_busybox()?;
        let agent = StandInAgent::start(&scratch, layout)?;
        let mut options = format!("{ENFORCE}\n{options}\n");
        if layout == CgroupLayout::V2 {
            options += "[cgroup]\nlayout = \"v2\"\n";
        }
        let watcher = Watcher::start_telling_steps(&scratch, &docker, &[agent.place()], &options)?;
        Ok(Self {
            watcher,
            agent,
            docker,
            scratch,
        })
    }

    /// A run that the daemon has learnt.
    fn launch(&self, executor_id: &str) -> Result<StandInRun> {
        let run = self.agent.launch(executor_id)?;
        self.watcher.wait_message_of(run.container_id(), "learnt")?;
        Ok(run)
    }

    /// A container of a run's pod.
    fn start_container(&self, run: &StandInRun, script: &str) -> Result<String> {
        let parent = format!("--cgroup-parent={}", run.cgroup_parent());
        let arguments = ["run", "--detach", "--network=none", &parent, IMAGE];
        self.docker
            .docker(&[&arguments[..], &["sh", "-c", script]].concat())
    }

    fn wait_stopped(&self, id: &str) -> Result<()> {
        wait::try_until(SOON, format_args!("{id} to be stopped"), || {
            Ok((self.docker.inspect(id)?["State"]["Running"] == false).then_some(()))
        })
    }

    /// What there is of a run beneath the cgroups roots, of whomever.
    fn cgroups_of(&self, run: &StandInRun) -> Vec<PathBuf> {
        let mut left = self.scratch.leftovers();
        left.retain(|path| path.iter().any(|part| part == run.container_id()));
        left
    }

    /// The case is open, and what is the agent's is untouched.
    fn ensure_open(&self, run: &StandInRun, destroy: &Destroy) -> Result<()> {
        for cgroup in destroy.cgroups_left() {
            ensure!(cgroup.is_dir(), "{} is gone", cgroup.display());
        }
        let is_forgotten = destroy.next().is_none();
        ensure!(
            is_forgotten || run.runtime().is_dir(),
            "no runtime directory"
        );
        let cases = self.watcher.cases(run.container_id())?;
        ensure!(cases.is_empty(), "closed: {cases:?}");
        Ok(())
    }

    fn ensure_clean(&self, run: &StandInRun) -> Result<()> {
        let case = self.watcher.wait_case(run.container_id())?;
        ensure!(case["result"] == "clean", "{case}");
        let left = self.cgroups_of(run);
        ensure!(left.is_empty(), "{left:?} are left after {case}");
        Ok(())
    }
}

/// The layout of cgroup v2, `<root>/<container id>/leaf`, which no Mesos release
/// has, on the real unified hierarchy.
#[test]
fn v2_leaf_layout() -> Result<()> {
    let bed = Bed::with_layout("leaf", CgroupLayout::V2, "")?;
    let run = bed.launch("E")?;
    let leaf = run.launcher_cgroup().join("leaf");
    let containers = [OBEDIENT, OBEDIENT].map(|script| bed.start_container(&run, script));
    for id in &containers {
        let id = id.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let cgroup = run.launcher_cgroup().join(id);
        ensure!(cgroup.is_dir(), "no cgroup of {id} beneath the run's");
    }
    run.executor()?.kill();
    for id in containers.into_iter().flatten() {
        bed.wait_stopped(&id)?;
    }
    let destroy = bed.agent.destroy(&run);
    bed.watcher.wait_looks(run.container_id())?;
    bed.ensure_open(&run, &destroy)?;
    ensure!(leaf.is_dir());
    destroy.finish()?;
    bed.ensure_clean(&run)?;
    let case = bed.watcher.wait_case(run.container_id())?;
    assert_eq!(case["origin"], "kernel", "{case}");
    assert_eq!(case["endings"], "2 term", "{case}");
    assert_eq!(case["executor"], "E", "{case}");
    Ok(())
}
