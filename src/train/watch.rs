//! What a run of training is told, and what it tells.

use crate::checkpoint::CheckpointError;
use crate::examples::Augmentation;
use crate::optimizer::{Method, Schedule};
use crate::task::{Tally, TrainError};
use serde::{Deserialize, Serialize};

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// Passes over the images; need not be whole.
    Epochs(f64),
    /// As much as fits into this time, measured on the first steps.
    Minutes(f64),
}

/// How to train.
#[derive(Clone, Debug, PartialEq)]
pub struct FitOptions {
    /// How long.
    pub length: Length,
    /// Images per step.
    pub batch: usize,
    /// How parameters follow gradients.
    pub method: Method,
    /// Peak rate.
    pub rate: f64,
    /// How the rate changes.
    pub schedule: Schedule,
    /// Epochs over which the rate rises.
    pub warmup: f64,
    /// Weight decay, of parameters of two and more axes.
    pub weight_decay: f32,
    /// Limit of the gradient's norm.
    pub clip: Option<f64>,
    /// Random changes of images.
    pub augmentation: Augmentation,
    /// Stop after so many epochs without improvement.
    pub patience: Option<u32>,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self {
            length: Length::Epochs(10.0),
            batch: 128,
            method: Method::Sgd { momentum: 0.9 },
            rate: 0.02,
            schedule: Schedule::Cosine,
            warmup: 0.2,
            weight_decay: 5e-4,
            clip: Some(5.0),
            augmentation: Augmentation::default(),
            patience: None,
            seed: 0,
        }
    }
}

/// How a version does on images that it is not trained on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Share of labelled images that are given their label.
    pub accuracy: Option<f64>,
    /// Mean loss.
    pub loss: f64,
}

impl Score {
    pub(crate) fn of(tally: &Tally) -> Self {
        Self { accuracy: tally.accuracy(), loss: tally.mean_loss() }
    }

    /// By the loss: on few images it tells more than a count of those that are right.
    pub(crate) fn better_than(&self, other: &Self) -> bool {
        self.loss < other.loss
    }
}

/// One epoch of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Epochs done; 0 is the network as it came.
    pub epoch: f64,
    /// Mean loss over the images trained on, as they were seen; none before training.
    pub loss: Option<f64>,
    /// Share of these that were given their label.
    pub accuracy: Option<f64>,
    /// On images that are not trained on.
    pub validation: Score,
    /// Whether no version before did better.
    pub is_best: bool,
    /// The rate at the end.
    pub rate: f64,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Steps done, and in all.
    pub step: u64,
    /// See `step`.
    pub n_steps: u64,
    /// Steps in an epoch.
    pub steps_per_epoch: u64,
    /// Images in the last step.
    pub n_images: usize,
    /// Mean loss since the epoch began.
    pub loss: f64,
    /// Accuracy since the epoch began.
    pub accuracy: Option<f64>,
}

/// Looks on, keeps checkpoints, and may end a run.
pub trait Watch {
    /// After each step.
    fn step(&mut self, progress: &Progress);
    /// After each epoch, and before the first.
    fn epoch(&mut self, epoch: &Epoch);
    /// A run that was begun before goes on; these are its epochs so far.
    fn resumed(&mut self, _history: &[Epoch]) {}
    /// Something worth telling the user.
    fn note(&mut self, text: &str);
    /// Seconds since some moment: what a run of so many minutes is measured by.
    fn seconds(&mut self) -> f64;
    /// Whether to stop here; a checkpoint is kept first.
    fn stops(&mut self) -> bool;
    /// Whether it is time to keep a checkpoint. One is kept at the end of every epoch anyway.
    fn wants_checkpoint(&mut self) -> bool;
    /// Keeps a checkpoint in place of the one before.
    ///
    /// # Errors
    /// In words, where it cannot be kept; the run ends then.
    fn keep(&mut self, checkpoint: &[u8]) -> Result<(), String>;
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// Every epoch.
    pub history: Vec<Epoch>,
    /// How the best version does; the trainer has its parameters.
    pub best: Score,
    /// Whether the run was interrupted before its end.
    pub interrupted: bool,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FitError {
    /// A step failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A checkpoint that does not fit.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A checkpoint that cannot be kept.
    #[error(
        "the checkpoint cannot be written: {0}; if one was written before, it is intact, and the run can be resumed from it"
    )]
    Keep(String),
    /// Too few images.
    #[error("{found} images to {what}; at least {needed} are needed")]
    TooFew {
        /// How many there are.
        found: usize,
        /// How many there should be.
        needed: usize,
        /// What for.
        what: &'static str,
    },
    /// Options that cannot work.
    #[error("{0}")]
    Options(String),
    /// The loss is not a number, however small the step.
    #[error(
        "the loss grows or is not finite, even with a rate of {rate:.1e}; check the images' preprocessing, or train with a smaller rate="
    )]
    Diverged {
        /// The rate at last.
        rate: f64,
    },
    /// Images of another size than the network takes.
    #[error("the images have {found} values each, the network takes {expected}")]
    Size {
        /// Values of an image.
        found: usize,
        /// Values that the network takes.
        expected: usize,
    },
}
