//! Reverse-mode differentiation, graph to graph.
//!
//! The gradient of a scalar L for a value v is written v̄ = ∂L/∂v. A node y = f(x₁, …) has a rule that makes of ȳ the
//! shares x̄ᵢ = (∂f/∂xᵢ)ᵀ ȳ as nodes of the same graph; the walk goes through the nodes from the last to the first
//! and adds up the shares that a value gets. What comes out is a graph like any other: it can be printed, verified,
//! cleaned by passes and compiled.

pub(crate) mod builder;
mod linear;
mod movement;
mod normalise;
mod pointwise;
mod pool;

use basisopt_ir::op::Op;
use basisopt_ir::{Graph, NodeId, ValueId};
use builder::Builder;
use std::collections::{BTreeMap, BTreeSet};

/// What to differentiate.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Values that the gradient starts from. Each gets an input `NAME.seed` of its own type: its v̄.
    pub targets: Vec<ValueId>,
    /// Constants or inputs to differentiate for.
    pub parameters: Vec<ValueId>,
}

/// A graph with its gradient.
#[derive(Clone, Debug)]
pub struct Differentiated {
    /// The graph with the nodes of the gradient. Outputs: the targets, then the gradients.
    pub graph: Graph,
    /// Names of the parameters that have a gradient.
    pub parameters: Vec<String>,
    /// Names of their gradients.
    pub gradients: Vec<String>,
    /// Names of the values in which shares of single images become sums over the batch: shares in the gradient of a
    /// value that does not depend on the input, made from values that do.
    pub summed: BTreeSet<String>,
    /// Parameters that have no effect on the targets.
    pub unreached: Vec<String>,
}

/// Why a graph cannot be differentiated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DifferentiateError {
    /// An operator without a rule stands between a parameter and a target.
    #[error(
        "node {node:?}: there is no gradient for {op}{detail}; train against values before it (until=NAME)"
    )]
    NoRule {
        /// Label of the node.
        node: String,
        /// The operator.
        op: String,
        /// What about it.
        detail: String,
    },
    /// A rule needs sizes that are not known.
    #[error("the shape of {value:?} is not known; fix the sizes of the inputs")]
    Shape {
        /// Name of the value.
        value: String,
    },
}

/// Why a rule gives up.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Not for this operator, or not for these attributes.
    NoRule(&'static str),
    /// An unknown shape.
    Shape(ValueId),
}

/// The shares of a node's inputs, by slot.
type Shares = Result<Vec<(usize, ValueId)>, Refused>;

/// A node whose outputs have gradients, for its rule.
struct At<'a> {
    id: NodeId,
    op: &'a Op,
    inputs: Vec<Option<ValueId>>,
    /// Gradients of the outputs.
    dys: Vec<Option<ValueId>>,
    /// Slots whose share is wanted.
    wanted: Vec<bool>,
}

impl At<'_> {
    fn input(&self, slot: usize) -> Result<ValueId, Refused> {
        self.inputs.get(slot).copied().flatten().ok_or(Refused::NoRule(" without an input"))
    }
    fn output(&self) -> ValueId {
        ValueId::of(self.id)
    }
    /// The gradient of the first output.
    fn dy(&self) -> Result<ValueId, Refused> {
        self.dys
            .first()
            .copied()
            .flatten()
            .ok_or(Refused::NoRule(" of whose outputs the first plays no part"))
    }
    fn wants(&self, slot: usize) -> bool {
        self.wanted.get(slot).copied().unwrap_or(false)
    }
}

fn rule(b: &mut Builder, at: &At<'_>) -> Shares {
    linear::rule(b, at)
        .or_else(|| pointwise::rule(b, at))
        .or_else(|| movement::rule(b, at))
        .or_else(|| pool::rule(b, at))
        .or_else(|| normalise::rule(b, at))
        .unwrap_or(Err(Refused::NoRule("")))
}

/// Values that depend on any of some others.
fn dependent(graph: &Graph, order: &[NodeId], on: impl IntoIterator<Item = ValueId>) -> BTreeSet<ValueId> {
    let mut found: BTreeSet<ValueId> = on.into_iter().collect();
    for &id in order {
        if graph.node_inputs(id).iter().flatten().any(|v| found.contains(v)) {
            found.extend((0..graph.node(id).outputs.len() as u32).map(|port| ValueId { node: id, port }));
        }
    }
    found
}

/// Whether a value is of numbers that can move a little.
fn is_smooth(graph: &Graph, value: ValueId) -> bool {
    graph.value(value).ty.dtype.is_none_or(basisopt_ir::DType::is_float)
        && !matches!(graph.node(value.node).op, Op::Shape(_) | Op::Floor(_) | Op::Ceil(_))
}

/// The graph with the gradient of the targets for the parameters. Its types should have been inferred.
///
/// # Errors
/// [`DifferentiateError`] naming the node that is in the way.
pub fn differentiate(graph: &Graph, request: &Request) -> Result<Differentiated, DifferentiateError> {
    let order = graph.topological();
    let inputs = graph.inputs().iter().map(|&n| ValueId::of(n));
    let from_input = dependent(graph, &order, inputs);
    let moving = dependent(graph, &order, request.parameters.iter().copied());

    let mut b = Builder::new(graph);
    let mut adjoints: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for &target in &request.targets {
        let seed = b.seed(target);
        accumulate(&mut b, &mut adjoints, target, seed);
    }
    for &id in order.iter().rev() {
        let node = graph.node(id);
        let outputs = (0..node.outputs.len() as u32).map(|port| ValueId { node: id, port });
        let dys: Vec<_> = outputs.clone().map(|v| adjoints.get(&v).copied()).collect();
        if node.op.is_source() || dys.iter().all(Option::is_none) {
            continue;
        }
        let inputs = graph.node_inputs(id);
        let wants = |v: &Option<ValueId>| v.is_some_and(|v| moving.contains(&v) && is_smooth(graph, v));
        let wanted: Vec<bool> = inputs.iter().map(wants).collect();
        if !wanted.contains(&true) {
            continue;
        }
        let at = At { id, op: &node.op, inputs, dys, wanted };
        b.at(id);
        let shares = rule(&mut b, &at).map_err(|e| explain(graph, id, &e))?;
        let of_images = outputs.clone().any(|v| from_input.contains(&v));
        for (slot, share) in shares {
            let Some(value) = at.inputs.get(slot).copied().flatten().filter(|_| at.wants(slot)) else {
                continue;
            };
            let mut share = share;
            if of_images && !from_input.contains(&value) {
                // A gradient passed on needs a node of its own to be a sum.
                if at.dys.contains(&Some(share)) {
                    share = b.node(basisopt_ir::op::Identity {}, &[share]);
                }
                b.sum_over_batch(share);
            }
            accumulate(&mut b, &mut adjoints, value, share);
        }
    }

    let mut out = Differentiated {
        graph: Graph::default(),
        parameters: vec![],
        gradients: vec![],
        summed: BTreeSet::new(),
        unreached: vec![],
    };
    let mut outputs = request.targets.clone();
    for &p in &request.parameters {
        let name = graph.value(p).name.clone();
        match adjoints.get(&p) {
            Some(&gradient) => {
                let gradient = b.named(gradient, &format!("{name}.grad"));
                outputs.push(gradient);
                out.parameters.push(name);
                out.gradients.push(b.graph.value(gradient).name.clone());
            }
            None => out.unreached.push(name),
        }
    }
    b.graph.set_outputs(&outputs);
    out.summed = b.summed();
    out.graph = b.graph;
    Ok(out)
}

fn accumulate(b: &mut Builder, adjoints: &mut BTreeMap<ValueId, ValueId>, value: ValueId, share: ValueId) {
    let total = match adjoints.get(&value) {
        None => share,
        Some(&before) => b.add(share, before),
    };
    adjoints.insert(value, total);
}

fn explain(graph: &Graph, id: NodeId, refused: &Refused) -> DifferentiateError {
    let node = graph.node(id);
    match *refused {
        Refused::NoRule(detail) => DifferentiateError::NoRule {
            node: node.label().to_owned(),
            op: node.op.op_type().to_owned(),
            detail: detail.to_owned(),
        },
        Refused::Shape(value) => DifferentiateError::Shape { value: graph.value(value).name.clone() },
    }
}

/// The last values that can be trained against: outputs of the graph that have a gradient for some parameter, and,
/// where a node has none, what it reads. In topological order.
pub fn frontier(graph: &Graph, parameters: &[ValueId]) -> Vec<ValueId> {
    let order = graph.topological();
    let moving = dependent(graph, &order, parameters.iter().copied());
    let mut found = Vec::new();
    // Values that are differentiable all the way from the parameters.
    let mut smooth: BTreeSet<ValueId> = parameters.iter().copied().collect();
    let mut b = Builder::new(graph);
    for &id in &order {
        let node = graph.node(id);
        let inputs = graph.node_inputs(id);
        // Sizes and indices that depend on a parameter pass no gradient on, and need none.
        let reads = inputs.iter().flatten().copied();
        let reads: Vec<ValueId> = reads.filter(|&v| moving.contains(&v) && is_smooth(graph, v)).collect();
        if node.op.is_source() || matches!(node.op, Op::Shape(_)) || reads.is_empty() {
            continue;
        }
        let outputs: Vec<ValueId> =
            (0..node.outputs.len() as u32).map(|port| ValueId { node: id, port }).collect();
        let wanted: Vec<bool> = inputs.iter().map(|v| v.is_some_and(|v| smooth.contains(&v))).collect();
        let all_smooth = reads.iter().all(|v| smooth.contains(v));
        // The rule is tried, on a gradient that stands for any.
        let dys = outputs.iter().map(|&v| Some(v)).collect();
        let can = all_smooth && outputs.iter().all(|&v| is_smooth(graph, v)) && {
            b.at(id);
            rule(&mut b, &At { id, op: &node.op, inputs, dys, wanted }).is_ok()
        };
        if can {
            smooth.extend(outputs);
        } else {
            found.extend(reads.into_iter().filter(|v| smooth.contains(v) && !parameters.contains(v)));
        }
    }
    found.extend(graph.outputs().iter().copied().filter(|v| smooth.contains(v)));
    let place: BTreeMap<NodeId, usize> = order.iter().enumerate().map(|(i, &id)| (id, i)).collect();
    found.sort_by_key(|v| (place.get(&v.node).copied(), v.port));
    found.dedup();
    found
}
