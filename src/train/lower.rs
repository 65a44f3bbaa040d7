//! A gradient graph in the operators that ONNX has.
//!
//! [`mod@crate::differentiate`] makes operators of its own where the executor has a kernel for them and ONNX has no
//! name: the gradient of a convolution, of pooling, of interpolation. [`lower`] writes each of them as standard
//! operators, so that any engine can run a step of training. The batch may stay open; the sizes that a rule needs must be
//! known numbers.
//!
//! | operator | becomes |
//! |---|---|
//! | `ConvInputGrad` | a transposed convolution |
//! | `ConvWeightGrad` | by place in the kernel, a strided slice of x and a matrix product |
//! | `MaxPoolGrad` | by place in the window, in order, a comparison with the maximum |
//! | `AveragePoolGrad` | a transposed convolution of dy over the counts, with ones |
//! | `ResizeGrad` | by axis, a product with the transposed matrix of the interpolation |
//! | `SliceGrad` | zeros between the elements and around them |
//! | `GatherGrad` | `ScatterElements` that adds, on zeros |
//! | `LRNGrad` | its formula; sums over channels are products with a band of ones |
//! | `ClipGrad` | comparisons |
//! | `BatchNormalization` in training form, its gradient | their formulas: engines differ in what their own operator does in training |
//! | `LRN` over an even number of channels | its formula: there are engines that refuse it |
//!
//! There is one form for each, that of [`OPSET`]: older graphs are brought there first by [`raise`], before they are
//! differentiated.

mod conv;
mod movement;
mod nodes;
mod normalise;
mod pool;
mod raise;

pub use raise::{RaiseError, raise};

use crate::differentiate::Refused;
use crate::differentiate::builder::Builder;
use basisopt_ir::infer::{InferError, infer};
use basisopt_ir::op::Op;
use basisopt_ir::{Graph, NodeId, ValueId};
use std::fmt;

/// The oldest version of the operator set that lowered graphs are written in: the first in which all reductions take
/// their axes as an input, and later than the first `ScatterElements` that adds.
pub const OPSET: i64 = 18;

/// A node that cannot be written in standard operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// Label of the node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// What is in the way.
    pub reason: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({}): {}", self.node, self.op, self.reason)
    }
}

/// All obstacles, one behind the other.
fn words(obstacles: &[Obstacle]) -> String {
    obstacles.iter().map(Obstacle::to_string).collect::<Vec<_>>().join("; ")
}

/// Why a gradient graph cannot be written in standard operators.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LowerError {
    /// The graph is of an older operator set.
    #[error("the graph is of operator set {found}; raise it to {OPSET} before it is differentiated")]
    Opset {
        /// Version of the graph.
        found: i64,
    },
    /// Types contradict each other.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// Nodes for which there is no rule, or no sizes: all of them.
    #[error("these nodes cannot be written in the operators of ONNX: {}", words(.0))]
    Nodes(Vec<Obstacle>),
}

/// Why a rule gives up.
#[derive(Debug)]
enum Unfit {
    /// A size is not known.
    Size(ValueId),
    /// Something about the node.
    Because(String),
}

impl From<Refused> for Unfit {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Shape(value) => Self::Size(value),
            Refused::NoRule(detail) => Self::Because(detail.trim().to_owned()),
        }
    }
}

impl Unfit {
    fn because(reason: impl Into<String>) -> Self {
        Self::Because(reason.into())
    }

    fn at(self, graph: &Graph, id: NodeId) -> Obstacle {
        let reason = match self {
            Self::Because(reason) => reason,
            Self::Size(v) => {
                format!(
                    "a size of {:?} is not known; fix the sizes of the inputs (--dim)",
                    graph.value(v).name
                )
            }
        };
        let node = graph.node(id);
        Obstacle { node: node.label().to_owned(), op: node.op.op_type().to_owned(), reason }
    }
}

/// What stands for the outputs of a node, by port.
type Lowered = Result<Vec<ValueId>, Unfit>;

/// A node to be replaced.
struct At {
    op: Op,
    inputs: Vec<Option<ValueId>>,
}

impl At {
    fn input(&self, slot: usize) -> Result<ValueId, Unfit> {
        let value = self.inputs.get(slot).copied().flatten();
        value.ok_or_else(|| Unfit::because(format!("it has no input {slot}")))
    }
}

/// Whether ONNX has no such operator, or none that can be relied upon.
fn is_own(op: &Op) -> bool {
    match op {
        Op::BatchNormalization(op) => op.training_mode == 1,
        // ONNX Runtime has windows of odd sizes only.
        Op::LRN(op) => op.size % 2 == 0,
        op => op.is_gradient(),
    }
}

fn rule(b: &mut Builder, at: &At) -> Lowered {
    let one = |v: Result<ValueId, Unfit>| v.map(|v| vec![v]);
    match &at.op {
        Op::ConvInputGrad(op) => one(conv::input_grad(b, at, op)),
        Op::ConvWeightGrad(op) => one(conv::weight_grad(b, at, op)),
        Op::MaxPoolGrad(op) => one(pool::max_grad(b, at, op)),
        Op::AveragePoolGrad(op) => one(pool::average_grad(b, at, op)),
        Op::ResizeGrad(op) => one(movement::resize_grad(b, at, op)),
        Op::SliceGrad(op) => one(movement::slice_grad(b, at, op)),
        Op::GatherGrad(op) => one(movement::gather_grad(b, at, op)),
        Op::LRN(op) => one(normalise::local_response(b, at, op)),
        Op::LRNGrad(op) => one(normalise::local_response_grad(b, at, op)),
        Op::ClipGrad(op) => one(normalise::clip_grad(b, at, op)),
        Op::BatchNormalization(op) => normalise::batch_norm(b, at, op),
        Op::BatchNormalizationGrad(op) => normalise::batch_norm_grad(b, at, op),
        _ => Err(Unfit::because("there is no rule for it")),
    }
}

/// The graph without gradient operators of our own, and without what engines cannot be relied upon for. Values keep
/// their names.
///
/// # Errors
/// [`LowerError`], naming every node that is in the way.
pub fn lower(graph: &Graph) -> Result<Graph, LowerError> {
    if graph.opset < OPSET {
        return Err(LowerError::Opset { found: graph.opset });
    }
    let mut b = Builder::new(graph);
    infer(&mut b.graph)?;
    let own: Vec<NodeId> =
        b.graph.topological().into_iter().filter(|&id| is_own(&b.graph.node(id).op)).collect();
    let mut obstacles = Vec::new();
    // Only the node at hand goes, so that no id that is still to come is used again.
    for id in own {
        let at = At { op: b.graph.node(id).op.clone(), inputs: b.graph.node_inputs(id) };
        b.at(id);
        match rule(&mut b, &at) {
            Ok(values) => substitute(&mut b, id, &values),
            Err(unfit) => obstacles.push(unfit.at(&b.graph, id)),
        }
    }
    if !obstacles.is_empty() {
        return Err(LowerError::Nodes(obstacles));
    }
    infer(&mut b.graph)?;
    Ok(b.graph)
}

/// Lets these values, which nothing else stands for, take the places and names of a node's outputs.
fn substitute(b: &mut Builder, id: NodeId, values: &[ValueId]) {
    for (port, &new) in values.iter().enumerate().take(b.graph.node(id).outputs.len()) {
        let old = ValueId { node: id, port: port as u32 };
        let value = b.graph.value(old).clone();
        if value.name.is_empty() {
            continue;
        }
        b.graph.replace_uses(old, new);
        let aside = b.graph.unused_value_name(&format!("{}.own", value.name));
        b.graph.rename(old, aside);
        b.graph.rename(new, value.name);
        b.graph.set_type(new, value.ty);
    }
    b.graph.remove_node(id);
}
