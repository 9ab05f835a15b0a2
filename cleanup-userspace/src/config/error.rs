//! Why there is no configuration.

use std::path::PathBuf;

use super::Problem;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}: {error}")]
    Read {
        path: PathBuf,
        error: std::io::Error,
    },
    /// The first thing that is wrong, with its place.
    #[error("configuration {path}:{problem}{}", and_more(*.more))]
    Refused {
        path: PathBuf,
        problem: Box<Problem>,
        /// How much else is wrong.
        more: usize,
    },
    /// A file that is in order, with options that are not, or that do not fit it.
    #[error(
        "with the options of the command line, `{key}` {problem}; change the option, or leave it out"
    )]
    Overridden { key: String, problem: String },
}

fn and_more(more: usize) -> String {
    match more {
        0 => String::new(),
        more => format!(" ({more} more: `compose-cleanup config check` tells them)"),
    }
}
