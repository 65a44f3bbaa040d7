//! [`Graph`] to `ModelProto`: the source file with the changes spliced in.
//!
//! What no pass touched leaves as the very bytes that came in, in the order in which they came:
//! nodes whose inputs and outputs bear the names that they bore, tensors, types, metadata, fields
//! that nobody knows. Of a touched node only the inputs and outputs are replaced. New nodes go where
//! the topological order puts them, new constants behind the last initializer.

mod body;
mod model;
mod patch;

pub(crate) use model::opset;

use crate::encode::{Encoder, check_size, place};
use crate::error::Problem;
use crate::external::Kind;
use crate::layout::{Layout, Refs, Target};
use crate::source::{Inner, Source, graph as field, model as model_field};
use crate::wire::{Field, LEN, Message, concat};
use basisopt_ir::Op;
use basisopt_ir::graph::{Graph, NodeId, Origin, ValueId};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// An encoded model: pieces to write one behind the other, most of them slices of the source file,
/// and the data files that belong to it.
#[derive(Clone, Debug)]
pub struct Encoded {
    pieces: Vec<Bytes>,
    data_files: Vec<(String, Vec<Bytes>)>,
}

impl Encoded {
    pub(crate) fn new(pieces: Vec<Bytes>, data_files: Vec<(String, Vec<Bytes>)>) -> Self {
        Self { pieces, data_files }
    }

    /// The model file in pieces.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// The data files: location relative to the model, and contents in pieces.
    pub fn data_files(&self) -> &[(String, Vec<Bytes>)] {
        &self.data_files
    }

    /// Size of the model file in bytes, without data files.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// Whether the model file has no bytes; it never does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The model file as one; copies it unless it is one piece.
    pub fn concat(&self) -> Bytes {
        concat(&self.pieces)
    }

    /// Writes the model file, without data files.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_to(&self, mut to: impl io::Write) -> io::Result<()> {
        self.pieces.iter().try_for_each(|piece| to.write_all(piece))
    }
}

/// Encodes a graph against the file it came from. With `force`, an untouched graph takes the way
/// of a touched one.
pub(crate) fn export(
    graph: &Graph,
    source: &Source,
    target: Target<'_>,
    force: bool,
) -> Result<Encoded, Problem> {
    let s = source.inner();
    let renamed = |(location, name): (&String, &String)| location != name;
    let renames = matches!(target, Target::Files(names) if names.iter().any(renamed));
    if !force && !renames && source.is_unchanged(graph) {
        let data = match target {
            Target::Files(_) => {
                s.data.files.iter().map(|(l, f)| (l.clone(), vec![f.bytes.clone()])).collect()
            }
            Target::InPlace => vec![],
        };
        return Ok(Encoded::new(vec![s.model.bytes.clone()], data));
    }
    // An untouched graph whose data files move gets no metadata either.
    let stamp = !source.is_unchanged(graph);
    let mut exporter = Exporter::new(graph, s, target)?;
    let body = exporter.graph_message()?;
    check_size(body.len(), "the graph")?;
    let pieces = exporter.model_message(body, stamp)?.into_pieces();
    Ok(Encoded::new(pieces, exporter.layout.into_files()))
}

struct Exporter<'a> {
    graph: &'a Graph,
    s: &'a Inner,
    layout: Layout,
    encoder: Encoder,
    /// What becomes a `NodeProto`, in order, with its index in the source.
    nodes: Vec<(NodeId, Option<usize>)>,
    /// What stays of the inputs and initializers of the source.
    kept: Kept,
    new_constants: Vec<NodeId>,
    new_inputs: Vec<NodeId>,
    source_nodes: Vec<&'a Field>,
    /// The outputs of the source by index and by name.
    source_outputs: Vec<(&'a Field, String)>,
    output_names: BTreeMap<String, usize>,
    /// The values of the source, and those there are now.
    was: BTreeSet<String>,
    now: BTreeMap<&'a str, ValueId>,
}

#[derive(Default)]
struct Kept {
    inputs: BTreeMap<usize, NodeId>,
    initializers: BTreeMap<usize, NodeId>,
    sparse: BTreeMap<usize, NodeId>,
    nodes: BTreeMap<usize, NodeId>,
    /// Initializers by their names in the source.
    by_name: BTreeMap<String, NodeId>,
}

impl<'a> Exporter<'a> {
    fn new(graph: &'a Graph, s: &'a Inner, target: Target<'_>) -> Result<Self, Problem> {
        let mut now = BTreeMap::new();
        let order = order(graph)?;
        for &node in &order {
            for (port, value) in
                graph.node(node).outputs.iter().enumerate().filter(|(_, v)| !v.name.is_empty())
            {
                let id = ValueId { node, port: port as u32 };
                if let Some(earlier) = now.insert(value.name.as_str(), id) {
                    let earlier = place(graph, earlier.node);
                    let name = value.name.clone();
                    return Err(Problem::Duplicate { place: place(graph, node), earlier, name });
                }
            }
        }
        let mut exporter = Self {
            graph,
            s,
            layout: Layout::default(),
            encoder: Encoder::new(graph.ir_version),
            nodes: Vec::new(),
            kept: Kept::default(),
            new_constants: Vec::new(),
            new_inputs: Vec::new(),
            source_nodes: s.graph.all(field::NODE).collect(),
            source_outputs: Vec::new(),
            output_names: BTreeMap::new(),
            was: BTreeSet::new(),
            now,
        };
        for id in order {
            exporter.classify(id);
        }
        exporter.read_source_names()?;
        exporter.plan(target)?;
        Ok(exporter)
    }

    /// Sorts a node by where it is written. A copy of a node of the file is new.
    fn classify(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        let kept = &mut self.kept;
        let (map, index) = match node.origin {
            Some(Origin::Input(i)) => (&mut kept.inputs, i),
            Some(Origin::Initializer(i)) => (&mut kept.initializers, i),
            Some(Origin::SparseInitializer(i)) => (&mut kept.sparse, i),
            Some(Origin::Node(i)) => (&mut kept.nodes, i),
            _ => return self.classify_new(id),
        };
        let index = index as usize;
        if map.contains_key(&index) {
            return self.classify_new(id);
        }
        map.insert(index, id);
        if matches!(node.origin, Some(Origin::Node(_))) {
            self.nodes.push((id, Some(index)));
        }
    }

    fn classify_new(&mut self, id: NodeId) {
        match self.graph.node(id).op {
            Op::Input => self.new_inputs.push(id),
            Op::Constant(_) => {
                self.new_constants.push(id);
                // Before IR version 4 every initializer has to be an input.
                if self.graph.ir_version < 4 || self.graph.node(id).overridable {
                    self.new_inputs.push(id);
                }
            }
            _ => self.nodes.push((id, None)),
        }
    }

    fn read_source_names(&mut self) -> Result<(), Problem> {
        let damaged = |e| Problem::damaged("the graph", e);
        for field in &self.s.graph.fields {
            let number = match field.number {
                field::NODE => 2,
                field::INITIALIZER => 8,
                field::INPUT => 1,
                _ => continue,
            };
            let message = Message::parse(self.s.graph.body(field)).map_err(damaged)?;
            self.was.extend(message.strings(number).map_err(damaged)?.into_iter().filter(|n| !n.is_empty()));
        }
        let s = self.s;
        for (i, field) in s.graph.all(field::OUTPUT).enumerate() {
            let name = self.name_in(field, 1)?;
            self.output_names.insert(name.clone(), i);
            self.source_outputs.push((field, name));
        }
        for (i, field) in s.graph.all(field::INITIALIZER).enumerate() {
            if let Some(&id) = self.kept.initializers.get(&i) {
                let tensor = Message::parse(self.s.graph.body(field)).map_err(damaged)?;
                let name = tensor.string(8).map_err(damaged)?.unwrap_or_default();
                self.kept.by_name.insert(name, id);
            }
        }
        Ok(())
    }

    /// Finds which external tensors stay, and where they go.
    fn plan(&mut self, target: Target<'_>) -> Result<(), Problem> {
        if self.s.data.files.is_empty() {
            return Ok(());
        }
        let (mut all, mut surviving) = (Refs::default(), Refs::default());
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for field in self.s.graph.fields.iter().filter(|f| f.wire_type == LEN) {
            let Some(kind) = Kind::Graph.child(field.number) else { continue };
            let n = counts.entry(field.number).or_insert(0);
            let stays = match field.number {
                field::NODE => self.kept.nodes.contains_key(n),
                field::INITIALIZER => self.kept.initializers.contains_key(n),
                _ => self.kept.sparse.contains_key(n),
            };
            *n += 1;
            let bytes = self.s.graph.body(field);
            all.note(kind, &bytes, "the graph")?;
            if stays {
                surviving.note(kind, &bytes, "the graph")?;
            }
        }
        for field in self.s.model.fields.iter().filter(|f| f.number != model_field::GRAPH) {
            if let Some(kind) = Kind::in_model(field.number) {
                for refs in [&mut all, &mut surviving] {
                    refs.note(kind, &self.s.model.body(field), "a model function")?;
                }
            }
        }
        self.layout = Layout::plan(self.s, &all, &surviving, target);
        Ok(())
    }
}

/// All nodes in topological order.
pub(crate) fn order(graph: &Graph) -> Result<Vec<NodeId>, Problem> {
    let order = graph.topological();
    if order.len() == graph.n_nodes() {
        return Ok(order);
    }
    let done: BTreeSet<NodeId> = order.into_iter().collect();
    let stuck = graph.node_ids().find(|id| !done.contains(id));
    Err(Problem::Cycle {
        place: stuck.map_or_else(String::new, |id| place(graph, id)),
        name: stuck
            .and_then(|id| graph.node_inputs(id).into_iter().flatten().find(|v| !done.contains(&v.node)))
            .map_or_else(String::new, |v| graph.value(v).name.clone()),
    })
}
