//! The control API's answers, as both sides know them.
//!
//! Within one version of the path (`/v1`) fields are only ever added: who reads
//! must ignore what it does not know. Times are nanoseconds: since 1970 where the
//! name ends in `_unix_ns`, of duration otherwise. Ids of somebody else's making
//! are printable text: control characters, and bytes that are not UTF-8, are
//! escaped. The published schema is docs/control-api.schema.json.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The first part of every path.
pub const VERSION: &str = "v1";

/// `GET /v1/status`: the daemon, what it depends on, and its open cases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status {
    /// Release of the daemon.
    pub version: String,
    pub pid: u32,
    /// When it began to answer here.
    pub started_unix_ns: i64,
    /// When this answer was made.
    pub now_unix_ns: i64,
    pub mode: Mode,
    /// Why the configuration was refused when it was last read again (SIGHUP): the
    /// one before holds. Absent: it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration_refused: Option<String>,
    pub probe: Probe,
    pub hold: Hold,
    pub agents: Vec<Agent>,
    pub docker: Docker,
    /// The oldest first.
    pub cases: Vec<Case>,
    /// Runs that the last survey could neither call live nor dead, and that are
    /// left alone; `/v1/plan?orphans=true` names them.
    pub unknown_runs: usize,
    pub counters: Counters,
    pub journal: Journal,
}

/// Whether effects are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Everything but the effects.
    Observe,
    Enforce,
}

/// What tells the daemon of exits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Probe {
    /// `ebpf`: a kernel program.
    pub kind: String,
    /// It can be read. If not, deaths are noticed by pidfds and surveys.
    pub works: bool,
    /// Exits that may have gone unreported since the start; each increase makes the
    /// daemon look at everything.
    pub missed: u64,
    /// Losses since the start, by reason; those that cost no executor's exit, too.
    pub losses: BTreeMap<String, u64>,
}

/// Whether deaths that were only inferred are held back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Hold {
    pub held: bool,
    /// Who holds: `operator`, `cap` (`max_inferred_stops`), or `unreadable` (the
    /// hold file cannot be read); absent if nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_unix_ns: Option<i64>,
    /// When it ends by itself; absent: with `compose-cleanup release`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_unix_ns: Option<i64>,
}

/// One Mesos agent of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Agent {
    pub work_dir: String,
    pub runtime_dir: String,
    pub cgroups_root: String,
    pub state: AgentState,
    pub live_executors: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// It owns its containers.
    Alive,
    /// It was started and has not finished its recovery: nothing is removed.
    Recovering,
    /// Every sign of it has been missing for 5 s.
    Absent,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Docker {
    pub socket: String,
    pub state: DockerState,
    /// Since when it is so; absent while it is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_unix_ns: Option<i64>,
    /// Containers that run, the agents' own included; as of its last word if it is
    /// away.
    pub running_containers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DockerState {
    /// It has not answered, nor refused to, since the start.
    NotKnown,
    There,
    Away,
}

/// An open case: a dead executor run whose cleanup is not finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Case {
    /// Its number in the journal, for `compose-cleanup case`.
    pub case: String,
    /// Mesos container id of the run.
    pub container: String,
    /// Absent while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub framework: Option<String>,
    /// Executor id; absent while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<String>,
    /// Who noticed the death: `kernel`, `pidfd`, `hook` or `scan`.
    pub origin: String,
    /// `signal 9`, `exit 7`, `unknown`.
    pub status: String,
    pub died_unix_ns: i64,
    /// Since the death.
    pub age_ns: u64,
    /// As in `compose-cleanup case` and docs/operations.md: `stop`, `wait_docker`, …;
    /// `open` before the first look at the host.
    pub step: String,
    /// For how long it has been at this step.
    pub step_age_ns: u64,
    /// What it waits for, for people; absent if it does not wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// Why the last step that failed did, while nothing has succeeded since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    pub pod: Pod,
}

/// How far the containers of a case's pod are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Pod {
    /// Found so far.
    pub containers: usize,
    /// Not asked to end yet, or to be asked again.
    pub to_stop: usize,
    /// Asked to end; Docker owes an answer.
    pub stopping: usize,
    pub ended: usize,
    /// Left alone by the label `compose-cleanup.keep=true`, and running.
    pub kept: usize,
}

/// Since the start of the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Counters {
    /// Exits beneath a Mesos root that the probe reported.
    pub exits: u64,
    /// Those of them that were of no configured agent's run.
    pub foreign_exits: u64,
    /// Executor runs that were found to be dead.
    pub deaths: u64,
    /// Requests of the hook module.
    pub hook_requests: u64,
    /// Closed cases, by result: `clean`, `excluded`, `dismissed`, `observed`.
    pub cases: BTreeMap<String, u64>,
    /// Containers of closed cases.
    pub containers: u64,
}

/// How the journal is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Journal {
    pub enabled: bool,
    pub path: String,
    /// On disk; 0 while it is not open.
    pub bytes: u64,
    /// Records written since the start.
    pub written: u64,
    /// Records that wait to be written.
    pub waiting: usize,
    /// Steps, and whole cases, that could not be kept.
    pub dropped_steps: u64,
    pub dropped_cases: u64,
    /// Since when it cannot be written; absent: it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since_unix_ns: Option<i64>,
}

/// Every answer that is not 200.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Failure {
    /// One line: what, where, what to do.
    pub error: String,
}

/// `GET /v1/executors`: the executor runs that live, as far as the daemon knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Executors {
    /// By executor id, then container id.
    pub executors: Vec<Executor>,
}

/// One live executor run and the containers of its pod that run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Executor {
    /// Mesos container id of the run.
    pub container: String,
    /// Absent while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub framework: Option<String>,
    /// Executor id; absent while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<String>,
    /// `work_dir` of its agent.
    pub agent: String,
    pub launcher: Launcher,
    /// The launcher helper.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helper_pid: Option<u32>,
    /// Absent while the helper has not started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor_pid: Option<u32>,
    /// The helper is gone, and the executor is not: nothing is stopped before it is.
    pub orphaned: bool,
    pub pod: Vec<PodContainer>,
}

/// How the agent starts executors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Launcher {
    /// In a cgroup of their own.
    Linux,
    /// In the agent's cgroups.
    Posix,
}

/// A running container of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PodContainer {
    /// Docker's id.
    pub id: String,
    /// Empty if Docker does not answer for it.
    pub name: String,
    /// As it was asked for; empty if Docker does not answer for it.
    pub image: String,
    /// The key that makes it the run's: `cgroup`, `cgroup_parent`, `working_dir`,
    /// `config_files`, `label`.
    pub joined_by: String,
    /// Its owner's word (`compose-cleanup.keep=true`) keeps it.
    pub kept: bool,
}

/// `GET /v1/plan?of=ID` or `?orphans=true`: what would be done now, and why. Nothing
/// is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Plans {
    pub now_unix_ns: i64,
    pub mode: Mode,
    /// Deaths that were only inferred are held back.
    pub held: bool,
    /// Made by the daemon, which knows what it has seen; if not, by the command, with
    /// one look at the host.
    pub by_daemon: bool,
    /// Why Docker could not be asked: containers are as far as they were known
    /// before, maybe none. Absent: it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_trouble: Option<String>,
    /// By container id.
    pub plans: Vec<Plan>,
}

/// Body of `POST /v1/clean`: clean up after these dead runs, now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CleanRequest {
    /// Mesos container ids, whole.
    pub containers: Vec<String>,
    /// An unknown run counts as dead, unless something shows that it lives. With one
    /// container only.
    #[serde(default)]
    pub force_unknown: bool,
}

/// Answer to `POST /v1/clean`, of the runs in it; and to `GET /v1/clean`, of all that
/// were asked for in the last ten minutes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cleanings {
    pub now_unix_ns: i64,
    /// By container id.
    pub cleanings: Vec<Cleaning>,
}

/// What became of one run that was to be cleaned up after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cleaning {
    /// Mesos container id of the run.
    pub container: String,
    pub state: CleaningState,
    /// Of one that was refused: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Its case, while that is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub case: Option<Case>,
    /// Its case, once that is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<ClosedCase>,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CleaningState {
    /// Two looks at the host, 2 s apart, have to agree first.
    Looking,
    /// Its case is open.
    AtWork,
    /// Its case is closed.
    Closed,
    /// Nothing of it was left.
    NothingLeft,
    /// Nothing was done.
    Refused,
}

/// What a case came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClosedCase {
    /// Its number in the journal.
    pub case: String,
    /// `clean`, `excluded`, `dismissed` (something of it lives), `handed_over` (the
    /// daemon stopped first).
    pub result: String,
    /// Containers of the pod that were found to run.
    pub containers: usize,
    /// Directories that were removed.
    pub cgroups_removed: usize,
}

/// What would be done about one executor run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Plan {
    /// Mesos container id of the run.
    pub container: String,
    /// Absent if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub framework: Option<String>,
    /// Executor id; absent if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<String>,
    /// `work_dir` of its agent; absent if no configured agent has a record of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    pub standing: Standing,
    /// By what its standing is known.
    pub evidence: String,
    pub acts: Acts,
    /// Why it would be done then.
    pub why: String,
    /// Its case, if that is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub case: Option<Case>,
    /// Running containers that a key joins to the run.
    pub containers: Vec<PlannedContainer>,
    /// Every cgroup directory of the run that exists, in all hierarchies; the deepest
    /// first in each.
    pub cgroups: Vec<PlannedCgroup>,
}

/// What is known of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    Live,
    Dead,
    /// Neither is proven: it is left alone.
    Unknown,
}

/// When the actions of a plan are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Acts {
    Now,
    /// When the executor dies.
    OnDeath,
    /// When the operator releases what is held.
    OnRelease,
    Never,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedContainer {
    /// What it is, and the key that joined it.
    #[serde(flatten)]
    pub container: PodContainer,
    pub action: ContainerAction,
}

/// What is done with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ContainerAction {
    /// Its stop signal, then SIGKILL after the grace period.
    Stop,
    /// SIGKILL at once.
    Kill,
    /// Stopped, then removed.
    StopAndRemove,
    /// Left running by its owner's word.
    Keep,
    /// Left alone with its run.
    Leave,
}

/// A directory of the run in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedCgroup {
    /// Where it is mounted included.
    pub path: String,
    /// Name of the hierarchy: its controllers, or `unified`.
    pub hierarchy: String,
    pub owner: CgroupOwner,
    pub removed: CgroupRemoval,
}

/// Who made a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CgroupOwner {
    /// The agent does not know it.
    Docker,
    /// The agent, or it is not known that it was not.
    Agent,
}

/// When a cgroup is removed, if it is empty by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CgroupRemoval {
    /// With the pod.
    AtOnce,
    /// When the agent has finished its destroy, or is gone.
    WhenAgentIsDone,
    /// When the agent, which is recovering, has finished that; then as above.
    AfterRecovery,
    Never,
}
