//! The pass manager: it verifies, times, checks numerically, catches dishonest outcomes and stamps
//! the model, so that passes need not.

use crate::driver::check::{Deviation, EXACT_TOLERANCE, Executor, ExecutorError, deviation};
use crate::driver::data::{Calibration, Judge, Training};
use crate::driver::pass::{Fidelity, Host, NoHost, Outcome, PassContext, PassError};
use crate::driver::pipeline::{Item, Pipeline};
use crate::driver::remark::Remark;
use basisopt_ir::{DType, Graph, Op, Tensor, Violations, infer, verify};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// The metadata key under which the pipeline is stored in the output model.
pub const PIPELINE_KEY: &str = "basisopt.pipeline";

/// What the numerical check of one pass found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Check {
    /// Nothing changed, or nobody asked.
    NotNeeded,
    /// Outputs were compared.
    Compared(Deviation),
    /// The graph could not be run: the engine's reason.
    Impossible(String),
}

/// What one pass did.
#[derive(Clone, Debug)]
pub struct PassReport {
    /// The item as written.
    pub item: String,
    /// What it promises.
    pub fidelity: Fidelity,
    /// What it did.
    pub outcome: Outcome,
    /// Time in the pass itself.
    pub time: Duration,
    /// Time in verification, inference and the numerical check.
    pub overhead: Duration,
    /// How far the outputs moved.
    pub check: Check,
    /// What it said.
    pub remarks: Vec<Remark>,
}

/// What a pipeline did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One entry per pass that ran.
    pub passes: Vec<PassReport>,
}

impl Report {
    /// Number of rewrites.
    pub fn n_rewrites(&self) -> usize {
        self.passes.iter().map(|p| p.outcome.n_rewrites()).sum()
    }

    /// All remarks in order.
    pub fn remarks(&self) -> impl Iterator<Item = &Remark> {
        self.passes.iter().flat_map(|p| &p.remarks)
    }
}

/// Why a pipeline stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// The graph was not well-formed to begin with.
    #[error("the network is not well-formed: {0}")]
    Input(Violations),
    /// Types or shapes contradict each other.
    #[error("the network is not well-formed: {0}")]
    Types(infer::InferError),
    /// A pass failed.
    #[error("{pass}: {source}")]
    Pass {
        /// The pass.
        pass: String,
        /// Its reason.
        source: PassError,
    },
    /// A pass panicked: a bug in it. What it had done to the graph by then is unknown.
    #[error("{pass} panicked: {message} (this is a bug in the pass)")]
    Panicked {
        /// The pass.
        pass: String,
        /// What it said.
        message: String,
    },
    /// A graph that was well-formed is not so after a pass. Shapes may contradict each other all
    /// along and only be known once constants are folded; anything else is a bug in the pass.
    #[error("after {pass} the network is not well-formed: {violations}")]
    Broken {
        /// The pass.
        pass: String,
        /// What is broken.
        violations: Violations,
    },
    /// A pass left types or shapes behind that contradict each other.
    #[error("after {pass} the network is not well-formed: {source}")]
    BrokenTypes {
        /// The pass.
        pass: String,
        /// What is broken.
        source: infer::InferError,
    },
    /// The network could be run before a pass, and cannot after it.
    #[error("after {pass} the network can no longer be run: {source}")]
    Unrunnable {
        /// The pass.
        pass: String,
        /// The engine's reason.
        source: ExecutorError,
    },
    /// A pass said that it changed nothing and did, or the other way round.
    #[error("{pass} reported {claimed} rewrites but the network {}", if *changed { "changed" } else { "did not change" })]
    Dishonest {
        /// The pass.
        pass: String,
        /// What it said.
        claimed: usize,
        /// Whether the graph's revision moved.
        changed: bool,
    },
    /// An exact pass moved the outputs.
    #[error(
        "{pass} is exact, but output {:?} moved by {:.3e} relative (allowed: {tolerance:.0e}); \
         `basisopt bisect` finds the rewrite",
        deviation.output, deviation.relative
    )]
    Inexact {
        /// The pass.
        pass: String,
        /// By how much.
        deviation: Deviation,
        /// What is allowed.
        tolerance: f64,
    },
}

/// Sees the graph between passes: printing, diffing and progress hang here.
pub trait Observer {
    /// Before the n-th pass.
    fn before(&mut self, _index: usize, _item: &Item, _graph: &Graph) {}
    /// After the n-th pass.
    fn after(&mut self, _index: usize, _item: &Item, _graph: &Graph, _report: &PassReport) {}
}

/// An observer that does not look.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;
impl Observer for NoObserver {}

/// Runs pipelines.
pub struct Manager<'a> {
    /// Seed for everything random.
    pub seed: u64,
    /// Files, progress, interruption.
    pub host: &'a dyn Host,
    /// Runs graphs for the numerical check; without one nothing is checked.
    pub executor: Option<&'a mut dyn Executor>,
    /// Whether outputs are compared after every pass, where there is an executor.
    pub is_checked: bool,
    /// Inputs that data-aware passes learn from.
    pub calibration: Option<Calibration<'a>>,
    /// What choices by accuracy are made by.
    pub judge: Option<&'a mut dyn Judge>,
    /// What passes that train may train on.
    pub training: Option<Training<'a>>,
    /// Stop after this many rewrites in all.
    pub budget: usize,
    /// What exact passes may move outputs by.
    pub tolerance: f64,
}

impl std::fmt::Debug for Manager<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager")
            .field("seed", &self.seed)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

impl Default for Manager<'_> {
    fn default() -> Self {
        Self {
            seed: 0,
            host: &NoHost,
            executor: None,
            is_checked: true,
            calibration: None,
            judge: None,
            training: None,
            budget: usize::MAX,
            tolerance: EXACT_TOLERANCE,
        }
    }
}

/// Inputs and the outputs of the graph as it now stands, carried from pass to pass.
struct Reference {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

impl Manager<'_> {
    /// Runs the passes in order. On an error the graph is in whatever state the failing pass left
    /// it in and must not be used.
    ///
    /// # Errors
    /// [`ManagerError`], naming the pass.
    pub fn run(
        &mut self,
        graph: &mut Graph,
        pipeline: &Pipeline,
        observer: &mut dyn Observer,
    ) -> Result<Report, ManagerError> {
        // Inference first: it replaces notes of the file that are wrong, which are no fault of the
        // network's. What it cannot go on with, verification lists whole.
        let inferred = infer::infer(graph);
        verify(graph).map_err(ManagerError::Input)?;
        inferred.map_err(ManagerError::Types)?;
        // What training imitates.
        let trains = pipeline.items.iter().any(|i| i.info.fidelity == Fidelity::Trained);
        let original = (trains && self.training.is_some()).then(|| graph.clone());
        let mut report = Report::default();
        let mut reference: Option<Result<Reference, String>> = None;
        for (index, item) in pipeline.items.iter().enumerate() {
            observer.before(index, item, graph);
            let overhead = Instant::now();
            // The network is run for the first time only when a pass is about to change it; what
            // it computes after one pass is what it computed before the next.
            if reference.is_none() && self.is_checked && self.executor.is_some() {
                reference = Some(self.first_reference(graph));
            }
            let overhead = overhead.elapsed();
            let mut pass_report = self.run_one(graph, item, original.as_ref())?;
            let started = Instant::now();
            if pass_report.outcome != Outcome::Unchanged {
                let inferred = infer::infer(graph);
                let broken =
                    |violations| ManagerError::Broken { pass: item.info.name.to_owned(), violations };
                verify(graph).map_err(broken)?;
                let broken = |source| ManagerError::BrokenTypes { pass: item.info.name.to_owned(), source };
                inferred.map_err(broken)?;
                pass_report.check = self.check(graph, item, &mut reference)?;
            }
            pass_report.overhead = overhead + started.elapsed();
            observer.after(index, item, graph, &pass_report);
            report.passes.push(pass_report);
        }
        if report.n_rewrites() > 0 {
            // After what earlier runs did to this network.
            let earlier = graph.metadata.get(PIPELINE_KEY).map(|p| format!("{p},")).unwrap_or_default();
            graph.metadata.insert(PIPELINE_KEY.to_owned(), format!("{earlier}{pipeline}"));
            // A run that was cut short says so: its pipeline would do more.
            if self.budget == 0 {
                graph.metadata.insert("basisopt.stopped-after".to_owned(), report.n_rewrites().to_string());
            }
            graph.metadata.insert("basisopt.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        }
        Ok(report)
    }

    fn run_one(
        &mut self,
        graph: &mut Graph,
        item: &Item,
        original: Option<&Graph>,
    ) -> Result<PassReport, ManagerError> {
        let pass = item.info.name;
        let mut remarks = Vec::new();
        let (revision, started) = (graph.revision(), Instant::now());
        let mut cx = PassContext::new(pass, self.seed, self.host, &mut remarks);
        cx.budget = self.budget;
        if let Some(executor) = &mut self.executor {
            cx.executor = Some(&mut **executor);
        }
        cx.calibration = self.calibration;
        if let Some(judge) = &mut self.judge {
            cx.judge = Some(&mut **judge);
        }
        if let Some(training) = &mut self.training {
            cx.training = Some(Training {
                examples: training.examples,
                validation: training.validation,
                original: training.original.or(original),
                session: &mut *training.session,
            });
        }
        // A pass of an embedder's must not take the program down that it is embedded in. Nothing that it borrowed is used
        // again: callers discard the graph on any error.
        let run = catch_unwind(AssertUnwindSafe(|| item.pass.run(graph, &mut cx)));
        let outcome = run.map_err(|payload| ManagerError::Panicked {
            pass: pass.to_owned(),
            message: panic_message(&*payload),
        })?;
        let outcome = outcome.map_err(|source| ManagerError::Pass { pass: pass.to_owned(), source })?;
        let time = started.elapsed();
        self.budget = self.budget.saturating_sub(outcome.n_rewrites());
        let changed = graph.revision() != revision;
        if changed != (outcome != Outcome::Unchanged) {
            return Err(ManagerError::Dishonest {
                pass: pass.to_owned(),
                claimed: outcome.n_rewrites(),
                changed,
            });
        }
        Ok(PassReport {
            item: item.to_string(),
            fidelity: item.info.fidelity,
            outcome,
            time,
            overhead: Duration::ZERO,
            check: Check::NotNeeded,
            remarks,
        })
    }

    fn first_reference(&mut self, graph: &Graph) -> Result<Reference, String> {
        let Some(executor) = &mut self.executor else { return Err("nothing to run it with".to_owned()) };
        let inputs = executor.example_inputs(graph, self.seed).map_err(|e| e.to_string())?;
        let outputs = executor.run(graph, &inputs).map_err(|e| e.to_string())?;
        Ok(Reference { inputs, outputs })
    }

    fn check(
        &mut self,
        graph: &Graph,
        item: &Item,
        reference: &mut Option<Result<Reference, String>>,
    ) -> Result<Check, ManagerError> {
        let (Some(executor), Some(before)) = (&mut self.executor, reference) else {
            return Ok(Check::NotNeeded);
        };
        let before = match before {
            Ok(before) => before,
            Err(reason) => return Ok(Check::Impossible(reason.clone())),
        };
        let outputs = executor.run(graph, &before.inputs);
        let unrunnable = |source| ManagerError::Unrunnable { pass: item.info.name.to_owned(), source };
        let outputs = outputs.map_err(unrunnable)?;
        let deviation = deviation(graph, &before.outputs, &outputs);
        let tolerance = self.tolerance.max(rounding(graph));
        if item.info.fidelity == Fidelity::Exact && deviation.relative > tolerance {
            let pass = item.info.name.to_owned();
            return Err(ManagerError::Inexact { pass, deviation, tolerance });
        }
        before.outputs = outputs;
        Ok(Check::Compared(deviation))
    }
}

/// What a panic said, as far as it is text.
pub fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no reason given".to_owned())
}

/// What rounding alone may move outputs by: half precision has fewer digits than the tolerance for
/// everything else. Sixteen unit roundoffs of the narrowest type that is computed in.
fn rounding(graph: &Graph) -> f64 {
    let computed = graph.node_ids().map(|id| graph.node(id)).filter(|n| !matches!(n.op, Op::Constant(_)));
    let roundoffs = computed.flat_map(|n| &n.outputs).map(|v| match v.ty.dtype {
        Some(DType::BF16) => 2.0f64.powi(-8),
        Some(DType::F16) => 2.0f64.powi(-11),
        _ => 0.0,
    });
    16.0 * roundoffs.fold(0.0, f64::max)
}
