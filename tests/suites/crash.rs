//! The daemon is killed at every point between two steps of a case, and started
//! again: the host is clean in the end, and the case is in the history once (not at
//! all where the daemon died before it wrote a word and nothing was left to be done).
//!
//! The points follow from the enumeration of the steps (`Step::ALL`, before and
//! after each); for every step there is a scenario here that leads to it. Docker,
//! the kernel's events and the cgroups are real; the agent is a stand-in, since
//! most of this takes an agent at a certain point of its destroy.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::command;
use cleanup_tests::docker::{Dockerd, OBEDIENT};
use cleanup_tests::mesos::standin::{CgroupLayout, StandInAgent, StandInRun};
use cleanup_tests::process::Process;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::service::Service;
use cleanup_tests::watcher::Watcher;
use cleanup_tests::{bins, wait};
use cleanup_userspace::case::{HeldBy, Step, Word, WordFile};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
/// How many hosts are walked at the same time.
const LANES: usize = 3;

const OPTIONS: &str = "mode = \"enforce\"\ngrace = \"1s\"\nsettle = \"200ms\"\nagent_deadline = \"1s\"\n\
                       docker_fallback = \"cgroup-kill\"\ndocker_deadline = \"1s\"\nmax_inferred_stops = 0";
const EXCLUDE: &str = "[[exclude]]\nexecutor = \"left-alone\"\n";
/// An executor that leaves a child behind in its cgroup.
const WITH_A_CHILD: [&str; 3] = ["sh", "-c", "sleep 86400 & exec sleep 86400"];

#[test]
fn every_point_between_two_steps() -> Result<()> {
    ensure!(
        cfg!(debug_assertions),
        "the points are in debug builds only: run this suite without --release"
    );
    let points: Vec<(Step, &str)> = Step::ALL
        .into_iter()
        .flat_map(|step| [(step, "before"), (step, "after")])
        .collect();
    let queue = Mutex::new(points.clone().into_iter());
    let next = || queue.lock().expect("no lane panics with it").next();
    let visited = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES)
            .map(|lane| {
                let (next, visited) = (&next, &visited);
                scope.spawn(move || -> Result<()> {
                    let mut bed = Bed::start(&format!("crash{lane}"))?;
                    while let Some((step, moment)) = next() {
                        let point = format!("{moment}:{}", step.name());
                        bed.crash_at(step, &point).with_context(|| point.clone())?;
                        visited.lock().expect("as above").insert(point);
                    }
                    Ok(())
                })
            })
            .collect();
        for lane in lanes {
            lane.join().expect("a lane does not panic")?;
        }
        anyhow::Ok(())
    })?;
    let visited = visited.into_inner().expect("as above");
    assert_eq!(visited.len(), points.len(), "{visited:?}");
    // Past the capture of the test harness: CI shows the count.
    writeln!(
        std::io::stderr(),
        "crash points: {} of {} visited, no case closed twice, nothing left",
        visited.len(),
        points.len()
    )?;
    Ok(())
}

/// Dropped from top to bottom.
struct Bed {
    agent: StandInAgent,
    docker: Dockerd,
    scratch: Scratch,
    runs: u32,
}

/// What has to be undone before the second start, so that it can end well.
#[derive(Default)]
struct Aftermath {
    /// Processes that would live on.
    strangers: Vec<Service>,
    child: Option<Process>,
    /// The kept container.
    kept: Option<String>,
    sandboxes: Option<(PathBuf, PathBuf)>,
}

impl Bed {
    fn start(name: &str) -> Result<Self> {
        let (scratch, docker, agent) = StandInAgent::with_docker(name, CgroupLayout::V1)?;
        Ok(Self {
            agent,
            docker,
            scratch,
            runs: 0,
        })
    }

    /// Leads a case to this point, where the daemon dies; starts it again and
    /// sees that everything is well in the end.
    fn crash_at(&mut self, step: Step, point: &str) -> Result<()> {
        self.runs += 1;
        let name = step.name();
        let executor_id = if name == "close_excluded" {
            "left-alone".to_owned()
        } else {
            format!("executor-{}", self.runs)
        };
        // Of a daemon that finds the death when it starts, without a word of the
        // kernel's.
        let inferred = matches!(name, "wait_release" | "close_dismissed");
        let options = match name {
            "close_excluded" | "wait_identity" => format!("{OPTIONS}\n{EXCLUDE}"),
            _ => OPTIONS.to_owned(),
        };
        let mut aftermath = Aftermath::default();

        let mut run = self.agent.prepare(&executor_id)?;
        if matches!(name, "end_stragglers" | "wait_agent_kills") {
            run.launch(&WITH_A_CHILD)?;
        } else {
            run.launch(&["sleep", "86400"])?;
        }
        let executor = run.executor()?;
        let mut pod = vec![self.start_container(&run, &[])?];
        if name == "wait_kept" {
            let kept = self.start_container(&run, &["--label=compose-cleanup.keep=true"])?;
            aftermath.kept = Some(kept.clone());
            pod.push(kept);
        }
        if name == "wait_busy" {
            aftermath.strangers.push(self.occupy(&run)?);
        }
        if name == "wait_identity" {
            aftermath.sandboxes = Some(self.hide_sandboxes()?);
        }
        if inferred {
            // Without its agent the helper is init's, which leaves no zombie: that
            // would be a proof.
            self.agent.kill9()?;
            executor.kill();
            let helper = run.helper()?;
            wait::until(SOON, "the helper to be reaped", || {
                (Process::of(helper.pid()) != Some(helper)).then_some(())
            })?;
            self.hold()?;
        }

        let mut first = self.spawn(&options, Some(point))?;
        first.wait_message("ready")?;
        first.wait_message("Docker is there")?;
        if !inferred {
            first.wait_executor_learnt(run.container_id())?;
        }
        if name == "kill_pod" {
            self.docker.pause()?;
        }
        if matches!(name, "end_stragglers" | "remove_cgroups") {
            self.agent.kill9()?;
        }
        if matches!(name, "end_stragglers" | "wait_agent_kills") {
            aftermath.child = executor.children().pop();
            ensure!(aftermath.child.is_some(), "the executor has no child");
        }
        if !inferred {
            executor.kill();
        }
        match name {
            "close_dismissed" => {
                first.wait_message(
                    "held: this death was only inferred; `compose-cleanup release` lets it go on",
                )?;
                aftermath.strangers.push(self.intrude(&run)?);
            }
            "close_clean" => {
                for id in &pod {
                    self.wait_stopped(id)?;
                }
                self.agent.destroy(&run).finish()?;
            }
            _ => {}
        }
        let status = first.wait_end()?;
        ensure!(status.signal() == Some(9), "it ended with {status}");

        self.undo(&run, name, aftermath)?;
        let second = self.spawn(&options, None)?;
        second.wait_message("ready")?;
        if name == "close_excluded" {
            return self.ensure_left_alone(&run, &pod, second);
        }
        self.ensure_clean(&run, &pod, second)?;
        if self.agent.process().is_none() {
            // Nobody else forgets what the agent that is gone wrote down.
            fs::remove_dir_all(run.runtime())?;
            self.agent.restart()?;
        }
        Ok(())
    }

    /// Takes away what only the scenario needed, and lets the agent do its part.
    fn undo(&mut self, run: &StandInRun, name: &str, aftermath: Aftermath) -> Result<()> {
        let Aftermath {
            strangers,
            child,
            kept,
            sandboxes,
        } = aftermath;
        if name == "kill_pod" {
            self.docker.resume()?;
        }
        for mut stranger in strangers {
            stranger.kill()?;
        }
        // Nobody saw the death that had seen it: what lives keeps the run unknown.
        if let Some(child) = child {
            child.kill();
            child.wait_gone(SOON)?;
        }
        if let Some((hidden, place)) = sandboxes {
            fs::rename(hidden, place)?;
        }
        if let Some(kept) = kept {
            ensure!(
                self.docker.running()?.contains(&kept),
                "the kept container was stopped"
            );
            self.docker.docker(&["stop", "--time=1", &kept])?;
        }
        let word = Word::Released { at: f64::MAX };
        WordFile::new(&self.scratch.path().join("run-dir")).write(&word)?;
        let agent_lives = self.agent.process().is_some();
        if agent_lives && run.runtime().is_dir() && name != "close_excluded" {
            self.agent.destroy(run).finish()?;
        }
        Ok(())
    }

    fn ensure_clean(&self, run: &StandInRun, pod: &[String], daemon: Watcher) -> Result<()> {
        let id = run.container_id();
        let closed = wait::try_until(SOON, format_args!("the case of {id} to be closed"), || {
            match self.history(id) {
                Ok(case) => Ok((case["closed"] != Value::Null).then_some(Some(case))),
                // The first daemon died before it had written a word. If nothing of the
                // run was left either, there was no case for the second one.
                Err(_) => {
                    let looked = daemon.said("surveyed")?.len() > 1;
                    Ok((looked && self.ensure_nothing_left(id, pod).is_ok()).then_some(None))
                }
            }
        })?;
        if let Some(case) = closed {
            ensure!(case["result"] == "clean", "{case}");
        }
        self.ensure_nothing_left(id, pod)?;
        ensure!(daemon.cases(id)?.len() <= 1, "closed twice");
        daemon.stop()?;
        Ok(())
    }

    fn ensure_nothing_left(&self, id: &str, pod: &[String]) -> Result<()> {
        let running = self.docker.running()?;
        ensure!(!pod.iter().any(|id| running.contains(id)), "{pod:?} run");
        let mut left = self.scratch.leftovers();
        left.retain(|path| path.iter().any(|part| part == id));
        ensure!(left.is_empty(), "{left:?} are left");
        Ok(())
    }

    /// Excluded by the operator: nothing was done, and that is in the history.
    fn ensure_left_alone(&self, run: &StandInRun, pod: &[String], daemon: Watcher) -> Result<()> {
        let case = daemon.wait_case(run.container_id())?;
        ensure!(case["result"] == "excluded", "{case}");
        let running = self.docker.running()?;
        ensure!(pod.iter().all(|id| running.contains(id)), "{case}");
        // Its last words are written when it stops.
        daemon.stop()?;
        let case = self.history(run.container_id())?;
        ensure!(case["result"] == "excluded", "{case}");
        for id in pod {
            self.docker.docker(&["stop", "--time=1", id])?;
        }
        self.agent.destroy(run).finish()
    }

    /// The one case that the journal has of a run.
    fn history(&self, container_id: &str) -> Result<Value> {
        let mut command = Command::new(bins::find("compose-cleanup")?);
        command.args(["case", container_id, "--output", "json", "--journal"]);
        command.arg(Watcher::journal(&self.scratch));
        let text = command::output(&mut command, SOON)?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    fn spawn(&self, options: &str, crash_at: Option<&str>) -> Result<Watcher> {
        let agents = [self.agent.place()];
        match crash_at {
            Some(point) => {
                Watcher::spawn_to_crash(&self.scratch, &self.docker, &agents, options, point)
            }
            None => Watcher::spawn(&self.scratch, &self.docker.socket(), &agents, options),
        }
    }

    fn start_container(&self, run: &StandInRun, options: &[&str]) -> Result<String> {
        self.docker
            .run_beneath(&run.cgroup_parent(), options, OBEDIENT)
    }

    fn wait_stopped(&self, id: &str) -> Result<()> {
        wait::try_until(SOON, format_args!("{id} to be stopped"), || {
            Ok((self.docker.inspect(id)?["State"]["Running"] == false).then_some(()))
        })
    }

    /// A process that is in the way: in a cgroup that looks like a container's.
    fn occupy(&self, run: &StandInRun) -> Result<Service> {
        let cgroup = run.launcher_cgroup().join(format!("{:064x}", self.runs));
        fs::create_dir(&cgroup)?;
        self.enter(&cgroup)
    }

    /// A process of the run's own, after all.
    fn intrude(&self, run: &StandInRun) -> Result<Service> {
        self.enter(&run.launcher_cgroup())
    }

    fn enter(&self, cgroup: &std::path::Path) -> Result<Service> {
        let mut sleep = self.scratch.command("sleep");
        sleep.arg("86400");
        let stranger = Service::spawn(sleep, &self.scratch.path().join("stranger.log"))?;
        fs::write(cgroup.join("cgroup.procs"), stranger.pid().to_string())?;
        Ok(stranger)
    }

    /// Nobody can tell who an executor is.
    fn hide_sandboxes(&self) -> Result<(PathBuf, PathBuf)> {
        let place = self.agent.layout().work_dir().join("slaves");
        let hidden = place.with_extension("hidden");
        fs::rename(&place, &hidden)?;
        Ok((hidden, place))
    }

    fn hold(&self) -> Result<()> {
        let word = Word::Held {
            since: 0.0,
            until: None,
            by: HeldBy::Operator,
        };
        Ok(WordFile::new(&self.scratch.path().join("run-dir")).write(&word)?)
    }
}
