//! Brings a network to a newer operator set.
//!
//! Between opset 6 and 18 ONNX moved attributes to inputs (`Clip`, `Pad`, `Slice`, reductions, …), let `Softmax` look at
//! one axis only and replaced `Upsample` by `Resize`. Operators of the table are written in their newer form; others are
//! let through if they mean the same in both, and refused if not. A network that is new enough is left alone.

use super::{OPSET, Obstacle, words};
use crate::dropout::drops;
use basisopt_ir::op::{self, Op};
use basisopt_ir::{DType, Graph, Node, NodeId, Operand, Rewrite, RewriteError, Tensor, ValueId};

/// Operators outside the table that mean the same in every operator set from this one on.
const UNCHANGED: &[(&str, i64)] = &[
    ("And", 7),
    ("Cos", 7),
    ("CumSum", 11),
    ("DequantizeLinear", 10),
    ("GRU", 7),
    ("GatherElements", 11),
    ("GatherND", 11),
    ("GreaterOrEqual", 12),
    ("LSTM", 7),
    ("LessOrEqual", 12),
    ("Mod", 10),
    ("NonMaxSuppression", 10),
    ("NonZero", 9),
    ("Not", 6),
    ("OneHot", 9),
    ("Or", 7),
    ("QuantizeLinear", 10),
    ("Range", 11),
    ("Round", 11),
    ("ScatterElements", 11),
    ("ScatterND", 11),
    ("Sign", 9),
    ("Sin", 7),
    ("Softsign", 6),
    ("TopK", 11),
];

/// Why a network cannot be brought to a newer operator set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RaiseError {
    /// Nodes that have no form there, or whose sizes are not known: all of them.
    #[error("the network is of operator set {from}, and these nodes cannot be brought to {OPSET}: {}", words(.nodes))]
    Nodes {
        /// Version of the network.
        from: i64,
        /// The nodes.
        nodes: Vec<Obstacle>,
    },
    /// A replacement was impossible; a bug.
    #[error("node {node:?}: {source}")]
    Rewrite {
        /// Label of the node.
        node: String,
        /// What about it.
        source: RewriteError,
    },
}

/// What becomes of a node.
enum Newer {
    /// It stays.
    Same,
    /// It has no form there.
    None(&'static str),
    /// Nodes that take its place.
    By(Rewrite),
    /// A `Split`, which has several outputs: another node with its outputs.
    Split(op::Split, Option<Vec<i64>>),
}

/// The first version with `Gelu`: text may have it in a graph that names an older one.
const GELU: i64 = 20;

/// Brings a graph whose types are inferred to [`OPSET`], if it is older, or to what its operators need. Values keep their
/// names.
///
/// # Errors
/// [`RaiseError`], naming every node that is in the way; the graph may then be half changed.
pub fn raise(graph: &mut Graph) -> Result<(), RaiseError> {
    let from = graph.opset;
    let has_gelu = graph.node_ids().any(|id| matches!(graph.node(id).op, Op::Gelu(_)));
    let to = if has_gelu { GELU } else { OPSET };
    if from >= to || from == 0 {
        return Ok(());
    }
    let mut nodes = Vec::new();
    // What goes is the node at hand and constants before it: freed ids are behind us when they are used again.
    for id in graph.topological() {
        let node = graph.node(id);
        let (label, op) = (node.label().to_owned(), node.op.clone());
        let failed = |source| RaiseError::Rewrite { node: label.clone(), source };
        match newer(graph, id, &op) {
            Newer::Same => {}
            Newer::None(reason) => {
                nodes.push(Obstacle { node: label, op: op.op_type().to_owned(), reason: reason.to_owned() });
            }
            Newer::By(rewrite) => rewrite.apply(graph).map_err(failed)?,
            Newer::Split(op, sizes) => split(graph, id, op, sizes),
        }
    }
    if !nodes.is_empty() {
        return Err(RaiseError::Nodes { from, nodes });
    }
    graph.opset = to;
    Ok(())
}

/// Makes a node with the outputs of another, which goes.
fn split(graph: &mut Graph, id: NodeId, op: op::Split, sizes: Option<Vec<i64>>) {
    let old = graph.node(id).clone();
    let mut inputs = vec![graph.node_input(id, 0)];
    if let Some(sizes) = sizes {
        let name = graph.unused_value_name(&format!("{}.sizes", old.label()));
        inputs.push(Some(graph.add_constant(name, ints(&sizes))));
    }
    let mut outputs = old.outputs.clone();
    for value in outputs.iter_mut().filter(|v| !v.name.is_empty()) {
        value.name = graph.unused_value_name(&format!("{}.newer", value.name));
    }
    let new = graph.add_node(Node::new(old.name, op.into(), outputs), &inputs);
    for (port, value) in old.outputs.iter().enumerate().filter(|(_, v)| !v.name.is_empty()) {
        let at = |node| ValueId { node, port: port as u32 };
        graph.replace_uses(at(id), at(new));
        let aside = graph.unused_value_name(&format!("{}.older", value.name));
        graph.rename(at(id), aside);
        graph.rename(at(new), value.name.clone());
    }
    graph.remove_node(id);
}

fn ints(values: &[i64]) -> Tensor {
    let n = values.len();
    Tensor::from_i64s(vec![n], values).unwrap_or_else(|_| Tensor::elided(DType::I64, vec![n], 0.0))
}

fn number(value: f64, dtype: DType) -> Tensor {
    Tensor::full(dtype, vec![], value).unwrap_or_else(|_| Tensor::elided(dtype, vec![], value))
}

/// A node to be written anew.
struct Writer<'g> {
    graph: &'g Graph,
    id: NodeId,
    label: String,
    inputs: Vec<Operand>,
    rewrite: Rewrite,
}

impl<'g> Writer<'g> {
    fn new(graph: &'g Graph, id: NodeId) -> Self {
        let operand = |v: Option<ValueId>| v.map_or(Operand::Omitted, Operand::Existing);
        Self {
            graph,
            id,
            label: graph.node(id).label().to_owned(),
            inputs: graph.node_inputs(id).into_iter().map(operand).collect(),
            rewrite: Rewrite::at(id),
        }
    }

    fn input(&self, slot: usize) -> Operand {
        self.inputs.get(slot).copied().unwrap_or(Operand::Omitted)
    }

    fn constant(&mut self, what: &str, tensor: Tensor) -> Operand {
        self.rewrite.constant(format!("{}.{what}", self.label), tensor)
    }

    fn ints(&mut self, what: &str, values: &[i64]) -> Operand {
        self.constant(what, ints(values))
    }

    /// The shape of the second operand whose axes begin at this one of the first, aligned at the end.
    fn aligned(&self, axis: i64) -> Option<Vec<i64>> {
        let shape = |slot| self.graph.value(self.graph.node_input(self.id, slot)?).ty.shape.clone();
        let (l, r) = (shape(0)?, shape(1)?);
        let axis = usize::try_from(if axis < 0 { axis + l.len() as i64 } else { axis }).ok()?;
        let behind = l.len().checked_sub(axis + r.len())?;
        let mut shape =
            r.iter().map(|d| d.known().and_then(|d| i64::try_from(d).ok())).collect::<Option<Vec<_>>>()?;
        shape.extend(vec![1; behind]);
        Some(shape)
    }

    /// The node with this operator and these inputs.
    fn by(mut self, op: impl Into<Op>, inputs: &[Operand]) -> Newer {
        let new = self.rewrite.node(self.label.clone(), op, inputs);
        self.done(new)
    }

    fn done(mut self, new: Operand) -> Newer {
        let read = |p: usize| self.graph.n_readers(ValueId { node: self.id, port: p as u32 }) > 0;
        if (1..self.graph.node(self.id).outputs.len()).any(read) {
            return Newer::None("its second output is read");
        }
        self.rewrite.replace(ValueId::of(self.id), new);
        Newer::By(self.rewrite)
    }
}

/// An operator whose axes come as an input.
macro_rules! with_axes_as_input {
    ($w:ident, $op:ident) => {
        match $op.axes.clone() {
            None => Newer::Same,
            Some(axes) => {
                let mut op = $op.clone();
                op.axes = None;
                let (x, axes) = ($w.input(0), $w.ints("axes", &axes));
                $w.by(op, &[x, axes])
            }
        }
    };
}

/// An operator without the attributes that opset 6 had for broadcasting: operands align at the end now.
macro_rules! without_legacy {
    ($w:ident, $op:ident) => {
        match ($op.axis, $op.broadcast) {
            (None, None) => Newer::Same,
            (axis, _) => {
                let mut op = $op.clone();
                (op.axis, op.broadcast) = (None, None);
                match axis.map(|a| $w.aligned(a)) {
                    None => {
                        let (l, r) = ($w.input(0), $w.input(1));
                        $w.by(op, &[l, r])
                    }
                    Some(Some(shape)) => {
                        let shape = $w.ints("shape", &shape);
                        let (l, r, name) = ($w.input(0), $w.input(1), format!("{}.aligned", $w.label));
                        let r = $w.rewrite.node(name, op::Reshape::default(), &[r, shape]);
                        $w.by(op, &[l, r])
                    }
                    Some(None) => Newer::None("its operands' sizes are not known"),
                }
            }
        }
    };
}

/// The form of a node in the newer operator set. Every form is valid from the version in which it came on, up to
/// [`super::OPSET`]; an attribute that is there says that the node is in the older one.
fn newer(graph: &Graph, id: NodeId, op: &Op) -> Newer {
    let mut w = Writer::new(graph, id);
    let x = w.input(0);
    match op {
        Op::Opaque(opaque) if !opaque.domain.is_empty() => Newer::Same,
        Op::Opaque(opaque) => match UNCHANGED.iter().find(|(name, _)| *name == opaque.op_type) {
            Some((_, since)) if graph.opset >= *since => Newer::Same,
            _ => Newer::None("not known to mean the same there"),
        },
        // 7
        Op::Add(op) => without_legacy!(w, op),
        Op::Sub(op) => without_legacy!(w, op),
        Op::Mul(op) => without_legacy!(w, op),
        Op::Div(op) => without_legacy!(w, op),
        Op::Pow(op) => without_legacy!(w, op),
        Op::Equal(op) => without_legacy!(w, op),
        Op::Greater(op) => without_legacy!(w, op),
        Op::Less(op) => without_legacy!(w, op),
        Op::Gemm(op) if op.broadcast.is_some() => {
            let inputs = w.inputs.clone();
            w.by(op::Gemm { broadcast: None, ..op.clone() }, &inputs)
        }
        // 9
        Op::BatchNormalization(op) if op.spatial == 0 => Newer::None("statistics by position"),
        Op::BatchNormalization(op) if graph.opset < 14 => {
            let inputs = w.inputs.clone();
            let op =
                op::BatchNormalization { epsilon: op.epsilon, momentum: op.momentum, ..Default::default() };
            w.by(op, &inputs)
        }
        Op::InstanceNormalization(op) if op.consumed_inputs.is_some() => {
            let inputs = w.inputs.clone();
            w.by(op::InstanceNormalization { epsilon: op.epsilon, consumed_inputs: None }, &inputs)
        }
        // 10
        Op::Upsample(op) => {
            let scales = match &op.scales {
                None => w.input(1),
                Some(scales) => match Tensor::from_f32s(vec![scales.len()], scales) {
                    Ok(scales) => w.constant("scales", scales),
                    Err(_) => return Newer::None("its scales"),
                },
            };
            w.by(resize_of_old(&op.mode), &[x, Operand::Omitted, scales])
        }
        Op::Slice(op) => slice(w, op),
        // 11
        Op::Resize(op) if graph.opset < 11 => {
            let scales = w.input(1);
            w.by(resize_of_old(&op.mode), &[x, Operand::Omitted, scales])
        }
        Op::Clip(op) if op.min.is_some() || op.max.is_some() => {
            let dtype = graph.value(ValueId::of(id)).ty.dtype.unwrap_or(DType::F32);
            let mut bound = |what: &str, v: Option<f32>| match v {
                None => Operand::Omitted,
                Some(v) => w.constant(what, number(f64::from(v), dtype)),
            };
            let (min, max) = (bound("min", op.min), bound("max", op.max));
            w.by(op::Clip::default(), &[x, min, max])
        }
        Op::Pad(op) => match op.pads.as_ref().or(op.paddings.as_ref()) {
            None => Newer::Same,
            Some(pads) => {
                let dtype = graph.value(ValueId::of(id)).ty.dtype.unwrap_or(DType::F32);
                let pads = w.ints("pads", pads);
                let value = w.constant("value", number(f64::from(op.value), dtype));
                w.by(op::Pad { mode: op.mode.clone(), ..op::Pad::default() }, &[x, pads, value])
            }
        },
        // 12
        Op::Dropout(_) if graph.opset < 12 => match drops(graph, id) {
            None => w.by(op::Identity {}, &[x]),
            Some(how) => Newer::None(how.trim_start()),
        },
        // 13
        Op::Squeeze(op) => with_axes_as_input!(w, op),
        Op::Unsqueeze(op) => with_axes_as_input!(w, op),
        Op::ReduceSum(op) => with_axes_as_input!(w, op),
        Op::Softmax(op) if graph.opset < 13 => softmax(w, op.axis, |axis| op::Softmax { axis }.into()),
        Op::LogSoftmax(op) if graph.opset < 13 => softmax(w, op.axis, |axis| op::LogSoftmax { axis }.into()),
        // 13 and 18
        Op::Split(op) => {
            let has_sizes = op.split.is_some() || matches!(w.input(1), Operand::Existing(_));
            let n_outputs = graph.node(id).outputs.len() as i64;
            match (has_sizes, &op.split) {
                (true, None) => Newer::Same,
                (true, sizes) => {
                    Newer::Split(op::Split { axis: op.axis, ..op::Split::default() }, sizes.clone())
                }
                (false, _) => {
                    let op = op::Split { axis: op.axis, num_outputs: Some(n_outputs), split: None };
                    Newer::Split(op, None)
                }
            }
        }
        // 18
        Op::ReduceMean(op) => with_axes_as_input!(w, op),
        Op::ReduceMax(op) => with_axes_as_input!(w, op),
        Op::ReduceMin(op) => with_axes_as_input!(w, op),
        Op::ReduceProd(op) => with_axes_as_input!(w, op),
        Op::ReduceL2(op) => with_axes_as_input!(w, op),
        _ => Newer::Same,
    }
}

/// What operators before opset 11 did.
fn resize_of_old(mode: &str) -> op::Resize {
    op::Resize {
        coordinate_transformation_mode: "asymmetric".to_owned(),
        nearest_mode: "floor".to_owned(),
        mode: mode.to_owned(),
        ..op::Resize::default()
    }
}

/// Bounds that were attributes.
fn slice(mut w: Writer<'_>, op: &op::Slice) -> Newer {
    let (Some(starts), Some(ends)) = (&op.starts, &op.ends) else { return Newer::Same };
    let x = w.input(0);
    let (starts, ends) = (w.ints("starts", starts), w.ints("ends", ends));
    match &op.axes {
        None => w.by(op::Slice::default(), &[x, starts, ends]),
        Some(axes) => {
            let axes = w.ints("axes", axes);
            w.by(op::Slice::default(), &[x, starts, ends, axes])
        }
    }
}

/// Before opset 13 all axes from the given one on were one. Where only that one is longer than 1 it is the same as now,
/// elsewhere they become one for the time being.
fn softmax(mut w: Writer<'_>, axis: Option<i64>, op: impl Fn(Option<i64>) -> Op) -> Newer {
    let x = w.input(0);
    let shape = w.graph.value(ValueId::of(w.id)).ty.shape.clone();
    let Some(shape) = shape else { return Newer::None("the rank of its input is not known") };
    let axis = axis.unwrap_or(1);
    let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
    let behind = usize::try_from(axis).ok().and_then(|a| shape.get(a + 1..));
    if behind.is_some_and(|dims| dims.iter().all(|d| d.known() == Some(1))) {
        return w.by(op(Some(axis)), &[x]);
    }
    let label = w.label.clone();
    let rows = w.rewrite.node(format!("{label}.rows"), op::Flatten { axis }, &[x]);
    let soft = w.rewrite.node(format!("{label}.soft"), op(Some(-1)), &[rows]);
    let sizes = w.rewrite.node(format!("{label}.sizes"), op::Shape::default(), &[x]);
    w.by(op::Reshape::default(), &[soft, sizes])
}
