//! What the network's output loses when one layer's output does: measured, by running the original from
//! that layer on with an output that keeps only its first principal components.

use crate::calibrate::bias::can_shift;
use crate::calibrate::fit::{Fit, shrinkage, shrunk_outputs};
use crate::calibrate::moments::Moments;
use crate::calibrate::rows::View;
use crate::calibrate::walk::Walk;
use crate::driver::check::ExecutorError;
use crate::driver::data::{Calibration, Inputs, Samples};
use crate::driver::pass::{PassContext, PassError};
use crate::plan::Set;
use basisopt_ir::{Graph, NodeId, Tensor, ValueId};
use faer::{Mat, MatRef};
use std::collections::BTreeMap;

/// Inputs that losses are measured on.
const N_PROBES: usize = 32;

/// The principal components of a layer's output.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    groups: Vec<(Fit, Vec<f64>)>,
    /// Variance per component, the groups' added up.
    pub spectrum: Vec<f64>,
}

impl Measured {
    /// From the moments of the outputs of all layers of a set.
    pub fn of(graph: &Graph, set: &Set, moments: &[Moments]) -> Result<Self, PassError> {
        let layer = &set.layers[0];
        let centred = set.layers.iter().all(|l| can_shift(graph, l));
        let tensor_error = |source| PassError::Tensor { node: layer.label.clone(), source };
        let weight = graph.constant_value(layer.weight);
        let matrices =
            weight.map(|w| layer.matrices(&w)).transpose().map_err(tensor_error)?.unwrap_or_default();
        let shrink = shrinkage(layer.n_columns, moments.iter().map(|m| m.n).sum());
        let mut groups = Vec::new();
        let mut spectrum = vec![0.0; layer.full_rank()];
        for g in 0..layer.groups {
            let parts: Vec<_> = moments.iter().map(|m| m.centred(g, centred)).collect();
            let mut outputs = Mat::<f64>::zeros(layer.n_rows, layer.n_rows);
            parts.iter().for_each(|c| outputs += &c.yy);
            if let Some(h) = matrices.get(g) {
                let map = MatRef::from_row_major_slice(h, layer.n_rows, layer.n_columns);
                outputs = shrunk_outputs(outputs, map, shrink);
            }
            let identity = Mat::<f64>::identity(layer.n_rows, layer.n_rows);
            let error = |_| PassError::Svd {
                node: layer.label.clone(),
                n_rows: layer.n_rows,
                n_columns: layer.n_rows,
            };
            let fit = Fit::along(identity, &outputs).map_err(error)?;
            spectrum.iter_mut().zip(&fit.spectrum).for_each(|(s, v)| *s += v);
            groups.push((fit, parts[0].y_mean.clone()));
        }
        Ok(Self { groups, spectrum })
    }

    /// The outputs of all rows with only the first components left, about the mean.
    fn truncate(&self, rows: &mut [f64], width: usize, rank: usize) {
        let n = rows.len() / (self.groups.len() * width).max(1);
        for ((fit, mean), rows) in self.groups.iter().zip(rows.chunks_exact_mut((n * width).max(1))) {
            rows.chunks_exact_mut(width).for_each(|row| row.iter_mut().zip(mean).for_each(|(v, m)| *v -= m));
            fit.project_rows(rank, rows);
            rows.chunks_exact_mut(width).for_each(|row| row.iter_mut().zip(mean).for_each(|(v, m)| *v += m));
        }
    }
}

/// The first batches of other samples.
struct First<'a> {
    samples: &'a dyn Samples,
    n_batches: usize,
}

impl Samples for First<'_> {
    fn n_batches(&self) -> usize {
        self.n_batches
    }
    fn batch_size(&self) -> usize {
        self.samples.batch_size()
    }
    fn batches<'a>(&'a self, first: usize) -> Box<dyn Iterator<Item = Result<Inputs, ExecutorError>> + 'a> {
        Box::new(self.samples.batches(first).take(self.n_batches.saturating_sub(first)))
    }
    fn describe(&self) -> String {
        self.samples.describe()
    }
}

/// The loss of each set at each of its ranks: squared error of the network's outputs relative to their
/// variance over inputs, the mean over outputs. `None` for sets that were not measured.
pub(crate) fn losses<const N: usize>(
    graph: &Graph,
    cx: &mut PassContext<'_>,
    sets: &[Set],
    measured: &[Option<Measured>],
    ranks: &[[usize; N]],
) -> Result<Vec<Option<[f64; N]>>, PassError> {
    let (Some(calibration), Some(executor)) = (cx.calibration, cx.executor.take()) else {
        return Ok(vec![None; sets.len()]);
    };
    let n = N_PROBES.div_ceil(calibration.samples.batch_size().max(1));
    let first = First { samples: calibration.samples, n_batches: n.min(calibration.samples.n_batches()) };
    let calibration = Calibration { samples: &first, memory: calibration.memory };
    let walk = Walk::new(graph, calibration, &mut *executor, cx.host);
    let found = walk.and_then(|walk| probe_all(cx, walk, sets, measured, ranks));
    cx.executor = Some(executor);
    found
}

fn probe_all<const N: usize>(
    cx: &PassContext<'_>,
    mut walk: Walk<'_>,
    sets: &[Set],
    measured: &[Option<Measured>],
    ranks: &[[usize; N]],
) -> Result<Vec<Option<[f64; N]>>, PassError> {
    let owner: BTreeMap<NodeId, usize> =
        sets.iter().enumerate().flat_map(|(i, s)| s.layers.iter().map(move |l| (l.node, i))).collect();
    let sites: Vec<NodeId> = walk.nodes().iter().filter(|id| owner.contains_key(id)).copied().collect();
    let mut losses: Vec<Option<[f64; N]>> = vec![None; sets.len()];
    let mut right: Option<Right> = None;
    for (done, &node) in sites.iter().enumerate() {
        let i = owner[&node];
        cx.host.progress(done, sites.len(), walk.graph.node(node).label());
        walk.advance_to(node)?;
        walk.run_original(node)?;
        if let Some(measured) = &measured[i] {
            let layer = sets[i].layers.iter().find(|l| l.node == node).unwrap_or(&sets[i].layers[0]);
            let (alone, at) = walk.alone(node)?;
            let view = layer.at(&alone, at).and_then(|l| View::of(&alone, &l));
            if let Some(view) = view {
                let rest = walk.rest()?;
                if right.is_none() {
                    let mut found = Vec::new();
                    walk.each(|_, state| rest.run(state, None), |_, o| found.push(o))?;
                    let spread = spread(&found);
                    right = Some(Right { values: rest.outputs.clone(), batches: found, spread });
                }
                let Some(right) = &right else { continue };
                let y = ValueId::of(node);
                let mut sums = [0.0; N];
                walk.each(
                    |batch, state| {
                        let mut errors = [0.0; N];
                        for (error, &rank) in errors.iter_mut().zip(&ranks[i]) {
                            let changed = truncated(state.original(y)?, &view, measured, rank)?;
                            let found = rest.run(state, Some((y, &changed)))?;
                            *error = right.relative(batch, &rest.outputs, &found);
                        }
                        Ok(errors)
                    },
                    |_, errors| sums.iter_mut().zip(errors).for_each(|(s, e)| *s += e),
                )?;
                // Of several layers that share a weight the losses add up.
                let before = losses[i].unwrap_or([0.0; N]);
                losses[i] = Some(std::array::from_fn(|k| before[k] + sums[k]));
            }
        }
        walk.pass(node, None)?;
    }
    Ok(losses)
}

fn truncated(y: &Tensor, view: &View, measured: &Measured, rank: usize) -> Result<Tensor, ExecutorError> {
    let words = |e: basisopt_ir::tensor::TensorError| ExecutorError(e.to_string());
    let values = y.to_f32s().map_err(words)?;
    let all: Vec<usize> = (0..view.n_rows(y.len())).collect();
    let mut rows = view.outputs(&values, y.shape(), &all);
    measured.truncate(&mut rows, view.n_outputs, rank);
    let values = view.put_outputs(&rows, y.shape());
    Tensor::from_f64s(y.dtype(), y.shape().to_vec(), &values).map_err(words)
}

/// The variance of every output over inputs, elements taken one by one, added up: what a squared error
/// added up over the same inputs is relative to.
fn spread(outputs: &[Vec<Tensor>]) -> Vec<f64> {
    let n_outputs = outputs.first().map_or(0, Vec::len);
    let of = |k: usize| {
        let values: Vec<Vec<f64>> = outputs.iter().filter_map(|o| floats(o.get(k)?)).collect();
        let Some(size) = values.first().map(Vec::len) else { return 0.0 };
        if values.len() < 2 {
            // Of one batch there is no variance: relative to its size then.
            return values.iter().flatten().map(|v| v * v).sum();
        }
        let mut sum = 0.0;
        for j in 0..size {
            let mean = values.iter().map(|v| v[j]).sum::<f64>() / values.len() as f64;
            sum += values.iter().map(|v| (v[j] - mean) * (v[j] - mean)).sum::<f64>();
        }
        sum
    };
    (0..n_outputs).map(of).collect()
}

fn floats(t: &Tensor) -> Option<Vec<f64>> {
    if t.dtype().is_float() { t.to_f64s().ok() } else { None }
}

/// The outputs of the original for every batch.
struct Right {
    values: Vec<ValueId>,
    batches: Vec<Vec<Tensor>>,
    spread: Vec<f64>,
}

impl Right {
    /// The squared error of outputs, relative to their spread: the mean over those that have any. Outputs
    /// that are made before the layer are right.
    fn relative(&self, batch: usize, values: &[ValueId], found: &[Tensor]) -> f64 {
        let (mut sum, mut n) = (0.0, 0.0f64);
        for ((value, right), &spread) in self.values.iter().zip(&self.batches[batch]).zip(&self.spread) {
            if !(spread.is_finite() && spread > 0.0) {
                continue;
            }
            n += 1.0;
            let same = values.iter().position(|v| v == value).and_then(|k| found.get(k));
            let Some((a, b)) = floats(right).zip(same.and_then(floats)) else { continue };
            let error: f64 = a.iter().zip(&b).map(|(x, y)| (x - y) * (x - y)).sum();
            // What is not a number any more has lost everything.
            sum += if error.is_finite() { error / spread } else { 1.0 };
        }
        sum / n.max(1.0)
    }
}
