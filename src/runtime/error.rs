//! What can go wrong between a file on disk and a measured number.

use basisopt_ir::tensor::TensorError;
use std::path::{Path, PathBuf};

/// An error of this crate. Each message names the thing at fault and, where there is one, the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// A file could not be read or written.
    #[error("cannot access {}: {source}", path.display())]
    #[allow(missing_docs, reason = "the fields say what they are")]
    Io { path: PathBuf, source: std::io::Error },

    /// The bytes are no ONNX model.
    #[error("{model} is not an ONNX model: {reason}")]
    #[allow(missing_docs, reason = "the fields say what they are")]
    NotOnnx { model: String, reason: String },

    /// Model-local functions could not be inlined.
    #[error("{model}: its local functions cannot be inlined: {source}")]
    #[allow(missing_docs, reason = "the fields say what they are")]
    Functions { model: String, source: basisopt_onnx::OnnxError },

    /// Operators that tract does not know, or would silently run as another operator of that name.
    #[error("{model}: {}", .reasons.join("; "))]
    #[allow(missing_docs, reason = "the fields say what they are")]
    UnsupportedOps { model: String, reasons: Vec<String> },

    /// An input has a size that neither the model nor the options fix.
    #[error(
        "{model}: input `{input}` has the unknown size `{symbol}` at axis {axis}; fix it with --dim {symbol}=N, for example --dim {symbol}=224"
    )]
    #[allow(missing_docs, reason = "the fields say what they are")]
    UnpinnedDim { model: String, input: String, axis: usize, symbol: String },

    /// The inputs alone would take more memory than there can be.
    #[error(
        "{model}: input `{input}` of shape {shape:?} does not fit in memory ({limit} bytes are allowed for inputs); use a smaller --batch or --dim"
    )]
    #[allow(missing_docs, reason = "the fields say what they are")]
    InputTooLarge { model: String, input: String, shape: Vec<usize>, limit: u64 },

    /// A pin names no unknown size of the model.
    #[error("{model}: --dim {symbol}=… names no unknown size of the inputs; {remedy}")]
    #[allow(missing_docs, reason = "the fields say what they are")]
    UnknownDim { model: String, symbol: String, remedy: String },

    /// The batch size is built into the model.
    #[error(
        "{model}: the batch size is fixed at {found} by the model, {asked} was asked for; use --batch {found}"
    )]
    #[allow(missing_docs, reason = "the fields say what they are")]
    FixedBatch { model: String, found: usize, asked: usize },

    /// An input or an option that this crate cannot work with.
    #[error("{model}: {reason}")]
    #[allow(missing_docs, reason = "the fields say what they are")]
    Model { model: String, reason: String },

    /// tract refused the model or failed while running it.
    #[error("{model}: tract cannot {stage} it: {reason}")]
    #[allow(missing_docs, reason = "the fields say what they are")]
    Tract { model: String, stage: &'static str, reason: String },

    /// The tensors given to a network are not what it takes.
    #[error("{model}: {reason}")]
    #[allow(missing_docs, reason = "the fields say what they are")]
    Input { model: String, reason: String },

    /// Two networks that cannot be compared.
    #[error("`{a}` and `{b}` cannot be compared: {reason}")]
    #[allow(missing_docs, reason = "the fields say what they are")]
    NotComparable { a: String, b: String, reason: String },

    /// A data set that cannot be read; `reason` names the record.
    #[error("{}: {reason}", path.display())]
    #[allow(missing_docs, reason = "the fields say what they are")]
    Data { path: PathBuf, reason: String },

    /// A preprocessing setting that makes no sense, alone or for this network.
    #[error("preprocessing: `{key}` {reason}")]
    #[allow(missing_docs, reason = "the fields say what they are")]
    Preprocess { key: &'static str, reason: String },

    /// A `<model>.toml` that cannot be read or written.
    #[error("{}: {reason}", path.display())]
    #[allow(missing_docs, reason = "the fields say what they are")]
    Config { path: PathBuf, reason: String },

    /// Power could not be measured.
    #[error(transparent)]
    Power(#[from] crate::PowerError),

    /// A tensor could not be made or read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl RuntimeError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn data(path: &Path, reason: impl Into<String>) -> Self {
        Self::Data { path: path.to_owned(), reason: reason.into() }
    }
}
