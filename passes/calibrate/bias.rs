//! The bias of a layer: whether it can be moved, and how.

use crate::driver::pass::{PassError, tensor_error};
use crate::layer::{Layer, LayerKind};
use basisopt_ir::{Graph, Op, Operand, Rewrite, Tensor};

/// The scale in front of a layer's product: `alpha` of a `Gemm`.
pub(crate) fn scale(graph: &Graph, layer: &Layer) -> f64 {
    match &graph.node(layer.node).op {
        Op::Gemm(op) => f64::from(op.alpha),
        _ => 1.0,
    }
}

/// Whether a constant can be added to every output channel of a layer without another node: it is a
/// convolution or a `Gemm` whose bias is absent, or a constant with one value per channel.
pub(crate) fn can_shift(graph: &Graph, layer: &Layer) -> bool {
    let n = layer.groups * layer.n_rows;
    let beta = match (&graph.node(layer.node).op, layer.kind) {
        (Op::Conv(_), LayerKind::Conv) => 1.0,
        (Op::Gemm(op), _) => op.beta,
        _ => return false,
    };
    let per_channel = |t: &Tensor| t.len() == n && t.shape().last() == Some(&n) && t.dtype() == layer.dtype;
    match graph.node_input(layer.node, 2) {
        None => beta != 0.0,
        Some(_) if beta == 0.0 => false,
        Some(value) => graph.constant_value(value).is_some_and(|t| per_channel(&t)),
    }
}

/// The bias of a layer in a rewrite: as it is, or with a shift per output channel. The shift is of the
/// output, whatever `beta` is.
pub(crate) fn shifted(
    graph: &Graph,
    rewrite: &mut Rewrite,
    layer: &Layer,
    shift: Option<&[f64]>,
) -> Result<Operand, PassError> {
    let old = graph.node_input(layer.node, 2);
    let Some(shift) = shift else { return Ok(old.map_or(Operand::Omitted, Operand::Existing)) };
    let error = tensor_error(graph, layer.node);
    let beta = match &graph.node(layer.node).op {
        Op::Gemm(op) if op.beta != 0.0 => f64::from(op.beta),
        _ => 1.0,
    };
    let (name, shape, values) = match old.and_then(|v| Some((v, graph.constant_value(v)?))) {
        Some((value, tensor)) => {
            let values = tensor.to_f64s().map_err(&error)?;
            (graph.value(value).name.clone(), tensor.shape().to_vec(), values)
        }
        None => (format!("{}.bias", layer.label), vec![shift.len()], vec![0.0; shift.len()]),
    };
    let values: Vec<f64> = values.iter().zip(shift).map(|(b, s)| b + s / beta).collect();
    let tensor = Tensor::from_f64s(layer.dtype, shape, &values).map_err(&error)?;
    Ok(rewrite.constant(name, tensor))
}
