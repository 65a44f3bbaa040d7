//! First and second moments of what goes into a layer and what should come out, accumulated in f64.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

/// Columns of a moment matrix that are added up at a time, one task each: a fixed number, so that the
/// order of every sum, and so the last bit, is the same for any number of threads.
const BLOCK: usize = 96;

/// Moments of one layer: per group, sums over rows of `x`, `y`, `x·xᵀ`, `y·xᵀ` and `y·yᵀ`.
#[derive(Clone, Debug)]
pub(crate) struct Moments {
    /// Rows added so far.
    pub n: usize,
    n_inputs: usize,
    n_outputs: usize,
    groups: Vec<Sums>,
}

#[derive(Clone, Debug)]
struct Sums {
    x: Vec<f64>,
    y: Vec<f64>,
    /// By blocks of columns: `x·xᵀ` from the block's first row on, then `y·xᵀ`.
    blocks: Vec<(Mat<f64>, Mat<f64>)>,
    yy: Mat<f64>,
}

/// The moments of one group about its means, or about zero.
#[derive(Clone, Debug)]
pub(crate) struct Centred {
    /// Mean of the inputs; zero if not centred.
    pub x_mean: Vec<f64>,
    /// Mean of the outputs; zero if not centred.
    pub y_mean: Vec<f64>,
    /// `[n_inputs, n_inputs]`, symmetric.
    pub xx: Mat<f64>,
    /// `[n_outputs, n_inputs]`.
    pub yx: Mat<f64>,
    /// `[n_outputs, n_outputs]`, symmetric.
    pub yy: Mat<f64>,
}

impl Moments {
    /// No rows yet. With `n_inputs` 0 only the outputs are looked at.
    pub fn new(groups: usize, n_inputs: usize, n_outputs: usize) -> Self {
        let blocks = || {
            (0..n_inputs)
                .step_by(BLOCK)
                .map(|j| {
                    let n = BLOCK.min(n_inputs - j);
                    (Mat::zeros(n_inputs - j, n), Mat::zeros(n_outputs, n))
                })
                .collect()
        };
        let sums = || Sums {
            x: vec![0.0; n_inputs],
            y: vec![0.0; n_outputs],
            blocks: blocks(),
            yy: Mat::zeros(n_outputs, n_outputs),
        };
        Self { n: 0, n_inputs, n_outputs, groups: std::iter::repeat_with(sums).take(groups).collect() }
    }

    /// Adds rows, `[group][row][n_inputs]` and `[group][row][n_outputs]`.
    pub fn add(&mut self, x: &[f64], y: &[f64]) {
        let (n_inputs, n_outputs, n_groups) = (self.n_inputs, self.n_outputs, self.groups.len());
        let n = y.len() / (n_groups * n_outputs).max(1);
        self.n += n;
        let part = |v: &[f64], g: usize, width: usize| v[g * n * width..(g + 1) * n * width].to_vec();
        self.groups.par_iter_mut().enumerate().for_each(|(g, sums)| {
            let (x, y) = (part(x, g, n_inputs), part(y, g, n_outputs));
            add_rows(&mut sums.x, &x);
            add_rows(&mut sums.y, &y);
            let x = MatRef::from_row_major_slice(&x, n, n_inputs);
            let y = MatRef::from_row_major_slice(&y, n, n_outputs);
            matmul(sums.yy.as_mut(), Accum::Add, y.transpose(), y, 1.0, Par::Seq);
            sums.blocks.par_iter_mut().enumerate().for_each(|(b, (xx, yx))| {
                let from = b * BLOCK;
                let columns = x.subcols(from, yx.ncols());
                let rest = x.subcols(from, n_inputs - from);
                matmul(xx.as_mut(), Accum::Add, rest.transpose(), columns, 1.0, Par::Seq);
                matmul(yx.as_mut(), Accum::Add, y.transpose(), columns, 1.0, Par::Seq);
            });
        });
    }

    /// Both sets of rows together.
    pub fn merge(&mut self, other: &Self) {
        self.n += other.n;
        for (a, b) in self.groups.iter_mut().zip(&other.groups) {
            a.x.iter_mut().zip(&b.x).for_each(|(a, b)| *a += b);
            a.y.iter_mut().zip(&b.y).for_each(|(a, b)| *a += b);
            a.yy += &b.yy;
            for ((xx, yx), (other_xx, other_yx)) in a.blocks.iter_mut().zip(&b.blocks) {
                *xx += other_xx;
                *yx += other_yx;
            }
        }
    }

    /// Means, and second moments per row, of a group: about the means, or about zero for a layer that
    /// cannot have a bias.
    pub fn centred(&self, group: usize, about_means: bool) -> Centred {
        let sums = &self.groups[group];
        let n = (self.n as f64).max(1.0);
        let mean = |sums: &[f64]| -> Vec<f64> {
            sums.iter().map(|s| if about_means { s / n } else { 0.0 }).collect()
        };
        let (x_mean, y_mean) = (mean(&sums.x), mean(&sums.y));
        let (d, p) = (self.n_inputs, self.n_outputs);
        let (mut xx, mut yx) = (Mat::zeros(d, d), Mat::zeros(p, d));
        for (b, (block_xx, block_yx)) in sums.blocks.iter().enumerate() {
            for j in 0..block_yx.ncols() {
                let column = b * BLOCK + j;
                for i in j..block_xx.nrows() {
                    let row = b * BLOCK + i;
                    let value = block_xx[(i, j)] / n - x_mean[row] * x_mean[column];
                    xx[(row, column)] = value;
                    xx[(column, row)] = value;
                }
                for i in 0..p {
                    yx[(i, column)] = block_yx[(i, j)] / n - y_mean[i] * x_mean[column];
                }
            }
        }
        let yy = Mat::from_fn(p, p, |i, j| sums.yy[(i.max(j), i.min(j))] / n - y_mean[i] * y_mean[j]);
        Centred { x_mean, y_mean, xx, yx, yy }
    }
}

fn add_rows(sums: &mut [f64], rows: &[f64]) {
    if sums.is_empty() {
        return;
    }
    for row in rows.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(s, v)| *s += v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers without pattern.
    fn noise(n: usize, seed: u64) -> Vec<f64> {
        let t = basisopt_ir::Tensor::generated(
            basisopt_ir::DType::F64,
            vec![n],
            basisopt_ir::Generator::Randn { seed },
        );
        t.unwrap().to_f64s().unwrap()
    }

    #[test]
    fn moments_are_those_of_the_definition_whatever_the_batches() {
        let (groups, d, p, n) = (2, 130, 3, 40);
        let (x, y) = (noise(groups * n * d, 1), noise(groups * n * p, 2));
        let mut whole = Moments::new(groups, d, p);
        whole.add(&x, &y);
        // The same rows in two unequal batches.
        let cut = |v: &[f64], width: usize, from: usize, to: usize| -> Vec<f64> {
            (0..groups).flat_map(|g| v[(g * n + from) * width..(g * n + to) * width].to_vec()).collect()
        };
        let (mut a, mut b) = (Moments::new(groups, d, p), Moments::new(groups, d, p));
        a.add(&cut(&x, d, 0, 13), &cut(&y, p, 0, 13));
        b.add(&cut(&x, d, 13, n), &cut(&y, p, 13, n));
        a.merge(&b);
        assert_eq!(a.n, n);
        for g in 0..groups {
            let (found, split) = (whole.centred(g, true), a.centred(g, true));
            let at = |v: &[f64], width: usize, row: usize, k: usize| v[(g * n + row) * width + k];
            let mean = |v: &[f64], width, k| (0..n).map(|r| at(v, width, r, k)).sum::<f64>() / n as f64;
            let covariance = |u: &[f64], wu, i, v: &[f64], wv, j| {
                let (mu, mv) = (mean(u, wu, i), mean(v, wv, j));
                (0..n).map(|r| (at(u, wu, r, i) - mu) * (at(v, wv, r, j) - mv)).sum::<f64>() / n as f64
            };
            for (i, j) in [(0, 0), (129, 3), (3, 129), (100, 97)] {
                let wanted = covariance(&x, d, i, &x, d, j);
                assert!(
                    (found.xx[(i, j)] - wanted).abs() < 1e-12 && (split.xx[(i, j)] - wanted).abs() < 1e-12
                );
                let wanted = covariance(&y, p, i % p, &x, d, j);
                assert!((found.yx[(i % p, j)] - wanted).abs() < 1e-12);
                let wanted = covariance(&y, p, i % p, &y, p, j % p);
                assert!((found.yy[(i % p, j % p)] - wanted).abs() < 1e-12);
            }
            assert!((found.x_mean[129] - mean(&x, d, 129)).abs() < 1e-14);
        }
    }
}
