//! Nodes that several rules make, with the sizes that they are made for.

use super::Unfit;
use crate::differentiate::builder::{Builder, dims};
use basisopt_ir::op::{self, AutoPad};
use basisopt_ir::{DType, Tensor, ValueId};

/// The sizes of a value; `None` where one is not a number.
pub(super) fn sizes(b: &Builder, v: ValueId) -> Result<Vec<Option<usize>>, Unfit> {
    Ok(dims(&b.graph, v)?.iter().map(basisopt_ir::Dim::known).collect())
}

/// The size of an axis that must be a number.
pub(super) fn size(b: &Builder, v: ValueId, axis: usize) -> Result<usize, Unfit> {
    sizes(b, v)?.get(axis).copied().flatten().ok_or(Unfit::Size(v))
}

/// The sizes behind batch and channels, which must be numbers.
pub(super) fn plane(b: &Builder, v: ValueId) -> Result<Vec<usize>, Unfit> {
    let all = sizes(b, v)?;
    all.get(2..).and_then(|s| s.iter().copied().collect()).ok_or(Unfit::Size(v))
}

/// A window that moves along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub input: usize,
    pub output: usize,
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    pub before: usize,
    pub after: usize,
}

/// Attributes of a window as they are in the file.
pub(super) struct WindowAttrs<'a> {
    pub auto_pad: AutoPad,
    pub dilations: &'a [i64],
    pub pads: &'a [i64],
    pub strides: &'a [i64],
}

/// Those of an operator that has all four of them.
macro_rules! window_attrs {
    ($op:expr) => {
        crate::lower::nodes::WindowAttrs {
            auto_pad: $op.auto_pad,
            dilations: &$op.dilations,
            pads: &$op.pads,
            strides: &$op.strides,
        }
    };
}
pub(super) use window_attrs;

impl WindowAttrs<'_> {
    /// The windows along all axes of a plane.
    pub fn windows(&self, kernel: &[usize], input: &[usize], output: &[usize]) -> Result<Vec<Window>, Unfit> {
        let n = kernel.len();
        if input.len() != n || output.len() != n {
            return Err(Unfit::because("its window has not as many axes as its input"));
        }
        let per_axis = |list: &[i64], default: usize, n: usize| -> Result<Vec<usize>, Unfit> {
            if list.is_empty() {
                return Ok(vec![default; n]);
            }
            let list: Option<Vec<usize>> = list.iter().map(|&v| usize::try_from(v).ok()).collect();
            list.filter(|l| l.len() == n)
                .ok_or_else(|| Unfit::because("its window has not as many axes as its input"))
        };
        let strides = per_axis(self.strides, 1, n)?;
        let dilations = per_axis(self.dilations, 1, n)?;
        let pads = match self.auto_pad {
            AutoPad::NotSet => per_axis(self.pads, 0, 2 * n)?,
            _ => vec![0; 2 * n],
        };
        let window = |a: usize| {
            let mut w = Window {
                input: input[a],
                output: output[a],
                kernel: kernel[a],
                stride: strides[a],
                dilation: dilations[a],
                before: pads[a],
                after: pads[a + n],
            };
            if matches!(self.auto_pad, AutoPad::SameUpper | AutoPad::SameLower) {
                let total = w.reach().saturating_sub(w.input);
                let small = total / 2;
                let upper = self.auto_pad == AutoPad::SameUpper;
                (w.before, w.after) = if upper { (small, total - small) } else { (total - small, small) };
            }
            w
        };
        Ok((0..n).map(window).collect())
    }
}

impl Window {
    /// Elements, padding included, from the first to the last that any position reads.
    pub fn reach(&self) -> usize {
        (self.output.max(1) - 1) * self.stride + (self.kernel.max(1) - 1) * self.dilation + 1
    }

    /// Padding behind the input that makes room for what is read; less than [`Window::after`] where a stride leaves
    /// something over, more where positions are rounded up.
    pub fn room(&self) -> usize {
        self.reach().saturating_sub(self.before + self.input)
    }

    /// Elements at the end of the input that no position reads.
    pub fn unread(&self) -> usize {
        (self.before + self.input).saturating_sub(self.reach())
    }

    /// Where the slice for a place in the kernel begins and ends, in the padded input.
    pub fn slice(&self, place: usize) -> (usize, usize) {
        let start = place * self.dilation;
        (start, start + (self.output.max(1) - 1) * self.stride + 1)
    }
}

/// All places of a kernel, the last axis running fastest.
pub(super) fn places(windows: &[Window]) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for w in windows {
        all = all
            .iter()
            .flat_map(|head: &Vec<usize>| (0..w.kernel).map(move |k| [&head[..], &[k]].concat()))
            .collect();
    }
    all
}

/// Where the elements of one axis go: to `start`, `start + step`, … of an axis of `size` elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spread {
    pub axis: usize,
    pub start: usize,
    pub step: usize,
    pub size: usize,
}

fn int(v: usize) -> i64 {
    i64::try_from(v).unwrap_or(i64::MAX)
}

impl Builder {
    pub(super) fn reshape(&mut self, x: ValueId, shape: &[i64]) -> ValueId {
        let shape = self.ints(shape);
        self.node(op::Reshape::default(), &[x, shape])
    }

    pub(super) fn transpose(&mut self, x: ValueId, perm: &[usize]) -> ValueId {
        let perm = perm.iter().map(|&p| int(p)).collect();
        self.node(op::Transpose { perm: Some(perm) }, &[x])
    }

    /// `starts..ends` by `steps` of some axes.
    pub(super) fn slice(
        &mut self,
        x: ValueId,
        axes: &[usize],
        starts: &[usize],
        ends: &[usize],
        steps: &[usize],
    ) -> ValueId {
        let [axes, starts, ends, steps] =
            [axes, starts, ends, steps].map(|l| self.ints(&l.iter().map(|&v| int(v)).collect::<Vec<_>>()));
        self.node(op::Slice::default(), &[x, starts, ends, axes, steps])
    }

    /// Padding with a number of this type before and after the axes from `first` on; nothing where all of it is 0.
    pub(super) fn pad(
        &mut self,
        x: ValueId,
        rank: usize,
        first: usize,
        pads: &[(usize, usize)],
        (value, like): (f64, ValueId),
    ) -> ValueId {
        if pads.iter().all(|&p| p == (0, 0)) {
            return x;
        }
        let side = |f: fn(&(usize, usize)) -> usize| {
            let mut side = vec![0; rank];
            side.iter_mut().skip(first).zip(pads).for_each(|(s, p)| *s = int(f(p)));
            side
        };
        let pads = self.ints(&[side(|p| p.0), side(|p| p.1)].concat());
        let value = self.number(value, like);
        self.node(op::Pad::default(), &[x, pads, value])
    }

    /// A constant of the type of `like`.
    pub(super) fn floats(
        &mut self,
        shape: &[usize],
        values: &[f64],
        like: ValueId,
    ) -> Result<ValueId, Unfit> {
        let dtype = self.graph.value(like).ty.dtype.unwrap_or(DType::F32);
        let tensor =
            Tensor::from_f64s(dtype, shape.to_vec(), values).map_err(|e| Unfit::because(e.to_string()))?;
        let name = self.graph.unused_value_name("grad.table");
        Ok(self.graph.add_constant(name, tensor))
    }

    /// The opposite of a strided slice: elements of x put apart, zeros of the type of `like` everywhere else. `shape` is
    /// that of x.
    pub(super) fn spread(
        &mut self,
        x: ValueId,
        like: ValueId,
        shape: &[Option<usize>],
        moves: &[Spread],
    ) -> Result<ValueId, Unfit> {
        let rank = shape.len();
        let mut out = x;
        let mut shape = shape.to_vec();
        let apart: Vec<Spread> = moves.iter().copied().filter(|m| m.step > 1).collect();
        if !apart.is_empty() {
            // An axis of one element behind each; zeros behind that element; both axes as one.
            if shape.iter().filter(|d| d.is_none()).count() > 1 {
                return Err(Unfit::Size(x));
            }
            let (mut split, mut pads) = (Vec::new(), Vec::new());
            for (a, d) in shape.iter().enumerate() {
                split.push(d.map_or(-1, int));
                pads.push((0, 0));
                if let Some(m) = apart.iter().find(|m| m.axis == a) {
                    split.push(1);
                    pads.push((0, m.step - 1));
                }
            }
            let between = self.reshape(out, &split);
            let between = self.pad(between, split.len(), 0, &pads, (0.0, like));
            for m in &apart {
                let Some(Some(d)) = shape.get_mut(m.axis) else { return Err(Unfit::Size(x)) };
                *d *= m.step;
            }
            let joined: Vec<i64> = shape.iter().map(|d| d.map_or(-1, int)).collect();
            out = self.reshape(between, &joined);
        }
        let mut pads = vec![(0, 0); rank];
        let (mut axes, mut ends) = (Vec::new(), Vec::new());
        for m in moves {
            let Some(Some(d)) = shape.get(m.axis) else { return Err(Unfit::Size(x)) };
            // Zeros behind the last element may reach over the end.
            let kept = m.size.saturating_sub(m.start).min(*d);
            if kept < *d {
                axes.push(m.axis);
                ends.push(kept);
            }
            if let Some(p) = pads.get_mut(m.axis) {
                *p = (m.start, m.size.saturating_sub(m.start + kept));
            }
        }
        if !axes.is_empty() {
            let n = axes.len();
            out = self.slice(out, &axes, &vec![0; n], &ends, &vec![1; n]);
        }
        Ok(self.pad(out, rank, 0, &pads, (0.0, like)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(input: usize, kernel: usize, stride: usize, pads: [i64; 2], output: usize) -> Window {
        let attrs =
            WindowAttrs { auto_pad: AutoPad::NotSet, dilations: &[], pads: &pads, strides: &[stride as i64] };
        attrs.windows(&[kernel], &[input], &[output]).unwrap()[0]
    }

    #[test]
    fn what_a_stride_leaves_over_is_neither_room_nor_read() {
        // 8 elements, 1 before and 1 after, by threes of stride 2: 0…8 of 0…9 are read.
        let w = window(8, 3, 2, [1, 1], 4);
        assert_eq!((w.reach(), w.room(), w.unread()), (9, 0, 0));
        // 1×1 by stride 2 on 8: the last element is not read.
        let w = window(8, 1, 2, [0, 0], 4);
        assert_eq!((w.reach(), w.room(), w.unread()), (7, 0, 1));
        // Positions rounded up reach behind the padding.
        let w = window(8, 3, 2, [0, 0], 4);
        assert_eq!((w.reach(), w.room(), w.unread()), (9, 1, 0));
    }

    #[test]
    fn same_padding_puts_the_odd_element_where_it_says() {
        for (auto_pad, expected) in [(AutoPad::SameUpper, (0, 1)), (AutoPad::SameLower, (1, 0))] {
            let attrs = WindowAttrs { auto_pad, dilations: &[], pads: &[], strides: &[2] };
            let w = attrs.windows(&[3], &[8], &[4]).unwrap()[0];
            assert_eq!((w.before, w.after), expected);
        }
    }

    #[test]
    fn places_run_through_the_last_axis_first() {
        let w = window(8, 2, 1, [0, 0], 7);
        assert_eq!(places(&[w, w]), [[0, 0], [0, 1], [1, 0], [1, 1]]);
    }
}
