//! What a transform did, as data.

use basisopt_passes::{Remark, RemarkKind};
use std::fmt;

/// What became of the layers of a model.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// One remark per layer: its rank and error, or why it stayed whole. Layers that share a weight and were
    /// factorised have one together.
    pub remarks: Vec<Remark>,
}

impl Report {
    /// The layers that were factorised, with their ranks (per group), in the order of the model.
    pub fn ranks(&self) -> impl Iterator<Item = (&str, usize)> {
        self.remarks.iter().filter(|r| r.kind == RemarkKind::Applied).filter_map(|r| {
            let rank = r.values.get("rank")?;
            Some((r.node.as_str(), *rank as usize))
        })
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
