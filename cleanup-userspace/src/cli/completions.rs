//! `compose-cleanup completions`, and the manual pages.

use std::io;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use super::history::print;
use super::{Cli, NAME};

const EXAMPLES: &str = "\
Examples:
  For this shell, now:
      source <(compose-cleanup completions bash)

  For everybody (the packages do that):
      compose-cleanup completions bash > /usr/share/bash-completion/completions/compose-cleanup

Exit status:
  0  printed
  2  wrong usage of the command line";

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Completions {
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), NAME, &mut script);
        print(&String::from_utf8(script).context("the script is text")?)
    }
}

/// Write the manual pages, one for each command, into a directory.
///
/// Made when packages are: `cargo xtask dist`.
#[derive(Debug, Args)]
pub struct Man {
    /// An existing directory.
    directory: PathBuf,
}

impl Man {
    pub fn run(self) -> anyhow::Result<()> {
        let Self { directory } = self;
        pages(&directory)
            .with_context(|| format!("cannot write manual pages to {}", directory.display()))
    }
}

fn pages(directory: &std::path::Path) -> io::Result<()> {
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), directory)
}
