//! Factors that are fitted to data: to what a layer puts out in the original network (`output`), and to
//! what the compressed layers before it really give it (`sequential`).
//!
//! Sequential fitting goes through the layers in topological order. The inputs of a layer's regression are
//! those of the network compressed so far, its targets what the original puts out, so that every layer
//! makes up for the errors before it. Two things go beyond a layer's own output:
//!
//! - where the output is added to a shortcut that is there already, the target is that of the *sum*: the
//!   layer corrects what the shortcut has lost (`y + s − ŝ`);
//! - where a ReLU follows, a wrong negative value costs nothing. The target of a row whose right value is
//!   not positive is whatever non-positive value is predicted, or zero; regression and targets take turns
//!   (after Zhang, Zou, He, Sun 2015). Likewise above the upper bound of a `Clip`.

use crate::calibrate::bias::{can_shift, scale};
use crate::calibrate::fit::{
    Fit, Ridge, cross, n_directions, predict, residual, shrinkage, shrunk, shrunk_outputs, variance,
};
use crate::calibrate::moments::{Centred, Moments};
use crate::calibrate::observe::observe;
use crate::calibrate::refit::{self, Refit};
use crate::calibrate::rows::{View, sample};
use crate::calibrate::walk::{State, Walk};
use crate::calibrate::{MAX_ROW_ELEMENTS, N_ROWS, seed_of};
use crate::driver::check::{Executor, ExecutorError};
use crate::driver::data::Calibration;
use crate::driver::pass::{PassContext, PassError};
use crate::driver::remark::Refusal;
use crate::factor::{Factors, NoConvergence};
use crate::layer::Layer;
use crate::plan::{
    Build, Choice, FitQuality, Method, Plan, Planned, Selection, Set, check_values, plan_by_weights, round_to,
};
use basisopt_ir::{Graph, NodeId, Op, Tensor, ValueId};
use faer::{Mat, MatRef};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Ridges that are tried on rows held out, relative to the mean input variance.
const RIDGES: [f64; 7] = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];
/// The ridge where there are too few batches to hold any out.
const RIDGE: f64 = 1e-4;
/// Every so many batches one is held out.
const HELD_OUT: usize = 4;
/// Turns of regression and targets where a ReLU follows.
const TURNS: usize = 2;
/// Rows that are worked on at a time; fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 2048;

/// Plans all sets from data.
#[allow(clippy::too_many_arguments, reason = "what a factorising pass knows, used in one place")]
pub(crate) fn plan_all(
    graph: &Graph,
    cx: &mut PassContext<'_>,
    method: Method,
    selection: &Selection,
    sets: &[Set],
    choices: &[Choice<'_>],
    build: Build,
) -> Result<(Vec<Planned>, Vec<Refit>), PassError> {
    let mut plans: Vec<Option<Planned>> = std::iter::repeat_with(|| None).take(sets.len()).collect();
    // One set of factors for several layers cannot follow each of their prefixes: theirs come from the
    // outputs of all of them in the original.
    let at_once = |set: &Set| method == Method::Output || set.layers.len() > 1;
    let observed: Vec<usize> = (0..sets.len()).filter(|&i| at_once(&sets[i])).collect();
    if !observed.is_empty() {
        let layers: Vec<&Layer> = observed.iter().flat_map(|&i| &sets[i].layers).collect();
        let mut moments = observe(graph, cx, &layers)?.into_iter();
        for &i in &observed {
            let of_set: Option<Vec<Moments>> = moments.by_ref().take(sets[i].layers.len()).collect();
            plans[i] = Some(Ok(by_outputs(graph, cx, &sets[i], &choices[i], of_set)?));
        }
    }
    let mut refits = Vec::new();
    let is_wanted = choices.iter().any(|c| c.is_listed().is_ok());
    if method == Method::Sequential && is_wanted {
        let (Some(calibration), Some(executor)) = (cx.calibration, cx.executor.take()) else {
            return Err(PassError::Missing("there is nothing to run the network with".to_owned()));
        };
        let found =
            in_order(graph, cx, calibration, &mut *executor, selection, sets, choices, build, &mut plans);
        cx.executor = Some(executor);
        refits = found?;
    }
    let missing = || PassError::Other("a layer was not reached (this is a bug)".to_owned());
    let of = |(plan, choice): (Option<Planned>, &Choice<'_>)| match (plan, choice.is_listed()) {
        (Some(plan), _) => Ok(plan),
        (None, Err(refusal)) => Ok(Ok(Err(refusal))),
        (None, Ok(())) => Err(missing()),
    };
    let plans = plans.into_iter().zip(choices).map(of).collect::<Result<_, _>>()?;
    Ok((plans, refits))
}

/// Principal components of the outputs of all layers of a set.
fn by_outputs(
    graph: &Graph,
    cx: &mut PassContext<'_>,
    set: &Set,
    choice: &Choice<'_>,
    moments: Option<Vec<Moments>>,
) -> Planned {
    let layer = &set.layers[0];
    let Some(weight) = graph.constant_value(layer.weight) else { return Err(lost(layer)) };
    let Some(moments) = moments else { return without_rows(cx, layer, &weight, choice) };
    let tensor_error = |source| PassError::Tensor { node: layer.label.clone(), source };
    let matrices = layer.matrices(&weight).map_err(tensor_error)?;
    if let Err(refusal) = check_values(&matrices).and_then(|()| choice.is_listed()) {
        return Ok(Err(refusal));
    }
    // A constant per channel can only be added where every layer of the set has room for it.
    let centred = set.layers.iter().all(|l| can_shift(graph, l));
    let groups: Vec<Vec<Centred>> =
        (0..layer.groups).map(|g| moments.iter().map(|m| m.centred(g, centred)).collect()).collect();
    let n_rows = moments.iter().map(|m| m.n).sum();
    let (mut fits, mut there) = (Vec::new(), 0);
    for (group, h) in groups.iter().zip(&matrices) {
        // Within each layer about its own mean: where the means differ, biases differ as well.
        let mut outputs = Mat::<f64>::zeros(layer.n_rows, layer.n_rows);
        group.iter().for_each(|c| outputs += &c.yy);
        let map = MatRef::from_row_major_slice(h, layer.n_rows, layer.n_columns);
        there = there.max(n_directions(&outputs).map_err(|_| no_convergence(layer))?);
        let outputs = shrunk_outputs(outputs, map, shrinkage(layer.n_columns, n_rows));
        fits.push(Fit::along(map.to_owned(), &outputs).map_err(|_| no_convergence(layer))?);
    }
    let there = if n_rows < 2 * layer.n_columns { layer.full_rank() } else { there };
    let rank = match rank(cx, layer, choice, &fits, there) {
        Ok(rank) => rank,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let factors = factors(layer, &fits, rank, 1.0)?;
    // With one layer the means agree; several share the shift that suits all of them together.
    let mut shift = Vec::new();
    for (g, (group, fit)) in groups.iter().zip(&fits).enumerate() {
        let own = own_bias(graph, layer, g);
        let mean: Vec<f64> = (0..layer.n_rows)
            .map(|i| group.iter().map(|c| c.y_mean[i]).sum::<f64>() / group.len() as f64 - own[i])
            .collect();
        let projected = fit.project(rank, &mean);
        shift.extend(mean.iter().zip(projected).map(|(m, p)| m - p));
    }
    let total: f64 = fits.iter().flat_map(|f| &f.spectrum).sum();
    let lost: f64 = fits.iter().map(|f| f.spectrum[rank.min(f.spectrum.len())..].iter().sum::<f64>()).sum();
    let share = if total > 0.0 { lost / total } else { 0.0 };
    let plan = Plan {
        rank,
        factors,
        energy: 1.0 - share,
        discarded: lost,
        bias_shift: centred.then_some(shift),
        fit: Some(FitQuality { method: Method::Output, error: share, held_out: None, ridge: None, n_rows }),
        ..Plan::default()
    };
    Ok(plan.measured(layer, &matrices))
}

/// The bias of a group as it is, one per output; zeros if there is none.
pub(crate) fn own_bias(graph: &Graph, layer: &Layer, group: usize) -> Vec<f64> {
    let values = graph.node_input(layer.node, 2).and_then(|v| graph.constant_value(v)?.to_f64s().ok());
    let part = values.and_then(|v| Some(v.get(group * layer.n_rows..(group + 1) * layer.n_rows)?.to_vec()));
    let beta = match &graph.node(layer.node).op {
        Op::Gemm(op) => f64::from(op.beta),
        _ => 1.0,
    };
    part.map_or_else(|| vec![0.0; layer.n_rows], |v| v.iter().map(|b| b * beta).collect())
}

/// Goes through the layers one after another.
#[allow(clippy::too_many_arguments, reason = "what a factorising pass knows, used in one place")]
fn in_order(
    graph: &Graph,
    cx: &mut PassContext<'_>,
    calibration: Calibration<'_>,
    executor: &mut dyn Executor,
    selection: &Selection,
    sets: &[Set],
    choices: &[Choice<'_>],
    build: Build,
    plans: &mut [Option<Planned>],
) -> Result<Vec<Refit>, PassError> {
    let mut walk = Walk::new(graph, calibration, executor, cx.host)?;
    let owner: BTreeMap<NodeId, usize> =
        sets.iter().enumerate().flat_map(|(i, s)| s.layers.iter().map(move |l| (l.node, i))).collect();
    let sites: Vec<NodeId> = walk
        .nodes()
        .iter()
        .filter(|id| {
            let fitted = owner.contains_key(id);
            fitted || (selection.refit && refit::applies(graph, **id, selection.exclude.as_ref()))
        })
        .copied()
        .collect();
    let mut refits = Vec::new();
    for (done, &node) in sites.iter().enumerate() {
        cx.host.progress(done, sites.len(), graph.node(node).label());
        let set = owner.get(&node).copied();
        let inputs_differ =
            |w: &Walk<'_>| w.graph.node_inputs(node).into_iter().flatten().any(|v| w.diverged.contains(&v));
        walk.advance_to(node)?;
        walk.run_original(node)?;
        if let Some(i) = set {
            let layer = layer_at(&sets[i], node);
            if plans[i].is_none() {
                let place = seed_of(cx.seed, done, 0);
                plans[i] = Some(Ok(fit_layer(&mut walk, cx, layer, &choices[i], place)?));
            }
            if let Some(Ok(Ok(plan))) = &plans[i] {
                let change = |mut part: Graph, at: NodeId| {
                    let inner = layer.at(&part, at).ok_or_else(|| lost(layer))?;
                    let rewrite = build(&part, &[inner], plan)?;
                    let label = layer.label.clone();
                    rewrite.apply(&mut part).map_err(|source| PassError::Rewrite { node: label, source })?;
                    Ok(part)
                };
                walk.pass(node, Some(&change))?;
                continue;
            }
        }
        let refitted = match selection.refit && inputs_differ(&walk) {
            true => refit::fit(&mut walk, node, seed_of(cx.seed, done, 0))?,
            false => None,
        };
        match refitted {
            Some(refit) => {
                let change = |mut part: Graph, at: NodeId| {
                    let node = refit.label.clone();
                    let rewrite = refit.rewrite_at(&part, at)?;
                    rewrite.apply(&mut part).map_err(|source| PassError::Rewrite { node, source })?;
                    Ok(part)
                };
                walk.pass(node, Some(&change))?;
                refits.push(refit);
            }
            None => walk.pass(node, None)?,
        }
    }
    Ok(refits)
}

fn layer_at(set: &Set, node: NodeId) -> &Layer {
    set.layers.iter().find(|l| l.node == node).unwrap_or(&set.layers[0])
}

/// What a layer's output goes into.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Surroundings {
    /// What it is added to, if that is there already in both networks.
    pub shortcut: Option<ValueId>,
    /// The upper bound of the rectifier that comes next, infinite for a ReLU, where nothing else looks at
    /// the values before it.
    pub rectifier: Option<f64>,
}

/// The upper bound of a ReLU, or of a `Clip` from zero on.
fn rectifier(graph: &Graph, node: NodeId) -> Option<f64> {
    let bound = |slot| -> Option<f64> {
        let value = graph.node_input(node, slot)?;
        graph.constant_value(value)?.to_f64s().ok()?.first().copied()
    };
    match &graph.node(node).op {
        Op::Relu(_) => Some(f64::INFINITY),
        Op::Clip(op) => {
            let low = op.min.map(f64::from).or_else(|| bound(1));
            let no_high = op.max.is_none() && graph.node_input(node, 2).is_none();
            let high = op.max.map(f64::from).or_else(|| bound(2)).or(no_high.then_some(f64::INFINITY));
            high.filter(|&h| low == Some(0.0) && h > 0.0)
        }
        _ => None,
    }
}

impl Surroundings {
    pub fn of(walk: &Walk<'_>, node: NodeId) -> Self {
        let graph = &walk.graph;
        let only_reader = |value: ValueId| match graph.uses(value)[..] {
            [one] if !graph.is_output(value) => Some(one),
            _ => None,
        };
        let value = ValueId::of(node);
        let Some(reader) = only_reader(value) else { return Self::default() };
        match &graph.node(reader.node).op {
            Op::Add(_) => {
                let other = graph.node_input(reader.node, 1 - (reader.slot as usize).min(1));
                let there = |v: &ValueId| walk.is_there(*v) && walk.shape(*v) == walk.shape(value);
                let Some(shortcut) = other.filter(there) else { return Self::default() };
                let next = only_reader(ValueId::of(reader.node));
                Self { shortcut: Some(shortcut), rectifier: next.and_then(|n| rectifier(graph, n.node)) }
            }
            _ => Self { shortcut: None, rectifier: rectifier(graph, reader.node) },
        }
    }
}

/// All rows of a layer, for what moments cannot do.
#[derive(Clone, Debug, Default)]
struct Rows {
    x: Vec<f32>,
    /// The right value before the ReLU.
    wanted: Vec<f32>,
    /// What the shortcut adds in the compressed network.
    added: Vec<f32>,
}

/// What one batch says about a layer.
struct Look {
    x: Vec<f64>,
    y: Vec<f64>,
    /// The shortcut in the original and in the compressed network.
    shortcut: Option<(Vec<f64>, Vec<f64>)>,
}

/// Moments of a layer, and rows where they are asked for.
pub(crate) struct Gathered {
    pub train: Moments,
    pub held_out: Option<Moments>,
    rows: Rows,
}

/// Reads a layer's rows at the frontier.
pub(crate) fn gather(
    walk: &mut Walk<'_>,
    layer: &Layer,
    view: &View,
    around: Surroundings,
    seed: u64,
) -> Result<Gathered, PassError> {
    let n_batches = walk.n_batches();
    let n_rows = N_ROWS.min((MAX_ROW_ELEMENTS / (layer.groups * layer.n_columns).max(1)).max(CHUNK));
    let per_batch = n_rows.div_ceil(n_batches.max(1));
    let x = walk.graph.node_input(layer.node, layer.data_slot());
    let y = ValueId::of(layer.node);
    let x = x.ok_or_else(|| lost(layer))?;
    let floats = |t: &Tensor| t.to_f32s().map_err(|e| ExecutorError(e.to_string()));
    let look = |batch: usize, state: &State| -> Result<Look, ExecutorError> {
        let (x, y) = (state.compressed(x)?, state.original(y)?);
        let rows = sample(view.n_rows(y.len()), per_batch, seed ^ batch as u64);
        let outputs = |t: &Tensor| Ok(view.outputs(&floats(t)?, t.shape(), &rows));
        let shortcut = match around.shortcut {
            Some(s) => Some((outputs(state.original(s)?)?, outputs(state.compressed(s)?)?)),
            None => None,
        };
        Ok(Look { x: view.inputs(&floats(x)?, x.shape(), &rows), y: outputs(y)?, shortcut })
    };
    let new = || Moments::new(layer.groups, view.n_inputs, view.n_outputs);
    let (mut train, mut held_out, mut rows) = (new(), new(), Rows::default());
    let keep_rows = around.rectifier.is_some() && layer.groups == 1;
    walk.each(look, |batch, mut found| {
        if let Some((s, compressed)) = &found.shortcut {
            found.y.iter_mut().zip(s).for_each(|(y, s)| *y += s);
            if keep_rows {
                rows.added.extend(compressed.iter().map(|&v| v as f32));
            }
        }
        if keep_rows {
            rows.x.extend(found.x.iter().map(|&v| v as f32));
            rows.wanted.extend(found.y.iter().map(|&v| v as f32));
        }
        if let Some((_, compressed)) = &found.shortcut {
            found.y.iter_mut().zip(compressed).for_each(|(y, s)| *y -= s);
        }
        let to = if n_batches >= 2 * HELD_OUT && batch % HELD_OUT == HELD_OUT - 1 {
            &mut held_out
        } else {
            &mut train
        };
        to.add(&found.x, &found.y);
    })?;
    Ok(Gathered { train, held_out: (held_out.n > 0).then_some(held_out), rows })
}

/// The ridge that predicts rows held out best, for all groups.
pub(crate) fn choose_ridge(gathered: &Gathered, weights: &[MatRef<'_, f64>], about_means: bool) -> f64 {
    let Some(held_out) = &gathered.held_out else { return RIDGE };
    let moments = |m: &Moments, g: usize| m.centred(g, about_means);
    let groups: Vec<(Centred, Centred)> =
        (0..weights.len()).map(|g| (moments(&gathered.train, g), moments(held_out, g))).collect();
    let error = |&ridge: &f64| -> f64 {
        let of_group = |(i, (train, held_out)): (usize, &(Centred, Centred))| {
            let map = Ridge::new(&train.xx, ridge).and_then(|r| r.map(&train.yx, weights[i]));
            map.map_or_else(|| residual(held_out, weights[i]), |m| residual(held_out, m.as_ref()))
        };
        groups.par_iter().enumerate().map(of_group).collect::<Vec<f64>>().into_iter().sum()
    };
    let errors: Vec<f64> = RIDGES.par_iter().map(error).collect();
    let best = errors.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(RIDGE, |(i, _)| RIDGES[i])
}

/// Fits one layer to what the compressed prefix feeds it.
fn fit_layer(
    walk: &mut Walk<'_>,
    cx: &mut PassContext<'_>,
    layer: &Layer,
    choice: &Choice<'_>,
    seed: u64,
) -> Planned {
    let Some(weight) = walk.graph.constant_value(layer.weight) else { return Err(lost(layer)) };
    let tensor_error = |source| PassError::Tensor { node: layer.label.clone(), source };
    let matrices = layer.matrices(&weight).map_err(tensor_error)?;
    if let Err(refusal) = check_values(&matrices).and_then(|()| choice.is_listed()) {
        return Ok(Err(refusal));
    }
    let (alone, node) = walk.alone(layer.node)?;
    let about_means = can_shift(&walk.graph, layer);
    let has_bias = walk.graph.node_input(layer.node, 2).is_some();
    let view = layer.at(&alone, node).and_then(|l| View::of(&alone, &l));
    let Some(view) = view.filter(|_| about_means || !has_bias) else {
        return without_rows(cx, layer, &weight, choice);
    };
    let around = if about_means { Surroundings::of(walk, layer.node) } else { Surroundings::default() };
    let gathered = gather(walk, layer, &view, around, seed)?;
    let scale = scale(&walk.graph, layer);
    let scaled: Vec<Vec<f64>> = matrices.iter().map(|h| h.iter().map(|v| v * scale).collect()).collect();
    let weights: Vec<MatRef<'_, f64>> =
        scaled.iter().map(|h| MatRef::from_row_major_slice(h, layer.n_rows, layer.n_columns)).collect();
    let ridge = choose_ridge(&gathered, &weights, about_means);
    let mut all = gathered.train.clone();
    gathered.held_out.iter().for_each(|m| all.merge(m));

    let shrink = shrinkage(layer.n_columns, all.n);
    let mut there = 0;
    let fit = |m: &Centred, weight: MatRef<'_, f64>| -> Result<(Option<Ridge>, Fit), NoConvergence> {
        let ridge = Ridge::new(&m.xx, ridge);
        let map = ridge.as_ref().and_then(|r| r.map(&m.yx, weight)).unwrap_or_else(|| weight.to_owned());
        Ok((ridge, Fit::of(map, &shrunk(&m.xx, shrink))?))
    };
    let centred: Vec<Centred> = (0..layer.groups).map(|g| all.centred(g, about_means)).collect();
    let fitted: Result<Vec<_>, _> = centred.par_iter().zip(&weights).map(|(m, w)| fit(m, *w)).collect();
    let (ridges, mut fits): (Vec<_>, Vec<Fit>) =
        fitted.map_err(|_| no_convergence(layer))?.into_iter().unzip();
    for (fit, m) in fits.iter().zip(&centred) {
        there = there.max(fit.effective_rank(&m.xx).map_err(|_| no_convergence(layer))?);
    }
    // With fewer rows than directions some only seem to be dead.
    let there = if all.n < 2 * layer.n_columns { layer.full_rank() } else { there };
    let found = rank(cx, layer, choice, &fits, there);
    let rank = match found {
        Ok(rank) => rank,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let mut means: Vec<Vec<f64>> = centred.iter().map(|m| m.y_mean.clone()).collect();
    if let (Some(high), 1, Some(solver)) = (around.rectifier, layer.groups, &ridges[0]) {
        for _ in 0..TURNS {
            let factors = fits[0].truncate(rank).map_err(|_| no_convergence(layer))?;
            let (yx, mean) = targets(&gathered.rows, layer, &factors, (&centred[0].x_mean, &means[0]), high);
            let Some(map) = solver.map(&yx, weights[0]) else { break };
            fits[0] = Fit::of(map, &shrunk(&centred[0].xx, shrink)).map_err(|_| no_convergence(layer))?;
            means[0] = mean;
        }
    }
    let factors = factors(layer, &fits, rank, scale)?;
    let shape = (layer.n_rows, layer.n_columns);
    let (mut error, mut total, mut shift) = (0.0, 0.0, Vec::new());
    for (g, (m, stored)) in centred.iter().zip(&factors).enumerate() {
        let map: Vec<f64> =
            crate::factor::product(stored, shape.0, shape.1).iter().map(|v| v * scale).collect();
        let map = MatRef::from_row_major_slice(&map, shape.0, shape.1);
        error += residual(m, map);
        total += variance(m);
        // b' − b = ȳ − b − A·x̄.
        let own = own_bias(&walk.graph, layer, g);
        let ahead = |i: usize| (0..shape.1).map(|j| map[(i, j)] * m.x_mean[j]).sum::<f64>();
        shift.extend((0..shape.0).map(|i| means[g][i] - own[i] - ahead(i)));
    }
    let share = if total > 0.0 { error / total } else { 0.0 };
    let held_out = held_out_error(&gathered, &weights, ridge, about_means, rank);
    let n_rows = all.n;
    if n_rows < 2 * layer.n_columns {
        let message = format!(
            "{n_rows} rows are few for {} inputs: more calibration images would make its factors better",
            layer.n_columns
        );
        cx.note(&layer.label, "few-samples", message);
    }
    let plan = Plan {
        rank,
        factors,
        energy: 1.0 - share,
        discarded: error,
        bias_shift: about_means.then_some(shift),
        fit: Some(FitQuality {
            method: Method::Sequential,
            error: share,
            held_out,
            n_rows,
            ridge: Some(ridge),
        }),
        ..Plan::default()
    };
    Ok(plan.measured(layer, &matrices))
}

/// New cross moments and means of the targets, from what the factors predict now.
fn targets(
    rows: &Rows,
    layer: &Layer,
    factors: &Factors,
    (x_mean, y_mean): (&[f64], &[f64]),
    high: f64,
) -> (Mat<f64>, Vec<f64>) {
    let (p, d) = (layer.n_rows, layer.n_columns);
    let n = rows.x.len() / d;
    let part = |v: &[f32], width: usize, i: usize| -> Vec<f64> {
        let to = ((i + CHUNK) * width).min(v.len());
        v.get(i * width..to).unwrap_or(&[]).iter().map(|&v| f64::from(v)).collect()
    };
    let starts: Vec<usize> = (0..n).step_by(CHUNK).collect();
    let sums: Vec<(Mat<f64>, Vec<f64>)> = starts
        .par_iter()
        .map(|&i| {
            let mut x = part(&rows.x, d, i);
            x.chunks_exact_mut(d).for_each(|row| row.iter_mut().zip(x_mean).for_each(|(v, m)| *v -= m));
            let (wanted, added) = (part(&rows.wanted, p, i), part(&rows.added, p, i));
            let mut y = predict(factors, &x, p, d);
            for (k, y) in y.iter_mut().enumerate() {
                let added = added.get(k).copied().unwrap_or(0.0);
                let predicted = *y + y_mean[k % p] + added;
                let target = match wanted[k] {
                    right if right <= 0.0 => predicted.min(0.0),
                    right if right >= high => predicted.max(high),
                    right => right,
                };
                *y = target - added;
            }
            (cross(&y, &x, p, d), column_sums(&y, p))
        })
        .collect();
    let mut yx = Mat::<f64>::zeros(p, d);
    let mut mean = vec![0.0; p];
    for (part, sums) in sums {
        yx += part;
        mean.iter_mut().zip(sums).for_each(|(m, s)| *m += s);
    }
    // The inputs are about their mean, so the mean of the targets plays no part in the cross moments.
    let scale = 1.0 / (n as f64).max(1.0);
    mean.iter_mut().for_each(|m| *m *= scale);
    (Mat::from_fn(p, d, |i, j| yx[(i, j)] * scale), mean)
}

fn column_sums(rows: &[f64], width: usize) -> Vec<f64> {
    let mut sums = vec![0.0; width];
    rows.chunks_exact(width).for_each(|row| sums.iter_mut().zip(row).for_each(|(s, v)| *s += v));
    sums
}

/// What factors fitted to the other rows do on those held out.
fn held_out_error(
    gathered: &Gathered,
    weights: &[MatRef<'_, f64>],
    ridge: f64,
    about_means: bool,
    rank: usize,
) -> Option<f64> {
    let held_out = gathered.held_out.as_ref()?;
    let (mut error, mut total) = (0.0, 0.0);
    for (g, weight) in weights.iter().enumerate() {
        let (a, b) = (gathered.train.centred(g, about_means), held_out.centred(g, about_means));
        let map = Ridge::new(&a.xx, ridge)?.map(&a.yx, *weight)?;
        let factors = Fit::of(map, &a.xx).ok()?.truncate(rank).ok()?;
        let map = crate::factor::product(&factors, weight.nrows(), weight.ncols());
        error += residual(&b, MatRef::from_row_major_slice(&map, weight.nrows(), weight.ncols()));
        total += variance(&b);
    }
    (total > 0.0).then(|| error / total)
}

/// The rank that is asked for, but no more than there are directions with any variance.
fn rank(
    cx: &mut PassContext<'_>,
    layer: &Layer,
    choice: &Choice<'_>,
    fits: &[Fit],
    there: usize,
) -> Result<usize, Refusal> {
    let spectra: Vec<Vec<f64>> = fits.iter().map(|f| f.spectrum.clone()).collect();
    let wanted = choice.rank(layer, &spectra)?;
    let there = there.max(1);
    if there < wanted {
        let message = format!(
            "its outputs vary in {there} directions only (dead channels, or inputs that depend on each other): rank {there} instead of {wanted} loses nothing"
        );
        cx.note(&layer.label, "rank-deficient", message);
    }
    Ok(wanted.min(there))
}

/// The factors of all groups as stored, the scale in front of the layer's product taken out.
fn factors(layer: &Layer, fits: &[Fit], rank: usize, scale: f64) -> Result<Vec<Factors>, PassError> {
    let tensor_error = |source| PassError::Tensor { node: layer.label.clone(), source };
    let of = |fit: &Fit| {
        let mut factors = fit.truncate(rank).map_err(|_| no_convergence(layer))?;
        factors.coefficients.iter_mut().for_each(|v| *v /= scale);
        round_to(layer, factors).map_err(tensor_error)
    };
    fits.par_iter().map(of).collect()
}

/// The plan for a layer whose rows cannot be read: from its weights, with a remark.
fn without_rows(cx: &mut PassContext<'_>, layer: &Layer, weight: &Tensor, choice: &Choice<'_>) -> Planned {
    let planned = plan_by_weights(layer, weight, choice);
    if matches!(planned, Ok(Ok(_))) {
        let message = "its factors come from the weights alone: a transposed convolution, or a bias that cannot be moved, has no regression here";
        cx.note(&layer.label, "weights-only", message);
    }
    planned
}

fn lost(layer: &Layer) -> PassError {
    PassError::Other(format!("{:?}: its weight is gone (this is a bug)", layer.label))
}

fn no_convergence(layer: &Layer) -> PassError {
    let (n_rows, n_columns) = (layer.n_rows, layer.n_columns);
    PassError::Svd { node: layer.label.clone(), n_rows, n_columns }
}
