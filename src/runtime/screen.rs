//! What is checked and fixed on the protobuf before tract sees a model.
//!
//! tract looks operators up by their type alone and ignores the domain, so `my.domain::Relu` would
//! run as the `Relu` of the standard. Every node is therefore screened here, in all subgraph bodies.
//! Unknown input sizes are replaced by numbers here too, rather than in the typed model: shapes are
//! then numbers from the first line of tract's inference, and its code for known shapes is better.

use crate::session::{InputInfo, LoadOptions};
use crate::{ENGINE, RuntimeError, memory};
use basisopt_ir::DType;
use basisopt_ir::tensor::n_elements;
use std::collections::{BTreeMap, BTreeSet};
use tract_onnx::pb;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};

/// Operators outside the standard domain that tract implements with that domain's meaning, read off
/// the sources of tract-onnx 0.23.9 (`ops/ml`, and the files of `ops/nn` that cite `com.microsoft`).
/// Anything else under these domains, say `com.microsoft::FusedConv`, is refused like any custom operator.
const FOREIGN: &[(&str, &[&str])] = &[
    (
        "ai.onnx.ml",
        &[
            "ArrayFeatureExtractor",
            "CategoryMapper",
            "LinearClassifier",
            "LinearRegressor",
            "Normalizer",
            "TreeEnsembleClassifier",
        ],
    ),
    (
        "com.microsoft",
        &[
            "BiasGelu",
            "FastGelu",
            "GatherBlockQuantized",
            "Gelu",
            "GroupQueryAttention",
            "MatMulNBits",
            "MultiHeadAttention",
            "QuickGelu",
            "RotaryEmbedding",
            "SkipLayerNormalization",
            "SkipSimplifiedLayerNormalization",
        ],
    ),
];

/// How many refused operators a message lists before it says "and N more".
const MAX_LISTED: usize = 8;

/// Refuses the model if any node is one that tract would not run, or would run as something else.
pub(crate) fn check_operators(
    model: &str,
    graph: &pb::GraphProto,
    known: &dyn Fn(&str) -> bool,
) -> Result<(), RuntimeError> {
    // One line per kind of operator, with the first node that has it.
    let mut refused = BTreeMap::new();
    visit_nodes(graph, &mut |node| {
        let name = if node.name.is_empty() { node.output.first().map_or("", |o| o) } else { &node.name };
        let standard = matches!(node.domain.as_str(), "" | "ai.onnx");
        let foreign =
            FOREIGN.iter().any(|(d, ops)| *d == node.domain && ops.contains(&node.op_type.as_str()));
        if !standard && !foreign {
            refused.entry((node.domain.clone(), node.op_type.clone())).or_insert_with(|| {
                format!(
                    "custom operator {}::{} (node \"{name}\") cannot be run by tract",
                    node.domain, node.op_type
                )
            });
        } else if !known(&node.op_type) {
            refused.entry((node.domain.clone(), node.op_type.clone())).or_insert_with(|| {
                format!("operator {} (node \"{name}\") is not implemented by {ENGINE}", node.op_type)
            });
        }
    });
    if refused.is_empty() {
        return Ok(());
    }
    let n_more = refused.len().saturating_sub(MAX_LISTED);
    let mut reasons: Vec<String> = refused.into_values().take(MAX_LISTED).collect();
    if n_more > 0 {
        reasons.push(format!("and {n_more} more kinds of operators"));
    }
    Err(RuntimeError::UnsupportedOps { model: model.to_owned(), reasons })
}

fn visit_nodes<'a>(graph: &'a pb::GraphProto, visit: &mut impl FnMut(&'a pb::NodeProto)) {
    // An explicit stack: nesting depth is the file's choice, the call stack is ours.
    let mut graphs = vec![graph];
    while let Some(graph) = graphs.pop() {
        for node in &graph.node {
            visit(node);
            for attribute in &node.attribute {
                graphs.extend(attribute.g.iter());
                graphs.extend(attribute.graphs.iter());
            }
        }
    }
}

/// Replaces every unknown input size by a number and returns the inputs, in order.
///
/// The unknown size of axis 0 is the batch unless a pin names it. A size with a name is pinned by
/// that name wherever it stands, one without by `<input>:<axis>`.
pub(crate) fn pin_inputs(
    model: &str,
    graph: &mut pb::GraphProto,
    options: &LoadOptions,
) -> Result<Vec<InputInfo>, RuntimeError> {
    let initialized: BTreeSet<String> = graph.initializer.iter().map(|t| t.name.clone()).collect();
    let mut pins: BTreeMap<String, usize> = options.dims.iter().cloned().collect();
    let mut unused: BTreeSet<String> = pins.keys().cloned().collect();
    let mut symbols = BTreeSet::new();
    let mut batch_symbols = BTreeSet::new();

    // The batch first, so that the same symbol at another axis (a recurrent state) follows it.
    let is_input = |info: &pb::ValueInfoProto| !initialized.contains(&info.name);
    for info in graph.input.iter_mut().filter(|i| is_input(i)) {
        let input = info.name.clone();
        for (axis, dim) in dims(info).iter_mut().enumerate() {
            let Some(symbol) = unknown_size(&input, axis, dim) else { continue };
            // A size that has a name may be pinned by its place as well.
            let place = format!("{input}:{axis}");
            if let Some(&size) = pins.get(&place).filter(|_| place != symbol) {
                unused.remove(&place);
                pins.entry(symbol.clone()).or_insert(size);
            }
            if axis == 0 && !pins.contains_key(&symbol) {
                batch_symbols.insert(symbol.clone());
            }
            symbols.insert(symbol);
        }
    }
    let batch = options.batch.unwrap_or(1);
    pins.extend(batch_symbols.iter().map(|s| (s.clone(), batch)));
    if pins.values().any(|&n| n == 0) {
        let reason = "a size of 0 was asked for; sizes start at 1".to_owned();
        return Err(RuntimeError::Model { model: model.to_owned(), reason });
    }

    let mut inputs = Vec::new();
    for info in graph.input.iter_mut().filter(|i| is_input(i)) {
        let input = info.name.clone();
        let Some(pb::type_proto::Value::TensorType(tensor)) =
            info.r#type.as_mut().and_then(|t| t.value.as_mut())
        else {
            let reason = format!("input `{input}` is not a tensor; only tensor inputs can be run");
            return Err(RuntimeError::Model { model: model.to_owned(), reason });
        };
        let Some(dtype) = DType::from_onnx(tensor.elem_type) else {
            let reason = format!("input `{input}` has the unknown element type {}", tensor.elem_type);
            return Err(RuntimeError::Model { model: model.to_owned(), reason });
        };
        let Some(shape) = tensor.shape.as_mut() else {
            let reason =
                format!("input `{input}` declares no shape, not even a rank; declare one in the model");
            return Err(RuntimeError::Model { model: model.to_owned(), reason });
        };
        let mut sizes = Vec::new();
        let mut batch_axis = None;
        for (axis, dim) in shape.dim.iter_mut().enumerate() {
            if let Some(symbol) = unknown_size(&input, axis, dim) {
                let Some(&size) = pins.get(&symbol) else {
                    let (model, input) = (model.to_owned(), input);
                    return Err(RuntimeError::UnpinnedDim { model, input, axis, symbol });
                };
                unused.remove(&symbol);
                if batch_symbols.contains(&symbol) {
                    batch_axis = batch_axis.or(Some(axis));
                }
                dim.value = Some(dimension::Value::DimValue(i64::try_from(size).unwrap_or(i64::MAX)));
            }
            match dim.value {
                Some(dimension::Value::DimValue(size)) => sizes.push(usize::try_from(size).unwrap_or(0)),
                _ => sizes.push(0),
            }
        }
        // A model with all sizes fixed still has its batch at axis 0, as every converter writes it.
        if batch_axis.is_none() && batch_symbols.is_empty() && sizes.len() > 1 {
            batch_axis = Some(0);
        }
        inputs.push(InputInfo { name: input, dtype, shape: sizes, batch_axis });
    }

    if let Some(symbol) = unused.pop_first() {
        let remedy = match symbols.is_empty() {
            true => "all its sizes are fixed".to_owned(),
            false => format!("they are {}", symbols.into_iter().collect::<Vec<_>>().join(", ")),
        };
        return Err(RuntimeError::UnknownDim { model: model.to_owned(), symbol, remedy });
    }
    if let (Some(asked), true) = (options.batch, batch_symbols.is_empty())
        && let Some(found) = inputs.iter().find_map(InputInfo::batch)
        && found != asked
    {
        return Err(RuntimeError::FixedBatch { model: model.to_owned(), found, asked });
    }
    check_size(model, &inputs)?;
    Ok(inputs)
}

/// Refuses inputs that no memory could hold: a file of a few bytes, or a slip in `--batch`, can ask for
/// them.
fn check_size(model: &str, inputs: &[InputInfo]) -> Result<(), RuntimeError> {
    let limit = memory::input_limit();
    let mut total: u64 = 0;
    for input in inputs {
        let n_bytes = n_elements(&input.shape).and_then(|n| input.dtype.n_bytes(n));
        let sum = n_bytes.and_then(|n| total.checked_add(n as u64)).filter(|&sum| sum <= limit);
        let too_large = || RuntimeError::InputTooLarge {
            model: model.to_owned(),
            input: input.name.clone(),
            shape: input.shape.clone(),
            limit,
        };
        // Strings have no size of their own.
        total = if input.dtype == DType::String { total } else { sum.ok_or_else(too_large)? };
    }
    Ok(())
}

fn dims(info: &mut pb::ValueInfoProto) -> &mut [Dimension] {
    match info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        Some(pb::type_proto::Value::TensorType(t)) => t.shape.as_mut().map_or(&mut [], |s| &mut s.dim[..]),
        None => &mut [],
    }
}

/// The name of this size, if it is unknown: its own, or `<input>:<axis>` where it has none.
fn unknown_size(input: &str, axis: usize, dim: &Dimension) -> Option<String> {
    match &dim.value {
        // Some converters write 0 or -1 for "any".
        Some(dimension::Value::DimValue(n)) if *n > 0 => None,
        Some(dimension::Value::DimParam(s)) if !s.is_empty() && s != "?" => Some(s.clone()),
        _ => Some(format!("{input}:{axis}")),
    }
}
