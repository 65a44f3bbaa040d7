//! What a network asks of a device, node by node, as an inference engine would run it.

use super::DeviceError;
use super::work::Work;
use basisopt_ir::infer::{ConvGeometry, conv_geometry, linear_geometry};
use basisopt_ir::tensor::n_elements;
use basisopt_ir::{DType, Dim, Graph, NodeId, Op, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// What a layer still takes in of what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Epilogue {
    /// A layer of tract's: normalisation, arithmetic and activation, whatever there is of it.
    Any,
    /// A pair as one operator: biases, one addition, then clamps. So far it has seen these.
    Pair { added: bool, clamped: bool },
}

/// The work of every node that takes time, in the order in which they run, with the node's label: a graph whose types are
/// inferred and whose sizes are known. With `pairs`, a convolution that only a 1×1 convolution reads is one piece of
/// work with it.
///
/// Engines take bias, normalisation, activation and a residual addition into the layer before them, so these cost
/// nothing by themselves; reshaping costs nothing either. What a convolution in groups takes is that of its groups, one
/// after another. Operators that are not known count as a copy of their outputs.
///
/// # Errors
/// [`DeviceError::OpenSize`] where a size is not known, [`DeviceError::Unknown`] for control flow and recurrent layers.
pub fn works(graph: &Graph, pairs: bool) -> Result<Vec<(String, Work)>, DeviceError> {
    let batch = batch_of(graph);
    let mut found = Vec::new();
    // Values that come out of a layer which takes in what follows.
    let mut open: BTreeMap<ValueId, Epilogue> = BTreeMap::new();
    let mut done: BTreeSet<NodeId> = BTreeSet::new();
    for id in graph.topological() {
        let node = graph.node(id);
        if node.op.is_source() || done.contains(&id) || is_constant(graph, id) {
            continue;
        }
        let label = node.label();
        let unknown = || DeviceError::OpenSize(label.to_owned());
        let mut add = |work: Work| found.push((label.to_owned(), work));
        if matches!(node.op, Op::Conv(_) | Op::ConvTranspose(_)) {
            let g = conv_geometry(graph, id).ok_or_else(unknown)?;
            match pairs.then(|| second_of(graph, id, &g)).flatten() {
                Some((second, n_out)) => {
                    done.insert(second);
                    open.insert(ValueId::of(second), Epilogue::Pair { added: false, clamped: false });
                    add(pair(&g, n_out).ok_or_else(unknown)?);
                }
                None => {
                    open.insert(ValueId::of(id), Epilogue::Any);
                    conv(&g).ok_or_else(unknown)?.into_iter().for_each(&mut add);
                }
            }
            continue;
        }
        if let Some(g) = linear_geometry(graph, id) {
            open.insert(ValueId::of(id), Epilogue::Any);
            add(Work::Linear { n_in: g.n_in, n_out: g.n_out, n_rows: g.rows.known().ok_or_else(unknown)? });
            continue;
        }
        if let Some(after) = absorbed(graph, id, &open) {
            open.insert(ValueId::of(id), after);
            continue;
        }
        let size = |value: ValueId| {
            let shape = graph.value(value).ty.static_shape().ok_or_else(unknown)?;
            let n = n_elements(&shape).ok_or_else(unknown)?;
            // Per image.
            Ok(if shape.first() == Some(&batch) { n / batch } else { n })
        };
        let output = || size(ValueId::of(id));
        let input = || graph.node_input(id, 0).map_or(Ok(0), size);
        match &node.op {
            Op::Identity(_)
            | Op::Dropout(_)
            | Op::Reshape(_)
            | Op::Flatten(_)
            | Op::Squeeze(_)
            | Op::Unsqueeze(_)
            | Op::Shape(_) => {}
            Op::MaxPool(_) | Op::AveragePool(_) => add(pool(graph, id).ok_or_else(unknown)?),
            Op::GlobalAveragePool(_)
            | Op::GlobalMaxPool(_)
            | Op::ReduceMean(_)
            | Op::ReduceSum(_)
            | Op::ReduceMax(_)
            | Op::ReduceMin(_)
            | Op::ReduceProd(_) => add(Work::Map { n_elements: input()?, n_operands: 1 }),
            Op::Sigmoid(_)
            | Op::Tanh(_)
            | Op::Elu(_)
            | Op::Softplus(_)
            | Op::Gelu(_)
            | Op::Erf(_)
            | Op::Exp(_)
            | Op::Log(_)
            | Op::Pow(_)
            | Op::Softmax(_)
            | Op::LogSoftmax(_) => add(Work::Exp { n_elements: output()? }),
            Op::LRN(lrn) => add(normalisation(graph, id, lrn.size).ok_or_else(unknown)?),
            // Of two values: no constant is one of its operands.
            Op::Gemm(_) | Op::MatMul(_) => add(product(graph, id, output()?).ok_or_else(unknown)?),
            op if is_arithmetic(op) => match by_channel(graph, id) {
                Some((n_channels, output)) => add(Work::Scale { n_channels, output }),
                None => {
                    let n_operands = n_data(graph, id).max(1);
                    add(Work::Map { n_elements: output()?, n_operands });
                }
            },
            op if UNKNOWN.contains(&op.op_type()) => {
                return Err(DeviceError::Unknown {
                    node: label.to_owned(),
                    op_type: op.op_type().to_owned(),
                });
            }
            _ => {
                let ports = (0..node.outputs.len()).map(|port| ValueId { node: id, port: port as u32 });
                let add_up = |n: usize, value| n.checked_add(size(value)?).ok_or_else(unknown);
                add(Work::Copy { n_elements: ports.into_iter().try_fold(0, add_up)? });
            }
        }
    }
    // A tensor without elements takes no time.
    found.retain(|(_, work)| work.macs() > 0);
    match found.iter().find(|(_, work)| !work.is_sound()) {
        Some((label, _)) => Err(DeviceError::OpenSize(label.clone())),
        None => Ok(found),
    }
}

/// Operators that run for as long as their contents say.
const UNKNOWN: [&str; 6] = ["If", "Loop", "Scan", "LSTM", "GRU", "RNN"];

/// Images that the network takes at once.
fn batch_of(graph: &Graph) -> usize {
    let first = graph.inputs().first().map(|&id| &graph.value(ValueId::of(id)).ty);
    let batch = first.and_then(|ty| ty.shape.as_ref()?.first()?.known());
    batch.filter(|&n| n > 0).unwrap_or(1)
}

/// Whether all that a node reads is constant, so that it is gone before anything runs.
fn is_constant(graph: &Graph, id: NodeId) -> bool {
    let mut inputs = graph.node_inputs(id).into_iter().flatten().peekable();
    inputs.peek().is_some() && inputs.all(|v| graph.constant_value(v).is_some())
}

/// Operands that are no constants.
fn n_data(graph: &Graph, id: NodeId) -> usize {
    graph.node_inputs(id).into_iter().flatten().filter(|&v| graph.constant_value(v).is_none()).count()
}

fn is_arithmetic(op: &Op) -> bool {
    matches!(
        op,
        Op::Relu(_)
            | Op::LeakyRelu(_)
            | Op::PRelu(_)
            | Op::Clip(_)
            | Op::HardSwish(_)
            | Op::HardSigmoid(_)
            | Op::BatchNormalization(_)
            | Op::InstanceNormalization(_)
            | Op::Add(_)
            | Op::Sub(_)
            | Op::Mul(_)
            | Op::Div(_)
            | Op::Min(_)
            | Op::Max(_)
            | Op::Sum(_)
            | Op::Mean(_)
            | Op::Neg(_)
            | Op::Abs(_)
            | Op::Sqrt(_)
            | Op::Reciprocal(_)
            | Op::Floor(_)
            | Op::Ceil(_)
            | Op::Equal(_)
            | Op::Greater(_)
            | Op::Less(_)
            | Op::Where(_)
    )
}

/// What the layer before still takes in, if it takes in this node: it alone reads the layer's value, and all else it
/// reads has the same shape or is constant.
fn absorbed(graph: &Graph, id: NodeId, open: &BTreeMap<ValueId, Epilogue>) -> Option<Epilogue> {
    let inputs: Vec<ValueId> = graph.node_inputs(id).into_iter().flatten().collect();
    let is_own = |v: &&ValueId| graph.n_readers(**v) == 1 && !graph.is_output(**v);
    let (_, &before) = inputs.iter().filter(is_own).find_map(|v| open.get_key_value(v))?;
    let shape = |v: ValueId| graph.value(v).ty.static_shape();
    let fits = |&v: &ValueId| graph.constant_value(v).is_some() || shape(v) == shape(ValueId::of(id));
    let op = &graph.node(id).op;
    match before {
        Epilogue::Any => match op {
            Op::Relu(_) | Op::Clip(_) | Op::LeakyRelu(_) | Op::BatchNormalization(_) => Some(before),
            Op::Add(_) | Op::Sub(_) | Op::Mul(_) => inputs.iter().all(fits).then_some(before),
            _ => None,
        },
        Epilogue::Pair { added, clamped } => match op {
            Op::Relu(_) | Op::Clip(_) => Some(Epilogue::Pair { added, clamped: true }),
            Op::Add(_) if !clamped && inputs.iter().all(fits) => match n_data(graph, id) {
                1 => by_channel(graph, id).map(|_| before),
                _ => (!added).then_some(Epilogue::Pair { added: true, clamped }),
            },
            _ => None,
        },
    }
}

/// Sizes along two axes; signals have height 1.
fn two(sizes: &[usize]) -> Option<[usize; 2]> {
    match *sizes {
        [width] => Some([1, width]),
        [height, width] => Some([height, width]),
        // Depth is more height.
        [depth, height, width] => Some([depth.checked_mul(height)?, width]),
        _ => None,
    }
}

fn known(dims: &[Dim]) -> Option<Vec<usize>> {
    dims.iter().map(Dim::known).collect()
}

fn conv(g: &ConvGeometry) -> Option<Vec<Work>> {
    let (kernel, strides) = (two(&g.kernel)?, two(&g.strides)?);
    if g.transposed {
        // A product with every position of the input, and sums over what overlaps.
        let input = two(&known(&g.input)?)?;
        let columns = (g.c_out / g.group.max(1)).checked_mul(n_elements(&kernel)?)?;
        let output = two(&known(&g.output)?)?;
        let n_out = g.c_out.checked_mul(n_elements(&output)?)?;
        let product = Work::Conv {
            kernel: [1, 1],
            strides: [1, 1],
            n_in: g.c_in / g.group.max(1),
            n_out: columns,
            output: input,
        };
        return Some([vec![product; g.group.max(1)], vec![Work::Copy { n_elements: n_out }]].concat());
    }
    let output = two(&known(&g.output)?)?;
    Some(match g.group {
        0 | 1 => vec![Work::Conv { kernel, strides, n_in: g.c_in, n_out: g.c_out, output }],
        n if n == g.c_in => vec![Work::Depthwise { kernel, strides, n_channels: g.c_out, output }],
        n => vec![Work::Conv { kernel, strides, n_in: g.c_in / n, n_out: g.c_out / n, output }; n],
    })
}

/// The 1×1 convolution that runs as one with this one, and its output channels.
fn second_of(graph: &Graph, id: NodeId, g: &ConvGeometry) -> Option<(NodeId, usize)> {
    let value = ValueId::of(id);
    let is_constant = |id| graph.constant_input(id, 1).is_some();
    let plain = g.group == 1
        && !g.transposed
        // tract makes a product and a sum of a 1×1 convolution with a bias.
        && (!g.is_pointwise() || g.n_spatial == 2 && !g.has_bias)
        && g.n_spatial <= 2
        && g.dtype == Some(DType::F32)
        && is_constant(id);
    let [reader] = graph.uses(value)[..] else { return None };
    if !plain || graph.is_output(value) || graph.is_captured(value) {
        return None;
    }
    let h = conv_geometry(graph, reader.node)?;
    let is_second = reader.slot == 0
        && is_constant(reader.node)
        && h.is_pointwise()
        && h.group == 1
        && !h.transposed
        && h.strides.iter().all(|&s| s == 1)
        && h.pads?.iter().all(|&p| p == (0, 0));
    is_second.then_some((reader.node, h.c_out))
}

fn pair(g: &ConvGeometry, n_out: usize) -> Option<Work> {
    Some(Work::Pair {
        kernel: two(&g.kernel)?,
        strides: two(&g.strides)?,
        n_in: g.c_in,
        rank: g.c_out,
        n_out,
        output: two(&known(&g.output)?)?,
    })
}

fn pool(graph: &Graph, id: NodeId) -> Option<Work> {
    let (kernel, strides) = match &graph.node(id).op {
        Op::MaxPool(p) => (p.kernel_shape.clone(), p.strides.clone()),
        Op::AveragePool(p) => (p.kernel_shape.clone(), p.strides.clone()),
        _ => return None,
    };
    let unsigned = |sizes: Vec<i64>| -> Option<Vec<usize>> {
        sizes.into_iter().map(|s| usize::try_from(s).ok()).collect()
    };
    let kernel = two(&unsigned(kernel)?)?;
    let (n_channels, output) = image(graph, id)?;
    Some(Work::Pool { kernel, strides: two(&unsigned(strides)?).unwrap_or([1, 1]), n_channels, output })
}

/// Channels and size of the image that a node makes.
fn image(graph: &Graph, id: NodeId) -> Option<(usize, [usize; 2])> {
    let shape = graph.value(ValueId::of(id)).ty.static_shape()?;
    let (&n_channels, output) = shape.get(1).zip(shape.get(2..))?;
    Some((n_channels, if output.is_empty() { [1, 1] } else { two(output)? }))
}

fn normalisation(graph: &Graph, id: NodeId, size: i64) -> Option<Work> {
    let (n_channels, output) = image(graph, id)?;
    Some(Work::Lrn { n_channels, size: usize::try_from(size).ok()?, output })
}

/// Channels and size of the image, if a node does the same to all of a channel: a normalisation, or arithmetic with a
/// constant per channel.
fn by_channel(graph: &Graph, id: NodeId) -> Option<(usize, [usize; 2])> {
    let (n_channels, output) = image(graph, id)?;
    let is_by_channel = match graph.node(id).op {
        Op::BatchNormalization(_) | Op::InstanceNormalization(_) | Op::PRelu(_) => true,
        Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_) => {
            let constants = graph.node_inputs(id).into_iter().flatten();
            constants.filter_map(|v| graph.constant_value(v)).any(|c| c.len() > 1 && c.len() == n_channels)
        }
        _ => false,
    };
    is_by_channel.then_some((n_channels, output))
}

/// A product of two values, `[…, m, k]` by `[…, k, n]`.
fn product(graph: &Graph, id: NodeId, n_outputs: usize) -> Option<Work> {
    let first = graph.value(graph.node_input(id, 0)?).ty.static_shape()?;
    let n_out = *graph.value(ValueId::of(id)).ty.static_shape()?.last()?;
    let n_in = match &graph.node(id).op {
        Op::Gemm(gemm) if gemm.transA != 0 => *first.first()?,
        _ => *first.last()?,
    };
    Some(Work::Linear { n_in, n_out, n_rows: (n_outputs / n_out.max(1)).max(1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, pairs: bool) -> Vec<Work> {
        let mut graph = basisopt_ir::parse::parse(text).unwrap();
        basisopt_ir::infer::infer(&mut graph).unwrap();
        works(&graph, pairs).unwrap().into_iter().map(|(_, work)| work).collect()
    }

    #[test]
    fn layers_take_in_what_follows_and_pairs_are_one() {
        let text = "graph @g(%x: f32[1,8,6,6]) -> (%y) {
          %q = f32[3,8,3,3] randn(seed=1)
          %c = f32[8,3,1,1] randn(seed=2)
          %d = f32[8,1,3,3] randn(seed=3)
          %g = f32[8,4,3,3] randn(seed=4)
          %z = Conv<pads=[1,1,1,1]>(%x, %q)
          %a = Conv(%z, %c)
          %b = Add(%a, %x)
          %r = Relu(%b)
          %e = Conv<group=8, pads=[1,1,1,1], strides=[2,2]>(%r, %d)
          %f = Conv<group=2, pads=[1,1,1,1]>(%e, %g)
          %s = Sigmoid(%f)
          %t = Mul(%f, %s)
          %u = Concat<axis=1>(%t, %f)
          %y = Flatten(%u)
        }";
        let ([one, two], [small, large]) = ([[1, 1], [2, 2]], [[3, 3], [6, 6]]);
        let kernel = [3, 3];
        let group = Work::Conv { kernel, strides: one, n_in: 4, n_out: 4, output: small };
        let rest = [
            Work::Depthwise { kernel, strides: two, n_channels: 8, output: small },
            group.clone(),
            group,
            Work::Exp { n_elements: 72 },
            // Others read the convolution as well, so it cannot take the product in.
            Work::Map { n_elements: 72, n_operands: 2 },
            Work::Copy { n_elements: 144 },
        ];
        let pair = Work::Pair { kernel, strides: one, n_in: 8, rank: 3, n_out: 8, output: large };
        assert_eq!(of(text, true), [&[pair][..], &rest].concat());
        let stock = [
            Work::Conv { kernel, strides: one, n_in: 8, n_out: 3, output: large },
            Work::Conv { kernel: one, strides: one, n_in: 3, n_out: 8, output: large },
        ];
        assert_eq!(of(text, false), [&stock[..], &rest].concat());
    }

    #[test]
    fn a_pair_takes_in_what_the_operator_does_and_no_more() {
        let text = "graph @g(%x: f32[2,4,6,6]) -> (%y) {
          %q = f32[3,4,3,3] randn(seed=1)
          %c = f32[4,3,1,1] randn(seed=2)
          %v = f32[4,1,1] randn(seed=3)
          %z = Conv<pads=[1,1,1,1]>(%x, %q)
          %a = Conv(%z, %c)
          %b = Add(%a, %v)
          %r = Add(%b, %x)
          %s = Add(%r, %x)
          %t = LeakyRelu(%s)
          %y = MatMul(%t, %x)
        }";
        let strides = [1, 1];
        let pair = Work::Pair { kernel: [3, 3], strides, n_in: 4, rank: 3, n_out: 4, output: [6, 6] };
        let rest = [
            // The second image to be added, and the leak; per image, not per batch.
            Work::Map { n_elements: 144, n_operands: 2 },
            Work::Map { n_elements: 144, n_operands: 1 },
            Work::Linear { n_in: 6, n_out: 6, n_rows: 24 },
        ];
        assert_eq!(of(text, true), [&[pair][..], &rest].concat());
        // Two convolutions take all of it in.
        assert_eq!(of(text, false)[2..], rest[2..]);
    }

    #[test]
    fn what_cannot_be_predicted_is_named() {
        let error = |text: &str| {
            let graph = basisopt_ir::parse::parse(text).unwrap();
            works(&graph, true).unwrap_err().to_string()
        };
        let open = "graph @g(%x: f32[1,3,H,8]) -> (%y) {\n  %y = Sigmoid@here(%x)\n}";
        assert!(error(open).contains("\"here\" cannot be predicted: a size"));
        let recurrent = "graph @g(%x: f32[1,3,8]) -> (%y) {\n  %y = LSTM@here(%x)\n}";
        assert!(error(recurrent).contains("LSTM is nothing that a profile knows"));
        let huge = "graph @g(%x: f32[4611686018427387904,4]) -> (%y) {\n  %y = Sigmoid(%x)\n}";
        assert!(error(huge).contains("a size"));
    }

    #[test]
    fn normalisations_that_no_layer_takes_in_are_work() {
        let text = "graph @g(%x: f32[1,4,6,6]) -> (%y) {
          %s = f32[4] uniform(0.5, 1.5, seed=1)
          %v = f32[4,1,1] randn(seed=2)
          %w = f32[2,2] randn(seed=3)
          %a = BatchNormalization(%x, %s, %s, %s, %s)
          %b = Mul(%a, %v)
          %p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(%b)
          %n = LRN<size=5>(%p)
          %y = Transpose<perm=[0,2,3,1]>(%n)
        }";
        let (n_channels, large, small) = (4, [6, 6], [3, 3]);
        assert_eq!(
            of(text, true),
            [
                Work::Scale { n_channels, output: large },
                Work::Scale { n_channels, output: large },
                Work::Pool { kernel: [2, 2], strides: [2, 2], n_channels, output: small },
                Work::Lrn { n_channels, size: 5, output: small },
                Work::Copy { n_elements: 36 },
            ]
        );
    }
}
