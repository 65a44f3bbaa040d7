//! What a network costs: parameters and multiply-adds, in all and per layer.
//!
//! Everything here reads the types noted in the graph, so run [`basisopt_ir::infer::infer`] first
//! (the pass manager does), or use [`of_pinned`] or [`of_shaped`], which work on a copy.

use basisopt_ir::infer::{self, conv_geometry, linear_geometry};
use basisopt_ir::tensor::n_elements;
use basisopt_ir::{DType, Dim, Graph, NodeId, Op};
use serde::Serialize;

/// One convolution or linear layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerCost {
    /// The node; valid until the graph changes.
    pub node: NodeId,
    /// Its label.
    pub label: String,
    /// Whether it is a convolution (transposed ones included) and not a linear layer.
    pub is_conv: bool,
    /// Elements of its weight and bias, even if another layer shares them.
    pub params: u64,
    /// Multiply-adds per image; `None` if that needs a size that is not known.
    pub macs: Option<u64>,
}

/// What a whole network costs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Elements of all constants of a float type: initializers, `Constant` and `ConstantOfShape`
    /// nodes, BatchNorm statistics included, each counted once even if several layers share it.
    pub params: u64,
    /// Bytes of the same.
    pub param_bytes: u64,
    /// Multiply-adds per image of all convolutions and linear layers with constant weights;
    /// padding counted, bias not. `None` if that of any layer is not known.
    pub macs: Option<u64>,
    /// The same for convolutions alone.
    pub conv_macs: Option<u64>,
    /// Elements of constants of 8-bit integer types: quantised weights.
    pub n_quantised: u64,
    /// `Gemm`s whose weight is not a constant, so that their multiply-adds are in no sum.
    pub n_uncounted: usize,
    /// Number of nodes, constants and inputs left out.
    pub n_nodes: usize,
    /// The layers, in the order in which they run.
    #[serde(skip)]
    pub layers: Vec<LayerCost>,
}

/// Adds up a graph whose types are inferred.
pub fn of(graph: &Graph) -> Cost {
    let mut cost = Cost { macs: Some(0), conv_macs: Some(0), ..Cost::default() };
    let add = |sum: Option<u64>, more: Option<u64>| sum?.checked_add(more?);
    for id in graph.topological() {
        let node = graph.node(id);
        if let Some((dtype, n)) = float_constant(graph, id) {
            cost.params = cost.params.saturating_add(n as u64);
            cost.param_bytes = cost.param_bytes.saturating_add(dtype.n_bytes(n).unwrap_or(usize::MAX) as u64);
        }
        if let Op::Constant(t) = &node.op
            && matches!(t.dtype(), DType::I8 | DType::U8)
        {
            cost.n_quantised = cost.n_quantised.saturating_add(t.len() as u64);
        }
        cost.n_nodes += usize::from(!node.op.is_source());
        cost.n_uncounted += usize::from(matches!(node.op, Op::Gemm(_)) && layer(graph, id).is_none());
        if let Some(layer) = layer(graph, id) {
            cost.macs = add(cost.macs, layer.macs);
            if layer.is_conv {
                cost.conv_macs = add(cost.conv_macs, layer.macs);
            }
            cost.layers.push(layer);
        }
    }
    cost
}

/// Element type and number of elements of a constant of a float type: stored, or made by a
/// `ConstantOfShape` of known shape.
fn float_constant(graph: &Graph, id: NodeId) -> Option<(DType, usize)> {
    let node = graph.node(id);
    let (dtype, n) = match &node.op {
        Op::Constant(t) => (t.dtype(), t.len()),
        Op::ConstantOfShape(_) => {
            let ty = &node.outputs.first()?.ty;
            (ty.dtype?, n_elements(&ty.static_shape()?)?)
        }
        _ => return None,
    };
    dtype.is_float().then_some((dtype, n))
}

/// As [`of`], on a copy of the graph in which unknown input sizes are numbers and types inferred:
/// the batch is 1, other sizes as pinned, by the name in the model or as `<input>:<axis>`.
///
/// A graph whose types contradict each other is added up as it stands.
pub fn of_pinned(graph: &Graph, dims: &[(String, usize)]) -> Cost {
    let mut graph = graph.clone();
    pin(&mut graph, dims);
    // The verifier reports contradictions; here they only leave some costs unknown.
    let _ = infer::infer(&mut graph);
    of(&graph)
}

/// As [`of_pinned`], the inputs having these shapes in order, but for the batch.
pub fn of_shaped(graph: &Graph, shapes: &[Vec<usize>]) -> Cost {
    of(&shaped(graph, shapes))
}

/// A copy of the graph, its nodes with the same ids, whose inputs have these shapes in order and types follow; an open
/// batch is 1.
pub(crate) fn shaped(graph: &Graph, shapes: &[Vec<usize>]) -> Graph {
    let mut graph = graph.clone();
    for (node, shape) in graph.inputs().to_vec().into_iter().zip(shapes) {
        let value = basisopt_ir::ValueId::of(node);
        let mut ty = graph.value(value).ty.clone();
        let known = |(axis, (dim, &n)): (usize, (&Dim, &usize))| match dim.known() {
            None if axis == 0 => Dim::Known(1),
            _ => Dim::Known(n),
        };
        ty.shape = ty.shape.map(|dims| dims.iter().zip(shape).enumerate().map(known).collect());
        graph.set_type(value, ty);
    }
    // The verifier reports contradictions; here they only leave some costs unknown.
    let _ = infer::infer(&mut graph);
    graph
}

/// The cost of one convolution or linear layer; `None` for other nodes.
pub fn layer(graph: &Graph, id: NodeId) -> Option<LayerCost> {
    let is_conv = matches!(graph.get(id)?.op, Op::Conv(_) | Op::ConvTranspose(_));
    let (params, macs) = match (conv_geometry(graph, id), linear_geometry(graph, id)) {
        (Some(g), _) => (g.n_params, g.macs),
        (_, Some(g)) => (g.n_params, g.macs),
        // A convolution all the same, but the shape of its weight is not known.
        _ if is_conv => (0, None),
        _ => weight_first(graph, id)?,
    };
    Some(LayerCost { node: id, label: graph.node(id).label().to_owned(), is_conv, params, macs })
}

/// Parameters and multiply-adds of a `MatMul` whose first operand is the constant: that many rows
/// times every column of the second, batch left out where there is one.
fn weight_first(graph: &Graph, id: NodeId) -> Option<(u64, Option<u64>)> {
    let Op::MatMul(_) = &graph.get(id)?.op else { return None };
    let weight = graph.constant_value(graph.node_input(id, 0)?)?;
    let [_, _] = weight.shape() else { return None };
    let params = weight.len() as u64;
    let shape = graph.value(graph.node_input(id, 1)?).ty.shape.as_deref();
    let columns = shape.and_then(|shape| {
        let (last, rest) = shape.split_last()?;
        // Between the batch, if there is one, and the matrix.
        let middle = rest.get(1..rest.len().max(2) - 1).unwrap_or(&[]);
        middle.iter().chain([last]).try_fold(1u64, |n, d| n.checked_mul(d.known()? as u64))
    });
    Some((params, columns.and_then(|n| n.checked_mul(params))))
}

/// The open sizes of a graph's inputs, as [`pin`] takes them: `(NAME, INPUT:AXIS)`, of one without a name the place twice.
pub fn open_dims(graph: &Graph) -> Vec<(String, String)> {
    let mut open = Vec::new();
    for &id in graph.inputs() {
        let value = graph.value(basisopt_ir::ValueId::of(id));
        for (axis, dim) in value.ty.shape.iter().flatten().enumerate().filter(|(_, d)| d.known().is_none()) {
            let place = format!("{}:{axis}", value.name);
            open.push((dim.name().map_or_else(|| place.clone(), str::to_owned), place));
        }
    }
    open
}

/// Makes unknown sizes of the inputs numbers: the batch 1, others as given, by the name in the model or as
/// `<input>:<axis>`. Types are to be inferred again.
pub fn pin(graph: &mut Graph, dims: &[(String, usize)]) {
    for node in graph.inputs().to_vec() {
        let value = basisopt_ir::ValueId::of(node);
        let mut ty = graph.value(value).ty.clone();
        let name = graph.value(value).name.clone();
        for (axis, dim) in ty.shape.iter_mut().flatten().enumerate() {
            if dim.known().is_some() {
                continue;
            }
            let place = format!("{name}:{axis}");
            match dims.iter().find(|(d, _)| *d == place || Some(d.as_str()) == dim.name()) {
                Some((_, n)) => *dim = Dim::Known(*n),
                None if axis == 0 => *dim = Dim::Known(1),
                None => {}
            }
        }
        graph.set_type(value, ty);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_count_once_and_multiply_adds_per_use() {
        // A shared 4×3×3×3 weight, 108 elements: 8·8 positions twice, then 4·64 inputs to 10 classes.
        let graph = basisopt_ir::parse::parse(
            "graph @g(%x: f32[N,3,H,8]) -> (%y) {
               %w = f32[4,3,3,3] randn(seed=1)
               %v = f32[256,10] randn(seed=2)
               %a = Conv<pads=[1,1,1,1]>(%x, %w)
               %b = Conv<pads=[1,1,1,1]>(%x, %w)
               %c = Add(%a, %b)
               %f = Flatten(%c)
               %y = Gemm(%f, %v)
             }",
        )
        .unwrap();
        let cost = of_pinned(&graph, &[("H".to_owned(), 8)]);
        assert_eq!(cost.params, 108 + 2560);
        assert_eq!(cost.param_bytes, 4 * (108 + 2560));
        assert_eq!(cost.conv_macs, Some(2 * 64 * 108));
        assert_eq!(cost.macs, Some(2 * 64 * 108 + 2560));
        assert_eq!((cost.n_nodes, cost.layers.len()), (5, 3));
        // Without the height nobody knows.
        assert_eq!(of_pinned(&graph, &[]).macs, None);
    }

    #[test]
    fn weights_may_come_first_or_be_made_by_a_node() {
        // [5,7] times [2,3,7,4]: per image 3 matrices of 4 columns. Then 15 rows times [4,6].
        let graph = basisopt_ir::parse::parse(
            "graph @g(%x: f32[2,3,7,4]) -> (%y) {
               %w = f32[5,7] randn(seed=1)
               %s = i64[2] [4, 6]
               %c = ConstantOfShape(%s)
               %z = MatMul(%w, %x)
               %y = MatMul(%z, %c)
             }",
        )
        .unwrap();
        let cost = of_pinned(&graph, &[]);
        assert_eq!(cost.params, 35 + 24);
        assert_eq!(cost.macs, Some(3 * 4 * 35 + 15 * 24));
    }
}
