//! The numbered invariants of a [`Graph`], and the verifier that checks them all.
//!
//! | | invariant |
//! |---|---|
//! | V1 | every edge reads an existing port of an existing node, and each slot has at most one |
//! | V2 | the data flow has no cycle |
//! | V3 | value names are unique, and empty only on optional outputs that nothing reads |
//! | V4 | modelled operators have the inputs and outputs that their ONNX signature asks for |
//! | V5 | graph outputs exist and have names |
//! | V6 | the type noted on a constant is that of its tensor |
//! | V7 | element types agree where the operator demands it |
//! | V8 | shapes and attributes agree where both are known |
//! | V9 | the type noted on a value does not contradict the one that its operator gives it |
//! | V10 | `Op::Input` nodes are exactly the graph's inputs, each once, and read nothing |
//! | V11 | what a control-flow body captures is a slot that reads a named value |
//!
//! The invariants are about the graph, not about the numbers in it: a NaN among the weights is the
//! business of the pass that meets it. Names of nodes may be empty or repeat, as in ONNX.
//!
//! V7 to V9 are the rules of [`crate::infer`], applied without changing anything; they are skipped
//! while the structure (V1, V2, V4) is broken, because nothing can be inferred along a wrong edge.

use crate::graph::{Graph, Node, NodeId, ValueId, ValueType};
use crate::infer::{self, Fault};
use crate::op::Op;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Deref;

/// One broken invariant.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Violation {
    /// Number of the invariant in the table of [this module](self): 8 for V8.
    pub invariant: u8,
    /// The node it is about, if it is about one.
    pub node: Option<NodeId>,
    /// The value it is about, if it is about one.
    pub value: Option<ValueId>,
    /// The node or value in words: `Conv node "conv1"`, `value "x"`.
    pub subject: String,
    /// What was expected and what was found.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "V{} {}: {}", self.invariant, self.subject, self.message)
    }
}

/// All broken invariants of a graph, by number; never empty when returned by [`verify`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Violations(Vec<Violation>);

impl Violations {
    fn node(&mut self, invariant: u8, graph: &Graph, id: NodeId, message: String) {
        let subject = graph.get(id).map_or_else(|| format!("node {id}"), node_words);
        self.0.push(Violation { invariant, node: Some(id), value: None, subject, message });
    }

    fn value(&mut self, invariant: u8, graph: &Graph, id: ValueId, message: String) {
        let named = graph.get(id.node).and_then(|n| n.outputs.get(id.port as usize));
        let subject = match named {
            Some(v) if !v.name.is_empty() => format!("value {:?}", v.name),
            _ => format!("value {id}"),
        };
        self.0.push(Violation { invariant, node: Some(id.node), value: Some(id), subject, message });
    }

    fn graph(&mut self, invariant: u8, message: String) {
        self.0.push(Violation { invariant, node: None, value: None, subject: "the graph".into(), message });
    }
}

impl Deref for Violations {
    type Target = [Violation];

    fn deref(&self) -> &[Violation] {
        &self.0
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} violation{}", self.len(), if self.len() == 1 { "" } else { "s" })?;
        self.iter().try_for_each(|v| write!(f, "\n{v}"))
    }
}

impl std::error::Error for Violations {}

/// `Conv node "conv1"`: how messages name a node.
pub(crate) fn node_words(node: &Node) -> String {
    format!("{} node {:?}", node.op.op_type(), node.label())
}

/// Checks every invariant of this module.
///
/// # Errors
/// All [`Violations`], not only the first.
pub fn verify(graph: &Graph) -> Result<(), Violations> {
    let mut found = Violations::default();
    edges(graph, &mut found);
    acyclic(graph, &mut found);
    names(graph, &mut found);
    arities(graph, &mut found);
    outputs(graph, &mut found);
    constants(graph, &mut found);
    if !found.iter().any(|v| matches!(v.invariant, 1 | 2 | 4)) {
        types(graph, &mut found);
    }
    inputs(graph, &mut found);
    captures(graph, &mut found);
    if found.is_empty() { Ok(()) } else { Err(found) }
}

/// V1.
fn edges(graph: &Graph, found: &mut Violations) {
    let mut filled = BTreeSet::new();
    for (value, at) in graph.wires() {
        let Some(node) = graph.get(at.node) else { continue };
        if graph.get(value.node).is_none_or(|n| value.port as usize >= n.outputs.len()) {
            found.node(1, graph, at.node, format!("slot {} reads {value}, which does not exist", at.slot));
        }
        if at.slot >= node.n_slots {
            let message = format!("an edge ends in slot {}, but there are {} slots", at.slot, node.n_slots);
            found.node(1, graph, at.node, message);
        }
        if !filled.insert(at) {
            found.node(1, graph, at.node, format!("slot {} has more than one edge", at.slot));
        }
    }
}

/// V2.
fn acyclic(graph: &Graph, found: &mut Violations) {
    let ordered: BTreeSet<NodeId> = graph.topological().into_iter().collect();
    let Some(start) = graph.node_ids().find(|id| !ordered.contains(id)) else { return };
    // Every node left out has an input that is left out: walking up must come round again.
    let mut trail = vec![start];
    let mut seen = BTreeMap::from([(start, 0)]);
    let mut at = start;
    while let Some(up) = graph.node_inputs(at).into_iter().flatten().find(|v| !ordered.contains(&v.node)) {
        at = up.node;
        if let Some(&first) = seen.get(&at) {
            trail.drain(..first);
            break;
        }
        seen.insert(at, trail.len());
        trail.push(at);
    }
    let labels: Vec<String> =
        trail.iter().rev().take(8).map(|&id| format!("{:?}", graph.node(id).label())).collect();
    let more = if trail.len() > 8 { " -> …" } else { "" };
    found.graph(2, format!("a cycle of {} nodes: {}{more}", trail.len(), labels.join(" -> ")));
}

/// V3.
fn names(graph: &Graph, found: &mut Violations) {
    let read: BTreeSet<ValueId> = graph.wires().map(|(v, _)| v).collect();
    let mut owners: BTreeMap<&str, ValueId> = BTreeMap::new();
    for id in graph.node_ids() {
        let node = graph.node(id);
        // Anybody's outputs may be optional but a modelled operator's first.
        let first_needs_name = !matches!(node.op, Op::Opaque(_) | Op::Split(_));
        for (port, v) in node.outputs.iter().enumerate() {
            let value = ValueId { node: id, port: port as u32 };
            if v.name.is_empty() {
                if read.contains(&value) {
                    found.value(3, graph, value, "it is read, but has no name".into());
                } else if port == 0 && first_needs_name {
                    let message = format!("the output of {} has no name", node_words(node));
                    found.value(3, graph, value, message);
                }
            } else if let Some(other) = owners.insert(&v.name, value) {
                let message = format!(
                    "{} and {} both bear this name",
                    node_words(graph.node(other.node)),
                    node_words(node)
                );
                found.value(3, graph, value, message);
            }
        }
    }
}

/// V4.
fn arities(graph: &Graph, found: &mut Violations) {
    for id in graph.node_ids() {
        let node = graph.node(id);
        let Some(arity) = arity(&node.op) else { continue };
        let slots = graph.node_inputs(id);
        // Empty slots at the end say nothing.
        let n_given = slots.iter().rposition(Option::is_some).map_or(0, |i| i + 1);
        if n_given > arity.inputs.1 {
            let message = format!("takes {} inputs, found {n_given}", range(arity.inputs));
            found.node(4, graph, id, message);
        }
        for slot in (0..arity.inputs.0).filter(|&s| slots.get(s).is_none_or(Option::is_none)) {
            let message = format!("input {slot} of {} is missing", range(arity.inputs));
            found.node(4, graph, id, message);
        }
        let n_outputs = node.outputs.len();
        if n_outputs < arity.outputs.0 || n_outputs > arity.outputs.1 {
            let message = format!("gives {} outputs, found {n_outputs}", range(arity.outputs));
            found.node(4, graph, id, message);
        }
    }
}

/// V5.
fn outputs(graph: &Graph, found: &mut Violations) {
    for (i, &output) in graph.outputs().iter().enumerate() {
        match graph.get(output.node).and_then(|n| n.outputs.get(output.port as usize)) {
            None => found.graph(5, format!("graph output {i} is {output}, which does not exist")),
            Some(v) if v.name.is_empty() => {
                found.value(5, graph, output, format!("graph output {i} has no name"));
            }
            Some(_) => {}
        }
    }
}

/// V6.
fn constants(graph: &Graph, found: &mut Violations) {
    for id in graph.node_ids() {
        let node = graph.node(id);
        let (Op::Constant(tensor), Some(v)) = (&node.op, node.outputs.first()) else { continue };
        let held = ValueType::fixed(tensor.dtype(), tensor.shape());
        if v.ty != held {
            let (noted, held) = (infer::type_words(&v.ty), infer::type_words(&held));
            let message = format!("it is noted as {noted}, but its tensor is {held}");
            found.value(6, graph, ValueId::of(id), message);
        }
    }
}

/// V7, V8, V9.
fn types(graph: &Graph, found: &mut Violations) {
    let analysis = infer::analyse(graph);
    for error in &analysis.errors {
        let invariant = if error.fault == Fault::ElementType { 7 } else { 8 };
        found.node(invariant, graph, error.node, error.message.clone());
    }
    for d in &analysis.disagreements {
        found.value(
            9,
            graph,
            d.value,
            format!("it is noted as {}, but {} gives {}", d.noted, d.producer, d.inferred),
        );
    }
    found.0.sort_by_key(|v| v.invariant);
}

/// V10.
fn inputs(graph: &Graph, found: &mut Violations) {
    let mut listed = BTreeSet::new();
    for &id in graph.inputs() {
        if !listed.insert(id) {
            found.node(10, graph, id, "it is listed twice among the graph's inputs".into());
        }
        if graph.get(id).is_none_or(|n| n.op != Op::Input) {
            found.node(10, graph, id, "it is listed as a graph input, but is none".into());
        }
    }
    for id in graph.node_ids().filter(|&id| graph.node(id).op == Op::Input) {
        if !listed.contains(&id) {
            found.node(10, graph, id, "it is not listed among the graph's inputs".into());
        }
        if graph.node(id).n_slots != 0 {
            found.node(
                10,
                graph,
                id,
                format!("an input reads nothing, found {} slots", graph.node(id).n_slots),
            );
        }
    }
}

/// V11.
fn captures(graph: &Graph, found: &mut Violations) {
    for id in graph.node_ids() {
        let Op::Opaque(op) = &graph.node(id).op else { continue };
        if op.n_captures == 0 {
            continue;
        }
        let slots = graph.node_inputs(id);
        let Some(first) = slots.len().checked_sub(op.n_captures) else {
            let message =
                format!("its body captures {} values, but it has {} slots", op.n_captures, slots.len());
            found.node(11, graph, id, message);
            continue;
        };
        for (slot, value) in slots.iter().enumerate().skip(first) {
            let name = value.and_then(|v| Some(&graph.get(v.node)?.outputs.get(v.port as usize)?.name));
            if name.is_none_or(String::is_empty) {
                let message = format!("slot {slot} is a capture of its body and must read a named value");
                found.node(11, graph, id, message);
            }
        }
    }
}

/// How many inputs and outputs an operator takes: least and most over all opsets.
struct Arity {
    inputs: (usize, usize),
    outputs: (usize, usize),
}

fn range((low, high): (usize, usize)) -> String {
    match high {
        _ if low == high => low.to_string(),
        usize::MAX => format!("{low} or more"),
        _ => format!("{low} to {high}"),
    }
}

/// `None` for operators that are not modelled.
fn arity(op: &Op) -> Option<Arity> {
    const ANY: usize = usize::MAX;
    let inputs = match op {
        Op::Opaque(_) => return None,
        Op::Input | Op::Constant(_) => (0, 0),
        Op::Conv(_) | Op::ConvTranspose(_) | Op::Gemm(_) => (2, 3),
        Op::BatchNormalization(_) => (5, 5),
        Op::InstanceNormalization(_) | Op::Where(_) => (3, 3),
        Op::ConvInputGrad(_) | Op::ConvWeightGrad(_) | Op::MaxPoolGrad(_) => (3, 3),
        Op::BatchNormalizationGrad(_) => (3, 3),
        Op::AveragePoolGrad(_) | Op::ClipGrad(_) | Op::LRNGrad(_) => (2, 2),
        Op::GatherGrad(_) => (3, 3),
        Op::ResizeGrad(_) => (2, 5),
        Op::SliceGrad(_) => (2, 6),
        Op::MatMul(_) | Op::PRelu(_) | Op::Expand(_) | Op::Gather(_) => (2, 2),
        Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_) | Op::Pow(_) => (2, 2),
        Op::Equal(_) | Op::Greater(_) | Op::Less(_) => (2, 2),
        Op::Min(_) | Op::Max(_) | Op::Sum(_) | Op::Mean(_) | Op::Concat(_) => (1, ANY),
        // Attributes became inputs: bounds, ratio, axes, sizes.
        Op::Clip(_) | Op::Dropout(_) => (1, 3),
        Op::Split(_) | Op::Reshape(_) | Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Upsample(_) => (1, 2),
        Op::ReduceMean(_) | Op::ReduceSum(_) | Op::ReduceMax(_) | Op::ReduceMin(_) => (1, 2),
        Op::ReduceProd(_) | Op::ReduceL2(_) => (1, 2),
        Op::Slice(_) => (1, 5),
        Op::Pad(_) | Op::Resize(_) => (1, 4),
        // Before opset 6: the axis and the count are two scalars.
        Op::Tile(_) => (2, 3),
        _ => (1, 1),
    };
    let outputs = match op {
        // Before opset 14, running and saved statistics.
        Op::BatchNormalization(_) => (1, 5),
        Op::MaxPool(_) | Op::Dropout(_) => (1, 2),
        Op::Split(_) => (1, ANY),
        Op::BatchNormalizationGrad(_) => (1, 3),
        _ => (1, 1),
    };
    Some(Arity { inputs, outputs })
}

#[cfg(test)]
mod tests;
