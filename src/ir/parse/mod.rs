//! `.bir` text to graphs. The format's reference is `docs/ir.md`; [`crate::print`] writes it.
//!
//! The grammar has no recursion and one token of lookahead; a text costs time and memory in
//! proportion to its length, because generated constants make no values here.
//!
//! ```
//! let text = "graph @g(%x: f32[N,8]) -> (%y) {\n  %y: f32[N,8] = Relu(%x)\n}\n";
//! let graph = basisopt_ir::parse::parse(text)?;
//! assert_eq!(basisopt_ir::print::print(&graph), text);
//! # Ok::<(), basisopt_ir::parse::ParseError>(())
//! ```

mod attr;
mod error;
mod lexer;
mod parser;
mod tensor;

pub use error::ParseError;

use crate::graph::Graph;

/// Reads a graph.
///
/// A value must be defined above the lines that read it. Types are taken as they are written;
/// [`mod@crate::infer`] and [`mod@crate::verify`] check them.
///
/// # Errors
/// [`ParseError`] at the first place that is not what the format expects.
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    parser::Parser::new(text).and_then(parser::Parser::graph).map_err(|fault| fault.locate(text))
}

impl std::str::FromStr for Graph {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        parse(text)
    }
}

/// The directives at the head of a fixture: its leading comment lines of the form `// key: value`,
/// in order. A key is lower-case letters, digits and dashes; other comments and blank lines among
/// them are skipped.
///
/// ```
/// let text = "// passes: dead-code\n// Nothing reads the second branch.\ngraph @g() -> () {\n}\n";
/// let directives = basisopt_ir::parse::directives(text);
/// assert_eq!(directives, [("passes".to_owned(), "dead-code".to_owned())]);
/// ```
pub fn directives(text: &str) -> Vec<(String, String)> {
    let is_key = |key: &str| {
        key.starts_with(|c: char| c.is_ascii_lowercase())
            && key.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
    };
    text.lines()
        .map(str::trim)
        .take_while(|line| line.is_empty() || line.starts_with("//"))
        .filter_map(|line| line.strip_prefix("//")?.split_once(':'))
        .map(|(key, value)| (key.trim(), value.trim()))
        .filter(|(key, _)| is_key(key))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}
