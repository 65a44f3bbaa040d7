//! Loss and gradients of one step, as the built-in trainer computes them, for `benches/step/peer.py`.
//!
//! ```text
//! trainer NETWORK labels|distill|match given|batch IMAGES SEED FOLDER [exact] [NAME=SIZE …]
//! ```
//!
//! Images, labels and the teacher are made from seeds. The folder gets `step.json`, which says what is in the files
//! beside it: little-endian numbers, `f32` and for labels `i64`, one image behind the other.

#![allow(clippy::print_stdout, reason = "a program for scripts")]

use basisopt::ir::graph::Graph;
use basisopt::ir::infer::infer;
use basisopt::ir::op::Op;
use basisopt::ir::{Rewrite, Tensor, ValueId};
use basisopt::onnx::Model;
use basisopt::passes::{cost, logits, trainable};
use basisopt::train::differentiate::{Request, differentiate, frontier};
use basisopt::train::examples::Chunk;
use basisopt::train::exec::{Plan, Program};
use basisopt::train::loss::{Target, Term, attach};
use basisopt::train::task::{Objective, Reference, Task};
use basisopt::train::trainer::Trainer;
use basisopt::{Manager, NoObserver, Pipeline, Registry};
use serde_json::{Value, json};
use std::error::Error;
use std::path::{Path, PathBuf};

const LANES: usize = 16;
const TEMPERATURE: f32 = 4.0;
/// How far the teacher's weights are from the network's, relative.
const APART: f64 = 0.2;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [network, loss, norm, images, seed, folder, dims @ ..] = arguments.as_slice() else {
        return Err("usage: trainer NETWORK labels|distill|match given|batch IMAGES SEED FOLDER [exact] [NAME=SIZE …]".into());
    };
    let (n_images, folder) = (images.parse::<usize>()?.min(LANES), PathBuf::from(folder));
    let seed: u64 = seed.parse()?;
    let mut pinned = Vec::new();
    let exact = dims.first().is_some_and(|d| d == "exact");
    for dim in dims.iter().skip(usize::from(exact)) {
        let (name, size) = dim.rsplit_once('=').ok_or("NAME=SIZE")?;
        pinned.push((name.to_owned(), size.parse()?));
    }
    let mut graph = read(Path::new(network))?;
    let clean = Pipeline::parse("freeze-weights,@clean", &Registry::builtin())?;
    Manager::default().run(&mut graph, &clean, &mut NoObserver)?;
    cost::pin(&mut graph, &pinned);
    infer(&mut graph)?;

    let parameters = trainable(&graph)?;
    // Networks whose weights are all of one value have a gradient of rounding and nothing else.
    let is_stub = |name: &String| {
        let value = graph.find_value(name).and_then(|v| graph.constant_value(v)?.to_f64s().ok());
        value.is_some_and(|v| v.len() > 16 && v.iter().all(|&e| e == v[0]))
    };
    if parameters.iter().filter(|p| is_stub(p)).count() * 4 > parameters.len() {
        let deviations: Vec<Option<f64>> = parameters.iter().map(|p| deviation(&graph, p)).collect();
        graph = moved(&graph, &parameters, 10_000, |i, shape, _, n| match (shape, deviations[i]) {
            ([_, behind @ ..], _) if !behind.is_empty() => {
                n * (6.0 / behind.iter().product::<usize>().max(1) as f64).sqrt()
            }
            (_, Some(deviation)) => deviation * (1.0 + APART * n),
            _ => APART * n,
        })?;
    }
    let name = |v: ValueId| graph.value(v).name.clone();
    let ids: Vec<ValueId> = parameters.iter().filter_map(|p| graph.find_value(p)).collect();
    let scores = || logits(&graph).map(name).ok_or("no class scores");
    let targets = match loss.as_str() {
        "labels" | "distill" => vec![scores()?],
        _ => frontier(&graph, &ids).into_iter().map(name).collect(),
    };
    let weight = 1.0 / targets.len().max(1) as f32;
    let objective = |value: &String| {
        let (logits, value) = (value.clone(), value.clone());
        let objective = match loss.as_str() {
            "labels" => Objective::Labels { logits },
            "distill" => Objective::Distill { logits, temperature: TEMPERATURE },
            _ => Objective::Match { value, scale: 1.0 },
        };
        (objective, weight)
    };
    let is_norm = |v: &ValueId| matches!(graph.node(v.node).op, Op::BatchNormalization(_));
    let norms = graph.topological().into_iter().map(ValueId::of).filter(|v| norm == "batch" && is_norm(v));
    let teacher = moved(&graph, &parameters, 100, |_, _, v, n| v * (1.0 + APART * n))?;
    let task = Task {
        network: &graph,
        reference: if loss == "labels" { Reference::None } else { Reference::Network(&teacher) },
        objectives: targets.iter().map(objective).collect(),
        parameters: parameters.clone(),
        logits: None,
        norms: norms.map(name).collect(),
        frames: vec![],
    };
    let mut trainer = Trainer::new(&task)?;
    let lanes: Vec<f32> = numbers(seed, trainer.image_len() * LANES).iter().map(|&v| v as f32).collect();
    let n_classes = graph.find_value(&targets[0]).and_then(|v| graph.value(v).ty.static_shape());
    let n_classes = n_classes.map_or(1, |s| s.get(1).copied().unwrap_or(1));
    let labels: Vec<usize> = (0..n_images).map(|i| (i * 7 + 3) % n_classes).collect();
    let chunk =
        Chunk { images: lanes.clone(), targets: vec![], labels: labels.iter().map(|&l| Some(l)).collect() };
    let (gradients, tally) = trainer.gradient(&[chunk])?;

    let mut out = Folder { folder, files: vec![] };
    out.floats("input", &name(ValueId::of(graph.inputs()[0])), &by_image(&lanes, n_images))?;
    if loss == "labels" {
        out.integers("labels", &labels)?;
    } else {
        let values: Vec<ValueId> = targets.iter().filter_map(|t| teacher.find_value(t)).collect();
        let mut part = teacher.clone();
        part.set_outputs(&values);
        let program: Program<f32> = Program::compile(&part, &Plan::default())?;
        let (shared, mut workspace, mut sums) = (program.shared(), program.workspace(), program.sums());
        program.run(&[&lanes], &shared, &mut workspace, &mut sums);
        for (i, target) in targets.iter().enumerate() {
            let given = program.output(i, &workspace).ok_or("a target that is no image's")?;
            out.floats("target", target, &by_image(given, n_images))?;
        }
    }
    for ((name, values), gradient) in trainer.parameters().iter().zip(trainer.values()).zip(&gradients) {
        out.floats("parameter", name, values)?;
        out.floats("gradient", name, gradient)?;
    }
    let mut exact_loss = None;
    // Normalisations in training form are the trainer's own business.
    if exact && task.norms.is_empty() {
        let (loss, gradients) = in_double_precision(&task, &teacher, &lanes, &labels)?;
        exact_loss = Some(loss);
        for (name, gradient) in gradients {
            out.floats("exact", &name, &gradient)?;
        }
    }
    let summary = json!({ "loss": tally.mean_loss(), "exact_loss": exact_loss, "images": n_images, "files": out.files });
    std::fs::write(out.folder.join("step.json"), serde_json::to_string_pretty(&summary)?)?;
    println!("{} gradients, loss {}", gradients.len(), tally.mean_loss());
    Ok(())
}

fn read(path: &Path) -> Result<Graph, Box<dyn Error>> {
    if path.extension().is_some_and(|e| e == "bir") {
        return Ok(basisopt::ir::parse::parse(&std::fs::read_to_string(path)?)?);
    }
    Ok(Model::read(path)?.graph)
}

/// What a normalisation whose scale this is divides by.
fn deviation(graph: &Graph, scale: &str) -> Option<f64> {
    let uses = graph.uses(graph.find_value(scale)?);
    let norm = uses.iter().find(|u| u.slot == 1)?.node;
    let Op::BatchNormalization(op) = &graph.node(norm).op else { return None };
    let variance = graph.constant_value(graph.node_input(norm, 4)?)?.to_f64s().ok()?;
    Some((variance.first()? + f64::from(op.epsilon)).sqrt())
}

/// The network with other weights, made of each one's number, shape and values and of numbers in ±1.
fn moved(
    graph: &Graph,
    parameters: &[String],
    seed: u64,
    value: impl Fn(usize, &[usize], f64, f64) -> f64,
) -> Result<Graph, Box<dyn Error>> {
    let mut moved = graph.clone();
    for (i, name) in parameters.iter().enumerate() {
        let at = moved.find_value(name).ok_or("a parameter that is not there")?;
        let old = moved.constant_value(at).ok_or("a parameter that is no constant")?;
        let noise = numbers(seed + i as u64, old.len());
        let values: Vec<f64> =
            old.to_f64s()?.iter().zip(noise).map(|(&v, n)| value(i, old.shape(), v, n)).collect();
        let mut rewrite = Rewrite::at(at.node);
        let new =
            rewrite.constant(name.clone(), Tensor::from_f64s(old.dtype(), old.shape().to_vec(), &values)?);
        rewrite.replace(at, new);
        rewrite.apply(&mut moved)?;
    }
    infer(&mut moved)?;
    Ok(moved)
}

/// A loss, and gradients by name.
type Found = (f64, Vec<(String, Vec<f32>)>);

/// The same by the same rules in double precision: what both sides are to be near to.
fn in_double_precision(
    task: &Task<'_>,
    teacher: &Graph,
    lanes: &[f32],
    labels: &[usize],
) -> Result<Found, Box<dyn Error>> {
    let mut graph = task.network.clone();
    let find = |name: &String| graph.find_value(name).ok_or("a value that is not there");
    let mut terms = Vec::new();
    for (objective, weight) in &task.objectives {
        let term = match objective {
            Objective::Labels { logits } => Term::CrossEntropy { logits: find(logits)? },
            Objective::Distill { logits, temperature } => {
                Term::Distillation { logits: find(logits)?, temperature: *temperature }
            }
            Objective::Match { value, scale } => Term::Match { value: find(value)?, scale: *scale },
            Objective::Orthogonality(_) => return Err("no such loss here".into()),
        };
        terms.push((term, *weight));
    }
    let parameters = task.parameters.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    let attached = attach(&mut graph, &terms)?;
    infer(&mut graph)?;
    let derived = differentiate(&graph, &Request { targets: vec![attached.value], parameters })?;
    let images: Vec<f64> = lanes.iter().map(|&v| f64::from(v)).collect();
    let mut inputs = vec![images.clone()];
    for target in &attached.targets {
        inputs.push(match target {
            Target::Label { n_classes } => {
                let mut one_hot = vec![0.0; n_classes * LANES];
                labels.iter().enumerate().for_each(|(lane, label)| one_hot[label * LANES + lane] = 1.0);
                one_hot
            }
            Target::Original(name) => {
                // What the network is given in single precision.
                let value = teacher.find_value(name).ok_or("a target that is not there")?;
                let mut part = teacher.clone();
                part.set_outputs(&[value]);
                let program: Program<f32> = Program::compile(&part, &Plan::default())?;
                let (shared, mut workspace, mut sums) =
                    (program.shared(), program.workspace(), program.sums());
                program.run(&[lanes], &shared, &mut workspace, &mut sums);
                let values = program.output(0, &workspace).ok_or("a target that is no image's")?;
                values.iter().map(|&v| f64::from(v)).collect()
            }
        });
    }
    let share = |lane| if lane < labels.len() { 1.0 / labels.len() as f64 } else { 0.0 };
    inputs.push((0..LANES).map(share).collect());
    let plan = Plan { parameters: derived.parameters.clone(), summed: derived.summed.clone() };
    let program: Program<f64> = Program::compile(&derived.graph, &plan)?;
    let (mut shared, mut workspace, mut sums) = (program.shared(), program.workspace(), program.sums());
    let slices: Vec<&[f64]> = inputs.iter().map(Vec::as_slice).collect();
    program.run(&slices, &shared, &mut workspace, &mut sums);
    program.finish(&mut sums, &mut shared);
    let losses = program.output(0, &workspace).ok_or("no loss")?;
    let loss = losses.iter().take(labels.len()).sum::<f64>() / labels.len() as f64;
    let mut gradients = Vec::new();
    for (i, name) in derived.parameters.iter().enumerate() {
        let gradient = program.total(1 + i, &sums).ok_or("a gradient that is no sum")?;
        gradients.push((name.clone(), gradient.iter().map(|&v| v as f32).collect()));
    }
    Ok((loss, gradients))
}

/// From one lane per image to one image behind the other.
fn by_image(lanes: &[f32], n_images: usize) -> Vec<f32> {
    (0..n_images).flat_map(|l| lanes.iter().skip(l).step_by(LANES).copied()).collect()
}

/// Numbers in ±1.
fn numbers(seed: u64, n: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Files of numbers, and what is in them.
struct Folder {
    folder: PathBuf,
    files: Vec<Value>,
}

impl Folder {
    fn add(&mut self, kind: &str, name: &str, bytes: Vec<u8>) -> Result<(), Box<dyn Error>> {
        let file = format!("{}.bin", self.files.len());
        std::fs::write(self.folder.join(&file), bytes)?;
        self.files.push(json!({ "kind": kind, "name": name, "file": file }));
        Ok(())
    }

    fn floats(&mut self, kind: &str, name: &str, values: &[f32]) -> Result<(), Box<dyn Error>> {
        self.add(kind, name, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn integers(&mut self, kind: &str, values: &[usize]) -> Result<(), Box<dyn Error>> {
        self.add(kind, "labels", values.iter().flat_map(|&v| (v as i64).to_le_bytes()).collect())
    }
}
