//! Operators that move elements: the gradient moves them back, and adds up what was read more than once.

use super::builder::{Builder, dims};
use super::{At, Refused, Shares};
use basisopt_ir::op::{self, Op};
use basisopt_ir::{Dim, ValueId};

pub(super) fn rule(b: &mut Builder, at: &At<'_>) -> Option<Shares> {
    Some(match at.op {
        Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => only(reshape(b, at)),
        Op::Transpose(op) => only(transpose(b, at, op)),
        Op::Expand(_) => only(expand(b, at)),
        Op::Concat(op) => concat(b, at, op),
        Op::Split(op) => only(split(b, at, op)),
        Op::Slice(op) => only(slice(b, at, op)),
        Op::Gather(op) => only(gather(b, at, op)),
        Op::Pad(op) => only(pad(b, at, op)),
        Op::DepthToSpace(op) => only(depth_to_space(b, at, op)),
        Op::SpaceToDepth(op) => {
            let op = op::DepthToSpace { blocksize: op.blocksize, mode: "DCR".to_owned() };
            only(at.dy().map(|dy| b.node(op, &[dy])))
        }
        Op::Resize(op) => only(resize(b, at, op)),
        Op::Upsample(op) => only(upsample(b, at, op)),
        _ => return None,
    })
}

fn only(share: Result<ValueId, Refused>) -> Shares {
    share.map(|v| vec![(0, v)])
}

fn reshape(b: &mut Builder, at: &At<'_>) -> Result<ValueId, Refused> {
    b.reshape_like(at.dy()?, at.input(0)?)
}

fn transpose(b: &mut Builder, at: &At<'_>, op: &op::Transpose) -> Result<ValueId, Refused> {
    let dy = at.dy()?;
    let Some(perm) = &op.perm else { return Ok(b.node(op::Transpose::default(), &[dy])) };
    let mut inverse = vec![0; perm.len()];
    for (i, &p) in perm.iter().enumerate() {
        let slot = usize::try_from(p).ok().and_then(|p| inverse.get_mut(p));
        *slot.ok_or(Refused::NoRule(" with this permutation"))? = i as i64;
    }
    Ok(b.node(op::Transpose { perm: Some(inverse) }, &[dy]))
}

fn expand(b: &mut Builder, at: &At<'_>) -> Result<ValueId, Refused> {
    b.unbroadcast(at.dy()?, at.input(0)?, at.output())
}

fn sizes(b: &Builder, values: &[Option<ValueId>], axis: i64) -> Result<Vec<i64>, Refused> {
    let mut sizes = Vec::with_capacity(values.len());
    for value in values.iter().flatten() {
        let shape = dims(&b.graph, *value)?;
        let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
        let size = usize::try_from(axis).ok().and_then(|a| shape.get(a)).and_then(Dim::known);
        sizes.push(size.ok_or(Refused::Shape(*value))? as i64);
    }
    Ok(sizes)
}

fn concat(b: &mut Builder, at: &At<'_>, op: &op::Concat) -> Shares {
    let dy = at.dy()?;
    let sizes = sizes(b, &at.inputs, op.axis)?;
    let node = match b.graph.opset < 13 {
        true => {
            let op = op::Split { axis: op.axis, split: Some(sizes), num_outputs: None };
            b.node_with(op, &[dy], at.inputs.len())
        }
        false => {
            let sizes = b.ints(&sizes);
            b.node_with(op::Split { axis: op.axis, ..op::Split::default() }, &[dy, sizes], at.inputs.len())
        }
    };
    Ok((0..at.inputs.len()).map(|i| (i, ValueId { node, port: i as u32 })).collect())
}

fn split(b: &mut Builder, at: &At<'_>, op: &op::Split) -> Result<ValueId, Refused> {
    let mut parts = Vec::with_capacity(at.dys.len());
    for (port, dy) in at.dys.iter().enumerate() {
        parts.push(match *dy {
            Some(dy) => dy,
            // An output that plays no part.
            None => {
                let y = ValueId { node: at.id, port: port as u32 };
                let zero = b.number(0.0, y);
                b.expand_like(zero, y)?
            }
        });
    }
    Ok(b.node(op::Concat { axis: op.axis }, &parts))
}

fn slice(b: &mut Builder, at: &At<'_>, op: &op::Slice) -> Result<ValueId, Refused> {
    let grad = op::SliceGrad { axes: op.axes.clone(), ends: op.ends.clone(), starts: op.starts.clone() };
    let mut inputs = vec![Some(at.dy()?)];
    inputs.extend(at.inputs.iter().copied());
    Ok(b.node_of(grad, &inputs))
}

fn gather(b: &mut Builder, at: &At<'_>, op: &op::Gather) -> Result<ValueId, Refused> {
    let (dy, x, indices) = (at.dy()?, at.input(0)?, at.input(1)?);
    Ok(b.node(op::GatherGrad { axis: op.axis }, &[dy, x, indices]))
}

/// What is inside the padding: the slice that undoes it.
fn pad(b: &mut Builder, at: &At<'_>, op: &op::Pad) -> Result<ValueId, Refused> {
    if op.mode != "constant" {
        return Err(Refused::NoRule(" in a mode that repeats elements"));
    }
    let (dy, x) = (at.dy()?, at.input(0)?);
    let rank = dims(&b.graph, x)?.len();
    let pads = match (&op.pads, &op.paddings, at.inputs.get(1).copied().flatten()) {
        (Some(p), ..) | (None, Some(p), _) => p.clone(),
        (None, None, Some(v)) => ints(b, v)?,
        _ => return Err(Refused::NoRule(" without pads")),
    };
    let axes = match at.inputs.get(3).copied().flatten() {
        Some(v) => ints(b, v)?,
        None => (0..rank as i64).collect(),
    };
    let n = axes.len();
    let starts: Vec<i64> = pads.iter().take(n).copied().collect();
    // An end counted from the end, so that sizes need not be known.
    let ends: Vec<i64> = pads.iter().skip(n).map(|&p| if p > 0 { -p } else { i64::MAX }).collect();
    if pads.len() != 2 * n || pads.iter().any(|&p| p < 0) {
        return Err(Refused::NoRule(" with negative pads"));
    }
    if b.graph.opset < 10 {
        return Ok(b.node(op::Slice { axes: Some(axes), ends: Some(ends), starts: Some(starts) }, &[dy]));
    }
    let (starts, ends, axes) = (b.ints(&starts), b.ints(&ends), b.ints(&axes));
    Ok(b.node(op::Slice::default(), &[dy, starts, ends, axes]))
}

fn ints(b: &Builder, v: ValueId) -> Result<Vec<i64>, Refused> {
    let tensor = b.graph.constant_value(v);
    tensor.and_then(|t| t.to_i64s().ok()).ok_or(Refused::NoRule(" with sizes that are not constant"))
}

fn depth_to_space(b: &mut Builder, at: &At<'_>, op: &op::DepthToSpace) -> Result<ValueId, Refused> {
    let dy = at.dy()?;
    let depth = b.node(op::SpaceToDepth { blocksize: op.blocksize }, &[dy]);
    if op.mode != "CRD" {
        return Ok(depth);
    }
    // Channels came as [block, channel] and are to be [channel, block].
    let x = at.input(0)?;
    let shape = dims(&b.graph, x)?;
    let known = |i: usize| shape.get(i).and_then(Dim::known).ok_or(Refused::Shape(x));
    let (c, h, w) = (known(1)? as i64, known(2)? as i64, known(3)? as i64);
    let blocks = op.blocksize * op.blocksize;
    let apart = b.ints(&[-1, blocks, c / blocks.max(1), h, w]);
    let apart = b.node(op::Reshape::default(), &[depth, apart]);
    let turned = b.node(op::Transpose { perm: Some(vec![0, 2, 1, 3, 4]) }, &[apart]);
    b.reshape_like(turned, x)
}

fn resize(b: &mut Builder, at: &At<'_>, op: &op::Resize) -> Result<ValueId, Refused> {
    let grad = op::ResizeGrad {
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
    let mut inputs = vec![Some(at.dy()?)];
    inputs.extend(at.inputs.iter().copied());
    Ok(b.node_of(grad, &inputs))
}

/// As the `Resize` that replaced it.
fn upsample(b: &mut Builder, at: &At<'_>, op: &op::Upsample) -> Result<ValueId, Refused> {
    let scales = at.inputs.get(1).copied().flatten();
    if scales.is_none() {
        return Err(Refused::NoRule(" with scales as an attribute"));
    }
    let grad = op::ResizeGrad {
        coordinate_transformation_mode: "asymmetric".to_owned(),
        nearest_mode: "floor".to_owned(),
        mode: op.mode.clone(),
        ..op::ResizeGrad::default()
    };
    Ok(b.node_of(grad, &[Some(at.dy()?), Some(at.input(0)?), scales]))
}
