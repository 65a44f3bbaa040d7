//! The images of a run, in parts that share none: to calibrate on, to choose by, and to report on.

use crate::error::EmbedError;
use crate::executor::TractExecutor;
use crate::recipe::Recipe;
use crate::settings::Stop;
use basisopt_ir::Graph;
use basisopt_passes::{ExecutorError, Judge};
use basisopt_runtime::{Dataset, Outputs, Preprocess};

/// Images that are chosen by, at most.
pub const JUDGED: usize = 1000;
/// Images that are reported on, at most.
pub const HELD_OUT: usize = 2000;

/// Images that versions are chosen by in training, at most.
const VALIDATED: usize = 5000;

/// What the images are for, beside calibration and the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Nothing.
    Report,
    /// Choosing by accuracy.
    Judge,
    /// Training, and choosing.
    Train,
}

impl Use {
    /// What a recipe needs images for.
    pub fn of(recipe: &Recipe) -> Self {
        match (&recipe.fine_tune, recipe.is_judged()) {
            (Some(_), _) => Self::Train,
            (None, true) => Self::Judge,
            (None, false) => Self::Report,
        }
    }
}

/// The parts.
#[derive(Clone, Debug, Default)]
pub struct Material {
    /// To learn from; labels play no part.
    pub calibration: Option<Dataset>,
    /// To choose by.
    pub judged: Option<Dataset>,
    /// To train on: everything that is neither chosen by nor reported on.
    pub training: Option<Dataset>,
    /// To report on: nothing is learnt from or chosen by these.
    pub held_out: Option<Dataset>,
    /// How they become inputs.
    pub preprocess: Preprocess,
}

impl Material {
    /// Shares images out: `n_samples` at random for calibration (all other parts too, if there are images of their own for
    /// that), some to choose by if that is needed, `held_out` of the rest to report on. The same seed gives the same parts.
    ///
    /// # Errors
    /// [`EmbedError::Missing`] if nothing would be left to train on.
    pub fn share(
        data: Option<Dataset>,
        calibration: Option<Dataset>,
        preprocess: Preprocess,
        (n_samples, held_out): (usize, usize),
        seed: u64,
        use_: Use,
    ) -> Result<Self, EmbedError> {
        let calibration = calibration.map(|dataset| dataset.split(n_samples, seed).0);
        let mut material = Self { calibration, preprocess, ..Self::default() };
        let Some(mut rest) = data else { return Ok(material) };
        if use_ == Use::Train {
            // A tenth each to choose by and to report on; what is calibrated on is trained on as well.
            let (n, tenth) = (rest.len(), (rest.len() / 10).max(1));
            let (judged, others) = rest.split(tenth.min(VALIDATED), seed.wrapping_add(1));
            let (reported, others) = others.split(tenth.min(held_out), seed.wrapping_add(2));
            if others.is_empty() {
                return Err(EmbedError::Missing(format!(
                    "{n} images are too few to train on: some are kept to choose by and to report on, so give at least 3"
                )));
            }
            if material.calibration.is_none() {
                material.calibration = Some(others.clone().split(n_samples, seed).0);
            }
            material.judged = Some(judged);
            material.held_out = Some(reported);
            material.training = Some(others);
            return Ok(material);
        }
        if material.calibration.is_none() {
            // At least as many images are reported on, however few there are.
            let n = n_samples.min(rest.len().div_ceil(2));
            let (first, second) = rest.split(n, seed);
            material.calibration = Some(first);
            rest = second;
        }
        if use_ == Use::Judge && rest.len() > 1 {
            let n = JUDGED.min(rest.len() / 2);
            let (first, second) = rest.split(n, seed.wrapping_add(1));
            material.judged = Some(first);
            rest = second;
        }
        let n = held_out.min(rest.len());
        material.held_out = (n > 0).then(|| rest.split(n, seed.wrapping_add(2)).0);
        Ok(material)
    }
}

impl Material {
    /// Labels that are known before images are read must be classes of the network: slips show before slow work.
    ///
    /// # Errors
    /// [`EmbedError::Images`], naming the first that is none.
    pub fn check_labels(&self, file: &str, n_classes: Option<usize>) -> Result<(), EmbedError> {
        for dataset in [&self.judged, &self.training, &self.held_out].into_iter().flatten() {
            for place in 0..dataset.len() {
                if let Some(label) = dataset.label(place) {
                    class_of(label, place, dataset, self.preprocess.label_offset, n_classes)
                        .map_err(|message| EmbedError::Images { file: file.to_owned(), message })?;
                }
            }
        }
        Ok(())
    }
}

/// The class that a label stands for.
///
/// # Errors
/// Says that the network has no such class.
pub(crate) fn class_of(
    label: i64,
    place: usize,
    dataset: &Dataset,
    offset: i64,
    n_classes: Option<usize>,
) -> Result<usize, String> {
    let class = label.checked_add(offset).and_then(|c| usize::try_from(c).ok());
    class.filter(|&c| n_classes.is_none_or(|n| c < n)).ok_or_else(|| {
        let classes = n_classes
            .map_or_else(|| "0 or more".to_owned(), |n| format!("0 to {}", n.saturating_sub(1)));
        let image = dataset.record(place).unwrap_or(place);
        format!("label {label} of image {image} with label-offset {offset} is no class of the network, which has {classes}")
    })
}

/// Judges versions of a network by images that calibration does not see.
pub struct ImageJudge {
    executor: TractExecutor,
    dataset: Dataset,
    preprocess: Preprocess,
    stop: Stop,
    /// The classes that the first version scored, the original, gives.
    original: Option<Vec<Option<usize>>>,
}

impl std::fmt::Debug for ImageJudge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageJudge").field("dataset", &self.dataset).finish_non_exhaustive()
    }
}

impl ImageJudge {
    /// Judges by these images, with labels or by agreement with the first version that is scored.
    pub fn new(executor: TractExecutor, dataset: Dataset, preprocess: Preprocess, stop: Stop) -> Self {
        Self { executor, dataset, preprocess, stop, original: None }
    }
}

impl ImageJudge {
    /// As [`Judge::score`]; `None` for a network that gives no classes, such as a detector.
    ///
    /// # Errors
    /// [`ExecutorError`] where it cannot be run, or a label is no class of it.
    pub fn score_of_classes(&mut self, graph: &Graph) -> Result<Option<f64>, ExecutorError> {
        let words = |e: basisopt_runtime::RuntimeError| ExecutorError(e.to_string());
        let program = self.executor.program(graph)?;
        let keep_going = || !(self.stop)();
        let outputs = Outputs::of(&program, &self.dataset, &self.preprocess, &mut |_| {}, &keep_going);
        let outputs = outputs.map_err(words)?;
        let share = |hits: Vec<bool>| hits.iter().filter(|h| **h).count() as f64 / hits.len().max(1) as f64;
        if let Some(hits) = outputs.hits().map_err(words)? {
            return Ok(Some(share(hits)));
        }
        let Some(classes) = outputs.classes() else { return Ok(None) };
        let original = self.original.get_or_insert_with(|| classes.clone());
        Ok(Some(share(original.iter().zip(&classes).map(|(a, b)| a == b && a.is_some()).collect())))
    }
}

impl Judge for ImageJudge {
    fn score(&mut self, graph: &Graph) -> Result<f64, ExecutorError> {
        let no_classes = || ExecutorError("no output looks like class scores [N, C]".to_owned());
        self.score_of_classes(graph)?.ok_or_else(no_classes)
    }

    fn n_samples(&self) -> usize {
        self.dataset.len()
    }

    fn measure(&self) -> &'static str {
        if self.dataset.is_labelled() { "accuracy" } else { "agreement" }
    }
}
