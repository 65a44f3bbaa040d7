//! A convolution followed by a 1×1 convolution, as factorisation makes them, in one piece.
//!
//! The pair is worked tile by tile, a tile being some rows of the output:
//!
//! ```text
//! input ─ pack ─► padded rows of some channels ─ basis panels ─► [rank][tile] ─ coefficient panels ─► output
//! ```
//!
//! The values between the two convolutions never leave the cache. *Packing* copies the rows that a tile reads
//! into planes with the padding around them; a stride of s splits rows and columns into s phases, so that every
//! tap of the kernel is a fixed offset and the vectors run along the pixels, across the ends of rows where those
//! are short. What is computed past the end of a row is dropped before the second step.
#![allow(unsafe_code, reason = "panels take pointers; what they reach is asserted in `Pair::forward`")]

use crate::panel::{Panel, ROWS, SLACK, Start, max_vectors};
use crate::simd::blocks;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::cell::RefCell;

/// Bytes for the values between the two convolutions, and as many for packed input: they stay in a second-level cache.
const TILE_BYTES: usize = 256 << 10;

/// Bytes that one column of panels reads: most of a first-level cache.
const CHUNK_BYTES: usize = 24 << 10;

/// The numbers of a pair. Axes are `[height, width]`; the second convolution has a 1×1 kernel and stride 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PairShape {
    /// Input channels C.
    pub n_in: usize,
    /// Basis filters R: channels between the two.
    pub rank: usize,
    /// Output channels P.
    pub n_out: usize,
    /// Input size.
    pub input: [usize; 2],
    /// Output size.
    pub output: [usize; 2],
    /// Kernel size of the first convolution.
    pub kernel: [usize; 2],
    /// Its strides.
    pub strides: [usize; 2],
    /// Its dilations.
    pub dilations: [usize; 2],
    /// Its padding before each axis; what is after follows from the output size.
    pub pads: [usize; 2],
}

impl PairShape {
    fn n_taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
    /// Values of one image in the input.
    pub fn n_inputs(&self) -> usize {
        self.n_in * self.input[0] * self.input[1]
    }
    /// Values of one image in the output.
    pub fn n_outputs(&self) -> usize {
        self.n_out * self.output[0] * self.output[1]
    }
    /// Multiply-adds for one image, padding not counted.
    pub fn n_macs(&self) -> usize {
        self.rank * (self.n_in * self.n_taps() + self.n_out) * self.output[0] * self.output[1]
    }
}

/// What is done to the results before they are stored, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub struct PairEpilogue<'a> {
    /// A tensor of the output's shape to add.
    pub add: Option<&'a [f32]>,
    /// Bounds of the result: `(0, ∞)` for a ReLU.
    pub clamp: Option<(f32, f32)>,
}

/// A pair of convolutions with its weights, ready to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    shape: PairShape,
    /// By blocks of at most [`ROWS`] basis filters: `[C][taps][rows of the block]`.
    basis: Vec<f32>,
    basis_bias: Vec<f32>,
    /// By blocks of at most [`ROWS`] output channels: `[R][rows of the block]`.
    coefficients: Vec<f32>,
    bias: Vec<f32>,
}

impl Pair {
    /// Packs the weights: basis `[R, C, kernel…]`, coefficients `[P, R]`, and the bias of either convolution.
    /// `None` if a length does not fit the shape, or a size is zero or beyond all memory.
    pub fn new(
        shape: PairShape,
        basis: &[f32],
        basis_bias: Option<&[f32]>,
        coefficients: &[f32],
        bias: Option<&[f32]>,
    ) -> Option<Self> {
        let s = &shape;
        let sizes = [s.n_in, s.rank, s.n_out, s.output[0], s.output[1], s.strides[0], s.strides[1]];
        let product = |sizes: &[usize]| sizes.iter().try_fold(1usize, |n, &s| n.checked_mul(s));
        // What is computed with below: lengths, offsets of taps, packed planes.
        let reach = [0, 1].map(|a| s.kernel[a].checked_mul(s.dilations[a]));
        let bounded = [
            product(&[s.n_in, s.input[0], s.input[1]]),
            product(&[s.n_out, s.output[0], s.output[1]]),
            product(&[s.rank, s.n_in, s.kernel[0], s.kernel[1]]),
            product(&[s.rank, s.output[0], s.output[1]]),
            product(&[s.output[0], s.strides[0]]),
            product(&[s.output[1], s.strides[1]]),
            reach[0],
            reach[1],
        ];
        let is_bounded = bounded.iter().all(|n| n.is_some_and(|n| n < usize::MAX >> 20));
        let fits = is_bounded
            && sizes.iter().chain(&s.dilations).chain(&s.input).chain(&s.kernel).all(|&n| n > 0)
            && basis.len() == s.rank * s.n_in * s.n_taps()
            && coefficients.len() == s.n_out * s.rank
            && basis_bias.is_none_or(|b| b.len() == s.rank)
            && bias.is_none_or(|b| b.len() == s.n_out);
        fits.then(|| Self {
            shape,
            basis: packed(basis, s.rank),
            basis_bias: basis_bias.map_or_else(|| vec![0.0; s.rank], <[f32]>::to_vec),
            coefficients: packed(coefficients, s.n_out),
            bias: bias.map_or_else(|| vec![0.0; s.n_out], <[f32]>::to_vec),
        })
    }

    /// Its numbers.
    pub fn shape(&self) -> &PairShape {
        &self.shape
    }

    /// Runs the pair on images x `[N, C, H, W]` into y `[N, P, H', W']`. With `n_threads` over one, the tiles go
    /// to rayon's current pool; the results do not depend on it.
    ///
    /// # Panics
    /// If x, y or the tensor to add is not as long as `n_images` images.
    pub fn forward(
        &self,
        n_images: usize,
        x: &[f32],
        y: &mut [f32],
        epilogue: &PairEpilogue<'_>,
        n_threads: usize,
    ) {
        let s = &self.shape;
        assert_eq!(x.len(), n_images * s.n_inputs());
        assert_eq!(y.len(), n_images * s.n_outputs());
        assert!(epilogue.add.is_none_or(|a| a.len() == y.len()));
        let tiling = Tiling::new(s, n_threads.div_ceil(n_images.max(1)));
        let n_tiles = s.output[0].div_ceil(tiling.rows);
        let y = Output(y.as_mut_ptr());
        let run = |tile: usize| {
            thread_local! {
                static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
            }
            let image = tile / n_tiles;
            let first = tile % n_tiles * tiling.rows;
            let out = image * s.n_outputs() + first * s.output[1];
            SCRATCH.with_borrow_mut(|scratch| {
                if scratch.len() < tiling.scratch_len() {
                    scratch.resize(tiling.scratch_len(), 0.0);
                }
                Arch::new().dispatch(Tile {
                    pair: self,
                    tiling: &tiling,
                    x: &x[image * s.n_inputs()..][..s.n_inputs()],
                    // SAFETY: `out` is inside y, whose length was asserted.
                    y: unsafe { y.at(out) },
                    add: epilogue.add.map(|a| &a[out..]),
                    clamp: epilogue.clamp,
                    first,
                    n_rows: tiling.rows.min(s.output[0] - first),
                    scratch,
                });
            });
        };
        match n_threads {
            0 | 1 => (0..n_images * n_tiles).for_each(run),
            _ => (0..n_images * n_tiles).into_par_iter().for_each(run),
        }
    }
}

/// The output, which tiles write from several threads, each its own rows.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: no two tiles write the same place, and nobody reads before all are done.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// # Safety
    /// The offset lies inside the output.
    unsafe fn at(&self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(offset) }
    }
}

/// Weights `[rows, n]` as blocks of `[n][rows of the block]`.
fn packed(w: &[f32], rows: usize) -> Vec<f32> {
    let n = w.len() / rows;
    let mut out = Vec::with_capacity(w.len());
    for (first, len) in blocks(rows, ROWS) {
        for k in 0..n {
            out.extend((first..first + len).map(|row| w[row * n + k]));
        }
    }
    out
}

/// How a pair is cut.
struct Tiling {
    /// Output rows of a tile.
    rows: usize,
    /// Input channels that are packed at a time.
    channels: usize,
    /// Phases that taps read: (row, column).
    phases: Vec<(usize, usize)>,
    /// Rows and columns of a packed plane.
    plane: [usize; 2],
    /// By tap: its offset among the planes of a channel.
    taps: Vec<usize>,
    /// Distance between channels of the values between the convolutions.
    between: usize,
    rank: usize,
}

impl Tiling {
    fn new(s: &PairShape, n_parts: usize) -> Self {
        let reach = |axis: usize| (s.kernel[axis] - 1) * s.dilations[axis] / s.strides[axis];
        let width = s.output[1] + reach(1);
        let per_channel = s.kernel[0] * (SLACK + s.kernel[1]).next_multiple_of(16) * size_of::<f32>();
        let channels = (CHUNK_BYTES / per_channel).clamp(1, s.n_in);
        // Even chunks: a last one of a few channels would leave the panels little to do.
        let channels = s.n_in.div_ceil(s.n_in.div_ceil(channels));
        let fitting = |n_rows: usize| TILE_BYTES / size_of::<f32>() / (n_rows * width);
        let phases = s.strides.iter().zip(&s.kernel).map(|(s, k)| s.min(k)).product::<usize>();
        let most =
            fitting(s.rank).min(fitting(channels * phases).saturating_sub(reach(0))).clamp(1, s.output[0]);
        // As many tiles as there are threads, or a multiple; all of about the same height.
        let n_tiles = s.output[0].div_ceil(most).next_multiple_of(n_parts.max(1)).min(s.output[0]);
        let rows = s.output[0].div_ceil(n_tiles);
        let mut phases: Vec<(usize, usize)> = Vec::new();
        let plane = [rows + reach(0), width];
        let mut taps = Vec::with_capacity(s.n_taps());
        for tap in 0..s.n_taps() {
            let [row, column] = [tap / s.kernel[1] * s.dilations[0], tap % s.kernel[1] * s.dilations[1]];
            let phase = (row % s.strides[0], column % s.strides[1]);
            let index = phases.iter().position(|p| *p == phase).unwrap_or_else(|| {
                phases.push(phase);
                phases.len() - 1
            });
            taps.push((index * plane[0] + row / s.strides[0]) * width + column / s.strides[1]);
        }
        let between = (rows * width).next_multiple_of(SLACK);
        Self { rows, channels, phases, plane, taps, between, rank: s.rank }
    }

    fn packed_channel(&self) -> usize {
        self.phases.len() * self.plane[0] * self.plane[1]
    }
    fn packed_len(&self) -> usize {
        self.channels * self.packed_channel() + SLACK
    }
    fn scratch_len(&self) -> usize {
        // Panels write whole vectors between the convolutions, and read them.
        self.packed_len() + self.between * self.rank + SLACK
    }
}

struct Tile<'a> {
    pair: &'a Pair,
    tiling: &'a Tiling,
    x: &'a [f32],
    /// The first row of the tile in the first output channel.
    y: *mut f32,
    add: Option<&'a [f32]>,
    clamp: Option<(f32, f32)>,
    /// First output row.
    first: usize,
    n_rows: usize,
    scratch: &'a mut [f32],
}

impl WithSimd for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { pair, tiling, x, y, add, clamp, first, n_rows, scratch } = self;
        let s = &pair.shape;
        let lanes = S::F32_LANES;
        let (packed, between) = scratch.split_at_mut(tiling.packed_len());
        let plane = s.input[0] * s.input[1];
        // Positions of the tile with the ends of rows, up to the last row's last position.
        let n = (n_rows - 1) * tiling.plane[1] + s.output[1];
        for channel in (0..s.n_in).step_by(tiling.channels) {
            let n_channels = tiling.channels.min(s.n_in - channel);
            for c in 0..n_channels {
                let to = &mut packed[c * tiling.packed_channel()..][..tiling.packed_channel()];
                pack(s, tiling, &x[(channel + c) * plane..][..plane], to, first, n_rows);
            }
            for (vector, n_vectors) in blocks(n.div_ceil(lanes), max_vectors::<S>()) {
                let at = vector * lanes;
                for (r, n_filters) in blocks(s.rank, ROWS) {
                    let a = r * s.n_in * tiling.taps.len() + channel * tiling.taps.len() * n_filters;
                    // SAFETY: the block's weights lie in `basis` as `packed` laid them out; taps stay inside the
                    // packed planes, with `SLACK` behind the last; `between` holds whole vectors of every filter.
                    unsafe {
                        Panel {
                            a: pair.basis.as_ptr().add(a),
                            b: packed.as_ptr().add(at),
                            b_sum: tiling.packed_channel(),
                            n_sums: n_channels,
                            taps: &tiling.taps,
                            c: between.as_mut_ptr().add(r * tiling.between + at),
                            c_row: tiling.between,
                            start: match channel {
                                0 => Start::Bias(pair.basis_bias.as_ptr().add(r)),
                                _ => Start::Stored,
                            },
                            add: None,
                            clamp: None,
                            last: lanes,
                        }
                        .run(simd, n_filters, n_vectors);
                    }
                }
            }
        }
        // The ends of rows are dropped: the tile's rows then follow each other as they do in the output.
        let width = s.output[1];
        if tiling.plane[1] != width {
            for values in between.chunks_mut(tiling.between).take(s.rank) {
                for row in 1..n_rows {
                    values.copy_within(row * tiling.plane[1]..row * tiling.plane[1] + width, row * width);
                }
            }
        }
        let n = n_rows * width;
        let out_plane = s.output[0] * width;
        // Some positions at a time: what is read stays in the first-level cache, and each output row is written along.
        let most = (CHUNK_BYTES / size_of::<f32>() / s.rank).max(SLACK) / SLACK * SLACK / lanes;
        for (chunk, n_chunk) in blocks(n.div_ceil(lanes), most) {
            for (p, n_channels) in blocks(s.n_out, ROWS) {
                for (vector, n_vectors) in blocks(n_chunk, max_vectors::<S>()) {
                    let at = (chunk + vector) * lanes;
                    // SAFETY: as above; y has the tile's rows in every channel, and so has the tensor to add.
                    unsafe {
                        Panel {
                            a: pair.coefficients.as_ptr().add(p * s.rank),
                            b: between.as_ptr().add(at),
                            b_sum: tiling.between,
                            n_sums: s.rank,
                            taps: &[0],
                            c: y.add(p * out_plane + at),
                            c_row: out_plane,
                            start: Start::Bias(pair.bias.as_ptr().add(p)),
                            add: add.map(|a| a.as_ptr().add(p * out_plane + at)),
                            clamp,
                            last: (n - at - (n_vectors - 1) * lanes).min(lanes),
                        }
                        .run(simd, n_channels, n_vectors);
                    }
                }
            }
        }
    }
}

/// Copies what a tile reads of one channel into its phase planes, zeros around it.
fn pack(s: &PairShape, tiling: &Tiling, x: &[f32], to: &mut [f32], first: usize, n_rows: usize) {
    let [height, width] = tiling.plane;
    let rows = height - tiling.rows + n_rows;
    for (planes, &(phase_row, phase_column)) in to.chunks_exact_mut(height * width).zip(&tiling.phases) {
        for (row, to) in planes.chunks_exact_mut(width).take(rows).enumerate() {
            let from = ((first + row) * s.strides[0] + phase_row).checked_sub(s.pads[0]);
            let Some(from) = from.filter(|&r| r < s.input[0]) else {
                to.fill(0.0);
                continue;
            };
            let from = &x[from * s.input[1]..][..s.input[1]];
            // Column j of the plane is column j·stride + phase − pad of the input.
            let stride = s.strides[1];
            let begin = s.pads[1].saturating_sub(phase_column).div_ceil(stride).min(width);
            let start = (begin * stride + phase_column).saturating_sub(s.pads[1]);
            let len = s.input[1].saturating_sub(start).div_ceil(stride).min(width - begin);
            to[..begin].fill(0.0);
            to[begin + len..].fill(0.0);
            let to = &mut to[begin..begin + len];
            if stride == 1 {
                to.copy_from_slice(&from[start..start + len]);
            } else {
                for (to, from) in to.iter_mut().zip(from[start.min(from.len())..].iter().step_by(stride)) {
                    *to = *from;
                }
            }
        }
    }
}
