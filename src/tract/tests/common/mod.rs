//! Models of one layer, and how two models are compared.

#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses its part; a test may fail")]

use basisopt_ir::{DType, Generator, Tensor as IrTensor};
use tract_core::internal::*;
use tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};
use tract_core::ops::nn::DataFormat;

/// Numbers of a normal distribution.
pub fn randn(shape: &[usize], seed: u64) -> Tensor {
    generated(shape, Generator::Randn { seed })
}

/// A tensor whose rows, flattened, are a matrix of this rank.
pub fn low_rank(shape: &[usize], rank: usize, seed: u64) -> Tensor {
    generated(shape, Generator::LowRank { rank, seed })
}

fn generated(shape: &[usize], generator: Generator) -> Tensor {
    let values = IrTensor::generated(DType::F32, shape.to_vec(), generator).unwrap().to_f32s().unwrap();
    tensor1(&values).into_shape(shape).unwrap()
}

/// A model of one convolution, to be varied.
#[derive(Clone)]
pub struct Single {
    /// Of the input, in its format.
    pub input: TVec<TDim>,
    pub format: DataFormat,
    /// `[out, in / groups, kernel…]`.
    pub kernel: Tensor,
    pub kernel_fmt: KernelFormat,
    pub group: usize,
    pub strides: TVec<usize>,
    pub dilations: TVec<usize>,
    pub padding: PaddingSpec,
    pub bias: Tensor,
}

impl Single {
    /// Six channels to sixteen, 3×3, of this rank, on an image of 9×11.
    pub fn of_rank(rank: usize) -> Self {
        Self {
            input: dims(&[1, 6, 9, 11]),
            format: DataFormat::NCHW,
            kernel: low_rank(&[16, 6, 3, 3], rank, 1),
            kernel_fmt: KernelFormat::OIHW,
            group: 1,
            strides: tvec![1, 1],
            dilations: tvec![1, 1],
            padding: PaddingSpec::Explicit(tvec![1, 1], tvec![1, 1]),
            bias: randn(&[16], 2),
        }
    }

    /// `[out, in / groups, kernel…]` in the format of the model.
    fn stored_kernel(&self) -> Tensor {
        let shape = self.kernel.shape().to_vec();
        let (groups, n_spatial) = (self.group, shape.len() - 2);
        let split: Vec<usize> = [&[groups, shape[0] / groups], &shape[1..]].concat();
        let [g, o, i] = [0, 1, 2];
        let spatial: Vec<usize> = (3..3 + n_spatial).collect();
        let order: Vec<usize> = match self.kernel_fmt {
            KernelFormat::OIHW => return self.kernel.clone(),
            // The inputs of all groups, one after the other.
            KernelFormat::HWIO => [&spatial[..], &[g, i, o]].concat(),
            KernelFormat::OHWI => [&[o][..], &spatial, &[g, i]].concat(),
        };
        let kernel = self.kernel.clone().into_shape(&split).unwrap().permute_axes(&order).unwrap();
        let (outs, ins) = (shape[0] / groups, shape[1] * groups);
        let stored = match self.kernel_fmt {
            KernelFormat::HWIO => [&shape[2..], &[ins, outs]].concat(),
            _ => [&[outs][..], &shape[2..], &[ins]].concat(),
        };
        kernel.into_shape(&stored).unwrap()
    }

    pub fn model(&self) -> TypedModel {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact(&self.input)).unwrap();
        let y = self.wire(&mut model, "conv", x);
        model.select_output_outlets(&[y]).unwrap();
        model
    }

    pub fn wire(&self, model: &mut TypedModel, name: &str, x: OutletId) -> OutletId {
        let shape = self.kernel.shape();
        let pool_spec = PoolSpec {
            data_format: self.format,
            kernel_shape: shape[2..].into(),
            padding: self.padding.clone(),
            dilations: Some(self.dilations.clone()),
            strides: Some(self.strides.clone()),
            input_channels: shape[1] * self.group,
            output_channels: shape[0],
        };
        let conv = Conv { pool_spec, kernel_fmt: self.kernel_fmt, group: self.group, q_params: None };
        let kernel = model.add_const(format!("{name}.kernel"), self.stored_kernel()).unwrap();
        let bias = model.add_const(format!("{name}.bias"), self.bias.clone()).unwrap();
        model.wire_node(name, conv, &[x, kernel, bias]).unwrap()[0]
    }
}

pub fn dims(shape: &[usize]) -> TVec<TDim> {
    shape.iter().map(|d| d.to_dim()).collect()
}

/// What a model gives for normal inputs, as it is, with so many images where that is left open.
pub fn run(model: &TypedModel, batch: usize, optimize: bool) -> Vec<Tensor> {
    let mut model = model.clone();
    model.check_consistency().unwrap();
    if optimize {
        model = model.into_decluttered().unwrap().into_optimized().unwrap();
    }
    let mut inputs = tvec![];
    for (i, outlet) in model.inputs.iter().enumerate() {
        let shape = &model.outlet_fact(*outlet).unwrap().shape;
        let shape: Vec<usize> =
            shape.iter().map(|d| d.as_i64().map_or(batch, |d| usize::try_from(d).unwrap())).collect();
        inputs.push(randn(&shape, 100 + i as u64).into_tvalue());
    }
    let outputs = model.into_runnable().unwrap().run(inputs).unwrap();
    outputs.into_iter().map(TValue::into_tensor).collect()
}

/// The largest difference, by the largest value.
pub fn difference(a: &[Tensor], b: &[Tensor]) -> f32 {
    assert_eq!(a.len(), b.len());
    let of = |(a, b): (&Tensor, &Tensor)| {
        assert_eq!(a.shape(), b.shape());
        let (a, b) = (a.try_as_plain_ram().unwrap(), b.try_as_plain_ram().unwrap());
        let (a, b) = (a.as_slice::<f32>().unwrap(), b.as_slice::<f32>().unwrap());
        let scale = a.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(scale > 0.0, "an output of zeros says nothing");
        // Maxima pass over what is not a number.
        assert!(a.iter().chain(b).all(|v| v.is_finite()), "an output is not finite");
        a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / scale
    };
    a.iter().zip(b).map(of).fold(0.0, f32::max)
}

/// The names of a model's convolutions, in the order in which they run.
pub fn convolutions(model: &TypedModel) -> Vec<String> {
    let order = model.eval_order().unwrap();
    let nodes = order.into_iter().map(|id| model.node(id));
    nodes.filter(|n| n.op_is::<Conv>()).map(|n| n.name.clone()).collect()
}
