//! Graphs to `.bir` text. The format's reference is `docs/ir.md`; [`crate::parse`] reads it back.
//!
//! Printing is canonical: it depends on the graph and nothing else, and printing what was parsed
//! from a printed graph gives the same text. Weights are shown by their norm, which survives the
//! sign flips and last bits in which two machines differ; [`PrintOptions::values`] shows them whole.

mod literal;
mod tensor;

pub(crate) use literal::{dim_from_text, is_plain, plain_name_len, write_string};

use crate::attr::Attr;
use crate::graph::{Graph, Node, NodeId, ValueId, ValueType};
use crate::op::{Op, Opaque};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

/// The operator set that a graph has if its text does not say.
pub const DEFAULT_OPSET: i64 = 17;
/// The ONNX IR version that a graph has if its text does not say.
pub const DEFAULT_IR_VERSION: i64 = 8;

/// Strings longer than this, in bytes, and lists longer than a quarter of it, are elided from the
/// attributes of operators that are not modelled.
const LONG_ATTR: usize = 1024;

/// Words that an operator's name must not be mistaken for.
const RESERVED: &[&str] = &["_", "opaque", "overridable"];

/// What to print besides the structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrintOptions {
    /// Node names, where they differ from the name of the first output. On by default.
    pub node_names: bool,
    /// All values of all constants instead of norms, so that the text is the whole model; long
    /// attributes too. Off by default.
    pub values: bool,
}

impl Default for PrintOptions {
    fn default() -> Self {
        Self { node_names: true, values: false }
    }
}

/// The graph as text, with the default options.
pub fn print(graph: &Graph) -> String {
    print_with(graph, &PrintOptions::default())
}

/// The graph as text.
///
/// Nodes come in topological order, each constant right before the first node that reads it, the
/// constants that no node reads at the top. Nodes that a cycle keeps out of the topological order
/// come last, under a comment; such a text shows what is wrong, but does not parse.
pub fn print_with(graph: &Graph, options: &PrintOptions) -> String {
    let mut printer = Printer { graph, options, out: String::new(), read: reads(graph) };
    printer.graph();
    printer.out
}

/// One node as its line of text, without indentation and line break; empty if the id is stale.
pub fn print_node(graph: &Graph, id: NodeId) -> String {
    let options = PrintOptions::default();
    let mut printer = Printer { graph, options: &options, out: String::new(), read: reads(graph) };
    if let Some(node) = graph.get(id) {
        printer.node(id, node);
    }
    printer.out
}

/// A value's name as the text format writes it: `%conv1`, `%"weird name"`.
pub fn value_name(name: &str) -> String {
    let mut out = String::new();
    write_name(&mut out, '%', name);
    out
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&print(self))
    }
}

/// `f32[N,3]`; `f32[..]` without a known rank, `?[N,3]` without a known element type.
impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dtype {
            Some(dtype) => write!(f, "{dtype}[")?,
            None => f.write_str("?[")?,
        }
        match &self.shape {
            None => f.write_str("..")?,
            Some(dims) => {
                for (i, dim) in dims.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    write!(f, "{comma}{}", literal::dim_to_text(dim))?;
                }
            }
        }
        f.write_char(']')
    }
}

/// As a constant in the text format: `f32[16,3,3,3] randn(seed=1)`, `f32[64] norm 7.98`.
impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        tensor::write_tensor(&mut out, self, false);
        f.write_str(&out)
    }
}

/// All values that a slot or a graph output reads.
fn reads(graph: &Graph) -> BTreeSet<ValueId> {
    let slots = graph.node_ids().flat_map(|id| graph.node_inputs(id)).flatten();
    slots.chain(graph.outputs().iter().copied()).collect()
}

fn write_name(out: &mut String, sigil: char, name: &str) {
    out.push(sigil);
    if is_plain(name) {
        out.push_str(name);
    } else {
        write_string(out, name.as_bytes());
    }
}

struct Printer<'a> {
    graph: &'a Graph,
    options: &'a PrintOptions,
    out: String,
    read: BTreeSet<ValueId>,
}

impl Printer<'_> {
    fn graph(&mut self) {
        self.header();
        let order = self.graph.topological();
        let mut printed: BTreeSet<NodeId> = self.graph.inputs().iter().copied().collect();

        let in_slots: BTreeSet<NodeId> = self
            .graph
            .node_ids()
            .flat_map(|id| self.graph.node_inputs(id))
            .flatten()
            .map(|value| value.node)
            .collect();
        for &id in &order {
            if matches!(self.graph.node(id).op, Op::Constant(_)) && !in_slots.contains(&id) {
                self.line(id, &mut printed);
            }
        }
        for &id in &order {
            if !matches!(self.graph.node(id).op, Op::Constant(_)) {
                self.with_constants(id, &mut printed);
            }
        }

        let reached: BTreeSet<NodeId> = order.into_iter().collect();
        let behind: Vec<NodeId> = self.graph.node_ids().filter(|id| !reached.contains(id)).collect();
        if !behind.is_empty() {
            self.out.push_str("  // on a cycle, or behind one:\n");
            for id in behind {
                self.with_constants(id, &mut printed);
            }
        }
        self.out.push_str("}\n");
    }

    fn header(&mut self) {
        self.out.push_str("graph ");
        write_name(&mut self.out, '@', &self.graph.name);
        let versions = [
            ("opset", self.graph.opset, DEFAULT_OPSET),
            ("ir_version", self.graph.ir_version, DEFAULT_IR_VERSION),
        ];
        let mut open = '<';
        for (key, version, default) in versions {
            if version != default {
                let gap = if open == '<' { "" } else { " " };
                let _ = write!(self.out, "{open}{gap}{key}={version}");
                open = ',';
            }
        }
        if open == ',' {
            self.out.push('>');
        }
        self.out.push('(');
        for (i, &id) in self.graph.inputs().iter().enumerate() {
            self.separator(i);
            self.definition(ValueId::of(id));
        }
        self.out.push_str(") -> (");
        for (i, &value) in self.graph.outputs().iter().enumerate() {
            self.separator(i);
            self.reference(Some(value));
        }
        self.out.push_str(") {\n");
    }

    /// The constants that a node is the first to read, in slot order, then the node.
    fn with_constants(&mut self, id: NodeId, printed: &mut BTreeSet<NodeId>) {
        for value in self.graph.node_inputs(id).into_iter().flatten() {
            if matches!(self.graph.node(value.node).op, Op::Constant(_)) {
                self.line(value.node, printed);
            }
        }
        self.line(id, printed);
    }

    fn line(&mut self, id: NodeId, printed: &mut BTreeSet<NodeId>) {
        if printed.insert(id) {
            self.out.push_str("  ");
            self.node(id, self.graph.node(id));
            self.out.push('\n');
        }
    }

    fn separator(&mut self, i: usize) {
        if i > 0 {
            self.out.push_str(", ");
        }
    }

    fn node(&mut self, id: NodeId, node: &Node) {
        if let Op::Constant(tensor) = &node.op {
            self.reference(Some(ValueId::of(id)));
            self.out.push_str(" = ");
            if node.overridable {
                self.out.push_str("overridable ");
            }
            tensor::write_tensor(&mut self.out, tensor, self.options.values);
            return;
        }
        if node.outputs.is_empty() {
            self.out.push_str("()");
        }
        for (port, output) in node.outputs.iter().enumerate() {
            self.separator(port);
            let value = ValueId { node: id, port: port as u32 };
            if output.name.is_empty() && !self.read.contains(&value) {
                self.out.push('_');
            } else {
                self.definition(value);
            }
        }
        self.out.push_str(" = ");
        self.operator(&node.op);
        let first = node.outputs.first().map_or("", |v| &v.name);
        if self.options.node_names && !node.name.is_empty() && node.name != first {
            write_name(&mut self.out, '@', &node.name);
        }
        self.attributes(&node.op);
        self.operands(id, &node.op);
    }

    /// A value where it is made: its name and type.
    fn definition(&mut self, value: ValueId) {
        self.reference(Some(value));
        let ty = self.graph.get(value.node).and_then(|n| n.outputs.get(value.port as usize)).map(|v| &v.ty);
        if let Some(ty) = ty.filter(|ty| **ty != ValueType::default()) {
            let _ = write!(self.out, ": {ty}");
        }
    }

    /// A value where it is read. A value that has no name, as it should, goes by its number.
    fn reference(&mut self, value: Option<ValueId>) {
        let Some(id) = value else {
            self.out.push('_');
            return;
        };
        let value = self.graph.get(id.node).and_then(|n| n.outputs.get(id.port as usize));
        match value.map(|v| v.name.as_str()).filter(|name| !name.is_empty()) {
            Some(name) => write_name(&mut self.out, '%', name),
            None => write_name(&mut self.out, '%', &id.to_string()),
        }
    }

    fn operator(&mut self, op: &Op) {
        if let Op::Opaque(Opaque { domain, op_type, .. }) = op {
            if !domain.is_empty() {
                self.word(domain, literal::is_path(domain));
                self.out.push_str("::");
            } else if Op::MODELLED.contains(&op_type.as_str())
                || matches!(op_type.as_str(), "Input" | "Constant")
            {
                self.out.push_str("opaque ");
            }
        }
        let op_type = op.op_type();
        self.word(op_type, literal::is_word(op_type));
    }

    /// A word, quoted if it would not read back as one.
    fn word(&mut self, word: &str, bare: bool) {
        if bare && !RESERVED.contains(&word) {
            self.out.push_str(word);
        } else {
            write_string(&mut self.out, word.as_bytes());
        }
    }

    fn attributes(&mut self, op: &Op) {
        let attrs = op.attrs();
        if attrs.is_empty() {
            return;
        }
        let elide = matches!(op, Op::Opaque(_)) && !self.options.values;
        self.out.push('<');
        for (i, (name, value)) in attrs.iter().enumerate() {
            self.separator(i);
            self.word(name, literal::is_word(name));
            self.out.push('=');
            match (op, value) {
                // The one modelled attribute that is an element type by number.
                (Op::Cast(cast), _) if name == "to" => self.out.push_str(cast.to.name()),
                _ => self.attribute(value, elide),
            }
        }
        self.out.push('>');
    }

    fn attribute(&mut self, value: &Attr, elide: bool) {
        if elide && let Some(n) = long_attr(value) {
            let _ = write!(self.out, "elided({n} bytes)");
            return;
        }
        match value {
            Attr::Int(v) => {
                let _ = write!(self.out, "{v}");
            }
            Attr::Float(v) => {
                let _ = write!(self.out, "{v:?}");
            }
            Attr::Str(v) => write_string(&mut self.out, v),
            Attr::Ints(v) => self.list("", v, |out, v| {
                let _ = write!(out, "{v}");
            }),
            Attr::Floats(v) => self.list("floats", v, |out, v| {
                let _ = write!(out, "{v:?}");
            }),
            Attr::Strs(v) => self.list("strs", v, |out, v| write_string(out, v)),
            Attr::Tensor(t) => tensor::write_tensor(&mut self.out, t, self.options.values),
            Attr::Ref(name) => write_name(&mut self.out, '@', name),
            Attr::Encoded(bytes) => {
                let _ = write!(self.out, "elided({} bytes)", bytes.len());
            }
            Attr::Elided(n) => {
                let _ = write!(self.out, "elided({n} bytes)");
            }
        }
    }

    /// `[1,2]`; an empty list says by `prefix` what it is a list of.
    fn list<T>(&mut self, prefix: &str, items: &[T], write: impl Fn(&mut String, &T)) {
        if items.is_empty() {
            self.out.push_str(prefix);
        }
        self.out.push('[');
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push(',');
            }
            write(&mut self.out, item);
        }
        self.out.push(']');
    }

    fn operands(&mut self, id: NodeId, op: &Op) {
        let slots = self.graph.node_inputs(id);
        let n_captures = if let Op::Opaque(op) = op { op.n_captures } else { 0 };
        let first_capture = slots.len().saturating_sub(n_captures);
        self.out.push('(');
        for (slot, value) in slots.into_iter().enumerate() {
            if n_captures > 0 && slot == first_capture {
                self.out.push_str("; ");
            } else {
                self.separator(slot);
            }
            self.reference(value);
        }
        self.out.push(')');
    }
}

/// The size in bytes of an attribute that is too long to be read by people.
fn long_attr(value: &Attr) -> Option<usize> {
    let (n, limit) = match value {
        Attr::Str(v) => (v.len(), LONG_ATTR),
        Attr::Ints(v) => (size_of_val(v.as_slice()), 2 * LONG_ATTR),
        Attr::Floats(v) => (size_of_val(v.as_slice()), LONG_ATTR),
        Attr::Strs(v) => (v.iter().map(|s| s.len()).sum(), LONG_ATTR),
        _ => return None,
    };
    (n > limit).then_some(n)
}

/// Whether the text format can write and read single values of this type.
pub(crate) fn is_numeric(dtype: DType) -> bool {
    dtype.is_float() || dtype.is_integer()
}
