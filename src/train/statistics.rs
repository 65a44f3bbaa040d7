//! Moments of a network's values over images.

use crate::examples::{Augmentation, Chunk, Examples, spread};
use crate::exec::{Plan, Program};
use crate::task::TrainError;
use basisopt_ir::{Graph, ValueId};
use basisopt_kernels::LANES;
use rayon::prelude::*;

/// Images: a scale need not be exact.
const IMAGES: usize = 256;

/// Mean and variance by channel of a value `[N, C, …]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// By channel.
    pub mean: Vec<f64>,
    /// By channel.
    pub variance: Vec<f64>,
}

impl Moments {
    /// The variance of all elements taken together.
    #[allow(clippy::cast_precision_loss, reason = "a count")]
    pub fn total(&self) -> f64 {
        let n = self.mean.len().max(1) as f64;
        let mean = self.mean.iter().sum::<f64>() / n;
        let between = self.mean.iter().map(|m| (m - mean) * (m - mean)).sum::<f64>() / n;
        self.variance.iter().sum::<f64>() / n + between
    }
}

/// The graph with these outputs and all its inputs.
pub(crate) fn only(graph: &Graph, outputs: &[ValueId]) -> Graph {
    let mut part = graph.clone();
    part.set_outputs(outputs);
    part
}

/// Whether a network takes these images and nothing else.
fn check(program: &Program<f32>, examples: &dyn Examples) -> Result<(), TrainError> {
    let n = examples.shape().len();
    match program.inputs() {
        [input] if input.len() == n => Ok(()),
        [input] => Err(TrainError::Sizes { name: input.name.clone(), expected: input.len(), found: n }),
        inputs => Err(TrainError::Inputs(inputs.len())),
    }
}

/// Moments of values of a network over some of the images.
///
/// # Errors
/// If the network has no such value, cannot be run, or an image cannot be read.
#[allow(clippy::cast_precision_loss, reason = "counts")]
pub fn moments(graph: &Graph, names: &[String], examples: &dyn Examples) -> Result<Vec<Moments>, TrainError> {
    let mut values = Vec::with_capacity(names.len());
    for name in names {
        let missing = || TrainError::NoValue { name: name.clone(), network: "the network" };
        values.push(graph.find_value(name).ok_or_else(missing)?);
    }
    let program: Program<f32> = Program::compile(&only(graph, &values), &Plan::default())?;
    check(&program, examples)?;
    let n_channels: Vec<usize> =
        program.outputs().map(|port| port.shape.get(1).copied().unwrap_or(1).max(1)).collect();
    let (shared, mut workspace, mut sums) = (program.shared(), program.workspace(), program.sums());
    // Sum and sum of squares by channel, and how many elements a channel has had.
    let mut found: Vec<(f64, Vec<(f64, f64)>)> =
        n_channels.iter().map(|&c| (0.0, vec![(0.0, 0.0); c])).collect();
    for indices in spread(examples, IMAGES).chunks(LANES) {
        let chunk = Chunk::read(examples, indices, Augmentation::default(), 0).map_err(TrainError::Data)?;
        program.run(&[&chunk.images], &shared, &mut workspace, &mut sums);
        for (i, (n, channels)) in found.iter_mut().enumerate() {
            let data = program.output(i, &workspace).unwrap_or_default();
            let run = data.len() / channels.len();
            *n += run as f64;
            for ((sum, squares), values) in channels.iter_mut().zip(data.chunks_exact(run.max(1))) {
                for &v in values {
                    *sum += f64::from(v);
                    *squares += f64::from(v) * f64::from(v);
                }
            }
        }
    }
    let moments = |(n, channels): (f64, Vec<(f64, f64)>)| {
        let mean: Vec<f64> = channels.iter().map(|c| c.0 / n.max(1.0)).collect();
        let square = channels.iter().zip(&mean).map(|(c, m)| (c.1 / n.max(1.0) - m * m).max(0.0));
        Moments { variance: square.collect(), mean }
    };
    Ok(found.into_iter().map(moments).collect())
}

/// The values that a network gives to images, by image, each in the order of its elements.
///
/// # Errors
/// As [`moments`].
pub fn values(graph: &Graph, name: &str, examples: &dyn Examples) -> Result<Vec<Vec<f32>>, TrainError> {
    let missing = || TrainError::NoValue { name: name.to_owned(), network: "the network" };
    let value = graph.find_value(name).ok_or_else(missing)?;
    let program: Program<f32> = Program::compile(&only(graph, &[value]), &Plan::default())?;
    check(&program, examples)?;
    let shared = program.shared();
    let indices: Vec<usize> = (0..examples.len()).collect();
    let own = || (program.workspace(), program.sums());
    let parts: Result<Vec<_>, TrainError> = indices
        .par_chunks(LANES)
        .map_init(own, |(workspace, sums), indices| -> Result<Vec<Vec<f32>>, TrainError> {
            let chunk =
                Chunk::read(examples, indices, Augmentation::default(), 0).map_err(TrainError::Data)?;
            program.run(&[&chunk.images], &shared, workspace, sums);
            let data = program.output(0, workspace).unwrap_or_default();
            let of = |lane| data.iter().skip(lane).step_by(LANES).copied().collect();
            Ok((0..indices.len()).map(of).collect())
        })
        .collect();
    Ok(parts?.into_iter().flatten().collect())
}
