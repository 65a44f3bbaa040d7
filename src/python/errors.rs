//! Errors of the library as Python's exceptions: the same words, in the class that says whose turn it is.
//!
//! The classes are Python's own, in `basisopt/_errors.py`: most are a `ValueError` or an `OSError` as well, which classes
//! made here could not be.

use basisopt_embed::EmbedError;
use basisopt_onnx::{OnnxError, Problem};
use basisopt_passes::{ManagerError, PassError};
use basisopt_runtime::RuntimeError;
use basisopt_snapshot::SnapshotError;
use basisopt_train::watch::FitError;
use pyo3::prelude::*;
use std::io::ErrorKind;

const MODULE: &str = "basisopt._errors";
const BASE: &str = "Error";
const PIPELINE: &str = "PipelineError";
const MODEL: &str = "ModelError";
const DATA: &str = "DataError";
const CHECK: &str = "CheckError";

/// An exception of one of the package's classes.
fn exception(py: Python<'_>, class: &str, message: &str) -> PyErr {
    let made = py.import(MODULE).and_then(|m| m.getattr(class)?.call1((message,)));
    // Whatever keeps the class from being made is an exception itself.
    made.map_or_else(|e| e, PyErr::from_value)
}

/// A failure that is nobody's fault in particular.
pub(crate) fn plain(py: Python<'_>, message: &str) -> PyErr {
    exception(py, BASE, message)
}

/// The library panicked.
pub(crate) fn bug(py: Python<'_>, message: &str) -> PyErr {
    exception(py, BASE, &format!("basisopt panicked: {message} (this is a bug)"))
}

/// An error of the whole library.
pub(crate) fn of_embed(py: Python<'_>, error: &EmbedError) -> PyErr {
    let (class, remedy) = match error {
        EmbedError::Onnx(error) => return of_onnx(py, error),
        EmbedError::Runtime(error) => return of_runtime(py, error),
        EmbedError::Pipeline(_)
        | EmbedError::Recipe(_)
        | EmbedError::Dim { .. }
        | EmbedError::DimZero { .. } => (PIPELINE, ""),
        EmbedError::Manager { source, .. } => of_manager(source),
        EmbedError::Images { .. } | EmbedError::Missing(_) => (DATA, ""),
        EmbedError::NotFinite { .. } => (MODEL, ""),
        _ => (BASE, ""),
    };
    exception(py, class, &format!("{error}{remedy}"))
}

/// The class of a failure in the course of a pipeline, and what to do about it.
fn of_manager(error: &ManagerError) -> (&'static str, &'static str) {
    match error {
        ManagerError::Input(_) | ManagerError::Types(_) => (MODEL, ""),
        ManagerError::Pass { source, .. } => match source {
            PassError::File { .. } | PassError::NoMatch { .. } | PassError::Missing(_) => (PIPELINE, ""),
            PassError::Training(FitError::Options(_)) => (PIPELINE, ""),
            PassError::Training(FitError::Checkpoint(_) | FitError::Keep(_)) => ("FileError", ""),
            PassError::Calibration(_) | PassError::Training(_) => (DATA, ""),
            _ => (BASE, ""),
        },
        ManagerError::Inexact { .. } => {
            (CHECK, "; the model is as it was (tolerance= allows more, check=False does not look)")
        }
        ManagerError::Unrunnable { .. } | ManagerError::Broken { .. } | ManagerError::BrokenTypes { .. } => {
            (CHECK, "")
        }
        _ => (BASE, ""),
    }
}

/// An error of reading or writing a model.
pub(crate) fn of_onnx(py: Python<'_>, error: &OnnxError) -> PyErr {
    let class = match error.problem() {
        Problem::Io { source, .. } => file_class(source),
        Problem::Overwrite { .. } => "FileError",
        _ => MODEL,
    };
    exception(py, class, &error.to_string())
}

/// An error of running a network, or of reading images for it.
pub(crate) fn of_runtime(py: Python<'_>, error: &RuntimeError) -> PyErr {
    let class = match error {
        RuntimeError::Io { source, .. } => file_class(source),
        RuntimeError::Data { .. } | RuntimeError::Preprocess { .. } | RuntimeError::Config { .. } => DATA,
        RuntimeError::NotOnnx { .. }
        | RuntimeError::Functions { .. }
        | RuntimeError::UnsupportedOps { .. }
        | RuntimeError::UnpinnedDim { .. }
        | RuntimeError::UnknownDim { .. }
        | RuntimeError::FixedBatch { .. }
        | RuntimeError::InputTooLarge { .. }
        | RuntimeError::Model { .. }
        | RuntimeError::Tract { .. } => MODEL,
        _ => BASE,
    };
    exception(py, class, &error.to_string())
}

/// An error of taking or holding snapshots.
pub(crate) fn of_snapshot(py: Python<'_>, error: &SnapshotError) -> PyErr {
    let class = match error {
        SnapshotError::Io { source, .. } => file_class(source),
        // The remedy of the message is the command line's, which is not in the package.
        SnapshotError::NoSpec { path } => {
            return exception(py, "MissingFileError", &format!("there is no {}", path.display()));
        }
        SnapshotError::Spec { .. }
        | SnapshotError::File(_)
        | SnapshotError::Pipeline { .. }
        | SnapshotError::Dims { .. } => PIPELINE,
        _ => BASE,
    };
    exception(py, class, &error.to_string())
}

fn file_class(error: &std::io::Error) -> &'static str {
    if error.kind() == ErrorKind::NotFound { "MissingFileError" } else { "FileError" }
}

/// Images or arrays that cannot be used.
pub(crate) fn data(py: Python<'_>, message: &str) -> PyErr {
    exception(py, DATA, message)
}

/// An argument that makes no sense.
pub(crate) fn usage(py: Python<'_>, message: &str) -> PyErr {
    exception(py, PIPELINE, message)
}
