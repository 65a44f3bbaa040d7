//! Computes one operator on constant tensors: what `fold-constants` runs instead of an engine.
//!
//! Floats are computed in `f64` and rounded once to the element type. For `f32` and below, sums,
//! differences, products, quotients and square roots come out as IEEE arithmetic in that type would
//! give them, because `f64` has more than twice the digits; `Exp`, `Log` and `Pow` may differ from
//! an engine in the last place. Integers are computed exactly and must fit their type. Everything
//! that only moves elements moves bytes.
//!
//! No tensor is made before its size is known and allowed.

mod elementwise;
mod movement;
mod numbers;
mod reduce;
mod walk;

pub(crate) use movement::shape_range;

use basisopt_ir::tensor::{TensorError, n_elements};
use basisopt_ir::{DType, Op, Tensor};

/// Values that the file holds only as a rule (a repeated element, a generator) are not written out
/// for a computation beyond this many bytes: a short file must not ask for all of the memory.
const MAX_UNROLLED: usize = 1 << 28;

/// Why a node cannot be computed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum EvalError {
    /// There is no evaluator for this operator with these element types or attributes.
    Unsupported(&'static str),
    /// The result would have this many bytes, which is more than allowed.
    TooLarge {
        /// Size of the result.
        bytes: usize,
    },
    /// An integer does not fit the element type.
    Overflow(DType),
    /// An integer is divided by zero.
    DivisionByZero,
    /// Shapes or attributes do not fit together: what does not, in words.
    Malformed(String),
    /// An input cannot be read.
    Tensor(TensorError),
}

impl From<TensorError> for EvalError {
    fn from(error: TensorError) -> Self {
        Self::Tensor(error)
    }
}

/// What the result depends on beside operator and inputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// Version of the standard operator set.
    pub opset: i64,
    /// Number of outputs of the node.
    pub n_outputs: usize,
    /// No single output may be larger.
    pub max_bytes: usize,
}

impl Setting {
    /// Number of elements of a result, if it may be made.
    fn admit(&self, dtype: DType, shape: &[usize]) -> Result<usize, EvalError> {
        let n = n_elements(shape).ok_or(EvalError::TooLarge { bytes: usize::MAX })?;
        match dtype.n_bytes(n) {
            Some(bytes) if bytes <= self.max_bytes => Ok(n),
            Some(bytes) => Err(EvalError::TooLarge { bytes }),
            None if dtype.n_bits() == 0 => Err(EvalError::Unsupported("this element type")),
            None => Err(EvalError::TooLarge { bytes: usize::MAX }),
        }
    }
}

/// The outputs of `op` on constant inputs; an omitted optional input is `None`.
///
/// # Errors
/// [`EvalError`]; nothing is computed halfway.
pub(crate) fn evaluate(
    op: &Op,
    inputs: &[Option<&Tensor>],
    setting: &Setting,
) -> Result<Vec<Tensor>, EvalError> {
    for t in inputs.iter().flatten() {
        let unrolled = t.splat_element().is_some() || t.generator().is_some();
        let bytes = t.dtype().n_bytes(t.len()).unwrap_or(0);
        if unrolled && bytes > MAX_UNROLLED {
            return Err(EvalError::TooLarge { bytes });
        }
    }
    let arguments = Arguments { inputs, setting };
    let one = |t: Result<Tensor, EvalError>| t.map(|t| vec![t]);
    match op {
        Op::Split(op) => movement::split(op, &arguments),
        _ => one(match elementwise::evaluate(op, &arguments) {
            Some(result) => result,
            None => match reduce::evaluate(op, &arguments) {
                Some(result) => result,
                None => movement::evaluate(op, &arguments),
            },
        }),
    }
}

/// Inputs of a node, read with errors that say what is missing.
struct Arguments<'a> {
    inputs: &'a [Option<&'a Tensor>],
    setting: &'a Setting,
}

impl<'a> Arguments<'a> {
    fn get(&self, slot: usize) -> Option<&'a Tensor> {
        self.inputs.get(slot).copied().flatten()
    }

    fn need(&self, slot: usize) -> Result<&'a Tensor, EvalError> {
        self.get(slot).ok_or_else(|| EvalError::Malformed(format!("input {slot} is missing")))
    }

    /// All inputs of an operator that takes any number of them.
    fn all(&self) -> Result<Vec<&'a Tensor>, EvalError> {
        match self.inputs.len() {
            0 => Err(EvalError::Malformed("there is no input".to_owned())),
            n => (0..n).map(|slot| self.need(slot)).collect(),
        }
    }

    /// The integers of an input.
    fn ints(&self, slot: usize) -> Result<Option<Vec<i64>>, EvalError> {
        self.get(slot).map(|t| Ok(t.to_i64s()?)).transpose()
    }

    /// Integers that older operator sets have as an attribute and newer ones as an input.
    fn ints_or(&self, attr: &Option<Vec<i64>>, slot: usize) -> Result<Option<Vec<i64>>, EvalError> {
        match attr {
            Some(v) => Ok(Some(v.clone())),
            None => self.ints(slot),
        }
    }
}

/// An axis counted from the front.
fn axis(axis: i64, rank: usize) -> Result<usize, EvalError> {
    let from_front = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    usize::try_from(from_front)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| EvalError::Malformed(format!("axis {axis} of a tensor of rank {rank}")))
}

/// Axes counted from the front, each at most once.
fn axes(given: &[i64], rank: usize) -> Result<Vec<usize>, EvalError> {
    let found: Vec<usize> = given.iter().map(|&a| axis(a, rank)).collect::<Result<_, _>>()?;
    let mut sorted = found.clone();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() < found.len() {
        return Err(EvalError::Malformed(format!("the axes {given:?} name one axis twice")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
