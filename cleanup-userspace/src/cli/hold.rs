//! `compose-cleanup hold` and `release`

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::settings::duration;
use crate::case::{HeldBy, Word, WordFile};
use crate::config::Config;
use crate::process::unix_seconds;

const HOLD_EXAMPLES: &str = "\
Examples:
  Before a work directory is moved:
      compose-cleanup hold --for 1h

  Until somebody runs `compose-cleanup release`:
      compose-cleanup hold

Exit status:
  0  held
  1  the word could not be left in the run directory (the message says why)
  2  wrong usage of the command line";

/// Hold back what was only inferred: stop no container for a death that the kernel
/// did not report.
///
/// Deaths that the daemon sees happen are never held back. What it concludes from
/// what is left on the host (after a restart, after lost events, from the hook's
/// requests) is: such cases are opened and wait. The daemon holds by itself when
/// more containers than `max_inferred_stops` would be stopped in a minute.
///
/// The word is a file in the run directory: it works while the daemon does not
/// run, and outlives its restarts.
#[derive(Debug, Args)]
#[command(after_help = HOLD_EXAMPLES)]
pub struct Hold {
    /// End by itself after so long ("1h"); without it, `release` ends it.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    time: Option<Duration>,

    #[command(flatten)]
    place: Place,
}

const RELEASE_EXAMPLES: &str = "\
Examples:
  compose-cleanup release

Exit status:
  0  released, or nothing was held
  1  the word could not be left in the run directory (the message says why)
  2  wrong usage of the command line";

/// Let go on what is held back: every inferred death that was found until now.
///
/// What is found later counts against `max_inferred_stops` anew.
#[derive(Debug, Args)]
#[command(after_help = RELEASE_EXAMPLES)]
pub struct Release {
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
struct Place {
    /// Configuration file (TOML) of the daemon.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Place {
    fn file(&self) -> anyhow::Result<WordFile> {
        let config = Config::of(self.config.as_deref())?;
        Ok(WordFile::new(&config.run_dir))
    }
}

impl Hold {
    pub fn run(self) -> anyhow::Result<()> {
        let Self { time, place } = self;
        let now = unix_seconds();
        let word = Word::Held {
            since: now,
            until: time.map(|time| now + time.as_secs_f64()),
            by: HeldBy::Operator,
        };
        let file = place.file()?;
        file.write(&word)
            .with_context(|| cannot_write(file.path()))?;
        match time {
            Some(time) => println!(
                "held for {}: inferred deaths stop nothing",
                humantime::format_duration(time)
            ),
            None => println!("held: inferred deaths stop nothing until `compose-cleanup release`"),
        }
        Ok(())
    }
}

impl Release {
    pub fn run(self) -> anyhow::Result<()> {
        let file = self.place.file()?;
        let now = unix_seconds();
        // What cannot be read holds as well.
        let held = file
            .read()
            .map_or(true, |word| word.is_some_and(|word| word.holds(now)));
        file.write(&Word::Released { at: now })
            .with_context(|| cannot_write(file.path()))?;
        println!(
            "{}",
            if held {
                "released: what waited goes on"
            } else {
                "nothing was held"
            }
        );
        Ok(())
    }
}

fn cannot_write(path: &Path) -> String {
    format!(
        "cannot write {}: it takes root, and the run directory of the daemon's configuration (--config)",
        path.display()
    )
}
