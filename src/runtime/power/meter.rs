//! Reading rails and adding up what they say.

use super::find::{self, Found, Read};
use super::{PowerError, Unmeasured};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Seconds between two readings of a counter. The fastest wraps at 65 kJ, which no machine burns in that time.
const COUNTER_SECONDS: f64 = 1.0;

/// How a rail is read.
#[derive(Clone, Debug)]
pub(super) enum Sensor {
    /// A file with the power, and how many of its units are a watt.
    Power { path: PathBuf, per_watt: f64 },
    /// Two files whose product is the power.
    Product { millivolts: PathBuf, milliamperes: PathBuf },
    /// A file with microjoules that only grow, and the number after which they start from zero.
    Counter { path: PathBuf, range: Option<u64> },
}

/// What a rail said once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Reading {
    Watts(f64),
    /// A counter, and its range.
    Microjoules(u64, Option<u64>),
}

impl Sensor {
    /// One reading, or the file and what is wrong with it.
    pub(super) fn read(&self, read: Read<'_>) -> Result<Reading, String> {
        match self {
            Self::Power { path, per_watt } => {
                Ok(Reading::Watts(number::<i64>(path, read)? as f64 / per_watt))
            }
            Self::Product { millivolts, milliamperes } => {
                let (mv, ma) = (number::<i64>(millivolts, read)?, number::<i64>(milliamperes, read)?);
                Ok(Reading::Watts(mv as f64 * ma as f64 / 1e6))
            }
            Self::Counter { path, range } => Ok(Reading::Microjoules(number(path, read)?, *range)),
        }
    }
}

fn number<T: std::str::FromStr>(path: &Path, read: Read<'_>) -> Result<T, String> {
    let shown = path.display();
    let text = read(path).map_err(|e| match e.kind() {
        ErrorKind::PermissionDenied => {
            format!(
                "cannot read {shown}: permission denied; run as root, or allow it: sudo chmod a+r {shown}"
            )
        }
        _ => format!("cannot read {shown}: {e}"),
    })?;
    let start = || text.chars().take(40).collect::<String>();
    text.trim().parse().map_err(|_| format!("{shown} holds {:?}, which is no number of its kind", start()))
}

/// One rail of a machine.
#[derive(Clone, Debug)]
pub(super) struct Rail {
    /// For people, and different from all others.
    pub(super) name: String,
    /// What the kernel calls it.
    pub(super) label: String,
    /// The folder it was found in.
    pub(super) place: String,
    pub(super) sensor: Sensor,
    /// The rails, by position, that this one's energy is counted in too.
    pub(super) part_of: Vec<usize>,
    /// Why it is not read any more.
    pub(super) lost: Option<String>,
}

/// The energy of a rail over one or several stretches of time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tally {
    joules: f64,
    seconds: f64,
    n_samples: usize,
    /// The last reading of this stretch, and its second.
    last: Option<(f64, Reading)>,
}

impl Tally {
    /// Adds a reading at this second: the area of a trapezoid for powers, the difference for counters.
    pub(super) fn add(&mut self, at: f64, reading: Reading) -> Result<(), String> {
        if let Some((before, last)) = self.last {
            let seconds = at - before;
            self.joules += match (last, reading) {
                (Reading::Watts(a), Reading::Watts(b)) => (a + b) / 2.0 * seconds,
                (Reading::Microjoules(a, _), Reading::Microjoules(b, range)) => {
                    let joules = match (b.checked_sub(a), range.and_then(|r| r.checked_sub(a))) {
                        (Some(grown), _) => Some(grown),
                        (None, Some(left)) => left.checked_add(b),
                        (None, None) => None,
                    };
                    joules.ok_or_else(|| format!("its counter fell from {a} to {b} µJ"))? as f64 / 1e6
                }
                _ => return Err("it is now of another kind".to_owned()),
            };
            self.seconds += seconds;
        }
        self.n_samples += 1;
        self.last = Some((at, reading));
        Ok(())
    }

    /// Ends a stretch: what happens until the next reading is not counted.
    pub(super) fn pause(&mut self) {
        self.last = None;
    }

    /// Mean power, in watts; `None` before the second reading.
    pub(super) fn watts(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.joules / self.seconds)
    }

    /// Readings so far.
    pub(super) fn n_samples(&self) -> usize {
        self.n_samples
    }

    fn is_due(&self, at: f64) -> bool {
        self.last.is_none_or(|(before, reading)| match reading {
            Reading::Watts(_) => true,
            Reading::Microjoules(..) => at - before >= COUNTER_SECONDS,
        })
    }
}

/// The power sensors of a machine that can be read.
#[derive(Clone, Debug)]
pub struct PowerMeter {
    rails: Vec<Rail>,
    unmeasured: Vec<Unmeasured>,
}

impl PowerMeter {
    /// Looks for sensors under a folder, `/sys` on a real machine, and reads each once.
    ///
    /// # Errors
    /// [`PowerError::NoSensor`] if there are none, [`PowerError::Unreadable`] if there are and none can be read:
    /// on most systems the counters of x86 processors are root's alone.
    pub fn find(root: &Path) -> Result<Self, PowerError> {
        Self::find_with(root, &find::read)
    }

    pub(super) fn find_with(root: &Path, read: Read<'_>) -> Result<Self, PowerError> {
        let Found { rails, unmeasured, .. } = find::find(root, read);
        match unmeasured.first() {
            Some(first) if rails.is_empty() => {
                Err(PowerError::Unreadable { n: unmeasured.len(), first: first.clone() })
            }
            None if rails.is_empty() => Err(PowerError::NoSensor { root: root.to_owned() }),
            _ => Ok(Self { rails, unmeasured }),
        }
    }

    /// The names of the rails that are read, and whether each is a total: see
    /// [`RailReport`](super::RailReport).
    pub fn rails(&self) -> impl Iterator<Item = (&str, bool)> {
        self.sound().map(|(i, rail)| (rail.name.as_str(), self.is_total(i)))
    }

    /// What was found and is not read, or not any more.
    pub fn unmeasured(&self) -> Vec<Unmeasured> {
        let lost = self.rails.iter().filter_map(|rail| {
            let reason = rail.lost.clone()?;
            Some(Unmeasured { name: rail.name.clone(), reason })
        });
        self.unmeasured.iter().cloned().chain(lost).collect()
    }

    /// The rails that were never lost, with their positions.
    pub(super) fn sound(&self) -> impl Iterator<Item = (usize, &Rail)> {
        self.rails.iter().enumerate().filter(|(_, rail)| rail.lost.is_none())
    }

    /// Whether no rail that is still read has this one's energy in it.
    pub(super) fn is_total(&self, rail: usize) -> bool {
        let part_of = self.rails.get(rail).map(|r| r.part_of.as_slice()).unwrap_or_default();
        !part_of.iter().any(|&whole| self.rails.get(whole).is_some_and(|r| r.lost.is_none()))
    }

    /// One empty tally for every rail.
    pub(super) fn tallies(&self) -> Vec<Tally> {
        vec![Tally::default(); self.rails.len()]
    }

    /// Reads every rail that is due, or all of them. A rail that cannot be read twice in a row, once at once
    /// after the other, is lost: what is missing would be guessed.
    pub(super) fn tick(&mut self, tallies: &mut [Tally], clock: &dyn Fn() -> f64, all: bool) {
        for (rail, tally) in self.rails.iter_mut().zip(tallies) {
            if rail.lost.is_some() || !(all || tally.is_due(clock())) {
                continue;
            }
            let reading = rail.sensor.read(&find::read).or_else(|_| rail.sensor.read(&find::read));
            // The moment of this rail, not of the first: a chip on a slow bus takes a millisecond.
            rail.lost = reading.and_then(|reading| tally.add(clock(), reading)).err();
        }
    }

    /// Reads the rails on a thread of its own while `work` is done: right before, at every interval, and right
    /// after.
    pub(super) fn measure<T>(
        &mut self,
        interval: Duration,
        tallies: &mut [Tally],
        work: impl FnOnce() -> T,
    ) -> Result<T, PowerError> {
        let started = Instant::now();
        let (ready, is_ready) = mpsc::channel::<()>();
        let (stop, is_stopped) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let sample = move || {
                let clock = || started.elapsed().as_secs_f64();
                self.tick(tallies, &clock, true);
                drop(ready);
                let mut next = Instant::now() + interval;
                loop {
                    let wait = next.saturating_duration_since(Instant::now());
                    if is_stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                        break;
                    }
                    self.tick(tallies, &clock, false);
                    // Sensors that are slower than the interval leave half of it for the work.
                    next = (next + interval).max(Instant::now() + interval / 2);
                }
                self.tick(tallies, &clock, true);
                tallies.iter_mut().for_each(Tally::pause);
            };
            let sampler = std::thread::Builder::new().name("power".to_owned()).spawn_scoped(scope, sample);
            let sampler = sampler.map_err(PowerError::Thread)?;
            // Both channels only ever close, which a thread that is gone does too.
            let _ = is_ready.recv();
            let result = work();
            drop(stop);
            let _ = sampler.join();
            Ok(result)
        })
    }
}
