//! From a target to ranks: at once for a budget, by trying for a loss of accuracy.

use super::clock::Clock;
use super::latency;
use super::probe;
use super::survey::{Limits, Quantity, Sensitivity, Survey, Surveyed};
use super::target::{Target, unknown};
use super::{AllocateRanks, GATE, NEGLIGIBLE};
use crate::driver::pass::{PassContext, PassError};
use crate::plan::{Selection, Set};
use crate::ranks::round_up;
use crate::{factorize_conv, factorize_linear};
use basisopt_ir::Graph;

/// Trials that a target of accuracy may take: the budget is found to a hundredth.
const TRIALS: usize = 7;

pub(super) type Ranks = Vec<Option<usize>>;

/// Ranks by the Lagrangian.
pub(super) fn lagrange(
    graph: &Graph,
    cx: &mut PassContext<'_>,
    mut survey: Survey,
    sets: &[Set],
    selection: &Selection,
    pass: &AllocateRanks,
    clock: &Clock,
) -> Result<(Survey, Ranks), PassError> {
    let ranks = match pass.target.relative(&survey)? {
        Target::Energy(energy) => survey.ranks_by_energy(energy, pass.limits),
        Target::Share(Quantity::Latency, share) => {
            let limits = pass.limits;
            let mut whole = vec![false; survey.layers.len()];
            if pass.gate && survey.has_data {
                let least = survey.smallest_share(Quantity::Latency, limits).unwrap_or(0.0);
                if let Some(ranks) = survey.ranks(Quantity::Latency, share.max(least), limits) {
                    whole = gate(graph, cx, &mut survey, sets, Quantity::Latency, &ranks)?;
                }
            }
            let milliseconds = if let Target::Amount(_, ms) = pass.target { Some(ms) } else { None };
            let wanted = latency::Wanted { share, milliseconds, clock };
            latency::meet(graph, cx, &survey, selection, wanted, limits, &whole)?
        }
        Target::Share(quantity, share) => {
            let ranks = within(&survey, quantity, share, pass.limits)?;
            match pass.gate && survey.has_data {
                true => {
                    let whole = gate(graph, cx, &mut survey, sets, quantity, &ranks)?;
                    // A budget that only these layers could meet is still a budget.
                    let found = survey.ranks_but(quantity, share, pass.limits, &whole);
                    found.or_else(|| survey.ranks(quantity, share, pass.limits)).unwrap_or(ranks)
                }
                false => ranks,
            }
        }
        Target::Drop(points) => by_drop(graph, cx, &survey, selection, points, pass.limits)?,
        Target::Amount(..) => {
            return Err(PassError::Other("an amount without a total (this is a bug)".to_owned()));
        }
    };
    Ok((survey, ranks))
}

/// Ranks that keep to a budget, or why there are none.
fn within(survey: &Survey, quantity: Quantity, share: f64, limits: Limits) -> Result<Ranks, PassError> {
    if survey.total(quantity).is_none() {
        return Err(unknown(quantity));
    }
    survey.ranks(quantity, share, limits).ok_or_else(|| {
        let least = survey.smallest_share(quantity, limits).unwrap_or(1.0);
        PassError::Missing(format!(
            "no ranks bring the {} down to {:.2} %: the least is {:.2} %, with rank {} everywhere; ask for more, or let more layers be factored",
            quantity.name(),
            100.0 * share,
            100.0 * least,
            limits.multiple
        ))
    })
}

/// Measures losses at the ranks that were chosen, mends the laws by them, and says which layers cost more than their
/// share and are to stay whole.
fn gate(
    graph: &Graph,
    cx: &mut PassContext<'_>,
    survey: &mut Survey,
    sets: &[Set],
    quantity: Quantity,
    ranks: &Ranks,
) -> Result<Vec<bool>, PassError> {
    let at: Vec<[usize; 1]> =
        ranks.iter().zip(&survey.layers).map(|(r, l)| [r.unwrap_or(l.full_rank())]).collect();
    let losses = probe::losses(graph, cx, sets, &survey.measured, &at)?;
    for ((layer, rank), loss) in survey.layers.iter_mut().zip(ranks).zip(&losses) {
        let (Some(rank), Some([loss])) = (*rank, *loss) else { continue };
        let (tail, power) = (layer.tail(rank), layer.sensitivity.power);
        if tail > 0.0 && loss > 0.0 {
            layer.sensitivity = Sensitivity { scale: loss / tail.powf(power), power };
        }
    }
    let total: f64 = losses.iter().flatten().map(|l| l[0]).sum();
    let saved = |layer: &Surveyed, rank: usize| layer.saving(quantity, rank);
    let all: f64 = survey.layers.iter().zip(ranks).filter_map(|(l, r)| Some(saved(l, (*r)?))).sum();
    let mut whole = vec![false; ranks.len()];
    for (i, (layer, rank)) in survey.layers.iter().zip(ranks).enumerate() {
        let (Some(rank), Some([loss])) = (*rank, losses[i]) else { continue };
        let (of_loss, of_saving) =
            (loss / total.max(f64::MIN_POSITIVE), saved(layer, rank) / all.max(f64::MIN_POSITIVE));
        if loss > NEGLIGIBLE && of_loss > GATE * of_saving {
            whole[i] = true;
            let message = format!(
                "left whole by the gate: at rank {rank} it alone causes {:.0} % of the loss and {:.1} % of the saving",
                100.0 * of_loss,
                100.0 * of_saving
            );
            cx.note(&layer.labels[0], "gated", message);
        }
    }
    Ok(whole)
}

/// The fewest multiply-adds (parameters, if those are not known) that lose no more than so many points:
/// found by trying, each time factoring the whole network and having it judged.
fn by_drop(
    graph: &Graph,
    cx: &mut PassContext<'_>,
    survey: &Survey,
    selection: &Selection,
    points: f64,
    limits: Limits,
) -> Result<Ranks, PassError> {
    let quantity = if survey.cost.macs.is_some() { Quantity::Macs } else { Quantity::Params };
    let whole = judge(cx, graph)?;
    let least = survey.smallest_share(quantity, limits).unwrap_or(0.0);
    let (mut low, mut high) = (least, 1.0);
    let mut best: Ranks = vec![None; survey.layers.len()];
    let mut best_score = whole;
    for trial in 0..TRIALS {
        cx.host.progress(trial, TRIALS, "trying budgets");
        let share = 0.5 * (low + high);
        let Some(ranks) = survey.ranks(quantity, share, limits) else {
            low = share;
            continue;
        };
        let mut candidate = graph.clone();
        survey.annotate(&mut candidate, &ranks);
        factor(&mut candidate, cx, selection)?;
        let score = judge(cx, &candidate)?;
        let lost = 100.0 * (whole - score);
        cx.note(
            "",
            "tried",
            format!("{:.1} % of the {}: {lost:+.2} points lost", 100.0 * share, quantity.name()),
        );
        if lost <= points {
            (high, best, best_score) = (share, ranks, score);
        } else {
            low = share;
        }
    }
    let measure = cx.judge.as_deref().map_or("", |j| j.measure());
    let message = format!(
        "{:.1} % of the {} lose {:.2} points of {measure} ({:.2} → {:.2} %), found in {TRIALS} trials",
        100.0 * survey.share(quantity, &best).unwrap_or(1.0),
        quantity.name(),
        100.0 * (whole - best_score),
        100.0 * whole,
        100.0 * best_score
    );
    cx.note("", "found", message);
    Ok(best)
}

fn judge(cx: &mut PassContext<'_>, graph: &Graph) -> Result<f64, PassError> {
    let missing = "accuracy cannot be judged here: give data beyond those for calibration (compress --data)";
    let judge = cx.judge.as_deref_mut().ok_or_else(|| PassError::Missing(missing.to_owned()))?;
    Ok(judge.score(graph)?)
}

/// Factors a copy as the passes would, without their remarks.
pub(super) fn factor(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    selection: &Selection,
) -> Result<(), PassError> {
    let n_remarks = cx.n_remarks();
    let budget = std::mem::replace(&mut cx.budget, usize::MAX);
    let result = factorize_conv::factorize(graph, cx, selection)
        .and_then(|_| factorize_linear::factorize(graph, cx, selection));
    cx.budget = budget;
    cx.forget_remarks(n_remarks);
    result.map(|_| ())
}

/// The paper's rule: for every layer alone the smallest rank with which the network keeps a score, and the
/// score the same for all; the lowest score that meets the budget, or the given one less what may be lost.
pub(super) fn greedy(
    graph: &Graph,
    cx: &mut PassContext<'_>,
    sets: &[Set],
    selection: &Selection,
    target: Target,
    limits: Limits,
) -> Result<(Survey, Ranks), PassError> {
    // Scores of networks say all; of the survey only costs and spectra are used.
    let calibration = cx.calibration.take();
    let survey = Survey::of(graph, cx, sets);
    cx.calibration = calibration;
    let survey = survey?;
    let whole = judge(cx, graph)?;
    let mut scores: Vec<Vec<(usize, f64)>> = Vec::new();
    for (i, layer) in survey.layers.iter().enumerate() {
        cx.host.progress(i, survey.layers.len(), &layer.labels[0]);
        let full = layer.full_rank();
        let mut of_layer = Vec::new();
        // As in the paper's code: shares of the full rank from 0.9 down, here in steps of a tenth.
        for tenth in (1..=9).rev() {
            let rank = round_up((full * tenth).div_ceil(10), limits.multiple, full);
            if layer.share(rank) >= 1.0 || of_layer.last().is_some_and(|&(r, _)| r == rank) {
                continue;
            }
            let mut candidate = graph.clone();
            let ranks: Ranks = (0..survey.layers.len()).map(|j| (j == i).then_some(rank)).collect();
            survey.annotate(&mut candidate, &ranks);
            // One layer alone has no compressed prefix.
            let alone = Selection { refit: false, ..selection.clone() };
            factor(&mut candidate, cx, &alone)?;
            let score = judge(cx, &candidate)?;
            of_layer.push((rank, score));
            // What is lost here, no budget will want.
            if score < 0.5 * whole {
                break;
            }
        }
        scores.push(of_layer);
    }
    // The smallest rank whose score, and that of all larger ranks, is high enough.
    let ranks_for = |least: f64| -> Ranks {
        scores
            .iter()
            .map(|s| s.iter().take_while(|(_, score)| *score >= least).last().map(|(r, _)| *r))
            .collect()
    };
    let ranks = match target.relative(&survey)? {
        Target::Drop(points) => ranks_for(whole - points / 100.0),
        Target::Energy(_) => {
            return Err(PassError::Missing("by=greedy goes by accuracy: target=energy has none".to_owned()));
        }
        Target::Share(quantity, share) => {
            if survey.total(quantity).is_none() {
                return Err(unknown(quantity));
            }
            let mut levels: Vec<f64> = scores.iter().flatten().map(|(_, s)| *s).collect();
            levels.sort_by(f64::total_cmp);
            let fits = |ranks: &Ranks| survey.share(quantity, ranks).is_some_and(|s| s <= share);
            let found = levels.iter().rev().map(|&l| ranks_for(l)).find(fits);
            found.ok_or_else(|| {
                PassError::Missing(format!(
                    "by=greedy finds no ranks for {:.1} % of the {}: every layer alone would cost half of the accuracy before that",
                    100.0 * share,
                    quantity.name()
                ))
            })?
        }
        Target::Amount(..) => {
            return Err(PassError::Other("an amount without a total (this is a bug)".to_owned()));
        }
    };
    Ok((survey, ranks))
}
