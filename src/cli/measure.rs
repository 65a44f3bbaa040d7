//! What `compress` measures: the network before and after, on the same inputs and side by side.

use crate::compress::Args;
use crate::data::explain;
use crate::progress::{Progress, interrupted};
use basisopt_runtime::{
    BenchOptions, BenchProgress, BenchResult, Dataset, ENGINE, Engine, OutputDiff, Outputs, Preprocess,
    RuntimeError, Session, Source, bench, compare, random_inputs,
};
use serde::Serialize;

/// Images per run where neither the user nor the model says.
const BATCH: usize = 1;
/// Inputs that outputs are compared on, where there is data and where there is none.
const COMPARED: usize = 64;
const RANDOM: usize = 16;
/// How the latencies are measured: rounds at least, seconds at least.
const ROUNDS: usize = 30;
const SECONDS: f64 = 1.0;

/// Everything measured; what could not be is absent, and `notes` say why.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Measured {
    pub engine: &'static str,
    /// What the inputs were.
    pub inputs: String,
    /// What was calibrated on.
    pub calibration: Option<String>,
    pub accuracy: Option<Accuracy>,
    pub agreement: Option<Agreement>,
    /// Root of the squared error of the outputs relative to their variance over inputs.
    pub output_error: Option<f64>,
    /// How many inputs the outputs were compared on.
    pub n_compared: usize,
    /// One per output.
    pub outputs: Vec<OutputDiff>,
    /// Before and after.
    pub latency: Option<[BenchResult; 2]>,
    pub notes: Vec<String>,
}

/// Top-1 accuracy, 0…1.
#[derive(Debug, Serialize)]
pub(crate) struct Accuracy {
    pub n: usize,
    pub before: f64,
    pub after: f64,
    /// Half the width of the 95 % interval of `after`.
    pub margin: f64,
}

/// Inputs to which both networks give the same class, 0…1.
#[derive(Debug, Serialize)]
pub(crate) struct Agreement {
    pub n: usize,
    pub share: f64,
}

/// Runs both networks. A network that tract cannot load is not an error: it is noted.
///
/// # Errors
/// If data and network do not fit together, or a network fails while it runs.
pub(crate) fn measure(
    args: &Args,
    data: Option<(&Dataset, &Preprocess)>,
    sources: &[Source; 2],
    quiet: bool,
) -> anyhow::Result<Measured> {
    let seed = args.data.seed.unwrap_or(0);
    let mut measured = Measured { engine: ENGINE, ..Measured::default() };
    let preferred = BATCH;
    let sessions: [Session; 2] = match args.run.load(&[&sources[0], &sources[1]], preferred, Engine::Stock) {
        Ok(sessions) => match sessions.try_into() {
            Ok(pair) => pair,
            Err(_) => return Ok(measured),
        },
        Err(e) => {
            measured.notes.push(format!("neither accuracy nor speed was measured: {e}"));
            return Ok(measured);
        }
    };
    let [mut before, mut after] = sessions;
    match data {
        Some((dataset, preprocess)) => {
            measured.inputs = format!("{}: {}", dataset.path().display(), dataset.describe());
            let result = on_data(&mut measured, (before, after), dataset, preprocess, quiet);
            result.map_err(|e| explain(e, &args.model))?;
        }
        None => {
            measured.inputs = format!("{RANDOM} random inputs, seed {seed}");
            let infos = before.inputs().to_vec();
            let batch = before.batch().unwrap_or(1).max(1);
            let inputs =
                (0..RANDOM.div_ceil(batch) as u64).map(|i| Ok(random_inputs(&infos, seed.wrapping_add(i))));
            let inputs = inputs.take_while(|_| !interrupted());
            let progress = Progress::new("comparing", quiet);
            measured.outputs = compare(&mut before, &mut after, inputs, &mut |n| {
                progress.update(n * batch, RANDOM, "inputs");
            })?;
            measured.n_compared = RANDOM.div_ceil(batch) * batch;
            let share = measured.outputs.iter().find_map(|o| o.top1_agreement);
            measured.agreement = share.map(|share| Agreement { n: RANDOM.div_ceil(batch) * batch, share });
        }
    }
    if !args.no_bench && !interrupted() {
        measured.latency = latency(args, sources, seed, quiet)?;
    }
    Ok(measured)
}

fn on_data(
    measured: &mut Measured,
    (mut before, mut after): (Session, Session),
    dataset: &Dataset,
    preprocess: &Preprocess,
    quiet: bool,
) -> Result<(), RuntimeError> {
    let n = dataset.len();
    let keep_going = || !interrupted();
    let batch = before.batch().unwrap_or(1).max(1);
    let infos = before.inputs().to_vec();
    if let [input] = infos.as_slice() {
        let batches = dataset.batches(preprocess, input)?.take(COMPARED.div_ceil(batch));
        let batches = batches.map(|b| Ok(vec![b?.inputs])).take_while(|_| !interrupted());
        measured.outputs = compare(&mut before, &mut after, batches, &mut |_| {})?;
        measured.n_compared = (COMPARED.div_ceil(batch) * batch).min(n);
    }
    let progress = Progress::new("evaluating", quiet);
    let mut show = |i: usize| progress.update(i, 2 * n, "the original");
    let a = Outputs::of(&before.into_program()?, dataset, preprocess, &mut show, &keep_going)?;
    let mut show = |i: usize| progress.update(n + i, 2 * n, "the result");
    let b = Outputs::of(&after.into_program()?, dataset, preprocess, &mut show, &keep_going)?;
    measured.output_error = a.error(&b).map(f64::sqrt);
    // Only outputs that look like class scores can be right, or agree on a class.
    let share = |hits: &[bool]| hits.iter().filter(|h| **h).count() as f64 / hits.len().max(1) as f64;
    match a.hits()?.zip(b.hits()?) {
        Some((a, b)) => {
            let (before, after) = (share(&a), share(&b));
            let margin = 1.96 * (after * (1.0 - after) / (b.len().max(1) as f64)).sqrt();
            measured.accuracy = Some(Accuracy { n: b.len(), before, after, margin });
        }
        None if !dataset.is_labelled() => {
            measured.notes.push("the data have no labels, so accuracy was not measured".to_owned());
        }
        None => {}
    }
    if let Some((a, b)) = a.classes().zip(b.classes()) {
        let same: Vec<bool> = a.iter().zip(&b).map(|(a, b)| a == b && a.is_some()).collect();
        measured.agreement = Some(Agreement { n: same.len(), share: share(&same) });
    }
    Ok(())
}

fn latency(
    args: &Args,
    sources: &[Source; 2],
    seed: u64,
    quiet: bool,
) -> Result<Option<[BenchResult; 2]>, RuntimeError> {
    let options = BenchOptions {
        batch: args.run.batch(),
        dims: args.run.dims.clone(),
        threads: args.run.threads(),
        engines: vec![args.engine.into()],
        runs: ROUNDS,
        min_seconds: SECONDS,
        seed,
        memory: false,
        ..BenchOptions::default()
    };
    let progress = Progress::new("measuring", quiet);
    let results = bench(sources, &options, &mut |at| {
        if let BenchProgress::Round(done, of) = at {
            progress.update(done.min(of), of, "rounds");
        }
        !interrupted()
    })?;
    Ok(results.try_into().ok())
}
