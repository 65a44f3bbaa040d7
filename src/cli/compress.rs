//! `compress`: the recipe in one command.

use crate::executor::TractExecutor;
use crate::host::CliHost;
use crate::material::{HELD_OUT, ImageJudge, Material};
use crate::measure::{Measured, measure};
use crate::network::RunArgs;
use crate::opt::{explain, give_up};
use crate::progress::interrupted;
use crate::samples::{DataSamples, calibration_memory};
use crate::table::{Format, emit, json, render, shorten, si, table};
use crate::watch::{Shown, Watcher};
use crate::work::{self, bytes};
use crate::{Globals, Usage, data::DataArgs, network};
use anyhow::anyhow;
use basisopt_ir::Graph;
use basisopt_passes::cost::{self, Cost};
use basisopt_passes::{
    Calibration, Item, Judge, Manager, Observer, PassReport, Pipeline, Registry, RemarkKind, Report, Samples,
    Target,
};
use basisopt_runtime::Source;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// The passes that make the network smaller.
const PASSES: [&str; 2] = ["factorize-conv", "factorize-linear"];
/// What is done where neither a budget nor a rule is given: with data, and without.
const DEFAULT_BUDGET: &str = "drop:1.0";
const DEFAULT_ENERGY: &str = "0.95";

const EXAMPLES: &str = "\
Examples:
  basisopt compress fixtures/models/glyphnet.onnx -o small.onnx
      the settings beside the model name images to learn from and labelled ones to measure on
  basisopt compress m.onnx --data images/ --budget macs=0.36 -o small.onnx \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
      36 % of the multiply-adds, as accurate as that can be
  basisopt compress m.onnx --data images/ --budget drop=1.0 -o small.onnx
      as small as can be while no more than one point of accuracy is lost
  basisopt compress m.onnx --data images/ --budget bytes=0.5 --save-ranks ranks.txt --layers
      half the bytes: what it would do, layer by layer; the ranks to edit and give back with --ranks

The recipe is a pipeline, run as `basisopt opt` runs it and stored in the output:
  freeze-weights,@fold,allocate-ranks:target=BUDGET,factorize-conv,factorize-linear,dead-code
Each layer becomes one with few basis filters and a 1x1 convolution that recombines them, unless that
would not save anything. --data is shared out: --samples images to calibrate on, some to choose by (for
drop=), the rest to report on. Labels are used for judging only; without any, versions are judged by whether they
agree with the original. Nothing is trained.

Budgets: macs=SHARE, params=SHARE or bytes=SHARE to keep (or numbers: macs=45M), energy=SHARE of every
layer's output, drop=POINTS of accuracy to lose at most. Without data there is only the weights' energy.

Latency is that of tract on this machine. A network with fewer multiply-adds is not always faster;
the report says so where it is not.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The network: an .onnx or .bir file, or - for stdin.
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// Where to write the result; nothing is written without.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What to aim for: macs=0.36, params=0.5, bytes=0.5, energy=0.9 or drop=1.0 [default: drop=1.0 with
    /// data; without, --energy 0.95].
    #[arg(long, value_name = "TARGET", conflicts_with_all = ["energy", "ranks"])]
    budget: Option<String>,
    /// Share of the energy that every factored layer keeps, 0 to 1.
    #[arg(long, value_name = "E", conflicts_with = "ranks")]
    energy: Option<String>,
    /// Take ranks from a file: a line `RANK NAME` per layer; the others stay whole.
    #[arg(long, value_name = "FILE")]
    ranks: Option<String>,
    /// Write the ranks that were chosen, to be edited and given back with --ranks.
    #[arg(long, value_name = "FILE")]
    save_ranks: Option<PathBuf>,
    /// What factors are made from [default: sequential with data, weights without].
    #[arg(long, value_enum)]
    method: Option<MethodArg>,
    /// Choose ranks by the paper's greedy rule: the accuracy of every layer factored alone. Slow.
    #[arg(long)]
    greedy: bool,
    /// Round ranks to a multiple of this, for kernels that like it.
    #[arg(long, value_name = "N")]
    multiple: Option<String>,
    /// Only layers whose node name matches (globs joined by |).
    #[arg(long, value_name = "GLOBS")]
    include: Option<String>,
    /// Not the layers whose node name matches (globs joined by |).
    #[arg(long, value_name = "GLOBS")]
    exclude: Option<String>,
    /// Show every layer: rank, energy, error, multiply-adds, or why it was left alone.
    #[arg(long)]
    layers: bool,
    /// Write the result as JSON to a file, all layers included.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Do not measure latency.
    #[arg(long)]
    pub no_bench: bool,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Images to calibrate on, instead of some of --data.
    #[arg(
        long,
        value_name = "PATH",
        help_heading = "Data and preprocessing (read from MODEL.toml where not given)"
    )]
    calibration: Option<PathBuf>,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// What factors are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum MethodArg {
    /// Singular values of the weights alone (the paper).
    Weights,
    /// Principal components of each layer's output in the original.
    Output,
    /// Regression on what the compressed layers before it really give.
    Sequential,
}

impl MethodArg {
    /// The name in pipelines and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Output => "output",
            Self::Sequential => "sequential",
        }
    }
}

/// The result as JSON.
#[derive(Serialize)]
struct JsonReport<'a> {
    file: &'a str,
    output: Option<String>,
    pipeline: String,
    seconds: f64,
    before: &'a Size,
    after: &'a Size,
    measured: &'a Measured,
    layers: &'a [Layer],
}

/// What a network costs, and how large its file is.
#[derive(Serialize)]
struct Size {
    file_bytes: u64,
    #[serde(flatten)]
    cost: Cost,
}

/// What became of one convolution or linear layer.
#[derive(Debug, Serialize)]
struct Layer {
    name: String,
    factored: bool,
    rank: Option<u64>,
    full_rank: Option<u64>,
    /// Share of the squared singular values kept.
    energy: Option<f64>,
    /// `‖W − factors‖ / ‖W‖`.
    error: Option<f64>,
    /// Root of the mean squared error of the layer's output relative to its variance, where it was fitted.
    output_error: Option<f64>,
    macs_before: Option<u64>,
    macs_after: Option<u64>,
    /// Why it was left alone.
    reason: Option<String>,
}

/// Notes what the layers cost just before they are factored: folding renames none, but may remove.
struct Costs<'a> {
    watcher: Watcher<'a>,
    dims: &'a [(String, usize)],
    cost: Cost,
}

impl Observer for Costs<'_> {
    fn before(&mut self, index: usize, item: &Item, graph: &Graph) {
        if item.info.name == PASSES[0] {
            self.cost = cost::of_pinned(graph, self.dims);
        }
        self.watcher.before(index, item, graph);
    }

    fn after(&mut self, index: usize, item: &Item, graph: &Graph, report: &PassReport) {
        self.watcher.after(index, item, graph, report);
    }
}

pub(crate) fn run(mut args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let target = args.budget.as_deref().map(Target::parse).transpose().map_err(budget_error)?;
    if let Some(output) = &args.output {
        if output == std::path::Path::new("-") {
            return Err(Usage(
                "compress prints its report on stdout; to pipe the model, use `basisopt opt … -o -`"
                    .to_owned(),
            )
            .into());
        }
        work::check_output(&args.model, output)?;
    }
    for file in [&args.report, &args.save_ranks].into_iter().flatten() {
        work::check_output(&args.model, file)?;
    }
    // Slips in the options before slow work.
    pipeline(&args, true)?;
    let host = CliHost::new(globals.quiet);
    let mut model = network::model(&args.model)?;
    let file = model.source().file().to_owned();
    let by_accuracy = args.greedy || target.is_none() || matches!(target, Some(Target::Drop(_)));
    let is_judged = by_accuracy && args.energy.is_none() && args.ranks.is_none();
    let material = Material::open(&args.data, &args.model, args.calibration.as_deref(), is_judged, HELD_OUT)?;
    work::import_notes(&mut model, globals.quiet);
    work::refuse_non_finite(&model)?;
    network::check_dims(&file, &model.graph, &args.run.dims)?;
    let dims = &args.run.dims.clone();
    let before = Size { file_bytes: model.source().n_bytes(), cost: cost::of_pinned(&model.graph, dims) };
    let original = encode(&model, file.clone())?;

    let seed = args.data.seed.unwrap_or(0);
    let source = model.source().clone();
    let executor = || TractExecutor::new(source.clone()).with_dims(dims.clone());
    let (mut checker, preprocess) = (executor(), &material.preprocess);
    let samples = match &material.calibration {
        Some(dataset) => {
            let samples = DataSamples::new(dataset.clone(), preprocess.clone(), &model.graph, &checker);
            Some(samples.map_err(|e| anyhow!("{file}: the images to calibrate on: {e}"))?)
        }
        None => None,
    };
    let mut notes = Vec::new();
    let mut judge = material.judged.clone().map(|d| ImageJudge::new(executor(), d, preprocess.clone()));
    // Detectors and the like have no classes to agree on: a budget that suits them stands in.
    if let Some(j) = &mut judge
        && target.is_none()
        && j.score(&model.graph).is_err()
    {
        notes.push("its outputs are no class scores, so the budget is macs=0.5 and not drop=1.0".to_owned());
        args.budget = Some("macs:0.5".to_owned());
        judge = None;
    }
    let (args, pipeline) = (&args, pipeline(&args, samples.is_some())?);

    let watcher = Watcher::new(&host, &pipeline, Shown { lines: !globals.quiet, ..Shown::default() });
    let mut costs = Costs { watcher, dims, cost: Cost::default() };
    let mut manager = Manager {
        seed,
        host: &host,
        executor: Some(&mut checker),
        calibration: samples.as_ref().map(|s| Calibration { samples: s, memory: calibration_memory() }),
        ..Manager::default()
    };
    if let Some(judge) = &mut judge {
        manager.judge = Some(judge);
    }
    let result = manager.run(&mut model.graph, &pipeline, &mut costs);
    host.end();
    let report = match result {
        Err(e) if work::was_interrupted(&e) => return Ok(give_up(&file)),
        result => result.map_err(|e| explain(e, &file))?,
    };
    let layers = layers(&costs.cost, &report);
    costs.watcher.finish()?;

    let encoded = model.to_bytes()?;
    let n_data: usize = encoded.data_files().iter().flat_map(|(_, pieces)| pieces).map(|p| p.len()).sum();
    let after =
        Size { file_bytes: (encoded.len() + n_data) as u64, cost: cost::of_pinned(&model.graph, dims) };
    let name =
        args.output.as_ref().map_or_else(|| format!("{file} (compressed)"), |o| o.display().to_string());
    let sources = [original, encode(&model, name)?];
    let data = material.held_out.as_ref().map(|d| (d, preprocess));
    let measured = measure(args, data, &sources, globals.quiet);
    if interrupted() {
        return Ok(give_up(&file));
    }
    let mut measured = measured?;
    measured.calibration = samples.as_ref().map(Samples::describe);
    measured.notes.extend(notes);
    let of = |r: &&basisopt_passes::Remark| r.node.is_empty() && r.code != "tried";
    measured.notes.extend(report.remarks().filter(of).map(|r| r.message.clone()));
    let whole = JsonReport {
        file: &file,
        output: args.output.as_ref().map(|o| o.display().to_string()),
        pipeline: pipeline.to_string(),
        seconds: started.elapsed().as_secs_f64(),
        before: &before,
        after: &after,
        measured: &measured,
        layers: &layers,
    };
    let as_json = json(&whole)?;
    if let Some(path) = &args.save_ranks {
        work::write_whole(path, ranks_file(&pipeline, &layers).as_bytes())?;
    }
    if let Some(path) = &args.report {
        work::write_whole(path, as_json.as_bytes())?;
    }
    if let Some(output) = &args.output {
        model.write(output)?;
    }
    emit(&match args.format {
        Format::Text => text(args, (&before, &after), &measured, &layers),
        Format::Json => as_json,
    })?;
    if !globals.quiet {
        for path in [&args.output, &args.report, &args.save_ranks].into_iter().flatten() {
            eprintln!("wrote {}", path.display());
        }
        if args.output.is_none() {
            eprintln!("nothing was written: no -o was given");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn budget_error(error: basisopt_passes::OptionError) -> Usage {
    let text = error.to_string();
    Usage(text.replace("allocate-ranks: target=", "--budget "))
}

/// The pipeline that the options describe.
fn pipeline(args: &Args, has_data: bool) -> Result<Pipeline, Usage> {
    let mut filters = String::new();
    for (key, value) in [("include", &args.include), ("exclude", &args.exclude)] {
        if let Some(value) = value {
            let _ = write!(filters, ":{key}={}", plain(&format!("--{key}"), value)?);
        }
    }
    let multiple = args.multiple.as_ref().map(|n| format!(":multiple={n}")).unwrap_or_default();
    let method = args.method.map_or(String::new(), |m| format!(":method={}", m.name()));
    let energy = args.energy.as_deref().or((!has_data && args.budget.is_none()).then_some(DEFAULT_ENERGY));
    let mut text = "freeze-weights,@fold".to_owned();
    match (&args.ranks, energy) {
        (Some(file), _) => {
            let _ = write!(text, ",allocate-ranks:ranks={}{filters}", plain("--ranks", file)?);
            PASSES.iter().for_each(|pass| {
                let _ = write!(text, ",{pass}{method}{filters}");
            });
        }
        // Convolutions alone, as the paper has it.
        (None, Some(energy)) => {
            let _ = write!(text, ",{}:energy={energy}{method}{multiple}{filters}", PASSES[0]);
        }
        (None, None) => {
            let target = args.budget.as_deref().unwrap_or(DEFAULT_BUDGET).replacen('=', ":", 1);
            let greedy = if args.greedy { ":by=greedy" } else { "" };
            let _ = write!(text, ",allocate-ranks:target={target}{greedy}{multiple}{filters}");
            PASSES.iter().for_each(|pass| {
                let _ = write!(text, ",{pass}{method}{filters}");
            });
        }
    }
    text += ",dead-code";
    Pipeline::parse(&text, &Registry::builtin()).map_err(|e| Usage(e.to_string()))
}

/// A value that can stand in the text of a pipeline.
fn plain<'a>(flag: &str, value: &'a str) -> Result<&'a str, Usage> {
    match value.contains([',', ':']) {
        true => Err(Usage(format!("{flag} {value}: a pipeline cannot hold `,` or `:`; write ? for them"))),
        false => Ok(value),
    }
}

/// The ranks that were chosen, as a file for `--ranks`.
fn ranks_file(pipeline: &Pipeline, layers: &[Layer]) -> String {
    let mut text = format!("# Ranks chosen by basisopt {}: {pipeline}\n", env!("CARGO_PKG_VERSION"));
    for layer in layers {
        match (layer.rank.filter(|_| layer.factored), layer.full_rank) {
            (Some(rank), Some(full)) => {
                let _ = writeln!(text, "{rank} {} # of {full}", layer.name);
            }
            _ => {
                let _ = writeln!(text, "# {} stays whole", layer.name);
            }
        }
    }
    text
}

/// The model as it now stands, for the runtime.
fn encode(model: &basisopt_onnx::Model, name: String) -> anyhow::Result<Source> {
    let (bytes, dir) = model.to_executable(&model.graph)?;
    Ok(Source::from_bytes(name, bytes, dir))
}

/// What the factorising passes said about each layer, in the order in which they run.
fn layers(cost: &Cost, report: &Report) -> Vec<Layer> {
    let remarks: Vec<_> = report.remarks().filter(|r| PASSES.contains(&r.pass.as_str())).collect();
    let layer = |layer: &cost::LayerCost| {
        let said = |kind| remarks.iter().find(move |r| r.node == layer.label && r.kind == kind);
        let applied = said(RemarkKind::Applied).filter(|r| r.code == "factored");
        let refused = said(RemarkKind::Refused);
        // Refusals carry the numbers they know, such as the rank that would not have paid.
        let value = |key: &str| applied.or(refused).and_then(|r| r.values.get(key)).copied();
        let whole = |key: &str| value(key).map(|v| v as u64);
        let error = value("squared_error").zip(value("squared_norm")).map(|(e, n)| (e / n).sqrt());
        let share = applied.and_then(|r| r.values.get("cost"));
        Layer {
            name: layer.label.clone(),
            factored: applied.is_some(),
            rank: whole("rank"),
            full_rank: whole("full_rank"),
            energy: value("energy"),
            error,
            output_error: value("output_error").map(f64::sqrt),
            macs_before: layer.macs,
            macs_after: layer.macs.map(|m| share.map_or(m, |s| (m as f64 * s).round() as u64)),
            reason: match (applied, refused) {
                (Some(_), _) => None,
                (None, Some(refused)) => Some(refused.message.clone()),
                (None, None) => Some("--energy goes by convolutions alone, as the paper does".to_owned()),
            },
        }
    };
    cost.layers.iter().map(layer).collect()
}

fn text(args: &Args, (before, after): (&Size, &Size), measured: &Measured, layers: &[Layer]) -> String {
    let mut out = String::new();
    if args.layers {
        out = layer_table(layers) + "\n";
    }
    let mut rows = table(&["", "before", "after", "ratio"]);
    let ratio = |a: f64, b: f64| if a > 0.0 { format!("{:.3}", b / a) } else { String::new() };
    let mut row = |what: &str, show: &dyn Fn(u64) -> String, a: Option<u64>, b: Option<u64>| {
        if let (Some(a), Some(b)) = (a, b) {
            rows.add_row([what.to_owned(), show(a), show(b), ratio(a as f64, b as f64)]);
        }
    };
    let number = |n: u64| si(n as f64);
    row("file size", &bytes, Some(before.file_bytes), Some(after.file_bytes));
    row("parameters", &number, Some(before.cost.params), Some(after.cost.params));
    row("multiply-adds", &number, before.cost.macs, after.cost.macs);
    if let Some(a) = &measured.accuracy {
        let percent = |x: f64| format!("{:.2} %", 100.0 * x);
        rows.add_row([
            "top-1 accuracy".to_owned(),
            percent(a.before),
            percent(a.after),
            points(a.after - a.before),
        ]);
    }
    if let Some([a, b]) = &measured.latency {
        let ms = |x: f64| format!("{x:.3} ms");
        let what = format!("latency, batch {}", a.batch);
        rows.add_row([what, ms(a.median_ms), ms(b.median_ms), format!("{:.3}", b.time_ratio)]);
    }
    out += &render(&rows);
    out.push('\n');

    let n_factored = layers.iter().filter(|l| l.factored).count();
    let _ = write!(out, "{n_factored} of {} factored", work::count(layers.len(), "layer"));
    let hint =
        if args.layers || n_factored == layers.len() { "" } else { "; --layers says why not the others" };
    let _ = writeln!(out, "{hint}");
    for line in findings(measured, before.cost.macs.is_none(), n_factored) {
        let _ = writeln!(out, "{line}");
    }
    out
}

/// The sentences under the table.
fn findings(measured: &Measured, are_macs_unknown: bool, n_factored: usize) -> Vec<String> {
    let mut lines = Vec::new();
    if are_macs_unknown {
        lines
            .push("multiply-adds are not known: an input size is open; give it with --dim NAME=N".to_owned());
    }
    if let Some(a) = &measured.agreement {
        lines.push(format!(
            "both networks name the same class on {:.2} % of {} inputs",
            100.0 * a.share,
            a.n
        ));
    }
    if let Some(error) = measured.output_error.filter(|_| measured.agreement.is_none()) {
        lines
            .push(format!("relative error of the outputs: {error:.4} (root of squared error over variance)"));
    }
    if let Some(worst) = measured.outputs.iter().max_by(|a, b| a.max_rel.total_cmp(&b.max_rel)) {
        lines.push(match worst.max_rel {
            0.0 => "all outputs are exactly equal".to_owned(),
            rel => format!(
                "output {:?} is at most {rel:.1e} off, relative to its scale, on {} of the inputs",
                worst.name, measured.n_compared
            ),
        });
    }
    if let Some(images) = &measured.calibration {
        lines.push(format!("calibrated on {images}"));
    }
    if !measured.inputs.is_empty() {
        lines.push(format!("measured on {}, with {}", measured.inputs, measured.engine));
    }
    lines.extend(measured.notes.iter().cloned());
    if let Some([_, b]) = &measured.latency {
        let [low, high] = b.time_ratio_quartiles;
        if low > 1.0 {
            lines.push(format!(
                "the result is SLOWER on this machine, {:.2} times the original's time: two small convolutions cost more than one here",
                b.time_ratio
            ));
        } else if high >= 1.0 {
            lines.push("no difference in speed beyond the noise of this measurement".to_owned());
        }
    }
    let calibrated = measured.calibration.is_some();
    match &measured.accuracy {
        // A fifth of what was right is wrong now: nobody wants that by default.
        Some(a) if a.after < 0.8 * a.before => lines.push(format!(
            "the result is DAMAGED: do not ship it without training. {}",
            match calibrated {
                true => "This network does not bear so small a budget; a larger one, or --exclude for its most sensitive layers, keeps it working",
                false => "Ranks and factors came from the weights alone; with --data images/ they come from what the layers do",
            }
        )),
        Some(a) if a.after + a.margin < a.before => lines.push(match calibrated {
            true => "accuracy was lost: a larger --budget keeps more of it".to_owned(),
            false => "accuracy was lost: factors from data (--data) keep much more of it at the same size".to_owned(),
        }),
        Some(_) => {}
        None if n_factored == 0 => {}
        None if calibrated => {}
        None => lines.push("nothing was measured on real inputs: give --data images/".to_owned()),
    }
    lines
}

/// A difference of shares in percentage points, with its sign.
fn points(difference: f64) -> String {
    format!("{:+.2} points", 100.0 * difference)
}

fn layer_table(layers: &[Layer]) -> String {
    let mut rows = table(&[
        "layer",
        "rank",
        "energy",
        "weight error",
        "output error",
        "multiply-adds",
        "left alone because",
    ]);
    if let Some(column) = rows.column_mut(6) {
        column.set_cell_alignment(comfy_table::CellAlignment::Left);
    }
    for layer in layers {
        let macs = |n: Option<u64>| n.map_or("?".to_owned(), |n| si(n as f64));
        let rank = match (layer.rank, layer.full_rank) {
            (Some(rank), Some(full)) => format!("{rank}/{full}"),
            _ => String::new(),
        };
        let macs = match layer.factored {
            true => format!("{} → {}", macs(layer.macs_before), macs(layer.macs_after)),
            false => macs(layer.macs_before),
        };
        let fixed = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.4}"));
        rows.add_row([
            shorten(&layer.name, 40),
            rank,
            fixed(layer.energy),
            fixed(layer.error),
            fixed(layer.output_error),
            macs,
            layer.reason.clone().unwrap_or_default(),
        ]);
    }
    render(&rows)
}
