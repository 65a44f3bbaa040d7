//! The graph of the source with its changes spliced in.

use super::Exporter;
use super::patch::{contradicts, insertion_point, with_field, with_strings};
use crate::bodies::check_captures;
use crate::encode::{self, Names, Storage, place};
use crate::error::Problem;
use crate::external::Kind;
use crate::proto::ValueInfoProto;
use crate::source::graph as field;
use crate::types;
use crate::wire::{Field, LEN, Message, Splice};
use basisopt_ir::Op;
use basisopt_ir::graph::NodeId;
use bytes::Bytes;
use prost::Message as _;
use std::collections::BTreeMap;

impl Exporter<'_> {
    pub(super) fn graph_message(&mut self) -> Result<Splice, Problem> {
        let s = self.s;
        let mut out = Splice::default();
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        // Positions of the source nodes in the new order, and how far that has been written.
        let positions: BTreeMap<usize, usize> =
            self.nodes.iter().enumerate().filter_map(|(at, (_, i))| Some(((*i)?, at))).collect();
        let mut written = 0;
        let end_of = |number| insertion_point(&s.graph, number);
        let ends = [field::NODE, field::INITIALIZER, field::INPUT, field::OUTPUT].map(end_of);
        for i in 0..=s.graph.fields.len() {
            // What is new goes behind what there is of its kind.
            if i == ends[0] {
                self.nodes_until(self.nodes.len(), &mut written, &mut out)?;
            }
            if i == ends[1] {
                self.put_new_constants(&mut out)?;
            }
            if i == ends[2] {
                self.put_new_inputs(&mut out);
            }
            if i == ends[3] {
                for n in counts.get(&field::OUTPUT).copied().unwrap_or(0)..self.graph.outputs().len() {
                    self.put_output(n, &mut out)?;
                }
            }
            let Some(f) = s.graph.fields.get(i) else { break };
            if f.wire_type != LEN {
                out.push(s.graph.whole(f), Some(&s.model.bytes));
                continue;
            }
            let n = counts.entry(f.number).or_insert(0);
            let index = *n;
            *n += 1;
            match f.number {
                field::NODE => {
                    if let Some(&at) = positions.get(&index) {
                        self.nodes_until(at + 1, &mut written, &mut out)?;
                    }
                }
                field::NAME if self.graph.name != s.name => {
                    out.put_field(field::NAME, self.graph.name.as_bytes())
                }
                field::INITIALIZER => {
                    if let Some(&id) = self.kept.initializers.get(&index) {
                        self.put_tensor(f, Kind::Tensor, id, &mut out)?;
                    }
                }
                field::SPARSE_INITIALIZER => {
                    if let Some(&id) = self.kept.sparse.get(&index) {
                        self.put_tensor(f, Kind::Sparse, id, &mut out)?;
                    }
                }
                field::INPUT => self.put_input(f, index, &mut out)?,
                field::OUTPUT if index < self.graph.outputs().len() => self.put_output(index, &mut out)?,
                field::OUTPUT => {}
                field::VALUE_INFO if self.is_stale(f)? => {}
                field::QUANTIZATION if self.is_gone(&self.name_in(f, 1)?) => {}
                _ => out.push(s.graph.whole(f), Some(&s.model.bytes)),
            }
        }
        Ok(out)
    }

    pub(super) fn name_in(&self, field: &Field, number: u32) -> Result<String, Problem> {
        let message = Message::parse(self.s.graph.body(field));
        let name = message.and_then(|m| m.string(number)).map_err(|e| Problem::damaged("the graph", e))?;
        Ok(name.unwrap_or_default())
    }

    fn is_gone(&self, name: &str) -> bool {
        !self.now.contains_key(name) && self.was.contains(name)
    }

    /// Whether a `value_info` is about a value that is gone, or that a pass made with another type.
    fn is_stale(&self, field: &Field) -> Result<bool, Problem> {
        let name = self.name_in(field, 1)?;
        let Some(&id) = self.now.get(name.as_str()) else { return Ok(self.was.contains(&name)) };
        if self.graph.node(id.node).origin.is_some() {
            return Ok(false);
        }
        let info = ValueInfoProto::decode(self.s.graph.body(field));
        let info = info.map_err(|e| Problem::damaged("a value_info", e))?;
        Ok(contradicts(&types::value_type(&info, &name)?, &self.graph.value(id).ty))
    }

    // ---- nodes --------------------------------------------------------------------------------

    fn nodes_until(&mut self, end: usize, written: &mut usize, out: &mut Splice) -> Result<(), Problem> {
        while *written < end {
            let (id, index) = self.nodes[*written];
            *written += 1;
            match index.and_then(|i| self.source_nodes.get(i).copied()) {
                Some(f) => self.put_source_node(id, f, out)?,
                None => {
                    let node = self.encoder.node(self.graph, id)?;
                    out.nest(field::NODE, node, None);
                }
            }
        }
        Ok(())
    }

    fn put_source_node(&self, id: NodeId, f: &Field, out: &mut Splice) -> Result<(), Problem> {
        let (s, what) = (self.s, place(self.graph, id));
        let damaged = |e| Problem::damaged(&what, e);
        let node = Message::parse(s.graph.body(f)).map_err(damaged)?;
        let names = Names::of(self.graph, id);
        let attributes: Vec<Bytes> = node.all(5).map(|a| node.body(a)).collect();
        check_captures(attributes.iter(), &names.captures, &what)?;
        let unchanged = node.strings(1).map_err(damaged)? == names.inputs
            && node.strings(2).map_err(damaged)? == names.outputs;
        if unchanged {
            match self.layout.relocated(Kind::Node, &node.bytes, &what)? {
                Some(moved) => out.nest(field::NODE, moved, Some(&s.model.bytes)),
                None => out.push(s.graph.whole(f), Some(&s.model.bytes)),
            }
            return Ok(());
        }
        let touched = with_strings(&node, &[(1, &names.inputs), (2, &names.outputs)], &s.model.bytes);
        let touched = match self.layout.relocated(Kind::Node, &touched.clone().concat(), &what)? {
            Some(moved) => moved,
            None => touched,
        };
        out.nest(field::NODE, touched, Some(&s.model.bytes));
        Ok(())
    }

    // ---- tensors ------------------------------------------------------------------------------

    /// A tensor of the source, perhaps under another name or at another place.
    fn put_tensor(&self, f: &Field, kind: Kind, id: NodeId, out: &mut Splice) -> Result<(), Problem> {
        let (s, what) = (self.s, place(self.graph, id));
        let damaged = |e| Problem::damaged(&what, e);
        let name = self.graph.node(id).outputs.first().map_or("", |v| &v.name);
        let bytes = s.graph.body(f);
        let message = Message::parse(bytes.clone()).map_err(damaged)?;
        // The name of a sparse tensor is that of its values.
        let (holder, at) = match kind {
            Kind::Sparse => {
                let values = message.last(1).unwrap_or_default();
                (Message::parse(values).map_err(damaged)?, Some(1))
            }
            _ => (message.clone(), None),
        };
        let renamed = (holder.string(8).map_err(damaged)?.as_deref() != Some(name)).then(|| {
            let tensor = with_strings(&holder, &[(8, &[name.to_owned()])], &s.model.bytes);
            match at {
                None => tensor,
                Some(number) => with_field(&message, number, tensor, &s.model.bytes),
            }
        });
        let moved = match &renamed {
            None => self.layout.relocated(kind, &bytes, &what)?,
            Some(renamed) => self.layout.relocated(kind, &renamed.clone().concat(), &what)?,
        };
        match moved.or(renamed) {
            Some(changed) => out.nest(f.number, changed, Some(&s.model.bytes)),
            None => out.push(s.graph.whole(f), Some(&s.model.bytes)),
        }
        Ok(())
    }

    fn put_new_constants(&mut self, out: &mut Splice) -> Result<(), Problem> {
        for id in std::mem::take(&mut self.new_constants) {
            let node = self.graph.node(id);
            let (Op::Constant(tensor), Some(value)) = (&node.op, node.outputs.first()) else { continue };
            let bytes = self.encoder.values(&format!("constant {:?}", value.name), tensor)?;
            let length = bytes.len();
            let place = self.layout.append(&bytes);
            let storage = match &place {
                Some((location, offset)) => Storage::External { location, offset: *offset, length },
                None => Storage::Inline(bytes),
            };
            let tensor = self.encoder.tensor(&value.name, tensor.dtype(), tensor.shape(), storage);
            out.nest(field::INITIALIZER, tensor, None);
        }
        Ok(())
    }

    // ---- inputs and outputs -------------------------------------------------------------------

    fn put_input(&self, f: &Field, index: usize, out: &mut Splice) -> Result<(), Problem> {
        let name = self.name_in(f, 1)?;
        let kept = match self.kept.inputs.get(&index) {
            Some(&id) => Some(id),
            // A default of an input, unless it was frozen; before IR version 4 all initializers are.
            None => self
                .kept
                .by_name
                .get(&name)
                .copied()
                .filter(|&id| self.graph.ir_version < 4 || self.graph.node(id).overridable),
        };
        let Some(value) = kept.and_then(|id| self.graph.node(id).outputs.first()) else { return Ok(()) };
        self.put_info(f, &name, &value.name, out)
    }

    fn put_info(&self, f: &Field, old: &str, new: &str, out: &mut Splice) -> Result<(), Problem> {
        if old == new {
            out.push(self.s.graph.whole(f), Some(&self.s.model.bytes));
            return Ok(());
        }
        let info = Message::parse(self.s.graph.body(f)).map_err(|e| Problem::damaged("a value_info", e))?;
        let renamed = with_strings(&info, &[(1, &[new.to_owned()])], &self.s.model.bytes);
        out.nest(f.number, renamed, Some(&self.s.model.bytes));
        Ok(())
    }

    fn put_new_inputs(&self, out: &mut Splice) {
        for &id in &self.new_inputs {
            if let Some(value) = self.graph.node(id).outputs.first() {
                out.push_field(field::INPUT, encode::value_info(&value.name, &value.ty));
            }
        }
    }

    /// The n-th output: as it stands in the file under this name, else as the n-th of the file
    /// under the new name, else new.
    fn put_output(&self, n: usize, out: &mut Splice) -> Result<(), Problem> {
        let Some(&id) = self.graph.outputs().get(n) else { return Ok(()) };
        let value = self.graph.value(id);
        let source = self.output_names.get(&value.name).copied().unwrap_or(n);
        match self.source_outputs.get(source) {
            Some((f, old)) => self.put_info(f, old, &value.name, out)?,
            None => out.push_field(field::OUTPUT, encode::value_info(&value.name, &value.ty)),
        }
        Ok(())
    }
}
