//! The library as a toolchain embeds it: networks in memory, passes of its own, and what happens when they misbehave.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test, and passes that are meant to panic")]

mod common;

use basisopt::ir::graph::{Node, Use, Value};
use basisopt::ir::{Graph, Op, ValueId, op, print::print};
use basisopt::{
    CompressOptions, Dataset, EmbedError, Fidelity, Item, Model, Observer, OptimizeOptions, Outcome, Pass,
    PassContext, PassError, PassInfo, Pipeline, Preprocess, Recipe, Registry, Settings, compress, optimize,
    parse,
};
use common::program::Bench;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const PIPELINE: &str = "@fold,factorize-conv:energy=0.9,dead-code";

fn glyphnet() -> Model {
    let bytes = std::fs::read(common::root().join("fixtures/models/glyphnet.onnx")).unwrap();
    Model::from_bytes("glyphnet", bytes.into(), None).unwrap()
}

/// A pass that does to the graph whatever a test wants done.
struct Custom(fn(&mut Graph) -> Outcome);

impl std::fmt::Debug for Custom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Custom")
    }
}

static INFO: PassInfo = PassInfo {
    name: "custom",
    summary: "do what a test wants done",
    fidelity: Fidelity::Exact,
    options: &[],
    build: |_| Ok(Box::new(Custom(|_| Outcome::Unchanged))),
};

impl Pass for Custom {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }
    fn run(&self, graph: &mut Graph, _: &mut PassContext<'_>) -> Result<Outcome, PassError> {
        Ok((self.0)(graph))
    }
}

/// Runs it, after a pass that changes the network; the error, and that the model is as it was.
fn misbehaving(run: fn(&mut Graph) -> Outcome) -> String {
    let mut model = glyphnet();
    let before = print(&model.graph);
    let pipeline = parse("fold-batch-norm").unwrap().then_pass(Custom(run));
    let error = optimize(&mut model, &pipeline, OptimizeOptions::default()).unwrap_err();
    assert_eq!(print(&model.graph), before);
    error.to_string()
}

#[test]
fn a_pass_that_panics_is_an_error_and_the_model_is_as_it_was() {
    let error = misbehaving(|_| panic!("index {} is out of luck", 7));
    assert_eq!(error, "glyphnet: custom panicked: index 7 is out of luck (this is a bug in the pass)");
}

#[test]
fn a_pass_that_breaks_the_graph_is_an_error() {
    // An operator without the input that it needs.
    let error = misbehaving(|graph| {
        let id =
            graph.topological().into_iter().find(|&id| matches!(graph.node(id).op, Op::Conv(_))).unwrap();
        graph.set_input(Use { node: id, slot: 0 }, None);
        Outcome::of(1)
    });
    assert!(error.contains("after custom the network is not well-formed"), "{error}");
    // One that says it did nothing, and did.
    let error = misbehaving(|graph| {
        graph.metadata.insert("a".to_owned(), "b".to_owned());
        let v = graph.outputs()[0];
        graph.add_output(v);
        Outcome::Unchanged
    });
    assert!(error.contains("custom reported 0 rewrites but the network changed"), "{error}");
}

#[test]
fn a_pass_that_computes_something_else_is_an_error_where_it_claims_to_be_exact() {
    let error = misbehaving(|graph| {
        let output = graph.outputs()[0];
        let input = graph.node_input(output.node, 0).unwrap();
        let name = Value { name: "negated".to_owned(), ..Default::default() };
        let node = Node::new("negated", op::Neg {}.into(), vec![name]);
        let negated = graph.add_node(node, &[Some(input)]);
        graph.set_input(Use { node: output.node, slot: 0 }, Some(ValueId::of(negated)));
        Outcome::of(1)
    });
    assert!(error.contains("custom is exact, but output"), "{error}");
}

#[test]
fn passes_of_ones_own_have_names_in_pipelines() {
    let registry = Registry::builtin().with(&INFO);
    let pipeline = Pipeline::parse("custom,dead-code", &registry).unwrap();
    assert_eq!(pipeline.to_string(), "custom,dead-code");
    let error = parse("fold-batchnorm").unwrap_err().to_string();
    assert!(error.contains("did you mean \"fold-batch-norm\""), "{error}");
}

#[test]
fn bytes_that_are_no_model_are_an_error() {
    for bytes in [&b""[..], b"hello", &[0xff; 100]] {
        let error = Model::from_bytes("stream", bytes.to_vec().into(), None).unwrap_err().to_string();
        assert!(error.starts_with("stream: "), "{error}");
    }
}

#[test]
fn in_memory_as_on_disk() {
    let bench = Bench::new();
    bench.run(0, &["-q", "opt", "glyphnet.onnx", "-p", PIPELINE, "-o", "small.onnx"]);
    let mut model = glyphnet();
    let done = optimize(&mut model, &parse(PIPELINE).unwrap(), OptimizeOptions::default()).unwrap();
    assert!(model.to_bytes().unwrap().concat() == bench.read("small.onnx"), "other bytes");
    assert_eq!(done.after.file_bytes, bench.read("small.onnx").len() as u64);
    // And typed instead of text.
    let mut typed = glyphnet();
    let pipeline =
        parse("@fold").unwrap().then(&basisopt::passes::FACTORIZE_CONV, &[("energy", &0.9)]).unwrap();
    let pipeline = pipeline.then(&basisopt::passes::DEAD_CODE, &[]).unwrap();
    optimize(&mut typed, &pipeline, OptimizeOptions::default()).unwrap();
    assert!(typed.to_bytes().unwrap().concat() == bench.read("small.onnx"), "other bytes");
}

#[test]
fn images_in_memory_give_what_the_same_images_in_a_file_give() {
    let bench = Bench::new();
    let (shape, pixels) = noise();
    write_npy(&bench.dir.path().join("noise.npy"), &shape, &pixels);
    let args =
        "-q compress glyphnet.onnx --data noise.npy --budget macs=0.5 --samples 40 --no-bench -o small.onnx";
    bench.run(0, &args.split(' ').collect::<Vec<_>>());

    let mut model = glyphnet();
    let images = basisopt::ir::Tensor::from_f32s(shape, &pixels).unwrap();
    let data = Dataset::in_memory("noise", &images, None).unwrap();
    let recipe = Recipe { budget: Some("macs=0.5".to_owned()), ..Recipe::default() };
    let mut options = CompressOptions { untimed: true, ..CompressOptions::default() };
    options.share(&recipe, Some(data), Preprocess::default(), Some(40)).unwrap();
    let done = compress(&mut model, &recipe, options).unwrap();
    assert!(model.to_bytes().unwrap().concat() == bench.read("small.onnx"), "other bytes");
    assert!(done.layers.iter().any(|l| l.factored) && done.measured.n_compared > 0);
    let json = serde_json::to_value(&done).unwrap();
    assert_eq!(json["before"]["file_bytes"], bench.read("glyphnet.onnx").len());
}

#[test]
fn who_says_stop_gets_the_model_back() {
    let (mut model, (shape, pixels)) = (glyphnet(), noise());
    let before = print(&model.graph);
    let images = basisopt::ir::Tensor::from_f32s(shape, &pixels).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let stop = Arc::new(move || counter.fetch_add(1, Ordering::Relaxed) > 1);
    let recipe = Recipe::default();
    let mut options =
        CompressOptions { settings: Settings { stop, ..Settings::default() }, ..CompressOptions::default() };
    let data = Dataset::in_memory("noise", &images, None).unwrap();
    options.share(&recipe, Some(data), Preprocess::default(), None).unwrap();
    assert!(matches!(compress(&mut model, &recipe, options), Err(EmbedError::Interrupted)));
    assert_eq!(print(&model.graph), before);
    assert!(asked.load(Ordering::Relaxed) > 1);
}

/// Says stop as the factorisation begins.
#[derive(Debug, Default)]
struct StopsInTheMiddle {
    stop: Arc<AtomicBool>,
    begun: Vec<&'static str>,
}

impl Observer for StopsInTheMiddle {
    fn before(&mut self, _: usize, item: &Item, _: &Graph) {
        self.begun.push(item.info.name);
        self.stop.store(item.info.name == "factorize-conv", Ordering::Relaxed);
    }
}

#[test]
fn passes_hear_who_says_stop() {
    let mut model = glyphnet();
    let mut observer = StopsInTheMiddle::default();
    let flag = observer.stop.clone();
    let options = OptimizeOptions {
        settings: Settings { stop: Arc::new(move || flag.load(Ordering::Relaxed)), ..Settings::default() },
        observer: Some(&mut observer),
        ..OptimizeOptions::default()
    };
    let pipeline = parse("fold-batch-norm,factorize-conv:energy=0.9,dead-code").unwrap();
    assert!(matches!(optimize(&mut model, &pipeline, options), Err(EmbedError::Interrupted)));
    assert_eq!(observer.begun, ["fold-batch-norm", "factorize-conv"]);
    assert_eq!(print(&model.graph), print(&glyphnet().graph));
}

#[test]
fn labels_that_are_no_class_are_an_error_and_not_a_reason_for_another_budget() {
    let (mut model, (shape, pixels)) = (glyphnet(), noise());
    let images = basisopt::ir::Tensor::from_f32s(shape.clone(), &pixels).unwrap();
    // Classes are 0 to 13; these count from 1.
    let labels = (0..shape[0] as i64).map(|i| i % 14 + 1).collect();
    let data = Dataset::in_memory("noise", &images, Some(labels)).unwrap();
    let recipe = Recipe::default();
    let mut options = CompressOptions { untimed: true, ..CompressOptions::default() };
    options.share(&recipe, Some(data), Preprocess::default(), None).unwrap();
    let error = compress(&mut model, &recipe, options).unwrap_err().to_string();
    assert!(error.contains("label 14") && error.contains("0 to 13"), "{error}");
}

#[test]
fn images_that_do_not_fit_are_an_error_that_says_what_would() {
    let mut model = glyphnet();
    let images = basisopt::ir::Tensor::from_f32s(vec![4, 3, 8, 8], &[0.5; 4 * 3 * 64]).unwrap();
    let data = Dataset::in_memory("squares", &images, Some(vec![0; 4])).unwrap();
    let recipe = Recipe { budget: Some("macs=0.5".to_owned()), ..Recipe::default() };
    let mut options = CompressOptions::default();
    options.share(&recipe, Some(data), Preprocess::default(), None).unwrap();
    let error = compress(&mut model, &recipe, options).unwrap_err().to_string();
    assert!(
        error.contains("floats of shape [3, 8, 8] do not fit input `image`, which takes [3, 32, 32]"),
        "{error}"
    );
    let wrong = Dataset::in_memory("squares", &images, Some(vec![0; 3])).unwrap_err().to_string();
    assert!(wrong.contains("4 images and 3 labels"), "{wrong}");
}

/// 96 images of noise, as the fixture network takes them.
fn noise() -> (Vec<usize>, Vec<f32>) {
    let n = 96u32;
    let pixels = (0..n * 3 * 32 * 32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32);
    (vec![n as usize, 3, 32, 32], pixels.collect())
}

/// NumPy's format, version 1.0.
fn write_npy(path: &std::path::Path, shape: &[usize], values: &[f32]) {
    let shape = shape.iter().map(|n| format!("{n}, ")).collect::<String>();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}");
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}
