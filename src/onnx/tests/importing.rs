//! What a graph looks like after import.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use basisopt_ir::{DType, Dim, Op, Origin, ValueId};
use basisopt_onnx::Model;
use basisopt_onnx::proto::{AttributeProto, SparseTensorProto, TensorProto, TypeProto, type_proto};
use basisopt_onnx::proto::{TensorShapeProto, tensor_shape_proto};
use common::*;
use half::{bf16, f16};

/// The constant that a lone initializer becomes.
fn constant(tensor: TensorProto) -> basisopt_ir::Tensor {
    let model = read(&model(graph(vec![node("Identity", &["x"], &["y"])], vec![tensor]))).unwrap();
    let id = model.graph.find_value("w").unwrap();
    model.graph.constant(id).unwrap().clone()
}

fn typed(code: i32, dims: &[i64]) -> TensorProto {
    TensorProto { name: text("w"), data_type: Some(code), dims: dims.to_vec(), ..TensorProto::default() }
}

#[test]
fn typed_data_of_every_kind() {
    let t = constant(TensorProto { float_data: vec![1.5, -2.0], ..typed(1, &[2]) });
    assert_eq!((t.dtype(), t.to_f64s().unwrap()), (DType::F32, vec![1.5, -2.0]));
    let t = constant(TensorProto { double_data: vec![0.1], ..typed(11, &[]) });
    assert_eq!(t.to_f64s().unwrap(), [0.1]);
    let t = constant(TensorProto { int64_data: vec![-1, 1 << 40], ..typed(7, &[2]) });
    assert_eq!(t.to_i64s().unwrap(), [-1, 1 << 40]);
    let t = constant(TensorProto { uint64_data: vec![u64::from(u32::MAX)], ..typed(12, &[1]) });
    assert_eq!((t.dtype(), t.to_i64s().unwrap()), (DType::U32, vec![4_294_967_295]));
    let t = constant(TensorProto { uint64_data: vec![7], ..typed(13, &[1]) });
    assert_eq!((t.dtype(), t.to_i64s().unwrap()), (DType::U64, vec![7]));
    for (code, values) in [
        (2, [0, 255]),
        (3, [-128, 127]),
        (4, [0, 65535]),
        (5, [-32768, 32767]),
        (6, [i32::MIN, i32::MAX]),
        (9, [0, 1]),
    ] {
        let t = constant(TensorProto { int32_data: values.to_vec(), ..typed(code, &[2]) });
        assert_eq!(t.to_i64s().unwrap(), values.map(i64::from), "type {code}");
    }
    let halves = [f16::from_f32(1.5).to_bits(), f16::from_f32(-0.25).to_bits()].map(i32::from);
    let t = constant(TensorProto { int32_data: halves.to_vec(), ..typed(10, &[2]) });
    assert_eq!((t.dtype(), t.to_f64s().unwrap()), (DType::F16, vec![1.5, -0.25]));
    let brain = vec![i32::from(bf16::from_f32(-3.0).to_bits())];
    let t = constant(TensorProto { int32_data: brain, ..typed(16, &[1]) });
    assert_eq!(t.to_f64s().unwrap(), [-3.0]);
    // Two elements in one integer.
    let t = constant(TensorProto { int32_data: vec![0x21, 0x03], ..typed(22, &[3]) });
    assert_eq!((t.dtype(), &t.to_bytes().unwrap()[..]), (DType::I4, &[0x21, 0x03][..]));
    let t = constant(TensorProto { float_data: vec![1.0, 2.0], ..typed(14, &[1]) });
    assert_eq!((t.dtype(), t.to_bytes().unwrap().len()), (DType::C64, 8));
}

#[test]
fn weights_are_slices_of_the_file() {
    let bytes =
        encode(&model(graph(vec![node("Identity", &["x"], &["y"])], vec![floats("w", &[1], &[1.0])])));
    let model = Model::from_bytes("m", bytes.clone(), None).unwrap();
    let w = model.graph.constant(model.graph.find_value("w").unwrap()).unwrap().to_bytes().unwrap();
    assert!(bytes.as_ptr_range().contains(&w.as_ptr()));
}

#[test]
fn initializers_that_are_inputs_too() {
    let mut proto = model(graph(vec![node("Add", &["x", "w"], &["y"])], vec![floats("w", &[1], &[1.0])]));
    proto.graph.as_mut().unwrap().input.insert(0, info("w", &[1]));
    for (ir_version, overridable) in [(3, false), (8, true)] {
        proto.ir_version = Some(ir_version);
        let model = read(&proto).unwrap();
        let w = model.graph.find_value("w").unwrap();
        assert_eq!(model.graph.node(w.node).overridable, overridable);
        assert_eq!(model.graph.constant(w).is_none(), overridable);
        assert_eq!(model.graph.inputs().len(), 1);
        assert_eq!(model.graph.node(model.graph.inputs()[0]).origin, Some(Origin::Input(1)));
    }
}

#[test]
fn what_no_tensor_holds_is_carried() {
    let mut proto = model(graph(vec![node("Identity", &["x"], &["y"])], vec![]));
    let graph = proto.graph.as_mut().unwrap();
    graph.initializer.push(TensorProto { string_data: vec!["a".into()], ..typed(8, &[1]) });
    graph.initializer.push(TensorProto { name: text("f6"), ..typed(27, &[1]) });
    graph.sparse_initializer.push(SparseTensorProto {
        values: Some(TensorProto { name: text("s"), ..floats("s", &[1], &[2.0]) }),
        indices: Some(TensorProto { int64_data: vec![3], ..typed(7, &[1]) }),
        dims: vec![10],
    });
    let model = read(&proto).unwrap();
    for (name, origin) in
        [("w", Origin::Initializer(0)), ("f6", Origin::Initializer(1)), ("s", Origin::SparseInitializer(0))]
    {
        let node = model.graph.node(model.graph.find_value(name).unwrap().node);
        assert!(matches!(&node.op, Op::Opaque(op) if op.op_type == "Constant"), "{name}");
        assert_eq!(node.origin, Some(origin));
    }
    let spliced = model.source().encode_spliced(&model.graph).unwrap();
    assert_eq!(spliced.concat(), encode(&proto));
}

#[test]
fn constant_nodes() {
    let constant = |attribute: AttributeProto, output: &str| {
        let mut node = node("Constant", &[], &[output]);
        node.attribute.push(attribute);
        node
    };
    let attr = |name: &str, kind: i32| AttributeProto {
        name: text(name),
        r#type: Some(kind),
        ..AttributeProto::default()
    };
    let nodes = vec![
        constant(AttributeProto { t: Some(floats("", &[1], &[7.0])), ..attr("value", 4) }, "a"),
        constant(AttributeProto { f: Some(0.5), ..attr("value_float", 1) }, "b"),
        constant(AttributeProto { ints: vec![1, 2, 3], ..attr("value_ints", 7) }, "c"),
        constant(AttributeProto { s: Some("hi".into()), ..attr("value_string", 3) }, "d"),
        node("Identity", &["x"], &["y"]),
    ];
    let model = read(&model(graph(nodes, vec![]))).unwrap();
    let get = |name: &str| model.graph.find_value(name).unwrap();
    assert_eq!(model.graph.constant(get("a")).unwrap().to_f64s().unwrap(), [7.0]);
    assert_eq!(model.graph.constant(get("b")).unwrap().shape(), [0usize; 0]);
    assert_eq!(model.graph.constant(get("c")).unwrap().to_i64s().unwrap(), [1, 2, 3]);
    assert!(model.graph.constant(get("d")).is_none());
    assert_eq!(model.graph.node(get("b").node).origin, Some(Origin::Node(1)));
}

#[test]
fn bodies_capture_what_they_do_not_define() {
    // then: k = Add(outer, w); inner If reads `deep` and `k`. else: returns `outer` itself.
    let mut inner = node("If", &["flag"], &["r"]);
    let mut innermost = graph(vec![node("Mul", &["k", "deep"], &["m"])], vec![]);
    (innermost.input, innermost.output) = (vec![], vec![info("m", &[2])]);
    inner.attribute.push(body_attribute("then_branch", innermost));
    let mut then =
        graph(vec![node("Add", &["outer", "w"], &["k"]), inner], vec![floats("local", &[1], &[1.0])]);
    (then.input, then.output) = (vec![], vec![info("r", &[2])]);
    let mut otherwise = graph(vec![], vec![]);
    (otherwise.input, otherwise.output) = (vec![], vec![info("outer", &[2])]);
    let mut choice = node("If", &["flag"], &["y"]);
    choice.attribute.push(body_attribute("then_branch", then));
    choice.attribute.push(body_attribute("else_branch", otherwise));
    let proto = model(graph(
        vec![
            choice,
            node("Relu", &["x"], &["outer"]),
            node("Abs", &["x"], &["deep"]),
            node("Neg", &["x"], &["flag"]),
        ],
        vec![floats("w", &[1], &[1.0])],
    ));
    let model = read(&proto).unwrap();
    let id = model.graph.find_value("y").unwrap().node;
    let Op::Opaque(op) = &model.graph.node(id).op else { panic!("If is not modelled") };
    let names: Vec<String> = model
        .graph
        .node_inputs(id)
        .into_iter()
        .flatten()
        .map(|v| model.graph.value(v).name.clone())
        .collect();
    assert_eq!((op.n_captures, names), (4, strings(&["flag", "outer", "w", "flag", "deep"])));
    assert!(model.graph.is_captured(model.graph.find_value("outer").unwrap()));

    let mut dangling = proto.clone();
    dangling.graph.as_mut().unwrap().initializer.clear();
    let message = read(&dangling).unwrap_err().to_string();
    assert!(message.contains("y_If") && message.contains("\"w\""), "{message}");
}

#[test]
fn optional_inputs_are_empty_slots_and_nodes_may_be_out_of_order() {
    let proto = model(graph(
        vec![node("Clip", &["h", "", "hi"], &["y"]), node("Relu", &["x"], &["h"])],
        vec![floats("hi", &[], &[6.0])],
    ));
    let model = read(&proto).unwrap();
    let clip = model.graph.find_value("y").unwrap().node;
    let inputs = model.graph.node_inputs(clip);
    assert_eq!(inputs.len(), 3);
    assert_eq!(inputs[1], None);
    assert_eq!(model.graph.node(inputs[0].unwrap().node).origin, Some(Origin::Node(1)));
}

#[test]
fn outputs_may_be_inputs_or_constants() {
    let mut proto = model(graph(vec![], vec![floats("w", &[2], &[1.0, 2.0])]));
    proto.graph.as_mut().unwrap().output = vec![info("x", &[2]), info("w", &[2])];
    let model = read(&proto).unwrap();
    let names: Vec<&str> =
        model.graph.outputs().iter().map(|&v| model.graph.value(v).name.as_str()).collect();
    assert_eq!(names, ["x", "w"]);
}

#[test]
fn types_come_from_inputs_outputs_and_value_info() {
    let mut proto = model(graph(vec![node("Relu", &["x"], &["h"]), node("Relu", &["h"], &["y"])], vec![]));
    let graph = proto.graph.as_mut().unwrap();
    graph.value_info.push(info("h", &[2, 5]));
    let value = |v| Some(tensor_shape_proto::Dimension { value: v, denotation: None });
    use tensor_shape_proto::dimension::Value::{DimParam, DimValue};
    let dims = [Some(DimParam("N".into())), None, Some(DimParam("h / 2".into())), Some(DimValue(3))];
    let shape = TensorShapeProto { dim: dims.into_iter().filter_map(value).collect() };
    let tensor = type_proto::Tensor { elem_type: Some(10), shape: Some(shape) };
    graph.input[0].r#type =
        Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None });
    let model = read(&proto).unwrap();
    let ty = |name: &str| model.graph.value(model.graph.find_value(name).unwrap()).ty.clone();
    assert_eq!(ty("x").dtype, Some(DType::F16));
    let x: Vec<String> = ty("x").shape.unwrap().iter().map(Dim::to_string).collect();
    assert_eq!(x, ["N", "?", "h/2", "3"]);
    assert_eq!(ty("h").static_shape(), Some(vec![2, 5]));
}

#[test]
fn other_domains_and_functions_are_opaque() {
    let mut custom = node("Relu", &["x"], &["h"]);
    custom.domain = text("com.example");
    let proto = model(graph(vec![custom, node("Relu", &["h"], &["y"])], vec![]));
    let model = read(&proto).unwrap();
    let h = model.graph.find_value("h").unwrap();
    assert!(matches!(&model.graph.node(h.node).op, Op::Opaque(op) if op.domain == "com.example"));
    let y: ValueId = model.graph.find_value("y").unwrap();
    assert!(matches!(model.graph.node(y.node).op, Op::Relu(_)));
}
