//! The executor: a graph compiled into steps on lane tensors, in memory planned beforehand.

mod buffer;
mod compile;
mod fuse;
mod kernel;
mod ops;
pub(crate) use ops::resize;

mod program;
mod units;

pub use compile::{CompileError, Plan};
pub use program::{Port, Program, Shared, Sums, Workspace};
