//! What a pipeline did, as data for JSON and for other languages.

use crate::error::EmbedError;
use basisopt_ir::Graph;
use basisopt_onnx::{Model, Source};
use basisopt_passes::cost::{self, Cost};
use basisopt_passes::{Check, PassReport};
use serde::Serialize;

/// What a network costs, and how large its file is.
#[derive(Clone, Debug, Serialize)]
pub struct Size {
    /// Bytes of the model, those of its data files included.
    pub file_bytes: u64,
    /// Multiply-adds and parameters.
    #[serde(flatten)]
    pub cost: Cost,
}

impl Size {
    /// The size of a model as it was read, with sizes for its open dimensions.
    pub fn of_source(model: &Model, dims: &[(String, usize)]) -> Self {
        Self { file_bytes: model.source().n_bytes(), cost: cost::of_pinned(&model.graph, dims) }
    }

    /// The size of a version of a model as it would be written.
    ///
    /// # Errors
    /// As [`Source::encode`].
    pub fn of_written(source: &Source, graph: &Graph, dims: &[(String, usize)]) -> Result<Self, EmbedError> {
        let encoded = source.encode(graph)?;
        let n_data: usize = encoded.data_files().iter().flat_map(|(_, pieces)| pieces).map(|p| p.len()).sum();
        let file_bytes = (encoded.len() + n_data) as u64;
        Ok(Self { file_bytes, cost: cost::of_pinned(graph, dims) })
    }
}

/// One pass in a report.
#[derive(Clone, Debug, Serialize)]
pub struct PassSummary<'a> {
    /// The pass with its options, as in the pipeline.
    pub pass: &'a str,
    /// `exact`, `approximate` or `trained`.
    pub fidelity: String,
    /// In how many places it changed the network.
    pub rewrites: usize,
    /// Time in the pass.
    pub time_ms: f64,
    /// Time in verification and the numerical check.
    pub overhead_ms: f64,
    /// How far outputs moved, relative; `null` in JSON is infinite, or not checked.
    pub deviation: Option<f64>,
    /// The output that moved furthest.
    pub output: Option<&'a str>,
    /// Why there is no check, if there is none.
    pub check_skipped: Option<&'a str>,
}

impl<'a> From<&'a PassReport> for PassSummary<'a> {
    fn from(p: &'a PassReport) -> Self {
        let (deviation, check_skipped) = match &p.check {
            Check::Compared(d) => (Some(d), None),
            Check::Impossible(reason) => (None, Some(reason.as_str())),
            _ => (None, None),
        };
        Self {
            pass: &p.item,
            fidelity: p.fidelity.to_string(),
            rewrites: p.outcome.n_rewrites(),
            time_ms: 1e3 * p.time.as_secs_f64(),
            overhead_ms: 1e3 * p.overhead.as_secs_f64(),
            deviation: deviation.map(|d| d.relative),
            output: deviation.map(|d| d.output.as_str()),
            check_skipped,
        }
    }
}
