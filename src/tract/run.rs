//! From a model to a factorised model.

use crate::islands::Islands;
use crate::layer;
use crate::patch;
use crate::report::Report;
use basisopt_ir::tensor::TensorError;
use basisopt_passes::{
    Host, Item, Manager, ManagerError, NoObserver, OptionError, Options, Pipeline, PipelineError, Registry,
    Remark, RemarkKind,
};
use std::collections::BTreeMap;
use tract_core::internal::{TractResult, TypedModel};

/// Why a transform failed. It comes inside of tract's error type, out of which it can be downcast.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransformError {
    /// An option or its value was refused.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// The pass is not among those built in.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A pass failed.
    #[error(transparent)]
    Passes(#[from] ManagerError),
    /// A weight could not be taken out of the model, or its factors not be put in.
    #[error("node {node:?}: {source}")]
    Weight {
        /// Name of the node.
        node: String,
        /// What was wrong.
        source: TensorError,
    },
}

/// Which layers are factorised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Convolutions, with or without what scales and shifts their results.
    Conv { fold: bool },
    /// Products with matrices.
    Linear,
}

/// A pass with its options, checked.
pub(crate) fn item(pass: &str, given: Vec<(String, String)>) -> Result<Item, TransformError> {
    let Some(info) = Registry::builtin().find(pass) else {
        return Err(PipelineError::UnknownPass { found: pass.to_owned(), hint: None }.into());
    };
    let options = Options::check(info.name, info.options, &given)?;
    let pass = (info.build)(&options)?;
    Ok(Item { info, given, pass })
}

/// What passes see of the world: the file of ranks.
#[derive(Debug)]
struct Files;

impl Host for Files {
    fn read_text(&self, path: &str) -> Result<String, String> {
        std::fs::read_to_string(path).map_err(|error| error.to_string())
    }
    fn progress(&self, _done: usize, _total: usize, _what: &str) {}
    fn interrupted(&self) -> bool {
        false
    }
}

/// Runs a factorising pass on the layers of a model.
pub(crate) fn run(model: &mut TypedModel, kind: Kind, item: Item) -> TractResult<Report> {
    // What fails leaves the model as it was. Weights are shared, not copied.
    let mut work = model.clone();
    // In a model that was not decluttered, weights and biases may be computed from constants.
    work.prop_consts()?;
    work.compact()?;
    let pass = item.info.name;
    let (layers, refused) = layer::find(&work, kind)?;
    let mut remarks: Vec<Remark> = refused
        .into_iter()
        .map(|(node, refusal)| Remark {
            pass: pass.to_owned(),
            node,
            kind: RemarkKind::Refused,
            code: refusal.code.to_owned(),
            message: refusal.message,
            values: BTreeMap::new(),
        })
        .collect();

    let mut islands = Islands::of(&work, layers)?;
    let mut pipeline = Pipeline::default();
    if (kind == Kind::Conv { fold: true }) {
        pipeline.items.push(self::item("fold-batch-norm", vec![])?);
    }
    pipeline.items.push(item);
    let mut manager = Manager { host: &Files, ..Manager::default() };
    let report =
        manager.run(&mut islands.graph, &pipeline, &mut NoObserver).map_err(TransformError::Passes)?;
    // What was folded into a layer that stays whole stays where it was in the model.
    remarks.extend(report.remarks().filter(|remark| remark.pass == pass).cloned());

    let mut factored = vec![];
    if report.n_rewrites() > 0 {
        factored = patch::apply(&mut work, &islands)?;
        work.prop_consts()?;
        work.compact()?;
    }
    *model = work;
    Ok(Report { factored, remarks })
}
