//! The world as passes see it from a call: files, progress, interruption, training.

use crate::work::Shared;
use basisopt_embed::EmbedError;
use basisopt_embed::training::{Checkpoints, EpochLine};
use basisopt_ir::Graph;
use basisopt_passes::{Host, Item, Observer, Session};
use basisopt_train::watch::{Epoch, Progress, Watch};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

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
    checkpoints: Checkpoints,
    started: Instant,
    log: TrainingLog,
}

impl CallSession {
    /// A session that keeps checkpoints if there is a file for them.
    ///
    /// # Errors
    /// If the one to go on from cannot be read.
    pub(crate) fn new(shared: Arc<Shared>, checkpoint: Option<Checkpoint>) -> Result<Self, EmbedError> {
        let checkpoints = match checkpoint {
            Some(Checkpoint { path, resume }) => Checkpoints::new(Some(path), resume)?,
            None => Checkpoints::none(),
        };
        Ok(Self { shared, checkpoints, started: Instant::now(), log: TrainingLog::default() })
    }

    /// What was said; `None` if nothing was trained.
    pub(crate) fn log(&self) -> Option<&TrainingLog> {
        (self.checkpoints.run() > 0).then_some(&self.log)
    }

    fn line(&self, e: &Epoch) -> EpochLine {
        EpochLine::new(self.checkpoints.run(), e, self.started.elapsed().as_secs_f64())
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
        self.checkpoints.is_due()
    }

    fn keep(&mut self, state: &[u8]) -> Result<(), String> {
        self.checkpoints.keep(state)
    }
}

impl Session for CallSession {
    fn resume(&mut self) -> Option<Vec<u8>> {
        self.checkpoints.begin()
    }
}
