//! Matrix products, and [`linear_geometry`]: all numbers of one in one place.

use super::elementwise::broadcast;
use super::rules::{At, Fail, Types, one};
use super::{merge_dims, shape_words};
use crate::dim::{Dim, static_shape};
use crate::graph::{Graph, NodeId};
use crate::op::{Gemm, Op};
use crate::tensor::DType;

/// The numbers of a `Gemm` or `MatMul` whose second operand is a constant matrix.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LinearGeometry {
    /// Input features K.
    pub n_in: usize,
    /// Output features N.
    pub n_out: usize,
    /// Whether the weight is stored as `[N, K]` (`transB`) and not as `[K, N]`.
    pub transposed: bool,
    /// Element type of the weight.
    pub dtype: DType,
    /// Whether a third input is added.
    pub has_bias: bool,
    /// Rows of the first operand per image: the product of its dimensions between the first, which
    /// is the batch, and the last. 1 for a matrix.
    pub rows: Dim,
    /// Number of elements of weight and bias.
    pub n_params: u64,
    /// Multiply-adds per image: rows · K · N. `None` if the rows are not known.
    pub macs: Option<u64>,
}

/// The geometry of a linear layer, from the types noted in the graph. `None` for other nodes and
/// where the weight is not a constant matrix.
pub fn linear_geometry(graph: &Graph, node: NodeId) -> Option<LinearGeometry> {
    let transposed = match &graph.get(node)?.op {
        Op::Gemm(op) => op.transB != 0,
        Op::MatMul(_) => false,
        _ => return None,
    };
    let weight = graph.constant_value(graph.node_input(node, 1)?)?;
    let [rows, columns] = *weight.shape() else { return None };
    let (n_in, n_out) = if transposed { (columns, rows) } else { (rows, columns) };
    let x = &graph.value(graph.node_input(node, 0)?).ty;
    let rows = match x.shape.as_deref() {
        None => Dim::Unknown,
        Some([] | [_] | [_, _]) => Dim::Known(1),
        Some([_, middle @ .., _]) => middle.iter().fold(Dim::Known(1), |p, d| p.mul(d)),
    };
    let bias = graph.node_input(node, 2);
    let n_bias = match bias {
        None => 0,
        Some(b) => {
            let shape = static_shape(graph.value(b).ty.shape.as_deref()?)?;
            u64::try_from(crate::tensor::n_elements(&shape)?).ok()?
        }
    };
    let n_weights = u64::try_from(weight.len()).ok()?;
    let macs = rows.known().and_then(|r| u64::try_from(r).ok()?.checked_mul(n_weights));
    Some(LinearGeometry {
        n_in,
        n_out,
        transposed,
        dtype: weight.dtype(),
        has_bias: bias.is_some(),
        rows,
        n_params: n_weights.checked_add(n_bias)?,
        macs,
    })
}

pub(super) fn gemm(at: &At<'_>, op: &Gemm) -> Types {
    let dtype = at.same_dtype(0..3)?;
    let matrix = |slot: usize, transposed: bool| -> Result<[Dim; 2], Fail> {
        match at.shape(slot) {
            None => Ok([Dim::Unknown, Dim::Unknown]),
            Some([rows, columns]) if transposed => Ok([columns.clone(), rows.clone()]),
            Some([rows, columns]) => Ok([rows.clone(), columns.clone()]),
            Some(other) => {
                Err(Fail::shape(format!("input {slot} must be a matrix, found {}", shape_words(other))))
            }
        }
    };
    let [m, k] = matrix(0, op.transA != 0)?;
    let [k_of_b, n] = matrix(1, op.transB != 0)?;
    if k.differs(&k_of_b) {
        return Err(inner(&k, &k_of_b));
    }
    let out = vec![m, n];
    if let Some(c) = at.shape(2) {
        let fits = broadcast(&out, c).is_some_and(|both| {
            both.len() == 2 && both.iter().zip(&out).all(|(both, out)| !both.differs(out))
        });
        if !fits {
            let (c, out) = (shape_words(c), shape_words(&out));
            return Err(Fail::shape(format!(
                "input 2 of shape {c} cannot be broadcast to the product {out}"
            )));
        }
    }
    one(dtype, Some(out))
}

fn inner(a: &Dim, b: &Dim) -> Fail {
    Fail::shape(format!("the inner dimensions must be equal, found {a} and {b}"))
}

pub(super) fn matmul(at: &At<'_>) -> Types {
    let dtype = at.same_dtype(0..2)?;
    let (Some(a), Some(b)) = (at.shape(0), at.shape(1)) else { return one(dtype, None) };
    let (Some((k_of_a, a_rest)), Some((last_b, b_rest))) = (a.split_last(), b.split_last()) else {
        return Err(Fail::shape("a scalar has no matrix product"));
    };
    // A vector counts as one row on the left and as one column on the right.
    let (rows, a_batch) = a_rest.split_last().map_or((None, a_rest), |(m, batch)| (Some(m), batch));
    let (k_of_b, columns, b_batch) = match b_rest.split_last() {
        Some((k, batch)) => (k, Some(last_b), batch),
        None => (last_b, None, b_rest),
    };
    if merge_dims(k_of_a, k_of_b).is_none() {
        return Err(inner(k_of_a, k_of_b));
    }
    let mut out = broadcast(a_batch, b_batch).ok_or_else(|| {
        let (a, b) = (shape_words(a), shape_words(b));
        Fail::shape(format!("the batch dimensions of {a} and {b} cannot be broadcast to one shape"))
    })?;
    out.extend(rows.cloned());
    out.extend(columns.cloned());
    one(dtype, Some(out))
}
