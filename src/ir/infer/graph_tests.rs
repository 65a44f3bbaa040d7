//! Inference over whole graphs: shapes as values, notes of the file, geometry.

use super::*;
use crate::graph::{Node, Value};
use crate::op::{self, Opaque};
use crate::tensor::{DType, Tensor};

fn typed(dims: &str) -> ValueType {
    let shape = dims.split_whitespace().map(|d| Dim::parse(d).unwrap()).collect();
    ValueType { dtype: Some(DType::F32), shape: Some(shape) }
}

fn node(g: &mut Graph, op: impl Into<Op>, name: &str, inputs: &[ValueId]) -> ValueId {
    let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
    let out = Value { name: name.to_owned(), ty: ValueType::default() };
    ValueId::of(g.add_node(Node::new(name, op.into(), vec![out]), &inputs))
}

fn vector(g: &mut Graph, name: &str, v: &[i64]) -> ValueId {
    g.add_constant(name, Tensor::from_i64s(vec![v.len()], v).unwrap())
}

fn words(g: &Graph, v: ValueId) -> String {
    type_words(&g.value(v).ty)
}

#[test]
fn a_shape_computed_from_a_shape_keeps_the_batch() {
    // view(x.size(0), -1), as PyTorch has exported it since opset 9.
    let mut g = Graph::new("g", 13);
    let x = g.add_input("x", typed("N 64 2 2"));
    let shape = node(&mut g, op::Shape::default(), "shape", &[x]);
    let zero = g.add_constant("zero", Tensor::from_i64s(vec![], &[0]).unwrap());
    let batch = node(&mut g, op::Gather::default(), "batch", &[shape, zero]);
    let axes = vector(&mut g, "axes", &[0]);
    let batch = node(&mut g, op::Unsqueeze::default(), "batch1", &[batch, axes]);
    let rest = vector(&mut g, "rest", &[-1]);
    let target = node(&mut g, op::Concat { axis: 0 }, "target", &[batch, rest]);
    let y = node(&mut g, op::Reshape::default(), "y", &[x, target]);
    g.add_output(y);
    let report = infer(&mut g).unwrap();
    assert_eq!(words(&g, y), "f32[N,256]");
    assert_eq!(words(&g, batch), "i64[1]");
    assert_eq!((report.n_values, report.n_ranked, report.n_static), (9, 9, 7));
    crate::verify(&g).unwrap();
}

#[test]
fn twice_the_height_through_floats_is_twice_the_height() {
    // interpolate(x, scale_factor=2): sizes go through Cast, Mul, Floor, Cast.
    let mut g = Graph::new("g", 11);
    let x = g.add_input("x", typed("N 3 H 20"));
    let shape = node(&mut g, op::Shape::default(), "shape", &[x]);
    let (a, b, c) = (vector(&mut g, "a", &[0]), vector(&mut g, "b", &[2]), vector(&mut g, "c", &[4]));
    let front = node(&mut g, op::Slice::default(), "front", &[shape, a, b]);
    let back = node(&mut g, op::Slice::default(), "back", &[shape, b, c]);
    let float = node(&mut g, op::Cast { saturate: 1, to: DType::F32 }, "float", &[back]);
    let two = g.add_constant("two", Tensor::from_f32s(vec![], &[2.0]).unwrap());
    let scaled = node(&mut g, op::Mul::default(), "scaled", &[float, two]);
    let whole = node(&mut g, op::Floor {}, "whole", &[scaled]);
    let back = node(&mut g, op::Cast { saturate: 1, to: DType::I64 }, "sizes", &[whole]);
    let sizes = node(&mut g, op::Concat { axis: 0 }, "all", &[front, back]);
    let none = g.add_constant("none", Tensor::from_f32s(vec![0], &[]).unwrap());
    let y = node(&mut g, op::Resize::default(), "y", &[x, none, none, sizes]);
    infer(&mut g).unwrap();
    assert_eq!(words(&g, y), "f32[N,3,2*H,40]");
}

#[test]
fn the_more_specific_of_note_and_inference_wins() {
    let mut g = Graph::new("g", 13);
    let x = g.add_input("x", typed("N 3 H"));
    let opaque = Op::Opaque(Opaque {
        domain: "custom".into(),
        op_type: "Mystery".into(),
        attrs: crate::Attrs::new(),
        n_captures: 0,
    });
    let m = node(&mut g, opaque, "m", &[x]);
    g.set_type(m, typed("N 7 ?"));
    let y = node(&mut g, op::Relu {}, "y", &[m]);
    g.set_type(y, typed("unk__1 ? 5"));
    let z = node(&mut g, op::Relu {}, "z", &[x]);
    g.set_type(z, typed("N 4 H"));
    assert_eq!(
        crate::verify(&g).unwrap_err()[0].to_string(),
        "V9 value \"z\": it is noted as f32[N,4,H], but Relu node \"z\" gives f32[N,3,H]"
    );
    let report = infer(&mut g).unwrap();
    assert_eq!(words(&g, m), "f32[N,7,?]");
    assert_eq!(words(&g, y), "f32[N,7,5]");
    assert_eq!(words(&g, z), "f32[N,3,H]");
    let said: Vec<String> = report.disagreements.iter().map(Disagreement::to_string).collect();
    assert_eq!(said, ["Relu node \"z\": inferred f32[N,3,H] for \"z\", but the file says f32[N,4,H]"]);
    crate::verify(&g).unwrap();
}

#[test]
fn quantisation_keeps_shapes() {
    let mut g = Graph::new("g", 13);
    let x = g.add_input("x", typed("N 3"));
    let scale = g.add_constant("scale", Tensor::from_f32s(vec![], &[0.1]).unwrap());
    let zero = g.add_constant("zero", Tensor::from_f64s(DType::I8, vec![], &[0.0]).unwrap());
    let q = node(&mut g, Op::from_attrs("QuantizeLinear", crate::Attrs::new()), "q", &[x, scale, zero]);
    let d = node(&mut g, Op::from_attrs("DequantizeLinear", crate::Attrs::new()), "d", &[q, scale, zero]);
    infer(&mut g).unwrap();
    assert_eq!((words(&g, q), words(&g, d)), ("i8[N,3]".into(), "f32[N,3]".into()));
}

#[test]
fn an_error_leaves_the_graph_alone() {
    let mut g = Graph::new("g", 13);
    let x = g.add_input("x", typed("N 3"));
    let y = node(&mut g, op::Relu {}, "y", &[x]);
    let z = node(&mut g, op::MatMul {}, "z", &[y, y]);
    g.set_type(x, typed("2 3"));
    let error = infer(&mut g).unwrap_err();
    assert_eq!((error.node, error.fault), (z.node, Fault::Shape));
    assert_eq!(error.to_string(), "MatMul node \"z\": the inner dimensions must be equal, found 3 and 2");
    assert_eq!(g.value(y).ty, ValueType::default());
}

fn zeros(g: &mut Graph, name: &str, shape: &[usize]) -> ValueId {
    g.add_constant(name, Tensor::full(DType::F32, shape.to_vec(), 0.0).unwrap())
}

#[test]
fn the_geometry_of_a_convolution() {
    let mut g = Graph::new("g", 13);
    let x = g.add_input("x", typed("N 6 11 13"));
    let (w, b) = (zeros(&mut g, "w", &[8, 3, 3, 5]), zeros(&mut g, "b", &[8]));
    let conv =
        op::Conv { group: 2, strides: vec![2, 3], auto_pad: op::AutoPad::SameUpper, ..Default::default() };
    let y = node(&mut g, conv, "y", &[x, w, b]);
    let c = conv_geometry(&g, y.node).unwrap();
    assert_eq!((c.c_in, c.c_out, c.group, c.n_spatial, c.has_bias), (6, 8, 2, 2, true));
    assert_eq!(c.output, [Dim::Known(6), Dim::Known(5)]);
    // 5·2 + 3 - 11 = 2 rows and 4·3 + 5 - 13 = 4 columns are missing.
    assert_eq!(c.pads, Some(vec![(1, 1), (2, 2)]));
    assert_eq!(c.n_params, 8 * 3 * 3 * 5 + 8);
    assert_eq!(c.macs, Some(6 * 5 * 8 * 3 * 3 * 5));
    assert_eq!(c.batch, Dim::symbol("N"));

    g.set_type(x, typed("N 6 H 13"));
    let c = conv_geometry(&g, y.node).unwrap();
    assert_eq!((c.pads, c.macs), (None, None));
    assert_eq!(c.output, [Dim::parse("(H+1)/2").unwrap(), Dim::Known(5)]);
}

#[test]
fn the_geometry_of_a_transposed_convolution() {
    let mut g = Graph::new("g", 13);
    let x = g.add_input("x", typed("1 6 5 7"));
    let w = zeros(&mut g, "w", &[6, 2, 3, 4]);
    let conv = op::ConvTranspose {
        strides: vec![2, 3],
        output_shape: vec![10, 20],
        auto_pad: op::AutoPad::SameUpper,
        ..Default::default()
    };
    let y = node(&mut g, conv, "y", &[x, w]);
    let c = conv_geometry(&g, y.node).unwrap();
    // Uncut it is 2·4 + 3 = 11 by 3·6 + 4 = 22.
    assert_eq!(c.pads, Some(vec![(0, 1), (1, 1)]));
    assert_eq!((c.c_in, c.c_out), (6, 2));
    assert_eq!(c.macs, Some(5 * 7 * 6 * 2 * 3 * 4));
}

#[test]
fn the_geometry_of_a_linear_layer() {
    let mut g = Graph::new("g", 13);
    let x = g.add_input("x", typed("N 64"));
    let (w, b) = (zeros(&mut g, "w", &[10, 64]), zeros(&mut g, "b", &[10]));
    let y = node(&mut g, op::Gemm { transB: 1, ..Default::default() }, "y", &[x, w, b]);
    let l = linear_geometry(&g, y.node).unwrap();
    assert_eq!((l.n_in, l.n_out, l.n_params, l.macs), (64, 10, 650, Some(640)));
    // 49 tokens of one image.
    let t = g.add_input("t", typed("N 49 10"));
    let z = node(&mut g, op::MatMul {}, "z", &[t, w]);
    let l = linear_geometry(&g, z.node).unwrap();
    assert_eq!((l.rows, l.macs), (Dim::Known(49), Some(49 * 640)));
    assert_eq!(linear_geometry(&g, x.node), None);
}
