//! What can go wrong with a file, and where in it.

use basisopt_ir::tensor::TensorError;
use std::fmt;
use std::path::PathBuf;

/// An error of import or export: a [`Problem`] and the file it was found in.
#[derive(Debug, thiserror::Error)]
pub struct OnnxError {
    /// The file as the caller named it; empty where no file is involved.
    file: String,
    #[source]
    problem: Box<Problem>,
}

impl OnnxError {
    /// The file, as the caller named it.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// What is wrong.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl fmt::Display for OnnxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.file.is_empty() {
            write!(f, "{}", self.problem)
        } else {
            write!(f, "{}: {}", self.file, self.problem)
        }
    }
}

impl From<Problem> for OnnxError {
    fn from(problem: Problem) -> Self {
        problem.within("")
    }
}

/// What is wrong with a model, a file or a request.
///
/// `place` names a node, tensor or value in words: `node "conv1"`, `initializer "w"`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
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
    /// There is nothing in the file.
    #[error("the file is empty; expected an ONNX model")]
    Empty,
    /// The bytes are something else.
    #[error("not an ONNX model: {reason}")]
    NotAModel {
        /// What gave it away.
        reason: String,
    },
    /// A message of the file ends too early or holds impossible bytes.
    #[error("{place}: damaged protobuf: {reason}; the file is truncated or corrupt")]
    Damaged {
        /// Where.
        place: String,
        /// What the decoder said.
        reason: String,
    },
    /// The IR version is missing or out of range.
    #[error("unsupported ONNX IR version: {found}; expected 1 to {newest}")]
    IrVersion {
        /// The version, or a word for its absence.
        found: String,
        /// The newest version we know.
        newest: i64,
    },
    /// The version of the standard operator set is out of range.
    #[error("unsupported opset {found} of the standard domain; supported are {oldest} to {newest}; {remedy}")]
    Opset {
        /// The version, or a word for its absence.
        found: String,
        /// The oldest that we read.
        oldest: i64,
        /// The newest that we read.
        newest: i64,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Two values have one name.
    #[error("{place} defines the value {name:?}, which {earlier} defines already; names must be unique")]
    Duplicate {
        /// The second definition.
        place: String,
        /// The first definition.
        earlier: String,
        /// The name of both.
        name: String,
    },
    /// A name that no input, initializer or node defines.
    #[error("{place} reads {name:?}, which no graph input, initializer or node defines")]
    Dangling {
        /// The reader.
        place: String,
        /// The name.
        name: String,
    },
    /// The data flow goes in a circle.
    #[error("{place} is on a cycle: its input {name:?} depends on its own output")]
    Cycle {
        /// A node on the circle.
        place: String,
        /// The input through which the circle goes.
        name: String,
    },
    /// Something that ONNX requires is missing or has an impossible value.
    #[error("{place}: {reason}")]
    Invalid {
        /// Where.
        place: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// Shape, element type and values of a tensor do not fit together.
    #[error("{place}: {source}")]
    Tensor {
        /// The tensor.
        place: String,
        /// What does not fit.
        source: TensorError,
    },
    /// The data file of a tensor cannot be used.
    #[error("{place}: external data {location:?}: {reason}")]
    External {
        /// The tensor.
        place: String,
        /// The location it gives.
        location: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A model function calls itself.
    #[error("the model function {name:?} calls itself, directly or through others")]
    Recursive {
        /// `domain::name` of the function.
        name: String,
    },
    /// Something is larger than a protobuf file can be, or than makes sense.
    #[error("{place}: {reason}")]
    TooLarge {
        /// What.
        place: String,
        /// How large it is and how large it may be.
        reason: String,
    },
    /// The output would overwrite what it is made from.
    #[error("refusing to write {}: it is {what}; choose another output path", path.display())]
    Overwrite {
        /// The output.
        path: PathBuf,
        /// What is there.
        what: String,
    },
    /// The values of a constant are not there to be written.
    #[error("{place}: {reason}; the graph was read from a printed one, which holds no values")]
    Elided {
        /// The constant or node.
        place: String,
        /// What is missing.
        reason: String,
    },
    /// A body of control flow reads a value by a name that the value no longer bears. Always a bug
    /// in what changed the graph.
    #[error("{place}: a body refers to {expected:?}, but that input now reads {found:?}")]
    Capture {
        /// The node with the body.
        place: String,
        /// The name in the body.
        expected: String,
        /// The name in the graph.
        found: String,
    },
}

impl Problem {
    /// The error of this problem in a file.
    pub(crate) fn within(self, file: &str) -> OnnxError {
        OnnxError { file: file.to_owned(), problem: Box::new(self) }
    }

    pub(crate) fn invalid(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { place: place.into(), reason: reason.into() }
    }

    pub(crate) fn damaged(place: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::Damaged { place: place.into(), reason: reason.to_string() }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
