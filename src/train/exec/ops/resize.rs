//! Interpolation to another size, as a sparse matrix over the plane of an image: its gradient is the transpose.

use super::known;
use crate::exec::kernel::{Arg, Kernel, Spec, Unsupported};
use basisopt_ir::op::{self, Op};
use basisopt_kernels::Real;

/// For each output element, which input elements it is made of.
#[derive(Debug)]
struct Interpolation {
    /// Where the parts of an output element start; one more than output elements.
    starts: Vec<u32>,
    /// Input elements and weights.
    parts: Vec<(u32, f64)>,
    is_gradient: bool,
}

impl<T: Real> Kernel<T> for Interpolation {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], lanes: usize) {
        let (Some(x), Some(out)) = (inputs.first(), outputs.first_mut()) else { return };
        out.fill(T::ZERO);
        for (o, window) in self.starts.windows(2).enumerate() {
            for &(e, weight) in &self.parts[window[0] as usize..window[1] as usize] {
                let (to, from) = if self.is_gradient { (e as usize, o) } else { (o, e as usize) };
                let weight = T::from_f64(weight);
                let from = &x.data[from * lanes..(from + 1) * lanes];
                let to = &mut out[to * lanes..(to + 1) * lanes];
                to.iter_mut().zip(from).for_each(|(a, &b)| *a += weight * b);
            }
        }
    }
}

/// One axis: by output index, input indices and weights.
pub(crate) type Axis = Vec<Vec<(usize, f64)>>;

fn axis(op: &op::Resize, input: usize, output: usize, scale: f64) -> Result<Axis, Unsupported> {
    let (n, m) = (input as f64, output as f64);
    let mut all = Vec::with_capacity(output);
    for o in 0..output {
        let i = o as f64;
        let at = match op.coordinate_transformation_mode.as_str() {
            "half_pixel" => (i + 0.5) / scale - 0.5,
            "pytorch_half_pixel" => {
                if m > 1.0 {
                    (i + 0.5) / scale - 0.5
                } else {
                    0.0
                }
            }
            "align_corners" => {
                if m > 1.0 {
                    i * (n - 1.0) / (m - 1.0)
                } else {
                    0.0
                }
            }
            "asymmetric" => i / scale,
            "half_pixel_symmetric" => {
                let adjustment = m / (scale * n);
                let center = n / 2.0;
                center * (1.0 - adjustment) + (i + 0.5) / scale - 0.5
            }
            mode => return Err(Unsupported(format!("coordinate_transformation_mode {mode:?}"))),
        };
        let clamped = |i: f64| i.clamp(0.0, (n - 1.0).max(0.0)) as usize;
        all.push(match op.mode.as_str() {
            "nearest" => {
                let nearest = match op.nearest_mode.as_str() {
                    "round_prefer_floor" => (at - 0.5).ceil(),
                    "round_prefer_ceil" => (at + 0.5).floor(),
                    "floor" => at.floor(),
                    "ceil" => at.ceil(),
                    mode => return Err(Unsupported(format!("nearest_mode {mode:?}"))),
                };
                vec![(clamped(nearest), 1.0)]
            }
            "linear" => {
                let (low, share) = (at.floor(), at - at.floor());
                vec![(clamped(low), 1.0 - share), (clamped(low + 1.0), share)]
            }
            "cubic" => {
                // Keys' kernel with parameter a.
                let (low, t, a) = (at.floor(), at - at.floor(), f64::from(op.cubic_coeff_a));
                let near = |d: f64| ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0;
                let far = |d: f64| ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a;
                let weights = [far(1.0 + t), near(t), near(1.0 - t), far(2.0 - t)];
                (0..4).map(|k| (clamped(low + f64::from(k) - 1.0), weights[k as usize])).collect()
            }
            mode => return Err(Unsupported(format!("mode {mode:?}"))),
        });
    }
    Ok(all)
}

/// What a resize of x to y does along each axis, `None` where nothing; scales are those that the node is given, if any.
/// Only axes that are resized must be of known size.
///
/// # Errors
/// Where a size is not known, or the attributes have no kernel.
pub(crate) fn tables(
    op: &op::Resize,
    scales: &[f64],
    x: &[Option<usize>],
    y: &[Option<usize>],
) -> Result<Vec<Option<Axis>>, Unsupported> {
    if op.antialias == 1 || op.exclude_outside == 1 {
        return Err(Unsupported("antialias or exclude_outside".to_owned()));
    }
    let axes: Vec<i64> = op.axes.clone().unwrap_or_else(|| (0..x.len() as i64).collect());
    let rank = x.len() as i64;
    let mut tables = Vec::with_capacity(x.len());
    for (a, sizes) in x.iter().zip(y).enumerate() {
        let listed = axes.iter().position(|&l| l == a as i64 || l + rank == a as i64);
        let given = listed.and_then(|i| scales.get(i).copied());
        tables.push(match (listed, sizes) {
            (None, _) | (_, (None, None)) if given.is_none_or(|s| s == 1.0) => None,
            (_, (&Some(n), &Some(m))) => {
                let scale = given.unwrap_or(m as f64 / n as f64);
                if n != m || scale != 1.0 { Some(axis(op, n, m, scale)?) } else { None }
            }
            _ => return Err(Unsupported("an axis of a size that is not known (--dim)".to_owned())),
        });
    }
    Ok(tables)
}

/// Where the sources of each output element begin, and the sources with their weights.
type Sources = (Vec<u32>, Vec<(u32, f64)>);

/// The matrix of a resize of x to y; slots count from `first`, that of x.
fn interpolation(
    op: &op::Resize,
    spec: &Spec,
    scales_slot: usize,
    x: &[usize],
    y: &[usize],
) -> Result<Sources, Unsupported> {
    let given = match spec.inputs.get(scales_slot) {
        Some(Some(o)) if o.shape.iter().product::<usize>() > 0 => known(spec, scales_slot)?,
        _ => vec![],
    };
    let sizes = |shape: &[usize]| shape.iter().map(|&d| Some(d)).collect::<Vec<_>>();
    let moved = tables(op, &given, &sizes(x), &sizes(y))?;
    let same = |m: usize| (0..m).map(|i| vec![(i, 1.0)]).collect();
    let tables: Vec<Axis> = moved.into_iter().zip(y).map(|(t, &m)| t.unwrap_or_else(|| same(m))).collect();
    let (mut starts, mut parts) = (vec![0u32], Vec::new());
    let mut index = vec![0usize; y.len()];
    for _ in 0..y.iter().product::<usize>() {
        let mut here = vec![(0usize, 1.0f64)];
        for ((&i, table), &n) in index.iter().zip(&tables).zip(x) {
            here = here
                .iter()
                .flat_map(|&(at, weight)| table[i].iter().map(move |&(k, w)| (at * n + k, weight * w)))
                .filter(|&(_, weight)| weight != 0.0)
                .collect();
        }
        parts.extend(here.iter().map(|&(at, weight)| (at as u32, weight)));
        starts.push(parts.len() as u32);
        for (i, &d) in index.iter_mut().zip(y).rev() {
            *i += 1;
            if *i < d {
                break;
            }
            *i = 0;
        }
    }
    Ok((starts, parts))
}

/// The kernel of an interpolation; `None` for other operators.
pub(super) fn lower<T: Real>(op: &Op, spec: &Spec) -> Option<Result<Box<dyn Kernel<T>>, Unsupported>> {
    let x = spec.inputs.first()?.as_ref()?.shape.clone();
    let y = spec.outputs.first()?.clone();
    let (attrs, slot, is_gradient) = match op {
        Op::Resize(op) => (op.clone(), if spec.opset < 11 { 1 } else { 2 }, false),
        Op::ResizeGrad(g) => (
            op::Resize {
                antialias: g.antialias,
                axes: g.axes.clone(),
                coordinate_transformation_mode: g.coordinate_transformation_mode.clone(),
                cubic_coeff_a: g.cubic_coeff_a,
                exclude_outside: g.exclude_outside,
                extrapolation_value: g.extrapolation_value,
                keep_aspect_ratio_policy: g.keep_aspect_ratio_policy.clone(),
                mode: g.mode.clone(),
                nearest_mode: g.nearest_mode.clone(),
            },
            if spec.opset < 11 { 2 } else { 3 },
            true,
        ),
        Op::Upsample(op) => (upsample(&op.mode), 1, false),
        _ => return None,
    };
    let attrs = match op {
        // Before opset 11 there was one way to do it.
        Op::Resize(_) | Op::ResizeGrad(_) if spec.opset < 11 => upsample(&attrs.mode),
        _ => attrs,
    };
    let (input, output) = if is_gradient { (&y, &x) } else { (&x, &y) };
    Some(
        interpolation(&attrs, spec, slot, input, output).map(|(starts, parts)| {
            Box::new(Interpolation { starts, parts, is_gradient }) as Box<dyn Kernel<T>>
        }),
    )
}

/// What `Upsample` does, as a `Resize`.
fn upsample(mode: &str) -> op::Resize {
    op::Resize {
        coordinate_transformation_mode: "asymmetric".to_owned(),
        nearest_mode: "floor".to_owned(),
        mode: if mode == "nearest" { "nearest".to_owned() } else { "linear".to_owned() },
        ..op::Resize::default()
    }
}
