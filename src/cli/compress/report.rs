//! The result of `compress`: as a table, JSON, and a page to look at.

use super::Args;
use crate::table::{json, page, render, shorten, si, table};
use crate::training::{LogLine, rounded};
use crate::work::{self, bytes};
use basisopt_embed::ladder::Rung;
use basisopt_embed::{Compressed, Layer, Measured};
use basisopt_passes::meets_goal;
use serde::Serialize;
use std::fmt::Write as _;

/// The page, with a place for the data.
const PAGE: &str = include_str!("page.html");
const PLACE: &str = "/*REPORT*/null/*END*/";

/// The result as JSON.
#[derive(Serialize)]
pub(super) struct JsonReport<'a> {
    pub file: &'a str,
    pub output: Option<String>,
    pub seconds: f64,
    #[serde(flatten)]
    pub done: &'a Compressed,
    /// Every epoch of training.
    pub training: Vec<Curve<'a>>,
    pub version: &'static str,
    pub command: String,
}

impl JsonReport<'_> {
    /// Everything as JSON.
    pub(super) fn json(&self) -> anyhow::Result<String> {
        json(self)
    }

    /// Everything as one file to open in a browser.
    pub(super) fn page(&self) -> anyhow::Result<String> {
        page(PAGE, PLACE, self)
    }
}

/// An epoch, with the rung that it belongs to.
#[derive(Debug, Serialize)]
pub(super) struct Curve<'a> {
    rung: &'a str,
    #[serde(flatten)]
    line: &'a LogLine,
}

/// The epochs of all rungs. A run of training is known by its place among those that were not skipped.
pub(super) fn curves<'a>(rungs: &'a [Rung], history: &'a [LogLine]) -> Vec<Curve<'a>> {
    let trained: Vec<&Rung> =
        rungs.iter().filter(|r| r.name.starts_with("fine-tune") && r.skipped.is_none()).collect();
    let curve = |line: &'a LogLine| {
        let rung = trained.get(line.line.run.checked_sub(1)?)?;
        Some(Curve { rung: &rung.name, line })
    };
    history.iter().filter_map(curve).collect()
}

/// The table, the rungs, and what is to be said.
pub(super) fn text(args: &Args, done: &Compressed, n_validated: usize) -> String {
    let Compressed { before, after, measured, layers, rungs, .. } = done;
    let mut out = String::new();
    if args.layers {
        out = layer_table(layers) + "\n";
    }
    let mut rows = table(&["", "before", "after", "ratio"]);
    let ratio = |a: f64, b: f64| if a > 0.0 { format!("{:.3}", b / a) } else { String::new() };
    let mut row = |what: &str, show: &dyn Fn(u64) -> String, a: Option<u64>, b: Option<u64>| {
        if let (Some(a), Some(b)) = (a, b) {
            rows.add_row([what.to_owned(), show(a), show(b), ratio(a as f64, b as f64)]);
        }
    };
    let number = |n: u64| si(n as f64);
    row("file size", &bytes, Some(before.file_bytes), Some(after.file_bytes));
    row("parameters", &number, Some(before.cost.params), Some(after.cost.params));
    row("multiply-adds", &number, before.cost.macs, after.cost.macs);
    if let Some(a) = &measured.accuracy {
        let percent = |x: f64| format!("{:.2} %", 100.0 * x);
        rows.add_row([
            "top-1 accuracy".to_owned(),
            percent(a.before),
            percent(a.after),
            points(a.after - a.before),
        ]);
    }
    if let Some([a, b]) = &measured.latency {
        let ms = |x: f64| format!("{x:.3} ms");
        let what = format!("latency, batch {}", a.batch);
        rows.add_row([what, ms(a.median_ms), ms(b.median_ms), format!("{:.3}", b.time_ratio)]);
    }
    out += &render(&rows);
    out.push('\n');
    if rungs.iter().any(|rung| rung.score.is_some()) {
        let _ = writeln!(out, "{}", rung_table(rungs));
        out += &verdict(args.goal, rungs, n_validated);
    }

    let n_factored = layers.iter().filter(|l| l.factored).count();
    let _ = write!(out, "{n_factored} of {} factored", work::count(layers.len(), "layer"));
    let hint =
        if args.layers || n_factored == layers.len() { "" } else { "; --layers says why not the others" };
    let _ = writeln!(out, "{hint}");
    for line in findings(measured, before.cost.macs.is_none(), n_factored, !rungs.is_empty()) {
        let _ = writeln!(out, "{line}");
    }
    out
}

/// The sentences under the table.
fn findings(measured: &Measured, are_macs_unknown: bool, n_factored: usize, is_trained: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if are_macs_unknown {
        lines
            .push("multiply-adds are not known: an input size is open; give it with --dim NAME=N".to_owned());
    }
    if let Some(a) = &measured.agreement {
        lines.push(format!(
            "both networks name the same class on {:.2} % of {} inputs",
            100.0 * a.share,
            a.n
        ));
    }
    if let Some(error) = measured.output_error.filter(|_| measured.agreement.is_none()) {
        lines
            .push(format!("relative error of the outputs: {error:.4} (root of squared error over variance)"));
    }
    if let Some(worst) = measured.outputs.iter().max_by(|a, b| a.max_rel.total_cmp(&b.max_rel)) {
        lines.push(match worst.max_rel {
            0.0 => "all outputs are exactly equal".to_owned(),
            rel => format!(
                "output {:?} is at most {rel:.1e} off, relative to its scale, on {} of the inputs",
                worst.name, measured.n_compared
            ),
        });
    }
    if let Some(images) = &measured.calibration {
        lines.push(format!("calibrated on {images}"));
    }
    if !measured.inputs.is_empty() {
        lines.push(format!("measured on {}, with {}", measured.inputs, measured.engine));
    }
    lines.extend(measured.notes.iter().cloned());
    if let Some([_, b]) = &measured.latency {
        if b.n_fused > 0 {
            lines.push(format!(
                "timed with {} pairs of factors run as one operator each (tract's transform fuse-basis-conv); bench --engine stock has the time without",
                b.n_fused
            ));
        }
        let [low, high] = b.time_ratio_interval;
        if low > 1.0 {
            lines.push(format!(
                "the result is SLOWER on this machine, {:.2} times the original's time: two small convolutions cost more than one here",
                b.time_ratio
            ));
        } else if high >= 1.0 {
            lines.push("no difference in speed beyond the noise of this measurement".to_owned());
        }
    }
    let calibrated = measured.calibration.is_some();
    match &measured.accuracy {
        // A fifth of what was right is wrong now: nobody wants that by default.
        Some(a) if a.after < 0.8 * a.before => lines.push(format!(
            "the result is DAMAGED: do not ship it{}. {}",
            if is_trained { "" } else { " without training (--fine-tune)" },
            match calibrated {
                true => "This network does not bear so small a budget; a larger one, or --exclude for its most sensitive layers, keeps it working",
                false => "Ranks and factors came from the weights alone; with --data images/ they come from what the layers do",
            }
        )),
        Some(a) if a.after + a.margin < a.before => lines.push(match calibrated {
            true if is_trained => "accuracy was lost: a larger --budget keeps more of it, and more epochs may win more back".to_owned(),
            true => "accuracy was lost: a larger --budget keeps more of it, and --fine-tune wins much of it back".to_owned(),
            false => "accuracy was lost: factors from data (--data) keep much more of it at the same size".to_owned(),
        }),
        Some(_) => {}
        None if n_factored == 0 => {}
        None if calibrated => {}
        None => lines.push("nothing was measured on real inputs: give --data images/".to_owned()),
    }
    lines
}

/// A difference of shares in percentage points, with its sign.
fn points(difference: f64) -> String {
    format!("{:+.2} points", 100.0 * difference)
}

fn layer_table(layers: &[Layer]) -> String {
    let mut rows = table(&[
        "layer",
        "rank",
        "energy",
        "weight error",
        "output error",
        "multiply-adds",
        "left alone because",
    ]);
    if let Some(column) = rows.column_mut(6) {
        column.set_cell_alignment(comfy_table::CellAlignment::Left);
    }
    for layer in layers {
        let macs = |n: Option<u64>| n.map_or("?".to_owned(), |n| si(n as f64));
        let rank = match (layer.rank, layer.full_rank) {
            (Some(rank), Some(full)) => format!("{rank}/{full}"),
            _ => String::new(),
        };
        let macs = match layer.factored {
            true => format!("{} → {}", macs(layer.macs_before), macs(layer.macs_after)),
            false => macs(layer.macs_before),
        };
        let fixed = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.4}"));
        rows.add_row([
            shorten(&layer.name, 40),
            rank,
            fixed(layer.energy),
            fixed(layer.error),
            fixed(layer.output_error),
            macs,
            layer.reason.clone().unwrap_or_default(),
        ]);
    }
    render(&rows)
}

/// One line per rung: what it bought, and what it cost.
fn rung_table(rungs: &[Rung]) -> String {
    let measure = if rungs.iter().any(|r| r.is_accuracy == Some(false)) { "agreement" } else { "accuracy" };
    let mut rows = table(&["recovery", "time", "epochs", measure, "points", "loss or error"]);
    for rung in rungs {
        if let Some(why) = &rung.skipped {
            rows.add_row([rung.title.clone(), why.clone()]);
            continue;
        }
        let change = rung.score.zip(rung.score_before).map(|(a, b)| format!("{:+.2}", 100.0 * (a - b)));
        rows.add_row([
            rung.title.clone(),
            work::time(std::time::Duration::from_secs_f64(rung.seconds)),
            rung.epochs.map_or(String::new(), |e| rounded(e).to_string()),
            rung.score.map_or(String::new(), |s| format!("{:.2} %", 100.0 * s)),
            change.unwrap_or_default(),
            rung.loss_before.zip(rung.loss).map_or(String::new(), |(a, b)| format!("{a:.4} → {b:.4}")),
        ]);
    }
    render(&rows)
}

/// Whether the goal was met, on how many images, and how far that can be trusted.
fn verdict(goal: Option<f64>, rungs: &[Rung], n: usize) -> String {
    let Some(original) = rungs.iter().find_map(|r| r.original) else { return String::new() };
    let of = format!(
        "on {} kept apart to choose by; the original: {:.2} %",
        work::count(n, "image"),
        100.0 * original
    );
    let (Some(goal), Some(score)) = (goal, rungs.iter().rev().find_map(|r| r.score)) else {
        return format!("{of}\n");
    };
    let lost = 100.0 * (original - score);
    let met = if meets_goal(original, score, goal) { "met" } else { "NOT met" };
    let mut text =
        format!("{of}\nthe goal, to lose {goal} points at most, is {met}: {lost:.2} are lost there\n");
    if n > 0 && 100.0 / n as f64 > goal {
        let _ =
            writeln!(text, "one of these images is {:.2} points: they are too few to tell", 100.0 / n as f64);
    }
    text
}
