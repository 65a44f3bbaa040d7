//! A step of training as one graph, for engines that run elsewhere: the network, a loss, and the gradient of its mean over
//! the batch, in standard operators.
//!
//! ```text
//! the network's inputs, targets, parameters ─► the network's outputs, loss, NAME.grad for each parameter NAME
//! ```
//!
//! The parameters are constants that a caller may override, so that a run without them starts from the network's own
//! values. The batch stays open where the network's is. Everything else is as in the built-in trainer: same losses, same
//! gradient rules.

use crate::differentiate::builder::Builder;
use crate::differentiate::{DifferentiateError, Request, differentiate};
use crate::loss::{self, LossError, Term};
use crate::lower::{LowerError, Obstacle, RaiseError, lower, raise};
use crate::norms::TrainingForm;
use crate::task::TrainError;
use basisopt_ir::graph::ValueType;
use basisopt_ir::infer::{InferError, infer};
use basisopt_ir::op::{self, Op};
use basisopt_ir::tensor::TensorError;
use basisopt_ir::{DType, Dim, Graph, Rewrite, RewriteError, Tensor, ValueId};

/// The IR version that steps have at least: that of [`OPSET`](crate::lower::OPSET).
const IR_VERSION: i64 = 8;

/// Metadata that a step has, and other models have not: the name of its loss.
pub const LOSS_KEY: &str = "basisopt.step.loss";

/// What a step minimises.
#[derive(Clone, Debug, PartialEq)]
pub enum StepLoss {
    /// Cross-entropy with a class for each image: an input `labels`, 64-bit integers `[N]`. A label that is no class of
    /// the network makes the loss NaN.
    Labels {
        /// Name of the logits.
        logits: String,
    },
    /// Divergence from a teacher's softened classes, whose logits are an input `teacher`.
    Distill {
        /// Name of the logits.
        logits: String,
        /// Temperature.
        temperature: f32,
    },
    /// Mean squared difference of values from inputs `VALUE.target`; the mean over the values if there are several.
    Match {
        /// Names of the values.
        values: Vec<String>,
    },
}

/// What a step is to be of.
#[derive(Clone, Debug)]
pub struct StepRequest {
    /// The loss.
    pub loss: StepLoss,
    /// Names of the constants to train.
    pub parameters: Vec<String>,
    /// Names of the outputs of batch normalisations that are to use the statistics of the batch.
    pub norms: Vec<String>,
}

/// A step of training.
#[derive(Clone, Debug)]
pub struct Step {
    /// The graph. Inputs: the network's, the targets; parameters are constants that a caller may override. Outputs: the
    /// network's, the loss, the gradients, the statistics.
    pub graph: Graph,
    /// Names of the inputs that the loss has beside the network's.
    pub targets: Vec<String>,
    /// Name of the loss, a scalar: the mean over the batch.
    pub loss: String,
    /// Names of the parameters and of their gradients.
    pub parameters: Vec<(String, String)>,
    /// Names of constants with the mean or variance of a normalisation, and of the outputs that have that of the batch.
    pub statistics: Vec<(String, String)>,
    /// Parameters asked for that have no effect on the loss.
    pub unreached: Vec<String>,
}

/// Why there is no step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// A name that the network does not have.
    #[error("there is no value {0:?} in the network")]
    NoValue(String),
    /// No parameter has an effect on the loss.
    #[error("nothing is trainable: no parameter has an effect on the loss")]
    Nothing,
    /// A normalisation cannot use the statistics of the batch.
    #[error(transparent)]
    Norms(#[from] TrainError),
    /// No loss.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// No gradient.
    #[error(transparent)]
    Differentiate(#[from] DifferentiateError),
    /// The network is of an operator set that is too old.
    #[error(transparent)]
    Raise(#[from] RaiseError),
    /// Operators that ONNX does not have.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// Types contradict each other.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// A constant cannot be made.
    #[error("constant {name:?}: {source}")]
    Tensor {
        /// Its name.
        name: String,
        /// What about it.
        source: TensorError,
    },
    /// A constant cannot be replaced; a bug.
    #[error("constant {name:?}: {source}")]
    Rewrite {
        /// Its name.
        name: String,
        /// What about it.
        source: RewriteError,
    },
}

/// Makes the step of a network whose constants are folded and whose sizes, but for the batch, are known.
///
/// # Errors
/// [`StepError`], naming what is in the way.
pub fn step(network: &Graph, request: &StepRequest) -> Result<Step, StepError> {
    let mut graph = network.clone();
    write_out(&mut graph, &request.parameters)?;
    infer(&mut graph)?;
    raise(&mut graph)?;
    graph.ir_version = graph.ir_version.max(IR_VERSION);
    let form = TrainingForm::new(&graph, &request.norms)?;
    let mut graph = form.graph;
    let find =
        |graph: &Graph, name: &str| graph.find_value(name).ok_or_else(|| StepError::NoValue(name.to_owned()));
    let outputs = graph.outputs().to_vec();

    let terms = match &request.loss {
        StepLoss::Labels { logits } => vec![(Term::CrossEntropy { logits: find(&graph, logits)? }, 1.0)],
        StepLoss::Distill { logits, temperature } => {
            let logits = find(&graph, logits)?;
            vec![(Term::Distillation { logits, temperature: *temperature }, 1.0)]
        }
        StepLoss::Match { values } => {
            #[allow(clippy::cast_precision_loss, reason = "a count")]
            let weight = 1.0 / values.len().max(1) as f32;
            let term = |v: &String| Ok((Term::Match { value: find(&graph, v)?, scale: 1.0 }, weight));
            values.iter().map(term).collect::<Result<Vec<_>, StepError>>()?
        }
    };
    let n_inputs = graph.inputs().len();
    let attached = loss::attach(&mut graph, &terms)?;
    let per_image = attached.value;
    infer(&mut graph)?;
    let added: Vec<ValueId> = graph.inputs().iter().skip(n_inputs).map(|&n| ValueId::of(n)).collect();
    let mut b = Builder::new(&graph);
    b.at(per_image.node);
    let mut targets = Vec::with_capacity(added.len());
    let mut one_hot = None;
    for (i, &input) in added.iter().enumerate() {
        targets.push(match &request.loss {
            StepLoss::Labels { .. } => {
                let (name, value) = labels(&mut b, input)?;
                one_hot = Some(value);
                name
            }
            StepLoss::Distill { .. } => rename(&mut b.graph, input, "teacher"),
            StepLoss::Match { values } => {
                let value = values.get(i).map_or("", String::as_str);
                rename(&mut b.graph, input, &format!("{value}.target"))
            }
        });
    }
    infer(&mut b.graph)?;

    let parameters = request.parameters.iter().map(|p| find(&b.graph, p)).collect::<Result<Vec<_>, _>>()?;
    let derived = differentiate(&b.graph, &Request { targets: vec![per_image], parameters })?;
    if derived.parameters.is_empty() {
        return Err(StepError::Nothing);
    }
    let gradients: Vec<ValueId> = derived.graph.outputs().iter().skip(1).copied().collect();
    let mut b = Builder::new(&derived.graph);
    b.at(per_image.node);
    seed(&mut b, per_image);
    let loss = mean(&mut b, per_image, one_hot);
    let loss_name = rename(&mut b.graph, loss, "loss");
    let mut statistics = Vec::with_capacity(form.statistics.len());
    for (constant, &value) in form.constants.iter().zip(&form.statistics) {
        statistics.push((constant.clone(), rename(&mut b.graph, value, &format!("{constant}.batch"))));
    }
    b.graph.set_outputs(&[outputs, vec![loss], gradients, form.statistics].concat());
    let mut graph = lower(&b.graph)?;
    remove_unread(&mut graph);
    refuse_foreign(&graph)?;
    graph.annotate(LOSS_KEY, loss_name.clone());
    for name in &derived.parameters {
        let id = find(&graph, name)?.node;
        graph.unfreeze(id);
    }
    Ok(Step {
        graph,
        targets,
        loss: loss_name,
        parameters: derived.parameters.into_iter().zip(derived.gradients).collect(),
        statistics,
        unreached: derived.unreached,
    })
}

/// Parameters that are made by a node of a single element, written out: a caller can override constants only.
fn write_out(graph: &mut Graph, parameters: &[String]) -> Result<(), StepError> {
    for name in parameters {
        let Some(value) = graph.find_value(name) else { continue };
        if let (Op::ConstantOfShape(_), Some(tensor)) =
            (&graph.node(value.node).op, graph.constant_value(value))
        {
            let mut rewrite = Rewrite::at(value.node);
            let constant = rewrite.constant(name.clone(), tensor);
            rewrite.replace(value, constant);
            rewrite.apply(graph).map_err(|source| StepError::Rewrite { name: name.clone(), source })?;
        }
    }
    Ok(())
}

/// Gives a value this name, or one like it if it is taken.
fn rename(graph: &mut Graph, value: ValueId, name: &str) -> String {
    let name = graph.unused_value_name(name);
    graph.rename(value, name.clone());
    name
}

/// Lets an input with the class of each image stand for the one-hot input of a loss. Gives its name, and the value
/// that stands for the other.
fn labels(b: &mut Builder, one_hot: ValueId) -> Result<(String, ValueId), StepError> {
    let ty = b.graph.value(one_hot).ty.clone();
    let dims = ty.shape.unwrap_or_default();
    let n_classes = dims.get(1).and_then(Dim::known).unwrap_or(0);
    let batch = dims.first().cloned().unwrap_or(Dim::Unknown);
    let name = b.graph.unused_value_name("labels");
    let labels =
        b.graph.add_input(name.clone(), ValueType { dtype: Some(DType::I64), shape: Some(vec![batch]) });
    let column = b.ints(&[-1, 1]);
    let column = b.node(op::Reshape::default(), &[labels, column]);
    let classes = Tensor::from_i64s(vec![1, n_classes], &(0..n_classes as i64).collect::<Vec<_>>());
    let classes = classes.map_err(|source| StepError::Tensor { name: name.clone(), source })?;
    let classes_name = b.graph.unused_value_name("loss.classes");
    let classes = b.graph.add_constant(classes_name, classes);
    let is_class = b.node(op::Equal::default(), &[column, classes]);
    let to = ty.dtype.unwrap_or(DType::F32);
    let value = b.node(op::Cast { to, ..op::Cast::default() }, &[is_class]);
    b.graph.replace_uses(one_hot, value);
    b.graph.remove_node(one_hot.node);
    Ok((name, value))
}

/// Lets 1/N stand for the last input, the gradient of the loss of each image.
fn seed(b: &mut Builder, per_image: ValueId) {
    let Some(input) = b.graph.inputs().last().map(|&n| ValueId::of(n)) else { return };
    let dtype = b.graph.value(per_image).ty.dtype.unwrap_or(DType::F32);
    let shape = b.node(op::Shape::default(), &[per_image]);
    let n = b.node(op::Shape { start: 0, end: Some(1) }, &[per_image]);
    let n = b.node(op::Cast { to: dtype, ..op::Cast::default() }, &[n]);
    let share = b.node(op::Reciprocal {}, &[n]);
    let shares = b.node(op::Expand {}, &[share, shape]);
    b.graph.replace_uses(input, shares);
    b.graph.remove_node(input.node);
}

/// The mean over the batch. Where there are labels, each loss is divided by the number of classes that its label is:
/// one, or none, which makes it NaN.
fn mean(b: &mut Builder, per_image: ValueId, one_hot: Option<ValueId>) -> ValueId {
    let mut value = per_image;
    if let Some(one_hot) = one_hot {
        let n = b.sum(one_hot, &[1], true);
        value = b.div(value, n);
    }
    let axes = b.ints(&[0, 1]);
    b.node(op::ReduceMean { keepdims: 0, ..op::ReduceMean::default() }, &[value, axes])
}

/// Refuses calls of functions and operators that are defined elsewhere: a step is a model of its own, without the
/// definitions of the one that it came from. ONNX Runtime's operators are all of version 1, which is what is imported.
fn refuse_foreign(graph: &Graph) -> Result<(), StepError> {
    let mut nodes = Vec::new();
    for id in graph.topological() {
        let node = graph.node(id);
        let domain = node.op.domain();
        if !matches!(domain, "" | "com.microsoft") {
            nodes.push(Obstacle {
                node: node.label().to_owned(),
                op: node.op.op_type().to_owned(),
                reason: format!("of the operator set {domain:?}, which a step cannot bring along"),
            });
        }
    }
    if nodes.is_empty() { Ok(()) } else { Err(LowerError::Nodes(nodes).into()) }
}

/// Removes what no output needs, the inputs excepted.
fn remove_unread(graph: &mut Graph) {
    for id in graph.topological().into_iter().rev() {
        let n_outputs = graph.node(id).outputs.len();
        let read = (0..n_outputs).any(|p| graph.n_readers(ValueId { node: id, port: p as u32 }) > 0);
        if !read && graph.node(id).op != Op::Input {
            graph.remove_node(id);
        }
    }
}
