//! What layers take on a device: whole, and factored at some ranks.
//!
//! Every layer is run by itself, or predicted from a profile, once for each shape that occurs in the network, beside its
//! own factors. Times are steps in the rank, because kernels work in tiles; of the ranks that were measured only the
//! *lower envelope* is offered, those that no larger rank equals in time, and only where they are faster than the whole
//! layer. A layer without any stays whole.

use super::clock::Clock;
use super::search::{Ranks, factor};
use super::survey::{Limits, Quantity, Survey, shapes};
use crate::cost;
use crate::driver::pass::{PassContext, PassError};
use crate::layer::Layer;
use crate::plan::{Selection, Set};
use basisopt_ir::{Graph, ValueId};
use std::collections::BTreeMap;

/// Ranks that are measured for a layer, at most.
const N_RANKS: usize = 10;
/// Ranks worth measuring are multiples of this where there are many: the fused operator's panels have so many rows, and
/// tract's kernels are no finer.
const STEP: usize = 6;
/// A layer must be faster than this share of itself to be factored: less is the noise of the measurement.
const WORTH: f64 = 0.97;
/// Networks that are measured whole to meet a target.
const TRIALS: usize = 6;
/// A network that keeps more than this share of its time at best cannot be made faster.
const NOTHING: f64 = 0.98;
/// A target is met within this share of it.
const CLOSE: f64 = 0.05;

/// What a layer takes, in milliseconds per image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Times {
    /// Whole.
    pub whole: f64,
    /// Factored, by ascending rank; the lower envelope of what was measured.
    pub ranks: Vec<(usize, f64)>,
    /// All that was measured, by ascending rank.
    measured: Vec<(usize, f64)>,
}

impl Times {
    /// The lower envelope of measurements by ascending rank.
    fn new(whole: f64, measured: Vec<(usize, f64)>) -> Self {
        let mut ranks: Vec<(usize, f64)> = Vec::new();
        // From above: what is not faster than a larger rank has nothing to offer.
        for &(rank, time) in measured.iter().rev() {
            let bound = ranks.last().map_or(WORTH * whole, |&(_, t)| t);
            if time < bound {
                ranks.push((rank, time));
            }
        }
        ranks.reverse();
        Self { whole, ranks, measured }
    }

    /// The time of a rank: linear between those measured, the whole layer's above all of them.
    pub fn at(&self, rank: usize) -> f64 {
        let above = self.ranks.iter().position(|&(r, _)| r >= rank);
        match above {
            Some(0) => self.ranks[0].1,
            Some(i) => {
                let ((r0, t0), (r1, t1)) = (self.ranks[i - 1], self.ranks[i]);
                t0 + (t1 - t0) * (rank - r0) as f64 / (r1 - r0) as f64
            }
            None => self.whole,
        }
    }

    /// Both layers together: they share a weight, so they are timed at the same ranks.
    fn and(&self, other: &Self) -> Self {
        let sums = self.measured.iter().zip(&other.measured).map(|(&(rank, a), &(_, b))| (rank, a + b));
        Self::new(self.whole + other.whole, sums.collect())
    }
}

impl Survey {
    /// Measures every layer, the network having taken what [`Clock::network`] says.
    pub(super) fn time(
        &mut self,
        graph: &Graph,
        cx: &mut PassContext<'_>,
        sets: &[Set],
        limits: Limits,
        clock: &Clock,
        (seconds, scale): (f64, f64),
    ) -> Result<(), PassError> {
        let pinned = cost::shaped(graph, &shapes(graph, cx)?);
        self.milliseconds = Some(1e3 * seconds);
        let mut known: BTreeMap<String, Times> = BTreeMap::new();
        for (i, (set, surveyed)) in sets.iter().zip(&mut self.layers).enumerate() {
            cx.host.progress(i, sets.len(), &format!("timing {}", surveyed.labels[0]));
            if cx.host.interrupted() {
                return Err(PassError::Interrupted);
            }
            for layer in &set.layers {
                let key = key(&pinned, layer);
                let times = match known.get(&key) {
                    Some(times) => times.clone(),
                    None => of_layer(
                        &pinned,
                        cx,
                        layer,
                        &surveyed.ranks(limits).collect::<Vec<_>>(),
                        (clock, scale),
                    )?,
                };
                known.insert(key, times.clone());
                surveyed.times = Some(match &surveyed.times {
                    Some(all) => all.and(&times),
                    None => times,
                });
            }
            if surveyed.times.as_ref().is_some_and(|t| t.ranks.is_empty()) {
                cx.note(
                    &surveyed.labels[0],
                    "not-faster",
                    format!("left whole: no rank runs faster {} than the layer itself", clock.place()),
                );
            }
        }
        Ok(())
    }
}

/// What two layers must share to take the same time.
fn key(graph: &Graph, layer: &Layer) -> String {
    let node = graph.node(layer.node);
    let types: Vec<_> = graph.node_inputs(layer.node).iter().flatten().map(|&v| &graph.value(v).ty).collect();
    format!("{:?} {types:?}", node.op)
}

fn of_layer(
    graph: &Graph,
    cx: &mut PassContext<'_>,
    layer: &Layer,
    ranks: &[usize],
    (clock, scale): (&Clock, f64),
) -> Result<Times, PassError> {
    let whole = graph.extract(&[layer.node], &[ValueId::of(layer.node)]).graph;
    let ranks = ladder(ranks);
    let mut networks = vec![whole];
    for &rank in &ranks {
        let mut part = networks[0].clone();
        super::note_rank(&mut part, std::slice::from_ref(&layer.label), Some(rank));
        mock(&mut part, cx, &Selection::allocated())?;
        networks.push(part);
    }
    let times = clock.layers(cx, &networks.iter().collect::<Vec<_>>())?;
    let measured: Vec<(usize, f64)> =
        ranks.iter().zip(&times[1..]).map(|(&r, t)| (r, 1e3 * scale * t)).collect();
    Ok(Times::new(1e3 * scale * times[0], measured))
}

/// At most [`N_RANKS`] of the ranks, spread evenly, on steps if there are many.
fn ladder(ranks: &[usize]) -> Vec<usize> {
    let steps: Vec<usize> = ranks.iter().copied().filter(|r| r % STEP == 0).collect();
    let from = if steps.len() >= N_RANKS { &steps[..] } else { ranks };
    let n = from.len().min(N_RANKS);
    (1..=n).map(|i| from[i * from.len() / n - 1]).collect()
}

/// Factors with anything in them: what the values are does not matter for time, and decompositions would cost it.
fn mock(graph: &mut Graph, cx: &mut PassContext<'_>, selection: &Selection) -> Result<(), PassError> {
    let calibration = cx.calibration.take();
    let selection = Selection { refit: false, guard: false, is_mock: true, ..selection.clone() };
    let result = factor(graph, cx, &selection);
    cx.calibration = calibration;
    result
}

/// What a network may take.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// The share of what it takes whole.
    pub share: f64,
    /// Milliseconds, where the user gave these: they are held against milliseconds, and the share only begins the search.
    pub milliseconds: Option<f64>,
    /// On which device.
    pub clock: &'a Clock,
}

/// Ranks with which the network, measured whole, takes the share of its time that is wanted. Layers by themselves do
/// not add up to a network: caches are warmer, and what stands behind them is missing. So the network is factored as
/// planned, measured, and the plan mended by what it was off, until it comes within [`CLOSE`] or [`TRIALS`] are spent.
///
/// # Errors
/// [`PassError::Missing`] with the least time that was measured, if no plan keeps to what is wanted.
pub(super) fn meet(
    graph: &Graph,
    cx: &mut PassContext<'_>,
    survey: &Survey,
    selection: &Selection,
    Wanted { share: wanted, milliseconds, clock }: Wanted<'_>,
    limits: Limits,
    whole: &[bool],
) -> Result<Ranks, PassError> {
    let least = survey.smallest_share(Quantity::Latency, limits).unwrap_or(1.0);
    if least > NOTHING {
        return Err(PassError::Missing(format!(
            "this network cannot be made faster {} by factoring: no layer runs faster as a pair than as it is",
            clock.place()
        )));
    }
    // Planned and measured shares, the closest on either side of what is wanted.
    let mut under: Option<(f64, f64)> = None;
    let mut over: Option<(f64, f64)> = None;
    let mut best: Option<(f64, Ranks)> = None;
    let mut tried: Vec<Ranks> = Vec::new();
    let mut share = wanted;
    for trial in 0..TRIALS {
        cx.host.progress(trial, TRIALS, "timing the network");
        if cx.host.interrupted() {
            return Err(PassError::Interrupted);
        }
        // Rounding must not make the cheapest plan unreachable.
        share = share.clamp(least * (1.0 + 1e-9), 1.0);
        let planned = survey.ranks_but(Quantity::Latency, share, limits, whole);
        let Some(ranks) = planned.or_else(|| survey.ranks(Quantity::Latency, share, limits)) else { break };
        if tried.contains(&ranks) {
            break;
        }
        tried.push(ranks.clone());
        let [time, of, predicted] = measure(graph, cx, survey, selection, &ranks, clock)?;
        let measured = milliseconds.map_or(time / of, |ms| wanted * time / ms);
        if measured <= wanted * (1.0 + CLOSE) {
            if best.as_ref().is_none_or(|(b, _)| measured > *b) {
                best = Some((measured, ranks));
            }
            under = under.filter(|u| u.1 > measured).or(Some((predicted, measured)));
        } else {
            over = over.filter(|o| o.1 < measured).or(Some((predicted, measured)));
        }
        if (measured / wanted - 1.0).abs() <= CLOSE {
            break;
        }
        share = match (under, over) {
            // Between the two, where a line through them meets what is wanted.
            (Some((p0, m0)), Some((p1, m1))) if m1 > m0 => {
                p0 + (p1 - p0) * ((wanted - m0) / (m1 - m0)).clamp(0.1, 0.9)
            }
            // Whole layers take all; what was saved, against what was promised, scales the rest.
            _ => 1.0 - (1.0 - wanted) * (1.0 - predicted) / (1.0 - measured).max(1e-3),
        };
    }
    best.map(|(_, ranks)| ranks).ok_or_else(|| {
        PassError::Missing(format!(
            "no ranks bring the time per image down to {:.1} %: the least that was found is {:.1} %, and the least that single layers promise {:.1} %; ask for more, or let more layers be factored",
            100.0 * wanted,
            100.0 * over.map_or(1.0, |(_, measured)| measured),
            100.0 * least
        ))
    })
}

/// Milliseconds that the network takes with these ranks and whole, and the share of it that single layers promise.
fn measure(
    graph: &Graph,
    cx: &mut PassContext<'_>,
    survey: &Survey,
    selection: &Selection,
    ranks: &Ranks,
    clock: &Clock,
) -> Result<[f64; 3], PassError> {
    let mut candidate = graph.clone();
    survey.annotate(&mut candidate, ranks);
    mock(&mut candidate, cx, selection)?;
    let (times, is_measured) = clock.networks(cx, &[graph, &candidate])?;
    let measured = times[1] / times[0];
    let predicted = survey.share(Quantity::Latency, ranks).unwrap_or(1.0);
    let of =
        format!("{:.1} % of the time ({:.3} of {:.3} ms)", 100.0 * measured, 1e3 * times[1], 1e3 * times[0]);
    match is_measured {
        true => {
            let message = format!("measured: {of}; predicted from single layers: {:.1} %", 100.0 * predicted);
            cx.note_with("", "timed", message, &[("measured", measured), ("predicted", predicted)]);
        }
        false => {
            let message = format!("predicted {}: {of}; measure it there", clock.place());
            cx.note_with("", "predicted", message, &[("predicted", measured)]);
        }
    }
    Ok([1e3 * times[1], 1e3 * times[0], predicted])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lower_envelope_is_offered() {
        // Rank 12 takes as long as 18; rank 24 is slower than the whole layer.
        let times = Times::new(10.0, vec![(6, 3.0), (12, 5.0), (18, 5.0), (24, 9.9)]);
        assert_eq!(times.ranks, [(6, 3.0), (18, 5.0)]);
        assert_eq!([6, 12, 18, 19].map(|r| times.at(r)), [3.0, 4.0, 5.0, 10.0]);
        assert!(Times::new(1.0, vec![(1, 1.2), (2, 1.3)]).ranks.is_empty());
        // Twice the layer, twice the time, the same ranks.
        let twice = times.and(&times);
        assert_eq!((twice.whole, twice.ranks), (20.0, vec![(6, 6.0), (18, 10.0)]));
    }

    #[test]
    fn a_ladder_ends_at_the_largest_rank() {
        assert_eq!(ladder(&[1, 2, 3]), [1, 2, 3]);
        let long = ladder(&(1..=230).collect::<Vec<_>>());
        assert_eq!((long.len(), long.last()), (N_RANKS, Some(&228)));
        assert!(ladder(&[]).is_empty());
    }
}
