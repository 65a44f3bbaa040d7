//! Long work beside the interpreter: on threads of its own, without the GIL, while the calling thread looks after
//! signals and progress.
//!
//! Python delivers Ctrl-C to the main thread only, and only when that thread asks. So the caller waits in short steps and
//! asks between them; the work never touches Python and only looks at a flag. Every call has its own pool of threads: a
//! pool that is shared would be lost in a forked process, and one call would wait for another.

use crate::errors;
use basisopt_embed::EmbedError;
use basisopt_passes::panic_message;
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long the calling thread waits before it looks after signals again.
const TICK: Duration = Duration::from_millis(40);
/// Progress is reported no more often than this.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// How long work has to stop by itself; the caller does not wait for it any longer.
const GRACE: Duration = Duration::from_millis(700);
/// Stack of the threads: as much as the main thread of a program has, and more than Python's own may have.
const STACK: usize = 16 << 20;

/// Where the work stands.
#[derive(Clone, Debug, Default)]
struct News {
    /// Stages that began and were not reported yet.
    stages: Vec<String>,
    /// The stage that is going on.
    stage: String,
    /// Its progress, where it was not reported yet.
    progress: Option<(usize, usize, String)>,
}

/// What the work and the calling thread share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    stopped: AtomicBool,
    news: Mutex<News>,
}

impl Shared {
    /// Whether the work is to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// A stage begins: a pass, or work between passes.
    pub(crate) fn stage(&self, name: &str) {
        let mut news = self.news();
        name.clone_into(&mut news.stage);
        news.stages.push(name.to_owned());
        news.progress = None;
    }

    /// The stage goes on.
    pub(crate) fn progress(&self, done: usize, total: usize, what: &str) {
        self.news().progress = Some((done, total, what.to_owned()));
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be reported now.
    fn take(&self) -> News {
        let mut news = self.news();
        let taken = news.clone();
        (news.stages, news.progress) = (Vec::new(), None);
        taken
    }
}

/// How a call is run.
pub(crate) struct Call<'py> {
    /// Called with `(stage, done, total, what)`, ten times a second at most and at the start of every stage.
    pub progress: Option<Bound<'py, PyAny>>,
    /// Threads of the work; as many as there are cores if `None`.
    pub threads: Option<usize>,
    /// The work has something to save when it is stopped: it is waited for, until the next signal.
    pub saves: bool,
}

/// Why there is no result.
enum Failure {
    Error(EmbedError),
    Threads(String),
    Panic(String),
}

/// What a worker sends, once.
type Done<T> = Result<T, Failure>;

/// Runs work that takes long. Whatever a signal handler or the progress callback raises stops the work and comes out as it
/// is; a panic comes out as an error.
///
/// # Errors
/// What the work, a signal handler or the callback raised.
pub(crate) fn run<T: Send + 'static>(
    py: Python<'_>,
    call: &Call<'_>,
    work: impl FnOnce(&Arc<Shared>) -> Result<T, EmbedError> + Send + 'static,
) -> PyResult<T> {
    let shared = Arc::new(Shared::default());
    let (sender, receiver) = mpsc::channel();
    let receiver = Mutex::new(receiver);
    let (theirs, n_threads) = (shared.clone(), call.threads.unwrap_or(0));
    let job = move || {
        let done = catch_unwind(AssertUnwindSafe(|| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).stack_size(STACK).build();
            let pool = pool.map_err(|e| Failure::Threads(e.to_string()))?;
            pool.install(|| work(&theirs)).map_err(Failure::Error)
        }));
        let done = done.unwrap_or_else(|payload| Err(Failure::Panic(panic_message(&*payload))));
        // The caller is gone where it did not wait for work that was stopped.
        let _ = sender.send(done);
    };
    let no_threads =
        |e: &str| errors::plain(py, &format!("the threads cannot be started: {e}; ask for fewer"));
    let worker = thread::Builder::new().name("basisopt".to_owned()).stack_size(STACK).spawn(job);
    let worker = worker.map_err(|e| no_threads(&e.to_string()))?;
    let done = match wait(py, call, &shared, &receiver) {
        Ok(done) => done,
        Err(raised) => {
            shared.stopped.store(true, Ordering::Relaxed);
            give_up(py, call, &receiver);
            return Err(raised);
        }
    };
    // It has said its last word.
    let _ = py.detach(|| worker.join());
    report(call, &shared.take())?;
    done.map_err(|failure| match failure {
        Failure::Error(EmbedError::Interrupted) => PyKeyboardInterrupt::new_err(()),
        Failure::Error(error) => errors::of_embed(py, &error),
        Failure::Threads(reason) => no_threads(&reason),
        Failure::Panic(message) => errors::bug(py, &message),
    })
}

/// The worker's word, if it comes within a tick.
fn next<T: Send>(py: Python<'_>, receiver: &Mutex<Receiver<Done<T>>>) -> Result<Done<T>, RecvTimeoutError> {
    py.detach(|| receiver.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(TICK))
}

/// Waits for the work.
fn wait<T: Send>(
    py: Python<'_>,
    call: &Call<'_>,
    shared: &Shared,
    receiver: &Mutex<Receiver<Done<T>>>,
) -> PyResult<Done<T>> {
    let mut reported: Option<Instant> = None;
    loop {
        match next(py, receiver) {
            Ok(done) => return Ok(done),
            Err(RecvTimeoutError::Disconnected) => {
                return Ok(Err(Failure::Panic("the work ended without a result".to_owned())));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        py.check_signals()?;
        if reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
            report(call, &shared.take())?;
            reported = Some(Instant::now());
        }
    }
}

/// Waits for work that was told to stop: for as long as it has something to save, or else not for long.
fn give_up<T: Send>(py: Python<'_>, call: &Call<'_>, receiver: &Mutex<Receiver<Done<T>>>) {
    let since = Instant::now();
    while call.saves || since.elapsed() < GRACE {
        let next = next(py, receiver);
        // A second Ctrl-C does not wait.
        if !matches!(next, Err(RecvTimeoutError::Timeout)) || py.check_signals().is_err() {
            return;
        }
    }
}

/// Calls back with what is new.
fn report(call: &Call<'_>, news: &News) -> PyResult<()> {
    let Some(callback) = &call.progress else { return Ok(()) };
    for stage in &news.stages {
        callback.call1((stage, 0, 0, ""))?;
    }
    if let Some((done, total, what)) = &news.progress {
        callback.call1((&news.stage, done, total, what))?;
    }
    Ok(())
}

/// Short work on this thread, without the GIL. A panic becomes an error.
///
/// # Errors
/// What `map` makes of the work's error, and panics.
pub(crate) fn detached<T: Send, E: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T, E> + Send,
    map: impl FnOnce(Python<'_>, &E) -> PyErr,
) -> PyResult<T> {
    match py.detach(|| catch_unwind(AssertUnwindSafe(work))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(map(py, &error)),
        Err(payload) => Err(errors::bug(py, &panic_message(&*payload))),
    }
}
