//! Makes a trained convolutional network smaller and faster on the device it will run on: ONNX in, ONNX out.
//!
//! This crate is the front door of the library. A network in memory takes three lines, and no file:
//!
//! ```
//! use basisopt::{Model, OptimizeOptions, optimize, parse};
//!
//! # let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/models/glyphnet.onnx"))?;
//! let mut model = Model::from_bytes("glyphnet", bytes.into(), None)?;
//! let done = optimize(&mut model, &parse("@fold,factorize-conv:energy=0.9")?, OptimizeOptions::default())?;
//! let small = model.to_bytes()?.concat();
//! # assert!(done.after.cost.macs < done.before.cost.macs && !small.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | to | there is |
//! |---|---|
//! | read and write networks | [`Model`] |
//! | run a pipeline | [`optimize`](fn@optimize), a [`Pipeline`] from text ([`parse`]) or from passes ([`Pipeline::then`]) |
//! | aim for a budget, with images to learn from | [`compress`](fn@compress) with a [`Recipe`]; [`Dataset`] for what is on disk or in memory |
//! | add a pass or a rule of one's own | [`Pass`], [`Rule`], [`Registry::with`]; `examples/custom_pass.rs`, `examples/custom_rule.rs` |
//! | calibrate on a source of one's own | [`Samples`] |
//! | check and calibrate with an engine of one's own | [`Executor`] and [`Manager`]; `examples/custom_executor.rs` |
//! | show progress, stop early | [`Host`], [`Observer`], [`Settings::stop`] |
//!
//! Results are data: sizes, layers and remarks; [`Compressed`] and what [`Optimized::summary`] gives serialize to JSON. On any
//! error the model is as it was. A pass that panics is an error that names it.
//!
//! Without the feature `cli`, which is on by default, clap is not compiled. Toolchains that have a runtime of their own
//! depend on [`basisopt-passes`](passes) and [`basisopt-ir`](ir) alone, and compile no tract either.

#[doc(inline)]
pub use basisopt_embed::{
    CompressOptions, Compressed, DataSamples, EmbedError, Layer, Material, Measured, Method, OptimizeOptions,
    Optimized, PassSummary, Recipe, RecipeError, Settings, Size, Stop, TractExecutor, TrainOn, Use, compress,
    optimize, parse,
};
#[doc(inline)]
pub use basisopt_onnx::{Model, OnnxError};
#[doc(inline)]
pub use basisopt_passes::{
    Calibration, Executor, ExecutorError, Fidelity, Host, Inputs, Item, Judge, Manager, ManagerError, NoHost,
    NoObserver, Observer, Outcome, Pass, PassContext, PassError, PassInfo, PassReport, Pipeline,
    PipelineError, Program, Proposal, Refusal, Registry, Remark, Report, Rule, RulePass, Samples,
    apply_everywhere,
};
#[doc(inline)]
pub use basisopt_runtime::{Dataset, DatasetOptions, Engine, Preprocess};

pub use basisopt_embed as embed;
pub use basisopt_ir as ir;
pub use basisopt_onnx as onnx;
pub use basisopt_passes as passes;
pub use basisopt_runtime as runtime;
pub use basisopt_snapshot as snapshot;
pub use basisopt_train as train;
