//! What a rule sees of a node, and which rule each operator has.

use super::contents::{Contents, Elem};
use super::{Fault, conv, elementwise, linear, reduce, resize, shape_ops, slice, window};
use crate::dim::{Dim, Shape};
use crate::graph::{Graph, NodeId, ValueId, ValueType};
use crate::op::{Op, Opaque};
use crate::tensor::DType;
use std::collections::BTreeMap;

/// A contradiction, before it is known at which node.
#[derive(Debug)]
pub(super) struct Fail {
    pub fault: Fault,
    pub message: String,
}

impl Fail {
    pub fn shape(message: impl Into<String>) -> Self {
        Self { fault: Fault::Shape, message: message.into() }
    }
}

pub(super) type Types = Result<Vec<ValueType>, Fail>;

/// Ranks beyond this come from no real network; they are not believed, so that a few bytes in a
/// file cannot ask for a shape of a billion dimensions.
pub(super) const MAX_RANK: usize = 64;

/// A node with what is known about its inputs.
pub(super) struct At<'a> {
    pub op: &'a Op,
    /// Version of the standard operator set; a graph that names none is read as the newest.
    pub opset: i64,
    pub n_outputs: usize,
    slots: Vec<Option<Slot<'a>>>,
}

#[derive(Clone, Copy)]
struct Slot<'a> {
    ty: Option<&'a ValueType>,
    contents: Option<&'a Contents>,
}

impl<'a> At<'a> {
    pub fn new(
        graph: &'a Graph,
        id: NodeId,
        types: &'a BTreeMap<ValueId, ValueType>,
        contents: &'a BTreeMap<ValueId, Contents>,
    ) -> Self {
        let node = graph.node(id);
        let slot = |v: ValueId| Slot { ty: types.get(&v), contents: contents.get(&v) };
        Self {
            op: &node.op,
            opset: if graph.opset > 0 { graph.opset } else { i64::MAX },
            n_outputs: node.outputs.len(),
            slots: graph.node_inputs(id).into_iter().map(|v| v.map(slot)).collect(),
        }
    }

    pub fn n_slots(&self) -> usize {
        self.slots.len()
    }

    /// Whether something is joined to the slot.
    pub fn has(&self, slot: usize) -> bool {
        self.slots.get(slot).is_some_and(Option::is_some)
    }

    pub fn dtype(&self, slot: usize) -> Option<DType> {
        self.slots.get(slot)?.as_ref()?.ty?.dtype
    }

    pub fn shape(&self, slot: usize) -> Option<&'a [Dim]> {
        self.slots.get(slot)?.as_ref()?.ty?.shape.as_deref()
    }

    pub fn contents(&self, slot: usize) -> Option<&'a Contents> {
        self.slots.get(slot)?.as_ref()?.contents
    }

    pub fn elems(&self, slot: usize) -> Option<&'a [Elem]> {
        self.contents(slot).map(|c| c.elems.as_slice())
    }

    /// The elements of a slot, if every one is a known integer.
    pub fn ints(&self, slot: usize) -> Option<Vec<i64>> {
        self.elems(slot)?.iter().map(Elem::int).collect()
    }

    /// Number of elements of a rank-1 slot of plausible length.
    pub fn length(&self, slot: usize) -> Option<usize> {
        match self.shape(slot)? {
            [Dim::Known(n)] if *n <= MAX_RANK => Some(*n),
            _ => None,
        }
    }

    /// The common element type of some slots.
    pub fn same_dtype(&self, slots: impl IntoIterator<Item = usize>) -> Result<Option<DType>, Fail> {
        let mut common: Option<(usize, DType)> = None;
        for slot in slots {
            match (common, self.dtype(slot)) {
                (Some((first, a)), Some(b)) if a != b => {
                    let message = format!(
                        "inputs {first} and {slot} must have the same element type, found {a} and {b}"
                    );
                    return Err(Fail { fault: Fault::ElementType, message });
                }
                (None, Some(b)) => common = Some((slot, b)),
                _ => {}
            }
        }
        Ok(common.map(|(_, t)| t))
    }

    /// One output with the element type and shape of input 0.
    pub fn same(&self) -> ValueType {
        ty(self.dtype(0), self.shape(0).map(<[Dim]>::to_vec))
    }
}

pub(super) fn ty(dtype: Option<DType>, shape: Option<Shape>) -> ValueType {
    ValueType { dtype, shape }
}

/// One output.
pub(super) fn one(dtype: Option<DType>, shape: Option<Shape>) -> Types {
    Ok(vec![ty(dtype, shape)])
}

/// An axis counted from either end.
pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, Fail> {
    let r = rank as i64;
    let from_start = if axis < 0 { axis.saturating_add(r) } else { axis };
    if (0..r).contains(&from_start) {
        Ok(from_start as usize)
    } else {
        Err(Fail::shape(format!("axis {axis} is out of range for a tensor of rank {rank}")))
    }
}

/// Axes counted from either end, sorted, each once.
pub(super) fn axes(given: &[i64], rank: usize) -> Result<Vec<usize>, Fail> {
    let mut all: Vec<usize> = given.iter().map(|&a| axis(a, rank)).collect::<Result<_, _>>()?;
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// The type of an input, for a gradient.
fn like(at: &At<'_>, slot: usize) -> ValueType {
    ty(at.dtype(slot), at.shape(slot).map(<[Dim]>::to_vec))
}

/// The types of a modelled operator's outputs.
pub(super) fn types(at: &At<'_>) -> Types {
    match at.op {
        Op::Input | Op::Constant(_) => Ok(vec![]),
        Op::Opaque(op) => Ok(opaque(at, op)),
        Op::Conv(_) | Op::ConvTranspose(_) => conv::types(at),
        Op::Gemm(op) => linear::gemm(at, op),
        Op::MatMul(_) => linear::matmul(at),
        Op::MaxPool(op) => window::max_pool(at, op),
        Op::AveragePool(op) => window::average_pool(at, op),
        Op::GlobalAveragePool(_) | Op::GlobalMaxPool(_) => window::global_pool(at),
        Op::BatchNormalization(op) => elementwise::batch_norm(at, op),
        Op::InstanceNormalization(_) => elementwise::instance_norm(at),
        Op::Relu(_) | Op::LeakyRelu(_) | Op::PRelu(_) | Op::Clip(_) | Op::Sigmoid(_) | Op::Tanh(_) => {
            Ok(vec![at.same()])
        }
        Op::HardSwish(_) | Op::HardSigmoid(_) | Op::Elu(_) | Op::Softplus(_) | Op::Gelu(_) | Op::Erf(_) => {
            Ok(vec![at.same()])
        }
        Op::Neg(_) | Op::Abs(_) | Op::Exp(_) | Op::Log(_) | Op::Sqrt(_) | Op::Reciprocal(_) => {
            Ok(vec![at.same()])
        }
        Op::Floor(_) | Op::Ceil(_) | Op::LRN(_) | Op::Identity(_) => Ok(vec![at.same()]),
        // A gradient has the type of what it is the gradient of.
        Op::ConvInputGrad(_) | Op::ConvWeightGrad(_) => Ok(vec![like(at, 2)]),
        Op::MaxPoolGrad(_)
        | Op::AveragePoolGrad(_)
        | Op::ResizeGrad(_)
        | Op::SliceGrad(_)
        | Op::GatherGrad(_)
        | Op::LRNGrad(_) => Ok(vec![like(at, 1)]),
        Op::ClipGrad(_) => Ok(vec![at.same()]),
        Op::BatchNormalizationGrad(_) => Ok(vec![like(at, 1), like(at, 2), like(at, 2)]),
        Op::Softmax(op) => elementwise::softmax(at, op.axis),
        Op::LogSoftmax(op) => elementwise::softmax(at, op.axis),
        Op::Dropout(_) => elementwise::dropout(at),
        Op::Cast(op) => one(Some(op.to), at.shape(0).map(<[Dim]>::to_vec)),
        Op::Add(op) => elementwise::binary(at, op.broadcast, op.axis),
        Op::Sub(op) => elementwise::binary(at, op.broadcast, op.axis),
        Op::Mul(op) => elementwise::binary(at, op.broadcast, op.axis),
        Op::Div(op) => elementwise::binary(at, op.broadcast, op.axis),
        Op::Pow(op) => elementwise::binary(at, op.broadcast, op.axis),
        Op::Equal(op) => elementwise::compare(at, op.broadcast, op.axis),
        Op::Greater(op) => elementwise::compare(at, op.broadcast, op.axis),
        Op::Less(op) => elementwise::compare(at, op.broadcast, op.axis),
        Op::Min(_) | Op::Max(_) | Op::Sum(_) | Op::Mean(_) => elementwise::variadic(at),
        Op::Where(_) => elementwise::choose(at),
        Op::Concat(op) => shape_ops::concat(at, op.axis),
        Op::Split(op) => slice::split(at, op),
        Op::Slice(op) => slice::slice(at, op),
        Op::Pad(op) => slice::pad(at, op),
        Op::Reshape(op) => shape_ops::reshape(at, op),
        Op::Flatten(op) => shape_ops::flatten(at, op.axis),
        Op::Transpose(op) => shape_ops::transpose(at, op.perm.as_deref()),
        Op::Squeeze(op) => shape_ops::squeeze(at, op.axes.as_deref()),
        Op::Unsqueeze(op) => shape_ops::unsqueeze(at, op.axes.as_deref()),
        Op::Expand(_) => shape_ops::expand(at),
        Op::Tile(_) => shape_ops::tile(at),
        Op::Gather(op) => shape_ops::gather(at, op.axis),
        Op::Shape(op) => shape_ops::shape(at, op),
        Op::ConstantOfShape(op) => shape_ops::constant_of_shape(at, op),
        Op::DepthToSpace(op) => shape_ops::depth_to_space(at, op.blocksize),
        Op::SpaceToDepth(op) => shape_ops::space_to_depth(at, op.blocksize),
        Op::Resize(op) => resize::resize(at, op),
        Op::Upsample(op) => resize::upsample(at, op.scales.as_deref()),
        Op::ReduceMean(op) => reduce::reduce(at, op.axes.as_deref(), op.keepdims, op.noop_with_empty_axes),
        Op::ReduceSum(op) => reduce::reduce(at, op.axes.as_deref(), op.keepdims, op.noop_with_empty_axes),
        Op::ReduceMax(op) => reduce::reduce(at, op.axes.as_deref(), op.keepdims, op.noop_with_empty_axes),
        Op::ReduceMin(op) => reduce::reduce(at, op.axes.as_deref(), op.keepdims, op.noop_with_empty_axes),
        Op::ReduceProd(op) => reduce::reduce(at, op.axes.as_deref(), op.keepdims, op.noop_with_empty_axes),
        Op::ReduceL2(op) => reduce::reduce(at, op.axes.as_deref(), op.keepdims, op.noop_with_empty_axes),
        Op::ArgMax(op) => reduce::arg_max(at, op.axis, op.keepdims),
    }
}

/// Nothing is known about an operator that is not modelled, but for the two that stand between the
/// convolutions of a quantised model and change only element types.
fn opaque(at: &At<'_>, op: &Opaque) -> Vec<ValueType> {
    let shape = || at.shape(0).map(<[Dim]>::to_vec);
    match (op.domain.as_str(), op.op_type.as_str()) {
        ("", "DequantizeLinear") if op.attrs.get("output_dtype").is_none() => vec![ty(at.dtype(1), shape())],
        ("", "QuantizeLinear") if op.attrs.get("output_dtype").is_none() => {
            // Without a zero point the result is unsigned.
            vec![ty(if at.has(2) { at.dtype(2) } else { Some(DType::U8) }, shape())]
        }
        _ => vec![],
    }
}
