//! Looks at the host before and after the death.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use cleanup_tests::docker::Dockerd;
use cleanup_tests::host::{Host, RunningPod};
use cleanup_tests::mesos::framework;
use serde_json::Value;

use super::outcome::{Agent, Case, Contained, HierarchyCount, Neighbour, Outcome, Update};
use crate::stage::Machine;
use crate::witness::Witness;

const EXIT: Duration = Duration::from_secs(10);

/// The host right before the death, and a witness in place.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    host: &'a Host,
    victim: &'a RunningPod,
    neighbour: &'a RunningPod,
    hierarchies: Vec<Place>,
    neighbour_before: Vec<Life>,
    neighbour_directories: usize,
    witness: Witness,
}

/// A run's cgroup in one hierarchy.
#[derive(Debug)]
struct Place {
    hierarchy: String,
    dir: PathBuf,
    directories: usize,
}

/// What changes when a container is restarted.
#[derive(Debug, PartialEq, Eq)]
struct Life {
    pid: i32,
    started: String,
}

/// The moment of the kill, on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Death {
    at: Instant,
    wall: SystemTime,
}

impl Death {
    fn ms(self, at: Instant) -> f64 {
        at.saturating_duration_since(self.at).as_secs_f64() * 1e3
    }

    fn unix(self) -> Duration {
        self.wall.duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

impl<'a> Scene<'a> {
    pub(super) fn set(
        host: &'a Host,
        victim: &'a RunningPod,
        neighbour: &'a RunningPod,
    ) -> Result<Self> {
        let hierarchies: Vec<Place> = places(host, victim)
            .filter(|place| place.directories > 0)
            .collect();
        let mut pids = vec![victim.executor.executor().pid()];
        for life in lives(&host.docker, victim)? {
            pids.push(life.pid);
        }
        let owned = host
            .agent
            .runtime_dir()
            .join("containers")
            .join(victim.executor.container_id());
        let directories = hierarchies
            .iter()
            .map(|place| place.dir.clone())
            .chain([owned])
            .collect();
        Ok(Self {
            host,
            victim,
            neighbour,
            hierarchies,
            neighbour_before: lives(&host.docker, neighbour)?,
            neighbour_directories: places(host, neighbour).map(|place| place.directories).sum(),
            witness: Witness::watch(&pids, directories)?,
        })
    }

    /// Returns when the executor has ended.
    pub(super) fn kill(&self) -> Result<Death> {
        let death = Death {
            wall: SystemTime::now(),
            at: Instant::now(),
        };
        self.victim.executor.sigkill_executor()?;
        self.victim.executor.executor().wait_gone(EXIT)?;
        Ok(death)
    }

    pub(super) fn look_again(
        self,
        mesos: &str,
        machine: Machine,
        death: Death,
        case: &Value,
        update: &framework::Update,
    ) -> Result<Outcome> {
        let Self {
            host,
            victim,
            neighbour,
            hierarchies,
            neighbour_before,
            neighbour_directories,
            witness,
        } = self;
        let seen = witness.finish()?;
        let ms = |at: Option<Instant>| at.map(|at| death.ms(at));
        let mut directories = seen.directories.iter().copied();
        let hierarchies = hierarchies
            .into_iter()
            .zip(directories.by_ref())
            .map(|(place, gone)| HierarchyCount {
                name: place.hierarchy,
                before: place.directories,
                after: count(&place.dir),
                gone_ms: ms(gone),
            })
            .collect();
        let agent_done_ms = ms(directories.next().flatten());
        let mut processes = seen.processes.iter().copied();
        let executor = processes
            .next()
            .flatten()
            .context("the executor's end was seen")?;
        let signals = signals(&host.docker, &victim.containers, death)?;
        let pod = victim
            .containers
            .iter()
            .zip(processes)
            .map(|(id, ended)| contained(&host.docker, id, ms(ended), &signals))
            .collect::<Result<Vec<_>>>()?;
        Ok(Outcome {
            mesos: mesos.to_owned(),
            machine,
            case: Case::read(case),
            exit_within_ms: death.ms(executor),
            pod: sorted(pod),
            hierarchies,
            agent_done_ms,
            update: Update {
                state: update.state.clone(),
                reason: update.reason.clone().unwrap_or_default(),
                ms: death.ms(update.received),
            },
            agent: Agent {
                destroy_errors: host.agent.metrics()?["containerizer/mesos/container_destroy_errors"],
                error_lines: host.agent.errors_in_log()?,
            },
            neighbour: look_at_neighbour(
                host,
                neighbour,
                &neighbour_before,
                neighbour_directories,
            )?,
            daemon_exit: None,
            left_behind: false,
        })
    }
}

fn look_at_neighbour(
    host: &Host,
    pod: &RunningPod,
    before: &[Life],
    directories_before: usize,
) -> Result<Neighbour> {
    let after = lives(&host.docker, pod)?;
    let mut restarts = 0;
    for id in &pod.containers {
        restarts += host.docker.inspect(id)?["RestartCount"]
            .as_i64()
            .unwrap_or_default();
    }
    Ok(Neighbour {
        executor_alive: pod.executor.executor().alive() && pod.executor.helper().alive(),
        containers: before.len(),
        untouched: before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before == after)
            .count(),
        restarts,
        directories_before,
        directories_after: places(host, pod).map(|place| place.directories).sum(),
    })
}

impl Case {
    fn read(line: &Value) -> Self {
        let text = |name: &str| line[name].as_str().unwrap_or("?").to_owned();
        Self {
            result: text("result"),
            origin: text("origin"),
            status: text("status"),
            containers: line["containers"].as_u64().unwrap_or_default(),
            endings: text("endings"),
            cgroups_removed: line["cgroups_removed"].as_u64().unwrap_or_default(),
            event_ms: line["event_ms"].as_f64(),
            first_stop_ms: line["first_stop_ms"].as_f64(),
            stopped_ms: line["stopped_ms"].as_f64(),
            clean_ms: line["clean_ms"].as_f64(),
        }
    }
}

/// The run's cgroup in every hierarchy of the host.
fn places<'a>(host: &'a Host, pod: &'a RunningPod) -> impl Iterator<Item = Place> + 'a {
    host.scratch.cgroup_dirs().iter().map(|root| {
        let dir = root.join(pod.executor.container_id());
        let mount = root.parent().and_then(Path::file_name).unwrap_or_default();
        Place {
            hierarchy: mount.to_string_lossy().into_owned(),
            directories: count(&dir),
            dir,
        }
    })
}

/// Directories of a tree, its top included.
fn count(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let below: usize = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| count(&entry.path()))
        .sum();
    below + 1
}

fn lives(docker: &Dockerd, pod: &RunningPod) -> Result<Vec<Life>> {
    let life = |id: &String| {
        let state = &docker.inspect(id)?["State"];
        Ok(Life {
            pid: state["Pid"]
                .as_i64()
                .and_then(|pid| pid.try_into().ok())
                .context("a pid")?,
            started: state["StartedAt"].as_str().context("a start")?.to_owned(),
        })
    };
    pod.containers.iter().map(life).collect()
}

fn contained(
    docker: &Dockerd,
    id: &str,
    ended_ms: Option<f64>,
    signals: &[Signalled],
) -> Result<Contained> {
    let info = docker.inspect(id)?;
    let label = |name: &str| {
        info["Config"]["Labels"][name]
            .as_str()
            .unwrap_or("?")
            .to_owned()
    };
    let script = info["Config"]["Cmd"][2].as_str().unwrap_or_default();
    Ok(Contained {
        service: label("com.docker.compose.service"),
        ignores_term: script.starts_with("trap '' TERM"),
        signals: signals
            .iter()
            .filter(|signalled| signalled.id == id)
            .map(|signalled| (signalled.number, signalled.ms))
            .collect(),
        ended_ms,
        exit_code: info["State"]["ExitCode"].as_i64().context("an exit code")?,
        running: info["State"]["Running"]
            .as_bool()
            .context("running or not")?,
    })
}

fn sorted(mut pod: Vec<Contained>) -> Vec<Contained> {
    pod.sort_by(|a, b| a.service.cmp(&b.service));
    pod
}

/// A signal that dockerd sent to a container.
#[derive(Debug)]
struct Signalled {
    id: String,
    number: i32,
    ms: f64,
}

/// Dockerd's own account of the signals that it sent since the death.
fn signals(docker: &Dockerd, ids: &[String], death: Death) -> Result<Vec<Signalled>> {
    let time = |at: Duration| format!("{}.{:09}", at.as_secs(), at.subsec_nanos());
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let (since, until) = (time(death.unix()), time(now));
    let text = docker.docker(&[
        "events",
        "--since",
        &since,
        "--until",
        &until,
        "--filter",
        "event=kill",
        "--format",
        "{{json .}}",
    ])?;
    let mut found = Vec::new();
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).context("an event of Docker's")?;
        let Some(id) = ids.iter().find(|id| event["id"] == ***id) else {
            continue;
        };
        let signal = event["Actor"]["Attributes"]["signal"]
            .as_str()
            .context("a signal")?;
        let nanos = event["timeNano"].as_u64().context("the time of an event")?;
        let after = Duration::from_nanos(nanos).saturating_sub(death.unix());
        found.push(Signalled {
            id: id.clone(),
            number: signal.parse().context("a signal's number")?,
            ms: after.as_secs_f64() * 1e3,
        });
    }
    Ok(found)
}
