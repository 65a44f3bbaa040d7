//! `ValueInfoProto` to [`ValueType`] and back.

use crate::error::Problem;
use crate::proto::tensor_shape_proto::{Dimension, dimension};
use crate::proto::{TensorShapeProto, TypeProto, ValueInfoProto, type_proto};
use basisopt_ir::graph::ValueType;
use basisopt_ir::{DType, Dim};

/// A longer name of a dimension is cut: nobody reads it, and parsing it would nest too deep.
const MAX_NAME: usize = 128;

/// The type that a `ValueInfoProto` gives to a value; anything but a dense tensor has none.
pub(crate) fn value_type(info: &ValueInfoProto, place: &str) -> Result<ValueType, Problem> {
    let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        return Ok(ValueType::default());
    };
    let dims = tensor.shape.as_ref().map(|s| s.dim.iter().map(|d| dim(d, place)).collect());
    Ok(ValueType { dtype: DType::from_onnx(tensor.elem_type()), shape: dims.transpose()? })
}

fn dim(dim: &Dimension, place: &str) -> Result<Dim, Problem> {
    match &dim.value {
        None => Ok(Dim::Unknown),
        Some(dimension::Value::DimValue(n)) => usize::try_from(*n).map(Dim::Known).map_err(|_| {
            let reason = format!("has a dimension of size {n}; leave it out or name it if it is dynamic");
            Problem::invalid(place, reason)
        }),
        Some(dimension::Value::DimParam(text)) => Ok(named(text)),
    }
}

/// What a `dim_param` means: an expression that the text format can print, or just a name.
fn named(text: &str) -> Dim {
    if text.trim().is_empty() || text.trim() == "?" {
        return Dim::Unknown;
    }
    if text.len() <= MAX_NAME
        && let Some(dim @ Dim::Symbolic(_)) = Dim::parse(text)
        && Dim::parse(&dim.to_string()).as_ref() == Some(&dim)
    {
        return dim;
    }
    let plain = |c: char| if c.is_alphanumeric() || matches!(c, '_' | '.' | ':' | '#') { c } else { '_' };
    let mut name: String = text.chars().take(MAX_NAME).map(plain).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        name.insert(0, '_');
    }
    Dim::symbol(name)
}

/// A `ValueInfoProto` of a tensor type; without a type where the element type is not known.
pub(crate) fn value_info(name: &str, ty: &ValueType) -> ValueInfoProto {
    let dimension = |dim: &Dim| {
        let value = match dim {
            Dim::Known(n) => i64::try_from(*n).ok().map(dimension::Value::DimValue),
            Dim::Symbolic(_) => Some(dimension::Value::DimParam(dim.to_string())),
            Dim::Unknown => None,
        };
        Dimension { value, denotation: None }
    };
    let shape = ty.shape.as_ref().map(|s| TensorShapeProto { dim: s.iter().map(dimension).collect() });
    let tensor = ty.dtype.map(|t| type_proto::Tensor { elem_type: Some(t as i32), shape });
    let r#type =
        tensor.map(|t| TypeProto { value: Some(type_proto::Value::TensorType(t)), denotation: None });
    ValueInfoProto { name: Some(name.to_owned()), r#type, ..ValueInfoProto::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_dimensions_become_symbols_that_print() {
        assert_eq!(named("batch_size"), Dim::symbol("batch_size"));
        assert_eq!(named("floor(h/2 - 1)"), Dim::symbol("floor_h_2_-_1_".replace('-', "_")));
        assert_eq!(named("2*N+3").to_string(), "2*N+3");
        assert_eq!(named("7"), Dim::symbol("_7"), "a name that looks like a number is still a name");
        assert_eq!(named(""), Dim::Unknown);
        for text in ["N/2/2/2", "a b", "-N", "N-N", "(", &"N/2".repeat(500)] {
            let dim = named(text);
            assert_eq!(Dim::parse(&dim.to_string()), Some(dim.clone()), "{text}: {dim}");
        }
    }
}
