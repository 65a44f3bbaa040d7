//! `bisect`: the first pass and rewrite after which the outputs are too far off.

use crate::host::CliHost;
use crate::opt::{explain, parse_tolerance};
use crate::pipeline::PassFlags;
use crate::table::{Format, emit, json};
use crate::work::{self, CheckArgs, count};
use crate::{Globals, INTERRUPTED, Usage, network};
use anyhow::anyhow;
use basisopt_passes::{BisectError, Culprit, Deviation, bisect};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  basisopt bisect m.onnx --fold-batch-norm --eliminate-identity --tolerance 1e-4
  basisopt bisect m.onnx -p factorize-conv:energy=0.5 --tolerance 0.1 --check-data images/

The pipeline is run again and again, stopped after ever other numbers of rewrites, until the one is
found before which the outputs are within the tolerance and after which they are not. For an exact
pass that is a bug worth reporting; for an approximate one it is the layer that costs too much. As
every bisection it supposes that what is broken stays broken. The exit code is 0 whether there is
such a rewrite or not.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The network: an .onnx or .bir file, or - for stdin.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    passes: PassFlags,
    #[command(flatten)]
    check: CheckArgs,
    /// How far outputs may be from the original's, relative to the largest magnitude of each.
    #[arg(long, value_name = "R", default_value_t = 1e-3, value_parser = parse_tolerance, help_heading = "Checking and running")]
    tolerance: f64,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The result as JSON; a null deviation is infinite.
#[derive(Serialize)]
struct JsonResult<'a> {
    file: &'a str,
    pipeline: String,
    tolerance: f64,
    /// Deviation after the whole pipeline.
    deviation: f64,
    culprit: Option<JsonCulprit<'a>>,
}

#[derive(Serialize)]
struct JsonCulprit<'a> {
    rewrite: usize,
    pass: &'a str,
    node: &'a str,
    message: &'a str,
    deviation_before: f64,
    deviation_after: f64,
    output: &'a str,
}

pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let pipeline = args.passes.pipeline()?;
    if pipeline.items.is_empty() {
        return Err(Usage(
            "bisect: no passes were given; give flags such as --fold-batch-norm, or -p".to_owned(),
        )
        .into());
    }
    args.check.start_threads()?;
    let host = CliHost::new(globals.quiet);
    let mut model = network::model(&args.model)?;
    let file = model.source().file().to_owned();
    work::import_notes(&mut model, globals.quiet);
    network::check_dims(model.source().file(), &model.graph, &args.check.dims)?;
    if !pipeline.items.is_empty() {
        basisopt_embed::optimize::refuse_non_finite(&model)?;
    }
    let mut executor = args.check.executor(&model, &args.model)?;
    let mut whole: Option<Deviation> = None;
    let found = bisect(
        &model.graph,
        &pipeline,
        &mut executor,
        &host,
        (args.check.seed, args.tolerance),
        &mut |n, deviation| {
            whole.get_or_insert_with(|| deviation.clone());
            if !globals.quiet {
                let verdict = if deviation.relative <= args.tolerance { "within" } else { "beyond" };
                eprintln!(
                    "{:>14}: moved by {:.1e}, {verdict} the tolerance",
                    count(n, "rewrite"),
                    deviation.relative
                );
            }
        },
    );
    let culprit = match found {
        Err(BisectError::Manager(e)) if work::was_interrupted(&e) => {
            eprintln!("error: {file}: interrupted");
            return Ok(ExitCode::from(INTERRUPTED));
        }
        Err(BisectError::Manager(e)) => return Err(explain(e, &file)),
        Err(e) => return Err(anyhow!("{file}: {e}")),
        Ok(culprit) => culprit,
    };
    let deviation = whole.map_or(0.0, |d| d.relative);
    let text = match args.format {
        Format::Text => text(culprit.as_ref(), deviation, args.tolerance),
        Format::Json => {
            let culprit = culprit.as_ref().map(|c| JsonCulprit {
                rewrite: c.rewrite,
                pass: &c.pass,
                node: &c.node,
                message: &c.message,
                deviation_before: c.before.relative,
                deviation_after: c.after.relative,
                output: &c.after.output,
            });
            let (file, pipeline) = (file.as_str(), pipeline.to_string());
            json(&JsonResult { file, pipeline, tolerance: args.tolerance, deviation, culprit })?
        }
    };
    emit(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn text(culprit: Option<&Culprit>, deviation: f64, tolerance: f64) -> String {
    let Some(c) = culprit else {
        return format!(
            "no rewrite breaks the tolerance: all of them together move the outputs by {deviation:.1e} (allowed: {tolerance:.0e})\n"
        );
    };
    format!(
        "rewrite {} breaks the tolerance of {tolerance:.0e}\n  pass     {}\n  node     {}\n  what     {}\n  before   outputs moved by {:.1e}\n  after    output {:?} moved by {:.1e}\n\nThe network just before it: basisopt opt … --stop-after={} -o before.onnx\n",
        c.rewrite,
        c.pass,
        c.node,
        c.message,
        c.before.relative,
        c.after.output,
        c.after.relative,
        c.rewrite - 1
    )
}
