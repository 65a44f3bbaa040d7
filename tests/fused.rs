//! The fused operator inside tract: which pairs become one, and that results stay the same.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of the test functions")]

use basisopt::ir::parse;
use basisopt::runtime::{BenchOptions, Engine, LoadOptions, Session, Source, profile, random_inputs};
use basisopt::{Manager, NoObserver, Pipeline, Registry, onnx};

/// Loads a network, stock (and not optimised by tract, so that the reference is plain) and fused, runs both and says
/// how many pairs were fused.
fn n_fused(text: &str, threads: usize) -> usize {
    let bytes = onnx::export_new(&parse::parse(text).unwrap()).unwrap();
    compare(&Source::from_bytes("test", bytes, None), threads)
}

fn compare(source: &Source, threads: usize) -> usize {
    let load = |engine, optimize| {
        let options = LoadOptions { engine, optimize, threads, ..LoadOptions::default() };
        Session::load(source, &options).unwrap()
    };
    let (mut stock, mut fused) = (load(Engine::Stock, false), load(Engine::Fused, true));
    let inputs = random_inputs(stock.inputs(), 3);
    let (expected, found) = (stock.run(&inputs).unwrap(), fused.run(&inputs).unwrap());
    assert_eq!(expected.len(), found.len());
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(expected.shape(), found.shape());
        let (expected, found) = (expected.to_f64s().unwrap(), found.to_f64s().unwrap());
        let scale = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        assert!(scale > 0.0, "an output of zeros says nothing");
        for (e, f) in expected.iter().zip(&found) {
            assert!((e - f).abs() <= 1e-5 * scale, "{f} for {e}, of a scale of {scale}");
        }
    }
    let (engine, n) = fused.engine();
    assert_eq!(engine == Engine::Fused, n > 0);
    assert_eq!(stock.engine(), (Engine::Stock, 0));
    n
}

/// A network of one pair with this between its convolutions and behind them.
fn pair(first: &str, between: &str, second: &str, behind: &str, result: &str) -> String {
    format!(
        "graph @pair(%x: f32[N,6,9,11]) -> ({result}) {{
  %w = f32[4,6,3,3] randn(seed=1)
  %b = f32[4] randn(seed=2)
  %v = f32[8,4,1,1] randn(seed=3)
  %d = f32[8] randn(seed=4)
  %low = f32[] uniform(-0.5, -0.5, seed=5)
  %high = f32[] uniform(2, 2, seed=6)
  %slope = f32[1,8,1,1] randn(seed=7)
  {first}
  {between}
  {second}
  {behind}
}}"
    )
}

const FIRST: &str = "%c = Conv<pads=[1,1,1,1]>(%x, %w, %b)";
const SECOND: &str = "%y = Conv(%c, %v, %d)";

#[test]
fn a_plain_pair_is_one_operator() {
    for threads in [1, 3] {
        assert_eq!(n_fused(&pair(FIRST, "", SECOND, "", "%y"), threads), 1);
    }
}

#[test]
fn strides_dilations_and_uneven_padding_are_fused() {
    for attributes in [
        "strides=[2,2], pads=[1,1,1,1]",
        "strides=[2,3], pads=[0,2,1,0]",
        "dilations=[2,3], pads=[2,3,2,3]",
        "strides=[3,2], dilations=[2,1]",
        "auto_pad=\"SAME_UPPER\", strides=[2,2]",
    ] {
        let first = format!("%c = Conv<{attributes}>(%x, %w, %b)");
        assert_eq!(n_fused(&pair(&first, "", SECOND, "", "%y"), 1), 1, "{attributes}");
    }
}

#[test]
fn a_clamp_and_a_residual_are_taken_in() {
    for behind in [
        "%z = Relu(%y)",
        "%z = Clip(%y, %low, %high)",
        "%z = Add(%y, %y2)\n  %y2 = Relu(%x8)\n  %x8 = Conv<pads=[1,1,1,1]>(%x, %w8)\n  %w8 = f32[8,6,3,3] randn(seed=8)",
        "%s = Add(%y, %slope)\n  %z = Relu(%s)",
        "%z = Mul(%y, %slope)",
        "%z = Add(%y, %y)",
    ] {
        // Definitions come before uses in the text format.
        let lines: Vec<&str> = behind.split("\n  ").collect();
        let behind = if lines.len() == 4 {
            lines.into_iter().rev().collect::<Vec<_>>().join("\n  ")
        } else {
            behind.to_owned()
        };
        assert_eq!(n_fused(&pair(FIRST, "", SECOND, &behind, "%z"), 1), 1, "{behind}");
    }
}

#[test]
fn large_pairs_run_on_several_threads() {
    let text = "graph @large(%x: f32[1,32,40,40]) -> (%y) {
  %w = f32[24,32,3,3] randn(seed=1)
  %v = f32[64,24,1,1] randn(seed=3)
  %c = Conv<pads=[1,1,1,1]>(%x, %w)
  %y = Conv(%c, %v)
}";
    assert_eq!(n_fused(text, 3), 1);
}

#[test]
fn what_is_no_pair_stays_two() {
    // Something between the two; something else that reads what is between; a second kernel that is
    // not 1×1; groups.
    let relu = ("%r = Relu(%c)", "%y = Conv(%r, %v, %d)");
    assert_eq!(n_fused(&pair(FIRST, relu.0, relu.1, "", "%y"), 1), 0);
    assert_eq!(n_fused(&pair(FIRST, "", SECOND, "%z = Relu(%c)", "%y, %z"), 1), 0);
    assert_eq!(n_fused(&pair(FIRST, "", SECOND, "", "%y, %c"), 1), 0);
    let wide = pair(FIRST, "", "%y = Conv(%c, %k, %d)", "", "%y")
        .replace("%v =", "%k = f32[8,4,3,3] randn(seed=9)\n  %v =");
    assert_eq!(n_fused(&wide, 1), 0);
    let grouped = "graph @grouped(%x: f32[1,6,9,11]) -> (%y) {
  %w = f32[4,3,3,3] randn(seed=1)
  %v = f32[8,4,1,1] randn(seed=3)
  %c = Conv<group=2>(%x, %w)
  %y = Conv(%c, %v)
}";
    assert_eq!(n_fused(grouped, 1), 0);
}

#[test]
fn one_dimension_will_do() {
    let text = "graph @line(%x: f32[2,6,50]) -> (%y) {
  %w = f32[4,6,5] randn(seed=1)
  %v = f32[8,4,1] randn(seed=3)
  %c = Conv<pads=[2,2], strides=[2]>(%x, %w)
  %y = Conv(%c, %v)
}";
    assert_eq!(n_fused(text, 1), 1);
}

#[test]
fn a_factorised_network_gives_the_same_outputs() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/models/glyphnet.onnx");
    let mut model = onnx::Model::read(path).unwrap();
    let pipeline = Pipeline::parse("@fold,factorize-conv:energy=0.9", &Registry::builtin()).unwrap();
    let report = Manager::default().run(&mut model.graph, &pipeline, &mut NoObserver).unwrap();
    // Seven of glyphnet's layers are ungrouped, one of them with a 1×1 kernel; the eighth has four groups.
    assert_eq!(report.remarks().filter(|r| r.pass == "factorize-conv" && r.code == "factored").count(), 8);
    let source = Source::from_bytes("small", model.to_bytes().unwrap().concat(), None);
    assert_eq!(compare(&source, 1), 7);
}

#[test]
fn a_profile_puts_factors_with_their_layer() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/models/glyphnet.onnx");
    let mut model = onnx::Model::read(path).unwrap();
    let whole = Source::from_file(path).unwrap();
    let pipeline = Pipeline::parse("@fold,factorize-conv:energy=0.9", &Registry::builtin()).unwrap();
    Manager::default().run(&mut model.graph, &pipeline, &mut NoObserver).unwrap();
    let small = Source::from_bytes("small", model.to_bytes().unwrap().concat(), None);
    let networks = [(&whole, Engine::Stock), (&small, Engine::Stock), (&small, Engine::Fused)];
    let options = BenchOptions { runs: 3, min_seconds: 0.0, ..BenchOptions::default() };
    let profiles = profile(&networks, &options, &mut |_| true).unwrap();
    for profile in &profiles {
        let layer = profile.iter().find(|l| l.layer == "/conv2/conv/Conv").unwrap();
        assert!(layer.ms > 0.0);
        assert!(profile.iter().all(|l| !l.layer.contains(".basis") && !l.layer.contains(".coefficients")));
    }
    let fused = profiles[2].iter().filter(|l| l.operators.iter().any(|o| o == "BasisConv")).count();
    assert_eq!(fused, 7);
}

#[test]
fn residual_networks_are_fused_at_any_batch() {
    // Two pairs in a row, each added to what went into it, and two that meet in one addition.
    let text = |batch: &str| {
        format!(
            "graph @residual(%x: f32[{batch},8,9,9]) -> (%z) {{
  %w1 = f32[3,8,3,3] randn(seed=1)
  %v1 = f32[8,3,1,1] randn(seed=2)
  %w2 = f32[4,8,3,3] randn(seed=3)
  %v2 = f32[8,4,1,1] randn(seed=4)
  %a1 = Conv<pads=[1,1,1,1]>(%x, %w1)
  %b1 = Conv(%a1, %v1)
  %c1 = Add(%b1, %x)
  %d1 = Relu(%c1)
  %a2 = Conv<pads=[1,1,1,1]>(%d1, %w2)
  %b2 = Conv(%a2, %v2)
  %c2 = Add(%d1, %b2)
  %d2 = Relu(%c2)
  %a3 = Conv<pads=[1,1,1,1]>(%d2, %w1)
  %b3 = Conv(%a3, %v1)
  %a4 = Conv<pads=[1,1,1,1]>(%d2, %w2)
  %b4 = Conv(%a4, %v2)
  %z = Add(%b3, %b4)
}}"
        )
    };
    for batch in ["1", "3", "N"] {
        for threads in [1, 2] {
            assert_eq!(n_fused(&text(batch), threads), 4, "batch {batch}");
        }
    }
}

#[test]
fn half_precision_stays_two() {
    let text = "graph @half(%x: f16[1,6,9,11]) -> (%y) {
  %w = f16[4,6,3,3] randn(seed=1)
  %v = f16[8,4,1,1] randn(seed=3)
  %c = Conv(%x, %w)
  %y = Conv(%c, %v)
}";
    let bytes = onnx::export_new(&parse::parse(text).unwrap()).unwrap();
    let source = Source::from_bytes("half", bytes, None);
    let session =
        Session::load(&source, &LoadOptions { engine: Engine::Fused, ..LoadOptions::default() }).unwrap();
    assert_eq!(session.engine(), (Engine::Stock, 0));
}

#[test]
fn the_fastest_engine_is_one_of_the_two() {
    let bytes = onnx::export_new(&parse::parse(&pair(FIRST, "", SECOND, "", "%y")).unwrap()).unwrap();
    let source = Source::from_bytes("pair", bytes, None);
    let session =
        Session::load(&source, &LoadOptions { engine: Engine::Fastest, ..LoadOptions::default() }).unwrap();
    assert!([(Engine::Stock, 0), (Engine::Fused, 1)].contains(&session.engine()));
}
