//! What both families of kernels need of vectors.
#![allow(
    unsafe_code,
    reason = "loads and stores without bounds checks; the kernels assert bounds once per call"
)]

use pulp::Simd;

/// Whether there are 32 vector registers rather than 16.
pub(crate) const fn many_registers<S: Simd>() -> bool {
    // AVX-512, and NEON, whose vectors are of four; also SSE and plain code, for which it matters little.
    S::F32_LANES != 8
}

/// Cuts n into blocks of at most `most`, as even as can be: (start, length).
pub(crate) fn blocks(n: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = n.div_ceil(most).max(1);
    (0..count).map(move |i| (i * n / count, (i + 1) * n / count - i * n / count)).filter(|&(_, len)| len > 0)
}

/// A vector, wherever it lies.
///
/// # Safety
/// The whole vector lies inside an allocation.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd>(from: *const f32) -> S::f32s {
    // SAFETY: the caller's; vectors may be read at any alignment.
    unsafe { from.cast::<S::f32s>().read_unaligned() }
}

/// Stores a vector.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(to: *mut f32, v: S::f32s) {
    // SAFETY: the caller's.
    unsafe { to.cast::<S::f32s>().write_unaligned(v) }
}
