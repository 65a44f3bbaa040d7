//! How work is done, whatever the work.

use basisopt_passes::{Host, NoHost, Session};
use basisopt_runtime::Engine;
use basisopt_train::watch::{Epoch, Progress, Watch};
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
    /// Files that options name, progress, and interruption.
    pub host: &'a dyn Host,
    /// Interruption, whatever is being done: beside what `host` and a session of training say, this is asked too.
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

/// The caller's host, that [`Settings::stop`] interrupts as well.
pub(crate) struct StoppedHost<'a> {
    host: &'a dyn Host,
    stop: Stop,
}

impl<'a> StoppedHost<'a> {
    pub(crate) fn new(settings: &Settings<'a>) -> Self {
        Self { host: settings.host, stop: settings.stop.clone() }
    }
}

impl Host for StoppedHost<'_> {
    fn read_text(&self, path: &str) -> Result<String, String> {
        self.host.read_text(path)
    }

    fn stage(&self, name: &str) {
        self.host.stage(name);
    }

    fn progress(&self, done: usize, total: usize, what: &str) {
        self.host.progress(done, total, what);
    }

    fn interrupted(&self) -> bool {
        self.host.interrupted() || (self.stop)()
    }
}

/// The caller's session, that [`Settings::stop`] stops as well.
pub(crate) struct StoppedSession<'a> {
    pub session: &'a mut dyn Session,
    pub stop: Stop,
}

impl Watch for StoppedSession<'_> {
    fn step(&mut self, progress: &Progress) {
        self.session.step(progress);
    }

    fn epoch(&mut self, epoch: &Epoch) {
        self.session.epoch(epoch);
    }

    fn resumed(&mut self, history: &[Epoch]) {
        self.session.resumed(history);
    }

    fn note(&mut self, text: &str) {
        self.session.note(text);
    }

    fn seconds(&mut self) -> f64 {
        self.session.seconds()
    }

    fn stops(&mut self) -> bool {
        self.session.stops() || (self.stop)()
    }

    fn wants_checkpoint(&mut self) -> bool {
        self.session.wants_checkpoint()
    }

    fn keep(&mut self, checkpoint: &[u8]) -> Result<(), String> {
        self.session.keep(checkpoint)
    }
}

impl Session for StoppedSession<'_> {
    fn resume(&mut self) -> Option<Vec<u8>> {
        self.session.resume()
    }

    fn ended(&mut self) {
        self.session.ended();
    }
}
