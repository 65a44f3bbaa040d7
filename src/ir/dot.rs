//! Graphs to Graphviz.

use crate::graph::{Graph, Node, NodeId, ValueId, ValueType};
use crate::op::Op;
use crate::print::value_name;
use std::fmt::Write as _;

/// What a drawing shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DotOptions {
    /// Constants as notes of their own. Without them, a node tells the type of its weights.
    pub constants: bool,
}

/// The graph in the language of Graphviz: pipe it through `dot -Tsvg`.
///
/// Nodes are labelled with operator and name, edges with the type of what flows along them; inputs
/// and outputs are ellipses. Nodes that a pass made are coloured, if there are others: a graph that
/// was not imported has no old nodes to tell them from. Dashed edges are captures.
pub fn dot(graph: &Graph, options: &DotOptions) -> String {
    let mut out = String::from("digraph ");
    quote(&mut out, &graph.name);
    out.push_str(" {\n");
    out.push_str("  node [shape=box, style=\"rounded,filled\", fillcolor=white, fontname=\"Helvetica\", fontsize=10];\n");
    out.push_str("  edge [fontname=\"Helvetica\", fontsize=8, color=\"#606060\"];\n");
    let is_imported = graph.node_ids().any(|id| graph.node(id).origin.is_some());
    for id in graph.node_ids() {
        let node = graph.node(id);
        if is_drawn(graph, options, id) {
            let _ = write!(out, "  n{} [label=", id.index());
            quote(&mut out, &label(graph, options, id, node));
            out.push_str(style(node, is_imported));
            out.push_str("];\n");
        }
    }
    for id in graph.node_ids() {
        let slots = graph.node_inputs(id);
        let n_captures = if let Op::Opaque(op) = &graph.node(id).op { op.n_captures } else { 0 };
        let first_capture = slots.len().saturating_sub(n_captures);
        for (slot, value) in slots.into_iter().enumerate() {
            if let Some(value) = value.filter(|v| is_drawn(graph, options, v.node)) {
                let style = if slot >= first_capture { ", style=dashed" } else { "" };
                edge(&mut out, graph, value, &format!("n{}", id.index()), style);
            }
        }
    }
    for (i, &value) in graph.outputs().iter().enumerate() {
        let name = graph.get(value.node).and_then(|n| n.outputs.get(value.port as usize)).map(|v| &v.name);
        let _ = write!(out, "  o{i} [shape=ellipse, label=");
        quote(&mut out, &value_name(name.map_or("", String::as_str)));
        out.push_str("];\n");
        edge(&mut out, graph, value, &format!("o{i}"), "");
    }
    out.push_str("}\n");
    out
}

/// Constants are left out unless they are asked for or more than a weight.
fn is_drawn(graph: &Graph, options: &DotOptions, id: NodeId) -> bool {
    graph.get(id).is_some_and(|node| {
        !matches!(node.op, Op::Constant(_))
            || options.constants
            || node.overridable
            || graph.is_output(ValueId::of(id))
    })
}

fn style(node: &Node, is_imported: bool) -> &'static str {
    match &node.op {
        Op::Input => ", shape=ellipse",
        Op::Constant(_) if is_imported && node.origin.is_none() => {
            ", shape=note, style=filled, fillcolor=\"#ffe9c7\""
        }
        Op::Constant(_) => ", shape=note, style=filled, fillcolor=\"#f0f0f0\"",
        _ if is_imported && node.origin.is_none() => ", fillcolor=\"#ffe9c7\", color=\"#c77700\"",
        Op::Opaque(_) => ", style=\"rounded,filled,dashed\"",
        _ => "",
    }
}

fn label(graph: &Graph, options: &DotOptions, id: NodeId, node: &Node) -> String {
    let name = value_name(node.label());
    match &node.op {
        Op::Input => name,
        Op::Constant(t) => {
            format!("{name}\n{}", ValueType::fixed(t.dtype(), t.shape()))
        }
        op => {
            let domain = op.domain();
            let mut label = if domain.is_empty() { String::new() } else { format!("{domain}::") };
            let _ = write!(label, "{}\n{name}", op.op_type());
            // The weights with axes tell what the node does; vectors do not.
            for value in graph.node_inputs(id).into_iter().flatten() {
                if !is_drawn(graph, options, value.node)
                    && let Some(weight) = graph.constant(value).filter(|t| t.shape().len() > 1)
                {
                    let _ = write!(label, "\n{}", ValueType::fixed(weight.dtype(), weight.shape()));
                }
            }
            label
        }
    }
}

fn edge(out: &mut String, graph: &Graph, value: ValueId, to: &str, style: &str) {
    let _ = write!(out, "  n{} -> {to} [label=", value.node.index());
    let ty = graph.get(value.node).and_then(|n| n.outputs.get(value.port as usize)).map(|v| &v.ty);
    match ty.filter(|ty| **ty != ValueType::default()) {
        Some(ty) => quote(out, &ty.to_string()),
        None => quote(out, ""),
    }
    let _ = writeln!(out, "{style}];");
}

/// A quoted Graphviz string; control characters other than line breaks are dropped.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out.push('"');
}
