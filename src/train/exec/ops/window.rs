//! Pooling: the largest or mean element of a window, and where their gradients go.

use crate::exec::kernel::{Arg, Kernel, Spec, Unsupported};
use basisopt_ir::op::{AutoPad, Op};
use basisopt_kernels::Real;

/// Which elements of a plane each output position looks at.
#[derive(Debug)]
struct Windows {
    /// Where the elements of each output position start in `elements`; one more than positions.
    starts: Vec<u32>,
    elements: Vec<u32>,
    /// What a sum is divided by, by output position.
    counts: Vec<u32>,
    /// Elements of an input plane.
    n_inputs: usize,
}

struct Attrs<'a> {
    auto_pad: AutoPad,
    count_include_pad: bool,
    dilations: &'a [i64],
    kernel: &'a [i64],
    pads: &'a [i64],
    strides: &'a [i64],
}

impl Windows {
    fn new(attrs: &Attrs<'_>, x: &[usize], y: &[usize]) -> Option<Self> {
        let (input, output) = (x.get(2..)?, y.get(2..)?);
        let n_axes = input.len();
        let list = |given: &[i64], default: usize| -> Option<Vec<usize>> {
            match given.is_empty() {
                true => Some(vec![default; n_axes]),
                false => given.iter().map(|&v| usize::try_from(v).ok()).collect(),
            }
        };
        let (kernel, strides) = (list(attrs.kernel, 1)?, list(attrs.strides, 1)?);
        let dilations = list(attrs.dilations, 1)?;
        let given = list(attrs.pads, 0)?;
        // By axis: elements inside, and how many places of the window are inside the padded input.
        let mut axes: Vec<Vec<(Vec<usize>, usize)>> = Vec::new();
        for a in 0..n_axes {
            let extent = (kernel[a] - 1) * dilations[a] + 1;
            let (before, after) = match attrs.auto_pad {
                AutoPad::NotSet => (given[a], given.get(a + n_axes).copied().unwrap_or(0)),
                AutoPad::Valid => (0, 0),
                side => {
                    let total = ((output[a] - 1) * strides[a] + extent).saturating_sub(input[a]);
                    let small = total / 2;
                    if side == AutoPad::SameUpper { (small, total - small) } else { (total - small, small) }
                }
            };
            let places = |o: usize| (0..kernel[a]).map(move |k| (o, k));
            axes.push(
                (0..output[a])
                    .map(|o| {
                        let at = |(o, k): (usize, usize)| o * strides[a] + k * dilations[a];
                        // Beyond the padding there is nothing to count: rounding up makes such windows.
                        let padded = places(o).filter(|&p| at(p) < before + input[a] + after).count();
                        let inside = |p| at(p).checked_sub(before).filter(|&i| i < input[a]);
                        (places(o).filter_map(inside).collect(), padded)
                    })
                    .collect(),
            );
        }
        let mut windows =
            Self { starts: vec![0], elements: vec![], counts: vec![], n_inputs: input.iter().product() };
        let mut index = vec![0usize; n_axes];
        for _ in 0..output.iter().product::<usize>() {
            let mut here = vec![0usize];
            let mut padded = 1;
            for (a, &o) in index.iter().enumerate() {
                let (inside, n) = &axes[a][o];
                here = here.iter().flat_map(|&h| inside.iter().map(move |&i| h * input[a] + i)).collect();
                padded *= n;
            }
            let count = if attrs.count_include_pad { padded } else { here.len() };
            windows.counts.push(count.max(1) as u32);
            windows.elements.extend(here.iter().map(|&e| e as u32));
            windows.starts.push(windows.elements.len() as u32);
            for (i, &d) in index.iter_mut().zip(output).rev() {
                *i += 1;
                if *i < d {
                    break;
                }
                *i = 0;
            }
        }
        Some(windows)
    }

    fn n_outputs(&self) -> usize {
        self.counts.len()
    }

    #[inline(always)]
    fn at(&self, o: usize) -> &[u32] {
        &self.elements[self.starts[o] as usize..self.starts[o + 1] as usize]
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Max,
    Average,
    MaxGrad,
    AverageGrad,
}

#[derive(Debug)]
struct Pool {
    windows: Windows,
    kind: Kind,
}

impl<T: Real> Kernel<T> for Pool {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], lanes: usize) {
        let (Some(first), Some(out)) = (inputs.first(), outputs.first_mut()) else { return };
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || match self.kind {
                Kind::Max | Kind::Average => self.forward(first.data, out, lanes),
                Kind::MaxGrad => {
                    let x = inputs.get(1).map_or(&[][..], |a| a.data);
                    self.max_grad(first.data, x, out, lanes);
                }
                Kind::AverageGrad => self.average_grad(first.data, out, lanes),
            },
        );
    }
}

impl Pool {
    #[inline(always)]
    fn forward<T: Real>(&self, x: &[T], y: &mut [T], lanes: usize) {
        let w = &self.windows;
        let is_max = matches!(self.kind, Kind::Max);
        let planes = x.chunks_exact(w.n_inputs * lanes).zip(y.chunks_exact_mut(w.n_outputs() * lanes));
        for (x, y) in planes {
            for (o, y) in y.chunks_exact_mut(lanes).enumerate() {
                y.fill(if is_max { T::from_f64(f64::NEG_INFINITY) } else { T::ZERO });
                for &e in w.at(o) {
                    let x = &x[e as usize * lanes..(e as usize + 1) * lanes];
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = if is_max { x.at_least(*y) } else { *y + x };
                    }
                }
                if !is_max {
                    let scale = T::ONE / T::from_f64(f64::from(w.counts[o]));
                    y.iter_mut().for_each(|v| *v *= scale);
                }
            }
        }
    }

    #[inline(always)]
    fn max_grad<T: Real>(&self, dy: &[T], x: &[T], dx: &mut [T], lanes: usize) {
        let w = &self.windows;
        dx.fill(T::ZERO);
        let planes = x.chunks_exact(w.n_inputs * lanes).zip(dx.chunks_exact_mut(w.n_inputs * lanes));
        for ((x, dx), dy) in planes.zip(dy.chunks_exact(w.n_outputs() * lanes)) {
            for (o, dy) in dy.chunks_exact(lanes).enumerate() {
                for (l, &dy) in dy.iter().enumerate() {
                    let value = |e: u32| x[e as usize * lanes + l];
                    let elements = w.at(o);
                    let best =
                        elements.iter().copied().reduce(|a, b| if value(b) > value(a) { b } else { a });
                    if let Some(e) = best {
                        dx[e as usize * lanes + l] += dy;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn average_grad<T: Real>(&self, dy: &[T], dx: &mut [T], lanes: usize) {
        let w = &self.windows;
        dx.fill(T::ZERO);
        let planes = dx.chunks_exact_mut(w.n_inputs * lanes).zip(dy.chunks_exact(w.n_outputs() * lanes));
        for (dx, dy) in planes {
            for (o, dy) in dy.chunks_exact(lanes).enumerate() {
                let scale = T::ONE / T::from_f64(f64::from(w.counts[o]));
                for &e in w.at(o) {
                    let dx = &mut dx[e as usize * lanes..(e as usize + 1) * lanes];
                    dx.iter_mut().zip(dy).for_each(|(a, &b)| *a += scale * b);
                }
            }
        }
    }
}

/// The kernel of a pooling operator; `None` for other operators.
pub(super) fn lower<T: Real>(op: &Op, spec: &Spec) -> Option<Result<Box<dyn Kernel<T>>, Unsupported>> {
    let shape =
        |i: usize| spec.inputs.get(i).and_then(Option::as_ref).map(|o| o.shape.clone()).unwrap_or_default();
    let out = spec.outputs.first().cloned().unwrap_or_default();
    macro_rules! attrs {
        ($op:expr, $pads:expr) => {
            Attrs {
                auto_pad: $op.auto_pad,
                count_include_pad: $pads,
                dilations: &$op.dilations,
                kernel: &$op.kernel_shape,
                pads: &$op.pads,
                strides: &$op.strides,
            }
        };
    }
    let (attrs, kind, x, y) = match op {
        Op::MaxPool(_) if spec.outputs.len() > 1 => {
            return Some(Err(Unsupported("with indices as an output".to_owned())));
        }
        Op::MaxPool(op) => (attrs!(op, false), Kind::Max, shape(0), out),
        Op::AveragePool(op) => (attrs!(op, op.count_include_pad == 1), Kind::Average, shape(0), out),
        Op::MaxPoolGrad(op) => (attrs!(op, false), Kind::MaxGrad, out, shape(0)),
        Op::AveragePoolGrad(op) => (attrs!(op, op.count_include_pad == 1), Kind::AverageGrad, out, shape(0)),
        _ => return None,
    };
    Some(match Windows::new(&attrs, &x, &y) {
        Some(windows) => Ok(Box::new(Pool { windows, kind })),
        None => Err(Unsupported("its window".to_owned())),
    })
}
