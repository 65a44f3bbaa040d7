//! Between the tensors of tract and those of `basisopt-ir`.

use basisopt_ir::tensor::TensorError;
use basisopt_ir::{DType, Dim, Tensor};
use bytes::Bytes;
use tract_core::internal::{DatumType, TDim, Tensor as TractTensor, TractResult, TypedModel};
use tract_core::internal::{OutletId, tract_smallvec::SmallVec};
use tract_core::ops::cnn::KernelFormat;

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// The kernel of a convolution in so many groups.
    Kernel(KernelFormat, usize),
    /// A matrix, `[out, in]` or `[in, out]`, with so many axes of size 1 to be put behind.
    Matrix { rows_first: bool, n_ones: usize },
}

/// The element type of weights of this type, if they are numbers that passes can factorise.
pub(crate) fn dtype(datum_type: DatumType) -> Option<DType> {
    Some(match datum_type {
        DatumType::F16 => DType::F16,
        DatumType::F32 => DType::F32,
        DatumType::F64 => DType::F64,
        _ => return None,
    })
}

/// A dimension, if it is a number. What symbols stand for makes no difference to a factorisation.
pub(crate) fn dim(dim: &TDim) -> Dim {
    // `to_usize` comes with a trait of another crate.
    dim.as_i64().and_then(|d| usize::try_from(d).ok()).map_or(Dim::Unknown, Dim::Known)
}

/// A weight as the passes know it: `[out, in / groups, kernel…]`, or `[out, in]`.
pub(crate) fn weight(tensor: &TractTensor, dtype: DType, layout: Layout) -> TractResult<Tensor> {
    let mut tensor = tensor.clone();
    match layout {
        Layout::Kernel(format, groups) => {
            for op in format.kernel_as_group_o_i_h_w_ops(tensor.shape(), groups) {
                op.change_tensor(&mut tensor, false)?;
            }
            let mut shape: SmallVec<[usize; 4]> = tensor.shape().into();
            // The groups, one after the other.
            let n_groups = shape.remove(0);
            shape[0] *= n_groups;
            tensor.set_shape(&shape)?;
        }
        Layout::Matrix { rows_first, n_ones } => {
            if !rows_first {
                tensor = tensor.permute_axes(&[1, 0])?;
            }
            let mut shape = tensor.shape().to_vec();
            shape.resize(shape.len() + n_ones, 1);
            tensor.set_shape(&shape)?;
        }
    }
    let shape = tensor.shape().to_vec();
    let bytes = Bytes::copy_from_slice(tensor.try_as_plain_ram()?.as_bytes());
    Ok(Tensor::from_bytes(dtype, shape, bytes)?)
}

/// A tensor of the passes as one of tract's.
pub(crate) fn to_tract(tensor: &Tensor, datum_type: DatumType) -> TractResult<TractTensor> {
    let bytes = tensor.to_bytes()?;
    let mut value = TractTensor::zero_dt(datum_type, tensor.shape())?;
    let mut view = value.try_as_plain_ram_mut()?;
    let target = view.as_bytes_mut();
    if target.len() != bytes.len() {
        let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
        return Err(TensorError::Length { dtype, shape, expected: target.len(), found: bytes.len() }.into());
    }
    target.copy_from_slice(&bytes);
    Ok(value)
}

/// The numbers of a constant of a float type.
pub(crate) fn floats(model: &TypedModel, value: OutletId) -> TractResult<Option<Vec<f64>>> {
    let Some(tensor) = &model.outlet_fact(value)?.konst else { return Ok(None) };
    if dtype(tensor.datum_type()).is_none() || !tensor.is_plain_ram() {
        return Ok(None);
    }
    let wide = tensor.cast_to_dt(DatumType::F64)?;
    Ok(Some(wide.try_as_plain_ram()?.as_slice::<f64>()?.to_vec()))
}
