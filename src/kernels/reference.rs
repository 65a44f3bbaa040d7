//! The kernels as plain loops, for any element type: what gradient rules are checked with in `f64`, and what
//! the vector kernels are held against.

use crate::conv::{Add, Contraction, ConvShape, Epilogue};
use crate::{LANES, Real};

/// See [`Contraction`].
pub(crate) fn gather<T: Real>(
    c: &Contraction<'_>,
    x: &[T],
    w: &[T],
    y: &mut [T],
    epilogue: &Epilogue<'_, T>,
) {
    let g = c.gather;
    for group in 0..c.groups {
        for r in 0..c.n_results {
            let channel = group * c.n_results + r;
            for (row, row_taps) in g.rows.iter().enumerate() {
                for seg in &g.segments {
                    for n in 0..seg.len {
                        let at =
                            (channel * c.n_outputs + row * g.output_width + seg.start + n * seg.step) * LANES;
                        let mut sum = [epilogue.bias.map_or(T::ZERO, |b| b[channel]); LANES];
                        for s in 0..c.n_sums {
                            let plane = (group * c.n_sums + s) * c.n_inputs;
                            for (a, b) in row_taps.iter().flat_map(|a| seg.taps.iter().map(move |b| (a, b))) {
                                let tap = a.tap * g.kernel_width + b.tap;
                                let weight = w[group * c.w_group() + r * c.w_result + s * c.w_sum + tap];
                                let from =
                                    (plane + a.input * g.input_width + b.input + n * seg.input_step) * LANES;
                                for (sum, &x) in sum.iter_mut().zip(&x[from..from + LANES]) {
                                    *sum += weight * x;
                                }
                            }
                        }
                        for (lane, sum) in sum.into_iter().enumerate() {
                            y[at + lane] = finish(sum, y[at + lane], at + lane, epilogue);
                        }
                    }
                }
            }
        }
    }
}

fn finish<T: Real>(sum: T, output: T, at: usize, epilogue: &Epilogue<'_, T>) -> T {
    let mut v = match epilogue.add {
        Add::None => sum,
        Add::Tensor(t) => sum + t[at],
        Add::Output => sum + output,
    };
    if let Some((low, high)) = epilogue.clamp {
        v = v.at_least(low).at_most(high);
    }
    match epilogue.mask {
        Some((m, low, high)) if !(m[at] > low && m[at] < high) => T::ZERO,
        _ => v,
    }
}

/// See [`crate::Conv::weight_grad`]. Straight from the definition, not from the gather tables.
pub(crate) fn weight_grad<T: Real>(s: &ConvShape, dy: &[T], x: &[T], dw: &mut [T]) {
    let (c_group, p_group, n_taps) = (s.n_in / s.groups, s.n_out / s.groups, s.n_taps());
    let split = |i: usize, dims: [usize; 3]| [i / (dims[1] * dims[2]), i / dims[2] % dims[1], i % dims[2]];
    for p in 0..s.n_out {
        for c in 0..c_group {
            let channel = p / p_group * c_group + c;
            for tap in 0..n_taps {
                let k = split(tap, s.kernel);
                let mut sum = T::ZERO;
                for o in 0..s.n_outputs() {
                    let at = split(o, s.output);
                    let inside = |a: usize| {
                        let i = (at[a] * s.strides[a] + k[a] * s.dilations[a]).checked_sub(s.pads[a])?;
                        (i < s.input[a]).then_some(i)
                    };
                    let (Some(d), Some(h), Some(w)) = (inside(0), inside(1), inside(2)) else { continue };
                    let i = (d * s.input[1] + h) * s.input[2] + w;
                    let dy = &dy[(p * s.n_outputs() + o) * LANES..][..LANES];
                    let x = &x[(channel * s.n_inputs() + i) * LANES..][..LANES];
                    for (&dy, &x) in dy.iter().zip(x) {
                        sum += dy * x;
                    }
                }
                dw[(p * c_group + c) * n_taps + tap] += sum;
            }
        }
    }
}
