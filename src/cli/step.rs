//! `differentiate --loss`: a step of training as a model of its own, for engines that run elsewhere.

use crate::work::{bytes, count, write_whole};
use crate::{Globals, Usage};
use anyhow::{Context as _, anyhow};
use basisopt_ir::graph::ValueType;
use basisopt_ir::infer::infer;
use basisopt_ir::{Dim, Graph, ValueId};
use basisopt_onnx::{Model, export_new};
use basisopt_passes::{Globs, cost, logits};
use basisopt_train::batch;
use basisopt_train::differentiate::frontier;
use basisopt_train::step::{Step, StepLoss, StepRequest, step};
use serde::Serialize;
use std::path::Path;
use std::str::FromStr;

/// Where a temperature is not given: as in fine-tune.
const TEMPERATURE: f32 = 4.0;

/// `--loss`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LossArg {
    Labels,
    Distill { temperature: f32 },
    Match { values: Option<String> },
}

impl FromStr for LossArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected labels, distill, distill:temperature=T, match or match=VALUES";
        let temperature = |t: &str| {
            let t: Option<f32> = t.parse().ok().filter(|t: &f32| t.is_finite() && *t > 0.0);
            t.ok_or_else(|| "the temperature is a number above 0".to_owned())
        };
        match text {
            "labels" => Ok(Self::Labels),
            "distill" => Ok(Self::Distill { temperature: TEMPERATURE }),
            "match" => Ok(Self::Match { values: None }),
            _ => match (text.strip_prefix("distill:temperature="), text.strip_prefix("match=")) {
                (Some(t), _) => Ok(Self::Distill { temperature: temperature(t)? }),
                (_, Some(values)) if !values.is_empty() => {
                    Ok(Self::Match { values: Some(values.to_owned()) })
                }
                _ => Err(expected.to_owned()),
            },
        }
    }
}

/// Which statistics batch normalisations use in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum NormArg {
    /// Those of the network, which stay as they are.
    #[default]
    Given,
    /// Those of the batch; they are outputs of the step, to be averaged.
    Batch,
}

/// What is told about a step that was written.
#[derive(Serialize)]
pub(crate) struct Summary {
    file: String,
    bytes: u64,
    opset: i64,
    inputs: Vec<Port>,
    targets: Vec<Port>,
    outputs: Vec<Port>,
    loss: String,
    parameters: Vec<Pair>,
    statistics: Vec<Pair>,
    without_effect: Vec<String>,
}

#[derive(Serialize)]
struct Port {
    name: String,
    #[serde(rename = "type")]
    ty: String,
}

/// A constant, and the output that tells about it.
#[derive(Serialize)]
struct Pair {
    name: String,
    output: String,
}

/// Opens a batch that the file fixes at one.
///
/// # Errors
/// If the network computes with its size.
pub(crate) fn open(graph: &mut Graph) -> anyhow::Result<()> {
    infer(graph)?;
    Ok(batch::open_batch(graph)?)
}

/// The step of a network whose constants are folded.
///
/// # Errors
/// If there is none for this loss.
pub(crate) fn make(
    network: &Graph,
    dims: &[(String, usize)],
    loss: &LossArg,
    norm: NormArg,
    parameters: Vec<String>,
) -> anyhow::Result<Step> {
    let mut graph = network.clone();
    pin(&mut graph, dims);
    infer(&mut graph)?;
    let name = |v: ValueId| graph.value(v).name.clone();
    let scores = || {
        // Looked for with a batch of one; values have the same ids.
        let mut pinned = graph.clone();
        cost::pin(&mut pinned, dims);
        infer(&mut pinned)?;
        let found = logits(&pinned).map(name);
        found.ok_or_else(|| anyhow!("no output looks like class scores [N, C]; use --loss match"))
    };
    let loss = match loss {
        LossArg::Labels => StepLoss::Labels { logits: scores()? },
        LossArg::Distill { temperature } => {
            StepLoss::Distill { logits: scores()?, temperature: *temperature }
        }
        LossArg::Match { values: Some(text) } => {
            let globs =
                Globs::new(text).ok_or_else(|| Usage(format!("--loss match={text}: no glob patterns")))?;
            let ids = graph.topological().into_iter().filter(|&id| !graph.node(id).op.is_source());
            let values: Vec<String> = ids.map(ValueId::of).map(name).filter(|n| globs.matches(n)).collect();
            if values.is_empty() {
                return Err(anyhow!("--loss match={text} matches the name of no value"));
            }
            StepLoss::Match { values }
        }
        LossArg::Match { values: None } => {
            let of: Vec<ValueId> = parameters.iter().filter_map(|p| graph.find_value(p)).collect();
            StepLoss::Match { values: frontier(&graph, &of).into_iter().map(name).collect() }
        }
    };
    let norms = match norm {
        NormArg::Given => vec![],
        NormArg::Batch => {
            let is_norm = |id: &basisopt_ir::NodeId| {
                matches!(graph.node(*id).op, basisopt_ir::Op::BatchNormalization(_))
            };
            graph.topological().into_iter().filter(is_norm).map(|id| name(ValueId::of(id))).collect()
        }
    };
    if norm == NormArg::Batch && norms.is_empty() {
        return Err(anyhow!("--norm batch: the network has no batch normalisation"));
    }
    Ok(step(&graph, &StepRequest { loss, parameters, norms })?)
}

/// Sizes as given, a batch without a name called N.
fn pin(graph: &mut Graph, dims: &[(String, usize)]) {
    for node in graph.inputs().to_vec() {
        let value = ValueId::of(node);
        let basisopt_ir::graph::Value { name, ty } = graph.value(value).clone();
        let ValueType { dtype, shape } = ty;
        let sized = |(axis, dim): (usize, Dim)| {
            let place = format!("{name}:{axis}");
            match dims.iter().find(|(d, _)| *d == place || Some(d.as_str()) == dim.name()) {
                Some((_, n)) if dim.known().is_none() => Dim::Known(*n),
                None if axis == 0 && dim == Dim::Unknown => Dim::symbol("N"),
                _ => dim,
            }
        };
        let shape = shape.map(|dims| dims.into_iter().enumerate().map(sized).collect());
        graph.set_type(value, ValueType { dtype, shape });
    }
}

/// Writes a step and says what is in it.
///
/// # Errors
/// If the disk refuses, or the step is more than a file can hold.
pub(crate) fn write(step: &Step, model: &Model, output: &Path, globals: &Globals) -> anyhow::Result<Summary> {
    let file = output.display().to_string();
    let encoded = export_new(&step.graph).with_context(|| file.clone())?;
    write_whole(output, &encoded)?;
    let graph = &step.graph;
    let port = |name: &str| {
        let ty = graph.find_value(name).map(|v| &graph.value(v).ty);
        Port { name: name.to_owned(), ty: ty.map_or_else(String::new, type_words) }
    };
    let names = graph.inputs().iter().map(|&n| graph.value(ValueId::of(n)).name.as_str());
    let is_target = |name: &str| step.targets.iter().any(|t| t == name);
    let n_own = 1 + step.parameters.len() + step.statistics.len();
    let n_outputs = graph.outputs().len().saturating_sub(n_own);
    let pair = |(name, output): &(String, String)| Pair { name: name.clone(), output: output.clone() };
    let summary = Summary {
        file,
        bytes: encoded.len() as u64,
        opset: graph.opset,
        inputs: names.filter(|n| !is_target(n)).map(port).collect(),
        targets: step.targets.iter().map(|n| port(n)).collect(),
        outputs: graph.outputs().iter().take(n_outputs).map(|&v| port(&graph.value(v).name)).collect(),
        loss: step.loss.clone(),
        parameters: step.parameters.iter().map(pair).collect(),
        statistics: step.statistics.iter().map(pair).collect(),
        without_effect: step.unreached.clone(),
    };
    if !globals.quiet {
        notes(step, model);
    }
    Ok(summary)
}

/// What somebody should know who takes weights back.
fn notes(step: &Step, model: &Model) {
    let original = &model.graph;
    let is_constant = |name: &str| {
        original.find_value(name).is_some_and(|v| {
            let op = &original.node(v.node).op;
            matches!(op, basisopt_ir::Op::Constant(_)) || original.constant_value(v).is_some()
        })
    };
    let computed: Vec<&str> =
        step.parameters.iter().map(|(name, _)| name.as_str()).filter(|name| !is_constant(name)).collect();
    if !computed.is_empty() {
        eprintln!(
            "note: {} computes these weights from others, so that load-weights cannot put them back: {}; make the step \
             of what `basisopt opt -p freeze-weights,@clean` writes instead",
            model.source().file(),
            computed.join(", ")
        );
    }
}

fn type_words(ty: &ValueType) -> String {
    let dims: Vec<String> = ty.shape.iter().flatten().map(Dim::to_string).collect();
    format!("{}[{}]", ty.dtype.map_or("?", |t| t.name()), dims.join(","))
}

impl Summary {
    /// As text.
    pub(crate) fn text(&self) -> String {
        let list = |ports: &[Port]| {
            ports.iter().map(|p| format!("{} {}", p.name, p.ty)).collect::<Vec<_>>().join(", ")
        };
        let mut out = format!("wrote {}: {}, operator set {}\n", self.file, bytes(self.bytes), self.opset);
        out += &format!("inputs: {}; {}\n", list(&self.inputs), list(&self.targets));
        out += &format!("outputs: {}; {}\n", list(&self.outputs), self.loss);
        out += &format!("trains {}, each an input with a default", count(self.parameters.len(), "constant"));
        let odd: Vec<String> = self
            .parameters
            .iter()
            .filter(|p| p.output != format!("{}.grad", p.name))
            .map(|p| format!("{} for {}", p.output, p.name))
            .collect();
        out += "; gradients are outputs NAME.grad";
        if !odd.is_empty() {
            out += &format!(", but {}", odd.join(", "));
        }
        out += "\n";
        if !self.statistics.is_empty() {
            out += &format!(
                "statistics of the batch for {} are outputs NAME.batch\n",
                count(self.statistics.len(), "constant")
            );
        }
        if !self.without_effect.is_empty() {
            out += &format!("without effect: {}\n", self.without_effect.join(", "));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_parsed() {
        let parse = |text: &str| text.parse::<LossArg>();
        assert_eq!(parse("labels"), Ok(LossArg::Labels));
        assert_eq!(parse("distill:temperature=2"), Ok(LossArg::Distill { temperature: 2.0 }));
        assert_eq!(parse("match=a|b*"), Ok(LossArg::Match { values: Some("a|b*".to_owned()) }));
        for wrong in ["label", "distill:temperature=0", "distill:t=2", "match=", "distill=2"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
