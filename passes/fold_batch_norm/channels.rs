//! The arithmetic: affine maps of channels, and weights that swallow them.

use basisopt_ir::tensor::TensorError;
use basisopt_ir::{DType, Tensor};
use half::{bf16, f16};

/// `y = scale·x + shift`, per channel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Affine {
    pub scale: Vec<f64>,
    pub shift: Vec<f64>,
}

impl Affine {
    /// What a normalisation with stored statistics does. All slices have one element per channel.
    ///
    /// # Errors
    /// The first channel whose variance, with `epsilon`, has no finite inverse root.
    pub(super) fn normalisation(
        [gamma, beta, mean, variance]: [&[f64]; 4],
        epsilon: f64,
    ) -> Result<Self, usize> {
        let mut affine = Self { scale: Vec::new(), shift: Vec::new() };
        for (channel, (((g, b), m), v)) in gamma.iter().zip(beta).zip(mean).zip(variance).enumerate() {
            let scale = g / (v + epsilon).sqrt();
            let shift = b - m * scale;
            if !(v + epsilon > 0.0 && scale.is_finite() && shift.is_finite()) {
                return Err(channel);
            }
            affine.scale.push(scale);
            affine.shift.push(shift);
        }
        Ok(affine)
    }

    pub(super) fn n_channels(&self) -> usize {
        self.scale.len()
    }

    pub(super) fn shifts(&self) -> bool {
        self.shift.iter().any(|&t| t != 0.0)
    }
}

/// Which axes of a weight count the channels that are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channels {
    /// The first axis: what a convolution or a transposed matrix puts out.
    Rows,
    /// The second axis, group after group along the first: what a convolution takes in, and what a
    /// transposed convolution or (in one group) a matrix puts out.
    Columns { n_groups: usize },
}

impl Channels {
    /// How many channels a weight of this shape has; `None` if the shape is none.
    pub(super) fn count(self, shape: &[usize]) -> Option<usize> {
        let &[rows, columns, ..] = shape else { return None };
        match self {
            Self::Rows => Some(rows),
            Self::Columns { n_groups: 0 } => None,
            Self::Columns { n_groups } if rows % n_groups != 0 => None,
            Self::Columns { n_groups } => columns.checked_mul(n_groups),
        }
    }

    fn of(self, row: usize, column: usize, [n_rows, n_columns]: [usize; 2]) -> usize {
        match self {
            Self::Rows => row,
            Self::Columns { n_groups } => row / (n_rows / n_groups) * n_columns + column,
        }
    }
}

/// Calls `f(row, channel, kernel)` for the kernel of every row and column.
fn for_each_kernel<'a>(
    weight: &'a mut [f64],
    shape: &[usize],
    channels: Channels,
    mut f: impl FnMut(usize, usize, &'a mut [f64]),
) {
    let &[n_rows, n_columns, ..] = shape else { return };
    if weight.is_empty() {
        return;
    }
    let kernels = weight.chunks_exact_mut(weight.len() / (n_rows * n_columns));
    for (i, kernel) in kernels.enumerate() {
        let (row, column) = (i / n_columns, i % n_columns);
        f(row, channels.of(row, column, [n_rows, n_columns]), kernel);
    }
}

/// Multiplies every weight by the scale of its channel.
pub(super) fn scale(weight: &mut [f64], shape: &[usize], channels: Channels, scale: &[f64]) {
    for_each_kernel(weight, shape, channels, |_, channel, kernel| {
        kernel.iter_mut().for_each(|w| *w *= scale[channel]);
    });
}

/// What a convolution makes of inputs that are `shift` everywhere: one number per row.
pub(super) fn respond(weight: &mut [f64], shape: &[usize], channels: Channels, shift: &[f64]) -> Vec<f64> {
    let mut response = vec![0.0; shape.first().copied().unwrap_or(0)];
    for_each_kernel(weight, shape, channels, |row, channel, kernel| {
        response[row] += kernel.iter().sum::<f64>() * shift[channel];
    });
    response
}

/// Rounds to `dtype`. Results below its smallest normal number become 0 and are counted: on many
/// processors an operation on a subnormal number takes a hundred times as long as any other. Not
/// so for `f16`, which is computed in `f32`, and whose subnormal numbers begin at 6·10⁻⁵, where
/// weights still matter. `None` in place of the tensor if a number is too large for the type.
pub(super) fn round(
    dtype: DType,
    shape: Vec<usize>,
    mut values: Vec<f64>,
) -> Result<(Option<Tensor>, usize), TensorError> {
    let (smallest, fits): (f64, fn(f64) -> bool) = match dtype {
        DType::F64 => (f64::MIN_POSITIVE, f64::is_finite),
        DType::F16 => (0.0, |v| f16::from_f64(v).is_finite()),
        DType::BF16 => (f64::from(f32::MIN_POSITIVE), |v| bf16::from_f64(v).is_finite()),
        _ => (f64::from(f32::MIN_POSITIVE), |v| (v as f32).is_finite()),
    };
    let mut n_flushed = 0;
    for v in &mut values {
        if !fits(*v) {
            return Ok((None, 0));
        }
        if *v != 0.0 && v.abs() < smallest {
            *v = 0.0;
            n_flushed += 1;
        }
    }
    Ok((Some(Tensor::from_f64s(dtype, shape, &values)?), n_flushed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: u64, shape: &[usize]) -> Vec<f64> {
        let generator = basisopt_ir::Generator::Randn { seed };
        Tensor::generated(DType::F64, shape.to_vec(), generator).unwrap().to_f64s().unwrap()
    }

    fn affine(n: usize) -> Affine {
        let variance: Vec<f64> = random(1, &[n]).iter().map(|v| v.abs() + 0.1).collect();
        let [gamma, beta, mean] = [2, 3, 4].map(|seed| random(seed, &[n]));
        Affine::normalisation([&gamma, &beta, &mean, &variance], 1e-3).unwrap()
    }

    fn apply(affine: &Affine, x: &[f64]) -> Vec<f64> {
        let size = x.len() / affine.n_channels();
        x.iter().enumerate().map(|(i, v)| affine.scale[i / size] * v + affine.shift[i / size]).collect()
    }

    /// A convolution along one axis, written down from its definition. `pads` are zeros.
    fn conv(x: &[f64], w: &[f64], bias: &[f64], [c, p, k, groups]: [usize; 4], pads: [usize; 2]) -> Vec<f64> {
        let n = x.len() / c;
        let (in_each, out_each) = (c / groups, p / groups);
        let mut y = vec![];
        for o in 0..p {
            for at in 0..n + pads[0] + pads[1] + 1 - k {
                let mut sum = bias[o];
                for i in 0..in_each {
                    for t in 0..k {
                        let place = (at + t).wrapping_sub(pads[0]);
                        if place < n {
                            sum += w[(o * in_each + i) * k + t] * x[(o / out_each * in_each + i) * n + place];
                        }
                    }
                }
                y.push(sum);
            }
        }
        y
    }

    /// A transposed convolution with stride 2: every input element paints a kernel.
    fn conv_transpose(x: &[f64], w: &[f64], bias: &[f64], [c, p, k, groups]: [usize; 4]) -> Vec<f64> {
        let n = x.len() / c;
        let (in_each, out_each, length) = (c / groups, p / groups, 2 * (n - 1) + k);
        let mut y: Vec<f64> = (0..p * length).map(|i| bias[i / length]).collect();
        for i in 0..c {
            for j in 0..out_each {
                for at in 0..n {
                    for t in 0..k {
                        let o = i / in_each * out_each + j;
                        y[o * length + 2 * at + t] += w[(i * out_each + j) * k + t] * x[i * n + at];
                    }
                }
            }
        }
        y
    }

    fn assert_close(a: &[f64], b: &[f64]) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() < 1e-12 * (1.0 + a.abs()), "{a} {b}");
        }
    }

    /// Channels in, channels out, kernel size, groups.
    const CASES: [[usize; 4]; 4] = [[4, 6, 3, 1], [4, 6, 3, 2], [6, 6, 3, 6], [3, 6, 1, 3]];

    #[test]
    fn what_follows_a_convolution_goes_into_it() {
        for case @ [c, p, k, groups] in CASES {
            let shape = [p, c / groups, k];
            let (x, mut w, mut bias) = (random(5, &[c, 7]), random(6, &shape), random(7, &[p]));
            let affine = affine(p);
            let expected = apply(&affine, &conv(&x, &w, &bias, case, [1, 2]));
            assert_eq!(Channels::Rows.count(&shape), Some(p));
            scale(&mut w, &shape, Channels::Rows, &affine.scale);
            bias = apply(&affine, &bias);
            assert_close(&conv(&x, &w, &bias, case, [1, 2]), &expected);
        }
    }

    #[test]
    fn what_follows_a_transposed_convolution_goes_into_it() {
        for case @ [c, p, k, n_groups] in CASES {
            let shape = [c, p / n_groups, k];
            let (x, mut w, mut bias) = (random(5, &[c, 7]), random(6, &shape), random(7, &[p]));
            let affine = affine(p);
            let expected = apply(&affine, &conv_transpose(&x, &w, &bias, case));
            let channels = Channels::Columns { n_groups };
            assert_eq!(channels.count(&shape), Some(p));
            scale(&mut w, &shape, channels, &affine.scale);
            bias = apply(&affine, &bias);
            assert_close(&conv_transpose(&x, &w, &bias, case), &expected);
        }
    }

    #[test]
    fn what_precedes_a_convolution_without_padding_goes_into_it() {
        for case @ [c, p, k, n_groups] in CASES {
            let shape = [p, c / n_groups, k];
            let (x, mut w, mut bias) = (random(5, &[c, 7]), random(6, &shape), random(7, &[p]));
            let affine = affine(c);
            let expected = conv(&apply(&affine, &x), &w, &bias, case, [0, 0]);
            let channels = Channels::Columns { n_groups };
            assert_eq!(channels.count(&shape), Some(c));
            let response = respond(&mut w, &shape, channels, &affine.shift);
            bias.iter_mut().zip(response).for_each(|(b, r)| *b += r);
            scale(&mut w, &shape, channels, &affine.scale);
            assert_close(&conv(&x, &w, &bias, case, [0, 0]), &expected);
        }
    }

    #[test]
    fn normalisation_is_what_onnx_defines() {
        // (x - 3)·2/√(15 + 1) + 1/2 = x/2 - 1
        let affine = Affine::normalisation([&[2.0], &[0.5], &[3.0], &[15.0]], 1.0).unwrap();
        assert_eq!(affine, Affine { scale: vec![0.5], shift: vec![-1.0] });
        for variance in [-1.0, -2.0, f64::NAN, f64::NEG_INFINITY] {
            let bad = Affine::normalisation([&[1.0; 2], &[0.0; 2], &[0.0; 2], &[1.0, variance]], 1.0);
            assert_eq!(bad, Err(1), "{variance}");
        }
    }

    #[test]
    fn subnormal_results_are_flushed_and_counted() {
        let tiny = f64::from(f32::MIN_POSITIVE);
        let (t, n) = round(DType::F32, vec![3], vec![tiny, -tiny / 2.0, 0.0]).unwrap();
        assert_eq!((t.unwrap().to_f64s().unwrap(), n), (vec![tiny, 0.0, 0.0], 1));
        // 2⁻²⁰ is subnormal as f16, and worth keeping.
        let (t, n) = round(DType::F16, vec![1], vec![2.0f64.powi(-20)]).unwrap();
        assert_eq!((t.unwrap().to_f64s().unwrap(), n), (vec![2.0f64.powi(-20)], 0));
        assert_eq!(round(DType::F16, vec![1], vec![70000.0]).unwrap(), (None, 0));
        assert_eq!(round(DType::F32, vec![1], vec![f64::NAN]).unwrap(), (None, 0));
    }
}
