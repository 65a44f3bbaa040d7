//! The world as passes see it: the caller's callback, files that options name, training without checkpoints.

use crate::options::BasisoptProgress;
use basisopt_passes::{Host, Session};
use basisopt_train::watch::{Epoch, Progress, Watch};
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What was last told.
#[derive(Debug, Default)]
struct Told {
    what: CString,
    done: usize,
    total: usize,
}

/// The callback and what it said. It is asked by whichever thread is at work, never by two at once.
#[derive(Debug)]
pub(crate) struct World {
    callback: BasisoptProgress,
    user: *mut c_void,
    told: Mutex<Told>,
    stopped: AtomicBool,
}

// SAFETY: `user` is only ever passed to `callback`, under the lock of `told`; that the two may be used from several
// threads in turn is what the header asks of them.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

impl World {
    pub(crate) fn new(callback: BasisoptProgress, user: *mut c_void) -> Self {
        Self { callback, user, told: Mutex::default(), stopped: AtomicBool::new(false) }
    }

    fn tell(&self, what: &str, done: usize, total: usize) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        *told = Told { what: c_text(what), done, total };
        self.call(&told);
    }

    /// Whether to stop. Where another thread is with the callback, what that was told before has to do.
    pub(crate) fn stops(&self) -> bool {
        if !self.stopped.load(Ordering::Relaxed)
            && let Ok(told) = self.told.try_lock()
        {
            self.call(&told);
        }
        self.stopped.load(Ordering::Relaxed)
    }

    fn call(&self, told: &Told) {
        if let Some(callback) = self.callback
            && !self.stopped.load(Ordering::Relaxed)
        {
            // SAFETY: the caller gave this function for these arguments; the text outlives the call.
            let answer = unsafe { callback(told.what.as_ptr(), told.done, told.total, self.user) };
            if answer != 0 {
                self.stopped.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl Host for World {
    fn read_text(&self, path: &str) -> Result<String, String> {
        std::fs::read_to_string(path).map_err(|e| e.to_string())
    }

    fn stage(&self, name: &str) {
        self.tell(name, 0, 0);
    }

    fn progress(&self, done: usize, total: usize, what: &str) {
        self.tell(what, done, total);
    }

    fn interrupted(&self) -> bool {
        self.stops()
    }
}

/// A run of training that is shown and may be stopped, and keeps no checkpoints: there is no file to keep them in.
#[derive(Debug)]
pub(crate) struct Training {
    world: Arc<World>,
    began: Instant,
}

impl Training {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, began: Instant::now() }
    }
}

impl Watch for Training {
    fn step(&mut self, progress: &Progress) {
        let n = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        self.world.tell("training", n(progress.step), n(progress.n_steps));
    }

    fn epoch(&mut self, _epoch: &Epoch) {}

    fn note(&mut self, text: &str) {
        self.world.tell(text, 0, 0);
    }

    fn seconds(&mut self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    fn stops(&mut self) -> bool {
        self.world.stops()
    }

    fn wants_checkpoint(&mut self) -> bool {
        false
    }

    fn keep(&mut self, _checkpoint: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

impl Session for Training {
    fn resume(&mut self) -> Option<Vec<u8>> {
        None
    }
}

/// Text for C, which ends at the first zero: zeros inside are replaced.
pub(crate) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}
