//! What a network puts out for a whole data set, kept, so that any number of versions can be held against it.

use crate::data::{Dataset, Preprocess};
use crate::eval::{Scores, image_input};
use crate::scores::{rank_of, top1};
use crate::{Program, RuntimeError};
use basisopt_ir::Tensor;
use rayon::prelude::*;
use std::path::PathBuf;

/// Outputs are kept up to so many bytes; of a data set with more, the first images are used.
const MAX_BYTES: usize = 1 << 29;

/// The outputs of a network for the images of a data set.
#[derive(Clone, Debug)]
pub struct Outputs {
    model: String,
    /// What the images and their labels came from.
    data: PathBuf,
    names: Vec<String>,
    /// One list of outputs per batch.
    batches: Vec<Vec<Tensor>>,
    /// Images that are real, per batch.
    n_valid: Vec<usize>,
    labels: Option<Vec<i64>>,
    label_offset: i64,
    /// False if there was no room for all images, or `keep_going` ended it.
    pub is_complete: bool,
}

impl Outputs {
    /// Runs a network over a data set, on all threads of rayon's pool, each image on one of them.
    ///
    /// # Errors
    /// [`RuntimeError::Model`] if the network takes several inputs, and any error of reading or running.
    pub fn of(
        program: &Program,
        dataset: &Dataset,
        preprocess: &Preprocess,
        progress: &mut dyn FnMut(usize),
        keep_going: &dyn Fn() -> bool,
    ) -> Result<Self, RuntimeError> {
        let input = image_input(program.name(), program.inputs())?.clone();
        let mut outputs = Self {
            model: program.name().to_owned(),
            data: dataset.path().to_owned(),
            names: program.outputs().to_vec(),
            batches: Vec::new(),
            n_valid: Vec::new(),
            labels: dataset.is_labelled().then(Vec::new),
            label_offset: preprocess.label_offset,
            is_complete: true,
        };
        let window = 4 * rayon::current_num_threads();
        let mut batches = dataset.batches(preprocess, &input)?;
        let mut n_bytes = 0;
        loop {
            let next: Vec<_> = batches.by_ref().take(window).collect::<Result<_, _>>()?;
            if next.is_empty() {
                return Ok(outputs);
            }
            if n_bytes > MAX_BYTES || !keep_going() {
                outputs.is_complete = false;
                return Ok(outputs);
            }
            let run = |batch: &crate::Batch| program.run(std::slice::from_ref(&batch.inputs));
            let found: Vec<Result<Vec<Tensor>, _>> = next.par_iter().map(run).collect();
            for (batch, found) in next.into_iter().zip(found) {
                let found = found?;
                n_bytes += found.iter().map(|t| t.dtype().n_bytes(t.len()).unwrap_or(0)).sum::<usize>();
                outputs.batches.push(found);
                outputs.n_valid.push(batch.n_valid);
                match (&mut outputs.labels, batch.labels) {
                    (Some(all), Some(more)) => all.extend(more),
                    (labels, _) => *labels = None,
                }
            }
            progress(outputs.n_images());
        }
    }

    /// Number of images.
    pub fn n_images(&self) -> usize {
        self.n_valid.iter().sum()
    }

    /// The class of every image; `None` at all if no output looks like class scores, `None` for an image
    /// whose scores are not numbers.
    pub fn classes(&self) -> Option<Vec<Option<usize>>> {
        let mut classes = Vec::new();
        self.each_row(|row| classes.push(top1(row)))?;
        Some(classes)
    }

    /// Images whose own class comes first, one by one; `None` without labels or classes.
    ///
    /// # Errors
    /// [`RuntimeError::Data`] if a label is no class of the network.
    pub fn hits(&self) -> Result<Option<Vec<bool>>, RuntimeError> {
        let Some(labels) = &self.labels else { return Ok(None) };
        let (mut hits, mut wrong) = (Vec::new(), None);
        let found = self.each_row(|row| {
            let label = labels.get(hits.len()).copied().unwrap_or(-1);
            let class = label.checked_add(self.label_offset).and_then(|c| usize::try_from(c).ok());
            if class.is_none_or(|c| c >= row.len()) && wrong.is_none() {
                wrong = Some((label, row.len()));
            }
            hits.push(class.and_then(|c| rank_of(row, c)) == Some(0));
        });
        if let Some((label, n_classes)) = wrong {
            let reason = format!(
                "label {label} with label-offset {} is no class of the network, which has 0…{}",
                self.label_offset,
                n_classes - 1
            );
            return Err(RuntimeError::data(&self.data, reason));
        }
        Ok(found.map(|()| hits))
    }

    /// The squared error of another network's outputs, relative to the variance over images of each of the
    /// elements of these: 0 for the same outputs, about 1 for outputs that say nothing about the image, about 2
    /// for those of other images. The mean over outputs of floating point.
    pub fn error(&self, other: &Self) -> Option<f64> {
        let n_outputs = self.batches.first()?.len();
        let of = |k: usize| -> Option<f64> {
            let read = |o: &Self| -> Option<Vec<Vec<f64>>> {
                o.batches.iter().map(|b| b.get(k).filter(|t| t.dtype().is_float())?.to_f64s().ok()).collect()
            };
            let (a, b) = (read(self)?, read(other)?);
            let n = a.len().min(b.len());
            let size = a.first()?.len();
            if a.iter().chain(&b).any(|v| v.len() != size) {
                return None;
            }
            let (mut error, mut spread) = (0.0, 0.0);
            for j in 0..size {
                let mean = a[..n].iter().map(|v| v[j]).sum::<f64>() / n as f64;
                for (a, b) in a.iter().zip(&b) {
                    error += (a[j] - b[j]) * (a[j] - b[j]);
                    spread += (a[j] - mean) * (a[j] - mean);
                }
            }
            (spread > 0.0).then_some(error / spread).filter(|e| e.is_finite())
        };
        let errors: Vec<f64> = (0..n_outputs).filter_map(of).collect();
        (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64)
    }

    /// Shows the scores of every image; `None` if there are none.
    fn each_row(&self, mut see: impl FnMut(&[f64])) -> Option<()> {
        for (outputs, &n_valid) in self.batches.iter().zip(&self.n_valid) {
            let scores = Scores::find(&self.model, &self.names, outputs, n_valid, None).ok()?;
            scores.rows().for_each(&mut see);
        }
        (!self.batches.is_empty()).then_some(())
    }
}
