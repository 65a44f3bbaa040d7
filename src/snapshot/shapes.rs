//! The sizes that a network will run at, for passes that ask.

use basisopt_ir::{Graph, Tensor, ValueId};
use basisopt_passes::{Executor, ExecutorError, Program};

/// Makes inputs and runs nothing: a snapshot is about the graph, and is the same with every runtime. Passes that need
/// a network run say so in their error.
pub(crate) struct Shapes<'a> {
    /// Sizes of open dimensions, by name or as `INPUT:AXIS`.
    pub dims: &'a [(String, usize)],
}

fn nothing_runs<T>() -> Result<T, ExecutorError> {
    Err(ExecutorError("a snapshot runs no network".to_owned()))
}

impl Executor for Shapes<'_> {
    fn example_inputs(&mut self, graph: &Graph, _seed: u64) -> Result<Vec<Tensor>, ExecutorError> {
        let mut pinned = graph.clone();
        basisopt_passes::cost::pin(&mut pinned, self.dims);
        let of = |&id| {
            let value = pinned.value(ValueId::of(id));
            let open =
                || ExecutorError(format!("the size of input {:?} is open; give it in dims", value.name));
            let (dtype, shape) = value.ty.dtype.zip(value.ty.static_shape()).ok_or_else(open)?;
            // One repeated value: its size takes no memory.
            Tensor::full(dtype, shape, 0.0).map_err(|e| ExecutorError(e.to_string()))
        };
        pinned.inputs().iter().map(of).collect()
    }

    fn run(&mut self, _graph: &Graph, _inputs: &[Tensor]) -> Result<Vec<Tensor>, ExecutorError> {
        nothing_runs()
    }

    fn load(&mut self, _graph: &Graph) -> Result<Box<dyn Program>, ExecutorError> {
        nothing_runs()
    }
}
