//! Gradients of networks, and their training on CPUs.
//!
//! | module | what it holds |
//! |---|---|
//! | [`mod@differentiate`] | graph to graph: rules per operator, joined by a reverse walk |
//! | [`mod@lower`] | a gradient graph in the operators that ONNX has |
//! | [`mod@step`] | a step of training as one graph: network, loss, gradients |
//! | [`batch`] | opens a batch that a file fixes at one |
//! | [`loss`] | losses, as nodes of the graph |
//! | [`exec`] | the executor: a graph compiled into steps on lane tensors |
//! | [`task`] | what is trained, and towards what |
//! | [`trainer`] | loss and gradient of a batch, on all threads |
//! | [`statistics`] | moments of a network's values |
//! | [`stiefel`] | bases that stay orthonormal |
//! | [`examples`] | images, changed at random, in the layout of the kernels |
//! | [`optimizer`] | steps down the gradient, schedules |
//! | [`checkpoint`] | the state of runs as bytes |
//! | [`fit`] | a run: epochs, validation, checkpoints, recovery |
//! | [`watch`] | what a run is told, and what it tells |

pub mod batch;
pub mod checkpoint;
pub mod differentiate;
pub mod examples;
pub mod exec;
pub mod fit;
pub mod loss;
pub mod lower;
pub mod optimizer;
pub mod statistics;
pub mod step;
pub mod stiefel;
pub mod task;
pub mod trainer;
pub mod watch;

mod dropout;
mod norms;
