//! The report of one run, as plain text.

use std::env;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};

use super::outcome::{Outcome, SIGKILL, SIGTERM};
use crate::table::Table;

pub(super) const INTRODUCTION: &str = "\
compose-cleanup: what becomes of a pod when its Mesos executor dies

Everything is real and private to this run: a Docker daemon, a Mesos agent, two
executors, their pods. Nothing of this host's own Docker or Mesos is touched.
";

/// Something that happened.
struct Moment {
    ms: f64,
    what: String,
    seen_by: &'static str,
}

/// Emphasis, for terminals only.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    escapes: bool,
}

impl Style {
    pub(super) fn of_stdout() -> Self {
        Self {
            escapes: io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none(),
        }
    }

    fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn verdict(self, is_good: bool, text: &str) -> String {
        self.wrap(if is_good { "1;32" } else { "1;31" }, text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.escapes {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

pub(super) fn render(outcome: &Outcome, style: Style) -> String {
    let mut text = String::new();
    let mut section = |title: &str, body: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{}\n{body}", style.bold(title));
    };
    section(
        "TIMELINE   milliseconds after the executor's exit",
        &timeline(outcome),
    );
    section("POD OF THE DEAD EXECUTOR", &pod(outcome));
    section(
        "CGROUPS OF THE DEAD EXECUTOR   directories",
        &cgroups(outcome),
    );
    section("AGENT", &agent(outcome));
    section("THE OTHER EXECUTOR", &neighbour(outcome));
    let machine = &outcome.machine;
    let _ = writeln!(
        text,
        "Mesos {}, Docker {} (API {}), Linux {}, {} CPUs",
        outcome.mesos, machine.docker, machine.docker_api, machine.kernel, machine.cpus
    );
    text
}

pub(super) fn verdict(differences: &[String], style: Style) -> String {
    if differences.is_empty() {
        return style.verdict(true, "As promised:")
            + " the pod is stopped, its cgroups are gone, the neighbour and the agent are well.\n";
    }
    let mut text = style.verdict(false, "NOT as promised:") + "\n";
    for difference in differences {
        let _ = writeln!(text, "  - {difference}");
    }
    text
}

fn timeline(outcome: &Outcome) -> String {
    let mut moments = moments(outcome);
    moments.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    let mut table = Table::new(["", "", "seen by"]).left([1, 2]);
    for Moment { ms, what, seen_by } in moments {
        table.row([format!("{ms:>8.2}"), what, seen_by.to_owned()]);
    }
    format!(
        "{table}  compose-cleanup counts from the kernel's time of the exit. The others count from our\n  \
         SIGKILL, at most {:.2} ms before it, and may read that much later. Docker notes a signal\n  \
         once it is delivered. The witness watches processes (pidfd) and directories (every ms).\n",
        outcome.exit_within_ms
    )
}

fn moments(outcome: &Outcome) -> Vec<Moment> {
    let Outcome {
        case,
        pod,
        hierarchies,
        update,
        agent_done_ms,
        ..
    } = outcome;
    let term = Span::of(
        pod.iter()
            .map(|c| (c.signal_ms(SIGTERM), c.service.as_str())),
    );
    let kill = Span::of(
        pod.iter()
            .map(|c| (c.signal_ms(SIGKILL), c.service.as_str())),
    );
    let end = Span::of(pod.iter().map(|c| (c.ended_ms, c.service.as_str())));
    let gone = Span::of(hierarchies.iter().map(|h| (h.gone_ms, h.name.as_str())));
    let daemon = "compose-cleanup";
    let all = [
        (
            Some(0.0),
            format!("the executor's exit ({})", case.status),
            "kernel",
        ),
        (
            case.event_ms,
            "the exit is known to compose-cleanup".into(),
            daemon,
        ),
        (
            case.first_stop_ms,
            "first stop request to Docker".into(),
            daemon,
        ),
        (
            term.first_ms(),
            format!("first SIGTERM noted: {}", term.first_name()),
            "Docker",
        ),
        (
            term.last_ms(),
            format!("last SIGTERM noted: {}", term.last_name()),
            "Docker",
        ),
        (
            kill.first_ms(),
            format!("SIGKILL after the grace: {}", kill.first_name()),
            "Docker",
        ),
        (
            end.first_ms(),
            format!("first container ended: {}", end.first_name()),
            "witness",
        ),
        (
            end.last_ms(),
            format!("last container ended: {}", end.last_name()),
            "witness",
        ),
        (
            case.stopped_ms,
            "Docker confirmed every stop".into(),
            daemon,
        ),
        (
            gone.first_ms(),
            format!("first cgroup gone: {}", gone.first_name()),
            "witness",
        ),
        (
            gone.last_ms(),
            format!("last cgroup gone: {}", gone.last_name()),
            "witness",
        ),
        (
            *agent_done_ms,
            "the agent is done with the container".into(),
            "witness",
        ),
        (
            Some(update.ms),
            format!("the framework is told: {}", update.state),
            "framework",
        ),
        (
            case.clean_ms,
            "nothing of it is left on the host".into(),
            daemon,
        ),
    ];
    all.into_iter()
        .filter_map(|(ms, what, seen_by)| {
            Some(Moment {
                ms: ms?,
                what,
                seen_by,
            })
        })
        .collect()
}

/// The first and the last of several like moments.
struct Span<'a> {
    first: Option<(f64, &'a str)>,
    /// If there is more than one.
    last: Option<(f64, &'a str)>,
}

impl<'a> Span<'a> {
    fn of(moments: impl Iterator<Item = (Option<f64>, &'a str)>) -> Self {
        let mut known: Vec<(f64, &str)> =
            moments.filter_map(|(ms, name)| Some((ms?, name))).collect();
        known.sort_by(|a, b| a.0.total_cmp(&b.0));
        Self {
            first: known.first().copied(),
            last: known.get(1..).and_then(<[_]>::last).copied(),
        }
    }

    fn first_ms(&self) -> Option<f64> {
        self.first.map(|(ms, _)| ms)
    }

    fn first_name(&self) -> &str {
        self.first.map_or("", |(_, name)| name)
    }

    fn last_ms(&self) -> Option<f64> {
        self.last.map(|(ms, _)| ms)
    }

    fn last_name(&self) -> &str {
        self.last.map_or("", |(_, name)| name)
    }
}

fn pod(outcome: &Outcome) -> String {
    let mut table = Table::new([
        "container",
        "at SIGTERM",
        "noted ms",
        "end ms",
        "exit",
        "how it ended",
    ])
    .left([1, 5]);
    for container in &outcome.pod {
        let does = if container.ignores_term {
            "ignores it"
        } else {
            "exits"
        };
        table.row([
            container.service.clone(),
            does.to_owned(),
            optional_ms(container.signal_ms(SIGTERM)),
            optional_ms(container.ended_ms),
            container.exit_code.to_string(),
            container.ending().to_owned(),
        ]);
    }
    format!(
        "{table}  compose-cleanup's own account: {}\n",
        outcome.case.endings
    )
}

fn cgroups(outcome: &Outcome) -> String {
    let mut table = Table::new(["hierarchy", "before", "after", "gone ms"]);
    for hierarchy in &outcome.hierarchies {
        table.row([
            hierarchy.name.clone(),
            hierarchy.before.to_string(),
            hierarchy.after.to_string(),
            optional_ms(hierarchy.gone_ms),
        ]);
    }
    let (before, after) = outcome.directories();
    let all = format!("all {}", outcome.hierarchies.len());
    table.row([all, before.to_string(), after.to_string(), String::new()]);
    let own = outcome.case.cgroups_removed;
    format!("{table}  compose-cleanup removed {own} of them, Docker and the agent the others.\n")
}

fn agent(outcome: &Outcome) -> String {
    let Outcome { agent, update, .. } = outcome;
    let mut table = Table::new([
        "container_destroy_errors",
        "ERROR lines in its log",
        "told the framework",
    ])
    .left([2]);
    table.row([
        agent.destroy_errors.to_string(),
        agent.error_lines.len().to_string(),
        format!("{} ({})", update.state, update.reason),
    ]);
    table.to_string()
}

fn neighbour(outcome: &Outcome) -> String {
    let neighbour = &outcome.neighbour;
    let mut table = Table::new([
        "executor",
        "containers",
        "same processes",
        "restarts",
        "cgroups before",
        "after",
    ]);
    let alive = if neighbour.executor_alive {
        "alive"
    } else {
        "dead"
    };
    table.row([
        alive.to_owned(),
        neighbour.containers.to_string(),
        neighbour.untouched.to_string(),
        neighbour.restarts.to_string(),
        neighbour.directories_before.to_string(),
        neighbour.directories_after.to_string(),
    ]);
    table.to_string()
}

fn optional_ms(ms: Option<f64>) -> String {
    ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"))
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::kept;
    use super::*;

    const PLAIN: Style = Style { escapes: false };

    #[test]
    fn the_timeline_is_in_order_and_names_its_witnesses() {
        let text = timeline(&kept());
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[1].starts_with("      0.00   the executor's exit (signal 9)"),
            "{text}"
        );
        assert!(lines[1].ends_with("kernel"), "{text}");
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what}: {text}"));
        let order = [
            "is known to compose-cleanup",
            "first stop request",
            "first SIGTERM noted: ",
            "first container ended: service1",
            "last container ended: service0",
            "Docker confirmed",
            "first cgroup gone: freezer",
            "last cgroup gone: memory",
            "told: TASK_FAILED",
            "nothing of it is left",
        ];
        assert!(order.map(at).is_sorted(), "{text}");
    }

    #[test]
    fn what_did_not_happen_has_no_time() {
        let mut outcome = kept();
        outcome.pod[0].ended_ms = None;
        outcome.pod[0].running = true;
        outcome.hierarchies[0].gone_ms = None;
        outcome.agent_done_ms = None;
        assert!(!timeline(&outcome).contains("last container"));
        assert!(!timeline(&outcome).contains("agent is done"));
        assert!(
            pod(&outcome).contains("-    137   still running"),
            "{}",
            pod(&outcome)
        );
        assert!(
            cgroups(&outcome).contains("freezer          4       0         -"),
            "{}",
            cgroups(&outcome)
        );
    }

    #[test]
    fn cgroups_are_summed_up() {
        let text = cgroups(&kept());
        assert!(text.contains("all 2            8       0"), "{text}");
    }

    #[test]
    fn the_report_fits_a_terminal() {
        for line in render(&kept(), PLAIN).lines() {
            assert!(line.chars().count() <= 110, "{line}");
        }
    }

    #[test]
    fn a_broken_promise_is_on_the_last_lines() {
        assert!(verdict(&[], PLAIN).starts_with("As promised"));
        let text = verdict(&["service1 still runs".to_owned()], PLAIN);
        assert_eq!(text, "NOT as promised:\n  - service1 still runs\n");
    }

    #[test]
    fn only_a_terminal_gets_escapes() {
        assert!(!render(&kept(), PLAIN).contains('\x1b'));
        let coloured = Style { escapes: true };
        assert!(render(&kept(), coloured).contains("\x1b[1mAGENT\x1b[0m"));
        assert!(verdict(&[], coloured).starts_with("\x1b[1;32mAs promised:\x1b[0m "));
    }
}
