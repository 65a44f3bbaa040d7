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
    Check, Manager, ManagerError, NoObserver, Observer, PIPELINE_KEY, PassReport, Report,
};
pub use driver::options::{Globs, OptionError, OptionKind, OptionSpec, Options};
pub use driver::pass::{Fidelity, Host, NoHost, Outcome, Pass, PassContext, PassError, PassInfo};
pub use driver::pipeline::{Item, Pipeline, PipelineError};
pub use driver::registry::Registry;
pub use driver::remark::{Refusal, Remark, RemarkKind};
pub use driver::rule::{Proposal, Rule, apply_everywhere};
pub use fine_tune::trainable;
pub use training::{logits, meets_goal, n_classes};

/// The built-in passes, in the order in which they are usually run.
pub const BUILTIN: &[&PassInfo] = &[
    &freeze_weights::INFO,
    &fold_constants::INFO,
    &eliminate_identity::INFO,
    &fold_batch_norm::INFO,
    &allocate_ranks::INFO,
    &factorize_conv::INFO,
    &factorize_linear::INFO,
    &reconstruct::INFO,
    &fine_tune::INFO,
    &merge_factors::INFO,
    &dead_code::INFO,
];

/// Pipelines with a name.
pub const PRESETS: &[(&str, &str)] = &[
    ("clean", "fold-constants,eliminate-identity,dead-code"),
    ("fold", "fold-constants,eliminate-identity,fold-batch-norm,dead-code"),
];
