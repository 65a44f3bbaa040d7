//! Normalisations: by given statistics, by those of the images at hand, by each image's own.

use crate::exec::kernel::{Arg, Kernel, Spec, Unsupported};
use basisopt_ir::op::Op;
use basisopt_kernels::{LANES, Real};

/// `y = scale·(x − mean)/√(var + ε) + bias` by channel; in training form mean and variance are those of the images at
/// hand, [`LANES`] of them: *ghost* statistics (Hoffer, Hubara, Soudry 2017), which need no meeting of threads.
#[derive(Debug)]
struct BatchNorm {
    n_channels: usize,
    epsilon: f64,
    momentum: f64,
    training: bool,
}

/// Mean and variance of a channel of images, over positions and lanes.
fn moments<T: Real>(x: &[T]) -> (f64, f64) {
    let n = x.len().max(1) as f64;
    let mean = x.iter().map(|v| v.to_f64()).sum::<f64>() / n;
    let variance = x.iter().map(|v| (v.to_f64() - mean) * (v.to_f64() - mean)).sum::<f64>() / n;
    (mean, variance)
}

impl<T: Real> Kernel<T> for BatchNorm {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], lanes: usize) {
        let [x, scale, bias, mean, var] = inputs else { return };
        let Some((y, statistics)) = outputs.split_first_mut() else { return };
        let run = x.data.len() / self.n_channels.max(1);
        for (c, (x, y)) in x.data.chunks_exact(run).zip(y.chunks_exact_mut(run)).enumerate() {
            let (mut m, mut v) = (mean.data[c].to_f64(), var.data[c].to_f64());
            if self.training {
                let (mean, variance) = moments(x);
                for (out, (old, new)) in statistics.iter_mut().zip([(m, mean), (v, variance)]) {
                    // Every lane has the same share of the mean over images.
                    let value = T::from_f64(self.momentum * old + (1.0 - self.momentum) * new);
                    out[c * lanes..(c + 1) * lanes].fill(value);
                }
                (m, v) = (mean, variance);
            }
            let factor = scale.data[c].to_f64() / (v + self.epsilon).sqrt();
            let (a, b) = (T::from_f64(factor), T::from_f64(bias.data[c].to_f64() - m * factor));
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = a * x + b);
        }
    }
}

/// The gradient of the training form. With x̂ the normalised x and means over positions and lanes:
/// `dx = scale/σ · (dy − mean(dy) − x̂ · mean(dy·x̂))`, `dscale = Σ dy·x̂`, `dbias = Σ dy`.
#[derive(Debug)]
struct BatchNormGrad {
    n_channels: usize,
    epsilon: f64,
}

impl<T: Real> Kernel<T> for BatchNormGrad {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], lanes: usize) {
        let ([dy, x, scale], [dx, rest @ ..]) = (inputs, outputs) else { return };
        let run = x.data.len() / self.n_channels.max(1);
        let channels = x.data.chunks_exact(run).zip(dy.data.chunks_exact(run)).zip(dx.chunks_exact_mut(run));
        for (c, ((x, dy), dx)) in channels.enumerate() {
            let (mean, variance) = moments(x);
            let inverse = 1.0 / (variance + self.epsilon).sqrt();
            let hat = |v: T| (v.to_f64() - mean) * inverse;
            let mut by_lane = [[0.0f64; LANES]; 2];
            for (i, (&x, &d)) in x.iter().zip(dy).enumerate() {
                by_lane[0][i % lanes] += d.to_f64() * hat(x);
                by_lane[1][i % lanes] += d.to_f64();
            }
            // Each lane has its own share of the sums over images.
            for (out, sums) in rest.iter_mut().zip(&by_lane) {
                let out = &mut out[c * lanes..(c + 1) * lanes];
                out.iter_mut().zip(sums).for_each(|(o, &s)| *o = T::from_f64(s));
            }
            let n = run as f64;
            let [along, plain] = by_lane.map(|sums| sums.iter().sum::<f64>() / n);
            let factor = scale.data[c].to_f64() * inverse;
            for ((out, &x), &d) in dx.iter_mut().zip(x).zip(dy) {
                *out = T::from_f64(factor * (d.to_f64() - plain - hat(x) * along));
            }
        }
    }
}

/// [`BatchNorm`] with the statistics of each channel of each image.
#[derive(Debug)]
struct InstanceNorm {
    n_channels: usize,
    epsilon: f64,
}

impl<T: Real> Kernel<T> for InstanceNorm {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], lanes: usize) {
        let ([x, scale, bias], Some(y)) = (inputs, outputs.first_mut()) else { return };
        let run = x.data.len() / self.n_channels.max(1);
        for (c, (x, y)) in x.data.chunks_exact(run).zip(y.chunks_exact_mut(run)).enumerate() {
            for l in 0..lanes {
                let lane: Vec<T> = x.iter().skip(l).step_by(lanes).copied().collect();
                let (mean, variance) = moments(&lane);
                let factor = scale.data[c].to_f64() / (variance + self.epsilon).sqrt();
                for (y, x) in y.iter_mut().skip(l).step_by(lanes).zip(lane) {
                    *y = T::from_f64((x.to_f64() - mean) * factor + bias.data[c].to_f64());
                }
            }
        }
    }
}

/// `y = x / (bias + alpha/size · Σ x²)^beta`, the sum over neighbouring channels.
#[derive(Debug)]
struct LocalResponse {
    n_channels: usize,
    size: usize,
    alpha: f64,
    beta: f64,
    bias: f64,
}

impl LocalResponse {
    /// The base of the power, for one element.
    fn base<T: Real>(&self, x: &[T], run: usize, c: usize, i: usize) -> f64 {
        let (before, after) = ((self.size - 1) / 2, self.size / 2);
        let near = c.saturating_sub(before)..(c + after + 1).min(self.n_channels);
        let sum: f64 = near.map(|k| x[k * run + i].to_f64().powi(2)).sum();
        self.bias + self.alpha / self.size as f64 * sum
    }
}

impl<T: Real> Kernel<T> for LocalResponse {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], _lanes: usize) {
        let (Some(x), Some(y)) = (inputs.first(), outputs.first_mut()) else { return };
        let run = x.data.len() / self.n_channels.max(1);
        for c in 0..self.n_channels {
            for i in 0..run {
                let norm = self.base(x.data, run, c, i).powf(self.beta);
                y[c * run + i] = T::from_f64(x.data[c * run + i].to_f64() / norm);
            }
        }
    }
}

/// With b the base of the power: `dx[c] = dy[c]·b[c]^−β − 2αβ/size · x[c] · Σ dy[k]·x[k]·b[k]^(−β−1)` over the k whose
/// window c is in.
#[derive(Debug)]
struct LocalResponseGrad(LocalResponse);

impl<T: Real> Kernel<T> for LocalResponseGrad {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], _lanes: usize) {
        let ([dy, x, ..], Some(dx)) = (inputs, outputs.first_mut()) else { return };
        let op = &self.0;
        let run = x.data.len() / op.n_channels.max(1);
        let (before, after) = ((op.size - 1) / 2, op.size / 2);
        for i in 0..run {
            let value = |v: &[T], c: usize| v[c * run + i].to_f64();
            let bases: Vec<f64> = (0..op.n_channels).map(|c| op.base(x.data, run, c, i)).collect();
            for c in 0..op.n_channels {
                // The other way round: k − before ≤ c ≤ k + after.
                let near = c.saturating_sub(after)..(c + before + 1).min(op.n_channels);
                let sum: f64 =
                    near.map(|k| value(dy.data, k) * value(x.data, k) * bases[k].powf(-op.beta - 1.0)).sum();
                let share = 2.0 * op.alpha * op.beta / op.size as f64 * value(x.data, c) * sum;
                dx[c * run + i] = T::from_f64(value(dy.data, c) * bases[c].powf(-op.beta) - share);
            }
        }
    }
}

/// The kernel of a normalisation; `None` for other operators.
pub(super) fn lower<T: Real>(op: &Op, spec: &Spec) -> Option<Result<Box<dyn Kernel<T>>, Unsupported>> {
    let x = |slot: usize| {
        spec.inputs.get(slot).and_then(Option::as_ref).map(|o| o.shape.clone()).unwrap_or_default()
    };
    let channels = |slot: usize| x(slot).get(1).copied().unwrap_or(1);
    let shared = |slots: std::ops::Range<usize>| {
        slots.into_iter().all(|i| spec.inputs.get(i).and_then(Option::as_ref).is_some_and(|o| !o.batched))
    };
    let refuse = |what: &str| Some(Err(Unsupported(what.to_owned())));
    Some(Ok(match op {
        Op::BatchNormalization(op) => {
            let training = op.training_mode == 1;
            if !shared(1..5) || (!training && spec.outputs.len() > 1) || (op.spatial == 0) {
                return refuse("this form of it");
            }
            let (epsilon, momentum) = (f64::from(op.epsilon), f64::from(op.momentum));
            Box::new(BatchNorm { n_channels: channels(0), epsilon, momentum, training })
        }
        Op::BatchNormalizationGrad(op) => {
            Box::new(BatchNormGrad { n_channels: channels(1), epsilon: f64::from(op.epsilon) })
        }
        Op::InstanceNormalization(op) if shared(1..3) => {
            Box::new(InstanceNorm { n_channels: channels(0), epsilon: f64::from(op.epsilon) })
        }
        Op::LRN(op) => match local_response(channels(0), op.size, [op.alpha, op.beta, op.bias]) {
            Some(kernel) => Box::new(kernel),
            None => return refuse("a size below 1"),
        },
        Op::LRNGrad(op) => match local_response(channels(1), op.size, [op.alpha, op.beta, op.bias]) {
            Some(kernel) => Box::new(LocalResponseGrad(kernel)),
            None => return refuse("a size below 1"),
        },
        _ => return None,
    }))
}

fn local_response(n_channels: usize, size: i64, numbers: [f32; 3]) -> Option<LocalResponse> {
    let [alpha, beta, bias] = numbers.map(f64::from);
    let size = usize::try_from(size).ok().filter(|&s| s > 0)?;
    Some(LocalResponse { n_channels, size, alpha, beta, bias })
}
