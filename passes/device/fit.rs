//! From times that were measured to the time of anything of the same kind.
//!
//! In two steps. First what a kernel does is counted (multiply-adds in whole tiles, elements gathered, read and written),
//! and the time is a sum of these with coefficients that are not negative, by least squares of relative errors; that holds
//! far outside of what was measured too. Then the logarithm of what is left is a Gaussian process over the logarithms of
//! the sizes (Rasmussen and Williams 2006, chapter 2), with a Matérn 3/2 covariance whose lengths are chosen by the errors
//! of points left out (5.12 there): that knows the processor's caches and tiles where there are points nearby, and says
//! nothing where there are none.

use super::work::Work;
use faer::linalg::solvers::{DenseSolveCore as _, Llt, Solve as _};
use faer::{Mat, Side};
use std::collections::BTreeMap;

/// Fewer samples than this say nothing.
pub(crate) const LEAST: usize = 4;
/// More than this make decompositions slow, and tell no more; then every second one is taken, or every third, ….
const MOST: usize = 1200;
/// A staircase must leave so little of the squares that a straight line leaves, or it is none.
const STAIRCASE: f64 = 0.6;
/// Layers with so many different numbers of filters make a staircase.
pub(crate) const STAIRS: usize = 32;
/// Lengths, in octaves, over which times may depart from what is counted, and shares of noise, to choose from.
const LENGTHS: [f64; 6] = [1.0, 2.0, 3.0, 5.0, 8.0, 14.0];
const NOISE: [f64; 4] = [0.03, 0.07, 0.15, 0.3];
/// Rounds of coordinate descent.
const ROUNDS: usize = 4000;
/// Tiles are looked for up to this size.
const MOST_TILE: usize = 32;

/// The times of one family.
#[derive(Clone, Debug)]
pub(crate) struct Fit {
    tile: usize,
    /// Milliseconds per unit of each count.
    coefficients: Vec<f64>,
    process: Process,
}

impl Fit {
    /// From samples of one family, in milliseconds without what every run takes (`overhead`); `None` if they are too few.
    pub fn new(samples: &[(&Work, f64)], overhead: f64) -> Option<Self> {
        let samples: Vec<(&Work, f64)> =
            samples.iter().copied().step_by(samples.len().div_ceil(MOST).max(1)).collect();
        if samples.len() < LEAST {
            return None;
        }
        let tile = tile(&samples).unwrap_or(1);
        // The clock's noise is relative to all it measured: what is small beside the overhead is little known.
        let trust: Vec<f64> = samples.iter().map(|(_, ms)| ms / (ms + overhead)).collect();
        let rows: Vec<Vec<f64>> = samples
            .iter()
            .zip(&trust)
            .map(|((work, ms), w)| counts(work, tile).into_iter().map(|c| w * c / ms).collect())
            .collect();
        let coefficients = not_negative(&rows, &trust);
        let fitted = |work: &Work| -> f64 { dot(&counts(work, tile), &coefficients).max(f64::MIN_POSITIVE) };
        let residuals: Vec<f64> = samples.iter().map(|(work, ms)| (ms / fitted(work)).ln()).collect();
        let points = samples.iter().map(|(work, _)| coordinates(work)).collect();
        Some(Self { tile, coefficients, process: Process::new(points, &residuals, &trust)? })
    }

    /// Milliseconds.
    pub fn at(&self, work: &Work) -> f64 {
        dot(&counts(work, self.tile), &self.coefficients) * self.process.at(&coordinates(work)).exp()
    }

    /// Filters that a kernel computes together, as far as the staircase tells; 1 if it does not.
    pub fn tile(&self) -> usize {
        self.tile
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn area(sizes: [usize; 2]) -> f64 {
    sizes[0] as f64 * sizes[1] as f64
}

/// What a kernel does, each a number that time may be proportional to.
fn counts(work: &Work, tile: usize) -> Vec<f64> {
    let tiles = |n: usize| n.next_multiple_of(tile.max(1)) as f64;
    match *work {
        Work::Conv { kernel, strides, n_in, n_out, output } => {
            let (depth, positions) = (area(kernel) * n_in as f64, area(output));
            vec![
                depth * tiles(n_out) * positions,
                // Short rows and images leave lanes of a vector empty.
                depth * tiles(n_out) * positions.sqrt(),
                depth * positions,
                n_in as f64 * positions * area(strides),
                n_out as f64 * positions,
                depth * n_out as f64,
                1.0,
            ]
        }
        Work::Pair { kernel, strides, n_in, rank, n_out, output } => {
            let (depth, positions) = (area(kernel) * n_in as f64, area(output));
            vec![
                depth * tiles(rank) * positions,
                rank as f64 * tiles(n_out) * positions,
                depth * tiles(rank) * positions.sqrt(),
                n_in as f64 * positions * area(strides),
                n_out as f64 * positions,
                rank as f64 * (depth + n_out as f64),
                1.0,
            ]
        }
        Work::Depthwise { kernel, strides, n_channels, output } => {
            let n = n_channels as f64;
            let positions = area(output);
            vec![n * positions * area(kernel), n * positions * area(strides), n * positions, n, 1.0]
        }
        Work::Pool { kernel, strides, n_channels, output } => {
            let n = n_channels as f64 * area(output);
            vec![n * area(kernel), n * area(strides), n, 1.0]
        }
        Work::Linear { n_in, n_out, n_rows } => {
            let (k, n, m) = (n_in as f64, n_out as f64, n_rows as f64);
            vec![m * k * n, k * n, m * (k + n), 1.0]
        }
        Work::Lrn { n_channels, size, output } => {
            let n = n_channels as f64 * area(output);
            vec![n * size as f64, n, 1.0]
        }
        Work::Map { n_elements, n_operands } => {
            let n = n_elements as f64;
            vec![n * n_operands as f64, n, 1.0]
        }
        Work::Scale { n_channels, output } => {
            vec![n_channels as f64 * area(output), n_channels as f64, 1.0]
        }
        Work::Exp { n_elements } | Work::Copy { n_elements } => vec![n_elements as f64, 1.0],
    }
}

/// Where work lies among other work of its family: sizes in octaves.
fn coordinates(work: &Work) -> Vec<f64> {
    let log = |n: usize| (n.max(1) as f64).log2();
    match *work {
        Work::Conv { kernel, strides, n_in, n_out, output } => {
            vec![
                area(kernel).log2(),
                2.0 * area(strides).log2(),
                log(n_in),
                log(n_out),
                log(output[0]) + log(output[1]),
                // Rows of pixels matter less than their number.
                0.5 * (log(output[0]) - log(output[1])),
            ]
        }
        Work::Pair { kernel, strides, n_in, rank, n_out, output } => {
            vec![
                area(kernel).log2(),
                2.0 * area(strides).log2(),
                log(n_in),
                log(rank),
                log(n_out),
                log(output[0]) + log(output[1]),
                0.5 * (log(output[0]) - log(output[1])),
            ]
        }
        Work::Depthwise { kernel, strides, n_channels, output }
        | Work::Pool { kernel, strides, n_channels, output } => {
            vec![
                area(kernel).log2(),
                2.0 * area(strides).log2(),
                log(n_channels),
                log(output[0]) + log(output[1]),
            ]
        }
        Work::Lrn { n_channels, size, output } => {
            vec![log(n_channels), log(size), log(output[0]) + log(output[1])]
        }
        Work::Linear { n_in, n_out, n_rows } => vec![log(n_in), log(n_out), log(n_rows)],
        Work::Map { n_elements, n_operands } => vec![log(n_elements), 4.0 * log(n_operands)],
        Work::Scale { n_channels, output } => vec![log(n_channels), log(output[0]) + log(output[1])],
        Work::Exp { n_elements } | Work::Copy { n_elements } => vec![log(n_elements)],
    }
}

/// The step of the staircase that times of layers make which differ in their number of filters alone: of `a + b·⌈n/s⌉·s`, the
/// `s` with the least squares.
fn tile(samples: &[(&Work, f64)]) -> Option<usize> {
    let stairs = |(work, _): &(&Work, f64)| stairs(work, samples);
    let best = samples.iter().map(stairs).max_by_key(BTreeMap::len)?;
    if best.len() < STAIRS {
        return None;
    }
    let error = |s: usize| {
        let n = best.len() as f64;
        let x = |n: usize| n.next_multiple_of(s) as f64;
        let mean_x = best.keys().map(|&n| x(n)).sum::<f64>() / n;
        let mean_t = best.values().sum::<f64>() / n;
        let (mut xx, mut xt, mut tt) = (0.0, 0.0, 0.0);
        for (&n, &t) in &best {
            let (dx, dt) = (x(n) - mean_x, t - mean_t);
            xx += dx * dx;
            xt += dx * dt;
            tt += dt * dt;
        }
        if xx > 0.0 { tt - xt * xt / xx } else { tt }
    };
    let found = (1..=MOST_TILE).min_by(|&a, &b| error(a).total_cmp(&error(b)))?;
    (error(found) < STAIRCASE * error(1)).then_some(found)
}

/// The times of the same work with other numbers of filters.
pub(crate) fn stairs(work: &Work, samples: &[(&Work, f64)]) -> BTreeMap<usize, f64> {
    samples.iter().filter_map(|(other, ms)| Some((step_of(work, other)?, *ms))).collect()
}

/// The filters of `other`, if it is the same work with a number of them.
fn step_of(work: &Work, other: &Work) -> Option<usize> {
    match (work, other) {
        (
            Work::Conv { kernel, strides, n_in, output, .. },
            Work::Conv { kernel: k, strides: s, n_in: i, output: o, n_out },
        ) => (kernel == k && strides == s && n_in == i && output == o).then_some(*n_out),
        (
            Work::Pair { kernel, strides, n_in, n_out, output, .. },
            Work::Pair { kernel: k, strides: s, n_in: i, n_out: p, output: o, rank },
        ) => (kernel == k && strides == s && n_in == i && n_out == p && output == o).then_some(*rank),
        _ => None,
    }
}

/// Coefficients `c ≥ 0` with the least `Σ (row·c − target)²`, by coordinate descent on the normal equations.
fn not_negative(rows: &[Vec<f64>], targets: &[f64]) -> Vec<f64> {
    let n = rows.first().map_or(0, Vec::len);
    let norm = |j: usize| rows.iter().map(|r| r[j] * r[j]).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    let norms: Vec<f64> = (0..n).map(norm).collect();
    let mut gram = vec![vec![0.0; n]; n];
    let mut right = vec![0.0; n];
    for (row, target) in rows.iter().zip(targets) {
        let row: Vec<f64> = row.iter().zip(&norms).map(|(v, norm)| v / norm).collect();
        for i in 0..n {
            right[i] += row[i] * target;
            (0..n).for_each(|j| gram[i][j] += row[i] * row[j]);
        }
    }
    let mut c = vec![0.0; n];
    for _ in 0..ROUNDS {
        for i in 0..n {
            let gradient = dot(&gram[i], &c) - right[i];
            c[i] = f64::max(c[i] - gradient / gram[i][i].max(f64::MIN_POSITIVE), 0.0);
        }
    }
    c.iter().zip(&norms).map(|(c, norm)| c / norm).collect()
}

/// A Gaussian process with mean and amplitude of its values.
#[derive(Clone, Debug)]
struct Process {
    points: Vec<Vec<f64>>,
    weights: Vec<f64>,
    mean: f64,
    length: f64,
}

impl Process {
    /// Values are known the less, the smaller their `trust`, 0 to 1.
    fn new(points: Vec<Vec<f64>>, values: &[f64], trust: &[f64]) -> Option<Self> {
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n.max(1) as f64;
        let centred = Mat::from_fn(n, 1, |i, _| values[i] - mean);
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n.max(1) as f64;
        let variance = variance.max(1e-6);
        let mut best: Option<(f64, f64, Vec<f64>)> = None;
        for length in LENGTHS {
            let base = Mat::from_fn(n, n, |i, j| variance * matern(&points[i], &points[j], length));
            for noise in NOISE {
                let mut covariance = base.clone();
                (0..n).for_each(|i| covariance[(i, i)] += (noise / trust[i].max(1e-3)).powi(2));
                let Ok(cholesky) = Llt::new(covariance.as_ref(), Side::Lower) else { continue };
                let weights = cholesky.solve(&centred);
                let inverse = cholesky.inverse();
                // What each point is off by when the others predict it.
                let error: f64 = (0..n).map(|i| (trust[i] * weights[(i, 0)] / inverse[(i, i)]).powi(2)).sum();
                if error.is_finite() && best.as_ref().is_none_or(|(least, ..)| error < *least) {
                    let weights = (0..n).map(|i| variance * weights[(i, 0)]).collect();
                    best = Some((error, length, weights));
                }
            }
        }
        let (_, length, weights) = best?;
        Some(Self { points, weights, mean, length })
    }

    fn at(&self, point: &[f64]) -> f64 {
        let near = self.points.iter().map(|p| matern(p, point, self.length));
        self.mean + near.zip(&self.weights).map(|(k, w)| k * w).sum::<f64>()
    }
}

/// Matérn's covariance of order 3/2, with amplitude one.
fn matern(a: &[f64], b: &[f64], length: f64) -> f64 {
    let squared: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    let distance = (3.0 * squared).sqrt() / length;
    (1.0 + distance) * (-distance).exp()
}
