//! All cases of a list: taken, held against what is stored, accepted.

use crate::compare::{Comparison, compare};
use crate::error::SnapshotError;
use crate::files;
use crate::snapshot::{Settings, Snapshot};
use crate::spec::{Case, EXTENSION, Spec};
use basisopt_passes::{Globs, Host, Registry, panic_message};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Begins the first line of snapshot files, whatever their version: other files are nobody's orphans.
const HEAD: &str = "// snapshot: ";

/// The cases of a list.
#[derive(Clone, Debug)]
pub struct Suite {
    spec: Spec,
    registry: Registry,
    cases: Vec<Case>,
}

/// How cases are run.
#[derive(Clone, Copy)]
pub struct RunOptions<'a> {
    /// Cases that are run at a time, at least one. The outcome does not depend on it.
    pub jobs: usize,
    /// Run only the cases whose name matches, and look for no orphans.
    pub filter: Option<&'a Globs>,
    /// Asked between cases and in passes: whether to stop.
    pub interrupted: &'a (dyn Fn() -> bool + Sync),
}

impl Default for RunOptions<'_> {
    fn default() -> Self {
        Self { jobs: 1, filter: None, interrupted: &|| false }
    }
}

impl std::fmt::Debug for RunOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunOptions").field("jobs", &self.jobs).finish_non_exhaustive()
    }
}

/// How a case stands to its stored snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// As stored, but for noise.
    Equal,
    /// Nothing is stored; the new text.
    Missing(String),
    /// As compared.
    Different(Comparison),
    /// No snapshot could be taken, or the stored one not be read: the reason.
    Failed(String),
}

impl Status {
    /// How a new text stands to what a file holds.
    pub fn of(file: &Path, new: &str) -> Self {
        // What is no text, as after a merge that went wrong, differs and can be replaced.
        match std::fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()) {
            Ok(stored) => match compare(&stored, new) {
                comparison if comparison.is_equal() => Self::Equal,
                comparison => Self::Different(comparison),
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Self::Missing(new.to_owned()),
            Err(e) => Self::Failed(SnapshotError::io("read", file)(e).to_string()),
        }
    }

    /// Writes the file, whole, where it is missing or differs; says whether it was written.
    ///
    /// # Errors
    /// [`SnapshotError::Io`]; the file is then as it was.
    pub fn store(&self, file: &Path) -> Result<bool, SnapshotError> {
        let text = match self {
            Self::Missing(text) => text,
            Self::Different(comparison) => comparison.settled(),
            Self::Equal | Self::Failed(_) => return Ok(false),
        };
        files::write_whole(file, text)?;
        Ok(true)
    }
}

/// What came of one case.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The case.
    pub case: Case,
    /// How it stands.
    pub status: Status,
    /// The time that it took, alone or beside others.
    pub time: Duration,
}

/// What came of all cases.
#[derive(Clone, Debug)]
pub struct Report {
    /// One for each case that was run, in the order of the list.
    pub outcomes: Vec<Outcome>,
    /// Stored snapshots that no case has any more, in order.
    pub orphans: Vec<PathBuf>,
}

/// What was changed on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Files that were written.
    pub written: Vec<PathBuf>,
    /// Orphans that were removed.
    pub removed: Vec<PathBuf>,
}

impl Report {
    /// Whether all is as stored.
    pub fn is_equal(&self) -> bool {
        self.orphans.is_empty() && self.outcomes.iter().all(|o| o.status == Status::Equal)
    }
}

impl Suite {
    /// The cases of a list, with the passes of a registry.
    ///
    /// # Errors
    /// As [`Spec::cases`].
    pub fn new(spec: Spec, registry: Registry) -> Result<Self, SnapshotError> {
        let cases = spec.cases(&registry)?;
        Ok(Self { spec, registry, cases })
    }

    /// The list.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its cases, in order.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// Takes the snapshots of all cases, several at a time, and holds them against the stored ones. `progress` is told how many
    /// of how many cases are done, and which came last.
    ///
    /// # Errors
    /// [`SnapshotError::Interrupted`], and [`SnapshotError::Io`] if the folder of snapshots cannot be read. What is
    /// wrong with one case is its [`Status::Failed`].
    pub fn check(
        &self,
        options: &RunOptions<'_>,
        progress: &mut dyn FnMut(usize, usize, &str),
    ) -> Result<Report, SnapshotError> {
        let wanted = |case: &&Case| options.filter.is_none_or(|f| f.matches(&case.name));
        let cases: Vec<&Case> = self.cases.iter().filter(wanted).collect();
        let host = Beside { dir: self.spec.dir(), interrupted: options.interrupted };
        let mut outcomes: Vec<Option<Outcome>> = vec![None; cases.len()];
        let next = AtomicUsize::new(0);
        let (sender, receiver) = mpsc::channel();
        // Threads of their own and not rayon's: there, a case that waits for a decomposition would begin another
        // case on its stack.
        std::thread::scope(|scope| {
            for _ in 0..options.jobs.clamp(1, cases.len().max(1)) {
                let (sender, next, cases, host) = (sender.clone(), &next, &cases, &host);
                scope.spawn(move || {
                    while !host.interrupted()
                        && let index = next.fetch_add(1, Ordering::Relaxed)
                        && let Some(case) = cases.get(index)
                    {
                        // The receiver outlives this loop.
                        let _ = sender.send((index, self.run(case, host)));
                    }
                });
            }
            drop(sender);
            for (n, (index, outcome)) in receiver.iter().enumerate() {
                progress(n + 1, cases.len(), &outcome.case.name);
                outcomes[index] = Some(outcome);
            }
        });
        if (options.interrupted)() {
            return Err(SnapshotError::Interrupted);
        }
        let orphans = if options.filter.is_none() { self.orphans()? } else { vec![] };
        Ok(Report { outcomes: outcomes.into_iter().flatten().collect(), orphans })
    }

    /// Writes what is missing or differs, and nothing that differs by noise alone. Orphans are removed if that is
    /// wanted. Cases that failed are left as they are.
    ///
    /// # Errors
    /// [`SnapshotError::Io`]; every file is then as it was or as it should be.
    pub fn accept(&self, report: &Report, remove_orphans: bool) -> Result<Accepted, SnapshotError> {
        let mut accepted = Accepted::default();
        for outcome in &report.outcomes {
            if outcome.status.store(&outcome.case.file)? {
                accepted.written.push(outcome.case.file.clone());
            }
        }
        for orphan in report.orphans.iter().filter(|_| remove_orphans) {
            std::fs::remove_file(orphan).map_err(SnapshotError::io("remove", orphan))?;
            accepted.removed.push(orphan.clone());
            let below =
                |folder: &&Path| folder.starts_with(self.spec.folder()) && *folder != self.spec.folder();
            for folder in orphan.ancestors().skip(1).take_while(below) {
                // Only what is empty goes.
                if std::fs::remove_dir(folder).is_err() {
                    break;
                }
            }
        }
        Ok(accepted)
    }

    /// Takes the snapshot of one case and holds it against the stored one, for runners that have cases of their own.
    /// `interrupted` is asked in passes; the case of a run that was interrupted has failed.
    pub fn check_case(&self, case: &Case, interrupted: &(dyn Fn() -> bool + Sync)) -> Outcome {
        self.run(case, &Beside { dir: self.spec.dir(), interrupted })
    }

    fn run(&self, case: &Case, host: &Beside<'_>) -> Outcome {
        let started = Instant::now();
        let status = self.status(case, host);
        Outcome { case: case.clone(), status, time: started.elapsed() }
    }

    fn status(&self, case: &Case, host: &Beside<'_>) -> Status {
        let settings = Settings { registry: self.registry.clone(), host, dims: case.dims.clone() };
        // Whatever panics outside of a pass, which the manager sees to, is a bug: the other cases go on.
        let taken = catch_unwind(AssertUnwindSafe(|| {
            Snapshot::of_file(&case.model, &case.path, &case.pipeline, &settings)
        }));
        let new = match taken {
            Ok(Ok(snapshot)) => snapshot,
            Ok(Err(error)) => return Status::Failed(error.to_string()),
            Err(panic) => {
                return Status::Failed(format!(
                    "the case panicked: {}; this is a bug",
                    panic_message(&*panic)
                ));
            }
        };
        Status::of(&case.file, new.text())
    }

    /// Snapshot files below the folder that no case has, in order.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] if the folder cannot be read.
    pub fn orphans(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        let folder = self.spec.folder();
        if !folder.exists() {
            return Ok(vec![]);
        }
        // Where `A` and `a` are one file, it is under either name.
        let known: BTreeSet<PathBuf> =
            self.cases.iter().map(|c| c.file.canonicalize().unwrap_or_else(|_| c.file.clone())).collect();
        let found = files::walk(folder).map_err(SnapshotError::io("read", folder))?;
        let is_orphan = |path: &PathBuf| {
            path.extension().is_some_and(|e| e == EXTENSION)
                && !known.contains(&path.canonicalize().unwrap_or_else(|_| path.clone()))
                // Snapshots of other tools have the same ending.
                && std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(HEAD.as_bytes()))
        };
        Ok(found.into_iter().map(|(_, path)| path).filter(is_orphan).collect())
    }
}

/// Files that options of passes name lie beside the list.
struct Beside<'a> {
    dir: &'a Path,
    interrupted: &'a (dyn Fn() -> bool + Sync),
}

impl Host for Beside<'_> {
    fn read_text(&self, path: &str) -> Result<String, String> {
        std::fs::read_to_string(self.dir.join(path)).map_err(|e| e.to_string())
    }

    fn progress(&self, _done: usize, _total: usize, _what: &str) {}

    fn interrupted(&self) -> bool {
        (self.interrupted)()
    }
}
