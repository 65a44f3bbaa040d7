//! What every layer of the original network puts out, in one run over the calibration inputs.

use crate::calibrate::moments::Moments;
use crate::calibrate::rows::{View, sample};
use crate::calibrate::{N_ROWS, check_count, seed_of};
use crate::driver::check::ExecutorError;
use crate::driver::data::Inputs;
use crate::driver::pass::{PassContext, PassError};
use crate::layer::Layer;
use basisopt_ir::{Graph, NodeId, Op, ValueId, ValueType, infer};
use rayon::prelude::*;

/// Moments of the outputs of each layer, the inputs left out; `None` for layers that have no rows.
pub(crate) fn observe(
    graph: &Graph,
    cx: &mut PassContext<'_>,
    layers: &[&Layer],
) -> Result<Vec<Option<Moments>>, PassError> {
    let (Some(calibration), Some(executor)) = (cx.calibration, cx.executor.as_deref_mut()) else {
        return Err(PassError::Missing("calibration data and something to run the network with".to_owned()));
    };
    let samples = calibration.samples;
    let mut graph = graph.clone();
    let ids: Vec<NodeId> = graph.node_ids().filter(|&id| graph.node(id).overridable).collect();
    ids.into_iter().for_each(|id| graph.freeze(id));
    let first =
        samples.batches(0).next().ok_or_else(|| ExecutorError("there are no inputs".to_owned()))??;
    for (&id, tensor) in graph.inputs().to_vec().iter().zip(&first) {
        graph.set_type(ValueId::of(id), ValueType::fixed(tensor.dtype(), tensor.shape()));
    }
    let mistyped = |e: infer::InferError| ExecutorError(e.to_string());
    infer::infer(&mut graph).map_err(mistyped)?;

    let values: Vec<ValueId> = layers.iter().map(|l| ValueId::of(l.node)).collect();
    let views: Vec<Option<View>> = layers.iter().map(|l| View::of(&graph, l)).collect();
    let moments = |view: &Option<View>, layer: &&Layer| {
        view.as_ref().map(|v| Moments::new(layer.groups, 0, v.n_outputs))
    };
    let mut found: Vec<Option<Moments>> = views.iter().zip(layers).map(|(v, l)| moments(v, l)).collect();

    let last = graph.topological().iter().rposition(|id| values.iter().any(|v| v.node == *id)).unwrap_or(0);
    let computes = |id: &NodeId| !matches!(graph.node(*id).op, Op::Input | Op::Constant(_));
    let nodes: Vec<NodeId> = graph.topological().into_iter().take(last + 1).filter(computes).collect();
    let part = graph.extract(&nodes, &values);
    let program = executor.load(&part.graph)?;
    let places: Vec<usize> = part
        .inputs
        .iter()
        .filter_map(|v| graph.inputs().iter().position(|&i| ValueId::of(i) == *v))
        .collect();

    let n_batches = samples.n_batches();
    let n_inputs = graph.inputs().len();
    let per_batch = N_ROWS.div_ceil(n_batches.max(1));
    let seed = cx.seed;
    // The rows of every layer in one batch.
    let look = |batch: usize, inputs: &Inputs| -> Result<Vec<Vec<f64>>, ExecutorError> {
        if inputs.len() != n_inputs {
            let found = inputs.len();
            return Err(ExecutorError(format!("the network takes {n_inputs} inputs, {found} were given")));
        }
        let inputs: Inputs = places.iter().filter_map(|&i| inputs.get(i).cloned()).collect();
        let outputs = program.run(&inputs)?;
        check_count(&outputs, views.len())?;
        let rows = |(i, (y, view)): (usize, (&basisopt_ir::Tensor, &Option<View>))| {
            let Some(view) = view else { return Ok(vec![]) };
            let rows = sample(view.n_rows(y.len()), per_batch, seed_of(seed, i, batch));
            let values = y.to_f32s().map_err(|e| ExecutorError(e.to_string()))?;
            Ok(view.outputs(&values, y.shape(), &rows))
        };
        outputs.iter().zip(&views).enumerate().map(rows).collect()
    };
    let window = 2 * rayon::current_num_threads();
    let mut batches = samples.batches(0);
    let mut done = 0;
    loop {
        if cx.host.interrupted() {
            return Err(PassError::Interrupted);
        }
        let inputs: Vec<Inputs> = batches.by_ref().take(window).collect::<Result<_, _>>()?;
        if inputs.is_empty() {
            return Ok(found);
        }
        let rows: Vec<Result<Vec<Vec<f64>>, _>> =
            inputs.par_iter().enumerate().map(|(i, inputs)| look(done + i, inputs)).collect();
        for rows in rows {
            for (moments, rows) in found.iter_mut().zip(rows?) {
                if let Some(moments) = moments {
                    moments.add(&[], &rows);
                }
            }
            done += 1;
            cx.host.progress(done, n_batches, "observing the original");
        }
    }
}
