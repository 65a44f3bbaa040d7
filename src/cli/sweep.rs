//! `sweep`: one network under many budgets, measured once.

mod report;

use crate::compress::MethodArg;
use crate::data::DataArgs;
use crate::host::CliHost;
use crate::network::RunArgs;
use crate::opt::{explain, give_up};
use crate::progress::interrupted;
use crate::table::{Format, emit, significant};
use crate::work;
use crate::{Globals, Usage, network};
use anyhow::anyhow;
use basisopt_embed::material::HELD_OUT;
use basisopt_embed::samples::calibration_memory;
use basisopt_embed::{DataSamples, Method, TractExecutor, Use};
use basisopt_ir::Graph;
use basisopt_onnx::Model;
use basisopt_passes::cost::{self, Cost};
use basisopt_passes::{
    Calibration, Globs, Limits, Manager, NoObserver, PassContext, PassError, Pipeline, Quantity, Registry,
    Remark, RemarkKind, Samples, Survey,
};
use basisopt_runtime::{ENGINE, Outputs};
use report::{Layer, MAX_SPECTRUM, Point, Sweep};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  basisopt sweep fixtures/models/glyphnet.onnx --html sweep.html
      the settings beside the model name the images
  basisopt sweep m.onnx --data images/ --samples 1000 --html sweep.html --csv sweep.csv
  basisopt sweep m.onnx --data images/ --over bytes --budgets 0.3,0.4,0.5 --save small/
      three networks with 30, 40 and 50 % of the bytes: small/m_bytes_0.3.onnx and so on

Spectra and sensitivities of the layers are measured once, and shared by all budgets; what costs time at each
budget is fitting the factors in order and running the result on the images that are held out. The data are
shared out as `basisopt compress` does it. The page is one file, to be opened in any browser or sent on.

Ctrl-C ends the sweep after the budgets that are done; what they gave is shown and written.";

/// Budgets where none are given.
const BUDGETS: &[f64] = &[0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// What budgets are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Over {
    /// Multiply-adds that are kept.
    Macs,
    /// Parameters that are kept.
    Params,
    /// Bytes of parameters that are kept.
    Bytes,
    /// Energy that every layer keeps.
    Energy,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The network: an .onnx or .bir file, or - for stdin.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// What the budgets are of.
    #[arg(long, value_enum, default_value = "macs")]
    over: Over,
    /// Shares to keep, from 0 to 1.
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', default_values_t = BUDGETS.iter().copied())]
    budgets: Vec<f64>,
    /// What factors are made from [default: sequential with data, weights without].
    #[arg(long, value_enum)]
    method: Option<MethodArg>,
    /// Ranks are multiples of this.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    multiple: u64,
    /// Only layers whose node name matches (globs joined by |).
    #[arg(long, value_name = "GLOBS")]
    include: Option<String>,
    /// Not the layers whose node name matches (globs joined by |).
    #[arg(long, value_name = "GLOBS")]
    exclude: Option<String>,
    /// Write a page with curves, spectra and ranks.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the table as CSV.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write the networks into this folder.
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
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
    data: DataArgs,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    check_usage(&args)?;
    let host = CliHost::new(globals.quiet);
    let mut model = network::model(&args.model)?;
    let file = model.source().file().to_owned();
    let material = args.data.share(&args.model, args.calibration.as_deref(), Use::Report, HELD_OUT)?;
    work::import_notes(&mut model, globals.quiet);
    basisopt_embed::optimize::refuse_non_finite(&model)?;
    network::check_dims(&file, &model.graph, &args.run.dims)?;
    let seed = args.data.seed.unwrap_or(0);
    let mut executor = TractExecutor::new(model.source().clone()).with_dims(args.run.dims.clone());
    let samples = match &material.calibration {
        Some(dataset) => {
            let preprocess = material.preprocess.clone();
            let samples = DataSamples::new(dataset.clone(), preprocess, &model.graph, &executor);
            Some(samples.map_err(|e| anyhow!("{file}: the images to calibrate on: {e}"))?)
        }
        None => None,
    };
    let calibration = samples.as_ref().map(|s| Calibration { samples: s, memory: calibration_memory() });
    let passes = |text: &str| Pipeline::parse(text, &Registry::builtin()).map_err(|e| Usage(e.to_string()));

    let original_cost = cost::of_pinned(&model.graph, &args.run.dims);
    let measure = |executor: &TractExecutor, graph: &Graph| -> anyhow::Result<Option<Outputs>> {
        let Some(held_out) = &material.held_out else { return Ok(None) };
        let program = executor.program(graph).map_err(|e| anyhow!("{file}: {e}"))?;
        let keep_going = || !interrupted();
        Ok(Some(Outputs::of(&program, held_out, &material.preprocess, &mut |_| {}, &keep_going)?))
    };
    let original = measure(&executor, &model.graph)?;

    let mut manager =
        Manager { seed, host: &host, executor: Some(&mut executor), is_checked: false, ..Manager::default() };
    manager
        .run(&mut model.graph, &passes("freeze-weights,@fold")?, &mut NoObserver)
        .map_err(|e| explain(e, &file))?;
    let mut remarks = Vec::new();
    host.begin("measuring the layers");
    let survey = {
        let mut cx = PassContext::new("sweep", seed, &host, &mut remarks);
        cx.executor = Some(&mut executor);
        cx.calibration = calibration;
        let globs = |text: &Option<String>| text.as_deref().and_then(Globs::new);
        Survey::measure(&model.graph, &mut cx, globs(&args.include), globs(&args.exclude))
    };
    host.end();
    let survey = match survey {
        Err(PassError::Interrupted) => return Ok(give_up(&file)),
        other => other.map_err(|e| anyhow!("{file}: {e}"))?,
    };
    if !globals.quiet {
        let n = work::count(survey.layers.len(), "layer");
        eprintln!("{n} measured in {}", work::time(started.elapsed()));
    }

    let mut sweep = Sweep {
        version: env!("CARGO_PKG_VERSION"),
        engine: ENGINE,
        method: args
            .method
            .map_or(if samples.is_some() { "sequential" } else { "weights" }, |m| Method::from(m).name()),
        target: args.over.name(),
        calibration: samples.as_ref().map(Samples::describe),
        held_out: material.held_out.as_ref().map(|d| format!("{} images of {}", d.len(), d.path().display())),
        labelled: material.held_out.as_ref().is_some_and(basisopt_runtime::Dataset::is_labelled),
        original: point(1.0, &original_cost, original.as_ref().zip(original.as_ref()), vec![])?,
        points: vec![],
        layers: layers(&survey, &remarks),
        notes: notes(samples.is_some(), material.held_out.is_some()),
        seconds: 0.0,
        command: work::command(),
        file: file.clone(),
    };
    let n_refused = sweep.layers.len() - survey.layers.len();
    for (i, &budget) in args.budgets.iter().enumerate() {
        let limits = Limits { multiple: usize::try_from(args.multiple).unwrap_or(1) };
        let Some(ranks) = ranks(&survey, args.over, budget, limits) else {
            sweep.notes.push(format!("{} {budget}: no ranks make the network so small", args.over.name()));
            continue;
        };
        let before = Instant::now();
        let mut graph = model.graph.clone();
        survey.annotate(&mut graph, &ranks);
        let method = args.method.map_or(String::new(), |m| format!(":method={}", Method::from(m).name()));
        let pipeline = passes(&format!("factorize-conv{method},factorize-linear{method},dead-code"))?;
        let mut manager = Manager {
            seed,
            host: &host,
            executor: Some(&mut executor),
            is_checked: false,
            calibration,
            ..Manager::default()
        };
        host.begin(&format!("budget {} of {}", i + 1, args.budgets.len()));
        let done = manager.run(&mut graph, &pipeline, &mut NoObserver);
        host.end();
        match done {
            Err(e) if work::was_interrupted(&e) => {}
            done => drop(done.map_err(|e| explain(e, &sweep.file))?),
        }
        let outputs = if interrupted() { None } else { measure(&executor, &graph)? };
        if interrupted() {
            sweep.notes.push(format!("interrupted after {i} of {} budgets", args.budgets.len()));
            break;
        }
        let cost = cost::of_pinned(&graph, &args.run.dims);
        let mut ranks = ranks;
        ranks.extend(std::iter::repeat_n(None, n_refused));
        let point = point(budget, &cost, original.as_ref().zip(outputs.as_ref()), ranks)?;
        if !globals.quiet {
            let took = work::time(before.elapsed());
            eprintln!("{} {budget}: {} of {} in {took}", args.over.name(), i + 1, args.budgets.len());
        }
        if let Some(folder) = &args.save {
            save(&args, &model, &graph, folder, budget)?;
        }
        sweep.points.push(point);
    }
    sweep.seconds = started.elapsed().as_secs_f64();
    finish(&args, &sweep, globals)
}

/// Writes and prints what was found.
fn finish(args: &Args, sweep: &Sweep, globals: &Globals) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.html {
        work::write_whole(path, sweep.page()?.as_bytes())?;
    }
    if let Some(path) = &args.csv {
        work::write_whole(path, sweep.csv().as_bytes())?;
    }
    emit(&match args.format {
        Format::Text => sweep.text(),
        Format::Json => sweep.json()?,
    })?;
    if !globals.quiet {
        for path in [&args.html, &args.csv].into_iter().flatten() {
            eprintln!("wrote {}", path.display());
        }
    }
    Ok(if interrupted() { ExitCode::from(crate::INTERRUPTED) } else { ExitCode::SUCCESS })
}

impl Over {
    fn name(self) -> &'static str {
        match self {
            Self::Macs => "macs",
            Self::Params => "params",
            Self::Bytes => "bytes",
            Self::Energy => "energy",
        }
    }
}

fn check_usage(args: &Args) -> anyhow::Result<()> {
    if let Some(wrong) = args.budgets.iter().find(|b| !(0.0..=1.0).contains(*b)) {
        return Err(Usage(format!("--budgets {wrong}: shares are from 0 to 1")).into());
    }
    for (flag, globs) in [("--include", &args.include), ("--exclude", &args.exclude)] {
        if globs.as_deref().is_some_and(|g| Globs::new(g).is_none()) {
            return Err(Usage(format!("{flag}: expected glob patterns joined by |")).into());
        }
    }
    for path in [&args.html, &args.csv].into_iter().flatten() {
        work::check_output(&args.model, path)?;
    }
    match &args.save {
        Some(folder) if !folder.is_dir() => {
            Err(anyhow!("--save {}: there is no such folder; create it first", folder.display()))
        }
        _ => Ok(()),
    }
}

fn ranks(survey: &Survey, over: Over, budget: f64, limits: Limits) -> Option<Vec<Option<usize>>> {
    match over {
        Over::Macs => survey.ranks(Quantity::Macs, budget, limits),
        Over::Params => survey.ranks(Quantity::Params, budget, limits),
        Over::Bytes => survey.ranks(Quantity::Bytes, budget, limits),
        Over::Energy => Some(survey.ranks_by_energy(budget, limits)),
    }
}

fn save(
    args: &Args,
    model: &Model,
    graph: &Graph,
    folder: &std::path::Path,
    budget: f64,
) -> anyhow::Result<()> {
    let stem = args.model.file_stem().map_or_else(|| "model".into(), |s| s.to_string_lossy());
    let path = folder.join(format!("{stem}_{}_{budget}.onnx", args.over.name()));
    Ok(model.source().write(graph, path)?)
}

fn point(
    budget: f64,
    cost: &Cost,
    outputs: Option<(&Outputs, &Outputs)>,
    ranks: Vec<Option<usize>>,
) -> anyhow::Result<Point> {
    let mut point = Point {
        budget,
        macs: cost.macs,
        params: cost.params,
        bytes: cost.param_bytes,
        n_factored: ranks.iter().flatten().count(),
        ranks,
        ..Point::default()
    };
    let Some((original, this)) = outputs else { return Ok(point) };
    let share = |hits: &[bool]| hits.iter().filter(|h| **h).count() as f64 / hits.len().max(1) as f64;
    if let Some(hits) = this.hits()? {
        let accuracy = share(&hits);
        point.accuracy = Some(accuracy);
        point.margin = Some(1.96 * (accuracy * (1.0 - accuracy) / hits.len().max(1) as f64).sqrt());
    }
    if let Some((a, b)) = original.classes().zip(this.classes()) {
        point.agreement =
            Some(share(&a.iter().zip(&b).map(|(a, b)| a == b && a.is_some()).collect::<Vec<_>>()));
    }
    point.output_error = original.error(this).map(f64::sqrt);
    Ok(point)
}

/// The layers of the survey, then those that cannot be factored.
fn layers(survey: &Survey, remarks: &[Remark]) -> Vec<Layer> {
    let of = |layer: &basisopt_passes::Surveyed| {
        let (p, d) = (layer.n_rows, layer.n_columns);
        let kernel: Vec<String> = layer.kernel.iter().map(usize::to_string).collect();
        Layer {
            name: layer.labels[0].clone(),
            kind: if kernel.is_empty() { "Linear".to_owned() } else { format!("Conv {}", kernel.join("×")) },
            n_rows: p,
            n_columns: d,
            full_rank: p.min(d),
            break_even: basisopt_passes::ranks::break_even(p, d),
            macs: layer.macs,
            sensitivity: survey.has_data.then(|| significant(layer.sensitivity.scale)),
            spectrum: layer.spectrum.iter().take(MAX_SPECTRUM).map(|&v| significant(v)).collect(),
            left_alone: None,
        }
    };
    let refused = remarks.iter().filter(|r| r.kind == RemarkKind::Refused).map(|r| Layer {
        name: r.node.clone(),
        kind: String::new(),
        n_rows: 0,
        n_columns: 0,
        full_rank: 0,
        break_even: 0.0,
        macs: None,
        sensitivity: None,
        spectrum: vec![],
        left_alone: Some(r.message.clone()),
    });
    survey.layers.iter().map(of).chain(refused).collect()
}

fn notes(has_data: bool, has_held_out: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if !has_data {
        notes.push("no data: ranks and factors come from the weights alone, and nothing was measured; give --data images/".to_owned());
    } else if !has_held_out {
        notes.push("no images were held out, so nothing was measured".to_owned());
    }
    notes
}
