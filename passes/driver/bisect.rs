//! Which rewrite breaks a tolerance: binary search over the number of rewrites allowed.

use crate::driver::check::{Deviation, Executor, ExecutorError, deviation};
use crate::driver::manager::{Manager, ManagerError, NoObserver};
use crate::driver::pass::Host;
use crate::driver::pipeline::Pipeline;
use basisopt_ir::Graph;

/// What bisection found.
#[derive(Clone, Debug, PartialEq)]
pub struct Culprit {
    /// The first rewrite after which the tolerance is broken, counted from 1.
    pub rewrite: usize,
    /// The pass that made it, as written in the pipeline.
    pub pass: String,
    /// The node it was made at, and what was done.
    pub node: String,
    /// The remark of the rewrite.
    pub message: String,
    /// How far the outputs are from the original's after it.
    pub after: Deviation,
    /// How far they were just before it.
    pub before: Deviation,
}

/// Why bisection could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BisectError {
    /// A pass failed.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// The network could not be run.
    #[error("the network cannot be run: {0}")]
    Executor(#[from] ExecutorError),
}

/// Finds the first rewrite after which the outputs are further from the original's than
/// `tolerance` (relative, as [`Deviation`]); `None` if they never are. `progress` is told the
/// number of rewrites tried and the deviation found.
///
/// As every bisection, this supposes that what is broken stays broken.
///
/// # Errors
/// [`BisectError`].
pub fn bisect(
    graph: &Graph,
    pipeline: &Pipeline,
    executor: &mut dyn Executor,
    host: &dyn Host,
    (seed, tolerance): (u64, f64),
    progress: &mut dyn FnMut(usize, &Deviation),
) -> Result<Option<Culprit>, BisectError> {
    let inputs = executor.example_inputs(graph, seed)?;
    let reference = executor.run(graph, &inputs)?;
    let mut attempt = |budget: usize| -> Result<_, BisectError> {
        let mut graph = graph.clone();
        let mut manager = Manager { seed, host, budget, ..Manager::default() };
        let report = manager.run(&mut graph, pipeline, &mut NoObserver)?;
        let found = match executor.run(&graph, &inputs) {
            Ok(outputs) => deviation(&graph, &reference, &outputs),
            Err(e) => Deviation { relative: f64::INFINITY, output: format!("(all: {e})") },
        };
        progress(report.n_rewrites(), &found);
        Ok((report, found))
    };
    let (whole, mut after) = attempt(usize::MAX)?;
    if after.relative <= tolerance {
        return Ok(None);
    }
    // Invariant: good after `low` rewrites, bad after `high`.
    let (mut low, mut high) = (0, whole.n_rewrites());
    let mut report = whole;
    let mut before = Deviation { relative: 0.0, output: after.output.clone() };
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let (r, found) = attempt(middle)?;
        if found.relative <= tolerance {
            (low, before) = (middle, found);
        } else {
            (high, after, report) = (middle, found, r);
        }
    }
    // The last rewrite of the shortest bad run is the culprit; each rewrite leaves one remark.
    let last = report.passes.iter().rev().find(|p| p.outcome.n_rewrites() > 0);
    let remark = last.and_then(|p| p.remarks.iter().rev().find(|r| r.kind == crate::RemarkKind::Applied));
    Ok(Some(Culprit {
        rewrite: high,
        pass: last.map_or_else(String::new, |p| p.item.clone()),
        node: remark.map_or_else(String::new, |r| r.node.clone()),
        message: remark.map_or_else(String::new, |r| r.message.clone()),
        after,
        before,
    }))
}
