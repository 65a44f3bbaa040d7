//! Gradients of convolutions.

use super::nodes::{Window, places, plane, size, window_attrs};
use super::{At, Unfit};
use crate::differentiate::builder::Builder;
use basisopt_ir::ValueId;
use basisopt_ir::op;

/// The adjoint of a convolution: a transposed one with the same weight. What is padding there is cut off here, and
/// elements that no position reads are zero, which is what `output_padding` adds.
pub(super) fn transposed(
    b: &mut Builder,
    dy: ValueId,
    weight: ValueId,
    windows: &[Window],
    group: i64,
) -> ValueId {
    let list = |f: fn(&Window) -> usize| windows.iter().map(|w| f(w) as i64).collect::<Vec<_>>();
    let output_padding = list(Window::unread);
    let op = op::ConvTranspose {
        dilations: list(|w| w.dilation),
        group,
        kernel_shape: list(|w| w.kernel),
        output_padding: if output_padding.iter().all(|&p| p == 0) { vec![] } else { output_padding },
        pads: [list(|w| w.before), list(Window::room)].concat(),
        strides: list(|w| w.stride),
        ..op::ConvTranspose::default()
    };
    b.node(op, &[dy, weight])
}

pub(super) fn input_grad(b: &mut Builder, at: &At, op: &op::ConvInputGrad) -> Result<ValueId, Unfit> {
    let (dy, w, x) = (at.input(0)?, at.input(1)?, at.input(2)?);
    let windows = window_attrs!(op).windows(&plane(b, w)?, &plane(b, x)?, &plane(b, dy)?)?;
    Ok(transposed(b, dy, w, &windows, op.group))
}

/// `dw[p, c, k] = Σ over images and positions o of dy[p, o] · x[c, o·stride + k·dilation]`: for every place k of the
/// kernel, the product of dy with a strided slice of the padded x.
pub(super) fn weight_grad(b: &mut Builder, at: &At, op: &op::ConvWeightGrad) -> Result<ValueId, Unfit> {
    let (dy, x, w) = (at.input(0)?, at.input(1)?, at.input(2)?);
    let kernel = plane(b, w)?;
    let (n_outputs, n_inputs) = (size(b, w, 0)?, size(b, w, 1)?);
    let (input, output) = (plane(b, x)?, plane(b, dy)?);
    let windows = window_attrs!(op).windows(&kernel, &input, &output)?;
    let group = usize::try_from(op.group).ok().filter(|&g| g > 0 && n_outputs % g == 0);
    let group = group.ok_or_else(|| Unfit::because(format!("{} groups", op.group)))?;
    let n = windows.len();
    let ints = |list: &[usize]| list.iter().map(|&v| v as i64).collect::<Vec<_>>();

    // dy: [group, outputs of the group, images and positions].
    let per_group = n_outputs / group;
    let split = [vec![-1, group as i64, per_group as i64], ints(&output)].concat();
    let dy = b.reshape(dy, &split);
    let perm: Vec<usize> = [1, 2, 0].into_iter().chain(3..n + 3).collect();
    let dy = b.transpose(dy, &perm);
    let dy = b.reshape(dy, &[group as i64, per_group as i64, -1]);

    // x: [group, images, positions…, inputs of the group].
    let split = [vec![-1, group as i64, n_inputs as i64], ints(&input)].concat();
    let groups = b.reshape(x, &split);
    let perm: Vec<usize> = [1, 0].into_iter().chain(3..n + 3).chain([2]).collect();
    let groups = b.transpose(groups, &perm);
    let pads: Vec<(usize, usize)> = windows.iter().map(|w| (w.before, w.room())).collect();
    let padded = b.pad(groups, n + 3, 2, &pads, (0.0, x));

    let axes: Vec<usize> = (2..n + 2).collect();
    let steps: Vec<usize> = windows.iter().map(|w| w.stride).collect();
    let places = places(&windows);
    let mut parts = Vec::with_capacity(places.len());
    for place in &places {
        let bounds = windows.iter().zip(place).map(|(w, &k)| w.slice(k));
        let (starts, ends): (Vec<usize>, Vec<usize>) = bounds.unzip();
        let whole = windows.iter().all(|w| w.kernel == 1 && w.stride == 1 && w.unread() == 0);
        let part = if whole { padded } else { b.slice(padded, &axes, &starts, &ends, &steps) };
        let part = b.reshape(part, &[group as i64, -1, n_inputs as i64]);
        let product = b.node(op::MatMul {}, &[dy, part]);
        parts.push(b.reshape(product, &[n_outputs as i64, n_inputs as i64, 1]));
    }
    let all = match parts[..] {
        [one] => one,
        _ => b.node(op::Concat { axis: 2 }, &parts),
    };
    let shape = [vec![n_outputs as i64, n_inputs as i64], ints(&kernel)].concat();
    Ok(b.reshape(all, &shape))
}
