//! The layers of a model: convolutions, and products with a constant matrix.
//!
//! tract makes a product of a convolution with a 1×1 kernel when it declutters, and drops and adds axes of size 1 in
//! it. A product that takes the channels of an image to the channels of an image — the axis after the batch, or the
//! first where there is no batch, with rows and columns behind it — counts as such a convolution; any other, over the
//! last axis above all, as a linear layer.

use crate::affine::Tail;
use crate::convert::{Layout, dtype};
use crate::run::Kind;
use basisopt_ir::DType;
use basisopt_passes::Refusal;
use tract_core::internal::{OutletId, TractResult, TypedFact, TypedModel, TypedNode};
use tract_core::ops::cnn::{Conv, Deconv};
use tract_core::ops::einsum::EinSum;

/// What computes a layer.
#[derive(Clone, Debug)]
pub(crate) enum Form {
    /// A convolution.
    Conv(Box<Conv>),
    /// A product.
    Product(Box<Product>),
}

/// A layer whose weight is a constant.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// Its node.
    pub node: usize,
    /// The name that remarks and filters know it by.
    pub label: String,
    pub form: Form,
    /// Number of spatial axes; a linear layer has none.
    pub n_spatial: usize,
    /// Slots of the node.
    pub data_slot: usize,
    pub weight_slot: usize,
    pub layout: Layout,
    pub dtype: DType,
    /// What scales and shifts its result.
    pub tail: Option<Tail>,
}

/// A layer that cannot be factorised, by name, and why.
pub(crate) type Refused = (String, Refusal);

/// All layers of a kind, in the order in which they run, and those that are out of the question.
pub(crate) fn find(model: &TypedModel, kind: Kind) -> TractResult<(Vec<Layer>, Vec<Refused>)> {
    let (mut layers, mut refused) = (vec![], vec![]);
    for id in model.eval_order()? {
        let node = model.node(id);
        let found = match kind {
            Kind::Conv { fold } => convolution(model, node, fold)?,
            Kind::Linear => linear(model, node)?,
        };
        match found {
            None => {}
            Some(Ok(layer)) => layers.push(layer),
            Some(Err(refusal)) => refused.push((label(node).to_owned(), refusal)),
        }
    }
    Ok((layers, refused))
}

/// The name of a layer: what was appended when tract decluttered is no part of it.
fn label(node: &TypedNode) -> &str {
    node.name.strip_suffix(".einsum").unwrap_or(&node.name)
}

type Found = Option<Result<Layer, Refusal>>;

fn convolution(model: &TypedModel, node: &TypedNode, fold: bool) -> TractResult<Found> {
    if node.op_is::<Deconv>() {
        let message = "transposed convolutions are factorised in ONNX files only, by the command line";
        return Ok(Some(Err(Refusal::new("transposed", message))));
    }
    let found = match node.op_as::<Conv>() {
        Some(conv) => Some(plain_convolution(model, node, conv)?),
        None => pointwise(model, node)?,
    };
    let Some(Ok(mut layer)) = found else { return Ok(found) };
    if fold {
        let (axis, n_channels) = layer.channels(model)?;
        layer.tail = Tail::of(model, node.id.into(), axis, n_channels)?;
    }
    Ok(Some(Ok(layer)))
}

impl Layer {
    /// The axis of its result that counts the channels, and their number.
    fn channels(&self, model: &TypedModel) -> TractResult<(usize, usize)> {
        Ok(match &self.form {
            Form::Conv(conv) => {
                let format = conv.pool_spec.data_format;
                let last = model.outlet_fact(self.node.into())?.rank().saturating_sub(1);
                let axis = if format.c_is_last() { last } else { usize::from(format.has_n()) };
                (axis, conv.pool_spec.output_channels)
            }
            Form::Product(product) => (product.out_axis, product.n_rows),
        })
    }
}

fn plain_convolution(
    model: &TypedModel,
    node: &TypedNode,
    conv: &Conv,
) -> TractResult<Result<Layer, Refusal>> {
    let [_, weight, ..] = node.inputs[..] else {
        return Ok(Err(Refusal::new("malformed", "it has no weight")));
    };
    if conv.q_params.is_some() {
        let message = "it is quantised: factorise the float network and quantise the result";
        return Ok(Err(Refusal::new("quantised-weight", message)));
    }
    let checked = weight_type(model, weight)?;
    Ok(checked.map(|dtype| Layer {
        node: node.id,
        label: label(node).to_owned(),
        form: Form::Conv(Box::new(conv.clone())),
        n_spatial: conv.pool_spec.rank(),
        data_slot: 0,
        weight_slot: 1,
        layout: Layout::Kernel(conv.kernel_fmt, conv.group),
        dtype,
        tail: None,
    }))
}

/// The type of a weight that can be read.
fn weight_type(model: &TypedModel, weight: OutletId) -> TractResult<Result<DType, Refusal>> {
    let fact = model.outlet_fact(weight)?;
    let source = model.node(weight.node);
    let Some(tensor) = &fact.konst else {
        let message =
            format!("its weight is what {} computes, a node of type {}", source.name, source.op.name());
        return Ok(Err(Refusal::new("weight-not-constant", message)));
    };
    if !tensor.is_plain_ram() {
        let message = format!("its weight {} is stored in a packed or quantised form", source.name);
        return Ok(Err(Refusal::new("quantised-weight", message)));
    }
    Ok(dtype(tensor.datum_type()).ok_or_else(|| {
        let message =
            format!("its weight {} is of type {:?}, not f16, f32 or f64", source.name, tensor.datum_type());
        Refusal::new("weight-type", message)
    }))
}

/// A product of a value with a constant matrix over one axis; all others are kept, but for those of size 1.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    pub op: EinSum,
    pub data_slot: usize,
    /// Whether the matrix is stored `[out, in]`.
    pub rows_first: bool,
    /// The axis of the value that is multiplied, and that of the result.
    pub data_axis: usize,
    pub out_axis: usize,
    /// Numbers of axes of the value and of the result.
    pub data_rank: usize,
    pub out_rank: usize,
    /// Rows of the matrix: outputs.
    pub n_rows: usize,
    dtype: DType,
}

/// Whether an axis of so many counts channels, with one spatial axis or more behind it.
fn is_of_image(axis: usize, rank: usize) -> bool {
    rank >= 3 && axis <= 1
}

impl Product {
    fn of(model: &TypedModel, node: &TypedNode) -> TractResult<Option<Self>> {
        let Some(op) = node.op_as::<EinSum>().filter(|op| op.q_params.is_none()) else { return Ok(None) };
        let [a, b] = node.inputs[..] else { return Ok(None) };
        let is_matrix =
            |fact: &TypedFact| fact.konst.as_ref().is_some_and(|t| t.rank() == 2 && t.is_plain_ram());
        let weight_slot = match (is_matrix(model.outlet_fact(a)?), is_matrix(model.outlet_fact(b)?)) {
            (_, true) => 1,
            (true, false) => 0,
            _ => return Ok(None),
        };
        let data_slot = 1 - weight_slot;
        let from = model.outlet_fact(node.inputs[data_slot])?;
        let weight = model.outlet_fact(node.inputs[weight_slot])?;
        let to = model.outlet_fact(node.id.into())?;
        let Some(dtype) = dtype(weight.datum_type) else { return Ok(None) };
        let types = [from.datum_type, to.datum_type, op.operating_dt];
        if types.iter().any(|&t| t != weight.datum_type) {
            return Ok(None);
        }
        let (mut read, mut written) = (None, None);
        for axis in op.axes.iter_all_axes() {
            match (&axis.inputs[data_slot][..], &axis.inputs[weight_slot][..], &axis.outputs[0][..]) {
                (&[data], &[column], []) if read.is_none() => read = Some((data, column)),
                ([], &[row], &[out]) if written.is_none() => written = Some((out, row)),
                (&[_], [], &[_]) => {}
                (&[data], [], []) if from.shape[data].is_one() => {}
                ([], [], &[out]) if to.shape[out].is_one() => {}
                _ => return Ok(None),
            }
        }
        let (Some((data_axis, _)), Some((out_axis, row))) = (read, written) else { return Ok(None) };
        let Some(shape) = weight.shape.as_concrete() else { return Ok(None) };
        Ok(Some(Self {
            op: op.clone(),
            data_slot,
            rows_first: row == 0,
            data_axis,
            out_axis,
            data_rank: from.rank(),
            out_rank: to.rank(),
            n_rows: shape[row],
            dtype,
        }))
    }

    /// Whether the value and the result are images.
    pub fn of_images(&self) -> [bool; 2] {
        [is_of_image(self.data_axis, self.data_rank), is_of_image(self.out_axis, self.out_rank)]
    }

    fn layer(self, node: &TypedNode, n_spatial: usize) -> Layer {
        Layer {
            node: node.id,
            label: label(node).to_owned(),
            n_spatial,
            data_slot: self.data_slot,
            weight_slot: 1 - self.data_slot,
            layout: Layout::Matrix { rows_first: self.rows_first, n_ones: n_spatial },
            dtype: self.dtype,
            tail: None,
            form: Form::Product(Box::new(self)),
        }
    }
}

/// The product that tract makes of a convolution with a 1×1 kernel.
fn pointwise(model: &TypedModel, node: &TypedNode) -> TractResult<Found> {
    let Some(product) = Product::of(model, node)? else { return Ok(None) };
    let n_spatial = product.data_rank.saturating_sub(product.data_axis + 1);
    let is_last_of_four = product.data_rank == 4 && product.data_axis == 3;
    Ok(match product.of_images() {
        [true, true] => Some(Ok(product.layer(node, n_spatial))),
        [false, false] if !is_last_of_four => None,
        _ => {
            let message = "a product that tract has made of a 1×1 convolution or of a linear layer, which cannot be told; \
                           factorize-linear takes it, or use the model before it is decluttered";
            Some(Err(Refusal::new("doubtful-product", message)))
        }
    })
}

fn linear(model: &TypedModel, node: &TypedNode) -> TractResult<Found> {
    let product = Product::of(model, node)?.filter(|product| product.of_images() != [true, true]);
    Ok(product.map(|product| Ok(product.layer(node, 0))))
}
