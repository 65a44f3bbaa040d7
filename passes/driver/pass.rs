//! The contract of a pass.

use crate::driver::check::{Executor, ExecutorError};
use crate::driver::data::{Calibration, Judge, Training};
use crate::driver::options::{OptionError, OptionSpec, Options};
use crate::driver::remark::{Refusal, Remark, RemarkKind};
use basisopt_ir::rewrite::RewriteError;
use basisopt_ir::tensor::TensorError;
use basisopt_ir::{Graph, NodeId};
use basisopt_train::watch::FitError;
use std::collections::BTreeMap;
use std::fmt;

/// What a pass promises about the function that the graph computes; it chooses the test oracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fidelity {
    /// The same function up to rounding.
    Exact,
    /// A nearby function; the error is reported.
    Approximate,
    /// Another function, that data were used to choose.
    Trained,
}

impl fmt::Display for Fidelity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::Approximate => "approximate",
            Self::Trained => "trained",
        })
    }
}

/// What a pass did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The graph is as it was.
    Unchanged,
    /// The graph changed.
    Changed {
        /// In how many places.
        rewrites: usize,
    },
}

impl Outcome {
    /// The outcome of this many rewrites.
    pub fn of(rewrites: usize) -> Self {
        if rewrites == 0 { Self::Unchanged } else { Self::Changed { rewrites } }
    }

    /// Number of rewrites.
    pub fn n_rewrites(self) -> usize {
        match self {
            Self::Unchanged => 0,
            Self::Changed { rewrites } => rewrites,
        }
    }
}

/// Everything there is to know about a pass without running it.
#[derive(Debug)]
pub struct PassInfo {
    /// Kebab-case name: also the file, the flag, the fixture folder and the section of the docs.
    pub name: &'static str,
    /// Half a sentence for `--help`.
    pub summary: &'static str,
    /// What it promises.
    pub fidelity: Fidelity,
    /// Its options.
    pub options: &'static [OptionSpec],
    /// Makes the pass from its options.
    pub build: fn(&Options) -> Result<Box<dyn Pass>, OptionError>,
}

/// A rewriting pass.
pub trait Pass: fmt::Debug + Send + Sync {
    /// What there is to know about it.
    fn info(&self) -> &'static PassInfo;

    /// Rewrites the graph.
    ///
    /// # Errors
    /// [`PassError`] where it cannot go on; the caller discards the graph then.
    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Outcome, PassError>;
}

/// Why a pass could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// A rule described an impossible rewrite: a bug in the pass.
    #[error("node {node:?}: {source} (this is a bug in the pass)")]
    Rewrite {
        /// Label of the node.
        node: String,
        /// What was wrong.
        source: RewriteError,
    },
    /// A constant could not be read or made.
    #[error("node {node:?}: {source}")]
    Tensor {
        /// Label of the node.
        node: String,
        /// What was wrong.
        source: TensorError,
    },
    /// A decomposition did not converge.
    #[error(
        "node {node:?}: the singular value decomposition of a {n_rows}×{n_columns} matrix did not converge"
    )]
    Svd {
        /// Label of the node.
        node: String,
        /// Rows of the matrix.
        n_rows: usize,
        /// Columns of the matrix.
        n_columns: usize,
    },
    /// A file that an option names could not be used.
    #[error("{option}={path}: {reason}")]
    File {
        /// The option.
        option: &'static str,
        /// What the user gave.
        path: String,
        /// What was wrong with it.
        reason: String,
    },
    /// A filter that selects nothing.
    #[error("{option}= matches the name of no layer")]
    NoMatch {
        /// The option.
        option: &'static str,
    },
    /// The user interrupted the run.
    #[error("interrupted")]
    Interrupted,
    /// The executor could not run what calibration needs, or the data could not be read.
    #[error("calibration: {0}")]
    Calibration(#[from] ExecutorError),
    /// An option asks for what is not there.
    #[error("{0}")]
    Missing(String),
    /// Training failed.
    #[error("{0}")]
    Training(#[from] FitError),
    /// Anything else, from a pass of the embedder's.
    #[error("{0}")]
    Other(String),
}

/// What a pass may use of the world: it reads no clock, environment or file system by itself.
pub trait Host {
    /// The text of a file that an option names.
    ///
    /// # Errors
    /// The reason in words.
    fn read_text(&self, path: &str) -> Result<String, String>;

    /// Work outside of passes begins, such as `evaluating`: what [`Host::progress`] says from now on is about it.
    fn stage(&self, _name: &str) {}

    /// Called as work goes on: `done` of `total` units, `what` is being worked at.
    fn progress(&self, done: usize, total: usize, what: &str);

    /// Whether the user wants to stop.
    fn interrupted(&self) -> bool;
}

/// A host without files that never interrupts and shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHost;

impl Host for NoHost {
    fn read_text(&self, path: &str) -> Result<String, String> {
        Err(format!("there is no file system here to read {path} from"))
    }
    fn progress(&self, _done: usize, _total: usize, _what: &str) {}
    fn interrupted(&self) -> bool {
        false
    }
}

/// What a pass is given beside the graph.
pub struct PassContext<'a> {
    /// Seed for everything random.
    pub seed: u64,
    /// Files, progress, interruption.
    pub host: &'a dyn Host,
    /// Runs graphs, where the caller has something to run them with.
    pub executor: Option<&'a mut dyn Executor>,
    /// Inputs to learn from.
    pub calibration: Option<Calibration<'a>>,
    /// Judges versions of the network, where a choice is to be made by accuracy.
    pub judge: Option<&'a mut dyn Judge>,
    /// What to train on.
    pub training: Option<Training<'a>>,
    /// How many more rewrites may be made; bisection lowers it.
    pub budget: usize,
    pass: &'static str,
    remarks: &'a mut Vec<Remark>,
}

impl fmt::Debug for PassContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PassContext")
            .field("pass", &self.pass)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

impl<'a> PassContext<'a> {
    /// A context for one run of a pass, with no executor and no limit on rewrites.
    pub fn new(pass: &'static str, seed: u64, host: &'a dyn Host, remarks: &'a mut Vec<Remark>) -> Self {
        Self {
            seed,
            host,
            executor: None,
            calibration: None,
            judge: None,
            training: None,
            budget: usize::MAX,
            pass,
            remarks,
        }
    }

    /// Takes one rewrite from the budget; `false` if there is none left.
    pub fn spend(&mut self) -> bool {
        let left = self.budget > 0;
        self.budget = self.budget.saturating_sub(1);
        left
    }

    /// Number of remarks so far.
    pub(crate) fn n_remarks(&self) -> usize {
        self.remarks.len()
    }

    /// Takes back what was said beyond the first so many remarks: it was about a trial.
    pub(crate) fn forget_remarks(&mut self, n: usize) {
        self.remarks.truncate(n);
    }

    /// Reports a rewrite that was made.
    pub fn applied(&mut self, node: &str, code: &str, message: impl Into<String>, values: &[(&str, f64)]) {
        self.remark(RemarkKind::Applied, node, code, message.into(), values);
    }

    /// Reports something worth knowing.
    pub fn note(&mut self, node: &str, code: &str, message: impl Into<String>) {
        self.remark(RemarkKind::Note, node, code, message.into(), &[]);
    }

    /// Reports something worth knowing, with the numbers behind it.
    pub fn note_with(&mut self, node: &str, code: &str, message: impl Into<String>, values: &[(&str, f64)]) {
        self.remark(RemarkKind::Note, node, code, message.into(), values);
    }

    /// Reports a rewrite that was not made.
    pub fn refused(&mut self, node: &str, refusal: Refusal) {
        let Refusal { code, message, values } = refusal;
        self.remarks.push(Remark {
            pass: self.pass.to_owned(),
            node: node.to_owned(),
            kind: RemarkKind::Refused,
            code: code.to_owned(),
            message,
            values,
        });
    }

    fn remark(&mut self, kind: RemarkKind, node: &str, code: &str, message: String, values: &[(&str, f64)]) {
        let values: BTreeMap<String, f64> = values.iter().map(|&(k, v)| (k.to_owned(), v)).collect();
        let (pass, node, code) = (self.pass.to_owned(), node.to_owned(), code.to_owned());
        self.remarks.push(Remark { pass, node, kind, code, message, values });
    }
}

/// Attaches the node to an error about a tensor.
pub(crate) fn tensor_error(graph: &Graph, id: NodeId) -> impl Fn(TensorError) -> PassError + '_ {
    move |source| PassError::Tensor {
        node: graph.get(id).map_or_else(String::new, |n| n.label().to_owned()),
        source,
    }
}
