//! What can go wrong.

use crate::recipe::RecipeError;
use basisopt_onnx::OnnxError;
use basisopt_passes::{ExecutorError, ManagerError, PassError, PipelineError};
use basisopt_runtime::RuntimeError;

/// Why a network was not optimised. The model that was given is then as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// The model cannot be read or encoded.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// The pipeline is no pipeline.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The recipe is none.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A pass failed, or did not keep its promise.
    #[error("{file}: {source}")]
    Manager {
        /// The model.
        file: String,
        /// What happened.
        source: Box<ManagerError>,
    },
    /// tract could not run a network, or the images do not fit it.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The images do not suit the network.
    #[error("{file}: {message}")]
    Images {
        /// The model.
        file: String,
        /// What is wrong with them.
        message: String,
    },
    /// A weight contains NaN or infinity: whatever a pass made of it, the result would be worth nothing.
    #[error(
        "{file}: weight {weight:?} of {op} {node:?} contains NaN or infinity; the network was damaged in training or export"
    )]
    NotFinite {
        /// The model.
        file: String,
        /// Name of the weight.
        weight: String,
        /// Operator that reads it.
        op: String,
        /// Label of its node.
        node: String,
    },
    /// A size was given for a dimension that is not open.
    #[error("{file}: size of {name:?}: {}", if open.is_empty() { "all sizes of its inputs are fixed".to_owned() } else { format!("its open sizes are {}", open.join(", ")) })]
    Dim {
        /// The model.
        file: String,
        /// What was given a size.
        name: String,
        /// What could be.
        open: Vec<String>,
    },
    /// A size is zero.
    #[error("{file}: the size of {name:?} is 0; expected at least 1")]
    DimZero {
        /// The model.
        file: String,
        /// What was given a size.
        name: String,
    },
    /// Something is needed that was not given.
    #[error("{0}")]
    Missing(String),
    /// [`Settings::stop`](crate::Settings::stop) or the host said so.
    #[error("interrupted; the model is as it was")]
    Interrupted,
}

impl EmbedError {
    /// A failure of the pass manager, with the name of the model.
    pub(crate) fn manager(file: &str, source: ManagerError) -> Self {
        match source {
            ManagerError::Pass { source: PassError::Interrupted, .. } => Self::Interrupted,
            source => Self::Manager { file: file.to_owned(), source: Box::new(source) },
        }
    }

    pub(crate) fn images(file: &str, error: &ExecutorError) -> Self {
        Self::Images { file: file.to_owned(), message: error.to_string() }
    }
}
