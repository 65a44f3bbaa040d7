//! `eval`: accuracy on labelled images.

use crate::data::{DataArgs, explain};
use crate::engine::{EngineArg, engine_name};
use crate::network::{RunArgs, runnable};
use crate::progress::{Progress, interrupted};
use crate::table::{Format, emit, json};
use crate::{Globals, INTERRUPTED};
use anyhow::anyhow;
use basisopt_runtime::{ENGINE, EvalReport, evaluate};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Images per run where neither the user nor the model says.
const BATCH: usize = 1;

const EXAMPLES: &str = "\
Examples:
  basisopt eval fixtures/models/glyphnet.onnx
      everything is in fixtures/models/glyphnet.toml
  basisopt eval m.onnx --data test_batch.bin --mean 0.4914,0.4822,0.4465 \\
      --std 0.2023,0.1994,0.2010
      a CIFAR-10 file; bytes are divided by 255, then (x - mean) / std
  basisopt eval m.onnx --data images/ --scale 127.5 --mean 1 --label-offset 1 --samples 500 \\
      --seed 0
      500 images drawn at random, fed as -1…1; class 0 of the network is \"background\"
  basisopt eval m.onnx --data images/ --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 \\
      --save-config
      the same settings are used from now on by eval, compare and compress; they are in m.toml
  basisopt eval small.onnx --config m.toml
      another network with the settings of m.onnx

Images that do not have the network's size are scaled and cut in the centre (--resize, --crop).
Floats in .npy and .npz are taken to be preprocessed already. Ctrl-C prints what was measured so
far, marked as partial, and exits with 130.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The network: an .onnx or .bir file, or - for stdin.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Store data and preprocessing in MODEL.toml once the evaluation went well.
    #[arg(long)]
    save_config: bool,
    #[command(flatten)]
    run: RunArgs,
    /// How factorised layers run.
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t)]
    engine: EngineArg,
    /// Output with the class scores; the first of shape [N, classes] by default.
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The result as JSON.
#[derive(Serialize)]
struct Report<'a> {
    file: &'a str,
    engine: &'a str,
    /// Pairs of convolutions that ran as one operator; 0 is stock tract.
    n_fused: usize,
    threads: usize,
    batch: usize,
    data: String,
    /// Where the share of right answers on all images of this kind lies, with 95 % confidence.
    top1_interval: [f64; 2],
    #[serde(flatten)]
    eval: &'a EvalReport,
}

pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let source = runnable(&args.model)?;
    let (dataset, preprocess) = args.data.require(&args.model)?;
    let mut sessions = args.run.load(&[&source], BATCH.min(dataset.len()), args.engine.into())?;
    let session = sessions.first_mut().ok_or_else(|| anyhow!("{}: not loaded", source.name()))?;
    let batch = session.batch().unwrap_or(1);
    let progress = Progress::new("evaluating", globals.quiet);
    // Installs the handler, so that the first Ctrl-C already finds it.
    interrupted();
    let eval = evaluate(
        session,
        &dataset,
        &preprocess,
        args.output.as_deref(),
        &mut |done| progress.update(done, dataset.len(), "images"),
        &|| !interrupted(),
    );
    drop(progress);
    let eval = match eval {
        Err(_) if interrupted() => {
            eprintln!("error: {}: interrupted before the first {batch} images were done", source.name());
            return Ok(ExitCode::from(INTERRUPTED));
        }
        eval => eval.map_err(|e| explain(e, &args.model))?,
    };
    let report = Report {
        file: source.name(),
        engine: ENGINE,
        n_fused: session.engine().1,
        threads: session.threads(),
        batch,
        data: format!("{}: {}", dataset.path().display(), dataset.describe()),
        top1_interval: interval(eval.n_correct, eval.n),
        eval: &eval,
    };
    emit(&match args.format {
        Format::Json => json(&report)?,
        Format::Text => text(&report),
    })?;
    if !eval.complete {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if let Some(offset) = eval.better_label_offset
        && !globals.quiet
    {
        eprintln!(
            "warning: {}: with --label-offset {offset} most images would be right; is class 0 of the network a background class?",
            source.name()
        );
    }
    // Twice the share that guessing gets is what a wrong normalisation looks like.
    if eval.n >= 50 && eval.top1 * (eval.n_classes as f64) < 2.0 && !globals.quiet {
        eprintln!(
            "warning: {}: little better than guessing; check --mean, --std, --scale, --layout, --channels and --label-offset",
            source.name()
        );
    }
    if args.save_config {
        let path = args.data.save(&args.model)?;
        if !globals.quiet {
            eprintln!("wrote {}", path.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn text(report: &Report<'_>) -> String {
    let eval = report.eval;
    let mut out = format!("{} on {}\n", report.file, report.data);
    if !eval.complete {
        let _ = writeln!(out, "PARTIAL: interrupted; these are the first {} images", eval.n);
    }
    let [low, high] = report.top1_interval.map(|share| 100.0 * share);
    let _ = writeln!(
        out,
        "top-1  {:6.2} %   {} of {}; 95 % confidence: {low:.1}…{high:.1} %",
        100.0 * eval.top1,
        eval.n_correct,
        eval.n
    );
    if let Some(top5) = eval.top5 {
        let _ = writeln!(out, "top-5  {:6.2} %", 100.0 * top5);
    }
    let threads = if report.threads == 1 { "thread" } else { "threads" };
    let _ = writeln!(
        out,
        "speed  {:.1} images/s ({}, {} {threads}, batch {})",
        eval.images_per_second,
        engine_name(report.engine, report.n_fused),
        report.threads,
        report.batch
    );
    out
}

/// Wilson's 95 % interval for a share: unlike the normal approximation it has a width even where all
/// answers are right.
fn interval(n_correct: usize, n: usize) -> [f64; 2] {
    const Z: f64 = 1.959_963_984_540_054;
    let n = n.max(1) as f64;
    let share = n_correct as f64 / n;
    let scale = 1.0 + Z * Z / n;
    let center = (share + Z * Z / (2.0 * n)) / scale;
    let half = Z / scale * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    [(center - half).max(0.0), (center + half).min(1.0)]
}

#[cfg(test)]
mod tests {
    use super::interval;

    #[test]
    fn intervals_are_those_of_the_textbook() {
        // 81 of 263 (Agresti and Coull 1998): 0.2553 to 0.3662.
        let [low, high] = interval(81, 263);
        assert!((low - 0.2553).abs() < 1e-4 && (high - 0.3662).abs() < 1e-4, "{low} {high}");
        // No failure in n: the lower end is n / (n + z²).
        let [low, high] = interval(500, 500);
        assert!((low - 500.0 / (500.0 + 3.841_458_8)).abs() < 1e-9 && high == 1.0);
    }
}
