//! What the passes that train have in common: the network and the original made ready, what is trained, and how far
//! the two are apart.

pub(crate) mod parameters;

use crate::cost;
use crate::driver::manager::{Manager, NoObserver};
use crate::driver::options::{OptionKind, OptionSpec, Options};
use crate::driver::pass::{PassContext, PassError};
use crate::driver::pipeline::Pipeline;
use crate::driver::registry::Registry;
use basisopt_ir::op::Op;
use basisopt_ir::{DType, Graph, ValueId, infer};
use basisopt_train::examples::{Examples, ImageShape};
use basisopt_train::statistics;
use basisopt_train::task::TrainError;
use basisopt_train::watch::FitError;

/// The option of passes that are a rung of a ladder.
pub(crate) const GOAL: OptionSpec = OptionSpec {
    name: "goal",
    kind: OptionKind::Float { min: 0.0, max: 100.0 },
    default: "train in any case",
    help: "do nothing if no more than so many points of accuracy (agreement without labels) are lost on the validation images",
};

/// What [`GOAL`] says.
pub(crate) fn goal(options: &Options) -> Option<f64> {
    options.float(GOAL.name)
}

/// One image at a time, of the size of the examples: the trainer runs many of them side by side.
pub(crate) fn pin(graph: &mut Graph, image: ImageShape) -> Result<(), PassError> {
    let sizes = match image.channels_last {
        true => [image.height, image.width, image.n_channels],
        false => [image.n_channels, image.height, image.width],
    };
    let input = graph.inputs().first().map(|&n| graph.value(ValueId::of(n)).name.clone()).unwrap_or_default();
    let dims: Vec<(String, usize)> =
        sizes.iter().enumerate().map(|(i, &size)| (format!("{input}:{}", i + 1), size)).collect();
    cost::pin(graph, &dims);
    infer::infer(graph).map_err(|e| PassError::Other(e.to_string()))?;
    Ok(())
}

/// The original, made ready to be imitated: what can be folded is.
pub(crate) fn folded(original: &Graph, image: ImageShape) -> Result<Graph, PassError> {
    let mut graph = original.clone();
    let words = |e: String| PassError::Other(format!("the original network: {e}"));
    let pipeline =
        Pipeline::parse("freeze-weights,@fold", &Registry::builtin()).map_err(|e| words(e.to_string()))?;
    let mut manager = Manager { is_checked: false, ..Manager::default() };
    manager.run(&mut graph, &pipeline, &mut NoObserver).map_err(|e| words(e.to_string()))?;
    pin(&mut graph, image)?;
    Ok(graph)
}

/// Number of classes that a network tells apart, if an output looks like class scores.
pub fn n_classes(graph: &Graph) -> Option<usize> {
    let mut graph = graph.clone();
    cost::pin(&mut graph, &[]);
    infer::infer(&mut graph).ok()?;
    graph.value(logits(&graph)?).ty.static_shape()?.get(1).copied()
}

/// Whether two values of the same name are the same thing: not one before a normalisation and the other, folded, after.
pub(crate) fn corresponds(network: &Graph, value: ValueId, original: &Graph) -> bool {
    let is_normalised = |graph: &Graph, value: ValueId| {
        let uses = graph.uses(value);
        uses.iter().any(|u| u.slot == 0 && matches!(graph.node(u.node).op, Op::BatchNormalization(_)))
    };
    original.find_value(&network.value(value).name).is_some_and(|other| {
        let shapes = [network.value(value), original.value(other)].map(|v| v.ty.static_shape());
        shapes[0].is_some()
            && shapes[0] == shapes[1]
            && is_normalised(network, value) == is_normalised(original, other)
    })
}

/// The scores of classes, before softmax: the only output, or the only one that looks like it. All sizes are to be known
/// and inferred, the batch too.
pub fn logits(graph: &Graph) -> Option<ValueId> {
    let scores = |v: &ValueId| {
        let ty = &graph.value(*v).ty;
        let shape = ty.static_shape().filter(|_| ty.dtype.is_none_or(DType::is_float))?;
        let (classes, rest) = shape.get(1..)?.split_first()?;
        (*classes > 1 && rest.iter().all(|&d| d == 1)).then_some(*v)
    };
    let mut found = graph.outputs().iter().filter_map(scores);
    let (first, second) = (found.next()?, found.next());
    if second.is_some() {
        return None;
    }
    Some(match &graph.node(first.node).op {
        Op::Softmax(_) | Op::LogSoftmax(_) => graph.node_input(first.node, 0)?,
        _ => first,
    })
}

/// Whether a score, 0…1, is no more than so many points below the original's.
pub fn meets_goal(original: f64, score: f64, points: f64) -> bool {
    // A count over a count: what is lost exactly is not lost too much by its last bit.
    100.0 * (original - score) <= points + 1e-9
}

/// How the network does beside the original, on the same images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Standing {
    /// Accuracy, or agreement with the original where there are no labels; 0…1.
    pub score: f64,
    /// The original's.
    pub original: f64,
    /// Which of the two it is.
    pub is_accuracy: bool,
}

impl Standing {
    /// What it is that is scored.
    pub fn measure(&self) -> &'static str {
        if self.is_accuracy { "accuracy" } else { "agreement" }
    }

    /// Whether no more than so many points are lost.
    pub fn meets(&self, goal: f64) -> bool {
        meets_goal(self.original, self.score, goal)
    }
}

/// Scores versions of a network on the same images.
pub(crate) struct Scorer<'a> {
    images: &'a dyn Examples,
    logits: String,
    /// The classes that the original gives.
    reference: Vec<Option<usize>>,
    is_accuracy: bool,
}

impl<'a> Scorer<'a> {
    /// `None` if the network has no classes, or there is no original to compare with.
    pub fn new(
        network: &Graph,
        original: Option<&Graph>,
        images: &'a dyn Examples,
    ) -> Result<Option<Self>, PassError> {
        let (Some(scores), Some(original)) = (logits(network), original) else { return Ok(None) };
        let logits = network.value(scores).name.clone();
        if images.is_empty() {
            return Ok(None);
        }
        if !corresponds(network, scores, original) {
            let text = format!(
                "the original has no value {logits:?} of the same size: it is not the network that this one was made from"
            );
            return Err(PassError::Missing(text));
        }
        let is_accuracy = (0..images.len()).all(|i| images.label(i).is_some());
        let mut scorer = Self { images, logits, reference: vec![], is_accuracy };
        match scorer.classes(original) {
            Ok(reference) => scorer.reference = reference,
            // What cannot be run up to its end may still be trained against values before it.
            Err(PassError::Training(FitError::Train(TrainError::Compile(_)))) => return Ok(None),
            Err(e) => return Err(e),
        }
        Ok(Some(scorer))
    }

    fn classes(&self, network: &Graph) -> Result<Vec<Option<usize>>, PassError> {
        let values = statistics::values(network, &self.logits, self.images).map_err(FitError::from)?;
        Ok(values.iter().map(|v| largest(v)).collect())
    }

    fn share(&self, classes: &[Option<usize>]) -> f64 {
        let expected = |i: usize| match self.is_accuracy {
            true => self.images.label(i),
            false => self.reference.get(i).copied().flatten(),
        };
        let right =
            classes.iter().enumerate().filter(|(i, class)| class.is_some() && **class == expected(*i));
        right.count() as f64 / self.images.len() as f64
    }

    /// How a version does.
    pub fn standing(&self, network: &Graph) -> Result<Standing, PassError> {
        let classes = self.classes(network)?;
        let (score, original) = (self.share(&classes), self.share(&self.reference));
        Ok(Standing { score, original, is_accuracy: self.is_accuracy })
    }
}

fn largest(scores: &[f32]) -> Option<usize> {
    if scores.iter().any(|v| v.is_nan()) {
        return None;
    }
    let best = scores.iter().enumerate().reduce(|best, at| if at.1 > best.1 { at } else { best });
    best.map(|(class, _)| class)
}

/// Whether the goal is met without doing anything, which is said then.
///
/// # Errors
/// If there is a goal and nothing to judge by.
pub(crate) fn is_met(
    goal: Option<f64>,
    now: Option<&Standing>,
    cx: &mut PassContext<'_>,
) -> Result<bool, PassError> {
    let Some(goal) = goal else { return Ok(false) };
    let Some(now) = now else {
        let text =
            "goal= is in points of accuracy or agreement, and no output looks like class scores [N, C]";
        return Err(PassError::Missing(text.to_owned()));
    };
    let met = now.meets(goal);
    if met {
        let text = format!(
            "nothing to do: {} {:.2} % of the original's {:.2} %, and {goal} points may be lost",
            now.measure(),
            100.0 * now.score,
            100.0 * now.original
        );
        cx.note_with("", "goal-met", text, &[("score_before", now.score), ("original_score", now.original)]);
    }
    Ok(met)
}

/// The scores before and after as values of a remark.
pub(crate) fn scores(before: &Standing, after: &Standing) -> [(&'static str, f64); 4] {
    [
        ("score_before", before.score),
        ("score", after.score),
        ("original_score", after.original),
        ("is_accuracy", f64::from(u8::from(after.is_accuracy))),
    ]
}

/// A failure of training as a failure of the pass.
pub(crate) fn explain(error: FitError) -> PassError {
    match error {
        // A class that does not exist is a slip in the settings.
        FitError::Train(e @ TrainError::Label { .. }) => PassError::Other(format!("{e}; see --label-offset")),
        other => other.into(),
    }
}
