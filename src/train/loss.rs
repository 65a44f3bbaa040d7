//! Losses, as nodes of the graph: what is minimised is differentiated like everything else.
//!
//! With z the network's logits, t the original's, c the label and τ the temperature, the loss of one image is the
//! weighted sum of
//!
//! ```text
//! cross-entropy   −log softmax(z)[c]
//! distillation    τ² Σ_k p[k] · (log p[k] − log softmax(z/τ)[k]),  p = softmax(t/τ)   (Hinton, Vinyals, Dean 2015)
//! match           mean((v − v₀)²) / scale                              of any value v with the original's v₀
//! orthogonality   (1 − α)/(Q(Q−1)) Σ_{i≠j} cos²(f_i, f_j), α = ½       of the Q filters of a basis
//! ```
//!
//! The last one is the paper's `α/Q Σ (1 − G_ii²) + 2(1 − α)/(Q(Q−1)) Σ_{i<j} G_ij²` with G the cosines between
//! filters, of which the first sum is zero.

use crate::stiefel::Frames;
use basisopt_ir::graph::{Node, Value, ValueType};
use basisopt_ir::op::{self, Op};
use basisopt_ir::{DType, Dim, Graph, Tensor, ValueId};

/// One term of a loss.
#[derive(Clone, Debug, PartialEq)]
pub enum Term {
    /// Cross-entropy with a label, which is given as a one-hot input `[N, K]`.
    CrossEntropy {
        /// The logits, `[N, K]` or `[N, K, 1, 1]`.
        logits: ValueId,
    },
    /// Divergence from the original network's softened classes; its logits are an input.
    Distillation {
        /// The logits.
        logits: ValueId,
        /// τ: large values look at the order of unlikely classes, too.
        temperature: f32,
    },
    /// Mean squared difference from the original network's value, which is an input.
    Match {
        /// The value.
        value: ValueId,
        /// What the square is measured against: the variance of the value.
        scale: f32,
    },
    /// How far the filters of a basis are from orthogonal, a mean over groups; no matter what the images are.
    Orthogonality {
        /// The basis.
        basis: ValueId,
        /// How it lies in memory.
        frames: Frames,
    },
}

/// What an input that a loss adds to a graph is to be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The label, one-hot.
    Label {
        /// Number of classes.
        n_classes: usize,
    },
    /// A value of the original network, by its name.
    Original(String),
}

/// A loss in a graph.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The loss of each image, `[N, 1]`.
    pub value: ValueId,
    /// The inputs that were added, in order, behind those that were there.
    pub targets: Vec<Target>,
}

/// Why a loss cannot be attached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LossError {
    /// There is nothing to minimise.
    #[error("the loss has no terms")]
    Empty,
    /// A value has been taken out of the batch, as by a `Gather` of one image.
    #[error(
        "the first axis of {0:?} is not the batch, so it cannot be compared image by image; match a value before it"
    )]
    Batch(String),
    /// A term needs sizes that are not known.
    #[error("the shape of {0:?} is not known; fix the sizes of the inputs")]
    Shape(String),
}

struct Builder<'g> {
    graph: &'g mut Graph,
    targets: Vec<Target>,
    n_nodes: usize,
    /// What the network computes in.
    dtype: DType,
}

impl Builder<'_> {
    fn node(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
        let name = self.fresh("loss.");
        let inputs: Vec<_> = inputs.iter().map(|&v| Some(v)).collect();
        let node = Node::new(&name, op.into(), vec![Value { name: name.clone(), ..Value::default() }]);
        ValueId::of(self.graph.add_node(node, &inputs))
    }

    fn fresh(&mut self, prefix: &str) -> String {
        loop {
            let name = format!("{prefix}{}", self.n_nodes);
            self.n_nodes += 1;
            if !self.graph.has_value_named(&name) {
                return name;
            }
        }
    }

    fn number(&mut self, value: f32, dtype: DType) -> ValueId {
        let name = self.fresh("loss.c");
        let value = f64::from(value);
        // A scalar always fits its shape.
        let tensor =
            Tensor::full(dtype, vec![], value).unwrap_or_else(|_| Tensor::elided(dtype, vec![], value));
        self.graph.add_constant(name, tensor)
    }

    fn scaled(&mut self, value: ValueId, by: f32) -> ValueId {
        let by = self.number(by, self.dtype);
        self.node(op::Mul::default(), &[value, by])
    }

    /// An input for something known of an image.
    fn target(&mut self, prefix: &str, like: ValueType, target: Target) -> ValueId {
        let name = self.fresh(prefix);
        self.targets.push(target);
        self.graph.add_input(name, like)
    }

    /// Sum over the classes.
    fn sum(&mut self, value: ValueId) -> ValueId {
        self.sum_over(value, &[1], true)
    }

    fn sum_over(&mut self, value: ValueId, axes: &[i64], keepdims: bool) -> ValueId {
        let keepdims = i64::from(keepdims);
        if self.graph.opset < 13 {
            let op = op::ReduceSum { axes: Some(axes.to_vec()), keepdims, ..op::ReduceSum::default() };
            return self.node(op, &[value]);
        }
        let axes = self.ints("loss.axes", axes);
        self.node(op::ReduceSum { keepdims, ..op::ReduceSum::default() }, &[value, axes])
    }

    fn ints(&mut self, name: &str, values: &[i64]) -> ValueId {
        let (name, n) = (self.fresh(name), values.len());
        let tensor =
            Tensor::from_i64s(vec![n], values).unwrap_or_else(|_| Tensor::elided(DType::I64, vec![n], 0.0));
        self.graph.add_constant(name, tensor)
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_wrap, reason = "counts")]
    fn orthogonality(&mut self, basis: ValueId, frames: &Frames) -> ValueId {
        let (n, rank) = (frames.n_groups, frames.rank);
        let shape = self.ints("loss.shape", &[n as i64, rank as i64, frames.n_columns as i64]);
        let transposed = |perm: &[i64]| op::Transpose { perm: Some(perm.to_vec()) };
        let basis = if frames.by_columns { self.node(transposed(&[1, 0]), &[basis]) } else { basis };
        let rows = self.node(op::Reshape::default(), &[basis, shape]);
        let squares = self.node(op::Mul::default(), &[rows, rows]);
        let norms = self.sum_over(squares, &[2], true);
        let norms = self.node(op::Sqrt {}, &[norms]);
        let unit = self.node(op::Div::default(), &[rows, norms]);
        let columns = self.node(transposed(&[0, 2, 1]), &[unit]);
        let cosines = self.node(op::MatMul {}, &[unit, columns]);
        let squares = self.node(op::Mul::default(), &[cosines, cosines]);
        let total = self.sum_over(squares, &[0, 1, 2], false);
        let on_diagonal = self.number((n * rank) as f32, self.dtype);
        let rest = self.node(op::Sub::default(), &[total, on_diagonal]);
        self.scaled(rest, 0.5 / (n * rank * (rank - 1).max(1)) as f32)
    }

    /// `−Σ_k p[k] · log softmax(z)[k]`.
    fn cross_entropy(&mut self, p: ValueId, z: ValueId) -> ValueId {
        let log = self.node(op::LogSoftmax { axis: Some(1) }, &[z]);
        let product = self.node(op::Mul::default(), &[p, log]);
        let sum = self.sum(product);
        self.node(op::Neg {}, &[sum])
    }

    fn term(&mut self, term: &Term) -> Result<ValueId, LossError> {
        match *term {
            Term::CrossEntropy { logits } => {
                let n_classes = self.per_image(logits)?;
                let z = self.node(op::Flatten::default(), &[logits]);
                let ty = self.matrix(n_classes, logits);
                let label = self.target("loss.label", ty, Target::Label { n_classes });
                Ok(self.cross_entropy(label, z))
            }
            Term::Distillation { logits, temperature } => {
                let original = self.original(logits);
                let z = self.node(op::Flatten::default(), &[logits]);
                let t = self.node(op::Flatten::default(), &[original]);
                let (z, t) = (self.scaled(z, 1.0 / temperature), self.scaled(t, 1.0 / temperature));
                // The entropy of p is no business of the network's; without it the loss of a perfect copy is zero.
                let log_p = self.node(op::LogSoftmax { axis: Some(1) }, &[t]);
                let log_q = self.node(op::LogSoftmax { axis: Some(1) }, &[z]);
                let p = self.node(op::Exp {}, &[log_p]);
                let difference = self.node(op::Sub::default(), &[log_p, log_q]);
                let product = self.node(op::Mul::default(), &[p, difference]);
                let sum = self.sum(product);
                Ok(self.scaled(sum, temperature * temperature))
            }
            Term::Match { value, scale } => {
                let n = self.per_image(value)?;
                let original = self.original(value);
                let difference = self.node(op::Sub::default(), &[value, original]);
                let square = self.node(op::Mul::default(), &[difference, difference]);
                let flat = self.node(op::Flatten::default(), &[square]);
                let sum = self.sum(flat);
                #[allow(clippy::cast_precision_loss, reason = "a count")]
                Ok(self.scaled(sum, 1.0 / (scale * n as f32)))
            }
            Term::Orthogonality { basis, ref frames } => Ok(self.orthogonality(basis, frames)),
        }
    }

    fn original(&mut self, value: ValueId) -> ValueId {
        let (name, ty) = (self.graph.value(value).name.clone(), self.graph.value(value).ty.clone());
        self.target("loss.original", ty, Target::Original(name))
    }

    fn matrix(&self, n_classes: usize, like: ValueId) -> ValueType {
        let ty = &self.graph.value(like).ty;
        let batch = ty.shape.as_ref().and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown);
        ValueType { dtype: ty.dtype, shape: Some(vec![batch, Dim::Known(n_classes)]) }
    }

    /// Elements per image.
    fn per_image(&self, value: ValueId) -> Result<usize, LossError> {
        let v = self.graph.value(value);
        if !has_batch(self.graph, value) {
            return Err(LossError::Batch(v.name.clone()));
        }
        let dims = v.ty.shape.as_ref().and_then(|s| s.get(1..));
        let sizes = dims.and_then(|dims| dims.iter().map(Dim::known).product::<Option<usize>>());
        sizes.filter(|&n| n > 0).ok_or_else(|| LossError::Shape(v.name.clone()))
    }
}

/// Whether the first axis of a value is, as far as sizes are known, that of the graph's inputs: the batch.
pub fn has_batch(graph: &Graph, value: ValueId) -> bool {
    let first = |v: ValueId| graph.value(v).ty.shape.as_ref().and_then(|s| s.first()).and_then(Dim::known);
    let batch = graph.inputs().first().and_then(|&id| first(ValueId::of(id)));
    batch.zip(first(value)).is_none_or(|(batch, own)| batch == own)
}

/// Adds a loss to a graph whose types are inferred: the weighted sum of the terms.
///
/// # Errors
/// If there are no terms, or one of them is of a value of unknown size.
pub fn attach(graph: &mut Graph, terms: &[(Term, f32)]) -> Result<Loss, LossError> {
    let compared = terms.iter().find_map(|(term, _)| match term {
        Term::CrossEntropy { logits: v }
        | Term::Distillation { logits: v, .. }
        | Term::Match { value: v, .. } => Some(*v),
        Term::Orthogonality { .. } => None,
    });
    let dtype = compared.and_then(|v| graph.value(v).ty.dtype).unwrap_or(DType::F32);
    let mut builder = Builder { graph, targets: vec![], n_nodes: 0, dtype };
    let mut total: Option<ValueId> = None;
    for (term, weight) in terms {
        let value = builder.term(term)?;
        let value = builder.scaled(value, *weight);
        total = Some(match total {
            None => value,
            Some(sum) => builder.node(op::Add::default(), &[sum, value]),
        });
    }
    let targets = builder.targets;
    Ok(Loss { value: total.ok_or(LossError::Empty)?, targets })
}
