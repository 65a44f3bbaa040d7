//! The `.bir` text format: printing, parsing, and what they promise each other.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test")]

use basisopt_ir::attr::{Attr, Attrs};
use basisopt_ir::dot::{DotOptions, dot};
use basisopt_ir::graph::{Graph, Node, Origin, Use, Value, ValueId, ValueType};
use basisopt_ir::op::{Cast, Conv, Op, Opaque, Relu, Split};
use basisopt_ir::parse::{directives, parse};
use basisopt_ir::print::{PrintOptions, print, print_node, print_with};
use basisopt_ir::tensor::{DType, Generator, Tensor};
use basisopt_ir::{Dim, NodeId};
use bytes::Bytes;

const STEM: &str = "\
graph @stem(%x: f32[N,3,32,32]) -> (%y) {
  %w = f32[16,3,3,3] randn(seed=1)
  %c: f32[N,16,32,32] = Conv<pads=[1,1,1,1]>(%x, %w)
  %g = f32[16] uniform(0.5, 1.5, seed=2)
  %b = f32[16] zeros
  %v = f32[16] ones
  %n: f32[N,16,32,32] = BatchNormalization<epsilon=0.001>(%c, %g, %b, %b, %v)
  %y: f32[N,16,32,32] = Relu(%n)
}
";

/// Checks that the text of a graph reads back to a graph of the same text.
#[track_caller]
fn round_trips(graph: &Graph) -> String {
    for options in [
        PrintOptions::default(),
        PrintOptions { node_names: false, ..PrintOptions::default() },
        PrintOptions { values: true, ..PrintOptions::default() },
    ] {
        let text = print_with(graph, &options);
        let back = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(print_with(&back, &options), text);
    }
    print(graph)
}

fn node(op: impl Into<Op>, outputs: &[&str]) -> Node {
    let values = outputs.iter().map(|&name| Value { name: name.into(), ty: ValueType::default() });
    Node::new(outputs.first().copied().unwrap_or(""), op.into(), values.collect())
}

fn add(g: &mut Graph, op: impl Into<Op>, output: &str, inputs: &[Option<ValueId>]) -> ValueId {
    ValueId::of(g.add_node(node(op, &[output]), inputs))
}

fn opaque(domain: &str, op_type: &str, attrs: &[(&str, Attr)], n_captures: usize) -> Op {
    let attrs: Attrs = attrs.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
    Op::Opaque(Opaque { domain: domain.into(), op_type: op_type.into(), attrs, n_captures })
}

#[test]
fn the_front_page_example_is_canonical() {
    assert_eq!(print(&parse(STEM).unwrap()), STEM);
}

#[test]
fn the_parsed_graph_is_what_the_text_says() {
    let g = parse(STEM).unwrap();
    assert_eq!((g.name.as_str(), g.opset, g.ir_version), ("stem", 17, 8));
    assert_eq!(g.n_nodes(), 8);
    let conv = g.find_value("c").unwrap().node;
    assert_eq!(g.node(conv).op, Op::from(Conv { pads: vec![1; 4], ..Conv::default() }));
    assert_eq!(g.node_input(conv, 0), g.find_value("x"));
    let w = g.constant_input(conv, 1).unwrap();
    assert_eq!((w.shape(), w.generator()), (&[16, 3, 3, 3][..], Some(&Generator::Randn { seed: 1 })));
    let bn = g.find_value("n").unwrap().node;
    assert_eq!(g.node_input(bn, 2), g.node_input(bn, 3));
    assert_eq!(g.outputs(), [g.find_value("y").unwrap()]);
    let shape = g.value(g.find_value("x").unwrap()).ty.shape.clone().unwrap();
    assert_eq!(shape[0], Dim::symbol("N"));
}

#[test]
fn defaults_comments_and_layout_do_not_matter() {
    let text = "// a comment\ngraph @g <ir_version = 9,opset=11> ( %x ) ->\n (%y){ // more\n\
                %y = Conv < group = 1 , pads = [1, 1] > ( %x , %w )}";
    let text = text.replace("%y = Conv", "%w = f32[2] ones // here\n %y = Conv");
    assert_eq!(
        print(&parse(&text).unwrap()),
        "graph @g<opset=11, ir_version=9>(%x) -> (%y) {\n  %w = f32[2] ones\n  \
         %y = Conv<pads=[1,1]>(%x, %w)\n}\n"
    );
}

#[test]
fn weird_names_survive() {
    let mut g = Graph::new("a graph\n", 17);
    let names = [
        "/layer1/layer1.0/conv1/Conv_output_0",
        "onnx::Conv_1",
        "model/relu:0",
        "ends:",
        "a//b",
        "two words",
        "quote\"back\\slash",
        "tab\tnul\0",
        "naïve 卷积",
        "%sigil",
        "_",
        "a;b,c)",
        "\u{202e}rtl",
        "-",
    ];
    let mut last = g.add_input("x y", ValueType::default());
    for name in names {
        last = add(&mut g, Relu {}, name, &[Some(last)]);
    }
    g.add_output(last);
    let text = round_trips(&g);
    let back = parse(&text).unwrap();
    assert_eq!(back.name, "a graph\n");
    for name in names {
        assert!(back.find_value(name).is_some(), "{name:?} in\n{text}");
    }
    assert!(text.contains("  %model/relu:0 = Relu(%onnx::Conv_1)\n"), "{text}");
    assert!(text.contains("  %\"ends:\" = Relu(%model/relu:0)\n"), "{text}");
    assert!(text.contains("  %_ = Relu(%\"%sigil\")\n"), "{text}");
}

#[test]
fn types_say_what_is_known() {
    let mut g = Graph::new("g", 17);
    let ty = |dtype, shape: Option<&[Dim]>| ValueType { dtype, shape: shape.map(<[Dim]>::to_vec) };
    let f32 = Some(DType::F32);
    let halved = Dim::symbol("H").add_int(1).floor_div(2);
    for (name, ty) in [
        ("a", ty(f32, Some(&[Dim::symbol("N"), Dim::Unknown, Dim::Known(3)]))),
        ("b", ty(f32, None)),
        ("c", ty(None, Some(&[Dim::Known(1)]))),
        ("d", ty(None, None)),
        ("e", ty(f32, Some(&[]))),
        ("f", ty(f32, Some(&[halved, Dim::symbol("batch size"), Dim::symbol("a]b")]))),
    ] {
        g.add_input(name, ty);
    }
    assert_eq!(
        round_trips(&g),
        "graph @g(%a: f32[N,?,3], %b: f32[..], %c: ?[1], %d, %e: f32[], \
         %f: f32[(H+1)/2,\"batch size\",\"a]b\"]) -> () {\n}\n"
    );
    let back = parse(&print(&g)).unwrap();
    for (&id, &again) in g.inputs().iter().zip(back.inputs()) {
        assert_eq!(g.node(id).outputs, back.node(again).outputs);
    }
}

#[test]
fn every_kind_of_attribute_survives() {
    let bytes = |s: &'static [u8]| Bytes::from_static(s);
    let attrs = [
        ("int", Attr::Int(i64::MIN)),
        ("float", Attr::Float(1e-5)),
        ("whole", Attr::Float(2.0)),
        ("large", Attr::Float(3.4e38)),
        ("inf", Attr::Float(f32::NEG_INFINITY)),
        ("str", Attr::Str(bytes(b"a \"b\"\xff"))),
        ("empty_str", Attr::Str(Bytes::new())),
        ("ints", Attr::Ints(vec![1, -2])),
        ("floats", Attr::Floats(vec![1.0, -0.1])),
        ("strs", Attr::Strs(vec![bytes(b"x"), bytes(b"")])),
        ("no_ints", Attr::Ints(vec![])),
        ("no_floats", Attr::Floats(vec![])),
        ("no_strs", Attr::Strs(vec![])),
        ("tensor", Attr::Tensor(Tensor::from_f32s(vec![1], &[0.0]).unwrap())),
        ("made", Attr::Tensor(Tensor::generated(DType::I64, vec![9], Generator::Iota).unwrap())),
        ("reference", Attr::Ref("outer attr".into())),
        ("body", Attr::Elided(123)),
        ("odd name", Attr::Int(1)),
    ];
    let mut g = Graph::new("g", 17);
    add(&mut g, opaque("my.domain", "Foo", &attrs, 0), "y", &[]);
    let text = round_trips(&g);
    assert_eq!(
        text.lines().nth(1).unwrap(),
        "  %y = my.domain::Foo<int=-9223372036854775808, float=1e-5, whole=2.0, large=3.4e38, inf=-inf, \
         str=\"a \\\"b\\\"\\xff\", empty_str=\"\", ints=[1,-2], floats=[1.0,-0.1], strs=[\"x\",\"\"], \
         no_ints=[], no_floats=floats[], no_strs=strs[], tensor=f32[1] [0.0], made=i64[9] iota, \
         reference=@\"outer attr\", body=elided(123 bytes), \"odd name\"=1>()"
    );
    let back = parse(&text).unwrap();
    let y = back.find_value("y").unwrap().node;
    assert_eq!(back.node(y).op, opaque("my.domain", "Foo", &attrs, 0));
}

#[test]
fn what_people_cannot_read_is_elided() {
    let attrs = [
        ("body", Attr::Encoded(Bytes::from(vec![0; 77]))),
        ("blob", Attr::Str(Bytes::from(vec![b'x'; 1025]))),
        ("tree", Attr::Ints(vec![5; 257])),
        ("short", Attr::Ints(vec![])),
    ];
    let mut g = Graph::new("g", 17);
    add(&mut g, opaque("", "If", &attrs, 0), "y", &[]);
    let text = round_trips(&g);
    let expected =
        "  %y = If<body=elided(77 bytes), blob=elided(1025 bytes), tree=elided(2056 bytes), short=[]>()";
    assert_eq!(text.lines().nth(1), Some(expected));
}

#[test]
fn optional_inputs_outputs_and_captures_survive() {
    let mut g = Graph::new("g", 17);
    let x = g.add_input("x", ValueType::default());
    let c = g.add_constant("captured", Tensor::from_i64s(vec![], &[3]).unwrap());
    let cut = g.add_node(node(Split { axis: 1, ..Split::default() }, &["a", "", "b"]), &[Some(x), None]);
    let body = opaque("", "Loop", &[("body", Attr::Elided(9))], 2);
    add(&mut g, body, "l", &[None, None, Some(ValueId { node: cut, port: 2 }), Some(c), Some(x)]);
    add(&mut g, opaque("", "If", &[], 1), "i", &[Some(x)]);
    g.add_node(node(opaque("my", "Sink", &[], 0), &[]), &[Some(x)]);
    let a = ValueId::of(cut);
    g.add_output(a);
    g.add_output(a);
    let text = round_trips(&g);
    assert_eq!(
        text,
        "graph @g(%x) -> (%a, %a) {\n  \
           %a, _, %b = Split<axis=1>(%x, _)\n  \
           %captured = i64[] [3]\n  \
           %l = Loop<body=elided(9 bytes)>(_, _, %b; %captured, %x)\n  \
           %i = If(; %x)\n  \
           () = my::Sink(%x)\n\
         }\n"
    );
    let back = parse(&text).unwrap();
    assert!(back.is_captured(back.find_value("captured").unwrap()));
    assert!(!back.is_captured(back.find_value("b").unwrap()));
    assert_eq!(back.node(back.find_value("a").unwrap().node).outputs.len(), 3);
}

#[test]
fn node_names_show_where_they_differ() {
    let mut g = Graph::new("g", 17);
    let x = g.add_input("x", ValueType::default());
    for (name, output) in [("relu", "relu"), ("Relu 7", "a"), ("/r/Relu", "b"), ("", "c")] {
        let mut n = node(Relu {}, &[output]);
        n.name = name.into();
        g.add_node(n, &[Some(x)]);
    }
    let text = round_trips(&g);
    let lines: Vec<&str> = text.lines().skip(1).take(4).map(str::trim).collect();
    assert_eq!(
        lines,
        ["%relu = Relu(%x)", "%a = Relu@\"Relu 7\"(%x)", "%b = Relu@/r/Relu(%x)", "%c = Relu(%x)"]
    );
    let back = parse(&text).unwrap();
    assert_eq!(back.node(back.find_value("b").unwrap().node).name, "/r/Relu");
    assert!(!print_with(&g, &PrintOptions { node_names: false, values: false }).contains("Relu 7"));
}

#[test]
fn operators_outside_the_table_keep_their_kind() {
    let mut g = Graph::new("g", 17);
    let cases = [
        (opaque("", "Conv", &[("fancy", Attr::Int(1))], 0), "opaque Conv<fancy=1>"),
        (opaque("", "Relu", &[], 0), "opaque Relu"),
        (opaque("", "LSTM", &[("hidden_size", Attr::Int(4))], 0), "LSTM<hidden_size=4>"),
        (opaque("com.microsoft", "Relu", &[], 0), "com.microsoft::Relu"),
        (opaque("my-domain v2", "f32", &[], 0), "\"my-domain v2\"::f32"),
        (opaque("", "opaque", &[], 0), "\"opaque\""),
        (opaque("", "a.b<c>", &[], 0), "\"a.b<c>\""),
        (opaque("", "Constant", &[], 0), "opaque Constant"),
        (Op::from(Cast { to: DType::F16, ..Cast::default() }), "Cast<to=f16>"),
    ];
    for (i, (op, _)) in cases.iter().enumerate() {
        add(&mut g, op.clone(), &format!("v{i}"), &[]);
    }
    let text = round_trips(&g);
    let back = parse(&text).unwrap();
    for (i, (op, expected)) in cases.iter().enumerate() {
        assert_eq!(text.lines().nth(i + 1), Some(format!("  %v{i} = {expected}()").as_str()));
        assert_eq!(back.node(back.find_value(&format!("v{i}")).unwrap().node).op, *op);
    }
}

#[test]
fn constants_stand_before_their_first_reader() {
    let text = "\
graph @g(%x) -> (%y, %out) {
  %unread = i64[2] [1, 2]
  %out = f32[2] zeros
  %a = f32[2] ones
  %s = Add(%x, %a)
  %b = overridable f32[1] [0.1]
  %y = Sum(%s, %b, %a)
}
";
    let shuffled = "\
graph @g(%x) -> (%y, %out) {
  %b = overridable f32[1] [0.1]
  %a = f32[2] ones
  %unread = i64[2] [1, 2]
  %s = Add(%x, %a)
  %out = f32[2] zeros
  %y = Sum(%s, %b, %a)
}
";
    assert_eq!(print(&parse(shuffled).unwrap()), text);
    let g = parse(text).unwrap();
    assert!(g.node(g.find_value("b").unwrap().node).overridable);
    assert!(g.constant(g.find_value("b").unwrap()).is_none());
}

#[test]
fn every_form_of_constant_survives() {
    let body = "  %randn = f32[16,3,3,3] randn(seed=18446744073709551615)
  %uniform = f64[4] uniform(-0.5, 1e300, seed=0)
  %lowrank = f16[4,2,2] lowrank(4, seed=3)
  %iota = i32[7] iota
  %huge = f32[1000000000000] randn(seed=1)
  %zeros = bool[2,2] zeros
  %ones = bf16[3] ones
  %full = f32[9] full(0.1)
  %minus = f32[9] full(-0.0)
  %inf = f32[9] full(-inf)
  %wide = i64[2] [9007199254740993, -1]
  %wider = u64[1] [18446744073709551615]
  %flags = bool[2] [true, false]
  %nothing = f32[0,3] []
  %scalar = f64[] [0.1]
  %tiny = f32[2] [1e-45, 3.4028235e38]
  %nan = f32[2] [NaN, inf]
  %half = f16[1] [0.099975586]
  %weight = f32[8,8] norm 12.34
  %zero = f32[8,8] norm 0.0
  %small = f32[8,8] norm 1.234e-7
  %strings = string[3] elided
  %nibbles = i4[3] elided
";
    let text = format!("graph @g() -> () {{\n{body}}}\n");
    let g = parse(&text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(print(&g), text);
    round_trips(&g);
    let value = |name: &str| g.constant(g.find_value(name).unwrap()).unwrap().clone();
    assert_eq!(value("tiny").to_f32s().unwrap(), [f32::from_bits(1), f32::MAX]);
    assert_eq!(value("wide").to_i64s().unwrap(), [9_007_199_254_740_993, -1]);
    assert_eq!(value("iota").to_i64s().unwrap(), [0, 1, 2, 3, 4, 5, 6]);
    assert!(value("weight").is_elided());
    assert_eq!(value("weight").norm(), Some(12.34));
}

#[test]
fn all_values_are_there_when_asked_for() {
    let mut g = Graph::new("g", 17);
    let values: Vec<f32> = (0..6).map(|i| (i as f32 / 7.0).sin()).collect();
    g.add_constant("w", Tensor::from_f32s(vec![2, 3], &values).unwrap());
    let text = print_with(&g, &PrintOptions { values: true, ..PrintOptions::default() });
    let back = parse(&text).unwrap();
    assert_eq!(back.constant(back.find_value("w").unwrap()).unwrap().to_f32s().unwrap(), values);
    // √Σ sin²(i/7), i = 0…5, is 0.99701 in double precision.
    assert!(print(&g).contains("  %w = f32[2,3] norm 0.997\n"), "{}", print(&g));
}

#[test]
fn broken_graphs_print_too() {
    let mut g = Graph::new("g", 17);
    let a = g.add_node(node(Relu {}, &["a"]), &[]);
    let nameless = g.add_node(node(Relu {}, &[""]), &[Some(ValueId::of(a))]);
    g.set_input(Use { node: a, slot: 0 }, Some(ValueId::of(nameless)));
    assert_eq!(
        print(&g),
        "graph @g() -> () {\n  // on a cycle, or behind one:\n  %a = Relu(%\"#1.0\")\n  %\"#1.0\" = Relu(%a)\n}\n"
    );
    assert!(parse(&print(&g)).is_err());
    assert_eq!(print_node(&g, a), "%a = Relu(%\"#1.0\")");
}

#[test]
fn directives_are_the_leading_comments_with_a_key() {
    let text = "// passes: dead-code,factorize-conv:energy=0.5\n\n//remarks:  none \n// Note: prose.\n\
                // no colon\ngraph @g() -> () {\n// late: no\n}\n";
    let expected = [("passes", "dead-code,factorize-conv:energy=0.5"), ("remarks", "none")];
    assert_eq!(directives(text), expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    assert!(parse(text).is_ok());
}

#[track_caller]
fn fails(text: &str, expected: &str) {
    match parse(text) {
        Ok(g) => panic!("parsed:\n{g}"),
        Err(e) => assert_eq!(e.to_string(), expected),
    }
}

#[test]
fn errors_show_the_place_and_what_was_expected() {
    fails(
        "graph @g(%x) -> (%y) {\n  %y = Relu(%x[0])\n}\n",
        "2:15: expected `,` or `)`, found `[`\n  |\n2 |   %y = Relu(%x[0])\n  |               ^",
    );
    fails(
        "graph @g(%conv1) -> (%y) {\n\t%y = Relu(%cnv1)\n}\n",
        "2:12: `%cnv1` is not defined above\n  |\n2 | \t%y = Relu(%cnv1)\n  | \t          ^^^^^\n  \
         = help: there is a `%conv1`",
    );
    fails(
        "graph @g(%x) -> () {\n  %x = Relu(%x)\n}\n",
        "2:3: `%x` is defined twice\n  |\n2 |   %x = Relu(%x)\n  |   ^^\n  \
         = help: the first definition is at 1:10",
    );
    fails(
        "graph @g(%x:f32[2]) -> () {\n}\n",
        "1:16: expected a type behind `: `, found `[`\n  |\n1 | graph @g(%x:f32[2]) -> () {\n  |                ^\n  \
         = help: a space belongs between a name's colon and the type: `%x: f32[2]`",
    );
    fails(
        "graph @g(%x) -> () {\n  %y = Conv<pad=[1,1]>(%x, %x)\n}\n",
        "2:13: `Conv` has no attribute `pad`\n  |\n2 |   %y = Conv<pad=[1,1]>(%x, %x)\n  |             ^^^\n  \
         = help: there is `pads`",
    );
    fails(
        "graph @g(%x) -> () {\n  %y = Conv<group=2.0>(%x, %x)\n}\n",
        "2:13: `group` of `Conv` is an integer, found a float\n  |\n2 |   %y = Conv<group=2.0>(%x, %x)\n  \
         |             ^^^^^",
    );
    fails(
        "graph @g(%x) -> () {\n  %w = f32[2,2] [1, 2, 3]\n}\n",
        "2:17: f32[2, 2] has 4 values, found 3\n  |\n2 |   %w = f32[2,2] [1, 2, 3]\n  |                 ^\n  \
         = help: `full(v)` repeats one value",
    );
    fails(
        "graph @g(%x) -> () {\n  %w = float32[2] zeros\n}\n",
        "2:8: `float32` is not an element type\n  |\n2 |   %w = float32[2] zeros\n  |        ^^^^^^^\n  \
         = help: element types are f32, f16, bf16, f64, i64, i32, i8, u8, bool and others",
    );
    fails(
        "graph @g(%x) -> (%y) {\n",
        "1:23: expected a statement such as `%y = Relu(%x)` or the closing `}`, found the end of the text\n  \
         |\n1 | graph @g(%x) -> (%y) {\n  |                       ^",
    );
    fails(
        "",
        "1:1: expected `graph`, found the end of the text\n  |\n1 | \n  | ^\n  \
         = help: a graph begins with a line such as `graph @name(%x: f32[N,3]) -> (%y) {`",
    );
    fails(
        "graph @g(%x: f32[N,3*]) -> () {\n}\n",
        "1:20: `3*` is not a dimension\n  |\n1 | graph @g(%x: f32[N,3*]) -> () {\n  |                    ^^\n  \
         = help: a dimension is a number, a name, an expression such as `(H+1)/2`, or `?`",
    );
    fails(
        "graph @g() -> () {\n  %w = f32[8,4] lowrank(5, seed=1)\n}\n",
        "2:25: a matrix of 8×4 has at most rank 4, found 5\n  |\n2 |   %w = f32[8,4] lowrank(5, seed=1)\n  \
         |                         ^",
    );
}

#[test]
fn messages_name_the_slip() {
    for (body, message) in [
        ("%y = Constant()", "`Constant` is not written as an operator"),
        ("%y = Relu(; %x)", "`Relu` has no bodies that could capture values"),
        ("%y = Relu<alpha=1.0>(%x)", "`Relu` has no attribute `alpha`"),
        ("%y = Conv<auto_pad=\"SAME\">(%x)", "`auto_pad` of `Conv` cannot have this value"),
        ("%y = Conv<group=1, group=1>(%x)", "attribute `group` is set twice"),
        ("%y = Foo<a=b>(%x)", "expected an attribute's value, found `b`"),
        ("%y = Foo<a=9223372036854775808>(%x)", "`9223372036854775808` does not fit a 64-bit integer"),
        ("%y = Foo<a=1e39>(%x)", "`1e39` does not fit a 32-bit float"),
        ("%y = Foo<a=1.2.3>(%x)", "`1.2.3` is not a number"),
        ("%y = Foo<a=\"x>(%x)", "this string is not closed"),
        ("%y = Foo<a=\"\\q\">(%x)", "unknown escape in a string"),
        ("%\"\" = Relu(%x)", "a value's name must not be empty"),
        ("%\"\\xff\" = Relu(%x)", "a name must be UTF-8"),
        ("%w = f32[N] zeros", "a constant has a fixed shape, found the dimension `N`"),
        ("%w = f32[..] zeros", "a constant has a fixed shape, found an unknown rank"),
        ("%w = f32[2 zeros", "this shape is not closed"),
        ("%w = f32[99999999999999999999] zeros", "`99999999999999999999` is not a dimension"),
        ("%w = u8[2] [1, 300]", "`300` is not a value of type u8"),
        ("%w = i64[2] full(1.5)", "`1.5` is not a value of type i64"),
        ("%w = f32[2] randn", "expected `(`, found `}`"),
        ("%w = f32[2] randn(1)", "expected `seed=` and a number, found `1`"),
        ("%w = i4[2] zeros", "expected `elided`, found `zeros`"),
        ("%w: f32[2] = f32[2] zeros", "a constant has its type on the right of the `=` only"),
        ("%a, %b = f32[2] zeros", "a constant has one name"),
        ("%y = overridable Relu(%x)", "expected a constant such as `f32[2] zeros`, found `Relu`"),
        ("% = Relu(%x)", "expected a name after `%`"),
        ("%y = Relu(%y)", "`%y` is not defined above"),
        ("%y = Relu(%x) }", "expected the end of the text behind the graph, found `}`"),
        ("%y = Relu(%x,)", "expected an input such as `%x`, or `_` for none, found `)`"),
        ("%y ~ Relu", "unexpected character '~'"),
    ] {
        let error = parse(&format!("graph @g(%x) -> () {{\n  {body}\n}}\n")).unwrap_err();
        assert_eq!(error.message, message, "{body}");
    }
}

#[test]
fn claims_cost_nothing() {
    let many = "f32[18446744073709551615,18446744073709551615]";
    for values in ["randn(seed=1)", "zeros", "[1]"] {
        assert!(parse(&format!("graph @g() -> () {{\n  %w = {many} {values}\n}}\n")).is_err());
    }
    // Deep nesting is refused, not followed.
    let deep = format!("graph @g(%x: f32[{}H{}]) -> () {{\n}}\n", "(".repeat(1000), ")".repeat(1000));
    assert!(parse(&deep).is_err());
    let deeper = "(".repeat(1_000_000);
    assert!(parse(&format!("graph @g(%x: f32[{deeper}")).is_err());
    assert!(parse(&format!("graph @g<a={}", "[".repeat(1_000_000))).is_err());
    let attrs: Vec<String> = (0..100_000).map(|i| format!("a{i}=1")).collect();
    let error = parse(&format!("graph @g() -> () {{\n  %y = F<{}>()\n}}\n", attrs.join(","))).unwrap_err();
    assert_eq!(error.message, "an operator has at most 4096 attributes");
}

#[test]
fn a_hundred_thousand_nodes_are_no_trouble() {
    let mut text = String::from("graph @g(%v0) -> (%v100000) {\n");
    for i in 1..=100_000 {
        text.push_str(&format!("  %v{i} = Add(%v{}, %v0)\n", i - 1));
    }
    text.push_str("}\n");
    assert_eq!(print(&parse(&text).unwrap()), text);
}

/// Whatever happens to a text, reading it ends in a graph or an error, and a graph prints to a text
/// that reads back.
#[test]
fn damaged_texts_do_no_harm() {
    let seeds = [
        STEM,
        "graph @\"a b\"<opset=11>(%x: f32[(H+1)/2,\"b c\",?], %y: ?[..]) -> (%c) {\n  \
         %a: f32[2], _ = my.dom::Foo@/n/1<f=1e-5, s=\"\\x00é\", l=[1,2], t=i64[2] [1, -1], r=@q>(%x, _; %y)\n  \
         %c = opaque Conv<b=elided(3 bytes), n=floats[]>(%a)\n}\n",
        "graph @g() -> () {\n  %w = overridable f32[2,2] lowrank(1, seed=2)\n  %v = f32[3] norm 1.5\n  \
         %u = f64[2] uniform(0.0, 1.0, seed=7)\n  () = X(%w, %v, %u)\n}\n",
    ];
    let tokens = [
        "%",
        "@",
        "\"",
        "[",
        "]",
        "(",
        ")",
        "<",
        ">",
        "{",
        "}",
        ",",
        ";",
        ":",
        "::",
        "-",
        "..",
        "?",
        "//",
        "NaN",
        "1e999",
        "-1",
        "é",
        "\\",
        "\n",
        "f32[",
        "elided",
        "_",
        "=",
        " ",
        "/",
        "99999999999999999999",
    ];
    let mut state = 0x1234_5678_u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut n_parsed = 0;
    for round in 0..6000 {
        let mut text: Vec<char> = seeds[round % seeds.len()].chars().collect();
        for _ in 0..=random(3) {
            let at = random(text.len() + 1);
            match random(4) {
                0 => text.truncate(at),
                1 => drop(text.drain(at..(at + 1 + random(4)).min(text.len()))),
                _ => drop(text.splice(at..at, tokens[random(tokens.len())].chars())),
            }
            if text.is_empty() {
                break;
            }
        }
        let text: String = text.into_iter().collect();
        match parse(&text) {
            Ok(g) => {
                n_parsed += 1;
                round_trips(&g);
            }
            Err(e) => {
                let lines: Vec<&str> = text.split('\n').collect();
                assert!(e.line <= lines.len(), "{e}\n{text}");
                assert!(e.column <= lines[e.line - 1].chars().count() + 1, "{e}\n{text}");
                assert!(!e.to_string().is_empty());
            }
        }
        let _ = directives(&text);
    }
    assert!(n_parsed > 100, "the damage is not always fatal: {n_parsed}");
}

/// Random graphs of opaque and modelled nodes over random earlier values.
#[test]
fn random_graphs_keep_their_text_and_order() {
    let mut state = 99_u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for round in 0..200 {
        let mut g = Graph::new(format!("g{round}"), 13);
        let mut values = vec![g.add_input("x", ValueType::fixed(DType::F32, &[2, 3]))];
        let mut late: Vec<NodeId> = Vec::new();
        for i in 0..random(30) {
            let name = format!("v{i}");
            if random(3) == 0 {
                values.push(g.add_constant(name, Tensor::full(DType::F32, vec![2, 3], i as f64).unwrap()));
                continue;
            }
            let slots: Vec<Option<ValueId>> =
                (0..random(4)).map(|_| (random(5) > 0).then(|| values[random(values.len())])).collect();
            let n_captures = random(slots.len() + 1);
            let id = g.add_node(node(opaque("d", "F", &[], n_captures), &[&name, ""]), &slots);
            values.push(ValueId::of(id));
            late.push(id);
        }
        // Places in the file that disagree with the order of creation.
        for (i, &id) in late.iter().enumerate() {
            g.set_origin(id, Origin::Node((late.len() - i) as u32), false);
        }
        g.add_output(values[random(values.len())]);
        round_trips(&g);
    }
}

#[test]
fn drawings_show_nodes_edges_and_what_is_new() {
    let mut g = parse(STEM).unwrap();
    let text = dot(&g, &DotOptions::default());
    assert!(text.starts_with("digraph \"stem\" {\n"), "{text}");
    assert!(text.contains("label=\"Conv\\n%c\\nf32[16,3,3,3]\""), "{text}");
    assert!(text.contains("-> o0 [label=\"f32[N,16,32,32]\"];"), "{text}");
    // x→c, c→n, n→y, y→output; weights have no edges.
    assert_eq!(text.matches(" -> ").count(), 4);
    assert!(!text.contains("shape=note") && !text.contains("#ffe9c7"));

    let text = dot(&g, &DotOptions { constants: true });
    // Four more constants, one of them read twice.
    assert_eq!((text.matches("shape=note").count(), text.matches(" -> ").count()), (4, 9));

    let conv = g.find_value("c").unwrap().node;
    g.set_origin(conv, Origin::Node(0), false);
    let text = dot(&g, &DotOptions::default());
    assert_eq!(text.matches("#ffe9c7").count(), 2, "BatchNormalization and Relu are new: {text}");
}

#[test]
fn graphviz_reads_the_drawings() {
    let version = std::process::Command::new("dot").arg("-V").output();
    // Under QEMU's user mode a missing program starts all the same, and fails at once.
    if !version.is_ok_and(|v| v.status.success()) {
        eprintln!("skipped: there is no `dot` on this machine");
        return;
    }
    let mut g = Graph::new("a \"quoted\"\\\n graph", 17);
    let x = g.add_input("x\"\\", ValueType::fixed(DType::F32, &[1]));
    let w = g.add_constant("w\0é", Tensor::full(DType::F32, vec![1], 1.0).unwrap());
    let y = add(&mut g, opaque("d\"", "F<>{}|", &[], 1), "y\n<b>", &[Some(x), None, Some(w)]);
    g.add_output(y);
    for graph in [&g, &parse(STEM).unwrap()] {
        for constants in [false, true] {
            let mut child = std::process::Command::new("dot")
                .arg("-Tsvg")
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let text = dot(graph, &DotOptions { constants });
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{text}");
            let svg = String::from_utf8(output.stdout).unwrap();
            let n_edges = svg.matches("class=\"edge\"").count();
            assert_eq!(n_edges, text.matches(" -> ").count());
        }
    }
}

/// Every block of the reference parses, and prints as it stands but for its comments.
#[test]
fn the_reference_is_right() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/ir.md");
    let Ok(reference) = std::fs::read_to_string(path) else {
        eprintln!("skipped: the crate was packaged without docs/ir.md");
        return;
    };
    let mut n_blocks = 0;
    for block in reference.split("\n```bir\n").skip(1) {
        let text = block.split("```").next().unwrap();
        let graph = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let code: String =
            text.lines().filter(|l| !l.trim().starts_with("//")).map(|l| format!("{l}\n")).collect();
        assert_eq!(print(&graph), code);
        n_blocks += 1;
    }
    assert!(n_blocks >= 4, "found {n_blocks} blocks");
}
