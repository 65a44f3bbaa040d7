//! What is trained, and how it goes back into the graph.
//!
//! A pair keeps what it computes when its basis is made orthonormal again: `w·F = U·S·Vᵀ` is decomposed anew.

use crate::driver::pass::PassError;
use crate::factor::{decompose, product};
use crate::layer::{FactorPair, LayerKind, transpose};
use basisopt_ir::op::Op;
use basisopt_ir::{Graph, NodeId, Rewrite, Tensor, ValueId};
use basisopt_train::stiefel::Frames;
use std::collections::{BTreeMap, BTreeSet};

/// Which constants are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trained {
    All,
    Both,
    Basis,
    Coefficients,
    /// Biases and normalisations only.
    Biases,
}

impl Trained {
    /// By the word that options use.
    pub fn parse(name: &str) -> Self {
        match name {
            "both" => Self::Both,
            "basis" => Self::Basis,
            "coefficients" => Self::Coefficients,
            "biases" => Self::Biases,
            _ => Self::All,
        }
    }
}

/// The pairs of factors in a graph, by their nodes.
pub(crate) fn pairs(graph: &Graph) -> Vec<(NodeId, NodeId)> {
    let mut found = Vec::new();
    let mut used = BTreeSet::new();
    for first in graph.topological() {
        for reader in graph.uses(ValueId::of(first)) {
            let is_new = !used.contains(&first) && !used.contains(&reader.node);
            if is_new && FactorPair::at(graph, first, reader.node).is_some_and(|p| is_closed(graph, &p)) {
                used.extend([first, reader.node]);
                found.push((first, reader.node));
            }
        }
    }
    found
}

/// Whether a pair may be decomposed anew: nothing else reads what is between the factors, or the factors, and the basis
/// has no more rows than the whole.
fn is_closed(graph: &Graph, pair: &FactorPair) -> bool {
    let slot = usize::from(pair.kind != LayerKind::MatMulLeft);
    let own = |node| graph.node_input(node, slot).is_some_and(|v| graph.n_readers(v) == 1);
    graph.n_readers(ValueId::of(pair.first)) == 1
        && own(pair.first)
        && own(pair.second)
        && pair.factors.iter().all(|f| f.rank <= pair.n_rows.min(pair.n_columns))
}

/// Slots that hold what can be trained.
fn slots(op: &Op) -> &'static [usize] {
    match op {
        Op::Conv(_) | Op::ConvTranspose(_) | Op::Gemm(_) => &[1, 2],
        Op::BatchNormalization(_) | Op::InstanceNormalization(_) => &[1, 2],
        Op::MatMul(_) | Op::Add(_) | Op::Mul(_) => &[0, 1],
        Op::PRelu(_) => &[1],
        _ => &[],
    }
}

/// Whether a slot that can be trained is a bias, or a normalisation's scale.
fn is_offset(op: &Op, slot: usize) -> bool {
    match op {
        Op::Conv(_) | Op::ConvTranspose(_) | Op::Gemm(_) => slot == 2,
        Op::BatchNormalization(_) | Op::InstanceNormalization(_) | Op::Add(_) => true,
        _ => false,
    }
}

/// The constant behind a slot, if it is of a float type and has a value.
fn constant(graph: &Graph, node: NodeId, slot: usize) -> Option<ValueId> {
    let value = graph.node_input(node, slot)?;
    let tensor = graph.constant_value(value)?;
    (tensor.dtype().is_float() && !tensor.is_empty() && !tensor.is_elided()).then_some(value)
}

/// Names of the constants to train.
///
/// # Errors
/// If there are none.
pub(crate) fn find(
    graph: &Graph,
    trained: Trained,
    pairs: &[(NodeId, NodeId)],
) -> Result<Vec<String>, PassError> {
    let mut found: Vec<ValueId> = Vec::new();
    let mut add = |value: Option<ValueId>| found.extend(value);
    if matches!(trained, Trained::All | Trained::Biases) {
        for id in graph.topological() {
            let op = &graph.node(id).op;
            // Before opset 11 a basis Gemm has a bias because it must, which is zero.
            let is_basis = pairs.iter().any(|(first, _)| *first == id);
            for &slot in slots(op)
                .iter()
                .filter(|&&slot| trained == Trained::All || is_offset(op, slot))
                .filter(|&&slot| !(is_basis && slot == 2))
            {
                // A scalar beside an activation is part of its definition (x·σ(1.702·x), x/255, …).
                let value = constant(graph, id, slot);
                let is_scalar = |v: ValueId| graph.constant_value(v).is_none_or(|t| t.len() == 1);
                let pointwise = matches!(graph.node(id).op, Op::Add(_) | Op::Mul(_));
                add(value.filter(|&v| !(pointwise && is_scalar(v))));
            }
        }
    } else {
        for &(first, second) in pairs {
            let Some(pair) = FactorPair::of_shape(graph, first, second) else { continue };
            let slot = usize::from(pair.kind != LayerKind::MatMulLeft);
            let basis_first = pair.kind != LayerKind::ConvTranspose;
            let (basis, coefficients) = if basis_first { (first, second) } else { (second, first) };
            if trained != Trained::Coefficients {
                add(constant(graph, basis, slot));
            }
            if trained != Trained::Basis {
                add(constant(graph, coefficients, slot));
                add(constant(graph, second, 2));
            }
        }
    }
    let mut seen = BTreeSet::new();
    // A constant that also stands where nothing can be trained, such as among statistics, is left alone.
    let only_trained = |v: &ValueId| {
        graph.uses(*v).iter().all(|u| slots(&graph.node(u.node).op).contains(&(u.slot as usize)))
    };
    found.retain(|v| only_trained(v) && seen.insert(*v));
    if found.is_empty() {
        let text = match trained {
            Trained::All => "nothing is trainable: there are no weights",
            Trained::Biases => "nothing is trainable: there are no biases",
            _ => "nothing is trainable: no layer was factored; run factorize-conv first, or say train=all",
        };
        return Err(PassError::Missing(text.to_owned()));
    }
    Ok(found.into_iter().map(|v| graph.value(v).name.clone()).collect())
}

/// Puts a constant in the place of another, for all that read it; it takes over the name.
pub(crate) fn replace(graph: &mut Graph, old: ValueId, new: Tensor) -> Result<(), PassError> {
    let name = graph.value(old).name.clone();
    let mut rewrite = Rewrite::at(old.node);
    let constant = rewrite.constant(name.clone(), new);
    rewrite.replace(old, constant);
    apply(graph, rewrite, &name)
}

/// Brings every pair back to an orthonormal basis: `w·F = U·S·Vᵀ` is decomposed again, so that it computes what it
/// did.
pub(crate) fn orthonormalise(graph: &mut Graph, pairs: &[(NodeId, NodeId)]) -> Result<(), PassError> {
    for &(first, second) in pairs {
        let Some(pair) = FactorPair::of_shape(graph, first, second) else { continue };
        let label = graph.node(first).label().to_owned();
        let (rows, columns) = (pair.n_rows, pair.n_columns);
        let svd = |_| PassError::Svd { node: label.clone(), n_rows: rows, n_columns: columns };
        let (mut basis, mut coefficients) = (Vec::new(), Vec::new());
        for factors in &pair.factors {
            let whole = product(factors, rows, columns);
            let new = decompose(&whole, rows, columns).map_err(svd)?.truncate(factors.rank);
            let (b, c) = match pair.kind {
                LayerKind::MatMul => {
                    (transpose(&new.basis, new.rank, columns), transpose(&new.coefficients, rows, new.rank))
                }
                LayerKind::ConvTranspose => (new.basis, transpose(&new.coefficients, rows, new.rank)),
                _ => (new.basis, new.coefficients),
            };
            basis.extend(b);
            coefficients.extend(c);
        }
        let slot = usize::from(pair.kind != LayerKind::MatMulLeft);
        let is_transposed = pair.kind == LayerKind::ConvTranspose;
        let (b_node, c_node) = if is_transposed { (second, first) } else { (first, second) };
        for (node, values) in [(b_node, basis), (c_node, coefficients)] {
            let Some(value) = graph.node_input(node, slot) else { continue };
            let Some(old) = graph.constant_value(value) else { continue };
            let new = Tensor::from_f64s(old.dtype(), old.shape().to_vec(), &values)
                .map_err(|source| PassError::Tensor { node: label.clone(), source })?;
            replace(graph, value, new)?;
        }
    }
    Ok(())
}

/// The bases of pairs as parameters that can be kept orthonormal.
pub(crate) fn frames(graph: &Graph, pairs: &[(NodeId, NodeId)]) -> Vec<Frames> {
    let frame = |&(first, second): &(NodeId, NodeId)| {
        let pair = FactorPair::of_shape(graph, first, second)?;
        let slot = usize::from(pair.kind != LayerKind::MatMulLeft);
        let node = if pair.kind == LayerKind::ConvTranspose { second } else { first };
        Some(Frames {
            parameter: graph.value(graph.node_input(node, slot)?).name.clone(),
            n_groups: pair.groups,
            rank: pair.factors.first()?.rank,
            n_columns: pair.n_columns,
            by_columns: pair.kind == LayerKind::MatMul,
        })
    };
    pairs.iter().filter_map(frame).collect()
}

/// Gives constants new values; those that the graph does not have are left out.
///
/// # Errors
/// If a constant is of a type that cannot be written.
pub(crate) fn write(graph: &mut Graph, values: &BTreeMap<String, Vec<f32>>) -> Result<usize, PassError> {
    let mut n = 0;
    for (name, values) in values {
        let Some(value) = graph.find_value(name) else { continue };
        let Some(old) = graph.constant_value(value) else { continue };
        let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
        let new = Tensor::from_f64s(old.dtype(), old.shape().to_vec(), &values)
            .map_err(|source| PassError::Tensor { node: name.clone(), source })?;
        replace(graph, value, new)?;
        n += 1;
    }
    Ok(n)
}

/// A rewrite that is applied at once; one that is impossible is a bug.
pub(crate) fn apply(graph: &mut Graph, rewrite: Rewrite, node: &str) -> Result<(), PassError> {
    rewrite.apply(graph).map_err(|source| PassError::Rewrite { node: node.to_owned(), source })
}
