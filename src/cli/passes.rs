//! `passes`: what passes there are, and what each takes.

use crate::table::{Format, emit, json, render, table};
use crate::{Globals, Usage};
use basisopt_passes::{PassInfo, Registry};
use serde::Serialize;
use std::fmt::Write as _;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  basisopt passes
  basisopt passes factorize-conv
  basisopt passes --format json

An exact pass keeps the function of the network up to rounding, and the pass manager checks that
it does; an approximate one gives a nearby function and reports how near. docs/passes.md tells more.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The pass to explain; all are listed without.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Serialize)]
struct Pass {
    name: &'static str,
    fidelity: String,
    summary: &'static str,
    options: Vec<Opt>,
}

#[derive(Serialize)]
struct Opt {
    name: &'static str,
    accepts: String,
    default: &'static str,
    help: &'static str,
}

impl From<&'static PassInfo> for Pass {
    fn from(info: &'static PassInfo) -> Self {
        let option = |o: &'static basisopt_passes::OptionSpec| Opt {
            name: o.name,
            accepts: o.kind.describe(),
            default: o.default,
            help: o.help,
        };
        Self {
            name: info.name,
            fidelity: info.fidelity.to_string(),
            summary: info.summary,
            options: info.options.iter().map(option).collect(),
        }
    }
}

pub(crate) fn run(args: Args, _: &Globals) -> anyhow::Result<ExitCode> {
    let registry = Registry::builtin();
    let text = match &args.name {
        None => {
            let passes: Vec<Pass> = registry.passes().iter().map(|&p| p.into()).collect();
            match args.format {
                Format::Json => json(&passes)?,
                Format::Text => list(&passes, &registry),
            }
        }
        Some(name) => {
            let name = name.trim_start_matches('-');
            let pass = registry.find(name).ok_or_else(|| {
                let hint =
                    registry.closest(name).map(|h| format!(" (did you mean {h:?}?)")).unwrap_or_default();
                Usage(format!("there is no pass {name:?}{hint}; `basisopt passes` lists them"))
            })?;
            match args.format {
                Format::Json => json(&Pass::from(pass))?,
                Format::Text => explain(&pass.into()),
            }
        }
    };
    emit(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn list(passes: &[Pass], registry: &Registry) -> String {
    let mut rows = table(&["pass", "fidelity", "what it does"]);
    left_align(&mut rows);
    for pass in passes {
        rows.add_row([pass.name, &pass.fidelity, pass.summary]);
    }
    let mut out = render(&rows);
    let mut rows = table(&["preset", "stands for"]);
    left_align(&mut rows);
    for (name, pipeline) in registry.presets() {
        rows.add_row([format!("@{name}"), (*pipeline).to_owned()]);
    }
    let _ = write!(out, "\n{}\n`basisopt passes NAME` explains one and its options.\n", render(&rows));
    out
}

fn explain(pass: &Pass) -> String {
    let mut out = format!("{}: {} ({})\n", pass.name, pass.summary, pass.fidelity);
    if pass.options.is_empty() {
        out.push_str("\nIt takes no options.\n");
    } else {
        let mut rows = table(&["option", "accepts", "default", "meaning"]);
        left_align(&mut rows);
        for option in &pass.options {
            rows.add_row([option.name, &option.accepts, option.default, option.help]);
        }
        let _ = write!(out, "\n{}", render(&rows));
    }
    let example = pass.options.first().map(|option| {
        // A default may go on with a condition: "0.9, if …".
        let value = option.default.split([',', ' ']).next().unwrap_or_default();
        format!("{}={value}", option.name)
    });
    let with = |joint: &str| example.as_ref().map(|e| format!("{joint}{e}")).unwrap_or_default();
    let (name, flag, item) = (pass.name, with("="), with(":"));
    let _ = write!(
        out,
        "\nAs a flag, and the same as text:\n  basisopt opt m.onnx --{name}{flag} -o out.onnx\n  basisopt opt m.onnx -p {name}{item} -o out.onnx\n"
    );
    out
}

fn left_align(table: &mut comfy_table::Table) {
    for column in table.column_iter_mut() {
        column.set_cell_alignment(comfy_table::CellAlignment::Left);
    }
}
