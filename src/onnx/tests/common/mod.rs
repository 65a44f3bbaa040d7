//! Tiny models, built field by field.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use basisopt_onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use basisopt_onnx::{Model, OnnxError};
use bytes::Bytes;
use prost::Message;

pub fn text(s: &str) -> Option<String> {
    Some(s.to_owned())
}

pub fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|&n| n.to_owned()).collect()
}

pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: text(op),
        name: Some(format!("{}_{op}", outputs.first().unwrap_or(&""))),
        input: strings(inputs),
        output: strings(outputs),
        ..NodeProto::default()
    }
}

/// A float value of this shape.
pub fn info(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |&d: &i64| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(d)),
        denotation: None,
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(1),
        shape: Some(TensorShapeProto { dim: dims.iter().map(dim).collect() }),
    };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None };
    ValueInfoProto { name: text(name), r#type: Some(ty), ..ValueInfoProto::default() }
}

pub fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: text(name),
        dims: dims.to_vec(),
        data_type: Some(1),
        raw_data: Some(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into()),
        ..TensorProto::default()
    }
}

pub fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: text(key), value: text(value) }
}

/// A tensor whose values lie in a data file.
pub fn external(name: &str, n: i64, location: &str, offset: u64) -> TensorProto {
    TensorProto {
        name: text(name),
        dims: vec![n],
        data_type: Some(1),
        external_data: vec![
            entry("location", location),
            entry("offset", &offset.to_string()),
            entry("length", &(4 * n).to_string()),
        ],
        data_location: Some(1),
        ..TensorProto::default()
    }
}

pub fn body_attribute(name: &str, body: GraphProto) -> AttributeProto {
    AttributeProto { name: text(name), g: Some(body), r#type: Some(5), ..AttributeProto::default() }
}

/// x[2] → y[2] through these nodes, with these initializers.
pub fn graph(nodes: Vec<NodeProto>, initializer: Vec<TensorProto>) -> GraphProto {
    GraphProto {
        name: text("g"),
        node: nodes,
        initializer,
        input: vec![info("x", &[2])],
        output: vec![info("y", &[2])],
        ..GraphProto::default()
    }
}

pub fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        producer_name: text("tests"),
        graph: Some(graph),
        ..ModelProto::default()
    }
}

pub fn encode(model: &ModelProto) -> Bytes {
    Bytes::from(model.encode_to_vec())
}

pub fn read(model: &ModelProto) -> Result<Model, OnnxError> {
    Model::from_bytes("m.onnx", encode(model), None)
}

/// The model as it would be written.
pub fn written(model: &Model) -> ModelProto {
    ModelProto::decode(model.to_bytes().unwrap().concat()).unwrap()
}

/// A field that no version of ONNX has.
pub fn unknown_field(payload: &[u8]) -> Vec<u8> {
    // Field 1000, length-delimited.
    let mut bytes = vec![0xc2, 0x3e, payload.len() as u8];
    bytes.extend(payload);
    bytes
}

pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}
