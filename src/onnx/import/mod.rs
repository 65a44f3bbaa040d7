//! `ModelProto` to [`Graph`].
//!
//! The file is never decoded as a whole: it is cut into its fields, and each node, tensor and type
//! is read by itself, so that memory stays in proportion to the file and weights stay slices of it.
//! Names are resolved over the whole graph first; a file whose nodes are out of order is accepted
//! as long as some order exists.

mod header;
mod order;

pub(crate) use header::is_standard;

use crate::error::Problem;
use crate::external::entries;
use crate::external::{DataFiles, Kind, map_tensors};
use crate::proto::ValueInfoProto;
use crate::source::OWN_METADATA;
use crate::source::{Inner, Source, graph as field, model, skeleton};
use crate::tensor::RawTensor;
use crate::wire::{Field, Message};
use crate::{NEWEST_OPSET, OLDEST_OPSET, attr, bodies, types};
use basisopt_ir::graph::{Graph, Node, NodeId, Origin, Value, ValueId, ValueType};
use basisopt_ir::op::Opaque;
use basisopt_ir::{Attrs, DType, Dim, Op};
use bytes::Bytes;
pub(crate) use header::functions;
use header::{ir_version, standard_opset};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// More nodes than this are no model; positions in the file are counted in fewer bits than this.
const MAX_NODES: usize = 1 << 22;

/// Reads a model.
pub(crate) fn import(
    file: String,
    path: Option<PathBuf>,
    dir: Option<PathBuf>,
    bytes: Bytes,
) -> Result<(Graph, Source), Problem> {
    let (model, message) = skeleton(bytes)?;
    let ir_version = ir_version(&model)?;
    let opset = standard_opset(&model, ir_version)?;
    let name = message.string(field::NAME).map_err(|e| Problem::damaged("the graph", e))?.unwrap_or_default();

    let mut graph = Graph::new(name.clone(), opset);
    graph.ir_version = ir_version;
    let mut importer = Importer {
        message: &message,
        functions: functions(&model)?,
        files: DataFiles::new(dir.clone()),
        types: BTreeMap::new(),
        defined: BTreeMap::new(),
        nodes: Vec::new(),
        ids: Ids::default(),
        graph,
    };
    importer.run()?;
    let Importer { graph, mut files, .. } = importer;
    for other in model.fields.iter().filter(|f| f.number != model::GRAPH) {
        if let Some(kind) = Kind::in_model(other.number) {
            check_data(kind, &model.body(other), "a model function", &mut files)?;
        }
    }
    let mut graph = graph;
    // What earlier runs of this program noted is the graph's own to extend and to take back.
    for (key, value) in entries(&model, model::METADATA).unwrap_or_default() {
        if key.starts_with(OWN_METADATA) {
            graph.metadata.insert(key, value);
        }
    }
    let revision = graph.revision();
    let source = Source::new(Inner {
        file,
        path,
        dir,
        model,
        graph: message,
        data: files,
        revision,
        opset,
        ir_version,
        name,
    });
    Ok((graph, source))
}

/// Opens and checks every data file that tensors inside a message refer to.
fn check_data(kind: Kind, bytes: &Bytes, place: &str, files: &mut DataFiles) -> Result<(), Problem> {
    let mut check = |tensor: &RawTensor, data: &crate::external::DataRef| {
        let place = format!("tensor {:?} of {place}", tensor.name);
        tensor.external_bytes(data, &place, files).map(|_| None)
    };
    map_tensors(kind, bytes, place, &mut check).map(|_| ())
}

/// Who defines a value.
#[derive(Clone, Copy, Debug)]
enum Def {
    Input(usize),
    Initializer(usize),
    Sparse(usize),
    Node(usize, usize),
}

/// A node of the file, ready to be added to the graph.
struct Prepared {
    /// Taken when it is added.
    node: Option<Node>,
    place: String,
    /// Names in slot order, captures last.
    inputs: Vec<String>,
}

#[derive(Default)]
struct Ids {
    inputs: BTreeMap<usize, NodeId>,
    initializers: BTreeMap<usize, NodeId>,
    sparse: BTreeMap<usize, NodeId>,
    nodes: Vec<Option<NodeId>>,
}

struct Importer<'a> {
    message: &'a Message,
    functions: BTreeSet<(String, String)>,
    files: DataFiles,
    types: BTreeMap<String, ValueType>,
    defined: BTreeMap<String, Def>,
    nodes: Vec<Prepared>,
    ids: Ids,
    graph: Graph,
}

impl Importer<'_> {
    fn run(&mut self) -> Result<(), Problem> {
        for number in [field::VALUE_INFO, field::OUTPUT, field::INPUT] {
            self.read_types(number)?;
        }
        let initializers = self.read_initializers()?;
        self.read_inputs(&initializers)?;
        let message = self.message;
        for (i, node) in message.all(field::NODE).enumerate() {
            self.prepare(i, node)?;
        }
        for i in self.order()? {
            self.add(i)?;
        }
        self.read_outputs()
    }

    fn info(&self, info: &Field) -> Result<ValueInfoProto, Problem> {
        ValueInfoProto::decode(self.message.body(info)).map_err(|e| Problem::damaged("a value_info", e))
    }

    fn read_types(&mut self, number: u32) -> Result<(), Problem> {
        for field in self.message.all(number) {
            let info = self.info(field)?;
            let ty = types::value_type(&info, &format!("value {:?}", info.name()))?;
            self.types.insert(info.name().to_owned(), ty);
        }
        Ok(())
    }

    fn define(&mut self, name: &str, def: Def, place: &dyn Fn() -> String) -> Result<(), Problem> {
        match self.defined.insert(name.to_owned(), def) {
            None => Ok(()),
            Some(earlier) => Err(Problem::Duplicate {
                place: place(),
                earlier: self.describe(earlier),
                name: name.to_owned(),
            }),
        }
    }

    fn describe(&self, def: Def) -> String {
        match def {
            Def::Input(i) => format!("graph input {i}"),
            Def::Initializer(i) => format!("initializer {i}"),
            Def::Sparse(i) => format!("sparse initializer {i}"),
            Def::Node(i, _) => match self.nodes.get(i) {
                Some(node) => node.place.clone(),
                None => "the node itself".to_owned(),
            },
        }
    }

    /// Adds every initializer; their names.
    fn read_initializers(&mut self) -> Result<BTreeMap<String, NodeId>, Problem> {
        let mut names = BTreeMap::new();
        let message = self.message;
        for (i, field) in message.all(field::INITIALIZER).enumerate() {
            let place = |name: &str| match name {
                "" => format!("initializer {i}"),
                name => format!("initializer {name:?}"),
            };
            let bytes = message.body(field);
            let raw = RawTensor::parse(bytes.clone(), &place)?;
            let place = place(&raw.name);
            if raw.name.is_empty() {
                return Err(Problem::invalid(place, "has no name"));
            }
            let op = match raw.load(&place, &mut self.files)? {
                Some(tensor) => Op::Constant(tensor),
                None => carried(bytes, false),
            };
            let ty = ValueType {
                dtype: DType::from_onnx(raw.code),
                shape: Some(raw.shape.iter().map(|&d| Dim::Known(d)).collect()),
            };
            self.define(&raw.name, Def::Initializer(i), &|| place.clone())?;
            let id = self.add_source(raw.name.clone(), op, ty, Origin::Initializer(index(i)?));
            self.ids.initializers.insert(i, id);
            names.insert(raw.name, id);
        }
        for (i, field) in message.all(field::SPARSE_INITIALIZER).enumerate() {
            let bytes = message.body(field);
            let place = format!("sparse initializer {i}");
            let sparse = Message::parse(bytes.clone()).map_err(|e| Problem::damaged(&place, e))?;
            let values = RawTensor::parse(sparse.last(1).unwrap_or_default(), &|_| place.clone())?;
            let dims = sparse.varints(3).map_err(|e| Problem::damaged(&place, e))?;
            if values.name.is_empty() {
                return Err(Problem::invalid(place, "has no name"));
            }
            check_data(Kind::Sparse, &bytes, &place, &mut self.files)?;
            let shape = dims.iter().map(|&d| usize::try_from(d).map_or(Dim::Unknown, Dim::Known)).collect();
            let ty = ValueType { dtype: DType::from_onnx(values.code), shape: Some(shape) };
            self.define(&values.name, Def::Sparse(i), &|| place.clone())?;
            let op = carried(bytes, true);
            let id = self.add_source(values.name, op, ty, Origin::SparseInitializer(index(i)?));
            self.ids.sparse.insert(i, id);
        }
        Ok(names)
    }

    fn add_source(&mut self, name: String, op: Op, ty: ValueType, origin: Origin) -> NodeId {
        let id = self.graph.add_node(Node::new(name.clone(), op, vec![Value { name, ty }]), &[]);
        self.graph.set_origin(id, origin, false);
        id
    }

    /// Adds every graph input that is not an initializer, and notes which initializers a caller
    /// may override. Before IR version 4 every initializer had to be an input, so that says
    /// nothing.
    fn read_inputs(&mut self, initializers: &BTreeMap<String, NodeId>) -> Result<(), Problem> {
        let mut seen = BTreeMap::new();
        for (i, field) in self.message.all(field::INPUT).enumerate() {
            let info = self.info(field)?;
            let (name, place) = (info.name().to_owned(), || format!("graph input {i}"));
            if name.is_empty() {
                return Err(Problem::invalid(place(), "has no name"));
            }
            if let Some(earlier) = seen.insert(name.clone(), i) {
                let earlier = format!("graph input {earlier}");
                return Err(Problem::Duplicate { place: place(), earlier, name });
            }
            if let Some(&id) = initializers.get(&name) {
                if let Some(origin) = self.graph.node(id).origin {
                    self.graph.set_origin(id, origin, self.graph.ir_version >= 4);
                }
                continue;
            }
            self.define(&name, Def::Input(i), &place)?;
            let ty = self.types.get(&name).cloned().unwrap_or_default();
            let id = self.graph.add_input(name, ty).node;
            self.graph.set_origin(id, Origin::Input(index(i)?), false);
            self.ids.inputs.insert(i, id);
        }
        Ok(())
    }

    /// Reads a node and defines its outputs.
    fn prepare(&mut self, i: usize, field: &Field) -> Result<(), Problem> {
        if i >= MAX_NODES {
            let reason = format!("has more than {MAX_NODES} nodes");
            return Err(Problem::TooLarge { place: "the graph".to_owned(), reason });
        }
        let whole = self.message.body(field);
        let damaged = |e| Problem::damaged(format!("node {i}"), e);
        let node = Message::parse(whole).map_err(damaged)?;
        let string = |number| node.string(number).map_err(damaged).map(Option::unwrap_or_default);
        let (name, op_type, domain) = (string(3)?, string(4)?, string(7)?);
        let mut inputs = node.strings(1).map_err(damaged)?;
        let outputs = node.strings(2).map_err(damaged)?;
        let place = match (name.as_str(), outputs.iter().find(|o| !o.is_empty())) {
            ("", None) => format!("node {i} ({op_type})"),
            ("", Some(output)) => format!("node {i} ({op_type}, makes {output:?})"),
            (name, _) => format!("node {name:?} ({op_type})"),
        };
        if op_type.is_empty() {
            return Err(Problem::invalid(place, "has no op_type"));
        }
        if self.graph.opset == 0 && is_standard(&domain) {
            return Err(Problem::Opset {
                found: format!("none (needed by {place})"),
                oldest: OLDEST_OPSET,
                newest: NEWEST_OPSET,
                remedy: "add an opset_import for the standard domain",
            });
        }

        let encoded: Vec<Bytes> = node.all(5).map(|f| node.body(f)).collect();
        let names = bodies::names(encoded.iter()).map_err(|e| Problem::damaged(&place, e))?;
        self.graph.reserve_names(names.defined);
        let captures = names.free;
        let attrs = encoded
            .iter()
            .map(|bytes| {
                check_data(Kind::Attribute, bytes, &place, &mut self.files)?;
                attr::read(bytes, &place, &mut self.files)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let is_function = self.functions.contains(&(domain.clone(), op_type.clone()));
        let plain = is_standard(&domain) && !is_function && string(8)?.is_empty() && captures.is_empty();
        let constant = match (op_type.as_str(), outputs.len(), inputs.len()) {
            ("Constant", 1, 0) if plain => attr::constant(&attrs),
            _ => None,
        };
        let mut seen = BTreeSet::new();
        if let Some((twice, _)) = attrs.iter().find(|(name, _)| !seen.insert(name)) {
            return Err(Problem::invalid(place, format!("has the attribute {twice:?} twice")));
        }
        let op = match constant {
            Some(tensor) => Op::Constant(tensor),
            None if plain => Op::from_attrs(&op_type, Attrs::from_iter(attrs)),
            None => Op::Opaque(Opaque {
                domain: if is_standard(&domain) { String::new() } else { domain },
                op_type,
                attrs: Attrs::from_iter(attrs),
                n_captures: captures.len(),
            }),
        };
        inputs.extend(captures);

        let mut values = Vec::with_capacity(outputs.len());
        for (port, name) in outputs.into_iter().enumerate() {
            if !name.is_empty() {
                self.define(&name, Def::Node(i, port), &|| place.clone())?;
            }
            let declared = self.types.get(&name).cloned();
            let ty = match &op {
                Op::Constant(t) => ValueType::fixed(t.dtype(), t.shape()),
                _ => declared.unwrap_or_default(),
            };
            values.push(Value { name, ty });
        }
        self.nodes.push(Prepared { node: Some(Node::new(name, op, values)), place, inputs });
        Ok(())
    }

    fn value_of(&self, name: &str) -> Option<ValueId> {
        let (node, port) = match *self.defined.get(name)? {
            Def::Input(i) => (*self.ids.inputs.get(&i)?, 0),
            Def::Initializer(i) => (*self.ids.initializers.get(&i)?, 0),
            Def::Sparse(i) => (*self.ids.sparse.get(&i)?, 0),
            Def::Node(i, port) => ((*self.ids.nodes.get(i)?)?, port),
        };
        Some(ValueId { node, port: port as u32 })
    }

    fn add(&mut self, i: usize) -> Result<(), Problem> {
        self.ids.nodes.resize(self.nodes.len(), None);
        let inputs: Vec<_> = self.nodes[i].inputs.iter().map(|name| self.value_of(name)).collect();
        if let Some(node) = self.nodes[i].node.take() {
            let id = self.graph.add_node(node, &inputs);
            self.graph.set_origin(id, Origin::Node(index(i)?), false);
            self.ids.nodes[i] = Some(id);
        }
        Ok(())
    }

    fn read_outputs(&mut self) -> Result<(), Problem> {
        for (i, field) in self.message.all(field::OUTPUT).enumerate() {
            let info = self.info(field)?;
            let place = format!("graph output {i}");
            let value = self.value_of(info.name());
            let value = value.ok_or_else(|| Problem::Dangling { place, name: info.name().to_owned() })?;
            self.graph.add_output(value);
            if self.graph.value(value).ty == ValueType::default()
                && let Some(ty) = self.types.get(info.name())
            {
                self.graph.set_type(value, ty.clone());
            }
        }
        Ok(())
    }
}

/// An initializer that no [`basisopt_ir::Tensor`] can hold, as the `Constant` node that it amounts
/// to.
fn carried(tensor: Bytes, sparse: bool) -> Op {
    let attrs = Attrs::from_iter([attr::carried(tensor, sparse)]);
    Op::Opaque(Opaque { domain: String::new(), op_type: "Constant".to_owned(), attrs, n_captures: 0 })
}

fn index(i: usize) -> Result<u32, Problem> {
    u32::try_from(i).map_err(|_| Problem::TooLarge {
        place: "the graph".to_owned(),
        reason: "has more than 2^32 entries of one kind".to_owned(),
    })
}
