//! Operators that move elements without looking at them: exact for every element type.

use super::walk::{Walk, broadcast, broadcast_strides, dense_strides};
use super::{Arguments, EvalError, axes, axis};
use basisopt_ir::tensor::n_elements;
use basisopt_ir::{DType, Op, Tensor, op};
use std::ops::Range;

type Outcome = Result<Tensor, EvalError>;

pub(super) fn evaluate(op: &Op, arguments: &Arguments<'_>) -> Outcome {
    match op {
        Op::Reshape(op) => reshape(op, arguments),
        Op::Flatten(op) => flatten(op, arguments.need(0)?),
        Op::Squeeze(op) => squeeze(op, arguments),
        Op::Unsqueeze(op) => unsqueeze(op, arguments),
        Op::Transpose(op) => transpose(op, arguments),
        Op::Concat(op) => concat(op, arguments),
        Op::Slice(op) => slice(op, arguments),
        Op::Gather(op) => gather(op, arguments),
        Op::Expand(_) => expand(arguments),
        Op::Tile(_) => tile(arguments),
        Op::Pad(op) => pad(op, arguments),
        Op::ConstantOfShape(op) => constant_of_shape(op, arguments),
        _ => Err(EvalError::Unsupported("this operator")),
    }
}

fn malformed<T>(what: String) -> Result<T, EvalError> {
    Err(EvalError::Malformed(what))
}

/// Bytes of one element; moving packed elements is not supported.
fn width(dtype: DType) -> Result<usize, EvalError> {
    match dtype.n_bits() {
        bits if bits > 0 && bits % 8 == 0 => Ok(bits / 8),
        _ => Err(EvalError::Unsupported("this element type")),
    }
}

/// A dense copy of a strided view.
fn copy(
    t: &Tensor,
    view: &[usize],
    strides: &[isize],
    offset: isize,
    arguments: &Arguments<'_>,
) -> Result<Tensor, EvalError> {
    fn gather<const N: usize>(bytes: &[u8], walk: Walk<'_>) -> Vec<u8> {
        let elements = bytes.as_chunks::<N>().0;
        walk.map(|i| elements[i]).collect::<Vec<_>>().into_flattened()
    }
    arguments.setting.admit(t.dtype(), view)?;
    let bytes = t.to_bytes()?;
    let walk = Walk::new(view, strides, offset);
    let moved = match width(t.dtype())? {
        1 => gather::<1>(&bytes, walk),
        2 => gather::<2>(&bytes, walk),
        4 => gather::<4>(&bytes, walk),
        8 => gather::<8>(&bytes, walk),
        16 => gather::<16>(&bytes, walk),
        _ => return Err(EvalError::Unsupported("this element type")),
    };
    Ok(Tensor::from_bytes(t.dtype(), view.to_vec(), moved.into())?)
}

/// The axes of which a `Shape` of a tensor of this rank gives the sizes.
pub(crate) fn shape_range(op: &op::Shape, rank: usize) -> Range<usize> {
    let from_front = |v: i64| if v < 0 { v.saturating_add(rank as i64) } else { v };
    let bound = |v: i64| from_front(v).clamp(0, rank as i64) as usize;
    let (start, end) = (bound(op.start), op.end.map_or(rank, bound));
    start..end.max(start)
}

fn reshape(op: &op::Reshape, arguments: &Arguments<'_>) -> Outcome {
    let t = arguments.need(0)?;
    let Some(asked) = arguments.ints_or(&op.shape, 1)? else {
        return malformed("the new shape is missing".to_owned());
    };
    let mut rest = None;
    let mut shape = Vec::with_capacity(asked.len());
    for (i, &d) in asked.iter().enumerate() {
        shape.push(match d {
            0 if op.allowzero == 0 => match t.shape().get(i) {
                Some(&d) => d,
                None => return malformed(format!("{asked:?} keeps an axis that {:?} lacks", t.shape())),
            },
            -1 if rest.is_none() => {
                rest = Some(i);
                1
            }
            d => match usize::try_from(d) {
                Ok(d) => d,
                Err(_) => return malformed(format!("{asked:?} is not a shape")),
            },
        });
    }
    if let Some(i) = rest {
        let known = n_elements(&shape).unwrap_or(0);
        if known == 0 || t.len() % known != 0 {
            return malformed(format!("{:?} cannot be reshaped to {asked:?}", t.shape()));
        }
        shape[i] = t.len() / known;
    }
    arguments.setting.admit(t.dtype(), &shape)?;
    Ok(t.reshaped(shape)?)
}

fn flatten(op: &op::Flatten, t: &Tensor) -> Outcome {
    let rank = t.shape().len() as i64;
    let at = if op.axis < 0 { op.axis.saturating_add(rank) } else { op.axis };
    if !(0..=rank).contains(&at) {
        return malformed(format!("axis {} of a tensor of rank {rank}", op.axis));
    }
    let (front, back) = t.shape().split_at(at as usize);
    let product = |dims: &[usize]| n_elements(dims).unwrap_or(0);
    Ok(t.reshaped(vec![product(front), product(back)])?)
}

fn squeeze(op: &op::Squeeze, arguments: &Arguments<'_>) -> Outcome {
    let t = arguments.need(0)?;
    let rank = t.shape().len();
    let gone = match arguments.ints_or(&op.axes, 1)? {
        Some(given) => axes(&given, rank)?,
        None => (0..rank).filter(|&a| t.shape()[a] == 1).collect(),
    };
    if let Some(&a) = gone.iter().find(|&&a| t.shape()[a] != 1) {
        return malformed(format!("axis {a} of {:?} is not 1", t.shape()));
    }
    Ok(t.reshaped((0..rank).filter(|a| !gone.contains(a)).map(|a| t.shape()[a]).collect())?)
}

fn unsqueeze(op: &op::Unsqueeze, arguments: &Arguments<'_>) -> Outcome {
    let t = arguments.need(0)?;
    let Some(given) = arguments.ints_or(&op.axes, 1)? else {
        return malformed("the axes are missing".to_owned());
    };
    let rank = t.shape().len() + given.len();
    let new = axes(&given, rank)?;
    let mut old = t.shape().iter();
    let shape = (0..rank).map(|a| if new.contains(&a) { 1 } else { old.next().copied().unwrap_or(1) });
    Ok(t.reshaped(shape.collect())?)
}

fn transpose(op: &op::Transpose, arguments: &Arguments<'_>) -> Outcome {
    let t = arguments.need(0)?;
    let rank = t.shape().len();
    let perm = match &op.perm {
        Some(perm) if perm.len() == rank => axes(perm, rank)?,
        Some(perm) => return malformed(format!("the permutation {perm:?} of {rank} axes")),
        None => (0..rank).rev().collect(),
    };
    let strides = dense_strides(t.shape());
    let view: Vec<usize> = perm.iter().map(|&a| t.shape()[a]).collect();
    let strides: Vec<isize> = perm.iter().map(|&a| strides[a]).collect();
    copy(t, &view, &strides, 0, arguments)
}

fn concat(op: &op::Concat, arguments: &Arguments<'_>) -> Outcome {
    let tensors = arguments.all()?;
    let first = tensors[0];
    let at = axis(op.axis, first.shape().len())?;
    let mut shape = first.shape().to_vec();
    shape[at] = 0;
    for t in &tensors {
        let fits = t.dtype() == first.dtype()
            && t.shape().len() == shape.len()
            && (0..shape.len()).all(|a| a == at || t.shape()[a] == shape[a]);
        if !fits {
            return malformed(format!("{:?} and {:?} cannot be joined", first.shape(), t.shape()));
        }
        shape[at] = shape[at].saturating_add(t.shape()[at]);
    }
    let n = arguments.setting.admit(first.dtype(), &shape)?;
    let width = width(first.dtype())?;
    let parts = tensors
        .iter()
        .map(|t| Ok((t.to_bytes()?, n_elements(&t.shape()[at..]).unwrap_or(0) * width)))
        .collect::<Result<Vec<_>, EvalError>>()?;
    // Without elements the rows may be more than anybody can count.
    let n_rows = if n == 0 { 0 } else { n_elements(&shape[..at]).unwrap_or(0) };
    let mut bytes = Vec::with_capacity(n * width);
    for row in 0..n_rows {
        parts.iter().for_each(|(part, length)| bytes.extend_from_slice(&part[row * length..][..*length]));
    }
    Ok(Tensor::from_bytes(first.dtype(), shape, bytes.into())?)
}

/// A split cuts into as many parts as the node has outputs.
pub(super) fn split(op: &op::Split, arguments: &Arguments<'_>) -> Result<Vec<Tensor>, EvalError> {
    let t = arguments.need(0)?;
    let at = axis(op.axis, t.shape().len())?;
    let (size, n) = (t.shape()[at], arguments.setting.n_outputs);
    arguments.setting.admit(t.dtype(), t.shape())?;
    let lengths: Vec<usize> = match arguments.ints_or(&op.split, 1)? {
        Some(given) => given.iter().map(|&l| usize::try_from(l).unwrap_or(usize::MAX)).collect(),
        // The last part is the smaller one where the axis does not divide.
        None if n > 0 => {
            let each = size.div_ceil(n);
            (0..n).map(|i| each.min(size.saturating_sub(i * each))).collect()
        }
        None => vec![],
    };
    if lengths.len() != n || lengths.iter().fold(0usize, |a, &b| a.saturating_add(b)) != size {
        return malformed(format!("an axis of {size} cannot be split into {n} parts of {lengths:?}"));
    }
    let strides = dense_strides(t.shape());
    let mut start = 0;
    let mut parts = Vec::with_capacity(n);
    for length in lengths {
        let mut view = t.shape().to_vec();
        view[at] = length;
        parts.push(copy(t, &view, &strides, strides[at].wrapping_mul(start as isize), arguments)?);
        start += length;
    }
    Ok(parts)
}

fn slice(op: &op::Slice, arguments: &Arguments<'_>) -> Outcome {
    let t = arguments.need(0)?;
    let rank = t.shape().len();
    let (Some(starts), Some(ends)) = (arguments.ints_or(&op.starts, 1)?, arguments.ints_or(&op.ends, 2)?)
    else {
        return malformed("the bounds are missing".to_owned());
    };
    let along = match arguments.ints_or(&op.axes, 3)? {
        Some(given) => axes(&given, rank)?,
        None => (0..starts.len()).collect(),
    };
    let steps = arguments.ints(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    let alike = [ends.len(), along.len(), steps.len()].iter().all(|&n| n == starts.len());
    if !alike || along.iter().any(|&a| a >= rank) || steps.contains(&0) {
        return malformed(format!("a slice {starts:?} to {ends:?} by {steps:?} along {along:?}"));
    }
    let (mut view, mut strides, mut offset) = (t.shape().to_vec(), dense_strides(t.shape()), 0isize);
    for (i, &a) in along.iter().enumerate() {
        let (start, length) = slice_bounds(t.shape()[a], starts[i], ends[i], steps[i]);
        view[a] = length;
        // Strides of an empty tensor are no distances and may overflow; nobody walks them.
        offset = strides[a].wrapping_mul(start as isize).wrapping_add(offset);
        strides[a] = if length < 2 { 0 } else { strides[a].wrapping_mul(steps[i] as isize) };
    }
    copy(t, &view, &strides, offset, arguments)
}

/// First index and number of indices of `start:end:step` along an axis, by the rules of ONNX.
fn slice_bounds(dim: usize, start: i64, end: i64, step: i64) -> (usize, usize) {
    let dim = dim as i64;
    if dim == 0 {
        return (0, 0);
    }
    let from_front = |v: i64| if v < 0 { v.saturating_add(dim) } else { v };
    let (start, distance) = if step > 0 {
        let start = from_front(start).clamp(0, dim);
        (start, from_front(end).clamp(0, dim) - start)
    } else {
        let start = from_front(start).clamp(0, dim - 1);
        (start, start - from_front(end).clamp(-1, dim - 1))
    };
    let length = if distance > 0 { (distance as u64).div_ceil(step.unsigned_abs()) } else { 0 };
    if length == 0 { (0, 0) } else { (start as usize, length as usize) }
}

fn gather(op: &op::Gather, arguments: &Arguments<'_>) -> Outcome {
    let (t, indices) = (arguments.need(0)?, arguments.need(1)?);
    let at = axis(op.axis, t.shape().len())?;
    let dim = t.shape()[at];
    let picks = indices
        .to_i64s()?
        .into_iter()
        .map(|i| {
            let from_front = if i < 0 { i.saturating_add(dim as i64) } else { i };
            usize::try_from(from_front)
                .ok()
                .filter(|&p| p < dim)
                .ok_or_else(|| EvalError::Malformed(format!("index {i} into an axis of {dim}")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let shape = [&t.shape()[..at], indices.shape(), &t.shape()[at + 1..]].concat();
    let n = arguments.setting.admit(t.dtype(), &shape)?;
    let width = width(t.dtype())?;
    let bytes = t.to_bytes()?;
    let length = n_elements(&t.shape()[at + 1..]).unwrap_or(0) * width;
    let n_rows = if n == 0 { 0 } else { n_elements(&t.shape()[..at]).unwrap_or(0) };
    let mut out = Vec::with_capacity(n * width);
    for row in 0..n_rows {
        picks.iter().for_each(|p| out.extend_from_slice(&bytes[(row * dim + p) * length..][..length]));
    }
    Ok(Tensor::from_bytes(t.dtype(), shape, out.into())?)
}

fn expand(arguments: &Arguments<'_>) -> Outcome {
    let t = arguments.need(0)?;
    let asked = arguments.ints(1)?.unwrap_or_default();
    let Ok(asked) = asked.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>() else {
        return malformed(format!("{asked:?} is not a shape"));
    };
    let Some(shape) = broadcast(&[t.shape(), &asked]) else {
        return malformed(format!("{:?} cannot be expanded to {asked:?}", t.shape()));
    };
    copy(t, &shape, &broadcast_strides(t.shape(), &shape), 0, arguments)
}

fn tile(arguments: &Arguments<'_>) -> Outcome {
    let t = arguments.need(0)?;
    if arguments.setting.opset < 6 {
        return Err(EvalError::Unsupported("Tile before operator set 6"));
    }
    let repeats = arguments.ints(1)?.unwrap_or_default();
    let n_repeats: Result<Vec<usize>, _> = repeats.iter().map(|&r| usize::try_from(r)).collect();
    let Some(n_repeats) = n_repeats.ok().filter(|r| r.len() == t.shape().len()) else {
        return malformed(format!("{:?} cannot be repeated {repeats:?} times", t.shape()));
    };
    // Each axis becomes a pair: a repetition, which moves nothing, and the axis itself.
    let (mut view, mut strides, mut shape) = (vec![], vec![], vec![]);
    for ((&d, stride), r) in t.shape().iter().zip(dense_strides(t.shape())).zip(n_repeats) {
        view.extend([r, d]);
        strides.extend([0, stride]);
        shape.push(r.saturating_mul(d));
    }
    Ok(copy(t, &view, &strides, 0, arguments)?.reshaped(shape)?)
}

fn pad(op: &op::Pad, arguments: &Arguments<'_>) -> Outcome {
    let t = arguments.need(0)?;
    let rank = t.shape().len();
    let attr = if op.pads.is_some() { &op.pads } else { &op.paddings };
    let Some(given) = arguments.ints_or(attr, 1)? else {
        return malformed("the pads are missing".to_owned());
    };
    let along = match arguments.ints(3)? {
        Some(given) => axes(&given, rank)?,
        None => (0..rank).collect(),
    };
    if given.len() != 2 * along.len() {
        return malformed(format!("the pads {given:?} for {} axes", along.len()));
    }
    if op.mode != "constant" {
        return Err(EvalError::Unsupported("this padding mode"));
    }
    let width = width(t.dtype())?;
    let fill = match arguments.get(2) {
        Some(value) if value.dtype() == t.dtype() && value.len() == 1 => value.to_bytes()?,
        Some(_) => return malformed("the padding value is not one element of the same type".to_owned()),
        None => Tensor::full(t.dtype(), vec![], f64::from(op.value))?.to_bytes()?,
    };
    // A negative pad cuts. `view` is what remains of the input, `shape` what becomes of it.
    let (mut shape, mut view) = (t.shape().to_vec(), t.shape().to_vec());
    let (from_strides, mut from) = (dense_strides(t.shape()), 0isize);
    let mut before = vec![0i64; rank];
    for (i, &a) in along.iter().enumerate() {
        let (begin, end, dim) = (given[i], given[along.len() + i], t.shape()[a] as i64);
        let padded = dim.saturating_add(begin).saturating_add(end);
        let left = dim.saturating_add(begin.min(0)).saturating_add(end.min(0));
        let (Ok(padded), Ok(left)) = (usize::try_from(padded), usize::try_from(left)) else {
            return malformed(format!("the pads {given:?} cut more than there is of {:?}", t.shape()));
        };
        (shape[a], view[a], before[a]) = (padded, left, begin.max(0));
        from = from_strides[a].wrapping_mul(begin.min(0).unsigned_abs() as isize).wrapping_add(from);
    }
    let n = arguments.setting.admit(t.dtype(), &shape)?;
    let to_strides = dense_strides(&shape);
    let to = before
        .iter()
        .zip(&to_strides)
        .fold(0isize, |to, (&b, &s)| s.wrapping_mul(b as isize).wrapping_add(to));
    let bytes = t.to_bytes()?;
    let mut out = fill.repeat(n);
    for (i, o) in Walk::new(&view, &from_strides, from).zip(Walk::new(&view, &to_strides, to)) {
        out[o * width..(o + 1) * width].copy_from_slice(&bytes[i * width..(i + 1) * width]);
    }
    Ok(Tensor::from_bytes(t.dtype(), shape, out.into())?)
}

fn constant_of_shape(op: &op::ConstantOfShape, arguments: &Arguments<'_>) -> Outcome {
    let asked = arguments.ints(0)?.unwrap_or_default();
    let Ok(shape) = asked.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>() else {
        return malformed(format!("{asked:?} is not a shape"));
    };
    let (dtype, element) = match &op.value {
        Some(t) if t.len() == 1 => (t.dtype(), t.to_bytes()?),
        Some(t) => return malformed(format!("a value of shape {:?}", t.shape())),
        None => (DType::F32, bytes::Bytes::from_static(&[0; 4])),
    };
    arguments.setting.admit(dtype, &shape)?;
    Ok(Tensor::splat(dtype, shape, element)?)
}
