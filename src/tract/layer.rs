//! The layers of a model: convolutions, and products with a constant matrix.
//!
//! tract makes a product of a convolution with a 1×1 kernel when it declutters. A product over the channels of an image
//! — the axis after the batch, or the first where there is no batch, with the rows and columns behind it — counts as
//! such a convolution; any other, over the last axis above all, as a linear layer.

use crate::affine::Tail;
use crate::convert::{Layout, dtype};
use crate::run::Kind;
use basisopt_ir::DType;
use basisopt_passes::Refusal;
use tract_core::internal::{OutletId, TractResult, TypedFact, TypedModel, TypedNode, tvec};
use tract_core::ops::cnn::{Conv, Deconv, KernelFormat, PaddingSpec, PoolSpec};
use tract_core::ops::einsum::EinSum;
use tract_core::ops::nn::DataFormat;

/// What computes a layer.
#[derive(Clone, Debug)]
pub(crate) enum Form {
    /// A convolution. A product that counts as one is described as what it was made of, without a bias.
    Conv { conv: Conv, has_bias: bool },
    /// A product; which of its inputs is the matrix, and how that is stored.
    Product { op: EinSum, rows_first: bool },
}

/// A layer whose weight is a constant.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// Its node.
    pub node: usize,
    /// The name that remarks and filters know it by.
    pub label: String,
    pub form: Form,
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
    if fold && let Form::Conv { conv, .. } = &layer.form {
        let spec = &conv.pool_spec;
        let rank = model.outlet_fact(node.id.into())?.rank();
        let axis =
            if spec.data_format.c_is_last() { rank - 1 } else { usize::from(spec.data_format.has_n()) };
        layer.tail = Tail::of(model, node.id.into(), axis, spec.output_channels)?;
    }
    Ok(Some(Ok(layer)))
}

fn plain_convolution(
    model: &TypedModel,
    node: &TypedNode,
    conv: &Conv,
) -> TractResult<Result<Layer, Refusal>> {
    let form = Form::Conv { conv: conv.clone(), has_bias: true };
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
        form,
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

/// A product of a value with a matrix over one axis, all others kept as they are.
struct Product<'a> {
    op: &'a EinSum,
    data_slot: usize,
    rows_first: bool,
    /// The axis that is multiplied.
    axis: usize,
    n_axes: usize,
    /// Rows and columns of the matrix: outputs and inputs.
    size: [usize; 2],
    dtype: DType,
}

impl Product<'_> {
    /// Where there is one spatial axis or more behind the channels.
    fn is_convolution(&self) -> bool {
        self.n_axes >= 3 && self.axis <= 1 && self.axis + 1 < self.n_axes
    }

    fn of<'a>(model: &'a TypedModel, node: &'a TypedNode) -> TractResult<Option<Product<'a>>> {
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
        let Some(dtype) = dtype(weight.datum_type) else { return Ok(None) };
        if from.datum_type != weight.datum_type || op.operating_dt != weight.datum_type {
            return Ok(None);
        }
        let (mut read, mut written, mut in_place) = (None, None, true);
        for axis in op.axes.iter_all_axes() {
            match (&axis.inputs[data_slot][..], &axis.inputs[weight_slot][..], &axis.outputs[0][..]) {
                (&[data], &[matrix], []) if read.is_none() => read = Some((data, matrix)),
                ([], &[matrix], &[out]) if written.is_none() => written = Some((out, matrix)),
                (&[data], [], &[out]) => in_place &= data == out,
                _ => return Ok(None),
            }
        }
        let (Some((axis, columns)), Some((out, rows))) = (read, written) else { return Ok(None) };
        let Some(shape) = weight.shape.as_concrete() else { return Ok(None) };
        let found = Product {
            op,
            data_slot,
            rows_first: rows == 0,
            axis,
            n_axes: from.rank(),
            size: [shape[rows], shape[columns]],
            dtype,
        };
        Ok(Some(found).filter(|_| in_place && axis == out))
    }
}

/// The product that tract makes of a convolution with a 1×1 kernel.
fn pointwise(model: &TypedModel, node: &TypedNode) -> TractResult<Found> {
    let Some(product) = Product::of(model, node)? else { return Ok(None) };
    let n_spatial = product.n_axes.saturating_sub(product.axis + 1);
    if !product.is_convolution() {
        // Of four axes it may well be one.
        let is_doubtful = product.n_axes == 4 && product.axis == 3;
        let message = "a product over the last of four axes: tract has made a 1×1 convolution or a linear layer of it; \
                       factorize-linear takes it, or use the model before it is decluttered";
        return Ok(is_doubtful.then(|| Err(Refusal::new("channels-last-product", message))));
    }
    let [output_channels, input_channels] = product.size;
    let pool_spec = PoolSpec {
        data_format: if product.axis == 1 { DataFormat::NCHW } else { DataFormat::CHW },
        kernel_shape: tvec![1; n_spatial],
        padding: PaddingSpec::Valid,
        dilations: None,
        strides: None,
        input_channels,
        output_channels,
    };
    let conv = Conv { pool_spec, kernel_fmt: KernelFormat::OIHW, group: 1, q_params: None };
    Ok(Some(Ok(Layer {
        node: node.id,
        label: label(node).to_owned(),
        form: Form::Conv { conv, has_bias: false },
        data_slot: product.data_slot,
        weight_slot: 1 - product.data_slot,
        layout: Layout::Matrix { rows_first: product.rows_first, n_ones: n_spatial },
        dtype: product.dtype,
        tail: None,
    })))
}

fn linear(model: &TypedModel, node: &TypedNode) -> TractResult<Found> {
    let Some(product) = Product::of(model, node)?.filter(|product| !product.is_convolution()) else {
        return Ok(None);
    };
    Ok(Some(Ok(Layer {
        node: node.id,
        label: label(node).to_owned(),
        form: Form::Product { op: product.op.clone(), rows_first: product.rows_first },
        data_slot: product.data_slot,
        weight_slot: 1 - product.data_slot,
        layout: Layout::Matrix { rows_first: product.rows_first, n_ones: 0 },
        dtype: product.dtype,
        tail: None,
    })))
}
