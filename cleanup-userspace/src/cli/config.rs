//! `compose-cleanup config check`, `print` and `example`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::history::print;
use super::settings::Settings;
use crate::config::{Config, EXAMPLE, problems, read_file};

/// Exit status: something in the file is wrong.
const REFUSED: u8 = 3;

/// Check, print or explain the configuration; touches nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  compose-cleanup config check
  compose-cleanup config print --config /etc/compose-cleanup/config.toml
  compose-cleanup config example | less")]
pub struct Configuration {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(Check),
    Print(Print),
    Example(Example),
}

const CHECK_EXAMPLES: &str = "\
Examples:
  Before the daemon reads it again:
      compose-cleanup config check && systemctl reload compose-cleanup

  Of another file, for a program:
      compose-cleanup config check --config new.toml --output json

Exit status:
  0  the file is valid
  1  it cannot be read (the message says why)
  2  wrong usage of the command line
  3  something in it is wrong; each problem has a line:
         FILE:LINE:COLUMN: `KEY` what is wrong; what to do";

/// Say everything that is wrong with a configuration file, one line each.
///
/// The file is judged by itself, as `watch` would: `compose-cleanup doctor` says
/// whether what it names is there on this host.
#[derive(Debug, Args)]
#[command(after_help = CHECK_EXAMPLES)]
struct Check {
    /// Configuration file (TOML); without it, the one that the packaged service
    /// uses.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/compose-cleanup/config.toml"
    )]
    config: PathBuf,

    #[arg(long, value_enum, default_value_t = CheckOutput::Table)]
    output: CheckOutput,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CheckOutput {
    /// For people.
    Table,
    /// For programs: one JSON document.
    Json,
}

const PRINT_EXAMPLES: &str = "\
Examples:
  What does the service run with?
      compose-cleanup config print --config /etc/compose-cleanup/config.toml

  Where is the journal?
      compose-cleanup config print --output json | jq -r .journal.path

Exit status:
  0  printed
  1  the file cannot be read, or is not valid (the message says why)
  2  wrong usage of the command line";

/// Print the configuration that `watch` would run with, defaults included.
///
/// Takes the options of `watch`. Without --config: the defaults, as every command
/// has it. What is printed as TOML is a configuration file that says the same.
#[derive(Debug, Args)]
#[command(after_help = PRINT_EXAMPLES)]
struct Print {
    #[command(flatten)]
    settings: Settings,

    #[arg(long, value_enum, default_value_t = PrintOutput::Toml)]
    output: PrintOutput,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrintOutput {
    Toml,
    Json,
}

/// Print the default configuration file, with a comment on every key.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  compose-cleanup config example > /etc/compose-cleanup/config.toml

Exit status:
  0  printed
  2  wrong usage of the command line")]
struct Example {}

impl Configuration {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Check(check) => check.run(),
            Command::Print(print) => print.run().map(|()| ExitCode::SUCCESS),
            Command::Example(Example {}) => print(EXAMPLE).map(|()| ExitCode::SUCCESS),
        }
    }
}

impl Check {
    fn run(self) -> anyhow::Result<ExitCode> {
        let Self {
            config: path,
            output,
        } = self;
        let text = read_file(&path)?;
        let problems = problems(&text);
        let file = path.display();
        match output {
            CheckOutput::Json => {
                let report = json!({
                    "file": path.to_string_lossy(),
                    "valid": problems.is_empty(),
                    "problems": problems,
                });
                print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?;
            }
            CheckOutput::Table if problems.is_empty() => print(&format!("{file}: valid\n"))?,
            CheckOutput::Table => {
                let lines = problems.iter().map(|problem| match problem.line {
                    Some(_) => format!("{file}:{problem}\n"),
                    None => format!("{file}: {problem}\n"),
                });
                print(&lines.collect::<String>())?;
            }
        }
        Ok(if problems.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(REFUSED)
        })
    }
}

impl Print {
    fn run(self) -> anyhow::Result<()> {
        let Self { settings, output } = self;
        let mut config: Config = settings.configuration()?;
        config.inbox = Some(config.inbox_dir());
        let text = match output {
            PrintOutput::Toml => toml::to_string(&config),
            PrintOutput::Json => {
                return print(&format!("{}\n", serde_json::to_string_pretty(&config)?));
            }
        };
        // A path that is no text is not in any TOML file, but may be in an option.
        print(&text.context("the configuration cannot be written as TOML")?)
    }
}
