//! `factorize-conv`: a convolution becomes a few orthonormal basis filters and 1×1 filters that
//! express the original ones in that basis (Tayyab, Khan, Mahalanobis 2021).
//!
//! ## Rewrite
//!
//! ```text
//! %y = Conv<pads=[1,1,1,1], strides=[2,2]>(%x, %w, %b)
//! ```
//! becomes
//! ```text
//! %y.basis = Conv<pads=[1,1,1,1], strides=[2,2]>(%x, %w.basis)
//! %y       = Conv<kernel_shape=[1,1]>(%y.basis, %w.coefficients, %b)
//! ```
//! Stride, dilation and padding stay with the basis, the bias goes to the coefficients. A grouped
//! convolution becomes a grouped pair. A `ConvTranspose` is split the other way round: 1×1 first,
//! then the basis, which keeps everything, the bias too. 1D, 2D and 3D alike.
//!
//! ## Legality
//!
//! - The weight is a constant (`weight-not-constant.bir`, `quantised-weight.bir`) that no caller may override
//!   (`overridable-weight.bir`), of a float type (`weight-type.bir`), finite
//!   (`non-finite-weight.bir`), not all zero (`zero-weight.bir`) not empty (`empty.bir`) and of a
//!   size that fits in memory (`tests/malformed.rs`); its energy and its factors are numbers of their types
//!   (`extreme-weight.bir`, `overflow.bir`).
//! - Everything that reads the weight is a convolution of the same form that is rewritten too: then
//!   they share the factors (`shared.bir`). Otherwise the weight would be kept beside its factors
//!   (`shared-weight.bir`).
//! - More than one filter per group (`depthwise.bir`).
//! - The convolution is not itself a basis or its coefficients (`already-factored.bir`).
//! - With `guard=on`, the factors need fewer multiply-adds (`past-break-even.bir`).
//! - `include=` and `exclude=` agree (`excluded.bir`, `not-included.bir`), and a ranks file, or
//!   `allocate-ranks`, has a rank for it (`not-listed.bir`).
//!
//! ## Numerics
//!
//! With H the filters as rows, `[P, D]`, `D = C/group · Πk`, and `H = U·S·Vᵀ` (in f64 by faer, one
//! thread per layer; large well-conditioned matrices by way of their Gram matrix, see `factor.rs`): basis `F = V_Qᵀ`, coefficients `w = H·Fᵀ = U_Q·S_Q`. Then
//! `‖H − w·F‖² = Σ_{i>Q} s_i²`, the least for any rank Q (Eckart–Young), and `F·Fᵀ = I`. At full
//! rank `min(P, D)` the pair computes what the convolution did, up to rounding. Factors are
//! rounded once, to the type of the weight; what the remark reports is measured on them as rounded.
//! Ranks: `energy=t` takes the smallest Q with `Σ_{i≤Q} s_i² ≥ t·Σ s_i²`; in a grouped convolution
//! every group keeps that share. A pair costs `Q·(D + P)` per position against `P·D`, so the
//! break-even rank is `P·D/(P + D)`.
//!
//! With data, factors are fitted to outputs instead (`method=output`, `method=sequential`): see
//! `calibrate/sequential.rs` and `docs/numerics.md`.
//!
//! ## Options
//!
//! `energy`, `ratio`, `rank`, `ranks`, `method`, `refit`, `multiple`, `guard`, `include`, `exclude`: see
//! `basisopt passes factorize-conv`. The paper's bare rule is `energy=t:guard=off`.
//!
//! ## Pipeline
//!
//! After `fold-batch-norm`, so that the scale of every filter counts in its energy; the paper itself
//! decomposes unfolded weights. After `allocate-ranks`, if ranks are to keep to a budget.

use crate::calibrate::bias::shifted;
use crate::driver::pass::{Fidelity, Outcome, Pass, PassContext, PassError, PassInfo, tensor_error};
use crate::layer::{Layer, LayerKind, transpose};
use crate::plan::{self, Plan, Selection, note};
use crate::ranks::OPTIONS;
use basisopt_ir::op::{AutoPad, Conv, ConvTranspose};
use basisopt_ir::{Graph, Op, Operand, Rewrite, Tensor};

/// The pass `factorize-conv`: `docs/passes.md` shows what it does, `basisopt passes factorize-conv` has its options.
pub static INFO: PassInfo = PassInfo {
    name: "factorize-conv",
    summary: "split convolutions into an orthonormal basis and 1×1 coefficients",
    fidelity: Fidelity::Approximate,
    options: OPTIONS,
    build: |options| Ok(Box::new(FactorizeConv(Selection::read("factorize-conv", options)?))),
};

#[derive(Debug)]
struct FactorizeConv(Selection);

impl Pass for FactorizeConv {
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
    plan::run(graph, cx, selection, Layer::conv, build)
}

fn build(graph: &Graph, layers: &[Layer], plan: &Plan) -> Result<Rewrite, PassError> {
    let layer = &layers[0];
    let error = tensor_error(graph, layer.node);
    let mut rewrite = Rewrite::at(layer.node);
    let weight_name = &graph.value(layer.weight).name;
    let (basis, coefficients) = tensors(layer, plan).map_err(error)?;
    let basis = rewrite.constant(format!("{weight_name}.basis"), basis);
    let coefficients = rewrite.constant(format!("{weight_name}.coefficients"), coefficients);
    for layer in layers {
        let node = graph.node(layer.node);
        let slot = |i| graph.node_input(layer.node, i).map_or(Operand::Omitted, Operand::Existing);
        let x = slot(0);
        let bias = shifted(graph, &mut rewrite, layer, plan.bias_shift.as_deref())?;
        let with_bias = |x, w| if bias == Operand::Omitted { vec![x, w] } else { vec![x, w, bias] };
        let (basis_name, coefficients_name) =
            (format!("{}.basis", layer.label), format!("{}.coefficients", layer.label));
        let kernel_shape: Vec<i64> = layer.kernel.iter().map(|&k| k as i64).collect();
        let pointwise = Conv {
            group: layer.groups as i64,
            kernel_shape: vec![1; layer.kernel.len()],
            auto_pad: AutoPad::NotSet,
            ..Conv::default()
        };
        rewrite.place_at(layer.node);
        let last = match &node.op {
            Op::ConvTranspose(op) => {
                let h = rewrite.node(coefficients_name, pointwise, &[x, coefficients]);
                note(&mut rewrite, layer, "coefficients");
                let op = ConvTranspose { kernel_shape, ..op.clone() };
                let y = rewrite.node(basis_name, op, &with_bias(h, basis));
                note(&mut rewrite, layer, "basis");
                y
            }
            op => {
                let op = if let Op::Conv(op) = op { op.clone() } else { Conv::default() };
                let h = rewrite.node(basis_name, Conv { kernel_shape, ..op }, &[x, basis]);
                note(&mut rewrite, layer, "basis");
                let y = rewrite.node(coefficients_name, pointwise, &with_bias(h, coefficients));
                note(&mut rewrite, layer, "coefficients");
                y
            }
        };
        rewrite.replace(basisopt_ir::ValueId::of(layer.node), last);
    }
    Ok(rewrite)
}

/// The weights of the two convolutions.
fn tensors(layer: &Layer, plan: &Plan) -> Result<(Tensor, Tensor), basisopt_ir::tensor::TensorError> {
    let (groups, rank, rows) = (layer.groups, plan.rank, layer.n_rows);
    let n_kernel: usize = layer.kernel.iter().product();
    let basis: Vec<f64> = plan.factors.iter().flat_map(|f| f.basis.iter().copied()).collect();
    let shape = |first, second, kernel: &[usize]| [&[first, second], kernel].concat();
    let basis = Tensor::from_f64s(
        layer.dtype,
        shape(groups * rank, layer.n_columns / n_kernel, &layer.kernel),
        &basis,
    )?;
    let ones = vec![1; layer.kernel.len()];
    let coefficients = if layer.kind == LayerKind::ConvTranspose {
        let values: Vec<f64> =
            plan.factors.iter().flat_map(|f| transpose(&f.coefficients, rows, rank)).collect();
        Tensor::from_f64s(layer.dtype, shape(groups * rank, rows, &ones), &values)?
    } else {
        let values: Vec<f64> = plan.factors.iter().flat_map(|f| f.coefficients.iter().copied()).collect();
        Tensor::from_f64s(layer.dtype, shape(groups * rows, rank, &ones), &values)?
    };
    Ok((basis, coefficients))
}
