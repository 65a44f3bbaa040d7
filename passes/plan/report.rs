//! What is said about a factored layer.

use super::{Plan, Set};
use crate::driver::pass::PassContext;
use crate::ranks::break_even;
use basisopt_ir::Graph;

/// The remark and the metadata entry.
pub(super) fn factored(graph: &mut Graph, cx: &mut PassContext<'_>, set: &Set, plan: &Plan) {
    let layer = &set.layers[0];
    let full = layer.full_rank();
    let error = (plan.squared_error / plan.squared_norm).sqrt();
    let shared = match set.layers.len() {
        1 => String::new(),
        n => format!("; the weight is shared by {n} layers, and so are its factors"),
    };
    let per_group =
        if layer.groups > 1 { format!(" in each of {} groups", layer.groups) } else { String::new() };
    let cost =
        (plan.rank * (layer.n_rows + layer.n_columns)) as f64 / (layer.n_rows * layer.n_columns) as f64;
    let met = plan.fit.map_or(String::new(), |f| {
        let held_out = f.held_out.map_or(String::new(), |h| format!(" ({:.4} on inputs held out)", h.sqrt()));
        format!(", relative error of its output {:.4}{held_out}", f.error.sqrt())
    });
    let of = if plan.fit.is_some() { "output's variance" } else { "energy" };
    let message = format!(
        "rank {} of {full}{per_group}: {:.2} % of the {of}{met}, relative error of its weight {error:.4}, {:.1} % of the multiply-adds{shared}",
        plan.rank,
        100.0 * plan.energy,
        100.0 * cost,
    );
    let mut values = vec![
        ("rank", plan.rank as f64),
        ("full_rank", full as f64),
        ("break_even", break_even(layer.n_rows, layer.n_columns)),
        ("energy", plan.energy),
        ("discarded", plan.discarded),
        ("squared_error", plan.squared_error),
        ("squared_norm", plan.squared_norm),
        ("defect", plan.defect),
        ("cost", cost),
    ];
    if let Some(fit) = plan.fit {
        values.push(("output_error", fit.error));
        values.extend(fit.held_out.map(|h| ("held_out_error", h)));
        values.extend(fit.ridge.map(|r| ("ridge", r)));
        values.push(("n_rows", fit.n_rows as f64));
    }
    let method = plan.fit.map_or(String::new(), |f| format!(",\"method\":\"{}\"", f.method.name()));
    cx.applied(&layer.label, "factored", message, &values);
    for layer in &set.layers {
        // Six digits: what differs beyond them between machines is rounding.
        let note = format!(
            "{{\"rank\":{},\"full_rank\":{full},\"groups\":{},\"energy\":{:.6},\"error\":{error:.6}{method}}}",
            plan.rank, layer.groups, plan.energy
        );
        // Names of nodes need not be unique.
        let key = format!("basisopt.layer.{}", layer.label);
        let free = |k: &String| !graph.metadata.contains_key(k);
        let key = Some(key.clone()).filter(free).or_else(|| (2..).map(|n| format!("{key}.{n}")).find(free));
        graph.metadata.extend(key.map(|k| (k, note)));
    }
}
