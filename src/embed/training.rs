//! A run of training as whoever embeds it keeps it: its epochs, and its checkpoints in one file.

use basisopt_runtime::RuntimeError;
use basisopt_train::checkpoint;
use basisopt_train::watch::Epoch;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a checkpoint is written in the course of an epoch.
const EVERY: Duration = Duration::from_secs(60);

/// One epoch, in logs and reports.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct EpochLine {
    /// Which run of training in the pipeline, from 1.
    pub run: usize,
    /// Passes over the images so far.
    pub epoch: f64,
    /// Mean over the images trained on; `None` before training.
    pub loss: Option<f64>,
    /// Share of images trained on that got their label, 0…1.
    pub accuracy: Option<f64>,
    /// Mean over the images to choose by.
    pub validation_loss: f64,
    /// Share of those that got their label, or the original's class, 0…1.
    pub validation_accuracy: Option<f64>,
    /// Whether no version before was better.
    pub is_best: bool,
    /// The rate of learning.
    pub rate: f64,
    /// Since the session began.
    pub seconds: f64,
}

impl EpochLine {
    /// An epoch of this run.
    pub fn new(run: usize, epoch: &Epoch, seconds: f64) -> Self {
        Self {
            run,
            epoch: epoch.epoch,
            loss: epoch.loss,
            accuracy: epoch.accuracy,
            validation_loss: epoch.validation.loss,
            validation_accuracy: epoch.validation.accuracy,
            is_best: epoch.is_best,
            rate: epoch.rate,
            seconds,
        }
    }
}

/// The state of all training in a pipeline, in a file if there is to be one. Runs that are over keep their last state, so
/// that a resumed pipeline passes over them.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    path: Option<PathBuf>,
    resume: bool,
    run: usize,
    /// The last state of each run so far.
    runs: Vec<Vec<u8>>,
    kept: Instant,
}

impl Checkpoints {
    /// Kept in this file; gone on from what is there if `resume`.
    ///
    /// # Errors
    /// If there is nothing to go on from, or it cannot be read.
    pub fn new(path: Option<PathBuf>, resume: bool) -> Result<Self, RuntimeError> {
        let runs = match path.as_ref().filter(|_| resume) {
            Some(path) => {
                let bytes =
                    std::fs::read(path).map_err(|source| RuntimeError::Io { path: path.clone(), source })?;
                // What cannot be taken apart is no checkpoint, which is said when it is gone on from.
                checkpoint::split(&bytes).unwrap_or_else(|_| vec![bytes])
            }
            None => Vec::new(),
        };
        Ok(Self { path, resume, run: 0, runs, kept: Instant::now() })
    }

    /// Nothing is kept.
    pub fn none() -> Self {
        Self { path: None, resume: false, run: 0, runs: Vec::new(), kept: Instant::now() }
    }

    /// The file.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Which run of training in the pipeline this is, from 1; 0 before the first.
    pub fn run(&self) -> usize {
        self.run
    }

    /// The next run begins: the state to go on from, if it was begun before.
    pub fn begin(&mut self) -> Option<Vec<u8>> {
        self.run += 1;
        self.runs.get(self.run - 1).filter(|_| self.resume).cloned()
    }

    /// Whether it is time for another one.
    pub fn is_due(&self) -> bool {
        self.path.is_some() && self.kept.elapsed() >= EVERY
    }

    /// Keeps the state of this run; the file is written whole or not at all.
    ///
    /// # Errors
    /// What the disk says, in words.
    pub fn keep(&mut self, state: &[u8]) -> Result<(), String> {
        self.kept = Instant::now();
        let Some(path) = &self.path else { return Ok(()) };
        self.runs.resize(self.run.max(1), Vec::new());
        if let Some(last) = self.runs.last_mut() {
            *last = state.to_vec();
        }
        let all = checkpoint::join(&self.runs).map_err(|e| e.to_string())?;
        basisopt_onnx::write_whole(path, &all).map_err(|e| format!("cannot write {}: {e}", path.display()))
    }
}
