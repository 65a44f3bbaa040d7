//! The numbers that a fold needs, or why they cannot be had.

use crate::constants::{constant, floats};
use crate::driver::remark::Refusal;
use basisopt_ir::op::Gemm;
use basisopt_ir::{Graph, NodeId, Tensor};

/// The numbers of a constant of a float type.
pub(super) fn read(tensor: &Tensor, what: &str) -> Result<Vec<f64>, Refusal> {
    floats(tensor, what)?;
    tensor.to_f64s().map_err(|error| Refusal::new("unreadable", error.to_string()))
}

/// A bias with one value per channel, whatever shape it is stored in.
pub(super) struct Bias {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

pub(super) fn conv_bias(graph: &Graph, node: NodeId, n: usize) -> Result<Option<Bias>, Refusal> {
    if graph.node_input(node, 2).is_none() {
        return Ok(None);
    }
    let (id, tensor) = constant(graph, node, 2, "bias")?;
    if tensor.shape() != [n] {
        return Err(Refusal::new(
            "malformed",
            format!("a bias of shape {:?} for {n} channels", tensor.shape()),
        ));
    }
    let name = graph.value(id).name.clone();
    Ok(Some(Bias { name, shape: vec![n], values: read(&tensor, "bias")? }))
}

/// The bias of a `Gemm`, and the factor by which the node multiplies it.
pub(super) fn gemm_bias(
    graph: &Graph,
    node: NodeId,
    op: &Gemm,
    n: usize,
) -> Result<(Option<Bias>, f64), Refusal> {
    let beta = f64::from(op.beta);
    if !(beta.is_finite() && beta != 0.0) {
        return Err(Refusal::new("gemm-bias", format!("beta is {beta}, so no bias can be added")));
    }
    if graph.node_input(node, 2).is_none() {
        return Ok((None, beta));
    }
    let (id, tensor) = constant(graph, node, 2, "bias")?;
    let shape = tensor.shape();
    let (columns, rows) = shape.split_last().map_or((1, shape), |(&last, rest)| (last, rest));
    // Before operator set 7 it broadcasts only on request.
    let may_grow = graph.opset >= 7 || op.broadcast.is_some_and(|b| b != 0);
    if rows.iter().any(|&d| d != 1) || (columns != n && (columns != 1 || !may_grow)) {
        let message = format!("its bias of shape {shape:?} is not the same in every row");
        return Err(Refusal::new("gemm-bias", message));
    }
    let mut values = read(&tensor, "bias")?;
    let mut shape = shape.to_vec();
    if columns != n {
        values = vec![values.first().copied().unwrap_or(0.0); n];
        shape = vec![n];
    }
    Ok((Some(Bias { name: graph.value(id).name.clone(), shape, values }), beta))
}
