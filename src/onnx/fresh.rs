//! A model file for a graph that came from none, such as one parsed from text.

use crate::encode::{Encoder, Storage, check_size, place, value_info};
use crate::error::{OnnxError, Problem};
use crate::export::{opset, order};
use crate::external::entry;
use crate::source::{graph as field, model};
use crate::wire::Splice;
use crate::{NEWEST_IR_VERSION, NEWEST_OPSET, OLDEST_OPSET};
use basisopt_ir::{Graph, Op};
use bytes::Bytes;
use std::collections::BTreeSet;

/// Encodes a graph as a complete ONNX model with everything inside.
///
/// Constants become initializers. Generated and splat values are materialised, within the 2 GiB
/// that a protobuf file can have. Operator sets of other domains are imported in version 1, because
/// the graph does not know better.
///
/// # Errors
/// [`Problem::Elided`] for constants without values, [`Problem::Invalid`] for inputs without an
/// element type, [`Problem::Opset`] and [`Problem::IrVersion`] for versions out of range,
/// [`Problem::Cycle`] for a cyclic graph, and [`Problem::TooLarge`].
pub fn export_new(graph: &Graph) -> Result<Bytes, OnnxError> {
    Ok(encode(graph)?.concat())
}

fn encode(graph: &Graph) -> Result<Splice, Problem> {
    check_versions(graph)?;
    let mut encoder = Encoder::new(graph.ir_version);
    let (mut nodes, mut initializers, mut inputs) = (Splice::default(), Splice::default(), Splice::default());
    let mut domains = BTreeSet::new();
    for &id in graph.inputs() {
        let node = graph.node(id);
        let Some(value) = node.outputs.first() else { continue };
        if value.ty.dtype.is_none() {
            let place = format!("graph input {:?}", value.name);
            return Err(Problem::invalid(place, "has no element type; ONNX requires one"));
        }
        inputs.push_field(field::INPUT, value_info(&value.name, &value.ty));
    }
    for id in order(graph)? {
        let node = graph.node(id);
        match (&node.op, node.outputs.first()) {
            (Op::Input, _) => {}
            (Op::Constant(tensor), Some(value)) => {
                let bytes = encoder.values(&format!("constant {:?}", value.name), tensor)?;
                check_size(initializers.len().saturating_add(bytes.len()), &place(graph, id))?;
                let storage = Storage::Inline(bytes);
                let tensor = encoder.tensor(&value.name, tensor.dtype(), tensor.shape(), storage);
                initializers.nest(field::INITIALIZER, tensor, None);
                if node.overridable || graph.ir_version < 4 {
                    inputs.push_field(field::INPUT, value_info(&value.name, &value.ty));
                }
            }
            _ => {
                domains.insert(node.op.domain().to_owned());
                nodes.nest(field::NODE, encoder.node(graph, id)?, None);
            }
        }
    }

    let mut body = nodes;
    body.put_field(field::NAME, if graph.name.is_empty() { "graph" } else { &graph.name }.as_bytes());
    body.append(initializers, None);
    body.append(inputs, None);
    for &output in graph.outputs() {
        let value = graph.value(output);
        body.push_field(field::OUTPUT, value_info(&value.name, &value.ty));
    }

    let mut out = Splice::default();
    out.put_varint_field(model::IR_VERSION, graph.ir_version as u64);
    out.put_field(2, b"basisopt");
    out.put_field(3, env!("CARGO_PKG_VERSION").as_bytes());
    out.nest(model::GRAPH, body, None);
    out.nest(model::OPSET_IMPORT, opset(Some(""), graph.opset), None);
    for domain in domains.iter().filter(|d| !d.is_empty()) {
        out.nest(model::OPSET_IMPORT, opset(Some(domain), 1), None);
    }
    graph.metadata.iter().for_each(|(key, value)| out.nest(model::METADATA, entry(key, value), None));
    check_size(out.len(), "the model")?;
    Ok(out)
}

fn check_versions(graph: &Graph) -> Result<(), Problem> {
    if !(OLDEST_OPSET..=NEWEST_OPSET).contains(&graph.opset) {
        return Err(Problem::Opset {
            found: graph.opset.to_string(),
            oldest: OLDEST_OPSET,
            newest: NEWEST_OPSET,
            remedy: "give the graph another opset",
        });
    }
    // The operator set import exists since IR version 3.
    if !(3..=NEWEST_IR_VERSION).contains(&graph.ir_version) {
        return Err(Problem::IrVersion { found: graph.ir_version.to_string(), newest: NEWEST_IR_VERSION });
    }
    Ok(())
}
