//! The intermediate representation of `basisopt`: a typed graph of tensor operators.
//!
//! What flows through the program is a [`Graph`]: values are named tensors, nodes are operators,
//! and both keep the names they had in the ONNX file. Constants are ordinary nodes whose tensors
//! share their storage with the file they came from.
//!
//! | module | what it holds |
//! |---|---|
//! | [`tensor`] | element types and constant tensors, lazily generated or shared |
//! | [`dim`] | dimensions and shapes, known or symbolic |
//! | [`attr`] | attribute values, the common currency of ONNX, text and typed operators |
//! | [`op`] | the closed table of operators |
//! | [`graph`] | the graph itself and its mutation |
//! | [`rewrite`] | replacements as values, applied by a driver |
//! | [`infer`] | shape inference |
//! | [`mod@verify`] | the numbered invariants |
//! | [`mod@print`], [`mod@parse`], [`dot`] | the `.bir` text format and Graphviz output |

pub mod attr;
pub mod dim;
pub mod dot;
mod dtype;
pub mod extract;
mod generator;
pub mod graph;
pub mod infer;
pub mod op;
pub mod parse;
pub mod print;
pub mod rewrite;
pub mod tensor;
pub mod verify;

pub use attr::{Attr, Attrs};
pub use dim::{Dim, Shape};
pub use extract::Extract;
pub use graph::{Graph, Node, NodeId, Origin, Use, Value, ValueId, ValueType};
pub use op::Op;
pub use rewrite::{Operand, Rewrite, RewriteError};
pub use tensor::{DType, Generator, Tensor};
pub use verify::{Violation, Violations, verify};
