//! Reductions along axes.

use super::rules::{At, Types, axes, axis, one};
use crate::dim::{Dim, Shape};
use crate::tensor::DType;

/// Axes are an attribute or, since opset 13 (`ReduceSum`) and 18 (the others), input 1.
pub(super) fn reduce(at: &At<'_>, given: Option<&[i64]>, keepdims: i64, noop_with_empty_axes: i64) -> Types {
    let dtype = at.dtype(0);
    let Some(shape) = at.shape(0) else { return one(dtype, None) };
    let along = match given.map(<[i64]>::to_vec).or_else(|| at.ints(1)) {
        Some(list) => list,
        None if !at.has(1) => vec![],
        None => {
            let kept = keepdims != 0;
            return one(dtype, kept.then(|| vec![Dim::Unknown; shape.len()]));
        }
    };
    let along = match along.as_slice() {
        [] if noop_with_empty_axes != 0 => return Ok(vec![at.same()]),
        [] => (0..shape.len()).collect(),
        list => axes(list, shape.len())?,
    };
    one(dtype, Some(reduced(shape, &along, keepdims != 0)))
}

pub(super) fn arg_max(at: &At<'_>, along: i64, keepdims: i64) -> Types {
    let Some(shape) = at.shape(0) else { return one(Some(DType::I64), None) };
    let along = axis(along, shape.len())?;
    one(Some(DType::I64), Some(reduced(shape, &[along], keepdims != 0)))
}

fn reduced(shape: &[Dim], along: &[usize], keep: bool) -> Shape {
    let dims = shape.iter().enumerate();
    dims.filter_map(|(i, d)| match along.contains(&i) {
        true => keep.then_some(Dim::Known(1)),
        false => Some(d.clone()),
    })
    .collect()
}
