//! Optimising and compressing networks in memory: what the command line, the Python package and the C library embed.
//!
//! Passes know neither files nor runtimes, the runtime knows no graphs. Here they meet: a [`Model`] goes through a
//! pipeline while tract checks every step, and comes back with a report as data.
//!
//! ```
//! use basisopt_embed::{OptimizeOptions, optimize, parse};
//! use basisopt_onnx::Model;
//!
//! let mut model = Model::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/glyphnet.onnx"))?;
//! let done = optimize(&mut model, &parse("@fold,factorize-conv:energy=0.9")?, OptimizeOptions::default())?;
//! assert!(done.after.file_bytes < done.before.file_bytes);
//! let bytes = model.to_bytes()?.concat();
//! # assert!(!bytes.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`optimize`](mod@optimize) | a pipeline over a model |
//! | [`compress`](mod@compress) | the recipe: fold, choose ranks for a budget, factorise, train, measure |
//! | [`recipe`] | the pipeline of the recipe |
//! | [`material`] | images shared out: to learn from, to choose by, to report on |
//! | [`samples`], [`examples`] | images as passes take them |
//! | [`executor`] | the check of the pass manager, by tract |
//! | [`mod@measure`] | the network before and after |
//! | [`ladder`], [`layers`], [`report`] | what was done, as data |
//! | [`training`] | epochs and checkpoints of training |

pub mod compress;
mod error;
pub mod examples;
pub mod executor;
pub mod ladder;
pub mod layers;
pub mod material;
pub mod measure;
pub mod optimize;
pub mod recipe;
pub mod report;
pub mod samples;
mod settings;
pub mod training;

pub use compress::{CompressOptions, Compressed, compress};
pub use error::EmbedError;
pub use executor::TractExecutor;
pub use layers::Layer;
pub use material::{Material, Use};
pub use measure::Measured;
pub use optimize::{OptimizeOptions, Optimized, TrainOn, optimize, parse};
pub use recipe::{Recipe, RecipeError};
pub use report::{PassSummary, Size};
pub use samples::DataSamples;
pub use settings::{Settings, Stop};

#[doc(no_inline)]
pub use basisopt_onnx::Model;
#[doc(no_inline)]
pub use basisopt_passes::Method;
