//! Which way of noticing deaths this host gets.

use anyhow::anyhow;

use crate::config::ProbeChoice;
use crate::probe::{ExitSource, ProbeError, ProbeOptions};
use crate::process;

/// What to read of it.
const PAGE: &str = "docs/operations.md, \"Without eBPF\"";

/// Starts what was chosen. An error says what this host lacks, and what to do.
pub async fn choose(choice: ProbeChoice, options: ProbeOptions) -> anyhow::Result<ExitSource> {
    let error = match choice {
        ProbeChoice::Poll => return Ok(poll()),
        ProbeChoice::Ebpf | ProbeChoice::Auto => match ExitSource::ebpf(options).await {
            Ok(probe) => return Ok(probe),
            Err(error) => error,
        },
    };
    // That is the configuration's fault, not the host's.
    if let ProbeError::InvalidOption { .. } = error {
        return Err(anyhow::Error::new(error).context("the exit probe cannot be set up"));
    }
    if choice == ProbeChoice::Ebpf {
        return Err(anyhow!(
            "the exit probe cannot run on this host: {error}; or set probe = \"poll\", which does \
             without it, or \"auto\", which does so where it must ({PAGE})"
        ));
    }
    tracing::warn!(
        %error,
        "the exit probe cannot run on this host: executors are watched by their processes instead \
         (probe = \"auto\"; what that loses: {PAGE})"
    );
    Ok(poll())
}

fn poll() -> ExitSource {
    if let Err(error) = process::pidfds_work() {
        tracing::warn!(
            %error,
            "this kernel has no pidfds: living processes are looked at every {:?} instead ({PAGE})",
            super::learn::LONGEST_PAUSE
        );
    }
    ExitSource::Poll
}
