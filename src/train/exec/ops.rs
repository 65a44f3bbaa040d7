//! Kernels of all operators but convolutions, which have a crate of their own.

mod matmul;
mod movement;
mod normalise;
mod pointwise;
mod reduce;
pub(crate) mod resize;
mod window;

use super::kernel::{Kernel, Spec, Unsupported};
use basisopt_ir::op::Op;
use basisopt_kernels::Real;

/// The kernel of a node. Everything that can be worked out from shapes and constants is.
///
/// # Errors
/// [`Unsupported`] where there is none for this operator, or for these attributes.
pub(crate) fn lower<T: Real>(op: &Op, spec: &Spec) -> Result<Box<dyn Kernel<T>>, Unsupported> {
    pointwise::lower(op, spec)
        .or_else(|| movement::lower(op, spec))
        .or_else(|| window::lower(op, spec))
        .or_else(|| reduce::lower(op, spec))
        .or_else(|| normalise::lower(op, spec))
        .or_else(|| resize::lower(op, spec))
        .or_else(|| matmul::lower(op, spec))
        .unwrap_or_else(|| Err(Unsupported("there is no kernel for it".to_owned())))
}

/// The elements of an operand that must be constant.
fn known(spec: &Spec, slot: usize) -> Result<Vec<f64>, Unsupported> {
    let tensor = spec.inputs.get(slot).and_then(Option::as_ref).and_then(|o| o.constant.as_ref());
    tensor
        .and_then(|t| t.to_f64s().ok())
        .ok_or_else(|| Unsupported(format!("an input {slot} that is not constant")))
}

/// As [`known`], as integers.
#[allow(clippy::cast_possible_truncation, reason = "axes, sizes and indices")]
fn ints(spec: &Spec, slot: usize) -> Result<Vec<i64>, Unsupported> {
    Ok(known(spec, slot)?.into_iter().map(|v| v as i64).collect())
}

/// As [`known`], the first element.
fn constant_scalar(spec: &Spec, slot: usize) -> Result<f64, Unsupported> {
    known(spec, slot)?.first().copied().ok_or_else(|| Unsupported(format!("an empty input {slot}")))
}
