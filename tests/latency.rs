//! Budgets of time, on a device whose clock is arithmetic: multiply-adds, output channels rounded up to a multiple of eight.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of the test functions")]

use basisopt::ir::{Graph, Tensor, parse};
use basisopt::passes::{
    Executor, ExecutorError, Manager, NoObserver, Pipeline, Program, Registry, Report, cost,
};

/// Takes a nanosecond per multiply-add, and so much for every convolution whatever its size.
struct Clock {
    per_layer: f64,
    n_timed: usize,
}

impl Executor for Clock {
    fn example_inputs(&mut self, graph: &Graph, _seed: u64) -> Result<Vec<Tensor>, ExecutorError> {
        let shape = |&node| {
            let ty = &graph.node(node).outputs[0].ty;
            Tensor::full(ty.dtype.unwrap(), ty.static_shape().unwrap(), 1.0)
                .map_err(|e| ExecutorError(e.to_string()))
        };
        graph.inputs().iter().map(shape).collect()
    }
    fn run(&mut self, _graph: &Graph, _inputs: &[Tensor]) -> Result<Vec<Tensor>, ExecutorError> {
        Err(ExecutorError("it only tells the time".to_owned()))
    }
    fn load(&mut self, _graph: &Graph) -> Result<Box<dyn Program>, ExecutorError> {
        Err(ExecutorError("it only tells the time".to_owned()))
    }
    fn seconds(&mut self, graphs: &[&Graph]) -> Result<Vec<f64>, ExecutorError> {
        self.n_timed += graphs.len();
        Ok(graphs.iter().map(|graph| self.time(graph)).collect())
    }
}

impl Clock {
    fn time(&self, graph: &Graph) -> f64 {
        let mut graph = graph.clone();
        basisopt::ir::infer::infer(&mut graph).unwrap();
        let layer = |layer: &cost::LayerCost| {
            let n_out = graph.constant_value(graph.node_input(layer.node, 1).unwrap()).unwrap().shape()[0];
            let padded = n_out.next_multiple_of(8) as f64 / n_out as f64;
            self.per_layer + 1e-9 * padded * layer.macs.unwrap() as f64
        };
        cost::of(&graph).layers.iter().map(layer).sum()
    }
}

const NETWORK: &str = "graph @three(%x: f32[1,32,16,16]) -> (%z) {
  %w1 = f32[32,32,3,3] randn(seed=1)
  %w2 = f32[32,32,3,3] randn(seed=2)
  %w3 = f32[48,32,3,3] randn(seed=3)
  %a = Conv<pads=[1,1,1,1]>(%x, %w1)
  %b = Relu(%a)
  %c = Conv<pads=[1,1,1,1]>(%b, %w2)
  %d = Relu(%c)
  %z = Conv<pads=[1,1,1,1]>(%d, %w3)
}";

fn run(pipeline: &str, clock: &mut Clock) -> Result<(Graph, Report), String> {
    let mut graph = parse::parse(NETWORK).unwrap();
    let pipeline = Pipeline::parse(pipeline, &Registry::builtin()).map_err(|e| e.to_string())?;
    let mut manager = Manager { executor: Some(clock), is_checked: false, ..Manager::default() };
    let report = manager.run(&mut graph, &pipeline, &mut NoObserver).map_err(|e| e.to_string())?;
    Ok((graph, report))
}

#[test]
fn a_budget_of_time_is_met_and_ranks_stand_at_the_ends_of_steps() {
    for share in [0.35, 0.5, 0.7] {
        let mut clock = Clock { per_layer: 0.0, n_timed: 0 };
        let whole = clock.time(&parse::parse(NETWORK).unwrap());
        let (graph, report) =
            run(&format!("allocate-ranks:target=latency:{share},factorize-conv"), &mut clock).unwrap();
        let found = clock.time(&graph) / whole;
        assert!(found <= 1.05 * share && found >= 0.6 * share, "{found} for {share}");
        for remark in report.remarks().filter(|r| r.code == "allotted") {
            // Ten ranks below break-even (288·32/320 = 28, 288·48/336 = 41) are timed, evenly spread. Of those
            // that take equally long only the largest is offered.
            let ends: &[usize] = match remark.values["full_rank"] as usize {
                32 => &[8, 16, 22, 28],
                _ => &[8, 16, 24, 32, 36, 41],
            };
            let rank = remark.values["rank"] as usize;
            assert!(ends.contains(&rank), "{}: rank {rank}", remark.node);
        }
    }
}

#[test]
fn equal_layers_are_timed_once() {
    let mut clock = Clock { per_layer: 0.0, n_timed: 0 };
    run("allocate-ranks:target=latency:0.5", &mut clock).unwrap();
    // Two shapes, whole and at ten ranks each; then the network, and pairs of networks for at most six trials.
    assert!((25..=35).contains(&clock.n_timed), "{}", clock.n_timed);
}

#[test]
fn what_cannot_be_made_faster_is_said_so() {
    // Two convolutions cost so much more than one that no factored layer is faster.
    let mut clock = Clock { per_layer: 1.0, n_timed: 0 };
    let error = run("allocate-ranks:target=latency:0.9", &mut clock).unwrap_err();
    assert!(error.contains("cannot be made faster here"), "{error}");
    let mut clock = Clock { per_layer: 0.0, n_timed: 0 };
    let error = run("allocate-ranks:target=latency:0.01", &mut clock).unwrap_err();
    assert!(error.contains("the least that was found is"), "{error}");
}

#[test]
fn a_time_in_milliseconds_is_a_share_of_what_the_network_takes() {
    let mut clock = Clock { per_layer: 0.0, n_timed: 0 };
    let whole_ms = 1e3 * clock.time(&parse::parse(NETWORK).unwrap());
    let (graph, _) =
        run(&format!("allocate-ranks:target=latency:{}ms,factorize-conv", 0.5 * whole_ms), &mut clock)
            .unwrap();
    assert!(1e3 * clock.time(&graph) <= 1.05 * 0.5 * whole_ms);
}

#[test]
fn without_a_clock_there_is_no_budget_of_time() {
    let mut graph = parse::parse(NETWORK).unwrap();
    let pipeline = Pipeline::parse("allocate-ranks:target=latency:0.5", &Registry::builtin()).unwrap();
    let error = Manager::default().run(&mut graph, &pipeline, &mut NoObserver).unwrap_err().to_string();
    assert!(error.contains("time cannot be measured here"), "{error}");
}
