//! Normalisations and bounds, as the formulas that they are.

use super::nodes::{size, sizes};
use super::{At, Lowered, Unfit};
use crate::differentiate::builder::Builder;
use basisopt_ir::ValueId;
use basisopt_ir::op;

/// dy where min < x < max.
pub(super) fn clip_grad(b: &mut Builder, at: &At, op: &op::ClipGrad) -> Result<ValueId, Unfit> {
    let (dy, x) = (at.input(0)?, at.input(1)?);
    let zero = b.number(0.0, x);
    let mut out = dy;
    if let Some(min) = op.min {
        let bound = b.number(f64::from(min), x);
        let inside = b.node(op::Greater::default(), &[x, bound]);
        out = b.node(op::Where {}, &[inside, out, zero]);
    }
    if let Some(max) = op.max {
        let bound = b.number(f64::from(max), x);
        let inside = b.node(op::Less::default(), &[x, bound]);
        out = b.node(op::Where {}, &[inside, out, zero]);
    }
    Ok(if out == dy { b.node(op::Identity {}, &[dy]) } else { out })
}

/// What a channel's neighbours add up to, and the base of the power.
struct Neighbours {
    /// 1×1 weights that add up the channels in the window of each, and those whose window each is in.
    within: ValueId,
    around: ValueId,
    window: f64,
}

impl Neighbours {
    fn new(b: &mut Builder, x: ValueId, size_of_window: i64) -> Result<Self, Unfit> {
        let (rank, n) = (sizes(b, x)?.len(), size(b, x, 1)?);
        let window = usize::try_from(size_of_window).ok().filter(|&s| s > 0 && rank > 2);
        let window = window.ok_or_else(|| Unfit::because("a size below 1, or an input without positions"))?;
        let (before, after) = ((window - 1) / 2, window / 2);
        let is_near = |c: usize, k: usize| f64::from(u8::from(k + before >= c && k <= c + after));
        let band = |near: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            (0..n * n).map(|i| near(i / n, i % n)).collect()
        };
        let shape: Vec<usize> = [n, n].into_iter().chain(vec![1; rank - 2]).collect();
        Ok(Self {
            within: b.floats(&shape, &band(&is_near), x)?,
            around: b.floats(&shape, &band(&|c, k| is_near(k, c)), x)?,
            window: window as f64,
        })
    }

    /// bias + alpha/size · Σ x².
    fn base(&self, b: &mut Builder, x: ValueId, alpha: f32, bias: f32) -> ValueId {
        let square = b.mul(x, x);
        let sum = b.node(op::Conv::default(), &[square, self.within]);
        let sum = b.scaled(sum, f64::from(alpha) / self.window, x);
        let bias = b.number(f64::from(bias), x);
        b.add(sum, bias)
    }
}

fn power(b: &mut Builder, base: ValueId, exponent: f64, like: ValueId) -> ValueId {
    let exponent = b.number(exponent, like);
    b.node(op::Pow::default(), &[base, exponent])
}

/// The forward formula, for windows that some engines refuse.
pub(super) fn local_response(b: &mut Builder, at: &At, op: &op::LRN) -> Result<ValueId, Unfit> {
    let x = at.input(0)?;
    let base = Neighbours::new(b, x, op.size)?.base(b, x, op.alpha, op.bias);
    let norm = power(b, base, -f64::from(op.beta), x);
    Ok(b.mul(x, norm))
}

/// With s the base of the power: `dx = dy·s^−β − 2αβ/size · x · Σ dy·x·s^(−β−1)`, the sum over the channels whose
/// window the channel is in.
pub(super) fn local_response_grad(b: &mut Builder, at: &At, op: &op::LRNGrad) -> Result<ValueId, Unfit> {
    let (dy, x) = (at.input(0)?, at.input(1)?);
    let near = Neighbours::new(b, x, op.size)?;
    let (alpha, beta) = (f64::from(op.alpha), f64::from(op.beta));
    let base = near.base(b, x, op.alpha, op.bias);
    let norm = power(b, base, -beta, x);
    let along = b.mul(dy, norm);
    let steeper = power(b, base, -beta - 1.0, x);
    let product = b.mul(dy, x);
    let product = b.mul(product, steeper);
    let sum = b.node(op::Conv::default(), &[product, near.around]);
    let rest = b.mul(x, sum);
    let rest = b.scaled(rest, 2.0 * alpha * beta / near.window, x);
    Ok(b.sub(along, rest))
}

/// What both halves of batch normalisation need of the images at hand.
struct Standard {
    rank: usize,
    axes: Vec<i64>,
    /// By channel, `[1, C, 1, …]`.
    mean: ValueId,
    variance: ValueId,
    inverse: ValueId,
    /// The normalised x.
    hat: ValueId,
}

fn standard(b: &mut Builder, x: ValueId, epsilon: f32) -> Result<Standard, Unfit> {
    let rank = sizes(b, x)?.len();
    let axes: Vec<i64> = (0..rank as i64).filter(|&a| a != 1).collect();
    let mean = b.mean(x, &axes);
    let centred = b.sub(x, mean);
    let square = b.mul(centred, centred);
    let variance = b.mean(square, &axes);
    let epsilon = b.number(f64::from(epsilon), x);
    let sum = b.add(variance, epsilon);
    let root = b.node(op::Sqrt {}, &[sum]);
    let inverse = b.node(op::Reciprocal {}, &[root]);
    let hat = b.mul(centred, inverse);
    Ok(Standard { rank, axes, mean, variance, inverse, hat })
}

/// A vector with one element per channel, to stand against images.
fn by_channel(b: &mut Builder, v: ValueId, rank: usize) -> ValueId {
    let mut shape = vec![1; rank.max(2)];
    shape[1] = -1;
    b.reshape(v, &shape)
}

/// The training form: by the statistics of the images at hand. Mean and variance come out as
/// `momentum · old + (1 − momentum) · new`, the variance that of a population.
pub(super) fn batch_norm(b: &mut Builder, at: &At, op: &op::BatchNormalization) -> Lowered {
    let (x, scale, bias) = (at.input(0)?, at.input(1)?, at.input(2)?);
    let s = standard(b, x, op.epsilon)?;
    let (scale, bias) = (by_channel(b, scale, s.rank), by_channel(b, bias, s.rank));
    let product = b.mul(s.hat, scale);
    let y = b.add(product, bias);
    let mut out = vec![y];
    for (slot, new) in [(3, s.mean), (4, s.variance)] {
        let old = at.input(slot)?;
        let new = b.reshape(new, &[-1]);
        let momentum = f64::from(op.momentum);
        out.push(if momentum == 0.0 {
            new
        } else {
            let (old, new) = (b.scaled(old, momentum, x), b.scaled(new, 1.0 - momentum, x));
            b.add(old, new)
        });
    }
    Ok(out)
}

/// With means over images and positions: `dx = scale/σ · (dy − mean(dy) − x̂ · mean(dy·x̂))`, `dscale = Σ dy·x̂`,
/// `dbias = Σ dy`.
pub(super) fn batch_norm_grad(b: &mut Builder, at: &At, op: &op::BatchNormalizationGrad) -> Lowered {
    let (dy, x, scale) = (at.input(0)?, at.input(1)?, at.input(2)?);
    let s = standard(b, x, op.epsilon)?;
    let product = b.mul(dy, s.hat);
    let (plain, along) = (b.mean(dy, &s.axes), b.mean(product, &s.axes));
    let rest = b.mul(s.hat, along);
    let rest = b.add(rest, plain);
    let rest = b.sub(dy, rest);
    let scale = by_channel(b, scale, s.rank);
    let factor = b.mul(scale, s.inverse);
    let dx = b.mul(rest, factor);
    Ok(vec![dx, b.sum(product, &s.axes, false), b.sum(dy, &s.axes, false)])
}
