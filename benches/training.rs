//! The trainer's kernels and a whole step, by criterion: `cargo bench --bench training`.
//!
//! Throughput is in multiply-adds for kernels and in images for steps. Against PyTorch: `benches/training_peer.py`.

use basisopt::onnx::Model;
use basisopt::passes::{cost, trainable};
use basisopt::train::examples::Chunk;
use basisopt::train::task::{Objective, Reference, Task};
use basisopt::train::trainer::Trainer;
use basisopt::{Manager, NoObserver, Pipeline, Registry};
use basisopt_kernels::{Conv, ConvShape, Epilogue, LANES};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

/// A square convolution that keeps the size of its input.
fn shape(n_in: usize, n_out: usize, kernel: usize, size: usize) -> ConvShape {
    ConvShape {
        n_in,
        n_out,
        groups: 1,
        input: [1, size, size],
        output: [1, size, size],
        kernel: [1, kernel, kernel],
        strides: [1; 3],
        dilations: [1; 3],
        pads: [0, kernel / 2, kernel / 2],
    }
}

/// The convolutions of the paper's ResNet-56, whole and as a basis with its coefficients, on sixteen images.
fn kernels(c: &mut Criterion) {
    let numbers = |n: usize| -> Vec<f32> { (0..n).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect() };
    for (n_in, n_out, kernel, size) in [
        (16, 16, 3, 32),
        (16, 5, 3, 32),
        (5, 16, 1, 32),
        (32, 32, 3, 16),
        (32, 11, 3, 16),
        (11, 32, 1, 16),
        (64, 64, 3, 8),
        (64, 22, 3, 8),
        (22, 64, 1, 8),
    ] {
        let shape = shape(n_in, n_out, kernel, size);
        let conv = Conv::new(shape);
        let (x, w, dy) = (
            numbers(n_in * size * size * LANES),
            numbers(shape.n_weights()),
            numbers(n_out * size * size * LANES),
        );
        let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
        let mut group = c.benchmark_group(format!("{n_in}-{n_out} {kernel}x{kernel} on {size}x{size}"));
        group.throughput(Throughput::Elements((shape.n_macs() * LANES) as u64));
        group.bench_function("forward", |b| {
            b.iter(|| conv.forward(black_box(&x), &w, &mut y, &Epilogue::default()));
        });
        group.bench_function("input_grad", |b| {
            b.iter(|| conv.input_grad(black_box(&dy), &w, &mut dx, &Epilogue::default()));
        });
        group.bench_function("weight_grad", |b| {
            b.iter(|| conv.weight_grad(black_box(&dy), &x, &mut dw));
        });
        group.finish();
    }
}

/// Loss and gradient of 128 images by the network in `fixtures/`, factored to half of its ranks.
fn step(c: &mut Criterion) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/models/glyphnet.onnx");
    let mut model = Model::read(std::path::Path::new(path)).expect("the fixture network");
    let pipeline = Pipeline::parse("@fold,factorize-conv:ratio=0.5:guard=off", &Registry::builtin());
    let pipeline = pipeline.expect("a pipeline");
    Manager::default().run(&mut model.graph, &pipeline, &mut NoObserver).expect("factors");
    cost::pin(&mut model.graph, &[]);
    basisopt::ir::infer::infer(&mut model.graph).expect("types");
    let graph = &model.graph;
    let logits = graph.value(graph.outputs()[0]).name.clone();
    let task = Task {
        network: graph,
        reference: Reference::None,
        objectives: vec![(Objective::Labels { logits }, 1.0)],
        parameters: trainable(graph).expect("weights"),
        logits: None,
        norms: vec![],
        frames: vec![],
    };
    let mut trainer = Trainer::new(&task).expect("a trainer");
    let len = trainer.image_len() * LANES;
    let images: Vec<f32> = (0..len).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    let chunk = Chunk { images, labels: vec![Some(1); LANES], targets: vec![] };
    let batch = vec![chunk; 8];
    let mut group = c.benchmark_group("glyphnet");
    group.throughput(Throughput::Elements(128)).sample_size(20);
    group.bench_function("step of 128", |b| {
        b.iter(|| trainer.gradient(black_box(&batch)).expect("a gradient"))
    });
    group.finish();
}

criterion_group!(benches, kernels, step);
criterion_main!(benches);
