//! From layers to factors: what both factorising passes do between finding a layer and rewriting it.

mod report;
mod weights;

use crate::calibrate::sequential;
use crate::driver::options::{Globs, OptionError, Options};
use crate::driver::pass::{Outcome, PassContext, PassError};
use crate::driver::remark::Refusal;
use crate::factor::{self, Factors};
use crate::layer::Layer;
use crate::ranks::{RankRule, RankTable, break_even, energy_rank, round_up};
use basisopt_ir::{Graph, NodeId, Rewrite, Tensor};

pub(crate) use weights::{check_values, plan as plan_by_weights};

/// What factors are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Weights alone.
    Weights,
    /// The principal components of the layer's output in the original network.
    Output,
    /// Regression of the original output on what the compressed prefix feeds the layer.
    Sequential,
}

impl Method {
    /// The name in options, reports and metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Output => "output",
            Self::Sequential => "sequential",
        }
    }

    /// The method of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Weights, Self::Output, Self::Sequential].into_iter().find(|m| m.name() == name)
    }
}

/// The options of a factorising pass, read.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    /// How ranks are chosen; `None` if the options do not say.
    pub rule: Option<RankRule>,
    /// What factors are made from; `None` for the best that the data allow.
    pub method: Option<Method>,
    /// Whether what stays whole is fitted again as well, where the method is sequential.
    pub refit: bool,
    /// Ranks are rounded up to a multiple of this.
    pub multiple: usize,
    /// Whether layers whose factors cost as much as they do stay whole.
    pub guard: bool,
    /// Only these, by label.
    pub include: Option<Globs>,
    /// Not these, by label.
    pub exclude: Option<Globs>,
    /// Whether this is a trial of `allocate-ranks`, which may have allotted nothing to layers of this kind.
    pub is_trial: bool,
    /// Whether factors need only the right shapes: what is run for its time, not for its results.
    pub is_mock: bool,
}

impl Selection {
    /// Ranks as allotted, everything else as it is by default.
    pub fn allocated() -> Self {
        Self {
            rule: Some(RankRule::Allocated),
            method: None,
            refit: true,
            multiple: 1,
            guard: true,
            include: None,
            exclude: None,
            is_trial: true,
            is_mock: false,
        }
    }

    /// Reads the options that both factorising passes share.
    ///
    /// # Errors
    /// [`OptionError::Conflict`] if more than one rule for ranks is given.
    pub fn read(pass: &str, options: &Options) -> Result<Self, OptionError> {
        let method = options.get("method").and_then(Method::from_name);
        Ok(Self {
            rule: RankRule::from_options(pass, options)?,
            method,
            refit: options.switch("refit", true),
            multiple: options.int("multiple").unwrap_or(1),
            guard: options.switch("guard", true),
            include: options.globs("include"),
            exclude: options.globs("exclude"),
            is_trial: false,
            is_mock: false,
        })
    }
}

/// The factors of a layer, and how good they are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// One per group.
    pub factors: Vec<Factors>,
    /// Basis vectors per group.
    pub rank: usize,
    /// Share of the energy kept, over all groups: of the squared singular values of the weight, or of the
    /// output's variance.
    pub energy: f64,
    /// The energy that is lost, over all groups.
    pub discarded: f64,
    /// `‖H − w·F‖²` over all groups, from the factors as stored.
    pub squared_error: f64,
    /// `max |F·Fᵀ − I|` over all groups, from the basis as stored.
    pub defect: f64,
    /// `‖H‖²` over all groups.
    pub squared_norm: f64,
    /// What is added to the bias, one per output channel.
    pub bias_shift: Option<Vec<f64>>,
    /// How well the outputs are met.
    pub fit: Option<FitQuality>,
}

/// How factors that were fitted to data do on them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FitQuality {
    /// What they were fitted by.
    pub method: Method,
    /// `E‖y − ŷ‖² / E‖y − ȳ‖²`, from the factors as stored.
    pub error: f64,
    /// The same on rows that ridge and weights did not see, where there are enough.
    pub held_out: Option<f64>,
    /// The ridge that does best on those, relative to the mean variance of the inputs.
    pub ridge: Option<f64>,
    /// Rows that the moments were made of.
    pub n_rows: usize,
}

impl Plan {
    /// Fills in what is measured on the factors as stored; refuses those that do not fit their type.
    pub fn measured(mut self, layer: &Layer, matrices: &[Vec<f64>]) -> Result<Self, Refusal> {
        let shape = (layer.n_rows, layer.n_columns);
        for (h, stored) in matrices.iter().zip(&self.factors) {
            self.squared_norm += h.iter().map(|v| v * v).sum::<f64>();
            self.squared_error += factor::squared_error(h, shape, stored);
            self.defect =
                self.defect.max(factor::orthonormality_defect(&stored.basis, self.rank, layer.n_columns));
            if stored.coefficients.iter().chain(&stored.basis).any(|v| !v.is_finite()) {
                let message = format!("its factors do not fit the type {}", layer.dtype);
                return Err(Refusal::new("overflow", message));
            }
        }
        Ok(self)
    }
}

/// What a layer's plan came to.
pub(crate) type Planned = Result<Result<Plan, Refusal>, PassError>;

/// Describes the replacement of layers that share a weight.
pub(crate) type Build = fn(&Graph, &[Layer], &Plan) -> Result<Rewrite, PassError>;

/// Finds layers, factors them and lets `build` describe the replacement of each set that shares a weight.
pub(crate) fn run(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    selection: &Selection,
    find: fn(&Graph, NodeId) -> Result<Option<Layer>, Refusal>,
    build: Build,
) -> Result<Outcome, PassError> {
    check_include(graph, selection, find)?;
    // Of this kind, wanted or not: what is noted for them is used up here.
    let of_kind = |id: &NodeId| !matches!(find(graph, *id), Ok(None));
    let noted: Vec<String> =
        graph.node_ids().filter(of_kind).map(|id| graph.node(id).label().to_owned()).collect();
    let sets = find_layers(graph, cx, selection, find);
    let table = table(graph, cx, selection, &sets)?;
    let choices: Vec<Choice<'_>> =
        sets.iter().enumerate().map(|(i, set)| Choice::of(selection, table.as_ref(), i, set)).collect();
    let method = method(cx, selection);
    let (plans, refits) = match method {
        Method::Weights => (weights::plan_all(graph, cx, &sets, &choices)?, vec![]),
        _ => sequential::plan_all(graph, cx, method, selection, &sets, &choices, build)?,
    };
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
        report::factored(graph, cx, set, &plan);
        n += 1;
    }
    for refit in refits {
        if n == 0 || !cx.spend() {
            break;
        }
        let node = refit.label.clone();
        refit
            .rewrite_at(graph, refit.node)?
            .apply(graph)
            .map_err(|source| PassError::Rewrite { node, source })?;
        cx.applied(&refit.label, refit.code, refit.message.as_str(), &refit.values);
        n += 1;
    }
    // An allocation is used up by the pass that follows it.
    if matches!(selection.rule, None | Some(RankRule::Allocated)) {
        noted.iter().for_each(|label| {
            graph.metadata.shift_remove(&rank_key(label));
        });
    }
    Ok(Outcome::of(n))
}

/// The metadata entry that holds the rank allotted to a layer.
pub(crate) fn rank_key(label: &str) -> String {
    format!("basisopt.rank.{label}")
}

/// The best method there are data for, with a remark if it is not what was asked for.
fn method(cx: &mut PassContext<'_>, selection: &Selection) -> Method {
    let possible = cx.calibration.is_some() && cx.executor.is_some();
    match selection.method {
        Some(Method::Weights) => Method::Weights,
        Some(method) if possible => method,
        None if possible => Method::Sequential,
        asked => {
            if asked.is_some() {
                let message = "there are no data to calibrate on: factors come from the weights alone, which costs much more accuracy at the same size";
                cx.note("", "no-data", message);
            }
            Method::Weights
        }
    }
}

/// The ranks from a file or from an allocation, if ranks come from one.
fn table(
    graph: &Graph,
    cx: &PassContext<'_>,
    selection: &Selection,
    sets: &[Set],
) -> Result<Option<RankTable>, PassError> {
    let allotted = || RankTable::allotted(graph);
    match &selection.rule {
        Some(RankRule::File(path)) => {
            let table = RankTable::read(path, cx)?;
            check_table(&table, path, sets)?;
            Ok(Some(table))
        }
        Some(RankRule::Allocated) => match allotted() {
            Some(table) => Ok(Some(table)),
            None if sets.is_empty() || selection.is_trial => Ok(Some(RankTable::default())),
            None => Err(PassError::Missing(
                "ranks=allocated: no ranks were allotted; put allocate-ranks before this pass".to_owned(),
            )),
        },
        None => Ok(allotted()),
        _ => Ok(None),
    }
}

/// How the rank of one set is chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice<'a> {
    selection: &'a Selection,
    /// The rank that a table gives it; `Some(None)` if there is a table without it.
    listed: Option<Option<usize>>,
}

impl<'a> Choice<'a> {
    fn of(selection: &'a Selection, table: Option<&RankTable>, index: usize, set: &Set) -> Self {
        let labels = set.layers.iter().map(|l| l.label.as_str());
        Self { selection, listed: table.map(|t| t.rank(index, labels)) }
    }

    /// As [`Selection::is_mock`].
    pub fn is_mock(&self) -> bool {
        self.selection.is_mock
    }

    /// Refuses a layer that the table does not name.
    pub fn is_listed(&self) -> Result<(), Refusal> {
        match (self.listed, &self.selection.rule) {
            (Some(None), Some(RankRule::File(_))) => {
                Err(Refusal::new("not-listed", "the ranks file has no rank for it"))
            }
            (Some(None), _) => Err(Refusal::new("kept-whole", "the allocation of ranks keeps it whole")),
            _ => Ok(()),
        }
    }

    /// The rank for a layer with these energies, largest first, one list per group.
    pub fn rank(&self, layer: &Layer, energies: &[Vec<f64>]) -> Result<usize, Refusal> {
        self.is_listed()?;
        let full = layer.full_rank();
        let rank = match (&self.selection.rule, self.listed) {
            (_, Some(Some(rank))) => rank,
            // Every group keeps the share; the groups of one convolution must have the same rank.
            (Some(RankRule::Energy(t)), _) => most(energies, *t),
            (Some(RankRule::Ratio(r)), _) => (r * full as f64).ceil() as usize,
            (Some(RankRule::Fixed(n)), _) => *n,
            _ => most(energies, RankRule::DEFAULT_ENERGY),
        };
        let rank = round_up(rank.clamp(1, full), self.selection.multiple, full);
        let limit = break_even(layer.n_rows, layer.n_columns);
        if self.selection.guard && rank * (layer.n_rows + layer.n_columns) >= layer.n_rows * layer.n_columns {
            let message =
                format!("rank {rank} of {full} would not save multiply-adds (break-even: {limit:.1})");
            let refusal = Refusal::new("past-break-even", message).with("rank", rank as f64);
            return Err(refusal.with("break_even", limit).with("full_rank", full as f64));
        }
        Ok(rank)
    }
}

fn most(energies: &[Vec<f64>], t: f64) -> usize {
    energies.iter().map(|e| energy_rank(e, t)).max().unwrap_or(1)
}

/// Layers that share one weight, and so share its factors.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    /// In topological order.
    pub layers: Vec<Layer>,
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

/// All sets of layers that can be factored; the others get their remarks.
pub(crate) fn find_layers(
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

pub(crate) fn check_table(table: &RankTable, path: &str, sets: &[Set]) -> Result<(), PassError> {
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

/// The factors as they will be stored: what is reported is measured on these.
pub(crate) fn round_to(layer: &Layer, factors: Factors) -> Result<Factors, basisopt_ir::tensor::TensorError> {
    let round = |v: Vec<f64>| Tensor::from_f64s(layer.dtype, vec![v.len()], &v)?.to_f64s();
    Ok(Factors {
        coefficients: round(factors.coefficients)?,
        basis: round(factors.basis)?,
        rank: factors.rank,
    })
}

/// Notes on a new node where it came from, for those who read the file later.
pub(crate) fn note(rewrite: &mut Rewrite, layer: &Layer, role: &str) {
    rewrite.note("basisopt.origin", layer.label.clone());
    rewrite.note("basisopt.factor", role);
}
