//! A checked-in table of what the network in `fixtures/` costs under pipelines that people use: a
//! change that moves a rank or a multiply-add shows in review. Latencies are never in it.

mod common;

use basisopt::ir::infer::{conv_geometry, linear_geometry};
use basisopt::ir::{Graph, Op};
use basisopt::onnx::Model;
use basisopt::{Manager, NoObserver, Pipeline, Registry};
use std::fmt::Write as _;

fn parameters(graph: &Graph) -> usize {
    let tensors = graph.node_ids().filter_map(|id| match &graph.node(id).op {
        Op::Constant(t) if t.dtype().is_float() => Some(t.len()),
        _ => None,
    });
    tensors.sum()
}

fn multiply_adds(graph: &Graph) -> u64 {
    let ids = graph.node_ids();
    let macs = ids.filter_map(|id| {
        conv_geometry(graph, id).and_then(|g| g.macs).or_else(|| linear_geometry(graph, id)?.macs)
    });
    macs.sum()
}

#[test]
fn the_fixture_network_costs_what_it_did() {
    let mut table = String::new();
    let pipelines = [
        "dead-code",
        "@fold",
        "@fold,factorize-conv:energy=0.95",
        "@fold,factorize-conv:energy=0.9",
        "@fold,factorize-conv:energy=0.9:multiple=8,factorize-linear:energy=0.9",
        "@fold,factorize-conv:ratio=0.5",
        "factorize-conv:energy=0.63:guard=off",
        "@fold,factorize-conv:energy=0.9,merge-factors",
    ];
    for text in pipelines {
        let mut model = Model::read(common::root().join("fixtures/models/glyphnet.onnx")).unwrap();
        let pipeline = Pipeline::parse(text, &Registry::builtin()).unwrap();
        let report = Manager::default().run(&mut model.graph, &pipeline, &mut NoObserver).unwrap();
        let ranks: Vec<String> =
            report.remarks().filter(|r| r.code == "factored").map(|r| r.values["rank"].to_string()).collect();
        writeln!(table, "{text}").unwrap();
        writeln!(
            table,
            "  {} parameters, {} multiply-adds, ranks {}",
            parameters(&model.graph),
            multiply_adds(&model.graph),
            if ranks.is_empty() { "-".to_owned() } else { ranks.join(" ") }
        )
        .unwrap();
    }
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(common::root().join("fixtures/models"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("glyphnet-costs", table));
}
