//! What a case stands on: everything that it sees of the host and does to it.
//!
//! The one implementation at work is [`Host`](super::Host); the model run has
//! another one, on which a hundred thousand deaths take a minute.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::Death;
use super::decide::Policy;
use super::effects::{self, Look};
use super::exclude::is_excluded;
use super::host::Host;
use super::ledger::Ledger;
use super::pod::{self, Answer, Ask, Found};
use crate::config::Mode;
use crate::docker::{ContainerInfo, DockerError};
use crate::journal::CaseId;
use crate::process::monotonic_ns;
use crate::registry::Run;

/// The host as a case sees it. Clones are the same host.
pub trait Ground: Clone + Send + Sync + 'static {
    /// CLOCK_MONOTONIC in nanoseconds.
    fn now_ns(&self) -> u64;
    fn mode(&self) -> Mode;
    fn policy(&self) -> Policy;
    /// Whether the operator wants this run to be left alone; `None` while that
    /// cannot be told, since its executor is not known.
    fn is_excluded(&self, run: &Run) -> Option<bool>;
    /// Whether the runtime directory is known to be that of the agent that runs
    /// now, so that a container's absence from it means something.
    fn is_verified(&self, run: &Run) -> bool;
    /// Whether so many containers may be stopped now for a death that the kernel
    /// has not proven.
    fn may_stop(&self, run: &Run, death: &Death, containers: usize) -> bool;

    /// An account for the case of this number, in which nothing is written yet.
    fn ledger(&self, case: CaseId) -> Ledger;
    /// The account begins.
    fn opened(&self, ledger: &Ledger, run: &Run, death: &Death);

    /// What is known of the pod from memory alone.
    fn indexed(&self, run: &Run) -> Vec<Found>;
    /// What lies beneath the run's cgroup: a look at a directory, and no question.
    fn beneath_cgroup(&self, run: &Run) -> impl Future<Output = Vec<Found>> + Send;
    /// A container that became active: the run-exact key that joins it.
    fn joins(&self, run: &Run, info: &ContainerInfo) -> Option<Found>;
    /// Everything that runs, joined to the run by every key.
    fn discover(
        &self,
        run: &Run,
        death: &Death,
    ) -> impl Future<Output = Result<Vec<Found>, DockerError>> + Send;
    /// Whether a container of the pod is still known to run.
    fn runs(&self, id: &str) -> bool;
    /// A container of the pod was seen to have ended.
    fn ended(&self, id: &str);
    /// Asks for a container's end: the answer to an earlier request may be lost, and
    /// what it did is none the less ours.
    fn ask_to_end(&self, ask: Ask) -> impl Future<Output = Answer> + Send;

    /// With `search`, an executor that is not known yet is looked for, at some cost.
    /// Processes of the containers in `keep` are not counted.
    fn look(
        &self,
        run: &Run,
        death: &Death,
        search: bool,
        keep: Vec<String>,
    ) -> impl Future<Output = anyhow::Result<Look>> + Send;
    /// Begins to remove the empty directories of the run; the task's result is
    /// how many went.
    fn begin_removal(
        &self,
        run: &Run,
        death: &Death,
        agents: bool,
    ) -> JoinHandle<anyhow::Result<usize>>;
    /// Ends the run's own processes; returns how many were signalled.
    fn end_stragglers(
        &self,
        run: &Run,
        look: &Look,
    ) -> impl Future<Output = anyhow::Result<usize>> + Send;
    /// Ends the processes of the pod through their cgroups, except those of the
    /// containers in `keep`; returns how many were signalled.
    fn kill_pod(
        &self,
        run: &Run,
        keep: Vec<String>,
    ) -> impl Future<Output = anyhow::Result<usize>> + Send;

    /// For people.
    fn cgroup_path(&self, run: &Run) -> PathBuf;
}

impl Ground for Arc<Host> {
    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }

    fn mode(&self) -> Mode {
        self.config().mode
    }

    fn policy(&self) -> Policy {
        Policy::from(&*self.config())
    }

    fn is_excluded(&self, run: &Run) -> Option<bool> {
        is_excluded(&self.config().exclude, run.identity.as_ref())
    }

    fn is_verified(&self, run: &Run) -> bool {
        self.agents[run.agent].is_verified()
    }

    fn may_stop(&self, run: &Run, death: &Death, containers: usize) -> bool {
        self.brake.may_stop(run.container, death, containers)
    }

    fn ledger(&self, case: CaseId) -> Ledger {
        Ledger::new(self.journal.clone(), case, self.metrics.clone())
    }

    fn opened(&self, ledger: &Ledger, run: &Run, death: &Death) {
        ledger.opened(run, death, self.dirs(run.agent));
    }

    fn indexed(&self, run: &Run) -> Vec<Found> {
        pod::indexed(self, run)
    }

    async fn beneath_cgroup(&self, run: &Run) -> Vec<Found> {
        pod::beneath_cgroup(self, run).await
    }

    fn joins(&self, run: &Run, info: &ContainerInfo) -> Option<Found> {
        pod::key_of(self, run, info).map(|key| Found::of(self, info, key))
    }

    async fn discover(&self, run: &Run, death: &Death) -> Result<Vec<Found>, DockerError> {
        pod::discover_pod(self, run, death).await
    }

    fn runs(&self, id: &str) -> bool {
        self.index.runs(id)
    }

    fn ended(&self, id: &str) {
        self.index.ended(id);
    }

    async fn ask_to_end(&self, ask: Ask) -> Answer {
        pod::ask_to_end(self, ask).await
    }

    async fn look(
        &self,
        run: &Run,
        death: &Death,
        search: bool,
        keep: Vec<String>,
    ) -> anyhow::Result<Look> {
        effects::look(self, run, death, search, keep).await
    }

    fn begin_removal(
        &self,
        run: &Run,
        death: &Death,
        agents: bool,
    ) -> JoinHandle<anyhow::Result<usize>> {
        effects::begin_removal(self, run, death, agents)
    }

    async fn end_stragglers(&self, run: &Run, look: &Look) -> anyhow::Result<usize> {
        effects::end_stragglers(self, run, look.agent).await
    }

    async fn kill_pod(&self, run: &Run, keep: Vec<String>) -> anyhow::Result<usize> {
        effects::kill_pod(self, run, keep).await
    }

    fn cgroup_path(&self, run: &Run) -> PathBuf {
        self.run_path(run)
    }
}
