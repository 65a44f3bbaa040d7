//! Row-major walks over strided views.

use basisopt_ir::tensor::n_elements;

/// Distances between neighbours along each axis of a dense tensor, in elements.
pub(super) fn dense_strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![0; shape.len()];
    let mut step = 1isize;
    for (stride, &d) in strides.iter_mut().zip(shape).rev() {
        *stride = step;
        step = step.saturating_mul(d as isize);
    }
    strides
}

/// The offsets of a view's elements, last axis fastest.
pub(super) struct Walk<'a> {
    shape: &'a [usize],
    strides: &'a [isize],
    index: Vec<usize>,
    offset: isize,
    left: usize,
}

impl<'a> Walk<'a> {
    /// A walk over `shape`, beginning at `offset`. The caller vouches that every offset is within
    /// the tensor that it reads.
    pub(super) fn new(shape: &'a [usize], strides: &'a [isize], offset: isize) -> Self {
        let left = n_elements(shape).unwrap_or(0);
        Self { shape, strides, index: vec![0; shape.len()], offset, left }
    }
}

impl Iterator for Walk<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let here = self.offset as usize;
        for axis in (0..self.shape.len()).rev() {
            self.index[axis] += 1;
            self.offset += self.strides[axis];
            if self.index[axis] < self.shape[axis] {
                break;
            }
            self.offset -= self.strides[axis] * self.shape[axis] as isize;
            self.index[axis] = 0;
        }
        Some(here)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Walk<'_> {}

/// The shape that two or more shapes broadcast to; `None` if they do not.
pub(super) fn broadcast(shapes: &[&[usize]]) -> Option<Vec<usize>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![1; rank];
    for shape in shapes {
        for (o, &d) in out[rank - shape.len()..].iter_mut().zip(*shape) {
            *o = match (*o, d) {
                (o, d) if o == d || d == 1 => o,
                (1, d) => d,
                _ => return None,
            };
        }
    }
    Some(out)
}

/// Strides with which a dense tensor of `shape` is read as if it had the shape `out`.
pub(super) fn broadcast_strides(shape: &[usize], out: &[usize]) -> Vec<isize> {
    let mut strides = vec![0; out.len() - shape.len()];
    strides.extend(dense_strides(shape).iter().zip(shape).map(|(&s, &d)| if d == 1 { 0 } else { s }));
    strides
}
