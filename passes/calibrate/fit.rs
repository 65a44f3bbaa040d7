//! Factors from moments: reduced-rank regression, and principal components of outputs.
//!
//! For inputs `x` and wanted outputs `y` of one layer with weight `W`, all moments about the means:
//!
//! - the best linear map is `B = (C + λW)·(H + λI)⁻¹` with `H = E[x·xᵀ]`, `C = E[y·xᵀ]`: ridge regression
//!   that shrinks towards the weight which is there, so that directions without data keep it;
//! - its best approximation of rank Q projects outputs on the first Q eigenvectors U of `B·H·Bᵀ`
//!   (Izenman, "Reduced-rank regression for the multivariate linear model", 1975): `w = U`, `F = Uᵀ·B`;
//! - with `B = W`, that is principal component analysis of the outputs (Zhang, Zou, He, Sun 2015);
//! - the bias makes the means agree: `b' = ȳ − w·F·x̄`.

use crate::calibrate::moments::Centred;
use crate::factor::{Factors, NoConvergence, decompose, eigen};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::{factor as llt, solve};
use faer::linalg::matmul::matmul;
use faer::{Accum, Conj, Mat, MatMut, MatRef, Par};

/// Eigenvalues below this share of the largest are rounding: single-precision activations carry no more.
const DEFICIENT: f64 = 1e-10;

/// The best linear map of one group, and the principal directions of its outputs.
#[derive(Clone, Debug)]
pub(crate) struct Fit {
    /// `B`, `[n_outputs, n_inputs]`.
    map: Mat<f64>,
    /// Eigenvectors of `B·H·Bᵀ`, one per column.
    directions: Mat<f64>,
    /// Its eigenvalues, largest first: output variance along each direction.
    pub spectrum: Vec<f64>,
}

impl Fit {
    /// The fit of a map to second moments of its inputs.
    pub fn of(map: Mat<f64>, xx: &Mat<f64>) -> Result<Self, NoConvergence> {
        let outputs = outputs(&map, xx);
        Self::along(map, &outputs)
    }

    /// The fit of a map whose outputs have these second moments.
    pub fn along(map: Mat<f64>, outputs: &Mat<f64>) -> Result<Self, NoConvergence> {
        let (values, directions) = eigen(outputs)?;
        let spectrum = values.into_iter().map(|v| v.max(0.0)).collect();
        Ok(Self { map, directions, spectrum })
    }

    /// How many directions of the outputs have any variance, for inputs with these second moments.
    pub fn effective_rank(&self, xx: &Mat<f64>) -> Result<usize, NoConvergence> {
        n_directions(&outputs(&self.map, xx))
    }

    /// What the first directions keep of an output.
    pub fn project(&self, rank: usize, output: &[f64]) -> Vec<f64> {
        let p = self.map.nrows();
        let mut kept = vec![0.0; p];
        for k in 0..rank.min(p) {
            let along: f64 = (0..p).map(|i| self.directions[(i, k)] * output[i]).sum();
            kept.iter_mut().enumerate().for_each(|(i, v)| *v += along * self.directions[(i, k)]);
        }
        kept
    }

    /// The same for row-major rows of outputs, in place.
    pub fn project_rows(&self, rank: usize, rows: &mut [f64]) {
        let p = self.map.nrows();
        let n = rows.len() / p.max(1);
        let directions = self.directions.subcols(0, rank.min(p));
        let mut along = Mat::zeros(directions.ncols(), n);
        let view = MatRef::from_row_major_slice(rows, n, p);
        matmul(along.as_mut(), Accum::Replace, directions.transpose(), view.transpose(), 1.0, Par::Seq);
        // Columns of the result are the rows that are wanted.
        let back = MatMut::from_column_major_slice_mut(rows, p, n);
        matmul(back, Accum::Replace, directions, along.as_ref(), 1.0, Par::Seq);
    }

    /// The best factors of this rank, the basis orthonormal.
    pub fn truncate(&self, rank: usize) -> Result<Factors, NoConvergence> {
        let (p, d) = self.map.shape();
        let rank = rank.min(p).min(d);
        let directions = self.directions.subcols(0, rank);
        let mut basis = Mat::zeros(rank, d);
        matmul(basis.as_mut(), Accum::Replace, directions.transpose(), self.map.as_ref(), 1.0, Par::Seq);
        // U·F = (U·R)·Z with orthonormal rows in Z. By SVD rather than by QR: it orders the basis by what
        // each filter carries, as the weight-only method does, and copes with rows that are dependent.
        let inner = decompose(&row_major(basis.as_ref()), rank, d)?.truncate(rank);
        let mixing = MatRef::from_row_major_slice(&inner.coefficients, rank, rank);
        let mut coefficients = Mat::zeros(p, rank);
        matmul(coefficients.as_mut(), Accum::Replace, directions, mixing, 1.0, Par::Seq);
        Ok(Factors { coefficients: row_major(coefficients.as_ref()), basis: inner.basis, rank })
    }
}

/// `B·H·Bᵀ`.
fn outputs(map: &Mat<f64>, xx: &Mat<f64>) -> Mat<f64> {
    let mut spread = Mat::zeros(map.nrows(), map.ncols());
    matmul(spread.as_mut(), Accum::Replace, map.as_ref(), xx.as_ref(), 1.0, Par::Seq);
    let mut outputs = Mat::zeros(map.nrows(), map.nrows());
    matmul(outputs.as_mut(), Accum::Replace, spread.as_ref(), map.transpose(), 1.0, Par::Seq);
    outputs
}

/// How many directions of a second moment have any variance.
pub(crate) fn n_directions(outputs: &Mat<f64>) -> Result<usize, NoConvergence> {
    let (values, _) = eigen(outputs)?;
    let largest = values.first().copied().unwrap_or(0.0);
    Ok(values.iter().take_while(|&&v| v > DEFICIENT * largest && v > 0.0).count())
}

/// How far second moments of `d` inputs estimated from `n` rows are moved towards those of inputs that vary
/// independently of each other: the relative size of the error of such an estimate. Without it, a layer with
/// fewer rows than inputs seems to need no more directions than there are rows.
pub(crate) fn shrinkage(d: usize, n: usize) -> f64 {
    d as f64 / n.max(1) as f64
}

/// Second moments of inputs, moved. Inputs that never vary stay so.
pub(crate) fn shrunk(xx: &Mat<f64>, amount: f64) -> Mat<f64> {
    let mut moved = xx.clone();
    (0..xx.nrows()).for_each(|i| moved[(i, i)] *= 1.0 + amount);
    moved
}

/// Second moments of the outputs of a map, moved as if its inputs, which are not known, all varied alike.
pub(crate) fn shrunk_outputs(yy: Mat<f64>, map: MatRef<'_, f64>, amount: f64) -> Mat<f64> {
    let p = map.nrows();
    let mut moved = yy;
    let mut square = Mat::zeros(p, p);
    matmul(square.as_mut(), Accum::Replace, map, map.transpose(), 1.0, Par::Seq);
    let trace = |m: &Mat<f64>| (0..p).map(|i| m[(i, i)]).sum::<f64>();
    let (variance, norm) = (trace(&moved), trace(&square));
    if norm > 0.0 {
        let scale = amount * variance / norm;
        (0..p).for_each(|j| (0..p).for_each(|i| moved[(i, j)] += scale * square[(i, j)]));
    }
    moved
}

/// Ridge regression on inputs with given second moments: `B = (C + λW)·(H + λI)⁻¹`.
#[derive(Clone, Debug)]
pub(crate) struct Ridge {
    /// The Cholesky factor of `H + λI`.
    factor: Mat<f64>,
    lambda: f64,
}

impl Ridge {
    /// With `λ = ridge · mean(diag H)`. `None` where `H` is zero, or not a number.
    pub fn new(xx: &Mat<f64>, ridge: f64) -> Option<Self> {
        let d = xx.nrows();
        let mean = (0..d).map(|i| xx[(i, i)]).sum::<f64>() / (d as f64).max(1.0);
        if !(mean.is_finite() && mean > 0.0) {
            return None;
        }
        let mut lambda = ridge * mean;
        let scratch = llt::cholesky_in_place_scratch::<f64>(d, Par::Seq, Default::default());
        let mut buffer = MemBuffer::try_new(scratch).ok()?;
        // Rounding can leave a singular H a little indefinite; a little more λ mends that.
        for _ in 0..6 {
            let mut factor = xx.clone();
            (0..d).for_each(|i| factor[(i, i)] += lambda);
            let stack = MemStack::new(&mut buffer);
            let (h, plain) = (factor.as_mut(), Default::default());
            if llt::cholesky_in_place(h, plain, Par::Seq, stack, Default::default()).is_ok() {
                return Some(Self { factor, lambda });
            }
            lambda *= 10.0;
        }
        None
    }

    /// The map for these cross moments `C`, shrunk towards the weight `W`. `None` if it is not finite.
    pub fn map(&self, yx: &Mat<f64>, weight: MatRef<'_, f64>) -> Option<Mat<f64>> {
        let (p, d) = yx.shape();
        let mut transposed = Mat::from_fn(d, p, |j, i| yx[(i, j)] + self.lambda * weight[(i, j)]);
        let mut buffer = MemBuffer::try_new(solve::solve_in_place_scratch::<f64>(d, p, Par::Seq)).ok()?;
        let (right, stack) = (transposed.as_mut(), MemStack::new(&mut buffer));
        solve::solve_in_place_with_conj(self.factor.as_ref(), Conj::No, right, Par::Seq, stack);
        transposed.is_all_finite().then(|| transposed.transpose().to_owned())
    }
}

/// Outputs of factors for rows of inputs, both row-major.
pub(crate) fn predict(factors: &Factors, x: &[f64], p: usize, d: usize) -> Vec<f64> {
    let n = x.len() / d.max(1);
    let basis = MatRef::from_row_major_slice(&factors.basis, factors.rank, d);
    let coefficients = MatRef::from_row_major_slice(&factors.coefficients, p, factors.rank);
    let x = MatRef::from_row_major_slice(x, n, d);
    let mut inner = Mat::zeros(factors.rank, n);
    matmul(inner.as_mut(), Accum::Replace, basis, x.transpose(), 1.0, Par::Seq);
    // Column-major columns are the rows that are wanted.
    let mut y = Mat::zeros(p, n);
    matmul(y.as_mut(), Accum::Replace, coefficients, inner.as_ref(), 1.0, Par::Seq);
    (0..n).flat_map(|i| y.col_as_slice(i).to_vec()).collect()
}

/// `Σ y·xᵀ` over rows.
pub(crate) fn cross(y: &[f64], x: &[f64], p: usize, d: usize) -> Mat<f64> {
    let n = x.len() / d.max(1);
    let (y, x) = (MatRef::from_row_major_slice(y, n, p), MatRef::from_row_major_slice(x, n, d));
    let mut sum = Mat::zeros(p, d);
    matmul(sum.as_mut(), Accum::Replace, y.transpose(), x, 1.0, Par::Seq);
    sum
}

/// `E‖y − A·x‖²`, the means agreeing.
pub(crate) fn residual(m: &Centred, map: MatRef<'_, f64>) -> f64 {
    let mut image = Mat::zeros(map.nrows(), map.ncols());
    matmul(image.as_mut(), Accum::Replace, map, m.xx.as_ref(), 1.0, Par::Seq);
    let (mut cross, mut square) = (0.0, 0.0);
    for j in 0..map.ncols() {
        for i in 0..map.nrows() {
            cross += map[(i, j)] * m.yx[(i, j)];
            square += map[(i, j)] * image[(i, j)];
        }
    }
    (variance(m) - 2.0 * cross + square).max(0.0)
}

/// `E‖y − ȳ‖²`.
pub(crate) fn variance(m: &Centred) -> f64 {
    (0..m.yy.nrows()).map(|i| m.yy[(i, i)]).sum()
}

/// A matrix as a row-major vector.
pub(crate) fn row_major(m: MatRef<'_, f64>) -> Vec<f64> {
    (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::moments::Moments;
    use crate::factor::{orthonormality_defect, product};

    fn noise(n: usize, seed: u64) -> Vec<f64> {
        let t = basisopt_ir::Tensor::generated(
            basisopt_ir::DType::F64,
            vec![n],
            basisopt_ir::Generator::Randn { seed },
        );
        t.unwrap().to_f64s().unwrap()
    }

    /// Rows `x` and `y = W·x + 3 + noise`.
    fn example(n: usize, d: usize, p: usize, amount: f64) -> (Vec<f64>, Centred) {
        let (w, mut x) = (noise(p * d, 1), noise(n * d, 2));
        // Correlated inputs with a mean, of very different sizes.
        for row in x.chunks_exact_mut(d) {
            for k in 1..d {
                row[k] = 0.7 * row[k - 1] + row[k] / k as f64 + 0.5;
            }
        }
        let rows = Factors { coefficients: x.clone(), basis: crate::layer::transpose(&w, p, d), rank: d };
        let mut y = product(&rows, n, p);
        y.iter_mut().zip(noise(n * p, 3)).for_each(|(y, e)| *y += 3.0 + amount * e);
        let mut moments = Moments::new(1, d, p);
        moments.add(&x, &y);
        (w, moments.centred(0, true))
    }

    #[test]
    fn without_noise_the_map_is_found_again() {
        let (w, m) = example(400, 12, 5, 0.0);
        let zeros = Mat::zeros(5, 12);
        let b = Ridge::new(&m.xx, 1e-12).unwrap().map(&m.yx, zeros.as_ref()).unwrap();
        let error = row_major(b.as_ref()).iter().zip(&w).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(error < 1e-6, "{error}");
        assert!(residual(&m, b.as_ref()) < 1e-9 * variance(&m));
    }

    #[test]
    fn no_other_map_of_that_rank_does_better() {
        let (w, m) = example(300, 10, 6, 0.5);
        let w = MatRef::from_row_major_slice(&w, 6, 10);
        let fit = Fit::of(Ridge::new(&m.xx, 1e-10).unwrap().map(&m.yx, w).unwrap(), &m.xx).unwrap();
        let best = |rank| {
            let f = fit.truncate(rank).unwrap();
            assert!(orthonormality_defect(&f.basis, rank, 10) < 1e-12);
            product(&f, 6, 10)
        };
        let error = |map: &[f64]| residual(&m, MatRef::from_row_major_slice(map, 6, 10));
        // What theory says it is: the variance left unexplained and the directions left out.
        let explained: f64 = fit.spectrum.iter().sum();
        for rank in 1..=6 {
            let map = best(rank);
            let left: f64 = fit.spectrum[rank..].iter().sum();
            let wanted = variance(&m) - explained + left;
            assert!((error(&map) - wanted).abs() < 1e-6 * variance(&m), "rank {rank}");
            // Small steps away within the rank never help.
            let f = fit.truncate(rank).unwrap();
            for seed in 10..14 {
                let nudge = |v: &[f64], seed| -> Vec<f64> {
                    v.iter().zip(noise(v.len(), seed)).map(|(a, e)| a + 1e-3 * e).collect()
                };
                let other = Factors {
                    coefficients: nudge(&f.coefficients, seed),
                    basis: nudge(&f.basis, seed + 50),
                    rank,
                };
                assert!(error(&product(&other, 6, 10)) > error(&map), "rank {rank}");
            }
        }
    }

    #[test]
    fn inputs_that_never_vary_keep_their_weights() {
        let (n, d, p) = (50, 6, 4);
        let (w, mut x) = (noise(p * d, 1), noise(n * d, 2));
        x.chunks_exact_mut(d).for_each(|row| row[4] = 0.0);
        let rows = Factors { coefficients: x.clone(), basis: crate::layer::transpose(&w, p, d), rank: d };
        let mut moments = Moments::new(1, d, p);
        moments.add(&x, &product(&rows, n, p));
        let m = moments.centred(0, true);
        let w0 = MatRef::from_row_major_slice(&w, p, d);
        let b = Ridge::new(&m.xx, 1e-4).unwrap().map(&m.yx, w0).unwrap();
        assert!((0..p).all(|i| (b[(i, 4)] - w[i * d + 4]).abs() < 1e-9));
        // All dead: nothing to fit.
        let mut dead = Moments::new(1, d, p);
        dead.add(&vec![0.0; n * d], &vec![1.0; n * p]);
        assert!(Ridge::new(&dead.centred(0, true).xx, 1e-4).is_none());
    }
}
