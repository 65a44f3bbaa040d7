//! `differentiate`: the gradient of a network as a graph, and what a step of training costs.

use crate::network::RunArgs;
use crate::step::{self, LossArg, NormArg};
use crate::table::{Format, emit, json, si};
use crate::work::{bytes, check_outputs};
use crate::{Globals, Usage, network};
use anyhow::{Context as _, anyhow};
use basisopt_ir::infer::infer;
use basisopt_ir::print::print;
use basisopt_ir::{Graph, ValueId};
use basisopt_onnx::Model;
use basisopt_passes::{Globs, Manager, NoObserver, Pipeline, Registry, cost, trainable};
use basisopt_train::differentiate::{Request, differentiate, frontier};
use basisopt_train::examples::Chunk;
use basisopt_train::optimizer::{Method, Optimizer};
use basisopt_train::task::{Objective, Reference, Task};
use basisopt_train::trainer::Trainer;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  basisopt differentiate m.onnx --print | less
      the network with its gradient for every weight and bias, as .bir text
  basisopt differentiate m.onnx --print --of conv1.weight
      for one weight
  basisopt differentiate detector.onnx
      up to where there is a gradient: what fine-tune can train against
  basisopt differentiate m.onnx --time --batch 128 --threads 2
      images per second of forward, backward and update, and memory
  basisopt differentiate small.onnx --loss labels -o step.onnx
      a step of training for ONNX Runtime and others: network, loss and gradients in standard operators
  basisopt differentiate small.onnx --loss distill:temperature=2 -o step.onnx
      towards a teacher's logits, which are an input

With --loss the graph has what a step of training needs. Inputs: the network's, and labels (i64[N]) for labels, the logits of a
teacher for distill, VALUE.target for match (outputs, or match=VALUES). Weights are inputs with a default. Outputs: the
network's, loss (the mean over the batch), NAME.grad of each weight NAME. docs/training-elsewhere.md has complete scripts;
load-weights puts weights back.

Without --loss the gradient starts from an input NAME.seed beside each target NAME, and ends in outputs PARAMETER.grad.
Targets are the outputs, or the last values that have a gradient. Constants are folded first (freeze-weights,@clean).";

/// What is done first.
const CLEANING: &str = "freeze-weights,@clean";
/// Steps that are timed, after one that is not.
const STEPS: usize = 7;
/// Images in one run of a program.
const LANES: usize = 16;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The network: an .onnx or .bir file, or - for stdin.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Print the network with its gradient as .bir text.
    #[arg(long)]
    print: bool,
    /// Make a step of training in standard operators: labels, distill[:temperature=T] or match[=VALUES], globs joined by |.
    #[arg(long, value_name = "LOSS", conflicts_with_all = ["until", "time", "batch"])]
    loss: Option<LossArg>,
    /// Write the step to this file.
    #[arg(long, short, value_name = "FILE", requires = "loss", conflicts_with = "print")]
    output: Option<PathBuf>,
    /// Open the batch in the step, where the file fixes it at one.
    #[arg(long, requires = "loss")]
    open_batch: bool,
    /// Statistics that batch normalisations use in the step.
    #[arg(long, value_enum, value_name = "WHICH", requires = "loss", default_value = "given")]
    norm: NormArg,
    /// Differentiate for the constants whose name matches (globs joined by |) [default: weights and biases].
    #[arg(long, value_name = "GLOBS")]
    of: Option<String>,
    /// Start from the values whose name matches (globs joined by |).
    #[arg(long, value_name = "GLOBS")]
    until: Option<String>,
    /// Time steps of training on random images.
    #[arg(long, conflicts_with = "print")]
    time: bool,
    /// How to print what is not the graph.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Serialize)]
struct Summary<'a> {
    file: &'a str,
    nodes: usize,
    gradient_nodes: usize,
    targets: Vec<String>,
    parameters: usize,
    values: u64,
    without_effect: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Time>,
}

/// What a step costs.
#[derive(Clone, Copy, Serialize)]
struct Time {
    batch: usize,
    threads: usize,
    /// Of the median step.
    images_per_second: f64,
    best_images_per_second: f64,
    /// Buffers, sums and parameters, known before the first step.
    memory_bytes: usize,
}

fn globs(flag: &str, text: &Option<String>) -> Result<Option<Globs>, Usage> {
    let Some(text) = text else { return Ok(None) };
    Globs::new(text).map(Some).ok_or_else(|| Usage(format!("{flag} {text}: these are no glob patterns")))
}

pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    if args.loss.is_some() && args.output.is_none() && !args.print {
        return Err(Usage(
            "--loss makes a step of training: name a file for it with -o, or --print it".to_owned(),
        )
        .into());
    }
    if let Some(output) = &args.output {
        check_outputs(&[Some(&args.model)], &[("-o", Some(output))])?;
    }
    let (of, until) = (globs("--of", &args.of)?, globs("--until", &args.until)?);
    let model = network::model(&args.model)?;
    let file = model.source().file().to_owned();
    network::check_dims(&file, &model.graph, &args.run.dims)?;
    // Sizes that are computed are numbers by then, and constants that a caller could override are not.
    let mut graph = model.graph.clone();
    let pipeline = Pipeline::parse(CLEANING, &Registry::builtin())?;
    Manager::default().run(&mut graph, &pipeline, &mut NoObserver).with_context(|| file.clone())?;
    if let Some(loss) = &args.loss {
        return step(&args, &model, &graph, loss, of.as_ref(), globals);
    }
    cost::pin(&mut graph, &args.run.dims);
    infer(&mut graph).with_context(|| file.clone())?;
    let name = |v: ValueId| graph.value(v).name.clone();
    let parameters = parameters(&graph, of.as_ref()).with_context(|| file.clone())?;
    let of: Vec<ValueId> = parameters.iter().filter_map(|p| graph.find_value(p)).collect();
    let targets = match &until {
        Some(until) => {
            let values = graph.topological().into_iter().map(ValueId::of);
            let found: Vec<ValueId> =
                values.filter(|&v| !graph.node(v.node).op.is_source() && until.matches(&name(v))).collect();
            if found.is_empty() {
                return Err(anyhow!("{file}: --until matches the name of no value"));
            }
            found
        }
        None => frontier(&graph, &of),
    };
    let request = Request { targets: targets.clone(), parameters: of };
    let mut derived = differentiate(&graph, &request).map_err(|e| anyhow!("{file}: {e}"))?;
    if args.print {
        infer(&mut derived.graph).with_context(|| file.clone())?;
        emit(&print(&derived.graph))?;
        return Ok(ExitCode::SUCCESS);
    }
    let sizes =
        |p: &String| graph.find_value(p).and_then(|v| graph.constant_value(v)).map_or(0, |t| t.len() as u64);
    let summary = Summary {
        file: &file,
        nodes: graph.n_nodes(),
        gradient_nodes: derived.graph.n_nodes() - graph.n_nodes(),
        targets: targets.iter().map(|&v| name(v)).collect(),
        parameters: derived.parameters.len(),
        values: derived.parameters.iter().map(sizes).sum(),
        without_effect: &derived.unreached,
        time: if args.time { Some(time(&args, &graph, &targets, derived.parameters.clone())?) } else { None },
    };
    emit(&match args.format {
        Format::Json => json(&summary)?,
        Format::Text => text(&summary),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Names of the weights and biases that are asked for.
fn parameters(graph: &Graph, of: Option<&Globs>) -> anyhow::Result<Vec<String>> {
    let mut parameters = trainable(graph)?;
    parameters.retain(|p| of.is_none_or(|of| of.matches(p)));
    if parameters.is_empty() {
        return Err(anyhow!("--of matches the name of no weight or bias"));
    }
    Ok(parameters)
}

/// A step of training as a model of its own, written or printed.
fn step(
    args: &Args,
    model: &Model,
    graph: &Graph,
    loss: &LossArg,
    of: Option<&Globs>,
    globals: &Globals,
) -> anyhow::Result<ExitCode> {
    let file = model.source().file();
    let mut graph = graph.clone();
    let opened = if args.open_batch { step::open(&mut graph) } else { Ok(()) };
    let made = opened.and_then(|()| parameters(&graph, of));
    let made = made.and_then(|p| step::make(&graph, &args.run.dims, loss, args.norm, p));
    let made = made.map_err(|e| if e.is::<Usage>() { e } else { e.context(file.to_owned()) })?;
    match &args.output {
        None => emit(&print(&made.graph))?,
        Some(output) => {
            let summary = step::write(&made, model, output, globals)?;
            emit(&match args.format {
                Format::Json => json(&summary)?,
                Format::Text => summary.text(),
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Times steps of training: with random labels where there are classes, against itself where there are none.
fn time(args: &Args, graph: &Graph, targets: &[ValueId], parameters: Vec<String>) -> anyhow::Result<Time> {
    let batch = args.run.batch().unwrap_or(128);
    let threads = args.run.threads();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool =
        pool.with_context(|| format!("{threads} threads cannot be started; ask for fewer with --threads"))?;
    let name = |v: &ValueId| graph.value(*v).name.clone();
    let classes = |v: &ValueId| match graph.value(*v).ty.static_shape()?[..] {
        [1, k] if k > 1 => Some(k),
        _ => None,
    };
    let (objectives, n_classes) = match targets {
        [one] if classes(one).is_some() => {
            (vec![(Objective::Labels { logits: name(one) }, 1.0)], classes(one))
        }
        _ => (targets.iter().map(|v| (Objective::Match { value: name(v), scale: 1.0 }, 1.0)).collect(), None),
    };
    let task = Task {
        network: graph,
        reference: Reference::Network(graph),
        objectives,
        parameters,
        logits: None,
        norms: vec![],
        frames: vec![],
    };
    let mut trainer = Trainer::new(&task)?;
    let sizes: Vec<usize> = trainer.values().iter().map(Vec::len).collect();
    let mut optimizer = Optimizer::new(Method::Sgd { momentum: 0.9 }, 0.0, &sizes);
    let len = trainer.image_len() * LANES;
    let chunks: Vec<Chunk> = (0..batch)
        .step_by(LANES)
        .map(|at| Chunk {
            // Any numbers will do, if they are not all alike.
            images: (0..len).map(|i| ((at + i) * 7919 % 1000) as f32 / 500.0 - 1.0).collect(),
            targets: vec![],
            labels: (at..batch.min(at + LANES)).map(|i| n_classes.map(|k| i % k)).collect(),
        })
        .collect();
    let mut seconds = Vec::with_capacity(STEPS);
    for step in 0..=STEPS {
        let started = Instant::now();
        let (gradients, _) = pool.install(|| trainer.gradient(&chunks))?;
        // So small a rate that the network stays what it is.
        optimizer.step(trainer.values_mut(), &gradients, &[], 1e-12);
        trainer.changed();
        if step > 0 {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let speed = |s: Option<&f64>| s.map_or(0.0, |s| batch as f64 / s);
    Ok(Time {
        batch,
        threads,
        images_per_second: speed(seconds.get(STEPS / 2)),
        best_images_per_second: speed(seconds.first()),
        memory_bytes: trainer.memory(threads),
    })
}

fn text(s: &Summary<'_>) -> String {
    let mut out = format!(
        "{} nodes and {} of its gradient, for {} constants of {} values\n",
        s.nodes,
        s.gradient_nodes,
        s.parameters,
        si(s.values as f64)
    );
    out += &format!("from {}\n", s.targets.join(", "));
    if !s.without_effect.is_empty() {
        out += &format!("without effect: {}\n", s.without_effect.join(", "));
    }
    if let Some(t) = &s.time {
        out += &format!(
            "a step of {} images on {} threads: {:.0} images/s (best {:.0}), {} of memory\n",
            t.batch,
            t.threads,
            t.images_per_second,
            t.best_images_per_second,
            bytes(t.memory_bytes as u64)
        );
    }
    out
}
