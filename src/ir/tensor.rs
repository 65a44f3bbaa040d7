//! Element types and constant tensors.
//!
//! A [`Tensor`] never copies what it can share: values read from a file stay slices of that file
//! ([`bytes::Bytes`] over a memory map), a `ConstantOfShape` stays one element, and the generators
//! of the text format make their values only when somebody asks for them.

use crate::generator::generate;
use bytes::Bytes;
use half::{bf16, f16};

pub use crate::dtype::DType;
pub use crate::generator::Generator;

#[derive(Clone, Debug, PartialEq)]
enum Data {
    /// Little-endian elements, row-major.
    Bytes(Bytes),
    /// One element, repeated.
    Splat(Bytes),
    Generated(Generator),
    /// Values left out of a printed graph; only their Euclidean norm is known.
    Elided {
        norm: f64,
    },
}

/// A constant tensor: element type, static shape, values.
///
/// Cloning is cheap: the values are shared.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Data,
}

/// Why a tensor could not be made or read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are what the messages name")]
pub enum TensorError {
    /// The number of bytes does not fit the shape.
    #[error("a tensor {dtype}{shape:?} needs {expected} bytes, found {found}")]
    Length { dtype: DType, shape: Vec<usize>, expected: usize, found: usize },
    /// The shape has more elements than memory can address.
    #[error("the shape {shape:?} has too many elements")]
    TooLarge { shape: Vec<usize> },
    /// The values of this type cannot be read as the asked-for type.
    #[error("values of type {dtype} cannot be read as {wanted}")]
    Type { dtype: DType, wanted: &'static str },
    /// The values were elided from a printed graph.
    #[error("the values were elided when the graph was printed")]
    Elided,
}

/// Product of the dimensions, or `None` on overflow.
pub fn n_elements(shape: &[usize]) -> Option<usize> {
    // A zero anywhere makes the product zero, whatever the others would overflow to.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

impl Tensor {
    /// A tensor over little-endian row-major bytes.
    ///
    /// # Errors
    /// [`TensorError::Length`] if the bytes are not exactly what the shape needs,
    /// [`TensorError::TooLarge`] if the shape overflows.
    pub fn from_bytes(dtype: DType, shape: Vec<usize>, bytes: Bytes) -> Result<Self, TensorError> {
        let expected = n_elements(&shape)
            .and_then(|n| dtype.n_bytes(n))
            .ok_or_else(|| TensorError::TooLarge { shape: shape.clone() })?;
        if bytes.len() != expected {
            return Err(TensorError::Length { dtype, shape, expected, found: bytes.len() });
        }
        Ok(Self { dtype, shape, data: Data::Bytes(bytes) })
    }

    /// A tensor with every element equal to the one given as little-endian bytes.
    ///
    /// # Errors
    /// [`TensorError::Length`] if `element` is not one element long.
    pub fn splat(dtype: DType, shape: Vec<usize>, element: Bytes) -> Result<Self, TensorError> {
        let expected = dtype.n_bytes(1).unwrap_or(0);
        if element.len() != expected || expected == 0 {
            return Err(TensorError::Length { dtype, shape, expected, found: element.len() });
        }
        if n_elements(&shape).and_then(|n| dtype.n_bytes(n)).is_none() {
            return Err(TensorError::TooLarge { shape });
        }
        Ok(Self { dtype, shape, data: Data::Splat(element) })
    }

    /// A float tensor with every element `value`, rounded to `dtype`.
    ///
    /// # Errors
    /// [`TensorError::Type`] if `dtype` is neither float nor integer.
    pub fn full(dtype: DType, shape: Vec<usize>, value: f64) -> Result<Self, TensorError> {
        Self::splat(dtype, shape, Bytes::from(encode_f64s(dtype, &[value])?))
    }

    /// A tensor whose values are made when they are first read.
    pub fn generated(dtype: DType, shape: Vec<usize>, generator: Generator) -> Result<Self, TensorError> {
        if n_elements(&shape).and_then(|n| dtype.n_bytes(n)).is_none() {
            return Err(TensorError::TooLarge { shape });
        }
        Ok(Self { dtype, shape, data: Data::Generated(generator) })
    }

    /// A tensor of which only the norm is known, as printed graphs hold them.
    pub fn elided(dtype: DType, shape: Vec<usize>, norm: f64) -> Self {
        Self { dtype, shape, data: Data::Elided { norm } }
    }

    /// Rounds `values` to `dtype` (round to nearest, ties to even).
    ///
    /// # Errors
    /// [`TensorError::Length`] if the count does not fit the shape, [`TensorError::Type`] if
    /// `dtype` is neither float nor integer.
    pub fn from_f64s(dtype: DType, shape: Vec<usize>, values: &[f64]) -> Result<Self, TensorError> {
        Self::from_bytes(dtype, shape, Bytes::from(encode_f64s(dtype, values)?))
    }

    /// A `f32` tensor.
    ///
    /// # Errors
    /// [`TensorError::Length`] if the count does not fit the shape.
    pub fn from_f32s(shape: Vec<usize>, values: &[f32]) -> Result<Self, TensorError> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::from_bytes(DType::F32, shape, Bytes::from(bytes))
    }

    /// An `i64` tensor.
    ///
    /// # Errors
    /// [`TensorError::Length`] if the count does not fit the shape.
    pub fn from_i64s(shape: Vec<usize>, values: &[i64]) -> Result<Self, TensorError> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::from_bytes(DType::I64, shape, Bytes::from(bytes))
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Static shape; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        // Checked when the tensor was made.
        n_elements(&self.shape).unwrap_or(0)
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The generator behind the values, if they have not been replaced by bytes.
    pub fn generator(&self) -> Option<&Generator> {
        match &self.data {
            Data::Generated(g) => Some(g),
            _ => None,
        }
    }

    /// The single element behind a splat, as little-endian bytes.
    pub fn splat_element(&self) -> Option<&Bytes> {
        match &self.data {
            Data::Splat(e) => Some(e),
            _ => None,
        }
    }

    /// Whether the values were left out of a printed graph and cannot be read.
    pub fn is_elided(&self) -> bool {
        matches!(self.data, Data::Elided { .. })
    }

    /// The same values under another shape with as many elements.
    ///
    /// # Errors
    /// [`TensorError::Length`] if the element counts differ. Low-rank generators are materialised
    /// first, because their values depend on the shape.
    pub fn reshaped(&self, shape: Vec<usize>) -> Result<Self, TensorError> {
        if n_elements(&shape) != Some(self.len()) {
            let expected = n_elements(&shape).unwrap_or(usize::MAX);
            return Err(TensorError::Length { dtype: self.dtype, shape, expected, found: self.len() });
        }
        let data = match &self.data {
            Data::Generated(Generator::LowRank { .. }) => Data::Bytes(self.to_bytes()?),
            data => data.clone(),
        };
        Ok(Self { dtype: self.dtype, shape, data })
    }

    /// All elements as little-endian row-major bytes. Shares storage where it can.
    ///
    /// # Errors
    /// [`TensorError::Elided`] if there are no values to give.
    pub fn to_bytes(&self) -> Result<Bytes, TensorError> {
        match &self.data {
            Data::Bytes(b) => Ok(b.clone()),
            Data::Splat(element) if self.dtype.n_bits().is_multiple_of(8) => {
                Ok(Bytes::from(element.repeat(self.len())))
            }
            Data::Splat(_) => Err(TensorError::Type { dtype: self.dtype, wanted: "whole bytes" }),
            Data::Generated(g) => Ok(Bytes::from(encode_f64s(self.dtype, &generate(g, &self.shape))?)),
            Data::Elided { .. } => Err(TensorError::Elided),
        }
    }

    /// All elements as `f64`, row-major. Exact for every float type and for integers below 2⁵³.
    ///
    /// # Errors
    /// [`TensorError::Type`] for strings, complex, sub-byte and 8-bit float types.
    pub fn to_f64s(&self) -> Result<Vec<f64>, TensorError> {
        match &self.data {
            Data::Splat(e) => {
                Ok(vec![decode_f64s(self.dtype, e)?.first().copied().unwrap_or(0.0); self.len()])
            }
            _ => decode_f64s(self.dtype, &self.to_bytes()?),
        }
    }

    /// All elements as `f32`, row-major; `f64` and wide integers are rounded.
    ///
    /// # Errors
    /// As [`Tensor::to_f64s`].
    pub fn to_f32s(&self) -> Result<Vec<f32>, TensorError> {
        if self.dtype == DType::F32 {
            let bytes = self.to_bytes()?;
            return Ok(chunks(&bytes).map(f32::from_le_bytes).collect());
        }
        Ok(self.to_f64s()?.into_iter().map(|v| v as f32).collect())
    }

    /// All elements of an integer or boolean tensor.
    ///
    /// # Errors
    /// [`TensorError::Type`] if the elements are not integers.
    pub fn to_i64s(&self) -> Result<Vec<i64>, TensorError> {
        let bytes = self.to_bytes()?;
        Ok(match self.dtype {
            DType::I64 => chunks(&bytes).map(i64::from_le_bytes).collect(),
            DType::U64 => chunks(&bytes).map(|c| u64::from_le_bytes(c) as i64).collect(),
            DType::I32 => chunks(&bytes).map(|c| i64::from(i32::from_le_bytes(c))).collect(),
            DType::U32 => chunks(&bytes).map(|c| i64::from(u32::from_le_bytes(c))).collect(),
            DType::I16 => chunks(&bytes).map(|c| i64::from(i16::from_le_bytes(c))).collect(),
            DType::U16 => chunks(&bytes).map(|c| i64::from(u16::from_le_bytes(c))).collect(),
            DType::I8 => bytes.iter().map(|&b| i64::from(b as i8)).collect(),
            DType::U8 | DType::Bool => bytes.iter().map(|&b| i64::from(b)).collect(),
            dtype => return Err(TensorError::Type { dtype, wanted: "integers" }),
        })
    }

    /// Whether no element is NaN or infinite; true for what is no float, and where the values are not
    /// there to look at. Copies nothing.
    pub fn is_finite(&self) -> bool {
        // The exponent of what is not finite is all ones.
        fn finite<const N: usize>(bytes: &[u8], exponent: [u8; N]) -> bool {
            !chunks::<N>(bytes).any(|c| c.iter().zip(&exponent).all(|(b, e)| b & e == *e))
        }
        let bytes = match &self.data {
            Data::Bytes(bytes) | Data::Splat(bytes) => bytes,
            Data::Generated(_) | Data::Elided { .. } => return true,
        };
        match self.dtype {
            DType::F32 => finite(bytes, [0, 0, 0x80, 0x7f]),
            DType::F64 => finite(bytes, [0, 0, 0, 0, 0, 0, 0xf0, 0x7f]),
            DType::F16 => finite(bytes, [0, 0x7c]),
            DType::BF16 => finite(bytes, [0x80, 0x7f]),
            _ => true,
        }
    }

    /// Euclidean norm of the elements; `None` where they cannot be read as numbers.
    pub fn norm(&self) -> Option<f64> {
        match &self.data {
            Data::Elided { norm } => Some(*norm),
            Data::Splat(e) => {
                let v = *decode_f64s(self.dtype, e).ok()?.first()?;
                Some(v.abs() * (self.len() as f64).sqrt())
            }
            _ => Some(self.to_f64s().ok()?.iter().map(|v| v * v).sum::<f64>().sqrt()),
        }
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

fn decode_f64s(dtype: DType, bytes: &[u8]) -> Result<Vec<f64>, TensorError> {
    Ok(match dtype {
        DType::F32 => chunks(bytes).map(|c| f64::from(f32::from_le_bytes(c))).collect(),
        DType::F64 => chunks(bytes).map(f64::from_le_bytes).collect(),
        DType::F16 => chunks(bytes).map(|c| f16::from_le_bytes(c).to_f64()).collect(),
        DType::BF16 => chunks(bytes).map(|c| bf16::from_le_bytes(c).to_f64()).collect(),
        DType::I64 => chunks(bytes).map(|c| i64::from_le_bytes(c) as f64).collect(),
        DType::U64 => chunks(bytes).map(|c| u64::from_le_bytes(c) as f64).collect(),
        DType::I32 => chunks(bytes).map(|c| f64::from(i32::from_le_bytes(c))).collect(),
        DType::U32 => chunks(bytes).map(|c| f64::from(u32::from_le_bytes(c))).collect(),
        DType::I16 => chunks(bytes).map(|c| f64::from(i16::from_le_bytes(c))).collect(),
        DType::U16 => chunks(bytes).map(|c| f64::from(u16::from_le_bytes(c))).collect(),
        DType::I8 => bytes.iter().map(|&b| f64::from(b as i8)).collect(),
        DType::U8 | DType::Bool => bytes.iter().map(|&b| f64::from(b)).collect(),
        dtype => return Err(TensorError::Type { dtype, wanted: "numbers" }),
    })
}

fn encode_f64s(dtype: DType, values: &[f64]) -> Result<Vec<u8>, TensorError> {
    Ok(match dtype {
        DType::F32 => values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
        DType::F64 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| f16::from_f64(v).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&v| bf16::from_f64(v).to_le_bytes()).collect(),
        DType::I64 => values.iter().flat_map(|&v| (v as i64).to_le_bytes()).collect(),
        DType::U64 => values.iter().flat_map(|&v| (v as u64).to_le_bytes()).collect(),
        DType::I32 => values.iter().flat_map(|&v| (v as i32).to_le_bytes()).collect(),
        DType::U32 => values.iter().flat_map(|&v| (v as u32).to_le_bytes()).collect(),
        DType::I16 => values.iter().flat_map(|&v| (v as i16).to_le_bytes()).collect(),
        DType::U16 => values.iter().flat_map(|&v| (v as u16).to_le_bytes()).collect(),
        DType::I8 => values.iter().map(|&v| v as i8 as u8).collect(),
        DType::U8 => values.iter().map(|&v| v as u8).collect(),
        DType::Bool => values.iter().map(|&v| u8::from(v != 0.0)).collect(),
        dtype => return Err(TensorError::Type { dtype, wanted: "numbers" }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float_type_round_trips_what_it_can_hold() {
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let values = [0.0, -0.5, 1.0, 96.0];
            let t = Tensor::from_f64s(dtype, vec![2, 2], &values).unwrap();
            assert_eq!(t.to_f64s().unwrap(), values, "{dtype}");
        }
    }

    #[test]
    fn lengths_are_checked_before_anything_is_read() {
        let err = Tensor::from_bytes(DType::F32, vec![2, 2], Bytes::from_static(&[0; 15])).unwrap_err();
        assert!(matches!(err, TensorError::Length { expected: 16, found: 15, .. }));
        let err = Tensor::from_bytes(DType::F32, vec![usize::MAX, 3], Bytes::new()).unwrap_err();
        assert!(matches!(err, TensorError::TooLarge { .. }));
    }

    #[test]
    fn sub_byte_types_are_packed() {
        assert_eq!(DType::I4.n_bytes(3), Some(2));
        assert_eq!(DType::U2.n_bytes(5), Some(2));
    }

    #[test]
    fn low_rank_means_low_rank() {
        let t = Tensor::generated(DType::F64, vec![3, 4], Generator::LowRank { rank: 1, seed: 7 }).unwrap();
        let v = t.to_f64s().unwrap();
        for i in 1..3 {
            for j in 1..4 {
                assert!((v[0] * v[i * 4 + j] - v[j] * v[i * 4]).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_seen_in_every_type() {
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            for (value, finite) in [(1.5, true), (-0.0, true), (f64::NAN, false), (f64::NEG_INFINITY, false)]
            {
                let t = Tensor::from_f64s(dtype, vec![3], &[1.0, value, 2.0]).unwrap();
                assert_eq!(t.is_finite(), finite, "{dtype} {value}");
            }
        }
        assert!(Tensor::from_f64s(DType::F16, vec![1], &[65504.0]).unwrap().is_finite());
    }

    #[test]
    fn splats_know_their_norm() {
        let t = Tensor::full(DType::F32, vec![4, 4], 0.5).unwrap();
        assert_eq!(t.norm(), Some(2.0));
        assert_eq!(t.to_f32s().unwrap(), vec![0.5; 16]);
    }
}
