//! What is measured of a compressed network: the network before and after, on the same inputs and side by side.

use crate::error::EmbedError;
use crate::settings::Settings;
use basisopt_runtime::{
    BenchOptions, BenchProgress, BenchResult, Dataset, ENGINE, LoadOptions, OutputDiff, Outputs, Preprocess,
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
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measured {
    /// What ran the networks.
    pub engine: &'static str,
    /// What the inputs were.
    pub inputs: String,
    /// What was calibrated on.
    pub calibration: Option<String>,
    /// Where there are labels and class scores.
    pub accuracy: Option<Accuracy>,
    /// Where there are class scores.
    pub agreement: Option<Agreement>,
    /// Root of the squared error of the outputs relative to their variance over inputs.
    pub output_error: Option<f64>,
    /// How many inputs the outputs were compared on.
    pub n_compared: usize,
    /// One per output.
    pub outputs: Vec<OutputDiff>,
    /// Before and after.
    pub latency: Option<[BenchResult; 2]>,
    /// What is to be said beside.
    pub notes: Vec<String>,
}

/// Top-1 accuracy, 0…1.
#[derive(Clone, Debug, Serialize)]
pub struct Accuracy {
    /// Number of images.
    pub n: usize,
    /// The original's.
    pub before: f64,
    /// The result's.
    pub after: f64,
    /// Half the width of the 95 % interval of `after`.
    pub margin: f64,
}

/// Inputs to which both networks give the same class, 0…1.
#[derive(Clone, Debug, Serialize)]
pub struct Agreement {
    /// Number of inputs.
    pub n: usize,
    /// The share of them.
    pub share: f64,
}

/// Runs both networks. A network that tract cannot load is not an error: it is noted.
///
/// # Errors
/// If data and network do not fit together, or a network fails while it runs.
pub fn measure(
    settings: &Settings<'_>,
    untimed: bool,
    data: Option<(&Dataset, &Preprocess)>,
    sources: &[Source; 2],
) -> Result<Measured, EmbedError> {
    let seed = settings.seed;
    let mut measured = Measured { engine: ENGINE, ..Measured::default() };
    let options = LoadOptions {
        batch: settings.batch,
        dims: settings.dims.clone(),
        threads: settings.threads,
        ..LoadOptions::default()
    };
    let sessions: [Session; 2] = match load_alike(&[&sources[0], &sources[1]], &options, BATCH) {
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
            on_data(&mut measured, (before, after), dataset, preprocess, settings)?;
        }
        None => {
            measured.inputs = format!("{RANDOM} random inputs, seed {seed}");
            let infos = before.inputs().to_vec();
            let batch = before.batch().unwrap_or(1).max(1);
            let inputs =
                (0..RANDOM.div_ceil(batch) as u64).map(|i| Ok(random_inputs(&infos, seed.wrapping_add(i))));
            let inputs = inputs.take_while(|_| !(settings.stop)());
            settings.host.stage("comparing");
            measured.outputs = compare(&mut before, &mut after, inputs, &mut |n| {
                settings.host.progress(n * batch, RANDOM, "inputs");
            })?;
            measured.n_compared = RANDOM.div_ceil(batch) * batch;
            let share = measured.outputs.iter().find_map(|o| o.top1_agreement);
            measured.agreement = share.map(|share| Agreement { n: RANDOM.div_ceil(batch) * batch, share });
        }
    }
    if !untimed && !(settings.stop)() {
        measured.latency = latency(settings, sources)?;
    }
    Ok(measured)
}

fn on_data(
    measured: &mut Measured,
    (mut before, mut after): (Session, Session),
    dataset: &Dataset,
    preprocess: &Preprocess,
    settings: &Settings<'_>,
) -> Result<(), RuntimeError> {
    let n = dataset.len();
    let keep_going = || !(settings.stop)();
    let batch = before.batch().unwrap_or(1).max(1);
    let infos = before.inputs().to_vec();
    if let [input] = infos.as_slice() {
        let batches = dataset.batches(preprocess, input)?.take(COMPARED.div_ceil(batch));
        let batches = batches.map(|b| Ok(vec![b?.inputs])).take_while(|_| keep_going());
        measured.outputs = compare(&mut before, &mut after, batches, &mut |_| {})?;
        measured.n_compared = (COMPARED.div_ceil(batch) * batch).min(n);
    }
    settings.host.stage("evaluating");
    let mut show = |i: usize| settings.host.progress(i, 2 * n, "the original");
    let a = Outputs::of(&before.into_program()?, dataset, preprocess, &mut show, &keep_going)?;
    let mut show = |i: usize| settings.host.progress(n + i, 2 * n, "the result");
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

fn latency(settings: &Settings<'_>, sources: &[Source; 2]) -> Result<Option<[BenchResult; 2]>, RuntimeError> {
    let options = BenchOptions {
        batch: settings.batch,
        dims: settings.dims.clone(),
        threads: settings.threads,
        engines: vec![settings.engine],
        runs: ROUNDS,
        min_seconds: SECONDS,
        seed: settings.seed,
        memory: false,
        ..BenchOptions::default()
    };
    settings.host.stage("measuring");
    let results = bench(sources, &options, &mut |at| {
        if let BenchProgress::Round(done, of) = at {
            settings.host.progress(done.min(of), of, "rounds");
        }
        !(settings.stop)()
    })?;
    Ok(results.try_into().ok())
}

/// Loads networks that will be given the same inputs, in batches of `options.batch`, or else of `preferred`, or else of
/// what one of them fixes.
///
/// # Errors
/// What [`Session::load`] says, about the batch that was asked for if there was one.
pub fn load_alike(
    sources: &[&Source],
    options: &LoadOptions,
    preferred: usize,
) -> Result<Vec<Session>, RuntimeError> {
    let load = |batch: Option<usize>| -> Result<Vec<Session>, RuntimeError> {
        let options = LoadOptions { batch, ..options.clone() };
        sources.iter().map(|source| Session::load(source, &options)).collect()
    };
    if options.batch.is_some() {
        return load(options.batch);
    }
    match load(Some(preferred)) {
        Err(RuntimeError::FixedBatch { found, .. }) => load(Some(found)),
        // Some networks claim an open batch and have it built into a Reshape.
        Err(RuntimeError::Tract { .. }) if preferred != 1 => load(Some(1)),
        other => other,
    }
}
