//! `compare`: how far two networks are apart on the same inputs.

use crate::data::{DataArgs, explain};
use crate::network::{RunArgs, runnable};
use crate::progress::{Progress, interrupted};
use crate::table::{Format, emit, json, render, shorten, table};
use crate::{Globals, INTERRUPTED};
use anyhow::anyhow;
use basisopt_ir::Tensor;
use basisopt_runtime::{
    Dataset, ENGINE, Engine, OutputDiff, Preprocess, RuntimeError, Session, Source, all_close, compare,
    random_inputs,
};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Inputs to compare on where `--samples` does not say.
const RANDOM_SAMPLES: usize = 8;
const IMAGES: usize = 100;
/// The largest batch that is chosen without `--batch`.
const MAX_BATCH: usize = 16;

const EXAMPLES: &str = "\
Examples:
  basisopt compare m.onnx small.onnx                    on images if m.toml names any, else random
  basisopt compare m.onnx small.onnx --random --samples 32 --seed 7
  basisopt compare m.onnx same.onnx --tolerance 1e-4    exit code 1 if they differ by more
  basisopt compare m.onnx small.onnx --data images/ --mean 0.485,0.456,0.406 \\
      --std 0.229,0.224,0.225
  basisopt compare m.onnx small.onnx --dim H=320 --dim W=320 --format json

A is the reference. Per output, over all inputs:
  max abs   largest |a - b|
  max rel   that, divided by the largest |a| of the whole output: relative to its scale
  cosine    of the angle between the two outputs taken as vectors
  top-1     share of images for which both put the same class first (outputs [N, classes])
In JSON, an infinite max_rel (a is zero everywhere, b is not) is null.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The reference: an .onnx or .bir file, or - for stdin.
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The network to compare with it.
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Exit with 1 if an output differs by more than this (max rel), or is infinite or NaN in one of
    /// the networks only.
    #[arg(long, value_name = "R", value_parser = parse_tolerance)]
    tolerance: Option<f64>,
    /// Use seeded random inputs even if the settings name data.
    #[arg(long, conflicts_with_all = ["data", "labels", "config", "skip"])]
    random: bool,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    run: RunArgs,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn parse_tolerance(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|&t| t >= 0.0)
        .ok_or_else(|| "expected a number, 0 or above, such as 1e-4".to_owned())
}

/// The result as JSON.
#[derive(Serialize)]
struct Report<'a> {
    a: &'a str,
    b: &'a str,
    engine: &'a str,
    threads: usize,
    batch: usize,
    /// What the inputs were.
    inputs: String,
    samples: usize,
    /// False if Ctrl-C ended the comparison early.
    complete: bool,
    tolerance: Option<f64>,
    within_tolerance: Option<bool>,
    outputs: &'a [OutputDiff],
}

/// Inputs to compare on.
enum Inputs {
    Random { seed: u64, samples: usize },
    Images(Box<(Dataset, Preprocess)>),
}

pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let (a, b) = (runnable(&args.a)?, runnable(&args.b)?);
    let inputs = inputs(&args)?;
    let preferred = match &inputs {
        Inputs::Random { .. } => 1,
        Inputs::Images(images) => batch_size(images.0.len()),
    };
    let sessions: [Session; 2] = args
        .run
        .load(&[&a, &b], preferred, Engine::Stock)?
        .try_into()
        .map_err(|_| anyhow!("{}, {}: not loaded", a.name(), b.name()))?;
    let [mut a_session, mut b_session] = sessions;
    let batch = a_session.batch().unwrap_or(1);

    let n_batches = inputs.n_batches(batch);
    let progress = Progress::new("comparing", globals.quiet);
    interrupted();
    let mut done = 0;
    let batches = inputs.batches(&a, &a_session)?.take(n_batches).take_while(|_| !interrupted());
    let outputs = compare(&mut a_session, &mut b_session, batches, &mut |n| {
        done = n;
        progress.update(n * batch, n_batches * batch, "inputs");
    });
    drop(progress);
    if done == 0 && interrupted() {
        eprintln!("error: interrupted before the first inputs were done");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let outputs = outputs.map_err(|e| explain(e, &args.a))?;
    let complete = done == n_batches;
    let report = Report {
        a: a.name(),
        b: b.name(),
        engine: ENGINE,
        threads: a_session.threads(),
        batch,
        inputs: inputs.describe(),
        samples: done * batch,
        complete,
        tolerance: args.tolerance,
        within_tolerance: args.tolerance.map(|t| all_close(&outputs, t)),
        outputs: &outputs,
    };
    emit(&match args.format {
        Format::Json => json(&report)?,
        Format::Text => text(&report),
    })?;
    if !complete {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    match args.tolerance {
        Some(tolerance) => verdict(&b, &outputs, tolerance),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The images that the settings of either network name, or random inputs.
fn inputs(args: &Args) -> anyhow::Result<Inputs> {
    if !args.random {
        let found = match args.data.open_at_most(&args.a, Some(IMAGES))? {
            None => args.data.open_at_most(&args.b, Some(IMAGES))?,
            found => found,
        };
        if let Some(found) = found {
            return Ok(Inputs::Images(Box::new(found)));
        }
    }
    let samples = args.data.samples.map_or(RANDOM_SAMPLES, |n| usize::try_from(n).unwrap_or(usize::MAX));
    Ok(Inputs::Random { seed: args.data.seed.unwrap_or(0), samples })
}

/// The largest batch up to a limit that leaves no remainder: the last batch would be filled up with
/// copies, which would count.
fn batch_size(n: usize) -> usize {
    (1..=MAX_BATCH).rev().find(|b| n.is_multiple_of(*b)).unwrap_or(1)
}

impl Inputs {
    /// Whole batches only, as far as there is one.
    fn n_batches(&self, batch: usize) -> usize {
        match self {
            Self::Random { samples, .. } => samples.div_ceil(batch),
            Self::Images(images) => (images.0.len() / batch).max(1),
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Random { seed, .. } => format!("random inputs, seed {seed}"),
            Self::Images(images) => format!("{}: {}", images.0.path().display(), images.0.describe()),
        }
    }

    fn batches<'a>(
        &'a self,
        model: &Source,
        session: &Session,
    ) -> anyhow::Result<Box<dyn Iterator<Item = Result<Vec<Tensor>, RuntimeError>> + 'a>> {
        let infos = session.inputs().to_vec();
        Ok(match self {
            Self::Random { seed, .. } => {
                Box::new((0..).map(move |i| Ok(random_inputs(&infos, seed.wrapping_add(i)))))
            }
            Self::Images(images) => {
                let [input] = infos.as_slice() else {
                    let n = infos.len();
                    return Err(anyhow!(
                        "{}: it takes {n} inputs, images fit only one; use --random",
                        model.name()
                    ));
                };
                let batches = images.0.batches(&images.1, input);
                let batches = batches.map_err(|e| explain(e, model.name().as_ref()))?;
                Box::new(batches.map(|batch| Ok(vec![batch?.inputs])))
            }
        })
    }
}

/// Exit code 1 and a line on stderr if the tolerance is exceeded.
fn verdict(b: &Source, outputs: &[OutputDiff], tolerance: f64) -> anyhow::Result<ExitCode> {
    let Some(worst) = outputs.iter().find(|o| !o.is_close(tolerance)) else { return Ok(ExitCode::SUCCESS) };
    let what = match worst.n_non_finite {
        0 => format!("differs by {:.3e} relative, more than the tolerance {tolerance:e}", worst.max_rel),
        n => format!("has {n} values that are infinite or NaN in one of the networks"),
    };
    eprintln!("error: {}: output `{}` {what}", b.name(), worst.name);
    Ok(ExitCode::FAILURE)
}

fn text(report: &Report<'_>) -> String {
    let inputs = match report.inputs.strip_prefix("random") {
        Some(rest) => format!("{} random{rest}", report.samples),
        None => format!("{} images of {}", report.samples, report.inputs),
    };
    let (engine, batch) = (report.engine, report.batch);
    let mut out =
        format!("{} (reference) and {}\non {inputs}, batch {batch}, {engine}\n", report.a, report.b);
    if !report.complete {
        let _ = writeln!(out, "PARTIAL: interrupted after {} inputs", report.samples);
    }
    let has_classes = report.outputs.iter().any(|o| o.top1_agreement.is_some());
    let has_non_finite = report.outputs.iter().any(|o| o.n_non_finite > 0);
    let mut headings = vec!["output", "shape", "max abs", "max rel", "cosine"];
    headings.extend(has_classes.then_some("top-1"));
    headings.extend(has_non_finite.then_some("inf/NaN in one"));
    let mut rows = table(&headings);
    for output in report.outputs {
        let mut row = vec![
            shorten(&output.name, 32),
            format!("{:?}", output.shape).replace(' ', ""),
            number(output.max_abs),
            number(output.max_rel),
            format!("{:.8}", output.cosine),
        ];
        if has_classes {
            row.push(output.top1_agreement.map_or("-".to_owned(), |t| format!("{:.2} %", 100.0 * t)));
        }
        if has_non_finite {
            row.push(output.n_non_finite.to_string());
        }
        rows.add_row(row);
    }
    out.push_str(&render(&rows));
    out
}

fn number(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.2e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_leave_no_remainder() {
        assert_eq!([1, 7, 100, 97, 128, 34].map(batch_size), [1, 7, 10, 1, 16, 2]);
        let random = Inputs::Random { seed: 0, samples: 9 };
        assert_eq!([1, 4, 16].map(|b| random.n_batches(b)), [9, 3, 1]);
    }
}
