//! What is trained, towards what, and what became of it.

use crate::differentiate::DifferentiateError;
use crate::exec::CompileError;
use crate::loss::LossError;
use crate::stiefel::Frames;
use basisopt_ir::Graph;
use basisopt_ir::infer::InferError;

/// Why a network cannot be trained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// No gradient.
    #[error(transparent)]
    Differentiate(#[from] DifferentiateError),
    /// No program.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// No loss.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// Types contradict each other.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// A term of the loss is of a value that a network does not have.
    #[error("there is no value {name:?} in {network}")]
    NoValue {
        /// What was asked for.
        name: String,
        /// Which network.
        network: &'static str,
    },
    /// The loss compares with the original network, which was not given.
    #[error("the loss compares with the original network, and there is none")]
    NoOriginal,
    /// A value is not the output of a batch normalisation whose statistics are its own.
    #[error("{name:?} is not the output of a batch normalisation with constants of its own")]
    NoNorm {
        /// What was asked for.
        name: String,
    },
    /// Two things that should be of one size are not.
    #[error(
        "{name:?} has {expected} values in the network, and {found} in what it is compared with or given"
    )]
    Sizes {
        /// Name of the value.
        name: String,
        /// In the network.
        expected: usize,
        /// In the original, or the images.
        found: usize,
    },
    /// Images can only be given to one input.
    #[error("images can be given to networks with one input; this one has {0}")]
    Inputs(usize),
    /// A gradient that is not a sum over the batch.
    #[error("the gradient of {name:?} is no sum over the batch (this is a bug)")]
    NoSum {
        /// Name of the parameter.
        name: String,
    },
    /// No parameter has an effect on the loss.
    #[error("nothing is trainable: no parameter has an effect on the loss")]
    Nothing,
    /// An image could not be read.
    #[error("{0}")]
    Data(String),
    /// A label that the network has no class for.
    #[error("label {label} is out of range: the network has {n_classes} classes, 0 to {}", n_classes - 1)]
    Label {
        /// The label.
        label: usize,
        /// Number of classes.
        n_classes: usize,
    },
    /// A label is needed and missing.
    #[error("an image has no label, and the loss needs one; train with loss=distill")]
    NoLabel,
}

/// One term of a loss, on values by name.
#[derive(Clone, Debug, PartialEq)]
pub enum Objective {
    /// [`Term::CrossEntropy`](crate::loss::Term::CrossEntropy).
    Labels {
        /// Name of the logits.
        logits: String,
    },
    /// [`Term::Distillation`](crate::loss::Term::Distillation).
    Distill {
        /// Name of the logits, in both networks.
        logits: String,
        /// Temperature.
        temperature: f32,
    },
    /// [`Term::Match`](crate::loss::Term::Match).
    Match {
        /// Name of the value, in both networks.
        value: String,
        /// What the square is measured against.
        scale: f32,
    },
    /// [`Term::Orthogonality`](crate::loss::Term::Orthogonality): of parameters, not of images.
    Orthogonality(Frames),
}

/// What the network is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Reference<'g> {
    /// Nothing: there are labels.
    None,
    /// The original, of which names of inputs and of compared values are the same.
    Network(&'g Graph),
    /// What the examples say, for one value ([`Examples::target`](crate::examples::Examples::target)).
    Examples,
}

/// What is trained, and towards what.
#[derive(Clone, Debug)]
pub struct Task<'g> {
    /// The network, with inferred types. Its first input takes the images.
    pub network: &'g Graph,
    /// What it is compared with.
    pub reference: Reference<'g>,
    /// The loss, weighted.
    pub objectives: Vec<(Objective, f32)>,
    /// Names of the constants to train.
    pub parameters: Vec<String>,
    /// Name of the value whose largest element is the class that the network gives.
    pub logits: Option<String>,
    /// Names of the outputs of batch normalisations that use the statistics of the images at hand in training.
    pub norms: Vec<String>,
    /// Parameters that are kept orthonormal.
    pub frames: Vec<Frames>,
}

/// What a number of images gave, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Losses.
    pub loss: f64,
    /// Images.
    pub n_images: usize,
    /// Images that were given their label.
    pub n_hits: usize,
    /// Images that have a label.
    pub n_labelled: usize,
}

impl Tally {
    /// Mean loss.
    #[allow(clippy::cast_precision_loss, reason = "a count")]
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.n_images.max(1) as f64
    }

    /// Share of labelled images that were given their label.
    #[allow(clippy::cast_precision_loss, reason = "a count")]
    pub fn accuracy(&self) -> Option<f64> {
        (self.n_labelled > 0).then(|| self.n_hits as f64 / self.n_labelled as f64)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        self.n_images += other.n_images;
        self.n_hits += other.n_hits;
        self.n_labelled += other.n_labelled;
    }
}
