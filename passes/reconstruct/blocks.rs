//! The blocks of a network: from one value that everything goes through to the next.

use crate::driver::pass::PassError;
use crate::training::corresponds;
use basisopt_ir::op::Op;
use basisopt_ir::{Graph, NodeId, Tensor, ValueId, infer};
use std::collections::{BTreeMap, BTreeSet};

/// A part of a network with one input and one output, by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Name of the value it is given.
    pub start: String,
    /// Name of the value it gives.
    pub end: String,
    /// Its nodes in the compressed network.
    nodes: BTreeSet<NodeId>,
}

impl Block {
    /// Whether a factored layer is in it.
    pub fn has_pairs(&self, pairs: &[(NodeId, NodeId)]) -> bool {
        pairs.iter().any(|(_, second)| self.nodes.contains(second))
    }

    /// Elements of its input or output, whichever has more.
    pub fn widest(&self, graph: &Graph) -> usize {
        let size = |name: &String| {
            let shape = graph.find_value(name).and_then(|v| graph.value(v).ty.static_shape());
            shape.map_or(1, |s| s.iter().product())
        };
        size(&self.start).max(size(&self.end))
    }
}

/// Values that everything after them depends on through them alone, from the input to the output.
fn separators(graph: &Graph) -> Vec<ValueId> {
    let order = graph.topological();
    // What the outputs need; the size of a value is known without the value.
    let reads = |id: NodeId| {
        let is_size = matches!(graph.node(id).op, Op::Shape(_));
        graph.node_inputs(id).into_iter().flatten().filter(move |_| !is_size)
    };
    let mut needed: BTreeSet<NodeId> = BTreeSet::new();
    let mut open: Vec<NodeId> = graph.outputs().iter().map(|v| v.node).collect();
    while let Some(id) = open.pop() {
        if needed.insert(id) {
            open.extend(reads(id).map(|v| v.node));
        }
    }
    let mut readers: BTreeMap<ValueId, usize> = BTreeMap::new();
    for &id in &needed {
        reads(id).for_each(|v| *readers.entry(v).or_default() += 1);
    }
    // Outputs of the graph are read by the world, at the end.
    graph.outputs().iter().for_each(|&v| *readers.entry(v).or_default() += 1);
    let mut found = Vec::new();
    let mut live: BTreeSet<ValueId> = BTreeSet::new();
    let mut moving: BTreeSet<ValueId> = BTreeSet::new();
    for id in order {
        if !needed.contains(&id) {
            continue;
        }
        let inputs: Vec<ValueId> = reads(id).filter(|v| moving.contains(v)).collect();
        if !matches!(graph.node(id).op, Op::Input) && inputs.is_empty() {
            continue;
        }
        for v in inputs {
            if let Some(n) = readers.get_mut(&v) {
                *n -= 1;
                if *n == 0 {
                    live.remove(&v);
                }
            }
        }
        for port in 0..graph.node(id).outputs.len() as u32 {
            let value = ValueId { node: id, port };
            moving.insert(value);
            if readers.get(&value).is_some_and(|&n| n > 0) {
                live.insert(value);
            }
        }
        if live.len() == 1 {
            found.extend(live.iter().copied().filter(|v| v.node == id));
        }
    }
    found
}

/// Cuts a network where the original has a value of the same name and size; a block holds at least so many pairs.
pub(super) fn blocks(
    network: &Graph,
    original: &Graph,
    pairs: &[(NodeId, NodeId)],
    n_pairs: usize,
) -> Vec<Block> {
    let in_both = |v: &ValueId| corresponds(network, *v, original);
    let cuts: Vec<ValueId> = separators(network).into_iter().filter(in_both).collect();
    let place: BTreeMap<NodeId, usize> =
        network.topological().into_iter().enumerate().map(|(i, id)| (id, i)).collect();
    let at = |id: NodeId| place.get(&id).copied().unwrap_or(0);
    let name = |v: ValueId| network.value(v).name.clone();
    let second_factors: BTreeSet<NodeId> = pairs.iter().map(|&(_, second)| second).collect();
    let mut found: Vec<Block> = Vec::new();
    let Some((&first, rest)) = cuts.split_first() else { return found };
    let mut start = first;
    for (i, &end) in rest.iter().enumerate() {
        let inside = |id: &NodeId| at(*id) > at(start.node) && at(*id) <= at(end.node);
        let nodes: BTreeSet<NodeId> = network.topological().into_iter().filter(inside).collect();
        let n = nodes.intersection(&second_factors).count();
        if n >= n_pairs || (i + 1 == rest.len() && n > 0) {
            found.push(Block { start: name(start), end: name(end), nodes });
            start = end;
        }
    }
    found
}

/// A block as a graph of its own.
pub(super) fn extract(graph: &Graph, block: &Block) -> Result<Graph, PassError> {
    let gone = |name: &str| PassError::Other(format!("value {name:?} is gone (this is a bug)"));
    let mut part = graph.clone();
    let start = part.find_value(&block.start).ok_or_else(|| gone(&block.start))?;
    let end = part.find_value(&block.end).ok_or_else(|| gone(&block.end))?;
    if !part.inputs().contains(&start.node) {
        let ty = part.value(start).ty.clone();
        part.rename(start, format!("{}.before", block.start));
        let input = part.add_input(block.start.clone(), ty);
        part.replace_uses(start, input);
    }
    part.set_outputs(&[end]);
    // Sizes are numbers: a block must not reach back to the input of the network for them.
    for id in part.topological() {
        let Op::Shape(op) = part.node(id).op.clone() else { continue };
        let dims = part.node_input(id, 0).and_then(|x| part.value(x).ty.static_shape());
        let Some(dims) = dims else { continue };
        let rank = dims.len() as i64;
        let bound = |v: i64| usize::try_from((if v < 0 { v + rank } else { v }).clamp(0, rank)).unwrap_or(0);
        let range = bound(op.start)..bound(op.end.unwrap_or(rank));
        let dims: Vec<i64> = dims.get(range).unwrap_or_default().iter().map(|&d| d as i64).collect();
        let name = part.value(ValueId::of(id)).name.clone();
        let tensor = Tensor::from_i64s(vec![dims.len()], &dims)
            .map_err(|source| PassError::Tensor { node: name.clone(), source })?;
        part.rename(ValueId::of(id), format!("{name}.before"));
        let constant = part.add_constant(name, tensor);
        part.replace_uses(ValueId::of(id), constant);
    }
    let mut needed: BTreeSet<NodeId> = BTreeSet::new();
    let mut open = vec![end.node];
    while let Some(id) = open.pop() {
        if needed.insert(id) {
            open.extend(part.node_inputs(id).into_iter().flatten().map(|v| v.node));
        }
    }
    for id in part.topological() {
        if !needed.contains(&id) {
            part.remove_node(id);
        }
    }
    infer::infer(&mut part).map_err(|e| PassError::Other(e.to_string()))?;
    Ok(part)
}
