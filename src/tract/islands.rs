//! The layers of a model as a graph that passes can work on.
//!
//! The graph has a part of its own for every layer: an input, the layer with its weight and bias, and a batch
//! normalisation in place of what scales and shifts its result. What stands between layers in the model is absent.
//! Two parts are joined only where a layer reads what another gives as it is, since that is how the passes see that a
//! layer is one of a pair of factors already.

use crate::affine::Affine;
use crate::convert::{self, Layout, floats};
use crate::layer::{Form, Layer};
use crate::run::TransformError;
use basisopt_ir::op::{AutoPad, BatchNormalization, Conv, Gemm};
use basisopt_ir::tensor::TensorError;
use basisopt_ir::{Dim, Graph, Node, Op, Tensor, Value, ValueId, ValueType};
use tract_core::internal::{OutletId, TractResult, TypedFact, TypedModel};
use tract_core::ops::cnn::{PaddingSpec, PoolSpec};

/// Version of the standard operator set that the operators below are of.
const OPSET: i64 = 17;

/// Layers, and the graph whose i-th output is the result of the i-th of them.
#[derive(Debug)]
pub(crate) struct Islands {
    pub graph: Graph,
    pub layers: Vec<Layer>,
}

/// A constant of the model that is a weight of layers, in one layout.
struct Shared {
    from: OutletId,
    layout: Layout,
    value: ValueId,
    n_readers: usize,
}

impl Islands {
    /// Copies the layers, which are in the order of the model, into a graph.
    pub fn of(model: &TypedModel, layers: Vec<Layer>) -> TractResult<Self> {
        let mut graph = Graph::new("layers", OPSET);
        let mut weights: Vec<Shared> = vec![];
        // Values of the model that layers give, their spatial axes, and where in the graph they are.
        let mut given: Vec<((OutletId, usize), ValueId)> = vec![];
        for layer in &layers {
            let inputs = &model.node(layer.node).inputs;
            let (from, weight_from) = (inputs[layer.data_slot], inputs[layer.weight_slot]);
            let sought = (from, layer.n_spatial);
            let before = given.iter().find(|(value, _)| *value == sought && layer.is_pointwise());
            let x = before.map(|g| g.1).unwrap_or_else(|| {
                let name = graph.unused_value_name(&format!("{}.input", layer.label));
                let shape = model.outlet_fact(from).map(|fact| layer.input_shape(fact)).unwrap_or_default();
                graph.add_input(name, ValueType { dtype: Some(layer.dtype), shape })
            });
            let weight = weight(&mut graph, model, &mut weights, layer, weight_from)?;
            let bias = bias(&mut graph, model, layer)?;
            let mut end = add(&mut graph, &layer.label, layer.op(), &[x, weight].map(Some), bias);
            if layer.tail.is_none() {
                given.push(((layer.node.into(), layer.n_spatial), end));
            }
            if let Some(tail) = &layer.tail {
                end = normalisation(&mut graph, layer, end, &tail.affine)
                    .map_err(|source| TransformError::Weight { node: layer.label.clone(), source })?;
            }
            graph.add_output(end);
        }
        // What else reads a weight would still need it whole. The outputs of layers come first.
        for shared in weights {
            let node = model.node(shared.from.node);
            let n_readers = node.outputs.get(shared.from.slot).map_or(0, |o| o.successors.len());
            if n_readers > shared.n_readers || model.outputs.contains(&shared.from) {
                graph.add_output(shared.value);
            }
        }
        Ok(Self { graph, layers })
    }
}

impl Layer {
    /// Number of groups; a product has one.
    pub fn n_groups(&self) -> usize {
        match &self.form {
            Form::Conv(conv) => conv.group.max(1),
            Form::Product(_) => 1,
        }
    }

    /// Whether it reads every position by itself.
    fn is_pointwise(&self) -> bool {
        match &self.form {
            Form::Conv(conv) => conv.pool_spec.kernel_shape.iter().all(|&k| k == 1),
            Form::Product(_) => true,
        }
    }

    /// The shape of its input with channels where the passes expect them, as far as it is known.
    fn input_shape(&self, fact: &TypedFact) -> Option<Vec<Dim>> {
        let dim = |axis: usize| fact.shape.get(axis).map(convert::dim);
        let (channels, batch, spatial) = match &self.form {
            Form::Conv(conv) => {
                let shape = conv.pool_spec.data_format.shape(fact.shape.to_tvec()).ok()?;
                (shape.c_axis(), shape.n_axis(), shape.hw_axes())
            }
            Form::Product(p) if self.n_spatial > 0 => {
                (p.data_axis, (p.data_axis > 0).then_some(0), p.data_axis + 1..p.data_rank)
            }
            // Rows of a matrix, whatever they count.
            Form::Product(p) => return Some(vec![Dim::Unknown, dim(p.data_axis)?]),
        };
        let batch = batch.map_or(Some(Dim::Known(1)), dim);
        [batch, dim(channels)].into_iter().chain(spatial.map(dim)).collect()
    }

    /// The operator of the passes that does what it does.
    fn op(&self) -> Op {
        match &self.form {
            Form::Conv(conv) => convolution(&conv.pool_spec, conv.group).into(),
            Form::Product(_) if self.n_spatial > 0 => {
                Conv { kernel_shape: vec![1; self.n_spatial], ..Conv::default() }.into()
            }
            Form::Product(_) => Gemm { transB: 1, ..Gemm::default() }.into(),
        }
    }
}

fn convolution(spec: &PoolSpec, group: usize) -> Conv {
    let ints = |values: &[usize]| values.iter().map(|&v| v as i64).collect::<Vec<_>>();
    let (auto_pad, pads) = match &spec.padding {
        PaddingSpec::Valid => (AutoPad::Valid, vec![]),
        PaddingSpec::SameUpper => (AutoPad::SameUpper, vec![]),
        PaddingSpec::SameLower => (AutoPad::SameLower, vec![]),
        PaddingSpec::Explicit(before, after) | PaddingSpec::ExplicitOnnxPool(before, after, _) => {
            (AutoPad::NotSet, [ints(before), ints(after)].concat())
        }
    };
    Conv {
        auto_pad,
        dilations: ints(&spec.dilations()),
        group: group as i64,
        kernel_shape: ints(&spec.kernel_shape),
        pads,
        strides: ints(&spec.strides()),
    }
}

/// Adds a node whose value has its name, if that is free.
fn add(graph: &mut Graph, label: &str, op: Op, inputs: &[Option<ValueId>], bias: Option<ValueId>) -> ValueId {
    let name = graph.unused_value_name(label);
    let node = Node::new(label, op, vec![Value { name, ty: ValueType::default() }]);
    let inputs: Vec<_> = inputs.iter().copied().chain(bias.map(Some)).collect();
    ValueId::of(graph.add_node(node, &inputs))
}

fn constant(graph: &mut Graph, name: &str, tensor: Tensor) -> ValueId {
    let name = graph.unused_value_name(name);
    graph.add_constant(name, tensor)
}

/// The weight, once for all layers that share it.
fn weight(
    graph: &mut Graph,
    model: &TypedModel,
    weights: &mut Vec<Shared>,
    layer: &Layer,
    from: OutletId,
) -> TractResult<ValueId> {
    if let Some(shared) = weights.iter_mut().find(|w| (w.from, w.layout) == (from, layer.layout)) {
        shared.n_readers += 1;
        return Ok(shared.value);
    }
    let Some(tensor) = &model.outlet_fact(from)?.konst else {
        // Such layers were not found.
        return Err(TransformError::Weight { node: layer.label.clone(), source: TensorError::Elided }.into());
    };
    let tensor = convert::weight(tensor, layer.dtype, layer.layout)?;
    let value = constant(graph, &model.node(from.node).name, tensor);
    weights.push(Shared { from, layout: layer.layout, value, n_readers: 1 });
    Ok(value)
}

/// The bias of a convolution, if it has one that is not zero; an input of the graph if it is no constant.
fn bias(graph: &mut Graph, model: &TypedModel, layer: &Layer) -> TractResult<Option<ValueId>> {
    let Form::Conv(conv) = &layer.form else { return Ok(None) };
    let Some(&from) = model.node(layer.node).inputs.get(2) else { return Ok(None) };
    let name = &model.node(from.node).name;
    let n = conv.pool_spec.output_channels;
    let values = match floats(model, from)? {
        Some(values) if values.iter().all(|&v| v == 0.0) => return Ok(None),
        Some(values) if values.len() == 1 => vec![values[0]; n],
        Some(values) => values,
        None => {
            let name = graph.unused_value_name(name);
            return Ok(Some(graph.add_input(name, ValueType::fixed(layer.dtype, &[n]))));
        }
    };
    Ok(Some(constant(graph, name, Tensor::from_f64s(layer.dtype, vec![values.len()], &values)?)))
}

/// A batch normalisation that scales and shifts: its mean is 0, its variance 1.
fn normalisation(
    graph: &mut Graph,
    layer: &Layer,
    x: ValueId,
    affine: &Affine,
) -> Result<ValueId, TensorError> {
    let n = affine.scale.len();
    let mut inputs = vec![Some(x)];
    for (what, values) in [
        ("scale", &affine.scale),
        ("shift", &affine.shift),
        ("mean", &vec![0.0; n]),
        ("variance", &vec![1.0; n]),
    ] {
        // In the type of the weight, in which the constants of the model were.
        let tensor = Tensor::from_f64s(layer.dtype, vec![n], values)?;
        inputs.push(Some(constant(graph, &format!("{}.{what}", layer.label), tensor)));
    }
    let op = BatchNormalization { epsilon: 0.0, ..BatchNormalization::default() };
    Ok(add(graph, &format!("{}.normalisation", layer.label), op.into(), &inputs, None))
}
