//! Progress on stderr for what takes over a second, and Ctrl-C.

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static INTERRUPTED: OnceLock<&'static AtomicBool> = OnceLock::new();

/// Whether Ctrl-C was pressed since the program started. The first call installs the handler; a
/// second Ctrl-C ends the program at once, which leaves no half-written file either, since outputs
/// are renamed into place.
pub(crate) fn interrupted() -> bool {
    static FLAG: AtomicBool = AtomicBool::new(false);
    let flag = INTERRUPTED.get_or_init(|| {
        // Where no handler can be installed, Ctrl-C simply ends the program.
        let _ = ctrlc::set_handler(|| {
            if FLAG.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        });
        &FLAG
    });
    flag.load(Ordering::SeqCst)
}

/// A progress bar that appears only once a task has taken a second, and never in a pipe.
pub(crate) struct Progress {
    what: String,
    started: Instant,
    quiet: bool,
    bar: RefCell<Option<ProgressBar>>,
}

impl Progress {
    /// A bar for this task.
    pub(crate) fn new(what: impl Into<String>, quiet: bool) -> Self {
        Self { what: what.into(), started: Instant::now(), quiet, bar: RefCell::new(None) }
    }

    /// `done` of `total` (0 if unknown) units are done; `item` is what is being worked at.
    pub(crate) fn update(&self, done: usize, total: usize, item: &str) {
        if self.quiet || self.started.elapsed() < Duration::from_secs(1) {
            return;
        }
        let mut bar = self.bar.borrow_mut();
        let bar = bar.get_or_insert_with(|| {
            let template = if total > 0 {
                "{prefix} {bar:24} {pos}/{len}  {wide_msg}"
            } else {
                "{prefix} {spinner} {pos}  {wide_msg}"
            };
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
            bar.set_style(style);
            bar.set_prefix(self.what.clone());
            bar
        });
        // By the average so far: the units of a task take much the same time each.
        let left =
            (done > 0 && total > done).then(|| self.started.elapsed() * (total - done) as u32 / done as u32);
        bar.set_message(match left {
            Some(left) => format!("{} left  {item}", HumanDuration(left)),
            None => item.to_owned(),
        });
        bar.set_position(done as u64);
    }
}

impl Progress {
    /// Prints a line on stderr, above the bar if there is one.
    pub(crate) fn above(&self, line: &str) {
        match &*self.bar.borrow() {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}
