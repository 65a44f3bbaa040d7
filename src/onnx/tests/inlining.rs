//! Model-local functions, inlined for running.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use basisopt_onnx::proto::{AttributeProto, FunctionProto, ModelProto, NodeProto, OperatorSetIdProto};
use basisopt_onnx::{Model, inline_functions};
use common::*;
use prost::Message as _;

fn call(function: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto { domain: text("local"), ..node(function, inputs, outputs) }
}

fn function(name: &str, inputs: &[&str], outputs: &[&str], nodes: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: text(name),
        domain: text("local"),
        input: strings(inputs),
        output: strings(outputs),
        node: nodes,
        opset_import: vec![
            OperatorSetIdProto { domain: text(""), version: Some(17) },
            OperatorSetIdProto { domain: text("local"), version: Some(1) },
        ],
        ..FunctionProto::default()
    }
}

fn with_functions(nodes: Vec<NodeProto>, functions: Vec<FunctionProto>) -> ModelProto {
    let mut proto = model(graph(nodes, vec![]));
    proto.opset_import.push(OperatorSetIdProto { domain: text("local"), version: Some(1) });
    proto.functions = functions;
    proto
}

fn inlined(proto: &ModelProto) -> ModelProto {
    let bytes = inline_functions(&encode(proto)).unwrap().unwrap();
    // Names resolve, are unique and make no cycle: import checks that.
    Model::from_bytes("inlined", bytes.clone(), None).unwrap();
    ModelProto::decode(bytes).unwrap()
}

fn ops(proto: &ModelProto) -> Vec<&str> {
    proto.graph.as_ref().unwrap().node.iter().map(|n| n.op_type()).collect()
}

#[test]
fn a_model_without_functions_is_left_alone() {
    let proto = model(graph(vec![node("Identity", &["x"], &["y"])], vec![]));
    assert!(inline_functions(&encode(&proto)).unwrap().is_none());
}

#[test]
fn nested_calls_get_fresh_names() {
    let twice =
        function("Twice", &["i"], &["o"], vec![call("Step", &["i"], &["t"]), call("Step", &["t"], &["o"])]);
    let step =
        function("Step", &["i"], &["o"], vec![node("Relu", &["i"], &["t"]), node("Abs", &["t"], &["o"])]);
    let proto =
        with_functions(vec![call("Twice", &["x"], &["t"]), call("Step", &["t"], &["y"])], vec![twice, step]);
    let out = inlined(&proto);
    assert_eq!(ops(&out), ["Relu", "Abs", "Relu", "Abs", "Relu", "Abs"]);
    assert!(out.functions.is_empty());
    let nodes = &out.graph.as_ref().unwrap().node;
    assert_eq!((nodes[0].input[0].as_str(), nodes[5].output[0].as_str()), ("x", "y"));
    assert_eq!(nodes[3].output, strings(&["t"]));
    assert_eq!(nodes[1].output, nodes[2].input);
    let names: std::collections::BTreeSet<&str> = nodes.iter().map(|n| n.name()).collect();
    assert_eq!(names.len(), nodes.len(), "some runtimes want unique node names");
}

#[test]
fn attribute_references_are_bound_or_defaulted_or_dropped() {
    let reference = |name: &str, to: &str| AttributeProto {
        name: text(name),
        ref_attr_name: text(to),
        r#type: Some(1),
        ..AttributeProto::default()
    };
    let float = |name: &str, v: f32| AttributeProto {
        name: text(name),
        f: Some(v),
        r#type: Some(1),
        ..AttributeProto::default()
    };
    let mut inner = node("LeakyRelu", &["i"], &["t"]);
    inner.attribute.push(reference("alpha", "slope"));
    let mut other = node("HardSigmoid", &["t"], &["o"]);
    other.attribute = vec![reference("alpha", "a"), reference("beta", "missing")];
    let mut f = function("F", &["i"], &["o"], vec![inner, other]);
    f.attribute = strings(&["slope", "missing"]);
    f.attribute_proto = vec![float("a", 0.75)];
    let mut given = call("F", &["x"], &["y"]);
    given.attribute.push(float("slope", 0.25));
    let out = inlined(&with_functions(vec![given], vec![f]));
    let nodes = &out.graph.as_ref().unwrap().node;
    assert_eq!(nodes[0].attribute, [float("alpha", 0.25)]);
    assert_eq!(nodes[1].attribute, [float("alpha", 0.75)]);
}

#[test]
fn omitted_inputs_stay_omitted_and_inputs_can_be_outputs() {
    let f = function("F", &["i", "lo", "hi"], &["o", "i"], vec![node("Clip", &["i", "lo", "hi"], &["o"])]);
    let out = inlined(&with_functions(
        vec![call("F", &["x"], &["c", "copy"]), node("Add", &["c", "copy"], &["y"])],
        vec![f],
    ));
    let nodes = &out.graph.as_ref().unwrap().node;
    assert_eq!(ops(&out), ["Clip", "Identity", "Add"]);
    assert_eq!(nodes[0].input, strings(&["x", "", ""]));
    assert_eq!((&nodes[1].input[0], &nodes[1].output[0]), (&"x".to_owned(), &"copy".to_owned()));
}

#[test]
fn calls_in_bodies_and_bodies_in_functions() {
    let mut body = graph(vec![node("Abs", &["t"], &["r"])], vec![floats("k", &[1], &[1.0])]);
    (body.input, body.output) = (vec![], vec![info("r", &[2])]);
    let mut choice = node("If", &["i"], &["o"]);
    choice.attribute.push(body_attribute("then_branch", body));
    let f = function("F", &["i"], &["o"], vec![node("Relu", &["i"], &["t"]), choice]);
    let mut outer_body = graph(vec![call("F", &["x"], &["r"])], vec![]);
    (outer_body.input, outer_body.output) = (vec![], vec![info("r", &[2])]);
    let mut outer = node("If", &["x"], &["h"]);
    outer.attribute.push(body_attribute("then_branch", outer_body));
    let out = inlined(&with_functions(vec![outer, call("F", &["h"], &["y"])], vec![f]));
    assert_eq!(ops(&out), ["If", "Relu", "If"]);
    let nodes = &out.graph.as_ref().unwrap().node;
    let inner = nodes[0].attribute[0].g.as_ref().unwrap();
    assert_eq!(inner.node.iter().map(|n| n.op_type()).collect::<Vec<_>>(), ["Relu", "If"]);
    assert_eq!(inner.node[1].output, strings(&["r"]));
    let renamed = nodes[2].attribute[0].g.as_ref().unwrap();
    assert_eq!(renamed.node[0].input, nodes[1].output, "the body follows the renamed value");
    assert_ne!(renamed.output[0].name(), "r");
    assert_eq!(renamed.output[0].name(), renamed.node[0].output[0]);
}

#[test]
fn impossible_functions_are_errors() {
    let message = |proto: &ModelProto| inline_functions(&encode(proto)).unwrap_err().to_string();
    let own = function("F", &["i"], &["o"], vec![call("F", &["i"], &["o"])]);
    assert!(message(&with_functions(vec![call("F", &["x"], &["y"])], vec![own])).contains("calls itself"));

    let mut newer = function("F", &["i"], &["o"], vec![node("Relu", &["i"], &["o"])]);
    newer.opset_import[0].version = Some(18);
    let text = message(&with_functions(vec![call("F", &["x"], &["y"])], vec![newer]));
    assert!(text.contains("version 18") && text.contains("version 17") && text.contains("y_F"), "{text}");

    let dangling = function("F", &["i"], &["o"], vec![node("Relu", &["j"], &["o"])]);
    assert!(message(&with_functions(vec![call("F", &["x"], &["y"])], vec![dangling])).contains("\"j\""));

    // Each function calls the next one twice: 2^40 nodes from forty functions.
    let bomb: Vec<_> = (0..40)
        .map(|i| {
            let next = format!("F{}", i + 1);
            let body = vec![call(&next, &["i"], &["t"]), call(&next, &["t"], &["o"])];
            function(&format!("F{i}"), &["i"], &["o"], body)
        })
        .chain([function("F40", &["i"], &["o"], vec![node("Relu", &["i"], &["o"])])])
        .collect();
    assert!(message(&with_functions(vec![call("F0", &["x"], &["y"])], bomb)).contains("makes more than"));
}
