//! How far apart two networks are on the same inputs.

use crate::scores::{n_classes, top1};
use crate::{RuntimeError, Session};
use basisopt_ir::Tensor;
use serde::Serialize;

/// The difference between one output of two networks, over all batches.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputDiff {
    /// The output's name in the reference network.
    pub name: String,
    /// Its name in the other network, where that differs and the outputs were matched by position.
    pub other_name: Option<String>,
    /// Shape for one batch.
    pub shape: Vec<usize>,
    /// Largest |a − b|.
    pub max_abs: f64,
    /// Largest |a − b| divided by the largest |a|, both over the whole output and all batches, where `a`
    /// is the reference: an error relative to the scale of the output, not of each element. Infinite
    /// if the reference is zero everywhere and the other is not.
    pub max_rel: f64,
    /// Cosine of the angle between the two outputs taken as vectors; 1 if both are zero.
    pub cosine: f64,
    /// Elements where one network gives a number and the other an infinity or NaN, or where the
    /// infinities differ. They count in no other field.
    pub n_non_finite: usize,
    /// Share of images for which both networks put the same class first; for outputs that look like
    /// class scores (`[N, C]`, `[N, C, 1, 1]`).
    pub top1_agreement: Option<f64>,
}

impl OutputDiff {
    /// Whether the outputs agree up to `rel` of the reference's scale, with infinities in the same
    /// places.
    pub fn is_close(&self, rel: f64) -> bool {
        self.n_non_finite == 0 && self.max_rel <= rel
    }
}

/// Whether every output [is close](OutputDiff::is_close).
pub fn all_close(diffs: &[OutputDiff], rel: f64) -> bool {
    diffs.iter().all(|d| d.is_close(rel))
}

/// Runs both networks on the same inputs and accumulates the differences; `a` is the reference.
///
/// Inputs are given in the order of `a.inputs()` and matched by name where the names agree, by position
/// otherwise; outputs likewise. `progress` is called after each batch with the number of batches done.
///
/// # Errors
/// [`RuntimeError::NotComparable`] if the number or the shapes of inputs or outputs differ or there is no
/// batch, and any error of the iterator or of a run.
pub fn compare(
    a: &mut Session,
    b: &mut Session,
    batches: impl Iterator<Item = Result<Vec<Tensor>, RuntimeError>>,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<OutputDiff>, RuntimeError> {
    let names = |s: &Session| s.inputs().iter().map(|i| i.name.clone()).collect::<Vec<_>>();
    let input_order = matching(&names(a), &names(b))
        .ok_or_else(|| not_comparable(a, b, count_reason("inputs", a.inputs().len(), b.inputs().len())))?;
    let output_order = matching(a.outputs(), b.outputs())
        .ok_or_else(|| not_comparable(a, b, count_reason("outputs", a.outputs().len(), b.outputs().len())))?;
    for (x, &j) in a.inputs().iter().zip(&input_order) {
        let y = &b.inputs()[j];
        if (x.dtype, &x.shape) != (y.dtype, &y.shape) {
            let reason = format!(
                "input `{}` is {}{:?}, `{}` is {}{:?}",
                x.name, x.dtype, x.shape, y.name, y.dtype, y.shape
            );
            return Err(not_comparable(a, b, reason));
        }
    }

    let mut sums = vec![Sums::default(); output_order.len()];
    let mut n_batches = 0;
    for batch in batches {
        let inputs = batch?;
        // `input_order[i]` is where input i of `a` stands in `b`.
        let mut inputs_b = inputs.clone();
        for (tensor, &j) in inputs.iter().zip(&input_order) {
            if let Some(slot) = inputs_b.get_mut(j) {
                *slot = tensor.clone();
            }
        }
        let outputs_a = a.run(&inputs)?;
        let outputs_b = b.run(&inputs_b)?;
        for (i, (x, &j)) in outputs_a.iter().zip(&output_order).enumerate() {
            let y = &outputs_b[j];
            if x.shape() != y.shape() {
                let (na, nb) = (&a.outputs()[i], &b.outputs()[j]);
                let reason = format!("output `{na}` has shape {:?}, `{nb}` has {:?}", x.shape(), y.shape());
                return Err(not_comparable(a, b, reason));
            }
            sums[i].add(x, y)?;
        }
        n_batches += 1;
        progress(n_batches);
    }
    if n_batches == 0 {
        return Err(not_comparable(a, b, "no inputs were given to run them on".to_owned()));
    }
    let diff = |(i, sums): (usize, Sums)| {
        let (name, other) = (&a.outputs()[i], &b.outputs()[output_order[i]]);
        sums.finish(name.clone(), (name != other).then(|| other.clone()))
    };
    Ok(sums.into_iter().enumerate().map(diff).collect())
}

fn not_comparable(a: &Session, b: &Session, reason: String) -> RuntimeError {
    RuntimeError::NotComparable { a: a.name().to_owned(), b: b.name().to_owned(), reason }
}

fn count_reason(what: &str, n_a: usize, n_b: usize) -> String {
    format!("the first has {n_a} {what}, the second {n_b}")
}

/// For each name of `a` its place in `b`: by name if the names are the same set, else by position.
/// `None` if the counts differ.
fn matching(a: &[String], b: &[String]) -> Option<Vec<usize>> {
    if a.len() != b.len() {
        return None;
    }
    let by_name: Option<Vec<usize>> = a.iter().map(|n| b.iter().position(|m| m == n)).collect();
    Some(by_name.unwrap_or_else(|| (0..a.len()).collect()))
}

#[derive(Clone, Default)]
struct Sums {
    shape: Vec<usize>,
    max_abs: f64,
    max_a: f64,
    dot: f64,
    aa: f64,
    bb: f64,
    n_non_finite: usize,
    n_rows: usize,
    n_agreeing: usize,
}

impl Sums {
    fn add(&mut self, a: &Tensor, b: &Tensor) -> Result<(), RuntimeError> {
        self.shape = a.shape().to_vec();
        let (a, b) = (a.to_f64s()?, b.to_f64s()?);
        for (&x, &y) in a.iter().zip(&b) {
            if !x.is_finite() || !y.is_finite() {
                let same = x == y || (x.is_nan() && y.is_nan());
                self.n_non_finite += usize::from(!same);
                continue;
            }
            self.max_abs = self.max_abs.max((x - y).abs());
            self.max_a = self.max_a.max(x.abs());
            self.dot += x * y;
            self.aa += x * x;
            self.bb += y * y;
        }
        if let Some(n) = n_classes(&self.shape) {
            for (x, y) in a.chunks_exact(n).zip(b.chunks_exact(n)) {
                self.n_rows += 1;
                self.n_agreeing += usize::from(top1(x) == top1(y));
            }
        }
        Ok(())
    }

    fn finish(self, name: String, other_name: Option<String>) -> OutputDiff {
        let max_rel = match (self.max_abs > 0.0, self.max_a > 0.0) {
            (false, _) => 0.0,
            (true, true) => self.max_abs / self.max_a,
            (true, false) => f64::INFINITY,
        };
        let cosine = match (self.aa > 0.0, self.bb > 0.0) {
            (true, true) => (self.dot / (self.aa.sqrt() * self.bb.sqrt())).clamp(-1.0, 1.0),
            (false, false) => 1.0,
            _ => 0.0,
        };
        OutputDiff {
            name,
            other_name,
            shape: self.shape,
            max_abs: self.max_abs,
            max_rel,
            cosine,
            n_non_finite: self.n_non_finite,
            top1_agreement: (self.n_rows > 0).then(|| self.n_agreeing as f64 / self.n_rows as f64),
        }
    }
}
