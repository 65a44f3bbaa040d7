//! `bench`: latency, throughput and memory of networks, side by side.

mod report;

pub(crate) use report::significant;

use crate::engine::EngineArg;
use crate::network::{self, parse_dim, runnable};
use crate::power;
use crate::predicted::Predictor;
use crate::progress::{Progress, interrupted};
use crate::table::{Format, emit, json};
use crate::{Globals, INTERRUPTED, work};
use basisopt_passes::cost::{self, Cost};
use basisopt_runtime::{BenchOptions, BenchProgress, Engine, Machine, Source, bench, profile};
use report::{Entry, Report, Row, layer_text, layers, power_text, text};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  basisopt bench m.onnx small.onnx                        is the small one faster, and by how much?
  basisopt bench m.onnx small.onnx --threads 4 --batch 8
  basisopt bench m.onnx --seconds 30 --runs 100           at least 100 rounds and 30 seconds
  basisopt bench m.onnx small.onnx --per-layer            where the time goes
  basisopt bench m.onnx 2x.onnx 3x.onnx --html page.html  levels of compression, in pictures
  basisopt bench m.onnx --device board.json               and what a profile of this board predicts
  basisopt bench m.onnx small.onnx --engine stock,fused   stock tract and fused factors, side by side
  basisopt bench *.onnx --format json > bench.json        one object per network
  sudo basisopt bench m.onnx small.onnx --power           watts, and joules per image

The networks take turns (A B A B …), so that a busy machine slows all of them alike; `time` is the
median over the rounds of the time divided by that of the first network in the same round: 0.5 is
twice as fast; beside it stands its 95 % confidence interval. `cold` is the first run of the newly loaded network. Inputs are random. The batch and all other sizes are fixed before tract optimises
the network. `memory` is the highest resident memory of loading and running, above that of the
program before; a dash where the system does not tell. With --power, a `part` is a rail whose energy is
in another one's too, so it must not be added to a `total`; totals of different chips may still see the
same energy. Ctrl-C prints what was measured so far and exits with 130.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The networks: .onnx or .bir files. The first is what the others are compared with.
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<PathBuf>,
    /// Images per run [default: 1, or what the model fixes].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    batch: Option<u64>,
    /// Threads for the matrix products.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: u64,
    /// How factorised layers run; several, joined by commas, are measured side by side.
    #[arg(long, value_name = "ENGINE", value_enum, value_delimiter = ',', default_value = "fastest")]
    engine: Vec<EngineArg>,
    /// Rounds to measure, at least.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// Go on until the rounds have taken this long together.
    #[arg(long, value_name = "S", default_value_t = 2.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Rounds that are run before and not counted.
    #[arg(long, value_name = "N", default_value_t = 3)]
    warmup: usize,
    /// Size of an unknown dimension of the inputs, such as H=224; can be repeated.
    #[arg(long = "dim", value_name = "NAME=N", value_parser = parse_dim)]
    dims: Vec<(String, usize)>,
    /// Seed of the random inputs.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Do not measure memory, which loads every network once more.
    #[arg(long)]
    no_memory: bool,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Also show what each layer takes, the factors of a layer beside the layer that they replace.
    #[arg(long)]
    per_layer: bool,
    /// Show beside each time what a profile predicts, see profile-device. Networks then run twice in a row, and the second
    /// run counts, as in the profile.
    #[arg(long, value_name = "FILE", conflicts_with = "batch")]
    device: Option<PathBuf>,
    /// Also write a page with pictures: times, and times against multiply-adds.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    power: power::Flags,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    seconds_from(text, 0.0)
}

/// So many seconds, or more.
pub(crate) fn seconds_from(text: &str, least: f64) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|s| (least..=1e6).contains(s))
        .ok_or_else(|| format!("expected seconds, {least} or more"))
}

pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let inputs: Vec<Option<&Path>> = args.models.iter().map(|m| Some(m.as_path())).collect();
    work::check_outputs(&inputs, &[("--html", args.html.as_deref())])?;
    let sources = args.models.iter().map(|m| runnable(m)).collect::<anyhow::Result<Vec<Source>>>()?;
    let predictor = match &args.device {
        Some(path) => Some(Predictor::new(path, &args.models, &args.dims, args.threads as usize)?),
        None => None,
    };
    let options = BenchOptions {
        batch: args.batch.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        dims: args.dims,
        threads: args.threads as usize,
        along: predictor.as_ref().map_or(Ok(Vec::new()), Predictor::references)?,
        engines: args.engine.into_iter().map(Into::into).collect(),
        runs: usize::try_from(args.runs).unwrap_or(usize::MAX),
        min_seconds: args.seconds,
        // As what predictions are made from was measured.
        in_a_row: 1 + usize::from(predictor.is_some()),
        warmup: args.warmup,
        seed: args.seed,
        memory: !args.no_memory,
    };
    let progress = Progress::new("measuring", globals.quiet);
    let mut started = Instant::now();
    interrupted();
    let mut results = bench(&sources, &options, &mut |at| {
        match at {
            BenchProgress::Loading(name) => {
                progress.update(0, 100, name);
                started = Instant::now();
            }
            BenchProgress::Round(done, _) => {
                let (rounds, share) = progress_of(done, &options, started);
                progress.update(share, 100, &rounds);
            }
            _ => {}
        }
        !interrupted()
    })?;
    drop(progress);
    let references = results.split_off(results.partition_point(|r| r.source < sources.len()));
    let predicted = predictor.map(|p| p.predict(&references));
    let machine = Machine::here();
    let networks: Vec<(&Source, Engine)> = results
        .iter()
        .map(|r| (&sources[r.source], if r.n_fused > 0 { Engine::Fused } else { Engine::Stock }))
        .collect();
    let per_layer = match args.per_layer && !interrupted() {
        true => {
            let progress = Progress::new("by layer", globals.quiet);
            let started = Instant::now();
            profile(&networks, &options, &mut |done| {
                let (rounds, share) = progress_of(done, &options, started);
                progress.update(share, 100, &rounds);
                !interrupted()
            })?
        }
        false => Vec::new(),
    };
    let complete = !interrupted();
    let power = args.power.measure(&networks, &options, globals)?;
    if let Some(path) = &args.html {
        let costs: Vec<Option<Cost>> = args.models.iter().map(|m| cost_of(m, &options.dims)).collect();
        let mut entries = Vec::new();
        for result in &results {
            let cost = costs.get(result.source).and_then(Option::as_ref);
            entries.push(Entry {
                result,
                macs: cost.and_then(|c| c.macs),
                params: cost.map(|c| c.params),
                predicted_ms: predicted.as_ref().and_then(|p| p.ms(result)),
            });
        }
        let first = results.first();
        let page = Report {
            version: env!("CARGO_PKG_VERSION"),
            command: work::command(),
            machine: machine.summary(),
            threads: options.threads,
            batch: first.map_or(1, |r| r.batch),
            n_runs: first.map_or(0, |r| r.n_runs),
            complete,
            networks: entries,
            layers: layers(&per_layer),
        };
        work::write_whole(path, page.page()?.as_bytes())?;
    }
    emit(&match args.format {
        Format::Json => {
            let row = |(i, result)| Row {
                result,
                machine: &machine,
                complete,
                layers: per_layer.get(i).map(Vec::as_slice),
                predicted_ms: predicted.as_ref().and_then(|p| p.ms(result)),
                pace: predicted.as_ref().map(|p| p.pace),
                power: power.member(i),
            };
            json(&results.iter().enumerate().map(row).collect::<Vec<_>>())?
        }
        Format::Text => {
            text(&results, &machine, complete)
                + &predicted.as_ref().map_or_else(String::new, |p| p.text(&results))
                + &layer_text(&per_layer)
                + &power_text(&power, &results)
        }
    })?;
    Ok(if interrupted() { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// Rounds in words, and how many hundredths are done: by rounds or seconds, whichever is further from its end.
fn progress_of(done: usize, options: &BenchOptions, started: Instant) -> (String, usize) {
    let by_rounds = done as f64 / options.runs.max(1) as f64;
    let by_time = started.elapsed().as_secs_f64() / options.min_seconds.max(1e-9);
    (format!("{done} rounds"), (100.0 * by_rounds.min(by_time).min(1.0)) as usize)
}

/// What a network costs, where it can be read as a graph: a picture of times does without.
fn cost_of(model: &Path, dims: &[(String, usize)]) -> Option<Cost> {
    let graph = network::read(model).ok()?.graph;
    Some(cost::of_pinned(&graph, dims))
}
