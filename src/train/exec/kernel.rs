//! What the executor needs of an operator.

use basisopt_ir::Tensor;
use basisopt_kernels::Real;
use std::fmt::Debug;

/// What is known of an operand before anything runs.
#[derive(Clone, Debug)]
pub(crate) struct Operand {
    /// Shape for a batch of one image.
    pub shape: Vec<usize>,
    /// Whether it differs from image to image: stored with its lanes.
    pub batched: bool,
    /// Its value, where it is a constant that is not trained (axes, sizes, scales, bounds, …).
    pub constant: Option<Tensor>,
}

/// What is known of a node before anything runs.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// Operands by slot; `None` where an optional input is absent.
    pub inputs: Vec<Option<Operand>>,
    /// Shapes of the outputs, for a batch of one image.
    pub outputs: Vec<Vec<usize>>,
    /// The opset, for operators whose meaning changed.
    pub opset: i64,
}

/// An operand when the program runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arg<'a, T> {
    /// Elements in row-major order; if `batched`, `LANES` values (one per image) for each element.
    pub data: &'a [T],
    /// Whether there are lanes.
    pub batched: bool,
}

/// An operator ready to run: shapes resolved, nothing left to allocate or to fail.
pub(crate) trait Kernel<T: Real>: Debug + Send + Sync {
    /// Computes the outputs. Outputs have lanes if any input has; `lanes` is `LANES` then, else 1.
    /// Absent inputs are empty. Outputs are not cleared beforehand.
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], lanes: usize);
}

/// Why an operator cannot be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unsupported(pub String);
