//! The images of a run, in parts that share none: to calibrate on, to choose by, and to report on.

use crate::data::DataArgs;
use crate::executor::TractExecutor;
use crate::progress::interrupted;
use crate::samples::SAMPLES;
use anyhow::Context as _;
use basisopt_ir::Graph;
use basisopt_passes::{ExecutorError, Judge};
use basisopt_runtime::{Dataset, DatasetOptions, Outputs, Preprocess};
use std::path::Path;

/// Images that are chosen by, and reported on, at most.
pub(crate) const JUDGED: usize = 1000;
pub(crate) const HELD_OUT: usize = 2000;

/// Images that versions are chosen by in training, at most.
const VALIDATED: usize = 5000;

/// What the images are for, beside calibration and the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Nothing.
    Report,
    /// Choosing by accuracy.
    Judge,
    /// Training, and choosing.
    Train,
}

/// The parts.
#[derive(Debug, Default)]
pub(crate) struct Material {
    /// To learn from; labels play no part.
    pub calibration: Option<Dataset>,
    /// To choose by.
    pub judged: Option<Dataset>,
    /// To train on: everything that is neither chosen by nor reported on.
    pub training: Option<Dataset>,
    /// To report on: nothing is learnt from or chosen by these.
    pub held_out: Option<Dataset>,
    pub preprocess: Preprocess,
}

impl Material {
    /// Opens the data and shares them out: `--samples` images at random for calibration (all other parts
    /// too, if the settings name images for that), some to choose by if that is needed, the rest to report on.
    ///
    /// # Errors
    /// As [`DataArgs::open`].
    pub(crate) fn open(
        args: &DataArgs,
        model: &Path,
        calibration: Option<&Path>,
        use_: Use,
        held_out: usize,
    ) -> anyhow::Result<Self> {
        let settings = args.settings(model)?;
        let samples = args.samples.map_or(SAMPLES, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let seed = args.seed.unwrap_or(0);
        // All of the data are shared out here, so none are left out by the flags of other commands.
        let all = DataArgs { samples: None, seed: None, ..args.clone() };
        let mut material = Self { preprocess: settings.preprocess(), ..Self::default() };
        let own = calibration.map(Path::to_owned).or_else(|| settings.calibration.clone());
        if let Some(path) = &own {
            let open = Dataset::open(path, &DatasetOptions::default());
            let dataset = open.context("cannot read the images to calibrate on")?;
            material.calibration = Some(dataset.split(samples, seed).0);
        }
        let Some((dataset, preprocess)) = all.open(model)? else { return Ok(material) };
        material.preprocess = preprocess;
        let mut rest = dataset;
        if use_ == Use::Train {
            // A tenth each to choose by and to report on; what is calibrated on is trained on as well.
            let tenth = (rest.len() / 10).max(1);
            let (judged, others) = rest.split(tenth.min(VALIDATED), seed.wrapping_add(1));
            let (reported, others) = others.split(tenth.min(held_out), seed.wrapping_add(2));
            anyhow::ensure!(!others.is_empty(), "there are too few images to train on");
            if material.calibration.is_none() {
                material.calibration = Some(others.clone().split(samples, seed).0);
            }
            material.judged = Some(judged);
            material.held_out = Some(reported);
            material.training = Some(others);
            return Ok(material);
        }
        if material.calibration.is_none() {
            // At least as many images are reported on, however few there are.
            let n = samples.min(rest.len().div_ceil(2));
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

/// Judges versions of a network by images that calibration does not see.
pub(crate) struct ImageJudge {
    executor: TractExecutor,
    dataset: Dataset,
    preprocess: Preprocess,
    /// The classes that the first version scored, the original, gives.
    original: Option<Vec<Option<usize>>>,
}

impl ImageJudge {
    pub(crate) fn new(executor: TractExecutor, dataset: Dataset, preprocess: Preprocess) -> Self {
        Self { executor, dataset, preprocess, original: None }
    }
}

impl Judge for ImageJudge {
    fn score(&mut self, graph: &Graph) -> Result<f64, ExecutorError> {
        let words = |e: basisopt_runtime::RuntimeError| ExecutorError(e.to_string());
        let program = self.executor.program(graph)?;
        let keep_going = || !interrupted();
        let outputs = Outputs::of(&program, &self.dataset, &self.preprocess, &mut |_| {}, &keep_going);
        let outputs = outputs.map_err(words)?;
        let share = |hits: Vec<bool>| hits.iter().filter(|h| **h).count() as f64 / hits.len().max(1) as f64;
        if let Some(hits) = outputs.hits().map_err(words)? {
            return Ok(share(hits));
        }
        let no_classes = || ExecutorError("no output looks like class scores [N, C]".to_owned());
        let classes = outputs.classes().ok_or_else(no_classes)?;
        let original = self.original.get_or_insert_with(|| classes.clone());
        Ok(share(original.iter().zip(&classes).map(|(a, b)| a == b && a.is_some()).collect()))
    }

    fn n_samples(&self) -> usize {
        self.dataset.len()
    }

    fn measure(&self) -> &'static str {
        if self.dataset.is_labelled() { "accuracy" } else { "agreement" }
    }
}
