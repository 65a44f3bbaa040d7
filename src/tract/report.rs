//! What a transform did, as data.

use basisopt_passes::{Remark, RemarkKind};
use std::fmt;

/// What became of the layers of a model.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The layers that were factorised, in the order in which they run.
    pub factored: Vec<Factored>,
    /// One remark per layer: its rank and error, or why it stayed whole. Layers that share a weight and were
    /// factorised have one together. tract keeps equal constants once, so that layers whose weights are equal in every
    /// number share one.
    pub remarks: Vec<Remark>,
}

/// A layer that is a pair now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Factored {
    /// Name of the layer.
    pub layer: String,
    /// Number of basis filters, or of basis rows; in a grouped convolution, in each group.
    pub rank: usize,
}

impl Report {
    /// The layers that were factorised, with their ranks.
    pub fn ranks(&self) -> impl Iterator<Item = (&str, usize)> {
        self.factored.iter().map(|f| (f.layer.as_str(), f.rank))
    }

    /// The layers that stayed whole, with the codes of the reasons.
    pub fn refused(&self) -> impl Iterator<Item = (&str, &str)> {
        let refused = self.remarks.iter().filter(|r| r.kind == RemarkKind::Refused);
        refused.map(|r| (r.node.as_str(), r.code.as_str()))
    }

    /// Tells tract's log, where a transform is called by name and nobody takes the report.
    pub(crate) fn log(&self) {
        self.remarks.iter().for_each(|remark| log::info!("{remark}"));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.remarks.iter().try_for_each(|remark| writeln!(f, "{remark}"))
    }
}
