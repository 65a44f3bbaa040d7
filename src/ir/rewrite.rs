//! Replacements as values: a rule looks at `&Graph` and describes what it would do; the driver
//! applies it.
//!
//! The new value takes over the name of the one that it replaces, so that graph outputs, bodies
//! that refer to values by name and everything downstream read on as before. Constants that only
//! the replaced nodes read go with them.

use crate::graph::{Graph, Node, NodeId, Use, Value, ValueId, ValueType};
use crate::op::Op;
use crate::tensor::Tensor;
use indexmap::IndexMap;
use std::collections::VecDeque;

/// An input of a new node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A value of the graph.
    Existing(ValueId),
    /// An output of the n-th new node of this rewrite.
    New(usize, u32),
    /// An omitted optional input.
    Omitted,
}

impl From<ValueId> for Operand {
    fn from(v: ValueId) -> Self {
        Self::Existing(v)
    }
}

#[derive(Clone, Debug)]
struct NewNode {
    name: String,
    op: Op,
    inputs: Vec<Operand>,
    output: Value,
    metadata: IndexMap<String, String>,
    place: NodeId,
}

/// A replacement: new nodes, which old values they stand for, and what to take away.
#[derive(Clone, Debug)]
pub struct Rewrite {
    place: NodeId,
    new: Vec<NewNode>,
    replace: Vec<(ValueId, Operand)>,
    set_inputs: Vec<(Use, Operand)>,
    remove: Vec<NodeId>,
    forget: Vec<String>,
}

/// Why a rewrite could not be applied; always a bug in the rule that made it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RewriteError {
    /// It names a node or value that the graph does not have.
    #[error("the rewrite names {what}, which the graph does not have")]
    Stale {
        /// The node or value, in words.
        what: String,
    },
    /// It removes a node whose output is still read.
    #[error("the rewrite removes node {node:?}, whose output {value:?} is still read")]
    StillRead {
        /// Label of the node.
        node: String,
        /// Name of its value.
        value: String,
    },
    /// A value that must keep its name would have to give it up.
    #[error("the rewrite replaces {old:?} by {new:?}, but both names must stay")]
    PinnedName {
        /// The replaced value's name.
        old: String,
        /// The replacement's name.
        new: String,
    },
}

impl Rewrite {
    /// A rewrite around a node: new nodes stand in the order of the file where it stood.
    pub fn at(node: NodeId) -> Self {
        Self { place: node, new: vec![], replace: vec![], set_inputs: vec![], remove: vec![], forget: vec![] }
    }

    /// Nodes added from here on stand in the order of the file where this one stands.
    pub fn place_at(&mut self, node: NodeId) {
        self.place = node;
    }

    /// Adds a constant. The name is made unique if it is taken.
    pub fn constant(&mut self, name: impl Into<String>, tensor: Tensor) -> Operand {
        let ty = ValueType::fixed(tensor.dtype(), tensor.shape());
        self.push(name.into(), Op::Constant(tensor), vec![], ty)
    }

    /// Adds a node with one output that bears the node's name. Names are made unique if taken.
    pub fn node(&mut self, name: impl Into<String>, op: impl Into<Op>, inputs: &[Operand]) -> Operand {
        self.push(name.into(), op.into(), inputs.to_vec(), ValueType::default())
    }

    /// Attaches a note to the last added node (ONNX node `metadata_props`).
    pub fn note(&mut self, key: impl Into<String>, value: impl Into<String>) {
        if let Some(node) = self.new.last_mut() {
            node.metadata.insert(key.into(), value.into());
        }
    }

    /// Lets all readers of `old` read `new`, which takes over its name; the producer of `old` goes
    /// once nothing reads it.
    pub fn replace(&mut self, old: ValueId, new: impl Into<Operand>) {
        self.replace.push((old, new.into()));
    }

    /// Joins a slot of a node that stays to another value.
    pub fn set_input(&mut self, at: Use, value: impl Into<Operand>) {
        self.set_inputs.push((at, value.into()));
    }

    /// Takes an entry out of [`Graph::metadata`].
    pub fn forget(&mut self, key: impl Into<String>) {
        self.forget.push(key.into());
    }

    /// Removes a node that nothing reads after the replacements.
    pub fn remove(&mut self, node: NodeId) {
        self.remove.push(node);
    }

    fn push(&mut self, name: String, op: Op, inputs: Vec<Operand>, ty: ValueType) -> Operand {
        let output = Value { name: name.clone(), ty };
        self.new.push(NewNode { name, op, inputs, output, metadata: IndexMap::new(), place: self.place });
        Operand::New(self.new.len() - 1, 0)
    }

    /// Applies the rewrite. On an error the graph may be half changed: work on a copy where that
    /// matters.
    ///
    /// # Errors
    /// See [`RewriteError`].
    pub fn apply(self, graph: &mut Graph) -> Result<(), RewriteError> {
        let stale = |what: String| RewriteError::Stale { what };
        // A node that goes leaves its name to the one that comes.
        let leaving = self.remove.iter().copied().chain(self.replace.iter().map(|(old, _)| old.node));
        let leaving: Vec<String> = leaving.filter_map(|id| Some(graph.get(id)?.name.clone())).collect();
        let left = |name: &str| leaving.iter().filter(|l| *l == name).count();
        let mut ids: Vec<NodeId> = Vec::with_capacity(self.new.len());
        for (i, new) in self.new.into_iter().enumerate() {
            let inputs: Vec<Option<ValueId>> =
                new.inputs.iter().map(|&o| resolve(graph, &ids, o)).collect::<Result<_, _>>()?;
            let value_name = unique(&new.output.name, |name| graph.has_value_named(name));
            let node_name = unique(&new.name, |name| graph.n_nodes_named(name) > left(name));
            let output = Value { name: value_name, ty: new.output.ty };
            let mut node = Node::new(node_name, new.op, vec![output]);
            node.metadata = new.metadata;
            let place = graph.get(new.place).ok_or_else(|| stale(format!("node {}", new.place)))?;
            node.position = place.position.saturating_add(i as u64);
            ids.push(graph.add_node(node, &inputs));
        }

        let mut gone = self.remove;
        for (at, value) in self.set_inputs {
            if let Some(old) = graph.node_input(at.node, at.slot as usize) {
                gone_if_constant(graph, old, &mut gone);
            }
            let value = resolve(graph, &ids, value)?;
            graph.set_input(at, value);
        }
        for (old, new) in self.replace {
            graph.get(old.node).ok_or_else(|| stale(format!("value {old}")))?;
            let new = resolve(graph, &ids, new)?.ok_or_else(|| stale("an omitted value".to_owned()))?;
            substitute(graph, old, new)?;
            gone.push(old.node);
        }
        for key in self.forget {
            graph.metadata.shift_remove(&key);
        }
        sweep(graph, gone)
    }
}

fn resolve(graph: &Graph, ids: &[NodeId], operand: Operand) -> Result<Option<ValueId>, RewriteError> {
    match operand {
        Operand::Omitted => Ok(None),
        Operand::Existing(v) => match graph.get(v.node) {
            Some(n) if (v.port as usize) < n.outputs.len() => Ok(Some(v)),
            _ => Err(RewriteError::Stale { what: format!("value {v}") }),
        },
        Operand::New(i, port) => match ids.get(i) {
            Some(&node) => Ok(Some(ValueId { node, port })),
            None => Err(RewriteError::Stale { what: format!("new node {i}, which is not made yet") }),
        },
    }
}

/// The name itself, or the name with the smallest free number behind it.
pub(crate) fn unique(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut candidate = name.to_owned();
    let mut n = 1;
    while taken(&candidate) {
        n += 1;
        candidate = format!("{name}.{n}");
    }
    candidate
}

/// Whether a value must keep its name: the world outside the graph knows it. Of two pinned values
/// neither can replace the other.
pub fn is_pinned(graph: &Graph, v: ValueId) -> bool {
    let node = graph.node(v.node);
    graph.is_output(v) || graph.is_captured(v) || node.op == Op::Input || node.overridable
}

fn substitute(graph: &mut Graph, old: ValueId, new: ValueId) -> Result<(), RewriteError> {
    let old_pinned = is_pinned(graph, old);
    let (old_name, new_name) = (graph.value(old).name.clone(), graph.value(new).name.clone());
    let made_here = graph.node(new.node).origin.is_none();
    if old_pinned && is_pinned(graph, new) {
        return Err(RewriteError::PinnedName { old: old_name, new: new_name });
    }
    let ty = graph.value(old).ty.clone();
    graph.replace_uses(old, new);
    // What was there keeps its name, unless the outside world knows the replaced value by its own.
    if old_pinned || (made_here && !is_pinned(graph, new)) {
        graph.rename(old, format!("{old_name}.replaced"));
        graph.rename(new, old_name);
    }
    if graph.value(new).ty == ValueType::default() {
        graph.set_type(new, ty);
    }
    Ok(())
}

fn gone_if_constant(graph: &Graph, v: ValueId, gone: &mut Vec<NodeId>) {
    if graph.constant_value(v).is_some() {
        gone.push(v.node);
    }
}

/// Removes nodes that nothing reads any more, and then the constants that fed only them.
fn sweep(graph: &mut Graph, gone: Vec<NodeId>) -> Result<(), RewriteError> {
    let mut queue: VecDeque<NodeId> = gone.into();
    // A node can wait for a reader that stands behind it in the queue; one full round without
    // progress means that something outside still reads it.
    let mut stuck = 0;
    while let Some(id) = queue.pop_front() {
        let Some(node) = graph.get(id) else { continue };
        let read = (0..node.outputs.len())
            .map(|p| ValueId { node: id, port: p as u32 })
            .find(|&v| graph.n_readers(v) > 0);
        if let Some(value) = read {
            if matches!(node.op, Op::Constant(_) | Op::ConstantOfShape(_)) {
                continue;
            }
            stuck += 1;
            if stuck > queue.len() {
                let (node, value) = (node.label().to_owned(), graph.value(value).name.clone());
                return Err(RewriteError::StillRead { node, value });
            }
            queue.push_back(id);
            continue;
        }
        stuck = 0;
        let constants: Vec<ValueId> = graph.node_inputs(id).into_iter().flatten().collect();
        let mut behind = Vec::new();
        constants.iter().for_each(|&v| gone_if_constant(graph, v, &mut behind));
        graph.remove_node(id);
        queue.extend(behind);
    }
    Ok(())
}
