//! `compress`: the recipe in one command.

mod report;

use crate::engine::EngineArg;
use crate::host::CliHost;
use crate::network::RunArgs;
use crate::opt::{self, give_up};
use crate::progress::interrupted;
use crate::table::{Format, emit};
use crate::training::{CliSession, TrainArgs};
use crate::watch::{Shown, Watcher};
use crate::work;
use crate::{
    Globals, Usage,
    data::{self, DataArgs},
    network,
};
use basisopt_embed::material::HELD_OUT;
use basisopt_embed::{CompressOptions, EmbedError, Method, Recipe, RecipeError, Settings, Use, compress};
use basisopt_runtime::Dataset;
use report::{JsonReport, curves};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

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

impl From<MethodArg> for Method {
    fn from(arg: MethodArg) -> Self {
        match arg {
            MethodArg::Weights => Self::Weights,
            MethodArg::Output => Self::Output,
            MethodArg::Sequential => Self::Sequential,
        }
    }
}

pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
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
    let recipe = recipe(&args);
    // Slips in the options before slow work.
    let likely = recipe.pipeline(true, true).map_err(usage)?;
    let host = CliHost::new(globals.quiet);
    let mut model = network::model(&args.model)?;
    let file = model.source().file().to_owned();
    let use_ = Use::of(&recipe);
    let material = args.data.share(&args.model, args.calibration.as_deref(), use_, HELD_OUT)?;
    if args.fine_tune.is_some() && material.training.is_none() {
        return Err(Usage("--fine-tune needs images to train on: give --data PATH".to_owned()).into());
    }
    let mut session = match args.fine_tune {
        Some(_) => CliSession::new(&args.train, args.output.as_deref(), globals.quiet)?,
        None => CliSession::none(),
    };
    work::import_notes(&mut model, globals.quiet);
    let n_validated = material.judged.as_ref().map_or(0, Dataset::len);
    let mut watcher = Watcher::new(&host, &likely, Shown { lines: !globals.quiet, ..Shown::default() });
    let options = CompressOptions {
        settings: Settings {
            seed: args.data.seed.unwrap_or(0),
            dims: args.run.dims.clone(),
            batch: args.run.batch(),
            engine: args.engine.into(),
            threads: args.run.threads(),
            host: &host,
            stop: Arc::new(interrupted),
        },
        material,
        untimed: args.no_bench,
        unmeasured: false,
        observer: Some(&mut watcher),
        session: Some(&mut session),
    };
    let result = compress(&mut model, &recipe, options);
    host.end();
    let done = match result {
        Err(EmbedError::Interrupted) => return Ok(give_up(&file)),
        result => result.map_err(|e| of_embed(e, &args.model))?,
    };
    watcher.finish()?;
    let whole = JsonReport {
        file: &file,
        output: args.output.as_ref().map(|o| o.display().to_string()),
        seconds: started.elapsed().as_secs_f64(),
        done: &done,
        training: curves(&done.rungs, &session.history),
        version: env!("CARGO_PKG_VERSION"),
        command: work::command(),
    };
    let as_json = whole.json()?;
    if let Some(path) = &args.save_ranks {
        work::write_whole(path, done.ranks_file().as_bytes())?;
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
        Format::Text => report::text(&args, &done, n_validated),
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

/// The recipe that the options describe.
fn recipe(args: &Args) -> Recipe {
    Recipe {
        budget: args.budget.clone(),
        device: args.device.clone(),
        energy: args.energy.clone(),
        ranks: args.ranks.clone(),
        method: args.method.map(Method::from),
        greedy: args.greedy,
        multiple: args.multiple.clone(),
        include: args.include.clone(),
        exclude: args.exclude.clone(),
        fine_tune: args.fine_tune.clone(),
        goal: args.goal,
    }
}

/// A complaint about the recipe, in the words of the command line.
fn usage(error: RecipeError) -> Usage {
    Usage(match error {
        RecipeError::Device => "--device says whose time counts: give --budget latency=…".to_owned(),
        RecipeError::Pipeline(error) => error.to_string(),
        error => format!("--{error}"),
    })
}

/// An error of the library, with the flags to change.
fn of_embed(error: EmbedError, model: &Path) -> anyhow::Error {
    match error {
        EmbedError::Runtime(error) => data::explain(error, model),
        EmbedError::Recipe(error) => usage(error).into(),
        error => opt::of_embed(error),
    }
}
