//! What the tests of gradients share: the fixtures, what is differentiated in them, numbers.

use basisopt::ir::op::Op;
use basisopt::ir::{Graph, ValueId};
use std::path::PathBuf;

/// The files of `fixtures/differentiate`.
pub fn cases() -> Vec<PathBuf> {
    let dir = super::root().join("fixtures/differentiate");
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(&dir).map(|d| d.filter_map(|e| Some(e.ok()?.path())).collect()).unwrap_or_default();
    cases.retain(|p| p.extension().is_some_and(|e| e == "bir"));
    cases.sort();
    cases
}

/// The float constants that have a gradient; by nature statistics that are given, bounds, exponents and scales have
/// none.
pub fn parameters(graph: &Graph) -> Vec<ValueId> {
    let values = graph.topological().into_iter().map(ValueId::of);
    let constants = values.filter(|&v| graph.constant(v).is_some_and(|t| t.dtype().is_float()));
    constants.filter(|&v| is_differentiable(graph, v)).collect()
}

fn is_differentiable(graph: &Graph, value: ValueId) -> bool {
    graph.uses(value).iter().all(|u| match graph.node(u.node).op {
        Op::BatchNormalization(_) => u.slot < 3,
        Op::Clip(_) | Op::Pow(_) | Op::Resize(_) => u.slot == 0,
        Op::Greater(_) | Op::Less(_) => false,
        _ => true,
    })
}

/// Numbers in ±1.
pub fn numbers(seed: u64, n: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}
