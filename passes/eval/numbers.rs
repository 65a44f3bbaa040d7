//! Elements as numbers: every float type as `f64`, every integer type as `i128`.

use super::EvalError;
use basisopt_ir::{DType, Tensor};
use bytes::Bytes;

/// Integers up to here are exact as `f64`.
const MAX_EXACT: i128 = 1 << 53;

/// The elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Numbers {
    Floats(Vec<f64>),
    Ints(Vec<i128>),
}

/// Reads the elements of a float, integer or boolean tensor.
pub(super) fn read(t: &Tensor) -> Result<Numbers, EvalError> {
    match t.dtype() {
        d if d.is_float() => Ok(Numbers::Floats(t.to_f64s()?)),
        DType::U64 => Ok(Numbers::Ints(t.to_i64s()?.into_iter().map(|v| i128::from(v as u64)).collect())),
        d if d.is_integer() => Ok(Numbers::Ints(t.to_i64s()?.into_iter().map(i128::from).collect())),
        _ => Err(EvalError::Unsupported("this element type")),
    }
}

/// Smallest and largest number of an integer type.
fn range(dtype: DType) -> Option<(i128, i128)> {
    Some(match dtype {
        DType::I8 => (i8::MIN.into(), i8::MAX.into()),
        DType::I16 => (i16::MIN.into(), i16::MAX.into()),
        DType::I32 => (i32::MIN.into(), i32::MAX.into()),
        DType::I64 => (i64::MIN.into(), i64::MAX.into()),
        DType::Bool => (0, 1),
        DType::U8 => (0, u8::MAX.into()),
        DType::U16 => (0, u16::MAX.into()),
        DType::U32 => (0, u32::MAX.into()),
        DType::U64 => (0, u64::MAX.into()),
        _ => return None,
    })
}

/// A tensor of these elements; integers must fit the type.
pub(super) fn write(dtype: DType, shape: Vec<usize>, numbers: &Numbers) -> Result<Tensor, EvalError> {
    match numbers {
        Numbers::Floats(v) => Ok(Tensor::from_f64s(dtype, shape, v)?),
        Numbers::Ints(v) => {
            let (low, high) = range(dtype).ok_or(EvalError::Unsupported("this element type"))?;
            if v.iter().any(|v| *v < low || *v > high) {
                return Err(EvalError::Overflow(dtype));
            }
            write_wrapped(dtype, shape, v)
        }
    }
}

/// A tensor of these integers, of which only the low bits are kept.
fn write_wrapped(dtype: DType, shape: Vec<usize>, values: &[i128]) -> Result<Tensor, EvalError> {
    // In two's complement the low bytes of the wide number are the narrow number.
    let width = dtype.n_bytes(1).unwrap_or(0);
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes().into_iter().take(width)).collect();
    Ok(Tensor::from_bytes(dtype, shape, Bytes::from(bytes))?)
}

/// Conversion between element types as ONNX defines it.
pub(super) fn cast(t: &Tensor, to: DType) -> Result<Tensor, EvalError> {
    let shape = t.shape().to_vec();
    if t.dtype() == to {
        return Ok(t.clone());
    }
    if !(to.is_float() || to.is_integer()) {
        return Err(EvalError::Unsupported("this element type"));
    }
    match read(t)? {
        Numbers::Floats(v) if to.is_float() => Ok(Tensor::from_f64s(to, shape, &v)?),
        // NaN is not zero, so it is true.
        Numbers::Floats(v) if to == DType::Bool => {
            let bits: Vec<i128> = v.iter().map(|&v| i128::from(v != 0.0)).collect();
            write_wrapped(to, shape, &bits)
        }
        // What a float outside the range becomes is undefined, so engines differ: `write` refuses.
        Numbers::Floats(v) => {
            if v.iter().any(|v| !v.is_finite()) {
                return Err(EvalError::Overflow(to));
            }
            write(to, shape, &Numbers::Ints(v.iter().map(|v| v.trunc() as i128).collect()))
        }
        Numbers::Ints(v) if to.is_float() => {
            // Rounding twice, to `f64` and then to less, may miss the nearest number.
            if to != DType::F64 && v.iter().any(|v| v.abs() > MAX_EXACT) {
                return Err(EvalError::Overflow(to));
            }
            Ok(Tensor::from_f64s(to, shape, &v.iter().map(|&v| v as f64).collect::<Vec<_>>())?)
        }
        Numbers::Ints(v) if to == DType::Bool => {
            write_wrapped(to, shape, &v.iter().map(|&v| i128::from(v != 0)).collect::<Vec<_>>())
        }
        Numbers::Ints(v) => write_wrapped(to, shape, &v),
    }
}
