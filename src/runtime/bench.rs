//! Latency, throughput and memory of networks, measured side by side.
//!
//! The networks run in turn, A B C A B C …, so that a busy machine, a warm processor or a governor slows all
//! of them alike. The ratio to the first network is taken within each round and its median reported: it is
//! steadier than the ratio of two medians.

use crate::memory::PeakMeter;
use crate::{ENGINE, Engine, LoadOptions, RuntimeError, Session, Source, random_inputs};
use serde::Serialize;
use std::time::{Duration, Instant};

/// How to benchmark.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Images per run; `None` means 1, or what the model fixes.
    pub batch: Option<usize>,
    /// As [`LoadOptions::dims`].
    pub dims: Vec<(String, usize)>,
    /// Threads for the matrix products.
    pub threads: usize,
    /// How factorised layers run: every network is measured with each of these. One that has no factorised
    /// layers is measured once.
    pub engines: Vec<Engine>,
    /// Networks of fixed sizes that run along, each in one way and one image at a time, to see at which pace the machine
    /// is; their results come last.
    pub along: Vec<(Source, Engine)>,
    /// Rounds to measure, at least. Each round runs every network once.
    pub runs: usize,
    /// Goes on with rounds until they have taken this long together, in seconds.
    pub min_seconds: f64,
    /// Runs of a network in a row in each round, the last of which counts: with two, what a network needs is in the
    /// caches as far as it fits, however many others take turns with it.
    pub in_a_row: usize,
    /// Rounds that are run before and not counted.
    pub warmup: usize,
    /// Seed of the random inputs.
    pub seed: u64,
    /// Whether to measure memory, which loads every network once more; see [`measure_memory`].
    pub memory: bool,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            batch: None,
            dims: Vec::new(),
            threads: 1,
            engines: vec![Engine::Fastest],
            along: Vec::new(),
            runs: 20,
            min_seconds: 2.0,
            in_a_row: 1,
            warmup: 3,
            seed: 0,
            memory: true,
        }
    }
}

impl BenchOptions {
    pub(crate) fn load_options(&self, engine: Engine) -> LoadOptions {
        LoadOptions {
            engine,
            batch: self.batch,
            dims: self.dims.clone(),
            threads: self.threads,
            ..LoadOptions::default()
        }
    }
}

/// What was measured for one network. Times are wall-clock milliseconds per run (per batch).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchResult {
    /// Which of the sources it is.
    #[serde(skip)]
    pub source: usize,
    /// The network, as its [`Source`] is named.
    pub file: String,
    /// The inference engine and its version.
    pub engine: String,
    /// Pairs of convolutions that ran as one operator; 0 is stock tract.
    pub n_fused: usize,
    /// The kernels that tract multiplies matrices with.
    pub kernels: Vec<String>,
    /// Threads for the matrix products.
    pub threads: usize,
    /// Images per run.
    pub batch: usize,
    /// Rounds counted.
    pub n_runs: usize,
    /// Median time of a run.
    pub median_ms: f64,
    /// Fastest run.
    pub min_ms: f64,
    /// A tenth of the runs were faster.
    pub p10_ms: f64,
    /// A tenth of the runs were slower.
    pub p90_ms: f64,
    /// One run in a hundred was slower.
    pub p99_ms: f64,
    /// The first run of a newly loaded network, without buffers yet; the process itself is warm.
    pub cold_ms: f64,
    /// Interquartile range: the width of the middle half of the runs.
    pub iqr_ms: f64,
    /// Time relative to the first network: the median over the rounds of this network's time by the
    /// first one's. 0.5 is twice as fast; 1 for the first itself.
    pub time_ratio: f64,
    /// 95 % confidence interval of that median; wide, the machine was too busy to tell, or the rounds too few.
    pub time_ratio_interval: [f64; 2],
    /// Images per second at the median time.
    pub images_per_second: f64,
    /// Time to load and optimise the network, once.
    pub load_ms: f64,
    /// Highest resident memory of loading and running the network, in bytes; see [`measure_memory`]. `None`
    /// if the system does not tell, or if it was not asked for.
    pub peak_memory_bytes: Option<u64>,
    /// The same for running alone, after loading.
    pub run_memory_bytes: Option<u64>,
}

/// Where a benchmark stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BenchProgress<'a> {
    /// This network is being loaded.
    Loading(&'a str),
    /// So many rounds are done of at least so many.
    Round(usize, usize),
}

/// Measures the networks side by side; the results stand in the order of `sources`, those of [`BenchOptions::along`] after
/// them.
///
/// `progress` may return `false` to stop after the round; what was measured is then reported. At least one
/// round is always counted.
///
/// # Errors
/// Any error of [`Session::load`] or of a run.
pub fn bench(
    sources: &[Source],
    options: &BenchOptions,
    progress: &mut dyn FnMut(BenchProgress<'_>) -> bool,
) -> Result<Vec<BenchResult>, RuntimeError> {
    // Which engine runs each network, before memory is measured.
    let mut entries = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let mut seen = Vec::new();
        for &engine in &options.engines {
            progress(BenchProgress::Loading(source.name()));
            // One engine that is named needs no look at what it makes of the network.
            let (engine, n_fused) = match engine {
                Engine::Stock => (engine, 0),
                Engine::Fused if options.engines.len() == 1 => (engine, 0),
                _ => Session::load(source, &options.load_options(engine))?.engine(),
            };
            if !seen.contains(&n_fused) {
                seen.push(n_fused);
                entries.push((index, source, options.load_options(engine)));
            }
        }
    }
    for (i, (source, engine)) in options.along.iter().enumerate() {
        let load = LoadOptions { engine: *engine, threads: options.threads, ..LoadOptions::default() };
        entries.push((sources.len() + i, source, load));
    }
    // Memory next, while nothing else is loaded.
    let mut memory = vec![None; entries.len()];
    if options.memory {
        if let Some((_, source, load_options)) = entries.first() {
            // What the process sets up once (tables of operators and kernels, threads, code read from disk)
            // would all be counted against the network that happens to come first.
            progress(BenchProgress::Loading(source.name()));
            memory_of(source, load_options, options.seed)?;
        }
        for ((_, source, load_options), memory) in entries.iter().zip(&mut memory) {
            *memory = memory_of(source, load_options, options.seed)?;
        }
    }

    let mut networks = Vec::new();
    for (index, source, load_options) in entries {
        progress(BenchProgress::Loading(source.name()));
        let started = Instant::now();
        let mut session = Session::load(source, &load_options)?;
        let load = started.elapsed();
        let inputs = session.prepare(&random_inputs(session.inputs(), options.seed))?;
        let started = Instant::now();
        session.run_prepared(inputs.clone())?;
        let cold = started.elapsed();
        networks.push((session, inputs, (index, load, cold), Vec::new()));
    }

    for _ in 0..options.warmup {
        for (session, inputs, ..) in &mut networks {
            session.run_prepared(inputs.clone())?;
        }
    }
    let run = &mut || {
        for (session, inputs, _, times) in &mut networks {
            for _ in 1..options.in_a_row {
                session.run_prepared(inputs.clone())?;
            }
            let inputs = inputs.clone();
            let started = Instant::now();
            let outputs = session.run_prepared(inputs)?;
            times.push(started.elapsed().as_secs_f64() * 1e3);
            drop(outputs);
        }
        Ok(())
    };
    rounds(options, run, &mut |round| progress(BenchProgress::Round(round, options.runs.max(1))))?;

    let first: Vec<f64> = networks.first().map(|(.., times)| times.clone()).unwrap_or_default();
    let mut results = Vec::new();
    for ((session, _, (source, load, cold), times), memory) in networks.into_iter().zip(memory) {
        let ratios = sorted(times.iter().zip(&first).map(|(t, f)| t / f).collect());
        let times = sorted(times);
        let median_ms = quantile(&times, 0.5);
        let batch = session.batch().unwrap_or(1);
        results.push(BenchResult {
            source,
            file: session.name().to_owned(),
            engine: ENGINE.to_owned(),
            n_fused: session.engine().1,
            kernels: session.kernels(),
            threads: session.threads(),
            batch,
            n_runs: times.len(),
            median_ms,
            min_ms: times.first().copied().unwrap_or(0.0),
            p10_ms: quantile(&times, 0.1),
            p90_ms: quantile(&times, 0.9),
            p99_ms: quantile(&times, 0.99),
            cold_ms: cold.as_secs_f64() * 1e3,
            iqr_ms: quantile(&times, 0.75) - quantile(&times, 0.25),
            time_ratio: quantile(&ratios, 0.5),
            time_ratio_interval: median_interval(&ratios),
            images_per_second: if median_ms > 0.0 { batch as f64 * 1e3 / median_ms } else { 0.0 },
            load_ms: load.as_secs_f64() * 1e3,
            peak_memory_bytes: memory.map(|m| m.peak_bytes),
            run_memory_bytes: memory.map(|m| m.run_bytes),
        });
    }
    Ok(results)
}

/// Runs rounds, one at least, until there are as many as asked for and they have taken as long as asked for, or
/// `keep_going`, which is told how many there are, says no.
pub(crate) fn rounds(
    options: &BenchOptions,
    run: &mut dyn FnMut() -> Result<(), RuntimeError>,
    keep_going: &mut dyn FnMut(usize) -> bool,
) -> Result<(), RuntimeError> {
    let started = Instant::now();
    let min_time = Duration::try_from_secs_f64(options.min_seconds).unwrap_or_default();
    let mut round = 0;
    loop {
        run()?;
        round += 1;
        let go_on = keep_going(round);
        let is_enough = round >= options.runs.max(1) && started.elapsed() >= min_time;
        if !go_on || is_enough {
            return Ok(());
        }
    }
}

/// Resident memory that a network takes, in bytes, above that of the process before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryUse {
    /// Highest point of loading and running.
    pub peak_bytes: u64,
    /// Highest point of running alone, after loading: what a service holds that loads once and runs for long.
    pub run_bytes: u64,
}

/// Loads a network, runs it twice on random inputs, drops it, and says what the kernel counted meanwhile.
///
/// The counter is that of the whole process, and memory that the allocator kept from earlier work and hands
/// out again is not counted as new. [`bench()`] calls this for one network after another, which tells networks
/// of some tens of megabytes apart, no finer. For numbers that do not depend on what ran before, call it in a
/// process of its own, first of all; it then includes what tract sets up once, some fifteen megabytes.
///
/// `None` where the kernel does not tell: not Linux, or `/proc/self/clear_refs` is closed to us.
///
/// # Errors
/// Any error of [`Session::load`] or of a run.
pub fn measure_memory(source: &Source, options: &BenchOptions) -> Result<Option<MemoryUse>, RuntimeError> {
    memory_of(
        source,
        &options.load_options(options.engines.first().copied().unwrap_or_default()),
        options.seed,
    )
}

fn memory_of(source: &Source, options: &LoadOptions, seed: u64) -> Result<Option<MemoryUse>, RuntimeError> {
    let meter = PeakMeter::start();
    let mut session = Session::load(source, options)?;
    let inputs = session.prepare(&random_inputs(session.inputs(), seed))?;
    let load_peak = meter.as_ref().and_then(PeakMeter::peak);
    let reset = meter.as_ref().and_then(PeakMeter::next_phase);
    // Twice: the first run makes buffers that the second finds.
    for _ in 0..2 {
        session.run_prepared(inputs.clone())?;
    }
    let run_peak = reset.and(meter.as_ref().and_then(PeakMeter::peak));
    Ok(load_peak.zip(run_peak).map(|(load, run)| MemoryUse { peak_bytes: load.max(run), run_bytes: run }))
}

pub(crate) fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// The quantile of sorted values, linear between neighbours; 0 if there are none.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = q * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// The 95 % confidence interval of a median, from sorted values: from the r-th smallest to the r-th largest, with
/// r = ⌊(n − 1.96·√n) / 2⌋ by the normal approximation of the binomial count of values below the median (the sign test). All
/// values where they are too few for that.
fn median_interval(sorted: &[f64]) -> [f64; 2] {
    let n = sorted.len() as f64;
    let r = (((n - 1.96 * n.sqrt()) / 2.0).floor() as usize).max(1);
    [r - 1, sorted.len().saturating_sub(r)].map(|i| sorted.get(i).copied().unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::{median_interval, quantile};

    #[test]
    fn the_interval_of_a_median_is_that_of_the_tables() {
        // Tables of the sign test: the 40th and the 61st of 100 values, the 6th and the 15th of 20 (here one further
        // out, by the approximation), the first and the last of 6.
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(median_interval(&values), [40.0, 61.0]);
        assert_eq!(median_interval(&values[..20]), [5.0, 16.0]);
        assert_eq!(median_interval(&values[..6]), [1.0, 6.0]);
        assert_eq!(median_interval(&[]), [0.0, 0.0]);
    }

    #[test]
    fn quantiles_interpolate() {
        let values = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(quantile(&values, 0.5), 3.0);
        assert_eq!(quantile(&values, 1.0), 8.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
