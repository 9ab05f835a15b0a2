use std::process::ExitCode;

use clap::Parser as _;
use cleanup_userspace::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("compose-cleanup: {error:#}");
            ExitCode::FAILURE
        }
    }
}
