//! NumPy's `.npy` and `.npz`, read one record at a time.
//!
//! Only the header goes through `ndarray-npy`: its arrays are read whole, and a data set need not fit in
//! memory. A compressed `.npz` entry cannot be sought in, so records are read in ascending order.

use super::Sample;
use crate::RuntimeError;
use basisopt_ir::{DType, Tensor};
use bytes::Bytes;
use flate2::read::DeflateDecoder;
use half::f16;
use image::{DynamicImage, GrayImage, RgbImage};
use ndarray_npy::npy::header::Header;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use zip::CompressionMethod;

/// Element types that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
}

/// Where the array's bytes are within the file.
#[derive(Clone, Debug)]
enum Place {
    /// From this offset on, as they are.
    Plain(u64),
    /// A deflated stream of this length at this offset; the header is inside it.
    Deflated { at: u64, len: u64 },
    /// Not in a file at all.
    Memory(Bytes),
}

/// One array of a `.npy` or `.npz` file, its header read, or one in memory.
#[derive(Clone, Debug)]
pub(crate) struct ArrayFile {
    /// Of an array in memory, what it is called in messages.
    path: PathBuf,
    /// `images` in an `.npz`, empty in an `.npy`.
    key: String,
    place: Place,
    element: Element,
    shape: Vec<usize>,
}

/// Whether this path names a NumPy file.
pub(crate) fn is_numpy(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npy") || e.eq_ignore_ascii_case("npz"))
}

/// The names of the arrays in an `.npz`; `None` for an `.npy`.
pub(crate) fn keys(path: &Path) -> Result<Option<Vec<String>>, RuntimeError> {
    if path.extension().is_none_or(|e| !e.eq_ignore_ascii_case("npz")) {
        return Ok(None);
    }
    let archive = open_archive(path)?;
    Ok(Some(archive.file_names().map(|n| n.strip_suffix(".npy").unwrap_or(n).to_owned()).collect()))
}

fn open_archive(path: &Path) -> Result<zip::ZipArchive<BufReader<File>>, RuntimeError> {
    let file = File::open(path).map_err(RuntimeError::io(path))?;
    zip::ZipArchive::new(BufReader::new(file))
        .map_err(|e| RuntimeError::data(path, format!("not an .npz file: {e}")))
}

impl ArrayFile {
    /// An array in memory, called `name` in messages.
    pub(crate) fn in_memory(name: &str, tensor: &Tensor) -> Result<Self, RuntimeError> {
        let element = match tensor.dtype() {
            DType::U8 => Element::U8,
            DType::F16 => Element::F16,
            DType::F32 => Element::F32,
            DType::F64 => Element::F64,
            other => {
                let reason = format!("holds {other} values; images are u8, preprocessed inputs are floats");
                return Err(RuntimeError::data(Path::new(name), reason));
            }
        };
        let place = Place::Memory(tensor.to_bytes()?);
        Ok(Self { path: name.into(), key: String::new(), place, element, shape: tensor.shape().to_vec() })
    }

    /// Reads the header of the array `key` of an `.npz`, or of an `.npy` whatever the key.
    pub(crate) fn open(path: &Path, key: &str) -> Result<Self, RuntimeError> {
        let in_archive = keys(path)?.is_some();
        let mut file = File::open(path).map_err(RuntimeError::io(path))?;
        let mut array = Self {
            path: path.to_owned(),
            key: if in_archive { key.to_owned() } else { String::new() },
            place: Place::Plain(0),
            element: Element::U8,
            shape: Vec::new(),
        };
        let mut available = file.metadata().map_err(RuntimeError::io(path))?.len();
        if in_archive {
            let mut archive = open_archive(path)?;
            let index = archive.index_for_name(&format!("{key}.npy")).or_else(|| archive.index_for_name(key));
            let index = index.ok_or_else(|| RuntimeError::data(path, format!("holds no array `{key}`")))?;
            let entry = archive.by_index_raw(index).map_err(|e| array.wrong(&e.to_string()))?;
            let (at, len) = (entry.data_start(), entry.compressed_size());
            available = at + len;
            array.place = match entry.compression() {
                CompressionMethod::Stored => Place::Plain(at),
                CompressionMethod::Deflated => Place::Deflated { at, len },
                other => {
                    return Err(array.wrong(&format!("is compressed with {other}; save it with numpy.savez")));
                }
            };
        }
        let header = match array.place {
            Place::Plain(at) => {
                file.seek(SeekFrom::Start(at)).map_err(RuntimeError::io(path))?;
                let header = Header::from_reader(&mut file)
                    .map_err(|e| array.wrong(&format!("has no NumPy header: {e}")))?;
                array.place = Place::Plain(file.stream_position().map_err(RuntimeError::io(path))?);
                header
            }
            _ => array.inflate()?.1,
        };
        if header.layout.is_fortran() {
            return Err(array.wrong("is stored column by column; save numpy.ascontiguousarray of it"));
        }
        let descriptor = header.type_descriptor.to_string();
        array.element = element(descriptor.trim_matches(['\'', '"'])).ok_or_else(|| {
            array.wrong(&format!("has elements of type {descriptor}; use uint8, an integer or a float type"))
        })?;
        array.shape = header.shape;
        let n_bytes = array.record_len().and_then(|r| r.checked_mul(array.len()));
        let n_bytes = n_bytes.ok_or_else(|| array.wrong("has more elements than memory can address"))? as u64;
        if let Place::Plain(at) = array.place
            && at.saturating_add(n_bytes) > available
        {
            return Err(array.wrong(&format!(
                "of shape {:?} is cut short: {n_bytes} bytes are missing some",
                array.shape
            )));
        }
        Ok(array)
    }

    /// Number of records: the size of the first axis.
    pub(crate) fn len(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    pub(crate) fn describe(&self) -> String {
        let kind = if self.element == Element::U8 { "bytes" } else { "numbers" };
        format!("array of {kind} {:?}", self.shape)
    }

    fn wrong(&self, reason: &str) -> RuntimeError {
        let what = if self.key.is_empty() { "the array".to_owned() } else { format!("array `{}`", self.key) };
        RuntimeError::data(&self.path, format!("{what} {reason}"))
    }

    fn record_shape(&self) -> &[usize] {
        self.shape.get(1..).unwrap_or(&[])
    }

    fn record_len(&self) -> Option<usize> {
        self.record_shape().iter().try_fold(self.element.n_bytes(), |n, &d| n.checked_mul(d))
    }

    /// The inflated stream, its header taken off.
    fn inflate(&self) -> Result<(Box<dyn Read + Send>, Header), RuntimeError> {
        let Place::Deflated { at, len } = self.place else {
            return Err(self.wrong("is not compressed"));
        };
        let mut file = File::open(&self.path).map_err(RuntimeError::io(&self.path))?;
        file.seek(SeekFrom::Start(at)).map_err(RuntimeError::io(&self.path))?;
        let mut stream = DeflateDecoder::new(BufReader::new(file.take(len)));
        let header =
            Header::from_reader(&mut stream).map_err(|e| self.wrong(&format!("has no NumPy header: {e}")))?;
        Ok((Box::new(BufReader::new(stream)), header))
    }

    pub(crate) fn is_compressed(&self) -> bool {
        matches!(self.place, Place::Deflated { .. })
    }

    pub(crate) fn reader(&self) -> Result<ArrayReader<'_>, RuntimeError> {
        let stream = match &self.place {
            &Place::Plain(at) => {
                let file = File::open(&self.path).map_err(RuntimeError::io(&self.path))?;
                Stream::Plain { file, at }
            }
            Place::Deflated { .. } => Stream::Deflated { stream: self.inflate()?.0, next: 0 },
            Place::Memory(bytes) => Stream::Memory(bytes),
        };
        Ok(ArrayReader { array: self, stream })
    }

    /// The whole array.
    pub(crate) fn tensor(&self) -> Result<Tensor, RuntimeError> {
        let n: Option<usize> = self.shape.iter().try_fold(self.element.n_bytes(), |n, &d| n.checked_mul(d));
        let n = n.ok_or_else(|| self.wrong("has more elements than memory can address"))?;
        // Read as far as there is something, so that a few bytes cannot ask for all of the memory.
        let mut bytes = Vec::new();
        let read = match &self.place {
            &Place::Plain(at) => {
                let mut file = File::open(&self.path).map_err(RuntimeError::io(&self.path))?;
                file.seek(SeekFrom::Start(at)).and_then(|_| file.take(n as u64).read_to_end(&mut bytes))
            }
            Place::Deflated { .. } => self.inflate()?.0.take(n as u64).read_to_end(&mut bytes),
            Place::Memory(all) => all.as_ref().take(n as u64).read_to_end(&mut bytes),
        };
        read.map_err(|e| self.wrong(&format!("cannot be read: {e}")))?;
        if bytes.len() != n {
            return Err(self.wrong(&format!(
                "of shape {:?} is cut short: {} of {n} bytes are there",
                self.shape,
                bytes.len()
            )));
        }
        Tensor::from_bytes(self.element.dtype(), self.shape.clone(), bytes.into())
            .map_err(|e| self.wrong(&e.to_string()))
    }

    /// Whether it holds floats, which are fed to a network as they are.
    pub(crate) fn is_float(&self) -> bool {
        matches!(self.element, Element::F16 | Element::F32 | Element::F64)
    }

    /// The whole array as integers: for labels, which are small.
    pub(crate) fn integers(&self) -> Result<Vec<i64>, RuntimeError> {
        if self.is_float() {
            return Err(self.wrong("holds floats; labels are integers"));
        }
        if self.shape.is_empty() || self.record_shape().iter().any(|&d| d != 1) {
            return Err(
                self.wrong(&format!("has shape {:?}; labels are one integer per image, [N]", self.shape))
            );
        }
        let mut reader = self.reader()?;
        (0..self.len())
            .map(|i| Ok(self.element.decode(&reader.bytes(i)?).first().map_or(0, |&v| v as i64)))
            .collect()
    }
}

enum Stream<'a> {
    Memory(&'a Bytes),
    Plain { file: File, at: u64 },
    Deflated { stream: Box<dyn Read + Send>, next: usize },
}

pub(crate) struct ArrayReader<'a> {
    array: &'a ArrayFile,
    stream: Stream<'a>,
}

impl ArrayReader<'_> {
    fn bytes(&mut self, index: usize) -> Result<Vec<u8>, RuntimeError> {
        let array = self.array;
        let n = array.record_len().unwrap_or(0);
        let mut bytes = vec![0; n];
        let result = match &mut self.stream {
            Stream::Memory(all) => match all.get(index * n..(index + 1) * n) {
                Some(record) => {
                    bytes.copy_from_slice(record);
                    Ok(())
                }
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            },
            Stream::Plain { file, at } => {
                let at = *at + index as u64 * n as u64;
                file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes))
            }
            Stream::Deflated { stream, next } => {
                let skip = index.saturating_sub(*next) as u64 * n as u64;
                *next = index + 1;
                io::copy(&mut stream.by_ref().take(skip), &mut io::sink())
                    .and_then(|_| stream.read_exact(&mut bytes))
            }
        };
        result.map_err(|e| array.wrong(&format!("cannot be read at record {index}: {e}")))?;
        Ok(bytes)
    }

    /// Record `index`; the indices of successive calls must rise.
    pub(crate) fn read(&mut self, index: usize) -> Result<Sample, RuntimeError> {
        let bytes = self.bytes(index)?;
        let array = self.array;
        let shape = array.record_shape();
        match array.element {
            Element::U8 => image_of(shape, bytes).map(Sample::Image).ok_or_else(|| {
                array.wrong(&format!(
                    "of bytes has shape {:?}; images are [N,H,W], [N,H,W,1|3] or [N,1|3,H,W]",
                    array.shape
                ))
            }),
            Element::F16 | Element::F32 | Element::F64 => {
                let values = array.element.decode(&bytes).into_iter().map(|v| v as f32).collect();
                Ok(Sample::Values { shape: shape.to_vec(), values })
            }
            other => Err(array.wrong(&format!(
                "has elements of type {other:?}; images are uint8, preprocessed inputs are floats"
            ))),
        }
    }
}

/// One image of bytes, channels last or first, whichever axis has 1 or 3 of them.
fn image_of(shape: &[usize], bytes: Vec<u8>) -> Option<DynamicImage> {
    let (height, width, n_channels, first) = match *shape {
        [h, w] => (h, w, 1, false),
        [h, w, c @ (1 | 3)] => (h, w, c, false),
        [c @ (1 | 3), h, w] => (h, w, c, true),
        _ => return None,
    };
    let (w, h) = (u32::try_from(width).ok()?, u32::try_from(height).ok()?);
    if n_channels == 1 {
        return GrayImage::from_raw(w, h, bytes).map(DynamicImage::ImageLuma8);
    }
    let bytes = match first {
        false => bytes,
        true => {
            let n = height * width;
            (0..n).flat_map(|i| [bytes[i], bytes[n + i], bytes[2 * n + i]]).collect()
        }
    };
    RgbImage::from_raw(w, h, bytes).map(DynamicImage::ImageRgb8)
}

fn element(descriptor: &str) -> Option<Element> {
    // Byte order: `<` little, `|` none, `=` the writer's own, which NumPy never stores; `>` is not read.
    let kind = descriptor.strip_prefix(['<', '|']).unwrap_or(descriptor);
    Some(match kind {
        "u1" | "b1" => Element::U8,
        "i1" => Element::I8,
        "u2" => Element::U16,
        "i2" => Element::I16,
        "u4" => Element::U32,
        "i4" => Element::I32,
        "u8" => Element::U64,
        "i8" => Element::I64,
        "f2" => Element::F16,
        "f4" => Element::F32,
        "f8" => Element::F64,
        _ => return None,
    })
}

/// The arrays of an `.npz` by name, in the order of the file, or the one of an `.npy`, whose name is empty.
///
/// # Errors
/// If the file cannot be read, or an array is of a type or order that is not read here.
pub fn read_arrays(path: &Path) -> Result<Vec<(String, Tensor)>, RuntimeError> {
    let keys = keys(path)?.unwrap_or_else(|| vec![String::new()]);
    keys.into_iter().map(|key| Ok((key.clone(), ArrayFile::open(path, &key)?.tensor()?))).collect()
}

impl Element {
    fn dtype(self) -> DType {
        match self {
            Self::U8 => DType::U8,
            Self::I8 => DType::I8,
            Self::U16 => DType::U16,
            Self::I16 => DType::I16,
            Self::U32 => DType::U32,
            Self::I32 => DType::I32,
            Self::U64 => DType::U64,
            Self::I64 => DType::I64,
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
            Self::F64 => DType::F64,
        }
    }

    fn n_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 | Self::F16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f64> {
        fn map<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            bytes.as_chunks::<N>().0.iter().map(|c| read(*c)).collect()
        }
        match self {
            Self::U8 => bytes.iter().map(|&b| f64::from(b)).collect(),
            Self::I8 => bytes.iter().map(|&b| f64::from(b as i8)).collect(),
            Self::U16 => map(bytes, |c| f64::from(u16::from_le_bytes(c))),
            Self::I16 => map(bytes, |c| f64::from(i16::from_le_bytes(c))),
            Self::U32 => map(bytes, |c| f64::from(u32::from_le_bytes(c))),
            Self::I32 => map(bytes, |c| f64::from(i32::from_le_bytes(c))),
            Self::U64 => map(bytes, |c| u64::from_le_bytes(c) as f64),
            Self::I64 => map(bytes, |c| i64::from_le_bytes(c) as f64),
            Self::F16 => map(bytes, |c| f16::from_le_bytes(c).to_f64()),
            Self::F32 => map(bytes, |c| f64::from(f32::from_le_bytes(c))),
            Self::F64 => map(bytes, f64::from_le_bytes),
        }
    }
}
