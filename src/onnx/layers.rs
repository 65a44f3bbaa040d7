//! Which layer each node of a file belongs to, as far as the file says.

use crate::error::{OnnxError, Problem};
use crate::proto::ModelProto;
use bytes::Bytes;
use prost::Message as _;
use std::collections::BTreeSet;

/// The key under which a factor names the layer that it came from, where the file's version lets nodes have keys.
const ORIGIN: &str = "basisopt.origin";
/// Begins the key under which the model notes a layer that was factored.
const LAYER: &str = "basisopt.layer.";
/// What the names of factors end in.
const FACTORS: [&str; 2] = [".basis", ".coefficients"];

/// The nodes of the main graph in order: label (name, or first output where there is none), and the layer it belongs
/// to: what a factorising pass noted, or the label itself.
///
/// # Errors
/// [`Problem::NotAModel`] for bytes that do not decode.
pub fn node_layers(model: &Bytes) -> Result<Vec<(String, String)>, OnnxError> {
    let model = ModelProto::decode(model.clone())
        .map_err(|e| OnnxError::from(Problem::NotAModel { reason: e.to_string() }))?;
    let noted: BTreeSet<&str> =
        model.metadata_props.iter().filter_map(|p| p.key().strip_prefix(LAYER)).collect();
    let by_name = |label: &str| {
        let layer = FACTORS.iter().find_map(|end| label.strip_suffix(end))?;
        noted.contains(layer).then(|| layer.to_owned())
    };
    let nodes = model.graph.as_ref().map(|g| g.node.as_slice()).unwrap_or_default();
    Ok(nodes
        .iter()
        .map(|node| {
            let label = match node.name() {
                "" => node.output.first().cloned().unwrap_or_default(),
                name => name.to_owned(),
            };
            let origin = node.metadata_props.iter().find(|p| p.key() == ORIGIN).map(|p| p.value().to_owned());
            let layer = origin.or_else(|| by_name(&label)).unwrap_or_else(|| label.clone());
            (label, layer)
        })
        .collect())
}
