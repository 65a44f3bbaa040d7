//! What stays whole in a compressed network is fitted to it as well: weights and biases of layers that were
//! not factored, and the statistics of normalisations that could not be folded.

use crate::calibrate::bias::{can_shift, scale, shifted};
use crate::calibrate::fit::{Ridge, residual, row_major};
use crate::calibrate::moments::Centred;
use crate::calibrate::rows::View;
use crate::calibrate::sequential::{Surroundings, choose_ridge, gather, own_bias};
use crate::calibrate::walk::Walk;
use crate::driver::check::ExecutorError;
use crate::driver::options::Globs;
use crate::driver::pass::PassError;
use crate::layer::{Layer, LayerKind, transpose};
use basisopt_ir::{Graph, NodeId, Op, Rewrite, Tensor, Use};
use faer::MatRef;

/// Standard deviations of a channel below this share of the original's are those of a dead one: there is
/// nothing to scale.
const DEAD: f64 = 1e-6;

/// A node that is given other constants.
#[derive(Clone, Debug)]
pub(crate) struct Refit {
    pub node: NodeId,
    pub label: String,
    /// The code of its remark.
    pub code: &'static str,
    pub message: String,
    pub values: Vec<(&'static str, f64)>,
    change: Change,
}

#[derive(Clone, Debug)]
enum Change {
    Layer { layer: Box<Layer>, weight: Option<Tensor>, shift: Option<Vec<f64>> },
    Statistics { mean: Tensor, variance: Tensor },
}

/// Whether a node has constants of its own that could be fitted again.
pub(crate) fn applies(graph: &Graph, id: NodeId, exclude: Option<&Globs>) -> bool {
    if exclude.is_some_and(|g| g.matches(graph.node(id).label())) {
        return false;
    }
    let own = |slot| {
        let constant = graph.node_input(id, slot).filter(|&v| graph.constant_value(v).is_some());
        constant.is_some_and(|v| graph.n_readers(v) == 1)
    };
    match &graph.node(id).op {
        // It gets new constants, so it does not matter who else reads the old ones.
        Op::BatchNormalization(op) => {
            let constant =
                |slot| graph.node_input(id, slot).is_some_and(|v| graph.constant_value(v).is_some());
            op.training_mode == 0 && constant(3) && constant(4)
        }
        // The basis of a pair has to stay orthonormal.
        Op::Conv(_) => match Layer::conv(graph, id) {
            Err(refusal) => refusal.code == "depthwise" && own(1),
            Ok(layer) => layer.is_some() && own(1),
        },
        Op::Gemm(_) | Op::MatMul(_) => match Layer::linear(graph, id) {
            Ok(Some(layer)) => own(usize::from(layer.kind != LayerKind::MatMulLeft)),
            _ => false,
        },
        _ => false,
    }
}

/// Fits the node at the frontier to what the compressed network feeds it. `None` where nothing is to be
/// gained or known.
pub(crate) fn fit(walk: &mut Walk<'_>, node: NodeId, seed: u64) -> Result<Option<Refit>, PassError> {
    match &walk.graph.node(node).op {
        Op::BatchNormalization(_) => statistics(walk, node),
        _ => match Layer::any(&walk.graph, node) {
            Some(layer) => fit_layer(walk, layer, seed),
            None => Ok(None),
        },
    }
}

fn fit_layer(walk: &mut Walk<'_>, layer: Layer, seed: u64) -> Result<Option<Refit>, PassError> {
    let about_means = can_shift(&walk.graph, &layer);
    let has_bias = walk.graph.node_input(layer.node, 2).is_some();
    let (alone, node) = walk.alone(layer.node)?;
    let view = layer.at(&alone, node).and_then(|l| View::of(&alone, &l));
    let (Some(view), true) = (view, about_means || !has_bias) else { return Ok(None) };
    let Some(weight) = walk.graph.constant_value(layer.weight) else { return Ok(None) };
    let error = |source| PassError::Tensor { node: layer.label.clone(), source };
    let scale = scale(&walk.graph, &layer);
    let (p, d) = (layer.n_rows, layer.n_columns);
    let mut matrices = layer.matrices(&weight).map_err(error)?;
    matrices.iter_mut().flatten().for_each(|v| *v *= scale);
    let weights: Vec<_> = matrices.iter().map(|h| MatRef::from_row_major_slice(h, p, d)).collect();
    let around = if about_means { Surroundings::of(walk, layer.node) } else { Surroundings::default() };
    // Rows are kept for rectifiers only, and those play no part here.
    let around = Surroundings { rectifier: None, ..around };
    let gathered = gather(walk, &layer, &view, around, seed)?;
    let ridge = choose_ridge(&gathered, &weights, about_means);
    let mut all = gathered.train.clone();
    gathered.held_out.iter().for_each(|m| all.merge(m));
    let map = |m: &Centred, w: MatRef<'_, f64>| Ridge::new(&m.xx, ridge).and_then(|r| r.map(&m.yx, w));

    // New weights have to do better than the old ones on rows that they did not see.
    let (mut old, mut new) = (0.0, 0.0);
    if let Some(held_out) = &gathered.held_out {
        for (g, &w) in weights.iter().enumerate() {
            let (a, b) = (gathered.train.centred(g, about_means), held_out.centred(g, about_means));
            old += residual(&b, w);
            new += map(&a, w).map_or_else(|| residual(&b, w), |m| residual(&b, m.as_ref()));
        }
    }
    let better = new < old;
    let (mut values, mut shift) = (Vec::new(), Vec::new());
    let (mut before, mut after) = (0.0, 0.0);
    for (g, &w) in weights.iter().enumerate() {
        let m = all.centred(g, about_means);
        let fitted = map(&m, w).filter(|_| better).unwrap_or_else(|| w.to_owned());
        before += residual(&m, w);
        after += residual(&m, fitted.as_ref());
        let own = own_bias(&walk.graph, &layer, g);
        let ahead = |i: usize| (0..d).map(|j| fitted[(i, j)] * m.x_mean[j]).sum::<f64>();
        shift.extend((0..p).map(|i| m.y_mean[i] - own[i] - ahead(i)));
        values.extend(row_major(fitted.as_ref()).iter().map(|v| v / scale));
    }
    if !better && !about_means {
        return Ok(None);
    }
    if matches!(layer.kind, LayerKind::Gemm { transposed: false } | LayerKind::MatMul) {
        values = transpose(&values, p, d);
    }
    let weight = Tensor::from_f64s(layer.dtype, weight.shape().to_vec(), &values).map_err(error)?;
    if !weight.is_finite() || shift.iter().any(|s| !s.is_finite()) {
        return Ok(None);
    }
    let what = match (better, about_means) {
        (true, true) => "weight and bias",
        (true, false) => "weight",
        _ => "bias",
    };
    let share = if before > 0.0 { (after / before).sqrt() } else { 1.0 };
    Ok(Some(Refit {
        node: layer.node,
        label: layer.label.clone(),
        code: "refitted",
        message: format!(
            "its {what} now fit what the compressed network feeds it: {:.1} % of the error of its output is left",
            100.0 * share
        ),
        values: vec![("error_left", share)],
        change: Change::Layer {
            weight: better.then_some(weight),
            shift: about_means.then_some(shift),
            layer: Box::new(layer),
        },
    }))
}

/// Mean and variance with which a normalisation gives outputs of the original's mean and variance.
fn statistics(walk: &mut Walk<'_>, node: NodeId) -> Result<Option<Refit>, PassError> {
    let Some(x) = walk.graph.node_input(node, 0) else { return Ok(None) };
    let constant = |slot| walk.graph.node_input(node, slot).and_then(|v| walk.graph.constant_value(v));
    let (Some(mean), Some(variance)) = (constant(3), constant(4)) else { return Ok(None) };
    let Op::BatchNormalization(op) = &walk.graph.node(node).op else { return Ok(None) };
    let epsilon = f64::from(op.epsilon);
    let label = walk.graph.node(node).label().to_owned();
    let error = |source| PassError::Tensor { node: label.clone(), source };
    let n = mean.len();
    // Sums, and sums of squares, per channel: of the original and of the compressed network.
    let sums = |t: &Tensor| -> Result<Vec<[f64; 3]>, ExecutorError> {
        let values = t.to_f32s().map_err(|e| ExecutorError(e.to_string()))?;
        let per_channel: usize = t.shape().iter().skip(2).product();
        let mut sums = vec![[0.0; 3]; n];
        for (i, plane) in values.chunks_exact(per_channel.max(1)).enumerate() {
            let s = &mut sums[i % n.max(1)];
            for &v in plane {
                s[0] += 1.0;
                s[1] += f64::from(v);
                s[2] += f64::from(v) * f64::from(v);
            }
        }
        Ok(sums)
    };
    let (mut original, mut compressed) = (vec![[0.0; 3]; n], vec![[0.0; 3]; n]);
    let add = |to: &mut Vec<[f64; 3]>, more: Vec<[f64; 3]>| {
        to.iter_mut().zip(more).for_each(|(a, b)| (0..3).for_each(|k| a[k] += b[k]));
    };
    walk.each(
        |_, state| Ok((sums(state.original(x)?)?, sums(state.compressed(x)?)?)),
        |_, (a, b)| {
            add(&mut original, a);
            add(&mut compressed, b);
        },
    )?;
    let (old_mean, old_variance) = (mean.to_f64s().map_err(error)?, variance.to_f64s().map_err(error)?);
    let (mut new_mean, mut new_variance) = (old_mean.clone(), old_variance.clone());
    for c in 0..n {
        let moments = |s: &[f64; 3]| {
            let count = s[0].max(1.0);
            let mean = s[1] / count;
            (mean, (s[2] / count - mean * mean).max(0.0).sqrt())
        };
        let ((m, s), (m_new, s_new)) = (moments(&original[c]), moments(&compressed[c]));
        // A channel that hardly varies any more would be blown up to noise.
        let ratio = if s > 0.0 && s_new > DEAD * s { s_new / s } else { 1.0 };
        new_mean[c] = m_new - (m - old_mean[c]) * ratio;
        new_variance[c] = ((old_variance[c] + epsilon) * ratio * ratio - epsilon).max(0.0);
    }
    let tensor =
        |like: &Tensor, values: &[f64]| Tensor::from_f64s(like.dtype(), like.shape().to_vec(), values);
    let (mean, variance) =
        (tensor(&mean, &new_mean).map_err(error)?, tensor(&variance, &new_variance).map_err(error)?);
    if !mean.is_finite() || !variance.is_finite() {
        return Ok(None);
    }
    Ok(Some(Refit {
        node,
        label: label.clone(),
        code: "statistics",
        message: "its statistics are those of the compressed network: outputs keep their mean and variance"
            .to_owned(),
        values: vec![],
        change: Change::Statistics { mean, variance },
    }))
}

impl Refit {
    /// The change to a node that is the one it was fitted for, in the whole graph or in a part.
    pub fn rewrite_at(&self, graph: &Graph, node: NodeId) -> Result<Rewrite, PassError> {
        let mut rewrite = Rewrite::at(node);
        let name = |slot| graph.node_input(node, slot).map_or("", |v| &graph.value(v).name).to_owned();
        match &self.change {
            Change::Statistics { mean, variance } => {
                for (slot, tensor) in [(3, mean), (4, variance)] {
                    let constant = rewrite.constant(name(slot as usize), tensor.clone());
                    rewrite.set_input(Use { node, slot }, constant);
                }
            }
            Change::Layer { layer, weight, shift } => {
                let lost =
                    || PassError::Other(format!("{:?}: its weight is gone (this is a bug)", self.label));
                let layer = layer.at(graph, node).ok_or_else(lost)?;
                if let Some(weight) = weight {
                    let slot = usize::from(layer.kind != LayerKind::MatMulLeft);
                    let constant = rewrite.constant(name(slot), weight.clone());
                    rewrite.set_input(Use { node, slot: slot as u32 }, constant);
                }
                if let Some(shift) = shift {
                    let bias = shifted(graph, &mut rewrite, &layer, Some(shift))?;
                    rewrite.set_input(Use { node, slot: 2 }, bias);
                }
            }
        }
        Ok(rewrite)
    }
}
