//! Images and other inputs that came from Python.

use crate::errors;
use crate::options::Options;
use basisopt_embed::EmbedError;
use basisopt_ir::{DType, Graph, Tensor, ValueId, ValueType};
use basisopt_passes::{ExecutorError, Inputs, Samples};
use basisopt_runtime::{Dataset, DatasetOptions, ModelConfig};
use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyDict;
use std::path::{Path, PathBuf};

/// Images, before anything is opened.
#[derive(Debug)]
pub(crate) enum Given {
    /// What lies on disk, with labels in a file of their own if there is one.
    Path { path: PathBuf, labels: Option<PathBuf> },
    /// What was collected from Python.
    Memory { name: String, samples: Tensor, labels: Option<Vec<i64>> },
}

impl Given {
    /// The images under this key, as `basisopt/_data.py` made them.
    ///
    /// # Errors
    /// If they are something else.
    pub(crate) fn from_options(options: &Options<'_, '_>, key: &str) -> PyResult<Option<Self>> {
        let Some(dict) = options.get::<Bound<'_, PyDict>>(key)? else { return Ok(None) };
        let of = Options(&dict);
        if let Some(path) = of.path("path")? {
            return Ok(Some(Self::Path { path, labels: of.path("labels")? }));
        }
        let array = of.get::<Array>("array")?;
        let Some(array) = array else { return Ok(None) };
        let name = of.get_or("name", key.to_owned())?;
        let samples = tensor(dict.py(), &name, array)?;
        Ok(Some(Self::Memory { name, samples, labels: of.get("labels")? }))
    }

    /// Opens them.
    ///
    /// # Errors
    /// If they cannot be read, or are no images.
    pub(crate) fn open(self) -> Result<Dataset, EmbedError> {
        Ok(match self {
            Self::Path { path, labels } => {
                Dataset::open(path, &DatasetOptions { labels, ..DatasetOptions::default() })?
            }
            Self::Memory { name, samples, labels } => Dataset::in_memory(&name, &samples, labels)?,
        })
    }
}

/// Element type, shape, and values in C order, little-endian.
type Array = (String, Vec<usize>, PyBackedBytes);

/// A tensor of an array, whose bytes are not copied.
fn tensor(py: Python<'_>, name: &str, (dtype, shape, bytes): Array) -> PyResult<Tensor> {
    let unknown = || errors::data(py, &format!("{name}: arrays of type {dtype} are no inputs of a network"));
    let dtype = DType::from_name(&dtype).ok_or_else(unknown)?;
    let made = Tensor::from_bytes(dtype, shape, Bytes::from_owner(bytes));
    made.map_err(|e| errors::data(py, &format!("{name}: {e}")))
}

/// The settings of a model's images: what was said in the call, over a settings file.
///
/// # Errors
/// If the file cannot be read, or the settings make no sense.
pub(crate) fn settings(
    said: ModelConfig,
    file: Option<&Path>,
    beside: Option<&Path>,
) -> Result<ModelConfig, EmbedError> {
    let stored = match (file, beside) {
        (Some(file), _) => ModelConfig::load(file)?,
        (None, Some(model)) => ModelConfig::beside(model)?.unwrap_or_default(),
        (None, None) => ModelConfig::default(),
    };
    let settings = ModelConfig {
        data: stored.data,
        calibration: stored.calibration,
        labels: stored.labels,
        mean: said.mean.or(stored.mean),
        std: said.std.or(stored.std),
        scale: said.scale.or(stored.scale),
        layout: said.layout.or(stored.layout),
        channels: said.channels.or(stored.channels),
        resize: said.resize.or(stored.resize),
        crop: said.crop.or(stored.crop),
        label_offset: said.label_offset.or(stored.label_offset),
    };
    settings.preprocess().validate()?;
    Ok(settings)
}

/// What a pipeline calibrates on.
#[derive(Debug)]
pub(crate) enum Calibrate {
    /// Images, for the one input of a network.
    Images(Given),
    /// Arrays for each of its inputs.
    Inputs(Vec<Inputs>),
}

impl Calibrate {
    /// What is under this key.
    ///
    /// # Errors
    /// As [`Given::from_options`].
    pub(crate) fn from_options(options: &Options<'_, '_>, key: &str) -> PyResult<Option<Self>> {
        let Some(dict) = options.get::<Bound<'_, PyDict>>(key)? else { return Ok(None) };
        let Some(batches) = Options(&dict).get::<Vec<Vec<Array>>>("inputs")? else {
            return Ok(Given::from_options(options, key)?.map(Self::Images));
        };
        let batch = |arrays: Vec<Array>| arrays.into_iter().map(|a| tensor(dict.py(), key, a)).collect();
        Ok(Some(Self::Inputs(batches.into_iter().map(batch).collect::<PyResult<_>>()?)))
    }
}

/// Arrays for every input of a network, in the order of its inputs.
#[derive(Debug)]
pub(crate) struct InputSamples {
    batches: Vec<Inputs>,
    size: usize,
}

impl InputSamples {
    /// Holds the arrays against what the network takes.
    ///
    /// # Errors
    /// [`EmbedError::Images`], naming the input.
    pub(crate) fn new(file: &str, graph: &Graph, batches: Vec<Inputs>) -> Result<Self, EmbedError> {
        let wrong = |message: String| EmbedError::Images { file: file.to_owned(), message };
        let Some(first) = batches.first() else {
            return Err(wrong("there are no inputs to calibrate on".into()));
        };
        for (i, batch) in batches.iter().enumerate() {
            for ((&node, tensor), like) in graph.inputs().iter().zip(batch).zip(first) {
                let value = graph.value(ValueId::of(node));
                let found = || format!("{}{:?}", tensor.dtype(), tensor.shape());
                let is_other = value.ty.dtype.is_some_and(|t| t != tensor.dtype())
                    || value.ty.shape.as_ref().is_some_and(|dims| {
                        dims.len() != tensor.shape().len()
                            || dims
                                .iter()
                                .zip(tensor.shape())
                                .any(|(d, n)| d.known().is_some_and(|d| d != *n))
                    });
                if is_other {
                    let name = &value.name;
                    let text = format!(
                        "inputs {i}: {name:?} is {}, the network takes {}",
                        found(),
                        taken(&value.ty)
                    );
                    return Err(wrong(text));
                }
                if like.shape() != tensor.shape() {
                    let (name, other) = (&value.name, like.shape());
                    let text = format!("inputs {i}: {name:?} is {}, but of shape {other:?} before", found());
                    return Err(wrong(text));
                }
            }
        }
        let size = first.first().and_then(|t| t.shape().first().copied()).unwrap_or(1);
        Ok(Self { batches, size })
    }
}

/// Type and shape of an input, as far as they are known: `f32[N,3,32,32]`.
fn taken(ty: &ValueType) -> String {
    let dtype = ty.dtype.map_or("?", DType::name);
    match &ty.shape {
        None => dtype.to_owned(),
        Some(dims) => {
            let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
            format!("{dtype}[{}]", dims.join(","))
        }
    }
}

impl Samples for InputSamples {
    fn n_batches(&self) -> usize {
        self.batches.len()
    }

    fn batch_size(&self) -> usize {
        self.size
    }

    fn batches<'a>(&'a self, first: usize) -> Box<dyn Iterator<Item = Result<Inputs, ExecutorError>> + 'a> {
        Box::new(self.batches.iter().skip(first).cloned().map(Ok))
    }

    fn describe(&self) -> String {
        format!("{} inputs of the caller's", self.batches.len() * self.size)
    }
}
