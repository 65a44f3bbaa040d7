//! The training step: sixteen images at a time through the whole network and back, on every thread.
//!
//! Images do not meet before their gradients are added up, so each thread takes [`LANES`] images from the input to
//! the gradient while they are in its cache. Sums go into a fixed number of slots, by position in the batch, and
//! the slots are added in order: results are the same for any number of threads.

use crate::differentiate::{Request, differentiate};
use crate::examples::Chunk;
use crate::exec::{Plan, Program, Shared, Sums, Workspace};
use crate::loss::{self, Target, Term};
use crate::norms::{Statistics, TrainingForm};
use crate::statistics::only;
use crate::stiefel::Frames;
use crate::task::{Objective, Reference, Tally, Task, TrainError};
use basisopt_ir::infer::infer;
use basisopt_ir::{Graph, ValueId};
use basisopt_kernels::LANES;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Sums are kept apart in at most this many slots before they are added: as many threads can work at once.
const SLOTS: usize = 32;
/// Bytes of them, at most; large networks have fewer.
const SLOT_BYTES: usize = 1 << 30;

/// A network's loss and gradient, and the original's outputs to compare with, made ready to run.
#[derive(Debug)]
pub struct Trainer {
    step: Program<f32>,
    forward: Program<f32>,
    original: Option<(Program<f32>, Shared<f32>)>,
    shared: Shared<f32>,
    forward_shared: Shared<f32>,
    /// By added input: a label, or an output of the original.
    targets: Vec<Source>,
    /// Index of the logits among the outputs of `step` and of `forward`.
    logits: Option<(usize, usize)>,
    parameters: Vec<String>,
    unreached: Vec<String>,
    slots: Vec<Sums<f32>>,
    workers: Mutex<Vec<Worker>>,
    statistics: Option<Statistics>,
    /// Names of the constants that hold the statistics.
    measured: Vec<String>,
    /// Parameters that are kept orthonormal, by their place among the parameters.
    frames: Vec<(usize, Frames)>,
}

/// Where a target comes from.
#[derive(Clone, Copy, Debug)]
enum Source {
    Label { n_classes: usize },
    Original { output: usize },
    Examples,
}

/// What one thread needs.
#[derive(Debug)]
struct Worker {
    step: Workspace<f32>,
    /// Made when it is first needed: only evaluation does.
    forward: Option<Workspace<f32>>,
    original: Option<(Workspace<f32>, Sums<f32>)>,
}

impl Trainer {
    /// Attaches the loss, differentiates, compiles.
    ///
    /// # Errors
    /// [`TrainError`] naming what is in the way.
    pub fn new(task: &Task<'_>) -> Result<Self, TrainError> {
        match task.network.inputs() {
            [_] => {}
            inputs => return Err(TrainError::Inputs(inputs.len())),
        }
        let form = TrainingForm::new(task.network, &task.norms)?;
        let mut graph = form.graph.clone();
        let terms = terms(task, &graph)?;
        let find = |name: &str| find(&graph, name);
        let parameters = task.parameters.iter().map(|p| find(p)).collect::<Result<Vec<_>, _>>()?;
        let logits = task.logits.as_deref().map(find).transpose()?;
        let logits = logits.map(|v| graph.value(v).name.clone());
        let loss = loss::attach(&mut graph, &terms)?;
        infer(&mut graph)?;

        let request = Request { targets: vec![loss.value], parameters };
        let derived = differentiate(&graph, &request)?;
        if derived.parameters.is_empty() {
            return Err(TrainError::Nothing);
        }
        let plan = Plan { parameters: derived.parameters.clone(), summed: derived.summed.clone() };
        let mut with_gradient = derived.graph;
        let in_step = add_output(&mut with_gradient, logits.as_deref());
        let step = Program::compile(&with_gradient, &plan)?;

        let mut forward = task.network.clone();
        infer(&mut forward)?;
        let terms = self::terms(task, &forward)?;
        let again = loss::attach(&mut forward, &terms)?;
        let mut outputs = vec![again.value];
        outputs.extend(logits.as_deref().and_then(|l| forward.find_value(l)));
        let forward = only(&forward, &outputs);
        let mut free = derived.parameters.clone();
        free.extend(form.constants.iter().cloned());
        let forward = Program::compile(&forward, &Plan { parameters: free, ..Plan::default() })?;
        let statistics = (!task.norms.is_empty()).then(|| form.measure(&derived.parameters)).transpose()?;
        let place =
            |f: &Frames| Some((derived.parameters.iter().position(|p| *p == f.parameter)?, f.clone()));
        let frames = task.frames.iter().filter_map(place).collect();

        let (original, targets) = original(task, &loss.targets)?;
        if let Some((original, _)) = &original {
            let same =
                |ours: Option<&crate::exec::Port>, theirs: Option<&crate::exec::Port>| match (ours, theirs) {
                    (Some(a), Some(b)) if a.len() != b.len() => {
                        Err(TrainError::Sizes { name: a.name.clone(), expected: a.len(), found: b.len() })
                    }
                    _ => Ok(()),
                };
            same(step.inputs().first(), original.inputs().first())?;
            for (i, target) in targets.iter().enumerate() {
                if let Source::Original { output } = *target {
                    same(step.inputs().get(1 + i), original.outputs().nth(output))?;
                }
            }
        }
        let sums = step.sums();
        for (i, name) in derived.parameters.iter().enumerate() {
            if step.total(1 + i, &sums).is_none() {
                return Err(TrainError::NoSum { name: name.clone() });
            }
        }
        let slots = (SLOT_BYTES / step.sums_bytes().max(1)).clamp(2, SLOTS);
        Ok(Self {
            shared: step.shared(),
            forward_shared: forward.shared(),
            slots: vec![sums; slots],
            logits: in_step.map(|i| (i, 1)),
            step,
            forward,
            original,
            targets,
            parameters: derived.parameters,
            unreached: derived.unreached,
            workers: Mutex::new(Vec::new()),
            statistics,
            measured: form.constants,
            frames,
        })
    }

    /// Names of the parameters that are trained.
    pub fn parameters(&self) -> &[String] {
        &self.parameters
    }

    /// Parameters asked for that have no effect on the loss.
    pub fn unreached(&self) -> &[String] {
        &self.unreached
    }

    /// Shapes of the parameters.
    pub fn shapes(&self) -> impl Iterator<Item = &[usize]> {
        self.step.parameters().iter().map(|p| &p.shape[..])
    }

    /// The values of the parameters.
    pub fn values(&self) -> &[Vec<f32>] {
        self.shared.parameters()
    }

    /// The values of the parameters, to be changed. [`Trainer::changed`] is to be called then.
    pub fn values_mut(&mut self) -> &mut [Vec<f32>] {
        self.shared.parameters_mut()
    }

    /// Takes over changed parameters.
    pub fn changed(&mut self) {
        self.step.prepare(&mut self.shared);
        for (to, from) in self.forward_shared.parameters_mut().iter_mut().zip(self.shared.parameters()) {
            to.clone_from(from);
        }
        self.forward.prepare(&mut self.forward_shared);
    }

    /// Goes back to the statistics that the network came with.
    pub fn forget_measured(&mut self) {
        let n = self.parameters.len();
        let came = self.forward.shared();
        let values = came.parameters().iter().skip(n);
        for (to, from) in self.forward_shared.parameters_mut().iter_mut().skip(n).zip(values) {
            to.clone_from(from);
        }
        self.forward.prepare(&mut self.forward_shared);
    }

    /// A number that depends on names and values of the parameters, and on the original.
    pub(crate) fn fingerprint(&self) -> u32 {
        let mut sum = crc32fast::Hasher::new();
        let mut add = |values: &[f32]| values.iter().for_each(|v| sum.update(&v.to_le_bytes()));
        self.shared.parameters().iter().for_each(|v| add(v));
        if let Some((_, shared)) = &self.original {
            shared.values().for_each(&mut add);
        }
        self.parameters.iter().for_each(|name| sum.update(name.as_bytes()));
        sum.finalize()
    }

    /// Whether there are normalisations whose statistics are to be measured ([`Trainer::measure`]).
    pub fn has_norms(&self) -> bool {
        self.statistics.is_some()
    }

    /// Measures, over these images, the statistics that evaluation and export use.
    #[allow(clippy::cast_possible_truncation, reason = "the network is single precision")]
    pub fn measure(&mut self, chunks: &[Chunk]) {
        let Some(statistics) = &mut self.statistics else { return };
        let moments = statistics.over(self.shared.parameters(), chunks);
        let values = moments.into_iter().flat_map(|m| [m.mean, m.variance]);
        let n = self.parameters.len();
        for (to, from) in self.forward_shared.parameters_mut().iter_mut().skip(n).zip(values) {
            *to = from.into_iter().map(|v| v as f32).collect();
        }
        self.forward.prepare(&mut self.forward_shared);
    }

    /// The statistics measured last, by the name of the constant that is to hold them.
    pub fn measured(&self) -> impl Iterator<Item = (&str, &[f32])> {
        let values = self.forward_shared.parameters().iter().skip(self.parameters.len());
        self.measured.iter().zip(values).map(|(name, values)| (&name[..], &values[..]))
    }

    /// Leaves of a gradient what keeps orthonormal parameters orthonormal.
    pub fn project(&self, gradients: &mut [Vec<f32>]) {
        for (i, frames) in &self.frames {
            if let (Some(gradient), Some(basis)) = (gradients.get_mut(*i), self.values().get(*i)) {
                frames.project(gradient, basis);
            }
        }
    }

    /// Brings orthonormal parameters back to orthonormal after a step.
    pub fn retract(&mut self) {
        for (i, frames) in &self.frames {
            if let Some(basis) = self.shared.parameters_mut().get_mut(*i) {
                frames.retract(basis);
            }
        }
    }

    /// Whether a parameter is kept orthonormal.
    pub fn is_frame(&self, parameter: usize) -> bool {
        self.frames.iter().any(|(i, _)| *i == parameter)
    }

    /// Elements that an image is to have.
    pub fn image_len(&self) -> usize {
        self.step.inputs().first().map_or(0, crate::exec::Port::len)
    }

    /// Bytes that training takes on this many threads, without images and optimiser.
    pub fn memory(&self, n_threads: usize) -> usize {
        let original = self.original.as_ref().map_or(0, |(p, _)| p.workspace_bytes());
        let statistics = self.statistics.as_ref().map_or(0, Statistics::bytes);
        // Evaluation has buffers of its own, which stay.
        let worker = self.step.workspace_bytes() + self.forward.workspace_bytes() + original + statistics;
        n_threads * worker + self.slots.len() * self.step.sums_bytes()
    }

    /// The gradient of the mean loss of a batch, by parameter.
    ///
    /// # Errors
    /// If a label is missing or out of range.
    pub fn gradient(&mut self, batch: &[Chunk]) -> Result<(Vec<Vec<f32>>, Tally), TrainError> {
        let n_images: usize = batch.iter().map(|c| c.labels.len()).sum();
        #[allow(clippy::cast_precision_loss, reason = "a count")]
        let seed = 1.0 / n_images.max(1) as f32;
        let mut slots = std::mem::take(&mut self.slots);
        // A small batch needs fewer; how many depends on the batch only.
        let n_slots = slots.len().min(batch.len().max(1));
        let this = &*self;
        let tallies: Vec<Result<Tally, TrainError>> = slots
            .par_iter_mut()
            .take(n_slots)
            .enumerate()
            .map(|(slot, sums)| {
                this.step.clear(sums);
                let mut tally = Tally::default();
                for chunk in batch.iter().skip(slot).step_by(n_slots) {
                    tally.add(&this.chunk(&this.step, &this.shared, chunk, Some(seed), sums)?);
                }
                Ok(tally)
            })
            .collect();
        let mut tally = Tally::default();
        let mut failed = None;
        for t in tallies {
            match t {
                Ok(t) => tally.add(&t),
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        let mut gradients = Vec::with_capacity(self.parameters.len());
        if let Some((first, rest)) = slots.split_first_mut() {
            for other in rest.iter().take(n_slots - 1) {
                self.step.merge(first, other);
            }
            self.step.finish(first, &mut self.shared);
            for i in 0..self.parameters.len() {
                gradients.push(self.step.total(1 + i, first).unwrap_or_default().to_vec());
            }
        }
        self.slots = slots;
        failed.map_or(Ok((gradients, tally)), Err)
    }

    /// Loss and hits of images, without a gradient.
    ///
    /// # Errors
    /// As [`Trainer::gradient`].
    pub fn evaluate(&self, batch: &[Chunk]) -> Result<Tally, TrainError> {
        let tallies: Result<Vec<Tally>, TrainError> = batch
            .par_iter()
            .map(|chunk| {
                self.chunk(&self.forward, &self.forward_shared, chunk, None, &mut self.forward.sums())
            })
            .collect();
        let mut tally = Tally::default();
        tallies?.iter().for_each(|t| tally.add(t));
        Ok(tally)
    }

    fn worker(&self) -> Worker {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.pop().unwrap_or_else(|| Worker {
            step: self.step.workspace(),
            forward: None,
            original: self.original.as_ref().map(|(p, _)| (p.workspace(), p.sums())),
        })
    }

    /// Runs one chunk through a program that has the loss as its first output.
    fn chunk(
        &self,
        program: &Program<f32>,
        shared: &Shared<f32>,
        chunk: &Chunk,
        seed: Option<f32>,
        sums: &mut Sums<f32>,
    ) -> Result<Tally, TrainError> {
        let n = chunk.labels.len();
        let mut worker = self.worker();
        if let (Some((program, shared)), Some((workspace, sums))) = (&self.original, &mut worker.original) {
            program.run(&[&chunk.images], shared, workspace, sums);
        }
        let mut labels = Vec::new();
        for target in &self.targets {
            if let Source::Label { n_classes } = *target {
                labels = one_hot(&chunk.labels, n_classes)?;
            }
        }
        let mut seeds = [0.0; LANES];
        seeds.iter_mut().take(n).for_each(|s| *s = seed.unwrap_or(0.0));
        let mut inputs: Vec<&[f32]> = vec![&chunk.images];
        for target in &self.targets {
            inputs.push(match *target {
                Source::Label { .. } => &labels,
                Source::Original { output } => match (&self.original, &worker.original) {
                    (Some((p, _)), Some((w, _))) => p.output(output, w).unwrap_or_default(),
                    _ => &[],
                },
                Source::Examples => &chunk.targets,
            });
        }
        inputs.push(&seeds);
        let workspace = match seed {
            Some(_) => &mut worker.step,
            None => worker.forward.get_or_insert_with(|| program.workspace()),
        };
        program.run(&inputs, shared, workspace, sums);
        let mut tally = Tally { n_images: n, ..Tally::default() };
        let losses = program.output(0, workspace).unwrap_or_default();
        tally.loss = losses.iter().take(n).map(|&l| f64::from(l)).sum();
        let logits = self.logits.map(|(step, forward)| if seed.is_some() { step } else { forward });
        if let Some(scores) = logits.and_then(|i| program.output(i, workspace)) {
            for (lane, label) in chunk.labels.iter().enumerate() {
                let Some(label) = *label else { continue };
                tally.n_labelled += 1;
                tally.n_hits += usize::from(largest(scores, lane) == Some(label));
            }
        }
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
        Ok(tally)
    }
}

/// The index of the largest element of a lane; the first of equal ones, none if there is a NaN.
fn largest(scores: &[f32], lane: usize) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (i, v) in scores.iter().skip(lane).step_by(LANES).copied().enumerate() {
        if v.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, b)| v > b) {
            best = Some((i, v));
        }
    }
    best.map(|(i, _)| i)
}

fn one_hot(labels: &[Option<usize>], n_classes: usize) -> Result<Vec<f32>, TrainError> {
    let mut out = vec![0.0; n_classes * LANES];
    for (lane, label) in labels.iter().enumerate() {
        let label = label.ok_or(TrainError::NoLabel)?;
        if label >= n_classes {
            return Err(TrainError::Label { label, n_classes });
        }
        if let Some(slot) = out.get_mut(label * LANES + lane) {
            *slot = 1.0;
        }
    }
    Ok(out)
}

/// Makes a value an output if it is not one yet, and says which.
fn add_output(graph: &mut Graph, name: Option<&str>) -> Option<usize> {
    let value = graph.find_value(name?)?;
    if let Some(i) = graph.outputs().iter().position(|&v| v == value) {
        return Some(i);
    }
    graph.add_output(value);
    Some(graph.outputs().len() - 1)
}

fn find(graph: &Graph, name: &str) -> Result<ValueId, TrainError> {
    let missing = || TrainError::NoValue { name: name.to_owned(), network: "the network" };
    graph.find_value(name).ok_or_else(missing)
}

/// The terms of the loss, on values of a graph.
fn terms(task: &Task<'_>, graph: &Graph) -> Result<Vec<(Term, f32)>, TrainError> {
    let term = |objective: &Objective| -> Result<Term, TrainError> {
        Ok(match objective {
            Objective::Labels { logits } => Term::CrossEntropy { logits: find(graph, logits)? },
            Objective::Distill { logits, temperature } => {
                Term::Distillation { logits: find(graph, logits)?, temperature: *temperature }
            }
            Objective::Match { value, scale } => Term::Match { value: find(graph, value)?, scale: *scale },
            Objective::Orthogonality(frames) => {
                Term::Orthogonality { basis: find(graph, &frames.parameter)?, frames: frames.clone() }
            }
        })
    };
    task.objectives.iter().map(|(objective, weight)| Ok((term(objective)?, *weight))).collect()
}

/// The original network with what is compared as outputs, and where each target comes from.
#[allow(clippy::type_complexity, reason = "two things of one pass over the targets")]
fn original(
    task: &Task<'_>,
    targets: &[Target],
) -> Result<(Option<(Program<f32>, Shared<f32>)>, Vec<Source>), TrainError> {
    let mut outputs: BTreeMap<String, usize> = BTreeMap::new();
    let mut values = Vec::new();
    let mut sources = Vec::with_capacity(targets.len());
    for target in targets {
        sources.push(match target {
            Target::Label { n_classes } => Source::Label { n_classes: *n_classes },
            Target::Original(_) if matches!(task.reference, Reference::Examples) => Source::Examples,
            Target::Original(name) => {
                let Reference::Network(graph) = task.reference else { return Err(TrainError::NoOriginal) };
                let output = match outputs.get(name) {
                    Some(&output) => output,
                    None => {
                        let value = graph.find_value(name).ok_or_else(|| TrainError::NoValue {
                            name: name.clone(),
                            network: "the original network",
                        })?;
                        values.push(value);
                        outputs.insert(name.clone(), values.len() - 1);
                        values.len() - 1
                    }
                };
                Source::Original { output }
            }
        });
    }
    let (Reference::Network(graph), false) = (task.reference, values.is_empty()) else {
        return Ok((None, sources));
    };
    let program = Program::compile(&only(graph, &values), &Plan::default())?;
    let shared = program.shared();
    Ok((Some((program, shared)), sources))
}
