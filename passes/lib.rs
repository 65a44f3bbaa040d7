//! The passes of `basisopt`, one per file, and the manager that runs them.
//!
//! An embedder needs this crate and `basisopt-ir`, and compiles neither tract nor clap:
//!
//! ```
//! use basisopt_passes::{Manager, NoObserver, Pipeline, Registry};
//!
//! let mut graph = basisopt_ir::parse::parse(
//!     "graph @g(%x: f32[1,3,8,8]) -> (%y) {
//!        %w = f32[16,3,3,3] lowrank(2, seed=1)
//!        %y = Conv<pads=[1,1,1,1]>(%x, %w)
//!      }",
//! )?;
//! let pipeline = Pipeline::parse("factorize-conv:energy=0.99", &Registry::builtin())?;
//! let report = Manager::default().run(&mut graph, &pipeline, &mut NoObserver)?;
//! assert_eq!(report.n_rewrites(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod allocate_ranks;
mod calibrate;
mod constants;
mod dead_code;
mod eliminate_identity;
mod eval;
mod factorize_conv;
mod factorize_linear;
mod fine_tune;
mod fold_batch_norm;
mod fold_constants;
mod freeze_weights;
mod merge_factors;

pub mod cost;
pub mod device;
pub mod driver;
pub mod factor;
pub mod layer;
mod plan;
pub mod ranks;
mod reconstruct;
mod training;

pub use allocate_ranks::{Limits, Quantity, Sensitivity, Survey, Surveyed, Target};
pub use driver::bisect::{BisectError, Culprit, bisect};
pub use driver::check::{Deviation, EXACT_TOLERANCE, Executor, ExecutorError, Program, deviation};
pub use driver::data::{Calibration, Inputs, Judge, Samples, Session, Training};
pub use driver::manager::{
    Check, Manager, ManagerError, NoObserver, Observer, PIPELINE_KEY, PassReport, Report, panic_message,
};
pub use driver::options::{Globs, OptionError, OptionKind, OptionSpec, Options};
pub use driver::pass::{Fidelity, Host, NoHost, Outcome, Pass, PassContext, PassError, PassInfo};
pub use driver::pipeline::{Item, Pipeline, PipelineError};
pub use driver::registry::Registry;
pub use driver::remark::{Refusal, Remark, RemarkKind};
pub use driver::rule::{Proposal, Rule, RulePass, apply_everywhere};
pub use fine_tune::trainable;
pub use plan::Method;

// The built-in passes by name, for pipelines that are put together in Rust (`Pipeline::then`).
pub use allocate_ranks::INFO as ALLOCATE_RANKS;
pub use dead_code::INFO as DEAD_CODE;
pub use eliminate_identity::INFO as ELIMINATE_IDENTITY;
pub use factorize_conv::INFO as FACTORIZE_CONV;
pub use factorize_linear::INFO as FACTORIZE_LINEAR;
pub use fine_tune::INFO as FINE_TUNE;
pub use fold_batch_norm::INFO as FOLD_BATCH_NORM;
pub use fold_constants::INFO as FOLD_CONSTANTS;
pub use freeze_weights::INFO as FREEZE_WEIGHTS;
pub use merge_factors::INFO as MERGE_FACTORS;
pub use reconstruct::INFO as RECONSTRUCT;
pub use training::{logits, meets_goal, n_classes};

/// The built-in passes, in the order in which they are usually run.
pub const BUILTIN: &[&PassInfo] = &[
    &FREEZE_WEIGHTS,
    &FOLD_CONSTANTS,
    &ELIMINATE_IDENTITY,
    &FOLD_BATCH_NORM,
    &ALLOCATE_RANKS,
    &FACTORIZE_CONV,
    &FACTORIZE_LINEAR,
    &RECONSTRUCT,
    &FINE_TUNE,
    &MERGE_FACTORS,
    &DEAD_CODE,
];

/// Pipelines with a name.
pub const PRESETS: &[(&str, &str)] = &[
    ("clean", "fold-constants,eliminate-identity,dead-code"),
    ("fold", "fold-constants,eliminate-identity,fold-batch-norm,dead-code"),
];
