//! The assertions for `insta`, used as a user's tests would use them.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of the test functions")]

use basisopt_ir::Graph;
use basisopt_passes::{Manager, NoObserver, Pipeline, Registry};
use basisopt_snapshot::{Settings, Snapshot, assert_graph, assert_snapshot};

const NETWORK: &str = "graph @net(%x: f32[1,8,9,9]) -> (%y) {
  %w = f32[16,8,3,3] lowrank(3, seed=1)
  %b = f32[2] [0.5, 6.0]
  %c = Conv@conv1<pads=[1,1,1,1]>(%x, %w)
  %y = Clip(%c)
}
";

fn factored(rank: usize) -> Graph {
    let mut graph = basisopt_ir::parse::parse(NETWORK).unwrap();
    let pipeline = Pipeline::parse(&format!("factorize-conv:rank={rank}"), &Registry::builtin()).unwrap();
    Manager::default().run(&mut graph, &pipeline, &mut NoObserver).unwrap();
    graph
}

fn snapshot() -> Snapshot {
    Snapshot::of_bytes("net.bir", NETWORK, None, "factorize-conv:rank=2", &Settings::default()).unwrap()
}

#[test]
fn a_graph_is_held_against_its_snapshot() {
    assert_graph!(factored(2));
    assert_graph!("named", factored(3));
}

#[test]
fn a_snapshot_may_tremble() {
    assert_snapshot!("pipeline", snapshot());
    // The last digit of a norm of the coefficients and of the energy, one up.
    let text = snapshot().text().to_owned();
    let energy = text.split(" % of the energy").next().and_then(|t| t.rsplit(' ').next()).unwrap().to_owned();
    let moved = format!("{:.2}", energy.parse::<f64>().unwrap() + 0.01);
    let moved = text.replace(&format!("{energy} % of the energy"), &format!("{moved} % of the energy"));
    assert_ne!(moved, text);
    assert_snapshot!("pipeline", moved);
}

#[test]
fn what_differs_fails() {
    // A failing assertion would leave a new snapshot beside the tests: the comparison alone is asked.
    let dir = tempfile::tempdir().unwrap();
    let of = |text: &str| {
        let file = dir.path().join("t.snap");
        std::fs::write(&file, format!("---\nsource: t\n---\n{text}")).unwrap();
        insta::Snapshot::from_file(&file).unwrap()
    };
    let settings = basisopt_snapshot::insta::settings();
    let text = snapshot().text().to_owned();
    let other = text.replace("rank 2 of 16", "rank 3 of 16");
    assert_ne!(text, other);
    assert!(settings.comparator().matches(&of(&text), &of(&text)));
    assert!(!settings.comparator().matches(&of(&text), &of(&other)));
}
