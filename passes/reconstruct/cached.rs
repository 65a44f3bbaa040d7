//! Activations at the border between two blocks, of the original and of the compressed network.

use basisopt_ir::Graph;
use basisopt_train::examples::{Examples, ImageShape, spread};
use basisopt_train::task::TrainError;
use std::ops::Range;

/// What the blocks before gave, image by image.
pub(super) struct Cached {
    shape: ImageShape,
    compressed: Vec<Vec<f32>>,
    /// The same in the original, if it differs.
    original: Option<Vec<Vec<f32>>>,
    /// What the next block of the original makes of it.
    targets: Vec<Vec<f32>>,
}

impl Cached {
    /// So many images from all over the set, as they are.
    pub fn some(examples: &dyn Examples, n: usize) -> Result<Self, TrainError> {
        let shape = examples.shape();
        let mut compressed = Vec::with_capacity(n);
        for i in spread(examples, n) {
            let mut image = vec![0.0; shape.len()];
            examples.read(i, &mut image).map_err(TrainError::Data)?;
            compressed.push(image);
        }
        Ok(Self { shape, compressed, original: None, targets: vec![] })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.compressed.len()
    }

    /// What the next block of the original is given.
    pub fn original(&self) -> Rows<'_> {
        Rows { shape: self.shape, rows: self.original.as_ref().unwrap_or(&self.compressed) }
    }

    /// What the next compressed block is given.
    pub fn compressed(&self) -> Rows<'_> {
        Rows { shape: self.shape, rows: &self.compressed }
    }

    /// Notes what the original's next block gives.
    pub fn set_targets(&mut self, targets: Vec<Vec<f32>>) {
        self.targets = targets;
    }

    /// Goes on to the next block, which is given these by the compressed network.
    pub fn advance(&mut self, given: Vec<Vec<f32>>, block: &Graph, end: &str) {
        let shape = block.find_value(end).and_then(|v| block.value(v).ty.static_shape());
        let len = given.first().map_or(0, Vec::len);
        self.shape = match shape.as_deref() {
            Some(&[_, n_channels, height, width]) => {
                ImageShape { n_channels, height, width, channels_last: false }
            }
            _ => ImageShape { n_channels: len, height: 1, width: 1, channels_last: false },
        };
        self.compressed = given;
        self.original = Some(std::mem::take(&mut self.targets));
    }

    /// Variance of the targets, all elements taken together.
    pub fn target_variance(&self) -> f64 {
        let values = || self.targets.iter().flatten().map(|&v| f64::from(v));
        let n = values().count().max(1) as f64;
        let mean = values().sum::<f64>() / n;
        values().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n
    }
}

/// Rows of numbers as examples.
pub(super) struct Rows<'a> {
    shape: ImageShape,
    rows: &'a [Vec<f32>],
}

/// Some of the images, with targets.
pub(super) struct Part<'a> {
    inputs: Rows<'a>,
    targets: &'a [Vec<f32>],
}

impl<'a> Part<'a> {
    /// The images of these indices.
    pub fn new(cached: &'a Cached, range: Range<usize>) -> Self {
        let rows = cached.compressed.get(range.clone()).unwrap_or_default();
        let inputs = Rows { shape: cached.shape, rows };
        Self { inputs, targets: cached.targets.get(range).unwrap_or_default() }
    }
}

impl Examples for Rows<'_> {
    fn len(&self) -> usize {
        self.rows.len()
    }
    fn shape(&self) -> ImageShape {
        self.shape
    }
    fn read(&self, index: usize, into: &mut [f32]) -> Result<(), String> {
        let row = self.rows.get(index).filter(|row| row.len() == into.len());
        into.copy_from_slice(row.ok_or("an activation of another size")?);
        Ok(())
    }
    fn label(&self, _: usize) -> Option<usize> {
        None
    }
    fn blank(&self) -> Vec<f32> {
        vec![0.0; self.shape.n_channels]
    }
}

impl Examples for Part<'_> {
    fn len(&self) -> usize {
        self.inputs.len()
    }
    fn shape(&self) -> ImageShape {
        self.inputs.shape()
    }
    fn read(&self, index: usize, into: &mut [f32]) -> Result<(), String> {
        self.inputs.read(index, into)
    }
    fn label(&self, _: usize) -> Option<usize> {
        None
    }
    fn blank(&self) -> Vec<f32> {
        self.inputs.blank()
    }
    fn target(&self, index: usize) -> Option<&[f32]> {
        self.targets.get(index).map(Vec::as_slice)
    }
}
