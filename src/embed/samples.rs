//! Images that passes calibrate on, out of a data set.

use crate::executor::TractExecutor;
use basisopt_ir::Graph;
use basisopt_passes::{ExecutorError, Inputs, Samples};
use basisopt_runtime::{Dataset, InputInfo, Preprocess};

/// Images that are calibrated on where nothing is said.
pub const SAMPLES: usize = 1000;

/// Bytes of activations that calibration keeps at most.
const MAX_MEMORY: u64 = 4 << 30;

/// Memory for activations: a quarter of the machine's, and no more than 4 GiB.
pub fn calibration_memory() -> usize {
    let machine = basisopt_runtime::total_memory().unwrap_or(MAX_MEMORY);
    usize::try_from((machine / 4).min(MAX_MEMORY)).unwrap_or(usize::MAX)
}

/// The images of a data set as inputs of a network.
#[derive(Debug)]
pub struct DataSamples {
    dataset: Dataset,
    preprocess: Preprocess,
    input: InputInfo,
    n_batches: usize,
}

impl DataSamples {
    /// One image per batch, unless the network fixes another size: small batches stay in the cache, and
    /// many of them keep all cores busy.
    ///
    /// # Errors
    /// If the network does not take one batch of images, or the data do not fit it.
    pub fn new(
        dataset: Dataset,
        preprocess: Preprocess,
        graph: &Graph,
        executor: &TractExecutor,
    ) -> Result<Self, ExecutorError> {
        let input = executor.image_input(graph)?;
        let size = input.batch().unwrap_or(1).max(1);
        // What does not fill a batch would count some images twice.
        let n_batches = if dataset.len() >= size { dataset.len() / size } else { 1 };
        let samples = Self { dataset, preprocess, input, n_batches };
        // A slip in the settings shows at the first image.
        let first = samples.batches(0).next().transpose().map(|_| ());
        first.map(|()| samples)
    }

    /// Number of images.
    pub fn n_images(&self) -> usize {
        (self.n_batches * self.batch_size()).min(self.dataset.len())
    }
}

impl Samples for DataSamples {
    fn n_batches(&self) -> usize {
        self.n_batches
    }

    fn batch_size(&self) -> usize {
        self.input.batch().unwrap_or(1)
    }

    fn batches<'a>(&'a self, first: usize) -> Box<dyn Iterator<Item = Result<Inputs, ExecutorError>> + 'a> {
        let words = |e: basisopt_runtime::RuntimeError| ExecutorError(e.to_string());
        match self.dataset.batches_from(&self.preprocess, &self.input, first) {
            Err(e) => Box::new(std::iter::once(Err(words(e)))),
            Ok(batches) => {
                let inputs = move |b: Result<basisopt_runtime::Batch, _>| Ok(vec![b.map_err(words)?.inputs]);
                Box::new(batches.take(self.n_batches.saturating_sub(first)).map(inputs))
            }
        }
    }

    fn describe(&self) -> String {
        format!("{} images of {}", self.n_images(), self.dataset.path().display())
    }
}
