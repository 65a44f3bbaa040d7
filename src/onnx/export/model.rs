//! What stands around the graph: versions, operator sets, metadata.

use super::Exporter;
use super::patch::insertion_point;
use crate::encode::{check_size, place};
use crate::error::Problem;
use crate::external::{Kind, entry};
use crate::import::{functions, is_standard};
use crate::source::{OWN_METADATA, model};
use crate::wire::{LEN, Message, Splice};
use std::collections::{BTreeMap, BTreeSet};

impl Exporter<'_> {
    pub(super) fn model_message(&self, body: Splice, stamp: bool) -> Result<Splice, Problem> {
        let s = self.s;
        self.check_domains()?;
        let damaged = |e| Problem::damaged("the model", e);
        let mut notes: BTreeMap<&str, &str> = BTreeMap::new();
        if stamp {
            notes.extend(self.graph.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        }
        let (mut body, mut out) = (Some(body), Splice::default());
        let metadata_end = insertion_point(&s.model, model::METADATA);
        for i in 0..=s.model.fields.len() {
            if i == metadata_end {
                for (key, value) in self.graph.metadata.iter().filter(|_| stamp) {
                    if notes.remove(key.as_str()).is_some() {
                        out.nest(model::METADATA, entry(key, value), None);
                    }
                }
            }
            let Some(f) = s.model.fields.get(i) else { break };
            let parse = || Message::parse(s.model.body(f)).map_err(damaged);
            let changed = match f.number {
                model::GRAPH => body.take(),
                model::IR_VERSION if self.graph.ir_version != s.ir_version => {
                    out.put_varint_field(model::IR_VERSION, self.graph.ir_version as u64);
                    continue;
                }
                model::OPSET_IMPORT if self.graph.opset != s.opset => {
                    let domain = parse()?.string(1).map_err(damaged)?;
                    is_standard(domain.as_deref().unwrap_or_default())
                        .then(|| opset(domain.as_deref(), self.graph.opset))
                }
                model::METADATA => {
                    let old = parse()?;
                    let key = old.string(1).map_err(damaged)?.unwrap_or_default();
                    match notes.remove(key.as_str()) {
                        // Taken back by a pass.
                        None if stamp && key.starts_with(OWN_METADATA) => continue,
                        Some(new) if old.string(2).map_err(damaged)?.as_deref() != Some(new) => {
                            Some(entry(&key, new))
                        }
                        _ => None,
                    }
                }
                number => match Kind::in_model(number).filter(|_| f.wire_type == LEN) {
                    Some(kind) => self.layout.relocated(kind, &s.model.body(f), "a model function")?,
                    None => None,
                },
            };
            match changed {
                Some(splice) => out.nest(f.number, splice, Some(&s.model.bytes)),
                None => out.push(s.model.whole(f), Some(&s.model.bytes)),
            }
        }
        check_size(out.len(), "the model")?;
        Ok(out)
    }

    /// A new node may only use operator sets that the model imports.
    fn check_domains(&self) -> Result<(), Problem> {
        let damaged = |e| Problem::damaged("opset_import", e);
        let mut imported = BTreeSet::new();
        for f in self.s.model.all(model::OPSET_IMPORT) {
            let import = Message::parse(self.s.model.body(f)).map_err(damaged)?;
            let domain = import.string(1).map_err(damaged)?.unwrap_or_default();
            imported.insert(if is_standard(&domain) { String::new() } else { domain });
        }
        let functions = functions(&self.s.model)?;
        for (id, _) in self.nodes.iter().filter(|(_, origin)| origin.is_none()) {
            let op = &self.graph.node(*id).op;
            let domain = op.domain();
            // A function that is called as a standard operator takes its place.
            if domain.is_empty() && functions.iter().any(|(d, name)| is_standard(d) && name == op.op_type()) {
                let reason = format!("would call the model's own function {:?}", op.op_type());
                return Err(Problem::invalid(place(self.graph, *id), reason));
            }
            if !imported.contains(domain) {
                let name = if domain.is_empty() { "ai.onnx" } else { domain };
                let reason = format!("is of the operator set {name:?}, which the model does not import");
                return Err(Problem::invalid(place(self.graph, *id), reason));
            }
        }
        Ok(())
    }
}

/// An `OperatorSetIdProto`.
pub(crate) fn opset(domain: Option<&str>, version: i64) -> Splice {
    let mut out = Splice::default();
    if let Some(domain) = domain {
        out.put_field(1, domain.as_bytes());
    }
    out.put_varint_field(2, version as u64);
    out
}
