//! The pairs that the passes made, put into the model in place of the layers.

use crate::convert::to_tract;
use crate::islands::Islands;
use crate::layer::{Form, Layer};
use crate::report::Factored;
use crate::run::TransformError;
use basisopt_ir::tensor::TensorError;
use basisopt_ir::{Graph, NodeId, Op, ValueId};
use tract_core::internal::{OutletId, Tensor, TractResult, TypedModel, TypedModelPatch, tvec};
use tract_core::model::SpecialOps;
use tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};

/// A pair in the graph of the passes.
struct Pair {
    basis: ValueId,
    coefficients: ValueId,
    /// Of the second of the two.
    bias: Option<ValueId>,
    /// Numbers of basis filters and of outputs, over all groups.
    sizes: [usize; 2],
    /// Whether what scales and shifts the result is folded in.
    is_folded: bool,
}

/// Replaces the layers that were factorised, and names them.
pub(crate) fn apply(model: &mut TypedModel, islands: &Islands) -> TractResult<Vec<Factored>> {
    let mut factors = Factors { islands, put: vec![] };
    let mut factored = vec![];
    for (layer, &end) in islands.layers.iter().zip(islands.graph.outputs()) {
        let Some(pair) = Pair::at(&islands.graph, end.node) else { continue };
        match &layer.form {
            Form::Conv { conv, .. } => factors.convolution(model, layer, conv, &pair)?,
            Form::Product { .. } => factors.product(model, layer, &pair)?,
        }
        factored.push(Factored { layer: layer.label.clone(), rank: pair.sizes[0] / layer.n_groups() });
    }
    Ok(factored)
}

impl Pair {
    /// The pair that a part of the graph ends in; `None` if its layer stayed whole.
    fn at(graph: &Graph, end: NodeId) -> Option<Self> {
        let is_folded = !matches!(graph.node(end).op, Op::BatchNormalization(_));
        let last = if is_folded { end } else { graph.node_input(end, 0)?.node };
        if graph.node(last).metadata.get("basisopt.factor").map(String::as_str) != Some("coefficients") {
            return None;
        }
        let first = graph.node_input(last, 0)?.node;
        let (basis, coefficients) = (graph.node_input(first, 1)?, graph.node_input(last, 1)?);
        let n_rows = |value| graph.constant(value)?.shape().first().copied();
        Some(Self {
            basis,
            coefficients,
            bias: graph.node_input(last, 2),
            sizes: [n_rows(basis)?, n_rows(coefficients)?],
            is_folded,
        })
    }
}

/// Constants of the graph, and where in the model they are once they were put there.
struct Factors<'a> {
    islands: &'a Islands,
    put: Vec<(ValueId, OutletId)>,
}

impl Factors<'_> {
    /// A constant of the graph, once for all layers that share it; transposed if need be.
    fn put(
        &mut self,
        model: &mut TypedModel,
        layer: &Layer,
        value: ValueId,
        transpose: bool,
    ) -> TractResult<OutletId> {
        if let Some((_, outlet)) = self.put.iter().find(|(v, _)| *v == value) {
            return Ok(*outlet);
        }
        let graph = &self.islands.graph;
        let Some(tensor) = graph.constant(value) else {
            let source = TensorError::Elided;
            return Err(TransformError::Weight { node: layer.label.clone(), source }.into());
        };
        let weight = model.node(layer.node).inputs[layer.weight_slot];
        let mut tensor = to_tract(tensor, model.outlet_fact(weight)?.datum_type)?;
        if transpose {
            tensor = tensor.permute_axes(&[1, 0])?;
        }
        let outlet = model.add_const(graph.value(value).name.as_str(), tensor)?;
        self.put.push((value, outlet));
        Ok(outlet)
    }

    fn convolution(
        &mut self,
        model: &mut TypedModel,
        layer: &Layer,
        conv: &Conv,
        pair: &Pair,
    ) -> TractResult<()> {
        let basis = self.put(model, layer, pair.basis, false)?;
        let coefficients = self.put(model, layer, pair.coefficients, false)?;
        let bias = match pair.bias {
            // A bias that is computed is an input of the graph.
            Some(bias) if self.islands.graph.constant(bias).is_none() => {
                Some(model.node(layer.node).inputs[2])
            }
            Some(bias) => Some(self.put(model, layer, bias, false)?),
            None => None,
        };
        let node = model.node(layer.node);
        let dtype = model.outlet_fact(node.inputs[layer.weight_slot])?.datum_type;
        let [n_basis, n_outputs] = pair.sizes;
        let first = Conv {
            pool_spec: PoolSpec { output_channels: n_basis, ..conv.pool_spec.clone() },
            kernel_fmt: KernelFormat::OIHW,
            ..conv.clone()
        };
        let second = Conv {
            pool_spec: PoolSpec {
                data_format: conv.pool_spec.data_format,
                kernel_shape: tvec![1; conv.pool_spec.rank()],
                padding: PaddingSpec::Valid,
                dilations: None,
                strides: None,
                input_channels: n_basis,
                output_channels: n_outputs,
            },
            ..first.clone()
        };
        let mut patch = TypedModelPatch::new("factorize-conv");
        let x = patch.tap_model(model, node.inputs[layer.data_slot])?;
        let weights = [patch.tap_model(model, basis)?, patch.tap_model(model, coefficients)?];
        let zero = patch.add_const(format!("{}.no_bias", layer.label), Tensor::zero_scalar_dt(dtype)?)?;
        let bias = bias.map_or(Ok(zero), |bias| patch.tap_model(model, bias))?;
        let h = patch.wire_node(format!("{}.basis", layer.label), first, &[x, weights[0], zero])?[0];
        let y = patch.wire_node(name_of_second(model, layer, pair), second, &[h, weights[1], bias])?[0];
        patch.shunt_outside(model, end_of(layer, pair), y)?;
        patch.apply(model)
    }

    fn product(&mut self, model: &mut TypedModel, layer: &Layer, pair: &Pair) -> TractResult<()> {
        let Form::Product { op, rows_first } = &layer.form else { return Ok(()) };
        let basis = self.put(model, layer, pair.basis, !rows_first)?;
        let coefficients = self.put(model, layer, pair.coefficients, !rows_first)?;
        let mut patch = TypedModelPatch::new("factorize-linear");
        let mut value = patch.tap_model(model, model.node(layer.node).inputs[layer.data_slot])?;
        // Both multiply the same axis of a value of the same axes.
        for (weight, name) in
            [(basis, format!("{}.basis", layer.label)), (coefficients, name_of_second(model, layer, pair))]
        {
            let weight = patch.tap_model(model, weight)?;
            let inputs = if layer.data_slot == 0 { [value, weight] } else { [weight, value] };
            value = patch.wire_node(name, op.clone(), &inputs)?[0];
        }
        patch.shunt_outside(model, end_of(layer, pair), value)?;
        patch.apply(model)
    }
}

/// The value that a pair gives instead of the layer.
fn end_of(layer: &Layer, pair: &Pair) -> OutletId {
    layer.tail.as_ref().filter(|_| pair.is_folded).map_or(layer.node.into(), |tail| tail.end)
}

/// The name of the layer, unless what is replaced is an output of the model: then its name is known outside.
fn name_of_second(model: &TypedModel, layer: &Layer, pair: &Pair) -> String {
    let end = end_of(layer, pair);
    if model.outputs.contains(&end) { model.node(end.node).name.clone() } else { layer.label.clone() }
}
