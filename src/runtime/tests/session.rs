//! Loading, checking and running models, and how two of them compare.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use basisopt_ir::{DType, Tensor};
use basisopt_runtime::{
    ENGINE, LoadOptions, RuntimeError, Session, Source, all_close, compare, random_inputs,
};
use common::*;
use tract_onnx::pb;

const W: [f32; 4] = [1.0, 2.0, -3.0, 0.5];
const B: [f32; 2] = [10.0, -1.0];

fn load(model: &pb::ModelProto, options: &LoadOptions) -> Result<Session, RuntimeError> {
    Session::load(&source("test.onnx", model), options)
}

/// What `conv1x1(W, B)` must give, pixel by pixel.
fn conv_by_hand(x: &[f32], n: usize, n_pixels: usize) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    for image in 0..n {
        for p in 0..n_pixels {
            let at = |channel: usize| (image * 2 + channel) * n_pixels + p;
            for o in 0..2 {
                y[at(o)] = W[o * 2] * x[at(0)] + W[o * 2 + 1] * x[at(1)] + B[o];
            }
        }
    }
    y
}

#[test]
fn a_convolution_gives_what_arithmetic_gives() {
    for (batch, optimize, threads) in [(1, true, 1), (3, true, 1), (3, false, 1), (3, true, 2)] {
        let model = conv1x1(&[Named("N"), Fixed(2), Fixed(2), Fixed(3)], W, B);
        let options = LoadOptions { batch: Some(batch), optimize, threads, ..LoadOptions::default() };
        let mut session = load(&model, &options).unwrap();
        assert_eq!(session.inputs()[0].shape, [batch, 2, 2, 3]);
        assert_eq!((session.batch(), session.threads()), (Some(batch), threads));
        assert_eq!(session.outputs(), ["y"]);
        let x: Vec<f32> = (0..batch * 12).map(|i| i as f32 * 0.25 - 2.0).collect();
        for _ in 0..2 {
            let y = session.run(&[Tensor::from_f32s(vec![batch, 2, 2, 3], &x).unwrap()]).unwrap();
            assert_eq!(y[0].shape(), [batch, 2, 2, 3]);
            let (y, expected) = (y[0].to_f32s().unwrap(), conv_by_hand(&x, batch, 6));
            assert!(y.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{y:?} {expected:?}");
        }
    }
}

#[test]
fn the_batch_defaults_to_one_and_a_fixed_one_stays() {
    let open = conv1x1(&[Open, Fixed(2), Fixed(2), Fixed(2)], W, B);
    assert_eq!(load(&open, &LoadOptions::default()).unwrap().batch(), Some(1));
    let fixed = conv1x1(&[Fixed(5), Fixed(2), Fixed(2), Fixed(2)], W, B);
    assert_eq!(load(&fixed, &LoadOptions::default()).unwrap().batch(), Some(5));
    let same = LoadOptions { batch: Some(5), ..LoadOptions::default() };
    assert_eq!(load(&fixed, &same).unwrap().batch(), Some(5));
    let other = LoadOptions { batch: Some(8), ..LoadOptions::default() };
    let error = load(&fixed, &other).unwrap_err().to_string();
    assert!(error.contains("fixed at 5") && error.contains("--batch 5"), "{error}");
}

#[test]
fn other_open_sizes_need_pins() {
    let named = conv1x1(&[Named("N"), Fixed(2), Named("H"), Named("W")], W, B);
    let error = load(&named, &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("`H`") && error.contains("--dim H=224"), "{error}");
    let dims = vec![("H".to_owned(), 4), ("W".to_owned(), 6)];
    let session = load(&named, &LoadOptions { dims: dims.clone(), ..LoadOptions::default() }).unwrap();
    assert_eq!(session.inputs()[0].shape, [1, 2, 4, 6]);

    let nameless = conv1x1(&[Open, Fixed(2), Open, Fixed(3)], W, B);
    let error = load(&nameless, &LoadOptions { dims, ..LoadOptions::default() }).unwrap_err().to_string();
    assert!(error.contains("--dim x:2=224"), "{error}");
    let dims = vec![("x:2".to_owned(), 7)];
    let session = load(&nameless, &LoadOptions { dims, ..LoadOptions::default() }).unwrap();
    assert_eq!(session.inputs()[0].shape, [1, 2, 7, 3]);

    let dims = vec![("H".to_owned(), 4), ("W".to_owned(), 6), ("D".to_owned(), 2)];
    let error = load(&named, &LoadOptions { dims, ..LoadOptions::default() }).unwrap_err().to_string();
    assert!(error.contains("--dim D") && error.contains("H, N, W"), "{error}");
}

#[test]
fn files_that_are_no_models_say_so() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Source::from_file(dir.path().join("absent.onnx")), Err(RuntimeError::Io { .. })));
    assert!(Source::from_file(dir.path()).unwrap_err().to_string().contains("folder"));
    for content in [&b""[..], b"\x7fELF\x02\x01 not a model", b"hello, this is text\n"] {
        let path = dir.path().join("wrong.onnx");
        std::fs::write(&path, content).unwrap();
        let error = Session::load(&Source::from_file(&path).unwrap(), &LoadOptions::default()).unwrap_err();
        assert!(error.to_string().contains("wrong.onnx"), "{error}");
        assert!(!matches!(error, RuntimeError::Tract { .. }), "{error}");
    }
}

#[test]
fn custom_operators_are_refused_by_name_even_inside_bodies() {
    let mut model = conv1x1(&[Named("N"), Fixed(2), Fixed(2), Fixed(2)], W, B);
    let mut custom = node("Relu", &["y"], &["z"]);
    custom.domain = "my.domain".to_owned();
    custom.name = "act1".to_owned();
    let graph = model.graph.as_mut().unwrap();
    graph.node.push(custom.clone());
    let error = load(&model, &LoadOptions::default()).unwrap_err().to_string();
    assert!(
        error.contains("custom operator my.domain::Relu (node \"act1\") cannot be run by tract"),
        "{error}"
    );

    let graph = model.graph.as_mut().unwrap();
    let mut branch = node("If", &["c"], &["z"]);
    let body = pb::GraphProto { node: graph.node.split_off(1), ..Default::default() };
    branch.attribute.push(pb::AttributeProto {
        name: "then_branch".to_owned(),
        g: Some(body),
        ..Default::default()
    });
    graph.node.push(branch);
    let error = load(&model, &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("my.domain::Relu"), "{error}");

    let mut model = conv1x1(&[Named("N"), Fixed(2), Fixed(2), Fixed(2)], W, B);
    model.graph.as_mut().unwrap().node.push(node("RoiAlign", &["y"], &["z"]));
    let error = load(&model, &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("operator RoiAlign (node \"n_z\") is not implemented"), "{error}");
}

#[test]
fn local_functions_are_inlined() {
    let mut model = conv1x1(&[Named("N"), Fixed(2), Fixed(1), Fixed(1)], W, B);
    let opset = pb::OperatorSetIdProto { domain: String::new(), version: 13 };
    let local = pb::OperatorSetIdProto { domain: "local".to_owned(), version: 1 };
    model.opset_import.push(local);
    // Twice the negation of its input, which no operator of this name does.
    model.functions.push(pb::FunctionProto {
        name: Some("Relu".to_owned()),
        domain: Some("local".to_owned()),
        input: vec!["a".to_owned()],
        output: vec!["b".to_owned()],
        node: vec![node("Neg", &["a"], &["t"]), node("Add", &["t", "t"], &["b"])],
        opset_import: vec![opset],
        ..Default::default()
    });
    let mut call = node("Relu", &["y"], &["z"]);
    call.domain = "local".to_owned();
    let graph = model.graph.as_mut().unwrap();
    graph.node.push(call);
    graph.output = vec![image("z", &[Open, Open, Open, Open])];
    let mut session = load(&model, &LoadOptions::default()).unwrap();
    let y = session.run(&[Tensor::from_f32s(vec![1, 2, 1, 1], &[1.0, 1.0]).unwrap()]).unwrap();
    assert_eq!(y[0].to_f32s().unwrap(), [-26.0, 7.0]);
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let model = conv1x1(&[Named("N"), Fixed(2), Fixed(2), Fixed(2)], W, B);
    let mut session = load(&model, &LoadOptions::default()).unwrap();
    let error = session.run(&[]).unwrap_err().to_string();
    assert!(error.contains("takes 1 inputs, 0 were given"), "{error}");
    let wrong = Tensor::full(DType::F32, vec![2, 2, 2, 2], 0.0).unwrap();
    let error = session.run(&[wrong]).unwrap_err().to_string();
    assert!(error.contains("[1, 2, 2, 2]") && error.contains("[2, 2, 2, 2]"), "{error}");
}

#[test]
fn what_tract_refuses_carries_its_reason() {
    let mut model = conv1x1(&[Named("N"), Fixed(3), Fixed(2), Fixed(2)], W, B);
    let error = load(&model, &LoadOptions::default()).unwrap_err();
    assert!(matches!(&error, RuntimeError::Tract { reason, .. } if !reason.is_empty()), "{error}");
    // tract panics here; a caller gets an error.
    model.graph.as_mut().unwrap().output = vec![image("nobody", &[Open])];
    let error = load(&model, &LoadOptions::default()).unwrap_err();
    assert!(!error.to_string().is_empty());
}

#[test]
fn random_inputs_follow_their_seed_and_type() {
    let model = conv1x1(&[Named("N"), Fixed(2), Fixed(32), Fixed(32)], W, B);
    let session = load(&model, &LoadOptions::default()).unwrap();
    let a = random_inputs(session.inputs(), 7);
    assert_eq!(a, random_inputs(session.inputs(), 7));
    assert_ne!(a, random_inputs(session.inputs(), 8));
    let values = a[0].to_f64s().unwrap();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| v * v).sum::<f64>() / n;
    // Five standard errors of 2048 standard normal values.
    assert!(mean.abs() < 0.11 && (variance - 1.0).abs() < 0.16, "{mean} {variance}");
    let mut other = session.inputs()[0].clone();
    for dtype in [DType::Bool, DType::U8, DType::I64, DType::F16, DType::F64] {
        other.dtype = dtype;
        let t = &random_inputs(std::slice::from_ref(&other), 1)[0];
        assert_eq!((t.dtype(), t.len()), (dtype, 2048));
    }
}

fn batches(n: u64, shape: &[usize]) -> Vec<Result<Vec<Tensor>, RuntimeError>> {
    let n_elements: usize = shape.iter().product();
    let values =
        |seed: u64| (0..n_elements).map(|i| ((i as u64 + seed) % 5) as f32 - 2.0).collect::<Vec<_>>();
    (0..n).map(|s| Ok(vec![Tensor::from_f32s(shape.to_vec(), &values(s)).unwrap()])).collect()
}

#[test]
fn two_networks_differ_by_what_their_biases_differ() {
    let sizes = || [Named("N"), Fixed(2), Fixed(2), Fixed(3)];
    let mut a = load(&conv1x1(&sizes(), W, B), &LoadOptions::default()).unwrap();
    let mut same = load(&conv1x1(&sizes(), W, B), &LoadOptions::default()).unwrap();
    let mut shifted = load(&conv1x1(&sizes(), W, [10.0, -1.5]), &LoadOptions::default()).unwrap();
    let mut seen = 0;
    let diffs = compare(&mut a, &mut same, batches(3, &[1, 2, 2, 3]).into_iter(), &mut |n| seen = n).unwrap();
    assert_eq!(seen, 3);
    assert!(all_close(&diffs, 0.0) && diffs[0].cosine > 0.999_999);

    let diffs = compare(&mut a, &mut shifted, batches(3, &[1, 2, 2, 3]).into_iter(), &mut |_| {}).unwrap();
    let diff = &diffs[0];
    assert_eq!((diff.name.as_str(), diff.other_name.as_deref()), ("y", None));
    assert!((diff.max_abs - 0.5).abs() < 1e-5, "{diff:?}");
    // The largest reference value: channel 0 gives 10 + x0 + 2·x1.
    let mut largest = 0.0f32;
    for batch in batches(3, &[1, 2, 2, 3]) {
        let x = batch.unwrap()[0].to_f32s().unwrap();
        largest = conv_by_hand(&x, 1, 6).iter().fold(largest, |m, v| m.max(v.abs()));
    }
    assert!((diff.max_rel - 0.5 / f64::from(largest)).abs() < 1e-6, "{diff:?}");
    assert!(diff.is_close(0.1) && !diff.is_close(0.01));
    assert_eq!(diff.top1_agreement, None);
}

#[test]
fn outputs_match_by_name_then_by_position() {
    let mut renamed = conv1x1(&[Named("N"), Fixed(2), Fixed(2), Fixed(2)], W, B);
    let mut a = load(&renamed, &LoadOptions::default()).unwrap();
    let graph = renamed.graph.as_mut().unwrap();
    graph.node[0].output[0] = "other".to_owned();
    graph.output[0].name = "other".to_owned();
    let mut b = load(&renamed, &LoadOptions::default()).unwrap();
    let diffs = compare(&mut a, &mut b, batches(1, &[1, 2, 2, 2]).into_iter(), &mut |_| {}).unwrap();
    assert_eq!(diffs[0].other_name.as_deref(), Some("other"));

    let graph = renamed.graph.as_mut().unwrap();
    graph.node.push(node("Relu", &["other"], &["second"]));
    graph.output.push(image("second", &[Open]));
    let mut c = load(&renamed, &LoadOptions::default()).unwrap();
    let error = compare(&mut a, &mut c, batches(1, &[1, 2, 2, 2]).into_iter(), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("1 outputs, the second 2"), "{error}");
}

#[test]
fn the_engine_is_the_one_in_the_lock_file() {
    let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
    // Not there in a crate taken from the registry.
    let Ok(lock) = std::fs::read_to_string(lock) else { return };
    let (name, version) = ENGINE.split_once(' ').unwrap();
    assert_eq!(name, "tract");
    assert!(lock.contains(&format!("name = \"tract-core\"\nversion = \"{version}\"")));
}

/// Time that the threads called `tract-…` have run, in nanoseconds; `None` where there is no `/proc`.
fn worker_nanoseconds() -> Option<u64> {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let task = task.ok()?.path();
        if std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("tract-")) {
            let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
            total += text.split_whitespace().next()?.parse::<u64>().ok()?;
        }
    }
    Some(total)
}

#[test]
fn two_threads_share_the_matrix_products() {
    let mut model = conv1x1(&[Named("N"), Fixed(64), Fixed(56), Fixed(56)], W, B);
    let graph = model.graph.as_mut().unwrap();
    graph.initializer =
        vec![tensor("w", &[64, 64, 3, 3], &[0.01; 64 * 64 * 9]), tensor("b", &[64], &[0.0; 64])];
    let mut session = load(&model, &LoadOptions { threads: 2, ..LoadOptions::default() }).unwrap();
    let inputs = random_inputs(session.inputs(), 1);
    let Some(before) = worker_nanoseconds() else { return };
    for _ in 0..10 {
        session.run(&inputs).unwrap();
    }
    // 10 runs of 116 million products each: even at 200 thousand million a second, 5 ms.
    let spent = worker_nanoseconds().unwrap().saturating_sub(before);
    assert!(spent > 2_000_000, "the workers ran for {spent} ns");
}
