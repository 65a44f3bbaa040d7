//! `print`: a network as text or as a drawing.

use crate::{Globals, network, table};
use basisopt_ir::dot::{DotOptions, dot};
use basisopt_ir::print::{PrintOptions, print_with};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  basisopt print m.onnx | less                  every node with its attributes and inferred types
  basisopt print m.onnx > m.bir                 for diff, inspect and print; weights as norms
  basisopt print --constants m.onnx > m.bir     with every value of every weight: the whole model
  basisopt print --dot m.onnx | dot -Tsvg > m.svg

The text format is described in docs/ir.md.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The network: an .onnx or .bir file, or - for stdin.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Print a drawing for Graphviz.
    #[arg(long)]
    dot: bool,
    /// Show all values of constants; in a drawing, show constants as nodes.
    #[arg(long)]
    constants: bool,
}

pub(crate) fn run(args: Args, _: &Globals) -> anyhow::Result<ExitCode> {
    let graph = network::read(&args.model)?.graph;
    let text = match args.dot {
        true => dot(&graph, &DotOptions { constants: args.constants }),
        false => print_with(&graph, &PrintOptions { values: args.constants, ..PrintOptions::default() }),
    };
    table::emit(&text)?;
    Ok(ExitCode::SUCCESS)
}
