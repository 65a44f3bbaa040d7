//! Electrical power, beside what `bench` measures.

use crate::Globals;
use crate::bench::seconds_from;
use crate::progress::{Progress, interrupted};
use crate::table::{render, shorten, table};
use basisopt_runtime::{
    BenchOptions, Engine, PowerOptions, PowerProgress, PowerReport, RuntimeError, Source, measure_power,
};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Power")]
pub(crate) struct Flags {
    /// Measure electrical power too, where the machine has sensors.
    ///
    /// After the rounds the machine idles, then each network runs alone. A second table says, for each
    /// supply line (rail), the power of the idle machine, the power while the network ran, and the energy of
    /// one image, with and without what the idle machine takes. Sensors see all programs: let nothing
    /// else run. Without a sensor, or where reading it takes rights (on most Linux systems the counters
    /// of x86 processors are root's), a note says so and the rest is printed as ever.
    #[arg(long)]
    power: bool,
    /// How long each network runs for its power, in two blocks: A B, then B A.
    #[arg(long, value_name = "S", default_value_t = 6.0, value_parser = parse_duration, requires = "power")]
    power_seconds: f64,
    /// How long the power of the idle machine is measured before.
    #[arg(long, value_name = "S", default_value_t = 2.0, value_parser = parse_duration, requires = "power")]
    idle_seconds: f64,
    /// Where sensors are looked for: below bus/i2c/drivers/ina3221* (Jetson boards), class/powercap (x86)
    /// and class/hwmon (any chip) of this folder. For boards with unusual trees, and for tests.
    #[arg(long, value_name = "DIR", default_value = "/sys", requires = "power")]
    power_root: PathBuf,
}

fn parse_duration(text: &str) -> Result<f64, String> {
    seconds_from(text, 0.01)
}

/// What `--power` gave.
#[derive(Debug)]
pub(crate) enum Power {
    /// It was not asked for.
    Unasked,
    /// There is nothing to measure with, and why.
    Missing(String),
    /// One report for every network.
    Measured(Vec<PowerReport>),
}

/// What a network's JSON has of it.
#[derive(Serialize)]
pub(crate) struct Member<'a> {
    /// Null where it could not be measured.
    power: Option<&'a PowerReport>,
    /// Why it is null.
    #[serde(skip_serializing_if = "Option::is_none")]
    power_missing: Option<&'a str>,
}

impl Flags {
    /// Measures, if it was asked for. What is missing or was skipped is noted on stderr.
    pub(crate) fn measure(
        &self,
        networks: &[(&Source, Engine)],
        options: &BenchOptions,
        globals: &Globals,
    ) -> anyhow::Result<Power> {
        if !self.power {
            return Ok(Power::Unasked);
        }
        let power = PowerOptions {
            root: self.power_root.clone(),
            idle_seconds: self.idle_seconds,
            seconds: self.power_seconds,
            ..PowerOptions::default()
        };
        let progress = Progress::new("power", globals.quiet);
        let reports = measure_power(networks, options, &power, &mut |at| {
            let (share, item) = match at {
                PowerProgress::Loading(name) => (0.0, name),
                PowerProgress::Idle(share) => (share, "idle"),
                PowerProgress::Running(name, share) => (share, name),
                _ => return !interrupted(),
            };
            progress.update((100.0 * share) as usize, 100, item);
            !interrupted()
        });
        drop(progress);
        let (power, note) = match reports {
            Ok(reports) => {
                let unmeasured = reports.first().map(|r| r.unmeasured.as_slice()).unwrap_or_default();
                let note = unmeasured.first().map(|first| {
                    format!("{} power rails are left out: {}: {}", unmeasured.len(), first.name, first.reason)
                });
                (Power::Measured(reports), note)
            }
            Err(RuntimeError::Power(reason)) => {
                let reason = reason.to_string();
                let note = format!("power was not measured: {reason}");
                (Power::Missing(reason), Some(note))
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(note) = note.filter(|_| !globals.quiet) {
            eprintln!("note: {note}");
        }
        Ok(power)
    }
}

impl Power {
    /// What the JSON of the network at this position has of it; `None` if it was not asked for.
    pub(crate) fn member(&self, i: usize) -> Option<Member<'_>> {
        match self {
            Self::Unasked => None,
            Self::Missing(reason) => Some(Member { power: None, power_missing: Some(reason) }),
            Self::Measured(reports) => Some(Member { power: reports.get(i), power_missing: None }),
        }
    }

    /// The table, below a line of its own; empty if nothing was measured.
    pub(crate) fn text(&self, files: &[&str]) -> String {
        let Self::Measured(reports) = self else { return String::new() };
        let mut rows = table(&["file", "rail", "", "idle W", "W", "J/image", "above idle"]);
        for (file, report) in files.iter().zip(reports) {
            for rail in &report.rails {
                rows.add_row([
                    shorten(file, 36),
                    rail.name.clone(),
                    if rail.is_total { "total" } else { "part" }.to_owned(),
                    significant(rail.idle_watts),
                    significant(rail.watts),
                    significant(rail.joules_per_inference),
                    significant(rail.joules_per_inference_above_idle),
                ]);
            }
        }
        format!("\npower\n{}", render(&rows))
    }
}

/// Four digits, without exponent: milliwatts and microjoules have to be seen.
fn significant(value: f64) -> String {
    let magnitude = value.abs().log10().floor();
    let decimals = if magnitude.is_finite() { (3.0 - magnitude).clamp(0.0, 9.0) as usize } else { 0 };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::significant;

    #[test]
    fn powers_have_four_digits() {
        let values = [12345.6, 12.3456, 0.123_456, -0.000_123_456, 0.0];
        assert_eq!(values.map(significant), ["12346", "12.35", "0.1235", "-0.0001235", "0"]);
    }
}
