//! Why the probe cannot run, worded for the operator who has to make it run.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

/// Every message names what is missing and how to get it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// An option that no kernel could satisfy.
    #[error("probe option {option}: {reason}")]
    InvalidOption {
        /// Name of the field in [`super::ProbeOptions`].
        option: &'static str,
        /// What is wrong with its value.
        reason: String,
    },

    /// The kernel runs BPF, but lacks something that this probe needs.
    #[error("{what}; {remedy}")]
    Unsupported {
        /// What is missing.
        what: String,
        /// How to get it.
        remedy: String,
    },

    /// Neither root nor the two capabilities.
    #[error(
        "missing {}: run as root, or grant CAP_BPF and CAP_PERFMON \
         (systemd: AmbientCapabilities=CAP_BPF CAP_PERFMON)",
        missing.join(" and ")
    )]
    MissingCapability {
        /// Names of the capabilities that are not effective.
        missing: Vec<&'static str>,
    },

    /// The kernel describes none of its types.
    #[error(
        "no kernel type information at {path}: the probe needs a kernel built with \
         CONFIG_DEBUG_INFO_BTF=y (Debian 11, Ubuntu 20.10, RHEL 8.2 and later have it)"
    )]
    NoBtf {
        /// Where it was looked for.
        path: PathBuf,
    },

    /// The type information is there but makes no sense.
    #[error("kernel type information at {path} is unusable: {source}")]
    InvalidBtf {
        /// Where it was read.
        path: PathBuf,
        /// What is wrong with it.
        source: super::btf::BtfError,
    },

    /// BPF ring buffers and CAP_BPF are younger than this kernel.
    #[error("kernel {release} is too old: the probe needs Linux 5.8 or later")]
    KernelTooOld {
        /// `uname -r`.
        release: String,
    },

    /// The kernel is laid out in a way this release does not know.
    #[error(
        "this kernel's type information has no {kind} {name}: its layout is not known to this \
         release; report it with the output of `uname -r`"
    )]
    MissingMember {
        /// "member", "enumerator" or "tracepoint".
        kind: &'static str,
        /// As written in the kernel's source, alternatives separated by a slash.
        name: String,
    },

    /// The program or its maps were refused.
    #[error("the kernel refused the exit probe: {0}")]
    Load(Box<EbpfError>),

    /// The verifier refused the program, or it could not be attached.
    #[error("cannot {action} the exit probe: {source}")]
    Attach {
        /// "find", "verify", "attach" or "detach".
        action: &'static str,
        /// The kernel's answer; the verifier's log is in it.
        source: Box<ProgramError>,
    },

    /// A map could not be opened, read or written.
    #[error("map {map} of the exit probe: {source}")]
    Map {
        /// Its name in the BPF object.
        map: &'static str,
        /// The kernel's answer.
        source: Box<MapError>,
    },

    /// A system call failed.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried, with its path.
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl ProbeError {
    pub(super) fn io(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            operation: operation.into(),
            source: source.into(),
        }
    }

    pub(super) fn map(map: &'static str, source: impl Into<MapError>) -> Self {
        Self::Map {
            map,
            source: Box::new(source.into()),
        }
    }
}
