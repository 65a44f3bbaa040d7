//! What a model says about itself: versions, operator sets, functions.

use crate::error::Problem;
use crate::source::model;
use crate::wire::Message;
use crate::{NEWEST_IR_VERSION, NEWEST_OPSET, OLDEST_OPSET};
use std::collections::BTreeSet;

pub(super) fn ir_version(model: &Message) -> Result<i64, Problem> {
    let found = model.varint(model::IR_VERSION).map(|v| v as i64);
    match found {
        Some(v) if (1..=NEWEST_IR_VERSION).contains(&v) => Ok(v),
        found => Err(Problem::IrVersion {
            found: found.map_or_else(|| "none".to_owned(), |v| v.to_string()),
            newest: NEWEST_IR_VERSION,
        }),
    }
}

/// Version of the standard operator set; 0 if the file imports none, which is fine as long as no
/// node is of the standard domain.
pub(super) fn standard_opset(model: &Message, ir_version: i64) -> Result<i64, Problem> {
    let damaged = |e| Problem::damaged("opset_import", e);
    // Before IR version 3 there was only one operator set, and it was version 1.
    let mut version = if ir_version < 3 { 1 } else { 0 };
    for import in model.all(model::OPSET_IMPORT) {
        let import = Message::parse(model.body(import)).map_err(damaged)?;
        if is_standard(&import.string(1).map_err(damaged)?.unwrap_or_default()) {
            version = import.varint(2).unwrap_or(0) as i64;
            check_opset(version)?;
        }
    }
    if version != 0 {
        check_opset(version)?;
    }
    Ok(version)
}

fn check_opset(version: i64) -> Result<(), Problem> {
    let remedy = match version {
        OLDEST_OPSET..=NEWEST_OPSET => return Ok(()),
        v if v < OLDEST_OPSET => "convert the model with onnx.version_converter",
        _ => "convert the model with onnx.version_converter, or use a newer basisopt",
    };
    Err(Problem::Opset { found: version.to_string(), oldest: OLDEST_OPSET, newest: NEWEST_OPSET, remedy })
}

pub(crate) fn is_standard(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

/// Domain and name of every model-local function.
pub(crate) fn functions(model: &Message) -> Result<BTreeSet<(String, String)>, Problem> {
    let key = |function| {
        let function = Message::parse(model.body(function))?;
        Ok((function.string(10)?.unwrap_or_default(), function.string(1)?.unwrap_or_default()))
    };
    model
        .all(model::FUNCTION)
        .map(key)
        .collect::<Result<_, String>>()
        .map_err(|e| Problem::damaged("a model function", e))
}
