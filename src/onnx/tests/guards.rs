//! Everything that can be wrong with a file is one clear error that says where.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use basisopt_onnx::proto::{GraphProto, ModelProto, OperatorSetIdProto, TensorProto};
use basisopt_onnx::{Model, Problem};
use bytes::Bytes;
use common::*;

fn problem_of_bytes(bytes: impl Into<Bytes>) -> String {
    Model::from_bytes("bad.onnx", bytes.into(), None).expect_err("it was accepted").to_string()
}

fn problem(model: &ModelProto) -> String {
    problem_of_bytes(encode(model))
}

fn assert_says(message: &str, parts: &[&str]) {
    assert!(message.starts_with("bad.onnx: "), "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

fn identity() -> GraphProto {
    graph(vec![node("Identity", &["x"], &["y"])], vec![])
}

#[test]
fn files_that_are_no_models() {
    assert_says(&problem_of_bytes(Bytes::new()), &["the file is empty"]);
    assert_says(&problem_of_bytes("# Readme\nhello world\n"), &["not an ONNX model"]);
    assert_says(&problem_of_bytes("just some words, no model at all"), &["not an ONNX model"]);
    assert_says(&problem_of_bytes(vec![0xff; 40]), &["not an ONNX model"]);
    assert_says(&problem(&ModelProto { graph: None, ..model(identity()) }), &["no graph"]);
    let missing = Model::read("no/such/model.onnx").unwrap_err().to_string();
    assert!(missing.contains("cannot read no/such/model.onnx"), "{missing}");
    assert!(Model::read(".").unwrap_err().to_string().contains("cannot read"));
}

#[test]
fn every_truncation_is_an_error_or_another_model_but_never_a_panic() {
    let bytes =
        encode(&model(graph(vec![node("Add", &["x", "w"], &["y"])], vec![floats("w", &[2], &[1.0, 2.0])])));
    let mut refused = 0;
    for n in 0..bytes.len() {
        refused += usize::from(Model::from_bytes("m", bytes.slice(..n), None).is_err());
    }
    assert!(refused > bytes.len() * 9 / 10);
    assert_says(&problem_of_bytes(bytes.slice(..bytes.len() / 2)), &["truncated"]);
}

#[test]
fn flipped_bytes_never_panic() {
    let bytes =
        encode(&model(graph(vec![node("Add", &["x", "w"], &["y"])], vec![floats("w", &[2], &[1.0, 2.0])])));
    for i in 0..bytes.len() {
        for flip in [0x01, 0x08, 0x80, 0xff] {
            let mut bytes = bytes.to_vec();
            bytes[i] ^= flip;
            if let Ok(model) = Model::from_bytes("m", bytes.into(), None) {
                // What is accepted can be written, or is refused with a reason.
                drop(model.source().encode_spliced(&model.graph));
            }
        }
    }
}

#[test]
fn versions_out_of_range() {
    let with_opset = |version| ModelProto {
        opset_import: vec![OperatorSetIdProto { domain: text("ai.onnx"), version: Some(version) }],
        ..model(identity())
    };
    assert_says(&problem(&with_opset(5)), &["opset 5", "6 to 28", "version_converter"]);
    assert_says(&problem(&with_opset(29)), &["opset 29", "newer basisopt"]);
    assert!(read(&with_opset(6)).is_ok() && read(&with_opset(28)).is_ok());
    let none = ModelProto { opset_import: vec![], ..model(identity()) };
    assert_says(&problem(&none), &["opset none", "y_Identity"]);
    assert_says(&problem(&ModelProto { ir_version: None, ..model(identity()) }), &["IR version: none"]);
    assert_says(&problem(&ModelProto { ir_version: Some(99), ..model(identity()) }), &["99", "1 to 14"]);
}

#[test]
fn names_that_do_not_resolve() {
    let dangling = graph(vec![node("Add", &["x", "nowhere"], &["y"])], vec![]);
    assert_says(&problem(&model(dangling)), &["node \"y_Add\" (Add)", "\"nowhere\""]);
    let output = graph(vec![node("Identity", &["x"], &["z"])], vec![]);
    assert_says(&problem(&model(output)), &["graph output 0", "\"y\""]);
}

#[test]
fn names_that_are_not_unique() {
    let twice = graph(vec![node("Relu", &["x"], &["y"]), node("Abs", &["x"], &["y"])], vec![]);
    assert_says(&problem(&model(twice)), &["node \"y_Abs\" (Abs)", "node \"y_Relu\" (Relu)", "\"y\""]);
    let one = || floats("w", &[1], &[1.0]);
    let initializers = graph(vec![node("Relu", &["x"], &["y"])], vec![one(), one()]);
    assert_says(&problem(&model(initializers)), &["initializer \"w\"", "initializer 0"]);
    let over_input = graph(vec![node("Relu", &["x"], &["x"])], vec![]);
    assert_says(&problem(&model(over_input)), &["node \"x_Relu\"", "graph input 0"]);
    let mut inputs = identity();
    inputs.input.push(info("x", &[2]));
    assert_says(&problem(&model(inputs)), &["graph input 1", "graph input 0"]);
}

#[test]
fn cycles() {
    let cycle = graph(
        vec![
            node("Relu", &["x"], &["a"]),
            node("Add", &["a", "c"], &["b"]),
            node("Abs", &["b"], &["c"]),
            node("Neg", &["c"], &["y"]),
        ],
        vec![],
    );
    let message = problem(&model(cycle));
    assert_says(&message, &["on a cycle"]);
    assert!(message.contains("b_Add") || message.contains("c_Abs"), "{message}");
    let own = graph(vec![node("Add", &["x", "y"], &["y"])], vec![]);
    assert_says(&problem(&model(own)), &["node \"y_Add\" (Add) is on a cycle", "\"y\""]);
}

#[test]
fn tensors_that_disagree_with_themselves() {
    let with = |tensor: TensorProto| model(graph(vec![node("Relu", &["x"], &["y"])], vec![tensor]));
    let short = floats("w", &[3], &[1.0, 2.0]);
    assert_says(&problem(&with(short)), &["initializer \"w\"", "needs 12 bytes, found 8"]);
    let absurd = TensorProto { dims: vec![1 << 40, 1 << 40], ..floats("w", &[], &[]) };
    assert_says(&problem(&with(absurd)), &["initializer \"w\"", "too many elements"]);
    let terabyte = TensorProto { dims: vec![1 << 38], ..floats("w", &[], &[1.0]) };
    assert_says(&problem(&with(terabyte)), &["needs 1099511627776 bytes, found 4"]);
    let negative = floats("w", &[-1], &[1.0]);
    assert_says(&problem(&with(negative)), &["initializer \"w\"", "size -1"]);
    let untyped = TensorProto { data_type: None, ..floats("w", &[1], &[1.0]) };
    assert_says(&problem(&with(untyped)), &["initializer \"w\"", "no element type"]);
    let nameless = TensorProto { name: None, ..floats("", &[1], &[1.0]) };
    assert_says(&problem(&with(nameless)), &["initializer 0", "no name"]);
    let mut negative_input = identity();
    negative_input.input[0] = info("x", &[-1]);
    assert_says(&problem(&model(negative_input)), &["\"x\"", "size -1"]);
}

#[test]
fn bodies_nested_without_end() {
    let mut body = graph(vec![node("Identity", &["x"], &["y"])], vec![]);
    for _ in 0..200 {
        let mut outer = node("If", &["x"], &["y"]);
        outer.attribute.push(body_attribute("then_branch", body));
        body = graph(vec![outer], vec![]);
    }
    assert_says(&problem(&model(body)), &["nested", "deep"]);
}

#[test]
fn a_nameless_operator() {
    let nameless = graph(vec![node("", &["x"], &["y"])], vec![]);
    assert_says(&problem(&model(nameless)), &["no op_type"]);
}

#[test]
fn problems_can_be_matched() {
    let error = read(&model(graph(vec![node("Add", &["x", "w"], &["y"])], vec![]))).unwrap_err();
    assert!(matches!(error.problem(), Problem::Dangling { name, .. } if name == "w"));
    assert_eq!(error.file(), "m.onnx");
}
