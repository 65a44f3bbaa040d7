//! Sums of products along rows of pixels: the innermost loop of inference on one image.
//!
//! A panel is a block of NR rows × NV vectors of results, all in registers. Every product takes one vector of
//! neighbouring pixels, loaded where it lies, and one weight; nothing is gathered, so a convolution is the same
//! loop as a matrix product with an offset for every tap.
#![allow(
    unsafe_code,
    reason = "the innermost loop: bounds are asserted once per call in `pair`, not per load"
)]
#![allow(clippy::needless_range_loop, reason = "indices of registers, which count in several arrays at once")]

use crate::simd::{load, many_registers, store};
use pulp::{Simd, WithSimd};

/// Rows of results in a panel, at most; weights are packed for it.
pub(crate) const ROWS: usize = 6;

/// Floats that may be read past the last position of a row of `b`.
pub(crate) const SLACK: usize = 64;

/// Vectors of results in a panel, at most.
pub(crate) const fn max_vectors<S: Simd>() -> usize {
    if many_registers::<S>() { 4 } else { 2 }
}

/// What the sums begin with.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// One value per row.
    Bias(*const f32),
    /// What `c` holds.
    Stored,
}

/// `c[i, n] = clamp(start[i] + Σ_s Σ_t a[s, t, i] · b[s · b_sum + taps[t] + n] + add[i, n])`.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// Weights, `[n_sums][taps][rows]`.
    pub a: *const f32,
    pub b: *const f32,
    /// Distance in b between the channels that are summed over.
    pub b_sum: usize,
    pub n_sums: usize,
    /// Offsets in b.
    pub taps: &'a [usize],
    pub c: *mut f32,
    /// Distance in c (and in add) between rows.
    pub c_row: usize,
    pub start: Start,
    pub add: Option<*const f32>,
    pub clamp: Option<(f32, f32)>,
    /// Results that belong to the last vector; those past them are not stored. A panel that continues from what
    /// is stored has whole vectors.
    pub last: usize,
}

impl Panel<'_> {
    /// Runs it on `rows` rows (1 to [`ROWS`]) and `vectors` vectors (1 to [`max_vectors`]).
    ///
    /// # Safety
    /// All of a, of b up to the last position rounded up to a whole vector, and of c and add up to `last` lie
    /// inside their allocations.
    #[inline(always)]
    pub unsafe fn run<S: Simd>(self, simd: S, rows: usize, vectors: usize) {
        match vectors {
            1 => self.run_rows::<S, 1>(simd, rows),
            2 => self.run_rows::<S, 2>(simd, rows),
            3 => self.run_rows::<S, 3>(simd, rows),
            _ => self.run_rows::<S, 4>(simd, rows),
        }
    }

    #[inline(always)]
    fn run_rows<S: Simd, const NV: usize>(self, simd: S, rows: usize) {
        // Each size is a function of its own: one function with all of them inside takes minutes to compile.
        match rows {
            1 => simd.vectorize(Sized::<NV, 1>(self)),
            2 => simd.vectorize(Sized::<NV, 2>(self)),
            3 => simd.vectorize(Sized::<NV, 3>(self)),
            4 => simd.vectorize(Sized::<NV, 4>(self)),
            5 => simd.vectorize(Sized::<NV, 5>(self)),
            _ => simd.vectorize(Sized::<NV, 6>(self)),
        }
    }
}

struct Sized<'a, const NV: usize, const NR: usize>(Panel<'a>);

impl<const NV: usize, const NR: usize> WithSimd for Sized<'_, NV, NR> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let p = self.0;
        let lanes = S::F32_LANES;
        // Every loop over `acc` below is small enough to be unrolled: a single one that is not would keep the
        // sums in memory, at half the speed.
        let mut acc = [[simd.splat_f32s(0.0); NV]; NR];
        // SAFETY: the caller of `Panel::run` vouches for the pointers.
        unsafe {
            match p.start {
                Start::Bias(bias) => {
                    for i in 0..NR {
                        acc[i] = [simd.splat_f32s(*bias.add(i)); NV];
                    }
                }
                Start::Stored => {
                    for i in 0..NR {
                        for j in 0..NV {
                            acc[i][j] = load::<S>(p.c.add(i * p.c_row + j * lanes));
                        }
                    }
                }
            }
            let mut a = p.a;
            for s in 0..p.n_sums {
                let b = p.b.add(s * p.b_sum);
                for &tap in p.taps {
                    let b = b.add(tap);
                    let mut bs = [simd.splat_f32s(0.0); NV];
                    for j in 0..NV {
                        bs[j] = load::<S>(b.add(j * lanes));
                    }
                    for i in 0..NR {
                        let weight = simd.splat_f32s(*a.add(i));
                        for j in 0..NV {
                            acc[i][j] = simd.mul_add_e_f32s(weight, bs[j], acc[i][j]);
                        }
                    }
                    a = a.add(NR);
                }
            }
            if p.last < lanes {
                let mut rows = [0.0f32; ROWS * SLACK];
                for i in 0..NR {
                    for j in 0..NV {
                        store::<S>(rows.as_mut_ptr().add(i * SLACK + j * lanes), acc[i][j]);
                    }
                }
                finish(&p, &rows, NR, (NV - 1) * lanes + p.last);
                return;
            }
            if let Some(add) = p.add {
                for i in 0..NR {
                    for j in 0..NV {
                        acc[i][j] = simd.add_f32s(acc[i][j], load::<S>(add.add(i * p.c_row + j * lanes)));
                    }
                }
            }
            if let Some((low, high)) = p.clamp {
                let (low, high) = (simd.splat_f32s(low), simd.splat_f32s(high));
                for i in 0..NR {
                    for j in 0..NV {
                        // The bound first: NaN then stays NaN on x86 as well.
                        acc[i][j] = simd.min_f32s(high, simd.max_f32s(low, acc[i][j]));
                    }
                }
            }
            for i in 0..NR {
                for j in 0..NV {
                    store::<S>(p.c.add(i * p.c_row + j * lanes), acc[i][j]);
                }
            }
        }
    }
}

/// The same for rows that end inside a vector, one value at a time: there are few.
///
/// # Safety
/// c and add have n values in every row.
#[inline(never)]
unsafe fn finish(p: &Panel<'_>, sums: &[f32; ROWS * SLACK], n_rows: usize, n: usize) {
    for (i, row) in sums.chunks_exact(SLACK).take(n_rows).enumerate() {
        for (j, &sum) in row.iter().take(n).enumerate() {
            let at = i * p.c_row + j;
            // SAFETY: the caller's.
            unsafe {
                let mut value = p.add.map_or(sum, |add| sum + *add.add(at));
                if let Some((low, high)) = p.clamp {
                    value = if value < low { low } else { value };
                    value = if value > high { high } else { value };
                }
                *p.c.add(at) = value;
            }
        }
    }
}
