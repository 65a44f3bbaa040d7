//! `compress`: the recipe in one command.

use crate::cost::{self, Cost};
use crate::executor::TractExecutor;
use crate::host::CliHost;
use crate::measure::{Measured, measure};
use crate::network::RunArgs;
use crate::opt::{explain, give_up};
use crate::progress::interrupted;
use crate::table::{Format, emit, json, render, shorten, si, table};
use crate::watch::{Shown, Watcher};
use crate::work::{self, bytes};
use crate::{Globals, Usage, data::DataArgs, network};
use basisopt_ir::Graph;
use basisopt_passes::{Item, Manager, Observer, PassReport, Pipeline, Registry, RemarkKind, Report};
use basisopt_runtime::Source;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// The pass that makes the network smaller.
const PASS: &str = "factorize-conv";
/// Images that are evaluated where `--samples` does not say.
const IMAGES: usize = 2000;

const EXAMPLES: &str = "\
Examples:
  basisopt compress fixtures/models/glyphnet.onnx -o small.onnx
      the settings beside the model name test images, so accuracy is measured as well
  basisopt compress m.onnx --energy 0.8 --report
      what it would do, layer by layer; no file
  basisopt compress m.onnx -o small.onnx --data images/ \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
  basisopt compress m.onnx -o small.onnx --exclude '/head/*' --multiple 8

The recipe is the pipeline
  freeze-weights,@fold,factorize-conv:energy=E,dead-code
run as `basisopt opt` runs it. Each convolution becomes one with few basis filters and a 1x1
convolution that recombines them, unless that would not save anything. --energy is the share of the
squared singular values of every layer that is kept: less of it means a smaller network and less
accuracy. It looks at weights alone: nothing is trained, and data serve to measure only.

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
    /// Share of the energy that every factored layer keeps, 0 to 1.
    #[arg(long, value_name = "E", default_value = "0.95")]
    energy: String,
    /// Round ranks up to a multiple of this, for kernels that like it.
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
    report: bool,
    /// Do not measure latency.
    #[arg(long)]
    pub no_bench: bool,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// The result as JSON.
#[derive(Serialize)]
struct JsonReport<'a> {
    file: &'a str,
    output: Option<String>,
    pipeline: String,
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

/// What became of one convolution.
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
        if item.info.name == PASS {
            self.cost = cost::of_pinned(graph, self.dims);
        }
        self.watcher.before(index, item, graph);
    }

    fn after(&mut self, index: usize, item: &Item, graph: &Graph, report: &PassReport) {
        self.watcher.after(index, item, graph, report);
    }
}

pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let pipeline = pipeline(&args)?;
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
    let host = CliHost::new(globals.quiet);
    let mut model = network::model(&args.model)?;
    let file = model.source().file().to_owned();
    // Before the work: a mistake in the settings should not cost it.
    let data = args.data.open_at_most(&args.model, Some(IMAGES))?;
    work::import_notes(&mut model, globals.quiet);
    work::refuse_non_finite(&model)?;
    network::check_dims(&file, &model.graph, &args.run.dims)?;
    let dims = args.run.dims.as_slice();
    let before = Size { file_bytes: model.source().n_bytes(), cost: cost::of_pinned(&model.graph, dims) };
    let original = encode(&model, file.clone())?;

    let mut executor = TractExecutor::new(model.source().clone()).with_dims(args.run.dims.clone());
    let seed = args.data.seed.unwrap_or(0);
    let watcher = Watcher::new(&host, &pipeline, Shown { lines: !globals.quiet, ..Shown::default() });
    let mut costs = Costs { watcher, dims, cost: Cost::default() };
    let mut manager = Manager { seed, host: &host, executor: Some(&mut executor), ..Manager::default() };
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
    let measured = measure(&args, data.as_ref(), &sources, globals.quiet);
    if interrupted() {
        return Ok(give_up(&file));
    }
    let measured = measured?;
    if let Some(output) = &args.output {
        model.write(output)?;
    }
    let sizes = (&before, &after);
    emit(&match args.format {
        Format::Text => text(&args, sizes, &measured, &layers),
        Format::Json => json(&JsonReport {
            file: &file,
            output: args.output.as_ref().map(|o| o.display().to_string()),
            pipeline: pipeline.to_string(),
            before: &before,
            after: &after,
            measured: &measured,
            layers: &layers,
        })?,
    })?;
    if !globals.quiet {
        match &args.output {
            Some(output) => eprintln!("wrote {}", output.display()),
            None => eprintln!("nothing was written: no -o was given"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn pipeline(args: &Args) -> Result<Pipeline, Usage> {
    let mut factorize = format!("{PASS}:energy={}", args.energy);
    let options = [("multiple", &args.multiple), ("include", &args.include), ("exclude", &args.exclude)];
    for (key, value) in options {
        if let Some(value) = value {
            if value.contains([',', ':']) {
                return Err(Usage(format!(
                    "--{key} {value}: a pipeline cannot hold `,` or `:`; write ? for them"
                )));
            }
            let _ = write!(factorize, ":{key}={value}");
        }
    }
    let text = format!("freeze-weights,@fold,{factorize},dead-code");
    Pipeline::parse(&text, &Registry::builtin()).map_err(|e| Usage(e.to_string()))
}

/// The model as it now stands, for the runtime.
fn encode(model: &basisopt_onnx::Model, name: String) -> anyhow::Result<Source> {
    let (bytes, dir) = model.to_executable(&model.graph)?;
    Ok(Source::from_bytes(name, bytes, dir))
}

/// What the factorising pass said about each convolution, in the order in which they run.
fn layers(cost: &Cost, report: &Report) -> Vec<Layer> {
    let remarks: Vec<_> = report.remarks().filter(|r| r.pass == PASS).collect();
    let layer = |layer: &cost::LayerCost| {
        let said = |kind| remarks.iter().find(move |r| r.node == layer.label && r.kind == kind);
        let applied = said(RemarkKind::Applied);
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
            macs_before: layer.macs,
            macs_after: layer.macs.map(|m| share.map_or(m, |s| (m as f64 * s).round() as u64)),
            reason: refused.filter(|_| applied.is_none()).map(|r| r.message.clone()),
        }
    };
    cost.layers.iter().filter(|l| l.is_conv).map(layer).collect()
}

fn text(args: &Args, (before, after): (&Size, &Size), measured: &Measured, layers: &[Layer]) -> String {
    let mut out = String::new();
    if args.report {
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
    let _ = write!(out, "{n_factored} of {} factored", work::count(layers.len(), "convolution"));
    let hint =
        if args.report || n_factored == layers.len() { "" } else { "; --report says why not the others" };
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
    if let Some(worst) = measured.outputs.iter().max_by(|a, b| a.max_rel.total_cmp(&b.max_rel)) {
        lines.push(match worst.max_rel {
            0.0 => "all outputs are exactly equal".to_owned(),
            rel => format!(
                "output {:?} is at most {rel:.1e} off, relative to its scale, on {} of the inputs",
                worst.name, measured.n_compared
            ),
        });
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
    match &measured.accuracy {
        // A fifth of what was right is wrong now: nobody wants that by default.
        Some(a) if a.after < 0.8 * a.before => lines.push(
            "the result is DAMAGED: do not ship it without training. This network does not bear cutting its weights \
             at this energy; a higher --energy or --exclude for its most sensitive layers keeps it working"
                .to_owned(),
        ),
        Some(a) if a.after + a.margin < a.before => lines.push(
            "accuracy was lost: a higher --energy keeps more of it; lower ones lose more, for nothing is trained here"
                .to_owned(),
        ),
        Some(_) => {}
        None if n_factored == 0 => {}
        None => lines.push("lower --energy makes it smaller and costs accuracy: measure it with --data".to_owned()),
    }
    lines
}

/// A difference of shares in percentage points, with its sign.
fn points(difference: f64) -> String {
    format!("{:+.2} points", 100.0 * difference)
}

fn layer_table(layers: &[Layer]) -> String {
    let mut rows = table(&["layer", "rank", "energy", "error", "multiply-adds", "left alone because"]);
    if let Some(column) = rows.column_mut(5) {
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
            macs,
            layer.reason.clone().unwrap_or_default(),
        ]);
    }
    render(&rows)
}
