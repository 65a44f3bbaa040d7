//! Batch normalisations that use the statistics of the images at hand in training.
//!
//! A step sees [`LANES`](basisopt_kernels::LANES) images at a time, so these are *ghost* statistics (Hoffer, Hubara, Soudry
//! 2017). What validation and export use is measured when it is needed, over a fixed set of images: mean and variance of
//! the whole set, from those of its parts.

use crate::examples::Chunk;
use crate::exec::{Plan, Program, Shared};
use crate::statistics::{Moments, only};
use crate::task::TrainError;
use basisopt_ir::graph::{Node, Value};
use basisopt_ir::infer::infer;
use basisopt_ir::op::Op;
use basisopt_ir::{Graph, ValueId};
use basisopt_kernels::LANES;
use rayon::prelude::*;

/// The graph with some batch normalisations in training form, and where their statistics come out.
pub(crate) struct TrainingForm {
    pub graph: Graph,
    /// Mean and variance of the images at hand.
    pub statistics: Vec<ValueId>,
    /// Names of the constants that hold mean and variance of each.
    pub constants: Vec<String>,
}

impl TrainingForm {
    /// Puts the named ones into training form.
    pub fn new(network: &Graph, norms: &[String]) -> Result<Self, TrainError> {
        let mut form = Self { graph: network.clone(), statistics: vec![], constants: vec![] };
        for name in norms {
            let wrong = || TrainError::NoNorm { name: name.clone() };
            let graph = &mut form.graph;
            let old = graph.find_value(name).ok_or_else(wrong)?;
            let Op::BatchNormalization(op) = &graph.node(old.node).op else { return Err(wrong()) };
            let mut op = op.clone();
            (op.training_mode, op.momentum) = (1, 0.0);
            let slots = graph.node_inputs(old.node);
            for slot in [3, 4] {
                let constant = slots.get(slot).copied().flatten();
                let own = constant.filter(|&v| graph.constant(v).is_some() && graph.n_readers(v) == 1);
                form.constants.push(graph.value(own.ok_or_else(wrong)?).name.clone());
            }
            let value = |name: String| Value { name, ..Value::default() };
            let outputs = ["training", "mean", "variance"]
                .map(|part| graph.unused_value_name(&format!("{name}.{part}")));
            let label = graph.node(old.node).name.clone();
            let node = graph.add_node(Node::new(label, op.into(), outputs.map(value).to_vec()), &slots);
            let new = ValueId::of(node);
            graph.replace_uses(old, new);
            let aside = graph.unused_value_name(&format!("{name}.inference"));
            graph.rename(old, aside);
            graph.rename(new, name.clone());
            form.statistics.extend([1, 2].map(|port| ValueId { node, port }));
        }
        infer(&mut form.graph)?;
        Ok(form)
    }

    /// A program that measures the statistics.
    pub fn measure(&self, parameters: &[String]) -> Result<Statistics, TrainError> {
        let plan = Plan { parameters: parameters.to_vec(), ..Plan::default() };
        let program = Program::compile(&only(&self.graph, &self.statistics), &plan)?;
        Ok(Statistics { shared: program.shared(), program, n_norms: self.statistics.len() / 2 })
    }
}

/// Measures what the normalisations see.
#[derive(Debug)]
pub(crate) struct Statistics {
    program: Program<f32>,
    shared: Shared<f32>,
    n_norms: usize,
}

impl Statistics {
    /// Bytes of the buffers of one thread.
    pub fn bytes(&self) -> usize {
        self.program.workspace_bytes()
    }

    /// Mean and variance by channel of what each normalisation is given, over all of the images.
    #[allow(clippy::cast_precision_loss, reason = "a count")]
    pub fn over(&mut self, parameters: &[Vec<f32>], chunks: &[Chunk]) -> Vec<Moments> {
        self.shared.parameters_mut().clone_from_slice(parameters);
        self.program.prepare(&mut self.shared);
        let this = &*self;
        // All lanes have the same statistics.
        let first = |i: usize, workspace: &_| -> Vec<f64> {
            let data = this.program.output(i, workspace).unwrap_or_default();
            data.iter().step_by(LANES).map(|&v| f64::from(v)).collect()
        };
        let own = || (this.program.workspace(), this.program.sums());
        let parts: Vec<Vec<Moments>> = chunks
            .par_iter()
            .map_init(own, |(workspace, sums), chunk| {
                this.program.run(&[&chunk.images], &this.shared, workspace, sums);
                let moments =
                    |i| Moments { mean: first(2 * i, workspace), variance: first(2 * i + 1, workspace) };
                (0..this.n_norms).map(moments).collect()
            })
            .collect();
        let n = parts.len().max(1) as f64;
        let together = |norm: usize| {
            let of = |c: usize| parts.iter().map(move |p| (p[norm].mean[c], p[norm].variance[c]));
            let n_channels = parts.first().map_or(0, |p| p[norm].mean.len());
            let mut whole = Moments::default();
            for c in 0..n_channels {
                let mean = of(c).map(|(m, _)| m).sum::<f64>() / n;
                whole.mean.push(mean);
                whole.variance.push(of(c).map(|(m, v)| v + (m - mean) * (m - mean)).sum::<f64>() / n);
            }
            whole
        };
        (0..self.n_norms).map(together).collect()
    }
}
