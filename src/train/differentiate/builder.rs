//! Makes the nodes of a gradient.

use super::Refused;
use basisopt_ir::graph::{Node, Value};
use basisopt_ir::op::{self, Op};
use basisopt_ir::{DType, Dim, Graph, NodeId, Tensor, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// A graph that grows.
pub(crate) struct Builder {
    pub graph: Graph,
    /// Name that new values derive from.
    base: String,
    constants: BTreeMap<String, ValueId>,
    summed: Vec<ValueId>,
}

/// The shape noted on a value.
pub(crate) fn dims(graph: &Graph, value: ValueId) -> Result<Vec<Dim>, Refused> {
    graph.value(value).ty.shape.clone().ok_or(Refused::Shape(value))
}

impl Builder {
    pub fn new(graph: &Graph) -> Self {
        Self { graph: graph.clone(), base: String::new(), constants: BTreeMap::new(), summed: vec![] }
    }

    /// New values are about this node's inputs.
    pub fn at(&mut self, id: NodeId) {
        self.base = self.graph.node(id).outputs.first().map_or_else(String::new, |v| v.name.clone());
    }

    /// The input that holds a target's gradient.
    pub fn seed(&mut self, target: ValueId) -> ValueId {
        let value = self.graph.value(target).clone();
        let name = self.graph.unused_value_name(&format!("{}.seed", value.name));
        self.graph.add_input(name, value.ty)
    }

    /// A node with one output.
    pub fn node(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
        let inputs: Vec<_> = inputs.iter().map(|&v| Some(v)).collect();
        self.node_of(op, &inputs)
    }

    /// As [`Builder::node`], with inputs that may be absent.
    pub fn node_of(&mut self, op: impl Into<Op>, inputs: &[Option<ValueId>]) -> ValueId {
        let name = self.graph.unused_value_name(&format!("{}.d", self.base));
        let node = Node::new(&name, op.into(), vec![Value { name: name.clone(), ..Value::default() }]);
        ValueId::of(self.graph.add_node(node, inputs))
    }

    /// A node with several outputs.
    pub fn node_with(&mut self, op: impl Into<Op>, inputs: &[ValueId], n_outputs: usize) -> NodeId {
        let inputs: Vec<_> = inputs.iter().map(|&v| Some(v)).collect();
        let mut outputs = Vec::with_capacity(n_outputs);
        for i in 0..n_outputs {
            outputs.push(Value {
                name: self.graph.unused_value_name(&format!("{}.d{i}", self.base)),
                ..Value::default()
            });
        }
        let name = outputs.first().map_or_else(String::new, |v| v.name.clone());
        self.graph.add_node(Node::new(name, op.into(), outputs), &inputs)
    }

    /// Gives a value made here a name, if it has none that somebody chose.
    pub fn named(&mut self, value: ValueId, name: &str) -> ValueId {
        if self.graph.node(value.node).op.is_source() || self.graph.is_output(value) {
            return self.node(op::Identity {}, &[value]);
        }
        let name = self.graph.unused_value_name(name);
        self.graph.rename(value, name);
        value
    }

    /// The value is a sum over the batch of what single images have.
    pub fn sum_over_batch(&mut self, value: ValueId) {
        self.summed.push(value);
    }

    pub fn summed(&self) -> BTreeSet<String> {
        self.summed.iter().map(|&v| self.graph.value(v).name.clone()).collect()
    }

    fn constant(&mut self, key: String, tensor: impl FnOnce() -> Tensor) -> ValueId {
        if let Some(&v) = self.constants.get(&key) {
            return v;
        }
        let name = self.graph.unused_value_name(&format!("grad.{key}"));
        let v = self.graph.add_constant(name, tensor());
        self.constants.insert(key, v);
        v
    }

    /// A scalar of the type of `like`.
    pub fn number(&mut self, value: f64, like: ValueId) -> ValueId {
        let dtype = self.graph.value(like).ty.dtype.unwrap_or(DType::F32);
        let make =
            || Tensor::full(dtype, vec![], value).unwrap_or_else(|_| Tensor::elided(dtype, vec![], value));
        self.constant(format!("{value}.{}", dtype.name()), make)
    }

    pub fn ints(&mut self, values: &[i64]) -> ValueId {
        let key = values.iter().map(i64::to_string).collect::<Vec<_>>().join("_");
        let n = values.len();
        let make = || {
            Tensor::from_i64s(vec![n], values).unwrap_or_else(|_| Tensor::elided(DType::I64, vec![n], 0.0))
        };
        self.constant(format!("axes.{key}"), make)
    }

    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.node(op::Add::default(), &[a, b])
    }
    pub fn sub(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.node(op::Sub::default(), &[a, b])
    }
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.node(op::Mul::default(), &[a, b])
    }
    pub fn div(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.node(op::Div::default(), &[a, b])
    }
    pub fn neg(&mut self, a: ValueId) -> ValueId {
        self.node(op::Neg {}, &[a])
    }
    pub fn scaled(&mut self, a: ValueId, by: f64, like: ValueId) -> ValueId {
        let by = self.number(by, like);
        self.mul(a, by)
    }

    /// `a` in the element type of `like`, where both are known.
    pub fn cast_like(&mut self, a: ValueId, like: ValueId) -> ValueId {
        let dtype = |v: ValueId| self.graph.value(v).ty.dtype;
        match (dtype(a), dtype(like)) {
            (Some(from), Some(to)) if from != to => self.node(op::Cast { to, ..op::Cast::default() }, &[a]),
            _ => a,
        }
    }

    /// Sum along axes; along none the value itself, as ONNX takes an empty list for all of them.
    pub fn sum(&mut self, x: ValueId, axes: &[i64], keepdims: bool) -> ValueId {
        if axes.is_empty() {
            return x;
        }
        let keepdims = i64::from(keepdims);
        if self.graph.opset < 13 {
            let op = op::ReduceSum { axes: Some(axes.to_vec()), keepdims, ..op::ReduceSum::default() };
            return self.node(op, &[x]);
        }
        let axes = self.ints(axes);
        self.node(op::ReduceSum { keepdims, ..op::ReduceSum::default() }, &[x, axes])
    }

    /// Mean along axes, kept as size 1; along none the value itself.
    pub fn mean(&mut self, x: ValueId, axes: &[i64]) -> ValueId {
        if axes.is_empty() {
            return x;
        }
        if self.graph.opset < 18 {
            return self
                .node(op::ReduceMean { axes: Some(axes.to_vec()), ..op::ReduceMean::default() }, &[x]);
        }
        let axes = self.ints(axes);
        self.node(op::ReduceMean::default(), &[x, axes])
    }

    /// `x` under the shape of `like`, which has as many elements.
    pub fn reshape_like(&mut self, x: ValueId, like: ValueId) -> Result<ValueId, Refused> {
        let dims = dims(&self.graph, like)?;
        let unknown = dims.iter().filter(|d| d.known().is_none()).count();
        let shape = if unknown > 1 {
            self.node(op::Shape::default(), &[like])
        } else {
            let sizes: Vec<i64> = dims.iter().map(|d| d.known().map_or(-1, |d| d as i64)).collect();
            self.ints(&sizes)
        };
        Ok(self.node(op::Reshape::default(), &[x, shape]))
    }

    /// `x` repeated to the shape of `like`.
    pub fn expand_like(&mut self, x: ValueId, like: ValueId) -> Result<ValueId, Refused> {
        let dims = dims(&self.graph, like)?;
        let known: Option<Vec<i64>> = dims.iter().map(|d| d.known().map(|d| d as i64)).collect();
        let shape = match known {
            Some(sizes) => self.ints(&sizes),
            None => self.node(op::Shape::default(), &[like]),
        };
        Ok(self.node(op::Expand {}, &[x, shape]))
    }

    /// The share of an operand that was broadcast to the shape of `y`: the sum over what it was repeated along.
    pub fn unbroadcast(&mut self, share: ValueId, operand: ValueId, y: ValueId) -> Result<ValueId, Refused> {
        let (from, to) = (dims(&self.graph, operand)?, dims(&self.graph, y)?);
        let skip = to.len().saturating_sub(from.len());
        let mut axes = Vec::new();
        for (a, d) in to.iter().enumerate() {
            let repeated = match a.checked_sub(skip).and_then(|i| from.get(i)) {
                None => true,
                Some(f) => f.known() == Some(1) && d.known() != Some(1),
            };
            if repeated {
                axes.push(a as i64);
            }
        }
        let share = if axes.is_empty() { share } else { self.sum(share, &axes, true) };
        if from.len() == to.len() { Ok(share) } else { self.reshape_like(share, operand) }
    }
}
