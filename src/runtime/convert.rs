//! Between the tensors of `basisopt-ir` and those of tract, and tract's errors made short.

use crate::RuntimeError;
use basisopt_ir::{DType, Tensor};
use bytes::Bytes;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tract_core::internal::{DatumType, TValue, TractResult};

pub(crate) fn datum_type(dtype: DType) -> Option<DatumType> {
    Some(match dtype {
        DType::Bool => DatumType::Bool,
        DType::U8 => DatumType::U8,
        DType::U16 => DatumType::U16,
        DType::U32 => DatumType::U32,
        DType::U64 => DatumType::U64,
        DType::I8 => DatumType::I8,
        DType::I16 => DatumType::I16,
        DType::I32 => DatumType::I32,
        DType::I64 => DatumType::I64,
        DType::F16 => DatumType::F16,
        DType::F32 => DatumType::F32,
        DType::F64 => DatumType::F64,
        _ => return None,
    })
}

fn dtype(datum_type: DatumType) -> Option<DType> {
    Some(match datum_type {
        DatumType::Bool => DType::Bool,
        // Quantised outputs are given as the integers they are; the parameters are the model's affair.
        DatumType::U8 | DatumType::QU8(_) => DType::U8,
        DatumType::I8 | DatumType::QI8(_) => DType::I8,
        DatumType::I32 | DatumType::QI32(_) => DType::I32,
        DatumType::U16 => DType::U16,
        DatumType::U32 => DType::U32,
        DatumType::U64 => DType::U64,
        DatumType::I16 => DType::I16,
        DatumType::I64 => DType::I64,
        DatumType::F16 => DType::F16,
        DatumType::F32 => DType::F32,
        DatumType::F64 => DType::F64,
        _ => return None,
    })
}

pub(crate) fn to_tract(tensor: &Tensor) -> Result<TValue, String> {
    let Some(datum_type) = datum_type(tensor.dtype()) else {
        return Err(format!("tract has no tensors of type {}", tensor.dtype()));
    };
    let bytes = tensor.to_bytes().map_err(|e| e.to_string())?;
    let mut value =
        tract_core::internal::Tensor::zero_dt(datum_type, tensor.shape()).map_err(|e| reason(&e))?;
    let mut view = value.try_as_plain_ram_mut().map_err(|e| reason(&e))?;
    let target = view.as_bytes_mut();
    if target.len() != bytes.len() {
        return Err(format!("tract wants {} bytes, the tensor has {}", target.len(), bytes.len()));
    }
    if tensor.dtype() == DType::Bool {
        // A `bool` other than 0 and 1 is undefined behaviour in Rust; ONNX files may hold any byte.
        target.iter_mut().zip(bytes.iter()).for_each(|(t, &b)| *t = u8::from(b != 0));
    } else {
        target.copy_from_slice(&bytes);
    }
    Ok(value.into())
}

pub(crate) fn from_tract(value: &TValue) -> Result<Tensor, String> {
    let tensor: &tract_core::internal::Tensor = value;
    let shape = tensor.shape().to_vec();
    // Shapes computed by the network come out as symbolic integers, which by now have values.
    if tensor.datum_type() == DatumType::TDim {
        let cast = tensor.cast_to_dt(DatumType::I64).map_err(|e| reason(&e))?;
        let view = cast.try_as_plain_ram().map_err(|e| reason(&e))?;
        return Tensor::from_bytes(DType::I64, shape, Bytes::copy_from_slice(view.as_bytes()))
            .map_err(|e| e.to_string());
    }
    let Some(dtype) = dtype(tensor.datum_type()) else {
        return Err(format!("an output has the type {:?}, which cannot be read", tensor.datum_type()));
    };
    let view = tensor.try_as_plain_ram().map_err(|e| reason(&e))?;
    Tensor::from_bytes(dtype, shape, Bytes::copy_from_slice(view.as_bytes())).map_err(|e| e.to_string())
}

/// Runs a piece of tract. tract panics on some malformed models (a graph output that nothing makes,
/// `unimplemented!` element types); for us these are errors of the model like any other.
pub(crate) fn guard<T>(
    model: &str,
    stage: &'static str,
    work: impl FnOnce() -> TractResult<T>,
) -> Result<T, RuntimeError> {
    let reason = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => reason(&error),
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            format!("it panicked: {}", shorten(message))
        }
    };
    Err(RuntimeError::Tract { model: model.to_owned(), stage, reason })
}

/// tract's chain of causes on one line. Its links quote whole nodes and tensors, so each is cut.
pub(crate) fn reason(error: &tract_core::internal::TractError) -> String {
    let mut links: Vec<String> = Vec::new();
    for link in error.chain() {
        let link = shorten(&link.to_string());
        if links.last() != Some(&link) && !link.is_empty() {
            links.push(link);
        }
    }
    links.join(": ")
}

fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let line = text.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("");
    match line.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
