//! tract runs a factorised layer as one operator: the transform `fuse-basis-conv`.
//!
//! Stock tract writes the values between a basis convolution and its 1×1 convolution to memory, and gathers the
//! patches of the first one lazily. [`FuseBasisConv`] finds such pairs in a decluttered model and replaces each,
//! with its bias, a residual addition and a ReLU (or another clamp) behind it, by one [`BasisConv`], whose
//! kernel (`basisopt-kernels`) works tile by tile in cache.
//!
//! Linking this crate registers the transform with tract: `tract_core::transform::get_transform("fuse-basis-conv")`.
//!
//! A pair is fused if both convolutions are ungrouped and in `f32`, weights and biases are constant, the
//! second has a 1×1 kernel, stride 1 and no padding, the image sizes are known, and nothing else reads the values
//! between the two. All others stay as they are.

use basisopt_kernels::{Pair, PairEpilogue, PairShape};
use std::sync::Arc;
use tract_core::internal::tract_smallvec::SmallVec;
use tract_core::internal::*;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::cnn::{Conv, KernelFormat};
use tract_core::ops::einsum::EinSum;
use tract_core::ops::nn::DataFormat;
use tract_core::transform::ModelTransform;
use tract_linalg::multithread::{Executor, current_tract_executor};

/// Multiply-adds for which waking a thread pays: some forty microseconds of one core.
const MACS_PER_THREAD: usize = 2_000_000;

/// The transform; it also goes by the name `fuse_basis_conv`, which is how tract spells it.
#[derive(Clone, Copy, Debug, Default)]
pub struct FuseBasisConv;

impl ModelTransform for FuseBasisConv {
    fn name(&self) -> StaticName {
        "fuse_basis_conv".into()
    }

    fn transform(&self, model: &mut TypedModel) -> TractResult<()> {
        fuse(model).map(|_| ())
    }
}

tract_core::register_simple_model_transform!("fuse_basis_conv", FuseBasisConv);

/// Fuses all pairs of a model, decluttered or not; returns how many there were.
///
/// # Errors
/// tract's, if the model is not well formed.
pub fn fuse(model: &mut TypedModel) -> TractResult<usize> {
    let mut n_fused = 0;
    // In a model that was not decluttered, weights and biases may be computed from constants.
    model.prop_consts()?;
    for id in model.eval_order()? {
        // Nodes that an earlier patch replaced are dummies by now.
        let Some((found, op)) = Found::at(model, id)? else { continue };
        let mut patch = TypedModelPatch::default();
        let inputs = patch.taps(model, &found.inputs)?;
        let wire = patch.wire_node(&model.node(id).name, op, &inputs)?;
        patch.shunt_outside(model, found.last, wire[0])?;
        patch.apply(model)?;
        n_fused += 1;
    }
    model.prop_consts()?;
    model.compact()?;
    Ok(n_fused)
}

/// Whether there are convolutions with channels behind rows and columns: no pair is found among these.
pub(crate) fn has_channels_last(model: &TypedModel) -> bool {
    let is_last = |conv: &Conv| matches!(conv.pool_spec.data_format, DataFormat::NHWC | DataFormat::HWC);
    model.nodes().iter().any(|node| node.op_as::<Conv>().is_some_and(is_last))
}

/// A pair in a model.
struct Found {
    gives_batch: bool,
    add: bool,
    clamp: Option<(f32, f32)>,
    /// The image, and a tensor to add.
    inputs: TVec<OutletId>,
    /// What the operator replaces.
    last: OutletId,
}

impl Found {
    /// The pair whose first convolution is this node, and as much of what follows as fits the epilogue.
    fn at(model: &TypedModel, id: usize) -> TractResult<Option<(Self, BasisConv)>> {
        let Some(first) = First::at(model, id)? else { return Ok(None) };
        let Some((second, coefficients)) = coefficients(model, id.into(), first.has_batch)? else {
            return Ok(None);
        };
        let n_out = coefficients.weights.len() / first.n_filters.max(1);
        // A missing height is 1.
        let two = |values: &[usize], missing: usize| match values {
            [height, width] => [*height, *width],
            _ => [missing, values.first().copied().unwrap_or(missing)],
        };
        let shape = PairShape {
            n_in: first.n_in,
            rank: first.n_filters,
            n_out,
            input: two(&first.input, 1),
            output: two(&first.output, 1),
            kernel: two(&first.kernel, 1),
            strides: two(&first.strides, 1),
            dilations: two(&first.dilations, 1),
            pads: two(&first.pads, 0),
        };
        let mut found = Self {
            // tract drops and adds a batch of one where it likes.
            gives_batch: model.outlet_fact(second)?.rank() == first.input.len() + 2,
            add: false,
            clamp: None,
            inputs: tvec!(first.image),
            last: second,
        };
        let mut bias = coefficients.bias.unwrap_or_else(|| vec![0.0; n_out]);
        while found.extend(model, &mut bias)? {}
        let pair =
            Pair::new(shape, &first.weights, first.bias.as_deref(), &coefficients.weights, Some(&bias));
        let Some(pair) = pair else { return Ok(None) };
        let op = BasisConv {
            pair: Arc::new(pair),
            has_batch: first.has_batch,
            gives_batch: found.gives_batch,
            n_spatial: first.input.len(),
            add: found.add,
            clamp: found.clamp,
        };
        Ok(Some((found, op)))
    }

    /// Takes in the node behind, if the epilogue can do it.
    fn extend(&mut self, model: &TypedModel, bias: &mut [f32]) -> TractResult<bool> {
        let Some(next) = only_reader(model, self.last) else { return Ok(false) };
        let node = model.node(next);
        let Some(op) = node.op_as::<TypedBinOp>().filter(|op| op.1.is_none()) else { return Ok(false) };
        let [a, b] = node.inputs[..] else { return Ok(false) };
        let other = if a == self.last { b } else { a };
        let channel_axis = usize::from(self.gives_batch);
        let mine = model.outlet_fact(self.last)?;
        if other == self.last || model.outlet_fact(next.into())?.shape != mine.shape {
            return Ok(false);
        }
        let name = op.0.name();
        match name {
            "Add" if self.clamp.is_none() => {
                if let Some(values) = channel_values(model, other, bias.len(), channel_axis)? {
                    bias.iter_mut().zip(values).for_each(|(b, v)| *b += v);
                } else if !self.add && model.outlet_fact(other)?.shape == mine.shape {
                    self.inputs.push(other);
                    self.add = true;
                } else {
                    return Ok(false);
                }
            }
            "Max" | "Min" => {
                let Some(bound) = floats(model, other)? else { return Ok(false) };
                let [bound] = bound[..] else { return Ok(false) };
                let (low, high) = self.clamp.unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
                // The order of two bounds matters only where they leave nothing between them.
                let clamp = if name == "Max" { (low.max(bound), high) } else { (low, high.min(bound)) };
                if bound.is_nan() || clamp.0 > clamp.1 {
                    return Ok(false);
                }
                self.clamp = Some(clamp);
            }
            _ => return Ok(false),
        }
        self.last = next.into();
        Ok(true)
    }
}

/// The first convolution of a pair; sizes are by spatial axis.
struct First {
    image: OutletId,
    has_batch: bool,
    n_in: usize,
    n_filters: usize,
    input: TVec<usize>,
    output: TVec<usize>,
    kernel: TVec<usize>,
    strides: TVec<usize>,
    dilations: TVec<usize>,
    pads: TVec<usize>,
    weights: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl First {
    fn at(model: &TypedModel, id: usize) -> TractResult<Option<Self>> {
        let node = model.node(id);
        if only_reader(model, id.into()).is_none() {
            return Ok(None);
        }
        if let Some(conv) = node.op_as::<Conv>() {
            return Self::convolution(model, node, conv);
        }
        // tract makes a product of a convolution with a 1×1 kernel.
        let [a, b] = node.inputs[..] else { return Ok(None) };
        let image = if model.outlet_fact(a)?.konst.is_some() { b } else { a };
        let Some(weights) = channel_product(model, id, image, model.outlet_fact(id.into())?.rank() == 4)?
        else {
            return Ok(None);
        };
        let from = model.outlet_fact(image)?;
        let has_batch = from.rank() == 4;
        let Some(sizes) = sizes(from, has_batch) else { return Ok(None) };
        let [n_in, spatial @ ..] = &sizes[..] else { return Ok(None) };
        // Only images: a product of two axes or three may be anything.
        if model.outlet_fact(id.into())?.rank() != from.rank() || spatial.len() != 2 {
            return Ok(None);
        }
        let ones = tvec!(1; spatial.len());
        Ok(Some(Self {
            image,
            has_batch,
            n_in: *n_in,
            n_filters: weights.len() / (*n_in).max(1),
            input: spatial.into(),
            output: spatial.into(),
            kernel: ones.clone(),
            strides: ones.clone(),
            dilations: ones,
            pads: tvec!(0; spatial.len()),
            weights,
            bias: None,
        }))
    }

    fn convolution(model: &TypedModel, node: &TypedNode, conv: &Conv) -> TractResult<Option<Self>> {
        let spec = &conv.pool_spec;
        let has_batch = spec.data_format == DataFormat::NCHW;
        let is_plain = conv.group == 1
            && conv.q_params.is_none()
            && conv.kernel_fmt == KernelFormat::OIHW
            && matches!(spec.data_format, DataFormat::NCHW | DataFormat::CHW)
            && matches!(spec.rank(), 1 | 2);
        let fact = model.outlet_fact(node.inputs[0])?;
        if !is_plain || fact.datum_type != f32::datum_type() {
            return Ok(None);
        }
        let Some(sizes) = sizes(fact, has_batch) else { return Ok(None) };
        let (Some(weights), Some(bias)) =
            (floats(model, node.inputs[1])?, channel_values(model, node.inputs[2], spec.output_channels, 0)?)
        else {
            return Ok(None);
        };
        let input: TVec<usize> = sizes[1..].into();
        let padded = spec.computed_padding(&input);
        Ok(Some(Self {
            image: node.inputs[0],
            has_batch,
            n_in: spec.input_channels,
            n_filters: spec.output_channels,
            input,
            output: padded.iter().map(|p| p.convoluted).collect(),
            kernel: spec.kernel_shape.clone(),
            strides: spec.strides().iter().copied().collect(),
            dilations: spec.dilations().iter().copied().collect(),
            pads: padded.iter().map(|p| p.pad_before).collect(),
            weights,
            bias: Some(bias),
        }))
    }
}

/// The sizes of an image, channels first, if they are known.
fn sizes(fact: &TypedFact, has_batch: bool) -> Option<TVec<usize>> {
    fact.shape.iter().skip(usize::from(has_batch)).map(|d| d.to_usize().ok()).collect()
}

/// The one node that reads a value and nothing but that value's first slot, if the value is no output.
fn only_reader(model: &TypedModel, value: OutletId) -> Option<usize> {
    let readers = &model.node(value.node).outputs.get(value.slot)?.successors;
    let is_output = model.outputs.contains(&value);
    (readers.len() == 1 && !is_output).then(|| readers[0].node)
}

/// The second convolution's weights `[P, R]`, and its bias.
struct Coefficients {
    weights: Vec<f32>,
    bias: Option<Vec<f32>>,
}

/// The 1×1 convolution that alone reads a value: a `Conv`, or the product that tract makes of it.
fn coefficients(
    model: &TypedModel,
    value: OutletId,
    has_batch: bool,
) -> TractResult<Option<(OutletId, Coefficients)>> {
    let Some(id) = only_reader(model, value) else { return Ok(None) };
    let node = model.node(id);
    let channel_axis = usize::from(has_batch);
    let reads_channels = node.inputs.first() == Some(&value);
    if let Some(conv) = node.op_as::<Conv>() {
        let spec = &conv.pool_spec;
        let is_pointwise = reads_channels
            && conv.group == 1
            && conv.q_params.is_none()
            && conv.kernel_fmt == KernelFormat::OIHW
            && matches!(spec.data_format, DataFormat::NCHW | DataFormat::CHW)
            && spec.kernel_shape.iter().all(|&k| k == 1)
            && spec.strides().iter().all(|&s| s == 1)
            && model.outlet_fact(id.into())?.shape.iter().skip(channel_axis + 1).eq(model
                .outlet_fact(value)?
                .shape
                .iter()
                .skip(channel_axis + 1));
        if !is_pointwise {
            return Ok(None);
        }
        let weights = floats(model, node.inputs[1])?;
        let bias = channel_values(model, node.inputs[2], spec.output_channels, 0)?;
        return Ok(weights
            .zip(bias)
            .map(|(weights, bias)| (id.into(), Coefficients { weights, bias: Some(bias) })));
    }
    let weights = channel_product(model, id, value, has_batch)?;
    Ok(weights.map(|weights| (id.into(), Coefficients { weights, bias: None })))
}

/// The weights `[out, in]` of a product over the channels of `value`, all other axes its own.
fn channel_product(
    model: &TypedModel,
    id: usize,
    value: OutletId,
    has_batch: bool,
) -> TractResult<Option<Vec<f32>>> {
    let node = model.node(id);
    let channel_axis = usize::from(has_batch);
    let Some(product) = node.op_as::<EinSum>().filter(|p| p.q_params.is_none() && node.inputs.len() == 2)
    else {
        return Ok(None);
    };
    let slot = usize::from(node.inputs.first() != Some(&value));
    let from = model.outlet_fact(value)?;
    let to = model.outlet_fact(id.into())?;
    let Some(n_spatial) = from.rank().checked_sub(channel_axis + 1) else { return Ok(None) };
    let Some(out_channel) = to.rank().checked_sub(n_spatial + 1).filter(|&c| c <= 1) else { return Ok(None) };
    let is_channel_product = model.outlet_fact(node.inputs[1 - slot])?.rank() == 2
        && product.operating_dt == f32::datum_type()
        && from.datum_type == f32::datum_type()
        && product.axes.iter_all_axes().all(|axis| {
            // Positions in the value, in the weights, in the result.
            match (&axis.inputs[slot][..], &axis.inputs[1 - slot][..], &axis.outputs[0][..]) {
                (&[c], &[1], []) => c == channel_axis,
                ([], &[0], &[c]) => c == out_channel,
                // The batch may be dropped or added, if it is one.
                (&[a], [], []) => a < channel_axis && from.shape[a].is_one(),
                ([], [], &[b]) => b < out_channel && to.shape[b].is_one(),
                (&[a], [], &[b]) => {
                    a + out_channel == b + channel_axis || (a < channel_axis && b < out_channel)
                }
                _ => false,
            }
        });
    if !is_channel_product { Ok(None) } else { floats(model, node.inputs[1 - slot]) }
}

/// The values of a constant.
fn floats(model: &TypedModel, value: OutletId) -> TractResult<Option<Vec<f32>>> {
    let fact = model.outlet_fact(value)?;
    let Some(tensor) =
        fact.konst.as_ref().filter(|t| t.datum_type() == f32::datum_type() && t.is_plain_ram())
    else {
        return Ok(None);
    };
    Ok(Some(tensor.try_as_plain_ram()?.as_slice::<f32>()?.to_vec()))
}

/// A constant with one value per channel, or one for all.
fn channel_values(
    model: &TypedModel,
    value: OutletId,
    n_channels: usize,
    channel_axis: usize,
) -> TractResult<Option<Vec<f32>>> {
    let Some(values) = floats(model, value)? else { return Ok(None) };
    let shape = &model.outlet_fact(value)?.shape;
    let is_by_channel = values.len() == n_channels
        && shape.iter().enumerate().all(|(axis, dim)| axis == channel_axis || dim.is_one());
    Ok(match values[..] {
        [value] => Some(vec![value; n_channels]),
        _ if is_by_channel => Some(values),
        _ => None,
    })
}

/// A convolution with a few basis filters and the 1×1 convolution behind it, as one operator. Inputs: images
/// `[N, C, H, W]` (or without N, or without H), and a tensor of the output's shape to add, if there is one.
#[derive(Clone, Debug, PartialEq)]
pub struct BasisConv {
    pair: Arc<Pair>,
    /// Whether the input has a batch axis.
    has_batch: bool,
    /// Whether the output has one.
    gives_batch: bool,
    n_spatial: usize,
    add: bool,
    clamp: Option<(f32, f32)>,
}

// Weights that are not numbers make an operator that is not equal to itself; tract then merges no two of them.
impl Eq for BasisConv {}

impl BasisConv {
    fn output_shape<D: DimLike>(&self, input: &[D]) -> TractResult<TVec<D>> {
        let s = self.pair.shape();
        let mut shape: TVec<D> = SmallVec::new();
        if self.gives_batch {
            shape.push(if self.has_batch { input.first().context("no batch")?.clone() } else { D::one() });
        }
        shape.push(s.n_out.into());
        shape.extend(s.output[2 - self.n_spatial..].iter().map(|&d| D::from(d)));
        Ok(shape)
    }
}

impl Op for BasisConv {
    fn name(&self) -> StaticName {
        "BasisConv".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let s = self.pair.shape();
        Ok(vec![format!(
            "{}→{}→{} channels, kernel {:?}, strides {:?}, {:?}→{:?}{}{}",
            s.n_in,
            s.rank,
            s.n_out,
            s.kernel,
            s.strides,
            s.input,
            s.output,
            if self.add { ", added to" } else { "" },
            self.clamp.map_or_else(String::new, |(low, high)| format!(", within {low}…{high}")),
        )])
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    op_as_typed_op!();
}

impl EvalOp for BasisConv {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let pair = &self.pair;
        let x = inputs.first().context("no input")?;
        let s = pair.shape();
        let n_images = if self.has_batch { x.shape().first().copied().unwrap_or(0) } else { 1 };
        let values = x.try_as_plain_ram()?.as_slice::<f32>()?;
        ensure!(values.len() == n_images * s.n_inputs(), "an input of {:?} for {s:?}", x.shape());
        // SAFETY: the pair writes every value; zeros first would cost a pass through memory.
        #[allow(unsafe_code, reason = "an output that is written whole")]
        let mut output = unsafe { Tensor::uninitialized::<f32>(&self.output_shape(x.shape())?)? };
        let add = inputs.get(1).map(|t| t.try_as_plain_ram()).transpose()?;
        let add = add.as_ref().map(|t| t.as_slice::<f32>()).transpose()?;
        let epilogue = PairEpilogue { add, clamp: self.clamp };
        let mut view = output.try_as_plain_ram_mut()?;
        let y = view.as_slice_mut::<f32>()?;
        ensure!(add.is_none_or(|a| a.len() == y.len()), "a tensor to add of another shape");
        let enough = n_images * s.n_macs() / MACS_PER_THREAD;
        match current_tract_executor() {
            Executor::MultiThread(pool) if enough > 1 => {
                let n_threads = pool.current_num_threads().min(enough);
                pool.install(|| pair.forward(n_images, values, y, &epilogue, n_threads));
            }
            Executor::RayonGlobal if enough > 1 => {
                pair.forward(n_images, values, y, &epilogue, rayon::current_num_threads().min(enough));
            }
            _ => pair.forward(n_images, values, y, &epilogue, 1),
        }
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for BasisConv {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 1 + usize::from(self.add));
        Ok(tvec!(f32::fact(self.output_shape(&inputs[0].shape)?)))
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        let n_images = if self.has_batch { inputs[0].shape[0].clone() } else { 1.to_dim() };
        Ok(tvec!((Cost::FMA(f32::datum_type()), n_images * self.pair.shape().n_macs())))
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    #[test]
    fn tract_finds_the_transform_by_its_name() {
        assert!(matches!(tract_core::transform::get_transform("fuse-basis-conv"), Ok(Some(_))));
    }
}
