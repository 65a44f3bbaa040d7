//! `bench`: latency, throughput and memory of networks, side by side.

use crate::engine::{EngineArg, engine_name};
use crate::network::{parse_dim, runnable};
use crate::power::{self, Power};
use crate::predicted::Predictor;
use crate::progress::{Progress, interrupted};
use crate::table::{Format, emit, json, render, shorten, table};
use crate::{Globals, INTERRUPTED};
use basisopt_runtime::{
    BenchOptions, BenchProgress, BenchResult, Engine, LayerTime, Machine, Source, bench, profile,
};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  basisopt bench m.onnx small.onnx                        is the small one faster, and by how much?
  basisopt bench m.onnx small.onnx --threads 4 --batch 8
  basisopt bench m.onnx --seconds 30 --runs 100           at least 100 rounds and 30 seconds
  basisopt bench m.onnx small.onnx --per-layer            where the time goes
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
    /// Show beside each time what a profile predicts; see profile-device.
    #[arg(long, value_name = "FILE")]
    device: Option<PathBuf>,
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

/// One network, as JSON.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    result: &'a BenchResult,
    machine: &'a Machine,
    /// False if Ctrl-C ended the benchmark before it had all its rounds.
    complete: bool,
    /// What each layer takes, with --per-layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<&'a [LayerTime]>,
    /// What the profile predicts at the pace that the machine has meanwhile, with --device.
    #[serde(skip_serializing_if = "Option::is_none")]
    predicted_ms: Option<f64>,
    #[serde(flatten)]
    power: Option<power::Member<'a>>,
}

pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let mut sources = args.models.iter().map(|m| runnable(m)).collect::<anyhow::Result<Vec<Source>>>()?;
    let predictor = match &args.device {
        Some(path) => Some(Predictor::new(path, &args.models, &args.dims)?),
        None => None,
    };
    if let Some(predictor) = &predictor {
        sources.extend(predictor.references()?);
    }
    let options = BenchOptions {
        batch: args.batch.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        dims: args.dims,
        threads: args.threads as usize,
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
            BenchProgress::Round(done, of) => {
                // Whichever of rounds and seconds is further from its end.
                let by_rounds = done as f64 / of as f64;
                let by_time = started.elapsed().as_secs_f64() / options.min_seconds.max(1e-9);
                let share = by_rounds.min(by_time).min(1.0);
                progress.update((100.0 * share) as usize, 100, &format!("{done} rounds"));
            }
            _ => {}
        }
        !interrupted()
    })?;
    drop(progress);
    let references = results.split_off(results.partition_point(|r| r.source < args.models.len()));
    let predicted = predictor.map(|p| p.predict(&references));
    let machine = Machine::here();
    let networks: Vec<(&Source, Engine)> = results
        .iter()
        .map(|r| (&sources[r.source], if r.n_fused > 0 { Engine::Fused } else { Engine::Stock }))
        .collect();
    let layers = match args.per_layer && !interrupted() {
        true => profile(&networks, &options, &mut |_| !interrupted())?,
        false => Vec::new(),
    };
    let complete = !interrupted();
    let power = args.power.measure(&networks, &options, globals)?;
    emit(&match args.format {
        Format::Json => {
            let row = |(i, result)| Row {
                result,
                machine: &machine,
                complete,
                layers: layers.get(i).map(Vec::as_slice),
                predicted_ms: predicted.as_ref().and_then(|p| p.ms(result)),
                power: power.member(i),
            };
            json(&results.iter().enumerate().map(row).collect::<Vec<_>>())?
        }
        Format::Text => {
            text(&results, &machine, complete)
                + &predicted.as_ref().map_or_else(String::new, |p| p.text(&results))
                + &layer_text(&layers)
                + &power_text(&power, &results)
        }
    })?;
    Ok(if interrupted() { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// One row per layer of any network, milliseconds in each, and the ratio of the last to the first.
fn layer_text(networks: &[Vec<LayerTime>]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for layer in networks.iter().flatten() {
        if !names.contains(&layer.layer.as_str()) {
            names.push(&layer.layer);
        }
    }
    if names.is_empty() {
        return String::new();
    }
    let headings: Vec<String> = (1..=networks.len()).map(|i| format!("ms in {i}")).collect();
    let mut headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    headings.insert(0, "layer");
    headings.push("last / first");
    let mut rows = table(&headings);
    let sum = |name: Option<&str>, network: &[LayerTime]| -> Option<f64> {
        let of = |l: &&LayerTime| name.is_none_or(|n| l.layer == n);
        let times: Vec<f64> = network.iter().filter(of).map(|l| l.ms).collect();
        (!times.is_empty()).then(|| times.iter().sum())
    };
    for name in names.into_iter().map(Some).chain([None]) {
        let times: Vec<Option<f64>> = networks.iter().map(|n| sum(name, n)).collect();
        let ratio = match (times.first(), times.last()) {
            (Some(Some(first)), Some(Some(last))) if networks.len() > 1 => format!("{:.3}", last / first),
            _ => "-".to_owned(),
        };
        let mut row = vec![shorten(name.unwrap_or("together"), 48)];
        row.extend(times.iter().map(|t| t.map_or("-".to_owned(), significant)));
        row.push(ratio);
        rows.add_row(row);
    }
    format!("\n{}", render(&rows))
}

fn power_text(power: &Power, results: &[BenchResult]) -> String {
    let names: Vec<String> = results
        .iter()
        .map(|r| if r.n_fused > 0 { format!("{}, fused", r.file) } else { r.file.clone() })
        .collect();
    power.text(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn text(results: &[BenchResult], machine: &Machine, complete: bool) -> String {
    let mut out = String::new();
    if let Some(first) = results.first() {
        let threads = if first.threads == 1 { "thread" } else { "threads" };
        let _ = writeln!(out, "{} rounds, {} {threads}", first.n_runs, first.threads);
    }
    let mut kernels: Vec<&str> = results.iter().flat_map(|r| &r.kernels).map(String::as_str).collect();
    kernels.sort_unstable();
    kernels.dedup();
    let _ = writeln!(out, "{}; tract's kernels: {}", machine.summary(), kernels.join(" "));
    if !complete {
        out.push_str("PARTIAL: interrupted; these are the rounds so far\n");
    }
    let mut rows = table(&[
        "file",
        "engine",
        "batch",
        "median ms",
        "p10–p90",
        "cold",
        "images/s",
        "memory",
        "time",
        "95 % interval",
    ]);
    for r in results {
        let [low, high] = r.time_ratio_interval;
        rows.add_row([
            shorten(&r.file, 36),
            engine_name(&r.engine, r.n_fused),
            r.batch.to_string(),
            significant(r.median_ms),
            format!("{}–{}", significant(r.p10_ms), significant(r.p90_ms)),
            significant(r.cold_ms),
            significant(r.images_per_second),
            r.peak_memory_bytes.map_or("-".to_owned(), |n| format!("{:.1} MB", n as f64 / 1e6)),
            format!("{:.3}", r.time_ratio),
            format!("{low:.3}–{high:.3}"),
        ]);
    }
    out.push_str(&render(&rows));
    out
}

/// Three or four significant digits, without exponent.
pub(crate) fn significant(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        v if v >= 0.1 => 3,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::significant;

    #[test]
    fn times_have_three_digits() {
        assert_eq!([1234.5, 56.78, 1.2345, 0.5678].map(significant), ["1234", "56.8", "1.23", "0.568"]);
    }
}
