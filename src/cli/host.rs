//! What passes may use of the world, in the program: files, a progress bar, Ctrl-C.

use crate::progress::{Progress, interrupted};
use basisopt_passes::Host;
use std::cell::RefCell;

/// The host of the program.
pub(crate) struct CliHost {
    quiet: bool,
    /// The bar of the pass that is running.
    progress: RefCell<Option<Progress>>,
}

impl CliHost {
    /// A host that shows progress unless `quiet`. Ctrl-C is caught from here on.
    pub(crate) fn new(quiet: bool) -> Self {
        interrupted();
        Self { quiet, progress: RefCell::new(None) }
    }

    /// A pass begins; a bar of its own appears if it takes long.
    pub(crate) fn begin(&self, pass: &str) {
        *self.progress.borrow_mut() = Some(Progress::new(pass, self.quiet));
    }

    /// The pass is over; its bar goes.
    pub(crate) fn end(&self) {
        *self.progress.borrow_mut() = None;
    }
}

impl Host for CliHost {
    fn read_text(&self, path: &str) -> Result<String, String> {
        std::fs::read_to_string(path).map_err(|e| e.to_string())
    }

    fn stage(&self, name: &str) {
        self.begin(name);
    }

    fn progress(&self, done: usize, total: usize, what: &str) {
        if let Some(progress) = &*self.progress.borrow() {
            progress.update(done, total, what);
        }
    }

    fn interrupted(&self) -> bool {
        interrupted()
    }
}
