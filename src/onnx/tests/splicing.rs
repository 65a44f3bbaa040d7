//! A changed graph: what changed is spliced in, and the rest is what it was.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use basisopt_ir::graph::{Node, Use, Value, ValueType};
use basisopt_ir::op::{Concat, Identity, Relu};
use basisopt_ir::tensor::Generator;
use basisopt_ir::{DType, Op, Rewrite, Tensor, ValueId};
use basisopt_onnx::proto::{ModelProto, TensorAnnotation};
use basisopt_onnx::{Model, Problem};
use common::*;
use prost::Message as _;

/// Removes the Identity that makes `output`.
fn remove_identity(model: &mut Model, output: &str) {
    let old = model.graph.find_value(output).unwrap();
    let input = model.graph.node_input(old.node, 0).unwrap();
    let mut rewrite = Rewrite::at(old.node);
    rewrite.replace(old, input);
    rewrite.apply(&mut model.graph).unwrap();
}

fn chain() -> ModelProto {
    model(graph(
        vec![
            node("Relu", &["x"], &["a"]),
            node("Identity", &["a"], &["b"]),
            node("Add", &["b", "w"], &["c"]),
            node("Abs", &["c"], &["y"]),
        ],
        vec![floats("w", &[2], &[1.0, 2.0]), floats("unused", &[1], &[3.0])],
    ))
}

#[test]
fn one_node_goes_and_its_reader_is_patched() {
    let proto = chain();
    let mut model = read(&proto).unwrap();
    remove_identity(&mut model, "b");
    let mut expected = proto;
    let graph = expected.graph.as_mut().unwrap();
    graph.node.remove(1);
    graph.node[1].input[0] = "a".to_owned();
    assert_eq!(written(&model), expected);
}

#[test]
fn unknown_fields_stay_in_touched_and_untouched_messages() {
    let marks = ["model", "graph", "touched", "untouched", "tensor", "input"];
    let proto = chain();
    let mut graph = proto.graph.clone().unwrap();
    let (nodes, tensors, inputs) = (
        std::mem::take(&mut graph.node),
        std::mem::take(&mut graph.initializer),
        std::mem::take(&mut graph.input),
    );
    let mut body = Vec::new();
    let mut put = |number: u8, mut message: Vec<u8>, mark: Option<&str>| {
        message.extend(mark.map(|m| unknown_field(m.as_bytes())).unwrap_or_default());
        body.push(number << 3 | 2);
        prost::encoding::encode_varint(message.len() as u64, &mut body);
        body.extend(message);
    };
    for (i, node) in nodes.iter().enumerate() {
        let mark = [Some("untouched"), None, Some("touched"), None][i];
        put(1, node.encode_to_vec(), mark);
    }
    tensors.iter().for_each(|t| put(5, t.encode_to_vec(), Some("tensor")));
    inputs.iter().for_each(|v| put(11, v.encode_to_vec(), Some("input")));
    body.extend(graph.encode_to_vec());
    body.extend(unknown_field(b"graph"));
    let mut bytes = ModelProto { graph: None, ..proto }.encode_to_vec();
    bytes.push(7 << 3 | 2);
    prost::encoding::encode_varint(body.len() as u64, &mut bytes);
    bytes.extend(body);
    bytes.extend(unknown_field(b"model"));

    let mut model = Model::from_bytes("m", bytes.clone().into(), None).unwrap();
    let same = model.source().encode_spliced(&model.graph).unwrap().concat();
    assert!(same == bytes);
    remove_identity(&mut model, "b");
    let out = model.to_bytes().unwrap().concat();
    for mark in marks {
        assert!(contains(&out, &unknown_field(mark.as_bytes())), "{mark} lost its unknown field");
    }
    assert_eq!(ModelProto::decode(out).unwrap().graph.unwrap().node.len(), 3);
}

#[test]
fn new_nodes_stand_where_the_old_one_stood_and_new_constants_last() {
    let mut model = read(&chain()).unwrap();
    let old = model.graph.find_value("b").unwrap();
    let input = model.graph.node_input(old.node, 0).unwrap();
    let mut rewrite = Rewrite::at(old.node);
    let k = rewrite.constant("k", Tensor::from_f32s(vec![2], &[5.0, 6.0]).unwrap());
    let joined = rewrite.node("joined", Op::from(Concat { axis: 1 }), &[input.into(), k]);
    rewrite.note("basisopt.rule", "test");
    rewrite.replace(old, joined);
    rewrite.apply(&mut model.graph).unwrap();
    for (ir_version, n_notes) in [(8, 0), (10, 1)] {
        model.graph.ir_version = ir_version;
        let out = written(&model);
        assert_eq!(out.ir_version, Some(ir_version));
        let graph = out.graph.unwrap();
        let ops: Vec<&str> = graph.node.iter().map(|n| n.op_type()).collect();
        assert_eq!(ops, ["Relu", "Concat", "Add", "Abs"]);
        assert_eq!(graph.node[1].input, strings(&["a", "k"]));
        assert_eq!(graph.node[1].output, strings(&["b"]));
        // Required, although it is what the table of operators takes for the default.
        assert_eq!((graph.node[1].attribute[0].name(), graph.node[1].attribute[0].i()), ("axis", 1));
        assert_eq!(graph.node[1].metadata_props.len(), n_notes);
        let names: Vec<&str> = graph.initializer.iter().map(|t| t.name()).collect();
        assert_eq!(names, ["w", "unused", "k"]);
        assert_eq!(graph.initializer[2].raw_data().len(), 8);
        assert_eq!(graph.input.len(), 1);
    }
}

#[test]
fn before_ir_version_4_every_initializer_is_an_input() {
    let mut proto = chain();
    proto.ir_version = Some(3);
    let inputs = &mut proto.graph.as_mut().unwrap().input;
    inputs.insert(0, info("w", &[2]));
    inputs.push(info("unused", &[1]));
    let mut model = read(&proto).unwrap();
    assert_eq!(model.graph.inputs().len(), 1);
    // w goes with the Add that read it; k comes.
    let add = model.graph.find_value("c").unwrap();
    let mut rewrite = Rewrite::at(add.node);
    let k = rewrite.constant("k", Tensor::from_f32s(vec![2], &[5.0, 6.0]).unwrap());
    let b = model.graph.node_input(add.node, 0).unwrap();
    let sum = rewrite.node("sum", Op::from_attrs("Sub", basisopt_ir::Attrs::new()), &[b.into(), k]);
    rewrite.replace(add, sum);
    rewrite.apply(&mut model.graph).unwrap();
    let graph = written(&model).graph.unwrap();
    let inputs: Vec<&str> = graph.input.iter().map(|v| v.name()).collect();
    let initializers: Vec<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    assert_eq!((inputs, initializers), (vec!["x", "unused", "k"], vec!["unused", "k"]));
    assert_eq!(graph.input[2], info("k", &[2]));
}

#[test]
fn what_describes_a_vanished_value_vanishes() {
    let mut proto = chain();
    let graph = proto.graph.as_mut().unwrap();
    graph.value_info = vec![info("a", &[2]), info("b", &[2]), info("of_a_body", &[9])];
    let note = |name: &str| TensorAnnotation { tensor_name: text(name), ..TensorAnnotation::default() };
    graph.quantization_annotation = vec![note("b"), note("w"), note("elsewhere")];
    let mut model = read(&proto).unwrap();
    remove_identity(&mut model, "b");
    let graph = written(&model).graph.unwrap();
    assert_eq!(graph.value_info, [info("a", &[2]), info("of_a_body", &[9])]);
    assert_eq!(graph.quantization_annotation, [note("w"), note("elsewhere")]);
}

#[test]
fn a_type_that_no_longer_holds_is_dropped() {
    let mut proto = chain();
    proto.graph.as_mut().unwrap().value_info = vec![info("a", &[2]), info("b", &[2])];
    let mut model = read(&proto).unwrap();
    let b = model.graph.find_value("b").unwrap();
    let a = model.graph.node_input(b.node, 0).unwrap();
    let mut rewrite = Rewrite::at(b.node);
    let wide = rewrite.node("wide", Op::from(Concat { axis: 0 }), &[a.into(), a.into()]);
    rewrite.replace(b, wide);
    rewrite.apply(&mut model.graph).unwrap();
    let b = model.graph.find_value("b").unwrap();
    model.graph.set_type(b, ValueType::fixed(DType::F32, &[4]));
    assert_eq!(written(&model).graph.unwrap().value_info, [info("a", &[2])]);
}

#[test]
fn metadata_is_merged_only_where_something_changed() {
    let mut proto = chain();
    proto.metadata_props = vec![entry("author", "them"), entry("basisopt.passes", "old"), entry("z", "1")];
    let mut model = read(&proto).unwrap();
    assert_eq!(model.source().metadata()[0], ("author".to_owned(), "them".to_owned()));
    model.graph.metadata.insert("basisopt.passes".to_owned(), "new".to_owned());
    model.graph.metadata.insert("basisopt.version".to_owned(), "1".to_owned());
    assert_eq!(model.to_bytes().unwrap().concat(), encode(&proto), "an untouched graph is not stamped");
    remove_identity(&mut model, "b");
    let expected = [
        entry("author", "them"),
        entry("basisopt.passes", "new"),
        entry("z", "1"),
        entry("basisopt.version", "1"),
    ];
    assert_eq!(written(&model).metadata_props, expected);
}

#[test]
fn an_initializer_can_become_an_output() {
    let mut proto =
        model(graph(vec![node("Identity", &["w"], &["y"])], vec![floats("w", &[2], &[1.0, 2.0])]));
    proto.graph.as_mut().unwrap().input.clear();
    let mut model = read(&proto).unwrap();
    remove_identity(&mut model, "y");
    let graph = written(&model).graph.unwrap();
    assert!(graph.node.is_empty());
    assert_eq!(graph.initializer[0], floats("y", &[2], &[1.0, 2.0]));
    assert_eq!(graph.output[0], info("y", &[2]));
}

#[test]
fn outputs_can_be_added_and_renamed() {
    let mut model = read(&chain()).unwrap();
    let (y, c) = (model.graph.find_value("y").unwrap(), model.graph.find_value("c").unwrap());
    model.graph.rename(y, "logits");
    model.graph.set_type(c, ValueType::fixed(DType::F32, &[2]));
    model.graph.add_output(c);
    let graph = written(&model).graph.unwrap();
    assert_eq!(graph.output, [info("logits", &[2]), info("c", &[2])]);
    assert_eq!(graph.node[3].output, strings(&["logits"]));
}

#[test]
fn a_file_out_of_order_is_written_in_order() {
    let mut proto = chain();
    proto.graph.as_mut().unwrap().node.reverse();
    let model = read(&proto).unwrap();
    assert_eq!(model.to_bytes().unwrap().concat(), encode(&proto), "as it came");
    let spliced = model.source().encode_spliced(&model.graph).unwrap().concat();
    let sorted = chain().graph.unwrap().node;
    assert_eq!(ModelProto::decode(spliced).unwrap().graph.unwrap().node, sorted);
}

#[test]
fn interleaved_fields_keep_their_places() {
    // node, initializer, node, output, initializer, input, name: any order is legal protobuf.
    let whole = model(graph(vec![node("Relu", &["x"], &["a"]), node("Abs", &["a"], &["y"])], vec![]));
    let graph = whole.graph.clone().unwrap();
    let mut body = Vec::new();
    let mut put = |number: u8, message: Vec<u8>| {
        body.push(number << 3 | 2);
        prost::encoding::encode_varint(message.len() as u64, &mut body);
        body.extend(message);
    };
    put(1, graph.node[0].encode_to_vec());
    put(5, floats("v", &[1], &[1.0]).encode_to_vec());
    put(12, graph.output[0].encode_to_vec());
    put(1, graph.node[1].encode_to_vec());
    put(11, graph.input[0].encode_to_vec());
    put(5, floats("w", &[1], &[1.0]).encode_to_vec());
    put(2, b"g".to_vec());
    let mut bytes = vec![7 << 3 | 2];
    prost::encoding::encode_varint(body.len() as u64, &mut bytes);
    bytes.extend(body);
    bytes.extend(ModelProto { graph: None, ..whole }.encode_to_vec());
    let model = Model::from_bytes("m", bytes.clone().into(), None).unwrap();
    assert!(model.source().encode_spliced(&model.graph).unwrap().concat() == bytes);
}

#[test]
fn a_captured_name_must_stay() {
    let mut body = graph(vec![node("Abs", &["a"], &["r"])], vec![]);
    (body.input, body.output) = (vec![], vec![info("r", &[2])]);
    let mut choice = node("If", &["x"], &["y"]);
    choice.attribute.push(body_attribute("then_branch", body));
    let mut model = read(&model(graph(vec![node("Relu", &["x"], &["a"]), choice], vec![]))).unwrap();
    let y = model.graph.find_value("y").unwrap();
    let x = model.graph.find_value("x").unwrap();
    model.graph.set_input(Use { node: y.node, slot: 1 }, Some(x));
    let error = model.to_bytes().unwrap_err();
    assert!(matches!(error.problem(), Problem::Capture { expected, .. } if expected == "a"), "{error}");
}

#[test]
fn generated_constants_get_their_values_and_absurd_ones_an_error() {
    let mut model = read(&chain()).unwrap();
    let add = |model: &mut Model, name: &str, tensor: Tensor| {
        model.graph.add_constant(name, tensor);
    };
    let randn = Tensor::generated(DType::F32, vec![3], Generator::Randn { seed: 1 }).unwrap();
    add(&mut model, "r", randn.clone());
    add(&mut model, "ones", Tensor::full(DType::F16, vec![2], 1.0).unwrap());
    let graph = written(&model).graph.unwrap();
    assert_eq!(graph.initializer[2].raw_data(), &randn.to_bytes().unwrap()[..]);
    assert_eq!(graph.initializer[3].raw_data(), [0x00, 0x3c, 0x00, 0x3c]);
    add(&mut model, "terabyte", Tensor::full(DType::F32, vec![1 << 38], 1.0).unwrap());
    let error = model.to_bytes().unwrap_err();
    assert!(
        matches!(error.problem(), Problem::TooLarge { place, .. } if place.contains("terabyte")),
        "{error}"
    );

    let mut model = read(&chain()).unwrap();
    add(&mut model, "printed", Tensor::elided(DType::F32, vec![1], 1.0));
    let error = model.to_bytes().unwrap_err();
    assert!(matches!(error.problem(), Problem::Elided { place, .. } if place.contains("printed")), "{error}");
}

#[test]
fn a_node_of_an_operator_set_that_is_not_imported_is_refused() {
    let mut model = read(&chain()).unwrap();
    let x = model.graph.find_value("x").unwrap();
    let op = Op::Opaque(basisopt_ir::op::Opaque {
        domain: "com.example".to_owned(),
        op_type: "Foo".to_owned(),
        attrs: basisopt_ir::Attrs::new(),
        n_captures: 0,
    });
    let output = Value { name: "foo".to_owned(), ty: ValueType::default() };
    model.graph.add_node(Node::new("foo", op, vec![output]), &[Some(x)]);
    let message = model.to_bytes().unwrap_err().to_string();
    assert!(message.contains("com.example") && message.contains("\"foo\""), "{message}");
}

#[test]
fn any_version_of_the_graph_can_be_exported_against_the_source() {
    let model = read(&chain()).unwrap();
    let mut later = model.clone();
    remove_identity(&mut later, "b");
    let (before, dir) = model.to_executable(&model.graph).unwrap();
    assert_eq!((before, dir), (encode(&chain()), None));
    let (after, _) = model.to_executable(&later.graph).unwrap();
    assert_eq!(ModelProto::decode(after).unwrap(), written(&later));
}

#[test]
fn a_node_added_by_hand_is_written() {
    let mut model = read(&chain()).unwrap();
    let y: ValueId = model.graph.find_value("y").unwrap();
    for (name, op) in [("i", Op::from(Identity {})), ("r", Op::from(Relu {}))] {
        let output = Value { name: name.to_owned(), ty: ValueType::default() };
        model.graph.add_node(Node::new(name, op, vec![output]), &[Some(y), None]);
    }
    let graph = written(&model).graph.unwrap();
    let ops: Vec<&str> = graph.node.iter().map(|n| n.op_type()).collect();
    assert_eq!(ops, ["Relu", "Identity", "Add", "Abs", "Identity", "Relu"]);
    assert_eq!(graph.node[5].input, strings(&["y"]), "a trailing omitted input is left out");
}

#[test]
fn a_copy_of_a_node_of_the_file_is_a_new_node() {
    let mut model = read(&chain()).unwrap();
    for name in ["w", "c"] {
        let old = model.graph.find_value(name).unwrap();
        let mut node = model.graph.node(old.node).clone();
        node.outputs[0].name = format!("{name}.copy");
        let inputs = model.graph.node_inputs(old.node);
        model.graph.add_node(node, &inputs);
    }
    let graph = written(&model).graph.unwrap();
    let initializers: Vec<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    assert_eq!(initializers, ["w", "unused", "w.copy"]);
    let outputs: Vec<&str> = graph.node.iter().map(|n| n.output[0].as_str()).collect();
    assert_eq!(outputs, ["a", "b", "c", "c.copy", "y"]);
}
