//! `opt`: passes over a network, in the order of their flags.

use crate::data::DataArgs;
use crate::host::CliHost;
use crate::pipeline::PassFlags;
use crate::progress::interrupted;
use crate::table::{Format, emit, json, render, si, table};
use crate::training::{CliSession, TrainArgs};
use crate::watch::{Shown, Watcher};
use crate::work::{self, CheckArgs, bytes, count, time};
use crate::{Globals, INTERRUPTED, Usage, network};
use anyhow::{Context as _, anyhow};
use basisopt_embed::optimize::Summary;
use basisopt_embed::samples::SAMPLES;
use basisopt_embed::{
    DataSamples, EmbedError, OptimizeOptions, Optimized, Settings, TractExecutor, TrainOn, optimize,
};
use basisopt_onnx::Model;
use basisopt_passes::cost::Cost;
use basisopt_passes::{Fidelity, ManagerError, PassReport, Pipeline, RemarkKind, Report, Samples};
use basisopt_runtime::ModelConfig;
use clap::ValueEnum;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

const EXAMPLES: &str = "\
Examples:
  basisopt opt m.onnx --fold-batch-norm --factorize-conv=energy=0.63 --dead-code -o small.onnx
  basisopt opt m.onnx -p @fold,factorize-conv:energy=0.63,dead-code -o small.onnx
      nearly the same, as text; @fold is a preset
  basisopt opt m.onnx --factorize-conv=rank=8:include='/layer3/*' --remarks
      what would be done to which layer, and why not to others; no file
  basisopt opt m.onnx -p @fold --diff | less
      what each pass changes
  basisopt opt - -o - --fold-batch-norm < m.onnx > folded.onnx
  basisopt opt small.onnx --reconstruct --fine-tune=epochs=5:flip=on --train images/ --original m.onnx -o better.onnx
      train a network compressed before to do what m.onnx does; small.toml says how images become inputs

Options of a pass are joined by colons: --factorize-conv=energy=0.9:guard=off. `basisopt passes NAME`
explains them. Passes run in the order of their flags; the pipeline is stored in the output.

tract runs the network before and after every pass. If an exact pass moves the outputs by more than
--tolerance, nothing is written and the exit code is 1; `basisopt bisect` then finds the rewrite. For
approximate passes the distance is reported. A network that tract cannot run is changed unchecked.

stdout carries what was asked for: the output with `-o -`, or --diff, --print-after, --remarks=json
and --format json. Everything else goes to stderr. Nothing is written without -o, and no output file
is left behind unless all went well.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The network: an .onnx or .bir file, or - for stdin.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Where to write the result; - for stdout.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    passes: PassFlags,
    #[command(flatten)]
    check: CheckArgs,
    /// What exact passes may move outputs by, relative to the largest magnitude of each.
    #[arg(long, value_name = "R", default_value_t = basisopt_passes::EXACT_TOLERANCE, value_parser = parse_tolerance, help_heading = "Checking and running")]
    tolerance: f64,
    /// Do not run the network before and after passes.
    #[arg(long, help_heading = "Checking and running", conflicts_with_all = ["check_data", "tolerance"])]
    no_check: bool,
    /// Images that data-aware passes learn from: a folder, CIFAR .bin files, .npy or .npz; preprocessed as
    /// MODEL.toml says. Labels play no part.
    #[arg(long, value_name = "PATH", help_heading = "Checking and running")]
    calibrate: Option<PathBuf>,
    /// Of those, so many at most, drawn at random by --seed.
    #[arg(long, value_name = "N", default_value_t = SAMPLES as u64, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Checking and running")]
    samples: u64,
    /// Images that fine-tune trains on, with labels where there are any; a tenth of them are kept apart to choose the
    /// best version by. Preprocessed as MODEL.toml says.
    #[arg(long, value_name = "PATH", help_heading = "Training")]
    train: Option<PathBuf>,
    /// The network that training imitates, if that is not the one given: of the same names, as it was before it was
    /// compressed.
    #[arg(long, value_name = "MODEL", requires = "train", help_heading = "Training")]
    original: Option<PathBuf>,
    #[command(flatten)]
    training: TrainArgs,
    /// Stop after so many rewrites in all.
    #[arg(long, value_name = "N", help_heading = "Looking inside")]
    stop_after: Option<usize>,
    /// Say for every layer what was done to it or why it was left alone: on stderr, or with =json as
    /// an array on stdout.
    #[arg(long, value_name = "FORMAT", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "text", help_heading = "Looking inside")]
    remarks: Option<Remarks>,
    /// Print what each pass changed, as a unified diff of the .bir text.
    #[arg(long, help_heading = "Looking inside")]
    diff: bool,
    /// Print the network as .bir text after every pass, or after this one.
    #[arg(long, value_name = "PASS", num_args = 0..=1, require_equals = true, default_missing_value = "", help_heading = "Looking inside")]
    print_after: Option<String>,
    /// Say how long each pass and its checks took.
    #[arg(long, help_heading = "Looking inside")]
    timings: bool,
    /// Print a report on stdout: passes, checks, remarks, cost before and after.
    #[arg(long, value_enum, default_value_t, help_heading = "Looking inside")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Remarks {
    /// Lines on stderr.
    Text,
    /// An array on stdout.
    Json,
}

/// Parses a tolerance.
pub(crate) fn parse_tolerance(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|t| *t >= 0.0)
        .ok_or_else(|| "expected a number of at least 0, such as 1e-4".to_owned())
}

/// The report as JSON.
#[derive(Serialize)]
struct JsonReport<'a> {
    file: &'a str,
    output: Option<String>,
    #[serde(flatten)]
    summary: Summary<'a>,
}

pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let pipeline = args.passes.pipeline()?;
    check_usage(&args, &pipeline)?;
    if let Some(output) = &args.output {
        work::check_output(&args.model, output)?;
    }
    let inputs = [Some(args.model.as_path()), args.train.as_deref(), args.original.as_deref()];
    let output = args.output.as_deref().filter(|o| *o != Path::new("-"));
    work::check_outputs(
        &inputs,
        &[
            ("-o", output),
            ("--log", args.training.log.as_deref()),
            ("--checkpoint", args.training.checkpoint.as_deref()),
        ],
    )?;
    args.check.start_threads()?;
    let host = CliHost::new(globals.quiet);
    let mut model = network::model(&args.model)?;
    let file = model.source().file().to_owned();
    work::import_notes(&mut model, globals.quiet);
    network::check_dims(&file, &model.graph, &args.check.dims)?;
    let check_on = args.check.data(&args.model)?;
    let samples = match &args.calibrate {
        Some(path) => Some(calibration(&args, path, &model)?),
        None => None,
    };
    let data = match &args.train {
        Some(path) => {
            let data = DataArgs { data: Some(path.clone()), ..DataArgs::default() };
            // The settings beside the network, or else beside the one that it was made from.
            let has_settings = |model: &Path| ModelConfig::path_beside(model).is_file();
            let by = args.original.as_deref().filter(|o| !has_settings(&args.model) && has_settings(o));
            let by = by.unwrap_or(&args.model);
            if !has_settings(by) && !globals.quiet {
                eprintln!(
                    "note: there are no settings {}; images are only scaled to 0…1 (see the settings file in docs/cli.md)",
                    ModelConfig::path_beside(by).display()
                );
            }
            Some(data.require(by).with_context(|| format!("--train {}", path.display()))?)
        }
        None => None,
    };
    let original = args.original.as_deref().map(network::model).transpose()?;
    let output = args.output.as_deref().filter(|o| *o != Path::new("-"));
    let trains = pipeline.items.iter().any(|i| i.info.fidelity == Fidelity::Trained);
    let flags = &args.training;
    match (trains, data.is_some()) {
        (true, false) => {
            return Err(Usage("there are no images to train on: give --train PATH".to_owned()).into());
        }
        (false, given) if given || flags.resume || flags.log.is_some() || flags.checkpoint.is_some() => {
            let text = "--train, --log, --checkpoint and --resume are for training: add --fine-tune or --reconstruct";
            return Err(Usage(text.to_owned()).into());
        }
        _ => {}
    }
    let mut session = match trains {
        true => CliSession::new(flags, output, globals.quiet)?,
        false => CliSession::none(),
    };
    let shown = Shown {
        lines: !globals.quiet,
        remarks: args.remarks == Some(Remarks::Text) && !globals.quiet,
        diff: args.diff,
        print_after: args.print_after.clone(),
    };
    let mut watcher = Watcher::new(&host, &pipeline, shown);
    let original = original.as_ref().map(|m| &m.graph);
    let options = OptimizeOptions {
        settings: Settings {
            seed: args.check.seed,
            dims: args.check.dims.clone(),
            host: &host,
            stop: Arc::new(interrupted),
            ..Settings::default()
        },
        unchecked: args.no_check,
        tolerance: Some(args.tolerance),
        check_on,
        stop_after: args.stop_after,
        calibration: samples.as_ref().map(|s| s as &dyn Samples),
        train: data.map(|(dataset, preprocess)| TrainOn {
            dataset,
            preprocess,
            original,
            session: &mut session,
        }),
        observer: Some(&mut watcher),
    };
    let result = optimize(&mut model, &pipeline, options);
    host.end();
    let done = match result {
        Err(EmbedError::Interrupted) => return Ok(give_up(&file)),
        result => result.map_err(of_embed)?,
    };
    watcher.finish()?;
    if interrupted() {
        return Ok(give_up(&file));
    }

    match &args.output {
        Some(output) if output == Path::new("-") => {
            let encoded = model.to_bytes()?;
            if !encoded.data_files().is_empty() {
                return Err(anyhow!(
                    "{file}: its weights are in files of their own, which stdout cannot hold; give -o FILE"
                ));
            }
            let mut out = std::io::stdout().lock();
            encoded
                .write_to(&mut out)
                .and_then(|()| std::io::Write::flush(&mut out))
                .context("cannot write to stdout")?;
        }
        Some(output) => {
            model.write(output)?;
            session.finish(&args.training);
        }
        None => {}
    }
    if !globals.quiet {
        eprint!("{}", summary(&args, &done));
    }
    if args.format == Format::Json {
        let output = args.output.as_ref().map(|o| o.display().to_string());
        emit(&json(&JsonReport { file: &file, output, summary: done.summary() })?)?;
    } else if args.remarks == Some(Remarks::Json) {
        emit(&json(&done.report.remarks().collect::<Vec<_>>())?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The images of `--calibrate`.
fn calibration(args: &Args, path: &Path, model: &Model) -> anyhow::Result<DataSamples> {
    let data = DataArgs { data: Some(path.to_owned()), ..DataArgs::default() };
    let (dataset, preprocess) = data.require(&args.model)?;
    let executor = TractExecutor::new(model.source().clone()).with_dims(args.check.dims.clone());
    let (dataset, _) = dataset.split(usize::try_from(args.samples).unwrap_or(usize::MAX), args.check.seed);
    let samples = DataSamples::new(dataset, preprocess, &model.graph, &executor);
    samples.map_err(|e| anyhow!("{}: --calibrate {}: {e}", model.source().file(), path.display()))
}

/// What clap cannot see: two things that want stdout, and names of passes.
fn check_usage(args: &Args, pipeline: &Pipeline) -> Result<(), Usage> {
    let mut wanted: Vec<&str> = Vec::new();
    let mut want = |is_wanted: bool, by| wanted.extend(is_wanted.then_some(by));
    want(args.output.as_deref() == Some(Path::new("-")), "-o -");
    // The report contains the remarks.
    want(args.remarks == Some(Remarks::Json) && args.format == Format::Text, "--remarks=json");
    want(args.format == Format::Json, "--format json");
    want(args.diff || args.print_after.is_some(), if args.diff { "--diff" } else { "--print-after" });
    if let [one, other, ..] = wanted[..] {
        return Err(Usage(format!("{one} and {other} would both be printed on stdout; choose one of them")));
    }
    if let Some(name) = args.print_after.as_deref().filter(|n| !n.is_empty())
        && !pipeline.items.iter().any(|i| i.info.name == name)
    {
        let names: BTreeSet<&str> = pipeline.items.iter().map(|i| i.info.name).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Usage(format!("--print-after={name}: no such pass is run; those run are: {names}")));
    }
    Ok(())
}

/// What is said and returned after Ctrl-C.
pub(crate) fn give_up(file: &str) -> ExitCode {
    eprintln!("error: {file}: interrupted; nothing was written");
    ExitCode::from(INTERRUPTED)
}

/// An error of the pass manager, with what to do about it.
pub(crate) fn explain(error: ManagerError, file: &str) -> anyhow::Error {
    let remedy = match &error {
        ManagerError::Inexact { .. } => {
            "; nothing was written (--tolerance allows more, --no-check does not look)"
        }
        _ => "",
    };
    anyhow!("{file}: {error}{remedy}")
}

/// An error of the library, with what to do about it.
pub(crate) fn of_embed(error: EmbedError) -> anyhow::Error {
    match error {
        EmbedError::Manager { file, source } => explain(*source, &file),
        error @ EmbedError::Dim { .. } => network::dim_error(error),
        error => error.into(),
    }
}

/// Number of nodes that a pass looked at and left alone, and that no pass changed.
pub(crate) fn n_left_alone(report: &Report) -> usize {
    let of = |kind| report.remarks().filter(move |r| r.kind == kind).map(|r| r.node.as_str());
    let applied: BTreeSet<&str> = of(RemarkKind::Applied).collect();
    of(RemarkKind::Refused).filter(|n| !applied.contains(n)).collect::<BTreeSet<_>>().len()
}

fn summary(args: &Args, done: &Optimized) -> String {
    let Optimized { before, after, report, .. } = done;
    let mut out = String::new();
    if args.timings {
        out += &timings(report);
    }
    let mut rows = table(&["", "before", "after", "ratio"]);
    let mut row = |what: &str, show: &dyn Fn(u64) -> String, a: Option<u64>, b: Option<u64>| {
        if let (Some(a), Some(b)) = (a, b) {
            let ratio = if a > 0 { format!("{:.4}", b as f64 / a as f64) } else { String::new() };
            rows.add_row([what.to_owned(), show(a), show(b), ratio]);
        }
    };
    let number = |n: u64| si(n as f64);
    row("file size", &bytes, Some(before.file_bytes), Some(after.file_bytes));
    row("parameters", &number, Some(before.cost.params), Some(after.cost.params));
    row("multiply-adds", &number, before.cost.macs, after.cost.macs);
    let has_linear = |cost: &Cost| cost.conv_macs != cost.macs;
    if has_linear(&before.cost) || has_linear(&after.cost) {
        row("of convolutions", &number, before.cost.conv_macs, after.cost.conv_macs);
    }
    out += &render(&rows);
    if before.cost.layers.is_empty() {
        out += "there are no convolutions or linear layers with weights of a float type here\n";
    }
    if before.cost.macs.is_none() {
        out += "multiply-adds are not known: an input size is open; give it with --dim NAME=N\n";
    }
    if let Some(n) = args.stop_after.filter(|&n| n == report.n_rewrites()) {
        out += &format!("stopped after {}, as --stop-after says\n", count(n, "rewrite"));
    }
    let n = n_left_alone(report);
    if n > 0 && args.remarks.is_none() {
        out += &format!("{} left alone; --remarks says why\n", count(n, "layer"));
    }
    out += &match &args.output {
        None => "nothing was written: no -o was given\n".to_owned(),
        Some(output) if output == Path::new("-") => String::new(),
        Some(output) => format!("wrote {}\n", output.display()),
    };
    out
}

fn timings(report: &Report) -> String {
    let mut rows = table(&["pass", "in the pass", "checks"]);
    let total = |of: fn(&PassReport) -> std::time::Duration| time(report.passes.iter().map(of).sum());
    for pass in &report.passes {
        rows.add_row([pass.item.clone(), time(pass.time), time(pass.overhead)]);
    }
    rows.add_row(["in all".to_owned(), total(|p| p.time), total(|p| p.overhead)]);
    render(&rows) + "\n"
}
