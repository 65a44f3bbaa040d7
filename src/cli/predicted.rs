//! What a device profile predicts for networks, beside what they take.

use crate::bench::significant;
use crate::engine::engine_name;
use crate::network;
use crate::profile_device::{pace_ms, references};
use crate::table::{render, shorten, table};
use anyhow::Context as _;
use basisopt_embed::executor::device;
use basisopt_ir::infer::infer;
use basisopt_passes::device::{DeviceModel, DeviceProfile, Work, works};
use basisopt_passes::{Manager, NoObserver, Pipeline, Registry, cost};
use basisopt_runtime::{BenchResult, Engine, Source};
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
    networks: Vec<Predicted>,
}

/// A network as the profile sees it.
struct Predicted {
    ms: f64,
    /// Whether any of its layers could run fused, so that the engine matters.
    has_pairs: bool,
}

impl Predictor {
    /// Predicts for one image in each network.
    ///
    /// # Errors
    /// If a file cannot be read, or the profile lacks what a network needs.
    pub(crate) fn new(
        path: &Path,
        models: &[PathBuf],
        dims: &[(String, usize)],
        threads: usize,
    ) -> anyhow::Result<Self> {
        let profile = read(path)?;
        let here = device(if profile.fused { Engine::Fused } else { Engine::Stock }, threads);
        if profile.device != here {
            eprintln!("note: {} is of another device: {}; this is {here}", path.display(), profile.device);
        }
        let model = DeviceModel::new(&profile);
        let pipeline = Pipeline::parse(FOLDING, &Registry::builtin())?;
        let of = |path: &PathBuf| {
            let file = || path.display().to_string();
            let mut graph = network::read(path)?.graph;
            Manager::default().run(&mut graph, &pipeline, &mut NoObserver).with_context(file)?;
            cost::pin(&mut graph, dims);
            infer(&mut graph).with_context(file)?;
            let works = works(&graph, true).with_context(file)?;
            let has_pairs = works.iter().any(|(_, work)| matches!(work, Work::Pair { .. }));
            Ok(Predicted { ms: model.network_ms(&graph).with_context(file)?, has_pairs })
        };
        let networks = models.iter().map(of).collect::<anyhow::Result<_>>()?;
        Ok(Self { profile, networks })
    }

    /// What is to run along, to see at which pace the machine is.
    ///
    /// # Errors
    /// If it cannot be encoded, which is a bug.
    pub(crate) fn references(&self) -> anyhow::Result<Vec<(Source, Engine)>> {
        references(self.profile.fused)
    }

    /// The predictions for the pace of these runs of the references.
    pub(crate) fn predict(self, references: &[BenchResult]) -> Predictions {
        let pace = pace_ms(references) / self.profile.pace_ms();
        Predictions { pace, fused: self.profile.fused, networks: self.networks }
    }
}

/// Predictions for networks that were measured.
pub(crate) struct Predictions {
    /// Times of the references, by what they were when the profile was made.
    pub pace: f64,
    fused: bool,
    networks: Vec<Predicted>,
}

impl Predictions {
    /// Milliseconds per image of this network at the pace it was measured at; `None` if it ran by another engine than the
    /// profile is of.
    pub(crate) fn ms(&self, result: &BenchResult) -> Option<f64> {
        let network = self.networks.get(result.source)?;
        let is_same = !network.has_pairs || self.fused == (result.n_fused > 0);
        is_same.then_some(network.ms * self.pace)
    }

    /// A table of them.
    pub(crate) fn text(&self, results: &[BenchResult]) -> String {
        let mut rows = table(&["file", "engine", "median ms", "predicted", "off by"]);
        for r in results {
            let measured = r.median_ms / r.batch as f64;
            let (ms, off) = match self.ms(r) {
                Some(ms) => (significant(ms), format!("{:+.1} %", 100.0 * (ms / measured - 1.0))),
                None => ("-".to_owned(), "-".to_owned()),
            };
            let engine = engine_name(&r.engine, r.n_fused);
            rows.add_row([shorten(&r.file, 48), engine, significant(measured), ms, off]);
        }
        format!(
            "\npredictions, the machine being {:.2} times as slow as when the profile was made\n{}",
            self.pace,
            render(&rows)
        )
    }
}
