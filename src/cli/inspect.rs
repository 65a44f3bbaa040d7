//! `inspect`: what a network is made of, and what factoring could do about it.

mod layers;
mod show;

use crate::network::{self, Network, parse_dim};
use crate::progress::{Progress, interrupted};
use crate::table::{Format, emit, json};
use crate::{Globals, INTERRUPTED};
use anyhow::anyhow;
use basisopt_ir::{Graph, Op};
use basisopt_passes::Globs;
use basisopt_passes::cost::{self, Cost};
use layers::{LayerReport, Request};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  basisopt inspect m.onnx
  basisopt inspect m.onnx --energy 0.63                 ranks at another energy
  basisopt inspect m.onnx --layers '*layer3*|fc'        only these layers
  basisopt inspect yolo.onnx --dim H=416 --dim W=416    sizes that the file leaves open
  basisopt inspect m.onnx --format json --singular-values > m.json

The columns:
  shape       kernel, input→output channels; sN stride, dN dilation, gN groups
  MACs        multiply-adds per image, padding counted, biases not
  spectrum    energy (squared singular values) of the weight, from the largest values on the left
              to the smallest, in up to ten parts of equal size; the height is linear, relative to
              the part with most, so that the area shows where the energy is; a dot is less than
              a thousandth
  rank        smallest rank that keeps --energy of it / full rank (per group)
  break-even  factoring saves multiply-adds strictly below this rank
  factored    multiply-adds of the two factors at that rank, as a share of the layer's; or why the
              layer is left whole, explained below the table";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The network: an .onnx or .bir file, or - for stdin.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Share of the energy that ranks should keep.
    #[arg(long, value_name = "T", default_value_t = 0.9, value_parser = parse_share)]
    energy: f64,
    /// Only layers whose name matches (globs joined by |).
    #[arg(long, value_name = "GLOBS", value_parser = parse_globs)]
    layers: Option<Layers>,
    /// Size of an unknown dimension of the inputs, such as H=224; can be repeated.
    #[arg(long = "dim", value_name = "NAME=N", value_parser = parse_dim)]
    dims: Vec<(String, usize)>,
    /// Include all singular values (JSON only).
    #[arg(long)]
    singular_values: bool,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Patterns as they were written, and ready to match.
#[derive(Clone, Debug)]
struct Layers {
    text: String,
    globs: Globs,
}

fn parse_globs(text: &str) -> Result<Layers, String> {
    let globs = Globs::new(text).ok_or("not a glob pattern; *, ?, [a-z] and {a,b} are understood")?;
    Ok(Layers { text: text.to_owned(), globs })
}

fn parse_share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|t| (0.0..=1.0).contains(t))
        .ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

/// The result as JSON.
#[derive(Serialize)]
struct Report {
    file: String,
    /// Size of the file and its data files in bytes; `None` for text.
    n_bytes: Option<u64>,
    ir_version: i64,
    opset: i64,
    producer: Option<String>,
    metadata: BTreeMap<String, String>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    #[serde(flatten)]
    cost: Cost,
    /// Nodes by operator.
    operators: BTreeMap<String, usize>,
    /// Those of them that are not modelled, whose parameters and multiply-adds are not counted.
    opaque: BTreeMap<String, usize>,
    energy: f64,
    /// What would be left if every listed layer that gains were factored at this energy.
    factored: Factored,
    layers: Vec<LayerReport>,
    n_layers_left_out: usize,
    /// False if Ctrl-C ended the decompositions early.
    complete: bool,
}

#[derive(Serialize)]
struct Port {
    name: String,
    #[serde(rename = "type")]
    ty: String,
}

/// Totals after factoring.
#[derive(Serialize)]
struct Factored {
    n_layers: usize,
    macs: Option<u64>,
}

pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let Network { file, graph, source } = network::read(&args.model)?;
    network::check_dims(&file, &graph, &args.dims)?;
    let cost = cost::of_pinned(&graph, &args.dims);
    let progress = Progress::new("decomposing", globals.quiet);
    interrupted();
    let request = Request {
        energy: args.energy,
        only: args.layers.as_ref().map(|l| &l.globs),
        keep_values: args.singular_values,
    };
    let (layers, n_left_out) = layers::report(&graph, &cost, &request, &mut |done, of, name| {
        progress.update(done, of, name);
        !interrupted()
    });
    drop(progress);
    if let Some(pattern) = &args.layers
        && layers.is_empty()
    {
        return Err(anyhow!("{file}: none of its {n_left_out} layers matches --layers {}", pattern.text));
    }
    let producer = source.as_ref().map(|s| s.producer()).filter(|(name, _)| !name.is_empty());
    let port = |value| {
        let value = graph.value(value);
        Port { name: value.name.clone(), ty: value.ty.to_string() }
    };
    let report = Report {
        n_bytes: source.as_ref().map(|s| s.n_bytes()),
        ir_version: graph.ir_version,
        opset: graph.opset,
        producer: producer.map(|(name, version)| format!("{name} {version}").trim_end().to_owned()),
        metadata: source.iter().flat_map(|s| s.metadata()).collect(),
        inputs: graph.inputs().iter().map(|&id| port(basisopt_ir::ValueId::of(id))).collect(),
        outputs: graph.outputs().iter().map(|&v| port(v)).collect(),
        operators: operators(&graph, |op| !op.is_source()),
        opaque: operators(&graph, |op| matches!(op, Op::Opaque(_))),
        energy: args.energy,
        factored: factored(&cost, &layers),
        complete: !interrupted(),
        n_layers_left_out: n_left_out,
        file,
        cost,
        layers,
    };
    emit(&match args.format {
        Format::Json => json(&report)?,
        Format::Text => show::text(&report),
    })?;
    Ok(if report.complete { ExitCode::SUCCESS } else { ExitCode::from(INTERRUPTED) })
}

/// Counts the nodes with such operators.
fn operators(graph: &Graph, counted: fn(&Op) -> bool) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for id in graph.node_ids() {
        let op = &graph.node(id).op;
        if counted(op) {
            let name = match op.domain() {
                "" => op.op_type().to_owned(),
                domain => format!("{domain}::{}", op.op_type()),
            };
            *counts.entry(name).or_insert(0) += 1;
        }
    }
    counts
}

fn factored(cost: &Cost, layers: &[LayerReport]) -> Factored {
    let gains = layers.iter().filter(|l| l.refusal.is_none());
    let gains: Vec<_> = gains.filter_map(|l| Some((l.matrix.as_ref()?.cost?, l.macs))).collect();
    let saved = |(share, macs): &(f64, Option<u64>)| macs.map(|m| m as f64 * (1.0 - share));
    let macs = cost.macs.and_then(|total| {
        let saved: f64 = gains.iter().map(saved).sum::<Option<f64>>()?;
        Some((total as f64 - saved).round() as u64)
    });
    Factored { n_layers: gains.len(), macs }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gains_is_added_up() {
        let graph: Graph = "graph @g(%x: f32[1,3,8,8]) -> (%y) {
            %w = f32[16,3,3,3] lowrank(2, seed=1)
            %y = Conv<pads=[1,1,1,1]>(%x, %w)
          }"
        .parse()
        .unwrap();
        let cost = cost::of_pinned(&graph, &[]);
        let request = Request { energy: 0.9999, only: None, keep_values: false };
        let (layers, _) = layers::report(&graph, &cost, &request, &mut |_, _, _| true);
        // 16×27 at 64 positions; rank 2 costs 2·(16 + 27) of 432.
        assert_eq!(layers[0].macs, Some(64 * 432));
        assert_eq!(layers[0].matrix.as_ref().unwrap().energy_rank, Some(2));
        let total = factored(&cost, &layers);
        assert_eq!((total.n_layers, total.macs), (1, Some(64 * 86)));
    }
}
