//! Tiny ONNX models, made in code.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use basisopt_runtime::Source;
use prost::Message;
use tract_onnx::pb;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};

/// A size of an input: fixed, named, or neither.
pub enum Size {
    Fixed(i64),
    Named(&'static str),
    Open,
}
pub use Size::{Fixed, Named, Open};

pub fn value(name: &str, elem_type: i32, sizes: &[Size]) -> pb::ValueInfoProto {
    let dim = |s: &Size| Dimension {
        denotation: String::new(),
        value: match s {
            Fixed(n) => Some(dimension::Value::DimValue(*n)),
            Named(s) => Some(dimension::Value::DimParam((*s).to_owned())),
            Open => None,
        },
    };
    let shape = Some(pb::TensorShapeProto { dim: sizes.iter().map(dim).collect() });
    let tensor = pb::type_proto::Tensor { elem_type, shape };
    let r#type =
        Some(pb::TypeProto { value: Some(pb::type_proto::Value::TensorType(tensor)), ..Default::default() });
    pb::ValueInfoProto { name: name.to_owned(), r#type, ..Default::default() }
}

pub fn image(name: &str, sizes: &[Size]) -> pb::ValueInfoProto {
    value(name, pb::tensor_proto::DataType::Float as i32, sizes)
}

pub fn tensor(name: &str, dims: &[i64], values: &[f32]) -> pb::TensorProto {
    pb::TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: pb::tensor_proto::DataType::Float as i32,
        raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ..Default::default()
    }
}

pub fn node(op_type: &str, inputs: &[&str], outputs: &[&str]) -> pb::NodeProto {
    pb::NodeProto {
        name: format!("n_{}", outputs.first().copied().unwrap_or("")),
        op_type: op_type.to_owned(),
        input: inputs.iter().map(|s| (*s).to_owned()).collect(),
        output: outputs.iter().map(|s| (*s).to_owned()).collect(),
        ..Default::default()
    }
}

pub fn model(graph: pb::GraphProto) -> pb::ModelProto {
    let opset = pb::OperatorSetIdProto { domain: String::new(), version: 13 };
    pb::ModelProto { ir_version: 8, opset_import: vec![opset], graph: Some(graph), ..Default::default() }
}

pub fn source(name: &str, model: &pb::ModelProto) -> Source {
    Source::from_bytes(name, model.encode_to_vec(), None)
}

/// `y = Conv1x1(x, w) + b`, two channels in and out, with sizes of our choice.
pub fn conv1x1(sizes: &[Size], w: [f32; 4], b: [f32; 2]) -> pb::ModelProto {
    model(pb::GraphProto {
        name: "conv1x1".to_owned(),
        node: vec![node("Conv", &["x", "w", "b"], &["y"])],
        initializer: vec![tensor("w", &[2, 2, 1, 1], &w), tensor("b", &[2], &b)],
        input: vec![image("x", sizes)],
        output: vec![image("y", &[Open, Open, Open, Open])],
        ..Default::default()
    })
}

/// Class scores are the three channel means of an image: whichever colour dominates wins.
/// `offset` zero scores stand before them, as "background" classes do.
pub fn colour_classifier(batch: Size, side: i64, offset: i64) -> pb::ModelProto {
    let mut nodes = vec![node("GlobalAveragePool", &["x"], &["mean"]), node("Flatten", &["mean"], &["flat"])];
    let n = 3 + offset;
    let mut w = vec![0.0; (3 * n) as usize];
    for channel in 0..3 {
        w[(channel * n + channel + offset) as usize] = 1.0;
    }
    nodes.push(node("MatMul", &["flat", "w"], &["scores"]));
    model(pb::GraphProto {
        name: "colours".to_owned(),
        node: nodes,
        initializer: vec![tensor("w", &[3, n], &w)],
        input: vec![image("x", &[batch, Fixed(3), Fixed(side), Fixed(side)])],
        output: vec![image("scores", &[Open, Fixed(n)])],
        ..Default::default()
    })
}
