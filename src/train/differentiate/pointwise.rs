//! Element-wise operators: x̄ = f′(x)·ȳ, summed over what x was repeated along.

use super::builder::Builder;
use super::{At, Refused, Shares};
use crate::dropout::drops;
use basisopt_ir::ValueId;
use basisopt_ir::op::{self, Op};

pub(super) fn rule(b: &mut Builder, at: &At<'_>) -> Option<Shares> {
    Some(match at.op {
        Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_) | Op::Pow(_) => binary(b, at),
        Op::Sum(_) | Op::Mean(_) => sum(b, at),
        Op::Min(_) | Op::Max(_) => extreme(b, at),
        Op::PRelu(_) => prelu(b, at),
        Op::Where(_) => choice(b, at),
        _ => return unary(b, at).transpose().map(|r| r.map(|share| vec![(0, share)])),
    })
}

fn binary(b: &mut Builder, at: &At<'_>) -> Shares {
    let legacy = |axis: Option<i64>, broadcast: Option<i64>| axis.is_some() || broadcast.is_some();
    let is_legacy = match at.op {
        Op::Add(o) => legacy(o.axis, o.broadcast),
        Op::Sub(o) => legacy(o.axis, o.broadcast),
        Op::Mul(o) => legacy(o.axis, o.broadcast),
        Op::Div(o) => legacy(o.axis, o.broadcast),
        Op::Pow(o) => legacy(o.axis, o.broadcast),
        _ => false,
    };
    if is_legacy {
        return Err(Refused::NoRule(" with the broadcasting of opset 6"));
    }
    let (dy, l, r, y) = (at.dy()?, at.input(0)?, at.input(1)?, at.output());
    let mut shares = Vec::new();
    if at.wants(0) {
        let share = match at.op {
            Op::Mul(_) => b.mul(dy, r),
            Op::Div(_) => b.div(dy, r),
            Op::Pow(_) => {
                // r·xʳ⁻¹·ȳ; r may be of another type than x, an integer.
                let r = b.cast_like(r, l);
                let one = b.number(1.0, l);
                let less = b.sub(r, one);
                let power = b.node(op::Pow::default(), &[l, less]);
                let slope = b.mul(r, power);
                b.mul(dy, slope)
            }
            _ => dy,
        };
        shares.push((0, b.unbroadcast(share, l, y)?));
    }
    if at.wants(1) {
        let share = match at.op {
            Op::Sub(_) => b.neg(dy),
            Op::Mul(_) => b.mul(dy, l),
            Op::Div(_) => {
                // −ȳ·y/r.
                let product = b.mul(dy, y);
                let share = b.div(product, r);
                b.neg(share)
            }
            Op::Pow(_) => return Err(Refused::NoRule(" for its exponent")),
            _ => dy,
        };
        shares.push((1, b.unbroadcast(share, r, y)?));
    }
    Ok(shares)
}

fn sum(b: &mut Builder, at: &At<'_>) -> Shares {
    let dy = at.dy()?;
    let n = at.inputs.iter().flatten().count().max(1);
    let mut shares = Vec::new();
    for slot in 0..at.inputs.len() {
        if at.wants(slot) {
            // A node for each: one of them may be a sum over the batch, another not.
            let share = match at.op {
                Op::Mean(_) => b.scaled(dy, 1.0 / n as f64, dy),
                _ => dy,
            };
            shares.push((slot, b.unbroadcast(share, at.input(slot)?, at.output())?));
        }
    }
    Ok(shares)
}

/// The gradient goes to the operand that is the result; of two equal ones to the first.
fn extreme(b: &mut Builder, at: &At<'_>) -> Shares {
    let (dy, y) = (at.dy()?, at.output());
    let &[Some(l), Some(r)] = &at.inputs[..] else {
        return Err(Refused::NoRule(" of other than two values"));
    };
    let zero = b.number(0.0, y);
    let second = match at.op {
        Op::Max(_) => b.node(op::Greater::default(), &[r, l]),
        _ => b.node(op::Less::default(), &[r, l]),
    };
    let mut shares = Vec::new();
    if at.wants(0) {
        let share = b.node(op::Where {}, &[second, zero, dy]);
        shares.push((0, b.unbroadcast(share, l, y)?));
    }
    if at.wants(1) {
        let share = b.node(op::Where {}, &[second, dy, zero]);
        shares.push((1, b.unbroadcast(share, r, y)?));
    }
    Ok(shares)
}

fn prelu(b: &mut Builder, at: &At<'_>) -> Shares {
    let (dy, x, slope, y) = (at.dy()?, at.input(0)?, at.input(1)?, at.output());
    let zero = b.number(0.0, x);
    let negative = b.node(op::Less::default(), &[x, zero]);
    let mut shares = Vec::new();
    if at.wants(0) {
        let scaled = b.mul(dy, slope);
        shares.push((0, b.node(op::Where {}, &[negative, scaled, dy])));
    }
    if at.wants(1) {
        let product = b.mul(dy, x);
        let share = b.node(op::Where {}, &[negative, product, zero]);
        shares.push((1, b.unbroadcast(share, slope, y)?));
    }
    Ok(shares)
}

fn choice(b: &mut Builder, at: &At<'_>) -> Shares {
    let (dy, condition, y) = (at.dy()?, at.input(0)?, at.output());
    let zero = b.number(0.0, y);
    let mut shares = Vec::new();
    for (slot, branches) in [(1, [dy, zero]), (2, [zero, dy])] {
        if at.wants(slot) {
            let share = b.node(op::Where {}, &[condition, branches[0], branches[1]]);
            shares.push((slot, b.unbroadcast(share, at.input(slot)?, y)?));
        }
    }
    Ok(shares)
}

/// The share of the only input of an element-wise function; `None` for other operators.
fn unary(b: &mut Builder, at: &At<'_>) -> Result<Option<ValueId>, Refused> {
    let (x, y) = (at.inputs.first().copied().flatten(), at.output());
    let (Some(x), Ok(dy)) = (x, at.dy()) else { return Ok(None) };
    let clip = |b: &mut Builder, min, max, of: ValueId| b.node(op::ClipGrad { min, max }, &[dy, of]);
    Ok(Some(match at.op {
        Op::Identity(_) => dy,
        Op::Dropout(_) => match drops(&b.graph, at.id) {
            None => dy,
            Some(how) => return Err(Refused::NoRule(how)),
        },
        // The gradient has the type of what it is the gradient of.
        Op::Cast(op) if op.to.is_float() => match b.graph.value(x).ty.dtype {
            Some(to) if to != op.to => b.node(op::Cast { to, ..op::Cast::default() }, &[dy]),
            _ => dy,
        },
        Op::Neg(_) => b.neg(dy),
        Op::Relu(_) => clip(b, Some(0.0), None, y),
        Op::Clip(op) => {
            let (low, high) = clip_bounds(b, at, op)?;
            clip(b, low, high, y)
        }
        Op::LeakyRelu(op) => {
            let zero = b.number(0.0, x);
            let negative = b.node(op::Less::default(), &[x, zero]);
            let scaled = b.scaled(dy, f64::from(op.alpha), x);
            b.node(op::Where {}, &[negative, scaled, dy])
        }
        // α where 0 < y < 1.
        Op::HardSigmoid(op) => {
            let inside = clip(b, Some(0.0), Some(1.0), y);
            b.scaled(inside, f64::from(op.alpha), x)
        }
        // x·h(x): h + x/6 where −3 < x < 3, h elsewhere.
        Op::HardSwish(_) => {
            let h = b.node(op::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 }, &[x]);
            let along = b.mul(dy, h);
            let inside = clip(b, Some(-3.0), Some(3.0), x);
            let product = b.mul(inside, x);
            let rest = b.scaled(product, 1.0 / 6.0, x);
            b.add(along, rest)
        }
        // σ(1 − σ) = σ − σ².
        Op::Sigmoid(_) => {
            let square = b.mul(y, y);
            let slope = b.sub(y, square);
            b.mul(dy, slope)
        }
        // 1 − y².
        Op::Tanh(_) => {
            let (one, square) = (b.number(1.0, x), b.mul(y, y));
            let slope = b.sub(one, square);
            b.mul(dy, slope)
        }
        // 1 for x > 0, else y + α.
        Op::Elu(op) => {
            let (zero, alpha) = (b.number(0.0, x), b.number(f64::from(op.alpha), x));
            let negative = b.node(op::Less::default(), &[x, zero]);
            let slope = b.add(y, alpha);
            let scaled = b.mul(dy, slope);
            b.node(op::Where {}, &[negative, scaled, dy])
        }
        Op::Softplus(_) => {
            let slope = b.node(op::Sigmoid {}, &[x]);
            b.mul(dy, slope)
        }
        Op::Erf(_) => {
            let slope = gaussian(b, x, 1.0, 2.0 / std::f64::consts::PI.sqrt());
            b.mul(dy, slope)
        }
        Op::Gelu(op) if op.approximate == "tanh" => tanh_gelu(b, dy, x),
        // Φ(x) + x·φ(x).
        Op::Gelu(_) => {
            let scaled = b.scaled(x, std::f64::consts::FRAC_1_SQRT_2, x);
            let erf = b.node(op::Erf {}, &[scaled]);
            let half = b.scaled(erf, 0.5, x);
            let share = b.number(0.5, x);
            let phi = b.add(half, share);
            let density = gaussian(b, x, 0.5, 1.0 / (2.0 * std::f64::consts::PI).sqrt());
            let rest = b.mul(x, density);
            let slope = b.add(phi, rest);
            b.mul(dy, slope)
        }
        Op::Exp(_) => b.mul(dy, y),
        Op::Log(_) => b.div(dy, x),
        Op::Sqrt(_) => {
            let half = b.scaled(dy, 0.5, x);
            b.div(half, y)
        }
        Op::Reciprocal(_) => {
            let square = b.mul(y, y);
            let share = b.mul(dy, square);
            b.neg(share)
        }
        Op::Abs(_) => {
            let zero = b.number(0.0, x);
            let (negative, minus) = (b.node(op::Less::default(), &[x, zero]), b.neg(dy));
            b.node(op::Where {}, &[negative, minus, dy])
        }
        _ => return Ok(None),
    }))
}

/// `factor · e^(−rate·x²)`.
fn gaussian(b: &mut Builder, x: ValueId, rate: f64, factor: f64) -> ValueId {
    let square = b.mul(x, x);
    let exponent = b.scaled(square, -rate, x);
    let bell = b.node(op::Exp {}, &[exponent]);
    b.scaled(bell, factor, x)
}

/// With u = √(2/π)·(x + 0.044715·x³) and t = tanh u: ½(1 + t) + ½x(1 − t²)·u′.
fn tanh_gelu(b: &mut Builder, dy: ValueId, x: ValueId) -> ValueId {
    let (s, k) = ((2.0 / std::f64::consts::PI).sqrt(), 0.044_715);
    let square = b.mul(x, x);
    let one = b.number(1.0, x);
    let cubic = b.scaled(square, k, x);
    let inner = b.add(cubic, one);
    let product = b.mul(x, inner);
    let u = b.scaled(product, s, x);
    let t = b.node(op::Tanh {}, &[u]);
    let along = b.add(t, one);
    let t_square = b.mul(t, t);
    let fall = b.sub(one, t_square);
    let steep = b.scaled(square, 3.0 * k, x);
    let steep = b.add(steep, one);
    let steep = b.scaled(steep, s, x);
    let rest = b.mul(fall, steep);
    let rest = b.mul(rest, x);
    let twice = b.add(along, rest);
    let slope = b.scaled(twice, 0.5, x);
    b.mul(dy, slope)
}

/// Bounds from the attributes or from constant inputs.
fn clip_bounds(b: &Builder, at: &At<'_>, op: &op::Clip) -> Result<(Option<f32>, Option<f32>), Refused> {
    let bound = |slot: usize, attr: Option<f32>| match at.inputs.get(slot).copied().flatten() {
        None => Ok(attr),
        Some(v) => {
            let value = b.graph.constant_value(v).and_then(|t| t.to_f32s().ok());
            let value = value.and_then(|v| v.first().copied());
            value.map(Some).ok_or(Refused::NoRule(" with bounds that are not constant"))
        }
    };
    Ok((bound(1, op.min)?, bound(2, op.max)?))
}
