//! An engine of one's own behind the passes: it runs the network for the numerical check, and calibration reads what layers
//! give. `basisopt-passes` and `basisopt-ir` are enough for this, and compile neither tract nor clap.
//!
//! ```text
//! cargo run --release --no-default-features --example custom_executor
//! ```

#![allow(clippy::print_stdout, reason = "an example")]

use basisopt::ir::op::{AutoPad, Conv};
use basisopt::ir::{DType, Graph, Op, Tensor, ValueId};
use basisopt::{
    Calibration, Executor, ExecutorError, Inputs, Manager, NoObserver, Pipeline, Program, Registry, Samples,
};
use std::collections::BTreeMap;

/// The engine: plain loops over two operators. Yours is an accelerator's, a simulator's, another library's.
#[derive(Debug)]
struct Loops;

/// A graph that it has made ready.
#[derive(Debug)]
struct Loaded(Graph);

impl Executor for Loops {
    fn example_inputs(&mut self, graph: &Graph, seed: u64) -> Result<Vec<Tensor>, ExecutorError> {
        let shape = |v: ValueId| graph.value(v).ty.static_shape().ok_or_else(|| fail("an open size"));
        let input = |&id: &_| image(shape(ValueId::of(id))?, seed);
        graph.inputs().iter().map(input).collect()
    }

    fn run(&mut self, graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>, ExecutorError> {
        Loaded(graph.clone()).run(inputs)
    }

    fn load(&mut self, graph: &Graph) -> Result<Box<dyn Program>, ExecutorError> {
        Ok(Box::new(Loaded(graph.clone())))
    }
}

impl Program for Loaded {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, ExecutorError> {
        let graph = &self.0;
        let mut values: BTreeMap<ValueId, Tensor> = BTreeMap::new();
        for (&id, tensor) in graph.inputs().iter().zip(inputs) {
            values.insert(ValueId::of(id), tensor.clone());
        }
        for id in graph.topological() {
            let read = |slot| {
                let value = graph.node_input(id, slot)?;
                graph.constant_value(value).or_else(|| values.get(&value).cloned())
            };
            let result = match &graph.node(id).op {
                Op::Input | Op::Constant(_) => continue,
                Op::Relu(_) => {
                    let x = read(0).ok_or_else(|| fail("no input"))?;
                    let y: Vec<f32> = floats(&x)?.iter().map(|v| v.max(0.0)).collect();
                    Tensor::from_f32s(x.shape().to_vec(), &y)
                }
                // What it cannot do it must refuse: a check against another network than the one that is written says nothing.
                Op::Conv(c) if c.group <= 1 && c.dilations.iter().all(|&d| d == 1) && !pads_itself(c) => {
                    let (x, w) = read(0).zip(read(1)).ok_or_else(|| fail("no input"))?;
                    let pad = the_same(&c.pads, 0)?;
                    let stride = the_same(&c.strides, 1)?;
                    // Passes may give a layer a bias that it had not.
                    let bias = read(2).map(|b| floats(&b)).transpose()?;
                    convolve(&x, &w, bias.as_deref(), pad, stride)
                }
                op => return Err(fail(&format!("this engine has no {}", op.op_type()))),
            };
            values.insert(ValueId::of(id), result.map_err(|e| fail(&e.to_string()))?);
        }
        let output = |v: &ValueId| values.get(v).cloned().ok_or_else(|| fail("an output that nothing gives"));
        graph.outputs().iter().map(output).collect()
    }
}

/// Whether padding follows from sizes.
fn pads_itself(conv: &Conv) -> bool {
    !matches!(conv.auto_pad, AutoPad::NotSet | AutoPad::Valid)
}

/// The one value of an attribute that has one for every side or axis.
fn the_same(values: &[i64], otherwise: usize) -> Result<usize, ExecutorError> {
    let Some(&first) = values.first() else { return Ok(otherwise) };
    let first = usize::try_from(first).ok().filter(|_| values.iter().all(|&v| v == first));
    first.ok_or_else(|| fail("this engine has one padding and one stride"))
}

/// `x [N,C,H,W]`, `w [P,C,K,K]`, `bias [P]`, the same padding and stride on all sides.
fn convolve(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&[f32]>,
    pad: usize,
    stride: usize,
) -> Result<Tensor, basisopt::ir::tensor::TensorError> {
    let (&[n, c, height, width], &[p, _, k, _]) = (x.shape(), w.shape()) else {
        return Tensor::from_f32s(vec![0], &[]);
    };
    let (input, filters) = (x.to_f32s()?, w.to_f32s()?);
    let (h, v) = ((height + 2 * pad - k) / stride + 1, (width + 2 * pad - k) / stride + 1);
    let mut out = Vec::with_capacity(n * p * h * v);
    for at in 0..n * p * h * v {
        let (image, filter, row, column) = (at / (p * h * v), at / (h * v) % p, at / v % h, at % v);
        let mut sum = bias.map_or(0.0, |b| b[filter]);
        for tap in 0..c * k * k {
            let (channel, dy, dx) = (tap / (k * k), tap / k % k, tap % k);
            let (y, x) = (row * stride + dy, column * stride + dx);
            if (pad..height + pad).contains(&y) && (pad..width + pad).contains(&x) {
                let pixel = ((image * c + channel) * height + y - pad) * width + x - pad;
                sum += input[pixel] * filters[filter * c * k * k + tap];
            }
        }
        out.push(sum);
    }
    Tensor::from_f32s(vec![n, p, h, v], &out)
}

/// A source of one's own to calibrate on: images that are made when they are asked for.
#[derive(Debug)]
struct Waves {
    shape: Vec<usize>,
}

impl Samples for Waves {
    fn n_batches(&self) -> usize {
        64
    }
    fn batch_size(&self) -> usize {
        1
    }
    fn batches<'a>(&'a self, first: usize) -> Box<dyn Iterator<Item = Result<Inputs, ExecutorError>> + 'a> {
        Box::new((first..self.n_batches()).map(|i| Ok(vec![image(self.shape.clone(), i as u64)?])))
    }
    fn describe(&self) -> String {
        "64 images of waves".to_owned()
    }
}

/// Waves of a direction and a length that depend on the seed.
fn image(shape: Vec<usize>, seed: u64) -> Result<Tensor, ExecutorError> {
    let (a, b) = ((seed % 8) as f32 * 0.4 + 0.2, (seed / 8) as f32 * 0.3 + 0.1);
    let width = shape.last().copied().unwrap_or(1);
    let n: usize = shape.iter().product();
    let pixels: Vec<f32> = (0..n).map(|i| (a * (i / width) as f32 + b * (i % width) as f32).sin()).collect();
    Tensor::from_f32s(shape, &pixels).map_err(|e| fail(&e.to_string()))
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>, ExecutorError> {
    match tensor.dtype() {
        DType::F32 => tensor.to_f32s().map_err(|e| fail(&e.to_string())),
        other => Err(fail(&format!("this engine computes in f32, not {other}"))),
    }
}

fn fail(reason: &str) -> ExecutorError {
    ExecutorError(reason.to_owned())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut graph: Graph = "graph @g(%x: f32[1,3,12,12]) -> (%y) {\n  \
                            %w1 = f32[16,3,3,3] randn(seed=1)\n  \
                            %a = Conv<pads=[1,1,1,1]>(%x, %w1)\n  \
                            %r = Relu(%a)\n  \
                            %w2 = f32[24,16,3,3] randn(seed=2)\n  \
                            %y = Conv<pads=[1,1,1,1]>(%r, %w2)\n}\n"
        .parse()?;
    let samples = Waves { shape: vec![1, 3, 12, 12] };
    let pipeline = Pipeline::parse("factorize-conv:energy=0.95:method=sequential", &Registry::builtin())?;
    let mut engine = Loops;
    let mut manager = Manager {
        executor: Some(&mut engine),
        calibration: Some(Calibration { samples: &samples, memory: 64 << 20 }),
        ..Manager::default()
    };
    let report = manager.run(&mut graph, &pipeline, &mut NoObserver)?;
    for remark in report.remarks() {
        println!("{remark}");
    }
    for pass in &report.passes {
        println!("{}: outputs {:?}", pass.item, pass.check);
    }
    Ok(())
}
