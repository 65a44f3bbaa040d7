//! One test per `fixtures/differentiate/<case>.bir`.
//!
//! A fixture is a graph; its float constants are differentiated for. One file buys: a snapshot of the gradient graph,
//! verification, an exact round trip through the text format, gradients against finite differences in double
//! precision, and the forward kernels against tract.

#![allow(
    clippy::unwrap_used,
    clippy::neg_cmp_op_on_partial_ord,
    reason = "a test; what is not a number must fail as well"
)]

mod common;

use basisopt::ir::infer::infer;
use basisopt::ir::op::Op;
use basisopt::ir::{Graph, parse, print, verify};
use basisopt::passes::Executor;
use basisopt::train::differentiate::{Differentiated, Request, differentiate, frontier};
use basisopt::train::exec::{Plan, Program};
use basisopt::train::lower::raise;
use common::FreshExecutor;
use common::fixtures::{cases, numbers, parameters};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::Path;

/// Images that a program runs side by side.
const LANES: usize = 16;
/// Step of a central difference in double precision: rounding and curvature weigh about the same.
const STEP: f64 = 1e-5;

fn main() {
    let arguments = Arguments::from_args();
    let cases = cases();
    let mut trials = vec![Trial::test("there are fixtures", {
        let n = cases.len();
        move || if n > 50 { Ok(()) } else { Err(format!("only {n}").into()) }
    })];
    for case in cases {
        let name = case.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        trials.push(Trial::test(name, move || run_case(&case)));
    }
    trials.push(Trial::test("a Dropout that drops is refused", dropouts_are_refused));
    libtest_mimic::run(&arguments, trials).exit();
}

/// In training a `Dropout` is not the identity: neither the gradient nor the executor takes it for that, nor do steps of
/// operator sets that have no form of it but the newer one.
fn dropouts_are_refused() -> Result<(), Failed> {
    let with = |opset: i64, dropout: &str| {
        format!(
            "graph @g<opset={opset}>(%x: f32[N,4], %flag: bool[]) -> (%y) {{
               %w = f32[1,4] randn(seed=1)
               %a = Add(%x, %w)
               %ratio = f32[] [0.5]
               %on = bool[] [true]
               %off = bool[] [false]
               %d = {dropout}
               %y = Relu(%d)
             }}"
        )
    };
    for (opset, dropout, words) in [
        (17, "Dropout(%a, %ratio, %on)", Some("in training mode")),
        (17, "Dropout(%a, %ratio, %flag)", Some("training_mode is not constant")),
        (17, "Dropout(%a, %ratio, %off)", None),
        (17, "Dropout(%a, %ratio)", None),
        (9, "Dropout(%a)", None),
        (6, "Dropout(%a)", Some("without is_test=1")),
        (6, "Dropout<is_test=0>(%a)", Some("without is_test=1")),
        (6, "Dropout<is_test=1>(%a)", None),
    ] {
        let mut graph = parse::parse(&with(opset, dropout)).map_err(|e| e.to_string())?;
        infer(&mut graph)?;
        let y = graph.outputs().to_vec();
        let request = Request { targets: y.clone(), parameters: vec![graph.find_value("w").ok_or("no w")?] };
        let mut raised = graph.clone();
        let raised = raise(&mut raised).err().map(|e| e.to_string());
        let found = [
            ("gradient", differentiate(&graph, &request).err().map(|e| e.to_string()), words),
            (
                "executor",
                Program::<f32>::compile(&graph, &Plan::default()).err().map(|e| e.to_string()),
                words,
            ),
            ("raised", raised, words.filter(|_| opset < 7)),
        ];
        for (what, found, words) in found {
            let is_right = match (&found, words) {
                (None, None) => true,
                (Some(found), Some(words)) => {
                    ["\"d\"", words, "evaluation mode"].iter().all(|w| found.contains(w))
                }
                _ => false,
            };
            if !is_right {
                return Err(format!("{what} of {dropout}, operator set {opset}: {found:?}").into());
            }
        }
        // What is before it can still be trained against.
        let a = graph.find_value("a").ok_or("no a")?;
        let expected = if words.is_some() { vec![a] } else { y };
        if frontier(&graph, &request.parameters) != expected {
            return Err(format!("{dropout}: the wrong values can be trained against").into());
        }
    }
    Ok(())
}

fn run_case(path: &Path) -> Result<(), Failed> {
    let text = std::fs::read_to_string(path)?;
    let mut graph = parse::parse(&text).map_err(|e| e.to_string())?;
    infer(&mut graph)?;
    verify(&graph).map_err(|v| v.to_string())?;
    let request = Request { targets: graph.outputs().to_vec(), parameters: parameters(&graph) };
    let mut derived = differentiate(&graph, &request)?;
    infer(&mut derived.graph)?;
    verify(&derived.graph).map_err(|v| v.to_string())?;
    let printed = print::print(&derived.graph);
    let again = parse::parse(&printed).map_err(|e| e.to_string())?;
    if print::print(&again) != printed {
        return Err("the gradient graph does not survive a round trip through text".into());
    }
    snapshot(path, &derived, &printed);
    if !derived.unreached.is_empty() {
        return Err(format!("no gradient for {:?}", derived.unreached).into());
    }
    check_gradient(&graph, &derived)?;
    check_forward(&graph)
}

fn snapshot(path: &Path, derived: &Differentiated, printed: &str) {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let summed: Vec<&str> = derived.summed.iter().map(String::as_str).collect();
    insta::with_settings!({
        snapshot_path => path.parent().unwrap_or(path),
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        insta::assert_snapshot!(name.as_ref(), format!("summed over the batch: {}\n{printed}", summed.join(", ")));
    });
}

/// ⟨gradient, d⟩ against (L(θ + hd) − L(θ − hd))/2h, for a random direction d in all parameters at once and for one
/// in each of them, L a random linear function of the outputs of all images.
fn check_gradient(graph: &Graph, derived: &Differentiated) -> Result<(), Failed> {
    let plan = Plan { parameters: derived.parameters.clone(), summed: derived.summed.clone() };
    let backward: Program<f64> = Program::compile(&derived.graph, &plan)?;
    let forward: Program<f64> = Program::compile(graph, &Plan { summed: Default::default(), ..plan })?;
    let inputs: Vec<Vec<f64>> = backward
        .inputs()
        .iter()
        .enumerate()
        .map(|(i, port)| numbers(7 + i as u64, port.len() * LANES))
        .collect();
    let n_inputs = forward.inputs().len();
    let loss = |values: &[Vec<f64>]| {
        let mut shared = forward.shared();
        shared.parameters_mut().clone_from_slice(values);
        forward.prepare(&mut shared);
        let (mut workspace, mut sums) = (forward.workspace(), forward.sums());
        let slices: Vec<&[f64]> = inputs[..n_inputs].iter().map(Vec::as_slice).collect();
        forward.run(&slices, &shared, &mut workspace, &mut sums);
        let mut total = 0.0;
        for (i, seed) in inputs[n_inputs..].iter().enumerate() {
            let y = forward.output(i, &workspace).unwrap();
            assert_eq!(y.len(), seed.len());
            total += y.iter().zip(seed).map(|(a, b)| a * b).sum::<f64>();
        }
        total
    };
    let mut shared = backward.shared();
    let (mut workspace, mut sums) = (backward.workspace(), backward.sums());
    let slices: Vec<&[f64]> = inputs.iter().map(Vec::as_slice).collect();
    backward.run(&slices, &shared, &mut workspace, &mut sums);
    backward.finish(&mut sums, &mut shared);
    let values = shared.parameters().to_vec();
    let n_targets = graph.outputs().len();
    let gradients: Vec<&[f64]> = (0..values.len())
        .map(|i| backward.total(n_targets + i, &sums).ok_or("a gradient that is no sum over the batch"))
        .collect::<Result<_, _>>()?;
    for which in (0..values.len()).map(Some).chain([None]) {
        let direction: Vec<Vec<f64>> = values
            .iter()
            .enumerate()
            .map(|(i, v)| {
                if which.is_none_or(|w| w == i) {
                    numbers(99 + i as u64, v.len())
                } else {
                    vec![0.0; v.len()]
                }
            })
            .collect();
        let moved = |h: f64| -> Vec<Vec<f64>> {
            let step = |(v, d): (&Vec<f64>, &Vec<f64>)| v.iter().zip(d).map(|(v, d)| v + h * d).collect();
            values.iter().zip(&direction).map(step).collect()
        };
        let numeric = (loss(&moved(STEP)) - loss(&moved(-STEP))) / (2.0 * STEP);
        let analytic: f64 = gradients
            .iter()
            .zip(&direction)
            .map(|(g, d)| g.iter().zip(d.iter()).map(|(g, d)| g * d).sum::<f64>())
            .sum();
        // Sums of up to ten thousand terms of size one: h² of curvature, and rounding over h.
        let scale = numeric.abs().max(analytic.abs()).max(1.0);
        if !((numeric - analytic).abs() <= 2e-7 * scale) {
            let name = which.map_or("all parameters", |i| &derived.parameters[i]);
            return Err(format!("{name}: gradient {analytic:.12}, finite difference {numeric:.12}").into());
        }
    }
    Ok(())
}

/// The outputs of the first image, in single precision, against tract's.
fn check_forward(graph: &Graph) -> Result<(), Failed> {
    // tract has one form of batch normalisation only; the other one's forward pass is held by its gradient.
    let in_training = |op: &Op| matches!(op, Op::BatchNormalization(op) if op.training_mode == 1);
    if graph.topological().iter().any(|&id| in_training(&graph.node(id).op)) {
        return Ok(());
    }
    let mut executor = FreshExecutor;
    // Not everything that can be trained can be run by tract.
    let Ok(example) = executor.example_inputs(graph, 3) else { return Ok(()) };
    let Ok(expected) = executor.run(graph, &example) else { return Ok(()) };
    let program: Program<f32> = Program::compile(graph, &Plan::default())?;
    let lanes: Vec<Vec<f32>> = example
        .iter()
        .zip(program.inputs())
        .map(|(tensor, port)| {
            let values = tensor.to_f32s().unwrap();
            values[..port.len()].iter().flat_map(|&v| [v; LANES]).collect()
        })
        .collect();
    let slices: Vec<&[f32]> = lanes.iter().map(Vec::as_slice).collect();
    let (shared, mut workspace, mut sums) = (program.shared(), program.workspace(), program.sums());
    program.run(&slices, &shared, &mut workspace, &mut sums);
    for (i, (expected, port)) in expected.iter().zip(program.outputs()).enumerate() {
        let expected = expected.to_f32s()?;
        let found = program.output(i, &workspace).ok_or("an output that does not depend on the input")?;
        let scale = expected.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
        for (k, (&e, lanes)) in expected[..port.len()].iter().zip(found.chunks_exact(LANES)).enumerate() {
            if lanes.iter().any(|&f| !((f - e).abs() <= 2e-5 * scale)) {
                return Err(format!("{}[{k}]: {} for tract's {e}", port.name, lanes[0]).into());
            }
        }
    }
    Ok(())
}
