//! Makes a trained convolutional network smaller and faster on the device it will run on: ONNX in,
//! ONNX out.
//!
//! This crate is the front door: the IR, ONNX files, the passes and the tract runtime under one
//! roof. Toolchains that have a runtime of their own depend on `basisopt-passes` and `basisopt-ir`
//! alone.
//!
//! ```
//! use basisopt::{Manager, NoObserver, Pipeline, Registry, TractExecutor, onnx::Model};
//!
//! let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/models/glyphnet.onnx");
//! let mut model = Model::read(path)?;
//! let pipeline = Pipeline::parse("@fold,factorize-conv:energy=0.95", &Registry::builtin())?;
//!
//! // The manager runs the network before and after every pass and reports by how much it moved.
//! let mut executor = TractExecutor::new(model.source().clone());
//! let mut manager = Manager { executor: Some(&mut executor), ..Manager::default() };
//! let report = manager.run(&mut model.graph, &pipeline, &mut NoObserver)?;
//! assert!(report.remarks().any(|r| r.pass == "factorize-conv" && r.code == "factored"));
//!
//! let bytes = model.to_bytes()?.concat();
//! # let _ = bytes;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use basisopt_cli::executor::TractExecutor;
pub use basisopt_ir as ir;
pub use basisopt_onnx as onnx;
pub use basisopt_passes as passes;
pub use basisopt_passes::{Manager, NoObserver, Pipeline, Registry, Report};
pub use basisopt_runtime as runtime;
pub use basisopt_snapshot as snapshot;
pub use basisopt_train as train;
