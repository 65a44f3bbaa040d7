//! The numerical check: the same inputs through the graph before and after a pass.

use basisopt_ir::{Graph, Tensor};

/// Runs graphs on data: tract in the program, anything else in an embedding toolchain.
pub trait Executor {
    /// Inputs to check on, one tensor per graph input, in order.
    ///
    /// # Errors
    /// [`ExecutorError`] where no input can be made (a dynamic dimension that nobody pinned, …).
    fn example_inputs(&mut self, graph: &Graph, seed: u64) -> Result<Vec<Tensor>, ExecutorError>;

    /// The graph's outputs, in order.
    ///
    /// # Errors
    /// [`ExecutorError`] where the graph cannot be run.
    fn run(&mut self, graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>, ExecutorError>;

    /// Prepares a graph, whose inputs have known shapes, for many runs: calibration does this with parts
    /// of a network.
    ///
    /// # Errors
    /// [`ExecutorError`] where the graph cannot be run.
    fn load(&mut self, graph: &Graph) -> Result<Box<dyn Program>, ExecutorError>;

    /// Seconds that one image takes in each of these graphs on the device that the executor runs on, measured side by
    /// side, so that ratios are worth more than each number. What budgets of latency go by.
    ///
    /// # Errors
    /// [`ExecutorError`] where a graph cannot be run; where the executor does not measure, as by default.
    fn seconds(&mut self, graphs: &[&Graph]) -> Result<Vec<f64>, ExecutorError> {
        let _ = graphs;
        Err(ExecutorError("nothing here measures time".to_owned()))
    }

    /// The device that [`Executor::seconds`] measures on, as its profile names it
    /// ([`DeviceProfile::device`](crate::device::DeviceProfile::device)); `None` where nothing measures.
    fn device(&self) -> Option<String> {
        None
    }
}

/// A graph made ready to run, on any number of threads at once.
pub trait Program: Send + Sync {
    /// The graph's outputs, in order.
    ///
    /// # Errors
    /// [`ExecutorError`] if a node fails.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, ExecutorError>;
}

/// Why a graph could not be run, in the engine's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ExecutorError(pub String);

/// How far outputs are apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Deviation {
    /// Largest absolute difference over all outputs, relative to the largest magnitude of the
    /// reference output it stands in.
    pub relative: f64,
    /// Name of the output where that is.
    pub output: String,
}

/// Exact passes may move outputs by this much, relative: rounding of a few hundred f32 layers.
pub const EXACT_TOLERANCE: f64 = 1e-4;

/// Compares outputs with reference outputs. A value that is finite in one and not in the other,
/// and a shape or count that differs, is an infinite deviation.
pub fn deviation(graph: &Graph, reference: &[Tensor], found: &[Tensor]) -> Deviation {
    let name = |i: usize| graph.outputs().get(i).map_or_else(String::new, |&v| graph.value(v).name.clone());
    let mut worst = Deviation { relative: 0.0, output: name(0) };
    if reference.len() != found.len() {
        worst.relative = f64::INFINITY;
        return worst;
    }
    for (i, (a, b)) in reference.iter().zip(found).enumerate() {
        let relative = if a.shape() == b.shape() { relative_deviation(a, b) } else { f64::INFINITY };
        // NaN must not compare as "not worse".
        if relative.is_nan() || relative > worst.relative {
            worst = Deviation {
                relative: if relative.is_nan() { f64::INFINITY } else { relative },
                output: name(i),
            };
        }
    }
    worst
}

fn relative_deviation(a: &Tensor, b: &Tensor) -> f64 {
    let (Ok(a), Ok(b)) = (a.to_f64s(), b.to_f64s()) else {
        // Strings and the like: equal or not.
        return if a == b { 0.0 } else { f64::INFINITY };
    };
    let (mut difference, mut magnitude) = (0.0f64, 0.0f64);
    for (x, y) in a.iter().zip(&b) {
        if x == y || (x.is_nan() && y.is_nan()) {
            magnitude = if x.is_finite() { magnitude.max(x.abs()) } else { magnitude };
            continue;
        }
        if !x.is_finite() || !y.is_finite() {
            return f64::INFINITY;
        }
        difference = difference.max((x - y).abs());
        magnitude = magnitude.max(x.abs());
    }
    // All-zero outputs: the difference itself is what there is to judge.
    if magnitude > 0.0 { difference / magnitude } else { difference }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(values: &[f64]) -> Tensor {
        Tensor::from_f64s(basisopt_ir::DType::F64, vec![values.len()], values).unwrap()
    }

    #[test]
    fn a_nan_is_never_a_small_deviation() {
        assert_eq!(relative_deviation(&t(&[1.0, 2.0]), &t(&[1.0, f64::NAN])), f64::INFINITY);
        assert_eq!(relative_deviation(&t(&[1.0, f64::INFINITY]), &t(&[1.0, 2.0])), f64::INFINITY);
        assert_eq!(relative_deviation(&t(&[f64::NAN, 4.0]), &t(&[f64::NAN, 3.0])), 0.25);
    }
}
