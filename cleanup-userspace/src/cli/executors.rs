//! `compose-cleanup executors`

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;

use super::control::{Place, ask, without_answer};
use super::history::{Output, print, shorten};
use super::paint::{Paint, Tone};
use crate::serve::api::{Executor, Executors as Answer, Launcher, PodContainer};

const EXAMPLES: &str = "\
Examples:
  Which executors live on this host, and what belongs to them?
      compose-cleanup executors

  Whose is this container?
      compose-cleanup executors | grep -B 20 3f1c2a

  For a program:
      compose-cleanup executors --output json

Columns:
  HELPER, PID  the launcher helper and the executor; \"gone\" if only the helper is:
               then nothing is stopped before the executor is gone, too
  JOINED BY    what makes a container the run's: \"cgroup\" (it lies beneath the run's),
               \"cgroup_parent\", \"working_dir\" and \"config_files\" (compose's labels, in
               the run's sandbox), \"label\" (executorId, with everything in
               docs/design.md; as if the executor died now)

Exit status:
  0  told, even if there is none
  1  not allowed, or not understood (the message says why)
  2  wrong usage of the command line
  3  no daemon runs
  4  a daemon runs and does not answer (it may be starting)";

/// List the executors that live, each with the running containers of its pod.
///
/// Asks the daemon through its control socket, `control.sock` in `run_dir`; needs
/// root. Docker is not asked: its events keep the daemon's list current.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Executors {
    #[command(flatten)]
    place: Place,

    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

impl Executors {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self { place, output } = self;
        let answer: Answer = match ask(&place.configuration()?, "executors") {
            Ok(answer) => answer,
            Err(error) => return without_answer(error),
        };
        match output {
            Output::Json => print(&format!("{:#}\n", serde_json::to_value(&answer)?))?,
            Output::Table if answer.executors.is_empty() => eprintln!("no executor lives"),
            Output::Table => print(&table(&answer.executors, Paint::of_stdout()))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(executors: &[Executor], paint: Paint) -> String {
    let name = |executor: &Executor| executor.executor.clone().unwrap_or_else(|| "?".to_owned());
    let longest = executors.iter().map(|one| name(one).chars().count()).max();
    let width = longest.unwrap_or(0).clamp("EXECUTOR".len(), 32);
    let head = format!(
        "{:<width$}  {:<36}  {:>7}  {:>7}  {:<8}  {:<24}  AGENT",
        "EXECUTOR", "RUN", "HELPER", "PID", "LAUNCHER", "FRAMEWORK"
    );
    let mut out = paint.tone(Tone::Heading, &head) + "\n";
    let pid = |pid: Option<u32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    for executor in executors {
        let helper = if executor.orphaned {
            "gone".to_owned()
        } else {
            pid(executor.helper_pid)
        };
        let _ = writeln!(
            out,
            "{:<width$}  {:<36}  {helper:>7}  {:>7}  {:<8}  {:<24}  {}",
            shorten(&name(executor), width),
            executor.container,
            pid(executor.executor_pid),
            match executor.launcher {
                Launcher::Linux => "linux",
                Launcher::Posix => "posix",
            },
            shorten(executor.framework.as_deref().unwrap_or("?"), 24),
            executor.agent,
        );
        for container in &executor.pod {
            let _ = writeln!(out, "  {}", line(container));
        }
    }
    out
}

/// `3f1c2a…  cgroup_parent  poddata_web_1  nginx:1.25`
fn line(container: &PodContainer) -> String {
    let PodContainer {
        id,
        name,
        image,
        joined_by,
        kept,
    } = container;
    let id: String = id.chars().take(12).collect();
    let kept = if *kept { "  kept" } else { "" };
    format!("{id:<12}  {joined_by:<13}  {name}  {image}{kept}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_executor_has_its_pod_beneath() {
        let container = "857fd7a0-df05-458b-bd72-f5c280790aa0";
        let executors: Vec<Executor> = serde_json::from_value(json!([
            {"container": container, "executor": "web", "framework": "F-1", "agent": "/w",
             "launcher": "linux", "helper_pid": 7, "executor_pid": 8, "orphaned": false,
             "pod": [{"id": "3f1c2a9d8e7b6c5d4e3f", "name": "app_web_1", "image": "nginx:1",
                      "joined_by": "cgroup_parent", "kept": true}]},
            {"container": container, "agent": "/w", "launcher": "posix", "helper_pid": 9,
             "orphaned": true, "pod": []},
        ]))
        .unwrap();
        let table = table(&executors, Paint::OFF);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4, "{table}");
        assert!(
            lines[1].starts_with(
                "web       857fd7a0-df05-458b-bd72-f5c280790aa0        7        8  linux"
            ),
            "{table}"
        );
        assert_eq!(
            lines[2],
            "  3f1c2a9d8e7b  cgroup_parent  app_web_1  nginx:1  kept"
        );
        assert!(
            lines[3].contains("   gone        -  posix     ?"),
            "{table}"
        );
    }
}
