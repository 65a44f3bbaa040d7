//! `factorize-linear`: a linear layer becomes two, through a few orthonormal directions.
//!
//! ## Rewrite
//!
//! ```text
//! %y = Gemm<transB=1>(%x, %w, %b)
//! ```
//! becomes
//! ```text
//! %y.basis = Gemm<transB=1>(%x, %w.basis)
//! %y       = Gemm<transB=1>(%y.basis, %w.coefficients, %b)
//! ```
//! `alpha`, `beta` and the bias stay with the second. A `MatMul` with a constant on either side
//! becomes two of its kind.
//!
//! ## Legality
//!
//! - The weight is a constant matrix (`weight-not-constant.bir`, `not-a-matrix.bir`) of a float type
//!   (`weight-type.bir`), finite (`non-finite-weight.bir`), not all zero (`zero-weight.bir`), that no
//!   caller may override (`overridable-weight.bir`).
//! - Everything that reads it is rewritten too (`shared.bir`, `shared-weight.bir`).
//! - `include=` and `exclude=` agree (`excluded.bir`).
//! - The layer is not itself one of a pair of factors (`already-factored.bir`).
//! - With `guard=on`, the factors need fewer multiply-adds (`past-break-even.bir`).
//!
//! ## Numerics
//!
//! As `factorize-conv`, with H the matrix that takes the inputs to the outputs, `[out, in]`.
//!
//! ## Options
//!
//! Those of `factorize-conv`.
//!
//! ## Pipeline
//!
//! Anywhere after `fold-constants`, after `factorize-conv` where both run; the paper leaves linear layers whole.

use crate::calibrate::bias::shifted;
use crate::driver::pass::{Fidelity, Outcome, Pass, PassContext, PassError, PassInfo, tensor_error};
use crate::layer::{Layer, LayerKind, transpose};
use crate::plan::{self, Plan, Selection, note};
use crate::ranks::OPTIONS;
use basisopt_ir::op::{Gemm, MatMul};
use basisopt_ir::{Graph, Op, Operand, Rewrite, Tensor, ValueId};

/// The pass `factorize-linear`: `docs/passes.md` shows what it does, `basisopt passes factorize-linear` has its options.
pub static INFO: PassInfo = PassInfo {
    name: "factorize-linear",
    summary: "split linear layers (Gemm, MatMul) into two through an orthonormal basis",
    fidelity: Fidelity::Approximate,
    options: OPTIONS,
    build: |options| Ok(Box::new(FactorizeLinear(Selection::read("factorize-linear", options)?))),
};

#[derive(Debug)]
struct FactorizeLinear(Selection);

impl Pass for FactorizeLinear {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Outcome, PassError> {
        factorize(graph, cx, &self.0)
    }
}

/// What the pass does.
pub(crate) fn factorize(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    selection: &Selection,
) -> Result<Outcome, PassError> {
    plan::run(graph, cx, selection, Layer::linear, build)
}

fn build(graph: &Graph, layers: &[Layer], plan: &Plan) -> Result<Rewrite, PassError> {
    let layer = &layers[0];
    let error = tensor_error(graph, layer.node);
    let (rank, n_rows, n_columns) = (plan.rank, layer.n_rows, layer.n_columns);
    let mut rewrite = Rewrite::at(layer.node);
    // There is one group. Gemm factors are stored [out, in] whatever the original was.
    let (f, w) = (&plan.factors[0].basis, &plan.factors[0].coefficients);
    let (basis, coefficients) = if layer.kind == LayerKind::MatMul {
        (
            Tensor::from_f64s(layer.dtype, vec![n_columns, rank], &transpose(f, rank, n_columns)),
            Tensor::from_f64s(layer.dtype, vec![rank, n_rows], &transpose(w, n_rows, rank)),
        )
    } else {
        (
            Tensor::from_f64s(layer.dtype, vec![rank, n_columns], f),
            Tensor::from_f64s(layer.dtype, vec![n_rows, rank], w),
        )
    };
    let weight_name = &graph.value(layer.weight).name;
    let basis = rewrite.constant(format!("{weight_name}.basis"), basis.map_err(&error)?);
    let coefficients = rewrite.constant(format!("{weight_name}.coefficients"), coefficients.map_err(&error)?);
    // Before opset 11 a Gemm could not do without its third input.
    let no_bias = if graph.opset < 11 && matches!(layer.kind, LayerKind::Gemm { .. }) {
        let zeros = Tensor::full(layer.dtype, vec![rank], 0.0).map_err(&error)?;
        vec![rewrite.constant(format!("{weight_name}.zeros"), zeros)]
    } else {
        vec![]
    };
    for layer in layers {
        let slot = |i| graph.node_input(layer.node, i).map_or(Operand::Omitted, Operand::Existing);
        let (first, second) = (format!("{}.basis", layer.label), format!("{}.coefficients", layer.label));
        rewrite.place_at(layer.node);
        let last = match &graph.node(layer.node).op {
            Op::Gemm(op) => {
                // Before operator set 7 nothing was broadcast unless asked for.
                let broadcast = (graph.opset < 7).then_some(1);
                let basis_op = Gemm { alpha: 1.0, beta: 1.0, transB: 1, broadcast, ..op.clone() };
                let h = rewrite.node(first, basis_op, &[&[slot(0), basis], &no_bias[..]].concat());
                note(&mut rewrite, layer, "basis");
                let bias = shifted(graph, &mut rewrite, layer, plan.bias_shift.as_deref())?;
                let inputs = [h, coefficients, bias];
                let n = if bias == Operand::Omitted { 2 } else { 3 };
                let op = Gemm { transA: 0, transB: 1, ..op.clone() };
                rewrite.node(second, op, &inputs[..n])
            }
            _ => {
                let (x, left) = (slot(0), layer.kind == LayerKind::MatMulLeft);
                let order = |data, weight| if left { [weight, data] } else { [data, weight] };
                let h = rewrite.node(first, MatMul {}, &order(if left { slot(1) } else { x }, basis));
                note(&mut rewrite, layer, "basis");
                rewrite.node(second, MatMul {}, &order(h, coefficients))
            }
        };
        note(&mut rewrite, layer, "coefficients");
        rewrite.replace(ValueId::of(layer.node), last);
    }
    Ok(rewrite)
}
