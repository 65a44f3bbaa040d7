//! Expected shapes were computed by onnx 1.23 (`shape_inference`) and onnxruntime 1.32 (by running
//! the node), which agree on all of them; what is symbolic was calculated by hand.

use super::*;
use crate::attr::{Attr, Attrs};
use crate::graph::{Node, Value};
use crate::tensor::{DType, Tensor};

/// An input of the node under test.
enum In {
    /// A graph input: dimensions as text, separated by spaces.
    X(&'static str),
    /// An integer constant of rank 1.
    I(&'static [i64]),
    /// A float constant of rank 1.
    F(&'static [f32]),
    /// An omitted input.
    No,
}
use In::{F, I, No, X};

fn value_type(dims: &str) -> ValueType {
    let shape = dims.split_whitespace().map(|d| Dim::parse(d).unwrap()).collect();
    ValueType { dtype: Some(DType::F32), shape: Some(shape) }
}

fn ints(name: &str, list: &[i64]) -> (String, Attr) {
    (name.to_owned(), Attr::Ints(list.to_vec()))
}

fn int(name: &str, v: i64) -> (String, Attr) {
    (name.to_owned(), Attr::Int(v))
}

fn text(name: &str, v: &'static str) -> (String, Attr) {
    (name.to_owned(), Attr::Str(bytes::Bytes::from_static(v.as_bytes())))
}

/// A graph of one node with `n_outputs` outputs.
fn graph(
    opset: i64,
    op: &str,
    attrs: Vec<(String, Attr)>,
    inputs: &[In],
    n_outputs: usize,
) -> (Graph, NodeId) {
    let mut g = Graph::new("g", opset);
    let slots: Vec<Option<ValueId>> = inputs
        .iter()
        .enumerate()
        .map(|(i, input)| match input {
            X(dims) => Some(g.add_input(format!("x{i}"), value_type(dims))),
            I(v) => Some(g.add_constant(format!("c{i}"), Tensor::from_i64s(vec![v.len()], v).unwrap())),
            F(v) => Some(g.add_constant(format!("c{i}"), Tensor::from_f32s(vec![v.len()], v).unwrap())),
            No => None,
        })
        .collect();
    let op = Op::from_attrs(op, Attrs::from_iter(attrs));
    assert!(!matches!(op, Op::Opaque(_)), "{op:?}");
    let outputs = (0..n_outputs).map(|i| Value { name: format!("y{i}"), ty: ValueType::default() }).collect();
    let id = g.add_node(Node::new("node", op, outputs), &slots);
    (g, id)
}

/// The type of the first output.
fn first(opset: i64, op: &str, attrs: Vec<(String, Attr)>, inputs: &[In]) -> String {
    let (g, id) = graph(opset, op, attrs, inputs, 1);
    node_types(&g, id).map_or_else(|e| e.to_string(), |types| type_words(&types[0]))
}

#[test]
fn convolutions() {
    let conv = |attrs, inputs: &[In]| first(18, "Conv", attrs, inputs);
    let (x, w) = (X("2 4 11 13"), X("6 4 3 5"));
    let grouped = vec![
        int("group", 2),
        ints("strides", &[2, 3]),
        ints("pads", &[1, 0, 2, 1]),
        ints("dilations", &[2, 1]),
    ];
    assert_eq!(conv(grouped, &[X("2 4 11 13"), X("6 2 3 5")]), "f32[2,6,5,4]");
    let same = vec![ints("strides", &[2, 3]), text("auto_pad", "SAME_UPPER")];
    assert_eq!(conv(same, &[x, w]), "f32[2,6,6,5]");
    let valid = vec![ints("strides", &[2, 3]), text("auto_pad", "VALID")];
    assert_eq!(conv(valid, &[X("2 4 11 13"), X("6 4 3 5")]), "f32[2,6,5,3]");
    assert_eq!(conv(vec![ints("pads", &[1, 2])], &[X("1 3 9"), X("5 3 4")]), "f32[1,5,9]");
    assert_eq!(conv(vec![ints("strides", &[1, 2, 3])], &[X("1 1 6 7 8"), X("2 1 3 3 3")]), "f32[1,2,4,3,2]");
    // floor((H + 2 - 3)/2) + 1, and ceil(W/2).
    let padded = vec![ints("strides", &[2, 2]), ints("pads", &[1, 1, 1, 1])];
    assert_eq!(conv(padded, &[X("N 3 H W"), X("8 3 3 3")]), "f32[N,8,(H+1)/2,(W+1)/2]");
    let same = vec![ints("strides", &[2, 2]), text("auto_pad", "SAME_LOWER")];
    assert_eq!(conv(same, &[X("N 3 H 9"), X("8 3 3 3")]), "f32[N,8,(H+1)/2,5]");
}

#[test]
fn transposed_convolutions() {
    let conv = |attrs, inputs: &[In]| first(18, "ConvTranspose", attrs, inputs);
    let (x, w) = ("1 6 5 7", "6 2 3 4");
    let strides = || ints("strides", &[2, 3]);
    let grouped =
        vec![int("group", 3), strides(), ints("pads", &[1, 0, 0, 2]), ints("output_padding", &[1, 2])];
    assert_eq!(conv(grouped, &[X(x), X(w)]), "f32[1,6,11,22]");
    assert_eq!(conv(vec![strides(), ints("output_shape", &[10, 20])], &[X(x), X(w)]), "f32[1,2,10,20]");
    assert_eq!(conv(vec![strides(), text("auto_pad", "SAME_LOWER")], &[X(x), X(w)]), "f32[1,2,10,21]");
    assert_eq!(conv(vec![ints("dilations", &[2, 3])], &[X(x), X("6 2 3 3")]), "f32[1,2,9,13]");
    // A kernel smaller than the stride is not filled up to input · stride (onnxruntime: 11, 14).
    let gaps = vec![ints("strides", &[3, 3]), text("auto_pad", "SAME_LOWER")];
    assert_eq!(conv(gaps, &[X("1 3 4 5"), X("3 4 2 2")]), "f32[1,4,11,14]");
    // 2·(H - 1) + 4 - 2.
    let double = vec![ints("strides", &[2, 2]), ints("pads", &[1, 1, 1, 1])];
    assert_eq!(conv(double, &[X("N 8 H W"), X("8 3 4 4")]), "f32[N,3,2*H,2*W]");
}

#[test]
fn pooling() {
    let window = vec![ints("kernel_shape", &[3, 2]), ints("strides", &[2, 3]), ints("pads", &[1, 0, 1, 1])];
    let (g, id) = graph(18, "MaxPool", window, &[X("1 2 14 15")], 2);
    let types = node_types(&g, id).unwrap();
    assert_eq!([type_words(&types[0]), type_words(&types[1])], ["f32[1,2,7,5]", "i64[1,2,7,5]"]);
    // The last window may not start in the padding behind the input. onnxruntime keeps to that;
    // onnx's own inference does not, and says 5 and 2.
    let ceil = || int("ceil_mode", 1);
    let wide = vec![ints("kernel_shape", &[3, 2]), ints("strides", &[2, 4]), ceil()];
    assert_eq!(first(18, "MaxPool", wide, &[X("1 2 14 15")]), "f32[1,2,7,4]");
    let gaps = vec![ints("kernel_shape", &[1, 1]), ints("strides", &[2, 2]), ceil()];
    assert_eq!(first(18, "MaxPool", gaps, &[X("1 2 2 2")]), "f32[1,2,1,1]");
    let same = vec![ints("kernel_shape", &[3, 3]), ints("strides", &[2, 2]), text("auto_pad", "SAME_LOWER")];
    assert_eq!(first(18, "AveragePool", same, &[X("1 2 7 7")]), "f32[1,2,4,4]");
    // Window 3, stride 2: ceil((H - 3)/2) + 1 needs no correction; window 1 might.
    let three = vec![ints("kernel_shape", &[3, 1]), ints("strides", &[2, 2]), ceil()];
    assert_eq!(first(18, "MaxPool", three, &[X("N 2 H W")]), "f32[N,2,H/2,?]");
    assert_eq!(first(18, "GlobalAveragePool", vec![], &[X("N 2 H W")]), "f32[N,2,1,1]");
}

#[test]
fn resizing() {
    assert_eq!(first(18, "Resize", vec![], &[X("1 2 5 7"), No, F(&[1.0, 1.0, 2.5, 0.6])]), "f32[1,2,12,4]");
    let fit = vec![ints("axes", &[3, 2]), text("keep_aspect_ratio_policy", "not_larger")];
    assert_eq!(first(18, "Resize", fit, &[X("1 2 5 7"), No, No, I(&[10, 9])]), "f32[1,2,7,10]");
    assert_eq!(first(10, "Resize", vec![], &[X("1 2 5 7"), F(&[1.0, 1.0, 2.0, 0.5])]), "f32[1,2,10,3]");
    assert_eq!(first(9, "Upsample", vec![], &[X("1 2 5 7"), F(&[1.0, 1.0, 2.0, 1.5])]), "f32[1,2,10,10]");
    // An empty list of scales is as good as none; sizes win.
    assert_eq!(
        first(11, "Resize", vec![], &[X("N 2 H W"), F(&[]), F(&[]), I(&[1, 2, 8, 9])]),
        "f32[1,2,8,9]"
    );
    assert_eq!(
        first(13, "Resize", vec![], &[X("N 2 H W"), No, F(&[1.0, 1.0, 2.0, 0.5])]),
        "f32[N,2,2*H,W/2]"
    );
    // A third has no exact float.
    assert_eq!(
        first(13, "Resize", vec![], &[X("N 2 H W"), No, F(&[1.0, 1.0, 0.333_333_34, 1.5])]),
        "f32[N,2,?,?]"
    );
}

#[test]
fn cutting_and_padding() {
    let slice = |x, starts, ends, axes, steps| {
        first(13, "Slice", vec![], &[X(x), I(starts), I(ends), I(axes), I(steps)])
    };
    let ends = &[i64::MAX, i64::MIN, 100];
    assert_eq!(slice("9 8 7", &[1, -1, -3], ends, &[0, 1, -1], &[3, -2, 1]), "f32[3,4,3]");
    // A start before the beginning is the first element, also backwards (onnx: 1).
    assert_eq!(slice("6", &[-100], &[i64::MIN], &[0], &[-1]), "f32[1]");
    assert_eq!(
        slice("N H W", &[0, 1, -1], &[i64::MAX, -1, i64::MAX], &[0, 1, 2], &[1, 1, 1]),
        "f32[N,H-2,1]"
    );
    assert_eq!(
        slice("N H W", &[-1, 0, 0], &[i64::MIN, i64::MAX, 5], &[0, 1, 2], &[-1, 2, 1]),
        "f32[N,(H+1)/2,?]"
    );
    let old = vec![ints("starts", &[1]), ints("ends", &[3]), ints("axes", &[1])];
    assert_eq!(first(9, "Slice", old, &[X("2 8")]), "f32[2,2]");

    assert_eq!(first(18, "Pad", vec![], &[X("3 4"), I(&[1, -1, 2, 0])]), "f32[6,3]");
    assert_eq!(first(10, "Pad", vec![ints("pads", &[0, 1, 0, 1])], &[X("N W")]), "f32[N,W+2]");

    let (g, id) = graph(18, "Split", vec![int("axis", 1), int("num_outputs", 4)], &[X("3 10")], 4);
    let lengths: Vec<String> = node_types(&g, id).unwrap().iter().map(type_words).collect();
    assert_eq!(lengths, ["f32[3,3]", "f32[3,3]", "f32[3,3]", "f32[3,1]"]);
    let (g, id) = graph(11, "Split", vec![int("axis", 1), ints("split", &[4, 6])], &[X("N 10")], 2);
    assert_eq!(type_words(&node_types(&g, id).unwrap()[1]), "f32[N,6]");
}

#[test]
fn moving_elements() {
    assert_eq!(first(13, "Gather", vec![int("axis", -2)], &[X("3 4 5"), X("2 6")]), "f32[3,2,6,5]");
    assert_eq!(first(13, "Flatten", vec![int("axis", -2)], &[X("2 3 4 5")]), "f32[6,20]");
    assert_eq!(first(13, "Flatten", vec![], &[X("N 3 4 5")]), "f32[N,60]");
    assert_eq!(first(13, "Tile", vec![], &[X("2 3"), I(&[2, 4])]), "f32[4,12]");
    assert_eq!(first(13, "Expand", vec![], &[X("3 1"), I(&[2, 1, 6])]), "f32[2,3,6]");
    assert_eq!(first(13, "DepthToSpace", vec![int("blocksize", 2)], &[X("1 12 2 3")]), "f32[1,3,4,6]");
    assert_eq!(first(13, "SpaceToDepth", vec![int("blocksize", 2)], &[X("1 3 4 W")]), "f32[1,12,2,W/2]");
    assert_eq!(first(13, "Transpose", vec![ints("perm", &[0, 2, 3, 1])], &[X("N 3 H W")]), "f32[N,H,W,3]");
    assert_eq!(first(13, "Transpose", vec![], &[X("N 3 H")]), "f32[H,3,N]");
    assert_eq!(first(11, "Unsqueeze", vec![ints("axes", &[0, -1])], &[X("3 H")]), "f32[1,3,H,1]");
    assert_eq!(first(13, "Squeeze", vec![], &[X("N 3 1 1"), I(&[2, 3])]), "f32[N,3]");
    // N may be 1 as well.
    assert_eq!(first(13, "Squeeze", vec![], &[X("N 3 1 1")]), "f32[…]");
    assert_eq!(first(13, "Concat", vec![int("axis", 1)], &[X("N 3 8 W"), X("N 5 H W")]), "f32[N,8,8,W]");
    assert_eq!(first(18, "ReduceMean", vec![int("keepdims", 0)], &[X("2 3 4"), I(&[-1, 0])]), "f32[3]");
    assert_eq!(first(13, "ReduceMean", vec![ints("axes", &[2, 3])], &[X("N C H W")]), "f32[N,C,1,1]");
    assert_eq!(first(13, "ArgMax", vec![int("axis", 1)], &[X("N 10")]), "i64[N,1]");
}

#[test]
fn reshaping() {
    let reshape = |x, shape| first(13, "Reshape", vec![], &[X(x), I(shape)]);
    assert_eq!(reshape("2 3 8", &[0, -1, 4]), "f32[2,6,4]");
    assert_eq!(reshape("N 64 7 7", &[0, -1]), "f32[N,3136]");
    assert_eq!(reshape("N 64 7 7", &[-1, 3136]), "f32[N,3136]");
    assert_eq!(reshape("N 6 H W", &[0, 2, 3, -1]), "f32[N,2,3,?]");
    assert_eq!(reshape("1 6 H 4", &[0, 2, 3, -1]), "f32[1,2,3,4*H]");
    assert_eq!(first(1, "Reshape", vec![ints("shape", &[0, 10])], &[X("N 10 1 1")]), "f32[N,10]");
    assert_eq!(first(14, "Reshape", vec![int("allowzero", 1)], &[X("0 3"), I(&[3, 0])]), "f32[3,0]");
}

#[test]
fn broadcasting() {
    assert_eq!(first(13, "Add", vec![], &[X("N 3 H W"), X("3 1 1")]), "f32[N,3,H,W]");
    assert_eq!(first(13, "Mul", vec![], &[X("N 1 H"), X("M 5 H")]), "f32[?,5,H]");
    assert_eq!(first(13, "Less", vec![], &[X("N 3"), X("3")]), "bool[N,3]");
    // Opset 6 lays the second operand along `axis` of the first.
    assert_eq!(
        first(6, "Add", vec![int("broadcast", 1), int("axis", 1)], &[X("2 3 4 5"), X("3 4")]),
        "f32[2,3,4,5]"
    );
    assert_eq!(
        first(6, "Add", vec![int("broadcast", 1), int("axis", 1)], &[X("2 3 4 5"), X("4 5")]),
        "Add node \"node\": the shapes [2,3,4,5] and [4,5] cannot be broadcast to one"
    );
}

#[test]
fn matrix_products() {
    assert_eq!(first(13, "MatMul", vec![], &[X("5 1 2 3"), X("4 3 7")]), "f32[5,4,2,7]");
    assert_eq!(first(13, "MatMul", vec![], &[X("3"), X("4 3 7")]), "f32[4,7]");
    assert_eq!(first(13, "MatMul", vec![], &[X("3"), X("3")]), "f32[]");
    let both = vec![int("transA", 1), int("transB", 1)];
    assert_eq!(first(13, "Gemm", both, &[X("4 N"), X("7 4"), X("7")]), "f32[N,7]");
}

#[test]
fn contradictions_name_the_node_and_both_sides() {
    let fails = |op, attrs, inputs: &[In], words: &str| {
        let message = first(18, op, attrs, inputs);
        assert_eq!(message, format!("{op} node \"node\": {words}"));
    };
    let (x, w) = ("1 8 9 9", "4 8 3 3");
    fails(
        "Conv",
        vec![],
        &[X(x), X("4 3 3 3")],
        "the weight [4,3,3,3] with group 1 takes 3 channels, but the input has 8",
    );
    fails(
        "Conv",
        vec![int("group", 3)],
        &[X("1 24 9 9"), X(w)],
        "4 output channels do not divide into 3 groups",
    );
    fails(
        "Conv",
        vec![],
        &[X("1 8 9"), X(w)],
        "input and weight must have the same rank, found [1,8,9] and [4,8,3,3]",
    );
    let kernel = vec![ints("kernel_shape", &[5, 5])];
    fails(
        "Conv",
        kernel,
        &[X(x), X(w)],
        "attribute `kernel_shape` is [5, 5], but the weight's kernel is [3,3]",
    );
    fails(
        "Conv",
        vec![ints("strides", &[1])],
        &[X(x), X(w)],
        "attribute `strides` must have 2 entries, found 1: [1]",
    );
    fails(
        "Conv",
        vec![ints("strides", &[1, 0])],
        &[X(x), X(w)],
        "attribute `strides` must not be below 1, found 0",
    );
    fails(
        "Conv",
        vec![ints("pads", &[1, 1])],
        &[X(x), X(w)],
        "attribute `pads` must have 4 entries, found 2: [1, 1]",
    );
    let bias = "the bias must have one element for each of 4 output channels, found [5]";
    fails("Conv", vec![], &[X(x), X(w), X("5")], bias);
    fails(
        "Conv",
        vec![],
        &[X("1 8 2 9"), X(w)],
        "a window of 3 does not fit into 2 elements padded by 0 and 0",
    );
    let bn = "input 3 must have one element for each of 8 channels, found [7]";
    fails("BatchNormalization", vec![], &[X(x), X("8"), X("8"), X("7"), X("8")], bn);
    fails("Gemm", vec![], &[X("2 3"), X("4 5")], "the inner dimensions must be equal, found 3 and 4");
    fails(
        "Transpose",
        vec![ints("perm", &[0, 2, 2])],
        &[X("1 2 3")],
        "perm [0, 2, 2] is no permutation of the 3 axes",
    );
    let concat = "the inputs must agree in all axes but 1, found [1,2,3], [1,2]";
    fails("Concat", vec![int("axis", 1)], &[X("1 2 3"), X("1 2")], concat);
    fails("Reshape", vec![], &[X("2 3"), I(&[4, -1])], "the elements of [2,3] do not divide by those of [4]");
    fails("Reshape", vec![], &[X("2 3"), I(&[7])], "[2,3] has not as many elements as [7]");
}

#[test]
fn numbers_nobody_means_are_survived() {
    let huge = i64::MAX;
    let wild = vec![ints("pads", &[huge; 4]), ints("strides", &[huge; 2]), ints("dilations", &[huge; 2])];
    first(18, "Conv", wild, &[X("1 8 9 9"), X("4 8 3 3")]);
    first(18, "Conv", vec![int("group", huge)], &[X("1 8 9 9"), X("4 8 3 3")]);
    first(18, "DepthToSpace", vec![int("blocksize", huge)], &[X("1 8 9 9")]);
    first(18, "Slice", vec![], &[X("9"), I(&[i64::MIN]), I(&[i64::MAX]), I(&[0]), I(&[i64::MIN])]);
    first(18, "Flatten", vec![int("axis", i64::MIN)], &[X("9")]);
    // A shape of a trillion dimensions is only a claim.
    assert_eq!(first(18, "Reshape", vec![], &[X("9"), X("1000000000000")]), "f32[…]");
    assert_eq!(first(18, "ConstantOfShape", vec![], &[X("1000000000000")]), "f32[…]");
}
