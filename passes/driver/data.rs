//! Data that passes may look at: images to calibrate on, and a score to choose by.

use crate::driver::check::ExecutorError;
use basisopt_ir::{Graph, Tensor};
use basisopt_train::examples::Examples;
use basisopt_train::watch::Watch;

/// Inputs of one batch: one tensor per graph input, in order.
pub type Inputs = Vec<Tensor>;

/// Inputs to calibrate on, streamed: a set may be larger than memory, so it is read again rather than
/// kept. All batches have the same shapes, and come in the same order every time.
pub trait Samples: Sync {
    /// Number of batches.
    fn n_batches(&self) -> usize;

    /// Number of inputs in a batch, for reports.
    fn batch_size(&self) -> usize;

    /// The batches from this one on.
    ///
    /// # Errors
    /// From the iterator, what cannot be read.
    fn batches<'a>(&'a self, first: usize) -> Box<dyn Iterator<Item = Result<Inputs, ExecutorError>> + 'a>;

    /// One line for reports: what the inputs are.
    fn describe(&self) -> String;
}

/// What a pass may learn from.
#[derive(Clone, Copy)]
pub struct Calibration<'a> {
    /// The inputs.
    pub samples: &'a dyn Samples,
    /// Bytes of activations that may be kept at a time. What does not fit is computed again when it is
    /// needed, from the inputs on: slower, with the same result.
    pub memory: usize,
}

impl std::fmt::Debug for Calibration<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calibration")
            .field("n_batches", &self.samples.n_batches())
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

/// Judges versions of a network by inputs that calibration does not see: what choices are made by.
pub trait Judge {
    /// The share of inputs, 0…1, that a version gets right: by its labels, or where there are none by
    /// giving the class that the original gives.
    ///
    /// # Errors
    /// [`ExecutorError`] where the version cannot be run, or gives no classes.
    fn score(&mut self, graph: &Graph) -> Result<f64, ExecutorError>;

    /// Number of inputs that are judged by.
    fn n_samples(&self) -> usize;

    /// What the score is: `accuracy` or `agreement`.
    fn measure(&self) -> &'static str;
}

/// What to train on, and who looks on.
pub struct Training<'a> {
    /// Images to train on, with labels where there are any.
    pub examples: &'a dyn Examples,
    /// Images to choose the best version by; none of them is trained on.
    pub validation: &'a dyn Examples,
    /// The network to imitate; [`crate::Manager`] takes the one that the pipeline began with where this is `None`.
    pub original: Option<&'a Graph>,
    /// Progress, checkpoints, the log.
    pub session: &'a mut dyn Session,
}

impl std::fmt::Debug for Training<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Training")
            .field("n_examples", &self.examples.len())
            .field("n_validation", &self.validation.len())
            .finish_non_exhaustive()
    }
}

/// A run of training as the world sees it.
pub trait Session: Watch {
    /// The checkpoint to go on from, if the run was begun before.
    fn resume(&mut self) -> Option<Vec<u8>>;

    /// The pipeline is over, and with it all training.
    fn ended(&mut self) {}
}
