//! The cost table of a snapshot: whole numbers, one layer a line.

use basisopt_ir::Graph;
use basisopt_passes::cost::{self, Cost};
use std::fmt::Write as _;

/// The key under which a factor names the layer that it came from.
const ORIGIN: &str = "basisopt.origin";

/// What one layer of a network costs; several nodes once it is factored.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Layer {
    macs: Option<u64>,
    params: u64,
}

/// A network's cost, its layers by the name they had before they were factored.
pub(crate) struct Table {
    total: Cost,
    layers: Vec<(String, Layer)>,
}

impl Table {
    /// Adds up a graph; an open batch is 1, other open sizes are as given.
    pub(crate) fn of(graph: &Graph, dims: &[(String, usize)]) -> Self {
        // Ids in the copy that is added up are those of the graph.
        let total = cost::of_pinned(graph, dims);
        let mut layers: Vec<(String, Layer)> = Vec::new();
        for layer in &total.layers {
            let origin = graph.get(layer.node).and_then(|n| n.metadata.get(ORIGIN)).unwrap_or(&layer.label);
            let of_node = Layer { macs: layer.macs, params: layer.params };
            match layers.iter_mut().find(|(label, _)| label == origin) {
                Some((_, sum)) => {
                    sum.macs = sum.macs.zip(of_node.macs).and_then(|(a, b)| a.checked_add(b));
                    sum.params = sum.params.saturating_add(of_node.params);
                }
                None => layers.push((origin.clone(), of_node)),
            }
        }
        Self { total, layers }
    }

    fn layer(&self, name: &str) -> Option<Layer> {
        self.layers.iter().find(|(label, _)| label == name).map(|(_, layer)| *layer)
    }
}

/// Lines `NAME: … multiply-adds, … parameters`, each quantity as `before -> after` where it changed. Columns are not
/// aligned, so that a change of one layer changes one line.
pub(crate) fn lines(before: &Table, after: &Table) -> Vec<String> {
    let layer = |name: &str| describe(name, before.layer(name), after.layer(name));
    let gone_or_kept = before.layers.iter().map(|(name, _)| layer(name));
    let new =
        after.layers.iter().filter(|(name, _)| before.layer(name).is_none()).map(|(name, _)| layer(name));
    let mut out: Vec<String> = gone_or_kept.chain(new).collect();
    let of = |table: &Table| Layer { macs: table.total.macs, params: table.total.params };
    let nodes = change(&before.total.n_nodes.to_string(), &after.total.n_nodes.to_string());
    out.push(format!("{}, {nodes} nodes", describe("total", Some(of(before)), Some(of(after)))));
    out
}

fn describe(name: &str, before: Option<Layer>, after: Option<Layer>) -> String {
    let macs = |l: Option<Layer>| match l.map(|l| l.macs) {
        None => "none".to_owned(),
        Some(None) => "unknown".to_owned(),
        Some(Some(n)) => n.to_string(),
    };
    let params = |l: Option<Layer>| l.map_or_else(|| "none".to_owned(), |l| l.params.to_string());
    let mut out = format!("{name}: ");
    let _ = write!(
        out,
        "{} multiply-adds, {} parameters",
        change(&macs(before), &macs(after)),
        change(&params(before), &params(after))
    );
    out
}

fn change(before: &str, after: &str) -> String {
    if before == after { before.to_owned() } else { format!("{before} -> {after}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_added_up_by_origin_and_open_sizes_are_unknown() {
        let parse = |text: &str| basisopt_ir::parse::parse(text).unwrap();
        let graph = |name: &str| {
            parse(&format!(
                "graph @g(%x: f32[N,3,H,8]) -> (%y) {{
                   %w = f32[4,3,3,3] randn(seed=1)
                   %{name}: f32[N,4,H-2,6] = Conv(%x, %w)
                   %y = Relu(%{name})
                 }}"
            ))
        };
        // 4·3·9 multiply-adds at 6·6 places.
        let dims = [("H".to_owned(), 8)];
        let (a, b) = (Table::of(&graph("a"), &dims), Table::of(&graph("b"), &[]));
        let same = lines(&a, &a);
        assert_eq!(
            same,
            ["a: 3888 multiply-adds, 108 parameters", "total: 3888 multiply-adds, 108 parameters, 2 nodes"]
        );
        assert_eq!(
            lines(&a, &b),
            [
                "a: 3888 -> none multiply-adds, 108 -> none parameters",
                "b: none -> unknown multiply-adds, none -> 108 parameters",
                "total: 3888 -> unknown multiply-adds, 108 parameters, 2 nodes"
            ]
        );
    }
}
