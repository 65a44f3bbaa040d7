//! What the loss compares.

use super::{FineTune, Loss};
use crate::driver::pass::PassError;
use crate::training::{corresponds, logits};
use basisopt_ir::{Graph, ValueId};
use basisopt_train::differentiate::frontier;
use basisopt_train::examples::Examples;
use basisopt_train::loss::has_batch;
use basisopt_train::statistics::moments;
use basisopt_train::task::Objective;
use basisopt_train::watch::FitError;
use std::collections::BTreeSet;

/// The terms of a loss.
pub(super) struct Chosen {
    pub terms: Vec<(Objective, f32)>,
    pub logits: Option<String>,
    pub notes: Vec<String>,
}

/// Chooses the terms that the options ask for, or those that suit the network and the data.
pub(super) fn choose(
    pass: &FineTune,
    graph: &Graph,
    original: Option<&Graph>,
    parameters: &[String],
    examples: &dyn Examples,
) -> Result<Chosen, PassError> {
    let missing = |text: &str| PassError::Missing(text.to_owned());
    let name = |v: ValueId| graph.value(v).name.clone();
    let scores = logits(graph);
    let labelled = !examples.is_empty() && examples.label(0).is_some();
    // What is imitated must be there to imitate.
    let in_both = |v: ValueId| original.is_some_and(|o| corresponds(graph, v, o));
    let mut notes = Vec::new();
    let loss = match pass.loss {
        _ if pass.until.is_some() => Loss::Match,
        Some(loss) => loss,
        None => match (scores.filter(|&s| in_both(s)), labelled) {
            (Some(_), true) => Loss::Both,
            (Some(_), false) => Loss::Distill,
            (None, true) if scores.is_some() => Loss::Labels,
            _ => Loss::Match,
        },
    };
    let classes = || {
        let scores = scores.map(name);
        scores.ok_or_else(|| missing("no output looks like class scores [N, C]; train with loss=match"))
    };
    if matches!(loss, Loss::Labels | Loss::Both) && !labelled {
        return Err(missing("the images have no labels; give --labels, or train with loss=distill"));
    }
    if !matches!(loss, Loss::Labels) && original.is_none() {
        return Err(missing("there is no original network to imitate; train with loss=labels"));
    }
    let mut terms = Vec::new();
    if matches!(loss, Loss::Labels | Loss::Both) {
        let weight = if loss == Loss::Both { pass.mix } else { 1.0 };
        terms.push((Objective::Labels { logits: classes()? }, weight));
    }
    if matches!(loss, Loss::Distill | Loss::Both) {
        let weight = if loss == Loss::Both { 1.0 - pass.mix } else { 1.0 };
        terms.push((Objective::Distill { logits: classes()?, temperature: pass.temperature }, weight));
    }
    if loss == Loss::Match {
        let values = matched(pass, graph, parameters, &in_both, &mut notes)?;
        let original = original.ok_or_else(|| missing("there is no original network to imitate"))?;
        let names: Vec<String> = values.into_iter().map(name).collect();
        let moments = moments(original, &names, examples).map_err(FitError::from)?;
        let weight = 1.0 / names.len().max(1) as f32;
        for (value, variance) in names.into_iter().zip(moments.iter().map(|m| m.total())) {
            #[allow(clippy::cast_possible_truncation, reason = "a scale")]
            terms.push((Objective::Match { value, scale: (variance as f32).max(1e-12) }, weight));
        }
    }
    let logits = if loss == Loss::Match { None } else { scores.map(name) };
    Ok(Chosen { terms, logits, notes })
}

/// The values to match with the original's.
fn matched(
    pass: &FineTune,
    graph: &Graph,
    parameters: &[String],
    in_both: &dyn Fn(ValueId) -> bool,
    notes: &mut Vec<String>,
) -> Result<Vec<ValueId>, PassError> {
    if let Some(globs) = &pass.until {
        let ids = graph.topological().into_iter();
        let values = ids.filter(|&id| !graph.node(id).op.is_source()).map(ValueId::of);
        let found: Vec<ValueId> =
            values.filter(|&v| globs.matches(&graph.value(v).name) && in_both(v)).collect();
        return if found.is_empty() { Err(PassError::NoMatch { option: "until" }) } else { Ok(found) };
    }
    let parameters: Vec<ValueId> = parameters.iter().filter_map(|p| graph.find_value(p)).collect();
    let last = frontier(graph, &parameters).into_iter().flat_map(|v| last_of_batch(graph, v));
    let mut last: Vec<ValueId> = last.filter(|&v| in_both(v)).collect();
    last.dedup();
    if last.is_empty() {
        return Err(PassError::Missing("no value after the trained weights has a gradient".to_owned()));
    }
    if last.iter().any(|v| !graph.is_output(*v)) {
        let names: Vec<&str> = last.iter().map(|&v| graph.value(v).name.as_str()).collect();
        notes.push(format!(
            "trained against {}: what comes after has no gradient (until=NAME chooses others)",
            names.join(", ")
        ));
    }
    Ok(last)
}

/// A value, or, where it has been taken out of the batch, the last values before it that have not.
fn last_of_batch(graph: &Graph, value: ValueId) -> Vec<ValueId> {
    let (mut found, mut open, mut seen) = (Vec::new(), vec![value], BTreeSet::new());
    while let Some(value) = open.pop() {
        let node = graph.node(value.node);
        if !seen.insert(value) || node.op.is_source() {
            continue;
        }
        let ty = &graph.value(value).ty;
        if !ty.dtype.is_some_and(|t| t.is_float()) {
            continue;
        }
        if has_batch(graph, value) {
            found.push(value);
        } else {
            open.extend(graph.node_inputs(value.node).iter().flatten());
        }
    }
    found
}
