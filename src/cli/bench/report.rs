//! What `bench` tells: tables, JSON, a page.

use crate::engine::engine_name;
use crate::power::{self, Power};
use crate::table::{page, render, shorten, table};
use basisopt_runtime::{BenchResult, LayerTime, Machine};
use serde::Serialize;
use std::fmt::Write as _;

const PAGE: &str = include_str!("page.html");
const PLACE: &str = "/*BENCH*/null/*END*/";

/// One network, as JSON.
#[derive(Serialize)]
pub(super) struct Row<'a> {
    #[serde(flatten)]
    pub result: &'a BenchResult,
    pub machine: &'a Machine,
    /// False if Ctrl-C ended the benchmark before it had all its rounds.
    pub complete: bool,
    /// What each layer takes, with --per-layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<&'a [LayerTime]>,
    /// What the profile predicts at the pace that the machine has meanwhile, with --device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted_ms: Option<f64>,
    /// How many times as slow the machine is as when the profile was made, with --device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pace: Option<f64>,
    #[serde(flatten)]
    pub power: Option<power::Member<'a>>,
}

/// A network on the page.
#[derive(Serialize)]
pub(super) struct Entry<'a> {
    #[serde(flatten)]
    pub result: &'a BenchResult,
    /// Multiply-adds per image, if they are known.
    pub macs: Option<u64>,
    pub params: Option<u64>,
    pub predicted_ms: Option<f64>,
}

/// Everything as one file to open in a browser.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    pub version: &'static str,
    pub command: String,
    pub machine: String,
    pub threads: usize,
    pub batch: usize,
    pub n_runs: usize,
    pub complete: bool,
    pub networks: Vec<Entry<'a>>,
    pub layers: Vec<Layer<'a>>,
}

/// A layer of any of the networks, with what it takes in each of them.
#[derive(Serialize)]
pub(super) struct Layer<'a> {
    pub layer: &'a str,
    pub ms: Vec<Option<f64>>,
    pub operators: Vec<Option<String>>,
}

impl Report<'_> {
    /// The page.
    ///
    /// # Errors
    /// If a number has no JSON form.
    pub(super) fn page(&self) -> anyhow::Result<String> {
        page(PAGE, PLACE, self)
    }
}

/// The layers of all networks, in the order in which they come up, times of equal names added up.
pub(super) fn layers(networks: &[Vec<LayerTime>]) -> Vec<Layer<'_>> {
    let mut names: Vec<&str> = Vec::new();
    for layer in networks.iter().flatten() {
        if !names.contains(&layer.layer.as_str()) {
            names.push(&layer.layer);
        }
    }
    let of = |name: &str, network: &[LayerTime]| -> (Option<f64>, Option<String>) {
        let found: Vec<&LayerTime> = network.iter().filter(|l| l.layer == name).collect();
        if found.is_empty() {
            return (None, None);
        }
        let operators: Vec<&str> = found.iter().flat_map(|l| &l.operators).map(String::as_str).collect();
        (Some(found.iter().map(|l| l.ms).sum()), Some(operators.join(" + ")))
    };
    let layer = |name| {
        let (ms, operators) = networks.iter().map(|n| of(name, n)).unzip();
        Layer { layer: name, ms, operators }
    };
    names.into_iter().map(layer).collect()
}

/// One row per layer of any network, milliseconds in each, and the ratio of the last to the first.
pub(super) fn layer_text(networks: &[Vec<LayerTime>]) -> String {
    let layers = layers(networks);
    if layers.is_empty() {
        return String::new();
    }
    let headings: Vec<String> = (1..=networks.len()).map(|i| format!("ms in {i}")).collect();
    let mut headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    headings.insert(0, "layer");
    headings.push("last / first");
    let mut rows = table(&headings);
    let mut add = |name: &str, times: &[Option<f64>]| {
        let ratio = match (times.first(), times.last()) {
            (Some(Some(first)), Some(Some(last))) if times.len() > 1 => format!("{:.3}", last / first),
            _ => "-".to_owned(),
        };
        let mut row = vec![shorten(name, 48)];
        row.extend(times.iter().map(|t| t.map_or("-".to_owned(), significant)));
        row.push(ratio);
        rows.add_row(row);
    };
    layers.iter().for_each(|l| add(l.layer, &l.ms));
    let together = |n: &Vec<LayerTime>| (!n.is_empty()).then(|| n.iter().map(|l| l.ms).sum());
    add("together", &networks.iter().map(together).collect::<Vec<_>>());
    format!("\n{}", render(&rows))
}

pub(super) fn power_text(power: &Power, results: &[BenchResult]) -> String {
    let names: Vec<String> = results
        .iter()
        .map(|r| if r.n_fused > 0 { format!("{}, fused", r.file) } else { r.file.clone() })
        .collect();
    power.text(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

pub(super) fn text(results: &[BenchResult], machine: &Machine, complete: bool) -> String {
    let mut out = String::new();
    if let Some(first) = results.first() {
        let threads = if first.threads == 1 { "thread" } else { "threads" };
        let _ = writeln!(out, "{} rounds, {} {threads}", first.n_runs, first.threads);
    }
    let mut kernels: Vec<&str> = results.iter().flat_map(|r| &r.kernels).map(String::as_str).collect();
    kernels.sort_unstable();
    kernels.dedup();
    let _ = writeln!(out, "{}; tract's kernels: {}", machine.summary(), kernels.join(" "));
    if !complete {
        out.push_str("PARTIAL: interrupted; these are the rounds so far\n");
    }
    let mut rows = table(&[
        "file",
        "engine",
        "batch",
        "median ms",
        "p10–p90",
        "cold",
        "images/s",
        "memory",
        "time",
        "95 % interval",
    ]);
    for r in results {
        let [low, high] = r.time_ratio_interval;
        rows.add_row([
            shorten(&r.file, 36),
            engine_name(&r.engine, r.n_fused),
            r.batch.to_string(),
            significant(r.median_ms),
            format!("{}–{}", significant(r.p10_ms), significant(r.p90_ms)),
            significant(r.cold_ms),
            significant(r.images_per_second),
            r.peak_memory_bytes.map_or("-".to_owned(), |n| format!("{:.1} MB", n as f64 / 1e6)),
            format!("{:.3}", r.time_ratio),
            format!("{low:.3}–{high:.3}"),
        ]);
    }
    out.push_str(&render(&rows));
    out
}

/// Three or four significant digits, without exponent.
pub(crate) fn significant(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        v if v >= 0.1 => 3,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::significant;

    #[test]
    fn times_have_three_digits() {
        assert_eq!([1234.5, 56.78, 1.2345, 0.5678].map(significant), ["1234", "56.8", "1.23", "0.568"]);
    }
}
