//! How work is done, whatever the work.

use basisopt_passes::{Host, NoHost};
use basisopt_runtime::Engine;
use std::sync::Arc;

/// Asked now and then, from whichever thread is at work, whether to stop.
pub type Stop = Arc<dyn Fn() -> bool + Send + Sync>;

/// What all work has in common: seed, sizes, threads, and the world around it.
#[derive(Clone)]
pub struct Settings<'a> {
    /// Seed for everything random.
    pub seed: u64,
    /// Sizes for unknown dimensions of the inputs: by name, or as `INPUT:AXIS`. An open batch is 1 without.
    pub dims: Vec<(String, usize)>,
    /// Images per run where networks are measured; what the model fixes, if it does, or else 1.
    pub batch: Option<usize>,
    /// How tract runs networks that are timed.
    pub engine: Engine,
    /// Threads for networks that are timed.
    pub threads: usize,
    /// Files that options name, progress, and interruption between steps of a pass.
    pub host: &'a dyn Host,
    /// Interruption wherever networks run for long.
    pub stop: Stop,
}

impl Default for Settings<'_> {
    fn default() -> Self {
        Self {
            seed: 0,
            dims: Vec::new(),
            batch: None,
            engine: Engine::Fastest,
            threads: 1,
            host: &NoHost,
            stop: Arc::new(|| false),
        }
    }
}

impl std::fmt::Debug for Settings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("seed", &self.seed)
            .field("dims", &self.dims)
            .field("batch", &self.batch)
            .field("engine", &self.engine)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}
