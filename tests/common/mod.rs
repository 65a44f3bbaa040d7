//! What several test programs share.

#![allow(dead_code, reason = "each test program uses its part")]

use basisopt::ir::{Graph, Tensor};
use basisopt::passes::{Executor, ExecutorError, Program};
use basisopt::runtime::{LoadOptions, Session, Source, random_inputs};
use std::path::PathBuf;

/// The root of the repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs graphs that never came from a file: written as ONNX, read by tract, not optimised, so that
/// tract does not perform the rewrite under test.
#[derive(Debug, Default)]
pub struct FreshExecutor;

impl FreshExecutor {
    fn session(graph: &Graph) -> Result<Session, ExecutorError> {
        let bytes = basisopt::onnx::export_new(graph).map_err(|e| ExecutorError(e.to_string()))?;
        let options = LoadOptions { optimize: false, ..LoadOptions::default() };
        Session::load(&Source::from_bytes("fixture", bytes, None), &options)
            .map_err(|e| ExecutorError(e.to_string()))
    }
}

impl Executor for FreshExecutor {
    fn example_inputs(&mut self, graph: &Graph, seed: u64) -> Result<Vec<Tensor>, ExecutorError> {
        Ok(random_inputs(Self::session(graph)?.inputs(), seed))
    }

    fn run(&mut self, graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>, ExecutorError> {
        Self::session(graph)?.run(inputs).map_err(|e| ExecutorError(e.to_string()))
    }

    fn load(&mut self, graph: &Graph) -> Result<Box<dyn Program>, ExecutorError> {
        Ok(Box::new(FreshProgram(Self::session(graph)?.into_program())))
    }
}

struct FreshProgram(basisopt::runtime::Program);

impl Program for FreshProgram {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, ExecutorError> {
        self.0.run(inputs).map_err(|e| ExecutorError(e.to_string()))
    }
}
