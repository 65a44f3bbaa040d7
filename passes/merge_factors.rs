//! `merge-factors`: the inverse of the factorising passes.
//!
//! ## Rewrite
//!
//! ```text
//! %h = Conv<pads=[1,1,1,1]>(%x, %basis)
//! %y = Conv(%h, %coefficients, %b)
//! ```
//! becomes
//! ```text
//! %y = Conv<pads=[1,1,1,1]>(%x, %merged, %b)
//! ```
//! and likewise for the pairs that `factorize-conv` makes of a `ConvTranspose` and
//! `factorize-linear` of a `Gemm` or `MatMul`.
//!
//! ## Legality
//!
//! - The two are a basis with orthonormal rows and its coefficients: any other 3×3 convolution
//!   before a 1×1 one was somebody's design (`not-a-basis.bir`).
//! - Nothing else reads the value between them (`intermediate-used.bir`).
//! - The two weights are read by nothing else (`shared-weight.bir`).
//!
//! ## Numerics
//!
//! `H = w·F`, computed in f64 and rounded once. The network computes what the pair computed, up to
//! rounding; what truncation lost stays lost.
//!
//! ## Options
//!
//! None.
//!
//! ## Pipeline
//!
//! On a factored network, to hand it to a tool that wants plain convolutions.

use crate::driver::options::Options;
use crate::driver::pass::{Fidelity, Outcome, Pass, PassContext, PassError, PassInfo};
use crate::driver::remark::Refusal;
use crate::driver::rule::{Proposal, Rule, apply_everywhere};
use crate::factor;
use crate::layer::{FactorPair, LayerKind, transpose};
use basisopt_ir::op::{Conv, Gemm, MatMul};
use basisopt_ir::{Graph, NodeId, Op, Operand, Rewrite, Tensor, ValueId};

/// The pass `merge-factors`: `docs/passes.md` shows what it does, `basisopt passes merge-factors` has its options.
pub static INFO: PassInfo = PassInfo {
    name: "merge-factors",
    summary: "multiply pairs of factors back into single layers",
    fidelity: Fidelity::Exact,
    options: &[],
    build: |_: &Options| Ok(Box::new(MergeFactors)),
};

#[derive(Debug)]
struct MergeFactors;

impl Pass for MergeFactors {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Outcome, PassError> {
        apply_everywhere(self, graph, cx)
    }
}

impl Rule for MergeFactors {
    fn rewrite(&self, graph: &Graph, at: NodeId) -> Result<Option<Proposal>, Refusal> {
        // Matched at the node that runs second.
        let data_slot = match &graph.node(at).op {
            Op::MatMul(_) if graph.constant_input(at, 0).is_some() => 1,
            Op::Conv(_) | Op::ConvTranspose(_) | Op::Gemm(_) | Op::MatMul(_) => 0,
            _ => return Ok(None),
        };
        let Some(between) = graph.node_input(at, data_slot).filter(|v| v.port == 0) else { return Ok(None) };
        let Some(pair) = FactorPair::at(graph, between.node, at) else { return Ok(None) };
        if graph.n_readers(between) > 1 {
            let message =
                format!("the value {} between the two is read elsewhere too", graph.value(between).name);
            return Err(Refusal::new("intermediate-used", message));
        }
        let weight_slot = 1 - data_slot;
        let weights = [between.node, at].map(|n| graph.node_input(n, weight_slot));
        if weights.iter().flatten().any(|&w| graph.n_readers(w) > 1) {
            return Err(Refusal::new("shared-weight", "another layer uses the same factors"));
        }
        Ok(Some(merge(graph, &pair, data_slot)?))
    }
}

fn merge(graph: &Graph, pair: &FactorPair, data_slot: usize) -> Result<Proposal, Refusal> {
    let (first, second) = (graph.node(pair.first), graph.node(pair.second));
    let merged: Vec<Vec<f64>> =
        pair.factors.iter().map(|f| factor::product(f, pair.n_rows, pair.n_columns)).collect();
    let basis_node = if pair.kind == LayerKind::ConvTranspose { pair.second } else { pair.first };
    let weight_slot = 1 - data_slot;
    let Some(basis) = graph.constant_input(basis_node, weight_slot) else {
        return Err(Refusal::new("weight-not-constant", "its basis is not a constant"));
    };
    let (groups, n_rows, n_columns) = (pair.groups, pair.n_rows, pair.n_columns);
    let (shape, values) = match pair.kind {
        LayerKind::MatMul => (vec![n_columns, n_rows], transpose(&merged[0], n_rows, n_columns)),
        LayerKind::Gemm { .. } | LayerKind::MatMulLeft => (vec![n_rows, n_columns], merged.concat()),
        LayerKind::Conv | LayerKind::ConvTranspose => {
            ([&[groups * n_rows], &basis.shape()[1..]].concat(), merged.concat())
        }
    };
    let weight = Tensor::from_f64s(basis.dtype(), shape, &values);
    let weight = weight.map_err(|e| Refusal::new("weight-type", e.to_string()))?;

    let strip = |name: &str| -> String {
        let end = [".basis", ".coefficients"].iter().find_map(|s| name.strip_suffix(s));
        end.unwrap_or(name).to_owned()
    };
    let name_of = |node: NodeId| graph.node_input(node, weight_slot).map_or("", |v| &graph.value(v).name);
    let slot = |node, i| graph.node_input(node, i).map_or(Operand::Omitted, Operand::Existing);
    let mut rewrite = Rewrite::at(pair.first);
    let weight = rewrite.constant(strip(name_of(basis_node)), weight);
    let x = slot(pair.first, data_slot);
    let op: Op = match (&first.op, &second.op) {
        (_, Op::ConvTranspose(op)) => op.clone().into(),
        (Op::Conv(op), _) => Conv { ..op.clone() }.into(),
        (Op::Gemm(a), Op::Gemm(b)) => Gemm { transA: a.transA, ..b.clone() }.into(),
        _ => MatMul {}.into(),
    };
    let mut inputs = if data_slot == 0 { vec![x, weight] } else { vec![weight, x] };
    if let bias @ Operand::Existing(_) = slot(pair.second, 2) {
        inputs.push(bias);
    }
    let merged = rewrite.node(strip(second.label()), op, &inputs);
    rewrite.replace(ValueId::of(pair.second), merged);
    rewrite.remove(pair.first);
    rewrite.forget(format!("basisopt.layer.{}", strip(second.label())));
    let rank = pair.factors.first().map_or(0, |f| f.rank);
    let message = format!("merged {} and {} (rank {rank}) into one", first.label(), second.label());
    Ok(Proposal { rewrite, code: "merged", message })
}
