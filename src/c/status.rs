//! What can go wrong, as a code for programs and a text for people.

use basisopt_embed::EmbedError;
use basisopt_onnx::OnnxError;
use basisopt_passes::ManagerError;
use basisopt_runtime::RuntimeError;

/// How a run ended. Later versions may add codes: treat those that you do not know as a failure.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BasisoptStatus {
    /// The result has a model and a report.
    Ok = 0,
    /// An argument or an option is wrong: a null pointer, text that is not UTF-8, an unknown code or dimension.
    Argument = 1,
    /// The bytes are no ONNX model, or one that is damaged or not supported.
    Model = 2,
    /// The pipeline or the recipe cannot be read, or asks for what does not exist.
    Pipeline = 3,
    /// The images do not suit the network, or there are none where some are needed.
    Data = 4,
    /// A pass failed or did not keep its promise, or the network could not be run.
    Run = 5,
    /// The callback asked to stop.
    Stopped = 6,
    /// A bug in this library. It was contained: the process may go on.
    Panic = 7,
}

/// Why there is no model to hand out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{what} is NULL: {wanted}")]
    Null { what: String, wanted: &'static str },
    #[error("{what} is at an address that is not aligned to {align} bytes, as its type needs")]
    Misaligned { what: String, align: usize },
    #[error("{what} has {n} elements of {size} bytes, more than memory can hold")]
    TooLong { what: String, n: usize, size: usize },
    #[error("{what} is not UTF-8, from byte {at} on")]
    Text { what: String, at: usize },
    #[error("{what}.size is {found}: set it to sizeof({type_name}), which is {expected} in this version")]
    Size { what: &'static str, type_name: &'static str, found: usize, expected: usize },
    #[error(
        "{what} sets fields that version {version} of the library does not have: it is older than the header"
    )]
    Newer { what: &'static str, version: &'static str },
    #[error("{what} is {found}: expected {expected}")]
    Code { what: &'static str, found: String, expected: &'static str },
    #[error("data.shape is {shape:?}: {reason}")]
    Shape { shape: Vec<usize>, reason: &'static str },
    #[error("data: {0}")]
    Images(String),
    #[error("{n} threads cannot be started: {reason}")]
    Threads { n: usize, reason: String },
    #[error("the report cannot be written: {0}")]
    Report(#[from] serde_json::Error),
    #[error(transparent)]
    Embed(#[from] EmbedError),
    #[error("a panic, which is a bug in basisopt: {0}")]
    Panic(String),
}

impl From<OnnxError> for Failure {
    fn from(error: OnnxError) -> Self {
        Self::Embed(EmbedError::from(error))
    }
}

impl Failure {
    /// The code for programs.
    pub(crate) fn status(&self) -> BasisoptStatus {
        match self {
            Self::Shape { .. } | Self::Images(_) => BasisoptStatus::Data,
            Self::Null { .. }
            | Self::Misaligned { .. }
            | Self::TooLong { .. }
            | Self::Text { .. }
            | Self::Size { .. }
            | Self::Newer { .. }
            | Self::Code { .. }
            | Self::Threads { .. } => BasisoptStatus::Argument,
            Self::Report(_) => BasisoptStatus::Run,
            Self::Panic(_) => BasisoptStatus::Panic,
            Self::Embed(error) => of_embed(error),
        }
    }
}

fn of_embed(error: &EmbedError) -> BasisoptStatus {
    match error {
        EmbedError::Onnx(_) | EmbedError::NotFinite { .. } => BasisoptStatus::Model,
        EmbedError::Manager { source, .. } => match **source {
            ManagerError::Input(_) | ManagerError::Types(_) => BasisoptStatus::Model,
            _ => BasisoptStatus::Run,
        },
        EmbedError::Pipeline(_) | EmbedError::Recipe(_) => BasisoptStatus::Pipeline,
        EmbedError::Images { .. } | EmbedError::Missing(_) => BasisoptStatus::Data,
        EmbedError::Runtime(RuntimeError::Data { .. } | RuntimeError::Preprocess { .. }) => {
            BasisoptStatus::Data
        }
        EmbedError::Dim { .. } | EmbedError::DimZero { .. } => BasisoptStatus::Argument,
        EmbedError::Interrupted => BasisoptStatus::Stopped,
        _ => BasisoptStatus::Run,
    }
}
