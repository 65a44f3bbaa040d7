//! One graph for every invariant that it breaks.

use super::*;
use crate::graph::{Use, Value};
use crate::op::{self, Opaque};
use crate::tensor::{DType, Tensor};

fn add(g: &mut Graph, op: impl Into<Op>, name: &str, inputs: &[Option<ValueId>]) -> ValueId {
    let out = Value { name: name.to_owned(), ty: ValueType::default() };
    ValueId::of(g.add_node(Node::new(name, op.into(), vec![out]), inputs))
}

/// `x -> Relu -> a -> Relu -> b`
fn chain() -> (Graph, [ValueId; 3]) {
    let mut g = Graph::new("g", 13);
    let x = g.add_input("x", ValueType::fixed(DType::F32, &[2, 3]));
    let a = add(&mut g, op::Relu {}, "a", &[Some(x)]);
    let b = add(&mut g, op::Relu {}, "b", &[Some(a)]);
    g.add_output(b);
    (g, [x, a, b])
}

fn numbers(g: &Graph) -> Vec<u8> {
    verify(g).err().map_or(vec![], |v| v.iter().map(|v| v.invariant).collect())
}

#[test]
fn a_sound_graph_has_no_violations() {
    assert_eq!(verify(&chain().0), Ok(()));
    assert_eq!(verify(&Graph::default()), Ok(()));
}

#[test]
fn v1_edges() {
    let (mut g, [_, a, b]) = chain();
    g.set_input(Use { node: b.node, slot: 0 }, Some(ValueId { node: a.node, port: 7 }));
    assert_eq!(numbers(&g), [1]);
}

#[test]
fn v2_a_cycle_is_named_once() {
    let (mut g, [_, a, b]) = chain();
    add(&mut g, op::Relu {}, "behind", &[Some(b)]);
    g.set_input(Use { node: a.node, slot: 0 }, Some(b));
    let found = verify(&g).unwrap_err();
    assert_eq!(found.to_string(), "1 violation\nV2 the graph: a cycle of 2 nodes: \"b\" -> \"a\"");
}

#[test]
fn v3_names() {
    let (mut g, [_, a, b]) = chain();
    g.rename(a, "b");
    assert_eq!(numbers(&g), [3]);
    g.rename(a, "");
    assert_eq!(numbers(&g), [3]);
    g.rename(a, "a");
    let mask = Value::default();
    let out = Value { name: "dropped".into(), ty: ValueType::default() };
    g.add_node(Node::new("", op::Dropout::default().into(), vec![out, mask]), &[Some(b)]);
    assert_eq!(verify(&g), Ok(()));
}

#[test]
fn v4_arities() {
    let (mut g, [x, ..]) = chain();
    let conv = add(&mut g, op::Conv::default(), "conv", &[None]);
    add(&mut g, op::Relu {}, "two", &[Some(x), Some(x)]);
    // An empty slot at the end is none.
    add(&mut g, op::Relu {}, "one", &[Some(x), None]);
    let found = verify(&g).unwrap_err();
    assert_eq!(numbers(&g), [4, 4, 4]);
    assert_eq!(found[0].node, Some(conv.node));
    assert_eq!(found[1].to_string(), "V4 Conv node \"conv\": input 1 of 2 to 3 is missing");
    assert_eq!(found[2].to_string(), "V4 Relu node \"two\": takes 1 inputs, found 2");
}

#[test]
fn v5_and_v10_the_rim_of_the_graph() {
    let (mut g, [x, a, _]) = chain();
    g.add_output(ValueId { node: a.node, port: 3 });
    assert_eq!(numbers(&g), [5]);
    let (mut g, _) = chain();
    add(&mut g, Op::Input, "stray", &[Some(x)]);
    assert_eq!(numbers(&g), [4, 10, 10]);
}

#[test]
fn v6_constants() {
    let (mut g, _) = chain();
    let c = g.add_constant("c", Tensor::full(DType::F32, vec![2], 1.0).unwrap());
    g.set_type(c, ValueType::fixed(DType::F32, &[3]));
    let found = verify(&g).unwrap_err();
    assert_eq!(found[0].to_string(), "V6 value \"c\": it is noted as f32[3], but its tensor is f32[2]");
}

#[test]
fn v7_v8_v9_come_in_order_and_all_of_them() {
    let (mut g, [x, a, _]) = chain();
    g.set_type(a, ValueType::fixed(DType::F32, &[2, 4]));
    let halves = g.add_input("halves", ValueType::fixed(DType::F16, &[2, 3]));
    let c = add(&mut g, op::MatMul {}, "c", &[Some(x), Some(x)]);
    add(&mut g, op::Add::default(), "d", &[Some(x), Some(halves)]);
    add(&mut g, op::Relu {}, "e", &[Some(c)]);
    assert_eq!(numbers(&g), [7, 8, 9]);
    let found = verify(&g).unwrap_err();
    assert!(
        found.to_string().starts_with("3 violations\nV7 Add node \"d\": inputs 0 and 1 must have the same")
    );
}

#[test]
fn v11_captures() {
    let (mut g, [x, ..]) = chain();
    let body = |n_captures| {
        let (domain, op_type) = (String::new(), "If".to_owned());
        Op::Opaque(Opaque { domain, op_type, attrs: crate::Attrs::new(), n_captures })
    };
    add(&mut g, body(1), "good", &[Some(x), Some(x)]);
    assert_eq!(verify(&g), Ok(()));
    add(&mut g, body(2), "short", &[Some(x)]);
    add(&mut g, body(1), "empty", &[Some(x), None]);
    assert_eq!(numbers(&g), [11, 11]);
}
