//! A model and what can be done to it, for the Python side of the package.

use crate::data::{Calibrate, Given, InputSamples, settings};
use crate::errors;
use crate::host::{CallHost, CallSession, Checkpoint, Stages, TrainingLog};
use crate::options::Options;
use crate::work::{Call, Shared, detached, run};
use basisopt_embed::material::HELD_OUT;
use basisopt_embed::samples::SAMPLES;
use basisopt_embed::{
    CompressOptions, DataSamples, EmbedError, Material, OptimizeOptions, Settings, Size, TractExecutor,
    TrainOn, Use, compress, optimize, parse,
};
use basisopt_onnx::OnnxError;
use basisopt_passes::Samples;
use basisopt_runtime::{Dataset, Engine, ModelConfig};
use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A model that was read. It never changes: work is done on copies, which share the weights.
#[pyclass(frozen, module = "basisopt._basisopt")]
pub(crate) struct Model {
    model: basisopt_onnx::Model,
    /// The file that it was read from.
    path: Option<PathBuf>,
}

/// What the network itself costs, and its layers.
#[derive(Serialize)]
struct Inspected<'a> {
    #[serde(flatten)]
    size: &'a Size,
    layers: Vec<InspectedLayer<'a>>,
}

#[derive(Serialize)]
struct InspectedLayer<'a> {
    name: &'a str,
    kind: &'static str,
    params: u64,
    macs: Option<u64>,
}

/// A report with what training said.
#[derive(Serialize)]
struct Reported<'a, T> {
    #[serde(flatten)]
    done: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    training: Option<&'a TrainingLog>,
    version: &'static str,
}

/// Name and type of an input, and its shape, as far as they are known.
type Input = (String, Option<&'static str>, Option<Vec<Option<usize>>>);

/// A report as JSON; the model as bytes, if it has no data files; if it has, the model itself.
type Outcome<'py> = (String, Option<Bound<'py, PyBytes>>, Option<Model>);

#[pymethods]
impl Model {
    /// Reads a file, whose data files may lie beside it.
    #[staticmethod]
    fn read(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let model = detached(py, || basisopt_onnx::Model::read(&path), errors::of_onnx)?;
        Ok(Self { model, path: Some(path) })
    }

    /// Reads a model in memory. `folder` is where its data files lie, if it has any.
    #[staticmethod]
    fn from_bytes(
        py: Python<'_>,
        bytes: PyBackedBytes,
        name: &str,
        folder: Option<PathBuf>,
    ) -> PyResult<Self> {
        let read = || basisopt_onnx::Model::from_bytes(name, Bytes::from_owner(bytes), folder.as_deref());
        Ok(Self { model: detached(py, read, errors::of_onnx)?, path: None })
    }

    /// Name, element type and shape of every input.
    fn inputs(&self) -> Vec<Input> {
        let graph = &self.model.graph;
        let input = |&node| {
            let value = graph.value(basisopt_ir::ValueId::of(node));
            let shape = value.ty.shape.as_ref().map(|dims| dims.iter().map(|d| d.known()).collect());
            (value.name.clone(), value.ty.dtype.map(|t| t.name()), shape)
        };
        graph.inputs().iter().map(input).collect()
    }

    /// What it costs and what its layers do, as JSON.
    fn inspect(&self, py: Python<'_>, options: &Bound<'_, PyDict>) -> PyResult<String> {
        let dims = Options(options).dims()?;
        let inspect = || -> Result<String, EmbedError> {
            basisopt_embed::optimize::check_dims(self.model.source().file(), &self.model.graph, &dims)?;
            let size = Size::of_source(&self.model, &dims);
            let layers = size.cost.layers.iter().map(|l| InspectedLayer {
                name: &l.label,
                kind: if l.is_conv { "convolution" } else { "linear" },
                params: l.params,
                macs: l.macs,
            });
            Ok(json(&Inspected { size: &size, layers: layers.collect() }))
        };
        detached(py, inspect, errors::of_embed)
    }

    /// The model as bytes. What its data files hold and nothing changed stays in them.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let (bytes, _) = detached(py, || self.model.to_executable(&self.model.graph), errors::of_onnx)?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Writes the model and its data files, whole or not at all.
    fn write(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        detached(py, || self.model.write(&path), errors::of_onnx)
    }

    /// Runs a pipeline over a copy.
    fn optimize<'py>(&self, py: Python<'py>, options: &Bound<'py, PyDict>) -> PyResult<Outcome<'py>> {
        let of = Options(options);
        let pipeline = parse(&of.get_or("pipeline", String::new())?).map_err(|e| errors::of_embed(py, &e))?;
        let (common, images) = (Common::from_options(&of)?, Images::from_options(&of, self)?);
        let unchecked = !of.get_or("check", true)?;
        let tolerance = of.get::<f64>("tolerance")?;
        if tolerance.is_some_and(|t| t.is_nan() || t < 0.0) {
            return Err(errors::usage(py, "tolerance: expected a number of at least 0, such as 1e-4"));
        }
        let calibrate = Calibrate::from_options(&of, "calibrate")?;
        let train = Given::from_options(&of, "train")?;
        let original = of.get::<Bound<'_, Self>>("original")?.map(|m| m.get().model.graph.clone());
        let mut model = self.model.clone();
        let call = common.call(&of, of.threads()?)?;
        let (model, done, log) = run(py, &call, move |shared| {
            let host = common.host(shared);
            let settings = common.settings(&host);
            let config = images.settings()?;
            let samples = match calibrate {
                Some(given) => Some(samples(given, &model, &config, &settings, images.n_samples)?),
                None => None,
            };
            let mut session = CallSession::new(shared.clone(), common.checkpoint.clone())?;
            let train = match train {
                Some(given) => Some(TrainOn {
                    dataset: given.open()?,
                    preprocess: config.preprocess(),
                    original: original.as_ref(),
                    session: &mut session,
                }),
                None => None,
            };
            let options = OptimizeOptions {
                settings,
                unchecked,
                tolerance,
                calibration: samples.as_deref(),
                train,
                observer: Some(&mut Stages(shared.clone())),
                ..OptimizeOptions::default()
            };
            let done = optimize(&mut model, &pipeline, options)?;
            Ok((model, done, session))
        })?;
        let report =
            Reported { done: &done.summary(), training: log.log(), version: env!("CARGO_PKG_VERSION") };
        finish(py, model, json(&report), of.path("output")?)
    }

    /// Runs the recipe over a copy.
    fn compress<'py>(&self, py: Python<'py>, options: &Bound<'py, PyDict>) -> PyResult<Outcome<'py>> {
        let of = Options(options);
        let recipe = of.recipe()?;
        // Slips before slow work.
        recipe.pipeline(true, true).map_err(|e| errors::of_embed(py, &e.into()))?;
        let (common, images) = (Common::from_options(&of)?, Images::from_options(&of, self)?);
        let (data, own) = (Given::from_options(&of, "data")?, Given::from_options(&of, "calibration")?);
        let untimed = !of.get_or("bench", false)?;
        let unmeasured = !of.get_or("measure", true)?;
        let mut model = self.model.clone();
        let call = common.call(&of, None)?;
        let (model, done, log) = run(py, &call, move |shared| {
            let host = common.host(shared);
            let settings = common.settings(&host);
            let config = images.settings()?;
            // Other data bring their own images to calibrate on.
            let (data, stored) = match (data, &config.data) {
                (Some(given), _) => (Some(given.open()?), None),
                (None, Some(path)) => {
                    let given = Given::Path { path: path.clone(), labels: config.labels.clone() };
                    (Some(given.open()?), config.calibration.clone())
                }
                (None, None) => (None, config.calibration.clone()),
            };
            let own = own.or(stored.map(|path| Given::Path { path, labels: None }));
            let own = own.map(Given::open).transpose()?;
            let n = (images.n_samples, HELD_OUT);
            let material =
                Material::share(data, own, config.preprocess(), n, settings.seed, Use::of(&recipe))?;
            let mut session = CallSession::new(shared.clone(), common.checkpoint.clone())?;
            let options = CompressOptions {
                settings,
                material,
                untimed,
                unmeasured,
                observer: Some(&mut Stages(shared.clone())),
                session: Some(&mut session),
            };
            let done = compress(&mut model, &recipe, options)?;
            Ok((model, done, session))
        })?;
        let report = Reported { done: &done, training: log.log(), version: env!("CARGO_PKG_VERSION") };
        finish(py, model, json(&report), of.path("output")?)
    }
}

impl Model {
    /// The network as it was read.
    pub(crate) fn graph(&self) -> &basisopt_ir::Graph {
        &self.model.graph
    }
}

/// What all work has in common.
struct Common {
    seed: u64,
    dims: Vec<(String, usize)>,
    batch: Option<usize>,
    engine: Engine,
    /// For networks that are timed.
    threads: usize,
    /// A file of ranks that is none.
    given: Option<(String, String)>,
    checkpoint: Option<Checkpoint>,
}

impl Common {
    fn from_options(of: &Options<'_, '_>) -> PyResult<Self> {
        let resume = of.get_or("resume", false)?;
        let checkpoint = of.path("checkpoint")?.map(|path| Checkpoint { path, resume });
        Ok(Self {
            seed: of.get_or("seed", 0)?,
            dims: of.dims()?,
            batch: of.count("batch")?,
            engine: of.engine()?,
            threads: of.threads()?.unwrap_or(1),
            given: of.get::<String>("ranks")?.zip(of.get::<String>("ranks_text")?),
            checkpoint,
        })
    }

    fn call<'py>(&self, of: &Options<'_, 'py>, threads: Option<usize>) -> PyResult<Call<'py>> {
        Ok(Call { progress: of.get("progress")?, threads, saves: self.checkpoint.is_some() })
    }

    fn host(&self, shared: &Arc<Shared>) -> CallHost {
        CallHost { shared: shared.clone(), given: self.given.clone() }
    }

    fn settings<'a>(&self, host: &'a CallHost) -> Settings<'a> {
        let shared = host.shared.clone();
        Settings {
            seed: self.seed,
            dims: self.dims.clone(),
            batch: self.batch,
            engine: self.engine,
            threads: self.threads,
            host,
            stop: Arc::new(move || shared.is_stopped()),
        }
    }
}

/// How images become inputs, and how many are calibrated on.
struct Images {
    said: ModelConfig,
    file: Option<PathBuf>,
    /// The model beside which there may be settings.
    beside: Option<PathBuf>,
    n_samples: usize,
}

impl Images {
    fn from_options(of: &Options<'_, '_>, model: &Model) -> PyResult<Self> {
        let beside = if of.get_or("beside", true)? { model.path.clone() } else { None };
        let n_samples = of.count("samples")?.unwrap_or(SAMPLES);
        Ok(Self { said: of.images()?, file: of.path("config")?, beside, n_samples })
    }

    fn settings(&self) -> Result<ModelConfig, EmbedError> {
        settings(self.said.clone(), self.file.as_deref(), self.beside.as_deref())
    }
}

/// What a pipeline calibrates on, ready to be read.
fn samples(
    given: Calibrate,
    model: &basisopt_onnx::Model,
    config: &ModelConfig,
    settings: &Settings<'_>,
    n: usize,
) -> Result<Box<dyn Samples>, EmbedError> {
    let file = model.source().file();
    let dataset: Dataset = match given {
        Calibrate::Inputs(batches) => return Ok(Box::new(InputSamples::new(file, &model.graph, batches)?)),
        Calibrate::Images(given) => given.open()?,
    };
    let executor = TractExecutor::with_settings(model.source().clone(), settings);
    let (dataset, _) = dataset.split(n, settings.seed);
    let made = DataSamples::new(dataset, config.preprocess(), &model.graph, &executor);
    let made = made.map_err(|e| EmbedError::Images {
        file: file.to_owned(),
        message: format!("the images to calibrate on: {e}"),
    })?;
    Ok(Box::new(made))
}

/// Writes the result where it is to be written, and hands it over. Bytes are copied: what was read from a file is a map of
/// it, which must not outlive the call.
fn finish<'py>(
    py: Python<'py>,
    model: basisopt_onnx::Model,
    report: String,
    output: Option<PathBuf>,
) -> PyResult<Outcome<'py>> {
    if let Some(output) = output {
        detached(py, || model.write(&output), errors::of_onnx)?;
    }
    let encoded = detached(py, || model.to_bytes(), errors::of_onnx)?;
    if !encoded.data_files().is_empty() {
        return Ok((report, None, Some(Model { model, path: None })));
    }
    let bytes = PyBytes::new_with(py, encoded.len(), |buffer| {
        encoded.write_to(buffer)?;
        Ok(())
    })?;
    Ok((report, Some(bytes), None))
}

/// Writes a model in memory, whole or not at all.
#[pyfunction]
pub(crate) fn write(py: Python<'_>, bytes: PyBackedBytes, path: PathBuf) -> PyResult<()> {
    let write = || -> Result<(), OnnxError> {
        let name = path.display().to_string();
        basisopt_onnx::Model::from_bytes(name, Bytes::from_owner(bytes), None::<&Path>)?.write(&path)
    };
    detached(py, write, errors::of_onnx)
}

/// JSON of a report. Numbers that are none are `null`.
pub(crate) fn json(report: &impl Serialize) -> String {
    // Reports have string keys only, and nothing else can fail.
    serde_json::to_string(report).unwrap_or_default()
}
