//! Opens the batch of a network whose file fixes it at one.
//!
//! Many exporters write down the shape of the one image that they traced: in the inputs, in the noted types, and in the
//! constant shapes of `Reshape`s. What is computed for an image seldom depends on that. The first axis of every input becomes
//! open, a `Reshape` to `[1, …]` of something with such an axis copies it, and inference says whether it arrives at
//! every value that depends on the input: what has lost it may mix images, and is refused.

use basisopt_ir::graph::ValueType;
use basisopt_ir::infer::{InferError, infer};
use basisopt_ir::op::Op;
use basisopt_ir::{DType, Dim, Graph, NodeId, Rewrite, RewriteError, Tensor, ValueId};
use std::collections::BTreeSet;

/// Name of the open batch.
const BATCH: &str = "N";

/// Why a batch cannot be opened.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// An input has no batch of one.
    #[error("input {name:?} has no first axis of size 1 that could be opened: its shape is {shape}")]
    Input {
        /// Its name.
        name: String,
        /// Its shape.
        shape: String,
    },
    /// A value of images that does not begin with the batch.
    #[error(
        "the batch is built into the network: with an open one {name:?} has the shape {shape}; export it anew"
    )]
    Lost {
        /// Its name.
        name: String,
        /// The shape that is inferred.
        shape: String,
    },
    /// Types contradict each other when the batch is open.
    #[error("the batch is built into the network: {0}; export it anew")]
    Infer(#[from] InferError),
    /// A constant cannot be replaced; a bug.
    #[error("node {node:?}: {source}")]
    Rewrite {
        /// Label of the node.
        node: String,
        /// What about it.
        source: RewriteError,
    },
}

/// Opens the batch of a graph whose types are inferred, unless it is open.
///
/// # Errors
/// [`BatchError`] if the network computes with its size.
pub fn open_batch(graph: &mut Graph) -> Result<(), BatchError> {
    let first = |graph: &Graph, v: ValueId| graph.value(v).ty.shape.as_ref().and_then(|s| s.first().cloned());
    let inputs: Vec<ValueId> = graph.inputs().iter().map(|&n| ValueId::of(n)).collect();
    if inputs.iter().all(|&v| first(graph, v).is_some_and(|d| d.known().is_none())) {
        return Ok(());
    }
    if let Some(&v) = inputs.iter().find(|&&v| first(graph, v) != Some(Dim::Known(1))) {
        return Err(BatchError::Input { name: graph.value(v).name.clone(), shape: words(graph, v) });
    }
    for id in graph.topological() {
        if let Some(shape) = copying(graph, id) {
            let (node, label) = (graph.node(id), graph.node(id).label().to_owned());
            let failed = |source| BatchError::Rewrite { node: label.clone(), source };
            let (Some(x), op) = (graph.node_input(id, 0), node.op.clone()) else { continue };
            let mut rewrite = Rewrite::at(id);
            let shape = rewrite.constant(format!("{label}.shape"), shape);
            let new = rewrite.node(label.clone(), op, &[x.into(), shape]);
            rewrite.replace(ValueId::of(id), new);
            rewrite.apply(graph).map_err(failed)?;
        }
    }
    // What the file noted holds for a batch of one.
    for id in graph.topological() {
        let node = graph.node(id);
        let is_input = node.op == Op::Input;
        if node.op.is_source() && !is_input {
            continue;
        }
        for port in 0..node.outputs.len() as u32 {
            let value = ValueId { node: id, port };
            let ValueType { dtype, shape } = graph.value(value).ty.clone();
            let shape = shape.filter(|_| is_input).map(|mut dims| {
                dims.iter_mut().take(1).for_each(|d| *d = Dim::symbol(BATCH));
                dims
            });
            graph.set_type(value, ValueType { dtype, shape });
        }
    }
    infer(graph)?;
    let batch = Dim::symbol(BATCH);
    let mut from_input: BTreeSet<ValueId> = inputs.into_iter().collect();
    for id in graph.topological() {
        if !graph.node_inputs(id).iter().flatten().any(|v| from_input.contains(v)) {
            continue;
        }
        for port in 0..graph.node(id).outputs.len() as u32 {
            let value = ValueId { node: id, port };
            let ty = &graph.value(value).ty;
            // Sizes are integers; what images are is not.
            if ty.dtype.is_none_or(DType::is_float) {
                if first(graph, value).as_ref() != Some(&batch) {
                    return Err(BatchError::Lost {
                        name: graph.value(value).name.clone(),
                        shape: words(graph, value),
                    });
                }
                from_input.insert(value);
            }
        }
    }
    Ok(())
}

/// The shape of a `Reshape` to `[1, …]` of a batch of one, with the batch copied instead.
fn copying(graph: &Graph, id: NodeId) -> Option<Tensor> {
    let Op::Reshape(op) = &graph.node(id).op else { return None };
    let x = graph.node_input(id, 0)?;
    let is_batch = graph.constant_value(x).is_none()
        && graph.value(x).ty.shape.as_ref().is_some_and(|s| s.first() == Some(&Dim::Known(1)));
    let mut shape = graph.constant_input(id, 1)?.to_i64s().ok()?;
    if op.allowzero != 0 || !is_batch || shape.first() != Some(&1) {
        return None;
    }
    *shape.first_mut()? = 0;
    Tensor::from_i64s(vec![shape.len()], &shape).ok()
}

fn words(graph: &Graph, v: ValueId) -> String {
    let dims = graph.value(v).ty.shape.as_ref();
    dims.map_or_else(
        || "not known".to_owned(),
        |dims| format!("[{}]", dims.iter().map(Dim::to_string).collect::<Vec<_>>().join(",")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use basisopt_ir::parse::parse;

    fn open(text: &str) -> Result<Graph, BatchError> {
        let mut graph = parse(text).unwrap();
        infer(&mut graph).unwrap();
        open_batch(&mut graph)?;
        Ok(graph)
    }

    #[test]
    fn a_batch_of_one_is_opened_through_shapes_that_name_it() {
        let text = "graph @g(%x: f32[1,2,3,3]) -> (%y) {
                      %w = f32[4,2,1,1] randn(seed=1)
                      %a: f32[1,4,3,3] = Conv(%x, %w)
                      %s = i64[2] [1, 36]
                      %f = Reshape(%a, %s)
                      %v = f32[36,5] randn(seed=2)
                      %y = MatMul(%f, %v)
                    }";
        let graph = open(text).unwrap();
        let y = graph.value(graph.outputs()[0]);
        assert_eq!((y.name.as_str(), &y.ty.shape), ("y", &Some(vec![Dim::symbol("N"), Dim::Known(5)])));
    }

    #[test]
    fn what_computes_with_the_batch_is_refused() {
        let away = "graph @g(%x: f32[1,2,3]) -> (%y) {
                      %s = i64[2] [2, 3]
                      %y = Reshape(%x, %s)
                    }";
        assert!(open(away).unwrap_err().to_string().contains("\"y\""));
        let fixed = "graph @g(%x: f32[4,2]) -> (%y) {\n  %y = Relu(%x)\n}";
        assert!(matches!(open(fixed), Err(BatchError::Input { .. })));
        let mean = "graph @g(%x: f32[1,2]) -> (%y) {
                      %m = ReduceMean<axes=[0]>(%x)
                      %y = Sub(%x, %m)
                    }";
        assert!(matches!(open(mean), Err(BatchError::Lost { .. })));
    }
}
