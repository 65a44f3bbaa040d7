//! `fold-batch-norm`: multiplies batch normalisation into the weights beside it.
//!
//! With its statistics stored, a batch normalisation is an affine map of every channel, and so are
//! the last step of the convolution before it and the first of the one after it. Only one of the
//! two needs to be done.
//!
//! ## Rewrite
//!
//! ```text
//! %c = Conv(%x, %w)
//! %y = BatchNormalization(%c, %scale, %bias, %mean, %var)
//! ```
//! becomes
//! ```text
//! %w.folded = f32[16,3,3,3] norm 20.8
//! %c.bias = f32[16] norm 4
//! %y = Conv(%x, %w.folded, %c.bias)
//! ```
//!
//! The neighbour is a `Conv` (grouped, depthwise, of any rank), a `ConvTranspose`, a `Gemm` or a
//! `MatMul` before the normalisation; failing that, a `Conv` after it. Behind a `MatMul`, which has
//! no bias, an `Add` is left of the normalisation. The neighbour stays the node that it was, with its
//! name, attributes and notes.
//!
//! ## Legality
//!
//! - Statistics of training are not stored: `training_mode` (`training-stays.bir`), outputs for the
//!   statistics (`training-outputs-stay.bir`), before operator set 7 no `is_test`
//!   (`training-opset-6-stays.bir`).
//! - Scale, bias, mean and variance must be constants that no caller can override
//!   (`computed-scale-stays.bir`), one of each per channel: `spatial=0` has more
//!   (`per-activation-stays.bir`).
//! - Variance and epsilon must have a positive sum (`bad-variance-stays.bir`).
//! - Nobody else may read the value between the two (`intermediate-used.bir`, `output-used.bir`).
//! - Weight and bias must be constants (`computed-weight-stays.bir`) that no caller can override
//!   (`overridable-weight.bir`); a weight with other readers would be needed twice
//!   (`shared-weight-stays.bir`).
//! - There must be such a neighbour (`no-neighbour.bir`).
//! - The convolution after the normalisation must not pad: the zeros of the padding would be shifted
//!   (`padding-stays.bir`). A normalisation that only scales may go into a padded one.
//! - A `Gemm` must add its bias (`beta`), and the same one to every row (`gemm-bias-stays.bir`).
//! - The columns of a `MatMul` are channels only where its result is a matrix
//!   (`matmul-of-rank-3-stays.bir`).
//! - The new weights must fit their element type (`overflow-stays.bir`).
//!
//! ## Numerics
//!
//! With s = γ/√(σ² + ε) and t = β - μ·s, per channel, in `f64`, rounded once to the type of the weight:
//!
//! - before: W' = s·W, b' = s·b + t;
//! - after: W' = W·s, b' = b + Σ W·t, the sum running over input channels and kernel.
//!
//! With u the unit roundoff of the type (2⁻²⁴ for `f32`), every new weight is within u of the exact
//! one, relative, and so is every new bias: the output moves by no more than u·(Σ|W'·x| + |b'|), less
//! than what the engine's own sum over n terms may be off, n·u·Σ|W'·x|. It is *more* accurate where
//! β and μ·s cancel, which the engine would have computed in the type of the weight.
//!
//! Results below the smallest normal number become 0, and the remark counts them; `f16` keeps its
//! subnormal numbers.
//!
//! Engines, tract among them, fold batch normalisation themselves when they optimise a network:
//! comparing before and after in such an engine shows rounding only, so the check of the manager loads
//! networks unoptimised. The formulas are tested against convolutions written down from their
//! definition as well (`fold_batch_norm/channels.rs`).
//!
//! ## Options
//!
//! None.
//!
//! ## Pipeline
//!
//! Run after `fold-constants` and `eliminate-identity`, and before the factorisations: what they
//! decompose should be what is computed.

mod channels;
mod parameters;

use crate::constants::constant;
use crate::driver::options::Options;
use crate::driver::pass::{Fidelity, Outcome, Pass, PassContext, PassError, PassInfo};
use crate::driver::remark::Refusal;
use crate::driver::rule::{Proposal, Rule, apply_everywhere};
use basisopt_ir::op::{AutoPad, BatchNormalization, Conv};
use basisopt_ir::{Graph, NodeId, Op, Operand, Rewrite, Tensor, Use, ValueId, op};
use channels::{Affine, Channels};
use parameters::{conv_bias, gemm_bias, read};

/// The pass `fold-batch-norm`: `docs/passes.md` shows what it does, `basisopt passes fold-batch-norm` has its options.
pub static INFO: PassInfo = PassInfo {
    name: "fold-batch-norm",
    summary: "multiply batch normalisation into the weights beside it",
    fidelity: Fidelity::Exact,
    options: &[],
    build: |_: &Options| Ok(Box::new(FoldBatchNorm)),
};

#[derive(Debug)]
struct FoldBatchNorm;

impl Pass for FoldBatchNorm {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Outcome, PassError> {
        apply_everywhere(self, graph, cx)
    }
}

impl Rule for FoldBatchNorm {
    fn rewrite(&self, graph: &Graph, at: NodeId) -> Result<Option<Proposal>, Refusal> {
        let Op::BatchNormalization(op) = &graph.node(at).op else { return Ok(None) };
        // What nobody reads is the business of `dead-code`.
        if graph.n_readers(ValueId::of(at)) == 0 {
            return Ok(None);
        }
        let affine = normalisation(graph, at, op)?;
        let before = into_producer(graph, at, &affine);
        if let Ok(Some(_)) = before {
            return before;
        }
        let after = into_reader(graph, at, &affine);
        match (before, after) {
            (_, Ok(Some(proposal))) => Ok(Some(proposal)),
            // The producer is where people expect it to go, so its reason comes first.
            (Err(refusal), _) | (_, Err(refusal)) => Err(refusal),
            (Ok(_), Ok(None)) => {
                Err(Refusal::new("no-neighbour", "there is no convolution beside it to fold it into"))
            }
        }
    }
}

/// What the node does to every channel.
fn normalisation(graph: &Graph, at: NodeId, op: &BatchNormalization) -> Result<Affine, Refusal> {
    let training = |message: &str| Err(Refusal::new("training-mode", message));
    if op.training_mode != 0 {
        return training("training_mode is set: it normalises by the statistics of the batch");
    }
    if graph.opset < 7 && op.is_test.unwrap_or(0) == 0 {
        return training("is_test is not set: it normalises by the statistics of the batch");
    }
    // From 7 to 13 it trains if further outputs are there, whether anybody reads them or not.
    if graph.node(at).outputs.iter().skip(1).any(|v| !v.name.is_empty()) {
        return training("it has outputs for the statistics of the batch, and so normalises by them");
    }
    if op.spatial == 0 {
        return Err(Refusal::new("per-activation", "spatial=0: it has a mean for every place of a channel"));
    }
    let mut parameters: [Vec<f64>; 4] = Default::default();
    for (slot, (values, what)) in parameters.iter_mut().zip(["scale", "bias", "mean", "variance"]).enumerate()
    {
        let (_, tensor) = constant(graph, at, slot + 1, what)?;
        *values = read(&tensor, what)?;
    }
    let [gamma, beta, mean, variance] = &parameters;
    if [beta, mean, variance].iter().any(|p| p.len() != gamma.len()) {
        return Err(Refusal::new("malformed", "scale, bias, mean and variance differ in length"));
    }
    let epsilon = f64::from(op.epsilon);
    Affine::normalisation([gamma, beta, mean, variance], epsilon).map_err(|channel| {
        let message =
            format!("channel {channel} has a variance of {} and epsilon is {epsilon:e}", variance[channel]);
        Refusal::new("bad-variance", message).with("channel", channel as f64)
    })
}

/// Folds the normalisation into what computes its input.
fn into_producer(graph: &Graph, at: NodeId, affine: &Affine) -> Result<Option<Proposal>, Refusal> {
    let Some(x) = graph.node_input(at, 0) else { return Ok(None) };
    let producer = graph.node(x.node);
    let channels = match &producer.op {
        Op::Conv(_) => Channels::Rows,
        Op::ConvTranspose(op) => Channels::Columns { n_groups: usize::try_from(op.group).unwrap_or(0) },
        Op::Gemm(op) if op.transB != 0 => Channels::Rows,
        Op::Gemm(_) | Op::MatMul(_) => Channels::Columns { n_groups: 1 },
        _ => return Ok(None),
    };
    if graph.n_readers(x) != 1 {
        let message = format!("{}, which it normalises, is read elsewhere", graph.value(x).name);
        return Err(Refusal::new("intermediate-used", message));
    }
    if matches!(producer.op, Op::MatMul(_)) && graph.value(x).ty.shape.as_ref().is_none_or(|s| s.len() != 2) {
        return Err(Refusal::new("not-columns", "its channels are not the columns of the product"));
    }
    let mut fold = Fold::new(graph, x.node, channels, affine)?;
    channels::scale(&mut fold.values, fold.weight.shape(), channels, &affine.scale);
    fold.set_weight()?;

    let (bias, unit) = match &producer.op {
        Op::Gemm(op) => gemm_bias(graph, x.node, op, affine.n_channels())?,
        Op::MatMul(_) => (None, 1.0),
        _ => (conv_bias(graph, x.node, affine.n_channels())?, 1.0),
    };
    // The neighbour multiplies its bias by `unit`, so the shift is divided by it.
    let shift = affine.shift.iter().map(|t| t / unit);
    let shape = bias.as_ref().map_or_else(|| vec![affine.n_channels()], |b| b.shape.clone());
    let values = match &bias {
        Some(old) => old.values.iter().zip(&affine.scale).zip(shift).map(|((b, s), t)| s * b + t).collect(),
        None => shift.collect::<Vec<f64>>(),
    };
    let needed = bias.is_some() || affine.shifts();
    let old_name = bias.map(|b| b.name);
    if matches!(producer.op, Op::MatMul(_)) && needed {
        let bias = fold.bias(old_name, shape, values)?;
        let name = format!("{}.shift", producer.label());
        // Before operator set 7 nothing was broadcast unless asked for.
        let broadcast = (graph.opset < 7).then_some(1);
        let add = op::Add { broadcast, ..op::Add::default() };
        let sum = fold.rewrite.node(name, add, &[x.into(), bias]);
        fold.rewrite.replace(ValueId::of(at), sum);
    } else {
        if needed {
            let bias = fold.bias(old_name, shape, values)?;
            fold.rewrite.set_input(Use { node: x.node, slot: 2 }, bias);
        }
        fold.rewrite.replace(ValueId::of(at), x);
    }
    Ok(Some(fold.proposal("before")))
}

/// Folds the normalisation into the convolution that reads its output.
fn into_reader(graph: &Graph, at: NodeId, affine: &Affine) -> Result<Option<Proposal>, Refusal> {
    let (Some(x), y) = (graph.node_input(at, 0), ValueId::of(at)) else { return Ok(None) };
    let readers = graph.uses(y);
    let conv = readers.iter().find_map(|at| match &graph.node(at.node).op {
        Op::Conv(op) if at.slot == 0 => Some((at.node, op)),
        _ => None,
    });
    let Some((node, op)) = conv else { return Ok(None) };
    if graph.n_readers(y) != 1 {
        return Err(Refusal::new("intermediate-used", "not only the convolution after it reads its output"));
    }
    let channels = Channels::Columns { n_groups: usize::try_from(op.group).unwrap_or(0) };
    let mut fold = Fold::new(graph, node, channels, affine)?;
    if pads(op, fold.weight.shape()) && affine.shifts() {
        let message = "the convolution after it pads with zeros, which it would shift";
        return Err(Refusal::new("padding", message));
    }
    let n_outputs = fold.weight.shape().first().copied().unwrap_or(0);
    let bias = conv_bias(graph, node, n_outputs)?;
    let response = channels::respond(&mut fold.values, fold.weight.shape(), channels, &affine.shift);
    channels::scale(&mut fold.values, fold.weight.shape(), channels, &affine.scale);
    fold.set_weight()?;
    if affine.shifts() {
        let (values, old_name) = match bias {
            Some(old) => (old.values.iter().zip(response).map(|(b, r)| b + r).collect(), Some(old.name)),
            None => (response, None),
        };
        let bias = fold.bias(old_name, vec![n_outputs], values)?;
        fold.rewrite.set_input(Use { node, slot: 2 }, bias);
    }
    fold.rewrite.set_input(Use { node, slot: 0 }, x);
    fold.rewrite.remove(at);
    Ok(Some(fold.proposal("after")))
}

/// A fold in the making: the neighbour and its weight.
struct Fold<'a> {
    graph: &'a Graph,
    neighbour: NodeId,
    weight_id: ValueId,
    weight: Tensor,
    values: Vec<f64>,
    n_flushed: usize,
    rewrite: Rewrite,
}

impl<'a> Fold<'a> {
    fn new(
        graph: &'a Graph,
        neighbour: NodeId,
        channels: Channels,
        affine: &Affine,
    ) -> Result<Self, Refusal> {
        let (weight_id, weight) = constant(graph, neighbour, 1, "weight")?;
        if graph.n_readers(weight_id) != 1 {
            let message = format!("its weight {} is read elsewhere", graph.value(weight_id).name);
            return Err(Refusal::new("shared-weight", message));
        }
        let (n, found) = (affine.n_channels(), channels.count(weight.shape()));
        if found != Some(n) || weight.is_empty() {
            let message = format!("{n} channels meet a weight of shape {:?}", weight.shape());
            return Err(Refusal::new("malformed", message));
        }
        let values = read(&weight, "weight")?;
        // What is new stands where the neighbour stood.
        let rewrite = Rewrite::at(neighbour);
        Ok(Self { graph, neighbour, weight_id, weight, values, n_flushed: 0, rewrite })
    }

    fn set_weight(&mut self) -> Result<(), Refusal> {
        let name = format!("{}.folded", self.graph.value(self.weight_id).name);
        let values = std::mem::take(&mut self.values);
        let weight = self.constant(name, self.weight.shape().to_vec(), values)?;
        self.rewrite.set_input(Use { node: self.neighbour, slot: 1 }, weight);
        Ok(())
    }

    fn bias(&mut self, old: Option<String>, shape: Vec<usize>, values: Vec<f64>) -> Result<Operand, Refusal> {
        let name = match old {
            Some(old) => format!("{old}.folded"),
            None => format!("{}.bias", self.graph.node(self.neighbour).label()),
        };
        self.constant(name, shape, values)
    }

    fn constant(&mut self, name: String, shape: Vec<usize>, values: Vec<f64>) -> Result<Operand, Refusal> {
        let dtype = self.weight.dtype();
        match channels::round(dtype, shape, values) {
            Ok((Some(tensor), n_flushed)) => {
                self.n_flushed += n_flushed;
                Ok(self.rewrite.constant(name, tensor))
            }
            Ok((None, _)) => {
                Err(Refusal::new("overflow", format!("a number in {name} would not fit {dtype}")))
            }
            Err(error) => Err(Refusal::new("unreadable", error.to_string())),
        }
    }

    fn proposal(self, place: &str) -> Proposal {
        let node = self.graph.node(self.neighbour);
        let mut message = format!("folded into the {} {} {place} it", node.op.op_type(), node.label());
        if self.n_flushed > 0 {
            message +=
                &format!("; {} numbers too small for {} became 0", self.n_flushed, self.weight.dtype());
        }
        Proposal { rewrite: self.rewrite, code: "folded", message }
    }
}

/// Whether a convolution looks beyond the border of its input.
fn pads(op: &Conv, weight: &[usize]) -> bool {
    match op.auto_pad {
        AutoPad::NotSet => op.pads.iter().any(|&p| p != 0),
        AutoPad::Valid => false,
        // A window of one place covers the input without padding.
        AutoPad::SameUpper | AutoPad::SameLower => weight.iter().skip(2).any(|&k| k != 1),
    }
}
