//! From an image to the numbers a network takes.

use crate::{InputInfo, RuntimeError};
use basisopt_ir::{DType, Tensor};
use image::imageops::{self, FilterType};
use image::{DynamicImage, GenericImageView};
use serde::{Deserialize, Serialize};

/// Order of the axes of an image input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `[batch, channels, height, width]`, the order of PyTorch and of most ONNX files.
    Nchw,
    /// `[batch, height, width, channels]`, the order of TensorFlow.
    Nhwc,
}

/// Which colour channels the network takes, in which order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    /// Red, green, blue. A grey image has three equal channels.
    #[default]
    Rgb,
    /// Blue, green, red (networks from Caffe or OpenCV). `mean` and `std` are in this order too.
    Bgr,
    /// One channel of luminance.
    Gray,
}

/// How 8-bit images become network inputs: geometry, then `(x / scale − mean) / std`.
///
/// Geometry: an image of the network's size is taken as it is, unless `resize` or `crop` is set.
/// Otherwise it is scaled (bilinear, antialiased) so that its shorter side is `resize` pixels, and the
/// centre is cut out. Without `resize`, the scale is such that the cut-out is 7/8 of the shorter
/// side, the usual 256 → 224. Alpha channels are dropped.
///
/// Floating-point data are taken to be preprocessed already and pass through untouched.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocess {
    /// Subtracted after scaling; one value, or one per channel.
    pub mean: Vec<f32>,
    /// Divides last; one value, or one per channel.
    pub std: Vec<f32>,
    /// Divides the bytes: 255 gives 0…1, 1 leaves 0…255.
    pub scale: f32,
    /// Order of the axes; `None` reads it off the input's shape: the axis that has as many
    /// channels as `channels` says.
    pub layout: Option<Layout>,
    /// The network's class is the label plus this: 1 for networks whose class 0 is "background".
    pub label_offset: i64,
    /// Shorter side after scaling, in pixels.
    pub resize: Option<usize>,
    /// Side of the square cut from the centre, in pixels; scaled to the network's size if that differs.
    /// `None` cuts out the network's size.
    pub crop: Option<usize>,
    /// Colour channels of the network.
    pub channels: Channels,
}

impl Default for Preprocess {
    fn default() -> Self {
        Self {
            mean: vec![0.0],
            std: vec![1.0],
            scale: 255.0,
            layout: None,
            label_offset: 0,
            resize: None,
            crop: None,
            channels: Channels::Rgb,
        }
    }
}

/// What one image becomes for one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub layout: Layout,
    n_channels: usize,
    height: usize,
    width: usize,
}

impl Preprocess {
    /// Checks the settings by themselves.
    ///
    /// # Errors
    /// [`RuntimeError::Preprocess`] names the setting.
    pub fn validate(&self) -> Result<(), RuntimeError> {
        let n = if self.channels == Channels::Gray { 1 } else { 3 };
        for (key, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != 1 && values.len() != n {
                return Err(wrong(key, format!("has {} values; give 1 or {n}", values.len())));
            }
            if values.iter().any(|v| !v.is_finite()) {
                return Err(wrong(key, "holds a value that is no number".to_owned()));
            }
        }
        if self.std.contains(&0.0) {
            return Err(wrong("std", "holds a zero, which would divide by it".to_owned()));
        }
        if !self.scale.is_finite() || self.scale == 0.0 {
            return Err(wrong("scale", format!("is {}; give 255, 1 or another divisor", self.scale)));
        }
        for (key, value) in [("resize", self.resize), ("crop", self.crop)] {
            if value == Some(0) {
                return Err(wrong(key, "is 0; give a size in pixels".to_owned()));
            }
        }
        if let (Some(resize), Some(crop)) = (self.resize, self.crop)
            && crop > resize
        {
            return Err(wrong("crop", format!("({crop}) is larger than `resize` ({resize})")));
        }
        Ok(())
    }

    /// What a black pixel becomes, by channel.
    pub fn blank(&self, n_channels: usize) -> Vec<f32> {
        let of = |values: &[f32], c: usize| values.get(c).or(values.first()).copied();
        (0..n_channels).map(|c| -of(&self.mean, c).unwrap_or(0.0) / of(&self.std, c).unwrap_or(1.0)).collect()
    }

    pub(crate) fn geometry(&self, input: &InputInfo) -> Result<Geometry, RuntimeError> {
        self.validate()?;
        let &[_, a, b, c] = input.shape.as_slice() else {
            let reason = format!(
                "cannot be found: input `{}` has shape {:?}, images need four axes",
                input.name, input.shape
            );
            return Err(wrong("layout", reason));
        };
        let expected = if self.channels == Channels::Gray { 1 } else { 3 };
        let layout = match self.layout {
            Some(layout) => layout,
            None if a == expected => Layout::Nchw,
            None if c == expected => Layout::Nhwc,
            // Not the channels we would give, which is said below.
            None if matches!(a, 1 | 3) => Layout::Nchw,
            None if matches!(c, 1 | 3) => Layout::Nhwc,
            None => {
                let reason = format!(
                    "cannot be told from input `{}` of shape {:?}: neither axis 1 nor axis 3 has 1 or 3 channels",
                    input.name, input.shape
                );
                return Err(wrong("layout", reason));
            }
        };
        let (n_channels, height, width) = match layout {
            Layout::Nchw => (a, b, c),
            Layout::Nhwc => (c, a, b),
        };
        if n_channels != expected {
            let remedy = match n_channels {
                1 => "; set channels = \"gray\"",
                3 => "; set channels = \"rgb\"",
                _ => "",
            };
            let reason =
                format!("gives {expected} channels, input `{}` takes {n_channels}{remedy}", input.name);
            return Err(wrong("channels", reason));
        }
        Ok(Geometry { layout, n_channels, height, width })
    }

    /// Appends the numbers of one image to `out`.
    pub(crate) fn apply(&self, image: &DynamicImage, to: Geometry, out: &mut Vec<f32>) -> Result<(), String> {
        let fitted = self.fit(image, to)?;
        let image = fitted.as_ref().unwrap_or(image);
        // Interleaved bytes, one pixel after another.
        let pixels = match self.channels {
            Channels::Gray => image.to_luma8().into_raw(),
            Channels::Rgb | Channels::Bgr => image.to_rgb8().into_raw(),
        };
        let n = to.n_channels;
        let normalize = |channel: usize, byte: u8| {
            let pick = |values: &[f32]| values.get(channel).or(values.first()).copied();
            let (mean, std) = (pick(&self.mean).unwrap_or(0.0), pick(&self.std).unwrap_or(1.0));
            (f32::from(byte) / self.scale - mean) / std
        };
        let stored = |channel: usize| if self.channels == Channels::Bgr { n - 1 - channel } else { channel };
        match to.layout {
            Layout::Nchw => {
                for channel in 0..n {
                    out.extend(
                        pixels.iter().skip(stored(channel)).step_by(n).map(|&b| normalize(channel, b)),
                    );
                }
            }
            Layout::Nhwc => {
                for pixel in pixels.chunks_exact(n) {
                    out.extend((0..n).map(|channel| normalize(channel, pixel[stored(channel)])));
                }
            }
        }
        Ok(())
    }

    /// The image at the network's size; `None` if it has that size already.
    fn fit(&self, image: &DynamicImage, to: Geometry) -> Result<Option<DynamicImage>, String> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err("the image is empty".to_owned());
        }
        let target = (to_u32(to.width)?, to_u32(to.height)?);
        if (width, height) == target && self.resize.is_none() && self.crop.is_none() {
            return Ok(None);
        }
        let crop = match self.crop {
            Some(side) => (to_u32(side)?, to_u32(side)?),
            None => target,
        };
        let factor = match self.resize {
            Some(side) => side as f64 / f64::from(width.min(height)),
            // Already of the size to cut from.
            None if self.crop.is_some() => 1.0,
            None => {
                let cover =
                    f64::max(f64::from(crop.0) / f64::from(width), f64::from(crop.1) / f64::from(height));
                cover * 8.0 / 7.0
            }
        };
        let scaled = |side: u32| ((f64::from(side) * factor).round() as u32).max(1);
        let (new_width, new_height) = (scaled(width), scaled(height));
        if new_width < crop.0 || new_height < crop.1 {
            return Err(format!(
                "the image is {new_width}×{new_height} pixels after scaling, less than the {}×{} to cut out; raise `resize`",
                crop.0, crop.1
            ));
        }
        let (x, y) = ((new_width - crop.0) / 2, (new_height - crop.1) / 2);
        // Bilinear with the filter widened by the scale, as Pillow does it: what networks are trained with.
        let resize = |image: DynamicImage, w, h| match (image.width(), image.height()) == (w, h) {
            true => image,
            false => match image {
                DynamicImage::ImageLuma8(i) => {
                    DynamicImage::ImageLuma8(imageops::resize(&i, w, h, FilterType::Triangle))
                }
                other => {
                    DynamicImage::ImageRgb8(imageops::resize(&other.to_rgb8(), w, h, FilterType::Triangle))
                }
            },
        };
        let cut = resize(image.clone(), new_width, new_height).crop_imm(x, y, crop.0, crop.1);
        Ok(Some(resize(cut, target.0, target.1)))
    }
}

fn wrong(key: &'static str, reason: String) -> RuntimeError {
    RuntimeError::Preprocess { key, reason }
}

fn to_u32(side: usize) -> Result<u32, String> {
    u32::try_from(side).map_err(|_| format!("{side} pixels are too many for an image"))
}

/// A tensor of `dtype`; integers are rounded and kept in range.
pub(crate) fn tensor_of(dtype: DType, shape: Vec<usize>, values: &[f32]) -> Result<Tensor, RuntimeError> {
    if dtype == DType::F32 {
        return Ok(Tensor::from_f32s(shape, values)?);
    }
    let round = dtype.is_integer();
    // The conversion to integers saturates, but cuts decimals off.
    let values: Vec<f64> = values.iter().map(|&v| f64::from(if round { v.round() } else { v })).collect();
    Ok(Tensor::from_f64s(dtype, shape, &values)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::RgbImage;

    fn input(shape: &[usize]) -> InputInfo {
        InputInfo { name: "x".to_owned(), dtype: DType::F32, shape: shape.to_vec(), batch_axis: Some(0) }
    }

    fn apply(p: &Preprocess, image: &DynamicImage, shape: &[usize]) -> Vec<f32> {
        let mut out = Vec::new();
        p.apply(image, p.geometry(&input(shape)).unwrap(), &mut out).unwrap();
        out
    }

    /// One row of two pixels: (0, 51, 102) and (153, 204, 255), fifths of the range.
    fn two_pixels() -> DynamicImage {
        DynamicImage::ImageRgb8(RgbImage::from_raw(2, 1, vec![0, 51, 102, 153, 204, 255]).unwrap())
    }

    #[test]
    fn layouts_and_channel_orders() {
        let p = Preprocess::default();
        assert_eq!(apply(&p, &two_pixels(), &[1, 3, 1, 2]), [0.0, 0.6, 0.2, 0.8, 0.4, 1.0]);
        assert_eq!(apply(&p, &two_pixels(), &[1, 1, 2, 3])[..3], [0.0, 0.2, 0.4]);
        let bgr = Preprocess { channels: Channels::Bgr, scale: 1.0, ..Preprocess::default() };
        assert_eq!(apply(&bgr, &two_pixels(), &[1, 3, 1, 2]), [102.0, 255.0, 51.0, 204.0, 0.0, 153.0]);
    }

    #[test]
    fn mean_and_std_follow_the_scale() {
        let p = Preprocess { mean: vec![0.0, 0.2, 0.4], std: vec![1.0, 2.0, 4.0], ..Preprocess::default() };
        let out = apply(&p, &two_pixels(), &[1, 3, 1, 2]);
        let expected = [0.0, 0.6, 0.0, 0.3, 0.0, 0.15];
        assert!(out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{out:?}");
    }

    #[test]
    fn a_wide_image_is_cut_at_its_centre() {
        // Sixteen columns, each of its own value; at 8 pixels height, 7 are cut out: no scaling at all.
        let image = RgbImage::from_fn(16, 8, |x, _| image::Rgb([x as u8; 3]));
        let p = Preprocess { scale: 1.0, ..Preprocess::default() };
        let out = apply(&p, &DynamicImage::ImageRgb8(image), &[1, 3, 7, 7]);
        assert_eq!(out[..7], [4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]);
    }

    #[test]
    fn wrong_settings_are_named() {
        let p = Preprocess { std: vec![0.0], ..Preprocess::default() };
        assert!(p.validate().unwrap_err().to_string().contains("`std`"));
        let gray = Preprocess { channels: Channels::Gray, ..Preprocess::default() };
        let error = gray.geometry(&input(&[1, 3, 8, 8])).unwrap_err().to_string();
        assert!(error.contains("channels = \"rgb\""), "{error}");
    }
}
