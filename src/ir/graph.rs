//! The graph: nodes, the values they produce, and the few ways to change them.
//!
//! A node has input slots (some may be empty: ONNX has optional inputs) and output ports; what
//! stands on a port is a [`Value`] with a name and a type. Ids are plain numbers that the text
//! format prints. **Ids never outlive a mutation that removes their node**: freed numbers are used
//! again, so a stale id would silently name a stranger. Rules therefore match on `&Graph` and
//! return a [`crate::Rewrite`]; the driver applies it.

use crate::dim::{Dim, Shape, static_shape};
use crate::op::Op;
use crate::tensor::{DType, Tensor};
use indexmap::IndexMap;
use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::{EdgeRef, IntoEdgeReferences};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;

/// A node of a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

/// A value: an output port of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId {
    /// The node that produces it.
    pub node: NodeId,
    /// Which of the node's outputs.
    pub port: u32,
}

/// An input slot that reads a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// The reading node.
    pub node: NodeId,
    /// Its input slot.
    pub slot: u32,
}

/// What is known about a value: element type and shape, each perhaps not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ValueType {
    /// Element type; `None` if unknown or not a tensor.
    pub dtype: Option<DType>,
    /// Shape; `None` if not even the rank is known.
    pub shape: Option<Shape>,
}

impl ValueType {
    /// A tensor type with a static shape.
    pub fn fixed(dtype: DType, shape: &[usize]) -> Self {
        Self { dtype: Some(dtype), shape: Some(shape.iter().map(|&d| Dim::Known(d)).collect()) }
    }

    /// The static shape, if every dimension is known.
    pub fn static_shape(&self) -> Option<Vec<usize>> {
        self.shape.as_deref().and_then(static_shape)
    }
}

/// A named output of a node. An empty name marks an optional output that nobody asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Value {
    /// The ONNX value name.
    pub name: String,
    /// What is known about it.
    pub ty: ValueType,
}

/// Where in the imported file a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The n-th graph input.
    Input(u32),
    /// The n-th initializer.
    Initializer(u32),
    /// The n-th sparse initializer.
    SparseInitializer(u32),
    /// The n-th node.
    Node(u32),
}

/// A node: an operator with a name, outputs, and a memory of where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The ONNX node name; may be empty, need not be unique.
    pub name: String,
    /// What it does. Never changed in place: a rewrite makes a new node.
    pub op: Op,
    /// Its output ports.
    pub outputs: Vec<Value>,
    /// Its place in the imported file; `None` for what a pass made.
    pub origin: Option<Origin>,
    /// Key–value notes for the ONNX `metadata_props` of a node that a pass made.
    pub metadata: IndexMap<String, String>,
    /// A constant that is also a graph input, so that a caller may override it.
    pub overridable: bool,
    /// Sort key among nodes that the data flow leaves unordered; new nodes stand where the node
    /// they replace stood.
    pub(crate) position: u64,
    /// Number of input slots, empty ones included.
    pub(crate) n_slots: u32,
}

impl Node {
    /// A node with these output names and no known types.
    pub fn new(name: impl Into<String>, op: Op, outputs: Vec<Value>) -> Self {
        Self {
            name: name.into(),
            op,
            outputs,
            origin: None,
            metadata: IndexMap::new(),
            overridable: false,
            position: u64::MAX,
            n_slots: 0,
        }
    }

    /// A human's name for the node: its own, or that of its first output.
    pub fn label(&self) -> &str {
        if self.name.is_empty() { self.outputs.first().map_or("", |v| &v.name) } else { &self.name }
    }
}

/// An edge: which port feeds which slot. petgraph iterates incoming edges last-in-first-out, so
/// the order of inputs is kept here.
#[derive(Clone, Copy, Debug)]
struct Wire {
    port: u32,
    slot: u32,
}

/// A tensor program: inputs, constants and operators, joined by values.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// The ONNX graph name.
    pub name: String,
    /// Version of the standard operator set; 0 if the file imports none.
    pub opset: i64,
    /// ONNX IR version.
    pub ir_version: i64,
    /// Entries of the model's `metadata_props` that are this program's (`basisopt.…`), read from the
    /// file and written back as they stand here, and any others to be set. The rest of the file's is
    /// kept beside them.
    pub metadata: IndexMap<String, String>,
    dag: StableDiGraph<Node, Wire>,
    inputs: Vec<NodeId>,
    outputs: Vec<ValueId>,
    revision: u64,
    /// How many values and nodes bear a name; kept so that a new name is found without a search.
    value_names: BTreeMap<String, u32>,
    node_names: BTreeMap<String, u32>,
    /// Names that nothing new may take.
    reserved: BTreeSet<String>,
}

impl Graph {
    /// An empty graph for this version of the standard operator set.
    pub fn new(name: impl Into<String>, opset: i64) -> Self {
        Self { name: name.into(), opset, ir_version: 8, ..Self::default() }
    }

    /// Counts mutations: equal revisions of one graph mean equal graphs.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    // ---- reading ------------------------------------------------------------------------------

    /// The node behind an id.
    ///
    /// # Panics
    /// If the id is stale; ids must not outlive a mutation.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.dag[NodeIndex::new(id.index())]
    }

    /// The node behind an id, if there is one.
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.dag.node_weight(NodeIndex::new(id.index()))
    }

    /// The value on a port.
    ///
    /// # Panics
    /// If the id is stale.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.node(id.node).outputs[id.port as usize]
    }

    /// Number of nodes, inputs and constants included.
    pub fn n_nodes(&self) -> usize {
        self.dag.node_count()
    }

    /// Ids of all nodes in order of creation.
    pub fn node_ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.dag.node_indices().map(NodeId::from_index)
    }

    /// Nodes in a deterministic topological order: ties go by position in the file, then by
    /// creation. Nodes on a cycle are left out; the verifier reports them.
    pub fn topological(&self) -> Vec<NodeId> {
        let mut waiting: BTreeMap<NodeIndex, usize> = BTreeMap::new();
        let mut ready = BinaryHeap::new();
        for i in self.dag.node_indices() {
            match self.dag.edges_directed(i, Direction::Incoming).count() {
                0 => ready.push(Reverse((self.dag[i].position, i))),
                n => {
                    waiting.insert(i, n);
                }
            }
        }
        let mut order = Vec::with_capacity(self.n_nodes());
        while let Some(Reverse((_, i))) = ready.pop() {
            order.push(NodeId::from_index(i));
            for edge in self.dag.edges_directed(i, Direction::Outgoing) {
                let target = edge.target();
                if let Some(n) = waiting.get_mut(&target) {
                    *n -= 1;
                    if *n == 0 {
                        ready.push(Reverse((self.dag[target].position, target)));
                    }
                }
            }
        }
        order
    }

    /// The graph's inputs in order, without initializers.
    pub fn inputs(&self) -> &[NodeId] {
        &self.inputs
    }

    /// The graph's outputs in order.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// What feeds the slots of a node; `None` is an omitted optional input.
    pub fn node_inputs(&self, id: NodeId) -> Vec<Option<ValueId>> {
        let n = self.get(id).map_or(0, |n| n.n_slots as usize);
        let mut slots = vec![None; n];
        for edge in self.dag.edges_directed(NodeIndex::new(id.index()), Direction::Incoming) {
            let wire = edge.weight();
            if let Some(slot) = slots.get_mut(wire.slot as usize) {
                *slot = Some(ValueId { node: NodeId::from_index(edge.source()), port: wire.port });
            }
        }
        slots
    }

    /// What feeds one slot of a node.
    pub fn node_input(&self, id: NodeId, slot: usize) -> Option<ValueId> {
        let edges = self.dag.edges_directed(NodeIndex::new(id.index()), Direction::Incoming);
        edges
            .into_iter()
            .find(|e| e.weight().slot as usize == slot)
            .map(|e| ValueId { node: NodeId::from_index(e.source()), port: e.weight().port })
    }

    /// Every edge: the value that it carries and the slot that it ends in, as they are stored.
    pub(crate) fn wires(&self) -> impl Iterator<Item = (ValueId, Use)> + '_ {
        self.dag.edge_references().map(|e| {
            let source = ValueId { node: NodeId::from_index(e.source()), port: e.weight().port };
            (source, Use { node: NodeId::from_index(e.target()), slot: e.weight().slot })
        })
    }

    /// The slots that read a value, sorted. Reading as a graph output is not among them.
    pub fn uses(&self, value: ValueId) -> Vec<Use> {
        let edges = self.dag.edges_directed(NodeIndex::new(value.node.index()), Direction::Outgoing);
        let mut uses: Vec<Use> = edges
            .filter(|e| e.weight().port == value.port)
            .map(|e| Use { node: NodeId::from_index(e.target()), slot: e.weight().slot })
            .collect();
        uses.sort_unstable();
        uses
    }

    /// Number of readers of a value: slots and graph outputs.
    pub fn n_readers(&self, value: ValueId) -> usize {
        self.uses(value).len() + self.outputs.iter().filter(|&&o| o == value).count()
    }

    /// Whether a value is an output of the graph.
    pub fn is_output(&self, value: ValueId) -> bool {
        self.outputs.contains(&value)
    }

    /// Whether a body of control flow refers to a value by name, so that the name must stay.
    pub fn is_captured(&self, value: ValueId) -> bool {
        self.uses(value).iter().any(|u| match &self.node(u.node).op {
            Op::Opaque(op) => u.slot + (op.n_captures as u32) >= self.node(u.node).n_slots,
            _ => false,
        })
    }

    /// The constant behind a value: a `Constant` that no caller can override.
    pub fn constant(&self, value: ValueId) -> Option<&Tensor> {
        let node = self.get(value.node)?;
        match &node.op {
            Op::Constant(t) if !node.overridable => Some(t),
            _ => None,
        }
    }

    /// The constant behind a slot of a node.
    pub fn constant_input(&self, id: NodeId, slot: usize) -> Option<&Tensor> {
        self.constant(self.node_input(id, slot)?)
    }

    /// The constant value behind a value: as [`Graph::constant`], and a `ConstantOfShape` of a
    /// constant shape, which some exporters make whole weights of. Values are shared, not copied.
    pub fn constant_value(&self, value: ValueId) -> Option<Tensor> {
        let Op::ConstantOfShape(op) = &self.get(value.node)?.op else { return self.constant(value).cloned() };
        let shape = self.constant_input(value.node, 0)?.to_i64s().ok()?;
        let shape = shape.into_iter().map(|d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>()?;
        match &op.value {
            None => Tensor::full(DType::F32, shape, 0.0).ok(),
            Some(element) if element.len() == 1 => {
                Tensor::splat(element.dtype(), shape, element.to_bytes().ok()?).ok()
            }
            Some(_) => None,
        }
    }

    /// The value of this name.
    pub fn find_value(&self, name: &str) -> Option<ValueId> {
        self.node_ids().find_map(|id| {
            let port = self.node(id).outputs.iter().position(|v| v.name == name)?;
            Some(ValueId { node: id, port: port as u32 })
        })
    }

    /// Whether a value bears this name, in the graph or inside a body of control flow.
    pub fn has_value_named(&self, name: &str) -> bool {
        self.value_names.contains_key(name) || self.reserved.contains(name)
    }

    /// This name, or the name with the smallest number behind it that no value bears.
    pub fn unused_value_name(&self, name: &str) -> String {
        crate::rewrite::unique(name, |name| self.has_value_named(name))
    }

    /// How many nodes bear this name; ONNX does not ask for it to be one.
    pub fn n_nodes_named(&self, name: &str) -> usize {
        self.node_names.get(name).map_or(0, |&n| n as usize)
    }

    // ---- building and changing ----------------------------------------------------------------

    /// Adds a graph input.
    pub fn add_input(&mut self, name: impl Into<String>, ty: ValueType) -> ValueId {
        let name = name.into();
        let mut node = Node::new(name.clone(), Op::Input, vec![Value { name, ty }]);
        node.position = self.inputs.len() as u64;
        let id = self.insert(node);
        self.inputs.push(id);
        ValueId { node: id, port: 0 }
    }

    /// Adds a constant.
    pub fn add_constant(&mut self, name: impl Into<String>, tensor: Tensor) -> ValueId {
        let name = name.into();
        let ty = ValueType::fixed(tensor.dtype(), tensor.shape());
        let node = Node::new(name.clone(), Op::Constant(tensor), vec![Value { name, ty }]);
        ValueId { node: self.add_node(node, &[]), port: 0 }
    }

    /// Adds a node and joins its slots; later nodes come after earlier ones where the data flow
    /// leaves the choice.
    pub fn add_node(&mut self, mut node: Node, inputs: &[Option<ValueId>]) -> NodeId {
        if node.position == u64::MAX {
            // Room is left between any two nodes of the file for what passes put there.
            node.position = ((self.dag.node_count() as u64) + 1) << 20;
        }
        node.n_slots = inputs.len() as u32;
        let id = self.insert(node);
        for (slot, input) in inputs.iter().enumerate() {
            if let Some(value) = input {
                self.connect(*value, Use { node: id, slot: slot as u32 });
            }
        }
        id
    }

    /// Appends a graph output.
    pub fn add_output(&mut self, value: ValueId) {
        self.outputs.push(value);
        self.revision += 1;
    }

    /// Joins a slot of a node to another value, or to none. A slot beyond the last is appended,
    /// with empty ones before it as needed.
    pub fn set_input(&mut self, at: Use, value: Option<ValueId>) {
        let target = NodeIndex::new(at.node.index());
        let old = self.dag.edges_directed(target, Direction::Incoming).find(|e| e.weight().slot == at.slot);
        if let Some(old) = old.map(|e| e.id()) {
            self.dag.remove_edge(old);
        }
        if let Some(node) = self.dag.node_weight_mut(target) {
            node.n_slots = node.n_slots.max(at.slot + 1);
        }
        if let Some(value) = value {
            self.connect(value, at);
        }
        self.revision += 1;
    }

    /// Makes these values the outputs, in this order. What only the others needed stays, unread.
    pub fn set_outputs(&mut self, values: &[ValueId]) {
        self.outputs = values.to_vec();
        self.revision += 1;
    }

    /// Lets every reader of `old` — slots and graph outputs — read `new` instead. Names stay with
    /// their nodes; [`Graph::rename`] moves them.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        for at in self.uses(old) {
            self.set_input(at, Some(new));
        }
        for output in self.outputs.iter_mut().filter(|o| **o == old) {
            *output = new;
        }
        self.revision += 1;
    }

    /// Gives a value another name.
    pub fn rename(&mut self, value: ValueId, name: impl Into<String>) {
        if let Some(v) = self.value_mut(value) {
            let old = std::mem::replace(&mut v.name, name.into());
            let new = v.name.clone();
            count_down(&mut self.value_names, &old);
            count_up(&mut self.value_names, &new);
            self.revision += 1;
        }
    }

    /// Notes what is known about a value. Not counted as a mutation: types follow from the rest.
    pub fn set_type(&mut self, value: ValueId, ty: ValueType) {
        if let Some(v) = self.value_mut(value) {
            v.ty = ty;
        }
    }

    /// Notes where in the imported file a node stands.
    pub fn set_origin(&mut self, id: NodeId, origin: Origin, overridable: bool) {
        if let Some(node) = self.dag.node_weight_mut(NodeIndex::new(id.index())) {
            node.origin = Some(origin);
            node.overridable = overridable;
            node.position = match origin {
                Origin::Input(i) => u64::from(i),
                Origin::Initializer(i) => (1 << 32) + u64::from(i),
                Origin::SparseInitializer(i) => (2 << 32) + u64::from(i),
                Origin::Node(i) => (u64::from(i) + 1) << 40,
            };
        }
    }

    /// Adds an entry to [`Graph::metadata`], or replaces it: a change like any other.
    pub fn annotate(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.metadata.insert(key.into(), value.into());
        self.revision += 1;
    }

    /// Makes a plain constant of one that a caller could override.
    pub fn freeze(&mut self, id: NodeId) {
        if let Some(node) = self.dag.node_weight_mut(NodeIndex::new(id.index())) {
            node.overridable = false;
            self.revision += 1;
        }
    }

    /// Lets a caller override a constant: the opposite of [`Graph::freeze`].
    pub fn unfreeze(&mut self, id: NodeId) {
        if let Some(node) = self.dag.node_weight_mut(NodeIndex::new(id.index()))
            && matches!(node.op, Op::Constant(_))
        {
            node.overridable = true;
            self.revision += 1;
        }
    }

    /// Removes a node with the edges at it. Graph outputs that it produced are the caller's care.
    pub fn remove_node(&mut self, id: NodeId) -> Option<Node> {
        self.inputs.retain(|&i| i != id);
        self.revision += 1;
        let node = self.dag.remove_node(NodeIndex::new(id.index()))?;
        count_down(&mut self.node_names, &node.name);
        node.outputs.iter().for_each(|v| count_down(&mut self.value_names, &v.name));
        Some(node)
    }

    /// Keeps names from being given to anything new: those inside bodies of control flow, which may
    /// not stand outside as well.
    pub fn reserve_names(&mut self, names: impl IntoIterator<Item = String>) {
        self.reserved.extend(names);
    }

    fn insert(&mut self, node: Node) -> NodeId {
        self.revision += 1;
        count_up(&mut self.node_names, &node.name);
        node.outputs.iter().for_each(|v| count_up(&mut self.value_names, &v.name));
        NodeId::from_index(self.dag.add_node(node))
    }

    fn connect(&mut self, value: ValueId, at: Use) {
        let (source, target) = (NodeIndex::new(value.node.index()), NodeIndex::new(at.node.index()));
        self.dag.add_edge(source, target, Wire { port: value.port, slot: at.slot });
    }

    fn value_mut(&mut self, id: ValueId) -> Option<&mut Value> {
        self.dag.node_weight_mut(NodeIndex::new(id.node.index()))?.outputs.get_mut(id.port as usize)
    }
}

fn count_up(names: &mut BTreeMap<String, u32>, name: &str) {
    match names.get_mut(name) {
        Some(n) => *n += 1,
        None => {
            names.insert(name.to_owned(), 1);
        }
    }
}

fn count_down(names: &mut BTreeMap<String, u32>, name: &str) {
    if let Some(n) = names.get_mut(name) {
        *n -= 1;
        if *n == 0 {
            names.remove(name);
        }
    }
}

impl NodeId {
    fn from_index(i: NodeIndex) -> Self {
        Self(i.index() as u32)
    }

    /// The number behind the id.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl ValueId {
    /// The first output of a node.
    pub fn of(node: NodeId) -> Self {
        Self { node, port: 0 }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Display for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}.{}", self.node.0, self.port)
    }
}
