//! What became of each layer.

use crate::recipe::PASSES;
use basisopt_passes::cost::{self, Cost};
use basisopt_passes::{RemarkKind, Report};
use serde::Serialize;
use std::fmt::Write as _;

/// What became of one convolution or linear layer.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// Label of its node.
    pub name: String,
    /// Whether it is a pair now.
    pub factored: bool,
    /// Filters in its basis; where it was left alone, what it would have had, if that is known.
    pub rank: Option<u64>,
    /// What the basis would have to be for nothing to change.
    pub full_rank: Option<u64>,
    /// Share of the squared singular values kept.
    pub energy: Option<f64>,
    /// `‖W − factors‖ / ‖W‖`.
    pub error: Option<f64>,
    /// Root of the mean squared error of the layer's output relative to its variance, where it was fitted.
    pub output_error: Option<f64>,
    /// Multiply-adds per image, where sizes are known.
    pub macs_before: Option<u64>,
    /// The same, of the pair.
    pub macs_after: Option<u64>,
    /// Why it was left alone.
    pub reason: Option<String>,
}

/// The ranks that were chosen, as a file for `--ranks`.
pub fn ranks_file(pipeline: &str, layers: &[Layer]) -> String {
    let mut text = format!("# Ranks chosen by basisopt {}: {pipeline}\n", env!("CARGO_PKG_VERSION"));
    for layer in layers {
        match (layer.rank.filter(|_| layer.factored), layer.full_rank) {
            (Some(rank), Some(full)) => {
                let _ = writeln!(text, "{rank} {} # of {full}", layer.name);
            }
            _ => {
                let _ = writeln!(text, "# {} stays whole", layer.name);
            }
        }
    }
    text
}

/// What the factorising passes said about each layer, in the order in which they run.
pub fn layers(cost: &Cost, report: &Report) -> Vec<Layer> {
    let remarks: Vec<_> = report.remarks().filter(|r| PASSES.contains(&r.pass.as_str())).collect();
    let layer = |layer: &cost::LayerCost| {
        let said = |kind| remarks.iter().find(move |r| r.node == layer.label && r.kind == kind);
        let applied = said(RemarkKind::Applied).filter(|r| r.code == "factored");
        let refused = said(RemarkKind::Refused);
        // Refusals carry the numbers they know, such as the rank that would not have paid.
        let value = |key: &str| applied.or(refused).and_then(|r| r.values.get(key)).copied();
        let whole = |key: &str| value(key).map(|v| v as u64);
        let error = value("squared_error").zip(value("squared_norm")).map(|(e, n)| (e / n).sqrt());
        let share = applied.and_then(|r| r.values.get("cost"));
        Layer {
            name: layer.label.clone(),
            factored: applied.is_some(),
            rank: whole("rank"),
            full_rank: whole("full_rank"),
            energy: value("energy"),
            error,
            output_error: value("output_error").map(f64::sqrt),
            macs_before: layer.macs,
            macs_after: layer.macs.map(|m| share.map_or(m, |s| (m as f64 * s).round() as u64)),
            reason: match (applied, refused) {
                (Some(_), _) => None,
                (None, Some(refused)) => Some(refused.message.clone()),
                (None, None) => Some("energy goes by convolutions alone, as the paper does".to_owned()),
            },
        }
    };
    cost.layers.iter().map(layer).collect()
}
