//! `compose-cleanup plan`

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::control::{Place, ask, encode, no_daemon, without_answer};
use super::history::{Output, print};
use super::paint::{Paint, Tone};
use super::settings::run_to_end;
use crate::daemon;
use crate::serve::api::{
    Acts, CgroupOwner, CgroupRemoval, ContainerAction, Mode, Plan as RunPlan, Plans, Standing,
};
use crate::serve::{Target, Wanted};

const EXAMPLES: &str = "\
Examples:
  What would be done if this executor died now, and to which containers?
      compose-cleanup plan web

  The same by the container id of its run, whole or its first digits (4 or more):
      compose-cleanup plan 857fd7a0

  Everything on this host that is dead, or that may live and is left alone, and why:
      compose-cleanup plan --orphans

  For a program:
      compose-cleanup plan --orphans --output json

What it says:
  standing  live, dead or unknown, and by which evidence; unknown is never acted on
  plan      when the actions below are carried out, and why then
  ACTION    stop (then SIGKILL after `grace`), kill, stop_and_remove: as `action` says;
            keep: its owner's label; leave: with its run
  JOINED BY the key that makes a container the run's (docs/design.md)
  REMOVED   of a cgroup directory that is empty by then: at_once; when_agent_is_done
            (or gone); after_recovery (of the agent); never

Exit status:
  0  told
  1  there is no such run, or this cannot be told here (the message says why)
  2  wrong usage of the command line
  4  a daemon runs and does not answer (it may be starting)";

/// Tell what would be done about an executor now, and why. Nothing is done.
///
/// Asks the daemon, which knows what it has seen. If none runs, the command looks by
/// itself, as `clean` does: one look, without the memory of a daemon; whether an
/// agent is gone for good takes it 6 seconds then. Needs root.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Plan {
    /// An executor id, whole, or the Mesos container id of a run, or its first digits.
    #[arg(
        value_name = "CONTAINER_ID|EXECUTOR",
        required_unless_present = "orphans"
    )]
    of: Option<String>,

    /// Everything that is dead or unknown.
    #[arg(long, conflicts_with = "of")]
    orphans: bool,

    #[command(flatten)]
    place: Place,

    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

impl Plan {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self {
            of,
            orphans: _,
            place,
            output,
        } = self;
        let config = place.configuration()?;
        let path = match &of {
            Some(of) => format!("plan?of={}", encode(of)),
            None => "plan?orphans=true".to_owned(),
        };
        let plans = match ask::<Plans>(&config, &path) {
            Ok(plans) => plans,
            Err(error) if no_daemon(&error) => {
                eprintln!("no daemon runs: this is one look at the host, by this command itself");
                let wanted = match &of {
                    Some(of) => Wanted::Of(Target::new(of)),
                    None => Wanted::Orphans,
                };
                run_to_end(daemon::plan_alone(config, wanted, false))?
            }
            Err(error) => return without_answer(error),
        };
        if let Some(of) = of.filter(|_| plans.plans.is_empty()) {
            bail!(
                "no run of {} is known here: neither an executor id nor the first 4 digits or more of a container id; \
                 `compose-cleanup executors` lists what lives, `cases` what died",
                of.escape_debug()
            );
        }
        match output {
            Output::Json => print(&format!("{:#}\n", serde_json::to_value(&plans)?))?,
            Output::Table if plans.plans.is_empty() => {
                eprintln!("nothing on this host is dead or unknown");
            }
            Output::Table => print(&pages(&plans, Paint::of_stdout()))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

pub(super) fn pages(plans: &Plans, paint: Paint) -> String {
    let mut out = String::new();
    if plans.mode == Mode::Observe {
        out.push_str("mode is observe: nothing of this is done before it is enforce\n\n");
    }
    if let Some(trouble) = &plans.docker_trouble {
        let line = format!("Docker could not be asked, containers may be missing: {trouble}");
        out += &paint.tone(Tone::Bad, &line);
        out.push_str("\n\n");
    }
    let pages: Vec<String> = plans.plans.iter().map(|plan| page(plan, paint)).collect();
    out + &pages.join("\n")
}

fn page(plan: &RunPlan, paint: Paint) -> String {
    let mut out = String::new();
    let mut field = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<10} {value}");
    };
    field("run", &plan.container);
    for (name, value) in [
        ("executor", &plan.executor),
        ("framework", &plan.framework),
        ("agent", &plan.agent),
    ] {
        field(name, value.as_deref().unwrap_or("unknown"));
    }
    let (word, tone) = match plan.standing {
        Standing::Live => ("live", Tone::Good),
        Standing::Dead => ("dead", Tone::Bad),
        Standing::Unknown => ("unknown", Tone::Attention),
    };
    let word = paint.tone(tone, word);
    field("standing", &format!("{word}: {}", plan.evidence));
    let when = match plan.acts {
        Acts::Now => "now",
        Acts::OnDeath => "when it dies",
        Acts::OnRelease => "held",
        Acts::Never => "nothing is done",
    };
    field(
        "plan",
        &format!("{}: {}", paint.tone(Tone::Heading, when), plan.why),
    );
    if let Some(case) = &plan.case {
        let waits = case.waits_for.as_ref();
        let waits = waits.map_or_else(String::new, |what| format!(", waits for {what}"));
        field("case", &format!("{}, at {}{waits}", case.case, case.step));
    }
    containers(&mut out, plan, paint);
    cgroups(&mut out, plan, paint);
    out
}

fn containers(out: &mut String, plan: &RunPlan, paint: Paint) {
    if plan.containers.is_empty() {
        out.push_str("\nno running container is joined to it\n");
        return;
    }
    let head = format!(
        "{:<15}  {:<12}  {:<13}  NAME  IMAGE",
        "ACTION", "CONTAINER", "JOINED BY"
    );
    let _ = writeln!(out, "\n{}", paint.tone(Tone::Heading, &head));
    for planned in &plan.containers {
        let action = match planned.action {
            ContainerAction::Stop => "stop",
            ContainerAction::Kill => "kill",
            ContainerAction::StopAndRemove => "stop_and_remove",
            ContainerAction::Keep => "keep",
            ContainerAction::Leave => "leave",
        };
        let container = &planned.container;
        let _ = writeln!(
            out,
            "{action:<15}  {:<12}  {:<13}  {}  {}",
            container.id.chars().take(12).collect::<String>(),
            container.joined_by,
            container.name,
            container.image
        );
    }
}

fn cgroups(out: &mut String, plan: &RunPlan, paint: Paint) {
    if plan.cgroups.is_empty() {
        out.push_str("\nno cgroup of it exists\n");
        return;
    }
    let head = format!("{:<18}  {:<6}  CGROUP", "REMOVED", "MADE BY");
    let _ = writeln!(out, "\n{}", paint.tone(Tone::Heading, &head));
    for planned in &plan.cgroups {
        let removed = match planned.removed {
            CgroupRemoval::AtOnce => "at_once",
            CgroupRemoval::WhenAgentIsDone => "when_agent_is_done",
            CgroupRemoval::AfterRecovery => "after_recovery",
            CgroupRemoval::Never => "never",
        };
        let owner = match planned.owner {
            CgroupOwner::Docker => "docker",
            CgroupOwner::Agent => "agent",
        };
        let _ = writeln!(out, "{removed:<18}  {owner:<7}  {}", planned.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_says_what_when_and_why() {
        let plans: Plans = serde_json::from_value(json!({
            "now_unix_ns": 1, "mode": "observe", "held": false, "by_daemon": true,
            "docker_trouble": "it is away",
            "plans": [{
                "container": "857fd7a0-df05-458b-bd72-f5c280790aa0", "executor": "web",
                "agent": "/w", "standing": "live", "evidence": "its executor, process 8, runs",
                "acts": "on_death", "why": "it lives",
                "containers": [{"id": "3f1c2a9d8e7b6c5d", "name": "app_web_1", "image": "nginx:1",
                                "joined_by": "working_dir", "kept": false, "action": "stop_and_remove"}],
                "cgroups": [{"path": "/sys/fs/cgroup/freezer/mesos/857f", "hierarchy": "freezer",
                             "owner": "agent", "removed": "when_agent_is_done"}],
            }],
        }))
        .unwrap();
        let pages = pages(&plans, Paint::OFF);
        for part in [
            "mode is observe",
            "Docker could not be asked, containers may be missing: it is away",
            "framework  unknown",
            "standing   live: its executor, process 8, runs",
            "plan       when it dies: it lives",
            "stop_and_remove  3f1c2a9d8e7b  working_dir    app_web_1  nginx:1",
            "when_agent_is_done  agent    /sys/fs/cgroup/freezer/mesos/857f",
        ] {
            assert!(pages.contains(part), "{part} is missing:\n{pages}");
        }
    }
}
