//! `fold-constants`: computes what depends on constants only.
//!
//! Exporters leave the arithmetic of shapes in the graph, and converters leave casts, transpositions
//! and scalings of weights. Other passes ask for constant weights; this one makes them so. The shape
//! of a value is a constant as soon as its dimensions are known, whatever its elements are.
//!
//! ## Rewrite
//!
//! ```text
//! %w  = f32[3,16] randn(seed=1)
//! %wt = Transpose<perm=[1,0]>(%w)
//! %y  = MatMul(%x, %wt)
//! ```
//! becomes
//! ```text
//! %wt = f32[16,3] norm 6.93
//! %y  = MatMul(%x, %wt)
//! ```
//!
//! ## Legality
//!
//! - A constant that a caller may override is not constant (`overridable-stays.bir`).
//! - The file must not grow by more than `max-growth`: a constant with other readers stays beside
//!   the result, and `Expand`, `Tile`, `ConstantOfShape` and a widening `Cast` make much of little
//!   (`growth-stays.bir`).
//! - An integer result must fit its type, and nothing is divided by zero; what engines do then
//!   differs (`overflow-stays.bir`).
//! - The operator needs an evaluator for the element types at hand (`no-evaluator.bir`).
//! - A dimension that is not known keeps its `Shape` (`dynamic-shape-stays.bir`).
//!
//! Operators that this program does not model, quantisation among them, are left alone without a
//! remark (`quantised-stays.bir`). So is what nobody reads: that is the business of `dead-code`.
//!
//! ## Numerics
//!
//! Whatever only moves elements is exact. Arithmetic is done in `f64` and rounded once to the
//! element type: `+ - × ÷ √` of `f32`, `f16` and `bf16` come out as IEEE arithmetic in that type,
//! except that an intermediate sum (`Sum`, `ReduceSum`, …) is not rounded. `Exp`, `Log` and `Pow` may
//! differ from an engine in the last place. Integers are exact.
//!
//! ## Options
//!
//! - `max-growth`: bytes by which one rewrite may make the file larger.
//!
//! ## Pipeline
//!
//! Run first: it makes visible what the others look for.

use crate::driver::options::{OptionKind, OptionSpec, Options};
use crate::driver::pass::{Fidelity, Outcome, Pass, PassContext, PassError, PassInfo};
use crate::driver::remark::Refusal;
use crate::driver::rule::{Proposal, Rule, apply_everywhere};
use crate::eval::{EvalError, Setting, evaluate, shape_range};
use basisopt_ir::rewrite::is_pinned;
use basisopt_ir::{Dim, Graph, NodeId, Op, Rewrite, Tensor, ValueId};
use std::collections::BTreeMap;

const MAX_GROWTH: usize = 64 << 10;

/// The pass `fold-constants`: `docs/passes.md` shows what it does, `basisopt passes fold-constants` has its options.
pub static INFO: PassInfo = PassInfo {
    name: "fold-constants",
    summary: "compute what depends on constants only",
    fidelity: Fidelity::Exact,
    options: &[OptionSpec {
        name: "max-growth",
        kind: OptionKind::Int { min: 0 },
        default: "65536",
        help: "bytes by which one rewrite may make the file larger",
    }],
    build: |options: &Options| {
        Ok(Box::new(FoldConstants { max_growth: options.int("max-growth").unwrap_or(MAX_GROWTH) }))
    },
};

#[derive(Debug)]
struct FoldConstants {
    max_growth: usize,
}

impl Pass for FoldConstants {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Outcome, PassError> {
        apply_everywhere(self, graph, cx)
    }
}

impl Rule for FoldConstants {
    fn rewrite(&self, graph: &Graph, at: NodeId) -> Result<Option<Proposal>, Refusal> {
        let node = graph.node(at);
        let read: Vec<ValueId> = (0..node.outputs.len() as u32)
            .map(|port| ValueId { node: at, port })
            .filter(|&v| graph.n_readers(v) > 0)
            .collect();
        // Dropout is for `eliminate-identity` to judge.
        if read.is_empty() || matches!(node.op, Op::Input | Op::Constant(_) | Op::Opaque(_) | Op::Dropout(_))
        {
            return Ok(None);
        }
        if let Some(dims) = known_dims(graph, at) {
            return Ok(Some(proposal(graph, at, [(read[0], dims)])));
        }
        let Some(inputs) = constant_inputs(graph, at)? else { return Ok(None) };
        if let (Op::Identity(_), Some(input)) = (&node.op, graph.node_input(at, 0))
            && !(is_pinned(graph, read[0]) && is_pinned(graph, input))
        {
            let mut rewrite = Rewrite::at(at);
            rewrite.replace(read[0], input);
            let message = format!("read {} instead", graph.value(input).name);
            return Ok(Some(Proposal { rewrite, code: "folded", message }));
        }

        let freed = bytes_freed(graph, at);
        let setting = Setting {
            opset: graph.opset,
            n_outputs: node.outputs.len(),
            max_bytes: freed.saturating_add(self.max_growth),
        };
        let results = evaluate(&node.op, &inputs, &setting)
            .map_err(|error| refusal(error, node.op.op_type(), freed, self.max_growth))?;
        let results = read.into_iter().filter_map(|v| Some((v, results.get(v.port as usize)?.clone())));
        Ok(Some(proposal(graph, at, results)))
    }
}

fn proposal(graph: &Graph, at: NodeId, results: impl IntoIterator<Item = (ValueId, Tensor)>) -> Proposal {
    let mut rewrite = Rewrite::at(at);
    let mut made = Vec::new();
    for (value, tensor) in results {
        made.push(format!("{}{:?}", tensor.dtype(), tensor.shape()));
        let constant = rewrite.constant(format!("{}.folded", graph.value(value).name), tensor);
        rewrite.replace(value, constant);
    }
    let message = format!("computed the {}: {}", graph.node(at).op.op_type(), made.join(", "));
    Proposal { rewrite, code: "folded", message }
}

/// All inputs as constants; `None` if there is none or one is computed.
fn constant_inputs(graph: &Graph, at: NodeId) -> Result<Option<Vec<Option<&Tensor>>>, Refusal> {
    let slots = graph.node_inputs(at);
    let is_constant = |v: &ValueId| matches!(graph.node(v.node).op, Op::Constant(_));
    if slots.iter().flatten().next().is_none() || !slots.iter().flatten().all(is_constant) {
        return Ok(None);
    }
    let mut tensors = Vec::with_capacity(slots.len());
    for slot in slots {
        tensors.push(match slot {
            None => None,
            Some(v) => {
                let name = &graph.value(v).name;
                let Some(tensor) = graph.constant(v) else {
                    return Err(Refusal::new(
                        "overridable",
                        format!("{name} is also a graph input, which a caller may override"),
                    ));
                };
                if tensor.is_elided() {
                    let message = format!("the values of {name} were elided when the graph was printed");
                    return Err(Refusal::new("elided", message));
                }
                Some(tensor)
            }
        });
    }
    Ok(Some(tensors))
}

/// Bytes of the constants that only this node reads: they go with it.
fn bytes_freed(graph: &Graph, at: NodeId) -> usize {
    let mut inputs: BTreeMap<ValueId, usize> = BTreeMap::new();
    graph.node_inputs(at).into_iter().flatten().for_each(|v| *inputs.entry(v).or_default() += 1);
    inputs
        .into_iter()
        .filter(|&(v, n_slots)| graph.n_readers(v) == n_slots)
        .filter_map(|(v, _)| graph.constant(v))
        .map(|t| t.dtype().n_bytes(t.len()).unwrap_or(0))
        .fold(0, usize::saturating_add)
}

/// What a `Shape` gives, or a `Gather` or `Slice` of one, where the dimensions that it picks are
/// known; the others need not be.
fn known_dims(graph: &Graph, at: NodeId) -> Option<Tensor> {
    let source = match &graph.node(at).op {
        Op::Shape(_) => at,
        Op::Gather(_) | Op::Slice(_) => graph.node_input(at, 0)?.node,
        _ => return None,
    };
    let Op::Shape(shape) = &graph.node(source).op else { return None };
    let dims: &[Dim] = graph.value(graph.node_input(source, 0)?).ty.shape.as_deref()?;
    // Run on the numbers of the axes, which are known, the operator tells whose sizes it wants.
    let axes: Vec<i64> = shape_range(shape, dims.len()).map(|axis| axis as i64).collect();
    let mut picked = Tensor::from_i64s(vec![axes.len()], &axes).ok()?;
    if source != at {
        let rest = graph.node_inputs(at).into_iter().skip(1);
        let rest: Vec<Option<&Tensor>> = rest
            .map(|slot| slot.map_or(Some(None), |v| graph.constant(v).map(Some)))
            .collect::<Option<_>>()?;
        let inputs: Vec<Option<&Tensor>> = std::iter::once(Some(&picked)).chain(rest).collect();
        let setting = Setting { opset: graph.opset, n_outputs: 1, max_bytes: MAX_GROWTH };
        picked = evaluate(&graph.node(at).op, &inputs, &setting).ok()?.pop()?;
    }
    let known = |axis: i64| i64::try_from(dims.get(usize::try_from(axis).ok()?)?.known()?).ok();
    let sizes: Vec<i64> = picked.to_i64s().ok()?.into_iter().map(known).collect::<Option<_>>()?;
    Tensor::from_i64s(picked.shape().to_vec(), &sizes).ok()
}

fn refusal(error: EvalError, op_type: &str, freed: usize, max_growth: usize) -> Refusal {
    match error {
        EvalError::Unsupported(what) => {
            Refusal::new("no-evaluator", format!("cannot compute {op_type}: {what} is not supported"))
        }
        EvalError::TooLarge { bytes } => {
            let growth = bytes.saturating_sub(freed);
            let message = format!("the file would grow by {growth} bytes; max-growth is {max_growth}");
            Refusal::new("would-grow", message).with("growth", growth as f64)
        }
        EvalError::Overflow(dtype) => {
            Refusal::new("overflow", format!("a number in the result does not fit {dtype}"))
        }
        EvalError::DivisionByZero => Refusal::new("division-by-zero", "an integer is divided by zero"),
        EvalError::Malformed(what) => Refusal::new("malformed", what),
        EvalError::Tensor(error) => Refusal::new("unreadable", error.to_string()),
    }
}
