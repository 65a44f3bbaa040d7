//! What can go wrong beside the networks themselves.

use basisopt_passes::PipelineError;
use std::path::PathBuf;

/// Why a snapshot could not be taken, compared or stored. What a network or a pipeline gets wrong is none of these: it
/// is what the snapshot then says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write`, …
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
    /// A pass panicked: a bug in it, and nothing to be stored.
    #[error("{0}")]
    Panicked(String),
    /// A file that an option of a pass names is not there, or is not what it should be.
    #[error("{0}")]
    File(String),
    /// There is no list of cases where one was looked for.
    #[error("there is no {}; `basisopt snapshot init` writes one to begin with", path.display())]
    NoSpec {
        /// Where it should be.
        path: PathBuf,
    },
    /// The list of cases is not what it should be.
    #[error("{file}: {reason}")]
    Spec {
        /// The file.
        file: String,
        /// What was expected, what was found and what to do.
        reason: String,
    },
    /// A pipeline that cannot be read.
    #[error("pipeline {text:?}: {source}")]
    Pipeline {
        /// The pipeline as written.
        text: String,
        /// What is wrong with it.
        source: Box<PipelineError>,
    },
    /// A size is given for a dimension that the network does not leave open.
    #[error("{model}: dims has {name:?}; its open sizes are {}", if open.is_empty() { "none" } else { open })]
    Dims {
        /// The network.
        model: String,
        /// What was given.
        name: String,
        /// What could be, joined by commas.
        open: String,
    },
    /// The user interrupted the run.
    #[error("interrupted")]
    Interrupted,
}

impl SnapshotError {
    /// Whether the request is at fault, and not the machine or a difference: exit code 2 in the program.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::NoSpec { .. } | Self::Spec { .. } | Self::Pipeline { .. })
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
