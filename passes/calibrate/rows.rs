//! The rows of a layer's regression, read off its input and output tensors.
//!
//! A convolution is a linear map from a patch of its input to a column of its output, the same at every
//! position; a linear layer is one from features to features. Positions (rows) next to each other say
//! nearly the same, so a stratified sample of them does.

use crate::layer::{Layer, LayerKind};
use basisopt_ir::infer::{ConvGeometry, conv_geometry};
use basisopt_ir::{Dim, Graph, Op};

/// How rows lie in tensors.
#[derive(Clone, Debug)]
pub(crate) struct View {
    layout: Layout,
    groups: usize,
    /// Inputs of one row and group: a patch, flattened like the weight.
    pub n_inputs: usize,
    /// Outputs of one row and group.
    pub n_outputs: usize,
}

#[derive(Clone, Debug)]
enum Layout {
    Conv(Box<ConvLayout>),
    /// Features stand on the last axis, or on the last but one.
    Linear {
        x_last: bool,
        y_last: bool,
    },
}

#[derive(Clone, Debug)]
struct ConvLayout {
    geometry: ConvGeometry,
    pads: Vec<usize>,
    input: Vec<usize>,
    output: Vec<usize>,
}

impl View {
    /// The view of a layer in a graph with known shapes. `None` for transposed convolutions, which have
    /// no rows of this kind, and where a size is not known.
    pub fn of(graph: &Graph, layer: &Layer) -> Option<Self> {
        let known = |dims: &[Dim]| dims.iter().map(Dim::known).collect::<Option<Vec<usize>>>();
        let layout = match layer.kind {
            LayerKind::Conv => {
                let geometry = conv_geometry(graph, layer.node)?;
                let pads = geometry.pads.as_ref()?.iter().map(|p| p.0).collect();
                let (input, output) = (known(&geometry.input)?, known(&geometry.output)?);
                Layout::Conv(Box::new(ConvLayout { geometry, pads, input, output }))
            }
            LayerKind::ConvTranspose => return None,
            LayerKind::Gemm { .. } => {
                let Op::Gemm(op) = &graph.node(layer.node).op else { return None };
                Layout::Linear { x_last: op.transA == 0, y_last: true }
            }
            LayerKind::MatMul => Layout::Linear { x_last: true, y_last: true },
            LayerKind::MatMulLeft => {
                // A vector is a single column.
                let x = &graph.value(graph.node_input(layer.node, 1)?).ty;
                let is_vector = x.shape.as_ref()?.len() == 1;
                Layout::Linear { x_last: is_vector, y_last: is_vector }
            }
        };
        Some(Self { layout, groups: layer.groups, n_inputs: layer.n_columns, n_outputs: layer.n_rows })
    }

    /// How many rows there are in an output of this many elements.
    pub fn n_rows(&self, n_elements: usize) -> usize {
        n_elements / (self.groups * self.n_outputs).max(1)
    }

    /// The inputs of some rows: `[group][row][n_inputs]`, one behind the other.
    pub fn inputs(&self, x: &[f32], shape: &[usize], rows: &[usize]) -> Vec<f64> {
        match &self.layout {
            Layout::Conv(conv) => self.patches(conv, x, rows),
            Layout::Linear { x_last, .. } => features(x, shape, *x_last, self.n_inputs, rows),
        }
    }

    /// The outputs of some rows: `[group][row][n_outputs]`.
    pub fn outputs(&self, y: &[f32], shape: &[usize], rows: &[usize]) -> Vec<f64> {
        let conv = match &self.layout {
            Layout::Conv(conv) => conv,
            Layout::Linear { y_last, .. } => return features(y, shape, *y_last, self.n_outputs, rows),
        };
        let n_positions: usize = conv.output.iter().product();
        let n_channels = self.groups * self.n_outputs;
        let mut out = Vec::with_capacity(rows.len() * n_channels);
        for group in 0..self.groups {
            for &row in rows {
                let (image, position) = (row / n_positions, row % n_positions);
                let channels = group * self.n_outputs..(group + 1) * self.n_outputs;
                out.extend(channels.map(|c| read(y, (image * n_channels + c) * n_positions + position)));
            }
        }
        out
    }

    /// The output tensor whose rows, all of them in order, these are: the inverse of [`View::outputs`].
    pub fn put_outputs(&self, rows: &[f64], shape: &[usize]) -> Vec<f64> {
        let (y_last, n_positions) = match &self.layout {
            Layout::Conv(conv) => (false, conv.output.iter().product()),
            Layout::Linear { y_last, .. } => (*y_last, shape.last().copied().unwrap_or(1).max(1)),
        };
        if y_last {
            return rows.to_vec();
        }
        let n_rows = rows.len() / (self.groups * self.n_outputs).max(1);
        let mut out = vec![0.0; rows.len()];
        for group in 0..self.groups {
            for row in 0..n_rows {
                let (image, position) = (row / n_positions, row % n_positions);
                for p in 0..self.n_outputs {
                    let channel = (image * self.groups + group) * self.n_outputs + p;
                    out[channel * n_positions + position] = rows[(group * n_rows + row) * self.n_outputs + p];
                }
            }
        }
        out
    }

    fn patches(&self, conv: &ConvLayout, x: &[f32], rows: &[usize]) -> Vec<f64> {
        let n_positions: usize = conv.output.iter().product();
        let n_input: usize = conv.input.iter().product();
        let n_kernel: usize = conv.geometry.kernel.iter().product();
        let n_channels = self.n_inputs / n_kernel.max(1);
        // Where each kernel element of each row reads, the same for all channels; None is padding.
        let mut taps = Vec::with_capacity(rows.len() * n_kernel);
        for &row in rows {
            let at = unravel(row % n_positions, &conv.output);
            taps.extend((0..n_kernel).map(|k| conv.tap(&at, &unravel(k, &conv.geometry.kernel))));
        }
        let mut out = Vec::with_capacity(rows.len() * self.groups * self.n_inputs);
        for group in 0..self.groups {
            for (i, &row) in rows.iter().enumerate() {
                let image = row / n_positions;
                let taps = &taps[i * n_kernel..(i + 1) * n_kernel];
                for c in 0..n_channels {
                    let channel = image * self.groups * n_channels + group * n_channels + c;
                    out.extend(taps.iter().map(|t| t.map_or(0.0, |t| read(x, channel * n_input + t))));
                }
            }
        }
        out
    }
}

impl ConvLayout {
    /// The input element under a kernel element at an output position, counted inside one channel.
    fn tap(&self, at: &[usize], kernel: &[usize]) -> Option<usize> {
        let mut index = 0;
        for axis in 0..at.len() {
            let i = at[axis] * self.geometry.strides[axis] + kernel[axis] * self.geometry.dilations[axis];
            let i = i.checked_sub(self.pads[axis]).filter(|&i| i < self.input[axis])?;
            index = index * self.input[axis] + i;
        }
        Some(index)
    }
}

/// A tensor shorter than its shape says reads as zero: executors of others are not trusted with memory.
fn read(values: &[f32], index: usize) -> f64 {
    values.get(index).map_or(0.0, |&v| f64::from(v))
}

fn unravel(mut index: usize, sizes: &[usize]) -> Vec<usize> {
    let mut out = vec![0; sizes.len()];
    for (o, &n) in out.iter_mut().zip(sizes).rev() {
        *o = index % n.max(1);
        index /= n.max(1);
    }
    out
}

/// Rows of features that stand on the last axis, or columns on the last but one.
fn features(x: &[f32], shape: &[usize], last: bool, n: usize, rows: &[usize]) -> Vec<f64> {
    let n_columns = if last { 1 } else { shape.last().copied().unwrap_or(1).max(1) };
    let element = |row: usize, k: usize| match last {
        true => read(x, row * n + k),
        false => read(x, ((row / n_columns) * n + k) * n_columns + row % n_columns),
    };
    rows.iter().flat_map(|&row| (0..n).map(move |k| element(row, k))).collect()
}

/// A stratified sample of `k` of `n` rows, ascending: one at random from each of `k` equal stretches.
pub(crate) fn sample(n: usize, k: usize, seed: u64) -> Vec<usize> {
    if k >= n {
        return (0..n).collect();
    }
    let mut state = seed;
    let stretch = |i: usize| (i as u128 * n as u128 / k as u128) as usize;
    (0..k)
        .map(|i| {
            let (from, to) = (stretch(i), stretch(i + 1));
            from + (split_mix(&mut state) % (to - from).max(1) as u64) as usize
        })
        .collect()
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factor::{Factors, product};
    use basisopt_ir::{ValueId, infer, parse::parse};

    /// `W·x` over the rows must be what the formula of the operator gives: here by an independent, direct
    /// evaluation of the convolution.
    #[test]
    fn patches_times_weights_are_the_convolution() {
        let mut graph = parse(
            "graph @g(%x: f32[2,4,7,6]) -> (%y) {
               %w = f32[6,2,3,2] randn(seed=1)
               %y = Conv<group=2, strides=[2,1], dilations=[1,2], pads=[1,0,2,1]>(%x, %w)
             }",
        )
        .unwrap();
        infer::infer(&mut graph).unwrap();
        let y = graph.find_value("y").unwrap();
        let layer = Layer::conv(&graph, y.node).unwrap().unwrap();
        let view = View::of(&graph, &layer).unwrap();
        let shape = graph.value(ValueId::of(y.node)).ty.static_shape().unwrap();
        let (oh, ow) = (shape[2], shape[3]);
        let x: Vec<f32> = (0..2 * 4 * 7 * 6).map(|i| ((i * 37 % 101) as f32 - 50.0) / 10.0).collect();
        let n = view.n_rows(shape.iter().product());
        assert_eq!(n, 2 * oh * ow);
        let rows: Vec<usize> = (0..n).collect();
        let patches = view.inputs(&x, &[2, 4, 7, 6], &rows);
        let values: Vec<f32> = (0..n * 6).map(|i| i as f32).collect();
        let there_and_back = view.put_outputs(&view.outputs(&values, &shape, &rows), &shape);
        assert!(there_and_back.iter().zip(&values).all(|(a, &b)| *a == f64::from(b)));
        let weight = graph.constant_input(y.node, 1).unwrap();
        let matrices = layer.matrices(weight).unwrap();
        let w = weight.to_f64s().unwrap();
        for (g, matrix) in matrices.iter().enumerate() {
            let rows = Factors {
                coefficients: patches[g * n * 12..(g + 1) * n * 12].to_vec(),
                basis: crate::layer::transpose(matrix, 3, 12),
                rank: 12,
            };
            let found = product(&rows, n, 3);
            for row in 0..n {
                let (image, i, j) = (row / (oh * ow), row / ow % oh, row % ow);
                for p in 0..3 {
                    let mut wanted = 0.0;
                    for c in 0..2 {
                        for (u, v) in (0..3).flat_map(|u| (0..2).map(move |v| (u, v))) {
                            let (r, s) = ((2 * i + u) as i64 - 1, (j + 2 * v) as i64);
                            if (0..7).contains(&r) && (0..6).contains(&s) {
                                let at = ((image * 4 + g * 2 + c) * 7 + r as usize) * 6 + s as usize;
                                wanted += f64::from(x[at]) * w[(((g * 3 + p) * 2 + c) * 3 + u) * 2 + v];
                            }
                        }
                    }
                    assert!((found[row * 3 + p] - wanted).abs() < 1e-9);
                }
            }
        }
    }

    #[test]
    fn features_stand_on_either_of_the_last_axes() {
        let x: Vec<f32> = (0..12u8).map(f32::from).collect();
        assert_eq!(features(&x, &[4, 3], true, 3, &[1, 3]), [3.0, 4.0, 5.0, 9.0, 10.0, 11.0]);
        // [2,3,2]: columns of 3; the fourth is the second of the second matrix.
        assert_eq!(features(&x, &[2, 3, 2], false, 3, &[0, 3]), [0.0, 2.0, 4.0, 7.0, 9.0, 11.0]);
    }

    #[test]
    fn samples_are_ascending_distinct_and_spread() {
        let rows = sample(1000, 100, 7);
        assert!(rows.is_sorted_by(|a, b| a < b));
        assert!(rows.iter().enumerate().all(|(i, &r)| r / 10 == i));
        assert_eq!(sample(5, 9, 1), [0, 1, 2, 3, 4]);
        assert_eq!(rows, sample(1000, 100, 7));
        assert_ne!(rows, sample(1000, 100, 8));
    }
}
