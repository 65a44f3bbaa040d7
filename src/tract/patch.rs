//! The pairs that the passes made, put into the model in place of the layers.

use crate::convert::to_tract;
use crate::islands::Islands;
use crate::layer::{Form, Layer, Product};
use crate::report::Factored;
use crate::run::TransformError;
use basisopt_ir::tensor::TensorError;
use basisopt_ir::{Graph, NodeId, Op, ValueId};
use tract_core::internal::{AxesMapping, OutletId, Tensor, TractResult, TypedModel, TypedModelPatch, tvec};
use tract_core::model::SpecialOps;
use tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};
use tract_core::ops::einsum::EinSum;
use tract_core::ops::math;

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
            Form::Conv(conv) => factors.convolution(model, layer, conv, &pair)?,
            Form::Product(product) => factors.product(model, layer, product, &pair)?,
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
    /// A constant of the graph in a form of tract's, once for all layers that share it.
    fn put(
        &mut self,
        model: &mut TypedModel,
        layer: &Layer,
        value: ValueId,
        form: impl FnOnce(Tensor) -> TractResult<Tensor>,
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
        let tensor = form(to_tract(tensor, model.outlet_fact(weight)?.datum_type)?)?;
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
        let basis = self.put(model, layer, pair.basis, Ok)?;
        let coefficients = self.put(model, layer, pair.coefficients, Ok)?;
        let bias = match pair.bias {
            // A bias that is computed is an input of the graph.
            Some(bias) if self.islands.graph.constant(bias).is_none() => {
                Some(model.node(layer.node).inputs[2])
            }
            Some(bias) => Some(self.put(model, layer, bias, Ok)?),
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
        let mut patch = TypedModelPatch::new("factorize");
        let x = patch.tap_model(model, node.inputs[layer.data_slot])?;
        let weights = [patch.tap_model(model, basis)?, patch.tap_model(model, coefficients)?];
        let zero = patch.add_const(format!("{}.no_bias", layer.label), Tensor::zero_scalar_dt(dtype)?)?;
        let bias = bias.map_or(Ok(zero), |bias| patch.tap_model(model, bias))?;
        let h = patch.wire_node(format!("{}.basis", layer.label), first, &[x, weights[0], zero])?[0];
        let y = patch.wire_node(name_of_second(model, layer, pair), second, &[h, weights[1], bias])?[0];
        patch.shunt_outside(model, end_of(layer, pair), y)?;
        patch.apply(model)
    }

    fn product(
        &mut self,
        model: &mut TypedModel,
        layer: &Layer,
        product: &Product,
        pair: &Pair,
    ) -> TractResult<()> {
        let transpose = !product.rows_first;
        let datum_type = product.op.operating_dt;
        let basis = self.put_matrix(model, layer, pair.basis, transpose)?;
        let coefficients = self.put_matrix(model, layer, pair.coefficients, transpose)?;
        let mut patch = TypedModelPatch::new("factorize");
        let x = patch.tap_model(model, model.node(layer.node).inputs[layer.data_slot])?;
        let weights = [patch.tap_model(model, basis)?, patch.tap_model(model, coefficients)?];
        let inputs = |value, weight| if layer.data_slot == 0 { [value, weight] } else { [weight, value] };
        // One of the two drops and adds the axes that the layer did, the other has the same ones before and after. It
        // stands where there is no image, or a linear layer would become one and a convolution.
        let moving = product.op.clone();
        let [first, second] = if product.of_images()[1] {
            [EinSum::new(in_place(product, product.data_axis, product.data_rank)?, datum_type), moving]
        } else {
            [moving, EinSum::new(in_place(product, product.out_axis, product.out_rank)?, datum_type)]
        };
        let h = patch.wire_node(format!("{}.basis", layer.label), first, &inputs(x, weights[0]))?[0];
        let name = name_of_second(model, layer, pair);
        let mut y = patch.wire_node(name.clone(), second, &inputs(h, weights[1]))?[0];
        if let Some(bias) = pair.bias.and_then(|bias| self.islands.graph.constant(bias)) {
            let mut shape = vec![1; product.out_rank];
            shape[product.out_axis] = bias.len();
            let bias = to_tract(bias, datum_type)?.into_shape(&shape)?;
            let bias = patch.add_const(format!("{name}.bias"), bias)?;
            // The value that is replaced keeps its name.
            patch.node_mut(y.node).name = format!("{name}.coefficients");
            y = patch.wire_node(name, math::add(), &[y, bias])?[0];
        }
        patch.shunt_outside(model, end_of(layer, pair), y)?;
        patch.apply(model)
    }

    /// A factor, without the axes of a kernel.
    fn put_matrix(
        &mut self,
        model: &mut TypedModel,
        layer: &Layer,
        value: ValueId,
        transpose: bool,
    ) -> TractResult<OutletId> {
        self.put(model, layer, value, |tensor| {
            let shape: Vec<usize> = tensor.shape().iter().copied().take(2).collect();
            let matrix = tensor.into_shape(&shape)?;
            if transpose { matrix.permute_axes(&[1, 0]) } else { Ok(matrix) }
        })
    }
}

/// The axes of a product like this one that takes a value of so many axes to one of the same axes.
fn in_place(product: &Product, at: usize, rank: usize) -> TractResult<AxesMapping> {
    let axes: Vec<char> = ('a'..'y').take(rank).collect();
    let with = |c: char| -> String {
        let on = |(i, &axis): (usize, &char)| if i == at { c } else { axis };
        axes.iter().enumerate().map(on).collect()
    };
    let matrix = if product.rows_first { "zy" } else { "yz" };
    let (data, out) = (with('y'), with('z'));
    let text = if product.data_slot == 0 {
        format!("{data},{matrix}->{out}")
    } else {
        format!("{matrix},{data}->{out}")
    };
    text.parse()
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
