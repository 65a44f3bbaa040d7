//! Reductions along axes.

use super::elementwise::nan_or;
use super::numbers::{Numbers, read, write};
use super::walk::{Walk, dense_strides};
use super::{Arguments, EvalError, axes};
use basisopt_ir::tensor::n_elements;
use basisopt_ir::{Op, Tensor};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Mean,
    Sum,
    Max,
    Min,
    Product,
    Norm,
}

/// `None` if the operator is not a reduction.
pub(super) fn evaluate(op: &Op, arguments: &Arguments<'_>) -> Option<Result<Tensor, EvalError>> {
    macro_rules! reduction {
        ($op:expr, $kind:ident) => {
            reduce(arguments, Kind::$kind, &$op.axes, $op.keepdims != 0, $op.noop_with_empty_axes != 0)
        };
    }
    Some(match op {
        Op::ReduceMean(op) => reduction!(op, Mean),
        Op::ReduceSum(op) => reduction!(op, Sum),
        Op::ReduceMax(op) => reduction!(op, Max),
        Op::ReduceMin(op) => reduction!(op, Min),
        Op::ReduceProd(op) => reduction!(op, Product),
        Op::ReduceL2(op) => reduction!(op, Norm),
        _ => return None,
    })
}

fn reduce(
    arguments: &Arguments<'_>,
    kind: Kind,
    attr: &Option<Vec<i64>>,
    keepdims: bool,
    noop_with_empty_axes: bool,
) -> Result<Tensor, EvalError> {
    let t = arguments.need(0)?;
    let given = arguments.ints_or(attr, 1)?.unwrap_or_default();
    if given.is_empty() && noop_with_empty_axes {
        return Ok(t.clone());
    }
    let rank = t.shape().len();
    let reduced = if given.is_empty() { (0..rank).collect() } else { axes(&given, rank)? };
    let is_reduced = |axis: &usize| reduced.contains(axis);

    // The result with its reduced axes kept as 1, which is how its elements are counted.
    let kept: Vec<usize> = (0..rank).map(|a| if is_reduced(&a) { 1 } else { t.shape()[a] }).collect();
    let n = arguments.setting.admit(t.dtype(), &kept)?;
    let mut strides = dense_strides(&kept);
    reduced.iter().for_each(|&a| strides[a] = 0);
    let n_each = n_elements(&reduced.iter().map(|&a| t.shape()[a]).collect::<Vec<_>>()).unwrap_or(0);
    if n_each == 0 && matches!(kind, Kind::Max | Kind::Min | Kind::Mean) {
        return Err(EvalError::Unsupported("a reduction of nothing"));
    }

    let places = Walk::new(t.shape(), &strides, 0);
    let numbers = match read(t)? {
        Numbers::Floats(v) => Numbers::Floats(reduce_floats(kind, n, n_each, places.zip(v))),
        Numbers::Ints(v) => Numbers::Ints(reduce_ints(kind, n, places.zip(v), t)?),
    };
    let shape =
        if keepdims { kept } else { (0..rank).filter(|a| !is_reduced(a)).map(|a| t.shape()[a]).collect() };
    write(t.dtype(), shape, &numbers)
}

fn reduce_floats(kind: Kind, n: usize, n_each: usize, v: impl Iterator<Item = (usize, f64)>) -> Vec<f64> {
    let start = match kind {
        Kind::Mean | Kind::Sum | Kind::Norm => 0.0,
        Kind::Product => 1.0,
        Kind::Max => f64::NEG_INFINITY,
        Kind::Min => f64::INFINITY,
    };
    let mut out = vec![start; n];
    for (at, v) in v {
        let o = &mut out[at];
        *o = match kind {
            Kind::Mean | Kind::Sum => *o + v,
            Kind::Norm => *o + v * v,
            Kind::Product => *o * v,
            Kind::Max => nan_or(*o, v, f64::max),
            Kind::Min => nan_or(*o, v, f64::min),
        };
    }
    match kind {
        Kind::Mean => out.iter_mut().for_each(|o| *o /= n_each as f64),
        Kind::Norm => out.iter_mut().for_each(|o| *o = o.sqrt()),
        _ => {}
    }
    out
}

fn reduce_ints(
    kind: Kind,
    n: usize,
    v: impl Iterator<Item = (usize, i128)>,
    t: &Tensor,
) -> Result<Vec<i128>, EvalError> {
    let start = match kind {
        Kind::Sum => 0,
        Kind::Product => 1,
        Kind::Max => i128::MIN,
        Kind::Min => i128::MAX,
        // Engines disagree about how the quotient or the root is rounded.
        Kind::Mean | Kind::Norm => return Err(EvalError::Unsupported("this element type")),
    };
    let mut out = vec![start; n];
    for (at, v) in v {
        let o = &mut out[at];
        *o = match kind {
            Kind::Sum => o.checked_add(v),
            Kind::Product => o.checked_mul(v),
            Kind::Max => Some(v.max(*o)),
            _ => Some(v.min(*o)),
        }
        .ok_or(EvalError::Overflow(t.dtype()))?;
    }
    Ok(out)
}
