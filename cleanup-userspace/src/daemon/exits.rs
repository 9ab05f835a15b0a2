//! Which way of noticing deaths this host gets.

use anyhow::anyhow;

use super::learn::LONGEST_PAUSE;
use crate::config::ProbeChoice;
use crate::probe::{ExitSource, ProbeError, ProbeOptions};
use crate::process;

/// What to read of it.
const PAGE: &str = "docs/operations.md, \"Without eBPF\"";

/// Starts what was chosen. An error says what this host lacks, and what to do.
pub async fn choose(choice: ProbeChoice, options: ProbeOptions) -> anyhow::Result<ExitSource> {
    if let Err(error) = process::pidfds_work() {
        tracing::warn!(
            %error,
            "this kernel has no pidfds: living processes are looked at every {LONGEST_PAUSE:?} instead ({PAGE})"
        );
    }
    let error = match choice {
        ProbeChoice::Poll => return Ok(ExitSource::Poll),
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
    Ok(ExitSource::Poll)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::ProbeKind;

    #[tokio::test]
    async fn a_mistake_in_the_configuration_is_no_reason_to_fall_back() {
        for choice in [ProbeChoice::Auto, ProbeChoice::Ebpf] {
            let options = ProbeOptions {
                ring_bytes: 5000,
                ..ProbeOptions::default()
            };
            let error = choose(choice, options).await.unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains("ring_bytes: 5000 is not a power"), "{error}");
            assert!(!error.contains("this host"), "{error}");
        }
    }

    #[tokio::test]
    async fn poll_asks_nothing_of_the_kernel() {
        let options = ProbeOptions {
            ring_bytes: 5000,
            ..ProbeOptions::default()
        };
        let mut exits = choose(ProbeChoice::Poll, options).await.unwrap();
        assert_eq!(exits.kind(), ProbeKind::Poll);
        assert_eq!(exits.losses().unwrap().total(), 0);
        assert_eq!(exits.drain(), []);
        exits.detach().unwrap();
    }
}
