//! The convolution kernels for `f32`, in vectors of whatever width the machine has.
//!
//! Both kernels keep a block of results in registers: NP channels × NV vectors of positions for the
//! contraction, NP × NC pairs of channels for the weight gradient. Each vector that is loaded then serves NP (or
//! NC) multiply-adds.
#![allow(
    unsafe_code,
    reason = "the innermost loops: bounds are asserted once per call in `Conv`, not per load"
)]
#![allow(clippy::needless_range_loop, reason = "indices of registers, which count in several arrays at once")]

use crate::LANES;
use crate::conv::{Add, Contraction, Conv, Epilogue};
use crate::gather::Tap;
use crate::simd::{blocks, load, many_registers, store};
use pulp::{Arch, Simd, WithSimd};

/// Bytes of activations that the weight gradient works on at a time: most of a first-level cache.
const TILE_BYTES: usize = 24 << 10;

/// Vectors that hold one position of all images.
const fn vectors<S: Simd>() -> usize {
    LANES / S::F32_LANES
}

pub(crate) fn gather(c: &Contraction<'_>, x: &[f32], w: &[f32], y: &mut [f32], epilogue: &Epilogue<'_, f32>) {
    Arch::new().dispatch(Gathering { c, x, w, y, epilogue });
}

struct Gathering<'a, 'e> {
    c: &'a Contraction<'a>,
    x: &'a [f32],
    w: &'a [f32],
    y: &'a mut [f32],
    epilogue: &'a Epilogue<'e, f32>,
}

impl WithSimd for Gathering<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { c, x, w, y, epilogue } = self;
        let g = c.gather;
        let (nv, np) = if many_registers::<S>() { (4, 6) } else { (2, 6) };
        let y = y.as_mut_ptr();
        let mut taps: Vec<(usize, usize)> = Vec::new();
        for group in 0..c.groups {
            for (row, row_taps) in g.rows.iter().enumerate() {
                for seg in &g.segments {
                    taps.clear();
                    let pairs = row_taps.iter().flat_map(|a: &Tap| seg.taps.iter().map(move |b| (a, b)));
                    taps.extend(pairs.map(|(a, b)| {
                        ((a.input * g.input_width + b.input) * LANES, a.tap * g.kernel_width + b.tap)
                    }));
                    for (r, p) in blocks(c.n_results, np) {
                        let channel = group * c.n_results + r;
                        let out = (channel * c.n_outputs + row * g.output_width + seg.start) * LANES;
                        for (v, n) in blocks(seg.len * vectors::<S>(), nv) {
                            // SAFETY: `Conv` checked that the slices are as long as the shapes say; every tap
                            // lies inside the input, and every segment inside its row, by construction of
                            // `Gather`.
                            unsafe {
                                let block = Block {
                                    x: x.as_ptr().add(group * c.n_sums * c.n_inputs * LANES),
                                    x_sum: c.n_inputs * LANES,
                                    x_step: seg.input_step * LANES,
                                    w: w.as_ptr().add(group * c.w_group() + r * c.w_result),
                                    w_sum: c.w_sum,
                                    w_result: c.w_result,
                                    y: y.add(out),
                                    y_result: c.n_outputs * LANES,
                                    y_step: seg.step * LANES,
                                    n_sums: c.n_sums,
                                    taps: &taps,
                                    vector: v,
                                    bias: epilogue.bias.map(|b| b.as_ptr().add(channel)),
                                    add: match epilogue.add {
                                        Add::None => None,
                                        Add::Tensor(t) => Some(t.as_ptr().add(out)),
                                        Add::Output => Some(y.add(out).cast_const()),
                                    },
                                    clamp: epilogue.clamp,
                                    mask: epilogue.mask.map(|(m, a, b)| (m.as_ptr().add(out), a, b)),
                                };
                                match n {
                                    1 => block.run_channels::<S, 1>(simd, p),
                                    2 => block.run_channels::<S, 2>(simd, p),
                                    3 => block.run_channels::<S, 3>(simd, p),
                                    _ => block.run_channels::<S, 4>(simd, p),
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A block of results: some channels × some vectors of positions.
#[derive(Clone, Copy)]
struct Block<'a> {
    x: *const f32,
    /// Distance between channels that are summed over.
    x_sum: usize,
    /// Distance between positions.
    x_step: usize,
    w: *const f32,
    w_sum: usize,
    w_result: usize,
    y: *mut f32,
    y_result: usize,
    y_step: usize,
    n_sums: usize,
    /// Offsets in x and w.
    taps: &'a [(usize, usize)],
    /// First vector of positions.
    vector: usize,
    bias: Option<*const f32>,
    add: Option<*const f32>,
    clamp: Option<(f32, f32)>,
    mask: Option<(*const f32, f32, f32)>,
}

impl Block<'_> {
    #[inline(always)]
    fn run_channels<S: Simd, const NV: usize>(self, simd: S, p: usize) {
        // Each block size is a function of its own: one function with all of them inside takes minutes to
        // compile.
        match p {
            1 => simd.vectorize(Sized::<NV, 1>(self)),
            2 => simd.vectorize(Sized::<NV, 2>(self)),
            3 => simd.vectorize(Sized::<NV, 3>(self)),
            4 => simd.vectorize(Sized::<NV, 4>(self)),
            5 => simd.vectorize(Sized::<NV, 5>(self)),
            _ => simd.vectorize(Sized::<NV, 6>(self)),
        }
    }
}

struct Sized<'a, const NV: usize, const NP: usize>(Block<'a>);

impl<const NV: usize, const NP: usize> WithSimd for Sized<'_, NV, NP> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let b = self.0;
        let lanes = S::F32_LANES;
        let at = |j: usize, step: usize| {
            let v = b.vector + j;
            v / vectors::<S>() * step + v % vectors::<S>() * lanes
        };
        let mut x_at = [0; NV];
        let mut y_at = [0; NV];
        for j in 0..NV {
            x_at[j] = at(j, b.x_step);
            y_at[j] = at(j, b.y_step);
        }
        let mut acc = [[simd.splat_f32s(0.0); NV]; NP];
        // SAFETY: see where the block is made.
        unsafe {
            if let Some(bias) = b.bias {
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = [simd.splat_f32s(*bias.add(i)); NV];
                }
            }
            for s in 0..b.n_sums {
                let x = b.x.add(s * b.x_sum);
                let w = b.w.add(s * b.w_sum);
                for &(tap_x, tap_w) in b.taps {
                    let x = x.add(tap_x);
                    let w = w.add(tap_w);
                    let mut xs = [simd.splat_f32s(0.0); NV];
                    for j in 0..NV {
                        xs[j] = load::<S>(x.add(x_at[j]));
                    }
                    for i in 0..NP {
                        let weight = simd.splat_f32s(*w.add(i * b.w_result));
                        for j in 0..NV {
                            acc[i][j] = simd.mul_add_e_f32s(weight, xs[j], acc[i][j]);
                        }
                    }
                }
            }
            for i in 0..NP {
                for j in 0..NV {
                    let at = i * b.y_result + y_at[j];
                    let mut v = acc[i][j];
                    if let Some(add) = b.add {
                        v = simd.add_f32s(v, load::<S>(add.add(at)));
                    }
                    if let Some((low, high)) = b.clamp {
                        // The bound first: NaN then stays NaN on x86 as well.
                        v = simd.min_f32s(simd.splat_f32s(high), simd.max_f32s(simd.splat_f32s(low), v));
                    }
                    if let Some((mask, low, high)) = b.mask {
                        let m = load::<S>(mask.add(at));
                        let above = simd.greater_than_f32s(m, simd.splat_f32s(low));
                        let below = simd.less_than_f32s(m, simd.splat_f32s(high));
                        v = simd.select_f32s(simd.and_m32s(above, below), v, simd.splat_f32s(0.0));
                    }
                    store::<S>(b.y.add(at), v);
                }
            }
        }
    }
}

pub(crate) fn weight_grad(conv: &Conv, dy: &[f32], x: &[f32], dw: &mut [f32]) {
    Arch::new().dispatch(WeightGrad { conv, dy, x, dw });
}

struct WeightGrad<'a> {
    conv: &'a Conv,
    dy: &'a [f32],
    x: &'a [f32],
    dw: &'a mut [f32],
}

/// One run of positions in one row, for one tap: where dy and x start.
type Run = (usize, usize);

impl WithSimd for WeightGrad<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { conv, dy, x, dw } = self;
        let (s, g) = (conv.shape(), &conv.forward);
        let (np, nc) = if many_registers::<S>() { (4, 6) } else { (3, 3) };
        let (c_group, p_group, n_taps) = (s.n_in / s.groups, s.n_out / s.groups, s.n_taps());
        // By tap column: the first output column inside, its input column, and how many there are. Columns
        // that read inside the input are consecutive.
        let mut columns = vec![(0, 0, 0); g.kernel_width];
        for seg in &g.segments {
            for tap in &seg.taps {
                let column = &mut columns[tap.tap];
                if column.2 == 0 {
                    *column = (seg.start, tap.input, 0);
                }
                column.2 += seg.len;
            }
        }
        let row_bytes = g.output_width * LANES * size_of::<f32>() * (np.min(p_group) + nc.min(c_group));
        let tile = (TILE_BYTES / row_bytes.max(1)).max(1);
        let mut sums = vec![0.0f32; n_taps * np * nc * S::F32_LANES];
        let mut runs: Vec<Run> = Vec::with_capacity(tile);
        for group in 0..s.groups {
            for (p, n_p) in blocks(p_group, np) {
                for (c, n_c) in blocks(c_group, nc) {
                    sums.fill(0.0);
                    let dy_at = (group * p_group + p) * s.n_outputs() * LANES;
                    let x_at = (group * c_group + c) * s.n_inputs() * LANES;
                    for first in (0..g.rows.len()).step_by(tile) {
                        let rows = first..(first + tile).min(g.rows.len());
                        for tap_row in 0..n_taps / g.kernel_width {
                            for (tap_column, &(o, i, n)) in columns.iter().enumerate() {
                                runs.clear();
                                runs.extend(rows.clone().filter_map(|row| {
                                    let tap = g.rows[row].iter().find(|t| t.tap == tap_row)?;
                                    Some((
                                        (row * g.output_width + o) * LANES,
                                        (tap.input * g.input_width + i) * LANES,
                                    ))
                                }));
                                if n == 0 || runs.is_empty() {
                                    continue;
                                }
                                let tap = tap_row * g.kernel_width + tap_column;
                                // SAFETY: `Conv` checked the slices; the runs lie inside by construction of
                                // `Gather`; `sums` has np · nc vectors for every tap.
                                unsafe {
                                    let pair = Pair {
                                        dy: dy.as_ptr().add(dy_at),
                                        dy_channel: s.n_outputs() * LANES,
                                        x: x.as_ptr().add(x_at),
                                        x_channel: s.n_inputs() * LANES,
                                        x_step: s.strides[2] * LANES,
                                        runs: &runs,
                                        n,
                                        sums: sums.as_mut_ptr().add(tap * np * nc * S::F32_LANES),
                                    };
                                    pair.run(simd, n_p, n_c);
                                }
                            }
                        }
                    }
                    for tap in 0..n_taps {
                        for i in 0..n_p {
                            for j in 0..n_c {
                                let at = (tap * np * nc + i * n_c + j) * S::F32_LANES;
                                let sum: f32 = sum_of(&sums[at..at + S::F32_LANES]);
                                dw[((group * p_group + p + i) * c_group + c + j) * n_taps + tap] += sum;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Pairwise, so that rounding does not grow with the number of lanes.
#[inline(always)]
fn sum_of(lanes: &[f32]) -> f32 {
    let mut halves = [0.0f32; LANES];
    halves[..lanes.len()].copy_from_slice(lanes);
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            halves[i] += halves[i + n];
        }
        n /= 2;
    }
    halves[0]
}

/// Some channels of dy against some channels of x, at one tap.
#[derive(Clone, Copy)]
struct Pair<'a> {
    dy: *const f32,
    dy_channel: usize,
    x: *const f32,
    x_channel: usize,
    /// Distance in x between positions.
    x_step: usize,
    runs: &'a [Run],
    /// Positions in each run.
    n: usize,
    /// Vectors of partial sums, `[dy channel][x channel]`.
    sums: *mut f32,
}

impl Pair<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S, n_p: usize, n_c: usize) {
        match n_p {
            1 => self.run_inputs::<S, 1>(simd, n_c),
            2 => self.run_inputs::<S, 2>(simd, n_c),
            3 => self.run_inputs::<S, 3>(simd, n_c),
            _ => self.run_inputs::<S, 4>(simd, n_c),
        }
    }

    #[inline(always)]
    fn run_inputs<S: Simd, const NP: usize>(self, simd: S, n_c: usize) {
        match n_c {
            1 => simd.vectorize(SizedPair::<NP, 1>(self)),
            2 => simd.vectorize(SizedPair::<NP, 2>(self)),
            3 => simd.vectorize(SizedPair::<NP, 3>(self)),
            4 => simd.vectorize(SizedPair::<NP, 4>(self)),
            5 => simd.vectorize(SizedPair::<NP, 5>(self)),
            _ => simd.vectorize(SizedPair::<NP, 6>(self)),
        }
    }
}

struct SizedPair<'a, const NP: usize, const NC: usize>(Pair<'a>);

impl<const NP: usize, const NC: usize> WithSimd for SizedPair<'_, NP, NC> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let b = self.0;
        let mut acc = [[simd.splat_f32s(0.0); NC]; NP];
        // SAFETY: see where the pair is made.
        unsafe {
            for i in 0..NP {
                for j in 0..NC {
                    acc[i][j] = load::<S>(b.sums.add((i * NC + j) * S::F32_LANES));
                }
            }
            for &(dy_run, x_run) in b.runs {
                let dy = b.dy.add(dy_run);
                let x = b.x.add(x_run);
                for n in 0..b.n {
                    for v in 0..vectors::<S>() {
                        let dy = dy.add(n * LANES + v * S::F32_LANES);
                        let x = x.add(n * b.x_step + v * S::F32_LANES);
                        let mut dys = [simd.splat_f32s(0.0); NP];
                        for i in 0..NP {
                            dys[i] = load::<S>(dy.add(i * b.dy_channel));
                        }
                        for j in 0..NC {
                            let xs = load::<S>(x.add(j * b.x_channel));
                            for i in 0..NP {
                                acc[i][j] = simd.mul_add_e_f32s(dys[i], xs, acc[i][j]);
                            }
                        }
                    }
                }
            }
            for i in 0..NP {
                for j in 0..NC {
                    store::<S>(b.sums.add((i * NC + j) * S::F32_LANES), acc[i][j]);
                }
            }
        }
    }
}
