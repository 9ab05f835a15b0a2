//! `compose-cleanup status`

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::control::{Place, ask, without_answer};
use super::history::{Output, print, shorten, span, time};
use super::paint::{Paint, Tone};
use crate::config::Config;
use crate::serve::api::{AgentState, Case, DockerState, Mode, Status as Answer};

/// Between two looks with `--follow`.
const EVERY: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  Is it well, and what is it doing?
      compose-cleanup status

  Watch running cases:
      compose-cleanup status --follow

  For a program; with --follow one document a line, once a second:
      compose-cleanup status --output json
      compose-cleanup status --output json --follow

What to look at:
  probe    exits that were missed made the daemon look at everything: nothing is
           lost, but the ring buffer (ebpf.ring_bytes) may be too small
  hold     HELD: what was only inferred waits for `compose-cleanup release`
  agents   absent: nothing of its state is waited for; recovering: nothing is removed
  docker   away: cases are kept, and go on when it is back
  unknown  runs that are neither proven live nor dead: `compose-cleanup plan --orphans`
  cases    the open ones, the oldest first; what each step means, and what to do if
           it lasts, is in docs/operations.md

Exit status:
  0  told
  1  not allowed, or not understood (the message says why)
  2  wrong usage of the command line
  3  no daemon runs
  4  a daemon runs and does not answer (it may be starting)";

/// Tell how the daemon is, and what it is doing now.
///
/// Asks the daemon through its control socket, `control.sock` in `run_dir`; needs
/// root. What happened before is in `compose-cleanup cases`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Status {
    #[command(flatten)]
    place: Place,

    /// Go on until interrupted, once a second.
    #[arg(long)]
    follow: bool,

    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

impl Status {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self {
            place,
            follow,
            output,
        } = self;
        let config = place.configuration()?;
        let status = match ask::<Answer>(&config, "status") {
            Ok(status) => status,
            Err(error) => return without_answer(error),
        };
        if follow {
            return follow_on(&config, status, output);
        }
        match output {
            Output::Json => print(&format!("{:#}\n", serde_json::to_value(&status)?))?,
            Output::Table => print(&page(&status, Paint::of_stdout()))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The daemon may be restarted meanwhile.
fn follow_on(config: &Config, first: Answer, output: Output) -> anyhow::Result<ExitCode> {
    let paint = Paint::of_stdout();
    let is_screen = std::io::stdout().is_terminal();
    let mut answer = Ok(first);
    loop {
        let text = match (&answer, output) {
            (Ok(status), Output::Json) => format!("{}\n", serde_json::to_string(status)?),
            (Ok(status), Output::Table) => page(status, paint),
            (Err(error), Output::Json) => {
                eprintln!("compose-cleanup: {error:#}");
                String::new()
            }
            (Err(error), Output::Table) => {
                format!("{}\n", paint.tone(Tone::Bad, &format!("{error:#}")))
            }
        };
        let text = match output {
            // From the top; what was beneath goes.
            Output::Table if is_screen => format!("\x1b[H\x1b[2J{text}"),
            Output::Table => format!("{text}\n"),
            Output::Json => text,
        };
        // Whoever read it has left.
        let mut out = std::io::stdout().lock();
        if out
            .write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .is_err()
        {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(EVERY);
        answer = ask::<Answer>(config, "status");
    }
}

fn page(status: &Answer, paint: Paint) -> String {
    let now = status.now_unix_ns;
    let mut out = format!(
        "compose-cleanup {}, process {}, since {} ({})\n\n",
        status.version,
        status.pid,
        time(status.started_unix_ns, false),
        span(now.saturating_sub(status.started_unix_ns))
    );
    let mut field = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<9} {value}");
    };
    field(
        "mode",
        &match status.mode {
            Mode::Enforce => paint.tone(Tone::Good, "enforce"),
            Mode::Observe => format!(
                "{}: nothing is stopped or removed",
                paint.tone(Tone::Attention, "observe")
            ),
        },
    );
    if let Some(error) = &status.configuration_refused {
        let word = paint.tone(Tone::Attention, "refused when it was read again");
        field("config", &format!("{word}: {error}"));
    }
    field("probe", &probe(status, paint));
    field("hold", &hold(status, paint));
    field("docker", &docker(status, paint));
    field("journal", &journal(status, paint));
    let counters = &status.counters;
    field(
        "exits",
        &format!(
            "{} beneath a Mesos root, {} of them no executor's that is known here; {} dead executors, {} requests of the hook",
            counters.exits, counters.foreign_exits, counters.deaths, counters.hook_requests
        ),
    );
    field(
        "cases",
        &format!(
            "{} open; closed: {}, with {} containers",
            status.cases.len(),
            counts(&counters.cases),
            counters.containers
        ),
    );
    field(
        "unknown",
        &match status.unknown_runs {
            0 => "no runs".to_owned(),
            runs => format!(
                "{}: left alone; `compose-cleanup plan --orphans` says why",
                paint.tone(Tone::Attention, &format!("{runs} runs"))
            ),
        },
    );
    agents(&mut out, status, paint);
    cases(&mut out, &status.cases, paint);
    out
}

fn probe(status: &Answer, paint: Paint) -> String {
    let probe = &status.probe;
    if !probe.works {
        let word = paint.tone(Tone::Bad, "cannot be read");
        return format!("{}, {word}; pidfds and surveys go on", probe.kind);
    }
    let mut text = probe.kind.clone();
    if probe.missed > 0 {
        let word = format!("{} exits missed", probe.missed);
        let _ = write!(text, ", {}", paint.tone(Tone::Attention, &word));
    }
    let lost: BTreeMap<String, u64> = probe
        .losses
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| (reason.clone(), *count))
        .collect();
    if lost.is_empty() {
        text.push_str(", nothing lost");
    } else {
        let _ = write!(text, ", lost: {}", counts(&lost));
    }
    text
}

fn hold(status: &Answer, paint: Paint) -> String {
    let hold = &status.hold;
    if !hold.held {
        return "nothing is held".to_owned();
    }
    let mut text = paint.tone(Tone::Attention, "HELD");
    if let Some(by) = &hold.by {
        let _ = write!(text, " ({by})");
    }
    if let Some(since) = hold.since_unix_ns {
        let _ = write!(text, " since {}", time(since, false));
    }
    match hold.until_unix_ns {
        Some(until) => {
            let _ = write!(text, ", until {}", time(until, false));
        }
        None => text.push_str(": `compose-cleanup release` lets inferred deaths go on"),
    }
    text
}

fn docker(status: &Answer, paint: Paint) -> String {
    let docker = &status.docker;
    let word = match docker.state {
        DockerState::There => paint.tone(Tone::Good, "there"),
        DockerState::Away => paint.tone(Tone::Bad, "away"),
        DockerState::NotKnown => paint.tone(Tone::Attention, "no word yet"),
    };
    let since = docker
        .since_unix_ns
        .map_or_else(String::new, |at| format!(" since {}", time(at, false)));
    format!(
        "{word}{since}, {} containers run ({})",
        docker.running_containers, docker.socket
    )
}

fn journal(status: &Answer, paint: Paint) -> String {
    let journal = &status.journal;
    if !journal.enabled {
        return "off".to_owned();
    }
    let mut text = match journal.failing_since_unix_ns {
        Some(since) => format!(
            "{} since {}",
            paint.tone(Tone::Bad, "cannot be written"),
            time(since, false)
        ),
        None => format!("{:.1} MiB", journal.bytes as f64 / f64::from(1 << 20)),
    };
    let _ = write!(text, ", {} records written", journal.written);
    for (count, what) in [
        (journal.waiting as u64, "waiting"),
        (journal.dropped_steps, "steps dropped"),
        (journal.dropped_cases, "cases dropped"),
    ] {
        if count > 0 {
            let _ = write!(text, ", {count} {what}");
        }
    }
    let _ = write!(text, " ({})", journal.path);
    text
}

/// `17 clean, 1 excluded`; `none`.
fn counts(counts: &BTreeMap<String, u64>) -> String {
    let words: Vec<String> = counts
        .iter()
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(", ")
    }
}

fn agents(out: &mut String, status: &Answer, paint: Paint) {
    let head = format!("{:<10}  {:>9}  AGENT (work_dir)", "STATE", "EXECUTORS");
    let _ = writeln!(out, "\n{}", paint.tone(Tone::Heading, &head));
    for agent in &status.agents {
        let (word, tone) = match agent.state {
            AgentState::Alive => ("alive", Tone::Good),
            AgentState::Recovering => ("recovering", Tone::Attention),
            AgentState::Absent => ("absent", Tone::Bad),
        };
        let _ = writeln!(
            out,
            "{}  {:>9}  {}",
            paint.tone(tone, &format!("{word:<10}")),
            agent.live_executors,
            agent.work_dir
        );
    }
}

fn cases(out: &mut String, cases: &[Case], paint: Paint) {
    if cases.is_empty() {
        out.push_str("\nno open cases\n");
        return;
    }
    let name = |case: &Case| case.executor.clone().unwrap_or_else(|| "?".to_owned());
    let longest = cases.iter().map(|case| name(case).chars().count()).max();
    let width = longest.unwrap_or(0).clamp("EXECUTOR".len(), 24);
    let head = format!(
        "{:<8}  {:<width$}  {:<8}  {:<6}  {:>8}  {:<20}  {:>8}  {:>7}  WAITS FOR",
        "CASE", "EXECUTOR", "RUN", "ORIGIN", "AGE", "STEP", "FOR", "STOPPED"
    );
    let _ = writeln!(out, "\n{}", paint.tone(Tone::Heading, &head));
    for case in cases {
        let line = format!(
            "{:<8}  {:<width$}  {:<8}  {:<6}  {:>8}  {:<20}  {:>8}  {:>7}  {}",
            shorten_id(&case.case),
            shorten(&name(case), width),
            shorten_id(&case.container),
            case.origin,
            age(case.age_ns),
            case.step,
            age(case.step_age_ns),
            format!("{}/{}", case.pod.ended, case.pod.containers),
            case.waits_for.as_deref().unwrap_or("-"),
        );
        let _ = writeln!(out, "{line}");
        if let Some(trouble) = &case.trouble {
            let _ = writeln!(
                out,
                "{:<8}  {}",
                "",
                paint.tone(Tone::Attention, &format!("in the way: {trouble}"))
            );
        }
    }
}

fn shorten_id(id: &str) -> String {
    id.chars().take(8).collect()
}

fn age(ns: u64) -> String {
    span(i64::try_from(ns).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer() -> Answer {
        serde_json::from_value(json!({
            "version": "0.1.0", "pid": 7, "started_unix_ns": 1_795_516_982_000_000_000i64,
            "now_unix_ns": 1_795_517_000_000_000_000i64, "mode": "enforce",
            "probe": {"kind": "ebpf", "works": true, "missed": 2,
                      "losses": {"ring_full": 2, "malformed": 0}},
            "hold": {"held": true, "by": "cap", "since_unix_ns": 1_795_516_990_000_000_000i64},
            "agents": [{"work_dir": "/w", "runtime_dir": "/r", "cgroups_root": "mesos",
                        "state": "recovering", "live_executors": 3}],
            "docker": {"socket": "/d.sock", "state": "away", "running_containers": 4,
                       "since_unix_ns": 1_795_516_990_000_000_000i64},
            "cases": [{"case": "4f21ab0c93d07e51", "container": "857fd7a0-df05-458b-bd72-f5c280790aa0",
                       "executor": "an executor with a name that is much too long", "origin": "kernel",
                       "status": "signal 9", "died_unix_ns": 1, "age_ns": 3_000_000_000u64,
                       "step": "wait_agent_destroys", "step_age_ns": 2_000_000_000u64,
                       "waits_for": "the agent, to finish its destroy", "trouble": "Docker said no",
                       "pod": {"containers": 3, "to_stop": 0, "stopping": 1, "ended": 2, "kept": 0}}],
            "unknown_runs": 1,
            "counters": {"exits": 9, "foreign_exits": 1, "deaths": 2, "hook_requests": 0,
                         "cases": {"clean": 5, "excluded": 1}, "containers": 8},
            "journal": {"enabled": true, "path": "/j.db", "bytes": 1 << 21, "written": 12, "waiting": 0,
                        "dropped_steps": 0, "dropped_cases": 0},
            "of_a_later_release": {}
        }))
        .unwrap()
    }

    #[test]
    fn what_is_wrong_can_be_seen() {
        let page = page(&answer(), Paint::OFF);
        for part in [
            "compose-cleanup 0.1.0, process 7, since 2026-11-24T10:43:02Z (18.00 s)",
            "mode      enforce",
            "probe     ebpf, 2 exits missed, lost: 2 ring_full",
            "hold      HELD (cap) since 2026-11-24T10:43:10Z: `compose-cleanup release`",
            "docker    away since 2026-11-24T10:43:10Z, 4 containers run (/d.sock)",
            "journal   2.0 MiB, 12 records written (/j.db)",
            "cases     1 open; closed: 5 clean, 1 excluded, with 8 containers",
            "unknown   1 runs: left alone",
            "recovering          3  /w",
            "4f21ab0c  an executor with a name…  857fd7a0  kernel",
            "2/3  the agent, to finish its destroy",
            "in the way: Docker said no",
        ] {
            assert!(page.contains(part), "{part} is missing:\n{page}");
        }
        assert!(!page.contains('\x1b'));
    }

    #[test]
    fn a_quiet_daemon_is_a_short_page() {
        let mut status = answer();
        status.cases.clear();
        status.hold = serde_json::from_value(json!({"held": false})).unwrap();
        status.unknown_runs = 0;
        let page = page(&status, Paint::OFF);
        assert!(page.contains("nothing is held"), "{page}");
        assert!(page.ends_with("\nno open cases\n"), "{page}");
    }
}
