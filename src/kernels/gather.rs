//! Which element of the input each tap of a convolution reads, for every output position.

use crate::conv::ConvShape;

/// One tap row (or tap column) at some output row (or column).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tap {
    /// Input row (or column) that is read.
    pub input: usize,
    /// Index of the tap among the rows (or columns) of the kernel.
    pub tap: usize,
}

/// Output columns `start, start + step, …` that have the same taps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First output column.
    pub start: usize,
    /// Distance between output columns.
    pub step: usize,
    /// Number of output columns.
    pub len: usize,
    /// Taps, with the input column at the first output column.
    pub taps: Vec<Tap>,
    /// Distance between input columns.
    pub input_step: usize,
}

/// The taps of a convolution, or of its input gradient, seen from the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gather {
    /// Taps by output row, the rows of all depths in order.
    pub rows: Vec<Vec<Tap>>,
    /// The columns, the same in every row.
    pub segments: Vec<Segment>,
    /// Columns of the kernel: the tap of row r and column c is `r · kernel_width + c`.
    pub kernel_width: usize,
    /// Columns of the input.
    pub input_width: usize,
    /// Columns of the output.
    pub output_width: usize,
}

/// The taps at one output index along one axis, in order of the taps.
fn taps_forward(s: &ConvShape, axis: usize, o: usize) -> Vec<Tap> {
    (0..s.kernel[axis])
        .filter_map(|tap| {
            let input = (o * s.strides[axis] + tap * s.dilations[axis]).checked_sub(s.pads[axis])?;
            (input < s.input[axis]).then_some(Tap { input, tap })
        })
        .collect()
}

/// The same with input and output exchanged: which outputs the input index i takes part in.
fn taps_backward(s: &ConvShape, axis: usize, i: usize) -> Vec<Tap> {
    (0..s.kernel[axis])
        .filter_map(|tap| {
            let scaled = (i + s.pads[axis]).checked_sub(tap * s.dilations[axis])?;
            let output = scaled / s.strides[axis];
            (scaled.is_multiple_of(s.strides[axis]) && output < s.output[axis])
                .then_some(Tap { input: output, tap })
        })
        .collect()
}

impl Gather {
    /// Outputs gather from inputs.
    pub fn forward(s: &ConvShape) -> Self {
        Self::new(s, s.output, s.input, 1, s.strides[2], &taps_forward)
    }

    /// Inputs gather from outputs.
    pub fn backward(s: &ConvShape) -> Self {
        Self::new(s, s.input, s.output, s.strides[2], 1, &taps_backward)
    }

    fn new(
        s: &ConvShape,
        output: [usize; 3],
        input: [usize; 3],
        step: usize,
        input_step: usize,
        taps: &dyn Fn(&ConvShape, usize, usize) -> Vec<Tap>,
    ) -> Self {
        let mut rows = Vec::with_capacity(output[0] * output[1]);
        for d in 0..output[0] {
            let depth = taps(s, 0, d);
            for h in 0..output[1] {
                let height = taps(s, 1, h);
                let pairs = depth.iter().flat_map(|d| height.iter().map(move |h| (d, h)));
                rows.push(
                    pairs
                        .map(|(d, h)| Tap {
                            input: d.input * input[1] + h.input,
                            tap: d.tap * s.kernel[1] + h.tap,
                        })
                        .collect(),
                );
            }
        }
        let mut segments: Vec<Segment> = Vec::new();
        for phase in 0..step.min(output[2]) {
            let first = segments.len();
            for start in (phase..output[2]).step_by(step) {
                let here = taps(s, 2, start);
                // The same taps, each moved on by one input step, as in the segment so far.
                let continues = |seg: &Segment| {
                    seg.taps.len() == here.len()
                        && seg
                            .taps
                            .iter()
                            .zip(&here)
                            .all(|(a, b)| a.tap == b.tap && a.input + seg.len * input_step == b.input)
                };
                match segments[first..].last_mut() {
                    Some(seg) if continues(seg) => seg.len += 1,
                    _ => segments.push(Segment { start, step, len: 1, taps: here, input_step }),
                }
            }
        }
        Self { rows, segments, kernel_width: s.kernel[2], input_width: input[2], output_width: output[2] }
    }
}
