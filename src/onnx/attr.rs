//! `AttributeProto` to [`Attr`] and back.

use crate::error::Problem;
use crate::external::DataFiles;
use crate::tensor::RawTensor;
use crate::wire::{FIXED32, Message, Splice, put_tag, put_varint};
use basisopt_ir::tensor::Tensor;
use basisopt_ir::{Attr, Op};
use bytes::Bytes;

const FLOAT: u64 = 1;
const INT: u64 = 2;
const STRING: u64 = 3;
const TENSOR: u64 = 4;
const FLOATS: u64 = 6;
const INTS: u64 = 7;
const STRINGS: u64 = 8;
const SPARSE_TENSOR: u64 = 11;

/// Name and value of an encoded `AttributeProto`. What has no form of its own is
/// [`Attr::Encoded`].
pub(crate) fn read(bytes: &Bytes, place: &str, files: &mut DataFiles) -> Result<(String, Attr), Problem> {
    let damaged = |e: String| Problem::damaged(place, e);
    let message = Message::parse(bytes.clone()).map_err(damaged)?;
    let name = message.string(1).map_err(damaged)?.unwrap_or_default();
    if let Some(reference) = message.string(21).map_err(damaged)?.filter(|r| !r.is_empty()) {
        return Ok((name, Attr::Ref(reference)));
    }
    let floats = |number| -> Result<Vec<f32>, Problem> {
        let bytes = message.fixed(number, FIXED32).map_err(damaged)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect())
    };
    let attr = match kind(&message) {
        FLOAT => Attr::Float(floats(2)?.last().copied().unwrap_or(0.0)),
        INT => Attr::Int(message.varint(3).unwrap_or(0) as i64),
        STRING => Attr::Str(message.last(4).unwrap_or_default()),
        TENSOR => {
            let place = format!("attribute {name:?} of {place}");
            let tensor = message.last(5).unwrap_or_default();
            match RawTensor::parse(tensor, &|_| place.clone())?.load(&place, files)? {
                Some(tensor) => Attr::Tensor(tensor),
                None => Attr::Encoded(bytes.clone()),
            }
        }
        FLOATS => Attr::Floats(floats(7)?),
        INTS => Attr::Ints(message.varints(8).map_err(damaged)?.into_iter().map(|v| v as i64).collect()),
        STRINGS => Attr::Strs(message.all(9).map(|f| message.body(f)).collect()),
        _ => Attr::Encoded(bytes.clone()),
    };
    Ok((name, attr))
}

/// The attribute's type; where the file does not say (IR version 1), the one field that is there.
fn kind(message: &Message) -> u64 {
    const FIELDS: [(u32, u64); 7] =
        [(2, FLOAT), (3, INT), (4, STRING), (5, TENSOR), (7, FLOATS), (8, INTS), (9, STRINGS)];
    match message.varint(20) {
        None | Some(0) => FIELDS.iter().find(|(n, _)| message.has(*n)).map_or(0, |(_, kind)| *kind),
        Some(kind) => kind,
    }
}

/// The value of a `Constant` node, if its attributes give it as numbers.
pub(crate) fn constant(attrs: &[(String, Attr)]) -> Option<Tensor> {
    let [(name, value)] = attrs else { return None };
    match (name.as_str(), value) {
        ("value", Attr::Tensor(t)) => Some(t.clone()),
        ("value_float", Attr::Float(v)) => Tensor::from_f32s(vec![], &[*v]).ok(),
        ("value_floats", Attr::Floats(v)) => Tensor::from_f32s(vec![v.len()], v).ok(),
        ("value_int", Attr::Int(v)) => Tensor::from_i64s(vec![], &[*v]).ok(),
        ("value_ints", Attr::Ints(v)) => Tensor::from_i64s(vec![v.len()], v).ok(),
        _ => None,
    }
}

/// The attribute of a `Constant` node that carries a tensor which [`Tensor`] cannot hold.
pub(crate) fn carried(tensor: Bytes, sparse: bool) -> (String, Attr) {
    let (name, number, kind) =
        if sparse { ("sparse_value", 22, SPARSE_TENSOR) } else { ("value", 5, TENSOR) };
    let mut out = Splice::default();
    out.put_field(1, name.as_bytes());
    out.push_field(number, tensor);
    out.put_varint_field(20, kind);
    (name.to_owned(), Attr::Encoded(out.concat()))
}

/// The attributes to write for an operator. Those that ONNX requires are written even where they
/// have the value that the table of operators takes for the default.
pub(crate) fn of_op(op: &Op) -> Vec<(String, Attr)> {
    let mut attrs = op.attrs();
    let required = match op {
        Op::Concat(op) => Some(("axis", op.axis)),
        Op::Cast(op) => Some(("to", op.to as i64)),
        Op::LRN(op) => Some(("size", op.size)),
        Op::DepthToSpace(op) => Some(("blocksize", op.blocksize)),
        Op::SpaceToDepth(op) => Some(("blocksize", op.blocksize)),
        _ => None,
    };
    if let Some((name, value)) = required {
        attrs.set(name, Attr::Int(value));
    }
    attrs.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

/// The encoded `AttributeProto`. `tensor` encodes a tensor value.
pub(crate) fn write(
    name: &str,
    attr: &Attr,
    place: &str,
    tensor: &mut dyn FnMut(&Tensor) -> Result<Splice, Problem>,
) -> Result<Splice, Problem> {
    let mut out = Splice::default();
    if let Attr::Encoded(bytes) = attr {
        out.push(bytes.clone(), None);
        return Ok(out);
    }
    out.put_field(1, name.as_bytes());
    let kind = match attr {
        Attr::Float(v) => {
            let mut field = Vec::new();
            put_tag(&mut field, 2, FIXED32);
            field.extend(v.to_le_bytes());
            out.put(&field);
            FLOAT
        }
        Attr::Int(v) => {
            out.put_varint_field(3, *v as u64);
            INT
        }
        Attr::Str(v) => {
            out.push_field(4, v.clone());
            STRING
        }
        Attr::Tensor(t) => {
            out.nest(5, tensor(t)?, None);
            TENSOR
        }
        Attr::Floats(values) => {
            // Repeated numbers of an attribute are not packed (proto2).
            let mut fields = Vec::new();
            for v in values {
                put_tag(&mut fields, 7, FIXED32);
                fields.extend(v.to_le_bytes());
            }
            out.put(&fields);
            FLOATS
        }
        Attr::Ints(values) => {
            let mut fields = Vec::new();
            for v in values {
                put_tag(&mut fields, 8, 0);
                put_varint(&mut fields, *v as u64);
            }
            out.put(&fields);
            INTS
        }
        Attr::Strs(values) => {
            values.iter().for_each(|v| out.push_field(9, v.clone()));
            STRINGS
        }
        Attr::Ref(reference) => {
            out.put_field(21, reference.as_bytes());
            return Ok(out);
        }
        Attr::Elided(n) => {
            let reason = format!("attribute {name:?} stands for {n} bytes that were not printed");
            return Err(Problem::Elided { place: place.to_owned(), reason });
        }
        other => {
            let reason = format!("attribute {name:?} has a value that ONNX cannot express: {other:?}");
            return Err(Problem::invalid(place, reason));
        }
    };
    out.put_varint_field(20, kind);
    Ok(out)
}
