//! Loading a model into tract and running it.

use crate::convert::{from_tract, guard, to_tract};
use crate::{RuntimeError, Source, fused, random_inputs, screen};
use basisopt_ir::{DType, Tensor};
use prost::Message;
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tract_core::internal::{RunOptions, TValue, TVec, TypedModel, TypedSimplePlan, TypedSimpleState};
use tract_core::ops::matmul::optimized::OptMatMul;
use tract_linalg::multithread::Executor;
use tract_onnx::pb;
use tract_onnx::tract_hir::infer::InferenceModelExt;

/// How tract runs factorised layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// As tract itself does it: two convolutions, one after the other.
    #[default]
    Stock,
    /// Each pair of convolutions as one operator; see [`crate::fused`].
    Fused,
    /// The faster of the two for this network on this machine, found by running both for a moment. A network
    /// without any convolution that a 1×1 convolution follows runs as `Stock`.
    Fastest,
}

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Images per run. `None` means 1, or what the model fixes. The size is built into the plan,
    /// because tract writes slower code for an open batch.
    pub batch: Option<usize>,
    /// Sizes for the other unknown dimensions of the inputs, by the name in the model (`("H", 224)`), or
    /// by `<input>:<axis>` where the model gives no name.
    pub dims: Vec<(String, usize)>,
    /// Threads for the matrix products; 1 runs everything on the calling thread.
    pub threads: usize,
    /// Whether tract lowers the network to its fast operators. Without, results are the same up to
    /// rounding and runs are slower.
    pub optimize: bool,
    /// How factorised layers run.
    pub engine: Engine,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { batch: None, dims: Vec::new(), threads: 1, optimize: true, engine: Engine::Stock }
    }
}

/// An input of a loaded model, all sizes known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputInfo {
    /// The name in the model.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape, with the batch and all other unknown sizes as they were fixed.
    pub shape: Vec<usize>,
    /// Which axis counts the images: the one whose size was open, or 0 if the model fixes every size.
    /// `None` for inputs that have no such axis.
    pub batch_axis: Option<usize>,
}

impl InputInfo {
    /// Images per run.
    pub fn batch(&self) -> Option<usize> {
        self.batch_axis.and_then(|axis| self.shape.get(axis).copied())
    }
}

/// A model ready to run, with one fixed batch size.
pub struct Session {
    name: String,
    inputs: Vec<InputInfo>,
    outputs: Vec<String>,
    plan: Arc<TypedSimplePlan>,
    state: TypedSimpleState,
    threads: usize,
    n_fused: usize,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("name", &self.name)
            .field("inputs", &self.inputs)
            .field("outputs", &self.outputs)
            .field("threads", &self.threads)
            .field("n_fused", &self.n_fused)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Decodes, checks, pins, optimises.
    ///
    /// # Errors
    /// [`RuntimeError::NotOnnx`] for other files, [`RuntimeError::UnsupportedOps`] for operators that
    /// tract does not run, [`RuntimeError::UnpinnedDim`] and [`RuntimeError::FixedBatch`] where a size
    /// is missing or contradicted, [`RuntimeError::Tract`] with tract's reason for everything else.
    pub fn load(source: &Source, options: &LoadOptions) -> Result<Self, RuntimeError> {
        match options.engine {
            Engine::Fastest => Self::load_fastest(source, options),
            Engine::Stock => Self::load_as(source, options, false),
            Engine::Fused => Self::load_as(source, options, true),
        }
    }

    /// Both ways to run it, in turns, for a fifth of a second or three rounds, whichever is longer.
    fn load_fastest(source: &Source, options: &LoadOptions) -> Result<Self, RuntimeError> {
        const ROUNDS: usize = 3;
        const TIME: Duration = Duration::from_millis(200);
        let mut fused = Self::load_as(source, options, true)?;
        if fused.n_fused == 0 {
            return Ok(fused);
        }
        let mut stock = Self::load_as(source, options, false)?;
        let inputs = stock.prepare(&random_inputs(stock.inputs(), 0))?;
        let mut best = [f64::INFINITY; 2];
        let started = Instant::now();
        let mut round = 0;
        // The first round makes buffers and is not counted.
        while round <= ROUNDS || started.elapsed() < TIME {
            for (session, best) in [&mut fused, &mut stock].into_iter().zip(&mut best) {
                let started = Instant::now();
                session.run_prepared(inputs.clone())?;
                if round > 0 {
                    *best = best.min(started.elapsed().as_secs_f64());
                }
            }
            round += 1;
        }
        Ok(if best[0] <= best[1] { fused } else { stock })
    }

    fn load_as(source: &Source, options: &LoadOptions, fuse: bool) -> Result<Self, RuntimeError> {
        let name = source.name().to_owned();
        let mut proto = decode(source)?;
        let not_onnx =
            |reason: &str| RuntimeError::NotOnnx { model: name.clone(), reason: reason.to_owned() };
        let graph = proto.graph.as_mut().ok_or_else(|| not_onnx("it holds no graph"))?;
        if graph.output.is_empty() {
            return Err(not_onnx("its graph has no outputs"));
        }

        let mut onnx = tract_onnx::onnx();
        screen::check_operators(&name, graph, &|op| onnx.op_register.0.contains_key(op))?;
        let inputs = screen::pin_inputs(&name, graph, options)?;
        let outputs: Vec<String> = graph.output.iter().map(|o| o.name.clone()).collect();

        // The recorded shapes of inner values may speak of symbols that are numbers by now, and of a
        // batch that was another when they were written; tract infers all of them anyway.
        onnx.ignore_value_info = true;
        let dir = match source.dir() {
            Some(dir) => Some(dir.to_str().ok_or_else(|| RuntimeError::Model {
                model: name.clone(),
                reason: format!(
                    "its folder {} has a name that is not UTF-8; tract cannot open it",
                    dir.display()
                ),
            })?),
            None => None,
        };
        let parsed = guard(&name, "read", || onnx.parse(&proto, dir))?;
        if !parsed.unresolved_inputs.is_empty() {
            let missing = parsed.unresolved_inputs.join("`, `");
            return Err(not_onnx(&format!("no node, input or initializer makes `{missing}`")));
        }
        drop(proto);

        let executor = executor(&name, options.threads)?;
        let model = guard(&name, "type", || parsed.model.into_typed())?;
        let (model, n_fused) = match fuse {
            true => simplify_and_fuse(&name, model)?,
            false => (guard(&name, "simplify", || model.into_decluttered())?, 0),
        };
        let model = match options.optimize {
            true => guard(&name, "optimise", || model.into_optimized())?,
            false => model,
        };
        let run_options = RunOptions { executor: Some(executor), ..RunOptions::default() };
        let plan = guard(&name, "plan", || TypedSimplePlan::new_with_options(model, &run_options))?;
        let state = guard(&name, "plan", || plan.spawn())?;
        Ok(Self { name, inputs, outputs, plan, state, threads: options.threads.max(1), n_fused })
    }

    /// The name of the model, as its [`Source`] had it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The inputs, in the order [`Session::run`] takes them.
    pub fn inputs(&self) -> &[InputInfo] {
        &self.inputs
    }

    /// The names of the outputs, in the order [`Session::run`] returns them.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// Images per run: that of the first input which has a batch axis.
    pub fn batch(&self) -> Option<usize> {
        self.inputs.iter().find_map(InputInfo::batch)
    }

    /// Threads the matrix products run on.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// How factorised layers run, and how many run as one operator.
    pub fn engine(&self) -> (Engine, usize) {
        (if self.n_fused > 0 { Engine::Fused } else { Engine::Stock }, self.n_fused)
    }

    /// The kernels that tract chose for the matrix products of this network, by name, each once.
    pub fn kernels(&self) -> Vec<String> {
        let products = self.plan.model().nodes().iter().filter_map(|n| n.op_as::<OptMatMul>());
        let mut names: Vec<String> =
            products.flat_map(|p| p.mmm.iter().map(|kernel| kernel.name().to_owned())).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Runs the network once. The tensors must have the shapes and types of [`Session::inputs`].
    ///
    /// # Errors
    /// [`RuntimeError::Input`] if a tensor does not fit, [`RuntimeError::Tract`] if a node fails.
    pub fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RuntimeError> {
        let values = self.prepare(inputs)?;
        let outputs = self.run_prepared(values)?;
        results(&self.name, &outputs)
    }

    /// Checks the inputs and turns them into tract's tensors.
    pub(crate) fn prepare(&self, inputs: &[Tensor]) -> Result<TVec<TValue>, RuntimeError> {
        prepare(&self.name, &self.inputs, inputs)
    }

    /// The network alone, to be run from any number of threads. Each run stays on the thread that asks for it,
    /// whatever [`LoadOptions::threads`] said: one that waited for others would be given another run to begin, and tract
    /// keeps what a run works with by thread.
    ///
    /// # Errors
    /// [`RuntimeError::Tract`] if the network cannot be planned anew.
    pub fn into_program(self) -> Result<Program, RuntimeError> {
        let plan = match self.threads {
            1 => self.plan,
            _ => {
                let options = RunOptions { executor: Some(Executor::SingleThread), ..RunOptions::default() };
                let model = self.plan.model().clone();
                guard(&self.name, "plan", || TypedSimplePlan::new_with_options(model, &options))?
            }
        };
        Ok(Program { name: self.name, inputs: self.inputs, outputs: self.outputs, plan })
    }

    /// The nodes of tract's plan by number: name and operator.
    pub(crate) fn nodes(&self) -> Vec<(String, String)> {
        self.plan.model().nodes().iter().map(|n| (n.name.clone(), n.op.name().into_owned())).collect()
    }

    /// As [`Session::run_prepared`]; tells the number of every node that ran and its seconds.
    pub(crate) fn run_timed(
        &mut self,
        values: TVec<TValue>,
        tell: &mut dyn FnMut(usize, f64),
    ) -> Result<(), RuntimeError> {
        let state = &mut self.state;
        let result = guard(&self.name, "run", || {
            state.run_plan_with_eval(values, |context, state, node, inputs| {
                let started = Instant::now();
                let outputs = tract_core::plan::eval(context, state, node, inputs);
                tell(node.id, started.elapsed().as_secs_f64());
                outputs
            })
        });
        self.settle(result).map(|_| ())
    }

    /// Runs on tensors that [`Session::prepare`] made: what a benchmark times.
    pub(crate) fn run_prepared(&mut self, values: TVec<TValue>) -> Result<TVec<TValue>, RuntimeError> {
        let state = &mut self.state;
        let result = guard(&self.name, "run", || state.run(values));
        self.settle(result)
    }

    /// A run that stopped half-way leaves its values behind; the next starts afresh.
    fn settle(&mut self, result: Result<TVec<TValue>, RuntimeError>) -> Result<TVec<TValue>, RuntimeError> {
        if result.is_err() {
            let plan = &self.plan;
            self.state = guard(&self.name, "plan", || plan.spawn())?;
        }
        result
    }
}

/// Simplifies a model and fuses its pairs; also returns how many there are.
fn simplify_and_fuse(name: &str, typed: TypedModel) -> Result<(TypedModel, usize), RuntimeError> {
    let declutter = |model: TypedModel| guard(name, "simplify", || model.into_decluttered());
    let fuse = |model: &mut TypedModel| guard(name, "fuse layers of", || fused::fuse(model));
    let mut model = declutter(typed.clone())?;
    let n_fused = fuse(&mut model)?;
    // On aarch64 tract simplifies networks so that channels come last around depthwise convolutions. Pairs are not
    // found there, but they are before; what is found late is found all the same.
    if fused::has_channels_last(&model) {
        let mut early = typed;
        let n_early = fuse(&mut early)?;
        let mut early = declutter(early)?;
        let n_early = n_early + fuse(&mut early)?;
        if n_early > n_fused {
            return Ok((early, n_early));
        }
    }
    Ok((model, n_fused))
}

/// A model that runs on any number of threads at once, each run with a state of its own.
pub struct Program {
    name: String,
    inputs: Vec<InputInfo>,
    outputs: Vec<String>,
    plan: Arc<TypedSimplePlan>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program")
            .field("name", &self.name)
            .field("inputs", &self.inputs)
            .finish_non_exhaustive()
    }
}

impl Program {
    /// As [`Session::name`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As [`Session::inputs`].
    pub fn inputs(&self) -> &[InputInfo] {
        &self.inputs
    }

    /// As [`Session::outputs`].
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// As [`Session::run`].
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RuntimeError> {
        let values = prepare(&self.name, &self.inputs, inputs)?;
        let mut state = guard(&self.name, "plan", || self.plan.spawn())?;
        let outputs = guard(&self.name, "run", || state.run(values))?;
        results(&self.name, &outputs)
    }
}

fn prepare(model: &str, infos: &[InputInfo], inputs: &[Tensor]) -> Result<TVec<TValue>, RuntimeError> {
    let wrong = |reason| RuntimeError::Input { model: model.to_owned(), reason };
    if inputs.len() != infos.len() {
        let (n, found) = (infos.len(), inputs.len());
        return Err(wrong(format!("the network takes {n} inputs, {found} were given")));
    }
    let mut values = TVec::new();
    for (tensor, info) in inputs.iter().zip(infos) {
        if tensor.dtype() != info.dtype || tensor.shape() != info.shape {
            return Err(wrong(format!(
                "input `{}` is {}{:?}, a tensor {}{:?} was given",
                info.name,
                info.dtype,
                info.shape,
                tensor.dtype(),
                tensor.shape()
            )));
        }
        values.push(to_tract(tensor).map_err(|e| wrong(format!("input `{}`: {e}", info.name)))?);
    }
    Ok(values)
}

fn results(model: &str, outputs: &[TValue]) -> Result<Vec<Tensor>, RuntimeError> {
    let read = |value| {
        from_tract(value).map_err(|reason| RuntimeError::Tract {
            model: model.to_owned(),
            stage: "give the results of",
            reason,
        })
    };
    outputs.iter().map(read).collect()
}

/// The model as tract's protobuf, its local functions inlined.
fn decode(source: &Source) -> Result<pb::ModelProto, RuntimeError> {
    let model = || source.name().to_owned();
    if source.bytes().is_empty() {
        return Err(RuntimeError::NotOnnx { model: model(), reason: "the file is empty".to_owned() });
    }
    // tract does not know functions: it would call them unimplemented operators.
    let inlined = basisopt_onnx::inline_functions(source.bytes())
        .map_err(|source| RuntimeError::Functions { model: model(), source })?;
    let bytes = inlined.unwrap_or_else(|| source.bytes().clone());
    pb::ModelProto::decode(bytes)
        .map_err(|e| RuntimeError::NotOnnx { model: model(), reason: format!("it cannot be decoded ({e})") })
}

/// Our own pool rather than tract's constructor, which panics when threads cannot be had.
fn executor(model: &str, threads: usize) -> Result<Executor, RuntimeError> {
    if threads <= 1 {
        return Ok(Executor::SingleThread);
    }
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("tract-{i}")).build();
    match pool {
        Ok(pool) => Ok(Executor::MultiThread(Arc::new(pool))),
        Err(e) => Err(RuntimeError::Model {
            model: model.to_owned(),
            reason: format!("{threads} threads cannot be started: {e}; ask for fewer with --threads"),
        }),
    }
}
