//! Gradients of pooling.

use super::conv::transposed;
use super::nodes::{Spread, Window, places, plane, size, sizes, window_attrs};
use super::{At, Unfit};
use crate::differentiate::builder::Builder;
use basisopt_ir::ValueId;
use basisopt_ir::op;

fn kernel(list: &[i64]) -> Result<Vec<usize>, Unfit> {
    let kernel: Option<Vec<usize>> = list.iter().map(|&k| usize::try_from(k).ok()).collect();
    kernel.filter(|k| !k.is_empty()).ok_or_else(|| Unfit::because("it has no kernel_shape"))
}

/// The gradient goes to the first place of the window that is equal to its maximum. Padding is −∞.
pub(super) fn max_grad(b: &mut Builder, at: &At, op: &op::MaxPoolGrad) -> Result<ValueId, Unfit> {
    let (dy, x, y) = (at.input(0)?, at.input(1)?, at.input(2)?);
    let (input, output) = (plane(b, x)?, plane(b, y)?);
    let windows = window_attrs!(op).windows(&kernel(&op.kernel_shape)?, &input, &output)?;
    let n = windows.len();
    let pads: Vec<(usize, usize)> = windows.iter().map(|w| (w.before, w.room())).collect();
    let padded = b.pad(x, n + 2, 2, &pads, (f64::NEG_INFINITY, x));
    let axes: Vec<usize> = (2..n + 2).collect();
    let steps: Vec<usize> = windows.iter().map(|w| w.stride).collect();
    let places = places(&windows);

    // The number of the first such place, by position: from the last place to the first, each overwrites the others.
    let mut first = b.number(-1.0, x);
    for (k, place) in places.iter().enumerate().rev() {
        let (starts, ends): (Vec<usize>, Vec<usize>) =
            windows.iter().zip(place).map(|(w, &k)| w.slice(k)).unzip();
        let slice = b.slice(padded, &axes, &starts, &ends, &steps);
        let is_largest = b.node(op::Equal::default(), &[slice, y]);
        let number = b.number(k as f64, x);
        first = b.node(op::Where {}, &[is_largest, number, first]);
    }

    let zero = b.number(0.0, x);
    let shape = sizes(b, dy)?;
    let mut total = None;
    for (k, place) in places.iter().enumerate() {
        let number = b.number(k as f64, x);
        let is_first = b.node(op::Equal::default(), &[first, number]);
        let share = b.node(op::Where {}, &[is_first, dy, zero]);
        let spread = |(a, (w, &k)): (usize, (&Window, &usize))| Spread {
            axis: a + 2,
            start: k * w.dilation,
            step: w.stride,
            size: w.before + w.input + w.room(),
        };
        let moves: Vec<Spread> = windows.iter().zip(place).enumerate().map(spread).collect();
        let share = b.spread(share, x, &shape, &moves)?;
        total = Some(match total {
            None => share,
            Some(sum) => b.add(sum, share),
        });
    }
    let total = total.ok_or_else(|| Unfit::because("its window is empty"))?;
    if pads.iter().all(|&p| p == (0, 0)) {
        return Ok(total);
    }
    let starts: Vec<usize> = windows.iter().map(|w| w.before).collect();
    let ends: Vec<usize> = windows.iter().map(|w| w.before + w.input).collect();
    Ok(b.slice(total, &axes, &starts, &ends, &vec![1; n]))
}

/// Every element of a window gets dy over the number of elements that were counted.
pub(super) fn average_grad(b: &mut Builder, at: &At, op: &op::AveragePoolGrad) -> Result<ValueId, Unfit> {
    let (dy, x) = (at.input(0)?, at.input(1)?);
    let (input, output) = (plane(b, x)?, plane(b, dy)?);
    let kernel = kernel(&op.kernel_shape)?;
    let windows = window_attrs!(op).windows(&kernel, &input, &output)?;
    let n_channels = size(b, x, 1)?;
    let mut shares = vec![1.0];
    for w in &windows {
        let counts: Vec<usize> = (0..w.output).map(|o| counted(w, o, op.count_include_pad == 1)).collect();
        shares = shares.iter().flat_map(|s| counts.iter().map(move |&c| s / c.max(1) as f64)).collect();
    }
    let shape = [&[1, 1], &output[..]].concat();
    let shares = b.floats(&shape, &shares, x)?;
    let scaled = b.mul(dy, shares);
    let shape = [&[n_channels, 1], &kernel[..]].concat();
    let ones = b.floats(&shape, &vec![1.0; shape.iter().product()], x)?;
    Ok(transposed(b, scaled, ones, &windows, n_channels as i64))
}

/// Places of a window that count: inside of the input, or of its padding too. Beyond that there is nothing to count:
/// rounding up makes such windows.
fn counted(w: &Window, position: usize, padding: bool) -> usize {
    let (low, high) =
        if padding { (0, w.before + w.input + w.after) } else { (w.before, w.before + w.input) };
    (0..w.kernel).map(|k| position * w.stride + k * w.dilation).filter(|i| (low..high).contains(i)).count()
}
