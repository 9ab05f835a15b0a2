//! One host of the comparison.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cleanup_tests::host::{Host, RunningPod};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::wait;
use cleanup_tests::watcher::Watcher;

/// Containers of each pod.
const SERVICES: usize = 2;
const TERMINAL: Duration = Duration::from_secs(120);
/// How long an agent without help may take for what it will do at all: its
/// destroy, and a failure of that, come within the second.
const AGENT: Duration = Duration::from_secs(5);
const CONFIG: &str = "mode = \"enforce\"\ngrace = \"2s\"\nsettle = \"200ms\"";

/// A private host with a real agent, and the daemon if this is its arm.
#[derive(Debug)]
pub(super) struct Arm {
    watcher: Option<Watcher>,
    host: Host,
    options: String,
    launched: usize,
    kills: Vec<(String, Instant)>,
    account: Account,
}

/// What one arm came to.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) deaths: usize,
    /// How often the framework was told which state and reason.
    pub(super) updates: BTreeMap<(String, String), usize>,
    /// Milliseconds from the kill to the terminal update.
    pub(super) terminal_ms: Vec<f64>,
    pub(super) destroy_errors: f64,
    pub(super) error_lines: usize,
    pub(super) cgroups_left: usize,
    pub(super) containers_left: usize,
    /// Memory that the agent gives to nobody else, since executors that have ended
    /// still count as running, in MB.
    pub(super) mem_held: f64,
}

impl Arm {
    pub(super) fn start(name: &str, version: &str, restart: &str, watched: bool) -> Result<Self> {
        // More than all deaths could hold: the master of 1.8.1 does not count what two
        // of three ended executors had as free again, in either arm.
        let resources = ("MESOS_RESOURCES", "cpus:512;mem:1048576;disk:16384");
        let options = AgentOptions {
            env: vec![(resources.0.to_owned(), resources.1.to_owned())],
            ..AgentOptions::default()
        };
        let host = Host::start(name, version, options)?;
        let watcher = watched.then(|| host.watch(CONFIG)).transpose()?;
        let options = match restart {
            "no" => String::new(),
            policy => format!("--restart {policy}"),
        };
        Ok(Self {
            watcher,
            host,
            options,
            launched: 0,
            kills: Vec::new(),
            account: Account::default(),
        })
    }

    pub(super) fn launch(&mut self, count: usize) -> Result<Vec<RunningPod>> {
        (0..count)
            .map(|_| {
                self.launched += 1;
                self.host
                    .run_pod(&format!("pod-{}", self.launched), SERVICES, &self.options)
            })
            .collect()
    }

    pub(super) fn kill(&mut self, pod: &RunningPod) -> Result<()> {
        self.kills.push((pod.task_id.clone(), Instant::now()));
        pod.executor.sigkill_executor()
    }

    /// Waits for what becomes of the killed pods, counts it, and removes what is
    /// left of them.
    pub(super) fn account(&mut self, pods: &[RunningPod]) -> Result<()> {
        for (task_id, killed) in self.kills.drain(..) {
            let update = self.host.framework.wait_terminal(&task_id, TERMINAL)?;
            let ms = update.received.duration_since(killed).as_secs_f64() * 1e3;
            self.account.terminal_ms.push(ms);
            let reason = update.reason.unwrap_or_default();
            *self
                .account
                .updates
                .entry((update.state, reason))
                .or_default() += 1;
        }
        for pod in pods {
            match &self.watcher {
                Some(watcher) => drop(watcher.wait_case(pod.executor.container_id())?),
                // A destroy that failed leaves the container in the agent's hands
                // for good: that is counted, not waited for.
                None => drop(self.wait_for_the_agent(pod)),
            }
        }
        for pod in pods {
            self.account.deaths += 1;
            self.account.cgroups_left += self.cgroups(pod).len();
            self.account.containers_left += pod.executor.running_pod(&self.host.docker)?.len();
        }
        self.remove(pods)
    }

    fn wait_for_the_agent(&self, pod: &RunningPod) -> Result<()> {
        let container = self
            .host
            .agent
            .runtime_dir()
            .join("containers")
            .join(pod.executor.container_id());
        wait::until(AGENT, "the agent to be done", || {
            (!container.exists()).then_some(())
        })
    }

    fn metric(&self, key: &str) -> Result<f64> {
        let metrics = self.host.agent.metrics()?;
        let value = metrics.get(key).copied();
        value.with_context(|| format!("the agent has no {key}"))
    }

    fn cgroups(&self, pod: &RunningPod) -> Vec<PathBuf> {
        let mut left = self.host.scratch.leftovers();
        left.retain(|path| path.iter().any(|part| part == pod.executor.container_id()));
        left
    }

    fn remove(&self, pods: &[RunningPod]) -> Result<()> {
        for pod in pods {
            let mut arguments = vec!["rm", "-f"];
            arguments.extend(pod.containers.iter().map(String::as_str));
            self.host.docker.docker(&arguments)?;
            // Deepest first; the agent may be at it, too.
            let mut left = self.cgroups(pod);
            left.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
            for path in left {
                let _ = std::fs::remove_dir(path);
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Account> {
        // That it does not come to 0 is counted.
        let _ = wait::try_until(AGENT, "the agent to give everything back", || {
            Ok((self.metric("slave/mem_used")? == 0.0).then_some(()))
        });
        self.account.mem_held = self.metric("slave/mem_used")?;
        self.account.destroy_errors =
            self.metric("containerizer/mesos/container_destroy_errors")?;
        self.account.error_lines = self.host.agent.errors_in_log()?.len();
        if let Some(watcher) = self.watcher.take() {
            watcher.stop()?;
        }
        Ok(self.account)
    }
}
