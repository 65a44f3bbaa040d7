//! `diff`: what differs between two networks, as text.

use crate::table::{Format, emit, json, render, table};
use crate::{Globals, network};
use basisopt_ir::{Attr, Graph, NodeId, Op, Tensor};
use clap::ValueEnum;
use serde::Serialize;
use similar::TextDiff;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  basisopt diff m.onnx small.onnx               what the passes changed
  basisopt diff m.onnx small.onnx --context 0 | less -R
  basisopt diff a.onnx b.onnx --format json     how many nodes of which operator came and went

The graphs are compared as `basisopt print` shows them, and then, if they print the same, their
constants value by value. In the table below the diff a node is known by its operator and the name
of its first output. Like diff(1), the command exits with 0 if the networks are equal and with 1
if they differ; with 1 and a message on stderr also if one of them cannot be read.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The network to start from: an .onnx or .bir file, or - for stdin.
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The network to compare with it.
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Unchanged lines to show around what changed.
    #[arg(long, short = 'U', value_name = "N", default_value_t = 3)]
    context: usize,
    /// Colours.
    #[arg(long, value_enum, default_value_t)]
    color: Color,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    Always,
    Never,
}

/// How two networks differ, as JSON.
#[derive(Debug, Serialize)]
struct Difference {
    a: String,
    b: String,
    equal: bool,
    /// By operator; constants are `Constant`.
    operators: BTreeMap<String, Counts>,
    /// Constants that print the same but hold other values: signs and order leave no trace in a norm.
    hidden: Vec<String>,
}

/// Nodes of one operator. A node is known by its operator and the name of its first output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Counts {
    in_a: usize,
    in_b: usize,
    /// In `a` alone.
    removed: usize,
    /// In `b` alone.
    added: usize,
    /// In both, with other attributes, inputs, types or values.
    changed: usize,
}

impl Counts {
    fn is_same(&self) -> bool {
        self.removed + self.added + self.changed == 0
    }
}

pub(crate) fn run(args: Args, _: &Globals) -> anyhow::Result<ExitCode> {
    let (a, b) = (network::read(&args.a)?, network::read(&args.b)?);
    let (text_a, text_b) = (a.graph.to_string(), b.graph.to_string());
    let mut operators = BTreeMap::new();
    let mut hidden = count(&a.graph, &b.graph, &mut operators);
    let mut hunks = String::new();
    if text_a != text_b {
        // What the reader sees needs no second mention.
        hidden.clear();
        let diff = TextDiff::from_lines(&text_a, &text_b);
        hunks = diff.unified_diff().context_radius(args.context).header(&a.file, &b.file).to_string();
    }
    // Long attributes of opaque nodes are elided from the text as well.
    let equal = text_a == text_b && operators.values().all(Counts::is_same);
    let difference = Difference { a: a.file, b: b.file, equal, operators, hidden };
    emit(&match args.format {
        Format::Json => json(&difference)?,
        Format::Text => text(&difference, &hunks, args.color),
    })?;
    Ok(ExitCode::from(u8::from(!equal)))
}

/// Counts the nodes of both graphs; returns the names of constants in both with different values.
fn count(a: &Graph, b: &Graph, operators: &mut BTreeMap<String, Counts>) -> Vec<String> {
    let (nodes_a, nodes_b) = (by_name(a), by_name(b));
    let mut constants = Vec::new();
    for (key, &x) in &nodes_a {
        let counts = operators.entry(key.0.clone()).or_default();
        counts.in_a += 1;
        match nodes_b.get(key) {
            None => counts.removed += 1,
            Some(&y) if is_same((a, x), (b, y)) => {}
            Some(_) => {
                counts.changed += 1;
                if matches!(a.node(x).op, Op::Constant(_)) {
                    constants.push(key.1.clone());
                }
            }
        }
    }
    for key in nodes_b.keys() {
        let counts = operators.entry(key.0.clone()).or_default();
        counts.in_b += 1;
        counts.added += usize::from(!nodes_a.contains_key(key));
    }
    constants
}

/// The nodes by operator and name of the first output.
fn by_name(graph: &Graph) -> BTreeMap<(String, String), NodeId> {
    let nodes =
        graph.node_ids().map(|id| (graph.node(id), id)).filter(|(node, _)| !matches!(node.op, Op::Input));
    nodes
        .map(|(node, id)| {
            let name = node.outputs.first().map_or_else(|| node.name.clone(), |v| v.name.clone());
            ((node.op.op_type().to_owned(), name), id)
        })
        .collect()
}

fn is_same((a, x): (&Graph, NodeId), (b, y): (&Graph, NodeId)) -> bool {
    let (node_x, node_y) = (a.node(x), b.node(y));
    match (&node_x.op, &node_y.op) {
        (Op::Constant(s), Op::Constant(t)) => {
            // Values that were elided cannot differ; the norms are in the text.
            let values = |t: &Tensor| t.to_bytes().ok();
            (s.dtype(), s.shape()) == (t.dtype(), t.shape())
                && values(s).zip(values(t)).is_none_or(|(s, t)| s == t)
        }
        (op_x, op_y) => {
            let names = |graph: &Graph, id: NodeId| -> Vec<Option<String>> {
                graph.node_inputs(id).into_iter().map(|v| Some(graph.value(v?).name.clone())).collect()
            };
            let same_op = op_x == op_y || is_elided(op_x) || is_elided(op_y);
            same_op && node_x.outputs == node_y.outputs && names(a, x) == names(b, y)
        }
    }
}

/// Whether attributes of an opaque operator were left out of the text that it was read from. What
/// is left of them has been compared as text.
fn is_elided(op: &Op) -> bool {
    matches!(op, Op::Opaque(op) if op.attrs.iter().any(|(_, value)| matches!(value, Attr::Elided(_))))
}

fn text(difference: &Difference, hunks: &str, color: Color) -> String {
    let colored = match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        }
    };
    if difference.equal {
        return String::new();
    }
    let mut out = String::new();
    for line in hunks.lines() {
        let code = match line.as_bytes().first() {
            _ if !colored => None,
            Some(b'-') => Some("31"),
            Some(b'+') => Some("32"),
            Some(b'@') => Some("36"),
            _ => None,
        };
        let _ = match code {
            Some(code) => writeln!(out, "\x1b[{code}m{line}\x1b[0m"),
            None => writeln!(out, "{line}"),
        };
    }
    if !difference.hidden.is_empty() {
        let names = difference.hidden.join(", ");
        let _ = writeln!(out, "The graphs print the same, but these constants hold other values: {names}");
    }
    let mut rows = table(&["operator", "in A", "in B", "removed", "added", "changed"]);
    for (op, counts) in &difference.operators {
        let Counts { in_a, in_b, removed, added, changed } = counts;
        if !counts.is_same() {
            rows.add_row(
                [op.clone()].into_iter().chain([in_a, in_b, removed, added, changed].map(usize::to_string)),
            );
        }
    }
    if rows.row_count() > 0 {
        out.push('\n');
        out.push_str(&render(&rows));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_matched_by_name_and_constants_by_value() {
        let parse = |text: &str| basisopt_ir::parse::parse(text).unwrap();
        let a = parse(
            "graph @g(%x: f32[1,2]) -> (%y) {
               %b = f32[2] [1.0,-2.0]
               %s = Add(%x, %b)
               %y = Relu(%s)
             }",
        );
        let b = parse(
            "graph @g(%x: f32[1,2]) -> (%y) {
               %b = f32[2] [-2.0,1.0]
               %s = Add(%x, %b)
               %t = Relu(%s)
               %y = Relu(%t)
             }",
        );
        let mut operators = BTreeMap::new();
        assert_eq!(count(&a, &b, &mut operators), ["b"]);
        assert_eq!(operators["Add"], Counts { in_a: 1, in_b: 1, ..Counts::default() });
        assert_eq!(operators["Relu"], Counts { in_a: 1, in_b: 2, added: 1, changed: 1, removed: 0 });
        assert!(count(&a, &a, &mut BTreeMap::new()).is_empty());
    }
}
