//! A part of a graph as a graph of its own, to run or study by itself.

use crate::graph::{Graph, NodeId, ValueId};
use crate::op::Op;
use std::collections::{BTreeMap, BTreeSet};

/// A part of a graph.
#[derive(Clone, Debug)]
pub struct Extract {
    /// The part. Values have the names that they have in the whole.
    pub graph: Graph,
    /// What it reads, in the order of its inputs: values of the whole.
    pub inputs: Vec<ValueId>,
    /// The nodes of the whole and what they are in the part.
    pub nodes: BTreeMap<NodeId, NodeId>,
}

impl Graph {
    /// The nodes given, in topological order, as a graph with the outputs given, which these nodes make.
    ///
    /// Constants that the nodes read come along; every other value from outside becomes an input of the
    /// type noted on it. Nodes remember their place in the imported file, so that a part can be written
    /// against the same source.
    pub fn extract(&self, nodes: &[NodeId], outputs: &[ValueId]) -> Extract {
        let mut graph = Self::new(self.name.clone(), self.opset);
        graph.ir_version = self.ir_version;
        let inside: BTreeSet<NodeId> = nodes.iter().copied().collect();
        let mut values: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        let mut inputs = Vec::new();
        let mut map = BTreeMap::new();
        for &id in nodes {
            let slots = self.node_inputs(id);
            for &value in slots.iter().flatten() {
                if inside.contains(&value.node) || values.contains_key(&value) {
                    continue;
                }
                let (source, outside) = (self.node(value.node), self.value(value));
                let here = match (&source.op, self.constant_value(value)) {
                    (Op::Constant(_), Some(_)) => ValueId::of(graph.add_node(source.clone(), &[])),
                    (_, Some(tensor)) => graph.add_constant(outside.name.clone(), tensor),
                    _ => {
                        inputs.push(value);
                        graph.add_input(outside.name.clone(), outside.ty.clone())
                    }
                };
                values.insert(value, here);
            }
            let slots: Vec<_> = slots.iter().map(|v| v.and_then(|v| values.get(&v).copied())).collect();
            let here = graph.add_node(self.node(id).clone(), &slots);
            map.insert(id, here);
            for port in 0..self.node(id).outputs.len() as u32 {
                values.insert(ValueId { node: id, port }, ValueId { node: here, port });
            }
        }
        outputs.iter().filter_map(|v| values.get(v)).for_each(|&v| graph.add_output(v));
        Extract { graph, inputs, nodes: map }
    }
}

#[cfg(test)]
mod tests {
    use crate::{ValueId, parse::parse, verify};

    #[test]
    fn a_part_has_what_it_reads_as_inputs_and_keeps_names() {
        let graph = parse(
            "graph @g(%x: f32[1,3,8,8]) -> (%y) {
               %w = f32[4,3,3,3] randn(seed=1)
               %v = f32[4,4,1,1] randn(seed=2)
               %a = Conv<pads=[1,1,1,1]>(%x, %w)
               %b = Relu(%a)
               %c = Conv(%b, %v)
               %y = Add(%c, %a)
             }",
        )
        .unwrap();
        let value = |name| graph.find_value(name).unwrap();
        let (c, y) = (value("c"), value("y"));
        let part = graph.extract(&[c.node, y.node], &[y]);
        verify(&part.graph).unwrap();
        assert_eq!(part.inputs, [value("b"), value("a")]);
        let names: Vec<_> =
            part.graph.inputs().iter().map(|&i| part.graph.value(ValueId::of(i)).name.clone()).collect();
        assert_eq!(names, ["b", "a"]);
        assert!(part.graph.constant_input(part.nodes[&c.node], 1).is_some());
        assert_eq!(part.graph.outputs(), [ValueId::of(part.nodes[&y.node])]);
    }
}
