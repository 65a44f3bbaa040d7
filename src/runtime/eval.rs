//! Accuracy of a network on labelled images, and agreement of two networks on any images.

use crate::data::{Batch, Dataset, Preprocess};
use crate::scores::{n_classes, rank_of, top1};
use crate::{RuntimeError, Session};
use basisopt_ir::Tensor;
use serde::Serialize;
use std::time::{Duration, Instant};

/// The result of [`evaluate`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalReport {
    /// Images that were classified.
    pub n: usize,
    /// How many of them had their own class first.
    pub n_correct: usize,
    /// Share of images whose class came first, 0…1.
    pub top1: f64,
    /// Share of images whose class was among the first five; for networks with more than five classes.
    pub top5: Option<f64>,
    /// The label offset with which more than twice as many images, and more than half, would be right:
    /// most likely the one that is meant.
    pub better_label_offset: Option<i64>,
    /// Classes the network tells apart.
    pub n_classes: usize,
    /// The output the classes were read from.
    pub output: String,
    /// Time spent in the network, in seconds; reading and preprocessing of the images is left out.
    pub seconds: f64,
    /// Images per second of that time.
    pub images_per_second: f64,
    /// False if `keep_going` ended the evaluation early; the numbers are then those of the first `n` images.
    pub complete: bool,
}

impl EvalReport {
    /// Half the width of the 95 % confidence interval of `top1` (normal approximation), 0…1: differences
    /// between networks below it say little, unless they were measured on the same images.
    pub fn top1_margin(&self) -> f64 {
        1.96 * (self.top1 * (1.0 - self.top1) / (self.n.max(1) as f64)).sqrt()
    }
}

/// The result of [`agreement`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AgreementReport {
    /// Images that both networks classified.
    pub n: usize,
    /// How many of them got the same class.
    pub n_agreeing: usize,
    /// The share of them, 0…1.
    pub share: f64,
    /// False if `keep_going` ended it early.
    pub complete: bool,
}

/// Classifies every image of a data set and counts the right ones.
///
/// The classes are read from the output named `output`, or from the first that looks like class scores
/// (`[N, C]`, `[N, C, 1, 1]`, C > 1). The right class is the label plus `preprocess.label_offset`. Images go
/// through in batches of the session's size. `progress` is called with the number of images done;
/// `keep_going` is asked before each batch.
///
/// # Errors
/// [`RuntimeError::Data`] if the data set has no labels or one that the network has no class for,
/// [`RuntimeError::Model`] if the network has several inputs or no such output, and any error of reading
/// or running.
pub fn evaluate(
    session: &mut Session,
    dataset: &Dataset,
    preprocess: &Preprocess,
    output: Option<&str>,
    progress: &mut dyn FnMut(usize),
    keep_going: &dyn Fn() -> bool,
) -> Result<EvalReport, RuntimeError> {
    if !dataset.is_labelled() {
        let reason = "has no labels, so accuracy cannot be measured; give --labels FILE, or measure the agreement of two networks";
        return Err(RuntimeError::data(dataset.path(), reason));
    }
    let (mut n, mut n_correct, mut n_top5) = (0, 0, 0);
    // Hits one class below and one above: networks with a background class are off by one.
    let mut shifted = [(-1i64, 0usize), (1, 0)];
    let mut time = Duration::ZERO;
    let mut found = None;
    let mut complete = true;
    let input = image_input(session.name(), session.inputs())?.clone();
    for batch in dataset.batches(preprocess, &input)? {
        if !keep_going() {
            complete = false;
            break;
        }
        let batch = batch?;
        let started = Instant::now();
        let outputs = session.run(std::slice::from_ref(&batch.inputs))?;
        time += started.elapsed();
        let scores = Scores::of(session, &outputs, &batch, output)?;
        let labels = batch.labels.as_deref().unwrap_or(&[]);
        for (row, &label) in scores.rows().zip(labels) {
            let class = label
                .checked_add(preprocess.label_offset)
                .and_then(|c| usize::try_from(c).ok())
                .filter(|&c| c < scores.n_classes)
                .ok_or_else(|| {
                    let reason = format!(
                        "label {label} with label-offset {} is no class of the network, which has 0…{} ({})",
                        preprocess.label_offset,
                        scores.n_classes - 1,
                        dataset.label_source()
                    );
                    RuntimeError::data(dataset.path(), reason)
                })?;
            let rank = rank_of(row, class);
            n += 1;
            n_correct += usize::from(rank == Some(0));
            n_top5 += usize::from(rank.is_some_and(|r| r < 5));
            for (shift, hits) in &mut shifted {
                let neighbour = class.checked_add_signed(*shift as isize);
                *hits += usize::from(neighbour.and_then(|c| rank_of(row, c)) == Some(0));
            }
        }
        found = Some((scores.n_classes, scores.output));
        progress(n);
    }
    let Some((n_classes, output)) = found else {
        return Err(RuntimeError::data(dataset.path(), "the evaluation was stopped before the first batch"));
    };
    let share = |count: usize| count as f64 / (n.max(1) as f64);
    let seconds = time.as_secs_f64();
    Ok(EvalReport {
        n,
        n_correct,
        top1: share(n_correct),
        top5: (n_classes > 5).then(|| share(n_top5)),
        better_label_offset: shifted
            .into_iter()
            .find(|&(_, hits)| hits > 2 * n_correct && 2 * hits > n)
            .map(|(shift, _)| preprocess.label_offset + shift),
        n_classes,
        output,
        seconds,
        images_per_second: if seconds > 0.0 { n as f64 / seconds } else { 0.0 },
        complete,
    })
}

/// Counts the images to which two networks give the same class; no labels are needed.
///
/// Both networks must take the same input shape. The outputs are chosen as in [`evaluate`].
///
/// # Errors
/// [`RuntimeError::NotComparable`] if the inputs or the numbers of classes differ, and as [`evaluate`].
pub fn agreement(
    a: &mut Session,
    b: &mut Session,
    dataset: &Dataset,
    preprocess: &Preprocess,
    output: Option<&str>,
    progress: &mut dyn FnMut(usize),
    keep_going: &dyn Fn() -> bool,
) -> Result<AgreementReport, RuntimeError> {
    let differ =
        |a: &str, b: &str, reason| RuntimeError::NotComparable { a: a.to_owned(), b: b.to_owned(), reason };
    let input = image_input(a.name(), a.inputs())?.clone();
    let other = image_input(b.name(), b.inputs())?;
    if (input.dtype, &input.shape) != (other.dtype, &other.shape) {
        let reason =
            format!("one takes {}{:?}, the other {}{:?}", input.dtype, input.shape, other.dtype, other.shape);
        return Err(differ(a.name(), b.name(), reason));
    }
    let (mut n, mut n_agreeing, mut complete) = (0, 0, true);
    for batch in dataset.batches(preprocess, &input)? {
        if !keep_going() {
            complete = false;
            break;
        }
        let batch = batch?;
        let outputs_a = a.run(std::slice::from_ref(&batch.inputs))?;
        let outputs_b = b.run(std::slice::from_ref(&batch.inputs))?;
        let scores_a = Scores::of(a, &outputs_a, &batch, output)?;
        let scores_b = Scores::of(b, &outputs_b, &batch, output)?;
        if scores_a.n_classes != scores_b.n_classes {
            let reason = format!("one has {} classes, the other {}", scores_a.n_classes, scores_b.n_classes);
            return Err(differ(a.name(), b.name(), reason));
        }
        for (x, y) in scores_a.rows().zip(scores_b.rows()) {
            n += 1;
            n_agreeing += usize::from(top1(x) == top1(y));
        }
        progress(n);
    }
    Ok(AgreementReport { n, n_agreeing, share: n_agreeing as f64 / (n.max(1) as f64), complete })
}

/// The one input that images go to.
pub(crate) fn image_input<'a>(
    model: &str,
    inputs: &'a [crate::InputInfo],
) -> Result<&'a crate::InputInfo, RuntimeError> {
    match inputs {
        [input] => Ok(input),
        inputs => {
            let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
            let reason = format!(
                "it takes {} inputs ({}); images can be given to networks with one",
                inputs.len(),
                names.join(", ")
            );
            Err(RuntimeError::Model { model: model.to_owned(), reason })
        }
    }
}

/// Class scores, one row per image that is not padding.
pub(crate) struct Scores {
    output: String,
    n_classes: usize,
    n_valid: usize,
    values: Vec<f64>,
}

impl Scores {
    fn of(
        session: &Session,
        outputs: &[Tensor],
        batch: &Batch,
        wanted: Option<&str>,
    ) -> Result<Self, RuntimeError> {
        Self::find(session.name(), session.outputs(), outputs, batch.n_valid, wanted)
    }

    /// The scores among the outputs of a model: of this name, or the first that look like it.
    pub(crate) fn find(
        model: &str,
        names: &[String],
        outputs: &[Tensor],
        n_valid: usize,
        wanted: Option<&str>,
    ) -> Result<Self, RuntimeError> {
        let looks_right =
            |t: &Tensor| t.shape().first().is_some_and(|&n| n >= n_valid) && n_classes(t.shape()).is_some();
        let mut named = names.iter().zip(outputs);
        let chosen = match wanted {
            Some(name) => named.find(|(n, _)| n.as_str() == name),
            None => named.find(|(_, t)| looks_right(t)),
        };
        let refuse = |reason| Err(RuntimeError::Model { model: model.to_owned(), reason });
        let listing = || {
            let shape = |(n, t): (&String, &Tensor)| format!("`{n}` {:?}", t.shape());
            names.iter().zip(outputs).map(shape).collect::<Vec<_>>().join(", ")
        };
        let Some((name, tensor)) = chosen else {
            return refuse(match wanted {
                Some(name) => format!("it has no output `{name}`; its outputs are {}", listing()),
                None => format!("no output looks like class scores [N, C]; its outputs are {}", listing()),
            });
        };
        let Some(n_classes) = n_classes(tensor.shape()).filter(|_| looks_right(tensor)) else {
            return refuse(format!(
                "output `{name}` of shape {:?} holds no class scores [N, C]",
                tensor.shape()
            ));
        };
        Ok(Self { output: name.clone(), n_classes, n_valid, values: tensor.to_f64s()? })
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.n_classes).take(self.n_valid)
    }
}
