//! Runs, compares, evaluates and benchmarks ONNX networks with tract.
//!
//! This crate takes encoded ONNX bytes, never the IR: what is measured is what the user ships.
//!
//! | module | what it does |
//! |---|---|
//! | [`source`], [`session`] | a model's bytes; the model loaded into tract with all sizes fixed |
//! | [`fused`] | tract runs the two convolutions of a factorised layer as one operator |
//! | [`random`] | seeded random inputs |
//! | [`compare`](mod@compare) | how far apart two networks are |
//! | [`data`] | image folders, CIFAR records, NumPy arrays; preprocessing and its settings file |
//! | [`eval`] | accuracy, and agreement of two networks |
//! | [`bench`](mod@bench) | latency, throughput, memory |
//! | [`profile`](mod@profile) | what each layer takes |
//! | [`machine`] | what the numbers were measured on |
//! | [`power`] | watts and joules, where the machine has sensors |

pub mod bench;
pub mod compare;
mod convert;
pub mod data;
mod error;
pub mod eval;
pub mod fused;
pub mod machine;
mod memory;
mod outputs;
pub mod power;
pub mod profile;
pub mod random;
mod scores;
mod screen;
pub mod session;
pub mod source;

pub use bench::{BenchOptions, BenchProgress, BenchResult, MemoryUse, bench, measure_memory};
pub use compare::{OutputDiff, all_close, compare};
pub use data::{
    Batch, Batches, Channels, Dataset, DatasetOptions, LabelSource, Layout, ModelConfig, Preprocess,
    read_arrays,
};
pub use error::RuntimeError;
pub use eval::{AgreementReport, EvalReport, agreement, evaluate};
pub use fused::FuseBasisConv;
pub use machine::Machine;
pub use memory::total_memory;
pub use outputs::Outputs;
pub use power::{
    PowerError, PowerMeter, PowerOptions, PowerProgress, PowerReport, RailReport, Unmeasured, measure_power,
};
pub use profile::{LayerTime, profile};
pub use random::random_inputs;
pub use session::{Engine, InputInfo, LoadOptions, Program, Session};
pub use source::Source;

/// The inference engine behind every number this crate reports, with its version.
pub const ENGINE: &str = "tract 0.23.9";
