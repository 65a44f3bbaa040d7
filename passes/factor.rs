//! Decomposing and truncating matrices: `H ≈ w·F` with orthonormal rows in `F`.
//!
//! Everything here is f64, row-major, and single-threaded inside one matrix, so that the result
//! depends neither on the number of threads nor on who else is computing.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::{Accum, Mat, MatRef, Par};

/// Singular values, and both sets of singular vectors, of one matrix `H = U·S·Vᵀ`.
#[derive(Clone, Debug)]
pub struct Decomposition {
    u: Mat<f64>,
    v: Mat<f64>,
    singular_values: Vec<f64>,
}

/// The factors of a truncated matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// `w`, `[n_rows, rank]` row-major: the original rows expressed in the basis, `w = U_Q·S_Q`.
    pub coefficients: Vec<f64>,
    /// `F`, `[rank, n_columns]` row-major, with orthonormal rows, `F = V_Qᵀ`.
    pub basis: Vec<f64>,
    /// Number of basis rows.
    pub rank: usize,
}

/// The decomposition did not converge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the singular value decomposition did not converge")]
pub struct NoConvergence;

fn view(values: &[f64], n_rows: usize, n_columns: usize) -> MatRef<'_, f64> {
    MatRef::from_row_major_slice(values, n_rows, n_columns)
}

/// A matrix as it is decomposed: with at least as many rows as columns, and scaled.
struct Prepared {
    tall: Mat<f64>,
    /// Whether `tall` is the transpose.
    wide: bool,
    scale: f64,
}

fn prepare(values: &[f64], n_rows: usize, n_columns: usize) -> Result<Prepared, NoConvergence> {
    let size = n_rows.min(n_columns);
    if size == 0
        || n_rows.checked_mul(n_columns) != Some(values.len())
        || values.iter().any(|v| !v.is_finite())
    {
        return Err(NoConvergence);
    }
    // Norms whose squares overflow or vanish would spoil the energies; scale them away.
    let largest = values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let scale = if largest > 0.0 && !(1e-100..=1e100).contains(&largest) { largest } else { 1.0 };
    // faer works on columns: a tall matrix is stored as it is wanted, a wide one as its transpose.
    let wide = n_rows < n_columns;
    let source = view(values, n_rows, n_columns);
    let source = if wide { source.transpose() } else { source };
    let tall = Mat::from_fn(source.nrows(), source.ncols(), |i, j| source[(i, j)] / scale);
    Ok(Prepared { tall, wide, scale })
}

/// Decomposes a row-major matrix of finite values.
///
/// # Errors
/// [`NoConvergence`]; also for a matrix with values that are not finite, whose size is not
/// `n_rows · n_columns`, or that has none.
pub fn decompose(values: &[f64], n_rows: usize, n_columns: usize) -> Result<Decomposition, NoConvergence> {
    let Prepared { tall, wide, scale } = prepare(values, n_rows, n_columns)?;
    let (left, right, mut singular_values) = match by_gram(&tall) {
        Some(parts) => parts,
        None => by_svd(&tall)?,
    };
    singular_values.iter_mut().for_each(|v| *v *= scale);
    let (u, v) = if wide { (right, left) } else { (left, right) };
    Ok(Decomposition { u, v, singular_values })
}

type Parts = (Mat<f64>, Mat<f64>, Vec<f64>);

/// Left vectors, right vectors and singular values of a tall matrix.
fn by_svd(tall: &Mat<f64>) -> Result<Parts, NoConvergence> {
    let size = tall.ncols();
    let mut left = Mat::<f64>::zeros(tall.nrows(), size);
    let mut right = Mat::<f64>::zeros(size, size);
    let mut s = Diag::<f64>::zeros(size);
    let thin = ComputeSvdVectors::Thin;
    let scratch = svd_scratch::<f64>(tall.nrows(), size, thin, thin, Par::Seq, Default::default());
    let mut buffer = MemBuffer::try_new(scratch).map_err(|_| NoConvergence)?;
    svd(
        tall.as_ref(),
        s.as_mut(),
        Some(left.as_mut()),
        Some(right.as_mut()),
        Par::Seq,
        MemStack::new(&mut buffer),
        Default::default(),
    )
    .map_err(|_| NoConvergence)?;
    let singular_values: Vec<f64> = s.column_vector().iter().copied().collect();
    if singular_values.iter().any(|v| !v.is_finite()) {
        return Err(NoConvergence);
    }
    Ok((left, right, singular_values))
}

/// From this size on the detour through the Gram matrix is worth its check.
const GRAM_SIZE: usize = 96;
/// Eigenvalues of the Gram matrix are exact to about `1e-16·λ_max`, and the computed vectors
/// orthonormal to about `1e-16·λ_max/λ_min`: at this ratio, to 1e-9.
const GRAM_CONDITION: f64 = 1e-7;

/// The same from the eigenvectors of `TᵀT`, three times as fast; `None` where the matrix is small or
/// so near to rank-deficient that squaring its condition number would cost digits.
fn by_gram(tall: &Mat<f64>) -> Option<Parts> {
    let (n_rows, size) = tall.shape();
    if size < GRAM_SIZE {
        return None;
    }
    let mut gram = Mat::<f64>::zeros(size, size);
    triangular::matmul(
        gram.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Replace,
        tall.transpose(),
        BlockStructure::Rectangular,
        tall.as_ref(),
        BlockStructure::Rectangular,
        1.0,
        Par::Seq,
    );
    let (lambda, right) = eigen(&gram).ok()?;
    let (largest, smallest) = (*lambda.first()?, *lambda.last()?);
    if !(largest.is_finite() && smallest > GRAM_CONDITION * largest) {
        return None;
    }
    let singular_values: Vec<f64> = lambda.iter().map(|l| l.sqrt()).collect();
    let mut left = Mat::<f64>::zeros(n_rows, size);
    matmul(left.as_mut(), Accum::Replace, tall.as_ref(), right.as_ref(), 1.0, Par::Seq);
    for (j, s) in singular_values.iter().enumerate() {
        left.col_as_slice_mut(j).iter_mut().for_each(|v| *v /= s);
    }
    Some((left, right, singular_values))
}

/// Eigenvalues of a symmetric matrix, largest first, and its eigenvectors, one per column. Only the
/// lower triangle is read.
///
/// # Errors
/// [`NoConvergence`], also for values that are not finite.
pub(crate) fn eigen(matrix: &Mat<f64>) -> Result<(Vec<f64>, Mat<f64>), NoConvergence> {
    let size = matrix.nrows();
    let mut eigenvalues = Diag::<f64>::zeros(size);
    let mut vectors = Mat::<f64>::zeros(size, size);
    let scratch =
        self_adjoint_evd_scratch::<f64>(size, ComputeEigenvectors::Yes, Par::Seq, Default::default());
    let mut buffer = MemBuffer::try_new(scratch).map_err(|_| NoConvergence)?;
    self_adjoint_evd(
        matrix.as_ref(),
        eigenvalues.as_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut buffer),
        Default::default(),
    )
    .map_err(|_| NoConvergence)?;
    // faer's order is ascending.
    let values: Vec<f64> = eigenvalues.column_vector().iter().rev().copied().collect();
    if values.iter().any(|v| !v.is_finite()) {
        return Err(NoConvergence);
    }
    Ok((values, vectors.reverse_cols().to_owned()))
}

/// Singular values only, largest first: several times cheaper than [`decompose`].
///
/// # Errors
/// As [`decompose`].
pub fn singular_values(values: &[f64], n_rows: usize, n_columns: usize) -> Result<Vec<f64>, NoConvergence> {
    let Prepared { tall, scale, .. } = prepare(values, n_rows, n_columns)?;
    let size = tall.ncols();
    let mut s = Diag::<f64>::zeros(size);
    let none = ComputeSvdVectors::No;
    let scratch = svd_scratch::<f64>(tall.nrows(), size, none, none, Par::Seq, Default::default());
    let mut buffer = MemBuffer::try_new(scratch).map_err(|_| NoConvergence)?;
    svd(tall.as_ref(), s.as_mut(), None, None, Par::Seq, MemStack::new(&mut buffer), Default::default())
        .map_err(|_| NoConvergence)?;
    Ok(s.column_vector().iter().map(|v| v * scale).collect())
}

impl Decomposition {
    /// Largest first.
    pub fn singular_values(&self) -> &[f64] {
        &self.singular_values
    }

    /// The best approximation of this rank (Eckart–Young). The sign of each basis row, which the
    /// decomposition leaves open, is such that its entry of largest magnitude is positive.
    pub fn truncate(&self, rank: usize) -> Factors {
        let rank = rank.min(self.singular_values.len());
        let (n_rows, n_columns) = (self.u.nrows(), self.v.nrows());
        let signs: Vec<f64> = (0..rank)
            .map(|k| {
                let largest = (0..n_columns).fold(0.0f64, |m, j| {
                    let v = self.v[(j, k)];
                    if v.abs() > m.abs() { v } else { m }
                });
                if largest < 0.0 { -1.0 } else { 1.0 }
            })
            .collect();
        let mut basis = Vec::with_capacity(rank * n_columns);
        for (k, sign) in signs.iter().enumerate() {
            basis.extend((0..n_columns).map(|j| sign * self.v[(j, k)]));
        }
        let mut coefficients = Vec::with_capacity(n_rows * rank);
        for i in 0..n_rows {
            coefficients.extend((0..rank).map(|k| signs[k] * self.singular_values[k] * self.u[(i, k)]));
        }
        Factors { coefficients, basis, rank }
    }
}

/// `‖H − w·F‖²`, for factors of any origin.
pub fn squared_error(h: &[f64], (n_rows, n_columns): (usize, usize), factors: &Factors) -> f64 {
    let w = view(&factors.coefficients, n_rows, factors.rank);
    let f = view(&factors.basis, factors.rank, n_columns);
    // Transposed, since faer's own matrices are column-major: H is then read and written in order.
    let mut difference = Mat::<f64>::zeros(n_columns, n_rows);
    for i in 0..n_rows {
        difference.col_as_slice_mut(i).copy_from_slice(&h[i * n_columns..(i + 1) * n_columns]);
    }
    matmul(difference.as_mut(), Accum::Add, f.transpose(), w.transpose(), -1.0, Par::Seq);
    difference.squared_norm_l2()
}

/// `max |F·Fᵀ − I|` over the rows of a row-major matrix.
pub fn orthonormality_defect(f: &[f64], n_rows: usize, n_columns: usize) -> f64 {
    let f = view(f, n_rows, n_columns);
    let mut gram = Mat::<f64>::zeros(n_rows, n_rows);
    let (lower, whole) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    triangular::matmul(gram.as_mut(), lower, Accum::Replace, f, whole, f.transpose(), whole, 1.0, Par::Seq);
    let mut defect = 0.0f64;
    for j in 0..n_rows {
        for i in j..n_rows {
            defect = defect.max((gram[(i, j)] - f64::from(u8::from(i == j))).abs());
        }
    }
    defect
}

/// `w·F`, row-major.
pub fn product(factors: &Factors, n_rows: usize, n_columns: usize) -> Vec<f64> {
    let w = view(&factors.coefficients, n_rows, factors.rank);
    let f = view(&factors.basis, factors.rank, n_columns);
    let mut transposed = Mat::<f64>::zeros(n_columns, n_rows);
    matmul(transposed.as_mut(), Accum::Replace, f.transpose(), w.transpose(), 1.0, Par::Seq);
    (0..n_rows).flat_map(|i| transposed.col_as_slice(i).to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use basisopt_ir::{DType, Generator, Tensor};

    fn randn(n_rows: usize, n_columns: usize) -> Vec<f64> {
        let t = Tensor::generated(DType::F64, vec![n_rows, n_columns], Generator::Randn { seed: 3 }).unwrap();
        t.to_f64s().unwrap()
    }

    #[test]
    fn what_is_lost_is_the_discarded_energy() {
        for (p, d) in [(6, 27), (27, 6), (8, 8), (1, 5), (5, 1)] {
            let h = randn(p, d);
            let decomposition = decompose(&h, p, d).unwrap();
            let s = decomposition.singular_values();
            let total: f64 = h.iter().map(|v| v * v).sum();
            assert!((s.iter().map(|v| v * v).sum::<f64>() - total).abs() < 1e-10 * total);
            assert!(s.is_sorted_by(|a, b| a >= b));
            for q in 1..=p.min(d) {
                let factors = decomposition.truncate(q);
                let discarded: f64 = s[q..].iter().map(|v| v * v).sum();
                assert!(
                    (squared_error(&h, (p, d), &factors) - discarded).abs() < 1e-10 * total,
                    "{p}x{d} rank {q}"
                );
                assert!(orthonormality_defect(&factors.basis, q, d) < 1e-12);
            }
        }
    }

    #[test]
    fn the_detour_through_the_gram_matrix_agrees_with_the_decomposition() {
        for (p, d) in [(128, 300), (300, 128)] {
            let h = randn(p, d);
            let tall = view(&h, p, d);
            let tall = if p < d { tall.transpose().to_owned() } else { tall.to_owned() };
            let (_, _, a) = by_gram(&tall).expect("a random matrix is well conditioned");
            let (_, _, b) = by_svd(&tall).unwrap();
            assert!(a.iter().zip(&b).all(|(x, y)| (x - y).abs() < 1e-12 * b[0]), "{p}x{d}");
            let decomposition = decompose(&h, p, d).unwrap();
            let s = decomposition.singular_values();
            for q in [1, 60, 127, 128] {
                let factors = decomposition.truncate(q);
                let discarded: f64 = s[q..].iter().map(|v| v * v).sum();
                assert!(
                    (squared_error(&h, (p, d), &factors) - discarded).abs() < 1e-12 * s[0] * s[0] * p as f64
                );
                assert!(orthonormality_defect(&factors.basis, q, d) < 1e-11);
            }
        }
    }

    #[test]
    fn what_is_nearly_rank_deficient_takes_the_whole_decomposition() {
        let t =
            Tensor::generated(DType::F64, vec![128, 300], Generator::LowRank { rank: 100, seed: 3 }).unwrap();
        let h = t.to_f64s().unwrap();
        assert!(by_gram(&view(&h, 128, 300).transpose().to_owned()).is_none());
        let factors = decompose(&h, 128, 300).unwrap().truncate(128);
        assert!(orthonormality_defect(&factors.basis, 128, 300) < 1e-12);
    }

    #[test]
    fn known_singular_values() {
        // [[3, 0], [4, 5]] has HᵀH with eigenvalues 45 and 5.
        let s = singular_values(&[3.0, 0.0, 4.0, 5.0], 2, 2).unwrap();
        assert!((s[0] - 45f64.sqrt()).abs() < 1e-14 && (s[1] - 5f64.sqrt()).abs() < 1e-14);
    }

    #[test]
    fn rank_deficient_and_extreme_matrices_still_get_an_orthonormal_basis() {
        for value in [1.0, 1e-200, 1e200, 0.0] {
            let h = vec![value; 12];
            let factors = decompose(&h, 3, 4).unwrap().truncate(3);
            assert!(orthonormality_defect(&factors.basis, 3, 4) < 1e-12, "{value}");
            let back = product(&factors, 3, 4);
            assert!(back.iter().all(|v| (v - value).abs() <= 1e-12 * value), "{value}: {back:?}");
        }
    }

    #[test]
    fn signs_do_not_depend_on_the_decomposition() {
        let h = randn(4, 9);
        let negated: Vec<f64> = h.iter().map(|v| -v).collect();
        let (a, b) =
            (decompose(&h, 4, 9).unwrap().truncate(4), decompose(&negated, 4, 9).unwrap().truncate(4));
        assert!(a.basis.iter().zip(&b.basis).all(|(x, y)| (x - y).abs() < 1e-12));
    }
}
