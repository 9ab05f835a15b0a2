//! What tells the daemon of exits: the exit probe, or nobody.

use std::{fmt, future};

use super::{ExitRecord, Losses, Probe, ProbeError, ProbeOptions};

/// How deaths are noticed, by its name in logs, metrics and the configuration.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ProbeKind {
    /// The exit probe reports them.
    Ebpf,
    /// No program is in the kernel: processes that were seen alive are watched, and
    /// what exists is compared with what is known.
    Poll,
}

impl ProbeKind {
    /// "ebpf" or "poll".
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Poll => "poll",
        }
    }
}

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The records of a probe; without one there never are any, and none is ever lost.
#[derive(Debug)]
pub enum ExitSource {
    /// Dropping it detaches the probe.
    Ebpf(Box<Probe>),
    /// Loads nothing, and takes nothing.
    Poll,
}

impl ExitSource {
    /// Loads and attaches the exit probe, see [`Probe::start`].
    pub async fn ebpf(options: ProbeOptions) -> Result<Self, ProbeError> {
        Ok(Self::Ebpf(Box::new(Probe::start(options).await?)))
    }

    /// How deaths are noticed.
    #[must_use]
    pub const fn kind(&self) -> ProbeKind {
        match self {
            Self::Ebpf(_) => ProbeKind::Ebpf,
            Self::Poll => ProbeKind::Poll,
        }
    }

    /// The next record; never, without a probe. Cancel safe.
    pub async fn next(&mut self) -> Result<ExitRecord, ProbeError> {
        match self {
            Self::Ebpf(probe) => probe.next().await,
            Self::Poll => future::pending().await,
        }
    }

    /// See [`Probe::detach`].
    pub fn detach(&mut self) -> Result<(), ProbeError> {
        match self {
            Self::Ebpf(probe) => probe.detach(),
            Self::Poll => Ok(()),
        }
    }

    /// See [`Probe::drain`].
    pub fn drain(&mut self) -> Vec<ExitRecord> {
        match self {
            Self::Ebpf(probe) => probe.drain(),
            Self::Poll => Vec::new(),
        }
    }

    /// See [`Probe::losses`].
    pub fn losses(&self) -> Result<Losses, ProbeError> {
        match self {
            Self::Ebpf(probe) => probe.losses(),
            Self::Poll => Ok(Losses::default()),
        }
    }
}
