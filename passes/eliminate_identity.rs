//! `eliminate-identity`: removes operators that give back what they are given.
//!
//! Exporters write them (`Identity`, `Dropout`), converters and other passes leave them (a cast to
//! the type that is there, a reshape to the shape that is there), and each keeps two neighbours from
//! seeing each other.
//!
//! ## Rewrite
//!
//! ```text
//! %d = Dropout(%x)
//! %y = Relu(%d)
//! ```
//! becomes
//! ```text
//! %y = Relu(%x)
//! ```
//!
//! | operator | when |
//! |---|---|
//! | `Identity`; `Sum`, `Max`, `Min`, `Mean`, `Concat` of one input; `Split` into one | always |
//! | `Dropout` | not in training |
//! | `Cast` | to the element type that is there |
//! | `Reshape`, `Flatten`, `Squeeze`, `Unsqueeze`, `Expand`, `Tile`, global pooling | the shape is known to stay |
//! | `Transpose` | only axes of size 1 change places |
//! | `Slice` | everything is taken, in steps of 1 |
//! | `Pad` | all pads are 0 |
//! | `Add`, `Sub` of 0; `Mul`, `Div`, `Pow` by 1 | the shape stays |
//! | `MaxPool`, `AveragePool` | a window of 1 in steps of 1, no padding |
//!
//! ## Legality
//!
//! - One name is left where there were two, and graph inputs, graph outputs and values that a body of
//!   control flow reads must keep theirs: between two such the operator stays (`pinned-names-stay.bir`,
//!   `pinned-outputs-stay.bir`, `pinned-overridable-stays.bir`, `captured-stays.bir`).
//! - `Dropout` in training drops (`training-stays.bir`, `training-opset-6-stays.bir`).
//! - A mask or index that is read is not given by the input (`mask-read-stays.bir`).
//! - Shapes are equal only if it is known that they are: a number, or the same expression in the same
//!   names (`unknown-shape-stays.bir`).
//! - A constant that broadcasts changes the shape (`broadcast-stays.bir`).
//! - A cast to another type and a slice that reverses do something (`cast-stays.bir`,
//!   `slice-reversal-stays.bir`).
//!
//! The first three are remarked. The others are just operators that do something, or may.
//!
//! ## Numerics
//!
//! Exact, but for the sign of a zero: -0 + 0 is +0, and stays -0 without the addition.
//!
//! ## Options
//!
//! None.
//!
//! ## Pipeline
//!
//! Run after `fold-constants`, which finds the constants, and before the passes that look at
//! neighbours.

use crate::driver::options::Options;
use crate::driver::pass::{Fidelity, Outcome, Pass, PassContext, PassError, PassInfo};
use crate::driver::remark::Refusal;
use crate::driver::rule::{Proposal, Rule, apply_everywhere};
use basisopt_ir::op::{Dropout, Slice};
use basisopt_ir::rewrite::is_pinned;
use basisopt_ir::{Dim, Graph, NodeId, Op, Rewrite, Tensor, ValueId};

/// The pass `eliminate-identity`: `docs/passes.md` shows what it does, `basisopt passes eliminate-identity` has its options.
pub static INFO: PassInfo = PassInfo {
    name: "eliminate-identity",
    summary: "remove operators that give back what they are given",
    fidelity: Fidelity::Exact,
    options: &[],
    build: |_: &Options| Ok(Box::new(EliminateIdentity)),
};

#[derive(Debug)]
struct EliminateIdentity;

impl Pass for EliminateIdentity {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Outcome, PassError> {
        apply_everywhere(self, graph, cx)
    }
}

impl Rule for EliminateIdentity {
    fn rewrite(&self, graph: &Graph, at: NodeId) -> Result<Option<Proposal>, Refusal> {
        let Some(input) = kept_input(graph, at)? else { return Ok(None) };
        let output = ValueId::of(at);
        let node = graph.node(at);
        // What nobody reads is the business of `dead-code`.
        if graph.n_readers(output) == 0 {
            return Ok(None);
        }
        let is_read = |port| graph.n_readers(ValueId { node: at, port }) > 0;
        if (1..node.outputs.len() as u32).any(is_read) {
            let message = format!("the second output of the {} is read", node.op.op_type());
            return Err(Refusal::new("mask-read", message));
        }
        if is_pinned(graph, input) && is_pinned(graph, output) {
            let (input, output) = (&graph.value(input).name, &graph.value(output).name);
            let message = format!("{input} and {output} are both known outside by name");
            return Err(Refusal::new("pinned-names", message));
        }
        let mut rewrite = Rewrite::at(at);
        rewrite.replace(output, input);
        let message = format!("removed the {}, which changes nothing", node.op.op_type());
        Ok(Some(Proposal { rewrite, code: "identity", message }))
    }
}

/// The input that the node's first output is equal to.
fn kept_input(graph: &Graph, at: NodeId) -> Result<Option<ValueId>, Refusal> {
    let first = graph.node_input(at, 0);
    let constant = |slot: usize| graph.constant_input(at, slot);
    let n_inputs = || graph.node_inputs(at).len();
    let is_kept = match &graph.node(at).op {
        Op::Identity(_) => true,
        Op::Sum(_) | Op::Max(_) | Op::Min(_) | Op::Mean(_) | Op::Concat(_) => n_inputs() == 1,
        Op::Split(_) => graph.node(at).outputs.len() == 1,
        Op::Dropout(op) => {
            training(graph, at, op)?;
            true
        }
        Op::Cast(op) => first.is_some_and(|x| graph.value(x).ty.dtype == Some(op.to)),
        Op::Reshape(_)
        | Op::Flatten(_)
        | Op::Squeeze(_)
        | Op::Unsqueeze(_)
        | Op::Expand(_)
        | Op::Tile(_)
        | Op::GlobalAveragePool(_)
        | Op::GlobalMaxPool(_) => keeps_shape(graph, at, first),
        Op::Transpose(op) => {
            keeps_shape(graph, at, first) && only_ones_move(graph, first, op.perm.as_deref())
        }
        Op::Slice(op) => takes_everything(graph, at, first, op),
        Op::Pad(op) => match op.pads.as_ref().or(op.paddings.as_ref()) {
            Some(pads) => pads.iter().all(|&p| p == 0),
            None => constant(1).is_some_and(|pads| is_all(pads, 0.0)),
        },
        Op::Add(_) => return Ok(neutral(graph, at, 0.0, &[1, 0])),
        Op::Mul(_) => return Ok(neutral(graph, at, 1.0, &[1, 0])),
        Op::Sub(_) => return Ok(neutral(graph, at, 0.0, &[1])),
        Op::Div(_) | Op::Pow(_) => return Ok(neutral(graph, at, 1.0, &[1])),
        Op::MaxPool(op) => is_point(&op.kernel_shape, &op.strides, &op.pads),
        Op::AveragePool(op) => is_point(&op.kernel_shape, &op.strides, &op.pads),
        _ => false,
    };
    Ok(first.filter(|_| is_kept))
}

/// A refusal if the dropout is one of training.
fn training(graph: &Graph, at: NodeId, op: &Dropout) -> Result<(), Refusal> {
    let refusal = |message: &str| Err(Refusal::new("training-mode", message));
    if graph.opset < 7 {
        return match op.is_test {
            Some(is_test) if is_test != 0 => Ok(()),
            _ => refusal("is_test is not set, so the Dropout drops"),
        };
    }
    match graph.node_input(at, 2) {
        None => Ok(()),
        Some(flag) => match graph.constant(flag) {
            Some(flag) if is_all(flag, 0.0) => Ok(()),
            Some(_) => refusal("training_mode is set, so the Dropout drops"),
            None => refusal("training_mode is not constant, so the Dropout may drop"),
        },
    }
}

/// Whether input and output are known to have one shape.
fn keeps_shape(graph: &Graph, at: NodeId, input: Option<ValueId>) -> bool {
    let shape = |v: ValueId| graph.value(v).ty.shape.as_deref();
    match (input.and_then(shape), shape(ValueId::of(at))) {
        (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.equals(b)),
        _ => false,
    }
}

/// Whether all axes but those of size 1 keep their order.
fn only_ones_move(graph: &Graph, input: Option<ValueId>, perm: Option<&[i64]>) -> bool {
    let Some(shape) = input.and_then(|x| graph.value(x).ty.shape.as_deref()) else { return false };
    let reversed: Vec<i64> = (0..shape.len() as i64).rev().collect();
    let size = |&axis: &i64| usize::try_from(axis).ok().and_then(|axis| shape.get(axis));
    let moving = perm.unwrap_or(&reversed).iter().filter(|&axis| size(axis) != Some(&Dim::Known(1)));
    moving.is_sorted()
}

fn takes_everything(graph: &Graph, at: NodeId, input: Option<ValueId>, op: &Slice) -> bool {
    if graph.node_input(at, 4).is_some_and(|steps| !graph.constant(steps).is_some_and(|t| is_all(t, 1.0))) {
        return false;
    }
    // In steps of 1, as many elements as there are can only be all of them.
    if keeps_shape(graph, at, input) {
        return true;
    }
    let bounds = |attr: &Option<Vec<i64>>, slot: usize| match attr {
        Some(v) => Some(v.clone()),
        None => graph.constant_input(at, slot)?.to_i64s().ok(),
    };
    let (Some(starts), Some(ends)) = (bounds(&op.starts, 1), bounds(&op.ends, 2)) else { return false };
    // "To the end" is written as the largest number there is.
    starts.iter().all(|&s| s == 0) && ends.iter().all(|&e| e >= i64::from(i32::MAX))
}

/// The input that `op(input, constant)` gives back if the constant in one of `slots` is `value`
/// everywhere and does not broadcast the input to another shape.
fn neutral(graph: &Graph, at: NodeId, value: f64, slots: &[usize]) -> Option<ValueId> {
    slots.iter().find_map(|&slot| {
        let constant = graph.constant_value(graph.node_input(at, slot)?)?;
        let input = graph.node_input(at, 1 - slot)?;
        let fits = constant.shape().is_empty()
            || graph.value(input).ty.shape.as_deref().is_some_and(|shape| reaches(shape, constant.shape()));
        (fits && is_all(&constant, value)).then_some(input)
    })
}

/// Whether broadcasting `shape` with `other` leaves it as it is.
fn reaches(shape: &[Dim], other: &[usize]) -> bool {
    let fits = |(d, &o): (&Dim, &usize)| o == 1 || d.known() == Some(o);
    other.len() <= shape.len() && shape.iter().rev().zip(other.iter().rev()).all(fits)
}

/// Whether every element is this number. Nothing is unpacked: a weight of any size may come along.
fn is_all(t: &Tensor, value: f64) -> bool {
    let splat = |value: f64| Tensor::full(t.dtype(), vec![], value).and_then(|t| t.to_bytes());
    let (Ok(wanted), Ok(negated), false) = (splat(value), splat(-value), t.is_elided()) else { return false };
    // Only 0 has a negative that is equal to it.
    let negated = if value == 0.0 { negated } else { wanted.clone() };
    let is_wanted = |element: &[u8]| element == wanted || element == negated;
    match t.splat_element() {
        Some(element) => is_wanted(element),
        None => t.to_bytes().is_ok_and(|bytes| bytes.chunks(wanted.len()).all(is_wanted)),
    }
}

fn is_point(kernel: &[i64], strides: &[i64], pads: &[i64]) -> bool {
    let ones = |v: &[i64]| v.iter().all(|&n| n == 1);
    !kernel.is_empty() && ones(kernel) && ones(strides) && pads.iter().all(|&p| p == 0)
}
