//! A **stand-in for a Mesos agent**: its files, cgroups and processes, without
//! Mesos.
//!
//! For what a real agent cannot be brought to on demand: the cgroup v2 layout,
//! which no release has, precise races, and its failure modes. Whatever a real
//! agent does by itself is tested with a real one ([`super::agent::Agent`]).
//!
//! The order of things, their names and their contents are those of Mesos 1.11
//! (for v2: of its main branch), from the source. What is *not* there: a master,
//! tasks, nested containers, fetching, images, and every decision: the stand-in
//! does nothing until the test says so. Its process is called like an agent and
//! named so in its arguments (`mesos-agent --stand-in …`), listens where it says
//! it does, and is the parent of its launcher helpers; all else is done by the
//! test that owns it, step by step.
//!
//! - prompt: [`StandInAgent::destroy`], then [`Destroy::finish`]
//! - slow: [`Destroy::step`]
//! - stuck, or failed for good: no further step. To the host both are one.
//! - restarted: [`StandInAgent::kill9`], [`StandInAgent::begin_recovery`],
//!   [`StandInAgent::finish_recovery`], and another [`StandInAgent::destroy`], as
//!   for every container that a real agent finds dead in its recovery.

pub mod control;
mod destroy;
mod layout;
mod run;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub use destroy::{Destroy, Step};
pub use layout::{CgroupLayout, Layout};
pub use run::StandInRun;

use super::agent::free_port;
use crate::docker::Dockerd;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::service::Service;
use crate::watcher::AgentPlace;
use crate::{bins, log, wait};

const PROGRAM: &str = "stand-in-agent";
const START: Duration = Duration::from_secs(10);

/// One per scratch.
#[derive(Debug)]
pub struct StandInAgent {
    /// Killed by its drop; helpers and executors are the scratch's to end.
    process: Option<Service>,
    layout: Layout,
    address: SocketAddr,
    mark: (&'static str, String),
    /// Counts the starts: only who started a helper is its parent.
    start: u32,
}

impl StandInAgent {
    /// A host of its own with an agent and Docker, and no daemon. To be dropped from
    /// right to left, as variables are.
    pub fn with_docker(name: &str, layout: CgroupLayout) -> Result<(Scratch, Dockerd, Self)> {
        let scratch = Scratch::new(name)?;
        let docker = Dockerd::start(&scratch)?;
        docker.import_busybox()?;
        let agent = Self::start(&scratch, layout)?;
        Ok((scratch, docker, agent))
    }

    /// Starts one that has nothing to recover.
    pub fn start(scratch: &Scratch, cgroups: CgroupLayout) -> Result<Self> {
        let (name, value) = scratch.mark();
        let mut agent = Self {
            process: None,
            layout: Layout::new(scratch, cgroups)?,
            address: SocketAddr::from(([127, 0, 0, 1], free_port()?)),
            mark: (name, value.to_owned()),
            start: 0,
        };
        agent.layout.make(agent.address.port())?;
        agent.restart()?;
        Ok(agent)
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// For the daemon's configuration.
    pub fn place(&self) -> AgentPlace {
        self.layout.place()
    }

    /// `None` between [`Self::kill9`] and [`Self::begin_recovery`].
    pub fn process(&self) -> Option<Process> {
        self.process.as_ref().map(Service::process)
    }

    /// Kills it as a crash would; helpers and executors live on.
    pub fn kill9(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
        }
        Ok(())
    }

    /// Starts it, again perhaps: from now on it recovers.
    pub fn begin_recovery(&mut self) -> Result<()> {
        self.kill9()?;
        let Self { layout, mark, .. } = self;
        let mut command = Command::new(bins::find(PROGRAM)?);
        command
            // Agents are recognised by this name.
            .arg0("mesos-agent")
            .arg("--stand-in")
            .arg(format!("--port={}", self.address.port()))
            .arg(format!("--work_dir={}", layout.work_dir().display()))
            .arg(format!("--runtime_dir={}", layout.runtime_dir().display()))
            .arg(format!("--cgroups_root={}", layout.cgroups_root()))
            .env_clear()
            .env(mark.0, &mark.1);
        let log = layout.log();
        let mut process = Service::spawn(command, &log)?;
        wait::try_until(START, "the stand-in agent to listen", || {
            if let Some(status) = process.ended() {
                bail!("it ended: {status}");
            }
            Ok(control::answers(self.address).then_some(()))
        })
        .with_context(|| log::tail(&log, 20))?;
        layout.seat_agent(process.process())?;
        self.process = Some(process);
        self.start += 1;
        Ok(())
    }

    /// The last thing that a recovery does is to write down the host's boot id.
    pub fn finish_recovery(&self) -> Result<()> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let file = self.layout.meta().join("boot_id");
        // As an agent writes everything: never half a file.
        let new = file.with_extension("new");
        fs::write(&new, boot_id.trim_end()).context("the boot id")?;
        fs::rename(&new, &file).context("the boot id")
    }

    /// Both, at once.
    pub fn restart(&mut self) -> Result<()> {
        self.begin_recovery()?;
        self.finish_recovery()
    }

    /// A run that is being set up: sandbox, checkpoints, runtime directory and
    /// cgroups, and no process yet.
    pub fn prepare(&self, executor_id: &str) -> Result<StandInRun> {
        StandInRun::prepare(self, executor_id)
    }

    /// A run whose executor, a `sleep`, lives.
    pub fn launch(&self, executor_id: &str) -> Result<StandInRun> {
        let mut run = self.prepare(executor_id)?;
        run.launch(&["sleep", "86400"])?;
        run.executor()?;
        Ok(run)
    }

    /// What it does once it has noticed the helper's end.
    pub fn destroy<'a>(&self, run: &'a StandInRun) -> Destroy<'a> {
        Destroy::new(run, self.start)
    }
}
