//! The numerical check of the pass manager, by tract.

use crate::settings::{Settings, Stop};
use basisopt_ir::{Graph, Tensor};
use basisopt_onnx::Source;
use basisopt_passes::{Executor, ExecutorError};
use basisopt_runtime::{
    BenchOptions, Dataset, ENGINE, Engine, InputInfo, LoadOptions, Machine, Preprocess, Program,
    RuntimeError, Session, bench, random_inputs,
};
use bytes::Bytes;
use std::sync::Arc;

/// Rounds in which versions of a network are timed, and seconds for each of them, at least.
const ROUNDS: usize = 7;
const SECONDS: f64 = 0.03;

/// The board and its processor, how tract runs on it, and this program's version, whose kernels are part of it: in words
/// that are the same in every process on the same device.
pub fn device(engine: Engine, threads: usize) -> String {
    let machine = Machine::here();
    let parts: Vec<&str> = [&machine.board, &machine.cpu].into_iter().flatten().map(String::as_str).collect();
    let engine = if engine == Engine::Stock { "stock" } else { "fused" };
    format!(
        "{}, {} {}; {ENGINE} {engine}, {}; basisopt {}",
        parts.join(", "),
        machine.architecture,
        machine.instructions.join(" "),
        if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") },
        env!("CARGO_PKG_VERSION")
    )
}

/// Images that are checked at once, if the network has no batch size of its own.
const BATCH: usize = 8;

/// Runs versions of one model's graph through tract: each is written as ONNX, against the file that
/// it came from, and read again, so that what is checked is what would be shipped.
///
/// tract does not optimise what it runs here, but it still simplifies: it folds BatchNormalization
/// into convolutions itself, for one.
pub struct TractExecutor {
    source: Source,
    batch: Option<usize>,
    dims: Vec<(String, usize)>,
    data: Option<(Dataset, Preprocess)>,
    /// The network that was last loaded to see what inputs it takes. It is nearly always the next
    /// one to run.
    loaded: Option<(Bytes, Session)>,
    /// How networks run that are timed.
    timing: (Engine, usize),
    stop: Stop,
}

impl std::fmt::Debug for TractExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TractExecutor")
            .field("source", &self.source)
            .field("batch", &self.batch)
            .field("dims", &self.dims)
            .field("timing", &self.timing)
            .finish_non_exhaustive()
    }
}

impl TractExecutor {
    /// An executor for the graphs of this file. It makes seeded random inputs.
    pub fn new(source: Source) -> Self {
        Self {
            source,
            batch: None,
            dims: Vec::new(),
            data: None,
            loaded: None,
            timing: (Engine::Fused, 1),
            stop: Arc::new(|| false),
        }
    }

    /// An executor for the graphs of this file, with sizes, threads and interruption as the settings have them.
    pub fn with_settings(source: Source, settings: &Settings<'_>) -> Self {
        // Versions of a network are timed fused, unless that is not wanted: it is nearly always faster.
        let engine = if settings.engine == Engine::Stock { Engine::Stock } else { Engine::Fused };
        let executor = Self::new(source).with_dims(settings.dims.clone());
        executor.with_timing(engine, settings.threads).with_stop(settings.stop.clone())
    }

    /// What is asked whether to stop, while networks are timed.
    #[must_use]
    pub fn with_stop(mut self, stop: Stop) -> Self {
        self.stop = stop;
        self
    }

    /// Sizes for unknown dimensions of the inputs, as in [`LoadOptions::dims`]. An open batch is 1 if
    /// it is not pinned.
    #[must_use]
    pub fn with_dims(mut self, dims: Vec<(String, usize)>) -> Self {
        self.dims = dims;
        self
    }

    /// Takes the first images of a data set as inputs, eight if the network's batch is open.
    #[must_use]
    pub fn with_data(mut self, dataset: Dataset, preprocess: Preprocess) -> Self {
        self.batch = Some(BATCH.min(dataset.len()));
        self.data = Some((dataset, preprocess));
        self
    }

    /// The engine and the number of threads that [`Executor::seconds`] times networks with; by default fused, and one.
    #[must_use]
    pub fn with_timing(mut self, engine: Engine, threads: usize) -> Self {
        self.timing = (engine, threads);
        self
    }

    /// The one input of a network that takes images, one at a time if the network leaves the choice.
    ///
    /// # Errors
    /// If it cannot be loaded, or takes several inputs.
    pub fn image_input(&self, graph: &Graph) -> Result<InputInfo, ExecutorError> {
        let (_, source) = self.encode(graph)?;
        let load = |batch| {
            let options =
                LoadOptions { batch, dims: self.dims.clone(), optimize: false, ..LoadOptions::default() };
            Session::load(&source, &options)
        };
        let session = match load(Some(1)) {
            Err(RuntimeError::FixedBatch { found, .. }) => load(Some(found)),
            other => other,
        };
        let session = session.map_err(|e| words(&self.source, &e))?;
        match session.inputs() {
            [input] => Ok(input.clone()),
            inputs => Err(ExecutorError(format!(
                "images can be given to networks with one input; this one has {}",
                inputs.len()
            ))),
        }
    }

    /// A version of the network made ready to run images on all threads, one at a time if it can.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn program(&self, graph: &Graph) -> Result<Program, ExecutorError> {
        let (_, source) = self.encode(graph)?;
        let load = |batch| {
            Session::load(&source, &LoadOptions { batch, dims: self.dims.clone(), ..LoadOptions::default() })
        };
        let session = match load(Some(1)) {
            Err(RuntimeError::FixedBatch { found, .. }) => load(Some(found)),
            other => other,
        };
        let session = session.map_err(|e| words(&self.source, &e))?;
        session.into_program().map_err(|e| words(&self.source, &e))
    }

    fn encode(&self, graph: &Graph) -> Result<(Bytes, basisopt_runtime::Source), ExecutorError> {
        let (bytes, dir) = self.source.to_executable(graph).map_err(|e| words(&self.source, &e))?;
        let source = basisopt_runtime::Source::from_bytes(self.source.file(), bytes.clone(), dir);
        Ok((bytes, source))
    }

    fn session(&self, source: &basisopt_runtime::Source) -> Result<Session, ExecutorError> {
        let options = LoadOptions {
            batch: self.batch,
            dims: self.dims.clone(),
            optimize: false,
            ..LoadOptions::default()
        };
        Session::load(source, &options).map_err(|e| words(&self.source, &e))
    }
}

impl Executor for TractExecutor {
    fn example_inputs(&mut self, graph: &Graph, seed: u64) -> Result<Vec<Tensor>, ExecutorError> {
        let (bytes, source) = self.encode(graph)?;
        let session = match self.session(&source) {
            // The batch was only a wish: the network may fix another, or have one built into a Reshape.
            Err(_) if self.batch.is_some() => {
                self.batch = None;
                self.session(&source)?
            }
            loaded => loaded?,
        };
        let inputs = match (&self.data, session.inputs()) {
            (None, inputs) => random_inputs(inputs, seed),
            (Some((dataset, preprocess)), [input]) => {
                let batch = dataset.batches(preprocess, input).map_err(|e| words(&self.source, &e))?.next();
                let batch = batch.ok_or_else(|| ExecutorError("the data set has no images".to_owned()))?;
                vec![batch.map_err(|e| words(&self.source, &e))?.inputs]
            }
            (Some(_), inputs) => {
                return Err(ExecutorError(format!(
                    "images can be given to networks with one input; this one has {}",
                    inputs.len()
                )));
            }
        };
        self.loaded = Some((bytes, session));
        Ok(inputs)
    }

    fn run(&mut self, graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>, ExecutorError> {
        let (bytes, source) = self.encode(graph)?;
        let mut session = match self.loaded.take() {
            Some((of, session)) if of == bytes => session,
            _ => self.session(&source)?,
        };
        session.run(inputs).map_err(|e| words(&self.source, &e))
    }

    fn load(&mut self, graph: &Graph) -> Result<Box<dyn basisopt_passes::Program>, ExecutorError> {
        let (_, source) = self.encode(graph)?;
        // A part of a network is run thousands of times: it is worth tract's fast operators.
        let options = LoadOptions { dims: self.dims.clone(), ..LoadOptions::default() };
        let session = Session::load(&source, &options).map_err(|e| words(&self.source, &e))?;
        let program = session.into_program().map_err(|e| words(&self.source, &e))?;
        let program = TractProgram { program, file: self.source.file().to_owned() };
        Ok(Box::new(program))
    }

    fn device(&self) -> Option<String> {
        Some(device(self.timing.0, self.timing.1))
    }

    fn seconds(&mut self, graphs: &[&Graph]) -> Result<Vec<f64>, ExecutorError> {
        let mut sources = Vec::new();
        for (i, graph) in graphs.iter().enumerate() {
            let (bytes, dir) = self.source.to_executable(graph).map_err(|e| words(&self.source, &e))?;
            sources.push(basisopt_runtime::Source::from_bytes(format!("version {i}"), bytes, dir));
        }
        let options = BenchOptions {
            dims: self.dims.clone(),
            threads: self.timing.1,
            engines: vec![self.timing.0],
            runs: ROUNDS,
            min_seconds: SECONDS * graphs.len() as f64,
            warmup: 1,
            memory: false,
            ..BenchOptions::default()
        };
        let results =
            bench(&sources, &options, &mut |_| !(self.stop)()).map_err(|e| words(&self.source, &e))?;
        // Each round's ratio to the first is steadier than any time by itself.
        let first = results.first().map_or(0.0, |r| r.median_ms / r.batch as f64);
        Ok(results.iter().map(|r| r.time_ratio * first * 1e-3).collect())
    }
}

/// A graph that tract has made ready.
struct TractProgram {
    program: Program,
    file: String,
}

impl basisopt_passes::Program for TractProgram {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, ExecutorError> {
        self.program.run(inputs).map_err(|e| without_name(&self.file, &e))
    }
}

/// The words of an error, without the name of the model: whoever reports it names the model.
fn words(source: &Source, error: &dyn std::error::Error) -> ExecutorError {
    without_name(source.file(), error)
}

fn without_name(file: &str, error: &dyn std::error::Error) -> ExecutorError {
    let text = error.to_string();
    let rest = text.strip_prefix(file).and_then(|rest| rest.strip_prefix(": "));
    ExecutorError(rest.unwrap_or(&text).to_owned())
}
