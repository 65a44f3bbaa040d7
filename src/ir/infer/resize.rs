//! Interpolation to another size.

use super::contents::Elem;
use super::rules::{At, Fail, Types, axes, axis, one};
use super::shape_words;
use crate::dim::{Dim, Shape};
use crate::op::Resize;

/// `floor(dim · scale)` in single precision, as runtimes compute it.
fn scaled(dim: &Dim, scale: f64) -> Dim {
    let scale = scale as f32;
    if !(scale.is_finite() && scale > 0.0) {
        return Dim::Unknown;
    }
    if let Dim::Known(n) = dim {
        let product = (*n as f32 * scale).floor();
        return if product < 9.0e15 { Dim::Known(product as usize) } else { Dim::Unknown };
    }
    let inverse = 1.0 / scale;
    if scale.fract() == 0.0 && scale < 1.0e6 {
        dim.mul_int(scale as i64)
    } else if inverse.fract() == 0.0 && inverse < 1.0e6 && (inverse as i64).count_ones() == 1 {
        // Only a power of two has an inverse without rounding, so that the floor is certain.
        dim.floor_div(inverse as i64)
    } else {
        Dim::Unknown
    }
}

fn by_scales(shape: &[Dim], scales: &[Option<f64>]) -> Shape {
    shape.iter().zip(scales).map(|(d, s)| s.map_or(Dim::Unknown, |s| scaled(d, s))).collect()
}

fn count(name: &str, found: usize, expected: usize, shape: &[Dim]) -> Result<(), Fail> {
    if found == expected {
        return Ok(());
    }
    let shape = shape_words(shape);
    Err(Fail::shape(format!("{found} {name} for {expected} axes of an input of shape {shape}")))
}

/// Scales are an attribute before opset 9 and input 1 since.
pub(super) fn upsample(at: &At<'_>, given: Option<&[f32]>) -> Types {
    let Some(shape) = at.shape(0) else { return one(at.dtype(0), None) };
    let scales: Option<Vec<Option<f64>>> = match given {
        Some(list) => Some(list.iter().map(|&s| Some(f64::from(s))).collect()),
        None => at.elems(1).map(|e| e.iter().map(Elem::float).collect()),
    };
    let Some(scales) = scales else { return one(at.dtype(0), Some(vec![Dim::Unknown; shape.len()])) };
    count("scales", scales.len(), shape.len(), shape)?;
    one(at.dtype(0), Some(by_scales(shape, &scales)))
}

/// Opset 10 has the scales in input 1; later ones have a region, scales and sizes in 1, 2 and 3, of
/// which an empty tensor is as good as none.
pub(super) fn resize(at: &At<'_>, op: &Resize) -> Types {
    let dtype = at.dtype(0);
    let Some(shape) = at.shape(0) else { return one(dtype, None) };
    let along: Vec<usize> = match &op.axes {
        Some(given) => {
            // Here the order matters: scales and sizes come in it.
            axes(given, shape.len())?;
            given.iter().map(|&a| axis(a, shape.len())).collect::<Result<_, _>>()?
        }
        None => (0..shape.len()).collect(),
    };
    let mut out = shape.to_vec();
    let picked: Shape = along.iter().filter_map(|&a| shape.get(a).cloned()).collect();
    let (scales_slot, sizes_slot) = if at.opset <= 10 { (1, usize::MAX) } else { (2, 3) };
    let filled = |slot: usize| at.has(slot) && at.elems(slot).is_none_or(|e| !e.is_empty());

    let resized: Shape = if sizes_slot != usize::MAX && filled(sizes_slot) {
        match at.elems(sizes_slot) {
            None => vec![Dim::Unknown; along.len()],
            Some(sizes) => {
                count("sizes", sizes.len(), along.len(), shape)?;
                sized(&picked, sizes, &op.keep_aspect_ratio_policy)
            }
        }
    } else if filled(scales_slot) {
        match at.elems(scales_slot) {
            // Cropping resizes the region, which is not followed.
            Some(scales) if op.coordinate_transformation_mode != "tf_crop_and_resize" => {
                count("scales", scales.len(), along.len(), shape)?;
                by_scales(&picked, &scales.iter().map(Elem::float).collect::<Vec<_>>())
            }
            _ => vec![Dim::Unknown; along.len()],
        }
    } else {
        return Err(Fail::shape("it has neither scales nor sizes"));
    };
    for (axis, dim) in along.into_iter().zip(resized) {
        if let Some(place) = out.get_mut(axis) {
            *place = dim;
        }
    }
    one(dtype, Some(out))
}

fn sized(input: &[Dim], sizes: &[Elem], policy: &str) -> Shape {
    let shrink = match policy {
        "not_larger" => true,
        "not_smaller" => false,
        _ => return sizes.iter().map(Elem::dim).collect(),
    };
    // One scale for all axes, the smallest or the largest that a size asks for.
    let ratio = |(d, s): (&Dim, &Elem)| Some(s.float()? as f32 / d.known()? as f32);
    let ratios: Option<Vec<f32>> = input.iter().zip(sizes).map(ratio).collect();
    let scale = ratios.and_then(|r| r.into_iter().reduce(if shrink { f32::min } else { f32::max }));
    let Some(scale) = scale.filter(|s| s.is_finite()) else { return vec![Dim::Unknown; sizes.len()] };
    let round = |d: &Dim| match d.known() {
        Some(n) => Dim::Known((n as f32 * scale + 0.5).floor() as usize),
        None => Dim::Unknown,
    };
    input.iter().map(round).collect()
}
