//! The fused pair on the layers of VGG-16 at a fifth of the multiply-adds: one image, one thread.
//! Throughput is in multiply-adds.

use basisopt_kernels::{Pair, PairEpilogue, PairShape};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

/// Input channels, rank, output channels, side of the image.
const LAYERS: [(usize, usize, usize, usize); 9] = [
    (3, 8, 64, 224),
    (64, 10, 64, 224),
    (64, 20, 128, 112),
    (128, 39, 128, 112),
    (128, 39, 256, 56),
    (256, 52, 256, 56),
    (256, 77, 512, 28),
    (512, 77, 512, 28),
    (512, 77, 512, 14),
];

fn layers(c: &mut Criterion) {
    let mut group = c.benchmark_group("pair");
    group.sample_size(20).warm_up_time(std::time::Duration::from_millis(300));
    for (n_in, rank, n_out, side) in LAYERS {
        let shape = PairShape {
            n_in,
            rank,
            n_out,
            input: [side; 2],
            output: [side; 2],
            kernel: [3; 2],
            strides: [1; 2],
            dilations: [1; 2],
            pads: [1; 2],
        };
        let values = |n: usize| -> Vec<f32> { (0..n).map(|i| (i % 13) as f32 / 13.0 - 0.5).collect() };
        let pair = Pair::new(shape, &values(rank * n_in * 9), None, &values(n_out * rank), None);
        let pair = pair.expect("weights as long as the shape says");
        let x = values(shape.n_inputs());
        let mut y = values(shape.n_outputs());
        let epilogue = PairEpilogue { add: None, clamp: Some((0.0, f32::INFINITY)) };
        group.throughput(Throughput::Elements(shape.n_macs() as u64));
        group.bench_function(format!("{n_in}-{rank}-{n_out} at {side}x{side}"), |b| {
            b.iter(|| pair.forward(1, black_box(&x), &mut y, &epilogue, 1));
        });
    }
    group.finish();
}

criterion_group!(benches, layers);
criterion_main!(benches);
