//! The elements of small tensors, followed through the arithmetic that exporters do on shapes.

use super::rules::{At, axis};
use super::slice::slice_spec;
use crate::dim::Dim;
use crate::op::Op;
use crate::tensor::{DType, Tensor};

/// Longer tensors are no shapes; their elements are not followed.
const MAX_LENGTH: usize = 256;

/// One element: a number, a symbolic dimension, or not known.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Elem {
    Int(i64),
    Float(f64),
    /// Always a [`Dim::Symbolic`].
    Sym(Dim),
    Unknown,
}

/// The elements of a tensor of rank 0 or 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Contents {
    pub elems: Vec<Elem>,
    /// Rank 0: `elems` has one element.
    pub scalar: bool,
}

impl Elem {
    pub fn from_dim(dim: &Dim) -> Self {
        match dim {
            Dim::Known(n) => i64::try_from(*n).map_or(Self::Unknown, Self::Int),
            Dim::Symbolic(_) => Self::Sym(dim.clone()),
            Dim::Unknown => Self::Unknown,
        }
    }

    /// As a dimension; negative numbers are none.
    pub fn dim(&self) -> Dim {
        match self {
            Self::Int(n) => usize::try_from(*n).map_or(Dim::Unknown, Dim::Known),
            Self::Sym(d) => d.clone(),
            Self::Float(_) | Self::Unknown => Dim::Unknown,
        }
    }

    pub fn int(&self) -> Option<i64> {
        if let Self::Int(n) = self { Some(*n) } else { None }
    }

    pub fn float(&self) -> Option<f64> {
        match self {
            Self::Float(v) => Some(*v),
            Self::Int(n) => Some(*n as f64),
            Self::Sym(_) | Self::Unknown => None,
        }
    }

    /// A float with an integral value, as what it is in the arithmetic of dimensions.
    fn integral(&self) -> Self {
        match self {
            Self::Float(v) if v.fract() == 0.0 && v.abs() < 9.0e15 => Self::Int(*v as i64),
            other => other.clone(),
        }
    }
}

impl Contents {
    /// The elements of a constant, if it is small and holds numbers.
    pub fn of_tensor(tensor: &Tensor) -> Option<Self> {
        if tensor.shape().len() > 1 || tensor.len() > MAX_LENGTH {
            return None;
        }
        let elems: Vec<Elem> = if tensor.dtype().is_integer() {
            tensor.to_i64s().ok()?.into_iter().map(Elem::Int).collect()
        } else if tensor.dtype().is_float() {
            tensor.to_f64s().ok()?.into_iter().map(Elem::Float).collect()
        } else {
            return None;
        };
        Some(Self { elems, scalar: tensor.shape().is_empty() })
    }

    fn vector(elems: Vec<Elem>) -> Option<Self> {
        (elems.len() <= MAX_LENGTH).then_some(Self { elems, scalar: false })
    }

    fn map(&self, f: impl Fn(&Elem) -> Elem) -> Option<Self> {
        Some(Self { elems: self.elems.iter().map(f).collect(), scalar: self.scalar })
    }
}

/// The elements of a node's first output, where they follow from those of its inputs.
pub(super) fn follow(at: &At<'_>) -> Option<Contents> {
    match at.op {
        Op::Shape(op) => {
            let shape = at.shape(0)?;
            let range = super::shape_ops::shape_range(shape.len(), op);
            Contents::vector(shape.get(range)?.iter().map(Elem::from_dim).collect())
        }
        Op::Identity(_) => at.contents(0).cloned(),
        Op::Cast(op) => {
            let to = op.to;
            at.contents(0)?.map(|e| cast(e, to))
        }
        Op::Gather(op) => {
            let data = at.contents(0).filter(|c| !c.scalar)?;
            axis(op.axis, 1).ok()?;
            let n = data.elems.len() as i64;
            at.contents(1)?.map(|i| {
                let i = i.int().map(|i| if i < 0 { i.saturating_add(n) } else { i });
                let i = i.and_then(|i| usize::try_from(i).ok());
                i.and_then(|i| data.elems.get(i)).cloned().unwrap_or(Elem::Unknown)
            })
        }
        Op::Slice(op) => {
            let data = at.contents(0).filter(|c| !c.scalar)?;
            let n = data.elems.len() as i64;
            let spec = slice_spec(at, op).ok()??;
            let [(_, start, end, step)] = spec.as_slice() else { return None };
            let (start, end, step) = (start.int()?, end.int()?, *step);
            let clamp = |i: i64, low: i64, high: i64| {
                (if i < 0 { i.saturating_add(n) } else { i }).max(low).min(high)
            };
            let mut picked = vec![];
            let (mut i, end) = if step > 0 {
                (clamp(start, 0, n), clamp(end, 0, n))
            } else {
                (clamp(start, 0, n - 1), clamp(end, -1, n - 1))
            };
            while (step > 0 && i < end) || (step < 0 && i > end) {
                picked.push(data.elems.get(usize::try_from(i).ok()?)?.clone());
                i = i.saturating_add(step);
            }
            Contents::vector(picked)
        }
        Op::Concat(op) => {
            axis(op.axis, 1).ok()?;
            let mut all = vec![];
            for slot in 0..at.n_slots() {
                // A part of unknown elements but known length does not spoil its neighbours.
                match at.contents(slot) {
                    Some(part) if !part.scalar => all.extend_from_slice(&part.elems),
                    Some(_) => return None,
                    None => all.extend(vec![Elem::Unknown; at.length(slot)?]),
                }
                if all.len() > MAX_LENGTH {
                    return None;
                }
            }
            Contents::vector(all)
        }
        // What stays of rank 0 or 1 keeps its elements in order.
        Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Reshape(_) | Op::Flatten(_) => {
            let rank = super::rules::types(at).ok()?.into_iter().next()?.shape?.len();
            let from = at.contents(0)?;
            (rank <= 1 && (rank == 1 || from.elems.len() == 1))
                .then(|| Contents { elems: from.elems.clone(), scalar: rank == 0 })
        }
        Op::ConstantOfShape(op) => {
            let scalar = at.elems(0)?.is_empty();
            let n = match at.elems(0)? {
                [] => 1,
                [Elem::Int(n)] => usize::try_from(*n).ok().filter(|&n| n <= MAX_LENGTH)?,
                _ => return None,
            };
            let zero = Elem::Float(0.0);
            let value = match &op.value {
                Some(t) if t.len() == 1 => Contents::of_tensor(&t.reshaped(vec![]).ok()?)?.elems.pop()?,
                Some(_) => return None,
                None => zero,
            };
            Some(Contents { elems: vec![value; n], scalar })
        }
        Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_) | Op::Min(_) | Op::Max(_) | Op::Equal(_) => {
            let float = at.dtype(0)?.is_float();
            let (a, b) = (at.contents(0)?, at.contents(1)?);
            if at.n_slots() != 2 {
                return None;
            }
            zip(a, b, |a, b| binary(at.op, a, b, float))
        }
        Op::Where(_) => {
            let (condition, a, b) = (at.contents(0)?, at.contents(1)?, at.contents(2)?);
            let indices = zip(a, b, |a, b| if a == b { a.clone() } else { Elem::Unknown })?;
            let pick = |c: &Contents, i: usize| c.elems.get(if c.elems.len() == 1 { 0 } else { i }).cloned();
            let n = indices.elems.len().max(condition.elems.len());
            let whole = |c: &Contents| c.elems.len() == n || c.elems.len() == 1;
            if !(whole(condition) && whole(&indices)) {
                return None;
            }
            let elems = (0..n)
                .map(|i| match pick(condition, i) {
                    Some(Elem::Int(0)) => pick(b, i),
                    Some(Elem::Int(_)) => pick(a, i),
                    _ => pick(&indices, i),
                })
                .collect::<Option<Vec<_>>>()?;
            Some(Contents { elems, scalar: indices.scalar && condition.scalar })
        }
        Op::Neg(_) => at.contents(0)?.map(|e| match e {
            Elem::Int(n) => n.checked_neg().map_or(Elem::Unknown, Elem::Int),
            Elem::Float(v) => Elem::Float(-v),
            Elem::Sym(_) | Elem::Unknown => Elem::Unknown,
        }),
        Op::Floor(_) => at.contents(0)?.map(|e| rounded(e, f64::floor)),
        Op::Ceil(_) => at.contents(0)?.map(|e| rounded(e, f64::ceil)),
        Op::ReduceProd(op) => {
            // Over a vector there is only one axis to reduce along.
            let from = at.contents(0).filter(|c| !c.scalar)?;
            let axes = op.axes.clone().or_else(|| at.ints(1));
            if axes.is_none_or(|a| a.is_empty()) && (at.has(1) || op.noop_with_empty_axes != 0) {
                return None;
            }
            let float = at.dtype(0)?.is_float();
            let one = if float { Elem::Float(1.0) } else { Elem::Int(1) };
            let mul = Op::from(crate::op::Mul::default());
            let product = from.elems.iter().fold(one, |p, e| binary(&mul, &p, e, float));
            Some(Contents { elems: vec![product], scalar: op.keepdims == 0 })
        }
        _ => None,
    }
}

fn cast(e: &Elem, to: DType) -> Elem {
    match e {
        Elem::Float(v) if to.is_integer() && to != DType::Bool => {
            if v.is_finite() && v.abs() < 9.0e15 {
                Elem::Int(v.trunc() as i64)
            } else {
                Elem::Unknown
            }
        }
        Elem::Int(n) if to.is_float() => Elem::Float(*n as f64),
        // Dimensions fit every type that an exporter computes them in.
        Elem::Sym(d) if to.is_float() || matches!(to, DType::I64 | DType::I32) => Elem::Sym(d.clone()),
        Elem::Int(n) if matches!(to, DType::I64 | DType::I32) => Elem::Int(*n),
        Elem::Float(v) if to.is_float() => Elem::Float(*v),
        Elem::Int(n) if to == DType::Bool => Elem::Int(i64::from(*n != 0)),
        _ => Elem::Unknown,
    }
}

fn rounded(e: &Elem, f: fn(f64) -> f64) -> Elem {
    match e {
        Elem::Float(v) => Elem::Float(f(*v)),
        // Symbols stand for integers.
        other => other.clone(),
    }
}

/// Element by element, with a single element broadcast.
fn zip(a: &Contents, b: &Contents, f: impl Fn(&Elem, &Elem) -> Elem) -> Option<Contents> {
    let n = match (a.elems.len(), b.elems.len()) {
        (1, n) | (n, 1) => n,
        (m, n) if m == n => n,
        _ => return None,
    };
    let wide = |c: &Contents, i: usize| c.elems.get(if c.elems.len() == 1 { 0 } else { i }).cloned();
    let elems = (0..n).map(|i| Some(f(&wide(a, i)?, &wide(b, i)?))).collect::<Option<Vec<_>>>()?;
    Some(Contents { elems, scalar: a.scalar && b.scalar })
}

fn binary(op: &Op, a: &Elem, b: &Elem, float: bool) -> Elem {
    if let (true, Some(a), Some(b)) = (float, a.float(), b.float()) {
        // Shapes that go through floats do so in single precision.
        let (a, b) = (a as f32, b as f32);
        return match op {
            Op::Add(_) => Elem::Float(f64::from(a + b)),
            Op::Sub(_) => Elem::Float(f64::from(a - b)),
            Op::Mul(_) => Elem::Float(f64::from(a * b)),
            Op::Div(_) => Elem::Float(f64::from(a / b)),
            Op::Min(_) => Elem::Float(f64::from(a.min(b))),
            Op::Max(_) => Elem::Float(f64::from(a.max(b))),
            _ => Elem::Unknown,
        };
    }
    let (a, b) = (a.integral(), b.integral());
    if let (Elem::Int(a), Elem::Int(b)) = (&a, &b) {
        let result = match op {
            Op::Add(_) => a.checked_add(*b),
            Op::Sub(_) => a.checked_sub(*b),
            Op::Mul(_) => a.checked_mul(*b),
            // ONNX truncates, as Rust does.
            Op::Div(_) => a.checked_div(*b),
            Op::Min(_) => Some(*a.min(b)),
            Op::Max(_) => Some(*a.max(b)),
            Op::Equal(_) => Some(i64::from(a == b)),
            _ => None,
        };
        return result.map_or(Elem::Unknown, Elem::Int);
    }
    let dim = match (op, &a, &b) {
        (Op::Equal(_), Elem::Sym(x), Elem::Sym(y)) if x == y => return Elem::Int(1),
        // A dimension is at least 1.
        (Op::Equal(_), Elem::Sym(d), Elem::Int(n)) | (Op::Equal(_), Elem::Int(n), Elem::Sym(d))
            if d.name().is_some() && *n < 1 =>
        {
            return Elem::Int(0);
        }
        (Op::Add(_), Elem::Sym(d), Elem::Int(n)) | (Op::Add(_), Elem::Int(n), Elem::Sym(d)) => d.add_int(*n),
        (Op::Add(_), Elem::Sym(x), Elem::Sym(y)) => x.add(y),
        (Op::Sub(_), Elem::Sym(d), Elem::Int(n)) => d.add_int(n.saturating_neg()),
        (Op::Sub(_), Elem::Sym(x), Elem::Sym(y)) if x == y => return Elem::Int(0),
        (Op::Sub(_), Elem::Sym(x), Elem::Sym(y)) => x.sub(y),
        (Op::Mul(_), Elem::Sym(d), Elem::Int(n)) | (Op::Mul(_), Elem::Int(n), Elem::Sym(d)) => d.mul_int(*n),
        (Op::Div(_), Elem::Sym(x), Elem::Sym(y)) if x == y => return Elem::Int(1),
        // A float quotient is not floored; only whole divisors of one are followed.
        (Op::Div(_), Elem::Sym(d), Elem::Int(n)) if !float => d.floor_div(*n),
        (Op::Div(_), Elem::Sym(d), Elem::Int(1)) => d.clone(),
        (Op::Max(_), Elem::Sym(d), Elem::Int(n)) | (Op::Max(_), Elem::Int(n), Elem::Sym(d))
            if d.name().is_some() && *n <= 1 =>
        {
            d.clone()
        }
        _ => Dim::Unknown,
    };
    Elem::from_dim(&dim)
}
