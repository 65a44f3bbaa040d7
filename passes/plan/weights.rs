//! Factors from weights alone: the paper's singular value decomposition.

use super::{Choice, Plan, Planned, Set, round_to};
use crate::driver::pass::{PassContext, PassError};
use crate::driver::remark::Refusal;
use crate::factor::{self, Factors};
use crate::layer::Layer;
use basisopt_ir::{Graph, Tensor};
use rayon::Yield;
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

/// How long a thread with nothing to do waits for a result before it looks for work again.
const PAUSE: Duration = Duration::from_millis(1);

/// Decomposes every set's weight, in parallel over layers, each one sequential inside; results come back
/// in order.
pub(super) fn plan_all(
    graph: &Graph,
    cx: &PassContext<'_>,
    sets: &[Set],
    choices: &[Choice<'_>],
) -> Result<Vec<Planned>, PassError> {
    let mut jobs: Vec<(usize, &Layer, Tensor, &Choice<'_>)> = Vec::new();
    for (i, (set, choice)) in sets.iter().zip(choices).enumerate() {
        let weight = graph.constant_value(set.layers[0].weight);
        jobs.extend(weight.map(|w| (i, &set.layers[0], w, choice)));
    }
    let mut plans: Vec<Option<Planned>> = std::iter::repeat_with(|| None).take(sets.len()).collect();
    let stop = AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    // The host's progress and interruption belong to this thread, the work to rayon's: those of the pool that this thread
    // is in, if it is in one. Such a thread does its share of the work, or a pool of one would wait for itself.
    rayon::in_place_scope(|scope| {
        scope.spawn(|_| {
            let sender = sender;
            jobs.par_iter().for_each_with(sender, |sender, (i, layer, weight, choice)| {
                if !stop.load(Ordering::Relaxed) {
                    // A receiver that is gone has seen enough.
                    let _ = sender.send((*i, plan(layer, weight, choice)));
                }
            });
        });
        let mut done = 0;
        while let Some((i, planned)) = next(&receiver) {
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

/// The next result, if there is one more. A thread of a pool works while it waits.
fn next<T>(receiver: &Receiver<T>) -> Option<T> {
    loop {
        match receiver.try_recv() {
            Ok(result) => return Some(result),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
        match rayon::yield_now() {
            Some(Yield::Executed) => {}
            Some(Yield::Idle) => match receiver.recv_timeout(PAUSE) {
                Ok(result) => return Some(result),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            },
            None => return receiver.recv().ok(),
        }
    }
}

/// Decomposes one layer and chooses its rank.
pub(crate) fn plan(layer: &Layer, weight: &Tensor, choice: &Choice<'_>) -> Planned {
    let tensor_error = |source| PassError::Tensor { node: layer.label.clone(), source };
    let (n_rows, n_columns) = (layer.n_rows, layer.n_columns);
    if choice.is_mock() {
        return Ok(mock(layer, choice));
    }
    let matrices = layer.matrices(weight).map_err(tensor_error)?;
    if let Err(refusal) = check_values(&matrices).and_then(|()| choice.is_listed()) {
        return Ok(Err(refusal));
    }
    let svd_error = |_| PassError::Svd { node: layer.label.clone(), n_rows, n_columns };
    let decompositions: Vec<_> = matrices
        .iter()
        .map(|h| factor::decompose(h, n_rows, n_columns))
        .collect::<Result<_, _>>()
        .map_err(svd_error)?;
    let energies: Vec<Vec<f64>> =
        decompositions.iter().map(|d| d.singular_values().iter().map(|s| s * s).collect()).collect();
    let squared_norm: f64 = energies.iter().flatten().sum();
    if !squared_norm.is_normal() {
        let message = "its weights are so large or so small that their energy is not a number";
        return Ok(Err(Refusal::new("extreme-weight", message)));
    }
    let rank = match choice.rank(layer, &energies) {
        Ok(rank) => rank,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let discarded: f64 = energies.iter().map(|e| e[rank.min(e.len())..].iter().sum::<f64>()).sum();
    let factors: Result<Vec<_>, _> =
        decompositions.iter().map(|d| round_to(layer, d.truncate(rank)).map_err(tensor_error)).collect();
    let plan = Plan {
        rank,
        energy: 1.0 - discarded / squared_norm,
        discarded,
        factors: factors?,
        ..Plan::default()
    };
    Ok(plan.measured(layer, &matrices))
}

/// Factors of the right shapes, of a constant that is neither zero nor small.
fn mock(layer: &Layer, choice: &Choice<'_>) -> Result<Plan, Refusal> {
    const VALUE: f64 = 1.0 / 128.0;
    let rank = choice.rank(layer, &vec![vec![1.0; layer.full_rank()]; layer.groups])?;
    let factors = Factors {
        coefficients: vec![VALUE; layer.n_rows * rank],
        basis: vec![VALUE; rank * layer.n_columns],
        rank,
    };
    Ok(Plan { rank, energy: 1.0, factors: vec![factors; layer.groups], ..Plan::default() })
}

/// Refuses weights that have no spectrum.
pub(crate) fn check_values(matrices: &[Vec<f64>]) -> Result<(), Refusal> {
    if matrices.iter().flatten().any(|v| !v.is_finite()) {
        return Err(Refusal::new("non-finite-weight", "its weight contains NaN or infinity"));
    }
    if matrices.iter().flatten().all(|&v| v == 0.0) {
        return Err(Refusal::new("zero-weight", "its weight is all zero: there is nothing to keep"));
    }
    Ok(())
}
