//! Batch normalisation between the two factors, while they are trained.

use crate::driver::pass::{PassError, tensor_error};
use crate::layer::{FactorPair, LayerKind};
use crate::training::parameters::{apply, replace};
use basisopt_ir::graph::{Node, Use, Value};
use basisopt_ir::op::{BatchNormalization, Op};
use basisopt_ir::{DType, Graph, NodeId, Rewrite, Tensor, ValueId, infer};
use basisopt_train::examples::Examples;
use basisopt_train::statistics::moments;
use basisopt_train::watch::FitError;
use std::collections::BTreeMap;

/// What is added to the variance.
const EPSILON: f32 = 1e-5;

/// A normalisation between a basis and its coefficients.
#[derive(Clone, Debug)]
pub(super) struct PairNorm {
    first: NodeId,
    second: NodeId,
    /// Name of its output.
    pub output: String,
    /// Names of scale, bias, mean and variance.
    pub constants: [String; 4],
}

/// Puts a normalisation between the factors of each convolution. It starts from the statistics that the basis filters
/// have on the images, with the scale and the bias that undo it: the network computes what it did.
///
/// # Errors
/// If the network cannot be run.
pub(super) fn insert(
    network: &mut Graph,
    pairs: &[(NodeId, NodeId)],
    examples: &dyn Examples,
) -> Result<Vec<PairNorm>, PassError> {
    let is_conv = |&&(a, b): &&(NodeId, NodeId)| {
        FactorPair::of_shape(network, a, b).is_some_and(|p| p.kind == LayerKind::Conv)
    };
    let pairs: Vec<(NodeId, NodeId)> = pairs.iter().filter(is_conv).copied().collect();
    let names: Vec<String> =
        pairs.iter().map(|&(first, _)| network.value(ValueId::of(first)).name.clone()).collect();
    let measured = moments(network, &names, examples).map_err(FitError::from)?;
    let mut norms = Vec::with_capacity(pairs.len());
    for (((first, second), name), m) in pairs.into_iter().zip(names).zip(measured) {
        let scale: Vec<f64> = m.variance.iter().map(|v| (v + f64::from(EPSILON)).sqrt()).collect();
        let mut inputs = vec![Some(ValueId::of(first))];
        let mut constants = Vec::with_capacity(4);
        for (part, values) in
            [("scale", &scale), ("bias", &m.mean), ("mean", &m.mean), ("variance", &m.variance)]
        {
            let name = network.unused_value_name(&format!("{name}.norm.{part}"));
            let tensor = Tensor::from_f64s(DType::F32, vec![values.len()], values);
            let tensor = tensor.map_err(tensor_error(network, first))?;
            inputs.push(Some(network.add_constant(name.clone(), tensor)));
            constants.push(name);
        }
        let output = network.unused_value_name(&format!("{name}.norm"));
        let op = BatchNormalization { epsilon: EPSILON, ..BatchNormalization::default() };
        let value = Value { name: output.clone(), ..Value::default() };
        let node = network.add_node(Node::new(output.clone(), op.into(), vec![value]), &inputs);
        network.set_input(Use { node: second, slot: 0 }, Some(ValueId::of(node)));
        let constants = constants.try_into().unwrap_or_default();
        norms.push(PairNorm { first, second, output, constants });
    }
    infer::infer(network).map_err(|e| PassError::Other(e.to_string()))?;
    Ok(norms)
}

/// Folds trained normalisations into the factors of the graph, which has none: with s = scale/√(variance + ε) and
/// t = bias − s·mean, `w·(s∘(F·x) + t) = w·(diag(s)·F)·x + w·t`.
///
/// # Errors
/// If a constant is not what it was.
pub(super) fn fold(
    graph: &mut Graph,
    norms: &[PairNorm],
    values: &BTreeMap<String, Vec<f32>>,
) -> Result<(), PassError> {
    for norm in norms {
        let of = |i: usize| values.get(&norm.constants[i]).map(Vec::as_slice).unwrap_or_default();
        let [scale, bias, mean, variance] = [of(0), of(1), of(2), of(3)];
        let factors: Vec<f64> = scale
            .iter()
            .zip(variance)
            .map(|(&s, &v)| f64::from(s) / (f64::from(v) + f64::from(EPSILON)).sqrt())
            .collect();
        let shifts: Vec<f64> = bias
            .iter()
            .zip(mean)
            .zip(&factors)
            .map(|((&b, &m), s)| f64::from(b) - s * f64::from(m))
            .collect();
        let Some((basis, old)) = weight(graph, norm.first) else { continue };
        let Some((coefficients, w)) = weight(graph, norm.second) else { continue };
        let (Ok(mut f), Ok(w)) = (old.to_f64s(), w.to_f64s()) else { continue };
        let per_filter = f.len() / factors.len().max(1);
        for (row, s) in f.chunks_mut(per_filter.max(1)).zip(&factors) {
            row.iter_mut().for_each(|v| *v *= s);
        }
        let new = Tensor::from_f64s(old.dtype(), old.shape().to_vec(), &f);
        let new = new.map_err(tensor_error(graph, norm.first))?;
        replace(graph, basis, new)?;
        let n_outputs = graph.value(coefficients).ty.static_shape().and_then(|s| s.first().copied());
        let n_outputs = n_outputs.unwrap_or(0).max(1);
        let groups = if let Op::Conv(op) = &graph.node(norm.first).op { op.group.max(1) as usize } else { 1 };
        let rank = w.len() / n_outputs;
        let shift: Vec<f64> = (0..n_outputs)
            .map(|p| {
                let own = (p / (n_outputs / groups).max(1)) * rank;
                let row = w.get(p * rank..(p + 1) * rank).unwrap_or_default();
                row.iter().zip(shifts.get(own..).unwrap_or_default()).map(|(w, t)| w * t).sum()
            })
            .collect();
        add_bias(graph, norm.second, &shift)?;
    }
    Ok(())
}

/// The constant weight of a convolution.
fn weight(graph: &Graph, node: NodeId) -> Option<(ValueId, Tensor)> {
    let value = graph.node_input(node, 1)?;
    Some((value, graph.constant_value(value)?))
}

fn add_bias(graph: &mut Graph, node: NodeId, shift: &[f64]) -> Result<(), PassError> {
    let old = graph.node_input(node, 2).and_then(|v| Some((v, graph.constant_value(v)?)));
    let mut shift = shift.to_vec();
    if let Some((value, old)) = old {
        let sum = old.to_f64s().map_err(tensor_error(graph, node))?;
        sum.iter().zip(&mut shift).for_each(|(b, s)| *s += b);
        if graph.n_readers(value) == 1 {
            let new = Tensor::from_f64s(old.dtype(), old.shape().to_vec(), &shift);
            let new = new.map_err(tensor_error(graph, node))?;
            return replace(graph, value, new);
        }
        // Others keep the bias as it is; this convolution gets one of its own.
    }
    let label = graph.node(node).label().to_owned();
    let dtype = weight(graph, node).map_or(DType::F32, |(_, w)| w.dtype());
    let tensor = Tensor::from_f64s(dtype, vec![shift.len()], &shift).map_err(tensor_error(graph, node))?;
    let mut rewrite = Rewrite::at(node);
    let bias = rewrite.constant(graph.unused_value_name(&format!("{label}.bias")), tensor);
    rewrite.set_input(Use { node, slot: 2 }, bias);
    apply(graph, rewrite, &label)
}
