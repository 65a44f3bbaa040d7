//! Sliding windows: what convolution and pooling have in common.

use super::rules::{At, Fail, Types, one, ty};
use super::shape_words;
use crate::dim::{Dim, Shape};
use crate::op::{AutoPad, AveragePool, MaxPool};
use crate::tensor::DType;

/// The window attributes of an operator, as they are in the file: an empty list means the default.
pub(super) struct WindowAttrs<'a> {
    pub auto_pad: AutoPad,
    pub dilations: &'a [i64],
    pub kernel_shape: &'a [i64],
    pub pads: &'a [i64],
    pub strides: &'a [i64],
}

/// A window along one axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub kernel: i64,
    pub stride: i64,
    pub dilation: i64,
    /// Explicit padding before and after; 0 where `auto_pad` decides.
    pub pads: (i64, i64),
    pub auto_pad: AutoPad,
    pub ceil: bool,
}

impl WindowAttrs<'_> {
    /// How many axes the window has, as far as the attributes say.
    pub fn n_axes(&self) -> Option<usize> {
        let halves = self.pads.len() / 2;
        [self.kernel_shape.len(), self.strides.len(), self.dilations.len(), halves]
            .into_iter()
            .find(|&n| n > 0)
    }

    /// The windows along `n` axes with these kernel sizes.
    pub fn windows(&self, kernel: &[i64], n: usize, ceil: bool) -> Result<Vec<Window>, Fail> {
        let strides = per_axis("strides", self.strides, n, 1, 1)?;
        let dilations = per_axis("dilations", self.dilations, n, 1, 1)?;
        let pads = match self.auto_pad {
            AutoPad::NotSet => per_axis("pads", self.pads, 2 * n, 0, 0)?,
            // ONNX forbids both together; runtimes let auto_pad win.
            _ => vec![0; 2 * n],
        };
        let axes = kernel.iter().zip(&strides).zip(&dilations).zip(pads.iter().zip(pads.iter().skip(n)));
        let window = |(((&kernel, &stride), &dilation), (&begin, &end))| Window {
            kernel,
            stride,
            dilation,
            pads: (begin, end),
            auto_pad: self.auto_pad,
            ceil,
        };
        Ok(axes.take(n).map(window).collect())
    }
}

/// A list attribute with one entry per axis (or per end of an axis), or its default.
pub(super) fn per_axis(
    name: &str,
    given: &[i64],
    n: usize,
    default: i64,
    least: i64,
) -> Result<Vec<i64>, Fail> {
    if given.is_empty() {
        return Ok(vec![default; n]);
    }
    if given.len() != n {
        let message = format!("attribute `{name}` must have {n} entries, found {}: {given:?}", given.len());
        return Err(Fail::shape(message));
    }
    match given.iter().find(|&&v| v < least) {
        Some(v) => Err(Fail::shape(format!("attribute `{name}` must not be below {least}, found {v}"))),
        None => Ok(given.to_vec()),
    }
}

impl Window {
    /// From the first to one past the last element that the window reads.
    pub fn extent(&self) -> i64 {
        (self.kernel - 1).saturating_mul(self.dilation).saturating_add(1)
    }

    /// Padding before and after; `None` where it depends on an input size that is not known.
    pub fn resolved_pads(&self, input: &Dim) -> Option<(i64, i64)> {
        if !matches!(self.auto_pad, AutoPad::SameUpper | AutoPad::SameLower) {
            return Some(self.pads);
        }
        let total = if self.stride == 1 {
            // ceil(input/1) positions need extent - 1 more elements, whatever the input.
            self.extent() - 1
        } else {
            let input = i64::try_from(input.known()?).ok()?;
            let positions = input / self.stride + i64::from(input % self.stride != 0);
            (positions - 1)
                .saturating_mul(self.stride)
                .saturating_add(self.extent())
                .saturating_sub(input)
                .max(0)
        };
        Some(split_pads(total, self.auto_pad == AutoPad::SameUpper))
    }

    /// Number of positions of the window on an input.
    pub fn output(&self, input: &Dim) -> Result<Dim, Fail> {
        if matches!(self.auto_pad, AutoPad::SameUpper | AutoPad::SameLower) {
            return Ok(input.ceil_div(self.stride));
        }
        let (begin, end) = self.pads;
        let slack = begin.saturating_add(end).saturating_sub(self.extent());
        let room = input.add_int(slack);
        if let Dim::Known(n) = input
            && *n > 0
            && room == Dim::Unknown
        {
            let extent = self.extent();
            let message =
                format!("a window of {extent} does not fit into {n} elements padded by {begin} and {end}");
            return Err(Fail::shape(message));
        }
        if !self.ceil {
            return Ok(match input {
                Dim::Known(0) if room == Dim::Unknown => Dim::Known(0),
                _ => room.floor_div(self.stride).add_int(1),
            });
        }
        let positions = room.ceil_div(self.stride).add_int(1);
        match (&positions, input) {
            // The last window must start inside of the input or the padding before it.
            (Dim::Known(p), Dim::Known(n)) => {
                let start = (*p as i64 - 1).saturating_mul(self.stride);
                let outside = start >= (*n as i64).saturating_add(begin);
                Ok(Dim::Known(p - usize::from(outside && *p > 0)))
            }
            // It always does if rounding up adds less than the window and its padding leave.
            _ if end.saturating_add(self.stride) <= self.extent() => Ok(positions),
            _ => Ok(Dim::Unknown),
        }
    }
}

/// Halves of a total padding; the odd element goes to the end if `upper`, else to the beginning.
pub(super) fn split_pads(total: i64, upper: bool) -> (i64, i64) {
    let (small, large) = (total / 2, total - total / 2);
    if upper { (small, large) } else { (large, small) }
}

/// The spatial dimensions behind batch and channel.
pub(super) fn spatial(shape: &[Dim]) -> Result<&[Dim], Fail> {
    match shape.get(2..) {
        Some(spatial) => Ok(spatial),
        None => Err(Fail::shape(format!(
            "the input must have a batch and a channel axis, found {}",
            shape_words(shape)
        ))),
    }
}

pub(super) fn max_pool(at: &At<'_>, op: &MaxPool) -> Types {
    let attrs = WindowAttrs {
        auto_pad: op.auto_pad,
        dilations: &op.dilations,
        kernel_shape: &op.kernel_shape,
        pads: &op.pads,
        strides: &op.strides,
    };
    let shape = pool(at, &attrs, op.ceil_mode != 0)?;
    // The second output holds positions.
    Ok(vec![ty(at.dtype(0), shape.clone()), ty(Some(DType::I64), shape)])
}

pub(super) fn average_pool(at: &At<'_>, op: &AveragePool) -> Types {
    let attrs = WindowAttrs {
        auto_pad: op.auto_pad,
        dilations: &op.dilations,
        kernel_shape: &op.kernel_shape,
        pads: &op.pads,
        strides: &op.strides,
    };
    one(at.dtype(0), pool(at, &attrs, op.ceil_mode != 0)?)
}

fn pool(at: &At<'_>, attrs: &WindowAttrs<'_>, ceil: bool) -> Result<Option<Shape>, Fail> {
    let n = match at.shape(0) {
        Some(shape) => spatial(shape)?.len(),
        None => attrs.kernel_shape.len(),
    };
    if attrs.kernel_shape.is_empty() {
        return Err(Fail::shape("attribute `kernel_shape` is missing"));
    }
    let kernel = per_axis("kernel_shape", attrs.kernel_shape, n, 1, 1)?;
    let windows = attrs.windows(&kernel, n, ceil)?;
    let Some(shape) = at.shape(0) else { return Ok(None) };
    let mut out: Shape = shape.iter().take(2).cloned().collect();
    for (window, input) in windows.iter().zip(spatial(shape)?) {
        out.push(window.output(input)?);
    }
    Ok(Some(out))
}

pub(super) fn global_pool(at: &At<'_>) -> Types {
    let Some(shape) = at.shape(0) else { return one(at.dtype(0), None) };
    spatial(shape)?;
    let pooled = |(axis, dim): (usize, &Dim)| if axis < 2 { dim.clone() } else { Dim::Known(1) };
    one(at.dtype(0), Some(shape.iter().enumerate().map(pooled).collect()))
}
