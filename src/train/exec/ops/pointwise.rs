//! Operators that work element by element, with broadcasting.

use super::{constant_scalar, known};
use crate::exec::kernel::{Arg, Kernel, Spec, Unsupported};
use basisopt_ir::op::Op;
use basisopt_kernels::{LANES, Real};
use std::fmt;

/// Element indices of an operand of shape `from` by elements of `to`; `None` if they are the same.
pub(super) fn broadcast(from: &[usize], to: &[usize]) -> Option<Vec<u32>> {
    let significant = |s: &[usize]| s.iter().copied().skip_while(|&d| d == 1).collect::<Vec<_>>();
    if significant(from) == significant(to) {
        return None;
    }
    let n: usize = to.iter().product();
    let skip = to.len().saturating_sub(from.len());
    let mut table = Vec::with_capacity(n);
    let mut index = vec![0usize; to.len()];
    for _ in 0..n {
        let at = from
            .iter()
            .zip(index.iter().skip(skip))
            .fold(0, |at, (&d, &i)| at * d + if d == 1 { 0 } else { i });
        table.push(at as u32);
        for (i, &d) in index.iter_mut().zip(to).rev() {
            *i += 1;
            if *i < d {
                break;
            }
            *i = 0;
        }
    }
    Some(table)
}

/// A function of one element each of up to three operands.
pub(super) struct Pointwise<F> {
    /// Tables of the operands.
    tables: Vec<Option<Vec<u32>>>,
    f: F,
}

impl<F> fmt::Debug for Pointwise<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pointwise").field("n_operands", &self.tables.len()).finish_non_exhaustive()
    }
}

/// The element of an operand and whether to step through its lanes.
#[inline(always)]
fn lanes_of<'a, T: Real>(arg: &Arg<'a, T>, table: Option<&Vec<u32>>, e: usize) -> (&'a [T], bool) {
    let at = table.map_or(e, |t| t[e] as usize);
    if arg.batched { (&arg.data[at * LANES..(at + 1) * LANES], true) } else { (&arg.data[at..=at], false) }
}

impl<T: Real, F: Fn([T; 3]) -> T + Send + Sync> Kernel<T> for Pointwise<F> {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], lanes: usize) {
        let Some(out) = outputs.first_mut() else { return };
        let straight = self.tables.iter().all(Option::is_none)
            && inputs.iter().take(self.tables.len()).all(|a| a.batched == (lanes > 1));
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || match (straight, inputs) {
                (true, [a, ..]) if self.tables.len() == 1 => {
                    for (out, &a) in out.iter_mut().zip(a.data) {
                        *out = (self.f)([a, T::ZERO, T::ZERO]);
                    }
                }
                (true, [a, b, ..]) if self.tables.len() == 2 => {
                    for ((out, &a), &b) in out.iter_mut().zip(a.data).zip(b.data) {
                        *out = (self.f)([a, b, T::ZERO]);
                    }
                }
                _ => {
                    for (e, out) in out.chunks_exact_mut(lanes).enumerate() {
                        let mut x = [[T::ZERO; LANES]; 3];
                        for ((x, arg), table) in x.iter_mut().zip(inputs).zip(&self.tables) {
                            let (values, steps) = lanes_of(arg, table.as_ref(), e);
                            if steps {
                                x.copy_from_slice(values);
                            } else {
                                x.fill(values[0]);
                            }
                        }
                        for (l, out) in out.iter_mut().enumerate() {
                            *out = (self.f)([x[0][l], x[1][l], x[2][l]]);
                        }
                    }
                }
            },
        );
    }
}

/// Makes the kernel of a function of the first `n` operands.
fn make<T: Real>(
    spec: &Spec,
    n: usize,
    f: impl Fn([T; 3]) -> T + Send + Sync + 'static,
) -> Result<Box<dyn Kernel<T>>, Unsupported> {
    let out = spec.outputs.first().cloned().unwrap_or_default();
    let mut tables = Vec::with_capacity(n);
    for i in 0..n {
        let operand = spec.inputs.get(i).and_then(Option::as_ref);
        let operand = operand.ok_or_else(|| Unsupported(format!("without input {i}")))?;
        tables.push(broadcast(&operand.shape, &out));
    }
    Ok(Box::new(Pointwise { tables, f }))
}

/// Any number of operands, folded pairwise.
#[derive(Debug)]
struct Folded {
    tables: Vec<Option<Vec<u32>>>,
    kind: Fold,
}

#[derive(Clone, Copy, Debug)]
enum Fold {
    Sum,
    Mean,
    Min,
    Max,
}

impl<T: Real> Kernel<T> for Folded {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], lanes: usize) {
        let Some(out) = outputs.first_mut() else { return };
        let scale = T::ONE / T::from_f64(self.tables.len() as f64);
        for (e, out) in out.chunks_exact_mut(lanes).enumerate() {
            for (i, (arg, table)) in inputs.iter().zip(&self.tables).enumerate() {
                let (values, steps) = lanes_of(arg, table.as_ref(), e);
                for (l, out) in out.iter_mut().enumerate() {
                    let v = values[if steps { l } else { 0 }];
                    *out = match self.kind {
                        _ if i == 0 => v,
                        Fold::Sum | Fold::Mean => *out + v,
                        Fold::Min => out.at_most(v),
                        Fold::Max => out.at_least(v),
                    };
                }
            }
            if matches!(self.kind, Fold::Mean) {
                out.iter_mut().for_each(|v| *v *= scale);
            }
        }
    }
}

fn fold<T: Real>(spec: &Spec, kind: Fold) -> Result<Box<dyn Kernel<T>>, Unsupported> {
    let out = spec.outputs.first().cloned().unwrap_or_default();
    let tables = spec.inputs.iter().flatten().map(|o| broadcast(&o.shape, &out)).collect();
    Ok(Box::new(Folded { tables, kind }))
}

/// The error function, to about 1e-15 in `f64` for small arguments: its Taylor series up to 3, its continued
/// fraction beyond (Abramowitz, Stegun 7.1.6 and 7.1.14).
pub(crate) fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..100 {
            term *= 2.0 * a * a / f64::from(2 * n + 1);
            sum += term;
            if term < 1e-17 * sum {
                break;
            }
        }
        2.0 / std::f64::consts::PI.sqrt() * (-a * a).exp() * sum
    } else {
        let fraction = (1..60).rev().fold(a, |f, k| a + f64::from(k) * 0.5 / f);
        1.0 - (-a * a).exp() / (std::f64::consts::PI.sqrt() * fraction)
    };
    value.copysign(x)
}

fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

/// Bounds of a clip.
fn bounds(op_min: Option<f32>, op_max: Option<f32>, spec: &Spec) -> Result<(f64, f64), Unsupported> {
    let bound = |slot: usize, attr: Option<f32>, default: f64| match spec.inputs.get(slot) {
        Some(Some(_)) => constant_scalar(spec, slot),
        _ => Ok(attr.map_or(default, f64::from)),
    };
    Ok((bound(1, op_min, f64::NEG_INFINITY)?, bound(2, op_max, f64::INFINITY)?))
}

/// The kernel of an element-wise operator; `None` for other operators.
pub(super) fn lower<T: Real>(op: &Op, spec: &Spec) -> Option<Result<Box<dyn Kernel<T>>, Unsupported>> {
    let c = |v: f64| T::from_f64(v);
    let (zero, one) = (T::ZERO, T::ONE);
    let truth = move |b: bool| if b { one } else { zero };
    macro_rules! binary {
        ($op:expr, $f:expr) => {
            if $op.axis.is_some() || $op.broadcast.is_some() {
                Err(Unsupported("the broadcasting of opset 6".to_owned()))
            } else {
                make(spec, 2, $f)
            }
        };
    }
    Some(match op {
        Op::Add(op) => binary!(op, |[a, b, _]: [T; 3]| a + b),
        Op::Sub(op) => binary!(op, |[a, b, _]: [T; 3]| a - b),
        Op::Mul(op) => binary!(op, |[a, b, _]: [T; 3]| a * b),
        Op::Div(op) => binary!(op, |[a, b, _]: [T; 3]| a / b),
        Op::Pow(op) => match known(spec, 1).ok().as_deref() {
            Some([2.0]) => make(spec, 1, |[a, ..]: [T; 3]| a * a),
            _ => binary!(op, |[a, b, _]: [T; 3]| a.powf(b)),
        },
        Op::Equal(op) => binary!(op, move |[a, b, _]: [T; 3]| truth(a == b)),
        Op::Greater(op) => binary!(op, move |[a, b, _]: [T; 3]| truth(a > b)),
        Op::Less(op) => binary!(op, move |[a, b, _]: [T; 3]| truth(a < b)),
        Op::PRelu(_) => make(spec, 2, move |[a, s, _]: [T; 3]| if a < zero { s * a } else { a }),
        Op::Where(_) => make(spec, 3, move |[t, a, b]: [T; 3]| if t != zero { a } else { b }),
        Op::Sum(_) => fold(spec, Fold::Sum),
        Op::Mean(_) => fold(spec, Fold::Mean),
        Op::Min(_) => fold(spec, Fold::Min),
        Op::Max(_) => fold(spec, Fold::Max),
        Op::Identity(_) | Op::Dropout(_) => make(spec, 1, |[a, ..]: [T; 3]| a),
        Op::Cast(op) if op.to.is_float() => make(spec, 1, |[a, ..]: [T; 3]| a),
        Op::Cast(op) if op.to == basisopt_ir::DType::Bool => {
            make(spec, 1, move |[a, ..]: [T; 3]| truth(a != zero))
        }
        // Towards zero.
        Op::Cast(_) => {
            make(spec, 1, move |[a, ..]: [T; 3]| if a < zero { -((-a).floor()) } else { a.floor() })
        }
        Op::Neg(_) => make(spec, 1, |[a, ..]: [T; 3]| -a),
        Op::Abs(_) => make(spec, 1, |[a, ..]: [T; 3]| a.abs()),
        Op::Exp(_) => make(spec, 1, |[a, ..]: [T; 3]| a.exp()),
        Op::Log(_) => make(spec, 1, |[a, ..]: [T; 3]| a.ln()),
        Op::Sqrt(_) => make(spec, 1, |[a, ..]: [T; 3]| a.sqrt()),
        Op::Reciprocal(_) => make(spec, 1, move |[a, ..]: [T; 3]| one / a),
        Op::Floor(_) => make(spec, 1, |[a, ..]: [T; 3]| a.floor()),
        Op::Ceil(_) => make(spec, 1, |[a, ..]: [T; 3]| -((-a).floor())),
        Op::Relu(_) => make(spec, 1, move |[a, ..]: [T; 3]| a.at_least(zero)),
        Op::LeakyRelu(op) => {
            let alpha = c(f64::from(op.alpha));
            make(spec, 1, move |[a, ..]: [T; 3]| if a < zero { alpha * a } else { a })
        }
        Op::Clip(op) => match bounds(op.min, op.max, spec) {
            Err(e) => Err(e),
            Ok((low, high)) => make(spec, 1, move |[a, ..]: [T; 3]| a.at_least(c(low)).at_most(c(high))),
        },
        Op::ClipGrad(op) => {
            let low = c(op.min.map_or(f64::NEG_INFINITY, f64::from));
            let high = c(op.max.map_or(f64::INFINITY, f64::from));
            make(spec, 2, move |[d, x, _]: [T; 3]| if x > low && x < high { d } else { zero })
        }
        Op::Sigmoid(_) => make(spec, 1, |[a, ..]: [T; 3]| sigmoid(a)),
        Op::Tanh(_) => make(spec, 1, |[a, ..]: [T; 3]| a.tanh()),
        Op::HardSigmoid(op) => {
            let (alpha, beta) = (c(f64::from(op.alpha)), c(f64::from(op.beta)));
            make(spec, 1, move |[a, ..]: [T; 3]| (alpha * a + beta).at_least(zero).at_most(one))
        }
        Op::HardSwish(_) => {
            let (sixth, half) = (c(1.0 / 6.0), c(0.5));
            make(spec, 1, move |[a, ..]: [T; 3]| a * (a * sixth + half).at_least(zero).at_most(one))
        }
        Op::Elu(op) => {
            let alpha = c(f64::from(op.alpha));
            make(spec, 1, move |[a, ..]: [T; 3]| if a < zero { alpha * (a.exp() - one) } else { a })
        }
        // Without overflow: ln(1 + eˣ) = max(x, 0) + ln(1 + e^−|x|).
        Op::Softplus(_) => {
            make(spec, 1, move |[a, ..]: [T; 3]| a.at_least(zero) + ((-a.abs()).exp() + one).ln())
        }
        Op::Erf(_) => make(spec, 1, |[a, ..]: [T; 3]| T::from_f64(erf(a.to_f64()))),
        Op::Gelu(op) if op.approximate == "tanh" => {
            let (k, s, half) = (c(0.044_715), c((2.0 / std::f64::consts::PI).sqrt()), c(0.5));
            make(spec, 1, move |[a, ..]: [T; 3]| half * a * (one + (s * (a + k * a * a * a)).tanh()))
        }
        Op::Gelu(_) => make(spec, 1, |[a, ..]: [T; 3]| {
            let x = a.to_f64();
            T::from_f64(0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)))
        }),
        _ => return None,
    })
}
