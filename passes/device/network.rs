//! What a network asks of a device, node by node, as an inference engine would run it.

use super::work::Work;
use basisopt_ir::infer::{ConvGeometry, conv_geometry, linear_geometry};
use basisopt_ir::tensor::n_elements;
use basisopt_ir::{DType, Dim, Graph, NodeId, Op, ValueId};
use std::collections::BTreeSet;

/// The work of every node that takes time, in the order in which they run, with the node's label: a graph whose types are
/// inferred and whose sizes are known. With `pairs`, a convolution that only a 1×1 convolution reads is one piece of
/// work with it.
///
/// Engines take bias, normalisation, activation and a residual addition into the layer before them, so these cost
/// nothing by themselves; reshaping costs nothing either. What a convolution in groups takes is that of its groups, one
/// after another.
///
/// # Errors
/// The label of a node some size of which is not known.
pub fn works(graph: &Graph, pairs: bool) -> Result<Vec<(String, Work)>, String> {
    let mut found = Vec::new();
    // Values that come out of a layer which takes in what follows.
    let mut open: BTreeSet<ValueId> = BTreeSet::new();
    let mut done: BTreeSet<NodeId> = BTreeSet::new();
    for id in graph.topological() {
        let node = graph.node(id);
        if node.op.is_source() || done.contains(&id) || is_constant(graph, id) {
            continue;
        }
        let label = node.label();
        let unknown = || label.to_owned();
        let mut add = |work: Work| found.push((label.to_owned(), work));
        if let Some(g) = conv_geometry(graph, id) {
            let second = pairs.then(|| second_of(graph, id, &g)).flatten();
            match second {
                Some((second, n_out)) => {
                    done.insert(second);
                    open.insert(ValueId::of(second));
                    add(pair(&g, n_out).ok_or_else(unknown)?);
                }
                None => {
                    open.insert(ValueId::of(id));
                    conv(&g).ok_or_else(unknown)?.into_iter().for_each(&mut add);
                }
            }
            continue;
        }
        if let Some(g) = linear_geometry(graph, id) {
            open.insert(ValueId::of(id));
            add(Work::Linear { n_in: g.n_in, n_out: g.n_out, n_rows: g.rows.known().ok_or_else(unknown)? });
            continue;
        }
        if is_absorbed(graph, id, &open) {
            open.insert(ValueId::of(id));
            continue;
        }
        let size = |value: ValueId| {
            graph.value(value).ty.static_shape().and_then(|s| n_elements(&s)).ok_or_else(unknown)
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
            op if is_arithmetic(op) => match is_by_channel(graph, id) {
                true => {
                    let (n_channels, output) = image(graph, id).ok_or_else(unknown)?;
                    add(Work::Scale { n_channels, output });
                }
                false => {
                    let n_operands = n_data(graph, id).max(1);
                    add(Work::Map { n_elements: output()?, n_operands });
                }
            },
            _ => {
                let sizes: Result<Vec<usize>, String> = (0..node.outputs.len())
                    .map(|port| size(ValueId { node: id, port: port as u32 }))
                    .collect();
                add(Work::Copy { n_elements: sizes?.iter().sum() });
            }
        }
    }
    Ok(found)
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

/// Whether the layer before takes the node in: it alone reads one of the layers' values, and all else it reads has the
/// same shape or is constant.
fn is_absorbed(graph: &Graph, id: NodeId, open: &BTreeSet<ValueId>) -> bool {
    let fits = match &graph.node(id).op {
        Op::Relu(_) | Op::Clip(_) | Op::LeakyRelu(_) | Op::BatchNormalization(_) => true,
        Op::Add(_) | Op::Sub(_) | Op::Mul(_) => {
            let shape = |v: ValueId| graph.value(v).ty.static_shape();
            graph
                .node_inputs(id)
                .into_iter()
                .flatten()
                .all(|v| graph.constant_value(v).is_some() || shape(v) == shape(ValueId::of(id)))
        }
        _ => false,
    };
    fits && graph
        .node_inputs(id)
        .into_iter()
        .flatten()
        .any(|v| open.contains(&v) && graph.n_readers(v) == 1 && !graph.is_output(v))
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
        let columns = (g.c_out / g.group.max(1)).checked_mul(kernel[0] * kernel[1])?;
        let n_out = g.c_out.checked_mul(two(&known(&g.output)?)?.iter().product())?;
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
    let plain = g.group == 1 && !g.transposed && g.n_spatial <= 2 && g.dtype == Some(DType::F32);
    let [reader] = graph.uses(value)[..] else { return None };
    if !plain || graph.is_output(value) || graph.is_captured(value) {
        return None;
    }
    let h = conv_geometry(graph, reader.node)?;
    let is_second = reader.slot == 0
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

/// Whether a node does the same to all of a channel: a normalisation, or arithmetic with a constant per channel.
fn is_by_channel(graph: &Graph, id: NodeId) -> bool {
    match graph.node(id).op {
        Op::BatchNormalization(_) | Op::InstanceNormalization(_) | Op::PRelu(_) => true,
        Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_) => {
            let constants = graph.node_inputs(id).into_iter().flatten();
            let n_channels = image(graph, id).map(|(n, _)| n);
            constants
                .filter_map(|v| graph.constant_value(v))
                .any(|c| c.len() > 1 && Some(c.len()) == n_channels)
        }
        _ => false,
    }
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
