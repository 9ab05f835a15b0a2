//! What runs in a guest of `cargo xtask vm --systemd`: the package and its units, under a real
//! systemd as the first process, beside a real Docker. Started by a unit of the guest's own; ends
//! the virtual machine with a status.
//!
//! The agent is the stand-in: Mesos is not in the guest.

mod account;
mod bed;
mod steps;
mod unit;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cleanup_tests::guest::{Line, play, say};
use rustix::system::uname;

use bed::Bed;

/// Of the failed step's log.
const LAST_WORDS: &str = "60";

fn main() {
    play(run)
}

/// Each step builds on those before it, so the first that fails is the last that is tried.
fn run() -> Result<u8> {
    let uptime = std::fs::read_to_string("/proc/uptime").context("/proc/uptime")?;
    let uptime = uptime.split(' ').next().and_then(|text| text.parse().ok());
    say(&Line::Booted {
        release: uname().release().to_string_lossy().into_owned(),
        uptime: Duration::from_secs_f64(uptime.context("/proc/uptime holds no number")?),
    });
    let mut bed = Bed::make()?;
    println!("{}", bed.describe()?);
    for (name, step) in steps::ALL {
        say(&Line::Begins {
            program: (*name).to_owned(),
        });
        let start = Instant::now();
        let outcome = step(&mut bed);
        if let Err(error) = &outcome {
            println!("{name}: {error:#}");
            println!(
                "{}",
                unit::tell("systemctl", &["status", "--no-pager", unit::UNIT])
            );
            let log = [
                "--no-pager",
                "-b",
                "-o",
                "short-monotonic",
                "-n",
                LAST_WORDS,
            ];
            println!("{}", unit::tell("journalctl", &log));
        }
        say(&Line::Ended {
            program: (*name).to_owned(),
            status: i32::from(outcome.is_err()),
            took: start.elapsed(),
        });
        if outcome.is_err() {
            return Ok(1);
        }
    }
    Ok(0)
}
