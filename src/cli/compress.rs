//! `compress`: the recipe in one command.

mod ladder;
mod report;

use crate::engine::EngineArg;
use crate::executor::TractExecutor;
use crate::host::CliHost;
use crate::material::{HELD_OUT, ImageJudge, JUDGED, Material, Use};
use crate::measure::measure;
use crate::network::RunArgs;
use crate::opt::{explain, give_up};
use crate::progress::Progress;
use crate::progress::interrupted;
use crate::samples::{DataSamples, calibration_memory};
use crate::table::{Format, emit};
use crate::training::{CliSession, DatasetExamples, TrainArgs};
use crate::watch::{Shown, Watcher};
use crate::work;
use crate::{Globals, Usage, data::DataArgs, network};
use anyhow::anyhow;
use basisopt_ir::Graph;
use basisopt_passes::cost::{self, Cost};
use basisopt_passes::{
    Calibration, Item, Judge, Manager, Observer, PassReport, Pipeline, Quantity, Registry, Samples, Target,
    Training, n_classes,
};
use basisopt_runtime::{Dataset, Source};
use report::{JsonReport, Size, layers, ranks_file};
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
  basisopt compress m.onnx --data images/ --budget latency=0.6 -o small.onnx
      six tenths of the time per image on this machine
  basisopt compress m.onnx --data images/ --budget latency=12ms --device board.json -o small.onnx
      12 ms on the board that board.json is a profile of, see profile-device
  basisopt compress m.onnx --data images/ --budget bytes=0.5 --save-ranks ranks.txt --layers
      half the bytes: what it would do, layer by layer; the ranks to edit and give back with --ranks
  basisopt compress m.onnx --data images/ --budget macs=0.36 --fine-tune epochs=10:flip=on -o small.onnx
      and train for ten epochs; Ctrl-C keeps a checkpoint, the same command with --resume goes on
  basisopt compress m.onnx --data images/ --budget macs=0.36 --fine-tune --goal 1.0 -o small.onnx --html page.html
      only as much training as it takes to lose no more than one point, and a page that shows what it took

The recipe is a pipeline, run as `basisopt opt` runs it and stored in the output:
  freeze-weights,@fold,allocate-ranks:target=BUDGET,factorize-conv,factorize-linear,dead-code
Each layer becomes one with few basis filters and a 1x1 convolution that recombines them, unless that
would not save anything. --data is shared out: --samples images to calibrate on, some to choose by (for
drop=), the rest to report on. Without labels versions are judged by whether they agree with the original;
labels are for judging, and for --fine-tune. Nothing is trained without --fine-tune.

--fine-tune adds reconstruct,fine-tune to the pipeline: each block is trained against the original's, then everything.
With --goal the rungs are: biases, blocks, distillation from the original for a quarter of the epochs that are asked
for, everything with labels for all of them; each is left out once the goal is met on the images to choose by. With --fine-tune, a tenth of the images each
is kept to choose by and to report on, and the network is trained on the rest.

Budgets: macs=SHARE, params=SHARE or bytes=SHARE to keep (or numbers: macs=45M), energy=SHARE of every
layer's output, drop=POINTS of accuracy to lose at most. Without data there is only the weights' energy.

latency=0.6 (or latency=12ms) is time per image on this machine, in tract, with --engine and --threads: each layer is
timed whole and at some ranks, one that is not faster factored stays whole, and the plan is checked by
running the network. With --device board.json the time is that of the board on which `basisopt profile-device -o
board.json` was run, predicted from that profile. A network with fewer multiply-adds is not always faster;
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
    /// What to aim for: macs=0.36, params=0.5, bytes=0.5, latency=0.6, energy=0.9 or drop=1.0 [default:
    /// drop=1.0 with data; without, --energy 0.95].
    #[arg(long, value_name = "TARGET", conflicts_with_all = ["energy", "ranks"])]
    budget: Option<String>,
    /// Whose time a budget of latency is of: here, or a profile that profile-device wrote on another machine.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["energy", "ranks"])]
    device: Option<String>,
    /// How tract will run factored layers: what a budget of latency and the final measurement go by.
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t)]
    pub engine: EngineArg,
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
    /// Win accuracy back by training: first each block against the original's, then the whole network, with labels or by
    /// imitating the original. Options of the pass, joined by colons, such as epochs=10:flip=on
    /// (`basisopt passes fine-tune` lists them).
    #[arg(long, value_name = "OPTIONS", num_args = 0..=1, default_missing_value = "", help_heading = "Training")]
    fine_tune: Option<String>,
    /// With --fine-tune, climb only as far as needed: biases, blocks one by one, distillation, everything with
    /// labels; stop when no more than so many points are lost on images kept apart for that.
    #[arg(
        long,
        value_name = "POINTS",
        requires = "fine_tune",
        allow_negative_numbers = true,
        help_heading = "Training"
    )]
    goal: Option<f64>,
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
    /// Write the result as a page to open in a browser: what was done, what each rung of recovery bought and
    /// cost, curves of loss and accuracy, layers.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
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
    #[command(flatten)]
    pub train: TrainArgs,
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
    if args.device.is_some() && target.and_then(Target::quantity) != Some(Quantity::Latency) {
        return Err(Usage("--device says whose time counts: give --budget latency=…".to_owned()).into());
    }
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
    let inputs = [Some(args.model.as_path()), args.data.data.as_deref(), args.data.labels.as_deref()];
    work::check_outputs(
        &inputs,
        &[
            ("-o", args.output.as_deref()),
            ("--report", args.report.as_deref()),
            ("--html", args.html.as_deref()),
            ("--save-ranks", args.save_ranks.as_deref()),
            ("--log", args.train.log.as_deref()),
            ("--checkpoint", args.train.checkpoint.as_deref()),
        ],
    )?;
    if args.fine_tune.is_none()
        && (args.train.resume || args.train.log.is_some() || args.train.checkpoint.is_some())
    {
        return Err(
            Usage("--resume, --log and --checkpoint are for training: give --fine-tune".to_owned()).into()
        );
    }
    // Slips in the options before slow work.
    pipeline(&args, true, true)?;
    let host = CliHost::new(globals.quiet);
    let mut model = network::model(&args.model)?;
    let file = model.source().file().to_owned();
    let by_accuracy = args.greedy || target.is_none() || matches!(target, Some(Target::Drop(_)));
    let is_judged = by_accuracy && args.energy.is_none() && args.ranks.is_none();
    let use_ = match (&args.fine_tune, is_judged) {
        (Some(_), _) => Use::Train,
        (None, true) => Use::Judge,
        (None, false) => Use::Report,
    };
    let material = Material::open(&args.data, &args.model, args.calibration.as_deref(), use_, HELD_OUT)?;
    if args.fine_tune.is_some() && material.training.is_none() {
        return Err(Usage("--fine-tune needs images to train on: give --data PATH".to_owned()).into());
    }
    let mut session = match args.fine_tune {
        Some(_) => CliSession::new(&args.train, args.output.as_deref(), globals.quiet)?,
        None => CliSession::none(),
    };
    work::import_notes(&mut model, globals.quiet);
    work::refuse_non_finite(&model)?;
    network::check_dims(&file, &model.graph, &args.run.dims)?;
    let dims = &args.run.dims.clone();
    let before = Size { file_bytes: model.source().n_bytes(), cost: cost::of_pinned(&model.graph, dims) };
    let original = encode(&model, file.clone())?;

    let seed = args.data.seed.unwrap_or(0);
    let source = model.source().clone();
    let timing = (args.engine.for_timing(), args.run.threads());
    let executor =
        || TractExecutor::new(source.clone()).with_dims(dims.clone()).with_timing(timing.0, timing.1);
    let (mut checker, preprocess) = (executor(), &material.preprocess);
    let samples = match &material.calibration {
        Some(dataset) => {
            let samples = DataSamples::new(dataset.clone(), preprocess.clone(), &model.graph, &checker);
            Some(samples.map_err(|e| anyhow!("{file}: the images to calibrate on: {e}"))?)
        }
        None => None,
    };
    let mut notes = Vec::new();
    let judged = material.judged.clone().filter(|_| is_judged).map(|d| d.split(JUDGED, seed).0);
    let mut judge = judged.map(|d| ImageJudge::new(executor(), d, preprocess.clone()));
    // Detectors and the like have no classes to agree on: a budget that suits them stands in.
    if let Some(j) = &mut judge
        && target.is_none()
        && j.score(&model.graph).is_err()
    {
        notes.push("its outputs are no class scores, so the budget is macs=0.5 and not drop=1.0".to_owned());
        args.budget = Some("macs:0.5".to_owned());
        judge = None;
    }
    let is_labelled = material.training.as_ref().is_some_and(Dataset::is_labelled);
    let (args, pipeline) = (&args, pipeline(&args, samples.is_some(), is_labelled)?);

    let train_on = examples(material.training.as_ref(), &material, &model.graph, &checker, globals)?;
    let validate_on = examples(
        material.judged.as_ref().filter(|_| train_on.is_some()),
        &material,
        &model.graph,
        &checker,
        globals,
    )?;
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
    if let (Some(examples), Some(validation)) = (&train_on, &validate_on) {
        manager.training = Some(Training { examples, validation, original: None, session: &mut session });
    }
    let result = manager.run(&mut model.graph, &pipeline, &mut costs);
    host.end();
    session.end();
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
    let rungs = ladder::rungs(&report, args.goal);
    let n_validated = material.judged.as_ref().map_or(0, Dataset::len);
    let whole = JsonReport {
        file: &file,
        output: args.output.as_ref().map(|o| o.display().to_string()),
        pipeline: pipeline.to_string(),
        seconds: started.elapsed().as_secs_f64(),
        before: &before,
        after: &after,
        measured: &measured,
        layers: &layers,
        rungs: &rungs,
        goal: args.goal,
        measure: if is_labelled { "accuracy" } else { "agreement" },
        original_score: rungs.iter().find_map(|r| r.original),
        training: ladder::curves(&rungs, &session.history),
        version: env!("CARGO_PKG_VERSION"),
        command: work::command(),
    };
    let as_json = whole.json()?;
    if let Some(path) = &args.save_ranks {
        work::write_whole(path, ranks_file(&pipeline, &layers).as_bytes())?;
    }
    if let Some(path) = &args.report {
        work::write_whole(path, as_json.as_bytes())?;
    }
    if let Some(path) = &args.html {
        work::write_whole(path, whole.page()?.as_bytes())?;
    }
    if let Some(output) = &args.output {
        model.write(output)?;
        session.finish(&args.train);
    }
    emit(&match args.format {
        Format::Text => report::text(args, (&before, &after), &measured, (&layers, &rungs), n_validated),
        Format::Json => as_json,
    })?;
    if !globals.quiet {
        for path in [&args.output, &args.report, &args.html, &args.save_ranks].into_iter().flatten() {
            eprintln!("wrote {}", path.display());
        }
        if args.output.is_none() {
            eprintln!("nothing was written: no -o was given");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A part of the images as examples for the network.
fn examples<'a>(
    dataset: Option<&'a Dataset>,
    material: &'a Material,
    graph: &Graph,
    executor: &TractExecutor,
    globals: &Globals,
) -> anyhow::Result<Option<DatasetExamples<'a>>> {
    let Some(dataset) = dataset else { return Ok(None) };
    let input = executor.image_input(graph)?;
    let progress = Progress::new("fine-tune", globals.quiet);
    DatasetExamples::new(dataset, &material.preprocess, &input, n_classes(graph), &progress).map(Some)
}

fn budget_error(error: basisopt_passes::OptionError) -> Usage {
    let text = error.to_string();
    Usage(text.replace("allocate-ranks: target=", "--budget "))
}

/// The pipeline that the options describe.
fn pipeline(args: &Args, has_data: bool, is_labelled: bool) -> Result<Pipeline, Usage> {
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
            let device = match &args.device {
                Some(file) => format!(":device={}", plain("--device", file)?),
                None => String::new(),
            };
            let _ = write!(text, ",allocate-ranks:target={target}{device}{greedy}{multiple}{filters}");
            PASSES.iter().for_each(|pass| {
                let _ = write!(text, ",{pass}{method}{filters}");
            });
        }
    }
    if let Some(options) = &args.fine_tune {
        if options.contains(',') {
            return Err(Usage(format!(
                "--fine-tune {options}: options are joined by colons, as in epochs=10:flip=on"
            )));
        }
        text += &ladder::passes(options, args.goal, is_labelled);
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

/// The model as it now stands, for the runtime.
fn encode(model: &basisopt_onnx::Model, name: String) -> anyhow::Result<Source> {
    let (bytes, dir) = model.to_executable(&model.graph)?;
    Ok(Source::from_bytes(name, bytes, dir))
}
