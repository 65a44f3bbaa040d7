//! Convolutions and matrix products: linear in each operand, so that each gradient is an adjoint.

use super::builder::{Builder, dims};
use super::{At, Refused, Shares};
use basisopt_ir::op::{self, AutoPad, Op};
use basisopt_ir::{ValueId, infer};

pub(super) fn rule(b: &mut Builder, at: &At<'_>) -> Option<Shares> {
    Some(match at.op {
        Op::Conv(op) => conv(b, at, op),
        Op::ConvTranspose(op) => conv_transpose(b, at, op),
        Op::Gemm(op) => gemm(b, at, op),
        Op::MatMul(_) => matmul(b, at),
        _ => return None,
    })
}

/// `Σ` over the batch and all positions.
fn bias_share(b: &mut Builder, at: &At<'_>, dy: ValueId) -> Result<ValueId, Refused> {
    let rank = dims(&b.graph, at.input(0)?)?.len() as i64;
    let axes: Vec<i64> = (0..rank).filter(|&a| a != 1).collect();
    Ok(b.sum(dy, &axes, false))
}

fn conv(b: &mut Builder, at: &At<'_>, op: &op::Conv) -> Shares {
    let (dy, x, w) = (at.dy()?, at.input(0)?, at.input(1)?);
    let op::Conv { auto_pad, dilations, group, kernel_shape, pads, strides } = op.clone();
    let mut shares = Vec::new();
    if at.wants(2) {
        shares.push((2, bias_share(b, at, dy)?));
    }
    if at.wants(1) {
        let op = op::ConvWeightGrad {
            auto_pad,
            dilations: dilations.clone(),
            group,
            kernel_shape: kernel_shape.clone(),
            pads: pads.clone(),
            strides: strides.clone(),
        };
        shares.push((1, b.node(op, &[dy, x, w])));
    }
    if at.wants(0) {
        let op = op::ConvInputGrad { auto_pad, dilations, group, kernel_shape, pads, strides };
        shares.push((0, b.node(op, &[dy, w, x])));
    }
    Ok(shares)
}

/// A transposed convolution is the input gradient of a convolution with its weight: that convolution is its input's
/// gradient, and input and gradient change places in its weight's.
fn conv_transpose(b: &mut Builder, at: &At<'_>, op: &op::ConvTranspose) -> Shares {
    let (dy, x, w) = (at.dy()?, at.input(0)?, at.input(1)?);
    let geometry = infer::conv_geometry(&b.graph, at.id).ok_or(Refused::Shape(x))?;
    let resolved = geometry.pads.as_ref().ok_or(Refused::Shape(x))?;
    let side = |f: fn(&(usize, usize)) -> usize| resolved.iter().map(move |p| f(p) as i64);
    let pads: Vec<i64> = side(|p| p.0).chain(side(|p| p.1)).collect();
    let mut shares = Vec::new();
    if at.wants(2) {
        shares.push((2, bias_share(b, at, dy)?));
    }
    if at.wants(1) {
        let op = op::ConvWeightGrad {
            auto_pad: AutoPad::NotSet,
            dilations: op.dilations.clone(),
            group: op.group,
            kernel_shape: op.kernel_shape.clone(),
            pads: pads.clone(),
            strides: op.strides.clone(),
        };
        shares.push((1, b.node(op, &[x, dy, w])));
    }
    if at.wants(0) {
        let op = op::Conv {
            auto_pad: AutoPad::NotSet,
            dilations: op.dilations.clone(),
            group: op.group,
            kernel_shape: op.kernel_shape.clone(),
            pads,
            strides: op.strides.clone(),
        };
        shares.push((0, b.node(op, &[dy, w])));
    }
    Ok(shares)
}

/// y = α·op(A)·op(B) + β·C: with op(A)̄ = α·ȳ·op(B)ᵀ and op(B)̄ = α·op(A)ᵀ·ȳ.
fn gemm(b: &mut Builder, at: &At<'_>, op: &op::Gemm) -> Shares {
    let (dy, a, w) = (at.dy()?, at.input(0)?, at.input(1)?);
    let product = |b: &mut Builder, l: ValueId, r: ValueId, (ta, tb): (i64, i64)| {
        b.node(op::Gemm { alpha: op.alpha, transA: ta, transB: tb, ..op::Gemm::default() }, &[l, r])
    };
    let mut shares = Vec::new();
    if at.wants(2) {
        let share = if op.beta == 1.0 { dy } else { b.scaled(dy, f64::from(op.beta), a) };
        shares.push((2, b.unbroadcast(share, at.input(2)?, at.output())?));
    }
    if at.wants(1) {
        let share = match (op.transA, op.transB) {
            (0, 0) => product(b, a, dy, (1, 0)),
            (0, _) => product(b, dy, a, (1, 0)),
            (_, 0) => product(b, a, dy, (0, 0)),
            _ => product(b, dy, a, (1, 1)),
        };
        shares.push((1, share));
    }
    if at.wants(0) {
        let share = match (op.transA, op.transB) {
            (0, 0) => product(b, dy, w, (0, 1)),
            (0, _) => product(b, dy, w, (0, 0)),
            (_, 0) => product(b, w, dy, (0, 1)),
            _ => product(b, w, dy, (1, 1)),
        };
        shares.push((0, share));
    }
    Ok(shares)
}

fn matmul(b: &mut Builder, at: &At<'_>) -> Shares {
    let (dy, l, r) = (at.dy()?, at.input(0)?, at.input(1)?);
    let (dl, dr) = (dims(&b.graph, l)?, dims(&b.graph, r)?);
    if dl.len() < 2 || dr.len() < 2 {
        return Err(Refused::NoRule(" of a vector"));
    }
    if dl.len() == 2 && dr.len() == 2 {
        // As a Gemm, which the trainer runs without a transpose in memory.
        return gemm(b, at, &op::Gemm::default());
    }
    let transposed = |b: &mut Builder, v: ValueId, rank: usize| {
        let rank = rank as i64;
        let perm: Vec<i64> = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
        b.node(op::Transpose { perm: Some(perm) }, &[v])
    };
    let y_rank = dl.len().max(dr.len());
    let mut shares = Vec::new();
    if at.wants(0) {
        let t = transposed(b, r, dr.len());
        let share = b.node(op::MatMul {}, &[dy, t]);
        shares.push((0, batch_sum(b, share, l, y_rank, at.output())?));
    }
    if at.wants(1) {
        let t = transposed(b, l, dl.len());
        let share = b.node(op::MatMul {}, &[t, dy]);
        shares.push((1, batch_sum(b, share, r, y_rank, at.output())?));
    }
    Ok(shares)
}

/// Sums over batch axes along which an operand was repeated.
fn batch_sum(
    b: &mut Builder,
    share: ValueId,
    operand: ValueId,
    rank: usize,
    y: ValueId,
) -> Result<ValueId, Refused> {
    let (from, to) = (dims(&b.graph, operand)?, dims(&b.graph, y)?);
    let skip = rank - from.len();
    let repeated = |a: &usize| match a.checked_sub(skip).and_then(|i| from.get(i)) {
        None => true,
        Some(d) => d.known() == Some(1) && to.get(*a).and_then(basisopt_ir::Dim::known) != Some(1),
    };
    let axes: Vec<i64> = (0..rank.saturating_sub(2)).filter(repeated).map(|a| a as i64).collect();
    let share = if axes.is_empty() { share } else { b.sum(share, &axes, true) };
    if skip == 0 { Ok(share) } else { b.reshape_like(share, operand) }
}
