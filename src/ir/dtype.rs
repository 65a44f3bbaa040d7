//! Element types.

use std::fmt;

/// The element type of a tensor. The discriminants are those of ONNX `TensorProto.DataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are the field's own")]
pub enum DType {
    F32 = 1,
    U8 = 2,
    I8 = 3,
    U16 = 4,
    I16 = 5,
    I32 = 6,
    I64 = 7,
    /// Variable-length strings: such tensors are carried, never read.
    String = 8,
    Bool = 9,
    F16 = 10,
    F64 = 11,
    U32 = 12,
    U64 = 13,
    C64 = 14,
    C128 = 15,
    BF16 = 16,
    F8E4M3FN = 17,
    F8E4M3FNUZ = 18,
    F8E5M2 = 19,
    F8E5M2FNUZ = 20,
    U4 = 21,
    I4 = 22,
    F4E2M1 = 23,
    F8E8M0 = 24,
    U2 = 25,
    I2 = 26,
}

const DTYPES: &[(DType, &str, usize)] = &[
    (DType::F32, "f32", 32),
    (DType::U8, "u8", 8),
    (DType::I8, "i8", 8),
    (DType::U16, "u16", 16),
    (DType::I16, "i16", 16),
    (DType::I32, "i32", 32),
    (DType::I64, "i64", 64),
    (DType::String, "string", 0),
    (DType::Bool, "bool", 8),
    (DType::F16, "f16", 16),
    (DType::F64, "f64", 64),
    (DType::U32, "u32", 32),
    (DType::U64, "u64", 64),
    (DType::C64, "c64", 64),
    (DType::C128, "c128", 128),
    (DType::BF16, "bf16", 16),
    (DType::F8E4M3FN, "f8e4m3fn", 8),
    (DType::F8E4M3FNUZ, "f8e4m3fnuz", 8),
    (DType::F8E5M2, "f8e5m2", 8),
    (DType::F8E5M2FNUZ, "f8e5m2fnuz", 8),
    (DType::U4, "u4", 4),
    (DType::I4, "i4", 4),
    (DType::F4E2M1, "f4e2m1", 4),
    (DType::F8E8M0, "f8e8m0", 8),
    (DType::U2, "u2", 2),
    (DType::I2, "i2", 2),
];

impl DType {
    /// The type with this ONNX `TensorProto.DataType` number, if it is one we know.
    pub fn from_onnx(code: i32) -> Option<Self> {
        DTYPES.iter().find(|(t, ..)| *t as i32 == code).map(|(t, ..)| *t)
    }

    /// The type with this name in the text format (`f32`, `bf16`, …).
    pub fn from_name(name: &str) -> Option<Self> {
        DTYPES.iter().find(|(_, n, _)| *n == name).map(|(t, ..)| *t)
    }

    /// The name in the text format.
    pub fn name(self) -> &'static str {
        DTYPES.iter().find(|(t, ..)| *t == self).map_or("?", |(_, n, _)| n)
    }

    /// Width of one element in bits; 0 for strings.
    pub fn n_bits(self) -> usize {
        DTYPES.iter().find(|(t, ..)| *t == self).map_or(0, |(.., b)| *b)
    }

    /// Bytes that `n` elements occupy as ONNX `raw_data` (sub-byte types are packed);
    /// `None` for strings and on overflow.
    pub fn n_bytes(self, n: usize) -> Option<usize> {
        match self.n_bits() {
            0 => None,
            bits => n.checked_mul(bits).map(|b| b.div_ceil(8)),
        }
    }

    /// Whether values of this type are IEEE-like floats that passes may compute with.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
    }

    /// Whether values of this type are integers (or booleans) that [`Tensor::to_i64s`](crate::Tensor::to_i64s) can read.
    pub fn is_integer(self) -> bool {
        use DType::*;
        matches!(self, U8 | I8 | U16 | I16 | I32 | I64 | Bool | U32 | U64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
