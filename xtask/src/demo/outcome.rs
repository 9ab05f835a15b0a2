//! What was seen in one run of the demo, and whether it is what was promised.

use crate::stage::Machine;

/// Times are in milliseconds: the daemon's after the kernel's time of the exit,
/// all others after our SIGKILL.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) mesos: String,
    pub(super) machine: Machine,
    pub(super) case: Case,
    /// From our SIGKILL to the witness seeing the executor's end: the exit lies
    /// in between.
    pub(super) exit_within_ms: f64,
    pub(super) pod: Vec<Contained>,
    pub(super) hierarchies: Vec<HierarchyCount>,
    /// The agent forgot the container: its destroy is complete.
    pub(super) agent_done_ms: Option<f64>,
    pub(super) update: Update,
    pub(super) agent: Agent,
    pub(super) neighbour: Neighbour,
    pub(super) daemon_exit: Option<i32>,
    pub(super) left_behind: bool,
}

/// The daemon's closing line.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) result: String,
    pub(super) origin: String,
    pub(super) status: String,
    pub(super) containers: u64,
    pub(super) endings: String,
    pub(super) cgroups_removed: u64,
    pub(super) event_ms: Option<f64>,
    pub(super) first_stop_ms: Option<f64>,
    pub(super) stopped_ms: Option<f64>,
    pub(super) clean_ms: Option<f64>,
}

/// One container of the dead executor's pod.
#[derive(Debug)]
pub(super) struct Contained {
    pub(super) service: String,
    pub(super) ignores_term: bool,
    /// By Docker: number and time.
    pub(super) signals: Vec<(i32, f64)>,
    /// When the witness saw the end of its first process.
    pub(super) ended_ms: Option<f64>,
    pub(super) exit_code: i64,
    pub(super) running: bool,
}

impl Contained {
    pub(super) fn signal_ms(&self, number: i32) -> Option<f64> {
        let sent = self.signals.iter().find(|(signal, _)| *signal == number)?;
        Some(sent.1)
    }

    /// In words, by the evidence.
    pub(super) fn ending(&self) -> &'static str {
        const BY_SIGKILL: i64 = 128 + SIGKILL as i64;
        match (self.running, self.exit_code) {
            (true, _) => "still running",
            (false, BY_SIGKILL) if self.signal_ms(SIGKILL).is_some() => {
                "SIGKILL by Docker, after the grace"
            }
            (false, BY_SIGKILL) => "SIGKILL by the agent, as to all beneath its cgroup",
            (false, _) if self.signal_ms(SIGTERM).is_some() => "by itself, at SIGTERM",
            (false, _) => "by itself, before it was asked to",
        }
    }
}

pub(super) const SIGKILL: i32 = 9;
pub(super) const SIGTERM: i32 = 15;

/// Directories of the dead run in one cgroup hierarchy.
#[derive(Debug)]
pub(super) struct HierarchyCount {
    pub(super) name: String,
    /// `<root>/<container id>` and those beneath it.
    pub(super) before: usize,
    pub(super) after: usize,
    pub(super) gone_ms: Option<f64>,
}

/// What the framework was told.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) state: String,
    pub(super) reason: String,
    pub(super) ms: f64,
}

#[derive(Debug)]
pub(super) struct Agent {
    pub(super) destroy_errors: f64,
    pub(super) error_lines: Vec<String>,
}

/// The other executor and its pod.
#[derive(Debug)]
pub(super) struct Neighbour {
    pub(super) executor_alive: bool,
    pub(super) containers: usize,
    /// Those that run in the same process as before.
    pub(super) untouched: usize,
    pub(super) restarts: i64,
    pub(super) directories_before: usize,
    pub(super) directories_after: usize,
}

impl Outcome {
    pub(super) fn directories(&self) -> (usize, usize) {
        let sum = |count: fn(&HierarchyCount) -> usize| self.hierarchies.iter().map(count).sum();
        (sum(|h| h.before), sum(|h| h.after))
    }

    /// Everything that is not as promised.
    pub(super) fn differences(&self) -> Vec<String> {
        let Self {
            mesos: _,
            machine: _,
            case,
            exit_within_ms: _,
            pod,
            hierarchies,
            agent_done_ms,
            update,
            agent,
            neighbour,
            daemon_exit,
            left_behind,
        } = self;
        let mut found = Vec::new();
        let mut promise = |kept: bool, broken: String| {
            if !kept {
                found.push(broken);
            }
        };
        for container in pod.iter().filter(|container| container.running) {
            promise(false, format!("{} still runs", container.service));
        }
        for hierarchy in hierarchies.iter().filter(|hierarchy| hierarchy.after > 0) {
            let HierarchyCount { name, after, .. } = hierarchy;
            promise(
                false,
                format!("{after} cgroups are left in hierarchy {name}"),
            );
        }
        promise(
            !hierarchies.is_empty(),
            "the dead executor had no cgroups to begin with".to_owned(),
        );
        promise(
            case.result == "clean",
            format!("the case's result is {}", case.result),
        );
        promise(
            case.origin == "kernel",
            format!(
                "the death was noticed by {}, not by the kernel's event",
                case.origin
            ),
        );
        promise(
            usize::try_from(case.containers) == Ok(pod.len()),
            format!(
                "the case counts {} containers, not {}",
                case.containers,
                pod.len()
            ),
        );
        promise(
            agent_done_ms.is_some(),
            "the agent has not finished its destroy of the container".to_owned(),
        );
        promise(
            update.reason == "REASON_EXECUTOR_TERMINATED",
            format!("the agent reported {} {}", update.state, update.reason),
        );
        promise(
            agent.destroy_errors == 0.0,
            format!(
                "the agent counts {} container_destroy_errors",
                agent.destroy_errors
            ),
        );
        for line in &agent.error_lines {
            promise(false, format!("the agent logged: {line}"));
        }
        promise(
            neighbour.executor_alive,
            "the neighbour's executor is dead".to_owned(),
        );
        promise(
            neighbour.untouched == neighbour.containers,
            format!(
                "{} of the neighbour's {} containers run as before",
                neighbour.untouched, neighbour.containers
            ),
        );
        promise(
            neighbour.restarts == 0,
            format!(
                "the neighbour's containers were restarted {} times",
                neighbour.restarts
            ),
        );
        promise(
            neighbour.directories_after == neighbour.directories_before,
            format!(
                "the neighbour had {} cgroups and has {}",
                neighbour.directories_before, neighbour.directories_after
            ),
        );
        promise(
            *daemon_exit == Some(0),
            format!("compose-cleanup ended with {daemon_exit:?} at SIGTERM, not with 0"),
        );
        promise(
            !left_behind,
            "the demo's own directory could not be removed".to_owned(),
        );
        found
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A run as it should be.
    pub(crate) fn kept() -> Outcome {
        let contained = |service: &str, ignores_term, ended_ms, exit_code| Contained {
            service: service.to_owned(),
            ignores_term,
            signals: vec![(SIGTERM, 10.0)],
            ended_ms: Some(ended_ms),
            exit_code,
            running: false,
        };
        let hierarchy = |name: &str, gone_ms| HierarchyCount {
            name: name.to_owned(),
            before: 4,
            after: 0,
            gone_ms: Some(gone_ms),
        };
        Outcome {
            mesos: "1.11.0".into(),
            machine: Machine {
                kernel: "6.18.0".into(),
                cpus: 2,
                docker: "20.10.24".into(),
                docker_api: "1.41".into(),
            },
            case: Case {
                result: "clean".into(),
                origin: "kernel".into(),
                status: "signal 9".into(),
                containers: 2,
                endings: "1 agent_kill, 1 term".into(),
                cgroups_removed: 6,
                event_ms: Some(0.06),
                first_stop_ms: Some(0.21),
                stopped_ms: Some(130.0),
                clean_ms: Some(170.0),
            },
            exit_within_ms: 0.3,
            pod: vec![
                contained("service0", true, 101.5, 137),
                contained("service1", false, 14.0, 0),
            ],
            hierarchies: vec![hierarchy("freezer", 150.0), hierarchy("memory", 160.0)],
            agent_done_ms: Some(165.0),
            update: Update {
                state: "TASK_FAILED".into(),
                reason: "REASON_EXECUTOR_TERMINATED".into(),
                ms: 163.0,
            },
            agent: Agent {
                destroy_errors: 0.0,
                error_lines: Vec::new(),
            },
            neighbour: Neighbour {
                executor_alive: true,
                containers: 3,
                untouched: 3,
                restarts: 0,
                directories_before: 40,
                directories_after: 40,
            },
            daemon_exit: Some(0),
            left_behind: false,
        }
    }

    #[test]
    fn nothing_differs_when_all_is_as_promised() {
        assert_eq!(kept().differences(), Vec::<String>::new());
        assert_eq!(kept().directories(), (8, 0));
    }

    type Break = fn(&mut Outcome);

    #[test]
    fn each_broken_promise_is_named() {
        let breaks: [(Break, &str); 12] = [
            (|o| o.pod[1].running = true, "service1 still runs"),
            (
                |o| o.hierarchies[1].after = 2,
                "2 cgroups are left in hierarchy memory",
            ),
            (|o| o.hierarchies.clear(), "no cgroups to begin with"),
            (|o| o.case.origin = "scan".into(), "noticed by scan"),
            (|o| o.case.containers = 1, "counts 1 containers, not 2"),
            (|o| o.agent_done_ms = None, "not finished its destroy"),
            (
                |o| o.agent.destroy_errors = 1.0,
                "1 container_destroy_errors",
            ),
            (
                |o| o.agent.error_lines.push("E0101 x".into()),
                "the agent logged: E0101 x",
            ),
            (
                |o| o.neighbour.untouched = 2,
                "2 of the neighbour's 3 containers",
            ),
            (|o| o.neighbour.executor_alive = false, "executor is dead"),
            (|o| o.daemon_exit = None, "at SIGTERM"),
            (|o| o.left_behind = true, "could not be removed"),
        ];
        for (break_it, says) in breaks {
            let mut outcome = kept();
            break_it(&mut outcome);
            let differences = outcome.differences();
            assert_eq!(differences.len(), 1, "{differences:?}");
            assert!(differences[0].contains(says), "{differences:?}");
        }
    }

    #[test]
    fn how_a_container_ended_follows_from_the_evidence() {
        let outcome = kept();
        let [deaf, obedient] = &outcome.pod[..] else {
            panic!("two containers");
        };
        assert!(deaf.ending().starts_with("SIGKILL by the agent"));
        assert_eq!(obedient.ending(), "by itself, at SIGTERM");
        let killed_by_docker = Contained {
            signals: vec![(SIGTERM, 1.0), (SIGKILL, 2001.0)],
            exit_code: 137,
            ..kept().pod.remove(0)
        };
        assert!(killed_by_docker.ending().starts_with("SIGKILL by Docker"));
    }
}
