//! Operators that move elements without computing: every output element is one input element, or a constant. The
//! gradient adds each element to where it came from.

use super::{ints, known};
use crate::exec::kernel::{Arg, Kernel, Spec, Unsupported};
use basisopt_ir::op::Op;
use basisopt_kernels::{LANES, Real};

/// An element that comes from nowhere.
const NOWHERE: u32 = u32::MAX;

/// `out[e] = x[table[e]]`.
#[derive(Debug)]
struct Move {
    /// By output.
    tables: Vec<Vec<u32>>,
    /// What comes from nowhere.
    fill: f64,
}

/// Copies one element, with its lanes if there are any.
#[inline(always)]
fn copy<T: Real>(out: &mut [T], arg: &Arg<'_, T>, from: usize) {
    match arg.batched {
        true => out.copy_from_slice(&arg.data[from * LANES..(from + 1) * LANES]),
        false => out.fill(arg.data[from]),
    }
}

impl<T: Real> Kernel<T> for Move {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], lanes: usize) {
        let (Some(x), fill) = (inputs.first(), T::from_f64(self.fill)) else { return };
        for (out, table) in outputs.iter_mut().zip(&self.tables) {
            for (out, &from) in out.chunks_exact_mut(lanes).zip(table) {
                if from == NOWHERE { out.fill(fill) } else { copy(out, x, from as usize) }
            }
        }
    }
}

/// `dx[table[e]] += dy[e]`.
#[derive(Debug)]
pub(super) struct Scatter(pub Vec<u32>);

impl<T: Real> Kernel<T> for Scatter {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], lanes: usize) {
        let (Some(dy), Some(dx)) = (inputs.first(), outputs.first_mut()) else { return };
        dx.fill(T::ZERO);
        for (dy, &to) in dy.data.chunks_exact(lanes).zip(&self.0) {
            if to != NOWHERE {
                let to = to as usize * lanes;
                dx[to..to + lanes].iter_mut().zip(dy).for_each(|(a, &b)| *a += b);
            }
        }
    }
}

/// Joins operands: runs of elements from one after the other.
#[derive(Debug)]
struct Join {
    /// Elements of one run, by operand.
    runs: Vec<usize>,
}

impl<T: Real> Kernel<T> for Join {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], lanes: usize) {
        let Some(out) = outputs.first_mut() else { return };
        let mut start = 0;
        let total: usize = self.runs.iter().sum();
        for (x, &run) in inputs.iter().zip(&self.runs) {
            for (block, out) in out.chunks_exact_mut(total.max(1) * lanes).enumerate() {
                let out = &mut out[start * lanes..(start + run) * lanes];
                if x.batched == (lanes > 1) {
                    out.copy_from_slice(&x.data[block * run * lanes..(block + 1) * run * lanes]);
                } else {
                    for (i, out) in out.chunks_exact_mut(lanes).enumerate() {
                        copy(out, x, block * run + i);
                    }
                }
            }
            start += run;
        }
    }
}

/// Row-major strides.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for a in (1..shape.len()).rev() {
        strides[a - 1] = strides[a] * shape[a];
    }
    strides
}

/// The table that `from`, given an output index, describes.
fn table(out: &[usize], from: impl Fn(&[usize]) -> Option<usize>) -> Vec<u32> {
    let n: usize = out.iter().product();
    let mut index = vec![0usize; out.len()];
    let mut table = Vec::with_capacity(n);
    for _ in 0..n {
        table.push(from(&index).map_or(NOWHERE, |v| v as u32));
        for (i, &d) in index.iter_mut().zip(out).rev() {
            *i += 1;
            if *i < d {
                break;
            }
            *i = 0;
        }
    }
    table
}

fn axis_of(axis: i64, rank: usize) -> Result<usize, Unsupported> {
    let from_start = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(from_start)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| Unsupported(format!("axis {axis} of a tensor of rank {rank}")))
}

/// First index and step along every axis of a slice. Slots count from `first`: those of the operator itself, or
/// of its gradient, which has dy before them.
fn slice(
    op: &basisopt_ir::op::Slice,
    spec: &Spec,
    first: usize,
    x: &[usize],
) -> Result<Vec<(i64, i64)>, Unsupported> {
    let list = |slot: usize, attr: &Option<Vec<i64>>| match (spec.inputs.get(first + slot), attr) {
        (Some(Some(_)), _) => ints(spec, first + slot).map(Some),
        (_, Some(values)) => Ok(Some(values.clone())),
        _ => Ok(None),
    };
    let starts = list(1, &op.starts)?.ok_or_else(|| Unsupported("without starts".to_owned()))?;
    let axes = list(3, &op.axes)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = list(4, &None)?.unwrap_or_else(|| vec![1; starts.len()]);
    let mut out = vec![(0, 1); x.len()];
    for ((&start, &axis), &step) in starts.iter().zip(&axes).zip(&steps) {
        let a = axis_of(axis, x.len())?;
        let d = x[a] as i64;
        let start = if start < 0 { start.saturating_add(d) } else { start };
        out[a] = (if step > 0 { start.clamp(0, d) } else { start.clamp(0, (d - 1).max(0)) }, step);
    }
    Ok(out)
}

fn slice_table(cut: &[(i64, i64)], x: &[usize], out: &[usize]) -> Vec<u32> {
    let strides = strides(x);
    table(out, |index| {
        let at = |((&i, &(start, step)), &stride): ((&usize, &(i64, i64)), &usize)| {
            (start + i as i64 * step) as usize * stride
        };
        Some(index.iter().zip(cut).zip(&strides).map(at).sum())
    })
}

/// Sizes along the axis of a split, from its outputs.
fn split_tables(axis: usize, x: &[usize], outputs: &[Vec<usize>]) -> Vec<Vec<u32>> {
    let strides = strides(x);
    let mut start = 0;
    let mut tables = Vec::with_capacity(outputs.len());
    for out in outputs {
        tables.push(table(out, |index| {
            Some(
                index
                    .iter()
                    .zip(&strides)
                    .enumerate()
                    .map(|(a, (&i, &s))| if a == axis { (i + start) * s } else { i * s })
                    .sum(),
            )
        }));
        start += out.get(axis).copied().unwrap_or(0);
    }
    tables
}

/// Where each element of a gather of x comes from.
fn gather_table(
    axis: i64,
    indices: &[i64],
    index_shape: &[usize],
    x: &[usize],
    out: &[usize],
) -> Result<Vec<u32>, Unsupported> {
    let axis = axis_of(axis, x.len())?;
    let (index_strides, x_strides) = (strides(index_shape), strides(x));
    let n_index_axes = index_shape.len();
    let d = x[axis] as i64;
    if indices.iter().any(|&i| !(-d..d).contains(&i)) {
        return Err(Unsupported("an index out of range".to_owned()));
    }
    let dot = |i: &[usize], s: &[usize]| i.iter().zip(s).map(|(&i, &s)| i * s).sum::<usize>();
    Ok(table(out, |i| {
        let picked = indices[dot(&i[axis..axis + n_index_axes], &index_strides)];
        // Counted from the end if negative.
        let picked = picked.rem_euclid(d) as usize;
        let after = dot(&i[axis + n_index_axes..], &x_strides[axis + 1..]);
        Some(dot(&i[..axis], &x_strides) + picked * x_strides[axis] + after)
    }))
}

fn pad(op: &basisopt_ir::op::Pad, spec: &Spec, x: &[usize], out: &[usize]) -> Result<Move, Unsupported> {
    let pads = match (&op.pads, &op.paddings) {
        (Some(p), _) | (None, Some(p)) => p.clone(),
        _ => ints(spec, 1)?,
    };
    let axes = match spec.inputs.get(3) {
        Some(Some(_)) => ints(spec, 3)?,
        _ => (0..(pads.len() / 2) as i64).collect(),
    };
    let fill = match spec.inputs.get(2) {
        Some(Some(_)) => known(spec, 2)?.first().copied().unwrap_or(0.0),
        _ => f64::from(op.value),
    };
    let mut before = vec![0i64; x.len()];
    for (&axis, &pad) in axes.iter().zip(&pads) {
        before[axis_of(axis, x.len())?] = pad;
    }
    let mode = op.mode.as_str();
    if !matches!(mode, "constant" | "reflect" | "edge") {
        return Err(Unsupported(format!("mode {mode:?}")));
    }
    let strides = strides(x);
    let table = table(out, |index| {
        let mut at = 0;
        for (a, &i) in index.iter().enumerate() {
            let d = x[a] as i64;
            let mut i = i as i64 - before[a];
            if !(0..d).contains(&i) {
                i = match mode {
                    "edge" => i.clamp(0, (d - 1).max(0)),
                    "reflect" if d > 1 => {
                        // A walk to and fro of period 2(d − 1).
                        let period = 2 * (d - 1);
                        let i = i.rem_euclid(period);
                        if i < d { i } else { period - i }
                    }
                    _ => return None,
                };
            }
            at += i as usize * strides[a];
        }
        Some(at)
    });
    Ok(Move { tables: vec![table], fill })
}

/// The kernel of an operator that moves elements; `None` for other operators.
pub(super) fn lower<T: Real>(op: &Op, spec: &Spec) -> Option<Result<Box<dyn Kernel<T>>, Unsupported>> {
    try_lower(op, spec).transpose()
}

fn try_lower<T: Real>(op: &Op, spec: &Spec) -> Result<Option<Box<dyn Kernel<T>>>, Unsupported> {
    let shape =
        |i: usize| spec.inputs.get(i).and_then(Option::as_ref).map(|o| o.shape.clone()).unwrap_or_default();
    let (x, out) = (shape(0), spec.outputs.first().cloned().unwrap_or_default());
    let moved = |table: Vec<u32>| -> Box<dyn Kernel<T>> { Box::new(Move { tables: vec![table], fill: 0.0 }) };
    let same = |n: usize| (0..n as u32).collect::<Vec<_>>();
    Ok(Some(match op {
        Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => {
            moved(same(out.iter().product()))
        }
        Op::Transpose(op) => {
            let reversed = || (0..x.len() as i64).rev().collect();
            let perm: Vec<i64> = op.perm.clone().unwrap_or_else(reversed);
            let strides = strides(&x);
            let perm = perm.iter().map(|&p| axis_of(p, x.len())).collect::<Result<Vec<_>, _>>()?;
            moved(table(&out, |i| Some(i.iter().zip(&perm).map(|(&i, &p)| i * strides[p]).sum())))
        }
        Op::Slice(op) => moved(slice_table(&slice(op, spec, 0, &x)?, &x, &out)),
        Op::SliceGrad(op) => {
            let attrs = basisopt_ir::op::Slice {
                axes: op.axes.clone(),
                ends: op.ends.clone(),
                starts: op.starts.clone(),
            };
            Box::new(Scatter(slice_table(&slice(&attrs, spec, 1, &out)?, &out, &x)))
        }
        Op::Split(op) => {
            let axis = axis_of(op.axis, x.len())?;
            Box::new(Move { tables: split_tables(axis, &x, &spec.outputs), fill: 0.0 })
        }
        Op::Concat(op) => {
            let axis = axis_of(op.axis, out.len())?;
            let run = |o: &crate::exec::kernel::Operand| o.shape.iter().skip(axis).product();
            Box::new(Join { runs: spec.inputs.iter().flatten().map(run).collect() })
        }
        Op::Pad(op) => Box::new(pad(op, spec, &x, &out)?),
        Op::Expand(_) => match super::pointwise::broadcast(&x, &out) {
            Some(table) => moved(table),
            None => moved(same(out.iter().product())),
        },
        Op::Tile(_) => {
            let strides = strides(&x);
            moved(table(&out, |i| Some(i.iter().zip(&x).zip(&strides).map(|((&i, &d), &s)| i % d * s).sum())))
        }
        Op::Gather(op) => moved(gather_table(op.axis, &ints(spec, 1)?, &shape(1), &x, &out)?),
        Op::GatherGrad(op) => Box::new(Scatter(gather_table(op.axis, &ints(spec, 2)?, &shape(2), &out, &x)?)),
        Op::DepthToSpace(op) if x.len() == 4 => {
            let b = usize::try_from(op.blocksize).unwrap_or(1).max(1);
            let (c, strides) = (x[1] / (b * b), strides(&x));
            let crd = op.mode == "CRD";
            moved(table(&out, |i| {
                let block = i[2] % b * b + i[3] % b;
                let channel = if crd { i[1] * b * b + block } else { block * c + i[1] };
                Some(i[0] * strides[0] + channel * strides[1] + i[2] / b * strides[2] + i[3] / b)
            }))
        }
        Op::SpaceToDepth(op) if x.len() == 4 => {
            let b = usize::try_from(op.blocksize).unwrap_or(1).max(1);
            let (c, strides) = (x[1], strides(&x));
            moved(table(&out, |i| {
                let block = i[1] / c;
                let (y, x) = (i[2] * b + block / b, i[3] * b + block % b);
                Some(i[0] * strides[0] + i[1] % c * strides[1] + y * strides[2] + x)
            }))
        }
        _ => return Ok(None),
    }))
}
