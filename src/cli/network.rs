//! Networks named on the command line: read as graphs, or handed to the runtime.

use anyhow::{Context as _, anyhow};
use basisopt_embed::EmbedError;
use basisopt_embed::measure::load_alike;
use basisopt_ir::{Graph, infer, parse};
use basisopt_onnx::{Model, export_new, read_stream};
use basisopt_runtime::{Engine, LoadOptions, RuntimeError, Session, Source};
use std::path::Path;

/// How a network is run.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Running")]
pub(crate) struct RunArgs {
    /// Images per run; what the model fixes, if it does.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub batch: Option<u64>,
    /// Size of an unknown dimension of the inputs, by its name in the model or as INPUT:AXIS, such as
    /// H=224; can be repeated.
    #[arg(long = "dim", value_name = "NAME=N", value_parser = parse_dim)]
    pub dims: Vec<(String, usize)>,
    /// Threads for the matrix products.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub threads: u64,
}

impl RunArgs {
    /// The number given with `--batch`.
    pub(crate) fn batch(&self) -> Option<usize> {
        self.batch.map(|n| usize::try_from(n).unwrap_or(usize::MAX))
    }

    /// The number given with `--threads`.
    pub(crate) fn threads(&self) -> usize {
        self.threads as usize
    }

    /// Loads networks that will be given the same inputs, in batches of `--batch`, or else of
    /// `preferred`, or else of what one of them fixes.
    ///
    /// # Errors
    /// What [`Session::load`] says, about the batch that was asked for if there was one.
    pub(crate) fn load(
        &self,
        sources: &[&Source],
        preferred: usize,
        engine: Engine,
    ) -> Result<Vec<Session>, RuntimeError> {
        let options = LoadOptions {
            batch: self.batch(),
            dims: self.dims.clone(),
            threads: self.threads(),
            engine,
            ..LoadOptions::default()
        };
        load_alike(sources, &options, preferred)
    }
}

/// Parses `H=224`.
pub(crate) fn parse_dim(text: &str) -> Result<(String, usize), String> {
    let (name, size) = text.rsplit_once('=').ok_or("expected NAME=N, such as H=224")?;
    let size = size.parse().ok().filter(|&n| n > 0).ok_or_else(|| format!("{size:?} is no size"))?;
    Ok((name.to_owned(), size))
}

/// A graph, and the ONNX file it came from if it came from one.
pub(crate) struct Network {
    pub file: String,
    pub graph: Graph,
    pub source: Option<basisopt_onnx::Source>,
}

/// Reads an ONNX or a `.bir` file, or either from stdin (`-`), and infers its types. Types that
/// contradict each other are reported on stderr; the graph is then as the file has it.
///
/// # Errors
/// If the file cannot be read or is neither.
pub(crate) fn read(path: &Path) -> anyhow::Result<Network> {
    let mut network = match content(path)? {
        Content::Text(text) => {
            let graph = parse::parse(&text).with_context(|| name_of(path))?;
            Network { file: name_of(path), graph, source: None }
        }
        Content::Bytes(bytes) => of_model(Model::from_bytes(name_of(path), bytes.into(), None)?),
        Content::File => of_model(Model::read(path).map_err(|e| with_remedy(path, e.into()))?),
    };
    if let Err(contradiction) = infer::infer(&mut network.graph) {
        eprintln!("warning: {}: {contradiction}; shapes are shown as the file has them", network.file);
    }
    Ok(network)
}

fn of_model(model: Model) -> Network {
    Network {
        file: model.source().file().to_owned(),
        source: Some(model.source().clone()),
        graph: model.graph,
    }
}

/// The encoded network for the runtime; a `.bir` file is encoded first.
///
/// # Errors
/// If the file cannot be read, or is a printed graph without the values of its weights.
pub(crate) fn runnable(path: &Path) -> anyhow::Result<Source> {
    Ok(match content(path)? {
        Content::Text(text) => {
            let graph = parse::parse(&text).with_context(|| name_of(path))?;
            let bytes = export_new(&graph).with_context(|| name_of(path))?;
            Source::from_bytes(name_of(path), bytes, None)
        }
        Content::Bytes(bytes) => Source::from_bytes(name_of(path), bytes, None),
        Content::File => Source::from_file(path).map_err(|e| with_remedy(path, e.into()))?,
    })
}

/// The model, to be changed and written; a `.bir` file is encoded first.
///
/// # Errors
/// If the file cannot be read, or is a printed graph without the values of its weights.
pub(crate) fn model(path: &Path) -> anyhow::Result<Model> {
    Ok(match content(path)? {
        Content::Text(text) => {
            let graph = parse::parse(&text).with_context(|| name_of(path))?;
            let bytes = export_new(&graph).with_context(|| name_of(path))?;
            Model::from_bytes(name_of(path), bytes, None)?
        }
        Content::Bytes(bytes) => Model::from_bytes(name_of(path), bytes.into(), None)?,
        Content::File => Model::read(path).map_err(|e| with_remedy(path, e.into()))?,
    })
}

/// What a path stands for, as far as one must look to know it.
enum Content {
    /// A graph as text.
    Text(String),
    /// A model from a stream.
    Bytes(Vec<u8>),
    /// A file, to be mapped.
    File,
}

/// Looks at a path: text is told by its ending, or in a pipe by its first word.
fn content(path: &Path) -> anyhow::Result<Content> {
    if path == Path::new("-") {
        let bytes = read_stream(std::io::stdin().lock()).context("cannot read stdin")?;
        return streamed(path, bytes);
    }
    let kind = std::fs::metadata(path).map(|m| m.file_type());
    if kind.as_ref().is_ok_and(|k| k.is_dir()) {
        return Err(anyhow!("{}: this is a folder; give the .onnx file in it", path.display()));
    }
    // A pipe, as from `diff m.onnx <(basisopt print m.onnx)`: it can be read once and not mapped.
    if kind.is_ok_and(|k| !k.is_file()) {
        let bytes = std::fs::File::open(path).and_then(read_stream);
        let bytes = bytes.with_context(|| format!("cannot read {}", path.display()))?;
        return streamed(path, bytes);
    }
    if path.extension().is_some_and(|e| e == "bir") {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        return Ok(Content::Text(text));
    }
    Ok(Content::File)
}

/// What came through a pipe: text is told by its first word.
fn streamed(path: &Path, bytes: Vec<u8>) -> anyhow::Result<Content> {
    let is_text = bytes.starts_with(b"graph ") || bytes.starts_with(b"//");
    Ok(match is_text {
        true => {
            Content::Text(String::from_utf8(bytes).with_context(|| format!("{}: not UTF-8", name_of(path)))?)
        }
        false => Content::Bytes(bytes),
    })
}

fn name_of(path: &Path) -> String {
    if path == Path::new("-") { "<stdin>".to_owned() } else { path.display().to_string() }
}

/// A pin that names no open size, by its name or as `INPUT:AXIS`, is a spelling mistake.
///
/// # Errors
/// Naming the sizes that are open.
pub(crate) fn check_dims(file: &str, graph: &Graph, dims: &[(String, usize)]) -> anyhow::Result<()> {
    basisopt_embed::optimize::check_dims(file, graph, dims).map_err(dim_error)
}

/// A complaint about a size, in the words of the command line.
pub(crate) fn dim_error(error: EmbedError) -> anyhow::Error {
    match error {
        EmbedError::Dim { file, name, open } if open.is_empty() => {
            anyhow!("{file}: --dim {name}=…: all sizes of its inputs are fixed")
        }
        EmbedError::Dim { file, name, open } => {
            anyhow!("{file}: --dim {name}=…: its open sizes are {}", open.join(", "))
        }
        other => other.into(),
    }
}

/// What to do about files of other frameworks.
fn with_remedy(path: &Path, error: anyhow::Error) -> anyhow::Error {
    let remedy = match path.extension().and_then(|e| e.to_str()) {
        Some("pt" | "pth" | "ckpt" | "safetensors") => "convert it with torch.onnx.export",
        Some("tflite" | "pb" | "h5" | "keras") => "convert it with tf2onnx",
        Some("mlmodel" | "caffemodel" | "pdmodel") => "convert it to ONNX first",
        _ => return error,
    };
    if !path.exists() { error } else { anyhow!("{error}; {remedy}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_are_pinned_by_name_or_by_input_and_axis() {
        assert_eq!(parse_dim("H=224"), Ok(("H".to_owned(), 224)));
        assert_eq!(parse_dim("x:2=5"), Ok(("x:2".to_owned(), 5)));
        assert!(parse_dim("H").is_err() && parse_dim("H=0").is_err() && parse_dim("H=x").is_err());
    }
}
