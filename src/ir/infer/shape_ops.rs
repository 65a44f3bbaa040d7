//! Operators that move elements without looking at them.

use super::contents::Elem;
use super::elementwise::broadcast;
use super::rules::{At, Fail, MAX_RANK, Types, axes, axis, one};
use super::{merge_dims, shape_words};
use crate::dim::{Dim, Shape};
use crate::op::{ConstantOfShape, Reshape, Shape as ShapeOp};
use crate::tensor::DType;
use std::ops::Range;

/// The shape that a slot asks for: from its elements, or only its rank from the slot's length.
fn asked(at: &At<'_>, slot: usize) -> Option<Vec<Elem>> {
    at.elems(slot).map(<[Elem]>::to_vec).or_else(|| Some(vec![Elem::Unknown; at.length(slot)?]))
}

/// The shape is an attribute before opset 5 and input 1 since.
pub(super) fn reshape(at: &At<'_>, op: &Reshape) -> Types {
    let dtype = at.dtype(0);
    let given = op.shape.as_ref().map(|s| s.iter().map(|&i| Elem::Int(i)).collect());
    let Some(target) = given.or_else(|| asked(at, 1)) else { return one(dtype, None) };
    one(dtype, Some(reshaped(at.shape(0), &target, op.allowzero != 0)?))
}

/// `0` copies, `-1` takes what is left.
pub(super) fn reshaped(from: Option<&[Dim]>, target: &[Elem], allow_zero: bool) -> Result<Shape, Fail> {
    let words = |shape: &[Dim]| shape_words(shape);
    let mut out = Shape::with_capacity(target.len());
    let mut open = vec![];
    let mut n_left_over = 0;
    for (i, e) in target.iter().enumerate() {
        out.push(match e {
            Elem::Int(0) if !allow_zero => match from {
                None => Dim::Unknown,
                Some(from) => from.get(i).cloned().ok_or_else(|| {
                    Fail::shape(format!("dimension {i} is to be copied, but the input is {}", words(from)))
                })?,
            },
            Elem::Int(-1) => {
                n_left_over += 1;
                open.push(i);
                Dim::Unknown
            }
            Elem::Int(n) => usize::try_from(*n)
                .map(Dim::Known)
                .map_err(|_| Fail::shape(format!("{n} is no dimension of a shape")))?,
            Elem::Sym(d) => d.clone(),
            Elem::Float(_) | Elem::Unknown => {
                open.push(i);
                Dim::Unknown
            }
        });
    }
    if n_left_over > 1 {
        return Err(Fail::shape("more than one dimension of the shape is -1"));
    }
    let Some(from) = from else { return Ok(out) };
    match open.as_slice() {
        [] => {
            let count = |shape: &[Dim]| shape.iter().fold(Dim::Known(1), |p, d| p.mul(d));
            if count(from).differs(&count(&out)) {
                let (from, out) = (words(from), words(&out));
                return Err(Fail::shape(format!("{from} has not as many elements as {out}")));
            }
        }
        &[hole] => {
            let others: Shape =
                out.iter().enumerate().filter(|(i, _)| *i != hole).map(|(_, d)| d.clone()).collect();
            let left = left_over(from, &others).map_err(|()| {
                let (from, others) = (words(from), words(&others));
                Fail::shape(format!("the elements of {from} do not divide by those of {others}"))
            })?;
            if let Some(place) = out.get_mut(hole) {
                *place = left;
            }
        }
        _ => {}
    }
    Ok(out)
}

/// `Π from / Π others`, where it can be told; an error if it is certainly no integer.
fn left_over(from: &[Dim], others: &[Dim]) -> Result<Dim, ()> {
    let product = |dims: &[Dim]| dims.iter().filter_map(Dim::known).try_fold(1usize, usize::checked_mul);
    let symbols = |dims: &[Dim]| dims.iter().filter(|d| d.known().is_none()).cloned().collect::<Vec<_>>();
    let (mut up, down) = (symbols(from), symbols(others));
    for symbol in &down {
        match up.iter().position(|s| s.equals(symbol)) {
            Some(i) => {
                up.remove(i);
            }
            None => return Ok(Dim::Unknown),
        }
    }
    let (Some(n), Some(d)) = (product(from), product(others)) else { return Ok(Dim::Unknown) };
    if d == 0 {
        return Ok(Dim::Unknown);
    }
    match up.as_slice() {
        [] if n % d == 0 => Ok(Dim::Known(n / d)),
        [] => Err(()),
        [symbol] => {
            let common = gcd(n, d);
            let (Ok(n), Ok(d)) = (i64::try_from(n / common), i64::try_from(d / common)) else {
                return Ok(Dim::Unknown);
            };
            Ok(symbol.mul_int(n).floor_div(d))
        }
        _ if n == 0 => Ok(Dim::Known(0)),
        _ => Ok(Dim::Unknown),
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a.max(1) } else { gcd(b, a % b) }
}

pub(super) fn flatten(at: &At<'_>, given: i64) -> Types {
    let dtype = at.dtype(0);
    let count = |dims: &[Dim]| dims.iter().fold(Dim::Known(1), |p, d| p.mul(d));
    let Some(shape) = at.shape(0) else { return one(dtype, Some(vec![Dim::Unknown; 2])) };
    // Behind the last axis is a place to cut, too.
    let cut = match usize::try_from(given) {
        Ok(cut) if cut == shape.len() => cut,
        _ => axis(given, shape.len())?,
    };
    let (rows, columns) = shape.split_at(cut);
    one(dtype, Some(vec![count(rows), count(columns)]))
}

pub(super) fn transpose(at: &At<'_>, perm: Option<&[i64]>) -> Types {
    let dtype = at.dtype(0);
    let perm = match (perm, at.shape(0)) {
        (None, None) => return one(dtype, None),
        (None, Some(shape)) => (0..shape.len() as i64).rev().collect(),
        (Some(perm), shape) => {
            let mut sorted = perm.to_vec();
            sorted.sort_unstable();
            let rank = shape.map_or(perm.len(), <[Dim]>::len);
            if perm.len() != rank || sorted.iter().enumerate().any(|(i, &p)| i as i64 != p) {
                return Err(Fail::shape(format!("perm {perm:?} is no permutation of the {rank} axes")));
            }
            perm.to_vec()
        }
    };
    let Some(shape) = at.shape(0) else {
        return one(dtype, Some(vec![Dim::Unknown; perm.len()]));
    };
    let moved = perm.iter().map(|&p| usize::try_from(p).ok().and_then(|p| shape.get(p)).cloned());
    one(dtype, Some(moved.map(|d| d.unwrap_or(Dim::Unknown)).collect()))
}

/// Axes are an attribute before opset 13 and input 1 since; without them every 1 goes.
pub(super) fn squeeze(at: &At<'_>, given: Option<&[i64]>) -> Types {
    let dtype = at.dtype(0);
    let Some(shape) = at.shape(0) else { return one(dtype, None) };
    let given = given.map(<[i64]>::to_vec).or_else(|| at.ints(1));
    let gone = match given {
        Some(list) => {
            let gone = axes(&list, shape.len())?;
            if let Some(&wrong) =
                gone.iter().find(|&&a| shape.get(a).is_some_and(|d| d.differs(&Dim::Known(1))))
            {
                return Err(Fail::shape(format!("axis {wrong} of {} is not 1", shape_words(shape))));
            }
            gone
        }
        None if at.has(1) => {
            let rank = at.length(1).and_then(|n| shape.len().checked_sub(n));
            return one(dtype, rank.map(|r| vec![Dim::Unknown; r]));
        }
        // A symbol might be 1 and go, so not even the rank is known.
        None if shape.iter().any(|d| d.known().is_none()) => return one(dtype, None),
        None => (0..shape.len()).filter(|&a| shape.get(a) == Some(&Dim::Known(1))).collect(),
    };
    let kept = shape.iter().enumerate().filter(|(i, _)| !gone.contains(i)).map(|(_, d)| d.clone());
    one(dtype, Some(kept.collect()))
}

pub(super) fn unsqueeze(at: &At<'_>, given: Option<&[i64]>) -> Types {
    let dtype = at.dtype(0);
    let Some(shape) = at.shape(0) else { return one(dtype, None) };
    let Some(given) = given.map(<[i64]>::to_vec).or_else(|| at.ints(1)) else {
        return one(dtype, at.length(1).map(|n| vec![Dim::Unknown; shape.len() + n]));
    };
    let rank = shape.len() + given.len();
    let new = axes(&given, rank)?;
    if new.len() != given.len() {
        return Err(Fail::shape(format!("axes {given:?} name one axis twice")));
    }
    let mut old = shape.iter().cloned();
    let out =
        (0..rank).map(|a| if new.contains(&a) { Dim::Known(1) } else { old.next().unwrap_or(Dim::Unknown) });
    one(dtype, Some(out.collect()))
}

pub(super) fn expand(at: &At<'_>) -> Types {
    let dtype = at.dtype(0);
    let (Some(shape), Some(target)) = (at.shape(0), asked(at, 1)) else { return one(dtype, None) };
    let target: Shape = target.iter().map(Elem::dim).collect();
    let out = broadcast(shape, &target).ok_or_else(|| {
        let (shape, target) = (shape_words(shape), shape_words(&target));
        Fail::shape(format!("{shape} cannot be broadcast to {target}"))
    })?;
    one(dtype, Some(out))
}

pub(super) fn tile(at: &At<'_>) -> Types {
    let dtype = at.dtype(0);
    let Some(shape) = at.shape(0) else { return one(dtype, None) };
    let repeats = if at.opset >= 6 { at.elems(1) } else { None };
    let Some(repeats) = repeats else { return one(dtype, Some(vec![Dim::Unknown; shape.len()])) };
    if repeats.len() != shape.len() {
        let (n, shape) = (repeats.len(), shape_words(shape));
        return Err(Fail::shape(format!("{n} repeats for an input of shape {shape}")));
    }
    one(dtype, Some(shape.iter().zip(repeats).map(|(d, r)| d.mul(&r.dim())).collect()))
}

pub(super) fn gather(at: &At<'_>, given: i64) -> Types {
    let dtype = at.dtype(0);
    let (Some(data), Some(indices)) = (at.shape(0), at.shape(1)) else { return one(dtype, None) };
    let along = axis(given, data.len())?;
    let before = data.iter().take(along);
    let after = data.iter().skip(along + 1);
    let out: Shape = before.chain(indices).chain(after).cloned().collect();
    one(dtype, (out.len() <= MAX_RANK).then_some(out))
}

pub(super) fn concat(at: &At<'_>, given: i64) -> Types {
    let slots = 0..at.n_slots();
    let dtype = at.same_dtype(slots.clone())?;
    let known: Vec<&[Dim]> = slots.clone().filter_map(|s| at.shape(s)).collect();
    let Some(rank) = known.first().map(|s| s.len()) else { return one(dtype, None) };
    let along = axis(given, rank)?;
    let mut out = vec![Dim::Unknown; rank];
    let mut length = Dim::Known(0);
    for shape in &known {
        let merged: Option<Shape> = (shape.len() == rank)
            .then(|| {
                out.iter()
                    .zip(*shape)
                    .enumerate()
                    .map(|(i, (a, b))| if i == along { Some(Dim::Unknown) } else { merge_dims(a, b) })
                    .collect()
            })
            .flatten();
        out = merged.ok_or_else(|| {
            let all: Vec<String> = known.iter().map(|s| shape_words(s)).collect();
            Fail::shape(format!("the inputs must agree in all axes but {along}, found {}", all.join(", ")))
        })?;
        length = length.add(shape.get(along).unwrap_or(&Dim::Unknown));
    }
    if known.len() == at.n_slots()
        && let Some(place) = out.get_mut(along)
    {
        *place = length;
    }
    one(dtype, Some(out))
}

/// The axes that a `Shape` reports.
pub(super) fn shape_range(rank: usize, op: &ShapeOp) -> Range<usize> {
    let place = |i: i64| {
        let r = rank as i64;
        (if i < 0 { i.saturating_add(r) } else { i }).clamp(0, r) as usize
    };
    let (start, end) = (place(op.start), op.end.map_or(rank, place));
    start..end.max(start)
}

pub(super) fn shape(at: &At<'_>, op: &ShapeOp) -> Types {
    let n = at.shape(0).map_or(Dim::Unknown, |s| Dim::Known(shape_range(s.len(), op).len()));
    one(Some(DType::I64), Some(vec![n]))
}

pub(super) fn constant_of_shape(at: &At<'_>, op: &ConstantOfShape) -> Types {
    let dtype = op.value.as_ref().map_or(DType::F32, crate::tensor::Tensor::dtype);
    let shape = asked(at, 0).map(|dims| dims.iter().map(Elem::dim).collect());
    one(Some(dtype), shape)
}

fn blocks(at: &At<'_>, size: i64) -> Result<Option<[Dim; 4]>, Fail> {
    if size < 1 {
        return Err(Fail::shape(format!("attribute `blocksize` must be positive, found {size}")));
    }
    match at.shape(0) {
        None => Ok(None),
        Some([n, c, h, w]) => Ok(Some([n.clone(), c.clone(), h.clone(), w.clone()])),
        Some(other) => Err(Fail::shape(format!("the input must have rank 4, found {}", shape_words(other)))),
    }
}

fn whole(dim: &Dim, size: i64, what: &str) -> Result<Dim, Fail> {
    match dim.known().and_then(|d| i64::try_from(d).ok()) {
        Some(d) if d % size != 0 => Err(Fail::shape(format!("{d} {what} do not divide by {size}"))),
        _ => Ok(dim.floor_div(size)),
    }
}

pub(super) fn depth_to_space(at: &At<'_>, size: i64) -> Types {
    let Some([n, c, h, w]) = blocks(at, size)? else { return one(at.dtype(0), None) };
    let c = whole(&c, size.saturating_mul(size), "channels")?;
    one(at.dtype(0), Some(vec![n, c, h.mul_int(size), w.mul_int(size)]))
}

pub(super) fn space_to_depth(at: &At<'_>, size: i64) -> Types {
    let Some([n, c, h, w]) = blocks(at, size)? else { return one(at.dtype(0), None) };
    let (h, w) = (whole(&h, size, "rows")?, whole(&w, size, "columns")?);
    one(at.dtype(0), Some(vec![n, c.mul_int(size.saturating_mul(size)), h, w]))
}
