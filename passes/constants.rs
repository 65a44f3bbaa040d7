//! The constant behind an input, or why it cannot be had: the same words from every pass.

use crate::driver::remark::Refusal;
use basisopt_ir::{Graph, NodeId, Tensor, ValueId};

/// Elements that a repeated number may stand for.
const MAX_UNROLLED: usize = 1 << 26;

/// Of two codes the one for weights, which other passes use too, or the one for the rest.
fn code(what: &str, weight: &'static str, other: &'static str) -> &'static str {
    if what == "weight" { weight } else { other }
}

/// The constant behind a slot.
pub(crate) fn constant(
    graph: &Graph,
    node: NodeId,
    slot: usize,
    what: &str,
) -> Result<(ValueId, Tensor), Refusal> {
    let Some(value) = graph.node_input(node, slot) else {
        return Err(Refusal::new("malformed", format!("it has no {what}")));
    };
    if let Some(tensor) = graph.constant_value(value) {
        return Ok((value, tensor));
    }
    let (name, source) = (&graph.value(value).name, graph.node(value.node));
    Err(if source.overridable {
        let code = code(what, "overridable-weight", "overridable");
        let message = format!(
            "its {what} {name} is also a graph input, which a caller may override; freeze-weights undoes that"
        );
        Refusal::new(code, message)
    } else {
        let code = code(what, "weight-not-constant", "not-constant");
        match source.op.op_type() {
            "Input" => Refusal::new(code, format!("its {what} {name} is an input of the network")),
            "DequantizeLinear" => {
                let message = format!(
                    "its {what} {name} is quantised: rewrite the float network and quantise the result"
                );
                Refusal::new("quantised-weight", message)
            }
            op => {
                Refusal::new(code, format!("its {what} {name} is computed by {op}; fold-constants may help"))
            }
        }
    })
}

/// Whether a constant is of a float type and has values to read.
pub(crate) fn floats(tensor: &Tensor, what: &str) -> Result<(), Refusal> {
    if tensor.is_elided() {
        let message = format!("the values of its {what} were elided when it was printed");
        return Err(Refusal::new(code(what, "weight-elided", "elided"), message));
    }
    if !tensor.dtype().is_float() {
        let message =
            format!("its {what} is of type {}, not a float that can be computed with", tensor.dtype());
        return Err(Refusal::new(code(what, "weight-type", "parameter-type"), message));
    }
    // One repeated element is no tensor that anybody trained: it is not unrolled to any length, or
    // a file of a few bytes could ask for any amount of memory.
    let virtual_values = tensor.splat_element().is_some() || tensor.generator().is_some();
    if virtual_values && tensor.len() > MAX_UNROLLED {
        return Err(Refusal::new("too-large", format!("its {what} is one number, {} times", tensor.len())));
    }
    Ok(())
}
