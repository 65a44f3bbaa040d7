//! What `opt`, `compress` and `bisect` have in common: a model read and a pipeline run over it,
//! with checks, progress and an output that is not the input.

use crate::data::DataArgs;
use crate::network::parse_dim;
use anyhow::{Context as _, anyhow};
use basisopt_embed::TractExecutor;
use basisopt_ir::infer;
use basisopt_onnx::Model;
use basisopt_passes::{ManagerError, PassError};
use basisopt_runtime::{Dataset, Preprocess};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// On what networks are checked, and how fast.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Checking and running")]
pub(crate) struct CheckArgs {
    /// Seed of random inputs, and of everything random in passes.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
    /// Check on images instead of random numbers; preprocessed as MODEL.toml says.
    #[arg(long, value_name = "PATH")]
    pub check_data: Option<PathBuf>,
    /// Size of an unknown dimension of the inputs, by its name in the model or as INPUT:AXIS, such as
    /// H=224; can be repeated. The batch is 1 if it is not given.
    #[arg(long = "dim", value_name = "NAME=N", value_parser = parse_dim)]
    pub dims: Vec<(String, usize)>,
    /// Threads for decompositions; all cores by default. The output does not depend on it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub threads: Option<u64>,
}

impl CheckArgs {
    /// Something to run versions of the model with.
    ///
    /// # Errors
    /// If the data of `--check-data` cannot be opened.
    pub(crate) fn executor(&self, model: &Model, path: &Path) -> anyhow::Result<TractExecutor> {
        let executor = TractExecutor::new(model.source().clone()).with_dims(self.dims.clone());
        Ok(match self.data(path)? {
            Some((dataset, preprocess)) => executor.with_data(dataset, preprocess),
            None => executor,
        })
    }

    /// The images of `--check-data`.
    ///
    /// # Errors
    /// If they cannot be opened.
    pub(crate) fn data(&self, path: &Path) -> anyhow::Result<Option<(Dataset, Preprocess)>> {
        let Some(data) = &self.check_data else { return Ok(None) };
        DataArgs { data: Some(data.clone()), ..DataArgs::default() }.require(path).map(Some)
    }

    /// Starts the threads for decompositions.
    ///
    /// # Errors
    /// If they cannot be had.
    pub(crate) fn start_threads(&self) -> anyhow::Result<()> {
        let Some(n) = self.threads else { return Ok(()) };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n as usize);
        pool.build_global()
            .with_context(|| format!("{n} threads cannot be started; ask for fewer with --threads"))
    }
}

/// Says what the file claims about its values and is not so. Inference goes by the operators.
pub(crate) fn import_notes(model: &mut Model, quiet: bool) {
    const SHOWN: usize = 4;
    // A contradiction between operators is an error, which the pass manager reports.
    let Ok(report) = infer::infer(&mut model.graph) else { return };
    if quiet {
        return;
    }
    let file = model.source().file();
    for disagreement in report.disagreements.iter().take(SHOWN) {
        eprintln!("note: {file}: {disagreement}");
    }
    if let Some(more) = report.disagreements.len().checked_sub(SHOWN).filter(|&n| n > 0) {
        eprintln!("note: {file}: and {more} more types that are not what the file says");
    }
}

/// Refuses an output that cannot be written, before any work is done for it.
///
/// # Errors
/// If it is the input, a folder, or in a folder that is not there.
pub(crate) fn check_output(input: &Path, output: &Path) -> anyhow::Result<()> {
    if output == Path::new("-") {
        return Ok(());
    }
    let shown = output.display();
    if let (Ok(a), Ok(b)) = (input.canonicalize(), output.canonicalize())
        && a == b
        && a.is_file()
    {
        return Err(anyhow!(
            "refusing to write {shown}: it is the input model or data; choose another output path"
        ));
    }
    if output.is_dir() {
        return Err(anyhow!("cannot write {shown}: it is a folder; name a file in it"));
    }
    match output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            Err(anyhow!("cannot write {shown}: there is no folder {}; create it first", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Refuses files that are written if one of them is read, or written twice, or stands for stdout.
///
/// # Errors
/// As [`check_output`], naming the two.
pub(crate) fn check_outputs(
    inputs: &[Option<&Path>],
    outputs: &[(&str, Option<&Path>)],
) -> anyhow::Result<()> {
    let mut seen: Vec<(&str, PathBuf)> = Vec::new();
    for &(flag, path) in outputs {
        let Some(path) = path else { continue };
        if path == Path::new("-") {
            return Err(anyhow!("{flag} -: this cannot go to stdout; name a file"));
        }
        for input in inputs.iter().flatten() {
            check_output(input, path).with_context(|| flag.to_owned())?;
        }
        let place = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        if let Some((other, _)) = seen.iter().find(|(_, p)| *p == place) {
            return Err(anyhow!(
                "{other} and {flag} both name {}; choose another for one of them",
                path.display()
            ));
        }
        seen.push((flag, place));
    }
    Ok(())
}

/// Writes a file whole or not at all.
///
/// # Errors
/// If the disk refuses; what was there is then still there.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    basisopt_onnx::write_whole(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Whether a pipeline stopped because of Ctrl-C.
pub(crate) fn was_interrupted(error: &ManagerError) -> bool {
    matches!(error, ManagerError::Pass { source: PassError::Interrupted, .. })
}

/// A time for people: `12.3 ms`, `4.56 s`.
pub(crate) fn time(duration: Duration) -> String {
    let s = duration.as_secs_f64();
    if s < 1.0 { format!("{:.1} ms", 1e3 * s) } else { format!("{s:.2} s") }
}

/// A size for people: `376.2 kB`.
pub(crate) fn bytes(n: u64) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.2} GB", n / 1e9),
        n if n >= 1e6 => format!("{:.2} MB", n / 1e6),
        n if n >= 1e3 => format!("{:.1} kB", n / 1e3),
        n => format!("{n} B"),
    }
}

/// `n` things, with the plural that the number asks for.
pub(crate) fn count(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// The command as it was given, for reports.
pub(crate) fn command() -> String {
    let quoted = |a: String| if a.contains([' ', '*', '|']) { format!("'{a}'") } else { a };
    let args: Vec<String> = std::env::args().skip(1).map(quoted).collect();
    format!("basisopt {}", args.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_refused_before_the_work() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("m.onnx");
        std::fs::write(&input, "x").unwrap();
        let refused = |output: &Path| check_output(&input, output).unwrap_err().to_string();
        assert!(refused(&dir.path().join("./m.onnx")).contains("it is the input model"));
        assert!(refused(dir.path()).contains("it is a folder"));
        assert!(refused(&dir.path().join("a/b.onnx")).contains("there is no folder"));
        assert!(check_output(&input, &dir.path().join("n.onnx")).is_ok());
        assert!(check_output(Path::new("-"), Path::new("-")).is_ok());
    }

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!([999, 376_200, 553_434_523].map(bytes), ["999 B", "376.2 kB", "553.43 MB"]);
        assert_eq!(time(Duration::from_micros(12_340)), "12.3 ms");
    }
}
