//! Electrical power and energy of networks, by the sensors that the machine has.
//!
//! Nothing is estimated: where there is no sensor there is no number. A sensor sees the whole board or
//! processor, not one program, so the power of the idle machine is measured first and shown beside. The
//! networks then run alone, one after another, forwards and backwards (A B C, C B A), so that a processor that
//! warms up steadily treats all of them alike.

mod find;
mod meter;
#[cfg(test)]
mod tests;

use crate::{BenchOptions, Engine, RuntimeError, Session, Source, random_inputs};
use meter::Tally;
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tract_core::internal::{TValue, TVec};

pub use meter::PowerMeter;

/// How to measure power.
#[derive(Clone, Debug)]
pub struct PowerOptions {
    /// The folder that the kernel's sensors are looked for in: `/sys`, or another for boards with unusual
    /// trees and for tests.
    pub root: PathBuf,
    /// Time between two readings of an instantaneous sensor. Energy counters are read once a second.
    pub interval: Duration,
    /// Seconds of idling before, whose power is that of the idle machine. A quarter of it is waited for first.
    pub idle_seconds: f64,
    /// Seconds that each network runs, in two blocks of half of it.
    pub seconds: f64,
}

impl Default for PowerOptions {
    fn default() -> Self {
        let interval = Duration::from_millis(10);
        Self { root: PathBuf::from("/sys"), interval, idle_seconds: 2.0, seconds: 6.0 }
    }
}

/// What one network drew. An inference is one image: a run of a batch of 8 is eight of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PowerReport {
    /// The rails that could be read from beginning to end.
    pub rails: Vec<RailReport>,
    /// Rails that were found but not measured, or not to the end, and why.
    pub unmeasured: Vec<Unmeasured>,
    /// Inferences made while the meter was on.
    pub inferences: u64,
    /// Time they took, in seconds.
    pub seconds: f64,
    /// Time between two readings of an instantaneous sensor, in milliseconds.
    pub interval_ms: f64,
    /// Time the idle machine was measured for, in seconds.
    pub idle_seconds: f64,
}

/// One rail: a supply line of a board, or a part of a processor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RailReport {
    /// The chip and the rail, such as `ina3221 VDD_IN` or `intel-rapl:0 package-0`.
    pub name: String,
    /// Mean power of the idle machine, in watts.
    pub idle_watts: f64,
    /// Mean power while the network ran, in watts.
    pub watts: f64,
    /// Energy of an inference, in joules, the idle machine's included.
    pub joules_per_inference: f64,
    /// Energy of an inference, in joules, without what the idle machine would have taken in that time. Below
    /// zero where the machine was busier while it should have idled.
    pub joules_per_inference_above_idle: f64,
    /// Readings while the network ran.
    pub n_samples: usize,
    /// False for what is known to be part of another rail of this report: such rails must not be added to it.
    /// It is known within a chip or a family of counters only. A meter at the plug and a counter in the
    /// processor are both totals, and see the same energy.
    pub is_total: bool,
}

/// A rail that was found and not measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unmeasured {
    /// As [`RailReport::name`].
    pub name: String,
    /// The file, what is wrong with it, and the way out if there is one.
    pub reason: String,
}

/// Why there are no numbers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PowerError {
    /// The machine has no sensor, or shows none.
    #[error(
        "no power sensor under {}: neither bus/i2c/drivers/ina3221*, class/powercap nor class/hwmon has one (virtual machines and containers rarely do)",
        root.display()
    )]
    #[allow(missing_docs, reason = "the field says what it is")]
    NoSensor { root: PathBuf },

    /// There are sensors, and none can be read.
    #[error("{n} power rails found, none can be read: {}: {}", first.name, first.reason)]
    #[allow(missing_docs, reason = "the fields say what they are")]
    Unreadable { n: usize, first: Unmeasured },

    /// All sensors stopped being readable on the way.
    #[error("every power rail stopped being readable: {}: {}", first.name, first.reason)]
    #[allow(missing_docs, reason = "the field says what it is")]
    Lost { first: Unmeasured },

    /// The caller ended it before every network had run.
    #[error("interrupted before every network had run")]
    Interrupted,

    /// The system gave no thread to read the sensors on.
    #[error("no thread can be started to read the power sensors: {0}")]
    Thread(std::io::Error),
}

/// Where a measurement of power stands.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum PowerProgress<'a> {
    /// This network is being loaded.
    Loading(&'a str),
    /// The machine idles; so much of the whole measurement is done, of 1.
    Idle(f64),
    /// This network runs; so much of the whole measurement is done, of 1.
    Running(&'a str, f64),
}

/// Time between two calls of `progress`: rare enough to cost nothing that a sensor would see.
const TOLD: Duration = Duration::from_millis(100);

/// Times that each network runs; the second time in the opposite order.
const TURNS: usize = 2;

type Progress<'a> = &'a mut dyn FnMut(PowerProgress<'_>) -> bool;

struct Network {
    session: Session,
    inputs: TVec<TValue>,
    tallies: Vec<Tally>,
    running: Running,
}

/// What the network did while the meter was on.
#[derive(Clone, Copy, Debug, Default)]
struct Running {
    seconds: f64,
    inferences: u64,
}

/// Measures the power of each network, run by the engine beside it; the reports stand in the order of `sources`. Of
/// `options` it takes how networks are loaded, the warm-up (before each block) and the seed.
///
/// `progress` may return `false` to stop. If every network has run by then, what was measured is reported.
///
/// # Errors
/// [`RuntimeError::Power`] where there is nothing to measure with; any error of [`Session::load`] or of a run.
pub fn measure_power(
    sources: &[(&Source, Engine)],
    options: &BenchOptions,
    power: &PowerOptions,
    progress: Progress<'_>,
) -> Result<Vec<PowerReport>, RuntimeError> {
    let mut meter = PowerMeter::find(&power.root)?;
    let mut networks = Vec::new();
    for &(source, engine) in sources {
        if !progress(PowerProgress::Loading(source.name())) {
            return Err(PowerError::Interrupted.into());
        }
        let session = Session::load(source, &options.load_options(engine))?;
        let inputs = session.prepare(&random_inputs(session.inputs(), options.seed))?;
        networks.push(Network { session, inputs, tallies: meter.tallies(), running: Running::default() });
    }

    let interval = power.interval.max(Duration::from_millis(1));
    // No shorter than an interval, so that the first and the last reading are never the same moment.
    let at_least = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default().max(interval);
    let idle_time = at_least(power.idle_seconds);
    let block_time = at_least(power.seconds / TURNS as f64);
    let whole = (idle_time.mul_f64(1.25) + block_time * (TURNS * networks.len()) as u32).as_secs_f64();

    let mut idle = meter.tallies();
    // The processor comes down from loading first.
    let is_idle = wait(idle_time / 4, &mut |done| progress(PowerProgress::Idle(done.as_secs_f64() / whole)))
        && meter.measure(interval, &mut idle, || {
            let before = idle_time / 4;
            wait(idle_time, &mut |done| progress(PowerProgress::Idle((before + done).as_secs_f64() / whole)))
        })?;
    if !is_idle {
        return Err(PowerError::Interrupted.into());
    }

    let mut done = idle_time.mul_f64(1.25);
    let n = networks.len();
    for turn in 0..TURNS * n {
        let at = if (turn / n).is_multiple_of(2) { turn % n } else { n - 1 - turn % n };
        let Some(Network { session, inputs, tallies, running }) = networks.get_mut(at) else { break };
        for _ in 0..options.warmup.max(1) {
            session.run_prepared(inputs.clone())?;
        }
        let name = session.name().to_owned();
        let mut told = |at: Duration| {
            progress(PowerProgress::Running(&name, ((done + at).as_secs_f64() / whole).min(1.0)))
        };
        let block = meter.measure(interval, tallies, || run_for(block_time, session, inputs, &mut told));
        let (block, go_on) = block??;
        running.seconds += block.seconds;
        running.inferences += block.inferences;
        done += block_time;
        if !go_on {
            break;
        }
    }
    if networks.iter().any(|network| network.running.inferences == 0) {
        return Err(PowerError::Interrupted.into());
    }
    let options = PowerOptions { interval, ..power.clone() };
    networks
        .iter()
        .map(|n| Ok(report(&meter, &options, idle_time.as_secs_f64(), &idle, &n.tallies, n.running)?))
        .collect()
}

/// Runs the network for so long, at least once; what it did, and whether to go on.
fn run_for(
    time: Duration,
    session: &mut Session,
    inputs: &TVec<TValue>,
    progress: &mut dyn FnMut(Duration) -> bool,
) -> Result<(Running, bool), RuntimeError> {
    let batch = session.batch().unwrap_or(1) as u64;
    let started = Instant::now();
    let mut next = TOLD;
    let mut inferences = 0;
    let mut go_on = true;
    loop {
        drop(session.run_prepared(inputs.clone())?);
        inferences += batch;
        let elapsed = started.elapsed();
        if elapsed >= next {
            next = elapsed + TOLD;
            go_on = progress(elapsed);
        }
        if elapsed >= time || !go_on {
            return Ok((Running { seconds: elapsed.as_secs_f64(), inferences }, go_on));
        }
    }
}

/// Does nothing for so long; false if it was told to stop.
fn wait(time: Duration, progress: &mut dyn FnMut(Duration) -> bool) -> bool {
    let started = Instant::now();
    loop {
        let elapsed = started.elapsed();
        if !progress(elapsed) {
            return false;
        }
        let left = time.saturating_sub(elapsed);
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(TOLD));
    }
}

/// The tallies of one network beside those of the idle machine.
fn report(
    meter: &PowerMeter,
    options: &PowerOptions,
    idle_seconds: f64,
    idle: &[Tally],
    busy: &[Tally],
    running: Running,
) -> Result<PowerReport, PowerError> {
    let mut rails = Vec::new();
    let mut unmeasured = meter.unmeasured();
    let per_inference = running.seconds / running.inferences as f64;
    for (i, rail) in meter.sound() {
        let watts = |tallies: &[Tally]| tallies.get(i).and_then(Tally::watts);
        let (Some(idle_watts), Some(watts)) = (watts(idle), watts(busy)) else {
            let reason = "it was read only once".to_owned();
            unmeasured.push(Unmeasured { name: rail.name.clone(), reason });
            continue;
        };
        rails.push(RailReport {
            name: rail.name.clone(),
            idle_watts,
            watts,
            joules_per_inference: watts * per_inference,
            joules_per_inference_above_idle: (watts - idle_watts) * per_inference,
            n_samples: busy.get(i).map_or(0, Tally::n_samples),
            is_total: meter.is_total(i),
        });
    }
    if rails.is_empty() {
        let nothing = || Unmeasured { name: "all".to_owned(), reason: "nothing was read".to_owned() };
        return Err(PowerError::Lost { first: unmeasured.into_iter().next().unwrap_or_else(nothing) });
    }
    Ok(PowerReport {
        rails,
        unmeasured,
        inferences: running.inferences,
        seconds: running.seconds,
        interval_ms: options.interval.as_secs_f64() * 1e3,
        idle_seconds,
    })
}
