//! What several test programs share.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod fixtures;
pub mod program;

use basisopt::ir::{Graph, Tensor};
use basisopt::passes::{Executor, ExecutorError, Program, Session as TrainingSession};
use basisopt::runtime::{LoadOptions, Session, Source, random_inputs};
use basisopt::train::examples::{Examples, ImageShape};
use basisopt::train::watch::{Epoch, Progress, Watch};
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
        let program = Self::session(graph)?.into_program().map_err(|e| ExecutorError(e.to_string()))?;
        Ok(Box::new(FreshProgram(program)))
    }
}

struct FreshProgram(basisopt::runtime::Program);

impl Program for FreshProgram {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, ExecutorError> {
        self.0.run(inputs).map_err(|e| ExecutorError(e.to_string()))
    }
}

/// Images of a few classes: the classes differ by a pattern, the images of a class by noise.
#[derive(Debug)]
pub struct Patterns {
    pub shape: ImageShape,
    pub n_images: usize,
    pub n_classes: usize,
    pub seed: u64,
    pub is_labelled: bool,
}

impl Patterns {
    /// Of the size that a graph's first input takes.
    pub fn of(graph: &Graph, n_images: usize, seed: u64) -> Self {
        let dims = graph.inputs().first().map(|&n| graph.node(n).outputs[0].ty.shape.clone());
        let dims = dims.flatten().unwrap_or_default();
        let size = |i: usize| dims.get(i).and_then(|d| d.known()).unwrap_or(1);
        let shape = ImageShape { n_channels: size(1), height: size(2), width: size(3), channels_last: false };
        Self { shape, n_images, n_classes: 4, seed, is_labelled: true }
    }
}

/// A number in ±1 that depends on three others.
fn noise(a: u64, b: u64, c: u64) -> f32 {
    let mut z = a.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ b.wrapping_mul(0xBF58_476D_1CE4_E5B9) ^ c;
    for _ in 0..3 {
        z = (z ^ (z >> 29)).wrapping_mul(0x94D0_49BB_1331_11EB);
    }
    (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

impl Examples for Patterns {
    fn len(&self) -> usize {
        self.n_images
    }
    fn shape(&self) -> ImageShape {
        self.shape
    }
    fn read(&self, index: usize, into: &mut [f32]) -> Result<(), String> {
        let class = (index % self.n_classes) as u64;
        for (i, v) in into.iter_mut().enumerate() {
            *v = noise(0, class, i as u64) + 0.5 * noise(1 + self.seed, index as u64, i as u64);
        }
        Ok(())
    }
    fn label(&self, index: usize) -> Option<usize> {
        self.is_labelled.then_some(index % self.n_classes)
    }
    fn blank(&self) -> Vec<f32> {
        vec![0.0; self.shape.n_channels]
    }
}

/// A session that keeps its last checkpoint, and may stop a run or start one from a checkpoint.
#[derive(Debug, Default)]
pub struct Kept {
    pub checkpoint: Option<Vec<u8>>,
    pub resume_from: Option<Vec<u8>>,
    pub stop_after: Option<u64>,
    pub epochs: Vec<Epoch>,
    pub notes: Vec<String>,
    /// An error to give where a checkpoint is to be kept.
    pub full: bool,
    /// Whether the last step was the one to stop after.
    pub stops: bool,
}

impl Watch for Kept {
    fn step(&mut self, progress: &Progress) {
        self.stops = self.stop_after.is_some_and(|s| progress.step >= s);
    }
    fn epoch(&mut self, epoch: &Epoch) {
        self.epochs.push(*epoch);
    }
    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }
    fn seconds(&mut self) -> f64 {
        0.0
    }
    fn stops(&mut self) -> bool {
        self.stops
    }
    fn wants_checkpoint(&mut self) -> bool {
        false
    }
    fn keep(&mut self, checkpoint: &[u8]) -> Result<(), String> {
        if self.full {
            return Err("no space left on device".to_owned());
        }
        self.checkpoint = Some(checkpoint.to_vec());
        Ok(())
    }
}

impl TrainingSession for Kept {
    fn resume(&mut self) -> Option<Vec<u8>> {
        self.resume_from.clone()
    }
}
