//! `TensorProto` to [`Tensor`], without decoding what can be shared.

use crate::error::Problem;
use crate::external::{DataFiles, DataRef, external};
use crate::wire::{FIXED32, FIXED64, Message};
use basisopt_ir::tensor::{DType, Tensor, n_elements};
use bytes::Bytes;

/// A `TensorProto` of which only the header has been read.
#[derive(Clone, Debug)]
pub(crate) struct RawTensor {
    pub message: Message,
    pub name: String,
    pub shape: Vec<usize>,
    /// `TensorProto.DataType` as it stands in the file.
    pub code: i32,
    /// Where the values are, if they are in a data file.
    pub external: Option<DataRef>,
}

impl RawTensor {
    /// Reads the header. `place` describes a tensor by its name, for errors.
    pub fn parse(bytes: Bytes, place: &dyn Fn(&str) -> String) -> Result<Self, Problem> {
        let message = Message::parse(bytes).map_err(|e| Problem::damaged(place("?"), e))?;
        let name = message.string(8).map_err(|e| Problem::damaged(place("?"), e))?.unwrap_or_default();
        let damaged = |reason: String| Problem::damaged(place(&name), reason);
        let shape = message.varints(1).map_err(damaged)?.into_iter().map(|d| {
            usize::try_from(d as i64)
                .map_err(|_| Problem::invalid(place(&name), format!("has a dimension of size {}", d as i64)))
        });
        let shape = shape.collect::<Result<Vec<_>, _>>()?;
        let code = message.varint(2).unwrap_or(0) as i32;
        let external = match message.varint(14) {
            Some(1) => Some(DataRef::parse(&message, &place(&name))?),
            _ => None,
        };
        Ok(Self { name, shape, code, external, message })
    }

    /// Bytes that the values take in a data file: what type and shape need, or, for types that we
    /// do not know, what the file says.
    pub fn n_external_bytes(&self, data: &DataRef, place: &str) -> Result<usize, Problem> {
        let unknown =
            || external(place, &data.location, "holds elements of unknown size and gives no length");
        match DType::from_onnx(self.code).filter(|t| t.n_bits() > 0) {
            // An overflowing shape asks for more than any file has.
            Some(dtype) => Ok(n_elements(&self.shape).and_then(|n| dtype.n_bytes(n)).unwrap_or(usize::MAX)),
            None => data.length.and_then(|n| usize::try_from(n).ok()).ok_or_else(unknown),
        }
    }

    /// The values in the data file, shared with it.
    pub fn external_bytes(
        &self,
        data: &DataRef,
        place: &str,
        files: &mut DataFiles,
    ) -> Result<Bytes, Problem> {
        files.slice(place, data, self.n_external_bytes(data, place)?)
    }

    /// The tensor; `None` for element types that [`Tensor`] cannot hold, such as strings.
    pub fn load(&self, place: &str, files: &mut DataFiles) -> Result<Option<Tensor>, Problem> {
        if self.code == 0 {
            return Err(Problem::invalid(place, "has no element type"));
        }
        let outside = match &self.external {
            Some(data) => Some(self.external_bytes(data, place, files)?),
            None => None,
        };
        let Some(dtype) = DType::from_onnx(self.code).filter(|t| *t != DType::String) else {
            return Ok(None);
        };
        let bytes = match outside {
            Some(bytes) => bytes,
            None => self.inline_bytes(dtype).map_err(|e| Problem::damaged(place, e))?,
        };
        let tensor = Tensor::from_bytes(dtype, self.shape.clone(), bytes);
        tensor.map(Some).map_err(|source| Problem::Tensor { place: place.to_owned(), source })
    }

    /// Little-endian elements from `raw_data` or the typed field of the element type.
    fn inline_bytes(&self, dtype: DType) -> Result<Bytes, String> {
        use DType::{BF16, C64, C128, F16, F32, F64, I16, I32, I64, U16, U32, U64};
        if let Some(raw) = self.message.last(9) {
            return Ok(raw);
        }
        match dtype {
            // Packed floats and doubles are little-endian on the wire too.
            F32 | C64 => self.message.fixed(4, FIXED32),
            F64 | C128 => self.message.fixed(10, FIXED64),
            I64 => self.integers(7, 8),
            U64 => self.integers(11, 8),
            U32 => self.integers(11, 4),
            I32 => self.integers(5, 4),
            I16 | U16 | F16 | BF16 => self.integers(5, 2),
            // One byte each; two or four elements in one for the sub-byte types.
            _ => self.integers(5, 1),
        }
    }

    /// The low `n_bytes` bytes of each integer in a field.
    fn integers(&self, number: u32, n_bytes: usize) -> Result<Bytes, String> {
        let values = self.message.varints(number)?;
        Ok(values.iter().flat_map(|v| v.to_le_bytes().into_iter().take(n_bytes)).collect())
    }
}
