//! New parts of a model: nodes, initializers and inputs that came from no file.

use crate::attr;
use crate::bodies::check_captures;
use crate::error::Problem;
use crate::external::entry;
use crate::types;
use crate::wire::Splice;
use basisopt_ir::graph::{Graph, NodeId, ValueType};
use basisopt_ir::tensor::Tensor;
use basisopt_ir::{Attr, DType, Op};
use bytes::Bytes;
use prost::Message as _;

/// What protobuf can hold.
pub(crate) const MAX_BYTES: usize = i32::MAX as usize;
/// First IR version in which nodes have `metadata_props`.
const METADATA_SINCE: i64 = 10;

/// Where the values of an initializer go.
pub(crate) enum Storage<'a> {
    /// Into the model, as `raw_data`.
    Inline(Bytes),
    /// Into a data file; the values are there already.
    External { location: &'a str, offset: u64, length: usize },
}

/// A node of a model as messages and names see it.
pub(crate) struct Names {
    /// Formal inputs; an omitted one is empty.
    pub inputs: Vec<String>,
    /// What the bodies of the node read by name.
    pub captures: Vec<String>,
    /// Outputs; one that nobody asked for is empty.
    pub outputs: Vec<String>,
}

impl Names {
    pub fn of(graph: &Graph, id: NodeId) -> Self {
        let node = graph.node(id);
        let name = |value: Option<_>| value.map_or_else(String::new, |v| graph.value(v).name.clone());
        let mut inputs: Vec<String> = graph.node_inputs(id).into_iter().map(name).collect();
        let n_captures = if let Op::Opaque(op) = &node.op { op.n_captures } else { 0 };
        let captures = inputs.split_off(inputs.len().saturating_sub(n_captures));
        let outputs = node.outputs.iter().map(|v| v.name.clone()).collect();
        Self { inputs, captures, outputs }
    }
}

/// Words for a node in errors.
pub(crate) fn place(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    format!("node {:?} ({})", node.label(), node.op.op_type())
}

/// Encodes what no file holds, and keeps count of what it materialises.
pub(crate) struct Encoder {
    pub ir_version: i64,
    n_bytes: usize,
}

impl Encoder {
    pub fn new(ir_version: i64) -> Self {
        Self { ir_version, n_bytes: 0 }
    }

    /// The values of a tensor. Sizes are added up before anything is materialised, so that a few
    /// bytes of text that ask for terabytes get an error.
    pub fn values(&mut self, place: &str, tensor: &Tensor) -> Result<Bytes, Problem> {
        if tensor.is_elided() {
            let reason = "its values were elided".to_owned();
            return Err(Problem::Elided { place: place.to_owned(), reason });
        }
        if tensor.generator().is_some() || tensor.splat_element().is_some() {
            let n = tensor.dtype().n_bytes(tensor.len()).unwrap_or(usize::MAX);
            self.n_bytes = self.n_bytes.saturating_add(n);
            check_size(self.n_bytes, place)?;
        }
        tensor.to_bytes().map_err(|source| Problem::Tensor { place: place.to_owned(), source })
    }

    /// A `TensorProto`.
    pub fn tensor(&mut self, name: &str, dtype: DType, shape: &[usize], storage: Storage<'_>) -> Splice {
        let mut out = Splice::default();
        shape.iter().for_each(|&d| out.put_varint_field(1, d as u64));
        out.put_varint_field(2, dtype as u64);
        if !name.is_empty() {
            out.put_field(8, name.as_bytes());
        }
        match storage {
            Storage::Inline(bytes) => out.push_field(9, bytes),
            Storage::External { location, offset, length } => {
                out.nest(13, entry("location", location), None);
                out.nest(13, entry("offset", &offset.to_string()), None);
                out.nest(13, entry("length", &length.to_string()), None);
                out.put_varint_field(14, 1);
            }
        }
        out
    }

    /// A `NodeProto`.
    pub fn node(&mut self, graph: &Graph, id: NodeId) -> Result<Splice, Problem> {
        let node = graph.node(id);
        let place = place(graph, id);
        let mut names = Names::of(graph, id);
        while names.inputs.last().is_some_and(String::is_empty) {
            names.inputs.pop();
        }
        let attrs = attr::of_op(&node.op);
        let bodies = attrs.iter().filter_map(|(_, value)| match value {
            Attr::Encoded(bytes) => Some(bytes),
            _ => None,
        });
        check_captures(bodies, &names.captures, &place)?;
        let mut out = Splice::default();
        names.inputs.iter().for_each(|name| out.put_field(1, name.as_bytes()));
        names.outputs.iter().for_each(|name| out.put_field(2, name.as_bytes()));
        if !node.name.is_empty() {
            out.put_field(3, node.name.as_bytes());
        }
        out.put_field(4, node.op.op_type().as_bytes());
        for (name, value) in attrs {
            let mut tensor = |t: &Tensor| {
                let bytes = self.values(&place, t)?;
                Ok(self.tensor("", t.dtype(), t.shape(), Storage::Inline(bytes)))
            };
            out.nest(5, attr::write(&name, &value, &place, &mut tensor)?, None);
        }
        if !node.op.domain().is_empty() {
            out.put_field(7, node.op.domain().as_bytes());
        }
        if self.ir_version >= METADATA_SINCE {
            node.metadata.iter().for_each(|(key, value)| out.nest(9, entry(key, value), None));
        }
        Ok(out)
    }
}

/// A `ValueInfoProto`.
pub(crate) fn value_info(name: &str, ty: &ValueType) -> Bytes {
    Bytes::from(types::value_info(name, ty).encode_to_vec())
}

/// Refuses what no protobuf reader would take back.
pub(crate) fn check_size(n: usize, place: &str) -> Result<(), Problem> {
    if n <= MAX_BYTES {
        return Ok(());
    }
    let reason = format!(
        "needs {n} bytes; a protobuf file can hold {MAX_BYTES}. Convert the input to external data first"
    );
    Err(Problem::TooLarge { place: place.to_owned(), reason })
}
