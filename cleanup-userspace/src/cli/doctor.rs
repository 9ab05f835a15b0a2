//! `compose-cleanup doctor`

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::settings::block_on;
use crate::config::Config;
use crate::doctor::{Report, Verdict, host, load, module};

/// Exit status: something will not work.
const REFUSED: u8 = 3;
/// Where the package puts the module.
const MODULE: &str = "/usr/lib/compose-cleanup/libcompose_pod_cleanup_hook.so";

const EXAMPLES: &str = "\
Examples:
  Will the daemon work on this host?
      compose-cleanup doctor

  Before the hook module is put into an agent, or Mesos is upgraded:
      compose-cleanup doctor --mesos-version 1.11.0
      compose-cleanup doctor --libmesos /usr/lib/libmesos.so --load

  For a program:
      compose-cleanup doctor --output json

Exit status:
  0  everything will work; warnings are no refusals
  1  the doctor itself cannot work (the message says why)
  2  wrong usage of the command line
  3  something will not work: refused";

/// Will it work here? Looks, and changes nothing.
///
/// Without options: this host, for the daemon. With --mesos-version or --libmesos:
/// whether the Mesos hook module would load in that agent; a module that refuses
/// stops the agent from starting. Each line is a verdict (ok, warning, refused),
/// what was looked at, what was found, and what to do about it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Doctor {
    /// The agent's release, as `mesos-agent --version` says it.
    #[arg(long, value_name = "VERSION")]
    mesos_version: Option<String>,

    /// The libmesos that the agent is linked with: read, not loaded.
    #[arg(long, value_name = "FILE")]
    libmesos: Option<PathBuf>,

    /// The hook module.
    #[arg(long, value_name = "FILE", default_value = MODULE)]
    module: PathBuf,

    /// Also load that libmesos and the module, in a process of their own, and have
    /// Mesos install it.
    ///
    /// Runs the initialisers of libmesos, which needs the libraries that the agent
    /// needs; no agent is started, and nothing is written.
    #[arg(long, requires = "libmesos")]
    load: bool,

    /// The module will have the parameter untested_abi=accept.
    #[arg(long)]
    accept_untested: bool,

    /// Configuration file of the daemon (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,

    /// The process of --load.
    #[arg(long, hide = true, num_args = 2, value_names = ["LIBMESOS", "MODULES"])]
    in_child: Option<Vec<PathBuf>>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

impl Doctor {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if let Some([libmesos, modules]) = self.in_child.as_deref() {
            return Ok(load::child(libmesos, modules));
        }
        let report = if self.mesos_version.is_some() || self.libmesos.is_some() {
            self.module()?
        } else {
            self.host()?
        };
        match self.output {
            Output::Table => print!("{report}"),
            Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        }
        Ok(match report.verdict() {
            Verdict::Ok | Verdict::Warning => ExitCode::SUCCESS,
            Verdict::Refused => ExitCode::from(REFUSED),
        })
    }

    fn host(&self) -> anyhow::Result<Report> {
        let config = Config::of(self.config.as_deref())?;
        Ok(Report {
            checks: block_on(host::checks(&config))?,
        })
    }

    fn module(&self) -> anyhow::Result<Report> {
        let accepts = self.accept_untested;
        let mut checks = Vec::new();
        if let Some(version) = &self.mesos_version {
            checks.push(module::release(version, accepts));
        }
        if let Some(libmesos) = &self.libmesos {
            let version = self.mesos_version.as_deref();
            checks.extend(module::libmesos(libmesos, version, accepts));
        }
        checks.extend(module::file(&self.module));
        if self.module.exists() {
            checks.push(module::owner(&self.module));
        }
        if let Some(libmesos) = self.libmesos.as_deref().filter(|_| self.load) {
            let mut child = Command::new(std::env::current_exe().context("this program's path")?);
            child.args(["doctor", "--in-child"]);
            let release = self.mesos_version.as_deref();
            checks.push(load::check(child, libmesos, &self.module, release, accepts));
        }
        Ok(Report { checks })
    }
}
