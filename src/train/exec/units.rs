//! Graph nodes as units of work: convolutions with what is fused into them, and everything else.

use super::kernel::Unsupported;
use super::program::{Fused, Product};
use basisopt_ir::op::{self, AutoPad, Op};
use basisopt_ir::{Graph, NodeId, ValueId};
use basisopt_kernels::ConvShape;

#[derive(Clone, Debug)]
pub(super) enum UnitKind {
    /// Reads x (or dy), w, bias, the tensor to add, the mask.
    Conv { shape: ConvShape, product: Product, fused: Fused },
    /// Reads dy, x.
    WeightGrad { shape: ConvShape },
    /// The node by itself.
    Node,
}

/// One step to be, on values of the graph.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub kind: UnitKind,
    /// The node, or the last of those that are fused.
    pub node: NodeId,
    pub reads: Vec<Option<ValueId>>,
    pub writes: Vec<ValueId>,
}

/// Positions of the reads of a convolution.
pub(super) const ADD: usize = 3;
/// See [`ADD`].
pub(super) const MASK: usize = 4;

/// The static shape noted on a value.
pub(super) fn shape_of(graph: &Graph, value: ValueId) -> Option<Vec<usize>> {
    graph.value(value).ty.static_shape()
}

/// Slots of which only the shape matters.
pub(super) fn is_shape_only(op: &Op, slot: usize) -> bool {
    match op {
        Op::ConvInputGrad(_) | Op::ConvWeightGrad(_) => slot == 2,
        Op::AveragePoolGrad(_) | Op::ResizeGrad(_) | Op::SliceGrad(_) | Op::GatherGrad(_) => slot == 1,
        Op::Shape(_) => slot == 0,
        _ => false,
    }
}

/// Operators that only give their first input another shape or name.
pub(super) fn is_view(op: &Op) -> bool {
    matches!(
        op,
        Op::Reshape(_)
            | Op::Flatten(_)
            | Op::Squeeze(_)
            | Op::Unsqueeze(_)
            | Op::Identity(_)
            | Op::Dropout(_)
    )
}

/// The attributes that [`op::Conv`] and its gradients have in common.
struct Attrs<'a> {
    auto_pad: AutoPad,
    dilations: &'a [i64],
    group: i64,
    pads: &'a [i64],
    strides: &'a [i64],
}

/// Three axes, the given ones last.
fn three(values: &[usize], missing: usize) -> Option<[usize; 3]> {
    let mut out = [missing; 3];
    let start = 3usize.checked_sub(values.len())?;
    out.get_mut(start..)?.copy_from_slice(values);
    Some(out)
}

/// The numbers of a convolution of x with w giving y, from their shapes.
fn conv_shape(attrs: &Attrs<'_>, x: &[usize], w: &[usize], y: &[usize]) -> Option<ConvShape> {
    let n_spatial = w.len().checked_sub(2)?;
    let list = |given: &[i64], default: usize| -> Option<Vec<usize>> {
        if given.is_empty() {
            return Some(vec![default; n_spatial]);
        }
        given.iter().map(|&v| usize::try_from(v).ok()).collect()
    };
    let (strides, dilations) = (list(attrs.strides, 1)?, list(attrs.dilations, 1)?);
    let kernel = w.get(2..)?.to_vec();
    let (input, output) = (x.get(2..)?, y.get(2..)?);
    let pads = match attrs.auto_pad {
        AutoPad::NotSet => list(attrs.pads.get(..n_spatial).unwrap_or_default(), 0)?,
        AutoPad::Valid => vec![0; n_spatial],
        side => (0..n_spatial)
            .map(|a| {
                let extent = (kernel[a] - 1) * dilations[a] + 1;
                let total = ((output[a] - 1) * strides[a] + extent).saturating_sub(input[a]);
                if side == AutoPad::SameUpper { total / 2 } else { total.div_ceil(2) }
            })
            .collect(),
    };
    let groups = usize::try_from(attrs.group).ok().filter(|&g| g > 0)?;
    if x.first() != Some(&1) {
        return None;
    }
    Some(ConvShape {
        n_in: *x.get(1)?,
        n_out: *y.get(1)?,
        groups,
        input: three(input, 1)?,
        output: three(output, 1)?,
        kernel: three(&kernel, 1)?,
        strides: three(&strides, 1)?,
        dilations: three(&dilations, 1)?,
        pads: three(&pads, 0)?,
    })
}

/// A matrix product as a 1×1 convolution at one position.
fn linear_shape(n_in: usize, n_out: usize) -> ConvShape {
    ConvShape {
        n_in,
        n_out,
        groups: 1,
        input: [1; 3],
        output: [1; 3],
        kernel: [1; 3],
        strides: [1; 3],
        dilations: [1; 3],
        pads: [0; 3],
    }
}

/// What a node is to do. `is_lane` says which values differ from image to image.
///
/// # Errors
/// If it is a convolution that the kernels cannot do.
pub(super) fn unit(
    graph: &Graph,
    id: NodeId,
    is_lane: &dyn Fn(ValueId) -> bool,
    is_summed: bool,
) -> Result<Unit, Unsupported> {
    let node = graph.node(id);
    let slots = graph.node_inputs(id);
    let slot = |i: usize| slots.get(i).copied().flatten();
    let shape = |i: usize| slot(i).and_then(|v| shape_of(graph, v));
    let writes: Vec<ValueId> =
        (0..node.outputs.len()).map(|port| ValueId { node: id, port: port as u32 }).collect();
    let out = writes.first().and_then(|&v| shape_of(graph, v));
    let conv = |product, shape, reads: [Option<ValueId>; 3]| Unit {
        kind: UnitKind::Conv { shape, product, fused: Fused::default() },
        node: id,
        reads: reads.into_iter().chain([None, None]).collect(),
        writes: writes.clone(),
    };
    let plain = Unit { kind: UnitKind::Node, node: id, reads: slots.clone(), writes: writes.clone() };
    let needs = |lane: usize, shared: usize| {
        slot(lane).is_some_and(is_lane) && slot(shared).is_some_and(|v| !is_lane(v))
    };
    // The kernels' bias is the same for all images.
    let moving_bias = slot(2).is_some_and(is_lane);
    let shapes = || Some((shape(0)?, shape(1)?, out.clone()?));
    macro_rules! attrs {
        ($op:expr) => {
            Attrs {
                auto_pad: $op.auto_pad,
                dilations: &$op.dilations,
                group: $op.group,
                pads: &$op.pads,
                strides: &$op.strides,
            }
        };
    }
    let bad = || Unsupported("its attributes, or a weight that depends on the input".to_owned());
    Ok(match &node.op {
        Op::Conv(op) if needs(0, 1) && !moving_bias => {
            let (x, w, y) = shapes().ok_or_else(bad)?;
            let shape = conv_shape(&attrs!(op), &x, &w, &y).ok_or_else(bad)?;
            conv(Product::Forward, shape, [slot(0), slot(1), slot(2)])
        }
        Op::ConvTranspose(op) if needs(0, 1) && !moving_bias => {
            // The input gradient of the convolution that goes the other way.
            let (x, w, y) = shapes().ok_or_else(bad)?;
            let resolved =
                basisopt_ir::infer::conv_geometry(graph, id).and_then(|g| g.pads).ok_or_else(bad)?;
            let pads: Vec<i64> = resolved.iter().map(|&(begin, _)| begin as i64).collect();
            let attrs = Attrs { auto_pad: AutoPad::NotSet, pads: &pads, ..attrs!(op) };
            let shape = conv_shape(&attrs, &y, &w, &x).ok_or_else(bad)?;
            conv(Product::InputGrad, shape, [slot(0), slot(1), slot(2)])
        }
        Op::ConvInputGrad(op) if needs(0, 1) => {
            let (dy, w, x) = shapes().ok_or_else(bad)?;
            let shape = conv_shape(&attrs!(op), &x, &w, &dy).ok_or_else(bad)?;
            conv(Product::InputGrad, shape, [slot(0), slot(1), None])
        }
        Op::ConvWeightGrad(op) if is_summed => {
            let (dy, x, w) = shapes().ok_or_else(bad)?;
            let shape = conv_shape(&attrs!(op), &x, &w, &dy).ok_or_else(bad)?;
            Unit { kind: UnitKind::WeightGrad { shape }, node: id, reads: vec![slot(0), slot(1)], writes }
        }
        Op::Conv(_) | Op::ConvTranspose(_) | Op::ConvInputGrad(_) | Op::ConvWeightGrad(_) => {
            return Err(bad());
        }
        Op::Gemm(op) if is_summed => weight_product(op, &plain, &shape),
        Op::Gemm(op) if needs(0, 1) && !moving_bias => product(op, &plain, &shape, &slot),
        Op::MatMul(_) if needs(0, 1) => {
            product(&op::Gemm::default(), &plain, &shape, &|i| if i < 2 { slot(i) } else { None })
        }
        _ => plain,
    })
}

/// A matrix product with a weight; the unit as it is where it is not that.
fn product(
    op: &op::Gemm,
    plain: &Unit,
    shape: &dyn Fn(usize) -> Option<Vec<usize>>,
    slot: &dyn Fn(usize) -> Option<ValueId>,
) -> Unit {
    let (x, w) = (shape(0).unwrap_or_default(), shape(1).unwrap_or_default());
    let ([1, n], [rows, columns]) = (&x[..], &w[..]) else { return plain.clone() };
    let (n_in, n_out) = if op.transB == 1 { (*columns, *rows) } else { (*rows, *columns) };
    let bias = match (slot(2), shape(2).as_deref()) {
        (None, _) => None,
        (Some(v), Some([p] | [1, p])) if *p == n_out && op.beta == 1.0 => Some(v),
        _ => return plain.clone(),
    };
    if op.alpha != 1.0 || op.transA != 0 || *n != n_in {
        return plain.clone();
    }
    // The weight is stored as a convolution's, [outputs, inputs], or the other way round.
    let (shape, product) = match op.transB {
        1 => (linear_shape(n_in, n_out), Product::Forward),
        _ => (linear_shape(n_out, n_in), Product::InputGrad),
    };
    Unit {
        kind: UnitKind::Conv { shape, product, fused: Fused::default() },
        reads: vec![slot(0), slot(1), bias, None, None],
        ..plain.clone()
    }
}

/// The gradient of a matrix for a batch: the product of what stands on its two sides.
fn weight_product(op: &op::Gemm, plain: &Unit, shape: &dyn Fn(usize) -> Option<Vec<usize>>) -> Unit {
    match (shape(0).as_deref(), shape(1).as_deref()) {
        (Some([1, p]), Some([1, c]))
            if op.transA == 1 && op.transB == 0 && op.alpha == 1.0 && plain.reads.len() == 2 =>
        {
            Unit { kind: UnitKind::WeightGrad { shape: linear_shape(*c, *p) }, ..plain.clone() }
        }
        _ => plain.clone(),
    }
}
