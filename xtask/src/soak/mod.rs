//! `cargo xtask soak`: real deaths and real faults, for as long as one likes.

mod bed;
mod campaign;
mod diary;
mod fault;
mod gauge;
mod guard;
mod pod;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::setup::Need;
use crate::stage::{self, Profile};
use crate::workspace;
use campaign::Campaign;
pub(crate) use fault::Fault;
use report::Arguments;

/// Let executors die, and everything around them go wrong, for some minutes
///
/// One host of its own: a private Docker daemon, a real agent, `compose-cleanup
/// watch`, three executors with pods that live through it all, and others that
/// come up by the dozen and die: by SIGKILL or SIGTERM, of executor, launcher helper
/// or both, or because Mesos kills their task. Meanwhile, as the seed has it, the
/// daemon, dockerd and the agent are killed, restarted and made to hang, the kernel's
/// ring overflows, the journal's disk is full, and the inbox gets requests of all
/// sorts. At the end everything has its time to settle; then is counted what is left
/// of the dead, and what happened to the living.
///
/// Installs what the machine lacks without asking (see `cargo xtask setup`):
/// running this command is the consent. Needs root.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask soak                                  two minutes
  cargo xtask soak --minutes 30 --seed 7 --one-life
                                                    does the daemon grow?
  cargo xtask soak --minutes 10 --seed 3 --version 1.8.1 --report rows.md

The seed decides what is asked for, and in which order; when things happen is up to
the machine, so a second run is alike and not the same. The last lines are
`deaths`, `faults`, `cases`, `leaks` and `false actions`, each with its number.
A leak is a running container, a cgroup or an open case of a dead executor once
everything had its time; a false action is anything of a living executor that
ended, vanished or was restarted.

Exit status: 0 no leak, no false action, the daemon never ended by itself and did
not grow; 1 otherwise (the lines before the last say how); 130 interrupted.")]
pub(crate) struct Args {
    /// For how long executors are made to die
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) minutes: u64,

    /// Of the chance by which deaths and faults are chosen
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Mesos release of the agent
    #[arg(long, value_name = "V", default_value = "1.11.0")]
    pub(crate) version: String,

    /// Never end the daemon: what it takes of the host is seen over the whole time
    #[arg(long)]
    pub(crate) one_life: bool,

    /// Leave out this fault (may be repeated)
    #[arg(long, value_name = "FAULT")]
    pub(crate) without: Vec<Fault>,

    /// Use a build without optimisation, which is there sooner
    #[arg(long)]
    pub(crate) debug: bool,

    /// Append a row for the table in docs/reliability.md to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    stage::prepare_as(Need::ALL, Profile::of(args.debug))?;
    stage::interruptible(|| soak(args))
}

fn soak(args: &Args) -> Result<ExitCode> {
    let Args {
        minutes,
        seed,
        version,
        one_life,
        without,
        debug,
        report,
    } = args;
    stage::fetch_mesos(version, "A soak needs a real agent")?;
    let logs = workspace::target_dir().join(format!("soak/seed-{seed}"));
    println!("{minutes} min, seed {seed}, Mesos {version}");
    let possible: Vec<Fault> = Fault::ALL
        .iter()
        .copied()
        .filter(|fault| !without.contains(fault))
        .filter(|fault| !(*one_life && fault.ends_daemon()))
        .collect();
    let mut campaign = Campaign::start(version, *seed, possible, &logs)?;
    campaign.run(Duration::from_secs(60 * minutes))?;
    let outcome = campaign.settle()?;
    if let Some(path) = report {
        let arguments = Arguments {
            version,
            seed: *seed,
            one_life: *one_life,
            debug: *debug,
            without,
        };
        outcome.append_row(path, &arguments)?;
    }
    println!("{outcome}");
    Ok(if outcome.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
