//! Pooling and reductions along axes.

use super::builder::{Builder, dims};
use super::{At, Refused, Shares};
use basisopt_ir::op::{self, Op};
use basisopt_ir::{Dim, ValueId};

pub(super) fn rule(b: &mut Builder, at: &At<'_>) -> Option<Shares> {
    let share = match at.op {
        Op::MaxPool(op) => max_pool(b, at, op),
        Op::AveragePool(op) => average_pool(b, at, op),
        Op::GlobalAveragePool(_) => spatial_axes(b, at).and_then(|axes| reduce(b, at, &axes, true, true)),
        Op::GlobalMaxPool(_) => spatial_axes(b, at).and_then(|axes| reduce_max(b, at, &axes, true)),
        Op::ReduceMean(op) => axes(b, at, &op.axes, op.noop_with_empty_axes)
            .and_then(|axes| reduce(b, at, &axes, op.keepdims == 1, true)),
        Op::ReduceSum(op) => axes(b, at, &op.axes, op.noop_with_empty_axes)
            .and_then(|axes| reduce(b, at, &axes, op.keepdims == 1, false)),
        Op::ReduceMax(op) => axes(b, at, &op.axes, op.noop_with_empty_axes)
            .and_then(|axes| reduce_max(b, at, &axes, op.keepdims == 1)),
        _ => return None,
    };
    Some(share.map(|v| vec![(0, v)]))
}

fn max_pool(b: &mut Builder, at: &At<'_>, op: &op::MaxPool) -> Result<ValueId, Refused> {
    let grad = op::MaxPoolGrad {
        auto_pad: op.auto_pad,
        ceil_mode: op.ceil_mode,
        dilations: op.dilations.clone(),
        kernel_shape: op.kernel_shape.clone(),
        pads: op.pads.clone(),
        storage_order: op.storage_order,
        strides: op.strides.clone(),
    };
    Ok(b.node(grad, &[at.dy()?, at.input(0)?, at.output()]))
}

fn average_pool(b: &mut Builder, at: &At<'_>, op: &op::AveragePool) -> Result<ValueId, Refused> {
    let grad = op::AveragePoolGrad {
        auto_pad: op.auto_pad,
        ceil_mode: op.ceil_mode,
        count_include_pad: op.count_include_pad,
        dilations: op.dilations.clone(),
        kernel_shape: op.kernel_shape.clone(),
        pads: op.pads.clone(),
        strides: op.strides.clone(),
    };
    Ok(b.node(grad, &[at.dy()?, at.input(0)?]))
}

fn spatial_axes(b: &Builder, at: &At<'_>) -> Result<Vec<i64>, Refused> {
    Ok((2..dims(&b.graph, at.input(0)?)?.len() as i64).collect())
}

/// The axes of a reduction, counted from the start.
fn axes(b: &Builder, at: &At<'_>, attr: &Option<Vec<i64>>, noop: i64) -> Result<Vec<i64>, Refused> {
    let rank = dims(&b.graph, at.input(0)?)?.len() as i64;
    let given = match (attr, at.inputs.get(1).copied().flatten()) {
        (Some(axes), _) => axes.clone(),
        (None, Some(v)) => {
            let tensor = b.graph.constant_value(v).and_then(|t| t.to_i64s().ok());
            tensor.ok_or(Refused::NoRule(" with axes that are not constant"))?
        }
        _ => vec![],
    };
    if given.is_empty() {
        return Ok(if noop == 1 { vec![] } else { (0..rank).collect() });
    }
    Ok(given.iter().map(|&a| if a < 0 { a + rank } else { a }).collect())
}

/// dy with the reduced axes as axes of size 1.
fn with_axes(b: &mut Builder, at: &At<'_>, v: ValueId, axes: &[i64], kept: bool) -> Result<ValueId, Refused> {
    if kept {
        return Ok(v);
    }
    let x = at.input(0)?;
    let shape = dims(&b.graph, x)?;
    let mut unknown = 0;
    let mut sizes = Vec::with_capacity(shape.len());
    for (a, d) in shape.iter().enumerate() {
        sizes.push(match d.known() {
            _ if axes.contains(&(a as i64)) => 1,
            Some(d) => d as i64,
            None => {
                unknown += 1;
                -1
            }
        });
    }
    if unknown > 1 {
        return Err(Refused::Shape(x));
    }
    let sizes = b.ints(&sizes);
    Ok(b.node(op::Reshape::default(), &[v, sizes]))
}

/// Sums and means; along no axes they are the identity.
fn reduce(b: &mut Builder, at: &At<'_>, axes: &[i64], kept: bool, is_mean: bool) -> Result<ValueId, Refused> {
    if axes.is_empty() {
        return at.dy();
    }
    let x = at.input(0)?;
    let shape = dims(&b.graph, x)?;
    let mut share = at.dy()?;
    if is_mean {
        let size = |&a: &i64| usize::try_from(a).ok().and_then(|a| shape.get(a)).and_then(Dim::known);
        let n: usize = axes.iter().map(size).product::<Option<usize>>().ok_or(Refused::Shape(x))?;
        share = b.scaled(share, 1.0 / n.max(1) as f64, x);
    }
    let share = with_axes(b, at, share, axes, kept)?;
    b.expand_like(share, x)
}

/// The gradient goes to the largest element; equal ones share it. Along no axes it is the identity.
fn reduce_max(b: &mut Builder, at: &At<'_>, axes: &[i64], kept: bool) -> Result<ValueId, Refused> {
    if axes.is_empty() {
        return at.dy();
    }
    let x = at.input(0)?;
    let y = with_axes(b, at, at.output(), axes, kept)?;
    let dy = with_axes(b, at, at.dy()?, axes, kept)?;
    let (zero, one) = (b.number(0.0, x), b.number(1.0, x));
    let is_largest = b.node(op::Equal::default(), &[x, y]);
    let mask = b.node(op::Where {}, &[is_largest, one, zero]);
    let count = b.sum(mask, axes, true);
    let part = b.div(dy, count);
    Ok(b.mul(mask, part))
}
