//! Whether a `Dropout` drops. Gradients, the executor and steps take it for the identity, which it is outside training only.

use basisopt_ir::op::Op;
use basisopt_ir::{Graph, NodeId};

/// What about a `Dropout` that is not the identity, to be read behind its name; `None` for all other nodes.
pub(crate) fn drops(graph: &Graph, id: NodeId) -> Option<&'static str> {
    let Op::Dropout(op) = &graph.node(id).op else { return None };
    if graph.opset < 7 {
        let drops = op.is_test.unwrap_or(0) == 0;
        return drops.then_some(
            " without is_test=1, so that it drops at random (export the network in evaluation mode)",
        );
    }
    let flag = graph.node_input(id, 2)?;
    match graph.constant_value(flag).and_then(|t| t.to_f64s().ok()) {
        Some(flag) if flag.iter().all(|&f| f == 0.0) => None,
        Some(_) => {
            Some(" in training mode, where it drops at random (export the network in evaluation mode)")
        }
        None => Some(
            " whose training_mode is not constant, so that it may drop at random (export the network in evaluation mode)",
        ),
    }
}
