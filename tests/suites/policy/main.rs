//! What the operator, and the owner of a container, may say: leave it alone, hold
//! it back, remove it after a while. Docker, docker-compose, networks, volumes and
//! the kernel's events are real; so is the agent where it matters, else it is a
//! stand-in (`cleanup_tests::mesos::standin`), which dies and recovers on demand.

mod alone;
mod hold;
mod remains;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use cleanup_tests::docker::{Dockerd, IMAGE, OBEDIENT};
use cleanup_tests::host::ENFORCE;
use cleanup_tests::mesos::standin::{CgroupLayout, StandInAgent, StandInRun};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::{Watcher, configure};
use cleanup_tests::{bins, command, wait};
use serde_json::{Map, Value, json};

const SOON: Duration = Duration::from_secs(60);
const COMMAND: Duration = Duration::from_secs(60);

/// A host without the daemon. Dropped from top to bottom.
struct Bed {
    agent: StandInAgent,
    docker: Dockerd,
    scratch: Scratch,
}

impl Bed {
    fn new(name: &str) -> Result<Self> {
        let (scratch, docker, agent) = StandInAgent::with_docker(name, CgroupLayout::V1)?;
        Ok(Self {
            agent,
            docker,
            scratch,
        })
    }

    /// Starts the daemon: at work, with these options too.
    fn watch(&self, options: &str) -> Result<Watcher> {
        let options = format!("{ENFORCE}\n{options}\n");
        let agents = [self.agent.place()];
        Watcher::start_telling_steps(&self.scratch, &self.docker, &agents, &options)
    }

    /// What [`Self::watch`] would start it with.
    fn configure(&self, options: &str) -> Result<PathBuf> {
        let options = format!("{ENFORCE}\n{options}\n");
        let agents = [self.agent.place()];
        configure(&self.scratch, &self.docker.socket(), &agents, &options)
    }

    /// Runs `compose-cleanup …` with the daemon's configuration, and returns what
    /// it says.
    fn say(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(bins::find("compose-cleanup")?);
        let config = self.scratch.path().join("compose-cleanup.toml");
        command.args(words).arg("--config").arg(config);
        command::output(&mut command, COMMAND)
    }

    /// A run that the daemon has learnt.
    fn launch(&self, watcher: &Watcher, executor_id: &str) -> Result<StandInRun> {
        let run = self.agent.launch(executor_id)?;
        watcher.wait_executor_learnt(run.container_id())?;
        Ok(run)
    }

    /// A container of a run's pod, with more options of `docker run`.
    fn start_container(&self, run: &StandInRun, options: &[&str]) -> Result<String> {
        self.docker
            .run_beneath(&run.cgroup_parent(), options, OBEDIENT)
    }

    /// A container of a run's pod, as compose would label it.
    fn start_service(&self, run: &StandInRun, options: &[&str]) -> Result<String> {
        let label = ["--label=com.docker.compose.project=app"];
        self.start_container(run, &[&label[..], options].concat())
    }

    /// `docker-compose up` of a pod with these services in a directory of the run's
    /// sandbox, which names the project. Returns the containers' ids.
    fn up(
        &self,
        run: &StandInRun,
        project: &str,
        services: &[&str],
        service: &Value,
        top: &Value,
    ) -> Result<Vec<String>> {
        let mut file = top.clone();
        let services: Map<String, Value> = services
            .iter()
            .map(|name| {
                let mut service = service.clone();
                service["image"] = json!(IMAGE);
                service["command"] = json!(["sh", "-c", OBEDIENT.replace('$', "$$")]);
                service["cgroup_parent"] = json!(run.cgroup_parent());
                ((*name).to_owned(), service)
            })
            .collect();
        file["version"] = json!("2.4");
        file["services"] = Value::Object(services);
        let dir = run.sandbox().join(project);
        fs::create_dir_all(&dir)?;
        let path = dir.join("docker-compose.yml");
        fs::write(&path, file.to_string())?;
        let compose = |arguments: &[&str]| {
            let mut compose = self.docker.client("docker-compose");
            compose.arg("-f").arg(&path).args(arguments);
            command::output(&mut compose, COMMAND)
        };
        compose(&["up", "-d"])?;
        let ids = compose(&["ps", "-q"])?;
        let ids: Vec<String> = ids.lines().map(str::to_owned).collect();
        Ok(ids)
    }

    fn runs(&self, id: &str) -> Result<bool> {
        Ok(self.docker.running()?.iter().any(|running| running == id))
    }

    fn exists(&self, id: &str) -> Result<bool> {
        Ok(self.docker.containers()?.iter().any(|known| known == id))
    }

    fn ensure_running(&self, id: &str) -> Result<()> {
        ensure!(self.runs(id)?, "{id} does not run");
        Ok(())
    }

    /// Nothing was in the way of anything, and nothing failed.
    fn ensure_no_warnings(&self, watcher: &Watcher) -> Result<()> {
        let mut lines = watcher.lines()?;
        lines.retain(|line| line["level"] == "WARN" || line["level"] == "ERROR");
        ensure!(lines.is_empty(), "{lines:?}");
        Ok(())
    }

    fn wait_stopped(&self, id: &str) -> Result<()> {
        wait::try_until(SOON, format_args!("{id} to be stopped"), || {
            Ok((!self.runs(id)?).then_some(()))
        })
    }

    /// The hook's request for an executor that nobody knows: a reason for the
    /// daemon to look at everything.
    fn ask_for_a_survey(&self) -> Result<()> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let inbox = Watcher::inbox(&self.scratch);
        let unfinished = inbox.join(format!(".tmp-{count}"));
        let request = "compose-cleanup-request 1\nframework_id=66\nexecutor_id=6e6f626f6479\n\
                       time_ns=1\nagent_pid=1\nmesos=1.11.0\nend\n";
        fs::write(&unfinished, request)?;
        fs::rename(unfinished, inbox.join(format!("{count}.request")))?;
        Ok(())
    }

    /// Lets the daemon look at everything until `probe` has something.
    fn survey_until<T>(
        &self,
        what: &str,
        mut probe: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        wait::try_until(SOON, what, || {
            self.ask_for_a_survey()?;
            probe()
        })
    }

    /// … until it says of something in Docker what it makes of it.
    fn survey_until_said(
        &self,
        watcher: &Watcher,
        message: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let before = watcher.said(message)?.len();
        self.survey_until(&format!("a certain `{message}`"), || {
            let said = watcher.said(message)?;
            Ok(said.into_iter().skip(before).find(&fits))
        })
    }

    /// … until it has judged this stopped container so.
    fn survey_until_fate(&self, watcher: &Watcher, id: &str, fate: &str) -> Result<()> {
        self.survey_until_said(watcher, "stopped", |line| {
            line["container"] == id && line["fate"] == fate
        })
        .map(drop)
    }

    /// … until this container exists no more.
    fn survey_until_removed(&self, id: &str) -> Result<()> {
        self.survey_until(&format!("{id} to be removed"), || {
            Ok((!self.exists(id)?).then_some(()))
        })
    }
}

/// Waits until a case of the run is closed, and was seen clean.
fn wait_clean(watcher: &Watcher, run: &StandInRun) -> Result<Value> {
    let case = watcher.wait_case(run.container_id())?;
    ensure!(case["result"] == "clean", "{case}");
    Ok(case)
}

/// Waits until the run's case waits so, and goes on doing that.
fn wait_waiting(watcher: &Watcher, run: &StandInRun, waiting: &str) -> Result<()> {
    let step = format!("Wait({waiting})");
    watcher
        .wait_message_that("step", |line| {
            line["container"] == run.container_id() && line["step"] == step
        })
        .map(drop)
}
