//! Reductions along axes, softmax, and the largest element.

use super::ints;
use crate::exec::kernel::{Arg, Kernel, Spec, Unsupported};
use basisopt_ir::op::Op;
use basisopt_kernels::{LANES, Real};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sum,
    Mean,
    Max,
    Min,
    Product,
    Norm,
}

/// `out[to] ∘= x[e]`, for runs of consecutive elements that go to the same place.
#[derive(Debug)]
struct Reduce {
    /// Where a run goes, and its length.
    runs: Vec<(u32, u32)>,
    n_elements: usize,
    kind: Kind,
}

impl Reduce {
    fn new(table: &[u32], kind: Kind) -> Self {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for &to in table {
            match runs.last_mut() {
                Some((last, n)) if *last == to => *n += 1,
                _ => runs.push((to, 1)),
            }
        }
        Self { runs, n_elements: table.len(), kind }
    }

    #[inline(always)]
    fn combine<T: Real>(&self, total: T, x: T) -> T {
        match self.kind {
            Kind::Sum | Kind::Mean => total + x,
            Kind::Norm => total + x * x,
            Kind::Product => total * x,
            Kind::Max => x.at_least(total),
            Kind::Min => x.at_most(total),
        }
    }

    /// With a number of lanes that is known here, a run's total stays in registers.
    #[inline(always)]
    fn add_up<T: Real, const N: usize>(&self, x: &[T], out: &mut [T]) {
        let (mut elements, _) = x.as_chunks::<N>();
        let (out, _) = out.as_chunks_mut::<N>();
        for &(to, n) in &self.runs {
            let Some((run, rest)) = elements.split_at_checked(n as usize) else { return };
            elements = rest;
            let Some(out) = out.get_mut(to as usize) else { return };
            let mut total = *out;
            for x in run {
                for (total, &x) in total.iter_mut().zip(x) {
                    *total = self.combine(*total, x);
                }
            }
            *out = total;
        }
    }
}

impl<T: Real> Kernel<T> for Reduce {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], lanes: usize) {
        let (Some(x), Some(out)) = (inputs.first(), outputs.first_mut()) else { return };
        out.fill(match self.kind {
            Kind::Sum | Kind::Mean | Kind::Norm => T::ZERO,
            Kind::Product => T::ONE,
            Kind::Max => T::from_f64(f64::NEG_INFINITY),
            Kind::Min => T::from_f64(f64::INFINITY),
        });
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || match lanes {
                1 => self.add_up::<T, 1>(x.data, out),
                _ => self.add_up::<T, LANES>(x.data, out),
            },
        );
        match self.kind {
            Kind::Mean => {
                let scale = T::from_f64(out.len() as f64 / (self.n_elements * lanes) as f64);
                out.iter_mut().for_each(|v| *v *= scale);
            }
            Kind::Norm => out.iter_mut().for_each(|v| *v = v.sqrt()),
            _ => {}
        }
    }
}

/// Softmax, or its logarithm, along one of three axes.
#[derive(Debug)]
struct Softmax {
    outer: usize,
    n: usize,
    inner: usize,
    log: bool,
}

impl<T: Real> Kernel<T> for Softmax {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], lanes: usize) {
        let (Some(x), Some(out)) = (inputs.first(), outputs.first_mut()) else { return };
        let step = self.inner * lanes;
        for outer in 0..self.outer {
            for i in 0..step {
                let start = outer * self.n * step + i;
                let at = |k: usize| start + k * step;
                let top = (0..self.n).fold(x.data[start], |top, k| x.data[at(k)].at_least(top));
                let sum = (0..self.n).fold(T::ZERO, |sum, k| sum + (x.data[at(k)] - top).exp());
                let log_sum = sum.ln();
                for k in 0..self.n {
                    let v = x.data[at(k)] - top;
                    out[at(k)] = if self.log { v - log_sum } else { v.exp() / sum };
                }
            }
        }
    }
}

/// Index of the largest element along the middle one of three axes.
#[derive(Debug)]
struct ArgMax {
    outer: usize,
    n: usize,
    inner: usize,
    last: bool,
}

impl<T: Real> Kernel<T> for ArgMax {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], lanes: usize) {
        let (Some(x), Some(out)) = (inputs.first(), outputs.first_mut()) else { return };
        let step = self.inner * lanes;
        for outer in 0..self.outer {
            for i in 0..step {
                let value = |k: usize| x.data[(outer * self.n + k) * step + i];
                let better = |a: T, b: T| a > b || (self.last && a == b);
                let best =
                    (1..self.n).fold(0, |best, k| if better(value(k), value(best)) { k } else { best });
                out[outer * step + i] = T::from_f64(best as f64);
            }
        }
    }
}

fn split_at_axis(shape: &[usize], axis: i64, flatten: bool) -> Result<(usize, usize, usize), Unsupported> {
    let rank = shape.len() as i64;
    let a = usize::try_from(if axis < 0 { axis + rank } else { axis })
        .ok()
        .filter(|&a| a < shape.len())
        .ok_or_else(|| Unsupported(format!("axis {axis} of a tensor of rank {rank}")))?;
    let outer = shape[..a].iter().product();
    Ok(match flatten {
        true => (outer, shape[a..].iter().product(), 1),
        false => (outer, shape[a], shape[a + 1..].iter().product()),
    })
}

/// The kernel of a reduction; `None` for other operators.
pub(super) fn lower<T: Real>(op: &Op, spec: &Spec) -> Option<Result<Box<dyn Kernel<T>>, Unsupported>> {
    try_lower(op, spec).transpose()
}

fn try_lower<T: Real>(op: &Op, spec: &Spec) -> Result<Option<Box<dyn Kernel<T>>>, Unsupported> {
    let x = spec.inputs.first().and_then(Option::as_ref).map(|o| o.shape.clone()).unwrap_or_default();
    let reduce =
        |kind: Kind, axes: &Option<Vec<i64>>, noop: i64| -> Result<Box<dyn Kernel<T>>, Unsupported> {
            let given = match (axes, spec.inputs.get(1)) {
                (Some(axes), _) => axes.clone(),
                (None, Some(Some(_))) => ints(spec, 1)?,
                _ => vec![],
            };
            let rank = x.len() as i64;
            let all = given.is_empty() && noop == 0;
            let kept: Vec<usize> = (0..rank)
                .zip(&x)
                .map(|(a, &d)| if all || given.contains(&a) || given.contains(&(a - rank)) { 1 } else { d })
                .collect();
            let n: usize = x.iter().product();
            let table = super::pointwise::broadcast(&kept, &x).unwrap_or_else(|| (0..n as u32).collect());
            Ok(Box::new(Reduce::new(&table, kind)))
        };
    let softmax = |axis: Option<i64>, log| -> Result<Box<dyn Kernel<T>>, Unsupported> {
        let flatten = spec.opset < 13;
        let axis = axis.unwrap_or(if flatten { 1 } else { -1 });
        let (outer, n, inner) = split_at_axis(&x, axis, flatten)?;
        Ok(Box::new(Softmax { outer, n, inner, log }))
    };
    Ok(Some(match op {
        Op::ReduceSum(op) => reduce(Kind::Sum, &op.axes, op.noop_with_empty_axes)?,
        Op::ReduceMean(op) => reduce(Kind::Mean, &op.axes, op.noop_with_empty_axes)?,
        Op::ReduceMax(op) => reduce(Kind::Max, &op.axes, op.noop_with_empty_axes)?,
        Op::ReduceMin(op) => reduce(Kind::Min, &op.axes, op.noop_with_empty_axes)?,
        Op::ReduceProd(op) => reduce(Kind::Product, &op.axes, op.noop_with_empty_axes)?,
        Op::ReduceL2(op) => reduce(Kind::Norm, &op.axes, op.noop_with_empty_axes)?,
        Op::GlobalAveragePool(_) | Op::GlobalMaxPool(_) => {
            let spatial = Some((2..x.len() as i64).collect());
            let kind = if matches!(op, Op::GlobalMaxPool(_)) { Kind::Max } else { Kind::Mean };
            // Of no axes at all there is nothing to reduce.
            reduce(kind, &spatial, i64::from(x.len() <= 2))?
        }
        Op::Softmax(op) => softmax(op.axis, false)?,
        Op::LogSoftmax(op) => softmax(op.axis, true)?,
        Op::ArgMax(op) => {
            let (outer, n, inner) = split_at_axis(&x, op.axis, false)?;
            Box::new(ArgMax { outer, n, inner, last: op.select_last_index == 1 })
        }
        _ => return Ok(None),
    }))
}
