//! Images in the caller's memory.

use crate::read::{Versioned, slice, versioned};
use crate::status::Failure;
use basisopt_embed::samples::SAMPLES;
use basisopt_ir::{DType, Tensor};
use basisopt_runtime::data::{Channels, Layout};
use basisopt_runtime::{Dataset, Preprocess};
use bytes::Bytes;
use std::ffi::c_void;
use std::mem::offset_of;

/// `BasisoptData.dtype`: `float`. The values are taken as they are: the network's own inputs, without the batch.
pub const BASISOPT_F32: u32 = 1;
/// `BasisoptData.dtype`: `uint8_t`, pixels 0 to 255. They are scaled to the network's size and preprocessed.
pub const BASISOPT_U8: u32 = 2;

/// `BasisoptData.layout`: channels first.
pub const BASISOPT_NCHW: u32 = 1;
/// `BasisoptData.layout`: channels last.
pub const BASISOPT_NHWC: u32 = 2;

/// `BasisoptData.channels`: blue, green, red.
pub const BASISOPT_BGR: u32 = 1;
/// `BasisoptData.channels`: luminance.
pub const BASISOPT_GRAY: u32 = 2;

/// Images to learn from, to choose by and to measure with. Set it to zero throughout, `size` to `sizeof(BasisoptData)`,
/// then `dtype`, `values`, `shape` and `n_axes`, and the rest as needed. Everything is copied during the call.
///
/// Pixels become inputs by `(x / scale - mean) / std`; what is said of that does not concern `BASISOPT_F32`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BasisoptData {
    /// `sizeof(BasisoptData)`.
    pub size: usize,
    /// `BASISOPT_F32` or `BASISOPT_U8`.
    pub dtype: u32,
    /// Order of the axes that the network takes; 0: told from the shape of its input.
    pub layout: u32,
    /// Colour channels that the network takes; 0: red, green, blue.
    pub channels: u32,
    /// What divides pixels first; 0: 255.
    pub scale: f32,
    /// The values of all images, in the order of `shape`, the last axis fastest.
    pub values: *const c_void,
    /// Sizes of the axes: `BASISOPT_F32` has the number of images and then the shape of one as the network takes it,
    /// `BASISOPT_U8` is `[N,H,W]`, `[N,H,W,C]` or `[N,C,H,W]`.
    pub shape: *const usize,
    /// How many axes there are.
    pub n_axes: usize,
    /// The class of each image; NULL: not known.
    pub labels: *const i64,
    /// How many labels there are: as many as images, or 0.
    pub n_labels: usize,
    /// Images that are calibrated on, at most; 0: 1000.
    pub n_samples: usize,
    /// Added to labels: 1 for networks whose class 0 is the background.
    pub label_offset: i64,
    /// One number, or one per channel; NULL: 0.
    pub mean: *const f32,
    /// How many there are.
    pub n_mean: usize,
    /// One number, or one per channel; NULL: 1.
    pub std: *const f32,
    /// How many there are.
    pub n_std: usize,
    /// Shorter side after scaling, in pixels; 0: such that an eighth is cut off, or nothing if the image has the
    /// network's size.
    pub resize: usize,
    /// Side of the square that is cut from the centre, in pixels; 0: the network's size.
    pub crop: usize,
}

// SAFETY: integers, numbers and pointers; zeros are a value of each.
unsafe impl Versioned for BasisoptData {
    const NAME: &'static str = "BasisoptData";
    const FIRST_SIZE: usize = offset_of!(Self, crop) + size_of::<usize>();
}
const _: () = assert!(size_of::<BasisoptData>() == BasisoptData::FIRST_SIZE);

/// Images, copied.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    pub dataset: Dataset,
    pub preprocess: Preprocess,
    pub n_samples: usize,
}

impl Images {
    /// # Safety
    /// As in `read`: for the struct and everything that it points to.
    pub(crate) unsafe fn read(ptr: *const BasisoptData) -> Result<Option<Self>, Failure> {
        // SAFETY: the caller's promise.
        let Some(given) = (unsafe { versioned(ptr, "data")? }) else { return Ok(None) };
        let dtype = match given.dtype {
            BASISOPT_F32 => DType::F32,
            BASISOPT_U8 => DType::U8,
            n => return Err(code("data.dtype", n, "BASISOPT_F32 or BASISOPT_U8")),
        };
        let layout = match given.layout {
            0 => None,
            BASISOPT_NCHW => Some(Layout::Nchw),
            BASISOPT_NHWC => Some(Layout::Nhwc),
            n => return Err(code("data.layout", n, "0, BASISOPT_NCHW or BASISOPT_NHWC")),
        };
        let channels = match given.channels {
            0 => Channels::Rgb,
            BASISOPT_BGR => Channels::Bgr,
            BASISOPT_GRAY => Channels::Gray,
            n => return Err(code("data.channels", n, "0, BASISOPT_BGR or BASISOPT_GRAY")),
        };
        // SAFETY: the caller's promise, for what the struct points to.
        let (shape, labels, mean, std) = unsafe {
            (
                slice(given.shape, given.n_axes, "data.shape")?.to_vec(),
                slice(given.labels, given.n_labels, "data.labels")?.to_vec(),
                slice(given.mean, given.n_mean, "data.mean")?.to_vec(),
                slice(given.std, given.n_std, "data.std")?.to_vec(),
            )
        };
        let n_bytes = basisopt_ir::tensor::n_elements(&shape).and_then(|n| dtype.n_bytes(n));
        let n_bytes = match n_bytes.filter(|&n| isize::try_from(n).is_ok()) {
            None => return Err(Failure::Shape { shape, reason: "it has more values than memory can hold" }),
            Some(0) => return Err(Failure::Shape { shape, reason: "it has no values" }),
            Some(_) if shape.len() < 2 => {
                return Err(Failure::Shape {
                    shape,
                    reason: "expected the number of images, then an image's",
                });
            }
            Some(n) => n,
        };
        // SAFETY: the caller's promise. Bytes need no alignment, so neither do these values.
        let mut bytes = unsafe { slice(given.values.cast::<u8>(), n_bytes, "data.values")?.to_vec() };
        if cfg!(target_endian = "big") && dtype == DType::F32 {
            bytes.chunks_exact_mut(4).for_each(<[u8]>::reverse);
        }
        let wrong = |e: &dyn std::fmt::Display| Failure::Images(e.to_string());
        let tensor = Tensor::from_bytes(dtype, shape, Bytes::from(bytes)).map_err(|e| wrong(&e))?;
        let labels = (!given.labels.is_null()).then_some(labels);
        let dataset = Dataset::in_memory("data", &tensor, labels).map_err(|e| {
            let text = e.to_string();
            wrong(&text.strip_prefix("data: ").unwrap_or(&text))
        })?;
        let size = |n: usize| (n > 0).then_some(n);
        let default = Preprocess::default();
        let preprocess = Preprocess {
            mean: if mean.is_empty() { default.mean } else { mean },
            std: if std.is_empty() { default.std } else { std },
            scale: if given.scale == 0.0 { default.scale } else { given.scale },
            layout,
            label_offset: given.label_offset,
            resize: size(given.resize),
            crop: size(given.crop),
            channels,
        };
        preprocess.validate().map_err(|e| wrong(&e))?;
        Ok(Some(Self { dataset, preprocess, n_samples: size(given.n_samples).unwrap_or(SAMPLES) }))
    }
}

fn code(what: &'static str, found: u32, expected: &'static str) -> Failure {
    Failure::Code { what, found: found.to_string(), expected }
}
