//! Shape and element type inference.
//!
//! [`infer`] walks the graph in topological order and notes on every value what its operator
//! makes of what is known about the inputs. Dynamic dimensions stay symbolic: a stride-2
//! convolution makes `(H+1)/2` of `H`. Small integer tensors are followed as well, so that
//! `Reshape(x, Concat(Gather(Shape(x), 0), [-1]))` keeps the batch dimension.
//!
//! *Invariant:* a dimension is never wrong. Where the operator's result depends on what is not
//! known, the dimension is [`Dim::Unknown`]. Two things are taken for granted, without which the
//! model would compute nothing: symbolic dimensions are at least 1, and large enough for the windows
//! and constant slice bounds that are applied to them.
//!
//! What the file notes about a value (its `value_info`) is merged with what is inferred: a number
//! beats an expression, an expression beats nothing. Two different numbers are a [`Disagreement`]:
//! the operator's arithmetic is certain, the note is a claim, so the note is replaced and the
//! disagreement reported. Inputs that contradict the operator itself (channels that do not match,
//! three strides for two dimensions) are an [`InferError`].

mod contents;
mod conv;
mod elementwise;
#[cfg(test)]
mod graph_tests;
mod linear;
mod reduce;
mod resize;
mod rules;
mod shape_ops;
mod slice;
#[cfg(test)]
mod tests;
mod window;

pub use conv::{ConvGeometry, conv_geometry};
pub use linear::{LinearGeometry, linear_geometry};

use crate::dim::{Dim, Shape};
use crate::graph::{Graph, NodeId, ValueId, ValueType};
use crate::op::Op;
use crate::verify::node_words;
use contents::Contents;
use rules::{At, Fail};
use std::collections::BTreeMap;
use std::fmt;

/// What kind of contradiction an [`InferError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Element types that the operator does not take together.
    ElementType,
    /// Shapes that contradict each other or an attribute.
    Shape,
}

/// A node whose inputs or attributes contradict its operator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{subject}: {message}")]
#[non_exhaustive]
pub struct InferError {
    /// The node.
    pub node: NodeId,
    /// Element types or shapes.
    pub fault: Fault,
    /// The node in words: `Conv node "conv1"`.
    pub subject: String,
    /// What was expected and what was found.
    pub message: String,
}

/// A note on a value that contradicts what its operator gives.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Disagreement {
    /// The value.
    pub value: ValueId,
    /// Its name.
    pub name: String,
    /// The producing node in words.
    pub producer: String,
    /// What the operator gives.
    pub inferred: String,
    /// What was noted.
    pub noted: String,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, producer, inferred, noted, .. } = self;
        write!(f, "{producer}: inferred {inferred} for {name:?}, but the file says {noted}")
    }
}

/// What [`infer`] found.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct InferReport {
    /// Values in the graph that bear a name.
    pub n_values: usize,
    /// Those of which element type and rank are known.
    pub n_ranked: usize,
    /// Those of which element type and every dimension is a known number.
    pub n_static: usize,
    /// Notes that were wrong and have been replaced.
    pub disagreements: Vec<Disagreement>,
}

/// Notes the type of every value that can be inferred.
///
/// # Errors
/// The first contradiction in topological order; the graph is then unchanged.
/// [`crate::verify()`] reports all of them.
pub fn infer(graph: &mut Graph) -> Result<InferReport, InferError> {
    let Analysis { types, errors, disagreements } = analyse(graph);
    if let Some(first) = errors.into_iter().next() {
        return Err(first);
    }
    let mut report = InferReport { disagreements, ..InferReport::default() };
    for (value, ty) in types {
        if !graph.value(value).name.is_empty() {
            report.n_values += 1;
            report.n_ranked += usize::from(ty.dtype.is_some() && ty.shape.is_some());
            report.n_static += usize::from(ty.dtype.is_some() && ty.static_shape().is_some());
        }
        graph.set_type(value, ty);
    }
    Ok(report)
}

/// The types of a node's outputs as they follow from what is noted on its inputs; the notes on
/// the outputs play no part. Inputs and opaque nodes give what they are noted as.
///
/// # Errors
/// If the inputs or attributes contradict the operator.
pub fn node_types(graph: &Graph, id: NodeId) -> Result<Vec<ValueType>, InferError> {
    let noted = |v: ValueId| Some(graph.get(v.node)?.outputs.get(v.port as usize)?.ty.clone());
    let types: BTreeMap<ValueId, ValueType> =
        graph.node_inputs(id).into_iter().flatten().filter_map(|v| Some((v, noted(v)?))).collect();
    let contents: BTreeMap<ValueId, Contents> =
        types.keys().filter_map(|&v| Some((v, Contents::of_tensor(graph.constant(v)?)?))).collect();
    let Some(node) = graph.get(id) else { return Ok(vec![]) };
    match &node.op {
        Op::Input | Op::Opaque(_) => Ok(node.outputs.iter().map(|v| v.ty.clone()).collect()),
        Op::Constant(t) => Ok(vec![ValueType::fixed(t.dtype(), t.shape())]),
        _ => rules::types(&At::new(graph, id, &types, &contents)).map_err(|f| f.at(graph, id)),
    }
}

/// The inferred type of every value, and everything that is wrong.
#[derive(Debug, Default)]
pub(crate) struct Analysis {
    /// Of every port of every node that no cycle keeps out of the topological order.
    pub types: BTreeMap<ValueId, ValueType>,
    pub errors: Vec<InferError>,
    pub disagreements: Vec<Disagreement>,
}

/// Infers without changing anything.
pub(crate) fn analyse(graph: &Graph) -> Analysis {
    let mut out = Analysis::default();
    let mut contents: BTreeMap<ValueId, Contents> = BTreeMap::new();
    for id in graph.topological() {
        let node = graph.node(id);
        let first = ValueId::of(id);
        let inferred = match &node.op {
            Op::Input => vec![],
            Op::Constant(t) => {
                out.types.insert(first, ValueType::fixed(t.dtype(), t.shape()));
                if let Some(c) = graph.constant(first).and_then(Contents::of_tensor) {
                    contents.insert(first, c);
                }
                continue;
            }
            _ => {
                let at = At::new(graph, id, &out.types, &contents);
                let followed = contents::follow(&at);
                let types = rules::types(&at);
                if let Some(c) = followed {
                    contents.insert(first, c);
                }
                types.unwrap_or_else(|fail| {
                    out.errors.push(fail.at(graph, id));
                    vec![]
                })
            }
        };
        let mut inferred = inferred.into_iter();
        for (port, value) in node.outputs.iter().enumerate() {
            let at = ValueId { node: id, port: port as u32 };
            let inferred = inferred.next().unwrap_or_default();
            let ty = merge(&inferred, &value.ty).unwrap_or_else(|| {
                out.disagreements.push(Disagreement {
                    value: at,
                    name: value.name.clone(),
                    producer: node_words(node),
                    inferred: type_words(&inferred),
                    noted: type_words(&value.ty),
                });
                inferred
            });
            out.types.insert(at, ty);
        }
    }
    out
}

impl Fail {
    fn at(self, graph: &Graph, node: NodeId) -> InferError {
        let subject = graph.get(node).map_or_else(|| format!("node {node}"), node_words);
        InferError { node, fault: self.fault, subject, message: self.message }
    }
}

/// The more specific of both in every place; `None` if they contradict each other.
fn merge(inferred: &ValueType, noted: &ValueType) -> Option<ValueType> {
    let dtype = match (inferred.dtype, noted.dtype) {
        (Some(a), Some(b)) if a != b => return None,
        (a, b) => a.or(b),
    };
    let shape = match (&inferred.shape, &noted.shape) {
        (Some(a), Some(b)) if a.len() != b.len() => return None,
        (Some(a), Some(b)) => {
            Some(a.iter().zip(b).map(|(a, b)| merge_dims(a, b)).collect::<Option<Shape>>()?)
        }
        (a, b) => a.clone().or_else(|| b.clone()),
    };
    Some(ValueType { dtype, shape })
}

/// The more specific of two dimensions that must be equal: numbers before expressions before
/// nothing, and the first of two expressions; `None` for two different numbers.
pub(crate) fn merge_dims(a: &Dim, b: &Dim) -> Option<Dim> {
    match (a, b) {
        (Dim::Known(m), Dim::Known(n)) => (m == n).then(|| a.clone()),
        (Dim::Known(_), _) | (Dim::Symbolic(_), Dim::Symbolic(_) | Dim::Unknown) => Some(a.clone()),
        _ => Some(b.clone()),
    }
}

/// `f32[N,3,?]`, with `[…]` for an unknown rank and `?` for an unknown element type.
pub(crate) fn type_words(ty: &ValueType) -> String {
    let dtype = ty.dtype.map_or("?", |t| t.name());
    match &ty.shape {
        Some(shape) => format!("{dtype}{}", shape_words(shape)),
        None => format!("{dtype}[…]"),
    }
}

/// `[N,3,224,224]`.
pub(crate) fn shape_words(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(","))
}
