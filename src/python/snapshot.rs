//! Snapshots: what pipelines make of models, as text that is held against files. `basisopt/snapshot.py` and the plugin for
//! pytest are made of it.

use crate::errors;
use crate::host::CallHost;
use crate::model::Model;
use crate::options::Options;
use crate::work::{Call, Shared, detached, run};
use basisopt_embed::EmbedError;
use basisopt_passes::{Host as _, Registry};
use basisopt_snapshot::{Settings, Snapshot, SnapshotError, Spec, Status, Suite, compare};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::path::PathBuf;
use std::sync::Arc;

/// How work here is called: it has no progress to report and nothing to save.
const CALL: Call<'static> = Call { progress: None, threads: None, saves: false };

/// A status for Python: its name, and the difference or the reason.
type Held = (&'static str, String);

/// The snapshot of a pipeline over a model.
#[pyfunction]
pub(crate) fn take(
    py: Python<'_>,
    model: &Bound<'_, Model>,
    name: String,
    pipeline: String,
    options: &Bound<'_, PyDict>,
) -> PyResult<String> {
    let graph = model.get().graph().clone();
    let dims = Options(options).dims()?;
    let taken = run(py, &CALL, move |shared| {
        let host = CallHost { shared: shared.clone(), given: None };
        let settings = Settings { host: &host, dims, ..Settings::default() };
        match Snapshot::of_graph(&name, graph, &pipeline, &settings) {
            Err(SnapshotError::Interrupted) => Err(EmbedError::Interrupted),
            taken => Ok(taken.map(|snapshot| snapshot.text().to_owned())),
        }
    })?;
    taken.map_err(|e| errors::of_snapshot(py, &e))
}

/// What differs between two snapshots, as a unified diff; nothing if that is noise.
#[pyfunction]
pub(crate) fn diff(stored: &str, new: &str, context: usize) -> String {
    compare(stored, new).diff("stored", "now", context)
}

/// Holds a snapshot against a file, which is written if it is missing or differs, and that is wanted.
#[pyfunction]
pub(crate) fn hold(py: Python<'_>, file: PathBuf, new: &str, accept: bool) -> PyResult<Held> {
    let hold = || settle(&Status::of(&file, new), &file, accept);
    detached(py, hold, errors::of_snapshot)
}

/// A list of cases.
#[pyclass(frozen, module = "basisopt._basisopt")]
pub(crate) struct Cases {
    suite: Arc<Suite>,
}

#[pymethods]
impl Cases {
    /// Reads a list, or that of a folder.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let load = || Suite::new(Spec::load(path)?, Registry::builtin());
        Ok(Self { suite: Arc::new(detached(py, load, errors::of_snapshot)?) })
    }

    /// `MODEL/PIPELINE` of every case.
    fn names(&self) -> Vec<&str> {
        self.suite.cases().iter().map(|c| c.name.as_str()).collect()
    }

    /// Runs the case of this number and holds it against its file.
    fn check(&self, py: Python<'_>, index: usize, accept: bool) -> PyResult<Held> {
        let Some(case) = self.suite.cases().get(index).cloned() else {
            return Err(errors::usage(py, &format!("there is no case number {index}")));
        };
        let suite = self.suite.clone();
        let held = run(py, &CALL, move |shared: &Arc<Shared>| {
            let host = CallHost { shared: shared.clone(), given: None };
            let outcome = suite.check_case(&case, &|| host.interrupted());
            if host.interrupted() {
                return Err(EmbedError::Interrupted);
            }
            Ok(settle(&outcome.status, &case.file, accept))
        })?;
        held.map_err(|e| errors::of_snapshot(py, &e))
    }

    /// Stored snapshots that no case has any more.
    fn orphans(&self, py: Python<'_>) -> PyResult<Vec<PathBuf>> {
        detached(py, || self.suite.orphans(), errors::of_snapshot)
    }
}

/// Stores what is wanted, and says how the rest stands.
fn settle(status: &Status, file: &std::path::Path, accept: bool) -> Result<Held, SnapshotError> {
    if accept && status.store(file)? {
        return Ok(("written", String::new()));
    }
    Ok(match status {
        Status::Equal => ("equal", String::new()),
        Status::Missing(_) => ("missing", String::new()),
        Status::Different(comparison) => ("different", comparison.diff("stored", "now", 3)),
        Status::Failed(reason) => ("failed", reason.clone()),
        // A status of a later version.
        other => ("failed", format!("{other:?}")),
    })
}
