//! Single messages with a field or two replaced.

use crate::wire::{Message, Splice};
use basisopt_ir::Dim;
use basisopt_ir::graph::ValueType;
use bytes::Bytes;

/// Whether two types cannot both be right.
pub(super) fn contradicts(a: &ValueType, b: &ValueType) -> bool {
    let dtypes = matches!((a.dtype, b.dtype), (Some(x), Some(y)) if x != y);
    let shapes = match (&a.shape, &b.shape) {
        (Some(x), Some(y)) => x.len() != y.len() || x.iter().zip(y).any(|(x, y): (&Dim, &Dim)| x.differs(y)),
        _ => false,
    };
    dtypes || shapes
}

/// Index of the field before which new fields of this number go: behind the last of its kind,
/// else where its number puts it.
pub(super) fn insertion_point(message: &Message, number: u32) -> usize {
    let fields = &message.fields;
    match fields.iter().rposition(|f| f.number == number) {
        Some(last) => last + 1,
        None => fields.iter().position(|f| f.number > number).unwrap_or(fields.len()),
    }
}

/// The message with other strings in some fields, where the old ones stood; all else stays.
pub(super) fn with_strings(message: &Message, strings: &[(u32, &[String])], parent: &Bytes) -> Splice {
    let mut out = Splice::default();
    let mut left: Vec<_> = strings.iter().map(|s| Some(*s)).collect();
    for f in &message.fields {
        let Some(i) = strings.iter().position(|(number, _)| *number == f.number) else {
            out.push(message.whole(f), Some(parent));
            continue;
        };
        if let Some((number, values)) = left[i].take() {
            values.iter().for_each(|v| out.put_field(number, v.as_bytes()));
        }
    }
    for (number, values) in left.into_iter().flatten() {
        values.iter().for_each(|v| out.put_field(number, v.as_bytes()));
    }
    out
}

/// The message with another message in a field.
pub(super) fn with_field(message: &Message, number: u32, inner: Splice, parent: &Bytes) -> Splice {
    let (mut out, mut inner) = (Splice::default(), Some(inner));
    for f in &message.fields {
        match (f.number == number).then(|| inner.take()).flatten() {
            Some(inner) => out.nest(number, inner, Some(parent)),
            None => out.push(message.whole(f), Some(parent)),
        }
    }
    out
}
