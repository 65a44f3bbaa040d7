//! The world as passes see it from a call: files, progress, interruption, training.

use crate::work::Shared;
use basisopt_ir::Graph;
use basisopt_passes::{Host, Item, Observer, Session};
use basisopt_train::checkpoint;
use basisopt_train::watch::{Epoch, Progress, Watch};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a checkpoint is written in the course of an epoch.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);

/// Files, progress and interruption.
#[derive(Debug)]
pub(crate) struct CallHost {
    /// Shared with the calling thread.
    pub shared: Arc<Shared>,
    /// The text of a file that is none: its name in the pipeline, and what is in it.
    pub given: Option<(String, String)>,
}

impl Host for CallHost {
    fn read_text(&self, path: &str) -> Result<String, String> {
        match &self.given {
            Some((name, text)) if name == path => Ok(text.clone()),
            _ => std::fs::read_to_string(path).map_err(|e| e.to_string()),
        }
    }

    fn stage(&self, name: &str) {
        self.shared.stage(name);
    }

    fn progress(&self, done: usize, total: usize, what: &str) {
        self.shared.progress(done, total, what);
    }

    fn interrupted(&self) -> bool {
        self.shared.is_stopped()
    }
}

/// Every pass is a stage.
#[derive(Debug)]
pub(crate) struct Stages(pub Arc<Shared>);

impl Observer for Stages {
    fn before(&mut self, _: usize, item: &Item, _: &Graph) {
        self.0.stage(item.info.name);
    }
}

/// One epoch, in the report.
#[derive(Clone, Copy, Debug, Serialize)]
struct EpochLine {
    /// Which run of training in the pipeline, from 1.
    run: usize,
    epoch: f64,
    loss: Option<f64>,
    accuracy: Option<f64>,
    validation_loss: f64,
    validation_accuracy: Option<f64>,
    is_best: bool,
    rate: f64,
    seconds: f64,
}

/// What training said, in the report.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct TrainingLog {
    epochs: Vec<EpochLine>,
    notes: Vec<String>,
}

/// Where the state of training is kept.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    /// The file, as the command line writes it.
    pub path: PathBuf,
    /// Whether to go on from it.
    pub resume: bool,
}

/// A run of training in a call.
#[derive(Debug)]
pub(crate) struct CallSession {
    shared: Arc<Shared>,
    checkpoint: Option<Checkpoint>,
    run: usize,
    /// The last checkpoint of each run so far.
    runs: Vec<Vec<u8>>,
    started: Instant,
    kept: Instant,
    log: TrainingLog,
}

impl CallSession {
    /// A session that keeps checkpoints if there is a file for them.
    pub(crate) fn new(shared: Arc<Shared>, checkpoint: Option<Checkpoint>) -> Self {
        let now = Instant::now();
        let log = TrainingLog::default();
        Self { shared, checkpoint, run: 0, runs: Vec::new(), started: now, kept: now, log }
    }

    /// What was said; `None` if nothing was trained.
    pub(crate) fn log(&self) -> Option<&TrainingLog> {
        (self.run > 0).then_some(&self.log)
    }

    fn line(&self, e: &Epoch) -> EpochLine {
        EpochLine {
            run: self.run,
            epoch: e.epoch,
            loss: e.loss,
            accuracy: e.accuracy,
            validation_loss: e.validation.loss,
            validation_accuracy: e.validation.accuracy,
            is_best: e.is_best,
            rate: e.rate,
            seconds: self.started.elapsed().as_secs_f64(),
        }
    }
}

impl Watch for CallSession {
    fn step(&mut self, p: &Progress) {
        let whole = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let epoch = p.step.div_ceil(p.steps_per_epoch.max(1));
        let accuracy = p.accuracy.map(|a| format!(", accuracy {:.2} %", a * 100.0)).unwrap_or_default();
        let text = format!("epoch {epoch}: loss {:.4}{accuracy}", p.loss);
        self.shared.progress(whole(p.step), whole(p.n_steps), &text);
    }

    fn epoch(&mut self, e: &Epoch) {
        let line = self.line(e);
        self.log.epochs.push(line);
    }

    fn resumed(&mut self, history: &[Epoch]) {
        let lines: Vec<EpochLine> = history.iter().map(|e| self.line(e)).collect();
        self.log.epochs.extend(lines);
    }

    fn note(&mut self, text: &str) {
        self.log.notes.push(text.to_owned());
    }

    fn seconds(&mut self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    fn stops(&mut self) -> bool {
        self.shared.is_stopped()
    }

    fn wants_checkpoint(&mut self) -> bool {
        self.checkpoint.is_some() && self.kept.elapsed() >= CHECKPOINT_EVERY
    }

    fn keep(&mut self, state: &[u8]) -> Result<(), String> {
        self.kept = Instant::now();
        let Some(checkpoint) = &self.checkpoint else { return Ok(()) };
        // Runs that are over keep their last state, so that a resumed pipeline passes over them.
        self.runs.resize(self.run.max(1), Vec::new());
        if let Some(last) = self.runs.last_mut() {
            *last = state.to_vec();
        }
        let all = checkpoint::join(&self.runs).map_err(|e| e.to_string())?;
        write_whole(&checkpoint.path, &all).map_err(|e| format!("{}: {e}", checkpoint.path.display()))
    }
}

impl Session for CallSession {
    fn resume(&mut self) -> Option<Vec<u8>> {
        self.run += 1;
        let checkpoint = self.checkpoint.as_ref().filter(|c| c.resume)?;
        if self.runs.is_empty() {
            // A file that cannot be read or taken apart is no checkpoint, which is said then.
            let bytes = std::fs::read(&checkpoint.path).unwrap_or_default();
            self.runs = checkpoint::split(&bytes).unwrap_or_else(|_| vec![bytes]);
        }
        self.runs.get(self.run - 1).cloned()
    }
}

/// Writes a file whole or not at all: beside its place first, then renamed.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let partial = path.with_file_name(name);
    let written = std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path));
    if written.is_err() {
        // A leftover of a failed write is of no use to anybody.
        let _ = std::fs::remove_file(&partial);
    }
    written
}
