//! Normalisations and softmax.

use super::builder::{Builder, dims};
use super::{At, Refused, Shares};
use basisopt_ir::ValueId;
use basisopt_ir::op::{self, Op};

pub(super) fn rule(b: &mut Builder, at: &At<'_>) -> Option<Shares> {
    Some(match at.op {
        Op::BatchNormalization(op) if op.training_mode == 1 => training(b, at, op),
        Op::BatchNormalization(op) => inference(b, at, op),
        Op::InstanceNormalization(op) => instance(b, at, op),
        Op::LRN(op) => local_response(b, at, op).map(|v| vec![(0, v)]),
        Op::Softmax(op) => softmax(b, at, op.axis, false).map(|v| vec![(0, v)]),
        Op::LogSoftmax(op) => softmax(b, at, op.axis, true).map(|v| vec![(0, v)]),
        _ => return None,
    })
}

fn local_response(b: &mut Builder, at: &At<'_>, op: &op::LRN) -> Result<ValueId, Refused> {
    let grad = op::LRNGrad { alpha: op.alpha, beta: op.beta, bias: op.bias, size: op.size };
    Ok(b.node(grad, &[at.dy()?, at.input(0)?]))
}

fn training(b: &mut Builder, at: &At<'_>, op: &op::BatchNormalization) -> Shares {
    let inputs = [at.dy()?, at.input(0)?, at.input(1)?];
    let node = b.node_with(op::BatchNormalizationGrad { epsilon: op.epsilon }, &inputs, 3);
    Ok((0..3).map(|i| (i, ValueId { node, port: i as u32 })).collect())
}

/// A vector with one element per channel, to stand against images.
fn by_channel(b: &mut Builder, v: ValueId, rank: usize) -> ValueId {
    let mut shape = vec![1; rank.max(2)];
    if let Some(c) = shape.get_mut(1) {
        *c = -1;
    }
    let shape = b.ints(&shape);
    b.node(op::Reshape::default(), &[v, shape])
}

/// 1/√(var + ε), by channel.
fn inverse(b: &mut Builder, var: ValueId, epsilon: f32) -> ValueId {
    let epsilon = b.number(f64::from(epsilon), var);
    let sum = b.add(var, epsilon);
    let root = b.node(op::Sqrt {}, &[sum]);
    b.node(op::Reciprocal {}, &[root])
}

/// Mean and variance are given: x̄ = ȳ·scale/σ, scale̅ = Σ ȳ·(x − mean)/σ, bias̅ = Σ ȳ.
fn inference(b: &mut Builder, at: &At<'_>, op: &op::BatchNormalization) -> Shares {
    let (dy, x) = (at.dy()?, at.input(0)?);
    let (scale, mean, var) = (at.input(1)?, at.input(3)?, at.input(4)?);
    if at.wants(3) || at.wants(4) {
        return Err(Refused::NoRule(" for its mean and variance"));
    }
    let rank = dims(&b.graph, x)?.len();
    let axes: Vec<i64> = (0..rank as i64).filter(|&a| a != 1).collect();
    let inverse = inverse(b, var, op.epsilon);
    let mut shares = Vec::new();
    if at.wants(2) {
        shares.push((2, b.sum(dy, &axes, false)));
    }
    if at.wants(1) {
        let (mean, inverse) = (by_channel(b, mean, rank), by_channel(b, inverse, rank));
        let centred = b.sub(x, mean);
        let hat = b.mul(centred, inverse);
        let product = b.mul(dy, hat);
        shares.push((1, b.sum(product, &axes, false)));
    }
    if at.wants(0) {
        let factor = b.mul(scale, inverse);
        let factor = by_channel(b, factor, rank);
        shares.push((0, b.mul(dy, factor)));
    }
    Ok(shares)
}

/// As batch normalisation in training form, each image by itself:
/// x̄ = scale/σ · (ȳ − mean(ȳ) − x̂·mean(ȳ·x̂)).
fn instance(b: &mut Builder, at: &At<'_>, op: &op::InstanceNormalization) -> Shares {
    let (dy, x, scale) = (at.dy()?, at.input(0)?, at.input(1)?);
    let rank = dims(&b.graph, x)?.len();
    let spatial: Vec<i64> = (2..rank as i64).collect();
    let all: Vec<i64> = (0..rank as i64).filter(|&a| a != 1).collect();
    let mean = b.mean(x, &spatial);
    let centred = b.sub(x, mean);
    let square = b.mul(centred, centred);
    let var = b.mean(square, &spatial);
    let inverse = inverse(b, var, op.epsilon);
    let hat = b.mul(centred, inverse);
    let along = b.mul(dy, hat);
    let mut shares = Vec::new();
    if at.wants(2) {
        shares.push((2, b.sum(dy, &all, false)));
    }
    if at.wants(1) {
        shares.push((1, b.sum(along, &all, false)));
    }
    if at.wants(0) {
        let (plain, along) = (b.mean(dy, &spatial), b.mean(along, &spatial));
        let rest = b.mul(hat, along);
        let rest = b.add(rest, plain);
        let rest = b.sub(dy, rest);
        let scale = by_channel(b, scale, rank);
        let factor = b.mul(scale, inverse);
        shares.push((0, b.mul(rest, factor)));
    }
    Ok(shares)
}

/// Softmax: y·(ȳ − Σ ȳ·y). Its logarithm: ȳ − softmax·Σ ȳ.
fn softmax(b: &mut Builder, at: &At<'_>, axis: Option<i64>, log: bool) -> Result<ValueId, Refused> {
    let (dy, x, y) = (at.dy()?, at.input(0)?, at.output());
    let rank = dims(&b.graph, x)?.len() as i64;
    // Before opset 13 all axes from this one on are one.
    let flattens = b.graph.opset < 13;
    let axis = axis.unwrap_or(if flattens { 1 } else { -1 });
    let axis = if axis < 0 { axis + rank } else { axis };
    let axes: Vec<i64> = if flattens { (axis..rank).collect() } else { vec![axis] };
    if log {
        let p = b.node(op::Exp {}, &[y]);
        let sum = b.sum(dy, &axes, true);
        let rest = b.mul(p, sum);
        return Ok(b.sub(dy, rest));
    }
    let product = b.mul(dy, y);
    let sum = b.sum(product, &axes, true);
    let rest = b.sub(dy, sum);
    Ok(b.mul(y, rest))
}
