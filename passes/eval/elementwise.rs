//! Operators that compute each element from the elements at its place, with broadcasting.

use super::numbers::{Numbers, cast, read, write};
use super::walk::{Walk, broadcast, broadcast_strides};
use super::{Arguments, EvalError};
use basisopt_ir::tensor::n_elements;
use basisopt_ir::{DType, Op, Tensor};

type Outcome = Result<Tensor, EvalError>;

/// `None` if the operator is not one of these.
pub(super) fn evaluate(op: &Op, arguments: &Arguments<'_>) -> Option<Outcome> {
    use Arithmetic::*;
    Some(match op {
        Op::Identity(_) => arguments.need(0).cloned(),
        Op::Cast(op) => to(arguments, op.to),
        Op::Neg(_) => unary(arguments, |v| -v, Some(|v| -v)),
        Op::Abs(_) => unary(arguments, f64::abs, Some(i128::abs)),
        Op::Exp(_) => unary(arguments, f64::exp, None),
        Op::Log(_) => unary(arguments, f64::ln, None),
        Op::Sqrt(_) => unary(arguments, f64::sqrt, None),
        Op::Reciprocal(_) => unary(arguments, |v| 1.0 / v, None),
        Op::Floor(_) => unary(arguments, f64::floor, None),
        Op::Ceil(_) => unary(arguments, f64::ceil, None),
        Op::Add(op) => binary(arguments, Add, (op.axis, op.broadcast)),
        Op::Sub(op) => binary(arguments, Sub, (op.axis, op.broadcast)),
        Op::Mul(op) => binary(arguments, Mul, (op.axis, op.broadcast)),
        Op::Div(op) => binary(arguments, Div, (op.axis, op.broadcast)),
        Op::Pow(op) => power(arguments, (op.axis, op.broadcast)),
        Op::Min(_) => variadic(arguments, Min),
        Op::Max(_) => variadic(arguments, Max),
        Op::Sum(_) => variadic_float(arguments, false),
        Op::Mean(_) => variadic_float(arguments, true),
        Op::Equal(op) => compare(arguments, (op.axis, op.broadcast), |a, b| a == b, |a, b| a == b),
        Op::Greater(op) => compare(arguments, (op.axis, op.broadcast), |a, b| a > b, |a, b| a > b),
        Op::Less(op) => compare(arguments, (op.axis, op.broadcast), |a, b| a < b, |a, b| a < b),
        Op::Where(_) => choose(arguments),
        _ => return None,
    })
}

#[derive(Clone, Copy)]
enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
}

impl Arithmetic {
    fn floats(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Add => a + b,
            Self::Sub => a - b,
            Self::Mul => a * b,
            Self::Div => a / b,
            // Unlike `f64::min`, a NaN wins.
            Self::Min => nan_or(a, b, f64::min),
            Self::Max => nan_or(a, b, f64::max),
        }
    }

    /// `i128` holds every sum and product of two 64-bit integers but not of three: the result is
    /// brought back into its type after each.
    fn ints(self, a: i128, b: i128) -> Result<i128, EvalError> {
        Ok(match self {
            Self::Add => a + b,
            Self::Sub => a - b,
            Self::Mul => a.checked_mul(b).ok_or(EvalError::Overflow(DType::I64))?,
            // Towards zero, as C divides.
            Self::Div => a.checked_div(b).ok_or(EvalError::DivisionByZero)?,
            Self::Min => a.min(b),
            Self::Max => a.max(b),
        })
    }
}

pub(super) fn nan_or(a: f64, b: f64, f: impl Fn(f64, f64) -> f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { f(a, b) }
}

fn to(arguments: &Arguments<'_>, dtype: DType) -> Outcome {
    let t = arguments.need(0)?;
    arguments.setting.admit(dtype, t.shape())?;
    cast(t, dtype)
}

fn unary(arguments: &Arguments<'_>, f: fn(f64) -> f64, g: Option<fn(i128) -> i128>) -> Outcome {
    let t = arguments.need(0)?;
    arguments.setting.admit(t.dtype(), t.shape())?;
    let numbers = match (read(t)?, g) {
        (Numbers::Floats(v), _) => Numbers::Floats(v.into_iter().map(f).collect()),
        (Numbers::Ints(v), Some(g)) if t.dtype() != DType::Bool => {
            Numbers::Ints(v.into_iter().map(g).collect())
        }
        _ => return Err(EvalError::Unsupported("this element type")),
    };
    write(t.dtype(), t.shape().to_vec(), &numbers)
}

/// The shape of a result. Operator sets before 7 broadcast only where an attribute says so, and
/// along an axis of its choice; those that do are left to an engine.
fn joint_shape(
    arguments: &Arguments<'_>,
    tensors: &[&Tensor],
    (axis, flag): (Option<i64>, Option<i64>),
) -> Result<Vec<usize>, EvalError> {
    let shapes: Vec<&[usize]> = tensors.iter().map(|t| t.shape()).collect();
    let alike = shapes.iter().all(|s| *s == shapes[0]);
    if !alike && (arguments.setting.opset < 7 || axis.is_some() || flag.is_some_and(|b| b != 0)) {
        return Err(EvalError::Unsupported("broadcasting by attribute"));
    }
    broadcast(&shapes).ok_or_else(|| EvalError::Malformed(format!("the shapes {shapes:?} do not broadcast")))
}

/// The elements as they stand in the broadcast result.
fn spread<T: Copy>(values: Vec<T>, shape: &[usize], out: &[usize]) -> Vec<T> {
    if shape == out {
        return values;
    }
    Walk::new(out, &broadcast_strides(shape, out), 0).map(|i| values[i]).collect()
}

fn spread_numbers(t: &Tensor, out: &[usize]) -> Result<Numbers, EvalError> {
    Ok(match read(t)? {
        Numbers::Floats(v) => Numbers::Floats(spread(v, t.shape(), out)),
        Numbers::Ints(v) => Numbers::Ints(spread(v, t.shape(), out)),
    })
}

fn same_type(tensors: &[&Tensor]) -> Result<DType, EvalError> {
    let dtype = tensors[0].dtype();
    match tensors.iter().find(|t| t.dtype() != dtype) {
        Some(t) => Err(EvalError::Malformed(format!("element types {dtype} and {} meet", t.dtype()))),
        None => Ok(dtype),
    }
}

fn combine(a: Numbers, b: Numbers, op: Arithmetic) -> Result<Numbers, EvalError> {
    match (a, b) {
        (Numbers::Floats(a), Numbers::Floats(b)) => {
            Ok(Numbers::Floats(a.iter().zip(&b).map(|(&a, &b)| op.floats(a, b)).collect()))
        }
        (Numbers::Ints(a), Numbers::Ints(b)) => {
            let v: Result<Vec<i128>, EvalError> = a.iter().zip(&b).map(|(&a, &b)| op.ints(a, b)).collect();
            Ok(Numbers::Ints(v?))
        }
        _ => Err(EvalError::Unsupported("floats with integers")),
    }
}

fn binary(arguments: &Arguments<'_>, op: Arithmetic, legacy: (Option<i64>, Option<i64>)) -> Outcome {
    let pair = [arguments.need(0)?, arguments.need(1)?];
    let dtype = same_type(&pair)?;
    let shape = joint_shape(arguments, &pair, legacy)?;
    arguments.setting.admit(dtype, &shape)?;
    if dtype == DType::Bool {
        return Err(EvalError::Unsupported("this element type"));
    }
    let numbers = combine(spread_numbers(pair[0], &shape)?, spread_numbers(pair[1], &shape)?, op)?;
    write(dtype, shape, &numbers)
}

fn power(arguments: &Arguments<'_>, legacy: (Option<i64>, Option<i64>)) -> Outcome {
    let pair = [arguments.need(0)?, arguments.need(1)?];
    let dtype = pair[0].dtype();
    let shape = joint_shape(arguments, &pair, legacy)?;
    arguments.setting.admit(dtype, &shape)?;
    let numbers = match (spread_numbers(pair[0], &shape)?, spread_numbers(pair[1], &shape)?) {
        (Numbers::Floats(a), Numbers::Floats(b)) => {
            Numbers::Floats(a.iter().zip(&b).map(|(&a, &b)| a.powf(b)).collect())
        }
        (Numbers::Floats(a), Numbers::Ints(b)) => {
            Numbers::Floats(a.iter().zip(&b).map(|(&a, &b)| a.powf(b as f64)).collect())
        }
        (Numbers::Ints(a), Numbers::Ints(b)) => {
            let power = |(&a, &b): (&i128, &i128)| {
                // A negative exponent leaves the integers.
                let b = u32::try_from(b).map_err(|_| EvalError::Unsupported("this exponent"))?;
                a.checked_pow(b).ok_or(EvalError::Overflow(dtype))
            };
            Numbers::Ints(a.iter().zip(&b).map(power).collect::<Result<_, _>>()?)
        }
        _ => return Err(EvalError::Unsupported("floats with integers")),
    };
    write(dtype, shape, &numbers)
}

fn variadic(arguments: &Arguments<'_>, op: Arithmetic) -> Outcome {
    let tensors = arguments.all()?;
    let dtype = same_type(&tensors)?;
    // `Min` and `Max` broadcast since operator set 8.
    let legacy = (None, (arguments.setting.opset < 8).then_some(1));
    let shape = joint_shape(arguments, &tensors, legacy)?;
    arguments.setting.admit(dtype, &shape)?;
    if dtype == DType::Bool {
        return Err(EvalError::Unsupported("this element type"));
    }
    let mut numbers = spread_numbers(tensors[0], &shape)?;
    for t in &tensors[1..] {
        numbers = combine(numbers, spread_numbers(t, &shape)?, op)?;
    }
    write(dtype, shape, &numbers)
}

fn variadic_float(arguments: &Arguments<'_>, mean: bool) -> Outcome {
    let tensors = arguments.all()?;
    let dtype = same_type(&tensors)?;
    let legacy = (None, (arguments.setting.opset < 8).then_some(1));
    let shape = joint_shape(arguments, &tensors, legacy)?;
    let n = arguments.setting.admit(dtype, &shape)?;
    let divisor = if mean { tensors.len() as f64 } else { 1.0 };
    let mut sum = vec![0.0; n];
    for (i, t) in tensors.iter().enumerate() {
        let Numbers::Floats(v) = spread_numbers(t, &shape)? else {
            return Err(EvalError::Unsupported("this element type"));
        };
        // The first is copied, not added to zero: -0.0 stays what it is.
        sum.iter_mut().zip(v).for_each(|(s, v)| *s = if i == 0 { v } else { *s + v });
    }
    sum.iter_mut().for_each(|s| *s /= divisor);
    write(dtype, shape, &Numbers::Floats(sum))
}

fn compare(
    arguments: &Arguments<'_>,
    legacy: (Option<i64>, Option<i64>),
    f: fn(f64, f64) -> bool,
    g: fn(i128, i128) -> bool,
) -> Outcome {
    let pair = [arguments.need(0)?, arguments.need(1)?];
    same_type(&pair)?;
    let shape = joint_shape(arguments, &pair, legacy)?;
    arguments.setting.admit(DType::Bool, &shape)?;
    let bits: Vec<i128> = match (spread_numbers(pair[0], &shape)?, spread_numbers(pair[1], &shape)?) {
        (Numbers::Floats(a), Numbers::Floats(b)) => {
            a.iter().zip(&b).map(|(&a, &b)| i128::from(f(a, b))).collect()
        }
        (Numbers::Ints(a), Numbers::Ints(b)) => {
            a.iter().zip(&b).map(|(&a, &b)| i128::from(g(a, b))).collect()
        }
        _ => return Err(EvalError::Unsupported("floats with integers")),
    };
    write(DType::Bool, shape, &Numbers::Ints(bits))
}

fn choose(arguments: &Arguments<'_>) -> Outcome {
    let [condition, yes, no] = [arguments.need(0)?, arguments.need(1)?, arguments.need(2)?];
    let dtype = same_type(&[yes, no])?;
    let shape = joint_shape(arguments, &[condition, yes, no], (None, None))?;
    arguments.setting.admit(dtype, &shape)?;
    let condition_bits = spread(condition.to_i64s()?, condition.shape(), &shape);
    // Elements are moved, so any whole number of bytes will do.
    let width = match dtype.n_bits() {
        bits if bits > 0 && bits % 8 == 0 => bits / 8,
        _ => return Err(EvalError::Unsupported("this element type")),
    };
    let (a, b) = (yes.to_bytes()?, no.to_bytes()?);
    let (sa, sb) = (broadcast_strides(yes.shape(), &shape), broadcast_strides(no.shape(), &shape));
    let mut bytes = Vec::with_capacity(n_elements(&shape).unwrap_or(0) * width);
    let places = Walk::new(&shape, &sa, 0).zip(Walk::new(&shape, &sb, 0));
    for (c, (i, j)) in condition_bits.into_iter().zip(places) {
        let (from, at) = if c != 0 { (&a, i) } else { (&b, j) };
        bytes.extend_from_slice(&from[at * width..(at + 1) * width]);
    }
    Ok(Tensor::from_bytes(dtype, shape, bytes.into())?)
}
