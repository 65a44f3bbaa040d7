//! One test per `fixtures/differentiate/<case>.bir`: the gradient in standard operators, run by tract on a batch of
//! images, against the trainer's executor in double precision.
//!
//! More cases stand here, of what a fixture has only one of: sizes that strides leave over, groups, ties, older operator
//! sets.

#![allow(
    clippy::unwrap_used,
    clippy::neg_cmp_op_on_partial_ord,
    reason = "a test; what is not a number must fail as well"
)]

mod common;

use basisopt::ir::infer::infer;
use basisopt::ir::{DType, Graph, Tensor, ValueId, parse, verify};
use basisopt::passes::cost;
use basisopt::runtime::{LoadOptions, Session, Source};
use basisopt::train::differentiate::{Differentiated, Request, differentiate};
use basisopt::train::exec::{Plan, Program};
use basisopt::train::lower::{lower, raise};
use common::fixtures::{cases, numbers, parameters};
use libtest_mimic::{Arguments, Failed, Trial};

/// Images that a program runs side by side, and the batch that tract is given.
const LANES: usize = 16;
/// How far tract's numbers may be from double precision, relative to the largest, in single precision and in half.
const SINGLE: f64 = 1e-4;
const HALF: f64 = 1e-2;

fn main() {
    let arguments = Arguments::from_args();
    let cases = cases();
    let mut trials = vec![Trial::test("there are fixtures", {
        let n = cases.len();
        move || if n > 50 { Ok(()) } else { Err(format!("only {n}").into()) }
    })];
    for case in cases {
        let name = case.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        trials.push(Trial::test(name, move || agrees(&std::fs::read_to_string(&case)?, SINGLE)));
    }
    for (name, text) in MORE {
        trials.push(Trial::test(format!("more::{name}"), move || agrees(text, SINGLE)));
    }
    trials.push(Trial::test("half precision between casts", || agrees(HALF_INSIDE, HALF)));
    trials.push(Trial::test("the first of equal maxima has the gradient", first_of_equal_maxima));
    trials.push(Trial::test("what cannot be lowered is listed", obstacles_are_listed));
    libtest_mimic::run(&arguments, trials).exit();
}

/// What the fixtures have not, or only one of.
const MORE: &[(&str, &str)] = &[
    (
        "strides that leave something over",
        "graph @g(%x: f32[N,3,8,9]) -> (%y) {
           %v = f32[4,3,1,1] randn(seed=1)
           %a = Conv(%x, %v)
           %w = f32[6,4,3,2] randn(seed=2)
           %y = Conv<strides=[3,2], dilations=[1,2], pads=[1,0,0,2]>(%a, %w)
         }",
    ),
    (
        "groups, strided and dilated",
        "graph @g(%x: f32[N,4,7,8]) -> (%y) {
           %v = f32[4,4,1,1] randn(seed=1)
           %a = Conv(%x, %v)
           %w = f32[6,2,3,3] randn(seed=2)
           %b = f32[6] randn(seed=3)
           %y = Conv<group=2, strides=[2,3], dilations=[2,1], pads=[2,1,1,1]>(%a, %w, %b)
         }",
    ),
    (
        "same padding",
        "graph @g(%x: f32[N,2,7,8]) -> (%y) {
           %v = f32[3,2,2,3] randn(seed=1)
           %a = Conv<auto_pad=\"SAME_UPPER\", strides=[2,2]>(%x, %v)
           %w = f32[2,3,3,2] randn(seed=2)
           %b = Conv<auto_pad=\"SAME_LOWER\">(%a, %w)
           %y = AveragePool<auto_pad=\"SAME_UPPER\", kernel_shape=[2,2], strides=[1,2]>(%b)
         }",
    ),
    (
        "a kernel of one by strides",
        "graph @g(%x: f32[N,2,6,7]) -> (%y) {
           %v = f32[3,2,1,1] randn(seed=1)
           %a = Conv<strides=[2,2]>(%x, %v)
           %w = f32[3,3,1,1] randn(seed=2)
           %y = Conv<strides=[2,3]>(%a, %w)
         }",
    ),
    (
        "a transposed convolution with strides and padding of its output",
        "graph @g(%x: f32[N,3,4,5]) -> (%y) {
           %v = f32[3,3,1,1] randn(seed=1)
           %a = Conv(%x, %v)
           %w = f32[3,2,3,3] randn(seed=2)
           %y = ConvTranspose<strides=[2,3], pads=[1,0,1,1], output_padding=[1,2], dilations=[1,1]>(%a, %w)
         }",
    ),
    (
        "maxima of windows that overlap, are dilated and rounded up",
        "graph @g(%x: f32[N,2,8,9]) -> (%y, %z) {
           %p = f32[1,2,8,9] randn(seed=1)
           %a = Add(%x, %p)
           %y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1>(%a)
           %z = MaxPool<kernel_shape=[2,3], dilations=[2,2], strides=[1,3]>(%a)
         }",
    ),
    (
        "means of windows rounded up, padding counted",
        "graph @g(%x: f32[N,2,8,9]) -> (%y) {
           %p = f32[1,2,8,9] randn(seed=1)
           %a = Add(%x, %p)
           %y = AveragePool<kernel_shape=[3,2], strides=[2,2], pads=[1,0,1,1], ceil_mode=1, count_include_pad=1>(%a)
         }",
    ),
    (
        "slices backwards and by steps",
        "graph @g(%x: f32[N,5,8,9]) -> (%y) {
           %p = f32[1,5,8,9] randn(seed=1)
           %a = Add(%x, %p)
           %s = i64[3] [-2, 1, 0]
           %e = i64[3] [-100, 100, 7]
           %axes = i64[3] [2, 3, 1]
           %k = i64[3] [-3, 4, 2]
           %y = Slice(%a, %s, %e, %axes, %k)
         }",
    ),
    (
        "a table of indices, some more than once",
        "graph @g(%x: f32[N,4,5]) -> (%y) {
           %p = f32[1,4,5] randn(seed=1)
           %a = Add(%x, %p)
           %i = i64[2,3] [0, 4, 4, -1, 1, 0]
           %y = Gather<axis=2>(%a, %i)
         }",
    ),
    (
        "interpolation down, and of an axis before the last",
        "graph @g(%x: f32[N,2,9,6]) -> (%y) {
           %p = f32[1,2,9,6] randn(seed=1)
           %a = Add(%x, %p)
           %s = f32[4] [1.0, 1.0, 0.5, 1.0]
           %b = Resize<mode=\"linear\">(%a, _, %s)
           %t = f32[4] [1.0, 1.0, 1.0, 2.5]
           %y = Resize<mode=\"linear\">(%b, _, %t)
         }",
    ),
    (
        "operator set 9",
        "graph @g<opset=9>(%x: f32[N,4,6,8]) -> (%y, %z) {
           %w = f32[4,4,3,3] randn(seed=1)
           %a = Conv<pads=[1,1,1,1]>(%x, %w)
           %s = f32[4] uniform(0.5, 1.5, seed=2)
           %b = f32[4] randn(seed=3)
           %m = f32[4] randn(seed=4)
           %v = f32[4] uniform(0.5, 1.5, seed=5)
           %n = BatchNormalization(%a, %s, %b, %m, %v)
           %d = Dropout<ratio=0.3>(%n)
           %c = Clip<min=-0.75, max=1.25>(%d)
           %p = Pad<pads=[0,0,1,0,0,0,0,2], value=0.5>(%c)
           %l = Slice<axes=[2,3], starts=[1,1], ends=[7,9]>(%p)
           %f = Softmax<axis=2>(%l)
           %q1, %q2 = Split<axis=1, split=[1,3]>(%l)
           %r = ReduceMean<axes=[2], keepdims=0>(%q2)
           %u = Unsqueeze<axes=[1]>(%r)
           %h = ReduceSum<axes=[2,3], keepdims=1>(%u)
           %k = f32[4] [1.0, 1.0, 2.0, 3.0]
           %g = Upsample<mode=\"nearest\">(%q1, %k)
           %o = Squeeze<axes=[1]>(%g)
           %i = Squeeze<axes=[1]>(%h)
           %y = Add(%o, %i)
           %z = LogSoftmax(%f)
         }",
    ),
    (
        "operator set 11",
        "graph @g<opset=11>(%x: f32[N,4,6,8]) -> (%y) {
           %w = f32[4,4,1,1] randn(seed=1)
           %a = Conv(%x, %w)
           %l = f32[] zeros
           %c = Clip(%a, %l)
           %q1, %q2 = Split<axis=1>(%c)
           %r = ReduceMax<axes=[3]>(%q1)
           %m = Mul(%r, %q2)
           %n = ReduceMean<axes=[1,2,3]>(%m)
           %y = Div(%m, %n)
         }",
    ),
];

/// As converters write half precision that keeps its inputs and outputs in single.
const HALF_INSIDE: &str = "graph @g(%x: f32[N,3,6,7]) -> (%y) {
       %in = Cast<to=f16>(%x)
       %w = f16[4,3,3,3] uniform(-0.5, 0.5, seed=1)
       %b = f16[4] randn(seed=2)
       %a = Conv<pads=[1,1,1,1]>(%in, %w, %b)
       %k = i64[] [2]
       %s = Pow(%a, %k)
       %e = f16[] [1.5]
       %one = f16[4,6,7] ones
       %t = Add(%s, %one)
       %q = Pow(%t, %e)
       %g = GlobalAveragePool(%q)
       %f = Flatten(%g)
       %out = Cast<to=f32>(%f)
       %v = f32[4,2] randn(seed=3)
       %y = MatMul(%out, %v)
     }";

/// Every window is of equal elements: all of the gradient goes to its first place.
fn first_of_equal_maxima() -> Result<(), Failed> {
    let text = "graph @g(%x: f32[N,1,4,4]) -> (%y) {
                  %p = f32[1,1,4,4] ones
                  %zero = f32[1,1,1,1] zeros
                  %n = Mul(%x, %zero)
                  %a = Add(%n, %p)
                  %y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(%a)
                }";
    agrees(text, SINGLE)?;
    let mut graph = parse::parse(text).map_err(|e| e.to_string())?;
    infer(&mut graph)?;
    raise(&mut graph)?;
    infer(&mut graph)?;
    let p = graph.find_value("p").ok_or("no p")?;
    let request = Request { targets: graph.outputs().to_vec(), parameters: vec![p] };
    let lowered = lower(&differentiate(&graph, &request)?.graph)?;
    let seed = Tensor::from_f32s(vec![1, 1, 2, 2], &[1.0, 2.0, 3.0, 4.0])?;
    let x = Tensor::full(DType::F32, vec![1, 1, 4, 4], 0.5)?;
    let found = session(&lowered, 1)?.run(&[x, seed])?;
    let expected = [1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    if found[1].to_f64s()? == expected { Ok(()) } else { Err(format!("{:?}", found[1].to_f64s()).into()) }
}

/// Every node that is in the way is named, with what would help.
fn obstacles_are_listed() -> Result<(), Failed> {
    let text = "graph @g(%x: f32[N,2,H,W]) -> (%y) {
                  %p = f32[1,2,1,1] ones
                  %a = Add(%x, %p)
                  %b = MaxPool<kernel_shape=[2,2]>(%a)
                  %y = AveragePool<kernel_shape=[2,2]>(%b)
                }";
    let mut graph = parse::parse(text).map_err(|e| e.to_string())?;
    infer(&mut graph)?;
    raise(&mut graph)?;
    infer(&mut graph)?;
    let message = lower(&gradient(&graph)?.graph).err().ok_or("it was lowered")?.to_string();
    for words in ["\"y.d\" (AveragePoolGrad)", "\"b.d\" (MaxPoolGrad)", "a size of \"a\"", "--dim"] {
        if !message.contains(words) {
            return Err(format!("{words} is not in: {message}").into());
        }
    }
    Ok(())
}

fn session(graph: &Graph, batch: usize) -> Result<Session, Failed> {
    let bytes = basisopt::onnx::export_new(graph)?;
    let options = LoadOptions { optimize: false, batch: Some(batch), ..LoadOptions::default() };
    Ok(Session::load(&Source::from_bytes("lowered", bytes, None), &options)?)
}

fn gradient(graph: &Graph) -> Result<Differentiated, Failed> {
    let request = Request { targets: graph.outputs().to_vec(), parameters: parameters(graph) };
    let mut derived = differentiate(graph, &request)?;
    infer(&mut derived.graph)?;
    Ok(derived)
}

/// By input or output, one image behind the other.
type Values = Vec<Vec<f64>>;

/// What the trainer was given, and the outputs and summed gradients that it computes, for this many images.
fn trainer(graph: &Graph, batch: usize) -> Result<(Values, Values), Failed> {
    let derived = gradient(graph)?;
    let n_targets = graph.outputs().len();
    let plan = Plan { parameters: derived.parameters.clone(), summed: derived.summed.clone() };
    let program: Program<f64> = Program::compile(&derived.graph, &plan)?;
    let ports = program.inputs().iter().enumerate();
    let mut inputs: Vec<Vec<f64>> =
        ports.map(|(i, port)| numbers(7 + i as u64, port.len() * LANES)).collect();
    // Lanes beyond the batch have no share in the gradient.
    for seed in inputs.iter_mut().skip(graph.inputs().len()) {
        seed.iter_mut().enumerate().filter(|(i, _)| i % LANES >= batch).for_each(|(_, v)| *v = 0.0);
    }
    let (mut shared, mut workspace, mut sums) = (program.shared(), program.workspace(), program.sums());
    let slices: Vec<&[f64]> = inputs.iter().map(Vec::as_slice).collect();
    program.run(&slices, &shared, &mut workspace, &mut sums);
    program.finish(&mut sums, &mut shared);
    let mut outputs = Vec::new();
    for i in 0..n_targets {
        outputs.push(by_image(program.output(i, &workspace).ok_or("an output that is no image's")?, batch));
    }
    for i in 0..derived.parameters.len() {
        outputs.push(program.total(n_targets + i, &sums).ok_or("a gradient that is no sum")?.to_vec());
    }
    Ok((inputs.iter().map(|lanes| by_image(lanes, batch)).collect(), outputs))
}

/// From one lane per image to one image behind the other.
fn by_image(lanes: &[f64], batch: usize) -> Vec<f64> {
    (0..batch).flat_map(|l| lanes.iter().skip(l).step_by(LANES).copied()).collect()
}

fn agrees(text: &str, tolerance: f64) -> Result<(), Failed> {
    let mut graph = parse::parse(text).map_err(|e| e.to_string())?;
    infer(&mut graph)?;
    // A batch of one is built into some.
    let open = |v: &ValueId| graph.value(*v).ty.shape.as_ref().is_some_and(|s| s[0].known().is_none());
    let batch = if graph.outputs().iter().all(open) { LANES } else { 1 };
    if batch == 1 {
        cost::pin(&mut graph, &[]);
        infer(&mut graph)?;
    }
    let (inputs, expected) = trainer(&graph, batch)?;

    let mut raised = graph.clone();
    raise(&mut raised)?;
    infer(&mut raised)?;
    let derived = gradient(&raised)?;
    let lowered = lower(&derived.graph)?;
    verify(&lowered).map_err(|v| v.to_string())?;
    if let Some(id) = lowered.node_ids().find(|&id| lowered.node(id).op.is_gradient()) {
        return Err(format!("{:?} is still there", lowered.node(id).op).into());
    }
    let mut tensors = Vec::new();
    for (&node, values) in lowered.inputs().iter().zip(&inputs) {
        let dims = lowered.value(ValueId::of(node)).ty.shape.clone().unwrap_or_default();
        let shape: Vec<usize> = dims.iter().map(|d| d.known().unwrap_or(batch)).collect();
        tensors.push(Tensor::from_f64s(DType::F32, shape, values)?);
    }
    let found = session(&lowered, batch)?.run(&tensors)?;
    for ((&value, expected), found) in lowered.outputs().iter().zip(&expected).zip(&found) {
        let found = found.to_f64s()?;
        let scale = expected.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
        let off = expected.iter().zip(&found).map(|(e, f)| (e - f).abs() / scale);
        let off = off.fold(0.0f64, |m, v| if v.is_nan() { f64::INFINITY } else { m.max(v) });
        if found.len() != expected.len() || !(off <= tolerance) {
            let name = &lowered.value(value).name;
            return Err(
                format!("{name}: off by {off:e}, {} for {} values", found.len(), expected.len()).into()
            );
        }
    }
    Ok(())
}
