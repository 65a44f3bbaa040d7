//! The Python package's compiled half: models, pipelines, the recipe.
//!
//! `basisopt/` beside this file is the other half, in Python: it turns models, arrays, tensors and iterables of all kinds
//! into bytes, and reports into dicts. This half does the work, on threads of its own and without the GIL.
//!
//! | module | what it holds |
//! |---|---|
//! | `model` | the class `Model`: what can be done to a model |
//! | `work` | long work beside the interpreter: signals, progress, panics |
//! | `host` | what passes may use of the world |
//! | `snapshot` | what pipelines make of models, as text |
//! | `data`, `options` | what came from Python |
//! | `errors` | errors as Python's exceptions |

mod data;
mod errors;
mod host;
mod model;
mod options;
mod snapshot;
mod work;

use pyo3::prelude::*;

/// The module `basisopt._basisopt`.
#[pymodule]
mod _basisopt {
    use crate::model::json;
    use basisopt_passes::Registry;
    use pyo3::prelude::*;
    use serde::Serialize;

    #[pymodule_export]
    use crate::model::{Model, write};

    #[pymodule_export]
    use crate::snapshot::{Cases, diff, hold, take};

    /// The version of the package.
    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "Python's name for it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    #[derive(Serialize)]
    struct Pass {
        name: &'static str,
        summary: &'static str,
        fidelity: String,
        options: Vec<PassOption>,
    }

    #[derive(Serialize)]
    struct PassOption {
        name: &'static str,
        accepts: String,
        default: &'static str,
        help: &'static str,
    }

    /// What passes there are, as JSON.
    #[pyfunction]
    fn passes() -> String {
        let registry = Registry::builtin();
        let option = |o: &basisopt_passes::OptionSpec| PassOption {
            name: o.name,
            accepts: o.kind.describe(),
            default: o.default,
            help: o.help,
        };
        let passes = registry.passes().iter().map(|info| Pass {
            name: info.name,
            summary: info.summary,
            fidelity: info.fidelity.to_string(),
            options: info.options.iter().map(option).collect(),
        });
        json(&passes.collect::<Vec<_>>())
    }

    /// Names of the presets, and the pipelines that they stand for.
    #[pyfunction]
    fn presets() -> Vec<(&'static str, &'static str)> {
        Registry::builtin().presets().to_vec()
    }

    /// Panics on a thread of its own, as the library would if it had a bug: for the tests.
    #[pyfunction]
    #[allow(clippy::panic, reason = "this is what it is for")]
    fn panic(py: Python<'_>, message: String) -> PyResult<()> {
        let call = crate::work::Call { progress: None, threads: None, saves: false };
        crate::work::run(py, &call, move |_| panic!("{message}"))
    }
}
