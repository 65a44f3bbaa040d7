//! Kernels on activations whose innermost axis is the batch: one SIMD lane per image.
//!
//! A *lane tensor* of shape `[C, D, H, W]` is stored as `[C][D][H][W][LANES]`: the values that
//! [`LANES`] images have at one place lie side by side. Whatever the number of channels, the kernel size, the
//! stride or the grouping, every multiply-add then works on full vectors, without gathering patches and
//! without padding channels; it is the layout in which factorised networks, with their odd ranks, train fastest.

mod conv;
mod gather;
mod micro;
mod pair;
mod panel;
mod real;
mod reference;
mod simd;

pub use conv::{Add, Contraction, Conv, ConvShape, Element, Epilogue};
pub use pair::{Pair, PairEpilogue, PairShape};
pub use real::Real;

/// Images that are worked at side by side.
pub const LANES: usize = 16;

#[cfg(test)]
mod pair_tests;
#[cfg(test)]
mod tests;
