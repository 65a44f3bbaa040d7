//! `profile-device`: what layers take on this machine, for choosing ranks on another.

mod design;
mod probe;

use crate::engine::EngineArg;
use crate::progress::{Progress, interrupted};
use crate::table::{Format, emit, json, render, table};
use crate::{Globals, INTERRUPTED, work};
use anyhow::{Context as _, anyhow};
use basisopt_passes::device::{Chain, DeviceModel, DeviceProfile, FORMAT, KeptOut, Sample, Work};
use basisopt_runtime::{BenchOptions, BenchResult, Engine, Source, bench};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  on the board:
  basisopt profile-device -o board.json                 a few minutes
  on the host:
  basisopt compress m.onnx --data images/ --budget latency=0.5 --device board.json -o small.onnx
  basisopt opt m.onnx -p @fold,allocate-ranks:target=latency:0.5:device=board.json,factorize-conv -o small.onnx

Small networks of one layer are timed, of sizes that networks have; from their times those of all other
layers and ranks are predicted. The file is written again and again as it grows: the same command goes on
where Ctrl-C, or a dead battery, ended it. How far predictions are off is told at the end, from layers
kept out of what they are made from. Let nothing else run meanwhile.";

/// Pieces of work that are measured together, turn by turn, so that no cache holds all of them.
const BATCH: usize = 12;
/// Rounds of each.
const ROUNDS: usize = 31;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The profile; one that is there already is gone on with.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Layers to measure.
    #[arg(long, value_name = "N", default_value_t = 720, value_parser = clap::value_parser!(u64).range(12..=5_000))]
    samples: u64,
    /// Threads for the matrix products.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: u64,
    /// How factorised layers will run on the device.
    #[arg(long, value_enum, default_value_t = EngineArg::Fused)]
    engine: EngineArg,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What is told at the end.
#[derive(Serialize)]
struct Summary<'a> {
    device: &'a str,
    fused: bool,
    n_samples: usize,
    complete: bool,
    /// Filters that kernels compute together: of convolutions, of pairs.
    tiles: [Option<usize>; 2],
    /// What layers take in a network by what they take alone.
    in_network: f64,
    kept_out: Vec<KeptOut>,
}

pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let engine = args.engine.for_timing();
    let options = BenchOptions {
        threads: args.threads as usize,
        engines: vec![engine],
        along: references(engine == Engine::Fused)?,
        runs: ROUNDS,
        min_seconds: 0.0,
        // In a network its input was just made by the layer before.
        in_a_row: 2,
        warmup: 2,
        memory: false,
        ..BenchOptions::default()
    };
    let mut profile = begin(&args.output, &options, engine)?;
    let wanted = usize::try_from(args.samples).unwrap_or(usize::MAX);
    let progress = Progress::new("measuring", globals.quiet);
    interrupted();
    while profile.samples.len() < wanted && !interrupted() {
        let done = profile.samples.len();
        progress.update(done, wanted, "layers");
        let works: Vec<Work> =
            (done..wanted.min(done + BATCH)).map(|i| design::work(i, profile.fused)).collect();
        let measured = measure(works, design::chain(profile.chains.len(), profile.fused), &options)?;
        // Half-measured is not measured.
        if interrupted() {
            break;
        }
        let (samples, chain) = measured;
        profile.samples.extend(samples);
        profile.chains.push(chain);
        let text = serde_json::to_string(&profile).context("the profile has no JSON form")?;
        // A line per sample.
        work::write_whole(&args.output, (text.replace("},{", "},\n{") + "\n").as_bytes())?;
    }
    drop(progress);
    if profile.samples.is_empty() {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let model = DeviceModel::new(&profile);
    let summary = Summary {
        device: &profile.device,
        fused: profile.fused,
        n_samples: profile.samples.len(),
        complete: profile.samples.len() >= wanted,
        tiles: model.tiles(),
        in_network: model.in_network(),
        kept_out: profile.kept_out(),
    };
    emit(&match args.format {
        Format::Json => json(&summary)?,
        Format::Text => text(&summary, &args.output),
    })?;
    Ok(if summary.complete { ExitCode::SUCCESS } else { ExitCode::from(INTERRUPTED) })
}

/// The profile that is there, or a new one.
fn begin(path: &Path, options: &BenchOptions, engine: Engine) -> anyhow::Result<DeviceProfile> {
    let new = DeviceProfile {
        basisopt_device: FORMAT,
        device: basisopt_embed::executor::device(engine, options.threads),
        fused: engine == Engine::Fused,
        samples: Vec::new(),
        chains: Vec::new(),
    };
    let name = path.display();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(new),
        Err(e) => return Err(e).with_context(|| format!("cannot read {name}")),
    };
    let old = DeviceProfile::parse(&text).with_context(|| format!("{name}: not overwritten"))?;
    if old.device != new.device {
        return Err(anyhow!(
            "{name} is of another device or setting: {}; this is {}. Choose another file, or remove it",
            old.device,
            new.device
        ));
    }
    Ok(old)
}

/// What runs along with everything that is measured, to see at which pace the device is.
///
/// # Errors
/// If it cannot be encoded, which is a bug.
pub(crate) fn references(fused: bool) -> anyhow::Result<Vec<(Source, Engine)>> {
    let engine = if fused { Engine::Fused } else { Engine::Stock };
    let encode = |work| Ok((probe::network(&[work])?, engine));
    design::references(fused).into_iter().map(encode).collect()
}

/// The geometric mean of what the references take.
pub(crate) fn pace_ms(references: &[BenchResult]) -> f64 {
    let logarithms: f64 = references.iter().map(|r| typical(r).ln()).sum();
    (logarithms / references.len().max(1) as f64).exp()
}

/// The median, as `bench` has it. Fast runs would come out more alike the next time, but on a busy machine no network of
/// many layers has all of them run fast.
fn typical(result: &BenchResult) -> f64 {
    // A clock may be too coarse to see anything.
    result.median_ms.max(1e-6)
}

/// Measures works and a small network side by side, with the references.
fn measure(
    works: Vec<Work>,
    chain: Vec<Work>,
    options: &BenchOptions,
) -> anyhow::Result<(Vec<Sample>, Chain)> {
    let singles = works.iter().map(std::slice::from_ref);
    let sources = [&chain[..]].into_iter().chain(singles).map(probe::network);
    let sources = sources.collect::<anyhow::Result<Vec<_>>>()?;
    let results = bench(&sources, options, &mut |_| !interrupted())?;
    let (results, references) =
        results.split_at_checked(sources.len()).context("nothing was measured (this is a bug)")?;
    let pace_ms = pace_ms(references);
    let mut times = results.iter().map(typical);
    let chain = Chain { works: chain, ms: times.next().unwrap_or_default(), pace_ms };
    Ok((works.into_iter().zip(times).map(|(work, ms)| Sample { work, ms, pace_ms }).collect(), chain))
}

fn text(summary: &Summary<'_>, path: &Path) -> String {
    let mut out = format!("{}\n", summary.device);
    if !summary.complete {
        let _ = writeln!(out, "PARTIAL: interrupted; the same command goes on");
    }
    for (tile, what) in summary.tiles.iter().zip(["convolutions run", "factorised pairs run"]) {
        if let Some(tile) = tile {
            let _ = writeln!(
                out,
                "{what} {tile} filters at a time: other numbers cost as much as the next multiple"
            );
        }
    }
    let _ = writeln!(out, "in a network layers take {:.2} times what they take alone", summary.in_network);
    let mut rows = table(&["predictions of layers kept out", "layers", "mean error", "median error"]);
    for kept in &summary.kept_out {
        rows.add_row([
            kept.family.to_owned(),
            kept.n.to_string(),
            kept.mean.map_or_else(|| "too few".to_owned(), |e| format!("{:.1} %", 100.0 * e)),
            kept.median.map_or_else(|| "-".to_owned(), |e| format!("{:.1} %", 100.0 * e)),
        ]);
    }
    out.push_str(&render(&rows));
    let _ = writeln!(out, "{} layers in {}", summary.n_samples, path.display());
    out
}
