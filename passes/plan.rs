//! From layers to factors: what both factorising passes do between finding a layer and rewriting
//! it. Decompositions run in parallel over layers, each one sequential inside.

use crate::driver::options::{Globs, OptionError, Options};
use crate::driver::pass::{Outcome, PassContext, PassError};
use crate::driver::remark::Refusal;
use crate::factor::{self, Factors};
use crate::layer::Layer;
use crate::ranks::{RankRule, RankTable, break_even, energy_kept, energy_rank, round_up};
use basisopt_ir::{Graph, NodeId, Rewrite, Tensor};
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

/// The options of a factorising pass, read.
#[derive(Clone, Debug)]
pub struct Selection {
    /// How ranks are chosen.
    pub rule: RankRule,
    /// Ranks are rounded up to a multiple of this.
    pub multiple: usize,
    /// Whether layers whose factors cost as much as they do stay whole.
    pub guard: bool,
    /// Only these, by label.
    pub include: Option<Globs>,
    /// Not these, by label.
    pub exclude: Option<Globs>,
}

impl Selection {
    /// Reads the options that both factorising passes share.
    ///
    /// # Errors
    /// [`OptionError::Conflict`] if more than one rule for ranks is given.
    pub fn read(pass: &str, options: &Options) -> Result<Self, OptionError> {
        Ok(Self {
            rule: RankRule::from_options(pass, options)?,
            multiple: options.int("multiple").unwrap_or(1),
            guard: options.switch("guard", true),
            include: options.globs("include"),
            exclude: options.globs("exclude"),
        })
    }
}

/// The factors of a layer, and how good they are.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One per group.
    pub factors: Vec<Factors>,
    /// Basis vectors per group.
    pub rank: usize,
    /// Share of the squared singular values kept, over all groups.
    pub energy: f64,
    /// `Σ_{i>Q} s_i²` over all groups.
    pub discarded: f64,
    /// `‖H − w·F‖²` over all groups, from the factors as stored.
    pub squared_error: f64,
    /// `max |F·Fᵀ − I|` over all groups, from the basis as stored.
    pub defect: f64,
    /// `‖H‖²` over all groups.
    pub squared_norm: f64,
}

/// Finds layers, decomposes their weights and lets `build` describe the replacement of each set
/// that shares a weight.
pub fn run(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    selection: &Selection,
    find: fn(&Graph, NodeId) -> Result<Option<Layer>, Refusal>,
    build: impl Fn(&Graph, &[Layer], &Plan) -> Result<Rewrite, PassError>,
) -> Result<Outcome, PassError> {
    let table = match &selection.rule {
        RankRule::File(path) => Some(RankTable::read(path, cx)?),
        _ => None,
    };
    check_include(graph, selection, find)?;
    let sets = find_layers(graph, cx, selection, find);
    if let (Some(table), RankRule::File(path)) = (&table, &selection.rule) {
        check_table(table, path, &sets)?;
    }
    let listed = |(i, set): (usize, &Set)| {
        let labels = set.layers.iter().map(|l| l.label.as_str());
        table.as_ref().map(|t| t.rank(i, labels))
    };
    let ranks: Vec<_> = sets.iter().enumerate().map(listed).collect();
    let plans = decompose_all(graph, cx, selection, &sets, &ranks)?;
    let mut n = 0;
    for (set, plan) in sets.iter().zip(plans) {
        let label = &set.layers[0].label;
        let plan = match plan? {
            Ok(plan) => plan,
            Err(refusal) => {
                set.layers.iter().for_each(|l| cx.refused(&l.label, refusal.clone()));
                continue;
            }
        };
        if !cx.spend() {
            break;
        }
        let rewrite = build(graph, &set.layers, &plan)?;
        rewrite.apply(graph).map_err(|source| PassError::Rewrite { node: label.clone(), source })?;
        report(graph, cx, set, &plan);
        n += 1;
    }
    Ok(Outcome::of(n))
}

/// A filter that matches no layer, factorable or not, is a slip of the pen.
fn check_include(
    graph: &Graph,
    selection: &Selection,
    find: fn(&Graph, NodeId) -> Result<Option<Layer>, Refusal>,
) -> Result<(), PassError> {
    let Some(include) = &selection.include else { return Ok(()) };
    let is_layer = |id: &NodeId| !matches!(find(graph, *id), Ok(None));
    let mut layers = graph.node_ids().filter(is_layer).peekable();
    if layers.peek().is_some() && !layers.any(|id| include.matches(graph.node(id).label())) {
        return Err(PassError::NoMatch { option: "include" });
    }
    Ok(())
}

/// Layers that share one weight, and so share its factors.
struct Set {
    layers: Vec<Layer>,
}

fn find_layers(
    graph: &Graph,
    cx: &mut PassContext<'_>,
    selection: &Selection,
    find: fn(&Graph, NodeId) -> Result<Option<Layer>, Refusal>,
) -> Vec<Set> {
    let mut sets: Vec<Set> = Vec::new();
    for id in graph.topological() {
        let label = graph.node(id).label().to_owned();
        let layer = match find(graph, id) {
            Ok(None) => continue,
            Ok(Some(layer)) => layer,
            Err(refusal) => {
                cx.refused(&label, refusal);
                continue;
            }
        };
        let same = |s: &&mut Set| {
            let other = &s.layers[0];
            (other.weight, other.kind, other.groups) == (layer.weight, layer.kind, layer.groups)
        };
        match sets.iter_mut().find(same) {
            Some(set) => set.layers.push(layer),
            None => sets.push(Set { layers: vec![layer] }),
        }
    }
    sets.retain(|set| match keep(graph, selection, set) {
        Ok(()) => true,
        Err(refusal) => {
            set.layers.iter().for_each(|l| cx.refused(&l.label, refusal.clone()));
            false
        }
    });
    sets
}

/// Whether a set is wanted, and nothing else reads its weight.
fn keep(graph: &Graph, selection: &Selection, set: &Set) -> Result<(), Refusal> {
    for layer in &set.layers {
        if selection.include.as_ref().is_some_and(|g| !g.matches(&layer.label)) {
            return Err(Refusal::new("not-included", format!("include= does not match {}", layer.label)));
        }
        if selection.exclude.as_ref().is_some_and(|g| g.matches(&layer.label)) {
            return Err(Refusal::new("excluded", format!("exclude= matches {}", layer.label)));
        }
    }
    let weight = set.layers[0].weight;
    if graph.n_readers(weight) > set.layers.len() {
        let name = &graph.value(weight).name;
        let message = format!("its weight {name} is also read by something that would still need it whole");
        return Err(Refusal::new("shared-weight", message));
    }
    Ok(())
}

fn check_table(table: &RankTable, path: &str, sets: &[Set]) -> Result<(), PassError> {
    let labels: Vec<String> = sets.iter().flat_map(|s| &s.layers).map(|l| l.label.clone()).collect();
    let error = |reason| Err(PassError::File { option: "ranks", path: path.to_owned(), reason });
    if table.is_positional() && table.n_ranks() != sets.len() {
        return error(format!(
            "{} ranks for {} layers that can be factored; `basisopt inspect` lists them",
            table.n_ranks(),
            sets.len()
        ));
    }
    match table.unknown(&labels)[..] {
        [] => Ok(()),
        [name, ..] => {
            let hint = crate::driver::options::closest(name, labels.iter().map(String::as_str));
            let hint = hint.map(|h| format!(" (did you mean {h:?}?)")).unwrap_or_default();
            error(format!("no layer {name:?} can be factored here{hint}"))
        }
    }
}

type Planned = Result<Result<Plan, Refusal>, PassError>;

/// Decomposes every set's weight, in parallel; results come back in order.
fn decompose_all(
    graph: &Graph,
    cx: &PassContext<'_>,
    selection: &Selection,
    sets: &[Set],
    ranks: &[Option<Option<usize>>],
) -> Result<Vec<Planned>, PassError> {
    let jobs: Vec<(usize, &Layer, Tensor, Option<Option<usize>>)> = sets
        .iter()
        .zip(ranks)
        .enumerate()
        .filter_map(|(i, (s, r))| Some((i, &s.layers[0], graph.constant_value(s.layers[0].weight)?, *r)))
        .collect();
    let mut plans: Vec<Option<Planned>> = std::iter::repeat_with(|| None).take(sets.len()).collect();
    let stop = AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    // The host's progress and interruption belong to this thread, the work to rayon's.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let sender = sender;
            jobs.par_iter().for_each_with(sender, |sender, (i, layer, weight, rank)| {
                if !stop.load(Ordering::Relaxed) {
                    // A receiver that is gone has seen enough.
                    let _ = sender.send((*i, plan(layer, weight, selection, *rank)));
                }
            });
        });
        let mut done = 0;
        while let Ok((i, planned)) = receiver.recv() {
            done += 1;
            cx.host.progress(done, jobs.len(), &sets[i].layers[0].label);
            plans[i] = Some(planned);
            if cx.host.interrupted() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    if stop.into_inner() {
        return Err(PassError::Interrupted);
    }
    plans.into_iter().map(|p| p.ok_or(PassError::Interrupted)).collect()
}

/// Decomposes one layer and chooses its rank.
fn plan(layer: &Layer, weight: &Tensor, selection: &Selection, listed: Option<Option<usize>>) -> Planned {
    let tensor_error = |source| PassError::Tensor { node: layer.label.clone(), source };
    let (n_rows, n_columns) = (layer.n_rows, layer.n_columns);
    let matrices = layer.matrices(weight).map_err(tensor_error)?;
    if matrices.iter().flatten().any(|v| !v.is_finite()) {
        return Ok(Err(Refusal::new("non-finite-weight", "its weight contains NaN or infinity")));
    }
    if matrices.iter().flatten().all(|&v| v == 0.0) {
        return Ok(Err(Refusal::new("zero-weight", "its weight is all zero: there is nothing to keep")));
    }
    if listed == Some(None) {
        return Ok(Err(Refusal::new("not-listed", "the ranks file has no rank for it")));
    }
    let svd_error = |_| PassError::Svd { node: layer.label.clone(), n_rows, n_columns };
    let decompositions: Vec<_> = matrices
        .iter()
        .map(|h| factor::decompose(h, n_rows, n_columns))
        .collect::<Result<_, _>>()
        .map_err(svd_error)?;
    let spectra: Vec<&[f64]> = decompositions.iter().map(|d| d.singular_values()).collect();
    let squared = |s: &[f64]| s.iter().map(|v| v * v).sum::<f64>();
    let squared_norm: f64 = spectra.iter().map(|s| squared(s)).sum();
    if !squared_norm.is_normal() {
        let message = "its weights are so large or so small that their energy is not a number";
        return Ok(Err(Refusal::new("extreme-weight", message)));
    }
    let full = layer.full_rank();
    let rank = match (&selection.rule, listed) {
        (_, Some(Some(rank))) => rank,
        // Every group keeps the share; the groups of one convolution must have the same rank.
        (RankRule::Energy(t), _) => spectra.iter().map(|s| energy_rank(s, *t)).max().unwrap_or(1),
        (RankRule::Ratio(r), _) => (r * full as f64).ceil() as usize,
        (RankRule::Fixed(n), _) => *n,
        (RankRule::File(_), _) => full,
    };
    let rank = round_up(rank.clamp(1, full), selection.multiple, full);
    let limit = break_even(n_rows, n_columns);
    if selection.guard && rank * (n_rows + n_columns) >= n_rows * n_columns {
        let message = format!("rank {rank} of {full} would not save multiply-adds (break-even: {limit:.1})");
        let refusal = Refusal::new("past-break-even", message).with("rank", rank as f64);
        return Ok(Err(refusal.with("break_even", limit).with("full_rank", full as f64)));
    }
    let discarded: f64 = spectra.iter().map(|s| squared(&s[rank.min(s.len())..])).sum();
    let energy = match &spectra[..] {
        [one] => energy_kept(one, rank),
        _ => 1.0 - discarded / squared_norm,
    };
    let (mut factors, mut squared_error, mut defect) = (Vec::new(), 0.0, 0.0f64);
    for (h, decomposition) in matrices.iter().zip(&decompositions) {
        let stored = round_to(layer, decomposition.truncate(rank)).map_err(tensor_error)?;
        squared_error += factor::squared_error(h, (n_rows, n_columns), &stored);
        defect = defect.max(factor::orthonormality_defect(&stored.basis, rank, n_columns));
        if stored.coefficients.iter().chain(&stored.basis).any(|v| !v.is_finite()) {
            let message = format!("its factors do not fit the type {}", layer.dtype);
            return Ok(Err(Refusal::new("overflow", message)));
        }
        factors.push(stored);
    }
    Ok(Ok(Plan { factors, rank, energy, discarded, squared_error, defect, squared_norm }))
}

/// The factors as they will be stored: what is reported is measured on these.
fn round_to(layer: &Layer, factors: Factors) -> Result<Factors, basisopt_ir::tensor::TensorError> {
    let round = |v: Vec<f64>| Tensor::from_f64s(layer.dtype, vec![v.len()], &v)?.to_f64s();
    Ok(Factors {
        coefficients: round(factors.coefficients)?,
        basis: round(factors.basis)?,
        rank: factors.rank,
    })
}

fn report(graph: &mut Graph, cx: &mut PassContext<'_>, set: &Set, plan: &Plan) {
    let layer = &set.layers[0];
    let full = layer.full_rank();
    let error = (plan.squared_error / plan.squared_norm).sqrt();
    let shared = match set.layers.len() {
        1 => String::new(),
        n => format!("; the weight is shared by {n} layers, and so are its factors"),
    };
    let per_group =
        if layer.groups > 1 { format!(" in each of {} groups", layer.groups) } else { String::new() };
    let cost =
        (plan.rank * (layer.n_rows + layer.n_columns)) as f64 / (layer.n_rows * layer.n_columns) as f64;
    let message = format!(
        "rank {} of {full}{per_group}: {:.2} % of the energy, relative error {error:.4}, {:.1} % of the multiply-adds{shared}",
        plan.rank,
        100.0 * plan.energy,
        100.0 * cost,
    );
    let values = [
        ("rank", plan.rank as f64),
        ("full_rank", full as f64),
        ("break_even", break_even(layer.n_rows, layer.n_columns)),
        ("energy", plan.energy),
        ("discarded", plan.discarded),
        ("squared_error", plan.squared_error),
        ("squared_norm", plan.squared_norm),
        ("defect", plan.defect),
        ("cost", cost),
    ];
    cx.applied(&layer.label, "factored", message, &values);
    for layer in &set.layers {
        // Six digits: what differs beyond them between machines is rounding.
        let note = format!(
            "{{\"rank\":{},\"full_rank\":{full},\"groups\":{},\"energy\":{:.6},\"error\":{error:.6}}}",
            plan.rank, layer.groups, plan.energy
        );
        // Names of nodes need not be unique.
        let key = format!("basisopt.layer.{}", layer.label);
        let free = |k: &String| !graph.metadata.contains_key(k);
        let key = Some(key.clone()).filter(free).or_else(|| (2..).map(|n| format!("{key}.{n}")).find(free));
        graph.metadata.extend(key.map(|k| (k, note)));
    }
}

/// Notes on a new node where it came from, for those who read the file later.
pub fn note(rewrite: &mut Rewrite, layer: &Layer, role: &str) {
    rewrite.note("basisopt.origin", layer.label.clone());
    rewrite.note("basisopt.factor", role);
}
