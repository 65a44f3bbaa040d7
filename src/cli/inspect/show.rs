//! The report of `inspect` as text.

use super::layers::LayerReport;
use super::{Factored, Report};
use crate::table::{render, shorten, si, table};
use crate::work::count;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Columns that a table should not exceed.
const WIDTH: usize = 116;

/// The report for people.
pub(super) fn text(report: &Report) -> String {
    let mut out = report.file.clone();
    if let Some(n) = report.n_bytes {
        let _ = write!(out, "  {}", bytes(n));
    }
    let _ = write!(out, "  opset {}, IR version {}", report.opset, report.ir_version);
    if let Some(producer) = &report.producer {
        let _ = write!(out, ", made by {producer}");
    }
    out.push('\n');
    for (what, ports) in [("input ", &report.inputs), ("output", &report.outputs)] {
        for port in ports {
            let _ = writeln!(out, "{what}  {}: {}", port.name, port.ty);
        }
    }
    let cost = &report.cost;
    let macs = cost.macs.map_or("an unknown number of".to_owned(), |n| si(n as f64));
    let float = if cost.n_quantised > 0 { "float parameters" } else { "parameters" };
    let least = if cost.n_uncounted > 0 && cost.macs.is_some() { "at least " } else { "" };
    let _ = writeln!(
        out,
        "{} {float} ({}), {least}{macs} multiply-adds per image",
        si(cost.params as f64),
        bytes(cost.param_bytes)
    );
    if cost.n_quantised > 0 {
        let _ = writeln!(out, "{} 8-bit values beside them: quantised weights", si(cost.n_quantised as f64));
    }
    if cost.n_uncounted > 0 {
        let layers = count(cost.n_uncounted, "linear layer");
        let _ = writeln!(out, "not counted: {layers} with a computed weight");
    }
    if let Some(pipeline) = report.metadata.get(basisopt_passes::PIPELINE_KEY) {
        let _ = writeln!(out, "made by basisopt with {pipeline}");
    }
    out.push_str(&wrapped(&format!("{} nodes: ", cost.n_nodes), &report.operators));
    if !report.opaque.is_empty() {
        out.push_str(&wrapped("not looked into, and carried along as they are: ", &report.opaque));
    }
    if !report.layers.is_empty() {
        out.push('\n');
        out.push_str(&layer_table(report));
    }
    out
}

/// `12 nodes: Relu 5, Add 3, …`, the commonest first, in lines of bounded length.
fn wrapped(head: &str, counts: &BTreeMap<String, usize>) -> String {
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort_by_key(|(name, n)| (std::cmp::Reverse(**n), *name));
    let (mut out, mut line) = (String::new(), head.to_owned());
    for (i, (name, n)) in sorted.iter().enumerate() {
        let comma = if i + 1 < sorted.len() { ", " } else { "" };
        let item = format!("{name} {n}{comma}");
        if line.chars().count() + item.chars().count() > WIDTH {
            out.push_str(line.trim_end());
            out.push_str("\n  ");
            line.clear();
        }
        line.push_str(&item);
    }
    out + &line + "\n"
}

fn layer_table(report: &Report) -> String {
    let rank = format!("rank@{}", report.energy);
    let headings = ["layer", "op", "shape", "params", "MACs", "spectrum", &rank, "break-even", "factored"];
    let rows: Vec<[String; 9]> = report.layers.iter().map(row).collect();
    // The name takes what the other columns leave.
    let widest = |i: usize| {
        let cells = rows.iter().map(|r| r[i].as_str()).chain([headings[i]]);
        cells.map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let others: usize = (1..headings.len()).map(|i| widest(i) + 2).sum();
    let name_width = WIDTH.saturating_sub(others).clamp(16, 48);
    let mut lines = table(&headings);
    for [name, rest @ ..] in rows {
        lines.add_row([shorten(&name, name_width)].into_iter().chain(rest));
    }
    for i in [1, 2, 5] {
        if let Some(column) = lines.column_mut(i) {
            column.set_cell_alignment(comfy_table::CellAlignment::Left);
        }
    }
    let mut out = render(&lines);
    out.push('\n');
    out.push_str(&summary(report));
    out.push_str(&reasons(&report.layers));
    out
}

fn row(layer: &LayerReport) -> [String; 9] {
    let number = |n: Option<u64>| n.map_or("?".to_owned(), |n| si(n as f64));
    let matrix = layer.matrix.as_ref();
    let rank = matrix.and_then(|m| Some(format!("{}/{}", m.energy_rank?, m.full_rank)));
    let outcome = match (&layer.refusal, matrix.and_then(|m| m.cost)) {
        (Some(reason), _) => reason.code.to_owned(),
        (None, Some(cost)) => format!("{:.0} %", 100.0 * cost),
        (None, None) => "?".to_owned(),
    };
    [
        layer.name.clone(),
        layer.op.clone(),
        layer.shape.clone(),
        number(layer.params),
        number(layer.macs),
        matrix.map_or(String::new(), |m| m.spectrum.iter().map(|&h| bar(h)).collect()),
        rank.unwrap_or_default(),
        matrix.map_or(String::new(), |m| format!("{:.1}", m.break_even)),
        outcome,
    ]
}

/// A height of 0…1 as an eighth of a block.
fn bar(height: f64) -> char {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    if height < 1e-3 {
        return '·';
    }
    let eighths = (8.0 * height).ceil() as usize;
    BLOCKS[eighths.clamp(1, 8) - 1]
}

/// `1234567` as `1.23 MB`.
fn bytes(n: u64) -> String {
    let text = si(n as f64);
    // Below a thousand there is no unit that the B could go with.
    if text.contains(' ') { text + "B" } else { text + " B" }
}

fn summary(report: &Report) -> String {
    let mut out = String::new();
    if !report.complete {
        out.push_str("PARTIAL: interrupted; layers marked ? were not decomposed\n");
    }
    if report.n_layers_left_out > 0 {
        let _ = writeln!(out, "{} more layers do not match --layers", report.n_layers_left_out);
    }
    let Factored { n_layers, macs } = report.factored;
    let n = report.layers.len();
    let _ = write!(out, "{n_layers} of {n} layers gain by factoring at energy {}", report.energy);
    match (report.cost.macs, macs) {
        (Some(before), Some(after)) if after < before => {
            let share = 100.0 * after as f64 / before as f64;
            let _ = writeln!(
                out,
                ": {} multiply-adds become {} ({share:.1} %)",
                si(before as f64),
                si(after as f64)
            );
        }
        _ => out.push('\n'),
    }
    if report.cost.macs.is_none() {
        let open: Vec<String> = report.inputs.iter().map(|p| format!("{}: {}", p.name, p.ty)).collect();
        let _ = writeln!(
            out,
            "Multiply-adds marked ? depend on sizes that are open ({}); fix them with --dim NAME=N",
            open.join(", ")
        );
    }
    out
}

/// Why layers are left whole: each code once, with the first layer's message.
fn reasons(layers: &[LayerReport]) -> String {
    let mut codes: BTreeMap<&str, (usize, &LayerReport, &str)> = BTreeMap::new();
    for layer in layers {
        if let Some(reason) = &layer.refusal {
            codes.entry(reason.code).or_insert((0, layer, &reason.message)).0 += 1;
        }
    }
    let mut out = String::new();
    for (code, (n, first, message)) in codes {
        // Where one message speaks of one node, say which.
        let of = if layers
            .iter()
            .filter_map(|l| l.refusal.as_ref())
            .any(|r| r.code == code && r.message != message)
        {
            format!(" (here {})", first.name)
        } else {
            String::new()
        };
        let layers = if n == 1 { "layer" } else { "layers" };
        let _ = writeln!(out, "{code}, {n} {layers}: {message}{of}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_have_eight_heights_and_a_dot_for_nothing() {
        assert_eq!([1.0, 0.51, 0.5, 0.126, 0.125, 0.002, 0.0].map(bar), ['█', '▅', '▄', '▂', '▁', '▁', '·']);
    }

    #[test]
    fn lines_are_wrapped_between_items() {
        let counts = (0..40).map(|i| (format!("Operator{i:02}"), 1)).collect();
        let text = wrapped("40 nodes: ", &counts);
        assert!(text.lines().count() > 1 && text.lines().all(|l| l.chars().count() <= WIDTH + 2));
        assert_eq!(text.matches("Operator").count(), 40);
    }
}
