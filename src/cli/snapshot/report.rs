//! What came of the cases, for people and for programs.

use crate::work::count;
use basisopt_snapshot::{Accepted, Outcome, Report, Status, Suite};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What `check` prints: what is not as stored, then how many are what.
pub(super) fn text(list: &Path, report: &Report, context: usize, lines: usize) -> String {
    let mut out = String::new();
    for outcome in &report.outcomes {
        let (name, file) = (&outcome.case.name, outcome.case.file.display());
        let _ = match &outcome.status {
            Status::Equal => Ok(()),
            Status::Missing(_) => writeln!(out, "missing    {name}: there is no {file}"),
            Status::Failed(reason) => writeln!(out, "failed     {name}: {reason}"),
            Status::Different(found) => {
                let diff = found.diff(&file.to_string(), "now", context);
                writeln!(out, "different  {name}\n{}", shortened(&diff, lines))
            }
            _ => writeln!(out, "unknown    {name}"),
        };
    }
    for orphan in &report.orphans {
        let _ = writeln!(out, "orphaned   {}: no case has it", orphan.display());
    }
    let counts = Counts::of(report);
    let parts = [
        (counts.equal, "equal"),
        (counts.different, "different"),
        (counts.missing, "missing"),
        (counts.failed, "failed"),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(n, what)| *n > 0 || *what == "equal")
        .map(|(n, what)| format!("{n} {what}"))
        .collect();
    let _ = write!(out, "{}: {}", count(report.outcomes.len(), "case"), parts.join(", "));
    if !report.orphans.is_empty() {
        let _ = write!(out, "; {} orphaned", count(report.orphans.len(), "snapshot"));
    }
    out.push('\n');
    let list = list.display();
    if counts.different + counts.missing > 0 {
        let _ = writeln!(out, "If this is as it should be: basisopt snapshot accept {list}");
    }
    if !report.orphans.is_empty() {
        let _ = writeln!(out, "To delete orphans: basisopt snapshot accept {list} --remove-orphans");
    }
    out
}

/// The first lines of a diff.
fn shortened(diff: &str, n: usize) -> String {
    let total = diff.lines().count();
    if n == 0 || total <= n {
        return diff.to_owned();
    }
    let head: String = diff.split_inclusive('\n').take(n).collect();
    format!("{head}… and {}; --lines 0 shows all\n", count(total - n, "more line"))
}

/// Cases by how they stand.
#[derive(Debug, Default, Serialize)]
struct Counts {
    equal: usize,
    different: usize,
    missing: usize,
    failed: usize,
}

impl Counts {
    fn of(report: &Report) -> Self {
        let mut counts = Self::default();
        for outcome in &report.outcomes {
            match &outcome.status {
                Status::Equal => counts.equal += 1,
                Status::Different(_) => counts.different += 1,
                Status::Missing(_) => counts.missing += 1,
                _ => counts.failed += 1,
            }
        }
        counts
    }
}

/// The outcome as JSON.
#[derive(Serialize)]
pub(super) struct JsonReport<'a> {
    list: &'a Path,
    counts: Counts,
    cases: Vec<JsonCase<'a>>,
    /// Snapshots that no case has.
    orphans: &'a [PathBuf],
    /// What `accept` wrote and removed.
    written: Vec<PathBuf>,
    removed: Vec<PathBuf>,
}

#[derive(Serialize)]
struct JsonCase<'a> {
    name: &'a str,
    model: &'a str,
    pipeline: &'a str,
    file: &'a Path,
    status: &'static str,
    /// The whole diff, where the status is `different`.
    diff: Option<String>,
    /// Where it is `failed`.
    reason: Option<&'a str>,
}

impl<'a> JsonReport<'a> {
    pub(super) fn of(suite: &'a Suite, report: &'a Report, context: usize, accepted: Accepted) -> Self {
        let case = |outcome: &'a Outcome| {
            let case = &outcome.case;
            let (status, diff, reason) = match &outcome.status {
                Status::Equal => ("equal", None, None),
                Status::Missing(_) => ("missing", None, None),
                Status::Different(found) => {
                    ("different", Some(found.diff(&case.file.display().to_string(), "now", context)), None)
                }
                Status::Failed(reason) => ("failed", None, Some(reason.as_str())),
                _ => ("unknown", None, None),
            };
            JsonCase {
                name: &case.name,
                model: &case.model,
                pipeline: &case.pipeline,
                file: &case.file,
                status,
                diff,
                reason,
            }
        };
        Self {
            list: suite.spec().file(),
            counts: Counts::of(report),
            cases: report.outcomes.iter().map(case).collect(),
            orphans: &report.orphans,
            written: accepted.written,
            removed: accepted.removed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_diffs_are_cut_and_say_so() {
        assert_eq!(shortened("a\nb\nc\n", 2), "a\nb\n… and 1 more line; --lines 0 shows all\n");
        assert_eq!(
            (shortened("a\nb\n", 2), shortened("a\nb\n", 0)),
            ("a\nb\n".to_owned(), "a\nb\n".to_owned())
        );
    }
}
