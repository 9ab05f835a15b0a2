//! `cargo xtask bench reconcile`: what it costs to compare what exists with what
//! is known, on a host with a long past.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::{Dockerd, IMAGE};
use cleanup_tests::host::ENFORCE;
use cleanup_tests::mesos::standin::{CgroupLayout, StandInAgent};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::wait;
use cleanup_tests::watcher::Watcher;

use super::part::{Goal, Part, Scale, show};
use crate::setup::Need;
use crate::stats::Summary;
use crate::table::Table;

/// Executors that live, with a container each.
const LIVING: usize = 10;
/// Cgroups without an owner: each is looked for among all the sandboxes, once.
const LEFTOVERS: usize = 20;
const SURVEY: Duration = Duration::from_secs(60);

/// Of the slowest survey, in milliseconds.
const GOAL_MS: f64 = 1e3;

/// Measure a survey on a host with a long past
///
/// The daemon compares what exists (containers, cgroups, runtime directories) with
/// what it knows: at its start, every minute, and whenever it may have missed
/// something. This measures such a survey with so many sandboxes of executors that
/// ended long ago and so many stopped containers, and before there were any, in
/// one run. Docker, cgroups and the daemon are real, the agent is a stand-in. The
/// goal is less than a second. Needs root.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask bench reconcile
  cargo xtask bench reconcile --sandboxes 100000 --containers 200")]
pub(super) struct Args {
    /// Sandboxes of executors that ended long ago
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    sandboxes: usize,

    /// Stopped containers
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    containers: usize,

    /// Surveys that are measured, of either host
    #[arg(long, value_name = "N", default_value_t = 20)]
    surveys: usize,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    show(Need::ALL, || part(args))
}

pub(super) fn measure(scale: Scale) -> Result<Part> {
    part(&match scale {
        Scale::Quick => Args {
            sandboxes: 2_000,
            containers: 100,
            surveys: 5,
        },
        Scale::Full => Args {
            sandboxes: 10_000,
            containers: 1_000,
            surveys: 20,
        },
    })
}

fn part(args: &Args) -> Result<Part> {
    let (scratch, docker, agent) = StandInAgent::with_docker("bench-reconcile", CgroupLayout::V1)?;
    let mut runs = Vec::new();
    for n in 0..LIVING {
        let run = agent.launch(&format!("living-{n}"))?;
        let parent = format!("--cgroup-parent={}", run.cgroup_parent());
        docker.docker(&[
            "run",
            "-d",
            "--network=none",
            &parent,
            IMAGE,
            "sleep",
            "86400",
        ])?;
        runs.push(run);
    }
    let bare = surveys(&scratch, &docker, &agent, args.surveys)?;

    println!(
        "making {} sandboxes and {} containers",
        args.sandboxes, args.containers
    );
    let frameworks = agent
        .layout()
        .work_dir()
        .join("slaves/old-S0/frameworks/old-0000/executors");
    for n in 0..args.sandboxes {
        let sandbox = frameworks.join(format!("executor-{n}/runs/{}", id(0xa, n)));
        fs::create_dir_all(&sandbox).with_context(|| sandbox.display().to_string())?;
    }
    let script = format!(
        "for i in $(seq {}); do docker create --network=none {IMAGE} true >/dev/null & \
         [ $((i % 16)) = 0 ] && wait; done; wait",
        args.containers
    );
    let mut create = docker.client("sh");
    let status = create.args(["-c", &script]).status().context("sh")?;
    ensure!(status.success(), "docker create: {status}");
    let made = docker.containers()?.len() - LIVING;
    ensure!(made == args.containers, "{made} containers were made");
    for root in scratch.cgroup_dirs() {
        for n in 0..LEFTOVERS {
            fs::create_dir_all(root.join(id(0xb, n)))?;
        }
    }
    let old = surveys(&scratch, &docker, &agent, args.surveys)?;

    let mut table = Table::new(["", "without", "with"]);
    let mut row = |what: &str, values: [f64; 2]| {
        let values = values.map(|value| format!("{value:.1}"));
        table.row([&[what.to_owned()][..], &values[..]].concat());
    };
    let summary = |measured: &Measured| {
        Summary::of(measured.later.iter().copied()).context("a survey after the first")
    };
    let (bare_later, old_later) = (summary(&bare)?, summary(&old)?);
    row("first survey", [bare.first, old.first]);
    row("later ones, median", [bare_later.p50, old_later.p50]);
    row("later ones, worst", [bare_later.max, old_later.max]);
    let worst = old_later.max.max(old.first);
    let Args {
        sandboxes,
        containers,
        surveys,
    } = args;
    Ok(Part {
        title: "A survey of the host",
        command: "cargo xtask bench reconcile".to_owned(),
        method: format!(
            "{surveys} surveys and the one at the start, with {LIVING} living executors, without and \
             with {sandboxes} old sandboxes, {containers} stopped containers and {LEFTOVERS} cgroups \
             that nobody knows. Docker, the cgroups and the daemon are real, the agent is a stand-in."
        ),
        goals: vec![Goal {
            what: format!(
                "survey with {sandboxes} old sandboxes and {containers} stopped containers, slowest"
            ),
            goal: format!("< {:.0} s", GOAL_MS / 1e3),
            measured: format!("{:.3} s", worst / 1e3),
            met: worst < GOAL_MS,
        }],
        tables: vec![("Milliseconds a survey".to_owned(), table)],
        charts: Vec::new(),
        notes: Vec::new(),
    })
}

/// Milliseconds.
struct Measured {
    first: f64,
    later: Vec<f64>,
}

fn surveys(
    scratch: &Scratch,
    docker: &Dockerd,
    agent: &StandInAgent,
    count: usize,
) -> Result<Measured> {
    let watcher = Watcher::start(scratch, docker, &[agent.place()], ENFORCE)?;
    let took = || -> Result<Vec<f64>> {
        let said = watcher.said("surveyed")?;
        Ok(said
            .iter()
            .filter_map(|line| line["took_ms"].as_f64())
            .collect())
    };
    for n in 0..count {
        let before = took()?.len();
        // A request of the hook makes it look at everything.
        let request = format!(
            "compose-cleanup-request 1\nframework_id=46\nexecutor_id=45\ntime_ns={n}\nagent_pid=1\nmesos=1.11.0\nend\n"
        );
        let inbox = Watcher::inbox(scratch);
        fs::write(inbox.join(".new"), request)?;
        fs::rename(inbox.join(".new"), inbox.join(format!("{n}-1-1.request")))?;
        wait::try_until(SURVEY, "a survey", || {
            Ok((took()?.len() > before).then_some(()))
        })?;
    }
    let mut later = took()?;
    let first = later.remove(0);
    watcher.stop()?;
    Ok(Measured { first, later })
}

fn id(kind: u8, n: usize) -> String {
    format!("{kind:08x}-0000-4000-8000-{n:012x}")
}
