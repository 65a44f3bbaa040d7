//! What a device profile predicts for networks, beside what they take.

use crate::bench::significant;
use crate::network;
use crate::profile_device::{pace_ms, references};
use crate::table::{render, shorten, table};
use anyhow::Context as _;
use basisopt_ir::infer::infer;
use basisopt_passes::device::{DeviceModel, DeviceProfile};
use basisopt_passes::{Manager, NoObserver, Pipeline, Registry, cost};
use basisopt_runtime::{BenchResult, Source};
use std::path::{Path, PathBuf};

/// What an inference engine does with a network before it runs it.
const FOLDING: &str = "freeze-weights,@fold";

/// Reads a profile.
///
/// # Errors
/// If the file cannot be read, or is none.
fn read(path: &Path) -> anyhow::Result<DeviceProfile> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    DeviceProfile::parse(&text).with_context(|| path.display().to_string())
}

/// Predictions at the pace of the profile, in the order of the networks.
pub(crate) struct Predictor {
    profile: DeviceProfile,
    ms: Vec<f64>,
}

impl Predictor {
    /// Predicts for one image in each network.
    ///
    /// # Errors
    /// If a file cannot be read, or the profile lacks what a network needs.
    pub(crate) fn new(path: &Path, models: &[PathBuf], dims: &[(String, usize)]) -> anyhow::Result<Self> {
        let profile = read(path)?;
        let model = DeviceModel::new(&profile);
        let pipeline = Pipeline::parse(FOLDING, &Registry::builtin())?;
        let of = |path: &PathBuf| {
            let file = || path.display().to_string();
            let mut graph = network::read(path)?.graph;
            Manager::default().run(&mut graph, &pipeline, &mut NoObserver).with_context(file)?;
            cost::pin(&mut graph, dims);
            infer(&mut graph).with_context(file)?;
            model.network_ms(&graph).with_context(file)
        };
        let ms = models.iter().map(of).collect::<anyhow::Result<_>>()?;
        Ok(Self { profile, ms })
    }

    /// What is to run along, to see at which pace the machine is.
    ///
    /// # Errors
    /// If it cannot be encoded, which is a bug.
    pub(crate) fn references(&self) -> anyhow::Result<Vec<Source>> {
        references(self.profile.fused)
    }

    /// The predictions for this pace.
    pub(crate) fn predict(self, references: &[BenchResult]) -> Predictions {
        let pace = pace_ms(references.iter().map(|r| r.median_ms)) / self.profile.pace_ms();
        Predictions { pace, ms: self.ms.iter().map(|ms| ms * pace).collect() }
    }
}

/// Predictions for networks that were measured.
pub(crate) struct Predictions {
    /// Times of the references, by what they were when the profile was made.
    pace: f64,
    ms: Vec<f64>,
}

impl Predictions {
    /// For this network.
    pub(crate) fn ms(&self, result: &BenchResult) -> Option<f64> {
        self.ms.get(result.source).copied()
    }

    /// A table of them.
    pub(crate) fn text(&self, results: &[BenchResult]) -> String {
        let mut rows = table(&["file", "median ms", "predicted", "off by"]);
        for r in results {
            let Some(ms) = self.ms(r) else { continue };
            rows.add_row([
                shorten(&r.file, 48),
                significant(r.median_ms),
                significant(ms),
                format!("{:+.1} %", 100.0 * (ms / r.median_ms - 1.0)),
            ]);
        }
        format!(
            "\nreferences took {:.2} times as long as when the profile was made\n{}",
            self.pace,
            render(&rows)
        )
    }
}
