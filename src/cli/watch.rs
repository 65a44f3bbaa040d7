//! What is shown while a pipeline runs: a line per pass, remarks, diffs, the graph itself.

use crate::host::CliHost;
use crate::table::emit;
use crate::work::{count, time};
use basisopt_ir::{Graph, print::print};
use basisopt_passes::{Check, Fidelity, Item, Observer, Outcome, PassReport, Pipeline};
use similar::TextDiff;

/// What to show.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    /// A line per pass, on stderr.
    pub lines: bool,
    /// Remarks under it, on stderr.
    pub remarks: bool,
    /// A diff of the text per pass, on stdout.
    pub diff: bool,
    /// The text after passes of this name, or after all if it is empty, on stdout.
    pub print_after: Option<String>,
}

/// Sees every pass begin and end.
pub(crate) struct Watcher<'a> {
    host: &'a CliHost,
    shown: Shown,
    /// Width of the longest item.
    width: usize,
    before: String,
    /// Whether the reason for which there is no check was given.
    is_told: bool,
    error: Option<anyhow::Error>,
}

impl<'a> Watcher<'a> {
    /// A watcher of this pipeline.
    pub(crate) fn new(host: &'a CliHost, pipeline: &Pipeline, shown: Shown) -> Self {
        let width = pipeline.items.iter().map(|i| i.to_string().chars().count()).max().unwrap_or(0);
        Self { host, shown, width: width.min(60), before: String::new(), is_told: false, error: None }
    }

    /// What went wrong while showing.
    ///
    /// # Errors
    /// The first failure to write to stdout.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        self.error.map_or(Ok(()), Err)
    }

    fn print(&mut self, text: &str) {
        if self.error.is_none() {
            self.error = emit(text).err();
        }
    }

    fn line(&mut self, report: &PassReport) -> String {
        let done = match report.outcome {
            Outcome::Unchanged => "unchanged".to_owned(),
            Outcome::Changed { rewrites } => count(rewrites, "rewrite"),
        };
        let check = match (&report.check, report.fidelity) {
            (Check::Compared(d), _) if d.relative == 0.0 => "outputs exactly equal".to_owned(),
            (Check::Compared(d), Fidelity::Exact) => format!("outputs equal to {:.1e}", d.relative),
            (Check::Compared(d), _) => format!("outputs moved by {:.1e} (relative)", d.relative),
            (Check::Impossible(_), _) if self.is_told => "check skipped".to_owned(),
            (Check::Impossible(reason), _) => {
                self.is_told = true;
                format!("check skipped: {reason}")
            }
            _ => String::new(),
        };
        let line = format!(
            "{:width$}  {done:>12}  {:>9}  {check}",
            report.item,
            time(report.time),
            width = self.width
        );
        line.trim_end().to_owned()
    }
}

impl Observer for Watcher<'_> {
    fn before(&mut self, _: usize, item: &Item, graph: &Graph) {
        self.host.begin(item.info.name);
        if self.shown.diff {
            self.before = print(graph);
        }
    }

    fn after(&mut self, _: usize, item: &Item, graph: &Graph, report: &PassReport) {
        self.host.end();
        if self.shown.lines {
            eprintln!("{}", self.line(report));
        }
        // What training reached is its result.
        if self.shown.lines && !self.shown.remarks && report.fidelity == Fidelity::Trained {
            report.remarks.iter().filter(|r| r.node.is_empty()).for_each(|r| eprintln!("  {}", r.message));
        }
        if self.shown.remarks {
            report.remarks.iter().for_each(|r| eprintln!("  {r}"));
        }
        let is_printed =
            self.shown.print_after.as_deref().is_some_and(|n| n.is_empty() || n == item.info.name);
        if !self.shown.diff && !is_printed {
            return;
        }
        let text = print(graph);
        if self.shown.diff && text != self.before {
            let diff = TextDiff::from_lines(&self.before, &text);
            let diff =
                diff.unified_diff().header(&format!("before {item}"), &format!("after {item}")).to_string();
            self.print(&diff);
        }
        if is_printed {
            self.print(&format!("// after {item}\n{text}"));
        }
    }
}
