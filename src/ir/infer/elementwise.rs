//! Operators that keep shapes or broadcast them.

use super::rules::{At, Fail, Types, axis, one, ty};
use super::{merge_dims, shape_words};
use crate::dim::{Dim, Shape};
use crate::op::{BatchNormalization, Op};
use crate::tensor::DType;

/// NumPy broadcasting of two shapes; `None` if they do not go together.
pub(super) fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Shape> {
    let rank = a.len().max(b.len());
    let one = Dim::Known(1);
    let dim = |s: &[Dim], i: usize| {
        (i + s.len()).checked_sub(rank).and_then(|i| s.get(i).cloned()).unwrap_or(one.clone())
    };
    (0..rank).map(|i| broadcast_dims(&dim(a, i), &dim(b, i))).collect()
}

fn broadcast_dims(a: &Dim, b: &Dim) -> Option<Dim> {
    match (a, b) {
        (Dim::Known(1), d) | (d, Dim::Known(1)) => Some(d.clone()),
        (Dim::Known(m), Dim::Known(n)) => (m == n).then(|| a.clone()),
        // The other one is 1 or the same, or the model is wrong.
        (n @ Dim::Known(_), _) | (_, n @ Dim::Known(_)) => Some(n.clone()),
        _ if a.equals(b) => Some(a.clone()),
        _ => Some(Dim::Unknown),
    }
}

fn mismatch(a: &[Dim], b: &[Dim]) -> Fail {
    Fail::shape(format!("the shapes {} and {} cannot be broadcast to one", shape_words(a), shape_words(b)))
}

fn binary_shape(at: &At<'_>, legacy: Option<i64>, legacy_axis: Option<i64>) -> Result<Option<Shape>, Fail> {
    let (Some(a), Some(b)) = (at.shape(0), at.shape(1)) else { return Ok(None) };
    if at.opset >= 7 || legacy.unwrap_or(0) == 0 {
        return broadcast(a, b).map(Some).ok_or_else(|| mismatch(a, b));
    }
    // Until opset 6 the second operand is laid along the first, from `axis` on, by default at the end.
    let start = match legacy_axis {
        Some(given) => axis(given, a.len())?,
        None => a.len().checked_sub(b.len()).ok_or_else(|| mismatch(a, b))?,
    };
    let window = a.get(start..start.saturating_add(b.len())).ok_or_else(|| mismatch(a, b))?;
    if window.iter().zip(b).any(|(a, b)| *b != Dim::Known(1) && a.differs(b)) {
        return Err(mismatch(a, b));
    }
    Ok(Some(a.to_vec()))
}

/// `broadcast` and `axis` are the attributes of opset 6 and before.
pub(super) fn binary(at: &At<'_>, legacy: Option<i64>, legacy_axis: Option<i64>) -> Types {
    // Since opset 12 a power takes an exponent of any type.
    let dtype = if matches!(at.op, Op::Pow(_)) { at.dtype(0) } else { at.same_dtype(0..2)? };
    one(dtype, binary_shape(at, legacy, legacy_axis)?)
}

pub(super) fn compare(at: &At<'_>, legacy: Option<i64>, legacy_axis: Option<i64>) -> Types {
    at.same_dtype(0..2)?;
    one(Some(DType::Bool), binary_shape(at, legacy, legacy_axis)?)
}

pub(super) fn variadic(at: &At<'_>) -> Types {
    let dtype = at.same_dtype(0..at.n_slots())?;
    one(dtype, broadcast_slots(at, 0..at.n_slots())?)
}

pub(super) fn choose(at: &At<'_>) -> Types {
    let dtype = at.same_dtype(1..3)?;
    one(dtype, broadcast_slots(at, 0..3)?)
}

fn broadcast_slots(at: &At<'_>, slots: std::ops::Range<usize>) -> Result<Option<Shape>, Fail> {
    let mut all: Option<Shape> = None;
    for slot in slots {
        let Some(shape) = at.shape(slot) else { return Ok(None) };
        all = Some(match all {
            None => shape.to_vec(),
            Some(so_far) => broadcast(&so_far, shape).ok_or_else(|| mismatch(&so_far, shape))?,
        });
    }
    Ok(all)
}

pub(super) fn softmax(at: &At<'_>, given: Option<i64>) -> Types {
    if let (Some(given), Some(shape)) = (given, at.shape(0)) {
        axis(given, shape.len())?;
    }
    Ok(vec![at.same()])
}

pub(super) fn dropout(at: &At<'_>) -> Types {
    let x = at.same();
    // The mask had the element type of the data before opset 10.
    let mask = ty(if at.opset >= 10 { Some(DType::Bool) } else { x.dtype }, x.shape.clone());
    Ok(vec![x, mask])
}

/// Checks one parameter vector per channel and returns the number of channels.
fn per_channel(at: &At<'_>, slots: std::ops::Range<usize>) -> Result<Dim, Fail> {
    // A tensor without a channel axis has one channel.
    let mut c = match at.shape(0) {
        Some([_, c, ..]) => c.clone(),
        Some(_) => Dim::Known(1),
        None => Dim::Unknown,
    };
    for slot in slots {
        let Some(shape) = at.shape(slot) else { continue };
        let merged = match shape {
            [n] => merge_dims(&c, n),
            _ => None,
        };
        c = merged.ok_or_else(|| {
            let found = shape_words(shape);
            Fail::shape(format!("input {slot} must have one element for each of {c} channels, found {found}"))
        })?;
    }
    Ok(c)
}

pub(super) fn batch_norm(at: &At<'_>, op: &BatchNormalization) -> Types {
    let x = at.same();
    // `spatial = 0` (until opset 8) had statistics of their own for every position.
    let parameter = if op.spatial == 0 && at.opset < 9 {
        at.shape(1).map(<[Dim]>::to_vec)
    } else {
        Some(vec![per_channel(at, 1..5)?])
    };
    let n_more = at.n_outputs.saturating_sub(1);
    let statistic = ty(at.dtype(3).or(x.dtype), parameter);
    Ok(std::iter::once(with_channels(x, statistic.shape.as_deref(), op.spatial))
        .chain(std::iter::repeat_n(statistic, n_more))
        .collect())
}

/// The parameters may know the number of channels better than the input does.
fn with_channels(
    mut x: crate::graph::ValueType,
    parameter: Option<&[Dim]>,
    spatial: i64,
) -> crate::graph::ValueType {
    if let (Some([_, c, ..]), Some([n]), true) = (x.shape.as_deref_mut(), parameter, spatial != 0)
        && let Some(merged) = merge_dims(c, n)
    {
        *c = merged;
    }
    x
}

pub(super) fn instance_norm(at: &At<'_>) -> Types {
    let c = per_channel(at, 1..3)?;
    Ok(vec![with_channels(at.same(), Some(&[c]), 1)])
}
