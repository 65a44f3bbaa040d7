//! `allocate-ranks`: a rank for every layer, so that the network as a whole keeps to a budget and loses as
//! little as possible.
//!
//! The ranks are notes in the graph's metadata (`basisopt.rank.NAME`), which `factorize-conv` and
//! `factorize-linear` follow and remove; nothing else changes.
//!
//! ## Rewrite
//!
//! None: `basisopt.rank.conv1 = 12` and `basisopt.rank.conv2 = whole` are added to the metadata.
//!
//! ## Legality
//!
//! - Layers that cannot be factored get no rank; their cost is counted (`grouped-and-depthwise.bir`).
//! - Layers that share a weight get one rank (`shared-weight.bir`).
//! - A layer whose factors would cost as much as it does stays whole (`whole.bir`).
//! - A budget below what rank 1 everywhere costs is an error, not a guess.
//!
//! ## Numerics
//!
//! Minimises `Σ_l a_l·(tail_l(Q_l))^p_l` under `Σ_l cost_l(Q_l) ≤ budget`, where `tail_l(Q)` is the share of
//! the variance of the layer's output beyond its first Q principal components, and `a_l`, `p_l` fit what the
//! *network's* output loses when this layer alone keeps only its first components: measured at two ranks on 64
//! inputs. Without data `tail` is of the weight's squared singular values, and all layers count the same. The
//! budget is met from below, as closely as the steps of single ranks allow. After the first allocation the losses
//! are measured again at the ranks chosen; a layer that causes far more of the loss than of the saving is
//! left whole (`gate`).
//!
//! A budget of latency puts measured time in place of multiply-adds. Each layer is run by itself on this machine, whole and
//! at up to ten ranks; only ranks that no larger one equals in time are offered, and a layer that is not faster
//! factored stays whole. The network with the ranks so found is then measured, and the plan mended by what it was off.
//! With `device=board.json` times are predicted from a profile that was measured on another machine; only if it is of this
//! one is the network run.
//!
//! ## Pipeline
//!
//! After `@fold`; right before `factorize-conv` and `factorize-linear`.

mod clock;
mod lagrange;
mod latency;
mod probe;
mod search;
mod survey;
mod target;

pub use survey::{Limits, Quantity, Sensitivity, Survey, Surveyed};
pub use target::Target;

use crate::driver::options::{Globs, OptionError, OptionKind, OptionSpec, Options};
use crate::driver::pass::{Fidelity, Outcome, Pass, PassContext, PassError, PassInfo};
use crate::layer::Layer;
use crate::plan::{Selection, Set, check_table, find_layers, rank_key};
use crate::ranks::RankTable;
use basisopt_ir::Graph;

/// The pass `allocate-ranks`: `docs/passes.md` shows what it does, `basisopt passes allocate-ranks` has its options.
pub static INFO: PassInfo = PassInfo {
    name: "allocate-ranks",
    summary: "choose the rank of every layer under a budget for the whole network",
    fidelity: Fidelity::Exact,
    options: &[
        OptionSpec {
            name: "target",
            kind: OptionKind::Target(&["macs", "params", "bytes", "latency", "energy", "drop"]),
            default: "macs:0.5",
            help: "macs, params or bytes to keep, as a share (0.36) or a number (45M); latency: of the time per image on the device, as a share (0.5) or in milliseconds (12ms); energy: share of the output's variance that every layer keeps; drop: points of accuracy that may be lost",
        },
        OptionSpec {
            name: "ranks",
            kind: OptionKind::File,
            default: "not used",
            help: "take the ranks from a file instead: a line `RANK NAME` per layer, the others stay whole",
        },
        OptionSpec {
            name: "device",
            kind: OptionKind::File,
            default: "here",
            help: "whose time target=latency is of: here, or the profile that `basisopt profile-device` wrote on another machine",
        },
        OptionSpec {
            name: "by",
            kind: OptionKind::Choice(&["lagrange", "greedy"]),
            default: "lagrange",
            help: "lagrange: all layers at once, by what the network's output loses; greedy: the paper's rule, the accuracy of every layer factored alone",
        },
        OptionSpec {
            name: "multiple",
            kind: OptionKind::Int { min: 1 },
            default: "1",
            help: "ranks are multiples of this, for kernels that like it",
        },
        OptionSpec {
            name: "gate",
            kind: OptionKind::Switch,
            default: "on",
            help: "leave a layer whole that costs more accuracy than its share of what is saved",
        },
        OptionSpec {
            name: "linear",
            kind: OptionKind::Switch,
            default: "on",
            help: "allot ranks to linear layers (Gemm, MatMul) as well",
        },
        OptionSpec {
            name: "include",
            kind: OptionKind::Globs,
            default: "every layer",
            help: "only layers whose node name matches (globs joined by |)",
        },
        OptionSpec {
            name: "exclude",
            kind: OptionKind::Globs,
            default: "no layer",
            help: "not the layers whose node name matches (globs joined by |)",
        },
    ],
    build: |options| Ok(Box::new(AllocateRanks::read(options)?)),
};

/// Layers that cause this many times more of the loss than of the saving are left whole.
const GATE: f64 = 6.0;
/// Losses of the network's output below this share of its variance are too small to tell.
const NEGLIGIBLE: f64 = 1e-3;

#[derive(Debug)]
pub(crate) struct AllocateRanks {
    target: Target,
    /// A file with ranks, instead of the target.
    ranks: Option<String>,
    /// A device profile.
    device: Option<String>,
    is_greedy: bool,
    limits: Limits,
    gate: bool,
    linear: bool,
    include: Option<Globs>,
    exclude: Option<Globs>,
}

impl AllocateRanks {
    fn read(options: &Options) -> Result<Self, OptionError> {
        if options.get("ranks").is_some() && options.get("target").is_some() {
            let message = "give a target, or ranks from a file, not both".to_owned();
            return Err(OptionError::Conflict { pass: INFO.name.to_owned(), message });
        }
        let target = Target::parse(options.get("target").unwrap_or("macs:0.5"))?;
        if options.get("by") == Some("greedy") && target.quantity() == Some(Quantity::Latency) {
            let message = "by=greedy goes by multiply-adds or parameters, not by latency".to_owned();
            return Err(OptionError::Conflict { pass: INFO.name.to_owned(), message });
        }
        if options.get("device").is_some() && target.quantity() != Some(Quantity::Latency) {
            let message = "device= says whose time counts; it needs target=latency:…".to_owned();
            return Err(OptionError::Conflict { pass: INFO.name.to_owned(), message });
        }
        Ok(Self {
            device: options.get("device").map(str::to_owned),
            ranks: options.get("ranks").map(str::to_owned),
            target,
            is_greedy: options.get("by") == Some("greedy"),
            limits: Limits { multiple: options.int("multiple").unwrap_or(1) },
            gate: options.switch("gate", true),
            linear: options.switch("linear", true),
            include: options.globs("include"),
            exclude: options.globs("exclude"),
        })
    }
}

impl Pass for AllocateRanks {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Outcome, PassError> {
        let selection = Selection {
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            ..Selection::allocated()
        };
        let sets = find_sets(graph, cx, &selection, self.linear);
        if sets.is_empty() {
            return Ok(Outcome::Unchanged);
        }
        if let Some(path) = &self.ranks {
            return from_file(graph, cx, path, &sets);
        }
        if cx.calibration.is_none() {
            let message = "there are no data: ranks come from the spectra of the weights, which say nothing about how sensitive the network is to each layer";
            cx.note("", "no-data", message);
        }
        let (survey, ranks) = match self.is_greedy {
            true => search::greedy(graph, cx, &sets, &selection, self.target, self.limits)?,
            false => {
                let clock = clock::Clock::of(self.device.as_deref(), cx)?;
                // Before hours are spent on a survey, whether there is a time to go by.
                let whole = match self.target.quantity() {
                    Some(Quantity::Latency) => Some(clock.network(cx, graph)?),
                    _ => None,
                };
                let mut survey = Survey::of(graph, cx, &sets)?;
                if let Some(whole) = whole {
                    survey.time(graph, cx, &sets, self.limits, &clock, whole)?;
                }
                search::lagrange(graph, cx, survey, &sets, &selection, self, &clock)?
            }
        };
        let mut n = 0;
        for (layer, rank) in survey.layers.iter().zip(&ranks) {
            if !is_new(graph, &layer.labels, *rank) {
                continue;
            }
            if !cx.spend() {
                break;
            }
            note_rank(graph, &layer.labels, *rank);
            let label = &layer.labels[0];
            match rank {
                Some(rank) => {
                    let message = format!(
                        "rank {rank} of {}: {:.2} % of the energy, {:.1} % of its cost",
                        layer.full_rank(),
                        100.0 * (1.0 - layer.tail(*rank)),
                        100.0 * layer.share(*rank)
                    );
                    let values = [
                        ("rank", *rank as f64),
                        ("full_rank", layer.full_rank() as f64),
                        ("energy", 1.0 - layer.tail(*rank)),
                        ("loss", layer.loss(*rank)),
                        ("cost", layer.share(*rank)),
                    ];
                    cx.applied(label, "allotted", message, &values);
                }
                None => cx.applied(label, "whole", "stays whole: no rank is worth its loss here", &[]),
            }
            n += 1;
        }
        if let (Target::Share(quantity, wanted), Some(share)) =
            (self.target.relative(&survey)?, self.target.quantity().and_then(|q| survey.share(q, &ranks)))
            // Latency was measured, and a budget that was missed is an error.
            && quantity != Quantity::Latency
            && share > wanted * 1.005
        {
            let message =
                format!("{:.1} % of the {} are left, more than wanted", 100.0 * share, quantity.name());
            cx.note("", "over-budget", message);
        }
        Ok(Outcome::of(n))
    }
}

/// What is noted of a rank.
fn text(rank: Option<usize>) -> String {
    rank.map_or_else(|| "whole".to_owned(), |r| r.to_string())
}

fn is_new(graph: &Graph, labels: &[String], rank: Option<usize>) -> bool {
    labels.iter().any(|l| graph.metadata.get(&rank_key(l)) != Some(&text(rank)))
}

/// Notes the rank of a layer, or that it stays whole, where the factorising passes look.
fn note_rank(graph: &mut Graph, labels: &[String], rank: Option<usize>) {
    labels.iter().for_each(|label| graph.annotate(rank_key(label), text(rank)));
}

/// Notes that layers which could be factored, but take no part here, stay whole: the passes that follow
/// would take a missing note for no allocation at all. The number of notes.
fn note_others(graph: &mut Graph, cx: &mut PassContext<'_>, sets: &[Set]) -> usize {
    let mut n = 0;
    for id in graph.topological() {
        let layer = Layer::conv(graph, id).ok().flatten().or_else(|| Layer::linear(graph, id).ok().flatten());
        let Some(layer) = layer.filter(|l| sets.iter().flat_map(|s| &s.layers).all(|o| o.node != l.node))
        else {
            continue;
        };
        let labels = [layer.label];
        if is_new(graph, &labels, None) && cx.spend() {
            note_rank(graph, &labels, None);
            n += 1;
        }
    }
    n
}

/// Notes the ranks of a file.
fn from_file(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    path: &str,
    sets: &[Set],
) -> Result<Outcome, PassError> {
    let table = RankTable::read(path, cx)?;
    check_table(&table, path, sets)?;
    let mut n = 0;
    for (i, set) in sets.iter().enumerate() {
        let labels: Vec<String> = set.layers.iter().map(|l| l.label.clone()).collect();
        let rank = table.rank(i, labels.iter().map(String::as_str)).map(|r| r.min(set.layers[0].full_rank()));
        if !is_new(graph, &labels, rank) {
            continue;
        }
        if !cx.spend() {
            break;
        }
        note_rank(graph, &labels, rank);
        match rank {
            Some(rank) => cx.applied(&labels[0], "allotted", format!("rank {rank}, from {path}"), &[]),
            None => cx.applied(&labels[0], "whole", format!("stays whole: {path} has no rank for it"), &[]),
        }
        n += 1;
    }
    n += note_others(graph, cx, sets);
    Ok(Outcome::of(n))
}

/// The sets that can be factored, of both kinds, in topological order.
fn find_sets(graph: &Graph, cx: &mut PassContext<'_>, selection: &Selection, linear: bool) -> Vec<Set> {
    let mut sets = find_layers(graph, cx, selection, Layer::conv);
    if linear {
        sets.extend(find_layers(graph, cx, selection, Layer::linear));
    }
    let order: Vec<_> = graph.topological();
    let place = |set: &Set| order.iter().position(|id| *id == set.layers[0].node);
    sets.sort_by_key(place);
    sets
}

impl Survey {
    /// Measures the layers of a network once, for any number of [`Survey::ranks`].
    ///
    /// # Errors
    /// As a pass.
    pub fn measure(
        graph: &Graph,
        cx: &mut PassContext<'_>,
        include: Option<Globs>,
        exclude: Option<Globs>,
    ) -> Result<Self, PassError> {
        let selection = Selection { include, exclude, ..Selection::allocated() };
        let sets = find_sets(graph, cx, &selection, true);
        Self::of(graph, cx, &sets)
    }

    /// Notes ranks in a graph, as the pass does.
    pub fn annotate(&self, graph: &mut Graph, ranks: &[Option<usize>]) {
        for (layer, rank) in self.layers.iter().zip(ranks) {
            note_rank(graph, &layer.labels, *rank);
        }
    }
}
