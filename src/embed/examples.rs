//! A data set as examples to train on.

use crate::error::EmbedError;
use crate::material::class_of;
use crate::settings::Settings;
use basisopt_runtime::{Batches, Dataset, InputInfo, Preprocess};
use basisopt_train::examples::{Examples, ImageShape};
use std::sync::{Mutex, PoisonError};

/// Data sets of up to so many bytes are kept in memory as the network takes them.
const MAX_CACHE: usize = 256 << 20;

/// A data set as examples for one network.
pub struct DatasetExamples<'a> {
    dataset: &'a Dataset,
    preprocess: &'a Preprocess,
    input: InputInfo,
    shape: ImageShape,
    blank: Vec<f32>,
    labels: Vec<Option<usize>>,
    /// All images, if they are few or cannot be read in any order.
    cache: Option<Vec<f32>>,
    readers: Mutex<Vec<Batches<'a>>>,
}

impl std::fmt::Debug for DatasetExamples<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatasetExamples").field("dataset", &self.dataset).finish_non_exhaustive()
    }
}

impl<'a> DatasetExamples<'a> {
    /// Looks at every image once where that is cheap or needed: for labels, and to keep small sets in memory.
    ///
    /// # Errors
    /// If the images do not fit the network.
    pub fn new(
        dataset: &'a Dataset,
        preprocess: &'a Preprocess,
        input: &InputInfo,
        n_classes: Option<usize>,
        settings: &Settings<'_>,
    ) -> Result<Self, EmbedError> {
        let wrong =
            |message: String| EmbedError::Images { file: dataset.path().display().to_string(), message };
        settings.host.stage("reading images");
        // Wherever the network fixes another batch: images come one by one.
        let mut input = input.clone();
        if let Some(first) = input.shape.first_mut() {
            *first = 1;
        }
        let &[_, a, b, c] = &input.shape[..] else {
            return Err(wrong(format!("input {:?} of shape {:?} takes no images", input.name, input.shape)));
        };
        let channels_last = dataset.is_channels_last(preprocess, &input)?;
        let shape = match channels_last {
            true => ImageShape { n_channels: c, height: a, width: b, channels_last },
            false => ImageShape { n_channels: a, height: b, width: c, channels_last },
        };
        let n = dataset.len();
        let is_small = shape.len() * n * size_of::<f32>() <= MAX_CACHE;
        let mut reader = dataset.batches(preprocess, &input)?;
        let mut labels = Vec::with_capacity(n);
        let mut cache = (is_small || dataset.is_compressed()).then(|| Vec::with_capacity(shape.len() * n));
        let mut image = Vec::with_capacity(shape.len());
        let has_labels = dataset.is_labelled();
        for i in 0..n {
            image.clear();
            let label = match (&cache, dataset.label(i)) {
                (None, Some(label)) => Some(label),
                (None, None) if !has_labels => None,
                _ => reader.read(i, &mut image)?,
            };
            if let Some(cache) = &mut cache {
                cache.extend_from_slice(&image);
            }
            labels.push(match label {
                None => None,
                Some(label) => {
                    Some(class_of(label, i, dataset, preprocess.label_offset, n_classes).map_err(wrong)?)
                }
            });
            if (settings.stop)() {
                return Err(EmbedError::Interrupted);
            }
            settings.host.progress(i, n, "reading images");
        }
        Ok(Self {
            dataset,
            preprocess,
            input,
            shape,
            blank: preprocess.blank(shape.n_channels),
            labels,
            cache,
            readers: Mutex::new(Vec::new()),
        })
    }
}

impl Examples for DatasetExamples<'_> {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn shape(&self) -> ImageShape {
        self.shape
    }

    fn read(&self, index: usize, into: &mut [f32]) -> Result<(), String> {
        if let Some(cache) = &self.cache {
            let image = cache.get(index * into.len()..(index + 1) * into.len());
            into.copy_from_slice(image.ok_or("an image that is not there")?);
            return Ok(());
        }
        let reader = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut reader = match reader {
            Some(reader) => reader,
            None => self.dataset.batches(self.preprocess, &self.input).map_err(|e| e.to_string())?,
        };
        let mut values = Vec::with_capacity(into.len());
        reader.read(index, &mut values).map_err(|e| e.to_string())?;
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        if values.len() != into.len() {
            return Err(format!("image {index} has {} values, not {}", values.len(), into.len()));
        }
        into.copy_from_slice(&values);
        Ok(())
    }

    fn label(&self, index: usize) -> Option<usize> {
        self.labels.get(index).copied().flatten()
    }

    fn blank(&self) -> Vec<f32> {
        self.blank.clone()
    }
}
