//! The stand-in for Mesos releases that nobody can get any more (stand-in.cc).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Run, unused};
use crate::command;
use crate::scratch::Scratch;

const SOURCE: &str = include_str!("stand-in.cc");
const COMPILE: Duration = Duration::from_secs(120);

/// Its exit status if the module's version is not Mesos'.
pub const NO_VERSION: i32 = 3;
/// … if `compatible` says no.
pub const INCOMPATIBLE: i32 = 4;
/// … if `create` gives no hook.
pub const NOT_CREATED: i32 = 5;
/// How often it calls each method.
pub const ROUNDS: usize = 1000;

/// A compiled one.
#[derive(Debug)]
pub struct StandIn(PathBuf);

impl StandIn {
    pub fn compile(scratch: &Scratch, options: &[&str]) -> Result<Self> {
        let source = unused(scratch, "stand-in.cc");
        fs::write(&source, SOURCE).context("the source")?;
        let program = unused(scratch, "stand-in");
        let mut compiler = Command::new("g++");
        compiler
            .args(["-std=c++11", "-rdynamic", "-Wall", "-Werror"])
            .args(options)
            .arg(&source)
            .arg("-o")
            .arg(&program)
            .arg("-ldl");
        command::output(&mut compiler, COMPILE)?;
        Ok(Self(program))
    }

    /// With this version of Mesos, and parameters `KEY VALUE`.
    pub fn run(
        &self,
        scratch: &Scratch,
        module: &Path,
        version: &str,
        parameters: &[&str],
    ) -> Result<Run> {
        let mut command = Command::new(&self.0);
        command.arg(module).arg(version).args(parameters);
        Run::of(scratch, command)
    }
}
