//! Convolution and its two gradients on lane tensors.
//!
//! All three are sums over *taps*, the elements of the kernel: with o an output position and i(o, t) the
//! input position that tap t reads there,
//!
//! ```text
//! forward       y[p, o]  = Σ_c Σ_t w[p, c, t] · x[c, i(o, t)]
//! input grad    dx[c, i] = Σ_p Σ_t w[p, c, t] · dy[p, o]      over the o with i(o, t) = i
//! weight grad   dw[p, c, t] = Σ_o dy[p, o] · x[c, i(o, t)]    summed over the lanes
//! ```
//!
//! Which taps are inside the input depends on row and column only, so [`Conv`] works it out once: rows by
//! their lists of tap rows, columns cut into segments that all have the same taps. No padding is ever read.

use crate::gather::Gather;
use crate::micro;
use crate::reference;
use crate::{LANES, Real};

/// The numbers of a convolution of up to three spatial axes, `[depth, height, width]`; missing axes come
/// first and are 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Input channels C, over all groups.
    pub n_in: usize,
    /// Output channels P, over all groups.
    pub n_out: usize,
    /// Number of groups; divides C and P.
    pub groups: usize,
    /// Input size.
    pub input: [usize; 3],
    /// Output size.
    pub output: [usize; 3],
    /// Kernel size.
    pub kernel: [usize; 3],
    /// Strides.
    pub strides: [usize; 3],
    /// Dilations.
    pub dilations: [usize; 3],
    /// Padding before each axis; what is after follows from the output size.
    pub pads: [usize; 3],
}

impl ConvShape {
    /// Elements of the kernel.
    pub fn n_taps(&self) -> usize {
        self.kernel.iter().product()
    }
    /// Positions of the input.
    pub fn n_inputs(&self) -> usize {
        self.input.iter().product()
    }
    /// Positions of the output.
    pub fn n_outputs(&self) -> usize {
        self.output.iter().product()
    }
    /// Elements of the weight `[P, C/groups, kernel…]`.
    pub fn n_weights(&self) -> usize {
        self.n_out * (self.n_in / self.groups) * self.n_taps()
    }
    /// Multiply-adds for one image, padding not counted.
    pub fn n_macs(&self) -> usize {
        self.n_weights() * self.n_outputs()
    }

    /// A convolution with a 1×1 kernel, stride 1 and no padding reads and writes position by position: its
    /// rows may be cut anywhere. Rows of this many positions keep vectors full and stay in cache.
    fn flattened(mut self) -> Self {
        const ROW: usize = 32;
        let positions = self.n_outputs();
        let is_plain =
            self.n_taps() == 1 && self.strides == [1; 3] && self.pads == [0; 3] && self.input == self.output;
        if is_plain && positions > 1 {
            let width = (1..=ROW.min(positions)).rev().find(|w| positions.is_multiple_of(*w)).unwrap_or(1);
            // A prime number of positions would leave rows of one.
            let width = if width * 2 < ROW.min(positions) { positions } else { width };
            self.input = [1, positions / width, width];
            self.output = self.input;
        }
        self
    }
}

/// What is done to a result before it is stored, in this order.
#[derive(Debug)]
pub struct Epilogue<'a, T> {
    /// One value per channel to start from.
    pub bias: Option<&'a [T]>,
    /// A tensor to add.
    pub add: Add<'a, T>,
    /// Bounds of the result: `(0, ∞)` for a ReLU.
    pub clamp: Option<(T, T)>,
    /// The result is zero where this tensor is not strictly between these bounds: the gradient of a clamp.
    pub mask: Option<(&'a [T], T, T)>,
}

/// What an [`Epilogue`] adds.
#[derive(Clone, Copy, Debug)]
pub enum Add<'a, T> {
    /// Nothing.
    None,
    /// Another tensor of the result's shape.
    Tensor(&'a [T]),
    /// What the output buffer holds.
    Output,
}

impl<T> Default for Epilogue<'_, T> {
    fn default() -> Self {
        Self { bias: None, add: Add::None, clamp: None, mask: None }
    }
}

/// A convolution made ready to run.
#[derive(Clone, Debug)]
pub struct Conv {
    shape: ConvShape,
    pub(crate) forward: Gather,
    pub(crate) backward: Gather,
}

impl Conv {
    /// Works out which taps are inside the input, everywhere.
    pub fn new(shape: ConvShape) -> Self {
        let shape = shape.flattened();
        Self { shape, forward: Gather::forward(&shape), backward: Gather::backward(&shape) }
    }

    /// Its numbers.
    pub fn shape(&self) -> &ConvShape {
        &self.shape
    }

    /// The convolution of x `[C, positions, LANES]` with w `[P, C/groups, taps]` into y `[P, positions, LANES]`.
    ///
    /// # Panics
    /// If a slice is shorter than its shape.
    pub fn forward<T: Element>(&self, x: &[T], w: &[T], y: &mut [T], epilogue: &Epilogue<'_, T>) {
        let s = &self.shape;
        assert!(x.len() >= s.n_in * s.n_inputs() * LANES && w.len() >= s.n_weights());
        check(y, s.n_out, s.n_outputs(), epilogue);
        let taps = s.n_taps();
        let c = s.n_in / s.groups;
        T::gather(
            &Contraction {
                gather: &self.forward,
                groups: s.groups,
                n_sums: c,
                n_results: s.n_out / s.groups,
                w_sum: taps,
                w_result: c * taps,
                n_inputs: s.n_inputs(),
                n_outputs: s.n_outputs(),
            },
            x,
            w,
            y,
            epilogue,
        );
    }

    /// The gradient of the convolution's input.
    ///
    /// # Panics
    /// If a slice is shorter than its shape.
    pub fn input_grad<T: Element>(&self, dy: &[T], w: &[T], dx: &mut [T], epilogue: &Epilogue<'_, T>) {
        let s = &self.shape;
        assert!(dy.len() >= s.n_out * s.n_outputs() * LANES && w.len() >= s.n_weights());
        check(dx, s.n_in, s.n_inputs(), epilogue);
        let taps = s.n_taps();
        let c = s.n_in / s.groups;
        T::gather(
            &Contraction {
                gather: &self.backward,
                groups: s.groups,
                n_sums: s.n_out / s.groups,
                n_results: c,
                w_sum: c * taps,
                w_result: taps,
                n_inputs: s.n_outputs(),
                n_outputs: s.n_inputs(),
            },
            dy,
            w,
            dx,
            epilogue,
        );
    }

    /// Adds the gradient of the convolution's weight, summed over the lanes, to dw `[P, C/groups, taps]`.
    ///
    /// # Panics
    /// If a slice is shorter than its shape.
    pub fn weight_grad<T: Element>(&self, dy: &[T], x: &[T], dw: &mut [T]) {
        let s = &self.shape;
        assert!(dy.len() >= s.n_out * s.n_outputs() * LANES && x.len() >= s.n_in * s.n_inputs() * LANES);
        assert!(dw.len() >= s.n_weights());
        T::weight_grad(self, dy, x, dw);
    }
}

fn check<T>(out: &[T], n_channels: usize, positions: usize, epilogue: &Epilogue<'_, T>) {
    let len = n_channels * positions * LANES;
    assert!(out.len() >= len);
    assert!(epilogue.bias.is_none_or(|b| b.len() >= n_channels));
    assert!(epilogue.mask.as_ref().is_none_or(|(m, ..)| m.len() >= len));
    assert!(!matches!(epilogue.add, Add::Tensor(t) if t.len() < len));
}

/// The sums that forward and input gradient both are: `out[r, o] = Σ_s Σ_t w[r, s, t] · in[s, i(o, t)]` in each
/// group.
#[derive(Debug)]
pub struct Contraction<'a> {
    pub(crate) gather: &'a Gather,
    pub(crate) groups: usize,
    /// Channels summed over, per group.
    pub(crate) n_sums: usize,
    /// Channels of the result, per group.
    pub(crate) n_results: usize,
    /// Distance in w between channels that are summed over.
    pub(crate) w_sum: usize,
    /// Distance in w between channels of the result.
    pub(crate) w_result: usize,
    pub(crate) n_inputs: usize,
    pub(crate) n_outputs: usize,
}

impl Contraction<'_> {
    /// Distance in w between groups.
    pub(crate) fn w_group(&self) -> usize {
        // One of the two channel distances spans the other.
        (self.w_sum * self.n_sums).max(self.w_result * self.n_results)
    }
}

/// An element type with convolution kernels: vectors for `f32`, plain loops for `f64`.
pub trait Element: Real {
    #[doc(hidden)]
    fn gather(c: &Contraction<'_>, x: &[Self], w: &[Self], y: &mut [Self], epilogue: &Epilogue<'_, Self>);
    #[doc(hidden)]
    fn weight_grad(conv: &Conv, dy: &[Self], x: &[Self], dw: &mut [Self]);
}

impl Element for f32 {
    fn gather(c: &Contraction<'_>, x: &[f32], w: &[f32], y: &mut [f32], epilogue: &Epilogue<'_, f32>) {
        micro::gather(c, x, w, y, epilogue);
    }
    fn weight_grad(conv: &Conv, dy: &[f32], x: &[f32], dw: &mut [f32]) {
        micro::weight_grad(conv, dy, x, dw);
    }
}

impl Element for f64 {
    fn gather(c: &Contraction<'_>, x: &[f64], w: &[f64], y: &mut [f64], epilogue: &Epilogue<'_, f64>) {
        reference::gather(c, x, w, y, epilogue);
    }
    fn weight_grad(conv: &Conv, dy: &[f64], x: &[f64], dw: &mut [f64]) {
        reference::weight_grad(conv.shape(), dy, x, dw);
    }
}
