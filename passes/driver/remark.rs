//! Remarks: why a rule did or did not fire, and with what result.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// What a remark reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RemarkKind {
    /// A rewrite was made.
    Applied,
    /// A pattern matched, but the rewrite would not be legal or would not pay.
    Refused,
    /// Something worth knowing that is neither.
    Note,
}

/// One remark about one node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Remark {
    /// Name of the pass.
    pub pass: String,
    /// Label of the node ([`basisopt_ir::Node::label`]).
    pub node: String,
    /// What is reported.
    pub kind: RemarkKind,
    /// A short stable code in kebab case (`past-break-even`, `shared-weight`, …).
    pub code: String,
    /// The sentence for people.
    pub message: String,
    /// The numbers behind the sentence (`rank`, `energy`, …).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, f64>,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.kind {
            RemarkKind::Applied => "+",
            RemarkKind::Refused => "-",
            RemarkKind::Note => "·",
        };
        // What is said of the whole network has no node.
        let node = if self.node.is_empty() { String::new() } else { format!("{}: ", self.node) };
        write!(f, "{mark} {}: {node}{} [{}]", self.pass, self.message, self.code)
    }
}

/// Why a rewrite whose pattern matched was not made.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// A short stable code in kebab case.
    pub code: &'static str,
    /// The sentence for people.
    pub message: String,
    /// The numbers behind it.
    pub values: BTreeMap<String, f64>,
}

impl Refusal {
    /// A refusal without numbers.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), values: BTreeMap::new() }
    }

    /// Adds a number.
    #[must_use]
    pub fn with(mut self, key: &str, value: f64) -> Self {
        self.values.insert(key.to_owned(), value);
        self
    }
}
