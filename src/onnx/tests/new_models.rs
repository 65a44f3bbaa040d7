//! Models for graphs that came from no file.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use basisopt_ir::graph::{Node, Value, ValueType};
use basisopt_ir::op::{Cast, Conv};
use basisopt_ir::tensor::Generator;
use basisopt_ir::{DType, Dim, Graph, Op, Tensor};
use basisopt_onnx::proto::ModelProto;
use basisopt_onnx::{Model, Problem, export_new};
use common::*;
use prost::Message as _;

fn stem() -> Graph {
    let mut graph = Graph::new("stem", 17);
    let dims = vec![Dim::symbol("N"), Dim::Known(3), Dim::symbol("H").add_int(1), Dim::Unknown];
    let x = graph.add_input("x", ValueType { dtype: Some(DType::F32), shape: Some(dims) });
    let weights = Generator::Randn { seed: 1 };
    let w = graph.add_constant("w", Tensor::generated(DType::F32, vec![4, 3, 3, 3], weights).unwrap());
    let conv = Conv { pads: vec![1; 4], ..Conv::default() };
    let output = |name: &str| vec![Value { name: name.to_owned(), ty: ValueType::default() }];
    let conv = graph.add_node(Node::new("conv", Op::from(conv), output("c")), &[Some(x), Some(w), None]);
    let cast = Node::new("", Op::from(Cast { to: DType::F32, saturate: 1 }), output("y"));
    let cast = graph.add_node(cast, &[Some(basisopt_ir::ValueId::of(conv))]);
    graph.add_output(basisopt_ir::ValueId::of(cast));
    graph
}

#[test]
fn a_graph_survives_the_way_through_a_file() {
    let graph = stem();
    let bytes = export_new(&graph).unwrap();
    let proto = ModelProto::decode(bytes.clone()).unwrap();
    assert_eq!(
        (proto.producer_name(), proto.ir_version(), proto.opset_import[0].version()),
        ("basisopt", 8, 17)
    );
    let back = Model::from_bytes("new", bytes, None).unwrap().graph;
    assert_eq!(back.n_nodes(), graph.n_nodes());
    for name in ["x", "w", "c", "y"] {
        let (a, b) = (graph.find_value(name).unwrap(), back.find_value(name).unwrap());
        match (&graph.node(a.node).op, &back.node(b.node).op) {
            (Op::Constant(a), Op::Constant(b)) => assert_eq!(a.to_f64s().unwrap(), b.to_f64s().unwrap()),
            (a, b) => assert_eq!(a, b, "{name}"),
        }
    }
    assert_eq!(back.value(back.find_value("x").unwrap()).ty, graph.value(graph.find_value("x").unwrap()).ty);
    let nodes = proto.graph.unwrap().node;
    assert_eq!(nodes[0].input, strings(&["x", "w"]));
    assert_eq!((nodes[1].attribute[0].name(), nodes[1].attribute[0].i()), ("to", 1), "required by ONNX");
}

#[test]
fn what_cannot_be_written_is_named() {
    let mut graph = stem();
    graph.add_constant("lost", Tensor::elided(DType::F32, vec![2], 1.0));
    let error = export_new(&graph).unwrap_err();
    assert!(matches!(error.problem(), Problem::Elided { place, .. } if place.contains("lost")), "{error}");

    let mut graph = stem();
    graph.add_constant("vast", Tensor::full(DType::F32, vec![1 << 38], 0.0).unwrap());
    let error = export_new(&graph).unwrap_err();
    assert!(matches!(error.problem(), Problem::TooLarge { place, .. } if place.contains("vast")), "{error}");

    let mut graph = stem();
    graph.add_input("untyped", ValueType::default());
    assert!(export_new(&graph).unwrap_err().to_string().contains("untyped"));

    let mut graph = stem();
    graph.opset = 0;
    assert!(matches!(export_new(&graph).unwrap_err().problem(), Problem::Opset { .. }));
}
