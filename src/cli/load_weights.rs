//! `load-weights`: weights that were trained elsewhere, back into a network.

use crate::table::{Format, emit, json};
use crate::work::{check_outputs, count};
use crate::{Globals, network};
use anyhow::{Context as _, anyhow};
use basisopt_ir::{Graph, Op, Rewrite, Tensor, ValueId};
use basisopt_onnx::Model;
use basisopt_passes::driver::options::closest;
use basisopt_runtime::read_arrays;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  basisopt load-weights small.onnx weights.npz -o trained.onnx
      numpy.savez(\"weights.npz\", **{name: array}), by the names of the initializers
  basisopt load-weights small.onnx step.onnx -o trained.onnx
      a step of `differentiate --loss` that was saved with other weights
  basisopt load-weights small.onnx other.onnx -o trained.onnx
      the initializers of another network that have the same names

Shapes must be the same. Floats are rounded to the type that the network has; what is not finite there is refused. Every array
of an .npz and every weight of a step must be in the network; of another network, what this one does not have is left out. All
else in the file stays as it is: with nothing new, the output is the input byte for byte.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The network: an .onnx or .bir file, or - for stdin.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The weights: an .npz or an .onnx file.
    #[arg(value_name = "WEIGHTS")]
    weights: PathBuf,
    /// Write the network to this file.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Weights by name.
struct Weights {
    tensors: BTreeMap<String, Tensor>,
    /// Whether each of them has to be in the network.
    all: bool,
}

#[derive(Default, Serialize)]
struct Summary {
    file: String,
    /// Weights that have other values now.
    replaced: usize,
    /// Weights that were given as they were.
    unchanged: usize,
    /// Float constants of the network that were not given.
    kept: usize,
    /// Initializers of another network that this one does not have.
    left_out: usize,
}

pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    check_outputs(&[Some(&args.model), Some(&args.weights)], &[("-o", Some(&args.output))])?;
    let mut model = network::model(&args.model)?;
    let weights = read(&args.weights)?;
    let from = args.weights.display().to_string();
    let mut summary = Summary { file: args.output.display().to_string(), ..Summary::default() };
    let places = places(&model.graph);
    let mut given = BTreeSet::new();
    for (name, new) in &weights.tensors {
        if !places.contains(name) {
            if weights.all {
                return Err(unknown(&model, &from, name, &places));
            }
            summary.left_out += 1;
            continue;
        }
        given.insert(name);
        match put(&mut model.graph, name, new).with_context(|| format!("{from}: weight {name:?}"))? {
            true => summary.replaced += 1,
            false => summary.unchanged += 1,
        }
    }
    if given.is_empty() {
        let text = "no weight has a name that the network has";
        return Err(anyhow!("{from}: {text}; `basisopt inspect {}` lists its layers", args.model.display()));
    }
    summary.kept = places.len() - given.len();
    model.write(&args.output)?;
    if !globals.quiet && summary.left_out > 0 {
        eprintln!("note: {from}: {} not in the network left out", count(summary.left_out, "initializer"));
    }
    emit(&match args.format {
        Format::Json => json(&summary)?,
        Format::Text => format!(
            "wrote {}: {} replaced, {} given as before, {} kept\n",
            summary.file,
            count(summary.replaced, "weight"),
            summary.unchanged,
            summary.kept
        ),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Reads weights. A step of training has them as inputs with a default; a network without such has them among its
/// initializers.
fn read(path: &Path) -> anyhow::Result<Weights> {
    let has_extension = |e: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(e));
    if has_extension("npz") {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in read_arrays(path)? {
            tensors.insert(name, tensor);
        }
        return Ok(Weights { tensors, all: true });
    }
    if !has_extension("onnx") {
        return Err(anyhow!(
            "{}: weights come as .npz (numpy.savez) or .onnx; convert others with Python",
            path.display()
        ));
    }
    let graph = Model::read(path)?.graph;
    let constants = || {
        let nodes = graph.node_ids().map(|id| graph.node(id));
        nodes.filter_map(|n| match (&n.op, n.outputs.first()) {
            (Op::Constant(t), Some(v)) if t.dtype().is_float() => Some((n, v.name.clone(), t.clone())),
            _ => None,
        })
    };
    let is_step = graph.metadata.contains_key(basisopt_train::step::LOSS_KEY);
    let wanted = constants().filter(|(n, ..)| n.overridable || !is_step);
    Ok(Weights { tensors: wanted.map(|(_, name, t)| (name, t)).collect(), all: is_step })
}

/// Names of the float constants of a network.
fn places(graph: &Graph) -> BTreeSet<String> {
    let values = graph.node_ids().map(ValueId::of).filter(|&v| constant(graph, v).is_some());
    values.map(|v| graph.value(v).name.clone()).collect()
}

/// A float constant, one that a caller may override included.
fn constant(graph: &Graph, v: ValueId) -> Option<Tensor> {
    let found = match &graph.node(v.node).op {
        Op::Constant(t) => Some(t.clone()),
        _ => graph.constant_value(v),
    };
    found.filter(|t| t.dtype().is_float())
}

fn unknown(model: &Model, from: &str, name: &str, places: &BTreeSet<String>) -> anyhow::Error {
    let file = model.source().file();
    if model.graph.find_value(name).is_some_and(|v| !model.graph.node(v.node).op.is_source()) {
        return anyhow!(
            "{from}: {name:?} is computed in {file}, from other constants; \
             load the weights into what `basisopt opt {file} -p freeze-weights,@clean` writes"
        );
    }
    match closest(name, places.iter().map(String::as_str)) {
        Some(near) => anyhow!("{from}: {file} has no weight {name:?}; did you mean {near:?}?"),
        None => anyhow!("{from}: {file} has no weight {name:?}"),
    }
}

/// Gives a constant another value; says whether it is another one.
fn put(graph: &mut Graph, name: &str, new: &Tensor) -> anyhow::Result<bool> {
    let value = graph.find_value(name).ok_or_else(|| anyhow!("it is gone"))?;
    let old = constant(graph, value).ok_or_else(|| anyhow!("it is no constant"))?;
    if !new.dtype().is_float() {
        return Err(anyhow!("it is of type {}; a weight is a float", new.dtype()));
    }
    if new.shape() != old.shape() {
        return Err(anyhow!("its shape is {:?}; the network's is {:?}", new.shape(), old.shape()));
    }
    if !new.is_finite() {
        return Err(anyhow!("it contains NaN or infinity; the training diverged, or the file is damaged"));
    }
    let rounded = match new.dtype() == old.dtype() {
        true => new.clone(),
        false => Tensor::from_f64s(old.dtype(), old.shape().to_vec(), &new.to_f64s()?)?,
    };
    if !rounded.is_finite() {
        return Err(anyhow!("it has values that {} cannot hold, which the network is in", old.dtype()));
    }
    if !old.is_elided() && rounded.to_bytes()? == old.to_bytes()? {
        return Ok(false);
    }
    let is_input = graph.node(value.node).overridable;
    let mut rewrite = Rewrite::at(value.node);
    let constant = rewrite.constant(name, rounded);
    rewrite.replace(value, constant);
    rewrite.apply(graph)?;
    if let Some(new) = graph.find_value(name).filter(|_| is_input) {
        graph.unfreeze(new.node);
    }
    Ok(true)
}
