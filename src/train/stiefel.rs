//! Bases that stay orthonormal while they are trained: gradient steps on a Stiefel manifold.
//!
//! For a basis F of orthonormal rows and the gradient G of the loss, `G − sym(G·Fᵀ)·F` is the part of G along the
//! manifold (Edelman, Arias, Smith 1998). After a step along it the rows are made orthonormal again, from the first to
//! the last: the retraction by QR decomposition (Absil, Mahony, Sepulchre 2008, example 4.1.3).

/// A parameter that is one or several bases of the same size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames {
    /// Name of the parameter.
    pub parameter: String,
    /// Number of bases, one after the other: the groups of a convolution.
    pub n_groups: usize,
    /// Rows of each.
    pub rank: usize,
    /// Columns of each.
    pub n_columns: usize,
    /// Whether it is stored by columns, as a `MatMul` does.
    pub by_columns: bool,
}

impl Frames {
    fn place(&self, row: usize, column: usize) -> usize {
        if self.by_columns { column * self.rank + row } else { row * self.n_columns + column }
    }

    /// One basis, row by row.
    fn rows(&self, values: &[f32]) -> Vec<Vec<f64>> {
        let value = |row, column| values.get(self.place(row, column)).map_or(0.0, |&v| f64::from(v));
        (0..self.rank).map(|r| (0..self.n_columns).map(|c| value(r, c)).collect()).collect()
    }

    #[allow(clippy::cast_possible_truncation, reason = "parameters are single precision")]
    fn store(&self, rows: &[Vec<f64>], values: &mut [f32]) {
        for (r, row) in rows.iter().enumerate() {
            for (c, &v) in row.iter().enumerate() {
                if let Some(slot) = values.get_mut(self.place(r, c)) {
                    *slot = v as f32;
                }
            }
        }
    }

    fn group(&self) -> usize {
        (self.rank * self.n_columns).max(1)
    }

    /// Leaves of a gradient what is along the manifold at `basis`.
    pub fn project(&self, gradient: &mut [f32], basis: &[f32]) {
        for (gradient, basis) in gradient.chunks_mut(self.group()).zip(basis.chunks(self.group())) {
            let (f, g) = (self.rows(basis), self.rows(gradient));
            let products: Vec<Vec<f64>> = g.iter().map(|g| f.iter().map(|f| dot(g, f)).collect()).collect();
            let mut along = g;
            for (i, row) in along.iter_mut().enumerate() {
                for (j, f) in f.iter().enumerate() {
                    let both = 0.5 * (products[i][j] + products[j][i]);
                    row.iter_mut().zip(f).for_each(|(g, f)| *g -= both * f);
                }
            }
            self.store(&along, gradient);
        }
    }

    /// Makes the rows orthonormal again. A row that depends on those before it stays as it is.
    pub fn retract(&self, basis: &mut [f32]) {
        for basis in basis.chunks_mut(self.group()) {
            let mut rows = self.rows(basis);
            for i in 0..rows.len() {
                let (before, rest) = rows.split_at_mut(i);
                let Some(row) = rest.first_mut() else { break };
                // Twice is enough (Kahan; Parlett 1980).
                for _ in 0..2 {
                    for other in before.iter() {
                        let along = dot(row, other);
                        row.iter_mut().zip(other).for_each(|(v, o)| *v -= along * o);
                    }
                }
                let norm = dot(row, row).sqrt();
                if norm > f64::MIN_POSITIVE {
                    row.iter_mut().for_each(|v| *v /= norm);
                }
            }
            self.store(&rows, basis);
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + 13) % 101) as f32 / 50.0 - 1.0).collect()
    }

    fn frames(by_columns: bool, n_groups: usize) -> Frames {
        Frames { parameter: "w".to_owned(), n_groups, rank: 3, n_columns: 5, by_columns }
    }

    fn defect(frames: &Frames, values: &[f32]) -> f64 {
        let rows = frames.rows(values);
        let at = |i: usize, j: usize| (dot(&rows[i], &rows[j]) - f64::from(u8::from(i == j))).abs();
        (0..9).map(|k| at(k / 3, k % 3)).fold(0.0, f64::max)
    }

    #[test]
    fn rows_are_orthonormal_after_a_retraction_and_span_what_they_did() {
        for (by_columns, n_groups) in [(false, 1), (true, 1), (false, 2)] {
            let frames = frames(by_columns, n_groups);
            let before = numbers(15 * n_groups);
            let mut after = before.clone();
            frames.retract(&mut after);
            for (before, after) in before.chunks(15).zip(after.chunks(15)) {
                assert!(defect(&frames, after) < 1e-6);
                // Every old row is a combination of the new ones.
                let (old, new) = (frames.rows(before), frames.rows(after));
                for old in &old {
                    let mut rest = old.clone();
                    for new in &new {
                        let along = dot(old, new);
                        rest.iter_mut().zip(new).for_each(|(r, n)| *r -= along * n);
                    }
                    assert!(dot(&rest, &rest).sqrt() < 1e-6);
                }
            }
        }
    }

    /// F·Fᵀ stays I to first order: `Z·Fᵀ + F·Zᵀ = 0` for a direction Z along the manifold; and what is along it is
    /// left alone.
    #[test]
    fn a_projected_gradient_is_along_the_manifold() {
        let frames = frames(false, 1);
        let mut basis = numbers(15);
        frames.retract(&mut basis);
        let mut gradient: Vec<f32> = numbers(30)[15..].to_vec();
        frames.project(&mut gradient, &basis);
        let (f, z) = (frames.rows(&basis), frames.rows(&gradient));
        for i in 0..3 {
            for j in 0..3 {
                assert!((dot(&z[i], &f[j]) + dot(&f[i], &z[j])).abs() < 1e-6);
            }
        }
        let once = gradient.clone();
        frames.project(&mut gradient, &basis);
        assert!(once.iter().zip(&gradient).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
