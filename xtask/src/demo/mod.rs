//! `cargo xtask demo`: one executor dies, and what becomes of its pod.

mod collect;
mod outcome;
mod report;
mod steps;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use cleanup_tests::host::{Host, RunningPod};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::scratch;
use cleanup_tests::watcher::{AgentPlace, Watcher};

use crate::setup::Need;
use crate::stage::{self, Machine};
use collect::Scene;
use report::Style;
use steps::Steps;

/// Of each pod.
const SERVICES: usize = 3;
const SOON: Duration = Duration::from_secs(60);
const GRACE: &str = "2s";
const WITHOUT_MESOS: &str =
    "The demo needs a real agent: a stand-in agent for it does not exist yet";

/// See a dead executor's pod being stopped and its cgroups removed, live
///
/// Starts a private Docker daemon, a real Mesos agent and two executors, each
/// with a pod of three containers that docker-compose brings up; one container
/// of each pod ignores SIGTERM. Then it starts compose-cleanup, kills one of the
/// executors with SIGKILL, and reports what happened when, as seen by the kernel,
/// the daemon, Docker, Mesos and an eye-witness. Nothing of the host's own Docker
/// or Mesos is touched, and everything is removed at the end, also after Ctrl-C.
///
/// Installs what the machine lacks without asking (see `cargo xtask setup`):
/// running this command is the consent. Needs root.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask demo                   With Mesos 1.11.0
  cargo xtask demo --version 1.4.3   With an agent of another release

Exit status: 0 everything went as promised, 1 something did not (the report says
what), 130 interrupted.")]
pub(crate) struct Args {
    /// Mesos release of the agent
    #[arg(long, value_name = "V", default_value = "1.11.0")]
    version: String,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Args { version } = args;
    stage::prepare(Need::ALL)?;
    stage::interruptible(|| play(version))
}

fn play(version: &str) -> Result<ExitCode> {
    println!("{}", report::INTRODUCTION);
    let mut steps = Steps::default();
    steps.run(&format!("Mesos {version} ready to be loaded"), || {
        stage::fetch_mesos(version, WITHOUT_MESOS)
    })?;
    let host = steps.run("private Docker daemon, Mesos master and agent", || {
        Host::start("demo", version, AgentOptions::default())
    })?;
    let machine = Machine::look(&host.docker)?;
    let victim = start_executor(&mut steps, &host, "victim")?;
    let neighbour = start_executor(&mut steps, &host, "neighbour")?;
    let what = format!("compose-cleanup watch (mode enforce, grace {GRACE})");
    let watcher = steps.run(&what, || watch(&host))?;

    let scene = Scene::set(&host, &victim, &neighbour)?;
    let kill = format!(
        "SIGKILL to executor `victim` (pid {})",
        victim.executor.executor().pid()
    );
    let death = steps.run(&kill, || scene.kill())?;
    let case = steps.run("compose-cleanup closes the case", || {
        watcher.wait_case(victim.executor.container_id())
    })?;
    let update = steps.run("the agent reports the end of the task", || {
        host.framework.wait_terminal(&victim.task_id, SOON)
    })?;
    let mut outcome = scene.look_again(version, machine, death, &case, &update)?;

    outcome.daemon_exit = steps
        .run("SIGTERM to compose-cleanup", || watcher.stop())?
        .code();
    steps.run("everything that was started is removed", || {
        drop(host);
        Ok(())
    })?;
    outcome.left_behind = !scratch::left_behind().is_empty();

    let style = Style::of_stdout();
    println!("\n{}", report::render(&outcome, style));
    let differences = outcome.differences();
    print!("{}", report::verdict(&differences, style));
    Ok(if differences.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn start_executor(steps: &mut Steps, host: &Host, id: &str) -> Result<RunningPod> {
    steps.run(
        &format!("executor `{id}`: docker-compose up, {SERVICES} containers"),
        || {
            host.run_pod(id, SERVICES, "--ignore-term 1")
                .with_context(|| format!("executor `{id}`"))
        },
    )
}

fn watch(host: &Host) -> Result<Watcher> {
    Watcher::start(
        &host.scratch,
        &host.docker,
        &[AgentPlace::of(&host.agent, &host.scratch)],
        &format!("mode = \"enforce\"\ngrace = \"{GRACE}\""),
    )
}
