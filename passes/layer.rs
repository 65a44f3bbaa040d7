//! Layers that can be factored: which nodes they are, and the matrices in their weights.
//!
//! A layer's weight is one matrix per group. Row `p` of the matrix of a convolution is its filter
//! `p`, flattened over input channels and kernel; for a transposed convolution rows are *input*
//! channels, because there the basis comes last; for a linear layer rows are output features.

use crate::constants::{constant, floats};
use crate::driver::remark::Refusal;
use crate::factor::{Factors, orthonormality_defect};
use basisopt_ir::op::AutoPad;
use basisopt_ir::tensor::TensorError;
use basisopt_ir::{DType, Graph, NodeId, Op, Tensor, ValueId};

/// What kind of node a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LayerKind {
    /// `Conv`: weight `[P, C/group, k…]`, basis first.
    Conv,
    /// `ConvTranspose`: weight `[C, P/group, k…]`, basis last.
    ConvTranspose,
    /// `Gemm` with a constant second matrix.
    Gemm {
        /// Whether the weight is stored `[out, in]`.
        transposed: bool,
    },
    /// `MatMul` with a constant second matrix, stored `[in, out]`.
    MatMul,
    /// `MatMul` with a constant first matrix, stored `[out, in]`.
    MatMulLeft,
}

/// A node whose weight is a matrix, or one matrix per group.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The node.
    pub node: NodeId,
    /// Its label.
    pub label: String,
    /// What it is.
    pub kind: LayerKind,
    /// The constant behind its weight slot.
    pub weight: ValueId,
    /// Number of groups, each with a matrix of its own.
    pub groups: usize,
    /// Rows of each matrix.
    pub n_rows: usize,
    /// Columns of each matrix.
    pub n_columns: usize,
    /// Kernel sizes; empty for a linear layer.
    pub kernel: Vec<usize>,
    /// Element type of the weight.
    pub dtype: DType,
}

impl Layer {
    /// The convolution at this node, or why it is not one that could be factored. `None` if the
    /// node is no convolution at all.
    ///
    /// # Errors
    /// A [`Refusal`] that says what is in the way.
    pub fn conv(graph: &Graph, id: NodeId) -> Result<Option<Self>, Refusal> {
        let Some(layer) = Self::any_conv(graph, id)? else { return Ok(None) };
        if layer.groups > 1 && layer.n_rows == 1 {
            return Err(Refusal::new("depthwise", "each group has a single filter, which is its own basis"));
        }
        if is_factor(graph, &layer) {
            return Err(Refusal::new("already-factored", "it is one of a pair of factors already"));
        }
        Ok(Some(layer))
    }

    /// As [`Layer::conv`], whether it could be factored or not.
    fn any_conv(graph: &Graph, id: NodeId) -> Result<Option<Self>, Refusal> {
        let (kind, group) = match &graph.node(id).op {
            Op::Conv(op) => (LayerKind::Conv, op.group),
            Op::ConvTranspose(op) => (LayerKind::ConvTranspose, op.group),
            _ => return Ok(None),
        };
        let (weight, tensor) = constant_weight(graph, id, 1)?;
        let shape = tensor.shape();
        let groups = usize::try_from(group).ok().filter(|&g| g > 0);
        let (Some(groups), [first, second, kernel @ ..]) = (groups, shape) else {
            return Err(Refusal::new(
                "malformed",
                format!("a weight of shape {shape:?} in {group} groups makes no sense"),
            ));
        };
        if !first.is_multiple_of(groups) || kernel.is_empty() {
            let message = format!("a weight of shape {shape:?} cannot be cut into {groups} groups");
            return Err(Refusal::new("malformed", message));
        }
        if shape.contains(&0) {
            return Err(Refusal::new("empty", "the weight has no elements"));
        }
        let (n_rows, n_columns) = (first / groups, second * kernel.iter().product::<usize>());
        Ok(Some(Self {
            node: id,
            label: graph.node(id).label().to_owned(),
            kind,
            weight,
            groups,
            n_rows,
            n_columns,
            kernel: kernel.to_vec(),
            dtype: tensor.dtype(),
        }))
    }

    /// The linear layer at this node, as [`Layer::conv`].
    ///
    /// # Errors
    /// A [`Refusal`] that says what is in the way.
    pub fn linear(graph: &Graph, id: NodeId) -> Result<Option<Self>, Refusal> {
        match Self::any_linear(graph, id)? {
            Some(layer) if is_factor(graph, &layer) => {
                Err(Refusal::new("already-factored", "it is one of a pair of factors already"))
            }
            layer => Ok(layer),
        }
    }

    /// The layer at this node, whether it could be factored or not.
    pub(crate) fn any(graph: &Graph, id: NodeId) -> Option<Self> {
        let conv = Self::any_conv(graph, id).ok()?;
        conv.or_else(|| Self::any_linear(graph, id).ok()?)
    }

    /// The same layer where its node is another one, in a part of the graph.
    pub(crate) fn at(&self, graph: &Graph, node: NodeId) -> Option<Self> {
        let slot = usize::from(self.kind != LayerKind::MatMulLeft);
        Some(Self { node, weight: graph.node_input(node, slot)?, ..self.clone() })
    }

    /// As [`Layer::linear`], whether it could be factored or not.
    fn any_linear(graph: &Graph, id: NodeId) -> Result<Option<Self>, Refusal> {
        let is_constant = |slot| graph.constant_input(id, slot).is_some();
        let (kind, slot) = match &graph.node(id).op {
            Op::Gemm(op) => (LayerKind::Gemm { transposed: op.transB != 0 }, 1),
            Op::MatMul(_) if is_constant(1) || !is_constant(0) => (LayerKind::MatMul, 1),
            Op::MatMul(_) => (LayerKind::MatMulLeft, 0),
            _ => return Ok(None),
        };
        let (weight, tensor) = constant_weight(graph, id, slot)?;
        let &[a, b] = tensor.shape() else {
            let message =
                format!("its weight has shape {:?}; only a plain matrix has one basis", tensor.shape());
            return Err(Refusal::new("not-a-matrix", message));
        };
        let rows_first = matches!(kind, LayerKind::Gemm { transposed: true } | LayerKind::MatMulLeft);
        let (n_rows, n_columns) = if rows_first { (a, b) } else { (b, a) };
        if n_rows.min(n_columns) == 0 {
            return Err(Refusal::new("empty", "the weight has no elements"));
        }
        Ok(Some(Self {
            node: id,
            label: graph.node(id).label().to_owned(),
            kind,
            weight,
            groups: 1,
            n_rows,
            n_columns,
            kernel: vec![],
            dtype: tensor.dtype(),
        }))
    }

    /// The slot of the data, beside that of the weight.
    pub(crate) fn data_slot(&self) -> usize {
        usize::from(self.kind == LayerKind::MatMulLeft)
    }

    /// The largest rank there is: that of an exact factorisation.
    pub fn full_rank(&self) -> usize {
        self.n_rows.min(self.n_columns)
    }

    /// The weight as one row-major f64 matrix per group.
    ///
    /// # Errors
    /// [`TensorError`] if the values cannot be read.
    pub fn matrices(&self, weight: &Tensor) -> Result<Vec<Vec<f64>>, TensorError> {
        let values = weight.to_f64s()?;
        let size = self.n_rows * self.n_columns;
        if matches!(self.kind, LayerKind::Gemm { transposed: false } | LayerKind::MatMul) {
            return Ok(vec![transpose(&values, self.n_columns, self.n_rows)]);
        }
        Ok(values.chunks_exact(size).map(<[f64]>::to_vec).collect())
    }
}

/// A row-major matrix, transposed.
pub fn transpose(values: &[f64], n_rows: usize, n_columns: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(values.len());
    for j in 0..n_columns {
        out.extend((0..n_rows).map(|i| values[i * n_columns + j]));
    }
    out
}

/// The weight behind a slot, if it is a readable constant of a float type.
fn constant_weight(graph: &Graph, id: NodeId, slot: usize) -> Result<(ValueId, Tensor), Refusal> {
    let (value, tensor) = constant(graph, id, slot, "weight")?;
    floats(&tensor, "weight")?;
    Ok((value, tensor))
}

/// Whether a layer is one of a pair that a factorising pass made: one of the two has a basis with
/// orthonormal rows. Recognised by structure, so that it survives every file format; nothing is
/// lost where the shoe fits by accident, since a matrix with orthonormal rows has a flat spectrum.
fn is_factor(graph: &Graph, layer: &Layer) -> bool {
    let data_slot = usize::from(layer.kind == LayerKind::MatMulLeft);
    let before = graph.node_input(layer.node, data_slot).map(|v| (v.node, layer.node));
    let after = graph.uses(ValueId::of(layer.node)).into_iter().map(|u| (layer.node, u.node));
    before.into_iter().chain(after).any(|(first, second)| FactorPair::at(graph, first, second).is_some())
}

/// Two nodes in a row that are a basis and its coefficients.
#[derive(Clone, Debug, PartialEq)]
pub struct FactorPair {
    /// The node that runs first.
    pub first: NodeId,
    /// The node that runs second.
    pub second: NodeId,
    /// What the two are together.
    pub kind: LayerKind,
    /// Number of groups.
    pub groups: usize,
    /// Rows of each group's matrix.
    pub n_rows: usize,
    /// Columns of each group's matrix.
    pub n_columns: usize,
    /// The factors of each group.
    pub factors: Vec<Factors>,
}

/// How far from orthonormal the rows of a basis may be after rounding to its type.
fn defect_allowed(dtype: DType) -> f64 {
    match dtype {
        DType::F64 | DType::F32 => 1e-4,
        DType::F16 => 1e-2,
        _ => 5e-2,
    }
}

impl FactorPair {
    /// The pair at these two nodes, the second of which reads the first. `None` unless the one
    /// that should be the basis has orthonormal rows.
    pub fn at(graph: &Graph, first: NodeId, second: NodeId) -> Option<Self> {
        let pair = Self::of_shape(graph, first, second)?;
        let basis = if pair.kind == LayerKind::ConvTranspose { second } else { first };
        let slot = if pair.kind == LayerKind::MatMulLeft { 0 } else { 1 };
        let allowed = defect_allowed(graph.constant_input(basis, slot)?.dtype());
        let orthonormal = pair.factors.iter().all(|f| {
            f.rank <= pair.n_columns && orthonormality_defect(&f.basis, f.rank, pair.n_columns) <= allowed
        });
        orthonormal.then_some(pair)
    }

    /// The two nodes as a pair, whatever their weights.
    pub(crate) fn of_shape(graph: &Graph, first: NodeId, second: NodeId) -> Option<Self> {
        Self::conv(graph, first, second).or_else(|| Self::linear(graph, first, second))
    }

    fn conv(graph: &Graph, first: NodeId, second: NodeId) -> Option<Self> {
        let (a, b) = (graph.constant_input(first, 1)?, graph.constant_input(second, 1)?);
        let Op::Conv(op_a) = &graph.node(first).op else { return None };
        let (kind, group_b) = match &graph.node(second).op {
            Op::Conv(op) if is_pointwise(op, b) => (LayerKind::Conv, op.group),
            Op::ConvTranspose(op) if is_pointwise(op_a, a) => (LayerKind::ConvTranspose, op.group),
            _ => return None,
        };
        let has_bias = graph.node_input(first, 2).is_some();
        let groups = usize::try_from(op_a.group).ok().filter(|&g| g > 0)?;
        if has_bias || op_a.group != group_b || graph.node_input(second, 0) != Some(ValueId::of(first)) {
            return None;
        }
        let ([a0, a_rest @ ..], [b0, b_rest @ ..]) = (a.shape(), b.shape()) else { return None };
        let (a_columns, b_columns) = (a_rest.iter().product::<usize>(), b_rest.iter().product::<usize>());
        let (a_values, b_values) = (a.to_f64s().ok()?, b.to_f64s().ok()?);
        let rank = if kind == LayerKind::Conv { a0 / groups } else { b0 / groups };
        let n_columns = if kind == LayerKind::Conv { a_columns } else { b_columns };
        let n_rows = if kind == LayerKind::Conv { b0 / groups } else { a_columns };
        if rank * n_rows * n_columns == 0
            || rank * groups * n_rows != if kind == LayerKind::Conv { b.len() } else { a.len() }
        {
            return None;
        }
        let factors = (0..groups).map(|g| {
            let basis = if kind == LayerKind::Conv { &a_values } else { &b_values };
            let basis = basis.get(g * rank * n_columns..(g + 1) * rank * n_columns)?.to_vec();
            let other = if kind == LayerKind::Conv { &b_values } else { &a_values };
            let other = other.get(g * rank * n_rows..(g + 1) * rank * n_rows)?;
            let coefficients =
                if kind == LayerKind::Conv { other.to_vec() } else { transpose(other, rank, n_rows) };
            Some(Factors { coefficients, basis, rank })
        });
        Some(Self {
            first,
            second,
            kind,
            groups,
            n_rows,
            n_columns,
            factors: factors.collect::<Option<_>>()?,
        })
    }

    fn linear(graph: &Graph, first: NodeId, second: NodeId) -> Option<Self> {
        let (op_a, op_b) = (&graph.node(first).op, &graph.node(second).op);
        let (kind, data, slot) = match (op_a, op_b) {
            (Op::Gemm(a), Op::Gemm(b)) => {
                let zero = |t: &Tensor| t.norm() == Some(0.0);
                let no_bias =
                    graph.node_input(first, 2).is_none() || graph.constant_input(first, 2).is_some_and(zero);
                let plain = a.alpha == 1.0 && no_bias && b.transA == 0;
                (plain && a.transB != 0 && b.transB != 0).then_some((
                    LayerKind::Gemm { transposed: true },
                    0,
                    1,
                ))?
            }
            (Op::MatMul(_), Op::MatMul(_)) if graph.constant_input(first, 1).is_some() => {
                (LayerKind::MatMul, 0, 1)
            }
            (Op::MatMul(_), Op::MatMul(_)) => (LayerKind::MatMulLeft, 1, 0),
            _ => return None,
        };
        if graph.node_input(second, data) != Some(ValueId::of(first)) {
            return None;
        }
        let (a, b) = (graph.constant_input(first, slot)?, graph.constant_input(second, slot)?);
        let (&[a0, a1], &[b0, b1]) = (a.shape(), b.shape()) else { return None };
        let (a_values, b_values) = (a.to_f64s().ok()?, b.to_f64s().ok()?);
        // Bring both to rows-first: basis [rank, in], coefficients [out, rank].
        let stored_rows_first = kind != LayerKind::MatMul;
        let (basis, rank, n_columns) =
            if stored_rows_first { (a_values, a0, a1) } else { (transpose(&a_values, a0, a1), a1, a0) };
        let (coefficients, n_rows, inner) =
            if stored_rows_first { (b_values, b0, b1) } else { (transpose(&b_values, b0, b1), b1, b0) };
        let factors = vec![Factors { coefficients, basis, rank }];
        (inner == rank && rank > 0).then_some(Self {
            first,
            second,
            kind,
            groups: 1,
            n_rows,
            n_columns,
            factors,
        })
    }
}

/// A 1×1 convolution that looks at every position once.
fn is_pointwise(op: &basisopt_ir::op::Conv, weight: &Tensor) -> bool {
    let ones = |v: &[i64]| v.iter().all(|&x| x == 1);
    weight.shape().len() > 2
        && weight.shape()[2..].iter().all(|&k| k == 1)
        && ones(&op.strides)
        && (op.auto_pad != AutoPad::NotSet || op.pads.iter().all(|&p| p == 0))
}
