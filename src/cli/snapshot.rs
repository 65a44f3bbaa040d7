//! `snapshot`: what pipelines make of models, held against checked-in text.

mod report;

use crate::progress::{Progress, interrupted};
use crate::table::{Format, emit, json};
use crate::work::{count, write_whole};
use crate::{Globals, INTERRUPTED, Usage};
use anyhow::Context as _;
use basisopt_passes::{Globs, Registry};
use basisopt_snapshot::{Accepted, FILE_NAME, Report, RunOptions, SnapshotError, Spec, Status, Suite, junit};
use clap::Subcommand;
use report::JsonReport;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  basisopt snapshot init                        write basisopt-snapshots.toml to begin with
  basisopt snapshot accept                      store what the pipelines make of the models now
  basisopt snapshot check                       exit with 1 and show diffs when that has changed
  basisopt snapshot check tests/ --junit snapshots.xml
  basisopt snapshot check --filter 'detector/*'

The list of models and pipelines is a small TOML file, by default basisopt-snapshots.toml. A
snapshot is the .bir text of the result with remarks and costs, without values of weights. No network
is run. docs/snapshots.md explains the list, what is compared, and what to do when it differs.";

const CHECK: &str = "\
Examples:
  basisopt snapshot check
  basisopt snapshot check tests/ --junit snapshots.xml
  basisopt snapshot check lists/nightly.toml --filter '*/small' --threads 4
  basisopt snapshot check --format json | jq -r '.cases[] | select(.status != \"equal\") | .name'

Norms and other numbers that were computed in floating point may differ by one in their last
printed digit; everything else must be the same text. Exit codes: 0 all is as stored; 1 something
differs, is missing, has no case any more or could not be read; 2 the command line or the list is
wrong.";

const ACCEPT: &str = "\
Examples:
  basisopt snapshot accept
  basisopt snapshot accept --filter 'detector/*'
  basisopt snapshot accept --remove-orphans     delete snapshots that no case has any more

Writes snapshots that are missing or differ, and names them on stdout. What differs by rounding
noise alone is not written. Files are written whole, after all cases were run. Exit codes: 0 all is
stored; 1 something could not be; 2 the command line or the list is wrong.";

/// The list to begin with.
const STARTER: &str = r#"# Which models and pipelines `basisopt snapshot check` holds against their snapshots.
# docs/snapshots.md explains it. Paths are relative to this file.

[pipelines]                    # each has a name, for files, and passes
import = ""                    # none: what is read from the file
fold = "@fold"
small = "@fold,factorize-conv:energy=0.9,dead-code"

[[case]]
model = "**/*.onnx"            # a file or a pattern; all pipelines above

# [[case]]                     # named by itself, so the pattern leaves it out
# model = "models/detector.onnx"
# name = "detector-320"        # instead of the file's name
# pipelines = ["fold"]
# dims = { H = 320, W = 320 }  # sizes that the model leaves open
"#;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Hold all cases against their snapshots and show what differs.
    Check(CheckArgs),
    /// Store what the cases are now.
    Accept(AcceptArgs),
    /// Write a list of cases to begin with.
    Init(InitArgs),
}

/// Which cases, and how.
#[derive(Debug, clap::Args)]
struct CasesArgs {
    /// The list of cases, or a folder with a basisopt-snapshots.toml in it.
    #[arg(value_name = "DIR|FILE", default_value = ".")]
    list: PathBuf,
    /// Only cases whose name MODEL/PIPELINE matches; globs joined by |. Orphans are not looked for.
    #[arg(long, value_name = "GLOB")]
    filter: Option<String>,
    /// Cases that are run at a time, and threads for decompositions; all cores by default. The outcome
    /// does not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: Option<u64>,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, clap::Args)]
#[command(after_help = CHECK)]
struct CheckArgs {
    #[command(flatten)]
    cases: CasesArgs,
    /// Write the outcome as JUnit XML too, whether all is equal or not.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Unchanged lines to show around what changed.
    #[arg(long, short = 'U', value_name = "N", default_value_t = 3)]
    context: usize,
    /// Show so many lines of each diff at most; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 80)]
    lines: usize,
}

#[derive(Debug, clap::Args)]
#[command(after_help = ACCEPT)]
struct AcceptArgs {
    #[command(flatten)]
    cases: CasesArgs,
    /// Delete snapshots that no case has any more.
    #[arg(long, conflicts_with = "filter")]
    remove_orphans: bool,
}

#[derive(Debug, clap::Args)]
struct InitArgs {
    /// The folder to write basisopt-snapshots.toml into.
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

pub(crate) fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Check(args) => check(&args, globals),
        Command::Accept(args) => accept(&args, globals),
        Command::Init(args) => init(&args),
    }
}

fn init(args: &InitArgs) -> anyhow::Result<ExitCode> {
    let path = args.dir.join(FILE_NAME);
    if path.exists() {
        anyhow::bail!(
            "refusing to write {}: it is there already; edit it, or remove it first",
            path.display()
        );
    }
    write_whole(&path, STARTER.as_bytes())?;
    emit(&format!("wrote {}; edit it, then run `basisopt snapshot accept`\n", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn check(args: &CheckArgs, globals: &Globals) -> anyhow::Result<ExitCode> {
    let suite = args.cases.suite()?;
    if let Some(junit) = &args.junit {
        check_junit(junit, &suite)?;
    }
    let Some(report) = args.cases.report(&suite, globals)? else { return Ok(ExitCode::from(INTERRUPTED)) };
    if let Some(path) = &args.junit {
        let name = suite.spec().file().display().to_string();
        write_whole(path, junit::xml(&report, &name).as_bytes())?;
    }
    emit(&match args.cases.format {
        Format::Json => json(&JsonReport::of(&suite, &report, args.context, Accepted::default()))?,
        Format::Text => report::text(&args.cases.list, &report, args.context, args.lines),
    })?;
    Ok(ExitCode::from(u8::from(!report.is_equal())))
}

fn accept(args: &AcceptArgs, globals: &Globals) -> anyhow::Result<ExitCode> {
    let suite = args.cases.suite()?;
    let Some(report) = args.cases.report(&suite, globals)? else { return Ok(ExitCode::from(INTERRUPTED)) };
    let accepted = suite.accept(&report, args.remove_orphans)?;
    let failed = report.outcomes.iter().any(|o| matches!(o.status, Status::Failed(_)));
    let mut out = String::new();
    if args.cases.format == Format::Json {
        out = json(&JsonReport::of(&suite, &report, 3, accepted))?;
    } else {
        for path in &accepted.written {
            let _ = writeln!(out, "wrote {}", path.display());
        }
        for path in &accepted.removed {
            let _ = writeln!(out, "removed {}", path.display());
        }
        for outcome in &report.outcomes {
            if let Status::Failed(reason) = &outcome.status {
                let _ = writeln!(out, "failed {}: {reason}", outcome.case.name);
            }
        }
        if !args.remove_orphans {
            for path in &report.orphans {
                let _ =
                    writeln!(out, "orphaned {}: no case has it; --remove-orphans deletes it", path.display());
            }
        }
        let (n, written, removed) = (report.outcomes.len(), accepted.written.len(), accepted.removed.len());
        let _ = writeln!(out, "{}: {written} written, {removed} removed", count(n, "case"));
    }
    emit(&out)?;
    Ok(ExitCode::from(u8::from(failed)))
}

impl CasesArgs {
    /// # Errors
    /// [`Usage`] for a list that is wrong.
    fn suite(&self) -> anyhow::Result<Suite> {
        let registry = Registry::builtin();
        let suite = Spec::load(&self.list).and_then(|spec| Suite::new(spec, registry));
        suite.map_err(|e| if e.is_usage() { Usage(e.to_string()).into() } else { e.into() })
    }

    /// Runs the cases; `None` after Ctrl-C.
    fn report(&self, suite: &Suite, globals: &Globals) -> anyhow::Result<Option<Report>> {
        let filter = match &self.filter {
            None => None,
            Some(text) => {
                let globs =
                    Globs::new(text).ok_or_else(|| Usage(format!("--filter {text}: this is no glob")))?;
                if !suite.cases().iter().any(|c| globs.matches(&c.name)) {
                    let first = suite.cases().first().map(|c| c.name.as_str()).unwrap_or_default();
                    let n = count(suite.cases().len(), "case");
                    let text = format!("--filter {text} matches none of the {n}; the first is {first}");
                    return Err(Usage(text).into());
                }
                Some(globs)
            }
        };
        let jobs = match self.threads {
            Some(n) => {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n as usize).build_global();
                pool.with_context(|| format!("{n} threads cannot be started; ask for fewer with --threads"))?;
                n as usize
            }
            None => rayon::current_num_threads(),
        };
        // The handler for Ctrl-C is there before the first case begins.
        interrupted();
        let options = RunOptions { jobs, filter: filter.as_ref(), interrupted: &interrupted };
        let bar = Progress::new("snapshots", globals.quiet);
        let report = suite.check(&options, &mut |done, total, name| bar.update(done, total, name));
        drop(bar);
        match report {
            Ok(report) => Ok(Some(report)),
            Err(SnapshotError::Interrupted) => {
                eprintln!("interrupted; nothing was written");
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// The XML must not take the place of the list or of a snapshot.
fn check_junit(path: &Path, suite: &Suite) -> anyhow::Result<()> {
    let files = suite.cases().iter().flat_map(|c| [&c.file, &c.path]).map(PathBuf::as_path);
    for file in files.chain([suite.spec().file()]) {
        crate::work::check_outputs(&[Some(file)], &[("--junit", Some(path))])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_to_begin_with_is_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("m.onnx"), "").unwrap();
        let spec = Spec::parse(STARTER, &dir.path().join(FILE_NAME)).unwrap();
        let names: Vec<String> =
            spec.cases(&Registry::builtin()).unwrap().into_iter().map(|c| c.name).collect();
        assert_eq!(names, ["m/fold", "m/import", "m/small"]);
        // What it shows as a comment is right too.
        let text = STARTER.replace("\n# ", "\n").replace("\n[pipelines]", "\n#\n[pipelines]");
        let text = text.split_once("#\n[pipelines]").map(|(_, rest)| format!("[pipelines]{rest}")).unwrap();
        assert!(Spec::parse(&text, Path::new("list.toml")).is_ok(), "{text}");
    }
}
