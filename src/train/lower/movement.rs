//! Gradients of operators that move elements: slices, picks, interpolation.

use super::nodes::{Spread, size, sizes};
use super::{At, Unfit};
use crate::differentiate::builder::Builder;
use crate::exec::resize;
use basisopt_ir::ValueId;
use basisopt_ir::attr::{Attr, Attrs};
use basisopt_ir::op::{self, Op, Opaque};
use bytes::Bytes;

/// The integers of an input that must be constant, or of the attribute that older operator sets have.
fn ints(b: &Builder, at: &At, attr: &Option<Vec<i64>>, slot: usize) -> Result<Option<Vec<i64>>, Unfit> {
    if let Some(list) = attr {
        return Ok(Some(list.clone()));
    }
    let Some(value) = at.inputs.get(slot).copied().flatten() else { return Ok(None) };
    let list = b.graph.constant_value(value).and_then(|t| t.to_i64s().ok());
    list.map(Some).ok_or_else(|| {
        Unfit::because(format!("bounds {:?} that are not constant", b.graph.value(value).name))
    })
}

fn axis(axis: i64, rank: usize) -> Result<usize, Unfit> {
    let from_start = if axis < 0 { axis + rank as i64 } else { axis };
    let found = usize::try_from(from_start).ok().filter(|&a| a < rank);
    found.ok_or_else(|| Unfit::because(format!("axis {axis} of {rank}")))
}

/// Back to where the elements were, zeros elsewhere.
pub(super) fn slice_grad(b: &mut Builder, at: &At, op: &op::SliceGrad) -> Result<ValueId, Unfit> {
    let (dy, x) = (at.input(0)?, at.input(1)?);
    let starts = ints(b, at, &op.starts, 2)?.ok_or_else(|| Unfit::because("it has no starts"))?;
    let axes = ints(b, at, &op.axes, 4)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = ints(b, at, &None, 5)?.unwrap_or_else(|| vec![1; starts.len()]);
    let (whole, part) = (sizes(b, x)?, sizes(b, dy)?);
    let rank = whole.len();
    let mut moves = Vec::new();
    let (mut flipped, mut out) = (Vec::new(), dy);
    for ((&start, &a), &step) in starts.iter().zip(&axes).zip(&steps) {
        let axis = axis(a, rank)?;
        if whole.get(axis) == Some(&None)
            && b.graph.value(x).ty.shape.as_ref().map(|s| &s[axis])
                == b.graph.value(dy).ty.shape.as_ref().map(|s| &s[axis])
            && start == 0
            && step == 1
        {
            // All of an open axis.
            continue;
        }
        let (n, count) = (size(b, x, axis)? as i64, size(b, dy, axis)? as i64);
        if count == 0 {
            return Err(Unfit::because("a slice without elements"));
        }
        let start = if start < 0 { start.saturating_add(n) } else { start };
        let start = if step > 0 { start.clamp(0, n) } else { start.clamp(0, n - 1) };
        // Backwards: turned round first.
        let first = if step > 0 { start } else { start + (count - 1) * step };
        if step < 0 {
            flipped.push(axis as i64);
        }
        let number = |v: i64| usize::try_from(v).map_err(|_| Unfit::because("bounds out of range"));
        moves.push(Spread { axis, start: number(first)?, step: number(step.abs())?, size: number(n)? });
    }
    if !flipped.is_empty() {
        let n = flipped.len();
        let (starts, ends) = (b.ints(&vec![-1; n]), b.ints(&vec![i64::MIN; n]));
        let (axes, steps) = (b.ints(&flipped), b.ints(&vec![-1; n]));
        out = b.node(op::Slice::default(), &[out, starts, ends, axes, steps]);
    }
    let out = b.spread(out, x, &part, &moves)?;
    Ok(if out == dy { b.node(op::Identity {}, &[dy]) } else { out })
}

/// Each element added to where it came from.
pub(super) fn gather_grad(b: &mut Builder, at: &At, op: &op::GatherGrad) -> Result<ValueId, Unfit> {
    let (dy, x, indices) = (at.input(0)?, at.input(1)?, at.input(2)?);
    let (whole, picked) = (sizes(b, x)?, sizes(b, indices)?);
    let axis = axis(op.axis, whole.len())?;
    let count: Option<usize> = picked.iter().copied().product();
    // All axes of the indices as one, in dy as in x.
    let mut shape: Vec<i64> = whole.iter().map(|d| d.map_or(-1, |d| d as i64)).collect();
    shape[axis] = count.map_or(-1, |n| n as i64);
    if shape.iter().filter(|&&d| d == -1).count() > 1 {
        return Err(Unfit::Size(x));
    }
    let dy = b.reshape(dy, &shape);
    let mut column = vec![1; whole.len()];
    column[axis] = -1;
    let indices = b.reshape(indices, &column);
    let full = b.node(op::Shape::default(), &[dy]);
    let indices = b.node(op::Expand {}, &[indices, full]);
    let zero = b.number(0.0, x);
    let zeros = b.expand_like(zero, x)?;
    let mut attrs = Attrs::new();
    attrs.set("axis", Attr::Int(axis as i64));
    attrs.set("reduction", Attr::Str(Bytes::from_static(b"add")));
    let scatter =
        Opaque { domain: String::new(), op_type: "ScatterElements".to_owned(), attrs, n_captures: 0 };
    let out = b.node(Op::Opaque(scatter), &[zeros, indices, dy]);
    let ty = b.graph.value(x).ty.clone();
    b.graph.set_type(out, ty);
    Ok(out)
}

/// An interpolation is a product with a matrix along every axis; its gradient is one with the transpose.
pub(super) fn resize_grad(b: &mut Builder, at: &At, op: &op::ResizeGrad) -> Result<ValueId, Unfit> {
    let (dy, x) = (at.input(0)?, at.input(1)?);
    let attrs = op::Resize {
        antialias: op.antialias,
        axes: op.axes.clone(),
        coordinate_transformation_mode: op.coordinate_transformation_mode.clone(),
        cubic_coeff_a: op.cubic_coeff_a,
        exclude_outside: op.exclude_outside,
        extrapolation_value: op.extrapolation_value,
        keep_aspect_ratio_policy: op.keep_aspect_ratio_policy.clone(),
        mode: op.mode.clone(),
        nearest_mode: op.nearest_mode.clone(),
    };
    let scales = match at.inputs.get(3).copied().flatten() {
        None => vec![],
        Some(v) if sizes(b, v)?.contains(&Some(0)) => vec![],
        Some(v) => {
            let scales = b.graph.constant_value(v).and_then(|t| t.to_f64s().ok());
            scales.ok_or_else(|| Unfit::because("scales that are not constant"))?
        }
    };
    let (input, output) = (sizes(b, x)?, sizes(b, dy)?);
    let tables = resize::tables(&attrs, &scales, &input, &output).map_err(|e| Unfit::because(e.0))?;
    let rank = input.len();
    let mut out = dy;
    for (a, table) in tables.iter().enumerate() {
        let (Some(table), Some(n)) = (table, input[a]) else { continue };
        let m = table.len();
        // Row by output element: of what it is made.
        let mut matrix = vec![0.0; m * n];
        for (o, parts) in table.iter().enumerate() {
            parts.iter().for_each(|&(i, weight)| matrix[o * n + i] += weight);
        }
        let matrix = b.floats(&[m, n], &matrix, x)?;
        // The axis goes to the end and back.
        let last = a + 1 == rank;
        let mut swap: Vec<usize> = (0..rank).collect();
        swap.swap(a, rank - 1);
        let along = if last { out } else { b.transpose(out, &swap) };
        let product = b.node(op::MatMul {}, &[along, matrix]);
        out = if last { product } else { b.transpose(product, &swap) };
    }
    Ok(if out == dy { b.node(op::Identity {}, &[dy]) } else { out })
}
