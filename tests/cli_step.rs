//! Steps of training for other engines, and weights back from them, as a user has them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, outside of the test functions")]

mod common;

use basisopt::ir::{DType, Dim, Graph, Tensor, ValueId};
use basisopt::onnx::Model;
use basisopt::runtime::{LoadOptions, Session, Source};
use common::program::Bench;
use serde_json::Value;
use std::collections::BTreeMap;

fn graph(bytes: &[u8]) -> Graph {
    Model::from_bytes("m", bytes.to_vec().into(), None).unwrap().graph
}

/// All float constants by name.
fn weights(graph: &Graph) -> BTreeMap<String, Tensor> {
    let values = graph.node_ids().map(ValueId::of);
    let tensor = |v: ValueId| match &graph.node(v.node).op {
        basisopt::ir::Op::Constant(t) if t.dtype().is_float() => Some(t.clone()),
        _ => None,
    };
    values.filter_map(|v| Some((graph.value(v).name.clone(), tensor(v)?))).collect()
}

/// An `.npz` without compression, as `numpy.savez` writes it.
fn npz(arrays: &[(&str, &Tensor)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, tensor) in arrays {
        let code = match tensor.dtype() {
            DType::F16 => "<f2",
            DType::F64 => "<f8",
            DType::I64 => "<i8",
            _ => "<f4",
        };
        let shape: String = tensor.shape().iter().map(|d| format!("{d}, ")).collect();
        let header = format!("{{'descr': '{code}', 'fortran_order': False, 'shape': ({shape}), }}");
        let padded = format!("{header:<117}\n");
        let mut data = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        data.extend(padded.as_bytes());
        data.extend(&tensor.to_bytes().unwrap()[..]);
        let name = format!("{name}.npy");
        let mut crc = crc32(&data).to_le_bytes().to_vec();
        let size = u32::try_from(data.len()).unwrap().to_le_bytes();
        crc.extend([size, size].concat());
        let common =
            [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &crc, &(name.len() as u16).to_le_bytes(), &[0, 0]]
                .concat();
        let at = u32::try_from(out.len()).unwrap();
        out.extend([&b"PK\x03\x04"[..], &common, name.as_bytes(), &data].concat());
        let tail = [&[0; 10][..], &at.to_le_bytes()].concat();
        directory.extend([&b"PK\x01\x02\x14\x00"[..], &common, &tail, name.as_bytes()].concat());
    }
    let (n, at) = ((arrays.len() as u16).to_le_bytes(), u32::try_from(out.len()).unwrap().to_le_bytes());
    let size = u32::try_from(directory.len()).unwrap().to_le_bytes();
    out.extend(directory);
    out.extend([&b"PK\x05\x06\0\0\0\0"[..], &n, &n, &size, &at, &[0, 0]].concat());
    out
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |mut crc, &byte| {
        crc ^= u32::from(byte);
        (0..8).for_each(|_| crc = (crc >> 1) ^ (0xEDB8_8320 & (!(crc & 1)).wrapping_add(1)));
        crc
    })
}

fn write(bench: &Bench, name: &str, bytes: &[u8]) {
    std::fs::write(bench.dir.path().join(name), bytes).unwrap();
}

fn step(bench: &Bench, args: &[&str]) -> (Graph, Value) {
    let fixed = ["differentiate", "glyphnet.onnx", "-o", "step.onnx", "--format", "json"];
    let (out, _) = bench.run(0, &[&fixed[..], args].concat());
    (graph(&bench.read("step.onnx")), serde_json::from_str(&out).unwrap())
}

/// The outputs of a step by name, for so many images, in stock tract.
fn run(bench: &Bench, inputs: &[Tensor], n_images: usize) -> BTreeMap<String, Tensor> {
    let source = Source::from_file(bench.dir.path().join("step.onnx")).unwrap();
    let options = LoadOptions { batch: Some(n_images), optimize: false, ..LoadOptions::default() };
    let mut session = Session::load(&source, &options).unwrap();
    let names = session.outputs().to_vec();
    names.into_iter().zip(session.run(inputs).unwrap()).collect()
}

fn images(n: usize) -> Tensor {
    let values: Vec<f32> = (0..n * 3 * 32 * 32).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    Tensor::from_f32s(vec![n, 3, 32, 32], &values).unwrap()
}

#[test]
fn a_step_has_weights_as_inputs_and_gradients_as_outputs() {
    let bench = Bench::new();
    let (step, told) = step(&bench, &["--loss", "labels"]);
    let original = graph(&bench.read("glyphnet.onnx"));
    assert!(step.opset >= 18 && step.node_ids().all(|id| step.node(id).op.domain().is_empty()));
    let names: Vec<&str> = step.inputs().iter().map(|&n| step.value(ValueId::of(n)).name.as_str()).collect();
    assert_eq!(names.len(), original.inputs().len() + 1);
    assert_eq!(names.last(), Some(&"labels"));
    let batch = |g: &Graph| g.value(ValueId::of(g.inputs()[0])).ty.shape.clone().unwrap()[0].clone();
    assert_eq!(batch(&step), batch(&original), "the batch stays open");
    assert!(matches!(batch(&step), Dim::Symbolic(_)));
    let outputs: Vec<String> = step.outputs().iter().map(|&v| step.value(v).name.clone()).collect();
    let was: Vec<String> = original.outputs().iter().map(|&v| original.value(v).name.clone()).collect();
    assert_eq!(outputs[..was.len()], was[..]);
    assert_eq!(outputs[was.len()], "loss");
    let parameters = told["parameters"].as_array().unwrap();
    assert!(parameters.len() > 20);
    let values = weights(&original);
    for p in parameters {
        let (name, output) = (p["name"].as_str().unwrap(), p["output"].as_str().unwrap());
        assert_eq!(output, format!("{name}.grad"));
        assert!(outputs.contains(&output.to_owned()));
        let value = step.find_value(name).unwrap();
        assert!(step.node(value.node).overridable, "{name} is an input with a default");
        assert_eq!(weights(&step)[name].to_bytes().unwrap(), values[name].to_bytes().unwrap());
        let gradient = step.find_value(output).unwrap();
        assert_eq!(step.value(gradient).ty.static_shape().unwrap(), values[name].shape());
    }
}

/// A step down the gradient lowers the loss by what the gradient says: mathematics, whatever the engine.
#[test]
fn the_loss_falls_by_what_the_gradient_says() {
    let bench = Bench::new();
    let (_, told) = step(&bench, &["--loss", "labels"]);
    let labels = Tensor::from_i64s(vec![5], &[0, 3, 13, 7, 7]).unwrap();
    let inputs = [images(5), labels];
    let before = run(&bench, &inputs, 5);
    let mut moved = Vec::new();
    let (rate, mut expected) = (1e-3, 0.0);
    let values = weights(&graph(&bench.read("step.onnx")));
    for p in told["parameters"].as_array().unwrap() {
        let (name, output) = (p["name"].as_str().unwrap(), p["output"].as_str().unwrap());
        let gradient = before[output].to_f64s().unwrap();
        // Along the direction of the gradient, in proportion to its length over all parameters.
        expected += gradient.iter().map(|g| g * g).sum::<f64>();
        moved.push((name.to_owned(), gradient));
    }
    let at = |factor: f64, bench: &Bench| {
        let arrays: Vec<(String, Tensor)> = moved
            .iter()
            .map(|(name, gradient)| {
                let old = values[name].to_f64s().unwrap();
                let new: Vec<f64> =
                    old.iter().zip(gradient).map(|(v, g)| v + factor * g / expected.sqrt()).collect();
                (name.clone(), Tensor::from_f64s(DType::F32, values[name].shape().to_vec(), &new).unwrap())
            })
            .collect();
        let arrays: Vec<(&str, &Tensor)> = arrays.iter().map(|(n, t)| (n.as_str(), t)).collect();
        write(bench, "moved.npz", &npz(&arrays));
        bench.run(0, &["load-weights", "glyphnet.onnx", "moved.npz", "-o", "moved.onnx"]);
        bench.run(0, &["differentiate", "moved.onnx", "--loss", "labels", "-o", "step.onnx", "-q"]);
        run(bench, &inputs, 5)["loss"].to_f64s().unwrap()[0]
    };
    let slope = (at(rate, &bench) - at(-rate, &bench)) / (2.0 * rate);
    assert!((slope - expected.sqrt()).abs() < 0.02 * expected.sqrt(), "{slope} for {}", expected.sqrt());
}

#[test]
fn a_label_that_is_no_class_makes_the_loss_nan_and_not_a_better_one() {
    let bench = Bench::new();
    step(&bench, &["--loss", "labels", "--of", "*weight*|*.w"]);
    let loss = |labels: &[i64]| {
        let labels = Tensor::from_i64s(vec![2], labels).unwrap();
        run(&bench, &[images(2), labels], 2)["loss"].to_f64s().unwrap()[0]
    };
    assert!(loss(&[0, 13]).is_finite());
    assert!(loss(&[0, 14]).is_nan() && loss(&[-1, 3]).is_nan());
}

#[test]
fn other_losses_take_what_they_imitate() {
    let bench = Bench::new();
    let (distill, _) = step(&bench, &["--loss", "distill:temperature=2"]);
    let original = graph(&bench.read("glyphnet.onnx"));
    let logits = original.value(original.outputs()[0]).clone();
    let teacher = distill.find_value("teacher").unwrap();
    assert_eq!(distill.value(teacher).ty, distill.value(distill.find_value(&logits.name).unwrap()).ty);
    // One's own teacher leaves nothing to learn.
    let x = images(3);
    let zero = Tensor::full(DType::F32, vec![3, 14], 0.0).unwrap();
    let own = run(&bench, &[x.clone(), zero], 3)[&logits.name].clone();
    let loss = run(&bench, &[x.clone(), own.clone()], 3)["loss"].to_f64s().unwrap()[0];
    assert!(loss.abs() < 1e-6, "{loss}");
    let (_, told) = step(&bench, &["--loss", "match"]);
    assert_eq!(told["targets"][0]["name"], format!("{}.target", logits.name));
    let off: Vec<f32> = own.to_f32s().unwrap().iter().map(|v| v + 0.5).collect();
    let target = Tensor::from_f32s(vec![3, 14], &off).unwrap();
    let loss = run(&bench, &[x, target], 3)["loss"].to_f64s().unwrap()[0];
    assert!((loss - 0.25).abs() < 1e-4, "{loss}");
}

#[test]
fn normalisations_can_use_the_batch_and_tell_its_statistics() {
    let bench = Bench::new();
    let (given, told) = step(&bench, &["--loss", "labels"]);
    assert_eq!(told["statistics"].as_array().unwrap().len(), 0);
    let has_norm = |g: &Graph| g.node_ids().any(|id| g.node(id).op.op_type() == "BatchNormalization");
    assert!(has_norm(&given));
    let (batch, told) = step(&bench, &["--loss", "labels", "--norm", "batch"]);
    assert!(!has_norm(&batch), "in ONNX's own operators, which every engine runs alike");
    let statistics = told["statistics"].as_array().unwrap();
    assert!(!statistics.is_empty() && statistics.len().is_multiple_of(2));
    let labels = Tensor::from_i64s(vec![4], &[0, 1, 2, 3]).unwrap();
    let found = run(&bench, &[images(4), labels], 4);
    for pair in statistics {
        let (name, output) = (pair["name"].as_str().unwrap(), pair["output"].as_str().unwrap());
        assert_eq!(output, format!("{name}.batch"));
        assert_eq!(found[output].shape(), weights(&graph(&bench.read("glyphnet.onnx")))[name].shape());
    }
}

/// Of two normalisations of the images themselves, so that mean and variance by channel can be had from the images.
#[test]
fn statistics_of_the_batch_are_its_mean_and_its_variance() {
    let bench = Bench::new();
    let text = "graph @g(%x: f32[N,3,32,32]) -> (%y) {
                  %s = f32[3] uniform(0.5, 1.5, seed=1)
                  %b = f32[3] randn(seed=2)
                  %m = f32[3] randn(seed=3)
                  %v = f32[3] uniform(0.5, 1.5, seed=4)
                  %a = BatchNormalization(%x, %s, %b, %m, %v)
                  %two = f32[3,1,1] [1.0, 2.0, 4.0]
                  %z = Mul(%x, %two)
                  %s2 = f32[3] uniform(0.5, 1.5, seed=5)
                  %b2 = f32[3] randn(seed=6)
                  %m2 = f32[3] randn(seed=7)
                  %v2 = f32[3] uniform(0.5, 1.5, seed=8)
                  %c = BatchNormalization(%z, %s2, %b2, %m2, %v2)
                  %y = Add(%a, %c)
                }";
    write(&bench, "norms.bir", text.as_bytes());
    let args = ["differentiate", "norms.bir", "--loss", "match", "--norm", "batch", "-o", "step.onnx"];
    bench.run(0, &args);
    let n = 4;
    // Channels of different mean and spread, which the images of the other tests have not.
    let values: Vec<f64> = images(n).to_f64s().unwrap();
    let channel = |i: usize| i / (32 * 32) % 3;
    let values: Vec<f64> = values
        .iter()
        .enumerate()
        .map(|(i, v)| v * (1.0 + channel(i) as f64) + [3.0, -1.0, 0.5][channel(i)])
        .collect();
    let x = Tensor::from_f64s(DType::F32, vec![n, 3, 32, 32], &values).unwrap();
    let found = run(&bench, &[x.clone(), x], n);
    for (mean, variance, factors) in [("m", "v", [1.0, 1.0, 1.0]), ("m2", "v2", [1.0, 2.0, 4.0])] {
        for (c, factor) in factors.into_iter().enumerate() {
            let own: Vec<f64> = values
                .iter()
                .enumerate()
                .filter(|(i, _)| channel(*i) == c)
                .map(|(_, v)| v * factor)
                .collect();
            let count = own.len() as f64;
            let expected_mean = own.iter().sum::<f64>() / count;
            // Divided by the number of elements, not by one less: that of a population, as ONNX has it.
            let squares = own.iter().map(|v| (v - expected_mean) * (v - expected_mean));
            let expected_variance = squares.sum::<f64>() / count;
            for (name, expected) in [(mean, expected_mean), (variance, expected_variance)] {
                let found = found[&format!("{name}.batch")].to_f64s().unwrap()[c];
                // One in 4096 is what dividing by one less would make of a variance.
                let off = (found - expected).abs() / expected.abs();
                assert!(off < 2e-5, "{name}.batch[{c}]: {found} for {expected}");
            }
        }
    }
}

/// Half precision between casts, as converters write it, makes a step whose gradients are those of the network in single
/// precision but for rounding, each in the type of its weight.
#[test]
fn half_precision_between_casts_makes_a_step() {
    let bench = Bench::new();
    let network = |inside: &str| {
        format!(
            "graph @g(%x: f32[N,3,32,32]) -> (%y) {{
               %in = Cast<to={inside}>(%x)
               %w = {inside}[4,3,3,3] uniform(-0.5, 0.5, seed=1)
               %a = Conv<strides=[2,2]>(%in, %w)
               %r = Relu(%a)
               %g = GlobalAveragePool(%r)
               %f = Flatten(%g)
               %v = {inside}[4,5] randn(seed=2)
               %z = MatMul(%f, %v)
               %y = Cast<to=f32>(%z)
             }}"
        )
    };
    let inputs = [images(3), Tensor::from_i64s(vec![3], &[0, 4, 2]).unwrap()];
    let mut found = Vec::new();
    for inside in ["f16", "f32"] {
        write(&bench, "network.bir", network(inside).as_bytes());
        bench.run(0, &["differentiate", "network.bir", "--loss", "labels", "-o", "step.onnx"]);
        found.push(run(&bench, &inputs, 3));
    }
    for name in ["loss", "w.grad", "v.grad"] {
        let (half, single) = (&found[0][name], &found[1][name]);
        assert_eq!(half.dtype(), if name == "loss" { DType::F32 } else { DType::F16 }, "{name}");
        let (half, single) = (half.to_f64s().unwrap(), single.to_f64s().unwrap());
        let scale = single.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        for (h, s) in half.iter().zip(&single) {
            assert!((h - s).abs() < 1e-2 * scale, "{name}: {h} for {s}");
        }
    }
}

#[test]
fn weights_come_back_and_nothing_else_changes() {
    let bench = Bench::new();
    step(&bench, &["--loss", "labels"]);
    let original = bench.read("glyphnet.onnx");
    // Nothing new: the same bytes.
    let (out, _) = bench.run(0, &["load-weights", "glyphnet.onnx", "step.onnx", "-o", "same.onnx"]);
    assert!(out.contains(": 0 weights replaced"), "{out}");
    assert!(bench.read("same.onnx") == original);

    let before = weights(&graph(&original));
    let (name, old) = before.iter().find(|(_, t)| t.shape().len() == 4).unwrap();
    let values: Vec<f64> = old.to_f64s().unwrap().iter().map(|v| v * 1.5 + 0.25).collect();
    let shape = old.shape().to_vec();
    for dtype in [DType::F32, DType::F64, DType::F16] {
        let new = Tensor::from_f64s(dtype, shape.clone(), &values).unwrap();
        write(&bench, "new.npz", &npz(&[(name, &new)]));
        let args = ["load-weights", "glyphnet.onnx", "new.npz", "-o", "new.onnx", "--format", "json"];
        let told: Value = serde_json::from_str(&bench.run(0, &args).0).unwrap();
        assert_eq!((&told["replaced"], &told["kept"]), (&1.into(), &(before.len() - 1).into()));
        let after = graph(&bench.read("new.onnx"));
        let expected = Tensor::from_f64s(DType::F32, shape.clone(), &new.to_f64s().unwrap()).unwrap();
        for (other, tensor) in weights(&after) {
            let expected = if other == *name { &expected } else { &before[&other] };
            assert_eq!(tensor.to_bytes().unwrap(), expected.to_bytes().unwrap(), "{other}");
        }
        let printed = |g: &Graph| {
            let nodes = g.topological().into_iter().filter(|&id| !g.node(id).op.is_source());
            nodes.map(|id| (g.node(id).name.clone(), g.node(id).outputs.clone())).collect::<Vec<_>>()
        };
        assert_eq!(printed(&after), printed(&graph(&original)));
    }
    // And there again.
    write(&bench, "old.npz", &npz(&[(name, old)]));
    bench.run(0, &["load-weights", "new.onnx", "old.npz", "-o", "back.onnx"]);
    assert_eq!(weights(&graph(&bench.read("back.onnx")))[name].to_bytes().unwrap(), old.to_bytes().unwrap());
}

#[test]
fn weights_that_do_not_fit_are_refused_with_what_is_wrong() {
    let bench = Bench::new();
    let before = weights(&graph(&bench.read("glyphnet.onnx")));
    let (name, old) = before.iter().find(|(_, t)| t.shape().len() == 4).unwrap();
    let near = format!("{name}x");
    let n = old.len();
    let nan = Tensor::from_f32s(old.shape().to_vec(), &vec![f32::NAN; n]).unwrap();
    let huge = Tensor::from_f64s(DType::F64, old.shape().to_vec(), &vec![1e300; n]).unwrap();
    let ints = Tensor::from_i64s(old.shape().to_vec(), &vec![1; n]).unwrap();
    let flat = Tensor::from_f32s(vec![n], &vec![1.0; n]).unwrap();
    for (given, tensor, words) in [
        (near.as_str(), old, format!("did you mean {name:?}")),
        ("nothing like it", old, "has no weight".to_owned()),
        (name, &nan, "NaN or infinity".to_owned()),
        (name, &huge, "cannot hold".to_owned()),
        (name, &ints, "a weight is a float".to_owned()),
        (name, &flat, format!("its shape is [{n}]")),
    ] {
        write(&bench, "bad.npz", &npz(&[(given, tensor)]));
        let (_, err) = bench.run(1, &["load-weights", "glyphnet.onnx", "bad.npz", "-o", "x.onnx"]);
        assert!(err.contains(&words) && err.contains("bad.npz"), "{words}: {err}");
        assert!(!bench.has("x.onnx"));
    }
    // Another network's weights are looked up by name; none in common is no success.
    let other = "graph @g(%x: f32[N,2]) -> (%y) {\n  %w = f32[2,2] ones\n  %y = MatMul(%x, %w)\n}\n";
    let other = basisopt::onnx::export_new(&other.parse().unwrap()).unwrap();
    write(&bench, "other.onnx", &other);
    let (_, err) = bench.run(1, &["load-weights", "glyphnet.onnx", "other.onnx", "-o", "x.onnx"]);
    assert!(err.contains("no weight has a name"), "{err}");
    let (_, err) = bench.run(1, &["load-weights", "glyphnet.onnx", "glyphnet.toml", "-o", "x.onnx"]);
    assert!(err.contains(".npz"), "{err}");
    let (_, err) = bench.run(1, &["load-weights", "glyphnet.onnx", "other.onnx", "-o", "glyphnet.onnx"]);
    assert!(err.contains("it is the input"), "{err}");
}

#[test]
fn slips_in_asking_for_a_step_are_named() {
    let bench = Bench::new();
    let fixed = ["differentiate", "glyphnet.onnx"];
    for (code, args, words) in [
        (2, &["--loss", "labels"][..], "name a file"),
        (2, &["--loss", "label", "-o", "s.onnx"], "expected labels"),
        (2, &["-o", "s.onnx"], "--loss"),
        (1, &["--loss", "labels", "-o", "glyphnet.onnx"], "it is the input"),
        (1, &["--loss", "labels", "-o", "nowhere/s.onnx"], "there is no folder"),
        (1, &["--loss", "match=nothing*", "-o", "s.onnx"], "matches the name of no value"),
        (1, &["--loss", "labels", "--of", "nothing", "-o", "s.onnx"], "--of matches"),
    ] {
        let (_, err) = bench.run(code, &[&fixed[..], args].concat());
        assert!(err.contains(words), "{args:?}: {err}");
    }
    assert!(!bench.has("s.onnx"));
    let text = "graph @g(%x: f32[N,1,H,W]) -> (%y) {
                  %w = f32[2,1,3,3] randn(seed=1)
                  %a = Conv(%x, %w)
                  %v = f32[2,2,3,3] randn(seed=2)
                  %y = Conv(%a, %v)
                }";
    write(&bench, "open.bir", text.as_bytes());
    let (_, err) = bench.run(1, &["differentiate", "open.bir", "--loss", "match", "-o", "s.onnx"]);
    assert!(err.contains("sizes of the inputs"), "{err}");
    let dims = ["--dim", "H=12", "--dim", "W=9"];
    bench.run(0, &[&["differentiate", "open.bir", "--loss", "match", "-o", "s.onnx"], &dims[..]].concat());
    assert!(bench.has("s.onnx"));

    let text = "graph @g(%x: f32[1,2,3,3]) -> (%y) {
                  %w = f32[4,2,3,3] randn(seed=1)
                  %a = Conv(%x, %w)
                  %s = i64[2] [1, 4]
                  %y = Reshape(%a, %s)
                }";
    write(&bench, "one.bir", text.as_bytes());
    let args = ["differentiate", "one.bir", "--loss", "labels", "--open-batch", "-o", "step.onnx"];
    let (out, _) = bench.run(0, &args);
    assert!(out.contains("x f32[N,2,3,3]; labels i64[N]") && out.contains("y f32[N,4]; loss"), "{out}");
}
