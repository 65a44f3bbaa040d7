//! Cutting and padding along axes.

use super::contents::Elem;
use super::rules::{At, Fail, Types, axis, one, ty};
use super::shape_words;
use crate::dim::{Dim, Shape};
use crate::op::{Pad, Slice, Split};
use std::collections::BTreeSet;

/// Exporters write "to the end" as any number from here on.
const TO_THE_END: i64 = i32::MAX as i64;

/// Axis, start, end and step of every axis that a `Slice` cuts.
pub(super) type SliceSpec = Vec<(usize, Elem, Elem, i64)>;

/// The parameters are attributes before opset 10 and inputs 1 to 4 since. `Ok(None)` if they are
/// not known.
pub(super) fn slice_spec(at: &At<'_>, op: &Slice) -> Result<Option<SliceSpec>, Fail> {
    let Some(shape) = at.shape(0) else { return Ok(None) };
    let ints = |list: &[i64]| list.iter().map(|&i| Elem::Int(i)).collect::<Vec<_>>();
    let starts = op.starts.as_deref().map(ints).or_else(|| at.elems(1).map(<[Elem]>::to_vec));
    let ends = op.ends.as_deref().map(ints).or_else(|| at.elems(2).map(<[Elem]>::to_vec));
    let (Some(starts), Some(ends)) = (starts, ends) else { return Ok(None) };
    let along = match (&op.axes, at.has(3)) {
        (Some(list), _) => list.clone(),
        (None, false) => (0..starts.len() as i64).collect(),
        (None, true) => match at.ints(3) {
            Some(list) => list,
            None => return Ok(None),
        },
    };
    let steps = if at.has(4) { at.ints(4) } else { Some(vec![1; starts.len()]) };
    let Some(steps) = steps else { return Ok(None) };
    if ends.len() != starts.len() || along.len() != starts.len() || steps.len() != starts.len() {
        let (s, e, a, t) = (starts.len(), ends.len(), along.len(), steps.len());
        return Err(Fail::shape(format!(
            "{s} starts, {e} ends, {a} axes and {t} steps; they must be as many"
        )));
    }
    if steps.contains(&0) {
        return Err(Fail::shape("a step must not be 0"));
    }
    let mut spec = SliceSpec::with_capacity(starts.len());
    for (((given, start), end), step) in along.into_iter().zip(starts).zip(ends).zip(steps) {
        spec.push((axis(given, shape.len())?, start, end, step));
    }
    Ok(Some(spec))
}

pub(super) fn slice(at: &At<'_>, op: &Slice) -> Types {
    let dtype = at.dtype(0);
    let Some(shape) = at.shape(0) else { return one(dtype, None) };
    let mut out = shape.to_vec();
    match slice_spec(at, op)? {
        Some(spec) => {
            for (axis, start, end, step) in spec {
                if let Some(dim) = out.get_mut(axis) {
                    *dim = cut(dim, &start, &end, step);
                }
            }
        }
        None => match op.axes.clone().or_else(|| at.ints(3)) {
            Some(touched) => {
                for given in touched {
                    if let Some(dim) = out.get_mut(axis(given, shape.len())?) {
                        *dim = Dim::Unknown;
                    }
                }
            }
            None => out.fill(Dim::Unknown),
        },
    }
    one(dtype, Some(out))
}

/// How many elements `start..end` by `step` picks out of `dim`.
fn cut(dim: &Dim, start: &Elem, end: &Elem, step: i64) -> Dim {
    if let (Dim::Known(n), Elem::Int(start), Elem::Int(end)) = (dim, start, end) {
        let n = *n as i128;
        let place = |i: i64, low: i128, high: i128| {
            let i = i128::from(i);
            (if i < 0 { i + n } else { i }).max(low).min(high)
        };
        let step = i128::from(step);
        let length = if step > 0 {
            place(*end, 0, n) - place(*start, 0, n)
        } else {
            place(*start, 0, n - 1) - place(*end, -1, n - 1)
        };
        let count = if length <= 0 { 0 } else { (length + step.abs() - 1) / step.abs() };
        return usize::try_from(count).map_or(Dim::Unknown, Dim::Known);
    }
    let to_the_end = match end {
        Elem::Int(e) => *e >= TO_THE_END,
        Elem::Sym(e) => e.equals(dim),
        _ => false,
    };
    if step < 0 {
        // Reversal of the whole axis; everything else depends on where the ends fall.
        let from_the_end = matches!(start, Elem::Int(s) if *s == -1 || *s >= TO_THE_END);
        let whole = from_the_end && matches!(end, Elem::Int(e) if *e <= -TO_THE_END);
        return if whole {
            step.checked_neg().map_or(Dim::Unknown, |s| dim.ceil_div(s))
        } else {
            Dim::Unknown
        };
    }
    let length = match (start, end) {
        // No axis is as long.
        (Elem::Int(s), _) if *s >= TO_THE_END => Dim::Known(0),
        (_, Elem::Int(e)) if *e <= -TO_THE_END => Dim::Known(0),
        (Elem::Int(s), _) if *s >= 0 && to_the_end => dim.add_int(-s),
        (Elem::Sym(s), _) if to_the_end => dim.sub(s),
        (Elem::Int(-1), _) if to_the_end && *dim != Dim::Unknown => Dim::Known(1),
        (Elem::Int(s), Elem::Int(e)) if *s >= 0 && *e < 0 => dim.add_int(*e).add_int(-s),
        // One element is there in every dimension; `0..100` may be less than a hundred.
        (Elem::Int(0), Elem::Int(1)) if *dim != Dim::Unknown => Dim::Known(1),
        _ => Dim::Unknown,
    };
    length.ceil_div(step)
}

/// Parts are an attribute before opset 13 and input 1 since; without them they are equal.
pub(super) fn split(at: &At<'_>, op: &Split) -> Types {
    let n_outputs = at.n_outputs;
    let dtype = at.dtype(0);
    let Some(shape) = at.shape(0) else { return Ok(vec![ty(dtype, None); n_outputs]) };
    let along = axis(op.axis, shape.len())?;
    let Some(whole) = shape.get(along) else { return Ok(vec![]) };
    let parts: Vec<Dim> = match &op.split {
        Some(list) => list.iter().map(|&n| Elem::Int(n).dim()).collect(),
        None if at.has(1) => match at.elems(1) {
            Some(elems) => elems.iter().map(Elem::dim).collect(),
            None => vec![Dim::Unknown; n_outputs],
        },
        None => equal_parts(at, whole, n_outputs)?,
    };
    if parts.len() != n_outputs {
        return Err(Fail::shape(format!(
            "it splits into {} parts, but has {n_outputs} outputs",
            parts.len()
        )));
    }
    let total = parts.iter().fold(Dim::Known(0), |sum, part| sum.add(part));
    if total.differs(whole) {
        let message =
            format!("the parts add up to {total}, but axis {along} of {} is not", shape_words(shape));
        return Err(Fail::shape(message));
    }
    let part = |dim: Dim| {
        let mut shape = shape.to_vec();
        if let Some(place) = shape.get_mut(along) {
            *place = dim;
        }
        ty(dtype, Some(shape))
    };
    Ok(parts.into_iter().map(part).collect())
}

fn equal_parts(at: &At<'_>, whole: &Dim, n: usize) -> Result<Vec<Dim>, Fail> {
    let count = i64::try_from(n).unwrap_or(i64::MAX).max(1);
    if at.opset < 18 {
        if let Dim::Known(whole) = whole
            && n > 0
            && whole % n != 0
        {
            return Err(Fail::shape(format!("{whole} elements do not split into {n} equal parts")));
        }
        return Ok(vec![whole.floor_div(count); n]);
    }
    // Since opset 18 the last part takes what is left, which must not be less than nothing.
    let part = whole.ceil_div(count);
    let rest = whole.sub(&part.mul_int(count - 1));
    let mut parts = vec![part; n];
    if let Some(last) = parts.last_mut() {
        *last = rest;
    }
    // 5 into 4: runtimes differ about 2, 2, 1, 0, and symbols may be as small.
    Ok(if whole.known().is_some() && parts.last().is_some_and(|d| *d == Dim::Unknown) {
        vec![Dim::Unknown; n]
    } else {
        parts
    })
}

/// Amounts are an attribute before opset 11 and input 1 since; input 3 may restrict the axes.
pub(super) fn pad(at: &At<'_>, op: &Pad) -> Types {
    let dtype = at.dtype(0);
    let Some(shape) = at.shape(0) else { return one(dtype, None) };
    let ints = |list: &[i64]| list.iter().map(|&i| Elem::Int(i)).collect::<Vec<_>>();
    let given = op.pads.as_deref().or(op.paddings.as_deref()).map(ints);
    let amounts = given.or_else(|| at.elems(1).map(<[Elem]>::to_vec));
    let along: Option<Vec<usize>> = if at.has(3) {
        match at.ints(3) {
            Some(list) => Some(list.iter().map(|&a| axis(a, shape.len())).collect::<Result<_, _>>()?),
            None => None,
        }
    } else {
        Some((0..shape.len()).collect())
    };
    let (Some(amounts), Some(along)) = (amounts, along) else {
        return one(dtype, Some(vec![Dim::Unknown; shape.len()]));
    };
    if amounts.len() != 2 * along.len() || along.iter().collect::<BTreeSet<_>>().len() != along.len() {
        let (n, axes) = (amounts.len(), along.len());
        return Err(Fail::shape(format!("{n} paddings for {axes} axes; there must be two for each")));
    }
    let mut out: Shape = shape.to_vec();
    let (begins, ends) = amounts.split_at(along.len());
    for ((axis, begin), end) in along.into_iter().zip(begins).zip(ends) {
        let Some(dim) = out.get_mut(axis) else { continue };
        let before = dim.clone();
        *dim = grown(&grown(dim, begin), end);
        if let (Dim::Known(n), Dim::Unknown, Some(b), Some(e)) = (&before, &*dim, begin.int(), end.int()) {
            // Cropping may pass through less than nothing.
            *dim = Dim::Known(*n).add_int(b.saturating_add(e));
            if *dim == Dim::Unknown {
                return Err(Fail::shape(format!("padding of {b} and {e} leaves nothing of {n} elements")));
            }
        }
    }
    one(dtype, Some(out))
}

fn grown(dim: &Dim, by: &Elem) -> Dim {
    match by {
        Elem::Int(n) => dim.add_int(*n),
        other => dim.add(&other.dim()),
    }
}
